package storeseed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/sigstore"
	"go.podman.io/image/v5/types"
)

// dockerRegistry runs Debian's docker-registry and returns its host.
func dockerRegistry(t testing.TB) string {
	t.Helper()
	needs(t, "docker-registry")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	writeFile(t, dir+"/config.yml", fmt.Appendf(nil, "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s/data\nhttp:\n  addr: %s\nlog:\n  level: error\n", dir, host))
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
	for range 200 {
		if res, err := http.Get("http://" + host + "/v2/"); err == nil {
			res.Body.Close()
			return host
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("docker-registry does not answer: %s", out.String())
	return ""
}

// TestZstdChunked takes layers as skopeo compresses them, from a registry and from a layout.
func TestZstdChunked(t *testing.T) {
	needs(t, "skopeo", "docker-registry")
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	dir := scratch(t)
	im := buildImage(t, imageSpec{compress: "none"}, layerTar(t, fileE("base", strings.Repeat("compressible ", 100_000)), symE("link", "base"), dirE("d", 0o755), fileE("d/x", noise(r, 300_000))), layerTar(t, fileE("top", "1")))
	lay := ociLayout(t, filepath.Join(dir, "lay"), []string{"r.example/x:1"}, im)
	host := dockerRegistry(t)
	for _, format := range []string{"zstd:chunked", "zstd", "gzip"} {
		chunked := filepath.Join(dir, strings.ReplaceAll(format, ":", "-"))
		run(t, "skopeo", "copy", "-q", "--dest-compress", "--dest-compress-format", format, "oci:"+lay+":r.example/x:1", "dir:"+chunked)
		name := strings.ReplaceAll(format, ":", "-")
		run(t, "skopeo", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests", "dir:"+chunked, "docker://"+host+"/x:"+name)
		man, err := os.ReadFile(chunked + "/manifest.json")
		if err != nil {
			t.Fatal(err)
		}
		if is := bytes.Contains(man, []byte("io.containers.zstd-chunked.manifest")) || bytes.Contains(man, []byte("io.github.containers.zstd-chunked.manifest")); is != (format == "zstd:chunked") {
			t.Fatalf("%s: skopeo made %s", format, man)
		}
		for _, ref := range []string{"dir:" + chunked, "docker://" + host + "/x:" + name} {
			p, res, err := ahead{}.pull(t, ref)
			if err != nil {
				t.Fatalf("%s: %v", ref, err)
			}
			if res[0].ManifestDigest != digest.FromBytes(man) {
				t.Errorf("%s: the manifest is now %s", ref, res[0].ManifestDigest)
			}
			for i, l := range res[0].Layers {
				if l.DiffID != im.diffIDs[i] || !l.New {
					t.Errorf("%s: layer %+v", ref, l)
				}
			}
			p.commit()
			if n := p.fs.nodes["var/images/overlay/"+res[0].Layers[0].ID+"/diff/d/x"]; n == nil || len(n.data) != 300_000 {
				t.Errorf("%s: a file is missing", ref)
			}
		}
	}
}

// TestForeignLayers: a layer with URLs comes from there, as with podman, and from the registry only if no URL is of
// a kind that can be asked.
func TestForeignLayers(t *testing.T) {
	var asked int
	files := map[string][]byte{}
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked++
		data, ok := files[q.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Write(data)
	}))
	defer away.Close()
	for _, tc := range []struct {
		name    string
		url     string
		mime    string
		docker  bool
		there   bool // the registry has it
		ok      bool
		offsite int
	}{
		{"from its URL", away.URL + "/good", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false, false, true, 1},
		{"Docker", away.URL + "/good", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true, false, true, 1},
		{"no URL works", away.URL + "/bad", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false, true, false, 1},
		{"wrong content", away.URL + "/wrong", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false, true, false, 1},
		{"a URL that no one asks", "ftp://192.0.2.1/x", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false, true, true, 0},
		{"without URLs", "", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", false, true, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := buildImage(t, imageSpec{docker: tc.docker, edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) {
				m.Layers[0].MediaType = tc.mime
				if tc.url != "" {
					m.Layers[0].URLs = []string{tc.url}
				}
			}}, layerTar(t, fileE("far", "away")), layerTar(t, fileE("near", "by")))
			reg := newBadRegistry(t)
			ref := reg.push("x:1", im)
			d := im.layers[0]
			files["/good"] = im.blobs[d]
			files["/wrong"] = bytes.Repeat([]byte("x"), len(im.blobs[d]))
			if !tc.there {
				delete(reg.blobs, d)
			}
			a := ahead{cache: openCache(t, t.TempDir(), 0)}
			asked = 0
			p, res, err := a.pull(t, ref)
			if (err == nil) != tc.ok || asked != tc.offsite {
				t.Fatalf("%v, the URL was asked for %d times", err, asked)
			}
			if err != nil {
				if !strings.Contains(err.Error(), d.String()) {
					t.Errorf("the layer is not named: %v", err)
				}
				return
			}
			if res[0].ManifestDigest != im.manifest {
				t.Error("the manifest was changed")
			}
			p.commit()
			reg.reset()
			a.edit = func(o *PullOptions) { o.Offline = true }
			if _, _, err := a.pull(t, ref); err != nil || asked != tc.offsite {
				t.Errorf("offline: %v, asked %d times", err, asked)
			}
		})
	}
}

// TestRefusedFromRegistry refuses by name what is no image before anything is written or a layer is fetched.
func TestRefusedFromRegistry(t *testing.T) {
	reg := newBadRegistry(t)
	for i, tc := range []struct {
		config, layer string
		want          string
	}{
		{imgspecv1.MediaTypeImageConfig, "application/vnd.dev.cosign.simplesigning.v1+json", `layer 1 is of type "application/vnd.dev.cosign.simplesigning.v1+json", not a tar`},
		{"application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip", `artifact of type "application/vnd.cncf.helm.config.v1+json"`},
		{"application/vnd.oci.empty.v1+json", "application/vnd.oci.empty.v1+json", `artifact of type "application/vnd.oci.empty.v1+json"`},
		{imgspecv1.MediaTypeImageConfig, "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "layer 1 is encrypted"},
		{imgspecv1.MediaTypeImageConfig, "application/vnd.oci.image.layer.v1.tar+zstd+encrypted", "layer 1 is encrypted"},
	} {
		im := smallImage(t, imageSpec{edit: func(_ *imgspecv1.Image, m *imgspecv1.Manifest) {
			m.Config.MediaType, m.Layers[0].MediaType = tc.config, tc.layer
		}}, "f")
		ref := reg.push(fmt.Sprintf("x:%d", i), im)
		a := ahead{cache: openCache(t, t.TempDir(), 0)}
		p, _, err := a.pull(t, ref)
		if !errors.Is(err, ErrUnsupportedImage) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), reg.host()+"/x:") {
			t.Errorf("got %v, want %s", err, tc.want)
		}
		if len(p.fs.nodes) != 1 || reg.count("/blobs/"+im.layers[0].String()) > 0 {
			t.Error("something was written or fetched")
		}
		// A tag of what was refused is not remembered.
		if _, _, err := a.cache.Reference(strings.TrimPrefix(ref, "docker://")); err == nil {
			t.Error("the cache knows the tag")
		}
	}
}

// TestSignedFromCache: a policy is kept to, and signatures are kept, whether they come from a registry or from the
// cache.
func TestSignedFromCache(t *testing.T) {
	needs(t, "docker-registry", "gpg")
	ctx := context.Background()
	host := dockerRegistry(t)
	dir := t.TempDir()
	im := smallImage(t, imageSpec{}, "signed")
	lay := ociLayout(t, filepath.Join(dir, "lay"), []string{"x:1"}, im)

	// A sigstore key pair and a GPG key, and another one of each that signed nothing.
	pass := []byte("secret")
	for _, n := range []string{"ours", "other"} {
		keys, err := sigstore.GenerateKeyPair(pass)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, dir+"/"+n+".key", keys.PrivateKey)
		writeFile(t, dir+"/"+n+".pub", keys.PublicKey)
	}
	gpg := []string{"GNUPGHOME=" + dir + "/gpg"}
	os.Mkdir(dir+"/gpg", 0o700)
	t.Cleanup(func() { tryRun(gpg, "gpgconf", "--kill", "all") })
	for _, n := range []string{"ours", "other"} {
		runEnv(t, gpg, "gpg", "--batch", "--quiet", "--passphrase", "", "--quick-gen-key", n+"@example.com", "rsa2048", "sign", "never")
		runEnv(t, gpg, "gpg", "--batch", "--quiet", "--output", dir+"/"+n+".gpg", "--export", n+"@example.com")
	}
	sys := testSystem(t)
	writeFile(t, sys.RegistriesDirPath+"/x.yaml", []byte("docker:\n  "+host+":\n    use-sigstore-attachments: true\n    lookaside: file://"+dir+"/lookaside\n"))
	src, _, err := ParseReference(sys, "oci:"+lay+":x:1")
	if err != nil {
		t.Fatal(err)
	}
	dst, _, err := ParseReference(sys, "docker://"+host+"/x:1")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := signature.NewPolicyContext(anyone())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := copy.Image(ctx, pc, dst, src, &copy.Options{SignBySigstorePrivateKeyFile: dir + "/ours.key", SignSigstorePrivateKeyPassphrase: pass, DestinationCtx: sys}); err != nil {
		t.Fatal(err)
	}
	man := filepath.Join(dir, "manifest.json")
	writeFile(t, man, im.blobs[im.manifest])
	sigDir := filepath.Join(dir, "lookaside", "x@sha256="+im.manifest.Encoded())
	os.MkdirAll(sigDir, 0o755)
	runEnv(t, gpg, "skopeo", "standalone-sign", man, host+"/x:1", "ours@example.com", "-o", sigDir+"/signature-1")

	policy := func(kind, key string) []byte {
		req := map[string]string{
			"sigstore": `{"type":"sigstoreSigned","keyPath":"` + dir + "/" + key + `.pub","signedIdentity":{"type":"matchRepository"}}`,
			"gpg":      `{"type":"signedBy","keyType":"GPGKeys","keyPath":"` + dir + "/" + key + `.gpg"}`,
		}[kind]
		return []byte(`{"default":[{"type":"reject"}],"transports":{"docker":{"` + host + `":[` + req + `]}}}`)
	}
	cache := openCache(t, dir+"/cache", 0)
	var dumps []string
	for _, offline := range []bool{false, true} {
		for _, kind := range []string{"sigstore", "gpg"} {
			for _, key := range []string{"ours", "other"} {
				for _, ref := range []string{"docker://" + host + "/x:1", "docker://" + host + "/x:1@" + im.manifest.String()} {
					if kind == "gpg" && strings.Contains(ref, "@") {
						continue // made for the tag
					}
					p := newPuller(t)
					p.sys = &types.SystemContext{}
					*p.sys = *sys
					writeFile(t, sys.SignaturePolicyPath, policy(kind, key))
					res, err := ahead{cache: cache, edit: func(o *PullOptions) { o.Offline = offline }}.into(p, ref)
					if (err == nil) != (key == "ours") {
						t.Errorf("offline %v, %s, %s key, %s: %v", offline, kind, key, ref, err)
					}
					if err != nil {
						if len(p.fs.nodes) != 1 {
							t.Error("a refused image left something")
						}
						continue
					}
					p.commit()
					sigs := p.fs.nodes["var/images/overlay-images/"+res[0].ID+"/"+bigDataFile("signature-"+im.manifest.Encoded())]
					if sigs == nil || !bytes.Contains(sigs.data, []byte("\x00sigstore-json\n")) || bytes.HasPrefix(sigs.data, []byte{0}) {
						t.Errorf("signatures are not kept: %+v", sigs)
					}
					if strings.HasSuffix(ref, ":1") {
						dumps = append(dumps, p.fs.dump())
					}
				}
			}
		}
	}
	for _, d := range dumps {
		if d != dumps[0] {
			t.Error("other bytes come from the cache")
		}
	}
}
