package imagebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/disk/lvm"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/osroot/selinux"
	"github.com/nodebake/nodebake/qcow"
	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

// VerifyOptions say what Verify looks at beside what it always does.
type VerifyOptions struct {
	// Lock is a file as a bake writes it: the stores must hold exactly its images. Empty: no matter which.
	Lock string
	// Store is the running system's path of the one store to look at; empty: all but the engine's own.
	Store string
	// Deep also holds every file of the stores, their own records among them, against what a bake makes: labels,
	// owners and modes of what no layer describes, and which names are one file.
	Deep bool
	// Log receives a line a step; nil is silent.
	Log logrus.FieldLogger
}

// Verification is what Verify looked at, and what was wrong with it.
type Verification struct {
	Disk string `json:"disk"`
	// Faults is how many there are in all.
	Faults int `json:"faults"`
	// Image are faults of the disk image file, its partition table, or of what keeps it from being read at all.
	Image []string `json:"image"`
	// Filesystems are those that the stores and the configuration lie on.
	Filesystems   []FilesystemVerification `json:"filesystems"`
	Configuration []ConfigurationFault     `json:"configuration"`
	Stores        []StoreVerification      `json:"stores"`
	Lock          *LockVerification        `json:"lock,omitempty"`
}

// FilesystemVerification is what the check of one filesystem found.
type FilesystemVerification struct {
	Partition disk.Partition `json:"partition"`
	// Mount is where the running system has it.
	Mount  string   `json:"mount"`
	Faults []string `json:"faults"`
	// Total is how many faults there are, of which Faults keeps the first.
	Total int `json:"total"`
}

// ConfigurationFault is why engines would not read a store.
type ConfigurationFault struct {
	// System is the deployment, where the disk has several.
	System string `json:"system,omitempty"`
	File   string `json:"file,omitempty"`
	// Store is empty where the configuration cannot be read at all.
	Store   string `json:"store,omitempty"`
	Problem string `json:"problem"`
}

func (f ConfigurationFault) String() string {
	s := f.Problem
	for _, part := range []string{f.File, f.System} {
		if part != "" {
			s = part + ": " + s
		}
	}
	return s
}

// StoreVerification is what the verification of one store found.
type StoreVerification struct {
	Store string `json:"store"`
	*storeseed.Report
}

// maxVerifyFaults bounds what is kept of each part's faults.
const maxVerifyFaults = 1000

// VerifyDisk opens a disk and verifies it. What keeps it from being opened because its bytes contradict themselves is
// a fault, too: the result then has nothing else.
func VerifyDisk(ctx context.Context, name string, how DiskOptions, vo VerifyOptions) (*Verification, error) {
	o, err := OpenDisk(name, how)
	if err != nil {
		if !isBroken(err) {
			return nil, err
		}
		return &Verification{Disk: name, Faults: 1, Image: []string{err.Error()}, Filesystems: []FilesystemVerification{},
			Configuration: []ConfigurationFault{}, Stores: []StoreVerification{}}, fmt.Errorf("%w: %w", ErrVerify, err)
	}
	defer o.Close()
	return Verify(ctx, o, vo)
}

// isBroken says that an error is about bytes of a disk that contradict themselves.
func isBroken(err error) bool {
	for _, is := range []error{qcow.ErrCorrupt, lvm.ErrCorrupt, storeseed.ErrCorruptStore} {
		if errors.Is(err, is) {
			return true
		}
	}
	return filesystem.IsCorrupt(err)
}

// Verify checks a disk against its own promises: the structures of a qcow2 file, and of each filesystem that a store
// or the configuration lies on; that the engines' configuration names every additional store; and each store, whose
// layers it rebuilds from the disk's own files and holds against their digests (see storeseed.Verify). With a lock it
// also checks that the stores hold the lock's images and no others.
//
// Faults, and a disk without any store, are an error that matches ErrVerify; the result then says what was found.
// Another error says what kept Verify from looking. The engine's own read-write store is not looked at.
func Verify(ctx context.Context, o *Opened, vo VerifyOptions) (*Verification, error) {
	if vo.Log == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		vo.Log = l
	}
	v := &verification{o: o, vo: vo, out: &Verification{Disk: o.Disk.Path, Image: []string{}, Filesystems: []FilesystemVerification{},
		Configuration: []ConfigurationFault{}, Stores: []StoreVerification{}}}
	var lock *Lock
	if vo.Lock != "" {
		var err error
		if lock, err = ReadLock(vo.Lock); err != nil {
			return v.out, err
		}
	}
	if err := v.image(); err != nil {
		return v.out, err
	}
	stores, err := v.stores()
	if err != nil {
		return v.out, err
	}
	if len(stores) == 0 && v.out.Faults == 0 {
		where := "looked where storage.conf points, and at " + DefaultStore
		if vo.Store != "" {
			where = "looked at " + vo.Store
		}
		return v.out, fmt.Errorf("%w: no image store is on the disk (%s)", ErrVerify, where)
	}
	if err := v.filesystems(ctx, stores); err != nil {
		return v.out, err
	}
	for _, s := range stores {
		if err := v.configured(s); err != nil {
			return v.out, err
		}
	}
	for _, s := range stores {
		if err := v.store(ctx, s); err != nil {
			return v.out, err
		}
	}
	if lock != nil {
		v.lock(lock, stores)
	}
	if v.out.Faults > 0 {
		return v.out, fmt.Errorf("%w: %d faults; do not ship this disk: bake it again from its base", ErrVerify, v.out.Faults)
	}
	return v.out, nil
}

type verification struct {
	o   *Opened
	vo  VerifyOptions
	out *Verification
}

// image checks a qcow2 file's own structures. Clusters that nothing refers to are no fault: no reader sees them.
func (v *verification) image() error {
	if v.o.Disk.Image == nil {
		return nil
	}
	src, err := qcow.NewFileSource(v.o.Disk.File())
	if err != nil {
		return err
	}
	rep, err := qcow.Check(src, qcow.Options{})
	if err != nil {
		return v.unreadable(fmt.Errorf("checking %s: %w", v.o.Disk.Path, err))
	}
	for _, f := range rep.Faults {
		if f.Kind != qcow.FaultLeak {
			v.out.Image = append(v.out.Image, f.String())
		}
	}
	v.out.Faults += rep.Total - rep.Leaks
	return nil
}

// stores lists the stores to look at. A configuration that cannot be read is a fault; then the default store is.
func (v *verification) stores() ([]Store, error) {
	stores, err := v.o.Stores()
	if err != nil {
		v.configuration(ConfigurationFault{Problem: err.Error()})
		at, err := v.o.Path(DefaultStore)
		if err != nil {
			return nil, nil // in the fault that was noted
		}
		stores = []Store{{Path: DefaultStore, Root: at}}
		if _, err := v.o.Root.Tree.Stat(path.Join(at, "overlay-images", "images.json")); errors.Is(err, fs.ErrNotExist) {
			stores = nil
		}
	}
	stores = slices.DeleteFunc(stores, func(s Store) bool { return s.Primary })
	if v.vo.Store == "" {
		return stores, nil
	}
	at, err := v.o.Path(v.vo.Store)
	if err != nil {
		return nil, v.unreadable(fmt.Errorf("store %s: %w", v.vo.Store, err))
	}
	for _, s := range stores {
		if s.Root == at {
			return []Store{s}, nil
		}
	}
	if _, err := v.o.Root.Tree.Stat(path.Join(at, "overlay-images", "images.json")); err != nil {
		return nil, nil
	}
	return []Store{{Path: v.vo.Store, Root: at}}, nil
}

// unreadable makes a fault of an error about bytes that contradict themselves, and gives back any other.
func (v *verification) unreadable(err error) error {
	if !isBroken(err) {
		return err
	}
	v.out.Image = append(v.out.Image, err.Error())
	v.out.Faults++
	return nil
}

func (v *verification) configuration(f ConfigurationFault) {
	v.out.Configuration = append(v.out.Configuration, f)
	v.out.Faults++
}

// filesystems checks those that the stores and the configuration lie on.
func (v *verification) filesystems(ctx context.Context, stores []Store) error {
	root := v.o.Root
	names := []string{""} // the root has the configuration unless a link leads it elsewhere
	if t, err := v.o.Config(); err == nil {
		for _, f := range slices.Concat(t.DropIns, t.CRIO) {
			names = append(names, f.Path)
		}
		if t.Main != nil {
			names = append(names, t.Main.Path)
		}
	}
	for _, s := range stores {
		names = append(names, s.Root)
	}
	seen := map[string]bool{}
	for _, n := range names {
		vol := root.VolumeOf(n)
		if seen[vol.At] {
			continue
		}
		seen[vol.At] = true
		p := vol.Partition
		one := FilesystemVerification{Partition: p, Mount: v.o.system().Running(vol.At), Faults: []string{}}
		v.vo.Log.Infof("%s: checking the filesystem at %s", p, one.Mount)
		// Opened anew: what readers keep would outlive the check.
		r, _, err := filesystem.Open(v.o.Disk.Section(p), p.Size, p.Kind)
		if err == nil {
			err = filesystem.Check(ctx, r, func(err error) {
				if one.Total++; len(one.Faults) < maxVerifyFaults {
					one.Faults = append(one.Faults, err.Error())
				}
			})
		}
		if err != nil {
			if err := v.unreadable(fmt.Errorf("checking %s: %w", p, err)); err != nil {
				return err
			}
			continue
		}
		v.out.Filesystems = append(v.out.Filesystems, one)
		v.out.Faults += one.Total
	}
	return nil
}

// configured checks that the engines of every system that has the store would read it: a bake would have nothing to
// change.
func (v *verification) configured(s Store) error {
	root := v.o.Root
	for _, system := range root.Systems {
		at, err := system.Locate(s.Path)
		if err != nil {
			return v.unreadable(fmt.Errorf("store %s: %w", s.Path, err))
		}
		if at.Path != s.Root {
			continue // another /var
		}
		f := ConfigurationFault{System: system.Name, Store: path.Clean(s.Path)}
		v.drivers(system, f)
		edits, err := storageconf.Plan(root.Tree, existing(root, system), path.Clean(s.Path))
		if err != nil {
			f.Problem = err.Error()
			v.configuration(f)
			continue
		}
		for _, e := range edits.Files {
			if e.New == nil {
				continue // a folder or a link on the way to what is missing
			}
			f.File, f.Problem = e.Name, fmt.Sprintf("engines that read it do not find the store %s (%s)", f.Store, e.Why)
			v.configuration(f)
		}
	}
	return nil
}

// drivers checks that the engines of a system use the storage driver that can read the store.
func (v *verification) drivers(system *osroot.System, f ConfigurationFault) {
	t, err := storageconf.Load(v.o.Root.Tree, existing(v.o.Root, system))
	if err != nil {
		return // noted by who plans
	}
	seen := map[string]bool{"": true, "overlay": true, "overlay2": true}
	for _, d := range []string{t.Config.Driver, t.Merged.Driver, t.CRIOConfig.StorageDriver} {
		if !seen[d] {
			seen[d] = true
			f.Problem = fmt.Sprintf("with the storage driver %q no engine reads the store %s", d, f.Store)
			v.configuration(f)
		}
	}
}

// store verifies one store.
func (v *verification) store(ctx context.Context, s Store) error {
	info := v.o.Root.VolumeOf(s.Root).Info
	o := storeseed.VerifyOptions{
		TimeResolution: info.TimeResolution, Earliest: info.Earliest, Latest: info.Latest, MaxFaults: maxVerifyFaults,
		Progress: func(layer, layers int, id string) {
			v.vo.Log.Infof("%s: layer %d of %d: %.12s", s.Path, layer+1, layers, id)
		},
	}
	var policy *selinux.Policy
	if v.vo.Deep {
		o.Deep = true
		var err error
		if policy, err = loadPolicy(v.o.Root, v.o.system()); err != nil {
			v.configuration(ConfigurationFault{Problem: err.Error()})
		}
		if policy != nil {
			o.Label = func(name string, typeflag byte) (string, bool) {
				return policy.Label(v.o.system().Running(strings.TrimPrefix(name, "/")), typeflag)
			}
		}
	}
	r, err := storeseed.Verify(ctx, v.o.Root.Tree, s.Root, o)
	if err != nil {
		return v.unreadable(fmt.Errorf("store %s: %w", path.Clean(s.Path), err))
	}
	if r.Labels > 0 {
		if err := v.equivalent(policy, path.Clean(s.Path)); err != nil {
			return err
		}
	}
	v.out.Stores = append(v.out.Stores, StoreVerification{path.Clean(s.Path), r})
	v.out.Faults += r.Total
	return nil
}

// equivalent looks for the line of the policy that a bake adds. Without it many labels are wrong for one reason.
func (v *verification) equivalent(policy *selinux.Policy, store string) error {
	name := policy.SubsPath()
	text, err := v.o.system().ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return v.unreadable(err)
	}
	want, err := selinux.EquivalentSubs(text, store, storeLike)
	if err == nil && bytes.Equal(text, want) {
		return nil
	}
	v.configuration(ConfigurationFault{File: name, Store: store, Problem: fmt.Sprintf("it does not make %s like %s, so a relabel changes the labels of the store", store, storeLike)})
	return nil
}
