package xfs

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// sparseMem is a device of which most is zero. It refuses to grow beyond what a test disk may need.
type sparseMem struct {
	pages map[int64][]byte
	size  int64
}

const page = 4096

func newSparse(r io.ReaderAt, size int64) (*sparseMem, error) {
	m := &sparseMem{pages: map[int64][]byte{}, size: size}
	b := make([]byte, page)
	zero := make([]byte, page)
	for off := int64(0); off < size; off += page {
		n, err := r.ReadAt(b, off)
		if n < page && err != io.EOF {
			return nil, err
		}
		clear(b[n:])
		if !bytes.Equal(b, zero) {
			m.pages[off] = bytes.Clone(b)
		}
	}
	return m, nil
}

func (m *sparseMem) clone() *sparseMem {
	c := &sparseMem{pages: make(map[int64][]byte, len(m.pages)), size: m.size}
	for k, v := range m.pages {
		c.pages[k] = v
	}
	return c
}

func (m *sparseMem) ReadAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		if at >= m.size {
			return n, io.EOF
		}
		base := at / page * page
		k := min(int(base+page-at), len(p)-n)
		if b := m.pages[base]; b != nil {
			copy(p[n:n+k], b[at-base:])
		} else {
			clear(p[n : n+k])
		}
		n += k
	}
	return len(p), nil
}

func (m *sparseMem) WriteAt(p []byte, off int64) (int, error) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		base := at / page * page
		k := min(int(base+page-at), len(p)-n)
		b := make([]byte, page) // never in place: clones share pages
		copy(b, m.pages[base])
		copy(b[at-base:], p[n:n+k])
		m.pages[base] = b
		n += k
	}
	return len(p), nil
}

// seedDisk is a small filesystem with folders, attributes and files in every form. It comes from testdata, where
// TestSeedDisk keeps it, so that fuzzing needs no tools.
func seedDisk(t testing.TB) *sparseMem {
	t.Helper()
	text, err := os.ReadFile("testdata/seed.disk")
	if err != nil {
		t.Fatal(err)
	}
	z, err := zlib.NewReader(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	m := &sparseMem{pages: map[int64][]byte{}}
	var head [8]byte
	if _, err := io.ReadFull(z, head[:]); err != nil {
		t.Fatal(err)
	}
	m.size = int64(be.Uint64(head[:]))
	for {
		if _, err := io.ReadFull(z, head[:]); err != nil {
			return m
		}
		b := make([]byte, page)
		if _, err := io.ReadFull(z, b); err != nil {
			t.Fatal(err)
		}
		m.pages[int64(be.Uint64(head[:]))] = b
	}
}

// TestSeedDisk makes testdata/seed.disk anew when NODEBAKE_UPDATE is set, and checks that it reads.
func TestSeedDisk(t *testing.T) {
	if os.Getenv("NODEBAKE_UPDATE") != "" {
		needRepair(t)
		img := mkfs(t, 320<<20, "-b", "size=1024", "-m", "rmapbt=1", "-i", "nrext64=1", "-d", "agcount=2")
		w := openWriter(t, img)
		for _, d := range []string{"d", "block", "leaf", "node"} {
			mustAdd(t, w, &tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0755}, nil)
		}
		mustAdd(t, w, file("first", 0), noise(1, 2000))
		for _, d := range []struct {
			name string
			n    int
		}{{"d", 3}, {"block", 30}, {"leaf", 200}, {"node", 700}} {
			for i := 0; i < d.n; i++ {
				mustAdd(t, w, &tar.Header{Name: fmt.Sprintf("%s/f%d", d.name, i), Typeflag: tar.TypeLink, Linkname: "first"}, nil)
			}
		}
		mustAdd(t, w, &tar.Header{Name: "d/remote link", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("r", 1000)}, nil)
		mustAdd(t, w, &tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "r"}, nil)
		mustAdd(t, w, &tar.Header{Name: "d/dev", Typeflag: tar.TypeChar, Devmajor: 1}, nil)
		sparse := make([]byte, 3<<20)
		for i := 0; i < len(sparse); i += 131072 {
			sparse[i] = 1
		}
		mustAdd(t, w, file("d/sparse", 0), sparse)
		for _, n := range []int{1, 5, 60} {
			h := &tar.Header{Name: fmt.Sprintf("d/xattr-%d", n), Typeflag: tar.TypeReg, PAXRecords: map[string]string{}}
			for i := 0; i < n; i++ {
				h.PAXRecords[fmt.Sprintf("%suser.%d", xattrPrefix, i)] = strings.Repeat("v", i*13)
			}
			mustAdd(t, w, h, nil)
		}
		mustAdd(t, w, &tar.Header{Name: "d/acl", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrPrefix + aclAccessName: testACL, xattrPrefix + "user.big": strings.Repeat("b", 3000)}}, nil)
		commit(t, w)
		repairClean(t, img)
		f, size := openImage(t, img)
		m, err := newSparse(f, size)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		enc := base64.NewEncoder(base64.StdEncoding, &out)
		z := zlib.NewWriter(enc)
		z.Write(be.AppendUint64(nil, uint64(size)))
		offs := make([]int64, 0, len(m.pages))
		for off := range m.pages {
			offs = append(offs, off)
		}
		slices.Sort(offs)
		for _, off := range offs {
			z.Write(be.AppendUint64(nil, uint64(off)))
			z.Write(m.pages[off])
		}
		z.Close()
		enc.Close()
		if err := os.MkdirAll("testdata", 0755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/seed.disk", out.Bytes(), 0644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Open(seedDisk(t), seedDisk(t).size)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(ourTree(t, f)); n < 200 {
		t.Errorf("%d files", n)
	}
}

// attack walks everything that can be reached, then writes. Errors are fine; panics, hangs and great memory are not.
func attack(m *sparseMem) {
	f, err := Open(m, m.size)
	if err != nil {
		return
	}
	f.noCRC = true
	budget := 2000
	var walk func(name string, depth int)
	walk = func(name string, depth int) {
		if budget--; budget < 0 || depth > 10 {
			return
		}
		h, err := f.Stat(name)
		if err != nil {
			return
		}
		if h.Typeflag == tar.TypeReg {
			if r, err := f.Open(name); err == nil {
				io.CopyN(io.Discard, r, 64<<10)
				r.ReadAt(make([]byte, 100), r.Size()-50)
			}
		}
		names, _ := f.ReadDir(name)
		for _, n := range names {
			walk(name+"/"+n, depth+1)
		}
	}
	walk(".", 0)
	f.Check(context.Background(), func(error) {})

	attackWriter(m, false, false, false)
	attackWriter(m, true, true, false)
	attackWriter(m, false, false, true)
	attackWriter(m, true, false, true)
}

func attackWriter(m *sparseMem, count, parent, grow bool) {
	c := m.clone()
	o := Options{Now: now, CountOnly: count}
	if grow {
		o.Grow = func(need int64) (int64, error) {
			c.size = max(c.size, min(need+1<<20, m.size+64<<20))
			return c.size, nil
		}
	}
	w, err := openWriterWith(c, c.size, o, true)
	if err != nil {
		return
	}
	if grow {
		c.size += 40 << 20
		w.Grow(c.size)
	}
	if parent {
		w.sb.inc |= incParent // so that links rewrite attributes
		for _, n := range []string{"d/xattr-60", "d/sparse", "d/remote link", "d/dev"} {
			w.Add(&tar.Header{Name: "block/" + strings.ReplaceAll(n, "/", "-"), Typeflag: tar.TypeLink, Linkname: n}, nil)
		}
	}
	w.Add(&tar.Header{Name: "new", Typeflag: tar.TypeDir}, nil)
	w.Add(file("new/file", 200<<10), &pattern{200 << 10})
	w.Replace(file("d/f1", 100), &pattern{100})
	w.Remove("d/sparse")
	w.Remove("d/xattr-60")
	w.Add(&tar.Header{Name: "leaf", Typeflag: tar.TypeDir, PAXRecords: map[string]string{xattrPrefix + "user.a": "b"}}, nil)
	w.Add(&tar.Header{Name: "node/new", Typeflag: tar.TypeSymlink, Linkname: "x"}, nil)
	w.Commit(context.Background())
}

// hurt changes the disk where a fuzz target says: data is a list of (which block, where in it, new byte), four bytes each.
func hurt(m *sparseMem, blocks []int64, data []byte) {
	for i := 0; len(data) >= 4 && i < 64; i++ {
		b := blocks[int(data[0])%len(blocks)]
		m.WriteAt(data[3:4], b+int64(be.Uint16(data[1:]))%4096)
		data = data[4:]
	}
}

// blocksWith are the offsets of the seed disk's blocks that hold magic at a place.
func blocksWith(m *sparseMem, at int, magics ...string) []int64 {
	var out []int64
	for off, b := range m.pages {
		for i := 0; i < page; i += 1024 {
			for _, magic := range magics {
				if string(b[i+at:i+at+len(magic)]) == magic {
					out = append(out, off+int64(i))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

func fuzzBlocks(f *testing.F, blocks func(*sparseMem) []int64) {
	disk := seedDisk(f)
	at := blocks(disk)
	if len(at) == 0 {
		f.Fatal("nothing to fuzz on the seed disk")
	}
	f.Add([]byte{0, 0, 4, 0xff})
	f.Add([]byte{0, 0, 0, 0, 1, 0, 7, 9, 2, 0, 60, 0x80})
	f.Add([]byte{3, 0, 16, 0xff, 3, 0, 17, 0xff, 3, 0, 70, 1, 5, 0, 6, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := disk.clone()
		hurt(m, at, data)
		attack(m)
	})
}

func FuzzSuperblock(f *testing.F) {
	disk := seedDisk(f)
	f.Add([]byte{0, 4, 0xff})
	f.Add([]byte{0, 88, 0xff, 0, 89, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		m := disk.clone()
		var b [512]byte
		m.ReadAt(b[:], 0)
		for ; len(data) >= 3; data = data[3:] {
			b[int(be.Uint16(data))%len(b)] = data[2]
		}
		setCRC(b[:], sbCRC)
		m.WriteAt(b[:], 0)
		attack(m)
	})
}

func FuzzGroupHeaders(f *testing.F) {
	fuzzBlocks(f, func(m *sparseMem) []int64 { return []int64{512, 1024, 1536} })
}

func FuzzTrees(f *testing.F) {
	fuzzBlocks(f, func(m *sparseMem) []int64 {
		return blocksWith(m, 0, "AB3B", "AB3C", "IAB3", "FIB3", "RMB3", "R3FC", "BMA3")
	})
}

func FuzzFolders(f *testing.F) {
	fuzzBlocks(f, func(m *sparseMem) []int64 {
		return append(blocksWith(m, 0, "XDB3", "XDD3", "XDF3"), blocksWith(m, 8, "\x3d\xf1", "\x3d\xff", "\x3e\xbe")...)
	})
}

func FuzzAttributes(f *testing.F) {
	fuzzBlocks(f, func(m *sparseMem) []int64 {
		return append(blocksWith(m, 0, "XARM", "XSLM"), blocksWith(m, 8, "\x3b\xee", "\x3e\xbe")...)
	})
}

func FuzzInodes(f *testing.F) {
	fuzzBlocks(f, func(m *sparseMem) []int64 { return blocksWith(m, 0, "IN") })
}

func FuzzACL(f *testing.F) {
	f.Add([]byte(testACL))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, ok := aclFromPosix(string(b)); ok {
			back, ok := aclToPosix(v)
			if !ok || len(back) != len(b) {
				t.Errorf("%x becomes %x", b, back)
			}
		}
		aclToPosix(string(b))
	})
}
