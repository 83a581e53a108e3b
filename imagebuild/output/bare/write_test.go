package bare

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/nodebake/nodebake/qcow"
)

// fakeDevice is a device in memory whose writes reach it with Sync only, and that can have faults.
type fakeDevice struct {
	t      *testing.T
	mu     sync.Mutex
	sector int64
	data   []byte // what a reader gets
	stable []byte // what is left after a loss of power
	writes int
	// fault, if not nil, changes a write or refuses it.
	fault func(off int64, p []byte) error
}

func newFakeDevice(t *testing.T, r interface{ Uint32() uint32 }, size, sector int64) *fakeDevice {
	d := &fakeDevice{t: t, sector: sector, data: make([]byte, size)}
	for i := range d.data {
		d.data[i] = byte(r.Uint32() | 1) // no zeros
	}
	d.stable = bytes.Clone(d.data)
	return d
}

func (d *fakeDevice) aligned(off, n int64, what string) {
	if off%d.sector != 0 || off < 0 || off+n > int64(len(d.data)) {
		d.t.Errorf("%s of %d bytes at %d: not at a sector, or past the end", what, n, off)
	}
}

func (d *fakeDevice) ReadAt(p []byte, off int64) (int, error) {
	d.aligned(off, int64(len(p)), "read")
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *fakeDevice) WriteAt(p []byte, off int64) (int, error) {
	d.aligned(off, int64(len(p)), "write")
	b := make([]byte, (int64(len(p))+d.sector-1)/d.sector*d.sector)
	copy(b, p)
	return len(p), d.put(b, off)
}

func (d *fakeDevice) put(b []byte, off int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.writes++
	if d.fault != nil {
		if err := d.fault(off, b); err != nil {
			return err
		}
	}
	copy(d.data[off:], b)
	return nil
}

func (d *fakeDevice) Clear(off, n int64) error {
	d.aligned(off, n, "clear")
	d.aligned(off+n, 0, "end of clear")
	return d.put(make([]byte, n), off)
}

func (d *fakeDevice) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.stable, d.data)
	return nil
}

// bootDisk is a random disk whose first and last bytes are what a partition table would be.
func bootDisk(r interface {
	IntN(int) int
	Uint32() uint32
}, size int) *memory {
	m := &memory{data: make([]byte, size)}
	put := func(at, n int) {
		n = min(n, size-at)
		if n <= 0 {
			return
		}
		for i := at; i < at+n; i++ {
			m.data[i] = byte(r.Uint32())
		}
		m.extents = append(m.extents, qcow.Extent{Start: int64(at), Length: int64(n), Kind: qcow.Data})
	}
	put(0, 1+r.IntN(3000))
	at := 3000
	for at < size-70000 {
		at += r.IntN(4 << 20)
		n := r.IntN(1 << r.IntN(22))
		if at+n < size-70000 {
			put(at, n)
		}
		at += n
	}
	if size > 70000 {
		put(size-33*512, 33*512)
	}
	return m
}

// TestDeviceRandom writes random disks over old contents, and sees that nothing of them shows.
func TestDeviceRandom(t *testing.T) {
	s := seed(t)
	for i := range uint64(30) {
		r := random(s + i)
		m := bootDisk(r, 1+r.IntN(1<<r.IntN(25)))
		sector := int64(512) << (3 * r.IntN(2))
		size := (m.Size() + sector - 1) / sector * sector
		if r.IntN(2) == 0 {
			size += sector * int64(r.IntN(5000))
		}
		dev := newFakeDevice(t, r, size, sector)
		old := bytes.Clone(dev.data)
		var last int64
		w := newDeviceWrite(dev, m, Device{Size: size, SectorSize: sector}, DeviceOptions{Workers: 1 + r.IntN(8), Progress: func(done, total int64) {
			if last = done; total != 2*m.Size() {
				t.Errorf("total %d", total)
			}
		}})
		check(t, w.run(context.Background()))
		if !bytes.Equal(dev.stable[:m.Size()], m.data) {
			t.Fatalf("disk %d: other contents", i)
		}
		if last != 2*m.Size() {
			t.Errorf("disk %d: progress ended at %d of %d", i, last, 2*m.Size())
		}
		// Past the disk: zeros in its last sector, old contents, and zeros in the last MiB of the device.
		pad := (m.Size() + sector - 1) / sector * sector
		gone := max(pad, (size-kept)/sector*sector)
		if !qcow.IsZero(dev.data[m.Size():pad]) || !bytes.Equal(dev.data[pad:gone], old[pad:gone]) || !qcow.IsZero(dev.data[gone:]) {
			t.Errorf("disk %d: wrong past the disk's end", i)
		}
	}
}

// TestDeviceCancelled stops at every write, and after every one the device cannot boot.
func TestDeviceCancelled(t *testing.T) {
	r := random(5)
	m := bootDisk(r, 9<<20+512)
	for _, size := range []int64{m.Size(), 12 << 20} {
		for stop := 1; ; stop++ {
			dev := newFakeDevice(t, r, size, 512)
			ctx, cancel := context.WithCancel(context.Background())
			dev.fault = func(off int64, p []byte) error {
				if dev.writes == stop {
					cancel()
				}
				return nil
			}
			w := newDeviceWrite(dev, m, Device{Size: size, SectorSize: 512}, DeviceOptions{Workers: 2})
			err := w.run(ctx)
			cancel()
			if err == nil {
				if !bytes.Equal(dev.data[:m.Size()], m.data) {
					t.Fatal("other contents")
				}
				if stop < 8 {
					t.Fatalf("it went on after write %d", stop)
				}
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if !qcow.IsZero(dev.stable[:kept]) && stop > 4 || !qcow.IsZero(dev.data[:kept]) {
				t.Fatalf("cancelled at write %d: there is something in the first MiB", stop)
			}
		}
	}
}

// TestDeviceCrash looks at what a loss of power leaves, at every moment.
func TestDeviceCrash(t *testing.T) {
	r := random(6)
	m := bootDisk(r, 9<<20)
	dev := newFakeDevice(t, r, 9<<20, 512)
	old := bytes.Clone(dev.data)
	look := func(b []byte, when string) {
		whole := bytes.Equal(b, m.data)
		untouched := bytes.Equal(b[:kept], old[:kept])
		if !whole && !untouched && !qcow.IsZero(b[:kept]) {
			t.Errorf("%s: a disk that is not whole has a beginning", when)
		}
	}
	dev.fault = func(off int64, p []byte) error {
		look(dev.data, fmt.Sprintf("before write %d, all written", dev.writes))
		look(dev.stable, fmt.Sprintf("before write %d, only what was flushed", dev.writes))
		return nil
	}
	check(t, newDeviceWrite(dev, m, Device{Size: 9 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background()))
	look(dev.stable, "at the end")
}

// TestDeviceCorrupts has devices that lose or change what is written to them.
func TestDeviceCorrupts(t *testing.T) {
	r := random(8)
	m := &memory{data: make([]byte, 20<<20)}
	for _, at := range []int{0, 5 << 20, 19<<20 + 4096} {
		for i := range 1 << 19 {
			m.data[at+i] = byte(r.Uint32() | 1)
		}
		m.extents = append(m.extents, qcow.Extent{Start: int64(at), Length: 1 << 19, Kind: qcow.Data})
	}
	for _, at := range []int64{0, 4000, 5<<20 + 12345, 8<<20 + 1, 11 << 20, 19<<20 + 5000, 20<<20 - 1} {
		dev := newFakeDevice(t, r, 24<<20, 512)
		dev.fault = func(off int64, p []byte) error {
			if i := at - off; i >= 0 && i < int64(len(p)) && p[i] == m.data[at] {
				p[i] ^= 0x40
			}
			return nil
		}
		err := newDeviceWrite(dev, m, Device{Size: 24 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background())
		if want := fmt.Sprintf("byte %d is %#02x, and should be %#02x;", at, m.data[at]^0x40, m.data[at]); !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), want) {
			t.Errorf("byte %d changed: %v", at, err)
		}
		dev.fault = nil
		if at > 4096 && !qcow.IsZero(dev.stable[:kept]) {
			t.Errorf("byte %d changed: the device has a beginning", at)
		}
	}
	// Zeros that never arrive: the old contents show.
	dev := newFakeDevice(t, r, 20<<20, 512)
	dev.fault = func(off int64, p []byte) error {
		if off <= 8<<20 && off+int64(len(p)) > 8<<20 {
			copy(p[8<<20-off:], dev.data[8<<20:8<<20+512])
		}
		return nil
	}
	err := newDeviceWrite(dev, m, Device{Size: 20 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background())
	if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), "byte 8388608 is ") {
		t.Errorf("zeros that do not arrive: %v", err)
	}
	// A device that has less room than it says: writes past it go to its beginning.
	dev = newFakeDevice(t, r, 20<<20, 512)
	small := int64(5 << 20)
	err = newDeviceWrite(wrapping{dev, small}, m, Device{Size: 20 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background())
	if !errors.Is(err, ErrMismatch) {
		t.Errorf("a device that wraps around: %v", err)
	}
	// Writes that fail.
	for fail := 1; fail < 6; fail++ {
		dev := newFakeDevice(t, r, 20<<20, 512)
		dev.fault = func(int64, []byte) error {
			if dev.writes == fail {
				return errBroken
			}
			return nil
		}
		if err := newDeviceWrite(dev, m, Device{Size: 20 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background()); !errors.Is(err, errBroken) {
			t.Errorf("write %d fails: %v", fail, err)
		}
	}
}

type wrapping struct {
	*fakeDevice
	real int64
}

func (w wrapping) WriteAt(p []byte, off int64) (int, error) {
	return w.fakeDevice.WriteAt(p, off%w.real/512*512)
}
func (w wrapping) ReadAt(p []byte, off int64) (int, error) {
	return w.fakeDevice.ReadAt(p, off%w.real/512*512)
}

// A disk that changes while it is written is said to, where the device differs as well.
func TestDeviceSourceChanges(t *testing.T) {
	r := random(9)
	m := bootDisk(r, 8<<20)
	const at = 3<<20 + 5
	m.data[at] = 7
	m.extents = []qcow.Extent{{Length: m.Size(), Kind: qcow.Data}}
	dev := newFakeDevice(t, r, 8<<20, 512)
	dev.fault = func(off int64, p []byte) error {
		if i := at - off; i >= 0 && i < int64(len(p)) && p[i] == 7 {
			p[i], m.data[at] = 9, 8
		}
		return nil
	}
	err := newDeviceWrite(dev, m, Device{Size: 8 << 20, SectorSize: 512}, DeviceOptions{}).run(context.Background())
	if err == nil || !strings.HasPrefix(err.Error(), "the disk itself changed while it was written, between byte 3145728 and 4194304") {
		t.Error(err)
	}
}

// tree makes files and symbolic links below a folder: a name with " -> " is a link.
func tree(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := root + "/" + name
		check(t, os.MkdirAll(path[:strings.LastIndexByte(path, '/')], 0o755))
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			check(t, os.Symlink(target, path))
		} else if strings.HasSuffix(name, "/") {
			check(t, os.MkdirAll(path, 0o755))
		} else {
			check(t, os.WriteFile(path, []byte(content), 0o644))
		}
	}
}

type fakeNode struct {
	bytes, sector int64
	ro            bool
}

func (n fakeNode) Close() error               { return nil }
func (n fakeNode) size() (int64, error)       { return n.bytes, nil }
func (n fakeNode) sectorSize() (int64, error) { return n.sector, nil }
func (n fakeNode) readOnly() (bool, error)    { return n.ro, nil }

// TestCheckFake has what a build machine does not: RAID, LVM, encryption, swap, other mount namespaces, on a made-up /sys
// and /proc. The integration tests do the rest with the kernel's own.
func TestCheckFake(t *testing.T) {
	numbers := map[string]uint64{"/dev/sda": 8 << 8, "/dev/sda1": 8<<8 | 1, "/dev/sda2": 8<<8 | 2, "/dev/dm-0": 253 << 8, "/dev/disk/by-id/x": 8 << 8}
	base := map[string]string{
		"sys/dev/block/8:0":                    "-> ../../devices/pci/sda",
		"sys/dev/block/8:1":                    "-> ../../devices/pci/sda/sda1",
		"sys/dev/block/8:2":                    "-> ../../devices/pci/sda/sda2",
		"sys/class/block/sda":                  "-> ../../devices/pci/sda",
		"sys/class/block/sda1":                 "-> ../../devices/pci/sda/sda1",
		"sys/class/block/sda2":                 "-> ../../devices/pci/sda/sda2",
		"sys/devices/pci/sda/dev":              "8:0\n",
		"sys/devices/pci/sda/device/model":     "QEMU HARDDISK   \n",
		"sys/devices/pci/sda/sda1/dev":         "8:1\n",
		"sys/devices/pci/sda/sda1/partition":   "1\n",
		"sys/devices/pci/sda/sda2/dev":         "8:2\n",
		"sys/devices/pci/sda/sda2/partition":   "2\n",
		"sys/devices/pci/sda/holders/":         "",
		"sys/devices/pci/sda/sda1/holders/":    "",
		"sys/devices/pci/sda/sda2/holders/":    "",
		"proc/swaps":                           "Filename\tType\tSize\tUsed\tPriority\n",
		"proc/self/mountinfo":                  "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n",
		"proc/77/comm":                         "containerd\n",
		"proc/77/ns/mnt":                       "-> mnt:[1]",
		"proc/77/mountinfo":                    "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n",
		"sys/devices/virtual/block/loop3/dev":  "7:3\n",
		"sys/class/block/loop3":                "-> ../../devices/virtual/block/loop3",
		"sys/devices/virtual/block/dm-0/dev":   "253:0\n",
		"sys/devices/virtual/block/md127/dev":  "9:127\n",
		"sys/class/block/dm-0":                 "-> ../../devices/virtual/block/dm-0",
		"sys/class/block/md127":                "-> ../../devices/virtual/block/md127",
		"sys/devices/virtual/block/loop3/ro":   "0\n",
		"sys/devices/virtual/block/dm-0/ro":    "0\n",
		"sys/devices/pci/sda/sda1/start":       "2048\n",
		"sys/devices/virtual/block/md127/size": "0\n",
	}
	for _, c := range []struct {
		name, path string
		more       map[string]string
		node       fakeNode
		openErr    error
		head       []byte
		is         error
		says       string
	}{
		{name: "free", path: "/dev/sda", is: nil},
		{name: "free, by id", path: "/dev/disk/by-id/x", is: nil},
		{name: "missing", path: "/dev/sdq", is: ErrNotDevice, says: "there is nothing of that name"},
		{name: "partition mounted", path: "/dev/sda", more: map[string]string{"proc/self/mountinfo": `30 22 8:2 / /mnt/a\040b rw - ext4 /dev/sda2 rw`},
			is: ErrMounted, says: "/dev/sda: device is mounted: sda2 on /mnt/a b; unmount it first"},
		{name: "other partition mounted", path: "/dev/sda1", more: map[string]string{"proc/self/mountinfo": `30 22 8:2 / /mnt rw - ext4 /dev/sda2 rw`}, is: nil},
		{name: "disk mounted", path: "/dev/sda1", more: map[string]string{"proc/self/mountinfo": `30 22 8:0 / /mnt rw - ext4 /dev/sda rw`},
			is: ErrMounted, says: "sda on /mnt"},
		{name: "btrfs", path: "/dev/sda", more: map[string]string{"proc/self/mountinfo": `30 22 0:44 /sub /mnt rw shared:1 - btrfs /dev/sda1 rw`},
			is: ErrMounted, says: "sda1 on /mnt"},
		{name: "swap", path: "/dev/sda", more: map[string]string{"proc/swaps": "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n"},
			is: ErrInUse, says: "sda1 is swap space; swapoff frees it"},
		{name: "LVM", path: "/dev/sda", more: map[string]string{"sys/devices/pci/sda/sda2/holders/dm-0": "x", "sys/devices/virtual/block/dm-0/dm/name": "vg-root\n", "sys/devices/virtual/block/dm-0/dm/uuid": "LVM-abc\n"},
			is: ErrInUse, says: "sda2 belongs to the LVM volume vg-root; vgchange -an frees it"},
		{name: "encrypted", path: "/dev/sda2", more: map[string]string{"sys/devices/pci/sda/sda2/holders/dm-0": "x", "sys/devices/virtual/block/dm-0/dm/name": "luks\n", "sys/devices/virtual/block/dm-0/dm/uuid": "CRYPT-LUKS2-abc\n"},
			is: ErrInUse, says: "sda2 belongs to the encrypted volume luks; cryptsetup close frees it"},
		{name: "multipath", path: "/dev/sda", more: map[string]string{"sys/devices/pci/sda/holders/dm-0": "x", "sys/devices/virtual/block/dm-0/dm/name": "mpatha\n", "sys/devices/virtual/block/dm-0/dm/uuid": "mpath-abc\n"},
			is: ErrInUse, says: "sda belongs to the multipath device mpatha; write to that one"},
		{name: "RAID", path: "/dev/sda1", more: map[string]string{"sys/devices/pci/sda/holders/md127": "x"},
			is: ErrInUse, says: "sda belongs to the RAID md127; mdadm --stop frees it"},
		{name: "loop", path: "/dev/sda", more: map[string]string{"sys/devices/virtual/block/loop3/loop/backing_file": "/dev/sda1\n"},
			is: ErrInUse, says: "sda1 is what the loop device loop3 shows"},
		{name: "busy, mounted elsewhere", path: "/dev/sda", openErr: errBusy, more: map[string]string{"proc/77/mountinfo": `30 22 8:1 / /data rw - xfs /dev/sda1 rw`},
			is: ErrMounted, says: "sda1 on /data, as the process 77 (containerd) sees it"},
		{name: "busy", path: "/dev/sda", openErr: errBusy, is: ErrInUse, says: "something else has opened it"},
		{name: "no rights", path: "/dev/sda", openErr: os.ErrPermission, is: os.ErrPermission, says: "is for root"},
		{name: "read-only", path: "/dev/sda", node: fakeNode{8 << 20, 512, true}, is: ErrReadOnly, says: "the kernel refuses writes to it"},
		{name: "too small", path: "/dev/sda", node: fakeNode{1 << 20, 512, false}, is: ErrTooSmall, says: "it has 1048576 bytes, and the disk 2097152"},
		{name: "large sectors", path: "/dev/sda", node: fakeNode{8 << 20, 4096, false}, head: gptAt(512), is: ErrSectors, says: "its sectors have 4096 bytes, and the disk's partition table counts in sectors of 512"},
		{name: "large sectors, MBR", path: "/dev/sda", node: fakeNode{8 << 20, 4096, false}, head: mbr(), is: ErrSectors},
		{name: "large sectors, both", path: "/dev/sda", node: fakeNode{8 << 20, 4096, false}, head: gptAt(4096), is: nil},
		{name: "small sectors", path: "/dev/sda", head: gptAt(4096), is: ErrSectors},
		{name: "small sectors, both", path: "/dev/sda", head: gptAt(512), is: nil},
		{name: "filesystem on large sectors", path: "/dev/sda", node: fakeNode{8 << 20, 4096, false}, head: make([]byte, 8192), is: nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			files := map[string]string{}
			for k, v := range base {
				files[k] = v
			}
			for k, v := range c.more {
				files[k] = v
			}
			tree(t, root, files)
			if c.node == (fakeNode{}) {
				c.node = fakeNode{8 << 20, 512, false}
			}
			s := &system{root: root,
				open: func(string) (node, error) {
					if c.openErr != nil {
						return nil, c.openErr
					}
					return c.node, nil
				},
				number: func(path string) (uint64, error) {
					if n, ok := numbers[path]; ok {
						return n, nil
					}
					return 0, fmt.Errorf("%s: %w: there is nothing of that name", path, ErrNotDevice)
				}}
			var head io.ReaderAt
			if c.head != nil {
				head = bytes.NewReader(c.head)
			}
			d, err := s.check(c.path, 2<<20, head, true)
			if !errors.Is(err, c.is) || err != nil && (c.is == nil || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("%v", err)
			}
			if err != nil {
				return
			}
			if !strings.HasPrefix(d.Name, "sda") || d.Model != "QEMU HARDDISK" || d.Size != c.node.bytes || d.SectorSize != c.node.sector {
				t.Errorf("%+v", d)
			}
			if _, err := s.check(c.path, 2<<20, head, false); !errors.Is(err, ErrForce) || !strings.Contains(err.Error(), "(QEMU HARDDISK, 8388608 bytes, ") {
				t.Errorf("without force: %v", err)
			}
		})
	}
}

func gptAt(sector int) []byte {
	b := make([]byte, 16384)
	copy(b, mbr())
	copy(b[sector:], "EFI PART")
	return b
}

func mbr() []byte {
	b := make([]byte, 16384)
	copy(b[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0})
	b[510], b[511] = 0x55, 0xaa
	return b
}

func TestIsDevice(t *testing.T) {
	for path, want := range map[string]bool{"/dev/null": false, "/dev/no-such-disk": true, "/dev/disk/by-id/none": true, "/dev/shm/x.raw": false, "/tmp/none.raw": false, "/dev/../tmp/x": false} {
		if path == "/dev/null" {
			want = true // CheckDevice says what it is
		}
		if got := IsDevice(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
