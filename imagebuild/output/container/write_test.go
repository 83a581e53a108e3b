package container

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodebake/nodebake/imagebuild/output/newfile"
)

func TestParseDest(t *testing.T) {
	for _, c := range []struct {
		in, want string // the image's reference; empty for a file
		path     string
		err      string
	}{
		{in: "out.qcow2"},
		{in: "/a/b:c.raw"},
		{in: "docker"},
		{in: "docker:x"},
		{in: "dir:/x"},
		{in: "libvirt+qemu:///system?pool=images"},
		{in: "oci:/a/b", want: "oci:/a/b", path: "/a/b"},
		{in: "oci:/a/b:ock:1.31", want: "oci:/a/b:ock:1.31", path: "/a/b"},
		{in: "oci-archive:x.tar", want: "oci-archive:x.tar", path: "x.tar"},
		{in: "oci-archive:x.tar:reg.example/ock:1.31", want: "oci-archive:x.tar:reg.example/ock:1.31", path: "x.tar"},
		{in: "docker-archive:x.tar", want: "docker-archive:x.tar", path: "x.tar"},
		{in: "docker-archive:x.tar:ock", want: "docker-archive:x.tar:docker.io/library/ock:latest", path: "x.tar"},
		{in: "docker-archive:x.tar:reg.example:5000/ock:1", want: "docker-archive:x.tar:reg.example:5000/ock:1", path: "x.tar"},
		{in: "docker://localhost:5000/ock:1.31", want: "docker://localhost:5000/ock:1.31"},
		{in: "docker://reg.example/ock", want: "docker://reg.example/ock:latest"},
		{in: "docker://reg.example/ock@sha256:" + strings.Repeat("0", 64), err: "give a tag"},
		{in: "docker://", err: "invalid reference format"},
		{in: "docker://reg.example/OCK", err: "lowercase"},
		{in: "oci:", err: "no path"},
		{in: "oci::x", err: "no path"},
		{in: "oci:/a:b c", err: `"b c" cannot be an image's name`},
		{in: "oci:/a:@0", err: "cannot be an image's name"},
		{in: "docker-archive:x.tar:", err: "no name follows"},
		{in: "docker-archive:x.tar:@0", err: "invalid reference"},
	} {
		d, ok, err := ParseDest(c.in)
		switch {
		case c.err != "":
			if err == nil || !ok || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.in, err, c.err)
			}
		case err != nil || ok != (c.want != ""):
			t.Errorf("%s: %v %v", c.in, ok, err)
		case ok && (d.String() != c.want || d.Path() != c.path || (d.Reference() == nil) != (c.path != "")):
			t.Errorf("%s: %s %q %v", c.in, d, d.Path(), d.Reference())
		}
	}
}

func TestBadOptions(t *testing.T) {
	for name, edit := range map[string]func(*Options){
		"architecture is not known": func(o *Options) { o.Platform.Architecture = "" },
		"gzip level 10":             func(o *Options) { o.Level = 10 },
		"gzip level -1":             func(o *Options) { o.Level = -1 },
		"no gzip level":             func(o *Options) { o.Level, o.Plain = 1, true },
		`"../x" cannot`:             func(o *Options) { o.Path = "../x" },
		`"a/../x" cannot`:           func(o *Options) { o.Path = "a/../x" },
		`"disk/" cannot`:            func(o *Options) { o.Path = "disk/" },
		`"/x" cannot`:               func(o *Options) { o.Path = "//x" },
		`"disk/.wh.x" cannot`:       func(o *Options) { o.Path = "disk/.wh.x" },
		`"." cannot`:                func(o *Options) { o.Path = "." },
		"is no name for a file":     func(o *Options) { o.Path = strings.Repeat("x", 256) },
		"years from 1970":           func(o *Options) { o.Created = time.Date(1969, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		o := options()
		edit(&o)
		_, err := Write(context.Background(), dest(t, "oci:"+t.TempDir()+"/x"), strings.NewReader(""), 0, o)
		if !errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
	}
}

// TestSameBytes writes one disk to everything that is a file, in several ways that must not matter, and reads it back.
func TestSameBytes(t *testing.T) {
	disk := testDisk(5<<20 + 12345)
	for _, kind := range []string{"oci:%s/x", "oci:%s/x:a/b:1", "oci-archive:%s/x", "oci-archive:%s/x:n", "docker-archive:%s/x", "docker-archive:%s/x:a/b:1"} {
		for _, o := range []Options{{}, {Level: 1}, {Level: 9}, {Plain: true}, {Path: "/images/a b/disk.img"}} {
			base := options()
			base.Level, base.Plain, base.Path = o.Level, o.Plain, o.Path
			var first map[string]digest.Digest
			var res Result
			for i, slow := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.HalfReader, iotest.DataErrReader} {
				if i == 1 {
					old := runtime.GOMAXPROCS(1)
					defer runtime.GOMAXPROCS(old)
				}
				dir := t.TempDir()
				d := dest(t, fmt.Sprintf(kind, dir))
				r, err := Write(context.Background(), d, slow(bytes.NewReader(disk)), int64(len(disk)), base)
				if err != nil {
					t.Fatal(err)
				}
				r.Reference = ""
				if i == 0 {
					first, res = tree(t, dir), r
					got, info, err := open(t, refOf(t, d.String()), nil, base.Path)
					if err != nil || !bytes.Equal(got, disk) {
						t.Fatalf("%s: read back: %v", d, err)
					}
					if info.Labels[AnnotationDigest] != digest.FromBytes(disk).String() || info.Platform.Architecture != "arm64" || (info.ManifestDigest != res.ManifestDigest && res.ManifestDigest != "") {
						t.Errorf("%s: %+v", d, info)
					}
				} else if !maps.Equal(first, tree(t, dir)) || r != res {
					t.Errorf("%s: other bytes, with way %d of reading", d, i)
				}
			}
			if res.DiskDigest != digest.FromBytes(disk) {
				t.Errorf("disk digest %s", res.DiskDigest)
			}
		}
	}
}

// TestImage looks at what is said of the disk, and at the layer's entries.
func TestImage(t *testing.T) {
	disk, dir := testDisk(300_000), t.TempDir()
	o := options()
	o.Annotations = map[string]string{"org.opencontainers.image.version": "1.31", "org.opencontainers.image.title": "OCK"}
	res := write(t, "oci:"+dir+"/x:n", disk, o)
	var index imgspecv1.Index
	var m imgspecv1.Manifest
	var config imgspecv1.Image
	read := func(name string, v any) []byte {
		data, err := os.ReadFile(filepath.Join(dir, "x", name))
		if err != nil {
			t.Fatal(err)
		}
		if v != nil {
			if err := json.Unmarshal(data, v); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	read("index.json", &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Digest != res.ManifestDigest || index.Manifests[0].Platform.Architecture != "arm64" {
		t.Fatalf("index %+v", index)
	}
	read(blobName(res.ManifestDigest), &m)
	read(blobName(res.ConfigDigest), &config)
	want := map[string]string{
		"org.opencontainers.image.version":     "1.31",
		"org.opencontainers.image.title":       "OCK",
		"org.opencontainers.image.created":     "2025-02-03T04:05:06Z",
		"io.github.nodebake.disk.path":         "disk/boot.qcow2",
		"io.github.nodebake.disk.format":       "qcow2",
		"io.github.nodebake.disk.virtual-size": "16106127360",
		"io.github.nodebake.disk.size":         "300000",
		"io.github.nodebake.disk.digest":       digest.FromBytes(disk).String(),
	}
	if !maps.Equal(m.Annotations, want) || !maps.Equal(config.Config.Labels, want) {
		t.Errorf("annotations %v, labels %v", m.Annotations, config.Config.Labels)
	}
	if p := config.Platform; p.OS != "linux" || p.Architecture != "arm64" || p.Variant != "v8" || config.RootFS.DiffIDs[0] != res.DiffID {
		t.Errorf("config %+v", config)
	}
	if len(m.Layers) != 1 || m.Layers[0].Digest != res.LayerDigest || m.Layers[0].Size != res.Size || m.Layers[0].MediaType != imgspecv1.MediaTypeImageLayerGzip {
		t.Errorf("layers %+v", m.Layers)
	}
	blob := read(blobName(res.LayerDigest), nil)
	if len(blob) < len(disk) || len(blob) > len(disk)+8192 {
		t.Errorf("a layer of %d bytes for a disk of %d", len(blob), len(disk))
	}
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	if !z.ModTime.IsZero() {
		t.Errorf("gzip time %s", z.ModTime)
	}
	tr := tar.NewReader(z)
	for _, e := range []string{"disk/ 755 0:0 0", "disk/boot.qcow2 644 107:107 300000"} {
		h, err := tr.Next()
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%s %o %d:%d %d", h.Name, h.Mode, h.Uid, h.Gid, h.Size); got != e || !h.ModTime.Equal(o.Created.Truncate(time.Second)) {
			t.Errorf("%s, %s", got, h.ModTime)
		}
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Errorf("another entry: %v", err)
	}
}

// TestNothingLeft ends writes in every way that can be.
func TestNothingLeft(t *testing.T) {
	disk := testDisk(3 << 20)
	broken := errors.New("broken")
	for _, kind := range []string{"oci:%s/x", "oci-archive:%s/x", "docker-archive:%s/x"} {
		for name, c := range map[string]struct {
			r    func(cancel func()) io.Reader
			size int
			is   error
			says string
		}{
			"short":  {func(func()) io.Reader { return bytes.NewReader(disk[:2<<20]) }, len(disk), io.ErrUnexpectedEOF, "ends after 2097152 of 3145728 bytes"},
			"long":   {func(func()) io.Reader { return bytes.NewReader(disk) }, 1 << 20, nil, "goes on after its 1048576 bytes"},
			"broken": {func(func()) io.Reader { return io.MultiReader(bytes.NewReader(disk[:100]), iotest.ErrReader(broken)) }, len(disk), broken, "reading the disk at 0"},
			"late":   {func(func()) io.Reader { return io.MultiReader(bytes.NewReader(disk), iotest.ErrReader(broken)) }, len(disk), broken, ""},
			"cancelled": {func(cancel func()) io.Reader {
				return io.MultiReader(bytes.NewReader(disk[:1<<20]), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }), bytes.NewReader(disk[1<<20:]))
			}, len(disk), context.Canceled, ""},
			"cancelled at the end": {func(cancel func()) io.Reader {
				return io.MultiReader(bytes.NewReader(disk), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF }))
			}, len(disk), context.Canceled, ""},
		} {
			dir := t.TempDir()
			ctx, cancel := context.WithCancel(context.Background())
			before := runtime.NumGoroutine()
			_, err := Write(ctx, dest(t, fmt.Sprintf(kind, dir)), c.r(cancel), int64(c.size), options())
			cancel()
			if err == nil || (c.is != nil && !errors.Is(err, c.is)) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s %s: %v", kind, name, err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("%s %s: %s is left", kind, name, left[0].Name())
			}
			for i := 0; runtime.NumGoroutine() > before; i++ {
				if i == 1000 {
					t.Fatalf("%s %s: %d goroutines are left", kind, name, runtime.NumGoroutine()-before)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestExists(t *testing.T) {
	disk := testDisk(1000)
	for _, kind := range []string{"oci-archive:", "docker-archive:"} {
		dir := t.TempDir()
		put(t, dir+"/x", []byte("old"))
		o := options()
		_, err := Write(context.Background(), dest(t, kind+dir+"/x"), bytes.NewReader(disk), 1000, o)
		if !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "--force") {
			t.Errorf("%v", err)
		}
		if data, _ := os.ReadFile(dir + "/x"); string(data) != "old" {
			t.Error("the file was changed")
		}
		// It comes there while the image is written.
		_, err = Write(context.Background(), dest(t, kind+dir+"/y"), io.MultiReader(bytes.NewReader(disk), readerFunc(func([]byte) (int, error) {
			put(t, dir+"/y", []byte("other"))
			return 0, io.EOF
		})), 1000, o)
		if data, _ := os.ReadFile(dir + "/y"); !errors.Is(err, ErrExists) || string(data) != "other" {
			t.Errorf("%v, and the file is %q", err, data)
		}
		o.Force = true
		write(t, kind+dir+"/x", disk, o)
		write(t, kind+dir+"/y", disk, o)
		if got, _, err := open(t, refOf(t, kind+dir+"/x"), nil, ""); err != nil || !bytes.Equal(got, disk) {
			t.Errorf("after --force: %v", err)
		}
		if err := os.Mkdir(dir+"/d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("nothing", dir+"/l"); err != nil {
			t.Fatal(err)
		}
		o.Force = false
		for name, want := range map[string]string{"/d": "not a regular file", "/l": ErrExists.Error(), "/no/x": "the output's folder", "/x/y": "the output's folder"} {
			if err := Check(context.Background(), dest(t, kind+dir+name), o); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if left, _ := os.ReadDir(dir); len(left) != 4 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestLayout adds images to one layout, and replaces some.
func TestLayout(t *testing.T) {
	dir := t.TempDir() + "/x"
	disks := map[string][]byte{"a": testDisk(10_001), "b": testDisk(20_002), "c": testDisk(10_001)}
	for _, name := range []string{"a", "b", "c"} {
		write(t, "oci:"+dir+":"+name, disks[name], options())
	}
	has := func(want map[string][]byte, blobs int) {
		t.Helper()
		for name, disk := range want {
			if got, _, err := open(t, refOf(t, "oci:"+dir+":"+name), nil, ""); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("%s: %v", name, err)
			}
		}
		files := tree(t, dir)
		for name, d := range files {
			if strings.HasPrefix(name, "/blobs/") && filepath.Base(name) != d.Encoded() {
				t.Errorf("%s is %s", name, d)
			}
		}
		if len(files) != blobs+2 {
			t.Errorf("%d files, want %d: %v", len(files), blobs+2, slices.Sorted(maps.Keys(files)))
		}
	}
	has(disks, 6) // a and c are one image

	before := tree(t, dir)
	for d, want := range map[string]error{"oci:" + dir + ":a": ErrExists, "oci:" + dir: nil} {
		_, err := Write(context.Background(), dest(t, d), bytes.NewReader(disks["b"]), 20_002, options())
		if err == nil || (want != nil && !errors.Is(err, want)) {
			t.Errorf("%s: %v", d, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Write(ctx, dest(t, "oci:"+dir+":d"), io.MultiReader(bytes.NewReader(testDisk(777)), readerFunc(func([]byte) (int, error) { cancel(); return 0, io.EOF })), 777, options())
	if !errors.Is(err, context.Canceled) || !maps.Equal(before, tree(t, dir)) {
		t.Errorf("%v, or the layout changed", err)
	}

	o := options()
	o.Force = true
	disks["a"] = testDisk(30_003)
	write(t, "oci:"+dir+":a", disks["a"], o) // c keeps the blobs
	has(disks, 9)
	disks["c"] = disks["a"]
	write(t, "oci:"+dir+":c", disks["c"], o)
	has(disks, 6)
	write(t, "oci:"+dir+":c", disks["c"], o)
	has(disks, 6)

	// Without a name there can be one image.
	dir = t.TempDir() // an empty folder will do
	write(t, "oci:"+dir, disks["a"], options())
	if _, err := Write(context.Background(), dest(t, "oci:"+dir), bytes.NewReader(nil), 0, options()); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	write(t, "oci:"+dir, disks["b"], o)
	if got, _, err := open(t, layoutRef(t, dir), nil, ""); err != nil || !bytes.Equal(got, disks["b"]) {
		t.Errorf("%v", err)
	}
	has(nil, 3)

	for name, make := range map[string]func(string){
		"no OCI layout":    func(d string) { put(t, d+"/file", nil) },
		"version \"2.0\"":  func(d string) { put(t, d+"/oci-layout", []byte(`{"imageLayoutVersion":"2.0"}`)) },
		"reading":          func(d string) { put(t, d+"/oci-layout", layoutFile); put(t, d+"/index.json", []byte("{")) },
		"more than":        func(d string) { put(t, d+"/oci-layout", make([]byte, maxDocument+1)) },
		"is not a folder,": func(d string) { put(t, d, nil) },
		"link to nothing":  func(d string) { os.Symlink("nothing", d) },
	} {
		d := t.TempDir() + "/x"
		make(d)
		list := func() map[string]digest.Digest {
			if _, err := os.Stat(d); err != nil {
				return nil
			}
			return tree(t, filepath.Dir(d))
		}
		before := list()
		if _, err := Write(context.Background(), dest(t, "oci:"+d+":n"), bytes.NewReader(nil), 0, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %q", err, name)
		}
		if !maps.Equal(before, list()) {
			t.Errorf("%s: something was changed", name)
		}
	}
}

// TestSweepIsCareful replaces an image of a layout whose other images cannot be read.
func TestSweepIsCareful(t *testing.T) {
	dir := t.TempDir()
	write(t, "oci:"+dir+":a", testDisk(1000), options())
	b := write(t, "oci:"+dir+":b", testDisk(2000), options())
	put(t, filepath.Join(dir, blobName(b.ManifestDigest)), []byte("not JSON"))
	o := options()
	o.Force = true
	write(t, "oci:"+dir+":a", testDisk(3000), o)
	if n := len(tree(t, dir)); n != 9+2 {
		t.Errorf("%d files", n)
	}
}

// TestUndo fails a write to a layout when its layer has its name already.
func TestUndo(t *testing.T) {
	dir, other := t.TempDir()+"/x", t.TempDir()+"/x"
	disk := testDisk(5000)
	res := write(t, "oci:"+other+":a", disk, options())
	write(t, "oci:"+dir+":b", testDisk(6000), options())
	config := filepath.Join(dir, blobName(res.ConfigDigest))
	put(t, config+"/in/the/way", nil)
	before := tree(t, dir)
	if _, err := Write(context.Background(), dest(t, "oci:"+dir+":a"), bytes.NewReader(disk), 5000, options()); err == nil {
		t.Error("a folder was taken for a config")
	}
	if !maps.Equal(before, tree(t, dir)) {
		t.Errorf("left: %v", slices.Sorted(maps.Keys(tree(t, dir))))
	}
	// A blob that is not whole is not one.
	if err := os.RemoveAll(config); err != nil {
		t.Fatal(err)
	}
	put(t, config, []byte("half"))
	put(t, filepath.Join(dir, blobName(res.LayerDigest)), []byte("half"))
	write(t, "oci:"+dir+":a", disk, options())
	if got, _, err := open(t, refOf(t, "oci:"+dir+":a"), nil, ""); err != nil || !bytes.Equal(got, disk) {
		t.Error(err)
	}
}

// TestWritersAtOnce writes to a layout that does not exist yet from many sides.
func TestWritersAtOnce(t *testing.T) {
	dir := t.TempDir() + "/x"
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			disk := testDisk(100_000 + i/2) // two of each
			if _, err := Write(context.Background(), dest(t, fmt.Sprintf("oci:%s:n%d", dir, i)), bytes.NewReader(disk), int64(len(disk)), options()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		if got, _, err := open(t, refOf(t, fmt.Sprintf("oci:%s:n%d", dir, i)), nil, ""); err != nil || !bytes.Equal(got, testDisk(100_000+i/2)) {
			t.Errorf("n%d: %v", i, err)
		}
	}
}

// TestTemporaryOfAnother has a file of another run in a layout: it does not make the folder a foreign one.
func TestTemporaryOfAnother(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, newfile.Prefix+"1-0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readLayout(dir); err != nil {
		t.Error(err)
	}
}

// TestLargeMember writes a tar member whose size a plain header cannot hold.
func TestLargeMember(t *testing.T) {
	f, err := newfile.Anonymous(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := &archive{f: f, now: time.Unix(0, 0)}
	const size = 9 << 30
	err = a.member(func(io.Writer) (string, error) {
		a.off += size // a hole
		return "big", nil
	})
	if err == nil {
		err = a.data("small", []byte("x"))
	}
	if err == nil {
		err = a.end()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(f)
	for _, want := range []string{"big 9663676416", "small 1"} {
		h, err := tr.Next()
		if err != nil || fmt.Sprint(h.Name, " ", h.Size) != want {
			t.Fatalf("%+v %v", h, err)
		}
	}
	if _, err := tr.Next(); err != io.EOF {
		t.Error(err)
	}
	if os.Geteuid() == 0 {
		needs(t, "tar")
	}
	// What others read is what counts.
	out := run(t, "sh", "-c", fmt.Sprintf("tar -tvf /proc/%d/fd/%d", os.Getpid(), f.Fd()))
	if !strings.Contains(out, "9663676416") || !strings.Contains(out, "small") {
		t.Error(out)
	}
}

func BenchmarkLayer(b *testing.B) {
	disk := testDisk(64 << 20)
	for name, o := range map[string]Options{"plain": {Plain: true}, "stored": {}, "gzip1": {Level: 1}, "gzip6": {Level: 6}} {
		b.Run(name, func(b *testing.B) {
			o.Platform.Architecture = "amd64"
			if err := o.clean(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(disk)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := writeLayer(context.Background(), io.Discard, bytes.NewReader(disk), int64(len(disk)), &o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
