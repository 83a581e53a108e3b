package imagebuild

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const (
	// storeLabel is the label of a store's own filesystem and the name of its partition.
	storeLabel = "nodebake"
	// linuxData is the type of a partition of Linux's, in a GPT (Discoverable Partitions Specification, "generic data")
	// and in an MBR.
	linuxDataGPT = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	linuxDataMBR = "0x83"
	// firstStore is what a store's partition has to begin with, in bytes.
	firstStore = 1 << 30
	unitFolder = "/etc/systemd/system"
)

// starters are the folders whose links start the mount unit.
var starters = []string{unitFolder + "/local-fs.target.wants", unitFolder + "/crio.service.requires"}

// storePartition is a partition of the store's own that a bake makes.
type storePartition struct {
	kind filesystem.Kind
	uuid [16]byte
	guid [16]byte
	// where is the running system's path of the store, without symbolic links.
	where string
}

// planStorePartition checks whether the store can have a partition of its own, and plans it.
func (b *bake) planStorePartition() error {
	d, root := b.base.Disk, b.base.Root
	p := &storePartition{kind: filesystem.Kind(b.StorePartition), where: root.Systems[0].Running(b.storeRoot)}
	if err := checkPartitionKind(b.StorePartition); err != nil {
		return err
	}
	switch b.StorePartition {
	case "":
		return nil
	case "auto":
		p.kind = root.Info.Kind
	}
	if v := root.VolumeOf(b.storeRoot); v.At == b.storeRoot {
		b.Log.Infof("the store has a partition of its own already: %s", v.Partition)
		return nil
	}
	if names, err := root.Tree.ReadDir(b.storeRoot); err == nil && len(names) > 0 {
		return fmt.Errorf("%w: %s is not empty on the base, and a partition would hide what is there; choose another --store", ErrUsage, b.Store)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if d.Table == "none" {
		return fmt.Errorf("%w: the disk has no partition table, and so no place for a --store-partition", disk.ErrNoRoom)
	}
	if at, err := root.Systems[0].Locate("/usr/lib/systemd/systemd"); err != nil {
		return err
	} else if _, err := root.Tree.Stat(at.Path); err != nil {
		return fmt.Errorf("%w: a --store-partition is mounted by systemd, which is not on the base", disk.ErrUnsupported)
	}
	// The same base and path give the same names; each disk that is made of the base shares the root's UUID as well.
	p.uuid, p.guid = b.newUUID("filesystem"), b.newUUID("partition")
	b.partition = p
	return nil
}

// newUUID makes a UUID of version 8 (RFC 9562, section 5.8) out of what the base and the store are called.
func (b *bake) newUUID(what string) (u [16]byte) {
	sum := sha256.Sum256([]byte(strings.Join([]string{"nodebake", what, b.base.Disk.ID, b.base.Root.Info.UUID, b.Store}, "\x00")))
	copy(u[:], sum[:])
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	return u
}

func uuidText(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// planUnit plans the mount unit of a store's own partition in a system, and the links that start it.
func (b *bake) planUnit(s *osroot.System) error {
	p := b.partition
	name := osroot.UnitName(p.where)
	text := fmt.Sprintf(`# Written by nodebake.
[Unit]
Description=Container images (%[1]s)
Before=local-fs.target crio.service

[Mount]
What=/dev/disk/by-uuid/%[2]s
Where=%[1]s
Type=%[3]s
Options=ro

[Install]
WantedBy=local-fs.target
RequiredBy=crio.service
`, strings.ReplaceAll(p.where, "%", "%%"), uuidText(p.uuid), p.kind)
	file := path.Join(unitFolder, name)
	if err := b.planFile(s, file, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}, text, "mounts the store's partition at "+p.where+", read-only"); err != nil {
		return err
	}
	for _, dir := range starters {
		if err := b.planFile(s, path.Join(dir, name), tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: file}, "",
			"starts that mount with "+strings.TrimSuffix(strings.TrimSuffix(path.Base(dir), ".wants"), ".requires")); err != nil {
			return err
		}
	}
	return nil
}

// planFile plans a file and the folders above it that are not there.
func (b *bake) planFile(s *osroot.System, name string, h tar.Header, text, why string) error {
	at, err := b.base.Root.Writable(s, path.Dir(name))
	if err != nil {
		return err
	}
	var above []storageconf.Edit
	for dir := at; ; dir = path.Dir(dir) {
		have, err := b.base.Root.Tree.Stat(dir)
		if err == nil && have.Typeflag == tar.TypeDir {
			break
		}
		if err == nil {
			return fmt.Errorf("/%s is in the way of %s: it is not a folder", dir, name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		above = append(above, storageconf.Edit{Name: s.Running(dir), Path: dir, Header: tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, Why: "a folder for what follows"})
	}
	for i := range above {
		b.addEdit(above[len(above)-1-i], s)
	}
	h.Name = path.Join(at, path.Base(name))
	if _, err := b.base.Root.Tree.Stat(h.Name); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%w: %s is on the base already; choose another --store", ErrUsage, name)
		}
		return err
	}
	b.addEdit(storageconf.Edit{Name: name, Path: h.Name, Header: h, New: []byte(text), Why: why}, s)
	return nil
}

// makePartition makes the entry for the store's partition in the table.
func (b *bake) makePartition(r *room) (*disk.Volume, error) {
	p := b.partition
	part := disk.Partition{Size: firstStore, Type: linuxDataGPT, Name: storeLabel, GUID: uuidText(p.guid), Kind: p.kind, Label: storeLabel, UUID: uuidText(p.uuid)}
	if b.base.Disk.Table == "mbr" {
		part.Type, part.Name, part.GUID = linuxDataMBR, "", ""
	}
	vol, err := r.layout.Add(part)
	if err == nil && !r.auto {
		err = vol.Fill()
	}
	switch {
	case errors.Is(err, disk.ErrFixed):
		return nil, fmt.Errorf("%w; give a larger --size, or leave it out", err)
	case errors.Is(err, disk.ErrNoRoom):
		return nil, fmt.Errorf("%w; leave --store-partition out, or choose a base with room for one more partition", err)
	}
	return vol, err
}

// addStorePartition makes the partition and its filesystem, and grafts it into the tree at the store's path.
func (b *bake) addStorePartition(r *room, tree labelled) error {
	p := b.partition
	vol, err := b.makePartition(r)
	if err != nil {
		return err
	}
	if err := filesystem.Format(vol, vol.Size(), p.kind, filesystem.FormatOptions{UUID: p.uuid, Label: storeLabel, Now: b.report.Epoch}); err != nil {
		return fmt.Errorf("making the store's filesystem: %w", err)
	}
	if err := mkdirAll(tree, b.storeRoot); err != nil {
		return err
	}
	w, err := r.openVolume(b.storeRoot, vol, false)
	if err != nil {
		return err
	}
	tree.Graft(filesystem.Graft{At: b.storeRoot, Reader: w, OpenWriter: func() (filesystem.Writer, error) { return w, nil }})
	// The new filesystem's own folders get the policy's labels, which a relabel of a read-only mount could not give.
	for _, name := range []string{b.storeRoot, path.Join(b.storeRoot, "lost+found")} {
		h, err := tree.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = tree.Add(h, nil)
		}
		if err != nil {
			return err
		}
	}
	b.report.NewPartition = true
	b.Log.Infof("the store gets %s", vol.Partition())
	return nil
}

// mkdirAll makes a folder of the tree and those above it that are not there.
func mkdirAll(tree labelled, name string) error {
	if _, err := tree.Stat(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := mkdirAll(tree, path.Dir(name)); err != nil {
		return err
	}
	return tree.Add(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
}

// checkPartitionKind checks a StorePartition.
func checkPartitionKind(kind string) error {
	switch kind {
	case "", "auto", string(filesystem.Ext4), string(filesystem.XFS):
		return nil
	}
	return fmt.Errorf("%w: --store-partition %s: give ext4 or xfs", ErrUsage, kind)
}
