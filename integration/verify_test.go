package integration

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// hashedBytes reads every regular file below a folder through one SHA-256, one after the other, and counts them.
func hashedBytes(b *testing.B, dir string) (n int64, took time.Duration) {
	b.Helper()
	h, buf := sha256.New(), make([]byte, 1<<20)
	start := time.Now()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		k, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf)
		n += k
		return err
	})
	check(b, err)
	h.Sum(nil)
	return n, time.Since(start)
}

// BenchmarkVerify measures verify against the time that the hashing of the same bytes takes, with all of it in the
// page cache: every file of the store through the kernel's mount, by one goroutine with crypto/sha256 (the machine's
// SHA instructions), and by coreutils' sha256sum. It prints a Markdown table; a ratio is to the first of the two.
//
//	go test -run '^$' -bench Verify -benchtime 1x ./integration
func BenchmarkVerify(b *testing.B) {
	requires(b, "root", "qemu-img", "skopeo", "sha256sum", "mkfs.xfs")
	one := makeLoad(b, "one", 20_000, 600<<20)
	dir := tempDir(b)
	bin := productPath(b)
	bases := []struct{ name, disk string }{{"ext4", dir + "/ext4.raw"}, {"XFS", dir + "/xfs.raw"}}
	makeDisk(b, bases[0].disk, "gpt", rootPart(b, nil))
	makeDisk(b, bases[1].disk, "gpt", xfsPart(b, nil))
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.TabIndent)
	fmt.Fprintln(w, "| filesystem\t | file\t | MB\t | Go SHA-256 (s)\t | sha256sum (s)\t | verify (s)\t | CPU (s)\t | peak (MiB)\t | ratio\t | --deep (s)\t | ratio\t |")
	fmt.Fprintln(w, "| ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t |")
	for b.Loop() {
		for _, base := range bases {
			for _, format := range []string{"raw", "qcow2"} {
				out := dir + "/out." + format
				args := []string{"--base", base.disk, "--output", out, "--quiet"}
				for _, a := range one.archives {
					args = append(args, "--image", "oci-archive:"+a)
				}
				baked(b, args...)
				raw := rawOf(b, dir, out)
				mnt := mount(b, raw, 1, "ro")
				store := mnt + "/var/images"
				var hash, sum, plain, deep, ratios, deepRatios []float64
				var n, peak int64
				var cpus []float64
				for pair := range 6 {
					k, took := hashedBytes(b, store)
					n = k
					s := command(b, nil, "sh", "-c", "find "+store+" -type f -print0 | xargs -0 sha256sum > /dev/null")
					v := measured(b, bin, "verify", "-q", out)
					d := measured(b, bin, "verify", "-q", "--deep", out)
					if v.code != 0 || d.code != 0 || s.code != 0 {
						b.Fatalf("%s\n%s\n%s", v, d, s)
					}
					if pair == 0 {
						continue // the cache is warm from here on
					}
					hash, sum = append(hash, took.Seconds()), append(sum, s.took.Seconds())
					plain, deep = append(plain, v.took.Seconds()), append(deep, d.took.Seconds())
					cpus = append(cpus, cpu(v))
					ratios, deepRatios = append(ratios, v.took.Seconds()/took.Seconds()), append(deepRatios, d.took.Seconds()/took.Seconds())
					peak = max(peak, v.usage.Maxrss>>10, d.usage.Maxrss>>10)
				}
				unmount(b, mnt)
				fmt.Fprintf(w, "| %s\t | %s\t | %d\t | %.2f\t | %.2f\t | %.2f\t | %.2f\t | %d\t | %.2f\t | %.2f\t | %.2f\t |\n", base.name, format, n/1e6,
					median(hash), median(sum), median(plain), median(cpus), peak, median(ratios), median(deep), median(deepRatios))
				b.ReportMetric(median(ratios), strings.ToLower(base.name)+"-"+format+"-ratio")
				os.Remove(out)
				os.Remove(raw)
			}
		}
	}
	w.Flush()
	fmt.Printf("\n%s\n", &table)
}
