package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// createTemp opens a file in dir that has no name, so that even SIGKILL leaves nothing behind; where the
// filesystem cannot do that it has a name, which is returned.
func createTemp(dir, base string) (*os.File, string, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err == nil {
		// Naming the file later goes through /proc, which a bare chroot may lack.
		if unix.Access("/proc/self/fd/"+strconv.Itoa(fd), unix.F_OK) != nil {
			unix.Close(fd)
		} else {
			return os.NewFile(uintptr(fd), filepath.Join(dir, base)), "", nil
		}
	}
	for i := 0; ; i++ {
		name := tempName(dir, base, i)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if errors.Is(err, os.ErrExist) && i < maxTemp {
			continue
		}
		return f, name, err
	}
}

// maxTemp bounds the search for a name that nothing has: in containers process ids repeat, and a run that was
// killed may have left its file.
const maxTemp = 100

func tempName(dir, base string, i int) string {
	return filepath.Join(dir, "."+base+".nodebake-"+strconv.Itoa(os.Getpid())+"-"+strconv.Itoa(i))
}

// place gives the finished file its name. Without force a file that has come there meanwhile stays.
func (t *Target) place() error {
	if t.temp == "" {
		self := "/proc/self/fd/" + strconv.Itoa(int(t.file.Fd()))
		err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, t.path, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("naming the output %s: %w", t.path, err)
		}
		if !t.o.Force {
			return fmt.Errorf("%s: %w: it came there while the bake ran", t.path, ErrExists)
		}
		for i := 0; t.temp == ""; i++ {
			name := tempName(filepath.Dir(t.path), filepath.Base(t.path), i)
			err := unix.Linkat(unix.AT_FDCWD, self, unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
			switch {
			case err == nil:
				t.temp = name
			case !errors.Is(err, unix.EEXIST) || i == maxTemp:
				return fmt.Errorf("naming the output %s: %w", name, err)
			}
		}
	}
	if t.o.Force {
		return os.Rename(t.temp, t.path)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, t.path, unix.RENAME_NOREPLACE); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%s: %w: it came there while the bake ran", t.path, ErrExists)
		}
		return fmt.Errorf("naming the output %s: %w", t.path, err)
	}
	return nil
}

// syncDir makes the names in a folder durable, where the folder may be opened and its filesystem can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrPermission) {
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

// copyFile makes dst the same as src: by sharing its blocks where the filesystem can, else by copying the
// ranges that hold data.
func copyFile(ctx context.Context, dst, src *os.File) error {
	size, err := src.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return nil
	}
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(src.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return copyData(ctx, dst, src, off, size) // no map of holes here, as on a block device
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("reading the base's holes: %w", err)
		}
		if err := copyRange(ctx, dst, src, start, end-start); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// copyData copies the bytes from off to end but for blocks of zeros, which stay holes.
func copyData(ctx context.Context, dst, src *os.File, off, end int64) error {
	const block = 64 << 10
	buf, zeros := make([]byte, 16*block), make([]byte, block)
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.ReadAt(buf[:min(end-off, int64(len(buf)))], off)
		if n == 0 {
			return fmt.Errorf("copying the base at byte %d: %w", off, err)
		}
		for at := 0; at < n; at += block {
			b := buf[at:min(at+block, n)]
			if bytes.Equal(b, zeros[:len(b)]) {
				continue
			}
			if _, err := dst.WriteAt(b, off+int64(at)); err != nil {
				return fmt.Errorf("copying the base: %w", err)
			}
		}
		off += int64(n)
	}
	return nil
}

func copyRange(ctx context.Context, dst, src *os.File, off, n int64) error {
	const step = 64 << 20
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, out := off, off
		c, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(n, step)), 0)
		if err != nil || c == 0 {
			// Older kernels, or two filesystems that cannot: the plain way.
			w := io.NewOffsetWriter(dst, off)
			m, err := io.CopyBuffer(struct{ io.Writer }{w}, io.NewSectionReader(src, off, min(n, step)), make([]byte, 1<<20))
			if err != nil {
				return fmt.Errorf("copying the base: %w", err)
			}
			if m == 0 {
				return fmt.Errorf("copying the base: %w: it became shorter at byte %d", io.ErrUnexpectedEOF, off)
			}
			c = int(m)
		}
		off, n = off+int64(c), n-int64(c)
	}
	return nil
}
