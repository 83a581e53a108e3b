package xfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"
)

func TestReadAgainstKernel(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20)
	mounted(t, img, "rw", func(dir string) { age(t, dir, rand.New(rand.NewSource(1)), 3000, true, false) })
	var want tree
	mounted(t, img, "ro", func(dir string) { want = kernelTree(t, dir) })
	sameTree(t, "reading", ourTree(t, openReader(t, img)), want)

	w := openWriter(t, img)
	for _, g := range w.groups {
		g.touched = true
	}
	commit(t, w)
	repairClean(t, img)
	mounted(t, img, "ro", func(dir string) { sameTree(t, "after a commit without changes", kernelTree(t, dir), want) })
}

// bake adds one of everything, in new folders and in those that the kernel made, and returns what the tree should be.
func bake(t testing.TB, w *Writer, want tree, rng *rand.Rand, many int) {
	t.Helper()
	info := w.Info()
	bigtime := strings.Contains(strings.Join(info.Features, " "), "bigtime")
	serial := 0
	label := xattrPrefix + "security.selinux"
	stamp := func() time.Time {
		serial++
		if bigtime && serial%7 == 0 {
			return time.Unix(6_000_000_000+int64(serial), int64(serial)*1001)
		}
		return time.Unix(1_500_000_000-int64(serial%3)*1_600_000_000, int64(serial)*1001)
	}
	put := func(h *tar.Header, b []byte) {
		t.Helper()
		h.ModTime = stamp()
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		mustAdd(t, w, h, b)
		r := headerRecord(h)
		if h.Typeflag == tar.TypeReg {
			r.Content = hash(bytes.NewReader(b))
		}
		want[h.Name] = r
	}
	dirs := []string{"."}
	for _, d := range []string{"short", "block", "leaf", "node", "empty", "deep/er/est", "crumbs"} {
		if _, ok := want[d]; ok {
			dirs = append(dirs, d)
		}
	}
	pre := func(d, n string) string {
		if d == "." {
			return n
		}
		return d + "/" + n
	}
	for i, d := range []string{"", "new", "new/one", "new/fifty", "new/many", "new/names"} {
		if d != "" {
			put(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0755 + int64(i%2)*02000, Uid: i, Gid: 70000 + i, PAXRecords: map[string]string{label: fmt.Sprintf("system_u:object_r:type_%d_t:s0\x00", i)}}, nil)
			dirs = append(dirs, d)
		}
	}
	for _, d := range dirs {
		put(&tar.Header{Name: pre(d, "added file"), Mode: 04755, Uid: 1 << 31, Gid: 5}, noise(rng.Int63(), rng.Intn(70000)))
		put(&tar.Header{Name: pre(d, "added empty"), Mode: 0600}, nil)
		put(&tar.Header{Name: pre(d, "added folder"), Typeflag: tar.TypeDir, Mode: 01777}, nil)
		put(&tar.Header{Name: pre(d, "added link"), Typeflag: tar.TypeSymlink, Mode: 0777, Linkname: strings.Repeat("l", 1+rng.Intn(300))}, nil)
		put(&tar.Header{Name: pre(d, "added whiteout"), Typeflag: tar.TypeChar, PAXRecords: map[string]string{label: "system_u:object_r:container_ro_file_t:s0\x00"}}, nil)
	}
	put(&tar.Header{Name: "new/block", Typeflag: tar.TypeBlock, Mode: 0660, Devmajor: 511, Devminor: 200000}, nil)
	put(&tar.Header{Name: "new/fifo", Typeflag: tar.TypeFifo, Mode: 0644}, nil)
	put(&tar.Header{Name: "new/sock", Typeflag: 's', Mode: 0644}, nil)
	for i := 0; i < 50; i++ {
		put(&tar.Header{Name: fmt.Sprintf("new/fifty/%d", i), Mode: 0444, PAXRecords: map[string]string{label: "system_u:object_r:container_ro_file_t:s0\x00"}}, noise(int64(i), i*100))
	}
	for i := 0; i < many; i++ {
		put(&tar.Header{Name: fmt.Sprintf("new/many/entry-%d", i), Mode: 0444}, noise(int64(i), i%9))
	}
	for i := 0; i < 300; i++ {
		name := fmt.Sprintf("%03d", i) + strings.Repeat("\xff", rng.Intn(253))
		put(&tar.Header{Name: "new/names/" + name, Typeflag: tar.TypeSymlink, Mode: 0777, Linkname: strings.Repeat("x/", 1+rng.Intn(510))}, nil)
	}
	put(&tar.Header{Name: "new/links", Typeflag: tar.TypeSymlink, Mode: 0777, Linkname: strings.Repeat("y", 1023), PAXRecords: map[string]string{label: "l\x00"}}, nil)
	// Attributes: from none to more than a leaf holds, of every size, on every kind of file.
	for i, size := range []int{0, 1, 100, 140, 200, 255, 256, 300, 700, 1000, 3000, 5000, 65535, 65536} {
		h := &tar.Header{Name: fmt.Sprintf("new/xattr-%d", size), Mode: 0644, PAXRecords: map[string]string{label: "u:r:t:s0\x00", xattrPrefix + "user.v": string(noise(int64(size), size))}}
		if i%3 == 1 {
			h.Typeflag = tar.TypeDir
		} else if i%3 == 2 {
			h.Typeflag, h.Linkname = tar.TypeSymlink, strings.Repeat("z", size%400+1)
			h.Mode = 0777
			h.PAXRecords[xattrPrefix+"trusted.v"] = h.PAXRecords[xattrPrefix+"user.v"]
			delete(h.PAXRecords, xattrPrefix+"user.v")
		}
		put(h, noise(int64(i), 10))
	}
	for _, n := range []int{10, 100, 1500} {
		h := &tar.Header{Name: fmt.Sprintf("new/xattrs-%d", n), Mode: 0644, PAXRecords: map[string]string{}}
		for i := 0; i < n; i++ {
			h.PAXRecords[fmt.Sprintf("%s%s.%d.%s", xattrPrefix, []string{"user", "trusted", "security"}[i%3], i, strings.Repeat("q", i%40))] = string(noise(int64(i), i%400))
		}
		put(h, noise(5, 500))
	}
	put(&tar.Header{Name: "new/acl", Mode: 0640, PAXRecords: map[string]string{xattrPrefix + "system.posix_acl_access": testACL}}, nil)
	// A file with holes, and one that must go where the free space is in crumbs.
	sparse := make([]byte, 3<<20)
	for i := 0; i < len(sparse); i += 200_000 {
		copy(sparse[i:], noise(int64(i), 9))
	}
	put(&tar.Header{Name: "new/sparse", Mode: 0644}, sparse)
	put(&tar.Header{Name: "new/zeros", Mode: 0644}, make([]byte, 1<<20+5))
	put(&tar.Header{Name: "new/big", Mode: 0644}, noise(7, 5<<20+3))
	// Hard links: to new files, to old ones, from old folders.
	hard := func(name, to string) {
		t.Helper()
		mustAdd(t, w, &tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, nil)
		want[name] = want[to]
	}
	hard("new/hard", "new/big")
	hard("new/hard2", "new/hard")
	hard("new/fifo2", "new/fifo")
	hard("new/symlink2", "new/links")
	if _, ok := want["sparse"]; ok {
		hard("short/old sparse", "sparse")
		hard("new/old", "deep/er/est/big")
		// Replace and remove what was there.
		replace := func(name string, b []byte) {
			t.Helper()
			h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0600, Size: int64(len(b)), ModTime: stamp()}
			if err := w.Replace(h, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			r := headerRecord(h)
			r.Content = hash(bytes.NewReader(b))
			want[name] = r
		}
		replace("short/file-00000", []byte("replaced\n"))
		replace("hard link", []byte("the other links keep the old content"))
		replace("node/file-00004", noise(8, 100_000))
		replace("new/one/added file", []byte("replaced again"))
		for _, name := range []string{"block/also", "short/file-00001", "sock", "long/001-" + strings.Repeat("b", 251), "unwritten"} {
			if err := w.Remove(name); err != nil {
				t.Fatal(err)
			}
			delete(want, name)
		}
		if _, ok := want["shared 2"]; ok {
			if err := w.Remove("shared 2"); err != nil {
				t.Fatal(err)
			}
			delete(want, "shared 2")
		}
		h := &tar.Header{Name: "leaf", Typeflag: tar.TypeDir, Mode: 0700, Uid: 9, Gid: 9, ModTime: stamp(), PAXRecords: map[string]string{label: "new label\x00"}}
		mustAdd(t, w, h, nil)
		want["leaf"] = headerRecord(h)
	}
	for i := 0; i < 3; i++ {
		if err := w.Remove(fmt.Sprintf("new/fifty/%d", i)); err != nil {
			t.Fatal(err)
		}
		delete(want, fmt.Sprintf("new/fifty/%d", i))
	}
	if err := w.Remove("new/one/added folder"); err != nil {
		t.Fatal(err)
	}
	delete(want, "new/one/added folder")
	// Old folders that changed take the time of the change.
	for _, d := range []string{".", "short", "block", "node", "empty", "deep/er/est", "crumbs", "long"} {
		if r, ok := want[d]; ok {
			r.Mtime = now
			want[d] = r
		}
	}
}

const testACL = "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"

func TestWrite(t *testing.T) {
	needKernel(t)
	img := mkfs(t, 320<<20)
	want := tree{}
	mounted(t, img, "rw", func(dir string) { age(t, dir, rand.New(rand.NewSource(1)), 3000, true, false) })
	mounted(t, img, "ro", func(dir string) { want = kernelTree(t, dir) })
	w := openWriter(t, img)
	bake(t, w, want, rand.New(rand.NewSource(2)), 5000)
	sameTree(t, "before commit", ourTree(t, w), want0(want, ourTree(t, w)))
	commit(t, w)
	sameTree(t, "our own reading", ourTree(t, openReader(t, img)), want)
	repairClean(t, img)
	mounted(t, img, "rw", func(dir string) { sameTree(t, "written", kernelTree(t, dir), want) })
	repairClean(t, img)
}

// want0 is want with the times of folders as they are before commit.
func want0(want, got tree) tree {
	out := tree{}
	for k, v := range want {
		if g, ok := got[k]; ok && v.Type == tar.TypeDir {
			v.Mtime = g.Mtime
		}
		out[k] = v
	}
	return out
}
