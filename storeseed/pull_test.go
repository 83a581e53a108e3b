package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
)

// puller pulls into a store in memory.
type puller struct {
	t   testing.TB
	fs  *memFS
	s   *Store
	sys *types.SystemContext
	log bytes.Buffer
}

func newPuller(t testing.TB) *puller {
	p := &puller{t: t, fs: newMemFS(), sys: testSystem(t)}
	p.reopen()
	return p
}

func (p *puller) reopen() {
	p.t.Helper()
	l := logrus.New()
	l.SetOutput(&p.log)
	s, err := OpenStore(p.fs, Options{Root: "var/images", Log: l, TempDir: p.t.TempDir()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.s = s
}

func (p *puller) try(ref string, edit ...func(*PullOptions)) (Result, error) {
	p.t.Helper()
	r, names, err := ParseReference(p.sys, ref)
	if err != nil {
		return Result{}, err
	}
	o := PullOptions{Source: Source{Ref: r, Names: names, System: p.sys}, Platform: Platform{"linux", "amd64", ""}, RetryDelay: time.Millisecond}
	for _, e := range edit {
		e(&o)
	}
	return p.s.Pull(context.Background(), o)
}

func (p *puller) pull(ref string, edit ...func(*PullOptions)) Result {
	p.t.Helper()
	res, err := p.try(ref, edit...)
	if err != nil {
		p.t.Fatal(err)
	}
	return res
}

func (p *puller) commit() []Image {
	p.t.Helper()
	if err := p.s.Commit(context.Background()); err != nil {
		p.t.Fatal(err)
	}
	rep, err := Verify(context.Background(), p.fs, "var/images", VerifyOptions{})
	if err != nil || rep.Total > 0 {
		p.t.Fatalf("verify: %+v %v", rep, err)
	}
	ims, err := List(p.fs, "var/images")
	if err != nil {
		p.t.Fatal(err)
	}
	return ims
}

func smallImage(t testing.TB, s imageSpec, files ...string) *testImage {
	var layers [][]byte
	for _, f := range files {
		layers = append(layers, layerTar(t, fileE(f, strings.Repeat(f, 2000))))
	}
	return buildImage(t, s, layers...)
}

// TestTransports pulls one image by every way there is and gets the same image each time.
func TestTransports(t *testing.T) {
	needs(t, "skopeo", "podman")
	dir := scratch(t)
	im := smallImage(t, imageSpec{}, "base", "top")
	lay := ociLayout(t, filepath.Join(dir, "lay"), []string{"registry.example/t/x:1"}, im)
	oa := ociArchive(t, lay)
	da, dd := filepath.Join(dir, "da.tar"), filepath.Join(dir, "dd")
	run(t, "skopeo", "copy", "-q", "oci:"+lay+":registry.example/t/x:1", "docker-archive:"+da+":registry.example/t/x:1", "--additional-tag", "registry.example/t/x:2")
	run(t, "skopeo", "copy", "-q", "oci:"+lay+":registry.example/t/x:1", "dir:"+dd)
	reg := newRegistry(t)
	reg.push("1", im)
	eng := newEngine(t, dir, "graph", "")
	eng.run("podman", "load", "-q", "-i", oa)

	byReg := reg.host() + "/x"
	tests := []struct {
		ref       string
		names     []string
		sameBytes bool // the manifest is the image's own
	}{
		{"oci:" + lay, []string{"registry.example/t/x:1"}, true},
		{"oci:" + lay + ":registry.example/t/x:1", []string{"registry.example/t/x:1"}, true},
		{"oci-archive:" + oa, []string{"registry.example/t/x:1"}, true},
		{"oci-archive:" + oa + ":registry.example/t/x:1", []string{"registry.example/t/x:1"}, true},
		{"docker-archive:" + da, []string{"registry.example/t/x:1", "registry.example/t/x:2"}, false},
		{"docker-archive:" + da + ":registry.example/t/x:2", []string{"registry.example/t/x:2"}, false},
		{"dir:" + dd, nil, true},
		{"docker://" + byReg + ":1", []string{byReg + ":1"}, true},
		{byReg + ":1", []string{byReg + ":1"}, true},
		{"docker://" + byReg + "@" + im.manifest.String(), []string{byReg + "@" + im.manifest.String()}, true},
		{byReg + ":1@" + im.manifest.String(), []string{byReg + ":1", byReg + "@" + im.manifest.String()}, true},
		{"containers-storage:[overlay@" + eng.root + "+" + eng.root + "-run]registry.example/t/x:1", []string{"registry.example/t/x:1"}, true},
	}
	var dumps []string
	for _, tc := range tests {
		t.Run(tc.ref, func(t *testing.T) {
			p := newPuller(t)
			res := p.pull(tc.ref)
			if res.ID != im.config.Encoded() || len(res.Layers) != 2 || !res.Layers[0].New || !res.Layers[1].New || res.Present || res.Unchanged {
				t.Errorf("%+v", res)
			}
			for i, l := range res.Layers {
				if l.DiffID != im.diffIDs[i] || l.Size != int64(len(im.tars[i])) || (tc.sameBytes && l.CompressedDigest != im.layers[i]) {
					t.Errorf("layer %d: %+v", i, l)
				}
			}
			if tc.sameBytes != (res.ManifestDigest == im.manifest) {
				t.Errorf("manifest %s, the image's own is %s", res.ManifestDigest, im.manifest)
			}
			ims := p.commit()
			got := slices.Clone(ims[0].Names)
			slices.Sort(got)
			if !slices.Equal(got, tc.names) {
				t.Errorf("names %q, want %q", got, tc.names)
			}
			if n := len(tc.names); len(ims) != max(1, len(slices.DeleteFunc(slices.Clone(tc.names), func(s string) bool { return strings.Contains(s, "@") }))) {
				t.Errorf("%d lines for %d names", len(ims), n)
			}
			if strings.HasPrefix(tc.ref, "oci-archive") {
				dumps = append(dumps, p.fs.dump())
			}
		})
	}
	if dumps[0] != dumps[1] || !strings.Contains(dumps[0], "overlay-layers/layers.json") {
		t.Error("the same image twice is not the same bytes")
	}
}

func TestParseReference(t *testing.T) {
	sys := testSystem(t)
	dir := t.TempDir()
	im := smallImage(t, imageSpec{}, "f")
	im2 := smallImage(t, imageSpec{}, "g")
	two := ociLayout(t, filepath.Join(dir, "two"), []string{"short:1", "v2"}, im, im2)
	twoA := ociArchive(t, two)
	none := ociArchive(t, ociLayout(t, filepath.Join(dir, "none"), nil, im))
	dig := "@" + im.manifest.String()
	tests := []struct {
		in    string
		ref   string
		names []string
		err   string
	}{
		{"docker://alpine", "docker://alpine:latest", []string{"docker.io/library/alpine:latest"}, ""},
		{"docker://docker.io/a/b:c", "docker://a/b:c", []string{"docker.io/a/b:c"}, ""},
		{"docker://a/b:c" + dig, "docker://a/b" + dig, []string{"docker.io/a/b:c", "docker.io/a/b" + dig}, ""},
		{"quay.io/a/b:c", "docker://quay.io/a/b:c", []string{"quay.io/a/b:c"}, ""},
		{"localhost:5000/x", "docker://localhost:5000/x:latest", []string{"localhost:5000/x:latest"}, ""},
		{"localhost/x", "docker://localhost/x:latest", []string{"localhost/x:latest"}, ""},
		{"alpine:3", "docker://registry.example/alpine:3", []string{"registry.example/alpine:3"}, ""},
		{"a/b", "docker://registry.example/a/b:latest", []string{"registry.example/a/b:latest"}, ""},
		{"shorty:5", "docker://quay.example/long/shorty:5", []string{"quay.example/long/shorty:5"}, ""},
		{"shorty" + dig, "docker://quay.example/long/shorty" + dig, []string{"quay.example/long/shorty" + dig}, ""},
		{"docker:20", "docker://registry.example/docker:20", []string{"registry.example/docker:20"}, ""},
		{"oci:" + two + ":short:1", "oci:" + two + ":short:1", []string{"localhost/short:1"}, ""},
		{"oci-archive:" + twoA + ":v2", "oci-archive:" + twoA + ":v2", []string{"localhost/v2:latest"}, ""},
		{"oci-archive:" + none, "oci-archive:" + none + ":", nil, ""},
		{"oci-archive:" + twoA, "", nil, "holds 2 images, so one must be named: oci-archive:" + twoA + ":NAME, where NAME is one of short:1, v2"},
		{"oci-archive:" + twoA + ":v3", "", nil, `does not hold "v3", only short:1, v2`},
		{"oci-archive:/nonexistent", "", nil, "no such file"},
		{"docker-archive:/nonexistent", "", nil, "no such file"},
		{"oci:/nonexistent", "", nil, "no such file"},
		{"docker-daemon:alpine:3", "", nil, `unsupported transport "docker-daemon"`},
		{"https://example.com/x", "", nil, `unsupported transport "https"`},
		{"", "", nil, "image \"\""},
		{"Upper/Case", "", nil, "lowercase"},
		{"docker://", "", nil, "invalid reference"},
		{"a b", "", nil, "invalid reference"},
	}
	for _, tc := range tests {
		ref, names, err := ParseReference(sys, tc.in)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: got %v, want %q", tc.in, err, tc.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", tc.in, err)
			continue
		}
		got := ref.Transport().Name() + ":" + ref.StringWithinTransport()
		if got != tc.ref || !slices.Equal(names, tc.names) {
			t.Errorf("%q: %s %q, want %s %q", tc.in, got, names, tc.ref, tc.names)
		}
	}
	if _, _, err := ParseReference(sys, "docker-daemon:x:y"); !errors.Is(err, ErrUnsupportedTransport) {
		t.Error(err)
	}
}

func TestManifestList(t *testing.T) {
	amd := smallImage(t, imageSpec{arch: "amd64"}, "amd")
	arm := smallImage(t, imageSpec{arch: "arm64", variant: "v8"}, "arm")
	reg := newRegistry(t)
	reg.push("1", indexOf(t, amd, arm), amd, arm)
	reg.push("lie", indexOf(t, amd), amd)
	reg.push("arm", arm)
	p := newPuller(t)
	ref := "docker://" + reg.host() + "/x"
	res := p.pull(ref + ":1")
	if res.ID != amd.config.Encoded() || res.ListDigest != reg.tags["1"] || res.ManifestDigest != amd.manifest {
		t.Errorf("%+v", res)
	}
	if n := reg.count("GET /v2/x/blobs/" + arm.layers[0].String()); n != 0 {
		t.Error("the other platform's layer was fetched")
	}
	if n := reg.count("GET /v2/x/blobs/" + amd.layers[0].String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	if _, err := p.try(ref+":1", func(o *PullOptions) { o.Platform = Platform{"linux", "s390x", ""} }); !errors.Is(err, ErrPlatform) ||
		!strings.Contains(err.Error(), "no image for the platform linux/s390x: the list has linux/amd64, linux/arm64/v8") {
		t.Error(err)
	}
	if _, err := p.try(ref + ":arm"); !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "no image for the platform linux/amd64: the image is for linux/arm64/v8") {
		t.Error(err)
	}
	if res := p.pull(ref+":1", func(o *PullOptions) { o.Platform = Platform{"linux", "arm64", ""} }); res.ID != arm.config.Encoded() {
		t.Errorf("%+v", res)
	}
	ims := p.commit()
	if len(ims) != 2 || len(ims[0].Digests) != 2 {
		t.Errorf("%+v", ims)
	}
	// The name is the last image's alone, the other one keeps its history.
	for _, im := range p.s.images {
		if want := im.ID == arm.config.Encoded(); (len(im.Names) == 1) != want || len(im.NamesHistory) != 1 {
			t.Errorf("%.12s: names %q, history %q", im.ID, im.Names, im.NamesHistory)
		}
	}
}

func TestVariant(t *testing.T) {
	tests := []struct {
		want, have string
		ok         bool
	}{
		{"linux/arm/v7", "linux/arm/v7", true}, {"linux/arm/v7", "linux/arm/v6", true}, {"linux/arm/v6", "linux/arm/v7", false},
		{"linux/arm64", "linux/arm64/v8", true}, {"linux/amd64", "linux/amd64/v3", true}, {"linux/amd64/v2", "linux/amd64/v3", false},
		{"linux/amd64", "windows/amd64", false}, {"linux/amd64", "linux/386", false},
	}
	for _, tc := range tests {
		w, err := ParsePlatform(tc.want)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := ParsePlatform(tc.have)
		err = checkPlatform(w, imgspecv1.Platform{OS: h.OS, Architecture: h.Architecture, Variant: h.Variant})
		if (err == nil) != tc.ok {
			t.Errorf("%s on %s: %v", tc.have, tc.want, err)
		}
	}
	for _, s := range []string{"", "linux", "linux/", "/amd64", "a/b/c/d", "a/b/"} {
		if _, err := ParsePlatform(s); err == nil {
			t.Errorf("%q passes", s)
		}
	}
}

func TestRefusedImages(t *testing.T) {
	reg := newRegistry(t)
	tests := []struct {
		name string
		spec imageSpec
		want string
	}{
		{"artifact", imageSpec{edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) {
			m.Config.MediaType, m.ArtifactType = "application/vnd.oci.empty.v1+json", "application/vnd.example.sbom"
		}}, `it is an artifact of type "application/vnd.example.sbom", not a container image`},
		{"helm chart", imageSpec{edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) {
			m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
		}}, `"application/vnd.cncf.helm.config.v1+json"`},
		{"attestation", imageSpec{edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) {
			m.Layers[0].MediaType = "application/vnd.in-toto+json"
		}}, `layer 1 is of type "application/vnd.in-toto+json", not a tar`},
		{"encrypted", imageSpec{edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) { m.Layers[0].MediaType += "+encrypted" }}, "layer 1 is encrypted"},
		{"too few diffIDs", imageSpec{edit: func(c *imgspecv1.Image, _ *imgspecv1.Manifest) { c.RootFS.DiffIDs = nil }}, "its config lists 0 layers, its manifest 1"},
		{"odd diffID", imageSpec{edit: func(c *imgspecv1.Image, _ *imgspecv1.Manifest) { c.RootFS.DiffIDs = []digest.Digest{"sha256:../../x"} }}, "not a sha256 digest"},
	}
	for i, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			tag := fmt.Sprint("t", i)
			reg.push(tag, smallImage(t, tc.spec, "f"))
			p := newPuller(t)
			_, err := p.try("docker://" + reg.host() + "/x:" + tag)
			if !errors.Is(err, ErrUnsupportedImage) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if len(p.fs.nodes) != 1 {
				t.Error("something was written")
			}
		})
	}
	t.Run("schema 1", func(t *testing.T) {
		s1 := &testImage{blobs: map[digest.Digest][]byte{}, mime: "application/vnd.docker.distribution.manifest.v1+json"}
		s1.manifest = s1.put([]byte(`{"schemaVersion":1,"name":"x","tag":"s1","architecture":"amd64","fsLayers":[{"blobSum":"` + digest.FromString("x").String() + `"}],"history":[{"v1Compatibility":"{\"id\":\"a\"}"}]}`))
		reg.push("s1", s1)
		if _, err := newPuller(t).try("docker://" + reg.host() + "/x:s1"); !errors.Is(err, ErrUnsupportedImage) || !strings.Contains(err.Error(), "schema 1") {
			t.Error(err)
		}
	})
	t.Run("hostile layer", func(t *testing.T) {
		reg.push("evil", buildImage(t, imageSpec{}, layerTar(t, fileE("ok", "1")), layerTar(t, fileE("../x", "1")), layerTar(t, fileE("later", "1"))))
		p := newPuller(t)
		_, err := p.try("docker://" + reg.host() + "/x:evil")
		if !errors.Is(err, ErrHostileLayer) || !strings.Contains(err.Error(), "layer 2 of 3") || strings.Contains(err.Error(), "copying") {
			t.Error(err)
		}
		// The first layer is whole and stays, the image is not there.
		if err := p.s.Commit(context.Background()); err != nil || len(p.s.layers) != 1 || len(p.s.images) != 0 {
			t.Errorf("%v, %d layers, %d images", err, len(p.s.layers), len(p.s.images))
		}
	})
}

func TestPolicy(t *testing.T) {
	reg := newRegistry(t)
	reg.push("1", smallImage(t, imageSpec{}, "f"))
	p := newPuller(t)
	writeFile(t, p.sys.SignaturePolicyPath, []byte(`{"default":[{"type":"reject"}]}`))
	_, err := p.try("docker://"+reg.host()+"/x:1", func(o *PullOptions) { o.Retries = 5; o.RetryDelay = time.Hour })
	if err == nil || !strings.Contains(err.Error(), "rejected") {
		t.Error(err)
	}
	if len(p.fs.nodes) != 1 || reg.count("/blobs/"+digest.FromString("").String()) != 0 {
		t.Error("a refused image left something")
	}
	// A policy that is named must be there; only a host without any lets everything in.
	os.Remove(p.sys.SignaturePolicyPath)
	if _, err := p.try("docker://" + reg.host() + "/x:1"); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Error(err)
	}
	t.Setenv("CONTAINERS_POLICY_JSON", p.sys.SignaturePolicyPath)
	p.sys.SignaturePolicyPath = ""
	if _, err := p.try("docker://" + reg.host() + "/x:1"); err == nil || !strings.Contains(err.Error(), "policy") {
		t.Error(err)
	}
	t.Setenv("CONTAINERS_POLICY_JSON", "")
	os.Unsetenv("CONTAINERS_POLICY_JSON")
	p.sys.RootForImplicitAbsolutePaths = t.TempDir()
	p.pull("docker://" + reg.host() + "/x:1")
	if !strings.Contains(p.log.String(), "no policy.json") {
		t.Errorf("no warning: %q", p.log.String())
	}
}

func TestRegistryFaults(t *testing.T) {
	im := smallImage(t, imageSpec{compress: "none"}, "base", "top")
	reg := newRegistry(t)
	reg.push("1", im)
	ref := "docker://" + reg.host() + "/x:1"
	t.Run("wrong blob", func(t *testing.T) {
		good := reg.blobs[im.layers[1]]
		bad := bytes.Clone(good)
		bad[600] ^= 1
		reg.blobs[im.layers[1]] = bad
		defer func() { reg.blobs[im.layers[1]] = good }()
		p := newPuller(t)
		if _, err := p.try(ref, func(o *PullOptions) { o.Retries = 3; o.RetryDelay = time.Hour }); !errors.Is(err, ErrDigestMismatch) || !strings.Contains(err.Error(), "layer 2 of 2") {
			t.Error(err)
		}
	})
	t.Run("wrong config", func(t *testing.T) {
		good := reg.blobs[im.config]
		reg.blobs[im.config] = append(bytes.Clone(good), ' ')
		defer func() { reg.blobs[im.config] = good }()
		p := newPuller(t)
		if _, err := p.try(ref); err == nil || len(p.fs.nodes) != 1 {
			t.Error(err)
		}
	})
	t.Run("missing blob", func(t *testing.T) {
		good := reg.blobs[im.layers[1]]
		delete(reg.blobs, im.layers[1])
		defer func() { reg.blobs[im.layers[1]] = good }()
		if _, err := newPuller(t).try(ref); err == nil || !strings.Contains(err.Error(), im.layers[1].String()) {
			t.Error(err)
		}
	})
	t.Run("cut", func(t *testing.T) {
		reg.mu.Lock()
		reg.cut = 3
		reg.mu.Unlock()
		p := newPuller(t)
		res := p.pull(ref, func(o *PullOptions) { o.Retries = 5 })
		if !res.Layers[1].New || len(p.commit()) != 1 {
			t.Errorf("%+v", res)
		}
	})
	t.Run("cut for good", func(t *testing.T) {
		reg.mu.Lock()
		reg.cut = 1 << 30
		reg.mu.Unlock()
		defer func() { reg.mu.Lock(); reg.cut = 0; reg.mu.Unlock() }()
		p := newPuller(t)
		if _, err := p.try(ref, func(o *PullOptions) { o.Retries = 1 }); err == nil || errors.Is(err, ErrHostileLayer) {
			t.Error(err)
		}
		if err := p.s.Commit(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p := newPuller(t)
		r, n, _ := ParseReference(p.sys, ref)
		if _, err := p.s.Pull(ctx, PullOptions{Source: Source{Ref: r, Names: n, System: p.sys}, Platform: Platform{"linux", "amd64", ""}, Retries: 9}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("no space", func(t *testing.T) {
		p := newPuller(t)
		p.fs.failAt = 12
		if _, err := p.try(ref); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Error(err)
		}
	})
}

// TestSecondManifest: one config by two manifests is one image, found by the digests of both.
func TestSecondManifest(t *testing.T) {
	reg := newRegistry(t)
	a := smallImage(t, imageSpec{}, "f", "g")
	b := smallImage(t, imageSpec{docker: true}, "f", "g")
	c := smallImage(t, imageSpec{compress: "zstd"}, "f", "g")
	if a.config != b.config || a.config != c.config || a.manifest == b.manifest {
		t.Fatal("not the images that the test wants")
	}
	reg.push("a", a)
	reg.push("b", b)
	reg.push("c", c)
	p := newPuller(t)
	p.pull("docker://" + reg.host() + "/x:a")
	for _, tag := range []string{"b", "c"} {
		res := p.pull("docker://" + reg.host() + "/x:" + tag)
		if !res.Present || res.Unchanged || res.BytesRead != 0 || res.Layers[0].New || len(res.Layers) != 2 {
			t.Errorf("%+v", res)
		}
		for _, im := range []*testImage{b, c} {
			for _, l := range im.layers {
				if reg.count("GET /v2/x/blobs/"+l.String()) > 1 {
					t.Errorf("layer %s was fetched again", l)
				}
			}
		}
	}
	ims := p.commit()
	if len(ims) != 3 || ims[0].ID != ims[2].ID || len(ims[0].Digests) != 3 || ims[0].Digest != a.manifest {
		t.Errorf("%+v", ims)
	}
	m := p.fs.nodes["var/images/overlay-images/"+a.config.Encoded()+"/"+bigDataFile("manifest-"+b.manifest.String())]
	if m == nil || !bytes.Equal(m.data, b.blobs[b.manifest]) {
		t.Error("the second manifest's bytes are not kept")
	}
}

// TestAddToStore bakes twice: what is there stays, bytes and unknown fields too.
func TestAddToStore(t *testing.T) {
	reg := newRegistry(t)
	one := smallImage(t, imageSpec{}, "base", "one")
	two := smallImage(t, imageSpec{created: testTime.Add(time.Hour)}, "base", "two")
	reg.push("1", one)
	reg.push("2", two)
	ref := "docker://" + reg.host() + "/x:"
	p := newPuller(t)
	p.pull(ref + "1")
	p.commit()

	// Nothing to do leaves every byte.
	before := p.fs.dump()
	p.reopen()
	if res := p.pull(ref + "1"); !res.Present || !res.Unchanged || res.BytesWritten != 0 {
		t.Errorf("%+v", res)
	}
	p.commit()
	if p.fs.dump() != before {
		t.Error("an unchanged image changed the store")
	}

	// A field of an engine to come.
	lj, ij := p.fs.nodes["var/images/"+layersJSON], p.fs.nodes["var/images/"+imagesJSON]
	lj.data = bytes.Replace(lj.data, []byte(`"id"`), []byte(`"new-field":[1,2],"id"`), 1)
	ij.data = bytes.Replace(ij.data, []byte(`"id"`), []byte(`"new-field":{"a":"b"},"id"`), 1)
	p.reopen()
	res := p.pull(ref+"2", func(o *PullOptions) { o.Names = []string{reg.host() + "/x:1", "docker.io/library/new:1"} })
	if res.Layers[0].New || !res.Layers[1].New {
		t.Errorf("%+v", res)
	}
	ims := p.commit()
	if len(ims) != 3 || ims[0].ID != two.config.Encoded() || ims[2].Repository != "<none>" || ims[2].ID != one.config.Encoded() {
		t.Errorf("%+v", ims)
	}
	for _, f := range []string{layersJSON, imagesJSON} {
		if !bytes.Contains(p.fs.nodes["var/images/"+f].data, []byte(`"new-field":`)) {
			t.Errorf("%s lost a field", f)
		}
	}
	if _, err := p.try(ref + "1"); err == nil {
		t.Error("a committed store takes images")
	}
}

// TestAddToPodmansStore adds to a store that podman made, and podman still likes it.
func TestAddToPodmansStore(t *testing.T) {
	needs(t, "podman")
	dir := scratch(t)
	one := smallImage(t, imageSpec{}, "base", "one")
	two := smallImage(t, imageSpec{}, "base", "two")
	a := ociArchive(t, ociLayout(t, filepath.Join(dir, "a"), []string{"r.example/x:1"}, one))
	b := ociArchive(t, ociLayout(t, filepath.Join(dir, "b"), []string{"r.example/y:1"}, two))
	store := newEngine(t, dir, "store", "")
	store.run("podman", "load", "-q", "-i", a)
	res := pullInto(t, dir, "oci-archive:"+b)
	if res[0].Layers[0].New || !res[0].Layers[1].New {
		t.Errorf("%+v", res)
	}
	if rep := verifyDir(t, dir); rep.Total > 0 || rep.Images != 2 {
		t.Errorf("%+v", rep)
	}
	eng := newEngine(t, dir, "graph", store.root)
	for _, n := range []string{"r.example/x:1", "r.example/y:1"} {
		eng.run("podman", "save", "-q", "--format", "oci-archive", "-o", filepath.Join(dir, "out.tar"), n)
		os.Remove(filepath.Join(dir, "out.tar"))
	}
	checkStore(t, dir, store.root)
}

func TestCorruptStore(t *testing.T) {
	reg := newRegistry(t)
	im := smallImage(t, imageSpec{}, "f", "g")
	reg.push("1", im)
	base := layerID("", im.diffIDs[0])
	tests := []struct {
		name string
		hurt func(m *memFS)
	}{
		{"layers.json cut", func(m *memFS) { n := m.nodes["var/images/"+layersJSON]; n.data = n.data[:50] }},
		{"images.json cut", func(m *memFS) { n := m.nodes["var/images/"+imagesJSON]; n.data = n.data[:50] }},
		{"layers.json gone", func(m *memFS) { delete(m.nodes, "var/images/"+layersJSON) }},
		{"base record gone", func(m *memFS) {
			n := m.nodes["var/images/"+layersJSON]
			var l []json.RawMessage
			json.Unmarshal(n.data, &l)
			n.data, _ = json.Marshal(l[1:])
		}},
		{"cycle", func(m *memFS) {
			n := m.nodes["var/images/"+layersJSON]
			n.data = bytes.Replace(n.data, []byte(`"created"`), []byte(`"parent":"`+layerID(base, im.diffIDs[1])+`","created"`), 1)
		}},
		{"link gone", func(m *memFS) { delete(m.nodes, "var/images/overlay/"+base+"/link") }},
		{"link leads away", func(m *memFS) { m.nodes["var/images/overlay/"+base+"/link"].data = []byte("../../etc") }},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			p := newPuller(t)
			p.pull("docker://" + reg.host() + "/x:1")
			p.commit()
			tc.hurt(p.fs)
			_, err := OpenStore(p.fs, Options{Root: "var/images"})
			if !errors.Is(err, ErrCorruptStore) || !strings.Contains(err.Error(), "bake into another store path") {
				t.Errorf("got %v", err)
			}
			rep, err := Verify(context.Background(), p.fs, "var/images", VerifyOptions{})
			if err != nil || rep.Total == 0 {
				t.Errorf("verify: %+v %v", rep, err)
			}
		})
	}
	t.Run("leftover layer", func(t *testing.T) {
		p := newPuller(t)
		p.s.begin()
		p.s.mkdir("var/images/overlay/" + base)
		if _, err := p.try("docker://" + reg.host() + "/x:1"); !errors.Is(err, ErrCorruptStore) || !strings.Contains(err.Error(), "take it away") {
			t.Error(err)
		}
	})
	t.Run("a file where the store should be", func(t *testing.T) {
		m := newMemFS()
		m.Add(&tar.Header{Name: "var", Typeflag: tar.TypeReg}, nil)
		s, err := OpenStore(m, Options{Root: "var/images"})
		if err == nil {
			err = s.Commit(context.Background())
		}
		if err == nil {
			t.Error("no error")
		}
	})
	for _, root := range []string{"", "/", "a/../b"} {
		if _, err := OpenStore(newMemFS(), Options{Root: root}); err == nil {
			t.Errorf("root %q passes", root)
		}
	}
}

// TestSignatures keeps what the source has, as the engine does.
func TestSignatures(t *testing.T) {
	needs(t, "skopeo")
	dir := scratch(t)
	im := smallImage(t, imageSpec{}, "f")
	lay := ociLayout(t, filepath.Join(dir, "lay"), []string{"r.example/x:1"}, im)
	dd := filepath.Join(dir, "dd")
	run(t, "skopeo", "copy", "-q", "oci:"+lay+":r.example/x:1", "dir:"+dd)
	sigs := []string{"\x88first signature", "\x88another one"}
	for i, s := range sigs {
		writeFile(t, fmt.Sprintf("%s/signature-%d", dd, i+1), []byte(s))
	}
	pullInto(t, dir, "dir:"+dd)
	if rep := verifyDir(t, dir); rep.Total > 0 {
		t.Error(rep.Faults)
	}
	// The library reads them back.
	root := filepath.Join(dir, "graph")
	st, err := storage.GetStore(storage.StoreOptions{GraphRoot: root, RunRoot: root + "-run", GraphDriverName: "overlay",
		GraphDriverOptions: []string{"overlay.imagestore=" + filepath.Join(dir, "store")}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Shutdown(true)
	ref, err := istorage.Transport.ParseStoreReference(st, im.config.Encoded())
	if err != nil {
		t.Fatal(err)
	}
	src, err := ref.NewImageSource(context.Background(), testSystem(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got, err := src.GetSignatures(context.Background(), nil)
	if err != nil || len(got) != 2 || string(got[0]) != sigs[0] || string(got[1]) != sigs[1] {
		t.Errorf("signatures %q %v", got, err)
	}
}
