package xfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
)

// Device is what a filesystem is written to.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Options of a Writer.
type Options struct {
	// Now is the time of everything that happens: ctime, crtime, and the mtime of headers that have none. Required.
	Now time.Time
	// CountOnly counts instead of writing: Device.WriteAt is never called, contents are read and dropped, and
	// Commit says whether it would all have fitted.
	CountOnly bool
	// Grow is asked for room when blocks or inodes run out, in Add and Replace and in Commit. need is the least size in
	// bytes that the filesystem must have to go on. Grow returns the device's new size, and the Writer goes on with a
	// filesystem of that size, as by Writer.Grow. A size below need means that there is no more: the Writer counts on,
	// as it does without Grow, and Commit returns a NoSpaceError. An error ends the Writer; Commit returns it.
	Grow func(need int64) (int64, error)
}

// NoSpaceError says what was there and what the whole plan needs. It matches ErrNoSpace.
type NoSpaceError struct{ Space }

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%v: %d blocks of %d bytes and %d inodes needed, %d blocks and %d inodes available",
		ErrNoSpace, e.NeedBlocks, e.BlockSize, e.NeedInodes, e.FreeBlocks, e.FreeInodes)
}

// Is makes errors.Is(err, ErrNoSpace) hold.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// Writer adds to, and removes from, a filesystem that nobody has mounted. Nothing of it is safe for concurrent use.
// Contents are written as they are added; what makes them reachable is written by Commit. A device whose Writer was
// dropped, or whose Commit failed, holds a broken filesystem: write to a copy.
type Writer struct {
	*FS
	dev   *wdev
	o     Options
	state error // why no more calls are accepted

	groups     []*group // nil: made by growth and not used yet
	order      []uint32 // groups, most free blocks first, then those made by growth
	cur        int      // index in order of the group in use
	room       budget
	total      int64 // blocks that may be taken
	used, peak int64
	icount     uint64
	ifree      uint64
	maxIcount  uint64
	inodesUsed int64
	inodesPeak int64
	overflow   bool // there was no space; everything since is counted only
	phantom    uint64
	phantomIno uint64

	counting bool
	memInode map[uint64]slimInode // inodes while counting
	labels   map[string]string    // attribute forks of memInode, of which many are the same
	memBlock map[int64][]byte     // metadata blocks while counting, by offset, without their zero tail

	inodes  map[uint64][]byte // cached inode blocks by fsblock, all of them changed
	buf     []byte            // of contents
	zeros   []byte
	newAttr bool // attributes were written
	edited  bool // something was asked for besides growth
	grown   bool
}

// slimInode is an inode as it would be on disk: up to the end of its data fork, without the zeros there, and its
// attribute fork.
type slimInode struct{ head, attrs string }

const (
	holeUnit       = 64 << 10 // aligned zeros of this length become holes
	copyBuffer     = 1 << 20
	inodeCacheSize = 8 << 20
)

// OpenWriter opens the filesystem in the first size bytes of d for writing. Errors match ErrUnsupported, ErrDirtyLog,
// ErrCorrupt, or are those of d.
func OpenWriter(d Device, size int64, o Options) (*Writer, error) {
	return openWriterWith(d, size, o, false)
}

func openWriterWith(d Device, size int64, o Options, noCRC bool) (*Writer, error) {
	if o.Now.IsZero() {
		return nil, errors.New("xfs: Options.Now is required")
	}
	fs, err := Open(d, size)
	if err != nil {
		return nil, err
	}
	fs.noCRC = noCRC
	if err := fs.sb.checkWritable(); err != nil {
		return nil, err
	}
	if err := fs.checkLog(); err != nil {
		return nil, err
	}
	w := &Writer{FS: fs, o: o, counting: o.CountOnly, memInode: map[uint64]slimInode{}, labels: map[string]string{}, memBlock: map[int64][]byte{}, inodes: map[uint64][]byte{}}
	buf := make([]byte, 2*fs.sb.sectSize)
	for i := uint32(0); i < fs.sb.agCount; i++ {
		g, err := fs.readGroup(i, buf)
		if err != nil {
			return nil, err
		}
		w.groups = append(w.groups, g)
		w.order = append(w.order, i)
	}
	w.openBudget()
	slices.SortStableFunc(w.order, func(a, b uint32) int {
		return int(min(1, max(-1, w.groups[b].avail-w.groups[a].avail)))
	})
	w.dev = &wdev{w: w, d: d}
	fs.dev, fs.w = w.dev, w
	return w, nil
}

// Space counts so far; folders that changed are counted as Commit will lay them out. It is cheap: only folders that
// changed since the last call are looked at.
func (w *Writer) Space() Space {
	s := Space{
		BlockSize: int64(w.sb.blockSize), FreeBlocks: w.total, NeedBlocks: w.peak,
		FreeInodes: w.freeInodes(), NeedInodes: w.inodesPeak,
	}
	pending := w.used
	for _, d := range w.folders {
		if d.dirty && !d.planned {
			d.growth, d.planned = w.pendingBlocks(d), true
		}
		pending += d.growth
	}
	s.NeedBlocks = max(s.NeedBlocks, pending)
	return s
}

// wdev is the device as the reader sees it while a Writer is at work: small writes that follow one another are
// gathered, and reads see them.
type wdev struct {
	w   *Writer
	d   Device
	buf []byte
	off int64
}

func (v *wdev) ReadAt(p []byte, off int64) (int, error) {
	if off < v.off+int64(len(v.buf)) && off+int64(len(p)) > v.off {
		if err := v.flush(); err != nil {
			return 0, err
		}
	}
	return v.d.ReadAt(p, off)
}

func (v *wdev) flush() error {
	if len(v.buf) == 0 {
		return nil
	}
	b := v.buf
	v.buf = v.buf[:0]
	_, err := v.d.WriteAt(b, v.off)
	return err
}

func (v *wdev) write(p []byte, off int64) error {
	if v.w.counting {
		return nil
	}
	if off < 0 || off > v.w.size-int64(len(p)) {
		return fmt.Errorf("writing %d bytes at %d, past the device's %d", len(p), off, v.w.size)
	}
	if off != v.off+int64(len(v.buf)) || len(v.buf)+len(p) > copyBuffer {
		if err := v.flush(); err != nil {
			return err
		}
		v.off = off
	}
	if len(p) >= copyBuffer/2 && len(v.buf) == 0 {
		_, err := v.d.WriteAt(p, off)
		return err
	}
	v.buf = append(v.buf, p...)
	return nil
}

// writeSparse writes b, but not the zeros in it where the device reads as zeros.
func (w *Writer) writeSparse(b []byte, off int64) error {
	const piece = 4 << 10
	var zero [piece]byte
	// run is the length of the pieces at the start of b that are zero, or are not.
	run := func(b []byte, zeros bool) (n int) {
		for n < len(b) {
			k := min(piece, len(b)-n)
			if bytes.Equal(b[n:n+k], zero[:k]) != zeros {
				break
			}
			n += k
		}
		return n
	}
	for len(b) > 0 {
		if n := run(b, false); n > 0 {
			if err := w.dev.write(b[:n], off); err != nil {
				return err
			}
			b, off = b[n:], off+int64(n)
			continue
		}
		n := run(b, true)
		there := make([]byte, n)
		if err := w.readAt(there, off); err != nil {
			return err
		}
		for len(there) > 0 {
			k := run(there, true)
			there, b, off = there[k:], b[k:], off+int64(k)
			k = run(there, false)
			if err := w.dev.write(b[:k], off); err != nil {
				return err
			}
			there, b, off = there[k:], b[k:], off+int64(k)
		}
	}
	return nil
}

// writeMeta writes whole blocks of metadata.
func (w *Writer) writeMeta(fsb uint64, b []byte) error {
	if w.counting {
		w.memBlock[w.sb.off(fsb)] = bytes.Clone(bytes.TrimRight(b, "\x00"))
		return nil
	}
	return w.dev.write(b, w.sb.off(fsb))
}

// cachedInode finds an inode that was changed since the disk was opened.
func (w *Writer) cachedInode(ino uint64) (*inode, error, bool) {
	if s, ok := w.memInode[ino]; ok {
		raw := make([]byte, w.sb.inodeSize)
		copy(raw, s.head)
		if off := int(raw[diForkoff]) * 8; off > 0 {
			copy(raw[diCoreSize+off:], s.attrs)
		}
		in, err := w.decodeInode(raw, ino)
		if err == nil && in.mode == 0 {
			err = corrupt("inode %d is in use by a folder but free", ino)
		}
		return in, err, true
	}
	fsb, off, err := w.sb.inoPlace(ino)
	if err != nil {
		return nil, err, true
	}
	if b, ok := w.inodes[fsb]; ok {
		in, err := w.decodeInode(b[off:off+w.sb.inodeSize], ino)
		return in, err, true
	}
	return nil, nil, false
}

func (w *Writer) putInode(in *inode) error {
	if w.counting {
		var ok bool
		raw := make([]byte, w.sb.inodeSize)
		in.encode(raw, w.sb.metaUUID)
		var s slimInode
		if in.forkoff != 0 {
			fork := raw[diCoreSize+int(in.forkoff)*8:]
			if s.attrs, ok = w.labels[string(fork)]; !ok {
				s.attrs = string(fork)
				w.labels[s.attrs] = s.attrs
			}
			clear(fork)
		}
		s.head = string(bytes.TrimRight(raw, "\x00"))
		w.memInode[in.ino] = s
		return nil
	}
	fsb, off, err := w.sb.inoPlace(in.ino)
	if err != nil {
		return err
	}
	b, ok := w.inodes[fsb]
	if !ok {
		if err := w.trimInodes(); err != nil {
			return err
		}
		b = make([]byte, w.sb.blockSize)
		if err := w.readAt(b, w.sb.off(fsb)); err != nil {
			return wrap(err, "reading inode %d", in.ino)
		}
		w.inodes[fsb] = b
	}
	in.encode(b[off:off+w.sb.inodeSize], w.sb.metaUUID)
	return nil
}

// freshInodes formats n new blocks of inodes.
func (w *Writer) freshInodes(fsb uint64, n uint32) {
	if w.counting {
		return
	}
	ag, b := w.sb.split(fsb)
	for i := uint32(0); i < n; i++ {
		buf := make([]byte, w.sb.blockSize)
		for j := 0; j < 1<<w.sb.inopLog; j++ {
			raw := buf[j<<w.sb.inodeLog:][:w.sb.inodeSize]
			ino := w.sb.ino(ag, (b+i)<<w.sb.inopLog+uint32(j))
			be.PutUint16(raw, inodeMagic)
			raw[diVersion] = 3
			be.PutUint32(raw[diGen:], w.generation(ino))
			be.PutUint32(raw[diUnlinked:], nullAgino)
			be.PutUint64(raw[diIno:], ino)
			copy(raw[diUUID:], w.sb.metaUUID[:])
			setCRC(raw, diCRC)
		}
		w.inodes[fsb+uint64(i)] = buf
	}
}

// generation tells apart the files that an inode number had, for NFS handles; the kernel takes a random number.
func (w *Writer) generation(ino uint64) uint32 {
	x := ino*0x9e3779b97f4a7c15 ^ uint64(w.o.Now.UnixNano())
	x ^= x >> 29
	x *= 0xbf58476d1ce4e5b9
	return uint32(x >> 32)
}

func (w *Writer) trimInodes() error {
	if w.counting || len(w.inodes)<<w.sb.blockLog < inodeCacheSize {
		return nil
	}
	return w.flushInodes()
}

func (w *Writer) flushInodes() error {
	at := make([]uint64, 0, len(w.inodes))
	for b := range w.inodes {
		at = append(at, b)
	}
	slices.Sort(at)
	for _, b := range at {
		if err := w.dev.write(w.inodes[b], w.sb.off(b)); err != nil {
			return wrap(err, "writing inodes")
		}
	}
	if !w.counting {
		clear(w.inodes)
	}
	return nil
}

// inherited is what a new file takes from its folder.
type inherited struct {
	flags, flags2       uint64
	extsize, cowExtsize uint32
	projid              uint32
}

func inheritedFrom(in *inode) inherited {
	return inherited{uint64(in.flags), in.flags2, in.extsize, in.cowExtsize, in.projid}
}

func (h inherited) apply(in *inode) {
	if h.flags&flagProjInherit != 0 {
		in.projid = h.projid
	}
	dir := in.kind() == modeDir
	if !dir && in.kind() != modeReg {
		return
	}
	in.flags |= uint16(h.flags) & (flagNoatime | flagNodump | flagSync | flagNodefrag | flagFilestream)
	if dir {
		in.flags |= uint16(h.flags) & (flagRtInherit | flagProjInherit)
	}
	if h.flags&flagExtszInherit != 0 {
		in.extsize = h.extsize
		if dir {
			in.flags |= flagExtszInherit
		} else {
			in.flags |= flagExtsize
		}
	}
	if h.flags2&flag2CowExtsize != 0 {
		in.flags2 |= flag2CowExtsize
		in.cowExtsize = h.cowExtsize
	}
	in.flags2 |= h.flags2 & flag2DAX
}

var modeOfType = map[byte]uint16{
	tar.TypeReg: modeReg, '\x00': modeReg, tar.TypeDir: modeDir, tar.TypeSymlink: modeLnk,
	tar.TypeChar: modeChar, tar.TypeBlock: modeBlk, tar.TypeFifo: modeFifo, 's': modeSock,
}

// setAttrs puts a header's attributes into an inode.
func (w *Writer) setAttrs(in *inode, h *tar.Header) error {
	if h.Uid < 0 || h.Gid < 0 || uint64(h.Uid) > 1<<32-2 || uint64(h.Gid) > 1<<32-2 {
		return fmt.Errorf("owner %d:%d: %w", h.Uid, h.Gid, iofs.ErrInvalid)
	}
	// Some archives carry the file type in the mode as well; Typeflag alone decides.
	in.mode = in.kind() | uint16(h.Mode&07777)
	in.uid, in.gid = uint32(h.Uid), uint32(h.Gid)
	m := h.ModTime
	if m.IsZero() {
		m = w.o.Now
	}
	a := h.AccessTime
	if a.IsZero() {
		a = m
	}
	in.mtime, in.atime, in.ctime = in.stamp(m), in.stamp(a), in.stamp(w.o.Now)
	return nil
}

func xattrsOf(h *tar.Header) ([]attr, error) {
	var out []attr
	for k, v := range h.PAXRecords {
		n, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			continue
		}
		a, err := internal(n, v)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].flags != out[j].flags {
			return out[i].flags < out[j].flags
		}
		return out[i].name < out[j].name
	})
	for i := 1; i < len(out); i++ { // an ACL can be given by both of its names
		if out[i].flags == out[i-1].flags && out[i].name == out[i-1].name {
			return nil, fmt.Errorf("xattr %s is given twice: %w", out[i].name, iofs.ErrInvalid)
		}
	}
	return out, nil
}

// modern gives an inode from before an upgrade the wider times that the filesystem has now, as the kernel does when it
// changes one.
func (w *Writer) modern(in *inode) {
	if w.sb.inc&incBigtime == 0 || in.flags2&flag2Bigtime != 0 {
		return
	}
	for _, p := range []*uint64{&in.atime, &in.mtime, &in.ctime, &in.crtime} {
		wide := inode{flags2: flag2Bigtime}
		*p = wide.stamp(in.time(*p))
	}
	in.flags2 |= flag2Bigtime
}

func (w *Writer) newInode(d *folder, mode uint16) *inode {
	in := &inode{mode: mode, nlink: 1, changeCount: 1, format: fmtDev, aformat: fmtExtents}
	if mode == modeReg || mode == modeDir || mode == modeLnk {
		in.format = fmtExtents
	}
	if w.sb.inc&incBigtime != 0 {
		in.flags2 |= flag2Bigtime
	}
	if w.sb.inc&incNrext64 != 0 {
		in.flags2 |= flag2Nrext64
	}
	d.inherit.apply(in)
	in.crtime = in.stamp(w.o.Now)
	return in
}

// dirty keeps a folder in memory until Commit; it may have left the cache since it was looked up.
func (w *Writer) dirty(d *folder) {
	d.dirty, d.planned = true, false
	w.folders[d.ino] = d
}

// Add creates h.Name with the attributes of h; see the package documentation for the rules. Contents of a regular file
// are read from r, exactly h.Size bytes. When the space runs out, Add goes on counting without an error, and Commit
// reports what was missing.
func (w *Writer) Add(h *tar.Header, r io.Reader) error {
	return w.op("add", h.Name, func() error { return w.add(h, r, false) })
}

// Replace is Add of a regular file over an existing one: the name leads to a new file, other hard links keep the old.
func (w *Writer) Replace(h *tar.Header, r io.Reader) error {
	return w.op("replace", h.Name, func() error {
		if modeOfType[h.Typeflag] != modeReg {
			return fmt.Errorf("type %q: %w", h.Typeflag, iofs.ErrInvalid)
		}
		return w.add(h, r, true)
	})
}

// Remove unlinks a file or removes an empty folder.
func (w *Writer) Remove(name string) error {
	return w.op("remove", name, func() error { return w.remove(name) })
}

func (w *Writer) op(op, name string, f func() error) error {
	if w.state != nil {
		return pathErr(op, name, w.state)
	}
	w.edited = true
	if err := f(); err != nil {
		return pathErr(op, name, err)
	}
	return nil
}

// broken notes an error that left a change half done: nothing may follow it.
func (w *Writer) broken(err error) error {
	if err != nil && w.state == nil {
		w.state = fmt.Errorf("an earlier operation failed: %w", err)
	}
	return err
}

func (w *Writer) add(h *tar.Header, r io.Reader, replace bool) error {
	d, base, err := w.walk(h.Name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return w.link(d, base, h)
	}
	mode, ok := modeOfType[h.Typeflag]
	if !ok {
		return fmt.Errorf("type %q: %w", h.Typeflag, iofs.ErrInvalid)
	}
	attrs, err := xattrsOf(h)
	if err != nil {
		return err
	}
	if base == "" {
		if mode != modeDir {
			return iofs.ErrExist
		}
		return w.setFolder(d, h, attrs)
	}
	var old uint64
	if e := d.find(base); e != nil {
		old = e.ino
		in, err := w.inode(old)
		if err != nil {
			return err
		}
		switch {
		case replace && in.kind() == modeReg:
		case mode == modeDir && in.kind() == modeDir:
			sub, err := w.folder(old)
			if err != nil {
				return err
			}
			return w.setFolder(sub, h, attrs)
		default:
			return iofs.ErrExist
		}
	}
	in := w.newInode(d, mode)
	if err := w.setAttrs(in, h); err != nil {
		return err
	}
	if w.sb.inc&incParent != 0 {
		attrs = append(attrs, d.pointer(base))
	}
	if err := w.content(in, h, r, attrs); err != nil {
		return err
	}
	if old != 0 {
		d.find(base).ino = in.ino
		w.dirty(d)
		return w.broken(w.unlink(old, d, base))
	}
	w.dirty(d)
	if err := d.add([]byte(base), in.ino, ftypeOfMode[mode]); err != nil {
		return err
	}
	if mode == modeDir {
		w.folders[in.ino] = &folder{ino: in.ino, parent: d.ino, ci: d.ci, dirty: true, explicit: true, attrsSet: true, attrs: attrs, gen: in.gen, inherit: inheritedFrom(in)}
	}
	return nil
}

// content gives a new inode its number, its forks, and its place on the disk.
func (w *Writer) content(in *inode, h *tar.Header, r io.Reader, attrs []attr) (err error) {
	var exts []extent
	switch in.kind() {
	case modeReg:
		if exts, err = w.copyIn(h.Size, r); err != nil {
			w.unalloc(exts)
			return err
		}
		in.size = uint64(h.Size)
	case modeLnk:
		if n := len(h.Linkname); n == 0 || n >= maxSymlink || strings.IndexByte(h.Linkname, 0) >= 0 {
			return fmt.Errorf("symlink to %d bytes: %w", n, syscall.ENAMETOOLONG)
		}
		in.size = uint64(len(h.Linkname))
	case modeChar, modeBlk:
		// 14 bits are there for the major, but the kernel reads 9 of them back.
		if h.Devmajor < 0 || h.Devmajor > devMajorMask || h.Devminor < 0 || h.Devminor >= 1<<18 {
			return fmt.Errorf("device %d:%d: %w", h.Devmajor, h.Devminor, iofs.ErrInvalid)
		}
	}
	if in.ino, err = w.allocInode(); err != nil {
		return err
	}
	defer func() { w.broken(err) }()
	in.gen = w.generation(in.ino)
	in.lit = make([]byte, w.sb.inodeSize-diCoreSize)
	switch in.kind() {
	case modeReg:
		w.layout(in, 16*len(exts), attrs)
		if err := w.setExtents(fork{in: in}, exts); err != nil {
			return err
		}
	case modeDir:
		// Commit lays the folder out; until then the inode stands for an empty one.
		in.format, in.size, in.nlink = fmtLocal, 6, 2
		return w.putInode(in)
	case modeLnk:
		w.layout(in, len(h.Linkname), attrs)
		if len(h.Linkname) <= len(in.dataFork()) {
			in.format = fmtLocal
			copy(in.dataFork(), h.Linkname)
		} else if err := w.writeSymlink(in, h.Linkname); err != nil {
			return err
		}
	default:
		w.layout(in, 8, attrs)
		if k := in.kind(); k == modeChar || k == modeBlk {
			be.PutUint32(in.lit, uint32(h.Devmajor)<<18|uint32(h.Devminor))
		}
	}
	if err := w.writeAttrs(in, attrs); err != nil {
		return err
	}
	return w.putInode(in)
}

// unalloc gives back blocks that no inode got.
func (w *Writer) unalloc(exts []extent) {
	for _, e := range exts {
		if !w.isPhantom(e.start) {
			ag, b := w.sb.split(e.start)
			g := w.group(ag)
			g.giveBack(span{b, e.n})
			g.avail += int64(e.n)
		}
		w.used -= int64(e.n)
	}
}

// copyIn stores size bytes of r. Aligned stretches of 64 KiB of zeros, or of a block if that is more, become holes.
func (w *Writer) copyIn(size int64, r io.Reader) (exts []extent, err error) {
	if size < 0 {
		return nil, fmt.Errorf("size %d: %w", size, iofs.ErrInvalid)
	}
	if size == 0 {
		return nil, nil
	}
	if r == nil {
		return nil, fmt.Errorf("%d bytes of content expected: %w", size, io.ErrUnexpectedEOF)
	}
	bl := w.sb.blockLog
	blocks := uint64(size+int64(w.sb.blockSize)-1) >> bl
	if err := w.prefer(blocks); err != nil {
		return nil, err
	}
	if w.buf == nil {
		w.buf, w.zeros = make([]byte, copyBuffer), make([]byte, holeUnit)
	}
	for off := int64(0); off < size; {
		n := int(min(size-off, copyBuffer))
		if _, err := io.ReadFull(r, w.buf[:n]); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return exts, wrap(err, "content of %d bytes", size)
		}
		padded := (n + w.sb.blockSize - 1) >> bl << bl
		clear(w.buf[n:padded])
		for at := 0; at < padded; {
			end := at
			for end < padded && !w.isHole(w.buf[end:padded]) {
				end = min(padded, end+holeUnit)
			}
			if exts, err = w.store(exts, uint64(off+int64(at))>>bl, w.buf[at:end]); err != nil {
				return exts, err
			}
			for at = end; at < padded && w.isHole(w.buf[at:padded]); {
				at += holeUnit
			}
		}
		off += int64(n)
	}
	return exts, nil
}

func (w *Writer) isHole(b []byte) bool {
	return len(b) >= holeUnit && bytes.Equal(b[:holeUnit], w.zeros)
}

// store allocates and writes whole blocks.
func (w *Writer) store(exts []extent, block uint64, b []byte) ([]extent, error) {
	for len(b) > 0 {
		fsb, n, err := w.allocRun(uint64(len(b) >> w.sb.blockLog))
		if err != nil {
			return exts, err
		}
		exts = appendExtent(exts, extent{off: block, start: fsb, n: n})
		size := int(n) << w.sb.blockLog
		if !w.counting {
			if err := w.dev.write(b[:size], w.sb.off(fsb)); err != nil {
				return exts, wrap(err, "writing content")
			}
		}
		block += uint64(n)
		b = b[size:]
	}
	return exts, nil
}

func (w *Writer) link(d *folder, base string, h *tar.Header) error {
	if base == "" {
		return iofs.ErrExist
	}
	if d.find(base) != nil {
		return iofs.ErrExist
	}
	in, err := w.resolve(h.Linkname)
	if err != nil {
		return pathErr("link", h.Linkname, err)
	}
	if in.kind() == modeDir {
		return pathErr("link", h.Linkname, syscall.EPERM)
	}
	if in.nlink >= maxLinks {
		return pathErr("link", h.Linkname, syscall.EMLINK)
	}
	w.modern(in)
	in.nlink++
	in.changeCount++
	in.ctime = in.stamp(w.o.Now)
	if w.sb.inc&incParent != 0 {
		attrs, err := w.readAttrs(in)
		if err != nil {
			return err
		}
		err = w.rewrite(in, append(attrs, d.pointer(base)))
		if w.broken(err) != nil {
			return err
		}
	}
	if err := w.broken(w.putInode(in)); err != nil {
		return err
	}
	w.dirty(d)
	return d.add([]byte(base), in.ino, ftypeOfMode[in.kind()])
}

// setFolder gives an existing folder the attributes of h.
func (w *Writer) setFolder(d *folder, h *tar.Header, attrs []attr) error {
	in, err := w.inode(d.ino)
	if err != nil {
		return err
	}
	w.modern(in)
	if err := w.setAttrs(in, h); err != nil {
		return err
	}
	if w.sb.inc&incParent != 0 {
		old, err := w.attrsOf(in)
		if err != nil {
			return err
		}
		for _, a := range old {
			if a.flags&attrParent != 0 {
				attrs = append(attrs, a)
			}
		}
	}
	if err := w.putInode(in); err != nil {
		return err
	}
	d.attrs, d.attrsSet, d.explicit = attrs, true, true
	w.dirty(d)
	return nil
}

func (w *Writer) remove(name string) error {
	d, base, err := w.walk(name)
	if err != nil {
		return err
	}
	if base == "" {
		return syscall.EBUSY
	}
	e := d.find(base)
	if e == nil {
		return iofs.ErrNotExist
	}
	in, err := w.inode(e.ino)
	if err != nil {
		return err
	}
	if in.kind() != modeDir {
		if err := w.broken(w.unlink(in.ino, d, base)); err != nil {
			return err
		}
	} else {
		sub, err := w.folder(in.ino)
		if err != nil {
			return err
		}
		if sub.live > 0 {
			return syscall.ENOTEMPTY
		}
		if err := w.broken(w.dropInode(in)); err != nil {
			return err
		}
		delete(w.folders, in.ino)
	}
	d.remove(e)
	w.dirty(d)
	return nil
}

// unlink takes one name, that in d, from a file, and the file with its last name.
func (w *Writer) unlink(ino uint64, d *folder, name string) error {
	in, err := w.inode(ino)
	if err != nil {
		return err
	}
	if in.nlink > 1 {
		w.modern(in)
		in.nlink--
		in.changeCount++
		in.ctime = in.stamp(w.o.Now)
		if w.sb.inc&incParent != 0 {
			attrs, err := w.readAttrs(in)
			if err != nil {
				return err
			}
			p := d.pointer(name)
			i := slices.Index(attrs, p)
			if i < 0 {
				return corrupt("inode %d: no parent pointer to folder %d as %q", ino, d.ino, name)
			}
			if err := w.rewrite(in, slices.Delete(attrs, i, i+1)); err != nil {
				return err
			}
		}
		return w.putInode(in)
	}
	return w.dropInode(in)
}

func (w *Writer) dropInode(in *inode) error {
	if in.flags&flagRealtime != 0 {
		return unsupported("file on the realtime device")
	}
	if err := w.freeFork(fork{in: in}); err != nil {
		return err
	}
	if in.forkoff != 0 {
		if err := w.freeFork(fork{in, true}); err != nil {
			return err
		}
	}
	if err := w.freeInode(in.ino); err != nil {
		return err
	}
	gone := &inode{ino: in.ino, gen: in.gen + 1, format: fmtExtents, aformat: fmtExtents, flags2: in.flags2 & (flag2Bigtime | flag2Nrext64), changeCount: in.changeCount + 1}
	return w.putInode(gone)
}
