package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func set32(off int, v uint32) func(m memory) {
	return func(m memory) { le.PutUint32(m[superOffset+off:], v) }
}

func or32(off int, v uint32) func(m memory) {
	return func(m memory) {
		le.PutUint32(m[superOffset+off:], le.Uint32(m[superOffset+off:])|v)
	}
}

func set16(off int, v uint16) func(m memory) {
	return func(m memory) { le.PutUint16(m[superOffset+off:], v) }
}

// seal mends the superblock's checksum after a patch.
func seal(m memory) {
	sb := m[superOffset : superOffset+superSize]
	le.PutUint32(sb[sbChecksum:], crc32c(^uint32(0), sb[:sbChecksum]))
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name  string
		patch func(m memory)
		is    error
		says  string
		reads bool // Open alone succeeds
	}{
		{"needs_recovery", or32(sbIncompat, incompatRecover), ErrNeedsRecovery, "e2fsck", false},
		{"orphan list", set32(sbLastOrphan, 12), ErrNeedsRecovery, "orphan", true},
		{"orphan file", or32(sbROCompat, roOrphanPresent), ErrNeedsRecovery, "orphan_present", true},
		{"errors", set16(sbState, stateValid|stateError), ErrNeedsRecovery, "e2fsck", true},
		{"not unmounted", set16(sbState, 0), ErrNeedsRecovery, "e2fsck", true},
		{"journal device", or32(sbIncompat, incompatJournalDev), ErrUnsupported, "journal_dev", false},
		{"external journal", func(m memory) { or32(sbCompat, compatHasJournal)(m); set32(sbJournalDev, 0x801)(m) }, ErrUnsupported, "journal_dev", true},
		{"compression", or32(sbIncompat, incompatCompression), ErrUnsupported, "compression", false},
		{"dirdata", or32(sbIncompat, incompatDirdata), ErrUnsupported, "dirdata", false},
		{"unknown incompat", or32(sbIncompat, 0x40000000), ErrUnsupported, "incompat_0x40000000", false},
		{"unknown ro_compat", or32(sbROCompat, 0x40000000), ErrUnsupported, "ro_compat_0x40000000", true},
		{"bigalloc", or32(sbROCompat, roBigalloc), ErrUnsupported, "bigalloc", true},
		{"quota", or32(sbROCompat, roQuota), ErrUnsupported, "quota", true},
		{"read-only", or32(sbROCompat, roReadonly), ErrUnsupported, "read-only", true},
		{"shared_blocks", or32(sbROCompat, roSharedBlocks), ErrUnsupported, "shared_blocks", true},
		{"snapshot", or32(sbROCompat, 0x80), ErrUnsupported, "snapshot", true},
		{"mmp in use", func(m memory) {
			or32(sbIncompat, incompatMMP)(m)
			set32(sbMMPBlock, 400)(m)
			le.PutUint32(m[400*1024:], mmpMagic)
			le.PutUint32(m[400*1024+4:], 0xE24D4D50)
		}, ErrNeedsRecovery, "mmp", true},
		{"no magic", set16(sbMagic, 0), ErrCorrupt, "magic", false},
		{"revision", set32(sbRevLevel, 2), ErrUnsupported, "revision 2", false},
		{"block size", set32(sbLogBlockSize, 7), ErrCorrupt, "block size", false},
		{"too large", set32(sbBlocksLo, 1025), ErrCorrupt, "1025 blocks", false},
		{"inodes", set32(sbInodesCount, 63), ErrCorrupt, "63 inodes", false},
		{"inode size", set16(sbInodeSize, 192), ErrCorrupt, "inode size 192", false},
		{"blocks per group", set32(sbBlocksPerGroup, 8200), ErrCorrupt, "blocks per group", false},
		{"checksum type", func(m memory) { m[superOffset+sbChecksumType] = 2 }, ErrUnsupported, "checksum type 2", false},
		{"descriptor", func(m memory) { m[2048+gdFreeBlocksLo]++ }, ErrCorrupt, "descriptor of group 0", false},
		{"hurd", set32(sbCreatorOS, 1), ErrUnsupported, "Hurd", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := base(t, "csum")
			c.patch(m)
			seal(m)
			before := bytes.Clone(m)
			_, err := Open(m, int64(len(m)))
			if c.reads != (err == nil) {
				t.Errorf("Open: %v", err)
			}
			w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
			if w != nil || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("OpenWriter: %v", err)
			}
			if !bytes.Equal(m, before) {
				t.Error("the device was written to")
			}
		})
	}
	m := base(t, "csum")
	m[superOffset+sbLabel]++
	if _, err := Open(m, int64(len(m))); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "superblock checksum") {
		t.Errorf("wrong superblock checksum: %v", err)
	}
	for _, n := range []int64{0, 1024, 2047, 2048, 100000} {
		m := base(t, "csum")[:n]
		if _, err := Open(m, n); !errors.Is(err, ErrCorrupt) {
			t.Errorf("device of %d bytes: %v", n, err)
		}
		if _, err := Open(m, 1<<20); n < 100000 && err == nil {
			t.Errorf("device of %d bytes that claims more: no error", n)
		}
	}
}

// TestCorrupt breaks one structure at a time on a filesystem with checksums; the error says which.
func TestCorrupt(t *testing.T) {
	m := populated(t, "csum")
	fileAt, file := inodeOffset(t, m, "file")
	dirAt, dir := inodeOffset(t, m, "dir")
	dirBlock := int64(le.Uint32(dir[inBlock+extHeader+eeStartLo:])) * 1024
	var node int64
	f, err := Open(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	ino, _ := f.lookup("file")
	f.walkMap(ino, file, func(extent) error { return nil }, func(b int64) error { node = b * 1024; return nil })
	read := func(m memory) error {
		f, err := Open(m, int64(len(m)))
		if err != nil {
			return err
		}
		for _, n := range []string{"dir", "file", "link"} {
			if _, err := f.Stat(n); err != nil {
				return err
			}
		}
		if _, err := f.ReadDir("dir"); err != nil {
			return err
		}
		r, err := f.Open("file")
		if err != nil {
			return err
		}
		_, err = r.ReadAt(make([]byte, 12<<16), 0)
		return err
	}
	write := func(m memory) error {
		w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
		if err != nil {
			return err
		}
		if err := w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 1}, strings.NewReader("x")); err != nil {
			return err
		}
		return w.Commit(context.Background())
	}
	if err := read(m); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		at   int64
		do   func(memory) error
		says string
	}{
		{fileAt + inMtime, read, "has a wrong checksum"},
		{dirAt + inFlags, read, "has a wrong checksum"},
		{int64(le.Uint32(file[inACLLo:]))*1024 + 900, read, "attribute block"},
		{node + 20, read, "extent node"},
		{dirBlock + 40, read, "hash tree checksum"},
		{dirBlock + 1024 + 12, read, "folder block 1 has a wrong checksum"},
		{f.descBlockNo(0, gdBlockBitmapLo, gdBlockBitmapHi)*1024 + 30, write, "block bitmap of group 0"},
		{f.descBlockNo(0, gdInodeBitmapLo, gdInodeBitmapHi) * 1024, write, "inode bitmap of group 0"},
	} {
		bad := bytes.Clone(m)
		bad[c.at] ^= 1
		if err := c.do(bad); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("byte %d: %v, want %q", c.at, err, c.says)
		}
	}
}

func TestNames(t *testing.T) {
	m := populated(t, "csum")
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("n", 256)
	reg := func(name string) error { return w.Add(&tar.Header{Name: name, Typeflag: tar.TypeReg}, nil) }
	for _, c := range []struct {
		what string
		err  error
		is   error
	}{
		{"inner dot", reg("dir/./x"), fs.ErrInvalid},
		{"leading dot", reg("./x"), fs.ErrInvalid},
		{"inner dotdot", reg("dir/../x"), fs.ErrInvalid},
		{"dotdot", reg(".."), fs.ErrInvalid},
		{"NUL", reg("a\x00b"), syscall.EINVAL},
		{"256 bytes", reg(long), syscall.ENAMETOOLONG},
		{"no parent", reg("nowhere/x"), fs.ErrNotExist},
		{"file as parent", reg("file/x"), syscall.ENOTDIR},
		{"link as parent", reg("link/x"), syscall.ENOTDIR},
		{"existing file", reg("file"), fs.ErrExist},
		{"existing folder", reg("dir"), fs.ErrExist},
		{"the root", reg("/"), fs.ErrExist},
		{"folder over file", w.Add(&tar.Header{Name: "file", Typeflag: tar.TypeDir}, nil), fs.ErrExist},
		{"folder over link", w.Add(&tar.Header{Name: "link", Typeflag: tar.TypeDir}, nil), fs.ErrExist},
		{"replacing a folder", w.Replace(&tar.Header{Name: "dir", Typeflag: tar.TypeReg}, nil), fs.ErrExist},
		{"replacing a link", w.Replace(&tar.Header{Name: "link", Typeflag: tar.TypeReg}, nil), fs.ErrExist},
		{"replacing by a folder", w.Replace(&tar.Header{Name: "y", Typeflag: tar.TypeDir}, nil), fs.ErrInvalid},
		{"hard link to nothing", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "nothing"}, nil), fs.ErrNotExist},
		{"hard link to a folder", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "dir"}, nil), syscall.EPERM},
		{"hard link outside", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../dir"}, nil), fs.ErrInvalid},
		{"empty link", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeSymlink}, nil), fs.ErrInvalid},
		{"long link", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 1024)}, nil), fs.ErrInvalid},
		{"unknown type", w.Add(&tar.Header{Name: "x", Typeflag: 'Z'}, nil), fs.ErrInvalid},
		{"negative size", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: -1}, nil), fs.ErrInvalid},
		{"huge", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 1 << 45}, nil), syscall.EFBIG},
		{"negative owner", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Uid: -1}, nil), fs.ErrInvalid},
		{"device", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeChar, Devmajor: 4096}, nil), fs.ErrInvalid},
		{"attribute", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrPrefix + "system.data": "x"}}, nil), ErrUnsupported},
		{"attributes", w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrPrefix + "user.x": strings.Repeat("x", 1000)}}, nil), syscall.E2BIG},
		{"removing nothing", w.Remove("nothing"), fs.ErrNotExist},
		{"removing the root", w.Remove("/"), fs.ErrInvalid},
		{"removing a full folder", w.Remove("dir"), syscall.ENOTEMPTY},
	} {
		if !errors.Is(c.err, c.is) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.is)
		}
	}
	if s := w.Space(); s.NeedBlocks != 0 || s.NeedInodes != 0 {
		t.Errorf("failed calls took %+v", s)
	}
	for _, name := range []string{"/dir//a/", "//dir/a"} {
		if err := w.Add(&tar.Header{Name: name, Typeflag: tar.TypeDir}, nil); err != nil {
			t.Error(err)
		}
	}
	if h, err := w.Stat("/dir/a/"); err != nil || h.Name != "dir/a" {
		t.Errorf("%+v, %v", h, err)
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(context.Background()); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second Commit: %v", err)
	}
	if err := reg("late"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("Add after Commit: %v", err)
	}
}

// TestProtectedFolders patches flags that this package must not touch the bearers of.
func TestProtectedFolders(t *testing.T) {
	for _, flag := range []uint32{flagCasefold, flagEncrypt} {
		m := populated(t, "plain")
		off, raw := inodeOffset(t, m, "dir")
		le.PutUint32(m[off+inFlags:], inodeFlags(raw)|flag)
		w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(&tar.Header{Name: "dir/x", Typeflag: tar.TypeReg}, nil); !errors.Is(err, ErrUnsupported) {
			t.Errorf("flag %#x: %v", flag, err)
		}
		if err := w.Add(&tar.Header{Name: "beside", Typeflag: tar.TypeReg}, nil); err != nil {
			t.Errorf("flag %#x, another folder: %v", flag, err)
		}
	}
}

// TestCycle makes a directory an entry of itself, and of another one: no path through it may have no end.
func TestCycle(t *testing.T) {
	m := base(t, "plain")
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/b", "a/b/c", "a/b/other"} {
		if err := w.Add(&tar.Header{Name: name, Typeflag: tar.TypeDir}, nil); err != nil {
			t.Fatal(err)
		}
	}
	inos := map[string]uint32{}
	for _, name := range []string{"a", "a/b", "a/b/c", "a/b/other"} {
		if inos[name], err = w.lookup(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"a", "a/b", "a/b/c"} {
		bad := memory(bytes.Clone(m))
		// The entry "other" of a/b: inode, length, name length, type, name.
		at := bytes.Index(bad, []byte("\x05\x02other")) - 6
		le.PutUint32(bad[at:], inos[target])
		f, err := Open(bad, int64(len(bad)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.ReadDir("a/b/other")
		if target == "a/b/c" {
			// Two names of one directory in the same parent: wrong, but it ends.
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "its parent is") {
			t.Errorf("%s: %v", target, err)
		}
		if _, err := f.Stat("a/b/other/b"); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

// TestMetadataNotFree clears the inode table's bits in the block bitmap, where no checksum tells.
func TestMetadataNotFree(t *testing.T) {
	m := base(t, "plain")
	f, err := Open(m, int64(len(m)))
	if err != nil {
		t.Fatal(err)
	}
	table := f.descBlockNo(0, gdInodeTableLo, gdInodeTableHi)
	bit := table - f.first
	m[f.descBlockNo(0, gdBlockBitmapLo, gdBlockBitmapHi)*1024+bit/8] &^= 1 << (bit % 8)
	d := m[2048:]
	le.PutUint16(d[gdFreeBlocksLo:], le.Uint16(d[gdFreeBlocksLo:])+1)
	le.PutUint16(d[gdChecksum:], f.descSum(0, d[:f.dsize]))
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Add(&tar.Header{Name: "x", Typeflag: tar.TypeReg, Size: 1}, strings.NewReader("x"))
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "inode tables among its free blocks") {
		t.Error(err)
	}
}

type brokenDevice struct {
	memory
	left int
}

var errBroken = errors.New("broken device")

func (b *brokenDevice) WriteAt(p []byte, off int64) (int, error) {
	if b.left--; b.left < 0 {
		return 0, errBroken
	}
	return b.memory.WriteAt(p, off)
}

// TestBrokenDevice fails each write in turn: Commit must say so.
func TestBrokenDevice(t *testing.T) {
	for n := 0; ; n++ {
		d := &brokenDevice{base(t, "csum"), n}
		w, err := OpenWriter(d, int64(len(d.memory)), Options{Now: testNow})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			w.Add(&tar.Header{Name: string(rune('a' + i)), Typeflag: tar.TypeReg, Size: 9000}, bytes.NewReader(content(1, 9000)))
		}
		err = w.Commit(context.Background())
		if d.left >= 0 {
			if err != nil || n == 0 {
				t.Fatalf("after %d writes: %v", n, err)
			}
			return
		}
		if !errors.Is(err, errBroken) {
			t.Fatalf("write %d failed, Commit said %v", n, err)
		}
	}
}

func TestCommitCancelled(t *testing.T) {
	m := base(t, "csum")
	w, err := OpenWriter(m, int64(len(m)), Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&tar.Header{Name: "d", Typeflag: tar.TypeDir}, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestDeterministic writes the same twice and expects the same bytes.
func TestDeterministic(t *testing.T) {
	if a, b := populated(t, "csum"), populated(t, "csum"); !bytes.Equal(a, b) {
		t.Error("two runs differ")
	}
}

// TestTimes reads with debugfs the times as they are stored, and the creation time.
func TestTimes(t *testing.T) {
	needTools(t, "mke2fs", "debugfs")
	img := filepath.Join(workDir(t), "img")
	mkfs(t, img, "8M")
	dev, size := file(t, img)
	w, err := OpenWriter(dev, size, Options{Now: testNow})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Add(&tar.Header{Name: "f", Typeflag: tar.TypeReg, ModTime: time.Unix(-5, 7)}, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	stat := run(t, "debugfs", "-R", "stat /f", img)
	for _, s := range []string{"crtime: 0x72e8c6f2:00000c54", "mtime: 0xfffffffb:0000001c"} {
		if !strings.Contains(stat, s) {
			t.Errorf("no %q in\n%s", s, stat)
		}
	}
}
