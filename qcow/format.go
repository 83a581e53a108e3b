package qcow

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"
)

// The constants and layouts below follow docs/interop/qcow2.txt of QEMU. All integers are big-endian.

const (
	magic = 0x514649fb // "QFI\xfb"

	headerLenV2  = 72
	headerLenV3  = 104
	headerLenOut = 112 // what new images get: v3 plus compression_type and its padding

	// incompatible features
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4
	incompatKnown       = incompatDirty | incompatCorrupt | incompatDataFile | incompatCompression | incompatExtendedL2

	// compatible features
	compatLazyRefcounts = 1 << 0

	// autoclear features
	autoclearBitmaps = 1 << 0
	autoclearDataRaw = 1 << 1

	// header extensions
	extEnd           = 0x00000000
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441

	compressionZlib = 0
	compressionZstd = 1

	// L1 and L2 entries
	offsetMask     = 0x00fffffffffffe00 // bits 9-55
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1 << 0 // v3 without extended L2
	l1Reserved     = ^uint64(offsetMask | flagCopied)
	l2Reserved     = ^uint64(offsetMask | flagCopied | flagZero)

	// extended L2: the second word of an entry
	subclusters = 32
	subAlloc    = 0x00000000ffffffff // all 32 subclusters allocated
	subZero     = 0xffffffff00000000 // all 32 subclusters read as zeros

	// caps, as QEMU has them
	maxL1Bytes            = 32 << 20
	maxRefcountTableBytes = 8 << 20
	maxSnapshots          = 65536
	maxSnapshotTableBytes = 64 << 20
	maxSnapshotExtra      = 1024
	maxBitmaps            = 65535
	maxBitmapDirBytes     = 64 << 20
	maxBitmapTableBytes   = 64 << 20
	maxBackingName        = 1023
	minClusterBits        = 9
	maxClusterBits        = 21
	minExtClusterBits     = 14
	maxChain              = 64

	sectorSize = 512
)

// header is the image header; the number behind each field is its byte offset in the file.
type header struct {
	version       uint32 // 4
	backingOff    uint64 // 8: byte offset of the backing file name
	backingLen    uint32 // 16: bytes
	clusterBits   uint32 // 20
	size          uint64 // 24: guest bytes
	crypt         uint32 // 32
	l1Size        uint32 // 36: entries
	l1Off         uint64 // 40
	rtOff         uint64 // 48: refcount table
	rtClusters    uint32 // 56: clusters
	snapshots     uint32 // 60
	snapshotsOff  uint64 // 64
	incompat      uint64 // 72: v3 from here
	compat        uint64 // 80
	autoclear     uint64 // 88
	refcountOrder uint32 // 96
	length        uint32 // 100: bytes
	compression   uint8  // 104: if length > 104

	tail        []byte // additional fields behind compression that we do not know, kept as they are
	exts        []extension
	backingFile string
}

// extension is a header extension: type (4 bytes), length (4 bytes), data padded to 8 bytes.
type extension struct {
	typ  uint32
	data []byte
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }
func (h *header) extendedL2() bool   { return h.incompat&incompatExtendedL2 != 0 }
func (h *header) hasDataFile() bool  { return h.incompat&incompatDataFile != 0 }

// l2Bits is log2 of the entries of an L2 table.
func (h *header) l2Bits() uint {
	if h.extendedL2() {
		return uint(h.clusterBits) - 4
	}
	return uint(h.clusterBits) - 3
}

// l1Entries is the number of L1 entries that size guest bytes need.
func (h *header) l1Entries(size uint64) uint64 {
	shift := uint(h.clusterBits) + h.l2Bits()
	n := size >> shift
	if size&(1<<shift-1) != 0 {
		n++
	}
	return n
}

func (h *header) ext(typ uint32) ([]byte, bool) {
	for _, e := range h.exts {
		if e.typ == typ {
			return e.data, true
		}
	}
	return nil, false
}

// bitmapsExt is the content of the bitmaps header extension.
type bitmapsExt struct {
	count   uint32 // 0
	dirSize uint64 // 8: bytes
	dirOff  uint64 // 16
}

func (h *header) bitmaps() (bitmapsExt, bool, error) {
	b, ok := h.ext(extBitmaps)
	if !ok {
		return bitmapsExt{}, false, nil
	}
	if len(b) != 24 {
		return bitmapsExt{}, false, corruptf("bitmaps header extension has %d bytes instead of 24", len(b))
	}
	x := bitmapsExt{binary.BigEndian.Uint32(b), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])}
	switch {
	case x.count == 0 || x.count > maxBitmaps:
		return x, false, corruptf("%d bitmaps (1 to %d are possible)", x.count, maxBitmaps)
	case x.dirSize > maxBitmapDirBytes || x.dirSize < uint64(x.count)*24:
		return x, false, corruptf("bitmap directory of %d bytes for %d bitmaps", x.dirSize, x.count)
	case x.dirOff == 0 || x.dirOff&uint64(h.clusterSize()-1) != 0:
		return x, false, corruptf("bitmap directory at offset %#x is not aligned to a cluster", x.dirOff)
	}
	return x, true, nil
}

// IsQcow2 tells whether header, the first bytes of a file (8 are enough), starts a qcow2 image of version 2 or 3.
func IsQcow2(header []byte) bool {
	if len(header) < 8 || binary.BigEndian.Uint32(header) != magic {
		return false
	}
	v := binary.BigEndian.Uint32(header[4:])
	return v == 2 || v == 3
}

// readHeader reads and checks the header, its extensions and the backing file name. It judges nothing behind the first cluster
// except that the tables that the header names are aligned, inside the file and apart from each other.
func readHeader(src Source) (*header, error) {
	fileSize := src.Size()
	fixed := make([]byte, headerLenOut)
	n, err := readFull(src, fixed, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the qcow2 header: %w", err)
	}
	if n < headerLenV2 || binary.BigEndian.Uint32(fixed) != magic {
		return nil, fmt.Errorf("%w: no qcow2 magic in the first bytes", ErrNotQcow2)
	}
	be := binary.BigEndian
	h := &header{
		version:       be.Uint32(fixed[4:]),
		backingOff:    be.Uint64(fixed[8:]),
		backingLen:    be.Uint32(fixed[16:]),
		clusterBits:   be.Uint32(fixed[20:]),
		size:          be.Uint64(fixed[24:]),
		crypt:         be.Uint32(fixed[32:]),
		l1Size:        be.Uint32(fixed[36:]),
		l1Off:         be.Uint64(fixed[40:]),
		rtOff:         be.Uint64(fixed[48:]),
		rtClusters:    be.Uint32(fixed[56:]),
		snapshots:     be.Uint32(fixed[60:]),
		snapshotsOff:  be.Uint64(fixed[64:]),
		refcountOrder: 4,
		length:        headerLenV2,
	}
	if h.version != 2 && h.version != 3 {
		return nil, unsupportedf("qcow2 version %d (2 and 3 are known)", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return nil, unsupportedf("cluster_bits %d (%d to %d are possible)", h.clusterBits, minClusterBits, maxClusterBits)
	}
	first := make([]byte, min(h.clusterSize(), fileSize))
	if n, err = readFull(src, first, 0); err != nil {
		return nil, fmt.Errorf("reading the first cluster: %w", err)
	}
	first = first[:n]
	if h.version == 3 {
		if n < headerLenV3 {
			return nil, corruptf("the file ends inside the header (%d of %d bytes)", n, headerLenV3)
		}
		h.incompat = be.Uint64(fixed[72:])
		h.compat = be.Uint64(fixed[80:])
		h.autoclear = be.Uint64(fixed[88:])
		h.refcountOrder = be.Uint32(fixed[96:])
		h.length = be.Uint32(fixed[100:])
		if h.length < headerLenV3 || int64(h.length) > int64(len(first)) || h.length%8 != 0 {
			return nil, corruptf("header length %d (at least %d, a multiple of 8, inside the first cluster)", h.length, headerLenV3)
		}
		if h.length > headerLenV3 {
			h.compression = fixed[104]
			h.tail = first[headerLenV3+1 : h.length : h.length]
		}
	}
	if err := h.readExtensions(first); err != nil {
		return nil, err
	}
	if err := h.check(fileSize); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *header) readExtensions(first []byte) error {
	end := uint64(len(first))
	if h.backingOff != 0 {
		if h.backingOff > end || uint64(h.backingLen) > end-h.backingOff {
			return corruptf("backing file name at offset %d, %d bytes, is not inside the first cluster", h.backingOff, h.backingLen)
		}
		if h.backingLen > maxBackingName {
			return corruptf("backing file name of %d bytes (at most %d)", h.backingLen, maxBackingName)
		}
		if h.backingLen != 0 {
			if h.backingOff < uint64(h.length) {
				return corruptf("backing file name at offset %d lies inside the header of %d bytes", h.backingOff, h.length)
			}
			h.backingFile = string(first[h.backingOff : h.backingOff+uint64(h.backingLen)])
			end = h.backingOff
		}
	}
	p := uint64(h.length)
	for end-p >= 8 && p < end {
		typ, n := binary.BigEndian.Uint32(first[p:]), uint64(binary.BigEndian.Uint32(first[p+4:]))
		if typ == extEnd {
			break
		}
		p += 8
		if n > end-p {
			return corruptf("header extension %#x of %d bytes ends past the extension area", typ, n)
		}
		if _, ok := h.ext(typ); ok && typ != extFeatureNames {
			return corruptf("header extension %#x appears twice", typ)
		}
		h.exts = append(h.exts, extension{typ, first[p : p+n : p+n]})
		p += (n + 7) &^ 7
	}
	return nil
}

// featureName is the image's own name for an incompatible feature bit, or its number.
func (h *header) featureName(bit int) string {
	for _, e := range h.exts {
		if e.typ != extFeatureNames {
			continue
		}
		for t := e.data; len(t) >= 48; t = t[48:] {
			if t[0] == 0 && int(t[1]) == bit {
				return fmt.Sprintf("%d (%q)", bit, strings.TrimRight(string(t[2:48]), "\x00"))
			}
		}
	}
	return fmt.Sprint(bit)
}

// check judges the header's values before anything is allocated from them.
func (h *header) check(fileSize int64) error {
	if u := h.incompat &^ incompatKnown; u != 0 {
		return unsupportedf("incompatible feature %s", h.featureName(bits.TrailingZeros64(u)))
	}
	if h.incompat&incompatCorrupt != 0 {
		return fmt.Errorf("%w: the image is marked corrupt; repair it with qemu-img check -r all", ErrCorrupt)
	}
	switch h.crypt {
	case 0:
	case 1:
		return unsupportedf("AES encryption")
	case 2:
		return unsupportedf("LUKS encryption")
	default:
		return unsupportedf("encryption method %d", h.crypt)
	}
	if h.refcountOrder > 6 {
		return unsupportedf("refcount order %d (at most 6)", h.refcountOrder)
	}
	if h.incompat&incompatCompression != 0 {
		if h.compression == compressionZlib {
			return corruptf("the compression type bit is set, but the type is zlib")
		}
		if h.compression != compressionZstd {
			return unsupportedf("compression type %d", h.compression)
		}
	} else if h.compression != compressionZlib {
		return corruptf("compression type %d without its incompatible feature bit", h.compression)
	}
	if h.extendedL2() && h.clusterBits < minExtClusterBits {
		return corruptf("extended L2 entries with cluster_bits %d (at least %d)", h.clusterBits, minExtClusterBits)
	}
	if h.autoclear&autoclearDataRaw != 0 && !h.hasDataFile() {
		return corruptf("raw external data bit without an external data file")
	}
	if h.hasDataFile() && h.snapshots != 0 {
		return corruptf("internal snapshots in an image with an external data file")
	}
	if h.autoclear&autoclearDataRaw != 0 && h.backingFile != "" {
		return corruptf("a raw external data file together with a backing file")
	}
	if h.size > 1<<62 {
		return unsupportedf("virtual size of %d bytes", h.size)
	}
	if uint64(h.l1Size)*8 > maxL1Bytes {
		return unsupportedf("L1 table of %d entries (at most %d)", h.l1Size, maxL1Bytes/8)
	}
	if need := h.l1Entries(h.size); need > uint64(h.l1Size) {
		return corruptf("L1 table of %d entries is too short for %d bytes (%d needed)", h.l1Size, h.size, need)
	}
	if uint64(h.rtClusters)<<h.clusterBits > maxRefcountTableBytes {
		return unsupportedf("refcount table of %d clusters (at most %d bytes)", h.rtClusters, maxRefcountTableBytes)
	}
	if h.rtClusters == 0 {
		return corruptf("no refcount table")
	}
	if h.snapshots > maxSnapshots {
		return unsupportedf("%d snapshots (at most %d)", h.snapshots, maxSnapshots)
	}
	if _, _, err := h.bitmaps(); err != nil && h.autoclear&autoclearBitmaps != 0 {
		return err
	}

	type area struct {
		name     string
		off, len uint64
	}
	areas := []area{{"header", 0, uint64(h.length)}}
	if h.l1Size > 0 {
		areas = append(areas, area{"L1 table", h.l1Off, uint64(h.l1Size) * 8})
	}
	areas = append(areas, area{"refcount table", h.rtOff, uint64(h.rtClusters) << h.clusterBits})
	if h.snapshots > 0 {
		areas = append(areas, area{"snapshot table", h.snapshotsOff, uint64(h.snapshots) * 40})
	}
	for i, a := range areas {
		if a.off&uint64(h.clusterSize()-1) != 0 {
			return corruptf("%s at offset %#x is not aligned to a cluster", a.name, a.off)
		}
		// The refcount table's last cluster need not be whole, and reading ignores it altogether.
		if a.off >= uint64(fileSize) || a.name != "refcount table" && a.len > uint64(fileSize)-a.off {
			return corruptf("%s at offset %#x, %d bytes, ends past the file (%d bytes)", a.name, a.off, a.len, fileSize)
		}
		for _, b := range areas[:i] {
			if a.off < b.off+b.len && b.off < a.off+a.len {
				return corruptf("%s at offset %#x overlaps the %s", a.name, a.off, b.name)
			}
		}
	}
	return nil
}

// encode is the first bytes of the file: header, extensions, end mark, backing file name. It sets backingOff and backingLen.
func (h *header) encode() ([]byte, error) {
	be := binary.BigEndian
	b := make([]byte, h.length)
	var exts []byte
	for _, e := range h.exts {
		exts = be.AppendUint32(exts, e.typ)
		exts = be.AppendUint32(exts, uint32(len(e.data)))
		exts = append(exts, e.data...)
		for len(exts)%8 != 0 {
			exts = append(exts, 0)
		}
	}
	exts = append(exts, make([]byte, 8)...)
	h.backingOff, h.backingLen = 0, 0
	if h.backingFile != "" {
		h.backingOff, h.backingLen = uint64(len(b)+len(exts)), uint32(len(h.backingFile))
	}
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.version)
	be.PutUint64(b[8:], h.backingOff)
	be.PutUint32(b[16:], h.backingLen)
	be.PutUint32(b[20:], h.clusterBits)
	be.PutUint64(b[24:], h.size)
	be.PutUint32(b[32:], h.crypt)
	be.PutUint32(b[36:], h.l1Size)
	be.PutUint64(b[40:], h.l1Off)
	be.PutUint64(b[48:], h.rtOff)
	be.PutUint32(b[56:], h.rtClusters)
	be.PutUint32(b[60:], h.snapshots)
	be.PutUint64(b[64:], h.snapshotsOff)
	if h.version >= 3 {
		be.PutUint64(b[72:], h.incompat)
		be.PutUint64(b[80:], h.compat)
		be.PutUint64(b[88:], h.autoclear)
		be.PutUint32(b[96:], h.refcountOrder)
		be.PutUint32(b[100:], h.length)
		if h.length > headerLenV3 {
			b[104] = h.compression
			copy(b[105:], h.tail)
		}
	}
	b = append(append(b, exts...), h.backingFile...)
	if int64(len(b)) > h.clusterSize() {
		return nil, fmt.Errorf("header, extensions and backing file name take %d bytes, more than a cluster of %d", len(b), h.clusterSize())
	}
	return b, nil
}

// featureNameTable is the table that QEMU 7.2 writes, so that older programs can name what they refuse.
func featureNameTable() []byte {
	var out []byte
	for _, f := range []struct {
		typ, bit byte
		name     string
	}{
		{0, 0, "dirty bit"}, {0, 1, "corrupt bit"}, {0, 2, "external data file"}, {0, 3, "compression type"}, {0, 4, "extended L2 entries"},
		{1, 0, "lazy refcounts"}, {2, 0, "bitmaps"}, {2, 1, "raw external data"},
	} {
		e := make([]byte, 48)
		e[0], e[1] = f.typ, f.bit
		copy(e[2:], f.name)
		out = append(out, e...)
	}
	return out
}

// compressedExtent splits a compressed cluster descriptor into the byte offset and the length in bytes, which is exact only to the sector.
func compressedExtent(entry uint64, clusterBits uint) (off, length int64) {
	x := 62 - (clusterBits - 8)
	off = int64(entry & (1<<x - 1))
	sectors := int64(entry>>x&(1<<(clusterBits-8)-1)) + 1
	return off, sectors*sectorSize - off%sectorSize
}

// compressedEntry is the inverse for a blob of n bytes at off.
func compressedEntry(off int64, n int, clusterBits uint) uint64 {
	x := 62 - (clusterBits - 8)
	sectors := uint64((off+int64(n)-1)/sectorSize - off/sectorSize)
	return flagCompressed | sectors<<x | uint64(off)
}
