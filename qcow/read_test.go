package qcow

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestReadForms reads what qemu-img and qemu-io make of every form, with qemu-img convert as the oracle.
func TestReadForms(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	rng := seeded(t, 1)
	dir := t.TempDir()
	t.Chdir(dir) // QEMU looks for data files in its working folder
	raw := filepath.Join(dir, "in.raw")
	content := contents(rng, 5<<20+1024)
	clear(content[1<<20 : 3<<19])
	if err := os.WriteFile(raw, content, 0o600); err != nil {
		t.Fatal(err)
	}
	// A raw data file and a shorter backing file for the forms below.
	short := filepath.Join(dir, "short.raw")
	if err := os.WriteFile(short, content[:2<<20+512], 0o600); err != nil {
		t.Fatal(err)
	}
	convert := func(args ...string) func(string) {
		return func(file string) {
			run(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, file)...)
		}
	}
	create := func(size string, cmds []string, args ...string) func(string) {
		return func(file string) {
			run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), file, size)...)
			if len(cmds) > 0 {
				qemuIO(t, file, cmds...)
			}
		}
	}
	writes := []string{"write -P 7 100000 300000", "write -z 131072 65536", "write -z -u 196608 65536", "write -P 9 5000000 100", "discard 327680 65536"}
	type form struct {
		name  string
		make  func(file string)
		check func(Info) bool
	}
	forms := []form{
		{"plain", convert(), func(i Info) bool { return i.Version == 3 && i.ClusterSize == 65536 && i.RefcountBits == 16 }},
		{"v2", convert("-o", "compat=0.10"), func(i Info) bool { return i.Version == 2 }},
		{"v2 zlib", convert("-c", "-o", "compat=0.10"), nil},
		{"lazy", convert("-o", "lazy_refcounts=on"), func(i Info) bool { return i.LazyRefcounts && !i.Dirty }},
		{"falloc", create("5243392", writes, "-o", "preallocation=falloc"), nil},
		{"full", create("5243392", writes, "-o", "preallocation=full"), nil},
		{"metadata", create("5243392", writes, "-o", "preallocation=metadata"), nil},
		{"writes", create("5243392", writes), nil},
		{"empty", create("1T", nil, "-o", "cluster_size=2M"), nil},
		{"zero size", create("0", nil), nil},
		{"extended", create("5243392", writes, "-o", "extended_l2=on"), func(i Info) bool { return i.ExtendedL2 }},
		{"extended over raw", create("5243392", writes, "-o", "extended_l2=on", "-b", "short.raw", "-F", "raw"), nil},
		{"data file", create("5243392", writes, "-o", "data_file=data.raw"), func(i Info) bool { return i.DataFile == "data.raw" && !i.DataFileRaw }},
		{"raw data file", create("5243392", writes, "-o", "data_file=data2.raw,data_file_raw=on"), func(i Info) bool { return i.DataFileRaw }},
		{"extended data file", create("5243392", writes, "-o", "data_file=data3.raw,extended_l2=on"), nil},
		{"over shorter raw", create("5243392", writes, "-b", "short.raw", "-F", "raw"),
			func(i Info) bool { return i.BackingFile == "short.raw" && i.BackingFormat == "raw" }},
		{"over plain", create("6M", writes, "-b", "plain.qcow2", "-F", "qcow2"), nil},
		{"over longer", create("3M", []string{"write -P 7 100000 30000"}, "-b", "plain.qcow2", "-F", "qcow2"), nil},
		{"chain", create("9M", writes, "-b", "over_plain.qcow2", "-F", "qcow2", "-o", "cluster_size=4k"), nil},
		{"chain v2", create("8M", writes[:1], "-b", "chain.qcow2", "-F", "qcow2", "-o", "compat=0.10"), nil},
		{"snapshots", func(file string) {
			create("5243392", writes)(file)
			run(t, "qemu-img", "snapshot", "-c", "one", file)
			qemuIO(t, file, "write -P 3 0 200000")
			run(t, "qemu-img", "snapshot", "-c", "two", file)
			qemuIO(t, file, "write -P 4 50000 200000")
		}, func(i Info) bool { return i.Snapshots == 2 }},
		{"bitmaps", func(file string) {
			create("5243392", writes)(file)
			run(t, "qemu-img", "bitmap", "--add", file, "b0")
			run(t, "qemu-img", "bitmap", "--add", "-g", "4096", file, "b1")
			qemuIO(t, file, "write -P 3 0 200000")
		}, func(i Info) bool { return i.Bitmaps == 2 }},
		{"dirty", func(file string) {
			create("5243392", writes, "-o", "lazy_refcounts=on")(file)
			// As a crash leaves it.
			patchFile(t, file, 79, []byte{1})
		}, func(i Info) bool { return i.Dirty }},
		{"unknown extension", func(file string) {
			convert()(file)
			b := make([]byte, 24)
			binary.BigEndian.PutUint32(b, 0x12345678)
			binary.BigEndian.PutUint32(b[4:], 3)
			copy(b[8:], "abc")
			patchFile(t, file, 112, b)
		}, nil},
	}
	for _, cs := range []int{512, 4096, 65536, 2 << 20} {
		for _, z := range []string{"zlib", "zstd"} {
			forms = append(forms, form{fmt.Sprint(z, cs), convert("-c", "-o", fmt.Sprintf("cluster_size=%d,compression_type=%s", cs, z)),
				func(i Info) bool { return i.Compression == z && i.ClusterSize == int64(cs) }})
		}
	}
	for _, bits := range []int{1, 2, 4, 8, 32, 64} {
		forms = append(forms, form{fmt.Sprint("refcount", bits), convert("-o", fmt.Sprintf("refcount_bits=%d", bits)),
			func(i Info) bool { return i.RefcountBits == bits }})
	}
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			file := filepath.Join(dir, strings.ReplaceAll(f.name, " ", "_")+".qcow2")
			f.make(file)
			im := openFile(t, file)
			if f.check != nil && !f.check(im.Info()) {
				t.Errorf("Info: %+v", im.Info())
			}
			r, err := Check(im.src, Options{})
			if err != nil || r.Total != 0 {
				t.Errorf("Check: %v, %+v", err, r)
			}
			if im.Size() > 1<<30 || im.Size() == 0 {
				n := 0
				for e, err := range im.Extents(0, im.Size()) {
					if n++; err != nil || e.Kind != Hole || e.Length != im.Size() {
						t.Errorf("extent %+v, %v", e, err)
					}
				}
				if want := min(im.Size(), 1); int64(n) != want {
					t.Errorf("%d extents, want %d", n, want)
				}
				return
			}
			want := qemuRawAny(t, file)
			wantContent(t, rng, im, want)
			// The same from many goroutines.
			var wg sync.WaitGroup
			for g := range 4 {
				wg.Go(func() {
					p := make([]byte, 10000)
					for off := g * 5000; off+len(p) < len(want); off += 40000 {
						if _, err := im.ReadAt(p, int64(off)); err != nil || !bytes.Equal(p, want[off:off+len(p)]) {
							t.Errorf("concurrent ReadAt at %#x: %v", off, err)
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// qemuRawAny is qemuRaw for images marked dirty too, which QEMU repairs when it opens them: it gets a copy.
func qemuRawAny(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !openFile(t, file).Info().Dirty {
		return qemuRaw(t, file)
	}
	c := file + ".copy"
	if err := os.WriteFile(c, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "check", "-r", "all", c)
	return qemuRaw(t, c)
}

func patchFile(t testing.TB, file string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// smallImage is an image of 1 MiB with 64 KiB clusters and some data, made by our own writer.
func smallImage(t testing.TB, o CreateOptions) *memFile {
	t.Helper()
	f := new(memFile)
	w, err := Create(f, 1<<20, o)
	if err != nil {
		t.Fatal(err)
	}
	p := bytes.Repeat([]byte("some data "), 20000)
	for _, off := range []int64{0, 700000} {
		if _, err := w.WriteAt(p[:min(len(p), 1<<20-int(off))], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestRefusals(t *testing.T) {
	put32 := func(off int, v uint32) func([]byte) { return func(b []byte) { binary.BigEndian.PutUint32(b[off:], v) } }
	put64 := func(off int, v uint64) func([]byte) { return func(b []byte) { binary.BigEndian.PutUint64(b[off:], v) } }
	for _, c := range []struct {
		name string
		edit func([]byte)
		want error
		text string
	}{
		{"magic", put32(0, 0), ErrNotQcow2, "magic"},
		{"version", put32(4, 4), ErrUnsupported, "version 4"},
		{"AES", put32(32, 1), ErrUnsupported, "AES"},
		{"LUKS", put32(32, 2), ErrUnsupported, "LUKS"},
		{"corrupt bit", put64(72, 2), ErrCorrupt, "marked corrupt"},
		{"unknown incompatible bit", put64(72, 1<<40), ErrUnsupported, "incompatible feature 40"},
		{"named incompatible bit", func(b []byte) {
			put64(72, 1<<5)(b)
			copy(b[headerLenOut+8:], append([]byte{0, 5}, "time travel\x00"...))
		}, ErrUnsupported, "time travel"},
		{"small clusters", put32(20, 8), ErrUnsupported, "cluster_bits 8"},
		{"large clusters", put32(20, 22), ErrUnsupported, "cluster_bits 22"},
		{"cluster bits beyond all", put32(20, 1<<31), ErrUnsupported, "cluster_bits"},
		{"huge L1", put32(36, 1<<31), ErrUnsupported, "L1 table"},
		{"L1 past the file", put32(36, 1<<20), ErrCorrupt, "ends past the file"},
		{"L1 too short", put64(24, 1<<40), ErrCorrupt, "too short"},
		{"L1 unaligned", put64(40, 0x30200), ErrCorrupt, "not aligned"},
		{"L1 on the header", put64(40, 0), ErrCorrupt, "overlaps"},
		{"L1 on the refcount table", put64(40, 0x10000), ErrCorrupt, "overlaps"},
		{"huge size", put64(24, 1<<63), ErrUnsupported, "virtual size"},
		{"huge refcount table", put32(56, 1<<20), ErrUnsupported, "refcount table"},
		{"no refcount table", put32(56, 0), ErrCorrupt, "no refcount table"},
		{"refcount order", put32(96, 7), ErrUnsupported, "refcount order"},
		{"snapshots", put32(60, 70000), ErrUnsupported, "70000 snapshots"},
		{"snapshots past the file", func(b []byte) { put32(60, 5)(b); put64(64, 1<<40)(b) }, ErrCorrupt, "snapshot table"},
		{"header length", put32(100, 103), ErrCorrupt, "header length"},
		{"header length over the cluster", put32(100, 1<<20), ErrCorrupt, "header length"},
		{"extension length", put32(headerLenOut+4, 1<<31), ErrCorrupt, "header extension"},
		{"compression type", func(b []byte) { put64(72, 8)(b); b[104] = 9 }, ErrUnsupported, "compression type 9"},
		{"compression bit alone", put64(72, 8), ErrCorrupt, "zlib"},
		{"compression type alone", func(b []byte) { b[104] = 1 }, ErrCorrupt, "without its"},
		{"raw data bit alone", put64(88, 2), ErrCorrupt, "raw external data"},
		{"data file without a name", put64(72, 4), ErrBacking, "does not name"},
		{"backing name outside", func(b []byte) { put64(8, 70000)(b); put32(16, 9)(b) }, ErrCorrupt, "backing file name"},
		{"backing name too long", func(b []byte) { put64(8, 60000)(b); put32(16, 1024)(b) }, ErrCorrupt, "1024 bytes"},
		{"backing without format", func(b []byte) { put64(8, 60000)(b); put32(16, 4)(b); copy(b[60000:], "base") }, ErrBacking, "without a format"},
		{"L2 past the file", put64(0x30000, 1<<50|flagCopied), ErrCorrupt, "past the file"},
		{"L2 unaligned", put64(0x30000, 0x40200|flagCopied), ErrCorrupt, "not aligned"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := smallImage(t, CreateOptions{})
			c.edit(f.b)
			_, err := Open(f, Options{Resolve: func(string, string) (Source, error) { return f, nil }})
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("Open: %v; want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// TestEncrypted refuses what qemu-img encrypts.
func TestEncrypted(t *testing.T) {
	needTool(t, "qemu-img")
	for format, text := range map[string]string{"luks": "LUKS", "aes": "AES"} {
		file := filepath.Join(t.TempDir(), "e.qcow2")
		o := "encrypt.key-secret=s,encrypt.format=" + format
		if format == "luks" {
			o += ",encrypt.iter-time=10"
		}
		run(t, "qemu-img", "create", "-q", "--object", "secret,id=s,data=abc", "-f", "qcow2", "-o", o, file, "1M")
		if _, err := Open(fileSrc(t, file), Options{}); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", format, err)
		}
	}
}

// TestWideWindow reads a cluster with zlib's largest window, which qemu-img does not write.
func TestWideWindow(t *testing.T) {
	rng := seeded(t, 1)
	p := make([]byte, 65536)
	for i := range 32000 {
		p[i] = byte(rng.Uint32())
	}
	copy(p[32700:], p[:32000])
	var z bytes.Buffer
	fw, err := flate.NewWriter(&z, 9)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fw.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := fw.Close(); err != nil {
		t.Fatal(err)
	}
	if z.Len() > 33000 {
		t.Fatalf("%d bytes: no distant match", z.Len())
	}
	f := new(memFile)
	w, err := Create(f, 1<<20, CreateOptions{Compression: "zlib"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.putBlob(3, p, z.Bytes(), false); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	im, err := Open(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(p))
	if _, err := im.ReadAt(got, 3<<16); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the content differs (%v)", err)
	}
}

// TestReadFaults reads clusters whose entries are wrong: an error and no panic, and the others still read.
func TestReadFaults(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     CreateOptions
		entry uint64
		text  string
	}{
		{"unaligned", CreateOptions{}, 0x50200 | flagCopied, "not aligned"},
		{"past the file", CreateOptions{}, 1<<40 | flagCopied, "past the file"},
		{"compressed past the file", CreateOptions{}, flagCompressed | 1<<40, "past the file"},
		{"compressed header", CreateOptions{}, flagCompressed, "compressed cluster"},
		{"compressed zstd header", CreateOptions{Compression: "zstd"}, flagCompressed, "zstd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := smallImage(t, c.o)
			im, err := Open(f, Options{})
			if err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint64(f.b[im.l1[0]&offsetMask:], c.entry)
			_, err = im.ReadAt(make([]byte, 100), 10)
			if !errors.Is(err, ErrCorrupt) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("ReadAt: %v; want %q", err, c.text)
			}
			n, err := im.ReadAt(make([]byte, 1<<20), 1<<16)
			if n != 1<<20-1<<16 {
				t.Errorf("ReadAt behind: %d, %v", n, err)
			}
		})
	}
}

func TestDirResolver(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "in")
	if err := os.Mkdir(in, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"secret", "in/base", "in/json:{}"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range [][2]string{{"../secret", "in/up"}, {filepath.Join(dir, "secret"), "in/abs"}, {"base", "in/link"}, {"/dev/zero", "in/dev"}} {
		if err := os.Symlink(l[0], filepath.Join(dir, l[1])); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "mkfifo", filepath.Join(in, "fifo"))
	resolve := NewDirResolver(in)
	for _, name := range []string{"base", "link"} {
		s, err := resolve(name, "raw")
		if err != nil || s.Size() != 7 {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../secret", "../in/base", "./base", "/etc/passwd", filepath.Join(in, "base"), "json:{}", "nbd:x", "nbd://h/x",
		"file:base", "up", "abs", "dev", "fifo", "missing", "base\x00", `a\b`} {
		if s, err := resolve(name, "raw"); err == nil {
			t.Errorf("%q was opened: %d bytes", name, s.Size())
		}
	}
}

// TestLocalResolver opens a chain that goes through several folders, as QEMU does.
func TestLocalResolver(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"a", "b/deep", "c:colon", "elsewhere/d"} {
		if err := os.MkdirAll(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// A link to a folder: what stands above it is not what its name says.
	if err := os.Symlink(at("elsewhere/d"), at("b/link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("elsewhere/base.raw"), bytes.Repeat([]byte("base"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, l := range []struct{ file, backing, format string }{
		{"b/one.qcow2", "link/../base.raw", "raw"},
		{"b/deep/two.qcow2", "../one.qcow2", "qcow2"},
		{"c:colon/three.qcow2", "../b/deep/two.qcow2", "qcow2"},
		{"a/four.qcow2", at("c:colon/three.qcow2"), "qcow2"},
		{"a/five.qcow2", "./four.qcow2", "qcow2"},
	} {
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", l.backing, "-F", l.format, at(l.file), "1M")
		qemuIO(t, at(l.file), fmt.Sprintf("write -P %d %d 100000", i+1, i*50000))
	}
	want := qemuRaw(t, at("a/five.qcow2"))
	t.Chdir(at("a"))
	for _, path := range []string{at("a/five.qcow2"), "five.qcow2", "./five.qcow2", "../a/five.qcow2"} {
		im, err := Open(fileSrc(t, path), Options{Path: path, Resolve: ResolveLocal})
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		got := make([]byte, im.Size())
		if _, err := im.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the content differs (%v)", path, err)
		}
		im.Close()
	}
	if _, err := Open(fileSrc(t, "five.qcow2"), Options{Resolve: ResolveLocal}); !errors.Is(err, ErrBacking) || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("without a path: %v", err)
	}
	run(t, "mkfifo", "fifo")
	for backing, text := range map[string]string{
		"json:{\"driver\":\"raw\"}": "protocol", "nbd://127.0.0.1/x": "protocol", "nbd:unix:/s": "protocol", "http://h/x": "protocol", "file:four.qcow2": "protocol",
		"/dev/zero": "regular", "fifo": "regular", "missing": "no such file", "../b": "regular", "../a/loop.qcow2": "loop", at("b/../a/loop.qcow2"): "loop",
	} {
		run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", "loop.qcow2", "1M")
		_, err := Open(fileSrc(t, "loop.qcow2"), Options{Path: "loop.qcow2", Resolve: ResolveLocal})
		if !errors.Is(err, ErrBacking) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v; want %q", backing, err, text)
		}
	}
}

func TestBackingLoops(t *testing.T) {
	needTool(t, "qemu-img")
	dir := t.TempDir()
	name := func(i int) string { return fmt.Sprintf("i%d.qcow2", i) }
	path := func(i int) string { return filepath.Join(dir, name(i)) }
	overlay := func(i int, backing string) {
		run(t, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", path(i), "1M")
	}
	overlay(0, name(2))
	overlay(1, name(0))
	overlay(2, name(1))
	_, err := Open(fileSrc(t, path(2)), Options{Resolve: NewDirResolver(dir)})
	if !errors.Is(err, ErrBacking) || !strings.Contains(err.Error(), "loop") {
		t.Errorf("loop: %v", err)
	}
	if _, err := Open(fileSrc(t, path(2)), Options{}); !errors.Is(err, ErrBacking) {
		t.Errorf("no resolver: %v", err)
	}
	// A loop that only the depth shows.
	f := new(memFile)
	w, err := Create(f, 1<<20, CreateOptions{Backing: OpenRaw(section{nil, 0}), BackingFile: "me", BackingFormat: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = Open(f, Options{Resolve: func(string, string) (Source, error) { return &memFile{b: f.b}, nil }})
	if !errors.Is(err, ErrBacking) || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("deep chain: %v", err)
	}
}

// memFile is a File and a Source in memory.
type memFile struct{ b []byte }

func (m *memFile) Size() int64 { return int64(len(m.b)) }

func (m *memFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memFile) Truncate(n int64) error {
	if n > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, n-int64(len(m.b)))...)
	}
	m.b = m.b[:n]
	return nil
}
