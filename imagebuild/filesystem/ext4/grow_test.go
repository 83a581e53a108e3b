package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counting counts the bytes that are written.
type counting struct {
	*os.File
	n int64
}

func (c *counting) WriteAt(p []byte, off int64) (int, error) {
	c.n += int64(len(p))
	return c.File.WriteAt(p, off)
}

const mib = 1 << 20

// growForms are filesystems and the sizes, in MiB, that they grow to, one after the other before one Commit.
var growForms = []struct {
	name, size, args string
	to               []int64
	junk             bool // what is behind the filesystem is not zero
	offlineOnly      bool // the kernel cannot grow it, or not mount it here
}{
	{name: "small", size: "300M", to: []int64{301, 1100, 2500}},
	{name: "tiny", size: "5M", args: "-O ^has_journal", to: []int64{9, 64, 300}, junk: true},
	{name: "1G", size: "1G", to: []int64{3072, 3073, 20480}},
	{name: "tail", size: "1000M", args: "-m 3", to: []int64{1025, 1026, 1153}},
	{name: "2k", size: "64M", args: "-b 2048 -I 512", to: []int64{700, 1400}},
	{name: "64k", size: "512M", args: "-b 65536", to: []int64{600, 9000}, offlineOnly: true},
	{name: "no-flex_bg", size: "300M", args: "-O ^flex_bg", to: []int64{500, 1500}},
	{name: "flex4", size: "300M", args: "-G 4 -b 4096", to: []int64{520, 700, 3000}},
	{name: "flex-huge", size: "64M", args: "-G 65536 -b 4096 -i 4096 -I 512", to: []int64{520, 9000}},
	{name: "flex-wide-inodes", size: "64M", args: "-b 1024 -i 1024 -I 512", to: []int64{200, 210}, junk: true},
	{name: "no-csum", size: "300M", args: "-O ^metadata_csum -b 4096", to: []int64{500, 3000}},
	{name: "uninit_bg", size: "80M", args: "-O uninit_bg,^metadata_csum,^flex_bg", to: []int64{120, 200}, junk: true},
	{name: "no-uninit", size: "80M", args: "-O ^uninit_bg,^metadata_csum", to: []int64{120, 200}, junk: true},
	{name: "no-64bit", size: "300M", args: "-O ^64bit", to: []int64{500, 1500}},
	{name: "ext3", size: "100M", args: "-t ext3 -b 4096", to: []int64{150, 400}, junk: true},
	{name: "ext2", size: "300M", args: "-t ext2 -I 128", to: []int64{500, 1500}},
	{name: "no-sparse_super", size: "300M", args: "-O ^sparse_super,^resize_inode", to: []int64{500, 1500}},
	{name: "sparse_super2", size: "300M", args: "-O sparse_super2", to: []int64{500, 1500}, offlineOnly: true},
	{name: "sparse_super2-one-group", size: "100M", args: "-O sparse_super2 -b 4096", to: []int64{500, 1500}, offlineOnly: true},
	{name: "meta_bg", size: "300M", args: "-O meta_bg,^resize_inode", to: []int64{500, 1500}},
	{name: "no-resize_inode", size: "300M", args: "-O ^resize_inode", to: []int64{500, 1500}},
	{name: "few-reserved", size: "300M", args: "-b 1024 -E resize=600000", to: []int64{500, 900, 1500}},
	{name: "all-reserved", size: "300M", args: "-b 1024 -E resize=600000", to: []int64{640}},
	{name: "few-reserved-32", size: "300M", args: "-b 1024 -E resize=900000 -O ^64bit", to: []int64{2000}},
	{name: "csum_seed", size: "64M", args: "-O metadata_csum_seed,orphan_file,inline_data,large_dir", to: []int64{900}},
}

func growWriter(t testing.TB, dev Device, size int64, o Options) *Writer {
	t.Helper()
	o.Now = testNow
	w, err := OpenWriter(dev, size, o)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// checkBackups compares each copy of the superblock and of the descriptors with the original, and lets e2fsck rebuild
// the filesystem from one of them.
func checkBackups(t testing.TB, img string, rebuild bool) {
	t.Helper()
	dev, size := file(t, img)
	f, err := Open(dev, size)
	if err != nil {
		t.Fatal(err)
	}
	read := func(at int64, n int) []byte {
		b := make([]byte, n)
		if _, err := dev.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		return b
	}
	table := int(f.descBlocks())
	if f.incompat&incompatMetaBG != 0 {
		table = min(table, int(le.Uint32(f.sb[sbFirstMetaBG:])))
	}
	last := uint32(0)
	for g := uint32(1); g < f.groups; g++ {
		per := f.descPerBlock()
		start := f.groupStart(g) * f.bs
		if f.hasSuper(g) {
			want := f.sb
			le.PutUint16(want[sbState:], le.Uint16(want[sbState:])&^stateValid)
			le.PutUint16(want[sbGroupNumber:], uint16(g))
			f.sealSuper(want[:])
			if !bytes.Equal(read(start, superSize), want[:]) {
				t.Fatalf("the superblock in group %d differs", g)
			}
			start += f.bs
			if n := table * int(f.bs); int(g/per) < table && !bytes.Equal(read(start, n), f.gdt[:n]) {
				t.Fatalf("the descriptors in group %d differ", g)
			}
			if int(g/per) < table || table == 0 {
				last = g // e2fsck expects the descriptors that precede meta_bg behind the superblock that it is told to use
			}
		}
		if i := int(g / per); i >= table && (g%per == 0 || g%per == 1 || g%per == per-1) {
			if !bytes.Equal(read(start, int(f.bs)), f.gdt[i*int(f.bs):(i+1)*int(f.bs)]) {
				t.Fatalf("the descriptors of meta group %d in group %d differ", i, g)
			}
		}
	}
	if !rebuild || last == 0 {
		return
	}
	before := ourTree(t, f)
	broken := img + ".broken"
	run(t, "cp", "--sparse=always", img, broken)
	defer os.Remove(broken)
	b, _ := file(t, broken)
	for _, r := range [][2]int64{{superOffset, superSize}, {f.descBlock(0) * f.bs, int64(max(table, 1)) * f.bs}} {
		if _, err := b.WriteAt(make([]byte, r[1]), r[0]); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("e2fsck", "-fy", "-b", fmt.Sprint(f.groupStart(last)), "-B", fmt.Sprint(f.bs), broken).CombinedOutput()
	if x, ok := err.(*exec.ExitError); err != nil && (!ok || x.ExitCode() != 1) {
		t.Fatalf("e2fsck from the copy in group %d: %v\n%.2000s", last, err, out)
	}
	fsck(t, broken)
	if f, err = Open(b, size); err != nil {
		t.Fatal(err)
	}
	compare(t, "rebuilt from a copy", ourTree(t, f), before)
}

// fill adds the same files always, the i-th time that it is called for a writer.
func fill(a *adder, i int) {
	a.add(&tar.Header{Name: fmt.Sprint("d", i), Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	for k := range 200 {
		a.add(&tar.Header{Name: fmt.Sprintf("d%d/f%d", i, k), Typeflag: tar.TypeReg, Mode: 0o644}, content(uint64(k), k*k))
	}
}

func junkBehind(t testing.TB, f *os.File, from, to int64) {
	t.Helper()
	junk := bytes.Repeat([]byte("\xff\xa5\x01\x80"), mib/4)
	for at := from; at < to; at += mib {
		if _, err := f.WriteAt(junk, at); err != nil {
			t.Fatal(err)
		}
	}
}

// mayGrowMounted tells whether the kernel lets this process grow mounted filesystems; TestGrowInVM does without.
func mayGrowMounted(t testing.TB) bool {
	t.Helper()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// growLater lets the real tool grow the filesystem again, off line and, mounted, on line.
func growLater(t testing.TB, img string, size int64, online bool) {
	t.Helper()
	size += size/3 + 200*mib
	run(t, "truncate", "-s", fmt.Sprint(size), img)
	run(t, "resize2fs", img)
	fsck(t, img)
	if !online || !mayGrowMounted(t) {
		return
	}
	dir, unmount := mount(t, img, "rw")
	loop := strings.TrimSpace(run(t, "findmnt", "-no", "SOURCE", dir))
	size += size / 2
	run(t, "truncate", "-s", fmt.Sprint(size), img)
	run(t, "losetup", "-c", loop)
	run(t, "resize2fs", loop)
	unmount()
	fsck(t, img)
	dev, _ := file(t, img)
	f, err := Open(dev, size)
	if err != nil {
		t.Fatal(err)
	}
	if has := f.blocks * f.bs; has < size-200*mib {
		t.Fatalf("resize2fs made %d bytes of %d", has, size)
	}
}

func TestGrowForms(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "resize2fs", "mount", "umount", "losetup", "findmnt")
	for _, f := range growForms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, f.size, strings.Fields(f.args)...)
			dev, size := file(t, img)
			write := func(w *Writer, d Device) *adder {
				t.Helper()
				a := &adder{t: t, w: w, want: ourTree(t, w), now: testNow}
				for i, to := range f.to {
					if err := w.Grow(to * mib); err != nil {
						t.Fatal(err)
					}
					if got := w.Size(); got > to*mib || got < to*mib-140*mib {
						t.Fatalf("%d bytes after growing to %d", got, to*mib)
					}
					fill(a, i)
				}
				return a
			}
			count := growWriter(t, readOnly{dev}, size, Options{CountOnly: true})
			write(count, readOnly{dev})
			if err := count.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			before, err := Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			end := f.to[len(f.to)-1] * mib
			if err := os.Truncate(img, end); err != nil {
				t.Fatal(err)
			}
			if f.junk {
				junkBehind(t, dev, size, end)
			}
			w := growWriter(t, dev, size, Options{})
			a := write(w, dev)
			compare(t, "before Commit", ourTree(t, w).without(noTimesOfFolders), a.want.without(noSame).without(noTimesOfFolders))
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			if count.Space() != w.Space() {
				t.Errorf("counted %+v, took %+v", count.Space(), w.Space())
			}
			fsck(t, img)
			after, err := Open(dev, end)
			if err != nil {
				t.Fatal(err)
			}
			if got := after.Info(); got.FreeBlocks-got.ReservedBlocks != w.Space().FreeBlocks-w.Space().NeedBlocks || got.FreeInodes != w.Space().FreeInodes-w.Space().NeedInodes {
				t.Errorf("%+v has %d and %d free", w.Space(), got.FreeBlocks-got.ReservedBlocks, got.FreeInodes)
			} else if share := float64(got.ReservedBlocks)/float64(got.Blocks) - float64(before.reserved())/float64(before.blocks); share > 0.0001 || share < -0.0001 {
				t.Errorf("%d of %d blocks reserved, before: %d of %d", got.ReservedBlocks, got.Blocks, before.reserved(), before.blocks)
			}
			checkBackups(t, img, true)
			if !f.offlineOnly {
				dir, unmount := mount(t, img, "ro")
				compare(t, "the kernel reading it", kernelTree(t, dir), a.want)
				unmount()
			}
			growLater(t, img, end, !f.offlineOnly)
			size = end + end/3 // at least
			if after, err = Open(dev, size); err != nil {
				size *= 2
				if after, err = Open(dev, size); err != nil {
					t.Fatal(err)
				}
			}
			compare(t, "after the tool grew it", ourTree(t, after).without(noSame), a.want.without(noSame))
		})
	}
}

// TestGrowInFlight fills filesystems far beyond their size; Options.Grow gives what is asked for, and no more, or
// in steps.
func TestGrowInFlight(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	for i, f := range []form{
		{name: "default", size: "100M", args: "-b 4096", many: 300, fill: 97},
		{name: "1k", size: "40M", args: "-b 1024 -O metadata_csum_seed", many: 500, fill: 95},
		{name: "ext3", size: "40M", args: "-t ext3 -b 4096", many: 500, fill: 95},
		{name: "ext2", size: "40M", args: "-t ext2 -I 128 -b 1024", many: 500, fill: 95},
		{name: "few-inodes", size: "64M", args: "-b 4096 -N 600 -O ^has_journal", many: 300, fill: 20},
		{name: "few-inodes-meta_bg", size: "64M", args: "-b 1024 -N 1024 -O meta_bg,^resize_inode", many: 300, fill: 20},
		{name: "no-resize_inode", size: "40M", args: "-b 1024 -O ^resize_inode,^flex_bg", many: 500, fill: 95},
	} {
		steps := []int64{1, 128 * mib}
		if i > 2 && os.Getenv("NODEBAKE_SOAK") == "" {
			steps = steps[:1]
		}
		for _, step := range steps {
			t.Run(fmt.Sprint(f.name, "-", step), func(t *testing.T) {
				t.Parallel()
				img := filepath.Join(workDir(t), "img")
				mkfs(t, img, f.size, strings.Fields(f.args)...)
				dir, unmount := mount(t, img, "rw")
				age(t, dir, f)
				unmount()
				dir, unmount = mount(t, img, "ro")
				before := kernelTree(t, dir)
				unmount()
				dev, size := file(t, img)
				write := func(d Device, o Options, want tree) (*Writer, []int64) {
					t.Helper()
					var asked []int64
					var w *Writer
					o.Grow = func(need int64) (int64, error) {
						if need <= w.Size() {
							t.Errorf("%d bytes needed, there are %d", need, w.Size())
						}
						asked = append(asked, need)
						size := (need + step - 1) / step * step
						if o.CountOnly {
							return size, nil
						}
						return size, os.Truncate(img, size)
					}
					w = growWriter(t, d, size, o)
					a := &adder{t: t, w: w, want: want, now: testNow}
					addTree(a, f)
					a.add(&tar.Header{Name: "wide", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
					for i := range 12000 {
						a.add(&tar.Header{Name: fmt.Sprintf("wide/a-rather-long-name-so-that-the-folder-is-large-%d", i), Typeflag: tar.TypeReg, Mode: 0o644}, []byte("x")[:i%2])
					}
					a.add(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644}, content(3, 120*mib+5))
					// All that is left goes, so that the folders themselves need more.
					if step == 1 && f.fill > 90 {
						a.add(&tar.Header{Name: "rest", Typeflag: tar.TypeReg, Mode: 0o644}, content(3, int(w.left*w.bs)))
					}
					n := len(asked)
					if err := w.Commit(context.Background()); err != nil {
						t.Fatal(err)
					}
					if step == 1 && f.fill > 90 && n == len(asked) {
						t.Error("Commit did not ask for more")
					}
					return w, asked
				}
				count, asked := write(readOnly{dev}, Options{CountOnly: true}, before.without(func(string, *node) {}))
				w, again := write(dev, Options{}, before)
				if count.Space() != w.Space() || !slices.Equal(asked, again) {
					t.Errorf("counted %+v, took %+v; asked for %d and %d", count.Space(), w.Space(), asked, again)
				}
				t.Logf("asked %d times, %d bytes in the end", len(asked), w.Size())
				fsck(t, img)
				checkBackups(t, img, true)
				dir, unmount = mount(t, img, "ro")
				defer unmount()
				if acls := kernelTree(t, dir); len(acls["new/acl"].Xattrs) == 0 {
					before = before.without(noACLs)
				}
				compare(t, "the kernel reading it", kernelTree(t, dir), before)
			})
		}
	}
}

// TestGrowRefused has a device that cannot grow enough: the need is told as ever.
func TestGrowRefused(t *testing.T) {
	fillUp := func(w *Writer) error {
		t.Helper()
		for i := range 40 {
			if err := w.Add(&tar.Header{Name: fmt.Sprint("f", i), Typeflag: tar.TypeReg, Size: 1 << 20}, bytes.NewReader(content(1, 1<<20))); err != nil {
				return err
			}
		}
		return w.Commit(context.Background())
	}
	plain := growWriter(t, base(t, "csum"), 1<<20, Options{})
	var want *NoSpaceError
	if err := fillUp(plain); !errors.As(err, &want) {
		t.Fatal(err)
	}
	var e *NoSpaceError
	asked := 0
	w := growWriter(t, base(t, "csum"), 1<<20, Options{Grow: func(need int64) (int64, error) { asked++; return need - 1, nil }})
	if err := fillUp(w); !errors.As(err, &e) || e.Space != want.Space || asked != 1 {
		t.Errorf("asked %d times: %v, want %v", asked, err, want)
	}
	if err := w.Grow(1 << 30); err == nil {
		t.Error("growing after Commit")
	}
	broken := errors.New("broken pool")
	w = growWriter(t, base(t, "csum"), 1<<20, Options{Grow: func(int64) (int64, error) { return 0, broken }})
	if err := fillUp(w); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := w.Commit(context.Background()); !errors.Is(err, broken) {
		t.Error(err)
	}
	w = growWriter(t, base(t, "csum"), 1<<20, Options{})
	for _, c := range []struct {
		size int64
		is   error
	}{{w.Size() - 1, nil}, {0, nil}, {-1, nil}, {1 << 62, ErrUnsupported}} {
		if err := w.Grow(c.size); err == nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("growing to %d: %v", c.size, err)
		}
	}
	if err := w.Grow(w.Size()); err != nil || w.grown {
		t.Error(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Error(err)
	}
	w = growWriter(t, base(t, "csum"), 1<<20, Options{})
	w.Add(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Size: 2 << 20}, bytes.NewReader(content(1, 2<<20)))
	if err := w.Grow(1 << 30); !errors.Is(err, ErrNoSpace) {
		t.Errorf("growing when space has run out: %v", err)
	}
}

// TestGrowLimits meets the ends of what the format can number.
func TestGrowLimits(t *testing.T) {
	needTools(t, "mke2fs")
	for _, c := range []struct {
		name, size, args string
		most             int64 // size that is possible
		more             int64 // size that is not, 0: it is possible but stays unused
		says             string
	}{
		{"no-64bit", "300M", "-b 1024 -O ^64bit", (1<<32 - 1) * 1024, 1 << 42, "64bit"},
		{"no-extents", "300M", "-b 1024 -O ^64bit,^extents", (1<<32 - 1) * 1024, 1 << 42, "64bit"},
		{"inodes", "300M", "-b 1024 -i 1024 -I 128", 5 << 40, 0, "inodes"},
		{"memory", "300M", "-b 1024 -N 304", 8 << 40, 1 << 54, "memory"},
		{"blocks", "300M", "-b 1024 -N 304", 8 << 40, 1 << 60, "281474976710656"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, c.size, strings.Fields(c.args)...)
			dev, size := file(t, img)
			w := growWriter(t, readOnly{dev}, size, Options{CountOnly: true})
			if c.more > 0 {
				if err := w.Grow(c.more); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("growing to %d: %v", c.more, err)
				}
				if w.Size() != size || w.err != nil {
					t.Errorf("%d bytes, %v", w.Size(), w.err)
				}
			}
			if err := w.Grow(c.most); err != nil {
				t.Fatal(err)
			}
			if c.more == 0 {
				before := w.Size()
				if err := w.Grow(2 * c.most); err != nil || w.Size() != before || uint64(w.groups+1)*uint64(w.ipg) <= 1<<32-1 {
					t.Errorf("growing further: %d, then %d bytes, %d inodes: %v", before, w.Size(), w.inodes, err)
				}
			}
		})
	}
	// A need beyond the limit is a need like any other, with the reason.
	img := filepath.Join(workDir(t), "img")
	mkfs(t, img, "300M", "-b", "1024", "-O", "^64bit")
	dev, size := file(t, img)
	w := growWriter(t, readOnly{dev}, size, Options{CountOnly: true, Grow: func(need int64) (int64, error) {
		t.Errorf("asked for %d", need)
		return 0, nil
	}})
	if err := w.Grow((1<<32 - 1) * 1024); err != nil {
		t.Fatal(err)
	}
	if err := w.more(1<<33, false); err != nil || !w.short {
		t.Fatal(err)
	}
	var e *NoSpaceError
	if err := w.Commit(context.Background()); !errors.As(err, &e) || !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "64bit") {
		t.Error(err)
	}
}

// TestGrowCost holds what growth writes, and the memory that it takes, to their bounds.
func TestGrowCost(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	soak := os.Getenv("NODEBAKE_SOAK") != ""
	for _, c := range []struct {
		name, size, args string
		to               int64
		writes           int64 // bytes that may be written
		soak             bool
	}{
		{"20G", "3G", "", 20 << 30, 20 * mib, false},
		{"20G-1k", "3G", "-b 1024 -i 16384", 20 << 30, 20 * mib, false},
		{"2T", "3G", "", 2 << 40, 60 * mib, false},
		{"2T-inodes", "3G", "-i 4096", 2 << 40, 60 * mib, true},
		{"2T-no-flex_bg", "3G", "-O ^flex_bg", 2 << 40, 60 * mib, true},
		{"2T-1k", "3G", "-b 1024 -i 65536", 2 << 40, 600 * mib, true},
		{"2T-ext3", "3G", "-t ext3", 2 << 40, 400 * mib, true},
		{"2T-no-sparse_super", "3G", "-O ^sparse_super,^resize_inode -i 65536", 2 << 40, 120 * mib, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.soak && !soak {
				t.Skip("long: NODEBAKE_SOAK=1")
			}
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, c.size, strings.Fields(c.args)...)
			d, size := file(t, img)
			dev := &counting{File: d}
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			w := growWriter(t, dev, size, Options{})
			if err := d.Truncate(c.to); err != nil {
				t.Fatal(err)
			}
			for at := size; at < c.to; {
				at = min(c.to, at+max(1<<30, c.to/20))
				if err := w.Grow(at); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			took := time.Since(start)
			runtime.GC()
			runtime.ReadMemStats(&after)
			live := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / mib
			t.Logf("%v, %d KiB written, %d MiB of memory in use, %d MiB allocated in all", took, dev.n>>10, live, (after.TotalAlloc-before.TotalAlloc)/mib)
			if dev.n > c.writes {
				t.Errorf("%d bytes written", dev.n)
			}
			if live > 150 {
				t.Errorf("%d MiB in use", live)
			}
			if w.Size() != c.to {
				t.Errorf("%d bytes", w.Size())
			}
			fsck(t, img)
			_, unmount := mount(t, img, "ro")
			unmount()
		})
	}
}

// randomMkfs makes up options that mke2fs may or may not like.
func randomMkfs(r *rand.Rand) []string {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	features := []string{
		pick("flex_bg", "flex_bg", "^flex_bg"), pick("64bit", "^64bit"), pick("has_journal", "^has_journal"),
		pick("metadata_csum", "metadata_csum", "^metadata_csum,uninit_bg", "^metadata_csum,^uninit_bg"),
		pick("resize_inode", "resize_inode", "^resize_inode", "^resize_inode,meta_bg"),
		pick("sparse_super", "sparse_super", "^sparse_super", "sparse_super2"), pick("extent", "extent", "^extent"),
	}
	args := []string{
		"-O", strings.Join(features, ","), "-b", pick("1024", "2048", "4096"), "-I", pick("128", "256", "512"),
		"-i", pick("4096", "16384", "65536"), "-m", pick("0", "1", "5", "17"),
	}
	if features[0] == "flex_bg" {
		args = append(args, "-G", pick("1", "2", "4", "16", "64", "4096"))
	}
	if r.IntN(3) == 0 {
		args = append(args, "-g", pick("2048", "4096", "8192"))
	}
	if r.IntN(3) == 0 {
		args = append(args, "-E", "resize="+pick("300000", "600000", "2000000"))
	}
	return args
}

// TestGrowRandom makes random changes to random filesystems while these grow, in turns with the kernel and resize2fs.
// NODEBAKE_SEED repeats a run, NODEBAKE_SOAK=1 makes it long.
func TestGrowRandom(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "resize2fs", "mount", "umount")
	seed := testSeed(t)
	systems, rounds, ops := 6, 2, 60
	if os.Getenv("NODEBAKE_SOAK") != "" {
		systems, rounds, ops = 60, 3, 90
	}
	for i := range systems {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			img := filepath.Join(workDir(t), "img")
			var args []string
			for {
				args = randomMkfs(r)
				run(t, "rm", "-f", img)
				run(t, "truncate", "-s", fmt.Sprint(8*mib+r.Int64N(200*mib)), img)
				if exec.Command("mke2fs", append(append([]string{"-q", "-F", "-t", "ext4"}, args...), img)...).Run() == nil {
					break
				}
			}
			t.Logf("NODEBAKE_SEED=%d: mke2fs %s", seed, strings.Join(args, " "))
			for round := range rounds {
				dir, unmount := mount(t, img, "rw,noatime")
				kernelChanges(t, r, dir, fmt.Sprint("k", round), ops/2)
				unmount()
				dir, unmount = mount(t, img, "ro")
				want := kernelTree(t, dir)
				unmount()
				dev, size := file(t, img)
				if r.IntN(2) == 0 {
					junkBehind(t, dev, size, size+16*mib)
				}
				step := int64(1) << r.IntN(30)
				o := Options{Now: testNow.Add(time.Duration(round) * time.Hour)}
				o.Grow = func(need int64) (int64, error) {
					need += step
					return need, enlarge(dev, need)
				}
				w, err := OpenWriter(dev, size, o)
				if err != nil {
					t.Fatal(err)
				}
				a := &adder{t: t, w: w, want: want, now: w.now}
				for op := range ops {
					a.random(r, fmt.Sprintf("o%d-%d", round, op))
					switch r.IntN(12) {
					case 0:
						to := w.Size() + r.Int64N(1<<(10+r.IntN(20)))
						if err := enlarge(dev, to); err != nil {
							t.Fatal(err)
						}
						if err := w.Grow(to); err != nil {
							t.Fatal(err)
						}
					case 1:
						if n := min(w.left*w.bs, 60*mib); n > 0 {
							a.add(&tar.Header{Name: fmt.Sprintf("big%d-%d", round, op), Typeflag: tar.TypeReg, Mode: 0o600}, content(r.Uint64(), int(n)))
						}
					case 2:
						if w.leftIno < 500 {
							for k := range w.leftIno + 1 {
								a.add(&tar.Header{Name: fmt.Sprintf("ino%d-%d-%d", round, op, k), Typeflag: tar.TypeFifo, Mode: 0o600}, nil)
							}
						}
					}
				}
				if err := w.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				fsck(t, img)
				checkBackups(t, img, false)
				dir, unmount = mount(t, img, "ro")
				compare(t, fmt.Sprintf("round %d", round), kernelTree(t, dir), a.want)
				unmount()
				// resize2fs 1.47.0 frees one block too many where it moves the copy in the last group (sparse_super2).
				if r.IntN(2) == 0 && w.compat&compatSparseSuper2 == 0 {
					run(t, "truncate", "-s", fmt.Sprint(w.Size()+r.Int64N(500*mib)), img)
					run(t, "resize2fs", "-f", img)
					fsck(t, img)
				}
			}
		})
	}
}

// enlarge makes a file as long as need be.
func enlarge(f *os.File, size int64) error {
	st, err := f.Stat()
	if err != nil || st.Size() >= size {
		return err
	}
	return f.Truncate(size)
}

var (
	alike = regexp.MustCompile(`(?m)^(Filesystem features|Filesystem flags|Default mount options|Inode count|Block count|Reserved block count|First block|Block size|Group descriptor size|` +
		`Reserved GDT blocks|Blocks per group|Inodes per group|Inode blocks per group|Flex block group size|First inode|Inode size|First meta block group|Journal backup|Total journal size|` +
		`Group \d+: \(Blocks [\d-]+\)|  Backup superblock|  Reserved GDT|  Group descriptor).*\n`)
	groupFlags = regexp.MustCompile(`\) csum.*`)
)

// TestGrowAsResize2fs compares what dumpe2fs shows after growth here with what it shows after resize2fs.
func TestGrowAsResize2fs(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "resize2fs", "dumpe2fs")
	for _, args := range []string{"-b 4096", "-b 1024 -m 7", "-b 4096 -O ^flex_bg,^64bit,^metadata_csum", "-t ext3 -b 2048", "-b 1024 -O meta_bg,^resize_inode", "-b 1024 -O sparse_super2"} {
		for _, to := range []int64{303, 1500, 5000} {
			t.Run(fmt.Sprint(args, to), func(t *testing.T) {
				t.Parallel()
				img := filepath.Join(workDir(t), "img")
				mkfs(t, img, "300M", strings.Fields(args)...)
				run(t, "cp", "--sparse=always", img, img+".tool")
				run(t, "truncate", "-s", fmt.Sprint(to*mib), img, img+".tool")
				run(t, "resize2fs", img+".tool")
				dev, _ := file(t, img)
				w := growWriter(t, dev, to*mib, Options{})
				if err := w.Grow(to * mib); err != nil {
					t.Fatal(err)
				}
				if err := w.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				fsck(t, img)
				dump := func(img string) string {
					return groupFlags.ReplaceAllString(strings.Join(alike.FindAllString(run(t, "dumpe2fs", img), -1), ""), ")")
				}
				got, want := dump(img), dump(img+".tool")
				g, h := strings.Split(got, "\n"), strings.Split(want, "\n")
				for i := range max(len(g), len(h)) {
					if i >= len(g) || i >= len(h) || g[i] != h[i] {
						t.Fatalf("line %d: %q here, %q after resize2fs", i, g[min(i, len(g)-1)], h[min(i, len(h)-1)])
					}
				}
			})
		}
	}
}
