package qcow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// needTool skips a test whose oracle is missing, or fails it under CI.
func needTool(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed", n)
			}
			t.Skipf("%s is not installed", n)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// qemuIO runs qemu-io commands on an image in one process.
func qemuIO(t testing.TB, file string, cmds ...string) {
	t.Helper()
	var args []string
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, "-f", "qcow2", file)...)
	if strings.Contains(out, "failed") || strings.Contains(out, "rror:") {
		t.Fatalf("qemu-io %q: %s", cmds, out)
	}
}

// qemuCheck demands that qemu-img check finds nothing, leaks included.
func qemuCheck(t testing.TB, file string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No errors were found") {
		t.Fatalf("qemu-img check %s: %v\n%s", file, err, out)
	}
}

// qemuRaw is the guest content as QEMU reads it.
func qemuRaw(t testing.TB, file string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "oracle.raw")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(raw)
	return b
}

func qemuCompare(t testing.TB, file string, want []byte) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "model.raw")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, raw)
	os.Remove(raw)
}

func openFile(t testing.TB, file string) *Image {
	t.Helper()
	im, err := Open(fileSrc(t, file), Options{Resolve: NewDirResolver(filepath.Dir(file))})
	if err != nil {
		t.Fatalf("Open %s: %v", file, err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

func fileSrc(t testing.TB, file string) Source {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	src, err := NewFileSource(f)
	if err != nil {
		t.Fatal(err)
	}
	return src
}

// wantContent reads the image in whole, in random pieces and by its extents, and compares each with want.
func wantContent(t testing.TB, rng *rand.Rand, im interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}, want []byte) {
	t.Helper()
	if im.Size() != int64(len(want)) {
		t.Fatalf("size %d, want %d", im.Size(), len(want))
	}
	got := make([]byte, len(want))
	if _, err := im.ReadAt(got, 0); err != nil {
		t.Fatalf("ReadAt: %v", err)
	}
	if at := firstDiff(got, want); at >= 0 {
		t.Fatalf("content differs at %#x: %#x, want %#x", at, got[at], want[at])
	}
	for range 50 {
		off := rng.IntN(len(want))
		n := 1 + rng.IntN(min(len(want)-off, 1<<uint(1+rng.IntN(20))))
		p := got[:n]
		if _, err := im.ReadAt(p, int64(off)); err != nil {
			t.Fatalf("ReadAt(%d bytes, %#x): %v", n, off, err)
		}
		if at := firstDiff(p, want[off:off+n]); at >= 0 {
			t.Fatalf("ReadAt(%d bytes, %#x) differs at %#x", n, off, off+at)
		}
	}
	x, ok := im.(extentSource)
	if !ok {
		return
	}
	pos := int64(0)
	for e, err := range x.Extents(0, im.Size()) {
		if err != nil {
			t.Fatalf("Extents: %v", err)
		}
		if e.Start != pos || e.Length <= 0 {
			t.Fatalf("extent %+v follows %#x", e, pos)
		}
		pos += e.Length
		if (e.Kind == Hole || e.Kind == Zero) && !IsZero(want[e.Start:pos]) {
			t.Fatalf("extent %+v holds data", e)
		}
	}
	if pos != im.Size() {
		t.Fatalf("extents end at %#x of %#x", pos, im.Size())
	}
}

func firstDiff(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// seeded gives a generator whose seed is printed on failure; NODEBAKE_SEED sets it.
func seeded(t testing.TB, salt uint64) *rand.Rand {
	seed := rand.Uint64()
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = v
	}
	t.Logf("seed: NODEBAKE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, salt))
}

// imageForm is a way to make an image with qemu-img.
type imageForm struct {
	opts       string // for -o
	cluster    int
	compressed bool // may hold compressed clusters
	snapshots  bool
	compat010  bool
}

func randomForm(rng *rand.Rand) imageForm {
	f := imageForm{cluster: 512 << rng.IntN(13)}
	var o []string
	refbits := 1 << rng.IntN(7)
	// Narrow refcounts overflow with snapshots and with compressed clusters that share a host cluster; QEMU 7.2 then makes broken images.
	f.snapshots = rng.IntN(3) == 0 && refbits >= 8
	f.compressed = rng.IntN(2) == 0 && refbits >= 16
	if rng.IntN(8) == 0 {
		f.compat010 = true
		refbits = 16
		o = append(o, "compat=0.10")
	} else {
		if f.compressed && rng.IntN(2) == 0 {
			o = append(o, "compression_type=zstd")
		}
		if f.cluster >= 16384 && rng.IntN(3) == 0 {
			o = append(o, "extended_l2=on")
		}
		if rng.IntN(6) == 0 {
			o = append(o, "lazy_refcounts=on")
		}
		o = append(o, fmt.Sprintf("refcount_bits=%d", refbits))
	}
	if rng.IntN(6) == 0 {
		o = append(o, "preallocation=metadata")
	}
	o = append(o, fmt.Sprintf("cluster_size=%d", f.cluster))
	f.opts = strings.Join(o, ",")
	return f
}

// makeImage makes an image of the form with random contents.
func makeImage(t testing.TB, rng *rand.Rand, file string, f imageForm, size int64, create ...string) {
	t.Helper()
	run(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2", "-o", f.opts}, create...), file, fmt.Sprint(size))...)
	scribble(t, rng, file, f, size)
	if f.snapshots {
		for i := range 1 + rng.IntN(2) {
			run(t, "qemu-img", "snapshot", "-c", fmt.Sprint("s", i), file)
			scribble(t, rng, file, f, size)
		}
	}
	if head := readFile(t, file, 80); binary.BigEndian.Uint32(head[4:]) >= 3 && head[79]&2 != 0 {
		t.Skip("QEMU has marked the image corrupt that it made itself, as 7.2 does with some compressed writes behind snapshots")
	}
}

// readFile gives the first n bytes of a file.
func readFile(t testing.TB, file string, n int) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

func scribble(t testing.TB, rng *rand.Rand, file string, f imageForm, size int64) {
	t.Helper()
	data := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(data, contents(rng, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(data)
	var cmds []string
	cs := int64(f.cluster)
	for range 4 + rng.IntN(24) {
		off := rng.Int64N(size)
		n := 1 + rng.Int64N(min(size-off, 1<<uint(3+rng.IntN(18))))
		switch k := rng.IntN(10); {
		case k < 2 && f.compressed:
			// One whole cluster of patterned data, compressed.
			off &^= cs - 1
			if off+cs > size {
				continue
			}
			cmds = append(cmds, fmt.Sprintf("write -c -s %s %d %d", data, off, cs))
		case k < 4:
			off, n = off&^511, (n+511)&^511
			if off+n > size {
				continue
			}
			cmds = append(cmds, fmt.Sprintf("write -z %s %d %d", []string{"", "-u"}[rng.IntN(2)], off, n))
		case k < 5:
			off, n = off&^511, (n+511)&^511
			if off+n > size {
				continue
			}
			cmds = append(cmds, fmt.Sprintf("discard %d %d", off, n))
		case k < 8:
			cmds = append(cmds, fmt.Sprintf("write -s %s %d %d", data, off, n))
		default:
			cmds = append(cmds, fmt.Sprintf("write -P %d %d %d", rng.IntN(256), off, n))
		}
	}
	// Compressed writes over allocated clusters fail; what counts is what QEMU reads afterwards.
	var args []string
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("qemu-io", append(args, "-f", "qcow2", file)...).CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok || !strings.Contains(string(out), "wrote") {
		t.Fatalf("qemu-io %q: %v\n%s", cmds, err, out)
	}
}

// contents is data of which some compresses, some does not, and some is zero.
func contents(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; {
		m := min(n-i, 1<<uint(4+rng.IntN(13)))
		switch rng.IntN(4) {
		case 0:
		case 1:
			for j := i; j < i+m; j++ {
				b[j] = byte(rng.Uint32())
			}
		case 2:
			x := byte(rng.Uint32())
			for j := i; j < i+m; j++ {
				b[j] = x
			}
		case 3:
			for j := i; j < i+m; j++ {
				b[j] = "the quick brown fox "[(j*7/5)%20] + byte(rng.Uint32()&1)
			}
		}
		i += m
	}
	return b
}
