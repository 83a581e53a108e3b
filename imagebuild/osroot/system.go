package osroot

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot/ostree"
)

// System is an operating system that the disk can start: it knows where its paths lie.
type System struct {
	// Name tells the deployments of an ostree disk apart; it is empty where there is no choice.
	Name string

	tree   *filesystem.Tree
	locate func(name string) (Place, error)
	// homes are the folders of the tree that the running system has at fixed places, the deepest first.
	homes []home
}

type home struct{ tree, running string }

// Place is where a path of the running system lies.
type Place struct {
	// Path is the path in Root.Tree.
	Path string
	// ReadOnly says why nothing may be written there; empty where it may.
	ReadOnly string
}

// Locate finds where name, a path of the running system, lies, with every symbolic link followed. It need not
// exist: what does not can be created there.
func (s *System) Locate(name string) (Place, error) { return s.locate(name) }

// Running is what the running system calls a path of the tree that Locate gave, or one below it.
func (s *System) Running(name string) string {
	for _, h := range s.homes {
		if h.tree == "" || name == h.tree || strings.HasPrefix(name, h.tree+"/") {
			return path.Join(h.running, strings.TrimPrefix(name, h.tree))
		}
	}
	return path.Join("/", name)
}

// volatile are folders that every system makes anew at each boot.
var volatile = []string{"/run", "/dev", "/proc", "/sys", "/tmp"}

const (
	isVolatile  = "it is made anew at each boot"
	isImmutable = "it belongs to ostree"
)

func plainSystem(tree *filesystem.Tree) *System {
	return &System{tree: tree, homes: []home{{"", "/"}}, locate: func(name string) (Place, error) {
		at, err := Resolve(tree, name)
		if err != nil {
			return Place{}, err
		}
		p := Place{Path: at}
		for _, v := range volatile {
			if "/"+at == v || strings.HasPrefix("/"+at, v+"/") {
				p.ReadOnly = isVolatile
			}
		}
		return p, nil
	}}
}

func ostreeSystem(tree *filesystem.Tree, l *ostree.Layout, d ostree.Deployment) *System {
	return &System{
		Name:  fmt.Sprintf("%s %.12s.%d", d.OS, d.Checksum, d.Serial),
		tree:  tree,
		homes: []home{{d.Etc, "/etc"}, {d.Path, "/"}, {d.Var, "/var"}, {bootGraft, "/boot"}, {"", "/sysroot"}},
		locate: func(name string) (Place, error) {
			at, err := l.Map(d, name)
			if err != nil {
				return Place{}, err
			}
			p := Place{Path: at.Path}
			if at.OnBoot {
				p.Path = path.Join(bootGraft, at.Path)
			}
			switch {
			case at.Volatile:
				p.ReadOnly = isVolatile
			case at.Immutable:
				p.ReadOnly = isImmutable
			}
			return p, nil
		},
	}
}

// bootGraft is where a boot partition stands in the tree.
const bootGraft = "boot"

// Volume is a partition that is part of the running system's tree.
type Volume struct {
	Partition disk.Partition
	Info      filesystem.Info
	// At is the folder of the tree at which it stands; "" is the root.
	At string

	reader filesystem.Reader
}

var errNoSystem = errors.New("no operating system")

func openVolume(d *disk.Disk, p disk.Partition, at string) (Volume, error) {
	r, info, err := filesystem.Open(d.Section(p), p.Size, p.Kind)
	return Volume{p, info, at, r}, err
}

// openRoot opens a partition as a root; errNoSystem says that it is none.
func openRoot(d *disk.Disk, p disk.Partition) (*Root, error) {
	v, err := openVolume(d, p, "")
	if err != nil {
		return nil, err
	}
	r := &Root{Partition: p, Info: v.Info, Volumes: []Volume{v}, Ostree: ostree.Detect(v.reader), Why: "the only one with an operating system"}
	if r.Ostree {
		r.findBoot(d)
	}
	if err := r.assemble(); err != nil {
		return nil, err
	}
	r.Release, err = r.Systems[0].release()
	if errors.Is(err, fs.ErrNotExist) && !r.Ostree {
		return nil, errNoSystem
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading os-release: %w", err)
	}
	return r, nil
}

// findBoot adds the partition with the boot loader's entries, by which an ostree disk's deployment is found.
func (r *Root) findBoot(d *disk.Disk) {
	var found []Volume
	for _, p := range d.Volumes {
		if p.Same(r.Partition) || !p.Kind.Writable() {
			continue
		}
		v, err := openVolume(d, p, bootGraft)
		if err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s was passed over: %v", p, err))
			continue
		}
		entries, err := Resolve(v.reader, "loader/entries")
		if err != nil {
			continue
		}
		if _, err := v.reader.Stat(entries); err == nil {
			found = append(found, v)
		}
	}
	if len(found) > 1 {
		found = slices.DeleteFunc(found, func(v Volume) bool {
			return !strings.EqualFold(v.Partition.Label, "boot") && !strings.EqualFold(v.Partition.Name, "boot")
		})
	}
	if len(found) > 0 {
		r.Volumes = append(r.Volumes, found[0])
	}
}

// assemble builds the tree of the volumes, and the systems in it.
func (r *Root) assemble() error {
	r.Tree = r.tree(nil)
	if !r.Ostree {
		r.Systems = []*System{plainSystem(r.Tree)}
		return nil
	}
	var boot filesystem.Reader
	for _, v := range r.Volumes {
		if v.At == bootGraft {
			boot = v.reader
		}
	}
	l, err := ostree.Open(r.Tree, boot)
	if err != nil {
		return err
	}
	for _, w := range l.Warnings {
		if !slices.Contains(r.Warnings, w) { // the tree is assembled again when fstab adds to it
			r.Warnings = append(r.Warnings, w)
		}
	}
	r.Systems = nil
	for _, d := range l.Deployments {
		r.Systems = append(r.Systems, ostreeSystem(r.Tree, l, d))
	}
	return nil
}

func (r *Root) tree(open func(Volume) (filesystem.Writer, error)) *filesystem.Tree {
	var grafts []filesystem.Graft
	for _, v := range r.Volumes {
		g := filesystem.Graft{At: v.At, Reader: v.reader}
		if open != nil {
			g.OpenWriter = func() (filesystem.Writer, error) { return open(v) }
		}
		grafts = append(grafts, g)
	}
	return filesystem.NewTree(grafts...)
}

// With is Root.Tree with other readers for some volumes: where open gives none, the volume's own stays.
func (r *Root) With(open func(Volume) (filesystem.Reader, error)) (*filesystem.Tree, error) {
	var grafts []filesystem.Graft
	for _, v := range r.Volumes {
		other, err := open(v)
		if err != nil {
			return nil, err
		}
		if other == nil {
			other = v.reader
		}
		grafts = append(grafts, filesystem.Graft{At: v.At, Reader: other})
	}
	return filesystem.NewTree(grafts...), nil
}

// Writer is Root.Tree for changes: open opens a volume's writer when the first change reaches it.
func (r *Root) Writer(open func(Volume) (filesystem.Writer, error)) *filesystem.Tree {
	return r.tree(open)
}

// VolumeOf says which volume a path of the tree lies on.
func (r *Root) VolumeOf(name string) Volume {
	at := r.Tree.Volume(name)
	for _, v := range r.Volumes {
		if v.At == at {
			return v
		}
	}
	return r.Volumes[0]
}

// MountUnit finds a mount unit that nothing is seen to start, but that something may, whose mount point is name or
// a folder above it; empty if there is none.
func (r *Root) MountUnit(s *System, name string) (string, error) {
	for at := path.Clean("/" + name); at != "/"; at = path.Dir(at) {
		m, err := s.unit(UnitName(at))
		if err != nil {
			return "", err
		}
		if m.By != "" && !slices.Contains(r.units, m.By) {
			return m.By, nil
		}
	}
	return "", nil
}

// isOf says whether a mount's source is the partition. A bare device name says nothing about a disk image.
func (m Mount) isOf(p disk.Partition) bool {
	source := m.Source
	for tag, dir := range map[string]string{"UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel"} {
		if rest, ok := strings.CutPrefix(source, "/dev/disk/"+dir+"/"); ok {
			source = tag + "=" + rest
		}
	}
	return (strings.Contains(source, "=") || p.LV != "" && strings.HasPrefix(source, "/dev/")) && p.Matches(source)
}

// mount puts the partitions that the system's fstab and mount units name in their places, and notes the mounts of which this
// disk does not have the filesystem.
func (r *Root) mount(d *disk.Disk) error {
	mounts, err := r.Systems[0].fstab()
	if err != nil {
		return fmt.Errorf("reading /etc/fstab: %w", err)
	}
	units, err := r.Systems[0].unitMounts()
	if err != nil {
		return fmt.Errorf("reading systemd's mount units: %w", err)
	}
	for _, m := range units {
		r.units = append(r.units, m.By)
	}
	for _, m := range append(mounts, units...) {
		if !strings.HasPrefix(m.Target, "/") || path.Clean(m.Target) == "/" {
			continue
		}
		i := slices.IndexFunc(d.Volumes, func(p disk.Partition) bool { return !p.Same(r.Partition) && m.isOf(p) })
		at, err := r.Systems[0].Locate(m.Target)
		if err == nil && at.ReadOnly == isVolatile {
			continue
		}
		if err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("the mount at %s in %s was passed over: %v", m.Target, m.By, err))
			r.covers = append(r.covers, m)
			continue
		}
		if slices.ContainsFunc(r.Volumes, func(v Volume) bool { return v.At == at.Path }) {
			continue
		}
		if i < 0 || !d.Volumes[i].Kind.Writable() || at.Path == "." {
			r.cover(m, at.Path)
			continue
		}
		v, err := openVolume(d, d.Volumes[i], at.Path)
		if err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s, mounted at %s, was passed over: %v", v.Partition, m.Target, err))
			r.cover(m, at.Path)
			continue
		}
		r.Volumes = append(r.Volumes, v)
	}
	if len(r.Volumes) == 1 {
		return nil
	}
	return r.assemble()
}

// cover notes a mount that hides what lies at a path of the tree.
func (r *Root) cover(m Mount, at string) {
	r.covers = append(r.covers, m)
	r.hidden = append(r.hidden, Mount{Source: m.Source, Target: path.Join("/", at), Type: m.Type, By: m.By})
}

var (
	// ErrHidden says that what is written at a path would not be seen by the running system.
	ErrHidden = errors.New("the running system would not see it")
	// ErrImmutable says that a path belongs to ostree.
	ErrImmutable = errors.New("ostree's files must not change")
)

// Writable finds where name lies, as Locate does, and refuses places where nothing may be written or where the
// running system mounts something that is not on this disk. Those errors match ErrHidden or ErrImmutable.
func (r *Root) Writable(s *System, name string) (string, error) {
	if m, ok := mountOver(r.covers, name); ok {
		return "", fmt.Errorf("%w: %s mounts %s on %s, over %s; choose another path", ErrHidden, m.By, m.Source, m.Target, name)
	}
	at, err := s.Locate(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	// Symbolic links, of name or of a mount's target, lead to the same place under another name.
	if m, ok := mountOver(r.hidden, at.Path); ok {
		return "", fmt.Errorf("%w: %s is %s, and %s mounts %s over that; choose another path", ErrHidden, name, s.Running(at.Path), m.By, m.Source)
	}
	switch at.ReadOnly {
	case "":
	case isImmutable:
		return "", fmt.Errorf("%w: nothing can be kept at %s; choose a path in /etc or /var", ErrImmutable, name)
	default:
		return "", fmt.Errorf("%w: nothing can be kept at %s: %s", ErrHidden, name, at.ReadOnly)
	}
	return at.Path, nil
}
