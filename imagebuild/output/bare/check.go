package bare

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Why a device cannot be written to.
var (
	// ErrNotDevice: there is no such device, or what is there is no block device.
	ErrNotDevice = errors.New("not a block device")
	// ErrMounted: the device or a partition of it is mounted.
	ErrMounted = errors.New("device is mounted")
	// ErrInUse: something else has the device or a partition of it: swap space, LVM, RAID, encryption, a loop device, or
	// a program that opened it for itself.
	ErrInUse = errors.New("device is in use")
	// ErrReadOnly: the device cannot be written to.
	ErrReadOnly = errors.New("device is read-only")
	// ErrTooSmall: the device is smaller than the disk.
	ErrTooSmall = errors.New("device is too small")
	// ErrSectors: the disk's partition table counts in sectors of another size than the device's.
	ErrSectors = errors.New("device has other sectors")
	// ErrForce: nothing else forbids it, but what is on the device would be lost.
	ErrForce = errors.New("device would be overwritten")
)

// Device is a block device.
type Device struct {
	Path       string // as it was asked for
	Name       string // the kernel's: sda, nvme0n1p2
	Size       int64  // bytes
	SectorSize int64  // bytes of a logical sector
	Model      string // empty if there is none
	// Whole is the name of the disk that the device is a partition of, or empty.
	Whole      string
	Partitions []string // names of the device's own partitions
	// Over are the files and devices whose bytes change with the device's: its nodes in /dev, the disk that it is a part
	// of, its partitions, and what a loop device or a logical volume stands on.
	Over []string
	// Notes are sentences for the user: what is unusual, but not forbidden.
	Notes []string

	number uint64
}

// system is where the kernel tells of devices; tests have one of their own.
type system struct {
	root string // before /proc, /sys and /dev
	// open opens a device for reading, for itself alone.
	open func(path string) (node, error)
	// number is a block device node's major and minor number.
	number func(path string) (uint64, error)
}

// node is an open device.
type node interface {
	io.Closer
	size() (int64, error)
	sectorSize() (int64, error)
	readOnly() (bool, error)
}

// IsDevice says whether an output is a device, or a name in /dev where no file is to be made.
func IsDevice(path string) bool {
	if st, err := os.Stat(path); err == nil {
		return st.Mode().Type()&(os.ModeDevice|os.ModeCharDevice) != 0
	}
	abs, err := filepath.Abs(path)
	return err == nil && strings.HasPrefix(abs, "/dev/") && !strings.HasPrefix(abs, "/dev/shm/")
}

// CheckDevice says whether a disk of size bytes can be written to the block device at path, which may be a symbolic link
// as in /dev/disk/by-id, and tells of the device as far as it was found. head, unless nil, is where the disk's partition
// table is read from; the base that the disk is made from will do.
//
// The device may not be mounted or used in any other way, and neither may its partitions; it must be writable and
// large enough, and have sectors as the partition table counts them. Errors: ErrNotDevice, ErrMounted, ErrInUse,
// ErrReadOnly, ErrTooSmall, ErrSectors; and ErrForce if all is well but force is false.
func CheckDevice(path string, size int64, head io.ReaderAt, force bool) (Device, error) {
	return kernel.check(path, size, head, force)
}

func (s *system) check(path string, size int64, head io.ReaderAt, force bool) (Device, error) {
	d, err := s.find(path)
	if err != nil {
		return d, err
	}
	if err := s.unused(d); err != nil {
		return d, err
	}
	n, err := s.open(path)
	switch {
	case errors.Is(err, unix.EBUSY):
		return d, s.busy(d)
	case errors.Is(err, os.ErrPermission):
		return d, fmt.Errorf("%w; writing to devices is for root, or for members of the device's group", err)
	case err != nil:
		return d, err
	}
	defer n.Close()
	if err := d.measure(n); err != nil {
		return d, err
	}
	if err := d.fits(n, size, head); err != nil {
		return d, err
	}
	if !force {
		return d, fmt.Errorf("%s (%s): %w, with all that is on it; --force permits that", path, d.describe(), ErrForce)
	}
	return d, nil
}

func (d *Device) measure(n node) (err error) {
	if d.Size, err = n.size(); err != nil {
		return fmt.Errorf("size of %s: %w", d.Path, err)
	}
	if d.SectorSize, err = n.sectorSize(); err != nil {
		return fmt.Errorf("sector size of %s: %w", d.Path, err)
	}
	return nil
}

func (d *Device) fits(n node, size int64, head io.ReaderAt) error {
	if ro, err := n.readOnly(); err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	} else if ro {
		return fmt.Errorf("%s: %w: the kernel refuses writes to it (a write-protect switch, or blockdev --setro)", d.Path, ErrReadOnly)
	}
	if d.Size < size {
		return fmt.Errorf("%s: %w: it has %d bytes, and the disk %d", d.Path, ErrTooSmall, d.Size, size)
	}
	table, err := tableSector(head, size)
	if err != nil {
		return fmt.Errorf("reading the disk's partition table: %w", err)
	}
	if table != 0 && table != d.SectorSize {
		return fmt.Errorf("%s: %w: its sectors have %d bytes, and the disk's partition table counts in sectors of %d, so nothing would find the partitions", d.Path, ErrSectors, d.SectorSize, table)
	}
	if d.Whole != "" && table != 0 {
		d.Notes = append(d.Notes, fmt.Sprintf("%s is a partition of %s: firmware does not look for a disk with its own partition table there", d.Path, d.Whole))
	}
	if d.Size > size {
		d.Notes = append(d.Notes, fmt.Sprintf("%s has %d bytes, and the disk %d: the rest is used once the first boot grows the last partition (growpart), if the system does that", d.Path, d.Size, size))
	}
	return nil
}

// describe is what a person knows a device by.
func (d *Device) describe() string {
	about := fmt.Sprintf("%d bytes", d.Size)
	if d.Model != "" {
		about = d.Model + ", " + about
	}
	switch n := len(d.Partitions); {
	case d.Whole != "":
		about += ", partition of " + d.Whole
	case n == 1:
		about += ", 1 partition"
	case n > 1:
		about += fmt.Sprintf(", %d partitions", n)
	}
	return about
}

// tableSector is the sector size that a disk's partition table counts in, or 0 if there is none.
func tableSector(head io.ReaderAt, size int64) (int64, error) {
	if head == nil || size < 512 {
		return 0, nil
	}
	b := make([]byte, min(size, 4096+8))
	if err := readFull(head, b, 0); err != nil {
		return 0, err
	}
	at := func(off int) bool { return len(b) >= off+8 && string(b[off:off+8]) == "EFI PART" }
	switch small, large := at(512), at(4096); {
	case small && large:
		return 0, nil
	case small:
		return 512, nil
	case large:
		return 4096, nil
	}
	if b[510] != 0x55 || b[511] != 0xaa {
		return 0, nil
	}
	// Boot sectors of filesystems have the same mark, but hardly four entries that could be partitions.
	any := false
	for e := b[446:510]; len(e) > 0; e = e[16:] {
		if e[0]&0x7f != 0 {
			return 0, nil
		}
		start, count := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		any = any || e[4] != 0 && start != 0 && count != 0
	}
	if any {
		return 512, nil
	}
	return 0, nil
}

func devString(n uint64) string { return fmt.Sprintf("%d:%d", unix.Major(n), unix.Minor(n)) }

// find tells what a path names.
func (s *system) find(path string) (Device, error) {
	d := Device{Path: path, Over: []string{path}}
	var err error
	if d.number, err = s.number(path); err != nil {
		return d, err
	}
	dir, err := filepath.EvalSymlinks(s.root + "/sys/dev/block/" + devString(d.number))
	if err != nil {
		return d, fmt.Errorf("%s: what uses it cannot be told without /sys: %w", path, err)
	}
	d.Name = filepath.Base(dir)
	if _, err := os.Stat(dir + "/partition"); err == nil {
		d.Whole = filepath.Base(filepath.Dir(dir))
	}
	if d.Model = s.line(dir + "/device/model"); d.Whole != "" {
		d.Model = s.line(filepath.Dir(dir) + "/device/model")
	}
	d.Partitions = partitions(dir)
	// What a device is called in /sys has ! where its name in /dev has a slash.
	seen := map[string]bool{}
	for _, name := range append([]string{d.Name, d.Whole}, d.Partitions...) {
		s.over(name, seen, &d.Over)
	}
	return d, nil
}

// over adds a device and what it stands on to a list.
func (s *system) over(name string, seen map[string]bool, list *[]string) {
	if name == "" || seen[name] {
		return
	}
	seen[name] = true
	*list = append(*list, s.root+"/dev/"+strings.ReplaceAll(name, "!", "/"))
	dir := s.root + "/sys/class/block/" + name
	if file := s.line(dir + "/loop/backing_file"); file != "" {
		*list = append(*list, file)
		if n, err := s.number(file); err == nil {
			if below, err := filepath.EvalSymlinks(s.root + "/sys/dev/block/" + devString(n)); err == nil {
				s.over(filepath.Base(below), seen, list)
			}
		}
	}
	for _, slave := range names(dir + "/slaves") {
		s.over(slave, seen, list)
	}
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		if _, err := os.Stat(real + "/partition"); err == nil {
			s.over(filepath.Base(filepath.Dir(real)), seen, list)
		}
	}
}

func (s *system) line(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

func names(dir string) (list []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// partitions are the names of the partitions of a device, given its folder in /sys.
func partitions(dir string) (list []string) {
	for _, name := range names(dir) {
		if _, err := os.Stat(dir + "/" + name + "/partition"); err == nil {
			list = append(list, name)
		}
	}
	return list
}

// unused refuses a device that the kernel says is used, or a partition of which is.
func (s *system) unused(d Device) error {
	for _, name := range append(append([]string{d.Name}, d.Partitions...), d.Whole) {
		if name == "" {
			continue
		}
		number := s.line(s.root + "/sys/class/block/" + name + "/dev")
		if at, err := s.mountOf("self", number); err != nil {
			return fmt.Errorf("%s: what is mounted cannot be told: %w", d.Path, err)
		} else if at != "" {
			return fmt.Errorf("%s: %w: %s on %s; unmount it first", d.Path, ErrMounted, name, at)
		}
		if s.swaps(number) {
			return fmt.Errorf("%s: %w: %s is swap space; swapoff frees it", d.Path, ErrInUse, name)
		}
		if holders := names(s.root + "/sys/class/block/" + name + "/holders"); len(holders) > 0 {
			return fmt.Errorf("%s: %w: %s belongs to %s", d.Path, ErrInUse, name, s.holder(holders[0]))
		}
		if loop := s.loopOver(number); loop != "" {
			return fmt.Errorf("%s: %w: %s is what the loop device %s shows; losetup -d frees it", d.Path, ErrInUse, name, loop)
		}
	}
	return nil
}

// busy says why a device cannot be opened for oneself.
func (s *system) busy(d Device) error {
	// Another mount namespace may have it mounted: a container's.
	seen := map[string]bool{}
	for _, pid := range names(s.root + "/proc") {
		if _, err := strconv.Atoi(pid); err != nil {
			continue
		}
		ns, err := os.Readlink(s.root + "/proc/" + pid + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		for _, name := range append(append([]string{d.Name}, d.Partitions...), d.Whole) {
			if name == "" {
				continue
			}
			if at, _ := s.mountOf(pid, s.line(s.root+"/sys/class/block/"+name+"/dev")); at != "" {
				return fmt.Errorf("%s: %w: %s on %s, as the process %s (%s) sees it", d.Path, ErrMounted, name, at, pid, s.line(s.root+"/proc/"+pid+"/comm"))
			}
		}
	}
	return fmt.Errorf("%s: %w: the kernel says that something else has opened it, or a partition of it, for itself (a mount in a container, LVM, RAID, another program)", d.Path, ErrInUse)
}

// mountOf is where a process has a device mounted, or empty.
func (s *system) mountOf(pid, number string) (string, error) {
	f, err := os.Open(s.root + "/proc/" + pid + "/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 5 {
			continue
		}
		if f[2] == number {
			return unescape(f[4]), nil
		}
		// Some filesystems have a number of their own: then what they were mounted from tells.
		for i, w := range f {
			if w == "-" && i+2 < len(f) && strings.HasPrefix(f[2], "0:") && strings.HasPrefix(f[i+2], "/") {
				if n, err := s.number(unescape(f[i+2])); err == nil && devString(n) == number {
					return unescape(f[4]), nil
				}
			}
		}
	}
	return "", lines.Err()
}

// unescape takes back what the kernel did to blanks and the like in a name.
func unescape(s string) string {
	var o strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				o.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		o.WriteByte(s[i])
	}
	return o.String()
}

func (s *system) swaps(number string) bool {
	for i, line := range strings.Split(s.line(s.root+"/proc/swaps"), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) == 0 {
			continue
		}
		if n, err := s.number(unescape(f[0])); err == nil && devString(n) == number {
			return true
		}
	}
	return false
}

// holder names what is made of a device.
func (s *system) holder(name string) string {
	dir := s.root + "/sys/class/block/" + name
	if mapped := s.line(dir + "/dm/name"); mapped != "" {
		switch uuid := s.line(dir + "/dm/uuid"); {
		case strings.HasPrefix(uuid, "LVM-"):
			return fmt.Sprintf("the LVM volume %s; vgchange -an frees it", mapped)
		case strings.HasPrefix(uuid, "CRYPT-"):
			return fmt.Sprintf("the encrypted volume %s; cryptsetup close frees it", mapped)
		case strings.HasPrefix(uuid, "mpath-"):
			return fmt.Sprintf("the multipath device %s; write to that one", mapped)
		}
		return fmt.Sprintf("the device mapper's %s; dmsetup remove frees it", mapped)
	}
	if strings.HasPrefix(name, "md") {
		return fmt.Sprintf("the RAID %s; mdadm --stop frees it", name)
	}
	return name
}

// loopOver is a loop device whose file is a device.
func (s *system) loopOver(number string) string {
	for _, name := range names(s.root + "/sys/class/block") {
		if !strings.HasPrefix(name, "loop") {
			continue
		}
		file := s.line(s.root + "/sys/class/block/" + name + "/loop/backing_file")
		if file == "" {
			continue
		}
		if n, err := s.number(file); err == nil && devString(n) == number {
			return name
		}
	}
	return ""
}
