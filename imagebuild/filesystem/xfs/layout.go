package xfs

import "hash/crc32"

// This file holds the on-disk format: magic numbers, and the byte offset of every field that the package
// reads or writes. All integers are big-endian, except checksums, which are little-endian CRC32c.
// Source: "XFS Algorithms & Data Structures", 3rd edition, and the kernel's fs/xfs/libxfs/xfs_format.h
// and xfs_da_format.h.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	sbMagic      = 0x58465342 // "XFSB"
	agfMagic     = 0x58414746 // "XAGF"
	agiMagic     = 0x58414749 // "XAGI"
	agflMagic    = 0x5841464c // "XAFL"
	bnobtMagic   = 0x41423342 // "AB3B" free space by block
	cntbtMagic   = 0x41423343 // "AB3C" free space by length
	inobtMagic   = 0x49414233 // "IAB3" inode chunks
	finobtMagic  = 0x46494233 // "FIB3" inode chunks with free inodes
	rmapbtMagic  = 0x524d4233 // "RMB3" owners of blocks
	refcMagic    = 0x52334643 // "R3FC" shared blocks
	bmbtMagic    = 0x424d4133 // "BMA3" extents of a fork
	inodeMagic   = 0x494e     // "IN"
	symlinkMagic = 0x58534c4d // "XSLM"
	attrRmtMagic = 0x5841524d // "XARM"
	dirBlkMagic  = 0x58444233 // "XDB3" folder of one block
	dirDataMagic = 0x58444433 // "XDD3"
	dirFreeMagic = 0x58444633 // "XDF3"
	dirLeaf1     = 0x3df1     // the only leaf of a folder
	dirLeafN     = 0x3dff     // one of many leaves
	daNodeMagic  = 0x3ebe     // node above folder or attribute leaves
	attrLeaf     = 0x3bee
	logRecMagic  = 0xfeedbabe
)

// Superblock, sector 0 of each allocation group.
const (
	sbBlockSize   = 4   // u32 bytes
	sbDblocks     = 8   // u64 blocks
	sbRblocks     = 16  // u64 blocks of the realtime device
	sbUUID        = 32  // 16 bytes
	sbLogStart    = 48  // u64 fsblock; 0: the log is on another device
	sbRootIno     = 56  // u64
	sbRbmIno      = 64  // u64
	sbRsumIno     = 72  // u64
	sbRextSize    = 80  // u32 blocks
	sbAgBlocks    = 84  // u32 blocks
	sbAgCount     = 88  // u32
	sbLogBlocks   = 96  // u32 blocks
	sbVersion     = 100 // u16 low nibble: version; the rest: flags
	sbSectSize    = 102 // u16 bytes
	sbInodeSize   = 104 // u16 bytes
	sbInopBlock   = 106 // u16
	sbFname       = 108 // 12 bytes, NUL-padded
	sbBlockLog    = 120 // u8
	sbSectLog     = 121 // u8
	sbInodeLog    = 122 // u8
	sbInopBlog    = 123 // u8
	sbAgBlkLog    = 124 // u8
	sbInProgress  = 126 // u8
	sbImaxPct     = 127 // u8 percent
	sbIcount      = 128 // u64 inodes allocated
	sbIfree       = 136 // u64 inodes free
	sbFdblocks    = 144 // u64 blocks free
	sbUquotIno    = 160 // u64
	sbGquotIno    = 168 // u64
	sbQflags      = 176 // u16
	sbInoAlign    = 180 // u32 blocks
	sbUnit        = 184 // u32 blocks
	sbWidth       = 188 // u32 blocks
	sbDirBlkLog   = 192 // u8
	sbLogSectSize = 194 // u16 bytes
	sbLogSunit    = 196 // u32 bytes
	sbFeatures2   = 200 // u32
	sbBadFeat2    = 204 // u32, a copy of features2
	sbCompat      = 208 // u32
	sbRoCompat    = 212 // u32
	sbIncompat    = 216 // u32
	sbLogIncompat = 220 // u32
	sbCRC         = 224 // u32 LE
	sbSpinoAlign  = 228 // u32 blocks
	sbPquotIno    = 232 // u64
	sbLSN         = 240 // u64
	sbMetaUUID    = 248 // 16 bytes
	sbSize        = 264 // bytes; later formats add fields behind it
)

const (
	vbitAttr    = 0x0010
	vbitNlink   = 0x0020
	vbitQuota   = 0x0040
	vbitAlign   = 0x0080
	vbitDalign  = 0x0100
	vbitLogV2   = 0x0400
	vbitSector  = 0x0800
	vbitExtFlag = 0x1000
	vbitDirV2   = 0x2000
	vbitBorg    = 0x4000 // names compare without ASCII case
	vbitMore    = 0x8000

	feat2Lazy     = 0x00000002
	feat2Attr2    = 0x00000008
	feat2ProjID32 = 0x00000080
	feat2CRC      = 0x00000100
	feat2Ftype    = 0x00000200

	roFinobt   = 1
	roRmapbt   = 2
	roReflink  = 4
	roInobtCnt = 8

	incFtype       = 1
	incSpinodes    = 2
	incMetaUUID    = 4
	incBigtime     = 8
	incNeedsRepair = 16
	incNrext64     = 32
	incExchange    = 64
	incParent      = 128
	incMetadir     = 256
	incZoned       = 512
	incZoneGaps    = 1024

	// The "this was counted" bits of sb_qflags: user, group+project (old), group, project.
	quotaChecked = 0x0004 | 0x0020 | 0x0100 | 0x0400
)

// AGF, sector 1 of each allocation group.
const (
	agfVersion    = 4
	agfSeqno      = 8
	agfLength     = 12 // blocks
	agfBnoRoot    = 16
	agfCntRoot    = 20
	agfRmapRoot   = 24
	agfBnoLevel   = 28
	agfCntLevel   = 32
	agfRmapLevel  = 36
	agfFlFirst    = 40 // index in AGFL
	agfFlLast     = 44
	agfFlCount    = 48
	agfFreeBlks   = 52 // blocks
	agfLongest    = 56 // blocks
	agfBtreeBlks  = 60 // blocks of bnobt, cntbt, rmapbt without their roots
	agfUUID       = 64
	agfRmapBlks   = 80 // blocks, root included
	agfRefcBlks   = 84 // blocks, root included
	agfRefcRoot   = 88
	agfRefcLevel  = 92
	agfLSN        = 208
	agfCRC        = 216
	agfStructSize = 224
)

// AGI, sector 2.
const (
	agiVersion    = 4
	agiSeqno      = 8
	agiLength     = 12
	agiCount      = 16 // inodes allocated
	agiRoot       = 20
	agiLevel      = 24
	agiFreeCount  = 28
	agiNewIno     = 32
	agiDirIno     = 36
	agiUnlinked   = 40 // 64 buckets of u32
	agiUUID       = 296
	agiCRC        = 312
	agiLSN        = 320
	agiFreeRoot   = 328
	agiFreeLevel  = 332
	agiIBlocks    = 336
	agiFBlocks    = 340
	agiStructSize = 344
)

// AGFL, sector 3.
const (
	agflSeqno = 4
	agflUUID  = 8
	agflLSN   = 24
	agflCRC   = 32
	agflBno   = 36
)

const (
	nullAgBlock  = 0xffffffff
	nullFsBlock  = ^uint64(0)
	nullAgino    = 0xffffffff
	nullLSN      = ^uint64(0)
	inodesPerRec = 64
)

// B+tree block headers. Short pointers within an allocation group, long ones in a fork.
const (
	btLevel    = 4
	btNumRecs  = 6
	btShLeft   = 8
	btShRight  = 12
	btShBlkno  = 16 // in 512-byte sectors of the whole device
	btShLSN    = 24
	btShUUID   = 32
	btShOwner  = 48 // u32 agno
	btShCRC    = 52
	btShHdr    = 56
	btLgLeft   = 8
	btLgRight  = 16
	btLgBlkno  = 24
	btLgLSN    = 32
	btLgUUID   = 40
	btLgOwner  = 56 // u64 inode
	btLgCRC    = 64
	btLgHdr    = 72
	maxBtLevel = 12 // no tree of any sane size is deeper
)

// Owners in the reverse map that are no inode, and the flags kept in rm_offset.
const (
	ownFS     = ^uint64(0) - 2 // -3
	ownLog    = ^uint64(0) - 3
	ownAG     = ^uint64(0) - 4
	ownInobt  = ^uint64(0) - 5
	ownInodes = ^uint64(0) - 6
	ownRefc   = ^uint64(0) - 7
	ownCow    = ^uint64(0) - 8
	ownMin    = ^uint64(0) - 15

	rmapAttr      = 1 << 63
	rmapBmbt      = 1 << 62
	rmapUnwritten = 1 << 61
	rmapOffMask   = 1<<54 - 1

	refcCow = 1 << 31 // in rc_startblock: blocks staged for copy on write
)

// Inode core, version 3.
const (
	diMode        = 2
	diVersion     = 4
	diFormat      = 5
	diUID         = 8
	diGID         = 12
	diNlink       = 16
	diProjLo      = 20
	diProjHi      = 22
	diBigNextents = 24 // u64, with nrext64
	diAtime       = 32
	diMtime       = 40
	diCtime       = 48
	diSize        = 56
	diNblocks     = 64
	diExtsize     = 72
	diNextents    = 76 // u32; with nrext64: attribute extents
	diAnextents   = 80 // u16
	diForkoff     = 82 // u8, in 8-byte units behind the core
	diAformat     = 83
	diFlags       = 90
	diGen         = 92
	diUnlinked    = 96
	diCRC         = 100
	diChangeCount = 104
	diLSN         = 112
	diFlags2      = 120
	diCowExtsize  = 128
	diCrtime      = 144
	diIno         = 152
	diUUID        = 160
	diCoreSize    = 176
)

const (
	fmtDev     = 0
	fmtLocal   = 1
	fmtExtents = 2
	fmtBtree   = 3

	modeMask = 0170000
	modeFifo = 0010000
	modeChar = 0020000
	modeDir  = 0040000
	modeBlk  = 0060000
	modeReg  = 0100000
	modeLnk  = 0120000
	modeSock = 0140000

	flagRealtime     = 0x0001
	flagNewRtBitmap  = 0x0004
	flagImmutable    = 0x0008
	flagAppend       = 0x0010
	flagSync         = 0x0020
	flagNoatime      = 0x0040
	flagNodump       = 0x0080
	flagRtInherit    = 0x0100
	flagProjInherit  = 0x0200
	flagNoSymlinks   = 0x0400
	flagExtsize      = 0x0800
	flagExtszInherit = 0x1000
	flagNodefrag     = 0x2000
	flagFilestream   = 0x4000

	flag2DAX        = 1
	flag2Reflink    = 2
	flag2CowExtsize = 4
	flag2Bigtime    = 8
	flag2Nrext64    = 16

	devMajorMask = 0x1ff
	maxLinks     = 1<<31 - 1
	maxSymlink   = 1024 // bytes, with the NUL that is not stored
	maxNameLen   = 255
	maxExtLen    = 1<<21 - 1
	maxFileOff   = 1<<54 - 1
	maxAttrVal   = 65536
	maxDirSpace  = 1 << 35 // bytes of each of a folder's data, leaf and free spaces
)

// File types in folder entries.
var ftypeOfMode = map[uint16]byte{modeReg: 1, modeDir: 2, modeChar: 3, modeBlk: 4, modeFifo: 5, modeSock: 6, modeLnk: 7}

// Folder data blocks (dir3): a 48-byte header (magic u32, crc u32 LE, blkno u64, lsn u64, uuid, owner u64),
// then three "best free" pairs of u16 (offset, length), 4 bytes of padding, entries from 64 on.
const (
	d3CRC      = 4
	d3Blkno    = 8
	d3LSN      = 16
	d3UUID     = 24
	d3Owner    = 40
	d3BestFree = 48
	d3Hdr      = 64

	// dir3 free index block: behind the common header.
	dfFirstDB = 48
	dfNvalid  = 52
	dfNused   = 56
	dfHdr     = 64

	dirNullOff = 0xffff
)

// da3 blocks (folder leaves and nodes, attribute leaves and nodes).
const (
	daForw  = 0
	daBack  = 4
	daMagic = 8 // u16
	daCRC   = 12
	daBlkno = 16
	daLSN   = 24
	daUUID  = 32
	daOwner = 48
	daCount = 56 // u16
	daLevel = 58 // u16 in nodes; stale entries in folder leaves; bytes used in attribute leaves
	daHdr   = 64

	alFirstUsed = 60
	alHoles     = 62
	alFreeMap   = 64 // three pairs of u16 (base, size)
	alHdr       = 80
)

// Attribute entry flags.
const (
	attrLocal      = 0x01
	attrRoot       = 0x02
	attrSecure     = 0x04
	attrParent     = 0x08
	attrIncomplete = 0x80
)

// Remote attribute value and remote symlink block headers share one shape.
const (
	rmOffset = 4
	rmBytes  = 8
	rmCRC    = 12
	rmUUID   = 16
	rmOwner  = 32
	rmBlkno  = 40
	rmLSN    = 48
	rmHdr    = 56
)
