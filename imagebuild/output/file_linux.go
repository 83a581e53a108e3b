package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

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
