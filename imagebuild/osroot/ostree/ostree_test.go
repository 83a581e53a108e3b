package ostree

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// dirReader reads a folder of the machine.
type dirReader struct{ root *os.Root }

func openDir(t testing.TB, dir string) Reader {
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dirReader{root}
}

func (d dirReader) Stat(name string) (*tar.Header, error) {
	fi, err := d.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	h := &tar.Header{Name: name, ModTime: fi.ModTime(), Typeflag: tar.TypeReg}
	switch fi.Mode().Type() {
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = d.root.Readlink(name); err != nil {
			return nil, err
		}
	}
	return h, nil
}

func (d dirReader) ReadDir(name string) ([]string, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func (d dirReader) Open(name string) (*io.SectionReader, error) {
	b, err := d.root.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), nil
}

// tree is a filesystem in memory: a path ending in "/" is a folder, a value starting with "-> " a symbolic link.
// Parents are made as needed. A file's value may start with "@N " for a time of N seconds.
type tree map[string]string

func (t tree) lookup(name string) (kind byte, value string, err error) {
	name = strings.Trim(path.Clean("/"+name), "/")
	if name == "" {
		return tar.TypeDir, "", nil
	}
	// An inner symbolic link is no folder, as the contract says.
	for i := range len(name) {
		if name[i] == '/' {
			if _, ok := t[name[:i]]; ok {
				return 0, "", errors.New(name[:i] + ": not a directory")
			}
		}
	}
	if v, ok := t[name]; ok {
		if link, ok := strings.CutPrefix(v, "-> "); ok {
			return tar.TypeSymlink, link, nil
		}
		if n := strings.IndexByte(v, ' '); strings.HasPrefix(v, "@") && n > 0 {
			v = v[n+1:]
		}
		return tar.TypeReg, v, nil
	}
	for p := range t {
		if strings.HasPrefix(p, name+"/") {
			return tar.TypeDir, "", nil
		}
	}
	return 0, "", fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (t tree) Stat(name string) (*tar.Header, error) {
	kind, value, err := t.lookup(name)
	if err != nil {
		return nil, err
	}
	h := &tar.Header{Typeflag: kind, ModTime: time.Unix(0, 0)}
	if kind == tar.TypeSymlink {
		h.Linkname = value
	}
	var sec int64
	if n, _ := fmt.Sscanf(t[strings.Trim(path.Clean("/"+name), "/")], "@%d ", &sec); n == 1 {
		h.ModTime = time.Unix(sec, 0)
	}
	return h, nil
}

func (t tree) ReadDir(name string) ([]string, error) {
	if kind, _, err := t.lookup(name); err != nil || kind != tar.TypeDir {
		return nil, cmpErr(err, errors.New(name+": not a directory"))
	}
	prefix := strings.Trim(path.Clean("/"+name), "/")
	if prefix != "" {
		prefix += "/"
	}
	seen := map[string]bool{}
	for p := range t {
		if rest, ok := strings.CutPrefix(p, prefix); ok && rest != "" {
			first, _, _ := strings.Cut(rest, "/")
			seen[first] = true
		}
	}
	var names []string
	for n := range seen {
		names = append(names, n)
	}
	slices.Sort(names)
	return names, nil
}

func (t tree) Open(name string) (*io.SectionReader, error) {
	kind, value, err := t.lookup(name)
	if err != nil || kind != tar.TypeReg {
		return nil, cmpErr(err, errors.New(name+": not a regular file"))
	}
	return io.NewSectionReader(strings.NewReader(value), 0, int64(len(value))), nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// need skips the test where a tool is missing, and fails it where CI must have it.
func need(t testing.TB, tools ...string) {
	t.Helper()
	missing := ""
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = tool + " is not installed"
		}
	}
	if os.Getuid() != 0 {
		missing = "ostree admin needs root"
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// disk is a root folder that the real ostree laid out.
type disk struct {
	t       testing.TB
	dir     string
	commits int
}

func newDisk(t testing.TB, oses ...string) *disk {
	need(t, "ostree", "chattr")
	d := &disk{t: t, dir: filepath.Join(t.TempDir(), "root")}
	t.Cleanup(func() { exec.Command("chattr", "-R", "-i", d.dir).Run() })
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "ostree", "admin", "init-fs", "--modern", d.dir)
	run(t, "ostree", "config", "--repo", d.dir+"/ostree/repo", "set", "sysroot.readonly", "true")
	for _, os := range oses {
		run(t, "ostree", "admin", "os-init", os, "--sysroot", d.dir)
	}
	return d
}

// commit puts a small OS on branch and returns the commit's checksum.
func (d *disk) commit(branch string) string {
	d.commits++
	version := fmt.Sprintf("5.15.0-%d", d.commits)
	src := filepath.Join(d.t.TempDir(), "tree")
	for _, dir := range []string{"usr/bin", "usr/etc/containers", "usr/lib/modules/" + version, "sysroot", "var", "boot", "dev", "proc", "sys", "run"} {
		if err := os.MkdirAll(filepath.Join(src, dir), 0o755); err != nil {
			d.t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"usr/bin/true": "#!", "usr/etc/containers/storage.conf": "[storage]\n", "usr/etc/fstab": "# none\n",
		"usr/lib/os-release":                            fmt.Sprintf("ID=ol\nPRETTY_NAME=\"Test %d\"\n", d.commits),
		"usr/lib/modules/" + version + "/vmlinuz":       "kernel " + version,
		"usr/lib/modules/" + version + "/initramfs.img": "initramfs " + version,
	} {
		if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"bin": "usr/bin", "lib": "usr/lib", "home": "var/home", "root": "var/roothome", "srv": "var/srv", "opt": "var/opt",
		"mnt": "var/mnt", "tmp": "sysroot/tmp", "ostree": "sysroot/ostree", "media": "run/media", "usr/local": "../var/usrlocal",
		"usr/etc/os-release": "../usr/lib/os-release", "usr/etc/to-var": "/var/lib/thing", "usr/etc/loop": "loop",
		"usr/etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf", "usr/etc/out": "../../../../../../../etc/shadow",
	} {
		if err := os.Symlink(to, filepath.Join(src, name)); err != nil {
			d.t.Fatal(err)
		}
	}
	run(d.t, "ostree", "--repo="+d.dir+"/ostree/repo", "commit", "-b", branch, "--tree=dir="+src, "-s", version)
	return strings.TrimSpace(run(d.t, "ostree", "--repo="+d.dir+"/ostree/repo", "rev-parse", branch))
}

func (d *disk) deploy(os, branch string, args ...string) {
	run(d.t, "ostree", append([]string{"admin", "deploy", "--sysroot", d.dir, "--os", os, branch}, args...)...)
}

// status is what the tool itself says, newest first: "OS CHECKSUM.SERIAL".
func (d *disk) status() []string {
	var all []string
	for line := range strings.Lines(run(d.t, "ostree", "admin", "status", "--sysroot", d.dir)) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "* "))
		if len(f) >= 2 && strings.Contains(f[1], ".") && len(f[1]) > 64 {
			all = append(all, f[0]+" "+f[1])
		}
	}
	return all
}

func (d *disk) open() *Layout {
	d.t.Helper()
	l, err := Open(openDir(d.t, d.dir), nil)
	if err != nil {
		d.t.Fatal(err)
	}
	return l
}

func names(l *Layout) []string {
	var all []string
	for _, d := range l.Deployments {
		all = append(all, fmt.Sprintf("%s %s.%d", d.OS, d.Checksum, d.Serial))
	}
	return all
}

func TestRealDisk(t *testing.T) {
	d := newDisk(t, "ock", "other")
	root := openDir(t, d.dir)
	if !Detect(root) {
		t.Fatal("a disk of ostree admin init-fs is not detected")
	}
	if _, err := Open(root, nil); !errors.Is(err, ErrNoDeployment) {
		t.Fatalf("without a deployment: %v", err)
	}
	agree := func(step string) *Layout {
		t.Helper()
		l := d.open()
		if got, want := names(l), d.status(); !slices.Equal(got, want) || len(want) == 0 {
			t.Fatalf("%s: found %v, the tool says %v", step, got, want)
		}
		if len(l.Warnings) > 0 {
			t.Errorf("%s: warnings %v", step, l.Warnings)
		}
		// A separate boot filesystem must read the same.
		sep, err := Open(root, openDir(t, d.dir+"/boot"))
		if err != nil || !slices.Equal(names(sep), names(l)) {
			t.Fatalf("%s: boot filesystem apart: %v, %v", step, names(sep), err)
		}
		return l
	}

	first := d.commit("ock")
	d.deploy("ock", "ock", "--karg=root=UUID=11-22", "--karg=rw")
	l := agree("one deployment")
	if l.Repo != (Repo{Mode: "bare", SysrootReadonly: true}) {
		t.Errorf("repo %+v", l.Repo)
	}
	one := l.Deployments[0]
	if one.Checksum != first || one.Root() != "UUID=11-22" || one.Refspec != "ock" || one.NoEtc ||
		one.Etc != one.Path+"/etc" || one.Var != "ostree/deploy/ock/var" || one.Entry.File != "ostree-1-ock.conf" ||
		!strings.Contains(one.Entry.Title, "Test 1") || len(one.Entry.Initrd) != 1 {
		t.Errorf("deployment %+v, entry %+v", one, one.Entry)
	}
	kernel, err := follow(root, "boot", one.Entry.Linux)
	if err != nil || !is(root, kernel, tar.TypeReg) {
		t.Errorf("kernel %s: %v", kernel, err)
	}

	d.commit("ock")
	d.deploy("ock", "ock")
	l = agree("two deployments")
	if len(l.Deployments) != 2 || l.Deployments[1].Path != one.Path {
		t.Errorf("the first deployment is not the second now: %v", names(l))
	}
	// The same commit once more gets serial 1 and shares the kernel, so the slot's index is 1.
	d.deploy("ock", "ock", "--retain")
	if l = agree("same commit again"); l.Deployments[0].Serial != 1 {
		t.Errorf("serial %d", l.Deployments[0].Serial)
	}
	d.commit("other")
	d.deploy("other", "other", "--retain", "--karg=root=/dev/vda3")
	l = agree("two OSes")
	if l.Deployments[0].Var != "ostree/deploy/other/var" {
		t.Errorf("var %s", l.Deployments[0].Var)
	}
	run(t, "ostree", "admin", "undeploy", "--sysroot", d.dir, "0")
	agree("undeployed")

	// What nothing starts is named, not used.
	staged := "ostree/deploy/ock/deploy/" + strings.Repeat("e", 64) + ".7"
	if err := os.MkdirAll(filepath.Join(d.dir, staged, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	if l = agree("staged"); !slices.Equal(l.Unlinked, []string{staged}) {
		t.Errorf("unlinked %v", l.Unlinked)
	}

	// Without entries the links of /ostree/boot.N tell.
	want := names(l)
	if err := os.RemoveAll(d.dir + "/boot/loader/entries"); err != nil {
		t.Fatal(err)
	}
	l = d.open()
	got := names(l)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || l.Deployments[0].Entry != nil || l.Deployments[0].Root() != "" {
		t.Errorf("by links %v, want %v", got, want)
	}
	run(t, "ostree", "fsck", "--repo", d.dir+"/ostree/repo")
}

func TestMapRealDisk(t *testing.T) {
	d := newDisk(t, "ock")
	d.commit("ock")
	d.deploy("ock", "ock", "--karg=root=LABEL=root")
	l := d.open()
	dep := l.Deployments[0]
	p := dep.Path
	tests := []struct {
		name, system, path  string
		immutable, volatile bool
	}{
		{name: "/", system: "/", path: p, immutable: true},
		{name: "", system: "/", path: p, immutable: true},
		{name: "/etc", system: "/etc", path: p + "/etc"},
		{name: "/etc/containers/storage.conf", system: "/etc/containers/storage.conf", path: p + "/etc/containers/storage.conf"},
		{name: "etc/new/sub/file", system: "/etc/new/sub/file", path: p + "/etc/new/sub/file"},
		{name: "/etc/os-release", system: "/usr/lib/os-release", path: p + "/usr/lib/os-release", immutable: true},
		{name: "/etc/to-var/x", system: "/var/lib/thing/x", path: "ostree/deploy/ock/var/lib/thing/x"},
		{name: "/etc/resolv.conf", system: "/run/systemd/resolve/stub-resolv.conf", path: p + "/run/systemd/resolve/stub-resolv.conf", immutable: true, volatile: true},
		{name: "/etc/out", system: "/etc/shadow", path: p + "/etc/shadow"},
		{name: "/usr/etc/fstab", system: "/usr/etc/fstab", path: p + "/usr/etc/fstab", immutable: true},
		{name: "/var", system: "/var", path: "ostree/deploy/ock/var"},
		{name: "/var/images", system: "/var/images", path: "ostree/deploy/ock/var/images"},
		{name: "/var/../var/./images//x/", system: "/var/images/x", path: "ostree/deploy/ock/var/images/x"},
		{name: "/home/core/.ssh", system: "/var/home/core/.ssh", path: "ostree/deploy/ock/var/home/core/.ssh"},
		{name: "/root/x", system: "/var/roothome/x", path: "ostree/deploy/ock/var/roothome/x"},
		{name: "/opt/x", system: "/var/opt/x", path: "ostree/deploy/ock/var/opt/x"},
		{name: "/usr/local/bin/x", system: "/var/usrlocal/bin/x", path: "ostree/deploy/ock/var/usrlocal/bin/x"},
		{name: "/bin/true", system: "/usr/bin/true", path: p + "/usr/bin/true", immutable: true},
		{name: "/usr/lib/x", system: "/usr/lib/x", path: p + "/usr/lib/x", immutable: true},
		{name: "/newtop", system: "/newtop", path: p + "/newtop", immutable: true},
		{name: "/tmp/x", system: "/sysroot/tmp/x", path: "tmp/x"},
		{name: "/sysroot", system: "/sysroot", path: "."},
		{name: "/ostree/repo/config", system: "/sysroot/ostree/repo/config", path: "ostree/repo/config", immutable: true},
		{name: "/sysroot/" + p + "/etc/fstab", system: "/sysroot/" + p + "/etc/fstab", path: p + "/etc/fstab"},
		{name: "/sysroot/" + p + "/usr/bin/true", system: "/sysroot/" + p + "/usr/bin/true", path: p + "/usr/bin/true", immutable: true},
		{name: "/sysroot/ostree/deploy/ock/var/x", system: "/sysroot/ostree/deploy/ock/var/x", path: "ostree/deploy/ock/var/x"},
		{name: "/media/usb", system: "/run/media/usb", path: p + "/run/media/usb", immutable: true, volatile: true},
		{name: "/boot/loader/entries", system: "/boot/loader.1/entries", path: "boot/loader.1/entries"},
		{name: "/../../../etc/passwd", system: "/etc/passwd", path: p + "/etc/passwd"},
		{name: "/varx", system: "/varx", path: p + "/varx", immutable: true},
		// ostree makes these links in /var itself.
		{name: "/var/run/x", system: "/run/x", path: p + "/run/x", immutable: true, volatile: true},
	}
	for _, tt := range tests {
		got, err := l.Map(dep, tt.name)
		if want := (Location{System: tt.system, Path: tt.path, Immutable: tt.immutable, Volatile: tt.volatile}); err != nil || got != want {
			t.Errorf("Map(%q) = %+v, %v; want %+v", tt.name, got, err, want)
		}
	}
	for _, name := range []string{"/etc/loop", "/etc/loop/x"} {
		if _, err := l.Map(dep, name); !errors.Is(err, ErrLoop) {
			t.Errorf("Map(%q): %v", name, err)
		}
	}
	if _, err := l.Map(dep, strings.Repeat("/x", 5000)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("long path: %v", err)
	}

	sep, err := Open(openDir(t, d.dir), openDir(t, d.dir+"/boot"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := sep.Map(sep.Deployments[0], "/boot/loader/entries/new.conf")
	if want := (Location{System: "/boot/loader.1/entries/new.conf", Path: "loader.1/entries/new.conf", OnBoot: true}); err != nil || got != want {
		t.Errorf("boot apart: %+v, %v", got, err)
	}

	// What is marked as changeable may change, and what ostree owns is a hard link of an object.
	run(t, "chattr", "-i", filepath.Join(d.dir, p))
	if err := os.RemoveAll(filepath.Join(d.dir, dep.Etc)); err != nil {
		t.Fatal(err)
	}
	l = d.open()
	dep = l.Deployments[0]
	at, err := l.Map(dep, "/etc/containers/storage.conf")
	if err != nil || !dep.NoEtc || dep.Etc != p+"/usr/etc" || !at.Immutable || at.Path != p+"/usr/etc/containers/storage.conf" {
		t.Errorf("deployment without etc: %+v, %+v, %v", dep, at, err)
	}
	if n := strings.TrimSpace(run(t, "stat", "-c", "%h", filepath.Join(d.dir, at.Path))); n != "2" {
		t.Errorf("%s links: not a hard link of an object", n)
	}
}

// sum is a commit's checksum for trees in memory.
func sum(c string) string { return strings.Repeat(c, 64) }

// fixture is a disk with two deployments, in memory.
func fixture() tree {
	return tree{
		"ostree/repo/config":                                 "[core]\nmode=bare\n",
		"ostree/boot.1":                                      "-> boot.1.1",
		"ostree/boot.1.1/ock/aa/0":                           "-> ../../../deploy/ock/deploy/" + sum("a") + ".0",
		"ostree/boot.1.1/ock/bb/0":                           "-> ../../../deploy/ock/deploy/" + sum("b") + ".0",
		"ostree/deploy/ock/var/lib/x":                        "",
		"ostree/deploy/ock/deploy/" + sum("a") + ".0/etc/a":  "",
		"ostree/deploy/ock/deploy/" + sum("b") + ".0/etc/b":  "",
		"ostree/deploy/ock/deploy/" + sum("a") + ".0.origin": "@100 [origin]\nrefspec=r:a\n",
		"ostree/deploy/ock/deploy/" + sum("b") + ".0.origin": "@200 [origin]\ncontainer-image-reference=ostree-unverified-registry:r/ock:1\n",
		"boot/loader": "-> loader.1",
		"boot/loader.1/entries/ostree-1-ock.conf": "title A\nversion 1\noptions ostree=/ostree/boot.1/ock/aa/0\n",
		"boot/loader.1/entries/ostree-2-ock.conf": "title B\nversion 2\noptions root=x ostree=/ostree/boot.1/ock/bb/0 root=y\n",
	}
}

func TestForms(t *testing.T) {
	const a, b = "a", "b"
	entries := "boot/loader.1/entries/"
	tests := []struct {
		name  string
		edit  func(tree)
		want  string // first letters of the checksums, in order
		err   error
		warns int
	}{
		{name: "as made", edit: func(tree) {}, want: "ba"},
		{name: "loader is a folder", edit: func(f tree) {
			delete(f, "boot/loader")
			f["boot/loader/entries/x.conf"] = f[entries+"ostree-1-ock.conf"]
		}, want: "a"},
		{name: "loader is an absolute link", edit: func(f tree) { f["boot/loader"] = "-> /loader.1" }, want: "ba"},
		{name: "loader leads out", edit: func(f tree) { f["boot/loader"] = "-> ../../../../loader.1" }, want: "ba"},
		{name: "loader loops", edit: func(f tree) { f["boot/loader"] = "-> loader" }, err: ErrLoop},
		{name: "foreign entries only", edit: func(f tree) {
			f[entries+"ostree-1-ock.conf"] = "title rescue\noptions root=x\n"
			f[entries+"ostree-2-ock.conf"] = "title rescue\n"
		}, want: "ba"},
		{name: "a foreign entry first", edit: func(f tree) { f[entries+"zz.conf"] = "title rescue\noptions root=x\n" }, want: "ba"},
		{name: "no entries, by time of deployment", edit: func(f tree) {
			delete(f, entries+"ostree-1-ock.conf")
			delete(f, entries+"ostree-2-ock.conf")
		}, want: "ba"},
		{name: "no boot folder", edit: func(f tree) {
			for p := range f {
				if strings.HasPrefix(p, "boot") {
					delete(f, p)
				}
			}
		}, want: "ba"},
		{name: "no entries, both boot versions, loader tells", edit: func(f tree) {
			delete(f, entries+"ostree-1-ock.conf")
			delete(f, entries+"ostree-2-ock.conf")
			f["ostree/boot.0"] = "-> boot.0.0"
			f["ostree/boot.0.0/ock/aa/0"] = f["ostree/boot.1.1/ock/aa/0"]
			f["boot/loader"] = "-> loader.0"
		}, want: "a"},
		{name: "no entries, both boot versions, nothing tells", edit: func(f tree) {
			delete(f, entries+"ostree-1-ock.conf")
			delete(f, entries+"ostree-2-ock.conf")
			f["ostree/boot.0"] = "-> boot.0.0"
			f["ostree/boot.0.0/ock/aa/0"] = f["ostree/boot.1.1/ock/aa/0"]
			delete(f, "boot/loader")
		}, err: ErrNoDeployment},
		{name: "argument with the subversion", edit: func(f tree) {
			f[entries+"ostree-2-ock.conf"] = "version 2\noptions ostree=/ostree/boot.1.1/ock/bb/0\n"
		}, want: "ba"},
		{name: "first of two ostree= counts", edit: func(f tree) {
			f[entries+"ostree-2-ock.conf"] = "options ostree=/ostree/boot.1/ock/aa/0 ostree=/ostree/boot.1/ock/bb/0\n"
		}, want: "a"},
		{name: "options on two lines", edit: func(f tree) {
			f[entries+"ostree-2-ock.conf"] = "options quiet\noptions ostree=/ostree/boot.1/ock/bb/0\n"
		}, want: "ba"},
		{name: "older entry is broken", edit: func(f tree) { f[entries+"ostree-1-ock.conf"] = "options ostree=/ostree/boot.1/ock/cc/0\n" }, want: b, warns: 1},
		{name: "newest entry is broken", edit: func(f tree) { f[entries+"ostree-2-ock.conf"] = "options ostree=/ostree/boot.1/ock/cc/0\n" }, err: ErrTarget},
		{name: "newest entry is no slot", edit: func(f tree) { f[entries+"ostree-2-ock.conf"] = "options ostree=true\n" }, err: ErrTarget},
		{name: "slot leads out of the deployments", edit: func(f tree) { f["ostree/boot.1.1/ock/bb/0"] = "-> /etc" }, err: ErrTarget},
		{name: "slot leads to a file", edit: func(f tree) {
			f["ostree/boot.1.1/ock/bb/0"] = "-> ../../../deploy/ock/deploy/" + sum("a") + ".0.origin"
		}, err: ErrTarget},
		{name: "slot leads to itself", edit: func(f tree) { f["ostree/boot.1.1/ock/bb/0"] = "-> 0" }, err: ErrLoop},
		{name: "slot leads to a badly named folder", edit: func(f tree) {
			f["ostree/boot.1.1/ock/bb/0"] = "-> ../../../deploy/ock/deploy/short.0"
			f["ostree/deploy/ock/deploy/short.0/etc/x"] = ""
		}, err: ErrTarget},
		{name: "boot version link is missing", edit: func(f tree) { delete(f, "ostree/boot.1") }, err: ErrTarget},
		{name: "entry with a NUL byte", edit: func(f tree) { f[entries+"ostree-1-ock.conf"] = "title \x00\n" }, err: ErrEntry},
		{name: "huge entry", edit: func(f tree) { f[entries+"ostree-1-ock.conf"] = strings.Repeat("#\n", maxEntry) }, err: ErrTooLarge},
		{name: "huge repository config", edit: func(f tree) { f["ostree/repo/config"] = strings.Repeat("#\n", maxText) }, err: ErrTooLarge},
		{name: "too many entries", edit: func(f tree) {
			for i := range maxNames {
				f[fmt.Sprintf("%s%d", entries, i)] = ""
			}
		}, err: ErrTooLarge},
		{name: "no repository config", edit: func(f tree) {
			delete(f, "ostree/repo/config")
			f["ostree/repo/objects/x"] = ""
		}, want: "ba", warns: 1},
		{name: "no repository", edit: func(f tree) { delete(f, "ostree/repo/config") }, err: ErrNotOstree},
		{name: "plain disk", edit: func(f tree) { clear(f); f["etc/os-release"] = "" }, err: ErrNotOstree},
		{name: "one deployment started twice", edit: func(f tree) { f[entries+"ostree-3-ock.conf"] = f[entries+"ostree-1-ock.conf"] }, want: a + b},
		{name: "spent boot counter", edit: func(f tree) {
			f[entries+"ostree-2-ock+0-3.conf"] = f[entries+"ostree-2-ock.conf"]
			delete(f, entries+"ostree-2-ock.conf")
		}, want: "ab"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := fixture()
			tt.edit(f)
			l, err := Open(f, nil)
			if !errors.Is(err, tt.err) || (err == nil) != (tt.err == nil) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				return
			}
			got := ""
			for _, d := range l.Deployments {
				got += d.Checksum[:1]
			}
			if got != tt.want || len(l.Warnings) != tt.warns {
				t.Errorf("deployments %q, warnings %q; want %q and %d", got, l.Warnings, tt.want, tt.warns)
			}
		})
	}
}

func TestDeploymentFiles(t *testing.T) {
	f := fixture()
	dep := "ostree/deploy/ock/deploy/" + sum("b") + ".0"
	f[dep+"/usr/lib/ostree/prepare-root.conf"] = "[composefs]\nenabled = signed\n[etc]\ntransient = true\n[root]\ntransient=yes\n"
	f[dep+"/usr/etc/b"] = ""
	l, err := Open(f, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := l.Deployments[0]
	if d.Composefs != "signed" || !d.TransientEtc || !d.TransientRoot || d.Refspec != "ostree-unverified-registry:r/ock:1" || d.Root() != "y" {
		t.Errorf("%+v", d)
	}
	// Changes of a transient /etc are lost, so it is the pristine one that counts.
	if at, err := l.Map(d, "/etc/b"); err != nil || at.Path != dep+"/usr/etc/b" || !at.Immutable {
		t.Errorf("%+v, %v", at, err)
	}
	if d := l.Deployments[1]; d.Refspec != "r:a" || d.TransientEtc || d.Composefs != "" {
		t.Errorf("%+v", d)
	}
}

func TestSortEntries(t *testing.T) {
	e := func(file, version, key, machine string) Entry {
		return Entry{File: file, Version: version, SortKey: key, MachineID: machine}
	}
	tests := []struct {
		name    string
		entries []Entry
		want    string
	}{
		{"ostree names", []Entry{e("ostree-1-ock.conf", "1", "", ""), e("ostree-10-ock.conf", "10", "", ""), e("ostree-2-ock.conf", "2", "", "")},
			"ostree-10-ock.conf ostree-2-ock.conf ostree-1-ock.conf"},
		{"kernel versions in names", []Entry{e("m-5.9.conf", "", "", ""), e("m-5.15.0~rc1.conf", "", "", ""), e("m-5.15.0.conf", "", "", "")},
			"m-5.15.0.conf m-5.15.0~rc1.conf m-5.9.conf"},
		{"sort keys come first and ascend, versions descend", []Entry{e("z.conf", "9", "", ""), e("a.conf", "1", "k", "m"), e("b.conf", "10", "k", "m"), e("c.conf", "1", "j", "m"), e("d.conf", "3", "k", "a")},
			"c.conf d.conf b.conf a.conf z.conf"},
		{"no tries left comes last", []Entry{e("b+0.conf", "", "", ""), e("a+3-0.conf", "", "", ""), e("c+x.conf", "", "", "")},
			"c+x.conf a+3-0.conf b+0.conf"},
	}
	for _, tt := range tests {
		for range 2 {
			SortEntries(tt.entries)
			got := ""
			for _, e := range tt.entries {
				got += " " + e.File
			}
			if got != " "+tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
			slices.Reverse(tt.entries)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	// Ascending; the first rows are the examples of the Version Format Specification.
	sorted := []string{"122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1"}
	for i, a := range sorted {
		for j, b := range sorted {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := CompareVersions(a, b); got != want {
				t.Errorf("CompareVersions(%q, %q) = %d, want %d", a, b, got, want)
			}
		}
	}
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "a", -1}, {"_ab", "ab", 0}, {"01", "1", 0}, {"1", "a", 1}, {"A", "a", -1}, {"ab", "abc", -1},
		{"1.0.", "1.0", 1}, {"99999999999999999999999", "100000000000000000000000", -1}, {"~", "", -1}, {"1~", "1", -1}, {"\xff1", "1", 0},
	} {
		if got := CompareVersions(tt.a, tt.b); got != tt.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := CompareVersions(tt.b, tt.a); got != -tt.want {
			t.Errorf("CompareVersions(%q, %q) = %d, want %d", tt.b, tt.a, got, -tt.want)
		}
	}
}

func TestParseTarget(t *testing.T) {
	for _, tt := range []struct {
		value string
		want  Target
	}{
		{"/ostree/boot.1/ock/" + sum("0") + "/0", Target{1, -1, "ock", sum("0"), 0}},
		{"/ostree/boot.0.1/fedora-coreos/ab/12", Target{0, 1, "fedora-coreos", "ab", 12}},
	} {
		got, err := ParseTarget(tt.value)
		if err != nil || got != tt.want || "/"+got.Path() != tt.value {
			t.Errorf("ParseTarget(%q) = %+v, %v, path %s", tt.value, got, err, got.Path())
		}
	}
	for _, bad := range []string{"", "true", "/ostree/boot.2/o/a/0", "/ostree/boot.1/o/a", "/ostree/boot.1/o/a/0/", "/ostree/boot.1/../a/0", "/ostree/boot.1/o//0",
		"/ostree/boot./o/a/0", "/ostree/boot.1./o/a/0", "/ostree/boot.1.2/o/a/0", "/ostree/boot.1/o/a/-1", "/ostree/boot.1/o/a/+1", "/ostree/boot.1/o/a/99999999999",
		"ostree/boot.1/o/a/0", "/ostree/boot.1/" + strings.Repeat("o", 256) + "/a/0", "/ostree/boot.1/o/./0", "/ostree/boot.1/\x00/a/0"} {
		if got, err := ParseTarget(bad); !errors.Is(err, ErrTarget) {
			t.Errorf("ParseTarget(%q) = %+v, %v", bad, got, err)
		}
	}
}

func TestArgs(t *testing.T) {
	e := Entry{Options: `rw root=UUID=1 quoted="a b" "whole=c d" empty= ostree=/x root="LABEL=my root" ostreex=1  `}
	for _, tt := range []struct {
		key  string
		want []string
	}{
		{"root", []string{"UUID=1", "LABEL=my root"}}, {"quoted", []string{"a b"}}, {"whole", []string{"c d"}},
		{"empty", []string{""}}, {"ostree", []string{"/x"}}, {"rw", nil}, {"none", nil},
	} {
		if got := e.Args(tt.key); !slices.Equal(got, tt.want) {
			t.Errorf("Args(%q) = %q, want %q", tt.key, got, tt.want)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte("title Oracle Linux (ostree:0)\nversion 1\noptions root=UUID=abc rw ostree=/ostree/boot.1/ock/0/0\nlinux /v\ninitrd /i /j\n"))
	f.Add([]byte("# c\n\ntitle\ttabs\nsort-key a\nmachine-id b\noptions a=\"b c\noptions \"\r\ninitrd /k\n"))
	f.Add([]byte("options \"\"\"\" = == =\"\nversion ~^.-\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := ParseEntry("a+1-2.conf", text)
		if err != nil {
			if !errors.Is(err, ErrEntry) {
				t.Fatal(err)
			}
			return
		}
		if len(e.Title)+len(e.Options)+len(e.Linux)+len(e.Version) > 2*len(text)+1 {
			t.Fatal("the entry grew")
		}
		for _, v := range e.Args("ostree") {
			if t2, err := ParseTarget(v); err == nil && "/"+t2.Path() == "" {
				t.Fatal("empty path")
			}
		}
		twin := e
		twin.File = "b.conf"
		SortEntries([]Entry{e, twin, {File: "c.conf", Version: e.Title}})
	})
}

func FuzzParseTarget(f *testing.F) {
	for _, s := range []string{"/ostree/boot.1/ock/ab/0", "/ostree/boot.0.1/a/b/3", "/ostree/boot.1/../../0", "/ostree/boot.01/a/b/00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTarget(s)
		if err != nil {
			if !errors.Is(err, ErrTarget) || len(err.Error()) > 2000 {
				t.Fatal(err)
			}
			return
		}
		if p := got.Path(); path.Clean(p) != p || !strings.HasPrefix(p, "ostree/boot.") {
			t.Fatalf("path %q of %q", p, s)
		}
		again, err := ParseTarget("/" + got.Path())
		if err != nil || again != got {
			t.Fatalf("%+v became %+v, %v", got, again, err)
		}
	})
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("123~rc1", "123.a-1", "1^2")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, bc := CompareVersions(a, b), CompareVersions(b, c)
		if CompareVersions(b, a) != -ab || CompareVersions(a, a) != 0 {
			t.Fatalf("%q and %q are not ordered", a, b)
		}
		if ac := CompareVersions(a, c); ab <= 0 && bc <= 0 && ac > 0 {
			t.Fatalf("%q <= %q <= %q, but not the first and last", a, b, c)
		}
	})
}

// FuzzOpen makes a tree of names, links and files out of bytes.
func FuzzOpen(f *testing.F) {
	var seed []byte
	for p, v := range fixture() {
		seed = append(seed, p+"\x01"+v+"\x02"...)
	}
	f.Add(seed, "/home/../etc/x")
	f.Add([]byte("ostree/repo/x\x01\x02ostree/deploy/o\x01-> o\x02ostree/boot.1\x01-> ostree/boot.1"), "/var/x")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if len(b) > 1<<14 {
			return
		}
		fs := tree{}
		for item := range bytes.SplitSeq(b, []byte{2}) {
			p, v, _ := strings.Cut(string(item), "\x01")
			if p = strings.Trim(path.Clean("/"+p), "/"); p != "" {
				fs[p] = v
			}
		}
		l, err := Open(fs, nil)
		if err != nil {
			return
		}
		for _, d := range l.Deployments {
			at, err := l.Map(d, name)
			if err != nil {
				continue
			}
			if strings.HasPrefix(at.Path, "/") || path.Clean(at.Path) != at.Path || strings.HasPrefix(at.Path, "..") {
				t.Fatalf("%q lies at %q", name, at.Path)
			}
		}
	})
}
