package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// linted is what lint says in JSON.
type linted struct {
	Findings []struct {
		ID, Severity, What, File, Why, Mend string
		Line                                int
	}
	Engines []struct{ Name, Path, Version string }
	Images  int
}

// lint runs the command and checks its exit code against what it says.
func lint(t testing.TB, disk string, args ...string) linted {
	t.Helper()
	o := nodebake(t, append([]string{"lint", disk, "--json"}, args...)...)
	var l linted
	if err := json.Unmarshal([]byte(o.stdout), &l); err != nil {
		t.Fatalf("%v\n%s", err, o)
	}
	errors := 0
	for _, f := range l.Findings {
		if f.Severity == "error" {
			errors++
		}
	}
	if want := map[bool]int{true: exitLie, false: exitDone}[errors > 0]; o.code != want {
		t.Errorf("%d errors, exit code %d\n%s", errors, o.code, o)
	}
	return l
}

// bad are the IDs of errors and warnings.
func (l linted) bad() []string {
	ids := []string{}
	for _, f := range l.Findings {
		if f.Severity != "info" {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// TestLint: Debian with podman, as it is and with images baked into it, nothing else of a node on it.
func TestLint(t *testing.T) {
	images := testImages(t)
	base, dir := debian(t).disk, tempDir(t)
	if l := lint(t, base); !slices.Equal(l.bad(), []string{"NB010"}) {
		t.Errorf("before the bake: %+v", l)
	}
	out := filepath.Join(dir, "node.qcow2")
	baked(t, "--base", base, "--image", images["hello"].oci(), "--output", out, "--quiet")
	l := lint(t, out)
	if len(l.bad()) > 0 || l.Images != 1 {
		t.Errorf("after it: %+v", l)
	}
	version := strings.Fields(run(t, "podman", "--version"))
	if len(l.Engines) != 1 || l.Engines[0].Path != "/usr/bin/podman" || len(version) > 2 && l.Engines[0].Version != version[2] {
		t.Errorf("engines %+v; podman says %v", l.Engines, version)
	}
	o := nodebake(t, "lint", out)
	if o.code != exitDone || !strings.Contains(o.stdout, "Nothing is in the way") {
		t.Errorf("%s", o)
	}
	if o := nodebake(t, "lint", out, "--fail-on", "info"); o.code != exitLie {
		t.Errorf("%s", o)
	}
	if o := nodebake(t, "lint", out, "--fail-on", "nothing"); o.code != exitUsage {
		t.Errorf("%s", o)
	}

	manifest := filepath.Join(dir, "pod.yaml")
	check(t, os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  containers:\n  - image: "+images["hello"].name+"\n  - image: example.org/gone:1\n    imagePullPolicy: Always\n"), 0o644))
	l = lint(t, out, "--manifests", manifest)
	if !slices.Equal(l.bad(), []string{"NB077", "NB080"}) || l.Findings[len(l.Findings)-1].Line != 8 {
		t.Errorf("%+v", l)
	}
	if o := nodebake(t, "lint", out, "--manifests", manifest, "--fail-on", "never"); o.code != exitDone || !strings.Contains(o.stdout, "example.org/gone:1") {
		t.Errorf("%s", o)
	}

	// What is changed with the kernel's own mount is found.
	raw := rawOf(t, dir, out)
	mnt := mount(t, raw, nodeRoot, "rw")
	f, err := os.OpenFile(mnt+"/etc/fstab", os.O_APPEND|os.O_WRONLY, 0)
	check(t, err)
	_, err = f.WriteString("tmpfs " + defaultStore + " tmpfs defaults 0 0\n")
	check(t, err)
	check(t, f.Close())
	check(t, os.WriteFile(mnt+"/etc/tmpfiles.d/x.conf", []byte("R "+defaultStore+"\n"), 0o644))
	unmount(t, mnt)
	if l := lint(t, raw); !slices.Equal(l.bad(), []string{"NB050", "NB052"}) {
		t.Errorf("%+v", l)
	}
}

// TestLintOstree: the labels of an OCK-like disk are those of its policy, until one changes.
func TestLintOstree(t *testing.T) {
	images := testImages(t)
	dir := tempDir(t)
	out := filepath.Join(dir, "out.raw")
	baked(t, "--base", smallOCK(t), "--image", images["hello"].oci(), "--output", out, "--quiet")
	before := lint(t, out)
	if ids := before.bad(); slices.Contains(ids, "NB060") || slices.Contains(ids, "NB061") || len(ids) > 0 {
		t.Errorf("%+v", before)
	}
	m := mountOCK(t, out, "rw")
	run(t, "setfattr", "-n", label, "-v", "system_u:object_r:tmp_t:s0", m.system+defaultStore+"/overlay-images/images.json")
	m.unmount(t)
	if l := lint(t, out, "--fail-on", "error"); !slices.Equal(l.bad(), []string{"NB060"}) {
		t.Errorf("%+v", l)
	}
}
