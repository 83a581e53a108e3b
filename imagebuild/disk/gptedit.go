package disk

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A GPT header's fields and an entry's, by their offset in bytes (UEFI 2.10, sections 5.3.2 and 5.3.3). Integers are
// little-endian.
const (
	gptHeaderSize  = 92
	gptOffRevision = 8  // u32
	gptOffSize     = 12 // u32
	gptOffCRC      = 16 // u32, over the header with this field zero
	gptOffReserved = 20 // u32, zero
	gptOffMy       = 24 // u64, LBA of this header
	gptOffAlt      = 32 // u64, LBA of the other header
	gptOffFirst    = 40 // u64, first usable LBA
	gptOffLast     = 48 // u64, last usable LBA
	gptOffGUID     = 56 // 16 bytes
	gptOffArray    = 72 // u64, LBA of the entry array
	gptOffCount    = 80 // u32, entries
	gptOffEntry    = 84 // u32, bytes of an entry
	gptOffArrayCRC = 88 // u32

	entOffType  = 0  // 16 bytes, all zero: unused
	entOffGUID  = 16 // 16 bytes
	entOffFirst = 32 // u64, first LBA
	entOffLast  = 40 // u64, last LBA, inclusive
	entOffAttrs = 48 // u64
	entOffName  = 56 // 36 UTF-16 code units
	entNameLen  = 36
)

// gptCopy is one of the two copies that a disk has: a header's whole sector, and the entries.
type gptCopy struct {
	header, array     []byte
	arrayLBA, sectors int64 // of the array
}

type gptEdit struct {
	sector int64
	slots  []*slot
	// main is the copy that counts; its header and array are what Write starts from.
	main gptCopy
	// arrayLBA is the primary array's place; mend says that the primary copy is written anew, whole.
	arrayLBA, arraySectors, firstUsable int64
	mend                                bool
	// old is the backup as it is, nil if there is no valid one; oldLBA is where its header is or ought to be.
	old    *gptCopy
	oldLBA int64
	// keep says that the backup may stay at oldLBA while the disk ends there; backupLBA is its array's place then.
	keep      bool
	backupLBA int64
	lba0      []byte
	changed   bool
}

// errDamaged is matched by errors for a copy that no reader would take: the other one counts then.
var errDamaged = errors.New("damaged")

// readGPTCopy reads and checks the header at lba and its array on a disk of n sectors.
func (d *Disk) readGPTCopy(lba, n int64) (*gptCopy, error) {
	sector := int64(d.SectorSize)
	if lba < 1 || lba >= n {
		return nil, fmt.Errorf("sector %d is outside the disk", lba)
	}
	h := make([]byte, sector)
	if _, err := d.guest.ReadAt(h, lba*sector); err != nil {
		return nil, fmt.Errorf("reading sector %d: %w", lba, err)
	}
	sum := bytes.Clone(h[:gptHeaderSize])
	copy(sum[gptOffCRC:], make([]byte, 4))
	count, size, array := le.Uint32(h[gptOffCount:]), le.Uint32(h[gptOffEntry:]), le.Uint64(h[gptOffArray:])
	switch {
	case string(h[:8]) != "EFI PART":
		return nil, fmt.Errorf("%w: no GPT header", errDamaged)
	case le.Uint32(h[gptOffRevision:]) != 0x10000 || le.Uint32(h[gptOffSize:]) != gptHeaderSize || !isZero(h[gptOffReserved:][:4]):
		return nil, fmt.Errorf("%w: a header of another revision than 1.0", errDamaged)
	case crc32.ChecksumIEEE(sum) != le.Uint32(h[gptOffCRC:]):
		return nil, fmt.Errorf("%w: wrong checksum of the header", errDamaged)
	case le.Uint64(h[gptOffMy:]) != uint64(lba):
		return nil, fmt.Errorf("the header is meant for sector %d", le.Uint64(h[gptOffMy:]))
	case count == 0 || count > maxGPTEntries || size != gptEntrySize:
		return nil, fmt.Errorf("%d entries of %d bytes", count, size)
	}
	c := &gptCopy{header: h, array: make([]byte, int64(count)*gptEntrySize)}
	c.sectors = (int64(len(c.array)) + sector - 1) / sector
	if c.sectors > n || array < 2 || array > uint64(n-c.sectors) {
		return nil, fmt.Errorf("the entry array at sector %d is outside the disk", array)
	}
	c.arrayLBA = int64(array)
	if _, err := d.guest.ReadAt(c.array, c.arrayLBA*sector); err != nil {
		return nil, fmt.Errorf("reading the entry array at sector %d: %w", c.arrayLBA, err)
	}
	if crc32.ChecksumIEEE(c.array) != le.Uint32(h[gptOffArrayCRC:]) {
		return nil, fmt.Errorf("%w: wrong checksum of the entry array", errDamaged)
	}
	return c, nil
}

func (d *Disk) readGPTEdit() (*gptEdit, error) {
	sector := int64(d.SectorSize)
	n := d.size / sector
	g := &gptEdit{sector: sector, lba0: make([]byte, 512)}
	if _, err := d.guest.ReadAt(g.lba0, 0); err != nil {
		return nil, fmt.Errorf("reading the MBR: %w", err)
	}
	primary, perr := d.readGPTCopy(1, n)
	switch {
	case perr == nil:
		g.main, g.arrayLBA = *primary, primary.arrayLBA
		if alt := le.Uint64(primary.header[gptOffAlt:]); alt > 1 && alt < uint64(n) {
			g.oldLBA = int64(alt)
			old, err := d.readGPTCopy(g.oldLBA, n)
			if err == nil && bytes.Equal(old.header[gptOffGUID:gptOffGUID+16], primary.header[gptOffGUID:gptOffGUID+16]) &&
				old.sectors == primary.sectors {
				g.old = old
			}
		}
	case errors.Is(perr, errDamaged):
		backup, err := d.readGPTCopy(n-1, n)
		if err != nil {
			return nil, fmt.Errorf("%w: neither copy of the GPT is whole: primary %w, backup %w", ErrUnsupported, perr, err)
		}
		g.main, g.old, g.oldLBA, g.mend = *backup, backup, n-1, true
		if g.arrayLBA, err = d.primaryArray(backup); err != nil {
			return nil, err
		}
	default:
		// Open may have read it, and others read the backup: whose partitions would these be?
		return nil, fmt.Errorf("%w: the primary GPT is not as it should be: %w", ErrUnsupported, perr)
	}
	if guid, err := parseGUID(d.ID); err != nil || !bytes.Equal(guid, g.main.header[gptOffGUID:][:16]) {
		return nil, fmt.Errorf("%w: the two copies of the GPT are of different disks, and one is damaged", ErrUnsupported)
	}
	g.arraySectors = g.main.sectors
	first := le.Uint64(g.main.header[gptOffFirst:])
	if first < 2 || first > uint64(n) || g.arrayLBA+g.arraySectors > int64(first) {
		return nil, fmt.Errorf("%w: the GPT's entry array (sectors %d to %d) is not before its first usable sector (%d)",
			ErrUnsupported, g.arrayLBA, g.arrayLBA+g.arraySectors-1, first)
	}
	g.firstUsable = int64(first)
	if g.backupLBA = g.oldLBA - g.arraySectors; g.old != nil {
		g.backupLBA = g.old.arrayLBA
	}
	last := le.Uint64(g.main.header[gptOffLast:])
	g.keep = g.backupLBA > 1 && last >= first-1 && last < uint64(g.backupLBA) && g.backupLBA+g.arraySectors <= g.oldLBA
	for i := range len(g.main.array) / gptEntrySize {
		ent := g.main.array[i*gptEntrySize:][:gptEntrySize]
		if isZero(ent[entOffType:][:16]) {
			continue
		}
		a, b := le.Uint64(ent[entOffFirst:]), le.Uint64(ent[entOffLast:])
		if a > b || b >= uint64(n) {
			return nil, fmt.Errorf("%w: partition %d ends past the disk (sectors %d to %d of %d)", ErrUnsupported, i+1, a, b, n)
		}
		s := &slot{start: int64(a), sectors: int64(b - a + 1)}
		s.was = s.sectors
		s.Partition = Partition{Number: i + 1, Start: s.start * sector, Size: s.sectors * sector}
		g.slots = append(g.slots, s)
	}
	return g, nil
}

// primaryArray is where the array of a damaged primary GPT belongs. The backup does not say, and a boot loader may
// live where it usually is: so there must be a proof, or nothing to lose.
func (d *Disk) primaryArray(backup *gptCopy) (int64, error) {
	sector := int64(d.SectorSize)
	n, first := uint64(d.size/sector), le.Uint64(backup.header[gptOffFirst:])
	b := make([]byte, len(backup.array))
	h := make([]byte, gptHeaderSize)
	if _, err := d.guest.ReadAt(h, sector); err != nil {
		return 0, fmt.Errorf("reading sector 1: %w", err)
	}
	for i, lba := range []uint64{le.Uint64(h[gptOffArray:]), 2} {
		if lba < 2 || lba > n || first > n || lba+uint64(backup.sectors) > first {
			continue
		}
		if _, err := d.guest.ReadAt(b, int64(lba)*sector); err != nil {
			return 0, fmt.Errorf("reading sector %d: %w", lba, err)
		}
		if bytes.Equal(b, backup.array) || i == 1 && (isZero(b) || lba+uint64(backup.sectors) == first) {
			return int64(lba), nil
		}
	}
	return 0, fmt.Errorf("%w: the primary GPT is damaged, and where its entry array was is not certain; "+
		"mend it first: sgdisk --repair", ErrUnsupported)
}

func isZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// moves says whether the backup gets another place on a disk of n sectors.
func (g *gptEdit) moves(n int64) bool { return !g.keep || n-1 != g.oldLBA }

func (g *gptEdit) first() int64 { return g.firstUsable }

func (g *gptEdit) end(n int64) int64 {
	if !g.moves(n) {
		return int64(le.Uint64(g.main.header[gptOffLast:])) + 1
	}
	if end := n - 1 - g.arraySectors; end >= g.firstUsable {
		return end
	}
	return 0
}

func (g *gptEdit) disk(end int64) int64 { return max(end, g.firstUsable) + g.arraySectors + 1 }

func (g *gptEdit) add(p *Partition, s *slot) error {
	ent := make([]byte, gptEntrySize)
	for off, guid := range map[int]string{entOffType: p.Type, entOffGUID: p.GUID} {
		b, err := parseGUID(guid)
		if err != nil {
			return err
		}
		if isZero(b) {
			return fmt.Errorf("the GUID %s stands for none", guid)
		}
		copy(ent[off:], b)
	}
	name := utf16.Encode([]rune(p.Name))
	if len(name) > entNameLen || !utf8.ValidString(p.Name) || strings.Contains(p.Name, "\x00") {
		return fmt.Errorf("%q is no GPT name: at most %d UTF-16 units", p.Name, entNameLen)
	}
	for i, u := range name {
		le.PutUint16(ent[entOffName+2*i:], u)
	}
	le.PutUint64(ent[entOffFirst:], uint64(s.start))
	le.PutUint64(ent[entOffLast:], uint64(s.end()-1))
	free := -1
	for i := range len(g.main.array) / gptEntrySize {
		have := g.main.array[i*gptEntrySize:][:gptEntrySize]
		used := !isZero(have[entOffType:][:16])
		if used && bytes.Equal(have[entOffGUID:][:16], ent[entOffGUID:][:16]) {
			return fmt.Errorf("partition %d has the GUID %s already", i+1, p.GUID)
		}
		if !used && free < 0 {
			free = i
		}
	}
	if free < 0 {
		return fmt.Errorf("%w: all %d entries of the GPT are taken", ErrNoRoom, len(g.main.array)/gptEntrySize)
	}
	copy(g.main.array[free*gptEntrySize:], ent)
	p.Number, g.changed = free+1, true
	p.Type, p.GUID = strings.ToLower(p.Type), strings.ToLower(p.GUID)
	return nil
}

// parseGUID gives the 16 bytes of a GUID as a GPT stores them: the first three groups little-endian.
func parseGUID(s string) ([]byte, error) {
	groups := strings.Split(s, "-")
	b, err := hex.DecodeString(strings.Join(groups, ""))
	if err != nil || len(b) != 16 || len(groups) != 5 || len(groups[0]) != 8 || len(groups[1]) != 4 ||
		len(groups[2]) != 4 || len(groups[3]) != 4 {
		return nil, fmt.Errorf("%q is no GUID", s)
	}
	le.PutUint32(b, uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]))
	b[4], b[5], b[6], b[7] = b[5], b[4], b[7], b[6]
	return b, nil
}

func (g *gptEdit) clear(dev io.WriterAt, n int64, slots []*slot) (bool, error) {
	if g.old == nil || !g.moves(n) {
		return false, nil
	}
	for _, r := range [][2]int64{{g.old.arrayLBA, g.arraySectors}, {g.oldLBA, 1}} {
		free := r[0] >= g.firstUsable
		for _, s := range slots {
			free = free && (r[0]+r[1] <= s.start || r[0] >= s.end())
		}
		if !free {
			continue
		}
		if err := writeAt(dev, make([]byte, r[1]*g.sector), r[0]*g.sector, "old backup GPT's place"); err != nil {
			return true, err
		}
	}
	return true, nil
}

func (g *gptEdit) write(dev io.WriterAt, n int64, slots []*slot) error {
	moves := g.moves(n)
	array := bytes.Clone(g.main.array)
	for _, s := range slots {
		if s.sectors != s.was {
			le.PutUint64(array[(s.Number-1)*gptEntrySize+entOffLast:], uint64(s.end()-1))
			g.changed = true
		}
	}
	if !moves && !g.changed && !g.mend {
		return nil
	}
	my, backupArray := g.oldLBA, g.backupLBA
	if moves {
		my, backupArray = n-1, n-1-g.arraySectors
	}
	header := func(of []byte, my, alt, arrayLBA int64) []byte {
		h := bytes.Clone(of)
		le.PutUint64(h[gptOffMy:], uint64(my))
		le.PutUint64(h[gptOffAlt:], uint64(alt))
		le.PutUint64(h[gptOffLast:], uint64(g.end(n)-1))
		le.PutUint64(h[gptOffArray:], uint64(arrayLBA))
		le.PutUint32(h[gptOffArrayCRC:], crc32.ChecksumIEEE(array))
		le.PutUint32(h[gptOffCRC:], 0)
		le.PutUint32(h[gptOffCRC:], crc32.ChecksumIEEE(h[:gptHeaderSize]))
		return h
	}
	if err := writeAt(dev, array, backupArray*g.sector, "backup GPT's entries"); err != nil {
		return err
	}
	if err := writeAt(dev, header(g.main.header, my, 1, backupArray), my*g.sector, "backup GPT's header"); err != nil {
		return err
	}
	if g.changed || g.mend {
		if err := writeAt(dev, array, g.arrayLBA*g.sector, "GPT's entries"); err != nil {
			return err
		}
	}
	if err := writeAt(dev, header(g.main.header, 1, my, g.arrayLBA), g.sector, "GPT's header"); err != nil {
		return err
	}
	if !moves {
		return nil
	}
	return g.writeProtective(dev, n)
}

// writeProtective makes the protective entry cover the disk, as sgdisk does. In a hybrid MBR it covers no more than
// what is before the first true entry, so there it stays.
func (g *gptEdit) writeProtective(dev io.WriterAt, n int64) error {
	if g.lba0[510] != 0x55 || g.lba0[511] != 0xaa {
		return nil
	}
	at := -1
	for i := range 4 {
		switch e := g.lba0[446+16*i:]; {
		case e[4] == 0:
		case e[4] == 0xee && le.Uint32(e[8:]) == 1 && at < 0:
			at = 446 + 16*i
		default:
			return nil
		}
	}
	if at < 0 {
		return nil
	}
	ent := bytes.Clone(g.lba0[at : at+16])
	le.PutUint32(ent[12:], uint32(min(n-1, math.MaxUint32)))
	// Many tools write the mark for a place without CHS on disks of every size.
	past := [3]byte{0xff, 0xff, 0xff}
	if have := [3]byte(ent[5:8]); have != past && have != [3]byte{0xfe, 0xff, 0xff} {
		end := chs(n-1, past)
		copy(ent[5:], end[:])
	}
	if bytes.Equal(ent, g.lba0[at:at+16]) {
		return nil
	}
	return writeAt(dev, ent, int64(at), "protective MBR's entry")
}
