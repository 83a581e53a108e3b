package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// updatable is an OCK-like disk whose OS follows a branch of a server: smallOCK's, with stand-ins for what ostree runs
// in a new deployment.
func updatable(t testing.TB, more map[string]string) (raw string) {
	t.Helper()
	needsPolicy(t)
	requires(t, append(ockTools, "bwrap")...)
	dir := tempDir(t)
	// It prints and succeeds, if it finds something to print; a policy is then taken for one that needs no refresh.
	program := read(t, "/", programFile(t))
	all := map[string]string{confPath: "", "usr/sbin/semodule": program, "etc/greeting": "x\n", "etc/plain.conf": "default 1\n"}
	maps.Copy(all, more)
	for name, content := range rootFiles(t, all) {
		name = filepath.Join(dir, "tree", name)
		check(t, os.MkdirAll(filepath.Dir(name), 0o755))
		check(t, os.WriteFile(name, []byte(content), 0o755))
	}
	run(t, "tar", "-C", dir+"/tree", "--owner=0", "--group=0", "-cf", dir+"/tree.tar", ".")
	_, err := toolEnv([]string{"SIZE=900M"}, "testdata/ockdisk.sh", dir+"/tree.tar", dir)
	check(t, err)
	run(t, "qemu-img", "convert", "-O", "raw", dir+"/disk.qcow2", dir+"/disk.raw")
	return dir + "/disk.raw"
}

// server is a repository with versions of the OS.
type server struct{ dir string }

// newServer makes one with what the disk was installed from, and has the disk's OS follow it.
func newServer(t testing.TB, raw string) *server {
	t.Helper()
	s := &server{tempDir(t)}
	run(t, "ostree", "init", "--repo="+s.dir, "--mode=archive")
	m := mountOCK(t, raw, "rw")
	run(t, "ostree", "pull-local", "--repo="+s.dir, m.sysroot+"/ostree/repo", "ock/1")
	run(t, "ostree", "refs", "--repo="+s.dir, "--create=ock/stable", "ock/1")
	run(t, "ostree", "remote", "add", "--repo="+m.sysroot+"/ostree/repo", "--no-gpg-verify", "up", "file://"+s.dir)
	for _, d := range m.all {
		check(t, os.WriteFile(m.sysroot+"/"+d+".origin", []byte("[origin]\nrefspec=up:ock/stable\n"), 0o644))
	}
	m.unmount(t)
	return s
}

// release commits a version that differs from the branch's last in these files of the tree.
func (s *server) release(t testing.TB, branch string, n int, change func(tree string)) {
	t.Helper()
	tree := tempDir(t) + "/tree"
	run(t, "ostree", "checkout", "--repo="+s.dir, "--force-copy", "ock/stable", tree)
	change(tree)
	run(t, "ostree", "commit", "--repo="+s.dir, "-b", branch, "--tree=dir="+tree, fmt.Sprintf("--timestamp=@%d", 1735689600+n), "--add-metadata-string=version="+fmt.Sprint(n))
}

// edit replaces text in a file, which must have it.
func edit(t testing.TB, name, from, to string) {
	t.Helper()
	text := read(t, "/", name)
	if !strings.Contains(text, from) {
		t.Fatalf("%s has no %q", name, from)
	}
	check(t, os.WriteFile(name, []byte(strings.Replace(text, from, to, 1)), 0o644))
}

// upgraded holds what must be true of a baked disk's deployments after ostree was at work.
func upgraded(t *testing.T, raw string, images []image, deployments int) {
	t.Helper()
	m := mountOCK(t, raw, "ro")
	if len(m.all) != deployments {
		t.Errorf("%d deployments, must be %d", len(m.all), deployments)
	}
	for _, d := range m.all {
		conf := read(t, m.sysroot, d+storageConf)
		if strings.Count(conf, `"/var/images",`) != 1 {
			t.Errorf("%s: storage.conf does not name the store\n%s", d, conf)
		}
		if subs := read(t, m.sysroot, d+"/"+subsPath); subs != "/var/images /var/lib/containers/storage\n" {
			t.Errorf("%s: file_contexts.subs is %q", d, subs)
		}
	}
	confLoads(t, m.system, defaultStore)
	for _, i := range images {
		compareLayers(t, m.system+defaultStore, i, true)
	}
	if o := m.kernel.options + " "; !strings.Contains(o, "root=LABEL=root rw ") || strings.Count(o, " nodebake.x=1 ") != 1 {
		t.Errorf("the default entry's options are %q", m.kernel.options)
	}
	if o := command(t, nil, "ostree", "fsck", "--quiet", "--repo="+m.sysroot+"/ostree/repo"); o.code != 0 {
		t.Errorf("%s", o)
	}
	if got := m.relabel(t, true); strings.Contains(got, "/var/images") || strings.Contains(got, "storage.conf") || strings.Contains(got, ".subs") {
		t.Errorf("setfiles would change\n%s", clip(got))
	}
	want := filepath.Base(m.deployment)
	m.unmount(t)
	xfsRepair(t, raw, len(partitions(t, raw)))
	if o := nodebake(t, "verify", raw); o.code != exitDone {
		t.Errorf("%s", o)
	}
	o := nodebake(t, "inspect", raw)
	sum, serial, _ := strings.Cut(want, ".")
	first, _, _ := strings.Cut(o.stdout[strings.Index(o.stdout, "Deployed:"):], "\n")
	if o.code != exitDone || !strings.Contains(first, "ock "+sum[:12]+"."+serial) || strings.Count(o.stdout, "Deployed:") != deployments {
		t.Errorf("the default deployment is %s\n%s", want, o)
	}
	o = nodebake(t, "images", raw)
	for _, i := range images {
		if !strings.Contains(o.stdout, strings.TrimSuffix(i.name, ":1")) {
			t.Errorf("no %s\n%s", i.name, o)
		}
	}
}

// TestUpgrade upgrades a baked node's OS as ostree does it, rolls it back, moves it to another branch and to another
// stateroot, and bakes onto it again.
func TestUpgrade(t *testing.T) {
	images := testImages(t)
	base := updatable(t, nil)
	s := newServer(t, base)
	dir := tempDir(t)
	raw := dir + "/node.raw"
	baked(t, "--base", base, "--image", "oci-archive:"+images["hello"].ociArchive, "--image", "oci-archive:"+images["odd"].ociArchive,
		"--karg-append", "nodebake.x=1", "--output", raw, "--quiet")
	have := []image{images["hello"], images["odd"]}
	upgraded(t, raw, have, 1)
	was := dir + "/was.raw"
	check(t, copyFile(raw, was, 0o644))

	ostree := func(sysroot string, args ...string) string {
		t.Helper()
		return run(t, "ostree", append([]string{"admin", args[0], "--sysroot=" + sysroot}, args[1:]...)...)
	}
	// Nothing is mounted in a deployment that ostree is to take away.
	on := func(do func(sysroot string)) {
		t.Helper()
		sysroot := mount(t, raw, ockVar, "rw")
		mountAt(t, raw, ockBoot, "rw", sysroot+"/boot")
		do(sysroot)
		run(t, "umount", "-R", sysroot)
	}
	deployments := func() []string {
		m := mountOCK(t, raw, "ro")
		defer m.unmount(t)
		return m.all
	}
	kernel := func(tree, version string) {
		old, err := filepath.Glob(tree + "/usr/lib/modules/*")
		check(t, err)
		check(t, os.Rename(old[0], tree+"/usr/lib/modules/"+version))
		check(t, os.WriteFile(tree+"/usr/lib/modules/"+version+"/vmlinuz", []byte("kernel "+version), 0o644))
	}
	s.release(t, "ock/stable", 2, func(tree string) {
		edit(t, tree+"/usr/"+confPath, "nodev,metacopy=on", "nodev,metacopy=off")
		edit(t, tree+"/usr/etc/plain.conf", "default 1", "default 2")
		check(t, os.WriteFile(tree+"/usr/etc/new.conf", []byte("new\n"), 0o644))
		kernel(tree, "6.13.0-ock")
	})

	t.Run("upgrade", func(t *testing.T) {
		on(func(sysroot string) {
			// Before it one can see what an upgrade will keep.
			said := ostree(sysroot, "config-diff", "--os=ock")
			for _, line := range []string{"M    containers/storage.conf", "A    selinux/default/contexts/files/file_contexts.subs"} {
				if !strings.Contains(said, line) {
					t.Errorf("config-diff does not say %q:\n%s", line, said)
				}
			}
			ostree(sysroot, "upgrade", "--os=ock")
		})
		upgraded(t, raw, have, 2)
		m := mountOCK(t, raw, "ro")
		before, after := m.sysroot+"/"+m.all[1], m.sysroot+"/"+m.all[0]
		// What was edited stays as it was, and so the new default does not come: it is in /usr/etc alone.
		if read(t, after, confPath) != read(t, before, confPath) || !strings.Contains(read(t, after, confPath), "metacopy=on") {
			t.Error("storage.conf is not as it was baked")
		}
		if !strings.Contains(read(t, after, "usr/"+confPath), "metacopy=off") {
			t.Error("/usr/etc has not the new default")
		}
		// The proof can fail: what was not edited follows the OS.
		if read(t, after, "etc/plain.conf") != "default 2\n" || read(t, before, "etc/plain.conf") != "default 1\n" || read(t, after, "etc/new.conf") != "new\n" {
			t.Error("a file that nobody edited did not follow the OS")
		}
		if k := m.kernel.kernel; read(t, "/", k) != "kernel 6.13.0-ock" {
			t.Errorf("%s is not the new kernel", k)
		}
		m.unmount(t)
		// The difference between the node before and after is the OS, and no image.
		d := differences(t, was, raw)
		if len(d.Images)+len(d.Stores) > 0 || slices.Contains(d.paths(), storageConf) || !slices.Contains(d.paths(), "/etc/plain.conf") || !slices.Contains(d.paths(), "/usr/etc/containers/storage.conf") {
			t.Errorf("images %+v, stores %+v, files %q", d.Images, d.Stores, d.paths())
		}
	})
	t.Run("rollback", func(t *testing.T) {
		keep := dir + "/upgraded.raw"
		check(t, copyFile(raw, keep, 0o644))
		// The old deployment is started first again, and the new one is still there: what a rollback makes of the menu.
		all := deployments()
		on(func(sysroot string) {
			ostree(sysroot, "undeploy", "0")
			ostree(sysroot, "deploy", "--os=ock", "--retain", "--not-as-default", "up:ock/stable")
		})
		if now := deployments(); now[0] != all[1] {
			t.Errorf("deployments %q, were %q", now, all)
		}
		upgraded(t, raw, have, 2)
		// Another way back: the new deployment is thrown away.
		on(func(sysroot string) { ostree(sysroot, "undeploy", "1") })
		upgraded(t, raw, have, 1)
		check(t, os.Rename(keep, raw))
	})
	t.Run("again, and clean", func(t *testing.T) {
		s.release(t, "ock/stable", 3, func(tree string) { kernel(tree, "6.14.0-ock") })
		first := deployments()[1]
		on(func(sysroot string) {
			ostree(sysroot, "upgrade", "--os=ock")
			ostree(sysroot, "cleanup")
		})
		// The deployment that was baked is gone; the store is not.
		m := mountOCK(t, raw, "ro")
		mustNotExist(t, m.sysroot+"/"+first)
		m.unmount(t)
		upgraded(t, raw, have, 2)
	})
	t.Run("another branch", func(t *testing.T) {
		s.release(t, "ock/next", 4, func(tree string) { kernel(tree, "7.0.0-ock") })
		on(func(sysroot string) { ostree(sysroot, "switch", "--os=ock", "up:ock/next") })
		upgraded(t, raw, have, 2)
	})
	t.Run("bake again", func(t *testing.T) {
		out := dir + "/again.raw"
		baked(t, "--base", raw, "--image", "oci-archive:"+images["debian"].ociArchive, "--output", out, "--quiet")
		upgraded(t, out, append(slices.Clone(have), images["debian"]), 2)
		d := differences(t, raw, out)
		if len(d.Files)+len(d.Boot)+len(d.Stores) > 0 || len(d.Images) != 1 || d.Images[0].Kind != "added" {
			t.Errorf("%+v", d)
		}
	})
	t.Run("another path", func(t *testing.T) {
		out := dir + "/beside.raw"
		baked(t, "--base", raw, "--image", "oci-archive:"+images["debian"].ociArchive, "--store", "/var/images-2", "--output", out, "--quiet")
		d := differences(t, raw, out)
		if len(d.Stores) != 1 || d.Stores[0].Path != "/var/images-2" || len(d.Images) != 1 || d.Images[0].Store != "/var/images-2" || d.Images[0].Kind != "added" {
			t.Errorf("%+v", d)
		}
		m := mountOCK(t, out, "ro")
		for _, d := range m.all {
			if conf := read(t, m.sysroot, d+storageConf); !strings.Contains(conf, "[\n\"/var/images-2\",\n\"/var/images\",\n\"/usr/ock/containers\",\n]") {
				t.Errorf("%s: storage.conf is\n%s", d, conf)
			}
		}
		compareLayers(t, m.system+defaultStore, images["odd"], true)
		compareLayers(t, m.system+"/var/images-2", images["debian"], true)
		m.unmount(t)
		if o := nodebake(t, "verify", out); o.code != exitDone {
			t.Errorf("%s", o)
		}
	})
	t.Run("the default comes back", func(t *testing.T) {
		// What an administrator does who wants the new default and the store: take the default, and name the store in it.
		at := deployments()[0]
		on(func(sysroot string) {
			conf := read(t, sysroot, at+"/usr/"+confPath)
			conf = strings.Replace(conf, "additionalimagestores = [\n", "additionalimagestores = [\n\"/var/images\",\n", 1)
			check(t, os.WriteFile(sysroot+"/"+at+storageConf, []byte(conf), 0o644))
		})
		upgraded(t, raw, have, 2)
		m := mountOCK(t, raw, "ro")
		if !strings.Contains(read(t, m.system, confPath), "metacopy=off") {
			t.Error("not the new default")
		}
		m.unmount(t)
	})
	t.Run("another stateroot", func(t *testing.T) {
		on(func(sysroot string) {
			ostree(sysroot, "os-init", "other")
			ostree(sysroot, "deploy", "--os=other", "--retain", "--karg=root=LABEL=root", "--karg=rw", "up:ock/next")
		})
		// It has a /var and an /etc of its own, without the store.
		o := nodebake(t, "inspect", raw)
		if !strings.Contains(o.stdout, "other ") || strings.Contains(o.stdout, "Store:     "+defaultStore) || strings.Contains(o.stdout, "additional stores /var/images") {
			t.Errorf("%s", o)
		}
		if o := nodebake(t, "images", raw); strings.Contains(o.stdout, "localhost/nodebake") {
			t.Errorf("%s", o)
		}
		// The store of the first is whole, and there again where that is the default.
		on(func(sysroot string) { ostree(sysroot, "undeploy", "0") })
		upgraded(t, raw, have, 2)
	})
}

// TestUpgradeTransient refuses a disk whose /etc is made anew at each boot: what a bake writes there would be gone.
func TestUpgradeTransient(t *testing.T) {
	images := testImages(t)
	base := updatable(t, map[string]string{"usr/lib/ostree/prepare-root.conf": "[etc]\ntransient = true\n"})
	out := tempDir(t) + "/out.raw"
	o := nodebake(t, "build", "--base", base, "--image", images["hello"].oci(), "--output", out)
	refused(t, o, exitUnsupported, out, storageConf)
}

// TestUpgradePackages has dpkg and rpm upgrade the package that storage.conf belongs to, on a baked disk.
func TestUpgradePackages(t *testing.T) {
	requires(t, "root", "dpkg", "dpkg-deb", "rpm", "rpmbuild")
	images := testImages(t)
	changed := strings.Replace(plainConf, "# kept comment", "# new default", 1)
	deb := func(version, conf string) string {
		dir := tempDir(t)
		check(t, os.MkdirAll(dir+"/p/DEBIAN", 0o755))
		check(t, os.MkdirAll(dir+"/p/etc/containers", 0o755))
		check(t, os.WriteFile(dir+"/p/"+confPath, []byte(conf), 0o644))
		check(t, os.WriteFile(dir+"/p/DEBIAN/conffiles", []byte("/"+confPath+"\n"), 0o644))
		check(t, os.WriteFile(dir+"/p/DEBIAN/control", []byte("Package: containers-common\nVersion: "+version+"\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: t\n"), 0o644))
		run(t, "dpkg-deb", "-b", "--root-owner-group", dir+"/p", dir+"/p.deb")
		return dir + "/p.deb"
	}
	rpm := func(version, conf string) string {
		dir := tempDir(t)
		check(t, os.WriteFile(dir+"/storage.conf", []byte(conf), 0o644))
		check(t, os.WriteFile(dir+"/p.spec", []byte("Name: containers-common\nVersion: "+version+"\nRelease: 1\nSummary: t\nLicense: t\nBuildArch: noarch\n%description\nt\n%install\nmkdir -p %{buildroot}/etc/containers\ncp "+
			dir+"/storage.conf %{buildroot}/etc/containers/\n%files\n%config(noreplace) /etc/containers/storage.conf\n"), 0o644))
		run(t, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+dir, "--define", "_rpmdir "+dir, "--define", "_dbpath "+dir+"/db", dir+"/p.spec")
		return dir + "/noarch/containers-common-" + version + "-1.noarch.rpm"
	}
	for _, c := range []struct {
		name    string
		build   func(version, conf string) string
		install func(mnt, file string)
		left    string
	}{
		{"dpkg", deb, func(mnt, file string) {
			check(t, os.MkdirAll(mnt+"/var/lib/dpkg/info", 0o755))
			check(t, os.MkdirAll(mnt+"/var/lib/dpkg/updates", 0o755))
			// What unattended upgrades answer where dpkg would ask.
			run(t, "dpkg", "--root="+mnt, "--force-confdef", "--force-confold", "--force-not-root", "--log=/dev/null", "-i", file)
		}, ".dpkg-dist"},
		{"rpm", rpm, func(mnt, file string) {
			run(t, "rpm", "--root", mnt, "--dbpath", "/var/lib/rpm", "-U", "--nodeps", "--noscripts", file)
		}, ".rpmnew"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			base, raw := dir+"/base.raw", dir+"/node.raw"
			smallDisk(t, base, map[string]string{confPath: "", "var/lib/dpkg/status": ""})
			first, second := c.build("1", plainConf), c.build("2", changed)
			on := func(disk string, do func(mnt string)) {
				mnt := mount(t, disk, smallRoot, "rw")
				do(mnt)
				unmount(t, mnt)
			}
			on(base, func(mnt string) { c.install(mnt, first) })
			control := dir + "/control.raw"
			check(t, copyFile(base, control, 0o644))
			baked(t, "--base", base, "--image", "oci-archive:"+images["odd"].ociArchive, "--output", raw, "--quiet")
			was := readDisk(t, raw, smallRoot, confPath)
			on(raw, func(mnt string) { c.install(mnt, second) })
			if got := readDisk(t, raw, smallRoot, confPath); got != was || !strings.Contains(got, defaultStore) {
				t.Errorf("storage.conf is\n%s\nand was\n%s", got, was)
			}
			if got := readDisk(t, raw, smallRoot, confPath+c.left); got != changed {
				t.Errorf("storage.conf%s is\n%s", c.left, got)
			}
			if o := nodebake(t, "verify", raw); o.code != exitDone {
				t.Errorf("%s", o)
			}
			bake := mount(t, raw, smallRoot, "ro")
			compareStore(t, bake+defaultStore, images["odd"])
			unmount(t, bake)
			// The proof can fail: on a disk that was not baked, the new default comes.
			on(control, func(mnt string) { c.install(mnt, second) })
			if got := readDisk(t, control, smallRoot, confPath); got != changed {
				t.Errorf("without a bake storage.conf is\n%s", got)
			}
		})
	}
}
