package xfs

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// What the kernel's verifiers want of index blocks, and a reader that goes through all of them can do without: links
// between neighbours, the keys by which one descends, order, and counts of what is free or stale.

// level follows the blocks of one level of a tree from left to right.
type level struct {
	last  uint64 // the block before; none at first
	right uint64 // and the neighbour that it names
	begun bool
}

// next takes up a block with the neighbours that it names. none stands for no neighbour.
func (l *level) next(at, left, right, none uint64) bool {
	ok := !l.begun && left == none || l.begun && left == l.last && l.right == at
	l.last, l.right, l.begun = at, right, true
	return ok
}

// neighbours checks the links and the keys of one of a group's trees, which scanTree has found whole.
func (c *checker) neighbours(k *btKind, ag, root uint32, levels int) error {
	_, nodeCap := k.caps(c.sb.blockSize)
	hdr := k.hdr()
	rows := make([]level, levels)
	var walk func(b uint32, at int) (key []byte, err error)
	walk = func(b uint32, at int) ([]byte, error) {
		buf := make([]byte, c.sb.blockSize)
		if err := c.readAt(buf, c.sb.off(c.sb.fsb(ag, b))); err != nil {
			return nil, err
		}
		if !rows[at].next(uint64(b), uint64(be.Uint32(buf[btShLeft:])), uint64(be.Uint32(buf[btShRight:])), nullAgBlock) {
			c.bad("group %d: %s block %d is not linked to its neighbours", ag, k.name, b)
		}
		n := int(be.Uint16(buf[btNumRecs:]))
		if n == 0 {
			return nil, nil
		}
		if at == 0 {
			return treeKey(k, buf[hdr:]), nil
		}
		for i := range n {
			key := buf[hdr+i*k.key:][:k.key]
			first, err := walk(be.Uint32(buf[hdr+nodeCap*k.key+i*4:]), at-1)
			if err != nil {
				return nil, err
			}
			if first != nil && !slices.Equal(first, key[:len(first)]) {
				c.bad("group %d: %s block %d: key %d is not that of the block below", ag, k.name, b, i)
			}
		}
		return slices.Clone(buf[hdr:][:len(treeKey(k, make([]byte, k.rec)))]), nil
	}
	if _, err := walk(root, levels-1); err != nil {
		return err
	}
	for _, r := range rows {
		if r.begun && r.right != nullAgBlock {
			c.bad("group %d: %s block %d has a neighbour %d that is not in the tree", ag, k.name, r.last, r.right)
		}
	}
	return nil
}

// treeKey is the part of a record by which one descends to it: of the reverse map, where the block's owner follows
// its length in a record, the block alone.
func treeKey(k *btKind, rec []byte) []byte {
	if k == rmapKind {
		return slices.Clone(rec[:4])
	}
	return slices.Clone(rec[:k.key])
}

// sameCounts says whether the counts in a record of a tree of inodes are those of its bits.
func (c *checker) sameCounts(b []byte, k *chunkRec) bool {
	free := uint32(bits.OnesCount64(k.free &^ k.holeBits()))
	if c.sb.inc&incSpinodes == 0 {
		return be.Uint32(b) == free
	}
	return be.Uint16(b) == k.holes && uint32(b[2]) == uint32(inodesPerRec-bits.OnesCount64(k.holeBits())) && uint32(b[3]) == free
}

// mapLinks checks the links and the keys of a fork's extent tree, which extents has found whole. The kernel reads the
// extents from neighbour to neighbour.
func (c *checker) mapLinks(k fork) error {
	if k.format() != fmtBtree {
		return nil
	}
	lit := k.bytes()
	depth, n, most := bmdrShape(lit)
	rows := make([]level, depth)
	per := (c.sb.blockSize - btLgHdr) / 16
	var walk func(fsb uint64, at int) (uint64, error)
	walk = func(fsb uint64, at int) (uint64, error) {
		buf := make([]byte, c.sb.blockSize)
		if err := c.readAt(buf, c.sb.off(fsb)); err != nil {
			return 0, err
		}
		if !rows[at].next(fsb, be.Uint64(buf[btLgLeft:]), be.Uint64(buf[btLgRight:]), nullFsBlock) {
			c.bad("inode %d: block %#x of its extent tree is not linked to its neighbours", k.in.ino, fsb)
		}
		n := int(be.Uint16(buf[btNumRecs:]))
		if at == 0 {
			return decodeExtent(buf[btLgHdr:]).off, nil
		}
		for i := range n {
			first, err := walk(be.Uint64(buf[btLgHdr+8*per+8*i:]), at-1)
			if err != nil {
				return 0, err
			}
			if key := be.Uint64(buf[btLgHdr+8*i:]); key != first {
				c.bad("inode %d: block %#x of its extent tree: key %d is not that of the block below", k.in.ino, fsb, i)
			}
		}
		return be.Uint64(buf[btLgHdr:]), nil
	}
	for i := range n {
		first, err := walk(be.Uint64(lit[4+8*most+8*i:]), depth-1)
		if err != nil {
			return err
		}
		if key := be.Uint64(lit[4+8*i:]); key != first {
			c.bad("inode %d: the root of its extent tree: key %d is not that of the block below", k.in.ino, i)
		}
	}
	for _, r := range rows {
		if r.begun && r.right != nullFsBlock {
			c.bad("inode %d: block %#x of its extent tree has a neighbour %#x that is not in the tree", k.in.ino, r.last, r.right)
		}
	}
	return nil
}

// hashTree checks the nodes above the leaves of a folder or of attributes: that their hashes are those of the blocks
// below, in order, and that neighbours are linked. at is the file block of its root, size that of its blocks.
func (c *checker) hashTree(in *inode, exts []extent, at uint64, size int, lastOf func(leaf []byte) (uint32, bool)) error {
	var rows [7]level
	seen := map[uint64]bool{}
	root := 0
	var walk func(blk uint64, want int) (uint32, error)
	walk = func(blk uint64, want int) (uint32, error) {
		buf := make([]byte, size)
		fsb, ok, err := c.readBlocks(exts, blk, buf)
		if err != nil {
			return 0, err
		}
		if !ok || seen[blk] {
			return 0, corrupt("inode %d: index block %#x is not there, or met twice", in.ino, blk)
		}
		seen[blk] = true
		if be.Uint64(buf[daOwner:]) != in.ino || be.Uint64(buf[daBlkno:]) != c.sb.daddr(fsb) {
			return 0, corrupt("inode %d: index block %#x belongs elsewhere", in.ino, fsb)
		}
		if err := c.checkMeta(buf, daCRC, daUUID, fsb); err != nil {
			return 0, err
		}
		row := 0
		if be.Uint16(buf[daMagic:]) == daNodeMagic {
			row = int(be.Uint16(buf[daLevel:]))
			if row == 0 || row > 5 {
				return 0, corrupt("inode %d: index block %#x of level %d", in.ino, blk, row)
			}
		}
		if want >= 0 && row != want {
			return 0, corrupt("inode %d: index block %#x is of level %d, not %d", in.ino, blk, row, want)
		}
		if want < 0 {
			root = row
		}
		if !rows[row].next(blk, uint64(be.Uint32(buf[daBack:])), uint64(be.Uint32(buf[daForw:])), 0) {
			c.bad("inode %d: index block %#x is not linked to its neighbours", in.ino, blk)
		}
		if row == 0 {
			last, ok := lastOf(buf)
			if !ok {
				return 0, corrupt("inode %d: index block %#x is no leaf", in.ino, blk)
			}
			return last, nil
		}
		n := int(be.Uint16(buf[daCount:]))
		if n == 0 || n > (size-daHdr)/8 {
			return 0, corrupt("inode %d: index block %#x of %d entries", in.ino, blk, n)
		}
		hash := uint32(0)
		for i := range n {
			last, err := walk(uint64(be.Uint32(buf[daHdr+8*i+4:])), row-1)
			if err != nil {
				return 0, err
			}
			hash = be.Uint32(buf[daHdr+8*i:])
			if hash != last {
				c.bad("inode %d: index block %#x: hash %d is %#x, the block below ends with %#x", in.ino, blk, i, hash, last)
			}
		}
		return hash, nil
	}
	if _, err := walk(at, -1); err != nil {
		return err
	}
	for _, r := range rows[:root+1] {
		if r.begun && r.right != 0 {
			c.bad("inode %d: index block %#x has a neighbour %#x that is not in the tree", in.ino, r.last, r.right)
		}
	}
	return nil
}

// leafOrder checks a folder's leaf entries with those that are stale, which have a hash, too.
func (c *checker) leafOrder(ino uint64, ents []byte, stale int) {
	last := uint32(0)
	for ; len(ents) >= 8; ents = ents[8:] {
		h := be.Uint32(ents)
		if h < last {
			c.bad("inode %d: its folder index is out of order", ino)
		}
		last = h
		if be.Uint32(ents[4:]) == 0 {
			stale--
		}
	}
	if stale != 0 {
		c.bad("inode %d: a block of its folder index has %d stale entries more than it says", ino, -stale)
	}
}

// superCopies compares the copies of the superblock with the first in what says how all is laid out, and which nothing
// changes but who writes all copies.
func (c *checker) superCopies() {
	b := make([]byte, c.sb.sectSize)
	for ag := uint32(1); ag < c.sb.agCount; ag++ {
		if err := c.readAt(b, c.sb.off(c.sb.fsb(ag, 0))); err != nil {
			c.fault(wrap(err, "reading the copy of the superblock in group %d", ag))
			return
		}
		if got, want := binary.LittleEndian.Uint32(b[sbCRC:]), crcOf(b, sbCRC); got != want {
			c.bad("copy of the superblock in group %d: checksum %#08x, computed %#08x", ag, got, want)
			continue
		}
		for _, r := range [][2]int{{0, 8}, {16, 56}, {80, 88}, {96, 100}, {102, 108}, {120, 126}, {180, 184}, {192, 200}} {
			if !slices.Equal(b[r[0]:r[1]], c.sb.raw[r[0]:r[1]]) {
				c.bad("copy of the superblock in group %d: bytes %d to %d are %x, in the first %x", ag, r[0], r[1]-1, b[r[0]:r[1]], c.sb.raw[r[0]:r[1]])
			}
		}
	}
}

// groupTrees checks the links and keys of a group's trees, and the free list's slots.
func (c *checker) groupTrees(g *group) error {
	for _, t := range []struct {
		k           *btKind
		b           []byte
		root, depth int
		is          bool
	}{
		{bnoKind, g.agf, agfBnoRoot, agfBnoLevel, true},
		{cntKind, g.agf, agfCntRoot, agfCntLevel, true},
		{rmapKind, g.agf, agfRmapRoot, agfRmapLevel, c.sb.ro&roRmapbt != 0},
		{refcKind, g.agf, agfRefcRoot, agfRefcLevel, c.sb.ro&roReflink != 0},
		{inoKind, g.agi, agiRoot, agiLevel, true},
		{finoKind, g.agi, agiFreeRoot, agiFreeLevel, c.sb.ro&roFinobt != 0},
	} {
		if !t.is {
			continue
		}
		if err := c.neighbours(t.k, g.no, be.Uint32(t.b[t.root:]), int(be.Uint32(t.b[t.depth:]))); err != nil {
			return err
		}
	}
	b := make([]byte, c.sb.sectSize)
	at := c.sb.off(c.sb.fsb(g.no, 0)) + 3*int64(c.sb.sectSize)
	if err := c.readAt(b, at); err != nil {
		return wrap(err, "reading the free list of group %d", g.no)
	}
	for s := b[agflBno:]; len(s) >= 4; s = s[4:] {
		if n := be.Uint32(s); n != nullAgBlock && n >= g.length {
			c.bad("group %d: its free list has block %d of %d", g.no, n, g.length)
			break
		}
	}
	return nil
}

// folderBlocks checks a folder's data blocks and the tree above its index.
func (c *checker) folderBlocks(in *inode) error {
	exts, err := c.extents(fork{in: in}, nil)
	if err != nil {
		return nil // reported with the fork
	}
	if err := c.dataBlocks(in, exts); err != nil || in.size <= uint64(c.sb.dirBlock) {
		return err
	}
	return c.hashTree(in, exts, uint64(maxDirSpace)>>c.sb.blockLog, c.sb.dirBlock, func(b []byte) (uint32, bool) {
		n := int(be.Uint16(b[daCount:]))
		if m := be.Uint16(b[daMagic:]); m != dirLeaf1 && m != dirLeafN || n > (len(b)-daHdr)/8 {
			return 0, false
		}
		if n == 0 {
			return 0, true
		}
		return be.Uint32(b[daHdr+8*(n-1):]), true
	})
}

// dataBlocks checks the free space in a folder's data blocks, which loadFolderIndex has read.
func (c *checker) dataBlocks(in *inode, exts []extent) error {
	per := uint64(c.sb.dirBlock / c.sb.blockSize)
	buf := make([]byte, c.sb.dirBlock)
	for _, e := range exts {
		for off := e.off; off < e.off+uint64(e.n) && off < uint64(maxDirSpace)>>c.sb.blockLog; off++ {
			if off%per != 0 {
				continue
			}
			fsb, ok, err := c.readBlocks(exts, off, buf)
			if err != nil || !ok {
				return err
			}
			c.dataBlock(in, buf, fsb, off == 0)
		}
	}
	return nil
}

func (c *checker) dataBlock(in *inode, b []byte, fsb uint64, first bool) {
	bad := func(format string, a ...any) {
		c.bad("inode %d: folder block %#x: "+format, append([]any{in.ino, fsb}, a...)...)
	}
	end := len(b)
	if be.Uint32(b) == dirBlkMagic {
		n := int(be.Uint32(b[len(b)-8:]))
		if end = len(b) - 8 - 8*n; n < 0 || end < d3Hdr {
			return // reported before
		}
		c.leafOrder(in.ino, b[end:len(b)-8], int(be.Uint32(b[len(b)-4:])))
	}
	var free [][2]int
	after := false // unused space
	for p := d3Hdr; p+8 <= end; {
		if be.Uint16(b[p:]) == 0xffff {
			n := int(be.Uint16(b[p+2:]))
			if n < 8 || p+n > end {
				return // reported before
			}
			if int(be.Uint16(b[p+n-2:])) != p {
				bad("unused space at %d ends with the tag %d", p, be.Uint16(b[p+n-2:]))
			}
			if after {
				bad("unused space at %d follows unused space", p)
			}
			free, after = append(free, [2]int{p, n}), true
			p += n
			continue
		}
		after = false
		n := int(b[p+8])
		size := c.dirEntSize(n)
		if p+size > end {
			return // reported before
		}
		if first && p == d3Hdr && (string(b[p+9:p+9+n]) != "." || be.Uint64(b[p:]) != in.ino) {
			bad("it does not begin with %q", ".")
		}
		if c.ftypeSize() == 1 && b[p+9+n] > 8 {
			bad("entry at %d has file type %d", p, b[p+9+n])
		}
		p += size
	}
	last := 1 << 16
	listed := 0
	for i := range 3 {
		at, n := int(be.Uint16(b[d3BestFree+4*i:])), int(be.Uint16(b[d3BestFree+4*i+2:]))
		switch {
		case n > last, n == 0 && at != 0, n > 0 && !slices.Contains(free, [2]int{at, n}):
			bad("its header lists %d free bytes at %d", n, at)
		case n > 0:
			listed++
		}
		last = n
	}
	for _, f := range free {
		if f[1] > last && listed == 3 {
			n := 0
			for i := range 3 {
				if int(be.Uint16(b[d3BestFree+4*i:])) == f[0] {
					n++
				}
			}
			if n == 0 {
				bad("its header does not list the %d free bytes at %d", f[1], f[0])
			}
		}
	}
	if listed < 3 && listed != len(free) {
		bad("its header lists %d of %d pieces of unused space", listed, len(free))
	}
}

// attrTree checks the index of an inode's attributes, which readAttrs has read.
func (c *checker) attrTree(in *inode) error {
	if in.aformat == fmtLocal || in.anextents == 0 {
		return nil
	}
	exts, err := c.extents(fork{in, true}, nil)
	if err != nil {
		return nil // reported with the fork
	}
	return c.hashTree(in, exts, 0, c.sb.blockSize, func(b []byte) (uint32, bool) {
		n := int(be.Uint16(b[daCount:]))
		if be.Uint16(b[daMagic:]) != attrLeaf || n > (len(b)-alHdr)/8 {
			return 0, false
		}
		last, used := uint32(0), make([][2]int, 0, n)
		for i := range n {
			e := b[alHdr+8*i:]
			h := be.Uint32(e)
			if h < last {
				c.bad("inode %d: its attributes are out of order", in.ino)
			}
			last = h
			at, flags := int(be.Uint16(e[4:])), e[6]
			if flags&attrIncomplete != 0 {
				c.bad("inode %d: attribute %d is not complete", in.ino, i)
			}
			if at+9 > len(b) {
				continue // reported before
			}
			nameAt, nl := at+3, int(b[at+2])
			size := 3 + nl + int(be.Uint16(b[at:]))
			if flags&attrLocal == 0 {
				nameAt, nl = at+9, int(b[at+8])
				size = 9 + nl
			}
			used = append(used, [2]int{at, at + size})
			if flags&attrParent != 0 {
				continue
			}
			if nameAt+nl <= len(b) && hashName(b[nameAt:nameAt+nl]) != h {
				c.bad("inode %d: attribute %q has the hash %#x and cannot be found by its name", in.ino, b[nameAt:nameAt+nl], h)
			}
		}
		slices.SortFunc(used, func(a, b [2]int) int { return a[0] - b[0] })
		for i := 1; i < len(used); i++ {
			if used[i][0] < used[i-1][1] {
				c.bad("inode %d: two attributes share bytes", in.ino)
			}
		}
		for m := alFreeMap; m < alHdr-4; m += 4 {
			if at, n := int(be.Uint16(b[m:])), int(be.Uint16(b[m+2:])); at&3 != 0 || n&3 != 0 || at+n > len(b) {
				c.bad("inode %d: the block of its attributes says that %d bytes are free at %d", in.ino, n, at)
			}
		}
		first := int(be.Uint16(b[alFirstUsed:]))
		if first == 0 {
			first = 1 << 16 // in blocks of 64 KiB
		}
		// What was removed may have left a hole before the others.
		if first > len(b) || len(used) > 0 && first > used[0][0] {
			c.bad("inode %d: its attributes begin before byte %d of their block", in.ino, first)
		}
		return last, true
	})
}

// inodeCore checks what the kernel wants of an inode in use and this package's reader does not need.
func (c *checker) inodeCore(in *inode, raw []byte) {
	if u := be.Uint32(raw[diUnlinked:]); u != nullAgino {
		c.bad("inode %d: it is in a list of removed inodes, before %d", in.ino, u)
	}
	hint := in.flags&(flagExtsize|flagExtszInherit) != 0
	if !hint && in.extsize != 0 || in.flags&flagExtsize != 0 && in.kind() != modeReg || in.flags&flagExtszInherit != 0 && in.kind() != modeDir {
		c.bad("inode %d: an extent size hint of %d with flags %#x and mode %#o", in.ino, in.extsize, in.flags, in.mode)
	}
	if more := in.flags2 &^ (flag2DAX | flag2Reflink | flag2CowExtsize | flag2Bigtime | flag2Nrext64); more != 0 {
		c.bad("inode %d: unknown flags %#x", in.ino, more)
	}
	if in.flags2&flag2CowExtsize == 0 && in.cowExtsize != 0 {
		c.bad("inode %d: an extent size hint of %d for shared blocks with flags %#x", in.ino, in.cowExtsize, in.flags2)
	}
	if k := in.kind(); (k == modeDir || k == modeLnk) && in.size == 0 {
		c.bad("inode %d: mode %#o without a byte", in.ino, in.mode)
	}
	if in.flags2&flag2Reflink != 0 && (c.sb.ro&roReflink == 0 || in.kind() != modeReg) {
		c.bad("inode %d: flags %#x with mode %#o", in.ino, in.flags2, in.mode)
	}
}
