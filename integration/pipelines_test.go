package integration

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	imgv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.yaml.in/yaml/v3"
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

// requiresNamespaces is requires for what some machines forbid: a user namespace of a user without rights.
func requiresNamespaces(t testing.TB) {
	t.Helper()
	requires(t, "root", "setpriv", "unshare")
	if o := (stranger{id: 41234, private: []string{"--user"}}).as(t, "", "/bin/true"); o.code != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s", o)
		}
		t.Skipf("no user namespaces here: %s", strings.TrimSpace(o.stderr))
	}
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
	requiresNamespaces(t)
	requires(t, "skopeo")
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
	requiresNamespaces(t)
	requires(t, "skopeo")
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
	requiresNamespaces(t)
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

// pipelines is where the examples are.
const pipelines = "../examples/pipelines"

// examplesCopy is a copy of the examples that a pipeline may read and that has no more than they have.
func examplesCopy(t testing.TB) string {
	t.Helper()
	dir := openDir(t, 0o755) + "/examples"
	run(t, "cp", "-r", "../examples", dir)
	return dir
}

// strictly decodes YAML in which nothing may be that into does not know.
func strictly(t testing.TB, name string, text []byte, into any) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// containerImage is the container image of nodebake, unpacked.
type containerImage struct {
	rootfs, source string
	config         imgv1.ImageConfig
}

// madeImage makes the image as the Containerfile says, but for its first stage's own image, which is of a registry: the
// command of that stage runs here, on the files that the context has.
var madeImage = sync.OnceValues(func() (containerImage, error) {
	dir, err := os.MkdirTemp(scratch, "image.")
	if err != nil {
		return containerImage{}, err
	}
	i := containerImage{rootfs: dir + "/rootfs", source: dir + "/source"}
	b := builder{}
	b.do(os.Chmod(scratch, 0o711), os.Chmod(dir, 0o755), os.Mkdir(i.source, 0o755), os.Mkdir(i.rootfs, 0o755))
	ignore, err := os.ReadFile("../.containerignore")
	b.do(err)
	for n, line := range strings.Fields(string(ignore)) {
		switch {
		case n == 0 && line == "*":
		case n > 0 && strings.HasPrefix(line, "!"):
			b.tool("cp", "-r", "../"+line[1:], i.source)
		default:
			b.do(fmt.Errorf(".containerignore: the test does not know %q", line))
		}
	}
	file, err := os.ReadFile("../Containerfile")
	b.do(err)
	// The one command of the first stage, at its end.
	text := strings.ReplaceAll(string(file), "\\\n", "")
	at, end := strings.Index(text, "\nRUN "), strings.Index(text, "\nFROM scratch\n")
	if b.err == nil && (at < 0 || end < at || strings.Count(text, "\nRUN ") != 1) {
		b.do(errors.New("the Containerfile is not as the test knows it"))
	}
	if b.err != nil {
		return i, b.err
	}
	const epoch = "1700000000"
	script := strings.ReplaceAll(text[at+len("\nRUN "):end], "/out/", dir+"/stage/out/")
	_, err = toolEnv([]string{"TARGETOS=", "TARGETARCH=", "VERSION=v0.0.0-test"}, "sh", "-c", `cd "$1" && `+script, "sh", i.source)
	b.do(err)
	var layouts []string
	for n := range 2 {
		layout := fmt.Sprintf("%s/layout%d", dir, n)
		layouts = append(layouts, layout)
		common := []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "vfs"}
		b.tool("buildah", append(common, "build", "-q", "--isolation", "chroot", "--no-cache", "--timestamp", epoch, "--build-arg", "VERSION=v0.0.0-test",
			"--build-context", "build="+dir+"/stage", "-f", "../Containerfile", "-t", "nodebake", i.source)...)
		b.tool("buildah", append(common, "push", "-q", "nodebake", "oci:"+layout+":nodebake")...)
	}
	b.do(os.RemoveAll(dir + "/root"))
	blob := func(layout string, d digest.Digest) []byte {
		raw, err := os.ReadFile(layout + "/blobs/sha256/" + d.Encoded())
		b.do(err)
		return raw
	}
	var manifests []digest.Digest
	for _, layout := range layouts {
		var index imgv1.Index
		raw, err := os.ReadFile(layout + "/index.json")
		b.do(err, json.Unmarshal(raw, &index))
		if b.err != nil {
			return i, b.err
		}
		manifests = append(manifests, index.Manifests[0].Digest)
	}
	if manifests[0] != manifests[1] {
		b.do(fmt.Errorf("two builds of the same are the images %s and %s", manifests[0], manifests[1]))
	}
	var manifest imgv1.Manifest
	var config imgv1.Image
	b.do(json.Unmarshal(blob(layouts[0], manifests[0]), &manifest))
	b.do(json.Unmarshal(blob(layouts[0], manifest.Config.Digest), &config))
	for _, l := range manifest.Layers {
		b.tool("tar", "--numeric-owner", "-xpf", layouts[0]+"/blobs/sha256/"+l.Digest.Encoded(), "-C", i.rootfs)
	}
	i.config = config.Config
	return i, b.err
})

func theImage(t testing.TB) containerImage {
	t.Helper()
	requiresNamespaces(t)
	requires(t, "buildah", "make", "go")
	i, err := madeImage()
	check(t, err)
	return i
}

// user is a user of the image as a pod or podman runs it: the image's own, without capabilities.
func (i containerImage) user(t testing.TB) stranger {
	t.Helper()
	id, group, _ := strings.Cut(i.config.User, ":")
	if n, err := strconv.Atoi(id); err != nil || n == 0 || group != id {
		t.Fatalf("the image's user is %q, which Kubernetes does not know for another than root", i.config.User)
	}
	// Beyond the image the user is one that owns nothing, even if the machine has one of that number.
	return stranger{id: 41234, env: append([]string{"HOME=/"}, i.config.Env...), dir: i.config.WorkingDir,
		private: []string{"--user", "--net", "--map-user=" + id, "--map-group=" + id}}
}

// TestContainerfile builds the image and bakes in it, read-only, as its user.
func TestContainerfile(t *testing.T) {
	i := theImage(t)
	if got := i.config.Entrypoint; !slices.Equal(got, []string{"/nodebake"}) {
		t.Errorf("the entrypoint is %q", got)
	}
	for _, l := range []string{"title", "description", "source", "version"} {
		if i.config.Labels["org.opencontainers.image."+l] == "" {
			t.Errorf("the image has no label %s: %v", l, i.config.Labels)
		}
	}
	var names []string
	check(t, filepath.WalkDir(i.rootfs, func(name string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, strings.TrimPrefix(name, i.rootfs))
		}
		return err
	}))
	const authorities = "/etc/ssl/certs/ca-certificates.crt"
	if !slices.Equal(names, []string{authorities, "/nodebake"}) {
		t.Errorf("the image's files are %q", names)
	}
	certificates, err := os.ReadFile(i.rootfs + authorities)
	check(t, err)
	if !x509.NewCertPool().AppendCertsFromPEM(certificates) {
		t.Error("the image has no certificate authorities")
	}

	examples, out := examplesCopy(t), openDir(t, 0o777)
	user := i.user(t)
	j := newJail(t, i.rootfs, nil, []bind{{examples, "/examples", false}, {out, i.config.WorkingDir, true}})
	version := user.as(t, j.root, append(i.config.Entrypoint, "version")...)
	if !strings.HasPrefix(version.stdout, "nodebake v0.0.0-test ") {
		t.Errorf("%s", version)
	}
	args := func(examples, out string) []string {
		return []string{"build", "-q", "--base", examples + "/demo/ostree.qcow2", "--image", "oci-archive:" + examples + "/demo/hello.oci.tar", "--output", out}
	}
	if o := user.as(t, j.root, append(i.config.Entrypoint, args("/examples", "node.qcow2")...)...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	ours := tempDir(t) + "/node.qcow2"
	if o := nodebake(t, args("../examples", ours)...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	sameFiles(t, ours, out+"/node.qcow2", true)
	if o := user.as(t, j.root, append(i.config.Entrypoint, args("/examples", "/node.qcow2")...)...); o.code != exitFailed || !strings.Contains(o.stderr, "read-only file system") {
		t.Errorf("the root can be written: %s", o)
	}
}

// The parts of Kubernetes' objects that the examples use, and no more: what another field means to a run, the runner
// below would have to know.
type (
	securityContext struct {
		RunAsNonRoot             bool  `yaml:"runAsNonRoot"`
		RunAsUser                int   `yaml:"runAsUser"`
		RunAsGroup               int   `yaml:"runAsGroup"`
		FSGroup                  int   `yaml:"fsGroup"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
		SeccompProfile           struct{ Type string } `yaml:"seccompProfile"`
	}
	resources   struct{ Requests, Limits map[string]string }
	volumeMount struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
	parameter struct {
		Name, Description string
		Type              string
		Value             any
		Default           any
	}
	object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name         string
			GenerateName string `yaml:"generateName"`
		}
	}
	claim struct {
		ClaimName string `yaml:"claimName"`
		ReadOnly  bool   `yaml:"readOnly"`
	}
)

// pod is one container as it runs, all variables resolved.
type pod struct {
	name, image string
	argv        []string
	mounts      []volumeMount
	resources   resources
	// pod and own are the security contexts of both.
	pod, own securityContext
}

// podRunner runs pods: an image, and the volumes by their names.
type podRunner struct {
	image   containerImage
	volumes map[string]string
	online  bool
}

// run runs a pod as a cluster that enforces the restricted profile would, and in the memory that it asks for.
func (c podRunner) run(t testing.TB, p pod) {
	t.Helper()
	user := c.image.user(t)
	id := cmp.Or(p.own.RunAsUser, p.pod.RunAsUser)
	if group := cmp.Or(p.own.RunAsGroup, p.pod.RunAsGroup); c.image.config.User != fmt.Sprintf("%d:%d", id, group) {
		t.Errorf("%s runs as %d:%d, and the image's user is %s", p.name, id, group, c.image.config.User)
	}
	if esc := p.own.AllowPrivilegeEscalation; !(p.own.RunAsNonRoot || p.pod.RunAsNonRoot) || esc == nil || *esc || !p.own.ReadOnlyRootFilesystem ||
		!slices.Equal(p.own.Capabilities.Drop, []string{"ALL"}) || cmp.Or(p.own.SeccompProfile.Type, p.pod.SeccompProfile.Type) != "RuntimeDefault" {
		t.Errorf("%s is not restricted: %+v %+v", p.name, p.pod, p.own)
	}
	if p.image != "registry.example.com/nodebake:v1" {
		t.Errorf("%s runs the image %q", p.name, p.image)
	}
	if memory := p.resources.Requests["memory"]; memory != "256Mi" || p.resources.Limits["memory"] != memory || p.resources.Requests["cpu"] == "" {
		t.Errorf("%s asks for %v", p.name, p.resources)
	}
	binds := []bind{{"/proc", "/proc", false}}
	for _, m := range p.mounts {
		if c.volumes[m.Name] == "" {
			t.Fatalf("%s mounts %s, which is not there", p.name, m.Name)
		}
		binds = append(binds, bind{c.volumes[m.Name], m.MountPath, !m.ReadOnly})
	}
	if c.online {
		user.private = slices.DeleteFunc(user.private, func(f string) bool { return f == "--net" })
	}
	j := newJail(t, c.image.rootfs, nil, binds)
	line := user.line(t, j.root, p.argv...)
	o := measured(t, line[0], line[1:]...)
	if o.code != exitDone {
		t.Errorf("%s: %s", p.name, o)
	}
	if o.usage.Maxrss > 256<<10 {
		t.Errorf("%s: it takes %d KiB", p.name, o.usage.Maxrss)
	}
}

// resolve replaces a template's variables, of which none may be unknown.
func resolve(t testing.TB, pattern *regexp.Regexp, vars map[string]string, text string) string {
	t.Helper()
	return pattern.ReplaceAllStringFunc(text, func(v string) string {
		name := strings.TrimSpace(pattern.FindStringSubmatch(v)[1])
		value, ok := vars[name]
		if !ok {
			t.Errorf("%s: nothing is called %s", text, name)
		}
		return value
	})
}

// argoTemplate is a template of a workflow.
type argoTemplate struct {
	Name   string
	Inputs struct{ Parameters []parameter }
	Steps  [][]struct {
		Name, Template string
		WithParam      string `yaml:"withParam"`
		Arguments      struct{ Parameters []parameter }
	}
	RetryStrategy struct{ Limit string } `yaml:"retryStrategy"`
	Container     *struct {
		Image           string
		Command, Args   []string
		VolumeMounts    []volumeMount `yaml:"volumeMounts"`
		Resources       resources
		SecurityContext securityContext `yaml:"securityContext"`
	}
}

type argoWorkflow struct {
	object `yaml:",inline"`
	Spec   struct {
		Entrypoint      string
		Parallelism     int
		Arguments       struct{ Parameters []parameter }
		SecurityContext securityContext `yaml:"securityContext"`
		Volumes         []struct {
			Name                  string
			PersistentVolumeClaim claim `yaml:"persistentVolumeClaim"`
		}
		Templates []argoTemplate
	}
}

var argoVariable = regexp.MustCompile(`\{\{([^}]*)\}\}`)

// runArgo runs a workflow on a cluster: the steps of a list in order, and what is in one of them at the same time.
func runArgo(t *testing.T, c podRunner, params map[string]string) {
	t.Helper()
	text, err := os.ReadFile(pipelines + "/argo.yaml")
	check(t, err)
	var w argoWorkflow
	strictly(t, "argo.yaml", text, &w)
	if w.APIVersion != "argoproj.io/v1alpha1" || w.Kind != "WorkflowTemplate" || w.Metadata.Name == "" || w.Spec.Parallelism < 1 {
		t.Errorf("the object is %+v", w.object)
	}
	vars := map[string]string{}
	for _, p := range w.Spec.Arguments.Parameters {
		v, given := params[p.Name]
		if def, ok := p.Value.(string); !given && ok {
			v, given = def, true
		}
		if !given {
			t.Fatalf("the parameter %s is not given", p.Name)
		}
		vars["workflow.parameters."+p.Name] = v
	}
	readOnly := map[string]bool{}
	for _, v := range w.Spec.Volumes {
		readOnly[v.Name] = v.PersistentVolumeClaim.ReadOnly
		if v.PersistentVolumeClaim.ClaimName == "" {
			t.Errorf("the volume %s is of no claim", v.Name)
		}
	}
	var enter func(name string, vars map[string]string)
	enter = func(name string, vars map[string]string) {
		i := slices.IndexFunc(w.Spec.Templates, func(t argoTemplate) bool { return t.Name == name })
		if i < 0 {
			t.Errorf("there is no template %s", name)
			return
		}
		tpl := w.Spec.Templates[i]
		for _, in := range tpl.Inputs.Parameters {
			if _, ok := vars["inputs.parameters."+in.Name]; !ok {
				t.Errorf("the template %s is not given %s", name, in.Name)
			}
		}
		if tpl.Container != nil {
			k := tpl.Container
			p := pod{name: name + " " + vars["inputs.parameters.disk"], image: resolve(t, argoVariable, vars, k.Image), resources: k.Resources,
				pod: w.Spec.SecurityContext, own: k.SecurityContext, mounts: slices.Clone(k.VolumeMounts)}
			for n, m := range p.mounts {
				ro, ok := readOnly[m.Name]
				if !ok {
					t.Errorf("the template %s mounts %s, which is no volume", name, m.Name)
				}
				p.mounts[n].ReadOnly = m.ReadOnly || ro
			}
			for _, a := range slices.Concat(k.Command, k.Args) {
				p.argv = append(p.argv, resolve(t, argoVariable, vars, a))
			}
			c.run(t, p)
			return
		}
		for _, group := range tpl.Steps {
			var beside sync.WaitGroup
			for _, s := range group {
				items := []string{""}
				if s.WithParam != "" {
					check(t, json.Unmarshal([]byte(resolve(t, argoVariable, vars, s.WithParam)), &items))
				}
				for _, item := range items {
					inner := map[string]string{"item": item}
					for name, v := range vars {
						inner[name] = v
					}
					next := map[string]string{}
					for name, v := range vars {
						if strings.HasPrefix(name, "workflow.") {
							next[name] = v
						}
					}
					for _, a := range s.Arguments.Parameters {
						next["inputs.parameters."+a.Name] = resolve(t, argoVariable, inner, a.Value.(string))
					}
					beside.Go(func() { enter(s.Template, next) })
				}
			}
			beside.Wait()
		}
	}
	enter(w.Spec.Entrypoint, vars)
}

type tektonTask struct {
	object `yaml:",inline"`
	Spec   struct {
		Description string
		Params      []parameter
		Workspaces  []struct {
			Name, Description string
			ReadOnly          bool `yaml:"readOnly"`
			Optional          bool
		}
		StepTemplate struct {
			ComputeResources resources       `yaml:"computeResources"`
			SecurityContext  securityContext `yaml:"securityContext"`
		} `yaml:"stepTemplate"`
		Steps []struct {
			Name, Image   string
			Command, Args []string
		}
	}
}

type tektonPipeline struct {
	object `yaml:",inline"`
	Spec   struct {
		Description string
		Params      []parameter
		Workspaces  []struct {
			Name     string
			Optional bool
		}
		Tasks []struct {
			Name       string
			TaskRef    struct{ Name string } `yaml:"taskRef"`
			Params     []parameter
			Matrix     struct{ Params []parameter }
			Workspaces []struct{ Name, Workspace string }
		}
	}
}

type tektonRun struct {
	object `yaml:",inline"`
	Spec   struct {
		PipelineRef struct{ Name string } `yaml:"pipelineRef"`
		Params      []parameter
		Workspaces  []struct {
			Name                  string
			PersistentVolumeClaim claim  `yaml:"persistentVolumeClaim"`
			SubPath               string `yaml:"subPath"`
		}
		TaskRunTemplate struct {
			PodTemplate struct {
				SecurityContext securityContext `yaml:"securityContext"`
			} `yaml:"podTemplate"`
		} `yaml:"taskRunTemplate"`
	}
}

var tektonVariable = regexp.MustCompile(`\$\(([^)]*)\)`)

// runTekton runs the example's run of its pipeline on a cluster, whose volumes are by the folder in the claim.
func runTekton(t *testing.T, c podRunner, params map[string]string) {
	t.Helper()
	var task tektonTask
	var pipeline tektonPipeline
	var r tektonRun
	text, err := os.ReadFile(pipelines + "/tekton.yaml")
	check(t, err)
	first, second, _ := strings.Cut(string(text), "\n---\n")
	strictly(t, "tekton.yaml", []byte(first), &task)
	strictly(t, "tekton.yaml", []byte(second), &pipeline)
	text, err = os.ReadFile(pipelines + "/tekton-run.yaml")
	check(t, err)
	strictly(t, "tekton-run.yaml", text, &r)
	for _, o := range []struct {
		object
		kind string
	}{{task.object, "Task"}, {pipeline.object, "Pipeline"}, {r.object, "PipelineRun"}} {
		if o.APIVersion != "tekton.dev/v1" || o.Kind != o.kind {
			t.Errorf("the object is %+v", o)
		}
	}
	if r.Spec.PipelineRef.Name != pipeline.Metadata.Name || len(pipeline.Spec.Tasks) != 1 || pipeline.Spec.Tasks[0].TaskRef.Name != task.Metadata.Name {
		t.Fatalf("they do not name each other: %+v %+v %+v", r, pipeline, task.Metadata)
	}

	// Values are lists; a string is a list of one.
	values := func(v any) (list []string) {
		if s, ok := v.(string); ok {
			return []string{s}
		}
		for _, e := range v.([]any) {
			list = append(list, e.(string))
		}
		return list
	}
	// expand resolves a value, in which an element can stand for a whole list.
	expand := func(vars map[string][]string, v any) (list []string) {
		for _, e := range values(v) {
			if m := tektonVariable.FindStringSubmatch(e); m != nil && m[0] == e && strings.HasSuffix(m[1], "[*]") {
				whole, ok := vars[strings.TrimSuffix(m[1], "[*]")]
				if !ok {
					t.Errorf("nothing is called %s", e)
				}
				list = append(list, whole...)
				continue
			}
			single := map[string]string{}
			for name, value := range vars {
				if len(value) == 1 {
					single[name] = value[0]
				}
			}
			list = append(list, resolve(t, tektonVariable, single, e))
		}
		return list
	}
	declared := func(params []parameter, given map[string][]string) map[string][]string {
		vars := map[string][]string{}
		for _, p := range params {
			v, ok := given[p.Name]
			if !ok && p.Default != nil {
				v, ok = values(p.Default), true
			}
			if !ok || p.Type != "array" && len(v) != 1 {
				t.Fatalf("the parameter %s is %q", p.Name, v)
			}
			vars["params."+p.Name] = v
			delete(given, p.Name)
		}
		if len(given) > 0 {
			t.Errorf("parameters that are not declared: %v", given)
		}
		return vars
	}

	given := map[string][]string{}
	for _, p := range r.Spec.Params {
		given[p.Name] = values(p.Value)
	}
	for name, v := range params {
		given[name] = []string{v}
	}
	vars := declared(pipeline.Spec.Params, given)
	claims, folders := map[string]bool{}, map[string]string{}
	for _, w := range r.Spec.Workspaces {
		claims[w.PersistentVolumeClaim.ClaimName] = true
		folders[w.Name] = w.SubPath
	}
	if len(claims) != 1 {
		t.Errorf("a pod mounts %d claims, and Tekton's affinity assistant permits one", len(claims))
	}
	use := pipeline.Spec.Tasks[0]
	common := map[string][]string{}
	for _, p := range use.Params {
		common[p.Name] = expand(vars, p.Value)
	}
	if len(use.Matrix.Params) != 1 {
		t.Fatalf("the matrix is %+v", use.Matrix)
	}
	var beside sync.WaitGroup
	for _, one := range expand(vars, use.Matrix.Params[0].Value) {
		given := map[string][]string{use.Matrix.Params[0].Name: {one}}
		for name, v := range common {
			given[name] = v
		}
		vars := declared(task.Spec.Params, given)
		var mounts []volumeMount
		for _, w := range task.Spec.Workspaces {
			at := ""
			for _, bound := range use.Workspaces {
				if folder := folders[bound.Workspace]; bound.Name == w.Name && c.volumes[folder] != "" {
					at = "/workspace/" + w.Name
					mounts = append(mounts, volumeMount{folder, at, w.ReadOnly})
				}
			}
			if at == "" && !w.Optional {
				t.Fatalf("the workspace %s is not bound", w.Name)
			}
			vars["workspaces."+w.Name+".path"] = []string{at}
		}
		beside.Go(func() {
			for _, s := range task.Spec.Steps {
				c.run(t, pod{name: s.Name + " " + one, image: expand(vars, s.Image)[0], argv: append(expand(vars, toAny(s.Command)), expand(vars, toAny(s.Args))...),
					mounts: mounts, resources: task.Spec.StepTemplate.ComputeResources, pod: r.Spec.TaskRunTemplate.PodTemplate.SecurityContext,
					own: task.Spec.StepTemplate.SecurityContext})
			}
		})
	}
	beside.Wait()
}

func toAny(list []string) any {
	var out []any
	for _, s := range list {
		out = append(out, s)
	}
	return out
}

// exampleDisks bakes the disks of the examples' bake file by hand, and gives what each is.
func exampleDisks(t testing.TB, file, dir string, args ...string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for _, d := range []string{"control", "worker"} {
		out := dir + "/" + d + ".qcow2"
		if o := nodebake(t, append([]string{"build", "-q", "--file", file, "--disk", d, "--output", out}, args...)...); o.code != exitDone {
			t.Fatalf("%s", o)
		}
		sums[d] = hashFile(t, out)
	}
	if sums["control"] == sums["worker"] {
		t.Error("the roles are alike")
	}
	return sums
}

func areBaked(t testing.TB, dir string, want map[string]string) {
	t.Helper()
	for d, sum := range want {
		if _, err := os.Stat(dir + "/" + d + ".qcow2"); err != nil {
			t.Errorf("%s was not baked: %v", d, err)
		} else if hashFile(t, dir+"/"+d+".qcow2") != sum {
			t.Errorf("%s is not what a bake by hand is", d)
		}
	}
}

// TestPipelineLocks holds the locks beside the bake file against new ones.
func TestPipelineLocks(t *testing.T) {
	examples := examplesCopy(t)
	o := nodebake(t, "validate", examples+"/pipelines/bake.yaml")
	if o.code != exitDone {
		t.Fatalf("%s", o)
	}
	exampleDisks(t, examples+"/pipelines/bake.yaml", tempDir(t))
	for _, d := range []string{"control", "worker"} {
		sameFiles(t, examples+"/pipelines/"+d+".lock.json", pipelines+"/"+d+".lock.json", true)
	}
}

// TestPipelinesInCluster runs the workflow and the pipeline as their engines do: every container in the image that the
// Containerfile makes, without rights, with a read-only root, its volumes mounted as it says; the disks at the same time.
func TestPipelinesInCluster(t *testing.T) {
	i := theImage(t)
	examples := examplesCopy(t)
	want := exampleDisks(t, examples+"/pipelines/bake.yaml", tempDir(t), "--locked")
	params := map[string]string{"image": "registry.example.com/nodebake:v1", "file": "pipelines/bake.yaml"}
	for _, c := range []struct {
		name string
		run  func(*testing.T, podRunner, map[string]string)
		none string // a volume that is left out
	}{{"argo", runArgo, ""}, {"tekton", runTekton, ""}, {"tekton without a cache", runTekton, "cache"}} {
		t.Run(c.name, func(t *testing.T) {
			disks := openDir(t, 0o777)
			volumes := map[string]string{"sources": examples, "disks": disks, "cache": openDir(t, 0o777)}
			delete(volumes, c.none)
			c.run(t, podRunner{image: i, volumes: volumes}, params)
			areBaked(t, disks, want)
		})
	}
}

// TestPipelineCache is the way of the README: a lock made on a desk, bakes in a cluster that share a cache, and the same
// bytes, also when the tags have moved on, and when the registry is gone.
func TestPipelineCache(t *testing.T) {
	i := theImage(t)
	hello, other := testImages(t)["hello"], someImage(t, "localhost/other:1", 9, 200000)
	addr := registry(t)
	push(t, hello.oci(), addr+"/team/app:v1")
	front := newFront(t, addr, nil)
	front.knows(t, hello)
	examples := examplesCopy(t)
	bakeFile := fmt.Sprintf(`apiVersion: nodebake/v1
kind: Bake
base: ../demo/base.qcow2
images: [%s/team/app:v1]
sources:
  insecureRegistries: [%[1]q]
disks:
- {name: control, output: control.qcow2, lock: control.lock.json, customize: {hostname: control}}
- {name: worker, output: worker.qcow2, lock: worker.lock.json, customize: {hostname: worker}}
`, front.addr)
	file := examples + "/pipelines/bake.yaml"
	check(t, os.WriteFile(file, []byte(bakeFile), 0o644))
	want := exampleDisks(t, file, tempDir(t))
	push(t, other.oci(), addr+"/team/app:v1")

	params := map[string]string{"image": "registry.example.com/nodebake:v1", "file": "pipelines/bake.yaml"}
	cache := openDir(t, 0o777)
	for _, round := range []struct {
		online bool
		run    func(*testing.T, podRunner, map[string]string)
	}{{true, runArgo}, {false, runArgo}, {false, runTekton}} {
		disks := openDir(t, 0o777)
		front.takes("")
		round.run(t, podRunner{i, map[string]string{"sources": examples, "disks": disks, "cache": cache}, round.online}, params)
		areBaked(t, disks, want)
		if asked := front.takes("/blobs/"); !round.online && len(asked) > 0 {
			t.Errorf("asked for: %v", asked)
		}
	}
	// It is the lock that does it.
	if sums := exampleDisks(t, file, tempDir(t), "--lock", tempDir(t)+"/lock.json"); sums["control"] == want["control"] {
		t.Error("the tag has not moved on")
	}
}

// lintShell holds a script of a pipeline against shellcheck.
func lintShell(t testing.TB, shell, script string) {
	t.Helper()
	requires(t, "shellcheck")
	name := tempDir(t) + "/script"
	check(t, os.WriteFile(name, []byte(script), 0o644))
	if o := command(t, nil, "shellcheck", "-s", shell, name); o.code != 0 {
		t.Errorf("%s", o)
	}
}

// goImage is the image of Go that builds what go.mod is for.
func goImage(t testing.TB) string {
	t.Helper()
	mod, err := os.ReadFile("../go.mod")
	check(t, err)
	m := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	return "docker.io/library/golang:" + string(m[1]) + "-bookworm"
}

type githubStep struct {
	Name, If, Uses, Shell, Run string
	With, Env                  map[string]string
}

type githubAction struct {
	Name, Description string
	Branding          struct{ Icon, Color string }
	Inputs            map[string]struct{ Description, Default string }
	Runs              struct {
		Using string
		Steps []githubStep
	}
}

type githubWorkflow struct {
	Name        string
	On          any
	Permissions map[string]string
	Jobs        map[string]struct {
		RunsOn   string `yaml:"runs-on"`
		Strategy struct{ Matrix map[string][]string }
		Steps    []githubStep
	}
}

// githubInputs are the inputs of others' actions that the examples use.
var githubInputs = map[string][]string{
	"actions/checkout@v6":        nil,
	"actions/setup-go@v6":        {"go-version-file", "cache"},
	"actions/cache@v5":           {"path", "key", "restore-keys"},
	"actions/upload-artifact@v6": {"name", "path"},
}

var githubExpression = regexp.MustCompile(`\$\{\{(.*?)\}\}`)

// githubRunner runs the steps of a job, and those of the action at the top of this repository.
type githubRunner struct {
	action    githubAction
	source    string // a checkout of this repository
	workspace string // a checkout of the user's
	temp      string
	path      string // what steps added to PATH
}

func (g *githubRunner) steps(t *testing.T, steps []githubStep, vars map[string]string) {
	t.Helper()
	for _, s := range steps {
		if !githubIf(t, s.If, vars) {
			continue
		}
		with := map[string]string{}
		for name, v := range s.With {
			with[name] = resolve(t, githubExpression, vars, v)
		}
		switch {
		case s.Uses == "nodebake/nodebake@v1":
			inner := map[string]string{"github.action_path": g.source, "github.action_ref": "v1", "github.run_id": "1", "github.run_attempt": "1", "runner.temp": g.temp}
			for name, in := range g.action.Inputs {
				inner["inputs."+name] = in.Default
			}
			for name, v := range with {
				if _, ok := g.action.Inputs[name]; !ok {
					t.Errorf("the action has no input %s", name)
				}
				inner["inputs."+name] = v
			}
			g.steps(t, g.action.Runs.Steps, inner)
		case s.Uses != "":
			known, ok := githubInputs[s.Uses]
			if !ok {
				t.Errorf("the test does not know %s", s.Uses)
			}
			for name := range with {
				if !slices.Contains(known, name) {
					t.Errorf("%s has no input %s", s.Uses, name)
				}
			}
			if name := with["go-version-file"]; name != "" {
				_, err := os.Stat(name)
				check(t, err)
			}
			if strings.HasPrefix(s.Uses, "actions/upload-artifact@") {
				if found, err := filepath.Glob(g.workspace + "/" + with["path"]); err != nil || len(found) < 2 {
					t.Errorf("the artifacts are %q", found)
				}
			}
		default:
			if strings.Contains(s.Run, "${{") {
				t.Errorf("what an expression gives is run as a script: %s", s.Run)
			}
			lintShell(t, "bash", s.Run)
			env := []string{"GITHUB_ACTION_PATH=" + g.source, "GITHUB_PATH=" + g.temp + "/path", "RUNNER_TEMP=" + g.temp, "GITHUB_WORKSPACE=" + g.workspace,
				"PATH=" + g.path + os.Getenv("PATH")}
			for name, v := range s.Env {
				env = append(env, name+"="+resolve(t, githubExpression, vars, v))
			}
			o := command(t, env, "sh", "-c", `cd "$1" && exec bash --noprofile --norc -eo pipefail -c "$2"`, "sh", g.workspace, s.Run)
			if o.code != 0 {
				t.Fatalf("%s", o)
			}
			if added, err := os.ReadFile(g.temp + "/path"); err == nil {
				g.path = strings.ReplaceAll(string(added), "\n", ":")
			}
		}
	}
}

// githubIf decides a condition of the simple kind that the examples have.
func githubIf(t testing.TB, condition string, vars map[string]string) bool {
	t.Helper()
	if condition == "" {
		return true
	}
	for _, c := range strings.Split(condition, " && ") {
		m := regexp.MustCompile(`^([a-z.]+) (==|!=) '([^']*)'$`).FindStringSubmatch(c)
		if m == nil {
			t.Fatalf("the test does not know the condition %s", c)
		}
		v, ok := vars[m[1]]
		if !ok {
			t.Errorf("%s: nothing is called %s", condition, m[1])
		}
		if (v == m[3]) != (m[2] == "==") {
			return false
		}
	}
	return true
}

// TestPipelineGitHub runs the example's workflow, and in it the action, step by step.
func TestPipelineGitHub(t *testing.T) {
	requires(t, "bash", "make", "go")
	i := theImage(t) // for the files that the repository has without what tests need
	var action githubAction
	text, err := os.ReadFile("../action.yml")
	check(t, err)
	strictly(t, "action.yml", text, &action)
	var w githubWorkflow
	text, err = os.ReadFile(pipelines + "/github.yml")
	check(t, err)
	strictly(t, "github.yml", text, &w)
	if action.Name == "" || action.Description == "" || action.Runs.Using != "composite" || w.On == nil {
		t.Errorf("the action is %+v", action)
	}
	for _, s := range action.Runs.Steps {
		if s.Run != "" && s.Shell != "bash" {
			t.Errorf("the step %s says no shell", s.Name)
		}
	}
	examples := examplesCopy(t)
	want := exampleDisks(t, examples+"/pipelines/bake.yaml", tempDir(t), "--locked")
	g := githubRunner{action: action, source: i.source, workspace: examples + "/pipelines"}
	job := w.Jobs["bake"]
	for _, disk := range job.Strategy.Matrix["disk"] {
		g.temp, g.path = tempDir(t), ""
		g.steps(t, job.Steps, map[string]string{"matrix.disk": disk})
	}
	areBaked(t, g.workspace, want)

	// All disks of the file, and none.
	g.workspace = examplesCopy(t) + "/pipelines"
	one := []githubStep{{Uses: "nodebake/nodebake@v1", With: map[string]string{"file": "bake.yaml", "cache": "false", "args": "\n--locked\n--quiet\n"}}}
	g.steps(t, one, nil)
	areBaked(t, g.workspace, want)
	g.workspace = examplesCopy(t) + "/pipelines"
	g.steps(t, []githubStep{{Uses: "nodebake/nodebake@v1"}, {Run: "nodebake version"}}, nil)
	mustNotExist(t, g.workspace+"/worker.qcow2")
}

type gitlabJob struct {
	Stage     string
	Variables map[string]string
	Script    []string
	Parallel  struct{ Matrix []map[string][]string }
	Cache     struct {
		Key   string
		Paths []string
	}
	Artifacts struct {
		Paths    []string
		ExpireIn string `yaml:"expire_in"`
	}
}

// TestPipelineGitLab runs the jobs of the example one after the other, each in a checkout of its own.
func TestPipelineGitLab(t *testing.T) {
	i := theImage(t)
	var p struct {
		Stages    []string
		Default   struct{ Image string }
		Variables map[string]string
		Nodebake  gitlabJob
		Bake      gitlabJob
	}
	text, err := os.ReadFile(pipelines + "/gitlab-ci.yml")
	check(t, err)
	strictly(t, "gitlab-ci.yml", text, &p)
	if p.Default.Image != goImage(t) || !slices.Equal(p.Stages, []string{p.Nodebake.Stage, p.Bake.Stage}) {
		t.Errorf("the image is %s, and the stages are %v", p.Default.Image, p.Stages)
	}
	// The one thing that is not here is the release; the same command installs this repository's files in its stead.
	realGo, err := exec.LookPath("go")
	check(t, err)
	shims := tempDir(t)
	check(t, os.WriteFile(shims+"/go", []byte(fmt.Sprintf("#!/bin/sh\nset -eu\ncd %q\nfor last; do :; done\ncase $last in github.com/nodebake/nodebake/cmd/nodebake@?*) ;; *) exit 9;; esac\nn=$#\n"+
		"while [ $n -gt 1 ]; do set -- \"$@\" \"$1\"; shift; n=$((n-1)); done\nshift\n[ \"$3 $4\" = \"-tags %s\" ] || exit 8\nexec %q \"$@\" ./cmd/nodebake\n", i.source, buildTags, realGo)), 0o755))
	job := func(j gitlabJob, project string, more map[string]string) {
		t.Helper()
		vars := map[string]string{"CI_PROJECT_DIR": project}
		env := []string{"PATH=" + shims + ":" + os.Getenv("PATH"), "CI_PROJECT_DIR=" + project}
		for _, m := range []map[string]string{p.Variables, j.Variables, more} {
			for name, v := range m {
				vars[name] = os.Expand(v, func(n string) string { return vars[n] })
				env = append(env, name+"="+vars[name])
			}
		}
		script := strings.Join(j.Script, "\n")
		lintShell(t, "sh", script)
		if o := command(t, env, "sh", "-c", `cd "$1" && exec sh -ec "$2"`, "sh", project, script); o.code != 0 {
			t.Fatalf("%s", o)
		}
		for _, a := range j.Artifacts.Paths {
			if found, err := filepath.Glob(filepath.Join(project, os.Expand(a, func(n string) string { return vars[n] }))); err != nil || len(found) == 0 {
				t.Errorf("the artifacts %s are not there", a)
			}
		}
	}
	examples := examplesCopy(t)
	want := exampleDisks(t, examples+"/pipelines/bake.yaml", tempDir(t), "--locked")
	tool := examplesCopy(t) + "/pipelines"
	job(p.Nodebake, tool, nil)
	bakes := 0
	for _, m := range p.Bake.Parallel.Matrix {
		for _, disk := range m["DISK"] {
			project := examplesCopy(t) + "/pipelines"
			run(t, "cp", "-r", tool+"/bin", project)
			job(p.Bake, project, map[string]string{"DISK": disk})
			areBaked(t, project+"/disks", map[string]string{disk: want[disk]})
			bakes++
		}
	}
	if bakes != len(want) {
		t.Errorf("%d disks are baked", bakes)
	}
}

// TestContainerfileText is what is in the Containerfile and needs a registry to be tried.
func TestContainerfileText(t *testing.T) {
	text, err := os.ReadFile("../Containerfile")
	check(t, err)
	if !strings.Contains(string(text), "\nARG GO_IMAGE="+goImage(t)+"\n") {
		t.Errorf("the Containerfile does not build with %s", goImage(t))
	}
	joined := strings.ReplaceAll(string(text), "\\\n", "")
	for _, line := range strings.Split(joined, "\n") {
		if script, ok := strings.CutPrefix(line, "RUN "); ok {
			lintShell(t, "sh", "TARGETOS='' TARGETARCH='' VERSION=''\n"+script)
		}
	}
}
