package xfs

import (
	"math/bits"
	"slices"
	"sort"
)

// Space counts what a Writer may take and what its additions take. A block is BlockSize bytes.
type Space struct {
	BlockSize int64
	// FreeBlocks may be taken: free blocks at OpenWriter and those that growth added, without what the kernel keeps for
	// itself (per-group reservations, free lists, set-aside and the reserve pool), as statfs(2) would count them.
	FreeBlocks int64
	// NeedBlocks is the most that was taken at any moment: contents, folders, attributes, extent trees, inode
	// chunks, and growth of the inode trees.
	NeedBlocks int64
	FreeInodes int64 // bounded by imax_pct and by free blocks, as statfs(2) does
	NeedInodes int64
}

// Blocks that the kernel sets aside in each group for its free list and for extent tree splits.
const setAside = 8

// calcSize is the kernel's bound on a tree of n records whose blocks are all half full.
func (k *btKind) calcSize(blockSize int, n uint64) uint64 {
	leaf, node := k.caps(blockSize)
	per, total := uint64(leaf/2), uint64(0)
	for {
		n = (n + per - 1) / per
		total += n
		if n <= 1 {
			return total
		}
		per = uint64(node / 2)
	}
}

// reserved is the number of free blocks of a group of length blocks that its trees may come to need.
func (w *Writer) reserved(g *group, length uint32) int64 {
	sb := w.sb
	blocks := uint64(length)
	if ag, _ := sb.split(sb.logStart); ag == g.no {
		blocks -= min(blocks, uint64(sb.logBlocks))
	}
	pos := func(ask, used uint64) int64 {
		if ask <= used {
			return 0
		}
		return int64(ask - used)
	}
	var n int64
	var ask, used uint64
	if sb.ro&roReflink != 0 {
		ask += refcKind.calcSize(sb.blockSize, blocks)
		used += uint64(be.Uint32(g.agf[agfRefcBlks:]))
	}
	if sb.ro&roFinobt != 0 {
		ask += finoKind.calcSize(sb.blockSize, blocks<<sb.inopLog/inodesPerRec)
		if sb.ro&roInobtCnt != 0 {
			used += uint64(be.Uint32(g.agi[agiFBlocks:]))
		} else {
			used++ // at least its root; counting the rest would mean reading the tree
		}
	}
	n += pos(ask, used)
	if sb.ro&roRmapbt != 0 {
		ask := max(blocks/100, rmapKind.calcSize(sb.blockSize, blocks))
		n += pos(ask, uint64(be.Uint32(g.agf[agfRmapBlks:])))
	}
	return n
}

// minFreeList is the number of blocks that a group's free list must hold for trees of these heights. Kernels
// before and after 6.7 count differently; this satisfies both.
func (w *Writer) minFreeList(bno, cnt, rmap int) int {
	one := func(levels int) int { return max(levels+1, 2*levels) }
	n := one(bno) + one(cnt)
	if w.sb.ro&roRmapbt != 0 {
		n += one(rmap)
	}
	return n
}

// chunkBlocks is the number of blocks that are made inodes at once; with large blocks one of them holds
// several chunks of 64.
func (w *Writer) chunkBlocks() uint32 { return max(1, uint32(inodesPerRec)>>w.sb.inopLog) }

func (w *Writer) charge(g *group, n int64) {
	if g != nil {
		g.avail -= n
		g.touched = true
	}
	w.used += n
	w.peak = max(w.peak, w.used)
}

// isPhantom says whether fsb was handed out when there was no space left: such blocks are counted, never written.
func (w *Writer) isPhantom(fsb uint64) bool {
	return w.phantom != 0 && fsb >= uint64(w.sb.agCount)<<w.sb.agBlockLog
}

func (w *Writer) giveUp() {
	if !w.overflow {
		w.overflow = true
		w.counting = true
		w.phantom = uint64(w.sb.agCount) << w.sb.agBlockLog
	}
}

// allocRun takes up to want blocks in one run.
func (w *Writer) allocRun(want uint64) (fsb uint64, n uint32, err error) {
	want = min(want, maxExtLen)
	for !w.overflow {
		left := w.total - w.used
		for i := 0; i < len(w.order) && left > 0; i++ {
			g := w.group(w.order[w.cur])
			s, err := w.take(g, uint32(min(want, uint64(left))))
			if err != nil {
				return 0, 0, err
			}
			if s.n > 0 {
				w.charge(g, int64(s.n))
				return w.sb.fsb(g.no, s.start), s.n, nil
			}
			w.cur = (w.cur + 1) % len(w.order)
		}
		if err := w.askRoom(int64(want), 0); err != nil {
			return 0, 0, err
		}
	}
	// Phantom blocks lie in groups behind the last, so that each has an address of its own.
	fsb = w.phantom
	ag, b := w.sb.split(fsb)
	n = uint32(min(want, uint64(w.sb.agBlocks-b)))
	if w.phantom += uint64(n); b+n == w.sb.agBlocks {
		w.phantom = w.sb.fsb(ag+1, 0)
	}
	w.charge(nil, int64(n))
	return fsb, n, nil
}

// take cuts up to want blocks off the group's active region, choosing a new region when it is used up.
func (w *Writer) take(g *group, want uint32) (span, error) {
	if g.avail <= 0 {
		return span{}, nil
	}
	if err := w.load(g); err != nil {
		return span{}, err
	}
	if g.active.n == 0 && !g.nextRegion() {
		if len(g.freed) == 0 && g.izone.n == 0 {
			return span{}, nil
		}
		g.reclaim()
		if !g.nextRegion() {
			return span{}, nil
		}
	}
	s := span{g.active.start, uint32(min(int64(min(want, g.active.n)), g.avail))}
	g.active.start += s.n
	g.active.n -= s.n
	return s, nil
}

// nextRegion makes the longest free span the active one.
func (g *group) nextRegion() bool {
	for ; g.next < len(g.order); g.next++ {
		if f := &g.free[g.order[g.next]]; f.n > 0 {
			g.giveBack(g.active)
			g.active, *f = *f, span{f.start, 0}
			g.next++
			return true
		}
	}
	return false
}

func (g *group) longestLeft() uint32 {
	if !g.loaded {
		return be.Uint32(g.agf[agfLongest:])
	}
	n := g.active.n
	if g.next < len(g.order) {
		n = max(n, g.free[g.order[g.next]].n)
	}
	return n
}

// prefer moves on to a region that holds n blocks in one run, when there is one.
func (w *Writer) prefer(n uint64) error {
	if w.overflow || n <= 1 {
		return nil
	}
	for i := range w.order {
		at := (w.cur + i) % len(w.order)
		no := w.order[at]
		if w.groups[no] == nil && w.freshRoom(no) < int64(n) {
			continue
		}
		g := w.group(no)
		if g.avail < int64(n) || uint64(g.longestLeft()) < n {
			continue
		}
		if err := w.load(g); err != nil {
			return err
		}
		if uint64(g.active.n) < n {
			g.nextRegion()
		}
		w.cur = at
		return nil
	}
	return nil
}

// alloc takes n blocks in as few runs as the free space permits, and appends them as extents from file block off.
func (w *Writer) alloc(exts []extent, off, n uint64) ([]extent, error) {
	for n > 0 {
		fsb, got, err := w.allocRun(n)
		if err != nil {
			return exts, err
		}
		exts = appendExtent(exts, extent{off: off, start: fsb, n: got})
		off += uint64(got)
		n -= uint64(got)
	}
	return exts, nil
}

// appendExtent joins e to the last extent where one extent can hold both.
func appendExtent(exts []extent, e extent) []extent {
	if len(exts) > 0 {
		l := &exts[len(exts)-1]
		if l.off+uint64(l.n) == e.off && l.start+uint64(l.n) == e.start && l.n+e.n <= maxExtLen && l.unwritten == e.unwritten {
			l.n += e.n
			return exts
		}
	}
	return append(exts, e)
}

// own notes in the reverse map who has a run of blocks.
func (w *Writer) own(fsb uint64, n uint32, owner, offset uint64) {
	if w.sb.ro&roRmapbt == 0 || w.isPhantom(fsb) {
		return
	}
	ag, b := w.sb.split(fsb)
	g := w.group(ag)
	r := rmapRec{b, n, owner, offset}
	if l := len(g.rmapAdd); l > 0 && joinable(g.rmapAdd[l-1], r) {
		g.rmapAdd[l-1].n += n
		return
	}
	g.rmapAdd = append(g.rmapAdd, r)
}

func (w *Writer) ownFork(k fork, exts []extent) {
	for _, e := range exts {
		w.own(e.start, e.n, k.in.ino, k.rmapOffset(e))
	}
}

func (k fork) rmapOffset(e extent) uint64 {
	o := e.off
	if k.attr {
		o |= rmapAttr
	}
	if e.unwritten {
		o |= rmapUnwritten
	}
	return o
}

// release gives back blocks of a fork. Blocks shared with other files lose one owner and stay.
func (w *Writer) release(fsb uint64, n uint32, owner, offset uint64) error {
	if w.isPhantom(fsb) {
		w.used -= int64(n)
		return nil
	}
	ag, b := w.sb.split(fsb)
	g := w.group(ag)
	if err := w.load(g); err != nil {
		return err
	}
	if err := w.loadRefc(g); err != nil {
		return err
	}
	g.touched = true
	if w.sb.ro&roRmapbt != 0 {
		g.rmapDel = append(g.rmapDel, rmapRec{b, n, owner, offset})
	}
	g.noChunk, g.noSparse = false, false
	for _, s := range g.unshare(span{b, n}) {
		g.giveBack(s)
		g.avail += int64(s.n)
		w.used -= int64(s.n)
	}
	return nil
}

// unshare takes one owner from every shared block of s, and returns the runs that nobody else has.
func (g *group) unshare(s span) (free []span) {
	var out []refcRec
	from := s.start
	// Staging records have the highest bit in start, and so come last.
	lo := sort.Search(len(g.refc), func(i int) bool { return g.refc[i].start&refcCow != 0 || g.refc[i].start+g.refc[i].n > s.start })
	hi := lo
	put := func(start, end, count uint32) {
		if start < end {
			out = append(out, refcRec{start, end - start, count})
		}
	}
	for ; hi < len(g.refc) && g.refc[hi].start&refcCow == 0 && g.refc[hi].start < s.end(); hi++ {
		r := g.refc[hi]
		a, b := max(r.start, s.start), min(r.start+r.n, s.end())
		if from < a {
			free = append(free, span{from, a - from})
		}
		from = b
		put(r.start, a, r.count)
		switch {
		case r.count > 2:
			put(a, b, r.count-1)
		case r.count < 2: // a shared block with one owner: drop the record, free the block
			free = append(free, span{a, b - a})
		}
		put(b, r.start+r.n, r.count)
	}
	if from < s.end() {
		free = append(free, span{from, s.end() - from})
	}
	if hi > lo {
		g.refc = slices.Replace(g.refc, lo, hi, out...)
	}
	return free
}

// mergedRefc joins neighbours of equal count.
func mergedRefc(recs []refcRec) []refcRec {
	out := recs[:0:0]
	for _, r := range recs {
		if n := len(out); n > 0 && out[n-1].start+out[n-1].n == r.start && out[n-1].count == r.count && uint64(out[n-1].n)+uint64(r.n) < 1<<31 {
			out[n-1].n += r.n
			continue
		}
		out = append(out, r)
	}
	return out
}

func (w *Writer) freeExtents(k fork, exts []extent) error {
	for _, e := range exts {
		if err := w.release(e.start, e.n, k.in.ino, k.rmapOffset(e)); err != nil {
			return err
		}
	}
	return nil
}

// freeFork gives back a fork's blocks and those of its extent tree.
func (w *Writer) freeFork(k fork) error {
	if f := k.format(); f != fmtExtents && f != fmtBtree {
		return nil
	}
	var tree []uint64
	exts, err := w.extents(k, &tree)
	if err != nil {
		return err
	}
	if err := w.freeExtents(k, exts); err != nil {
		return err
	}
	flags := uint64(rmapBmbt)
	if k.attr {
		flags |= rmapAttr
	}
	for _, b := range tree {
		if err := w.release(b, 1, k.in.ino, flags); err != nil {
			return err
		}
	}
	return nil
}

// allocInode finds a free inode, or makes a chunk of new ones, in the group that data goes to or one behind it.
func (w *Writer) allocInode() (uint64, error) {
	w.inodesUsed++
	w.inodesPeak = max(w.inodesPeak, w.inodesUsed)
	// A chunk needs an aligned run in one group, which growth by just its blocks may not bring: then more is asked for.
	for more := int64(w.chunkBlocks()) + 1; !w.overflow; more *= 2 {
		for i := range w.order {
			no := w.order[(w.cur+i)%len(w.order)]
			if w.groups[no] == nil && !w.roomForChunk(w.freshRoom(no)) {
				continue
			}
			ino, err := w.inodeIn(w.group(no))
			if err != nil || ino != 0 {
				return ino, err
			}
		}
		if err := w.askRoom(more, w.icount+inodesPerRec); err != nil {
			return 0, err
		}
	}
	w.phantomIno++
	if w.phantomIno%inodesPerRec == 1 {
		w.charge(nil, int64(w.chunkBlocks()))
	}
	return phantomInoBase + w.phantomIno, nil
}

const phantomInoBase = 1 << 62

func (w *Writer) inodeIn(g *group) (uint64, error) {
	if !g.loaded && g.ifree == 0 && g.avail <= 0 {
		return 0, nil
	}
	if err := w.load(g); err != nil {
		return 0, err
	}
	for {
		for len(g.withFree) > 0 {
			c := g.findChunk(g.withFree[0])
			m := c.free &^ c.holeBits()
			if m == 0 {
				g.withFree = g.withFree[1:]
				continue
			}
			bit := bits.TrailingZeros64(m)
			c.free &^= 1 << bit
			w.ifree--
			g.touched = true
			return w.sb.ino(g.no, c.start+uint32(bit)), nil
		}
		ok, err := w.newChunk(g)
		if err != nil || !ok {
			return 0, err
		}
	}
}

// roomForChunk says whether a chunk of inodes may be made in a group from which avail blocks may be taken.
func (w *Writer) roomForChunk(avail int64) bool {
	n := int64(w.chunkBlocks()) + 1 // one for growth of the inode tree
	return avail >= n && w.total-w.used >= n && w.icount+inodesPerRec <= w.maxIcount
}

func (w *Writer) newChunk(g *group) (bool, error) {
	sb := w.sb
	if !w.roomForChunk(g.avail) {
		return false, nil
	}
	n := w.chunkBlocks()
	align := uint32(1)
	if sb.versionnum&vbitAlign != 0 {
		align = max(1, sb.inoAlign)
	}
	s, ok := g.takeChunk(n, align)
	if ok {
		for i := uint32(0); i < max(inodesPerRec, uint32(1)<<sb.inopLog); i += inodesPerRec {
			g.insertChunk(chunkRec{start: s.start<<sb.inopLog + i, free: ^uint64(0)})
			g.withFree = append(g.withFree, s.start<<sb.inopLog+i)
			w.icount += inodesPerRec
			w.ifree += inodesPerRec
		}
		g.lastNew = s.start << sb.inopLog
	} else if sb.inc&incSpinodes != 0 && sb.spinoAlign > 0 && sb.spinoAlign < n {
		if s, ok = w.sparseChunk(g, n, align); !ok {
			return false, nil
		}
	} else {
		return false, nil
	}
	w.charge(g, int64(s.n))
	if grown := inoKind.shapeOf(len(g.chunks), sb.blockSize, treeSlack, 0).total() - g.inobtOld; grown > g.inobtPaid {
		w.charge(g, int64(grown-g.inobtPaid))
		g.inobtPaid = grown
	}
	w.own(sb.fsb(g.no, s.start), s.n, ownInodes, 0)
	if err := w.trimInodes(); err != nil {
		return false, err
	}
	w.freshInodes(sb.fsb(g.no, s.start), s.n)
	return true, nil
}

// takeChunk finds n aligned blocks, from the inode zone if that has some left.
func (g *group) takeChunk(n, align uint32) (span, bool) {
	if g.izone.n < n {
		g.giveBack(g.izone)
		g.izone = span{}
		if g.active.n == 0 {
			g.nextRegion()
		}
		// Reserve room for a few chunks at once, so that contents and inodes do not alternate.
		start := (g.active.start + align - 1) / align * align
		if skip := start - g.active.start; g.active.n >= skip+n {
			zone := n * max(1, min(16, (g.active.n-skip)/8/n))
			g.giveBack(span{g.active.start, skip})
			g.izone = span{start, zone}
			g.active = span{start + zone, g.active.n - skip - zone}
		}
	}
	if g.izone.n < n {
		if s, ok := g.takeAligned(n, align, 0, g.length); ok {
			return s, true
		}
		if g.noChunk {
			return span{}, false
		}
		g.reclaim()
		s, ok := g.takeAligned(n, align, 0, g.length)
		g.noChunk = !ok
		return s, ok
	}
	s := span{g.izone.start, n}
	g.izone.start += n
	g.izone.n -= n
	if g.izone.n >= n && align > n { // chunks may be aligned more coarsely than they are long
		skip := min(g.izone.n, (g.izone.start+align-1)/align*align-g.izone.start)
		g.giveBack(span{g.izone.start, skip})
		g.izone.start += skip
		g.izone.n -= skip
	}
	return s, true
}

// takeAligned cuts n blocks whose start is a multiple of align and in [lo, hi] out of the free spans.
func (g *group) takeAligned(n, align, lo, hi uint32) (span, bool) {
	for i := range g.free {
		f := &g.free[i]
		if f.n < n {
			continue
		}
		start := (max(f.start, lo) + align - 1) / align * align
		if start > hi || uint64(start)+uint64(n) > uint64(f.end()) {
			continue
		}
		before, after := span{f.start, start - f.start}, span{start + n, f.end() - start - n}
		if before.n < after.n {
			before, after = after, before
		}
		*f = before
		g.giveBack(after)
		return span{start, n}, true
	}
	return span{}, false
}

// sparseChunk makes inodes of a part of a chunk, where no whole one fits.
func (w *Writer) sparseChunk(g *group, full, align uint32) (span, bool) {
	sb := w.sb
	n := sb.spinoAlign
	lo, hi := align, g.length/align*align
	if hi < full+lo {
		return span{}, false
	}
	hi -= full
	s, ok := g.takeAligned(n, n, lo, hi+full-n)
	if !ok && !g.noSparse {
		g.reclaim()
		s, ok = g.takeAligned(n, n, lo, hi+full-n)
		g.noSparse = !ok
	}
	if !ok {
		return span{}, false
	}
	base := s.start / align * align
	first := (s.start - base) << sb.inopLog // inode in the chunk
	count := n << sb.inopLog
	if first+count > inodesPerRec || base > hi {
		g.giveBack(s)
		return span{}, false
	}
	var have uint16
	for i := first; i < first+count; i += 4 {
		have |= 1 << (i / 4)
	}
	start := base << sb.inopLog
	if c := g.findChunk(start); c != nil {
		if c.holes&have != have {
			g.overlap = true
		}
		c.holes &^= have
	} else {
		g.insertChunk(chunkRec{start: start, holes: ^have, free: ^uint64(0)})
	}
	g.withFree = append(g.withFree, start)
	g.lastNew = start
	w.icount += uint64(count)
	w.ifree += uint64(count)
	return s, true
}

// freeInode returns an inode to its chunk.
func (w *Writer) freeInode(ino uint64) error {
	w.inodesUsed--
	if ino > phantomInoBase {
		return nil
	}
	ag, agino := w.sb.inoAG(ino)
	g := w.group(ag)
	if err := w.load(g); err != nil {
		return err
	}
	c := g.chunkOf(agino)
	if c == nil || (c.free|c.holeBits())>>(agino-c.start)&1 != 0 {
		return corrupt("inode %d is in use by a folder, but free in the inode tree", ino)
	}
	if c.free&^c.holeBits() == 0 {
		g.withFree = append(g.withFree, c.start)
	}
	c.free |= 1 << (agino - c.start)
	w.ifree++
	g.touched = true
	return nil
}
