package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"
)

// BenchmarkBake bakes about 600 MB of images into a Debian disk, in turn with nodebake and by hand (see bakeByHand),
// and then as many files again, and as many bytes again. It prints a Markdown table.
//
//	go test -run '^$' -bench Bake -benchtime 1x ./integration
func BenchmarkBake(b *testing.B) {
	requires(b, "root", "qemu-img", "podman", "skopeo")
	pairs := 3
	if s := os.Getenv("NODEBAKE_BENCH_PAIRS"); s != "" {
		var err error
		pairs, err = strconv.Atoi(s)
		check(b, err)
	}
	base := debian(b)
	const files, size = 20_000, 600 << 20
	one := makeLoad(b, "one", files, size)
	more := []load{makeLoad(b, "files", 2*files, size+files*smallFile), makeLoad(b, "bytes", files, 2*size)}
	dir := tempDir(b)
	bin := productPath(b)
	out := dir + "/out.qcow2"
	var peak int64
	ours := func(l load) outcome {
		os.Remove(out)
		run(b, "sync")
		args := []string{"build", "--base", base.disk, "--output", out, "--quiet", "--checksum=false"}
		for _, a := range l.archives {
			args = append(args, "--image", "oci-archive:"+a)
		}
		o := measured(b, bin, args...)
		if o.code != 0 {
			b.Fatalf("%s", o)
		}
		peak = max(peak, o.usage.Maxrss>>10)
		return o
	}
	byHand := func(l load) (took time.Duration, cpuSeconds float64) {
		os.Remove(out)
		run(b, "sync")
		before, start := children(b), time.Now()
		bakeByHand(b, base.disk, nodeRoot, out, l.archives...)
		return time.Since(start), children(b) - before
	}
	for b.Loop() {
		var table bytes.Buffer
		w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.TabIndent)
		row := func(cells ...any) {
			s := make([]string, len(cells))
			for i, c := range cells {
				if f, ok := c.(float64); ok {
					c = fmt.Sprintf("%.2f", f)
				}
				s[i] = fmt.Sprint(c)
			}
			fmt.Fprintf(w, "| %s |\n", strings.Join(s, "\t | "))
		}
		row("pair", "nodebake (s)", "CPU (s)", "peak (MiB)", "by hand (s)", "CPU (s)", "ratio")
		row("---", "---", "---", "---", "---", "---", "---")
		var ratios, times []float64
		for pair := range pairs {
			var o outcome
			var hand time.Duration
			var handCPU float64
			// Each goes first in turn, so that neither has the warmer cache.
			if pair%2 == 0 {
				o = ours(one)
				if pair == 0 {
					if v := command(b, nil, bin, "verify", out); v.code != 0 {
						b.Fatalf("%s", v)
					}
				}
				hand, handCPU = byHand(one)
			} else {
				hand, handCPU = byHand(one)
				o = ours(one)
			}
			ratios, times = append(ratios, hand.Seconds()/o.took.Seconds()), append(times, o.took.Seconds())
			row(pair+1, o.took.Seconds(), cpu(o), o.usage.Maxrss>>10, hand.Seconds(), handCPU, ratios[pair])
		}
		row("median", median(times), "", "", "", "", median(ratios))
		fmt.Fprintln(w)
		row("load", "small files", "MB", "nodebake (s)", "CPU (s)", "peak (MiB)", "CPU a load of one")
		row("---", "---", "---", "---", "---", "---", "---")
		first := 0.0
		for _, l := range append([]load{one}, more...) {
			// The least of three: what is left is the work itself.
			best := ours(l)
			for range 2 {
				if o := ours(l); cpu(o) < cpu(best) {
					best = o
				}
			}
			if first == 0 {
				first = cpu(best)
			}
			row(l.name, l.files, l.bytes/1e6, best.took.Seconds(), cpu(best), best.usage.Maxrss>>10, cpu(best)/first)
		}
		w.Flush()
		fmt.Printf("\n%d MB of images in %d files and more, onto %s, %d cores:\n\n%s\n", one.bytes/1e6, one.files, filepath.Base(base.disk), runtime.NumCPU(), &table)
		b.ReportMetric(median(ratios), "times-faster")
		b.ReportMetric(float64(peak), "peak-MiB")
	}
}

func cpu(o outcome) float64 {
	return time.Duration(o.usage.Utime.Nano() + o.usage.Stime.Nano()).Seconds()
}

// children is the CPU time of all programs that were run and have ended.
func children(b *testing.B) float64 {
	var u syscall.Rusage
	check(b, syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u))
	return cpu(outcome{usage: &u})
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
