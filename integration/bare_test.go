package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/qcow"
)

// loopDevice gives a loop device of a file.
func loopDevice(t testing.TB, file string, options ...string) string {
	t.Helper()
	dev := strings.TrimSpace(run(t, "losetup", append(append([]string{"-f", "--show"}, options...), file)...))
	mine := new(int)
	attached.Store(dev, mine)
	t.Cleanup(func() {
		if attached.CompareAndDelete(dev, mine) {
			command(t, nil, "losetup", "-d", dev)
		}
	})
	return dev
}

// compressedDisk is a small disk as qcow2, opened, and as qemu-img's raw.
func compressedDisk(t testing.TB) (src qcow.Source, raw string) {
	t.Helper()
	dir := tempDir(t)
	smallDisk(t, dir+"/base.raw", nil)
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", dir+"/base.raw", dir+"/disk.qcow2")
	run(t, "qemu-img", "convert", "-O", "raw", dir+"/disk.qcow2", dir+"/disk.raw")
	f, err := os.Open(dir + "/disk.qcow2")
	check(t, err)
	t.Cleanup(func() { f.Close() })
	fs, err := qcow.NewFileSource(f)
	check(t, err)
	image, err := qcow.Open(fs, qcow.Options{})
	check(t, err)
	return image, dir + "/disk.raw"
}

// oldContents makes a file with noise in it.
func oldContents(t testing.TB, file string, size int64) {
	t.Helper()
	noise := make([]byte, mib)
	r := rand.NewChaCha8([32]byte{1})
	f, err := os.Create(file)
	check(t, err)
	defer f.Close()
	for at := int64(0); at < size; at += mib {
		r.Read(noise)
		_, err := f.Write(noise[:min(mib, size-at)])
		check(t, err)
	}
}

// writeBare makes an output with its block map and sum, as the product will.
func writeBare(t testing.TB, name string, src qcow.Source) {
	t.Helper()
	kind, err := bare.ParseKind(name)
	check(t, err)
	f, err := os.Create(name)
	check(t, err)
	defer f.Close()
	var r bare.Result
	if kind == bare.Plain {
		check(t, f.Truncate(src.Size()))
		check(t, qcow.Copy(t.Context(), f, src, qcow.CopyOptions{}))
		file, err := qcow.NewFileSource(f)
		check(t, err)
		r, err = bare.Sum(t.Context(), file, bare.Options{Bmap: true})
		check(t, err)
	} else {
		r, err = bare.Compress(t.Context(), f, src, bare.Options{Kind: kind, Bmap: true})
		check(t, err)
	}
	check(t, os.WriteFile(bare.BmapName(name), r.Bmap.Bytes(), 0o644))
	check(t, os.WriteFile(bare.SumName(name), []byte(bare.SumLine(name, r.SHA256)), 0o644))
}

// TestBareFiles has bmaptool, and the kinds' own programs, take what is written.
func TestBareFiles(t *testing.T) {
	requires(t, "root", "bmaptool", "zstd", "pigz", "gzip", "xz", "sha256sum", "losetup", "cmp", "sgdisk")
	src, raw := compressedDisk(t)
	dir := tempDir(t)
	for name, plain := range map[string][]string{
		"node.raw":     {"cat"},
		"node.raw.zst": {"zstd", "-d", "-c"},
		"node.img.gz":  {"gzip", "-d", "-c"},
		"node.xz":      {"xz", "-d", "-c"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, name)
			writeBare(t, file, src)
			run(t, "sh", "-c", `cd "$1" && sha256sum -c --strict "$2"`, "sh", dir, filepath.Base(bare.SumName(file)))
			run(t, "sh", append([]string{"-c", `in=$1 same=$2; shift 2; "$@" "$in" | cmp - "$same"`, "sh", file, raw}, plain...)...)
			// It finds the map by itself, and refuses to go on without one.
			o := command(t, nil, "bmaptool", "copy", file, dir+"/copy.raw")
			if o.code != 0 || !strings.Contains(o.stderr, "discovered bmap file '"+bare.BmapName(file)+"'") {
				t.Fatalf("%s", o)
			}
			run(t, "cmp", raw, dir+"/copy.raw")
			check(t, os.Remove(dir+"/copy.raw"))
			dev := dir + "/dev.raw"
			check(t, os.WriteFile(dev, nil, 0o600))
			check(t, os.Truncate(dev, src.Size()))
			loop := loopDevice(t, dev)
			run(t, "bmaptool", "copy", file, loop)
			detach(t, loop)
			run(t, "cmp", raw, dev)
			run(t, "sgdisk", "-v", dev)
			check(t, os.Remove(dev))
		})
	}
	// bmaptool holds ranges against their sums, so that the above says that ours are right.
	file := filepath.Join(dir, "node.raw")
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte("other"), mib+100)
	check(t, err)
	if o := command(t, nil, "bmaptool", "copy", file, dir+"/copy.raw"); o.code == 0 || !strings.Contains(o.stderr, "checksum mismatch for blocks range") {
		t.Errorf("%s", o)
	}
	// Its own map of the plain file lists no more blocks than ours by more than what lies in a unit beside data.
	own := run(t, "bmaptool", "create", raw)
	t.Logf("bmaptool maps %s blocks", between(own, "<MappedBlocksCount>", "</MappedBlocksCount>"))
	ours, err := os.ReadFile(bare.BmapName(file))
	check(t, err)
	t.Logf("we map %s blocks", between(string(ours), "<MappedBlocksCount>", "</MappedBlocksCount>"))
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, "\n    "+from)
	s, _, _ = strings.Cut(s, to)
	return strings.TrimSpace(s)
}

// TestBareDevice writes over old contents.
func TestBareDevice(t *testing.T) {
	requires(t, "root", "losetup", "sgdisk")
	src, raw := compressedDisk(t)
	image, err := os.ReadFile(raw)
	check(t, err)
	for _, c := range []struct {
		name    string
		size    int64
		options []string
	}{
		{"the same size", src.Size(), nil},
		{"larger", src.Size() + 77*mib + 512, nil},
		{"past the page cache", src.Size() + mib, []string{"--direct-io=on"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := tempDir(t) + "/disk"
			oldContents(t, file, c.size)
			// An old table at the device's end, and an old filesystem at its beginning.
			check(t, writeAt(file, c.size-512, []byte("EFI PART")))
			dev := loopDevice(t, file, c.options...)
			// Its path is a symbolic link, as in /dev/disk/by-id.
			link := tempDir(t) + "/by-id"
			check(t, os.Symlink(dev, link))
			_, err := bare.WriteDevice(t.Context(), link, src, bare.DeviceOptions{})
			if !errors.Is(err, bare.ErrForce) {
				t.Fatalf("without force: %v", err)
			}
			var done, total int64
			r, err := bare.WriteDevice(t.Context(), link, src, bare.DeviceOptions{Force: true, Progress: func(d, n int64) { done, total = d, n }})
			check(t, err)
			t.Logf("%+v", r)
			if done != total || total != 2*src.Size() {
				t.Errorf("progress ended at %d of %d", done, total)
			}
			if r.Written+r.Cleared != src.Size() || r.Size != c.size || r.SectorSize != 512 {
				t.Errorf("%+v", r)
			}
			if (len(r.Notes) > 0) != (c.size > src.Size()) {
				t.Errorf("notes: %q", r.Notes)
			}
			detach(t, dev)
			got, err := os.ReadFile(file)
			check(t, err)
			if !bytes.Equal(got[:len(image)], image) {
				t.Error("the device holds other contents")
			}
			// What lies behind stays, but for the last MiB.
			end := max(int64(len(image)), (c.size-mib)&^511)
			if bytes.IndexByte(got[end:], 'E') >= 0 && c.size > src.Size() || c.size > src.Size()+2*mib && bytes.Count(got[len(image):end], []byte{0}) > int(end-int64(len(image)))/100 {
				t.Error("the rest of the device is not as it should be")
			}
			if c.size == src.Size() {
				run(t, "sgdisk", "-v", file)
			}
		})
	}
}

func writeAt(file string, off int64, p []byte) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

// TestBareRefusals uses devices in every way that the kernel here permits, and asks for the sentence. None may be written
// to.
func TestBareRefusals(t *testing.T) {
	requires(t, "root", "losetup", "partx", "sfdisk", "mkfs.ext4", "mkswap", "swapon", "blockdev", "unshare")
	src, _ := compressedDisk(t)
	size := src.Size()
	// fresh is a loop device with two partitions that have nodes.
	fresh := func(t *testing.T, size int64, options ...string) string {
		file := tempDir(t) + "/old"
		check(t, os.WriteFile(file, nil, 0o600))
		check(t, os.Truncate(file, size))
		cmd := exec.Command("sfdisk", "-q", file)
		cmd.Stdin = strings.NewReader("label: gpt\nsize=16M\nsize=16M\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		dev := loopDevice(t, file, options...)
		if len(options) == 0 {
			run(t, "partx", "-a", dev)
			t.Cleanup(func() { command(t, nil, "partx", "-d", dev) })
		}
		return dev
	}
	for _, c := range []struct {
		name  string
		use   func(t *testing.T) (path string)
		is    error
		words []string
	}{
		{"a file", func(t *testing.T) string { return tempDir(t) }, bare.ErrNotDevice, []string{"but a folder"}},
		{"a character device", func(t *testing.T) string { return "/dev/zero" }, bare.ErrNotDevice, []string{"but a character device"}},
		{"nothing", func(t *testing.T) string { return "/dev/disk/by-id/no-such-disk" }, bare.ErrNotDevice, []string{"there is nothing of that name"}},
		{"an empty loop device", func(t *testing.T) string {
			file := tempDir(t) + "/old"
			check(t, os.WriteFile(file, nil, 0o600))
			return loopDevice(t, file)
		}, bare.ErrTooSmall, []string{"it has 0 bytes"}},
		{"too small", func(t *testing.T) string { return fresh(t, size-512) }, bare.ErrTooSmall,
			[]string{fmt.Sprintf("it has %d bytes, and the disk %d", size-512, size)}},
		{"mounted", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "partx", "-d", dev)
			run(t, "mkfs.ext4", "-q", "-F", dev)
			mounted(t, dev)
			return dev
		}, bare.ErrMounted, []string{"device is mounted: loop", " on ", "unmount it first"}},
		{"a partition mounted", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "mkfs.ext4", "-q", dev+"p2")
			mounted(t, dev+"p2")
			return dev
		}, bare.ErrMounted, []string{"device is mounted: loop", "p2 on "}},
		{"the partition that is mounted", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "mkfs.ext4", "-q", dev+"p2")
			mounted(t, dev+"p2")
			return dev + "p2"
		}, bare.ErrMounted, []string{"p2 on "}},
		{"mounted in a container", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "mkfs.ext4", "-q", dev+"p1")
			dir := tempDir(t)
			cmd := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", `mount "$1" "$2" && echo ready && read wait`, "sh", dev+"p1", dir)
			in, err := cmd.StdinPipe()
			check(t, err)
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			t.Cleanup(func() { in.Close(); cmd.Wait() })
			_, err = io.ReadFull(out, make([]byte, 6))
			check(t, err)
			return dev
		}, bare.ErrMounted, []string{"device is mounted: loop", "p1 on ", "as the process ", " sees it"}},
		{"swap", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "mkswap", "-q", dev+"p1")
			run(t, "swapon", dev+"p1")
			t.Cleanup(func() { command(t, nil, "swapoff", dev+"p1") })
			return dev
		}, bare.ErrInUse, []string{"p1 is swap space; swapoff frees it"}},
		{"shown by a loop device", func(t *testing.T) string {
			dev := fresh(t, size)
			loopDevice(t, dev+"p2")
			return dev
		}, bare.ErrInUse, []string{"p2 is what the loop device loop"}},
		{"opened by another", func(t *testing.T) string {
			dev := fresh(t, size)
			f, err := os.OpenFile(dev+"p1", os.O_RDONLY|unix.O_EXCL, 0)
			check(t, err)
			t.Cleanup(func() { f.Close() })
			return dev
		}, bare.ErrInUse, []string{"something else has opened it, or a partition of it, for itself"}},
		{"read-only", func(t *testing.T) string { return fresh(t, size, "-r") }, bare.ErrReadOnly, []string{"the kernel refuses writes to it"}},
		{"set read-only", func(t *testing.T) string {
			dev := fresh(t, size)
			run(t, "blockdev", "--setro", dev)
			t.Cleanup(func() { command(t, nil, "blockdev", "--setrw", dev) })
			return dev
		}, bare.ErrReadOnly, nil},
		{"large sectors", func(t *testing.T) string { return fresh(t, (size+4095)&^4095, "-b", "4096") }, bare.ErrSectors,
			[]string{"its sectors have 4096 bytes", "counts in sectors of 512"}},
		{"no force", func(t *testing.T) string { return fresh(t, size) }, bare.ErrForce, []string{fmt.Sprintf("(%d bytes, 2 partitions)", size), "--force permits that"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := c.use(t)
			before := sumOf(t, dev)
			o := bare.DeviceOptions{Force: c.is != bare.ErrForce}
			_, err := bare.WriteDevice(t.Context(), dev, src, o)
			if !errors.Is(err, c.is) {
				t.Fatalf("%v", err)
			}
			for _, word := range append(c.words, dev) {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("the message does not say %q: %v", word, err)
				}
			}
			t.Logf("refused: %v", err)
			if _, again := bare.CheckDevice(dev, size, src, o.Force); again == nil || again.Error() != err.Error() {
				t.Errorf("CheckDevice says %v", again)
			}
			if sumOf(t, dev) != before {
				t.Error("the device changed")
			}
		})
	}
	// A partition may be written to while another one is in use, and that is said.
	t.Run("a partition", func(t *testing.T) {
		dev := fresh(t, 48*mib)
		run(t, "mkfs.ext4", "-q", dev+"p2")
		mounted(t, dev+"p2")
		disk := tempDir(t) + "/small.raw"
		oldContents(t, disk, 3*mib)
		cmd := exec.Command("sfdisk", "-q", disk)
		cmd.Stdin = strings.NewReader("label: gpt\nsize=1M\n")
		check(t, cmd.Run())
		f, err := os.Open(disk)
		check(t, err)
		defer f.Close()
		small, err := qcow.NewFileSource(f)
		check(t, err)
		r, err := bare.WriteDevice(t.Context(), dev+"p1", small, bare.DeviceOptions{Force: true})
		check(t, err)
		if len(r.Notes) != 2 || !strings.Contains(r.Notes[0], "is a partition of loop") {
			t.Errorf("%q", r.Notes)
		}
		if want := append([]string{dev + "p1"}, dev+"p1", dev); len(r.Over) < 4 || r.Over[0] != want[0] || r.Over[2] != dev {
			t.Errorf("%q", r.Over)
		}
		run(t, "cmp", "-n", fmt.Sprint(3*mib), disk, dev+"p1")
	})
}

// mounted mounts a device until the end of the test.
func mounted(t *testing.T, dev string) {
	t.Helper()
	dir := tempDir(t)
	run(t, "mount", dev, dir)
	t.Cleanup(func() { command(t, nil, "umount", dir) })
	// A mount writes.
	run(t, "mount", "-o", "remount,ro", dir)
}

// sumOf is the sum of a device's contents, or nothing.
func sumOf(t *testing.T, dev string) (sum [sha256.Size]byte) {
	t.Helper()
	st, err := os.Stat(dev)
	if err != nil || st.Mode()&os.ModeDevice == 0 || st.Mode()&os.ModeCharDevice != 0 {
		return sum
	}
	f, err := os.Open(dev)
	check(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	check(t, err)
	return [sha256.Size]byte(h.Sum(nil))
}

// TestBareCancelled stops in the middle: nothing may take what is left for a disk.
func TestBareCancelled(t *testing.T) {
	requires(t, "root", "losetup", "blkid", "sfdisk")
	src, raw := compressedDisk(t)
	for _, percent := range []int64{1, 30, 60, 99} {
		file := tempDir(t) + "/disk"
		oldContents(t, file, src.Size())
		cmd := exec.Command("sfdisk", "-q", file)
		cmd.Stdin = strings.NewReader("label: gpt\nsize=16M\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		dev := loopDevice(t, file)
		ctx, cancel := context.WithCancel(t.Context())
		_, err := bare.WriteDevice(ctx, dev, src, bare.DeviceOptions{Force: true, Progress: func(done, total int64) {
			if done*100 >= total*percent {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "is not whole now, and does not boot; write to it again") {
			t.Fatalf("at %d %%: %v", percent, err)
		}
		if o := command(t, nil, "blkid", "-p", dev); o.code == 0 {
			t.Errorf("at %d %%: %s", percent, o.stdout)
		}
		if o := command(t, nil, "sfdisk", "-d", dev); o.code == 0 {
			t.Errorf("at %d %%: a partition table: %s", percent, o.stdout)
		}
		// And then as if nothing had been.
		_, err = bare.WriteDevice(t.Context(), dev, src, bare.DeviceOptions{Force: true})
		check(t, err)
		run(t, "cmp", raw, dev)
		detach(t, dev)
	}
}

// BenchmarkBare compresses a Debian disk in turn with us and with the kinds' own programs, all on all cores, and prints a
// Markdown table. The programs get the plain raw file, whose holes they have to read.
//
//	go test -run '^$' -bench Bare -benchtime 1x ./integration
func BenchmarkBare(b *testing.B) {
	requires(b, "zstd", "pigz", "xz", "qemu-img")
	base := debian(b)
	dir := tempDir(b)
	raw := dir + "/disk.raw"
	run(b, "qemu-img", "convert", "-O", "raw", base.disk, raw)
	f, err := os.Open(raw)
	check(b, err)
	defer f.Close()
	src, err := qcow.NewFileSource(f)
	check(b, err)
	for b.Loop() {
		var table bytes.Buffer
		w := tabwriter.NewWriter(&table, 0, 0, 1, ' ', tabwriter.TabIndent)
		fmt.Fprintln(w, "| kind\t | nodebake (s)\t | MB\t | program\t | (s)\t | MB\t | time, ours to theirs\t | size, ours to theirs |")
		fmt.Fprintln(w, "| ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | ---\t | --- |")
		for _, c := range []struct {
			o        bare.Options
			programs [][]string
			runs     int
		}{
			{bare.Options{Kind: bare.Zstd}, [][]string{{"zstd", "-q", "-T0", "-3", "-c"}}, 3},
			{bare.Options{Kind: bare.Zstd, Level: 6}, [][]string{{"zstd", "-q", "-T0", "-6", "-c"}}, 3},
			{bare.Options{Kind: bare.Gzip}, [][]string{{"pigz", "-c"}}, 3},
			{bare.Options{Kind: bare.XZ}, [][]string{{"xz", "-T0", "-1", "-c"}, {"xz", "-T0", "-c"}}, 1},
		} {
			var ours []float64
			var size int64
			theirs, ratios, sizes := make([][]float64, len(c.programs)), make([][]float64, len(c.programs)), make([]int64, len(c.programs))
			c.o.Bmap = true
			for range c.runs {
				start := time.Now()
				r, err := bare.Compress(b.Context(), io.Discard, src, c.o)
				check(b, err)
				took := time.Since(start).Seconds()
				ours, size = append(ours, took), r.Size
				for i, argv := range c.programs {
					var out counter
					cmd := exec.Command(argv[0], append(argv[1:], raw)...)
					cmd.Stdout = &out
					start = time.Now()
					check(b, cmd.Run())
					other := time.Since(start).Seconds()
					theirs[i], ratios[i], sizes[i] = append(theirs[i], other), append(ratios[i], took/other), int64(out)
				}
			}
			for i, argv := range c.programs {
				fmt.Fprintf(w, "| .%s %d\t | %.2f\t | %.1f\t | %s\t | %.2f\t | %.1f\t | %.2f\t | %.3f |\n", c.o.Kind, c.o.Level, median(ours), float64(size)/1e6,
					strings.Join(argv, " "), median(theirs[i]), float64(sizes[i])/1e6, median(ratios[i]), float64(size)/float64(sizes[i]))
				b.Logf(".%s %d, %s: %.2f of its time", c.o.Kind, c.o.Level, strings.Join(argv, " "), median(ratios[i]))
			}
		}
		w.Flush()
		fmt.Printf("\n%s, %d MB:\n\n%s\n", filepath.Base(base.disk), src.Size()/1e6, &table)
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
