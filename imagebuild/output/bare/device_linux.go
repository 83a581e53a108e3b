package bare

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernel is this machine.
var kernel = &system{open: openToCheck, number: deviceNumber}

// deviceNumber is a block device's number. The error is a sentence.
func deviceNumber(path string) (uint64, error) {
	var st unix.Stat_t
	for {
		err := unix.Stat(path, &st)
		if err == nil {
			break
		}
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT):
			return 0, fmt.Errorf("%s: %w: there is nothing of that name", path, ErrNotDevice)
		}
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return st.Rdev, nil
	case unix.S_IFCHR:
		return 0, fmt.Errorf("%s: %w but a character device", path, ErrNotDevice)
	case unix.S_IFDIR:
		return 0, fmt.Errorf("%s: %w but a folder", path, ErrNotDevice)
	case unix.S_IFREG:
		return 0, fmt.Errorf("%s: %w but a file", path, ErrNotDevice)
	}
	return 0, fmt.Errorf("%s: %w", path, ErrNotDevice)
}

type deviceFile struct {
	*os.File
	direct bool // past the page cache
	sector int64
	bounce []byte
	// noPunch and noZero say that the device cannot do that.
	noPunch, noZero bool
}

func openToCheck(path string) (node, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_EXCL|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &deviceFile{File: f}, nil
}

// openToWrite opens a device for writing, and for itself alone.
func openToWrite(path string) (*deviceFile, error) {
	flags := os.O_RDWR | unix.O_EXCL
	f, err := os.OpenFile(path, flags|unix.O_DIRECT, 0)
	d := &deviceFile{File: f, direct: true}
	if errors.Is(err, unix.EINVAL) {
		d.direct = false
		d.File, err = os.OpenFile(path, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	if d.sector, err = d.sectorSize(); err == nil && (d.sector < 512 || d.sector > 1<<20 || d.sector&(d.sector-1) != 0) {
		err = fmt.Errorf("sectors of %d bytes", d.sector)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.bounce = aligned(int(d.sector))
	return d, nil
}

func (d *deviceFile) size() (int64, error) {
	var n uint64
	err := d.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&n))
	return int64(n), err
}

func (d *deviceFile) sectorSize() (int64, error) {
	n, err := unix.IoctlGetInt(int(d.Fd()), unix.BLKSSZGET)
	return int64(n), err
}

func (d *deviceFile) readOnly() (bool, error) {
	n, err := unix.IoctlGetInt(int(d.Fd()), unix.BLKROGET)
	return n != 0, err
}

func (d *deviceFile) ioctl(request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), uintptr(request), uintptr(arg))
		runtime.KeepAlive(d)
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return errno
	}
}

// aligned is memory that direct reads and writes take.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(b))) & (page - 1))
	return b[skip : skip+n : skip+n]
}

// ReadAt reads at a multiple of the sector size into aligned memory; p may end inside a sector.
func (d *deviceFile) ReadAt(p []byte, off int64) (int, error) {
	whole := len(p) &^ int(d.sector-1)
	n, err := d.File.ReadAt(p[:whole], off)
	if err != nil || whole == len(p) {
		return n, err
	}
	b := aligned(int(d.sector))
	if _, err := d.File.ReadAt(b, off+int64(whole)); err != nil {
		return n, err
	}
	return n + copy(p[whole:], b), nil
}

// WriteAt writes aligned memory at a multiple of the sector size. Where p ends inside a sector the rest of it becomes
// zero. It is used by one goroutine at a time.
func (d *deviceFile) WriteAt(p []byte, off int64) (int, error) {
	whole := len(p) &^ int(d.sector-1)
	if whole > 0 {
		if n, err := d.File.WriteAt(p[:whole], off); err != nil {
			return n, err
		}
	}
	if whole < len(p) {
		clear(d.bounce)
		copy(d.bounce, p[whole:])
		if _, err := d.File.WriteAt(d.bounce, off+int64(whole)); err != nil {
			return whole, err
		}
	}
	return len(p), nil
}

// Clear makes a range of whole sectors read as zeros: by taking its blocks away where the device promises zeros
// thereafter (a discard alone does not), by its own zeroing, or by writing zeros.
func (d *deviceFile) Clear(off, n int64) error {
	if !d.noPunch {
		err := retry(func() error {
			return unix.Fallocate(int(d.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		})
		if err == nil {
			return nil
		}
		if !cannot(err) {
			return fmt.Errorf("clearing %d bytes at %d: %w", n, off, err)
		}
		d.noPunch = true
	}
	if !d.noZero {
		r := [2]uint64{uint64(off), uint64(n)}
		err := d.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&r))
		if err == nil {
			return nil
		}
		if !cannot(err) {
			return fmt.Errorf("clearing %d bytes at %d: %w", n, off, err)
		}
		d.noZero = true
	}
	zeros := aligned(1 << 20)
	for n > 0 {
		w, err := d.File.WriteAt(zeros[:min(n, int64(len(zeros)))], off)
		if err != nil {
			return fmt.Errorf("clearing %d bytes at %d: %w", n, off, err)
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func cannot(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV)
}

// Sync makes what was written durable, and what is read from then on come from the device.
func (d *deviceFile) Sync() error {
	if err := d.File.Sync(); err != nil {
		return err
	}
	if !d.direct {
		// Each does for the other where it is not permitted.
		unix.IoctlSetInt(int(d.Fd()), unix.BLKFLSBUF, 0)
		unix.Fadvise(int(d.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return nil
}

// lock takes the lock by which udev and partitioning programs keep out of each other's way. It is not waited for.
func (d *deviceFile) lock() error {
	return retry(func() error { return unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
}

// reread makes the kernel read the partition table anew. A device that has no partitions says EINVAL.
func (d *deviceFile) reread() error {
	err := d.ioctl(unix.BLKRRPART, nil)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}
