package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	provenance "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/nodebake/nodebake/imagebuild/sbom"
	"github.com/nodebake/nodebake/imagebuild/sbom/schematest"
)

// TestEvidence bakes with all that is told of a disk beside it: openssl verifies what is signed, in-toto's own types and
// the formats' schemas take what is said, sha256sum what the sums are, and a second bake gives the same bytes.
func TestEvidence(t *testing.T) {
	requires(t, "openssl", "sha256sum")
	images := testImages(t)
	dir := tempDir(t)
	run(t, "sh", "-c", "umask 077; openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out $0/key.pem; openssl ec -in $0/key.pem -pubout -out $0/pub.pem", dir)
	verified := func(message, sig []byte) {
		t.Helper()
		check(t, os.WriteFile(dir+"/message", message, 0o644))
		raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(sig)))
		check(t, err)
		check(t, os.WriteFile(dir+"/sig", raw, 0o644))
		run(t, "openssl", "dgst", "-sha256", "-verify", dir+"/pub.pem", "-signature", dir+"/sig", dir+"/message")
	}
	read := func(name string) []byte {
		t.Helper()
		b, err := os.ReadFile(name)
		check(t, err)
		return b
	}
	check(t, os.WriteFile(dir+"/motd", []byte("hello\n"), 0o644))
	for _, c := range []struct {
		name, output string
		path         string // what is put before the endings
		disk         string // the disk's name and the file that has its bytes, if that is not the output
	}{
		{"qcow2", "node.qcow2", "node.qcow2", ""},
		{"packed", "node.raw.zst", "node.raw.zst", ""},
		{"image", "oci-archive:node.tar", "node.tar", "disk/boot.qcow2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			args := []string{"--base", smallBase(t), "--image", images["hello"].oci(), "--image", images["debian"].oci(), "--copy", dir + "/motd:/etc/motd",
				"--write", "/etc/secret=hidden", "--sbom", "spdx-json", "--sbom", "cyclonedx-json", "--provenance", "--sign-key", dir + "/key.pem", "--quiet"}
			into := func(folder string) string {
				check(t, os.MkdirAll(folder, 0o755))
				output := filepath.Join(folder, c.output)
				if kind, name, ok := strings.Cut(c.output, ":"); ok {
					output = kind + ":" + filepath.Join(folder, name)
				}
				baked(t, append(args, "--output", output, "--report", folder+"/report.json")...)
				return filepath.Join(folder, c.path)
			}
			out := into(dir + "/1/" + c.name)
			again := into(dir + "/2/" + c.name)
			subject, sum := c.path, hashFile(t, out)
			if c.disk != "" {
				unpacked := tempDir(t)
				run(t, "sh", "-c", "skopeo copy oci-archive:$0 dir:$1/image >/dev/null && cat $(ls -S $1/image/* | head -1) | tar -xzf - -C $1", out, unpacked)
				subject, sum = filepath.Base(c.disk), hashFile(t, filepath.Join(unpacked, c.disk))
				verified(read(filepath.Join(unpacked, c.disk)), read(out+".sig"))
			} else {
				verified(read(out), read(out+".sig"))
				run(t, "sh", "-c", "cd $(dirname $0) && sha256sum -c --quiet $(basename $0).sha256", out)
			}

			endings := []string{".spdx.json", ".cdx.json", ".provenance.json"}
			for _, e := range endings {
				document := read(out + e)
				var envelope struct {
					PayloadType string
					Payload     []byte
					Signatures  []struct{ Sig string }
				}
				signed := strings.TrimSuffix(e, ".json") + ".dsse.json"
				check(t, json.Unmarshal(read(out+signed), &envelope))
				verified(fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(envelope.PayloadType), envelope.PayloadType, len(envelope.Payload), envelope.Payload), []byte(envelope.Signatures[0].Sig))
				var s intoto.Statement
				check(t, protojson.Unmarshal(envelope.Payload, &s))
				check(t, s.Validate())
				if s.Subject[0].Name != subject || s.Subject[0].Digest["sha256"] != sum {
					t.Errorf("%s is about %v, want %s with %s", signed, s.Subject, subject, sum)
				}
				switch e {
				case ".spdx.json":
					schematest.Check(t, sbom.SPDX, document)
				case ".cdx.json":
					schematest.Check(t, sbom.CycloneDX, document)
				default:
					if string(envelope.Payload) != strings.TrimSpace(string(document)) {
						t.Error("the signed provenance is another than the plain one")
					}
				}
				for _, name := range []string{e, signed, ".sig"} {
					if string(read(out+name)) != string(read(again+name)) {
						t.Errorf("%s: a second bake says it otherwise", name)
					}
				}
			}
			isTold(t, read(out+".provenance.json"), map[string]string{smallBase(t): hashFile(t, smallBase(t)), dir + "/motd": hashFile(t, dir+"/motd"),
				images["hello"].oci(): images["hello"].facts(t).manifest.Encoded(), images["debian"].oci(): images["debian"].facts(t).manifest.Encoded()})
			if c.disk == "" {
				if b := readBill(t, out+".cdx.json"); b.doc.Metadata.Component.Name != c.path || b.doc.Metadata.Component.Hashes[0].Content != sum {
					t.Errorf("the bill is of %+v", b.doc.Metadata.Component)
				}
				standalone := nodebake(t, "sbom", out, "--format", "cyclonedx-json")
				if c.name == "qcow2" && standalone.stdout != string(read(out+".cdx.json")) {
					t.Error("nodebake sbom of the finished disk says it otherwise")
				}
			}
		})
	}
}

// isTold looks for materials in a provenance, each with its sum, and for nothing that is a secret.
func isTold(t *testing.T, text []byte, materials map[string]string) {
	t.Helper()
	var s struct {
		Predicate json.RawMessage `json:"predicate"`
	}
	check(t, json.Unmarshal(text, &s))
	var p provenance.Provenance
	check(t, protojson.Unmarshal(s.Predicate, &p))
	check(t, p.Validate())
	for name, sum := range materials {
		if !slices.ContainsFunc(p.BuildDefinition.ResolvedDependencies, func(r *intoto.ResourceDescriptor) bool { return r.Name == name && r.Digest["sha256"] == sum }) {
			t.Errorf("%s with %s is not among what it was made of:\n%s", name, sum, text)
		}
	}
	if strings.Contains(string(text), "hidden") {
		t.Errorf("the text of --write is told:\n%s", text)
	}
}

// TestEvidenceRefused: wrong uses of what is told, each with its sentence.
func TestEvidenceRefused(t *testing.T) {
	requires(t, "openssl")
	images := testImages(t)
	dir := tempDir(t)
	run(t, "sh", "-c", "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -aes256 -pass pass:x -out $0/locked.pem 2>/dev/null; echo no key >$0/no.pem; mkdir $0/dir.qcow2.spdx.json", dir)
	for _, c := range []struct {
		args  []string
		code  int
		words string
	}{
		{[]string{"--output", dir + "/a.qcow2", "--sbom", "spdx"}, exitUsage, "give spdx-json or cyclonedx-json"},
		{[]string{"--output", dir + "/a.qcow2", "--sign-key", dir + "/none.pem"}, exitFailed, "no such file"},
		{[]string{"--output", dir + "/a.qcow2", "--sign-key", dir + "/no.pem"}, exitUsage, "unusable signing key"},
		{[]string{"--output", dir + "/a.qcow2", "--sign-key", dir + "/locked.pem"}, exitUsage, "encrypted PKCS #8 key"},
		{[]string{"--output", dir + "/a.qcow2", "--sign-key-password", dir + "/no.pem"}, exitUsage, "without --sign-key"},
		{[]string{"--output", "docker://localhost:1/x:1", "--provenance"}, exitUsage, "nodebake convert"},
		{[]string{"--output", "libvirt+qemu:///system?pool=p&volume=v", "--sbom", "spdx-json"}, exitUsage, "no place for them"},
		{[]string{"--output", dir + "/dir.qcow2", "--sbom", "spdx-json"}, exitFailed, "is no file"},
		{[]string{"--output", dir + "/a.qcow2", "--provenance", "--report", dir + "/a.qcow2.provenance.json"}, exitUsage, "beside it is the --report"},
	} {
		o := nodebake(t, append([]string{"build", "--base", smallBase(t), "--image", images["hello"].oci()}, c.args...)...)
		if o.code != c.code || !strings.Contains(o.stderr, c.words) {
			t.Errorf("%v: want exit %d with %q\n%s", c.args, c.code, c.words, o)
		}
	}
	if left, _ := filepath.Glob(dir + "/a.*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
