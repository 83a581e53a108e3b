package integration

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// policyFile writes a policy.json: the default, and one requirement for a scope of registries if there is one.
func policyFile(t testing.TB, otherwise, scope, requirement string) string {
	t.Helper()
	p := fmt.Sprintf(`{"default": [{"type": %q}]`, otherwise)
	if scope != "" {
		p += fmt.Sprintf(`, "transports": {"docker": {%q: [%s]}}`, scope, requirement)
	}
	name := tempDir(t) + "/policy.json"
	check(t, os.WriteFile(name, []byte(p+"}"), 0o644))
	return name
}

// notLetIn is a bake that a policy must refuse at once: nothing is written, and the front of the registry, if there is
// one, is not asked for its layers.
func notLetIn(t testing.TB, env []string, f *front, args []string, words ...string) {
	t.Helper()
	if f != nil {
		f.takes("")
	}
	o := refusesBake(t, env, exitFailed, args, append(words, "policy")...)
	if strings.Contains(o.stderr, "copying the base") || strings.Contains(o.stderr, "trying again") {
		t.Errorf("something was written, or it was tried again\n%s", o)
	}
	if f == nil {
		return
	}
	for _, asked := range f.takes("/blobs/") {
		if slices.ContainsFunc(f.layers, func(d digest.Digest) bool { return strings.HasSuffix(asked, d.String()) }) {
			t.Errorf("a layer was asked for: %s\n%s", asked, o)
		}
	}
}

// TestPolicy is policy.json: where it is found, and that what it refuses never comes in.
func TestPolicy(t *testing.T) {
	requires(t, "root", "skopeo", "unshare")
	hello := testImages(t)["hello"]
	addr := registry(t)
	push(t, hello.oci(), addr+"/team/hello:v1")
	f := newFront(t, addr, nil)
	f.knows(t, hello)
	name := f.addr + "/team/hello:v1"
	args := []string{"--image", name, "--insecure-registry", f.addr}
	home := emptyHome(t, nil)
	accept, reject := policyFile(t, "insecureAcceptAnything", "", ""), policyFile(t, "reject", "", "")
	rejects, err := os.ReadFile(reject)
	check(t, err)
	rejecting := emptyHome(t, map[string]string{".config/containers/policy.json": string(rejects)})

	notLetIn(t, home, f, append(args, "--policy", reject), name, "rejected")
	notLetIn(t, home, f, append(args, "--policy", policyFile(t, "insecureAcceptAnything", f.addr+"/team", `{"type": "reject"}`)), name, "rejected")
	// One that is let in does not help another one.
	notLetIn(t, home, f, []string{"--image", hello.oci(), "--image", name, "--insecure-registry", f.addr,
		"--policy", policyFile(t, "insecureAcceptAnything", f.addr, `{"type": "reject"}`)}, name, "rejected")
	notLetIn(t, home, nil, []string{"--image", hello.oci(), "--policy", reject}, "oci:", "rejected")
	notLetIn(t, rejecting, f, args, name, "rejected")
	for _, args := range [][]string{
		append(args, "--policy", accept),
		append(args, "--policy", policyFile(t, "reject", f.addr+"/team", `{"type": "insecureAcceptAnything"}`)),
	} {
		o := reads(t, rejecting, args, hello)
		if strings.Contains(o.stderr, "warning") {
			t.Errorf("it warns\n%s", o)
		}
	}

	// A policy that cannot be read never lets anything in.
	broken := tempDir(t) + "/broken.json"
	for _, content := range []string{"", `{"default": [{"type": "insecureAcceptAnything"}], "defualt": []}`} {
		check(t, os.WriteFile(broken, []byte(content), 0o644))
		refusesBake(t, home, exitFailed, append(args, "--policy", broken), "policy", broken)
	}
	refusesBake(t, home, exitFailed, append(args, "--policy", broken+"/none"), broken+"/none")

	// A machine without any: in a mount namespace in which its folders are empty.
	t.Run("none", func(t *testing.T) {
		out := tempDir(t) + "/out.raw"
		o := command(t, home, "unshare", append([]string{"--mount", "sh", "-c",
			`for d in /etc/containers /usr/share/containers; do [ ! -d $d ] || mount -t tmpfs none $d || exit 99; done; exec "$@"`, "sh",
			productPath(t), "build", "-q", "--base", smallBase(t), "--output", out}, args...)...)
		if o.code != exitDone {
			t.Fatalf("%s", o)
		}
		for _, word := range []string{"warning", "policy.json", name, "without any check of who made it"} {
			if !strings.Contains(o.stderr, word) {
				t.Errorf("it does not say %q\n%s", word, o)
			}
		}
		mnt := mount(t, out, smallRoot, "ro")
		defer unmount(t, mnt)
		compareStore(t, mnt+defaultStore, hello)
	})
}

// gpg makes a key and gives its fingerprint and the file of its public part.
func gpgKey(t testing.TB, home, name string) (fingerprint, public string) {
	t.Helper()
	env := []string{"GNUPGHOME=" + home}
	do := func(args ...string) string {
		o := command(t, env, "gpg", append([]string{"--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""}, args...)...)
		if o.code != 0 {
			t.Fatalf("%s", o)
		}
		return o.stdout
	}
	do("--quick-gen-key", name, "rsa2048", "sign", "never")
	for _, line := range strings.Split(do("--with-colons", "--list-keys", "="+name), "\n") {
		if fields := strings.Split(line, ":"); fields[0] == "fpr" && fingerprint == "" {
			fingerprint = fields[9]
		}
	}
	public = filepath.Join(home, fingerprint+".gpg")
	do("--output", public, "--export", fingerprint)
	return fingerprint, public
}

// TestSignedByGPG holds simple signing, as skopeo signs, against policies.
func TestSignedByGPG(t *testing.T) {
	requires(t, "root", "skopeo", "gpg", "gpg-agent")
	hello, other := testImages(t)["hello"], someImage(t, "localhost/other:1", 4, 1000)
	addr := registry(t)
	f := newFront(t, addr, nil)
	f.knows(t, hello, other)
	gnupg := tempDir(t)
	check(t, os.Chmod(gnupg, 0o700))
	t.Cleanup(func() { command(t, []string{"GNUPGHOME=" + gnupg}, "gpgconf", "--kill", "gpg-agent") })
	ours, oursFile := gpgKey(t, gnupg, "Ours <ours@example.com>")
	theirs, theirsFile := gpgKey(t, gnupg, "Theirs <theirs@example.com>")

	// What is signed is a name, so it is pushed by the name that the bake uses.
	lookaside := tempDir(t)
	registries := fmt.Sprintf("docker:\n  %q:\n    lookaside: file://%s\n", f.addr, lookaside)
	home := emptyHome(t, map[string]string{".config/containers/registries.d/test.yaml": registries})
	dir := tempDir(t)
	check(t, os.WriteFile(dir+"/test.yaml", []byte(registries), 0o644))
	signed := func(i image, name, key string) digest.Digest {
		t.Helper()
		args := []string{"--registries.d", dir, "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "--digestfile", dir + "/digest", i.oci(), "docker://" + f.addr + "/" + name}
		if key != "" {
			args = append(args, "--sign-by", key)
		}
		if o := command(t, []string{"GNUPGHOME=" + gnupg}, "skopeo", args...); o.code != 0 {
			t.Fatalf("%s", o)
		}
		d, err := os.ReadFile(dir + "/digest")
		check(t, err)
		return digest.Digest(strings.TrimSpace(string(d)))
	}
	helloDigest := signed(hello, "team/hello:v1", ours)
	signed(hello, "team/theirs:v1", theirs)
	signed(other, "team/unsigned:v1", "")
	// A signature of one image beside another one, and beside its own image under another name.
	otherDigest := signed(other, "team/moved:v1", "")
	signed(hello, "elsewhere/hello:v1", "")
	place := func(repo string, d digest.Digest) {
		to := fmt.Sprintf("%s/%s@sha256=%s", lookaside, repo, d.Encoded())
		check(t, os.MkdirAll(filepath.Dir(to), 0o755))
		run(t, "cp", "-r", fmt.Sprintf("%s/team/hello@sha256=%s", lookaside, helloDigest.Encoded()), to)
	}
	place("team/moved", otherDigest)
	place("elsewhere/hello", helloDigest)

	by := func(key string) string {
		return policyFile(t, "reject", f.addr, fmt.Sprintf(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": %q}`, key))
	}
	bake := func(policy string, refs ...string) []string {
		args := []string{"--insecure-registry", f.addr, "--policy", policy}
		for _, r := range refs {
			args = append(args, "--image", f.addr+"/"+r)
		}
		return args
	}
	reads(t, home, bake(by(oursFile), "team/hello:v1"), hello)
	reads(t, home, bake(by(oursFile), "team/hello@"+helloDigest.String()), hello)
	reads(t, home, bake(by(theirsFile), "team/theirs:v1"), hello)
	for _, c := range []struct{ name, key, word string }{
		{"team/hello:v1", theirsFile, "signature|key"},
		{"team/theirs:v1", oursFile, "signature|key"},
		{"team/unsigned:v1", oursFile, "signature was required, but no signature exists"},
		{"team/moved:v1", oursFile, "digest"},
		{"elsewhere/hello:v1", oursFile, "team/hello"},
		{"team/hello:v1", dir + "/none", dir + "/none"},
	} {
		notLetIn(t, home, f, bake(by(c.key), c.name), f.addr+"/"+c.name, c.word)
	}
	notLetIn(t, home, f, bake(by(oursFile), "team/hello:v1", "team/unsigned:v1"), f.addr+"/team/unsigned:v1")
	notLetIn(t, emptyHome(t, nil), f, bake(by(oursFile), "team/hello:v1"), f.addr+"/team/hello:v1", "no signature exists")

	// What the cache knows is judged anew, by the policy of the bake.
	t.Run("cache", func(t *testing.T) {
		cache := []string{"--cache", tempDir(t) + "/cache"}
		reads(t, home, append(cache, bake(by(oursFile), "team/hello:v1")...), hello)
		f.connections()
		offline := append(cache, "--offline")
		reads(t, home, append(offline, bake(by(oursFile), "team/hello:v1")...), hello)
		notLetIn(t, home, f, append(offline, bake(by(theirsFile), "team/hello:v1")...), f.addr+"/team/hello:v1")
		if n := f.connections(); n > 0 {
			t.Errorf("%d connections", n)
		}
		// One that came in before it was signed is asked for again.
		unsigned := bake(by(oursFile), "team/late:v1")
		signed(hello, "team/late:v1", "")
		reads(t, home, append(cache, bake(policyFile(t, "insecureAcceptAnything", "", ""), "team/late:v1")...), hello)
		notLetIn(t, home, f, append(cache, unsigned...), f.addr+"/team/late:v1")
		signed(hello, "team/late:v1", ours)
		reads(t, home, append(cache, unsigned...), hello)
	})
	// A lock says which image it is, and the policy still who must have made it, by the reference's own name.
	t.Run("lock", func(t *testing.T) {
		lock := []string{"--lock", tempDir(t) + "/lock.json"}
		reads(t, home, append(lock, bake(by(oursFile), "team/hello:v1")...), hello)
		locked := append(lock, "--locked")
		reads(t, home, append(locked, bake(by(oursFile), "team/hello:v1")...), hello)
		notLetIn(t, home, f, append(locked, bake(by(theirsFile), "team/hello:v1")...), f.addr+"/team/hello:v1")
		ofTag := policyFile(t, "reject", f.addr+"/team/hello:v1", fmt.Sprintf(`{"type": "signedBy", "keyType": "GPGKeys", "keyPath": %q, "signedIdentity": {"type": "matchExact"}}`, oursFile))
		reads(t, home, bake(ofTag, "team/hello:v1"), hello)
		reads(t, home, append(locked, bake(ofTag, "team/hello:v1")...), hello)
		ofTag = policyFile(t, "insecureAcceptAnything", f.addr+"/team/hello:v1", `{"type": "reject"}`)
		notLetIn(t, home, f, append(locked, bake(ofTag, "team/hello:v1")...), f.addr+"/team/hello:v1")
	})
}

// sigstoreKey gives a key and the file of its public part.
func sigstoreKey(t testing.TB) (*ecdsa.PrivateKey, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	check(t, err)
	name := tempDir(t) + "/cosign.pub"
	check(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644))
	return key, name
}

// cosign signs an image in a registry without TLS, in the format of cosign's: an image by the tag sha256-DIGEST.sig
// whose layers are what was signed, with the signatures in annotations. The signature says that digest d has the name.
func cosign(t testing.TB, key *ecdsa.PrivateKey, registry, repo string, of, d digest.Digest, name string) {
	t.Helper()
	payload := []byte(fmt.Sprintf(`{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, name, d))
	sum := sha256.Sum256(payload)
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	check(t, err)
	config := []byte(fmt.Sprintf(`{"architecture":"","os":"","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, digest.FromBytes(payload)))
	m := imgv1.Manifest{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgv1.MediaTypeImageManifest,
		Config: imgv1.Descriptor{MediaType: imgv1.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers: []imgv1.Descriptor{{MediaType: "application/vnd.dev.cosign.simplesigning.v1+json", Digest: digest.FromBytes(payload), Size: int64(len(payload)),
			Annotations: map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)}}}}
	raw, err := json.Marshal(m)
	check(t, err)
	upload(t, registry, repo, "sha256-"+of.Encoded()+".sig", m.MediaType, raw, config, payload)
}

// upload puts a manifest and its blobs into a registry without TLS.
func upload(t testing.TB, registry, repo, tag, mediaType string, manifest []byte, blobs ...[]byte) {
	t.Helper()
	do := func(method, url, kind string, body []byte) *http.Response {
		req, err := http.NewRequest(method, url, bytes.NewReader(body))
		check(t, err)
		req.Header.Set("Content-Type", kind)
		resp, err := http.DefaultClient.Do(req)
		check(t, err)
		said, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s %s: %s\n%s", method, url, resp.Status, said)
		}
		return resp
	}
	base := "http://" + registry + "/v2/" + repo
	for _, b := range blobs {
		at, err := do(http.MethodPost, base+"/blobs/uploads/", "", nil).Location()
		check(t, err)
		q := at.Query()
		q.Set("digest", digest.FromBytes(b).String())
		at.RawQuery = q.Encode()
		do(http.MethodPut, at.String(), "application/octet-stream", b)
	}
	do(http.MethodPut, base+"/manifests/"+tag, mediaType, manifest)
}

// TestSignedBySigstore holds signatures in cosign's format against policies.
func TestSignedBySigstore(t *testing.T) {
	requires(t, "root", "skopeo")
	hello, other := testImages(t)["hello"], someImage(t, "localhost/other:1", 5, 1000)
	addr := registry(t)
	f := newFront(t, addr, nil)
	f.knows(t, hello, other)
	ours, oursFile := sigstoreKey(t)
	theirs, theirsFile := sigstoreKey(t)
	d := push(t, hello.oci(), addr+"/team/hello:v1")
	cosign(t, ours, addr, "team/hello", d, d, f.addr+"/team/hello")
	push(t, hello.oci(), addr+"/team/theirs:v1")
	cosign(t, theirs, addr, "team/theirs", d, d, f.addr+"/team/theirs")
	otherDigest := push(t, other.oci(), addr+"/team/unsigned:v1")
	push(t, other.oci(), addr+"/team/moved:v1")
	cosign(t, ours, addr, "team/moved", otherDigest, d, f.addr+"/team/moved")
	push(t, hello.oci(), addr+"/elsewhere/hello:v1")
	cosign(t, ours, addr, "elsewhere/hello", d, d, f.addr+"/team/hello")
	push(t, hello.oci(), addr+"/team/exact:v1")
	cosign(t, ours, addr, "team/exact", d, d, f.addr+"/team/exact:v1")
	push(t, hello.oci(), addr+"/team/exact:v2")

	home := emptyHome(t, map[string]string{".config/containers/registries.d/test.yaml": fmt.Sprintf("docker:\n  %q:\n    use-sigstore-attachments: true\n", f.addr)})
	by := func(key, identity string) string {
		return policyFile(t, "reject", f.addr, fmt.Sprintf(`{"type": "sigstoreSigned", "keyPath": %q, "signedIdentity": {"type": %q}}`, key, identity))
	}
	bake := func(policy string, refs ...string) []string {
		args := []string{"--insecure-registry", f.addr, "--policy", policy}
		for _, r := range refs {
			args = append(args, "--image", f.addr+"/"+r)
		}
		return args
	}
	reads(t, home, bake(by(oursFile, "matchRepository"), "team/hello:v1"), hello)
	reads(t, home, bake(by(oursFile, "matchRepository"), "team/hello@"+d.String()), hello)
	reads(t, home, bake(by(theirsFile, "matchRepository"), "team/theirs:v1"), hello)
	reads(t, home, bake(by(oursFile, "matchRepoDigestOrExact"), "team/exact:v1"), hello)
	for _, c := range []struct{ name, key, identity, word string }{
		{"team/hello:v1", theirsFile, "matchRepository", "signature"},
		{"team/theirs:v1", oursFile, "matchRepository", "signature"},
		{"team/unsigned:v1", oursFile, "matchRepository", "no signature exists"},
		{"team/moved:v1", oursFile, "matchRepository", "digest"},
		{"elsewhere/hello:v1", oursFile, "matchRepository", "team/hello"},
		{"team/exact:v2", oursFile, "matchExact", "team/exact:v1"},
	} {
		notLetIn(t, home, f, bake(by(c.key, c.identity), c.name), f.addr+"/"+c.name, c.word)
	}
	notLetIn(t, home, f, bake(by(oursFile, "matchRepository"), "team/hello:v1", "team/unsigned:v1"), f.addr+"/team/unsigned:v1")
	// Without a word in registries.d no one looks for them.
	notLetIn(t, emptyHome(t, nil), f, bake(by(oursFile, "matchRepository"), "team/hello:v1"), f.addr+"/team/hello:v1", "no signature exists")

	cache := []string{"--cache", tempDir(t) + "/cache"}
	reads(t, home, append(cache, bake(by(oursFile, "matchRepository"), "team/hello:v1")...), hello)
	f.connections()
	offline := slices.Concat(cache, []string{"--offline"})
	reads(t, home, append(offline, bake(by(oursFile, "matchRepository"), "team/hello:v1")...), hello)
	notLetIn(t, home, f, append(offline, bake(by(theirsFile, "matchRepository"), "team/hello:v1")...), f.addr+"/team/hello:v1")
	if n := f.connections(); n > 0 {
		t.Errorf("%d connections", n)
	}
}
