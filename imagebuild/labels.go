package imagebuild

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/osroot/selinux"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const (
	labelRecord = "SCHILY.xattr.security.selinux"
	// storeLike is the path whose rules a store should follow.
	storeLike = defaultGraphRoot
)

// planLabels loads each system's SELinux policy and plans the line in it that makes the store equivalent to the
// engine's own. What is written is labelled as the policy, with that line, says: then a relabel changes nothing.
func (b *bake) planLabels(s *osroot.System) error {
	root := b.base.Root
	policy, err := loadPolicy(root, s)
	if err != nil {
		return err
	}
	if policy == nil {
		return nil
	}
	for _, w := range policy.Warnings() {
		b.warn("SELinux policy: %s", w)
	}
	name := policy.SubsPath()
	at, err := root.Writable(s, name)
	if err != nil {
		return err
	}
	e := storageconf.Edit{Name: name, Path: at, Header: tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: 0o644},
		Why: "the store is labelled as " + storeLike + " is"}
	h, err := root.Tree.Stat(at)
	switch {
	case err == nil:
		if e.Old, err = s.ReadFile(name); err != nil {
			return err
		}
		e.Header.Mode, e.Header.Uid, e.Header.Gid, e.Header.PAXRecords = h.Mode, h.Uid, h.Gid, h.PAXRecords
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if e.New, err = selinux.EquivalentSubs(e.Old, b.Store, storeLike); err != nil {
		return err
	}
	if b.policies[s], err = policy.WithSubs(e.New); err != nil {
		return err
	}
	if !bytes.Equal(e.Old, e.New) {
		e.Header.Size = int64(len(e.New))
		b.addEdit(e, s)
	}
	return nil
}

// loadPolicy reads a system's SELinux policy; nil where it has none.
func loadPolicy(root *osroot.Root, s *osroot.System) (*selinux.Policy, error) {
	policy, err := selinux.Load(root.Tree, func(name string) (string, error) {
		at, err := s.Locate(name)
		return at.Path, err
	})
	if err != nil {
		return nil, fmt.Errorf("SELinux policy: %w", err)
	}
	return policy, nil
}

// labelled is a tree whose new files get their system's SELinux label.
type labelled struct {
	*filesystem.Tree
	system *osroot.System
	policy *selinux.Policy
}

// Add implements filesystem.Writer.
func (l labelled) Add(h *tar.Header, r io.Reader) error { return l.Tree.Add(l.label(h), r) }

// Replace implements filesystem.Writer.
func (l labelled) Replace(h *tar.Header, r io.Reader) error { return l.Tree.Replace(l.label(h), r) }

// label is h with the policy's label, where h has none of its own.
func (l labelled) label(h *tar.Header) *tar.Header {
	if l.policy == nil || h.Typeflag == tar.TypeLink || h.PAXRecords[labelRecord] != "" {
		return h
	}
	label, ok := l.policy.Label(l.system.Running(h.Name), h.Typeflag)
	if !ok {
		return h
	}
	with := *h
	with.PAXRecords = maps.Clone(h.PAXRecords)
	if with.PAXRecords == nil {
		with.PAXRecords = map[string]string{}
	}
	with.PAXRecords[labelRecord] = label + "\x00"
	return &with
}
