package bare

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/qcow"
)

func TestParseKind(t *testing.T) {
	for _, c := range []struct {
		name string
		kind Kind
		err  string // part of it
	}{
		{"node.raw", Plain, ""},
		{"node.img", Plain, ""},
		{"node.qcow2", Plain, ""},
		{"node", Plain, ""},
		{"/a.zst/node.raw", Plain, ""},
		{"node.raw.zst", Zstd, ""},
		{"node.img.zst", Zstd, ""},
		{"dir/node.RAW.ZST", Zstd, ""},
		{"node.raw.gz", Gzip, ""},
		{"node.img.xz", XZ, ""},
		{"node-1.31.xz", XZ, ""},
		{"node.zst", Zstd, ""},
		{".zst", Zstd, ""},
		{"node.qcow2.zst", "", "name it .raw.zst, or write a qcow2 that is compressed itself"},
		{"node.tar.gz", "", "would be a .tar inside .gz"},
		{"node.iso.xz", "", "would be a .iso inside .xz"},
		{"node.raw.bz2", "", "raw disks are compressed as .zst, .gz and .xz"},
		{"node.raw.zstd", "", "raw disks are compressed as .zst, .gz and .xz"},
		{"node.vmdk", "", "write node.qcow2 and then: qemu-img convert -O vmdk -o subformat=streamOptimized node.qcow2 node.vmdk"},
		{"a b/it's.vhdx", "", `qemu-img convert -O vhdx -o subformat=dynamic 'a b/it'\''s.qcow2' 'a b/it'\''s.vhdx'`},
		{"node.vhd", "", "qemu-img convert -O vpc -o subformat=fixed,force_size=on node.qcow2 node.vhd"},
		{"node.vdi", "", "qemu-img convert -O vdi node.qcow2 node.vdi"},
		{"node.OVA", "", "qemu-img convert -O vmdk -o subformat=streamOptimized node.qcow2 node.vmdk, and then an OVF tool"},
		{"node.vmdk.gz", "", "qemu-img convert -O vmdk -o subformat=streamOptimized node.qcow2 node.vmdk"},
		{"-x.vdi", "", "qemu-img convert -O vdi './-x.qcow2' './-x.vdi'"},
	} {
		kind, err := ParseKind(c.name)
		if kind != c.kind || (err == nil) != (c.err == "") || err != nil && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %q, %v", c.name, kind, err)
		}
	}
}

// The lines of ParseKind's errors must work.
func TestConvertLines(t *testing.T) {
	tool(t, "qemu-img", "sh")
	dir := t.TempDir()
	pipe(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", dir+"/a b.qcow2", "3M")
	for ext := range converters {
		_, err := ParseKind(dir + "/a b." + ext)
		if err == nil {
			t.Fatalf("%s: no error", ext)
		}
		_, line, _ := strings.Cut(err.Error(), "qemu-img")
		line, _, _ = strings.Cut(line, ", and then")
		pipe(t, nil, "sh", "-c", "qemu-img"+line)
	}
}

func TestLevels(t *testing.T) {
	for _, c := range []struct {
		o   Options
		err error
	}{
		{Options{}, nil},
		{Options{Level: 1}, ErrLevel},
		{Options{Kind: Zstd}, nil},
		{Options{Kind: Zstd, Level: 22}, nil},
		{Options{Kind: Zstd, Level: 23}, ErrLevel},
		{Options{Kind: Zstd, Level: -1}, ErrLevel},
		{Options{Kind: Gzip, Level: 9}, nil},
		{Options{Kind: Gzip, Level: 10}, ErrLevel},
		{Options{Kind: XZ}, nil},
		{Options{Kind: XZ, Level: 1}, ErrLevel},
		{Options{Kind: "lz4"}, ErrFormat},
	} {
		if err := c.o.Check(); !errors.Is(err, c.err) {
			t.Errorf("%+v: %v", c.o, err)
		}
		if c.err != nil {
			var b bytes.Buffer
			if _, err := Compress(context.Background(), &b, &memory{}, c.o); !errors.Is(err, c.err) || b.Len() > 0 {
				t.Errorf("%+v: %v, %d bytes", c.o, err, b.Len())
			}
		}
	}
	if err := (Options{Kind: Gzip, Level: 12}).Check(); err.Error() != "no such compression level: 12; .gz has 1 to 9, usually 6" {
		t.Error(err)
	}
}

// unpack is the contents of a file, as libraries and tools that others wrote read them.
func unpack(t testing.TB, k Kind, b []byte) []byte {
	t.Helper()
	switch k {
	case Zstd:
		r, err := zstd.NewReader(bytes.NewReader(b))
		check(t, err)
		defer r.Close()
		out, err := io.ReadAll(r)
		check(t, err)
		return out
	case Gzip:
		r, err := gzip.NewReader(bytes.NewReader(b))
		check(t, err)
		r.Multistream(false)
		out, err := io.ReadAll(r)
		check(t, err)
		return out
	case XZ:
		return pipe(t, b, "xz", "-d", "-c")
	}
	return b
}

// checkMap holds a block map against the contents.
func checkMap(t testing.TB, b *Bmap, data []byte) {
	t.Helper()
	if b.ImageSize != int64(len(data)) {
		t.Errorf("the map is of %d bytes, the disk has %d", b.ImageSize, len(data))
	}
	var at int64
	for _, r := range b.Ranges {
		from, to := r.First*MapBlock, min((r.Last+1)*MapBlock, int64(len(data)))
		if from < at || to <= from {
			t.Fatalf("blocks %d to %d, after byte %d of %d", r.First, r.Last, at, len(data))
		}
		if !qcow.IsZero(data[at:from]) {
			t.Errorf("data between byte %d and %d is not in the map", at, from)
		}
		if sha256.Sum256(data[from:to]) != r.SHA256 {
			t.Errorf("sum of blocks %d to %d is wrong", r.First, r.Last)
		}
		at = to
	}
	if !qcow.IsZero(data[at:]) {
		t.Errorf("data behind byte %d is not in the map", at)
	}
}

// TestRandom writes random sparse disks in every way, with any number of workers and any knowledge of the holes.
func TestRandom(t *testing.T) {
	tool(t, "xz")
	s := seed(t)
	runs, max := uint64(6), 24<<20
	if os.Getenv("NODEBAKE_SOAK") != "" {
		runs, max = 200, 80<<20
	}
	for i := range runs {
		r := random(s + i)
		m := randomDisk(r, max)
		whole := sha256.Sum256(m.data)
		sum, err := Sum(context.Background(), m, Options{Bmap: true, Workers: 1 + r.IntN(8), Level: 77})
		check(t, err)
		if sum.SHA256 != whole || sum.Size != m.Size() {
			t.Errorf("disk %d of %d bytes: sum %x of %d bytes", i, m.Size(), sum.SHA256, sum.Size)
		}
		checkMap(t, sum.Bmap, m.data)
		for kind, levels := range map[Kind][]int{Plain: {0}, Zstd: {1, 3, 6, 12}, Gzip: {1, 6, 9}, XZ: {0}} {
			level := levels[r.IntN(len(levels))]
			var first []byte
			for _, workers := range []int{1 + r.IntN(8), 1, 8} {
				var src qcow.Source = m
				if r.IntN(2) == 0 {
					src = blind{m}
				}
				got, res := compress(t, src, Options{Kind: kind, Level: level, Workers: workers, Bmap: true})
				if first == nil {
					first = got
					if !bytes.Equal(unpack(t, kind, got), m.data) {
						t.Fatalf("disk %d of %d bytes, .%s level %d: other contents", i, m.Size(), kind, level)
					}
				} else if !bytes.Equal(first, got) {
					t.Fatalf("disk %d of %d bytes, .%s level %d: %d workers make another file", i, m.Size(), kind, level, workers)
				}
				if res.Size != int64(len(got)) || res.SHA256 != sha256.Sum256(got) {
					t.Errorf("disk %d, .%s: wrong size or sum", i, kind)
				}
				if !bytes.Equal(res.Bmap.Bytes(), sum.Bmap.Bytes()) {
					t.Errorf("disk %d, .%s: the block map is not that of the plain disk", i, kind)
				}
			}
		}
	}
}

// TestTools has other programs read what is written: sizes that are no multiple of anything, none at all, and only holes.
func TestTools(t *testing.T) {
	tool(t, "zstd", "gzip", "pigz", "xz", "python3")
	r := random(7)
	full := &memory{data: make([]byte, 21<<20+777)}
	for at := 0; at < len(full.data); at += 1 << 20 {
		fillKind(r, full.data[at:min(len(full.data), at+r.IntN(1<<20))])
	}
	full.extents = []qcow.Extent{{Start: 0, Length: full.Size(), Kind: qcow.Data}}
	for name, m := range map[string]*memory{
		"full":  full,
		"holes": {data: make([]byte, 40<<20)},
		"byte":  {data: []byte{1}, extents: []qcow.Extent{{Length: 1, Kind: qcow.Data}}},
		"empty": {},
	} {
		for kind, readers := range map[Kind][][]string{
			Zstd: {{"zstd", "-t"}, {"zstd", "-d", "-c"}, {"pzstd", "-d", "-c"}},
			Gzip: {{"gzip", "-t"}, {"gzip", "-d", "-c"}, {"pigz", "-t"}, {"pigz", "-d", "-c"},
				{"python3", "-c", "import gzip,sys; sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read()))"},
				// One member, and nothing behind it.
				{"python3", "-c", "import zlib,sys; d=zlib.decompressobj(31); sys.stdout.buffer.write(d.decompress(sys.stdin.buffer.read())); assert d.eof and not d.unused_data"}},
			XZ: {{"xz", "-t"}, {"xz", "-d", "-c"}, {"xz", "-d", "-c", "-T0"}, {"xz", "-d", "-c", "--single-stream"},
				{"python3", "-c", "import lzma,sys; sys.stdout.buffer.write(lzma.decompress(sys.stdin.buffer.read()))"}},
		} {
			b, _ := compress(t, m, Options{Kind: kind})
			for _, argv := range readers {
				if argv[0] == "pzstd" && len(m.data) == 0 {
					continue // it calls its own empty files errors, too
				}
				tool(t, argv[0])
				out := pipe(t, b, argv[0], argv[1:]...)
				if argv[1] != "-t" && !bytes.Equal(out, m.data) {
					t.Errorf("%s: %q reads other contents", name, argv)
				}
			}
			file := t.TempDir() + "/disk." + string(kind)
			check(t, os.WriteFile(file, b, 0o600))
			switch kind {
			case Zstd:
				// Frames, sizes and checksums, as it lists them.
				list := string(pipe(t, nil, "zstd", "-l", "-v", file))
				frames := max(1, (len(m.data)+partSize-1)/partSize)
				if !strings.Contains(list, fmt.Sprintf("# Zstandard Frames: %d\n", frames)) || !strings.Contains(list, fmt.Sprintf("(%d B)", len(m.data))) || len(m.data) > 0 && !strings.Contains(list, "XXH64") {
					t.Errorf("%s: %s", name, list)
				}
			case XZ:
				list := string(pipe(t, nil, "xz", "--robot", "-l", "-v", "-v", file))
				blocks := (len(m.data) + xzBlock - 1) / xzBlock
				if !strings.Contains(list, fmt.Sprintf("\ntotals\t1\t%d\t%d\t%d\t", blocks, len(b), len(m.data))) {
					t.Errorf("%s: %s", name, list)
				}
			case Gzip:
				list := strings.Fields(string(pipe(t, nil, "gzip", "-l", file)))
				if list[len(list)-3] != fmt.Sprint(len(m.data)) {
					t.Errorf("%s: %s", name, list)
				}
			}
		}
	}
}

// huge is a disk that is far larger than any memory, with one byte in it.
type huge struct {
	memory
	size int64
}

func (h *huge) Size() int64 { return h.size }
func (h *huge) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if at := h.extents[0].Start - off; at >= 0 && at < int64(len(p)) {
		p[at] = 1
	}
	return len(p), nil
}

// TestHoles asks that holes are not read, and that a large disk takes no memory for what it does not hold.
func TestHoles(t *testing.T) {
	h := &huge{size: 256 << 30}
	h.extents = []qcow.Extent{{Start: 100<<30 + 5, Length: 1, Kind: qcow.Data}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var read atomic.Int64
	src := counted{h, &read}
	r, err := Compress(context.Background(), io.Discard, src, Options{Kind: Zstd, Workers: 2, Bmap: true})
	check(t, err)
	runtime.ReadMemStats(&after)
	if read.Load() != partSize {
		t.Errorf("%d bytes were read for one", read.Load())
	}
	if used := after.TotalAlloc - before.TotalAlloc; used > 200<<20 {
		t.Errorf("%d MiB were allocated", used>>20)
	}
	if len(r.Bmap.Ranges) != 1 || r.Size > 40<<20 {
		t.Errorf("%d ranges, %d bytes", len(r.Bmap.Ranges), r.Size)
	}
}

type counted struct {
	*huge
	n *atomic.Int64
}

func (c counted) ReadAt(p []byte, off int64) (int, error) {
	c.n.Add(int64(len(p)))
	return c.huge.ReadAt(p, off)
}

func TestMapUnit(t *testing.T) {
	for _, c := range []struct{ size, unit int64 }{{0, 64 << 10}, {64 << 30, 64 << 10}, {65 << 30, 128 << 10}, {1 << 40, 1 << 20}, {1 << 62, 4 << 20}} {
		if got := mapUnit(c.size); got != c.unit {
			t.Errorf("%d: %d", c.size, got)
		}
	}
}

// A large member: the sum of the whole from those of its parts, and a size beyond 32 bits in the long form.
func TestGzipSum(t *testing.T) {
	tool(t, "gzip")
	h := &huge{size: 256<<20 + 4097}
	if os.Getenv("NODEBAKE_SOAK") != "" {
		h.size += 4 << 30
	}
	h.extents = []qcow.Extent{{Start: 200 << 20, Length: 1, Kind: qcow.Data}}
	b, _ := compress(t, h, Options{Kind: Gzip, Level: 1})
	pipe(t, b, "gzip", "-t")
}

var (
	errBroken       = errors.New("broken")
	errBusy   error = unix.EBUSY
)

type failingWriter struct{ left int }

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errBroken
	}
	return len(p), nil
}

func TestFailures(t *testing.T) {
	r := random(3)
	m := &memory{data: make([]byte, 40<<20)}
	for i := range m.data {
		m.data[i] = byte(r.Uint32())
	}
	m.extents = []qcow.Extent{{Length: m.Size(), Kind: qcow.Data}}
	for _, kind := range []Kind{Plain, Zstd, Gzip} {
		_, err := Compress(context.Background(), &failingWriter{left: 10 << 20}, m, Options{Kind: kind, Workers: 3})
		if !errors.Is(err, errBroken) {
			t.Errorf(".%s: a writer that fails: %v", kind, err)
		}
		m.read = func(off, n int64) error {
			if off+n > 20<<20 {
				return errBroken
			}
			return nil
		}
		_, err = Compress(context.Background(), io.Discard, m, Options{Kind: kind, Workers: 3})
		if !errors.Is(err, errBroken) || !strings.HasPrefix(err.Error(), "reading the disk at byte 20971520: ") && !strings.HasPrefix(err.Error(), "reading the disk at byte 16777216: ") {
			t.Errorf(".%s: a source that fails: %v", kind, err)
		}
		m.read = nil
		ctx, cancel := context.WithCancel(context.Background())
		var last int64
		_, err = Compress(ctx, io.Discard, m, Options{Kind: kind, Workers: 3, Progress: func(done int64) {
			if last = done; done >= 8<<20 {
				cancel()
			}
		}})
		if !errors.Is(err, context.Canceled) || last > 12<<20 {
			t.Errorf(".%s: cancelled: %v after %d bytes", kind, err, last)
		}
	}
	short := &memory{data: m.data[:5<<20], extents: []qcow.Extent{{Length: 5 << 20, Kind: qcow.Data}}}
	if _, err := Sum(context.Background(), shrunk{short}, Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that is too short: %v", err)
	}
}

type shrunk struct{ *memory }

func (s shrunk) Size() int64 { return s.memory.Size() + 1000 }
func (s shrunk) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.memory.Size() {
		return 0, io.EOF
	}
	return s.memory.ReadAt(p, off)
}

func TestProgress(t *testing.T) {
	m := randomDisk(random(11), 60<<20)
	var last int64
	_, err := Sum(context.Background(), m, Options{Progress: func(done int64) {
		if done <= last {
			t.Errorf("%d after %d", done, last)
		}
		last = done
	}})
	check(t, err)
	if last != m.Size() {
		t.Errorf("%d of %d", last, m.Size())
	}
}

func TestSumLine(t *testing.T) {
	tool(t, "sha256sum")
	dir := t.TempDir()
	t.Chdir(dir)
	for _, name := range []string{"node.raw.zst", "with blank", "back\\slash", "new\nline", "re\rturn", "-dash", "ü\xff"} {
		content := []byte("contents of " + name)
		check(t, os.WriteFile(name, content, 0o600))
		line := SumLine("some/folder/"+name, sha256.Sum256(content))
		if want := string(pipe(t, nil, "sha256sum", "--", name)); line != want {
			t.Errorf("%q: %q, sha256sum says %q", name, line, want)
		}
		pipe(t, []byte(line), "sha256sum", "-c", "--strict", "--quiet")
	}
}
