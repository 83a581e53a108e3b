package disk

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// addAlign is where new partitions start: a multiple of this many bytes, as every common tool has it.
const addAlign = 1 << 20

// TableEdit is a change of a partition table that patches the bytes which must change and no others. Its methods
// change memory only, except Clear and Write. Not safe for concurrent use.
type TableEdit struct {
	format tableFormat
	// base is the disk's size as it was opened, sectors the size that it will have.
	base, sector, sectors int64
	slots                 []*slot
	cleared, written      bool
}

// tableFormat is what GPT and MBR do each in their own way. Units are sectors; ends are exclusive.
type tableFormat interface {
	// first is the first usable sector.
	first() int64
	// end is where the last partition must end on a disk of n sectors.
	end(n int64) int64
	// disk is the least number of sectors whose end is at least end, or as good as it gets.
	disk(end int64) int64
	// add takes an entry for p, which lies at s.
	add(p *Partition, s *slot) error
	// clear says whether it did something, or tried to.
	clear(dev io.WriterAt, sectors int64, slots []*slot) (bool, error)
	write(dev io.WriterAt, sectors int64, slots []*slot) error
}

// slot is one entry of the table in sectors. An extended partition is one too, and so is an extended boot record
// that holds no partition (number and size 0).
type slot struct {
	Partition
	start, sectors int64
	// was is the size on the disk as it was opened: 0 for a new one.
	was               int64
	extended, logical bool
	// ebr is the sector of a logical partition's own record, link the byte where the entry that leads to it lies (0 if
	// none does), entry the byte of the partition's entry. MBR only.
	ebr, link, entry int64
}

func (s *slot) end() int64 { return s.start + s.sectors }

// from is the first sector that the entry takes.
func (s *slot) from() int64 {
	if s.logical {
		return s.ebr
	}
	return s.start
}

// Behind lists the partitions that start behind p's end, nearest first: what is in p's way when it grows. An
// extended partition is listed only if it holds no logical ones.
func (d *Disk) Behind(p Partition) []Partition {
	all := slices.Clone(d.Partitions)
	if d.Table == "mbr" {
		if m, err := d.readMBREdit(); err == nil {
			for _, s := range m.slots {
				if s.extended && !slices.ContainsFunc(m.slots, func(o *slot) bool { return o.logical && o.Number > 0 }) {
					all = append(all, s.Partition)
				}
			}
		}
	}
	all = slices.DeleteFunc(all, func(o Partition) bool { return o.Start < p.Start+p.Size })
	slices.SortStableFunc(all, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	return all
}

// EditTable starts a change of d's partition table for a disk that will be size bytes long, at least d.Size(). The
// table is read anew, and held to stricter rules than Open's: partitions that overlap each other or the table, and
// a backup GPT that cannot be placed, are errors matching ErrUnsupported or ErrNoRoom.
//
// A GPT whose backup is not at the end of the disk (an image copied to a larger disk) gets it there. A damaged
// primary GPT is made anew from the backup if it is certain where its entry array belongs; else that is an error.
func (d *Disk) EditTable(size int64) (*TableEdit, error) {
	e := &TableEdit{base: d.size, sector: int64(d.SectorSize)}
	var reserved []*slot
	switch d.Table {
	case "gpt":
		g, err := d.readGPTEdit()
		if err != nil {
			return nil, err
		}
		e.format, e.slots = g, g.slots
		reserved = []*slot{{sectors: 2}, {start: g.arrayLBA, sectors: g.arraySectors}}
	case "mbr":
		m, err := d.readMBREdit()
		if err != nil {
			return nil, err
		}
		e.format, e.slots = m, m.slots
		reserved = []*slot{{sectors: 1}}
	default:
		return nil, fmt.Errorf("%w: %s has no partition table to change", ErrUnsupported, d.Path)
	}
	if err := overlaps(append(reserved, e.slots...)); err != nil {
		return nil, err
	}
	held := 0
	for _, s := range e.slots {
		if s.sectors > 0 && !s.extended {
			held++
		}
	}
	again := held == len(d.Partitions)
	for _, p := range d.Partitions {
		s, err := e.slot(p.Number)
		if again = again && err == nil && s.Start == p.Start && s.Size == p.Size; again {
			s.Partition = p
		}
	}
	if !again {
		return nil, fmt.Errorf("%w: the partition table can be read in more than one way", ErrUnsupported)
	}
	if err := e.SetDiskSize(size); err != nil {
		return nil, err
	}
	return e, nil
}

// overlaps finds two entries that share a sector; those inside an extended partition are held against each other
// alone, since readMBREdit holds them to be inside.
func overlaps(slots []*slot) error {
	for _, logical := range []bool{false, true} {
		var of []*slot
		for _, s := range slots {
			if s.logical == logical {
				of = append(of, s)
			}
		}
		slices.SortStableFunc(of, func(a, b *slot) int { return cmp.Compare(a.from(), b.from()) })
		for i := 1; i < len(of); i++ {
			if a, b := of[i-1], of[i]; max(a.end(), a.from()+1) > b.from() {
				return fmt.Errorf("%w: %s and %s overlap in the partition table", ErrUnsupported, a.place(), b.place())
			}
		}
	}
	return nil
}

func (s *slot) place() string {
	switch {
	case s.Number > 0:
		return fmt.Sprintf("partition %d (sectors %d to %d)", s.Number, s.start, s.end()-1)
	case s.logical:
		return fmt.Sprintf("the extended boot record at sector %d", s.ebr)
	}
	return fmt.Sprintf("the table itself (sectors %d to %d)", s.start, s.end()-1)
}

func (e *TableEdit) slot(number int) (*slot, error) {
	for _, s := range e.slots {
		if s.Number == number && number > 0 && !s.extended {
			return s, nil
		}
	}
	return nil, fmt.Errorf("there is no partition %d", number)
}

// SetDiskSize sets the size in bytes that the disk will have; what is behind the last whole sector is not used. It
// may be called any number of times. Less than the disk as it was opened, or less than the partitions need, is an
// error and changes nothing.
func (e *TableEdit) SetDiskSize(size int64) error {
	if size < e.base {
		return fmt.Errorf("a disk of %d bytes is not made smaller (%d)", e.base, size)
	}
	n := size / e.sector
	end := e.format.end(n)
	if end < 1 {
		return fmt.Errorf("%w: a disk of %s is too small for it", ErrNoRoom, Bytes(size))
	}
	for _, s := range e.slots {
		if s.end() > end {
			return fmt.Errorf("%w: partition %d ends at sector %d, and the last usable one of a disk of %s is %d",
				ErrNoRoom, s.Number, s.end()-1, Bytes(size), end-1)
		}
	}
	e.sectors = n
	return nil
}

// limit is where s must end at the latest on a disk of n sectors, and what is there.
func (e *TableEdit) limit(s *slot, n int64) (int64, string) {
	end, why := e.format.end(n), "the last usable sector of the disk"
	for _, o := range e.slots {
		// A logical partition stands beside other logical ones and, outside, whatever lies behind the extended one,
		// which grows with it. All others see the extended partition instead of what it holds.
		if o == s || s.logical && o.extended || !s.logical && o.logical {
			continue
		}
		if o.from() > s.start && o.from() < end {
			end = o.from()
			if why = o.String(); o.Number == 0 {
				why = o.place()
			}
		}
	}
	return end, why
}

// Room is the largest size in bytes that the partition may have on the disk of the size set: up to the next
// partition or the last usable sector, in whole sectors.
func (e *TableEdit) Room(number int) (int64, error) {
	s, err := e.slot(number)
	if err != nil {
		return 0, err
	}
	end, _ := e.limit(s, e.sectors)
	return (end - s.start) * e.sector, nil
}

// DiskSizeFor is the least size of the disk in bytes at which the partition may be size bytes long or, where no
// disk is large enough (another partition is in the way, or an MBR counts no further), at which it has the most
// Room. It is never less than the disk's size as it was opened.
func (e *TableEdit) DiskSizeFor(number int, size int64) int64 {
	s, err := e.slot(number)
	if err != nil {
		return e.base
	}
	end, _ := e.limit(s, maxDisk/e.sector)
	return e.diskSize(min(end, s.start+e.count(size)))
}

// maxDisk is larger than every disk, and adding to it does not overflow.
const maxDisk = 1 << 62

// count is how many sectors size bytes take.
func (e *TableEdit) count(size int64) int64 {
	if size <= 0 {
		return 1
	}
	return (size-1)/e.sector + 1
}

// diskSize is the least size in bytes of a disk on which a partition may end at end.
func (e *TableEdit) diskSize(end int64) int64 {
	have := e.base / e.sector
	if end <= e.format.end(have) {
		return e.base
	}
	// The table may leave a tail unused, which comes into use only when the disk grows.
	return max(e.format.disk(end), have+1) * e.sector
}

func (e *TableEdit) tooLong(s *slot, size, end int64, why string) error {
	return fmt.Errorf("%w: partition %d cannot have %s: behind %s comes %s", ErrNoRoom, s.Number, Bytes(size),
		Bytes((end-s.start)*e.sector), why)
}

// Grow gives the partition size bytes, rounded up to whole sectors; an extended partition around it grows as far as
// it must. Less than it has is an error; more than Room says is one that matches ErrNoRoom.
func (e *TableEdit) Grow(number int, size int64) error {
	s, err := e.slot(number)
	if err != nil {
		return err
	}
	need := e.count(size)
	if need < s.sectors {
		return fmt.Errorf("partition %d of %d bytes is not made smaller (%d)", number, s.sectors*e.sector, size)
	}
	if end, why := e.limit(s, e.sectors); need > end-s.start {
		return e.tooLong(s, size, end, why)
	}
	s.sectors = need
	if s.logical {
		for _, o := range e.slots {
			if o.extended && s.end() > o.end() {
				o.sectors = s.end() - o.start
			}
		}
	}
	return nil
}

// Add puts a new partition of p.Size bytes, rounded up to whole sectors, behind the last one, aligned to 1 MiB, and
// returns it with its Number (the first that is free), Start and GUID; Grow and Room work on it from then on. p's
// Type, and on a GPT its Name and GUID, are the caller's; an MBR derives the GUID and has no names. Errors that match
// ErrNoRoom say what there is too little of: bytes or entries.
func (e *TableEdit) Add(p Partition) (Partition, error) {
	if p.Size <= 0 {
		return Partition{}, fmt.Errorf("a new partition needs a size, not %d", p.Size)
	}
	last := e.format.first()
	for _, s := range e.slots {
		last = max(last, s.end())
	}
	align := addAlign / e.sector
	s := &slot{start: (last + align - 1) / align * align, sectors: e.count(p.Size)}
	if end := e.format.end(e.sectors); s.start > end || s.sectors > end-s.start {
		if most := e.format.end(maxDisk / e.sector); s.end() > most {
			return Partition{}, fmt.Errorf("%w: a new partition of %s behind the last one would end past %s, where the table ends",
				ErrNoRoom, Bytes(p.Size), Bytes(most*e.sector))
		}
		return Partition{}, fmt.Errorf("%w: a new partition of %s behind the last one needs a disk of %d bytes, and it has %d",
			ErrNoRoom, Bytes(p.Size), e.diskSize(s.end()), e.sectors*e.sector)
	}
	if err := e.format.add(&p, s); err != nil {
		return Partition{}, err
	}
	p.Start, p.Size = s.start*e.sector, s.sectors*e.sector
	s.Number, s.Partition = p.Number, p
	e.slots = append(e.slots, s)
	return p, nil
}

// Clear overwrites the old backup GPT with zeros where the disk becomes larger: call it between SetDiskSize and Grow,
// before a filesystem takes that place. It does so once. Where nothing moves, where no valid backup of this table is
// found, or where a partition lies by now, it does nothing. After Write it is an error, since the new backup may be
// where the old one was.
func (e *TableEdit) Clear(dev io.WriterAt) error {
	if e.written {
		return errors.New("the old backup GPT cannot be cleared once the new one is written")
	}
	if e.cleared {
		return nil
	}
	done, err := e.format.clear(dev, e.sectors, e.slots)
	e.cleared = done
	return err
}

// Write writes what changed of the table for a disk of the size set, backup first. Writing again, after more changes
// too, is allowed. Without a change it writes nothing, except that it mends a damaged primary GPT.
func (e *TableEdit) Write(dev io.WriterAt) error {
	e.written = true
	return e.format.write(dev, e.sectors, e.slots)
}

// chs is the cylinder, head and sector of a sector in a table's three bytes, for 255 heads and 63 sectors as all
// tools count today; past says what stands for places that have none.
func chs(lba int64, past [3]byte) [3]byte {
	c := lba / (255 * 63)
	if c > 1023 {
		return past
	}
	return [3]byte{byte(lba / 63 % 255), byte(lba%63+1) | byte(c>>8)<<6, byte(c)}
}

var le = binary.LittleEndian

func writeAt(dev io.WriterAt, b []byte, off int64, what string) error {
	if _, err := dev.WriteAt(b, off); err != nil {
		return fmt.Errorf("writing the %s at byte %d: %w", what, off, err)
	}
	return nil
}
