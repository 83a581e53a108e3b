// Package newfile makes files that have no name until they are whole, so that even SIGKILL leaves nothing behind.
package newfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Prefix begins the names of files that must have one before they are whole.
const Prefix = ".nodebake-"

// maxTemp bounds the search for a name that nothing has: in containers process ids repeat, and a run that was killed
// may have left its file.
const maxTemp = 100

// File is a file that gets its name when it is done. One goroutine at a time, but for ReadAt and WriteAt.
type File struct {
	*os.File
	dir  string
	temp string // empty while it has no name at all
}

// Create opens a file in dir that has no name (O_TMPFILE, open(2)); where the filesystem cannot do that, or there is
// no /proc to name it by later, it has a hidden one.
func Create(dir string) (*File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err == nil {
		if unix.Access("/proc/self/fd/"+strconv.Itoa(fd), unix.F_OK) == nil {
			return &File{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(temporary)")), dir: dir}, nil
		}
		unix.Close(fd)
	}
	return createNamed(dir)
}

func createNamed(dir string) (*File, error) {
	for i := 0; ; i++ {
		f, err := os.OpenFile(tempName(dir, i), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) && i < maxTemp {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("creating a temporary file: %w", err)
		}
		return &File{File: f, dir: dir, temp: f.Name()}, nil
	}
}

func tempName(dir string, i int) string {
	return filepath.Join(dir, Prefix+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i))
}

// Anonymous is a file in dir that never has a name.
func Anonymous(dir string) (*os.File, error) {
	f, err := Create(dir)
	if err != nil {
		return nil, err
	}
	if f.temp != "" {
		if err := os.Remove(f.temp); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f.File, nil
}

// Abort closes the file and throws it away; after Place it only closes it.
func (f *File) Abort() {
	f.Close()
	if f.temp != "" {
		os.Remove(f.temp)
		f.temp = ""
	}
}

// Place makes the file durable and gives it its name, which lies in the same filesystem; SyncDir makes that durable.
// Without force a file that is there stays, and the error matches fs.ErrExist.
func (f *File) Place(path string, force bool) error {
	if err := f.Sync(); err != nil {
		return fmt.Errorf("flushing %s to its device: %w", path, err)
	}
	if f.temp == "" {
		self := "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))
		err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
		if err == nil || !errors.Is(err, unix.EEXIST) || !force {
			return nameError(path, err)
		}
		for i := 0; f.temp == ""; i++ {
			name := tempName(f.dir, i)
			err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
			if err == nil {
				f.temp = name
			} else if !errors.Is(err, unix.EEXIST) || i == maxTemp {
				return nameError(name, err)
			}
		}
	}
	var err error
	if force {
		err = unix.Rename(f.temp, path)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, f.temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err == nil {
		f.temp = ""
	}
	return nameError(path, err)
}

func nameError(path string, err error) error {
	if err != nil {
		return fmt.Errorf("naming %s: %w", path, err)
	}
	return nil
}

// SyncDir makes the names in a folder durable, where the folder may be opened and its filesystem can.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
