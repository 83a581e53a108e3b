package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// MinFormat is the least size, in bytes, of a filesystem that Format makes; mkfs.xfs has the same bound.
const MinFormat = 300 << 20

// FormatOptions describe a new filesystem. UUID and Now are required.
type FormatOptions struct {
	UUID  [16]byte
	Label string    // up to 12 bytes
	Now   time.Time // of the root folder
}

const (
	formatBlockLog = 12
	formatSector   = 512
	formatInodeLog = 9
	// Something that looks like another filesystem must not remain at the ends of the device.
	wipeEnds = 128 << 10
)

// Format makes an empty filesystem that fills the first size bytes of d, whatever is there. It is one that mkfs.xfs of
// xfsprogs 5 makes, so that kernels from 4.18 on can mount it: blocks of 4 KiB, inodes of 512 bytes, sectors of 512
// bytes; crc, finobt, ftype, sparse inodes, reflink; without rmapbt, bigtime, inobtcount and nrext64. The root folder
// is of 0:0 with mode 0755.
//
// The size of an allocation group cannot change later, while a Writer's growth adds groups: it is a half of size, or a
// quarter from 4 GiB on, or the format's greatest of 1 TiB. A filesystem that is meant to grow should start as
// large as is known to be needed; from 1 GiB to 1 TiB it comes to 2048 groups, each with 24 KiB of metadata. The log
// cannot grow either: it is 1/2048 of size, 16 MiB at least and 64 MiB at most.
//
// What is read as zeros is not written over with zeros: writes are some 100 KiB. Errors: sizes below MinFormat, and
// options that are missing or too long.
func Format(d Device, size int64, o FormatOptions) error {
	switch {
	case o.Now.IsZero():
		return errors.New("xfs: FormatOptions.Now is required")
	case o.UUID == [16]byte{}:
		return errors.New("xfs: FormatOptions.UUID is required")
	case len(o.Label) > 12 || strings.IndexByte(o.Label, 0) >= 0:
		return fmt.Errorf("xfs: label %q: more than 12 bytes, or a NUL in it", o.Label)
	case size < MinFormat:
		return fmt.Errorf("xfs: %d bytes are too few for a filesystem: %d at least", size, MinFormat)
	}
	sb, err := parseSuper(bytes.NewReader(newSuper(size, o)), size)
	if err != nil {
		return err
	}
	fs := &FS{size: size, sb: sb, folders: map[uint64]*folder{}}
	w := &Writer{FS: fs, o: Options{Now: o.Now}, inodes: map[uint64][]byte{}, groups: make([]*group, sb.agCount), grown: true}
	w.dev = &wdev{w: w, d: d}
	fs.dev, fs.w = w.dev, w
	w.room.fresh = w.freshAvail(sb.agBlocks)

	// From the end, so that nothing is lost when the device is shorter than that.
	for _, r := range [][2]int64{{size - wipeEnds, wipeEnds}, {0, wipeEnds}, {sb.off(sb.logStart), int64(sb.logBlocks) << sb.blockLog}} {
		if err := w.wipe(r[0], r[1]); err != nil {
			return err
		}
	}
	ag, b := sb.split(sb.logStart)
	if _, ok := w.group(ag).takeAligned(sb.logBlocks, 1, b, b); !ok {
		return fmt.Errorf("xfs: no room for the log in %d bytes", size)
	}
	w.own(sb.logStart, sb.logBlocks, ownLog, 0)
	if err := w.dev.write(emptyLog(sb.uuid), sb.off(sb.logStart)); err != nil {
		return wrap(err, "writing the log")
	}
	if err := w.firstInodes(); err != nil {
		return err
	}
	return w.writeAll(context.Background())
}

// newSuper is the superblock of a filesystem of size bytes, without counts.
func newSuper(size int64, o FormatOptions) []byte {
	blocks := uint64(size) >> formatBlockLog
	n := uint64(2)
	if size >= 4<<30 {
		n = 4
	}
	// xfs_repair compares superblocks, and so wants two groups at least. A multiple of a chunk's alignment.
	per := min((blocks+n-1)/n+63, (1<<40-1)>>formatBlockLog) / 64 * 64
	s := &superblock{agBlocks: uint32(per), ro: roFinobt | roReflink, blockSize: 1 << formatBlockLog, sectSize: formatSector}
	blocks, groups := s.usable(blocks)
	s.agBlockLog = uint(bits.Len32(s.agBlocks - 1))
	log := min(max(uint64(size)/2048, 16<<20), 64<<20) >> formatBlockLog
	root := uint64(s.firstChunk()) << (formatBlockLog - formatInodeLog)
	imaxPct := byte(25)
	if size >= 50<<40 {
		imaxPct = 1
	} else if size >= 1<<40 {
		imaxPct = 5
	}

	b := make([]byte, formatSector)
	be.PutUint32(b, sbMagic)
	be.PutUint32(b[sbBlockSize:], 1<<formatBlockLog)
	be.PutUint64(b[sbDblocks:], blocks)
	copy(b[sbUUID:], o.UUID[:])
	be.PutUint64(b[sbLogStart:], s.fsb(uint32(groups/2), s.freshLayout().end))
	be.PutUint64(b[sbRootIno:], root)
	be.PutUint64(b[sbRbmIno:], root+1)
	be.PutUint64(b[sbRsumIno:], root+2)
	be.PutUint32(b[sbRextSize:], 1)
	be.PutUint32(b[sbAgBlocks:], s.agBlocks)
	be.PutUint32(b[sbAgCount:], uint32(groups))
	be.PutUint32(b[sbLogBlocks:], uint32(log))
	be.PutUint16(b[sbVersion:], 5|vbitNlink|vbitAlign|vbitLogV2|vbitExtFlag|vbitDirV2|vbitMore)
	be.PutUint16(b[sbSectSize:], formatSector)
	be.PutUint16(b[sbInodeSize:], 1<<formatInodeLog)
	be.PutUint16(b[sbInopBlock:], 1<<(formatBlockLog-formatInodeLog))
	copy(b[sbFname:], o.Label)
	b[sbBlockLog], b[sbSectLog], b[sbInodeLog] = formatBlockLog, byte(bits.TrailingZeros(formatSector)), formatInodeLog
	b[sbInopBlog], b[sbAgBlkLog], b[sbImaxPct] = formatBlockLog-formatInodeLog, byte(s.agBlockLog), imaxPct
	be.PutUint32(b[sbInoAlign:], inodesPerRec>>(formatBlockLog-formatInodeLog))
	be.PutUint32(b[sbSpinoAlign:], inodesPerRec>>(formatBlockLog-formatInodeLog)/2)
	be.PutUint32(b[sbLogSunit:], 1)
	features := uint32(feat2Lazy | feat2Attr2 | feat2ProjID32 | feat2CRC)
	be.PutUint32(b[sbFeatures2:], features)
	be.PutUint32(b[sbBadFeat2:], features)
	be.PutUint32(b[sbRoCompat:], s.ro)
	be.PutUint32(b[sbIncompat:], incFtype|incSpinodes)
	setCRC(b, sbCRC)
	return b
}

// firstChunk is the block of the first inode chunk, whose first inode is the root: xfs_repair expects it where mkfs.xfs
// puts it, behind the roots of the trees and the shortest free list, aligned.
func (s *superblock) firstChunk() uint32 {
	const align = inodesPerRec >> (formatBlockLog - formatInodeLog)
	freeList := 2 * 2 // two trees of one level
	return (s.freshLayout().end + uint32(freeList) + align - 1) / align * align
}

// firstInodes makes the root folder and the two files of a realtime device that is not there.
func (w *Writer) firstInodes() error {
	sb := w.sb
	const n = inodesPerRec >> (formatBlockLog - formatInodeLog)
	g, at := w.group(0), sb.firstChunk()
	if _, ok := g.takeAligned(n, n, at, at); !ok {
		return errors.New("xfs: no room for the first inodes")
	}
	g.insertChunk(chunkRec{start: at << sb.inopLog, free: ^uint64(7)})
	g.lastNew = at << sb.inopLog
	w.own(sb.fsb(0, at), n, ownInodes, 0)
	w.freshInodes(sb.fsb(0, at), n)
	for i := uint64(0); i < 3; i++ {
		in := &inode{ino: sb.rootIno + i, nlink: 1, changeCount: 1, aformat: fmtExtents, lit: make([]byte, sb.inodeSize-diCoreSize)}
		in.crtime = in.stamp(w.o.Now)
		in.mtime, in.ctime, in.atime = in.crtime, in.crtime, in.crtime
		in.gen = w.generation(in.ino)
		switch i {
		case 0:
			in.mode, in.nlink, in.format, in.size = modeDir|0755, 2, fmtLocal, 6
			be.PutUint32(in.lit[2:], uint32(in.ino)) // no entries, and the root is its own parent
		case 1:
			in.mode, in.format, in.flags, in.atime = modeReg, fmtExtents, flagNewRtBitmap, 0
		default:
			in.mode, in.format, in.atime = modeReg, fmtExtents, 0
		}
		if err := w.putInode(in); err != nil {
			return err
		}
	}
	return nil
}

// wipe makes n bytes at off zero.
func (w *Writer) wipe(off, n int64) error {
	zeros := make([]byte, 256<<10)
	for end := off + n; off < end; off += int64(len(zeros)) {
		if err := w.writeSparse(zeros[:min(int64(len(zeros)), end-off)], off); err != nil {
			return wrap(err, "clearing what the new filesystem replaces")
		}
	}
	return nil
}
