package diskdiff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/filesystem/xfs"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed"
)

// Report is in what two disks differ, but for their files. Empty lists say that there is no difference.
type Report struct {
	A Side `json:"a"`
	B Side `json:"b"`
	// Disk is the image's size and partition table, System what runs and how its root filesystem was made.
	Disk   []Field `json:"disk"`
	System []Field `json:"system"`
	// Partitions are in the table's order, logical volumes behind them.
	Partitions []PartitionChange `json:"partitions"`
	Boot       []BootChange      `json:"boot"`
	Stores     []StoreChange     `json:"stores"`
	Images     []ImageChange     `json:"images"`
	// Warnings say what could not be compared, or not as one might think.
	Warnings []string `json:"warnings"`
}

// Side says what a disk is.
type Side struct {
	Path   string      `json:"path"`
	Format disk.Format `json:"format"`
	Size   int64       `json:"size"`
	OS     Text        `json:"os,omitempty"`
	// Deployment is the default one of an ostree disk, Layout "ostree" or "plain".
	Layout     string `json:"layout"`
	Deployment Text   `json:"deployment,omitempty"`
}

// Field is a property that differs.
type Field struct {
	What string `json:"what"`
	A    Text   `json:"a"`
	B    Text   `json:"b"`
}

// Any says whether there is a difference.
func (r *Report) Any() bool {
	return len(r.Disk)+len(r.System)+len(r.Partitions)+len(r.Boot)+len(r.Stores)+len(r.Images) > 0
}

// fields collects properties that differ.
type fields []Field

func (f *fields) add(what string, a, b any) {
	if x, y := fmt.Sprint(a), fmt.Sprint(b); x != y {
		*f = append(*f, Field{what, Text(x), Text(y)})
	}
}

// Options say how the files of two disks are compared.
type Options struct {
	// Times makes modification times count.
	Times bool
	// Every gives each file of an added or removed folder a change of its own, and Hashes gives files that differ
	// their SHA-256.
	Every, Hashes bool
	// Stores compares the files of the image stores as well.
	Stores bool
}

// Comparison is two disks that are compared. Its methods may be called in any order.
type Comparison struct {
	a, b     side
	warnings []string
}

// side is one of the disks.
type side struct {
	*imagebuild.Opened
	stores []store
	// home is where the default system's root is in the tree, state its /var, and boot its /boot.
	home, state, boot string
}

type store struct {
	imagebuild.Store
	images []storeseed.Image
	// broken says that its records could not be read.
	broken bool
}

// New reads what is in the stores of two disks, which must stay open as long as the comparison is used.
func New(a, b *imagebuild.Opened) (*Comparison, error) {
	c := &Comparison{a: side{Opened: a}, b: side{Opened: b}}
	for i, s := range []*side{&c.a, &c.b} {
		if err := c.read(s, sides[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Disk.Path, err)
		}
	}
	if a.Root.Ostree != b.Root.Ostree {
		c.warn("one disk is laid out by ostree and the other is not: ostree's own folders were not compared")
	}
	return c, nil
}

func (c *Comparison) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

func (c *Comparison) read(s *side, called string) error {
	for _, w := range slices.Concat(s.Disk.Warnings, s.Root.Warnings) {
		c.warn("%s: %s", called, w)
	}
	for _, v := range s.Root.Volumes {
		// XFS says whether it was unmounted when it is opened for writing, which this is not for; ext4 that was not is not
		// opened at all.
		_, err := filesystem.OpenWriter(unwritable{s.Disk.Section(v.Partition)}, v.Partition.Size, v.Partition.Kind, filesystem.Options{Now: time.Unix(0, 0), CountOnly: true})
		if errors.Is(err, xfs.ErrDirtyLog) {
			c.warn("%s: %s was not unmounted: what its log holds is not seen; mount and unmount it once", called, v.Partition)
		}
	}
	for name, at := range map[string]*string{"/": &s.home, "/var": &s.state, "/boot": &s.boot} {
		p, err := s.Path(name)
		if err != nil {
			return fmt.Errorf("finding %s: %w", name, err)
		}
		*at = clean(p)
	}
	stores, err := s.Stores()
	if err != nil {
		// A storage.conf that engines cannot read hides which stores there are; all files are still compared.
		c.warn("%s: its stores were not found: %v", called, err)
		return nil
	}
	for _, st := range stores {
		images, err := storeseed.List(s.Root.Tree, st.Root)
		if err != nil {
			c.warn("%s: the images of the store %s could not be read, so its files are compared: %v", called, st.Path, err)
		}
		st.Path = path.Clean(st.Path)
		s.stores = append(s.stores, store{st, images, err != nil})
	}
	return nil
}

// unwritable is a device for those who will not write.
type unwritable struct{ io.ReaderAt }

// WriteAt implements io.WriterAt.
func (unwritable) WriteAt([]byte, int64) (int, error) { return 0, syscall.EROFS }

func (s *side) describe() Side {
	d := Side{Path: s.Disk.Path, Format: s.Disk.Format, Size: s.Disk.Size(), OS: Text(s.Root.Release.PrettyName), Layout: "plain"}
	if s.Root.Ostree {
		d.Layout, d.Deployment = "ostree", Text(s.system().Name)
	}
	return d
}

func (s *side) system() *osroot.System { return s.Root.Systems[0] }

// Report compares all but the files.
func (c *Comparison) Report(ctx context.Context) (*Report, error) {
	r := &Report{A: c.a.describe(), B: c.b.describe(), Disk: []Field{}, System: []Field{}, Partitions: []PartitionChange{},
		Boot: []BootChange{}, Stores: []StoreChange{}, Images: []ImageChange{}}
	var err error
	if r.Disk, r.Partitions, err = c.disks(ctx); err != nil {
		return nil, err
	}
	r.System = c.systems()
	r.Boot = c.entries()
	r.Stores, r.Images = c.images()
	r.Warnings = append([]string{}, c.warnings...)
	return r, nil
}

// systems compares what runs.
func (c *Comparison) systems() []Field {
	f := fields{}
	a, b := &c.a, &c.b
	f.add("layout", a.describe().Layout, b.describe().Layout)
	f.add("OS", a.Root.Release.PrettyName, b.Root.Release.PrettyName)
	f.add("OS ID", a.Root.Release.ID, b.Root.Release.ID)
	f.add("OS version", a.Root.Release.VersionID, b.Root.Release.VersionID)
	f.add("platform", a.Root.Platform, b.Root.Platform)
	deployments := func(s *side) string {
		var names []string
		for _, d := range s.Root.Systems {
			names = append(names, d.Name)
		}
		return strings.Join(names, ", ")
	}
	f.add("deployments", deployments(a), deployments(b))
	f.add("kernels", c.kernels(a, "A"), c.kernels(b, "B"))
	x, y := a.Root.Info, b.Root.Info
	f.add("root filesystem", x.Kind, y.Kind)
	f.add("root filesystem's size", x.Blocks*x.BlockSize, y.Blocks*y.BlockSize)
	f.add("root filesystem's block size", x.BlockSize, y.BlockSize)
	f.add("root filesystem's features", strings.Join(x.Features, " "), strings.Join(y.Features, " "))
	return f
}

// missing says that a name is not there.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// maxNames bounds how many kernels and boot loader entries are looked at.
const maxNames = 1000

// list gives the names in a folder of the running system; none where there is no such folder.
func (c *Comparison) list(s *side, called, name string) (at string, names []string) {
	at, err := s.Path(name)
	if err == nil {
		names, err = s.Root.Tree.ReadDir(at)
	}
	if err != nil && !missing(err) {
		c.warn("%s: %s: %v", called, name, err)
	}
	if len(names) > maxNames {
		c.warn("%s: %s has %d names, of which the first %d were read", called, name, len(names), maxNames)
		names = names[:maxNames]
	}
	return at, names
}

// kernels are the versions that the system has modules of.
func (c *Comparison) kernels(s *side, called string) string {
	_, names := c.list(s, called, "/usr/lib/modules")
	if len(names) == 0 {
		_, names = c.list(s, called, "/lib/modules")
	}
	return strings.Join(names, " ")
}

// Files compares the files of the two systems and gives emit each difference, as Compare does. What is in a store is
// left to Report, unless its records cannot be read.
func (c *Comparison) Files(ctx context.Context, o Options, emit func(Change) error) (Totals, error) {
	to := TreeOptions{Times: o.Times, Every: o.Every, Hashes: o.Hashes, Lines: configuration}
	for _, s := range []*side{&c.a, &c.b} {
		bytes := int64(0)
		for _, v := range s.Root.Volumes {
			bytes += v.Info.Blocks * v.Info.BlockSize
			to.TimeResolution = max(to.TimeResolution, v.Info.TimeResolution, time.Nanosecond)
		}
		// No inode is smaller than 128 bytes, and a disk on which the files are 64 times as large as it is has mostly
		// holes.
		to.MaxFolders = max(to.MaxFolders, bytes/128)
		to.MaxBytes = max(to.MaxBytes, 64*bytes)
	}
	t := c.trees(o.Stores)
	return Compare(ctx, t, to, emit)
}

// configuration says whether a path's lines are of interest, if it is a text.
func configuration(shown string) bool {
	for _, dir := range []string{"/etc", "/boot/loader", "/boot/loader.0", "/boot/loader.1", "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/usr/share/containers"} {
		if shown == dir || strings.HasPrefix(shown, dir+"/") {
			return true
		}
	}
	return false
}

func (c *Comparison) trees(stores bool) Trees {
	a, b := &c.a, &c.b
	t := Trees{A: a.Root.Tree, B: b.Root.Tree, Pairs: []Pair{{a.home, b.home, "/"}}}
	var own [2][]string
	if a.Root.Ostree || b.Root.Ostree {
		t.Pairs = append(t.Pairs, Pair{a.boot, b.boot, "/boot"}, Pair{a.state, b.state, "/var"})
	}
	if a.Root.Ostree && b.Root.Ostree {
		t.Pairs = append(t.Pairs, Pair{"", "", "/sysroot"})
		// What a deployment has at the places where others are mounted.
		for _, dir := range []string{"boot", "sysroot", "var"} {
			t.Pairs = append(t.Pairs, Pair{join(a.home, dir), join(b.home, dir), "/sysroot/" + join(b.home, dir)})
		}
		for i, s := range []*side{a, b} {
			own[i] = []string{s.home, s.state, s.boot}
		}
	}
	for i, s := range []*side{a, b} {
		for _, st := range s.stores {
			at := clean(st.Root)
			switch {
			case stores || st.broken:
			case st.Primary:
				// An engine keeps other things beside its images there.
				for _, dir := range []string{"overlay", "overlay-images", "overlay-layers"} {
					own[i] = append(own[i], join(at, dir))
				}
			default:
				own[i] = append(own[i], at)
			}
		}
	}
	t.SkipA = func(name string) bool { return slices.Contains(own[0], name) }
	t.SkipB = func(name string) bool { return slices.Contains(own[1], name) }
	return t
}
