package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestInfo compares with what mke2fs was told.
func TestInfo(t *testing.T) {
	needTools(t, "mke2fs")
	img := filepath.Join(workDir(t), "img")
	mkfs(t, img, "64M", "-b", "2048", "-I", "512", "-m", "10", "-N", "4096", "-L", "a-label", "-U", "01020304-0506-0708-090a-0b0c0d0e0f10", "-M", "/mnt", "-O", "^has_journal")
	dev, size := file(t, img)
	f, err := Open(dev, size)
	if err != nil {
		t.Fatal(err)
	}
	i := f.Info()
	if i.Label != "a-label" || i.UUID != [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16} || i.LastMounted != "/mnt" || i.BlockSize != 2048 ||
		i.Blocks != 32768 || i.ReservedBlocks != 3276 || i.Inodes != 4096 || i.FreeInodes != 4085 || i.InodeSize != 512 || !i.Clean || i.Groups != 2 {
		t.Errorf("%+v", i)
	}
	for _, name := range []string{"dir_index", "extent", "metadata_csum", "64bit", "huge_file"} {
		if !slices.Contains(i.Features, name) {
			t.Errorf("no %s in %v", name, i.Features)
		}
	}
	if slices.Contains(i.Features, "has_journal") {
		t.Errorf("has_journal in %v", i.Features)
	}
}

// zeroReader gives zeros, without the cost of a file of them.
type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestSparse adds a file of 3 GiB and a few bytes to a small filesystem: it costs the few bytes.
func TestSparse(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck")
	for _, args := range []string{"-O ^large_file", "-O ^extents,^64bit", "-O ^extents,^64bit -b 1024"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, "16M", strings.Fields(args)...)
			dev, size := file(t, img)
			w, err := OpenWriter(dev, size, Options{Now: testNow})
			if err != nil {
				t.Fatal(err)
			}
			const n = 3 << 30
			tail := content(3, 1000)
			r := io.MultiReader(io.LimitReader(zeroReader{}, n-1000), bytes.NewReader(tail))
			if err := w.Add(&tar.Header{Name: "sparse", Typeflag: tar.TypeReg, Size: n}, r); err != nil {
				t.Fatal(err)
			}
			if need := w.Space().NeedBlocks * w.bs; need > 70000 {
				t.Errorf("it takes %d bytes", need)
			}
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			fsck(t, img)
			f, err := Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			s, err := f.Open("sparse")
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 2000)
			if k, err := s.ReadAt(got, n-2000); k != 2000 || !bytes.Equal(got, append(make([]byte, 1000), tail...)) {
				t.Errorf("read %d bytes: %v", k, err)
			}
			if !slices.Contains(f.Info().Features, "large_file") {
				t.Error("large_file is not set")
			}
		})
	}
}

// TestGrow lets resize2fs grow a filesystem that was written to, as a first boot does.
func TestGrow(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "resize2fs")
	for _, args := range []string{"", "-O ^metadata_csum,^64bit", "-O meta_bg,^resize_inode -b 1024"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, "64M", append(strings.Fields(args), "-N", "4096")...)
			dev, size := file(t, img)
			w, err := OpenWriter(dev, size, Options{Now: testNow})
			if err != nil {
				t.Fatal(err)
			}
			a := &adder{t: t, w: w, want: ourTree(t, w), now: testNow}
			for i := range 300 {
				a.add(&tar.Header{Name: fmt.Sprint("f", i), Typeflag: tar.TypeReg}, content(uint64(i), i*200))
			}
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			run(t, "truncate", "-s", "400M", img)
			run(t, "resize2fs", "-f", img)
			fsck(t, img)
			f, err := Open(dev, 400<<20)
			if err != nil {
				t.Fatal(err)
			}
			if f.Info().Blocks*f.Info().BlockSize != 400<<20 {
				t.Errorf("%+v", f.Info())
			}
			compare(t, "after growing", ourTree(t, f), a.want)
			w, err = OpenWriter(dev, 400<<20, Options{Now: testNow})
			if err != nil {
				t.Fatal(err)
			}
			a.w = w
			a.add(&tar.Header{Name: "large", Typeflag: tar.TypeReg}, content(5, 200<<20))
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			fsck(t, img)
		})
	}
}

// TestConcurrentReads is for the race detector.
func TestConcurrentReads(t *testing.T) {
	m := populated(t, "csum")
	f, err := Open(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Open("file")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := make([]byte, 100000)
			for off := int64(0); off < 800000; off += 50000 {
				if n, err := r.ReadAt(b, off); err != nil && err != io.EOF {
					t.Error(n, err)
				}
				names, err := f.ReadDir("dir")
				if err != nil || len(names) != 12 {
					t.Error(names, err)
				}
				for _, n := range names {
					if _, err := f.Stat("dir/" + n); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// TestContiguous expects a large file on a fresh filesystem in about as few pieces as its groups allow.
func TestContiguous(t *testing.T) {
	needTools(t, "mke2fs")
	img := filepath.Join(workDir(t), "img")
	mkfs(t, img, "1G")
	dev, size := file(t, img)
	w, err := OpenWriter(dev, size, Options{Now: time.Unix(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		if err := w.Add(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeReg, Size: 5000}, zeroReader{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Add(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Size: 300 << 20}, &repeat{content(1, 1<<20), 0}); err != nil {
		t.Fatal(err)
	}
	pieces := func(name string) (n int) {
		ino, err := w.lookup(name)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := w.inode(ino)
		if err != nil {
			t.Fatal(err)
		}
		end := int64(0)
		err = w.walkMap(ino, raw, func(e extent) error {
			if e.phys != end {
				n++
			}
			end = e.phys + int64(e.n)
			return nil
		}, func(int64) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	// 300 MiB touch at most four groups of 128 MiB, and some groups begin with a copy of the superblock.
	if n := pieces("large"); n > 4 {
		t.Errorf("300 MiB in %d pieces", n)
	}
	for i := range 100 {
		if n := pieces(fmt.Sprint(i)); n != 1 {
			t.Errorf("file %d in %d pieces", i, n)
		}
	}
	os.Remove(img)
}
