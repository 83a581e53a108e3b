package storeseed

import (
	"archive/tar"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
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
