package imagebuild

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

// DefaultStore is where a bake puts the store unless told otherwise.
const DefaultStore = "/var/images"

// defaultGraphRoot is containers/storage's own for root.
const defaultGraphRoot = "/var/lib/containers/storage"

// Opened is a disk with its operating system found. Safe for concurrent reading.
type Opened struct {
	Disk *disk.Disk
	Root *osroot.Root
}

// DiskOptions say how a disk is opened.
type DiskOptions struct {
	disk.Options
	// Root names the root partition where the disk does not say enough by itself (see osroot.Find).
	Root string
}

// OpenDisk opens the disk image at path and finds its root. The caller closes it.
func OpenDisk(path string, o DiskOptions) (*Opened, error) {
	d, err := disk.Open(path, o.Options)
	if err != nil {
		return nil, err
	}
	return findRoot(d, o.Root)
}

// findRoot takes over an open disk and finds its root.
func findRoot(d *disk.Disk, choice string) (*Opened, error) {
	r, err := osroot.Find(d, choice)
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("%s: %w", d.Path, err)
	}
	return &Opened{Disk: d, Root: r}, nil
}

// Close closes the disk.
func (o *Opened) Close() error { return o.Disk.Close() }

// system is what the disk starts by default.
func (o *Opened) system() *osroot.System { return o.Root.Systems[0] }

// Path is where a path of the running system lies in Root.Tree, with every symbolic link followed.
func (o *Opened) Path(name string) (string, error) {
	at, err := o.system().Locate(name)
	return at.Path, err
}

// existing resolves paths for storageconf: what is not there is an error that matches fs.ErrNotExist.
func existing(r *osroot.Root, s *osroot.System) storageconf.Resolve {
	return func(name string) (string, error) {
		at, err := s.Locate(name)
		if err != nil {
			return "", err
		}
		_, err = r.Tree.Stat(at.Path)
		return at.Path, err
	}
}

// Config reads what the engines on the disk are configured to do. Files that are not there are no error.
func (o *Opened) Config() (*storageconf.Tree, error) {
	return storageconf.Load(o.Root.Tree, existing(o.Root, o.system()))
}

// Store is an image store on the disk.
type Store struct {
	// Path is the running system's name for it; Root is where that lies in the root filesystem.
	Path string `json:"path"`
	Root string `json:"-"`
	// Configured says that storage.conf lists it.
	Configured bool `json:"configured"`
	// Primary says that it is the engine's read-write graphroot.
	Primary bool `json:"primary,omitempty"`
}

// Stores lists the stores that are there: those that storage.conf names, the default one, and the graphroot.
func (o *Opened) Stores() ([]Store, error) {
	tree, err := o.Config()
	if err != nil {
		return nil, err
	}
	var named []Store
	for _, p := range slices.Concat(tree.Config.AdditionalImageStores, tree.Merged.AdditionalImageStores) {
		named = append(named, Store{Path: p, Configured: true})
	}
	named = append(named, Store{Path: DefaultStore})
	graphroot := tree.Config.GraphRoot
	if graphroot == "" {
		graphroot = defaultGraphRoot
	}
	named = append(named, Store{Path: graphroot, Configured: true, Primary: true})
	var stores []Store
	for _, s := range named {
		if s.Root, err = o.Path(s.Path); err != nil {
			return nil, fmt.Errorf("store %s: %w", s.Path, err)
		}
		_, err := o.Root.Tree.Stat(path.Join(s.Root, "overlay-images", "images.json"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("store %s: %w", s.Path, err)
		}
		if !slices.ContainsFunc(stores, func(have Store) bool { return have.Root == s.Root }) {
			stores = append(stores, s)
		}
	}
	return stores, nil
}

// cleanStore checks the path that a store is asked to have.
func cleanStore(p string) (string, error) {
	switch {
	case p == "":
		return DefaultStore, nil
	case !strings.HasPrefix(p, "/"), strings.ContainsAny(p, "\x00\n\"\\"):
		return "", fmt.Errorf("%w: the store's path %q must be absolute and plain, such as %s", ErrUsage, p, DefaultStore)
	}
	c := path.Clean(p)
	if c != p && c+"/" != p || strings.Count(c, "/") < 2 {
		return "", fmt.Errorf("%w: the store's path %q must name a folder below a top folder, without . or .., such as %s", ErrUsage, p, DefaultStore)
	}
	return c, nil
}
