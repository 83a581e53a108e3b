package lvm

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Changed says whether there is anything for Write to do.
func (g *Group) Changed() bool { return g.changed }

// Write puts what GrowPV and GrowVolume did on the devices: the text into the next place of each metadata area's ring,
// then the labels of the physical volumes that grew, then the headers that make the new text the one that counts. devices
// are at the places of the slice given to Open; those of other groups may be nil. Until Write has returned nil the devices
// may hold neither the old state whole nor the new. Growth can go on afterwards. Without growth nothing is written.
func (g *Group) Write(devices []io.WriterAt) error {
	if !g.changed {
		return nil
	}
	if err := g.growable(); err != nil {
		return err
	}
	if g.Seqno == math.MaxUint32 {
		return fmt.Errorf("%w: volume group %s has the last sequence number", ErrUnsupported, g.Name)
	}
	src := g.render()
	next, err := g.reread(src)
	if err != nil {
		return fmt.Errorf("volume group %s: the new metadata text is wrong: %w", g.Name, err)
	}
	text := append([]byte(src), 0)
	places := map[*mda]area{}
	for _, p := range g.parts {
		if at := p.dev.index; (p.grown || len(p.dev.mdas) > 0) && (at >= len(devices) || devices[at] == nil) {
			return fmt.Errorf("%s belongs to volume group %s and must be written, but no writer was given", p.dev.Name, g.Name)
		}
		for _, m := range p.dev.mdas {
			if m.ignored {
				continue
			}
			if places[m], err = m.place(int64(len(text))); err != nil {
				return fmt.Errorf("volume group %s: %s: %w", g.Name, p.dev.Name, err)
			}
		}
	}
	steps := []func(*physical, io.WriterAt) error{
		func(p *physical, w io.WriterAt) error {
			for _, m := range p.dev.mdas {
				if err := m.writeText(w, text, places[m]); err != nil {
					return err
				}
			}
			return nil
		},
		func(p *physical, w io.WriterAt) error {
			if !p.grown {
				return nil
			}
			return p.dev.writeLabel(w, p.devSize)
		},
		func(p *physical, w io.WriterAt) error {
			for _, m := range p.dev.mdas {
				if err := m.writeHeader(w, text, places[m]); err != nil {
					return err
				}
			}
			return nil
		},
	}
	for _, step := range steps {
		for _, p := range g.parts {
			if at := p.dev.index; at < len(devices) && devices[at] != nil {
				if err := step(p, devices[at]); err != nil {
					return fmt.Errorf("writing metadata of volume group %s to %s: %w", g.Name, p.dev.Name, err)
				}
			}
		}
	}
	*g = *next
	return nil
}

// reread reads a text against the group's own devices and holds it against what is in memory.
func (g *Group) reread(src string) (*Group, error) {
	if len(src) >= maxText {
		return nil, fmt.Errorf("%w: %d bytes, over %d", ErrUnsupported, len(src), maxText)
	}
	byUUID := map[string]*device{}
	for _, p := range g.parts {
		byUUID[p.dev.uuid] = p.dev
	}
	next, err := newGroup(src, byUUID)
	if err != nil {
		return nil, err
	}
	if next.Seqno != g.Seqno+1 || len(next.parts) != len(g.parts) || len(next.lvs) != len(g.lvs) || next.growable() != nil {
		return nil, fmt.Errorf("%w: it reads as another group", ErrCorrupt)
	}
	for i, p := range g.parts {
		q := next.parts[i]
		// Old texts have no dev_size; then only the label tells it.
		sized := p.devSize == q.devSize || q.node.get("dev_size") == nil
		if p.dev != q.dev || p.start != q.start || p.count != q.count || !sized {
			return nil, fmt.Errorf("%w: it reads as another physical volume %s", ErrCorrupt, p.node.key)
		}
	}
	for i, lv := range g.lvs {
		same := func(a, b extent) bool {
			return a.kind == b.kind && a.le == b.le && a.count == b.count && a.part == b.part && a.pe == b.pe
		}
		if other := next.lvs[i]; lv.name != other.name || !slices.EqualFunc(lv.segments, other.segments, same) {
			return nil, fmt.Errorf("%w: it reads as another logical volume %s", ErrCorrupt, lv.name)
		}
	}
	return next, nil
}

// edit replaces a stretch of the text.
type edit struct {
	start, end int
	with       string
}

// render is the text with the growth in it.
func (g *Group) render() string {
	var edits []edit
	set := func(n *node, with string) {
		if n != nil {
			edits = append(edits, edit{n.start, n.end, with})
		}
	}
	number := func(n *node, key string, value uint64) {
		if k := n.get(key); k == nil || k.kind != integer || k.num != value {
			set(k, strconv.FormatUint(value, 10))
		}
	}
	number(g.top, "seqno", uint64(g.Seqno)+1)
	for _, p := range g.parts {
		if p.grown {
			number(p.node, "dev_size", p.devSize)
			number(p.node, "pe_count", uint64(p.count))
		}
	}
	for _, lv := range g.lvs {
		if !lv.grown {
			continue
		}
		number(lv.node, "segment_count", uint64(len(lv.segments)))
		var added strings.Builder
		end := 0
		for i, s := range lv.segments {
			if s.node != nil {
				number(s.node, "extent_count", uint64(s.count))
				end = max(end, s.node.end)
				continue
			}
			fmt.Fprintf(&added, "\nsegment%d {\nstart_extent = %d\nextent_count = %d\n\ntype = \"striped\"\nstripe_count = 1\n\nstripes = [\n\"%s\", %d\n]\n}",
				i+1, s.le, s.count, g.parts[s.part].node.key, s.pe)
		}
		if added.Len() > 0 {
			edits = append(edits, edit{end, end, added.String()})
		}
	}
	if d := g.tree.get("description"); d != nil && d.kind == text {
		set(d, `"Grown offline."`)
	}
	slices.SortStableFunc(edits, func(a, b edit) int { return cmp.Compare(a.start, b.start) })
	var out strings.Builder
	at := 0
	for _, e := range edits {
		out.WriteString(g.src[at:e.start])
		out.WriteString(e.with)
		at = e.end
	}
	out.WriteString(g.src[at:])
	return out.String()
}

// place is where the next text of that size goes in the ring.
func (m *mda) place(size int64) (area, error) {
	if most := (m.size-mdaHeader)/2 - sectorSize; size > most {
		return area{}, fmt.Errorf("%w: the metadata text of %d bytes does not fit: the metadata area takes %d", ErrNoSpace, size, most)
	}
	if m.text.size == 0 {
		return area{mdaHeader, size}, nil
	}
	first, rest := m.split(m.text)
	end := first.offset + first.size
	if rest.size > 0 {
		end = mdaHeader + rest.size
	}
	start := (end + sectorSize - 1) / sectorSize * sectorSize
	if start > m.size-sectorSize {
		start = mdaHeader
	}
	next := area{start, size}
	for _, a := range m.ring(next) {
		for _, b := range m.ring(m.text) {
			if a.overlaps(b) {
				return area{}, fmt.Errorf("%w: the metadata text of %d bytes does not fit beside the present one of %d in a metadata area of %d",
					ErrNoSpace, size, m.text.size, m.size)
			}
		}
	}
	return next, nil
}

func (m *mda) ring(t area) []area {
	first, rest := m.split(t)
	return []area{first, rest}
}

// writeText writes the text, and zeros up to the next sector; for an area at a new place, the zeros that pvresize
// writes as well.
func (m *mda) writeText(w io.WriterAt, text []byte, at area) error {
	if m.moved {
		const wipe = 8 * sectorSize
		if _, err := w.WriteAt(make([]byte, min(wipe, m.size)), m.offset); err != nil {
			return err
		}
	}
	if m.ignored {
		return nil
	}
	first, rest := m.split(at)
	pad := func(p []byte) []byte {
		n := (len(p) + sectorSize - 1) / sectorSize * sectorSize
		return append(bytes.Clone(p), make([]byte, n-len(p))...)
	}
	head, tail := text[:first.size], text[first.size:]
	if rest.size == 0 {
		head = pad(head)
		// An area whose size is no multiple of the sector leaves no room for all zeros.
		head = head[:min(int64(len(head)), m.size-at.offset)]
	}
	if _, err := w.WriteAt(head, m.offset+first.offset); err != nil {
		return err
	}
	if rest.size == 0 {
		return nil
	}
	_, err := w.WriteAt(pad(tail), m.offset+rest.offset)
	return err
}

// writeHeader makes the text at this place the committed one.
func (m *mda) writeHeader(w io.WriterAt, text []byte, at area) error {
	if m.ignored && !m.moved {
		return nil
	}
	h := bytes.Clone(m.header)
	if m.moved {
		le.PutUint64(h[mdaStartAt:], uint64(m.offset))
	}
	l := h[mdaLocns:]
	var crc uint32
	if !m.ignored {
		crc = checksum(text)
	}
	le.PutUint64(l[rawOffset:], uint64(at.offset))
	le.PutUint64(l[rawSize:], uint64(at.size))
	le.PutUint32(l[rawCRC:], crc)
	clear(l[rawSizeOnDisk:][:rawFlags]) // nothing is precommitted
	le.PutUint32(h[mdaCRC:], checksum(h[mdaMagicAt:]))
	if _, err := w.WriteAt(h, m.offset); err != nil {
		return err
	}
	m.header, m.text, m.moved = h, at, false
	return nil
}

// writeLabel writes the label's sector with the device's size in sectors and the places of the metadata areas.
func (d *device) writeLabel(w io.WriterAt, sectors uint64) error {
	s := bytes.Clone(d.sector)
	le.PutUint64(s[d.header+pvDeviceSize:], sectors*sectorSize)
	for i, m := range d.mdas {
		le.PutUint64(s[d.locns+i*locnSize:], uint64(m.offset))
	}
	le.PutUint32(s[labelCRC:], checksum(s[labelOffset:]))
	if _, err := w.WriteAt(s, d.sectorAt); err != nil {
		return err
	}
	d.sector = s
	return nil
}
