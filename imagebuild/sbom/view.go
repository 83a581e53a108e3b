package sbom

import (
	"archive/tar"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/nodebake/nodebake/storeseed"
)

// view is an image as overlayfs shows it: layers over one another, the topmost first. Symbolic links are not followed.
type view struct {
	r      storeseed.Reader
	layers []string // each layer's folder in r
}

const opaque = "SCHILY.xattr.trusted.overlay.opaque"

// missing says that a name is not there: itself, or because a part of its path is no folder.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

func isWhiteout(h *tar.Header) bool {
	return h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0
}

// lookup says in which layers name is: one for anything but a folder, and for a folder all that make it up, the
// topmost first. None is a name that is not there.
func (v *view) lookup(name string) ([]string, *tar.Header, error) {
	at := v.layers
	parts := strings.Split(name, "/")
	for i := range parts {
		prefix := "/" + strings.Join(parts[:i+1], "/")
		last := i == len(parts)-1
		var have []string
		var top *tar.Header
		for _, l := range at {
			h, err := v.r.Stat(l + prefix)
			if missing(err) {
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			if h.Typeflag != tar.TypeDir {
				if top == nil && last && !isWhiteout(h) {
					return []string{l}, h, nil
				}
				break
			}
			if top == nil {
				top = h
			}
			have = append(have, l)
			if h.PAXRecords[opaque] == "y" {
				break
			}
		}
		if at = have; len(at) == 0 {
			return nil, nil, nil
		}
		if last {
			return at, top, nil
		}
	}
	return nil, nil, nil
}

// file is where a regular file lies in r; empty if there is none of that name.
func (v *view) file(name string) (string, error) {
	at, h, err := v.lookup(name)
	if err != nil || len(at) == 0 || h.Typeflag != tar.TypeReg {
		return "", err
	}
	return at[0] + "/" + name, nil
}

// files are the names of a folder's regular files, sorted, and where each lies.
func (v *view) files(dir string) ([]string, error) {
	at, h, err := v.lookup(dir)
	if err != nil || len(at) == 0 || h.Typeflag != tar.TypeDir {
		return nil, err
	}
	var names []string
	for _, l := range at {
		more, err := v.r.ReadDir(l + "/" + dir)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	slices.Sort(names)
	var found []string
	for _, n := range slices.Compact(names) {
		f, err := v.file(dir + "/" + n)
		if err != nil {
			return nil, err
		}
		if f != "" {
			found = append(found, f)
		}
	}
	return found, nil
}

// shows says whether a file that lies in one of the layers can be seen.
func (v *view) shows(layer, name string) (bool, error) {
	at, _, err := v.lookup(name)
	return len(at) > 0 && at[0] == layer, err
}
