package qcow

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// TestConvert goes raw -> qcow2 -> raw in every output form, with QEMU looking at both.
func TestConvert(t *testing.T) {
	needTool(t, "qemu-img")
	rng := seeded(t, 1)
	dir := t.TempDir()
	model := contents(rng, 9<<20+512)
	clear(model[3<<20 : 6<<20])
	in := filepath.Join(dir, "in.raw")
	if err := os.WriteFile(in, model, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(in, 20<<20); err != nil {
		t.Fatal(err)
	}
	model = append(model, make([]byte, 20<<20-len(model))...)
	for _, o := range []CreateOptions{
		{}, {ClusterSize: 512}, {ClusterSize: 4096, RefcountBits: 1}, {ClusterSize: 2 << 20}, {ExtendedL2: true},
		{Compression: "zlib"}, {Compression: "zstd"}, {Compression: "zlib", CompressionLevel: 9}, {Compression: "zlib", CompressionLevel: 1},
		{Compression: "zstd", CompressionLevel: 1}, {Compression: "zstd", CompressionLevel: 9}, {Compression: "zstd", CompressionLevel: 19},
		{Compression: "zlib", ClusterSize: 512}, {Compression: "zstd", ClusterSize: 512}, {Compression: "zlib", ClusterSize: 2 << 20},
		{Compression: "zstd", ClusterSize: 2 << 20}, {Compression: "zstd", RefcountBits: 1}, {Compression: "zlib", RefcountBits: 2, ExtendedL2: true},
	} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			var sum [2][32]byte
			var file string
			for i, procs := range []int{1, 4} {
				old := runtime.GOMAXPROCS(procs)
				defer runtime.GOMAXPROCS(old)
				file = filepath.Join(t.TempDir(), "out.qcow2")
				f, err := os.Create(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				w, err := Create(f, int64(len(model)), o)
				if err != nil {
					t.Fatal(err)
				}
				last := int64(-1)
				err = Copy(context.Background(), w, OpenRaw(fileSrc(t, in)), CopyOptions{Workers: procs, Progress: func(n int64) {
					if n < last {
						t.Errorf("progress %d after %d", n, last)
					}
					last = n
				}})
				if err != nil {
					t.Fatal(err)
				}
				if last != int64(len(model)) {
					t.Errorf("progress ends at %d", last)
				}
				if i == 0 {
					wantGood(t, rng, w, file, model)
				} else if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				sum[i] = sha256.Sum256(b)
			}
			if sum[0] != sum[1] {
				t.Error("the file depends on the number of cores")
			}
			back := filepath.Join(t.TempDir(), "back.raw")
			f, err := os.Create(back)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(int64(len(model))); err != nil {
				t.Fatal(err)
			}
			if err := Copy(context.Background(), f, openFile(t, file), CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(back)
			if err != nil {
				t.Fatal(err)
			}
			if at := firstDiff(b, model); at >= 0 {
				t.Errorf("raw copy differs at %#x", at)
			}
		})
	}
}

// failing is a disk whose reads fail behind a point.
type failing struct {
	Source
	at int64
}

var errDisk = errors.New("disk failure")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.at {
		return 0, errDisk
	}
	return f.Source.ReadAt(p, off)
}

func TestCopyStops(t *testing.T) {
	disk := &memFile{b: bytes.Repeat([]byte("x"), 64<<20)}
	err := Copy(context.Background(), null{}, failing{disk, 20 << 20}, CopyOptions{})
	if !errors.Is(err, errDisk) {
		t.Errorf("failing source: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w, err := Create(new(memFile), disk.Size(), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	err = Copy(ctx, w, disk, CopyOptions{Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	w, err = Create(new(memFile), 1<<20, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Copy(context.Background(), w, disk, CopyOptions{}); err == nil {
		t.Error("a disk larger than the image was copied")
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, o := range []CreateOptions{
		{ClusterSize: 256}, {ClusterSize: 4 << 20}, {ClusterSize: 5000}, {ClusterSize: -1}, {RefcountBits: 3}, {RefcountBits: 128},
		{ExtendedL2: true, ClusterSize: 8192}, {Compression: "lz4"}, {Compression: "zlib", CompressionLevel: 10}, {Compression: "zstd", CompressionLevel: 23},
		{BackingFile: "x"}, {Backing: OpenRaw(new(memFile))}, {Backing: OpenRaw(new(memFile)), BackingFile: "x"},
		{Data: new(memFile)}, {DataFile: "x"}, {DataFileRaw: true}, {Data: new(memFile), DataFile: "x", Compression: "zlib"},
		{Data: new(memFile), DataFile: "x", DataFileRaw: true, Backing: OpenRaw(new(memFile)), BackingFile: "x", BackingFormat: "raw"},
		{Data: new(memFile), DataFile: string(make([]byte, 500)), ClusterSize: 512}, {Data: new(memFile), DataFile: string(make([]byte, 2000))},
		{Backing: OpenRaw(new(memFile)), BackingFile: string(make([]byte, 500)), BackingFormat: "raw", ClusterSize: 512},
	} {
		if _, err := Create(new(memFile), 1<<20, o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	for _, size := range []int64{-1, 1 << 62, 1<<62 + 1} {
		if _, err := Create(new(memFile), size, CreateOptions{}); err == nil {
			t.Errorf("size %d was accepted", size)
		}
	}
}
