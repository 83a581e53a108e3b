package imagebuild

import (
	"errors"
	"fmt"
	"path"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed"
)

// Inspection says what a disk is. Fields that do not apply are empty.
type Inspection struct {
	Path   string      `json:"path"`
	Format disk.Format `json:"format"`
	// Size is the guest's in bytes, FileSize the image file's.
	Size     int64      `json:"size"`
	FileSize int64      `json:"fileSize"`
	Qcow2    *Qcow2Info `json:"qcow2,omitempty"`
	Table    string     `json:"table"`
	TableID  string     `json:"tableId,omitempty"`
	Sector   int        `json:"sectorSize"`
	// Partitions are in the table's order.
	Partitions []disk.Partition `json:"partitions"`
	// LogicalVolumes are LVM's, in the order of their groups' metadata.
	LogicalVolumes []disk.Partition `json:"logicalVolumes,omitempty"`
	// Root is nil where no operating system was found; RootError says why.
	Root      *RootInfo `json:"root,omitempty"`
	RootError string    `json:"rootError,omitempty"`
	Warnings  []string  `json:"warnings,omitempty"`
}

// Qcow2Info is what is particular to a qcow2 image.
type Qcow2Info struct {
	Version     int    `json:"version"`
	ClusterSize int64  `json:"clusterSize"`
	Compression string `json:"compression"`
	BackingFile string `json:"backingFile,omitempty"`
	Snapshots   int    `json:"snapshots,omitempty"`
}

// RootInfo is the operating system on a disk.
type RootInfo struct {
	Partition int `json:"partition"`
	// LogicalVolume is GROUP/NAME where the root is on LVM.
	LogicalVolume string          `json:"logicalVolume,omitempty"`
	Why           string          `json:"why"`
	Filesystem    filesystem.Info `json:"filesystem"`
	OS            osroot.Release  `json:"os"`
	Platform      string          `json:"platform,omitempty"`
	Layout        string          `json:"layout"`
	// Deployments are an ostree disk's, the default first.
	Deployments []string `json:"deployments,omitempty"`
	// Volumes are other partitions of the disk that the system mounts.
	Volumes     []VolumeInfo `json:"volumes,omitempty"`
	StorageConf *StorageConf `json:"storageConf,omitempty"`
	ConfError   string       `json:"storageConfError,omitempty"`
	Stores      []StoreInfo  `json:"stores"`
}

// VolumeInfo is a partition and where the running system has it.
type VolumeInfo struct {
	Partition     int    `json:"partition"`
	LogicalVolume string `json:"logicalVolume,omitempty"`
	Mount         string `json:"mount"`
}

// StorageConf is what the disk's main storage.conf says.
type StorageConf struct {
	Path                  string   `json:"path"`
	Driver                string   `json:"driver,omitempty"`
	GraphRoot             string   `json:"graphroot,omitempty"`
	RunRoot               string   `json:"runroot,omitempty"`
	AdditionalImageStores []string `json:"additionalimagestores"`
	MountOpt              string   `json:"mountopt,omitempty"`
}

// StoreInfo is a store and how much is in it.
type StoreInfo struct {
	Store
	Images int    `json:"images"`
	Layers int    `json:"layers"`
	Error  string `json:"error,omitempty"`
}

// Inspect describes the disk at path. A disk without an operating system is described as far as it goes.
func Inspect(path string, how DiskOptions) (*Inspection, error) {
	d, err := disk.Open(path, how.Options)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	st, err := d.File().Stat()
	if err != nil {
		return nil, err
	}
	in := &Inspection{Path: path, Format: d.Format, Size: d.Size(), FileSize: st.Size(), Table: d.Table, TableID: d.ID,
		Sector: d.SectorSize, Partitions: d.Partitions, Warnings: d.Warnings}
	if d.Image != nil {
		i := d.Image.Info()
		in.Qcow2 = &Qcow2Info{Version: i.Version, ClusterSize: i.ClusterSize, Compression: i.Compression,
			BackingFile: i.BackingFile, Snapshots: i.Snapshots}
	}
	for _, p := range d.Volumes {
		if p.LV != "" {
			in.LogicalVolumes = append(in.LogicalVolumes, p)
		}
		if err := p.Refused(); err != nil {
			in.Warnings = append(in.Warnings, fmt.Sprintf("%s: %v", p, err))
		}
	}
	r, err := osroot.Find(d, how.Root)
	if err != nil {
		in.RootError = err.Error()
		return in, nil
	}
	o := &Opened{d, r}
	in.Root = &RootInfo{Partition: r.Partition.Number, LogicalVolume: r.Partition.LV, Why: r.Why, Filesystem: r.Info, OS: r.Release,
		Platform: r.Platform, Layout: "plain", Stores: []StoreInfo{}}
	in.Warnings = append(in.Warnings, r.Warnings...)
	if r.Ostree {
		in.Root.Layout = "ostree"
		for _, s := range r.Systems {
			in.Root.Deployments = append(in.Root.Deployments, s.Name)
		}
	}
	for _, v := range r.Volumes[1:] {
		in.Root.Volumes = append(in.Root.Volumes, VolumeInfo{v.Partition.Number, v.Partition.LV, o.system().Running(v.At)})
	}
	tree, err := o.Config()
	if err != nil {
		in.Root.ConfError = err.Error()
		return in, nil
	}
	if tree.Main != nil {
		in.Root.StorageConf = &StorageConf{tree.Main.Name, tree.Config.Driver, tree.Config.GraphRoot, tree.Config.RunRoot,
			tree.Config.AdditionalImageStores, tree.Config.MountOpt}
	}
	stores, err := o.Stores()
	if err != nil {
		return nil, err
	}
	for _, s := range stores {
		in.Root.Stores = append(in.Root.Stores, storeInfo(o, s))
	}
	return in, nil
}

func storeInfo(o *Opened, s Store) StoreInfo {
	si := StoreInfo{Store: s}
	images, err := storeseed.List(o.Root.Tree, s.Root)
	if err != nil {
		si.Error = err.Error()
		return si
	}
	layers := map[string]bool{}
	for _, i := range images {
		for _, l := range i.Layers {
			layers[l.ID] = true
		}
	}
	si.Images, si.Layers = countIDs(images), len(layers)
	return si
}

// countIDs counts images, of which one may have several rows.
func countIDs(images []storeseed.Image) int {
	ids := map[string]bool{}
	for _, i := range images {
		ids[i.ID] = true
	}
	return len(ids)
}

// StoredImage is an image and the store that it is in.
type StoredImage struct {
	storeseed.Image
	Store string `json:"store"`
}

// Images lists the images of every store on the disk, in each store's own order. A store that cannot be read is in
// the error; the images of the others are listed all the same.
func Images(o *Opened) ([]StoredImage, error) {
	stores, err := o.Stores()
	if err != nil {
		return nil, err
	}
	all := []StoredImage{}
	var broken []error
	for _, s := range stores {
		images, err := storeseed.List(o.Root.Tree, s.Root)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		for _, i := range images {
			all = append(all, StoredImage{i, path.Clean(s.Path)})
		}
	}
	return all, errors.Join(broken...)
}
