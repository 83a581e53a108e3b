package ext4

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
)

// growState is what a Writer knows of its filesystem's growth. The superblock and the descriptors in memory are those
// of the grown filesystem; on the device everything is as it was until Commit.
type growState struct {
	ask        func(need int64) (int64, error)
	grown      bool
	diskGroups uint32 // groups that the device has: nothing of the others may be read before it is written
	// diskBlocks and diskReserved tell the share of blocks that root keeps.
	diskBlocks, diskReserved int64
	pointers                 int64 // block that the resize inode's map begins with, 0 until it is needed
	limit                    error // why the filesystem could not grow as far as was needed
}

// lastGroupSpare is how many blocks a last group must have beyond its own structures to be worth making (resize2fs).
const lastGroupSpare = 50

func (w *Writer) initGrowth(ask func(need int64) (int64, error)) {
	w.ask = ask
	w.diskGroups, w.diskBlocks, w.diskReserved = w.groups, w.blocks, max(0, w.reserved())
}

// Size is how many bytes the filesystem covers, with all growth.
func (w *Writer) Size() int64 { return w.blocks * w.bs }

// Grow makes the filesystem fill size bytes of its device, which is that long by now, as far as the format can use
// them: what is too little for a block or for one more group stays unused, and so does what would make more than
// 4294967295 inodes. It may be called any number of times before Commit, which writes what growth changes. What lies
// behind the filesystem's old end may be anything; a writer that only counts does not look at it.
//
// A size below the present one is an error, as is more than the filesystem's features permit ([ErrUnsupported], which
// names the reason); neither does any harm. After space ran out, growing comes too late ([ErrNoSpace]).
func (w *Writer) Grow(size int64) error {
	if err := w.ready(); err != nil {
		return err
	}
	if size < w.Size() {
		return fmt.Errorf("growing to %d bytes: the filesystem has %d", size, w.Size())
	}
	if w.short {
		return fmt.Errorf("growing to %d bytes: %w already", size, ErrNoSpace)
	}
	p, err := w.planGrowth(size / w.bs)
	if err == nil {
		err = w.grow(p)
	}
	if err != nil {
		return fmt.Errorf("growing to %d bytes: %w", size, err)
	}
	return nil
}

// more asks for room for that many blocks, or for an inode. Without an error there is room now, or w.short is set.
func (w *Writer) more(blocks int64, inode bool) error {
	if w.ask == nil {
		w.fail()
		return nil
	}
	start := w.blocks
	// A size above the need may end in a group that costs more than it gives, so once is not always enough.
	for w.left < blocks || inode && w.leftIno == 0 {
		need, err := w.leastSize(blocks, inode)
		if err != nil {
			w.limit = err
			w.fail()
			return nil
		}
		size, err := w.ask(need)
		if err != nil {
			return fmt.Errorf("asking for %d bytes: %w", need, err)
		}
		if size < need {
			w.fail()
			return nil
		}
		p, err := w.planGrowth(size / w.bs)
		if err == nil {
			err = w.grow(p)
		}
		if err != nil {
			return fmt.Errorf("growing to %d bytes: %w", size, err)
		}
	}
	w.cursor = start
	return nil
}

// leastSize is the least size in bytes with which that many blocks, or an inode, can be taken.
func (w *Writer) leastSize(blocks int64, inode bool) (int64, error) {
	free, _ := w.freeTotals()
	enough := func(p growth) bool {
		return (blocks == 0 || free+p.free-p.reserved >= blocks) && (!inode || p.groups > w.groups)
	}
	// lo is too little, hi is enough. Strides double until they reach past the need, or halve where they reach past
	// what is possible.
	lo, hi, stride, end := w.blocks, int64(0), max(1, blocks), false
	// No filesystem spends so much of what it gains on itself, unless it was made to waste our time.
	top := w.blocks + 64*(blocks+max(0, w.reserved()-free)) + 4*w.bpg
	for hi == 0 {
		p, err := w.planGrowth(lo + stride)
		switch {
		case err != nil && stride == 1:
			return 0, err
		case err != nil:
			stride, end = stride/2, true
		case enough(p):
			hi = p.blocks
		case p.capped != nil:
			return 0, p.capped
		case lo > top:
			return 0, corrupt("%d more blocks leave fewer than %d free", lo-w.blocks, blocks)
		default:
			lo += stride
			if !end {
				stride *= 2
			}
		}
	}
	for hi-lo > 1 {
		p, err := w.planGrowth(lo + (hi-lo)/2)
		if err != nil {
			return 0, err
		}
		if enough(p) {
			hi = p.blocks
		} else {
			lo += (hi - lo) / 2
		}
	}
	return hi * w.bs, nil
}

// growth is how a filesystem will grow.
type growth struct {
	blocks   int64
	groups   uint32
	table    descTable
	free     int64 // blocks that become free
	reserved int64 // blocks that root keeps, in all
	capped   error // why it is less than was asked for
}

// tableMeta is what a group spends on its bitmaps and its inode table.
func (f *FS) tableMeta() int64 { return 2 + f.itableBlocks() }

// metaOf is how many blocks the groups from the given one on spend on metadata.
func (w *Writer) metaOf(from uint32) int64 {
	n := int64(w.groups-from) * w.tableMeta()
	for g := from; g < w.groups; g++ {
		n += w.baseMeta(g)
	}
	return n
}

// planGrowth tells how the filesystem grows to that many blocks.
func (w *Writer) planGrowth(blocks int64) (growth, error) {
	p := growth{blocks: blocks}
	if w.incompat&incompat64Bit == 0 && p.blocks >= 1<<32 {
		return p, unsupported("%d blocks of %d bytes without the feature 64bit (at most 4294967295)", p.blocks, w.bs)
	}
	if w.incompat&incompatExtents == 0 && p.blocks >= 1<<32 {
		return p, unsupported("%d blocks of %d bytes without the feature extent (at most 4294967295)", p.blocks, w.bs)
	}
	if p.blocks > 1<<48 {
		return p, unsupported("%d blocks of %d bytes (at most %d)", p.blocks, w.bs, int64(1)<<48)
	}
	groups := (p.blocks - w.first + w.bpg - 1) / w.bpg
	if top := (1<<32 - 1) / int64(w.ipg); groups > top {
		groups, p.blocks = top, w.first+top*w.bpg
		p.capped = unsupported("more than 4294967295 inodes (%d in each group)", w.ipg)
	}
	for {
		if groups <= int64(w.groups) {
			p.groups, p.table = w.groups, w.descTable()
			p.blocks = min(p.blocks, w.groupStart(w.groups))
			break
		}
		if groups > maxDescTable/int64(w.dsize) {
			return p, unsupported("%d groups, their descriptors would take more than %d MiB of memory", groups, maxDescTable>>20)
		}
		p.groups = uint32(groups)
		var err error
		if p.table, err = w.planTable(p); err != nil {
			return p, err
		}
		last := p.groups - 1
		n := p.blocks - w.groupStart(last)
		if n == w.bpg || n >= w.baseMetaIn(last, p.table)+w.tableMeta()+lastGroupSpare {
			break
		}
		p.blocks -= n
		groups--
	}
	if w.groups > 0 {
		p.free = min(p.blocks, w.groupStart(w.groups)) - w.blocks
	}
	if p.groups > w.groups && w.copyMoves() {
		p.free += w.baseMeta(w.groups-1) - w.baseMetaIn(w.groups-1, p.table)
	}
	for g := w.groups; g < p.groups; g++ {
		n := min(w.bpg, p.blocks-w.groupStart(g)) - w.baseMetaIn(g, p.table) - w.tableMeta()
		if n < 0 {
			return p, unsupported("groups of %d blocks, which are too few for their own structures", w.bpg)
		}
		p.free += n
	}
	p.reserved = w.diskReserved
	if w.diskReserved < w.diskBlocks {
		hi, lo := bits.Mul64(uint64(w.diskReserved), uint64(p.blocks))
		q, _ := bits.Div64(hi, lo, uint64(w.diskBlocks))
		p.reserved = int64(q)
	}
	return p, nil
}

// planTable finds room for the descriptors of p.groups groups: in the blocks that are kept for them and, when those
// are used up, in the groups themselves (meta_bg), as the kernel does.
func (w *Writer) planTable(p growth) (descTable, error) {
	t := w.descTable()
	old := t.blocks
	t.blocks = (p.groups-1)/w.descPerBlock() + 1
	if w.copyMoves() {
		t.copies[1] = p.groups - 1
	}
	resize := w.compat&compatResizeInode != 0
	switch {
	case t.reserved > 0 && !resize:
		return t, unsupported("%d blocks reserved for descriptors without the feature resize_inode", t.reserved)
	case t.meta && resize:
		return t, unsupported("meta_bg together with resize_inode")
	case t.meta:
		return t, nil
	}
	if more := t.blocks - old; more <= t.reserved {
		t.reserved -= more
	} else {
		t.meta, t.firstMeta, t.reserved = true, old+t.reserved, 0
	}
	if int64(t.reserved) > w.bs/4 {
		return t, corrupt("%d blocks reserved for descriptors", t.reserved)
	}
	if resize && !t.meta && p.blocks > 1<<32 {
		return t, unsupported("%d blocks with the feature resize_inode (at most 4294967296)", p.blocks)
	}
	return t, nil
}

// copyMoves says whether the copy of the superblock that is in the last group belongs to whatever group is the last,
// as resize2fs takes it under sparse_super2.
func (w *Writer) copyMoves() bool {
	// With meta_bg a group's descriptors would have to move with it.
	c := w.superCopies()
	return w.compat&compatSparseSuper2 != 0 && w.incompat&incompatMetaBG == 0 && w.groups > 1 && c[1] == w.groups-1 && c[0] != c[1]
}

// grow does in memory what p says. An error leaves the writer useless.
func (w *Writer) grow(p growth) error {
	if p.blocks <= w.blocks {
		return nil
	}
	return w.fatal(w.growGroups(p))
}

func (w *Writer) growGroups(p growth) error {
	sb := w.sb[:]
	if w.groups > 0 && p.groups > w.groups && w.compat&compatResizeInode != 0 {
		if err := w.findPointers(); err != nil {
			return err
		}
		if p.table.meta {
			// The reserved blocks are all used: the resize inode ends here.
			if w.pointers != 0 {
				if err := w.free(w.pointers, 1); err != nil {
					return err
				}
				w.space.NeedBlocks++ // it was not the caller's
				w.left--             // below, all that growth gives is counted
			}
			w.compat &^= compatResizeInode
			le.PutUint32(sb[sbCompat:], le.Uint32(sb[sbCompat:])&^compatResizeInode)
		}
	}
	if last := w.groups - 1; w.groups > 0 && w.groupLen(last) < w.bpg {
		from := w.groupLen(last)
		s, err := w.blockBitmap(last)
		if err != nil {
			return err
		}
		n := min(p.blocks-w.groupStart(last), w.bpg) - from
		clearBits(s.blocks, from, n)
		free := w.descCount(last, gdFreeBlocksLo, gdFreeBlocksHi) + uint32(n)
		w.setDescCount(last, gdFreeBlocksLo, gdFreeBlocksHi, free)
		w.longest[last] = free
	}
	from := w.groups
	dropped := int64(0)
	if p.groups > w.groups && w.copyMoves() {
		dropped = w.baseMeta(w.groups - 1)
		if err := w.dropCopy(w.groups-1, dropped); err != nil {
			return err
		}
		le.PutUint32(sb[sbBackupBGs+4:], p.table.copies[1])
	}
	w.grown = true
	w.blocks, w.groups = p.blocks, p.groups
	w.inodes = w.groups * w.ipg
	le.PutUint32(sb[sbBlocksLo:], uint32(w.blocks))
	le.PutUint32(sb[sbReservedLo:], uint32(p.reserved))
	if w.incompat&incompat64Bit != 0 {
		le.PutUint32(sb[sbBlocksHi:], uint32(w.blocks>>32))
		le.PutUint32(sb[sbReservedHi:], uint32(p.reserved>>32))
	}
	le.PutUint32(sb[sbInodesCount:], w.inodes)
	le.PutUint16(sb[sbReservedGDT:], uint16(p.table.reserved))
	if p.table.meta && w.incompat&incompatMetaBG == 0 {
		w.incompat |= incompatMetaBG
		le.PutUint32(sb[sbIncompat:], le.Uint32(sb[sbIncompat:])|incompatMetaBG)
		le.PutUint32(sb[sbFirstMetaBG:], p.table.firstMeta)
	}
	if n := int(int64(p.table.blocks)*w.bs) - len(w.gdt); n > 0 {
		w.gdt = append(w.gdt, make([]byte, n)...)
	}
	if n := int(w.groups) - len(w.longest); n > 0 {
		w.longest = append(w.longest, make([]uint32, n)...)
	}
	if o := le.Uint32(sb[sbOverhead:]); o > 0 {
		le.PutUint32(sb[sbOverhead:], o+uint32(w.metaOf(from)-dropped))
	}
	w.layOut(from)

	free, inodes := w.freeTotals()
	left := max(0, free-p.reserved)
	w.space.FreeBlocks += left - w.left
	w.space.FreeInodes += inodes - w.leftIno
	w.left, w.leftIno, w.virtual = left, inodes, w.blocks
	return nil
}

// dropCopy gives back the n blocks of group g's copies of the superblock and the descriptors.
func (w *Writer) dropCopy(g uint32, n int64) error {
	s, err := w.blockBitmap(g)
	if err != nil {
		return err
	}
	if n > w.groupLen(g) || nextBit(s.blocks, 0, n, false) != n {
		return corrupt("group %d has its copy of the superblock among its free blocks", g)
	}
	clearBits(s.blocks, 0, n)
	free := w.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi) + uint32(n)
	w.setDescCount(g, gdFreeBlocksLo, gdFreeBlocksHi, free)
	w.longest[g] = free
	start := w.groupStart(g)
	var rest []metaRange
	for _, m := range w.meta {
		if m.at < start {
			rest = append(rest, metaRange{m.at, min(m.end, start)})
		}
		if m.end > start+n {
			rest = append(rest, metaRange{max(m.at, start+n), m.end})
		}
	}
	w.meta = rest
	return nil
}

// findPointers looks up the block that maps the reserved descriptor blocks.
func (w *Writer) findPointers() error {
	if w.pointers != 0 {
		return nil
	}
	raw := make([]byte, w.isize)
	if err := w.itab.read(resizeInode, raw); err != nil {
		return fmt.Errorf("reading the resize inode: %w", err)
	}
	if !w.inodeSumOK(resizeInode, raw) {
		return corrupt("the resize inode has a wrong checksum")
	}
	const double = directBlocks + 1
	for i := range directBlocks + 3 {
		p := int64(le.Uint32(raw[inBlock+4*i:]))
		switch {
		case i != double && p != 0:
			return corrupt("the resize inode maps something in slot %d", i)
		case i == double && p >= w.blocks, i == double && p == 0 && le.Uint16(w.sb[sbReservedGDT:]) > 0:
			return corrupt("the resize inode's map is in block %d of %d", p, w.blocks)
		case i == double:
			w.pointers = p
		}
	}
	if inodeType(raw) != modeReg {
		return corrupt("the resize inode has mode %#o", le.Uint16(raw[inMode:]))
	}
	return nil
}

// layOut gives the groups from the given one on their places for bitmaps and inode tables, and their descriptors.
func (w *Writer) layOut(from uint32) {
	flex := uint64(1)
	if log := w.sb[sbLogFlex]; w.incompat&incompatFlexBG != 0 && log < 32 {
		flex = 1 << log
	}
	for g := from; g < w.groups; {
		end := uint32(min(uint64(w.groups), (uint64(g)/flex+1)*flex))
		if !w.layBatch(g, end) {
			for k := g; k < end; k++ {
				w.layBatch(k, k+1)
			}
		}
		g = end
	}
}

// layBatch puts the structures of the groups from to end-1 at the start of them: all block bitmaps, all inode
// bitmaps, all inode tables, none of them across a border between groups. It is false where that does not fit; one
// group alone always fits.
func (w *Writer) layBatch(from, end uint32) bool {
	g, at := from, w.groupStart(from)+w.baseMeta(from)
	take := func(n int64) int64 {
		for at+n > w.groupStart(g)+w.groupLen(g) {
			if g++; g >= end {
				return 0
			}
			at = w.groupStart(g) + w.baseMeta(g)
		}
		at += n
		return at - n
	}
	for k := from; k < end; k++ {
		clear(w.desc(k))
	}
	var ranges []metaRange
	for _, kind := range []struct {
		lo, hi int
		n      int64
	}{{gdBlockBitmapLo, gdBlockBitmapHi, 1}, {gdInodeBitmapLo, gdInodeBitmapHi, 1}, {gdInodeTableLo, gdInodeTableHi, w.itableBlocks()}} {
		for k := from; k < end; k++ {
			b := take(kind.n)
			if b == 0 {
				return false
			}
			d := w.desc(k)
			le.PutUint32(d[kind.lo:], uint32(b))
			if w.dsize >= 64 {
				le.PutUint32(d[kind.hi:], uint32(b>>32))
			}
			ranges = append(ranges, metaRange{b, b + kind.n})
		}
	}
	for k := from; k < end; k++ {
		if n := w.baseMeta(k); n > 0 {
			ranges = append(ranges, metaRange{w.groupStart(k), w.groupStart(k) + n})
		}
	}
	slices.SortFunc(ranges, func(a, b metaRange) int { return cmp.Compare(a.at, b.at) })
	for _, m := range ranges {
		if k := len(w.meta) - 1; k >= 0 && w.meta[k].end == m.at {
			w.meta[k].end = m.end
		} else {
			w.meta = append(w.meta, m)
		}
	}
	for k := from; k < end; k++ {
		start, free := w.groupStart(k), w.groupLen(k)
		w.eachMeta(start, free, func(_, n int64) error {
			free -= n
			return nil
		})
		w.setDescCount(k, gdFreeBlocksLo, gdFreeBlocksHi, uint32(free))
		w.setDescCount(k, gdFreeInodesLo, gdFreeInodesHi, w.ipg)
		w.longest[k] = uint32(free)
		if w.groupCsum {
			w.setDescCount(k, gdItableUnusedLo, gdItableUnusedHi, w.ipg)
			le.PutUint16(w.desc(k)[gdFlags:], bgInodeUninit|bgBlockUninit)
		}
	}
	return true
}

// staysUninit says whether the bitmap of the new and untouched group g can be left to whoever needs it: it must hold
// nothing that its own descriptor does not tell, and be whole.
func (w *Writer) staysUninit(g uint32) bool {
	if !w.descFlag(g, bgBlockUninit) || g == w.groups-1 {
		return false
	}
	start, end := w.groupStart(g), w.groupStart(g)+w.groupLen(g)
	free := end - start - w.baseMeta(g)
	for _, m := range []metaRange{
		w.blocksAt(g, gdBlockBitmapLo, gdBlockBitmapHi, 1),
		w.blocksAt(g, gdInodeBitmapLo, gdInodeBitmapHi, 1),
		w.blocksAt(g, gdInodeTableLo, gdInodeTableHi, w.itableBlocks()),
	} {
		free -= max(0, min(m.end, end)-max(m.at, start))
	}
	return free == int64(w.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi))
}

// blocksAt is the n blocks from where group g's descriptor says.
func (f *FS) blocksAt(g uint32, lo, hi int, n int64) metaRange {
	at := f.descBlockNo(g, lo, hi)
	return metaRange{at, at + n}
}

// clearTables sees to it that the unused part of new inode tables is zero where no descriptor says how much is used.
func (w *Writer) clearTables(ctx context.Context) error {
	if w.groupCsum {
		return nil
	}
	buf := make([]byte, chunkSize)
	for g := w.diskGroups; g < w.groups; g++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		used := int64(0)
		if s := w.touched[g]; s != nil {
			used = int64(s.pieces) * int64(w.itab.per) * int64(w.isize)
		}
		table := w.descBlockNo(g, gdInodeTableLo, gdInodeTableHi) * w.bs
		if err := w.zeroRange(table+used, table+w.itableBlocks()*w.bs, buf); err != nil {
			return fmt.Errorf("inode table of group %d: %w", g, err)
		}
	}
	return nil
}

// zeroRange writes zeros between two places of the device where there is something else.
func (w *Writer) zeroRange(at, end int64, buf []byte) error {
	for at < end {
		b := buf[:min(int64(len(buf)), end-at)]
		if _, err := w.dev.ReadAt(b, at); err != nil {
			return fmt.Errorf("reading %d bytes at byte %d: %w", len(b), at, noEOF(err))
		}
		for i := 0; i < len(b); {
			k := i
			for k < len(b) {
				n := min(holeSize, len(b)-k)
				if string(b[k:k+n]) == string(zeros[:n]) {
					break
				}
				k += n
			}
			if k > i {
				clear(b[i:k])
				if err := w.dev.out(b[i:k], at+int64(i)); err != nil {
					return err
				}
			}
			i = k + holeSize
		}
		at += int64(len(b))
	}
	return nil
}

// backups lists the groups but the first that begin with a superblock.
func (w *Writer) backups() []uint32 {
	var gs []uint32
	for g := uint32(1); g < w.groups; g++ {
		if w.hasSuper(g) {
			gs = append(gs, g)
		}
	}
	return gs
}

// writeResizeInode makes the resize inode map the reserved descriptor blocks of all groups that have them. Its map is
// a double indirect block; the indirect blocks below it are group 0's reserved blocks, each of which names its copies
// in the other groups.
func (w *Writer) writeResizeInode() error {
	if w.pointers == 0 {
		return nil
	}
	raw := make([]byte, w.isize)
	if err := w.itab.read(resizeInode, raw); err != nil {
		return err
	}
	if w.compat&compatResizeInode == 0 {
		clear(raw[inBlock : inBlock+inBlockLen])
		if err := w.setUnits(resizeInode, raw, 0); err != nil {
			return err
		}
		return w.putInode(resizeInode, raw)
	}
	t, backups := w.descTable(), w.backups()
	if int64(len(backups)) > w.bs/4 {
		return unsupported("resize_inode with %d copies of the superblock", len(backups))
	}
	double, b := make([]byte, w.bs), make([]byte, w.bs)
	for i := range t.reserved {
		at := w.descBlock(0) + int64(t.blocks+i)
		le.PutUint32(double[4*(int64(t.blocks+i)%(w.bs/4)):], uint32(at))
		for k, g := range backups {
			le.PutUint32(b[4*k:], uint32(at+int64(g)*w.bpg))
		}
		if err := w.dev.write(at*w.bs, b, true); err != nil {
			return err
		}
	}
	if err := w.dev.write(w.pointers*w.bs, double, true); err != nil {
		return err
	}
	if err := w.setUnits(resizeInode, raw, 1+int64(t.reserved)*int64(1+len(backups))); err != nil {
		return err
	}
	return w.putInode(resizeInode, raw)
}

// writeDescs writes all descriptors and all their copies.
func (w *Writer) writeDescs(ctx context.Context) error {
	t := w.descTable()
	table := t.blocks
	if t.meta {
		table = min(table, t.firstMeta)
	}
	block := func(i uint32) []byte { return w.gdt[int64(i)*w.bs : int64(i+1)*w.bs] }
	if table > 0 {
		if err := w.dev.write(w.descBlock(0)*w.bs, w.gdt[:int64(table)*w.bs], true); err != nil {
			return err
		}
	}
	per := w.descPerBlock()
	for _, g := range w.backups() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if t.meta && g/per >= t.firstMeta {
			continue
		}
		if err := w.dev.write((w.groupStart(g)+1)*w.bs, w.gdt[:int64(table)*w.bs], true); err != nil {
			return err
		}
	}
	for i := table; i < t.blocks; i++ {
		for _, g := range []uint32{i * per, i*per + 1, i*per + per - 1} {
			if g >= w.groups {
				break
			}
			at := w.groupStart(g)
			if w.hasSuper(g) {
				at++
			}
			if g == i*per {
				at = w.descBlock(i)
			}
			if err := w.dev.write(at*w.bs, block(i), true); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeBackupSupers writes the superblock's copies, as e2fsprogs does: a copy is never marked as clean.
func (w *Writer) writeBackupSupers() error {
	sb := w.sb
	le.PutUint16(sb[sbState:], le.Uint16(sb[sbState:])&^stateValid)
	for _, g := range w.backups() {
		le.PutUint16(sb[sbGroupNumber:], uint16(g))
		w.sealSuper(sb[:])
		if err := w.dev.write(w.groupStart(g)*w.bs, sb[:], true); err != nil {
			return err
		}
	}
	return nil
}
