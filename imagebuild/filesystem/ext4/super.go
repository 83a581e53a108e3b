package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"
)

// Errors that tell classes of failure apart with errors.Is.
var (
	// ErrUnsupported is a feature that this package does not handle; the message names it.
	ErrUnsupported = errors.New("unsupported ext4 feature")
	// ErrNeedsRecovery is a filesystem that was not shut down cleanly; the message says what to do.
	ErrNeedsRecovery = errors.New("filesystem needs recovery")
	// ErrCorrupt is a filesystem whose bytes contradict the format; the message says what and where.
	ErrCorrupt = errors.New("corrupt ext4 filesystem")
	// ErrNoSpace is a filesystem with too few free blocks or inodes. See [NoSpaceError].
	ErrNoSpace = errors.New("not enough space")
)

func corrupt(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, a...))
}

func unsupported(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, a...))
}

const maxDescTable = 128 << 20

// FS is an ext4 filesystem opened for reading. It is safe for concurrent use unless it is part of a [Writer].
type FS struct {
	dev    io.ReaderAt
	sb     [superSize]byte
	bs     int64 // bytes in a block
	blocks int64
	first  int64 // block number of the first block of group 0
	bpg    int64 // blocks in a group
	ipg    uint32
	inodes uint32
	groups uint32
	isize  int    // bytes in an inode
	dsize  int    // bytes in a group descriptor
	gdt    []byte // all group descriptors, groups*dsize

	compat, incompat, ro uint32

	seed      uint32
	metaCsum  bool
	groupCsum bool // descriptors carry checksums and the uninit flags mean something
	hashVer   uint8
	hashChars uint8 // 3 when names are hashed as unsigned characters
	hashSeed  [4]uint32

	itab *inodeTable
	w    *Writer // the writer that this FS is part of, or nil

	dirMu    sync.Mutex
	dirs     map[uint32]*folder // parsed folders, dropped together when they grow large
	dirBytes int
}

type feature struct {
	bit  uint32
	name string
}

// The names are those that tune2fs prints and takes.
var compatNames = []feature{
	{0x1, "dir_prealloc"}, {0x2, "imagic_inodes"}, {compatHasJournal, "has_journal"}, {compatExtAttr, "ext_attr"},
	{compatResizeInode, "resize_inode"}, {compatDirIndex, "dir_index"}, {compatSparseSuper2, "sparse_super2"}, {0x400, "fast_commit"},
	{0x800, "stable_inodes"}, {compatOrphanFile, "orphan_file"},
}

var incompatNames = []feature{
	{incompatCompression, "compression"}, {incompatFiletype, "filetype"}, {incompatRecover, "needs_recovery"},
	{incompatJournalDev, "journal_dev"}, {incompatMetaBG, "meta_bg"}, {incompatExtents, "extent"}, {incompat64Bit, "64bit"},
	{incompatMMP, "mmp"}, {incompatFlexBG, "flex_bg"}, {incompatEAInode, "ea_inode"}, {incompatDirdata, "dirdata"},
	{incompatCsumSeed, "metadata_csum_seed"}, {incompatLargeDir, "large_dir"}, {incompatInlineData, "inline_data"},
	{incompatEncrypt, "encrypt"}, {incompatCasefold, "casefold"},
}

var roNames = []feature{
	{roSparseSuper, "sparse_super"}, {roLargeFile, "large_file"}, {0x4, "btree_dir"}, {roHugeFile, "huge_file"},
	{roGDTCsum, "uninit_bg"}, {roDirNlink, "dir_nlink"}, {roExtraIsize, "extra_isize"}, {0x80, "snapshot"}, {roQuota, "quota"},
	{roBigalloc, "bigalloc"}, {roMetadataCsum, "metadata_csum"}, {0x800, "replica"}, {roReadonly, "read-only"},
	{roProject, "project"}, {roSharedBlocks, "shared_blocks"}, {roVerity, "verity"}, {roOrphanPresent, "orphan_present"},
}

const (
	incompatRead = incompatFiletype | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP | incompatFlexBG |
		incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCasefold
	roWrite = roSparseSuper | roLargeFile | roHugeFile | roGDTCsum | roDirNlink | roExtraIsize | roMetadataCsum |
		roProject | roVerity
)

// featureNames lists the set bits of v, unknown ones as class_0xBIT.
func featureNames(v uint32, known []feature, class string) []string {
	var out []string
	for _, k := range known {
		if v&k.bit != 0 {
			out = append(out, k.name)
			v &^= k.bit
		}
	}
	for ; v != 0; v &= v - 1 {
		out = append(out, fmt.Sprintf("%s_%#x", class, v&-v))
	}
	return out
}

// Info describes a filesystem as its superblock does.
type Info struct {
	Label       string
	UUID        [16]byte
	LastMounted string
	BlockSize   int64
	Blocks      int64
	FreeBlocks  int64 // by the group descriptors, including ReservedBlocks
	// ReservedBlocks are kept for root.
	ReservedBlocks int64
	Inodes         int64
	FreeInodes     int64
	InodeSize      int
	Groups         int64
	// Features are the names that tune2fs uses: compatible, incompatible, then read-only compatible ones.
	Features []string
	// Clean is false when the filesystem was not unmounted or has recorded errors.
	Clean bool
}

// Info returns what the superblock and the group descriptors say.
func (f *FS) Info() Info {
	i := Info{
		Label:          cString(f.sb[sbLabel : sbLabel+16]),
		LastMounted:    cString(f.sb[sbLastMounted : sbLastMounted+64]),
		BlockSize:      f.bs,
		Blocks:         f.blocks,
		ReservedBlocks: f.reserved(),
		Inodes:         int64(f.inodes),
		InodeSize:      f.isize,
		Groups:         int64(f.groups),
		Clean:          le.Uint16(f.sb[sbState:])&(stateValid|stateError) == stateValid,
	}
	copy(i.UUID[:], f.sb[sbUUID:])
	i.FreeBlocks, i.FreeInodes = f.freeTotals()
	if f.ro&roBigalloc != 0 {
		i.FreeBlocks <<= le.Uint32(f.sb[sbLogClusterSize:]) - le.Uint32(f.sb[sbLogBlockSize:])
	}
	i.Features = featureNames(f.compat, compatNames, "compat")
	i.Features = append(i.Features, featureNames(f.incompat, incompatNames, "incompat")...)
	i.Features = append(i.Features, featureNames(f.ro, roNames, "ro_compat")...)
	return i
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func (f *FS) reserved() int64 {
	return int64(le.Uint32(f.sb[sbReservedLo:])) | f.hi32(sbReservedHi)<<32
}

// hi32 is the high half of a superblock count, which exists only with 64bit.
func (f *FS) hi32(off int) int64 {
	if f.incompat&incompat64Bit == 0 {
		return 0
	}
	return int64(le.Uint32(f.sb[off:]))
}

func (f *FS) freeTotals() (blocks, inodes int64) {
	for g := range f.groups {
		blocks += int64(f.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi))
		inodes += int64(f.descCount(g, gdFreeInodesLo, gdFreeInodesHi))
	}
	return blocks, inodes
}

// Open reads the superblock and the group descriptors of the ext2, ext3 or ext4 filesystem in r, which is size
// bytes long. It needs no more of the device than the filesystem claims, and fails with [ErrCorrupt],
// [ErrUnsupported] or [ErrNeedsRecovery]. The FS reads r for as long as it is used.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	f := &FS{dev: r}
	if size < superOffset+superSize {
		return nil, corrupt("%d bytes are too few for a superblock", size)
	}
	if _, err := r.ReadAt(f.sb[:], superOffset); err != nil {
		return nil, fmt.Errorf("reading the superblock: %w", noEOF(err))
	}
	if err := f.parseSuper(size); err != nil {
		return nil, err
	}
	if err := f.readDescs(); err != nil {
		return nil, err
	}
	f.itab = newInodeTable(f, 16<<10, 64)
	f.dirs = map[uint32]*folder{}
	return f, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (f *FS) parseSuper(size int64) error {
	sb := f.sb[:]
	if le.Uint16(sb[sbMagic:]) != superMagic {
		return corrupt("no ext4 superblock (magic %#x at byte %d)", le.Uint16(sb[sbMagic:]), superOffset+sbMagic)
	}
	rev := le.Uint32(sb[sbRevLevel:])
	if rev > 1 {
		return unsupported("superblock revision %d", rev)
	}
	f.isize = oldInodeSize
	if rev == 1 {
		f.compat, f.incompat, f.ro = le.Uint32(sb[sbCompat:]), le.Uint32(sb[sbIncompat:]), le.Uint32(sb[sbROCompat:])
		f.isize = int(le.Uint16(sb[sbInodeSize:]))
	}
	f.metaCsum = f.ro&roMetadataCsum != 0
	f.groupCsum = f.ro&(roMetadataCsum|roGDTCsum) != 0
	if f.metaCsum {
		if t := sb[sbChecksumType]; t != checksumCRC32C {
			return unsupported("metadata checksum type %d", t)
		}
		if sum := crc32c(^uint32(0), sb[:sbChecksum]); sum != le.Uint32(sb[sbChecksum:]) {
			return corrupt("superblock checksum is %#x, should be %#x", le.Uint32(sb[sbChecksum:]), sum)
		}
	}
	if f.incompat&incompatJournalDev != 0 {
		return unsupported("journal_dev (this is the external journal of another filesystem)")
	}
	if f.incompat&incompatRecover != 0 {
		return fmt.Errorf("%w: its journal was not replayed (needs_recovery): mount and unmount it once, or run e2fsck", ErrNeedsRecovery)
	}
	if bad := f.incompat &^ incompatRead; bad != 0 {
		return unsupported("%s", featureNames(bad, incompatNames, "incompat"))
	}
	lb := le.Uint32(sb[sbLogBlockSize:])
	if lb > 6 {
		return corrupt("block size 1024<<%d", lb)
	}
	f.bs = 1024 << lb
	if lc := le.Uint32(sb[sbLogClusterSize:]); f.ro&roBigalloc == 0 && rev == 1 && lc != lb {
		return corrupt("cluster size 1024<<%d differs from block size %d without bigalloc", lc, f.bs)
	}
	if f.isize < oldInodeSize || int64(f.isize) > f.bs || bits.OnesCount(uint(f.isize)) != 1 {
		return corrupt("inode size %d with blocks of %d", f.isize, f.bs)
	}
	f.blocks = int64(le.Uint32(sb[sbBlocksLo:])) | f.hi32(sbBlocksHi)<<32
	if f.blocks < 8 || f.blocks > size/f.bs {
		return corrupt("%d blocks of %d bytes in a partition of %d bytes", f.blocks, f.bs, size)
	}
	f.first = int64(le.Uint32(sb[sbFirstDataBlock:]))
	if f.first > 1 || f.first == 1 && f.bs != 1024 || f.first == 0 && f.bs == 1024 && f.ro&roBigalloc == 0 {
		return corrupt("first data block %d with blocks of %d", f.first, f.bs)
	}
	f.bpg = int64(le.Uint32(sb[sbBlocksPerGroup:]))
	perBitmap := 8 * f.bs
	if f.ro&roBigalloc != 0 {
		lc := le.Uint32(sb[sbLogClusterSize:])
		if lc < lb || lc > 20 {
			return corrupt("cluster size 1024<<%d", lc)
		}
		perBitmap <<= lc - lb
	}
	if f.bpg < 8 || f.bpg%8 != 0 || f.bpg > perBitmap {
		return corrupt("%d blocks per group of blocks of %d bytes", f.bpg, f.bs)
	}
	f.ipg = le.Uint32(sb[sbInodesPerGroup:])
	if f.ipg < 8 || f.ipg%8 != 0 || int64(f.ipg) > 8*f.bs {
		return corrupt("%d inodes per group with blocks of %d bytes", f.ipg, f.bs)
	}
	groups := (f.blocks - f.first + f.bpg - 1) / f.bpg
	f.dsize = 32
	if f.incompat&incompat64Bit != 0 {
		f.dsize = int(le.Uint16(sb[sbDescSize:]))
		if f.dsize < 64 || f.dsize > 1024 || bits.OnesCount(uint(f.dsize)) != 1 {
			return corrupt("group descriptors of %d bytes", f.dsize)
		}
	}
	if groups > maxDescTable/int64(f.dsize) {
		return unsupported("%d groups, their descriptors would take more than %d MiB of memory", groups, maxDescTable>>20)
	}
	f.groups = uint32(groups)
	f.inodes = le.Uint32(sb[sbInodesCount:])
	if int64(f.inodes) != groups*int64(f.ipg) {
		return corrupt("%d inodes in %d groups of %d", f.inodes, groups, f.ipg)
	}
	if f.metaCsum {
		f.seed = crc32c(^uint32(0), sb[sbUUID:sbUUID+16])
	}
	if f.incompat&incompatCsumSeed != 0 {
		f.seed = le.Uint32(sb[sbChecksumSeed:])
	}
	f.hashVer = sb[sbHashVersion]
	if le.Uint32(sb[sbFlags:])&sbFlagUnsignedHash != 0 {
		f.hashChars = 3
	}
	for i := range f.hashSeed {
		f.hashSeed[i] = le.Uint32(sb[sbHashSeed+4*i:])
	}
	return nil
}

// hasSuper says whether group g begins with a copy of the superblock.
func (f *FS) hasSuper(g uint32) bool { return f.hasSuperIn(g, f.superCopies()) }

// superCopies are the groups with copies under sparse_super2.
func (f *FS) superCopies() [2]uint32 {
	return [2]uint32{le.Uint32(f.sb[sbBackupBGs:]), le.Uint32(f.sb[sbBackupBGs+4:])}
}

func (f *FS) hasSuperIn(g uint32, copies [2]uint32) bool {
	if g == 0 {
		return true
	}
	if f.compat&compatSparseSuper2 != 0 {
		return g == copies[0] || g == copies[1]
	}
	if g == 1 || f.ro&roSparseSuper == 0 {
		return true
	}
	for _, base := range []uint32{3, 5, 7} {
		n := g
		for n%base == 0 {
			n /= base
		}
		if n == 1 {
			return true
		}
	}
	return false
}

func (f *FS) descPerBlock() uint32 { return uint32(f.bs) / uint32(f.dsize) }

// descBlock is the block that holds the i-th block of group descriptors.
func (f *FS) descBlock(i uint32) int64 {
	if f.incompat&incompatMetaBG == 0 || i < le.Uint32(f.sb[sbFirstMetaBG:]) {
		return superOffset/f.bs + 1 + int64(i)
	}
	g := i * f.descPerBlock()
	b := f.groupStart(g)
	if f.hasSuper(g) {
		b++
	}
	if g == 0 && f.bs == 1024 && f.first == 0 {
		b++
	}
	return b
}

func (f *FS) descBlocks() uint32 { return (f.groups + f.descPerBlock() - 1) / f.descPerBlock() }

func (f *FS) readDescs() error {
	n := f.descBlocks()
	if int64(n) >= f.blocks {
		return corrupt("%d blocks of group descriptors on %d blocks", n, f.blocks)
	}
	f.gdt = make([]byte, int64(n)*f.bs)
	for i := uint32(0); i < n; {
		run := uint32(1)
		for i+run < n && f.descBlock(i+run) == f.descBlock(i)+int64(run) {
			run++
		}
		at := f.descBlock(i)
		if at+int64(run) > f.blocks {
			return corrupt("group descriptors in blocks %d to %d of %d", at, at+int64(run)-1, f.blocks)
		}
		if _, err := f.dev.ReadAt(f.gdt[int64(i)*f.bs:int64(i+run)*f.bs], at*f.bs); err != nil {
			return fmt.Errorf("reading group descriptors at block %d: %w", at, noEOF(err))
		}
		i += run
	}
	table := (int64(f.ipg)*int64(f.isize) + f.bs - 1) / f.bs
	for g := range f.groups {
		d := f.desc(g)
		if f.groupCsum {
			if sum := f.descSum(g, d); sum != le.Uint16(d[gdChecksum:]) {
				return corrupt("checksum of the descriptor of group %d is %#x, should be %#x", g, le.Uint16(d[gdChecksum:]), sum)
			}
		}
		for _, m := range []struct {
			what  string
			at, n int64
		}{
			{"block bitmap", f.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi), 1},
			{"inode bitmap", f.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi), 1},
			{"inode table", f.descBlockNo(g, gdInodeTableLo, gdInodeTableHi), table},
		} {
			if m.at <= f.first || m.at > f.blocks-m.n {
				return corrupt("%s of group %d at block %d of %d", m.what, g, m.at, f.blocks)
			}
		}
		if n := f.descCount(g, gdFreeInodesLo, gdFreeInodesHi); n > f.ipg {
			return corrupt("group %d has %d free inodes of %d", g, n, f.ipg)
		}
		if n := int64(f.descCount(g, gdFreeBlocksLo, gdFreeBlocksHi)); n > f.groupLen(g) {
			return corrupt("group %d has %d free blocks of %d", g, n, f.groupLen(g))
		}
	}
	return nil
}

// desc returns group g's descriptor, which callers may change in place.
func (f *FS) desc(g uint32) []byte {
	at := int64(g) * int64(f.dsize)
	return f.gdt[at : at+int64(f.dsize) : at+int64(f.dsize)]
}

func (f *FS) descBlockNo(g uint32, lo, hi int) int64 {
	d := f.desc(g)
	n := int64(le.Uint32(d[lo:]))
	if f.dsize >= 64 {
		n |= int64(le.Uint32(d[hi:])) << 32
	}
	return n
}

func (f *FS) descCount(g uint32, lo, hi int) uint32 {
	d := f.desc(g)
	n := uint32(le.Uint16(d[lo:]))
	if f.dsize >= 64 {
		n |= uint32(le.Uint16(d[hi:])) << 16
	}
	return n
}

func (f *FS) setDescCount(g uint32, lo, hi int, v uint32) {
	d := f.desc(g)
	le.PutUint16(d[lo:], uint16(v))
	if f.dsize >= 64 {
		le.PutUint16(d[hi:], uint16(v>>16))
	}
}

// descFlag tells a bg flag of group g, which means nothing without descriptor checksums.
func (f *FS) descFlag(g uint32, flag uint16) bool {
	return f.groupCsum && le.Uint16(f.desc(g)[gdFlags:])&flag != 0
}

// itableUsed is how many inodes from the start of group g's table may be in use; the rest of the table may hold garbage.
func (f *FS) itableUsed(g uint32) uint32 {
	if !f.groupCsum {
		return f.ipg
	}
	if f.descFlag(g, bgInodeUninit) {
		return 0
	}
	return f.ipg - min(f.ipg, f.descCount(g, gdItableUnusedLo, gdItableUnusedHi))
}

func (f *FS) groupStart(g uint32) int64 { return f.first + int64(g)*f.bpg }

// groupLen is the number of blocks in group g.
func (f *FS) groupLen(g uint32) int64 { return min(f.bpg, f.blocks-f.groupStart(g)) }

// readBlock reads block n into b, which is one block long.
func (f *FS) readBlock(n int64, b []byte) error {
	if f.w != nil {
		if ok, err := f.w.dev.shadowBlock(n, b); ok || err != nil {
			return err
		}
	}
	if n <= 0 || n >= f.blocks {
		return corrupt("block %d is not on the filesystem of %d blocks", n, f.blocks)
	}
	if _, err := f.dev.ReadAt(b, n*f.bs); err != nil {
		return fmt.Errorf("reading block %d: %w", n, noEOF(err))
	}
	return nil
}
