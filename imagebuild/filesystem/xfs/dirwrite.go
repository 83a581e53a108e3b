package xfs

import (
	"cmp"
	"slices"
)

// dirPlan is the form that a folder's entries take.
type dirPlan struct {
	short  int // bytes of the inline form; the others are zero then
	wide   bool
	ends   []int // where in the folder's entries each data block ends; block form has one
	leaves int   // leaf blocks; 0: block form
	nodes  []int
	frees  int // free index blocks; 0: one leaf holds the index
}

func (p *dirPlan) dirBlocks() int {
	n := len(p.ends) + p.leaves + p.frees
	for _, m := range p.nodes {
		n += m
	}
	return n
}

// dirFsBlocks is the space of a folder in filesystem blocks, without an extent tree.
func (w *Writer) dirFsBlocks(p *dirPlan) int64 {
	return int64(p.dirBlocks()) * int64(w.sb.dirBlock/w.sb.blockSize)
}

// planDir lays out a folder when room bytes of the inode are its own.
func (w *Writer) planDir(d *folder, room int) *dirPlan {
	p := &dirPlan{wide: d.parent > 1<<32-1}
	size, data := 0, d3Hdr+w.dirEntSize(1)+w.dirEntSize(2)
	for i := range d.ents {
		e := &d.ents[i]
		if e.ino == 0 {
			continue
		}
		p.wide = p.wide || e.ino > 1<<32-1
		size += 3 + int(e.nlen) + 1
		data += w.dirEntSize(int(e.nlen))
	}
	is := 4
	if p.wide {
		is = 8
	}
	size += 2 + is + is*d.live
	if d.live <= 255 && size <= room {
		p.short = size
		return p
	}
	dbs := w.sb.dirBlock
	if data+8*(d.live+2)+8 <= dbs {
		p.ends = []int{len(d.ents)}
		return p
	}
	used := d3Hdr + w.dirEntSize(1) + w.dirEntSize(2)
	for i := range d.ents {
		e := &d.ents[i]
		if e.ino == 0 {
			continue
		}
		n := w.dirEntSize(int(e.nlen))
		if used+n > dbs {
			p.ends = append(p.ends, i)
			used = d3Hdr
		}
		used += n
	}
	p.ends = append(p.ends, len(d.ents))
	p.leaves = 1
	if daHdr+8*(d.live+2)+2*len(p.ends)+4 > dbs {
		per := (dbs - daHdr) / 8
		p.leaves = (d.live + 2 + per - 1) / per
		p.nodes = daNodes(p.leaves, dbs)
		per = (dbs - dfHdr) / 2
		p.frees = (len(p.ends) + per - 1) / per
	}
	return p
}

// pendingBlocks is by how much a changed folder will grow at commit.
func (w *Writer) pendingBlocks(d *folder) int64 {
	in, err := w.inode(d.ino)
	if err != nil {
		return 0
	}
	attrs, err := w.attrsOf(in)
	if err != nil {
		return 0
	}
	room, attrBlocks := w.dirRoom(in, d, attrs)
	return w.dirFsBlocks(w.planDir(d, room)) + attrBlocks - int64(in.nblocks)
}

// dirRoom is the room for inline entries beside the attributes, which may take blocks themselves.
func (w *Writer) dirRoom(in *inode, d *folder, attrs []attr) (room int, attrBlocks int64) {
	t := &inode{mode: in.mode, format: fmtLocal, lit: make([]byte, w.sb.inodeSize-diCoreSize)}
	w.layout(t, w.shortDirSize(d), attrs)
	if len(attrs) > 0 && t.aformat != fmtLocal {
		attrBlocks = int64(w.planAttrs(attrs).blocks)
	}
	return len(t.dataFork()), attrBlocks
}

func (w *Writer) shortDirSize(d *folder) int {
	if d.live > 255 {
		return 1 << 20
	}
	p := w.planDir(d, 1<<20)
	return p.short
}

// writeFolder writes a changed folder and its inode. The blocks that it had are free already.
func (w *Writer) writeFolder(d *folder, in *inode, attrs []attr) error {
	in.lit = make([]byte, w.sb.inodeSize-diCoreSize)
	in.nblocks, in.nextents, in.anextents = 0, 0, 0
	in.format = fmtLocal
	in.nlink = uint32(2 + d.subdirs)
	w.layout(in, w.shortDirSize(d), attrs)
	p := w.planDir(d, len(in.dataFork()))
	if p.short > 0 {
		in.size = uint64(p.short)
		w.shortDir(d, p, in.dataFork())
	} else {
		in.size = uint64(len(p.ends)) * uint64(w.sb.dirBlock)
		if err := w.writeDirBlocks(d, in, p); err != nil {
			return err
		}
	}
	if err := w.writeAttrs(in, attrs); err != nil {
		return err
	}
	return w.putInode(in)
}

func (w *Writer) shortDir(d *folder, p *dirPlan, b []byte) {
	putIno := func(b []byte, ino uint64) int {
		if p.wide {
			be.PutUint64(b, ino)
			return 8
		}
		be.PutUint32(b, uint32(ino))
		return 4
	}
	wide := 0
	if d.parent > 1<<32-1 {
		wide++
	}
	at := 2 + putIno(b[2:], d.parent)
	off := d3Hdr + w.dirEntSize(1) + w.dirEntSize(2)
	for i := range d.ents {
		e := &d.ents[i]
		if e.ino == 0 {
			continue
		}
		wide += btoi(e.ino > 1<<32-1)
		b[at] = e.nlen
		be.PutUint16(b[at+1:], uint16(off))
		at += 3
		at += copy(b[at:], d.name(e))
		b[at] = e.ftype
		at++
		at += putIno(b[at:], e.ino)
		off += w.dirEntSize(int(e.nlen))
	}
	b[0], b[1] = byte(d.live), byte(wide)
}

type leafEnt struct{ hash, addr uint32 }

func (w *Writer) writeDirBlocks(d *folder, in *inode, p *dirPlan) error {
	dbs := w.sb.dirBlock
	per := uint64(dbs / w.sb.blockSize)
	total := uint64(p.dirBlocks()) * per
	if err := w.prefer(total); err != nil {
		return err
	}
	runs, err := w.alloc(nil, 0, total)
	if err != nil {
		return err
	}
	// The blocks were taken as one run of file blocks; data, leaf and free space lie far apart in the file.
	leafAt, freeAt := uint64(maxDirSpace)>>w.sb.blockLog, uint64(2*maxDirSpace)>>w.sb.blockLog
	nd := uint64(len(p.ends)) * per
	nf := uint64(p.frees) * per
	var exts []extent
	for _, r := range runs {
		for r.n > 0 {
			e := r
			switch {
			case r.off < nd:
				e.n = uint32(min(uint64(r.n), nd-r.off))
			case r.off < total-nf:
				e.n = uint32(min(uint64(r.n), total-nf-r.off))
				e.off = leafAt + r.off - nd
			default:
				e.off = freeAt + r.off - (total - nf)
			}
			exts = appendExtent(exts, e)
			r.off += uint64(e.n)
			r.start += uint64(e.n)
			r.n -= e.n
		}
	}
	put := func(blk uint64, b []byte, fill func(fsb uint64)) error {
		for i := uint64(0); i < per; i++ {
			fsb, _ := lookupBlock(exts, blk+i)
			if i == 0 {
				fill(fsb)
			}
			if err := w.writeMeta(fsb, b[i<<w.sb.blockLog:(i+1)<<w.sb.blockLog]); err != nil {
				return err
			}
		}
		return nil
	}
	if w.counting {
		put = func(uint64, []byte, func(uint64)) error { return nil }
	}
	d3 := func(b []byte, magic uint32, fsb uint64) {
		be.PutUint32(b, magic)
		be.PutUint64(b[d3Blkno:], w.sb.daddr(fsb))
		copy(b[d3UUID:], w.sb.metaUUID[:])
		be.PutUint64(b[d3Owner:], in.ino)
		setCRC(b, d3CRC)
	}

	leaf := make([]leafEnt, 0, d.live+2)
	bests := make([]uint16, 0, len(p.ends))
	b := make([]byte, dbs)
	from := 0
	for blk, to := range p.ends {
		clear(b)
		at := d3Hdr
		entry := func(name []byte, ino uint64, ftype byte) {
			be.PutUint64(b[at:], ino)
			b[at+8] = byte(len(name))
			copy(b[at+9:], name)
			b[at+9+len(name)] = ftype
			size := w.dirEntSize(len(name))
			be.PutUint16(b[at+size-2:], uint16(at))
			leaf = append(leaf, leafEnt{dirHash(name, d.ci), uint32((blk*dbs + at) >> 3)})
			at += size
		}
		if blk == 0 {
			entry([]byte("."), in.ino, ftypeOfMode[modeDir])
			entry([]byte(".."), d.parent, ftypeOfMode[modeDir])
		}
		for i := from; i < to; i++ {
			if e := &d.ents[i]; e.ino != 0 {
				entry(d.name(e), e.ino, e.ftype)
			}
		}
		from = to
		end, magic := dbs, uint32(dirDataMagic)
		if p.leaves == 0 {
			end, magic = dbs-8-8*len(leaf), dirBlkMagic
			sortLeaf(leaf)
			putLeaf(b[end:], leaf)
			be.PutUint32(b[dbs-8:], uint32(len(leaf)))
		}
		free := end - at
		if free > 0 {
			be.PutUint16(b[at:], 0xffff)
			be.PutUint16(b[at+2:], uint16(free))
			be.PutUint16(b[end-2:], uint16(at))
			be.PutUint16(b[d3BestFree:], uint16(at))
			be.PutUint16(b[d3BestFree+2:], uint16(free))
		}
		bests = append(bests, uint16(free))
		if err := put(uint64(blk)*per, b, func(fsb uint64) { d3(b, magic, fsb) }); err != nil {
			return err
		}
	}
	if p.leaves > 0 {
		sortLeaf(leaf)
		if err := w.writeDirLeaves(p, in.ino, leaf, bests, leafAt, per, put); err != nil {
			return err
		}
	}
	for f := 0; f < p.frees; f++ {
		n := (dbs - dfHdr) / 2
		part := bests[f*n : min(len(bests), (f+1)*n)]
		clear(b)
		be.PutUint32(b[dfFirstDB:], uint32(f*n))
		be.PutUint32(b[dfNvalid:], uint32(len(part)))
		be.PutUint32(b[dfNused:], uint32(len(part)))
		for i, v := range part {
			be.PutUint16(b[dfHdr+2*i:], v)
		}
		if err := put(freeAt+uint64(f)*per, b, func(fsb uint64) { d3(b, dirFreeMagic, fsb) }); err != nil {
			return err
		}
	}
	return w.setExtents(fork{in: in}, exts)
}

func sortLeaf(l []leafEnt) {
	slices.SortFunc(l, func(a, b leafEnt) int {
		if c := cmp.Compare(a.hash, b.hash); c != 0 {
			return c
		}
		return cmp.Compare(a.addr, b.addr)
	})
}

func putLeaf(b []byte, l []leafEnt) {
	for i, e := range l {
		be.PutUint32(b[8*i:], e.hash)
		be.PutUint32(b[8*i+4:], e.addr)
	}
}

func (w *Writer) writeDirLeaves(p *dirPlan, owner uint64, leaf []leafEnt, bests []uint16, at, per uint64, put func(uint64, []byte, func(uint64)) error) error {
	dbs := w.sb.dirBlock
	b := make([]byte, dbs)
	if p.frees == 0 {
		putLeaf(b[daHdr:], leaf)
		tail := b[dbs-4-2*len(bests):]
		for i, v := range bests {
			be.PutUint16(tail[2*i:], v)
		}
		be.PutUint32(b[dbs-4:], uint32(len(bests)))
		return put(at, b, func(fsb uint64) {
			w.daHeader(b, dirLeaf1, 0, 0, owner, fsb, len(leaf), 0)
			setCRC(b, daCRC)
		})
	}
	// Pointers count filesystem blocks, of which a folder block may have several.
	num := func(blk uint32) uint32 { return uint32(at + uint64(blk)*per) }
	first := uint32(btoi(p.leaves > 1)) // a lone leaf is the root itself
	var tops []uint32
	i := 0
	for l := 0; l < p.leaves; l++ {
		n := len(leaf)/p.leaves + btoi(l < len(leaf)%p.leaves)
		clear(b)
		putLeaf(b[daHdr:], leaf[i:i+n])
		i += n
		tops = append(tops, leaf[i-1].hash)
		forw, back := siblings(l, p.leaves, first, num)
		err := put(uint64(num(first+uint32(l))), b, func(fsb uint64) {
			w.daHeader(b, dirLeafN, forw, back, owner, fsb, n, 0)
			setCRC(b, daCRC)
		})
		if err != nil {
			return err
		}
	}
	return w.writeDaNodes(tops, dbs, owner, num, func(blk uint64, b []byte, fill func(uint64)) error {
		return put(at+blk*per, b, fill)
	})
}
