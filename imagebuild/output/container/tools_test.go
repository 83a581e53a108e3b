package container

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"
)

// asOCNE reads the disk from a copy in a dir: folder as ocne does: the first layer, always through gzip, and the entry
// of exactly that name.
func asOCNE(t testing.TB, dir string) ([]byte, error) {
	t.Helper()
	var m imgspecv1.Manifest
	if err := json.Unmarshal(mustRead(t, dir+"/manifest.json"), &m); err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(mustRead(t, filepath.Join(dir, m.Layers[0].Digest.Encoded()))))
	if err != nil {
		return nil, err
	}
	tr := tar.NewReader(z)
	for {
		h, err := tr.Next()
		if err != nil {
			return nil, err
		}
		if h.Name == "disk/boot.qcow2" {
			return io.ReadAll(tr)
		}
	}
}

// inContainer checks what a container of the image has at /disk.
func inContainer(t testing.TB, g graph, image string, disk []byte) {
	t.Helper()
	id := strings.TrimSpace(g.run("podman", "create", image, "sh"))
	out := g.dir + "/export.tar"
	defer os.Remove(out)
	g.run("podman", "export", "-o", out, id)
	g.run("podman", "rm", id)
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr := tar.NewReader(f)
	var found []string
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(h.Name, "disk") {
			continue
		}
		found = append(found, fmt.Sprintf("%s %o %d:%d", h.Name, h.Mode&0o7777, h.Uid, h.Gid))
		if h.Typeflag == tar.TypeReg {
			if got, err := io.ReadAll(tr); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("%s: other bytes in a container: %v", image, err)
			}
		}
	}
	if want := "[disk/ 755 0:0 disk/boot.qcow2 644 107:107]"; fmt.Sprint(found) != want {
		t.Errorf("%s: a container has %v, want %v", image, found, want)
	}
}

// TestTools has skopeo, podman and umoci read what is written.
func TestTools(t *testing.T) {
	needs(t, "skopeo", "podman", "umoci")
	disk := testDisk(1<<20 + 77)
	g := newGraph(t)
	for i, c := range []struct {
		kind string
		edit func(*Options)
		ocne bool
	}{
		{"oci:%s/x:reg.example/ock:1", nil, true},
		{"oci:%s/x", func(o *Options) { o.Level = 6 }, true},
		{"oci:%s/x:n", func(o *Options) { o.Plain = true }, false},
		{"oci-archive:%s/x:reg.example/ock:2", nil, true},
		{"oci-archive:%s/x", func(o *Options) { o.Level = 9 }, true},
		{"oci-archive:%s/x", func(o *Options) { o.Plain = true }, false},
		{"docker-archive:%s/x:reg.example/ock:3", nil, false},
		{"docker-archive:%s/x", nil, false},
	} {
		// podman makes a name of a layout's path, which has to be of small letters.
		dir := fmt.Sprintf("%s/%d", g.dir, i)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		o := options()
		if c.edit != nil {
			c.edit(&o)
		}
		res := write(t, fmt.Sprintf(c.kind, dir), disk, o)
		var seen struct {
			Digest, Os, Architecture, Created string
			Labels                            map[string]string
			Layers                            []string
		}
		if err := json.Unmarshal([]byte(run(t, "skopeo", "inspect", res.Reference)), &seen); err != nil {
			t.Fatal(err)
		}
		layer := res.LayerDigest.String()
		if seen.Os != "linux" || seen.Architecture != "arm64" || seen.Created != "2025-02-03T04:05:06Z" || seen.Labels[AnnotationPath] != DefaultPath ||
			len(seen.Layers) != 1 || seen.Layers[0] != layer || (res.ManifestDigest != "" && seen.Digest != res.ManifestDigest.String()) {
			t.Errorf("%s: skopeo sees %+v, and %+v was written", res.Reference, seen, res)
		}

		run(t, "skopeo", "copy", "-q", res.Reference, "dir:"+dir+"/d")
		got, err := asOCNE(t, dir+"/d")
		if c.ocne && (err != nil || !bytes.Equal(got, disk)) {
			t.Errorf("%s: as ocne reads it: %v", res.Reference, err)
		} else if !c.ocne && !errors.Is(err, gzip.ErrHeader) {
			t.Errorf("%s: ocne could read it (%v), which the documentation denies", res.Reference, err)
		}
		if got, _, err := open(t, refOf(t, "dir:"+dir+"/d"), nil, ""); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("%s: out of the copy: %v", res.Reference, err)
		}
		run(t, "skopeo", "copy", "-q", "dir:"+dir+"/d", "oci:"+dir+"/back:x")
		if got, info, err := open(t, refOf(t, "oci:"+dir+"/back:x"), nil, ""); err != nil || !bytes.Equal(got, disk) || (c.ocne && info.ManifestDigest != res.ManifestDigest) {
			t.Errorf("%s: there and back: %+v %v", res.Reference, info, err)
		}

		if strings.HasPrefix(c.kind, "oci:") {
			g.run("podman", "pull", "-q", res.Reference)
			if strings.Contains(c.kind, "x:") {
				name := res.Reference[strings.Index(res.Reference, "/x:")+3:]
				run(t, "umoci", "unpack", "--image", dir+"/x:"+name, dir+"/bundle")
				st, err := os.Stat(dir + "/bundle/rootfs/disk/boot.qcow2")
				if err != nil {
					t.Fatal(err)
				}
				if s := st.Sys().(*syscall.Stat_t); s.Uid != 107 || s.Gid != 107 || st.Mode() != 0o644 || !bytes.Equal(mustRead(t, dir+"/bundle/rootfs/disk/boot.qcow2"), disk) {
					t.Errorf("umoci unpacks %d:%d %s", s.Uid, s.Gid, st.Mode())
				}
			}
		} else {
			g.run("podman", "load", "-q", "-i", dir+"/x")
		}
		// The image's ID is the config's digest in podman too.
		inContainer(t, g, res.ConfigDigest.Encoded(), disk)
		ref := "[" + "overlay@" + g.dir + "/root+" + g.dir + "/run]" + "@" + res.ConfigDigest.Encoded()
		if i < 2 {
			if got, _, err := open(t, refOf(t, "containers-storage:"+ref), nil, ""); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("%s: out of podman's store: %v", res.Reference, err)
			}
		}
	}
	if names := g.run("podman", "images", "--format", "{{.Repository}}:{{.Tag}}"); !strings.Contains(names, "reg.example/ock:2\n") || !strings.Contains(names, "reg.example/ock:3\n") {
		t.Errorf("podman's images are\n%s", names)
	}
}

// TestBuildah reads disks from images that buildah makes of Containerfiles.
func TestBuildah(t *testing.T) {
	needs(t, "buildah", "skopeo")
	disk := testDisk(300_000)
	dir := t.TempDir()
	put(t, dir+"/fedora.qcow2", disk)
	put(t, dir+"/old.qcow2", []byte("old"))
	g := newGraph(t)
	for name, text := range map[string]string{
		"disk":  "FROM scratch\nADD --chown=107:107 fedora.qcow2 /disk/\n",
		"ocne":  "FROM scratch\nADD --chown=107:107 fedora.qcow2 /disk/boot.qcow2\n",
		"twice": "FROM scratch\nADD old.qcow2 /disk/boot.qcow2\nADD fedora.qcow2 /disk/boot.qcow2\n",
		"label": "FROM scratch\nADD fedora.qcow2 /disk/boot.qcow2\nLABEL a=b\n",
	} {
		put(t, dir+"/"+name, []byte(text))
		for _, format := range []string{"oci", "docker"} {
			image := "localhost/" + name + ":" + format
			g.run("buildah", "bud", "-q", "--layers", "--format", format, "-f", dir+"/"+name, "-t", image, dir)
			for _, to := range []string{"oci:", "oci-archive:", "docker-archive:", "dir:"} {
				if format == "docker" && strings.HasPrefix(to, "oci") {
					continue
				}
				to += t.TempDir() + "/x"
				g.run("buildah", "push", "-q", image, to)
				if got, info, err := open(t, refOf(t, to), nil, ""); err != nil || !bytes.Equal(got, disk) {
					t.Errorf("%s as %s: %d bytes, %+v: %v", image, to, len(got), info, err)
				}
			}
			store := "containers-storage:[overlay@" + g.dir + "/root+" + g.dir + "/run]" + image
			if got, _, err := open(t, refOf(t, store), nil, ""); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("%s: %v", store, err)
			}
		}
	}
}

// TestRegistry pushes to Debian's registry, and reads from there.
func TestRegistry(t *testing.T) {
	needs(t, "skopeo", "podman")
	host := registry(t)
	disk := testDisk(3<<20 + 1)
	for i, edit := range []func(*Options){func(*Options) {}, func(o *Options) { o.Level = 6 }, func(o *Options) { o.Plain = true }} {
		o := options()
		o.System = plainHTTP
		edit(&o)
		to := fmt.Sprintf("docker://%s/ocne/ock:%d", host, i)
		res := write(t, to, disk, o)
		got, info, err := open(t, dest(t, to).Reference(), plainHTTP, "")
		if err != nil || !bytes.Equal(got, disk) || info.ManifestDigest != res.ManifestDigest || info.LayerDigest != res.LayerDigest {
			t.Errorf("%s: %+v %v", to, info, err)
		}
		// A file has the same digests.
		if file := write(t, "oci:"+t.TempDir()+"/x", disk, o); file.ManifestDigest != res.ManifestDigest {
			t.Errorf("%s is %s, and %s in a layout", to, res.ManifestDigest, file.ManifestDigest)
		}
		if got := run(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", to); strings.TrimSpace(got) != res.ManifestDigest.String() {
			t.Errorf("skopeo sees %s", got)
		}
		dir := t.TempDir() + "/d"
		run(t, "skopeo", "copy", "-q", "--src-tls-verify=false", to, "dir:"+dir)
		if got, err := asOCNE(t, dir); (err == nil && bytes.Equal(got, disk)) == o.Plain {
			t.Errorf("%s: as ocne reads it: %v", to, err)
		}
		if i == 0 {
			g := newGraph(t)
			g.run("podman", "pull", "-q", "--tls-verify=false", to)
			inContainer(t, g, to[len("docker://"):], disk)
		}
		_, err = Write(context.Background(), dest(t, to), bytes.NewReader(nil), 0, o)
		if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), res.ManifestDigest.String()) {
			t.Errorf("%s again: %v", to, err)
		}
		o.Force = true
		if again := write(t, to, disk[1:], o); again.ManifestDigest == res.ManifestDigest {
			t.Error("the tag was not moved")
		}
		if got, _, err := open(t, dest(t, to).Reference(), plainHTTP, ""); err != nil || !bytes.Equal(got, disk[1:]) {
			t.Errorf("%s moved: %v", to, err)
		}
	}

	// What fails leaves no tag.
	to := dest(t, "docker://"+host+"/ocne/failed:1")
	o := options()
	o.System = plainHTTP
	ctx, cancel := context.WithCancel(context.Background())
	for _, r := range []io.Reader{
		bytes.NewReader(disk[1:]),
		io.MultiReader(bytes.NewReader(disk[:2<<20]), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }), bytes.NewReader(disk[2<<20:])),
	} {
		_, err := Write(ctx, to, r, int64(len(disk)), o)
		if err == nil || !(errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, context.Canceled)) {
			t.Errorf("%v", err)
		}
		res, err := http.Get("http://" + host + "/v2/ocne/failed/manifests/1")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusNotFound {
			t.Errorf("the registry says %s of the tag", res.Status)
		}
	}
	if _, err := Write(context.Background(), dest(t, "docker://127.0.0.1:1/x:1"), bytes.NewReader(disk), int64(len(disk)), o); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
	if _, _, err := open(t, to.Reference(), plainHTTP, ""); err == nil {
		t.Error("an image that is not there was opened")
	}
	// By digest, which must be the manifest's.
	if _, _, err := open(t, refOf(t, "docker://"+host+"/ocne/ock@"+digest.FromString("x").String()), plainHTTP, ""); err == nil {
		t.Error("an image of another digest was opened")
	}
}

// TestMemory writes and opens a disk of 2 GiB in a process of its own, and looks at the most it had.
func TestMemory(t *testing.T) {
	const size, bound = 2 << 30, 100 << 20
	if file := os.Getenv("CONTAINER_TEST_MEMORY"); file != "" {
		o := options()
		o.Level = 1
		d := dest(t, "oci-archive:"+file)
		disk := io.LimitReader(readerFunc(func(p []byte) (int, error) { clear(p); return len(p), nil }), size)
		if _, err := Write(context.Background(), d, disk, size, o); err != nil {
			t.Fatal(err)
		}
		f, info, err := Open(context.Background(), refOf(t, d.String()), &types.SystemContext{}, "", filepath.Dir(file), OpenOptions{Policy: anyone(t)})
		if err != nil || info.Size != size {
			t.Fatalf("%+v %v", info, err)
		}
		var st syscall.Stat_t
		if err := syscall.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks > 128 {
			t.Fatalf("%+v %v", st, err)
		}
		f.Close()
		fmt.Printf("%s", mustRead(t, "/proc/self/status"))
		return
	}
	c := exec.Command(os.Args[0], "-test.run", "^TestMemory$")
	c.Env = append(os.Environ(), "CONTAINER_TEST_MEMORY="+t.TempDir()+"/x")
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		var peak int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &peak); n == 1 {
			t.Logf("%d MiB at most", peak>>10)
			if peak<<10 > bound {
				t.Errorf("%d MiB at most, more than %d", peak>>10, bound>>20)
			}
			return
		}
	}
	t.Fatalf("no VmHWM in\n%s", out)
}
