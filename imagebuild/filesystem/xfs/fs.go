package xfs

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sort"
	"strings"
	"sync"
	"syscall"
)

// FS reads an XFS filesystem. Its methods may be called at the same time from several goroutines when it
// came from Open; those of a Writer's FS may not.
type FS struct {
	dev   io.ReaderAt
	size  int64
	sb    *superblock
	noCRC bool    // fuzzing reaches past the checksums
	w     *Writer // nil unless the filesystem is being written

	mu      sync.Mutex
	folders map[uint64]*folder
	held    int // entries in folders that can be read again
}

// Folder entries kept in memory for the next lookup before the cache starts anew.
const maxHeldEntries = 1 << 18

// Open reads the superblock of the filesystem in the first size bytes of r. Errors match ErrUnsupported,
// ErrCorrupt, or are those of r. The log is not looked at: what a dirty log holds is not seen.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	sb, err := parseSuper(r, size)
	if err != nil {
		return nil, err
	}
	return &FS{dev: r, size: size, sb: sb, folders: map[uint64]*folder{}}, nil
}

// Info describes the filesystem.
func (fs *FS) Info() Info { return fs.sb.info() }

func (fs *FS) readAt(p []byte, off int64) error {
	if fs.w != nil {
		if b, ok := fs.w.memBlock[off]; ok {
			clear(p[copy(p, b):])
			return nil
		}
	}
	if off < 0 || off > fs.size-int64(len(p)) {
		return corrupt("reading %d bytes at %d, past the device's %d", len(p), off, fs.size)
	}
	n, err := fs.dev.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func wrap(err error, format string, a ...any) error {
	return fmt.Errorf("%s: %w", fmt.Sprintf(format, a...), err)
}

// components cuts a name as the contract has it: a leading slash is nothing, dots are refused.
func components(name string) ([]string, error) {
	name = strings.TrimPrefix(name, "/")
	if name == "" || name == "." {
		return nil, nil
	}
	parts := strings.Split(name, "/")
	if parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1] // a folder's name in a tar ends in a slash
	}
	for _, p := range parts {
		switch {
		case p == "" || p == "." || p == "..":
			return nil, iofs.ErrInvalid
		case len(p) > maxNameLen:
			return nil, syscall.ENAMETOOLONG
		case strings.IndexByte(p, 0) >= 0:
			return nil, iofs.ErrInvalid
		}
	}
	return parts, nil
}

func pathErr(op, name string, err error) error {
	return &iofs.PathError{Op: op, Path: name, Err: err}
}

// walk finds the folder that holds the last component, and that component; base is "" for the root.
func (fs *FS) walk(name string) (dir *folder, base string, err error) {
	parts, err := components(name)
	if err != nil {
		return nil, "", err
	}
	dir, err = fs.folder(fs.sb.rootIno)
	if err != nil || len(parts) == 0 {
		return dir, "", err
	}
	for _, p := range parts[:len(parts)-1] {
		e := dir.find(p)
		if e == nil {
			return nil, "", iofs.ErrNotExist
		}
		if e.ftype != ftypeOfMode[modeDir] {
			if e.ftype != 0 {
				return nil, "", syscall.ENOTDIR
			}
			in, err := fs.inode(e.ino)
			if err != nil {
				return nil, "", err
			}
			if in.kind() != modeDir {
				return nil, "", syscall.ENOTDIR
			}
		}
		if dir, err = fs.folder(e.ino); err != nil {
			return nil, "", err
		}
	}
	return dir, parts[len(parts)-1], nil
}

func (fs *FS) resolve(name string) (*inode, error) {
	dir, base, err := fs.walk(name)
	if err != nil {
		return nil, err
	}
	if base == "" {
		return fs.inode(dir.ino)
	}
	e := dir.find(base)
	if e == nil {
		return nil, iofs.ErrNotExist
	}
	return fs.inode(e.ino)
}

// folder returns the entries of a folder, from the cache when they are there.
func (fs *FS) folder(ino uint64) (*folder, error) {
	fs.mu.Lock()
	d := fs.folders[ino]
	fs.mu.Unlock()
	if d != nil {
		return d, nil
	}
	in, err := fs.inode(ino)
	if err != nil {
		return nil, err
	}
	if in.kind() != modeDir {
		return nil, syscall.ENOTDIR
	}
	d, err = fs.loadFolder(in)
	if err != nil {
		return nil, err
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.held += len(d.ents) + 1; fs.held > maxHeldEntries {
		for i, f := range fs.folders {
			if !f.dirty {
				delete(fs.folders, i)
			}
		}
		fs.held = len(d.ents) + 1
	}
	fs.folders[ino] = d
	return d, nil
}

// Stat describes one file; a symlink is described itself. Name in the result is the cleaned name ("." for the
// root); Mode holds the permission bits, setuid, setgid and sticky; a socket's Typeflag is 's'.
// Extended attributes are in PAXRecords, each under "SCHILY.xattr." and its name.
func (fs *FS) Stat(name string) (*tar.Header, error) {
	in, err := fs.resolve(name)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	h, err := fs.header(in)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	parts, _ := components(name)
	if h.Name = strings.Join(parts, "/"); h.Name == "" {
		h.Name = "."
	}
	return h, nil
}

func (fs *FS) header(in *inode) (*tar.Header, error) {
	h := &tar.Header{
		Mode: int64(in.mode & 07777), Uid: int(in.uid), Gid: int(in.gid),
		ModTime: in.time(in.mtime), AccessTime: in.time(in.atime), ChangeTime: in.time(in.ctime),
	}
	switch in.kind() {
	case modeReg:
		h.Typeflag, h.Size = tar.TypeReg, int64(in.size)
	case modeDir:
		h.Typeflag = tar.TypeDir
	case modeLnk:
		h.Typeflag = tar.TypeSymlink
		t, err := fs.readlink(in)
		if err != nil {
			return nil, err
		}
		h.Linkname = t
	case modeChar, modeBlk:
		h.Typeflag = tar.TypeChar
		if in.kind() == modeBlk {
			h.Typeflag = tar.TypeBlock
		}
		d := be.Uint32(in.dataFork())
		h.Devmajor, h.Devminor = int64(d>>18&devMajorMask), int64(d&(1<<18-1))
	case modeFifo:
		h.Typeflag = tar.TypeFifo
	case modeSock:
		h.Typeflag = 's'
	default:
		return nil, corrupt("inode %d: mode %#o", in.ino, in.mode)
	}
	attrs, err := fs.attrsOf(in)
	if err != nil {
		return nil, err
	}
	for _, a := range attrs {
		n, v, ok := a.external()
		if !ok {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+n] = v
	}
	return h, nil
}

const xattrPrefix = "SCHILY.xattr."

func (fs *FS) attrsOf(in *inode) ([]attr, error) {
	if fs.w != nil {
		if d := fs.folders[in.ino]; d != nil && d.attrsSet {
			return d.attrs, nil
		}
	}
	return fs.readAttrs(in)
}

// ReadDir lists the names in a folder, without "." and "..", sorted bytewise.
func (fs *FS) ReadDir(name string) ([]string, error) {
	in, err := fs.resolve(name)
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	d, err := fs.folder(in.ino)
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	out := make([]string, 0, d.live)
	for i := range d.ents {
		if d.ents[i].ino != 0 {
			out = append(out, string(d.name(&d.ents[i])))
		}
	}
	sort.Strings(out)
	return out, nil
}

// Open gives a regular file's content; holes and unwritten extents read as zeros.
func (fs *FS) Open(name string) (*io.SectionReader, error) {
	in, err := fs.resolve(name)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	switch in.kind() {
	case modeReg:
	case modeDir:
		return nil, pathErr("open", name, syscall.EISDIR)
	default:
		return nil, pathErr("open", name, errors.New("not a regular file"))
	}
	if in.flags&flagRealtime != 0 {
		return nil, pathErr("open", name, unsupported("file on the realtime device"))
	}
	if fs.w != nil && fs.w.counting && in.nextents > 0 {
		if _, ok := fs.w.memInode[in.ino]; ok {
			return nil, pathErr("open", name, errors.New("contents are not kept while space is counted"))
		}
	}
	exts, err := fs.extents(fork{in: in}, nil)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	end := (in.size + uint64(fs.sb.blockSize) - 1) >> fs.sb.blockLog
	n := sort.Search(len(exts), func(i int) bool { return exts[i].off >= end })
	c := &content{fs: fs, size: int64(in.size), exts: exts[:n]}
	return io.NewSectionReader(c, 0, c.size), nil
}

func (fs *FS) readlink(in *inode) (string, error) {
	if in.size == 0 || in.size > maxSymlink {
		return "", corrupt("inode %d: symlink of %d bytes", in.ino, in.size)
	}
	if in.format == fmtLocal {
		return string(in.dataFork()[:in.size]), nil
	}
	exts, err := fs.extents(fork{in: in}, nil)
	if err != nil {
		return "", err
	}
	var out []byte
	for _, e := range exts {
		if e.n > 4 {
			return "", corrupt("inode %d: symlink in an extent of %d blocks", in.ino, e.n)
		}
		buf := make([]byte, int(e.n)*fs.sb.blockSize)
		if err := fs.readAt(buf, fs.sb.off(e.start)); err != nil {
			return "", err
		}
		if be.Uint32(buf) != symlinkMagic || be.Uint64(buf[rmOwner:]) != in.ino || int(be.Uint32(buf[rmOffset:])) != len(out) {
			return "", corrupt("inode %d: symlink block %#x is not its own", in.ino, e.start)
		}
		if err := fs.checkMeta(buf, rmCRC, rmUUID, e.start); err != nil {
			return "", err
		}
		n := int(be.Uint32(buf[rmBytes:]))
		if n < 0 || n > len(buf)-rmHdr || len(out)+n > int(in.size) {
			return "", corrupt("inode %d: symlink block %#x of %d bytes", in.ino, e.start, n)
		}
		out = append(out, buf[rmHdr:rmHdr+n]...)
		if len(out) == int(in.size) {
			return string(out), nil
		}
	}
	return "", corrupt("inode %d: symlink of %d bytes, %d found", in.ino, in.size, len(out))
}
