package storeseed

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"
)

// entry is one record of a layer that a test builds.
type entry struct {
	tar.Header
	data string
}

func dirE(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
}
func fileE(name, data string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data: data}
}
func linkE(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}}
}
func symE(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}

var testTime = time.Date(2024, 3, 1, 12, 30, 15, 123456789, time.UTC)

// layerTar packs entries; those without a time get testTime, in PAX with nanoseconds.
func layerTar(t testing.TB, es ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range es {
		h := e.Header
		h.Size = int64(len(e.data))
		if h.ModTime.IsZero() {
			h.ModTime = testTime
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%q: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
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
	w, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
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
	return w.EncodeAll(data, nil)
}

// testImage is an image in pieces, as an OCI layout has them.
type testImage struct {
	blobs    map[digest.Digest][]byte
	manifest digest.Digest
	config   digest.Digest
	diffIDs  []digest.Digest
	layers   []digest.Digest
	mime     string
	tars     [][]byte
}

func (im *testImage) put(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	im.blobs[d] = data
	return d
}

type imageSpec struct {
	os, arch, variant string
	created           time.Time
	compress          string // gzip (default), zstd, none
	docker            bool
	edit              func(*imgspecv1.Image, *imgspecv1.Manifest)
	cmd               []string
}

// buildImage makes an image of layers, given as tars.
func buildImage(t testing.TB, s imageSpec, layers ...[]byte) *testImage {
	t.Helper()
	im := &testImage{blobs: map[digest.Digest][]byte{}, tars: layers}
	if s.os == "" {
		s.os = "linux"
	}
	if s.arch == "" {
		s.arch = "amd64"
	}
	if s.created.IsZero() {
		s.created = testTime
	}
	cfg := imgspecv1.Image{Platform: imgspecv1.Platform{OS: s.os, Architecture: s.arch, Variant: s.variant}, Created: &s.created}
	cfg.RootFS.Type = "layers"
	cfg.Config.Cmd = s.cmd
	man := imgspecv1.Manifest{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageManifest}
	for _, l := range layers {
		im.diffIDs = append(im.diffIDs, digest.FromBytes(l))
		blob, mime := l, imgspecv1.MediaTypeImageLayer
		switch s.compress {
		case "", "gzip":
			blob, mime = gz(t, l), imgspecv1.MediaTypeImageLayerGzip
		case "zstd":
			blob, mime = zst(t, l), imgspecv1.MediaTypeImageLayerZstd
		}
		if s.docker {
			mime = "application/vnd.docker.image.rootfs.diff.tar.gzip"
		}
		d := im.put(blob)
		im.layers = append(im.layers, d)
		man.Layers = append(man.Layers, imgspecv1.Descriptor{MediaType: mime, Digest: d, Size: int64(len(blob))})
		cfg.History = append(cfg.History, imgspecv1.History{Created: &s.created, CreatedBy: "test"})
	}
	cfg.RootFS.DiffIDs = im.diffIDs
	man.Config.MediaType = imgspecv1.MediaTypeImageConfig
	if s.docker {
		man.MediaType = "application/vnd.docker.distribution.manifest.v2+json"
		man.Config.MediaType = "application/vnd.docker.container.image.v1+json"
	}
	if s.edit != nil {
		s.edit(&cfg, &man)
	}
	c, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	im.config = im.put(c)
	man.Config.Digest, man.Config.Size = im.config, int64(len(c))
	m, err := json.Marshal(man)
	if err != nil {
		t.Fatal(err)
	}
	im.manifest, im.mime = im.put(m), man.MediaType
	return im
}

// ociLayout writes images as an OCI layout; annotation i names image i.
func ociLayout(t testing.TB, dir string, names []string, ims ...*testImage) string {
	t.Helper()
	idx := imgspecv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageIndex}
	for i, im := range ims {
		for d, b := range im.blobs {
			writeFile(t, filepath.Join(dir, "blobs/sha256", d.Encoded()), b)
		}
		desc := imgspecv1.Descriptor{MediaType: im.mime, Digest: im.manifest, Size: int64(len(im.blobs[im.manifest]))}
		if i < len(names) && names[i] != "" {
			desc.Annotations = map[string]string{imgspecv1.AnnotationRefName: names[i]}
		}
		idx.Manifests = append(idx.Manifests, desc)
	}
	data, _ := json.Marshal(idx)
	writeFile(t, filepath.Join(dir, "index.json"), data)
	writeFile(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return dir
}

func writeFile(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// ociArchive packs an OCI layout.
func ociArchive(t testing.TB, dir string) string {
	t.Helper()
	out := dir + ".oci.tar"
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out
}

// indexOf makes a manifest list of images, which are then part of it.
func indexOf(t testing.TB, ims ...*testImage) *testImage {
	t.Helper()
	out := &testImage{blobs: map[digest.Digest][]byte{}, mime: imgspecv1.MediaTypeImageIndex}
	idx := imgspecv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageIndex}
	for _, im := range ims {
		maps.Copy(out.blobs, im.blobs)
		var c imgspecv1.Image
		if err := json.Unmarshal(im.blobs[im.config], &c); err != nil {
			t.Fatal(err)
		}
		idx.Manifests = append(idx.Manifests, imgspecv1.Descriptor{MediaType: im.mime, Digest: im.manifest,
			Size: int64(len(im.blobs[im.manifest])), Platform: &c.Platform})
	}
	data, _ := json.Marshal(idx)
	out.manifest = out.put(data)
	return out
}

// registry is a read-only registry for one repository.
type registry struct {
	*httptest.Server
	mu       sync.Mutex
	blobs    map[digest.Digest][]byte
	mimes    map[digest.Digest]string
	tags     map[string]digest.Digest
	requests []string
	cut      int // the next blobs break off half way, this many times
}

func newRegistry(t testing.TB) *registry {
	r := &registry{blobs: map[digest.Digest][]byte{}, mimes: map[digest.Digest]string{}, tags: map[string]digest.Digest{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *registry) push(tag string, ims ...*testImage) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, im := range ims {
		maps.Copy(r.blobs, im.blobs)
		r.mimes[im.manifest] = im.mime
	}
	r.tags[tag] = ims[0].manifest
}

func (r *registry) host() string { return strings.TrimPrefix(r.URL, "http://") }

func (r *registry) serve(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q.Method+" "+q.URL.Path)
	if q.URL.Path == "/v2/" {
		return
	}
	_, last, _ := strings.Cut(strings.TrimPrefix(q.URL.Path, "/v2/"), "/")
	kind, id, _ := strings.Cut(last, "/")
	d := digest.Digest(id)
	if t, ok := r.tags[id]; ok && kind == "manifests" {
		d = t
	}
	blob, ok := r.blobs[d]
	if !ok {
		http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
		return
	}
	if m := r.mimes[d]; m != "" {
		w.Header().Set("Content-Type", m)
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
	if kind == "blobs" && r.cut > 0 && q.Method == http.MethodGet && len(blob) > 1000 {
		r.cut--
		w.Write(blob[:len(blob)/2])
		panic(http.ErrAbortHandler)
	}
	w.Write(blob)
}

func (r *registry) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.requests {
		if strings.Contains(q, what) {
			n++
		}
	}
	return n
}

// testSystem is a context that nothing on this host has a say in.
func testSystem(t testing.TB) *types.SystemContext {
	t.Helper()
	return systemIn(t.TempDir())
}

func systemIn(dir string) *types.SystemContext {
	os.WriteFile(dir+"/policy.json", []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o644)
	os.WriteFile(dir+"/registries.conf", []byte("unqualified-search-registries = [\"registry.example\"]\n[aliases]\nshorty = \"quay.example/long/shorty\"\n"), 0o644)
	os.MkdirAll(dir+"/registries.conf.d", 0o755)
	os.MkdirAll(dir+"/registries.d", 0o755)
	return &types.SystemContext{
		SignaturePolicyPath: dir + "/policy.json", SystemRegistriesConfPath: dir + "/registries.conf",
		SystemRegistriesConfDirPath: dir + "/registries.conf.d", RegistriesDirPath: dir + "/registries.d",
		UserShortNameAliasConfPath: dir + "/aliases.conf", DockerInsecureSkipTLSVerify: types.OptionalBoolTrue,
		AuthFilePath: dir + "/auth.json",
	}
}

// memFS is the contract of FS in memory, kept strictly.
type memFS struct {
	nodes  map[string]*memNode
	failAt int // the Add with this number fails, 0 never
	adds   int
}

type memNode struct {
	h    tar.Header
	data []byte
}

func newMemFS() *memFS {
	return &memFS{nodes: map[string]*memNode{"": {h: tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}}}}
}

func memName(s string) (string, error) {
	s = strings.TrimPrefix(s, "/")
	if s == "." || s == "" {
		return "", nil
	}
	for _, c := range strings.Split(s, "/") {
		if c == "" || c == "." || c == ".." || len(c) > 255 || strings.IndexByte(c, 0) >= 0 {
			return "", &fs.PathError{Op: "name", Path: s, Err: fs.ErrInvalid}
		}
	}
	return s, nil
}

func (m *memFS) find(name string) (string, *memNode, error) {
	n, err := memName(name)
	if err != nil {
		return "", nil, err
	}
	if n != "" {
		if p := m.nodes[parentOf(n)]; p == nil {
			return n, nil, &fs.PathError{Op: "walk", Path: name, Err: fs.ErrNotExist}
		} else if p.h.Typeflag != tar.TypeDir {
			return n, nil, &fs.PathError{Op: "walk", Path: name, Err: fs.ErrInvalid}
		}
	}
	if m.nodes[n] == nil {
		return n, nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	return n, m.nodes[n], nil
}

func (m *memFS) Stat(name string) (*tar.Header, error) {
	_, n, err := m.find(name)
	if err != nil {
		return nil, err
	}
	h := n.h
	h.PAXRecords = maps.Clone(n.h.PAXRecords)
	h.Size = int64(len(n.data))
	return &h, nil
}

func (m *memFS) ReadDir(name string) ([]string, error) {
	n, d, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if d.h.Typeflag != tar.TypeDir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrInvalid}
	}
	var out []string
	for k := range m.nodes {
		if k != "" && parentOf(k) == n {
			out = append(out, strings.TrimPrefix(k[len(n):], "/"))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *memFS) Open(name string) (*io.SectionReader, error) {
	_, n, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if n.h.Typeflag != tar.TypeReg {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrInvalid}
	}
	return io.NewSectionReader(bytes.NewReader(n.data), 0, int64(len(n.data))), nil
}

func (m *memFS) Add(h *tar.Header, r io.Reader) error {
	m.adds++
	if m.failAt > 0 && m.adds == m.failAt {
		return &fs.PathError{Op: "add", Path: h.Name, Err: fmt.Errorf("no space left")}
	}
	name, have, err := m.find(h.Name)
	if err != nil && (name == "" || !isNotExist(err) || m.nodes[parentOf(name)] == nil) {
		return err
	}
	if have != nil {
		if h.Typeflag == tar.TypeDir && have.h.Typeflag == tar.TypeDir {
			have.h = *h
			have.h.PAXRecords = maps.Clone(h.PAXRecords)
			return nil
		}
		return &fs.PathError{Op: "add", Path: h.Name, Err: fs.ErrExist}
	}
	switch h.Typeflag {
	case tar.TypeLink:
		_, target, err := m.find(h.Linkname)
		if err != nil {
			return err
		}
		if target.h.Typeflag == tar.TypeDir {
			return &fs.PathError{Op: "link", Path: h.Name, Err: fs.ErrPermission}
		}
		m.nodes[name] = target
		return nil
	case tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
	default:
		return &fs.PathError{Op: "add", Path: h.Name, Err: fs.ErrInvalid}
	}
	n := &memNode{h: *h}
	n.h.PAXRecords = maps.Clone(h.PAXRecords)
	if h.Typeflag == tar.TypeReg && h.Size > 0 {
		data, err := io.ReadAll(io.LimitReader(r, h.Size))
		if err != nil {
			return err
		}
		if int64(len(data)) != h.Size {
			return fmt.Errorf("%s: %w", h.Name, io.ErrUnexpectedEOF)
		}
		n.data = data
	}
	m.nodes[name] = n
	return nil
}

func (m *memFS) Replace(h *tar.Header, r io.Reader) error {
	name, have, _ := m.find(h.Name)
	if have != nil {
		if have.h.Typeflag != tar.TypeReg {
			return &fs.PathError{Op: "replace", Path: h.Name, Err: fs.ErrExist}
		}
		delete(m.nodes, name)
	}
	err := m.Add(h, r)
	if err != nil && have != nil {
		m.nodes[name] = have
	}
	return err
}

func (m *memFS) Remove(name string) error {
	n, _, err := m.find(name)
	if err != nil {
		return err
	}
	if names, err := m.ReadDir(name); err == nil && len(names) > 0 {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrInvalid}
	}
	delete(m.nodes, n)
	return nil
}

func isNotExist(err error) bool {
	e, ok := err.(*fs.PathError)
	return ok && e.Err == fs.ErrNotExist
}

// dump is everything in the filesystem, as text.
func (m *memFS) dump() string {
	var b strings.Builder
	inodes := map[*memNode]string{}
	for _, k := range slices.Sorted(maps.Keys(m.nodes)) {
		n := m.nodes[k]
		if first, ok := inodes[n]; ok {
			fmt.Fprintf(&b, "%q = %q\n", k, first)
			continue
		}
		inodes[n] = k
		fmt.Fprintf(&b, "%q %c %o %d:%d %s %q %d:%d", k, n.h.Typeflag, n.h.Mode, n.h.Uid, n.h.Gid, n.h.ModTime.UTC().Format(time.RFC3339Nano), n.h.Linkname, n.h.Devmajor, n.h.Devminor)
		for _, x := range slices.Sorted(maps.Keys(n.h.PAXRecords)) {
			fmt.Fprintf(&b, " %s=%q", x, n.h.PAXRecords[x])
		}
		fmt.Fprintf(&b, " %d %s\n", len(n.data), digest.FromBytes(n.data))
	}
	return b.String()
}
