package ext4

// What only Check looks at of the on-disk format. Offsets and units as in layout.go.
const (
	sbUserQuota    = 0x240 // u32, inode number
	sbGroupQuota   = 0x244 // u32, inode number
	sbProjectQuota = 0x26C // u32, inode number
	sbOrphanFile   = 0x280 // u32, inode number

	compatKnown = 0x3 | compatHasJournal | compatExtAttr | compatResizeInode | compatDirIndex | compatSparseSuper2 | 0x400 | 0x800 | compatOrphanFile

	badBlocksInode = 1

	inFragment = 0x70 // u32, block number; fragments were never made

	flagVerity = 0x100000

	jsStart    = 0x1C // u32, block of the log's first transaction; 0: there is none
	jsErrno    = 0x20 // u32
	jsIncompat = 0x28 // u32, feature bits
	jsROCompat = 0x2C // u32, feature bits
	jsChecksum = 0xFC // u32, crc32c of the 1024 bytes with this as zero

	journalSB1       = 3
	journalSuperSize = 1024
	journalCsumV2    = 0x8
	journalCsumV3    = 0x10
	journalIncompat  = 0x3F  // bits that are known
	mmpChecksum      = 0x3FC // u32, of the mmp block's 1020 bytes before
	orphanMagic      = 0x0B10CA04
	orphanTail       = 8 // bytes at the end of a block of the orphan file: u32 magic, u32 checksum
	dxInfoLen        = 8
	dxMaxLevels      = 2 // below the root; one more with large_dir
	dxCountMask      = 0x0FFFFFFF
	hashSIP          = 6
	inodeHashOfValue = inAtime // u32, of an inode that holds an attribute's value: crc32c of it
)
