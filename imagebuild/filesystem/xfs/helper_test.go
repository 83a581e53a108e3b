package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var now = time.Unix(1700000000, 123456789)

// needKernel skips, or fails under CI, where the kernel's XFS cannot be the judge.
func needKernel(t testing.TB) {
	t.Helper()
	why := ""
	if os.Getuid() != 0 {
		why = "not root"
	}
	for _, tool := range []string{"mkfs.xfs", "xfs_repair", "xfs_io", "xfs_growfs", "losetup", "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			why = tool + " is not installed"
		}
	}
	if why == "" && exec.Command("losetup", "-f").Run() != nil {
		why = "no loop devices"
	}
	if b, _ := os.ReadFile("/proc/filesystems"); !strings.Contains(string(b), "\txfs\n") {
		why = "the kernel has no XFS"
	}
	if why != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

func needRepair(t testing.TB) {
	t.Helper()
	for _, tool := range []string{"mkfs.xfs", "xfs_repair"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

const uuid = "6b1c5d7e-2a3f-4c58-9d0e-112233445566"

func mkfs(t testing.TB, size int64, args ...string) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "xfs.img")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	run(t, "mkfs.xfs", append(append([]string{"-q", "-f", "-m", "uuid=" + uuid}, args...), img)...)
	return img
}

// mounted mounts img, calls f with the mount point, unmounts, and requires that the kernel had nothing to say.
func mounted(t testing.TB, img string, opts string, f func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	dev := strings.TrimSpace(run(t, "losetup", "-f", "--show", img))
	live := true
	detach := func() {
		if live {
			exec.Command("umount", dir).Run()
			exec.Command("losetup", "-d", dev).Run()
			live = false
		}
	}
	t.Cleanup(detach)
	mark := kernelMark(t)
	run(t, "mount", "-t", "xfs", "-o", "nouuid,noatime,"+opts, dev, dir)
	f(dir)
	// A command that another test starts holds our files for a moment, between fork and exec.
	for try := 0; ; try++ {
		out, err := exec.Command("umount", dir).CombinedOutput()
		if err == nil {
			break
		}
		if try == 50 {
			t.Fatalf("umount %s: %v\n%s", dir, err, out)
		}
		time.Sleep(50 * time.Millisecond)
	}
	said := kernelSaid(t, mark, filepath.Base(dev))
	detach()
	if len(said) > 0 {
		t.Errorf("the kernel said:\n%s", strings.Join(said, "\n"))
	}
}

func kernelMark(t testing.TB) string {
	mark := fmt.Sprintf("nodebake-xfs-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	os.WriteFile("/dev/kmsg", []byte("<6>"+mark+"\n"), 0)
	return mark
}

var throughXFS = regexp.MustCompile(`\bxfs_\w+\+0x`)

func kernelSaid(t testing.TB, mark, dev string) []string {
	out, err := exec.Command("dmesg").Output()
	if err != nil {
		return nil
	}
	var said []string
	_, after, ok := strings.Cut(string(out), mark)
	if !ok {
		return nil
	}
	lines := strings.Split(after, "\n")
	for i, l := range lines {
		if strings.Contains(l, "Call Trace") || strings.Contains(l, "BUG") {
			// The machine may be shared: a trace counts when it goes through XFS.
			if around := strings.Join(lines[max(0, i-15):min(len(lines), i+50)], "\n"); throughXFS.MatchString(around) {
				said = append(said, around)
			}
			continue
		}
		if !strings.Contains(l, "XFS ("+dev+")") {
			continue
		}
		ok := false
		for _, usual := range []string{"Mounting V5", "Ending clean mount", "Unmounting Filesystem", "EXPERIMENTAL", "supports timestamps until", "Deprecated"} {
			ok = ok || strings.Contains(l, usual)
		}
		if !ok {
			said = append(said, l)
		}
	}
	return said
}

// repairClean runs xfs_repair -n and requires that it finds nothing at all.
func repairClean(t testing.TB, img string) {
	t.Helper()
	// The option says only that a filesystem of one group has no second superblock to compare with.
	out, err := exec.Command("xfs_repair", "-n", "-f", "-P", "-o", "force_geometry", img).CombinedOutput()
	var odd []string
	for _, l := range strings.Split(string(out), "\n") {
		switch {
		case l == "", strings.HasPrefix(l, "Phase "), strings.HasPrefix(l, "        - "), strings.HasPrefix(l, "No modify flag set"),
			l == "Cannot get host filesystem geometry.", strings.HasPrefix(l, "Repair may fail if there is a sector size"), strings.HasPrefix(l, "the image and the host filesystem."):
		default:
			odd = append(odd, l)
		}
	}
	if err != nil || len(odd) > 0 {
		if len(odd) > 60 {
			odd = odd[:60]
		}
		t.Fatalf("xfs_repair -n: %v\n%s", err, strings.Join(odd, "\n"))
	}
	checkClean(t, img)
}

// checkClean runs our own Check, which must agree with xfs_repair that there is nothing to find.
func checkClean(t testing.TB, img string) {
	t.Helper()
	n := 0
	err := openReader(t, img).Check(context.Background(), func(err error) {
		if n++; n < 10 {
			t.Errorf("Check: %v", err)
		}
	})
	if err != nil || n > 0 {
		t.Fatalf("Check: %d faults, %v", n, err)
	}
}

// record is what a file looks like, from whichever side.
type record struct {
	Type    byte
	Mode    int64
	UID     int
	GID     int
	Size    int64
	Mtime   time.Time
	Link    string
	Major   int64
	Minor   int64
	Xattrs  map[string]string
	Content string
}

func (r record) String() string {
	x := make([]string, 0, len(r.Xattrs))
	for k, v := range r.Xattrs {
		if len(v) > 40 {
			v = fmt.Sprintf("%d bytes %x", len(v), sha256.Sum256([]byte(v)))
		}
		x = append(x, fmt.Sprintf("%s=%q", k, v))
	}
	sort.Strings(x)
	c := r.Content
	if len(c) > 8 {
		c = fmt.Sprintf("%x", c[:8])
	}
	return fmt.Sprintf("%c %04o %d:%d size %d %s ->%q %d:%d %v %s", r.Type, r.Mode, r.UID, r.GID, r.Size, r.Mtime.UTC().Format(time.RFC3339Nano), r.Link, r.Major, r.Minor, x, c)
}

type tree map[string]record

var hashBuffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func hash(r io.Reader) string {
	h := sha256.New()
	b := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(b)
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, *b); err != nil {
		return err.Error()
	}
	return string(h.Sum(nil))
}

func kernelXattrs(t testing.TB, path string) map[string]string {
	b := hashBuffers.Get().(*[]byte)
	defer hashBuffers.Put(b)
	buf, v := (*b)[:1<<17], (*b)[1<<17:]
	n, err := llistxattr(path, buf)
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	out := map[string]string{}
	for _, k := range strings.Split(string(buf[:n]), "\x00") {
		if k == "" || strings.HasPrefix(k, "trusted.SGI_ACL_") {
			continue
		}
		m, err := lgetxattr(path, k, v)
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, k, err)
		}
		out[k] = string(v[:m])
	}
	return out
}

func kernelRecord(t testing.TB, path string) record {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	r := record{Mode: int64(st.Mode & 07777), UID: int(st.Uid), GID: int(st.Gid), Mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec), Xattrs: kernelXattrs(t, path)}
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		r.Type, r.Size = tar.TypeReg, st.Size
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		r.Content = hash(f)
		// With blocks larger than pages the kernel needs its memory in one piece, which a busy machine may lack for a while.
		for try := 0; try < 5 && strings.HasSuffix(r.Content, syscall.ENOMEM.Error()); try++ {
			os.WriteFile("/proc/sys/vm/compact_memory", []byte("1"), 0)
			f.Seek(0, io.SeekStart)
			r.Content = hash(f)
		}
		f.Close()
	case syscall.S_IFDIR:
		r.Type = tar.TypeDir
	case syscall.S_IFLNK:
		r.Type = tar.TypeSymlink
		r.Link, _ = os.Readlink(path)
	case syscall.S_IFCHR, syscall.S_IFBLK:
		r.Type = tar.TypeChar
		if st.Mode&syscall.S_IFMT == syscall.S_IFBLK {
			r.Type = tar.TypeBlock
		}
		r.Major, r.Minor = int64(st.Rdev>>8&0xfff|st.Rdev>>32&^0xfff), int64(st.Rdev&0xff|st.Rdev>>12&^0xff)
	case syscall.S_IFIFO:
		r.Type = tar.TypeFifo
	case syscall.S_IFSOCK:
		r.Type = 's'
	}
	return r
}

func kernelTree(t testing.TB, dir string) tree {
	out := tree{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		out[rel] = kernelRecord(t, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type reader interface {
	Stat(string) (*tar.Header, error)
	ReadDir(string) ([]string, error)
	Open(string) (*io.SectionReader, error)
}

func headerRecord(h *tar.Header) record {
	r := record{Type: h.Typeflag, Mode: h.Mode, UID: h.Uid, GID: h.Gid, Size: h.Size, Mtime: h.ModTime, Link: h.Linkname, Major: h.Devmajor, Minor: h.Devminor, Xattrs: map[string]string{}}
	for k, v := range h.PAXRecords {
		r.Xattrs[strings.TrimPrefix(k, xattrPrefix)] = v
	}
	return r
}

func ourTree(t testing.TB, f reader) tree {
	out := tree{}
	var walk func(name string)
	walk = func(name string) {
		h, err := f.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		r := headerRecord(h)
		if h.Typeflag == tar.TypeReg {
			c, err := f.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			r.Content = hash(c)
		}
		out[name] = r
		if h.Typeflag == tar.TypeDir {
			names, err := f.ReadDir(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range names {
				if name != "." {
					n = name + "/" + n
				}
				walk(n)
			}
		}
	}
	walk(".")
	return out
}

func sameTree(t testing.TB, what string, got, want tree) {
	t.Helper()
	bad := 0
	for k, w := range want {
		g, ok := got[k]
		if !ok {
			g = record{Type: '-'}
		}
		if a, b := fullString(g), fullString(w); a != b {
			if bad++; bad < 8 {
				t.Errorf("%s: %q\n got %s\nwant %s", what, k, g, w)
			}
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok {
			if bad++; bad < 8 {
				t.Errorf("%s: %q is there and should not be", what, k)
			}
		}
	}
	if bad > 0 {
		t.Fatalf("%s: %d differences in %d files", what, bad, len(want))
	}
}

func fullString(r record) string {
	c := r.Content
	r.Content = ""
	s := r.String() + fmt.Sprintf("%x", c)
	keys := make([]string, 0, len(r.Xattrs))
	for k := range r.Xattrs {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		s += fmt.Sprintf("|%s=%x", k, sha256.Sum256([]byte(r.Xattrs[k])))
	}
	return s
}

func openImage(t testing.TB, img string) (*os.File, int64) {
	t.Helper()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func openReader(t testing.TB, img string) *FS {
	t.Helper()
	f, size := openImage(t, img)
	x, err := Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func openWriter(t testing.TB, img string) *Writer {
	t.Helper()
	f, size := openImage(t, img)
	w, err := OpenWriter(f, size, Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func commit(t testing.TB, w *Writer) {
	t.Helper()
	if err := w.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// noise is a file's content that neither repeats nor holds long runs of zeros.
func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	var w [8]byte
	for i := 0; i < n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(w[:], x|1)
		copy(b[i:], w[:])
	}
	return b
}

func file(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0644, Size: size}
}

func mustAdd(t testing.TB, w interface {
	Add(*tar.Header, io.Reader) error
}, h *tar.Header, content []byte) {
	t.Helper()
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(content))
	}
	if err := w.Add(h, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
}

// age fills a mounted filesystem with every kind of thing, and makes holes in its free space. depth is the number of
// files in its larger folders; fill leaves it nearly full.
func age(t testing.TB, dir string, rng *rand.Rand, n int, reflink, fill bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, b []byte) {
		t.Helper()
		must(os.WriteFile(filepath.Join(dir, name), b, os.FileMode(rng.Intn(0777))|0400))
	}
	for _, d := range []string{"short", "block", "leaf", "node", "long", "empty", "deep", "deep/er", "deep/er/est"} {
		must(os.Mkdir(filepath.Join(dir, d), 0755))
	}
	for d, c := range map[string]int{"short": 4, "block": 30, "leaf": 200, "node": n} {
		for i := 0; i < c; i++ {
			write(fmt.Sprintf("%s/file-%05d", d, i), noise(rng.Int63(), rng.Intn(3000)))
		}
	}
	for i := 0; i < 40; i++ {
		name := fmt.Sprintf("%03d-", i) + strings.Repeat(string(rune('a'+i%26)), 251)
		must(os.Symlink(strings.Repeat("t", 1+i*25), filepath.Join(dir, "long", name)))
	}
	write("deep/er/est/big", noise(1, 3<<20))
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for i := 0; i < 40; i++ {
		_, err := sparse.WriteAt(noise(int64(i), 5000), int64(i)*100_000)
		must(err)
		if i%8 == 0 {
			must(sparse.Sync()) // so that extents are many and short
		}
	}
	must(sparse.Truncate(24 << 20))
	must(sparse.Close())
	run(t, "xfs_io", "-f", "-c", "falloc 0 1m", "-c", "pwrite -q 64k 100", "-c", "falloc 3m 64k", filepath.Join(dir, "unwritten"))
	must(os.Link(filepath.Join(dir, "deep/er/est/big"), filepath.Join(dir, "hard link")))
	must(os.Link(filepath.Join(dir, "short/file-00001"), filepath.Join(dir, "block/also")))
	must(syscall.Mknod(filepath.Join(dir, "char"), syscall.S_IFCHR|0600, 1<<8|3))
	must(syscall.Mknod(filepath.Join(dir, "block dev"), syscall.S_IFBLK|0660, 259<<8|5))
	must(syscall.Mknod(filepath.Join(dir, "fifo"), syscall.S_IFIFO|0600, 0))
	must(syscall.Mknod(filepath.Join(dir, "sock"), syscall.S_IFSOCK|0600, 0))
	for i, name := range []string{"short/file-00000", "leaf", "deep/er/est/big", "node/file-00003", "fifo", "char", "long/000-" + strings.Repeat("a", 251)} {
		p := filepath.Join(dir, name)
		must(lsetxattr(p, "security.selinux", []byte("system_u:object_r:container_ro_file_t:s0\x00")))
		if i%2 == 0 && i < 4 {
			must(lsetxattr(p, "user.big", noise(int64(i), 65536)))
			for j := 0; j < 5; j++ {
				must(lsetxattr(p, fmt.Sprintf("trusted.middling.%d", j), noise(int64(j), 900)))
			}
		}
	}
	for j := 0; j < 400; j++ {
		must(lsetxattr(filepath.Join(dir, "block/also"), fmt.Sprintf("user.%d.%s", j, strings.Repeat("n", j%200)), noise(int64(j), j)))
	}
	acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	must(lsetxattr(filepath.Join(dir, "leaf/file-00000"), "system.posix_acl_access", []byte(acl)))
	must(lsetxattr(filepath.Join(dir, "empty"), "system.posix_acl_default", []byte(acl)))
	if reflink {
		run(t, "cp", "--reflink=always", filepath.Join(dir, "deep/er/est/big"), filepath.Join(dir, "shared 1"))
		run(t, "cp", "--reflink=always", filepath.Join(dir, "deep/er/est/big"), filepath.Join(dir, "shared 2"))
		run(t, "xfs_io", "-c", "pwrite -q 1m 200k", filepath.Join(dir, "shared 2"))
		run(t, "xfs_io", "-c", "reflink "+filepath.Join(dir, "deep/er/est/big")+" 0 2m 1m", filepath.Join(dir, "shared 1"))
	}
	// Small files, every other one deleted: free space in crumbs, inode chunks half empty.
	must(os.Mkdir(filepath.Join(dir, "crumbs"), 0755))
	for i := 0; i < 1500; i++ {
		write(fmt.Sprintf("crumbs/%d", i), noise(int64(i), 4000+rng.Intn(9000)))
	}
	syscall.Sync()
	for i := 0; i < 1500; i++ {
		if i%2 == 0 {
			must(os.Remove(filepath.Join(dir, fmt.Sprintf("crumbs/%d", i))))
		}
	}
	for i := 0; i < n; i += 3 {
		if i != 3 {
			must(os.Remove(filepath.Join(dir, fmt.Sprintf("node/file-%05d", i))))
		}
	}
	if fill {
		fillUp(t, dir, 12<<20)
	}
}

// fillUp writes a file until no more than leave bytes are free.
func fillUp(t testing.TB, dir string, leave int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := noise(99, 4<<20)
	for {
		var st syscall.Statfs_t
		if err := syscall.Fstatfs(int(f.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		left := int64(st.Bavail)*st.Bsize - leave
		if left < 64<<10 {
			return
		}
		if _, err := f.Write(b[:min(int64(len(b)), left)]); err != nil {
			return // full already
		}
	}
}

func seed(t testing.TB, name string) int64 {
	t.Helper()
	s := int64(1)
	if v := os.Getenv("NODEBAKE_SEED"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			t.Fatalf("NODEBAKE_SEED: %v", err)
		}
		s = n
	} else if os.Getenv("NODEBAKE_SOAK") != "" {
		s = time.Now().UnixNano()
	}
	t.Logf("%s: seed %d (set NODEBAKE_SEED to repeat)", name, s)
	return s
}
