package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var formatOptions = FormatOptions{
	UUID: [16]byte{0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 1, 2, 3, 4, 5, 6, 7}, Label: "store", Now: time.Unix(1700000000, 0),
}

// dirtyDevice is an image with something in the places that Format uses but need not write.
func dirtyDevice(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(workDir(t), "img"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	junk := bytes.Repeat([]byte("\xde\xad\xbe\xef\x53\xef\x01\x02"), 1<<17)
	for at := int64(0); at < min(size, 133*mib); at += int64(len(junk)) {
		if at > 40*mib && at < 127*mib {
			continue
		}
		if _, err := f.WriteAt(junk[:min(int64(len(junk)), size-at)], at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt(junk[:mib/2], max(0, size-mib/2)); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFormat(t *testing.T) {
	needTools(t, "e2fsck", "mount", "umount", "resize2fs", "blkid")
	for _, c := range []struct {
		size  int64
		files int
		to    int64 // growth while it is filled
	}{
		{400 << 10, 10, 0},
		{mib, 20, 0},
		{7*mib + 512, 300, 0},
		{8 * mib, 300, 70 * mib},
		{64 * mib, 3000, 0},
		{128 * mib, 3000, 1300 * mib},
		{129 * mib, 3000, 0},
		{300*mib + 12345, 3000, 2000 * mib},
		{3 << 30, 3000, 20 << 30},
		{2 << 40, 3000, 0},
	} {
		t.Run(fmt.Sprint(c.size), func(t *testing.T) {
			t.Parallel()
			f := dirtyDevice(t, c.size)
			dev := &counting{File: f}
			if err := Format(dev, c.size, formatOptions); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d bytes written", dev.n)
			fsck(t, f.Name())
			checkBackups(t, f.Name(), c.size < 4<<30)
			head := make([]byte, superOffset)
			if _, err := f.ReadAt(head, 0); err != nil || !bytes.Equal(head, make([]byte, superOffset)) {
				t.Fatalf("the boot block is not empty (%v)", err)
			}
			if id := run(t, "blkid", "-p", f.Name()); !strings.Contains(id, `LABEL="store" UUID="12345678-9abc-4def-8101-020304050607"`) || !strings.Contains(id, `TYPE="ext4"`) {
				t.Fatalf("blkid says %s", id)
			}
			w := growWriter(t, dev, c.size, Options{})
			if c.to > 0 {
				if err := f.Truncate(c.to); err != nil {
					t.Fatal(err)
				}
				if err := w.Grow(c.to); err != nil {
					t.Fatal(err)
				}
			}
			a := &adder{t: t, w: w, want: ourTree(t, w), now: testNow}
			if got := slices.Sorted(func(yield func(string) bool) {
				for k := range a.want {
					if !yield(k) {
						return
					}
				}
			}); !slices.Equal(got, []string{"", "lost+found"}) {
				t.Fatalf("it begins with %q", got)
			}
			a.add(&tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755}, nil)
			for i := range c.files {
				a.add(&tar.Header{Name: fmt.Sprintf("d/file%d", i), Typeflag: tar.TypeReg, Mode: 0o644}, content(uint64(i), i))
			}
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			fsck(t, f.Name())
			dir, unmount := mount(t, f.Name(), "ro")
			compare(t, "the kernel reading it", kernelTree(t, dir), a.want)
			unmount()
		})
	}
}

func TestFormatRefuses(t *testing.T) {
	for _, c := range []struct {
		size   int64
		change func(*FormatOptions)
		is     error
	}{
		{1 << 30, func(o *FormatOptions) { o.UUID = [16]byte{} }, fs.ErrInvalid},
		{1 << 30, func(o *FormatOptions) { o.Label = "seventeen letters" }, fs.ErrInvalid},
		{1 << 30, func(o *FormatOptions) { o.BytesPerInode = -1 }, fs.ErrInvalid},
		{16 << 40, func(*FormatOptions) {}, ErrUnsupported},
		{0, func(*FormatOptions) {}, ErrNoSpace},
		{4096, func(*FormatOptions) {}, ErrNoSpace},
		{200 << 10, func(*FormatOptions) {}, ErrNoSpace},
	} {
		o := formatOptions
		c.change(&o)
		if err := Format(memory(make([]byte, 1<<20)), c.size, o); !errors.Is(err, c.is) {
			t.Errorf("%d bytes: %v, want %v", c.size, err, c.is)
		}
	}
}

// TestFormatDeterministic formats devices with different old content.
func TestFormatDeterministic(t *testing.T) {
	a, b := memory(make([]byte, 9*mib)), memory(bytes.Repeat([]byte{0xA5}, 9*mib))
	for _, m := range []memory{a, b} {
		if err := Format(m, int64(len(m)), formatOptions); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Open(a, int64(len(a)))
	if err != nil {
		t.Fatal(err)
	}
	// Free blocks and the unused part of the inode table keep what they had.
	bm := make([]byte, f.bs)
	if err := f.readBlockBitmap(0, bm); err != nil {
		t.Fatal(err)
	}
	table := f.blocksAt(0, gdInodeTableLo, gdInodeTableHi, f.itableBlocks())
	for i := range f.blocks {
		if !testBit(bm, i) || i >= table.at+16 && i < table.end {
			continue
		}
		if at := i * f.bs; !bytes.Equal(a[at:at+f.bs], b[at:at+f.bs]) {
			for k := range f.bs {
				if a[at+k] != b[at+k] {
					t.Fatalf("block %d, byte %d: %#x and %#x", i, k, a[at+k], b[at+k])
				}
			}
		}
	}
}
