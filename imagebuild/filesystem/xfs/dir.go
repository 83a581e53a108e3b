package xfs

import (
	"bytes"
	"cmp"
	"slices"
)

// dirIndex collects, for Check, what a folder's index should hold.
type dirIndex struct {
	leaf  []leafEnt
	bests map[uint64]uint16 // longest free run of each data block
}

// loadFolder reads every entry of a folder, whatever its form.
func (fs *FS) loadFolder(in *inode) (*folder, error) { return fs.loadFolderIndex(in, nil) }

func (fs *FS) loadFolderIndex(in *inode, idx *dirIndex) (*folder, error) {
	d := &folder{ino: in.ino, ci: fs.sb.versionnum&vbitBorg != 0, inherit: inheritedFrom(in), gen: in.gen}
	if in.format == fmtLocal {
		return d, fs.loadShort(d, in)
	}
	exts, err := fs.extents(fork{in: in}, nil)
	if err != nil {
		return nil, err
	}
	bs, dbs := uint64(fs.sb.blockSize), uint64(fs.sb.dirBlock)
	if in.size == 0 || in.size%dbs != 0 || in.size > maxDirSpace {
		return nil, corrupt("inode %d: folder of %d bytes", in.ino, in.size)
	}
	// A folder never maps a block twice. This bounds what is read by what is there.
	byStart := slices.Clone(exts)
	slices.SortFunc(byStart, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(byStart); i++ {
		if p := byStart[i-1]; p.start+uint64(p.n) > byStart[i].start {
			return nil, corrupt("inode %d: folder maps block %#x twice", in.ino, byStart[i].start)
		}
	}
	oneBlock := in.size == dbs
	buf := make([]byte, dbs)
	perDir := dbs / bs
	next := uint64(0)
	for _, e := range exts {
		if e.off >= in.size/bs {
			break
		}
		for b := max(e.off/perDir, next); b*perDir < e.off+uint64(e.n) && b*dbs < in.size; b++ {
			next = b + 1
			fsb, ok, err := fs.readBlocks(exts, b*perDir, buf)
			if err != nil {
				return nil, wrap(err, "reading folder inode %d", in.ino)
			}
			if !ok {
				return nil, corrupt("inode %d: folder block %d is mapped in part", in.ino, b)
			}
			if err := fs.loadDirBlock(d, in, buf, fsb, b, oneBlock, idx); err != nil {
				return nil, err
			}
		}
	}
	if d.parent == 0 {
		return nil, corrupt("inode %d: folder without an entry for its parent", in.ino)
	}
	return d, nil
}

func goodName(n []byte) bool {
	return len(n) > 0 && bytes.IndexByte(n, '/') < 0 && bytes.IndexByte(n, 0) < 0 && string(n) != "." && string(n) != ".."
}

func (fs *FS) ftypeSize() int {
	if fs.sb.inc&incFtype != 0 {
		return 1
	}
	return 0
}

func (fs *FS) loadShort(d *folder, in *inode) error {
	b := in.dataFork()[:in.size]
	if len(b) < 6 {
		return corrupt("inode %d: inline folder of %d bytes", in.ino, len(b))
	}
	count, wide := int(b[0]), b[1] != 0
	is := 4
	if wide {
		is = 8
	}
	getIno := func(b []byte) uint64 {
		if wide {
			return be.Uint64(b) & (1<<56 - 1)
		}
		return uint64(be.Uint32(b))
	}
	if len(b) < 2+is {
		return corrupt("inode %d: inline folder of %d bytes", in.ino, len(b))
	}
	d.parent = getIno(b[2:])
	p := 2 + is
	ft := fs.ftypeSize()
	for i := 0; i < count; i++ {
		if p+3 > len(b) {
			return corrupt("inode %d: inline folder ends in entry %d of %d", in.ino, i, count)
		}
		n := int(b[p])
		end := p + 3 + n + ft + is
		if end > len(b) {
			return corrupt("inode %d: inline folder ends in entry %d of %d", in.ino, i, count)
		}
		name := b[p+3 : p+3+n]
		var t byte
		if ft == 1 {
			t = b[p+3+n]
		}
		if err := fs.addLoaded(d, name, getIno(b[end-is:]), t); err != nil {
			return err
		}
		p = end
	}
	return nil
}

func (fs *FS) addLoaded(d *folder, name []byte, ino uint64, ftype byte) error {
	if !goodName(name) {
		return corrupt("inode %d: folder entry named %q", d.ino, name)
	}
	if _, _, err := fs.sb.inoPlace(ino); err != nil {
		return wrap(err, "inode %d: folder entry %q", d.ino, name)
	}
	return d.add(name, ino, ftype)
}

// dirEntSize is the space of an entry in a data block.
func (fs *FS) dirEntSize(nameLen int) int { return (8 + 1 + nameLen + fs.ftypeSize() + 2 + 7) &^ 7 }

func (fs *FS) loadDirBlock(d *folder, in *inode, b []byte, fsb, blk uint64, oneBlock bool, idx *dirIndex) error {
	magic := be.Uint32(b)
	end := len(b)
	switch {
	case magic == dirDataMagic:
	case magic == dirBlkMagic && oneBlock:
		n := uint64(be.Uint32(b[len(b)-8:]))
		if n > uint64(len(b)-d3Hdr-8)/8 {
			return corrupt("inode %d: folder block %#x with %d leaf entries", in.ino, fsb, n)
		}
		end = len(b) - 8 - int(n)*8
	default:
		return corrupt("inode %d: folder block %#x: magic %#x", in.ino, fsb, magic)
	}
	if be.Uint64(b[d3Owner:]) != in.ino || be.Uint64(b[d3Blkno:]) != fs.sb.daddr(fsb) {
		return corrupt("inode %d: folder block %#x belongs elsewhere", in.ino, fsb)
	}
	if err := fs.checkMeta(b, d3CRC, d3UUID, fsb); err != nil {
		return err
	}
	ft := fs.ftypeSize()
	best := 0
	for p := d3Hdr; p < end; {
		if p+8 > end {
			return corrupt("inode %d: folder block %#x: entry at %d runs over", in.ino, fsb, p)
		}
		if be.Uint16(b[p:]) == 0xffff {
			n := int(be.Uint16(b[p+2:]))
			if n < 8 || n%8 != 0 || p+n > end {
				return corrupt("inode %d: folder block %#x: unused space of %d bytes at %d", in.ino, fsb, n, p)
			}
			best = max(best, n)
			p += n
			continue
		}
		if p+12 > end {
			return corrupt("inode %d: folder block %#x: entry at %d runs over", in.ino, fsb, p)
		}
		ino, nl := be.Uint64(b[p:]), int(b[p+8])
		size := fs.dirEntSize(nl)
		if p+size > end || int(be.Uint16(b[p+size-2:])) != p {
			return corrupt("inode %d: folder block %#x: entry at %d is broken", in.ino, fsb, p)
		}
		name := b[p+9 : p+9+nl]
		if idx != nil {
			idx.leaf = append(idx.leaf, leafEnt{dirHash(name, d.ci), uint32((blk*uint64(len(b)) + uint64(p)) >> 3)})
		}
		var t byte
		if ft == 1 {
			t = b[p+9+nl]
		}
		switch string(name) {
		case ".":
		case "..":
			d.parent = ino
		default:
			if err := fs.addLoaded(d, name, ino, t); err != nil {
				return err
			}
		}
		p += size
	}
	if idx != nil {
		idx.bests[blk] = uint16(best)
		if got := int(be.Uint16(b[d3BestFree+2:])); got != best {
			return corrupt("inode %d: folder block %#x: its longest free run is %d bytes, its header says %d", in.ino, fsb, best, got)
		}
		if magic == dirBlkMagic {
			return idx.compare(in.ino, leavesOf(b[end:len(b)-8]), nil)
		}
	}
	return nil
}

// leavesOf reads leaf entries, without those that are stale.
func leavesOf(b []byte) []leafEnt {
	var out []leafEnt
	for ; len(b) >= 8; b = b[8:] {
		if e := (leafEnt{be.Uint32(b), be.Uint32(b[4:])}); e.addr != 0 {
			out = append(out, e)
		}
	}
	return out
}

// compare holds the index on the disk against what it should be.
func (x *dirIndex) compare(ino uint64, leaf []leafEnt, bests map[uint64]uint16) error {
	for i := 1; i < len(leaf); i++ {
		if leaf[i].hash < leaf[i-1].hash {
			return corrupt("inode %d: folder index is out of order at entry %d", ino, i)
		}
	}
	want := slices.Clone(x.leaf)
	sortLeaf(want)
	got := slices.Clone(leaf)
	sortLeaf(got)
	if !slices.Equal(want, got) {
		return corrupt("inode %d: folder index of %d entries does not lead to its %d names", ino, len(got), len(want))
	}
	for b, w := range bests {
		if g, ok := x.bests[b]; w != dirNullOff && (!ok || g != w) || w == dirNullOff && ok {
			return corrupt("inode %d: folder block %d: the index says that %d bytes are free, not %d", ino, b, w, g)
		}
	}
	return nil
}
