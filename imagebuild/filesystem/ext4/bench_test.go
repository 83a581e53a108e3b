package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pages is a device in memory over a read-only base, in pages that exist once written.
type pages struct {
	base io.ReaderAt
	m    map[int64][]byte
}

const pageSize = 1 << 20

func (d *pages) each(n int, off int64, do func(at int, page []byte)) {
	for at := 0; at < n; {
		k := (off + int64(at)) / pageSize
		in := int((off + int64(at)) % pageSize)
		l := min(n-at, pageSize-in)
		p := d.m[k]
		if p == nil {
			p = make([]byte, pageSize)
			d.base.ReadAt(p, k*pageSize)
			d.m[k] = p
		}
		do(at, p[in:in+l])
		at += l
	}
}

func (d *pages) ReadAt(p []byte, off int64) (int, error) {
	d.each(len(p), off, func(at int, page []byte) { copy(p[at:], page) })
	return len(p), nil
}

func (d *pages) WriteAt(p []byte, off int64) (int, error) {
	d.each(len(p), off, func(at int, page []byte) { copy(page, p[at:]) })
	return len(p), nil
}

func benchBase(b testing.TB, size string, args ...string) (*os.File, int64) {
	needTools(b, "mke2fs")
	img := filepath.Join(workDir(b), "img")
	mkfs(b, img, size, args...)
	return file(b, img)
}

// BenchmarkSmall adds 26,000 files of 4 KiB on average in 260 folders.
func BenchmarkSmall(b *testing.B) {
	dev, size := benchBase(b, "1G")
	data := content(1, 8192)
	d := &pages{dev, map[int64][]byte{}}
	round := func() {
		w, err := OpenWriter(d, size, Options{Now: testNow})
		if err != nil {
			b.Fatal(err)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, ModTime: testNow}
		for i := range 260 {
			dir := fmt.Sprintf("d%d", i)
			if err := w.Add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
				b.Fatal(err)
			}
			for k := range 100 {
				h.Name = fmt.Sprintf("%s/some-file-name-%d", dir, k)
				h.Size = int64(k * 81)
				if err := w.Add(h, bytes.NewReader(data)); err != nil {
					b.Fatal(err)
				}
			}
		}
		// Not committed: every round starts from the same filesystem.
	}
	round() // the device's memory is there from now on
	cpu := cpuTime(b)
	for b.Loop() {
		round()
	}
	b.ReportMetric(26000*float64(b.N)/b.Elapsed().Seconds(), "files/s")
	b.ReportMetric((cpuTime(b)-cpu).Seconds()*1e9/26000/float64(b.N), "cpu-ns/file")
}

// cpuTime is what the process has used, which on a busy machine says more than the clock.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkLarge adds a file of 512 MiB.
func BenchmarkLarge(b *testing.B) {
	dev, size := benchBase(b, "1G")
	data := content(1, 1<<20)
	d := &pages{dev, map[int64][]byte{}}
	b.SetBytes(512 << 20)
	round := func() {
		w, err := OpenWriter(d, size, Options{Now: testNow})
		if err != nil {
			b.Fatal(err)
		}
		if err := w.Add(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Size: 512 << 20}, &repeat{data, 0}); err != nil {
			b.Fatal(err)
		}
	}
	round()
	cpu := cpuTime(b)
	for b.Loop() {
		round()
	}
	b.ReportMetric(512*float64(b.N)/(cpuTime(b)-cpu).Seconds(), "MiB/cpu-s")
}

type repeat struct {
	p  []byte
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.p[r.at:])
	r.at = (r.at + n) % len(r.p)
	return n, nil
}

// BenchmarkRead reads that file.
func BenchmarkRead(b *testing.B) {
	dev, size := benchBase(b, "1G")
	d := &pages{dev, map[int64][]byte{}}
	w, err := OpenWriter(d, size, Options{Now: testNow})
	if err != nil {
		b.Fatal(err)
	}
	if err := w.Add(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Size: 256 << 20}, &repeat{content(1, 1<<20), 0}); err != nil {
		b.Fatal(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		b.Fatal(err)
	}
	f, err := Open(d, size)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(256 << 20)
	for b.Loop() {
		r, err := f.Open("large")
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestMillion adds 1,000,000 files in 1,000 folders and reports the largest heap. NODEBAKE_SOAK=1 only.
func TestMillion(t *testing.T) {
	if os.Getenv("NODEBAKE_SOAK") == "" {
		t.Skip("NODEBAKE_SOAK is not set")
	}
	dev, size := benchBase(t, "16G", "-i", "8192")
	for _, count := range []bool{true, false} {
		runtime.GC()
		debug.SetGCPercent(20)
		var peak atomic.Uint64
		stop := make(chan struct{})
		go func() {
			for {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak.Store(max(peak.Load(), m.HeapAlloc))
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		}()
		start := time.Now()
		w, err := OpenWriter(dev, size, Options{Now: testNow, CountOnly: count})
		if err != nil {
			t.Fatal(err)
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, ModTime: testNow, Size: 100}
		data := content(1, 100)
		for i := range 1000 {
			dir := fmt.Sprintf("d%d", i)
			if err := w.Add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
				t.Fatal(err)
			}
			for k := range 1000 {
				h.Name = fmt.Sprintf("%s/some-file-name-%d", dir, k)
				if err := w.Add(h, bytes.NewReader(data)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := w.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		close(stop)
		debug.SetGCPercent(100)
		t.Logf("count %v: %v, heap at most %d MiB, %+v", count, time.Since(start).Round(time.Millisecond), peak.Load()>>20, w.Space())
	}
	fsck(t, dev.Name())
}
