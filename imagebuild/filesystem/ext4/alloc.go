package ext4

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
)

// groupState is what a Writer knows of a group whose bitmaps it has changed.
type groupState struct {
	blocks []byte // block bitmap, a whole block; nil when it was not needed, or when full
	inodes []byte // inode bitmap, a whole block; nil when it was not needed
	fresh  []byte // inodes made by a writer that only counts
	full   bool   // every block is in use, and the bitmap is therefore dropped
	hint   uint32 // no inode below this index is free
	pieces uint32 // of a new group's inode table that were written: the rest of it reads as zeros
}

// allocator hands out blocks and inodes. Once there are too few it goes on with numbers that do not exist on the
// device, so that the total need becomes known.
type allocator struct {
	touched map[uint32]*groupState
	// longest is an upper bound of each group's longest free run; searches make it exact where they fail.
	longest []uint32
	cursor  int64 // where the next small file goes
	left    int64 // blocks that may still be taken
	leftIno int64
	virtual int64  // next block number past the device
	ghost   uint32 // inodes handed out past the table
	short   bool
	space   Space
	grabbed []extent // runs taken since the current operation began; log is unused

	meta []metaRange // where the filesystem's own structures are, sorted

	peek      []byte // bitmap of a group that has not been changed
	peekGroup int64

	inodeGroup uint32 // where inodes go when the parent's group is full
}

func (w *Writer) initAllocator() {
	f := w.FS
	a := &w.allocator
	a.touched = map[uint32]*groupState{}
	a.longest = make([]uint32, f.groups)
	for g := range f.groups {
		a.longest[g] = f.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi)
	}
	a.meta = f.metaRanges()
	free, inodes := f.freeTotals()
	a.left = max(0, free-max(0, f.reserved()))
	a.leftIno = inodes
	a.virtual = f.blocks
	a.peekGroup = -1
	a.cursor = f.first
	a.space = Space{BlockSize: f.bs, FreeBlocks: a.left, FreeInodes: inodes}
}

// metaRange is a run of blocks that no file may have.
type metaRange struct{ at, end int64 }

// metaRanges lists the bitmaps and inode tables of all groups, neighbours merged.
func (f *FS) metaRanges() []metaRange {
	var all []metaRange
	// With flex_bg each kind of structure follows the one of the group before, without it they follow each other.
	last := [4]int{-1, -1, -1, -1}
	add := func(kind int, at, n int64) {
		for _, k := range last {
			if k >= 0 && all[k].end == at {
				all[k].end += n
				last[kind] = k
				return
			}
		}
		if n > 0 {
			last[kind] = len(all)
			all = append(all, metaRange{at, at + n})
		}
	}
	for g := range f.groups {
		add(0, f.groupStart(g), f.baseMeta(g))
		add(1, f.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1)
		add(2, f.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1)
		add(3, f.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), f.itableBlocks())
	}
	slices.SortFunc(all, func(a, b metaRange) int { return cmp.Compare(a.at, b.at) })
	out := all[:0]
	for _, m := range all {
		if k := len(out) - 1; k >= 0 && m.at <= out[k].end {
			out[k].end = max(out[k].end, m.end)
		} else {
			out = append(out, m)
		}
	}
	return slices.Clone(out)
}

// eachMeta calls do for every part of a metaRange in the n blocks from start on.
func (a *allocator) eachMeta(start, n int64, do func(at, n int64) error) error {
	i, _ := slices.BinarySearchFunc(a.meta, start, func(m metaRange, s int64) int { return cmp.Compare(m.end-1, s) })
	for ; i < len(a.meta) && a.meta[i].at < start+n; i++ {
		lo, hi := max(a.meta[i].at, start), min(a.meta[i].end, start+n)
		if err := do(lo, hi-lo); err != nil {
			return err
		}
	}
	return nil
}

// wordAt is word i of a bitmap; bitmaps are whole blocks.
func wordAt(b []byte, i int64) uint64 { return le.Uint64(b[8*i:]) }

// nextBit returns the first bit at or after from that is set (or clear), or limit.
func nextBit(b []byte, from, limit int64, set bool) int64 {
	flip := uint64(0)
	if !set {
		flip = ^uint64(0)
	}
	for i := from; i < limit; i = (i | 63) + 1 {
		if v := (wordAt(b, i>>6) ^ flip) >> (i & 63); v != 0 {
			return min(limit, i+int64(bits.TrailingZeros64(v)))
		}
	}
	return limit
}

func testBit(b []byte, i int64) bool { return b[i>>3]&(1<<(i&7)) != 0 }

func setBits(b []byte, from, n int64) {
	for ; n > 0 && from&7 != 0; from, n = from+1, n-1 {
		b[from>>3] |= 1 << (from & 7)
	}
	for ; n >= 8; from, n = from+8, n-8 {
		b[from>>3] = 0xFF
	}
	for ; n > 0; from, n = from+1, n-1 {
		b[from>>3] |= 1 << (from & 7)
	}
}

func clearBits(b []byte, from, n int64) {
	for ; n > 0; from, n = from+1, n-1 {
		b[from>>3] &^= 1 << (from & 7)
	}
}

func countClear(b []byte, limit int64) int64 {
	n := int64(0)
	for i := int64(0); i < limit; i += 64 {
		v := ^wordAt(b, i>>6)
		if limit-i < 64 {
			v &= 1<<(limit-i) - 1
		}
		n += int64(bits.OnesCount64(v))
	}
	return n
}

// readBlockBitmap puts group g's block bitmap into b, computing it where the group was never used.
func (f *FS) readBlockBitmap(g uint32, b []byte) error {
	start, n := f.groupStart(g), f.groupLen(g)
	if f.w != nil && g >= f.w.diskGroups {
		// Other groups' bitmaps and inode tables may be in a new group, whatever its flags say until Commit.
		clear(b)
		f.w.eachMeta(start, n, func(at, count int64) error {
			setBits(b, at-start, count)
			return nil
		})
	} else if f.descFlag(g, bgBlockUninit) {
		clear(b)
		mark := func(at, count int64) {
			if lo, hi := max(at, start), min(at+count, start+n); lo < hi {
				setBits(b, lo-start, hi-lo)
			}
		}
		mark(start, f.baseMeta(g))
		mark(f.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1)
		mark(f.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1)
		mark(f.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), f.itableBlocks())
	} else {
		if err := f.readBlock(f.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), b); err != nil {
			return fmt.Errorf("block bitmap of group %d: %w", g, err)
		}
		if err := f.checkBitmap(g, "block", b[:f.bpg/8], gdBlockCsumLo, gdBlockCsumHi); err != nil {
			return err
		}
	}
	setBits(b, n, 8*f.bs-n)
	if free, want := countClear(b, n), int64(f.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi)); free != want {
		return corrupt("block bitmap of group %d has %d free blocks, its descriptor says %d", g, free, want)
	}
	return nil
}

func (f *FS) itableBlocks() int64 { return (int64(f.ipg)*int64(f.isize) + f.bs - 1) / f.bs }

// baseMeta is how many blocks from its start a group spends on copies of the superblock and the descriptors.
func (f *FS) baseMeta(g uint32) int64 {
	return f.baseMetaIn(g, f.descTable())
}

// descTable says where group descriptors are.
type descTable struct {
	blocks    uint32    // that hold descriptors
	reserved  uint32    // after them, for growth
	meta      bool      // the feature meta_bg
	firstMeta uint32    // with meta: the first block of descriptors that is in the groups that it describes
	copies    [2]uint32 // with sparse_super2: the groups that have a copy of them
}

func (f *FS) descTable() descTable {
	return descTable{
		blocks:    f.descBlocks(),
		reserved:  uint32(le.Uint16(f.sb[sbReservedGDT:])),
		meta:      f.incompat&incompatMetaBG != 0,
		firstMeta: le.Uint32(f.sb[sbFirstMetaBG:]),
		copies:    f.superCopies(),
	}
}

// baseMetaIn is baseMeta for descriptors that are where t says.
func (f *FS) baseMetaIn(g uint32, t descTable) int64 {
	n := int64(0)
	if f.hasSuperIn(g, t.copies) {
		n = 1
	}
	if per := f.descPerBlock(); t.meta && g/per >= t.firstMeta {
		if i := g % per; i == 0 || i == 1 || i == per-1 {
			n++
		}
		return n
	}
	if n > 0 {
		if t.meta {
			n += int64(t.firstMeta)
		} else {
			n += int64(t.blocks)
		}
		n += int64(t.reserved)
	}
	return n
}

// bitmapSum is the checksum of a bitmap, cut to what descriptors have room for.
func (f *FS) bitmapSum(b []byte) (lo, hi uint16) {
	sum := crc32c(f.seed, b)
	return uint16(sum), uint16(sum >> 16)
}

func (f *FS) checkBitmap(g uint32, what string, b []byte, lo, hi int) error {
	if !f.metaCsum {
		return nil
	}
	d := f.desc(g)
	l, h := f.bitmapSum(b)
	if l != le.Uint16(d[lo:]) || f.dsize >= 64 && h != le.Uint16(d[hi:]) {
		return corrupt("%s bitmap of group %d has a wrong checksum", what, g)
	}
	return nil
}

func (f *FS) setBitmapSum(g uint32, b []byte, lo, hi int) {
	if !f.metaCsum {
		return
	}
	d := f.desc(g)
	l, h := f.bitmapSum(b)
	le.PutUint16(d[lo:], l)
	if f.dsize >= 64 {
		le.PutUint16(d[hi:], h)
	}
}

func (w *Writer) state(g uint32) *groupState {
	s := w.touched[g]
	if s == nil {
		s = &groupState{}
		w.touched[g] = s
	}
	return s
}

// look returns group g's block bitmap for reading until the next call; nil means that the group is full.
func (w *Writer) look(g uint32) ([]byte, error) {
	if s := w.touched[g]; s != nil && (s.blocks != nil || s.full) {
		return s.blocks, nil
	}
	if w.peekGroup != int64(g) {
		if w.peek == nil {
			w.peek = make([]byte, w.bs)
		}
		w.peekGroup = -1
		if err := w.readBlockBitmap(g, w.peek); err != nil {
			return nil, err
		}
		start := w.groupStart(g)
		err := w.eachMeta(start, w.groupLen(g), func(at, n int64) error {
			if nextBit(w.peek, at-start, at-start+n, false) != at-start+n {
				return corrupt("block bitmap of group %d has bitmaps or inode tables among its free blocks", g)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		w.peekGroup = int64(g)
	}
	return w.peek, nil
}

// blockBitmap returns group g's block bitmap for changing.
func (w *Writer) blockBitmap(g uint32) (*groupState, error) {
	s := w.state(g)
	if s.full {
		s.full = false
		s.blocks = make([]byte, w.bs)
		setBits(s.blocks, 0, 8*w.bs)
	}
	if s.blocks == nil {
		b, err := w.look(g)
		if err != nil {
			return nil, err
		}
		s.blocks = append(make([]byte, 0, w.bs), b...)
		w.peekGroup = -1
		d := w.desc(g)
		le.PutUint16(d[gdFlags:], le.Uint16(d[gdFlags:])&^bgBlockUninit)
	}
	return s, nil
}

func (w *Writer) groupOf(block int64) (g uint32, at int64) {
	return uint32((block - w.first) / w.bpg), (block - w.first) % w.bpg
}

// fail turns the writer into one that only counts.
func (w *Writer) fail() { w.short = true }

// alloc takes up to want consecutive blocks, at goal if that is free (0: no goal), else where near blocks, the
// rest of the file, fit best.
func (w *Writer) alloc(goal, want, near int64) (phys, n int64, err error) {
	if want > w.left && !w.short {
		if err := w.more(want, false); err != nil {
			return 0, 0, err
		}
	}
	if w.short {
		phys, n = w.virtual, want
		w.virtual += want
		w.space.NeedBlocks += want
		w.grab(phys, n)
		return phys, n, nil
	}
	phys, n = 0, 0
	if goal > 0 && goal < w.blocks {
		if n, err = w.freeAt(goal, want); err != nil {
			return 0, 0, err
		}
		phys = goal
	}
	jumped := false
	if n == 0 {
		if phys, n, err = w.search(max(near, want)); err != nil {
			return 0, 0, err
		}
		n = min(n, want)
		jumped = phys != w.cursor
	}
	g, at := w.groupOf(phys)
	s, err := w.blockBitmap(g)
	if err != nil {
		return 0, 0, err
	}
	setBits(s.blocks, at, n)
	free := w.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi)
	if int64(free) < n {
		return 0, 0, corrupt("group %d has fewer free blocks than its bitmap says", g)
	}
	free -= uint32(n)
	w.setDescCount(g, gdFreeBlocksLo, gdFreeBlocksHi, free)
	w.longest[g] = min(w.longest[g], free)
	if free == 0 {
		s.full, s.blocks = true, nil
	}
	// A large file that had to look elsewhere leaves the gap to the small ones.
	const large = 1 << 20
	if w.cursor == phys || jumped && near*w.bs < large {
		w.cursor = phys + n
	}
	w.left -= n
	w.space.NeedBlocks += n
	w.grab(phys, n)
	return phys, n, nil
}

func (w *Writer) grab(phys, n int64) {
	if k := len(w.grabbed) - 1; k >= 0 && w.grabbed[k].phys+int64(w.grabbed[k].n) == phys && int64(w.grabbed[k].n)+n < 1<<31 {
		w.grabbed[k].n += uint32(n)
		return
	}
	w.grabbed = append(w.grabbed, extent{phys: phys, n: uint32(n)})
}

// freeAt returns how many of the want blocks from block on are free, within one group.
func (w *Writer) freeAt(block, want int64) (int64, error) {
	g, at := w.groupOf(block)
	if w.longest[g] == 0 {
		return 0, nil
	}
	b, err := w.look(g)
	if b == nil || err != nil {
		return 0, err
	}
	return nextBit(b, at, min(w.groupLen(g), at+want), true) - at, nil
}

// findRun returns the first need consecutive clear bits, or the length of the longest run if none is that long.
func findRun(b []byte, from, limit, need int64) (at, n, longest int64) {
	for i := from; ; {
		i = nextBit(b, i, limit, false)
		if i == limit {
			return 0, 0, longest
		}
		end := nextBit(b, i, min(limit, i+need), true)
		if end-i >= need {
			return i, need, need
		}
		longest = max(longest, end-i)
		i = end
	}
}

// search finds a free run for a file of near blocks: the first that holds it whole, counted from the cursor (half
// a group is as good as more: what follows it is often free too). Where there is none, half of it will do, and so on.
func (w *Writer) search(near int64) (phys, n int64, err error) {
	if w.cursor >= w.blocks {
		w.cursor = w.first
	}
	for need := min(near, w.bpg/2); need > 0; need /= 2 {
		if phys, n, err = w.searchRun(need); n > 0 || err != nil {
			return phys, n, err
		}
	}
	return 0, 0, corrupt("the descriptors promise %d more free blocks than the bitmaps have", w.left)
}

// searchRun looks for a run of need blocks, from the cursor to the end and then from the start.
func (w *Writer) searchRun(need int64) (phys, n int64, err error) {
	g0, off := w.groupOf(w.cursor)
	// Groups that were never looked at promise more than they may hold. Looking at a few hundred is enough: a
	// large filesystem without such a run in them is one that will not have many.
	looks := 0
	for i := uint32(0); i <= w.groups && looks < 512; i++ {
		g := uint32((uint64(g0) + uint64(i)) % uint64(w.groups))
		if int64(w.longest[g]) < need {
			continue
		}
		from := int64(0)
		if i == 0 {
			from = off
		}
		b, err := w.look(g)
		if err != nil {
			return 0, 0, err
		}
		if b == nil {
			w.longest[g] = 0
			continue
		}
		at, n, longest := findRun(b, from, w.groupLen(g), need)
		if n > 0 {
			return w.groupStart(g) + at, n, nil
		}
		if from == 0 {
			w.longest[g] = uint32(longest)
		}
		looks++
	}
	return 0, 0, nil
}

// free gives blocks back.
func (w *Writer) free(phys, n int64) error {
	for n > 0 {
		if phys >= w.blocks {
			w.space.NeedBlocks -= n
			return nil
		}
		g, at := w.groupOf(phys)
		k := min(n, w.groupLen(g)-at)
		s, err := w.blockBitmap(g)
		if err != nil {
			return err
		}
		if nextBit(s.blocks, at, at+k, false) != at+k {
			return corrupt("block %d is freed but not in use", phys)
		}
		if err := w.eachMeta(phys, k, func(at, _ int64) error {
			return corrupt("block %d belongs to a file and to the filesystem's own structures", at)
		}); err != nil {
			return err
		}
		clearBits(s.blocks, at, k)
		free := w.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi) + uint32(k)
		w.setDescCount(g, gdFreeBlocksLo, gdFreeBlocksHi, free)
		w.longest[g] = free
		w.left += k
		w.space.NeedBlocks -= k
		phys += k
		n -= k
	}
	return nil
}

// inodeBitmap returns group g's inode bitmap for changing.
func (w *Writer) inodeBitmap(g uint32) (*groupState, error) {
	s := w.state(g)
	if s.inodes != nil {
		return s, nil
	}
	b := make([]byte, w.bs)
	if !w.descFlag(g, bgInodeUninit) && g < w.diskGroups {
		if err := w.readBlock(w.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), b); err != nil {
			return nil, fmt.Errorf("inode bitmap of group %d: %w", g, err)
		}
		if err := w.checkBitmap(g, "inode", b[:w.ipg/8], gdInodeCsumLo, gdInodeCsumHi); err != nil {
			return nil, err
		}
	}
	setBits(b, int64(w.ipg), 8*w.bs-int64(w.ipg))
	if free, want := countClear(b, int64(w.ipg)), int64(w.descCount(g, gdFreeInodesLo, gdFreeInodesHi)); free != want {
		return nil, corrupt("inode bitmap of group %d has %d free inodes, its descriptor says %d", g, free, want)
	}
	s.inodes = b
	return s, nil
}

// allocInode takes the lowest free inode of the parent's group, or of a group after it.
func (w *Writer) allocInode(parent uint32, dir bool) (uint32, error) {
	if w.leftIno == 0 && !w.short {
		if err := w.more(0, true); err != nil {
			return 0, err
		}
	}
	w.space.NeedInodes++
	if w.short {
		if w.inodes+w.ghost+1 < w.inodes {
			return 0, fmt.Errorf("%w: more than 4294967295 inodes", ErrNoSpace)
		}
		w.ghost++
		return w.inodes + w.ghost, nil
	}
	g := (parent - 1) / w.ipg
	if w.descCount(g, gdFreeInodesLo, gdFreeInodesHi) == 0 {
		g = w.inodeGroup
		for i := uint32(0); w.descCount(g, gdFreeInodesLo, gdFreeInodesHi) == 0; i++ {
			if i == w.groups {
				return 0, corrupt("no group has a free inode, though %d should be free", w.leftIno)
			}
			g = (g + 1) % w.groups
		}
		w.inodeGroup = g
	}
	s, err := w.inodeBitmap(g)
	if err != nil {
		return 0, err
	}
	i := nextBit(s.inodes, int64(s.hint), int64(w.ipg), false)
	if i == int64(w.ipg) {
		return 0, corrupt("group %d has no free inode, though its descriptor says so", g)
	}
	ino := g*w.ipg + uint32(i) + 1
	if ino < w.firstInode() {
		return 0, corrupt("the reserved inode %d is free", ino)
	}
	setBits(s.inodes, i, 1)
	s.hint = uint32(i) + 1
	if w.count {
		if s.fresh == nil {
			s.fresh = make([]byte, w.ipg/8)
		}
		setBits(s.fresh, i, 1)
	}
	w.setDescCount(g, gdFreeInodesLo, gdFreeInodesHi, w.descCount(g, gdFreeInodesLo, gdFreeInodesHi)-1)
	if dir {
		w.setDescCount(g, gdUsedDirsLo, gdUsedDirsHi, w.descCount(g, gdUsedDirsLo, gdUsedDirsHi)+1)
	}
	if w.groupCsum {
		unused := w.ipg - max(w.itableUsed(g), uint32(i)+1)
		w.setDescCount(g, gdItableUnusedLo, gdItableUnusedHi, unused)
		d := w.desc(g)
		le.PutUint16(d[gdFlags:], le.Uint16(d[gdFlags:])&^bgInodeUninit)
		if w.descFlag(g, bgBlockUninit) {
			// As the kernel does: a group with inodes has a real block bitmap.
			if _, err := w.blockBitmap(g); err != nil {
				return 0, err
			}
		}
	}
	w.leftIno--
	return ino, nil
}

// freeInode gives an inode back and clears it.
func (w *Writer) freeInode(ino uint32, dir bool) error {
	w.space.NeedInodes--
	if err := w.itab.put(ino, make([]byte, w.isize)); err != nil {
		return err
	}
	if ino > w.inodes {
		return nil
	}
	g, i := (ino-1)/w.ipg, int64((ino-1)%w.ipg)
	s, err := w.inodeBitmap(g)
	if err != nil {
		return err
	}
	if !testBit(s.inodes, i) {
		return corrupt("inode %d is freed but not in use", ino)
	}
	clearBits(s.inodes, i, 1)
	s.hint = min(s.hint, uint32(i))
	if s.fresh != nil {
		clearBits(s.fresh, i, 1)
	}
	w.setDescCount(g, gdFreeInodesLo, gdFreeInodesHi, w.descCount(g, gdFreeInodesLo, gdFreeInodesHi)+1)
	if dir {
		n := w.descCount(g, gdUsedDirsLo, gdUsedDirsHi)
		if n == 0 {
			return corrupt("group %d has more folders than its descriptor says", g)
		}
		w.setDescCount(g, gdUsedDirsLo, gdUsedDirsHi, n-1)
	}
	w.leftIno++
	return nil
}

// kept says whether the content of inode ino is on the device.
func (w *Writer) kept(ino uint32) bool {
	if !w.count {
		return true
	}
	if ino > w.inodes {
		return false
	}
	s := w.touched[(ino-1)/w.ipg]
	return s == nil || s.fresh == nil || !testBit(s.fresh, int64((ino-1)%w.ipg))
}
