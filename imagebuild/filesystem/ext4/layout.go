package ext4

import "encoding/binary"

var le = binary.LittleEndian

// Superblock: 1024 bytes at byte 1024 of the device.
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	sbInodesCount     = 0x00  // u32, inodes
	sbBlocksLo        = 0x04  // u32, blocks, low half
	sbReservedLo      = 0x08  // u32, blocks kept for root, low half
	sbFreeBlocksLo    = 0x0C  // u32, blocks, low half
	sbFreeInodes      = 0x10  // u32, inodes
	sbFirstDataBlock  = 0x14  // u32, block number
	sbLogBlockSize    = 0x18  // u32, block size is 1024<<this bytes
	sbLogClusterSize  = 0x1C  // u32, cluster size is 1024<<this bytes
	sbBlocksPerGroup  = 0x20  // u32, blocks
	sbClusterPerGroup = 0x24  // u32, clusters
	sbInodesPerGroup  = 0x28  // u32, inodes
	sbWriteTime       = 0x30  // u32, seconds
	sbMaxMounts       = 0x36  // u16, mounts before a check, 0xFFFF: any number
	sbMagic           = 0x38  // u16
	sbState           = 0x3A  // u16, state* bits
	sbErrors          = 0x3C  // u16, what the kernel does about an error, 1: go on
	sbCheckTime       = 0x40  // u32, seconds
	sbCreatorOS       = 0x48  // u32, 0 Linux
	sbRevLevel        = 0x4C  // u32, 0: no features, inodes of 128 bytes
	sbFirstInode      = 0x54  // u32, inode number
	sbInodeSize       = 0x58  // u16, bytes
	sbGroupNumber     = 0x5A  // u16, group that this copy is in
	sbCompat          = 0x5C  // u32, feature bits
	sbIncompat        = 0x60  // u32, feature bits
	sbROCompat        = 0x64  // u32, feature bits
	sbUUID            = 0x68  // 16 bytes
	sbLabel           = 0x78  // 16 bytes, NUL padded
	sbLastMounted     = 0x88  // 64 bytes, NUL padded
	sbReservedGDT     = 0xCE  // u16, blocks kept after the descriptors for growth
	sbJournalUUID     = 0xD0  // 16 bytes, of an external journal
	sbJournalInode    = 0xE0  // u32, inode number
	sbJournalDev      = 0xE4  // u32, device number of an external journal
	sbLastOrphan      = 0xE8  // u32, inode number, head of the list of orphans
	sbHashSeed        = 0xEC  // 4 u32
	sbHashVersion     = 0xFC  // u8, hash* of new folders
	sbJournalBackup   = 0xFD  // u8, 1: sbJournalMap is filled in
	sbDescSize        = 0xFE  // u16, bytes, with 64bit
	sbMountOpts       = 0x100 // u32, mountOpt* bits
	sbFirstMetaBG     = 0x104 // u32, descriptor block index from which meta_bg holds
	sbMakeTime        = 0x108 // u32, seconds
	sbJournalMap      = 0x10C // inBlock of the journal's inode, then its u32 inSizeHi and inSizeLo
	sbBlocksHi        = 0x150 // u32
	sbReservedHi      = 0x154 // u32
	sbFreeBlocksHi    = 0x158 // u32
	sbMinExtraIsize   = 0x15C // u16, bytes
	sbWantExtraIsize  = 0x15E // u16, bytes
	sbFlags           = 0x160 // u32, sbFlag* bits
	sbMMPBlock        = 0x168 // u64, block number
	sbLogFlex         = 0x174 // u8, 1<<this groups make a flex_bg group
	sbChecksumType    = 0x175 // u8, 1 is crc32c
	sbOverhead        = 0x248 // u32, blocks of metadata and journal; 0 when unknown
	sbBackupBGs       = 0x24C // 2 u32, groups with backups under sparse_super2
	sbChecksumSeed    = 0x270 // u32, under metadata_csum_seed
	sbWriteTimeHi     = 0x274 // u8
	sbMakeTimeHi      = 0x276 // u8
	sbCheckTimeHi     = 0x277 // u8
	sbChecksum        = 0x3FC // u32, crc32c of the bytes before

	stateValid = 1
	stateError = 2

	sbFlagSignedHash   = 1
	sbFlagUnsignedHash = 2

	mountOptXattr = 0x4
	mountOptACL   = 0x8

	checksumCRC32C = 1
)

// Feature bits.
const (
	compatHasJournal   = 0x4
	compatExtAttr      = 0x8
	compatResizeInode  = 0x10
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200
	compatOrphanFile   = 0x1000

	incompatCompression = 0x1
	incompatFiletype    = 0x2
	incompatRecover     = 0x4
	incompatJournalDev  = 0x8
	incompatMetaBG      = 0x10
	incompatExtents     = 0x40
	incompat64Bit       = 0x80
	incompatMMP         = 0x100
	incompatFlexBG      = 0x200
	incompatEAInode     = 0x400
	incompatDirdata     = 0x1000
	incompatCsumSeed    = 0x2000
	incompatLargeDir    = 0x4000
	incompatInlineData  = 0x8000
	incompatEncrypt     = 0x10000
	incompatCasefold    = 0x20000

	roSparseSuper   = 0x1
	roLargeFile     = 0x2
	roHugeFile      = 0x8
	roGDTCsum       = 0x10
	roDirNlink      = 0x20
	roExtraIsize    = 0x40
	roQuota         = 0x100
	roBigalloc      = 0x200
	roMetadataCsum  = 0x400
	roReadonly      = 0x1000
	roProject       = 0x2000
	roSharedBlocks  = 0x4000
	roVerity        = 0x8000
	roOrphanPresent = 0x10000
)

// Group descriptor: 32 bytes, or sbDescSize bytes with 64bit.
const (
	gdBlockBitmapLo  = 0x00 // u32, block number
	gdInodeBitmapLo  = 0x04 // u32, block number
	gdInodeTableLo   = 0x08 // u32, block number
	gdFreeBlocksLo   = 0x0C // u16, blocks
	gdFreeInodesLo   = 0x0E // u16, inodes
	gdUsedDirsLo     = 0x10 // u16, folders
	gdFlags          = 0x12 // u16, bg* bits
	gdBlockCsumLo    = 0x18 // u16, crc32c of the block bitmap
	gdInodeCsumLo    = 0x1A // u16, crc32c of the inode bitmap
	gdItableUnusedLo = 0x1C // u16, inodes never used at the table's end
	gdChecksum       = 0x1E // u16
	gdBlockBitmapHi  = 0x20 // u32
	gdInodeBitmapHi  = 0x24 // u32
	gdInodeTableHi   = 0x28 // u32
	gdFreeBlocksHi   = 0x2C // u16
	gdFreeInodesHi   = 0x2E // u16
	gdUsedDirsHi     = 0x30 // u16
	gdItableUnusedHi = 0x32 // u16
	gdBlockCsumHi    = 0x38 // u16
	gdInodeCsumHi    = 0x3A // u16

	bgInodeUninit = 1
	bgBlockUninit = 2
)

// Inode: sbInodeSize bytes; what lies at and after 0x80 exists only in inodes larger than 128 bytes and only as
// far as inExtraIsize reaches.
const (
	inMode       = 0x00 // u16
	inUIDLo      = 0x02 // u16
	inSizeLo     = 0x04 // u32, bytes
	inAtime      = 0x08 // i32, seconds
	inCtime      = 0x0C // i32, seconds
	inMtime      = 0x10 // i32, seconds
	inDtime      = 0x14 // u32, seconds
	inGIDLo      = 0x18 // u16
	inLinks      = 0x1A // u16
	inBlocksLo   = 0x1C // u32, 512-byte units, or blocks with flagHugeFile
	inFlags      = 0x20 // u32, flag* bits
	inVersionLo  = 0x24 // u32
	inBlock      = 0x28 // 60 bytes: extent root, block pointers, short link, device or inline data
	inGeneration = 0x64 // u32
	inACLLo      = 0x68 // u32, block number of the attribute block
	inSizeHi     = 0x6C // u32
	inBlocksHi   = 0x74 // u16
	inACLHi      = 0x76 // u16
	inUIDHi      = 0x78 // u16
	inGIDHi      = 0x7A // u16
	inCsumLo     = 0x7C // u16
	inExtraIsize = 0x80 // u16, bytes used after 0x80
	inCsumHi     = 0x82 // u16
	inCtimeExtra = 0x84 // u32: 2 bits of epoch, 30 bits of nanoseconds
	inMtimeExtra = 0x88 // u32
	inAtimeExtra = 0x8C // u32
	inCrtime     = 0x90 // i32, seconds
	inCrtimeX    = 0x94 // u32
	inProjID     = 0x9C // u32

	inBlockLen   = 60
	oldInodeSize = 128
	extraIsize   = 32 // bytes after 0x80 that this package knows

	rootInode    = 2
	resizeInode  = 7
	journalInode = 8

	flagEncrypt     = 0x800
	flagIndex       = 0x1000
	flagHugeFile    = 0x40000
	flagExtents     = 0x80000
	flagEAInode     = 0x200000
	flagInlineData  = 0x10000000
	flagProjInherit = 0x20000000
	flagCasefold    = 0x40000000

	linkMax = 65000
)

// Bits of inMode.
const (
	modeType = 0xF000
	modeFifo = 0x1000
	modeChar = 0x2000
	modeDir  = 0x4000
	modeBlk  = 0x6000
	modeReg  = 0x8000
	modeLink = 0xA000
	modeSock = 0xC000
)

// Extent tree node: a header of 12 bytes, then entries of 12 bytes; a u32 checksum follows the last possible
// entry of a node that has a block of its own.
const (
	extMagic     = 0xF30A
	extHeader    = 12
	extEntry     = 12
	ehMagic      = 0 // u16
	ehEntries    = 2 // u16
	ehMax        = 4 // u16
	ehDepth      = 6 // u16, 0 in a leaf
	eeBlock      = 0 // u32, first file block
	eeLen        = 4 // u16, blocks; above 32768: unwritten, minus 32768
	eeStartHi    = 6 // u16
	eeStartLo    = 8 // u32
	eiBlock      = 0 // u32, first file block below
	eiLeafLo     = 4 // u32, block number
	eiLeafHi     = 8 // u16
	extMaxLen    = 32768
	extMaxDepth  = 5
	directBlocks = 12
)

// Folder entry, and the fake entry that carries a folder block's checksum.
const (
	deInode   = 0 // u32
	deRecLen  = 4 // u16, bytes
	deNameLen = 6 // u8
	deType    = 7 // u8, ft*
	deName    = 8

	dirTailLen  = 12
	dirTailType = 0xDE

	ftReg  = 1
	ftDir  = 2
	ftChar = 3
	ftBlk  = 4
	ftFifo = 5
	ftSock = 6
	ftLink = 7
)

// Hashed folder: a root in block 0 behind "." and "..", then nodes. Each holds an array of 8-byte entries
// (u32 hash, u32 file block) whose first hash slot holds u16 limit and u16 count.
const (
	dxInfo        = 24 // of the root: u32 zero, u8 hash version, u8 8, u8 levels below, u8 zero
	dxRootEntries = 32
	dxNodeEntries = 8
	dxEntry       = 8
	dxTail        = 8 // u32 zero, u32 checksum

	hashLegacy  = 0
	hashHalfMD4 = 1
	hashTea     = 2
)

// Extended attributes.
const (
	xaMagic       = 0xEA020000
	xaBlockHeader = 32   // bytes
	xhMagic       = 0x00 // u32
	xhRefcount    = 0x04 // u32
	xhBlocks      = 0x08 // u32, 1
	xhHash        = 0x0C // u32
	xhChecksum    = 0x10 // u32

	xaEntry     = 16 // bytes, then the name, padded to 4
	xeNameLen   = 0  // u8
	xeIndex     = 1  // u8, xi*
	xeValueOffs = 2  // u16, from the first entry in an inode, from the block's start in a block
	xeValueIno  = 4  // u32, inode that holds the value, or 0
	xeValueSize = 8  // u32, bytes
	xeHash      = 12 // u32

	xiUser       = 1
	xiACLAccess  = 2
	xiACLDefault = 3
	xiTrusted    = 4
	xiSecurity   = 6
	xiSystem     = 7

	maxXattrValue = 65536
)

const (
	mmpMagic = 0x004D4D50
	mmpClean = 0xFF4D4D50
)

// Superblock of a journal (jbd2): big-endian, in the first block of the journal's file.
const (
	jsMagic     = 0x00 // u32
	jsType      = 0x04 // u32, 4: superblock of version 2
	jsBlockSize = 0x0C // u32, bytes
	jsBlocks    = 0x10 // u32, blocks of the journal
	jsFirst     = 0x14 // u32, first block of the log
	jsSequence  = 0x18 // u32, first transaction expected
	jsUUID      = 0x30 // 16 bytes
	jsUsers     = 0x40 // u32, filesystems

	journalMagic = 0xC03B3998
	journalSB2   = 4
)
