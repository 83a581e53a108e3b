package lvm

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

// On-disk structures of LVM2's text format; numbers are little-endian, offsets and sizes in bytes unless said
// otherwise. Source: lib/format_text/layout.h and lib/label/label.h of LVM2.
const (
	sectorSize  = 512
	labelScan   = 4 // sectors in which a label may lie
	mdaHeader   = 512
	maxText     = 16 << 20 // bytes of metadata text that are read
	maxAreas    = 16       // entries of a list in pv_header; the sector has room for fewer
	maxPVs      = 4096
	maxDevice   = 1 << 60 // bytes
	initialCRC  = 0xf597a6cf
	mdaVersion  = 1
	locnIgnored = 1 // raw_locn.flags
	locnSize    = 16
)

// label_header, at the start of a sector:
//
//	 0 id          8  "LABELONE"
//	 8 sector_xl   8  this sector's number
//	16 crc_xl      4  of bytes 20 to 512 of the sector
//	20 offset_xl   4  from the label to pv_header
//	24 type        8  "LVM2 001"
const (
	labelID       = "LABELONE"
	labelType     = "LVM2 001"
	labelSector   = 8
	labelCRC      = 16
	labelOffset   = 20
	labelTypeAt   = 24
	labelSize     = 32
	pvUUID        = 0  // pv_header: 32 characters, without hyphens
	pvDeviceSize  = 32 // 8
	pvAreas       = 40 // disk_locn{offset 8, size 8}: data areas, a null entry, metadata areas, a null entry
	pvUUIDLen     = 32
	extVersion    = 0 // pv_header_extension, behind the second null entry: 4
	extFlags      = 4 // 4
	extAreas      = 8 // disk_locn of bootloader areas, a null entry
	mdaCRC        = 0 // mda_header: of bytes 4 to 512
	mdaMagicAt    = 4
	mdaMagic      = " LVM2 x[5A%r0N*>"
	mdaVersionAt  = 20
	mdaStartAt    = 24 // 8, from the start of the device
	mdaSizeAt     = 32 // 8
	mdaLocns      = 40 // raw_locn: 0 committed, 1 precommitted, then a null entry
	rawOffset     = 0  // raw_locn: 8, from the start of the area
	rawSize       = 8  // 8, with the final NUL
	rawCRC        = 16 // 4, of the text
	rawFlags      = 20 // 4
	rawSizeOnDisk = 24
)

var le = binary.LittleEndian

// area is a disk_locn.
type area struct{ offset, size int64 }

// overlaps says whether two areas share a byte.
func (a area) overlaps(b area) bool {
	return a.size > 0 && b.size > 0 && a.offset < b.offset+b.size && b.offset < a.offset+a.size
}

// device is what was found on one physical volume.
type device struct {
	PV
	index    int // in the slice given to Open
	uuid     string
	sector   []byte // the label's sector, as it is on disk
	sectorAt int64
	header   int // where pv_header starts in sector
	locns    int // where the metadata areas' disk_locns start in sector
	mdas     []*mda
}

// mda is a metadata area.
type mda struct {
	area
	header  []byte
	ignored bool
	// text is the committed text's place in the ring; size 0 where there is none.
	text area
	// copy is the text, nil where there is none.
	copy []byte
	// moved says that the area is new at this place: what lies there is no header.
	moved bool
	// damaged is why the area could not be read.
	damaged error
}

// checksum is LVM's calc_crc: CRC-32 without the inversions at either end.
func checksum(p []byte) uint32 { return ^crc32.Update(^uint32(initialCRC), crc32.IEEETable, p) }

// readDevice finds the label and the metadata areas. It is nil, nil where there is no label.
func readDevice(pv PV, index int) (*device, error) {
	b := make([]byte, labelScan*sectorSize)
	if pv.Size < int64(len(b)) {
		return nil, nil
	}
	if pv.Size > maxDevice {
		return nil, fmt.Errorf("%w: %s with %d bytes", ErrUnsupported, pv.Name, pv.Size)
	}
	if err := readFull(pv.R, b, 0); err != nil {
		return nil, fmt.Errorf("reading the first sectors of %s: %w", pv.Name, err)
	}
	var bad error
	for n := range labelScan {
		s := b[n*sectorSize:][:sectorSize]
		if string(s[:len(labelID)]) != labelID {
			continue
		}
		if le.Uint64(s[labelSector:]) != uint64(n) || le.Uint32(s[labelCRC:]) != checksum(s[labelOffset:]) {
			bad = fmt.Errorf("%s: %w: the label in sector %d has a wrong number or checksum", pv.Name, ErrCorrupt, n)
			continue
		}
		if t := s[labelTypeAt:][:len(labelType)]; string(t) != labelType {
			return nil, fmt.Errorf("%s: %w: label of type %q; only %q is known", pv.Name, ErrUnsupported, t, labelType)
		}
		d := &device{PV: pv, index: index, sector: s, sectorAt: int64(n) * sectorSize}
		if err := d.read(); err != nil {
			return nil, fmt.Errorf("%s: %w", pv.Name, err)
		}
		return d, nil
	}
	return nil, bad
}

func (d *device) read() error {
	off := le.Uint32(d.sector[labelOffset:])
	if off < labelSize || off > sectorSize-pvAreas {
		return fmt.Errorf("%w: pv_header at byte %d of the label's sector", ErrCorrupt, off)
	}
	d.header = int(off)
	d.uuid = string(d.sector[d.header+pvUUID:][:pvUUIDLen])
	if !validUUID(d.uuid) {
		return fmt.Errorf("%w: UUID %q", ErrCorrupt, d.uuid)
	}
	at := d.header + pvAreas
	if _, err := d.areas(&at); err != nil {
		return fmt.Errorf("data areas: %w", err)
	}
	d.locns = at
	list, err := d.areas(&at)
	if err != nil {
		return fmt.Errorf("metadata areas: %w", err)
	}
	// The extension came in 2013; an older header is followed by zeros, which read as version 0.
	if at+extAreas <= sectorSize && le.Uint32(d.sector[at+extVersion:]) != 0 {
		at += extAreas
		if _, err := d.areas(&at); err != nil {
			return fmt.Errorf("bootloader areas: %w", err)
		}
	}
	for i, a := range list {
		if a.offset < labelScan*sectorSize || a.size < 2*mdaHeader || a.size > d.Size || a.offset > d.Size-a.size {
			return fmt.Errorf("%w: metadata area of %d bytes at %d, on a device of %d bytes", ErrCorrupt, a.size, a.offset, d.Size)
		}
		for _, b := range list[:i] {
			if a.overlaps(b) {
				return fmt.Errorf("%w: metadata areas at %d and %d overlap", ErrCorrupt, b.offset, a.offset)
			}
		}
		m := &mda{area: a}
		d.mdas = append(d.mdas, m)
		if err := m.read(d.R); err != nil {
			m.damaged = fmt.Errorf("%s: metadata area at %d: %w", d.Name, a.offset, err)
		}
	}
	return nil
}

// areas reads a list of disk_locns at *at up to its null entry, and moves *at behind that.
func (d *device) areas(at *int) ([]area, error) {
	var list []area
	for ; *at+locnSize <= sectorSize; *at += locnSize {
		off, size := le.Uint64(d.sector[*at:]), le.Uint64(d.sector[*at+8:])
		if off == 0 {
			*at += locnSize
			return list, nil
		}
		if off > 1<<62 || size > 1<<62 || len(list) == maxAreas {
			break
		}
		list = append(list, area{int64(off), int64(size)})
	}
	return nil, fmt.Errorf("%w: the list has no end or a senseless entry", ErrCorrupt)
}

func (m *mda) read(r io.ReaderAt) error {
	h := make([]byte, mdaHeader)
	if err := readFull(r, h, m.offset); err != nil {
		return err
	}
	m.header = h
	if le.Uint32(h[mdaCRC:]) != checksum(h[mdaMagicAt:]) || string(h[mdaMagicAt:][:len(mdaMagic)]) != mdaMagic {
		return fmt.Errorf("%w: wrong checksum or magic", ErrCorrupt)
	}
	if v := le.Uint32(h[mdaVersionAt:]); v != mdaVersion {
		return fmt.Errorf("%w: version %d", ErrUnsupported, v)
	}
	if le.Uint64(h[mdaStartAt:]) != uint64(m.offset) || le.Uint64(h[mdaSizeAt:]) != uint64(m.size) {
		return fmt.Errorf("%w: it says that it has %d bytes at %d, pv_header says %d bytes", ErrCorrupt,
			le.Uint64(h[mdaSizeAt:]), le.Uint64(h[mdaStartAt:]), m.size)
	}
	l := h[mdaLocns:]
	m.ignored = le.Uint32(l[rawFlags:])&locnIgnored != 0
	off, size := le.Uint64(l[rawOffset:]), le.Uint64(l[rawSize:])
	if m.ignored || off == 0 && size == 0 {
		return nil
	}
	if off < mdaHeader || off >= uint64(m.size) || size == 0 || size > uint64(m.size-mdaHeader) || size > maxText {
		return fmt.Errorf("%w: text of %d bytes at %d of the area's %d", ErrCorrupt, size, off, m.size)
	}
	m.text = area{int64(off), int64(size)}
	text := make([]byte, size)
	first, rest := m.split(m.text)
	if err := readFull(r, text[:first.size], m.offset+first.offset); err != nil {
		return err
	}
	if err := readFull(r, text[first.size:], m.offset+rest.offset); err != nil {
		return err
	}
	if got := checksum(text); got != le.Uint32(l[rawCRC:]) {
		return fmt.Errorf("%w: the text's checksum is %08x, not %08x", ErrCorrupt, got, le.Uint32(l[rawCRC:]))
	}
	m.copy = text
	return nil
}

// split cuts a text's place into what lies before the end of the ring and what lies behind its start.
func (m *mda) split(t area) (first, rest area) {
	first, rest = t, area{mdaHeader, 0}
	if over := t.offset + t.size - m.size; over > 0 {
		first.size, rest.size = t.size-over, over
	}
	return first, rest
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, err)
}

// validUUID takes 32 characters of LVM's alphabet.
func validUUID(s string) bool {
	if len(s) != pvUUIDLen {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '!' || c == '#') {
			return false
		}
	}
	return true
}
