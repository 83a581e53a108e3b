package customize

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
)

const demo = "../../examples/demo/"

var now = time.Unix(1_700_000_000, 0).UTC()

// lacking ends a test that lacks something: it fails on the build machine and is skipped elsewhere.
func lacking(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func need(t testing.TB, tools ...string) {
	t.Helper()
	for _, name := range tools {
		if _, err := exec.LookPath(name); err != nil {
			lacking(t, err.Error())
		}
	}
	if os.Getuid() != 0 {
		lacking(t, "needs root for loop devices, mounts and owners")
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// files are the content of a disk: "->" before a symbolic link's target, a slash after a folder's name.
type files map[string]string

func (f files) with(more files) files {
	all := files{}
	for _, m := range []files{f, more} {
		for k, v := range m {
			all[k] = v
		}
	}
	return all
}

func (f files) write(t testing.TB, dir string) {
	t.Helper()
	var names []string
	for n := range f {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		at, v := filepath.Join(dir, n), f[n]
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch target, isLink := strings.CutPrefix(v, "->"); {
		case err != nil:
		case strings.HasSuffix(n, "/"):
			err = os.MkdirAll(at, 0o755)
		case isLink:
			err = os.Symlink(target, at)
		default:
			err = os.WriteFile(at, []byte(v), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// ext4Disk makes a disk without a partition table that holds the files.
func ext4Disk(t testing.TB, f files) string {
	t.Helper()
	need(t, "mke2fs", "e2fsck")
	dir := t.TempDir()
	f.write(t, filepath.Join(dir, "root"))
	name := filepath.Join(dir, "disk.raw")
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", filepath.Join(dir, "root"), name, "24M")
	return name
}

// partitioned makes a disk of a boot partition (ext4, label boot) and a root partition of the kind.
func partitioned(t testing.TB, kind string, boot, root files) string {
	t.Helper()
	need(t, "sgdisk", "mke2fs", "mkfs.xfs", "losetup", "mount", "umount")
	dir := t.TempDir()
	name := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 400<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "sgdisk", "-n", "1:2048:+32M", "-c", "1:boot", "-n", "2:69632:+320M", "-t", "2:8304", "-c", "2:root", name)
	boot.write(t, filepath.Join(dir, "boot"))
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "boot", "-E", "offset=1048576", "-d", filepath.Join(dir, "boot"), name, "32M")
	withLoop(t, name, 69632*512, 320<<20, func(dev string) {
		if kind == "xfs" {
			run(t, "mkfs.xfs", "-q", "-L", "root", dev)
		} else {
			run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", dev)
		}
		mnt := mount(t, dev, "rw")
		root.with(files{"boot/": ""}).write(t, mnt)
		run(t, "umount", mnt)
	})
	return name
}

func withLoop(t testing.TB, name string, start, size int64, do func(dev string)) {
	t.Helper()
	dev := strings.TrimSpace(run(t, "losetup", "-f", "--show", "-o", fmt.Sprint(start), "--sizelimit", fmt.Sprint(size), name))
	defer exec.Command("losetup", "-d", dev).Run()
	do(dev)
}

func mount(t testing.TB, dev, opts string) string {
	t.Helper()
	dir := t.TempDir()
	run(t, "mount", "-o", opts, dev, dir)
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

func open(t testing.TB, name string) *osroot.Root {
	t.Helper()
	d, err := disk.Open(name, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r, err := osroot.Find(d, "")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// part is a partition of a raw disk as a writer's device.
type part struct {
	f     *os.File
	start int64
}

func (p part) ReadAt(b []byte, off int64) (int, error)  { return p.f.ReadAt(b, p.start+off) }
func (p part) WriteAt(b []byte, off int64) (int, error) { return p.f.WriteAt(b, p.start+off) }

// labels is a writer that gives every new file a label of its own, as imagebuild's does from the policy.
type labels struct {
	*filesystem.Tree
	system *osroot.System
}

func (l labels) label(h *tar.Header) *tar.Header {
	const key = "SCHILY.xattr.security.selinux"
	if h.PAXRecords[key] != "" {
		return h
	}
	with := *h
	with.PAXRecords = map[string]string{key: "new:" + l.system.Running(h.Name) + "\x00"}
	return &with
}
func (l labels) Add(h *tar.Header, r io.Reader) error     { return l.Tree.Add(l.label(h), r) }
func (l labels) Replace(h *tar.Header, r io.Reader) error { return l.Tree.Replace(l.label(h), r) }

// apply makes the changes on a raw disk, and has the filesystems' own tools check them.
func apply(t testing.TB, name string, root *osroot.Root, p *Plan) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tree := root.Writer(func(v osroot.Volume) (filesystem.Writer, error) {
		return filesystem.OpenWriter(part{f, v.Partition.Start}, v.Partition.Size, v.Partition.Kind, filesystem.Options{Now: now})
	})
	if err := p.Apply(context.Background(), func(s *osroot.System) Writer { return labels{tree, s} }); err != nil {
		t.Fatal(err)
	}
	if err := tree.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, v := range root.Volumes {
		withLoop(t, name, v.Partition.Start, v.Partition.Size, func(dev string) {
			if v.Partition.Kind == filesystem.XFS {
				run(t, "xfs_repair", "-n", dev)
			} else {
				run(t, "e2fsck", "-fn", dev)
			}
		})
	}
}

// read gives a file of the running system, as the first system has it, of the disk as it is now.
func read(t testing.TB, name, file string) string {
	t.Helper()
	b, err := open(t, name).Systems[0].ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func changes(p *Plan) string {
	var b strings.Builder
	for _, c := range p.Changes() {
		fmt.Fprintf(&b, "%s: %s\n", c.Path, c.Why)
	}
	return b.String()
}
