package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"

	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// growing is a file that is as large as its owner says, and counts what is written.
type growing struct {
	*os.File
	t       testing.TB
	written int64
	step    int64 // by which it grows at the least when asked; below 0: not at all
	most    int64
	asked   []int64
}

func (g *growing) WriteAt(b []byte, off int64) (int, error) {
	g.written += int64(len(b))
	return g.File.WriteAt(b, off)
}

// more is an Options.Grow.
func (g *growing) more(need int64) (int64, error) {
	st, err := g.Stat()
	if err != nil {
		return 0, err
	}
	g.asked = append(g.asked, need)
	size := st.Size()
	switch {
	case need <= size-1<<20:
		g.t.Errorf("asked for %d bytes, %d are there", need, size)
	case g.step < 0:
		return size, nil
	case g.most > 0 && max(size+g.step, need) > g.most:
		if size < g.most {
			return g.most, g.Truncate(g.most)
		}
		return size, nil
	}
	size = max(size+g.step, need)
	return size, g.Truncate(size)
}

func growingWriter(t testing.TB, img string, step, most int64) (*Writer, *growing) {
	t.Helper()
	f, size := openImage(t, img)
	g := &growing{File: f, t: t, step: step, most: most}
	w, err := OpenWriter(g, size, Options{Now: now, Grow: g.more})
	if err != nil {
		t.Fatal(err)
	}
	return w, g
}

// growImage grows an image and its filesystem, and returns what was written for it.
func growImage(t testing.TB, img string, size int64) int64 {
	t.Helper()
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	w, g := growingWriter(t, img, -1, 0)
	if err := w.Grow(size); err != nil {
		t.Fatal(err)
	}
	if got := w.Size(); got > size || got < size-minAGBlocks*int64(w.sb.blockSize) {
		t.Errorf("Size is %d after growing to %d", got, size)
	}
	commit(t, w)
	return g.written
}

func kernelGrow(t testing.TB, img string, size int64) {
	t.Helper()
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	mounted(t.(*testing.T), img, "rw", func(dir string) { run(t, "xfs_growfs", dir) })
}

func growForms() []form {
	all := []form{
		{name: "default"},
		{name: "everything", args: "-m rmapbt=1,inobtcount=1,bigtime=1 -i nrext64=1"},
		{name: "short last group", args: "-d agsize=19999b -m rmapbt=1", size: 330},
		{name: "many groups", args: "--unsupported -d agcount=18 -l size=10m", size: 310},
		{name: "block 1k", args: "-b size=1024 -m rmapbt=1"},
		{name: "first v5", args: "-m finobt=0,rmapbt=0,reflink=0,inobtcount=0,bigtime=0 -i sparse=0"},
		{name: "one group", args: "--unsupported -d agcount=1 -i maxpct=5"},
		{name: "sector 4k", args: "-s size=4096 -m rmapbt=1"},
		{name: "block 64k", args: "-b size=65536 -m rmapbt=1", size: 600},
		{name: "no reflink", args: "-m reflink=0,rmapbt=1"},
		{name: "no finobt", args: "-m finobt=0,inobtcount=0"},
		{name: "no inobtcount", args: "-m inobtcount=0,rmapbt=1"},
		{name: "stripes", args: "-d su=64k,sw=4 -l su=64k,size=64m", size: 600},
		{name: "new uuid", args: "-m rmapbt=1", after: func(t *testing.T, img string) {
			run(t, "xfs_admin", "-U", "11111111-2222-3333-4444-555555555555", img)
		}},
		{name: "inode 2k", args: "-i size=2048,sparse=0"},
		{name: "folder block 64k", args: "-n size=65536"},
	}
	for i := range all {
		if all[i].size == 0 {
			all[i].size = 320
		}
		all[i].size <<= 20
	}
	return all
}

// TestGrowAsKernel grows one filesystem by xfs_growfs and by us: new groups must not differ in a byte, counts and
// geometry must be equal.
func TestGrowAsKernel(t *testing.T) {
	needKernel(t)
	for _, f := range growForms() {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			for _, size := range []int64{f.size + 1<<20 + 12800, 2*f.size + 7<<20, 5 << 30} {
				img := mkfs(t, f.size, strings.Fields(f.args)...)
				if f.after != nil {
					f.after(t, img)
				}
				before := openReader(t, img).sb
				theirs := img + ".kernel"
				run(t, "cp", "--sparse=always", img, theirs)
				kernelGrow(t, theirs, size)
				growImage(t, img, size)
				repairClean(t, img)
				a, b := openReader(t, img), openReader(t, theirs)
				if a.sb.dblocks != b.sb.dblocks || a.sb.agCount != b.sb.agCount || a.sb.icount != b.sb.icount || a.sb.ifree != b.sb.ifree || a.sb.fdblocks != b.sb.fdblocks {
					t.Errorf("%d: %d blocks in %d groups, %d free, inodes %d %d; the kernel: %d, %d, %d, %d, %d", size,
						a.sb.dblocks, a.sb.agCount, a.sb.fdblocks, a.sb.icount, a.sb.ifree, b.sb.dblocks, b.sb.agCount, b.sb.fdblocks, b.sb.icount, b.sb.ifree)
				}
				whole := int(before.freshLayout().end) << before.blockLog
				ss := before.sectSize
				read := func(f *FS, ag uint32) []byte {
					p := make([]byte, whole)
					if err := f.readAt(p, f.sb.agOff(ag, 0)); err != nil {
						t.Fatal(err)
					}
					return p
				}
				for ag := uint32(1); ag < a.sb.agCount && a.sb.dblocks > before.dblocks; ag++ {
					x, y := read(a, ag), read(b, ag)
					// The kernel's copies have the counts from before the growth; quota inodes may be 0 or null.
					for _, p := range [][]byte{x, y} {
						clear(p[sbIcount : sbFdblocks+8])
						clear(p[sbCRC : sbCRC+4])
						clear(p[sbUquotIno:sbQflags])
						clear(p[sbPquotIno : sbPquotIno+8])
					}
					if !bytes.Equal(x[:ss], y[:ss]) {
						t.Fatalf("%d: the superblock's copy in group %d is not the kernel's\n%x\n%x", size, ag, x[:ss], y[:ss])
					}
					if ag >= before.agCount && !bytes.Equal(x, y) {
						for i := range x {
							if x[i] != y[i] {
								t.Fatalf("%d: group %d: byte %d is %#x, the kernel's %#x", size, ag, i, x[i], y[i])
							}
						}
					}
				}
				os.Remove(theirs)
				os.Remove(img)
			}
		})
	}
}

// fillFiles adds files until size bytes are in, some of them small, and notes them in want.
func fillFiles(t testing.TB, w *Writer, want tree, dir string, size int64, rng *rand.Rand) {
	t.Helper()
	d := file(dir, 0)
	d.Typeflag, d.Mode, d.ModTime = '5', 0755, now
	mustAdd(t, w, d, nil)
	want[dir] = headerRecord(d)
	for i := 0; size > 0; i++ {
		n := int64(rng.Intn(9000))
		if i%20 == 0 {
			n = 1<<20 + rng.Int63n(min(200<<20, max(1<<20, size/3)))
		}
		h := file(fmt.Sprintf("%s/%d", dir, i), n)
		h.ModTime = now
		if i%7 == 0 {
			h.PAXRecords = map[string]string{xattrPrefix + "user.a": string(noise(int64(i), rng.Intn(6000)))}
		}
		if err := w.Add(h, &pattern{n}); err != nil {
			t.Fatal(err)
		}
		r := headerRecord(h)
		r.Content = hash(&pattern{n})
		want[h.Name] = r
		size -= n
	}
}

// judge lets xfs_repair and the kernel look at an image, grows it by the kernel, and lets them look again.
func judge(t *testing.T, img string, want tree) {
	t.Helper()
	repairClean(t, img)
	st, err := os.Stat(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, st.Size()+300<<20); err != nil {
		t.Fatal(err)
	}
	mounted(t, img, "rw", func(dir string) {
		sameTree(t, "grown", kernelTree(t, dir), want)
		var before, after syscall.Statfs_t
		if err := syscall.Statfs(dir, &before); err != nil {
			t.Fatal(err)
		}
		run(t, "xfs_growfs", dir)
		if err := syscall.Statfs(dir, &after); err != nil {
			t.Fatal(err)
		}
		if more := int64(after.Blocks-before.Blocks) * after.Bsize; more < 250<<20 {
			t.Errorf("xfs_growfs gave %d bytes", more)
		}
		if err := os.WriteFile(filepath.Join(dir, "kernel"), noise(1, 30<<20), 0600); err != nil {
			t.Error(err)
		}
	})
	repairClean(t, img)
}

func TestGrow(t *testing.T) {
	needKernel(t)
	s := seed(t, "grow")
	forms := growForms()
	if os.Getenv("NODEBAKE_SOAK") == "" {
		forms = forms[:6]
	}
	for i, f := range forms {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewSource(s + int64(i)))
			reflink := !strings.Contains(f.args, "reflink=0")
			img := mkfs(t, f.size, strings.Fields(f.args)...)
			if f.after != nil {
				f.after(t, img)
			}
			aged := tree{}
			mounted(t, img, "rw", func(dir string) {
				age(t, dir, rng, 300, reflink, true)
			})
			mounted(t, img, "ro", func(dir string) { aged = kernelTree(t, dir) })
			copied := func(name string) (string, tree) {
				run(t, "cp", "--sparse=always", img, img+name)
				want := tree{}
				for k, v := range aged {
					want[k] = v
				}
				t.Cleanup(func() { os.Remove(img + name) })
				return img + name, want
			}
			root := func(want tree) {
				r := want["."]
				r.Mtime = now
				want["."] = r
			}
			t.Run("alone", func(t *testing.T) {
				p, want := copied("alone")
				growImage(t, p, f.size+f.size/2+7<<9)
				growImage(t, p, f.size*3)
				judge(t, p, want)
			})
			t.Run("then-filled", func(t *testing.T) {
				p, want := copied("filled")
				size := f.size * 2
				os.Truncate(p, size)
				w, _ := growingWriter(t, p, -1, 0)
				for _, n := range []int64{f.size + 5<<20, f.size + 6<<20 + 5, f.size + 90<<20, size} {
					if err := w.Grow(n); err != nil {
						t.Fatal(err)
					}
				}
				fillFiles(t, w, want, "new", 90<<20, rng)
				root(want)
				commit(t, w)
				judge(t, p, want)
			})
			t.Run("in-flight", func(t *testing.T) {
				steps := []int64{1 << 30, 1 << 20, 0}
				if os.Getenv("NODEBAKE_SOAK") == "" {
					steps = steps[i%3:][:1]
				}
				for _, step := range steps {
					p, want := copied("flight")
					w, g := growingWriter(t, p, step, 0)
					free := w.Space().FreeBlocks * w.Space().BlockSize // the kernel leaves much where groups are small
					fillFiles(t, w, want, "new", free+50<<20, rng)
					root(want)
					commit(t, w)
					if len(g.asked) == 0 {
						t.Error("nothing was asked for")
					}
					t.Logf("step %d: asked %d times, %d bytes", step, len(g.asked), w.Size())
					if sp := w.Space(); sp.NeedBlocks > sp.FreeBlocks || sp.NeedInodes > sp.FreeInodes {
						t.Errorf("%+v", sp)
					}
					judge(t, p, want)
				}
			})
			t.Run("removed-and-grown", func(t *testing.T) {
				p, want := copied("removed")
				w, _ := growingWriter(t, p, 64<<20, 0)
				for k := range aged {
					if strings.HasPrefix(k, "crumbs/") {
						if err := w.Remove(k); err != nil {
							t.Fatal(err)
						}
						delete(want, k)
					}
				}
				crumbs := want["crumbs"]
				crumbs.Mtime = now
				want["crumbs"] = crumbs
				fillFiles(t, w, want, "new", 70<<20, rng)
				root(want)
				commit(t, w)
				judge(t, p, want)
			})
		})
	}
}

// TestGrowInodes runs out of inodes: by imax_pct, and where the blocks for a chunk are missing.
func TestGrowInodes(t *testing.T) {
	needKernel(t)
	for _, step := range []int64{0, 16 << 20} {
		img := mkfs(t, 320<<20, "-i", "maxpct=1", "-m", "rmapbt=1")
		w, g := growingWriter(t, img, step, 0)
		for i := 0; i < 20000; i++ {
			mustAdd(t, w, file(fmt.Sprint(i), 0), nil)
		}
		if s := w.Space(); s.FreeInodes < 20000 {
			t.Errorf("%+v", s)
		}
		commit(t, w)
		if len(g.asked) == 0 {
			t.Error("nothing was asked for")
		}
		repairClean(t, img)
		mounted(t, img, "rw", func(dir string) { run(t, "test", "-e", filepath.Join(dir, "19999")) })
	}
}

// TestGrowIsCounted: counting with growth says what writing with growth does, byte for byte of what is asked.
func TestGrowIsCounted(t *testing.T) {
	needRepair(t)
	for _, c := range []struct{ step, most int64 }{{1 << 30, 0}, {10 << 20, 0}, {0, 0}, {50 << 20, 500 << 20}} {
		img := mkfs(t, 320<<20, "-m", "rmapbt=1")
		var spaces []Space
		var asked []string
		var sizes []int64
		for _, count := range []bool{true, false} {
			f, size := openImage(t, img)
			g := &growing{File: f, t: t, step: c.step, most: c.most}
			now0, d := size, Device(g)
			more := g.more
			if count { // the device stays as it is
				d = noWrites{f, t}
				more = func(need int64) (int64, error) {
					g.asked = append(g.asked, need)
					if c.most > 0 && max(now0+c.step, need) > c.most {
						now0 = max(now0, c.most)
					} else {
						now0 = max(now0+c.step, need)
					}
					return now0, nil
				}
			}
			w, err := OpenWriter(d, size, Options{Now: now, CountOnly: count, Grow: more})
			if err != nil {
				t.Fatal(err)
			}
			plan(t, w, 400<<20, 3000)
			err = w.Commit(context.Background())
			if (c.most > 0) != errors.Is(err, ErrNoSpace) {
				t.Fatal(err)
			}
			spaces, asked, sizes = append(spaces, w.Space()), append(asked, fmt.Sprint(g.asked)), append(sizes, w.Size())
		}
		if spaces[0] != spaces[1] || asked[0] != asked[1] || sizes[0] != sizes[1] {
			t.Errorf("step %d: counted %+v of %d, asked %s; written %+v of %d, asked %s", c.step, spaces[0], sizes[0], asked[0], spaces[1], sizes[1], asked[1])
		}
		if c.most == 0 {
			repairClean(t, img)
		}
	}
}

// TestGrowInCommit runs out of space when Commit lays out folders, attributes and extent trees.
func TestGrowInCommit(t *testing.T) {
	needKernel(t)
	for _, refuse := range []bool{false, true} {
		img := mkfs(t, 320<<20, "-m", "rmapbt=1")
		w, g := growingWriter(t, img, 0, 0)
		mustAdd(t, w, &tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0755, PAXRecords: map[string]string{xattrPrefix + "user.big": strings.Repeat("v", 60000)}}, nil)
		mustAdd(t, w, file("f", 0), nil)
		for i := 0; i < 20000; i++ {
			mustAdd(t, w, &tar.Header{Name: fmt.Sprintf("d/%d-%s", i, strings.Repeat("n", 100)), Typeflag: tar.TypeLink, Linkname: "f"}, nil)
		}
		s := w.Space()
		left := (s.FreeBlocks - w.used) * s.BlockSize
		if err := w.Add(file("ballast", left), &pattern{left}); err != nil {
			t.Fatal(err)
		}
		if len(g.asked) != 0 {
			t.Fatal("asked before Commit: the test does not test what it should")
		}
		broke := errors.New("no money")
		if refuse {
			w.o.Grow = func(int64) (int64, error) { return 0, broke }
		}
		err := w.Commit(context.Background())
		if refuse {
			if again := w.Commit(context.Background()); !errors.Is(err, broke) || !errors.Is(again, broke) {
				t.Errorf("%v, then %v", err, again)
			}
			continue
		}
		if err != nil || len(g.asked) == 0 {
			t.Fatalf("%v, asked %v", err, g.asked)
		}
		repairClean(t, img)
		mounted(t, img, "rw", func(dir string) {
			if e, err := os.ReadDir(filepath.Join(dir, "d")); err != nil || len(e) != 20000 {
				t.Errorf("%d, %v", len(e), err)
			}
		})
	}
}

func TestGrowErrors(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20, "--unsupported", "-d", "agcount=18", "-l", "size=10m")
	w, _ := growingWriter(t, img, -1, 0)
	if err := w.Grow(320<<20 - 1); err == nil {
		t.Error("grown to less")
	}
	if err := w.Grow(1 << 62); !errors.Is(err, ErrUnsupported) {
		t.Errorf("grown beyond all bounds: %v", err)
	}
	whole := int64(w.sb.agCount) * int64(w.sb.agBlocks) << 12
	for _, c := range []struct{ size, want int64 }{{whole, whole}, {whole + 63<<12, whole}, {whole + 64<<12 + 4000, whole + 64<<12}, {whole + 65<<12, whole + 65<<12}} {
		if err := w.Grow(c.size); err != nil || w.Size() != c.want {
			t.Errorf("grown to %d: %v, %d, want %d", c.size, err, w.Size(), c.want)
		}
	}
	// No more: it counts on, and says so at Commit.
	if err := w.Add(file("big", 1<<30), &pattern{1 << 30}); err != nil {
		t.Fatal(err)
	}
	if err := w.Grow(4 << 30); !errors.Is(err, ErrNoSpace) {
		t.Errorf("grown after contents were dropped: %v", err)
	}
	var full *NoSpaceError
	if err := w.Commit(context.Background()); !errors.As(err, &full) || full.NeedBlocks < 1<<18 {
		t.Errorf("%v", err)
	}
	if err := w.Grow(4 << 30); err == nil {
		t.Error("grown after Commit")
	}
	// An error of the callback ends the Writer.
	f, n := openImage(t, img)
	broke := errors.New("no money")
	w, err := OpenWriter(f, n, Options{Now: now, Grow: func(int64) (int64, error) { return 0, broke }})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(file("big", 1<<30), &pattern{1 << 30}); !errors.Is(err, broke) {
		t.Errorf("Add: %v", err)
	}
	if err := w.Add(file("small", 0), nil); !errors.Is(err, broke) {
		t.Errorf("Add after that: %v", err)
	}
	if err := w.Commit(context.Background()); !errors.Is(err, broke) {
		t.Errorf("Commit: %v", err)
	}
}

// TestGrowIsCheap holds the bytes that growth writes beyond the files' own.
func TestGrowIsCheap(t *testing.T) {
	needRepair(t)
	for _, args := range []string{"", "-m rmapbt=1", "-d agcount=32", "-d agcount=16 -b size=65536 -m rmapbt=1"} {
		img := mkfs(t, 3<<30, strings.Fields(args)...)
		if n := growImage(t, img, 20<<30); n > 20<<20 {
			t.Errorf("%q: %d bytes written", args, n)
		} else {
			t.Logf("%q: %d bytes written", args, n)
		}
		repairClean(t, img)
	}
}

// TestGrowOverNoise grows into a part of the device that reads as anything.
func TestGrowOverNoise(t *testing.T) {
	needKernel(t)
	for i, args := range []string{"-m rmapbt=1", "-b size=16384 -s size=4096 -m rmapbt=1"} {
		const from, to = 700 << 20, 1200 << 20
		img := mkfs(t, from, strings.Fields(args)...)
		f, _ := openImage(t, img)
		b := noise(1, 1<<20)
		for off := int64(from); off < to; off += 1 << 20 {
			if _, err := f.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
		w, _ := growingWriter(t, img, 100<<20, 0)
		want := tree{}
		for _, n := range []int64{from + 20<<20, to - 30<<20, to} {
			if err := w.Grow(n); err != nil {
				t.Fatal(err)
			}
		}
		mustAdd(t, w, &tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0755}, nil)
		want["d"] = record{Type: tar.TypeDir, Mode: 0755, Mtime: now}
		fillFiles(t, w, want, "d/new", 450<<20, rand.New(rand.NewSource(int64(i))))
		commit(t, w)
		repairClean(t, img)
		mounted(t, img, "rw", func(dir string) {
			got := kernelTree(t, dir)
			delete(got, ".")
			sameTree(t, "over noise", got, want)
			os.WriteFile(filepath.Join(dir, "more"), b, 0600)
		})
		repairClean(t, img)
		os.Remove(img)
	}
}

// TestGrowFar makes thousands of groups, and fills some.
func TestGrowFar(t *testing.T) {
	needKernel(t)
	type far struct {
		args       string
		from, size int64
		repair     bool // xfs_repair takes hours for very many groups, on the kernel's own too
	}
	all := []far{{"-m rmapbt=1", 16 << 30, 2 << 40, true}, {"--unsupported -d agcount=18 -l size=10m", 320 << 20, 60 << 30, false}}
	if os.Getenv("NODEBAKE_SOAK") != "" {
		all = append(all, far{"--unsupported -d agcount=18 -l size=13m -m rmapbt=1", 320 << 20, 2 << 40, false}, far{"-b size=1024 -m rmapbt=1", 3 << 30, 1 << 40, true},
			far{"-s size=4096", 2 << 30, 2 << 40, true}, far{"--unsupported -d agcount=1", 320 << 20, 2 << 40, false}, far{"-b size=65536", 1 << 30, 8 << 40, false})
	}
	for _, c := range all {
		judge := checkClean
		if c.repair {
			judge = repairClean
		}
		img := mkfs(t, c.from, strings.Fields(c.args)...)
		stop := peak()
		n := growImage(t, img, c.size)
		heap := stop()
		t.Logf("%q to %d: %d MB written, heap %.0f MiB, %d groups", c.args, c.size, n>>20, heap, openReader(t, img).sb.agCount)
		if heap > 150 {
			t.Errorf("%q: %.0f MiB of heap", c.args, heap)
		}
		w, g := growingWriter(t, img, 1<<30, 0)
		want := tree{}
		mounted := func(f func(dir string)) { mounted(t, img, "rw", f) }
		rng := rand.New(rand.NewSource(1))
		fillFiles(t, w, want, "new", 100<<20, rng)
		commit(t, w)
		if len(g.asked) != 0 {
			t.Errorf("asked for %v", g.asked)
		}
		judge(t, img)
		mounted(func(dir string) {
			got := kernelTree(t, dir)
			delete(got, ".")
			sameTree(t, "far", got, want)
		})
		os.Remove(img)
	}
}

// TestRandomGrow: random filesystems, sizes, operations, growth in between and in flight, the kernel's own changes and
// growth after ours.
func TestRandomGrow(t *testing.T) {
	needKernel(t)
	s := seed(t, "random growth")
	n, rounds, steps := 3, 2, 120
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n, rounds, steps = 60, 8, 400
	}
	rng := rand.New(rand.NewSource(s))
	for i := 0; i < n; i++ {
		f := randomForm(rng)
		f.size = 310 + rng.Int63n(300)
		if strings.HasPrefix(f.args, "-b size=65536") {
			f.size += 600
		}
		ours := rng.Intn(4) == 0
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewSource(s + int64(i)))
			var img string
			reflink := true
			size := f.size << 20
			if ours {
				t.Logf("%d MiB by Format", f.size)
				img, _ = formatted(t, size)
			} else {
				t.Logf("%d MiB, %s", f.size, f.args)
				probe := filepath.Join(t.TempDir(), "probe")
				os.WriteFile(probe, nil, 0600)
				os.Truncate(probe, size)
				if out, err := exec.Command("mkfs.xfs", append(strings.Fields("-q -N "+f.args), probe)...).CombinedOutput(); err != nil {
					first, _, _ := strings.Cut(string(out), "\n")
					t.Skip(first)
				}
				img = mkfs(t, size, strings.Fields(f.args)...)
				reflink = !strings.Contains(f.args, "reflink=0")
			}
			m := &model{rng: rng, files: tree{}}
			mounted(t, img, "rw", func(dir string) {
				if rng.Intn(2) == 0 { // nearly full
					fillUp(t, dir, 4<<20+rng.Int63n(40<<20))
				}
				m.files = kernelTree(t, dir)
			})
			for r := 0; r < rounds; r++ {
				w, g := growingWriter(t, img, []int64{0, 4096, 1 << 20, 77 << 20, 1 << 30}[rng.Intn(5)], 0)
				for j := 0; j < steps; j++ {
					m.step(t, w)
					if rng.Intn(steps/3) == 0 {
						to := w.Size() + rng.Int63n(1<<uint(12+rng.Intn(18)))
						if st, _ := g.Stat(); st.Size() < to {
							g.Truncate(to)
						}
						if err := w.Grow(to); err != nil {
							t.Fatal(err)
						}
					}
				}
				commit(t, w)
				repairClean(t, img)
				if st, _ := g.Stat(); st.Size()%4096 != 0 { // a loop device has whole sectors
					g.Truncate((st.Size() + 4095) &^ 4095)
				}
				mounted(t, img, "rw", func(dir string) {
					got := kernelTree(t, dir)
					sameTree(t, fmt.Sprintf("round %d", r), got, want0(m.files, got))
					if rng.Intn(2) == 0 {
						m.kernelSteps(t, dir, 40, reflink)
					}
				})
				if rng.Intn(3) == 0 {
					kernelGrow(t, img, w.Size()+rng.Int63n(300<<20)&^4095)
				}
				repairClean(t, img)
			}
		})
	}
}
