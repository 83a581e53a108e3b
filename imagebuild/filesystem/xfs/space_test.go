package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
)

// pattern reads as size bytes that hold no long run of zeros.
type pattern struct{ left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	for i := range b[:n] {
		b[i] = byte(i)*7 + 1
	}
	p.left -= int64(n)
	return n, nil
}

// noWrites fails the test when something is written.
type noWrites struct {
	io.ReaderAt
	t testing.TB
}

func (d noWrites) WriteAt(b []byte, off int64) (int, error) {
	d.t.Errorf("%d bytes written at %d while counting", len(b), off)
	return 0, errors.New("read only")
}

// plan is the same set of files each time, with one large file of size bytes among them.
func plan(t testing.TB, w *Writer, size int64, small int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0755}, nil))
	for i := 0; i < small; i++ {
		h := file(fmt.Sprintf("d/small-%d", i), int64(i%7000))
		must(w.Add(h, &pattern{h.Size}))
		if i%50 == 0 {
			must(w.Add(&tar.Header{Name: fmt.Sprintf("d/l%d", i), Typeflag: tar.TypeSymlink, Mode: 0777, Linkname: strings.Repeat("x", 900), PAXRecords: map[string]string{xattrPrefix + "user.a": strings.Repeat("v", i)}}, nil))
		}
	}
	must(w.Add(file("big", size), &pattern{size}))
	must(w.Remove("d/small-3"))
	h := file("d/small-4", 5000)
	must(w.Replace(h, &pattern{5000}))
}

func countPlan(t testing.TB, img string, size int64, small int) (Space, error) {
	t.Helper()
	f, n := openImage(t, img)
	w, err := OpenWriter(noWrites{f, t}, n, Options{Now: now, CountOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	plan(t, w, size, small)
	err = w.Commit(context.Background())
	return w.Space(), err
}

func TestSpaceIsExact(t *testing.T) {
	needKernel(t)
	for i, args := range []string{"-m rmapbt=1", "-b size=1024 -m rmapbt=1 -i nrext64=1", "-m reflink=0"} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			img := mkfs(t, 320<<20, strings.Fields(args)...)
			// What we say is free is what the kernel says.
			w := openWriter(t, img)
			s := w.Space()
			mounted(t, img, "rw", func(dir string) {
				var st syscall.Statfs_t
				if err := syscall.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				free, ffree := int64(st.Bavail), int64(st.Ffree)
				t.Logf("free blocks: we %d, kernel %d; inodes: we %d, kernel %d", s.FreeBlocks, free, s.FreeInodes, ffree)
				if d := free - s.FreeBlocks; d < -8 || d > 8+int64(w.Info().AGCount)*8 {
					t.Errorf("free blocks: we say %d, the kernel %d", s.FreeBlocks, free)
				}
				if d := ffree - s.FreeInodes; d < -2000 || d > 2000 {
					t.Errorf("free inodes: we say %d, the kernel %d", s.FreeInodes, ffree)
				}
			})
			const small = 3000
			base, err := countPlan(t, img, 0, small)
			if err != nil {
				t.Fatal(err)
			}
			left := (base.FreeBlocks - base.NeedBlocks) * base.BlockSize
			// The largest file that fits, by counting; then the same and one block more in earnest.
			lo, hi := int64(0), left+1<<20
			for hi-lo > base.BlockSize {
				mid := (lo + hi) / 2 / base.BlockSize * base.BlockSize
				got, err := countPlan(t, img, mid, small)
				if (err == nil) != (got.NeedBlocks <= got.FreeBlocks) {
					t.Fatalf("%d bytes: %v, but %+v", mid, err, got)
				}
				if err == nil {
					lo = mid
				} else if errors.Is(err, ErrNoSpace) {
					hi = mid
				} else {
					t.Fatal(err)
				}
			}
			// The file's end may fall into a group that needs an inode chunk of its own.
			if left-lo > 8*base.BlockSize+64*int64(w.Info().InodeSize) {
				t.Errorf("%d bytes should fit, %d do", left, lo)
			}
			for _, c := range []struct {
				size int64
				fits bool
			}{{lo, true}, {lo + base.BlockSize, false}, {lo + 50<<20, false}} {
				counted, err1 := countPlan(t, img, c.size, small)
				cp := img + ".copy"
				run(t, "cp", "--sparse=always", img, cp)
				f, n := openImage(t, cp)
				w, err := OpenWriter(f, n, Options{Now: now})
				if err != nil {
					t.Fatal(err)
				}
				plan(t, w, c.size, small)
				before := w.Space()
				err2 := w.Commit(context.Background())
				if (err1 == nil) != c.fits || (err2 == nil) != c.fits {
					t.Fatalf("%d bytes: counting says %v, writing %v, expected to fit: %v", c.size, err1, err2, c.fits)
				}
				written := w.Space()
				if counted != written || before.NeedBlocks != written.NeedBlocks {
					t.Errorf("%d bytes: counted %+v, before commit %+v, written %+v", c.size, counted, before, written)
				}
				if c.fits {
					repairClean(t, cp)
					mounted(t, cp, "rw", func(dir string) {
						if err := os.WriteFile(dir+"/more", bytes.Repeat([]byte("m"), 1<<20), 0644); err != nil && !errors.Is(err, syscall.ENOSPC) {
							t.Error(err)
						}
					})
					repairClean(t, cp)
				} else {
					var ns *NoSpaceError
					if !errors.As(err2, &ns) || !errors.Is(err2, ErrNoSpace) || ns.NeedBlocks <= ns.FreeBlocks {
						t.Errorf("%v", err2)
					}
				}
			}
		})
	}
}
