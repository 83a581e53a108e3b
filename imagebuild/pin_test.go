package imagebuild

import (
	"archive/tar"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodebake/nodebake/imagebuild/customize"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

func conf(name, text string) storageconf.File {
	return storageconf.File{Name: name, Data: []byte(text)}
}

func TestPinnedImages(t *testing.T) {
	for _, c := range []struct {
		files    []storageconf.File
		patterns []string
		file     string
		fails    bool
	}{
		{nil, nil, "", false},
		{[]storageconf.File{conf("a", "[crio]\nroot = \"/x\"\n")}, nil, "", false},
		{[]storageconf.File{conf("a", "[crio.image]\npinned_images = [\"x\", \"y*\"]\n")}, []string{"x", "y*"}, "a", false},
		{[]storageconf.File{conf("a", "[crio.image]\npinned_images = [\"x\"]\n"), conf("b", "[CRIO.Image]\nPinned_Images = [\"z\"]\n"), conf("c", "")}, []string{"z"}, "b", false},
		{[]storageconf.File{conf("a", "[crio.image]\npinned_images = [\"x\"]\n"), conf("b", "[crio.image]\npinned_images = []\n")}, []string{}, "b", false},
		{[]storageconf.File{conf("a", "[crio.image]\npinned_images = \"x\"\n")}, nil, "", true},
		{[]storageconf.File{conf("a", "[crio.image]\npinned_images = [1]\n")}, nil, "", true},
		{[]storageconf.File{conf("a", "[crio")}, nil, "", true},
	} {
		patterns, file, err := PinnedImages(c.files)
		if !slices.Equal(patterns, c.patterns) || file != c.file || (err != nil) != c.fails {
			t.Errorf("%v: %q %q %v", c.files, patterns, file, err)
		}
	}
}

func TestPinned(t *testing.T) {
	const name = "registry.k8s.io/pause:3.10"
	for pattern, want := range map[string]bool{name: true, "Registry.k8s.io/Pause:3.10": true, "registry.k8s.io/*": true, "*pause*": true, "pause*": true,
		"registry.k8s.io/pause": false, "registry.k8s.io/pause:3.1": false, "*pause": false, "": false, "*": true, "**": true, "quay.io/*": false} {
		if Pinned([]string{"other", pattern}, name) != want {
			t.Errorf("%q: %v", pattern, !want)
		}
	}
}

// What a bake pins is read back by CRI-O's rules, in what the files had before.
func TestBakePins(t *testing.T) {
	const drop = "/etc/crio/crio.conf.d/10.conf"
	bakeWith := func(base string, spec Spec) (*Report, string, error) {
		spec.Base, spec.Images, spec.Pin = base, []string{hello}, true
		spec.Output = filepath.Join(t.TempDir(), "out")
		spec.OutputOptions.Format = disk.Raw
		r, err := Bake(context.Background(), spec)
		return r, spec.Output, err
	}
	writes := func(files ...string) customize.Spec {
		var s customize.Spec
		for i := 0; i < len(files); i += 2 {
			s.Writes = append(s.Writes, customize.Write{Dst: files[i], Text: files[i+1]})
		}
		return s
	}
	pinsOf := func(name string) ([]string, string) {
		o, err := OpenDisk(name, DiskOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer o.Close()
		tree, err := o.Config()
		if err != nil {
			t.Fatal(err)
		}
		patterns, file, err := PinnedImages(tree.CRIO)
		if err != nil {
			t.Fatal(err)
		}
		if h, err := o.Root.Tree.Stat(strings.TrimPrefix(pinFile, "/")); err == nil && (h.Typeflag != tar.TypeReg || h.Mode != 0o644) {
			t.Errorf("%+v", h)
		}
		return patterns, file
	}
	without := func() string {
		_, name, err := bakeWith(demo+"base.qcow2", Spec{})
		if err != nil {
			t.Fatal(err)
		}
		return name
	}()
	if patterns, file := pinsOf(without); len(patterns) > 0 || file != "" {
		t.Errorf("no CRI-O, and %q is pinned in %s", patterns, file)
	}
	// The files of CRI-O are there before the bake that pins.
	crio := func(files ...string) string {
		spec := Spec{Base: demo + "base.qcow2", Images: []string{hello}, Customize: writes(files...)}
		spec.Output = filepath.Join(t.TempDir(), "base")
		spec.OutputOptions.Format = disk.Raw
		if _, err := Bake(context.Background(), spec); err != nil {
			t.Fatal(err)
		}
		return spec.Output
	}
	const image = "example.org/hello:1"
	for _, c := range []struct {
		name string
		base string
		want []string
		file string
	}{
		{"a CRI-O that pins nothing", crio("/etc/crio/crio.conf", "[crio]\n"), []string{image}, pinFile},
		{"one that pins other images", crio(drop, "[crio.image]\npinned_images = [\"a/b:1\", \"c\\\\d*\"]\n"), []string{"a/b:1", `c\d*`, image}, pinFile},
		{"one that pins them already", crio(drop, "[crio.image]\npinned_images = [\"example.org/*\"]\n"), []string{"example.org/*"}, drop},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, name, err := bakeWith(c.base, Spec{})
			if err != nil {
				t.Fatal(err)
			}
			if patterns, file := pinsOf(name); !slices.Equal(patterns, c.want) || file != c.file {
				t.Errorf("%q in %s, want %q in %s", patterns, file, c.want, c.file)
			}
			if said := slices.ContainsFunc(r.Changed, func(f FileReport) bool { return f.Path == pinFile }); said != (c.file == pinFile) {
				t.Errorf("changed %v", r.Changed)
			}
			again, name, err := bakeWith(name, Spec{})
			if err != nil || len(again.Changed) > 0 {
				t.Errorf("a second bake changes %v, %v", again.Changed, err)
			}
			if patterns, _ := pinsOf(name); !slices.Equal(patterns, c.want) {
				t.Errorf("a second bake: %q", patterns)
			}
		})
	}
	for _, c := range []struct {
		name, base string
		spec       Spec
	}{
		{"a later file sets the key", crio("/etc/crio/crio.conf.d/zz.conf", "[crio.image]\npinned_images = [\"x\"]\n"), Spec{}},
		{"the user writes the file", crio("/etc/crio/crio.conf", ""), Spec{Customize: writes(pinFile, "x")}},
	} {
		if _, name, err := bakeWith(c.base, c.spec); !errors.Is(err, ErrUsage) {
			t.Errorf("%s: %v", c.name, err)
		} else if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s: there is an output", c.name)
		}
	}
}

func FuzzPins(f *testing.F) {
	f.Add([]byte("[crio.image]\npinned_images = [\"x\", \"y*\"]\n"), "registry.k8s.io/pause:3.10")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		patterns, _, err := PinnedImages([]storageconf.File{{Name: "x", Data: text}})
		if err != nil {
			return
		}
		Pinned(patterns, name)
		// What is written is read back as it was.
		var doc map[string]any
		out := pinConf(patterns)
		if err := toml.Unmarshal(out, &doc); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
		back, _, err := PinnedImages([]storageconf.File{{Name: "x", Data: out}})
		if len(out) <= maxPinConf && (err != nil || !slices.Equal(back, patterns) && len(patterns) > 0) {
			t.Errorf("%q came back as %q, %v", patterns, back, err)
		}
	})
}
