package xfs

import (
	"encoding/binary"
	"io"
	"sort"
)

// extent maps n blocks of a fork from file block off to filesystem block start.
type extent struct {
	off, start uint64
	n          uint32
	unwritten  bool
}

func decodeExtent(b []byte) extent {
	l0, l1 := be.Uint64(b), be.Uint64(b[8:])
	return extent{
		unwritten: l0>>63 != 0,
		off:       l0 >> 9 & (1<<54 - 1),
		start:     l0&0x1ff<<43 | l1>>21,
		n:         uint32(l1 & (1<<21 - 1)),
	}
}

func (e extent) encode(b []byte) {
	l0 := e.off<<9 | e.start>>43
	if e.unwritten {
		l0 |= 1 << 63
	}
	be.PutUint64(b, l0)
	be.PutUint64(b[8:], e.start<<21|uint64(e.n))
}

// fork is one of an inode's two block maps.
type fork struct {
	in   *inode
	attr bool
}

func (k fork) format() byte {
	if k.attr {
		return k.in.aformat
	}
	return k.in.format
}

func (k fork) bytes() []byte {
	if k.attr {
		return k.in.attrFork()
	}
	return k.in.dataFork()
}

func (k fork) count() uint64 {
	if k.attr {
		return uint64(k.in.anextents)
	}
	return k.in.nextents
}

// extents lists a fork's extents in file order, checked: inside the filesystem, ascending, not overlapping.
// treeBlocks, when not nil, gets the blocks of the fork's B+tree.
func (fs *FS) extents(k fork, treeBlocks *[]uint64) ([]extent, error) {
	var out []extent
	var total uint64
	name := "data"
	if k.attr {
		name = "attribute"
	}
	add := func(b []byte, n int) error {
		for i := 0; i < n; i++ {
			e := decodeExtent(b[i*16:])
			if e.n == 0 || !fs.validExtent(e) {
				return corrupt("inode %d: %s extent %d maps %d blocks at %#x, outside the filesystem", k.in.ino, name, len(out), e.n, e.start)
			}
			if len(out) > 0 {
				if p := out[len(out)-1]; e.off < p.off+uint64(p.n) {
					return corrupt("inode %d: %s extent %d overlaps the one before", k.in.ino, name, len(out))
				}
			}
			total += uint64(e.n)
			if e.off+uint64(e.n) > maxFileOff || total > k.in.nblocks {
				return corrupt("inode %d: %s extents map more than its %d blocks", k.in.ino, name, k.in.nblocks)
			}
			out = append(out, e)
		}
		return nil
	}
	lit := k.bytes()
	switch k.format() {
	case fmtExtents:
		n := k.count()
		if n > uint64(len(lit)/16) {
			return nil, corrupt("inode %d: %d %s extents in the inode", k.in.ino, n, name)
		}
		if err := add(lit, int(n)); err != nil {
			return nil, err
		}
	case fmtBtree:
		level, n, max := bmdrShape(lit)
		if level == 0 || level > maxBtLevel || n == 0 || n > max {
			return nil, corrupt("inode %d: %s extent tree root of level %d with %d records", k.in.ino, name, level, n)
		}
		seen := map[uint64]bool{}
		var walk func(fsb uint64, level int) error
		walk = func(fsb uint64, level int) error {
			if !fs.validExtent(extent{start: fsb, n: 1}) || seen[fsb] {
				return corrupt("inode %d: %s extent tree block %#x is outside the filesystem or met twice", k.in.ino, name, fsb)
			}
			seen[fsb] = true
			if uint64(len(seen)) > k.in.nblocks {
				return corrupt("inode %d: %s extent tree of more than its %d blocks", k.in.ino, name, k.in.nblocks)
			}
			if treeBlocks != nil {
				*treeBlocks = append(*treeBlocks, fsb)
			}
			buf := make([]byte, fs.sb.blockSize)
			if err := fs.readAt(buf, fs.sb.off(fsb)); err != nil {
				return wrap(err, "inode %d: reading its extent tree", k.in.ino)
			}
			if err := fs.checkLong(buf, fsb, k.in.ino, level); err != nil {
				return err
			}
			max := (len(buf) - btLgHdr) / 16
			n := int(be.Uint16(buf[btNumRecs:]))
			if n == 0 || n > max {
				return corrupt("inode %d: extent tree block %#x has %d records", k.in.ino, fsb, n)
			}
			if level == 0 {
				return add(buf[btLgHdr:], n)
			}
			for i := 0; i < n; i++ {
				if err := walk(be.Uint64(buf[btLgHdr+max*8+i*8:]), level-1); err != nil {
					return err
				}
			}
			return nil
		}
		for i := 0; i < n; i++ {
			if err := walk(be.Uint64(lit[4+max*8+i*8:]), level-1); err != nil {
				return nil, err
			}
		}
	default:
		return nil, nil
	}
	if uint64(len(out)) != k.count() {
		return nil, corrupt("inode %d: %d %s extents, the inode says %d", k.in.ino, len(out), name, k.count())
	}
	return out, nil
}

// bmdrShape reads the header of an extent tree's root in the inode: its level, records, and room for records.
func bmdrShape(lit []byte) (level, n, max int) {
	if len(lit) < 4+16 {
		return 0, 0, 0
	}
	return int(be.Uint16(lit)), int(be.Uint16(lit[2:])), (len(lit) - 4) / 16
}

func (fs *FS) validExtent(e extent) bool {
	if fs.sb.validRun(e.start, uint64(e.n)) {
		return true
	}
	return fs.w != nil && fs.w.isPhantom(e.start)
}

// checkLong verifies the header of a long-form B+tree block.
func (fs *FS) checkLong(b []byte, fsb, owner uint64, level int) error {
	switch {
	case be.Uint32(b) != bmbtMagic:
		return corrupt("block %#x: magic %#x where an extent tree was expected", fsb, be.Uint32(b))
	case int(be.Uint16(b[btLevel:])) != level:
		return corrupt("extent tree block %#x: level %d, expected %d", fsb, be.Uint16(b[btLevel:]), level)
	case be.Uint64(b[btLgBlkno:]) != fs.sb.daddr(fsb):
		return corrupt("extent tree block %#x: says it is elsewhere", fsb)
	case be.Uint64(b[btLgOwner:]) != owner:
		return corrupt("extent tree block %#x: belongs to inode %d, not %d", fsb, be.Uint64(b[btLgOwner:]), owner)
	}
	return fs.checkMeta(b, btLgCRC, btLgUUID, fsb)
}

// checkMeta verifies the checksum and UUID of a metadata block.
func (fs *FS) checkMeta(b []byte, crcOff, uuidOff int, fsb uint64) error {
	if fs.noCRC {
		return nil
	}
	if got, want := binary.LittleEndian.Uint32(b[crcOff:]), crcOf(b, crcOff); got != want {
		return corrupt("block %#x: checksum %#08x, computed %#08x", fsb, got, want)
	}
	if string(b[uuidOff:uuidOff+16]) != string(fs.sb.metaUUID[:]) {
		return corrupt("block %#x: of another filesystem (uuid)", fsb)
	}
	return nil
}

// lookupBlock finds the filesystem block of file block off.
func lookupBlock(exts []extent, off uint64) (fsb uint64, ok bool) {
	i := sort.Search(len(exts), func(i int) bool { return exts[i].off+uint64(exts[i].n) > off })
	if i == len(exts) || exts[i].off > off {
		return 0, false
	}
	return exts[i].start + off - exts[i].off, true
}

// readBlocks reads n mapped file blocks from off into buf, and says where the first lies.
func (fs *FS) readBlocks(exts []extent, off uint64, buf []byte) (first uint64, ok bool, err error) {
	for i := 0; i < len(buf); i += fs.sb.blockSize {
		fsb, mapped := lookupBlock(exts, off)
		if !mapped {
			return 0, false, nil
		}
		if i == 0 {
			first = fsb
		}
		if err := fs.readAt(buf[i:i+fs.sb.blockSize], fs.sb.off(fsb)); err != nil {
			return 0, false, err
		}
		off++
	}
	return first, true, nil
}

// content reads a regular file; safe for concurrent use as long as the device's ReadAt is.
type content struct {
	fs   *FS
	size int64
	exts []extent
}

func (c *content) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > c.size-off {
		p, eof = p[:c.size-off], io.EOF
	}
	bl := c.fs.sb.blockLog
	i := sort.Search(len(c.exts), func(i int) bool { return (c.exts[i].off+uint64(c.exts[i].n))<<bl > uint64(off) })
	done := 0
	for done < len(p) {
		pos := uint64(off) + uint64(done)
		rest := p[done:]
		if i == len(c.exts) {
			clear(rest)
			return len(p), eof
		}
		e := c.exts[i]
		start, end := e.off<<bl, (e.off+uint64(e.n))<<bl
		if pos < start {
			n := min(uint64(len(rest)), start-pos)
			clear(rest[:n])
			done += int(n)
			continue
		}
		n := min(uint64(len(rest)), end-pos)
		if e.unwritten {
			clear(rest[:n])
		} else if err := c.fs.readAt(rest[:n], c.fs.sb.off(e.start)+int64(pos-start)); err != nil {
			return done, err
		}
		done += int(n)
		i++
	}
	return len(p), eof
}
