package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bakedRight fails unless an output holds the images whole and nothing but the root partition changed.
func bakedRight(t testing.TB, base, out string, root int, images ...image) {
	t.Helper()
	dir := tempDir(t)
	qemuCheck(t, out)
	before, after := rawOf(t, dir, base), rawOf(t, dir, out)
	sameOutside(t, before, after, root)
	fsck(t, after, root)
	mnt := mount(t, after, root, "ro")
	defer unmount(t, mnt)
	for _, i := range images {
		compareStore(t, mnt+defaultStore, i)
	}
	confLoads(t, mnt, defaultStore)
	if o := nodebake(t, "verify", out); o.code != exitDone {
		t.Errorf("%s", o)
	}
}

// TestFormats bakes into one disk in every form that a base can have, to both forms of output.
func TestFormats(t *testing.T) {
	requires(t, "root", "qemu-img", "qemu-io", "e2fsck")
	images := testImages(t)
	base := smallBase(t)
	dir := tempDir(t)
	convert := func(name string, options ...string) string {
		out := filepath.Join(dir, name)
		run(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, options...), base, out)...)
		return out
	}
	// A chain of three: the end of the disk is in the middle, and the top holds changes of its own.
	must := func(name string, args ...string) { run(t, name, args...) }
	chain := func() string {
		check(t, copyFile(base, dir+"/bottom.raw", 0o444))
		must("qemu-img", "create", "-q", "-f", "qcow2", "-b", "bottom.raw", "-F", "raw", dir+"/middle.qcow2")
		must("qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1500k 100k", dir+"/middle.qcow2")
		must("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=16k", "-b", "middle.qcow2", "-F", "qcow2", dir+"/top.qcow2")
		must("qemu-io", "-f", "qcow2", "-c", "write -z 1200k 64k", "-c", "write -P 0xa5 1600k 4k", dir+"/top.qcow2")
		return dir + "/top.qcow2"
	}
	for _, c := range []struct {
		name string
		base func() string
	}{
		{"raw", func() string { return base }},
		{"raw named qcow2", func() string { n := dir + "/raw.qcow2"; check(t, copyFile(base, n, 0o444)); return n }},
		{"v2", func() string { return convert("v2.qcow2", "-o", "compat=0.10") }},
		{"v3", func() string { return convert("v3.qcow2", "-o", "compat=1.1") }},
		{"v3 named img", func() string { return convert("v3.img") }},
		{"clusters of 512", func() string { return convert("512.qcow2", "-o", "cluster_size=512") }},
		{"clusters of 4K", func() string { return convert("4k.qcow2", "-o", "cluster_size=4k") }},
		{"clusters of 2M", func() string { return convert("2m.qcow2", "-o", "cluster_size=2M") }},
		{"zlib", func() string { return convert("zlib.qcow2", "-c") }},
		{"zlib v2 4K", func() string { return convert("zlib4k.qcow2", "-c", "-o", "compat=0.10,cluster_size=4k") }},
		{"zstd", func() string { return convert("zstd.qcow2", "-c", "-o", "compression_type=zstd") }},
		{"extended L2", func() string { return convert("el2.qcow2", "-o", "extended_l2=on,cluster_size=64k") }},
		{"refcounts of 1 bit", func() string { return convert("rc1.qcow2", "-o", "refcount_bits=1") }},
		{"preallocated", func() string { return convert("pre.qcow2", "-o", "preallocation=metadata") }},
		{"chain", chain},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := c.base()
			out := tempDir(t)
			args := []string{"--base", disk, "--image", "oci-archive:" + images["hello"].ociArchive, "--quiet"}
			baked(t, append(args, "--output", out+"/a.qcow2")...)
			baked(t, append(args, "--output", out+"/b", "--output-format", "raw")...)
			if !isQcow(t, out+"/a.qcow2") || isQcow(t, out+"/b") {
				t.Error("an output has the wrong format")
			}
			bakedRight(t, disk, out+"/b", smallRoot, images["hello"])
			qemuCheck(t, out+"/a.qcow2")
			sameContents(t, out+"/a.qcow2", out+"/b")
			if info := run(t, "qemu-img", "info", out+"/a.qcow2"); strings.Contains(info, "backing file") || !strings.Contains(info, "compat: 1.1") {
				t.Errorf("must be qcow2 v3 without a backing file:\n%s", info)
			}
		})
	}
}

// TestTables bakes into a disk of each kind of partition table.
func TestTables(t *testing.T) {
	requires(t, "root", "sfdisk", "e2fsck")
	images := testImages(t)
	typed := func(p part, kind, name string) part {
		p.kind, p.name = kind, name
		return p
	}
	esp := part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise}
	for _, c := range []struct {
		name, table string
		root        int
		parts       []part
	}{
		{"gpt, root type", "gpt", 2, []part{esp, rootPart(t, nil)}},
		{"gpt, Linux type", "gpt", 2, []part{esp, typed(rootPart(t, nil), typeLinux, "")}},
		{"gpt, root first", "gpt", 1, []part{rootPart(t, nil), esp}},
		{"gpt, unlabelled root", "gpt", 3, []part{esp, {size: 8 * mib, kind: typeLinux, make: ext4(), files: map[string]string{"data": "no root"}}, typed(rootPart(t, nil, "-L", ""), typeLinux, "")}},
		{"mbr", "mbr", 2, []part{{size: 4 * mib, kind: "c", make: noise}, typed(rootPart(t, nil), "83", "")}},
		{"bare", "bare", 0, []part{rootPart(t, nil)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			makeDisk(t, dir+"/base.raw", c.table, c.parts...)
			baked(t, "--base", dir+"/base.raw", "--image", "oci-archive:"+images["hello"].ociArchive, "--output", dir+"/out.raw")
			bakedRight(t, dir+"/base.raw", dir+"/out.raw", c.root, images["hello"])
		})
	}
}

// TestFilesystems bakes the image of every kind of file into differently made ext4.
func TestFilesystems(t *testing.T) {
	requires(t, "root", "mke2fs", "e2fsck")
	images := testImages(t)
	for name, options := range map[string][]string{
		"defaults":          nil,
		"1K blocks":         {"-b", "1024"},
		"2K blocks":         {"-b", "2048", "-I", "512"},
		"no checksums":      {"-O", "^metadata_csum,uninit_bg"},
		"plain":             {"-O", "^metadata_csum,^64bit,^flex_bg,^resize_inode,^has_journal,^dir_index"},
		"orphan file, seed": {"-O", "orphan_file,metadata_csum_seed"},
		"inline data":       {"-O", "inline_data,large_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			p := rootPart(t, nil, append([]string{"-N", "20000"}, options...)...)
			p.size = 256 * mib
			makeDisk(t, dir+"/base.raw", "gpt", p)
			baked(t, "--base", dir+"/base.raw", "--image", "oci-archive:"+images["odd"].ociArchive, "--image", images["exact"].oci(),
				"--image", images["quirks"].oci(), "--output", dir+"/out.raw")
			bakedRight(t, dir+"/base.raw", dir+"/out.raw", 1, images["odd"], images["exact"], images["quirks"])
			// The kernel goes on with the filesystem where the bake left off.
			mnt := mount(t, dir+"/out.raw", 1, "rw")
			run(t, "cp", "-a", mnt+defaultStore+"/overlay", mnt+"/copy")
			run(t, "rm", "-r", mnt+defaultStore)
			check(t, os.WriteFile(mnt+"/file", make([]byte, 10*mib), 0o644))
			unmount(t, mnt)
			fsck(t, dir+"/out.raw", 1)
		})
	}
}

// TestSameBytes bakes twice, with one core and with all, and from other folders.
func TestSameBytes(t *testing.T) {
	images := testImages(t)
	base := smallBase(t)
	for _, format := range []string{"qcow2", "raw"} {
		t.Run(format, func(t *testing.T) {
			var sums []string
			for _, env := range [][]string{nil, {"GOMAXPROCS=1", "TZ=Asia/Tokyo"}} {
				out := tempDir(t) + "/out." + format
				o := command(t, env, productPath(t), "build", "--base", base, "--image", "oci-archive:"+images["odd"].ociArchive,
					"--image", "docker-archive:"+images["hello"].dockerArchive, "--output", out)
				if o.code != 0 {
					t.Fatalf("%s", o)
				}
				sums = append(sums, hashFile(t, out))
			}
			if sums[0] != sums[1] {
				t.Errorf("two bakes of the same gave %s and %s", sums[0], sums[1])
			}
		})
	}
}

// TestEpoch holds the times that no image gives: SOURCE_DATE_EPOCH, or else the newest image's creation.
func TestEpoch(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	const created = 1700000000 // of the image made by hand
	for _, c := range []struct {
		env  []string
		want int64
	}{{nil, created}, {[]string{"SOURCE_DATE_EPOCH=1234567890"}, 1234567890}} {
		dir := tempDir(t)
		o := command(t, c.env, productPath(t), "build", "--base", smallBase(t), "--image", images["quirks"].oci(), "--output", dir+"/out.raw", "--report", dir+"/report.json")
		if o.code != 0 {
			t.Fatalf("%s", o)
		}
		var report struct{ Epoch time.Time }
		readJSON(t, dir+"/report.json", &report)
		if report.Epoch.Unix() != c.want {
			t.Errorf("%v: the report's epoch is %v, must be %v", c.env, report.Epoch, time.Unix(c.want, 0).UTC())
		}
		mnt := mount(t, dir+"/out.raw", smallRoot, "ro")
		layer := defaultStore + "/overlay/" + images["quirks"].facts(t).layers[0].id
		for _, name := range []string{defaultStore, defaultStore + "/overlay-images/images.json", layer, layer + "/diff/no", layer + "/link"} {
			info, err := os.Stat(mnt + name)
			check(t, err)
			// What is inside a layer may depend on the layer's image alone: a folder that no entry makes has its time.
			if got := info.ModTime().Unix(); got != c.want && !(strings.Contains(name, "/diff/") && got == created) {
				t.Errorf("%v: mtime of %s is %v, must be %v", c.env, name, info.ModTime().UTC(), time.Unix(c.want, 0).UTC())
			}
			if got := info.Sys().(*syscall.Stat_t).Ctim.Sec; got != c.want {
				t.Errorf("%v: ctime of %s is %v, must be %v", c.env, name, time.Unix(got, 0).UTC(), time.Unix(c.want, 0).UTC())
			}
		}
		unmount(t, mnt)
	}
}

// TestAgain bakes onto an output: the second image joins the first, and a third bake of what is there changes nothing.
func TestAgain(t *testing.T) {
	requires(t, "root", "podman")
	images := testImages(t)
	base, dir := smallBase(t), tempDir(t)
	hello, odd := "oci-archive:"+images["hello"].ociArchive, "oci-archive:"+images["odd"].ociArchive
	baked(t, "--base", base, "--image", hello, "--output", dir+"/1.raw")
	baked(t, "--base", dir+"/1.raw", "--image", odd, "--output", dir+"/2.raw")
	bakedRight(t, dir+"/1.raw", dir+"/2.raw", smallRoot, images["hello"], images["odd"])

	second := mount(t, dir+"/2.raw", smallRoot, "ro")
	checkStore(t, primaryCopy(t, second+defaultStore), false)
	e := newEngine(t, second+defaultStore)
	if got := e.do(t, "podman", "images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}"); len(strings.Split(got, "\n")) != 2 {
		t.Errorf("podman lists\n%s", got)
	}
	first := mount(t, dir+"/1.raw", smallRoot, "ro")
	// Layers that were shipped may be in use: they stay as they were to the byte.
	was, err := diskNodes(first+defaultStore+"/overlay", "")
	check(t, err)
	is, err := diskNodes(second+defaultStore+"/overlay", "")
	check(t, err)
	for name := range is {
		if was[name] == nil {
			delete(is, name)
		}
	}
	for _, n := range []string{"", "l"} { // folders that gained entries
		was[n].mtime = is[n].mtime
	}
	for _, fault := range compareNodes(was, is) {
		t.Error(fault)
	}

	o := baked(t, "--base", dir+"/2.raw", "--image", hello, "--output", dir+"/3.raw")
	if !strings.Contains(strings.ToLower(o.stdout+o.stderr), "already") {
		t.Errorf("does not say that the image is there already\n%s", o)
	}
	third := mount(t, dir+"/3.raw", smallRoot, "ro")
	was, err = diskNodes(second, "")
	check(t, err)
	is, err = diskNodes(third, "")
	check(t, err)
	for _, fault := range compareNodes(was, is) {
		t.Error(fault)
	}
	fsck(t, dir+"/3.raw", smallRoot)

	// The same image by another manifest: one image, with the names of both.
	run(t, "skopeo", "copy", "-q", "docker-archive:"+images["hello"].dockerArchive, "docker-archive:"+dir+"/renamed.tar:localhost/nodebake/renamed:2")
	baked(t, "--base", dir+"/1.raw", "--image", "docker-archive:"+dir+"/renamed.tar", "--output", dir+"/4.raw")
	bakedRight(t, dir+"/1.raw", dir+"/4.raw", smallRoot, images["hello"])
	fourth := mount(t, dir+"/4.raw", smallRoot, "ro")
	checkStore(t, primaryCopy(t, fourth+defaultStore), false)
	e = newEngine(t, fourth+defaultStore)
	got := strings.Split(e.do(t, "podman", "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"), "\n")
	slices.Sort(got)
	id := images["hello"].facts(t).config.String()
	if want := []string{images["hello"].name + " " + id, "localhost/nodebake/renamed:2 " + id}; !slices.Equal(got, want) {
		t.Errorf("podman lists %q, must list %q", got, want)
	}
}

// TestLists has references from a file, with comments, and a store elsewhere.
func TestLists(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	dir := tempDir(t)
	list := fmt.Sprintf("# the images of this node\n\n  oci-archive:%s   # the first\n%s\r\n#oci:nowhere\n", images["hello"].ociArchive, images["exact"].oci())
	check(t, os.WriteFile(dir+"/list", []byte(list), 0o644))
	baked(t, "--base", smallBase(t), "--images-from", dir+"/list", "--store", "/var/lib/node images/store", "--output", dir+"/out.raw")
	mnt := mount(t, dir+"/out.raw", smallRoot, "ro")
	for _, i := range []string{"hello", "exact"} {
		compareStore(t, mnt+"/var/lib/node images/store", images[i])
	}
	confLoads(t, mnt, "/var/lib/node images/store")
	fsck(t, dir+"/out.raw", smallRoot)

	check(t, os.WriteFile(dir+"/empty", []byte("# nothing\n"), 0o644))
	refused(t, nodebake(t, "build", "--base", smallBase(t), "--images-from", dir+"/empty", "--output", dir+"/x.raw"), exitUsage, dir+"/x.raw", "empty")
	refused(t, nodebake(t, "build", "--base", smallBase(t), "--images-from", dir+"/none", "--output", dir+"/y.raw"), exitFailed, dir+"/y.raw", "none")
}

// TestDryRun holds the plan against what a bake then takes.
func TestDryRun(t *testing.T) {
	images := testImages(t)
	dir := tempDir(t)
	args := []string{"build", "--base", smallBase(t), "--image", "oci-archive:" + images["odd"].ociArchive, "--output", dir + "/out.raw"}
	before, err := os.ReadDir(dir)
	check(t, err)
	o := nodebake(t, append(args, "--dry-run", "--report", dir+"/plan.json")...)
	if o.code != 0 {
		t.Fatalf("%s", o)
	}
	after, err := os.ReadDir(dir)
	check(t, err)
	if len(before) != 0 || len(after) != 1 {
		t.Errorf("a dry run left %v", after)
	}
	for _, word := range []string{images["odd"].facts(t).config.Encoded()[:12], "free", "inodes", "/" + confPath} {
		if !strings.Contains(o.stdout, word) {
			t.Errorf("the plan does not say %q\n%s", word, o)
		}
	}
	baked(t, append(args[1:], "--report", dir+"/done.json")...)
	var plan, done struct{ Space map[string]any }
	readJSON(t, dir+"/plan.json", &plan)
	readJSON(t, dir+"/done.json", &done)
	if len(plan.Space) == 0 || !maps.EqualFunc(plan.Space, done.Space, func(a, b any) bool { return fmt.Sprint(a) == fmt.Sprint(b) }) {
		t.Errorf("planned %v, took %v", plan.Space, done.Space)
	}
}

// TestStorageConf has every case of a disk's engine configuration.
func TestStorageConf(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	const usrConf = "usr/share/containers/storage.conf"
	for _, c := range []struct {
		name   string
		files  map[string]string // onto those of rootFiles; "" takes away
		verify func(t *testing.T, before map[string]string, root string, o outcome)
	}{
		{"key there", map[string]string{confPath: "[storage]\ndriver = \"overlay\"\n[storage.options]\n# why\nadditionalimagestores = [\n  \"/usr/static-containers\", # ours\n]\nmountopt = \"nodev\"\n"},
			func(t *testing.T, before map[string]string, root string, _ outcome) {
				after := read(t, root, confPath)
				confGained(t, before[confPath], after, defaultStore)
				if !strings.Contains(after, "\"/usr/static-containers\", # ours") {
					t.Errorf("lost the store that was there:\n%s", after)
				}
			}},
		{"commented out", map[string]string{confPath: "[storage]\ndriver = \"overlay\"\ngraphroot = \"/g\"\n[storage.options]\n# additionalimagestores = [\n# ]\nsize = \"\"\n"},
			func(t *testing.T, before map[string]string, root string, _ outcome) {
				confGained(t, before[confPath], read(t, root, confPath), defaultStore)
			}},
		{"no section", map[string]string{confPath: "[storage]\ndriver = \"overlay\"\n"},
			func(t *testing.T, before map[string]string, root string, _ outcome) {
				confGained(t, before[confPath], read(t, root, confPath), defaultStore)
			}},
		{"only in usr/share", map[string]string{confPath: "", "etc/containers/policy.json": "{}", usrConf: "# vendor\n" + plainConf},
			func(t *testing.T, before map[string]string, root string, _ outcome) {
				if read(t, root, usrConf) != before[usrConf] {
					t.Error("the file in usr/share changed")
				}
				confGained(t, before[usrConf], read(t, root, confPath), defaultStore)
			}},
		{"nowhere", map[string]string{confPath: ""},
			func(t *testing.T, _ map[string]string, root string, _ outcome) {
				if after := read(t, root, confPath); !strings.Contains(after, "driver = \"overlay\"") {
					t.Errorf("no driver in\n%s", after)
				}
			}},
		{"listed already", map[string]string{confPath: strings.Replace(plainConf, "[\n]", "['/var/images/']", 1)},
			func(t *testing.T, before map[string]string, root string, _ outcome) {
				if after := read(t, root, confPath); after != before[confPath] {
					t.Errorf("changed to\n%s", after)
				}
			}},
		{"drop-in", map[string]string{"etc/containers/storage.conf.d/50-more.conf": "[storage.options]\nadditionalimagestores = [\"/opt/more\"]\n"},
			func(*testing.T, map[string]string, string, outcome) {}},
		{"CRI-O overrides", map[string]string{"etc/crio/crio.conf.d/10-store.conf": "[crio]\nstorage_driver = \"overlay\"\nstorage_option = [\"overlay.mountopt=nodev\"]\n"},
			func(t *testing.T, _ map[string]string, root string, o outcome) {
				after := read(t, root, "etc/crio/crio.conf.d/10-store.conf")
				if !strings.Contains(after, "overlay.imagestore="+defaultStore) && !strings.Contains(o.stderr, "storage_option") {
					t.Errorf("neither edited nor warned of:\n%s\n%s", after, o)
				}
				if !strings.Contains(after, "overlay.mountopt=nodev") {
					t.Errorf("lost an option:\n%s", after)
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			p := rootPart(t, c.files)
			makeDisk(t, dir+"/base.raw", "gpt", p)
			o := baked(t, "--base", dir+"/base.raw", "--image", images["exact"].oci(), "--output", dir+"/out.raw")
			fsck(t, dir+"/out.raw", 1)
			mnt := mount(t, dir+"/out.raw", 1, "ro")
			confLoads(t, mnt, defaultStore)
			c.verify(t, p.files, mnt, o)
		})
	}
}

func read(t testing.TB, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	check(t, err)
	return string(b)
}

// TestUsage has what a command line can get wrong.
func TestUsage(t *testing.T) {
	dir := tempDir(t)
	base := smallBase(t)
	for _, args := range [][]string{
		{"build"},
		{"build", "--base", base, "--output", dir + "/out"},
		{"build", "--base", base, "--image", "oci:x"},
		{"build", "--base", base, "--image", "oci:x", "--output", dir + "/out", "--output-format", "vmdk"},
		{"build", "--base", base, "--image", "oci:x", "--output", dir + "/out", "--store", "relative"},
		{"build", "--no-such-flag"},
		{"inspect"},
		{"cat", base},
		{"verify", base, "two"},
	} {
		refused(t, nodebake(t, args...), exitUsage, dir+"/out")
	}
	o := nodebake(t, "version")
	if o.code != 0 || !strings.HasPrefix(o.stdout, "nodebake ") {
		t.Errorf("%s", o)
	}
	var any any
	if o := nodebake(t, "inspect", base, "--json"); json.Unmarshal([]byte(o.stdout), &any) != nil || o.code != 0 {
		t.Errorf("%s", o)
	}
}
