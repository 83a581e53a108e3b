package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// What the test's disks say of SELinux: a policy as small as it can be.
var smallPolicy = map[string]string{
	"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=small\n",
	"etc/selinux/small/contexts/files/file_contexts": "/.*\tsystem_u:object_r:default_t:s0\n" +
		"/etc(/.*)?\tsystem_u:object_r:etc_t:s0\n" +
		"/var/lib/containers/storage(/.*)?\tsystem_u:object_r:container_var_lib_t:s0\n" +
		"/var/lib/containers/storage/overlay(/.*)?\tsystem_u:object_r:container_ro_file_t:s0\n" +
		"/var/lib/containers/storage/overlay/.*/bin(/.*)?\tsystem_u:object_r:bin_t:s0\n",
}

const storeDir = "var/images"

// verifyImages writes images with files of every kind, whose layers are shared in part.
func verifyImages(t testing.TB) (archives []string) {
	t.Helper()
	at := func(n int64) time.Time { return time.Unix(1600000000+n, 123456789*n%1e9) }
	r := rand.New(rand.NewPCG(11, 12))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	var first []entry
	add := func(h tar.Header, content string) {
		if h.ModTime.IsZero() {
			h.ModTime = at(int64(len(first)))
		}
		first = append(first, entry{Header: h, content: content})
	}
	for _, d := range []string{"./", "bin/", "etc/", "dev/", "lib/", "data/"} {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}, "")
	}
	for i := range 40 {
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("bin/program-%d", i), Mode: 0o755}, text(100+i*i*37))
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("etc/conf-%d", i), Mode: 0o644, Uid: i % 3, Gid: i % 5}, text(i*11))
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "bin/su", Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}, text(5000))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "data/attributed", Mode: 0o600, PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v", "SCHILY.xattr.user.long": text(300)}}, text(70000))
	add(tar.Header{Typeflag: tar.TypeReg, Name: "data/large", Mode: 0o600}, text(700000))
	for i := range 6 {
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("lib/link-%d", i), Linkname: strings.Repeat("../", i) + "bin/su" + strings.Repeat("x", i*20), Mode: 0o777}, "")
		add(tar.Header{Typeflag: tar.TypeLink, Name: fmt.Sprintf("lib/hard-%d", i), Linkname: fmt.Sprintf("bin/program-%d", i)}, "")
	}
	add(tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
	add(tar.Header{Typeflag: tar.TypeBlock, Name: "dev/disk", Mode: 0o600, Devmajor: 259, Devminor: 70000}, "")
	add(tar.Header{Typeflag: tar.TypeFifo, Name: "dev/fifo", Mode: 0o640}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "no/entry/for/this", Mode: 0o644}, text(10))
	shared := layer{tar: makeTar(tar.FormatPAX, first...)}
	second := layer{compression: "zstd", tar: makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "etc/", Mode: 0o711, ModTime: at(1)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.conf-1", ModTime: at(2)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "etc/.wh.conf-2", ModTime: at(2)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/.wh.entry", ModTime: at(2)}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "lib/", Mode: 0o755, ModTime: at(3)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "lib/.wh..wh..opq", ModTime: at(3)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "lib/new", Mode: 0o644, ModTime: at(4)}, content: text(9000)},
	)}
	third := layer{compression: "none", tar: makeTar(tar.FormatGNU,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "srv/" + strings.Repeat("long-", 45), Mode: 0o644, Uid: 1000, Gid: 1000, ModTime: time.Unix(1e9, 0)}, content: text(40000)},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "srv/other", Mode: 0o444, ModTime: time.Unix(1e9, 0)}, content: text(4096)},
	)}
	dir := tempDir(t)
	for i, layers := range [][]layer{{shared, second}, {shared, second, third}} {
		name := fmt.Sprintf("localhost/verify:%d", i)
		layout := fmt.Sprintf("%s/layout%d", dir, i)
		check(t, writeLayout(layout, name, "amd64", layers...))
		archives = append(archives, fmt.Sprintf("%s/%d.tar", dir, i))
		run(t, "tar", "-C", layout, "-cf", archives[i], ".")
	}
	return archives
}

// verifyLab is a baked disk that is hurt again and again.
type verifyLab struct {
	t        *testing.T
	r        *rand.Rand
	pristine string
	work     string
	part     partition
	number   int
	xfs      bool
	lock     string

	files  []string // of the layers, relative to the store
	own    []string // of the store itself
	kinds  map[string]*node
	layers []string
	before string // what the kernel sees of the pristine disk
}

func newVerifyLab(t *testing.T, disk, lock string, number int, seed uint64) *verifyLab {
	l := &verifyLab{t: t, r: rand.New(rand.NewPCG(seed, uint64(number))), pristine: disk, work: filepath.Join(tempDir(t), "work.raw"), number: number, lock: lock}
	l.part, l.xfs = area(t, disk, number), isXFS(t, disk, number)
	l.reset()
	mnt := mount(t, l.work, number, "ro")
	nodes, err := diskNodes(mnt+"/"+storeDir, "")
	check(t, err)
	unmount(t, mnt)
	l.kinds = nodes
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		rest, ok := strings.CutPrefix(name, "overlay/")
		id, inside, _ := strings.Cut(rest, "/")
		switch {
		case ok && strings.HasPrefix(inside, "diff/"):
			l.files = append(l.files, name)
		case name != "":
			l.own = append(l.own, name)
			if inside == "diff" {
				l.layers = append(l.layers, id)
			}
		}
	}
	l.before = l.view()
	return l
}

// reset makes the work disk as the pristine one is.
func (l *verifyLab) reset() {
	l.t.Helper()
	run(l.t, "cp", "--reflink=auto", "--sparse=always", l.pristine, l.work)
}

// view is all that a reader of the store and of the configuration sees through the kernel, as text.
func (l *verifyLab) view() string {
	l.t.Helper()
	dir, err := os.MkdirTemp(scratch, "mnt.")
	check(l.t, err)
	defer os.Remove(dir)
	options := "ro"
	if l.xfs {
		options = "ro,norecovery,nouuid"
	}
	o := command(l.t, nil, "mount", "-o", fmt.Sprintf("%s,loop,offset=%d,sizelimit=%d", options, l.part.start, l.part.size), l.work, dir)
	if o.code != 0 {
		return "not mounted: " + o.stderr
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var b strings.Builder
	for _, sub := range []string{storeDir, "etc"} {
		nodes, err := diskNodes(dir+"/"+sub, "")
		if err != nil {
			return "not read: " + err.Error()
		}
		for _, n := range slices.Sorted(maps.Keys(nodes)) {
			fmt.Fprintf(&b, "%s/%s %v\n", sub, n, *nodes[n])
		}
	}
	return b.String()
}

// fsFaults is what the filesystem's own tool finds.
func (l *verifyLab) fsFaults() []string {
	l.t.Helper()
	if l.xfs {
		return xfsFaults(l.t, l.work, l.number)
	}
	o := command(l.t, nil, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", l.work, l.part.start))
	if o.code == 0 && !strings.Contains(o.stdout, "Fix?") {
		return nil
	}
	return []string{clip(o.stdout + o.stderr)}
}

// mounted calls f with the partition mounted for writing.
func (l *verifyLab) mounted(f func(mnt string)) {
	l.t.Helper()
	mnt := mount(l.t, l.work, l.number, "rw")
	f(mnt)
	unmount(l.t, mnt)
	os.Remove(mnt)
}

// pick is a random one of the files for which keep says so.
func (l *verifyLab) pick(from []string, keep func(name string, n *node) bool) string {
	l.t.Helper()
	var some []string
	for _, f := range from {
		if keep(f, l.kinds[f]) {
			some = append(some, f)
		}
	}
	if len(some) == 0 {
		l.t.Fatal("no such file")
	}
	return some[l.r.IntN(len(some))]
}

func isReg(_ string, n *node) bool      { return n.kind == unix.S_IFREG }
func hasBytes(_ string, n *node) bool   { return n.kind == unix.S_IFREG && n.size > 0 }
func isWhiteout(_ string, n *node) bool { return n.kind == unix.S_IFCHR && n.major == 0 }
func anyKind(string, *node) bool        { return true }

// named are words of which the report must have one to have named a fault in a file of the store.
func named(file string) []string {
	rest, ok := strings.CutPrefix(file, "overlay/")
	id, inside, _ := strings.Cut(rest, "/")
	if ok && len(id) == 64 {
		if sub, ok := strings.CutPrefix(inside, "diff/"); ok {
			return []string{fmt.Sprintf("layer %.12s: %q", id, sub)}
		}
		return []string{fmt.Sprintf("layer %.12s", id)}
	}
	for _, part := range strings.FieldsFunc(file, func(r rune) bool { return r == '/' || r == '.' }) {
		if len(part) == 64 {
			return []string{part[:12]}
		}
	}
	// A record that is wrong is named by what it is of.
	switch filepath.Base(file) {
	case "layers.json":
		return []string{"layers.json", "layer "}
	case "images.json":
		return []string{"images.json", "image ", "layer "}
	}
	return []string{filepath.Base(file)}
}

// rewrite changes a file's content in place and puts its time back.
func rewrite(t testing.TB, name string, edit func([]byte) []byte) {
	t.Helper()
	st, err := os.Stat(name)
	check(t, err)
	old, err := os.ReadFile(name)
	check(t, err)
	check(t, os.WriteFile(name, edit(slices.Clone(old)), st.Mode().Perm()))
	check(t, os.Chtimes(name, st.ModTime(), st.ModTime()))
}

// A verifyFault hurts the work disk in one way. It returns what it did and words of which the report must have one;
// no words leave it to what the kernel and the filesystem's tool see whether there is anything to find.
type verifyFault struct {
	name string
	hurt func(l *verifyLab) (what string, words []string)
}

// inFile is a fault made to a file of the store through the kernel.
func inFile(name string, from func(l *verifyLab) []string, keep func(string, *node) bool, do func(l *verifyLab, path string, n *node) error) verifyFault {
	return verifyFault{name, func(l *verifyLab) (string, []string) {
		file := l.pick(from(l), keep)
		l.mounted(func(mnt string) { check(l.t, do(l, mnt+"/"+storeDir+"/"+file, l.kinds[file])) })
		words := named(file)
		for _, other := range strings.Fields(l.kinds[file].links) {
			words = append(words, named(other)...)
		}
		return file, words
	}}
}

func inLayers(l *verifyLab) []string { return l.files }
func inOwn(l *verifyLab) []string    { return l.own }

func retime(path string, n *node) error {
	ts := []unix.Timespec{unix.NsecToTimespec(n.mtime.UnixNano()), unix.NsecToTimespec(n.mtime.UnixNano())}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// hurtJSON changes one character of one value or key of a record. What has no effect on any reader is left alone: which
// of the known compressions a blob has that is not there.
func hurtJSON(r *rand.Rand, b []byte) []byte {
	for {
		at := r.IntN(len(b))
		c := b[at]
		switch {
		case bytes.Contains(b[max(0, at-16):at], []byte(`"compression":`)) && c >= '0' && c <= '9':
		case c >= '0' && c <= '9':
			if b[at] = '0' + (c-'0'+1+byte(r.IntN(8)))%10; b[at] != c {
				return b
			}
		case c >= 'a' && c <= 'f':
			b[at] = 'a' + (c-'a'+1+byte(r.IntN(4)))%6
			return b
		case c == ',' || c == '{' || c == '"':
			b[at] = ' '
			return b
		}
	}
}

var verifyFaults = []verifyFault{
	inFile("file gone", inLayers, isReg, func(l *verifyLab, p string, n *node) error { return os.Remove(p) }),
	inFile("file truncated", inLayers, hasBytes, func(l *verifyLab, p string, n *node) error {
		if err := os.Truncate(p, l.r.Int64N(n.size)); err != nil {
			return err
		}
		return retime(p, n)
	}),
	inFile("bit of content", inLayers, hasBytes, func(l *verifyLab, p string, n *node) error {
		rewrite(l.t, p, func(b []byte) []byte { b[l.r.IntN(len(b))] ^= 1 << l.r.IntN(8); return b })
		return nil
	}),
	inFile("content longer", inLayers, isReg, func(l *verifyLab, p string, n *node) error {
		rewrite(l.t, p, func(b []byte) []byte { return append(b, 0) })
		return nil
	}),
	inFile("mode", inLayers, func(_ string, n *node) bool { return n.kind != unix.S_IFLNK }, func(l *verifyLab, p string, n *node) error {
		return unix.Chmod(p, n.mode^1<<l.r.IntN(12))
	}),
	inFile("owner", inLayers, anyKind, func(l *verifyLab, p string, n *node) error {
		if err := unix.Lchown(p, int(n.uid)+1+l.r.IntN(1000), int(n.gid)); err != nil || n.kind == unix.S_IFLNK {
			return err
		}
		return unix.Chmod(p, n.mode)
	}),
	inFile("time", inLayers, anyKind, func(l *verifyLab, p string, n *node) error {
		other := *n
		other.mtime = n.mtime.Add([]time.Duration{1, time.Second, -time.Hour}[l.r.IntN(3)])
		return retime(p, &other)
	}),
	inFile("attribute more", inLayers, isReg, func(l *verifyLab, p string, n *node) error {
		return unix.Lsetxattr(p, []string{"user.more", "trusted.more", "security.more"}[l.r.IntN(3)], []byte("x"), 0)
	}),
	inFile("attribute gone", inLayers, func(_ string, n *node) bool { return n.xattrs["user.k"] != "" }, func(l *verifyLab, p string, n *node) error {
		return unix.Lremovexattr(p, []string{"user.k", "user.long"}[l.r.IntN(2)])
	}),
	inFile("attribute changed", inLayers, func(_ string, n *node) bool { return n.xattrs["security.capability"] != "" }, func(l *verifyLab, p string, n *node) error {
		v := []byte(n.xattrs["security.capability"])
		v[5] ^= 1 << l.r.IntN(8)
		return unix.Lsetxattr(p, "security.capability", v, 0)
	}),
	inFile("label", inLayers, anyKind, func(l *verifyLab, p string, n *node) error {
		if l.r.IntN(3) == 0 {
			return unix.Lremovexattr(p, label)
		}
		return unix.Lsetxattr(p, label, []byte("system_u:object_r:other_t:s0\x00"), 0)
	}),
	inFile("label of the store's own", inOwn, anyKind, func(l *verifyLab, p string, n *node) error {
		return unix.Lsetxattr(p, label, []byte("system_u:object_r:other_t:s0\x00"), 0)
	}),
	inFile("own file gone", inOwn, func(name string, n *node) bool {
		return n.kind == unix.S_IFREG && !strings.HasSuffix(name, "storage.lock")
	}, func(l *verifyLab, p string, n *node) error { return os.Remove(p) }),
	inFile("own file's bit", inOwn, hasBytes, func(l *verifyLab, p string, n *node) error {
		rewrite(l.t, p, func(b []byte) []byte {
			if strings.HasSuffix(p, ".json") {
				return hurtJSON(l.r, b)
			}
			if strings.HasSuffix(p, ".gz") && len(b) > 10 {
				// The first bytes of gzip have its time and system, which none looks at.
				b[10+l.r.IntN(len(b)-10)] ^= 1 << l.r.IntN(8)
				return b
			}
			b[l.r.IntN(len(b))] ^= 1 << l.r.IntN(8)
			return b
		})
		return nil
	}),
	inFile("own mode", inOwn, func(_ string, n *node) bool { return n.kind != unix.S_IFLNK }, func(l *verifyLab, p string, n *node) error {
		return unix.Chmod(p, n.mode^1<<l.r.IntN(9))
	}),
	inFile("own owner", inOwn, anyKind, func(l *verifyLab, p string, n *node) error { return unix.Lchown(p, 7, 0) }),
	inFile("more hard links", inLayers, isReg, func(l *verifyLab, p string, n *node) error {
		root, _, _ := strings.Cut(p, storeDir)
		return os.Link(p, root+"root/another")
	}),
	inFile("hard link broken", inLayers, func(name string, n *node) bool { return strings.Contains(name, "lib/hard-") }, func(l *verifyLab, p string, n *node) error {
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if err := os.Remove(p); err != nil {
			return err
		}
		if err := os.WriteFile(p, b, 0o755); err != nil {
			return err
		}
		return retime(p, n)
	}),
	inFile("symlink's target", inLayers, func(_ string, n *node) bool { return n.kind == unix.S_IFLNK }, func(l *verifyLab, p string, n *node) error {
		b := []byte(n.target)
		b[l.r.IntN(len(b))] ^= 1
		if err := os.Remove(p); err != nil {
			return err
		}
		if err := os.Symlink(string(b), p); err != nil {
			return err
		}
		if err := unix.Lsetxattr(p, label, []byte(n.xattrs[label]), 0); err != nil {
			return err
		}
		return retime(p, n)
	}),
	inFile("whiteout gone", inLayers, isWhiteout, func(l *verifyLab, p string, n *node) error { return os.Remove(p) }),
	inFile("whiteout a file", inLayers, isWhiteout, func(l *verifyLab, p string, n *node) error {
		if err := os.Remove(p); err != nil {
			return err
		}
		return os.WriteFile(p, nil, 0)
	}),
	inFile("opaque mark", inLayers, func(_ string, n *node) bool { return n.kind == unix.S_IFDIR }, func(l *verifyLab, p string, n *node) error {
		if n.xattrs["trusted.overlay.opaque"] != "" {
			return unix.Lremovexattr(p, "trusted.overlay.opaque")
		}
		return unix.Lsetxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
	}),
	inFile("device", inLayers, func(_ string, n *node) bool { return n.kind == unix.S_IFCHR && n.major != 0 || n.kind == unix.S_IFBLK }, func(l *verifyLab, p string, n *node) error {
		if err := os.Remove(p); err != nil {
			return err
		}
		if err := unix.Mknod(p, n.kind|n.mode, int(unix.Mkdev(n.major, n.minor^1))); err != nil {
			return err
		}
		if err := unix.Lsetxattr(p, label, []byte(n.xattrs[label]), 0); err != nil {
			return err
		}
		return retime(p, n)
	}),
	{"file more", func(l *verifyLab) (string, []string) {
		dir := l.pick(l.files, func(_ string, n *node) bool { return n.kind == unix.S_IFDIR })
		l.mounted(func(mnt string) { check(l.t, os.WriteFile(mnt+"/"+storeDir+"/"+dir+"/more", nil, 0o644)) })
		return dir + "/more", named(dir + "/more")
	}},
	{"own file more", func(l *verifyLab) (string, []string) {
		dir := l.pick(l.own, func(name string, n *node) bool { return n.kind == unix.S_IFDIR && filepath.Base(name) != "diff" })
		l.mounted(func(mnt string) { check(l.t, os.WriteFile(mnt+"/"+storeDir+"/"+dir+"/more", nil, 0o644)) })
		return dir + "/more", []string{filepath.Base(dir) + "/more"}
	}},
	{"swapped layers", func(l *verifyLab) (string, []string) {
		a, b := l.layers[0], l.layers[1+l.r.IntN(len(l.layers)-1)]
		l.mounted(func(mnt string) {
			dir := mnt + "/" + storeDir + "/overlay/"
			check(l.t, unix.Renameat2(unix.AT_FDCWD, dir+a+"/diff", unix.AT_FDCWD, dir+b+"/diff", unix.RENAME_EXCHANGE))
		})
		return a + " and " + b, []string{a[:12]}
	}},
	{"swapped tar-split data", func(l *verifyLab) (string, []string) {
		a, b := l.layers[0], l.layers[1+l.r.IntN(len(l.layers)-1)]
		l.mounted(func(mnt string) {
			dir := mnt + "/" + storeDir + "/overlay-layers/"
			check(l.t, unix.Renameat2(unix.AT_FDCWD, dir+a+".tar-split.gz", unix.AT_FDCWD, dir+b+".tar-split.gz", unix.RENAME_EXCHANGE))
		})
		return a + " and " + b, []string{a[:12]}
	}},
	{"swapped short names", func(l *verifyLab) (string, []string) {
		a := l.pick(l.own, func(name string, n *node) bool { return n.kind == unix.S_IFLNK })
		b := l.pick(l.own, func(name string, n *node) bool { return n.kind == unix.S_IFLNK && name != a })
		l.mounted(func(mnt string) {
			dir := mnt + "/" + storeDir + "/"
			check(l.t, unix.Renameat2(unix.AT_FDCWD, dir+a, unix.AT_FDCWD, dir+b, unix.RENAME_EXCHANGE))
		})
		return a + " and " + b, []string{filepath.Base(a)}
	}},
	{"records swapped", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			rewrite(l.t, mnt+"/"+storeDir+"/overlay-layers/layers.json", func(b []byte) []byte {
				var list []map[string]any
				check(l.t, json.Unmarshal(b, &list))
				k := []string{"diff-digest", "compressed-diff-digest", "compressed-size", "diff-size"}[l.r.IntN(4)]
				list[0][k], list[1][k] = list[1][k], list[0][k]
				out, err := json.Marshal(list)
				check(l.t, err)
				return out
			})
		})
		return "layers.json", []string{"layer "}
	}},
	{"image's name", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			rewrite(l.t, mnt+"/"+storeDir+"/overlay-images/images.json", func(b []byte) []byte {
				return bytes.Replace(b, []byte("localhost/verify:1"), []byte("localhost/verify:9"), 1)
			})
		})
		return "images.json", []string{"localhost/verify:"}
	}},
	{"storage.conf gone", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) { check(l.t, os.Remove(mnt+"/"+confPath)) })
		return confPath, []string{"/" + confPath}
	}},
	{"storage.conf's line gone", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			rewrite(l.t, mnt+"/"+confPath, func(b []byte) []byte {
				return []byte(strings.ReplaceAll(string(b), `"/`+storeDir+`"`, []string{"", `"/var/lib/x"`}[l.r.IntN(2)]))
			})
		})
		return confPath, []string{"/" + confPath}
	}},
	{"storage.conf's driver", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			rewrite(l.t, mnt+"/"+confPath, func(b []byte) []byte {
				return []byte(strings.Replace(string(b), `driver = "overlay"`, `driver = "`+[]string{"vfs", "btrfs"}[l.r.IntN(2)]+`"`, 1))
			})
		})
		return confPath, []string{"driver"}
	}},
	{"storage.conf broken", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			rewrite(l.t, mnt+"/"+confPath, func(b []byte) []byte { return append(b, "= [\n"...) })
		})
		return confPath, []string{"/" + confPath}
	}},
	{"a drop-in", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			check(l.t, os.MkdirAll(mnt+"/etc/containers/storage.conf.d", 0o755))
			check(l.t, os.WriteFile(mnt+"/etc/containers/storage.conf.d/99.conf", []byte("[storage.options]\nadditionalimagestores = []\n"), 0o644))
		})
		return "99.conf", []string{"99.conf"}
	}},
	{"CRI-O's option", func(l *verifyLab) (string, []string) {
		l.mounted(func(mnt string) {
			check(l.t, os.MkdirAll(mnt+"/etc/crio", 0o755))
			check(l.t, os.WriteFile(mnt+"/etc/crio/crio.conf", []byte("[crio]\nstorage_option = [\"overlay.mountopt=nodev\"]\n"), 0o644))
		})
		return "crio.conf", []string{"crio.conf"}
	}},
	{"policy's line gone", func(l *verifyLab) (string, []string) {
		const subs = "etc/selinux/small/contexts/files/file_contexts.subs"
		l.mounted(func(mnt string) { check(l.t, os.Remove(mnt+"/"+subs)) })
		return subs, []string{"/" + subs}
	}},
	{"filesystem's own numbers", (*verifyLab).hurtNumbers},
	{"bit of an inode", (*verifyLab).flipInode},
	{"bit of a folder", (*verifyLab).flipFolder},
	{"bit of the disk", (*verifyLab).flipAnywhere},
	{"bit of the disk", (*verifyLab).flipAnywhere},
	{"bit of the disk", (*verifyLab).flipAnywhere},
	{"bit of the start", (*verifyLab).flipStart},
}

// inode gives the inode number of a file of the store.
func (l *verifyLab) inode(file string) (ino uint64) {
	mnt := mount(l.t, l.work, l.number, "ro")
	var st unix.Stat_t
	check(l.t, unix.Lstat(mnt+"/"+storeDir+"/"+file, &st))
	unmount(l.t, mnt)
	os.Remove(mnt)
	return st.Ino
}

// hurtNumbers writes a wrong number with the filesystem's own debugger, which keeps the checksums right.
func (l *verifyLab) hurtNumbers() (string, []string) {
	file := l.pick(l.files, isReg)
	ino := l.inode(file)
	var cmds []string
	if l.xfs {
		cmds = [][]string{
			{fmt.Sprintf("inode %d", ino), "write core.nlinkv2 9"},
			{fmt.Sprintf("inode %d", ino), "write core.nblocks 12345"},
			{"agf 0", "write freeblks 77"},
			{"agf 0", "write longest 7"},
			{"agi 0", "write freecount 5"},
			{"sb 0", "write ifree 3"},
			{"sb 0", "write fdblocks 3"},
		}[l.r.IntN(7)]
		dev := attach(l.t, l.work, l.number)
		args := []string{"-x"}
		for _, c := range cmds {
			args = append(args, "-c", c)
		}
		run(l.t, "xfs_db", append(args, dev)...)
		detach(l.t, dev)
	} else {
		block := fmt.Sprint(20 + l.r.IntN(20000))
		cmds = []string{
			fmt.Sprintf("sif <%d> links_count 9", ino),
			fmt.Sprintf("sif <%d> blocks 12344", ino),
			fmt.Sprintf("freei <%d>", ino),
			"freeb " + block + " 3",
			"setb " + block + " 3",
			"set_bg 1 free_blocks_count 7",
			"set_bg 1 free_inodes_count 7",
			"ssv free_blocks_count 7",
			"ssv free_inodes_count 7",
			fmt.Sprintf("clri <%d>", ino),
		}
		cmds = cmds[l.r.IntN(len(cmds)):][:1]
		dev := attach(l.t, l.work, l.number)
		run(l.t, "debugfs", "-w", "-R", cmds[0], dev)
		detach(l.t, dev)
	}
	return fmt.Sprintf("%s (%s is inode %d)", strings.Join(cmds, "; "), file, ino), nil
}

// flip changes a bit of the partition.
func (l *verifyLab) flip(off int64) (string, []string) {
	f, err := os.OpenFile(l.work, os.O_RDWR, 0)
	check(l.t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, l.part.start+off)
	check(l.t, err)
	was := b[0]
	b[0] ^= 1 << l.r.IntN(8)
	_, err = f.WriteAt(b, l.part.start+off)
	check(l.t, err)
	return fmt.Sprintf("byte %d of the partition from %#x to %#x", off, was, b[0]), nil
}

var imapPlace = regexp.MustCompile(`located at block (\d+), offset (0x[0-9a-f]+)`)

// inodePlace is where the inode of a file is in the partition.
func (l *verifyLab) inodePlace(file string) int64 {
	ino := l.inode(file)
	dev := attach(l.t, l.work, l.number, "-r")
	defer detach(l.t, dev)
	if l.xfs {
		out := run(l.t, "xfs_db", "-r", "-c", fmt.Sprintf("convert inode %d fsblock", ino), "-c", fmt.Sprintf("convert inode %d inoidx", ino), "-c", "sb 0", "-c", "p inodesize inoblock", "-c", fmt.Sprintf("inode %d", ino), "-c", "daddr", dev)
		n := regexp.MustCompile(`current daddr is (\d+)`).FindStringSubmatch(out)
		if n == nil {
			l.t.Fatalf("xfs_db: %s", out)
		}
		daddr, err := strconv.ParseInt(n[1], 10, 64)
		check(l.t, err)
		return daddr * 512
	}
	out := run(l.t, "debugfs", "-R", fmt.Sprintf("imap <%d>", ino), dev)
	m := imapPlace.FindStringSubmatch(out)
	if m == nil {
		l.t.Fatalf("debugfs: %s", out)
	}
	block, err := strconv.ParseInt(m[1], 10, 64)
	check(l.t, err)
	off, err := strconv.ParseInt(m[2], 0, 64)
	check(l.t, err)
	return block*4096 + off
}

func (l *verifyLab) flipInode() (string, []string) {
	file := l.pick(l.files, anyKind)
	what, _ := l.flip(l.inodePlace(file) + l.r.Int64N(160))
	return what + ", in the inode of " + file, nil
}

func (l *verifyLab) flipFolder() (string, []string) {
	dir := l.pick(l.own, func(_ string, n *node) bool { return n.kind == unix.S_IFDIR })
	blocks := l.folderBlocks(l.inode(dir))
	if len(blocks) == 0 {
		return l.flipInode() // its entries are in the inode
	}
	what, _ := l.flip(blocks[l.r.IntN(len(blocks))]*4096 + l.r.Int64N(256))
	return what + ", in the folder " + dir, nil
}

var (
	xfsMap    = regexp.MustCompile(`\((\d+)/(\d+)\) count (\d+)`)
	xfsNumber = regexp.MustCompile(`agblocks = (\d+)`)
)

// folderBlocks lists the blocks of a folder, which have 4 KiB.
func (l *verifyLab) folderBlocks(ino uint64) (blocks []int64) {
	dev := attach(l.t, l.work, l.number, "-r")
	defer detach(l.t, dev)
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		check(l.t, err)
		return n
	}
	if !l.xfs {
		for _, f := range strings.Fields(run(l.t, "debugfs", "-R", fmt.Sprintf("blocks <%d>", ino), dev)) {
			blocks = append(blocks, number(f))
		}
		return blocks
	}
	out := run(l.t, "xfs_db", "-r", "-c", "sb 0", "-c", "p agblocks", "-c", fmt.Sprintf("inode %d", ino), "-c", "bmap", dev)
	size := number(xfsNumber.FindStringSubmatch(out)[1])
	for _, m := range xfsMap.FindAllStringSubmatch(out, -1) {
		for i := range number(m[3]) {
			blocks = append(blocks, number(m[1])*size+number(m[2])+i)
		}
	}
	return blocks
}

// flipAnywhere changes a bit that is part of a 4 KiB block in which something is.
func (l *verifyLab) flipAnywhere() (string, []string) {
	f, err := os.Open(l.work)
	check(l.t, err)
	defer f.Close()
	b := make([]byte, 4096)
	zero := make([]byte, 4096)
	for {
		at := l.r.Int64N(l.part.size/4096) * 4096
		_, err := f.ReadAt(b, l.part.start+at)
		check(l.t, err)
		if !bytes.Equal(b, zero) {
			return l.flip(at + l.r.Int64N(4096))
		}
	}
}

// flipStart changes a bit of the first blocks, where the filesystem says what it is.
func (l *verifyLab) flipStart() (string, []string) { return l.flip(l.r.Int64N(16384)) }

// faultSeed is what the random faults of a test begin with: always the same, or another each time in a long run.
func faultSeed(t *testing.T) uint64 {
	seed := uint64(1)
	if os.Getenv("NODEBAKE_SOAK") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		check(t, err)
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	return seed
}

// TestVerifyFaults puts one fault at a time into a baked disk: verify must find and name every one that changes what a
// reader sees, through the kernel, of the store or of the configuration, or what the filesystem's own tool complains
// of. It must find nothing on the disk as it was baked, and where neither sees a change.
func TestVerifyFaults(t *testing.T) {
	requires(t, "root", "skopeo", "e2fsck", "debugfs", "filefrag", "mkfs.xfs", "xfs_repair", "xfs_db")
	seed := faultSeed(t)
	n := 100
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 500
	}
	archives := verifyImages(t)
	for _, form := range []struct {
		name string
		part part
	}{
		{"ext4", rootPart(t, smallPolicy)},
		{"XFS", xfsPart(t, smallPolicy)},
	} {
		t.Run(form.name, func(t *testing.T) {
			dir := tempDir(t)
			base, out, lock := dir+"/base.raw", dir+"/out.raw", dir+"/lock.json"
			makeDisk(t, base, "gpt", form.part)
			baked(t, "--base", base, "--output", out, "--lock", lock, "--image", "oci-archive:"+archives[0], "--image", "oci-archive:"+archives[1])
			l := newVerifyLab(t, out, lock, 1, seed)
			clean := func(when string) {
				t.Helper()
				for _, more := range [][]string{nil, {"--deep", "--lock", lock}} {
					if o := nodebake(t, append([]string{"verify", "-q", l.work}, more...)...); o.code != exitDone {
						t.Errorf("%s\n%s", when, o)
					}
				}
			}
			clean("as baked")
			l.mounted(func(string) {})
			clean("mounted for writing and left alone")
			order := l.r.Perm(len(verifyFaults))
			plain, deep, unseen := 0, 0, 0
			for i := range n {
				k := l.r.IntN(len(verifyFaults))
				if i < len(order) {
					k = order[i]
				}
				f := verifyFaults[k]
				l.reset()
				what, words := f.hurt(l)
				o := nodebake(t, "verify", "-q", l.work)
				found := o.code == exitLie
				if found {
					plain++
				} else {
					o = nodebake(t, "verify", "-q", "--deep", l.work)
					found = o.code == exitLie
					if found {
						deep++
					}
				}
				switch {
				case o.code != exitDone && o.code != exitLie:
					t.Errorf("%s: %s\n%s", f.name, what, o)
				case words == nil:
					changed := l.view() != l.before
					tool := l.fsFaults()
					switch {
					case !found && (changed || len(tool) > 0):
						t.Errorf("%s: %s\nnot found; the kernel sees a change: %v, the filesystem's tool says: %s", f.name, what, changed, tool)
					case found && !changed && len(tool) == 0 && !beyondTools.MatchString(o.stdout):
						t.Errorf("%s: %s\nneither the kernel nor the filesystem's tool sees anything\n%s", f.name, what, o)
					case !found:
						unseen++
					}
				case !found:
					t.Errorf("%s: %s\nnot found", f.name, what)
				case !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(o.stdout+o.stderr, w) }):
					t.Errorf("%s: %s\nnot named (%q)\n%s", f.name, what, words, o)
				}
			}
			t.Logf("%d faults: %d found, %d more with --deep, %d that no reader sees", n, plain, deep, unseen)
		})
	}
}

// TestVerifyLock holds stores against locks that are right, edited, or another bake's.
func TestVerifyLock(t *testing.T) {
	requires(t, "root", "skopeo")
	archives := verifyImages(t)
	dir := tempDir(t)
	base, one, two := dir+"/base.raw", dir+"/one.raw", dir+"/two.raw"
	makeDisk(t, base, "gpt", rootPart(t, nil))
	lock, second := dir+"/lock.json", dir+"/second.json"
	baked(t, "--base", base, "--output", one, "--lock", lock, "--image", "oci-archive:"+archives[0], "--image", "oci-archive:"+archives[1])
	baked(t, "--base", one, "--output", two, "--lock", second, "--image", "oci-archive:"+archives[1], "--store", "/opt/more/images")
	edits := 0
	edited := func(edit func(l map[string]any, images []any)) string {
		var l map[string]any
		readJSON(t, lock, &l)
		edit(l, l["images"].([]any))
		raw, err := json.Marshal(l)
		check(t, err)
		edits++
		name := fmt.Sprintf("%s/edited-%d.json", dir, edits)
		check(t, os.WriteFile(name, raw, 0o644))
		return name
	}
	other := "sha256:" + strings.Repeat("ab", 32)
	set := func(image int, key string, value any) func(map[string]any, []any) {
		return func(_ map[string]any, images []any) { images[image].(map[string]any)[key] = value }
	}
	named := func(l map[string]any, images []any) {
		images[0].(map[string]any)["reference"] = "registry.example/verify:0"
	}
	for _, c := range []struct {
		name, disk, lock string
		more             []string
		code             int
		words            []string
	}{
		{"its own", one, lock, nil, exitDone, []string{"2 images: exactly these"}},
		{"less", one, edited(func(l map[string]any, images []any) { l["images"] = images[:1] }), nil, exitLie, []string{"the lock does not have it; it is localhost/verify:1"}},
		{"manifest", one, edited(set(0, "manifest", other)), nil, exitLie, []string{"it has no manifest " + other}},
		{"list", one, edited(set(0, "list", other)), nil, exitLie, []string{"it has no manifest list " + other}},
		{"config", one, edited(set(1, "config", other)), nil, exitLie, []string{"it is in no store (" + other, "the lock does not have it"}},
		{"layers", one, edited(set(1, "layers", []any{})), nil, exitLie, []string{"it has 3 layers, the lock 0"}},
		{"platform", one, edited(func(l map[string]any, _ []any) { l["platform"] = "linux/arm64" }), nil, exitLie, []string{"it is for linux/amd64, the lock for linux/arm64"}},
		{"name", one, edited(named), nil, exitLie, []string{`it does not have the name "registry.example/verify:0"`, `the lock does not call it "localhost/verify:0"`}},
		{"no lock", one, dir + "/gone.json", nil, exitFailed, nil},
		{"another file", one, archives[0], nil, exitUsage, nil},
		{"two stores", two, lock, nil, exitDone, []string{"exactly these"}},
		{"two stores and the second's", two, second, nil, exitLie, []string{"/var/images: image ", "--store holds the lock against one store alone"}},
		{"the second alone", two, second, []string{"--store", "/opt/more/images"}, exitDone, []string{"1 image: exactly these"}},
		{"the first alone", two, lock, []string{"--store", "/var/images"}, exitDone, []string{"2 images: exactly these"}},
		{"no such store", two, lock, []string{"--store", "/var/other"}, exitLie, nil},
	} {
		o := nodebake(t, append([]string{"verify", "-q", c.disk, "--lock", c.lock, "--deep"}, c.more...)...)
		if o.code != c.code {
			t.Errorf("%s: want exit %d\n%s", c.name, c.code, o)
		}
		for _, w := range c.words {
			if !strings.Contains(o.stdout, w) {
				t.Errorf("%s: not said: %q\n%s", c.name, w, o)
			}
		}
		o = nodebake(t, append([]string{"verify", "-q", c.disk, "--lock", c.lock, "--json"}, c.more...)...)
		if c.code != exitDone && c.code != exitLie || o.code != c.code || strings.HasPrefix(c.name, "no such") {
			continue
		}
		var doc struct {
			Faults      int
			Filesystems []struct {
				Mount string
				Total int
			}
			Stores []struct {
				Store         string
				Images, Total int
			}
			Lock struct {
				Images int
				Faults []map[string]string
			}
		}
		if err := json.Unmarshal([]byte(o.stdout), &doc); err != nil || doc.Faults != len(doc.Lock.Faults) || (doc.Faults > 0) != (c.code == exitLie) || len(doc.Stores) == 0 || len(doc.Filesystems) != 1 || doc.Filesystems[0].Mount != "/" {
			t.Errorf("%s: %v, %+v\n%s", c.name, err, doc, o)
		}
	}
}

// TestVerifyQcow2 changes bits of the structures of a qcow2 file: verify must find those by which QEMU reads something
// else of the store, or complains.
func TestVerifyQcow2(t *testing.T) {
	requires(t, "root", "skopeo", "qemu-img")
	seed := faultSeed(t)
	r := rand.New(rand.NewPCG(seed, 3))
	n := 25
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 300
	}
	archives := verifyImages(t)
	dir := tempDir(t)
	base, out, raw := dir+"/base.raw", dir+"/out.qcow2", dir+"/out.raw"
	makeDisk(t, base, "gpt", rootPart(t, smallPolicy))
	baked(t, "--base", base, "--output", out, "--image", "oci-archive:"+archives[0], "--image", "oci-archive:"+archives[1])
	run(t, "qemu-img", "convert", "-O", "raw", out, raw)
	l := newVerifyLab(t, raw, "", 1, seed)
	f, err := os.OpenFile(out, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	word := func(at int64) int64 {
		b := make([]byte, 8)
		_, err := f.ReadAt(b, at)
		check(t, err)
		return int64(binary.BigEndian.Uint64(b))
	}
	const offset = 1<<56 - 512
	// The header, the L1 table, the refcount table, and one table or block of each.
	places := [][2]int64{{0, 104}, {word(40), 8}, {word(48), 8}, {word(word(40)) & offset, 8 * 64}, {word(word(48)) & offset, 2 * 64}}
	found, silent := 0, 0
	for range n {
		p := places[r.IntN(len(places))]
		at := p[0] + r.Int64N(p[1])
		b, was := make([]byte, 1), make([]byte, 1)
		_, err := f.ReadAt(was, at)
		check(t, err)
		b[0] = was[0] ^ 1<<r.IntN(8)
		_, err = f.WriteAt(b, at)
		check(t, err)
		what := fmt.Sprintf("byte %d of the qcow2 file from %#x to %#x", at, was[0], b[0])
		o := nodebake(t, "verify", "-q", "--deep", out)
		os.Remove(l.work)
		seen := ""
		if c := command(t, nil, "qemu-img", "convert", "-O", "raw", out, l.work); c.code != 0 {
			seen = c.stderr
		} else if st, err := os.Stat(l.work); err != nil || st.Size() < l.part.start+l.part.size {
			seen = "the disk is too short"
		} else if l.view() != l.before {
			seen = "the kernel sees a change"
		} else if c := command(t, nil, "qemu-img", "check", "-f", "qcow2", out); c.code == 2 {
			seen = c.stdout + c.stderr
		}
		switch {
		case o.code != exitDone && o.code != exitLie && o.code != exitUnsupported && seen == "", o.code == exitFailed && !strings.Contains(o.stderr, "backing"):
			t.Errorf("%s: %s", what, o)
		case o.code == exitDone && seen != "":
			t.Errorf("%s: not found: %s", what, clip(seen))
		case o.code == exitLie && seen == "" && !strings.Contains(o.stdout, out):
			t.Errorf("%s: QEMU sees nothing\n%s", what, o)
		case o.code == exitDone:
			silent++
		default:
			found++
		}
		_, err = f.WriteAt(was, at)
		check(t, err)
	}
	t.Logf("%d found, %d that no reader sees", found, silent)
	if o := nodebake(t, "verify", "-q", "--deep", out); o.code != exitDone {
		t.Errorf("put right again: %s", o)
	}
}

// beyondTools are findings about structures that neither the kernel nor the tools look at when all else is well.
var beyondTools = regexp.MustCompile(`copy of the (superblock|descriptor)|free, and has a wrong checksum`)

// hashedBytes reads every regular file below a folder through one SHA-256, one after the other, and counts them.
func hashedBytes(b *testing.B, dir string) (n int64, took time.Duration) {
	b.Helper()
	h, buf := sha256.New(), make([]byte, 1<<20)
	start := time.Now()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		k, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
		n += k
		return err
	})
	check(b, err)
	h.Sum(nil)
	return n, time.Since(start)
}

// BenchmarkVerify measures verify against the time that the hashing of the same bytes takes, with all of it in the
// page cache: every file of the store through the kernel's mount, by one goroutine with crypto/sha256 (the machine's
// SHA instructions), and by coreutils' sha256sum. It prints a Markdown table; a ratio is to the first of the two.
//
//	go test -run '^$' -bench Verify -benchtime 1x ./integration
func BenchmarkVerify(b *testing.B) {
	requires(b, "root", "qemu-img", "skopeo", "sha256sum", "mkfs.xfs")
	one := makeLoad(b, "one", 20_000, 600<<20)
	dir := tempDir(b)
	bin := productPath(b)
	bases := []struct{ name, disk string }{{"ext4", dir + "/ext4.raw"}, {"XFS", dir + "/xfs.raw"}}
	makeDisk(b, bases[0].disk, "gpt", rootPart(b, nil))
	makeDisk(b, bases[1].disk, "gpt", xfsPart(b, nil))
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.TabIndent)
	fmt.Fprintln(w, "| filesystem\t | file\t | MB\t | Go SHA-256 (s)\t | sha256sum (s)\t | verify (s)\t | CPU (s)\t | peak (MiB)\t | ratio\t | --deep (s)\t | ratio\t |")
	fmt.Fprintln(w, "| ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t |")
	for b.Loop() {
		for _, base := range bases {
			for _, format := range []string{"raw", "qcow2"} {
				out := dir + "/out." + format
				args := []string{"--base", base.disk, "--output", out, "--quiet"}
				for _, a := range one.archives {
					args = append(args, "--image", "oci-archive:"+a)
				}
				baked(b, args...)
				raw := rawOf(b, dir, out)
				mnt := mount(b, raw, 1, "ro")
				store := mnt + "/var/images"
				var hash, sum, plain, deep, ratios, deepRatios []float64
				var n, peak int64
				var cpus []float64
				for pair := range 6 {
					k, took := hashedBytes(b, store)
					n = k
					s := command(b, nil, "sh", "-c", "find "+store+" -type f -print0 | xargs -0 sha256sum > /dev/null")
					v := measured(b, bin, "verify", "-q", out)
					d := measured(b, bin, "verify", "-q", "--deep", out)
					if v.code != 0 || d.code != 0 || s.code != 0 {
						b.Fatalf("%s\n%s\n%s", v, d, s)
					}
					if pair == 0 {
						continue // the cache is warm from here on
					}
					hash, sum = append(hash, took.Seconds()), append(sum, s.took.Seconds())
					plain, deep = append(plain, v.took.Seconds()), append(deep, d.took.Seconds())
					cpus = append(cpus, cpu(v))
					ratios, deepRatios = append(ratios, v.took.Seconds()/took.Seconds()), append(deepRatios, d.took.Seconds()/took.Seconds())
					peak = max(peak, v.usage.Maxrss>>10, d.usage.Maxrss>>10)
				}
				unmount(b, mnt)
				fmt.Fprintf(w, "| %s\t | %s\t | %d\t | %.2f\t | %.2f\t | %.2f\t | %.2f\t | %d\t | %.2f\t | %.2f\t | %.2f\t |\n", base.name, format, n/1e6,
					median(hash), median(sum), median(plain), median(cpus), peak, median(ratios), median(deep), median(deepRatios))
				b.ReportMetric(median(ratios), strings.ToLower(base.name)+"-"+format+"-ratio")
				os.Remove(out)
				os.Remove(raw)
			}
		}
	}
	w.Flush()
	fmt.Printf("\n%s\n", &table)
}
