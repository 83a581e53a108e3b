package xfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"slices"
	"strings"
)

// Check walks the whole filesystem and calls fault for everything that is wrong: broken structures, blocks that are in
// use twice, in use and free, or neither; wrong counts; reverse maps and shared blocks that do not agree with the
// files; folder entries that lead nowhere, indexes that do not lead to their entries, files without a name, wrong link
// counts; index blocks that are not linked to their neighbours, or whose keys are not those of what is below; copies of
// the superblock that describe another layout. It does not read contents, nor compare LSNs with the log's. A log that
// is not clean is a fault too.
//
// The error is not about the filesystem: it is ctx's. Check needs about two bits of memory for each block and ten bytes
// for each inode.
func (fs *FS) Check(ctx context.Context, fault func(error)) error {
	c := &checker{ctx: ctx, fault: fault}
	c.Writer = &Writer{FS: fs}
	if fs.w != nil {
		return errors.New("xfs: Check of a filesystem that is being written")
	}
	if fs.sb.logStart != 0 {
		if err := fs.checkLog(); err != nil {
			fault(err)
		}
	}
	buf := make([]byte, 2*fs.sb.sectSize)
	for i := uint32(0); i < fs.sb.agCount; i++ {
		g, err := fs.readGroup(i, buf)
		if err != nil {
			fault(err) // without its headers nothing in the group makes sense, nor do counts over all
			return ctx.Err()
		}
		c.groups = append(c.groups, g)
	}
	c.ags = make([]checkGroup, len(c.groups))
	c.superCopies()
	for _, step := range []func(*group) error{c.trees, c.inodesOf, c.foldersOf, c.closeGroup} {
		for _, g := range c.groups {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := step(g); err != nil {
				fault(err)
			}
		}
	}
	c.counters()
	return ctx.Err()
}

type checker struct {
	*Writer
	ctx   context.Context
	fault func(error)
	ags   []checkGroup
}

type checkGroup struct {
	used, shared bitmap
	usedN, marks uint64 // blocks in use; uses of blocks, which is more where some are shared
	refs, refsOK uint64 // references to shared blocks: found, and by the tree
	kinds        []uint8
	nlink, links []uint32          // what inodes say, what folders say
	pointers     []uint64          // sums over parent pointers, less those over folder entries
	parents      map[uint32]uint64 // of folders: which folder has an entry for them
	says         map[uint32]uint64 // and which they say
}

type bitmap []uint64

func (b bitmap) has(i uint32) bool { return b[i/64]>>(i%64)&1 != 0 }
func (b bitmap) set(i uint32)      { b[i/64] |= 1 << (i % 64) }

func (c *checker) bad(format string, a ...any) { c.fault(corrupt(format, a...)) }

// mark notes blocks as in use. Blocks of files may be shared where the tree of shared blocks says so.
func (c *checker) mark(ag, start, n uint32, file bool, what string, a ...any) {
	g := &c.ags[ag]
	g.marks += uint64(n)
	clash := 0
	for i := start; i < start+n; i++ {
		if file && g.shared != nil && g.shared.has(i) {
			g.refs++
			if !g.used.has(i) {
				g.used.set(i)
				g.usedN++
			}
			continue
		}
		if g.used.has(i) {
			clash++
			continue
		}
		g.used.set(i)
		g.usedN++
	}
	if clash > 0 {
		c.bad("group %d: %d of %d blocks at %d of %s are in use twice", ag, clash, n, start, fmt.Sprintf(what, a...))
	}
}

// trees reads a group's trees and marks their blocks, the headers, the log, and inode chunks.
func (c *checker) trees(g *group) error {
	sb := c.sb
	a := &c.ags[g.no]
	words := (g.length + 63) / 64
	a.used = make(bitmap, words)
	a.parents, a.says = map[uint32]uint64{}, map[uint32]uint64{}
	c.mark(g.no, 0, min(sb.firstBlock(), g.length), false, "the headers")
	if ag, b := sb.split(sb.logStart); sb.logStart != 0 && ag == g.no {
		if sb.validRun(sb.logStart, uint64(sb.logBlocks)) {
			c.mark(g.no, b, sb.logBlocks, false, "the log")
		}
	}
	if err := c.load(g); err != nil {
		return err
	}
	if err := c.loadRefc(g); err != nil {
		return err
	}
	if sb.ro&roReflink != 0 {
		a.shared = make(bitmap, words)
		for _, r := range g.refc {
			if r.start&refcCow != 0 {
				c.mark(g.no, r.start&^refcCow, r.n, false, "staged copies")
				continue
			}
			if r.count < 2 {
				c.bad("group %d: %d blocks at %d are shared by %d", g.no, r.n, r.start, r.count)
			}
			for i := r.start; i < r.start+r.n; i++ {
				a.shared.set(i)
			}
			a.refsOK += uint64(r.n) * uint64(r.count)
		}
	}
	if sb.ro&roRmapbt != 0 {
		err := c.scanTree(rmapKind, g.no, be.Uint32(g.agf[agfRmapRoot:]), int(be.Uint32(g.agf[agfRmapLevel:])),
			func(b uint32) { g.oldTrees = append(g.oldTrees, span{b, 1}) }, func([]byte) error { return nil })
		if err != nil {
			return err
		}
	}
	for _, s := range g.oldTrees {
		c.mark(g.no, s.start, s.n, false, "trees and free list")
	}
	var bySize []span
	err := c.scanTree(cntKind, g.no, be.Uint32(g.agf[agfCntRoot:]), int(be.Uint32(g.agf[agfCntLevel:])), nil, func(r []byte) error {
		bySize = append(bySize, span{be.Uint32(r), be.Uint32(r[4:])})
		return nil
	})
	if err != nil {
		return err
	}
	order := func(a, b span) int {
		if c := cmp.Compare(a.n, b.n); c != 0 {
			return c
		}
		return cmp.Compare(a.start, b.start)
	}
	if !slices.IsSortedFunc(bySize, order) {
		c.bad("group %d: free space by length is out of order", g.no)
	}
	free := slices.Clone(g.free)
	slices.SortFunc(free, order)
	slices.SortFunc(bySize, order)
	if !slices.Equal(free, bySize) {
		c.bad("group %d: free space by length is not that by block", g.no)
	}
	longest := uint32(0)
	if len(free) > 0 {
		longest = free[len(free)-1].n
	}
	if l := be.Uint32(g.agf[agfLongest:]); l != longest {
		c.bad("group %d: the longest free run is %d blocks, the header says %d", g.no, longest, l)
	}
	if sb.ro&roFinobt != 0 {
		err := c.scanTree(finoKind, g.no, be.Uint32(g.agi[agiFreeRoot:]), int(be.Uint32(g.agi[agiFreeLevel:])), nil, func(r []byte) error {
			k := g.findChunk(be.Uint32(r))
			if k == nil || k.free != be.Uint64(r[8:]) || k.free&^k.holeBits() == 0 || !c.sameCounts(r[4:8], k) {
				c.bad("group %d: the free inode tree lists a chunk at %d that is not so", g.no, be.Uint32(r))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := c.groupTrees(g); err != nil {
		return err
	}
	for _, k := range g.chunks {
		step := min(uint32(inodesPerRec), 1<<sb.inopLog)
		for i := uint32(0); i < inodesPerRec; i += step {
			first := k.start + i
			if k.holeBits()>>i&1 == 0 && first&(1<<sb.inopLog-1) == 0 {
				c.mark(g.no, first>>sb.inopLog, 1, false, "inodes at %d", first)
			}
		}
	}
	n := len(g.chunks) * inodesPerRec
	a.kinds, a.nlink, a.links = make([]uint8, n), make([]uint32, n), make([]uint32, n)
	if sb.inc&incParent != 0 {
		a.pointers = make([]uint64, n)
	}
	return nil
}

// eachInode calls f for the inodes of a group that exist, with their place among the group's chunks.
func (c *checker) eachInode(g *group, f func(place int, ino uint64, free bool, raw []byte) error) error {
	buf := make([]byte, c.sb.blockSize)
	at := nullFsBlock
	for i, k := range g.chunks {
		hole := k.holeBits()
		for j := 0; j < inodesPerRec; j++ {
			if hole>>j&1 != 0 {
				continue
			}
			ino := c.sb.ino(g.no, k.start+uint32(j))
			fsb, off, err := c.sb.inoPlace(ino)
			if err != nil {
				return err
			}
			if fsb != at {
				if err := c.ctx.Err(); err != nil {
					return err
				}
				if err := c.readAt(buf, c.sb.off(fsb)); err != nil {
					return wrap(err, "reading inodes at %d", ino)
				}
				at = fsb
			}
			if err := f(i*inodesPerRec+j, ino, k.free>>j&1 != 0, buf[off:off+c.sb.inodeSize]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) inodesOf(g *group) error {
	a := &c.ags[g.no]
	if a.kinds == nil {
		return nil
	}
	return c.eachInode(g, func(place int, ino uint64, free bool, raw []byte) error {
		in, err := c.decodeInode(raw, ino)
		switch {
		case err != nil:
			c.fault(err)
			return nil
		case free != (in.mode == 0):
			c.bad("inode %d: free in the inode tree: %v, mode %#o", ino, free, in.mode)
			return nil
		case free:
			// The kernel reads inodes by the block, and looks at this field of all.
			if u := be.Uint32(raw[diUnlinked:]); u != nullAgino && uint64(u) >= uint64(g.length)<<c.sb.inopLog {
				c.bad("inode %d: free, and before %d in a list of removed inodes", ino, u)
			}
			return nil
		}
		a.kinds[place], a.nlink[place] = uint8(in.mode>>12), in.nlink
		c.inodeCore(in, raw)
		blocks := c.markFork(fork{in: in})
		if in.forkoff != 0 {
			blocks += c.markFork(fork{in, true})
			attrs, err := c.readAttrs(in)
			if err == nil {
				err = c.attrTree(in)
			}
			if err != nil {
				c.fault(err)
			}
			for _, p := range attrs {
				if a.pointers != nil && p.flags&attrParent != 0 {
					a.pointers[place] += p.sum()
				}
			}
		}
		if blocks != in.nblocks && in.flags&flagRealtime == 0 {
			c.bad("inode %d: %d blocks, its extents have %d", ino, in.nblocks, blocks)
		}
		if in.kind() == modeLnk {
			if target, err := c.readlink(in); err != nil {
				c.fault(err)
			} else if strings.IndexByte(target, 0) >= 0 {
				c.bad("inode %d: a symlink with a NUL in its target", ino)
			}
		}
		return nil
	})
}

func (c *checker) markFork(k fork) (blocks uint64) {
	if f := k.format(); f != fmtExtents && f != fmtBtree || k.in.flags&flagRealtime != 0 && !k.attr {
		return 0
	}
	var tree []uint64
	exts, err := c.extents(k, &tree)
	if err == nil {
		err = c.mapLinks(k)
	}
	if err != nil {
		c.fault(err)
		return k.in.nblocks
	}
	if k.in.kind() == modeLnk && !k.attr && len(exts) > 0 && exts[0].off != 0 {
		c.bad("inode %d: a symlink whose target begins with block %d", k.in.ino, exts[0].off)
	}
	for _, e := range exts {
		ag, b := c.sb.split(e.start)
		c.mark(ag, b, e.n, !k.attr && k.in.kind() == modeReg, "inode %d", k.in.ino)
		blocks += uint64(e.n)
	}
	for _, t := range tree {
		ag, b := c.sb.split(t)
		c.mark(ag, b, 1, false, "the extent tree of inode %d", k.in.ino)
	}
	return blocks + uint64(len(tree))
}

// place finds an inode among its group's chunks.
func (c *checker) place(ino uint64) (ag uint32, place int, ok bool) {
	if _, _, err := c.sb.inoPlace(ino); err != nil {
		return 0, 0, false
	}
	ag, agino := c.sb.inoAG(ino)
	g := c.groups[ag]
	k := g.chunkOf(agino)
	if k == nil || c.ags[ag].kinds == nil {
		return 0, 0, false
	}
	i, _ := slices.BinarySearchFunc(g.chunks, k.start, func(a chunkRec, s uint32) int { return cmp.Compare(a.start, s) })
	return ag, i*inodesPerRec + int(agino-k.start), true
}

func (c *checker) foldersOf(g *group) error {
	a := &c.ags[g.no]
	if a.kinds == nil {
		return nil
	}
	return c.eachInode(g, func(place int, ino uint64, free bool, raw []byte) error {
		if free || a.kinds[place] != modeDir>>12 {
			return nil
		}
		in, err := c.decodeInode(raw, ino)
		if err != nil {
			return nil // reported before
		}
		idx := &dirIndex{bests: map[uint64]uint16{}}
		d, err := c.loadFolderIndex(in, idx)
		if err != nil {
			c.fault(err)
			return nil
		}
		if in.format != fmtLocal && in.size > uint64(c.sb.dirBlock) {
			if err := c.checkLeaves(in, idx); err != nil {
				c.fault(err)
			}
		}
		if in.format != fmtLocal {
			if err := c.folderBlocks(in); err != nil {
				c.fault(err)
			}
		}
		seen := make(map[string]bool, len(d.ents))
		for i := range d.ents {
			e := &d.ents[i]
			name := string(d.name(e))
			if seen[name] {
				c.bad("inode %d: folder entry %q is there twice", ino, name)
			}
			seen[name] = true
			ag, p, ok := c.place(e.ino)
			if !ok || c.ags[ag].kinds[p] == 0 {
				c.bad("inode %d: folder entry %q leads to inode %d, which is free", ino, name, e.ino)
				continue
			}
			t := &c.ags[ag]
			if c.ftypeSize() == 1 && e.ftype != ftypeOfMode[uint16(t.kinds[p])<<12] {
				c.bad("inode %d: folder entry %q has file type %d, inode %d is a %#o", ino, name, e.ftype, e.ino, uint16(t.kinds[p])<<12)
			}
			t.links[p]++
			if t.pointers != nil {
				t.pointers[p] -= d.pointer(name).sum()
			}
			if t.kinds[p] == modeDir>>12 {
				_, agino := c.sb.inoAG(e.ino)
				if t.parents[agino] != 0 {
					c.bad("inode %d: folder with more than one name", e.ino)
				}
				t.parents[agino] = ino
			}
		}
		if want := uint32(2 + d.subdirs); in.nlink != want && d.live == len(d.ents) {
			c.bad("inode %d: folder with %d links, %d expected", ino, in.nlink, want)
		}
		_, agino := c.sb.inoAG(ino)
		a.says[agino] = d.parent
		return nil
	})
}

// checkLeaves reads a folder's leaf and free index blocks.
func (c *checker) checkLeaves(in *inode, idx *dirIndex) error {
	exts, err := c.extents(fork{in: in}, nil)
	if err != nil {
		return err
	}
	buf := make([]byte, c.sb.dirBlock)
	per := uint64(c.sb.dirBlock / c.sb.blockSize)
	leafAt, freeAt := uint64(maxDirSpace)>>c.sb.blockLog, uint64(2*maxDirSpace)>>c.sb.blockLog
	type leafBlock struct {
		back uint32
		at   uint32
		ents []leafEnt
	}
	var leaf []leafEnt
	bests := map[uint64]uint16{}
	ordered := map[uint32]leafBlock{} // by the block before
	for _, e := range exts {
		for off := e.off; off < e.off+uint64(e.n); off++ {
			if off < leafAt || off%per != 0 {
				continue
			}
			fsb, ok, err := c.readBlocks(exts, off, buf)
			if err != nil {
				return err
			}
			if !ok {
				return corrupt("inode %d: folder index block %#x is mapped in part", in.ino, off)
			}
			if off >= freeAt {
				first, n := uint64(be.Uint32(buf[dfFirstDB:])), int(be.Uint32(buf[dfNvalid:]))
				if be.Uint32(buf) != dirFreeMagic || n < 0 || n > (len(buf)-dfHdr)/2 {
					return corrupt("inode %d: free index block %#x", in.ino, fsb)
				}
				if err := c.checkMeta(buf, d3CRC, d3UUID, fsb); err != nil {
					return err
				}
				if be.Uint64(buf[d3Owner:]) != in.ino || be.Uint64(buf[d3Blkno:]) != c.sb.daddr(fsb) {
					return corrupt("inode %d: free index block %#x belongs elsewhere", in.ino, fsb)
				}
				used := 0
				for i := 0; i < n; i++ {
					bests[first+uint64(i)] = be.Uint16(buf[dfHdr+2*i:])
					used += btoi(be.Uint16(buf[dfHdr+2*i:]) != dirNullOff)
				}
				if room := uint64(len(buf)-dfHdr) / 2; first != (off-freeAt)/per*room || used != int(be.Uint32(buf[dfNused:])) {
					return corrupt("inode %d: free index block %#x of %d data blocks from %d on", in.ino, fsb, be.Uint32(buf[dfNused:]), first)
				}
				continue
			}
			if err := c.checkMeta(buf, daCRC, daUUID, fsb); err != nil {
				return err
			}
			if be.Uint64(buf[daOwner:]) != in.ino || be.Uint64(buf[daBlkno:]) != c.sb.daddr(fsb) {
				return corrupt("inode %d: folder index block %#x belongs elsewhere", in.ino, fsb)
			}
			n := int(be.Uint16(buf[daCount:]))
			if n > (len(buf)-daHdr)/8 {
				return corrupt("inode %d: folder index block %#x of %d entries", in.ino, fsb, n)
			}
			switch be.Uint16(buf[daMagic:]) {
			case dirLeaf1:
				c.leafOrder(in.ino, buf[daHdr:daHdr+8*n], int(be.Uint16(buf[daLevel:])))
				leaf = leavesOf(buf[daHdr : daHdr+8*n])
				m := int(be.Uint32(buf[len(buf)-4:]))
				if m < 0 || daHdr+8*n+2*m+4 > len(buf) {
					return corrupt("inode %d: folder leaf %#x with %d data blocks", in.ino, fsb, m)
				}
				for i := 0; i < m; i++ {
					bests[uint64(i)] = be.Uint16(buf[len(buf)-4-2*(m-i):])
				}
			case dirLeafN:
				c.leafOrder(in.ino, buf[daHdr:daHdr+8*n], int(be.Uint16(buf[daLevel:])))
				b := leafBlock{be.Uint32(buf[daBack:]), uint32(off), leavesOf(buf[daHdr : daHdr+8*n])}
				ordered[b.back] = b
			case daNodeMagic:
			default:
				return corrupt("inode %d: folder index block %#x: magic %#x", in.ino, fsb, be.Uint16(buf[daMagic:]))
			}
		}
	}
	for at, left := uint32(0), len(ordered); left > 0; left-- {
		b, ok := ordered[at]
		if !ok {
			return corrupt("inode %d: folder leaves are not linked to one another", in.ino)
		}
		leaf = append(leaf, b.ents...)
		at = b.at
	}
	return idx.compare(in.ino, leaf, bests)
}

// closeGroup compares what was found with free space, reverse map and shared blocks, and link counts.
func (c *checker) closeGroup(g *group) error {
	a := &c.ags[g.no]
	if a.kinds == nil {
		return nil
	}
	free := uint64(0)
	for _, s := range g.free {
		clash := 0
		for i := s.start; i < s.end(); i++ {
			clash += btoi(a.used.has(i))
		}
		if clash > 0 {
			c.bad("group %d: %d blocks in the free run at %d are in use", g.no, clash, s.start)
		}
		free += uint64(s.n)
	}
	if a.usedN+free != uint64(g.length) {
		c.bad("group %d: %d blocks in use and %d free of %d", g.no, a.usedN, free, g.length)
	}
	if a.refs != a.refsOK {
		c.bad("group %d: shared blocks have %d references, %d are counted", g.no, a.refs, a.refsOK)
	}
	if c.sb.ro&roRmapbt != 0 {
		owned := make(bitmap, len(a.used))
		n, sum := uint64(0), uint64(0)
		err := c.scanTree(rmapKind, g.no, be.Uint32(g.agf[agfRmapRoot:]), int(be.Uint32(g.agf[agfRmapLevel:])), nil, func(b []byte) error {
			start, count := be.Uint32(b), be.Uint32(b[4:])
			if uint64(start)+uint64(count) > uint64(g.length) {
				return corrupt("group %d: owner of %d blocks at %d", g.no, count, start)
			}
			sum += uint64(count)
			for i := start; i < start+count; i++ {
				if !owned.has(i) {
					owned.set(i)
					n++
				}
				if !a.used.has(i) {
					c.bad("group %d: block %d has owner %#x, but is not in use", g.no, i, be.Uint64(b[8:]))
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n != a.usedN || sum != a.marks {
			c.bad("group %d: %d blocks have %d owners; %d blocks are in use by %d", g.no, n, sum, a.usedN, a.marks)
		}
	}
	var internal []uint64 // of the realtime device and of quota: no folder leads to them
	for _, at := range []int{sbRbmIno, sbRsumIno, sbUquotIno, sbGquotIno, sbPquotIno} {
		internal = append(internal, be.Uint64(c.sb.raw[at:]))
	}
	for p, kind := range a.kinds {
		if kind == 0 {
			continue
		}
		ino := c.sb.ino(g.no, g.chunks[p/inodesPerRec].start+uint32(p%inodesPerRec))
		_, agino := c.sb.inoAG(ino)
		parent := a.parents[agino]
		if ino == c.sb.rootIno {
			parent = ino
		}
		if says, ok := a.says[agino]; ok && says != parent {
			c.bad("inode %d: folder in folder %d says that its parent is %d", ino, parent, says)
		}
		if slices.Contains(internal, ino) || ino == c.sb.rootIno {
			continue
		}
		if a.pointers != nil && a.pointers[p] != 0 {
			c.bad("inode %d: its parent pointers are not the folder entries that lead to it", ino)
		}
		switch {
		case a.links[p] == 0:
			c.bad("inode %d: no folder leads to it", ino)
		case kind != modeDir>>12 && a.links[p] != a.nlink[p]:
			c.bad("inode %d: %d links, folders have %d", ino, a.nlink[p], a.links[p])
		}
	}
	return nil
}

// sum is a hash of a parent pointer, for comparing sets by their sums.
func (a attr) sum() uint64 {
	h := fnv.New64a()
	io.WriteString(h, a.value)
	io.WriteString(h, a.name)
	return h.Sum64()
}

func (c *checker) counters() {
	var icount, ifree, fdblocks uint64
	for _, g := range c.groups {
		icount += uint64(g.icount)
		ifree += uint64(g.ifree)
		fdblocks += uint64(g.freeBlks) + uint64(g.flCount) + uint64(g.btreeBlks)
	}
	if s := c.sb; icount != s.icount || ifree != s.ifree || fdblocks != s.fdblocks {
		c.bad("superblock: %d inodes, %d free, %d free blocks; the groups have %d, %d, %d", s.icount, s.ifree, s.fdblocks, icount, ifree, fdblocks)
	}
}
