package container

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
)

// whiteout begins the names of entries that hide something of the layers below; opaque hides all of its folder.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// Bounds of what is remembered of an image's files. An image for disks has a handful; one with a whole operating
// system below the disk's layer is not read that far.
const (
	maxName    = 4096
	maxEntries = 1 << 17
	maxNames   = 16 << 20 // bytes of all names and link targets
	maxLinks   = 40       // symbolic links followed, as in the kernel
	maxSteps   = 1 << 18  // components of paths looked up, in all
)

type kind byte

const (
	folder kind = iota
	regular
	symlink
	special
)

// entry is a file of the image.
type entry struct {
	kind    kind
	layer   int    // counted from the top
	ordinal int    // of the tar entry that has the content
	size    int64  // of a regular file
	link    string // of a symbolic link
}

// view is what is known of an image's files after its upper layers were read.
type view struct {
	files map[string]entry
	// gone and opaque are the paths that upper layers hide from lower ones: themselves and what is below, or only
	// the latter.
	gone, opaque map[string]bool
	entries      int
	names        int
	steps        int
}

func newView() *view {
	return &view{files: map[string]entry{}, gone: map[string]bool{}, opaque: map[string]bool{}}
}

// count takes note of something that is remembered.
func (v *view) count(bytes int) error {
	v.entries++
	v.names += bytes
	if v.entries > maxEntries || v.names > maxNames {
		return fmt.Errorf("%w: more files than an image for a disk has (%d looked at, and no disk was among them)", ErrLayer, v.entries)
	}
	return nil
}

// hidden tells whether upper layers hide name from those below.
func (v *view) hidden(name string) bool {
	if v.gone[name] {
		return true
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if v.gone[dir] || v.opaque[dir] {
			return true
		}
		if e, ok := v.files[dir]; ok && e.kind != folder {
			return true
		}
	}
	return v.opaque["."]
}

// layerView is one layer's entries.
type layerView struct {
	v            *view
	layer        int
	files        map[string]entry
	gone, opaque []string
}

// cleanName is a tar entry's name below the image's root; nothing leads out of it.
func cleanName(name string) string {
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return "."
	}
	return name
}

// add takes note of a tar entry, and says what became of it.
func (l *layerView) add(h *tar.Header, ordinal int) (name string, e entry, err error) {
	if len(h.Name) > maxName || len(h.Linkname) > maxName {
		return "", e, fmt.Errorf("%w: entry %d has a name of more than %d bytes", ErrLayer, ordinal, maxName)
	}
	name = cleanName(h.Name)
	if name == "." {
		return name, e, nil
	}
	if err := l.v.count(len(name) + len(h.Linkname)); err != nil {
		return "", e, err
	}
	dir, base := path.Dir(name), path.Base(name)
	if base == opaque {
		l.opaque = append(l.opaque, dir)
		return "", e, nil
	}
	if hidden, ok := strings.CutPrefix(base, whiteout); ok {
		// Other names of this kind are aufs's own.
		if hidden != "" && !strings.HasPrefix(hidden, whiteout) {
			l.gone = append(l.gone, path.Join(dir, hidden))
		}
		return "", e, nil
	}
	e = entry{kind: special, layer: l.layer, ordinal: ordinal}
	switch h.Typeflag {
	case tar.TypeDir:
		e.kind = folder
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		e.kind, e.size = regular, h.Size
	case tar.TypeSymlink:
		e.kind, e.link = symlink, h.Linkname
	case tar.TypeLink:
		to, ok := l.files[cleanName(h.Linkname)]
		if !ok || to.kind == folder {
			// Only a disk matters, and then resolve says so.
			e.link = h.Linkname
		} else {
			e = to
		}
	}
	l.files[name] = e
	for ; dir != "."; dir = path.Dir(dir) {
		if _, ok := l.files[dir]; ok {
			break
		}
		if err := l.v.count(len(dir)); err != nil {
			return "", e, err
		}
		l.files[dir] = entry{kind: folder, layer: l.layer}
	}
	return name, e, nil
}

// merge puts the layer below those that the view has.
func (l *layerView) merge() {
	v := l.v
	var names []string
	for name := range l.files {
		if !v.hidden(name) {
			names = append(names, name)
		}
	}
	for _, name := range names {
		upper, ok := v.files[name]
		if !ok {
			v.files[name] = l.files[name]
		} else if upper.kind == folder && l.files[name].kind != folder {
			l.opaque = append(l.opaque, name)
		}
	}
	for _, name := range l.gone {
		v.gone[name] = true
	}
	for _, name := range l.opaque {
		v.opaque[name] = true
	}
}

// errAbsent means that a file is not in the layers read so far.
var errAbsent = errors.New("not there")

// resolve follows a path from the image's root, through symbolic links, to what it names.
func (v *view) resolve(name string) (entry, error) {
	todo := strings.Split(name, "/")
	at, links := []string{}, 0
	e := entry{}
	for len(todo) > 0 {
		if v.steps++; v.steps > maxSteps {
			return e, fmt.Errorf("%w: its symbolic links lead nowhere", ErrLayer)
		}
		c := todo[0]
		todo = todo[1:]
		if e.kind != folder {
			return e, fmt.Errorf("%s is not a folder: %w", strings.Join(at, "/"), errAbsent)
		}
		switch c {
		case "", ".":
			continue
		case "..":
			if len(at) > 0 {
				at = at[:len(at)-1]
			}
			e = entry{}
			continue
		}
		p := strings.Join(append(slices.Clip(at), c), "/")
		var ok bool
		if e, ok = v.files[p]; !ok {
			return e, errAbsent
		}
		if e.kind != symlink {
			at = append(at, c)
			continue
		}
		if links++; links > maxLinks {
			return e, fmt.Errorf("%w: %s leads through more than %d symbolic links", ErrNoDisk, name, maxLinks)
		}
		if strings.HasPrefix(e.link, "/") {
			at = at[:0]
		}
		// At most maxLinks targets of maxName bytes are ever joined.
		todo = append(strings.Split(e.link, "/"), todo...)
		e = entry{}
	}
	return e, nil
}

// disk is the regular file at name.
func (v *view) disk(name string) (entry, error) {
	e, err := v.resolve(name)
	switch {
	case err != nil:
		return e, err
	case e.kind == folder:
		return e, fmt.Errorf("%w: %s is a folder", ErrNoDisk, name)
	case e.kind == special && e.link != "":
		return e, fmt.Errorf("%w: %s is a hard link to %s, which its layer does not hold", ErrNoDisk, name, e.link)
	case e.kind != regular:
		return e, fmt.Errorf("%w: %s is not a regular file", ErrNoDisk, name)
	}
	return e, nil
}

// disks are the names in a folder that lead to regular files.
func (v *view) disks(dir string) []string {
	var names []string
	for name := range v.files {
		if path.Dir(name) != dir {
			continue
		}
		if _, err := v.disk(name); err == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// walkTar calls f with each entry and its ordinal, and reads to the end of the tar.
func walkTar(r io.Reader, f func(h *tar.Header, ordinal int, content io.Reader) error) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: entry %d: %w", ErrLayer, n, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := f(h, n, tr); err != nil {
			return err
		}
	}
}
