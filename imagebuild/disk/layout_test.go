package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// memory is a disk in memory.
type memory struct{ b []byte }

func (m *memory) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(m.b).ReadAt(p, off) }
func (m *memory) WriteAt(p []byte, off int64) (int, error) { return copy(m.b[off:], p), nil }
func (m *memory) Size() int64                              { return int64(len(m.b)) }
func (m *memory) Grow(int64) error                         { return errors.New("it does not grow") }

// No write leaves a volume, whatever a filesystem writer asks for, and each byte lands where the volume has it.
func TestVolumeKeepsToItsBytes(t *testing.T) {
	pieces := &logical{runs: []run{{0, 50, 5}, {5, 10, 10}, {15, 70, 5}}}
	for name, p := range map[string]Partition{"partition": {Number: 1, Start: 10, Size: 20}, "logical volume": {Number: 1, Size: 20, LV: "g/v", lv: pieces}} {
		m := &memory{make([]byte, 100)}
		v := NewLayout(&Disk{Table: "gpt"}, m, true).Volume(p)
		for _, c := range []struct {
			off  int64
			n    int
			fits bool
		}{{0, 20, true}, {19, 1, true}, {20, 0, true}, {19, 2, false}, {20, 1, false}, {-1, 1, false}, {1 << 62, 1, false}, {0, 21, false}} {
			_, err := v.WriteAt(bytes.Repeat([]byte{1}, c.n), c.off)
			if (err == nil) != c.fits {
				t.Errorf("%s: writing %d bytes at %d: %v", name, c.n, c.off, err)
			}
		}
		in := func(i int64) bool {
			for _, r := range p.runs() {
				if i >= r.start && i < r.start+r.length {
					return true
				}
			}
			return false
		}
		for i, b := range m.b {
			if (b != 0) != in(int64(i)) {
				t.Errorf("%s: byte %d is %d", name, i, b)
			}
		}
		if n, err := v.ReadAt(make([]byte, 30), 5); n != 15 || err != io.EOF {
			t.Errorf("%s: reading past the end: %d, %v", name, n, err)
		}
		want := []byte("abcdefghijklmnopqrst")
		got := make([]byte, 17)
		if _, err := v.WriteAt(want, 0); err != nil {
			t.Error(err)
		}
		if n, err := v.ReadAt(got, 2); n != 17 || err != nil || string(got) != string(want[2:19]) {
			t.Errorf("%s: read %q, %d, %v", name, got, n, err)
		}
		if name == "logical volume" && string(m.b[10:20]) != "fghijklmno" {
			t.Errorf("the second run holds %q", m.b[10:20])
		}
	}
}

// file is a disk in a sparse file.
type file struct{ *os.File }

func (f file) Size() int64 {
	n, _ := f.Seek(0, io.SeekEnd)
	return n
}
func (f file) Grow(size int64) error { return f.Truncate(size) }

func TestLayout(t *testing.T) {
	const gib, mib = 1 << 30, 1 << 20
	gpt := []string{"sgdisk", "-n", "2:2048:+10M", "-n", "1:20M:+100M"}
	behind := []string{"sgdisk", "-n", "1:2048:+100M", "-n", "2:200M:+10M", "-c", "2:data"}
	mbr := []string{"sh", "-c", `printf 'label: dos\n1M,10M,83\n20M,100M,83\n' | sfdisk -q "$0"`}
	bare := []string{"mkfs.ext4", "-q", "-F"}
	for _, c := range []struct {
		name   string
		make   []string
		size   int64 // of the disk at first
		number int
		fixed  int64 // size that the disk is given; 0 lets it grow
		needs  []int64
		disk   int64 // what there is in the end
		part   int64
		err    error
	}{
		{"the disk's own room is taken first", gpt, 300 * mib, 1, 0, []int64{150 * mib}, 300 * mib, 280*mib - 33*512, nil},
		{"the disk grows, with a tenth to spare", gpt, 300 * mib, 1, 0, []int64{gib - 30*mib}, 2 * gib, 2*gib - 20*mib - 33*512, nil},
		{"again and again", gpt, 300 * mib, 1, 0, []int64{300 * mib, gib, 3 * gib, 4 * gib}, 5 * gib, 5*gib - 20*mib - 33*512, nil},
		{"no need", gpt, 300 * mib, 1, 0, []int64{mib}, 300 * mib, 100 * mib, nil},
		{"something is in the way", behind, 300 * mib, 1, 0, []int64{250 * mib}, 300 * mib, 100 * mib, ErrNoRoom},
		{"there is room before what is in the way", behind, 300 * mib, 1, 0, []int64{120 * mib}, 300 * mib, 199 * mib, nil},
		{"the disk is fixed", gpt, 300 * mib, 1, gib, []int64{gib}, gib, 100 * mib, ErrFixed},
		{"the disk is fixed but large enough", gpt, 300 * mib, 1, 2 * gib, []int64{gib}, 2 * gib, 2*gib - 20*mib - 33*512, nil},
		{"mbr", mbr, 300 * mib, 2, 0, []int64{gib}, 2 * gib, 2*gib - 20*mib, nil},
		{"no table", bare, 300 * mib, 0, 0, []int64{gib}, 2 * gib, 2 * gib, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := sparse(t, c.size)
			tool(t, "", c.make[0], append(c.make[1:len(c.make):len(c.make)], name)...)
			d, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			l := NewLayout(d, file{f}, c.fixed != 0)
			if c.fixed != 0 {
				if err := l.SetSize(c.fixed); err != nil {
					t.Fatal(err)
				}
			}
			var v *Volume
			for _, p := range d.Partitions {
				if p.Number == c.number {
					v = l.Volume(p)
				}
			}
			for _, need := range c.needs {
				size, err := v.Grow(need)
				if !errors.Is(err, c.err) {
					t.Fatalf("growing to %d: %v; want %v", need, err, c.err)
				}
				if err == nil && (size < need || size != v.Size()) {
					t.Errorf("growing to %d gives %d, and the volume has %d", need, size, v.Size())
				}
			}
			if err := l.Commit(); err != nil {
				t.Fatal(err)
			}
			again, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			for _, p := range again.Partitions {
				if p.Number == c.number && (p.Size != c.part || again.Size() != c.disk) {
					t.Errorf("partition of %d bytes on a disk of %d; want %d on %d", p.Size, again.Size(), c.part, c.disk)
				}
			}
			if again.Table == "gpt" {
				tool(t, "", "sh", "-c", `sgdisk -v "$0" | grep -q 'No problems found'`, name)
			}
		})
	}
}

func TestLayoutAdd(t *testing.T) {
	for _, c := range []struct {
		make  []string
		fixed bool
		disk  int64
		err   error
	}{
		{[]string{"sgdisk", "-n", "1:20M:+100M"}, false, 1 << 30, nil},
		{[]string{"sgdisk", "-n", "1:20M:+100M"}, true, 0, ErrFixed},
		{[]string{"sh", "-c", `printf 'label: dos\n1M,10M,83\n20M,100M,83\n' | sfdisk -q "$0"`}, false, 1 << 30, nil},
		{[]string{"sh", "-c", `printf 'label: dos\n1M,10M,83\n20M,100M,83\n130M,1M,83\n140M,1M,83\n' | sfdisk -q "$0"`}, false, 0, ErrNoRoom},
		{[]string{"mkfs.ext4", "-q", "-F"}, false, 0, ErrUnsupported},
	} {
		name := sparse(t, 300<<20)
		tool(t, "", c.make[0], append(c.make[1:len(c.make):len(c.make)], name)...)
		d, err := Open(name, Options{})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		l := NewLayout(d, file{f}, c.fixed)
		typ := "0fc63daf-8483-4772-8e79-3d69d8477de4"
		if d.Table == "mbr" {
			typ = "0x83"
		}
		v, err := l.Add(Partition{Size: 512 << 20, Type: typ, Name: "store", GUID: "01234567-89ab-4cde-8f01-23456789abcd"})
		if !errors.Is(err, c.err) {
			t.Errorf("%v: %v; want %v", c.make, err, c.err)
		}
		if err == nil {
			// What was there is now in the way of its own growth.
			if _, err := l.Volume(d.Partitions[len(d.Partitions)-1]).Grow(5 << 30); !errors.Is(err, ErrNoRoom) {
				t.Errorf("%v: the partition before the new one grows: %v", c.make, err)
			}
			if err := errors.Join(v.Fill(), l.Commit()); err != nil {
				t.Error(err)
			}
			again, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			p := again.Partitions[len(again.Partitions)-1]
			if p.Start != v.Partition().Start || p.Size != v.Size() || again.Size() != c.disk || p.Size < 512<<20 || p.Kind != filesystem.Unknown {
				t.Errorf("%v: %+v on a disk of %d", c.make, p, again.Size())
			}
			again.Close()
		}
		f.Close()
		d.Close()
	}
}
