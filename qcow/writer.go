package qcow

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
)

const (
	bufferBytes     = 12 << 20 // guest clusters waiting to be written
	tableCacheWrite = 8 << 20  // L2 tables and refcount blocks
	stageBytes      = 1 << 20  // clusters that become one write
)

// File is what a Writer writes to; *os.File is one. Writer never syncs: whoever renames the file into place does that after Close.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// CreateOptions say what Create makes. The zero value is what qemu-img create makes: version 3, 64 KiB clusters, 16-bit refcounts.
type CreateOptions struct {
	ClusterSize  int  // bytes, a power of two from 512 to 2 MiB; 0 is 64 KiB
	RefcountBits int  // 1, 2, 4 ... 64; 0 is 16
	ExtendedL2   bool // subclusters; needs clusters of 16 KiB or more

	// Compression is "", "zlib" or "zstd". If it is set, every cluster written is compressed, and kept plain where that gains nothing.
	Compression string
	// CompressionLevel is 1 to 9 for zlib, 1 to 22 for zstd as its tool counts; 0 is the default (6 and 3).
	CompressionLevel int

	// Backing makes an overlay: what is not written reads as Backing does. BackingFile and BackingFormat ("qcow2" or "raw") are stored in
	// the header as they are; the name is relative to the new image's own folder. Backing stays open until the Writer is closed.
	Backing       *Image
	BackingFile   string
	BackingFormat string

	// Data, an empty file, gets the guest's data, each byte at its guest offset; f then has the tables alone. DataFile is its name for the header,
	// stored as it is. It excludes Compression. The Writer truncates Data to the guest size and does not close it.
	Data     File
	DataFile string
	// DataFileRaw promises that Data is by itself the raw disk, whatever the tables say: all clusters are allocated from the start, and zeros
	// are written (none where Data reads as zeros). It excludes Backing.
	DataFileRaw bool
}

// Writer writes guest bytes to a qcow2 image. It is for one goroutine at a time. The file is right only after Close (or Flush) has
// succeeded; after an error it must be thrown away.
//
// Clusters are allocated at the end of the file, in the order of guest offsets within each batch, so the same writes give the same file.
// Clusters that become free stay holes of the file.
type Writer struct {
	f    File
	data File   // f, or the external data file
	im   *Image // the read view of the file as it stands, without the buffer
	hdr  *header
	cs   int64
	cb   uint

	end     int64 // where the next cluster is allocated
	l1Dirty bool
	rt      []uint64 // the refcount table
	rtDirty bool
	tables  writeCache

	buf      map[int64]*clusterBuf // by guest cluster
	free     [][]byte              // cluster buffers for reuse
	maxBufs  int
	stage    []byte // bytes waiting to be written at stageOff
	stageOff int64
	scratch  []byte // one cluster

	enc     *encoder // nil: no compression
	compOff int64    // where the next compressed cluster may go; a multiple of the cluster size: none is open
	err     error    // the first failure; nothing works after it
}

// clusterBuf holds the bytes [lo, hi) of a guest cluster that differ from the file.
type clusterBuf struct {
	data   []byte
	lo, hi int64
	filled bool // the rest of data is what the file says
}

var errClosed = errors.New("qcow: writer is closed")

// Create writes a new, empty image of size guest bytes to f, which must be empty. The size is rounded up to a multiple of 512 bytes, as
// qemu-img does, because QEMU does not show a guest the rest.
func Create(f File, size int64, o CreateOptions) (*Writer, error) {
	h := &header{version: 3, refcountOrder: 4, length: headerLenOut, clusterBits: 16, tail: make([]byte, headerLenOut-headerLenV3-1)}
	if size < 0 || size > 1<<62 {
		return nil, fmt.Errorf("qcow: size of %d bytes", size)
	}
	size = roundSector(size)
	h.size = uint64(size)
	var ok bool
	if o.ClusterSize != 0 {
		if h.clusterBits, ok = log2(o.ClusterSize); !ok || h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
			return nil, fmt.Errorf("qcow: cluster size of %d bytes (a power of two from 512 to 2 MiB)", o.ClusterSize)
		}
	}
	if o.RefcountBits != 0 {
		if h.refcountOrder, ok = log2(o.RefcountBits); !ok || h.refcountOrder > 6 {
			return nil, fmt.Errorf("qcow: refcounts of %d bits (a power of two from 1 to 64)", o.RefcountBits)
		}
	}
	if o.ExtendedL2 {
		if h.clusterBits < minExtClusterBits {
			return nil, fmt.Errorf("qcow: subclusters need clusters of %d bytes or more", 1<<minExtClusterBits)
		}
		h.incompat |= incompatExtendedL2
	}
	enc, err := newEncoder(o.Compression, o.CompressionLevel, h.clusterSize())
	if err != nil {
		return nil, err
	}
	if enc != nil && enc.typ == compressionZstd {
		h.incompat |= incompatCompression
		h.compression = compressionZstd
	}
	if (o.Backing != nil) != (o.BackingFile != "") {
		return nil, errors.New("qcow: an overlay needs both Backing and BackingFile")
	}
	if o.Backing != nil {
		if o.BackingFormat != "qcow2" && o.BackingFormat != "raw" {
			return nil, fmt.Errorf("qcow: backing format %q (qcow2 or raw)", o.BackingFormat)
		}
		if len(o.BackingFile) > maxBackingName {
			return nil, fmt.Errorf("qcow: backing file name of %d bytes (at most %d)", len(o.BackingFile), maxBackingName)
		}
		h.backingFile = o.BackingFile
		h.exts = append(h.exts, extension{extBackingFormat, []byte(o.BackingFormat)})
	}
	if (o.Data != nil) != (o.DataFile != "") || o.DataFileRaw && o.Data == nil {
		return nil, errors.New("qcow: an external data file needs both Data and DataFile")
	}
	if o.Data != nil {
		switch {
		case o.Compression != "":
			return nil, errors.New("qcow: compressed clusters cannot lie in an external data file")
		case o.DataFileRaw && o.Backing != nil:
			return nil, errors.New("qcow: a raw external data file together with a backing file")
		case len(o.DataFile) > maxBackingName:
			return nil, fmt.Errorf("qcow: data file name of %d bytes (at most %d)", len(o.DataFile), maxBackingName)
		}
		h.incompat |= incompatDataFile
		if o.DataFileRaw {
			h.autoclear |= autoclearDataRaw
		}
		h.exts = append(h.exts, extension{extDataFile, []byte(o.DataFile)})
	}
	named := extension{extFeatureNames, featureNameTable()}
	if int64(headerLenOut+len(named.data)+64+len(h.backingFile)+len(o.DataFile)) <= h.clusterSize() {
		h.exts = append(h.exts, named)
	}
	if _, err := h.encode(); err != nil {
		return nil, fmt.Errorf("qcow: %w", err)
	}
	n := h.l1Entries(h.size)
	if n*8 > maxL1Bytes {
		return nil, unsupportedf("%d bytes with clusters of %d bytes need an L1 table of more than %d bytes", size, h.clusterSize(), maxL1Bytes)
	}
	h.l1Size = uint32(max(n, 1))

	w := newWriter(f, h, 0, o.Backing)
	w.enc = enc
	if o.Data != nil {
		w.data = o.Data
		w.im.data = writerSource{w, o.Data}
	}
	w.im.l1 = make([]uint64, h.l1Size)
	// As qemu-img lays it out: header, refcount table, first refcount block, L1 table.
	h.rtClusters, h.rtOff = 1, uint64(w.cs)
	w.rt = make([]uint64, w.cs/8)
	w.setEnd(2 * w.cs)
	w.l1Dirty, w.rtDirty = true, true
	if err := w.updateRefcounts(0, 2, 1); err != nil {
		return nil, err
	}
	off, err := w.alloc((int64(h.l1Size)*8 + w.cs - 1) >> w.cb)
	if err != nil {
		return nil, err
	}
	h.l1Off = uint64(off)
	if o.DataFileRaw {
		if err := w.allocRaw(0, size); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// allocRaw gives the guest range [from, to) its clusters in a raw data file.
func (w *Writer) allocRaw(from, to int64) error {
	for c := from >> w.cb; c<<w.cb < to; c++ {
		if err := w.setEntry(c, uint64(c<<w.cb)|flagCopied, subAlloc); err != nil {
			return err
		}
	}
	return nil
}

// OpenPatch opens an existing image of fileSize bytes for changes in place; f is a private copy of it. It first checks the whole image's
// metadata, so that a write never lands in a table. An image that cannot be patched gives ErrCannotPatch with the reason (version 2, a
// backing file, an external data file, the dirty bit, any fault of its tables but leaked clusters); one that cannot be read gives the errors of
// Open.
//
// Leaked clusters are given back. Internal snapshots stay as they are. Persistent bitmaps are removed, because they would no longer describe the disk.
func OpenPatch(f File, fileSize int64, o Options) (*Writer, error) {
	src := section{f, fileSize}
	h, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	refuse := func(format string, a ...any) (*Writer, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrCannotPatch}, a...)...)
	}
	switch {
	case h.version < 3:
		return refuse("version 2")
	case h.backingFile != "":
		return refuse("it has the backing file %q", h.backingFile)
	case h.hasDataFile():
		return refuse("it has an external data file")
	case h.incompat&incompatDirty != 0:
		return refuse("it is marked dirty; repair it with qemu-img check -r all")
	}
	r, err := check(src, h)
	if err != nil {
		return nil, err
	}
	if r.Total > len(r.unused) {
		return refuse("%d faults, the first: %s", r.Total, r.firstFault())
	}
	if r.sharedInside {
		return refuse("one cluster stands for several guest clusters")
	}
	w := newWriter(f, h, fileSize, nil)
	if w.im.l1, err = readTable(src, int64(h.l1Off), int(h.l1Size)); err != nil {
		return nil, fmt.Errorf("reading the L1 table: %w", err)
	}
	if w.rt, err = readTable(zeroExtended{src}, int64(h.rtOff), int(int64(h.rtClusters)<<w.cb/8)); err != nil {
		return nil, fmt.Errorf("reading the refcount table: %w", err)
	}
	// Clusters that leaked, as an unclean end of QEMU leaves them, are given back: the output of a bake should be faultless.
	for _, c := range r.unused {
		if err := w.clearRefcount(c); err != nil {
			return nil, err
		}
	}
	h.autoclear &= autoclearBitmaps
	if err := w.dropBitmaps(); err != nil {
		return nil, err
	}
	return w, nil
}

func newWriter(f File, h *header, fileSize int64, backing *Image) *Writer {
	w := &Writer{f: f, data: f, hdr: h, cs: h.clusterSize(), cb: uint(h.clusterBits), buf: map[int64]*clusterBuf{}}
	w.im = newImage(writerSource{w, f}, h, newCaches())
	w.im.caches.decoded.budget = 4 << 20
	w.im.tables = &w.tables
	w.im.backing = backing
	w.tables = writeCache{w: w, slice: w.im.sliceBytes}
	w.setEnd((fileSize + w.cs - 1) &^ (w.cs - 1))
	w.maxBufs = int(max(bufferBytes>>w.cb, 4))
	w.scratch = make([]byte, w.cs)
	return w
}

func log2(n int) (uint32, bool) {
	for i := range uint32(31) {
		if n == 1<<i {
			return i, true
		}
	}
	return 0, false
}

// Size is the guest size in bytes.
func (w *Writer) Size() int64 { return w.im.size }

// Info describes the image being written.
func (w *Writer) Info() Info { return w.hdr.info() }

// FileSize is the length that the file will have, in bytes.
func (w *Writer) FileSize() int64 { return w.end }

func (w *Writer) fail(err error) error {
	if w.err == nil && err != nil {
		w.err = err
	}
	return err
}

func (w *Writer) setEnd(end int64) {
	w.end = end
	w.im.fileSize = end
}

// ReadAt reads guest bytes as the writes so far left them.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if off < 0 {
		return 0, fmt.Errorf("qcow: negative offset %d", off)
	}
	size := w.im.size
	if off >= size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > size-off {
		p, eof = p[:size-off], io.EOF
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		c, in := pos>>w.cb, pos&(w.cs-1)
		n := min(int64(len(p)-done), w.cs-in)
		b := w.buf[c]
		if b == nil {
			// As far as nothing is buffered, the file has it.
			for len(w.buf) > 0 && n < int64(len(p)-done) && w.buf[(pos+n)>>w.cb] == nil {
				n = min(int64(len(p)-done), n+w.cs)
			}
			if len(w.buf) == 0 {
				n = int64(len(p) - done)
			}
			if _, err := w.im.ReadAt(p[done:done+int(n)], pos); err != nil {
				return done, err
			}
		} else {
			if in < b.lo || in+n > b.hi {
				if err := w.fill(c, b); err != nil {
					return done, err
				}
			}
			copy(p[done:], b.data[in:in+n])
		}
		done += int(n)
	}
	return done, eof
}

// Extents lists what stands behind a guest range, as Image.Extents does; buffered writes are written first.
func (w *Writer) Extents(off, length int64) iter.Seq2[Extent, error] {
	if err := w.flushBuffer(); err != nil {
		return func(yield func(Extent, error) bool) { yield(Extent{}, err) }
	}
	return w.im.Extents(off, length)
}

// WriteAt writes guest bytes. A write past the guest size is an error and writes nothing. Whole clusters of zeros take no space where the
// image permits it.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if off < 0 || off > w.im.size || int64(len(p)) > w.im.size-off {
		return 0, fmt.Errorf("qcow: write of %d bytes at %d is not inside the disk of %d bytes", len(p), off, w.im.size)
	}
	total := len(p)
	for len(p) > 0 {
		c, in := off>>w.cb, off&(w.cs-1)
		n := min(int64(len(p)), w.cs-in)
		var err error
		if n == w.cs && w.enc == nil {
			n = int64(len(p)) &^ (w.cs - 1)
			err = w.writeClusters(c, p[:n])
		} else {
			err = w.writeBuffer(c, in, p[:n])
		}
		if err != nil {
			return total - len(p), w.fail(err)
		}
		p, off = p[n:], off+n
	}
	return total, nil
}

func (w *Writer) newBuf() []byte {
	if n := len(w.free); n > 0 {
		b := w.free[n-1]
		w.free = w.free[:n-1]
		return b
	}
	return make([]byte, w.cs)
}

func (w *Writer) writeBuffer(c, in int64, p []byte) error {
	end := in + int64(len(p))
	b := w.buf[c]
	if b == nil {
		if len(w.buf) >= w.maxBufs {
			if err := w.flushBuffer(); err != nil {
				return err
			}
		}
		b = &clusterBuf{data: w.newBuf(), lo: in, hi: end}
		w.buf[c] = b
	} else if !b.filled && (in > b.hi || end < b.lo) {
		if err := w.fill(c, b); err != nil {
			return err
		}
	}
	copy(b.data[in:], p)
	b.lo, b.hi = min(b.lo, in), max(b.hi, end)
	return nil
}

// fill reads what the file says into the rest of a buffered cluster.
func (w *Writer) fill(c int64, b *clusterBuf) error {
	if b.filled {
		return nil
	}
	if err := w.readOld(b.data[:b.lo], c<<w.cb); err != nil {
		return err
	}
	if err := w.readOld(b.data[b.hi:], c<<w.cb+b.hi); err != nil {
		return err
	}
	b.filled = true
	return nil
}

// readOld reads guest bytes from the file; past the guest size it gives zeros.
func (w *Writer) readOld(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := w.im.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return err
	}
	clear(p[n:])
	return nil
}

// holeAt tells whether guest cluster c, which has no entry of its own, reads as zeros.
func (w *Writer) holeAt(c int64) (bool, error) {
	if w.im.backing == nil {
		return true, nil
	}
	off, end := c<<w.cb, min((c+1)<<w.cb, w.im.size)
	for off < end {
		s, err := w.im.backing.lookup(off, end, false)
		if err != nil {
			return false, err
		}
		if s.kind != Hole && s.kind != Zero {
			return false, nil
		}
		off = s.end
	}
	return true, nil
}

// flushBuffer writes all buffered clusters, in guest order.
func (w *Writer) flushBuffer() error {
	if w.err != nil {
		return w.err
	}
	if len(w.buf) == 0 {
		return nil
	}
	order := make([]int64, 0, len(w.buf))
	for c := range w.buf {
		order = append(order, c)
	}
	slices.Sort(order)
	var err error
	if w.enc != nil {
		err = w.flushCompressed(order)
	} else {
		for _, c := range order {
			if err = w.flushCluster(c, w.buf[c]); err != nil {
				break
			}
		}
	}
	if err == nil {
		err = w.flushStage()
	}
	for _, c := range order {
		w.free = append(w.free, w.buf[c].data)
	}
	clear(w.buf)
	return w.fail(err)
}

func (w *Writer) flushCluster(c int64, b *clusterBuf) error {
	e, bm, err := w.entry(c)
	if err != nil {
		return err
	}
	if w.inPlace(e) && w.whole(e, bm) {
		return w.writeStaged(int64(e&offsetMask)+b.lo, b.data[b.lo:b.hi])
	}
	if e == 0 && bm == 0 && !b.filled {
		hole, err := w.holeAt(c)
		if err != nil {
			return err
		}
		if hole {
			if IsZero(b.data[b.lo:b.hi]) {
				return nil
			}
			// A new cluster at the end of the file reads as zeros where it is not written.
			off, err := w.allocData(c, 1)
			if err != nil {
				return err
			}
			if err := w.writeStaged(off+b.lo, b.data[b.lo:b.hi]); err != nil {
				return err
			}
			return w.setEntry(c, uint64(off)|flagCopied, subAlloc)
		}
	}
	if err := w.fill(c, b); err != nil {
		return err
	}
	return w.putCluster(c, e, bm, b.data)
}

// putCluster writes a whole cluster through the stage.
func (w *Writer) putCluster(c int64, e, bm uint64, data []byte) error {
	if IsZero(data) {
		return w.putZero(c, e, bm)
	}
	if w.inPlace(e) {
		if err := w.writeStaged(int64(e&offsetMask), data); err != nil {
			return err
		}
		if w.whole(e, bm) {
			return nil
		}
		return w.setEntry(c, e&offsetMask|flagCopied, subAlloc)
	}
	off, err := w.allocData(c, 1)
	if err != nil {
		return err
	}
	if err := w.writeStaged(off, data); err != nil {
		return err
	}
	if err := w.setEntry(c, uint64(off)|flagCopied, subAlloc); err != nil {
		return err
	}
	return w.drop(e)
}

// allocData finds room for the n guest clusters from c on, which read as zeros there.
func (w *Writer) allocData(c, n int64) (int64, error) {
	if w.hdr.hasDataFile() {
		return c << w.cb, nil
	}
	return w.alloc(n)
}

// putZero makes a whole cluster read as zeros.
func (w *Writer) putZero(c int64, e, bm uint64) error {
	if w.hdr.autoclear&autoclearDataRaw != 0 {
		return w.zeroRaw(c)
	}
	if e == 0 && bm == 0 {
		if hole, err := w.holeAt(c); err != nil || hole {
			return err
		}
	}
	ext := w.im.entrySize == 16
	if w.inPlace(e) {
		// The cluster stays as a preallocation.
		if ext {
			return w.setEntry(c, e, subZero)
		}
		return w.setEntry(c, e|flagZero, 0)
	}
	var err error
	if ext {
		err = w.setEntry(c, 0, subZero)
	} else {
		err = w.setEntry(c, flagZero, 0)
	}
	if err != nil {
		return err
	}
	return w.drop(e)
}

// zeroRaw writes zeros to a raw data file, if there is anything else.
func (w *Writer) zeroRaw(c int64) error {
	if err := w.flushStage(); err != nil {
		return err
	}
	n, err := readFull(w.data, w.scratch, c<<w.cb)
	if err != nil || IsZero(w.scratch[:n]) {
		return err
	}
	clear(w.scratch)
	_, err = w.data.WriteAt(w.scratch, c<<w.cb)
	return err
}

// writeClusters writes whole guest clusters straight through, in runs that are contiguous in the file.
func (w *Writer) writeClusters(c int64, p []byte) error {
	n := int64(len(p)) >> w.cb
	if len(w.buf) > 0 {
		for i := range n {
			if b := w.buf[c+i]; b != nil {
				w.free = append(w.free, b.data)
				delete(w.buf, c+i)
			}
		}
	}
	for i := int64(0); i < n; {
		e, bm, err := w.entry(c + i)
		if err != nil {
			return err
		}
		data := p[i<<w.cb:]
		if IsZero(data[:w.cs]) {
			if err := w.putZero(c+i, e, bm); err != nil {
				return err
			}
			i++
			continue
		}
		place := w.inPlace(e)
		run := int64(1)
		for ; i+run < n; run++ {
			e2, _, err := w.entry(c + i + run)
			if err != nil {
				return err
			}
			if w.inPlace(e2) != place || place && e2&offsetMask != e&offsetMask+uint64(run)<<w.cb || IsZero(data[run<<w.cb:(run+1)<<w.cb]) {
				break
			}
		}
		host := int64(e & offsetMask)
		if !place {
			if host, err = w.allocData(c+i, run); err != nil {
				return err
			}
		}
		if _, err := w.data.WriteAt(data[:run<<w.cb], host); err != nil {
			return err
		}
		for j := range run {
			e, bm, err := w.entry(c + i + j)
			if err != nil {
				return err
			}
			if place && w.whole(e, bm) {
				continue
			}
			if err := w.setEntry(c+i+j, uint64(host+j<<w.cb)|flagCopied, subAlloc); err != nil {
				return err
			}
			if !place {
				if err := w.drop(e); err != nil {
					return err
				}
			}
		}
		i += run
	}
	return nil
}

// inPlace tells whether the entry has a host cluster of its own.
func (w *Writer) inPlace(e uint64) bool {
	return e&flagCompressed == 0 && e&flagCopied != 0 && (e&offsetMask != 0 || w.hdr.hasDataFile())
}

// whole tells whether all bytes of the entry's host cluster are what the guest reads.
func (w *Writer) whole(e, bm uint64) bool {
	if w.im.entrySize == 16 {
		return bm == subAlloc
	}
	return e&flagZero == 0
}

// entry is the L2 entry of guest cluster c and, with extended L2, its bitmap.
func (w *Writer) entry(c int64) (e, bm uint64, err error) {
	l1e := w.im.l1[c>>w.im.l2Bits]
	if l1e&offsetMask == 0 {
		return 0, 0, nil
	}
	t, i, err := w.slot(int64(l1e&offsetMask), c)
	if err != nil {
		return 0, 0, err
	}
	e = binary.BigEndian.Uint64(t.data[i:])
	if w.im.entrySize == 16 {
		bm = binary.BigEndian.Uint64(t.data[i+8:])
	}
	return e, bm, nil
}

// slot is the slice of the L2 table at l2 that has guest cluster c, and the byte index in it.
func (w *Writer) slot(l2, c int64) (*writeTable, int64, error) {
	in := (c & (1<<w.im.l2Bits - 1)) * w.im.entrySize
	slice := in &^ (w.im.sliceBytes - 1)
	t, err := w.tables.get(l2+slice, tableL2)
	return t, in - slice, err
}

// setEntry changes the L2 entry of guest cluster c; bm is used with extended L2 only.
func (w *Writer) setEntry(c int64, e, bm uint64) error {
	l1i := c >> w.im.l2Bits
	l1e := w.im.l1[l1i]
	l2 := int64(l1e & offsetMask)
	if l2 == 0 || l1e&flagCopied == 0 {
		off, err := w.alloc(1)
		if err != nil {
			return err
		}
		if l2 == 0 {
			w.tables.addZero(off, tableL2)
		} else {
			for s := int64(0); s < w.cs; s += w.im.sliceBytes {
				old, err := w.tables.get(l2+s, tableL2)
				if err != nil {
					return err
				}
				t, err := w.tables.get(off+s, tableL2)
				if err != nil {
					return err
				}
				copy(t.data, old.data)
				t.dirty = true
			}
			if err := w.updateRefcounts(l2>>w.cb, 1, -1); err != nil {
				return err
			}
		}
		l2 = off
		w.im.l1[l1i] = uint64(off) | flagCopied
		w.l1Dirty = true
	}
	t, i, err := w.slot(l2, c)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(t.data[i:], e)
	if w.im.entrySize == 16 {
		binary.BigEndian.PutUint64(t.data[i+8:], bm)
	}
	t.dirty = true
	return nil
}

// drop gives up what a former L2 entry referred to.
func (w *Writer) drop(e uint64) error {
	if e&flagCompressed != 0 {
		w.im.caches.decoded.drop(decodeKey{w.im, e})
		off, n := compressedExtent(e, w.cb)
		first, last := off>>w.cb, (off+n-1)>>w.cb
		return w.updateRefcounts(first, last-first+1, -1)
	}
	if off := int64(e & offsetMask); off != 0 && !w.hdr.hasDataFile() {
		return w.updateRefcounts(off>>w.cb, 1, -1)
	}
	return nil
}

// writeStaged writes p at off of the file that has the data, joined with neighbouring writes.
func (w *Writer) writeStaged(off int64, p []byte) error {
	if len(w.stage) > 0 && (w.stageOff+int64(len(w.stage)) != off || len(w.stage)+len(p) > stageBytes) {
		if err := w.flushStage(); err != nil {
			return err
		}
	}
	if len(p) >= stageBytes {
		_, err := w.data.WriteAt(p, off)
		return err
	}
	if len(w.stage) == 0 {
		w.stageOff = off
	}
	w.stage = append(w.stage, p...)
	return nil
}

func (w *Writer) flushStage() error {
	if len(w.stage) == 0 {
		return nil
	}
	_, err := w.data.WriteAt(w.stage, w.stageOff)
	w.stage = w.stage[:0]
	return err
}

// Flush writes everything: data, then refcounts, L2 tables, L1 table, and the header last. The file is a right image afterwards.
func (w *Writer) Flush() error {
	if err := w.flushBuffer(); err != nil {
		return err
	}
	return w.fail(w.flushMetadata())
}

func (w *Writer) flushMetadata() error {
	if err := w.flushStage(); err != nil {
		return err
	}
	if err := w.tables.flush(); err != nil {
		return err
	}
	if w.rtDirty {
		if err := w.writeTable(int64(w.hdr.rtOff), w.rt); err != nil {
			return err
		}
		w.rtDirty = false
	}
	if w.l1Dirty {
		if err := w.writeTable(int64(w.hdr.l1Off), w.im.l1); err != nil {
			return err
		}
		w.l1Dirty = false
	}
	if err := w.f.Truncate(w.end); err != nil {
		return err
	}
	if w.hdr.hasDataFile() {
		if err := w.data.Truncate(w.im.size); err != nil {
			return err
		}
	}
	b, err := w.hdr.encode()
	if err != nil {
		return err
	}
	// What follows the extensions in an old header's cluster means nothing, but must not pass for an extension or a name.
	clear(w.scratch)
	copy(w.scratch, b)
	_, err = w.f.WriteAt(w.scratch, 0)
	return err
}

func (w *Writer) writeTable(off int64, t []uint64) error {
	var buf []byte
	for i, e := range t {
		buf = binary.BigEndian.AppendUint64(buf, e)
		if len(buf) == 64<<10 || i == len(t)-1 {
			if _, err := w.f.WriteAt(buf, off); err != nil {
				return err
			}
			off += int64(len(buf))
			buf = buf[:0]
		}
	}
	return nil
}

// Close flushes the image; the Writer and its buffers are of no use afterwards. It does not close the file.
func (w *Writer) Close() error {
	if w.err == errClosed {
		return nil
	}
	err := w.Flush()
	w.err = cmp.Or(w.err, errClosed)
	w.buf, w.free, w.stage = nil, nil, nil
	return err
}

func roundSector(n int64) int64 { return (n + sectorSize - 1) &^ (sectorSize - 1) }

// Grow makes the disk larger; the new part reads as zeros. The size is rounded up as in Create; one below the present size is an error.
func (w *Writer) Grow(size int64) error {
	if w.err != nil {
		return w.err
	}
	old := w.im.size
	if size > 1<<62 {
		return unsupportedf("size of %d bytes", size)
	}
	size = roundSector(size)
	if size < old {
		return fmt.Errorf("qcow: cannot shrink the disk from %d to %d bytes", old, size)
	}
	if size == old {
		return nil
	}
	if err := w.flushBuffer(); err != nil {
		return err
	}
	n := w.hdr.l1Entries(uint64(size))
	if n*8 > maxL1Bytes {
		return unsupportedf("%d bytes with clusters of %d bytes need an L1 table of more than %d bytes", size, w.cs, maxL1Bytes)
	}
	return w.fail(w.grow(old, size, int(n)))
}

func (w *Writer) grow(old, size int64, entries int) error {
	if old := int(w.hdr.l1Size); entries > old {
		clusters := (int64(old)*8 + w.cs - 1) >> w.cb
		if int64(entries)*8 > clusters<<w.cb {
			// A table that moves gets room to grow, or many small steps would each leave one behind.
			room := min(max(int64(entries), int64(old)+int64(old)/2)*8, maxL1Bytes)
			room = (room + w.cs - 1) &^ (w.cs - 1)
			off, err := w.alloc(room >> w.cb)
			if err != nil {
				return err
			}
			if err := w.updateRefcounts(int64(w.hdr.l1Off)>>w.cb, clusters, -1); err != nil {
				return err
			}
			w.hdr.l1Off = uint64(off)
			entries = int(room / 8)
		}
		w.im.l1 = append(w.im.l1, make([]uint64, entries-len(w.im.l1))...)
		w.hdr.l1Size = uint32(entries)
		w.l1Dirty = true
	}
	// VM state of snapshots lies behind the guest size in their own L1 tables; in the active one nothing may show up there.
	w.im.size, w.hdr.size = size, uint64(size)
	first, last := old>>w.cb, (size-1)>>w.cb
	if w.hdr.autoclear&autoclearDataRaw != 0 {
		return w.allocRaw((old+w.cs-1)&^(w.cs-1), size)
	}
	if in := old & (w.cs - 1); in != 0 {
		tail := make([]byte, min((first+1)<<w.cb, size)-old)
		if err := w.writeBuffer(first, in, tail); err != nil {
			return err
		}
		first++
	}
	for c := first; c <= last; c++ {
		if l1i := c >> w.im.l2Bits; w.im.l1[l1i]&offsetMask == 0 && (w.im.backing == nil || c<<w.cb >= w.im.backing.size) {
			c = (l1i+1)<<w.im.l2Bits - 1
			continue
		}
		e, bm, err := w.entry(c)
		if err != nil {
			return err
		}
		if err := w.putZero(c, e, bm); err != nil {
			return err
		}
	}
	return nil
}

// writerSource is the file as the read view of a Writer sees it.
type writerSource struct {
	w *Writer
	f File
}

func (s writerSource) Size() int64 { return s.w.end }

func (s writerSource) ReadAt(p []byte, off int64) (int, error) {
	if err := s.w.flushStage(); err != nil {
		return 0, err
	}
	return s.f.ReadAt(p, off)
}

// section is a Source of a file whose size is known.
type section struct {
	io.ReaderAt
	size int64
}

func (s section) Size() int64 { return s.size }

// zeroExtended reads zeros past the end.
type zeroExtended struct{ io.ReaderAt }

func (z zeroExtended) ReadAt(p []byte, off int64) (int, error) {
	n, err := readFull(z.ReaderAt, p, off)
	clear(p[n:])
	return len(p), err
}

// IsZero says whether p holds nothing but zeros. Safe for concurrent use.
func IsZero(p []byte) bool {
	for len(p) >= 32 {
		b := p[:32]
		if binary.NativeEndian.Uint64(b)|binary.NativeEndian.Uint64(b[8:])|binary.NativeEndian.Uint64(b[16:])|binary.NativeEndian.Uint64(b[24:]) != 0 {
			return false
		}
		p = p[32:]
	}
	for _, x := range p {
		if x != 0 {
			return false
		}
	}
	return true
}
