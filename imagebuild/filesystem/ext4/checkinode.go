package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

const checkChunk = 256 << 10 // bytes of an inode table read at once

// inodesOf checks the inodes of group g and marks what they use.
func (c *checker) inodesOf(g uint32) error {
	k := &c.in[g]
	limit := c.itableUsed(g)
	k.parents, k.says = map[uint32]uint32{}, map[uint32]uint32{}
	k.kinds, k.nlink, k.links = make([]uint8, limit), make([]uint16, limit), make([]uint32, limit)
	bits := make([]byte, c.bs)
	if !c.descFlag(g, bgInodeUninit) {
		if err := c.readBlock(c.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), bits); err != nil {
			c.fault(fmt.Errorf("inode bitmap of group %d: %w", g, err))
			bits = nil
		} else {
			if err := c.checkBitmap(g, "inode", bits[:c.ipg/8], gdInodeCsumLo, gdInodeCsumHi); err != nil {
				c.fault(err)
			}
			if at := nextBit(bits, int64(c.ipg), 8*c.bs, false); at != 8*c.bs {
				c.bad("group %d: its inode bitmap has bits for inodes that do not exist", g)
			}
			if at := nextBit(bits, int64(limit), int64(c.ipg), true); at < int64(c.ipg) {
				c.bad("inode %d: taken in the bitmap, but the descriptor of group %d says that it was never used", g*c.ipg+uint32(at)+1, g)
			}
		}
	}
	table := c.descBlockNo(g, gdInodeTableLo, gdInodeTableHi) * c.bs
	var buf []byte
	per := uint32(max(checkChunk, int(c.bs)) / c.isize)
	for i := uint32(0); i < limit; i += per {
		if err := c.ctx.Err(); err != nil {
			return nil
		}
		n := min(per, limit-i)
		if buf == nil {
			buf = make([]byte, int(n)*c.isize)
		}
		part := buf[:int(n)*c.isize]
		if _, err := c.dev.ReadAt(part, table+int64(i)*int64(c.isize)); err != nil {
			k.lost = true
			return fmt.Errorf("reading the inode table of group %d: %w", g, noEOF(err))
		}
		for j := range n {
			raw := part[int(j)*c.isize : int(j+1)*c.isize]
			ino := g*c.ipg + i + j + 1
			used := c.checkInode(ino, raw, k, i+j)
			if used {
				k.inodes++
			}
			if bits != nil && used != testBit(bits, int64(i+j)) {
				is, says := "in use", "free"
				if !used {
					is, says = says, is
				}
				c.bad("inode %d: %s, but %s in the bitmap of group %d", ino, is, says, g)
			}
		}
	}
	return nil
}

// checkInode checks one inode, the place-th of its group, and says whether it is in use.
func (c *checker) checkInode(ino uint32, raw []byte, k *checkGroup, place uint32) bool {
	mode, links := le.Uint16(raw[inMode:]), le.Uint16(raw[inLinks:])
	reserved := ino < c.firstInode() && ino != rootInode
	if ino == badBlocksInode {
		c.badBlocks(raw)
	}
	if links == 0 && (!reserved || mode == 0) || ino == badBlocksInode {
		if !c.inodeSumOK(ino, raw) && !zero(raw) {
			c.bad("inode %d: free, and has a wrong checksum", ino)
		}
		if mode != 0 && le.Uint32(raw[inDtime:]) == 0 && !reserved {
			c.bad("inode %d: free, and has no time of deletion", ino)
		}
		return reserved || ino == rootInode
	}
	if !c.inodeSumOK(ino, raw) {
		c.bad("inode %d has a wrong checksum", ino)
	}
	odd := false
	if c.isize > oldInodeSize {
		if x := int(le.Uint16(raw[inExtraIsize:])); oldInodeSize+x > c.isize || x%4 != 0 {
			c.bad("inode %d has an extra size of %d", ino, x)
			odd = true // where attributes begin is not known
		}
	}
	if c.ro&roHugeFile == 0 && le.Uint16(raw[inBlocksHi:]) != 0 || c.incompat&incompat64Bit == 0 && le.Uint16(raw[inACLHi:]) != 0 {
		c.bad("inode %d: the high halves of its block counts are %d and %d, and the filesystem has none", ino, le.Uint16(raw[inBlocksHi:]), le.Uint16(raw[inACLHi:]))
	}
	if v := le.Uint32(raw[inFragment:]); v != 0 && !reserved {
		c.bad("inode %d: the address of its fragment is %d", ino, v)
	}
	if le.Uint32(raw[inDtime:]) != 0 {
		c.bad("inode %d: in use, and has a time of deletion", ino)
	}
	flags, kind := inodeFlags(raw), inodeType(raw)
	k.kinds[place], k.nlink[place] = uint8(kind>>12), links
	if kind == modeDir {
		k.folders++
	}
	switch {
	case reserved:
	case flags&flagExtents != 0 && c.incompat&incompatExtents == 0,
		flags&flagInlineData != 0 && c.incompat&incompatInlineData == 0,
		flags&flagIndex != 0 && (kind != modeDir || c.compat&compatDirIndex == 0),
		flags&flagHugeFile != 0 && c.ro&roHugeFile == 0,
		flags&flagEAInode != 0 && c.incompat&incompatEAInode == 0,
		flags&flagEncrypt != 0 && c.incompat&incompatEncrypt == 0,
		flags&flagVerity != 0 && c.ro&roVerity == 0,
		flags&flagCasefold != 0 && (kind != modeDir || c.incompat&incompatCasefold == 0):
		c.bad("inode %d: its flags %#x do not fit mode %#o and the filesystem's features", ino, flags, mode)
	}
	if flags&flagEAInode != 0 && kind == modeReg {
		c.owned[ino] = valueInode
	}
	size := inodeSize(raw)
	if size < 0 {
		c.bad("inode %d has a negative size", ino)
		return true
	}
	if ino == resizeInode && c.compat&compatResizeInode != 0 {
		if err := c.checkResizeInode(raw); err != nil {
			c.badInode(ino, err)
		}
		return true
	}
	var extra int64
	var err error
	if !odd {
		if extra, err = c.checkXattrs(ino, raw); err != nil {
			c.badInode(ino, err)
		}
	}
	var blocks int64
	switch kind {
	case modeReg, modeDir, modeLink:
		if flags&flagInlineData != 0 {
			if size > c.bs {
				c.bad("inode %d holds %d bytes inline", ino, size)
			} else if _, err := c.inlineData(ino, raw); err != nil {
				c.badInode(ino, err)
			}
		} else if kind != modeLink || !fastLink(raw, size) {
			blocks = c.checkMap(ino, raw, kind, size)
		}
	case modeChar, modeBlk, modeFifo, modeSock:
		if flags&(flagExtents|flagInlineData) != 0 || size != 0 {
			c.bad("inode %d: mode %#o with flags %#x and a size of %d", ino, mode, flags, size)
		}
	default:
		c.bad("inode %d has mode %#o", ino, mode)
		return true
	}
	if kind == modeLink {
		c.checkLink(ino, raw, size)
	}
	if want := (blocks + extra) * (c.bs / 512); blocks >= 0 && err == nil && !odd && c.inodeUnits(raw) != want {
		c.bad("inode %d: uses %d sectors, says %d", ino, want, c.inodeUnits(raw))
	}
	switch c.owned[ino] {
	case "the journal":
		err = c.checkJournal(ino, raw)
	case "the orphan file":
		err = c.checkOrphanFile(ino, raw)
	default:
		err = nil
	}
	if err != nil {
		c.badInode(ino, err)
	}
	return true
}

func zero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

func fastLink(raw []byte, size int64) bool {
	return size < inBlockLen && inodeFlags(raw)&flagExtents == 0
}

// badBlocks marks the blocks that cannot be used.
func (c *checker) badBlocks(raw []byte) {
	if le.Uint16(raw[inMode:]) != 0 || le.Uint16(raw[inUIDLo:]) != 0 || le.Uint16(raw[inGIDLo:]) != 0 || inodeFlags(raw)&flagExtents != 0 || le.Uint32(raw[inACLLo:]) != 0 {
		c.bad("inode %d: the list of bad blocks is no such list", badBlocksInode)
	}
	if zero(raw[inBlock : inBlock+inBlockLen]) {
		return
	}
	err := c.walkIndirect(badBlocksInode, raw, func(e extent) error {
		c.mark(e.phys, int64(e.n), "bad blocks", 0)
		return nil
	}, func(b int64) error {
		c.mark(b, 1, "the list of bad blocks", 0)
		return nil
	})
	if err != nil {
		c.badInode(badBlocksInode, err)
	}
}

// checkMap checks an inode's block map and its size, and marks its blocks, whose number it returns; -1 where the map
// could not be read to its end.
func (c *checker) checkMap(ino uint32, raw []byte, kind uint16, size int64) int64 {
	blocks, last, lastInit := int64(0), int64(-1), int64(-1)
	holes := false
	flags := inodeFlags(raw)
	data := func(e extent) error {
		// Each block that is used twice is a fault; what names all of them again and again is not worth following.
		if c.named += int64(e.n); c.named > 4*c.blocks {
			return corrupt("block maps name more blocks than there are")
		}
		if kind == modeDir && int64(e.log) != last+1 {
			holes = true
		}
		if last = e.end() - 1; !e.unwritten {
			lastInit = last
		} else if kind != modeReg {
			c.bad("inode %d: unwritten blocks from %d on, with mode %#o", ino, e.log, le.Uint16(raw[inMode:]))
		}
		blocks += int64(e.n)
		c.mark(e.phys, int64(e.n), "data", ino)
		return c.stop()
	}
	meta := func(b int64) error {
		blocks++
		if !c.mark(b, 1, "the block map", ino) {
			return corrupt("inode %d: its block map shares block %d", ino, b)
		}
		return c.stop()
	}
	var err error
	if flags&flagExtents != 0 {
		err = c.checkExtents(ino, raw, data, meta)
	} else {
		err = c.walkIndirect(ino, raw, data, meta)
	}
	if err != nil {
		if !errors.Is(err, c.ctx.Err()) {
			c.badInode(ino, err)
		}
		return -1
	}
	switch {
	case kind == modeDir && (holes || last < 0):
		c.bad("inode %d: a folder with a hole", ino)
	case kind == modeDir && size != (last+1)*c.bs:
		c.bad("inode %d: a folder of %d bytes with %d blocks", ino, size, last+1)
	case kind == modeReg && lastInit >= 0 && size < lastInit*c.bs && flags&flagVerity == 0:
		c.bad("inode %d: block %d is past the end of its %d bytes", ino, lastInit, size)
	case kind == modeReg && flags&flagExtents == 0 && size > c.indirectMax(), size > 1<<32*c.bs:
		c.bad("inode %d: %d bytes are more than its block map can hold", ino, size)
	case kind == modeLink && (last != 0 || size == 0 || size >= c.bs):
		c.bad("inode %d: a symbolic link of %d bytes with %d blocks", ino, size, last+1)
	}
	return blocks
}

// indirectMax is the most bytes that an indirect map can hold.
func (c *checker) indirectMax() int64 {
	return (directBlocks + c.indirectSpan(1) + c.indirectSpan(2) + c.indirectSpan(3)) * c.bs
}

// checkExtents is walkMap for extents, and strict about what a reader can do without.
func (c *checker) checkExtents(ino uint32, raw []byte, data func(extent) error, meta func(int64) error) error {
	root, err := c.parseExtNode(ino, raw[inBlock:inBlock+inBlockLen], -1, 0, 1<<32)
	if err != nil {
		return err
	}
	gen := le.Uint32(raw[inGeneration:])
	var walk func(n extNode, hi int64) error
	walk = func(n extNode, hi int64) error {
		if room := int(le.Uint16(n.b[ehMax:])); room < (len(n.b)-extHeader)/extEntry-2 || room == 0 {
			c.bad("inode %d: extent node has room for %d entries in %d bytes", ino, room, len(n.b))
		}
		if n.depth == 0 {
			for i := range n.n {
				if err := data(leafExtent(n.entry(i))); err != nil {
					return err
				}
			}
			return nil
		}
		buf := make([]byte, c.bs)
		for i := range n.n {
			lo, block := n.child(i)
			end := hi
			if i+1 < n.n {
				end, _ = n.child(i + 1)
			}
			k, err := c.extBlock(ino, gen, block, buf, n.depth-1, lo, end)
			if err == nil {
				err = meta(block)
			}
			if err != nil {
				return err
			}
			if first := int64(le.Uint32(k.entry(0))); first != lo {
				c.bad("inode %d: extent node for file block %d begins with %d", ino, lo, first)
			}
			if err := walk(k, end); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(root, 1<<32)
}

func (c *checker) checkLink(ino uint32, raw []byte, size int64) {
	if inodeFlags(raw)&flagEncrypt != 0 {
		return
	}
	target, err := c.readLink(ino, raw)
	switch {
	case err != nil:
		c.badInode(ino, err)
	case target == "":
		c.bad("inode %d: a symbolic link without a target", ino)
	case inodeFlags(raw)&flagInlineData == 0 && fastLink(raw, size) && raw[inBlock+len(target)] != 0,
		inodeFlags(raw)&flagInlineData == 0 && fastLink(raw, size) && bytes.IndexByte(raw[inBlock:inBlock+inBlockLen], 0) != len(target):
		c.bad("inode %d: a symbolic link of %d bytes with a longer target", ino, size)
	}
}

// checkResizeInode checks the map of the blocks that are kept for descriptors to come. The blocks are among those of
// the groups that they are in; what the inode has to itself is the block that its map begins with.
func (c *checker) checkResizeInode(raw []byte) error {
	if inodeType(raw) != modeReg || le.Uint16(raw[inLinks:]) == 0 {
		return corrupt("inode %d: the resize inode has mode %#o and %d links", resizeInode, le.Uint16(raw[inMode:]), le.Uint16(raw[inLinks:]))
	}
	double := int64(le.Uint32(raw[inBlock+4*(directBlocks+1):]))
	for i := range int64(directBlocks + 3) {
		if p := int64(le.Uint32(raw[inBlock+4*i:])); p != 0 && i != directBlocks+1 {
			c.bad("inode %d: the resize inode's map has block %d at %d", resizeInode, p, i)
		}
	}
	if double == 0 {
		if c.table.reserved > 0 {
			return corrupt("inode %d: the resize inode has no map", resizeInode)
		}
		return nil
	}
	if double <= c.FS.first || double >= c.blocks {
		return corrupt("inode %d: the resize inode's map is in block %d of %d", resizeInode, double, c.blocks)
	}
	c.mark(double, 1, "the map of the resize inode", 0)
	if size, block, flags := inodeSize(raw), c.aclBlock(raw), inodeFlags(raw); size > c.indirectMax() || block != 0 || flags&(flagIndex|flagExtents|flagInlineData) != 0 {
		return corrupt("inode %d: the resize inode has %d bytes, the attribute block %d, and flags %#x", resizeInode, size, block, flags)
	}
	var backups []uint32
	for g := uint32(1); g < c.groups; g++ {
		if c.hasSuperIn(g, c.table.copies) {
			backups = append(backups, g)
		}
	}
	b, sub := make([]byte, c.bs), make([]byte, c.bs)
	if err := c.readBlock(double, b); err != nil {
		return err
	}
	per := c.bs / 4
	for i := range int64(c.table.reserved) {
		at := c.descBlock(0) + int64(c.table.blocks) + i
		slot := (int64(c.table.blocks) + i) % per
		if p := int64(le.Uint32(b[4*slot:])); p != at {
			return corrupt("inode %d: the resize inode's map has block %d where %d is kept for descriptors", resizeInode, p, at)
		}
		le.PutUint32(b[4*slot:], 0)
		if err := c.readBlock(at, sub); err != nil {
			return err
		}
		for k, g := range backups {
			if int64(k) >= per {
				break
			}
			if p := int64(le.Uint32(sub[4*k:])); p != at+int64(g)*c.bpg {
				return corrupt("inode %d: the resize inode's map has block %d for a copy in group %d", resizeInode, p, g)
			}
		}
		if n := int64(len(backups)); n < per && !zero(sub[4*n:]) {
			return corrupt("inode %d: block %d of the resize inode's map has entries for groups that do not exist", resizeInode, at)
		}
	}
	if !zero(b) {
		return corrupt("inode %d: the resize inode's map has blocks that are not kept for descriptors", resizeInode)
	}
	units := (1 + int64(c.table.reserved)*int64(1+len(backups))) * (c.bs / 512)
	if c.inodeUnits(raw) != units {
		return corrupt("inode %d: uses %d sectors, says %d", resizeInode, units, c.inodeUnits(raw))
	}
	return nil
}

// checkJournal wants a journal that has nothing to replay.
func (c *checker) checkJournal(ino uint32, raw []byte) error {
	if inodeType(raw) != modeReg || le.Uint16(raw[inLinks:]) == 0 {
		return corrupt("inode %d: the journal has mode %#o", ino, le.Uint16(raw[inMode:]))
	}
	m := newBlockMap(c.FS, ino, raw)
	for log := int64(0); log < (m.size+c.bs-1)/c.bs; {
		phys, n, err := m.find(log)
		if err != nil {
			return nil // reported with its map
		}
		if phys == 0 {
			return corrupt("inode %d: block %d of the journal is a hole", ino, log)
		}
		log += n
	}
	b := make([]byte, journalSuperSize)
	if _, err := m.ReadAt(b, 0); err != nil {
		return corrupt("inode %d: the journal cannot be read: %v", ino, err)
	}
	// The journal's integers are big-endian.
	u32 := func(at int) uint32 {
		return uint32(b[at])<<24 | uint32(b[at+1])<<16 | uint32(b[at+2])<<8 | uint32(b[at+3])
	}
	switch t := u32(jsType); {
	case u32(jsMagic) != journalMagic || t != journalSB1 && t != journalSB2:
		return corrupt("inode %d: the journal has magic %#x and type %d", ino, u32(jsMagic), t)
	case int64(u32(jsBlockSize)) != c.bs:
		return corrupt("inode %d: the journal has blocks of %d bytes", ino, u32(jsBlockSize))
	case int64(u32(jsBlocks)) > (m.size+c.bs-1)/c.bs || u32(jsBlocks) < 2:
		return corrupt("inode %d: the journal claims %d blocks in %d bytes", ino, u32(jsBlocks), m.size)
	case u32(jsStart) != 0:
		return corrupt("inode %d: the journal must be replayed", ino)
	case t == journalSB2 && u32(jsUsers) > 1:
		return corrupt("inode %d: the journal is that of %d filesystems", ino, u32(jsUsers))
	case u32(jsErrno) != 0:
		return corrupt("inode %d: the journal recorded error %d", ino, u32(jsErrno))
	case t == journalSB2 && (u32(jsIncompat)&^journalIncompat != 0 || u32(jsROCompat) != 0):
		return corrupt("inode %d: the journal has unknown features %#x, %#x", ino, u32(jsIncompat), u32(jsROCompat))
	case t == journalSB2 && u32(jsIncompat)&(journalCsumV2|journalCsumV3) != 0:
		is := u32(jsChecksum)
		clear(b[jsChecksum : jsChecksum+4])
		if sum := crc32c(^uint32(0), b); sum != is {
			return corrupt("inode %d: the journal's superblock has a wrong checksum", ino)
		}
	}
	return nil
}

// checkOrphanFile wants an orphan file without orphans.
func (c *checker) checkOrphanFile(ino uint32, raw []byte) error {
	m := newBlockMap(c.FS, ino, raw)
	seed := c.inodeSeed(ino, le.Uint32(raw[inGeneration:]))
	b := make([]byte, c.bs)
	if inodeType(raw) != modeReg || m.size%c.bs != 0 || m.size == 0 || m.size/c.bs > c.blocks {
		return corrupt("inode %d: the orphan file has mode %#o and %d bytes", ino, le.Uint16(raw[inMode:]), m.size)
	}
	for log := range m.size / c.bs {
		if err := c.stop(); err != nil {
			return nil
		}
		phys, _, err := m.find(log)
		if err != nil {
			return err
		}
		if phys == 0 {
			return corrupt("inode %d: the orphan file has a hole", ino)
		}
		if _, err := m.ReadAt(b, log*c.bs); err != nil && err != io.EOF {
			return err
		}
		t := b[len(b)-orphanTail:]
		if le.Uint32(t) != orphanMagic {
			return corrupt("inode %d: block %d of the orphan file has magic %#x", ino, log, le.Uint32(t))
		}
		var no [8]byte
		le.PutUint64(no[:], uint64(phys))
		if c.metaCsum && crc32c(crc32c(seed, no[:]), b[:len(b)-orphanTail]) != le.Uint32(t[4:]) {
			return corrupt("inode %d: block %d of the orphan file has a wrong checksum", ino, log)
		}
		if !zero(b[:len(b)-orphanTail]) {
			return corrupt("inode %d: the orphan file has orphans", ino)
		}
	}
	return nil
}

// checkXattrs checks an inode's attributes, marks their block, and returns how many blocks they take.
func (c *checker) checkXattrs(ino uint32, raw []byte) (blocks int64, err error) {
	if c.isize > oldInodeSize {
		at := oldInodeSize + int(le.Uint16(raw[inExtraIsize:]))
		if at > oldInodeSize && at+4 <= len(raw) {
			if le.Uint32(raw[at:]) == xaMagic {
				if blocks, err = c.checkEntries(raw[at+4:], 0); err != nil {
					return 0, fmt.Errorf("inode %d: %w", ino, err)
				}
			}
		}
	}
	block := c.aclBlock(raw)
	if block == 0 {
		return blocks, nil
	}
	if block <= c.FS.first || block >= c.blocks {
		return 0, corrupt("inode %d: its attribute block is block %d of %d", ino, block, c.blocks)
	}
	blocks++
	a := c.attrs[block]
	if a != nil {
		a.users++
		return blocks + a.blocks, nil
	}
	a = &sharedAttrs{users: 1, says: 1}
	c.attrs[block] = a
	c.mark(block, 1, "attributes", ino)
	b, err := c.xattrBlock(block)
	if err != nil {
		return 0, fmt.Errorf("inode %d: %w", ino, err)
	}
	a.says = le.Uint32(b[xhRefcount:])
	if a.blocks, err = c.checkEntries(b, xaBlockHeader); err != nil {
		return 0, fmt.Errorf("inode %d: attribute block %d: %w", ino, block, err)
	}
	return blocks + a.blocks, nil
}

// checkEntries checks attributes as parseXattrs reads them: their order, names, hashes, and that no two share bytes.
// It returns how many blocks the values take that are in inodes of their own.
func (c *checker) checkEntries(b []byte, first int) (blocks int64, err error) {
	xs, err := c.parseXattrs(nil, b, first)
	if err != nil {
		return 0, err
	}
	regions := make([]region, 0, len(xs)+1)
	at, sum, unhashed := first, uint32(0), false
	for i, x := range xs {
		e := b[at:]
		size, hash := int(le.Uint32(e[xeValueSize:])), le.Uint32(e[xeHash:])
		if x.index == 0 {
			return 0, corrupt("attribute %q has a name of no kind", x.name)
		}
		if x.ino != 0 {
			blocks += (int64(size) + c.bs - 1) / c.bs
			c.values[x.ino]++
			if err := c.checkValue(x); err != nil {
				return 0, err
			}
		} else {
			if size > 0 {
				offs := int(le.Uint16(e[xeValueOffs:]))
				regions = append(regions, region{offs, offs + size})
			}
			if (hash != 0 || first > 0) && hash != x.hash() && hash != x.signedHash() {
				return 0, corrupt("attribute %q has the hash %#x, should be %#x", x.name, hash, x.hash())
			}
		}
		if first > 0 && i > 0 && compareXattrs(xs[i-1], x) >= 0 {
			return 0, corrupt("attribute %q is out of order", x.name)
		}
		sum = sum<<16 ^ sum>>16 ^ hash
		unhashed = unhashed || hash == 0
		at += xattrEntryLen(len(x.name))
	}
	if overlap(append(regions, region{first, at + 4})) {
		return 0, corrupt("two attributes share bytes")
	}
	if unhashed {
		sum = 0
	}
	if first > 0 && len(xs) > 0 && le.Uint32(b[xhHash:]) != sum {
		return 0, corrupt("the attributes have the hash %#x, should be %#x", le.Uint32(b[xhHash:]), sum)
	}
	return blocks, nil
}

// signedHash is hash as old kernels have it on machines with signed characters.
func (x xattr) signedHash() uint32 {
	h := uint32(0)
	for _, ch := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(int32(int8(ch)))
	}
	for v := x.value; len(v) > 0; v = v[min(4, len(v)):] {
		var w [4]byte
		copy(w[:], v)
		h = h<<16 ^ h>>16 ^ le.Uint32(w[:])
	}
	return h
}

// checkValue checks the inode that holds an attribute's value.
func (c *checker) checkValue(x xattr) error {
	raw, err := c.inode(x.ino)
	if err != nil {
		return err
	}
	if sum := crc32c(c.seed, x.value); c.metaCsum && sum != le.Uint32(raw[inodeHashOfValue:]) {
		return corrupt("attribute %q: its value in inode %d has a wrong checksum", x.name, x.ino)
	}
	return nil
}
