package ext4

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"strings"
	"testing"
)

// memory is a device in memory.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m)-len(p)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

// base unpacks an empty filesystem of testdata.
func base(t testing.TB, name string) memory {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".img.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// populated is a base with a file in many pieces, a folder of several blocks, attributes and links.
func populated(t testing.TB, name string) memory {
	t.Helper()
	m := base(t, name)
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	add := func(h *tar.Header, data string) {
		t.Helper()
		h.Size = int64(len(data))
		if err := w.Add(h, strings.NewReader(data)); err != nil {
			t.Fatal(err)
		}
	}
	pax := map[string]string{xattrPrefix + "user.a": "1", xattrPrefix + "user.big": strings.Repeat("b", 300), xattrPrefix + aclAccessName: acl(1, 6, aclNoID, 2, 7, 1000, 4, 5, aclNoID, 0x10, 4, aclNoID, 0x20, 4, aclNoID)}
	add(&tar.Header{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: pax}, "")
	add(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: pax}, string(sparse(12<<16+5, 0, 2<<16, 4<<16, 6<<16, 8<<16, 10<<16, 12<<16)))
	add(&tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 70)}, "")
	for i := range 12 {
		add(&tar.Header{Name: "dir/" + string(rune('a'+i)) + strings.Repeat("n", 200), Typeflag: tar.TypeLink, Linkname: "file"}, "")
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	return m
}

// The fuzz targets take images of 1 MiB: -fuzzminimizetime 1x keeps the engine from spending its time on shrinking inputs.

// exercise reads all of a filesystem, within bounds, and then writes to it; errors are expected, panics are not.
func exercise(m memory) {
	f, err := Open(m, int64(len(m)))
	if err != nil {
		return
	}
	f.Info()
	left := 300
	var walk func(name string, depth int)
	walk = func(name string, depth int) {
		if left--; left < 0 || depth > 8 {
			return
		}
		h, err := f.Stat(name)
		if err != nil {
			return
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if r, err := f.Open(name); err == nil {
				io.CopyN(io.Discard, r, 1<<20)
				r.ReadAt(make([]byte, 5000), h.Size-4000)
			}
		case tar.TypeDir:
			names, _ := f.ReadDir(name)
			for _, n := range names {
				walk(name+"/"+n, depth+1)
			}
		}
	}
	walk("", 0)
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		return
	}
	pax := map[string]string{xattrPrefix + "user.z": strings.Repeat("z", 200)}
	w.Add(&tar.Header{Name: "dir", Typeflag: tar.TypeDir, Mode: 0o700, PAXRecords: pax}, nil)
	w.Add(&tar.Header{Name: "dir/new", Typeflag: tar.TypeDir}, nil)
	w.Add(&tar.Header{Name: "dir/new/f", Typeflag: tar.TypeReg, Size: 20000, PAXRecords: pax}, bytes.NewReader(content(1, 20000)))
	w.Add(&tar.Header{Name: "added", Typeflag: tar.TypeLink, Linkname: "file"}, nil)
	w.Remove("dir/a" + strings.Repeat("n", 200))
	w.Replace(&tar.Header{Name: "file", Typeflag: tar.TypeReg, Size: 3}, strings.NewReader("abc"))
	w.Remove("link")
	w.Commit(context.Background())
}

func patched(m memory, off int64, data []byte) memory {
	c := bytes.Clone(m)
	if off >= 0 && off < int64(len(c)) {
		copy(c[off:], data)
	}
	return c
}

// inodeOffset finds an inode in an image.
func inodeOffset(t testing.TB, m memory, name string) (off int64, raw []byte) {
	t.Helper()
	f, err := Open(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	ino, err := f.lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	k, in := f.itab.where(ino)
	off, _ = f.itab.span(k)
	if raw, err = f.inode(ino); err != nil {
		t.Fatal(err)
	}
	return off + int64(in), raw
}

// FuzzSuper replaces the superblock and the group descriptors.
func FuzzSuper(f *testing.F) {
	images := []memory{populated(f, "plain"), populated(f, "indirect")}
	for i, m := range images {
		f.Add(i == 1, []byte(m[1024:3072]))
	}
	f.Fuzz(func(t *testing.T, indirect bool, data []byte) {
		m := images[0]
		if indirect {
			m = images[1]
		}
		exercise(patched(m, 1024, data[:min(len(data), 4096)]))
	})
}

// FuzzInode replaces the inode of the file in pieces and the block that its map is in.
func FuzzInode(f *testing.F) {
	images := []memory{populated(f, "plain"), populated(f, "indirect")}
	var at, meta [2]int64
	for i, m := range images {
		off, raw := inodeOffset(f, m, "file")
		at[i] = off
		fs, _ := Open(m, int64(len(m)))
		fs.walkMap(12, raw, func(extent) error { return nil }, func(b int64) error { meta[i] = b * 1024; return nil })
		f.Add(i == 1, raw, []byte(m[meta[i]:meta[i]+1024]))
	}
	f.Fuzz(func(t *testing.T, indirect bool, inode, block []byte) {
		i := 0
		if indirect {
			i = 1
		}
		m := patched(images[i], at[i], inode[:min(len(inode), 256)])
		exercise(patched(m, meta[i], block[:min(len(block), 1024)]))
	})
}

// FuzzFolder replaces the blocks and the flags of the folder dir.
func FuzzFolder(f *testing.F) {
	m := populated(f, "plain")
	off, raw := inodeOffset(f, m, "dir")
	at := int64(le.Uint32(raw[inBlock+extHeader+eeStartLo:])) * 1024
	size := inodeSize(raw)
	f.Add(inodeFlags(raw), uint32(size), raw[inBlock:inBlock+60], []byte(m[at:at+size]))
	f.Add(inodeFlags(raw)|flagInlineData, uint32(60), append([]byte{2, 0, 0, 0, 12, 0, 0, 0, 56, 0, 1, 1, 'x'}, make([]byte, 47)...), []byte{})
	f.Fuzz(func(t *testing.T, flags, size uint32, block, data []byte) {
		m := patched(m, at, data[:min(len(data), 8192)])
		le.PutUint32(m[off+inFlags:], flags)
		le.PutUint32(m[off+inSizeLo:], size)
		copy(m[off+inBlock:off+inBlock+60], block)
		exercise(m)
	})
}

// FuzzXattrs replaces the attributes in the inode of a file and in its attribute block.
func FuzzXattrs(f *testing.F) {
	m := populated(f, "plain")
	off, raw := inodeOffset(f, m, "file")
	at := int64(le.Uint32(raw[inACLLo:])) * 1024
	f.Add(raw[oldInodeSize:], []byte(m[at:at+1024]))
	f.Fuzz(func(t *testing.T, inode, block []byte) {
		m := patched(m, off+oldInodeSize, inode[:min(len(inode), 128)])
		exercise(patched(m, at, block[:min(len(block), 1024)]))
	})
}

// FuzzACL checks that what converts in one direction converts back.
func FuzzACL(f *testing.F) {
	f.Add([]byte(acl(1, 6, aclNoID, 2, 7, 1000, 4, 5, aclNoID, 8, 4, 2000, 0x10, 4, aclNoID, 0x20, 4, aclNoID)))
	f.Fuzz(func(t *testing.T, v []byte) {
		disk, err := aclToDisk(v)
		if err != nil {
			aclFromDisk(v)
			return
		}
		back, err := aclFromDisk(disk)
		if err != nil {
			t.Fatal(err)
		}
		again, err := aclToDisk(back)
		if err != nil || !bytes.Equal(again, disk) {
			t.Fatalf("%x became %x, then %x: %v", v, disk, again, err)
		}
	})
}

// elastic is a device in memory that can grow a little.
type elastic struct{ memory }

func (e *elastic) grow(need int64) (int64, error) {
	if need > 8<<20 {
		return 0, nil
	}
	if n := need - int64(len(e.memory)); n > 0 {
		e.memory = append(e.memory, bytes.Repeat([]byte{0xA5}, int(n))...)
	}
	return need, nil
}

// FuzzGrow replaces the superblock, the descriptors, the resize inode and its map, and grows what that makes.
func FuzzGrow(f *testing.F) {
	m := memory(make([]byte, 1<<20))
	if err := Format(m, int64(len(m)), formatOptions); err != nil {
		f.Fatal(err)
	}
	fs, err := Open(m, int64(len(m)))
	if err != nil {
		f.Fatal(err)
	}
	inode := fs.descBlockNo(0, gdInodeTableLo, gdInodeTableHi)*fs.bs + (resizeInode-1)*formatInode
	double := int64(le.Uint32(m[inode+inBlock+4*(directBlocks+1):])) * fs.bs
	sb := m[superOffset : superOffset+superSize]
	le.PutUint32(sb[sbROCompat:], le.Uint32(sb[sbROCompat:])&^roMetadataCsum) // nothing to seal
	f.Add([]byte(sb), []byte(m[4096:4096+64]), []byte(m[inode:inode+128]), []byte(m[double:double+64]), uint32(7<<20))
	meta := bytes.Clone(sb)
	le.PutUint32(meta[sbIncompat:], le.Uint32(meta[sbIncompat:])|incompatMetaBG)
	le.PutUint32(meta[sbCompat:], le.Uint32(meta[sbCompat:])&^compatResizeInode)
	f.Add(meta, []byte(m[4096:4096+64]), []byte{}, []byte{}, uint32(6<<20))
	f.Fuzz(func(t *testing.T, super, descs, raw, block []byte, size uint32) {
		c := patched(m, superOffset, super[:min(len(super), superSize)])
		c = patched(c, 4096, descs[:min(len(descs), 4096)])
		c = patched(c, inode, raw[:min(len(raw), formatInode)])
		c = patched(c, double, block[:min(len(block), 4096)])
		for _, count := range []bool{true, false} {
			e := &elastic{bytes.Clone(c)}
			w, err := OpenWriter(e, int64(len(c)), Options{Now: testNow, CountOnly: count, Grow: e.grow})
			if err != nil {
				return
			}
			to := int64(size) % (8 << 20)
			if count {
				w.Grow(int64(size) * 4)
			} else if _, err := e.grow(to); err == nil {
				w.Grow(to)
			}
			w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil)
			for i := range 60 {
				w.Add(&tar.Header{Name: "d/" + strings.Repeat("n", i), Typeflag: tar.TypeReg, Size: 50000}, bytes.NewReader(content(1, 50000)))
			}
			if n, err := e.grow(w.Size() + 1<<20); err == nil && n > 0 {
				w.Grow(n)
			}
			if w.Commit(context.Background()) != nil || count {
				continue
			}
			if _, err := Open(e, int64(len(e.memory))); err != nil {
				t.Errorf("what was written is not read: %v", err)
			}
		}
	})
}
