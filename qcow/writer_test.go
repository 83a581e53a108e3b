package qcow

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
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
