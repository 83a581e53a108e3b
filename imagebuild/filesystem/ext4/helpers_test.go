package ext4

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needTools ends the test where the real tools or the rights to mount are missing; in CI that is a failure.
func needTools(t testing.TB, tools ...string) {
	t.Helper()
	miss := func(why string) {
		if os.Getenv("CI") == "true" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			miss(tool + " is not installed")
		}
	}
	if slices.Contains(tools, "mount") && os.Getuid() != 0 {
		miss("mounting needs root")
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

// workDir is a folder on a disk with room for large sparse images.
func workDir(t testing.TB) string {
	dir, err := os.MkdirTemp("/var/tmp", "ext4test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mkfs(t testing.TB, path, size string, args ...string) {
	t.Helper()
	run(t, "truncate", "-s", size, path)
	if !slices.Contains(args, "-t") {
		args = append([]string{"-t", "ext4"}, args...)
	}
	run(t, "mke2fs", append(append([]string{"-q", "-F"}, args...), path)...)
}

// mount mounts the image and returns the folder and what unmounts it.
func mount(t testing.TB, img, opts string) (dir string, unmount func()) {
	t.Helper()
	dir, err := os.MkdirTemp(filepath.Dir(img), "mnt-")
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mount", "-t", "ext4", "-o", "loop,"+opts, img, dir)
	done := false
	unmount = func() {
		if !done {
			done = true
			// A process that another test is just starting may hold a file of the mount for a moment.
			for try := 0; exec.Command("umount", dir).Run() != nil; try++ {
				if try == 50 {
					run(t, "umount", dir)
				}
				time.Sleep(20 * time.Millisecond)
			}
			os.Remove(dir)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

var fsckLine = regexp.MustCompile(`^(e2fsck \d.*|Pass \d: .*|.*: \d+/\d+ files \(.*non-contiguous\), \d+/\d+ blocks)$`)

// fsck fails the test when e2fsck says anything but that all is well.
func fsck(t testing.TB, img string) {
	t.Helper()
	out, err := exec.Command("e2fsck", "-fn", img).CombinedOutput()
	bad := err != nil
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		bad = bad || line != "" && !fsckLine.MatchString(line)
	}
	if bad {
		if len(out) > 4000 {
			out = out[:4000]
		}
		t.Fatalf("e2fsck -fn: %v\n%s", err, out)
	}
}

// node is what can be known of a file from outside.
type node struct {
	Type   byte
	Mode   int64
	Uid    int
	Gid    int
	Size   int64
	Mtime  time.Time
	Atime  time.Time
	Ctime  time.Time
	Link   string
	Dev    [2]int64
	Xattrs map[string]string
	Sum    string
	Same   string // for more than one name of an inode, the first of them
}

func (n node) String() string {
	return fmt.Sprintf("%c %o %d:%d size %d mtime %s atime %s ctime %s link %q dev %v xattrs %q sum %.8s same %q", n.Type, n.Mode, n.Uid, n.Gid,
		n.Size, n.Mtime.Format(time.RFC3339Nano), n.Atime.Format(time.RFC3339Nano), n.Ctime.Format(time.RFC3339Nano), n.Link, n.Dev, n.Xattrs, n.Sum, n.Same)
}

type tree map[string]node

func sum(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	buf := copyBuffers.Get().(*[65536]byte)
	defer copyBuffers.Put(buf)
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{r}, buf[:]); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// kernelTree reads everything below a mounted folder.
func kernelTree(t testing.TB, dir string) tree {
	t.Helper()
	out := tree{}
	first := map[uint64]string{}
	var paths []string
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		paths = append(paths, p)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	for _, p := range paths {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		n := node{
			Mode: int64(st.Mode & 07777), Uid: int(st.Uid), Gid: int(st.Gid),
			Mtime: time.Unix(st.Mtim.Unix()).UTC(), Atime: time.Unix(st.Atim.Unix()).UTC(), Ctime: time.Unix(st.Ctim.Unix()).UTC(),
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			n.Type, n.Size = tar.TypeReg, st.Size
			f, err := os.Open(p)
			if err != nil {
				t.Fatal(err)
			}
			n.Sum = sum(t, f)
			f.Close()
		case unix.S_IFDIR:
			n.Type = tar.TypeDir
		case unix.S_IFLNK:
			n.Type = tar.TypeSymlink
			if n.Link, err = os.Readlink(p); err != nil {
				t.Fatal(err)
			}
		case unix.S_IFCHR, unix.S_IFBLK:
			n.Type = tar.TypeChar
			if st.Mode&unix.S_IFMT == unix.S_IFBLK {
				n.Type = tar.TypeBlock
			}
			n.Dev = [2]int64{int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))}
		case unix.S_IFIFO:
			n.Type = tar.TypeFifo
		case unix.S_IFSOCK:
			n.Type = TypeSocket
		}
		if n.Type != tar.TypeDir && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = name
			}
			n.Same = first[st.Ino]
		}
		n.Xattrs = kernelXattrs(t, p)
		out[name] = n
	}
	return out
}

var copyBuffers = sync.Pool{New: func() any { return new([65536]byte) }}

func kernelXattrs(t testing.TB, p string) map[string]string {
	t.Helper()
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(p, list)
	if err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	out := map[string]string{}
	for _, name := range strings.Split(string(list[:n]), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 65536)
		n, err := unix.Lgetxattr(p, name, v)
		if err != nil {
			t.Fatalf("%s: %s: %v", p, name, err)
		}
		out[name] = string(v[:n])
	}
	return out
}

type reader interface {
	Stat(string) (*tar.Header, error)
	ReadDir(string) ([]string, error)
	Open(string) (*io.SectionReader, error)
}

// ourTree reads everything through this package; Same is left out, which no method tells.
func ourTree(t testing.TB, r reader) tree {
	t.Helper()
	out := tree{}
	var walk func(name string)
	walk = func(name string) {
		h, err := r.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		n := nodeOf(h)
		n.Ctime = h.ChangeTime
		if h.Typeflag == tar.TypeReg {
			s, err := r.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			n.Sum = sum(t, s)
		}
		out[name] = n
		if h.Typeflag != tar.TypeDir {
			return
		}
		names, err := r.ReadDir(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, sub := range names {
			walk(strings.TrimPrefix(name+"/"+sub, "/"))
		}
	}
	walk("")
	return out
}

func nodeOf(h *tar.Header) node {
	n := node{Type: h.Typeflag, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid, Mtime: h.ModTime.UTC(), Atime: h.AccessTime.UTC(), Link: h.Linkname,
		Dev: [2]int64{h.Devmajor, h.Devminor}, Xattrs: map[string]string{}}
	if h.Typeflag == tar.TypeReg {
		n.Size = h.Size
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrPrefix); ok {
			n.Xattrs[name] = v
		}
	}
	return n
}

// compare reports the first differences between two trees.
func compare(t testing.TB, what string, got, want tree) {
	t.Helper()
	bad := 0
	report := func(format string, a ...any) {
		if bad++; bad <= 8 {
			t.Errorf(what+": "+format, a...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[name]
		if !ok {
			report("%q is missing", name)
			continue
		}
		if g.String() != want[name].String() {
			report("%q\n got %v\nwant %v", name, g, want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			report("%q should not be there", name)
		}
	}
	if bad > 0 {
		t.Fatalf("%s: %d differences", what, bad)
	}
}

// without returns a copy of the tree with some fields blanked, for comparing what two sources both know.
func (tr tree) without(blank func(name string, n *node)) tree {
	out := tree{}
	for k, n := range tr {
		blank(k, &n)
		out[k] = n
	}
	return out
}

func noSame(_ string, n *node) { n.Same = "" }

// file opens an image for a Writer.
func file(t testing.TB, path string) (*os.File, int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
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

func content(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		le.PutUint64(b[i:], r.Uint64())
	}
	for i := n &^ 7; i < n; i++ {
		b[i] = byte(r.Uint32() | 1)
	}
	return b
}

// sparse is content with holes: every block that pattern does not name is zero.
func sparse(size int64, at ...int64) []byte {
	b := make([]byte, size)
	for _, a := range at {
		copy(b[a:], content(uint64(a)+7, int(min(4096, size-a))))
	}
	return b
}

// adder is a Writer together with what the filesystem should hold afterwards.
type adder struct {
	t    testing.TB
	w    *Writer
	want tree
	now  time.Time
}

func (a *adder) set(name string, h *tar.Header, data []byte) {
	n := nodeOf(h)
	if h.ModTime.IsZero() {
		n.Mtime = a.now
	}
	if h.AccessTime.IsZero() {
		n.Atime = n.Mtime
	}
	n.Ctime = a.now
	n.Mtime, n.Atime, n.Ctime = a.w.stored(n.Mtime), a.w.stored(n.Atime), a.w.stored(n.Ctime)
	if h.Typeflag == tar.TypeReg {
		n.Sum = sum(a.t, bytes.NewReader(data))
	}
	a.want[name] = n
}

// stored is the time that an inode of the filesystem can hold.
func (f *FS) stored(t time.Time) time.Time {
	if f.isize == oldInodeSize {
		return time.Unix(min(max(t.Unix(), -1<<31), 1<<31-1), 0).UTC()
	}
	return t.UTC()
}

// touch marks the folder of name as changed now, unless the writer was told its times.
func (a *adder) touch(name string) {
	dir := filepath.Dir(name)
	if dir == "." {
		dir = ""
	}
	d := a.w.changed[func() uint32 { i, _ := a.w.lookup(dir); return i }()]
	if d == nil {
		a.t.Fatalf("%q is not changed", dir)
	}
	if n := a.want[dir]; !d.attrs {
		n.Mtime, n.Ctime = a.w.stored(a.now), a.w.stored(a.now)
		a.want[dir] = n
	}
}

func (a *adder) add(h *tar.Header, data []byte) {
	a.t.Helper()
	h.Size = int64(len(data))
	if err := a.w.Add(h, bytes.NewReader(data)); err != nil {
		a.t.Fatal(err)
	}
	if h.Typeflag == tar.TypeLink {
		a.link(h.Name, h.Linkname)
		return
	}
	_, old := a.want[h.Name]
	a.set(h.Name, h, data)
	if !old {
		a.touch(h.Name)
	}
}

func (a *adder) link(name, target string) {
	n := a.want[target]
	if n.Same == "" {
		n.Same = target
	}
	n.Ctime = a.w.stored(a.now)
	old := n.Same
	n.Same = min(n.Same, name)
	for k, v := range a.want {
		if v.Same == old && k != target {
			a.want[k] = n
		}
	}
	a.want[target], a.want[name] = n, n
	a.touch(name)
}

func (a *adder) replace(h *tar.Header, data []byte) {
	a.t.Helper()
	h.Size = int64(len(data))
	if err := a.w.Replace(h, bytes.NewReader(data)); err != nil {
		a.t.Fatal(err)
	}
	a.unlink(h.Name)
	a.set(h.Name, h, data)
	a.touch(h.Name)
}

func (a *adder) remove(name string) {
	a.t.Helper()
	if err := a.w.Remove(name); err != nil {
		a.t.Fatal(err)
	}
	a.unlink(name)
	a.touch(name)
}

// unlink takes a name out of the wanted tree and mends what the other names of the inode say.
func (a *adder) unlink(name string) {
	n, ok := a.want[name]
	if !ok {
		return
	}
	delete(a.want, name)
	if n.Same == "" {
		return
	}
	var rest []string
	for k, v := range a.want {
		if v.Same == n.Same {
			rest = append(rest, k)
		}
	}
	slices.Sort(rest)
	for _, k := range rest {
		v := a.want[k]
		v.Ctime = a.w.stored(a.now)
		if v.Same = rest[0]; len(rest) == 1 {
			v.Same = ""
		}
		a.want[k] = v
	}
}

func acl(entries ...uint32) string {
	b := le.AppendUint32(nil, 2)
	for i := 0; i < len(entries); i += 3 {
		b = le.AppendUint16(b, uint16(entries[i]))
		b = le.AppendUint16(b, uint16(entries[i+1]))
		b = le.AppendUint32(b, entries[i+2])
	}
	return string(b)
}
