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
