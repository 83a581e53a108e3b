package disk

import (
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// An MBR's entries, by offset in bytes. Extended boot records have the same layout: the first entry is a partition
// relative to the record, the second the next record relative to the extended partition.
const (
	mbrEntries   = 446
	mbrEntrySize = 16
	mbrOffCHS    = 1  // 3 bytes: first sector
	mbrOffType   = 4  // u8, 0: unused
	mbrOffEnd    = 5  // 3 bytes: last sector
	mbrOffStart  = 8  // u32, LBA
	mbrOffCount  = 12 // u32, sectors

	// mbrSectors is how long a disk may be for every sector to have a number and every run a length: what fdisk and
	// sfdisk allow as well.
	mbrSectors = math.MaxUint32
)

var mbrPast = [3]byte{0xfe, 0xff, 0xff}

type mbrEdit struct {
	id    string
	slots []*slot
	// taken are the primary entries in use; news the types of those that were added, by their byte.
	taken [4]bool
	news  map[int64]byte
}

func isExtended(kind byte) bool { return kind == 0x05 || kind == 0x0f || kind == 0x85 }

func (d *Disk) readMBREdit() (*mbrEdit, error) {
	b := make([]byte, 512)
	if _, err := d.guest.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("reading the MBR: %w", err)
	}
	id := slices.Clone(b[440:444])
	slices.Reverse(id)
	m := &mbrEdit{id: hex.EncodeToString(id), news: map[int64]byte{}}
	sectors := d.size / 512
	var extended *slot
	for i := range m.taken {
		at := mbrEntries + i*mbrEntrySize
		e := b[at:]
		kind, count := e[mbrOffType], int64(le.Uint32(e[mbrOffCount:]))
		m.taken[i] = kind != 0
		if kind == 0 || count == 0 {
			continue
		}
		if kind == 0xee {
			return nil, fmt.Errorf("%w: the MBR protects a GPT that cannot be read", ErrUnsupported)
		}
		s := &slot{start: int64(le.Uint32(e[mbrOffStart:])), sectors: count, was: count, entry: int64(at), extended: isExtended(kind)}
		if s.end() > sectors {
			return nil, fmt.Errorf("%w: partition %d ends past the disk (sectors %d to %d of %d)", ErrUnsupported, i+1,
				s.start, s.end()-1, sectors)
		}
		s.Partition = Partition{Number: i + 1, Start: s.start * 512, Size: count * 512, Type: fmt.Sprintf("0x%02x", kind)}
		m.slots = append(m.slots, s)
		if s.extended {
			if extended != nil {
				return nil, fmt.Errorf("%w: partitions %d and %d are both extended ones", ErrUnsupported, extended.Number, s.Number)
			}
			extended = s
		}
	}
	if extended == nil {
		return m, nil
	}
	// As readLogical, but with the places of the entries.
	ebr, link := extended.start, int64(0)
	for n := 0; ; n++ {
		if n == maxLogical || ebr < extended.start || ebr >= extended.end() {
			return nil, fmt.Errorf("%w: the chain of logical partitions leaves the extended one or never ends", ErrUnsupported)
		}
		if _, err := d.guest.ReadAt(b, ebr*512); err != nil {
			return nil, fmt.Errorf("reading extended boot record %d at sector %d: %w", n+1, ebr, err)
		}
		s := &slot{start: ebr, ebr: ebr, link: link, entry: ebr*512 + mbrEntries, logical: true}
		if e := b[mbrEntries:]; e[mbrOffType] != 0 {
			s.start = ebr + int64(le.Uint32(e[mbrOffStart:]))
			s.sectors = int64(le.Uint32(e[mbrOffCount:]))
			s.was = s.sectors
			s.Partition = Partition{Start: s.start * 512, Size: s.sectors * 512}
			for _, p := range d.Partitions {
				if p.Number > 4 && p.Start == s.Start && p.Size == s.Size {
					s.Partition = p
				}
			}
			if s.start == ebr || s.sectors == 0 || s.end() > extended.end() {
				return nil, fmt.Errorf("%w: the logical partition of the record at sector %d is not inside the extended one",
					ErrUnsupported, ebr)
			}
		}
		m.slots = append(m.slots, s)
		e := b[mbrEntries+mbrEntrySize:]
		next := int64(le.Uint32(e[mbrOffStart:]))
		if e[mbrOffType] == 0 || next == 0 {
			return m, nil
		}
		link = ebr*512 + mbrEntries + mbrEntrySize
		ebr = extended.start + next
	}
}

func (m *mbrEdit) first() int64 { return 1 }

func (m *mbrEdit) end(n int64) int64 { return min(n, mbrSectors) }

func (m *mbrEdit) disk(end int64) int64 { return min(end, mbrSectors) }

func (m *mbrEdit) add(p *Partition, s *slot) error {
	kind, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(p.Type), "0x"), 16, 8)
	if err != nil || kind == 0 || kind == 0xee || isExtended(byte(kind)) {
		return fmt.Errorf("%q is no type of a partition in an MBR", p.Type)
	}
	i := slices.Index(m.taken[:], false)
	if i < 0 {
		return fmt.Errorf("%w: all 4 primary entries of the MBR are taken", ErrNoRoom)
	}
	m.taken[i] = true
	s.entry = int64(mbrEntries + i*mbrEntrySize)
	m.news[s.entry] = byte(kind)
	p.Number, p.Name, p.Type = i+1, "", fmt.Sprintf("0x%02x", kind)
	p.GUID = fmt.Sprintf("%s-%02x", m.id, p.Number)
	return nil
}

func (m *mbrEdit) clear(io.WriterAt, int64, []*slot) (bool, error) { return false, nil }

func (m *mbrEdit) write(dev io.WriterAt, _ int64, slots []*slot) error {
	for _, s := range slots {
		if s.sectors == s.was {
			continue
		}
		what := fmt.Sprintf("entry of partition %d", s.Number)
		if kind, ok := m.news[s.entry]; ok {
			ent := make([]byte, mbrOffCount)
			c := chs(s.start, mbrPast)
			copy(ent[mbrOffCHS:], c[:])
			ent[mbrOffType] = kind
			le.PutUint32(ent[mbrOffStart:], uint32(s.start))
			if err := writeAt(dev, ent, s.entry, what); err != nil {
				return err
			}
		}
		if err := writeLength(dev, s.entry, s.sectors, s.end(), what); err != nil {
			return err
		}
		if s.link != 0 {
			if err := writeLength(dev, s.link, s.end()-s.ebr, s.end(), "link to the "+what); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeLength writes what an entry says about its end: the length, and the last sector's CHS.
func writeLength(dev io.WriterAt, entry, sectors, end int64, what string) error {
	c := chs(end-1, mbrPast)
	if err := writeAt(dev, c[:], entry+mbrOffEnd, what); err != nil {
		return err
	}
	return writeAt(dev, le.AppendUint32(nil, uint32(sectors)), entry+mbrOffCount, what)
}
