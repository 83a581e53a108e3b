package disk

import (
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/nodebake/nodebake/imagebuild/disk/lvm"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// logical is what makes a Partition a logical volume.
type logical struct {
	name    string // without the group's
	paths   []string
	runs    []run
	refused error
}

// run is length bytes of a volume from at on, which lie at start on the disk.
type run struct{ at, start, length int64 }

func (p Partition) runs() []run {
	if p.lv != nil {
		return p.lv.runs
	}
	return []run{{0, p.Start, p.Size}}
}

// Refused is why the partition cannot be read although it is no broken one: it is a logical volume, or a physical one,
// of a kind that is not handled. The error matches ErrUnsupported or lvm.ErrUnsupported, or says what is wrong with LVM's
// metadata.
func (p Partition) Refused() error {
	if p.lv != nil {
		return p.lv.refused
	}
	return nil
}

// Same says whether two are the same partition or logical volume of one disk.
func (p Partition) Same(other Partition) bool { return p.Number == other.Number && p.LV == other.LV }

// readVolumes fills in Volumes.
func (d *Disk) readVolumes() error {
	groups, parts, err := d.groups()
	if err != nil {
		// What is wrong with LVM matters to those alone who look for something on it.
		d.Volumes = slices.Clone(d.Partitions)
		for i, p := range d.Volumes {
			if p.Kind == filesystem.LVM {
				d.Volumes[i].lv = &logical{refused: err}
			}
		}
		return nil
	}
	for _, p := range d.Partitions {
		if p.Kind != filesystem.LVM {
			d.Volumes = append(d.Volumes, p)
			continue
		}
		used := false
		for _, g := range groups {
			on := slices.IndexFunc(g.PVs, func(pv int) bool { return pv >= 0 && parts[pv].Number == p.Number })
			used = used || on >= 0
			// A group of several physical volumes is listed once, at its first.
			if on < 0 || slices.ContainsFunc(g.PVs[:on], func(pv int) bool { return pv >= 0 }) {
				continue
			}
			for _, v := range g.Volumes {
				if v.Kind == "hidden" {
					continue
				}
				lp, err := d.logicalVolume(g, v, p, parts)
				if err != nil {
					return err
				}
				d.Volumes = append(d.Volumes, lp)
			}
		}
		if !used {
			p.lv = &logical{refused: fmt.Errorf("%w: an LVM physical volume without a volume group", ErrUnsupported)}
			d.Volumes = append(d.Volumes, p)
		}
	}
	return nil
}

func (d *Disk) logicalVolume(g *lvm.Group, v lvm.Volume, on Partition, parts []Partition) (Partition, error) {
	p := Partition{Number: on.Number, Start: on.Start, Size: v.Size, LV: path.Join(g.Name, v.Name), lv: &logical{name: v.Name, paths: v.Paths()}}
	var err error
	if p.lv.runs, err = runsOf(g, v.Name, parts); err == nil && v.ReadOnly {
		err = fmt.Errorf("%w: %s is read-only (lvchange -p rw makes it writable)", lvm.ErrUnsupported, p.LV)
	}
	if err != nil {
		p.lv.refused = err
		return p, nil
	}
	probed, err := filesystem.Probe(d.Section(p), p.Size)
	if err != nil {
		return p, fmt.Errorf("reading the first blocks of %s: %w", p, err)
	}
	p.Kind, p.Label, p.UUID = probed.Kind, probed.Label, probed.UUID
	return p, nil
}

// groups reads the volume groups of the disk, and gives the partitions that are their physical volumes.
func (d *Disk) groups() ([]*lvm.Group, []Partition, error) {
	var parts []Partition
	var pvs []lvm.PV
	for _, p := range d.Partitions {
		if p.Kind == filesystem.LVM {
			parts = append(parts, p)
			pvs = append(pvs, lvm.PV{Name: fmt.Sprintf("partition %d", p.Number), R: d.Section(p), Size: p.Size})
		}
	}
	groups, err := lvm.Open(pvs)
	if err != nil {
		return nil, nil, fmt.Errorf("LVM: %w", err)
	}
	return groups, parts, nil
}

// runsOf is where a logical volume's bytes lie on the disk.
func runsOf(g *lvm.Group, name string, parts []Partition) ([]run, error) {
	segments, err := g.Segments(name)
	if err != nil {
		return nil, err
	}
	var runs []run
	for _, s := range segments {
		runs = append(runs, run{s.At, parts[s.PV].Start + s.Start, s.Length})
	}
	return runs, nil
}

// mapped reads and writes a volume's bytes where they lie.
type mapped struct {
	r    io.ReaderAt
	w    io.WriterAt // nil for reading alone
	runs []run
}

// each calls f for the parts of b, which is what lies at off, with their places on the disk.
func (m mapped) each(b []byte, off int64, f func(b []byte, at int64) (int, error)) (int, error) {
	done := 0
	i, found := slices.BinarySearchFunc(m.runs, off, func(r run, off int64) int {
		if r.at+r.length <= off {
			return -1
		}
		if r.at > off {
			return 1
		}
		return 0
	})
	for done < len(b) {
		if !found || i == len(m.runs) {
			return done, io.EOF
		}
		r := m.runs[i]
		in := off + int64(done) - r.at
		n, err := f(b[done:done+int(min(int64(len(b)-done), r.length-in))], r.start+in)
		done += n
		if err != nil {
			return done, err
		}
		i++
	}
	return done, nil
}

// ReadAt implements io.ReaderAt.
func (m mapped) ReadAt(b []byte, off int64) (int, error) {
	return m.each(b, off, func(b []byte, at int64) (int, error) {
		n, err := m.r.ReadAt(b, at)
		if n == len(b) {
			err = nil
		}
		return n, err
	})
}

// WriteAt implements io.WriterAt.
func (m mapped) WriteAt(b []byte, off int64) (int, error) {
	return m.each(b, off, m.w.WriteAt)
}
