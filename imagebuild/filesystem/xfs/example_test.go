package xfs_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/nodebake/nodebake/imagebuild/filesystem/xfs"
)

// Put a file into the XFS filesystem of an image that nobody has mounted, and read it back.
func Example() {
	write := func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		w, err := xfs.OpenWriter(f, st.Size(), xfs.Options{Now: time.Unix(1700000000, 0)})
		if err != nil {
			return err
		}
		const text = "[storage]\n"
		h := &tar.Header{
			Name: "storage.conf", Typeflag: tar.TypeReg, Mode: 0644, Size: int64(len(text)),
			PAXRecords: map[string]string{"SCHILY.xattr.security.selinux": "system_u:object_r:etc_t:s0\x00"},
		}
		if err := w.Replace(h, strings.NewReader(text)); err != nil {
			return err
		}
		if err := w.Commit(context.Background()); err != nil {
			var full *xfs.NoSpaceError
			if errors.As(err, &full) {
				return fmt.Errorf("%d blocks are missing", full.NeedBlocks-full.FreeBlocks)
			}
			return err
		}
		r, err := w.Open("storage.conf")
		if err != nil {
			return err
		}
		_, err = io.Copy(os.Stdout, r)
		return err
	}
	if err := write("disk.img"); err != nil {
		fmt.Println("no disk here")
	}
	// Output: no disk here
}

// memory is a device that is as large as it has to be.
type memory map[int64][]byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
		if page := m[(off+int64(i))>>12]; page != nil {
			p[i] = page[(off+int64(i))&4095]
		}
	}
	return len(p), nil
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	for i, b := range p {
		at := (off + int64(i)) >> 12
		if m[at] == nil {
			m[at] = make([]byte, 4096)
		}
		m[at][(off+int64(i))&4095] = b
	}
	return len(p), nil
}

// letters reads as the letter a for ever.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

// Make a filesystem, and see how far it would grow for a file.
func ExampleFormat() {
	count := func() error {
		dev, now := memory{}, time.Unix(1700000000, 0)
		const small = 300 << 20
		err := xfs.Format(dev, small, xfs.FormatOptions{UUID: [16]byte{1, 2, 3}, Label: "images", Now: now})
		if err != nil {
			return err
		}
		w, err := xfs.OpenWriter(dev, small, xfs.Options{Now: now, CountOnly: true, Grow: func(need int64) (int64, error) {
			// Without CountOnly, the device would be made larger here.
			const gib = 1 << 30
			return (need + gib - 1) / gib * gib, nil
		}})
		if err != nil {
			return err
		}
		h := &tar.Header{Name: "layer", Typeflag: tar.TypeReg, Mode: 0644, Size: 1200 << 20}
		if err := w.Add(h, letters{}); err != nil {
			return err
		}
		if err := w.Commit(context.Background()); err != nil {
			return err
		}
		fmt.Println(w.Size()>>30, "GiB")
		return nil
	}
	if err := count(); err != nil {
		fmt.Println(err)
	}
	// Output: 2 GiB
}
