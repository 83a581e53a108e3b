package attest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	digest "github.com/opencontainers/go-digest"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"google.golang.org/protobuf/encoding/protojson"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// openssl runs it with files in dir as its working folder.
func openssl(t testing.TB, dir string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("missing: openssl")
		}
		t.Skip("missing: openssl")
	}
	cmd := exec.Command("openssl", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// cosignKey is a key as `cosign generate-key-pair` writes it.
func cosignKey(t testing.TB, pkcs8, password []byte, kind string) []byte {
	t.Helper()
	block, _ := pem.Decode(pkcs8)
	box, err := encrypted.Encrypt(block.Bytes, password)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: box})
}

// pae is what an envelope's signature is over, as the DSSE specification says it.
func pae(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// TestSignatures has openssl verify what each kind of key signs.
func TestSignatures(t *testing.T) {
	content := make([]byte, 3<<20)
	rand.Read(content)
	payload := []byte(`{"_type":"https://in-toto.io/Statement/v1","x":"<ü&"}`)
	for _, c := range []struct {
		name string
		make []string
	}{
		{"P-256", []string{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}},
		{"P-384", []string{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"}},
		{"P-521", []string{"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"}},
		{"RSA", []string{"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}},
		{"Ed25519", []string{"genpkey", "-algorithm", "ED25519"}},
		{"SEC 1", []string{"ecparam", "-name", "prime256v1", "-genkey"}},
		{"PKCS 1", []string{"genrsa", "-traditional", "3072"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			openssl(t, dir, slices.Insert(slices.Clone(c.make), 1, "-out", "key")...)
			openssl(t, dir, "pkey", "-in", "key", "-pubout", "-out", "pub")
			write := func(name string, b []byte) { check(t, os.WriteFile(filepath.Join(dir, name), b, 0o600)) }
			text, err := os.ReadFile(filepath.Join(dir, "key"))
			check(t, err)
			key, err := ParseKey(text, nil)
			check(t, err)
			pub, err := key.PublicKey()
			check(t, err)
			if want, err := os.ReadFile(filepath.Join(dir, "pub")); err != nil || !bytes.Equal(pub, want) {
				t.Errorf("its public half is\n%s, and openssl says\n%s", pub, want)
			}

			env, err := key.Envelope(PayloadType, payload)
			check(t, err)
			var e struct {
				PayloadType, Payload string
				Signatures           []struct{ Sig string }
			}
			check(t, json.Unmarshal(env, &e))
			held, err := base64.StdEncoding.DecodeString(e.Payload)
			check(t, err)
			if !bytes.Equal(held, payload) || e.PayloadType != PayloadType || len(e.Signatures) != 1 || bytes.Count(env, []byte("\n")) != 1 {
				t.Errorf("the envelope is %s", env)
			}
			sig, err := base64.StdEncoding.DecodeString(e.Signatures[0].Sig)
			check(t, err)
			write("pae", pae(PayloadType, payload))
			write("sig", sig)
			if c.name == "Ed25519" {
				openssl(t, dir, "pkeyutl", "-verify", "-pubin", "-inkey", "pub", "-rawin", "-in", "pae", "-sigfile", "sig")
			} else {
				openssl(t, dir, "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "pae")
			}
			if again, err := key.Envelope(PayloadType, payload); err != nil || !bytes.Equal(again, env) {
				t.Errorf("signed again it is another: %v", err)
			}

			blob, err := key.SignDigest(digest.FromBytes(content))
			if c.name == "Ed25519" {
				if !errors.Is(err, ErrWhole) || key.SignsDisks() {
					t.Errorf("a disk signed with it: %v", err)
				}
				return
			}
			check(t, err)
			sig, err = base64.StdEncoding.DecodeString(string(blob))
			check(t, err)
			write("blob", content)
			write("sig", sig)
			openssl(t, dir, "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "blob")
			if again, err := key.SignDigest(digest.FromBytes(content)); err != nil || !bytes.Equal(again, blob) {
				t.Errorf("signed again it is another: %v", err)
			}
		})
	}
}

func TestParseKey(t *testing.T) {
	dir := t.TempDir()
	openssl(t, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "plain")
	openssl(t, dir, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-out", "short")
	openssl(t, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp224r1", "-out", "curve")
	openssl(t, dir, "genpkey", "-algorithm", "X25519", "-out", "exchange")
	openssl(t, dir, "pkey", "-in", "plain", "-pubout", "-out", "public")
	openssl(t, dir, "pkcs8", "-topk8", "-in", "plain", "-passout", "pass:x", "-out", "encrypted")
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		check(t, err)
		return b
	}
	const sigstore, old = "ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"
	sealed := cosignKey(t, file("plain"), []byte("secret"), sigstore)
	for _, c := range []struct {
		name           string
		text, password []byte
		err            error
		says           string
	}{
		{"plain", file("plain"), nil, nil, ""},
		{"plain, with a password that it does not need", file("plain"), []byte("x"), nil, ""},
		{"of cosign", sealed, []byte("secret"), nil, ""},
		{"of an older cosign", cosignKey(t, file("plain"), []byte("secret"), old), []byte("secret"), nil, ""},
		{"of cosign, with an empty password", cosignKey(t, file("plain"), nil, sigstore), []byte{}, nil, ""},
		{"after other text", append([]byte("a line\n"), file("plain")...), nil, nil, ""},
		{"no password", sealed, nil, ErrPassword, "no password is given"},
		{"wrong password", sealed, []byte("Secret"), ErrPassword, "decryption failed"},
		{"sealed, and no box", pem.EncodeToMemory(&pem.Block{Type: sigstore, Bytes: []byte("{}")}), []byte("x"), ErrPassword, ""},
		{"sealed, and no key in it", cosignKey(t, pem.EncodeToMemory(&pem.Block{Type: "X", Bytes: []byte("x")}), []byte("x"), sigstore), []byte("x"), ErrKey, ""},
		{"short RSA", file("short"), nil, ErrKey, "1024 bits"},
		{"curve", file("curve"), nil, ErrKey, "P-224"},
		{"for key exchange", file("exchange"), nil, ErrKey, ""},
		{"public", file("public"), nil, ErrKey, `"PUBLIC KEY"`},
		{"encrypted PKCS 8", file("encrypted"), []byte("x"), ErrKey, "import-key-pair"},
		{"empty", nil, nil, ErrKey, "no private key"},
		{"no PEM", []byte("hello"), nil, ErrKey, "no private key"},
		{"large", make([]byte, MaxKey+1), nil, ErrKey, "bytes"},
	} {
		key, err := ParseKey(c.text, c.password)
		if !errors.Is(err, c.err) || c.err == nil && key == nil {
			t.Errorf("%s: %v", c.name, err)
		} else if c.says != "" && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: it says %q and not %q", c.name, err, c.says)
		}
	}
	key, err := ParseKey(file("plain"), nil)
	check(t, err)
	for _, d := range []digest.Digest{"", "sha256:12", "sha512:" + digest.Digest(strings.Repeat("0", 128))} {
		if _, err := key.SignDigest(d); err == nil {
			t.Errorf("the digest %q was signed", d)
		}
	}
}

// TestCosign reads a key that cosign made, and has cosign verify what it signs where cosign is installed.
func TestCosign(t *testing.T) {
	text, err := os.ReadFile("testdata/cosign.key")
	check(t, err)
	want, err := os.ReadFile("testdata/cosign.pub")
	check(t, err)
	key, err := ParseKey(text, []byte("s3cret"))
	check(t, err)
	if pub, err := key.PublicKey(); err != nil || !bytes.Equal(pub, want) {
		t.Errorf("its public half is %s, and cosign says %s", pub, want)
	}
	if _, err := exec.LookPath("cosign"); err != nil {
		t.Skip("cosign is not installed; it is in no distribution, and takes minutes to build")
	}
	dir := t.TempDir()
	content := []byte("a disk")
	subject := []Resource{{Name: "disk", Digest: digest.FromBytes(content)}}
	b := build
	b.Subjects = subject
	provenance, err := Provenance(b)
	check(t, err)
	spdx, err := Document(subject, SPDXType, []byte(`{"spdxVersion":"SPDX-2.3"}`))
	check(t, err)
	cyclonedx, err := Document(subject, CycloneDXType, []byte(`{"bomFormat":"CycloneDX","specVersion":"1.6"}`))
	check(t, err)
	sig, err := key.SignDigest(subject[0].Digest)
	check(t, err)
	check(t, os.WriteFile(dir+"/disk", content, 0o644))
	check(t, os.WriteFile(dir+"/disk.sig", sig, 0o644))
	cosign := func(args ...string) error {
		out, err := exec.Command("cosign", append(args, dir+"/disk")...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("cosign %s: %w\n%s", strings.Join(args, " "), err, out)
		}
		return err
	}
	all := [][]string{{"verify-blob", "--key", "testdata/cosign.pub", "--signature", dir + "/disk.sig", "--insecure-ignore-tlog=true"}}
	for kind, statement := range map[string][]byte{"slsaprovenance1": provenance, "spdxjson": spdx, "cyclonedx": cyclonedx} {
		env, err := key.Envelope(PayloadType, statement)
		check(t, err)
		check(t, os.WriteFile(dir+"/"+kind, env, 0o644))
		all = append(all, []string{"verify-blob-attestation", "--key", "testdata/cosign.pub", "--signature", dir + "/" + kind, "--type", kind, "--insecure-ignore-tlog=true"})
	}
	for _, args := range all {
		check(t, cosign(args...))
	}
	check(t, os.WriteFile(dir+"/disk", []byte("another"), 0o644))
	for _, args := range all {
		if cosign(args...) == nil {
			t.Errorf("%q takes another disk", args)
		}
	}
}

var build = Build{
	Subjects:   []Resource{{Name: "node.qcow2", Digest: digest.FromString("disk")}},
	Parameters: map[string]any{"base": "debian.qcow2", "images": []string{"registry.k8s.io/pause:3.10", "x\xff<&"}, "size": map[string]string{"mode": "auto"}, "force": true, "n": 3},
	Materials: []Resource{
		{URI: "file:debian.qcow2", Digest: digest.FromString("base")},
		{URI: "pkg:oci/pause@sha256:00", Name: "registry.k8s.io/pause:3.10", Digest: digest.FromString("image"), Annotations: map[string]any{"config": "sha256:1"}},
	},
	Version: "1.0",
}

// TestProvenance holds a statement against in-toto's own types, which refuse fields that they do not know, and what
// they ask for.
func TestProvenance(t *testing.T) {
	when := time.Date(2026, 11, 25, 1, 2, 3, 0, time.UTC)
	b := build
	b.Finished = &when
	raw, err := Provenance(b)
	check(t, err)
	var s intoto.Statement
	check(t, protojson.Unmarshal(raw, &s))
	check(t, s.Validate())
	if s.PredicateType != ProvenanceType {
		t.Errorf("its predicate is %s", s.PredicateType)
	}
	inner, err := protojson.Marshal(s.Predicate)
	check(t, err)
	var p slsa.Provenance
	check(t, protojson.Unmarshal(inner, &p))
	check(t, p.Validate())

	var got map[string]any
	check(t, json.Unmarshal(raw, &got))
	want := map[string]any{
		"_type":         "https://in-toto.io/Statement/v1",
		"subject":       []any{map[string]any{"name": "node.qcow2", "digest": map[string]any{"sha256": digest.FromString("disk").Encoded()}}},
		"predicateType": "https://slsa.dev/provenance/v1",
		"predicate": map[string]any{
			"buildDefinition": map[string]any{
				"buildType": BuildType,
				"externalParameters": map[string]any{"base": "debian.qcow2", "images": []any{"registry.k8s.io/pause:3.10", "x\uFFFD<&"}, "size": map[string]any{"mode": "auto"},
					"force": true, "n": 3.0},
				"resolvedDependencies": []any{
					map[string]any{"uri": "file:debian.qcow2", "digest": map[string]any{"sha256": digest.FromString("base").Encoded()}},
					map[string]any{"uri": "pkg:oci/pause@sha256:00", "name": "registry.k8s.io/pause:3.10", "digest": map[string]any{"sha256": digest.FromString("image").Encoded()},
						"annotations": map[string]any{"config": "sha256:1"}},
				},
			},
			"runDetails": map[string]any{
				"builder":  map[string]any{"id": BuilderID, "version": map[string]any{"nodebake": "1.0"}},
				"metadata": map[string]any{"finishedOn": "2026-11-25T01:02:03Z"},
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("it is\n%v, and should be\n%v", got, want)
	}
	for range 20 {
		if again, err := Provenance(b); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("made again it is another: %v\n%s\n%s", err, again, raw)
		}
	}
	if bytes.ContainsAny(raw, "\n") {
		t.Error("it has more than one line")
	}
}

func TestIncomplete(t *testing.T) {
	for name, change := range map[string]func(*Build){
		"no subject":               func(b *Build) { b.Subjects = nil },
		"a subject without digest": func(b *Build) { b.Subjects = []Resource{{Name: "x"}} },
		"a digest that is none":    func(b *Build) { b.Materials = []Resource{{Name: "x", Digest: "sha256:xyz"}} },
		"a material of nothing":    func(b *Build) { b.Materials = []Resource{{}} },
		"no parameters":            func(b *Build) { b.Parameters = nil },
		"a subject's that is none": func(b *Build) { b.Subjects = []Resource{{Digest: "x"}} },
	} {
		b := build
		change(&b)
		if _, err := Provenance(b); !errors.Is(err, ErrIncomplete) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDocument(t *testing.T) {
	doc := []byte("{\n  \"spdxVersion\": \"SPDX-2.3\",\n  \"big\": 9007199254740993\n}\n")
	raw, err := Document(build.Subjects, SPDXType, doc)
	check(t, err)
	var s struct {
		PredicateType string
		Predicate     json.RawMessage
	}
	check(t, json.Unmarshal(raw, &s))
	if s.PredicateType != SPDXType || string(s.Predicate) != `{"spdxVersion":"SPDX-2.3","big":9007199254740993}` {
		t.Errorf("it holds %s of %s", s.Predicate, s.PredicateType)
	}
	var lib intoto.Statement
	check(t, protojson.Unmarshal(raw, &lib))
	check(t, lib.Validate())
	if _, err := Document(build.Subjects, SPDXType, []byte("no JSON")); err == nil {
		t.Error("a document that is no JSON was taken")
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\neyJrZGYiOnsibmFtZSI6InNjcnlwdCIsInBhcmFtcyI6eyJOIjoxfX19\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := ParseKey(text, []byte("x"))
		if err != nil && !errors.Is(err, ErrKey) && !errors.Is(err, ErrPassword) {
			t.Fatal(err)
		}
	})
}
