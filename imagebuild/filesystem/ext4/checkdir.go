package ext4

import (
	"bytes"
	"fmt"
)

// foldersOf checks the entries of group g's folders and counts the links that they make.
func (c *checker) foldersOf(g uint32) error {
	k := &c.in[g]
	for i, kind := range k.kinds {
		if kind != modeDir>>12 {
			continue
		}
		if c.ctx.Err() != nil {
			return nil
		}
		ino := g*c.ipg + uint32(i) + 1
		raw, err := c.inode(ino)
		if err != nil {
			continue // reported with the inode
		}
		d := &dirCheck{checker: c, names: folder{ino: ino}, flags: inodeFlags(raw),
			seed: c.inodeSeed(ino, le.Uint32(raw[inGeneration:]))}
		if d.flags&flagInlineData != 0 {
			err = d.inline(raw)
		} else {
			err = d.blocks(raw)
		}
		if err != nil {
			c.badInode(ino, err)
		}
		k.says[ino] = d.parent
	}
	return nil
}

type dirCheck struct {
	*checker
	names  folder // to find those that are there twice
	flags  uint32
	seed   uint32
	parent uint32
	tree   *dxCheck // nil where there is no hash tree
	lo, hi uint32   // of a hash tree's leaf: the least hash, and the first that is too large
	both   bool     // hi itself may be here too
	leaf   bool
}

func (d *dirCheck) inline(raw []byte) error {
	data, err := d.inlineData(d.names.ino, raw)
	if err != nil {
		return nil // reported with the inode
	}
	if len(data) < 4 {
		return corrupt("an inline folder of %d bytes", len(data))
	}
	d.parent = le.Uint32(data)
	head := min(len(data), inBlockLen)
	for _, part := range [][]byte{data[4:head], data[head:]} {
		if err := d.entries(part, "inline folder", 0); err != nil {
			return err
		}
	}
	return nil
}

func (d *dirCheck) blocks(raw []byte) error {
	n := inodeSize(raw) / d.bs
	m := newBlockMap(d.FS, d.names.ino, raw)
	mapped, err := d.mapped(m, n)
	if err != nil {
		return err
	}
	if d.flags&flagIndex != 0 && d.compat&compatDirIndex != 0 {
		if mapped != n {
			return nil // reported with the inode
		}
		d.tree = &dxCheck{dirCheck: d, m: m, n: n, seen: make([]byte, (n/8+8)&^7)}
		if err := d.tree.root(); err != nil {
			return err
		}
		if err := d.tree.complete(); err != nil {
			return err
		}
	} else {
		// A folder's blocks are often in one run.
		per := max(1, checkChunk/4/d.bs)
		buf := make([]byte, min(per, mapped)*d.bs)
		for log := int64(0); log < n; {
			phys, run, err := m.find(log)
			if err != nil {
				return nil
			}
			run = min(run, n-log)
			if phys == 0 {
				log += run
				continue
			}
			part := buf[:min(per, run)*d.bs]
			if err := d.readRange(phys*d.bs, part); err != nil {
				return err
			}
			if err := d.stop(); err != nil {
				return nil
			}
			for i := range int64(len(part)) / d.bs {
				if err := d.leafBlock(part[i*d.bs:(i+1)*d.bs], log+i); err != nil {
					d.badInode(d.names.ino, err)
				}
			}
			log += int64(len(part)) / d.bs
		}
	}
	if d.parent == 0 {
		return corrupt("a folder without \"..\"")
	}
	return nil
}

// mapped counts the first n blocks of a folder that are there. All folders together cannot have more than the device.
func (d *dirCheck) mapped(m *blockMap, n int64) (count int64, err error) {
	for log := int64(0); log < n; {
		phys, run, err := m.find(log)
		if err != nil {
			return 0, err
		}
		if run = min(run, n-log); phys != 0 {
			count += run
		}
		log += run
	}
	if d.dirBlocks += count; d.dirBlocks > d.FS.blocks {
		return 0, corrupt("folders have more blocks than there are")
	}
	return count, nil
}

// leafBlock checks a block of entries.
func (d *dirCheck) leafBlock(b []byte, log int64) error {
	where := fmt.Sprintf("inode %d: folder block %d", d.names.ino, log)
	if d.metaCsum {
		t := b[len(b)-dirTailLen:]
		if le.Uint32(t) != 0 || d.recLen(t[deRecLen:]) != dirTailLen || t[deNameLen] != 0 || t[deType] != dirTailType {
			return corrupt("%s has no checksum", where)
		}
		if crc32c(d.seed, b[:len(b)-dirTailLen]) != le.Uint32(t[8:]) {
			d.bad("%s has a wrong checksum", where)
		}
	}
	return d.entries(b, where, log)
}

// entries checks the entries of b.
func (d *dirCheck) entries(b []byte, where string, log int64) error {
	inline := d.flags&flagInlineData != 0
	dots := 0
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < deName {
			return corrupt("%s: entry at byte %d is cut off", where, at)
		}
		n, nameLen := d.recLen(e[deRecLen:]), int(e[deNameLen])
		if n < recLen(1) || n%4 != 0 || n > len(e) || nameLen > n-deName {
			return corrupt("%s: entry at byte %d has length %d and a name of %d", where, at, n, nameLen)
		}
		ino, name := le.Uint32(e), e[deName:deName+nameLen]
		first := !inline && log == 0 && dots < 2
		at += n
		if first {
			want, is := ".", d.names.ino
			if dots == 1 {
				want, is = "..", ino
				d.parent = ino
			}
			if string(name) != want || ino != is || ino == 0 {
				return corrupt("%s: entry %d is %q for inode %d", where, dots, name, ino)
			}
			if d.incompat&incompatFiletype != 0 && e[deType] != ftDir && e[deType] != 0 {
				d.bad("%s: %q has file type %d", where, name, e[deType])
			}
			dots++
			continue
		}
		if ino == 0 {
			continue
		}
		if err := d.entry(ino, e[deType], name, where); err != nil {
			d.fault(err)
		}
	}
	if !inline && log == 0 && dots < 2 {
		return corrupt("%s: no \"..\"", where)
	}
	return nil
}

func (d *dirCheck) entry(ino uint32, ft uint8, name []byte, where string) error {
	plain := d.flags&flagEncrypt == 0
	switch {
	case len(name) == 0, plain && (bytes.IndexByte(name, 0) >= 0 || bytes.IndexByte(name, '/') >= 0), string(name) == ".", string(name) == "..":
		return corrupt("%s has an entry with the name %q", where, name)
	case ino > d.inodes || ino < d.firstInode():
		return corrupt("%s: %q is inode %d", where, name, ino)
	}
	s := string(name)
	if d.names.find(s) >= 0 {
		return corrupt("%s: %q is there twice", where, name)
	}
	if err := d.names.add(ino, ft, s); err != nil {
		return err
	}
	if d.leaf && plain && d.flags&flagCasefold == 0 {
		h, _ := d.nameHash(d.tree.version, name)
		if h < d.lo&^1 || h > d.hi&^1 || h == d.hi&^1 && !d.both {
			return corrupt("%s: %q has the hash %#x and is among those from %#x to %#x: it cannot be found", where, name, h, d.lo, d.hi)
		}
	}
	g, i := (ino-1)/d.ipg, (ino-1)%d.ipg
	k := &d.in[g]
	if i >= uint32(len(k.kinds)) || k.kinds[i] == 0 {
		if k.lost {
			return nil
		}
		return corrupt("%s: %q leads to inode %d, which is free", where, name, ino)
	}
	if what, ok := d.owned[ino]; ok {
		return corrupt("%s: %q leads to inode %d, %s", where, name, ino, what)
	}
	kind := uint16(k.kinds[i]) << 12
	want := uint8(0)
	if d.incompat&incompatFiletype != 0 {
		want = fileType(kind)
	}
	if ft != want && ft != 0 {
		d.bad("%s: %q has file type %d, inode %d is a %#o", where, name, ft, ino, kind)
	}
	if k.links[i] < 1<<32-1 {
		k.links[i]++
	}
	if kind != modeDir {
		return nil
	}
	if other, ok := k.parents[ino]; ok {
		return corrupt("%s: %q is folder inode %d, which is in folder %d as well", where, name, ino, other)
	}
	k.parents[ino] = d.names.ino
	own := &d.in[(d.names.ino-1)/d.ipg]
	own.links[(d.names.ino-1)%d.ipg]++
	return nil
}

// dxCheck walks a hash tree.
type dxCheck struct {
	*dirCheck
	m       *blockMap
	n       int64 // blocks of the folder
	seen    []byte
	version uint8
	levels  int
}

func (t *dxCheck) read(log int64) ([]byte, error) {
	b := make([]byte, t.bs)
	_, err := t.m.ReadAt(b, log*t.bs)
	return b, err
}

func (t *dxCheck) root() error {
	b, err := t.read(0)
	if err != nil {
		return err
	}
	where := "folder block 0"
	info := b[dxInfo:]
	t.version, t.levels = info[4], int(info[6])
	most := dxMaxLevels - 1
	if t.incompat&incompatLargeDir != 0 {
		most = dxMaxLevels
	}
	if n := int(t.recLen(b[deRecLen:])); n != recLen(1) {
		return corrupt("%s: hash tree root whose first entry has length %d", where, n)
	}
	if d, dd := b[:12], b[12:]; le.Uint32(d) != t.names.ino || d[deNameLen] != 1 || d[deName] != '.' || dd[deNameLen] != 2 || string(dd[deName:deName+2]) != ".." ||
		t.recLen(dd[deRecLen:]) != int(t.bs)-recLen(1) || t.incompat&incompatFiletype != 0 && (d[deType] != ftDir && d[deType] != 0 || dd[deType] != ftDir && dd[deType] != 0) {
		return corrupt("%s: hash tree root without \".\" and \"..\"", where)
	}
	t.parent = le.Uint32(b[12:])
	switch {
	case le.Uint32(info) != 0 || info[5] != dxInfoLen || info[7]&1 != 0:
		return corrupt("%s: hash tree root of an unknown kind (%x)", where, info[:8])
	case t.version > hashTea && t.version != hashSIP:
		return corrupt("%s: hash version %d", where, t.version)
	case t.levels > most:
		return corrupt("%s: hash tree of %d levels", where, t.levels+1)
	}
	setBits(t.seen, 0, 1)
	return t.node(b, 0, dxRootEntries, t.levels, 0, 1<<32-1, false)
}

// node checks a root or a node, whose leaves are levels below its children, and what is below it. Hashes are from lo
// to below hi, or to hi where both is set.
func (t *dxCheck) node(b []byte, log int64, first, levels int, lo, hi uint32, both bool) error {
	if err := t.stop(); err != nil {
		return nil
	}
	limit, count := int(le.Uint16(b[first:])), int(le.Uint16(b[first+2:]))
	if want := t.dxLimit(first); limit != want || count > limit || count == 0 {
		return corrupt("folder block %d: hash tree node with %d entries of %d, room for %d", log, count, limit, want)
	}
	if tail := first + limit*dxEntry; t.metaCsum && dxSum(t.seed, b, first, count, tail) != le.Uint32(b[tail+4:]) {
		t.bad("inode %d: folder block %d has a wrong hash tree checksum", t.names.ino, log)
	}
	at := lo
	for i := range count {
		e := b[first+i*dxEntry:]
		from, child := lo, int64(le.Uint32(e[4:])&dxCountMask)
		if i > 0 {
			from = le.Uint32(e)
		}
		end, more := hi, both
		if i+1 < count {
			end = le.Uint32(e[dxEntry:])
			more = end&1 != 0
		}
		if from < at || end < from || i > 0 && from > hi {
			return corrupt("folder block %d: hash %#x of entry %d is out of order", log, from, i)
		}
		at = from
		if child == 0 || child >= t.n || testBit(t.seen, child) {
			return corrupt("folder block %d: entry %d leads to block %d of %d, or that is used twice", log, i, child, t.n)
		}
		setBits(t.seen, child, 1)
		k, err := t.read(child)
		if err != nil {
			return err
		}
		if levels == 0 {
			t.leaf, t.lo, t.hi, t.both = true, from, end, more
			if err := t.leafBlock(k, child); err != nil {
				t.badInode(t.names.ino, err)
			}
			continue
		}
		if le.Uint32(k) != 0 || t.recLen(k[deRecLen:]) != len(k) {
			return corrupt("folder block %d is no hash tree node", child)
		}
		if err := t.node(k, child, dxNodeEntries, levels-1, from, end, more); err != nil {
			t.badInode(t.names.ino, err)
		}
	}
	return nil
}

// complete wants every block to be part of the tree.
func (t *dxCheck) complete() error {
	if at := nextBit(t.seen, 0, t.n, false); at < t.n {
		return corrupt("folder block %d is not in the hash tree", at)
	}
	return nil
}

// linkCounts compares what the inodes of group g say with the names that lead to them.
func (c *checker) linkCounts(g uint32) {
	k := &c.in[g]
	for i, kind := range k.kinds {
		if kind == 0 {
			continue
		}
		ino := g*c.ipg + uint32(i) + 1
		if _, ok := c.owned[ino]; ok || ino < c.firstInode() && ino != rootInode {
			continue
		}
		names, says := k.links[i], uint32(k.nlink[i])
		if kind != modeDir>>12 {
			switch {
			case names == 0:
				c.bad("inode %d: no folder leads to it", ino)
			case names != says:
				c.bad("inode %d: %d links, folders have %d", ino, says, names)
			}
			continue
		}
		parent, ok := k.parents[ino]
		if ino == rootInode {
			parent, ok = rootInode, true
			names++
		}
		switch {
		case !ok:
			c.bad("inode %d: no folder leads to this one", ino)
			continue
		case k.says[ino] != 0 && k.says[ino] != parent:
			c.bad("inode %d: folder in folder %d says that its parent is %d", ino, parent, k.says[ino])
		}
		// Its own name and ".", and ".." of each subfolder; one stands for too many.
		if want := names + 1; want != says && !(says == 1 && want > linkMax) {
			c.bad("inode %d: folder with %d links, %d expected", ino, says, want)
		}
	}
	c.reachable(g)
}

// reachable finds folders that lead to one another and not to the root.
func (c *checker) reachable(g uint32) {
	k := &c.in[g]
	for i, kind := range k.kinds {
		first := g*c.ipg + uint32(i) + 1
		if kind != modeDir>>12 || first == rootInode {
			continue
		}
		for at := first; at != rootInode && c.seen[at] == 0; {
			c.seen[at] = first
			above, ok := c.in[(at-1)/c.ipg].parents[at]
			if !ok {
				break // reported as a folder that none leads to
			}
			if at = above; c.seen[at] == first {
				c.bad("inode %d: folders lead to one another in a circle", at)
			}
		}
	}
}
