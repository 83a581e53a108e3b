package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.podman.io/storage"
)

// engine is a container engine's own store, with read-only stores beside it.
type engine struct {
	dir string
	env []string
}

// newEngine sets up an engine in a folder of its own; nothing of the machine's own engine is read or written.
func newEngine(t testing.TB, additional ...string) engine {
	t.Helper()
	return newEngineAt(t, tempDir(t), additional...)
}

func newEngineAt(t testing.TB, dir string, additional ...string) engine {
	t.Helper()
	stores, err := json.Marshal(append([]string{}, additional...))
	check(t, err)
	write := func(name, content string) string {
		name = filepath.Join(dir, name)
		check(t, os.WriteFile(name, []byte(content), 0o644))
		return name
	}
	conf := write("storage.conf", fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = %q\nrunroot = %q\n[storage.options]\nadditionalimagestores = %s\n",
		dir+"/root", dir+"/run", stores))
	containers := write("containers.conf", fmt.Sprintf("[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\ntmp_dir = %q\nstatic_dir = %q\n", dir+"/tmp", dir+"/libpod"))
	return engine{dir, []string{"CONTAINERS_STORAGE_CONF=" + conf, "CONTAINERS_CONF=" + containers, "TMPDIR=" + dir, "BUILDAH_ISOLATION=chroot"}}
}

func (e engine) try(t testing.TB, name string, args ...string) outcome {
	t.Helper()
	return command(t, e.env, name, args...)
}

// do runs podman, buildah or skopeo and gives what it printed, without the final newline.
func (e engine) do(t testing.TB, name string, args ...string) string {
	t.Helper()
	o := e.try(t, name, args...)
	if o.code != 0 {
		t.Fatalf("%s", o)
	}
	return strings.TrimRight(o.stdout, "\n")
}

// layers counts the layers of the engine's own store.
func (e engine) layers(t testing.TB) int {
	t.Helper()
	raw, err := os.ReadFile(e.dir + "/root/overlay-layers/layers.json")
	if os.IsNotExist(err) {
		return 0
	}
	check(t, err)
	var all []any
	check(t, json.Unmarshal(raw, &all))
	return len(all)
}

// checkStore is containers/storage's own fsck. The store at root is the primary graphroot,
// or an additional one when readOnly is set.
func checkStore(t testing.TB, root string, readOnly bool) {
	t.Helper()
	dir := tempDir(t)
	options := storage.StoreOptions{RunRoot: dir + "/run", GraphRoot: root, GraphDriverName: "overlay"}
	if readOnly {
		options.GraphRoot = dir + "/root"
		options.GraphDriverOptions = []string{"overlay.imagestore=" + root}
	}
	store, err := storage.GetStore(options)
	check(t, err)
	defer store.Shutdown(true)
	images, err := store.Images()
	check(t, err)
	if len(images) == 0 {
		t.Errorf("containers/storage sees no image in %s", root)
	}
	report, err := store.Check(storage.CheckEverything())
	check(t, err)
	for what, found := range map[string]map[string][]error{
		"layer": report.Layers, "read-only layer": report.ROLayers, "image": report.Images, "read-only image": report.ROImages, "container": report.Containers,
	} {
		for id, errs := range found {
			for _, err := range errs[:min(len(errs), 10)] {
				t.Errorf("containers/storage's check: %s %s: %v", what, id, err)
			}
		}
	}
	t.Logf("containers/storage's check of %s (read-only: %v): %d images", root, readOnly, len(images))
}

// primaryCopy copies a store so that it can be an engine's own: a read-write store's layers have three more folders.
func primaryCopy(t testing.TB, store string) string {
	t.Helper()
	root := tempDir(t) + "/root"
	run(t, "cp", "-a", "--sparse=always", store, root)
	layers, err := filepath.Glob(root + "/overlay/*/diff")
	check(t, err)
	for _, l := range layers {
		for _, d := range []string{"empty", "merged", "work"} {
			check(t, os.MkdirAll(filepath.Join(filepath.Dir(l), d), 0o700))
		}
	}
	return root
}

// compareStore holds every layer of an image in a store against the layer's tar.
func compareStore(t testing.TB, store string, i image) {
	t.Helper()
	compareLayers(t, store, i, false)
}

// compareLayers is compareStore, also for a labelled disk: there each file has an SELinux label, which is the
// policy's and not the layer's; setfiles judges it.
func compareLayers(t testing.TB, store string, i image, labelled bool) {
	t.Helper()
	f := i.facts(t)
	files := 0
	for n, l := range f.layers {
		r, err := l.open()
		check(t, err)
		want, err := tarNodes(r)
		r.Close()
		if err != nil {
			t.Fatalf("%s, layer %d: %v", i.name, n, err)
		}
		got, err := diskNodes(filepath.Join(store, "overlay", l.id, "diff"), "")
		if err != nil {
			t.Errorf("%s, layer %d (%s): %v", i.name, n, l.id, err)
			continue
		}
		files += len(want)
		if labelled {
			for name, g := range got {
				if g.xattrs[label] == "" {
					t.Errorf("%s, layer %s: %q has no label", i.name, l.id, name)
				}
				delete(g.xattrs, label)
			}
		}
		faults := compareNodes(want, got)
		for _, fault := range faults[:min(len(faults), 20)] {
			t.Errorf("%s, layer %d: %s", i.name, n, fault)
		}
		if len(faults) > 20 {
			t.Errorf("%s, layer %d: %d more", i.name, n, len(faults)-20)
		}
	}
	t.Logf("%s: %d layers, %d names compared", i.name, len(f.layers), files)
}

// saved gives the digests that an engine writes when it saves an image: the manifest's, the config's, the layers'.
func (e engine) saved(t testing.TB, name string) string {
	t.Helper()
	dir := tempDir(t)
	e.do(t, "podman", "save", "-q", "--format", "oci-dir", "-o", dir+"/saved", name)
	f := image{layout: dir + "/saved"}.facts(t)
	s := fmt.Sprintf("manifest %s\nconfig %s\n", f.manifest, f.config)
	for _, l := range f.layers {
		s += fmt.Sprintf("layer %s of %s\n", l.blob.Digest, l.diffID)
	}
	return s
}
