package imagebuild

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

// pinDir is where CRI-O reads its drop-ins; pinFile is the one that a bake writes. Of the files that set pinned_images
// the last one counts, so its name comes behind those that people give.
const (
	pinDir  = "/etc/crio/crio.conf.d"
	pinFile = pinDir + "/99-nodebake-pinned-images.conf"
)

// maxPinConf bounds a file of CRI-O's, in bytes, as storageconf does.
const maxPinConf = 256 << 10

// PinnedImages gives the patterns of pinned_images that are in force, and the name of the file that sets them, of
// CRI-O's files in the order in which it reads them. Without any it returns nothing. The error names a file that is
// not TOML, or in which pinned_images is no list of strings; CRI-O does not start with it.
func PinnedImages(files []storageconf.File) (patterns []string, file string, err error) {
	for _, f := range files {
		if len(f.Data) > maxPinConf {
			return nil, "", fmt.Errorf("%s has %d bytes, more than %d", f.Name, len(f.Data), maxPinConf)
		}
		var doc map[string]any
		if err := toml.Unmarshal(f.Data, &doc); err != nil {
			return nil, "", fmt.Errorf("%s: %w", f.Name, err)
		}
		v, ok := folded(doc, "crio", "image", "pinned_images")
		if !ok {
			continue
		}
		list, ok := v.([]any)
		if !ok {
			return nil, "", fmt.Errorf("%s: crio.image.pinned_images is no list", f.Name)
		}
		// Each file's list takes the place of those before it.
		patterns, file = []string{}, f.Name
		for _, e := range list {
			s, ok := e.(string)
			if !ok {
				return nil, "", fmt.Errorf("%s: crio.image.pinned_images holds something that is no string", f.Name)
			}
			patterns = append(patterns, s)
		}
	}
	return patterns, file, nil
}

// folded finds a value by keys that match whatever their case, as in CRI-O's TOML library; the exact one is preferred.
func folded(v any, key ...string) (any, bool) {
	for _, k := range key {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		found := false
		for _, name := range sortedKeys(m) {
			if name == k || !found && strings.EqualFold(name, k) {
				v, found = m[name], true
			}
		}
		if !found {
			return nil, false
		}
	}
	return v, true
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Pinned says whether one of the patterns pins the image of the name, as CRI-O's does: a pattern is a whole name, or
// with * at its end what a name holds from there on, or with * at both ends what it holds anywhere; case does not count
// (crio.conf(5), pinned_images).
func Pinned(patterns []string, name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(patterns, func(p string) bool {
		p = strings.ToLower(p)
		switch {
		case len(p) > 1 && strings.HasPrefix(p, "*") && strings.HasSuffix(p, "*"):
			return strings.Contains(name, p[1:len(p)-1])
		case strings.HasSuffix(p, "*"):
			return strings.Contains(name, p[:len(p)-1])
		}
		return name == p
	})
}

// planPins plans the drop-in that keeps kubelet from collecting the images of the store, for every system that finds
// it. The images' names must be known by then: it is called between openImages and write.
func (b *bake) planPins() error {
	names, err := b.pinNames()
	if err != nil {
		return err
	}
	for _, s := range b.base.Root.Systems {
		at, err := b.base.Root.Writable(s, b.Store)
		if err != nil {
			return err
		}
		if at != b.storeRoot {
			continue
		}
		edits, err := b.pinEdits(s, names)
		if err != nil {
			return err
		}
		for _, e := range edits {
			if slices.Contains(b.custom.Paths(), e.Path) {
				return fmt.Errorf("%w: %s is written by --pin itself (%s)", ErrUsage, e.Name, e.Why)
			}
			b.addEdit(e, s)
		}
	}
	return nil
}

// pinNames are the names of the images that the store will have.
func (b *bake) pinNames() ([]string, error) {
	var names []string
	old, err := storeseed.List(b.base.Root.Tree, b.storeRoot)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, i := range old {
		names = append(names, i.Names...)
	}
	for _, i := range b.images {
		names = append(names, i.Info().Names...)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// pinEdits plans the drop-in, and its folders, for one system; nothing where all is pinned already, or where there is
// no CRI-O.
func (b *bake) pinEdits(s *osroot.System, names []string) ([]storageconf.Edit, error) {
	root := b.base.Root
	tree, err := storageconf.Load(root.Tree, existing(root, s))
	if err != nil {
		return nil, err
	}
	if !hasCRIO(root, s, tree) {
		b.warn("nothing on the disk reads %s: there is no CRI-O, so no image is pinned", pinFile)
		return nil, nil
	}
	patterns, from, err := PinnedImages(tree.CRIO)
	if err != nil {
		return nil, err
	}
	if from > pinFile {
		return nil, fmt.Errorf("%w: %s is read behind %s and sets pinned_images: add the images there, or take that key out of it", ErrUsage, from, pinFile)
	}
	kept := len(patterns)
	for _, n := range names {
		if !Pinned(patterns, n) {
			patterns = append(patterns, n)
		}
	}
	if len(patterns) == kept {
		return nil, nil
	}
	at, err := root.Writable(s, pinFile)
	if err != nil {
		return nil, err
	}
	e := storageconf.Edit{Name: pinFile, Path: at, New: pinConf(patterns), Why: "CRI-O tells kubelet not to collect the images of the store"}
	e.Header = tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: 0o644}
	if h, err := root.Tree.Stat(at); err == nil {
		if h.Typeflag != tar.TypeReg {
			return nil, fmt.Errorf("%w: %s is no regular file", ErrUsage, pinFile)
		}
		if e.Old, err = s.ReadFile(pinFile); err != nil {
			return nil, err
		}
		e.Header.Mode, e.Header.Uid, e.Header.Gid, e.Header.PAXRecords = h.Mode, h.Uid, h.Gid, h.PAXRecords
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	e.Header.Size = int64(len(e.New))
	edits, err := missingFolders(root, s, path.Dir(pinFile))
	return append(edits, e), err
}

// hasCRIO says whether CRI-O is on the disk, as a program or by its configuration.
func hasCRIO(root *osroot.Root, s *osroot.System, tree *storageconf.Tree) bool {
	if len(tree.CRIO) > 0 {
		return true
	}
	for _, name := range []string{"/etc/crio", "/usr/bin/crio", "/usr/local/bin/crio"} {
		if at, err := s.Locate(name); err == nil {
			if _, err := root.Tree.Stat(at.Path); err == nil {
				return true
			}
		}
	}
	return false
}

// missingFolders plans the folders on the way to dir that are not there.
func missingFolders(root *osroot.Root, s *osroot.System, dir string) ([]storageconf.Edit, error) {
	at, err := root.Writable(s, dir)
	if err != nil {
		return nil, err
	}
	if _, err := root.Tree.Stat(at); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	edits, err := missingFolders(root, s, path.Dir(dir))
	if err != nil {
		return nil, err
	}
	return append(edits, storageconf.Edit{Name: dir, Path: at, Why: "the folder was missing",
		Header: tar.Header{Name: at, Typeflag: tar.TypeDir, Mode: 0o755}}), nil
}

// pinConf is the drop-in.
func pinConf(patterns []string) []byte {
	var t strings.Builder
	t.WriteString(`# Made by nodebake build --pin. The images of the read-only store are not for kubelet to collect.
# This list takes the place of those in files that are read before; what they pinned is in it.

[crio.image]
pinned_images = [
`)
	for _, p := range patterns {
		t.WriteString("  " + storageconf.Quote(p) + ",\n")
	}
	t.WriteString("]\n")
	return []byte(t.String())
}
