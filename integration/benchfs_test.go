package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"text/tabwriter"
)

// BenchmarkFilesystems bakes the same images into an ext4 root and an XFS root, in turn, and then five times the
// files and eight times the bytes. It also times inspect on the XFS disk. It prints a Markdown table.
//
//	go test -run '^$' -bench Filesystems -benchtime 1x ./integration
func BenchmarkFilesystems(b *testing.B) {
	requires(b, "root", "qemu-img", "mkfs.ext4", "mkfs.xfs", "skopeo")
	const pairs = 3
	bin, dir := productPath(b), tempDir(b)
	bases := map[string]string{}
	for kind, mkfs := range map[string][]string{"ext4": {"mkfs.ext4", "-q", "-F", "-N", "500000"}, "xfs": {"mkfs.xfs", "-q"}} {
		raw, base := filepath.Join(dir, kind+".raw"), filepath.Join(dir, kind+".qcow2")
		check(b, os.WriteFile(raw, nil, 0o644))
		check(b, os.Truncate(raw, 24<<30))
		run(b, mkfs[0], append(mkfs[1:], raw)...)
		mnt := filepath.Join(dir, "mnt")
		check(b, os.MkdirAll(mnt, 0o755))
		run(b, "mount", "-o", "loop", raw, mnt)
		check(b, os.MkdirAll(mnt+"/etc", 0o755))
		check(b, os.WriteFile(mnt+"/etc/os-release", []byte(osRelease), 0o644))
		run(b, "umount", mnt)
		run(b, "qemu-img", "convert", "-O", "qcow2", "-c", raw, base)
		check(b, os.Remove(raw))
		bases[kind] = base
	}
	one := makeLoad(b, "one", 20_000, 600<<20)
	many := makeLoad(b, "many", 100_000, 100_000*smallFile+100<<20)
	few := makeLoad(b, "few", 20_000, 20_000*smallFile+100<<20)
	out := filepath.Join(dir, "out.qcow2")
	bake := func(kind string, archives []string) outcome {
		os.Remove(out)
		run(b, "sync")
		args := []string{"build", "--base", bases[kind], "--output", out, "--quiet", "--checksum=false", "--platform", "linux/amd64"}
		for _, a := range archives {
			args = append(args, "--image", a)
		}
		o := measured(b, bin, args...)
		if o.code != 0 {
			b.Fatalf("%s", o)
		}
		return o
	}
	archives := func(l load) (refs []string) {
		for _, a := range l.archives {
			refs = append(refs, "oci-archive:"+a)
		}
		return refs
	}
	gib := gibibytes(b, 8)
	for b.Loop() {
		var table bytes.Buffer
		w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.TabIndent)
		fmt.Fprintln(w, "| pair\t | ext4 (s)\t | CPU (s)\t | XFS (s)\t | CPU (s)\t | peak (MiB)\t | XFS/ext4, wall\t | CPU |")
		fmt.Fprintln(w, "| ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | --- |")
		var wall, used []float64
		for pair := range pairs {
			kinds := []string{"ext4", "xfs"}
			if pair%2 == 1 {
				kinds = []string{"xfs", "ext4"}
			}
			got := map[string]outcome{}
			for _, k := range kinds {
				got[k] = bake(k, archives(one))
			}
			e, x := got["ext4"], got["xfs"]
			wall, used = append(wall, x.took.Seconds()/e.took.Seconds()), append(used, cpu(x)/cpu(e))
			fmt.Fprintf(w, "| %d\t | %.2f\t | %.2f\t | %.2f\t | %.2f\t | %d\t | %.2f\t | %.2f |\n", pair+1, e.took.Seconds(), cpu(e),
				x.took.Seconds(), cpu(x), x.usage.Maxrss>>10, wall[pair], used[pair])
		}
		fmt.Fprintf(w, "| median\t | \t | \t | \t | \t | \t | %.2f\t | %.2f |\n\n", median(wall), median(used))
		fmt.Fprintln(w, "| load on XFS\t | wall (s)\t | CPU (s)\t | peak (MiB) |\n| ---\t | ---\t | ---\t | --- |")
		for _, l := range []struct {
			name     string
			archives []string
		}{{"20,000 files", archives(few)}, {"100,000 files", archives(many)}, {"1 GiB", gib[:1]}, {"8 GiB", gib}} {
			o := bake("xfs", l.archives)
			fmt.Fprintf(w, "| %s\t | %.2f\t | %.2f\t | %d |\n", l.name, o.took.Seconds(), cpu(o), o.usage.Maxrss>>10)
		}
		o := measured(b, bin, "inspect", out)
		fmt.Fprintf(w, "| inspect of the last\t | %.3f\t | %.3f\t | %d |\n", o.took.Seconds(), cpu(o), o.usage.Maxrss>>10)
		w.Flush()
		fmt.Printf("\n%d MB of images in %d files and more, onto 24 GiB filesystems:\n\n%s\n", one.bytes/1e6, one.files, &table)
		b.ReportMetric(median(wall), "xfs/ext4")
	}
}

// gibibytes makes n images of one layer with large files, 1 GiB each, none like another.
func gibibytes(b *testing.B, n int) (refs []string) {
	b.Helper()
	for i := range n {
		dir, err := cached(fmt.Sprintf("bench-gib%d", i), [][]byte{benchRecipe, imagesRecipe}, func(dir string) error {
			l := benchLayer(fmt.Sprintf("g%d", i), int64(100+i), 0, 1<<30)
			l.compression = "zstd"
			return writeLayout(filepath.Join(dir, "layout"), fmt.Sprintf("localhost/bench/gib%d:1", i), "amd64", l)
		})
		check(b, err)
		refs = append(refs, fmt.Sprintf("oci:%s:localhost/bench/gib%d:1", filepath.Join(dir, "layout"), i))
	}
	return refs
}
