package qcow

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// FaultKind classes what Check finds.
type FaultKind uint8

// The kinds of faults. Leaks waste space and harm nothing; every other kind makes the image unsafe to write to.
const (
	FaultLeak     FaultKind = iota // a host cluster has more references on disk than there are
	FaultRefcount                  // it has fewer: it could be overwritten while in use
	FaultCopied                    // a COPIED flag contradicts the refcount
	FaultOverlap                   // metadata shares a host cluster with something else
	FaultAlign                     // an offset is not a multiple of the cluster size
	FaultOutside                   // an offset lies past the end of the file
	FaultEntry                     // a table entry or record contradicts the format
)

func (k FaultKind) String() string {
	return [...]string{"leak", "refcount", "copied flag", "overlap", "alignment", "outside the file", "entry"}[k]
}

// Fault is one thing wrong with an image. Offset is the byte offset in the image file that it is about.
type Fault struct {
	Kind   FaultKind
	Offset int64
	Text   string
}

func (f Fault) String() string { return fmt.Sprintf("%s at offset %#x: %s", f.Kind, f.Offset, f.Text) }

// Report is what Check found. Counts are of the active state in clusters of the image.
type Report struct {
	Faults []Fault // the first maxFaults, in the order found
	Total  int     // how many there are
	Leaks  int     // how many of them are leaks

	Clusters   int64 // guest clusters
	Allocated  int64 // with data of their own, compressed ones among them
	Compressed int64
	FileSize   int64

	sharedInside bool    // a host cluster stands for two clusters of the active state
	unused       []int64 // host clusters with a refcount and no reference, the first maxUnused
}

// firstFault prefers what is no leak.
func (r *Report) firstFault() Fault {
	for _, f := range r.Faults {
		if f.Kind != FaultLeak {
			return f
		}
	}
	return r.Faults[0]
}

const (
	maxFaults   = 1000
	maxUnused   = 1 << 20
	checkWindow = 2 << 20 // host clusters whose references are counted at a time
	maxWindows  = 1024
	maxL2Tables = 8 << 20 // references to L2 tables, over all L1 tables

	refMeta   = 1 << 60 // header, L1, refcount table or block, snapshot table, bitmap: one owner
	refL2     = 1 << 59
	refData   = 1 << 58
	refActive = 1 << 57 // a standard cluster of the active state
	refCount  = 1<<56 - 1
)

// Check walks everything that a qcow2 image refers to (active state, internal snapshots, bitmaps) and compares it with the refcounts and
// COPIED flags. It reads all metadata but no guest data, and nothing of backing files. The error is for images that cannot be walked at all:
// those that Open refuses, or reading failures; what is wrong otherwise is in the report.
func Check(src Source, _ Options) (*Report, error) {
	h, err := readHeader(src)
	if err != nil {
		return nil, err
	}
	return check(src, h)
}

type checker struct {
	src      Source
	h        *header
	cs       int64
	cb       uint
	clusters int64 // host clusters of the file
	rt       []uint64
	l1s      []l1Table
	l2s      []l2Table
	snapsEnd int64
	bitmaps  []bitmapTable
	bitmapX  bitmapsExt
	l2buf    []byte
	blockBuf []byte
	blockAt  int64

	r      *Report
	first  bool // the first window: faults of entries are reported in it
	base   int64
	window []uint64
}

type l1Table struct {
	what    string
	off     int64
	entries int64
}

// l2Table is an L2 table; each is walked once, with the number of L1 tables that refer to it as its weight.
type l2Table struct {
	off    int64
	guest  int64 // the guest offset that its first reference gives it
	weight uint64
	active bool
}

func check(src Source, h *header) (*Report, error) {
	c := &checker{src: src, h: h, cs: h.clusterSize(), cb: uint(h.clusterBits), r: &Report{FileSize: src.Size()}, blockAt: -1, first: true}
	c.clusters = (src.Size() + c.cs - 1) >> c.cb
	c.r.Clusters = int64(h.size >> h.clusterBits)
	if h.size&uint64(c.cs-1) != 0 {
		c.r.Clusters++
	}
	if c.clusters > checkWindow*maxWindows {
		return nil, unsupportedf("checking a file of %d bytes with clusters of %d bytes", src.Size(), c.cs)
	}
	c.l2buf = make([]byte, c.cs)
	c.blockBuf = make([]byte, c.cs)
	if err := c.gather(); err != nil {
		return nil, err
	}
	c.window = make([]uint64, min(checkWindow, c.clusters))
	for c.base = 0; c.base < c.clusters; c.base += checkWindow {
		c.first = c.base == 0
		clear(c.window)
		if err := c.walk(); err != nil {
			return nil, err
		}
		if err := c.compare(); err != nil {
			return nil, err
		}
	}
	if err := c.beyond(); err != nil {
		return nil, err
	}
	return c.r, nil
}

// gather reads the refcount table, the L1 tables and the directories, and reports the faults of their entries.
func (c *checker) gather() error {
	h := c.h
	var err error
	if c.rt, err = readTable(zeroExtended{c.src}, int64(h.rtOff), int(int64(h.rtClusters)<<c.cb/8)); err != nil {
		return fmt.Errorf("reading the refcount table: %w", err)
	}
	seen := map[uint64]bool{}
	for i, e := range c.rt {
		if e == 0 {
			continue
		}
		if e&(sectorSize-1) != 0 {
			c.fault(FaultEntry, int64(h.rtOff)+int64(i)*8, "refcount table entry %d has reserved bits (%#x)", i, e)
		}
		if seen[e] {
			c.fault(FaultOverlap, int64(e), "refcount block used twice")
			c.rt[i] = 0
		}
		seen[e] = true
	}
	if h.l1Size > 0 {
		c.l1s = append(c.l1s, l1Table{"the active L1 table", int64(h.l1Off), int64(h.l1Size)})
	}
	snaps, end, err := readSnapshots(c.src, h)
	if err != nil {
		return err
	}
	c.snapsEnd = end
	// L1 tables that lie apart are together no larger than the file.
	room := c.r.FileSize - int64(h.l1Size)*8
	for i, s := range snaps {
		t := l1Table{fmt.Sprintf("the L1 table of snapshot %d", i), int64(s.l1Off), int64(s.l1Size)}
		switch {
		case t.entries == 0:
			continue
		case t.off&(c.cs-1) != 0:
			c.fault(FaultAlign, t.off, "%s", t.what)
			continue
		case t.off < 0 || t.off >= c.r.FileSize || t.entries*8 > c.r.FileSize-t.off:
			c.fault(FaultOutside, t.off, "%s, %d entries", t.what, t.entries)
			continue
		}
		if room -= t.entries * 8; room < 0 {
			c.fault(FaultOverlap, t.off, "the L1 tables are larger than the file")
			break
		}
		c.l1s = append(c.l1s, t)
	}
	if err := c.gatherL2(); err != nil {
		return err
	}
	if h.autoclear&autoclearBitmaps != 0 {
		x, ok, err := h.bitmaps()
		if err != nil {
			return err
		}
		if !ok {
			return corruptf("the bitmaps bit is set without the bitmaps header extension")
		}
		c.bitmapX = x
		if c.bitmaps, err = readBitmapDir(c.src, x); err != nil {
			return err
		}
		// So it is with bitmap tables.
		room := c.r.FileSize
		for i, t := range c.bitmaps {
			if room -= t.n * 8; room < 0 {
				c.fault(FaultOverlap, t.off, "the bitmap tables are larger than the file")
				c.bitmaps = c.bitmaps[:i]
				break
			}
		}
	}
	return nil
}

func (c *checker) gatherL2() error {
	type ref struct {
		off   int64
		table uint32 // index in l1s
		entry uint32
	}
	var refs []ref
	for ti, t := range c.l1s {
		l1, err := readTable(c.src, t.off, int(t.entries))
		if err != nil {
			return fmt.Errorf("reading %s: %w", t.what, err)
		}
		for i, e := range l1 {
			if e&l1Reserved != 0 {
				c.fault(FaultEntry, t.off+int64(i)*8, "L1 entry %d has reserved bits (%#x)", i, e)
			}
			off := int64(e & offsetMask)
			switch {
			case off == 0:
				continue
			case off&(c.cs-1) != 0:
				c.fault(FaultAlign, off, "L2 table, entry %d of %s", i, t.what)
				continue
			case off >= c.r.FileSize:
				c.fault(FaultOutside, off, "L2 table, entry %d of %s (the file has %d bytes)", i, t.what, c.r.FileSize)
				continue
			}
			if ti == 0 && c.h.l1Size > 0 {
				if err := c.copied("L2 table", off, e); err != nil {
					return err
				}
			}
			if len(refs) == maxL2Tables {
				return unsupportedf("checking an image with more than %d references to L2 tables", maxL2Tables)
			}
			refs = append(refs, ref{off, uint32(ti), uint32(i)})
		}
	}
	slices.SortFunc(refs, func(a, b ref) int {
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.table, b.table), cmp.Compare(a.entry, b.entry))
	})
	for i, r := range refs {
		if i > 0 && refs[i-1].off == r.off {
			t := &c.l2s[len(c.l2s)-1]
			t.weight++
			if refs[i-1].table == r.table {
				c.fault(FaultOverlap, r.off, "L2 table used twice in %s", c.l1s[r.table].what)
			}
			continue
		}
		c.l2s = append(c.l2s, l2Table{r.off, int64(r.entry) << (c.h.l2Bits() + c.cb), 1, r.table == 0 && c.h.l1Size > 0})
	}
	return nil
}

// fault reports what is found the same way in every window, so only in the first.
func (c *checker) fault(k FaultKind, off int64, format string, a ...any) {
	if c.first {
		c.add(k, off, format, a...)
	}
}

func (c *checker) add(k FaultKind, off int64, format string, a ...any) {
	c.r.Total++
	if k == FaultLeak {
		c.r.Leaks++
	}
	if len(c.r.Faults) < maxFaults {
		c.r.Faults = append(c.r.Faults, Fault{k, off, fmt.Sprintf(format, a...)})
	}
}

// mark counts weight references to the host clusters of [off, off+n). It tells whether they lie in the file.
func (c *checker) mark(what string, flag, weight uint64, off, n int64) bool {
	first, last := off>>c.cb, (off+n-1)>>c.cb
	if off < 0 || n < 0 || last >= c.clusters || off >= c.r.FileSize {
		c.fault(FaultOutside, off, "%s of %d bytes (the file has %d)", what, n, c.r.FileSize)
		return false
	}
	lo, hi := max(first, c.base), min(last, c.base+int64(len(c.window))-1)
	for i := lo; i <= hi; i++ {
		v := &c.window[i-c.base]
		old := *v
		*v = old&^refCount | flag | (old+weight)&refCount
		if old == 0 {
			continue
		}
		switch {
		case (old|flag)&refMeta != 0:
			c.add(FaultOverlap, i<<c.cb, "%s shares the cluster with other contents", what)
		case (old|*v)&refL2 != 0 && *v&refData != 0:
			c.add(FaultOverlap, i<<c.cb, "%s: the cluster is both an L2 table and data", what)
		case old&flag&refActive != 0:
			c.r.sharedInside = true
		}
	}
	return true
}

// aligned is mark for things that start at a cluster boundary.
func (c *checker) aligned(what string, flag, weight uint64, off, n int64) bool {
	if off&(c.cs-1) != 0 {
		c.fault(FaultAlign, off, "%s", what)
		return false
	}
	return c.mark(what, flag, weight, off, n)
}

// walk counts all references into the window.
func (c *checker) walk() error {
	h := c.h
	c.mark("header", refMeta, 1, 0, 1)
	c.aligned("refcount table", refMeta, 1, int64(h.rtOff), int64(h.rtClusters)<<c.cb)
	for _, e := range c.rt {
		if e != 0 {
			c.aligned("refcount block", refMeta, 1, int64(e&^(sectorSize-1)), c.cs)
		}
	}
	if h.snapshots > 0 {
		c.aligned("snapshot table", refMeta, 1, int64(h.snapshotsOff), c.snapsEnd-int64(h.snapshotsOff))
	}
	for _, t := range c.l1s {
		c.aligned(t.what, refMeta, 1, t.off, t.entries*8)
	}
	for _, t := range c.l2s {
		c.aligned("L2 table", refL2, t.weight, t.off, c.cs)
		n, err := readFull(c.src, c.l2buf, t.off)
		if err != nil {
			return fmt.Errorf("reading the L2 table at %#x: %w", t.off, err)
		}
		if int64(n) < c.cs {
			c.fault(FaultOutside, t.off, "L2 table ends past the file")
		}
		clear(c.l2buf[n:])
		if err := c.walkL2(t); err != nil {
			return err
		}
	}
	if len(c.bitmaps) > 0 {
		c.aligned("bitmap directory", refMeta, 1, int64(c.bitmapX.dirOff), int64(c.bitmapX.dirSize))
		for _, t := range c.bitmaps {
			if t.n == 0 || !c.aligned("bitmap table", refMeta, 1, t.off, t.n*8) {
				continue
			}
			err := t.entries(c.src, func(i int64, e uint64) error {
				if e&^(offsetMask|1) != 0 || e&1 != 0 && e&offsetMask != 0 {
					c.fault(FaultEntry, t.off+i*8, "bitmap table entry %#x", e)
				}
				if off := int64(e & offsetMask); off != 0 {
					c.aligned("bitmap data", refMeta, 1, off, c.cs)
				}
				return nil
			})
			if err != nil {
				return fmt.Errorf("reading the bitmap table at %#x: %w", t.off, err)
			}
		}
	}
	return nil
}

// walkL2 counts the references of the L2 table in l2buf.
func (c *checker) walkL2(t l2Table) error {
	table, guest, active := t.off, t.guest, t.active
	step := int64(8)
	ext := c.h.extendedL2()
	if ext {
		step = 16
	}
	for i := int64(0); i < c.cs; i, guest = i+step, guest+c.cs {
		e := binary.BigEndian.Uint64(c.l2buf[i:])
		var bm uint64
		if ext {
			bm = binary.BigEndian.Uint64(c.l2buf[i+8:])
		}
		if e == 0 && bm == 0 {
			continue
		}
		counted := active && c.first && guest < int64(c.h.size)
		if e&flagCompressed != 0 {
			if c.h.hasDataFile() {
				c.fault(FaultEntry, table+i, "guest offset %#x: compressed cluster with an external data file", guest)
				continue
			}
			if e&flagCopied != 0 {
				c.fault(FaultCopied, table+i, "guest offset %#x: compressed cluster with the COPIED flag", guest)
			}
			if bm != 0 {
				c.fault(FaultEntry, table+i, "guest offset %#x: compressed cluster with a subcluster bitmap", guest)
			}
			off, n := compressedExtent(e&^flagCopied, c.cb)
			c.mark("compressed cluster", refData, t.weight, off, n)
			if counted {
				c.r.Allocated++
				c.r.Compressed++
			}
			continue
		}
		reserved := uint64(l2Reserved)
		if ext || c.h.version < 3 {
			reserved |= flagZero
		}
		if e&reserved != 0 {
			c.fault(FaultEntry, table+i, "guest offset %#x: L2 entry has reserved bits (%#x)", guest, e)
		}
		off := int64(e & offsetMask)
		if ext && bm>>32&bm != 0 {
			c.fault(FaultEntry, table+i, "guest offset %#x: subclusters both allocated and zero (%#x)", guest, bm)
		}
		has := off != 0 || c.h.hasDataFile() && e&flagCopied != 0
		if ext && bm&subAlloc != 0 && !has {
			c.fault(FaultEntry, table+i, "guest offset %#x: subclusters allocated without a host cluster", guest)
		}
		if !has {
			if e&flagCopied != 0 {
				c.fault(FaultCopied, table+i, "guest offset %#x: COPIED flag without a host cluster", guest)
			}
			continue
		}
		if counted {
			c.r.Allocated++
		}
		if c.h.hasDataFile() {
			if off != guest {
				c.fault(FaultEntry, table+i, "guest offset %#x: external data file offset %#x differs", guest, off)
			}
			continue
		}
		flag := uint64(refData)
		if active {
			flag |= refActive
		}
		if c.aligned("data cluster", flag, t.weight, off, c.cs) && active && c.first {
			if err := c.copied("data cluster", off, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// copied compares an entry's COPIED flag with the refcount on disk.
func (c *checker) copied(what string, off int64, e uint64) error {
	rc, err := c.diskRefcount(off >> c.cb)
	if err != nil {
		return err
	}
	if (rc == 1) != (e&flagCopied != 0) {
		c.add(FaultCopied, off, "%s has refcount %d and COPIED %t", what, rc, e&flagCopied != 0)
	}
	return nil
}

func (c *checker) blockBits() uint { return c.cb + 3 - uint(c.h.refcountOrder) }

// loadBlock reads the refcount block of table entry bi into blockBuf; it tells whether there is one.
func (c *checker) loadBlock(bi int64) (bool, error) {
	if bi >= int64(len(c.rt)) {
		return false, nil
	}
	off := int64(c.rt[bi] &^ (sectorSize - 1))
	if off == 0 || off&(c.cs-1) != 0 || off < 0 || off >= c.r.FileSize {
		return false, nil
	}
	if c.blockAt != off {
		c.blockAt = -1
		n, err := readFull(c.src, c.blockBuf, off)
		if err != nil {
			return false, fmt.Errorf("reading the refcount block at %#x: %w", off, err)
		}
		clear(c.blockBuf[n:])
		c.blockAt = off
	}
	return true, nil
}

func (c *checker) diskRefcount(cluster int64) (uint64, error) {
	ok, err := c.loadBlock(cluster >> c.blockBits())
	if err != nil || !ok {
		return 0, err
	}
	return getRefcount(c.blockBuf, c.h.refcountOrder, cluster&(1<<c.blockBits()-1)), nil
}

// compare holds the references of the window against the refcounts on disk.
func (c *checker) compare() error {
	end := min(c.base+int64(len(c.window)), c.clusters)
	for i := c.base; i < end; i++ {
		rc, err := c.diskRefcount(i)
		if err != nil {
			return err
		}
		refs := c.window[i-c.base] & refCount
		switch {
		case rc > refs:
			if refs == 0 && len(c.r.unused) < maxUnused {
				c.r.unused = append(c.r.unused, i)
			}
			c.add(FaultLeak, i<<c.cb, "refcount %d, references %d", rc, refs)
		case rc < refs:
			c.add(FaultRefcount, i<<c.cb, "refcount %d, references %d", rc, refs)
		}
	}
	return nil
}

// beyond finds refcounts of clusters past the end of the file.
func (c *checker) beyond() error {
	per := int64(1) << c.blockBits()
	for bi := c.clusters >> c.blockBits(); bi < int64(len(c.rt)); bi++ {
		ok, err := c.loadBlock(bi)
		if err != nil {
			return err
		}
		if !ok || IsZero(c.blockBuf) {
			continue
		}
		for i := max(bi*per, c.clusters); i < (bi+1)*per; i++ {
			if rc := getRefcount(c.blockBuf, c.h.refcountOrder, i&(per-1)); rc != 0 {
				if len(c.r.unused) < maxUnused {
					c.r.unused = append(c.r.unused, i)
				}
				c.add(FaultLeak, i<<c.cb, "refcount %d past the end of the file", rc)
			}
		}
	}
	return nil
}

// snapshot is an entry of the snapshot table, as far as it is used here.
type snapshot struct {
	l1Off  uint64 // 0
	l1Size uint32 // 8: entries
}

// readSnapshots reads the snapshot table; end is the byte offset behind it.
func readSnapshots(src Source, h *header) (s []snapshot, end int64, err error) {
	start := int64(h.snapshotsOff)
	at := start
	for i := range int(h.snapshots) {
		var b [40]byte
		n, err := readFull(src, b[:], at)
		if err != nil {
			return nil, 0, fmt.Errorf("reading the snapshot table: %w", err)
		}
		if n < len(b) {
			return nil, 0, corruptf("snapshot %d of %d: the table ends past the file", i, h.snapshots)
		}
		be := binary.BigEndian
		x := snapshot{be.Uint64(b[:]), be.Uint32(b[8:])}
		extra := int64(be.Uint32(b[36:]))
		if extra > maxSnapshotExtra {
			return nil, 0, unsupportedf("snapshot %d has %d bytes of extra data (at most %d)", i, extra, maxSnapshotExtra)
		}
		if uint64(x.l1Size)*8 > maxL1Bytes {
			return nil, 0, unsupportedf("snapshot %d has an L1 table of %d entries", i, x.l1Size)
		}
		at += (40 + extra + int64(be.Uint16(b[12:])) + int64(be.Uint16(b[14:])) + 7) &^ 7
		if at-start > maxSnapshotTableBytes {
			return nil, 0, unsupportedf("the snapshot table is larger than %d bytes", maxSnapshotTableBytes)
		}
		s = append(s, x)
	}
	return s, at, nil
}

// bitmapTable is where a persistent bitmap's table lies; n is in entries.
type bitmapTable struct{ off, n int64 }

func readBitmapDir(src Source, x bitmapsExt) ([]bitmapTable, error) {
	var out []bitmapTable
	at, end := int64(x.dirOff), int64(x.dirOff)+int64(x.dirSize)
	if int64(x.dirOff) < 0 || end < at || end > src.Size() {
		return nil, corruptf("the bitmap directory at %#x, %d bytes, ends past the file", x.dirOff, x.dirSize)
	}
	for i := range int(x.count) {
		var b [24]byte
		n, err := readFull(src, b[:], at)
		if err != nil {
			return nil, fmt.Errorf("reading the bitmap directory: %w", err)
		}
		be := binary.BigEndian
		at += (24 + int64(be.Uint16(b[18:])) + int64(be.Uint32(b[20:])) + 7) &^ 7
		if n < len(b) || at > end {
			return nil, corruptf("bitmap %d of %d: the directory is too short", i, x.count)
		}
		t := bitmapTable{int64(be.Uint64(b[:]) & offsetMask), int64(be.Uint32(b[8:]))}
		if t.n*8 > maxBitmapTableBytes {
			return nil, unsupportedf("bitmap %d has a table of %d entries", i, t.n)
		}
		if t.n > 0 && t.n*8 > src.Size()-t.off {
			return nil, corruptf("bitmap %d: the table at %#x ends past the file", i, t.off)
		}
		out = append(out, t)
	}
	return out, nil
}

// entries calls f with each entry of the table.
func (t bitmapTable) entries(src Source, f func(i int64, e uint64) error) error {
	tbl, err := readTable(src, t.off, int(t.n))
	if err != nil {
		return err
	}
	for i, e := range tbl {
		if err := f(int64(i), e); err != nil {
			return err
		}
	}
	return nil
}
