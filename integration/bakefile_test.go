package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// cluster is the bake file of two roles in examples/bakefile, in a folder of its own, with a small base and images that
// are in a registry here.
type cluster struct {
	dir, file                     string
	front                         *front
	pause, proxy, apiserver, etcd image
	env, args                     []string
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	requires(t, "root", "skopeo", "qemu-img")
	c := &cluster{dir: tempDir(t)}
	addr := registry(t)
	c.front = newFront(t, addr, nil)
	c.env = emptyHome(t, nil)
	for n, i := range []struct {
		into  *image
		name  string
		sizes []int
	}{{&c.pause, "pause:3.10", []int{1000}}, {&c.proxy, "kube-proxy:v1.34.2", []int{300000, 20000}}, {&c.apiserver, "kube-apiserver:v1.34.2", []int{400000}}, {&c.etcd, "etcd:3.6.5-0", []int{1000, 2000}}} {
		*i.into = someImage(t, "localhost/"+i.name, int64(60+n), i.sizes...)
		push(t, i.into.oci(), addr+"/"+i.name)
	}
	check(t, os.CopyFS(c.dir, os.DirFS("../examples/bakefile")))
	for _, name := range []string{"cluster.yaml", "control.txt"} {
		text, err := os.ReadFile(filepath.Join(c.dir, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(c.dir, name), []byte(strings.NewReplacer("registry.k8s.io", c.front.addr, "+1G", "+16M").Replace(string(text))), 0o644))
	}
	c.file = filepath.Join(c.dir, "cluster.yaml")
	run(t, "qemu-img", "convert", "-O", "qcow2", smallBase(t), c.dir+"/debian.qcow2")
	c.args = []string{"build", "-f", c.file, "--insecure-registry", c.front.addr}
	c.front.takes("")
	return c
}

func (c *cluster) build(t testing.TB, args ...string) outcome {
	t.Helper()
	o := command(t, c.env, productPath(t), slices.Concat(c.args, args)...)
	t.Logf("nodebake build -f %s: exit %d, %.2fs", strings.Join(args, " "), o.code, o.took.Seconds())
	if strings.Contains(o.stderr, "goroutine ") {
		t.Fatalf("a panic:\n%s", o)
	}
	return o
}

// path is a file of the folder.
func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

// asked counts requests that are not of the registry's greeting, by "GET manifests/v1".
func (c *cluster) asked() map[string]int {
	count := map[string]int{}
	for _, a := range c.front.takes("") {
		if method, path, _ := strings.Cut(a, " "); method == http.MethodGet && path != "/v2/" {
			count[path]++
		}
	}
	return count
}

// noCache fails the test where a run left its cache.
func noCache(t testing.TB, dir string) {
	t.Helper()
	left, err := filepath.Glob(dir + "/.nodebake*")
	check(t, err)
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// TestBakeFile bakes two disks that share images, as one run and one by one.
func TestBakeFile(t *testing.T) {
	c := newCluster(t)
	o := c.build(t, "--report", c.path("report.json"))
	if o.code != exitDone {
		t.Fatalf("%s", o)
	}
	asked := c.asked()
	for _, i := range []image{c.pause, c.proxy, c.apiserver, c.etcd} {
		for _, l := range i.facts(t).layers {
			n := 0
			for path, times := range asked {
				if strings.HasSuffix(path, l.blob.Digest.String()) {
					n += times
				}
			}
			if n != 1 {
				t.Errorf("layer %s of %s was asked for %d times, must be once", l.blob.Digest, i.name, n)
			}
		}
	}
	for path, times := range asked {
		if times != 1 {
			t.Errorf("%s was asked for %d times", path, times)
		}
	}
	noCache(t, c.dir)
	bakedRight(t, c.path("debian.qcow2"), c.path("control.qcow2"), smallRoot, c.pause, c.proxy, c.apiserver, c.etcd)
	worker := mount(t, c.path("worker.raw"), smallRoot, "ro")
	for _, i := range []image{c.pause, c.proxy} {
		compareStore(t, worker+defaultStore, i)
	}
	if got := read(t, worker, "etc/motd"); got != "A worker of the example cluster.\n" {
		t.Errorf("/etc/motd holds %q", got)
	}
	unmount(t, worker)
	var report []struct {
		Disk   string
		Images []struct{ Reference string }
	}
	readJSON(t, c.path("report.json"), &report)
	if len(report) != 2 || report[0].Disk != "control" || len(report[0].Images) != 4 || report[1].Disk != "worker" || len(report[1].Images) != 2 {
		t.Errorf("the report has %+v", report)
	}

	// Each disk has its own lock; bound to it, and alone, a disk is the same.
	sums := map[string]string{}
	for _, n := range []string{"control.qcow2", "control.lock", "worker.raw", "worker.lock"} {
		sums[n] = hashFile(t, c.path(n))
	}
	same := func(names ...string) {
		t.Helper()
		for _, n := range names {
			if hashFile(t, c.path(n)) != sums[n] {
				t.Errorf("another %s", n)
			}
		}
	}
	var lock lockFile
	readJSON(t, c.path("worker.lock"), &lock)
	if len(lock.Images) != 2 || lock.Images[0].Reference != c.front.addr+"/pause:3.10" {
		t.Errorf("the lock has %+v", lock)
	}
	if o := c.build(t); o.code != exitFailed || !strings.Contains(o.stderr, "disk control: ") || !strings.Contains(o.stderr, "disk worker: ") || !strings.Contains(o.stderr, "--force") {
		t.Errorf("outputs that are there\n%s", o)
	}
	if n := c.asked(); len(n) > 0 {
		t.Errorf("before anything was begun the registry was asked for %v", n)
	}
	for _, args := range [][]string{{"--force"}, {"--force", "--locked"}, {"--force", "--disk", "worker"}, {"--force", "--locked", "--disk", "control"}} {
		if o := c.build(t, args...); o.code != exitDone {
			t.Errorf("%s", o)
		}
		same("control.qcow2", "control.lock", "worker.raw", "worker.lock")
	}
	c.asked()

	// One disk alone needs no cache of the run; with one of the user's the next run asks nothing, and it stays.
	for range 2 {
		if o := c.build(t, "--force", "--cache", c.path("cache")); o.code != exitDone {
			t.Errorf("%s", o)
		}
		same("control.qcow2", "worker.raw")
	}
	for path, times := range c.asked() {
		if times != 1 {
			t.Errorf("%s was asked for %d times", path, times)
		}
	}
	if o := c.build(t, "--force", "--cache", c.path("cache"), "--offline"); o.code != exitDone || len(c.asked()) > 0 {
		t.Errorf("%s", o)
	}
	if o := c.build(t, "--force", "--offline"); o.code != exitUsage || strings.Count(o.stderr, "sources.cache") != 2 {
		t.Errorf("offline with no cache\n%s", o)
	}
}

// TestBakeFilePlatforms makes disks of two architectures of one list of manifests.
func TestBakeFilePlatforms(t *testing.T) {
	requires(t, "root", "skopeo")
	both := map[string]image{"amd64": someImage(t, "localhost/app:1", 70, 1000), "arm64": someImageFor(t, "arm64", 71)}
	listed := listOf(t, "localhost/app:1", both)
	addr := registry(t)
	push(t, listed.oci(), addr+"/app:v1", "--all")
	f := newFront(t, addr, nil)
	dir := tempDir(t)
	check(t, os.WriteFile(dir+"/bake.yaml", fmt.Appendf(nil, `apiVersion: nodebake/v1
kind: Bake
base: %s
images: [%s/app:v1]
sources: {insecureRegistries: ["%[2]s"]}
disks:
- {name: amd64, output: amd64.raw, platform: linux/amd64, lock: amd64.lock}
- {name: arm64, output: arm64.raw, platform: linux/arm64, lock: arm64.lock}
`, smallBase(t), f.addr), 0o644))
	f.takes("")
	if o := command(t, emptyHome(t, nil), productPath(t), "build", "-f", dir+"/bake.yaml"); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	if n := len(f.takes("/manifests/v1")); n != 1 {
		t.Errorf("the list was asked for %d times", n)
	}
	for arch, i := range both {
		mnt := mount(t, dir+"/"+arch+".raw", smallRoot, "ro")
		compareStore(t, mnt+defaultStore, i)
		unmount(t, mnt)
		var lock struct{ Platform string }
		if readJSON(t, dir+"/"+arch+".lock", &lock); lock.Platform != "linux/"+arch {
			t.Errorf("the lock is for %s", lock.Platform)
		}
	}
}

// TestBakeFileStopped ends runs while the second disk is baked: by a fault of the registry, and by Ctrl-C.
func TestBakeFileStopped(t *testing.T) {
	c := newCluster(t)
	// The worker, which shares all its images, comes first here.
	order := []string{"--disk", "worker"}
	if o := c.build(t, order...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	whole := hashFile(t, c.path("worker.raw"))
	text, err := os.ReadFile(c.file)
	check(t, err)
	at := bytes.Index(text, []byte("- name: control"))
	next := bytes.Index(text, []byte("- name: worker"))
	swapped := slices.Concat(text[:at], text[next:], text[at:next])
	check(t, os.WriteFile(c.file, swapped, 0o644))
	layer := c.etcd.facts(t).layers[1].blob.Digest.String()
	started := make(chan struct{}, 100)
	release := make(chan struct{})
	c.front.mu.Lock()
	hold := false
	c.front.fault = func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
		if !strings.HasSuffix(r.URL.Path, layer) {
			next.ServeHTTP(w, r)
			return
		}
		started <- struct{}{}
		if hold {
			<-release
		}
		http.Error(w, "gone", http.StatusNotFound)
	}
	c.front.mu.Unlock()
	stopped := func(stderr string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(stderr, w) {
				t.Errorf("it does not say %q\n%s", w, clip(stderr))
			}
		}
		noCache(t, c.dir)
		mustNotExist(t, c.path("control.qcow2"))
		mustNotExist(t, c.path("control.lock"))
		if hashFile(t, c.path("worker.raw")) != whole {
			t.Error("the first disk is not whole")
		}
	}
	check(t, os.Remove(c.path("worker.raw")))
	o := c.build(t, "--report", c.path("report.json"))
	if o.code != exitFailed {
		t.Errorf("%s", o)
	}
	stopped(o.stderr, "nodebake: disk control: ", layer, "\ndone: worker; not done: control\n")
	var report []struct{ Disk string }
	if readJSON(t, c.path("report.json"), &report); len(report) != 1 || report[0].Disk != "worker" {
		t.Errorf("the report has %+v", report)
	}

	check(t, os.Remove(c.path("worker.raw")))
	for len(started) > 0 {
		<-started
	}
	c.front.mu.Lock()
	hold = true
	c.front.mu.Unlock()
	cmd := exec.Command(productPath(t), c.args...)
	cmd.Env = append(os.Environ(), c.env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	check(t, cmd.Start())
	select {
	case <-started:
	case <-time.After(time.Minute):
		t.Error("the layer was not asked for")
	}
	if caches, err := filepath.Glob(c.dir + "/.nodebake-cache-*"); err != nil || len(caches) != 1 {
		t.Errorf("the caches of the run are %q, %v", caches, err)
	}
	check(t, cmd.Process.Signal(syscall.SIGINT))
	cmd.Wait()
	close(release)
	if cmd.ProcessState.ExitCode() != exitFailed {
		t.Errorf("exit %d\n%s", cmd.ProcessState.ExitCode(), said.String())
	}
	stopped(said.String(), "nodebake: interrupted; done: worker; not done: control\n")
}
