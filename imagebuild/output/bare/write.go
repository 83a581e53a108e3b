package bare

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/qcow"
)

// ErrMismatch is matched where a device gives back other bytes than were written.
var ErrMismatch = errors.New("device does not hold what was written to it")

const (
	// kept is how much of the disk's beginning and end is written last, and how much of the device's own end is cleared.
	kept = 1 << 20
	// deviceStep is the least size of a write; maxDeviceParts bounds the sums that are kept until they are read back.
	deviceStep     = 1 << 20
	maxDeviceParts = 1 << 16
	// clearStep bounds one call, so that it can be cancelled in between.
	clearStep = 256 << 20
)

// DeviceOptions say how a device is written.
type DeviceOptions struct {
	// Force permits what is on the device to be overwritten.
	Force bool
	// Workers is how many goroutines read the disk and the device; 0: as many as there are cores, and 16 at most.
	Workers int
	// Progress, if not nil, is called from one goroutine at a time with the bytes done of total: all of the disk counts
	// twice, once written and once read back.
	Progress func(done, total int64)
}

// DeviceReport tells of a device that was written.
type DeviceReport struct {
	Device
	Written int64 // bytes of data that were written
	Cleared int64 // bytes of the disk that were made zeros in another way
}

// PartialError is a failure after which a device holds a part of the disk.
type PartialError struct {
	Path string
	Err  error
}

func (e *PartialError) Error() string { return e.State() + ": " + e.Err.Error() }

// Unwrap gives what went wrong.
func (e *PartialError) Unwrap() error { return e.Err }

// State says what there is now.
func (e *PartialError) State() string {
	return e.Path + " is not whole now, and does not boot; write to it again"
}

// WriteDevice makes the block device at path hold the contents of src, and reads all of it back.
//
// Where the disk has zeros the device has them, whatever was there: its blocks are taken away where it promises zeros
// after that, or else zeros are written. What lies past the disk's end stays, but for the last MiB of the device, where
// an old backup partition table or a RAID's or filesystem's mark would be found. The kernel then reads the partition table
// anew; Device.Notes says if it could not.
//
// The first and the last MiB of the disk are zero until all the rest is written and was read back. If it fails or is
// cancelled before its end the device holds a part of the disk and does not boot, and the error is a *PartialError.
//
// Errors: those of CheckDevice, before anything is written; ErrMismatch, which names the first byte that differs; ctx's;
// and what src and the device return.
func WriteDevice(ctx context.Context, path string, src qcow.Source, o DeviceOptions) (r DeviceReport, err error) {
	if r.Device, err = CheckDevice(path, src.Size(), src, o.Force); err != nil {
		return r, err
	}
	f, err := openToWrite(path)
	switch {
	case errors.Is(err, unix.EBUSY):
		return r, kernel.busy(r.Device)
	case errors.Is(err, unix.EROFS):
		return r, fmt.Errorf("%s: %w", path, ErrReadOnly)
	case err != nil:
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := same(f, r.Device); err != nil {
		return r, err
	}
	if err := lock(ctx, f, path); err != nil {
		return r, err
	}
	w := newDeviceWrite(f, src, r.Device, o)
	if err := w.run(ctx); err != nil {
		return r, &PartialError{path, err}
	}
	r.Written, r.Cleared = w.written, w.cleared
	if r.Whole == "" {
		if err := f.reread(); err != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("the kernel did not read the partition table of %s anew (%v); partprobe does, or the next boot", path, err))
		}
	}
	return r, nil
}

// same refuses a device that changed since it was checked: a path may name another by now.
func same(f *deviceFile, d Device) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	size, err := f.size()
	if err != nil {
		return err
	}
	if st.Rdev != d.number || size != d.Size || f.sector != d.SectorSize {
		return fmt.Errorf("%s: %w: it became another device while it was looked at", d.Path, ErrInUse)
	}
	return nil
}

func lock(ctx context.Context, f *deviceFile, path string) error {
	for i := 0; ; i++ {
		err := f.lock()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		// udev looks at a device for a moment whenever it was closed.
		if i == 50 {
			return fmt.Errorf("%s: %w: another program holds its lock", path, ErrInUse)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// target is a device as deviceWrite needs it. Offsets are multiples of the sector size; a write that ends inside a sector
// makes the rest of it zero.
type target interface {
	io.ReaderAt
	io.WriterAt
	Clear(off, n int64) error
	Sync() error
}

// deviceWrite is one disk on its way to a device.
type deviceWrite struct {
	dev      target
	src      qcow.Source
	o        DeviceOptions
	size     int64 // of the disk
	devSize  int64
	sector   int64
	step     int64
	tail     int64 // where the last part begins that is written last
	sums     [][sha256.Size]byte
	data     []bool // which parts are more than zeros
	held     []heldPart
	written  int64
	cleared  int64
	done     int64
	zeroFrom int64 // zeros up to what was done last that are not yet cleared, or -1
}

type heldPart struct {
	off  int64
	data []byte
}

func newDeviceWrite(dev target, src qcow.Source, d Device, o DeviceOptions) *deviceWrite {
	w := &deviceWrite{dev: dev, src: src, o: o, size: src.Size(), devSize: d.Size, sector: d.SectorSize, step: deviceStep, zeroFrom: -1}
	for w.size/w.step > maxDeviceParts || w.step < w.sector {
		w.step *= 2
	}
	parts := (w.size + w.step - 1) / w.step
	w.sums, w.data = make([][sha256.Size]byte, parts), make([]bool, parts)
	w.tail = max(0, w.size-kept) / w.step * w.step
	return w
}

// last says whether the part at off is one of those that are written last.
func (w *deviceWrite) last(off int64) bool { return off == 0 || off >= w.tail }

func (w *deviceWrite) up(n int64) int64 { return (n + w.sector - 1) / w.sector * w.sector }

func (w *deviceWrite) run(ctx context.Context) error {
	if w.size == 0 {
		return nil
	}
	if err := w.clearEnds(); err != nil {
		return err
	}
	if err := w.fill(ctx); err != nil {
		return err
	}
	if err := w.dev.Sync(); err != nil {
		return fmt.Errorf("flushing the device: %w", err)
	}
	if err := w.verify(ctx); err != nil {
		return err
	}
	err := w.finish(ctx)
	if err != nil {
		// What cannot be trusted must not boot either.
		return errors.Join(err, w.dev.Clear(0, min(w.step, w.up(w.size))), w.dev.Sync())
	}
	return nil
}

// clearEnds takes the old partition tables away, and all the room where the new ones will be.
func (w *deviceWrite) clearEnds() error {
	ends := [][2]int64{{0, min(w.step, w.up(w.size))}, {w.tail, w.up(w.size)}}
	if from := max(w.up(w.size), (w.devSize-kept)/w.sector*w.sector); from < w.devSize {
		ends = append(ends, [2]int64{from, w.devSize})
	}
	for _, e := range ends {
		if err := w.dev.Clear(e[0], e[1]-e[0]); err != nil {
			return err
		}
	}
	if err := w.dev.Sync(); err != nil {
		return fmt.Errorf("flushing the device: %w", err)
	}
	return nil
}

func (w *deviceWrite) progress(n int64) {
	w.done += n
	if w.o.Progress != nil {
		w.o.Progress(w.done, 2*w.size)
	}
}

// fill writes all parts but those that come last, and keeps these.
func (w *deviceWrite) fill(ctx context.Context) error {
	p := pass{
		src: w.src, step: w.step, workers: w.o.Workers, alloc: aligned,
		worker: func() (func(*part) error, error) {
			return func(q *part) error {
				i := q.off / w.step
				w.sums[i], w.data[i] = sha256.Sum256(q.data), true
				return nil
			}, nil
		},
		commit: func(q *part) error {
			defer w.progress(q.n)
			if w.last(q.off) {
				// The room has been cleared.
				if err := w.clearTo(ctx, q.off); err != nil {
					return err
				}
				if q.zero {
					w.cleared += q.n
					return nil
				}
				b := aligned(len(q.data))
				copy(b, q.data)
				w.held = append(w.held, heldPart{q.off, b})
				return nil
			}
			if q.zero {
				if w.zeroFrom < 0 {
					w.zeroFrom = q.off
				}
				w.cleared += q.n
				if q.off+q.n-w.zeroFrom >= clearStep {
					return w.clearTo(ctx, q.off+q.n)
				}
				return nil
			}
			if err := w.clearTo(ctx, q.off); err != nil {
				return err
			}
			w.written += q.n
			if _, err := w.dev.WriteAt(q.data, q.off); err != nil {
				return fmt.Errorf("writing %d bytes at %d: %w", q.n, q.off, err)
			}
			return nil
		},
	}
	return p.run(ctx)
}

// clearTo clears the zeros that end at off and were not yet cleared.
func (w *deviceWrite) clearTo(ctx context.Context, off int64) error {
	from := w.zeroFrom
	w.zeroFrom = -1
	if from < 0 {
		return nil
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return w.dev.Clear(from, off-from)
}

// deviceSource is a device's first size bytes.
type deviceSource struct {
	io.ReaderAt
	size int64
}

func (s deviceSource) Size() int64 { return s.size }

// verify reads the device back; what comes last is still zero.
func (w *deviceWrite) verify(ctx context.Context) error {
	p := pass{
		src: deviceSource{w.dev, w.size}, step: w.step, workers: w.o.Workers, alloc: aligned,
		worker: func() (func(*part) error, error) {
			return func(q *part) error {
				i := q.off / w.step
				if w.last(q.off) || !w.data[i] || sha256.Sum256(q.data) != w.sums[i] {
					return w.mismatch(q.off, q.data, w.data[i] && !w.last(q.off))
				}
				return nil
			}, nil
		},
		commit: func(q *part) error {
			w.progress(q.n)
			if q.zero && w.data[q.off/w.step] && !w.last(q.off) {
				clear(q.data)
				return w.mismatch(q.off, q.data, true)
			}
			return nil
		},
	}
	return p.run(ctx)
}

// mismatch finds the first byte that a part of the device has wrong, given what was read.
func (w *deviceWrite) mismatch(off int64, got []byte, data bool) error {
	want := make([]byte, len(got))
	if data {
		if err := readFull(w.src, want, off); err != nil {
			return fmt.Errorf("%w: between byte %d and %d; reading the disk once more to tell where: %w", ErrMismatch, off, off+int64(len(got)), err)
		}
		if sha256.Sum256(want) != w.sums[off/w.step] {
			return fmt.Errorf("the disk itself changed while it was written, between byte %d and %d", off, off+int64(len(got)))
		}
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%w: byte %d is %#02x, and should be %#02x; the device may be broken, or have less room than it says", ErrMismatch, off+int64(i), got[i], want[i])
		}
	}
	return fmt.Errorf("%w: between byte %d and %d, but not when read again", ErrMismatch, off, off+int64(len(got)))
}

// finish writes what comes last: the end, and then the beginning, by which the disk is found.
func (w *deviceWrite) finish(ctx context.Context) error {
	for i := len(w.held) - 1; i >= 0; i-- {
		h := w.held[i]
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if h.off == 0 {
			if err := w.dev.Sync(); err != nil {
				return fmt.Errorf("flushing the device: %w", err)
			}
		}
		if _, err := w.dev.WriteAt(h.data, h.off); err != nil {
			return fmt.Errorf("writing %d bytes at %d: %w", len(h.data), h.off, err)
		}
		w.written += int64(len(h.data))
	}
	if err := w.dev.Sync(); err != nil {
		return fmt.Errorf("flushing the device: %w", err)
	}
	for _, h := range w.held {
		got := aligned(len(h.data))
		if err := readFull(w.dev, got, h.off); err != nil {
			return fmt.Errorf("reading the device back at byte %d: %w", h.off, err)
		}
		if sha256.Sum256(got) != w.sums[h.off/w.step] {
			return w.mismatch(h.off, got, true)
		}
	}
	return nil
}
