package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

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
