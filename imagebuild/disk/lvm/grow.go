package lvm

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// growable is why nothing can grow, nil where it can.
func (g *Group) growable() error { return cmp.Or(g.Err, g.noGrowth) }

// part is the physical volume that was at this place in the slice given to Open.
func (g *Group) part(pv int) (*physical, error) {
	if i := slices.Index(g.PVs, pv); pv >= 0 && i >= 0 {
		return g.parts[i], nil
	}
	return nil, fmt.Errorf("physical volume %d: %w %s", pv, ErrNotFound, g.Name)
}

// gaps are the free runs of a physical volume, ascending.
func (p *physical) gaps() []run {
	var list []run
	var next uint32
	for _, r := range p.used {
		if r.pe > next {
			list = append(list, run{pe: next, count: r.pe - next})
		}
		next = r.pe + r.count
	}
	if next < p.count {
		list = append(list, run{pe: next, count: p.count - next})
	}
	return list
}

func (g *Group) freeExtents() uint64 {
	var sum uint64
	for _, p := range g.parts {
		if !p.allocatable || p.dev == nil {
			continue
		}
		sum += uint64(p.count)
		for _, r := range p.used {
			sum -= uint64(r.count)
		}
	}
	return sum
}

// Free is what volumes can take: the free extents on allocatable physical volumes, in bytes. It is 0 where nothing
// can grow.
func (g *Group) Free() int64 {
	if g.growable() != nil {
		return 0
	}
	return int64(min(g.freeExtents(), uint64(math.MaxInt64/g.ExtentSize))) * g.ExtentSize
}

// tail is the metadata area behind the extents, nil where there is none.
func (p *physical) tail() (*mda, error) {
	var last *mda
	for _, m := range p.dev.mdas {
		if m.offset < p.start {
			continue
		}
		if last != nil {
			return nil, fmt.Errorf("%w: %s has two metadata areas behind its extents", ErrUnsupported, p.dev.Name)
		}
		last = m
	}
	return last, nil
}

// DeviceSize is the least size in bytes of a physical volume with which, after GrowPV, Free is at least free; never less than
// its size now.
func (g *Group) DeviceSize(pv int, free int64) (int64, error) {
	p, err := g.part(pv)
	if err == nil {
		err = g.growable()
	}
	if err != nil {
		return 0, err
	}
	if !p.allocatable {
		return 0, fmt.Errorf("%w: %s is not allocatable (pvchange --allocatable y makes it so)", ErrUnsupported, p.dev.Name)
	}
	short := free - g.Free()
	if short <= 0 {
		return p.dev.Size, nil
	}
	more := (short-1)/g.ExtentSize + 1
	if int64(p.count)+more > math.MaxUint32 || int64(p.count)+more > math.MaxInt64/2/g.ExtentSize {
		return 0, fmt.Errorf("%w: %s cannot have %d more extents of %d bytes", ErrUnsupported, p.dev.Name, more, g.ExtentSize)
	}
	size := p.start + (int64(p.count)+more)*g.ExtentSize
	m, err := p.tail()
	if err != nil {
		return 0, err
	}
	if m != nil {
		size += m.size
	}
	return max(size, p.dev.Size), nil
}

// GrowPV makes a physical volume fill a device of size bytes, as pvresize does. The device need not have that size
// before Write. Where there is no room for another extent nothing changes. Below the present size, it is an error.
func (g *Group) GrowPV(pv int, size int64) error {
	p, err := g.part(pv)
	if err == nil {
		err = g.growable()
	}
	if err != nil {
		return err
	}
	if size > maxDevice {
		return fmt.Errorf("%w: %s with %d bytes", ErrUnsupported, p.dev.Name, size)
	}
	if size < p.dev.Size {
		return fmt.Errorf("%s has %d bytes and cannot shrink to %d", p.dev.Name, p.dev.Size, size)
	}
	m, err := p.tail()
	if err != nil {
		return err
	}
	data := size/sectorSize*sectorSize - p.start
	if m != nil {
		data -= m.size
	}
	count := data / g.ExtentSize
	if count > math.MaxUint32 {
		return fmt.Errorf("%w: %s would have %d extents of %d bytes, over %d", ErrUnsupported, p.dev.Name, count, g.ExtentSize, uint32(math.MaxUint32))
	}
	if count <= int64(p.count) {
		return nil
	}
	if err := g.fits(0); err != nil {
		return err
	}
	p.count, p.devSize, p.grown, g.changed = uint32(count), uint64(data/sectorSize), true, true
	p.dev.Size = size
	if m != nil {
		m.offset, m.moved, m.text = size/sectorSize*sectorSize-m.size, true, area{}
	}
	return nil
}

// GrowVolume makes a linear volume at least size bytes long, in whole extents. Nothing is written to the new extents: they hold
// what lies on the device. Where extents are lacking the error matches ErrNoSpace and nothing changes; below the
// present size it is an error.
func (g *Group) GrowVolume(name string, size int64) error {
	i, err := g.find(name)
	if err == nil {
		err = g.growable()
	}
	if err != nil {
		return err
	}
	lv := g.lvs[i]
	if g.Volumes[i].ReadOnly {
		return fmt.Errorf("%w: %s/%s is read-only (lvchange --permission rw makes it writable)", ErrUnsupported, g.Name, name)
	}
	if size < g.Volumes[i].Size {
		return fmt.Errorf("%s/%s has %d bytes and cannot shrink to %d", g.Name, name, g.Volumes[i].Size, size)
	}
	extents := size / g.ExtentSize
	if size%g.ExtentSize != 0 {
		extents++
	}
	if extents > math.MaxUint32 || extents > math.MaxInt64/2/g.ExtentSize {
		return fmt.Errorf("%w: %s/%s would have %d extents of %d bytes", ErrUnsupported, g.Name, name, extents, g.ExtentSize)
	}
	need := uint32(extents) - lv.extents
	if need == 0 {
		return nil
	}
	runs, free := g.allocate(lv, need)
	if runs == nil {
		return fmt.Errorf("%w in volume group %s for %s: %d more of %d bytes each are needed, %d can be had",
			ErrNoSpace, g.Name, name, need, g.ExtentSize, free)
	}
	if err := g.fits(len(runs)); err != nil {
		return err
	}
	for _, r := range runs {
		p := g.parts[r.part]
		at, _ := slices.BinarySearchFunc(p.used, r.pe, func(u run, pe uint32) int { return cmp.Compare(u.pe, pe) })
		last := &lv.segments[len(lv.segments)-1]
		if last.part == r.part && last.pe+last.count == r.pe {
			last.count += r.count
			p.used[at-1].count += r.count
		} else {
			lv.segments = append(lv.segments, extent{kind: "striped", le: lv.extents, count: r.count, part: r.part, pe: r.pe})
			p.used = slices.Insert(p.used, at, run{r.pe, r.count, lv})
		}
		lv.extents += r.count
	}
	lv.grown, g.changed = true, true
	g.Volumes[i].Size = int64(lv.extents) * g.ExtentSize
	return nil
}

// fits says whether the text still fits the metadata areas with some new segments.
func (g *Group) fits(segments int) error {
	const perSegment, numbers = 192, 64 // bytes, more than either takes
	size := int64(len(g.render())) + numbers + int64(segments)*perSegment
	if size > maxText {
		return fmt.Errorf("%w: volume group %s: a metadata text of %d bytes, over %d", ErrUnsupported, g.Name, size, maxText)
	}
	for _, p := range g.parts {
		for _, m := range p.dev.mdas {
			if m.ignored {
				continue
			}
			if _, err := m.place(size); err != nil {
				return fmt.Errorf("volume group %s: %s: %w", g.Name, p.dev.Name, err)
			}
		}
	}
	return nil
}

// piece is a run on one of the group's physical volumes.
type piece struct {
	part int
	run
	near bool // on a physical volume that the volume uses already
}

// allocate finds need extents, or says how many could be had.
func (g *Group) allocate(lv *logical, need uint32) ([]piece, uint64) {
	policy := lv.policy
	if policy == "" || policy == "inherit" {
		policy = g.policy
	}
	last := lv.segments[len(lv.segments)-1]
	near := map[int]bool{}
	for _, s := range lv.segments {
		near[s.part] = true
	}
	var next, rest []piece
	var free uint64
	for i, p := range g.parts {
		if !p.allocatable {
			continue
		}
		for _, r := range p.gaps() {
			c := piece{part: i, run: r, near: near[i]}
			follows := i == last.part && r.pe == last.pe+last.count
			switch {
			case follows:
				next = append(next, c)
			case policy == "contiguous", (policy == "cling" || policy == "cling_by_tags") && !c.near:
				continue
			default:
				rest = append(rest, c)
			}
			free += uint64(r.count)
		}
	}
	if free < uint64(need) {
		return nil, free
	}
	slices.SortStableFunc(rest, func(a, b piece) int {
		if a.near != b.near {
			if a.near {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.count, a.count)
	})
	var list []piece
	for _, c := range append(next, rest...) {
		if need == 0 {
			break
		}
		c.count = min(c.count, need)
		need -= c.count
		list = append(list, c)
	}
	return list, free
}
