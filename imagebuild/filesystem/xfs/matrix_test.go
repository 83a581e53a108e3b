package xfs

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

type form struct {
	name string
	args string // of mkfs.xfs
	size int64  // MiB; 320 by default
	full bool   // leave little space
	many int    // entries of the largest new folder
	// The kernel here cannot mount it; xfs_repair and our own reader judge alone.
	noMount bool
	after   func(t *testing.T, img string)
}

func forms() []form {
	return []form{
		{name: "default", args: "", many: 5000},
		{name: "first v5", args: "-m finobt=0,rmapbt=0,reflink=0,inobtcount=0,bigtime=0 -i sparse=0"},
		{name: "everything", args: "-m rmapbt=1,inobtcount=1,bigtime=1 -i nrext64=1"},
		{name: "everything full", args: "-m rmapbt=1,inobtcount=1,bigtime=1 -i nrext64=1", full: true},
		{name: "rmapbt without reflink", args: "-m rmapbt=1,reflink=0"},
		{name: "no reflink", args: "-m reflink=0"},
		{name: "no reflink full", args: "-m reflink=0", full: true},
		{name: "no bigtime", args: "-m bigtime=0"},
		{name: "no inobtcount", args: "-m inobtcount=0"},
		{name: "no sparse inodes", args: "-i sparse=0"},
		{name: "no finobt", args: "-m finobt=0,inobtcount=0"},
		{name: "nrext64", args: "-i nrext64=1"},
		{name: "block 1k", args: "-b size=1024"},
		{name: "block 1k everything full", args: "-b size=1024 -m rmapbt=1 -i nrext64=1", full: true},
		{name: "block 2k", args: "-b size=2048 -m rmapbt=1"},
		{name: "block 8k", args: "-b size=8192 -m rmapbt=1"},
		{name: "block 16k", args: "-b size=16384"},
		{name: "block 64k", args: "-b size=65536 -m rmapbt=1", size: 600},
		{name: "sector 4k", args: "-s size=4096 -m rmapbt=1"},
		{name: "inode 1k", args: "-i size=1024"},
		{name: "inode 2k", args: "-i size=2048 -m rmapbt=1"},
		{name: "folder block 8k", args: "-n size=8192"},
		{name: "folder block 64k", args: "-n size=65536 -m rmapbt=1", many: 8000},
		{name: "block 1k folder block 16k", args: "-b size=1024 -n size=16384"},
		{name: "one group", args: "--unsupported -d agcount=1"},
		{name: "many groups", args: "-d agcount=18 -m rmapbt=1", size: 1500},
		{name: "short last group", args: "-d agsize=19999b -m rmapbt=1", size: 330},
		{name: "stripes", args: "-d su=64k,sw=4 -l su=64k,size=64m", size: 600},
		{name: "log stripes", args: "-l su=32k,size=64m -m rmapbt=1", size: 600},
		{name: "new uuid", args: "-m rmapbt=1", after: func(t *testing.T, img string) {
			run(t, "xfs_admin", "-U", "11111111-2222-3333-4444-555555555555", img)
		}},
		{name: "label and few inodes", args: "-L node-root -i maxpct=20"},
		{name: "names without case", args: "-n version=ci", noMount: true},
		{name: "inodes beyond 32 bits", args: "-m rmapbt=1", size: 5 << 20},
	}
}

func TestMatrix(t *testing.T) {
	needKernel(t)
	s := seed(t, "matrix")
	for i, f := range forms() {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			exercise(t, f, s+int64(i))
		})
	}
}

func exercise(t *testing.T, f form, seed int64) {
	size := f.size << 20
	if size == 0 {
		size = 320 << 20
	}
	img := mkfs(t, size, strings.Fields(f.args)...)
	if f.after != nil {
		f.after(t, img)
	}
	rng := rand.New(rand.NewSource(seed))
	reflink := strings.Contains(strings.Join(openReader(t, img).Info().Features, " "), "reflink")
	want := tree{}
	if !f.noMount {
		n := 700
		mounted(t, img, "rw", func(dir string) { age(t, dir, rng, n, reflink, f.full) })
		repairClean(t, img)
		mounted(t, img, "ro", func(dir string) { want = kernelTree(t, dir) })
		sameTree(t, "reading", ourTree(t, openReader(t, img)), want)
	} else {
		want = ourTree(t, openReader(t, img))
	}

	many := f.many
	if many == 0 {
		many = 700
	}
	w := openWriter(t, img)
	if f.size > 1<<20 {
		w.order[0], w.order[len(w.order)-1] = w.order[len(w.order)-1], w.order[0]
	}
	bake(t, w, want, rng, many)
	commit(t, w)
	repairClean(t, img)
	if in, err := openReader(t, img).resolve("new/big"); err != nil || f.size > 1<<20 && in.ino < 1<<32 {
		t.Errorf("new/big is inode %d, %v", in.ino, err)
	}
	sameTree(t, "our own reading", ourTree(t, openReader(t, img)), want)
	if f.noMount {
		return
	}
	mounted(t, img, "rw", func(dir string) {
		sameTree(t, "written", kernelTree(t, dir), want)
		for i := 0; i < 300; i++ {
			for _, d := range []string{"new/many", "node", "new/one"} {
				p := filepath.Join(dir, d, fmt.Sprintf("kernel-%d", i))
				if err := os.WriteFile(p, noise(int64(i), i*10), 0644); err != nil {
					t.Fatal(err)
				}
				if i%3 == 0 {
					os.Remove(p)
				}
			}
		}
		if err := lsetxattr(filepath.Join(dir, "new/many/entry-1"), "user.later", noise(1, 3000)); err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 50; i++ {
			os.Remove(filepath.Join(dir, fmt.Sprintf("new/many/entry-%d", i*2)))
		}
		os.RemoveAll(filepath.Join(dir, "new/names"))
	})
	repairClean(t, img)

	// What follows takes longest: one form in three goes on, another at each seed.
	if f.size > 1<<20 || os.Getenv("NODEBAKE_SOAK") == "" && rng.Intn(3) > 0 {
		return
	}
	if err := os.Truncate(img, size+100<<20); err != nil {
		t.Fatal(err)
	}
	mounted(t, img, "rw", func(dir string) {
		run(t, "xfs_growfs", dir)
		fillUp(t, dir, 0)
		for i := 0; i < 300; i++ {
			os.Remove(filepath.Join(dir, fmt.Sprintf("crumbs/%d", i)))
		}
		want = kernelTree(t, dir)
	})
	repairClean(t, img)

	// Once more, on a filesystem that grew and is full but for what we remove.
	w = openWriter(t, img)
	for _, n := range []string{"ballast", "new/sparse", "node/file-00004"} {
		if err := w.Remove(n); err != nil {
			t.Fatal(err)
		}
		delete(want, n)
	}
	for i := 0; i < 200; i++ {
		h := file(fmt.Sprintf("again-%d", i), 0)
		b := noise(int64(i), i*500)
		h.ModTime = now
		mustAdd(t, w, h, b)
		r := headerRecord(h)
		r.Content = hash(bytes.NewReader(b))
		want[h.Name] = r
	}
	commit(t, w)
	repairClean(t, img)
	mounted(t, img, "rw", func(dir string) {
		got := kernelTree(t, dir)
		sameTree(t, "written again", got, want0(want, got))
	})
}

// randomForm combines what mkfs.xfs offers, at random.
func randomForm(rng *rand.Rand) form {
	pick := func(v ...int) int { return v[rng.Intn(len(v))] }
	block := pick(1024, 2048, 4096, 4096, 8192, 16384, 65536)
	inode := min(pick(512, 512, 1024, 2048), block/2)
	finobt := rng.Intn(4) > 0
	args := fmt.Sprintf("-b size=%d -i size=%d,sparse=%d,nrext64=%d,maxpct=%d -s size=%d -n size=%d -m rmapbt=%d,reflink=%d,bigtime=%d,finobt=%d,inobtcount=%d",
		block, inode, pick(0, 1, 1), pick(0, 1), pick(0, 25, 50), pick(512, min(4096, block)), max(block, pick(4096, 8192, 16384, 65536)),
		pick(0, 1), pick(0, 1, 1), pick(0, 1, 1), btoi(finobt), btoi(finobt && rng.Intn(3) > 0))
	size := int64(400 + rng.Intn(500))
	if block == 65536 {
		size += 600
	}
	if rng.Intn(3) == 0 {
		args += fmt.Sprintf(" -d agsize=%db", (size<<20/int64(block)/int64(pick(2, 3, 4)))-int64(rng.Intn(700)))
	}
	if rng.Intn(4) == 0 && block <= 32768 {
		args += fmt.Sprintf(" -d su=%dk,sw=%d -l su=%dk", pick(32, 64, 128), pick(2, 3, 8), pick(32, 64, 256))
	}
	f := form{name: args, args: args, size: size, full: rng.Intn(3) == 0 && block <= 4096, many: pick(40, 300, 700, 2500)}
	if f.full {
		f.many = min(f.many, 700) // or it would not fit
	}
	return f
}

func TestRandomForms(t *testing.T) {
	needKernel(t)
	s := seed(t, "forms")
	n := 2
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 60
	}
	rng := rand.New(rand.NewSource(s))
	for i := 0; i < n; i++ {
		f := randomForm(rng)
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			t.Logf("%d MiB, %s, full: %v", f.size, f.args, f.full)
			// Some combinations are too small for the log that they ask for.
			probe := filepath.Join(t.TempDir(), "probe")
			if err := os.WriteFile(probe, nil, 0600); err != nil {
				t.Fatal(err)
			}
			os.Truncate(probe, f.size<<20)
			if out, err := exec.Command("mkfs.xfs", append(strings.Fields("-q -N "+f.args), probe)...).CombinedOutput(); err != nil {
				first, _, _ := strings.Cut(string(out), "\n")
				t.Skip(first)
			}
			exercise(t, f, s+int64(i))
		})
	}
}
