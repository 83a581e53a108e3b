package disk

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// Bounds on what a table may claim. The GPT specification (UEFI 2.10, section 5.3) sets no upper bound on
// entries; 128 is usual and 1024 generous.
const (
	maxGPTEntries = 1024
	gptEntrySize  = 128
	maxLogical    = 128
)

// readTable fills in Table, ID, SectorSize and Partitions.
func (d *Disk) readTable() error {
	d.Table, d.SectorSize = "none", 512
	if d.size < 1024 {
		return fmt.Errorf("%w: %d bytes are too few for a disk", ErrUnsupported, d.size)
	}
	whole, err := filesystem.Probe(d.guest, d.size)
	if err != nil {
		return fmt.Errorf("reading the first blocks: %w", err)
	}
	found, err := d.readGPT()
	if err != nil {
		return err
	}
	if !found {
		if found, err = d.readMBR(whole.Kind == filesystem.Unknown); err != nil {
			return err
		}
	}
	if !found {
		if whole.Kind == filesystem.Unknown {
			return fmt.Errorf("%w: neither a GPT, nor an MBR with partitions, nor a known filesystem was found", ErrUnsupported)
		}
		d.Partitions = []Partition{{Size: d.size}}
	}
	slices.SortFunc(d.Partitions, func(a, b Partition) int { return a.Number - b.Number })
	for i := range d.Partitions {
		p := &d.Partitions[i]
		if p.Start < 0 || p.Size <= 0 || p.Start > d.size || p.Size > d.size-p.Start {
			return fmt.Errorf("partition %d ends past the disk (bytes %d to %d of %d): the image is cut short or its table is wrong",
				p.Number, p.Start, p.Start+p.Size, d.size)
		}
		probed, err := filesystem.Probe(d.Section(*p), p.Size)
		if err != nil {
			return fmt.Errorf("reading the first blocks of partition %d: %w", p.Number, err)
		}
		p.Kind, p.Label, p.UUID = probed.Kind, probed.Label, probed.UUID
	}
	return nil
}

// readGPT reads a GPT of 512 or 4096-byte sectors through go-diskfs, after bounding what it would trust.
func (d *Disk) readGPT() (bool, error) {
	for _, sector := range []int64{512, 4096} {
		primary, perr := d.gptHeader(sector, sector)
		backup, berr := d.gptHeader(sector, d.size/sector*sector-sector)
		if !primary && !(backup && d.protectiveMBR()) {
			if perr != nil {
				return false, perr
			}
			continue
		}
		if err := errors.Join(perr, berr); err != nil {
			return false, err
		}
		t, err := gpt.Read(&tableFile{io.NewSectionReader(d.guest, 0, d.size)}, int(sector), int(sector))
		if err != nil {
			return false, fmt.Errorf("partition table: %w", err)
		}
		if t.RecoveredFromBackup {
			d.Warnings = append(d.Warnings, "the primary GPT is damaged; its backup at the end of the disk was read (sgdisk --repair mends it)")
		}
		d.Table, d.ID, d.SectorSize = "gpt", strings.ToLower(t.GUID), int(sector)
		for _, p := range t.Partitions {
			if p.Type == gpt.Unused {
				continue
			}
			if p.Start > p.End || p.End > uint64(d.size/sector) {
				return false, fmt.Errorf("partition %d ends past the disk (sectors %d to %d of %d): the image is cut short or its table is wrong",
					p.Index, p.Start, p.End, d.size/sector)
			}
			d.Partitions = append(d.Partitions, Partition{Number: p.Index, Start: int64(p.Start) * sector,
				Size: int64(p.End-p.Start+1) * sector, Type: strings.ToLower(string(p.Type)), Name: p.Name,
				GUID: strings.ToLower(p.GUID)})
		}
		return true, nil
	}
	return false, nil
}

// gptHeader looks for a header at off and refuses one whose entry array is beyond reason: go-diskfs allocates
// by these numbers.
func (d *Disk) gptHeader(sector, off int64) (bool, error) {
	b := make([]byte, 92)
	if off < sector || off+sector > d.size {
		return false, nil
	}
	if _, err := d.guest.ReadAt(b, off); err != nil {
		return false, fmt.Errorf("reading sector %d: %w", off/sector, err)
	}
	if string(b[:8]) != "EFI PART" {
		return false, nil
	}
	lba, n, size := binary.LittleEndian.Uint64(b[72:]), binary.LittleEndian.Uint32(b[80:]), binary.LittleEndian.Uint32(b[84:])
	if n > maxGPTEntries || size != gptEntrySize || lba > uint64(d.size/sector) {
		return true, fmt.Errorf("%w: GPT with %d entries of %d bytes at sector %d (at most %d of %d bytes are read)",
			ErrUnsupported, n, size, lba, maxGPTEntries, gptEntrySize)
	}
	return true, nil
}

func (d *Disk) protectiveMBR() bool {
	b := make([]byte, 512)
	if _, err := d.guest.ReadAt(b, 0); err != nil || b[510] != 0x55 || b[511] != 0xaa {
		return false
	}
	for i := range 4 {
		if mbr.Type(b[446+16*i+4]) == mbr.GPTProtective {
			return true
		}
	}
	return false
}

// readMBR reads primary entries through go-diskfs and follows the chain of an extended partition.
// bare says that no filesystem fills the disk, so that what looks like a table is one.
func (d *Disk) readMBR(bare bool) (bool, error) {
	t, err := mbr.Read(&tableFile{io.NewSectionReader(d.guest, 0, d.size)}, 512, 512)
	if err != nil {
		return false, nil // a boot sector of a bare filesystem, or none at all
	}
	var parts []Partition
	var extended *mbr.Partition
	sectors := d.size / 512
	for i, p := range t.Partitions {
		if p.Type == mbr.Empty || p.Size == 0 {
			continue
		}
		if bare && p.Start > 0 && int64(p.Start) >= sectors {
			return false, fmt.Errorf("partition %d starts past the disk (sector %d of %d): the image is cut short or its table is wrong",
				i+1, p.Start, sectors)
		}
		if p.Start == 0 || int64(p.Start) >= sectors {
			return false, nil // not a table: boot code of a bare filesystem
		}
		if p.Type == mbr.ExtendedCHS || p.Type == mbr.ExtendedLBA || p.Type == mbr.LinuxExtended {
			extended = p
			continue
		}
		parts = append(parts, Partition{Number: i + 1, Start: int64(p.Start) * 512, Size: int64(p.Size) * 512,
			Type: fmt.Sprintf("0x%02x", byte(p.Type))})
	}
	if extended != nil {
		logical, err := d.readLogical(int64(extended.Start), int64(extended.Size))
		if err != nil {
			return false, err
		}
		parts = append(parts, logical...)
	}
	if len(parts) == 0 {
		return false, nil
	}
	b := make([]byte, 4)
	if _, err := d.guest.ReadAt(b, 440); err != nil {
		return false, err
	}
	slices.Reverse(b)
	d.Table, d.ID = "mbr", hex.EncodeToString(b)
	for i := range parts {
		parts[i].GUID = fmt.Sprintf("%s-%02x", d.ID, parts[i].Number)
	}
	d.Partitions = parts
	return true, nil
}

// readLogical follows the chain of extended boot records inside the extended partition, in sectors of 512 bytes.
func (d *Disk) readLogical(start, size int64) ([]Partition, error) {
	var parts []Partition
	b := make([]byte, 512)
	for ebr, n := start, 0; ; n++ {
		if n == maxLogical {
			return nil, fmt.Errorf("%w: more than %d logical partitions, or a chain that never ends", ErrUnsupported, maxLogical)
		}
		if ebr < start || ebr >= start+size || (ebr+1)*512 > d.size {
			return nil, fmt.Errorf("extended boot record %d lies outside the extended partition (sector %d)", n+1, ebr)
		}
		if _, err := d.guest.ReadAt(b, ebr*512); err != nil {
			return nil, fmt.Errorf("reading extended boot record %d at sector %d: %w", n+1, ebr, err)
		}
		if b[510] != 0x55 || b[511] != 0xaa {
			return nil, fmt.Errorf("extended boot record %d at sector %d has no signature", n+1, ebr)
		}
		if e := b[446:]; e[4] != 0 {
			parts = append(parts, Partition{Number: 5 + n, Start: (ebr + int64(binary.LittleEndian.Uint32(e[8:]))) * 512,
				Size: int64(binary.LittleEndian.Uint32(e[12:])) * 512, Type: fmt.Sprintf("0x%02x", e[4])})
		}
		next := int64(binary.LittleEndian.Uint32(b[462+8:]))
		if b[462+4] == 0 || next == 0 {
			return parts, nil
		}
		ebr = start + next
	}
}

// tableFile is the file that go-diskfs wants, over guest bytes.
type tableFile struct{ *io.SectionReader }

func (*tableFile) Stat() (fs.FileInfo, error) { return nil, fs.ErrInvalid }
func (*tableFile) Close() error               { return nil }
