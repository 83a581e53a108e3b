package storeseed

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Image is one line of a store's list of images: an image with several tags has several lines.
type Image struct {
	Repository string          `json:"repository"` // "<none>" if the image has no name
	Tag        string          `json:"tag"`        // "<none>" if it has none
	Digest     digest.Digest   `json:"digest"`
	ID         string          `json:"id"`
	Size       int64           `json:"size"` // all layers' tars and the image's own data, as the engine counts
	Created    time.Time       `json:"created"`
	Names      []string        `json:"names"`   // all names of the image
	Digests    []digest.Digest `json:"digests"` // all manifests that it can be found by
	Layers     []Layer         `json:"layers"`  // the base first
}

// List reads the images of the store at root, in the order in which `podman images` shows them: the
// newest first. A folder that is no store at all is fs.ErrNotExist; a store that contradicts itself is
// ErrCorruptStore.
func List(r Reader, root string) ([]Image, error) {
	root, err := cleanName(root)
	if err != nil {
		return nil, fmt.Errorf("store path: %w", err)
	}
	if err := isStore(r, root); err != nil {
		return nil, err
	}
	rec, err := readRecords(r, root, strictly(root))
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, im := range rec.images {
		one := Image{Digest: im.Digest, ID: im.ID, Created: im.Created, Names: slices.Clone(im.Names)}
		for _, l := range rec.chain(im.TopLayer) {
			one.Layers = append(one.Layers, Layer{ID: l.ID, DiffID: l.UncompressedDigest,
				CompressedDigest: l.CompressedDigest, CompressedSize: l.CompressedSize, Size: l.UncompressedSize})
			one.Size += max(l.UncompressedSize, 0)
		}
		for _, key := range im.BigDataNames {
			one.Size += im.BigDataSizes[key]
			if d := im.BigDataDigests[key]; isManifestKey(key) && !slices.Contains(one.Digests, d) {
				one.Digests = append(one.Digests, d)
			}
		}
		out = append(out, rowsOf(one)...)
	}
	slices.SortStableFunc(out, func(a, b Image) int { return b.Created.Compare(a.Created) })
	return out, nil
}

// rowsOf gives an image a line for each of its tags, or one line if it has none.
func rowsOf(im Image) []Image {
	var tagged, untagged []Image
	for _, n := range im.Names {
		row := im
		row.Repository, row.Tag, _ = repoOf(n)
		if row.Tag == "" {
			row.Tag = "<none>"
			untagged = append(untagged, row)
		} else {
			tagged = append(tagged, row)
		}
	}
	switch {
	case len(tagged) > 0:
		return tagged
	case len(untagged) > 0:
		return untagged[:1]
	}
	im.Repository, im.Tag = "<none>", "<none>"
	return []Image{im}
}

// isStore tells a store from any other folder.
func isStore(r Reader, root string) error {
	for _, f := range []string{layersJSON, imagesJSON, layersLock, imagesLock} {
		ok, err := exists(r, root+"/"+f)
		if ok {
			return nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("/%s is no image store: it has neither records nor locks: %w", root, fs.ErrNotExist)
}
