package osroot

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// Errors of Find. An error for a root of a kind that cannot be written matches disk.ErrUnsupported.
var (
	ErrNoRoot    = errors.New("no root filesystem found")
	ErrAmbiguous = errors.New("more than one partition could be the root")
)

// Root is the operating system's root filesystem, with what the system mounts into it from the same disk.
type Root struct {
	Partition disk.Partition
	Info      filesystem.Info
	Release   Release
	// Platform is what the disk runs on, "linux/amd64" and so on; empty where nothing on it says.
	Platform string
	// Why says in a few words what the choice rests on.
	Why string
	// Ostree says that the root filesystem holds deployments and not a system itself.
	Ostree bool
	// Systems are what can be started, the default first: one, or an ostree disk's deployments.
	Systems []*System
	// Volumes are the partitions that make up Tree; the first is the root.
	Volumes []Volume
	// Tree reads the root with the other volumes in their places. Paths that System.Locate gives lie in it.
	Tree *filesystem.Tree
	// Warnings are sentences about what was passed over.
	Warnings []string

	// covers are mounts of which the disk does not have the filesystem, and hidden is where each lies in Tree.
	covers, hidden []Mount
	// units are the mount units that mount has dealt with.
	units []string
}

// rootTypes are the types of the Discoverable Partitions Specification for a root partition.
var rootTypes = map[string]string{
	"4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "linux/amd64",
	"b921b045-1df0-41c3-af44-4c6f280d3fae": "linux/arm64",
	"69dad710-2ce4-4e3c-b16c-21a1d49abed3": "linux/arm",
	"44479540-f297-41b2-9af7-d131d5f0458a": "linux/386",
	"72ec70a6-cf74-40e6-bd49-4bda08e8f224": "linux/riscv64",
	"c31c45e6-3f39-412e-80fb-4809c4980599": "linux/ppc64le",
	"5eead9a9-fe09-4a1e-a1d7-520d00531306": "linux/s390x",
}

// rootLabels are labels by which installers and image builders name a root filesystem or its partition.
var rootLabels = []string{"root", "rootfs", "/", "cloudimg-rootfs", "cloud-rootfs"}

func labelled(p disk.Partition) bool {
	return slices.Contains(rootLabels, strings.ToLower(p.Label)) || slices.Contains(rootLabels, strings.ToLower(p.Name))
}

// Find finds the root partition of the disk. choice, if not empty, names it: a number, a name, a label, or a
// UUID (see disk.Partition.Matches). Without it the root is the one partition that holds an os-release file;
// where several do, the partition type, then the filesystem table that names its own partition as "/", then
// the label must single one out: what remains ambiguous is an error that lists the candidates.
func Find(d *disk.Disk, choice string) (*Root, error) {
	parts := d.Volumes
	if choice != "" {
		parts = nil
		for _, p := range d.Volumes {
			if p.Matches(choice) {
				parts = append(parts, p)
			}
		}
		if len(parts) == 0 {
			return nil, fmt.Errorf("no partition matches %q; the disk has %s", choice, list(d.Volumes))
		}
		// The number of a physical volume means whatever root is on it.
		if slices.ContainsFunc(parts, func(p disk.Partition) bool { return p.Number != parts[0].Number }) {
			return nil, fmt.Errorf("%w: %q matches %s; give the number", ErrAmbiguous, choice, list(parts))
		}
	}
	var roots []*Root
	var broken []error
	var passed []passedOver
	for _, p := range parts {
		if plain(p) {
			continue
		}
		if err := unwritable(p); err != nil {
			passed = append(passed, passedOver{p, err})
			continue
		}
		r, err := openRoot(d, p)
		switch {
		case errors.Is(err, errNoSystem):
		case err != nil:
			broken = append(broken, fmt.Errorf("%s: %w", p, err))
			passed = append(passed, passedOver{p, err})
		default:
			roots = append(roots, r)
		}
	}
	if len(roots) == 0 {
		return nil, none(parts, broken, choice)
	}
	for _, narrow := range []struct {
		why  string
		keep func(*Root) bool
	}{
		{"its partition type says root", func(r *Root) bool { return rootTypes[r.Partition.Type] != "" }},
		{"its own fstab names it as /", namesItself},
		{"its label", func(r *Root) bool { return labelled(r.Partition) }},
	} {
		if len(roots) == 1 {
			break
		}
		var kept []*Root
		for _, r := range roots {
			if narrow.keep(r) {
				kept = append(kept, r)
			}
		}
		if len(kept) > 0 {
			roots = kept
			roots[0].Why = narrow.why
		}
	}
	if len(roots) > 1 {
		var cands []disk.Partition
		for _, r := range roots {
			cands = append(cands, r.Partition)
		}
		return nil, fmt.Errorf("%w: %s; choose one with --root %s", ErrAmbiguous, list(cands), chooses(cands[0]))
	}
	root := roots[0]
	for _, o := range passed {
		if rank(o.partition) > rank(root.Partition) {
			return nil, fmt.Errorf("%s looks like the root: %w; if %s is the root, say --root %s", o.partition, o.err, root.Partition, chooses(root.Partition))
		}
	}
	if err := root.mount(d); err != nil {
		return nil, err
	}
	for _, o := range passed {
		said := slices.ContainsFunc(root.Warnings, func(w string) bool { return strings.HasPrefix(w, o.partition.String()) })
		if o.partition.Kind.Writable() && !said {
			root.Warnings = append(root.Warnings, fmt.Sprintf("%s was passed over: %v", o.partition, o.err))
		}
	}
	if choice != "" {
		root.Why = "chosen by --root"
	}
	root.Platform = platform(root)
	return root, nil
}

// passedOver is a partition that could not be looked into, and why.
type passedOver struct {
	partition disk.Partition
	err       error
}

// rank is how much a partition looks like a root from outside: a root type counts for more than a label.
func rank(p disk.Partition) int {
	switch {
	case rootTypes[p.Type] != "":
		return 2
	case labelled(p):
		return 1
	}
	return 0
}

// plain says that a partition is of no kind that a root could be on.
func plain(p disk.Partition) bool {
	switch p.Kind {
	case filesystem.Unknown, filesystem.VFAT, filesystem.Swap:
		return p.Refused() == nil
	}
	return false
}

// chooses is what --root takes for a partition.
func chooses(p disk.Partition) string {
	if p.LV != "" {
		return p.LV
	}
	return fmt.Sprint(p.Number)
}

// unwritable says why a partition cannot be written, nil if it can.
func unwritable(p disk.Partition) error {
	if err := p.Refused(); err != nil {
		return err
	}
	switch p.Kind {
	case filesystem.Ext4, filesystem.XFS:
		return nil
	case filesystem.Btrfs:
		return fmt.Errorf("%w: it holds btrfs, and nodebake writes ext4 and XFS alone; a store on another partition would not help, since storage.conf is on the root", disk.ErrUnsupported)
	case filesystem.LUKS:
		return fmt.Errorf("%w: it is encrypted (LUKS), and nothing can be written without its key; bake before it is encrypted", disk.ErrUnsupported)
	case filesystem.RAID:
		return fmt.Errorf("%w: it is a member of a Linux RAID; bake the disk before the array is made", disk.ErrUnsupported)
	}
	return fmt.Errorf("%w: %s cannot be written by this version (ext4 and XFS can)", disk.ErrUnsupported, p.Kind)
}

// none explains why no root was found, most likely cause first.
func none(parts []disk.Partition, broken []error, choice string) error {
	switch len(broken) {
	case 0:
	case 1:
		return broken[0]
	default:
		return fmt.Errorf("%w: %w", ErrNoRoot, errors.Join(broken...))
	}
	others := slices.DeleteFunc(slices.Clone(parts), func(p disk.Partition) bool { return plain(p) || unwritable(p) == nil })
	if len(others) > 0 {
		// Neither a type nor a label decides: the largest.
		p := slices.MaxFunc(others, func(a, b disk.Partition) int {
			return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Size, b.Size))
		})
		return fmt.Errorf("the root is on %s: %w", p, unwritable(p))
	}
	if choice != "" {
		return fmt.Errorf("%w: %s holds no /etc/os-release", ErrNoRoot, list(parts))
	}
	return fmt.Errorf("%w: none of %s holds an /etc/os-release", ErrNoRoot, list(parts))
}

func namesItself(r *Root) bool {
	mounts, err := r.Systems[0].fstab()
	return err == nil && slices.ContainsFunc(mounts, func(m Mount) bool { return m.Target == "/" && m.isOf(r.Partition) })
}

func list(parts []disk.Partition) string {
	var s []string
	for _, p := range parts {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}

// platform reads the architecture from the partition's type or from the ELF header of a program that every
// system has.
func platform(r *Root) string {
	if p := rootTypes[r.Partition.Type]; p != "" {
		return p
	}
	for _, name := range []string{"/sbin/init", "/usr/lib/systemd/systemd", "/bin/sh", "/usr/bin/env", "/bin/busybox"} {
		at, err := r.Systems[0].Locate(name)
		if err != nil {
			continue
		}
		f, err := r.Tree.Open(at.Path)
		if err != nil {
			continue
		}
		head := make([]byte, 20)
		if _, err := f.ReadAt(head, 0); err != nil {
			continue
		}
		if p := elfPlatform(head); p != "" {
			return p
		}
	}
	return ""
}

// elfPlatform reads the byte order and machine of an ELF header (gABI, "ELF Header"). The header alone is
// read: debug/elf is not made for hostile files.
func elfPlatform(head []byte) string {
	if string(head[:4]) != elf.ELFMAG {
		return ""
	}
	little := elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2LSB
	order := binary.ByteOrder(binary.BigEndian)
	if little {
		order = binary.LittleEndian
	}
	switch elf.Machine(order.Uint16(head[18:])) {
	case elf.EM_X86_64:
		return "linux/amd64"
	case elf.EM_AARCH64:
		return "linux/arm64"
	case elf.EM_386:
		return "linux/386"
	case elf.EM_ARM:
		return "linux/arm/v7"
	case elf.EM_S390:
		return "linux/s390x"
	case elf.EM_PPC64:
		if little {
			return "linux/ppc64le"
		}
		return "linux/ppc64"
	case elf.EM_RISCV:
		return "linux/riscv64"
	}
	return ""
}
