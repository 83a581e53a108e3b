package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFragmented writes a file into thousands of single free blocks, so that its map has several levels, and
// replaces it, so that all of that is given back.
func TestFragmented(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	for _, args := range []string{"-b 1024", "-b 1024 -O ^metadata_csum,^64bit", "-b 1024 -O ^extents,^64bit"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, "24M", append(strings.Fields(args), "-N", "16384", "-m", "0")...)
			dev, size := file(t, img)
			open := func() *Writer {
				t.Helper()
				w, err := OpenWriter(dev, size, Options{Now: testNow})
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			commit := func(w *Writer) {
				t.Helper()
				if err := w.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				fsck(t, img)
			}
			w := open()
			add := func(name string, n int) {
				t.Helper()
				if err := w.Add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(n)}, bytes.NewReader(content(uint64(n), n))); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil); err != nil {
				t.Fatal(err)
			}
			const n = 14000
			for i := range n {
				add(fmt.Sprintf("d/%d", i), 1024)
			}
			// Fill what is left, less what the folder and the map of this file will take.
			add("rest", int(w.left-700)*1024)
			commit(w)
			w = open()
			for i := 0; i < n; i += 2 {
				if err := w.Remove(fmt.Sprintf("d/%d", i)); err != nil {
					t.Fatal(err)
				}
			}
			big := int(w.left-300) * 1024
			add("fragmented", big)
			commit(w)
			dir, unmount := mount(t, img, "ro")
			got, err := os.ReadFile(filepath.Join(dir, "fragmented"))
			unmount()
			if err != nil || !bytes.Equal(got, content(uint64(big), big)) {
				t.Fatalf("the kernel reads something else: %v", err)
			}
			f, err := Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			ino, err := f.lookup("fragmented")
			if err != nil {
				t.Fatal(err)
			}
			raw, err := f.inode(ino)
			if err != nil {
				t.Fatal(err)
			}
			if depth := le.Uint16(raw[inBlock+ehDepth:]); inodeFlags(raw)&flagExtents != 0 && depth < 2 {
				t.Errorf("the extent tree has depth %d only", depth)
			}
			r, err := f.Open("fragmented")
			if err != nil {
				t.Fatal(err)
			}
			if s := sum(t, r); s != sum(t, bytes.NewReader(got)) {
				t.Error("this package reads something else")
			}
			w = open()
			before := w.left
			if err := w.Replace(&tar.Header{Name: "fragmented", Typeflag: tar.TypeReg}, nil); err != nil {
				t.Fatal(err)
			}
			if gave := w.left - before; gave < int64(big/1024)+20 {
				t.Errorf("replacing a file of %d blocks and its map gave back %d", big/1024, gave)
			}
			commit(w)
		})
	}
}

// TestLargeDir makes a folder that needs three levels of hash tree, and is refused where the feature is off.
func TestLargeDir(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck")
	for _, large := range []bool{true, false} {
		img := filepath.Join(workDir(t), "img")
		feature := "large_dir"
		if !large {
			feature = "^large_dir"
		}
		mkfs(t, img, "96M", "-b", "1024", "-O", feature, "-N", "2000")
		dev, size := file(t, img)
		w, err := OpenWriter(dev, size, Options{Now: testNow})
		if err != nil {
			t.Fatal(err)
		}
		names := []string{"f"}
		if err := w.Add(&tar.Header{Name: "f", Typeflag: tar.TypeReg}, nil); err != nil {
			t.Fatal(err)
		}
		if err := w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil); err != nil {
			t.Fatal(err)
		}
		for i := range 50000 {
			name := fmt.Sprintf("d/%s%06d", strings.Repeat("n", 249), i)
			if err := w.Add(&tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: "f"}, nil); err != nil {
				t.Fatal(err)
			}
			names = append(names, name)
		}
		err = w.Commit(context.Background())
		if !large {
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "50000 entries") {
				t.Errorf("Commit: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		fsck(t, img)
		f, err := Open(dev, size)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.ReadDir("d"); err != nil || len(got) != len(names)-1 {
			t.Errorf("%d entries, %v", len(got), err)
		}
	}
}

// TestManySubfolders passes the limit of links, where the count gives up (dir_nlink), and fails without that feature.
func TestManySubfolders(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	needTools(t, "mke2fs", "e2fsck")
	for _, feature := range []string{"dir_nlink", "^dir_nlink"} {
		img := filepath.Join(workDir(t), "img")
		mkfs(t, img, "420M", "-O", feature, "-I", "128", "-N", "70000")
		dev, size := file(t, img)
		w, err := OpenWriter(dev, size, Options{Now: testNow})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil); err != nil {
			t.Fatal(err)
		}
		for i := range 65100 {
			err := w.Add(&tar.Header{Name: fmt.Sprint("d/", i), Typeflag: tar.TypeDir}, nil)
			if feature == "^dir_nlink" && i >= linkMax-2 {
				if err == nil {
					t.Fatalf("folder %d was added", i)
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		fsck(t, img)
	}
}
