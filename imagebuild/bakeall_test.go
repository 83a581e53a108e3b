package imagebuild

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func jobs(t *testing.T, specs ...Spec) []Job {
	t.Helper()
	var all []Job
	for n, s := range specs {
		all = append(all, Job{Name: string(rune('a' + n)), Spec: s})
	}
	return all
}

func image(base, output string, images ...string) Spec {
	return Spec{Base: base, Images: images, Delivery: Delivery{Output: output}}
}

// TestCheckPlaces tells places apart by what they are and not by how they are written.
func TestCheckPlaces(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"real", "other"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"real/o", "link/o", true}, {"real/o", "real/../real/o", true}, {"real/o", "other/o", false}, {"real/o.raw", "real/o.qcow2", false},
		{"oci:real/o:x", "oci:link/o:x", true}, {"oci:real/o:x", "oci:link/o:y", false}, {"oci-archive:real/o:x", "oci-archive:link/o:y", true}, {"real/o", "oci-archive:link/o", true},
		{"docker://r/a", "docker://r/a:latest", true}, {"docker://r/a:1", "docker://r/a:2", false},
	} {
		at := func(s string) string {
			kind, path, ok := strings.Cut(s, ":")
			switch {
			case !ok:
				return filepath.Join(dir, s)
			case kind == "docker":
				return s
			}
			return kind + ":" + filepath.Join(dir, path)
		}
		faults := Check(jobs(t, image("base", at(c.a), "x"), image("base", at(c.b), "x")), "")
		if (len(faults) > 0) != c.same {
			t.Errorf("%s and %s: %v", c.a, c.b, faults)
		}
		for _, f := range faults {
			if f.Job != 1 || !errors.Is(f.Err, ErrUsage) {
				t.Errorf("%+v", f)
			}
		}
	}
}

func TestSharedCache(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", "")
	remote := image("base", filepath.Join(dir, "o"), "r.example/x:1")
	local, cached, offline, locked := remote, remote, remote, remote
	local.Images = []string{"oci:x", "containers-storage:y"}
	cached.Cache = "c"
	offline.Offline = true
	locked.Images, locked.Locked = nil, true
	for _, c := range []struct {
		name  string
		specs []Spec
		made  bool
	}{
		{"two of registries", []Spec{remote, remote}, true}, {"one of a registry", []Spec{remote, local}, false}, {"none", []Spec{local, local}, false},
		{"one has its own", []Spec{remote, cached}, false}, {"one more has none", []Spec{cached, remote, remote}, true}, {"one may not ask", []Spec{offline, remote}, false},
		{"by a lock", []Spec{locked, locked}, true},
	} {
		cache, err := sharedCache(jobs(t, c.specs...))
		if err != nil || (cache != "") != c.made || c.made && filepath.Dir(cache) != dir {
			t.Errorf("%s: %q, %v", c.name, cache, err)
		}
	}
	t.Setenv("TMPDIR", t.TempDir())
	if cache, err := sharedCache(jobs(t, remote, remote)); err != nil || filepath.Dir(cache) != os.Getenv("TMPDIR") {
		t.Errorf("%q, %v", cache, err)
	}
	t.Setenv("TMPDIR", filepath.Join(dir, "none"))
	if _, err := sharedCache(jobs(t, remote, remote)); err == nil {
		t.Error("a cache in no folder")
	}
}

// TestBakeAllPrepares finds what is wrong with any disk before the first is begun.
func TestBakeAllPrepares(t *testing.T) {
	dir := t.TempDir()
	good := image("../examples/demo/base.qcow2", filepath.Join(dir, "a"), "oci-archive:../examples/demo/hello.oci.tar")
	bad := map[string]func(*Spec){
		"none.qcow2":  func(s *Spec) { s.Base = "none.qcow2" },
		"none.json":   func(s *Spec) { s.System = nil; s.Lock = filepath.Join(dir, "none.json"); s.Locked = true },
		"none.tar":    func(s *Spec) { s.Images = []string{"oci-archive:none.tar"} },
		"a_b":         func(s *Spec) { s.Customize.Hostname = "a_b" },
		"is less":     func(s *Spec) { s.Size = Size{Bytes: 1 << 20} },
		"no folder/b": func(s *Spec) { s.Output = filepath.Join(dir, "no folder/b") },
	}
	for word, change := range bad {
		second := good
		second.Output = filepath.Join(dir, "b")
		change(&second)
		third := second
		third.Output += "c"
		err := BakeAll(context.Background(), jobs(t, good, second, third), func(int, *Report) error { t.Errorf("%s: a disk was made", word); return nil })
		if err == nil || !strings.Contains(err.Error(), "disk b: ") || !strings.Contains(err.Error(), "disk c: ") || strings.Contains(err.Error(), "disk a: ") {
			t.Errorf("%s: %v", word, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestBakeAllStops ends with what done says of the first disk, which is there.
func TestBakeAllStops(t *testing.T) {
	dir := t.TempDir()
	spec := func(n string) Spec {
		return image("../examples/demo/base.qcow2", filepath.Join(dir, n), "oci-archive:../examples/demo/hello.oci.tar")
	}
	no := errors.New("no more")
	err := BakeAll(context.Background(), jobs(t, spec("a"), spec("b")), func(int, *Report) error { return no })
	var stopped *StoppedError
	if !errors.As(err, &stopped) || !errors.Is(err, no) || stopped.State() != "done: a; not done: b" {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "a")); err != nil {
		t.Error(err)
	}
}
