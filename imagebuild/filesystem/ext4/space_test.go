package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestFill takes exactly the last block, and then one block more than there is.
func TestFill(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck")
	for _, args := range []string{"", "-b 1024 -m 0", "-b 1024 -O ^extents,^64bit -m 3", "-O ^metadata_csum,^has_journal -m 1"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, "24M", append(strings.Fields(args), "-N", "2048")...)
			dev, size := file(t, img)
			// 300 small files, and a large one of the given number of blocks.
			fill := func(large int64, count bool) (Space, error) {
				t.Helper()
				w, err := OpenWriter(dev, size, Options{Now: testNow, CountOnly: count})
				if err != nil {
					t.Fatal(err)
				}
				for n := range int64(301) {
					blocks := 1 + n%12
					if n == 300 {
						blocks = large
					}
					data := content(uint64(n), int(blocks*w.bs))
					if err := w.Add(&tar.Header{Name: fmt.Sprint("f", n), Typeflag: tar.TypeReg, Size: int64(len(data))}, bytes.NewReader(data)); err != nil {
						t.Fatal(err)
					}
				}
				err = w.Commit(context.Background())
				return w.Space(), err
			}
			large := int64(1)
			var s Space
			for range 20 {
				var err error
				s, err = fill(large, true)
				if over := s.NeedBlocks - s.FreeBlocks; (over > 0) != errors.Is(err, ErrNoSpace) {
					t.Fatalf("%+v: %v", s, err)
				} else if over == 0 {
					break
				} else {
					large -= over
				}
			}
			for _, count := range []bool{true, false} {
				if count {
					got, err := fill(large+1, true)
					var e *NoSpaceError
					if !errors.As(err, &e) || e.Space != got || got.NeedBlocks != s.FreeBlocks+1 {
						t.Fatalf("%+v: %v", got, err)
					}
				}
				if got, err := fill(large, count); err != nil || got.NeedBlocks != got.FreeBlocks {
					t.Fatalf("%+v: %v", got, err)
				}
			}
			fsck(t, img)
			r, err := Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			if i := r.Info(); i.FreeBlocks != i.ReservedBlocks {
				t.Fatalf("%+v", i)
			}
		})
	}
}

// TestNoSpaceIsExact compares the need that a too small filesystem reports with what a large one takes.
func TestNoSpaceIsExact(t *testing.T) {
	needTools(t, "mke2fs")
	add := func(w *Writer) {
		t.Helper()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		reg := func(name string, n int, pax map[string]string) {
			must(w.Add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(n), PAXRecords: pax}, bytes.NewReader(content(1, n))))
		}
		must(w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil))
		for i := range 3000 {
			reg(fmt.Sprintf("d/some-file-%d", i), 5000, map[string]string{xattrPrefix + "user.x": strings.Repeat("x", i%3*200)})
		}
		must(w.Add(&tar.Header{Name: "d/link", Typeflag: tar.TypeLink, Linkname: "d/some-file-2999"}, nil))
		must(w.Remove("d/some-file-2998"))
		must(w.Remove("d/some-file-0"))
		reg("d/big", 3<<20, nil)
		must(w.Replace(&tar.Header{Name: "d/big", Typeflag: tar.TypeReg, Size: 4}, strings.NewReader("abcd")))
		must(w.Add(&tar.Header{Name: "d/late", Typeflag: tar.TypeDir}, nil))
		must(w.Add(&tar.Header{Name: "d/late/er", Typeflag: tar.TypeDir}, nil))
		must(w.Remove("d/late/er"))
		must(w.Add(&tar.Header{Name: "d/sym", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("y", 100)}, nil))
		if h, err := w.Stat("d/some-file-2997"); err != nil || h.Size != 5000 {
			t.Fatalf("%+v, %v", h, err)
		}
	}
	open := func(size string, count bool, args ...string) *Writer {
		t.Helper()
		img := filepath.Join(workDir(t), "img")
		mkfs(t, img, size, args...)
		dev, n := file(t, img)
		w, err := OpenWriter(dev, n, Options{Now: testNow, CountOnly: count})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	large := open("200M", false, "-N", "8192")
	add(large)
	if err := large.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		size, inodes string
		count        bool
	}{{"16M", "8192", false}, {"16M", "8192", true}, {"200M", "512", false}, {"200M", "512", true}, {"16M", "512", false}} {
		w := open(c.size, c.count, "-N", c.inodes)
		add(w)
		err := w.Commit(context.Background())
		var e *NoSpaceError
		if !errors.As(err, &e) {
			t.Fatalf("%+v: %v", c, err)
		}
		if l := large.Space(); e.Space.NeedBlocks != l.NeedBlocks || e.Space.NeedInodes != l.NeedInodes {
			t.Errorf("%+v: needs %+v, a large one took %+v", c, e.Space, l)
		}
	}
}
