package integration

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// label is the attribute that holds a file's SELinux label.
const label = "security.selinux"

// Where the OCK-like disk has its things; root is always the last partition.
const (
	ockBoot     = 2
	ockVar      = 3 // where there is one of its own
	subsPath    = "etc/selinux/default/contexts/files/file_contexts.subs"
	storageConf = "/" + confPath
)

//go:embed testdata/ockdisk.sh
var ockdiskRecipe []byte

var ockTools = []string{"root", "sfdisk", "mkfs.xfs", "mkfs.vfat", "xfs_repair", "losetup", "qemu-img", "ostree", "setfiles"}

var madeOCKDisk = sync.OnceValues(func() (string, error) {
	rootfs, err := rootfsTar("node")
	if err != nil {
		return "", err
	}
	dir, err := cached("ockdisk", [][]byte{rootfsRecipe, ockdiskRecipe}, func(dir string) error {
		_, err := tool("testdata/ockdisk.sh", rootfs, dir)
		return err
	})
	return dir + "/disk.qcow2", err
})

// ockDisk is the Debian disk in OCK's layout, which boots.
func ockDisk(t testing.TB) string {
	t.Helper()
	needsPolicy(t)
	requires(t, append(ockTools, "mmdebstrap", "apt-get", "dpkg-deb")...)
	start := time.Now()
	disk, err := madeOCKDisk()
	check(t, err)
	if took := time.Since(start); took > time.Second {
		t.Logf("OCK-like disk made in %.1fs", took.Seconds())
	}
	return disk
}

// smallOCK writes a disk in the same layout with next to nothing on it; env varies it as ockdisk.sh says.
func smallOCK(t testing.TB, env ...string) string {
	t.Helper()
	needsPolicy(t)
	requires(t, ockTools...)
	dir := tempDir(t)
	for name, content := range rootFiles(t, map[string]string{confPath: ""}) {
		name = filepath.Join(dir, "tree", name)
		check(t, os.MkdirAll(filepath.Dir(name), 0o755))
		check(t, os.WriteFile(name, []byte(content), 0o755))
	}
	run(t, "tar", "-C", dir+"/tree", "--owner=0", "--group=0", "-cf", dir+"/tree.tar", ".")
	_, err := toolEnv(append([]string{"SIZE=700M"}, env...), "testdata/ockdisk.sh", dir+"/tree.tar", dir)
	check(t, err)
	return dir + "/disk.qcow2"
}

// needsPolicy is requires for Debian's selinux-policy-default.
func needsPolicy(t testing.TB) {
	t.Helper()
	const contexts = "/etc/selinux/default/contexts/files/file_contexts"
	if _, err := os.Stat(contexts); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("missing: " + contexts)
	}
	t.Skip("missing: " + contexts)
}

// ockMounts is an OCK-like disk, mounted.
type ockMounts struct {
	sysroot    string   // the root filesystem, with boot and a /var of its own in their places
	system     string   // what the running system sees as /
	deployment string   // the default deployment's folder, below sysroot
	all        []string // every deployment's, the default one first
	kernel     nodeDisk // what the boot loader starts
	undo       []string
}

// mountOCK mounts a raw disk as its boot loader and initial file system would: by the loader's entries.
func mountOCK(t testing.TB, raw, options string) *ockMounts {
	t.Helper()
	parts := partitions(t, raw)
	root := len(parts)
	store := strings.TrimSpace(run(t, "blkid", "-p", "-o", "value", "-s", "LABEL", "-O", fmt.Sprint(parts[root-1].start), raw)) == "nodebake"
	if store {
		root--
	}
	m := &ockMounts{sysroot: mount(t, raw, root, options)}
	m.undo = append(m.undo, m.sysroot)
	mountAt(t, raw, ockBoot, options, m.sysroot+"/boot")
	m.undo = append(m.undo, m.sysroot+"/boot")
	stateroot := m.sysroot + "/ostree/deploy/ock"
	if root > ockVar {
		mountAt(t, raw, ockVar, options, stateroot+"/var")
		m.undo = append(m.undo, stateroot+"/var")
	}
	if store {
		mountAt(t, raw, root+1, "ro", stateroot+defaultStore)
		m.undo = append(m.undo, stateroot+defaultStore)
	}
	// The entry of the highest version is the first of the menu.
	entries, err := filepath.Glob(m.sysroot + "/boot/loader/entries/*.conf")
	check(t, err)
	slices.Sort(entries)
	slices.Reverse(entries)
	for _, e := range entries {
		keys := map[string]string{}
		for _, line := range strings.Split(read(t, "/", e), "\n") {
			k, v, _ := strings.Cut(line, " ")
			keys[k] = strings.TrimSpace(v)
		}
		_, target, ok := strings.Cut(keys["options"], "ostree=")
		if !ok {
			t.Fatalf("%s starts no deployment", e)
		}
		target, _, _ = strings.Cut(target, " ")
		d, err := filepath.EvalSymlinks(m.sysroot + target)
		check(t, err)
		m.all = append(m.all, strings.TrimPrefix(d, m.sysroot+"/"))
		if m.deployment == "" {
			m.deployment = m.all[0]
			m.kernel = nodeDisk{kernel: m.sysroot + "/boot" + keys["linux"], initrd: m.sysroot + "/boot" + keys["initrd"], options: keys["options"]}
		}
	}
	if m.deployment == "" {
		t.Fatal("the boot partition has no entry")
	}
	m.system, err = os.MkdirTemp(scratch, "sys.")
	check(t, err)
	run(t, "mount", "--bind", m.sysroot+"/"+m.deployment, m.system)
	m.undo = append(m.undo, m.system)
	for at, from := range map[string]string{"/var": stateroot + "/var", "/boot": m.sysroot + "/boot"} {
		run(t, "mount", "--rbind", from, m.system+at)
		m.undo = append(m.undo, m.system+at)
	}
	t.Cleanup(func() {
		for i := len(m.undo) - 1; i >= 0; i-- {
			unix.Unmount(m.undo[i], unix.MNT_DETACH)
		}
		os.Remove(m.system)
	})
	return m
}

func (m *ockMounts) unmount(t testing.TB) {
	t.Helper()
	for i := len(m.undo) - 1; i >= 0; i-- {
		run(t, "umount", "-R", m.undo[i])
	}
	m.undo = nil
}

// relabel is what OCK's first boot does: it sets the labels of /etc and /var by the policy in the deployment's /etc.
// It gives back what was set, or with dry what would be.
func (m *ockMounts) relabel(t testing.TB, dry bool) string {
	t.Helper()
	said := ""
	set := func(root string, names ...string) {
		// -m: a kernel without SELinux has no labelled mounts, and without it setfiles passes over all of them.
		args := []string{"-F", "-v", "-m", "-r", root, root + "/etc/selinux/default/contexts/files/file_contexts"}
		for _, n := range names {
			args = append(args, root+n)
		}
		if dry {
			args = append([]string{"-n"}, args...)
		}
		o := command(t, nil, "setfiles", args...)
		if o.code != 0 {
			t.Fatalf("%s", o)
		}
		said += o.stdout + o.stderr
	}
	set(m.system, "/etc", "/var")
	for _, d := range m.all[1:] {
		set(m.sysroot+"/"+d, "/etc")
	}
	return said
}

// ostreeSound fails unless the repository is whole and the deployments are those of before.
func (m *ockMounts) ostreeSound(t testing.TB, status string) {
	t.Helper()
	if o := command(t, nil, "ostree", "fsck", "--quiet", "--repo="+m.sysroot+"/ostree/repo"); o.code != 0 {
		t.Errorf("%s", o)
	}
	if got := m.status(t); got != status {
		t.Errorf("ostree admin status says\n%smust say\n%s", got, status)
	}
}

func (m *ockMounts) status(t testing.TB) string {
	t.Helper()
	return run(t, "ostree", "admin", "status", "--sysroot="+m.sysroot)
}

// sameElsewhere fails unless a bake changed nothing but the store and, in each deployment's /etc, storage.conf and the
// policy's line; folders that gained a name have another time.
func sameElsewhere(t testing.TB, before, after *ockMounts, store string) {
	t.Helper()
	want, err := diskNodes(before.sysroot, "")
	check(t, err)
	store = "ostree/deploy/ock" + store
	got, err := diskNodes(after.sysroot, store)
	check(t, err)
	if got[store] == nil {
		t.Fatalf("no %s", store)
	}
	delete(got, store)
	gained := []string{filepath.Dir(store)}
	for _, d := range before.all {
		for _, name := range []string{confPath, subsPath} {
			name = d + "/" + name
			gained = append(gained, filepath.Dir(name))
			n := got[name]
			if n == nil {
				t.Errorf("no %s", name)
				continue
			}
			if n.mode != 0o644 || n.uid != 0 || n.gid != 0 || n.kind != unix.S_IFREG || n.links != "" {
				t.Errorf("%s: %+v", name, n)
			}
			if was := want[name]; was != nil {
				if !maps.Equal(was.xattrs, n.xattrs) {
					t.Errorf("%s had the attributes %q and has %q", name, was.xattrs, n.xattrs)
				}
				if was.hash == n.hash {
					t.Errorf("%s is as it was", name)
				}
			}
			delete(want, name)
			delete(got, name)
		}
	}
	for _, name := range gained {
		want[name].mtime = got[name].mtime
	}
	for _, fault := range compareNodes(want, got) {
		t.Error(fault)
	}
	t.Logf("%d names outside the store are as they were", len(want))
}

// bakedOCK is the OCK-like disk with every image of checked, made once and only read.
type bakedOCK struct {
	base, baseHash string
	args           []string // of the bake, but for the output
	out            string   // qcow2
}

var (
	onceOCK sync.Once
	oneOCK  *bakedOCK
)

func theOCK(t testing.TB) *bakedOCK {
	t.Helper()
	base, images := ockDisk(t), testImages(t)
	onceOCK.Do(func() {
		dir := filepath.Join(scratch, "ock")
		check(t, os.Mkdir(dir, 0o755))
		o := &bakedOCK{base: base, baseHash: hashFile(t, base), args: []string{"--base", base, "--quiet"}, out: dir + "/ock.qcow2"}
		for _, i := range checked {
			o.args = append(o.args, "--image", "oci-archive:"+images[i].ociArchive)
		}
		build := measured(t, productPath(t), append([]string{"build", "--output", o.out}, o.args...)...)
		if build.code != 0 {
			t.Fatalf("%s", build)
		}
		t.Logf("baked %d images: %.1fs, peak %d MiB", len(checked), build.took.Seconds(), build.usage.Maxrss>>10)
		if mib := build.usage.Maxrss >> 10; mib >= 256 {
			t.Errorf("the bake had %d MiB resident, must stay under 256", mib)
		}
		oneOCK = o
	})
	if oneOCK == nil {
		t.Fatal("the OCK-like disk could not be baked; the first test that needs it says why")
	}
	return oneOCK
}

// TestOstree bakes every image into the OCK-like disk and holds the result against the tools that own its formats.
func TestOstree(t *testing.T) {
	requires(t, "podman", "buildah", "skopeo", "dmesg")
	o, images := theOCK(t), testImages(t)
	dir, out := tempDir(t), o.out
	baked(t, append(o.args, "--output", dir+"/raw.img")...)
	rawBase, raw := rawOf(t, dir, o.base), dir+"/raw.img"
	root := len(partitions(t, raw))

	t.Run("base unchanged", func(t *testing.T) {
		if h := hashFile(t, o.base); h != o.baseHash {
			t.Errorf("the base's SHA-256 was %s and is %s", o.baseHash, h)
		}
	})
	t.Run("qcow2 and raw", func(t *testing.T) {
		qemuCheck(t, out)
		sameContents(t, out, raw)
	})
	t.Run("only the root changed", func(t *testing.T) {
		if sameOutside(t, rawBase, raw, root) == 0 {
			t.Error("nothing changed inside the root partition")
		}
	})
	t.Run("xfs_repair", func(t *testing.T) {
		xfsRepair(t, raw, ockBoot)
		xfsRepair(t, raw, root)
	})

	before, m := mountOCK(t, rawBase, "ro"), mountOCK(t, raw, "ro")
	store := m.system + defaultStore
	t.Run("files outside the store", func(t *testing.T) { sameElsewhere(t, before, m, defaultStore) })
	t.Run("ostree", func(t *testing.T) { m.ostreeSound(t, before.status(t)) })
	t.Run("storage.conf", func(t *testing.T) {
		confGained(t, read(t, before.system, confPath), read(t, m.system, confPath), defaultStore)
		confLoads(t, m.system, defaultStore)
		// The OS's own copy, from which ostree merges the next deployment's, stays.
		if read(t, m.system, "usr/"+confPath) != read(t, before.system, confPath) {
			t.Error("/usr/etc changed")
		}
	})
	for _, i := range checked {
		t.Run("layers of "+i, func(t *testing.T) { compareLayers(t, store, images[i], true) })
	}
	t.Run("labels in the inodes", func(t *testing.T) {
		nodes, err := diskNodes(store, "")
		check(t, err)
		files := 0
		for name, n := range nodes {
			if n.kind != unix.S_IFREG || len(n.xattrs) != 1 {
				continue
			}
			files++
			if e := attributeExtents(t, store+"/"+name); e != 0 {
				t.Fatalf("%s: %d extents for a label alone", name, e)
			}
		}
		// The proof can fail: an attribute of 400 bytes fits in no inode.
		layers := images["odd"].facts(t).layers
		if attributeExtents(t, store+"/overlay/"+layers[2].id+"/diff/odd/attributes") == 0 {
			t.Error("no extent for long attributes")
		}
		t.Logf("%d files", files)
	})
	t.Run("containers-storage check, read-only", func(t *testing.T) { checkStore(t, store, true) })
	t.Run("containers-storage check, as primary", func(t *testing.T) { checkStore(t, primaryCopy(t, store), false) })
	t.Run("engine", func(t *testing.T) { engineTakes(t, store) })
	t.Run("nodebake", func(t *testing.T) {
		if o := nodebake(t, "verify", out); o.code != exitDone {
			t.Errorf("%s", o)
		}
		o := nodebake(t, "images", out)
		for _, i := range checked {
			if !strings.Contains(o.stdout, strings.TrimSuffix(images[i].name, ":1")) || !strings.Contains(o.stdout, images[i].facts(t).config.Encoded()[:12]) {
				t.Errorf("no %s in\n%s", i, o)
			}
		}
		o = nodebake(t, "inspect", out)
		for _, word := range []string{"qcow2", "gpt", "xfs", "bookworm", "ostree", defaultStore, "/usr/ock/containers"} {
			if !strings.Contains(strings.ToLower(o.stdout), word) {
				t.Errorf("no %q in\n%s", word, o)
			}
		}
		if o := nodebake(t, "cat", out+":"+storageConf); o.stdout != read(t, m.system, confPath) {
			t.Errorf("%s", o)
		}
	})
	before.unmount(t)
	m.unmount(t)

	// From here on the disk is written.
	t.Run("relabel", func(t *testing.T) {
		m := mountOCK(t, raw, "rw")
		defer m.unmount(t)
		was, err := diskNodes(m.sysroot+"/ostree/deploy/ock", "")
		check(t, err)
		if said := m.relabel(t, false); said != "" {
			t.Errorf("setfiles changed labels:\n%s", clip(said))
		}
		is, err := diskNodes(m.sysroot+"/ostree/deploy/ock", "")
		check(t, err)
		for _, fault := range compareNodes(was, is) {
			t.Error(fault)
		}
		storeLabel := is["var/images/overlay"].xattrs[label]
		if storeLabel != "system_u:object_r:container_ro_file_t:s0\x00" {
			t.Errorf("the store's layers are %q", storeLabel)
		}
		// The proof can fail: without the labels, and without the line that makes them right, setfiles has work.
		layers := images["hello"].facts(t).layers
		for _, name := range []string{"images/overlay/" + layers[0].id + "/diff/bin/entry", "images"} {
			check(t, unix.Lremovexattr(m.system+"/var/"+name, label))
			if said := m.relabel(t, true); !strings.Contains(said, "/var/"+name+" ") {
				t.Errorf("setfiles misses no label of %s:\n%s", name, clip(said))
			}
		}
		check(t, os.Remove(m.system+"/"+subsPath))
		if said := m.relabel(t, true); !strings.Contains(said, "/var/images/overlay ") {
			t.Errorf("without the line setfiles finds nothing:\n%s", clip(said))
		}
	})
}

// TestOstreeAgain bakes onto an output, and twice the same.
func TestOstreeAgain(t *testing.T) {
	images := testImages(t)
	base, dir := smallOCK(t), tempDir(t)
	hello, odd := "oci-archive:"+images["hello"].ociArchive, "oci-archive:"+images["odd"].ociArchive
	for _, format := range []string{"qcow2", "raw"} {
		var sums []string
		for n, env := range [][]string{nil, {"GOMAXPROCS=1", "TZ=Asia/Tokyo"}} {
			out := fmt.Sprintf("%s/1-%d.%s", dir, n, format)
			if o := command(t, env, productPath(t), "build", "--base", base, "--image", hello, "--output", out, "--quiet"); o.code != 0 {
				t.Fatalf("%s", o)
			}
			sums = append(sums, hashFile(t, out))
		}
		if sums[0] != sums[1] {
			t.Errorf("two bakes of the same gave %s and %s", sums[0], sums[1])
		}
	}
	first, second, third := dir+"/1-0.raw", dir+"/2.raw", dir+"/3.raw"
	baked(t, "--base", dir+"/1-0.qcow2", "--image", odd, "--output", second, "--quiet")
	o := baked(t, "--base", second, "--image", hello, "--output", third)
	if !strings.Contains(strings.ToLower(o.stdout+o.stderr), "already") {
		t.Errorf("does not say that the image is there already\n%s", o)
	}
	for _, raw := range []string{first, second, third} {
		xfsRepair(t, raw, 3)
	}
	var all []map[string]*node
	status := ""
	for _, raw := range []string{first, second, third} {
		m := mountOCK(t, raw, "ro")
		if status == "" {
			status = m.status(t)
		}
		m.ostreeSound(t, status)
		if said := m.relabel(t, true); said != "" {
			t.Errorf("%s: setfiles would change\n%s", raw, clip(said))
		}
		for _, i := range []string{"hello", "odd"} {
			if i == "hello" || raw != first {
				compareLayers(t, m.system+defaultStore, images[i], true)
			}
		}
		nodes, err := diskNodes(m.sysroot, "")
		check(t, err)
		all = append(all, nodes)
		m.unmount(t)
	}
	// The second bake adds layers and leaves those that were there; the third changes nothing at all.
	kept := maps.Clone(all[1])
	records := "ostree/deploy/ock/var/images"
	for name, n := range all[1] {
		switch {
		case all[0][name] == nil:
			if !strings.HasPrefix(name, records+"/") {
				t.Errorf("the second bake made %s", name)
			}
			delete(kept, name)
		case strings.HasPrefix(name, records) && !strings.Contains(name, "/diff"):
			// Folders that gained names, and the lists of what is there.
			delete(kept, name)
			all[0][name] = n
			kept[name] = n
		}
	}
	for _, fault := range compareNodes(all[0], kept) {
		t.Error("second bake: ", fault)
	}
	for _, fault := range compareNodes(all[1], all[2]) {
		t.Error("third bake: ", fault)
	}
	for _, raw := range []string{second, third} {
		if o := nodebake(t, "verify", raw); o.code != exitDone {
			t.Errorf("%s", o)
		}
	}
}

// TestOstreeLayouts has disks that differ in what lies where.
func TestOstreeLayouts(t *testing.T) {
	images := testImages(t)
	for _, c := range []struct {
		name   string
		env    []string
		change func(t *testing.T, raw string)
	}{
		{name: "two deployments", change: func(t *testing.T, raw string) {
			m := mountOCK(t, raw, "rw")
			tree := tempDir(t) + "/tree"
			check(t, os.MkdirAll(tree+"/usr/share", 0o755))
			check(t, os.WriteFile(tree+"/usr/share/update", []byte("an update\n"), 0o644))
			run(t, "ostree", "--repo="+m.sysroot+"/ostree/repo", "commit", "-b", "ock/2", "--tree=ref=ock/1", "--tree=dir="+tree, "--timestamp=@1735689601")
			run(t, "ostree", "admin", "deploy", "--sysroot="+m.sysroot, "--os=ock", "--no-merge", "--retain", "--karg=root=LABEL=root", "--karg=rw", "ock/2")
			m.unmount(t)
			m = mountOCK(t, raw, "rw")
			// ostree makes some files of a new deployment without asking the policy.
			m.relabel(t, false)
			m.unmount(t)
		}},
		{name: "var of its own", env: []string{"VAR=320M", "SIZE=1020M"}},
		{name: "boot in ext4", env: []string{"BOOTFS=ext4"}},
		{name: "no policy", env: []string{"POLICY=no"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			base, out := dir+"/base.raw", dir+"/out.raw"
			run(t, "qemu-img", "convert", "-O", "raw", smallOCK(t, c.env...), base)
			if c.change != nil {
				c.change(t, base)
			}
			o := baked(t, "--base", base, "--image", "oci-archive:"+images["odd"].ociArchive, "--output", out, "--report", dir+"/report.json")
			for _, p := range partitions(t, out)[1:] {
				fsck(t, out, p.number)
			}
			before, m := mountOCK(t, base, "ro"), mountOCK(t, out, "ro")
			m.ostreeSound(t, before.status(t))
			labels := c.name != "no policy"
			compareLayers(t, m.system+defaultStore, images["odd"], labels)
			if labels {
				sameElsewhere(t, before, m, defaultStore)
				if said := m.relabel(t, true); said != "" {
					t.Errorf("setfiles would change\n%s", clip(said))
				}
			}
			confLoads(t, m.system, defaultStore)
			var report struct{ ChangedFiles []struct{ Path string } }
			readJSON(t, dir+"/report.json", &report)
			changed := fmt.Sprint(report.ChangedFiles)
			for _, d := range m.all {
				confGained(t, read(t, before.sysroot, d+storageConf), read(t, m.sysroot, d+storageConf), defaultStore)
				if name := filepath.Base(d)[:12]; len(m.all) > 1 && (!strings.Contains(changed, name) || !strings.Contains(o.stderr, name)) {
					t.Errorf("the report does not say that %s changed: %s\n%s", name, changed, o)
				}
			}
			if n := strings.Count(changed, storageConf); n != len(m.all) {
				t.Errorf("the report has storage.conf %d times, must %d times: %s", n, len(m.all), changed)
			}
			if want := map[bool]int{true: 2, false: 1}[c.change != nil]; len(m.all) != want {
				t.Errorf("%d deployments", len(m.all))
			}
			if c.name == "var of its own" {
				// The store is on that partition, and not beneath the mount.
				sysroot := mount(t, out, len(partitions(t, out)), "ro")
				mustNotExist(t, sysroot+"/ostree/deploy/ock"+defaultStore)
				if _, err := os.Stat(mount(t, out, ockVar, "ro") + "/images/overlay"); err != nil {
					t.Error(err)
				}
			}
			if o := nodebake(t, "verify", out); o.code != exitDone {
				t.Errorf("%s", o)
			}
			o = nodebake(t, "inspect", out, "--json")
			var any any
			if err := json.Unmarshal([]byte(o.stdout), &any); err != nil {
				t.Errorf("%v\n%s", err, o)
			}
			if c.name != "boot in ext4" {
				return
			}
			for _, store := range []string{"/usr/x", "/usr/ock/containers", "/ostree/x"} {
				o := nodebake(t, "build", "--base", base, "--image", images["exact"].oci(), "--store", store, "--output", dir+"/x.raw")
				refused(t, o, exitFailed, dir+"/x.raw", store, "ostree's files", "/var")
			}
		})
	}
}

// TestOstreeStorePartition puts the store of an OCK-like disk on a partition of its own: labels, units and ostree's files
// are as they must be, and the relabel of the first boot finds nothing to do on what it could not write.
func TestOstreeStorePartition(t *testing.T) {
	requires(t, "root", "ostree", "setfiles", "blkid", "xfs_repair", "e2fsck")
	needsPolicy(t)
	images := testImages(t)
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			dir := tempDir(t)
			base, out := dir+"/base.raw", dir+"/out.raw"
			run(t, "qemu-img", "convert", "-O", "raw", smallOCK(t), base)
			baked(t, "--base", base, "--image", "oci-archive:"+images["debian"].ociArchive, "--output", out, "--store-partition="+kind, "--quiet")
			tableSound(t, out)
			for _, p := range partitions(t, out)[1:] {
				fsck(t, out, p.number)
			}
			before, m := mountOCK(t, base, "ro"), mountOCK(t, out, "ro")
			m.ostreeSound(t, before.status(t))
			compareLayers(t, m.system+defaultStore, images["debian"], true)
			if said := m.relabel(t, true); said != "" {
				t.Errorf("setfiles would change\n%s", clip(said))
			}
			confLoads(t, m.system, defaultStore)
			if text := read(t, m.system, "etc/systemd/system/var-images.mount"); !strings.Contains(text, "Type="+kind+"\n") {
				t.Errorf("the unit is\n%s", text)
			}
			if o := nodebake(t, "verify", out); o.code != exitDone {
				t.Errorf("%s", o)
			}
			o := nodebake(t, "images", out)
			if !strings.Contains(o.stdout, "localhost/nodebake/debian") {
				t.Errorf("%s", o)
			}
		})
	}
}

// TestOstreeBoot starts the baked OCK-like disk as its boot loader's entry says.
func TestOstreeBoot(t *testing.T) {
	requires(t, "qemu-system-x86_64")
	o, images := theOCK(t), testImages(t)
	// The machine writes to an overlay; nodebake reads it with its backing file, from the same folder.
	disk := filepath.Join(filepath.Dir(o.out), "running.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Base(o.out), "-F", "qcow2", disk)
	t.Cleanup(func() { os.Remove(disk) })
	m := mountOCK(t, rawOf(t, tempDir(t), o.out), "ro")
	status := m.status(t)
	// At this level the kernel's complaints alone.
	console := startMachine(t, m.kernel, disk, useStore(images)+"dmesg --level=emerg,alert,crit,err,warn | sed 's/^/KERNEL /'\nfindmnt -n -o FSTYPE,OPTIONS / | sed 's/^/ROOT /'").wait(t)
	storeUsed(t, console, images)
	if !strings.Contains(console, "\nROOT xfs ") {
		t.Errorf("the root is no XFS\n%s", clip(console))
	}
	for _, line := range strings.Split(console, "\n") {
		if strings.HasPrefix(line, "KERNEL ") && strings.Contains(line, "XFS (") {
			t.Error(line)
		}
	}
	m.unmount(t)

	raw := rawOf(t, tempDir(t), disk)
	xfsRepair(t, raw, len(partitions(t, raw)))
	m = mountOCK(t, raw, "ro")
	m.ostreeSound(t, status)
	for _, i := range []string{"hello", "odd", "debian", "exact"} {
		compareLayers(t, m.system+defaultStore, images[i], true)
	}
	if o := nodebake(t, "verify", disk); o.code != exitDone {
		t.Errorf("%s", o)
	}
}
