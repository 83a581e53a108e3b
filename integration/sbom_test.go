package integration

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild/sbom"
	"github.com/nodebake/nodebake/imagebuild/sbom/schematest"
)

// bill is what a test reads of a CycloneDX document: every component's packages, by what it is called.
type bill struct {
	packages map[string][]string // "type name version arch"
	doc      struct {
		Metadata struct {
			Timestamp string
			Component struct {
				Name   string
				Hashes []struct{ Content string }
			}
		}
		Components   []component
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
}

type component struct {
	Ref                       string `json:"bom-ref"`
	Type, Name, Version, Purl string
	Evidence                  struct{ Occurrences []struct{ Location string } }
}

func readBill(t testing.TB, name string) bill {
	t.Helper()
	b := bill{packages: map[string][]string{}}
	readJSON(t, name, &b.doc)
	names, lines := map[string]string{}, map[string]string{}
	for _, c := range b.doc.Components {
		names[c.Ref] = c.Name
		for _, o := range c.Evidence.Occurrences {
			names[c.Ref] = o.Location
		}
		arch := ""
		if _, query, ok := strings.Cut(c.Purl, "?"); ok {
			for _, q := range strings.Split(query, "&") {
				if v, ok := strings.CutPrefix(q, "arch="); ok {
					arch = v
				}
			}
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(c.Purl, "pkg:"), "/")
		lines[c.Ref] = strings.TrimSpace(strings.Join([]string{kind, c.Name, c.Version, arch}, " "))
	}
	names["Disk"] = "Disk"
	for _, d := range b.doc.Dependencies {
		for _, on := range d.DependsOn {
			b.packages[names[d.Ref]] = append(b.packages[names[d.Ref]], lines[on])
		}
	}
	return b
}

// has fails the test unless a holder's packages of a type (of package URLs; empty is any) are these.
func (b bill) has(t *testing.T, holder, kind string, want ...string) {
	t.Helper()
	got := []string{}
	for _, p := range b.packages[holder] {
		if of, line, _ := strings.Cut(p, " "); kind == "" || kind == of {
			got = append(got, line)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	less := func(list, from []string) string {
		return strings.Join(slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(from, s) }), "\n")
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s has %d packages, and should have %d; it has too many:\n%s\nand lacks:\n%s", holder, len(got), len(want), less(got, want), less(want, got))
	}
	t.Logf("%s: %d packages", holder, len(got))
}

// dpkgQuery asks dpkg-query of a status file.
func dpkgQuery(t testing.TB, status string) []string {
	t.Helper()
	dir := tempDir(t)
	check(t, os.WriteFile(dir+"/status", []byte(status), 0o644))
	out := run(t, "dpkg-query", "--admindir", dir, "-W", "-f", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n")
	var all []string
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		status, rest, _ := strings.Cut(line, " ")
		if status != "config-files" && status != "not-installed" {
			all = append(all, rest)
		}
	}
	return all
}

// rpmLayer is a layer with a database that rpm itself wrote, and what rpm says of it.
func rpmLayer(t testing.TB) ([]byte, []string) {
	t.Helper()
	requires(t, "rpm", "rpmbuild")
	dir := tempDir(t)
	for i := range 3 {
		spec := fmt.Sprintf("Name: nodebake-%d\nVersion: 1.%d\nRelease: 1.el9\nSummary: x\nLicense: MIT\nBuildArch: noarch\n", i, i)
		if i == 1 {
			spec += "Epoch: 7\n"
		}
		check(t, os.WriteFile(fmt.Sprintf("%s/%d.spec", dir, i), []byte(spec+"%description\nx\n%files\n"), 0o644))
	}
	run(t, "rpmbuild", "-bb", "--quiet", "--define", "_topdir "+dir+"/top", dir+"/0.spec", dir+"/1.spec", dir+"/2.spec")
	rpms, err := filepath.Glob(dir + "/top/RPMS/noarch/*.rpm")
	check(t, err)
	db := dir + "/db"
	check(t, os.Mkdir(db, 0o755))
	run(t, "rpm", append([]string{"--dbpath", db, "-i", "--justdb", "--nodeps", "--force-debian"}, rpms...)...)
	out := run(t, "rpm", "--dbpath", db, "-qa", "--qf", "%{NAME} %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE} %{ARCH}\n")
	content, err := os.ReadFile(db + "/rpmdb.sqlite")
	check(t, err)
	at := time.Unix(1e9, 0)
	return makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "etc/os-release", Mode: 0o644, ModTime: at}, content: "ID=\"ol\"\nVERSION_ID=\"9.4\"\n"},
		// Where Fedora has it: /var/lib/rpm leads there.
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "usr/lib/sysimage/rpm/rpmdb.sqlite", Mode: 0o644, ModTime: at}, content: string(content)},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "var/lib/rpm", Linkname: "../../usr/lib/sysimage/rpm", Mode: 0o777, ModTime: at}},
	), strings.Split(strings.TrimSpace(out), "\n")
}

// TestSBOM holds the bill of materials of a disk against what each package manager says of the same databases.
func TestSBOM(t *testing.T) {
	requires(t, "dpkg-query", "go")
	images := testImages(t)
	node := debian(t)
	dir := tempDir(t)
	at := time.Unix(1e9, 0)
	rpm, rpms := rpmLayer(t)
	const apk = "P:musl\nV:1.2.5-r0\nA:x86_64\nL:MIT\n\nP:busybox\nV:1.36.1-r29\nA:x86_64\nL:GPL-2.0-only\n"
	alpine := makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "etc/os-release", Mode: 0o644, ModTime: at}, content: "ID=alpine\nVERSION_ID=3.20\n"},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "lib/apk/db/installed", Mode: 0o644, ModTime: at}, content: apk})
	var from []string
	for name, layers := range map[string][]layer{
		"rpm":    {{tar: rpm}},
		"alpine": {{tar: alpine}},
		// The database is of a layer below, and is hidden.
		"bare": {{tar: alpine}, {tar: makeTar(tar.FormatPAX, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "lib/apk/.wh.db", ModTime: at}})}},
	} {
		check(t, writeLayout(dir+"/"+name, "localhost/nodebake/"+name+":1", "amd64", layers...))
		from = append(from, "--image", "oci:"+dir+"/"+name+":localhost/nodebake/"+name+":1")
	}
	out := dir + "/node.qcow2"
	baked(t, append(from, "--base", node.disk, "--image", images["debian"].oci(), "--image", images["hello"].oci(), "--image", images["odd"].oci(), "--output", out, "--quiet")...)

	for _, f := range []sbom.Format{sbom.SPDX, sbom.CycloneDX} {
		name := dir + "/node" + f.Ending()
		o := measured(t, productPath(t), "sbom", out, "--format", string(f), "--output", name)
		if o.code != exitDone {
			t.Fatalf("%s", o)
		}
		t.Logf("%s: %.2fs, %d KiB", f, o.took.Seconds(), o.usage.Maxrss)
		if o.usage.Maxrss > 256<<10 {
			t.Errorf("it took %d KiB of memory", o.usage.Maxrss)
		}
		document, err := os.ReadFile(name)
		check(t, err)
		schematest.Check(t, f, document)
		again := nodebake(t, "sbom", out, "--format", string(f))
		if again.code != exitDone || again.stdout != string(document) {
			t.Errorf("%s: asked again it is another, or exit %d", f, again.code)
		}
	}
	b := readBill(t, dir+"/node.cdx.json")
	if c := b.doc.Metadata.Component; c.Name != "node.qcow2" || len(c.Hashes) != 1 || c.Hashes[0].Content != hashFile(t, out) {
		t.Errorf("it is of %+v", c)
	}

	status := nodebake(t, "cat", out+":/var/lib/dpkg/status")
	if status.code != exitDone {
		t.Fatalf("%s", status)
	}
	b.has(t, "debian", "deb", dpkgQuery(t, status.stdout)...)
	rootfs, err := rootfsTar("base")
	check(t, err)
	// The program in the images, as the Go tool sees it in the layer that lies on the disk.
	program := nodebake(t, "cat", out+":/var/images/overlay/"+images["hello"].facts(t).layers[0].id+"/diff/bin/entry")
	if program.code != exitDone {
		t.Fatalf("exit %d: %s", program.code, program.stderr)
	}
	check(t, os.WriteFile(dir+"/entry", []byte(program.stdout), 0o755))
	main, stdlib := "", ""
	for i, line := range strings.Split(run(t, "go", "version", "-m", dir+"/entry"), "\n") {
		if f := strings.Fields(line); i == 0 {
			stdlib = "stdlib " + strings.TrimPrefix(f[len(f)-1], "go")
		} else if len(f) > 1 && f[0] == "mod" {
			main = strings.TrimSuffix(strings.Join(f[1:min(len(f), 3)], " "), " (devel)")
		}
	}
	b.has(t, "localhost/nodebake/debian", "", append(dpkgQuery(t, run(t, "tar", "-xOf", rootfs, "./var/lib/dpkg/status")), main)...)
	b.has(t, "localhost/nodebake/hello", "golang", main)
	b.has(t, "/bin/entry", "golang", stdlib)
	b.has(t, "localhost/nodebake/rpm", "", rpms...)
	b.has(t, "localhost/nodebake/alpine", "apk", "musl 1.2.5-r0 x86_64", "busybox 1.36.1-r29 x86_64")
	b.has(t, "localhost/nodebake/bare", "")

	// Every image is there with the digest of its manifest.
	for _, n := range []string{"debian", "hello", "odd"} {
		want := images[n].facts(t).manifest
		i := slices.IndexFunc(b.doc.Components, func(c component) bool {
			return c.Name == "localhost/nodebake/"+n
		})
		if i < 0 {
			t.Errorf("the image %s is not there", n)
			continue
		}
		if c := b.doc.Components[i]; c.Version != want.String() || !strings.HasPrefix(c.Purl, "pkg:oci/"+n+"@"+want.String()) || c.Type != "container" {
			t.Errorf("the image %s is %+v", n, c)
		}
	}
	if o := command(t, []string{"SOURCE_DATE_EPOCH=1700000000"}, productPath(t), "sbom", out, "--format", "cyclonedx-json"); !strings.Contains(o.stdout, `"timestamp":"2023-11-14T22:13:20Z"`) {
		t.Errorf("it does not say when: %s", o)
	}
	if o := nodebake(t, "sbom", out, "--format", "xml"); o.code != exitUsage {
		t.Errorf("%s", o)
	}
}
