package qcow

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func rounds(n int) int {
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		return n * 20
	}
	if testing.Short() {
		return n / 4
	}
	return n
}

// randomWrites writes through w and into the model alike, reading back now and then.
func randomWrites(t testing.TB, rng *rand.Rand, w *Writer, model []byte) {
	t.Helper()
	size := int64(len(model))
	for range 1 + rng.IntN(80) {
		off := rng.Int64N(size)
		n := 1 + rng.Int64N(min(size-off, 1<<uint(1+rng.IntN(20))))
		switch rng.IntN(3) {
		case 0: // whole clusters
			off &^= w.cs - 1
			n = min((n+w.cs-1)&^(w.cs-1), size-off)
		case 1: // as filesystems do
			off &^= 4095
			n = min((n+4095)&^4095, size-off)
		}
		p := model[off : off+n]
		if rng.IntN(4) == 0 {
			clear(p)
		} else {
			copy(p, contents(rng, int(n)))
		}
		if _, err := w.WriteAt(p, off); err != nil {
			t.Fatalf("WriteAt(%d bytes, %#x): %v", n, off, err)
		}
		switch rng.IntN(12) {
		case 0:
			if err := w.Flush(); err != nil {
				t.Fatalf("Flush: %v", err)
			}
		case 1, 2:
			off := rng.Int64N(size)
			got := make([]byte, 1+rng.Int64N(size-off))
			if _, err := w.ReadAt(got, off); err != nil {
				t.Fatalf("ReadAt: %v", err)
			}
			if at := firstDiff(got, model[off:off+int64(len(got))]); at >= 0 {
				t.Fatalf("read back at %#x differs", off+int64(at))
			}
		}
	}
}

// wantGood closes w and holds the file against the model, with QEMU's eyes and ours.
func wantGood(t testing.TB, rng *rand.Rand, w *Writer, file string, model []byte) {
	t.Helper()
	if err := w.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
	qemuCheck(t, file)
	qemuCompare(t, file, model)
	im := openFile(t, file)
	wantContent(t, rng, im, model)
	r, err := Check(im.src, Options{})
	if err != nil || r.Total != 0 {
		t.Fatalf("Check: %v, %+v", err, r)
	}
	if st, _ := os.Stat(file); st.Size() != w.FileSize() {
		t.Fatalf("file has %d bytes, FileSize says %d", st.Size(), w.FileSize())
	}
}

func TestPatchRandom(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	for i := range rounds(60) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := seeded(t, uint64(i))
			file := filepath.Join(t.TempDir(), "a.qcow2")
			f := randomForm(rng)
			size := 1 + rng.Int64N(6<<20)
			if f.compat010 || rng.IntN(2) == 0 {
				size = (size + 511) &^ 511
			}
			t.Logf("%+v, %d bytes", f, size)
			makeImage(t, rng, file, f, size)
			model := qemuRaw(t, file)
			size = int64(len(model))
			wantContent(t, rng, openFile(t, file), model)
			r, err := Check(fileSrc(t, file), Options{})
			if err != nil {
				t.Fatalf("Check of QEMU's image: %v", err)
			}
			faulty := r.Total > 0
			if err := exec.Command("qemu-img", "check", "-f", "qcow2", file).Run(); faulty != (err != nil) {
				t.Fatalf("Check %+v, qemu-img check: %v", r, err)
			}
			fh, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer fh.Close()
			st, _ := fh.Stat()
			w, err := OpenPatch(fh, st.Size(), Options{})
			if f.compat010 || faulty {
				if !errors.Is(err, ErrCannotPatch) {
					t.Fatalf("OpenPatch of version 2 or a faulty image: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatalf("OpenPatch: %v", err)
			}
			wantContent(t, rng, w, model)
			randomWrites(t, rng, w, model)
			if rng.IntN(3) == 0 {
				more := rng.Int64N(8 << 20)
				if err := w.Grow(size + more); err != nil {
					t.Fatalf("Grow: %v", err)
				}
				model = append(model, make([]byte, w.Size()-int64(len(model)))...)
				randomWrites(t, rng, w, model)
			}
			wantGood(t, rng, w, file, model)
			if f.snapshots {
				run(t, "qemu-img", "snapshot", "-a", "s0", file)
				qemuCheck(t, file)
			}
		})
	}
}

func TestCreateRandom(t *testing.T) {
	needTool(t, "qemu-img")
	for i := range rounds(60) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := seeded(t, uint64(i))
			file := filepath.Join(t.TempDir(), "a.qcow2")
			size := 1 + rng.Int64N(6<<20)
			o := CreateOptions{ClusterSize: 512 << rng.IntN(13), RefcountBits: 1 << rng.IntN(7), Compression: []string{"", "zlib", "zstd"}[rng.IntN(3)]}
			if o.ClusterSize >= 16384 {
				o.ExtendedL2 = rng.IntN(2) == 0
			}
			model := make([]byte, roundSector(size))
			if rng.IntN(3) == 0 {
				base := filepath.Join(filepath.Dir(file), "base.qcow2")
				f := randomForm(rng)
				baseSize := (1 + rng.Int64N(6<<20) + 511) &^ 511
				makeImage(t, rng, base, f, baseSize)
				copy(model, qemuRaw(t, base))
				o.Backing, o.BackingFile, o.BackingFormat = openFile(t, base), "base.qcow2", "qcow2"
			}
			t.Logf("%+v, %d bytes", o, size)
			fh, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			defer fh.Close()
			w, err := Create(fh, size, o)
			if err != nil {
				t.Fatal(err)
			}
			randomWrites(t, rng, w, model)
			if rng.IntN(3) == 0 {
				more := rng.Int64N(8 << 20)
				if err := w.Grow(size + more); err != nil {
					t.Fatalf("Grow: %v", err)
				}
				model = append(model, make([]byte, w.Size()-int64(len(model)))...)
				randomWrites(t, rng, w, model)
			}
			wantGood(t, rng, w, file, model)
		})
	}
}

// TestGrowSteps lets disks grow by a GiB again and again, with writes in between, over a shorter and over a longer backing file and with internal
// snapshots.
func TestGrowSteps(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	for _, c := range []struct {
		name    string
		o       CreateOptions
		backing int64  // bytes of the backing file
		base    string // what qemu-img makes to patch
		steps   int
	}{
		{name: "plain", steps: 300},
		{name: "small clusters", o: CreateOptions{ClusterSize: 4096}, steps: 100},
		{name: "smallest clusters", o: CreateOptions{ClusterSize: 512, RefcountBits: 64}, steps: 20},
		{name: "large clusters", o: CreateOptions{ClusterSize: 2 << 20, RefcountBits: 1}, steps: 300},
		{name: "subclusters", o: CreateOptions{ClusterSize: 16384, ExtendedL2: true}, steps: 100},
		{name: "compressed", o: CreateOptions{Compression: "zstd"}, steps: 100},
		{name: "shorter backing", backing: 5<<20 + 512, steps: 100},
		{name: "longer backing", backing: 3<<30 + 512, steps: 100},
		{name: "longer backing, subclusters", o: CreateOptions{ExtendedL2: true}, backing: 3<<30 + 512, steps: 20},
		{name: "patch", base: "cluster_size=64k", steps: 100},
		{name: "patch with small clusters", base: "cluster_size=4k", steps: 100},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := seeded(t, 1)
			dir := t.TempDir()
			file := filepath.Join(dir, "a.qcow2")
			model, err := os.Create(filepath.Join(dir, "model.raw"))
			if err != nil {
				t.Fatal(err)
			}
			defer model.Close()
			size := int64(10<<20 + 512)
			if c.backing > 0 {
				base, err := os.Create(filepath.Join(dir, "base.raw"))
				if err != nil {
					t.Fatal(err)
				}
				defer base.Close()
				for _, off := range []int64{0, 4 << 20, 8 << 20, c.backing - 100000} {
					p := contents(rng, int(max(min(100000, c.backing-off), 0)))
					if _, err := base.WriteAt(p, off); err != nil {
						t.Fatal(err)
					}
					if n := min(int64(len(p)), size-off); n > 0 {
						if _, err := model.WriteAt(p[:n], off); err != nil {
							t.Fatal(err)
						}
					}
				}
				c.o.Backing, c.o.BackingFile, c.o.BackingFormat = OpenRaw(fileSrc(t, base.Name())), "base.raw", "raw"
			}
			var w *Writer
			if c.base != "" {
				run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", c.base, file, fmt.Sprint(size))
				qemuIO(t, file, "write -P 1 1000000 100000")
				run(t, "qemu-img", "snapshot", "-c", "one", file)
				qemuIO(t, file, "write -P 2 1000000 10000")
				p := qemuRaw(t, file)
				if _, err := model.WriteAt(p, 0); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if c.base != "" {
				st, err := f.Stat()
				if err != nil {
					t.Fatal(err)
				}
				w, err = OpenPatch(f, st.Size(), Options{})
				if err != nil {
					t.Fatal(err)
				}
			} else if w, err = Create(f, size, c.o); err != nil {
				t.Fatal(err)
			}
			for i := range c.steps {
				p := contents(rng, 1+rng.IntN(20000))
				off := max(w.Size()-int64(len(p)), 0)
				if i%3 == 1 {
					off = rng.Int64N(off + 1)
				}
				if _, err := w.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				if _, err := model.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
				size += 1 << 30
				if err := w.Grow(size); err != nil {
					t.Fatalf("step %d: %v", i, err)
				}
				if i%10 == 9 {
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := w.Close(); err != nil || w.Size() != size {
				t.Fatal(err, w.Size())
			}
			if err := model.Truncate(size); err != nil {
				t.Fatal(err)
			}
			qemuCheck(t, file)
			run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, model.Name())
			if r, err := Check(fileSrc(t, file), Options{}); err != nil || r.Total != 0 {
				t.Errorf("Check: %v, %+v", err, r)
			}
			if c.base != "" {
				old := filepath.Join(dir, "snapshot.raw")
				run(t, "qemu-img", "convert", "-l", "snapshot.name=one", "-f", "qcow2", "-O", "raw", file, old)
				want := make([]byte, 10<<20+512)
				b := make([]byte, len(want)) // QEMU 7.2 shows the snapshot with the disk's size of now
				if _, err := fileSrc(t, old).ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				for i := 1000000; i < 1100000; i++ {
					want[i] = 1
				}
				if at := firstDiff(b, want); at >= 0 {
					t.Errorf("the snapshot differs at %#x", at)
				}
			}
		})
	}
}

// TestDataFile makes images with external data files; QEMU must read, check and write them.
func TestDataFile(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	for i := range rounds(16) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			rng := seeded(t, uint64(i))
			dir := t.TempDir()
			t.Chdir(dir) // QEMU looks for data files in its working folder
			file := filepath.Join(dir, "a.qcow2")
			size := 1 + rng.Int64N(6<<20)
			o := CreateOptions{ClusterSize: 512 << rng.IntN(13), RefcountBits: 1 << rng.IntN(7), DataFile: "a.data", DataFileRaw: i%2 == 0}
			if o.ClusterSize >= 16384 {
				o.ExtendedL2 = rng.IntN(2) == 0
			}
			model := make([]byte, roundSector(size))
			if !o.DataFileRaw && rng.IntN(2) == 0 {
				base := filepath.Join(dir, "base.raw")
				b := contents(rng, 1+rng.IntN(6<<20))
				if err := os.WriteFile(base, b, 0o600); err != nil {
					t.Fatal(err)
				}
				copy(model, b)
				o.Backing, o.BackingFile, o.BackingFormat = OpenRaw(fileSrc(t, base)), "base.raw", "raw"
			}
			t.Logf("%+v, %d bytes", o, size)
			fh, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			defer fh.Close()
			data, err := os.Create(filepath.Join(dir, "a.data"))
			if err != nil {
				t.Fatal(err)
			}
			defer data.Close()
			o.Data = data
			w, err := Create(fh, size, o)
			if err != nil {
				t.Fatal(err)
			}
			randomWrites(t, rng, w, model)
			if rng.IntN(2) == 0 {
				if err := w.Grow(size + rng.Int64N(8<<20)); err != nil {
					t.Fatalf("Grow: %v", err)
				}
				model = append(model, make([]byte, w.Size()-int64(len(model)))...)
				randomWrites(t, rng, w, model)
			}
			wantGood(t, rng, w, file, model)
			b, err := os.ReadFile("a.data")
			if err != nil {
				t.Fatal(err)
			}
			if len(b) != len(model) || o.DataFileRaw && firstDiff(b, model) >= 0 {
				t.Errorf("the data file has %d bytes of %d; it differs at %#x", len(b), len(model), firstDiff(b, model))
			}
			info := run(t, "qemu-img", "info", file)
			if !strings.Contains(info, "data file: a.data") || !strings.Contains(info, fmt.Sprint("data file raw: ", o.DataFileRaw)) {
				t.Errorf("qemu-img info: %s", info)
			}
			qemuIO(t, file, fmt.Sprintf("write -P 5 0 %d", min(len(model), 100000)))
			qemuCheck(t, file)
			for j := range model[:min(len(model), 100000)] {
				model[j] = 5
			}
			wantContent(t, rng, openFile(t, file), model)
		})
	}
}

// TestRawDataFileSparse copies a large, nearly empty disk, which must not take the time or space of a full one.
func TestRawDataFileSparse(t *testing.T) {
	needTool(t, "qemu-img")
	dir := t.TempDir()
	t.Chdir(dir)
	const size = 64 << 30
	f, err := os.Create("big.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.Create("big.data")
	if err != nil {
		t.Fatal(err)
	}
	defer data.Close()
	w, err := Create(f, size, CreateOptions{Data: data, DataFile: "big.data", DataFileRaw: true})
	if err != nil {
		t.Fatal(err)
	}
	src := new(memFile)
	if _, err := w.WriteAt([]byte("far away"), size-4096); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	qemuCheck(t, "big.qcow2")
	st, err := data.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if n := st.Sys().(*syscall.Stat_t).Blocks * 512; n > 1<<20 || st.Size() != size {
		t.Errorf("the data file has %d bytes and takes %d", st.Size(), n)
	}
	im := openFile(t, filepath.Join(dir, "big.qcow2"))
	copied, err := Create(src, size, CreateOptions{Compression: "zstd"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Copy(context.Background(), copied, im, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := copied.ReadAt(got, size-4096); err != nil || string(got[:8]) != "far away" {
		t.Errorf("copied %q, %v", got[:8], err)
	}
}

// TestDeterministic makes the same writes twice and demands the same files.
func TestDeterministic(t *testing.T) {
	for _, o := range []CreateOptions{{}, {ClusterSize: 512}, {Compression: "zlib"}, {Compression: "zstd"}, {ExtendedL2: true, ClusterSize: 16384}} {
		seed := rand.Uint64()
		var first []byte
		for i := range 3 {
			rng := rand.New(rand.NewPCG(seed, 0))
			f := new(memFile)
			size := 64<<10 + rng.Int64N(20<<20)
			w, err := Create(f, size, o)
			if err != nil {
				t.Fatal(err)
			}
			model := make([]byte, w.Size())
			for range 5 {
				randomWrites(t, rng, w, model)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				first = f.b
			} else if at := firstDiff(first, f.b); at >= 0 {
				t.Fatalf("%+v, seed %d: files differ at %#x", o, seed, at)
			}
		}
	}
}
