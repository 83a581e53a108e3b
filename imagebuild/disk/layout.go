package disk

import (
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/nodebake/nodebake/imagebuild/disk/lvm"
)

// Device is the disk that is being made.
type Device interface {
	io.ReaderAt
	io.WriterAt
	// Size is in bytes, and Grow raises it; the new part reads as zeros.
	Size() int64
	Grow(size int64) error
}

var (
	// ErrNoRoom is matched where a partition cannot become larger, or there is no place for another one: another
	// partition is in the way, the disk ends, no entry of the table is free, or the format goes no further.
	ErrNoRoom = errors.New("no room on the disk")
	// ErrFixed is matched as well where only the size that the disk was given stands against more.
	ErrFixed = errors.New("the disk keeps the size that was given")
)

// spare is the part of a partition that growth leaves over, as a divisor: a tenth.
const spare = 10

// step is what the size of a disk that grows by itself is a multiple of.
const step = 1 << 30

// Layout is the disk being made, with its partitions and volume groups as they will be: it hands out volumes, and
// makes room for them. What it changes in the table and in LVM's metadata is written by Commit. It is not safe for
// concurrent use.
type Layout struct {
	d   *Disk
	dev Device
	// edit is nil until the table is to change.
	edit *TableEdit
	// fixed says that the disk does not grow by itself.
	fixed bool
	added []Partition
	// groups are LVM's, and pvs the volumes that they lie on; nil until one of them is to change.
	groups []*lvm.Group
	pvs    []*Volume
}

// NewLayout makes the layout of a copy of d that is on dev. With fixed the disk does not grow by itself.
func NewLayout(d *Disk, dev Device, fixed bool) *Layout {
	return &Layout{d: d, dev: dev, fixed: fixed}
}

// bare says that one filesystem fills the disk.
func (l *Layout) bare() bool { return l.d.Table == "none" }

func (l *Layout) table() (*TableEdit, error) {
	if l.edit == nil {
		e, err := l.d.EditTable(l.dev.Size())
		if err != nil {
			return nil, fmt.Errorf("the partition table cannot be changed: %w", err)
		}
		l.edit = e
	}
	return l.edit, nil
}

// SetSize makes the disk size bytes long.
func (l *Layout) SetSize(size int64) error {
	if size == l.dev.Size() {
		return nil
	}
	if l.bare() {
		return l.dev.Grow(size)
	}
	e, err := l.table()
	if err != nil {
		return err
	}
	if err := l.dev.Grow(size); err != nil {
		return err
	}
	if err := e.SetDiskSize(l.dev.Size()); err != nil {
		return err
	}
	return e.Clear(l.dev)
}

// Add makes a partition at the end of the disk, which becomes as large as that takes.
func (l *Layout) Add(p Partition) (*Volume, error) {
	e, err := l.table()
	if err != nil {
		return nil, err
	}
	// The place is found on a disk that is surely large enough; only the size that it needs is asked of the device.
	if !l.fixed {
		probe, err := l.d.EditTable(l.dev.Size() + p.Size + step)
		if err != nil {
			return nil, err
		}
		placed, err := probe.Add(p)
		if err != nil {
			return nil, err
		}
		if need := probe.DiskSizeFor(placed.Number, placed.Size); need > l.dev.Size() {
			if err := l.SetSize(wholeSteps(need)); err != nil {
				return nil, err
			}
		}
	}
	placed, err := e.Add(p)
	if errors.Is(err, ErrNoRoom) && l.fixed {
		err = fmt.Errorf("%w; %w, %s", err, ErrFixed, Bytes(l.dev.Size()))
	}
	if err != nil {
		return nil, err
	}
	l.added = append(l.added, placed)
	return l.Volume(placed), nil
}

func wholeSteps(size int64) int64 { return (size + step - 1) / step * step }

// Commit writes what changed in the partition table and in LVM's metadata.
func (l *Layout) Commit() error {
	if l.edit != nil {
		if err := l.edit.Write(l.dev); err != nil {
			return err
		}
	}
	devices := make([]io.WriterAt, len(l.pvs))
	for i, v := range l.pvs {
		devices[i] = v
	}
	for _, g := range l.groups {
		if err := g.Write(devices); err != nil {
			return fmt.Errorf("writing volume group %s: %w", g.Name, err)
		}
	}
	return nil
}

// Volume is a partition or a logical volume of the disk being made: its bytes, which may become more. Reading is
// safe for concurrent use while nothing grows.
type Volume struct {
	l *Layout
	p Partition
}

// Volume gives the bytes of p, one of the disk's volumes.
func (l *Layout) Volume(p Partition) *Volume { return &Volume{l, p} }

// Partition is the volume's partition as it is now.
func (v *Volume) Partition() Partition { return v.p }

// Size is in bytes.
func (v *Volume) Size() int64 { return v.p.Size }

// ReadAt implements io.ReaderAt.
func (v *Volume) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(mapped{r: v.l.dev, runs: v.p.runs()}, 0, v.p.Size).ReadAt(b, off)
}

// WriteAt implements io.WriterAt.
func (v *Volume) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > v.p.Size || int64(len(b)) > v.p.Size-off {
		return 0, fmt.Errorf("writing %d bytes at %d: past the end of %s", len(b), off, v.p)
	}
	return mapped{w: v.l.dev, runs: v.p.runs()}.WriteAt(b, off)
}

// Fill gives the volume all the room that the disk has behind it; a logical volume gets what its group gains by that.
// Where that is none, although the disk became larger, ErrNoRoom says what is in the way.
func (v *Volume) Fill() error {
	if v.p.LV != "" {
		return v.fillGroup()
	}
	if behind := v.l.behind(v.p); behind != nil && v.l.dev.Size() > v.l.d.Size() {
		return inTheWay(*behind, v.p)
	}
	room, err := v.l.room(v.p)
	if err != nil {
		return err
	}
	return v.resize(room)
}

// Grow makes the volume at least need bytes long, with some to spare, where it must by making the disk larger. It
// returns the new size. ErrNoRoom says why that cannot be.
func (v *Volume) Grow(need int64) (int64, error) {
	if need <= v.p.Size {
		return v.p.Size, nil
	}
	want := need + need/(spare-1)
	var err error
	if v.p.LV != "" {
		err = v.growLogical(need, want)
	} else {
		err = v.grow(need, want)
	}
	return v.p.Size, err
}

// grow makes a partition at least need bytes long: by what lies free behind it if that is enough, else by a larger
// disk, on which it gets want bytes.
func (v *Volume) grow(need, want int64) error {
	if need <= v.p.Size {
		return nil
	}
	room, err := v.l.room(v.p)
	if err == nil && room < need {
		room, err = v.l.enlarge(v.p, need, want)
	}
	if err != nil {
		return err
	}
	return v.resize(room)
}

func (v *Volume) resize(size int64) error {
	if size <= v.p.Size {
		return nil
	}
	if !v.l.bare() {
		if err := v.l.edit.Grow(v.p.Number, size); err != nil {
			return err
		}
	}
	v.p.Size = size
	return nil
}

// room is how large p may become on the disk as it is.
func (l *Layout) room(p Partition) (int64, error) {
	if l.bare() {
		return l.dev.Size(), nil
	}
	e, err := l.table()
	if err != nil {
		return 0, err
	}
	return e.Room(p.Number)
}

// enlarge makes the disk so large that p can have want bytes, and returns p's room, which is at least need.
func (l *Layout) enlarge(p Partition, need, want int64) (int64, error) {
	if behind := l.behind(p); behind != nil {
		return 0, inTheWay(*behind, p)
	}
	if l.fixed {
		return 0, fmt.Errorf("%w: %w, %s", ErrNoRoom, ErrFixed, Bytes(l.dev.Size()))
	}
	if !l.bare() {
		want = l.edit.DiskSizeFor(p.Number, want)
	}
	if err := l.SetSize(wholeSteps(want)); err != nil {
		return 0, err
	}
	room, err := l.room(p)
	if err == nil && room < need {
		err = fmt.Errorf("%w: the table lets %s have no more than %s", ErrNoRoom, p, Bytes(room))
	}
	return room, err
}

func inTheWay(behind, p Partition) error {
	return fmt.Errorf("%w: %s is in the way of %s", ErrNoRoom, behind, p)
}

// behind is what is nearest behind p on the disk; nil if p is the last.
func (l *Layout) behind(p Partition) *Partition {
	if l.bare() {
		return nil
	}
	if b := l.d.Behind(p); len(b) > 0 {
		return &b[0]
	}
	for _, a := range l.added {
		if a.Start > p.Start {
			return &a
		}
	}
	return nil
}

// group is the volume group of a logical volume, in the state that this layout gives it.
func (l *Layout) group(p Partition) (*lvm.Group, error) {
	if l.groups == nil {
		groups, parts, err := l.d.groups()
		if err != nil {
			return nil, err
		}
		l.groups = groups
		for _, part := range parts {
			l.pvs = append(l.pvs, l.Volume(part))
		}
	}
	for _, g := range l.groups {
		if g.Name == path.Dir(p.LV) {
			return g, nil
		}
	}
	return nil, fmt.Errorf("%s: its volume group is gone", p)
}

// last is the group's physical volume behind which nothing lies on the disk.
func (l *Layout) last(g *lvm.Group, p Partition) (int, error) {
	var way *Partition
	for _, pv := range g.PVs {
		if pv < 0 {
			continue
		}
		behind := l.behind(l.pvs[pv].p)
		if behind == nil {
			return pv, nil
		}
		way = behind
	}
	if way == nil {
		return 0, fmt.Errorf("%w: the volume group of %s is not on this disk", ErrNoRoom, p)
	}
	return 0, fmt.Errorf("%w: %s is in the way of the volume group of %s", ErrNoRoom, way, p)
}

// growLogical takes what the group has free if that is enough, else the physical volume grows with the disk.
func (v *Volume) growLogical(need, want int64) error {
	g, err := v.l.group(v.p)
	if err != nil {
		return err
	}
	if missing := need - v.p.Size - g.Free(); missing > 0 {
		pv, err := v.l.last(g, v.p)
		if err != nil {
			return err
		}
		var sizes [2]int64
		for i, size := range []int64{need, want} {
			if sizes[i], err = g.DeviceSize(pv, size-v.p.Size); err != nil {
				return fmt.Errorf("%w: %w", ErrNoRoom, err)
			}
		}
		if err := v.l.pvs[pv].grow(sizes[0], sizes[1]); err != nil {
			return err
		}
		if err := g.GrowPV(pv, v.l.pvs[pv].Size()); err != nil {
			return err
		}
		want = v.p.Size + g.Free()
	}
	return v.extend(g, min(want, v.p.Size+g.Free()))
}

// fillGroup gives the physical volume all the room behind it, and the logical volume what the group gains.
func (v *Volume) fillGroup() error {
	g, err := v.l.group(v.p)
	if err != nil {
		return err
	}
	pv, err := v.l.last(g, v.p)
	if err != nil {
		if v.l.dev.Size() == v.l.d.Size() {
			return nil
		}
		return err
	}
	before := g.Free()
	if err := v.l.pvs[pv].Fill(); err != nil {
		return err
	}
	if err := g.GrowPV(pv, v.l.pvs[pv].Size()); err != nil {
		return err
	}
	return v.extend(g, v.p.Size+g.Free()-before)
}

// extend makes the logical volume size bytes long, or the next whole extent.
func (v *Volume) extend(g *lvm.Group, size int64) error {
	lv := *v.p.lv
	if err := g.GrowVolume(lv.name, size); err != nil {
		return fmt.Errorf("%w: %w", ErrNoRoom, err)
	}
	var parts []Partition
	for _, pv := range v.l.pvs {
		parts = append(parts, pv.p)
	}
	var err error
	if lv.runs, err = runsOf(g, lv.name, parts); err != nil {
		return err
	}
	last := lv.runs[len(lv.runs)-1]
	v.p.lv, v.p.Size = &lv, last.at+last.length
	return nil
}
