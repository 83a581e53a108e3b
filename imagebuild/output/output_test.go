package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/qcow"
)

const (
	testSize  = 32 << 20
	grownSize = testSize + 3<<20 + 512
)

// tool runs a real program that the test is about; without it the test fails in CI and is skipped elsewhere.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// rawDisk is a sparse disk with an ext4 filesystem and some data beyond it.
func rawDisk(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "base.raw")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	tool(t, "mkfs.ext4", "-q", "-F", name, "16M")
	r := rand.NewChaCha8([32]byte{1})
	b := make([]byte, 300_000)
	r.Read(b)
	if _, err := f.WriteAt(b, 20<<20+777); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCreate(t *testing.T) {
	for _, base := range []struct {
		name string
		args []string // of qemu-img, from base.raw; nil is base.raw itself
	}{
		{"base.raw", nil},
		{"plain.qcow2", []string{"convert", "-O", "qcow2", "base.raw", "plain.qcow2"}},
		{"zstd.qcow2", []string{"convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "base.raw", "zstd.qcow2"}},
		{"small.qcow2", []string{"convert", "-O", "qcow2", "-o", "cluster_size=4096", "base.raw", "small.qcow2"}},
		{"v2.qcow2", []string{"convert", "-O", "qcow2", "-o", "compat=0.10", "base.raw", "v2.qcow2"}},
		{"overlay.qcow2", []string{"create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "overlay.qcow2"}},
		{"far.qcow2", []string{"create", "-q", "-f", "qcow2", "-b", "far/base", "-F", "qcow2", "far.qcow2"}},
	} {
		for _, o := range []Options{
			{Format: disk.Raw}, {Format: disk.Qcow2}, {Format: disk.Qcow2, Overlay: true}, {Format: disk.Qcow2, Compression: "zlib"},
			{Format: disk.Qcow2, Compression: "zstd", Level: 9}, {Format: disk.Qcow2, ClusterSize: 4096}, {Format: disk.Qcow2, Overlay: true, ClusterSize: 2 << 20},
		} {
			t.Run(fmt.Sprintf("%s to %+v", base.name, o), func(t *testing.T) {
				format := o.Format
				dir := t.TempDir()
				rawDisk(t, dir)
				if base.name == "far.qcow2" {
					// A chain whose names count from other folders, and one of which is the stage's.
					tool(t, "sh", "-c", "mkdir $0/far && cd $0/far && qemu-img create -q -f qcow2 -b ../base.raw -F raw base", dir)
				}
				if base.args != nil {
					tool(t, "sh", append([]string{"-c", "cd " + dir + " && exec qemu-img \"$@\"", "sh"}, base.args...)...)
				}
				d, err := disk.Open(filepath.Join(dir, base.name), disk.Options{AllowBacking: base.name == "far.qcow2"})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				out := filepath.Join(dir, "out")
				ctx := context.Background()
				target, err := Create(ctx, d, out, o)
				if err != nil {
					t.Fatal(err)
				}
				defer target.Abort()
				if _, err := os.Stat(out); err == nil {
					t.Error("the output is there before it is finished")
				}
				change := bytes.Repeat([]byte("changed "), 1000)
				write := func(target *Target) {
					if got := target.Size(); got != testSize {
						t.Errorf("size %d, want %d", got, testSize)
					}
					if _, err := target.WriteAt(change, 24<<20+5); err != nil {
						t.Fatal(err)
					}
					if _, err := target.WriteAt(change, testSize-10); err == nil {
						t.Error("a write past the end is taken")
					}
					if err := target.Grow(grownSize); err != nil || target.Size() != grownSize {
						t.Fatalf("growing gives %d bytes, %v", target.Size(), err)
					}
					if err := target.Grow(testSize); err == nil {
						t.Error("the disk shrinks")
					}
					for _, off := range []int64{testSize - 10, grownSize - int64(len(change))} {
						if _, err := target.WriteAt(change, off); err != nil {
							t.Fatal(err)
						}
					}
				}
				write(target)
				back := make([]byte, len(change))
				if _, err := target.ReadAt(back, 24<<20+5); err != nil || !bytes.Equal(back, change) {
					t.Errorf("reading back: %v", err)
				}
				if err := target.Finish(ctx, func(file *qcow.Image) error {
					if _, err := os.Stat(out); err == nil {
						t.Error("the output has its name before it is finished")
					}
					return save(file, out+".seen")
				}); err != nil {
					t.Fatal(err)
				}
				tool(t, "cmp", out, out+".seen")
				want := filepath.Join(dir, "want.raw")
				tool(t, "cp", "--sparse=always", filepath.Join(dir, "base.raw"), want)
				f, err := os.OpenFile(want, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Truncate(grownSize); err != nil {
					t.Fatal(err)
				}
				for _, off := range []int64{24<<20 + 5, testSize - 10, grownSize - int64(len(change))} {
					if _, err := f.WriteAt(change, off); err != nil {
						t.Fatal(err)
					}
				}
				f.Close()
				tool(t, "qemu-img", "compare", "-f", "raw", "-F", string(format), want, out)
				if format == disk.Qcow2 {
					if s := tool(t, "qemu-img", "check", "-f", "qcow2", out); !strings.Contains(s, "No errors") {
						t.Error(s)
					}
					info := tool(t, "qemu-img", "info", out)
					for _, want := range []struct {
						is   bool
						text string
					}{{o.Overlay, "backing file: " + base.name}, {o.Compression != "", "compression type: " + o.Compression},
						{o.ClusterSize != 0, fmt.Sprintf("cluster_size: %d", o.ClusterSize)}} {
						if want.is && !strings.Contains(info, want.text) {
							t.Errorf("no %q in\n%s", want.text, info)
						}
					}
				}
				if st, err := os.Stat(out); err != nil || st.Mode().Perm()&0o400 == 0 {
					t.Errorf("%v, %v", st, err)
				}
				if o.Overlay {
					return
				}
				unnamed, err := CreateUnnamed(ctx, d, dir, o)
				if err != nil {
					t.Fatal(err)
				}
				defer unnamed.Abort()
				write(unnamed)
				if err := unnamed.Deliver(ctx, func(disk *qcow.Image) error { return save(disk, out+".delivered") }); err != nil {
					t.Fatal(err)
				}
				tool(t, "cmp", out, out+".delivered")
			})
		}
	}
}

// save copies what an output hands on.
func save(src *qcow.Image, name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return errors.Join(f.Truncate(src.Size()), qcow.Copy(context.Background(), f, src, qcow.CopyOptions{}))
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	d, err := disk.Open(rawDisk(t, dir), disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	elsewhere := filepath.Join(t.TempDir(), "out")
	for _, c := range []struct {
		path string
		o    Options
		want string
	}{
		{"", Options{Format: disk.Raw, Compression: "zstd"}, "no compression"},
		{"", Options{Format: disk.Raw, Overlay: true}, "no backing file"},
		{"", Options{Format: disk.Raw, ClusterSize: 4096}, "no clusters"},
		{"", Options{Format: disk.Qcow2, Overlay: true, Compression: "zlib"}, "one of the two"},
		{"", Options{Format: disk.Qcow2, ClusterSize: 3000}, "power of two"},
		{"", Options{Format: disk.Qcow2, ClusterSize: 4 << 20}, "power of two"},
		{elsewhere, Options{Format: disk.Qcow2, Overlay: true}, "folder of its base"},
	} {
		if c.path == "" {
			c.path = filepath.Join(dir, "out")
		}
		if err := Check(d, c.path, c.o); !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one with %q", c.o, err, c.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	name := rawDisk(t, dir)
	d, err := disk.Open(name, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	link, hard := filepath.Join(dir, "link"), filepath.Join(dir, "hard")
	if err := errors.Join(os.Symlink("base.raw", link), os.Link(name, hard)); err != nil {
		t.Fatal(err)
	}
	other, dangling := filepath.Join(dir, "other"), filepath.Join(dir, "dangling")
	if err := os.Symlink("nowhere", dangling); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path  string
		force bool
		want  error
	}{
		{name, true, ErrIsBase}, {link, true, ErrIsBase}, {hard, true, ErrIsBase}, {other, false, ErrExists},
		{other, true, nil}, {filepath.Join(dir, "new"), false, nil},
		{dangling, false, ErrExists}, {dangling, true, nil},
	} {
		if err := Check(d, c.path, Options{Force: c.force}); !errors.Is(err, c.want) {
			t.Errorf("Check(%s, %v) = %v, want %v", c.path, c.force, err, c.want)
		}
	}
	for _, bad := range []string{filepath.Join(dir, "none", "x"), filepath.Join(name, "x"), dir, "/dev/null"} {
		if err := Check(d, bad, Options{Force: true}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}

	target, err := Create(ctx, d, other, Options{Format: disk.Raw, Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(other); string(b) != "old" {
		t.Error("the old output is gone before the new one is whole")
	}
	if err := target.Finish(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(other); err != nil || st.Size() != testSize {
		t.Errorf("%v, %v", st, err)
	}

	late := filepath.Join(dir, "late")
	if target, err = Create(ctx, d, late, Options{Format: disk.Raw, Force: false}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(late, []byte("somebody else's"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := target.Finish(ctx, nil); !errors.Is(err, ErrExists) {
		t.Errorf("finishing over a file that came meanwhile: %v", err)
	}
	if b, _ := os.ReadFile(late); string(b) != "somebody else's" {
		t.Error("a file that came meanwhile is gone")
	}

	for _, end := range []func(*Target){(*Target).Abort, func(t *Target) {
		stopped, cancel := context.WithCancel(ctx)
		cancel()
		t.Finish(stopped, nil)
	}} {
		if target, err = Create(ctx, d, filepath.Join(dir, "never"), Options{Format: disk.Qcow2, Force: false}); err != nil {
			t.Fatal(err)
		}
		end(target)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 6 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// A staged output reads its base until the very end, so that is when the base must still be as it was.
func TestBaseChanges(t *testing.T) {
	for _, o := range []Options{{Format: disk.Raw}, {Format: disk.Qcow2, Compression: "zstd"}, {Format: disk.Qcow2, Overlay: true}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			dir := t.TempDir()
			name := rawDisk(t, dir)
			d, err := disk.Open(name, disk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			out := filepath.Join(dir, "out")
			target, err := Create(context.Background(), d, out, o)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if err := target.Finish(context.Background(), nil); !errors.Is(err, disk.ErrChanged) {
				t.Errorf("error %v, want %v", err, disk.ErrChanged)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
				t.Errorf("left behind: %v, %v", entries, err)
			}
		})
	}
}

func diskUse(t *testing.T, name string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.Fields(tool(t, "du", "-k", name))[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCopyKeepsHoles(t *testing.T) {
	dir := t.TempDir()
	src, err := os.Open(rawDisk(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := copyFile(context.Background(), dst, src); err != nil {
		t.Fatal(err)
	}
	tool(t, "cmp", src.Name(), dst.Name())
	plain, err := os.Create(filepath.Join(dir, "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := errors.Join(plain.Truncate(testSize), copyData(context.Background(), plain, src, 0, testSize)); err != nil {
		t.Fatal(err)
	}
	tool(t, "cmp", src.Name(), plain.Name())
	if a, b := diskUse(t, src.Name()), diskUse(t, plain.Name()); b > a+512 {
		t.Errorf("the plain copy takes %d KiB, the source %d", b, a)
	}
	if a, b := diskUse(t, src.Name()), diskUse(t, dst.Name()); b > a+64 {
		t.Errorf("the copy takes %d KiB, the source %d", b, a)
	}
}
