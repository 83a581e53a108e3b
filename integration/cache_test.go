package integration

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// cacheSize adds up the files of a cache.
func cacheSize(t testing.TB, dir string) (size int64) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		size += info.Size()
		return err
	}))
	return size
}

// layersAsked counts the requests for each layer of an image since the last call.
func (f *front) layersAsked(t testing.TB, i image) []int {
	t.Helper()
	asked := f.takes("/blobs/")
	var n []int
	for _, l := range i.facts(t).layers {
		count := 0
		for _, a := range asked {
			if strings.HasPrefix(a, http.MethodGet) && strings.HasSuffix(a, l.blob.Digest.String()) {
				count++
			}
		}
		n = append(n, count)
	}
	return n
}

// TestCache bakes again and again from one cache, with a registry, without, and with a damaged cache.
func TestCache(t *testing.T) {
	requires(t, "root", "skopeo")
	testImages(t)
	app, newer := someImage(t, "localhost/app:1", 20, 300000, 200000), someImage(t, "localhost/app:1", 21, 1000)
	addr := registry(t)
	push(t, app.oci(), addr+"/app:v1")
	f := newFront(t, addr, nil)
	home := emptyHome(t, nil)
	dir := tempDir(t) + "/cache"
	image := []string{"--image", f.addr + "/app:v1", "--insecure-registry", f.addr}
	args := append(slices.Clone(image), "--cache", dir)
	offline := append(slices.Clone(args), "--offline")
	silent := func(do func()) {
		t.Helper()
		f.connections()
		do()
		if n := f.connections(); n > 0 {
			t.Errorf("%d connections to the registry", n)
		}
	}

	// With nothing in the cache.
	silent(func() {
		refusesBake(t, home, exitFailed, offline, f.addr+"/app:v1", "not in the cache")
		refusesBake(t, home, exitUsage, append(slices.Clone(image), "--offline"), "--cache")
		refusesBake(t, home, exitUsage, append(slices.Clone(offline), "--refresh"), "--refresh")
	})
	without := bakes(t, home, image...)
	f.takes("")
	first := bakes(t, home, args...)
	sameFiles(t, without, first, true)
	if n := f.layersAsked(t, app); !slices.Equal(n, []int{1, 1}) {
		t.Errorf("the layers were asked for %d times", n)
	}
	if o := command(t, nil, "skopeo", "inspect", "oci:"+dir+":"+f.addr+"/app:v1"); o.code != 0 {
		t.Errorf("the cache is no layout that skopeo takes\n%s", o)
	}

	// The second bake asks nothing, though the tag has moved; it says so.
	push(t, newer.oci(), addr+"/app:v1")
	silent(func() {
		sameFiles(t, first, bakes(t, home, args...), true)
		o := reads(t, home, args, app)
		if !strings.Contains(o.stderr, "as the cache learnt") {
			t.Errorf("it does not say how old what it knows is\n%s", o)
		}
		sameFiles(t, first, bakes(t, home, offline...), true)
		refusesBake(t, home, exitFailed, append(slices.Clone(offline), "--image", f.addr+"/none:v1"), f.addr+"/none:v1", "not in the cache")
	})
	reads(t, home, append(slices.Clone(args), "--refresh"), newer)
	reads(t, home, offline, newer)
	byDigest := []string{"--image", f.addr + "/app@" + app.facts(t).manifest.String(), "--insecure-registry", f.addr, "--cache", dir}
	silent(func() { reads(t, home, byDigest, app) })

	// A damaged layer is fetched anew, and only that; without a registry it is named.
	layers := app.facts(t).layers
	blob := filepath.Join(dir, "blobs", "sha256", layers[1].blob.Digest.Encoded())
	damage := func() {
		t.Helper()
		raw, err := os.ReadFile(blob)
		check(t, err)
		raw[len(raw)/2] ^= 1
		check(t, os.Chmod(blob, 0o600))
		check(t, os.WriteFile(blob, raw, 0o600))
	}
	damage()
	f.takes("")
	o := reads(t, home, byDigest, app)
	if n := f.layersAsked(t, app); !slices.Equal(n, []int{0, 1}) {
		t.Errorf("the layers were asked for %d times\n%s", n, o)
	}
	if !strings.Contains(o.stderr, "damaged") {
		t.Errorf("it does not say that the cache was damaged\n%s", o)
	}
	damage()
	silent(func() {
		refusesBake(t, home, exitFailed, append(slices.Clone(byDigest), "--offline"), layers[1].blob.Digest.String(), "not in the cache")
	})
	reads(t, home, byDigest, app)
	check(t, os.Remove(blob))
	silent(func() {
		refusesBake(t, home, exitFailed, append(slices.Clone(byDigest), "--offline"), layers[1].blob.Digest.String(), "not in the cache")
	})
	reads(t, home, byDigest, app)

	// The registry is gone for good.
	f.srv.Close()
	reads(t, home, byDigest, app)
	reads(t, home, append(slices.Clone(byDigest), "--offline"), app)
	refusesBake(t, home, exitFailed, []string{"--image", hostile(t), "--cache", dir, "--offline"}, "digest|mismatch|checksum")
	check(t, os.WriteFile(dir+".file", nil, 0o644))
	refusesBake(t, home, exitFailed, append(slices.Clone(image), "--cache", dir+".file"), dir+".file")
	for _, size := range []string{"0", "-1", "many"} {
		refusesBake(t, home, exitUsage, append(slices.Clone(args), "--cache-size", size), "cache-size")
	}
}

// hostile is a layout whose layer is not what its digest says: a cache is for registries, and vouches for no file.
func hostile(t testing.TB) string {
	t.Helper()
	dir := tempDir(t) + "/layout"
	l := randomLayer(99, 1000)
	l.compression, l.damage = "none", func(b []byte) []byte { b[600] ^= 1; return b }
	check(t, writeLayout(dir, "localhost/hostile:1", "amd64", l))
	return "oci:" + dir
}

// TestCacheSize keeps a cache below its bound, whatever is baked from it.
func TestCacheSize(t *testing.T) {
	requires(t, "root", "skopeo")
	testImages(t)
	const bound = 1 << 20
	addr := registry(t)
	f := newFront(t, addr, nil)
	home := emptyHome(t, nil)
	dir := tempDir(t) + "/cache"
	args := []string{"--insecure-registry", f.addr, "--cache", dir, "--cache-size", "1M"}
	var images []image
	for n, sizes := range [][]int{{400000, 300000}, {500000, 100000}, {3000000}} {
		i := someImage(t, "localhost/app:1", int64(30+n), sizes...)
		push(t, i.oci(), fmt.Sprintf("%s/app:v%d", addr, n))
		images = append(images, i)
	}
	for n, i := range images {
		reads(t, home, append(args, "--image", fmt.Sprintf("%s/app:v%d", f.addr, n)), i)
		if size := cacheSize(t, dir); size > bound {
			t.Errorf("after image %d the cache has %d bytes, more than %d", n, size, bound)
		}
	}
	// All at once are four times the bound.
	reads(t, home, append(args, "--image", f.addr+"/app:v0", "--image", f.addr+"/app:v1", "--image", f.addr+"/app:v2"), images...)
	if size := cacheSize(t, dir); size > bound {
		t.Errorf("the cache has %d bytes, more than %d", size, bound)
	}
	// What was used last is what is kept.
	reads(t, home, append(args, "--image", f.addr+"/app:v1"), images[1])
	f.connections()
	reads(t, home, append(args, "--image", f.addr+"/app:v1"), images[1])
	if n := f.connections(); n > 0 {
		t.Errorf("%d connections to the registry", n)
	}
}

// TestCacheShared bakes twice at the same time with one cache: what one fetches the other does not.
func TestCacheShared(t *testing.T) {
	requires(t, "root", "skopeo")
	testImages(t)
	app := someImage(t, "localhost/app:1", 40, 3000000, 2000000, 1000000)
	addr := registry(t)
	push(t, app.oci(), addr+"/app:v1")
	// Neither gets the manifest before both have asked for it, so both begin with an empty cache.
	var both sync.WaitGroup
	both.Add(2)
	f := newFront(t, addr, func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") && nth <= 2 {
			both.Done()
			met := make(chan struct{})
			go func() { both.Wait(); close(met) }()
			select {
			case <-met:
			case <-time.After(20 * time.Second):
			}
		}
		next.ServeHTTP(w, r)
	})
	home := emptyHome(t, nil)
	dir := tempDir(t)
	var ended sync.WaitGroup
	outcomes := make([]outcome, 2)
	for n := range outcomes {
		smallBase(t)
		ended.Go(func() {
			outcomes[n] = build(t, home, "--image", f.addr+"/app:v1", "--insecure-registry", f.addr, "--cache", dir+"/cache", "--output", fmt.Sprintf("%s/%d.raw", dir, n))
		})
	}
	ended.Wait()
	for _, o := range outcomes {
		if o.code != exitDone {
			t.Fatalf("%s", o)
		}
	}
	if n := f.layersAsked(t, app); !slices.Equal(n, []int{1, 1, 1}) {
		t.Errorf("the layers were asked for %d times", n)
	}
	sameFiles(t, dir+"/0.raw", dir+"/1.raw", true)
	mnt := mount(t, dir+"/0.raw", smallRoot, "ro")
	compareStore(t, mnt+defaultStore, app)
	unmount(t, mnt)
	if left, err := filepath.Glob(dir + "/cache/nodebake/users/*"); err != nil || len(left) > 0 {
		t.Errorf("left in the cache: %q %v", left, err)
	}
}

// TestNames finds each image of a baked disk by all of its names, as a pod would name it.
func TestNames(t *testing.T) {
	requires(t, "root", "skopeo", "podman")
	hello := testImages(t)["hello"]
	app := someImage(t, "localhost/app:1", 50, 1000)
	listed := listOf(t, "localhost/list:1", map[string]image{"amd64": app, "arm64": someImageFor(t, "arm64", 51)})
	addr := registry(t)
	env := append(emptyHome(t, nil), insecure(t, addr))
	list := push(t, listed.oci(), addr+"/team/list:v1", "--all")
	push(t, hello.oci(), addr+"/team/hello:v1")
	manifest := digest.FromString(run(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+addr+"/team/hello:v1"))
	report := tempDir(t) + "/report.json"
	out := bakes(t, env, "--image", addr+"/team/list:v1", "--image", addr+"/team/hello:v1@"+manifest.String(), "--image", "team/hello:v1", "--report", report,
		"--tag", "registry.example.com/app:stable="+addr+"/team/list:v1", "--tag", "app="+addr+"/team/list:v1", "--tag", "other.example.com/hello=team/hello:v1")
	mnt := mount(t, out, smallRoot, "ro")
	compareStore(t, mnt+defaultStore, app)
	compareStore(t, mnt+defaultStore, hello)
	e := newEngine(t, mnt+defaultStore)
	appID, helloID := app.facts(t).config.Encoded(), hello.facts(t).config.Encoded()
	for name, id := range map[string]string{
		addr + "/team/list:v1":                                       appID,
		addr + "/team/list@" + list.String():                         appID,
		addr + "/team/list@" + app.facts(t).manifest.String():        appID,
		"registry.example.com/app:stable":                            appID,
		"registry.example.com/app@" + list.String():                  appID,
		"registry.example.com/app@" + app.facts(t).manifest.String(): appID,
		"docker.io/library/app:latest":                               appID,
		addr + "/team/hello:v1":                                      helloID,
		addr + "/team/hello@" + manifest.String():                    helloID,
		"other.example.com/hello:latest":                             helloID,
		"other.example.com/hello@" + manifest.String():               helloID,
	} {
		o := e.try(t, "podman", "image", "inspect", "--format", "{{.Id}}", name)
		if got := strings.TrimSpace(o.stdout); o.code != 0 || got != id {
			t.Errorf("%s is %q, must be %s\n%s", name, got, id, o)
		}
		// What a kubelet asks for first: is it there, so that it need not be pulled?
		if o := e.try(t, "podman", "image", "exists", name); o.code != 0 {
			t.Errorf("%s", o)
		}
	}
	if ids := e.do(t, "podman", "images", "-a", "--no-trunc", "-q"); len(slices.Compact(slices.Sorted(slices.Values(strings.Fields(ids))))) != 2 {
		t.Errorf("podman lists the IDs %s, must list two", ids)
	}
	if o := e.try(t, "podman", "image", "exists", addr+"/team/hello:v2"); o.code != 1 {
		t.Errorf("%s", o)
	}
	var r bakeReport
	raw, err := os.ReadFile(report)
	check(t, err)
	check(t, json.Unmarshal(raw, &r))
	if len(r.Images) != 3 || r.Images[0].ListDigest != list || r.Images[0].ManifestDigest != app.facts(t).manifest || r.Images[2].ID != helloID {
		t.Errorf("the report says %+v", r.Images)
	}

	image := []string{"--image", addr + "/team/list:v1"}
	refusesBake(t, env, exitUsage, append(image, "--all-platforms"), "--all-platforms", "one platform")
	refusesBake(t, env, exitFailed, append(image, "--platform", "linux/s390x"), "linux/s390x", "linux/amd64, linux/arm64", addr+"/team/list:v1")
	for _, tag := range []string{"new", "=x", "new=", "new=none", "New:=" + image[1], "a@" + list.String() + "=" + image[1]} {
		refusesBake(t, env, exitUsage, append(image, "--tag", tag), "--tag")
	}
}
