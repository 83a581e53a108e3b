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
	"time"
)

// cpio is an archive of one program, in the "newc" form that the kernel takes for an initrd
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(name string, program []byte) []byte {
	var b bytes.Buffer
	for _, e := range []struct {
		name    string
		mode    int
		content []byte
	}{{name, 0o100755, program}, {"TRAILER!!!", 0, nil}} {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, e.mode, 0, 0, 1, 0, len(e.content), 0, 0, 0, 0, len(e.name)+1, 0)
		b.WriteString(e.name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(e.content)
		b.Write(make([]byte, -b.Len()&3))
	}
	return b.Bytes()
}

// TestGrowInVM lets a kernel grow mounted filesystems that were grown, or made, by this package.
func TestGrowInVM(t *testing.T) {
	if os.Getenv("NODEBAKE_SOAK") == "" {
		t.Skip("long: NODEBAKE_SOAK=1")
	}
	needTools(t, "mke2fs", "e2fsck", "qemu-system-x86_64")
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	kernels, _ := filepath.Glob(filepath.Join(home, ".cache/nodebake-test/nodedisk-*/vmlinuz"))
	if len(kernels) == 0 {
		t.Skip("no kernel: run the tests of integration, which make one")
	}
	kernel := kernels[0]
	initrd, err := os.ReadFile(filepath.Join(filepath.Dir(kernel), "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	dir := workDir(t)
	run(t, "go", "build", "-o", filepath.Join(dir, "growvm"), "./testdata/growvm")
	program, err := os.ReadFile(filepath.Join(dir, "growvm"))
	if err != nil {
		t.Fatal(err)
	}
	// The kernel unpacks one archive after the other; they start at multiples of 4.
	initrd = append(append(initrd, make([]byte, -len(initrd)&3)...), cpio("growvm", program)...)
	if err := os.WriteFile(filepath.Join(dir, "initrd"), initrd, 0o644); err != nil {
		t.Fatal(err)
	}
	type disk struct {
		name, img string
		size      int64
		want      tree
	}
	var disks []disk
	add := func(name, img string, size, to int64) {
		t.Helper()
		dev, _ := file(t, img)
		w := growWriter(t, dev, size, Options{})
		a := &adder{t: t, w: w, want: ourTree(t, w), now: testNow}
		if err := enlarge(dev, to); err != nil {
			t.Fatal(err)
		}
		if err := w.Grow(to); err != nil {
			t.Fatal(err)
		}
		fill(a, 0)
		if err := w.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		to += to/2 + 300*mib
		if err := enlarge(dev, to); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, disk{name, img, to, a.want})
	}
	for _, f := range growForms {
		if !f.offlineOnly {
			img := filepath.Join(dir, f.name)
			mkfs(t, img, f.size, strings.Fields(f.args)...)
			_, size := file(t, img)
			add(f.name, img, size, f.to[len(f.to)-1]*mib)
		}
	}
	for _, size := range []int64{300 * mib, 2 << 30} {
		img := filepath.Join(dir, fmt.Sprint("format-", size))
		if err := os.WriteFile(img, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		dev, _ := file(t, img)
		if err := dev.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if err := Format(dev, size, formatOptions); err != nil {
			t.Fatal(err)
		}
		add(filepath.Base(img), img, size, size+512*mib)
	}
	args := []string{"-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot",
		"-rtc", "base=2024-01-01", // e2fsck dislikes a guest's clock that is ahead
		"-serial", "file:" + filepath.Join(dir, "serial"), "-kernel", kernel, "-initrd", filepath.Join(dir, "initrd"),
		"-append", fmt.Sprintf("console=ttyS0 mitigations=off rdinit=/growvm disks=%d", len(disks))}
	for i, d := range disks {
		args = append(args, "-drive", fmt.Sprintf("file=%s,if=none,id=d%d,format=raw,cache=unsafe", d.img, i), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", args...).CombinedOutput()
	serial, _ := os.ReadFile(filepath.Join(dir, "serial"))
	if err != nil || !bytes.Contains(serial, []byte("ALL GROWN")) {
		t.Fatalf("qemu: %v\n%s\n%s", err, out, serial)
	}
	for _, line := range strings.Split(string(serial), "\n") {
		if strings.Contains(line, "EXT4-fs error") || strings.Contains(line, "EXT4-fs warning") {
			t.Error(line)
		}
		if strings.Contains(line, "/dev/vd") {
			t.Log(strings.TrimSpace(line))
		}
	}
	for _, d := range disks {
		t.Run(d.name, func(t *testing.T) {
			fsck(t, d.img)
			dev, _ := file(t, d.img)
			f, err := Open(dev, d.size)
			if err != nil {
				t.Fatal(err)
			}
			got := ourTree(t, f)
			if n := got["later"]; n.Type != tar.TypeReg || n.Size != 20*mib {
				t.Errorf("the kernel's file: %v", n)
			}
			delete(got, "later")
			compare(t, "after the kernel grew it", got.without(noTimesOfFolders), d.want.without(noSame).without(noTimesOfFolders))
		})
	}
}
