package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/imagebuild/customize"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/osroot/selinux"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/sbom"
	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/blobcache"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

// Spec says what to bake.
type Spec struct {
	// Base is the path of the disk to start from, or a reference of a container image that holds it at BasePath (empty:
	// where OCNE and KubeVirt look). It is never written.
	Base, BasePath string
	// Images are references as storeseed.ParseReference takes them, in the order in which they are baked.
	Images []string
	Delivery
	// Store is the store's path on the running system; empty is DefaultStore.
	Store string
	// Platform is os/arch[/variant]; empty is the base disk's own.
	Platform string
	// Size is how large the disk is to be.
	Size Size
	// StorePartition puts the store on a partition of its own at the end of the disk: its filesystem's kind, or "auto"
	// for the root's; empty where the store goes where its path lies.
	StorePartition string
	Evidence
	// Pin has CRI-O on the disk tell kubelet not to collect the images of the store.
	Pin bool
	// Customize is what is changed on the disk beside the store.
	Customize customize.Spec
	// DiskOptions are how the base is opened.
	DiskOptions
	// Report is where the caller will write the report; empty where nowhere. It may be no file of a disk.
	Report string
	// Digests sums up the base for the report, while the bake runs.
	Digests bool
	// DryRun counts what would be written and writes nothing.
	DryRun bool
	// Epoch is the time of everything that has none of its own; nil is the newest image's creation time.
	Epoch *time.Time
	// SourceOptions are how the images are reached.
	SourceOptions
	// Progress receives what go.podman.io/image says while it copies: bars on a terminal, lines elsewhere.
	Progress io.Writer
	// Log receives a line a step.
	Log logrus.FieldLogger
}

// Report says what a bake did, or with DryRun would do.
type Report struct {
	DryRun bool          `json:"dryRun,omitempty"`
	Base   DiskReport    `json:"base"`
	Output *OutputReport `json:"output,omitempty"`
	// Inputs are further files of this machine that the disk depends on, where sums were asked for.
	Inputs []FileDigest `json:"inputs,omitempty"`
	// BaseImage is the container image that the base is out of.
	BaseImage digest.Digest    `json:"baseImage,omitempty"`
	Root      RootReport       `json:"root"`
	Platform  string           `json:"platform"`
	Store     string           `json:"store"`
	Epoch     time.Time        `json:"epoch"`
	Images    []ImageReport    `json:"images"`
	Changed   []FileReport     `json:"changedFiles"`
	Space     filesystem.Space `json:"space"`
	// Size is the new disk's in bytes, StoreVolume the partition that the store is on, as it is then.
	Size        int64          `json:"size"`
	StoreVolume disk.Partition `json:"storeVolume"`
	// NewPartition says that StoreVolume was made by this bake.
	NewPartition bool     `json:"newPartition,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`
	NewLayers    int      `json:"newLayers"`
}

// DiskReport is a disk image in a report.
type DiskReport struct {
	Path   string      `json:"path"`
	Format disk.Format `json:"format"`
	// Size is the guest's in bytes.
	Size int64 `json:"size"`
	// Digest is the sum of the image file's bytes, FileSize how many they are; both are empty where none was asked for.
	Digest   digest.Digest `json:"digest,omitempty"`
	FileSize int64         `json:"fileSize,omitempty"`
	// Backing are the files that the image is backed by, the nearest first.
	Backing []FileDigest `json:"backing,omitempty"`
}

// FileDigest is a file and the sum of its bytes.
type FileDigest struct {
	Path   string        `json:"path"`
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// RootReport is the root filesystem in a report.
type RootReport struct {
	Partition  disk.Partition `json:"partition"`
	Why        string         `json:"why"`
	OS         osroot.Release `json:"os"`
	FreeBlocks int64          `json:"freeBlocks"`
	BlockSize  int64          `json:"blockSize"`
}

// ImageReport is an image in a report: the reference as it was given, and what became of it.
type ImageReport struct {
	Reference string `json:"reference"`
	storeseed.Result
}

// FileReport is a file outside the store that a bake writes.
type FileReport struct {
	Path string `json:"path"`
	Why  string `json:"why"`
}

// Bake makes the disk that spec describes. The output appears only when it is whole; on any error, and when
// ctx ends, nothing is at Output and the base is as it was. Errors match ErrUsage, ErrNoSpace or
// ErrUnsupported where they are of that kind. The report is filled as far as the bake came.
func Bake(ctx context.Context, spec Spec) (*Report, error) {
	b, err := newBake(spec)
	if err != nil {
		return b.report, err
	}
	return b.report, b.run(ctx)
}

// newBake checks what a spec says by itself. There is a bake, with its report, in any case.
func newBake(spec Spec) (*bake, error) {
	b := &bake{Spec: spec, report: &Report{DryRun: spec.DryRun, Images: []ImageReport{}, Changed: []FileReport{}}}
	if b.Log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		b.Log = silent
	}
	if b.Progress == nil {
		b.Progress = io.Discard
	}
	var err error
	if b.Store, err = cleanStore(b.Store); err != nil {
		return b, err
	}
	if b.out, err = b.Delivery.plan(b.Log); err != nil {
		return b, err
	}
	b.out.systemFor = b.systemFor
	if b.Evidence.any() {
		b.Digests = b.Digests || b.Provenance
		if err := b.out.planEvidence(b.evidenceNames(), b.tell); err != nil {
			return b, err
		}
		if b.Key != nil && !b.Key.SignsDisks() {
			b.warn("an Ed25519 key signs what is said of the disk, and not the disk: there will be no .sig")
		}
	}
	if b.System == nil {
		b.System = &types.SystemContext{}
	}
	_, isContainer := b.out.sink.(imageSink)
	if isContainer && (b.Output == b.Base || isImage(b.Base) && b.out.file() != "" && strings.HasPrefix(b.Base, b.Output)) {
		return b, fmt.Errorf("%w: --output %s is the base itself, which is never written", ErrUsage, b.Output)
	}
	return b, nil
}

type bake struct {
	Spec
	report    *Report
	base      *Opened
	sources   []storeseed.Source
	images    []*storeseed.Opened
	cache     *blobcache.Cache // nil without one
	lock      *Lock            // nil where the bake is bound to none
	platform  storeseed.Platform
	storeRoot string
	edits     []edit
	custom    *customize.Plan
	out       *delivery
	bill      *sbom.Document  // nil until it is collected
	partition *storePartition // nil where the store lies on a partition that is there
	room      *room
	policies  map[*osroot.System]*selinux.Policy
}

// edit is a change of a system's configuration.
type edit struct {
	storageconf.Edit
	system *osroot.System
}

func (b *bake) run(ctx context.Context) error {
	if err := b.checkCredentials(); err != nil {
		return err
	}
	if err := b.openBase(ctx); err != nil {
		return err
	}
	defer b.base.Close()
	if err := b.prepare(ctx); err != nil {
		return err
	}
	summed, stop := b.sumBase(ctx)
	defer stop()
	defer b.closeImages()
	if err := b.openImages(ctx); err != nil {
		return err
	}
	if b.Pin {
		if err := b.planPins(); err != nil {
			return err
		}
	}
	if b.DryRun {
		if err := b.write(ctx, newScratch(b.base.Disk), true); err != nil {
			return err
		}
		return errors.Join(summed(), b.writeLock(), b.sumInputs(ctx))
	}
	b.Log.Infof("copying the base disk to %s (%s)", b.Output, b.out.OutputOptions.Format)
	target, err := b.out.create(ctx, b.base.Disk)
	if err != nil {
		return err
	}
	defer target.Abort()
	if err := b.write(ctx, target, false); err != nil {
		return err
	}
	if err := b.check(ctx, target); err != nil {
		return err
	}
	if err := b.collectBill(ctx); err != nil {
		return err
	}
	if err := errors.Join(summed(), b.writeLock(), b.sumInputs(ctx)); err != nil {
		return err
	}
	b.out.created = b.report.Epoch
	rep, err := b.out.deliver(ctx, b.out, target)
	if err == nil {
		b.report.Output = &rep
	}
	return err
}

// check opens what was written anew and checks the store's records, links and references, as an engine will.
func (b *bake) check(ctx context.Context, target *output.Target) error {
	if err := target.Flush(); err != nil {
		return err
	}
	v := b.storeVolume()
	r, err := v.reopen()
	if err != nil {
		return err
	}
	rep, err := storeseed.Verify(ctx, filesystem.NewTree(filesystem.Graft{At: v.at, Reader: r}), b.storeRoot, storeseed.VerifyOptions{RecordsOnly: true})
	if err != nil {
		return fmt.Errorf("checking what was written: %w", err)
	}
	if rep.Total > 0 {
		return fmt.Errorf("%w: what was written has %d faults, the first: %s; this is a fault of nodebake: please report it", ErrVerify, rep.Total, rep.Faults[0])
	}
	return nil
}

// prepare checks all that can be checked before an image is asked for or a byte is copied.
func (b *bake) prepare(ctx context.Context) error {
	var err error
	d, root := b.base.Disk, b.base.Root
	b.report.Base = DiskReport{Path: b.Base, Format: d.Format, Size: d.Size()}
	b.report.Root = RootReport{root.Partition, root.Why, root.Release, root.Info.FreeBlocks, root.Info.BlockSize}
	b.report.Store = b.Store
	for _, w := range slices.Concat(d.Warnings, root.Warnings) {
		b.warn("%s", w)
	}
	b.Log.Infof("root is %s: %s", root.Partition, osName(root.Release))
	if err := b.checkFile("report", b.Report); err != nil {
		return err
	}
	if err := b.checkFile("lock", b.Lock); err != nil {
		return err
	}
	if err := b.choosePlatform(); err != nil {
		return err
	}
	b.out.platform = b.platform
	if b.Output != "" {
		if err := b.out.check(ctx, b.out, d); err != nil {
			return err
		}
	}
	if b.storeRoot, err = root.Writable(root.Systems[0], b.Store); err != nil {
		return err
	}
	if err := b.planStorePartition(); err != nil {
		return err
	}
	if err := b.planEdits(); err != nil {
		return err
	}
	if err := b.planCustom(); err != nil {
		return err
	}
	if err := b.checkWritable(); err != nil {
		return err
	}
	unit, err := root.MountUnit(root.Systems[0], b.Store)
	if err != nil {
		return err
	}
	if unit != "" {
		b.warn("%s may mount something over the store: make sure that it does not, or choose another --store", unit)
	}
	return b.prepareSources()
}

// checkFile refuses a report or a lock that would overwrite the base or the output, or has no folder to be in.
func (b *bake) checkFile(what, name string) error {
	if name == "" {
		return nil
	}
	dir, err := os.Stat(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("the %s's folder: %w", what, err)
	}
	if st, err := os.Stat(name); err == nil && b.base.Disk.Uses(st) {
		return fmt.Errorf("%w: the %s %s is the base disk itself, which is never written; choose another file", ErrUsage, what, name)
	}
	for _, out := range append(b.out.besides(), b.out.file()) {
		if out == "" || filepath.Base(name) != filepath.Base(out) {
			continue
		}
		if st, err := os.Stat(filepath.Dir(out)); err == nil && os.SameFile(st, dir) {
			return fmt.Errorf("%w: the %s %s is the output itself; choose another file", ErrUsage, what, name)
		}
	}
	return nil
}

// checkWritable opens each filesystem that will be changed as for a change, so that a dirty log or a feature that
// cannot be written ends the bake before an image is asked for, and so does a disk that cannot have the size that was
// asked for. It notes how much space there is.
func (b *bake) checkWritable() error {
	root := b.base.Root
	var err error
	if b.room, err = b.newRoom(newScratch(b.base.Disk), filesystem.Options{Now: time.Unix(0, 0), CountOnly: true}); err != nil {
		return err
	}
	if b.partition != nil {
		if _, err := b.makePartition(b.room); err != nil {
			return err
		}
	}
	names := []string{b.storeRoot}
	for _, e := range b.edits {
		names = append(names, e.Path)
	}
	names = append(names, b.custom.Paths()...)
	for _, name := range names {
		v := root.VolumeOf(name)
		if b.room.opened[v.At] != nil {
			continue
		}
		if _, err := b.room.open(v, b.fills(v)); err != nil {
			return b.explain(err)
		}
	}
	if v := b.storeVolume(); v != nil {
		b.report.Space = v.Space()
	}
	return nil
}

// planEdits plans the configuration of every system that the disk can start and that would find the store.
func (b *bake) planEdits() error {
	root := b.base.Root
	b.policies = map[*osroot.System]*selinux.Policy{}
	for _, s := range root.Systems {
		at, err := root.Writable(s, b.Store)
		if err != nil {
			return err
		}
		if at != b.storeRoot {
			b.warn("%s has another /var, and so no store: its configuration stays as it is", s.Name)
			continue
		}
		edits, err := storageconf.Plan(root.Tree, existing(root, s), b.Store)
		if errors.Is(err, storageconf.ErrStore) || errors.Is(err, storageconf.ErrConflict) {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		if err != nil {
			return err
		}
		for _, w := range edits.Warnings {
			b.warn("%s", w)
		}
		for _, e := range edits.Files {
			if _, err := root.Writable(s, e.Name); err != nil {
				return err
			}
			b.addEdit(e, s)
		}
		if err := b.planLabels(s); err != nil {
			return err
		}
		if b.partition != nil {
			if err := b.planUnit(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// addEdit notes a change, once for each file: two systems may share it.
func (b *bake) addEdit(e storageconf.Edit, s *osroot.System) {
	if !slices.ContainsFunc(b.edits, func(have edit) bool { return have.Path == e.Path }) {
		b.edits = append(b.edits, edit{e, s})
	}
}

// choosePlatform takes the platform that was asked for, or the base disk's own.
func (b *bake) choosePlatform() error {
	p := b.Platform
	if p == "" {
		p = b.base.Root.Platform
	}
	if p == "" {
		p = "linux/" + runtime.GOARCH
		b.warn("nothing on the base disk says what it runs on; taking %s (--platform says otherwise)", p)
	}
	var err error
	if b.platform, err = storeseed.ParsePlatform(p); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	b.report.Platform = p
	return nil
}

func (b *bake) warn(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	b.Log.Warn(s)
	b.report.Warnings = append(b.report.Warnings, s)
}

func osName(r osroot.Release) string {
	if r.PrettyName != "" {
		return r.PrettyName
	}
	return strings.TrimSpace(r.ID + " " + r.VersionID)
}

// FormatOf tells a disk's format from its name's ending: raw for .raw and .img, else qcow2.
func FormatOf(name string) disk.Format {
	switch strings.ToLower(path.Ext(name)) {
	case ".raw", ".img":
		return disk.Raw
	}
	return disk.Qcow2
}

// write seeds the store and edits the configuration on dev.
func (b *bake) write(ctx context.Context, dev disk.Device, count bool) error {
	root := b.base.Root
	r, err := b.newRoom(dev, filesystem.Options{Now: b.report.Epoch, CountOnly: count})
	if err != nil {
		return err
	}
	b.room = r
	tree := root.Writer(func(v osroot.Volume) (filesystem.Writer, error) { return r.open(v, b.fills(v)) })
	in := labelled{tree, root.Systems[0], b.policies[root.Systems[0]]}
	if b.partition != nil {
		if err := b.addStorePartition(r, in); err != nil {
			return err
		}
	}
	// The report and the last check want the store's volume, and it may have to grow, even if all is there already.
	if err := tree.OpenWriter(root.Tree.Volume(b.storeRoot)); err != nil {
		return b.explain(err)
	}
	store, err := storeseed.OpenStore(in, storeseed.Options{Root: b.storeRoot, Now: b.report.Epoch, Log: b.Log})
	if err != nil {
		return err
	}
	if err := b.pull(ctx, store); err != nil {
		return err
	}
	if err := store.Commit(ctx); err != nil {
		return err
	}
	for _, e := range b.edits {
		one := storageconf.Edits{Files: []storageconf.Edit{e.Edit}}
		if err := one.Apply(b.writer(in, e.system)); err != nil {
			return err
		}
		name := e.Name
		if e.system.Name != "" {
			name = e.system.Name + ": " + name
		}
		b.report.Changed = append(b.report.Changed, FileReport{name, e.Why})
		b.Log.Infof("%s: %s", name, e.Why)
	}
	if err := b.custom.Apply(ctx, func(s *osroot.System) customize.Writer { return b.writer(in, s) }); err != nil {
		return err
	}
	for _, c := range b.custom.Changes() {
		b.report.Changed = append(b.report.Changed, FileReport{c.Path, c.Why})
		b.Log.Infof("%s: %s", c.Path, c.Why)
	}
	if err := r.leaveSpare(); err != nil {
		return err
	}
	err = tree.Commit(ctx)
	v := b.storeVolume()
	b.report.Space, b.report.StoreVolume = v.Space(), v.Partition()
	b.report.Size = dev.Size()
	if err != nil {
		return b.explain(err)
	}
	if grown := dev.Size() - b.base.Disk.Size(); grown > 0 {
		b.Log.Infof("the disk grows from %s to %s", disk.Bytes(b.base.Disk.Size()), disk.Bytes(dev.Size()))
	}
	if count {
		return nil
	}
	return r.layout.Commit()
}

// fills says whether a volume gets what a size that was given adds to the disk: the store's does.
func (b *bake) fills(v osroot.Volume) bool {
	return !b.Size.auto() && b.partition == nil && v.At == b.base.Root.VolumeOf(b.storeRoot).At
}

// storeVolume is the volume that the store is written to; nil until it is opened.
func (b *bake) storeVolume() *openedVolume {
	if b.partition != nil {
		return b.room.opened[b.storeRoot]
	}
	return b.room.opened[b.base.Root.VolumeOf(b.storeRoot).At]
}

// explain adds to an error about space why there was no more, and what to do.
func (b *bake) explain(err error) error {
	switch {
	case !IsNoSpace(err):
		return err
	case b.room == nil || b.room.full == nil:
	case !errors.Is(err, disk.ErrNoRoom):
		err = fmt.Errorf("%w; %w", err, b.room.full)
	}
	switch {
	case errors.Is(err, disk.ErrFixed):
		return fmt.Errorf("%w; give a larger --size, or leave it out", err)
	case b.partition == nil && b.base.Disk.Table != "none":
		return fmt.Errorf("%w; --store-partition puts the store on a partition of its own at the end of the disk", err)
	}
	return fmt.Errorf("%w; bake fewer images, or enlarge the base first", err)
}
