package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodebake/nodebake/imagebuild/output/newfile"
)

// maxDocument bounds manifests, configs and indexes; it is the library's own bound.
const maxDocument = 4 << 20

// checkLayout refuses a folder that cannot take the image.
func checkLayout(d Dest, force bool) error {
	switch st, err := os.Stat(d.path); {
	case errors.Is(err, fs.ErrNotExist):
		if st, err := os.Lstat(d.path); err == nil && st.Mode().Type() == fs.ModeSymlink {
			return fmt.Errorf("%s is a symbolic link to nothing", d.path)
		}
		if st, err := os.Stat(filepath.Dir(d.path)); err != nil {
			return fmt.Errorf("the output's folder: %w", err)
		} else if !st.IsDir() {
			return fmt.Errorf("the output's folder %s is not a folder", filepath.Dir(d.path))
		}
		return nil
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is not a folder, which an OCI layout is; choose another output", d.path)
	}
	lock, err := lockDir(d.path) // another bake may be about to make it a layout
	if err != nil {
		return err
	}
	defer lock.Close()
	index, err := readLayout(d.path)
	if err != nil {
		return err
	}
	_, err = replaced(d, index, force)
	return err
}

// readLayout reads the index of a layout; that of an empty folder is empty.
func readLayout(dir string) (imgspecv1.Index, error) {
	data, err := readDocument(filepath.Join(dir, imgspecv1.ImageLayoutFile))
	if errors.Is(err, fs.ErrNotExist) {
		names, err := os.ReadDir(dir)
		if err != nil {
			return imgspecv1.Index{}, err
		}
		// Another bake that is in its course may have a temporary file there.
		names = slices.DeleteFunc(names, func(e fs.DirEntry) bool { return strings.HasPrefix(e.Name(), newfile.Prefix) })
		if len(names) > 0 {
			return imgspecv1.Index{}, fmt.Errorf("%s: %w, and is no OCI layout; choose another folder", dir, ErrExists)
		}
		return newIndex(), nil
	}
	if err != nil {
		return imgspecv1.Index{}, err
	}
	var version imgspecv1.ImageLayout
	if err := json.Unmarshal(data, &version); err != nil || version.Version != imgspecv1.ImageLayoutVersion {
		return imgspecv1.Index{}, fmt.Errorf("%s is an OCI layout of version %q; only %s is written", dir, version.Version, imgspecv1.ImageLayoutVersion)
	}
	data, err = readDocument(filepath.Join(dir, imgspecv1.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newIndex(), nil
	}
	if err != nil {
		return imgspecv1.Index{}, err
	}
	var index imgspecv1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return index, fmt.Errorf("reading %s: %w", filepath.Join(dir, imgspecv1.ImageIndexFile), err)
	}
	return index, nil
}

func readDocument(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(data) > maxDocument {
		err = fmt.Errorf("%s has more than %d bytes", file, maxDocument)
	}
	return data, err
}

// replaced is the place of the index's entry that the new image takes, -1 for none.
func replaced(d Dest, index imgspecv1.Index, force bool) (int, error) {
	at := -1
	if d.name != "" {
		at = slices.IndexFunc(index.Manifests, func(m imgspecv1.Descriptor) bool { return m.Annotations[imgspecv1.AnnotationRefName] == d.name })
	} else if n := len(index.Manifests); n == 1 {
		at = 0
	} else if n > 1 {
		return -1, fmt.Errorf("%s holds %d images, and another without a name could not be told from them; give oci:DIR:NAME", d.path, n)
	}
	if at >= 0 && !force {
		return -1, fmt.Errorf("%s: %w, as %s; --force replaces it, another name is put beside it", d, ErrExists, index.Manifests[at].Digest)
	}
	return at, nil
}

// undo remembers what was made, to take it away again.
type undo []string

func (u undo) run() {
	for _, name := range slices.Backward(u) {
		os.Remove(name)
	}
}

// mkdir makes a folder if it is not there.
func (u *undo) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o777)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		*u = append(*u, dir)
	}
	return err
}

// place names a blob, unless it is there already. One of another size is what an interrupted copy left.
func (u *undo) place(f *newfile.File, name string) error {
	err := f.Place(name, false)
	if errors.Is(err, fs.ErrExist) {
		mine, err := f.Stat()
		if err != nil {
			return err
		}
		if st, err := os.Lstat(name); err == nil && st.Mode().IsRegular() && st.Size() == mine.Size() {
			return nil
		}
		return f.Place(name, true)
	}
	if err == nil {
		*u = append(*u, name)
	}
	return err
}

// placeData names a file with data, replacing one with force.
func (u *undo) placeData(name string, data []byte, force bool) error {
	f, err := newfile.Create(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer f.Abort()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if force {
		return f.Place(name, true)
	}
	return u.place(f, name)
}

func writeLayout(ctx context.Context, d Dest, disk io.Reader, size int64, o *Options) (_ Result, err error) {
	dir := filepath.Clean(d.path)
	// The layer is written without a name, so a layout comes to be only when it can be whole.
	home := dir
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		home = filepath.Dir(dir)
	}
	f, err := newfile.Create(home)
	if err != nil {
		return Result{}, err
	}
	defer f.Abort()
	l, err := writeLayer(ctx, f, disk, size, o)
	if err != nil {
		return Result{}, err
	}
	config, manifest, err := describe(&l, o)
	if err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}

	var made undo
	defer func() {
		if err != nil {
			made.run()
		}
	}()
	if err := made.mkdir(dir); err != nil {
		return Result{}, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return Result{}, err
	}
	defer lock.Close()
	index, err := readLayout(dir)
	if err != nil {
		return Result{}, err
	}
	at, err := replaced(d, index, o.Force)
	if err != nil {
		return Result{}, err
	}
	if err := made.placeData(filepath.Join(dir, imgspecv1.ImageLayoutFile), layoutFile, false); err != nil {
		return Result{}, err
	}
	blobs := filepath.Join(dir, imgspecv1.ImageBlobsDir)
	for _, p := range []string{blobs, filepath.Join(blobs, l.blob.Algorithm().String())} {
		if err := made.mkdir(p); err != nil {
			return Result{}, err
		}
	}
	if err := made.place(f, filepath.Join(dir, blobName(l.blob))); err != nil {
		return Result{}, err
	}
	for _, doc := range []document{config, manifest} {
		if err := made.placeData(filepath.Join(dir, blobName(doc.desc.Digest)), doc.data, false); err != nil {
			return Result{}, err
		}
	}
	var old []imgspecv1.Descriptor
	if at >= 0 {
		old = []imgspecv1.Descriptor{index.Manifests[at]}
		index.Manifests = slices.Delete(index.Manifests, at, at+1)
	}
	index.Manifests = append(index.Manifests, entryOf(manifest, d.name, o.Platform))
	data, err := json.Marshal(index)
	if err != nil {
		return Result{}, err
	}
	for _, p := range []string{filepath.Join(dir, imgspecv1.ImageBlobsDir, l.blob.Algorithm().String()), blobs} {
		if err := newfile.SyncDir(p); err != nil {
			return Result{}, err
		}
	}
	if err := made.placeData(filepath.Join(dir, imgspecv1.ImageIndexFile), data, true); err != nil {
		return Result{}, err
	}
	made = nil
	if err := errors.Join(newfile.SyncDir(dir), newfile.SyncDir(filepath.Dir(dir))); err != nil {
		return Result{}, fmt.Errorf("it is whole, but may not survive a loss of power: %w", err)
	}
	sweep(dir, old, index.Manifests)
	return resultOf(&l, config, manifest), nil
}

// sweep removes the blobs of old that no image of rest uses. If it cannot be sure of that, it removes nothing.
func sweep(dir string, old, rest []imgspecv1.Descriptor) {
	keep, gone := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	if reach(dir, rest, keep, 0) != nil || reach(dir, old, gone, 0) != nil {
		return
	}
	for d := range gone {
		if !keep[d] {
			os.Remove(filepath.Join(dir, blobName(d)))
		}
	}
}

// maxNesting bounds indexes in indexes.
const maxNesting = 8

// reach finds the blobs that images are made of.
func reach(dir string, images []imgspecv1.Descriptor, found map[digest.Digest]bool, depth int) error {
	if depth > maxNesting {
		return errors.New("indexes are nested too deeply")
	}
	for _, i := range images {
		if err := i.Digest.Validate(); err != nil {
			return err
		}
		if found[i.Digest] {
			continue
		}
		found[i.Digest] = true
		data, err := readDocument(filepath.Join(dir, blobName(i.Digest)))
		if err != nil {
			return err
		}
		// Whatever kind of manifest it is.
		var m struct {
			Config    imgspecv1.Descriptor
			Layers    []imgspecv1.Descriptor
			Blobs     []imgspecv1.Descriptor
			Manifests []imgspecv1.Descriptor
		}
		if err := json.Unmarshal(data, &m); err != nil {
			return err
		}
		for _, b := range slices.Concat([]imgspecv1.Descriptor{m.Config}, m.Layers, m.Blobs) {
			if b.Digest == "" {
				continue
			}
			if err := b.Digest.Validate(); err != nil {
				return err
			}
			found[b.Digest] = true
		}
		if err := reach(dir, m.Manifests, found, depth+1); err != nil {
			return err
		}
	}
	return nil
}
