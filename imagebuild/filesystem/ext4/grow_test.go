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
}{
	{name: "small", size: "300M", to: []int64{301, 1100, 4000}},
	{name: "1G", size: "1G", to: []int64{3072, 3073, 20480}},
	{name: "tail", size: "1000M", args: "-m 3", to: []int64{1025, 1026, 1153}},
	{name: "2k", size: "64M", args: "-b 2048 -I 512", to: []int64{700, 1400}},
	{name: "64k", size: "512M", args: "-b 65536", to: []int64{600, 9000}},
	{name: "no-flex_bg", size: "300M", args: "-O ^flex_bg", to: []int64{500, 3000}},
	{name: "flex4", size: "300M", args: "-G 4 -b 4096", to: []int64{520, 700, 3000}},
	{name: "flex-huge", size: "64M", args: "-G 65536 -b 4096 -i 4096 -I 512", to: []int64{520, 9000}},
	{name: "no-csum", size: "300M", args: "-O ^metadata_csum -b 4096", to: []int64{500, 3000}},
	{name: "uninit_bg", size: "300M", args: "-O uninit_bg,^metadata_csum,^flex_bg", to: []int64{500, 3000}},
	{name: "no-uninit", size: "300M", args: "-O ^uninit_bg,^metadata_csum", to: []int64{500, 3000}},
	{name: "no-64bit", size: "300M", args: "-O ^64bit", to: []int64{500, 3000}},
	{name: "ext3", size: "300M", args: "-t ext3 -b 4096", to: []int64{500, 3000}},
	{name: "ext2", size: "300M", args: "-t ext2 -I 128", to: []int64{500, 3000}},
	{name: "no-sparse_super", size: "300M", args: "-O ^sparse_super,^resize_inode", to: []int64{500, 3000}},
	{name: "sparse_super2", size: "300M", args: "-O sparse_super2", to: []int64{500, 3000}},
	{name: "meta_bg", size: "300M", args: "-O meta_bg,^resize_inode", to: []int64{500, 3000}},
	{name: "no-resize_inode", size: "300M", args: "-O ^resize_inode", to: []int64{500, 3000}},
	{name: "few-reserved", size: "300M", args: "-b 1024 -E resize=600000", to: []int64{500, 900, 3000}},
	{name: "all-reserved", size: "300M", args: "-b 1024 -E resize=600000", to: []int64{640}},
	{name: "no-journal", size: "8M", args: "-O ^has_journal", to: []int64{9, 64, 300}},
	{name: "csum_seed", size: "64M", args: "-O metadata_csum_seed,orphan_file,inline_data", to: []int64{900}},
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
	if _, err := b.WriteAt(make([]byte, 4096), 1024); err != nil {
		t.Fatal(err)
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

func TestGrowForms(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "resize2fs", "mount", "umount")
	for _, f := range growForms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, f.size, strings.Fields(f.args)...)
			d, size := file(t, img)
			dev := &counting{File: d}
			w := growWriter(t, dev, size, Options{})
			for _, to := range f.to {
				size = to * mib
				if err := w.Grow(size); err != nil {
					t.Fatal(err)
				}
				if err := w.Add(&tar.Header{Name: fmt.Sprint("f", to), Typeflag: tar.TypeReg, Size: 100000}, bytes.NewReader(content(1, 100000))); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Truncate(img, size); err != nil {
				t.Fatal(err)
			}
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes written", dev.n)
			fsck(t, img)
			checkBackups(t, img, true)
		})
	}
}
