package xfs

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// peak samples the heap until stop is called, and returns the greatest size in MiB.
func peak() (stop func() float64) {
	done, out := make(chan bool), make(chan float64)
	runtime.GC()
	go func() {
		var top uint64
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-done:
				out <- float64(top) / (1 << 20)
				return
			case <-tick.C:
			}
		}
	}()
	return func() float64 { done <- true; return <-out }
}

// bakeFiles writes n files of size bytes in folders of 100, labelled as a container store's are, and some large ones.
func bakeFiles(b *testing.B, w *Writer, n int, size int64, large int, largeSize int64) int64 {
	var total int64
	add := func(h *tar.Header, r io.Reader) {
		h.PAXRecords = map[string]string{xattrPrefix + "security.selinux": "system_u:object_r:container_ro_file_t:s0\x00"}
		if err := w.Add(h, r); err != nil {
			b.Fatal(err)
		}
		total += h.Size
	}
	add(&tar.Header{Name: "store", Typeflag: tar.TypeDir, Mode: 0755}, nil)
	dir := ""
	for i := 0; i < n; i++ {
		if i%100 == 0 {
			dir = fmt.Sprintf("store/%d", i/100)
			add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0755}, nil)
		}
		s := size/2 + int64(i)*7919%(size+1)
		add(file(fmt.Sprintf("%s/some-file-name-%d.py", dir, i), s), &pattern{s})
	}
	for i := 0; i < large; i++ {
		add(file(fmt.Sprintf("store/large-%d", i), largeSize), &pattern{largeSize})
	}
	return total
}

func benchmark(b *testing.B, n int, size int64, large int, largeSize int64, count bool) {
	needRepair(b)
	base := mkfs(b, 15<<30)
	for i := 0; i < b.N; i++ {
		b.StopTimer()
		f, err := os.OpenFile(base, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		cp := base + ".copy"
		run(b, "cp", "--sparse=always", base, cp)
		f.Close()
		if f, err = os.OpenFile(cp, os.O_RDWR, 0); err != nil {
			b.Fatal(err)
		}
		stop := peak()
		b.StartTimer()
		w, err := OpenWriter(f, 15<<30, Options{Now: now, CountOnly: count})
		if err != nil {
			b.Fatal(err)
		}
		total := bakeFiles(b, w, n, size, large, largeSize)
		if err := w.Commit(context.Background()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		b.ReportMetric(stop(), "MiB-heap")
		b.SetBytes(total)
		if !count && i == 0 {
			repairClean(b, cp)
		}
		f.Close()
		os.Remove(cp)
	}
}

func BenchmarkBake(b *testing.B) {
	b.Run("26k-files-600MB", func(b *testing.B) { benchmark(b, 26000, 15<<10, 4, 50<<20, false) })
	b.Run("20k-files", func(b *testing.B) { benchmark(b, 20000, 4<<10, 0, 0, false) })
	b.Run("100k-files", func(b *testing.B) { benchmark(b, 100000, 4<<10, 0, 0, false) })
	b.Run("1GB", func(b *testing.B) { benchmark(b, 0, 0, 1, 1<<30, false) })
	b.Run("8GB", func(b *testing.B) { benchmark(b, 0, 0, 1, 8<<30, false) })
	b.Run("count-100k-files", func(b *testing.B) { benchmark(b, 100000, 4<<10, 0, 0, true) })
}

func BenchmarkOpen(b *testing.B) {
	needRepair(b)
	base := mkfs(b, 15<<30)
	f, size := openImage(b, base)
	for i := 0; i < b.N; i++ {
		w, err := OpenWriter(f, size, Options{Now: now})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := w.Stat("/"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	needRepair(b)
	img := mkfs(b, 15<<30)
	w := openWriter(b, img)
	bakeFiles(b, w, 100000, 4<<10, 0, 0)
	commit(b, w)
	f := openReader(b, img)
	stop := peak()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		if err := f.Check(context.Background(), func(err error) { b.Error(err) }); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(stop(), "MiB-heap")
}

// BenchmarkGrow is growth alone, of an empty filesystem. The second has the smallest groups that the format allows.
func BenchmarkGrow(b *testing.B) {
	needRepair(b)
	for _, c := range []struct {
		name, args string
		from, to   int64
	}{{"3GiB-20GiB", "-m rmapbt=1", 3 << 30, 20 << 30}, {"320MiB-2TiB", "--unsupported -d agcount=18 -l size=13m -m rmapbt=1", 320 << 20, 2 << 40}} {
		b.Run(c.name, func(b *testing.B) {
			for i := 0; i < b.N; i++ {
				b.StopTimer()
				img := mkfs(b, c.from, strings.Fields(c.args)...)
				stop := peak()
				b.StartTimer()
				n := growImage(b, img, c.to)
				b.StopTimer()
				b.ReportMetric(stop(), "MiB-heap")
				b.ReportMetric(float64(n)/1e6, "MB-written")
				os.Remove(img)
			}
		})
	}
}
