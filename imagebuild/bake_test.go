package imagebuild

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/output"
)

const (
	demo  = "../examples/demo/"
	hello = "oci-archive:" + demo + "hello.oci.tar"
)

// Bakes of the demo's disks, told apart by what they ask for.
func TestBake(t *testing.T) {
	epoch := time.Unix(1_700_000_000, 0).UTC()
	for _, c := range []struct {
		name   string
		spec   Spec
		images int
		check  func(*testing.T, *Report, *Opened)
	}{
		{"ext4", Spec{Base: demo + "base.qcow2", Images: []string{hello}}, 1, func(t *testing.T, r *Report, o *Opened) {
			if want := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC); !r.Epoch.Equal(want) {
				t.Errorf("epoch %v, want the image's creation %v", r.Epoch, want)
			}
			if len(r.Changed) != 1 || r.Changed[0].Path != "/etc/containers/storage.conf" {
				t.Errorf("changed %v", r.Changed)
			}
		}},
		{"ext4 to raw, another store, twice the image", Spec{Base: demo + "base.qcow2", Images: []string{hello, hello}, Delivery: Delivery{OutputOptions: output.Options{Format: disk.Raw}}, Store: "/srv/store", Epoch: &epoch}, 1,
			func(t *testing.T, r *Report, o *Opened) {
				h, err := o.Root.Tree.Stat("srv/store/overlay-images/images.json")
				if err != nil || !h.ModTime.Equal(epoch) || !h.ChangeTime.Equal(epoch) {
					t.Errorf("times of images.json: %v, %v; want %v", h, err, epoch)
				}
				if r.Images[0].Unchanged || !r.Images[1].Unchanged || r.NewLayers != 2 {
					t.Errorf("%+v", r.Images)
				}
			}},
		{"ostree on XFS", Spec{Base: demo + "ostree.qcow2", Images: []string{hello}}, 1, func(t *testing.T, r *Report, o *Opened) {
			if at, err := o.Path("/var/images"); err != nil || at != "ostree/deploy/demo/var/images" {
				t.Errorf("the store is at %s, %v", at, err)
			}
			b, err := o.system().ReadFile("/etc/containers/storage.conf")
			if err != nil || !bytes.Contains(b, []byte("\"/var/images\",\n\"/usr/ock/containers\"")) {
				t.Errorf("storage.conf: %v\n%s", err, b)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Output = filepath.Join(t.TempDir(), "out")
			r, err := Bake(context.Background(), c.spec)
			if err != nil {
				t.Fatal(err)
			}
			o, err := OpenDisk(c.spec.Output, DiskOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			images, err := Images(o)
			if err != nil || len(images) != c.images || images[0].Repository != "example.org/hello" {
				t.Errorf("images %+v, %v", images, err)
			}
			c.check(t, r, o)
		})
	}
}

func TestBakeRefuses(t *testing.T) {
	dir := t.TempDir()
	small := filepath.Join(dir, "small")
	if err := os.WriteFile(small, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		spec Spec
		want string
		is   func(error) bool
	}{
		{"no image", Spec{Base: demo + "base.qcow2"}, "no image is named", func(err error) bool { return errors.Is(err, ErrUsage) }},
		{"no disk", Spec{Base: small, Images: []string{hello}}, "neither a GPT", IsUnsupported},
		{"a store below an ostree deployment's usr", Spec{Base: demo + "ostree.qcow2", Images: []string{hello}, Store: "/usr/share/images"}, "ostree", nil},
		{"a store in memory", Spec{Base: demo + "base.qcow2", Images: []string{hello}, Store: "/run/images"}, "each boot", nil},
		{"a store in the graphroot", Spec{Base: demo + "base.qcow2", Images: []string{hello}, Store: "/var/lib/containers/storage/x"}, "graphroot", nil},
		{"an image for another machine", Spec{Base: demo + "base.qcow2", Images: []string{hello}, Platform: "linux/s390x"}, "linux/amd64", nil},
		{"no such image", Spec{Base: demo + "base.qcow2", Images: []string{"oci-archive:" + small}}, "small", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.Output = filepath.Join(dir, "out")
			_, err := Bake(context.Background(), c.spec)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !c.is(err) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if _, err := os.Lstat(c.spec.Output); err == nil {
				t.Error("there is an output")
			}
		})
	}
}

func TestCleanStore(t *testing.T) {
	for in, want := range map[string]string{
		"": DefaultStore, "/var/images": "/var/images", "/var/images/": "/var/images", "/srv/a b": "/srv/a b",
		"var/images": "", "/": "", "/images": "", "/var/../images": "", "/var//images": "", "/var/./images": "", "/var/\"x": "", "/var/x\ny": "",
	} {
		got, err := cleanStore(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("cleanStore(%q) = %q, %v; want %q", in, got, err, want)
		}
		if err != nil && !errors.Is(err, ErrUsage) {
			t.Errorf("%v is no ErrUsage", err)
		}
	}
}

func TestFormatOf(t *testing.T) {
	for name, want := range map[string]disk.Format{"a.raw": disk.Raw, "a.IMG": disk.Raw, "a.qcow2": disk.Qcow2, "a": disk.Qcow2, "raw/a": disk.Qcow2} {
		if got := FormatOf(name); got != want {
			t.Errorf("FormatOf(%q) = %s", name, got)
		}
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{"": 10 << 30, "auto": 10 << 30, "20G": 20 << 30, "+2G": 12 << 30, "+0": 10 << 30, "10G": 10 << 30,
		"10737418241": 10<<30 + 512, "9G": -1, "0": -1, "-1": -1, "+-1": -1, "+": -1, "much": -1, "8388607T": -1, "+8388607T": -1} {
		s, err := ParseSize(text)
		var got int64
		if err == nil {
			got, err = s.of(10<<30, 512)
		}
		if want < 0 && !errors.Is(err, ErrUsage) || want >= 0 && (err != nil || got != want) {
			t.Errorf("--size %q gives %d, %v; want %d", text, got, err, want)
		}
	}
}

// A dry run's disk reads as the base with what was written, also beyond the base's end.
func TestScratch(t *testing.T) {
	const base, size = 3*scratchPage + 100, 8 * scratchPage
	want := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{7})
	rnd.Read(want[:base])
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, want[:base], 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := disk.OpenImage(name, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := newScratch(d)
	if _, err := s.WriteAt(make([]byte, 2), base-1); err == nil {
		t.Error("a write past the end is taken")
	}
	if err := s.Grow(size); err != nil || s.Size() != size {
		t.Fatalf("grown to %d, %v", s.Size(), err)
	}
	r := rand.New(rnd)
	for range 200 {
		off := r.IntN(size)
		b := make([]byte, r.IntN(min(size-off, 2*scratchPage+1)+1))
		if r.IntN(2) == 0 {
			rnd.Read(b)
			copy(want[off:], b)
			if n, err := s.WriteAt(b, int64(off)); n != len(b) || err != nil {
				t.Fatal(n, err)
			}
		} else if n, err := s.ReadAt(b, int64(off)); n != len(b) || err != nil || !bytes.Equal(b, want[off:off+len(b)]) {
			t.Fatalf("%d bytes at %d: %d, %v, or other bytes", len(b), off, n, err)
		}
	}
	if n, err := s.ReadAt(make([]byte, 10), size-5); n != 5 || err != io.EOF {
		t.Errorf("reading past the end: %d, %v", n, err)
	}
}

func TestLabelKeepsItsOwn(t *testing.T) {
	l := labelled{Tree: filesystem.NewTree()}
	h := &tar.Header{Name: "x", Typeflag: tar.TypeReg}
	if l.label(h) != h {
		t.Error("a disk without a policy gets labels")
	}
}
