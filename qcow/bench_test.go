package qcow

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"
)

func BenchmarkInflate(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, kind := range []string{"text", "mixed"} {
		var data []byte
		if kind == "text" {
			words := bytes.Fields([]byte("the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were we when your can said there use an each which she do how their if will up other about out many then them these so some her would make like him into time has look two more write go see number no way could people my than first water been call who oil its now find long down day did get come made may part"))
			for len(data) < 65536 {
				data = append(append(data, words[rng.IntN(len(words))]...), ' ')
			}
			data = data[:65536]
		} else {
			data = contents(rng, 65536)
		}
		var z bytes.Buffer
		w, _ := flate.NewWriter(&z, 6)
		w.Write(data)
		w.Close()
		dst := make([]byte, len(data))
		b.Run(kind+"/ours", func(b *testing.B) {
			b.SetBytes(65536)
			for b.Loop() {
				if err := inflate(dst, z.Bytes()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(kind+"/klauspost", func(b *testing.B) {
			b.SetBytes(65536)
			r := flate.NewReader(nil)
			for b.Loop() {
				r.(flate.Resetter).Reset(bytes.NewReader(z.Bytes()), nil)
				if _, err := io.ReadFull(r, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchDisk makes a raw disk of which the first half is this machine's own files. NODEBAKE_BENCH_MB is its size.
func benchDisk(b *testing.B) (file string, size int64) {
	b.Helper()
	needTool(b, "qemu-img", "tar")
	mb := 512
	if s := os.Getenv("NODEBAKE_BENCH_MB"); s != "" {
		var err error
		if mb, err = strconv.Atoi(s); err != nil {
			b.Fatal(err)
		}
	}
	size = int64(mb) << 20
	file = filepath.Join(os.TempDir(), fmt.Sprintf("nodebake-bench-%d.raw", mb))
	if st, err := os.Stat(file); err == nil && st.Size() == size {
		return file, size
	}
	f, err := os.Create(file + ".part")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	tar := exec.Command("tar", "-C", "/", "-cf", "-", "usr/lib", "usr/bin", "usr/share")
	out, err := tar.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := tar.Start(); err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(f, out, size/2); err != nil {
		b.Fatal(err)
	}
	tar.Process.Kill()
	tar.Wait()
	if err := f.Truncate(size); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(file+".part", file); err != nil {
		b.Fatal(err)
	}
	return file, size
}

type null struct{}

func (null) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// versus alternates our work with qemu-img's and reports the medians of how many times slower qemu-img is, by the clock and in CPU time, and the
// most memory that this process has had.
func versus(b *testing.B, ours func(), theirs ...string) {
	var wall time.Duration
	var walls, cpus []float64
	for range b.N {
		t, c := time.Now(), cpu()
		ours()
		w, u := time.Since(t), cpu()-c
		wall += w
		cmd := exec.Command("qemu-img", theirs...)
		t = time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("qemu-img %q: %v\n%s", theirs, err, out)
		}
		walls = append(walls, float64(time.Since(t))/float64(w))
		cpus = append(cpus, float64(cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())/float64(u))
	}
	slices.Sort(walls)
	slices.Sort(cpus)
	b.ReportMetric(walls[len(walls)/2], "qemu/ours")
	b.ReportMetric(cpus[len(cpus)/2], "qemu/ours-cpu")
	b.ReportMetric(wall.Seconds()/float64(b.N), "s/ours")
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	b.ReportMetric(float64(u.Maxrss)/1024, "MiB-peak")
	b.ReportMetric(0, "ns/op")
}

var benchForms = []struct {
	name string
	args []string
	o    CreateOptions
}{
	{"plain", nil, CreateOptions{}},
	{"zlib", []string{"-c"}, CreateOptions{Compression: "zlib"}},
	{"zstd", []string{"-c", "-o", "compression_type=zstd"}, CreateOptions{Compression: "zstd"}},
}

func BenchmarkRead(b *testing.B) {
	raw, size := benchDisk(b)
	for _, f := range benchForms {
		b.Run(f.name, func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "a.qcow2")
			run(b, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, f.args...), raw, file)...)
			im := openFile(b, file)
			versus(b, func() {
				if err := Copy(context.Background(), null{}, im, CopyOptions{}); err != nil {
					b.Fatal(err)
				}
			}, "convert", "-n", "--image-opts", "--target-image-opts", "driver=qcow2,file.filename="+file, fmt.Sprintf("driver=null-co,size=%d", size))
		})
	}
}

func BenchmarkWrite(b *testing.B) {
	raw, size := benchDisk(b)
	for _, f := range benchForms {
		b.Run(f.name, func(b *testing.B) {
			ours, theirs := filepath.Join(b.TempDir(), "a.qcow2"), filepath.Join(b.TempDir(), "b.qcow2")
			versus(b, func() {
				fh, err := os.Create(ours)
				if err != nil {
					b.Fatal(err)
				}
				defer fh.Close()
				w, err := Create(fh, size, f.o)
				if err != nil {
					b.Fatal(err)
				}
				if err := Copy(context.Background(), w, fileSrc(b, raw), CopyOptions{}); err != nil {
					b.Fatal(err)
				}
				if err := w.Close(); err != nil {
					b.Fatal(err)
				}
			}, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, f.args...), raw, theirs)...)
			a, err := os.Stat(ours)
			if err != nil {
				b.Fatal(err)
			}
			q, err := os.Stat(theirs)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(a.Size())/float64(q.Size()), "size/qemu")
		})
	}
}

func BenchmarkDeflate(b *testing.B) { benchLevels(b, 9, deflate) }

func BenchmarkZstd(b *testing.B) { benchLevels(b, 22, zstdCompress) }

func benchLevels(b *testing.B, levels int, compress func(dst, src []byte, level int) []byte) {
	raw, size := benchDisk(b)
	f, err := os.Open(raw)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, 16<<20)
	step := size / 2 / int64(len(data)>>16) &^ 65535
	for at := 0; at < len(data); at += 65536 {
		if _, err := f.ReadAt(data[at:at+65536], int64(at>>16)*step); err != nil {
			b.Fatal(err)
		}
	}
	for level := 1; level <= levels; level++ {
		b.Run(fmt.Sprint(level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			var out []byte
			n, used := 0, cpu()
			for b.Loop() {
				n = 0
				for at := 0; at < len(data); at += 65536 {
					out = compress(out[:0], data[at:at+65536], level)
					n += min(len(out), 65536)
				}
			}
			b.ReportMetric(float64(n)/float64(len(data)), "ratio")
			b.ReportMetric(float64(len(data))/(1<<20)*float64(b.N)/(cpu()-used).Seconds(), "MiB/s-cpu")
		})
	}
}
