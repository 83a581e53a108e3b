package ext4

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// checkAll is what Check finds; a filesystem that cannot be opened has that as its fault.
func checkAll(t testing.TB, img string) []string {
	t.Helper()
	dev, size := file(t, img)
	r, err := Open(dev, size)
	if err != nil {
		return []string{err.Error()}
	}
	return faultsOf(t, r)
}

func faultsOf(t testing.TB, r *FS) []string {
	t.Helper()
	var said []string
	err := r.Check(context.Background(), func(err error) {
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%v is no ErrCorrupt", err)
		}
		if len(said) < 1000 {
			said = append(said, err.Error())
		}
	})
	if errors.Is(err, ErrUnsupported) {
		return append(said, err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func checkClean(t testing.TB, img string) {
	t.Helper()
	if said := checkAll(t, img); len(said) > 0 {
		t.Fatalf("Check: %d faults\n%s", len(said), strings.Join(said[:min(len(said), 20)], "\n"))
	}
}

// aged makes a filesystem of a form of the matrix, lets the kernel fill it, and our writer after it.
func aged(t testing.TB, f form, ours bool) string {
	t.Helper()
	img := filepath.Join(workDir(t), "img")
	mkfs(t, img, f.size, strings.Fields(f.args)...)
	if f.tune != "" {
		script := filepath.Join(filepath.Dir(img), "tune")
		if err := os.WriteFile(script, []byte(f.tune), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "debugfs", "-w", "-f", script, img)
	}
	if !f.bare {
		dir, unmount := mount(t, img, "rw")
		age(t, dir, f)
		unmount()
	}
	if ours {
		dev, size := file(t, img)
		w, err := OpenWriter(dev, size, Options{Now: testNow})
		if err != nil {
			t.Fatal(err)
		}
		addTree(&adder{t: t, w: w, want: tree{}, now: testNow}, f)
		if err := w.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// TestCheckMatrix wants nothing found where e2fsck finds nothing: new, filled by the kernel, and changed by us.
func TestCheckMatrix(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			img := filepath.Join(workDir(t), "new")
			mkfs(t, img, f.size, strings.Fields(f.args)...)
			fsck(t, img)
			checkClean(t, img)
			os.Remove(img)
			img = aged(t, f, false)
			fsck(t, img)
			checkClean(t, img)
			os.Remove(img)
			img = aged(t, f, true)
			fsck(t, img)
			checkClean(t, img)
		})
	}
}

// FuzzCheck changes bytes of a filesystem, each named by three bytes of offset and given in the fourth, and wants Check
// to end.
func FuzzCheck(f *testing.F) {
	images := []memory{populated(f, "plain"), populated(f, "indirect")}
	_, dir := inodeOffset(f, images[0], "dir")
	off, _ := inodeOffset(f, images[0], "dir")
	f.Add(false, []byte{})
	f.Add(true, []byte{0, 4, 12, 1})
	size := int(off) + inSizeHi // a folder of many blocks
	f.Add(false, []byte{byte(size), byte(size >> 8), byte(size >> 16), 0x7f})
	flags := int(off) + inFlags + 1 // a hash tree where there is none
	f.Add(false, []byte{byte(flags), byte(flags >> 8), byte(flags >> 16), dir[inFlags+1] ^ 0x10})
	f.Fuzz(func(t *testing.T, indirect bool, edits []byte) {
		m := images[0]
		if indirect {
			m = images[1]
		}
		m = bytes.Clone(m)
		for ; len(edits) >= 4; edits = edits[4:] {
			if at := int(edits[0]) | int(edits[1])<<8 | int(edits[2])<<16; at < len(m) {
				m[at] = edits[3]
			}
		}
		r, err := Open(m, int64(len(m)))
		if err != nil {
			return
		}
		r.Check(context.Background(), func(error) {})
	})
}
