package xfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"
)

// model is what the filesystem should hold. Times of folders are left out: TestMatrix has them.
type model struct {
	rng   *rand.Rand
	files tree
	next  int
}

func (m *model) pick(kinds string) string {
	var names []string
	for n, r := range m.files {
		if strings.IndexByte(kinds, r.Type) >= 0 {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return ""
	}
	sort.Strings(names)
	return names[m.rng.Intn(len(names))]
}

func (m *model) dir() string {
	if m.rng.Intn(3) == 0 {
		return "."
	}
	return m.pick(string([]byte{tar.TypeDir}))
}

func (m *model) newName() string {
	m.next++
	n := fmt.Sprintf("%d-%s", m.next, strings.Repeat("n", m.rng.Intn(1+m.rng.Intn(240))))
	return strings.TrimPrefix(path.Join(m.dir(), n), "./")
}

func (m *model) content() []byte {
	switch m.rng.Intn(10) {
	case 0:
		return nil
	case 1: // with holes
		b := make([]byte, m.rng.Intn(2<<20))
		for i := 0; i < 5 && len(b) > 0; i++ {
			copy(b[m.rng.Intn(len(b)):], noise(m.rng.Int63(), m.rng.Intn(9000)))
		}
		return b
	case 2:
		return noise(m.rng.Int63(), m.rng.Intn(1<<20))
	}
	return noise(m.rng.Int63(), m.rng.Intn(20000))
}

func (m *model) xattrs(h *tar.Header) {
	if m.rng.Intn(3) != 0 {
		return
	}
	h.PAXRecords = map[string]string{}
	for i := m.rng.Intn(6); i >= 0; i-- {
		size := m.rng.Intn(1 + m.rng.Intn(300))
		if m.rng.Intn(12) == 0 {
			size = m.rng.Intn(65537)
		}
		ns := []string{"trusted", "security"}[m.rng.Intn(2)]
		h.PAXRecords[fmt.Sprintf("%s%s.x%d%s", xattrPrefix, ns, i, strings.Repeat("y", m.rng.Intn(60)))] = string(noise(m.rng.Int63(), size))
	}
	if m.rng.Intn(20) == 0 {
		for i := 0; i < 150; i++ {
			h.PAXRecords[fmt.Sprintf("%strusted.many.%d", xattrPrefix, i)] = string(noise(int64(i), m.rng.Intn(200)))
		}
	}
}

func (m *model) header(typ byte) *tar.Header {
	h := &tar.Header{Name: m.newName(), Typeflag: typ, Mode: int64(m.rng.Intn(010000)), Uid: m.rng.Intn(1 << 20), Gid: m.rng.Intn(1 << 20), ModTime: time.Unix(m.rng.Int63n(2_000_000_000), m.rng.Int63n(1e9))}
	if typ == tar.TypeSymlink {
		h.Mode = 0777
		h.Linkname = strings.Repeat("s", 1+m.rng.Intn(1+m.rng.Intn(1023)))
	}
	if typ == tar.TypeChar || typ == tar.TypeBlock {
		h.Devmajor, h.Devminor = m.rng.Int63n(512), m.rng.Int63n(1<<18)
	}
	m.xattrs(h)
	return h
}

func (m *model) set(h *tar.Header, b []byte) {
	r := headerRecord(h)
	if h.Typeflag == tar.TypeReg {
		r.Content = hash(bytes.NewReader(b))
	}
	m.files[h.Name] = r
}

// step does one random thing to w and to the model.
func (m *model) step(t *testing.T, w *Writer) {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	op := m.rng.Intn(100)
	if len(m.files) > 1200 && op < 50 {
		op = 80 // remove
	}
	switch {
	case op < 40:
		h, b := m.header(tar.TypeReg), m.content()
		h.Size = int64(len(b))
		ok(w.Add(h, bytes.NewReader(b)))
		m.set(h, b)
	case op < 52:
		h := m.header(tar.TypeDir)
		ok(w.Add(h, nil))
		m.set(h, nil)
	case op < 62:
		h := m.header([]byte{tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, 's'}[m.rng.Intn(5)])
		ok(w.Add(h, nil))
		m.set(h, nil)
	case op < 70:
		if to := m.pick("02346s"); to != "" {
			h := &tar.Header{Name: m.newName(), Typeflag: tar.TypeLink, Linkname: to}
			ok(w.Add(h, nil))
			m.files[h.Name] = m.files[to]
		}
	case op < 78:
		if n := m.pick("0"); n != "" {
			h, b := m.header(tar.TypeReg), m.content()
			h.Name, h.Size = n, int64(len(b))
			ok(w.Replace(h, bytes.NewReader(b)))
			m.set(h, b)
		}
	case op < 92:
		n := m.pick("0123456s")
		if n == "" || n == "." {
			return
		}
		err := w.Remove(n)
		full := false
		for k := range m.files {
			full = full || strings.HasPrefix(k, n+"/")
		}
		if full {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("removing the full folder %q: %v", n, err)
			}
			return
		}
		ok(err)
		delete(m.files, n)
	case op < 95:
		if n := m.pick("5"); n != "" && n != "." {
			h := m.header(tar.TypeDir)
			h.Name = n
			ok(w.Add(h, nil))
			m.set(h, nil)
		}
	case op < 97: // what must fail changes nothing
		if n := m.pick("0"); n != "" {
			if err := w.Add(file(n, 1), strings.NewReader("x")); !errors.Is(err, fs.ErrExist) {
				t.Fatal(err)
			}
			if err := w.Add(file(m.newName(), 100_000), strings.NewReader("too short")); err == nil {
				t.Fatal("a short content was taken")
			}
		}
	default:
		if n := m.pick("0123456s"); n != "" && n != "." {
			h, err := w.Stat(n)
			ok(err)
			got, want := headerRecord(h), m.files[n]
			got.Mtime, want.Mtime, got.Content, want.Content = now, now, "", ""
			if fullString(got) != fullString(want) {
				t.Fatalf("%q before commit: %s, want %s", n, got, want)
			}
		}
	}
}

// kernelSteps lets the kernel change what is there, and the model with it.
func (m *model) kernelSteps(t *testing.T, dir string, n int, reflink bool) {
	t.Helper()
	for i := 0; i < n; i++ {
		name := m.newName()
		p := filepath.Join(dir, name)
		switch m.rng.Intn(6) {
		case 0, 1:
			if err := os.WriteFile(p, m.content(), 0640); err != nil {
				t.Fatal(err)
			}
			m.files[name] = kernelRecord(t, p)
		case 2:
			if err := os.Mkdir(p, 0750); err != nil {
				t.Fatal(err)
			}
			m.files[name] = kernelRecord(t, p)
		case 3:
			if f := m.pick("0"); f != "" && reflink {
				run(t, "cp", "--reflink=always", "--", filepath.Join(dir, f), p)
				m.files[name] = kernelRecord(t, p)
			}
		default:
			if f := m.pick("012346s"); f != "" {
				if err := os.Remove(filepath.Join(dir, f)); err != nil {
					t.Fatal(err)
				}
				delete(m.files, f)
			}
		}
	}
}

func TestRandom(t *testing.T) {
	needKernel(t)
	s := seed(t, "random")
	rounds, steps := 6, 220
	if os.Getenv("NODEBAKE_SOAK") != "" {
		rounds, steps = 60, 500
	}
	all := []string{
		"-m rmapbt=1,reflink=1 -i nrext64=1",
		"-b size=1024 -m rmapbt=1,reflink=1 -n size=4096",
		"parent -m rmapbt=1,reflink=1 -i nrext64=1", // see mkfsParent
		"-m reflink=1,finobt=1 -i size=1024",
		"-m finobt=0,rmapbt=0,reflink=0,inobtcount=0,bigtime=0 -i sparse=0",
		"-b size=65536 -m rmapbt=1",
		"-d agcount=16 -m rmapbt=1 -b size=2048 -n size=8192",
	}
	if os.Getenv("NODEBAKE_SOAK") == "" {
		all = all[:3]
	}
	for i, args := range all {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			size := int64(600 << 20)
			if os.Getenv("NODEBAKE_SOAK") != "" {
				size = 4 << 30
			}
			make, clean := mkfs, repairClean
			if rest, ok := strings.CutPrefix(args, "parent "); ok {
				make, clean, args = mkfsParent, checkClean, rest
			}
			img := make(t, size, strings.Fields(args)...)
			reflink := !strings.Contains(args, "reflink=0")
			m := &model{rng: rand.New(rand.NewSource(s + int64(i))), files: tree{}}
			mounted(t, img, "rw", func(dir string) { m.files["."] = kernelRecord(t, dir) })
			for r := 0; r < rounds; r++ {
				w := openWriter(t, img)
				for i := 0; i < steps; i++ {
					if i%3 == 0 {
						w.held = maxHeldEntries // the next folder that is read drives all others out
					}
					m.step(t, w)
				}
				commit(t, w)
				clean(t, img)
				mounted(t, img, "rw", func(dir string) {
					got := kernelTree(t, dir)
					sameTree(t, fmt.Sprintf("round %d", r), got, want0(m.files, got))
					m.kernelSteps(t, dir, 60, reflink)
				})
				clean(t, img)
			}
			got := ourTree(t, openReader(t, img))
			sameTree(t, "our reading", got, want0(m.files, got))
		})
	}
}

// TestCountingIsWriting does the same random things twice, counting and in earnest: the counts must not differ, with
// space for everything and without.
func TestCountingIsWriting(t *testing.T) {
	needKernel(t)
	s := seed(t, "counting")
	for i, args := range []string{"-m rmapbt=1", "-b size=1024 -m rmapbt=1,reflink=1 -i nrext64=1"} {
		img := mkfs(t, 320<<20, strings.Fields(args)...)
		mounted(t, img, "rw", func(dir string) { age(t, dir, rand.New(rand.NewSource(s)), 300, true, true) })
		for _, ballast := range []int64{0, 3 << 20, 100 << 20} {
			var spaces []Space
			var errs []error
			for _, count := range []bool{true, false} {
				cp := img + ".copy"
				run(t, "cp", "--sparse=always", img, cp)
				f, n := openImage(t, cp)
				var d Device = f
				if count {
					d = noWrites{f, t}
				}
				w, err := OpenWriter(d, n, Options{Now: now, CountOnly: count})
				if err != nil {
					t.Fatal(err)
				}
				if ballast > 0 {
					if err := w.Add(file("more ballast", ballast), &pattern{ballast}); err != nil {
						t.Fatal(err)
					}
				} else if err := w.Remove("ballast"); err != nil {
					t.Fatal(err)
				}
				m := &model{rng: rand.New(rand.NewSource(s + int64(i))), files: tree{".": {Type: tar.TypeDir}}}
				for j := 0; j < 400; j++ {
					m.step(t, w)
				}
				before := w.Space()
				err = w.Commit(context.Background())
				if err != nil && !errors.Is(err, ErrNoSpace) {
					t.Fatal(err)
				}
				if before.NeedBlocks > w.Space().NeedBlocks {
					t.Errorf("%d blocks needed before commit, %d after", before.NeedBlocks, w.Space().NeedBlocks)
				}
				if err == nil && !count {
					repairClean(t, cp)
				}
				spaces, errs = append(spaces, w.Space()), append(errs, err)
			}
			t.Logf("ballast %d: %+v %v", ballast, spaces[0], errs[0])
			if spaces[0] != spaces[1] || (errs[0] == nil) != (errs[1] == nil) {
				t.Errorf("ballast %d: counting says %+v %v, writing %+v %v", ballast, spaces[0], errs[0], spaces[1], errs[1])
			}
		}
	}
}
