package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// crumbs makes a filesystem whose free space is only runs of unit blocks, each between blocks in use.
func crumbs(t *testing.T, unit, count int, args ...string) (img string, blockSize int) {
	t.Helper()
	img = mkfs(t, 320<<20, args...)
	w := openWriter(t, img)
	bs := w.Info().BlockSize
	mustAdd(t, w, &tar.Header{Name: "c", Typeflag: tar.TypeDir, Mode: 0755}, nil)
	for i := 0; i < count; i++ {
		mustAdd(t, w, file(fmt.Sprintf("c/%d", i), 0), noise(int64(i), unit*bs))
	}
	s := w.Space()
	ballast := (s.FreeBlocks - s.NeedBlocks - 40) * int64(bs)
	if err := w.Add(file("ballast", ballast), &pattern{ballast}); err != nil {
		t.Fatal(err)
	}
	commit(t, w)
	w = openWriter(t, img)
	for i := 0; i < count; i += 2 {
		if err := w.Remove(fmt.Sprintf("c/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, w)
	repairClean(t, img)
	return img, bs
}

// TestFragmentedFile writes a file where free space is single blocks: its extents need a tree of several levels.
func TestFragmentedFile(t *testing.T) {
	needKernel(t)
	for args, files := range map[string]int{"-b size=1024 -m rmapbt=1": 70000, "-m reflink=0 -i nrext64=1": 24000} {
		img, bs := crumbs(t, 1, files, strings.Fields("--unsupported -d agcount=1 "+args)...)
		w := openWriter(t, img)
		// The longest runs go first; what is left after this is single blocks.
		s := w.Space()
		content := noise(1, int(s.FreeBlocks-s.NeedBlocks-2500)*bs)
		mustAdd(t, w, file("fragmented", 0), content)
		for i := 0; i < 60; i++ { // a folder whose blocks lie apart, and its extents too many for the inode
			mustAdd(t, w, &tar.Header{Name: fmt.Sprintf("c/%d-%s", i, strings.Repeat("n", 240)), Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("l", 1000)}, nil)
		}
		attrs := &tar.Header{Name: "attrs", Typeflag: tar.TypeReg, PAXRecords: map[string]string{}}
		for i := 0; i < 30; i++ {
			attrs.PAXRecords[fmt.Sprintf("%suser.%d", xattrPrefix, i)] = string(noise(int64(i), 10000))
		}
		mustAdd(t, w, attrs, nil)
		commit(t, w)
		repairClean(t, img)
		f := openReader(t, img)
		in, err := f.resolve("fragmented")
		if err != nil {
			t.Fatal(err)
		}
		if level, _, _ := bmdrShape(in.dataFork()); in.format != fmtBtree || level < 1 || in.nextents < 1000 {
			t.Errorf("format %d, level %d, %d extents: the test does not test what it should", in.format, level, in.nextents)
		} else {
			t.Logf("%d extents in a tree of %d levels under the root", in.nextents, level)
		}
		if in, err := f.resolve("c"); err != nil || in.format != fmtBtree {
			t.Errorf("the large folder's extents are not in a tree: %v", err)
		}
		if in, err := f.resolve("attrs"); err != nil || in.aformat != fmtBtree {
			t.Errorf("the attributes' extents are not in a tree: %v", err)
		}
		var want tree
		mounted(t, img, "rw", func(dir string) {
			want = kernelTree(t, dir)
			if want["fragmented"].Content != hash(bytes.NewReader(content)) {
				t.Error("the kernel reads another content")
			}
			if got := want["attrs"]; fullString(got) != fullString(withContent(headerRecord(attrs), got)) {
				t.Error("the kernel reads other attributes")
			}
			// The kernel must be able to go on with the tree.
			p := filepath.Join(dir, "fragmented")
			run(t, "xfs_io", "-c", "fpunch 100k 3m", "-c", "pwrite -q 200k 300k", p)
			want["fragmented"] = kernelRecord(t, p)
		})
		sameTree(t, "reading", ourTree(t, openReader(t, img)), want)
		w = openWriter(t, img)
		if err := w.Remove("fragmented"); err != nil {
			t.Fatal(err)
		}
		if err := w.Remove("attrs"); err != nil {
			t.Fatal(err)
		}
		commit(t, w)
		repairClean(t, img)
	}
}

func withContent(r, from record) record {
	r.Content, r.Mtime = from.Content, from.Mtime
	return r
}

// TestSparseChunks makes inodes where no run of free blocks holds a whole chunk.
func TestSparseChunks(t *testing.T) {
	needKernel(t)
	for _, args := range []string{"-m rmapbt=1", "-b size=1024 -m rmapbt=1 -i nrext64=1"} {
		unit := 7
		if strings.Contains(args, "1024") {
			unit = 28
		}
		img, _ := crumbs(t, unit, 2200, strings.Fields(args)...)
		w := openWriter(t, img)
		// The longest runs go first, so this leaves the crumbs.
		s := w.Space()
		more := (s.FreeBlocks - s.NeedBlocks - 3500) * s.BlockSize
		if err := w.Add(file("more ballast", more), &pattern{more}); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 3000; i++ {
			mustAdd(t, w, file(fmt.Sprintf("empty-%d", i), 0), nil)
		}
		sparse := 0
		for _, g := range w.groups {
			for _, c := range g.chunks {
				sparse += btoi(c.holes != 0)
			}
		}
		if sparse == 0 {
			t.Error("no sparse chunk was made: the test does not test what it should")
		}
		t.Logf("%d sparse chunks", sparse)
		commit(t, w)
		repairClean(t, img)
		mounted(t, img, "rw", func(dir string) {
			for i := 0; i < 3000; i++ {
				p := filepath.Join(dir, fmt.Sprintf("empty-%d", i))
				if _, err := os.Stat(p); err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					os.Remove(p)
				}
			}
			for i := 0; i < 500; i++ {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("kernel-%d", i)), nil, 0644); err != nil {
					t.Fatal(err)
				}
			}
		})
		repairClean(t, img)
		w = openWriter(t, img) // reads what the kernel made of them
		for i := 1; i < 3000; i += 2 {
			if err := w.Remove(fmt.Sprintf("empty-%d", i)); err != nil {
				t.Fatal(err)
			}
		}
		for i := 0; i < 1000; i++ {
			mustAdd(t, w, file(fmt.Sprintf("again-%d", i), 0), nil)
		}
		commit(t, w)
		repairClean(t, img)
	}
}

// TestUnwritten has a reverse map of many unwritten extents, whose flag belongs into records but not into keys.
func TestUnwritten(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20, "-m", "rmapbt=1")
	mounted(t, img, "rw", func(dir string) {
		var cmds []string
		for i := 0; i < 3000; i++ {
			cmds = append(cmds, "-c", fmt.Sprintf("falloc %dk 4k", i*8))
		}
		run(t, "xfs_io", append(append([]string{"-f"}, cmds...), filepath.Join(dir, "f"))...)
		run(t, "xfs_io", "-f", "-c", "falloc 0 20m", filepath.Join(dir, "g"))
		for i := 0; i < 2000; i += 2 {
			f, err := os.OpenFile(filepath.Join(dir, "g"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt(noise(int64(i), 4096), int64(i)*4096)
			f.Close()
		}
	})
	w := openWriter(t, img)
	for _, g := range w.groups {
		g.touched = true
	}
	mustAdd(t, w, file("new", 0), noise(1, 100000))
	commit(t, w)
	repairClean(t, img)
	w = openWriter(t, img)
	for _, n := range []string{"f", "g"} {
		if err := w.Remove(n); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, w)
	repairClean(t, img)
}

// TestShared removes and replaces files that share blocks in every way.
func TestShared(t *testing.T) {
	needKernel(t)
	s := seed(t, "shared")
	for i, args := range []string{"-m rmapbt=1", "-m rmapbt=0", "-b size=1024 -m rmapbt=1"} {
		rng := rand.New(rand.NewSource(s + int64(i)))
		img := mkfs(t, 320<<20, strings.Fields(args)...)
		want := tree{}
		mounted(t, img, "rw", func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, "0"), noise(1, 4<<20), 0644); err != nil {
				t.Fatal(err)
			}
			for i := 1; i < 12; i++ {
				p := filepath.Join(dir, fmt.Sprint(i))
				run(t, "cp", "--reflink=always", filepath.Join(dir, fmt.Sprint(rng.Intn(i))), p)
				for j := 0; j < 12; j++ {
					from, to, n := rng.Intn(800)*4, rng.Intn(800)*4, 4*(1+rng.Intn(100))
					src := filepath.Join(dir, fmt.Sprint(rng.Intn(i+1)))
					if src != p || to >= from+n || from >= to+n {
						run(t, "xfs_io", "-c", fmt.Sprintf("reflink %s %dk %dk %dk", src, from, to, n), "-c", fmt.Sprintf("pwrite -q %dk 8k", rng.Intn(4000)), p)
					}
				}
			}
			want = kernelTree(t, dir)
		})
		repairClean(t, img)
		for _, i := range rng.Perm(12)[:9] {
			w := openWriter(t, img)
			n := fmt.Sprint(i)
			if i%3 == 0 {
				h := file(n, 3000)
				if err := w.Replace(h, bytes.NewReader(noise(9, 3000))); err != nil {
					t.Fatal(err)
				}
				h.ModTime = now
				r := headerRecord(h)
				r.Content = hash(bytes.NewReader(noise(9, 3000)))
				want[n] = r
			} else {
				if err := w.Remove(n); err != nil {
					t.Fatal(err)
				}
				delete(want, n)
			}
			commit(t, w)
			repairClean(t, img)
		}
		mounted(t, img, "rw", func(dir string) {
			got := kernelTree(t, dir)
			sameTree(t, "what stays", got, want0(want, got))
			os.WriteFile(filepath.Join(dir, "more"), noise(3, 1<<20), 0644)
			for i := 0; i < 12; i++ {
				os.Remove(filepath.Join(dir, fmt.Sprint(i)))
			}
		})
		repairClean(t, img)
	}
}

// TestInodesRunOut: imax_pct bounds inodes, for us as for the kernel.
func TestInodesRunOut(t *testing.T) {
	needRepair(t)
	img := mkfs(t, 320<<20, "-i", "maxpct=1")
	for _, count := range []bool{true, false} {
		f, size := openImage(t, img)
		w, err := OpenWriter(f, size, Options{Now: now, CountOnly: count})
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 7000; i++ {
			mustAdd(t, w, file(fmt.Sprint(i), 0), nil)
		}
		var full *NoSpaceError
		if err := w.Commit(context.Background()); !errors.As(err, &full) || full.NeedInodes != 7000 || full.FreeInodes >= 7000 || full.FreeInodes < 6000 {
			t.Errorf("%v", err)
		}
	}
	if f := openReader(t, img); f.Info().FreeInodes == 0 {
		t.Error("no inodes at all")
	}
}

// TestLargeFolder has 40,000 entries, one of them added to what is there already.
func TestLargeFolder(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20, "-m", "rmapbt=1")
	for pass := 0; pass < 2; pass++ {
		w := openWriter(t, img)
		if pass == 0 {
			mustAdd(t, w, &tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0755}, nil)
			mustAdd(t, w, file("first", 0), nil)
			for i := 0; i < 40000; i++ {
				mustAdd(t, w, &tar.Header{Name: fmt.Sprintf("d/the file called %d", i), Typeflag: tar.TypeLink, Linkname: "first"}, nil)
			}
		}
		mustAdd(t, w, file(fmt.Sprintf("d/one more %d", pass), 0), nil)
		commit(t, w)
		repairClean(t, img)
	}
	mounted(t, img, "rw", func(dir string) {
		for i := 0; i < 40000; i += 7 {
			p := filepath.Join(dir, "d", fmt.Sprintf("the file called %d", i))
			if _, err := os.Lstat(p); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(p, p+" again"); err != nil {
				t.Fatal(err)
			}
		}
	})
	repairClean(t, img)
	names, err := openReader(t, img).ReadDir("d")
	if err != nil || len(names) != 40002 {
		t.Errorf("%d names, %v", len(names), err)
	}
}

// TestUpgraded changes inodes from before features were added.
func TestUpgraded(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20, "-m", "bigtime=0,inobtcount=0")
	want := tree{}
	mounted(t, img, "rw", func(dir string) {
		age(t, dir, rand.New(rand.NewSource(4)), 300, true, false)
	})
	run(t, "xfs_admin", "-O", "bigtime=1,inobtcount=1,nrext64=1", img)
	mounted(t, img, "ro", func(dir string) { want = kernelTree(t, dir) })
	w := openWriter(t, img)
	bake(t, w, want, rand.New(rand.NewSource(5)), 300)
	commit(t, w)
	repairClean(t, img)
	mounted(t, img, "rw", func(dir string) { sameTree(t, "written", kernelTree(t, dir), want) })
	repairClean(t, img)
}

// TestLabelsStayInline: a security label is in the inode, at the place where the kernel puts it.
func TestLabelsStayInline(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20)
	label := "system_u:object_r:container_ro_file_t:s0\x00"
	mounted(t, img, "rw", func(dir string) {
		for _, n := range []string{"file", "dir", "link", "dev"} {
			p := filepath.Join(dir, "kernel-"+n)
			var err error
			switch n {
			case "file":
				err = os.WriteFile(p, noise(1, 100), 0644)
			case "dir":
				err = os.Mkdir(p, 0755)
			case "link":
				err = os.Symlink("target", p)
			default:
				err = syscall.Mknod(p, syscall.S_IFCHR, 0)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := lsetxattr(p, "security.selinux", []byte(label)); err != nil {
				t.Fatal(err)
			}
		}
	})
	w := openWriter(t, img)
	x := map[string]string{xattrPrefix + "security.selinux": label}
	mustAdd(t, w, &tar.Header{Name: "our-file", Typeflag: tar.TypeReg, PAXRecords: x}, noise(1, 100))
	mustAdd(t, w, &tar.Header{Name: "our-dir", Typeflag: tar.TypeDir, PAXRecords: x}, nil)
	mustAdd(t, w, &tar.Header{Name: "our-link", Typeflag: tar.TypeSymlink, Linkname: "target", PAXRecords: x}, nil)
	mustAdd(t, w, &tar.Header{Name: "our-dev", Typeflag: tar.TypeChar, PAXRecords: x}, nil)
	commit(t, w)
	repairClean(t, img)
	f := openReader(t, img)
	for _, n := range []string{"file", "dir", "link", "dev"} {
		a, err := f.resolve("our-" + n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := f.resolve("kernel-" + n)
		if err != nil {
			t.Fatal(err)
		}
		if a.format != b.format || a.aformat != fmtLocal || a.aformat != b.aformat || string(a.attrFork()[:4]) != string(b.attrFork()[:4]) {
			t.Errorf("%s: formats %d and %d, the kernel's %d and %d", n, a.format, a.aformat, b.format, b.aformat)
		}
		t.Logf("%s: fork offset %d, the kernel's %d", n, a.forkoff, b.forkoff)
	}
}
