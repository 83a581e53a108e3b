package xfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var formatUUID = [16]byte{0x6b, 0x1c, 0x5d, 0x7e, 0x2a, 0x3f, 0x4c, 0x58, 0x9d, 0x0e, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66} // as mkfs's in the tests

// formatted makes a filesystem by Format, and says how much was written.
func formatted(t testing.TB, size int64) (img string, written int64) {
	t.Helper()
	img = filepath.Join(t.TempDir(), "xfs.img")
	if err := os.WriteFile(img, nil, 0600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, size); err != nil {
		t.Fatal(err)
	}
	f, _ := openImage(t, img)
	g := &growing{File: f, t: t}
	if err := Format(g, size, FormatOptions{UUID: formatUUID, Label: "node-images!", Now: now}); err != nil {
		t.Fatal(err)
	}
	return img, g.written
}

// TestFormatAsMkfs compares with what mkfs.xfs makes of the same geometry, field by field.
func TestFormatAsMkfs(t *testing.T) {
	needRepair(t)
	for _, size := range []int64{MinFormat, 1 << 30, 3<<30 + 12<<20 + 4096, 40 << 30, 3 << 40} {
		img, _ := formatted(t, size)
		i := openReader(t, img).Info()
		theirs := mkfs(t, size, "--unsupported", "-m", "crc=1,finobt=1,reflink=1,rmapbt=0,bigtime=0,inobtcount=0", "-i", "sparse=1,nrext64=0",
			"-d", fmt.Sprintf("agsize=%db", i.AGBlocks), "-l", fmt.Sprintf("size=%db", i.LogBlocks), "-L", "node-images!")
		cmds := []string{"-r", "-c", "sb 0", "-c", "p", "-c", fmt.Sprintf("sb %d", i.AGCount-1), "-c", "p dblocks agcount agblocks rootino"}
		for _, ag := range []int{0, 1, i.AGCount - 1} {
			for _, what := range []string{"agf", "agi", "agfl"} {
				cmds = append(cmds, "-c", fmt.Sprintf("%s %d", what, ag), "-c", "p")
			}
		}
		for n := 0; n < 4; n++ {
			cmds = append(cmds, "-c", fmt.Sprintf("inode %d", 128+n), "-c", "p")
		}
		if a, b := dbLines(t, img, cmds), dbLines(t, theirs, cmds); strings.Join(a, "\n") != strings.Join(b, "\n") {
			t.Errorf("%d bytes: Format and mkfs.xfs differ:\n%s", size, diffLines(a, b))
		}
		if a, b := run(t, "xfs_logprint", img), run(t, "xfs_logprint", theirs); a != b || !strings.Contains(a, "Unmount filesystem") {
			t.Errorf("%d bytes: xfs_logprint says %s, of mkfs.xfs's %s", size, a, b)
		}
		x, y := openReader(t, img), openReader(t, theirs)
		a, b := make([]byte, i.LogBlocks<<12), make([]byte, i.LogBlocks<<12)
		if x.readAt(a, x.sb.off(x.sb.logStart)) != nil || y.readAt(b, y.sb.off(y.sb.logStart)) != nil || !bytes.Equal(a, b) {
			t.Errorf("%d bytes: the logs differ", size)
		}
		os.Remove(theirs)
	}
}

// dbLines is what xfs_db prints, without what may differ: checksums, times, generations; where trees and free lists are,
// which mkfs.xfs puts in front of log and inodes; what is in free lists is counted as free.
func dbLines(t testing.TB, img string, cmds []string) (out []string) {
	listed := 0
	for _, l := range strings.Split(run(t, "xfs_db", append(cmds, img)...), "\n") {
		name, _, _ := strings.Cut(l, " ")
		switch {
		case name == "flcount" || name == "freeblks":
			var n int
			if _, err := fmt.Sscanf(l, name+" = %d", &n); err != nil {
				t.Fatal(err)
			}
			if listed += n; name == "freeblks" {
				out = append(out, fmt.Sprintf("free = %d", listed))
				listed = 0
			}
		case strings.Contains(name, "crc"), strings.Contains(name, "time"), name == "core.gen", name == "v3.change_count", strings.HasPrefix(name, "bno["), name == "flfirst", name == "fllast", name == "longest",
			strings.HasSuffix(name, "root"):
		case name == "core.format", name == "core.aformat", name == "u3.dev", strings.HasPrefix(name, "u3"):
			if !strings.Contains(l, "dev") && !strings.Contains(l, "empty") { // of free inodes
				out = append(out, l)
			}
		default:
			out = append(out, l)
		}
	}
	return out
}

func diffLines(a, b []string) string {
	var s strings.Builder
	for i := 0; i < max(len(a), len(b)); i++ {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			fmt.Fprintf(&s, "%d: %q, mkfs %q\n", i, x, y)
		}
	}
	return s.String()
}

func TestFormat(t *testing.T) {
	needKernel(t)
	s := seed(t, "format")
	sizes := []int64{MinFormat + 4095, 4<<30 - 512, 4 << 30, 2 << 40}
	if os.Getenv("NODEBAKE_SOAK") != "" {
		rng := rand.New(rand.NewSource(s))
		for i := 0; i < 20; i++ {
			sizes = append(sizes, MinFormat+rng.Int63n(8<<30)/512*512)
		}
		sizes = append(sizes, MinFormat, 1<<30, 1<<40, 15<<40)
	}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			img, written := formatted(t, size)
			t.Logf("%d bytes written", written)
			if written > 1<<20 {
				t.Errorf("%d bytes written", written)
			}
			repairClean(t, img)
			dev := size / 512 * 512
			if dev != size { // a device is whole sectors
				os.Truncate(img, dev/4096*4096)
			}
			mounted(t, img, "ro", func(dir string) {
				if got := kernelTree(t, dir); len(got) != 1 || got["."].Mode != 0755 {
					t.Errorf("%v", got)
				}
			})
			mounted(t, img, "rw", func(dir string) {})
			if out, err := exec.Command("blkid", "-p", "-o", "export", img).Output(); err == nil && (!strings.Contains(string(out), "LABEL=node-images!") || !strings.Contains(string(out), "UUID="+uuid)) {
				t.Errorf("blkid: %s", out)
			}
			// Filled in flight, then judged, and grown by the kernel.
			w, g := growingWriter(t, img, 1<<30, 0)
			want := tree{}
			rng := rand.New(rand.NewSource(s))
			fill := int64(60 << 20)
			if size < 1<<30 {
				fill = size
			}
			fillFiles(t, w, want, "store", fill, rng)
			r := headerRecord(file(".", 0))
			r.Type, r.Mode, r.Size, r.Mtime = '5', 0755, 0, now
			want["."] = r
			commit(t, w)
			t.Logf("asked %v", g.asked)
			judge(t, img, want)
		})
	}
}

// TestFormatOverAnything formats devices that hold other things: what is seen and what is written must be the same as
// on an empty one, wherever it counts.
func TestFormatOverAnything(t *testing.T) {
	needKernel(t)
	const size = MinFormat
	empty, _ := formatted(t, size)
	dumped := func(img string) string {
		// All that belongs to the filesystem, in a form that leaves out the free space.
		dump, image := img+".dump", img+".restored"
		run(t, "xfs_metadump", "-o", "-w", img, dump)
		os.Remove(image)
		run(t, "xfs_mdrestore", dump, image)
		f, n := openImage(t, image)
		h := hash(io.NewSectionReader(f, 0, n))
		os.Remove(dump)
		os.Remove(image)
		return h
	}
	want := dumped(empty)
	for name, before := range map[string]func(img string){
		"noise": func(img string) {
			f, _ := openImage(t, img)
			b := noise(1, 1<<20)
			for off := int64(0); off < size; off += 1 << 20 {
				if _, err := f.WriteAt(b, off); err != nil {
					t.Fatal(err)
				}
			}
		},
		"btrfs or ext4": func(img string) {
			for _, c := range [][]string{{"mkfs.btrfs", "-q", "-f", img}, {"mkfs.ext4", "-q", "-F", img}} {
				if _, err := exec.LookPath(c[0]); err == nil {
					run(t, c[0], c[1:]...)
				}
			}
		},
		"xfs": func(img string) {
			run(t, "mkfs.xfs", "-q", "-f", "--unsupported", "-d", "agcount=7", "-l", "size=20m", img)
			mounted(t, img, "rw", func(dir string) { age(t, dir, rand.New(rand.NewSource(1)), 100, true, true) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "xfs.img")
			os.WriteFile(img, nil, 0600)
			os.Truncate(img, size)
			before(img)
			f, _ := openImage(t, img)
			if err := Format(f, size, FormatOptions{UUID: formatUUID, Label: "node-images!", Now: now}); err != nil {
				t.Fatal(err)
			}
			repairClean(t, img)
			if out, err := exec.Command("blkid", "-p", "-o", "export", img).Output(); err != nil || !strings.Contains(string(out), "TYPE=xfs") {
				t.Errorf("blkid: %v %s", err, out)
			}
			if got := dumped(img); got != want {
				t.Error("the filesystem is not what it is on an empty device")
			}
			w, _ := growingWriter(t, img, 100<<20, 0)
			files := tree{}
			fillFiles(t, w, files, "store", 70<<20, rand.New(rand.NewSource(2)))
			commit(t, w)
			repairClean(t, img)
			mounted(t, img, "rw", func(dir string) {
				got := kernelTree(t, dir)
				delete(got, ".")
				sameTree(t, "filled", got, files)
			})
		})
	}
}

func TestFormatErrors(t *testing.T) {
	m := &sparseMem{pages: map[int64][]byte{}, size: 1 << 30}
	good := FormatOptions{UUID: formatUUID, Now: now}
	if err := Format(m, 1<<30, good); err != nil {
		t.Fatal(err)
	}
	whole := m.clone()
	for name, c := range map[string]struct {
		size   int64
		change func(*FormatOptions)
	}{
		"small":      {MinFormat - 1, func(*FormatOptions) {}},
		"negative":   {-1, func(*FormatOptions) {}},
		"no uuid":    {1 << 30, func(o *FormatOptions) { o.UUID = [16]byte{} }},
		"no time":    {1 << 30, func(o *FormatOptions) { o.Now = time.Time{} }},
		"long label": {1 << 30, func(o *FormatOptions) { o.Label = "thirteen byte" }},
		"NUL":        {1 << 30, func(o *FormatOptions) { o.Label = "a\x00b" }},
		"device":     {1<<30 + 4096, func(*FormatOptions) {}},
	} {
		o := good
		c.change(&o)
		if err := Format(m, c.size, o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for off, b := range whole.pages {
		if !bytes.Equal(b, m.pages[off]) {
			t.Fatalf("page %d changed, though nothing was made", off)
		}
	}
	// What a failing device leaves behind is no filesystem.
	for after := 0; ; after++ {
		d := &failing{sparseMem: &sparseMem{pages: map[int64][]byte{}, size: 1 << 30}, left: after}
		err := Format(d, 1<<30, good)
		if err == nil {
			break
		}
		if !errors.Is(err, errFailing) {
			t.Fatal(err)
		}
		if _, err := Open(d, d.size); err == nil {
			t.Errorf("after %d writes and a failure there is a filesystem", after)
		}
	}
	f, err := Open(m, m.size)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Check(context.Background(), func(err error) { t.Error(err) }); err != nil {
		t.Fatal(err)
	}
}

var errFailing = errors.New("failing as told")

type failing struct {
	*sparseMem
	left int
}

func (d *failing) WriteAt(b []byte, off int64) (int, error) {
	if d.left--; d.left < 0 {
		return 0, errFailing
	}
	return d.sparseMem.WriteAt(b, off)
}
