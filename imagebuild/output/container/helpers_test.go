package container

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// needs skips a test for which this machine lacks a tool; in CI it fails instead.
func needs(t testing.TB, tools ...string) {
	t.Helper()
	lack := func(format string, a ...any) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatalf(format, a...)
		}
		t.Skipf(format, a...)
	}
	if os.Geteuid() != 0 {
		lack("not root")
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			lack("%v", err)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	var out, errOut bytes.Buffer
	c.Stdout, c.Stderr = &out, &errOut
	if err := c.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.String(), errOut.String())
	}
	return out.String()
}

// graph is a store for podman and buildah in a folder of its own.
type graph struct {
	t   testing.TB
	dir string
}

func newGraph(t testing.TB) graph {
	dir, err := os.MkdirTemp("/var/tmp", "container-test-")
	if err != nil {
		t.Fatal(err)
	}
	g := graph{t, dir}
	t.Cleanup(func() {
		exec.Command("umount", dir+"/root/overlay").Run()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g graph) run(name string, args ...string) string {
	g.t.Helper()
	flags := []string{"--root", g.dir + "/root", "--runroot", g.dir + "/run", "--storage-driver", "overlay"}
	return run(g.t, name, append(flags, args...)...)
}

// registry runs Debian's docker-registry on loopback and returns its host.
func registry(t testing.TB) string {
	t.Helper()
	needs(t, "docker-registry")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	config := fmt.Sprintf("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: %s\nlog:\n  level: error\n", dir, host)
	if err := os.WriteFile(dir+"/config.yml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", dir+"/config.yml")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for range 400 {
		if res, err := http.Get("http://" + host + "/v2/"); err == nil {
			res.Body.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not answer: %s", out.String())
	return ""
}

// plainHTTP are the settings for such a registry.
var plainHTTP = &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue}

// testDisk is one of data, zeros and data.
func testDisk(size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewSource(int64(size)))
	r.Read(b[:size/3])
	r.Read(b[size-size/5:])
	return b
}

func options() Options {
	return Options{
		Platform:    imgspecv1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"},
		Created:     time.Date(2025, 2, 3, 4, 5, 6, 789, time.UTC),
		Format:      "qcow2",
		VirtualSize: 15 << 30,
	}
}

func dest(t testing.TB, s string) Dest {
	t.Helper()
	d, ok, err := ParseDest(s)
	if err != nil || !ok {
		t.Fatalf("ParseDest(%q): %v %v", s, ok, err)
	}
	return d
}

func write(t testing.TB, d string, disk []byte, o Options) Result {
	t.Helper()
	res, err := Write(context.Background(), dest(t, d), bytes.NewReader(disk), int64(len(disk)), o)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func refOf(t testing.TB, s string) types.ImageReference {
	t.Helper()
	kind, rest, _ := strings.Cut(s, ":")
	parse := map[string]types.ImageTransport{
		"oci": layout.Transport, "oci-archive": ociarchive.Transport, "docker-archive": dockerarchive.Transport, "docker": docker.Transport,
		"dir": directory.Transport, "containers-storage": istorage.Transport,
	}[kind]
	ref, err := parse.ParseReference(rest)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// anyone lets every image in.
func anyone(t testing.TB) *signature.PolicyContext {
	pc, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Destroy() })
	return pc
}

func open(t testing.TB, ref types.ImageReference, sys *types.SystemContext, name string) ([]byte, Info, error) {
	t.Helper()
	return openWith(t, ref, sys, name, OpenOptions{})
}

// openWith reads all of the disk, and sees to it that no other file is left.
func openWith(t testing.TB, ref types.ImageReference, sys *types.SystemContext, name string, o OpenOptions) ([]byte, Info, error) {
	t.Helper()
	dir := t.TempDir()
	if o.Policy == nil {
		o.Policy = anyone(t)
	}
	f, info, err := Open(context.Background(), ref, sys, name, dir, o)
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%s is left in the folder", left[0].Name())
	}
	if err != nil {
		return nil, info, err
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(data)) != info.Size {
		t.Errorf("%d bytes, and Info says %d", len(data), info.Size)
	}
	return data, info, nil
}

// item is a tar entry.
type item struct {
	name, link string
	kind       byte
	data       string
}

func file(name, data string) item     { return item{name: name, data: data, kind: tar.TypeReg} }
func dirAt(name string) item          { return item{name: name + "/", kind: tar.TypeDir} }
func linkAt(name, target string) item { return item{name: name, link: target, kind: tar.TypeSymlink} }
func hardlink(name, to string) item   { return item{name: name, link: to, kind: tar.TypeLink} }

func tarOf(t testing.TB, items ...item) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, i := range items {
		h := &tar.Header{Typeflag: i.kind, Name: i.name, Linkname: i.link, Mode: 0o644, Size: int64(len(i.data))}
		if i.kind == tar.TypeDir {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, i.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// layoutOf makes an OCI layout of an image with these layers, the lowest first, and returns its folder. edit may change
// the manifest.
func layoutOf(t testing.TB, layers [][]byte, edit ...func(*imgspecv1.Manifest)) string {
	t.Helper()
	dir := t.TempDir()
	m := imgspecv1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageManifest}
	config := imgspecv1.Image{Platform: imgspecv1.Platform{OS: "linux", Architecture: "amd64"}, RootFS: imgspecv1.RootFS{Type: "layers"}}
	for _, l := range layers {
		d := blobAt(t, dir, l, imgspecv1.MediaTypeImageLayer)
		plain := l
		if bytes.HasPrefix(l, []byte{0x1f, 0x8b}) {
			d.MediaType = imgspecv1.MediaTypeImageLayerGzip
			if r, err := gzip.NewReader(bytes.NewReader(l)); err == nil {
				plain, _ = io.ReadAll(r)
			}
		}
		m.Layers = append(m.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
	}
	m.Config = jsonAt(t, dir, config, imgspecv1.MediaTypeImageConfig)
	for _, e := range edit {
		e(&m)
	}
	index := newIndex(jsonAt(t, dir, m, m.MediaType))
	index.Manifests[0].Annotations = map[string]string{imgspecv1.AnnotationRefName: "x"}
	put(t, filepath.Join(dir, "index.json"), mustJSON(t, index))
	put(t, filepath.Join(dir, "oci-layout"), layoutFile)
	return dir
}

func layoutRef(t testing.TB, dir string) types.ImageReference {
	t.Helper()
	ref, err := layout.NewReference(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func mustJSON(t testing.TB, v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func jsonAt(t testing.TB, dir string, v any, mime string) imgspecv1.Descriptor {
	t.Helper()
	return blobAt(t, dir, mustJSON(t, v), mime)
}

func blobAt(t testing.TB, dir string, data []byte, mime string) imgspecv1.Descriptor {
	t.Helper()
	d := imgspecv1.Descriptor{MediaType: mime, Digest: digest.FromBytes(data), Size: int64(len(data))}
	put(t, filepath.Join(dir, blobName(d.Digest)), data)
	return d
}

func put(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// tree lists a folder and what is in its files.
func tree(t testing.TB, dir string) map[string]digest.Digest {
	t.Helper()
	out := map[string]digest.Digest{}
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		out[strings.TrimPrefix(p, dir)] = digest.FromBytes(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
