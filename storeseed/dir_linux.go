package storeseed

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DirFS is an FS over a folder of the host. It needs root to set owners, devices and trusted
// attributes. It follows no symlink, so what is written through it stays below its folder. Close it
// after use. It is safe for concurrent reading.
type DirFS struct {
	mu     sync.Mutex
	root   int
	parent string // folder that the last name was in
	fd     int    // and its descriptor, -1 if there is none
	file   string // file that was read last
	open   *os.File
	now    time.Time
	buf    []byte
}

// Dir opens the folder at path.
func Dir(path string) (*DirFS, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return &DirFS{root: fd, fd: -1, now: time.Unix(0, 0)}, nil
}

// Close gives the folder's descriptors back.
func (d *DirFS) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	return unix.Close(d.root)
}

func (d *DirFS) forget() {
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
	if d.open != nil {
		d.open.Close()
		d.open = nil
	}
}

func dirName(op, name string) (string, error) {
	n, err := cleanName(name)
	if err != nil || strings.Contains("/"+name+"/", "/./") && n != "" {
		return "", &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return n, nil
}

// at returns a descriptor of the folder that name lies in, and name's last component. The
// descriptor belongs to d.
func (d *DirFS) at(op, name string) (int, string, error) {
	name, err := dirName(op, name)
	if err != nil {
		return -1, "", err
	}
	if name == "" {
		return d.root, ".", nil
	}
	parent := parentOf(name)
	base := name[len(parent):]
	base = strings.TrimPrefix(base, "/")
	if parent == "" {
		return d.root, base, nil
	}
	if d.fd >= 0 && d.parent == parent {
		return d.fd, base, nil
	}
	fd := d.root
	for _, c := range strings.Split(parent, "/") {
		next, err := unix.Openat(fd, c, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if fd != d.root {
			unix.Close(fd)
		}
		if err != nil {
			return -1, "", &fs.PathError{Op: op, Path: name, Err: err}
		}
		fd = next
	}
	if d.fd >= 0 {
		unix.Close(d.fd)
	}
	d.fd, d.parent = fd, parent
	return fd, base, nil
}

func procPath(fd int, base string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
}

// Stat implements Reader.
func (d *DirFS) Stat(name string) (*tar.Header, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd, base, err := d.at("lstat", name)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime:    time.Unix(st.Mtim.Unix()),
		AccessTime: time.Unix(st.Atim.Unix()),
		ChangeTime: time.Unix(st.Ctim.Unix()),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, base, buf)
		if err != nil {
			return nil, &fs.PathError{Op: "readlink", Path: name, Err: err}
		}
		h.Linkname = string(buf[:n])
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFSOCK:
		h.Typeflag = 's'
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if h.PAXRecords, err = listXattrs(procPath(fd, base)); err != nil {
		return nil, &fs.PathError{Op: "getxattr", Path: name, Err: err}
	}
	return h, nil
}

func listXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1024)
	n, err := unix.Llistxattr(path, buf)
	for err == unix.ERANGE {
		buf = make([]byte, 2*len(buf))
		n, err = unix.Llistxattr(path, buf)
	}
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	val := make([]byte, 1024)
	for _, k := range bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		m, err := unix.Lgetxattr(path, string(k), val)
		for err == unix.ERANGE {
			val = make([]byte, 2*len(val))
			m, err = unix.Lgetxattr(path, string(k), val)
		}
		if err == unix.ENODATA {
			continue
		}
		if err != nil {
			return nil, err
		}
		out[xattrPrefix+string(k)] = string(val[:m])
	}
	return out, nil
}

// ReadDir implements Reader.
func (d *DirFS) ReadDir(name string) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd, base, err := d.at("open", name)
	if err != nil {
		return nil, err
	}
	dirfd, err := unix.Openat(fd, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(dirfd), name)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Open implements Reader. The file is opened anew when it is read after another one.
func (d *DirFS) Open(name string) (*io.SectionReader, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := d.openFile(name)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(&dirFile{d, name}, 0, st.Size()), nil
}

func (d *DirFS) openFile(name string) (*os.File, error) {
	if d.open != nil && d.file == name {
		return d.open, nil
	}
	fd, base, err := d.at("open", name)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	n, err := unix.Openat(fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	if d.open != nil {
		d.open.Close()
	}
	d.open, d.file = os.NewFile(uintptr(n), name), name
	return d.open, nil
}

type dirFile struct {
	d    *DirFS
	name string
}

func (f *dirFile) ReadAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	file, err := f.d.openFile(f.name)
	if err != nil {
		return 0, err
	}
	return file.ReadAt(p, off)
}

// SameFile reports whether two names are one inode.
func (d *DirFS) SameFile(a, b string) (bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var st [2]unix.Stat_t
	for i, n := range []string{a, b} {
		fd, base, err := d.at("lstat", n)
		if err != nil {
			return false, err
		}
		if err := unix.Fstatat(fd, base, &st[i], unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, &fs.PathError{Op: "lstat", Path: n, Err: err}
		}
	}
	return st[0].Dev == st[1].Dev && st[0].Ino == st[1].Ino, nil
}

// Remove unlinks a non-directory or an empty directory.
func (d *DirFS) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	fd, base, err := d.at("unlink", name)
	if err != nil {
		return err
	}
	restore, err := keepTimes(fd)
	if err != nil {
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	err = unix.Unlinkat(fd, base, 0)
	if err == unix.EISDIR {
		err = unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	return restore()
}

// keepTimes returns a function that puts a folder's times back.
func keepTimes(fd int) (func() error, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, ".", &st, 0); err != nil {
		return nil, err
	}
	return func() error {
		ts := []unix.Timespec{st.Atim, st.Mtim}
		return unix.UtimesNanoAt(fd, ".", ts, unix.AT_SYMLINK_NOFOLLOW)
	}, nil
}

// Replace implements FS.
func (d *DirFS) Replace(h *tar.Header, r io.Reader) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	fd, base, err := d.at("replace", h.Name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &fs.PathError{Op: "replace", Path: h.Name, Err: fs.ErrExist}
	}
	restore, err := keepTimes(fd)
	if err != nil {
		return &fs.PathError{Op: "replace", Path: h.Name, Err: err}
	}
	if d.open != nil {
		d.open.Close()
		d.open = nil
	}
	// The name is short and cannot be one of a store's own.
	const tmp = ".storeseed-new"
	c := *h
	c.Name = strings.TrimPrefix(parentOf(strings.Trim(h.Name, "/"))+"/"+tmp, "/")
	err = d.create(fd, tmp, &c, r)
	if err == nil {
		if err = unix.Renameat(fd, tmp, fd, base); err != nil {
			unix.Unlinkat(fd, tmp, 0)
			err = &fs.PathError{Op: "rename", Path: h.Name, Err: err}
		}
	}
	return errors.Join(err, restore())
}

// Add implements FS.
func (d *DirFS) Add(h *tar.Header, r io.Reader) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.Typeflag == tar.TypeLink {
		return d.link(h)
	}
	fd, base, err := d.at("add", h.Name)
	if err != nil {
		return err
	}
	restore, err := keepTimes(fd)
	if err != nil {
		return &fs.PathError{Op: "add", Path: h.Name, Err: err}
	}
	err = d.create(fd, base, h, r)
	if base == "." {
		return err
	}
	return errors.Join(err, restore())
}

func (d *DirFS) link(h *tar.Header) error {
	// Opened first, since at keeps only one folder open.
	tfd, tbase, err := d.at("link", h.Linkname)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(tfd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "link", Path: h.Linkname, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return &fs.PathError{Op: "link", Path: h.Linkname, Err: unix.EPERM}
	}
	tfd, err = unix.Dup(tfd)
	if err != nil {
		return err
	}
	defer unix.Close(tfd)
	fd, base, err := d.at("link", h.Name)
	if err != nil {
		return err
	}
	restore, err := keepTimes(fd)
	if err != nil {
		return err
	}
	if err := unix.Linkat(tfd, tbase, fd, base, 0); err != nil {
		return &fs.PathError{Op: "link", Path: h.Name, Err: err}
	}
	return restore()
}

// create leaves nothing behind when it fails.
func (d *DirFS) create(fd int, base string, h *tar.Header, r io.Reader) (err error) {
	fail := func(op string, err error) error { return &fs.PathError{Op: op, Path: h.Name, Err: err} }
	made, over := false, false
	defer func() {
		if err != nil && made {
			flags := 0
			if h.Typeflag == tar.TypeDir {
				flags = unix.AT_REMOVEDIR
			}
			unix.Unlinkat(fd, base, flags)
		}
	}()
	switch h.Typeflag {
	case tar.TypeReg:
		n, err := unix.Openat(fd, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return fail("create", err)
		}
		made = true
		f := os.NewFile(uintptr(n), h.Name)
		if h.Size > 0 {
			if d.buf == nil {
				d.buf = make([]byte, 256<<10)
			}
			// Without the file's own ReadFrom, which allocates a buffer for each file.
			n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(r, h.Size), d.buf)
			if err == nil && n != h.Size {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				f.Close()
				return fail("write", err)
			}
		}
		if err := f.Close(); err != nil {
			return fail("close", err)
		}
	case tar.TypeDir:
		err := unix.Mkdirat(fd, base, 0o700)
		if base == "." {
			err = unix.EEXIST
		}
		if err == unix.EEXIST {
			var st unix.Stat_t
			if serr := unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
				return fail("mkdir", serr)
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				err, over = nil, true
			}
		}
		if err != nil {
			return fail("mkdir", err)
		}
		made = !over
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, fd, base); err != nil {
			return fail("symlink", err)
		}
		made = true
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		mode := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		dev := 0
		if h.Typeflag != tar.TypeFifo {
			dev = int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
		}
		if err := unix.Mknodat(fd, base, mode|0o600, dev); err != nil {
			return fail("mknod", err)
		}
		made = true
	default:
		return fail("create", fmt.Errorf("type %q: %w", h.Typeflag, errors.ErrUnsupported))
	}
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("chown", err)
	}
	path := procPath(fd, base)
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode&0o7777), 0); err != nil {
			return fail("chmod", err)
		}
	}
	if over {
		old, err := listXattrs(path)
		if err != nil {
			return fail("listxattr", err)
		}
		for k := range old {
			if _, keep := h.PAXRecords[k]; !keep {
				if err := unix.Lremovexattr(path, k[len(xattrPrefix):]); err != nil && err != unix.ENODATA {
					return fail("removexattr", err)
				}
			}
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			if err := unix.Lsetxattr(path, name, []byte(v), 0); err != nil {
				return fail("setxattr "+name, err)
			}
		}
	}
	mtime := h.ModTime
	if mtime.IsZero() {
		mtime = d.now
	}
	atime := h.AccessTime
	if atime.IsZero() {
		atime = mtime
	}
	ts := []unix.Timespec{unix.NsecToTimespec(0), unix.NsecToTimespec(0)}
	ts[0].Sec, ts[0].Nsec = atime.Unix(), int64(atime.Nanosecond())
	ts[1].Sec, ts[1].Nsec = mtime.Unix(), int64(mtime.Nanosecond())
	if err := unix.UtimesNanoAt(fd, base, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("utimensat", err)
	}
	return nil
}
