package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/bakefile"
)

// TestEveryFlagHasAKey holds build's flags against the table of a bake file's keys, both ways.
func TestEveryFlagHasAKey(t *testing.T) {
	// What these say is not what is baked or how.
	without := []string{"dry-run", "file", "disk", "help"}
	kinds := map[string][]string{"string": {"string", "string,integer"}, "bool": {"boolean"}, "int": {"integer"}, "stringArray": {"array", "object"}}
	keys := bakefile.Keys()
	defs := bakefile.Schema(nil)["$defs"].(map[string]any)
	seen := map[string]bool{}
	buildCommand().Flags().VisitAll(func(f *pflag.Flag) {
		key, ok := keys[f.Name]
		seen[f.Name] = true
		switch {
		case f.Hidden:
			return
		case slices.Contains(without, f.Name):
			if ok {
				t.Errorf("--%s is %s in a bake file, and must not be", f.Name, key)
			}
			return
		case !ok:
			t.Errorf("--%s has no key in a bake file: add it to imagebuild/bakefile/keys.go", f.Name)
			return
		}
		at := defs
		var s map[string]any
		for _, name := range strings.Split(key, ".") {
			s = at[name].(map[string]any)
			at, _ = s["properties"].(map[string]any)
		}
		kind, ok := s["type"].(string)
		if !ok {
			kind = strings.Join(s["type"].([]string), ",")
		}
		if !slices.Contains(kinds[f.Value.Type()], kind) {
			t.Errorf("--%s is a %s, and %s a %s", f.Name, f.Value.Type(), key, kind)
		}
	})
	for flag, key := range keys {
		if !seen[flag] {
			t.Errorf("%s is --%s, which is no flag of build", key, flag)
		}
	}
}

func TestSchemaCommand(t *testing.T) {
	code, stdout, stderr := nodebake(t, "schema")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	var s struct {
		Schema string                                  `json:"$schema"`
		Defs   map[string]struct{ Description string } `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(stdout), &s); err != nil {
		t.Fatal(err)
	}
	if s.Schema != "https://json-schema.org/draft/2020-12/schema" || !strings.Contains(s.Defs["basePath"].Description, "in a base that is a container image") {
		t.Errorf("%+v", s)
	}
	if _, again, _ := nodebake(t, "schema"); again != stdout {
		t.Error("another schema the second time")
	}
}

const bakeHead = "apiVersion: nodebake/v1\nkind: Bake\n"

// bakeIn writes a bake file and what it needs of the demo into a folder.
func bakeIn(t *testing.T, dir, text string) string {
	t.Helper()
	for _, name := range []string{"base.qcow2", "hello.oci.tar"} {
		data, err := os.ReadFile("../../examples/demo/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "bake.yaml")
	if err := os.WriteFile(name, []byte(bakeHead+text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string // findings without the file; none where the file is right
	}{
		{"base: b\nimages: [x]\noutput: o\n", nil},
		{"locked: true\nlock: l\nbase: b\noutput: o\ntags: {a: b}\n", nil},
		{"sources: {authfile: none.json}\nbase: b\nimages: [x]\noutput: o\n", nil},
		{"", []string{"1:1: base is missing: the boot disk to start from", "1:1: no image is named; give images or imagesFrom", "1:1: output is missing: the disk to make"}},
		// Values are checked by the flags' code, each where it stands, however many disks have it.
		{"base: b\nimages: [x]\nsize: many\ncompress: lz4\nclusterSize: 3G\nsources: {cacheSize: 0}\ncustomize:\n  copy: [{src: a, dst: b}]\ntags: {'': y}\ndisks: [{name: a, output: a}, {name: b, output: b, outputFormat: vmdk}]\n", []string{
			`5:7: size: "many" is not a size; `, "6:11: compress: lz4: give zstd", "7:14: clusterSize: 3G: give a power of two", "8:22: sources.cacheSize: a cache of 0 bytes", `10:10: customize.copy[0]: copy "DIR/a:b": the path`,
			`11:8: tags: "": a name has no =`, `12:66: disks[1].outputFormat: vmdk: give qcow2 or raw`}},
		{"base: b\nimages: [x, UPPER/x, docker-daemon:x]\noutput: o\nplatform: linux\nstorePartition: btrfs\nstore: images\ntags: {'a:b:c': x, n: y}\nsources: {offline: true, parallel: 65}\nlocked: true\n", []string{
			`4:13: images[1]: image "UPPER/x": invalid`, `4:22: images[2]: image "docker-daemon:x": unsupported`, `6:11: platform: platform "linux"`, "7:17: storePartition: btrfs: give ext4 or xfs",
			`8:8: store: the store's path "images" must be absolute`, "9:17: tags.a:b:c: a:b:c=x: ", "9:23: tags.n: n=y: no image is called y", "10:20: sources.offline: sources.offline takes", "11:9: locked: locked needs lock FILE"}},
		{"base: b\nimages: [x]\noutput: oci:o\noverlay: true\n", []string{"1:1: an overlay needs its base"}},
		{"base: b\nimages: [x]\noutput: o\ndiskPath: x\n", []string{"6:11: diskPath: "}},
		// Disks that get in each other's way.
		{"base: b\nimages: [x]\ndisks:\n- {name: a, output: o}\n- {name: b, output: ./x/../o}\n- {name: c, output: c, lock: o, report: c}\n- {name: d, output: b}\n", []string{
			"7:21: disks[1].output: output DIR/o is the output of disk a", "8:30: disks[2].lock: lock DIR/o is the output of disk a", "8:41: disks[2].report: report DIR/c is the output as well",
			"3:7: base: base DIR/b would be overwritten by the output of disk d"}},
		{"images: [x]\nbase: b\ndisks:\n- {name: a, output: a}\n- {name: b, base: a, output: b2}\n", nil},
		{"images: [x]\nbase: b\ndisks:\n- {name: a, output: a.raw, lock: a.raw.sha256}\n- {name: b, output: a.raw.bmap}\n", []string{
			"6:21: disks[0].output: DIR/a.raw: DIR/a.raw.sha256 beside it is the lock as well", "7:21: disks[1].output: output DIR/a.raw.bmap is the output of disk a as well"}},
		{"images: [x]\nbase: b\nlock: l\ndisks:\n- {name: a, output: a}\n- {name: b, output: c}\n", []string{"5:7: lock: lock DIR/l is the lock of disk a as well; give each disk its own"}},
		{"images: [x]\nbase: b\nlock: l\nlocked: true\ndisks:\n- {name: a, output: a}\n- {name: b, output: c}\n", nil},
		{"images: [x]\nbase: b\ndisks:\n- {name: a, output: 'oci:o:a'}\n- {name: b, output: 'oci:./o:b'}\n- {name: c, output: 'oci:o:b'}\n- {name: d, output: 'docker://r/a:1'}\n- {name: e, output: 'docker://r/a:1'}\n", []string{
			"8:21: disks[2].output: output oci:DIR/o:b is the output of disk b", "10:21: disks[4].output: output docker://r/a:1 is the output of disk d"}},
		// Lists of images are read, and no disk.
		{"base: b\noutput: o\nimagesFrom: [list, none]\n", []string{"5:20: imagesFrom[1]: stat DIR/none: no such file"}},
		{"base: b\noutput: o\nimagesFrom: [list]\ntags: {a: b.example/y:2}\n", nil},
		{"base: b\noutput: o\nimagesFrom: [bake.yaml]\n", []string{"5:14: imagesFrom[0]: DIR/bake.yaml holds no reference"}},
		{"base: b\noutput: o\nimages: [x]\ncharts: {values: [v]}\n", nil},
		{"base: b\noutput: o\nimagesFrom: [list]\ncharts: {values: [v]}\n", []string{"imagesFrom"}},
	} {
		t.Run(c.text, func(t *testing.T) {
			dir := t.TempDir()
			name := bakeIn(t, dir, c.text)
			if err := os.WriteFile(filepath.Join(dir, "list"), []byte("b.example/y:2\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			code, stdout, stderr := nodebake(t, "validate", name, "--json")
			var found []bakefile.Finding
			if err := json.Unmarshal([]byte(stdout), &found); err != nil {
				t.Fatalf("%v\n%s", err, stdout)
			}
			want := 0
			if len(c.want) > 0 {
				want = exitUsage
			}
			if code != want || code == 0 && stderr != "" {
				t.Errorf("exit %d, want %d\n%s", code, want, stderr)
			}
			_, lines, _ := nodebake(t, "validate", name, "-q")
			if n := strings.Count(lines, "\n"); n != len(found) {
				t.Errorf("%d findings in JSON, %d lines:\n%s", len(found), n, lines)
			}
			lines = strings.ReplaceAll(lines, dir, "DIR")
			for _, w := range c.want {
				if !strings.Contains(lines, w) {
					t.Errorf("no finding says %s\n%s", w, lines)
				}
			}
			if len(c.want) != len(found) {
				t.Errorf("%d findings, want %d\n%s", len(found), len(c.want), lines)
			}
			// The same, and before anything is made.
			if len(c.want) > 0 {
				code, _, stderr := nodebake(t, "build", "-f", name)
				if code != exitUsage || !strings.Contains(strings.ReplaceAll(stderr, dir, "DIR"), strings.TrimSpace(strings.Split(lines, "\n")[0])) {
					t.Errorf("build: exit %d\n%s", code, stderr)
				}
			}
		})
	}
}

func TestExamples(t *testing.T) {
	names, err := filepath.Glob("../../examples/bakefile/*.yaml")
	if err != nil || len(names) < 3 {
		t.Fatal(names, err)
	}
	code, stdout, stderr := nodebake(t, append([]string{"validate"}, names...)...)
	if code != 0 || strings.Count(stdout, "no fault\n") != len(names) {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

// TestExampleBaked bakes an example from another folder than its own.
func TestExampleBaked(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "examples"), os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(dir, "report.json")
	file := filepath.Join(dir, "examples/bakefile/demo.yaml")
	code, stdout, stderr := nodebake(t, "build", "-f", file)
	if code != 0 || strings.Count(stdout, "Baked ") != 2 {
		t.Fatalf("exit %d\n%s%s", code, stdout, stderr)
	}
	for name, want := range map[string]string{"demo-plain.qcow2": "Format:    qcow2", "demo-ostree.qcow2": "Format:    qcow2"} {
		disk := filepath.Join(dir, "bin", name)
		if code, stdout, stderr := nodebake(t, "verify", disk, "-q"); code != 0 || !strings.Contains(stdout, "as baked") {
			t.Errorf("%s: exit %d\n%s%s", name, code, stdout, stderr)
		}
		if _, stdout, _ := nodebake(t, "inspect", disk); !strings.Contains(stdout, want) {
			t.Errorf("%s: %s", name, stdout)
		}
		if _, stdout, _ := nodebake(t, "images", disk); !strings.Contains(stdout, "registry.example.com/hello  stable") {
			t.Errorf("%s: %s", name, stdout)
		}
		if _, stdout, _ := nodebake(t, "cat", disk+":/etc/motd"); stdout != "This disk was baked.\n" {
			t.Errorf("%s: /etc/motd is %q", name, stdout)
		}
	}
	if _, stdout, _ := nodebake(t, "cat", filepath.Join(dir, "bin/demo-plain.qcow2:/etc/hostname")); stdout != "plain\n" {
		t.Errorf("the hostname is %q", stdout)
	}
	var one imagebuild.Report
	readReport(t, filepath.Join(dir, "bin/demo-ostree.json"), &one)
	// A reference is called as it is written, wherever the bake is started.
	if len(one.Images) != 1 || one.Images[0].Reference != "oci-archive:../demo/hello.oci.tar" {
		t.Errorf("the report has %+v", one.Images)
	}
	lock, err := imagebuild.ReadLock(filepath.Join(dir, "bin/demo-plain.lock"))
	if err != nil || len(lock.Images) != 1 || lock.Images[0].Reference != "oci-archive:../demo/hello.oci.tar" {
		t.Errorf("the lock has %+v, %v", lock, err)
	}

	// Bound to its lock, one disk is the same again; its report is in a list with its name.
	before := read(t, filepath.Join(dir, "bin/demo-plain.qcow2"))
	code, stdout, stderr = nodebake(t, "build", "-f", file, "--disk", "plain", "--locked", "--force", "--report", report)
	if code != 0 || strings.Count(stdout, "Baked ") != 1 || !bytes.Equal(before, read(t, filepath.Join(dir, "bin/demo-plain.qcow2"))) {
		t.Errorf("exit %d, or another disk\n%s%s", code, stdout, stderr)
	}
	var list []struct {
		Disk   string
		Output struct{ Path string }
	}
	readReport(t, report, &list)
	if len(list) != 1 || list[0].Disk != "plain" || list[0].Output.Path != filepath.Join(dir, "bin/demo-plain.qcow2") {
		t.Errorf("the report is %+v", list)
	}
}

// runWith is the program with a standard input.
func runWith(t *testing.T, stdin io.Reader, stdout, stderr io.Writer, args ...string) int {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(f, stdin); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	defer func(old *os.File) { os.Stdin = old }(os.Stdin)
	os.Stdin = f
	return run(context.Background(), args, stdout, stderr)
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readReport(t *testing.T, name string, into any) {
	t.Helper()
	if err := json.Unmarshal(read(t, name), into); err != nil {
		t.Fatal(err)
	}
}

const twoDisks = `base: base.qcow2
images: ["oci-archive:hello.oci.tar"]
checksum: false
bmap: false
disks:
- {name: one, output: one.qcow2}
- {name: two, output: two.raw, customize: {write: [{path: /etc/x, text: x}]}}
`

// TestFileFlags gives flags beside a file: they hold in place of what it says.
func TestFileFlags(t *testing.T) {
	for _, c := range []struct {
		name, text string
		args       []string
		code       int
		want       string   // in standard error where code is not 0, else in standard output
		left       []string // what is new in the folder
	}{
		{"both", twoDisks, nil, 0, "Baked DIR/two.raw", []string{"one.qcow2", "two.raw"}},
		{"one", twoDisks, []string{"--disk", "two"}, 0, "Baked DIR/two.raw", []string{"two.raw"}},
		{"none such", twoDisks, []string{"--disk", "three"}, 2, `has no disk "three"; it has one, two`, nil},
		{"a disk without a file", "", []string{"--disk", "one"}, 2, "no --file", nil},
		{"a name for one disk", "base: base.qcow2\n", []string{"--disk", "one"}, 2, "no names to choose from", nil},
		{"dry run", twoDisks, []string{"--dry-run"}, 0, "Would write", nil},
		{"an output for one", twoDisks, []string{"--disk", "two", "--output", "DIR/o"}, 0, "Baked DIR/o", []string{"o"}},
		{"an output for both", twoDisks, []string{"--output", "DIR/o"}, 2, "bake.yaml:9:3: disks[1]: --output DIR/o is the output of disk one as well", nil},
		{"a list is replaced", twoDisks, []string{"--write", "/etc/y=y", "--disk", "two", "--report", "-"}, 0, `/etc/y`, []string{"two.raw"}},
		{"images of the command line count from the working folder", twoDisks, []string{"--image", demoImage, "--tag", "n=" + demoImage, "--disk", "one"}, 0, "Baked", []string{"one.qcow2"}},
		{"and lists", twoDisks, []string{"--images-from", "-", "--dry-run"}, 0, "Would write", nil},
		{"a flag that is wrong", twoDisks, []string{"--compress", "lz4"}, 2, "bake.yaml:8:3: disks[0]: --compress lz4", nil},
		{"a report of both", twoDisks, []string{"--report", "DIR/two.raw"}, 2, "disks[1].output: output DIR/two.raw is the report of all disks as well", nil},
		{"a report over the base", twoDisks, []string{"--report", "DIR/base.qcow2"}, 2, "would be overwritten by the report of all disks", nil},
		{"the second has no base", twoDisks + "- {name: three, base: none, output: three}\n", nil, 1, "disk three: ", nil},
		{"a base that is made before", twoDisks + "- {name: three, base: one.qcow2, output: three}\n", nil, 0, "Baked DIR/three: 1 image, 0 new layers", []string{"one.qcow2", "three", "two.raw"}},
		{"and not by a dry run", twoDisks + "- {name: three, base: one.qcow2, output: three}\n", []string{"--dry-run"}, 1, "disk three: stat DIR/one.qcow2: no such file or directory; it is of disk one, which a dry run does not make", nil},
		{"no such file", "", []string{"-f", "DIR/none"}, 1, "no such file", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			name := bakeIn(t, dir, c.text)
			args := []string{"build"}
			if c.text != "" {
				args = append(args, "-f", name)
			}
			for _, a := range c.args {
				args = append(args, strings.ReplaceAll(a, "DIR", dir))
			}
			var stdout, stderr bytes.Buffer
			code := runWith(t, strings.NewReader(demoImage+"\n"), &stdout, &stderr, args...)
			in := stdout.String()
			if c.code != 0 {
				in = stderr.String()
			}
			if code != c.code || !strings.Contains(strings.ReplaceAll(in, dir, "DIR"), c.want) {
				t.Errorf("exit %d, want %d with %s\nstdout: %s\nstderr: %s", code, c.code, c.want, stdout.String(), stderr.String())
			}
			var left []string
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !slices.Contains([]string{"base.qcow2", "hello.oci.tar", "bake.yaml"}, e.Name()) {
					left = append(left, e.Name())
				}
			}
			if !slices.Equal(left, c.left) {
				t.Errorf("in the folder are %q, want %q\n%s", left, c.left, stderr.String())
			}
		})
	}
}

// TestFileFromInput reads the file from standard input; its paths count from the working folder.
func TestFileFromInput(t *testing.T) {
	text := bakeHead + "base: " + demoBase + "\nimages: ['" + demoImage + "']\n"
	var stdout, stderr bytes.Buffer
	if code := runWith(t, strings.NewReader(text), &stdout, &stderr, "build", "-f", "-", "--dry-run", "--report", "-"); code != 0 || !strings.Contains(stdout.String(), `"dryRun": true`) {
		t.Errorf("exit %d\n%s%s", code, stdout.String(), stderr.String())
	}
	stderr.Reset()
	if code := runWith(t, strings.NewReader(text), &stdout, &stderr, "build", "-f", "-", "--dry-run", "--images-from", "-"); code != exitUsage || !strings.Contains(stderr.String(), "standard input is the bake file already") {
		t.Errorf("exit %d\n%s", code, stderr.String())
	}
	stdout.Reset()
	if code := runWith(t, strings.NewReader(text+"x: y\n"), &stdout, &stderr, "validate", "-"); code != exitUsage || !strings.HasPrefix(stdout.String(), "standard input:5:1: unknown key") {
		t.Errorf("exit %d\n%s", code, stdout.String())
	}
}

// TestSecondFails keeps the first disk when the second fails, and says so.
func TestSecondFails(t *testing.T) {
	dir := t.TempDir()
	report := filepath.Join(dir, "report")
	// The image of the second is named well and is not there: that shows only when it is opened.
	name := bakeIn(t, dir, twoDisks+"- {name: three, output: three}\n")
	text := strings.Replace(string(read(t, name)), "name: two,", "name: two, sources: {cache: "+name+"},", 1)
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := nodebake(t, "build", "-f", name, "--report", report)
	if code != exitFailed || !strings.Contains(stderr, "nodebake: disk two: ") || !strings.Contains(stderr, "\ndone: one; not done: two, three\n") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if code, stdout, _ := nodebake(t, "verify", filepath.Join(dir, "one.qcow2")); code != 0 {
		t.Errorf("the first disk: exit %d\n%s", code, stdout)
	}
	var list []struct{ Disk string }
	if readReport(t, report, &list); len(list) != 1 || list[0].Disk != "one" {
		t.Errorf("the report is %+v", list)
	}
	for _, n := range []string{"two.raw", "three"} {
		if _, err := os.Lstat(filepath.Join(dir, n)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// TestFileInterrupted is stopped before the first disk, and between two.
func TestFileInterrupted(t *testing.T) {
	dir := t.TempDir()
	name := bakeIn(t, dir, twoDisks)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"build", "-f", name}, &out, &errs); code != exitFailed || !strings.Contains(errs.String(), "interrupted; nothing was put in place") {
		t.Errorf("exit %d\n%s", code, errs.String())
	}
	ctx, cancel = context.WithCancel(context.Background())
	errs.Reset()
	code := run(ctx, []string{"build", "-f", name}, writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("Baked")) {
			cancel()
		}
		return len(p), nil
	}), &errs)
	if code != exitFailed || !strings.Contains(errs.String(), "interrupted; done: one; not done: two") {
		t.Errorf("exit %d\n%s", code, errs.String())
	}
	if left, err := filepath.Glob(dir + "/*"); err != nil || len(left) != 4 {
		t.Errorf("left: %q, %v", left, err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
