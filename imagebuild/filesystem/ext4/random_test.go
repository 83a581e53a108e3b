package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRandom makes random changes in turns with the kernel. NODEBAKE_SEED repeats a run, NODEBAKE_SOAK=1 makes it long.
func TestRandom(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	seed := testSeed(t)
	rounds, ops, size := 3, 90, "48M"
	if os.Getenv("NODEBAKE_SOAK") != "" {
		rounds, ops, size = 12, 300, "600M"
	}
	for i, args := range []string{
		"-N 6000",
		"-b 1024 -I 128 -N 6000 -O ^extents,^64bit",
		"-b 1024 -N 6000 -O metadata_csum_seed,orphan_file",
		"-N 6000 -I 512 -O inline_data",
		"-b 2048 -N 6000 -O uninit_bg,^metadata_csum,^flex_bg -E lazy_itable_init=1",
	} {
		t.Run(strings.ReplaceAll(args, " ", ""), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			if os.Getenv("NODEBAKE_SOAK") != "" {
				args = strings.ReplaceAll(args, "-N 6000", "-N 60000")
			}
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, size, strings.Fields(args)...)
			for round := range rounds {
				dir, unmount := mount(t, img, "rw,noatime")
				kernelChanges(t, r, dir, fmt.Sprint("k", round), ops/2)
				unmount()
				dir, unmount = mount(t, img, "ro")
				want := kernelTree(t, dir)
				unmount()
				dev, size := file(t, img)
				w, err := OpenWriter(dev, size, Options{Now: testNow.Add(time.Duration(round) * time.Hour)})
				if err != nil {
					t.Fatal(err)
				}
				a := &adder{t: t, w: w, want: want, now: w.now}
				for op := range ops {
					a.random(r, fmt.Sprintf("o%d-%d", round, op))
				}
				if err := w.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				fsck(t, img)
				dir, unmount = mount(t, img, "ro")
				compare(t, fmt.Sprintf("round %d", round), kernelTree(t, dir), a.want)
				unmount()
				f, err := Open(dev, size)
				if err != nil {
					t.Fatal(err)
				}
				compare(t, fmt.Sprintf("round %d, read by us", round), ourTree(t, f), a.want.without(noSame))
			}
		})
	}
}

// testSeed is a new seed, or the one that NODEBAKE_SEED names.
func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	return seed
}

// names lists the sorted names for which ok holds.
func (tr tree) names(ok func(node) bool) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(tr)) {
		if ok(tr[k]) {
			out = append(out, k)
		}
	}
	return out
}

func pick(r *rand.Rand, s []string) string { return s[r.IntN(len(s))] }

func randomData(r *rand.Rand) []byte {
	switch r.IntN(10) {
	case 0:
		return nil
	case 1:
		return sparse(int64(r.IntN(1<<20)+1), 0)
	case 2:
		return sparse(1<<20, int64(r.IntN(1<<20)), int64(r.IntN(1<<20)))
	case 3:
		return content(r.Uint64(), r.IntN(300000))
	default:
		return content(r.Uint64(), r.IntN(9000))
	}
}

// random does one operation, or checks that one that must fail does.
func (a *adder) random(r *rand.Rand, fresh string) {
	t, w := a.t, a.w
	t.Helper()
	dirs := a.want.names(func(n node) bool { return n.Type == tar.TypeDir })
	files := a.want.names(func(n node) bool { return n.Type == tar.TypeReg })
	others := a.want.names(func(n node) bool { return n.Type != tar.TypeDir })
	d := pick(r, dirs)
	if r.IntN(8) == 0 {
		fresh += strings.Repeat("x", 255-len(fresh))
	}
	name := strings.TrimPrefix(d+"/"+fresh, "/")
	h := &tar.Header{
		Name: name, Typeflag: tar.TypeReg, Mode: int64(r.IntN(010000)), Uid: r.IntN(1 << 20), Gid: r.IntN(1 << 20),
		ModTime: time.Unix(int64(r.IntN(1<<31)), int64(r.IntN(1e9))), PAXRecords: map[string]string{},
	}
	for i := range r.IntN(4) {
		h.PAXRecords[xattrPrefix+[]string{"user.", "trusted.", "security."}[i]+"n"] = string(content(r.Uint64(), 1+r.IntN(200)))
	}
	switch op := r.IntN(20); {
	case op < 5:
		a.add(h, randomData(r))
	case op < 7:
		h.Typeflag = tar.TypeDir
		a.add(h, nil)
	case op < 8:
		h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("t", 1+r.IntN(200))
		delete(h.PAXRecords, xattrPrefix+"user.n")
		a.add(h, nil)
	case op < 9:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, int64(r.IntN(4096)), int64(r.IntN(1<<20))
		delete(h.PAXRecords, xattrPrefix+"user.n")
		a.add(h, nil)
	case op < 11 && len(others) > 0:
		a.add(&tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: pick(r, others)}, nil)
	case op < 13 && len(files) > 0:
		h.Name = pick(r, files)
		a.replace(h, randomData(r))
	case op < 16 && len(others) > 0:
		a.remove(pick(r, others))
	case op < 17:
		h.Name, h.Typeflag = d, tar.TypeDir
		a.add(h, nil)
	case op < 18:
		// Directories that hold something stay; empty ones go.
		empty := true
		for k := range a.want {
			empty = empty && (k == d || !strings.HasPrefix(k, d+"/"))
		}
		switch {
		case d == "":
		case empty:
			a.remove(d)
		default:
			if err := w.Remove(d); !errors.Is(err, syscall.ENOTEMPTY) {
				t.Fatalf("removing %q: %v", d, err)
			}
		}
	case op < 19 && len(files) > 0:
		h.Name = pick(r, files)
		if err := w.Add(h, nil); !errors.Is(err, fs.ErrExist) {
			t.Fatalf("adding over %q: %v", h.Name, err)
		}
		h.Name += "/below"
		if err := w.Add(h, nil); !errors.Is(err, syscall.ENOTDIR) {
			t.Fatalf("adding %q: %v", h.Name, err)
		}
	default:
		h.Size = 300000
		before := w.Space()
		if err := w.Add(h, bytes.NewReader(content(1, r.IntN(300000)))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("adding too little: %v", err)
		}
		if w.Space() != before {
			t.Fatalf("a failed Add took space: %+v, before %+v", w.Space(), before)
		}
		if _, err := w.Stat(h.Name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("a failed Add left %q: %v", h.Name, err)
		}
	}
}

// kernelChanges does random things below a mounted folder.
func kernelChanges(t testing.TB, r *rand.Rand, dir, prefix string, ops int) {
	t.Helper()
	for op := range ops {
		var dirs, files []string
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			} else if err == nil && d.Type().IsRegular() {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		p := path.Join(pick(r, dirs), fmt.Sprintf("%s-%d", prefix, op))
		switch k := r.IntN(10); {
		case k < 4 || len(files) == 0:
			err = os.WriteFile(p, randomData(r), 0o644)
			if err == nil && r.IntN(3) == 0 {
				err = unix.Setxattr(p, "user.k", content(3, 1+r.IntN(400)), 0)
			}
		case k < 5:
			err = os.Mkdir(p, 0o755)
			for i := 0; err == nil && i < r.IntN(300); i++ {
				err = os.WriteFile(filepath.Join(p, fmt.Sprintf("%s-%d-some-name", prefix, i)), nil, 0o644)
			}
		case k < 6:
			err = os.Link(pick(r, files), p)
		case k < 7:
			err = os.Rename(pick(r, files), p)
		case k < 8:
			var f *os.File
			if f, err = os.OpenFile(pick(r, files), os.O_WRONLY, 0); err == nil {
				_, err = f.WriteAt(content(4, 1+r.IntN(5000)), int64(r.IntN(400000)))
				f.Close()
			}
		case k < 9:
			err = os.Symlink(strings.Repeat("k", 1+r.IntN(100)), p)
		default:
			err = os.Remove(pick(r, files))
		}
		if err != nil && !errors.Is(err, syscall.ENOSPC) && !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
	}
}
