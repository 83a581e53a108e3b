package sbom

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

const (
	debianRelease = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\n"
	dpkgStatus    = `Package: bash
Status: install ok installed
Architecture: amd64
Source: bash (5.2.15-2)
Version: 5.2.15-2+b9
Maintainer: Matthias Klose <doko@debian.org>
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html
Conffiles:
 /etc/bash.bashrc 89269e1298235f1b12b4c16e4065ad0d
Description: GNU Bourne Again SHell
 Bash is an sh-compatible command language interpreter
 .
 Package: not-one

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: never
Status: unknown ok not-installed
Version: 1

Package: half
Status: install reinstreq half-installed
Architecture: all
Version: 2:1.0~rc1-3
`
	apkInstalled = `C:Q1abc=
P:musl
V:1.2.5-r0
A:x86_64
S:1
I:2
T:the musl c library (libc) implementation
U:https://musl.libc.org/
L:MIT
o:musl
m:Timo Teräs <timo.teras@iki.fi>
t:1710000000
c:abc
p:so:libc.musl-x86_64.so.1=1
F:lib
R:ld-musl-x86_64.so.1
a:0:0:755
Z:Q1abc=

P:libcrypto3
V:3.3.0-r2
A:x86_64
L:custom:strange AND GPL-2.0-only
o:openssl
`
)

// has fails the test unless a holder has just these packages, given as "type name version".
func has(t *testing.T, d *Document, h *Holder, want ...string) {
	t.Helper()
	var got []string
	for _, i := range h.Packages {
		p := &d.Packages[i]
		got = append(got, strings.TrimSpace(p.Type+" "+p.Name+" "+p.version()))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("it has %q, and should have %q", got, want)
	}
}

func imageNamed(t *testing.T, d *Document, name string) *Image {
	t.Helper()
	for i := range d.Images {
		if slices.Contains(d.Images[i].Names, name) {
			return &d.Images[i]
		}
	}
	t.Fatalf("no image is called %s", name)
	return nil
}

const store = "var/images"

// exampleDisk has a system and images of every kind.
func exampleDisk(t testing.TB) (*tree, Input) {
	r := newTree()
	r.file("etc/os-release", debianRelease)
	r.file("var/lib/dpkg/status", dpkgStatus)
	in := func(l, name string) string { return layer(store, l) + "/" + name }
	r.file(in("debian", "usr/lib/os-release"), debianRelease)
	r.file(in("debian", dpkgFile), dpkgStatus)
	r.file(in("update", dpkgFile), "Package: bash\nVersion: 6\nArchitecture: amd64\n")
	r.whiteout(in("removed", dpkgFile))
	r.opaque(in("emptied", "var/lib"))
	r.file(in("emptied", "var/lib/other"), "x")
	r.file(in("alpine", "etc/os-release"), "ID=alpine\nVERSION_ID=3.20.1\n")
	r.file(in("alpine", "lib/apk/db/installed"), apkInstalled)
	r.file(in("distroless", dpkgDir+"/base"), "Package: base-files\nVersion: 12.4\nArchitecture: amd64\nMaintainer: Santiago Vila\n")
	r.file(in("distroless", dpkgDir+"/base.md5sums"), "0123  etc/x\n")
	r.file(in("distroless", dpkgDir+"/tzdata"), "Package: tzdata\nVersion: 1\nArchitecture: all\n")
	r.file(in("distroless2", dpkgDir+"/netbase"), "Package: netbase\nVersion: 6.4\nArchitecture: all\n\n")
	r.whiteout(in("distroless2", dpkgDir+"/tzdata"))
	r.file(in("broken", "var/lib/rpm/Packages.db"), "RpmP and nothing that makes sense, but long enough to be one")
	r.file(in("broken", "lib/apk/db/installed"), apkInstalled+"\nno field\n")
	for _, db := range []string{"tiny.sqlite", "tiny.sqlite-wal"} {
		b, err := os.ReadFile("rpmdb/testdata/" + db)
		check(t, err)
		r.file(in("rpm", "usr/lib/sysimage/rpm/rpmdb.sqlite"+strings.TrimPrefix(db, "tiny.sqlite")), string(b))
	}
	r.store(store,
		imageOf{[]string{"docker.io/library/debian:12", "localhost:5000/debian"}, []string{"debian"}},
		imageOf{[]string{"example.org/update:1"}, []string{"debian", "update"}},
		imageOf{[]string{"example.org/removed:1"}, []string{"debian", "removed"}},
		imageOf{[]string{"example.org/emptied:1"}, []string{"debian", "emptied"}},
		imageOf{[]string{"example.org/alpine@sha256:" + strings.Repeat("0", 64)}, []string{"alpine"}},
		imageOf{[]string{"example.org/distroless:1"}, []string{"distroless", "distroless2"}},
		imageOf{[]string{"example.org/broken:1"}, []string{"broken"}},
		imageOf{[]string{"example.org/rpm:1"}, []string{"rpm"}},
		imageOf{nil, []string{"debian", "same"}},
	)
	return r, Input{Name: "node <1>.qcow2", Digest: digest.FromString("disk"), Version: "1.0", Stores: []Store{{"/var/images", store}},
		OS: &System{ID: "debian", Locate: func(name string) (string, error) { return strings.TrimPrefix(name, "/"), nil }}}
}

func TestCollect(t *testing.T) {
	r, in := exampleDisk(t)
	d, err := Collect(context.Background(), r, in)
	check(t, err)
	installed := []string{"deb bash 5.2.15-2+b9", "deb half 2:1.0~rc1-3"}
	has(t, d, d.OS, installed...)
	if d.OS.ID != "debian" || d.OS.VersionID != "12" || d.OS.PrettyName != "Debian GNU/Linux 12 (bookworm)" {
		t.Errorf("the system is %+v", d.OS)
	}
	for name, want := range map[string][]string{
		"docker.io/library/debian:12":                          installed,
		"example.org/update:1":                                 {"deb bash 6"},
		"example.org/removed:1":                                nil,
		"example.org/emptied:1":                                nil,
		"example.org/alpine@sha256:" + strings.Repeat("0", 64): {"apk musl 1.2.5-r0", "apk libcrypto3 3.3.0-r2"},
		"example.org/distroless:1":                             {"deb base-files 12.4", "deb netbase 6.4"},
		"example.org/rpm:1":                                    {"rpm pkg0 3:5-1", "rpm pkg1 3:5-1", "rpm pkg2 3:5-1"},
		"example.org/broken:1":                                 {"apk musl 1.2.5-r0", "apk libcrypto3 3.3.0-r2"},
	} {
		t.Run(name, func(t *testing.T) {
			im := imageNamed(t, d, name)
			has(t, d, &im.Holder, want...)
			if broken := len(im.Problems); broken != map[bool]int{true: 2}[strings.Contains(name, "broken")] {
				t.Errorf("it has the problems %q", im.Problems)
			}
		})
	}
	if got := d.Created; !got.Equal(time.Unix(1.7e9+8, 0)) {
		t.Errorf("its time is %s, and not the newest image's", got)
	}
	// Of the same base, one file is read once.
	if n := r.opened[clean(layer(store, "debian")+"/"+dpkgFile)]; n != 1 {
		t.Errorf("a database of five images was read %d times", n)
	}
	if n := r.listed[clean(layer(store, "debian"))]; n != 1 {
		t.Errorf("a layer of five images was walked %d times", n)
	}
	if !slices.IsSortedFunc(d.Packages, func(a, b Package) int { return strings.Compare(a.Type+" "+a.Name, b.Type+" "+b.Name) }) {
		t.Error("the packages are not sorted")
	}
}

// TestOrder: what a package is called does not depend on what was read before it.
func TestOrder(t *testing.T) {
	r, in := exampleDisk(t)
	a, err := Collect(context.Background(), r, in)
	check(t, err)
	in.OS = nil
	b, err := Collect(context.Background(), r, in)
	check(t, err)
	for _, p := range a.Packages {
		if !slices.ContainsFunc(b.Packages, func(q Package) bool { return p.id() == q.id() }) {
			t.Errorf("%s has another identifier where there is no system", p.id())
		}
	}
}

func TestPURL(t *testing.T) {
	for want, p := range map[string]Package{
		"pkg:deb/debian/bash@5.2.15-2%2Bb9?arch=amd64&distro=debian-12&upstream=bash%405.2.15-2": {Type: "deb", Namespace: "debian", Name: "bash", Version: "5.2.15-2+b9",
			Arch: "amd64", Distro: "debian-12", Source: "bash", SourceVersion: "5.2.15-2"},
		"pkg:rpm/ol/bash@4.4.20-4.el8?arch=x86_64&distro=ol-8.9&epoch=1&upstream=bash-4.4.20-4.el8.src.rpm": {Type: "rpm", Namespace: "ol", Name: "bash", Version: "4.4.20-4.el8",
			Epoch: "1", Arch: "x86_64", Distro: "ol-8.9", Source: "bash-4.4.20-4.el8.src.rpm"},
		"pkg:apk/alpine/musl@1.2.5-r0?arch=x86_64&distro=alpine-3.20": {Type: "apk", Namespace: "alpine", Name: "musl", Version: "1.2.5-r0", Arch: "x86_64", Distro: "alpine-3.20"},
		"pkg:golang/k8s.io/kubernetes@v1.30.0":                        {Type: "golang", Name: "k8s.io/kubernetes", Version: "v1.30.0"},
		"pkg:golang/stdlib@1.22.3":                                    {Type: "golang", Name: "stdlib", Version: "1.22.3"},
		"":                                                            {Type: "golang"},
	} {
		if got := p.PURL(); got != want {
			t.Errorf("it is\n%s, and should be\n%s", got, want)
		}
	}
	d := digest.Digest("sha256:" + strings.Repeat("ab", 32))
	for name, want := range map[string]string{
		"registry.k8s.io/pause:3.10":       "pkg:oci/pause@" + d.String() + "?repository_url=registry.k8s.io%2Fpause&tag=3.10",
		"localhost:5000/x/Y@" + d.String(): "pkg:oci/y@" + d.String() + "?repository_url=localhost:5000%2Fx%2FY",
		"":                                 "",
	} {
		if got := ImagePURL(name, d); got != want {
			t.Errorf("%s is\n%s, and should be\n%s", name, got, want)
		}
	}
}

func TestExpressions(t *testing.T) {
	for license, want := range map[string]bool{
		"MIT": true, "GPL-2.0-or-later AND (MIT OR Apache-2.0)": true, "GPL-2.0-only WITH Classpath-exception-2.0": true,
		"GPLv2+ and LGPLv2": false, "Public Domain": false, "custom:x AND MIT": false, "LicenseRef-x": false, "": false, " ": false,
		strings.Repeat("(", 900): false, strings.Repeat("MIT AND ", 200) + "MIT": false,
	} {
		if got := isExpression(license); got != want {
			t.Errorf("%.40q: %v", license, got)
		}
	}
}

// goBuild builds a program in dir.
func goBuild(t testing.TB, dir, pkg string) string {
	t.Helper()
	out := t.TempDir() + "/program"
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=")
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, msg)
	}
	return out
}

// TestProgram holds what a program is built from against what the Go tool says of it.
func TestProgram(t *testing.T) {
	name := goBuild(t, ".", "./testdata/program")
	f, err := os.Open(name)
	check(t, err)
	defer f.Close()
	main, modules, ok, err := readProgram(f)
	check(t, err)
	if !ok {
		t.Fatal("it is taken for no Go program")
	}
	want := goVersion(t, name)
	var got []string
	for _, m := range append([]Package{main}, modules...) {
		got = append(got, strings.TrimSpace(m.Name+" "+m.Version))
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(got) != 4 || !slices.Equal(got, want) {
		t.Errorf("it is built from\n%s, and the Go tool says\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, text := range []string{"", "\x7fEL", "#!/bin/sh\n", "\x7fELF", "\x7fELF" + strings.Repeat("\xff", 100)} {
		if _, _, ok, err := readProgram(strings.NewReader(text)); ok || err != nil {
			t.Errorf("%.10q: %v %v", text, ok, err)
		}
	}
}

// TestReplaced: a module that another stands for is that one, and one that a folder stands for has no version.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":      "module example.org/app\n\ngo 1.24\n\nrequire example.org/lib v1.2.3\n\nreplace example.org/lib => ./lib\n",
		"main.go":     "package main\n\nimport \"example.org/lib\"\n\nfunc main() { lib.F() }\n",
		"lib/go.mod":  "module example.org/lib\n",
		"lib/main.go": "package lib\n\nfunc F() {}\n",
	} {
		check(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	b, err := os.ReadFile(goBuild(t, dir, "."))
	check(t, err)
	main, modules, ok, err := readProgram(bytes.NewReader(b))
	check(t, err)
	if !ok || main.Name != "example.org/app" || main.Version != "" || len(modules) != 2 || modules[1].Name != "example.org/lib" || modules[1].Version != "" {
		t.Errorf("%v: %+v of %+v", ok, main, modules)
	}
}

// goVersion is what `go version -m` says of a program, as "module version", and Go itself as stdlib.
func goVersion(t testing.TB, name string) []string {
	t.Helper()
	out, err := exec.Command("go", "version", "-m", name).Output()
	if err != nil {
		t.Skipf("go version: %v", err)
	}
	var all []string
	for i, line := range strings.Split(string(out), "\n") {
		f := strings.Fields(line)
		switch {
		case i == 0:
			all = append(all, "stdlib "+strings.TrimPrefix(f[len(f)-1], "go"))
		case len(f) > 2 && (f[0] == "mod" || f[0] == "dep"):
			all = append(all, strings.TrimSuffix(f[1]+" "+f[2], " (devel)"))
		case len(f) == 2 && f[0] == "mod":
			all = append(all, f[1])
		}
	}
	return all
}

func TestPrograms(t *testing.T) {
	b, err := os.ReadFile(goBuild(t, ".", "./testdata/program"))
	check(t, err)
	r := newTree()
	r.program(layer(store, "base")+"/bin/one", string(b))
	r.program(layer(store, "base")+"/bin/two", string(b))
	r.file(layer(store, "base")+"/bin/not-executable", string(b))
	r.program(layer(store, "base")+"/bin/script", "#!/bin/sh\n")
	r.whiteout(layer(store, "less") + "/bin/two")
	r.put(layer(store, "none")+"/bin", *r.headers[clean(layer(store, "base")+"/bin/not-executable")], "a file where a folder was")
	r.program("usr/bin/tool", string(b))
	r.program("usr/stores/one/overlay/x/diff/tool", string(b))
	r.store("usr/stores/one")
	r.store(store, imageOf{[]string{"a"}, []string{"base"}}, imageOf{[]string{"b"}, []string{"base", "less"}}, imageOf{[]string{"c"}, []string{"base", "none"}})
	d, err := Collect(context.Background(), r, Input{Stores: []Store{{"/" + store, store}, {"/usr/stores/one", "usr/stores/one"}},
		OS: &System{Locate: func(n string) (string, error) { return strings.Trim(n, "/"), nil }}})
	check(t, err)
	files := func(h *Holder) (all []string) {
		for _, i := range h.Packages {
			p := d.Packages[i]
			all = append(all, p.File)
			if len(p.Modules) != 3 {
				t.Errorf("%s has %d modules", p.File, len(p.Modules))
			}
		}
		return all
	}
	for name, want := range map[string][]string{"a": {"/bin/one", "/bin/two"}, "b": {"/bin/one"}, "c": nil} {
		if got := files(&imageNamed(t, d, name).Holder); !slices.Equal(got, want) {
			t.Errorf("%s has %q, and should have %q", name, got, want)
		}
	}
	if got := files(d.OS); !slices.Equal(got, []string{"/usr/bin/tool"}) {
		t.Errorf("the system has %q", got)
	}
	if n := r.opened[clean(layer(store, "base")+"/bin/one")]; n != 1 {
		t.Errorf("a program of three images was read %d times", n)
	}
	// The modules of all are the same.
	n := 0
	for _, p := range d.Packages {
		if p.Name == "stdlib" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the standard library is there %d times", n)
	}
}

// TestDpkgQuery asks dpkg-query what is installed.
func TestDpkgQuery(t *testing.T) {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		t.Skip("missing: dpkg-query")
	}
	f, err := os.Open("/var/lib/dpkg/status")
	check(t, err)
	defer f.Close()
	var got []string
	check(t, readDpkg(f, func(p Package) error {
		got = append(got, strings.Join([]string{p.Name, p.Version, p.Arch, p.Maintainer, p.Homepage}, "|"))
		return nil
	}))
	out, err := exec.Command("dpkg-query", "-W", "-f", "${db:Status-Status}\t${Package}|${Version}|${Architecture}|${Maintainer}|${Homepage}\n").Output()
	check(t, err)
	var want []string
	for line := range strings.Lines(string(out)) {
		if status, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t"); status != "config-files" && status != "not-installed" {
			want = append(want, rest)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if len(got) < 50 || !slices.Equal(got, want) {
		t.Errorf("%d packages, and dpkg-query says %d", len(got), len(want))
	}
}

func TestDatabases(t *testing.T) {
	ignore := func(Package) error { return nil }
	for name, text := range map[string]string{
		"no field":      "Package: x\nVersion\n",
		"twice":         "Package: x\nVersion: 1\nPackage: y\n",
		"no version":    "Package: x\n\nPackage: y\nVersion: 1\n",
		"strange state": "Package: x\nVersion: 1\nStatus: installed\n",
		"long field":    "Package: " + strings.Repeat("x", maxField+1) + "\n",
		"long line":     "Description: " + strings.Repeat("x", maxLine+1) + "\n",
		"binary":        string(bytes.Repeat([]byte{0, 1, 2}, 50)),
	} {
		if err := readDpkg(strings.NewReader(text), ignore); !errors.Is(err, errContent) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "\n\n \n", "Description: x\n y\n\n"} {
		if err := readDpkg(strings.NewReader(text), func(Package) error { return errors.New("a package") }); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
	disk := errors.New("a bad block")
	if err := readDpkg(failing{disk}, ignore); !errors.Is(err, disk) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

type failing struct{ error }

func (f failing) Read([]byte) (int, error) { return 0, f.error }

func FuzzStanzas(f *testing.F) {
	f.Add([]byte(dpkgStatus))
	f.Add([]byte(apkInstalled))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, read := range []func(p func(Package) error) error{
			func(y func(Package) error) error { return readDpkg(bytes.NewReader(text), y) },
			func(y func(Package) error) error { return readApk(bytes.NewReader(text), y) },
		} {
			err := read(func(p Package) error {
				if p.Name == "" || p.Version == "" {
					t.Fatal("a package without a name or a version")
				}
				p.Namespace, p.Distro = "x", "x-1"
				p.PURL()
				return nil
			})
			if err != nil && !errors.Is(err, errContent) {
				t.Fatal(err)
			}
		}
	})
}

func FuzzProgram(f *testing.F) {
	self, err := os.Executable()
	check(f, err)
	b, err := os.ReadFile(self)
	check(f, err)
	f.Add(b[:4096])
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, _, err := readProgram(bytes.NewReader(b)); err != nil && !errors.Is(err, errContent) {
			t.Fatal(err)
		}
	})
}

func FuzzLicense(f *testing.F) {
	f.Add("GPL-2.0-or-later AND (MIT OR Apache-2.0 WITH LLVM-exception)")
	f.Fuzz(func(t *testing.T, s string) { isExpression(s) })
}

// TestDocumentJSON: both formats can be read, and every text of the input that JSON could trip over is whole.
func TestDocumentJSON(t *testing.T) {
	r, in := exampleDisk(t)
	strange := "\"\\</script>\x00\x1b[2J\u2028 ü \xff"
	in.Name = strange
	r.file(layer(store, "same")+"/"+dpkgFile, "Package: "+strange+"\nVersion: "+strange+"\nHomepage: "+strange+"\nMaintainer: "+strange+"\n")
	d, err := Collect(context.Background(), r, in)
	check(t, err)
	for _, f := range []Format{SPDX, CycloneDX} {
		var out bytes.Buffer
		check(t, d.Write(&out, f))
		var v any
		check(t, json.Unmarshal(out.Bytes(), &v))
		if n := strings.Count(fmt.Sprint(v), valid(strings.TrimSpace(strange))); n < 3 {
			t.Errorf("%s: the text is there %d times", f, n)
		}
	}
}

func TestFormat(t *testing.T) {
	if _, err := ParseFormat("xml"); !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
	for _, f := range []Format{SPDX, CycloneDX} {
		if got, err := ParseFormat(string(f)); err != nil || got != f {
			t.Errorf("%s: %s %v", f, got, err)
		}
	}
	if err := new(Document).Write(&bytes.Buffer{}, "xml"); !errors.Is(err, ErrFormat) {
		t.Errorf("%v", err)
	}
}

func TestCanceled(t *testing.T) {
	r, in := exampleDisk(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Collect(ctx, r, in); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestTooLarge: a disk that is full of packages ends in a sentence and not in all of memory.
func TestTooLarge(t *testing.T) {
	license := strings.Repeat("x", maxField-10)
	for name, c := range map[string]struct {
		n    int
		line func(i int) string
	}{
		"text":     {maxBytes/maxField + 10, func(i int) string { return fmt.Sprintf("P:p%d\nV:1\nL:%s\n\n", i, license) }},
		"packages": {maxPackages + 10, func(i int) string { return fmt.Sprintf("P:p%d\nV:1\n\n", i) }},
		"the same": {maxRelations + 10, func(int) string { return "P:p\nV:1\n\n" }},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTree()
			var text strings.Builder
			for i := range c.n {
				text.WriteString(c.line(i))
			}
			r.file("lib/apk/db/installed", text.String())
			_, err := Collect(context.Background(), r, Input{OS: &System{Locate: func(n string) (string, error) { return strings.Trim(n, "/"), nil }}})
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("%v", err)
			}
		})
	}
}
