package rpmdb

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func requires(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("missing: %s", tool)
		}
		t.Skipf("missing: %s", tool)
	}
}

func run(t testing.TB, stdin, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func section(t testing.TB, name string) *io.SectionReader {
	t.Helper()
	b, err := os.ReadFile(name)
	if os.IsNotExist(err) {
		return nil
	}
	check(t, err)
	return memory(b)
}

func memory(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// list opens a database and gives its packages as rpmQuery does, sorted.
func list(t testing.TB, format string, file, wal *io.SectionReader) []string {
	t.Helper()
	db, err := Open(file, wal)
	check(t, err)
	if db.Format != format {
		t.Fatalf("it is taken for %s, and is %s", db.Format, format)
	}
	var lines []string
	for p, err := range db.Packages() {
		check(t, err)
		for _, s := range []*string{&p.Epoch, &p.Arch, &p.SourceRPM, &p.License, &p.Vendor, &p.URL, &p.ModularityLabel} {
			if *s == "" {
				*s = "(none)"
			}
		}
		lines = append(lines, strings.Join([]string{p.Name, p.Epoch, p.Version, p.Release, p.Arch, p.SourceRPM, p.License, p.Vendor, p.URL, p.ModularityLabel}, "|"))
	}
	slices.Sort(lines)
	return lines
}

const rpmQuery = "%{NAME}|%{EPOCH}|%{VERSION}|%{RELEASE}|%{ARCH}|%{SOURCERPM}|%{LICENSE}|%{VENDOR}|%{URL}|%{MODULARITYLABEL}\n"

// rpmList asks rpm itself.
func rpmList(t testing.TB, backend, dir string) []string {
	t.Helper()
	out := run(t, "", "rpm", "--define", "_db_backend "+backend, "--dbpath", dir, "-qa", "--qf", rpmQuery)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(lines)
	return lines
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("read:\n%s\nrpm says:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// makeDatabase has rpmbuild make packages, and rpm a database of them. Many files make a header that spans pages.
func makeDatabase(t testing.TB, packages int) string {
	t.Helper()
	requires(t, "rpm", "rpmbuild")
	dir := t.TempDir()
	specs := filepath.Join(dir, "specs")
	check(t, os.Mkdir(specs, 0o755))
	var names []string
	for i := range packages {
		spec := fmt.Sprintf("Name: nodebake-%d\nVersion: 1.%d\nRelease: %d.el9\nSummary: x\nLicense: GPLv2+ and (LGPLv2 or MIT)\nBuildArch: noarch\n", i, i, i*i)
		if i%2 == 0 {
			spec += fmt.Sprintf("Epoch: %d\nVendor: Fabrik für Pakete %d\nURL: https://example.org/%d?a=b&c=d\n", i, i, i)
		}
		spec += "%description\nx\n%install\nmkdir -p %{buildroot}/opt/p" + fmt.Sprint(i) + "\n"
		spec += fmt.Sprintf("for n in $(seq 1 %d); do : > %%{buildroot}/opt/p%d/a-file-with-a-name-of-its-own-$n; done\n", i*i*40, i)
		spec += fmt.Sprintf("%%files\n/opt/p%d\n", i)
		name := filepath.Join(specs, fmt.Sprintf("%d.spec", i))
		check(t, os.WriteFile(name, []byte(spec), 0o644))
		names = append(names, name)
	}
	run(t, "", "rpmbuild", append([]string{"-bb", "--quiet", "--define", "_topdir " + dir + "/top"}, names...)...)
	rpms, err := filepath.Glob(dir + "/top/RPMS/noarch/*.rpm")
	check(t, err)
	db := filepath.Join(dir, "db")
	check(t, os.Mkdir(db, 0o755))
	run(t, "", "rpm", append([]string{"--dbpath", db, "-i", "--justdb", "--nodeps", "--force-debian"}, rpms...)...)
	return db
}

// blobs are the headers in a database of sqlite's, as sqlite has them.
func blobs(t testing.TB, db string) [][]byte {
	t.Helper()
	requires(t, "sqlite3")
	var all [][]byte
	for line := range strings.Lines(run(t, "", "sqlite3", db, "select hex(blob) from Packages order by hnum")) {
		b, err := hex.DecodeString(strings.TrimSpace(line))
		check(t, err)
		all = append(all, b)
	}
	return all
}

func TestAgainstRPM(t *testing.T) {
	db := makeDatabase(t, 6)
	main := db + "/rpmdb.sqlite"
	want := rpmList(t, "sqlite", db)
	if len(want) != 6 {
		t.Fatalf("rpm knows %d packages, and 6 were installed", len(want))
	}
	t.Run("sqlite", func(t *testing.T) { same(t, list(t, "sqlite", section(t, main), section(t, main+"-wal")), want) })
	headers := blobs(t, main)
	t.Run("log", func(t *testing.T) { testLog(t, db) })

	for _, order := range []string{"little", "big"} {
		for _, size := range []int{512, 4096, 65536} {
			t.Run(fmt.Sprintf("bdb %s %d", order, size), func(t *testing.T) {
				requires(t, "db5.3_load")
				dir := t.TempDir()
				var dump strings.Builder
				fmt.Fprintf(&dump, "VERSION=3\nformat=bytevalue\ntype=hash\ndb_pagesize=%d\ndb_lorder=%s\nHEADER=END\n", size, map[string]string{"little": "1234", "big": "4321"}[order])
				number := func(n int) string {
					if order == "big" {
						return fmt.Sprintf(" %08x\n", n)
					}
					return fmt.Sprintf(" %02x%02x0000\n", n&255, n>>8)
				}
				dump.WriteString(number(0) + number(len(headers)+1))
				for i, h := range headers {
					dump.WriteString(number(i+1) + " " + hex.EncodeToString(h) + "\n")
				}
				dump.WriteString("DATA=END\n")
				run(t, dump.String(), "db5.3_load", dir+"/Packages")
				same(t, list(t, "bdb", section(t, dir+"/Packages"), nil), want)
				if order == "little" {
					// rpm takes the numbers of records as they lie there.
					same(t, list(t, "bdb", section(t, dir+"/Packages"), nil), rpmList(t, "bdb_ro", dir))
				}
			})
		}
	}
	t.Run("ndb", func(t *testing.T) { same(t, list(t, "ndb", memory(makeNDB(headers)), nil), want) })
}

// testLog has sqlite leave changes in its log: what counts is what sqlite itself sees.
func testLog(t *testing.T, db string) {
	for _, size := range []int{512, 1024, 4096, 65536} {
		for _, last := range []string{"commit;", "rollback;"} {
			t.Run(fmt.Sprintf("%d %s", size, last), func(t *testing.T) {
				dir := t.TempDir()
				name, kept := dir+"/rpmdb.sqlite", dir+"/kept"
				// The copy is made while sqlite still has it open, as an image is of a system that was not shut down.
				run(t, fmt.Sprintf(`pragma page_size=%d; pragma journal_mode=wal; pragma wal_autocheckpoint=0;
attach '%s/rpmdb.sqlite' as old;
create table Packages (hnum integer primary key autoincrement, blob blob not null);
insert into Packages select * from old.Packages where hnum < 3;
pragma wal_checkpoint(truncate);
insert into Packages select hnum+10, blob from old.Packages;
delete from Packages where hnum = 1;
begin; insert into Packages select hnum+100, blob from old.Packages; %s
.shell cp '%s' '%s'; cp '%s-wal' '%s-wal'
`, size, db, last, name, kept, name, kept), "sqlite3", name)
				wal := section(t, kept+"-wal")
				if wal == nil || wal.Size() == 0 {
					t.Fatal("there is no log")
				}
				got := list(t, "sqlite", section(t, kept), wal)
				without := list(t, "sqlite", section(t, kept), nil)
				if len(without) != 2 {
					t.Errorf("without its log it has %d packages, and 2 were checkpointed", len(without))
				}
				// sqlite recovers the log when it opens the copy.
				var want []string
				for _, b := range blobs(t, kept) {
					p, err := parseHeader(b)
					check(t, err)
					want = append(want, p.Name)
				}
				var names []string
				for _, l := range got {
					name, _, _ := strings.Cut(l, "|")
					names = append(names, name)
				}
				slices.Sort(want)
				same(t, names, want)
			})
		}
	}
}

// module is where the Go tool keeps a module, whose test data are databases of real systems.
func module(t testing.TB, version string) string {
	t.Helper()
	requires(t, "go")
	cmd := exec.Command("go", "mod", "download", "-json", version)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	var m struct{ Dir, Error string }
	if json.Unmarshal(out, &m) != nil || err != nil || m.Dir == "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s: %v %s", version, err, m.Error)
		}
		t.Skipf("%s: %v %s", version, err, m.Error)
	}
	return m.Dir
}

// TestRealDatabases reads databases of distributions, from the test data of a Go module that reads them as well. The
// numbers of packages are those that its own tests expect.
func TestRealDatabases(t *testing.T) {
	dir := module(t, "github.com/anchore/go-rpmdb@v0.2.2") + "/pkg/testdata/"
	for _, c := range []struct {
		file, format string
		packages     int
		one          string
	}{
		{"centos5-plain/Packages", "bdb", 110, "bash|(none)|3.2|33.el5_11.4|x86_64|bash-3.2-33.el5_11.4.src.rpm|GPLv2+|CentOS|http://www.gnu.org/software/bash|(none)"},
		{"centos6-many/Packages", "bdb", 326, ""},
		{"centos7-many/Packages", "bdb", 396, ""},
		{"centos8-modularitylabel/Packages", "bdb", 518, ""},
		{"ubi8-s390x/Packages", "bdb", 183, ""},
		{"sle15-bci/Packages.db", "ndb", 35, ""},
		{"fedora35/rpmdb.sqlite", "sqlite", 138, ""},
		{"cbl-mariner-2.0/rpmdb.sqlite", "sqlite", 129, ""},
		{"oraclelinux-9/rpmdb.sqlite", "sqlite", 188, ""},
		{"rockylinux-9/rpmdb.sqlite", "sqlite", 142, ""},
	} {
		t.Run(c.file, func(t *testing.T) {
			got := list(t, c.format, section(t, dir+c.file), nil)
			if len(got) != c.packages {
				t.Errorf("%d packages, and there are %d", len(got), c.packages)
			}
			if c.one != "" && !slices.Contains(got, c.one) {
				t.Errorf("it lacks %s", c.one)
			}
			// rpm reads the two kinds that this build of it knows.
			if _, err := exec.LookPath("rpm"); err != nil || c.format == "ndb" || strings.HasPrefix(c.file, "ubi8-s390x") {
				return
			}
			copied := t.TempDir()
			b, err := os.ReadFile(dir + c.file)
			check(t, err)
			check(t, os.WriteFile(filepath.Join(copied, filepath.Base(c.file)), b, 0o644))
			same(t, got, rpmList(t, map[string]string{"bdb": "bdb_ro", "sqlite": "sqlite"}[c.format], copied))
		})
	}
}
