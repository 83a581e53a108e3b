package diskdiff

import (
	"context"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/qcow"
)

// PartitionChange is a partition or logical volume that is not the same on both disks.
type PartitionChange struct {
	// Partition is its number, or GROUP/NAME of a logical volume; "boot code" is what lies before the first partition.
	Partition Text    `json:"partition"`
	Kind      Kind    `json:"kind"`
	Differs   []Field `json:"differs,omitempty"`
	// Content says, of a partition whose files are not compared, that its bytes differ from this offset on, in bytes.
	Content *int64 `json:"contentFrom,omitempty"`
	// Name is the partition as people know it.
	Name Text `json:"name,omitempty"`
}

func (c *Comparison) disks(ctx context.Context) ([]Field, []PartitionChange, error) {
	a, b := c.a.Disk, c.b.Disk
	f := fields{}
	f.add("size", a.Size(), b.Size())
	f.add("partition table", a.Table, b.Table)
	f.add("disk ID", a.ID, b.ID)
	f.add("sector size", a.SectorSize, b.SectorSize)
	changes := []PartitionChange{}
	gap := func(d *disk.Disk) int64 {
		end := d.Size()
		for _, p := range d.Partitions {
			end = min(end, p.Start)
		}
		return end
	}
	at, err := c.bootCode(ctx, gap(a), gap(b))
	if err != nil {
		return nil, nil, err
	}
	if at >= 0 {
		changes = append(changes, PartitionChange{Partition: "boot code", Kind: Changed, Content: &at})
	}
	lists := [2][]disk.Partition{}
	for side, d := range []*disk.Disk{a, b} {
		lists[side] = slices.Clone(d.Partitions)
		for _, v := range d.Volumes {
			if v.LV != "" {
				lists[side] = append(lists[side], v)
			}
		}
	}
	same := func(p disk.Partition) func(disk.Partition) bool {
		return func(q disk.Partition) bool { return p.LV == q.LV && (p.LV != "" || p.Number == q.Number) }
	}
	for _, p := range lists[0] {
		i := slices.IndexFunc(lists[1], same(p))
		if i < 0 {
			changes = append(changes, PartitionChange{Partition: called(p), Kind: Removed, Name: Text(p.String())})
			continue
		}
		ch, err := c.partition(ctx, p, lists[1][i])
		if err != nil {
			return nil, nil, err
		}
		if ch != nil {
			changes = append(changes, *ch)
		}
	}
	for _, q := range lists[1] {
		if !slices.ContainsFunc(lists[0], same(q)) {
			changes = append(changes, PartitionChange{Partition: called(q), Kind: Added, Name: Text(q.String())})
		}
	}
	return f, changes, nil
}

func called(p disk.Partition) Text {
	if p.LV != "" {
		return Text(p.LV)
	}
	return Text(fmt.Sprint(p.Number))
}

// bootCode compares what a BIOS starts: the first sector's code, and what follows the table up to the first partition.
func (c *Comparison) bootCode(ctx context.Context, endA, endB int64) (int64, error) {
	a, b := c.a.Disk, c.b.Disk
	buf := buffers()
	// The MBR's code has 440 bytes; the sector's rest is a table, and so are the GPT's 33 sectors behind it.
	at, side, err := firstDifference(ctx, a, b, min(440, endA, endB), buf)
	if err != nil || at >= 0 {
		return at, c.reading(side, "boot code", err)
	}
	from := int64(512)
	if a.Table == "gpt" || b.Table == "gpt" {
		from = int64(max(a.SectorSize, b.SectorSize))*2 + 16<<10
	}
	// Where the first partitions start at different places, the code is compared as far as both have it.
	n := min(endA, endB, 1<<20) - from
	if n <= 0 {
		return -1, nil
	}
	at, side, err = firstDifference(ctx, io.NewSectionReader(a, from, n), io.NewSectionReader(b, from, n), n, buf)
	if at >= 0 {
		at += from
	}
	return at, c.reading(side, "boot code", err)
}

func (c *Comparison) reading(side int, what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: reading %s: %w", []*disk.Disk{c.a.Disk, c.b.Disk}[side].Path, what, err)
}

func buffers() [2][]byte { return [2][]byte{make([]byte, block), make([]byte, block)} }

// partition compares what the table and the superblocks say of a partition, and its bytes where they hold no files
// that are compared one by one. It is nil where nothing differs.
func (c *Comparison) partition(ctx context.Context, p, q disk.Partition) (*PartitionChange, error) {
	ch := &PartitionChange{Partition: called(p), Kind: Changed, Name: Text(q.String())}
	f := fields{}
	if p.LV == "" {
		f.add("start", p.Start, q.Start)
	}
	f.add("size", p.Size, q.Size)
	f.add("type", p.Type, q.Type)
	f.add("name", p.Name, q.Name)
	f.add("GUID", p.GUID, q.GUID)
	f.add("filesystem", p.Kind, q.Kind)
	f.add("label", p.Label, q.Label)
	f.add("UUID", p.UUID, q.UUID)
	ch.Differs = f
	if p.Size == q.Size && !(c.a.holds(p) && c.b.holds(q)) {
		at, err := c.bytes(ctx, p, q)
		if err != nil {
			return nil, err
		}
		if at >= 0 {
			ch.Content = &at
		}
	}
	if len(f) == 0 && ch.Content == nil {
		return nil, nil
	}
	return ch, nil
}

// holds says whether what is in a partition is compared in another way: as files, or as logical volumes.
func (s *side) holds(p disk.Partition) bool {
	if slices.ContainsFunc(s.Root.Volumes, func(v osroot.Volume) bool { return v.Partition.Same(p) }) {
		return true
	}
	return p.Kind == filesystem.LVM && !slices.ContainsFunc(s.Disk.Volumes, p.Same)
}

// window is how far holes are looked for at a time, in bytes; a fourth of it is read before they are looked for again.
const window = 256 << 20

// bytes compares two partitions byte by byte, but for what both have no data for.
func (c *Comparison) bytes(ctx context.Context, p, q disk.Partition) (int64, error) {
	a, b := c.a.Disk.Section(p), c.b.Disk.Section(q)
	if p.LV != "" {
		at, side, err := firstDifference(ctx, a, b, p.Size, buffers())
		return at, c.reading(side, p.String(), err)
	}
	var maps [2]*qcow.Image
	for i, d := range []*disk.Disk{c.a.Disk, c.b.Disk} {
		if maps[i] = d.Image; maps[i] == nil {
			src, err := qcow.BorrowFile(d.File())
			if err != nil {
				return 0, c.reading(i, p.String(), err)
			}
			maps[i] = qcow.OpenRaw(src)
		}
	}
	buf := buffers()
	for off := int64(0); off < p.Size; {
		// Up to here both read as zeros.
		var data [2]int64
		length := min(window, p.Size-off)
		for i, start := range []int64{p.Start, q.Start} {
			d, err := firstData(maps[i].Extents(start+off, length), start+off+length)
			if err != nil {
				return 0, c.reading(i, p.String(), err)
			}
			data[i] = d - start
		}
		off = min(data[0], data[1])
		n := min(window/4, p.Size-off)
		at, side, err := firstDifference(ctx, io.NewSectionReader(a, off, n), io.NewSectionReader(b, off, n), n, buf)
		if err != nil {
			return 0, c.reading(side, p.String(), err)
		}
		if at >= 0 {
			return off + at, nil
		}
		off += n
	}
	return -1, nil
}

// firstData is where the first of these extents begins that is no hole, end where there is none.
func firstData(extents iter.Seq2[qcow.Extent, error], end int64) (int64, error) {
	for e, err := range extents {
		if err != nil {
			return 0, err
		}
		if e.Kind != qcow.Hole && e.Kind != qcow.Zero {
			return e.Start, nil
		}
	}
	return end, nil
}
