package ext4

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"
)

// TypeSocket is the tar.Header.Typeflag of a socket, for which tar itself has none.
const TypeSocket = 's'

// Options of a [Writer].
type Options struct {
	// Now is the time of every change: ctime, crtime, and whatever a header leaves open. Zero means 1970.
	Now time.Time
	// CountOnly never writes to the device: everything is counted exactly as it would be taken.
	CountOnly bool
	// Grow is asked for a larger device when blocks or inodes run out, in Commit too. need is the least size in
	// bytes that the filesystem must have to go on. The size that it returns is what the filesystem is then grown
	// to, as by [Writer.Grow]; a size below need means that there is no more, and an error ends the writer. It must
	// not use the Writer.
	Grow func(need int64) (int64, error)
}

// Space is what a filesystem has and what a [Writer] takes, in blocks of BlockSize bytes and in inodes.
type Space struct {
	BlockSize  int64
	FreeBlocks int64 // free when the writer was opened and added by growth, without those reserved for root
	NeedBlocks int64 // taken so far, less what was given back; final after Commit, which writes the folders
	FreeInodes int64 // as FreeBlocks
	NeedInodes int64
}

// NoSpaceError says how much was needed in all and how much was free. It matches [ErrNoSpace].
type NoSpaceError struct{ Space }

func (e *NoSpaceError) Error() string {
	s := e.Space
	return fmt.Sprintf("not enough space: %d blocks of %d bytes needed, %d free; %d inodes needed, %d free",
		s.NeedBlocks, s.BlockSize, s.FreeBlocks, s.NeedInodes, s.FreeInodes)
}

// Is makes errors.Is(err, ErrNoSpace) true.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// Writer changes an ext4 filesystem. It offers all of FS's reads, of what was there and of what was added. It is
// not safe for concurrent use.
//
// When space runs out and Options.Grow has no more, calls go on without error and only count; Commit then returns a
// [NoSpaceError] with the whole need. Any other error of the device leaves the writer useless, and Commit returns it.
type Writer struct {
	*FS
	allocator
	growState

	dev     *device
	now     time.Time
	count   bool
	done    bool
	err     error // of the device or the filesystem: what is on the device is not to be used
	changed map[uint32]*folder

	lastDir    string // path of lastFolder, which is nil when there is none
	lastFolder *folder

	largeFile bool // a file over 2 GiB was written
	hasXattrs bool

	buf []byte // file content
	raw []byte // inode being made
	ext []extent
}

// OpenWriter opens the filesystem on d, which is size bytes long, for changing. It refuses with [ErrUnsupported] or
// [ErrNeedsRecovery] what Open permits but must not be written: unknown read-only compatible features, bigalloc,
// quota, external journals, filesystems that were not unmounted, have orphans, or are marked as having errors.
func OpenWriter(d Device, size int64, o Options) (*Writer, error) {
	f, err := Open(d, size)
	if err != nil {
		return nil, err
	}
	if err := f.writable(); err != nil {
		return nil, err
	}
	if o.Now.IsZero() {
		o.Now = time.Unix(0, 0)
	}
	return newWriter(f, d, o), nil
}

func newWriter(f *FS, d Device, o Options) *Writer {
	w := &Writer{FS: f, now: o.Now, count: o.CountOnly, changed: map[uint32]*folder{}}
	w.dev = &device{f: f, d: d, count: o.CountOnly}
	w.raw = make([]byte, f.isize)
	f.dev = w.dev
	f.w = w
	f.itab = newInodeTable(f, 64<<10, 64)
	w.initAllocator()
	w.initGrowth(o.Grow)
	return w
}

func (f *FS) writable() error {
	sb := f.sb[:]
	if f.ro&roOrphanPresent != 0 || le.Uint32(sb[sbLastOrphan:]) != 0 {
		return fmt.Errorf("%w: it has orphaned inodes (orphan_present): mount and unmount it once, or run e2fsck", ErrNeedsRecovery)
	}
	if bad := f.ro &^ (roWrite | roOrphanPresent); bad != 0 {
		return unsupported("%s", strings.Join(featureNames(bad, roNames, "ro_compat"), ", "))
	}
	switch state := le.Uint16(sb[sbState:]); {
	case state&stateError != 0:
		return fmt.Errorf("%w: it is marked as having errors: run e2fsck -f", ErrNeedsRecovery)
	case state&stateValid == 0:
		return fmt.Errorf("%w: it was not unmounted cleanly: run e2fsck", ErrNeedsRecovery)
	}
	if f.compat&compatHasJournal != 0 && (le.Uint32(sb[sbJournalInode:]) == 0 || le.Uint32(sb[sbJournalDev:]) != 0) {
		return unsupported("external journal (journal_dev)")
	}
	if f.compat&compatDirIndex != 0 && f.hashVer > hashTea {
		return unsupported("folder hash version %d", f.hashVer)
	}
	if le.Uint32(sb[sbCreatorOS:]) == 1 {
		return unsupported("filesystem of the Hurd")
	}
	if f.incompat&incompatMMP != 0 {
		b := make([]byte, f.bs)
		at := le.Uint64(sb[sbMMPBlock:])
		if err := f.readBlock(int64(min(at, math.MaxInt64)), b); err != nil {
			return fmt.Errorf("mmp: %w", err)
		}
		if le.Uint32(b) != mmpMagic {
			return corrupt("mmp block %d has magic %#x", at, le.Uint32(b))
		}
		if le.Uint32(b[4:]) != mmpClean {
			return fmt.Errorf("%w: another host has it mounted, or did not unmount it (mmp): unmount it there, or run e2fsck", ErrNeedsRecovery)
		}
	}
	return nil
}

// Space tells what is free and what was taken so far.
func (w *Writer) Space() Space { return w.space }

// fatal remembers an error that makes the device's content useless.
func (w *Writer) fatal(err error) error {
	if err != nil && w.err == nil {
		w.err = err
	}
	return err
}

func (w *Writer) ready() error {
	if w.err != nil {
		return fmt.Errorf("an earlier error made the filesystem useless: %w", w.err)
	}
	if w.done {
		return fs.ErrClosed
	}
	return nil
}

// parent finds the folder that holds clean's last component.
func (w *Writer) parent(clean string) (*folder, string, error) {
	dir, base := splitName(clean)
	if w.lastFolder != nil && w.lastFolder.pinned && w.lastDir == dir {
		return w.lastFolder, base, nil
	}
	d, err := w.folderAt(dir)
	if err != nil {
		return nil, "", err
	}
	w.lastDir, w.lastFolder = strings.Clone(dir), d
	return d, base, nil
}

// change makes d one of the folders that Commit writes.
func (w *Writer) change(d *folder) error {
	if d.pinned {
		return nil
	}
	raw, err := w.inode(d.ino)
	if err != nil {
		return err
	}
	if inodeFlags(raw)&(flagCasefold|flagEncrypt) != 0 {
		return unsupported("changing a case-folding or encrypted folder")
	}
	if inodeFlags(raw)&flagProjInherit != 0 && w.isize >= inProjID+4 {
		d.project = le.Uint32(raw[inProjID:])
	}
	w.dirMu.Lock()
	delete(w.dirs, d.ino)
	w.dirMu.Unlock()
	d.pinned = true
	w.changed[d.ino] = d
	return nil
}

// Add creates the file that h describes. A regular file takes exactly h.Size bytes from r, aligned stretches of
// zeros of 64 KiB become holes. The parent must exist as a real directory. An existing name is fs.ErrExist, except
// that a directory over a directory replaces its attributes (all of them, extended ones too) and keeps its entries.
// An Add that fails because of its arguments or of r leaves nothing behind.
func (w *Writer) Add(h *tar.Header, r io.Reader) error {
	if err := w.ready(); err != nil {
		return pathErr("add", h.Name, err)
	}
	return pathErr("add", h.Name, w.add(h, r, false))
}

// Replace is Add of a regular file, but if h.Name is a regular file already, the new file takes its place as with
// rename(2): other hard links keep the old content.
func (w *Writer) Replace(h *tar.Header, r io.Reader) error {
	if err := w.ready(); err != nil {
		return pathErr("replace", h.Name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return pathErr("replace", h.Name, fmt.Errorf("%w: not a regular file", fs.ErrInvalid))
	}
	return pathErr("replace", h.Name, w.add(h, r, true))
}

func (w *Writer) add(h *tar.Header, r io.Reader, replace bool) error {
	mode, ft, err := modeOf(h.Typeflag)
	if err != nil {
		return err
	}
	clean, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if clean == "" {
		if mode != modeDir {
			return fs.ErrExist
		}
		return w.setAttrs(rootInode, h)
	}
	d, base, err := w.parent(clean)
	if err != nil {
		return err
	}
	at := d.find(base)
	if at >= 0 {
		old := d.entryInode(at)
		if mode != modeDir && !replace {
			return fs.ErrExist
		}
		raw, err := w.inode(old)
		if err != nil {
			return err
		}
		switch {
		case replace && inodeType(raw) == modeReg:
			if err := w.removable(old, raw); err != nil {
				return err
			}
		case mode == modeDir && inodeType(raw) == modeDir:
			return w.setAttrs(old, h)
		default:
			return fs.ErrExist
		}
	}
	if err := w.change(d); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return w.link(d, base, h.Linkname)
	}
	if mode == modeDir && d.links >= linkMax && w.ro&roDirNlink == 0 {
		return syscall.EMLINK
	}
	ino, err := w.create(d, mode, h, r)
	if err != nil {
		return err
	}
	d.entries = true
	if at >= 0 {
		old := d.entryInode(at)
		d.setInode(at, ino)
		d.arena[at+entType] = ft
		return w.fatal(w.unlink(old))
	}
	if err := d.add(ino, ft, base); err != nil {
		return w.fatal(err)
	}
	if mode == modeDir {
		w.moreLinks(d)
		w.changed[ino] = &folder{ino: ino, parent: d.ino, links: 2, pinned: true, entries: true, attrs: true, project: d.project}
	}
	return nil
}

// moreLinks counts a new sub-folder. A count that no longer fits stays at 1 (dir_nlink).
func (w *Writer) moreLinks(d *folder) {
	if d.links == 1 {
		return
	}
	if d.links++; d.links > linkMax {
		d.links = 1
	}
}

func modeOf(typeflag byte) (mode uint16, ft uint8, err error) {
	switch typeflag {
	case tar.TypeReg, 0:
		return modeReg, ftReg, nil
	case tar.TypeDir:
		return modeDir, ftDir, nil
	case tar.TypeSymlink:
		return modeLink, ftLink, nil
	case tar.TypeChar:
		return modeChar, ftChar, nil
	case tar.TypeBlock:
		return modeBlk, ftBlk, nil
	case tar.TypeFifo:
		return modeFifo, ftFifo, nil
	case TypeSocket:
		return modeSock, ftSock, nil
	case tar.TypeLink:
		return 0, 0, nil
	}
	return 0, 0, fmt.Errorf("%w: entry type %q", fs.ErrInvalid, typeflag)
}

func fileType(mode uint16) uint8 {
	switch mode & modeType {
	case modeReg:
		return ftReg
	case modeDir:
		return ftDir
	case modeChar:
		return ftChar
	case modeBlk:
		return ftBlk
	case modeFifo:
		return ftFifo
	case modeSock:
		return ftSock
	case modeLink:
		return ftLink
	}
	return 0
}

func (w *Writer) link(d *folder, base, target string) error {
	clean, err := cleanName(target)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	ino, err := w.lookup(clean)
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", target, err)
	}
	raw, err := w.inode(ino)
	if err != nil {
		return err
	}
	if inodeType(raw) == modeDir {
		return fmt.Errorf("hard link to the directory %q: %w", target, syscall.EPERM)
	}
	links := le.Uint16(raw[inLinks:])
	if links >= linkMax {
		return fmt.Errorf("hard link to %q: %w", target, syscall.EMLINK)
	}
	le.PutUint16(raw[inLinks:], links+1)
	w.putTime(raw, inCtime, inCtimeExtra, w.now)
	if err := w.putInode(ino, raw); err != nil {
		return w.fatal(err)
	}
	d.entries = true
	return w.fatal(d.add(ino, fileType(le.Uint16(raw[inMode:])), base))
}

func (w *Writer) putInode(ino uint32, raw []byte) error {
	w.setInodeSum(ino, raw)
	return w.itab.put(ino, raw)
}

// putTime stores t, clamped to what the inode can hold.
func (w *Writer) putTime(raw []byte, off, x int, t time.Time) {
	sec, nsec := t.Unix(), uint32(t.Nanosecond())
	wide := len(raw) > oldInodeSize && oldInodeSize+int(le.Uint16(raw[inExtraIsize:])) >= x+4
	top := int64(math.MaxInt32)
	if wide {
		top += 3 << 32
	}
	if sec < math.MinInt32 {
		sec, nsec = math.MinInt32, 0
	} else if sec > top {
		sec, nsec = top, 0
	}
	le.PutUint32(raw[off:], uint32(sec))
	if wide {
		epoch := uint32((sec-int64(int32(sec)))>>32) & 3
		le.PutUint32(raw[x:], nsec<<2|epoch)
	}
}

// generation makes an inode's generation, which tells uses of one inode number apart, without a random source.
func (w *Writer) generation(ino uint32) uint32 {
	g := crc32c32(crc32c(0, w.sb[sbUUID:sbUUID+16]), ino)
	return crc32c32(crc32c32(g, uint32(w.now.Unix())), uint32(w.now.Nanosecond()))
}

// putAttrs writes mode, owner and times.
func (w *Writer) putAttrs(raw []byte, mode uint16, h *tar.Header) error {
	if h.Uid < 0 || int64(h.Uid) > math.MaxUint32 || h.Gid < 0 || int64(h.Gid) > math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d", fs.ErrInvalid, h.Uid, h.Gid)
	}
	le.PutUint16(raw[inMode:], mode|uint16(h.Mode&07777))
	le.PutUint16(raw[inUIDLo:], uint16(h.Uid))
	le.PutUint16(raw[inUIDHi:], uint16(h.Uid>>16))
	le.PutUint16(raw[inGIDLo:], uint16(h.Gid))
	le.PutUint16(raw[inGIDHi:], uint16(h.Gid>>16))
	mtime := h.ModTime
	if mtime.IsZero() {
		mtime = w.now
	}
	atime := h.AccessTime
	if atime.IsZero() {
		atime = mtime
	}
	w.putTime(raw, inMtime, inMtimeExtra, mtime)
	w.putTime(raw, inAtime, inAtimeExtra, atime)
	w.putTime(raw, inCtime, inCtimeExtra, w.now)
	return nil
}

// create makes an inode of the given type with its content. If it fails, everything that it took is given back.
func (w *Writer) create(d *folder, mode uint16, h *tar.Header, r io.Reader) (ino uint32, err error) {
	xs, err := xattrsOf(h.PAXRecords)
	if err != nil {
		return 0, err
	}
	raw := w.raw
	w.blankInode(raw)
	if err := w.putAttrs(raw, mode, h); err != nil {
		return 0, err
	}
	if mode == modeLink && (h.Linkname == "" || int64(len(h.Linkname)) >= w.bs || strings.IndexByte(h.Linkname, 0) >= 0) {
		return 0, fmt.Errorf("%w: symbolic link target of %d bytes", fs.ErrInvalid, len(h.Linkname))
	}
	inline, outside, err := w.splitXattrs(xs, w.xattrRoom(raw))
	if err != nil {
		return 0, err
	}
	w.grabbed = w.grabbed[:0]
	if ino, err = w.allocInode(d.ino, mode == modeDir); err != nil {
		return 0, w.fatal(err)
	}
	made := ino
	defer func() {
		if err == nil {
			return
		}
		for _, g := range w.grabbed {
			w.fatal(w.free(g.phys, int64(g.n)))
		}
		w.fatal(w.freeInode(made, mode == modeDir))
	}()
	w.stampInode(ino, raw)
	if w.isize >= inProjID+4 {
		le.PutUint32(raw[inProjID:], d.project)
		if d.project != 0 && mode == modeDir {
			le.PutUint32(raw[inFlags:], flagProjInherit)
		}
	}
	var blocks int64
	switch mode {
	case modeReg:
		blocks, err = w.writeFile(ino, raw, r, h.Size)
	case modeDir:
		le.PutUint16(raw[inLinks:], 2)
		blocks, err = w.writeMap(ino, raw, nil)
	case modeLink:
		blocks, err = w.writeLink(ino, raw, h.Linkname)
	case modeChar, modeBlk:
		err = putDevice(raw, h.Devmajor, h.Devminor)
	}
	if err != nil {
		return 0, err
	}
	n, err := w.putXattrs(raw, inline, outside)
	if err != nil {
		return 0, err
	}
	if err := w.setUnits(ino, raw, blocks+n); err != nil {
		return 0, err
	}
	if err := w.putInode(ino, raw); err != nil {
		return 0, w.fatal(err)
	}
	return ino, nil
}

// blankInode makes raw an inode with nothing in it.
func (w *Writer) blankInode(raw []byte) {
	clear(raw)
	if w.isize > oldInodeSize {
		extra := max(extraIsize, int(le.Uint16(w.sb[sbMinExtraIsize:])), int(le.Uint16(w.sb[sbWantExtraIsize:])))
		le.PutUint16(raw[inExtraIsize:], uint16(min(extra&^3, w.isize-oldInodeSize)))
	}
}

// stampInode writes what every new inode gets, whatever its type.
func (w *Writer) stampInode(ino uint32, raw []byte) {
	le.PutUint32(raw[inGeneration:], w.generation(ino))
	le.PutUint16(raw[inLinks:], 1)
	le.PutUint32(raw[inVersionLo:], 1)
	if w.isize > oldInodeSize {
		w.putTime(raw, inCrtime, inCrtimeX, w.now)
	}
}

func putDevice(raw []byte, major, minor int64) error {
	if major < 0 || major > 0xfff || minor < 0 || minor > 0xfffff {
		return fmt.Errorf("%w: device %d:%d", fs.ErrInvalid, major, minor)
	}
	if major < 256 && minor < 256 {
		le.PutUint32(raw[inBlock:], uint32(major<<8|minor))
	} else {
		le.PutUint32(raw[inBlock+4:], uint32(minor&0xff|major<<8|minor&^0xff<<12))
	}
	return nil
}

// xattrRoom is the number of bytes for attributes in the inode after their magic number.
func (w *Writer) xattrRoom(raw []byte) int {
	if w.isize <= oldInodeSize {
		return 0
	}
	return max(0, w.isize-oldInodeSize-int(le.Uint16(raw[inExtraIsize:]))-4)
}

// putXattrs replaces the inode's own attributes and gives it an attribute block if need be; it returns the blocks taken.
func (w *Writer) putXattrs(raw []byte, inline, outside []xattr) (int64, error) {
	if w.isize > oldInodeSize {
		at := oldInodeSize + int(le.Uint16(raw[inExtraIsize:]))
		clear(raw[at:])
		if len(inline) > 0 {
			le.PutUint32(raw[at:], xaMagic)
			packXattrs(raw[at+4:], 0, inline, false)
		}
	}
	le.PutUint32(raw[inACLLo:], 0)
	le.PutUint16(raw[inACLHi:], 0)
	w.hasXattrs = w.hasXattrs || len(inline)+len(outside) > 0
	if len(outside) == 0 {
		return 0, nil
	}
	block, _, err := w.alloc(0, 1, 1)
	if err != nil {
		return 0, w.fatal(err)
	}
	le.PutUint32(raw[inACLLo:], uint32(block))
	le.PutUint16(raw[inACLHi:], uint16(block>>32))
	return 1, w.fatal(w.dev.write(block*w.bs, w.makeXattrBlock(block, outside), true))
}

// setUnits records the inode's use of the device.
func (w *Writer) setUnits(ino uint32, raw []byte, blocks int64) error {
	units := blocks * (w.bs / 512)
	flags := inodeFlags(raw) &^ flagHugeFile
	if units > math.MaxUint32 && w.ro&roHugeFile == 0 {
		return fmt.Errorf("inode %d: %d blocks without the feature huge_file: %w", ino, blocks, syscall.EFBIG)
	}
	if units >= 1<<48 {
		flags |= flagHugeFile
		units = blocks
	}
	le.PutUint32(raw[inFlags:], flags)
	le.PutUint32(raw[inBlocksLo:], uint32(units))
	le.PutUint16(raw[inBlocksHi:], uint16(units>>32))
	return nil
}

const (
	holeSize  = 64 << 10
	chunkSize = 1 << 20
)

var zeros [holeSize]byte

// writeFile writes size bytes of r and the map to them.
func (w *Writer) writeFile(ino uint32, raw []byte, r io.Reader, size int64) (blocks int64, err error) {
	if size < 0 {
		return 0, fmt.Errorf("%w: size %d", fs.ErrInvalid, size)
	}
	if size > w.maxFile() {
		return 0, fmt.Errorf("%d bytes: %w", size, syscall.EFBIG)
	}
	if size > 0 && r == nil {
		return 0, fmt.Errorf("%d bytes promised, no reader: %w", size, io.ErrUnexpectedEOF)
	}
	if w.buf == nil {
		w.buf = make([]byte, chunkSize)
	}
	w.ext = w.ext[:0]
	for off := int64(0); off < size; {
		n := min(int64(len(w.buf)), size-off)
		if got, err := io.ReadFull(r, w.buf[:n]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, fmt.Errorf("content ends at byte %d of %d: %w", off+int64(got), size, io.ErrUnexpectedEOF)
			}
			return 0, fmt.Errorf("reading the content at byte %d: %w", off+int64(got), err)
		}
		padded := (n + w.bs - 1) / w.bs * w.bs
		clear(w.buf[n:padded])
		for at := int64(0); at < padded; {
			if isHole(w.buf[at:n]) {
				at += holeSize
				continue
			}
			end := min(at+holeSize, padded)
			for end < padded && !isHole(w.buf[end:n]) {
				end = min(end+holeSize, padded)
			}
			if err := w.writeData((off+at)/w.bs, w.buf[at:end], (size-off-at+w.bs-1)/w.bs); err != nil {
				return 0, w.fatal(err)
			}
			at = end
		}
		off += n
	}
	le.PutUint32(raw[inSizeLo:], uint32(size))
	le.PutUint32(raw[inSizeHi:], uint32(size>>32))
	w.largeFile = w.largeFile || size > math.MaxInt32
	return w.writeMap(ino, raw, w.ext)
}

// isHole tells whether b begins with a whole stretch of zeros.
func isHole(b []byte) bool { return len(b) >= holeSize && string(b[:holeSize]) == string(zeros[:]) }

// maxFile is the largest size of a file.
func (f *FS) maxFile() int64 {
	if f.incompat&incompatExtents != 0 {
		return (1<<32 - 1) * f.bs
	}
	n := int64(directBlocks)
	for level := 1; level <= 3; level++ {
		n += f.indirectSpan(level)
	}
	return min(n, 1<<32-1) * f.bs
}

// writeData places whole blocks of content at file block log, with near blocks of the file still to come, and
// notes them in w.ext.
func (w *Writer) writeData(log int64, p []byte, near int64) error {
	for len(p) > 0 {
		goal := int64(0)
		k := len(w.ext) - 1
		if k >= 0 {
			goal = w.ext[k].phys + int64(w.ext[k].n)
		}
		want := int64(len(p)) / w.bs
		phys, n, err := w.alloc(goal, want, near)
		if err != nil {
			return err
		}
		if k >= 0 && phys == goal && w.ext[k].end() == log {
			w.ext[k].n += uint32(n)
		} else {
			w.ext = append(w.ext, extent{phys: phys, log: uint32(log), n: uint32(n)})
		}
		if err := w.dev.write(phys*w.bs, p[:n*w.bs], false); err != nil {
			return err
		}
		p = p[n*w.bs:]
		log += n
		near -= n
	}
	return nil
}

func (w *Writer) writeLink(ino uint32, raw []byte, target string) (int64, error) {
	le.PutUint32(raw[inSizeLo:], uint32(len(target)))
	if len(target) < inBlockLen {
		copy(raw[inBlock:], target)
		return 0, nil
	}
	block, _, err := w.alloc(0, 1, 1)
	if err != nil {
		return 0, w.fatal(err)
	}
	b := make([]byte, w.bs)
	copy(b, target)
	if err := w.dev.write(block*w.bs, b, true); err != nil {
		return 0, w.fatal(err)
	}
	return w.writeMap(ino, raw, []extent{{phys: block, n: 1}})
}

// writeMap puts the map of ext into the inode and into blocks, and returns how many blocks the file takes.
func (w *Writer) writeMap(ino uint32, raw []byte, ext []extent) (blocks int64, err error) {
	for _, e := range ext {
		blocks += int64(e.n)
	}
	clear(raw[inBlock : inBlock+inBlockLen])
	var meta int64
	flags := inodeFlags(raw) &^ flagExtents
	if w.incompat&incompatExtents != 0 {
		flags |= flagExtents
		meta, err = w.writeExtents(ino, raw, ext)
	} else {
		meta, err = w.writePointers(raw, ext)
	}
	le.PutUint32(raw[inFlags:], flags)
	return blocks + meta, w.fatal(err)
}

func (w *Writer) writeExtents(ino uint32, raw []byte, ext []extent) (meta int64, err error) {
	type entry [extEntry]byte
	level := make([]entry, 0, len(ext))
	for _, e := range ext {
		for e.n > 0 {
			n := min(e.n, extMaxLen)
			var b entry
			le.PutUint32(b[eeBlock:], e.log)
			le.PutUint16(b[eeLen:], uint16(n))
			le.PutUint16(b[eeStartHi:], uint16(e.phys>>32))
			le.PutUint32(b[eeStartLo:], uint32(e.phys))
			level = append(level, b)
			e.log += n
			e.phys += int64(n)
			e.n -= n
		}
	}
	put := func(b []byte, entries []entry, room, depth int) {
		le.PutUint16(b[ehMagic:], extMagic)
		le.PutUint16(b[ehEntries:], uint16(len(entries)))
		le.PutUint16(b[ehMax:], uint16(room))
		le.PutUint16(b[ehDepth:], uint16(depth))
		for i := range entries {
			copy(b[extHeader+i*extEntry:], entries[i][:])
		}
	}
	const rootRoom = (inBlockLen - extHeader) / extEntry
	room := (int(w.bs) - extHeader) / extEntry
	if room*extEntry+extHeader+4 > int(w.bs) {
		room-- // the checksum needs its 4 bytes
	}
	depth := 0
	for ; len(level) > rootRoom; depth++ {
		b := make([]byte, w.bs)
		var up []entry
		for len(level) > 0 {
			n := min(len(level), room)
			block, _, err := w.alloc(0, 1, 1)
			if err != nil {
				return 0, err
			}
			clear(b)
			put(b, level[:n], room, depth)
			if tail := extHeader + room*extEntry; w.metaCsum {
				le.PutUint32(b[tail:], crc32c(w.inodeSeed(ino, le.Uint32(raw[inGeneration:])), b[:tail]))
			}
			if err := w.dev.write(block*w.bs, b, true); err != nil {
				return 0, err
			}
			var e entry
			copy(e[eiBlock:], level[0][:4])
			le.PutUint32(e[eiLeafLo:], uint32(block))
			le.PutUint16(e[eiLeafHi:], uint16(block>>32))
			up = append(up, e)
			level = level[n:]
			meta++
		}
		level = up
	}
	put(raw[inBlock:inBlock+inBlockLen], level, rootRoom, depth)
	return meta, nil
}

// writePointers writes the map of a filesystem without extents.
func (w *Writer) writePointers(raw []byte, ext []extent) (meta int64, err error) {
	i := 0
	var fill func(level int, log int64) (uint32, error)
	fill = func(level int, log int64) (uint32, error) {
		span := w.indirectSpan(level)
		for i < len(ext) && ext[i].end() <= log {
			i++
		}
		if i == len(ext) || int64(ext[i].log) >= log+span {
			return 0, nil
		}
		if level == 0 {
			return uint32(ext[i].phys + log - int64(ext[i].log)), nil
		}
		b := make([]byte, w.bs)
		below := w.indirectSpan(level - 1)
		for k := range w.bs / 4 {
			p, err := fill(level-1, log+k*below)
			if err != nil {
				return 0, err
			}
			le.PutUint32(b[4*k:], p)
		}
		block, _, err := w.alloc(0, 1, 1)
		if err != nil {
			return 0, err
		}
		meta++
		return uint32(block), w.dev.write(block*w.bs, b, true)
	}
	log := int64(0)
	for k := range directBlocks + 3 {
		level := max(0, k-directBlocks+1)
		p, err := fill(level, log)
		if err != nil {
			return 0, err
		}
		le.PutUint32(raw[inBlock+4*k:], p)
		log += w.indirectSpan(level)
	}
	return meta, nil
}

// setAttrs gives the existing directory ino the attributes of h.
func (w *Writer) setAttrs(ino uint32, h *tar.Header) error {
	xs, err := xattrsOf(h.PAXRecords)
	if err != nil {
		return err
	}
	d, err := w.folder(ino)
	if err != nil {
		return err
	}
	raw, err := w.inode(ino)
	if err != nil {
		return err
	}
	if err := w.removable(ino, raw); err != nil {
		return err
	}
	inline, outside, err := w.splitXattrs(xs, w.xattrRoom(raw))
	if err != nil {
		return err
	}
	if err := w.putAttrs(raw, modeDir, h); err != nil {
		return err
	}
	if err := w.change(d); err != nil {
		return err
	}
	d.attrs = true
	if d.inline {
		d.entries = true // its entries may be among the attributes that are replaced now
	}
	old := w.aclUnits(raw)
	if err := w.freeXattrBlock(raw); err != nil {
		return w.fatal(err)
	}
	n, err := w.putXattrs(raw, inline, outside)
	if err != nil {
		return w.fatal(err)
	}
	units := w.inodeUnits(raw) - old
	if units < 0 {
		return w.fatal(corrupt("inode %d takes %d units less than its attribute block", ino, -units))
	}
	if err := w.setUnits(ino, raw, units/(w.bs/512)+n); err != nil {
		return w.fatal(err)
	}
	return w.fatal(w.putInode(ino, raw))
}

// removable refuses inodes whose attributes live in inodes of their own, which would have to be given up too.
func (w *Writer) removable(ino uint32, raw []byte) error {
	if w.incompat&incompatEAInode == 0 {
		return nil
	}
	xs, err := w.readXattrs(ino, raw)
	if err != nil {
		return err
	}
	for _, x := range xs {
		if x.ino != 0 {
			return unsupported("changing a file with attributes in inodes of their own (ea_inode)")
		}
	}
	return nil
}

// freeXattrBlock gives up the inode's share of its attribute block.
func (w *Writer) freeXattrBlock(raw []byte) error {
	block := w.aclBlock(raw)
	if block == 0 {
		return nil
	}
	b, err := w.xattrBlock(block)
	if err != nil {
		return err
	}
	n := le.Uint32(b[xhRefcount:]) - 1
	if n == 0 {
		return w.free(block, 1)
	}
	le.PutUint32(b[xhRefcount:], n)
	if w.metaCsum {
		le.PutUint32(b[xhChecksum:], w.xattrBlockSum(block, b))
	}
	return w.dev.write(block*w.bs, b, true)
}

// Remove unlinks the file or the empty directory called name.
func (w *Writer) Remove(name string) error {
	if err := w.ready(); err != nil {
		return pathErr("remove", name, err)
	}
	return pathErr("remove", name, w.remove(name))
}

func (w *Writer) remove(name string) error {
	clean, err := cleanName(name)
	if err != nil {
		return err
	}
	if clean == "" {
		return fmt.Errorf("%w: the root", fs.ErrInvalid)
	}
	d, base, err := w.parent(clean)
	if err != nil {
		return err
	}
	at := d.find(base)
	if at < 0 {
		return fs.ErrNotExist
	}
	ino := d.entryInode(at)
	raw, err := w.inode(ino)
	if err != nil {
		return err
	}
	if err := w.removable(ino, raw); err != nil {
		return err
	}
	dir := inodeType(raw) == modeDir
	if dir {
		sub, err := w.folder(ino)
		if err != nil {
			return err
		}
		if sub.live > 0 {
			return syscall.ENOTEMPTY
		}
		if err := w.change(sub); err != nil {
			return err
		}
	}
	if err := w.change(d); err != nil {
		return err
	}
	d.remove(at)
	d.entries = true
	if dir {
		if d.links > 2 {
			d.links--
		}
		delete(w.changed, ino)
		w.dirMu.Lock()
		delete(w.dirs, ino)
		w.dirMu.Unlock()
		w.lastFolder = nil
	}
	return w.fatal(w.unlink(ino))
}

// unlink takes one link from an inode, and with the last one all that it holds. A directory has only the last.
func (w *Writer) unlink(ino uint32) error {
	raw, err := w.inode(ino)
	if err != nil {
		return err
	}
	dir := inodeType(raw) == modeDir
	if links := le.Uint16(raw[inLinks:]); links > 1 && !dir {
		le.PutUint16(raw[inLinks:], links-1)
		w.putTime(raw, inCtime, inCtimeExtra, w.now)
		return w.putInode(ino, raw)
	}
	if err := w.freeMap(ino, raw); err != nil {
		return err
	}
	if err := w.freeXattrBlock(raw); err != nil {
		return err
	}
	return w.freeInode(ino, dir)
}

// freeMap gives back an inode's content.
func (w *Writer) freeMap(ino uint32, raw []byte) error {
	switch inodeType(raw) {
	case modeReg, modeDir:
	case modeLink:
		if inodeFlags(raw)&flagExtents == 0 && w.inodeUnits(raw) == w.aclUnits(raw) {
			return nil
		}
	default:
		return nil
	}
	if inodeFlags(raw)&flagInlineData != 0 {
		return nil
	}
	return w.walkMap(ino, raw, func(e extent) error { return w.free(e.phys, int64(e.n)) },
		func(block int64) error { return w.free(block, 1) })
}

// Commit writes folders, inodes, bitmaps, group descriptors and the superblock. It can be called once. With
// CountOnly nothing is written. It returns a *[NoSpaceError] if space ran out (wrapped together with the reason, which
// matches [ErrUnsupported], where Options.Grow was not asked because the filesystem could not grow so far), and then,
// as after any other error, what is on the device is not a filesystem.
func (w *Writer) Commit(ctx context.Context) error {
	if err := w.ready(); err != nil {
		return err
	}
	w.done = true
	if err := w.commit(ctx); err != nil {
		return w.fatal(err)
	}
	return nil
}

func (w *Writer) commit(ctx context.Context) error {
	inos := make([]uint32, 0, len(w.changed))
	for ino := range w.changed {
		inos = append(inos, ino)
	}
	slices.Sort(inos)
	for _, ino := range inos {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.finishFolder(w.changed[ino]); err != nil {
			return fmt.Errorf("folder inode %d: %w", ino, err)
		}
	}
	if w.short {
		if w.limit != nil {
			return fmt.Errorf("%w; it cannot grow: %w", &NoSpaceError{w.space}, w.limit)
		}
		return &NoSpaceError{w.space}
	}
	if w.count {
		return nil
	}
	if w.groups > w.diskGroups {
		if err := w.writeResizeInode(); err != nil {
			return err
		}
	}
	if err := w.itab.flush(); err != nil {
		return err
	}
	if err := w.clearTables(ctx); err != nil {
		return err
	}
	if err := w.writeGroups(ctx); err != nil {
		return err
	}
	if err := w.writeSuper(); err != nil {
		return err
	}
	return w.dev.flush()
}

// finishFolder writes a changed folder's entries and its inode.
func (w *Writer) finishFolder(d *folder) error {
	raw, err := w.inode(d.ino)
	if err != nil {
		return err
	}
	if d.entries {
		if err := w.writeEntries(d, raw); err != nil {
			return err
		}
		if !d.attrs {
			w.putTime(raw, inMtime, inMtimeExtra, w.now)
			w.putTime(raw, inCtime, inCtimeExtra, w.now)
		}
		le.PutUint32(raw[inVersionLo:], le.Uint32(raw[inVersionLo:])+1)
	}
	le.PutUint16(raw[inLinks:], uint16(d.links))
	return w.putInode(d.ino, raw)
}

func (w *Writer) writeEntries(d *folder, raw []byte) error {
	p, err := w.planFolder(d)
	if err != nil {
		return err
	}
	if d.inline {
		if err := w.dropInline(d, raw); err != nil {
			return err
		}
	} else if err := w.freeMap(d.ino, raw); err != nil {
		return err
	}
	w.ext, w.grabbed = w.ext[:0], w.grabbed[:0]
	for log := int64(0); log < p.blocks; {
		goal := int64(0)
		k := len(w.ext) - 1
		if k >= 0 {
			goal = w.ext[k].phys + int64(w.ext[k].n)
		}
		phys, n, err := w.alloc(goal, p.blocks-log, p.blocks-log)
		if err != nil {
			return err
		}
		if k >= 0 && phys == goal {
			w.ext[k].n += uint32(n)
		} else {
			w.ext = append(w.ext, extent{phys: phys, log: uint32(log), n: uint32(n)})
		}
		log += n
	}
	i := 0
	err = w.writeFolder(d, p, le.Uint32(raw[inGeneration:]), func(log int64, b []byte) error {
		for w.ext[i].end() <= log {
			i++
		}
		return w.dev.write((w.ext[i].phys+log-int64(w.ext[i].log))*w.bs, b, false)
	})
	if err != nil {
		return err
	}
	flags := inodeFlags(raw) &^ (flagIndex | flagInlineData)
	if p.indexed {
		flags |= flagIndex
	}
	le.PutUint32(raw[inFlags:], flags)
	size := p.blocks * w.bs
	le.PutUint32(raw[inSizeLo:], uint32(size))
	le.PutUint32(raw[inSizeHi:], uint32(size>>32))
	blocks, err := w.writeMap(d.ino, raw, w.ext)
	if err != nil {
		return err
	}
	return w.setUnits(d.ino, raw, blocks+w.aclUnits(raw)/(w.bs/512))
}

// dropInline takes the entries out of an inode; the other attributes stay.
func (w *Writer) dropInline(d *folder, raw []byte) error {
	if w.isize <= oldInodeSize {
		return nil
	}
	at := oldInodeSize + int(le.Uint16(raw[inExtraIsize:]))
	if at+4 > len(raw) || le.Uint32(raw[at:]) != xaMagic {
		return nil
	}
	xs, err := w.parseXattrs(nil, raw[at+4:], 0)
	if err != nil {
		return err
	}
	xs = slices.DeleteFunc(xs, func(x xattr) bool { return x.index == xiSystem && x.name == "data" })
	clear(raw[at:])
	if len(xs) > 0 {
		le.PutUint32(raw[at:], xaMagic)
		packXattrs(raw[at+4:], 0, xs, false)
	}
	return nil
}

func (w *Writer) writeGroups(ctx context.Context) error {
	gs := make([]uint32, 0, len(w.touched))
	for g := range w.touched {
		if g < w.diskGroups {
			gs = append(gs, g)
		}
	}
	slices.Sort(gs)
	for g := w.diskGroups; g < w.groups; g++ {
		gs = append(gs, g)
	}
	full := make([]byte, w.bs)
	setBits(full, 0, 8*w.bs)
	none := make([]byte, w.bs)
	setBits(none, int64(w.ipg), 8*w.bs-int64(w.ipg))
	// With flex_bg the bitmaps of one kind are neighbours, so each kind goes out by itself.
	for _, g := range gs {
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := w.finalBlocks(g, full)
		if err != nil {
			return err
		}
		if b == nil {
			continue
		}
		if err := w.dev.write(w.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi)*w.bs, b, true); err != nil {
			return err
		}
		w.setBitmapSum(g, b[:w.bpg/8], gdBlockCsumLo, gdBlockCsumHi)
	}
	for _, g := range gs {
		b := w.finalInodes(g, none)
		if b == nil {
			continue
		}
		if err := w.dev.write(w.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi)*w.bs, b, true); err != nil {
			return err
		}
		w.setBitmapSum(g, b[:w.ipg/8], gdInodeCsumLo, gdInodeCsumHi)
	}
	for _, g := range gs {
		if d := w.desc(g); w.groupCsum {
			le.PutUint16(d[gdChecksum:], w.descSum(g, d))
		}
	}
	if w.grown {
		return w.writeDescs(ctx)
	}
	for i, k := 0, 0; i < len(gs); i = k {
		n := gs[i] / w.descPerBlock()
		for k = i; k < len(gs) && gs[k]/w.descPerBlock() == n; k++ {
		}
		if err := w.dev.write(w.descBlock(n)*w.bs, w.gdt[int64(n)*w.bs:int64(n+1)*w.bs], true); err != nil {
			return err
		}
	}
	return nil
}

// finalBlocks is group g's block bitmap as it is to be written, or nil when what the device has is right.
func (w *Writer) finalBlocks(g uint32, full []byte) ([]byte, error) {
	if s := w.touched[g]; s != nil && s.full {
		return full, nil
	} else if s != nil && s.blocks != nil {
		return s.blocks, nil
	}
	if g < w.diskGroups || w.staysUninit(g) {
		return nil, nil
	}
	d := w.desc(g)
	le.PutUint16(d[gdFlags:], le.Uint16(d[gdFlags:])&^bgBlockUninit)
	return w.look(g)
}

// finalInodes is finalBlocks for the inode bitmap.
func (w *Writer) finalInodes(g uint32, none []byte) []byte {
	if s := w.touched[g]; s != nil && s.inodes != nil {
		return s.inodes
	}
	if g < w.diskGroups || w.groupCsum {
		return nil
	}
	return none
}

func (w *Writer) writeSuper() error {
	sb := w.sb[:]
	free, inodes := w.freeTotals()
	le.PutUint32(sb[sbFreeBlocksLo:], uint32(free))
	if w.incompat&incompat64Bit != 0 {
		le.PutUint32(sb[sbFreeBlocksHi:], uint32(free>>32))
	}
	le.PutUint32(sb[sbFreeInodes:], uint32(inodes))
	if le.Uint32(sb[sbRevLevel:]) > 0 {
		if w.hasXattrs {
			le.PutUint32(sb[sbCompat:], le.Uint32(sb[sbCompat:])|compatExtAttr)
		}
		if w.largeFile {
			le.PutUint32(sb[sbROCompat:], le.Uint32(sb[sbROCompat:])|roLargeFile)
		}
	}
	if w.grown {
		if err := w.writeBackupSupers(); err != nil {
			return err
		}
	}
	w.sealSuper(sb)
	if err := w.dev.flush(); err != nil {
		return err
	}
	return w.dev.out(sb, superOffset)
}

func (f *FS) sealSuper(sb []byte) {
	if f.metaCsum {
		le.PutUint32(sb[sbChecksum:], crc32c(^uint32(0), sb[:sbChecksum]))
	}
}
