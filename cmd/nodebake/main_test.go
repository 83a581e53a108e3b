package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/nodebake/nodebake/imagebuild"
)

const (
	demoBase  = "../../examples/demo/base.qcow2"
	demoImage = "oci-archive:../../examples/demo/hello.oci.tar"
)

// nodebake runs the program in this process.
func nodebake(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, &out, &errs)
	return code, out.String(), errs.String()
}

func TestDemo(t *testing.T) {
	dir := t.TempDir()
	out, report := filepath.Join(dir, "node.qcow2"), filepath.Join(dir, "report.json")
	code, stdout, stderr := nodebake(t, "build", "--base", demoBase, "--image", demoImage, "--output", out, "--report", report)
	if code != 0 {
		t.Fatalf("build: exit %d\n%s%s", code, stdout, stderr)
	}
	var rep imagebuild.Report
	b, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &rep); err != nil {
		t.Fatal(err)
	}
	if len(rep.Images) != 1 || rep.NewLayers != 2 || rep.Output == nil || rep.Space.NeedBlocks == 0 || rep.Platform != "linux/amd64" {
		t.Errorf("report %s", b)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // in standard output, or in standard error where code is not 0
	}{
		{[]string{"images", out}, 0, "example.org/hello  1    sha256:"},
		{[]string{"images", out, "--json"}, 0, `"store": "/var/images"`},
		{[]string{"verify", out}, 0, "as baked"},
		{[]string{"inspect", out}, 0, "read-only to the engine"},
		{[]string{"inspect", out, "--json"}, 0, `"layout": "plain"`},
		{[]string{"cat", out + ":/etc/containers/storage.conf"}, 0, `"/var/images",`},
		{[]string{"ls", out + ":/etc"}, 0, "os-release -> ../usr/lib/os-release"},
		{[]string{"ls", out + ":/etc/os-release"}, 0, "-rw-r--r--"},
		{[]string{"version"}, 0, "nodebake "},
		{[]string{"build", "--help"}, 0, "--images-from"},
		{[]string{"cat", out + ":/nowhere"}, 1, "not exist"},
		{[]string{"cat", out + ":/etc"}, 2, "not a regular file"},
		{[]string{"cat", out}, 2, "DISK:/path"},
		{[]string{"cat"}, 2, "DISK:/path is missing"},
		{[]string{"images", out, "more"}, 2, "one argument too many"},
		{[]string{"images", "--nonsense"}, 2, "unknown flag"},
		{[]string{"frobnicate"}, 2, "unknown command"},
		{[]string{"images", filepath.Join(dir, "none.qcow2")}, 1, "no such file"},
		{[]string{"images", out, "--log-level", "loud"}, 2, "error, warning, info, debug"},
		{[]string{"verify", demoBase}, 3, "no image store is on the disk"},
		{[]string{"build", "--image", "x", "--output", "y"}, 2, "--base is missing"},
		{[]string{"build", "--base", demoBase, "--image", "x"}, 2, "--output is missing"},
		{[]string{"build", "--base", demoBase, "--output", filepath.Join(dir, "y")}, 2, "no image is named"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", out}, 1, "--force replaces it"},
		{[]string{"images", demoBase, "--json"}, 0, "[]"},
		{[]string{"build", "--base", out, "--image", demoImage, "--dry-run", "--report", "-"}, 0, `"changedFiles": []`},
		{[]string{"build", "--base", out, "--image", demoImage, "--dry-run"}, 0, "free are 79.6 MiB"},
		{[]string{"build", "--base", out, "--image", demoImage, "--dry-run", "--store", "/var/lib/containers/storage/x"}, 2, "choose another path"},
		{[]string{"cat", out + ":/\x1b[31m"}, 1, "?[31m"},
		{[]string{"build", "--base", out, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--report", out}, 2, "base disk itself"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--report", dir + "/./y"}, 2, "is the --output as well"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--report", dir + "/y.sha256"}, 2, "beside it is the --report as well"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--report", dir + "/no/y"}, 1, "the report's folder"},
		{[]string{"build", "--base", out, "--image", demoImage, "--output", out, "--force"}, 1, "base disk itself"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--output-format", "vmdk"}, 2, "qcow2 or raw"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--store", "images"}, 2, "absolute"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--store", "/var/../images"}, 2, "without . or .."},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--platform", "linux"}, 2, "os/arch"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--platform", "linux/arm64"}, 1, "linux/arm64"},
		{[]string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--root", "7"}, 1, `no partition matches "7"`},
		{[]string{"build", "--base", demoBase, "--image", "docker-daemon:x", "--output", filepath.Join(dir, "y")}, 2, "docker-daemon"},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			code, stdout, stderr := nodebake(t, c.args...)
			in := stdout
			if c.code != 0 {
				in = stderr
			}
			if code != c.code || !strings.Contains(in, c.want) {
				t.Errorf("exit %d, want %d with %q\nstdout: %s\nstderr: %s", code, c.code, c.want, stdout, stderr)
			}
		})
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 3 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestConvert(t *testing.T) {
	dir := t.TempDir()
	base, err := os.ReadFile(demoBase)
	if err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(dir, "base.qcow2")
	if err := os.WriteFile(in, base, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // in what inspect prints, or in standard error where code is not 0
	}{
		{[]string{"convert", in, filepath.Join(dir, "a.raw")}, 0, "Format:    raw"},
		{[]string{"convert", in, filepath.Join(dir, "b"), "--compress", "zstd:3", "--cluster-size", "128K"}, 0, "Format:    qcow2 v3, clusters of 128.0 KiB, zstd"},
		{[]string{"convert", filepath.Join(dir, "a.raw"), filepath.Join(dir, "c"), "--overlay"}, 0, "backed by a.raw"},
		{[]string{"build", "--base", in, "--image", demoImage, "--overlay", "--output", filepath.Join(dir, "d")}, 0, "1 image, 2 layers, read-only"},
		{[]string{"build", "--base", filepath.Join(dir, "a.raw"), "--image", demoImage, "--compress", "zlib", "--output", filepath.Join(dir, "e")}, 0, "1 image, 2 layers, read-only"},
		{[]string{"convert", in, filepath.Join(dir, "a.raw")}, 1, "--force replaces it"},
		{[]string{"convert", in, in, "--force"}, 1, "base disk itself"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw"), "--compress", "zstd"}, 2, "choose a qcow2 output"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--compress", "lz4"}, 2, "zstd, zlib"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--compress", "zlib:10"}, 2, "1 to 9"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--compress", "zlib:"}, 2, "1 to 9"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--cluster-size", "1G"}, 2, "512 to 2"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--overlay", "--compress", "zlib"}, 2, "one of the two"},
		{[]string{"convert", in}, 2, "OUT is missing"},
		{[]string{"convert", in, filepath.Join(dir, "f.vmdk")}, 2, "qemu-img convert -O vmdk"},
		{[]string{"convert", in, filepath.Join(dir, "f.qcow2.gz")}, 2, "name it .raw.gz"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw.bz2")}, 2, ".zst, .gz and .xz"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw.gz"), "--compress", "zstd"}, 2, "does not go with a file that ends in .gz"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw.gz"), "--output-format", "qcow2"}, 2, "holds a raw disk"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--compress", "xz"}, 2, "zstd or zlib"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw.xz"), "--overlay"}, 2, "a compressed file does not have"},
		{[]string{"convert", in, filepath.Join(dir, "f.raw.xz"), "--cluster-size", "64K"}, 2, "no clusters"},
		{[]string{"convert", in, filepath.Join(dir, "f"), "--disk-path", "disk/x"}, 2, "--disk-path is for"},
		{[]string{"convert", in, "libvirt+qemu:///system?pool=images"}, 2, "volume"},
		{[]string{"convert", in, "libvirt+qemu:///system?pool=images&volume=v", "--overlay"}, 2, "a volume of libvirt's does not have"},
	} {
		t.Run(strings.Join(c.args[2:], " "), func(t *testing.T) {
			code, stdout, stderr := nodebake(t, c.args...)
			if code != c.code || code != 0 && !strings.Contains(stderr, c.want) {
				t.Fatalf("exit %d, want %d with %q\n%s%s", code, c.code, c.want, stdout, stderr)
			}
			if code != 0 {
				return
			}
			out := c.args[2]
			for i, a := range c.args {
				if a == "--output" {
					out = c.args[i+1]
				}
			}
			if code, stdout, stderr := nodebake(t, "inspect", out); code != 0 || !strings.Contains(stdout, c.want) {
				t.Errorf("inspect: exit %d, no %q\n%s%s", code, c.want, stdout, stderr)
			}
		})
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(names) != 12 {
		t.Errorf("in the folder: %v, %v", names, err)
	}
}

// TestBeside packs a disk in each way, and compares what lies beside it with what others say.
func TestBeside(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "a.raw")
	for _, out := range []string{"a.raw", "a.raw.gz", "a.raw.zst", "a.raw.xz", "a.qcow2"} {
		if code, stdout, stderr := nodebake(t, "convert", demoBase, filepath.Join(dir, out), "--quiet"); code != 0 {
			t.Fatalf("%s: exit %d\n%s%s", out, code, stdout, stderr)
		}
	}
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func(io.Reader) (io.Reader, error){
		"a.raw.gz":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"a.raw.zst": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
		"a.raw.xz":  func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := open(f)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes that are not the disk's, %v", name, len(got), err)
		}
	}
	for _, out := range []string{"a.raw", "a.raw.gz", "a.raw.zst", "a.raw.xz", "a.qcow2"} {
		text, err := os.ReadFile(filepath.Join(dir, out))
		if err != nil {
			t.Fatal(err)
		}
		sum, err := os.ReadFile(filepath.Join(dir, out+".sha256"))
		if line := fmt.Sprintf("%x  %s\n", sha256.Sum256(text), out); err != nil || string(sum) != line {
			t.Errorf("the sum of %s is %q, %v; want %q", out, sum, err, line)
		}
		bmap, err := os.ReadFile(filepath.Join(dir, out+".bmap"))
		if isRaw := out != "a.qcow2"; isRaw != (err == nil) || isRaw && !bytes.Contains(bmap, []byte(fmt.Sprintf("<ImageSize> %d </ImageSize>", len(want)))) {
			t.Errorf("the block map of %s: %v\n%s", out, err, bmap)
		}
	}
	code, _, stderr := nodebake(t, "convert", demoBase, filepath.Join(dir, "bare.raw"), "--checksum=false", "--bmap=false")
	names, err := filepath.Glob(filepath.Join(dir, "bare*"))
	if code != 0 || err != nil || len(names) != 1 {
		t.Errorf("without what lies beside: exit %d, %v, %v\n%s", code, names, err, stderr)
	}
}

func TestDryRunWritesNothing(t *testing.T) {
	dir := t.TempDir()
	code, stdout, stderr := nodebake(t, "build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y"), "--dry-run")
	if code != 0 || !strings.Contains(stdout, "Would write") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	dir := t.TempDir()
	var out, errs bytes.Buffer
	code := run(ctx, []string{"build", "--base", demoBase, "--image", demoImage, "--output", filepath.Join(dir, "y")}, &out, &errs)
	if code != 1 || !strings.Contains(errs.String(), "interrupted") {
		t.Errorf("exit %d\n%s", code, errs.String())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestImagesIn(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"list": "\ufeffa.example/x:1\r\n# comment\n\n  b.example/y:2 # why\na.example/x:1\n", "blank": "a b\n", "nothing": "# nothing\n",
		"pod.yaml": "kind: Pod\napiVersion: v1\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n    image: c.example/z:3\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args []string
		code int
		want string // of standard output, or in standard error where code is not 0
	}{
		{[]string{"list", "pod.yaml"}, 0, "a.example/x:1\nb.example/y:2\nc.example/z:3\n"},
		{[]string{"pod.yaml", "--from"}, 0, "IMAGE            FIRST SEEN\nc.example/z:3    DIR/pod.yaml:7: Pod p: spec.containers[0].image\n"},
		{[]string{"pod.yaml", "--json"}, 0, "[\n  {\n    \"reference\": \"c.example/z:3\",\n    \"from\": \"DIR/pod.yaml:7: Pod p: spec.containers[0].image\"\n  }\n]\n"},
		{[]string{"blank"}, 1, "blank"},
		{[]string{"nothing"}, 2, "no reference"},
		{[]string{}, 2, "FILE is missing"},
		{[]string{"gone"}, 1, "gone"},
	} {
		args := []string{"images-in"}
		for _, a := range c.args {
			if !strings.HasPrefix(a, "-") {
				a = filepath.Join(dir, a)
			}
			args = append(args, a)
		}
		code, stdout, stderr := nodebake(t, args...)
		stdout = strings.ReplaceAll(stdout, dir, "DIR")
		if code != c.code || code == 0 && strings.Join(strings.Fields(stdout), " ") != strings.Join(strings.Fields(c.want), " ") || code != 0 && !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit %d, want %d with %q\n%s%s", c.args, code, c.code, c.want, stdout, stderr)
		}
	}
}

func TestEpoch(t *testing.T) {
	if e, err := epoch(""); e != nil || err != nil {
		t.Error(e, err)
	}
	if e, err := epoch("86400"); err != nil || !e.Equal(time.Unix(86400, 0)) {
		t.Error(e, err)
	}
	for _, bad := range []string{"-1", "now", "1.5"} {
		if _, err := epoch(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestModeString(t *testing.T) {
	for _, c := range []struct {
		typ  byte
		mode int64
		want string
	}{
		{tar.TypeReg, 0o644, "-rw-r--r--"}, {tar.TypeReg, 0o4755, "-rwsr-xr-x"}, {tar.TypeReg, 0o2644, "-rw-r-Sr--"},
		{tar.TypeDir, 0o1777, "drwxrwxrwt"}, {tar.TypeSymlink, 0o777, "lrwxrwxrwx"}, {tar.TypeChar, 0o600, "crw-------"},
	} {
		if got := modeString(&tar.Header{Typeflag: c.typ, Mode: c.mode}); got != c.want {
			t.Errorf("%c %o: got %s, want %s", c.typ, c.mode, got, c.want)
		}
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b[2Jb\nü"); got != "a?[2Jb?ü" {
		t.Errorf("got %q", got)
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 8570: "8.57 kB", 123456789: "123 MB"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d) = %s, want %s", n, got, want)
		}
	}
}
