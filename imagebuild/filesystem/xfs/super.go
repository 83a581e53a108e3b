package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"strings"
)

var be = binary.BigEndian

var (
	// ErrUnsupported marks a filesystem that this package will not touch; the message names the feature.
	ErrUnsupported = errors.New("unsupported XFS filesystem")
	// ErrDirtyLog marks a filesystem whose log or unlinked lists must be recovered first.
	ErrDirtyLog = errors.New("XFS log is not clean")
	// ErrCorrupt marks a structure on the disk that contradicts the format or itself.
	ErrCorrupt = errors.New("corrupt XFS filesystem")
	// ErrNoSpace marks a plan that does not fit; the error is a NoSpaceError.
	ErrNoSpace = errors.New("not enough space in XFS filesystem")
)

func corrupt(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, a...))
}

func unsupported(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, a...))
}

// Info describes a filesystem as its superblock does. Counts of blocks and inodes are those of the
// superblock at Open; sizes are in bytes.
type Info struct {
	Label      string
	UUID       [16]byte
	BlockSize  int
	SectorSize int
	InodeSize  int
	DirBlock   int // bytes of one folder block
	AGCount    int
	AGBlocks   int64 // blocks per allocation group (the last may be shorter)
	Blocks     int64
	FreeBlocks int64 // as the superblock counts them: reservations included
	Inodes     int64 // allocated, in use or not
	FreeInodes int64 // allocated and not in use
	LogBlocks  int64
	Features   []string // "crc", "finobt", "rmapbt", ... in a fixed order
}

type superblock struct {
	raw []byte // one sector

	blockSize, sectSize, inodeSize          int
	blockLog, inodeLog, inopLog, agBlockLog uint
	dblocks                                 uint64
	agBlocks, agCount                       uint32
	logStart                                uint64
	logBlocks                               uint32
	rootIno                                 uint64
	uuid, metaUUID                          [16]byte
	versionnum                              uint16
	features2, compat, ro, inc, logInc      uint32
	imaxPct                                 uint8
	icount, ifree, fdblocks                 uint64
	inoAlign, spinoAlign                    uint32
	dirBlock                                int
	logSunit                                uint32
	logSectSize                             int
}

func parseSuper(r io.ReaderAt, size int64) (*superblock, error) {
	var head [sbSize]byte
	if size < int64(len(head)) {
		return nil, corrupt("a device of %d bytes is too small for a superblock", size)
	}
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	if be.Uint32(head[:]) != sbMagic {
		return nil, corrupt("no XFS superblock (magic %#x)", be.Uint32(head[:]))
	}
	s := &superblock{
		versionnum: be.Uint16(head[sbVersion:]),
		sectSize:   int(be.Uint16(head[sbSectSize:])),
	}
	if v := s.versionnum & 15; v != 5 {
		return nil, unsupported("version %d filesystem (only version 5, made with crc=1, is handled)", v)
	}
	if s.sectSize < 512 || s.sectSize > 32768 || s.sectSize&(s.sectSize-1) != 0 || int64(s.sectSize) > size {
		return nil, corrupt("superblock: sector size %d", s.sectSize)
	}
	raw := make([]byte, s.sectSize)
	if _, err := r.ReadAt(raw, 0); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", err)
	}
	s.raw = raw
	s.blockSize = int(be.Uint32(raw[sbBlockSize:]))
	s.dblocks = be.Uint64(raw[sbDblocks:])
	s.logStart = be.Uint64(raw[sbLogStart:])
	s.rootIno = be.Uint64(raw[sbRootIno:])
	s.agBlocks = be.Uint32(raw[sbAgBlocks:])
	s.agCount = be.Uint32(raw[sbAgCount:])
	s.logBlocks = be.Uint32(raw[sbLogBlocks:])
	s.inodeSize = int(be.Uint16(raw[sbInodeSize:]))
	s.blockLog = uint(raw[sbBlockLog])
	s.inodeLog = uint(raw[sbInodeLog])
	s.inopLog = uint(raw[sbInopBlog])
	s.agBlockLog = uint(raw[sbAgBlkLog])
	s.imaxPct = raw[sbImaxPct]
	s.icount = be.Uint64(raw[sbIcount:])
	s.ifree = be.Uint64(raw[sbIfree:])
	s.fdblocks = be.Uint64(raw[sbFdblocks:])
	s.inoAlign = be.Uint32(raw[sbInoAlign:])
	s.spinoAlign = be.Uint32(raw[sbSpinoAlign:])
	s.logSunit = be.Uint32(raw[sbLogSunit:])
	s.logSectSize = int(be.Uint16(raw[sbLogSectSize:]))
	s.features2 = be.Uint32(raw[sbFeatures2:])
	s.compat = be.Uint32(raw[sbCompat:])
	s.ro = be.Uint32(raw[sbRoCompat:])
	s.inc = be.Uint32(raw[sbIncompat:])
	s.logInc = be.Uint32(raw[sbLogIncompat:])
	copy(s.uuid[:], raw[sbUUID:])
	s.metaUUID = s.uuid
	if s.inc&incMetaUUID != 0 {
		copy(s.metaUUID[:], raw[sbMetaUUID:])
	}
	return s, s.check(size)
}

// check refuses what the package cannot read, then what contradicts itself.
func (s *superblock) check(size int64) error {
	if s.inc&incNeedsRepair != 0 {
		return unsupported("the filesystem is marked needsrepair: run xfs_repair on it first")
	}
	if s.inc&(incZoned|incZoneGaps) != 0 {
		return unsupported("zoned filesystem")
	}
	if s.inc&incMetadir != 0 {
		return unsupported("metadata directory (metadir)")
	}
	if u := s.inc &^ (incFtype | incSpinodes | incMetaUUID | incBigtime | incNrext64 | incExchange | incParent); u != 0 {
		return unsupported("unknown incompatible feature bits %#x", u)
	}
	if be.Uint64(s.raw[sbRblocks:]) != 0 {
		return unsupported("realtime device")
	}
	if s.features2&feat2CRC == 0 {
		return corrupt("superblock: version 5 without crc")
	}
	crc := crcOf(s.raw, sbCRC)
	if got := binary.LittleEndian.Uint32(s.raw[sbCRC:]); got != crc {
		return corrupt("superblock: checksum %#08x, computed %#08x", got, crc)
	}
	if s.raw[sbInProgress] != 0 {
		return unsupported("mkfs of this filesystem never finished")
	}
	if s.blockLog < 10 || s.blockLog > 16 || s.blockSize != 1<<s.blockLog {
		return corrupt("superblock: block size %d (log %d)", s.blockSize, s.blockLog)
	}
	if s.sectSize != 1<<s.raw[sbSectLog] || s.sectSize > s.blockSize {
		return corrupt("superblock: sector size %d", s.sectSize)
	}
	if s.inodeLog < 9 || s.inodeLog > 11 || s.inodeSize != 1<<s.inodeLog || s.inodeSize*2 > s.blockSize {
		return corrupt("superblock: inode size %d", s.inodeSize)
	}
	if s.inopLog != s.blockLog-s.inodeLog || int(be.Uint16(s.raw[sbInopBlock:])) != 1<<s.inopLog {
		return corrupt("superblock: inodes per block 2^%d", s.inopLog)
	}
	dl := uint(s.raw[sbDirBlkLog])
	if dl+s.blockLog > 16 {
		return corrupt("superblock: folder block size 2^%d", dl+s.blockLog)
	}
	s.dirBlock = s.blockSize << dl
	if s.agBlocks < 64 || s.agBlocks > 1<<30 || s.agBlockLog != uint(bits.Len32(s.agBlocks-1)) || s.agBlockLog+s.inopLog > 32 {
		return corrupt("superblock: %d blocks per allocation group (log %d)", s.agBlocks, s.agBlockLog)
	}
	if b := uint64(s.agBlocks) << s.blockLog; b > 1<<40 || b < 16<<20 {
		return corrupt("superblock: an allocation group of %d bytes (16 MiB to 1 TiB are allowed)", b)
	}
	want := (s.dblocks + uint64(s.agBlocks) - 1) / uint64(s.agBlocks)
	if s.agCount == 0 || s.dblocks > uint64(size)>>s.blockLog || want != uint64(s.agCount) {
		return corrupt("superblock: %d blocks of %d bytes in %d groups of %d blocks, on a device of %d bytes", s.dblocks, s.blockSize, s.agCount, s.agBlocks, size)
	}
	if s.logSunit > 1 && (s.logSunit > 256<<10 || s.logSunit%512 != 0) {
		return corrupt("superblock: log stripe unit %d", s.logSunit)
	}
	if s.inoAlign > s.agBlocks || s.spinoAlign > s.agBlocks || s.inoAlign&(s.inoAlign-1) != 0 {
		return corrupt("superblock: inode alignment %d, sparse %d", s.inoAlign, s.spinoAlign)
	}
	if s.imaxPct > 100 {
		return corrupt("superblock: imax_pct %d", s.imaxPct)
	}
	return nil
}

// checkWritable names what is readable but would be written wrongly.
func (s *superblock) checkWritable() error {
	if u := s.ro &^ (roFinobt | roRmapbt | roReflink | roInobtCnt); u != 0 {
		return unsupported("unknown read-only compatible feature bits %#x", u)
	}
	if s.compat != 0 {
		return unsupported("unknown compatible feature bits %#x", s.compat)
	}
	if s.logStart == 0 {
		return unsupported("external log")
	}
	if s.features2&feat2Lazy == 0 {
		return unsupported("superblock counters that are not lazy")
	}
	if s.inc&incFtype == 0 {
		return unsupported("folder entries without file types (ftype=0)")
	}
	return nil
}

func (s *superblock) features() []string {
	var f []string
	add := func(on bool, name string) {
		if on {
			f = append(f, name)
		}
	}
	add(s.features2&feat2CRC != 0, "crc")
	add(s.inc&incFtype != 0, "ftype")
	add(s.ro&roFinobt != 0, "finobt")
	add(s.inc&incSpinodes != 0, "sparse")
	add(s.ro&roRmapbt != 0, "rmapbt")
	add(s.ro&roReflink != 0, "reflink")
	add(s.inc&incBigtime != 0, "bigtime")
	add(s.ro&roInobtCnt != 0, "inobtcount")
	add(s.inc&incNrext64 != 0, "nrext64")
	add(s.inc&incExchange != 0, "exchange")
	add(s.inc&incParent != 0, "parent")
	add(s.inc&incMetaUUID != 0, "meta_uuid")
	add(s.versionnum&vbitBorg != 0, "ascii-ci")
	add(s.features2&feat2Lazy != 0, "lazy-count")
	add(s.features2&feat2ProjID32 != 0, "projid32bit")
	add(s.versionnum&vbitQuota != 0, "quota")
	return f
}

func (s *superblock) info() Info {
	return Info{
		Label: strings.TrimRight(string(s.raw[sbFname:sbFname+12]), "\x00"), UUID: s.uuid,
		BlockSize: s.blockSize, SectorSize: s.sectSize, InodeSize: s.inodeSize, DirBlock: s.dirBlock,
		AGCount: int(s.agCount), AGBlocks: int64(s.agBlocks), Blocks: int64(s.dblocks),
		FreeBlocks: int64(s.fdblocks), Inodes: int64(s.icount), FreeInodes: int64(s.ifree),
		LogBlocks: int64(s.logBlocks), Features: s.features(),
	}
}

// agLen is the number of blocks of group ag; the last may be short.
func (s *superblock) agLen(ag uint32) uint32 {
	if ag == s.agCount-1 {
		return uint32(s.dblocks - uint64(ag)*uint64(s.agBlocks))
	}
	return s.agBlocks
}

// fsb joins a group and a block in it to a filesystem block number, which has gaps between groups.
func (s *superblock) fsb(ag, block uint32) uint64 { return uint64(ag)<<s.agBlockLog | uint64(block) }

func (s *superblock) split(fsb uint64) (ag, block uint32) {
	return uint32(fsb >> s.agBlockLog), uint32(fsb & (1<<s.agBlockLog - 1))
}

func (s *superblock) off(fsb uint64) int64 {
	ag, b := s.split(fsb)
	return s.agOff(ag, b)
}

func (s *superblock) agOff(ag, block uint32) int64 {
	return (int64(ag)*int64(s.agBlocks) + int64(block)) << s.blockLog
}

// daddr is a block's address in 512-byte sectors, as block headers carry it.
func (s *superblock) daddr(fsb uint64) uint64 { return uint64(s.off(fsb)) >> 9 }

// validRun says whether n blocks from fsb lie inside one group and behind its headers.
func (s *superblock) validRun(fsb, n uint64) bool {
	ag := fsb >> s.agBlockLog
	if ag >= uint64(s.agCount) {
		return false
	}
	b := fsb & (1<<s.agBlockLog - 1)
	l := uint64(s.agLen(uint32(ag)))
	return b >= uint64(s.firstBlock()) && b < l && n <= l-b
}

func (s *superblock) inoAG(ino uint64) (ag, agino uint32) {
	sh := s.agBlockLog + s.inopLog
	return uint32(ino >> sh), uint32(ino & (1<<sh - 1))
}

func (s *superblock) ino(ag, agino uint32) uint64 {
	return uint64(ag)<<(s.agBlockLog+s.inopLog) | uint64(agino)
}

// inoPlace checks an inode number and says which block holds it, and where in the block.
func (s *superblock) inoPlace(ino uint64) (fsb uint64, off int, err error) {
	sh := s.agBlockLog + s.inopLog
	if ino == 0 || ino>>sh >= uint64(s.agCount) {
		return 0, 0, corrupt("inode number %d is outside the filesystem", ino)
	}
	ag, agino := s.inoAG(ino)
	b := agino >> s.inopLog
	if b < s.firstBlock() || b >= s.agLen(ag) {
		return 0, 0, corrupt("inode number %d is outside its allocation group", ino)
	}
	return s.fsb(ag, b), int(agino&(1<<s.inopLog-1)) << s.inodeLog, nil
}

// crcOf is the checksum of b with the four bytes at off taken as zero.
func crcOf(b []byte, off int) uint32 {
	var zero [4]byte
	c := crc32.Update(0, castagnoli, b[:off])
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, b[off+4:])
}

func setCRC(b []byte, off int) { binary.LittleEndian.PutUint32(b[off:], crcOf(b, off)) }
