package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// mem is a small device in memory.
type mem []byte

func (m mem) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(m)) {
		return 0, io.EOF
	}
	n := copy(p, m[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m mem) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

func TestRefuses(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20)
	whole, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	patch := func(off int, b ...byte) func(mem) { return func(m mem) { copy(m[off:], b); setCRC(m[:512], sbCRC) } }
	or := func(off int, v uint32) func(mem) {
		return func(m mem) { be.PutUint32(m[off:], be.Uint32(m[off:])|v); setCRC(m[:512], sbCRC) }
	}
	for _, c := range []struct {
		name   string
		change func(mem)
		want   error
		says   string
		reads  bool // Open takes it, OpenWriter does not
	}{
		{"version 4", patch(sbVersion+1, 0xb4), ErrUnsupported, "version 4", false},
		{"needsrepair", or(sbIncompat, incNeedsRepair), ErrUnsupported, "xfs_repair", false},
		{"metadir", or(sbIncompat, incMetadir), ErrUnsupported, "metadir", false},
		{"zoned", or(sbIncompat, incZoned), ErrUnsupported, "zoned", false},
		{"unknown incompat", or(sbIncompat, 1<<20), ErrUnsupported, "0x100000", false},
		{"unknown ro compat", or(sbRoCompat, 1<<20), ErrUnsupported, "0x100000", true},
		{"unknown compat", or(sbCompat, 1<<20), ErrUnsupported, "0x100000", true},
		{"realtime", patch(sbRblocks+7, 1), ErrUnsupported, "realtime", false},
		{"external log", patch(sbLogStart, 0, 0, 0, 0, 0, 0, 0, 0), ErrUnsupported, "external log", true},
		{"log items", or(sbLogIncompat, 1), ErrDirtyLog, "mount", true},
		{"in progress", patch(sbInProgress, 1), ErrUnsupported, "mkfs", false},
		{"checksum", func(m mem) { m[sbFname] ^= 1 }, ErrCorrupt, "checksum", false},
		{"magic", func(m mem) { m[0] = 'Y' }, ErrCorrupt, "magic", false},
		{"too many blocks", patch(sbDblocks, 0, 0, 1), ErrCorrupt, "blocks", false},
		{"AGF checksum", func(m mem) { m[512+agfFreeBlks] ^= 1 }, ErrCorrupt, "AGF", true},
		{"AGI magic", func(m mem) { m[1024] ^= 1 }, ErrCorrupt, "AGI", true},
		{"unlinked files", func(m mem) { be.PutUint32(m[1024+agiUnlinked:], 77); setCRC(m[1024:1536], agiCRC) }, ErrDirtyLog, "mount", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := mem(append([]byte(nil), whole...))
			c.change(m)
			_, err := Open(m, int64(len(m)))
			if c.reads != (err == nil) {
				t.Errorf("Open: %v", err)
			}
			_, err = OpenWriter(m, int64(len(m)), Options{Now: now})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("OpenWriter: %v, want %v with %q", err, c.want, c.says)
			}
		})
	}
}

// TestLog holds our idea of a clean log against logs that mkfs, the kernel and xfs_repair leave behind.
func TestLog(t *testing.T) {
	needKernel(t)
	for _, args := range []string{"", "-l su=256k,size=64m", "-s size=4096 -l su=4096"} {
		img := mkfs(t, 600<<20, strings.Fields(args)...)
		openWriter(t, img)
		repaired := false
		for pass := 0; pass < 4; pass++ {
			mounted(t, img, "rw", func(dir string) {
				// Enough metadata for the log to go around once in a while.
				for i := 0; i < 3000; i++ {
					p := filepath.Join(dir, fmt.Sprintf("%d-%d", pass, i))
					if err := os.WriteFile(p, nil, 0600); err != nil {
						t.Fatal(err)
					}
					lsetxattr(p, "user.x", noise(1, 2500))
				}
				if pass < 2 {
					return
				}
				run(t, "sync", "-f", dir)
				copyOf := img + ".live"
				run(t, "cp", "--sparse=always", img, copyOf)
				defer os.Remove(copyOf)
				f, n := openImage(t, copyOf)
				if _, err := OpenWriter(f, n, Options{Now: now}); !errors.Is(err, ErrDirtyLog) || !strings.Contains(err.Error(), "mount") {
					t.Errorf("a mounted filesystem's copy: %v", err)
				}
				if pass == 3 && !repaired {
					repaired = true
					run(t, "xfs_repair", "-L", "-f", copyOf)
					openWriter(t, copyOf)
				}
			})
			w := openWriter(t, img)
			mustAdd(t, w, file(fmt.Sprintf("ours-%d", pass), 0), []byte("x"))
			commit(t, w)
			repairClean(t, img)
		}
	}
}

func TestErrors(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20)
	w := openWriter(t, img)
	mustAdd(t, w, &tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0755}, nil)
	mustAdd(t, w, &tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Mode: 0120644}, []byte("content"))
	if h, err := w.Stat("d/f"); err != nil || h.Typeflag != tar.TypeReg || h.Mode != 0644 {
		t.Errorf("%+v %v", h, err)
	}
	mustAdd(t, w, &tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "d"}, nil)
	for _, c := range []struct {
		name string
		h    tar.Header
		want error
	}{
		{"exists", tar.Header{Name: "d/f", Typeflag: tar.TypeReg}, fs.ErrExist},
		{"file over folder", tar.Header{Name: "d", Typeflag: tar.TypeReg}, fs.ErrExist},
		{"folder over file", tar.Header{Name: "d/f", Typeflag: tar.TypeDir}, fs.ErrExist},
		{"file over the root", tar.Header{Name: "/", Typeflag: tar.TypeReg}, fs.ErrExist},
		{"no parent", tar.Header{Name: "x/f", Typeflag: tar.TypeReg}, fs.ErrNotExist},
		{"through a symlink", tar.Header{Name: "l/f", Typeflag: tar.TypeReg}, syscall.ENOTDIR},
		{"through a file", tar.Header{Name: "d/f/g", Typeflag: tar.TypeReg}, syscall.ENOTDIR},
		{"dots", tar.Header{Name: "d/../e", Typeflag: tar.TypeReg}, fs.ErrInvalid},
		{"dot", tar.Header{Name: "./e", Typeflag: tar.TypeReg}, fs.ErrInvalid},
		{"empty component", tar.Header{Name: "d//e", Typeflag: tar.TypeReg}, fs.ErrInvalid},
		{"NUL", tar.Header{Name: "d/\x00", Typeflag: tar.TypeReg}, fs.ErrInvalid},
		{"long name", tar.Header{Name: strings.Repeat("n", 256), Typeflag: tar.TypeReg}, syscall.ENAMETOOLONG},
		{"long symlink", tar.Header{Name: "s", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("n", 1024)}, syscall.ENAMETOOLONG},
		{"empty symlink", tar.Header{Name: "s", Typeflag: tar.TypeSymlink}, syscall.ENAMETOOLONG},
		{"short content", tar.Header{Name: "s", Typeflag: tar.TypeReg, Size: 100}, io.ErrUnexpectedEOF},
		{"negative size", tar.Header{Name: "s", Typeflag: tar.TypeReg, Size: -1}, fs.ErrInvalid},
		{"link to folder", tar.Header{Name: "s", Typeflag: tar.TypeLink, Linkname: "d"}, syscall.EPERM},
		{"link to nothing", tar.Header{Name: "s", Typeflag: tar.TypeLink, Linkname: "gone"}, fs.ErrNotExist},
		{"link over file", tar.Header{Name: "d/f", Typeflag: tar.TypeLink, Linkname: "d/f"}, fs.ErrExist},
		{"device", tar.Header{Name: "s", Typeflag: tar.TypeChar, Devmajor: 512}, fs.ErrInvalid},
		{"owner", tar.Header{Name: "s", Typeflag: tar.TypeReg, Uid: -1}, fs.ErrInvalid},
		{"type", tar.Header{Name: "s", Typeflag: 'x'}, fs.ErrInvalid},
		{"xattr namespace", tar.Header{Name: "s", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrPrefix + "system.x": ""}}, ErrUnsupported},
		{"xattr size", tar.Header{Name: "s", Typeflag: tar.TypeReg, PAXRecords: map[string]string{xattrPrefix + "user.x": string(make([]byte, 65537))}}, ErrUnsupported},
	} {
		if err := w.Add(&c.h, strings.NewReader("")); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for name, want := range map[string]error{"d": syscall.ENOTEMPTY, "nothing": fs.ErrNotExist, "": syscall.EBUSY, "l/f": syscall.ENOTDIR} {
		if err := w.Remove(name); !errors.Is(err, want) {
			t.Errorf("Remove(%q): %v, want %v", name, err, want)
		}
	}
	if err := w.Replace(&tar.Header{Name: "l", Typeflag: tar.TypeReg}, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Replace of a symlink: %v", err)
	}
	if err := w.Replace(&tar.Header{Name: "new", Typeflag: tar.TypeReg, Size: 1}, strings.NewReader("n")); err != nil {
		t.Errorf("Replace of nothing: %v", err)
	}
	if _, err := w.Open("l"); err == nil {
		t.Error("Open of a symlink")
	}
	if _, err := w.ReadDir("d/f"); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("ReadDir of a file: %v", err)
	}
	commit(t, w)
	if err := w.Commit(context.Background()); err == nil {
		t.Error("a second Commit")
	}
	if err := w.Add(file("late", 0), nil); err == nil {
		t.Error("Add after Commit")
	}
	repairClean(t, img)
	f := openReader(t, img)
	names, err := f.ReadDir("/")
	if err != nil || strings.Join(names, " ") != "d l new" {
		t.Errorf("%q %v", names, err)
	}
	r, err := f.Open("/d/f")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, []byte("content")) {
		t.Errorf("%q %v", b, err)
	}
}

// TestSame writes one plan twice: the disks must not differ in a byte.
func TestSame(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20, "-m", "rmapbt=1")
	var sums []string
	for i := 0; i < 2; i++ {
		cp := img + fmt.Sprint(i)
		run(t, "cp", "--sparse=always", img, cp)
		w := openWriter(t, cp)
		plan(t, w, 5<<20, 500)
		commit(t, w)
		f, n := openImage(t, cp)
		sums = append(sums, hash(io.NewSectionReader(f, 0, n)))
	}
	if sums[0] != sums[1] {
		t.Error("two disks from one plan differ")
	}
}

// TestQuota: the kernel is to count again at the next mount.
func TestQuota(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20)
	f, size := openImage(t, img)
	m := make(mem, size)
	if _, err := f.ReadAt(m, 0); err != nil {
		t.Fatal(err)
	}
	all := uint16(0x7ff)
	be.PutUint16(m[sbQflags:], all)
	setCRC(m[:512], sbCRC)
	w, err := OpenWriter(m, size, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	mustAdd(t, w, file("f", 0), nil)
	commit(t, w)
	if got := be.Uint16(m[sbQflags:]); got != all&^(4|0x20|0x100|0x400) {
		t.Errorf("qflags %#x", got)
	}
}

// TestInherits: new files take from their folder what they would take from the kernel.
func TestInherits(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20)
	mounted(t, img, "rw", func(dir string) {
		p := filepath.Join(dir, "p")
		if err := os.Mkdir(p, 0755); err != nil {
			t.Fatal(err)
		}
		run(t, "xfs_io", "-c", "chproj 77", "-c", "chattr +PAdf", "-c", "extsize 65536", "-c", "cowextsize 131072", p)
		for _, n := range []string{"kfile", "kdir"} {
			if n == "kdir" {
				os.Mkdir(filepath.Join(p, n), 0755)
			} else {
				os.WriteFile(filepath.Join(p, n), nil, 0644)
			}
		}
		os.Symlink("x", filepath.Join(p, "klink"))
	})
	w := openWriter(t, img)
	mustAdd(t, w, file("p/file", 0), nil)
	mustAdd(t, w, &tar.Header{Name: "p/dir", Typeflag: tar.TypeDir, Mode: 0755}, nil)
	mustAdd(t, w, &tar.Header{Name: "p/link", Typeflag: tar.TypeSymlink, Linkname: "x"}, nil)
	commit(t, w)
	repairClean(t, img)
	f := openReader(t, img)
	for _, n := range []string{"file", "dir", "link"} {
		a, err := f.resolve("p/" + n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.resolve("p/k" + n)
		if err != nil {
			t.Fatal(err)
		}
		if a.flags != b.flags || a.flags2 != b.flags2 || a.projid != b.projid || a.extsize != b.extsize || a.cowExtsize != b.cowExtsize {
			t.Errorf("%s: flags %#x %#x project %d hints %d %d, the kernel's %#x %#x %d %d %d", n, a.flags, a.flags2, a.projid, a.extsize, a.cowExtsize, b.flags, b.flags2, b.projid, b.extsize, b.cowExtsize)
		}
	}
}

// TestConcurrentReads: a filesystem that was opened for reading serves many goroutines; for the race detector.
func TestConcurrentReads(t *testing.T) {
	disk := seedDisk(t)
	f, err := Open(disk, disk.size)
	if err != nil {
		t.Fatal(err)
	}
	want := ourTree(t, f)
	if f, err = Open(disk, disk.size); err != nil {
		t.Fatal(err)
	}
	f.held = maxHeldEntries - 500 // so that the cache is emptied under way
	done := make(chan string)
	for i := 0; i < 8; i++ {
		go func() {
			for n, w := range want {
				h, err := f.Stat(n)
				if err != nil {
					done <- err.Error()
					return
				}
				if h.Typeflag != w.Type {
					done <- n
					return
				}
				if h.Typeflag == tar.TypeReg {
					c, err := f.Open(n)
					if err != nil || hash(c) != w.Content {
						done <- n
						return
					}
				}
			}
			done <- ""
		}()
	}
	for i := 0; i < 8; i++ {
		if s := <-done; s != "" {
			t.Error(s)
		}
	}
}
