package integration

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// diskText is text of a disk in a report: itself, or base64 where it is no UTF-8.
type diskText string

func (d *diskText) UnmarshalJSON(raw []byte) error {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	if code, ok := strings.CutPrefix(s, "0s"); ok {
		b, err := base64.StdEncoding.DecodeString(code)
		if err != nil {
			return err
		}
		s = string(b)
	}
	*d = diskText(s)
	return nil
}

type diffField struct {
	What string
	A, B diskText
}

// diffReport is what diff --json prints, as its documentation has it.
type diffReport struct {
	Disk, System []diffField
	Partitions   []struct {
		Partition, Kind string
		Differs         []diffField
		ContentFrom     *int64
	}
	Boot []struct {
		Entry, Kind            string
		Differs                []diffField
		ArgsRemoved, ArgsAdded []string
	}
	Stores []struct {
		Path, Kind string
		Images     int
	}
	Images []struct {
		Store, Kind string
		A, B        *struct {
			ID, Digest string
			Names      []string
		}
	}
	Warnings []string
	Files    []struct {
		Path    diskText
		Kind    string
		Differs []string
		Below   *struct{ Names, Bytes int64 }
		Lines   string
		Error   string
	}
	Totals struct{ Compared, Added, Removed, Changed, Unreadable int64 }
	Differ bool
}

// differences runs the command, whose exit code must agree with what it prints.
func differences(t testing.TB, a, b string, args ...string) diffReport {
	t.Helper()
	o := nodebake(t, append([]string{"diff", a, b, "--json", "--exit-code"}, args...)...)
	var r diffReport
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil {
		t.Fatalf("%v\n%s", err, o)
	}
	if want := map[bool]int{true: exitLie, false: exitDone}[r.Differ]; o.code != want {
		t.Fatalf("must exit with %d\n%s", want, o)
	}
	return r
}

// paths are the files that differ.
func (r diffReport) paths() []string {
	all := []string{}
	for _, f := range r.Files {
		all = append(all, string(f.Path))
	}
	slices.Sort(all)
	return all
}

// onlyFiles fails where something else than files and the listed parts differs.
func (r diffReport) onlyFiles(t testing.TB) {
	t.Helper()
	if len(r.Disk)+len(r.System)+len(r.Partitions)+len(r.Boot)+len(r.Stores)+len(r.Images)+len(r.Warnings) > 0 {
		t.Errorf("more than files differ: %+v", r)
	}
}

func samePaths(t testing.TB, got, want []string) {
	t.Helper()
	for _, p := range want {
		if !slices.Contains(got, p) {
			t.Errorf("diff does not name %q", p)
		}
	}
	for _, p := range got {
		if !slices.Contains(want, p) {
			t.Errorf("diff names %q", p)
		}
	}
}

// seen describes every name below a folder by what coreutils and getfattr print through the kernel, keyed by path with
// a slash in front.
func seen(t testing.TB, dir string, times bool) map[string]string {
	t.Helper()
	all := map[string]string{}
	sh := func(script string) []string {
		cmd := exec.Command("bash", "-c", "set -o pipefail; cd \"$0\" && "+script, dir)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		out, err := cmd.Output()
		check(t, err)
		return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
	}
	stamp := ""
	if times {
		stamp = " %T@"
	}
	// A folder's size is the filesystem's own affair, and a symbolic link's mode nobody's.
	for _, line := range sh(`find . -type d -printf '%p\n%y %m %U %G` + stamp + `\0' -o -type l -printf '%p\n%y %U %G %l` + stamp + `\0' -o -type f -printf '%p\n%y %m %U %G %s` + stamp + `\0' -o -printf '%p\n%y %m %U %G` + stamp + `\0'`) {
		i := strings.LastIndex(line, "\n")
		all[strings.TrimPrefix(line[:i], ".")] = line[i:]
	}
	for _, line := range sh(`find . -type f -print0 | xargs -0r sha256sum -bz`) {
		if line != "" {
			all[strings.TrimPrefix(line[66:], ".")] += " " + line[:64]
		}
	}
	for name := range all {
		if st := strings.TrimPrefix(all[name], "\n"); st[0] == 'b' || st[0] == 'c' {
			all[name] += " " + run(t, "stat", "-c", "%t,%T", dir+name)
		}
	}
	names := slices.Sorted(maps.Keys(all))
	for len(names) > 0 {
		n := min(500, len(names))
		args := []string{"-h", "-d", "-m", "-", "-e", "hex", "--absolute-names", "--"}
		for _, name := range names[:n] {
			args = append(args, dir+name)
		}
		for _, block := range strings.Split(run(t, "getfattr", args...), "\n\n") {
			head, rest, ok := strings.Cut(strings.TrimPrefix(block, "# file: "), "\n")
			if ok {
				all[unescapeOctal(strings.TrimPrefix(head, dir))] += "\n" + rest
			}
		}
		names = names[n:]
	}
	return all
}

// unescapeOctal undoes how getfattr writes odd names.
func unescapeOctal(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// differing are the paths that two folders do not have alike, but those below one that is passed over.
func differing(a, b map[string]string, under string, skip ...string) []string {
	all := []string{}
	for _, m := range []map[string]string{a, b} {
	next:
		for name := range m {
			for _, s := range skip {
				if name == s || strings.HasPrefix(name, s+"/") {
					continue next
				}
			}
			if wa, oka := a[name]; true {
				if wb, okb := b[name]; oka != okb || wa != wb {
					if name == "" && under == "" {
						all = append(all, "/")
					} else {
						all = append(all, under+name)
					}
				}
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// meddle makes n random changes in a mounted tree, without asking what is where.
func meddle(t testing.TB, r *rand.Rand, root string, n int, skip ...string) {
	t.Helper()
	var names []string
	list := func() {
		names = nil
		check(t, filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
			switch {
			case err != nil || p == root:
				return err
			case !slices.Contains(skip, strings.TrimPrefix(p, root)):
				names = append(names, p)
			case e.IsDir():
				return fs.SkipDir
			}
			return nil
		}))
		if len(names) == 0 {
			t.Fatalf("nothing is left in %s", root)
		}
	}
	fresh := func(dir string) string {
		odd := []string{"new", "with blank", "caf\xe9", "日本", "new\nline", "-n", "back\\slash", "\x1b[31m"}
		return fmt.Sprintf("%s/%s%d", dir, odd[r.Intn(len(odd))], r.Intn(1000000))
	}
	for range n {
		list()
		name := names[r.Intn(len(names))]
		st, err := os.Lstat(name)
		check(t, err)
		dir := filepath.Dir(name)
		if st.IsDir() {
			dir = name
		}
		keepTime := func() {
			if st.Mode().IsRegular() && r.Intn(2) == 0 {
				check(t, os.Chtimes(name, st.ModTime(), st.ModTime()))
			}
		}
		switch r.Intn(14) {
		case 0, 1: // one byte, size and perhaps time as before
			if !st.Mode().IsRegular() || st.Size() == 0 {
				continue
			}
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			check(t, err)
			at, b := r.Int63n(st.Size()), make([]byte, 1)
			_, err = f.ReadAt(b, at)
			check(t, err)
			b[0] ^= 1 << r.Intn(8)
			_, err = f.WriteAt(b, at)
			check(t, err)
			check(t, f.Close())
			keepTime()
		case 2: // another size
			if st.Mode().IsRegular() {
				check(t, os.Truncate(name, r.Int63n(3*st.Size()+2)))
				keepTime()
			}
		case 3:
			if st.Mode()&fs.ModeSymlink == 0 {
				check(t, unix.Chmod(name, uint32(r.Intn(0o10000))))
			}
		case 4:
			check(t, os.Lchown(name, r.Intn(3), r.Intn(3)*70000))
		case 5:
			if st.Mode().IsRegular() || st.IsDir() {
				value := make([]byte, r.Intn(200))
				r.Read(value)
				check(t, unix.Lsetxattr(name, "user.test", value, 0))
			}
		case 6:
			check(t, unix.Lsetxattr(name, label, []byte("system_u:object_r:some_t:s0\x00"), 0))
		case 7:
			check(t, os.WriteFile(fresh(dir), []byte(strings.Repeat("x", r.Intn(9000))), 0o644))
		case 8:
			check(t, os.MkdirAll(fresh(dir)+"/a/b", 0o755))
		case 9:
			check(t, os.Symlink("target", fresh(dir)))
		case 10:
			check(t, unix.Mknod(fresh(dir), []uint32{unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK}[r.Intn(4)]|0o600, int(unix.Mkdev(uint32(r.Intn(3)), uint32(r.Intn(300))))))
		case 11:
			if !st.IsDir() {
				check(t, os.Remove(name))
			} else if r.Intn(6) == 0 && strings.Count(strings.TrimPrefix(name, root), "/") > 2 {
				check(t, os.RemoveAll(name))
			}
		case 12: // another type under the same name
			if !st.IsDir() {
				check(t, os.Remove(name))
				if r.Intn(2) == 0 {
					check(t, os.Mkdir(name, 0o755))
					check(t, os.WriteFile(name+"/in", nil, 0o644))
				} else {
					check(t, os.Symlink(fmt.Sprint(r.Intn(9)), name))
				}
			}
		case 13:
			switch {
			case st.Mode().IsRegular() && r.Intn(2) == 0:
				check(t, os.Link(name, fresh(filepath.Dir(name))))
			default:
				check(t, os.Rename(name, fresh(filepath.Dir(name))))
			}
		}
	}
}

// random is a source for a test, whose seed NODEBAKE_SEED sets.
func random(t testing.TB) *rand.Rand {
	seed := time.Now().UnixNano()
	if v := os.Getenv("NODEBAKE_SEED"); v != "" {
		var err error
		seed, err = strconv.ParseInt(v, 10, 64)
		check(t, err)
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	return rand.New(rand.NewSource(seed))
}

// TestDiffKernel has the kernel change a copy of a disk at random, and holds what diff names against coreutils.
func TestDiffKernel(t *testing.T) {
	requires(t, "root", "mke2fs", "mkfs.xfs", "getfattr", "sha256sum", "find", "xargs")
	r := random(t)
	more := map[string]string{"usr/lib/big": strings.Repeat("0123456789abcdef", 1<<16), "usr/lib/binary": "\x00\x01\x02", "srv/.keep": ""}
	for i := range 150 {
		more[fmt.Sprintf("usr/share/many/%d/file-%d", i%7, i)] = strings.Repeat(fmt.Sprint(i), i*i%5000)
	}
	for name, p := range map[string]part{"ext4": rootPart(t, more), "xfs": xfsPart(t, more)} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			base, other, qcow := dir+"/a.raw", dir+"/b.raw", dir+"/b.qcow2"
			makeDisk(t, base, "gpt", p)
			mnt := mount(t, base, 1, "rw")
			meddle(t, r, mnt+"/usr/share", 60)
			unmount(t, mnt)
			rounds := 2
			if os.Getenv("NODEBAKE_SOAK") != "" {
				rounds = 20
			}
			for range rounds {
				run(t, "cp", "--sparse=always", base, other)
				mnt := mount(t, other, 1, "rw")
				// What tells a root apart must stay.
				meddle(t, r, mnt, 5+r.Intn(60), "/etc", "/usr/lib", "/lost+found")
				meddle(t, r, mnt+"/usr/lib", 4, "/os-release", "/systemd")
				check(t, os.WriteFile(mnt+"/etc/hostname", []byte("nodf\n"), 0o755))
				unmount(t, mnt)
				run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", other, qcow)
				a, b := mount(t, base, 1, "ro"), mount(t, other, 1, "ro")
				for _, times := range []bool{false, true} {
					want := differing(seen(t, a, times), seen(t, b, times), "")
					args := []string{"--files"}
					if times {
						args = append(args, "--times")
					}
					rep := differences(t, base, qcow, args...)
					samePaths(t, rep.paths(), want)
					rep.onlyFiles(t)
					t.Logf("%d of %d names differ", len(want), rep.Totals.Compared)
					if n := rep.Totals.Added + rep.Totals.Removed + rep.Totals.Changed; n != int64(len(want)) || rep.Totals.Unreadable != 0 {
						t.Errorf("%+v, must be %d", rep.Totals, len(want))
					}
					// Without --files a folder stands for what is in it.
					if short := differences(t, base, qcow, args[1:]...); short.Totals != rep.Totals || len(short.Files) > len(rep.Files) {
						t.Errorf("without --files: %+v, with it %+v", short.Totals, rep.Totals)
					}
				}
				// A second opinion on contents.
				o := command(t, []string{"LC_ALL=C"}, "diff", "-r", "-q", "--no-dereference", a, b)
				lines := 0
				for _, line := range strings.Split(o.stdout, "\n") {
					// It takes any two sockets, devices and FIFOs for different.
					if strings.HasPrefix(line, "Only in ") || strings.HasPrefix(line, "Files ") || strings.HasPrefix(line, "Symbolic links ") {
						lines++
					}
				}
				if named := len(differences(t, base, other).Files); o.code == 1 && lines > named {
					t.Errorf("diff -r has %d lines, nodebake names %d files\n%s", lines, named, clip(o.stdout))
				}
				unmount(t, a)
				unmount(t, b)
				// It is the same whichever side is which, and nothing against itself in another format.
				if back := differences(t, qcow, base, "--files"); !slices.Equal(back.paths(), differences(t, base, qcow, "--files").paths()) {
					t.Error("the other way round, other files differ")
				}
				if same := differences(t, other, qcow, "--files", "--times", "--store-files"); same.Differ {
					t.Errorf("a disk differs from itself as qcow2: %+v", same)
				}
				if o := nodebake(t, "diff", base, qcow); strings.ContainsAny(o.stdout, "\x1b\x00") {
					t.Errorf("prints what steers a terminal: %q", o.stdout)
				}
			}
		})
	}
}

// TestDiffBake holds a bake's difference to its base against what its report says: that, and the store.
func TestDiffBake(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	for _, c := range []struct {
		name  string
		base  func() string
		karg  bool
		boots int
	}{
		{"plain", func() string { return smallBase(t) }, false, 0},
		{"ostree", func() string { return smallOCK(t) }, true, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, base := tempDir(t), c.base()
			check(t, os.MkdirAll(dir+"/files/deep", 0o755))
			check(t, os.WriteFile(dir+"/files/deep/config", []byte("x=1\n"), 0o640))
			for n, more := range [][]string{nil,
				{"--write", "/etc/motd=golden\n", "--copy", dir + "/files:/var/lib/app", "--hostname", "node-1", "--delete", "/var/log"},
				{"--karg-append", "quiet", "--karg-append", "nodebake.x=1"},
			} {
				if n == 2 && !c.karg {
					continue
				}
				out := fmt.Sprintf("%s/%d.qcow2", dir, n)
				args := append([]string{"--base", base, "--image", "oci-archive:" + images["hello"].ociArchive, "--image", "oci-archive:" + images["odd"].ociArchive,
					"--output", out, "--report", dir + "/report.json", "--quiet", "--size", "+0"}, more...)
				baked(t, args...)
				var report struct{ ChangedFiles []struct{ Path string } }
				readJSON(t, dir+"/report.json", &report)
				var said []string
				for _, f := range report.ChangedFiles {
					_, name, ok := strings.Cut(f.Path, ": ")
					if !ok {
						name = f.Path
					}
					// ostree's entries are behind a link.
					said = append(said, strings.Replace(name, "/boot/loader/", "/boot/loader.1/", 1))
				}
				d := differences(t, base, out)
				for _, f := range d.Files {
					// The report names what was asked for; diff the folders that had to be made for it too.
					if !slices.ContainsFunc(said, func(s string) bool {
						return s == string(f.Path) || strings.HasPrefix(s, string(f.Path)+"/") || strings.HasPrefix(string(f.Path), s+"/")
					}) {
						t.Errorf("diff names %s, the report only %q", f.Path, said)
					}
				}
				for _, s := range said {
					if !slices.ContainsFunc(d.paths(), func(p string) bool { return p == s || strings.HasPrefix(p, s+"/") || strings.HasPrefix(s, p+"/") }) {
						t.Errorf("the report names %s, diff only %q", s, d.paths())
					}
				}
				if n == 0 && !slices.Contains(d.paths(), storageConf) {
					t.Errorf("only %q", d.paths())
				}
				if len(d.Stores) != 1 || d.Stores[0].Path != defaultStore || d.Stores[0].Kind != "added" || d.Stores[0].Images != 2 || len(d.Images) != 2 {
					t.Errorf("stores %+v, images %+v", d.Stores, d.Images)
				}
				for _, i := range d.Images {
					if i.Kind != "added" || i.A != nil || !strings.HasPrefix(i.B.Names[0], "localhost/nodebake/") {
						t.Errorf("%+v", i)
					}
				}
				for _, f := range d.Files {
					if f.Path == storageConf && !strings.Contains(f.Lines, "\n+") {
						t.Errorf("no lines of %s: %q", f.Path, f.Lines)
					}
				}
				if want := map[bool]int{true: c.boots, false: 0}[n == 2]; len(d.Boot) != want {
					t.Errorf("boot entries: %+v", d.Boot)
				} else if want > 0 && (d.Boot[0].Entry != "ostree:0" || !slices.Equal(d.Boot[0].ArgsAdded, []string{"quiet", "nodebake.x=1"}) || len(d.Boot[0].ArgsRemoved) > 0) {
					t.Errorf("boot entries: %+v", d.Boot)
				}
				// The store's own files are there when they are asked for.
				if all := differences(t, base, out, "--store-files"); !slices.ContainsFunc(all.paths(), func(p string) bool { return strings.HasPrefix(p, defaultStore) }) {
					t.Errorf("--store-files names %q", all.paths())
				}
			}
			// Images that another bake adds, replaces and takes away.
			newer := someImage(t, "localhost/nodebake/hello:1", 77, 1000)
			baked(t, "--base", base, "--image", newer.oci(), "--image", "oci-archive:"+images["debian"].ociArchive, "--output", dir+"/n.qcow2", "--quiet")
			d := differences(t, dir+"/0.qcow2", dir+"/n.qcow2")
			kinds := map[string]string{}
			for _, i := range d.Images {
				one := i.B
				if one == nil {
					one = i.A
				}
				kinds[strings.TrimPrefix(one.Names[0], "localhost/nodebake/")] = i.Kind
			}
			if want := map[string]string{"hello:1": "changed", "odd:1": "removed", "debian:1": "added"}; !maps.Equal(kinds, want) || len(d.Stores) > 0 {
				t.Errorf("images %v, must be %v; stores %+v", kinds, want, d.Stores)
			}
			o := nodebake(t, "diff", dir+"/0.qcow2", dir+"/n.qcow2")
			if o.code != exitDone || strings.Count(o.stdout, newer.facts(t).manifest.String()) != 1 || strings.Count(o.stdout, "\n") > 30 {
				t.Errorf("%s", o)
			}
		})
	}
}

// TestDiffOstree compares disks of which one has another deployment: as the running systems see them.
func TestDiffOstree(t *testing.T) {
	requires(t, "getfattr", "sha256sum")
	r := random(t)
	dir := tempDir(t)
	base, other := dir+"/a.raw", dir+"/b.raw"
	run(t, "qemu-img", "convert", "-O", "raw", smallOCK(t), base)
	run(t, "cp", "--sparse=always", base, other)
	m := mountOCK(t, other, "rw")
	tree := tempDir(t) + "/tree"
	check(t, os.MkdirAll(tree+"/usr/share/new/deep", 0o755))
	check(t, os.WriteFile(tree+"/usr/share/new/deep/update", []byte("an update\n"), 0o644))
	check(t, os.MkdirAll(tree+"/usr/bin", 0o755))
	check(t, os.WriteFile(tree+"/usr/bin/sh", []byte(read(t, m.system, "usr/bin/sh")+"!"), 0o755))
	check(t, os.MkdirAll(tree+"/usr/lib/modules/6.13.0-ock", 0o755))
	check(t, os.WriteFile(tree+"/usr/lib/modules/6.13.0-ock/vmlinuz", []byte("kernel"), 0o644))
	run(t, "ostree", "--repo="+m.sysroot+"/ostree/repo", "commit", "-b", "ock/2", "--tree=ref=ock/1", "--tree=dir="+tree, "--timestamp=@1735689601")
	// One kernel at a time, as ostree wants it.
	run(t, "ostree", "--repo="+m.sysroot+"/ostree/repo", "checkout", "--force-copy", "ock/2", tree+".co")
	check(t, os.RemoveAll(tree+".co/usr/lib/modules/6.12.0-ock"))
	run(t, "ostree", "--repo="+m.sysroot+"/ostree/repo", "commit", "-b", "ock/2", "--tree=dir="+tree+".co", "--timestamp=@1735689602", "--consume")
	run(t, "ostree", "admin", "deploy", "--sysroot="+m.sysroot, "--os=ock", "--no-merge", "--retain", "--karg=root=LABEL=root", "--karg=rw", "--karg=debug", "ock/2")
	m.unmount(t)
	m = mountOCK(t, other, "rw")
	meddle(t, r, m.system+"/etc", 8, "/os-release", "/fstab", "/containers")
	meddle(t, r, m.sysroot+"/ostree/deploy/ock/var", 20, "/lib")
	check(t, os.WriteFile(m.sysroot+"/boot/note", []byte("x"), 0o600))
	m.unmount(t)

	a, b := mountOCK(t, base, "ro"), mountOCK(t, other, "ro")
	d := differences(t, base, other, "--files")
	// The running systems, with /var and /boot in their places.
	want := differing(seen(t, a.system, false), seen(t, b.system, false), "", "/sysroot")
	// And the rest, from which each has its own places taken out; the deployment that was the only one is still there.
	sysA, sysB := seen(t, a.sysroot, false), seen(t, b.sysroot, false)
	for _, mountPoint := range []string{"/boot", "/sysroot", "/var"} {
		name := "/" + b.deployment + mountPoint
		if sysA["/"+a.deployment+mountPoint] != sysB[name] {
			want = append(want, "/sysroot"+name)
		}
	}
	for _, own := range []struct {
		m    map[string]string
		dirs []string
	}{{sysA, []string{"/boot", "/ostree/deploy/ock/var"}}, {sysB, []string{"/boot", "/ostree/deploy/ock/var", "/" + b.deployment}}} {
		for name := range own.m {
			for _, dir := range own.dirs {
				if name == dir || strings.HasPrefix(name, dir+"/") {
					delete(own.m, name)
				}
			}
		}
	}
	want = append(want, differing(sysA, sysB, "/sysroot")...)
	slices.Sort(want)
	samePaths(t, d.paths(), want)
	t.Logf("%d of %d names differ", len(want), d.Totals.Compared)

	kernels := false
	for _, f := range d.System {
		kernels = kernels || f.What == "kernels" && f.A == "6.12.0-ock" && f.B == "6.13.0-ock"
	}
	if !kernels || len(d.Boot) != 2 || d.Boot[0].Kind != "changed" || d.Boot[1].Kind != "added" || !slices.Contains(d.Boot[0].ArgsAdded, "debug") {
		t.Errorf("system %+v, boot %+v", d.System, d.Boot)
	}
	if len(d.Images)+len(d.Stores)+len(d.Partitions)+len(d.Disk) > 0 {
		t.Errorf("%+v", d)
	}
	o := nodebake(t, "diff", base, other)
	for _, line := range []string{"  + /usr/share/new/ (2 names, 10 B)", "  M /usr/bin/sh: size", "kernels: 6.12.0-ock -> 6.13.0-ock"} {
		if !strings.Contains(o.stdout, line) {
			t.Errorf("no %q\n%s", line, o)
		}
	}
}

// TestDiffDisk compares what is not in files.
func TestDiffDisk(t *testing.T) {
	requires(t, "root", "sfdisk", "tune2fs", "e2label")
	base := smallBase(t)
	poke := func(at int64, text string) func(*testing.T, string) {
		return func(t *testing.T, raw string) {
			f, err := os.OpenFile(raw, os.O_RDWR, 0)
			check(t, err)
			_, err = f.WriteAt([]byte(text), at)
			check(t, err)
			check(t, f.Close())
		}
	}
	onRoot := func(tool string, args ...string) func(*testing.T, string) {
		return func(t *testing.T, raw string) {
			dev := attach(t, raw, smallRoot)
			run(t, tool, append(args, dev)...)
			detach(t, dev)
		}
	}
	esp := area(t, base, 1)
	for _, c := range []struct {
		name   string
		change func(t *testing.T, raw string)
		want   string
	}{
		{"nothing", func(*testing.T, string) {}, ""},
		{"the EFI partition's content", poke(esp.start+12345, "\x01\x02\x03\x04"), "partition 1 content 12345"},
		{"the boot sector", poke(100, "boot"), "partition boot code content 100"},
		{"a partition's name", func(t *testing.T, raw string) { run(t, "sfdisk", "--part-label", raw, "2", "other") }, "partition 2 name"},
		{"a partition's type", func(t *testing.T, raw string) { run(t, "sfdisk", "--part-type", raw, "2", typeLinux) }, "partition 2 type"},
		{"a partition's GUID", func(t *testing.T, raw string) {
			run(t, "sfdisk", "--part-uuid", raw, "2", "6E6F6465-6261-6B65-0000-0000000000FF")
		}, "partition 2 GUID"},
		{"the disk's ID", func(t *testing.T, raw string) {
			run(t, "sfdisk", "--disk-id", raw, "6E6F6465-6261-6B65-0000-0000000000FE")
		}, "disk ID"},
		{"a filesystem's UUID", onRoot("tune2fs", "-f", "-U", "6e6f6465-6261-6b65-0000-0000000000fd"), "partition 3 UUID"},
		{"the disk's size", func(t *testing.T, raw string) { run(t, "qemu-img", "resize", "-q", "-f", "raw", raw, "+64M") }, "size"},
		{"a partition less", func(t *testing.T, raw string) { run(t, "sfdisk", "--quiet", "--delete", raw, "1") }, "partition 1 removed; partition boot code content ?"},
		{"a partition more", func(t *testing.T, raw string) {
			run(t, "qemu-img", "resize", "-q", "-f", "raw", raw, "+64M")
			run(t, "sh", "-c", `echo ", 8M" | sfdisk --quiet --append "$0"`, raw)
		}, "size; partition 4 added"},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw := tempDir(t) + "/b.raw"
			check(t, copyFile(base, raw, 0o644))
			c.change(t, raw)
			d := differences(t, base, raw)
			var got []string
			for _, f := range d.Disk {
				got = append(got, f.What)
			}
			for _, p := range d.Partitions {
				for _, f := range p.Differs {
					got = append(got, "partition "+p.Partition+" "+f.What)
				}
				if p.ContentFrom != nil {
					got = append(got, fmt.Sprintf("partition %s content %d", p.Partition, *p.ContentFrom))
				}
				if p.Kind != "changed" {
					got = append(got, "partition "+p.Partition+" "+p.Kind)
				}
			}
			said := strings.Join(got, "; ")
			if want, _, open := strings.Cut(c.want, "; partition boot code content ?"); said != want && !(open && strings.Contains(said, want)) {
				t.Errorf("differs in %q, must in %q", said, c.want)
			}
			if len(d.Files) > 0 {
				t.Errorf("%+v", d.Files)
			}
		})
	}
}

// TestDiffLayouts bakes into disks of several kinds: the difference to the base is the bake, as in all others.
func TestDiffLayouts(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	esp := part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise}
	bls := map[string]string{"boot/loader/entries/b-1.conf": "title B\nversion 1\nlinux /boot/vmlinuz\noptions root=LABEL=root ro console=tty0\n",
		"boot/loader/entries/b-0.conf": "title A\nversion 0\nlinux /boot/vmlinuz\noptions root=LABEL=root ro console=tty0\n"}
	onLVM := rootPart(t, map[string]string{"etc/fstab": "/dev/mapper/rl-root / auto defaults 0 0\n/dev/rl/swap none swap sw 0 0\n"})
	onLVM.kind, onLVM.size, onLVM.make = typeLVM, 200*mib, lvm(ext4("-L", "root"), 0)
	for _, c := range []struct {
		name  string
		base  func(dir string)
		args  []string
		parts []string // "KIND PARTITION", in order
		size  bool     // whether the disk becomes larger
		files []string // beside storage.conf
		boot  int
	}{
		{"bare", func(dir string) { makeDisk(t, dir+"/base", "bare", rootPart(t, nil)) }, nil, nil, false, nil, 0},
		{"mbr", func(dir string) {
			p := rootPart(t, nil)
			p.kind, p.name = "83", ""
			makeDisk(t, dir+"/base", "mbr", part{size: 4 * mib, kind: "c", make: noise}, p)
		}, []string{"--size", "+100M"}, []string{"changed 2"}, true, nil, 0},
		{"lvm", func(dir string) { makeDisk(t, dir+"/base", "gpt", esp, onLVM) }, []string{"--size", "+100M"}, []string{"changed 2", "changed rl/root"}, true, nil, 0},
		{"store partition", func(dir string) { makeDisk(t, dir+"/base", "gpt", rootPart(t, nil)) }, []string{"--store-partition=xfs"}, []string{"added 2"}, true,
			[]string{"/etc/systemd/system/var-images.mount"}, 0},
		{"boot entries", func(dir string) { makeDisk(t, dir+"/base", "gpt", esp, rootPart(t, bls)) }, []string{"--karg-append", "quiet"}, nil, false,
			[]string{"/boot/loader/entries/b-0.conf", "/boot/loader/entries/b-1.conf"}, 2},
		{"var of its own", func(dir string) {
			check(t, os.Rename(smallOCK(t, "VAR=320M", "SIZE=1020M"), dir+"/base"))
		}, nil, nil, false, []string{"/" + subsPath}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			c.base(dir)
			baked(t, append([]string{"--base", dir + "/base", "--image", "oci-archive:" + images["hello"].ociArchive, "--output", dir + "/out.qcow2", "--quiet"}, c.args...)...)
			d := differences(t, dir+"/base", dir+"/out.qcow2")
			var parts []string
			for _, p := range d.Partitions {
				parts = append(parts, p.Kind+" "+p.Partition)
				for _, f := range p.Differs {
					if f.What != "size" {
						t.Errorf("partition %s: %+v", p.Partition, f)
					}
				}
				if p.ContentFrom != nil {
					t.Errorf("partition %s: content from byte %d on", p.Partition, *p.ContentFrom)
				}
			}
			if !slices.Equal(parts, c.parts) {
				t.Errorf("partitions %q, must be %q", parts, c.parts)
			}
			if larger := len(d.Disk) == 1 && d.Disk[0].What == "size"; larger != c.size || len(d.Disk) > 1 {
				t.Errorf("disk %+v", d.Disk)
			}
			files := append([]string{storageConf}, c.files...)
			for _, p := range d.paths() {
				// What wants the mount, and the folders for that.
				if !slices.Contains(files, p) && !(c.name == "store partition" && strings.HasPrefix(p, "/etc/systemd")) {
					t.Errorf("names %s", p)
				}
			}
			for _, f := range files {
				if !slices.Contains(d.paths(), f) {
					t.Errorf("does not name %s", f)
				}
			}
			if len(d.Boot) != c.boot || c.boot > 0 && (d.Boot[0].Entry != "b-1.conf" || !slices.Equal(d.Boot[0].ArgsAdded, []string{"quiet"})) {
				t.Errorf("boot %+v", d.Boot)
			}
			if len(d.Stores) != 1 || len(d.Images) != 1 {
				t.Errorf("stores %+v, images %+v", d.Stores, d.Images)
			}
		})
	}
}

// TestDiffLines holds which files' lines are shown.
func TestDiffLines(t *testing.T) {
	requires(t, "root")
	dir := tempDir(t)
	a, b := dir+"/a.raw", dir+"/b.raw"
	check(t, copyFile(smallBase(t), a, 0o644))
	mnt := mount(t, a, smallRoot, "rw")
	check(t, os.WriteFile(mnt+"/etc/shadow", []byte("root:hash:1\n"), 0o600))
	check(t, os.Chmod(mnt+"/etc/hostname", 0o644))
	check(t, os.Chmod(mnt+"/"+confPath, 0o644))
	unmount(t, mnt)
	check(t, copyFile(a, b, 0o644))
	mnt = mount(t, b, smallRoot, "rw")
	check(t, os.WriteFile(mnt+"/etc/shadow", []byte("root:other:1\n"), 0o600))
	check(t, os.WriteFile(mnt+"/etc/hostname", []byte("other\n"), 0o644))
	check(t, os.MkdirAll(mnt+"/etc/crio/crio.conf.d", 0o755))
	check(t, os.WriteFile(mnt+"/etc/crio/crio.conf.d/10-pin.conf", []byte("[crio.image]\npinned_images = [ \"a\" ]\n"), 0o644))
	check(t, os.WriteFile(mnt+"/usr/share/doc/text", []byte("nobody asks\n"), 0o644))
	check(t, os.WriteFile(mnt+"/"+confPath, []byte(strings.Replace(plainConf, "stores = [\n", "stores = [\n  \"/var/images\",\n", 1)), 0o644))
	unmount(t, mnt)
	o := nodebake(t, "diff", a, b)
	for _, want := range []string{"-node\n", "+other\n", "+pinned_images", "+  \"/var/images\",", "/etc/shadow", "/usr/share/doc/text", "  + /etc/crio/\n"} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("no %q\n%s", want, o)
		}
	}
	for _, secret := range []string{"hash", "nobody asks"} {
		if strings.Contains(o.stdout, secret) {
			t.Errorf("prints %q\n%s", secret, o)
		}
	}
	if o.code != exitDone {
		t.Errorf("%s", o)
	}
	if o := nodebake(t, "diff", a, b, "--exit-code"); o.code != exitLie || !strings.Contains(o.stderr, "differ") {
		t.Errorf("%s", o)
	}
	if o := nodebake(t, "diff", a, a, "--exit-code"); o.code != exitDone || !strings.Contains(o.stdout, "No differences") {
		t.Errorf("%s", o)
	}
	for _, args := range [][]string{{a}, {a, b, a}, {a, b, "--nosuch"}} {
		if o := nodebake(t, append([]string{"diff"}, args...)...); o.code != exitUsage {
			t.Errorf("%s", o)
		}
	}
}

// TestDiffUnclean has a filesystem that was not unmounted: what its journal holds is not seen, and that is said.
func TestDiffUnclean(t *testing.T) {
	requires(t, "root", "xfs_io", "debugfs")
	for name, p := range map[string]part{"ext4": rootPart(t, nil), "xfs": xfsPart(t, nil)} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			base, bad := dir+"/a.raw", dir+"/b.raw"
			makeDisk(t, base, "gpt", p)
			run(t, "cp", "--sparse=always", base, bad)
			if name == "ext4" {
				dev := attach(t, bad, 1)
				run(t, "debugfs", "-w", "-R", "feature needs_recovery", dev)
				detach(t, dev)
				if o := nodebake(t, "diff", base, bad); o.code != exitUnsupported || !strings.Contains(o.stderr, "journal") {
					t.Errorf("%s", o)
				}
				return
			}
			mnt := mount(t, bad, 1, "rw")
			check(t, os.WriteFile(mnt+"/lost", []byte("x"), 0o644))
			run(t, "xfs_io", "-x", "-c", "shutdown -f", mnt)
			unmount(t, mnt)
			d := differences(t, base, bad)
			if len(d.Warnings) != 1 || !strings.HasPrefix(d.Warnings[0], "B: ") || !strings.Contains(d.Warnings[0], "was not unmounted") {
				t.Errorf("warnings: %q", d.Warnings)
			}
		})
	}
}

// TestDiffHostile compares a disk with damaged copies of itself: it ends, and says so or finds something.
func TestDiffHostile(t *testing.T) {
	requires(t, "root", "mkfs.xfs")
	r := random(t)
	for name, p := range map[string]part{"ext4": rootPart(t, nil), "ext4 without checksums": rootPart(t, nil, "-O", "^metadata_csum"), "xfs": xfsPart(t, nil)} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			base, bad := dir+"/a.raw", dir+"/b.raw"
			makeDisk(t, base, "gpt", p)
			raw, err := os.ReadFile(base)
			check(t, err)
			// Where the filesystem has something of its own: neither nothing nor a piece of the one large file.
			program, err := os.ReadFile(programFile(t))
			check(t, err)
			content := map[string]bool{string(make([]byte, 512)): true}
			for at := 0; at+512 <= len(program); at += 512 {
				content[string(program[at:at+512])] = true
			}
			var used []int
			for at := 1 << 20; at+512 <= len(raw); at += 512 {
				if !content[string(raw[at:at+512])] {
					used = append(used, at)
				}
			}
			run(t, "cp", "--sparse=always", base, bad)
			f, err := os.OpenFile(bad, os.O_RDWR, 0)
			check(t, err)
			defer f.Close()
			found := 0
			for range 40 {
				at := used[r.Intn(len(used))]
				patch := slices.Clone(raw[at : at+512])
				for range 1 + r.Intn(20) {
					patch[r.Intn(512)] = byte(r.Intn(256))
				}
				_, err := f.WriteAt(patch, int64(at))
				check(t, err)
				o := nodebake(t, "diff", base, bad, "--files", "--exit-code")
				if o.code != exitDone && o.code != exitFailed && o.code != exitLie && o.code != exitUnsupported {
					t.Fatalf("%s", o)
				}
				if o.took > 30*time.Second {
					t.Errorf("%s", o)
				}
				if o.code != exitDone {
					found++
				}
				_, err = f.WriteAt(raw[at:at+512], int64(at))
				check(t, err)
			}
			t.Logf("%d of 40 damages in %d sectors were seen", found, len(used))
		})
	}
}
