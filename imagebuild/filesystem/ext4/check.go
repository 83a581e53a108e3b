package ext4

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// Check walks the whole filesystem and calls fault for everything that is wrong: broken structures and checksums,
// blocks that are in use twice, in use and free, or neither; wrong counts; block maps, attributes and hash trees that
// contradict themselves; folder entries that lead nowhere, files without a name, wrong link counts; copies of the
// superblock and the descriptors that are of another filesystem; a journal or an orphan list that is not empty. It
// does not read contents, nor does it count quota.
//
// The error is not about the filesystem's state: it is ctx's, or matches [ErrUnsupported] where the filesystem has a
// feature (bigalloc, shared_blocks) with which Check cannot account for blocks. Check needs one bit of memory for each
// block of a group in use, seven bytes for each inode that may be in use, and some hundred for each folder and each
// attribute block.
func (f *FS) Check(ctx context.Context, fault func(error)) error {
	if f.w != nil {
		return errors.New("ext4: Check of a filesystem that is being written")
	}
	if bad := f.ro & (roBigalloc | roSharedBlocks); bad != 0 {
		return unsupported("checking a filesystem with %s", featureNames(bad, roNames, "ro_compat")[0])
	}
	c := &checker{FS: f, ctx: ctx, fault: fault, in: make([]checkGroup, f.groups), table: f.descTable(),
		attrs: map[int64]*sharedAttrs{}, values: map[uint32]uint32{}, owned: map[uint32]string{}, seen: map[uint32]uint32{}}
	c.super()
	for _, step := range []func(g uint32) error{c.meta, c.inodesOf, c.foldersOf, c.closeGroup} {
		for g := range f.groups {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := step(g); err != nil {
				fault(err)
			}
		}
	}
	c.shared()
	c.counters()
	c.backups()
	return ctx.Err()
}

type checker struct {
	*FS
	ctx   context.Context
	fault func(error)
	in    []checkGroup
	table descTable
	meter int // reads since ctx was asked

	attrs  map[int64]*sharedAttrs
	values map[uint32]uint32 // by inode that holds an attribute's value: how many attributes name it
	owned  map[uint32]string // inodes that no folder leads to, and what they are
	seen   map[uint32]uint32 // folders from which the way to the root was followed, and from where first

	freeBlocks, freeInodes int64
	named, dirBlocks       int64 // blocks that block maps, and those of folders, have named so far
}

type checkGroup struct {
	used    []uint64 // a bit for each block in use; nil while none is
	kinds   []uint8  // mode>>12 of the inodes in use
	nlink   []uint16 // what inodes say
	links   []uint32 // what folders say: names, and for a folder its subfolders
	inodes  int64    // in use
	folders uint32
	// Of folders: what has an entry for them, and what they say.
	parents, says map[uint32]uint32
	lost          bool // something of the group could not be read: what it uses is not known
}

const valueInode = "an attribute's value"

// sharedAttrs is an attribute block and what is known of it.
type sharedAttrs struct {
	users, says uint32
	blocks      int64 // that its values take in inodes of their own
}

func (c *checker) bad(format string, a ...any) { c.fault(corrupt(format, a...)) }

// badInode reports an error that need not name the inode.
func (c *checker) badInode(ino uint32, err error) {
	if !strings.Contains(err.Error(), fmt.Sprintf("inode %d", ino)) {
		err = fmt.Errorf("inode %d: %w", ino, err)
	}
	c.fault(err)
}

// stop asks ctx now and then.
func (c *checker) stop() error {
	if c.meter++; c.meter%256 == 0 {
		return c.ctx.Err()
	}
	return nil
}

// mark notes blocks as in use. It reports whether all of them were free, and says of the others that they are what.
func (c *checker) mark(at, n int64, what string, ino uint32) bool {
	clash, first := int64(0), int64(0)
	for end := at + n; at < end; {
		g := (at - c.first) / c.bpg
		start := c.groupStart(uint32(g))
		stop := min(end, start+c.bpg)
		k := &c.in[g]
		if k.used == nil {
			k.used = make([]uint64, (c.bpg+63)/64)
		}
		for i := at - start; i < stop-start; {
			w, bit := i/64, i%64
			n := min(64-bit, stop-start-i)
			mask := (^uint64(0) >> (64 - n)) << bit
			if twice := k.used[w] & mask; twice != 0 {
				if clash == 0 {
					first = start + w*64 + int64(bits.TrailingZeros64(twice))
				}
				clash += int64(bits.OnesCount64(twice))
			}
			k.used[w] |= mask
			i += n
		}
		at = stop
	}
	if clash == 0 {
		return true
	}
	if ino != 0 {
		what = fmt.Sprintf("%s of inode %d", what, ino)
	}
	c.bad("block %d is in use twice, as %s (%d blocks in all)", first, what, clash)
	return false
}

// super checks what the superblock says of the filesystem's state.
func (c *checker) super() {
	sb := c.sb[:]
	switch state := le.Uint16(sb[sbState:]); {
	case state&stateError != 0:
		c.bad("superblock: errors were recorded (state %#x)", state)
	case state&stateValid == 0:
		c.bad("superblock: not unmounted (state %#x)", state)
	}
	if o := le.Uint32(sb[sbLastOrphan:]); o != 0 {
		c.bad("superblock: the list of orphans begins with inode %d", o)
	}
	if c.ro&roOrphanPresent != 0 {
		c.bad("superblock: there are orphans (orphan_present)")
	}
	if bad := c.compat &^ compatKnown; bad != 0 {
		c.bad("superblock: it has unknown features (%s)", strings.Join(featureNames(bad, compatNames, "compat"), " "))
	}
	if le.Uint32(sb[sbJournalDev:]) == 0 && !zero(sb[sbJournalUUID:sbJournalUUID+16]) {
		c.bad("superblock: its journal is %x on another device, and on none", sb[sbJournalUUID:sbJournalUUID+16])
	}
	if bad := c.ro &^ (roWrite | roQuota | roReadonly | roOrphanPresent); bad != 0 {
		c.bad("superblock: it has unknown features (%s)", strings.Join(featureNames(bad, roNames, "ro_compat"), " "))
	}
	if n := le.Uint32(sb[sbFirstInode:]); le.Uint32(sb[sbRevLevel:]) > 0 && (n < 11 || n > c.inodes) {
		c.bad("superblock: the first inode of files is %d", n)
	}
	for _, s := range []struct {
		set  bool
		at   int
		what string
	}{
		{c.compat&compatHasJournal != 0 && le.Uint32(sb[sbJournalDev:]) == 0, sbJournalInode, "the journal"},
		{c.ro&roQuota != 0, sbUserQuota, "the quota of users"},
		{c.ro&roQuota != 0, sbGroupQuota, "the quota of groups"},
		{c.ro&roQuota != 0, sbProjectQuota, "the quota of projects"},
		{c.compat&compatOrphanFile != 0, sbOrphanFile, "the orphan file"},
	} {
		ino := le.Uint32(sb[s.at:])
		switch {
		case !s.set && ino != 0 && s.at != sbOrphanFile:
			c.bad("superblock: %s is inode %d, and the filesystem has none", s.what, ino)
		case !s.set || ino == 0 && s.at != sbOrphanFile && s.at != sbJournalInode:
		case ino == 0 || ino > c.inodes || ino == rootInode:
			c.bad("superblock: %s is inode %d", s.what, ino)
		default:
			c.owned[ino] = s.what
		}
	}
	if c.compat&compatResizeInode != 0 {
		c.owned[resizeInode] = "the resize inode"
	}
}

// meta marks what group g's own structures take.
func (c *checker) meta(g uint32) error {
	switch flags, unused := le.Uint16(c.desc(g)[gdFlags:]), c.descCount(g, gdItableUnusedLo, gdItableUnusedHi); {
	case !c.groupCsum && (flags&(bgInodeUninit|bgBlockUninit) != 0 || unused != 0):
		c.bad("group %d: its descriptor has flags %#x and %d unused inodes without checksums", g, flags, unused)
	case c.groupCsum && unused > c.ipg:
		c.bad("group %d: %d of its %d inodes are unused", g, unused, c.ipg)
	}
	if start, end := c.groupStart(g), c.groupStart(g)+c.groupLen(g); c.incompat&incompatFlexBG == 0 {
		for _, m := range [][2]int64{
			{c.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1},
			{c.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1},
			{c.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), c.itableBlocks()},
		} {
			if m[0] < start || m[0]+m[1] > end {
				c.bad("group %d: its descriptor leads to block %d, outside the group", g, m[0])
			}
		}
	}
	c.mark(c.groupStart(g), min(c.baseMetaIn(g, c.table), c.groupLen(g)), fmt.Sprintf("the superblock and descriptors of group %d", g), 0)
	c.mark(c.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1, fmt.Sprintf("the block bitmap of group %d", g), 0)
	c.mark(c.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1, fmt.Sprintf("the inode bitmap of group %d", g), 0)
	c.mark(c.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), c.itableBlocks(), fmt.Sprintf("the inode table of group %d", g), 0)
	if g == 0 && c.incompat&incompatMMP != 0 {
		return c.mmp()
	}
	return nil
}

// mmp checks the block of multiple mount protection.
func (c *checker) mmp() error {
	n := int64(le.Uint64(c.sb[sbMMPBlock:]))
	if n == 0 {
		return nil
	}
	if n <= c.FS.first || n >= c.blocks {
		return corrupt("superblock: the mmp block is block %d of %d", n, c.blocks)
	}
	c.mark(n, 1, "the mmp block", 0)
	b := make([]byte, c.bs)
	if err := c.readBlock(n, b); err != nil {
		return err
	}
	switch seq := le.Uint32(b[4:]); {
	case le.Uint32(b) != mmpMagic:
		return corrupt("the mmp block has magic %#x", le.Uint32(b))
	case seq != mmpClean:
		return corrupt("the filesystem is in use (mmp sequence %#x)", seq)
	case c.metaCsum && crc32c(c.seed, b[:mmpChecksum]) != le.Uint32(b[mmpChecksum:]):
		return corrupt("the mmp block has a wrong checksum")
	}
	return nil
}

// closeGroup compares group g's bitmaps and counts with what was found.
func (c *checker) closeGroup(g uint32) error {
	k := &c.in[g]
	b := make([]byte, c.bs)
	c.freeBlocks += int64(c.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi))
	c.freeInodes += int64(c.descCount(g, gdFreeInodesLo, gdFreeInodesHi))
	if err := c.blockBits(g, b); err != nil {
		c.fault(err)
	}
	c.linkCounts(g)
	if want := int64(c.ipg) - k.inodes; int64(c.descCount(g, gdFreeInodesLo, gdFreeInodesHi)) != want {
		c.bad("group %d: %d inodes are free, its descriptor says %d", g, want, c.descCount(g, gdFreeInodesLo, gdFreeInodesHi))
	}
	if d := c.descCount(g, gdUsedDirsLo, gdUsedDirsHi); d != k.folders {
		c.bad("group %d: it has %d folders, its descriptor says %d", g, k.folders, d)
	}
	return nil
}

// blockBits compares group g's block bitmap with the blocks in use.
func (c *checker) blockBits(g uint32, b []byte) error {
	k, start, n := &c.in[g], c.groupStart(g), c.groupLen(g)
	if k.used == nil {
		k.used = make([]uint64, (c.bpg+63)/64)
	}
	used := int64(0)
	for _, w := range k.used {
		used += int64(bits.OnesCount64(w))
	}
	if free, says := n-used, int64(c.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi)); free != says {
		c.bad("group %d: %d blocks are free, its descriptor says %d", g, free, says)
	}
	if c.descFlag(g, bgBlockUninit) {
		// The bitmap is what the group's own structures take.
		own, count := c.ownBits(g), int64(0)
		first := int64(-1)
		for i, w := range k.used {
			if more := w &^ own[i]; more != 0 {
				if count += int64(bits.OnesCount64(more)); first < 0 {
					first = start + int64(i)*64 + int64(bits.TrailingZeros64(more))
				}
			}
		}
		if count > 0 {
			return corrupt("group %d: block %d is in use, but the group is marked as never used (%d blocks in all)", g, first, count)
		}
		return nil
	}
	if err := c.readBlock(c.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), b); err != nil {
		return fmt.Errorf("block bitmap of group %d: %w", g, err)
	}
	if err := c.checkBitmap(g, "block", b[:c.bpg/8], gdBlockCsumLo, gdBlockCsumHi); err != nil {
		c.fault(err)
	}
	if at := nextBit(b, n, 8*c.bs, false); at != 8*c.bs {
		c.bad("group %d: its block bitmap has bits for blocks that do not exist", g)
	}
	var lost, free, firstLost, firstFree int64
	for i, w := range k.used {
		on := wordAt(b, int64(i))
		if rest := n - int64(i)*64; rest < 64 {
			if rest <= 0 {
				break
			}
			on &= 1<<rest - 1
		}
		at := func(v uint64) int64 { return start + int64(i)*64 + int64(bits.TrailingZeros64(v)) }
		if d := on &^ w; d != 0 {
			if lost == 0 {
				firstLost = at(d)
			}
			lost += int64(bits.OnesCount64(d))
		}
		if d := w &^ on; d != 0 {
			if free == 0 {
				firstFree = at(d)
			}
			free += int64(bits.OnesCount64(d))
		}
	}
	if free > 0 {
		c.bad("group %d: block %d is in use but free in the bitmap (%d blocks in all)", g, firstFree, free)
	}
	if lost > 0 {
		c.bad("group %d: block %d is taken in the bitmap but not in use (%d blocks in all)", g, firstLost, lost)
	}
	return nil
}

// ownBits are the blocks of group g that a bitmap has that was never written.
func (c *checker) ownBits(g uint32) []uint64 {
	out := make([]uint64, (c.bpg+63)/64)
	start, end := c.groupStart(g), c.groupStart(g)+c.groupLen(g)
	mark := func(at, n int64) {
		for b := max(at, start); b < min(at+n, end); b++ {
			out[(b-start)/64] |= 1 << ((b - start) % 64)
		}
	}
	mark(start, c.baseMetaIn(g, c.table))
	mark(c.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1)
	mark(c.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1)
	mark(c.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), c.itableBlocks())
	return out
}

// shared compares how often attribute blocks and value inodes are used with what they say.
func (c *checker) shared() {
	blocks := make([]int64, 0, len(c.attrs))
	for at := range c.attrs {
		blocks = append(blocks, at)
	}
	slices.Sort(blocks)
	for _, at := range blocks {
		if a := c.attrs[at]; a.users != a.says {
			c.bad("attribute block %d: %d inodes use it, it says %d", at, a.users, a.says)
		}
	}
	inodes := make([]uint32, 0, len(c.values))
	for ino := range c.values {
		inodes = append(inodes, ino)
	}
	slices.Sort(inodes)
	for _, ino := range inodes {
		raw, err := c.inode(ino)
		if err != nil {
			c.badInode(ino, err)
			continue
		}
		// The number of users is where other inodes have their change time and version.
		says := uint64(le.Uint32(raw[inCtime:]))<<32 | uint64(le.Uint32(raw[inVersionLo:]))
		if says != uint64(c.values[ino]) {
			c.bad("inode %d: %d attributes have their value in it, it says %d", ino, c.values[ino], says)
		}
	}
}

func (c *checker) counters() {
	blocks := int64(le.Uint32(c.sb[sbFreeBlocksLo:])) | c.hi32(sbFreeBlocksHi)<<32
	inodes := int64(le.Uint32(c.sb[sbFreeInodes:]))
	if blocks != c.freeBlocks || inodes != c.freeInodes {
		c.bad("superblock: %d free blocks and %d free inodes, the groups have %d and %d", blocks, inodes, c.freeBlocks, c.freeInodes)
	}
	owned := make([]uint32, 0, len(c.owned))
	for ino := range c.owned {
		owned = append(owned, ino)
	}
	slices.Sort(owned)
	for _, ino := range owned {
		if ino == resizeInode && c.table.reserved == 0 {
			continue
		}
		if k := c.in[(ino-1)/c.ipg].kinds; c.owned[ino] != valueInode && ((ino-1)%c.ipg >= uint32(len(k)) || k[(ino-1)%c.ipg] == 0) {
			c.bad("superblock: %s is inode %d, which is free", c.owned[ino], ino)
		}
	}
	if r := c.reserved(); r < 0 || r > c.blocks/2 {
		c.bad("superblock: %d of %d blocks are reserved", r, c.blocks)
	}
}

// backups compares the copies of the superblock and the descriptors with the first ones, in what never changes.
func (c *checker) backups() {
	b := make([]byte, max(c.bs, superSize))
	for g := uint32(1); g < c.groups; g++ {
		if !c.hasSuperIn(g, c.table.copies) {
			continue
		}
		at := c.groupStart(g)
		if err := c.readBlock(at, b[:c.bs]); err != nil {
			c.fault(fmt.Errorf("copy of the superblock in group %d: %w", g, err))
			continue
		}
		if err := c.copyOfSuper(b[:superSize], g); err != nil {
			c.fault(err)
			continue
		}
		if c.table.meta {
			continue // the descriptors' copies are in the groups that they describe
		}
		for i := range c.table.blocks {
			if err := c.stop(); err != nil {
				return
			}
			if err := c.readBlock(at+1+int64(i), b[:c.bs]); err != nil {
				c.fault(fmt.Errorf("copy of descriptors in group %d: %w", g, err))
				break
			}
			if err := c.copyOfDescs(b[:c.bs], i, g); err != nil {
				c.fault(err)
				break
			}
		}
	}
	if !c.table.meta {
		return
	}
	per := c.descPerBlock()
	for i := c.table.firstMeta; i < c.table.blocks; i++ {
		for _, g := range []uint32{i*per + 1, i*per + per - 1} {
			if g >= c.groups {
				continue
			}
			at := c.groupStart(g)
			if c.hasSuperIn(g, c.table.copies) {
				at++
			}
			if err := c.readBlock(at, b[:c.bs]); err != nil {
				c.fault(fmt.Errorf("copy of descriptors in group %d: %w", g, err))
			} else if err := c.copyOfDescs(b[:c.bs], i, g); err != nil {
				c.fault(err)
			}
		}
	}
}

func (c *checker) copyOfSuper(b []byte, g uint32) error {
	if c.metaCsum && crc32c(^uint32(0), b[:sbChecksum]) != le.Uint32(b[sbChecksum:]) {
		return corrupt("copy of the superblock in group %d has a wrong checksum", g)
	}
	for _, r := range []struct {
		what    string
		at, end int
	}{
		{"inodes", sbInodesCount, sbInodesCount + 4},
		{"blocks", sbBlocksLo, sbBlocksLo + 4},
		{"first block", sbFirstDataBlock, sbFirstDataBlock + 4},
		{"geometry", sbLogBlockSize, sbInodesPerGroup + 4},
		{"magic", sbMagic, sbMagic + 2},
		{"revision", sbRevLevel, sbRevLevel + 4},
		{"inode size", sbInodeSize, sbInodeSize + 2},
		{"UUID", sbUUID, sbUUID + 16},
		{"descriptor size", sbDescSize, sbDescSize + 2},
	} {
		if !bytes.Equal(b[r.at:r.end], c.sb[r.at:r.end]) {
			return corrupt("copy of the superblock in group %d has another %s: %x, not %x", g, r.what, b[r.at:r.end], c.sb[r.at:r.end])
		}
	}
	return nil
}

// copyOfDescs checks a copy of the i-th block of descriptors: counts in it are as old as it is, places are not.
func (c *checker) copyOfDescs(b []byte, i, in uint32) error {
	for k := range c.descPerBlock() {
		g := i*c.descPerBlock() + k
		if g >= c.groups {
			break
		}
		d, is := b[k*uint32(c.dsize):(k+1)*uint32(c.dsize)], c.desc(g)
		if !bytes.Equal(d[:gdFreeBlocksLo], is[:gdFreeBlocksLo]) || c.dsize >= 64 && !bytes.Equal(d[gdBlockBitmapHi:gdFreeBlocksHi], is[gdBlockBitmapHi:gdFreeBlocksHi]) {
			return corrupt("copy of the descriptor of group %d in group %d says that its bitmaps and inode table are elsewhere", g, in)
		}
	}
	return nil
}

// region is a part of a buffer that something takes.
type region struct{ at, end int }

// overlap finds two regions that share bytes.
func overlap(rs []region) bool {
	slices.SortFunc(rs, func(a, b region) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(rs); i++ {
		if rs[i].at < rs[i-1].end {
			return true
		}
	}
	return false
}
