package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// usrLayer is a layer of this machine's /usr, up to about limit bytes.
func usrLayer(b *testing.B, limit int64) []byte {
	var es []entry
	var n int64
	err := filepath.WalkDir("/usr", func(p string, d fs.DirEntry, err error) error {
		if err != nil || n > limit {
			return fs.SkipAll
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&fs.ModeSymlink != 0 {
			link, _ = os.Readlink(p)
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil || (h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir && h.Typeflag != tar.TypeSymlink) || h.Size > 64<<20 {
			return nil
		}
		h.Name, h.Format = p[1:], tar.FormatPAX
		e := entry{Header: *h}
		if h.Typeflag == tar.TypeReg {
			data, err := os.ReadFile(p)
			if err != nil {
				return nil
			}
			e.data = string(data)
		}
		n += h.Size
		es = append(es, e)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("%d entries, %d MB", len(es), n>>20)
	return layerTar(b, es...)
}

// BenchmarkPull pairs a pull into a folder with `podman load` of the same archive.
func BenchmarkPull(b *testing.B) {
	needs(b, "podman")
	dir := scratch(b)
	im := buildImage(b, imageSpec{}, usrLayer(b, 600<<20))
	size := int64(len(im.tars[0]))
	arch := ociArchive(b, ociLayout(b, filepath.Join(dir, "usr"), []string{"r.example/usr:1"}, im))
	im = nil
	var ours, theirs time.Duration
	b.SetBytes(size)
	for i := range b.N {
		work := scratch(b)
		start := time.Now()
		cpu := cpuTime(syscall.RUSAGE_SELF)
		pullInto(b, work, "oci-archive:"+arch)
		ours += time.Since(start)
		if i == 0 {
			b.ReportMetric((cpuTime(syscall.RUSAGE_SELF) - cpu).Seconds(), "cpu-s")
		}
		eng := newEngine(b, work, "graph", "")
		start = time.Now()
		cpu = cpuTime(syscall.RUSAGE_CHILDREN)
		eng.run("podman", "load", "-q", "-i", arch)
		theirs += time.Since(start)
		if i == 0 {
			b.ReportMetric((cpuTime(syscall.RUSAGE_CHILDREN) - cpu).Seconds(), "podman-cpu-s")
		}
		os.RemoveAll(work)
	}
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "x-podman")
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/pull")
}

func cpuTime(who int) time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(who, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// layersOf deals the entries of a tar out to n layers, each as hard to fetch and to write as the others.
func layersOf(b *testing.B, data []byte, n int) [][]byte {
	b.Helper()
	parts := make([][]entry, n)
	tr := tar.NewReader(bytes.NewReader(data))
	for at := 0; ; at++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			b.Fatal(err)
		}
		parts[at%n] = append(parts[at%n], entry{*h, string(content)})
	}
	var out [][]byte
	for _, p := range parts {
		out = append(out, layerTar(b, p...))
	}
	return out
}

// BenchmarkOverlap pulls from a registry that is as slow as the writing, so that with both in turn it would take
// twice the time: x-larger is the wall time over the larger of the two alone.
func BenchmarkOverlap(b *testing.B) {
	needs(b)
	images := make([]*testImage, 2)
	all := layersOf(b, usrLayer(b, 500<<20), 12)
	images[0], images[1] = buildImage(b, imageSpec{}, all[:6]...), buildImage(b, imageSpec{}, all[6:]...)
	dir := scratch(b)
	var local []string
	var wire int64
	for i, im := range images {
		local = append(local, "oci:"+ociLayout(b, filepath.Join(dir, fmt.Sprint("lay", i)), []string{fmt.Sprintf("r.example/x%d:1", i)}, im))
		for _, l := range im.layers {
			wire += int64(len(im.blobs[l]))
		}
		im.tars = nil
	}
	all = nil
	for _, cached := range []bool{false, true} {
		b.Run(fmt.Sprintf("cache=%v", cached), func(b *testing.B) {
			var ratio, net, write, both, cpuWrite, cpuNet, cpuBoth time.Duration
			for range b.N {
				work := scratch(b)
				start, cpu := time.Now(), cpuTime(syscall.RUSAGE_SELF)
				pullInto(b, work, local...)
				w := time.Since(start)
				cpuWrite += cpuTime(syscall.RUSAGE_SELF) - cpu
				os.RemoveAll(work)

				reg := newBadRegistry(b)
				var refs []string
				for i, im := range images {
					refs = append(refs, reg.push(fmt.Sprintf("x%d:1", i), im))
				}
				reg.rate = int64(float64(wire) / w.Seconds())
				start, cpu = time.Now(), cpuTime(syscall.RUSAGE_SELF)
				sys := testSystem(b)
				for i, ref := range refs {
					r, _, err := ParseReference(sys, ref)
					if err != nil {
						b.Fatal(err)
					}
					im, err := Open(context.Background(), PullOptions{Source: Source{Ref: r, System: sys}, Platform: Platform{"linux", "amd64", ""}})
					if err != nil {
						b.Fatal(err)
					}
					for n := range images[i].layers {
						s := newBlobStream(context.Background(), im.registry(), im.p.layers[n], 0)
						if _, err := io.Copy(io.Discard, s); err != nil {
							b.Fatal(err)
						}
						s.Close()
					}
					im.Close()
				}
				n := time.Since(start)
				cpuNet += cpuTime(syscall.RUSAGE_SELF) - cpu

				work = scratch(b)
				d, err := Dir(work)
				if err != nil {
					b.Fatal(err)
				}
				s, err := OpenStore(d, Options{Root: "store"})
				if err != nil {
					b.Fatal(err)
				}
				a := ahead{}
				if cached {
					if a.cache, err = blobcache.Open(blobcache.Options{Dir: filepath.Join(work, "cache")}); err != nil {
						b.Fatal(err)
					}
				}
				p := &puller{t: b, s: s, sys: sys}
				start, cpu = time.Now(), cpuTime(syscall.RUSAGE_SELF)
				if _, err := a.into(p, refs...); err != nil {
					b.Fatal(err)
				}
				if err := s.Commit(context.Background()); err != nil {
					b.Fatal(err)
				}
				t := time.Since(start)
				cpuBoth += cpuTime(syscall.RUSAGE_SELF) - cpu
				if cached {
					a.cache.Close()
				}
				d.Close()
				os.RemoveAll(work)
				reg.Close()
				write, net, both, ratio = write+w, net+n, both+t, ratio+time.Duration(float64(t)/float64(max(w, n))*1e9)
			}
			b.ReportMetric(write.Seconds()/float64(b.N), "s-write")
			b.ReportMetric(net.Seconds()/float64(b.N), "s-net")
			b.ReportMetric(both.Seconds()/float64(b.N), "s-both")
			b.ReportMetric(ratio.Seconds()/float64(b.N), "x-larger")
			b.ReportMetric(cpuWrite.Seconds()/float64(b.N), "cpu-write")
			b.ReportMetric(cpuNet.Seconds()/float64(b.N), "cpu-net")
			b.ReportMetric(cpuBoth.Seconds()/float64(b.N), "cpu-both")
		})
	}
}

// slowFS takes large files at a rate, and does not keep them.
type slowFS struct {
	*memFS
	rate int64 // bytes a second
	next time.Time
}

func (s *slowFS) Add(h *tar.Header, r io.Reader) error {
	if h.Size < 1<<20 {
		return s.memFS.Add(h, r)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if early := time.Now().Add(-250 * time.Millisecond); s.next.Before(early) {
			s.next = early
		}
		s.next = s.next.Add(time.Duration(n) * time.Second / time.Duration(s.rate))
		time.Sleep(time.Until(s.next))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// BenchmarkPace is BenchmarkOverlap with a filesystem and a registry that are slow by the clock alone, so that a
// busy machine matters little: x-larger is what the order of fetching costs.
func BenchmarkPace(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 0))
	const rate = 16 << 20
	var layers [][]byte
	for i := range 24 {
		layers = append(layers, layerTar(b, fileE(fmt.Sprint("f", i), noise(r, 5<<20))))
	}
	im := buildImage(b, imageSpec{compress: "none"}, layers...)
	lay := "oci:" + ociLayout(b, b.TempDir(), []string{"r.example/x:1"}, im)
	pull := func(fsRate, netRate, connRate int64, parallel int, local bool) time.Duration {
		reg := newBadRegistry(b)
		defer reg.Close()
		ref := reg.push("x:1", im)
		if local {
			ref = lay
		}
		reg.rate, reg.connRate = netRate, connRate
		s, err := OpenStore(&slowFS{memFS: newMemFS(), rate: fsRate}, Options{Root: "store"})
		if err != nil {
			b.Fatal(err)
		}
		p := &puller{t: b, s: s, sys: testSystem(b)}
		start := time.Now()
		if _, err := (ahead{PrefetchOptions: PrefetchOptions{Parallel: parallel}}).into(p, ref); err != nil {
			b.Fatal(err)
		}
		return time.Since(start)
	}
	for _, parallel := range []int{1, 2, 6, 12} {
		b.Run(fmt.Sprintf("parallel=%d", parallel), func(b *testing.B) {
			var write, net, both time.Duration
			for range b.N {
				write += pull(rate, 0, 0, parallel, true)
				net += pull(1<<40, rate, 0, parallel, false)
				both += pull(rate, rate, 0, parallel, false)
			}
			b.ReportMetric(write.Seconds()/float64(b.N), "s-write")
			b.ReportMetric(net.Seconds()/float64(b.N), "s-net")
			b.ReportMetric(both.Seconds()/float64(b.N), "s-both")
			b.ReportMetric(both.Seconds()/max(write, net).Seconds(), "x-larger")
		})
	} // Six connections that have a sixth of the speed each; the larger alone is then the one with all six at once.
	b.Run("connections", func(b *testing.B) {
		for range b.N {
			pull(rate, 0, rate/6, 6, false)
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s-both")
	})
}
