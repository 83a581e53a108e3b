package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// tempFile is a file that gets its name when it is done.
type tempFile struct {
	*os.File
	dir  string
	temp string // empty while it has no name at all
}

const (
	tempPrefix = ".nodebake-"
	// maxTemp bounds the search for a name that nothing has.
	maxTemp = 100
)

// createTemp opens a file in dir that has no name, so that even SIGKILL leaves nothing; where the filesystem cannot
// do that it has a hidden one.
func createTemp(dir string) (*tempFile, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err == nil {
		// It is named later by way of /proc, which a bare chroot may lack.
		if unix.Access("/proc/self/fd/"+strconv.Itoa(fd), unix.F_OK) == nil {
			return &tempFile{File: os.NewFile(uintptr(fd), filepath.Join(dir, "(temporary)")), dir: dir}, nil
		}
		unix.Close(fd)
	}
	for i := 0; ; i++ {
		f, err := os.OpenFile(tempName(dir, i), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, fs.ErrExist) && i < maxTemp {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("creating a temporary file: %w", err)
		}
		return &tempFile{File: f, dir: dir, temp: f.Name()}, nil
	}
}

func tempName(dir string, i int) string {
	return filepath.Join(dir, tempPrefix+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i))
}

// abort throws the file away; after place it only closes it.
func (t *tempFile) abort() {
	t.Close()
	if t.temp != "" {
		os.Remove(t.temp)
		t.temp = ""
	}
}

// place makes the file durable and gives it its name, which lies in the same filesystem. Without force an existing
// file stays, and the error matches fs.ErrExist.
func (t *tempFile) place(path string, force bool) error {
	if err := t.Sync(); err != nil {
		return fmt.Errorf("flushing %s to its device: %w", path, err)
	}
	if t.temp == "" {
		self := "/proc/self/fd/" + strconv.Itoa(int(t.Fd()))
		err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
		if err == nil || !errors.Is(err, unix.EEXIST) || !force {
			return nameError(path, err)
		}
		for i := 0; t.temp == ""; i++ {
			name := tempName(t.dir, i)
			err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
			if err == nil {
				t.temp = name
			} else if !errors.Is(err, unix.EEXIST) || i == maxTemp {
				return nameError(name, err)
			}
		}
	}
	var err error
	if force {
		err = unix.Rename(t.temp, path)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err == nil {
		t.temp = ""
	}
	return nameError(path, err)
}

func nameError(path string, err error) error {
	if err != nil {
		return fmt.Errorf("naming %s: %w", path, err)
	}
	return nil
}

// anonymous is a file in dir without a name.
func anonymous(dir string) (*os.File, error) {
	t, err := createTemp(dir)
	if err != nil {
		return nil, err
	}
	if t.temp != "" {
		if err := os.Remove(t.temp); err != nil {
			t.Close()
			return nil, err
		}
	}
	return t.File, nil
}

// syncDir makes the names in a folder durable, where the folder may be opened and its filesystem can.
func syncDir(dir string) error {
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

// lockDir keeps other writers of a layout out until the file is closed, where its filesystem can.
func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return d, nil
		}
	}
}
