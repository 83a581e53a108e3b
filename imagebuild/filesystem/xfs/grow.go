package xfs

import (
	"context"
	"fmt"
	"math"
)

const (
	// A tail of the device that is too short for a group of this many blocks stays unused.
	minAGBlocks = 64
	// Each group has a place in memory and metadata of its own on the disk. The format allows 2^32 of them, and 2^52
	// blocks that an extent can name.
	maxGroups = 1 << 22
)

// budget is what bounds a Writer, as functions of the filesystem's size.
type budget struct {
	onDisk        uint32 // groups at open
	last          *group // the last of them, which growth extends; nil when all groups are new
	others        int64  // blocks that may be taken from all groups before last
	fresh         int64  // and from a new one of full length
	icount, ifree uint64 // at open
}

// openBudget sums up what was read from the disk.
func (w *Writer) openBudget() {
	w.room = budget{onDisk: w.sb.agCount, fresh: w.freshAvail(w.sb.agBlocks)}
	for i, g := range w.groups {
		avail := w.availAt(g, g.length)
		if i == len(w.groups)-1 {
			w.room.last = g
		} else {
			w.room.others += avail // what one group lacks, the kernel keeps back from the others
		}
		g.avail = max(0, avail)
		w.icount += uint64(g.icount)
		w.ifree += uint64(g.ifree)
	}
	w.room.icount, w.room.ifree = w.icount, w.ifree
	w.setBounds()
}

func (w *Writer) setBounds() {
	w.total, w.maxIcount = max(0, w.totalAt(w.sb.dblocks)), w.maxIcountAt(w.sb.dblocks)
}

// availAt is what may be taken from a group when it has length blocks; below zero if it lacks a part of its reserve.
func (w *Writer) availAt(g *group, length uint32) int64 {
	free := int64(g.freeBlks) + int64(length) - int64(g.openLen)
	fl := w.minFreeList(int(be.Uint32(g.agf[agfBnoLevel:])), int(be.Uint32(g.agf[agfCntLevel:])), int(be.Uint32(g.agf[agfRmapLevel:])))
	return min(free, free+int64(g.flCount)-w.reserved(g, length)-int64(max(fl+4, setAside)))
}

// freshAvail is availAt of a new group.
func (w *Writer) freshAvail(length uint32) int64 {
	// With this number it is surely not the one that holds the log.
	return w.availAt(w.freshGroup(math.MaxUint32, length), length)
}

// usable is how many of blocks a filesystem can cover, and in how many groups.
func (s *superblock) usable(blocks uint64) (usable, groups uint64) {
	per := uint64(s.agBlocks)
	groups = blocks / per
	if tail := blocks % per; tail >= minAGBlocks {
		return blocks, groups + 1
	}
	return groups * per, groups
}

// totalAt is the number of blocks that may be taken when the filesystem has dblocks; below zero if that many are
// missing in what the kernel wants to keep.
func (w *Writer) totalAt(dblocks uint64) int64 {
	per := uint64(w.sb.agBlocks)
	whole, tail := dblocks/per, uint32(dblocks%per)
	total := w.room.others
	switch last := uint64(w.room.onDisk) - 1; {
	case whole <= last: // the last group on the disk is still the last, or was before it grew
		total += w.availAt(w.room.last, tail)
	default:
		total += w.availAt(w.room.last, w.sb.agBlocks) + int64(whole-last-1)*w.room.fresh
		if tail > 0 {
			total += w.freshAvail(tail)
		}
	}
	return total - int64(min(dblocks/20, 8192))
}

func (w *Writer) maxIcountAt(dblocks uint64) uint64 {
	pct := uint64(w.sb.imaxPct)
	if pct == 0 {
		return ^uint64(0)
	}
	perChunk := uint64(w.chunkBlocks())
	n := dblocks/100*pct + dblocks%100*pct/100
	return n / perChunk * perChunk << w.sb.inopLog
}

func (w *Writer) freeInodes() int64 {
	r := w.room
	files := min(r.icount+uint64(w.total)<<w.sb.inopLog, max(w.maxIcount, r.icount))
	return int64(files - r.icount + r.ifree)
}

// Size is the number of bytes that the filesystem covers, with all growth so far.
func (w *Writer) Size() int64 { return int64(w.sb.dblocks) << w.sb.blockLog }

// Grow makes the filesystem fill the first size bytes of the device, which must be as large by the time something is
// written there. A tail too short for the format stays unused. The last allocation group is extended and new ones are
// made behind it, as xfs_growfs does; the log stays as it is. Nothing is written before Commit. It may be called any
// number of times before that; sizes below Size are an error. After space ran out it is one too, of ErrNoSpace:
// contents were dropped already. Sizes beyond what the format, or this package, can handle are ErrUnsupported.
func (w *Writer) Grow(size int64) error {
	switch {
	case w.state != nil:
		return w.state
	case size < w.Size():
		return fmt.Errorf("xfs: growing to %d bytes a filesystem that has %d", size, w.Size())
	case w.overflow:
		return fmt.Errorf("growing after space ran out: %w", &NoSpaceError{w.Space()})
	}
	return w.grow(size)
}

func (w *Writer) grow(size int64) error {
	sb := w.sb
	blocks, count := sb.usable(uint64(size) >> sb.blockLog)
	if count > maxGroups || count<<sb.agBlockLog > 1<<51 {
		return unsupported("growing to %d bytes: %d allocation groups of %d blocks, and %d is the most", size, count, sb.agBlocks, maxGroups)
	}
	w.size = max(w.size, size)
	if blocks <= sb.dblocks {
		return nil
	}
	last := sb.agCount - 1
	from := sb.agLen(last)
	to := uint32(min(uint64(sb.agBlocks), blocks-uint64(last)*uint64(sb.agBlocks)))
	if g := w.groups[last]; g != nil && to > from {
		if err := w.broken(w.load(g)); err != nil { // while the superblock agrees with the disk
			return err
		}
		g.avail += max(0, w.availAt(g, to)) - max(0, w.availAt(g, from))
		g.giveBack(span{from, to - from})
		g.reclaim()
		g.length = to
		be.PutUint32(g.agf[agfLength:], to)
		be.PutUint32(g.agi[agiLength:], to)
		g.touched = true
		g.noChunk, g.noSparse = false, false
	}
	if uint64(sb.agCount) < count {
		w.cur = len(w.order)
		w.groups = append(w.groups, make([]*group, count-uint64(sb.agCount))...)
		for i := sb.agCount; uint64(i) < count; i++ {
			w.order = append(w.order, i)
		}
	}
	sb.dblocks, sb.agCount = blocks, uint32(count)
	w.grown = true
	w.setBounds()
	return nil
}

// askRoom asks for space to take n blocks more and to have icount inodes in all. When there is none, the Writer only
// counts from here on.
func (w *Writer) askRoom(n int64, icount uint64) error {
	if w.o.Grow == nil {
		w.giveUp()
		return nil
	}
	need, ok := w.sizeFor(n, icount)
	if !ok {
		w.giveUp()
		return nil
	}
	size, err := w.o.Grow(need)
	if err != nil {
		return w.ended(wrap(err, "asking for a filesystem of %d bytes", need))
	}
	if size < need {
		w.giveUp()
		return nil
	}
	return w.ended(w.grow(size))
}

// ended notes an error after which the Writer is of no use, to be returned by Commit as it is.
func (w *Writer) ended(err error) error {
	if err != nil && w.state == nil {
		w.state = err
	}
	return err
}

// sizeFor is the least size that has space for n blocks more and icount inodes.
func (w *Writer) sizeFor(n int64, icount uint64) (size int64, ok bool) {
	sb := w.sb
	most := min(uint64(math.MaxInt64)>>sb.blockLog, uint64(maxGroups)*uint64(sb.agBlocks))
	d := sb.dblocks + 1
	// Each step adds what is still missing, of which the new metadata takes a small part.
	for i := 0; i < 1000 && d <= most; i++ {
		if usable, _ := sb.usable(d); usable < d {
			d = usable + minAGBlocks
		}
		switch short := n + w.used - w.totalAt(d); {
		case short > 0:
			d += uint64(short)
		case icount > w.maxIcountAt(d):
			d += ((icount-w.maxIcountAt(d))>>sb.inopLog)*100/uint64(sb.imaxPct) + 1
		default:
			return int64(d) << sb.blockLog, true
		}
	}
	return 0, false
}

// freshLayout says where a new group has the roots of its trees: behind the headers, in the kernel's order. 0 stands
// for trees that the filesystem does not have.
type freshLayout struct {
	bno, cnt, ino, fino, rmap, refc uint32
	end                             uint32 // first free block
}

func (s *superblock) freshLayout() (l freshLayout) {
	l.end = s.firstBlock()
	next := func(have bool) uint32 {
		if !have {
			return 0
		}
		l.end++
		return l.end - 1
	}
	l.bno, l.cnt, l.ino = next(true), next(true), next(true)
	l.fino = next(s.ro&roFinobt != 0)
	l.rmap = next(s.ro&roRmapbt != 0)
	l.refc = next(s.ro&roReflink != 0)
	return l
}

// freshFree is the number of free blocks of a new group.
func (w *Writer) freshFree(no uint32) uint32 { return w.sb.agLen(no) - w.sb.freshLayout().end }

// freshRoom is the number of blocks that may be taken from a new group.
func (w *Writer) freshRoom(no uint32) int64 {
	avail := w.room.fresh
	if l := w.sb.agLen(no); l != w.sb.agBlocks {
		avail = w.freshAvail(l)
	}
	return max(0, avail)
}

// freshGroup is a new group of length blocks, without inodes and with an empty free list.
func (w *Writer) freshGroup(no, length uint32) *group {
	sb := w.sb
	l := sb.freshLayout()
	keep := make([]byte, agfStructSize+agiStructSize)
	g := &group{
		no: no, length: length, agf: keep[:agfStructSize:agfStructSize], agi: keep[agfStructSize:],
		openLen: length, freeBlks: length - min(length, l.end),
		fresh: true, loaded: true, refcLoaded: true, inobtOld: 1, lastNew: nullAgino,
	}
	agf, agi := g.agf, g.agi
	be.PutUint32(agf, agfMagic)
	be.PutUint32(agf[agfVersion:], 1)
	be.PutUint32(agf[agfSeqno:], no)
	be.PutUint32(agf[agfLength:], length)
	be.PutUint32(agf[agfBnoRoot:], l.bno)
	be.PutUint32(agf[agfCntRoot:], l.cnt)
	be.PutUint32(agf[agfBnoLevel:], 1)
	be.PutUint32(agf[agfCntLevel:], 1)
	be.PutUint32(agf[agfFlFirst:], 1) // an empty list ends before it starts
	be.PutUint32(agf[agfFreeBlks:], g.freeBlks)
	be.PutUint32(agf[agfLongest:], g.freeBlks)
	copy(agf[agfUUID:], sb.metaUUID[:])
	be.PutUint32(agi, agiMagic)
	be.PutUint32(agi[agiVersion:], 1)
	be.PutUint32(agi[agiSeqno:], no)
	be.PutUint32(agi[agiLength:], length)
	be.PutUint32(agi[agiRoot:], l.ino)
	be.PutUint32(agi[agiLevel:], 1)
	be.PutUint32(agi[agiNewIno:], nullAgino)
	be.PutUint32(agi[agiDirIno:], nullAgino)
	for i := 0; i < 64; i++ {
		be.PutUint32(agi[agiUnlinked+4*i:], nullAgino)
	}
	copy(agi[agiUUID:], sb.metaUUID[:])
	g.free = []span{{l.end, g.freeBlks}}
	for _, b := range []uint32{l.bno, l.cnt, l.ino} {
		g.oldTrees = append(g.oldTrees, span{b, 1})
	}
	if l.fino != 0 {
		be.PutUint32(agi[agiFreeRoot:], l.fino)
		be.PutUint32(agi[agiFreeLevel:], 1)
		g.oldTrees = append(g.oldTrees, span{l.fino, 1})
	}
	if sb.ro&roInobtCnt != 0 {
		be.PutUint32(agi[agiIBlocks:], 1)
		be.PutUint32(agi[agiFBlocks:], uint32(btoi(l.fino != 0)))
	}
	if l.rmap != 0 {
		be.PutUint32(agf[agfRmapRoot:], l.rmap)
		be.PutUint32(agf[agfRmapLevel:], 1)
		be.PutUint32(agf[agfRmapBlks:], 1)
	}
	if l.refc != 0 {
		be.PutUint32(agf[agfRefcRoot:], l.refc)
		be.PutUint32(agf[agfRefcLevel:], 1)
		be.PutUint32(agf[agfRefcBlks:], 1)
		g.oldTrees = append(g.oldTrees, span{l.refc, 1})
	}
	return g
}

// group is the state of an allocation group. Growth may make many thousands; their state is made at first use.
func (w *Writer) group(no uint32) *group {
	if g := w.groups[no]; g != nil {
		return g
	}
	g := w.freshGroup(no, w.sb.agLen(no))
	g.avail = w.freshRoom(no)
	g.touched = true // it is not on the disk yet
	g.sortFree()
	w.groups[no] = g
	return g
}

// writeCopies writes the superblock's copies, and with them the new groups that nothing was put into.
func (w *Writer) writeCopies(ctx context.Context) error {
	sb := w.sb
	copied := make([]byte, sb.sectSize)
	copy(copied, sb.raw)
	clear(copied[sbLSN : sbLSN+8])
	setCRC(copied, sbCRC)
	var buf []byte
	for no := uint32(1); no < sb.agCount; no++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		var err error
		if w.groups[no] != nil {
			err = w.dev.write(copied, sb.agOff(no, 0))
		} else if buf, err = w.freshBlocks(no, buf); err == nil {
			copy(buf, copied)
			err = w.writeSparse(buf, sb.agOff(no, 0))
		}
		if err != nil {
			return wrap(err, "writing group %d", no)
		}
	}
	return nil
}

// freshBlocks is what a new group has on the disk in front of its free space, but for the superblock. buf is reused.
func (w *Writer) freshBlocks(no uint32, buf []byte) ([]byte, error) {
	sb := w.sb
	l := sb.freshLayout()
	if n := int(l.end) << sb.blockLog; len(buf) == n {
		clear(buf)
	} else {
		buf = make([]byte, n)
	}
	ss := sb.sectSize
	g := w.freshGroup(no, sb.agLen(no))
	putHeaders(buf[ss:2*ss], buf[2*ss:3*ss], g.agf, g.agi)
	w.putFreeList(buf[3*ss:4*ss], no, nil)
	put := func(fsb uint64, b []byte) error {
		_, at := sb.split(fsb)
		copy(buf[int(at)<<sb.blockLog:], b)
		return nil
	}
	free := func(_ int, b []byte) {
		be.PutUint32(b, g.free[0].start)
		be.PutUint32(b[4:], g.free[0].n)
	}
	owners := []rmapRec{
		{0, sb.firstBlock(), ownFS, 0},
		{l.bno, 2, ownAG, 0},
		{l.ino, 1 + uint32(btoi(l.fino != 0)), ownInobt, 0},
		{l.rmap, 1, ownAG, 0},
	}
	if l.refc != 0 {
		owners = append(owners, rmapRec{l.refc, 1, ownRefc, 0})
	}
	owner := func(i int, b []byte) { putRmap(owners[i], b) }
	for _, t := range []struct {
		kind   *btKind
		root   uint32
		n      int
		record func(int, []byte)
	}{
		{bnoKind, l.bno, 1, free}, {cntKind, l.cnt, 1, free}, {inoKind, l.ino, 0, nil},
		{finoKind, l.fino, 0, nil}, {rmapKind, l.rmap, len(owners), owner}, {refcKind, l.refc, 0, nil},
	} {
		if t.root == 0 {
			continue
		}
		tree := &bulk{fs: w.FS, kind: t.kind, owner: uint64(no), blocks: []uint64{sb.fsb(no, t.root)}, write: put}
		if _, _, err := tree.build(shape{1}, t.n, t.record); err != nil {
			return buf, err
		}
	}
	return buf, nil
}
