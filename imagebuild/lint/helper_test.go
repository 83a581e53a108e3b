package lint

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

const (
	demo  = "../../examples/demo/"
	hello = "oci-archive:" + demo + "hello.oci.tar"
)

// files are changes of a disk by path: a content, "->TARGET" for a symbolic link, "-" to remove the file, and "/" for a
// folder.
type files map[string]string

// with is f with more.
func (f files) with(more files) files {
	all := maps.Clone(f)
	if all == nil {
		all = files{}
	}
	maps.Copy(all, more)
	return all
}

// section is a part of a file for reading and writing.
type section struct {
	*os.File
	start int64
}

func (s section) ReadAt(p []byte, off int64) (int, error)  { return s.File.ReadAt(p, s.start+off) }
func (s section) WriteAt(p []byte, off int64) (int, error) { return s.File.WriteAt(p, s.start+off) }

// change writes files to the root filesystem of a raw disk.
func change(t testing.TB, name string, changes files, records map[string]string) {
	t.Helper()
	o, err := imagebuild.OpenDisk(name, imagebuild.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := o.Root.Partition
	place := map[string]string{}
	for _, n := range slices.Sorted(maps.Keys(changes)) {
		// A link that is replaced is not followed.
		dir, err := o.Path(path.Dir(n))
		if err != nil {
			t.Fatal(err)
		}
		place[n] = path.Join(dir, path.Base(n))
	}
	o.Close()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := filesystem.OpenWriter(section{f, p.Start}, p.Size, p.Kind, filesystem.Options{Now: time.Unix(1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	var mkdir func(string)
	mkdir = func(dir string) {
		if _, err := w.Stat(dir); err == nil || dir == "." {
			return
		}
		mkdir(path.Dir(dir))
		if err := w.Add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(changes)) {
		at, what := place[n], changes[n]
		mkdir(path.Dir(at))
		h := &tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(what)), PAXRecords: records}
		var err error
		switch {
		case what == "-":
			err = w.Remove(at)
		case what == "/":
			mkdir(at)
		case strings.HasPrefix(what, "->"):
			if e := w.Remove(at); e != nil && !errors.Is(e, fs.ErrNotExist) {
				t.Fatal(e)
			}
			h.Typeflag, h.Linkname, h.Size, h.Mode = tar.TypeSymlink, what[2:], 0, 0o777
			err = w.Add(h, nil)
		default:
			err = w.Replace(h, strings.NewReader(what))
		}
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// kubeVersion is the Kubernetes version of the test's node.
const kubeVersion = "v1.31.2"

// kubeNames are the names of its images.
var kubeNames = []string{"registry.k8s.io/kube-apiserver:v1.31.2", "registry.k8s.io/kube-controller-manager:v1.31.2", "registry.k8s.io/kube-scheduler:v1.31.2",
	"registry.k8s.io/kube-proxy:v1.31.2", "registry.k8s.io/coredns/coredns:v1.11.3", "registry.k8s.io/pause:3.10", "registry.k8s.io/etcd:3.5.15-0"}

// appImage makes an image of its own with the name of the node's workload.
func appImage(dir string) (string, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "app", Mode: 0o755, Size: 1}), func() error { _, err := w.Write([]byte("x")); return err }(), w.Close()); err != nil {
		return "", err
	}
	blob := func(b []byte) (string, error) {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		at := filepath.Join(dir, "blobs", "sha256", sum)
		return fmt.Sprintf(`"digest": "sha256:%s", "size": %d`, sum, len(b)), errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, b, 0o644))
	}
	l, err := blob(layer.Bytes())
	if err != nil {
		return "", err
	}
	c, err := blob([]byte(fmt.Sprintf(`{"architecture": "amd64", "os": "linux", "created": "2025-01-02T00:00:00Z", "config": {}, "rootfs": {"type": "layers", "diff_ids": ["sha256:%x"]}}`, sha256.Sum256(layer.Bytes()))))
	if err != nil {
		return "", err
	}
	m, err := blob([]byte(`{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {"mediaType": "application/vnd.oci.image.config.v1+json", ` + c +
		`}, "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", ` + l + `}]}`))
	if err != nil {
		return "", err
	}
	const name = "example.org/app:1"
	return "oci:" + dir + ":" + name, errors.Join(
		os.WriteFile(filepath.Join(dir, "index.json"), []byte(`{"schemaVersion": 2, "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", `+m+`, "annotations": {"org.opencontainers.image.ref.name": "`+name+`"}}]}`), 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion": "1.0.0"}`), 0o644))
}

// bakeNamed bakes the demo's image under names, and the workload's, into a base, as a raw disk.
func bakeNamed(base, out string, names []string) error {
	app, err := appImage(out + ".app")
	if err != nil {
		return err
	}
	spec := imagebuild.Spec{Base: base, Images: []string{hello, app}}
	spec.Output = out
	spec.OutputOptions.Format = disk.Raw
	for _, n := range names {
		spec.Tags = append(spec.Tags, imagebuild.Tag{Name: n, Reference: hello})
	}
	_, err = imagebuild.Bake(context.Background(), spec)
	return err
}

// scratch holds the disks that several tests start from.
var scratch string

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("/var/tmp", "nodebake-lint."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// bakedDisk is a disk with the node's images and nothing else of a node.
var bakedDisk = sync.OnceValues(func() (string, error) {
	name := filepath.Join(scratch, "baked.raw")
	return name, bakeNamed(demo+"base.qcow2", name, kubeNames)
})

// copyOf copies a disk for one test.
func copyOf(t testing.TB, name string, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "disk.raw")
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// A disk is mostly zeros, which need no place.
	buf, zeros, at := make([]byte, 64<<10), make([]byte, 64<<10), int64(0)
	for {
		n, err := io.ReadFull(in, buf)
		if n > 0 && !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], at); err != nil {
				t.Fatal(err)
			}
		}
		at += int64(n)
		if err != nil {
			break
		}
	}
	if err := out.Truncate(at); err != nil {
		t.Fatal(err)
	}
	return to
}

// run lints a disk.
func run(t testing.TB, name string, opts Options) *Report {
	t.Helper()
	o, err := imagebuild.OpenDisk(name, imagebuild.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	r, err := Run(context.Background(), o, opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if f.What == "" || f.Why == "" || f.Mend == "" || f.Group() == "" || f.ID == "" {
			t.Errorf("not whole: %+v", f)
		}
	}
	return r
}

// said are findings in short: ID, severity and place.
func said(findings []Finding, infos bool) []string {
	all := []string{}
	for _, f := range findings {
		if f.Severity != Info || infos {
			all = append(all, strings.TrimSpace(fmt.Sprintf("%s %s %s", f.ID, f.Severity, f.Place())))
		}
	}
	return all
}

// goPrograms are small programs as Go's linker makes them, by name: what the version is told by is in the file that
// the real linker writes.
var goPrograms = sync.OnceValues(func() (map[string]string, error) {
	dir := filepath.Join(scratch, "programs")
	all := map[string]string{}
	for _, p := range []struct {
		name, mod, storage string
		source             string
		flags              string
	}{
		{"kubelet", "k8s.io/component-base", "", "var v = version.Get()\nfunc main() { println(v) }", "-s -w -X k8s.io/component-base/version.gitVersion=" + kubeVersion},
		{"crio-1.50.2", "github.com/cri-o/cri-o", "v1.50.2", "const pause = \"registry.k8s.io/pause:3.10\"\nfunc main() { println(pause, len(storage.X)) }", "-s -w"},
		{"podman-1.50.2", "github.com/containers/podman/v4", "v1.50.2", "func main() { println(storage.X) }", "-s -w"},
		{"podman-1.58.0", "github.com/containers/podman/v5", "v1.58.0", "func main() { println(storage.X) }", "-s -w"},
	} {
		src := filepath.Join(dir, p.name)
		mod, imports := "module "+p.mod+"\n\ngo 1.21\n", ""
		if p.storage != "" {
			mod += "\nrequire github.com/containers/storage " + p.storage + "\n\nreplace github.com/containers/storage => ./storage\n"
			imports = "import \"github.com/containers/storage\"\n"
		} else {
			imports = "import \"k8s.io/component-base/version\"\n"
		}
		for name, text := range map[string]string{
			"go.mod": mod, "main.go": "package main\n" + imports + p.source + "\n",
			"version/version.go": "package version\nvar gitVersion = \"v0.0.0-master+$Format:%H$\"\nfunc Get() string { return gitVersion }\n",
			"storage/go.mod":     "module github.com/containers/storage\n\ngo 1.21\n", "storage/storage.go": "package storage\nvar X = \"x\"\n",
		} {
			at := filepath.Join(src, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
				return nil, err
			}
		}
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", p.flags, "-o", "program", ".")
		cmd.Dir = src
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", p.name, err, out)
		}
		b, err := os.ReadFile(filepath.Join(src, "program"))
		if err != nil {
			return nil, err
		}
		all[p.name] = string(b)
	}
	return all, nil
})

// needs skips the test where a tool is missing, and fails it where CI says that nothing may be.
func needs(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func programs(t testing.TB) map[string]string {
	t.Helper()
	needs(t, "go")
	all, err := goPrograms()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// rpmDatabase makes RPM's database of one package, by the real rpm.
func rpmDatabase(t testing.TB, name, version string) string {
	t.Helper()
	needs(t, "rpm", "rpmbuild")
	dir := t.TempDir()
	spec := filepath.Join(dir, "x.spec")
	text := fmt.Sprintf("Name: %s\nEpoch: 4\nVersion: %s\nRelease: 1.el9\nSummary: x\nLicense: x\nBuildArch: noarch\n%%description\nx\n%%files\n", name, version)
	if err := errors.Join(os.WriteFile(spec, []byte(text), 0o644), os.Mkdir(dir+"/db", 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"rpmbuild", "-bb", "--quiet", "--define", "_topdir " + dir + "/top", spec},
		{"sh", "-c", "rpm --define '_db_backend sqlite' --dbpath " + dir + "/db -i --justdb --nodeps --force-debian " + dir + "/top/RPMS/noarch/*.rpm"},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	b, err := os.ReadFile(dir + "/db/rpmdb.sqlite")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
