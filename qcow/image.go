package qcow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

var (
	// ErrNotQcow2 says that the source does not begin with a qcow2 header.
	ErrNotQcow2 = errors.New("not a qcow2 image")
	// ErrUnsupported says that the image needs a feature, or exceeds a cap, that this package does not have.
	ErrUnsupported = errors.New("unsupported qcow2 image")
	// ErrCorrupt says that the image contradicts the format.
	ErrCorrupt = errors.New("corrupt qcow2 image")
	// ErrBacking says that a backing or data file was refused or could not be opened.
	ErrBacking = errors.New("backing file refused")
	// ErrCannotPatch says that the image cannot be changed in place; convert it instead.
	ErrCannotPatch = errors.New("cannot patch this qcow2 image in place")
)

func corruptf(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrCorrupt}, a...)...)
}

func unsupportedf(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, a...)...)
}

// Source is the bytes of a file: an image, a backing file, a data file. Size is in bytes and must not change. ReadAt must be safe for
// concurrent use. A Source that is also an io.Closer is closed by Image.Close if a resolver returned it.
type Source interface {
	io.ReaderAt
	Size() int64
}

// Options say how an image is opened. The zero value refuses images that need another file.
type Options struct {
	// Resolve opens the backing or data file that an image names. format is as the image says ("raw", "qcow2"), "raw" for a data file.
	// Nil refuses. NewDirResolver makes a safe one.
	Resolve func(name, format string) (Source, error)

	// Path is where src is, if Resolve is to get paths. A relative name is then put behind the folder of the image that has it, as QEMU does with
	// backing files: behind Path's for src, behind the backing file's own for what that names, and so on. An absolute name stays as it is, and so
	// does one with a protocol ("json:", "nbd:"), which has a colon before any slash. A relative Path counts from the working folder.
	// If Path is empty, Resolve gets all names as the images have them.
	Path string
}

// beside is the path of the file that the image at o.Path calls name.
func (o Options) beside(name string) string {
	colon, slash := strings.IndexByte(name, ':'), strings.IndexByte(name, '/')
	if o.Path == "" || slash == 0 || colon >= 0 && (slash < 0 || colon < slash) {
		return name
	}
	// Not filepath.Join, which would take a/.. away although a may be a symbolic link.
	return o.Path[:strings.LastIndexByte(o.Path, '/')+1] + name
}

// Info describes an image.
type Info struct {
	Version       int    // 2 or 3; 0 for raw
	ClusterSize   int64  // bytes
	Compression   string // "zlib" or "zstd": what compressed clusters use, if there are any
	RefcountBits  int
	BackingFile   string // as the image says; empty if none
	BackingFormat string
	DataFile      string // as the image says; empty if none
	DataFileRaw   bool
	Snapshots     int // internal snapshots
	Bitmaps       int // persistent bitmaps
	Dirty         bool
	LazyRefcounts bool
	ExtendedL2    bool
	Features      FeatureBits
}

// FeatureBits are the three feature masks of a version 3 header.
type FeatureBits struct{ Incompatible, Compatible, Autoclear uint64 }

// Kind says what stands behind a guest range.
type Kind uint8

// The kinds of guest ranges.
const (
	Hole       Kind = iota // nowhere allocated; reads as zeros
	Zero                   // zeros by a flag, or past the end of a shorter backing file
	Data                   // stored plainly
	Compressed             // stored in compressed clusters
)

func (k Kind) String() string { return [...]string{"hole", "zero", "data", "compressed"}[k] }

// Extent is a guest range of one kind. Start and Length are in bytes; Depth is 0 for the image itself, 1 for its backing file, and so on.
type Extent struct {
	Start, Length int64
	Kind          Kind
	Depth         int
}

// Image is an image opened for reading. Its methods are safe for concurrent use.
type Image struct {
	src      Source
	data     Source // src, or the external data file
	size     int64  // guest bytes
	hdr      *header
	l1       []uint64
	raw      bool
	fileSize int64 // bytes of src up to which host clusters may lie
	backing  *Image
	caches   *caches
	tables   tableLoader
	owned    []io.Closer

	clusterBits uint
	l2Bits      uint
	entrySize   int64 // bytes of an L2 entry
	sliceBytes  int64 // bytes of the unit in which L2 tables and refcount blocks are read
}

// tableLoader gives the slice of a table at a byte offset of the image file.
type tableLoader interface {
	load(off, n int64) ([]byte, error)
}

// Open opens the qcow2 image in src for reading its active state. It reads the header and the L1 table, and opens the backing chain and
// the data file through o.Resolve. Errors: ErrNotQcow2, ErrUnsupported, ErrCorrupt, ErrBacking, or what src returns.
func Open(src Source, o Options) (*Image, error) {
	if o.Path != "" && !filepath.IsAbs(o.Path) {
		dir, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		o.Path = dir + "/" + o.Path
	}
	budget := int64(2 * maxL1Bytes)
	im, err := open(src, o, newCaches(), nil, &budget)
	if err != nil {
		return nil, err
	}
	return im, nil
}

// OpenRaw presents the bytes of src as an image, so that raw and qcow2 disks are read in one way. Extents knows the holes if src was made by
// NewFileSource.
func OpenRaw(src Source) *Image {
	return &Image{src: src, data: src, size: src.Size(), fileSize: src.Size(), raw: true, clusterBits: 16}
}

func open(src Source, o Options, c *caches, chain []Source, l1Budget *int64) (*Image, error) {
	if len(chain) > maxChain {
		return nil, fmt.Errorf("%w: more than %d images in the backing chain", ErrBacking, maxChain)
	}
	for _, s := range chain {
		if sameFile(s, src) {
			return nil, fmt.Errorf("%w: the backing chain is a loop", ErrBacking)
		}
	}
	h, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	need := h.l1Entries(h.size)
	if *l1Budget -= int64(need) * 8; *l1Budget < 0 {
		return nil, unsupportedf("the L1 tables of the backing chain take more than %d bytes", 2*maxL1Bytes)
	}
	im := newImage(src, h, c)
	if im.l1, err = readTable(src, int64(h.l1Off), int(need)); err != nil {
		return nil, fmt.Errorf("reading the L1 table: %w", err)
	}
	for i, e := range im.l1 {
		if off := int64(e & offsetMask); off&(h.clusterSize()-1) != 0 {
			return nil, corruptf("L1 entry %d: L2 table at offset %#x is not aligned to a cluster", i, off)
		} else if off >= im.fileSize {
			return nil, corruptf("L1 entry %d: L2 table at offset %#x lies past the file (%d bytes)", i, off, im.fileSize)
		}
	}
	if err := im.openOthers(o, append(chain, src), l1Budget); err != nil {
		im.Close()
		return nil, err
	}
	return im, nil
}

func newImage(src Source, h *header, c *caches) *Image {
	im := &Image{src: src, data: src, size: int64(h.size), hdr: h, fileSize: src.Size(), caches: c,
		clusterBits: uint(h.clusterBits), l2Bits: h.l2Bits(), entrySize: 8, sliceBytes: min(h.clusterSize(), maxSlice)}
	if h.extendedL2() {
		im.entrySize = 16
	}
	im.tables = readerTables{im}
	return im
}

func (im *Image) openOthers(o Options, chain []Source, l1Budget *int64) error {
	h := im.hdr
	if h.hasDataFile() {
		name, ok := h.ext(extDataFile)
		if !ok {
			return fmt.Errorf("%w: the image has an external data file but does not name it", ErrBacking)
		}
		src, _, err := o.resolve("data file", string(name), "raw")
		if err != nil {
			return err
		}
		im.data = src
		im.own(src)
	}
	if h.backingFile == "" {
		return nil
	}
	format, _ := h.ext(extBackingFormat)
	switch string(format) {
	case "raw", "qcow2":
	case "":
		return fmt.Errorf("%w: %q is named without a format, and guessing one is not safe; set it with qemu-img rebase -u -F", ErrBacking, h.backingFile)
	default:
		return fmt.Errorf("%w: %q has the format %q (raw and qcow2 are known)", ErrBacking, h.backingFile, format)
	}
	src, path, err := o.resolve("backing file", h.backingFile, string(format))
	if err != nil {
		return err
	}
	if o.Path != "" {
		o.Path = path
	}
	im.own(src)
	if string(format) == "raw" {
		im.backing = OpenRaw(src)
		return nil
	}
	if im.backing, err = open(src, o, im.caches, chain, l1Budget); err != nil {
		return fmt.Errorf("backing file %q: %w", h.backingFile, err)
	}
	return nil
}

func (o Options) resolve(what, name, format string) (src Source, path string, err error) {
	if o.Resolve == nil {
		return nil, "", fmt.Errorf("%w: the image needs the %s %q", ErrBacking, what, name)
	}
	path = o.beside(name)
	if src, err = o.Resolve(path, format); err != nil {
		return nil, "", fmt.Errorf("%w: %s %q: %w", ErrBacking, what, name, err)
	}
	return src, path, nil
}

func (im *Image) own(s Source) {
	if c, ok := s.(io.Closer); ok {
		im.owned = append(im.owned, c)
	}
}

// Close closes what the resolver opened; the source given to Open stays open.
func (im *Image) Close() error {
	var err error
	if im.backing != nil {
		err = im.backing.Close()
	}
	for _, c := range im.owned {
		err = errors.Join(err, c.Close())
	}
	im.owned = nil
	return err
}

// Size is the guest size in bytes.
func (im *Image) Size() int64 { return im.size }

// Backing is the opened backing image, or nil.
func (im *Image) Backing() *Image { return im.backing }

// Info describes the image.
func (im *Image) Info() Info {
	if im.raw {
		return Info{}
	}
	return im.hdr.info()
}

func (h *header) info() Info {
	format, _ := h.ext(extBackingFormat)
	data, _ := h.ext(extDataFile)
	bm, _, _ := h.bitmaps()
	i := Info{
		Version: int(h.version), ClusterSize: h.clusterSize(), Compression: "zlib", RefcountBits: 1 << h.refcountOrder,
		BackingFile: h.backingFile, BackingFormat: string(format), DataFile: string(data), DataFileRaw: h.autoclear&autoclearDataRaw != 0,
		Snapshots: int(h.snapshots), Bitmaps: int(bm.count), Dirty: h.incompat&incompatDirty != 0,
		LazyRefcounts: h.compat&compatLazyRefcounts != 0, ExtendedL2: h.extendedL2(),
		Features: FeatureBits{h.incompat, h.compat, h.autoclear},
	}
	if h.compression == compressionZstd {
		i.Compression = "zstd"
	}
	return i
}

// segment is a guest range [start, end) with one source.
type segment struct {
	start, end int64
	kind       Kind
	depth      int
	im         *Image // the layer that holds it
	host       int64  // Data: byte offset in im.data
	desc       uint64 // Compressed: the L2 entry; the segment is then inside one cluster
}

// lookup finds what stands at the guest offset off, up to end at most. With probe it asks raw files for their holes.
func (im *Image) lookup(off, end int64, probe bool) (segment, error) {
	if end > im.size {
		if off >= im.size {
			return segment{start: off, end: end, kind: Zero, im: im}, nil
		}
		end = im.size
	}
	if im.raw {
		s := segment{start: off, end: end, kind: Data, im: im, host: off}
		if hs, ok := im.src.(holeSource); ok && probe {
			hole, to, err := hs.nextRange(off)
			if err != nil {
				return s, err
			}
			if hole {
				s.kind = Hole
			}
			if to > off {
				s.end = min(end, to)
			}
		}
		return s, nil
	}
	s, err := im.lookupOwn(off, end)
	if err != nil {
		return s, err
	}
	if s.kind == Data && probe && im.hdr.hasDataFile() {
		// A raw data file has all clusters allocated, and is sparse.
		if hs, ok := im.data.(holeSource); ok {
			hole, to, err := hs.nextRange(s.host)
			if err != nil {
				return s, err
			}
			if to > s.host {
				s.end = min(s.end, s.start+to-s.host)
				if hole {
					s.kind = Zero
				}
			}
		}
	}
	if s.kind != Hole || im.backing == nil {
		return s, nil
	}
	b, err := im.backing.lookup(off, s.end, probe)
	if err != nil {
		return b, fmt.Errorf("backing file %q: %w", im.hdr.backingFile, err)
	}
	b.depth++
	return b, nil
}

func (im *Image) lookupOwn(off, end int64) (segment, error) {
	s := segment{start: off, im: im}
	cs := int64(1) << im.clusterBits
	l1Shift := im.clusterBits + im.l2Bits
	l1i := off >> l1Shift
	l2off := int64(im.l1[l1i] & offsetMask)
	if l2off == 0 {
		s.kind = Hole
		for l1i++; l1i<<l1Shift < end && im.l1[l1i]&offsetMask == 0; l1i++ {
		}
		s.end = min(end, l1i<<l1Shift)
		return s, nil
	}
	perSlice := im.sliceBytes / im.entrySize
	i := off >> im.clusterBits & (1<<im.l2Bits - 1)
	slice := i / perSlice
	tbl, err := im.tables.load(l2off+slice*im.sliceBytes, im.sliceBytes)
	if err != nil {
		return s, fmt.Errorf("reading the L2 table for guest offset %#x: %w", off, err)
	}
	i -= slice * perSlice
	unit := cs
	if im.entrySize == 16 {
		unit = cs / subclusters
	}
	base := off &^ (unit - 1)
	kind, host, err := im.classify(tbl, i, base)
	if err != nil {
		return s, err
	}
	s.kind = kind
	switch kind {
	case Compressed:
		s.desc = uint64(host)
		s.end = min(end, (off&^(cs-1))+cs)
		return s, nil
	case Data:
		s.host = host + off - base
	}
	for base += unit; base < end; base += unit {
		if base&(cs-1) == 0 {
			if i++; i == perSlice {
				break
			}
		}
		k, h, err := im.classify(tbl, i, base)
		if err != nil || k != kind || k == Data && h != s.host+base-off {
			break // an error is for whoever reads that cluster
		}
	}
	s.end = min(end, base)
	return s, nil
}

// classify judges the L2 entry i of tbl for the (sub)cluster at guest offset at. host is the byte offset of that (sub)cluster for Data, the
// entry itself for Compressed.
func (im *Image) classify(tbl []byte, i, at int64) (kind Kind, host int64, err error) {
	e := binary.BigEndian.Uint64(tbl[i*im.entrySize:])
	if e == 0 && im.entrySize == 8 {
		return Hole, 0, nil
	}
	if e&flagCompressed != 0 {
		if im.hdr.hasDataFile() {
			return 0, 0, corruptf("guest offset %#x: compressed cluster in an image with an external data file", at)
		}
		return Compressed, int64(e), nil
	}
	cs := int64(1) << im.clusterBits
	host = int64(e & offsetMask)
	allocated := host != 0 || e&flagCopied != 0 && im.hdr.hasDataFile()
	var in int64
	if im.entrySize == 16 {
		bm := binary.BigEndian.Uint64(tbl[i*16+8:])
		in = at & (cs - 1)
		sub := uint(in / (cs / subclusters))
		isAlloc, isZero := bm>>sub&1 != 0, bm>>(32+sub)&1 != 0
		switch {
		case isAlloc && isZero:
			return 0, 0, corruptf("guest offset %#x: subcluster both allocated and zero", at)
		case isAlloc && !allocated:
			return 0, 0, corruptf("guest offset %#x: subcluster allocated without a host cluster", at)
		case isZero:
			return Zero, 0, nil
		case !isAlloc:
			return Hole, 0, nil
		}
	} else if e&flagZero != 0 {
		if im.hdr.version < 3 {
			return 0, 0, corruptf("guest offset %#x: zero cluster in a version 2 image", at)
		}
		return Zero, 0, nil
	} else if !allocated {
		return Hole, 0, nil
	}
	switch {
	case host&(cs-1) != 0:
		return 0, 0, corruptf("guest offset %#x: host cluster at %#x is not aligned", at, host)
	case im.hdr.hasDataFile():
		if host != at&^(cs-1) {
			return 0, 0, corruptf("guest offset %#x: external data file offset %#x differs", at, host)
		}
	case host >= im.fileSize:
		return 0, 0, corruptf("guest offset %#x: host cluster at %#x lies past the file (%d bytes)", at, host, im.fileSize)
	}
	return Data, host + in, nil
}

// ReadAt reads guest bytes; past the guest size it returns io.EOF, as io.ReaderAt says.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("qcow: negative offset %d", off)
	}
	if off >= im.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	short := int64(len(p)) > im.size-off
	if short {
		p = p[:im.size-off]
	}
	p = p[:len(p):len(p)] // decoders may use what is behind a cluster, inside p
	end := off + int64(len(p))
	pos := off
	for pos < end {
		s, err := im.lookup(pos, end, false)
		if err != nil {
			return int(pos - off), err
		}
		if s.kind == Data {
			// Neighbours in the file that a table boundary parts are read in one piece.
			for s.end < end {
				t, err := im.lookup(s.end, end, false)
				if err != nil || t.kind != Data || t.im != s.im || t.host != s.host+s.end-s.start {
					break
				}
				s.end = t.end
			}
		}
		if err := s.read(p[pos-off : s.end-off]); err != nil {
			return int(pos - off), err
		}
		pos = s.end
	}
	if short {
		return len(p), io.EOF
	}
	return len(p), nil
}

func (s *segment) read(p []byte) error {
	switch s.kind {
	case Data:
		n, err := readFull(s.im.data, p, s.host)
		if err != nil {
			return fmt.Errorf("reading %d bytes at offset %#x of the image file: %w", len(p), s.host, err)
		}
		clear(p[n:]) // the last cluster of the file need not be whole
	case Compressed:
		cs := int64(1) << s.im.clusterBits
		if int64(len(p)) == cs {
			if err := s.im.decode(p, s.desc); err != nil {
				return fmt.Errorf("guest offset %#x: %w", s.start, err)
			}
			return nil
		}
		c, err := s.im.decoded(s.desc)
		if err != nil {
			return fmt.Errorf("guest offset %#x: %w", s.start, err)
		}
		copy(p, c[s.start&(cs-1):])
	default:
		clear(p)
	}
	return nil
}

// Extents lists what stands behind the guest range of length bytes at off, clipped to the guest size, in order and without gaps; neighbours of
// one kind and depth are one extent. It ends at the first error.
func (im *Image) Extents(off, length int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		if off < 0 || length < 0 {
			yield(Extent{}, fmt.Errorf("qcow: extents of %d bytes at %d", length, off))
			return
		}
		end := im.size
		if length < im.size-off {
			end = off + length
		}
		var cur Extent
		for pos := off; pos < end; {
			s, err := im.lookup(pos, end, true)
			if err != nil {
				if cur.Length == 0 || yield(cur, nil) {
					yield(Extent{}, err)
				}
				return
			}
			if cur.Length > 0 && cur.Kind == s.kind && cur.Depth == s.depth {
				cur.Length += s.end - s.start
			} else {
				if cur.Length > 0 && !yield(cur, nil) {
					return
				}
				cur = Extent{s.start, s.end - s.start, s.kind, s.depth}
			}
			pos = s.end
		}
		if cur.Length > 0 {
			yield(cur, nil)
		}
	}
}

// readFull reads until p is full or r ends, which is no error.
func readFull(r io.ReaderAt, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := r.ReadAt(p[n:], off+int64(n))
		n += m
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// readTable reads n big-endian 64-bit entries at off.
func readTable(r io.ReaderAt, off int64, n int) ([]uint64, error) {
	t := make([]uint64, n)
	buf := make([]byte, min(n*8, 64<<10))
	for i := 0; i < n; {
		b := buf[:min(len(buf), (n-i)*8)]
		m, err := readFull(r, b, off+int64(i)*8)
		if err != nil {
			return nil, err
		}
		if m < len(b) {
			return nil, corruptf("table of %d entries at offset %#x ends past the file", n, off)
		}
		for ; len(b) > 0; b = b[8:] {
			t[i] = binary.BigEndian.Uint64(b)
			i++
		}
	}
	return t, nil
}

func sameFile(a, b Source) bool {
	type stater interface{ Stat() (os.FileInfo, error) }
	x, ok := a.(stater)
	y, ok2 := b.(stater)
	if !ok || !ok2 {
		return false
	}
	i, err := x.Stat()
	j, err2 := y.Stat()
	return err == nil && err2 == nil && os.SameFile(i, j)
}
