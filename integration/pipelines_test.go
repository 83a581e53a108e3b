package integration

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openDir is tempDir for everyone: others may look into it, and with all write into it.
func openDir(t testing.TB, mode os.FileMode) string {
	t.Helper()
	dir := tempDir(t)
	check(t, os.Chmod(scratch, 0o711))
	check(t, os.Chmod(dir, mode))
	return dir
}

// jail is a read-only root folder with a program in it, and what the test puts there.
type jail struct{ root string }

// bind is a file or folder that is seen in a jail.
type bind struct {
	from, to string
	writable bool
}

// newJail makes one that begins as a copy of a folder, or with none, "", with the product alone. Files are by name, a
// name that ends in a slash being a folder. What is named in shut is root's alone.
func newJail(t testing.TB, from string, files map[string]string, binds []bind, shut ...string) jail {
	t.Helper()
	j := jail{openDir(t, 0o755) + "/root"}
	if from == "" {
		check(t, os.Mkdir(j.root, 0o755))
		binds = append(slices.Clone(binds), bind{productPath(t), "/nodebake", false})
	} else {
		run(t, "cp", "-al", from, j.root)
	}
	for name, content := range files {
		check(t, os.MkdirAll(filepath.Dir(j.root+name), 0o755))
		if !strings.HasSuffix(name, "/") {
			check(t, os.WriteFile(j.root+name, []byte(content), 0o644))
		}
	}
	for _, name := range shut {
		if name != "" {
			check(t, os.Chmod(j.root+name, 0o700))
		}
	}
	for _, b := range binds {
		// What is bound needs something to be bound over, before the root is read-only.
		st, err := os.Stat(b.from)
		check(t, err)
		if st.IsDir() {
			check(t, os.MkdirAll(j.root+b.to, 0o755))
		} else {
			check(t, os.MkdirAll(filepath.Dir(j.root+b.to), 0o755))
			check(t, os.WriteFile(j.root+b.to, nil, 0o755))
		}
	}
	for _, b := range append([]bind{{j.root, "", false}}, binds...) {
		options := "ro"
		if b.writable {
			options = "rw"
		}
		to := j.root + b.to
		run(t, "mount", "--bind", "-o", options, b.from, to)
		t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
	}
	return j
}

// stranger is someone without rights.
type stranger struct {
	id  int
	env []string // all of the environment
	dir string   // where it works in a jail; "" is the root
	// private is the namespaces of the user's own, as flags of unshare.
	private []string
	umask   string
}

// as runs a program as a user who has no capability and can gain none, in a jail or with root "" on the machine.
func (u stranger) as(t testing.TB, root string, argv ...string) outcome {
	t.Helper()
	line := u.line(t, root, argv...)
	o := command(t, nil, line[0], line[1:]...)
	if strings.Contains(o.stderr, "goroutine ") {
		t.Fatalf("a panic:\n%s", o)
	}
	return o
}

// line is the command line that does so.
func (u stranger) line(t testing.TB, root string, argv ...string) []string {
	t.Helper()
	abs := func(name string) string {
		name, err := exec.LookPath(name)
		check(t, err)
		return name
	}
	id := fmt.Sprint(u.id)
	wrap := []string{"sh", "-c", `umask "$1"; shift; exec "$@"`, "sh", "0022", abs("env"), "-i"}
	if u.umask != "" {
		wrap[4] = u.umask
	}
	wrap = append(wrap, u.env...)
	wrap = append(wrap, abs("setpriv"), "--reuid", id, "--regid", id, "--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs")
	if len(u.private) > 0 {
		wrap = append(append(wrap, abs("unshare")), u.private...)
		if root != "" {
			wrap = append(wrap, "--root="+root, "--wd="+cmp.Or(u.dir, "/"))
		}
	} else if root != "" {
		t.Fatal("to enter a jail a namespace is needed")
	}
	return append(append(wrap, "--"), argv...)
}

// capabilities are what /proc says of a user's process, of the sets that give rights.
func (u stranger) capabilities(t testing.TB) map[string]string {
	t.Helper()
	o := u.as(t, "", "/bin/cat", "/proc/self/status")
	if o.code != 0 {
		t.Fatalf("%s", o)
	}
	sets := map[string]string{}
	for _, line := range strings.Split(o.stdout, "\n") {
		if name, value, ok := strings.Cut(line, ":\t"); ok && (strings.HasPrefix(name, "Cap") || name == "NoNewPrivs") {
			sets[name] = strings.TrimLeft(value, "0")
		}
	}
	return sets
}

// TestUnprivileged bakes as someone who may do nothing, on a machine that has nothing: the bytes are root's.
func TestUnprivileged(t *testing.T) {
	requires(t, "root", "setpriv", "unshare", "skopeo")
	hello := testImages(t)["hello"]
	addr := registry(t)
	push(t, hello.oci(), addr+"/team/hello:v1")

	// What is read, in one folder that is found under the same name everywhere.
	in := openDir(t, 0o755)
	run(t, "cp", smallBase(t), in+"/base.raw")
	run(t, "qemu-img", "convert", "-O", "qcow2", smallBase(t), in+"/base.qcow2")
	run(t, "cp", hello.ociArchive, in+"/hello.oci.tar")
	run(t, "cp", hello.dockerArchive, in+"/hello.docker.tar")
	run(t, "cp", "-r", hello.layout, in+"/hello")
	run(t, "cp", "-r", hello.dir, in+"/dir")
	check(t, os.WriteFile(in+"/secret.raw", nil, 0o600))

	fromRegistry := []string{"--image", addr + "/team/hello:v1", "--insecure-registry", addr}
	type job struct {
		name, out string
		args      []string // IN and OUT stand for folders
		online    bool
	}
	jobs := []job{
		{"oci-archive", "a.qcow2", []string{"--base", "IN/base.qcow2", "--image", "oci-archive:IN/hello.oci.tar"}, false},
		{"oci", "b.qcow2", []string{"--base", "IN/base.raw", "--image", "oci:IN/hello"}, false},
		{"docker-archive", "c.qcow2", []string{"--base", "IN/base.qcow2", "--image", "docker-archive:IN/hello.docker.tar"}, false},
		{"dir", "d.qcow2", []string{"--base", "IN/base.qcow2", "--image", "dir:IN/dir"}, false},
		{"raw", "e.raw", []string{"--base", "IN/base.qcow2", "--image", "oci-archive:IN/hello.oci.tar"}, false},
		{"image", "oci-archive:OUT/f.tar", []string{"--base", "IN/base.qcow2", "--image", "oci:IN/hello"}, false},
		{"from an image", "g.qcow2", []string{"--base", "oci-archive:OUT/f.tar", "--image", "docker-archive:IN/hello.docker.tar"}, false},
		{"registry", "h.qcow2", append([]string{"--base", "IN/base.qcow2", "--cache", "OUT/cache", "--lock", "OUT/lock.json"}, fromRegistry...), true},
		{"cache", "i.qcow2", []string{"--base", "IN/base.qcow2", "--cache", "OUT/cache", "--offline", "--lock", "OUT/lock.json", "--locked"}, false},
	}
	args := func(j job, in, out string) (argv []string, file string) {
		file = j.out
		if !strings.Contains(file, ":") {
			file = "OUT/" + file
		}
		for _, a := range append(slices.Clone(j.args), "--output", file) {
			argv = append(argv, strings.NewReplacer("IN/", in+"/", "OUT/", out+"/").Replace(a))
		}
		return append([]string{"build", "-q"}, argv...), strings.TrimPrefix(j.out, "oci-archive:OUT/")
	}

	ours := tempDir(t)
	want := map[string]string{}
	for _, j := range jobs {
		argv, file := args(j, in, ours)
		if o := nodebake(t, argv...); o.code != exitDone {
			t.Fatalf("%s", o)
		}
		want[j.name] = hashFile(t, ours+"/"+file)
	}
	if want["registry"] != want["cache"] || want["oci-archive"] == want["raw"] {
		t.Errorf("as root: %v", want)
	}

	pod := map[string]string{"/etc/ssl/certs/": "", "/tmp/": "", "/var/tmp/": "", "/etc/passwd": "root:x:0:0::/root:/bin/sh\n"}
	for _, c := range []struct {
		name  string
		files map[string]string // of the jail; nil is none
		proc  bool
		user  stranger
	}{
		{name: "nobody", user: stranger{id: 65534}},
		{name: "no passwd entry, no namespace", user: stranger{id: 41234, umask: "077"}},
		{name: "unmapped", user: stranger{id: 41234, private: []string{"--user"}}},
		{name: "mapped to root", user: stranger{id: 41234, private: []string{"--user", "--map-root-user"}}},
		{name: "HOME that cannot be written", user: stranger{id: 41234, private: []string{"--user"}, env: []string{"HOME=/usr"}}},
		{name: "bare root", files: map[string]string{}, user: stranger{id: 41234, private: []string{"--user"}, umask: "077"}},
		{name: "bare root, mapped to root", files: map[string]string{}, user: stranger{id: 41234, private: []string{"--user", "--map-root-user"}}},
		{name: "bare root, TMPDIR", files: map[string]string{}, user: stranger{id: 41234, private: []string{"--user"}, env: []string{"TMPDIR=/out"}}},
		{name: "as a pod", files: pod, proc: true, user: stranger{id: 41234, private: []string{"--user", "--map-user=65532", "--map-group=65532"}, env: []string{"HOME=/", "PATH=/usr/bin"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			caps := c.user.capabilities(t)
			if caps["NoNewPrivs"] != "1" || !slices.Contains(c.user.private, "--map-root-user") && (caps["CapEff"] != "" || caps["CapPrm"] != "" || caps["CapAmb"] != "") {
				t.Fatalf("the user has rights: %v", caps)
			}
			root, here, program, out := "", in, productPath(t), openDir(t, 0o777)
			made := out
			if c.files != nil {
				binds := []bind{{in, "/in", false}, {out, "/out", true}}
				if c.proc {
					binds = append(binds, bind{"/proc", "/proc", false})
				}
				j := newJail(t, "", c.files, binds)
				root, here, program, out = j.root, "/in", "/nodebake", "/out"
			}
			bake := func(u stranger, argv ...string) outcome { return u.as(t, root, append([]string{program}, argv...)...) }
			for _, j := range jobs {
				u := c.user
				if len(u.private) > 0 && !j.online {
					u.private = append(slices.Clone(u.private), "--net")
				}
				argv, file := args(j, here, out)
				if o := bake(u, argv...); o.code != exitDone {
					t.Errorf("%s: %s", j.name, o)
				} else if got := hashFile(t, made+"/"+file); got != want[j.name] {
					t.Errorf("%s: the bytes are not those of a bake as root", j.name)
				}
			}
			entries, err := os.ReadDir(made)
			check(t, err)
			for _, e := range entries {
				known := e.Name() == "cache" || e.Name() == "lock.json"
				for _, j := range jobs {
					_, file := args(j, "", "")
					known = known || e.Name() == file || e.Name() == file+".sha256" || e.Name() == file+".bmap"
				}
				if !known {
					t.Errorf("left beside the outputs: %s", e.Name())
				}
			}

			// The place is what it is said to be.
			argv, _ := args(jobs[0], here, out)
			argv[slices.Index(argv, "--base")+1] = here + "/secret.raw"
			refused(t, bake(c.user, append(argv, "--force")...), exitFailed, "", "secret.raw", "permission denied")
			if root != "" {
				argv, _ := args(jobs[1], here, "")
				refused(t, bake(c.user, argv...), exitFailed, "", "read-only file system")
			}
		})
	}
}

// TestUnprivilegedStore reads podman's own store, which takes the rights to mount: those that root has in a namespace of
// the user's own will do, as podman unshare makes it.
func TestUnprivilegedStore(t *testing.T) {
	requires(t, "root", "setpriv", "unshare", "skopeo")
	hello := testImages(t)["hello"]
	in, dir := openDir(t, 0o755), openDir(t, 0o777)
	run(t, "cp", smallBase(t), in+"/base.raw")
	run(t, "cp", hello.ociArchive, in+"/hello.oci.tar")
	ref := fmt.Sprintf("containers-storage:[overlay@%s/store+%s/run]%s", dir, dir, hello.name)
	owner := stranger{id: 41234, env: []string{"HOME=" + dir}, private: []string{"--user", "--map-root-user", "--mount", "--net"}}
	skopeo, err := exec.LookPath("skopeo")
	check(t, err)
	if o := owner.as(t, "", skopeo, "--insecure-policy", "--tmpdir="+dir, "copy", "-q", "oci-archive:"+in+"/hello.oci.tar", ref); o.code != 0 {
		t.Fatalf("%s", o)
	}
	args := []string{productPath(t), "build", "-q", "--base", in + "/base.raw", "--image", ref, "--output", dir + "/out.raw"}
	if o := owner.as(t, "", args...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	bakedRight(t, smallBase(t), dir+"/out.raw", smallRoot, hello)
	owner.private = []string{"--user", "--net"}
	refused(t, owner.as(t, "", append(args, "--force")...), exitFailed, "", "containers-storage", "permission denied|not permitted")
}

// TestPolicyWithoutHome is which policy counts for a process that has no home folder, or one that it may not enter: that
// of the machine as ever, that of a folder which is its own, and never none because one could not be read.
func TestPolicyWithoutHome(t *testing.T) {
	requires(t, "root", "setpriv", "unshare")
	hello := testImages(t)["hello"]
	in := openDir(t, 0o755)
	run(t, "cp", smallBase(t), in+"/base.raw")
	run(t, "cp", "-r", hello.layout, in+"/hello")
	const (
		accept  = `{"default": [{"type": "insecureAcceptAnything"}]}`
		reject  = `{"default": [{"type": "reject"}]}`
		machine = "/etc/containers/policy.json"
		vendor  = "/usr/share/containers/policy.json"
		mine    = "/home/me/.config/containers/policy.json"
		none    = "without any check of who made it"
	)
	const passwd = "root:x:0:0::/home/me:/bin/sh\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		shut  string // a name in the jail that the user may not open
		user  stranger
		code  int
		words []string
	}{
		{"no passwd file, no policy", nil, "", stranger{}, exitDone, []string{none}},
		{"no passwd file, the machine's", map[string]string{machine: reject}, "", stranger{}, exitFailed, []string{"rejected"}},
		{"no passwd file, the vendor's", map[string]string{vendor: reject}, "", stranger{}, exitFailed, []string{"rejected"}},
		{"no passwd entry, the machine's", map[string]string{machine: reject, "/etc/passwd": "other:x:7:7::/:/\n"}, "", stranger{}, exitFailed, []string{"rejected"}},
		{"no passwd entry, the machine's lets in", map[string]string{machine: accept}, "", stranger{}, exitDone, nil},
		{"the machine's cannot be read", map[string]string{machine: accept}, machine, stranger{}, exitFailed, []string{machine, "permission denied"}},
		{"the machine's folder cannot be entered", map[string]string{machine: accept}, "/etc/containers", stranger{}, exitFailed, []string{machine, "permission denied"}},
		{"XDG_CONFIG_HOME alone", map[string]string{machine: accept, mine: reject}, "", stranger{env: []string{"XDG_CONFIG_HOME=/home/me/.config"}}, exitFailed, []string{"rejected"}},
		{"home of the passwd file, one's own policy", map[string]string{machine: accept, mine: reject, "/etc/passwd": passwd}, "",
			stranger{private: []string{"--map-root-user"}}, exitFailed, []string{"rejected"}},
		{"home of the passwd file, a policy that cannot be read", map[string]string{machine: accept, mine: accept, "/etc/passwd": passwd}, mine,
			stranger{private: []string{"--map-root-user"}}, exitFailed, []string{mine, "permission denied"}},
		{"home of the passwd file is another's", map[string]string{machine: accept, mine: reject, "/etc/passwd": passwd}, "/home/me",
			stranger{private: []string{"--map-root-user"}}, exitDone, []string{"HOME is not set, and /home/me is closed"}},
		{"home of the passwd file is another's, the machine's", map[string]string{machine: reject, mine: accept, "/etc/passwd": passwd}, "/home/me",
			stranger{private: []string{"--map-root-user"}}, exitFailed, []string{"rejected"}},
		{"HOME that may not be entered", map[string]string{machine: accept, mine: accept}, "/home/me", stranger{env: []string{"HOME=/home/me"}}, exitFailed,
			[]string{mine, "permission denied"}},
		{"HOME with a policy", map[string]string{machine: accept, mine: reject}, "", stranger{env: []string{"HOME=/home/me"}}, exitFailed, []string{"rejected"}},
		{"HOME that is not there", map[string]string{machine: accept}, "", stranger{env: []string{"HOME=/home/me"}}, exitDone, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := openDir(t, 0o777)
			j := newJail(t, "", c.files, []bind{{in, "/in", false}, {out, "/out", true}}, c.shut)
			c.user.id, c.user.private = 41234, append([]string{"--user", "--net"}, c.user.private...)
			o := c.user.as(t, j.root, "/nodebake", "build", "--base", "/in/base.raw", "--image", "oci:/in/hello", "--output", "/out/out.raw")
			if c.code != exitDone {
				refused(t, o, c.code, "", c.words...)
				mustNotExist(t, out+"/out.raw")
				return
			}
			if o.code != exitDone {
				t.Fatalf("%s", o)
			}
			for _, w := range c.words {
				if !strings.Contains(o.stderr, w) {
					t.Errorf("it does not say %q\n%s", w, o)
				}
			}
			if len(c.words) == 0 && strings.Contains(o.stderr, "warning") {
				t.Errorf("it warns\n%s", o)
			}
		})
	}
}
