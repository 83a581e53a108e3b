package xfs

import (
	"archive/tar"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"unsafe"
)

// xfsprogs 6.1 cannot make filesystems with parent pointers, but a new filesystem has only a root, which has none:
// setting the bit makes one, for the kernel to fill and to judge.
func mkfsParent(t testing.TB, size int64, args ...string) string {
	img := mkfs(t, size, args...)
	f, _ := openImage(t, img)
	b := make([]byte, 4096)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b = b[:be.Uint16(b[sbSectSize:])]
	be.PutUint32(b[sbIncompat:], be.Uint32(b[sbIncompat:])|incParent|incExchange)
	setCRC(b, sbCRC)
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return img
}

// kernelParents asks the kernel which names lead to a file; nil when it does not know the question.
func kernelParents(t *testing.T, path string) []string {
	t.Helper()
	type request struct {
		cursor         [4]uint32
		iflags, oflags uint16
		bufsize        uint32
		pad            uint64
		buffer         uint64
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	r := request{bufsize: uint32(len(buf)), buffer: uint64(uintptr(unsafe.Pointer(&buf[0])))}
	const getParents = 3<<30 | 40<<16 | 'X'<<8 | 62
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), getParents, uintptr(unsafe.Pointer(&r))); e != 0 {
		t.Fatalf("XFS_IOC_GETPARENTS %s: %v", path, e)
	}
	var out []string
	for b := buf; len(b) > 32; {
		word := func(o int) uint64 { return *(*uint64)(unsafe.Pointer(&b[o])) }
		size := int(uint32(word(24)))
		if size == 0 {
			break
		}
		name, _, _ := strings.Cut(string(b[32:size]), "\x00")
		out = append(out, fmt.Sprintf("%d/%s", word(16), name))
		b = b[size:]
	}
	sort.Strings(out)
	return out
}

func TestParentPointers(t *testing.T) {
	needKernel(t)
	for i, args := range []string{"-m rmapbt=1 -i nrext64=1", "-b size=1024"} {
		img := mkfsParent(t, 320<<20, strings.Fields(args)...)
		rng := rand.New(rand.NewSource(int64(i)))
		want := tree{}
		mounted(t, img, "rw", func(dir string) {
			if err := os.WriteFile(filepath.Join(dir, "probe"), nil, 0644); err != nil {
				t.Fatal(err)
			}
			age(t, dir, rng, 500, true, false)
		})
		checkClean(t, img)
		mounted(t, img, "ro", func(dir string) { want = kernelTree(t, dir) })
		sameTree(t, "reading", ourTree(t, openReader(t, img)), want)
		w := openWriter(t, img)
		bake(t, w, want, rng, 600)
		mustAdd(t, w, file("new/popular", 0), noise(1, 100_000))
		for j := 0; j < 300; j++ {
			mustAdd(t, w, &tar.Header{Name: fmt.Sprintf("new/fifty/popular-%d%s", j, strings.Repeat("p", j%200)), Typeflag: tar.TypeLink, Linkname: "new/popular"}, nil)
		}
		for j := 0; j < 300; j += 3 {
			if err := w.Remove(fmt.Sprintf("new/fifty/popular-%d%s", j, strings.Repeat("p", j%200))); err != nil {
				t.Fatal(err)
			}
		}
		commit(t, w)
		checkClean(t, img)
		mounted(t, img, "rw", func(dir string) {
			got := kernelTree(t, dir)
			for n := range got {
				if strings.Contains(n, "popular") {
					delete(got, n)
				}
			}
			sameTree(t, "written", got, want)
			names := map[uint64][]string{} // inode -> parent/name
			inode := func(p string) uint64 {
				var st syscall.Stat_t
				if err := syscall.Lstat(p, &st); err != nil {
					t.Fatal(err)
				}
				return st.Ino
			}
			one := map[uint64]string{}
			filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
				if err != nil {
					t.Fatal(err)
				}
				if p != dir && (e.Type().IsRegular() || e.IsDir()) {
					n := inode(p)
					names[n] = append(names[n], fmt.Sprintf("%d/%s", inode(filepath.Dir(p)), filepath.Base(p)))
					one[n] = p
				}
				return nil
			})
			for n, list := range names {
				sort.Strings(list)
				if got := kernelParents(t, one[n]); strings.Join(got, "\n") != strings.Join(list, "\n") {
					t.Fatalf("%s: the kernel sees %d parents %.300q, there are %d: %.300q", one[n], len(got), got, len(list), list)
				}
			}
			// Renaming and removing our files makes the kernel find and drop the pointers.
			if err := os.Rename(filepath.Join(dir, "new/many"), filepath.Join(dir, "many")); err != nil {
				t.Fatal(err)
			}
			for _, n := range []string{"new", "node", "short", "long"} {
				if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
					t.Fatal(err)
				}
			}
		})
		checkClean(t, img)
	}
}
