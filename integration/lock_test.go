package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// lockFile is a lock as its documentation has it.
type lockFile struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Platform   string `json:"platform"`
	Images     []struct {
		Reference string        `json:"reference"`
		Manifest  digest.Digest `json:"manifest"`
		List      digest.Digest `json:"list"`
		Config    digest.Digest `json:"config"`
		Size      int64         `json:"size"`
		Layers    []struct {
			Digest digest.Digest `json:"digest"`
			DiffID digest.Digest `json:"diffID"`
			Size   int64         `json:"size"`
		} `json:"layers"`
	} `json:"images"`
}

// bakes is a bake that must succeed, and gives the output.
func bakes(t testing.TB, env []string, args ...string) string {
	t.Helper()
	out := tempDir(t) + "/out.raw"
	if o := build(t, env, append(args, "--output", out)...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	return out
}

func sameFiles(t testing.TB, a, b string, same bool) {
	t.Helper()
	if o := command(t, nil, "cmp", "-s", a, b); o.code > 1 || (o.code == 0) != same {
		t.Errorf("cmp of %s and %s: exit %d; must they be the same: %v", a, b, o.code, same)
	}
}

// listOf puts images of several architectures behind one manifest list in a layout.
func listOf(t testing.TB, name string, images map[string]image) image {
	t.Helper()
	both := image{name: name, layout: tempDir(t) + "/list"}
	list := imgv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgv1.MediaTypeImageIndex}
	for _, arch := range []string{"amd64", "arm64"} {
		i := images[arch]
		check(t, os.MkdirAll(both.layout, 0o755))
		run(t, "cp", "-r", i.layout+"/blobs", i.layout+"/oci-layout", both.layout)
		var index imgv1.Index
		readJSON(t, i.layout+"/index.json", &index)
		d := index.Manifests[0]
		d.Annotations, d.Platform = nil, &imgv1.Platform{OS: "linux", Architecture: arch}
		list.Manifests = append(list.Manifests, d)
	}
	raw, err := json.Marshal(list)
	check(t, err)
	d := digest.FromBytes(raw)
	check(t, os.WriteFile(both.layout+"/blobs/sha256/"+d.Encoded(), raw, 0o644))
	index, err := json.Marshal(imgv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, Manifests: []imgv1.Descriptor{{
		MediaType: imgv1.MediaTypeImageIndex, Digest: d, Size: int64(len(raw)), Annotations: map[string]string{imgv1.AnnotationRefName: name}}}})
	check(t, err)
	check(t, os.WriteFile(both.layout+"/index.json", index, 0o644))
	return both
}

// TestLock bakes by a lock while the tags move on.
func TestLock(t *testing.T) {
	requires(t, "root", "skopeo")
	testImages(t)
	older, newer := someImage(t, "localhost/app:1", 6, 10000, 20000), someImage(t, "localhost/app:1", 7, 30000)
	listed := listOf(t, "localhost/list:1", map[string]image{"amd64": older, "arm64": someImageFor(t, "arm64", 8)})
	archive := func(i image) string {
		name := tempDir(t) + "/app.oci.tar"
		run(t, "tar", "-C", i.layout, "-cf", name, ".")
		return name
	}
	addr := registry(t)
	env := append(emptyHome(t, nil), insecure(t, addr))
	push(t, older.oci(), addr+"/app:v1")
	push(t, newer.oci(), addr+"/other:v1")
	listDigest := push(t, listed.oci(), addr+"/list:v1", "--all")
	file := archive(older)
	lock := tempDir(t) + "/lock.json"
	fromFile := "oci-archive:" + file
	images := []string{"--image", addr + "/app:v1", "--image", addr + "/list:v1", "--image", fromFile}
	withLock := append(slices.Clone(images), "--lock", lock)

	first := bakes(t, env, withLock...)
	var l lockFile
	readJSON(t, lock, &l)
	if l.APIVersion != "nodebake/v1" || l.Kind != "Lock" || l.Platform != "linux/amd64" || len(l.Images) != 3 {
		t.Fatalf("the lock is %+v", l)
	}
	f := older.facts(t)
	for n, want := range []struct {
		ref  string
		list digest.Digest
	}{{addr + "/app:v1", ""}, {addr + "/list:v1", listDigest}, {fromFile, ""}} {
		is := l.Images[n]
		if is.Reference != want.ref || is.List != want.list || is.Manifest != f.manifest || is.Config != f.config || len(is.Layers) != len(f.layers) {
			t.Errorf("the lock says %+v, must be of %+v", is, f)
			continue
		}
		sum := int64(0)
		for k, layer := range is.Layers {
			sum += layer.Size
			if layer.Digest != f.layers[k].blob.Digest || layer.DiffID != f.layers[k].diffID || layer.Size != f.layers[k].blob.Size {
				t.Errorf("layer %d: the lock says %+v, must be of %+v", k, layer, f.layers[k])
			}
		}
		if is.Size != sum {
			t.Errorf("the lock says %d bytes, must be %d", is.Size, sum)
		}
	}
	text, err := os.ReadFile(lock)
	check(t, err)
	unchanged := func() {
		t.Helper()
		now, err := os.ReadFile(lock)
		check(t, err)
		if string(now) != string(text) {
			t.Errorf("the lock was changed: %s", now)
		}
	}
	again := tempDir(t) + "/again.json"
	reads(t, env, append(slices.Clone(images), "--lock", again), older, older, older)
	sameFiles(t, lock, again, true)

	// The tags move on; the lock holds.
	push(t, newer.oci(), addr+"/app:v1")
	push(t, newer.oci(), addr+"/list:v1")
	locked := append(slices.Clone(withLock), "--locked")
	sameFiles(t, first, bakes(t, env, locked...), true)
	sameFiles(t, first, bakes(t, env, "--lock", lock, "--locked"), true)
	sameFiles(t, first, bakes(t, env, "--lock", lock, "--locked", "--cache", tempDir(t)+"/cache"), true)
	reads(t, env, images, newer, newer, older)
	reads(t, env, []string{"--image", addr + "/list:v1", "--lock", lock, "--locked"}, older)
	unchanged()

	// What the lock does not cover.
	refusesBake(t, env, exitLie, append(slices.Clone(locked), "--image", addr+"/other:v1"), addr+"/other:v1", "not in the lock")
	refusesBake(t, env, exitLie, append(slices.Clone(locked), "--platform", "linux/arm64"), "linux/arm64", "linux/amd64")
	check(t, os.Rename(file, file+".was"))
	check(t, os.Rename(archive(newer), file))
	refusesBake(t, env, exitLie, locked, fromFile, newer.facts(t).manifest.String(), f.manifest.String())
	check(t, os.Rename(file+".was", file))
	unchanged()
	// A bake that fails leaves the lock as it was, too.
	refusesBake(t, env, exitFailed, append(slices.Clone(withLock), "--image", addr+"/none:v1"), addr+"/none:v1")
	unchanged()

	// Locks that someone has edited.
	edited := tempDir(t) + "/edited.json"
	edit := func(old, new string) []string {
		t.Helper()
		if !strings.Contains(string(text), old) {
			t.Fatalf("the lock has no %s", old)
		}
		check(t, os.WriteFile(edited, []byte(strings.Replace(string(text), old, new, 1)), 0o644))
		return append(slices.Clone(images), "--lock", edited, "--locked")
	}
	for _, c := range []struct{ old, new string }{
		{string(text), ""},
		{string(text), "not a lock"},
		{string(text), "[]"},
		{string(text), `{"apiVersion": "v1", "kind": "Pod"}`},
		{"nodebake/v1", "nodebake/v9"},
		{`"images"`, `"pictures"`},
		{`"manifest": "sha256:`, `"manifest": "`},
		{f.config.Encoded(), f.config.Encoded()[1:]},
		{`"list": "sha256:`, `"list": "md5:`},
		{string(text), string(text) + "{}\n"},
		{string(text), string(text) + "<<<<<<<\n"},
		{fmt.Sprintf(`"reference": %q`, addr+"/list:v1"), fmt.Sprintf(`"reference": %q`, addr+"/app:v1")},
		{"\n}\n", ""},
	} {
		refusesBake(t, env, exitUsage, edit(c.old, c.new), "lock")
	}
	other := newer.facts(t)
	for _, c := range []struct {
		old, new string
		code     int
		word     string
	}{
		{f.config.String(), other.config.String(), exitLie, "config"},
		{f.manifest.String(), other.manifest.String(), exitLie, "config"}, // the new image is there, by its digest
		{f.manifest.String(), digest.FromString("none").String(), exitFailed, "manifest"},
		{listDigest.String(), other.manifest.String(), exitLie, "list"},
		{f.layers[0].blob.Digest.String(), other.layers[0].blob.Digest.String(), exitLie, "layer"},
		{f.layers[1].diffID.String(), other.layers[0].diffID.String(), exitLie, "layer"},
		{fmt.Sprintf(`"size": %d`, l.Images[0].Layers[0].Size), `"size": 1`, exitLie, "layer|size"},
	} {
		refusesBake(t, env, c.code, edit(c.old, c.new), c.word)
	}

	// Wrong use.
	refusesBake(t, env, exitUsage, append(slices.Clone(images), "--locked"), "--lock")
	refusesBake(t, env, exitFailed, append(slices.Clone(images), "--locked", "--lock", edited+".none"), edited+".none")
	refusesBake(t, env, exitUsage, append(slices.Clone(images), "--lock", smallBase(t)), "lock", "base")
	check(t, os.WriteFile(edited, []byte(`{"apiVersion": "nodebake/v1", "kind": "Lock", "platform": "linux/amd64", "images": []}`), 0o644))
	refusesBake(t, env, exitUsage, []string{"--lock", edited, "--locked"}, "no image")
}

// someImageFor is someImage for another architecture.
func someImageFor(t testing.TB, arch string, seed int64) image {
	t.Helper()
	i := image{name: "localhost/" + arch + ":1", layout: tempDir(t) + "/layout"}
	check(t, writeLayout(i.layout, i.name, arch, randomLayer(seed, 1000)))
	return i
}
