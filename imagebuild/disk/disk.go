// Package disk opens a boot disk: the image format, the partition table, and what each partition holds.
// Nothing here writes.
package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/qcow"
)

// ErrUnsupported is matched by errors for a disk that is whole but of a kind that nodebake does not handle.
var ErrUnsupported = errors.New("unsupported disk")

// Format is how a disk image file is laid out.
type Format string

// The formats that are read and written.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// Disk is an opened disk image: guest bytes by ReadAt, safe for concurrent use.
type Disk struct {
	Path   string
	Format Format
	// Image is nil for a raw disk.
	Image *qcow.Image
	// Table is "gpt", "mbr", or "none" where one filesystem fills the disk.
	Table string
	// ID is the table's own: the disk GUID, or the MBR's 32-bit signature in hex.
	ID         string
	SectorSize int
	Partitions []Partition
	// Volumes are what may hold a filesystem: the partitions, and in the place of LVM's physical volumes the logical ones.
	Volumes []Partition
	// Warnings are sentences about what is odd but was got over.
	Warnings []string

	o     Options
	file  *os.File
	guest io.ReaderAt
	size  int64
	used  []used
}

// used is a file that the disk consists of, as it was when it was opened.
type used struct {
	path string
	os.FileInfo
}

// Options say how far a disk image is trusted.
type Options struct {
	// AllowBacking opens the backing and data files that a qcow2 names wherever they are, and not only beside it.
	AllowBacking bool
}

// Open opens the disk image at path, whose format is read from its content and never from its name. The caller
// closes it.
func Open(path string, o Options) (*Disk, error) {
	d, err := OpenImage(path, o)
	if err != nil {
		return nil, err
	}
	if err := d.readLayout(); err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}

// OpenFile is Open for a file that is open, and that may have no name; the disk takes it over. name is what errors
// call it.
func OpenFile(f *os.File, name string, o Options) (*Disk, error) {
	d := &Disk{Path: name, Format: Raw, file: f, o: o}
	if err := d.open(); err != nil {
		d.Close()
		return nil, err
	}
	if err := d.readLayout(); err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// OpenImage is Open for those who want the disk's bytes alone: its table is not read, and there need be none.
func OpenImage(path string, o Options) (*Disk, error) {
	// Asked before opening: a FIFO without a writer would never open.
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if m := st.Mode(); !m.IsRegular() && !m.IsDir() && m&(os.ModeDevice|os.ModeCharDevice) != os.ModeDevice {
		return nil, fmt.Errorf("%s is neither a file nor a block device", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	d := &Disk{Path: path, Format: Raw, file: f, o: o}
	if err := d.open(); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) readLayout() error {
	if err := d.readTable(); err != nil {
		return err
	}
	return d.readVolumes()
}

func (d *Disk) open() error {
	f, path := d.file, d.Path
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.IsDir() {
		return fmt.Errorf("%s is a folder, not a disk image", path)
	}
	d.used = append(d.used, used{path, st})
	if d.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("%s: size: %w", path, err)
	}
	d.guest = f
	head := make([]byte, 512)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	head = head[:n]
	if qcow.IsQcow2(head) {
		d.Format = Qcow2
		src, err := qcow.NewFileSource(f)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		d.Image, err = qcow.Open(src, d.Chain())
		if errors.Is(err, qcow.ErrBacking) && !d.o.AllowBacking {
			err = fmt.Errorf("%w; --allow-backing opens local files wherever they are, for disks that you trust", err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		d.guest, d.size = d.Image, d.Image.Size()
	} else if other := foreign(head); other != "" {
		return fmt.Errorf("%s is %s: %w; convert it first: qemu-img convert -O qcow2 %s disk.qcow2",
			path, other, ErrUnsupported, filepath.Base(path))
	}
	return nil
}

// Chain opens the files that an image in the disk's place would be backed by: from the disk's folder, or wherever
// they are if Options permit that. It notes each, so that no output can take its place.
func (d *Disk) Chain() qcow.Options {
	dir := filepath.Dir(d.Path)
	inner, from := qcow.NewDirResolver(dir), ""
	if d.o.AllowBacking {
		inner, from, dir = qcow.ResolveLocal, d.Path, ""
	}
	return qcow.Options{Path: from, Resolve: func(name, format string) (qcow.Source, error) {
		src, err := inner(name, format)
		if err == nil {
			path := filepath.Join(dir, name)
			if st, serr := os.Stat(path); serr == nil {
				d.used = append(d.used, used{path, st})
			}
		}
		return src, err
	}}
}

// foreign names image formats that would otherwise pass for a raw disk without a table.
func foreign(head []byte) string {
	for _, m := range []struct{ magic, name string }{
		{"KDMV", "a VMDK image"}, {"# Disk DescriptorFile", "a VMDK descriptor"}, {"vhdxfile", "a VHDX image"},
		{"conectix", "a VHD image"}, {"<<< ", "a VDI image"}, {"QED\x00", "a QED image"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.name
		}
	}
	for _, m := range []struct{ magic, name string }{
		{"\x1f\x8b", "gzip"}, {"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"BZh", "bzip2"},
	} {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return "a file compressed with " + m.name + " (decompress it first)"
		}
	}
	return ""
}

// ReadAt reads guest bytes.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) { return d.guest.ReadAt(p, off) }

// Size is the guest's size in bytes.
func (d *Disk) Size() int64 { return d.size }

// File is the image file itself, open for reading.
func (d *Disk) File() *os.File { return d.file }

// Backing are the paths of the files that the image is backed by, the nearest first.
func (d *Disk) Backing() []string {
	var paths []string
	for _, u := range d.used[1:] {
		paths = append(paths, u.path)
	}
	return paths
}

// Uses says whether st is the image file or one that it is backed by.
func (d *Disk) Uses(st os.FileInfo) bool {
	for _, u := range d.used {
		if os.SameFile(u.FileInfo, st) {
			return true
		}
	}
	return false
}

// ErrChanged says that a disk was written to while it was read.
var ErrChanged = errors.New("the disk changed while it was read")

// Unchanged is nil while the size and the modification time of each of the disk's files are what they were when
// it was opened, and else an error that matches ErrChanged. A file that was removed or replaced meanwhile is no
// change: what was opened is still whole.
func (d *Disk) Unchanged() error {
	for i, u := range d.used {
		st, err := os.Stat(u.path)
		if i == 0 {
			st, err = d.file.Stat()
		}
		if err != nil || !os.SameFile(u.FileInfo, st) {
			continue
		}
		if st.Size() != u.Size() || !st.ModTime().Equal(u.ModTime()) {
			return fmt.Errorf("%s: %w; stop what writes to it, such as a running VM, and start again", u.path, ErrChanged)
		}
	}
	return nil
}

// Close closes the image and the files that back it.
func (d *Disk) Close() error {
	var err error
	if d.Image != nil {
		err = d.Image.Close()
	}
	return errors.Join(err, d.file.Close())
}

// Partition is one entry of the table, the whole disk where there is none, or a logical volume of LVM's.
type Partition struct {
	// Number is the entry's place, counted from 1; 0 for a whole disk. A logical volume has its group's first one.
	Number int `json:"number"`
	// LV is a logical volume's name, as GROUP/NAME; empty for a partition.
	LV string `json:"logicalVolume,omitempty"`
	// Start and Size are in bytes of the guest; Start says nothing about a logical volume.
	Start int64 `json:"start"`
	Size  int64 `json:"size"`
	// Type is a GUID (GPT) or a byte in hex (MBR).
	Type string `json:"type,omitempty"`
	// Name is the GPT entry's; GUID its unique GUID, or the MBR's SIGNATURE-NN.
	Name string `json:"name,omitempty"`
	GUID string `json:"guid,omitempty"`
	// Kind, Label and UUID are those of the content.
	Kind  filesystem.Kind `json:"filesystem,omitempty"`
	Label string          `json:"label,omitempty"`
	UUID  string          `json:"uuid,omitempty"`

	lv *logical
}

// Section reads the partition's own bytes.
func (d *Disk) Section(p Partition) *io.SectionReader {
	return io.NewSectionReader(mapped{r: d.guest, runs: p.runs()}, 0, p.Size)
}

// String is how errors and plans name a partition.
func (p Partition) String() string {
	var s strings.Builder
	switch {
	case p.LV != "":
		s.WriteString("logical volume " + p.LV)
	case p.Number == 0:
		s.WriteString("the whole disk")
	default:
		fmt.Fprintf(&s, "partition %d", p.Number)
	}
	var of []string
	if p.Name != "" {
		of = append(of, fmt.Sprintf("name %q", p.Name))
	}
	if p.Label != "" {
		of = append(of, fmt.Sprintf("label %q", p.Label))
	}
	kind := string(p.Kind)
	if kind == "" && p.Refused() == nil {
		kind = "no known filesystem"
	}
	if kind != "" {
		of = append(of, kind)
	}
	of = append(of, Bytes(p.Size))
	return s.String() + " (" + strings.Join(of, ", ") + ")"
}

// Matches says whether a person's words mean this partition: its number, its GPT name or GUID, or the
// filesystem's label or UUID, optionally behind fstab's LABEL=, UUID=, PARTLABEL= or PARTUUID=. A logical volume is
// meant by GROUP/NAME and its device names, and by the number of the partition that its group is on.
func (p Partition) Matches(word string) bool {
	key, value, tagged := strings.Cut(word, "=")
	if !tagged {
		key, value = "", word
	}
	same := func(tag, have string) bool {
		return (key == "" || strings.EqualFold(key, tag)) && have != "" && strings.EqualFold(have, value)
	}
	if key == "" && (value == fmt.Sprint(p.Number) || p.LV != "" && value == p.LV || p.lv != nil && slices.Contains(p.lv.paths, value)) {
		return true
	}
	return same("PARTLABEL", p.Name) || same("PARTUUID", p.GUID) || same("LABEL", p.Label) || same("UUID", p.UUID)
}

// Bytes writes a size for people, in powers of 1024.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 1023.95 && unit < 6 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, " KMGTPE"[unit])
}

// ParseBytes reads a size as people write it: a whole number, alone or with K, M, G or T behind it, also written
// KiB and so on; powers of 1024, as for qemu-img.
func ParseBytes(s string) (int64, error) {
	units := map[string]int{"": 0, "K": 10, "KIB": 10, "M": 20, "MIB": 20, "G": 30, "GIB": 30, "T": 40, "TIB": 40}
	digits := strings.TrimRight(s, "KMGTiBkmgtb")
	shift, ok := units[strings.ToUpper(s[len(digits):])]
	n, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size; write it like 20G or 512M", s)
	}
	return int64(n) << shift, nil
}
