package qcow

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// exercise does with an image what a bake would, and demands only that nothing panics, runs away or contradicts itself.
func exercise(t *testing.T, b []byte) {
	f := &memFile{b: b}
	im, err := Open(f, Options{Resolve: func(_, format string) (Source, error) { return &memFile{b: b[:len(b)/2]}, nil }})
	if err == nil {
		p := make([]byte, 64<<10)
		for _, off := range []int64{0, 1000, im.Size() / 2, im.Size() - 1000} {
			im.ReadAt(p, max(off, 0))
		}
		n := 0
		for e, err := range im.Extents(0, im.Size()) {
			if err == nil && e.Length <= 0 {
				t.Fatalf("extent %+v", e)
			}
			if e.Kind == Data || e.Kind == Compressed {
				im.ReadAt(p, e.Start)
			}
			if n++; n == 200 {
				break
			}
		}
	}
	r, cerr := Check(f, Options{})
	w, perr := OpenPatch(f, f.Size(), Options{})
	if perr != nil {
		return
	}
	if cerr != nil || r.Total != r.Leaks {
		t.Fatalf("OpenPatch accepts what Check does not: %v, %+v", cerr, r)
	}
	// A Writer of a good image keeps it good.
	data := bytes.Repeat([]byte("fuzz"), 5000)
	for _, off := range []int64{0, 12345, w.Size() / 2, w.Size() - int64(len(data))} {
		if off < 0 || off+int64(len(data)) > w.Size() {
			continue
		}
		if _, err := w.WriteAt(data, off); err != nil {
			return // a compressed cluster that does not decode
		}
		got := make([]byte, len(data))
		if _, err := w.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("read back at %#x: %v", off, err)
		}
	}
	if err := w.Close(); err != nil {
		return
	}
	if r, err := Check(f, Options{}); err != nil || r.Total != 0 {
		t.Fatalf("after writing: %v, %+v", err, r)
	}
}

// fuzzBases are small images of different forms.
func fuzzBases(f *testing.F) [][]byte {
	var out [][]byte
	for _, o := range []CreateOptions{
		{ClusterSize: 512}, {ClusterSize: 1024, Compression: "zlib"}, {ClusterSize: 1024, Compression: "zstd", RefcountBits: 1}, {ClusterSize: 16384, ExtendedL2: true},
	} {
		m := new(memFile)
		w, err := Create(m, 64<<10, o)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := w.WriteAt(bytes.Repeat([]byte("seed"), 500), 3000); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		out = append(out, m.b)
	}
	files, err := filepath.Glob("testdata/*.qcow2")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// FuzzImage changes bytes anywhere in images of different forms.
func FuzzImage(f *testing.F) {
	bases := fuzzBases(f)
	for i := range bases {
		f.Add(uint8(i), uint16(0), []byte{}, uint16(0), []byte{})
		f.Add(uint8(i), uint16(60), []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 4, 0}, uint16(1024), []byte{0, 0, 0, 0, 0, 0, 4})
	}
	f.Fuzz(func(t *testing.T, base uint8, off1 uint16, p1 []byte, off2 uint16, p2 []byte) {
		b := bytes.Clone(bases[int(base)%len(bases)])
		for i, x := range p1 {
			b[(int(off1)+i)%len(b)] ^= x
		}
		for i, x := range p2 {
			b[(int(off2)+i)%len(b)] ^= x
		}
		exercise(t, b)
	})
}

// FuzzTables puts mutated tables into an image with clusters of 512 bytes whose header is good.
func FuzzTables(f *testing.F) {
	be := binary.BigEndian
	f.Add([]byte{}, []byte{}, []byte{}, uint8(0))
	f.Add(be.AppendUint64(nil, 0xc00|flagCopied), be.AppendUint64(be.AppendUint64(nil, flagCompressed|0x1000), flagZero), []byte{0, 1, 0, 2}, uint8(3))
	f.Add(be.AppendUint64(nil, 0xc00), be.AppendUint64(nil, 0xe00|flagCopied), be.AppendUint64(nil, 2), uint8(1))
	f.Fuzz(func(t *testing.T, l1, l2, refcounts []byte, form uint8) {
		m := new(memFile)
		o := CreateOptions{ClusterSize: 512, RefcountBits: 1 << (form >> 2 % 7)}
		switch form & 3 {
		case 1:
			o.Compression = "zlib"
		case 2:
			o.Compression = "zstd"
		case 3:
			o.ClusterSize, o.ExtendedL2 = 16384, true
		}
		w, err := Create(m, 100000, o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(bytes.Repeat([]byte("data"), 1000), 3000); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		xor := func(off int64, p []byte) {
			for i := 0; i < len(p) && i < o.ClusterSize && off+int64(i) < int64(len(m.b)); i++ {
				m.b[off+int64(i)] ^= p[i]
			}
		}
		at := int64(w.im.l1[0] & offsetMask)
		xor(at, l2)
		xor(int64(w.hdr.l1Off), l1)
		xor(int64(w.rt[0]), refcounts)
		exercise(t, m.b)
	})
}

// FuzzDirectories changes the snapshot table, or the bitmap directory and the first bitmap's table, of images that QEMU made.
func FuzzDirectories(f *testing.F) {
	be := binary.BigEndian
	read := func(name string) []byte {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	snap, bitmap := read("snap.qcow2"), read("bitmap.qcow2")
	h, err := readHeader(&memFile{b: bitmap})
	if err != nil {
		f.Fatal(err)
	}
	x, ok, err := h.bitmaps()
	if !ok || err != nil {
		f.Fatal("no bitmaps: ", err)
	}
	table := be.Uint64(bitmap[x.dirOff:])
	f.Add([]byte{}, []byte{})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 4, 0}, []byte{0, 0, 0, 0, 0, 0, 4, 1})
	f.Add(append(make([]byte, 8), 0xff, 0xff, 0xff), append(make([]byte, 16), 0xff, 0xff))
	f.Add(append(make([]byte, 36), 0xff), append(make([]byte, 8), 0x7f))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		xor := func(image []byte, off uint64, p []byte) []byte {
			image = bytes.Clone(image)
			for i := 0; i < len(p) && int(off)+i < len(image); i++ {
				image[int(off)+i] ^= p[i]
			}
			return image
		}
		exercise(t, xor(snap, be.Uint64(snap[64:]), a))
		exercise(t, xor(xor(bitmap, x.dirOff, a), table, b))
	})
}

// FuzzInflate holds our inflate against the standard library's.
func FuzzInflate(f *testing.F) {
	for _, level := range []int{1, 6, flate.HuffmanOnly, flate.NoCompression} {
		var b bytes.Buffer
		w, err := flate.NewWriter(&b, level)
		if err != nil {
			f.Fatal(err)
		}
		w.Write(bytes.Repeat([]byte("abcabcabd"), 100))
		w.Close()
		f.Add(b.Bytes(), uint16(900))
	}
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		got, want := make([]byte, n), make([]byte, n)
		err := inflate(got, b)
		_, werr := io.ReadFull(flate.NewReader(bytes.NewReader(b)), want)
		if (err == nil) != (werr == nil) {
			t.Fatalf("error %v, want %v", err, werr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatal("content differs")
		}
	})
}

// FuzzZstd decodes mutated zstd clusters with bounded output.
func FuzzZstd(f *testing.F) {
	e, err := newEncoder("zstd", 3, 65536)
	if err != nil {
		f.Fatal(err)
	}
	b, err := e.compress(nil, bytes.Repeat([]byte("abcabcabd"), 1000))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, uint16(9000))
	f.Add(append(append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9}, b...), b...), uint16(18000))
	f.Fuzz(func(t *testing.T, b []byte, n uint16) {
		unzstd(make([]byte, n), b)
		unzstd(make([]byte, n, int(n)+zstdSlack), b)
	})
}

// FuzzDeflate packs and unpacks, with the standard library and our own decoder.
func FuzzDeflate(f *testing.F) {
	f.Add([]byte("abcabcabcabcabcabc, and so on, and so on"), uint8(6), uint8(30))
	f.Fuzz(func(t *testing.T, b []byte, level, repeat uint8) {
		b = bytes.Repeat(b, int(repeat)+1)
		if len(b) > 1<<18 {
			return
		}
		z := deflate(nil, b, int(level)%9+1)
		got, err := io.ReadAll(flate.NewReader(bytes.NewReader(z)))
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("the standard library reads %d of %d bytes: %v", len(got), len(b), err)
		}
		if err := inflate(got, z); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("our own reader: %v", err)
		}
	})
}

// FuzzZstdCompress packs and unpacks, with the library's decoder.
func FuzzZstdCompress(f *testing.F) {
	f.Add([]byte("abcabcabcabcabcabc, and so on, and so on"), uint8(3), uint8(30), uint32(0))
	f.Add([]byte("abcabcabcabcabcabc, and so on, and so on"), uint8(9), uint8(200), uint32(40000))
	f.Fuzz(func(t *testing.T, b []byte, level, repeat uint8, noise uint32) {
		b = bytes.Repeat(b, int(repeat)+1)
		// Incompressible bytes in the middle make plain blocks between others.
		n := len(b) / 2
		r := rand.New(rand.NewPCG(uint64(noise), 1))
		for range noise % 100000 {
			b = append(b, byte(r.Uint32()))
		}
		b = append(b, b[:n]...)
		if len(b) > 1<<19 {
			return
		}
		z := zstdCompress(nil, b, int(level)%22+1)
		got := make([]byte, len(b))
		if err := unzstd(got, z); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("level %d, %d bytes: %v", int(level)%22+1, len(b), err)
		}
		if n, err := zstdFrame(z); err != nil || n != len(z) {
			t.Fatalf("the frame has %d bytes of %d: %v", n, len(z), err)
		}
	})
}
