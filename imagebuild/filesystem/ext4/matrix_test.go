package ext4

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type form struct {
	name string
	size string
	args string
	many int    // entries of the largest folder
	fill int    // percent of the free space that the kernel takes first
	tune string // what debugfs then does to the superblock
	bare bool   // the kernel does not populate it: too large, or not mountable here
}

var forms = []form{
	{name: "default", size: "200M", many: 5000},
	{name: "many", size: "300M", args: "-N 100000", many: 40000},
	{name: "1k", size: "64M", args: "-b 1024 -N 20000", many: 5000},
	{name: "2k", size: "64M", args: "-b 2048 -I 512 -N 20000", many: 5000},
	{name: "inode128", size: "96M", args: "-I 128 -N 20000", many: 5000},
	{name: "inode1024", size: "96M", args: "-I 1024 -N 12000", many: 5000},
	{name: "no-metadata_csum", size: "96M", args: "-O ^metadata_csum -N 20000", many: 5000},
	{name: "no-64bit", size: "96M", args: "-O ^64bit -N 20000", many: 5000},
	{name: "csum_seed", size: "64M", args: "-O metadata_csum_seed -N 12000", many: 5000},
	{name: "orphan_file", size: "64M", args: "-O orphan_file -N 12000", many: 5000},
	{name: "inline_data", size: "64M", args: "-O inline_data -I 512 -N 12000", many: 5000},
	{name: "meta_bg", size: "300M", args: "-O meta_bg,^resize_inode -b 1024 -N 20000", many: 5000},
	{name: "meta_bg-large", size: "2300M", args: "-O meta_bg,^resize_inode,^64bit -b 1024 -I 128 -m 0", many: 50},
	{name: "no-flex_bg", size: "300M", args: "-O ^flex_bg -N 20000", many: 5000},
	{name: "no-uninit", size: "96M", args: "-O ^uninit_bg,^metadata_csum -N 20000", many: 5000},
	{name: "uninit_bg", size: "300M", args: "-O uninit_bg,^metadata_csum,^flex_bg -E lazy_itable_init=1 -N 20000", many: 5000},
	{name: "ext3", size: "96M", args: "-t ext3 -N 20000", many: 5000},
	{name: "ext2", size: "64M", args: "-t ext2 -b 1024 -I 128 -N 20000", many: 5000},
	{name: "no-extents", size: "96M", args: "-O ^extents,^64bit -b 1024 -N 20000", many: 5000},
	{name: "no-dir_index", size: "64M", args: "-O ^dir_index -N 12000", many: 600},
	{name: "no-filetype", size: "64M", args: "-O ^filetype -N 12000", many: 5000},
	{name: "sparse_super2", size: "300M", args: "-O sparse_super2 -G 4 -N 20000", many: 5000},
	{name: "no-sparse_super", size: "300M", args: "-O ^sparse_super,^resize_inode,^flex_bg -N 20000", many: 5000},
	{name: "small", size: "8M", args: "-b 1024 -m 0 -N 1800", many: 300},
	{name: "no-journal-full", size: "64M", args: "-O ^has_journal -m 0 -N 12000", many: 2000, fill: 96},
	{name: "no-hash_seed", size: "64M", args: "-E hash_seed=00000000-0000-0000-0000-000000000000 -N 12000", many: 3000},
	{name: "legacy-hash", size: "64M", args: "-N 12000", many: 3000, tune: "set_super_value def_hash_version legacy"},
	{name: "tea-unsigned", size: "64M", args: "-N 12000", many: 3000, tune: "set_super_value def_hash_version tea\nset_super_value flags 2"},
	{name: "unsigned-hash", size: "64M", args: "-b 1024 -N 12000", many: 3000, tune: "set_super_value flags 2"},
	{name: "ea_inode", size: "64M", args: "-O ea_inode,large_dir -N 12000", many: 2000},
	{name: "project", size: "64M", args: "-O extra_isize,^huge_file,^dir_nlink,^large_file -N 12000", many: 2000},
	{name: "mmp", size: "64M", args: "-O mmp -N 12000", many: 500},
	{name: "eager", size: "128M", args: "-E lazy_itable_init=0,lazy_journal_init=0 -g 8192 -N 20000", many: 5000},
	{name: "4TiB", size: "4T", args: "-E lazy_itable_init=1,lazy_journal_init=1 -i 1048576 -J size=16", many: 50, bare: true},
	{name: "64k", size: "512M", args: "-b 65536 -N 12000", many: 2000, bare: true},
}

// age lets the kernel fill a filesystem, with entries of every kind, and leave gaps in it.
func age(t testing.TB, dir string, f form) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(42, 42))
	must(os.MkdirAll(filepath.Join(dir, "etc/deep/er"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "htree"), 0o755))
	many := min(f.many, 3000)
	for i := range many {
		must(os.WriteFile(filepath.Join(dir, "htree", fmt.Sprintf("existing-\xe4-entry-%d", i)), nil, 0o644))
	}
	for i := range many / 3 {
		must(os.Remove(filepath.Join(dir, "htree", fmt.Sprintf("existing-\xe4-entry-%d", 3*i))))
	}
	for i := range 60 {
		must(os.WriteFile(filepath.Join(dir, "etc", fmt.Sprintf("conf%d", i)), content(uint64(i), r.IntN(9000)), 0o600))
	}
	for i := range 20 {
		must(os.Remove(filepath.Join(dir, "etc", fmt.Sprintf("conf%d", 3*i))))
	}
	must(os.WriteFile(filepath.Join(dir, "tiny"), []byte("a few bytes"), 0o644))
	must(os.WriteFile(filepath.Join(dir, "tiny2"), content(5, 150), 0o644))
	must(os.Symlink("a/short/target", filepath.Join(dir, "short")))
	must(os.Symlink(strings.Repeat("long/", 30), filepath.Join(dir, "long")))
	must(unix.Mknod(filepath.Join(dir, "chr"), unix.S_IFCHR|0o600, int(unix.Mkdev(5, 1))))
	must(unix.Mknod(filepath.Join(dir, "blk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o640))
	must(unix.Mknod(filepath.Join(dir, "sock"), unix.S_IFSOCK|0o640, 0))
	must(os.Link(filepath.Join(dir, "tiny"), filepath.Join(dir, "etc/hard")))
	must(os.Chown(filepath.Join(dir, "tiny2"), 100000, 4000000000))
	must(unix.Setxattr(filepath.Join(dir, "tiny"), "user.small", []byte("v"), 0))
	must(unix.Setxattr(filepath.Join(dir, "tiny"), "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(unix.Setxattr(filepath.Join(dir, "etc"), "trusted.big", content(9, 700), 0))
	if kernelHasACLs(dir) {
		must(unix.Setxattr(filepath.Join(dir, "etc"), "system.posix_acl_default", []byte(acl(1, 7, aclNoID, 2, 5, 1000, 4, 5, aclNoID, 8, 4, 2000, 0x10, 7, aclNoID, 0x20, 0, aclNoID)), 0))
		must(unix.Setxattr(filepath.Join(dir, "tiny2"), "system.posix_acl_access", []byte(acl(1, 7, aclNoID, 2, 5, 1000, 4, 5, aclNoID, 0x10, 7, aclNoID, 0x20, 0, aclNoID)), 0))
	}
	if strings.Contains(f.args, "ea_inode") {
		must(unix.Setxattr(filepath.Join(dir, "tiny2"), "user.huge", content(9, 20000), 0))
	}
	// The same attributes on two files share a block.
	for _, n := range []string{"etc/conf1", "etc/conf2", "etc/conf4"} {
		must(unix.Setxattr(filepath.Join(dir, n), "user.shared", content(11, 600), 0))
	}
	must(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, "tiny2"), []unix.Timespec{{Sec: 5000000000, Nsec: 5}, {Sec: -1000000000, Nsec: 999999999}}, 0))
	// Gaps: many files, half of them removed.
	var st unix.Statfs_t
	must(unix.Statfs(dir, &st))
	total := int(st.Bavail) * int(st.Bsize) * max(f.fill, 15) / 100
	must(os.Mkdir(filepath.Join(dir, "gaps"), 0o755))
	n := 0
	for total > 0 && n < 400 {
		size := 1 + r.IntN(max(4096, min(total, 120000+4000*f.fill)))
		must(os.WriteFile(filepath.Join(dir, "gaps", fmt.Sprint(n)), content(uint64(n), size), 0o644))
		total -= size
		n++
	}
	for i := 0; i < n; i += 2 {
		must(os.Remove(filepath.Join(dir, "gaps", fmt.Sprint(i))))
	}
	// A file in many pieces, with holes between them: its map needs blocks of its own.
	frag, err := os.Create(filepath.Join(dir, "fragmented"))
	must(err)
	defer frag.Close()
	pieces := 400
	if f.size == "8M" {
		pieces = 60
	}
	for i := range pieces {
		_, err := frag.WriteAt(content(uint64(i), 1024), int64(i)*3*int64(st.Bsize))
		must(err)
	}
	must(frag.Truncate(int64(pieces)*3*int64(st.Bsize) + 12345))
	if !strings.Contains(f.args, "^extents") && !strings.Contains(f.args, "ext2") && !strings.Contains(f.args, "ext3") {
		if err := unix.Fallocate(int(frag.Fd()), unix.FALLOC_FL_KEEP_SIZE, int64(pieces)*3*int64(st.Bsize), 65536); err != unix.EOPNOTSUPP {
			must(err)
		}
	}

	must(os.Chmod(filepath.Join(dir, "gaps"), 0o1777))
	must(os.Chmod(filepath.Join(dir, "fragmented"), 0o4755))
}

// kernelHasACLs is false for kernels built without them, which then do not show them either.
func kernelHasACLs(dir string) bool {
	return unix.Setxattr(dir, aclAccessName, []byte(acl(1, 7, aclNoID, 4, 5, aclNoID, 0x20, 5, aclNoID)), 0) == nil
}

// addTree adds entries of every kind, below new folders and into old ones.
func addTree(a *adder, f form) {
	wide := a.w.isize > oldInodeSize
	base := ""
	dir := func(name string, mode int64) {
		a.add(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, Uid: 3, Gid: 4, ModTime: time.Unix(1700000000, 123456789)}, nil)
	}
	dir(base+"new", 0o2755)
	dir(base+"new/sub", 0o700)
	dir(base+"new/sub/empty", 0o555)
	reg := func(name string, data []byte, pax map[string]string) {
		a.add(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Uid: 70000, Gid: 1 << 31, ModTime: time.Unix(1600000000, 1), PAXRecords: pax}, data)
	}
	reg("new/empty", nil, nil)
	reg("new/one", []byte{1}, nil)
	for _, n := range []int{59, 60, 61, 1023, 1024, 1025, 4096, 4097, 65535, 65536, 65537, 200000} {
		reg(fmt.Sprintf("new/size%d", n), content(uint64(n), n), nil)
	}
	reg("new/zeros-small", make([]byte, 5000), nil)
	reg("new/zeros", make([]byte, 3<<20+5), nil)
	reg("new/sparse", sparse(5<<20+777, 0, 70000, 1<<20, 1<<20+65536, 5<<20), nil)
	reg("new/sub/"+strings.Repeat("n", 255), []byte("long name"), nil)
	reg("new/sub/\xff\xfe not utf-8 \n", []byte("odd name"), nil)
	reg("new/umlaut-äöü", []byte("ü"), nil)
	x := func(kv ...string) map[string]string {
		m := map[string]string{"path": "ignored"}
		for i := 0; i < len(kv); i += 2 {
			m["SCHILY.xattr."+kv[i]] = kv[i+1]
		}
		return m
	}
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	reg("new/cap", []byte("cap"), x("security.capability", capability))
	reg("new/labels", []byte("x"), x("security.selinux", "system_u:object_r:etc_t:s0\x00", "user.a", "", "user.b", "bb", "trusted.c", "ccc"))
	reg("new/xblock", []byte("x"), x("user.big", string(content(3, 600)), "user.bigger", string(content(4, 200)), "security.capability", capability, "trusted.overlay.opaque", "y", "user.ä\xff", "1"))
	reg("new/acl", nil, x(aclAccessName, acl(1, 6, aclNoID, 2, 7, 1000, 4, 5, aclNoID, 8, 4, 2000, 0x10, 4, aclNoID, 0x20, 4, aclNoID)))
	a.add(&tar.Header{Name: "new/xdir", Typeflag: tar.TypeDir, Mode: 0o755, PAXRecords: x("trusted.overlay.opaque", "y", aclDefaultName, acl(1, 7, aclNoID, 4, 5, aclNoID, 0x20, 0, aclNoID), "user.big", string(content(8, 500)))}, nil)
	reg("new/xdir/inside", []byte("1"), nil)
	a.add(&tar.Header{Name: "new/short", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "../x", PAXRecords: x("security.selinux", "s")}, nil)
	for _, n := range []int{1, 59, 60, 61, 300, 1000} {
		a.add(&tar.Header{Name: fmt.Sprintf("new/link%d", n), Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: strings.Repeat("l", n)}, nil)
	}
	a.add(&tar.Header{Name: "new/linkx", Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: strings.Repeat("x", 50), PAXRecords: x("trusted.t", string(content(8, 400)))}, nil)
	for i, d := range [][2]int64{{0, 0}, {1, 3}, {255, 255}, {256, 0}, {8, 256}, {4095, 1048575}} {
		a.add(&tar.Header{Name: fmt.Sprintf("new/chr%d", i), Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: d[0], Devminor: d[1]}, nil)
		a.add(&tar.Header{Name: fmt.Sprintf("new/blk%d", i), Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: d[0], Devminor: d[1]}, nil)
	}
	a.add(&tar.Header{Name: "new/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, nil)
	a.add(&tar.Header{Name: "new/sock", Typeflag: TypeSocket, Mode: 0o600}, nil)
	a.add(&tar.Header{Name: "new/setuid", Typeflag: tar.TypeReg, Mode: 0o6755, ModTime: time.Unix(1, 0)}, []byte("su"))
	a.add(&tar.Header{Name: "new/hard1", Typeflag: tar.TypeLink, Linkname: "new/one"}, nil)
	a.add(&tar.Header{Name: "new/sub/hard2", Typeflag: tar.TypeLink, Linkname: "/new/hard1"[1:]}, nil)
	a.add(&tar.Header{Name: "new/hardfifo", Typeflag: tar.TypeLink, Linkname: "new/fifo"}, nil)
	if wide {
		for i, tm := range []time.Time{time.Unix(-1<<31, 0), time.Unix(-1, 999999999), time.Unix(1<<31, 5), time.Unix(1<<33+17, 1), time.Unix(3<<32+1<<31-1, 999999998)} {
			a.add(&tar.Header{Name: fmt.Sprintf("new/time%d", i), Typeflag: tar.TypeReg, Mode: 0o644, ModTime: tm, AccessTime: tm.Add(1)}, nil)
		}
	}
	for _, many := range []bool{false, true} {
		d, n := "new/few", 50
		if many {
			d, n = "new/many", f.many
		}
		dir(d, 0o755)
		for i := range n {
			reg(fmt.Sprintf("%s/entry-wïth-some-length-%d", d, i), []byte("x")[:i%2], nil)
		}
	}
	for i := range 300 {
		dir(fmt.Sprintf("new/sub/d%d", i), 0o755)
		reg(fmt.Sprintf("new/sub/d%d/f", i), content(uint64(i), 10+i*7), nil)
	}
	a.add(&tar.Header{Name: "rootfile", Typeflag: tar.TypeReg, Mode: 0o600}, content(1, 3000))
	if f.bare {
		return
	}
	for i := range f.many / 4 {
		reg(fmt.Sprintf("htree/added-ö-%d", i), nil, nil)
	}
	reg("etc/deep/er/leaf", []byte("leaf"), nil)
	dir("etc/deep/newdir", 0o711)
	reg("etc/deep/newdir/leaf", []byte("leaf"), nil)
	a.add(&tar.Header{Name: "etc/hard-to-old", Typeflag: tar.TypeLink, Linkname: "tiny"}, nil)
	a.replace(&tar.Header{Name: "etc/conf1", Typeflag: tar.TypeReg, Mode: 0o644}, []byte("replaced"))
	a.replace(&tar.Header{Name: "etc/hard", Typeflag: tar.TypeReg, Mode: 0o644}, content(4, 10000))
	a.replace(&tar.Header{Name: "fragmented", Typeflag: tar.TypeReg, Mode: 0o644}, content(4, 300))
	a.remove("etc/conf2")
	a.remove("gaps/1")
	a.remove("long")
	a.remove("short")
	a.add(&tar.Header{Name: "gaps", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 9, ModTime: time.Unix(5, 0), PAXRecords: x("user.now", "here")}, nil)
	a.add(&tar.Header{Name: "htree", Typeflag: tar.TypeDir, Mode: 0o751, Uid: 8, ModTime: time.Unix(6, 0)}, nil)
}

var testNow = time.Date(2031, 2, 3, 4, 5, 6, 789, time.UTC)

func TestMatrix(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			img := filepath.Join(workDir(t), "img")
			mkfs(t, img, f.size, strings.Fields(f.args)...)
			if f.tune != "" {
				script := filepath.Join(filepath.Dir(img), "tune")
				if err := os.WriteFile(script, []byte(f.tune), 0o600); err != nil {
					t.Fatal(err)
				}
				run(t, "debugfs", "-w", "-f", script, img)
			}
			var before tree
			dev, size := file(t, img)
			if !f.bare {
				dir, unmount := mount(t, img, "rw")
				age(t, dir, f)
				unmount()
				fsck(t, img)
				dir, unmount = mount(t, img, "ro")
				before = kernelTree(t, dir)
				unmount()
			}
			r, err := Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			if before == nil {
				before = ourTree(t, r)
			} else {
				compare(t, "reading what the kernel wrote", ourTree(t, r), before.without(noSame))
			}

			count, err := OpenWriter(readOnly{dev}, size, Options{Now: testNow, CountOnly: true})
			if err != nil {
				t.Fatal(err)
			}
			addTree(&adder{t: t, w: count, want: before.without(func(string, *node) {}), now: testNow}, f)
			if err := count.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}

			w, err := OpenWriter(dev, size, Options{Now: testNow})
			if err != nil {
				t.Fatal(err)
			}
			a := &adder{t: t, w: w, want: before, now: testNow}
			addTree(a, f)
			compare(t, "reading before Commit", ourTree(t, w).without(noTimesOfFolders), a.want.without(noSame).without(noTimesOfFolders))
			if err := w.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			if count.Space() != w.Space() {
				t.Errorf("counted %+v, took %+v", count.Space(), w.Space())
			}
			free, inodes := r.freeTotals()
			r, err = Open(dev, size)
			if err != nil {
				t.Fatal(err)
			}
			freeNow, inodesNow := r.freeTotals()
			if s := w.Space(); free-freeNow != s.NeedBlocks || inodes-inodesNow != s.NeedInodes {
				t.Errorf("took %d blocks and %d inodes, said %+v", free-freeNow, inodes-inodesNow, s)
			}
			fsck(t, img)
			compare(t, "reading what we wrote", ourTree(t, r), a.want.without(noSame))
			if f.name == "64k" {
				return
			}
			dir, unmount := mount(t, img, "ro")
			if acls := kernelTree(t, dir); len(acls["new/acl"].Xattrs) == 0 {
				a.want = a.want.without(noACLs)
			}
			compare(t, "the kernel reading what we wrote", kernelTree(t, dir), a.want)
			unmount()
			if f.name == "4TiB" {
				return
			}
			// The kernel must be able to go on with it.
			dir, unmount = mount(t, img, "rw")
			for i := range 200 {
				for _, d := range []string{"new", "new/few", "new/many"} {
					if err := os.WriteFile(filepath.Join(dir, d, fmt.Sprintf("later-%d", i)), []byte("later"), 0o644); err != nil && !errors.Is(err, unix.ENOSPC) {
						t.Fatal(err)
					}
				}
			}
			if err := os.RemoveAll(filepath.Join(dir, "new/sub")); err != nil {
				t.Fatal(err)
			}
			unmount()
			fsck(t, img)
		})
	}
}

func noTimesOfFolders(_ string, n *node) {
	if n.Type == tar.TypeDir {
		n.Mtime, n.Ctime = time.Time{}, time.Time{}
	}
}

func noACLs(_ string, n *node) {
	n.Xattrs = maps.Clone(n.Xattrs)
	delete(n.Xattrs, aclAccessName)
	delete(n.Xattrs, aclDefaultName)
}

type readOnly struct{ *os.File }

func (readOnly) WriteAt([]byte, int64) (int, error) { panic("a writer that only counts wrote") }
