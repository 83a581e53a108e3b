package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.podman.io/storage/types"
)

const defaultStore = "/var/images"

// checked are the images that containers/storage's check judges rightly.
var checked = []string{"hello", "odd", "debian", "big", "exact"}

// bakedNode is the Debian disk with every image of checked, made once and only read.
type bakedNode struct {
	nodeDisk
	baseHash string
	out      string // qcow2
	raw      string
	root     string // where its root partition is mounted, read-only
	store    string
	report   string
	build    outcome
	byHand   bool
}

var shared struct {
	sync.Mutex
	tried bool
	*bakedNode
}

func theNode(t testing.TB) *bakedNode {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.tried {
		if shared.bakedNode == nil {
			t.Fatal("the disk that many tests share could not be made; the first of them says why")
		}
		return shared.bakedNode
	}
	shared.tried = true
	base, images := debian(t), testImages(t)
	dir := filepath.Join(scratch, "node")
	check(t, os.Mkdir(dir, 0o755))
	n := &bakedNode{nodeDisk: base, baseHash: hashFile(t, base.disk), out: dir + "/node.qcow2", root: dir + "/root", report: dir + "/report.json"}
	args := []string{"--base", base.disk, "--output", n.out, "--report", n.report}
	var archives []string
	for _, i := range checked {
		archives = append(archives, images[i].ociArchive)
		args = append(args, "--image", "oci-archive:"+images[i].ociArchive)
	}
	if os.Getenv("NODEBAKE_TEST_BY_HAND") != "" {
		n.byHand = true
		bakeByHand(t, base.disk, nodeRoot, n.out, archives...)
	} else {
		if n.build = measured(t, productPath(t), append([]string{"build"}, args...)...); n.build.code != 0 {
			t.Fatalf("%s", n.build)
		}
		t.Logf("baked %d images: %.1fs, peak %d MiB", len(checked), n.build.took.Seconds(), n.build.usage.Maxrss>>10)
	}
	n.raw = rawOf(t, dir, n.out)
	check(t, os.Mkdir(n.root, 0o755))
	mountAt(t, n.raw, nodeRoot, "ro", n.root)
	n.store = n.root + defaultStore
	shared.bakedNode = n
	return n
}

// TestNode bakes every image into the Debian disk and holds the result against the tools that own its formats.
func TestNode(t *testing.T) {
	requires(t, "root", "podman", "buildah", "skopeo", "qemu-img", "e2fsck", "sfdisk")
	n, images := theNode(t), testImages(t)

	t.Run("base unchanged", func(t *testing.T) {
		if h := hashFile(t, n.disk); h != n.baseHash {
			t.Errorf("the base's SHA-256 was %s and is %s", n.baseHash, h)
		}
	})
	t.Run("qemu-img check", func(t *testing.T) { qemuCheck(t, n.out) })
	t.Run("e2fsck", func(t *testing.T) { fsck(t, n.raw, nodeRoot) })
	t.Run("only the root changed", func(t *testing.T) {
		before := rawOf(t, tempDir(t), n.disk)
		if sameOutside(t, before, n.raw, nodeRoot) == 0 {
			t.Error("nothing changed inside the root partition")
		}
	})
	t.Run("files outside the store", func(t *testing.T) {
		before := mount(t, rawOf(t, tempDir(t), n.disk), nodeRoot, "ro")
		defer unmount(t, before)
		want, err := diskNodes(before, "")
		check(t, err)
		got, err := diskNodes(n.root, "var/images")
		check(t, err)
		if got["var/images"] == nil {
			t.Fatal("no var/images")
		}
		delete(got, "var/images")
		// The folder that gained the store, and the edited file in its folder.
		for _, changed := range []string{"var", "etc/containers", confPath} {
			want[changed].mtime = got[changed].mtime
		}
		want[confPath].size, want[confPath].hash = got[confPath].size, got[confPath].hash
		for _, fault := range compareNodes(want, got) {
			t.Error(fault)
		}
	})
	t.Run("storage.conf", func(t *testing.T) {
		before := readDisk(t, n.disk, nodeRoot, confPath)
		after, err := os.ReadFile(filepath.Join(n.root, confPath))
		check(t, err)
		confGained(t, before, string(after), defaultStore)
		confLoads(t, n.root, defaultStore)
	})
	for _, i := range checked {
		t.Run("layers of "+i, func(t *testing.T) { compareStore(t, n.store, images[i]) })
	}
	t.Run("containers-storage check, read-only", func(t *testing.T) { checkStore(t, n.store, true) })
	t.Run("containers-storage check, as primary", func(t *testing.T) {
		checkStore(t, primaryCopy(t, n.store), false)
	})

	engineTakes(t, n.store)
	t.Run("report", func(t *testing.T) {
		if n.byHand {
			t.Skip("made by hand")
		}
		var report any
		readJSON(t, n.report, &report)
		known := map[string]bool{}
		raw, err := os.ReadFile(n.report)
		check(t, err)
		for _, i := range checked {
			f := images[i].facts(t)
			for _, d := range []string{f.manifest.Encoded(), f.config.Encoded()} {
				known[d] = true
				if !strings.Contains(string(raw), d) {
					t.Errorf("the report does not hold %s of %s", d, i)
				}
			}
			for _, l := range f.layers {
				known[l.diffID.Encoded()], known[l.blob.Digest.Encoded()], known[l.id] = true, true, true
			}
		}
		for what, d := range map[string]string{"the base": n.baseHash, "the output": hashFile(t, n.out)} {
			known[d] = true
			if !strings.Contains(string(raw), `"sha256:`+d+`"`) {
				t.Errorf("the report does not hold the sum of %s, %s", what, d)
			}
		}
		walkStrings(report, func(s string) {
			if d, ok := strings.CutPrefix(s, "sha256:"); ok && !known[d] {
				t.Errorf("the report holds %s, which is no digest of these images", s)
			}
		})
	})
	t.Run("nodebake images", func(t *testing.T) {
		o := nodebake(t, "images", n.out)
		if o.code != 0 {
			t.Fatalf("%s", o)
		}
		lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
		if len(lines) != len(checked)+1 || strings.Join(strings.Fields(lines[0])[:3], " ") != "REPOSITORY TAG DIGEST" {
			t.Errorf("%s", o)
		}
		listing := nodebake(t, "images", n.out, "--json")
		var any any
		if err := json.Unmarshal([]byte(listing.stdout), &any); err != nil {
			t.Errorf("%v\n%s", err, listing)
		}
		for _, i := range checked {
			f := images[i].facts(t)
			repo := strings.TrimSuffix(images[i].name, ":1")
			if !slices.ContainsFunc(lines, func(l string) bool {
				return strings.Contains(l, repo+" ") && strings.Contains(l, f.config.Encoded()[:12]) && strings.Contains(l, defaultStore)
			}) {
				t.Errorf("no line for %s, ID %s, store %s:\n%s", repo, f.config.Encoded()[:12], defaultStore, o.stdout)
			}
			if !strings.Contains(listing.stdout, f.manifest.String()) || !strings.Contains(listing.stdout, f.config.Encoded()) {
				t.Errorf("--json lacks %s or %s of %s", f.manifest, f.config, i)
			}
		}
	})
	t.Run("nodebake verify", func(t *testing.T) {
		for _, args := range [][]string{{n.out}, {n.raw}, {n.out, "--json"}} {
			if o := nodebake(t, append([]string{"verify"}, args...)...); o.code != 0 {
				t.Errorf("%s", o)
			}
		}
	})
	t.Run("nodebake inspect", func(t *testing.T) {
		o := nodebake(t, "inspect", n.out)
		for _, word := range []string{"qcow2", "gpt", "ext4", "bookworm", defaultStore, "graphroot /var/lib/containers/storage"} {
			if !strings.Contains(strings.ToLower(o.stdout), word) {
				t.Errorf("no %q in\n%s", word, o)
			}
		}
		o = nodebake(t, "inspect", n.out, "--json")
		var got struct {
			Format     string
			Partitions []any
			Root       struct {
				Partition int
				Stores    []struct {
					Path           string
					Images, Layers int
				}
			}
		}
		if err := json.Unmarshal([]byte(o.stdout), &got); err != nil {
			t.Fatalf("%v\n%s", err, o)
		}
		if got.Format != "qcow2" || len(got.Partitions) != 4 || got.Root.Partition != nodeRoot {
			t.Errorf("%+v", got)
		}
		layers := map[string]bool{}
		for _, i := range checked {
			for _, l := range images[i].facts(t).layers {
				layers[l.id] = true
			}
		}
		if len(got.Root.Stores) != 1 || got.Root.Stores[0].Images != len(checked) || got.Root.Stores[0].Layers != len(layers) {
			t.Errorf("stores %+v, must be one with %d images and %d layers", got.Root.Stores, len(checked), len(layers))
		}
	})
	t.Run("nodebake ls and cat", func(t *testing.T) {
		f := images["hello"].facts(t)
		file := defaultStore + "/overlay/" + f.layers[1].id + "/diff/etc/greeting"
		if o := nodebake(t, "cat", n.out+":"+file); o.stdout != greeting || o.code != 0 {
			t.Errorf("%s", o)
		}
		if o := nodebake(t, "ls", n.out+":"+filepath.Dir(file)); !strings.Contains(o.stdout, "greeting") || !strings.Contains(o.stdout, "-rw-r--r--") {
			t.Errorf("%s", o)
		}
		if o := nodebake(t, "cat", n.out+":/no/such/file"); o.code != exitFailed || !strings.Contains(o.stderr, "no/such/file") {
			t.Errorf("%s", o)
		}
	})
	t.Run("memory", func(t *testing.T) {
		if n.byHand {
			t.Skip("made by hand")
		}
		if mib := n.build.usage.Maxrss >> 10; mib >= 256 {
			t.Errorf("the bake had %d MiB resident, must stay under 256", mib)
		}
	})
}

// engineTakes fails unless podman and buildah take a store with the images of checked as an additional one.
func engineTakes(t *testing.T, store string) {
	images := testImages(t)
	e := newEngine(t, store)
	t.Run("podman images", func(t *testing.T) {
		var want []string
		for _, i := range checked {
			want = append(want, fmt.Sprintf("%s true %s", images[i].name, images[i].facts(t).config.Encoded()))
		}
		got := strings.Split(e.do(t, "podman", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}} {{.ID}}"), "\n")
		for i := range got {
			got[i] = strings.Replace(got[i], "sha256:", "", 1)
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(want, got) {
			t.Errorf("podman lists\n%s\nmust list\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
	t.Run("run", func(t *testing.T) {
		for image, steps := range map[string][][2]string{
			"hello":  {{"/bin/entry", strings.TrimRight(helloPrints, "\n")}},
			"debian": {{"/opt/app/entry", strings.TrimRight(helloPrints, "\n")}, {"ls /etc/cron.daily /var/lib/dpkg/info", "/etc/cron.daily:\n\n/var/lib/dpkg/info:\nonly"}},
		} {
			c := e.do(t, "buildah", "from", "--pull-never", images[image].name)
			for _, s := range steps {
				if got := e.do(t, "buildah", append([]string{"run", "--isolation", "chroot", c, "--"}, strings.Fields(s[0])...)...); got != s[1] {
					t.Errorf("%s in %s printed %q, must print %q", s[0], image, got, s[1])
				}
			}
			e.do(t, "buildah", "rm", c)
		}
	})
	t.Run("by digest", func(t *testing.T) {
		f := images["hello"].facts(t)
		name := strings.TrimSuffix(images["hello"].name, ":1") + "@" + f.manifest.String()
		if id := e.do(t, "podman", "image", "inspect", "--format", "{{.Id}}", name); id != f.config.Encoded() {
			t.Errorf("%s is image %s, must be %s", name, id, f.config.Encoded())
		}
	})
	t.Run("rmi refused", func(t *testing.T) {
		o := e.try(t, "podman", "rmi", images["hello"].name)
		if o.code == 0 || !strings.Contains(o.stderr, "read-only") && !strings.Contains(o.stderr, "read only") {
			t.Errorf("%s", o)
		}
		e.do(t, "podman", "image", "exists", images["hello"].name)
	})
	t.Run("save is what podman's own store saves", func(t *testing.T) {
		own := newEngine(t)
		names := []string{"hello", "odd", "exact"}
		if os.Getenv("NODEBAKE_SOAK") != "" {
			names = checked // podman compresses every layer again
		}
		for _, i := range names {
			own.do(t, "podman", "load", "-q", "-i", images[i].ociArchive)
			want, got := own.saved(t, images[i].name), e.saved(t, images[i].name)
			if want != got {
				t.Errorf("%s: podman's own store saves\n%sours saves\n%s", i, want, got)
			}
		}
	})
	t.Run("load adds no layer", func(t *testing.T) {
		other := newEngine(t, store)
		for _, i := range []string{"hello", "odd", "debian", "exact"} {
			other.do(t, "podman", "load", "-q", "-i", images[i].ociArchive)
		}
		if l := other.layers(t); l != 0 {
			t.Errorf("the engine's own store has %d layers, must have none", l)
		}
	})
}

func walkStrings(v any, visit func(string)) {
	switch v := v.(type) {
	case string:
		visit(v)
	case []any:
		for _, e := range v {
			walkStrings(e, visit)
		}
	case map[string]any:
		for _, e := range v {
			walkStrings(e, visit)
		}
	}
}

// confGained fails unless after is before with the store put into additionalimagestores, first, and nothing else:
// what differs is one run of bytes that names the store.
func confGained(t testing.TB, before, after, store string) {
	t.Helper()
	head := 0
	for head < len(before) && head < len(after) && before[head] == after[head] {
		head++
	}
	tail := 0
	for tail < len(before)-head && tail < len(after)-head && before[len(before)-1-tail] == after[len(after)-1-tail] {
		tail++
	}
	lost, gained := before[head:len(before)-tail], after[head:len(after)-tail]
	if !strings.Contains(gained, store) && !strings.Contains(after[max(0, head-len(store)):len(after)-tail+min(tail, len(store))], store) {
		t.Errorf("gained %q, which does not name %s", gained, store)
	}
	// An empty list may be written anew, and a commented key may lose its #; no word may be lost.
	if strings.Trim(lost, " \t\n#[]\"") != "" {
		t.Errorf("lost %q\nbefore:\n%s\nafter:\n%s", lost, before, after)
	}
}

// confLoads fails unless containers/storage's own loader, on the tree at root, finds the store first of all.
func confLoads(t testing.TB, root, store string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir()) // the tester's own settings are no part of the disk
	options, err := types.LoadStoreOptions(types.LoadOptions{RootForImplicitAbsolutePaths: root})
	check(t, err)
	var stores []string
	for _, o := range options.GraphDriverOptions {
		if s, ok := strings.CutPrefix(o, "imagestore="); ok {
			stores = append(stores, filepath.Clean(s))
		}
	}
	if len(stores) == 0 || stores[0] != store {
		t.Errorf("containers/storage loads the additional stores %q; the first must be %s", stores, store)
	}
	if options.GraphRoot == store {
		t.Errorf("%s is the graphroot too", store)
	}
}
