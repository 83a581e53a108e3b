// Package output makes the new disk: a private copy of the base in the format that is asked for, beside where
// the output will be, which is written to like a disk and then put in place as the last act.
package output

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output/newfile"
	"github.com/nodebake/nodebake/qcow"
)

// Errors of Check and Create.
var (
	ErrExists = errors.New("output exists")
	ErrIsBase = errors.New("output is the base disk itself")
)

// Check refuses an output path that cannot be used, before any work is done.
func Check(base *disk.Disk, path string, o Options) error {
	if err := o.check(base, path); err != nil {
		return err
	}
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("the output's folder: %w", err)
	}
	if !dir.IsDir() {
		return fmt.Errorf("the output's folder %s is not a folder", filepath.Dir(path))
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil && !o.Force {
			return fmt.Errorf("%s: %w, as a symbolic link to nothing; --force replaces it", path, ErrExists)
		}
		return nil
	}
	if err != nil {
		return err
	}
	switch {
	case base.Uses(st):
		return fmt.Errorf("%s: %w, which is never written; choose another --output", path, ErrIsBase)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file; choose another --output", path)
	case !o.Force:
		return fmt.Errorf("%s: %w; --force replaces it", path, ErrExists)
	}
	return nil
}

// Options say what kind of disk is made.
type Options struct {
	Format disk.Format
	// Force permits an existing file to be replaced.
	Force bool
	// Overlay makes a qcow2 that holds only what differs from the base and names it as its backing file. Base and
	// output lie in the same folder.
	Overlay bool
	// Compression makes a qcow2 all of whose data is compressed: "zlib" or "zstd", with Level 1 to 9 or 1 to 22,
	// 0 for the usual one.
	Compression string
	Level       int
	// ClusterSize is that of a new qcow2, in bytes; 0 keeps the base's where it can, and else is 64 KiB.
	ClusterSize int
}

// ErrOptions is matched where options contradict each other or the base.
var ErrOptions = errors.New("output options")

// Check refuses options that contradict each other, with an error that matches ErrOptions.
func (o Options) Check() error {
	switch {
	case o.Format == disk.Raw && (o.Overlay || o.Compression != "" || o.ClusterSize != 0):
		return fmt.Errorf("%w: a raw disk has no clusters, no compression and no backing file; choose a qcow2 output", ErrOptions)
	case o.Overlay && o.Compression != "":
		return fmt.Errorf("%w: an overlay is not compressed; leave one of the two out", ErrOptions)
	case o.ClusterSize != 0 && (o.ClusterSize < 512 || o.ClusterSize > 2<<20 || o.ClusterSize&(o.ClusterSize-1) != 0):
		return fmt.Errorf("%w: clusters of %d bytes; a power of two from 512 to 2097152 is possible", ErrOptions, o.ClusterSize)
	}
	return nil
}

func (o Options) check(base *disk.Disk, path string) error {
	if err := o.Check(); err != nil || !o.Overlay {
		return err
	}
	a, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	b, err := os.Stat(filepath.Dir(base.Path))
	if err != nil {
		return err
	}
	if !os.SameFile(a, b) {
		return fmt.Errorf("%w: an overlay lies in the folder of its base (%s), so that the two can be moved together", ErrOptions, filepath.Dir(base.Path))
	}
	return nil
}

// Target is a disk being made. One goroutine at a time.
type Target struct {
	path  string
	dir   string // of path, or of the temporary files alone where the disk gets no name
	o     Options
	base  *disk.Disk
	file  *newfile.File // the disk image; nil where the disk's contents are handed on and no file is made of them
	image *qcow.Writer
	size  int64
	// stage holds the changes until they are read back, into an image that is written anew or by whom the disk is handed
	// on to; nil where they go to the image at once.
	stage *newfile.File
}

// Create makes a private copy of the base. Where base and target formats are the same the image file is carried
// over as it is, by reflink or copy_file_range where the host offers it, so that compressed clusters stay
// compressed; else its contents are converted. Until Finish nothing is at path, and Abort, or the end of the
// process, leaves nothing.
func Create(ctx context.Context, base *disk.Disk, path string, o Options) (*Target, error) {
	if err := Check(base, path, o); err != nil {
		return nil, err
	}
	t := &Target{path: path, dir: filepath.Dir(path), o: o, base: base, size: base.Size()}
	return t, t.fill(ctx, o.Overlay || o.Format == disk.Raw || o.Compression == "" && o.ClusterSize == 0)
}

// CreateUnnamed makes a private copy of the base that Deliver will hand on. Its temporary files lie in dir: of a raw
// disk the changes alone.
func CreateUnnamed(ctx context.Context, base *disk.Disk, dir string, o Options) (*Target, error) {
	if o.Overlay {
		return nil, fmt.Errorf("%w: an overlay needs its base beside it", ErrOptions)
	}
	if err := o.Check(); err != nil {
		return nil, err
	}
	t := &Target{dir: dir, o: o, base: base, size: base.Size()}
	return t, t.fill(ctx, o.Format == disk.Qcow2 && o.Compression == "" && o.ClusterSize == 0)
}

// fill makes the copy: at once into the file that the disk will be, or by noting what changes.
func (t *Target) fill(ctx context.Context, direct bool) (err error) {
	if !direct {
		err = t.fillStage()
	} else if t.file, err = newfile.Create(t.dir); err == nil {
		switch {
		case t.o.Format == disk.Raw:
			err = t.fillRaw(ctx)
		case t.o.Overlay:
			t.image, err = t.overlay(t.file.File, filepath.Base(t.base.Path))
		default:
			err = t.fillQcow2(ctx)
		}
	}
	if err != nil {
		t.Abort()
	}
	return err
}

func (t *Target) fillRaw(ctx context.Context) error {
	base := t.base
	if base.Format == disk.Raw {
		return copyFile(ctx, t.file.File, base.File())
	}
	if err := t.file.Truncate(base.Size()); err != nil {
		return err
	}
	return qcow.Copy(ctx, t.file, base.Image, qcow.CopyOptions{})
}

func (t *Target) fillQcow2(ctx context.Context) (err error) {
	if patchable(t.base) {
		if err := t.patch(ctx); !errors.Is(err, qcow.ErrCannotPatch) {
			return err
		}
		if err := t.file.Truncate(0); err != nil {
			return err
		}
	}
	if t.image, err = qcow.Create(t.file, t.size, qcow.CreateOptions{}); err != nil {
		return err
	}
	src, err := source(t.base)
	if err != nil {
		return err
	}
	return qcow.Copy(ctx, t.image, src, qcow.CopyOptions{})
}

// overlay makes f an image whose contents are the base's, until they are written to.
func (t *Target) overlay(f *os.File, name string) (*qcow.Writer, error) {
	backing := t.base.Image
	if backing == nil {
		src, err := source(t.base)
		if err != nil {
			return nil, err
		}
		backing = qcow.OpenRaw(src)
	}
	return qcow.Create(f, t.base.Size(), qcow.CreateOptions{ClusterSize: t.o.ClusterSize, Backing: backing, BackingFile: name, BackingFormat: string(t.base.Format)})
}

// stageBacking is what the stage calls its backing file, which is never opened by that name.
const stageBacking = "base"

// fillStage puts the changes into a temporary overlay first: a compressed cluster that is written twice would
// leave a hole in the image, and a bake writes many twice.
func (t *Target) fillStage() (err error) {
	if t.stage, err = newfile.Create(t.dir); err != nil {
		return err
	}
	t.image, err = t.overlay(t.stage.File, stageBacking)
	return err
}

// staged is the contents of the disk: the base's, and the stage's over them.
func (t *Target) staged() (*qcow.Image, error) {
	src, err := qcow.BorrowFile(t.stage.File)
	if err != nil {
		return nil, err
	}
	// The stage's own backing file is asked for first; what follows is the base's chain.
	chain, staged := t.base.Chain(), false
	rest := chain.Resolve
	chain.Resolve = func(name, format string) (qcow.Source, error) {
		if !staged {
			staged = true
			return qcow.BorrowFile(t.base.File())
		}
		return rest(name, format)
	}
	view, err := qcow.Open(src, chain)
	if err != nil {
		return nil, fmt.Errorf("reading the changes back: %w", err)
	}
	return view, nil
}

// unstage writes the whole image from the base and the stage.
func (t *Target) unstage(ctx context.Context) error {
	view, err := t.staged()
	if err != nil {
		return err
	}
	defer view.Close()
	if t.file, err = newfile.Create(t.dir); err != nil {
		return err
	}
	w, err := qcow.Create(t.file, t.size, qcow.CreateOptions{ClusterSize: t.o.ClusterSize, Compression: t.o.Compression, CompressionLevel: t.o.Level})
	if err != nil {
		return err
	}
	if err := qcow.Copy(ctx, w, view, qcow.CopyOptions{}); err != nil {
		return err
	}
	return w.Close()
}

// source is the base's contents with what is known of its holes.
func source(base *disk.Disk) (qcow.Source, error) {
	if base.Image != nil {
		return base.Image, nil
	}
	return qcow.NewFileSource(base.File())
}

// patchable says whether the base's own file can become the output, as far as its header tells.
func patchable(base *disk.Disk) bool {
	if base.Format != disk.Qcow2 {
		return false
	}
	i := base.Image.Info()
	return i.Version >= 3 && i.BackingFile == "" && i.DataFile == "" && !i.Dirty
}

// patch carries the base's file over and opens it for changes. qcow.ErrCannotPatch means that its tables do
// not permit that: then the contents must be converted.
func (t *Target) patch(ctx context.Context) error {
	if err := copyFile(ctx, t.file.File, t.base.File()); err != nil {
		return err
	}
	st, err := t.file.Stat()
	if err != nil {
		return err
	}
	t.image, err = qcow.OpenPatch(t.file, st.Size(), qcow.Options{})
	return err
}

// ReadAt reads guest bytes of the disk being made.
func (t *Target) ReadAt(p []byte, off int64) (int, error) {
	if t.image != nil {
		return t.image.ReadAt(p, off)
	}
	return t.file.ReadAt(p, off)
}

// WriteAt writes guest bytes of the disk being made.
func (t *Target) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > t.size-off {
		return 0, fmt.Errorf("writing %d bytes at %d: past the end of the disk (%d bytes)", len(p), off, t.size)
	}
	if t.image != nil {
		return t.image.WriteAt(p, off)
	}
	return t.file.WriteAt(p, off)
}

// Size is the guest's size in bytes.
func (t *Target) Size() int64 { return t.size }

// Grow makes the disk larger, to size bytes of the guest; the new part reads as zeros.
func (t *Target) Grow(size int64) error {
	if size < t.size {
		return fmt.Errorf("cannot shrink the disk from %d to %d bytes", t.size, size)
	}
	if t.image != nil {
		if err := t.image.Grow(size); err != nil {
			return err
		}
		t.size = t.image.Size()
		return nil
	}
	if err := t.file.Truncate(size); err != nil {
		return fmt.Errorf("growing the disk to %d bytes: %w", size, err)
	}
	t.size = size
	return nil
}

// Flush writes all of the image's own metadata, so that the file can be read as a whole image.
func (t *Target) Flush() error {
	if t.image != nil {
		return t.image.Flush()
	}
	return nil
}

// Finish makes the file durable and gives it its name, as the last act, unless the base was written to meanwhile
// (disk.ErrChanged). Before that, beside (which may be nil) is called with the bytes of the whole file. The target is
// closed in any case.
func (t *Target) Finish(ctx context.Context, beside func(file *qcow.Image) error) error {
	defer t.Abort()
	if err := t.seal(ctx); err != nil {
		return err
	}
	if beside != nil {
		if err := t.use(beside); err != nil {
			return err
		}
	}
	if err := errors.Join(ctx.Err(), t.Unchanged()); err != nil {
		return err
	}
	if err := Place(t.file, t.path, t.o.Force); err != nil {
		return err
	}
	if err := errors.Join(t.file.Close(), newfile.SyncDir(t.dir)); err != nil {
		return fmt.Errorf("%s is whole and has its name, but that may not survive a loss of power: %w", t.path, err)
	}
	return nil
}

// Place gives a finished file the output's name. Without force a file that came there meanwhile stays, and the error
// matches ErrExists.
func Place(f *newfile.File, path string, force bool) error {
	err := f.Place(path, force)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w: it came there while the bake ran", path, ErrExists)
	}
	return err
}

// Deliver finishes a disk without a name and hands it to use: the bytes of the qcow2 file, or the contents of a raw
// disk, which are read from the base as well. Extents tells where they have holes. The target is closed in any case,
// and the file is gone.
func (t *Target) Deliver(ctx context.Context, use func(disk *qcow.Image) error) error {
	defer t.Abort()
	if err := t.seal(ctx); err != nil {
		return err
	}
	if err := errors.Join(ctx.Err(), t.Unchanged()); err != nil {
		return err
	}
	if t.file != nil {
		return t.use(use)
	}
	view, err := t.staged()
	if err != nil {
		return err
	}
	defer view.Close()
	return use(view)
}

// use hands on the bytes of the file that the disk is in.
func (t *Target) use(f func(*qcow.Image) error) error {
	src, err := qcow.NewFileSource(t.file.File)
	if err != nil {
		return err
	}
	return f(qcow.OpenRaw(src))
}

// Unchanged returns an error that matches disk.ErrChanged if the base was written to since it was opened.
func (t *Target) Unchanged() error { return t.base.Unchanged() }

// seal completes the file.
func (t *Target) seal(ctx context.Context) error {
	if t.image != nil {
		if err := t.image.Close(); err != nil {
			return fmt.Errorf("finishing the image: %w", err)
		}
	}
	if t.stage != nil && t.o.Format == disk.Qcow2 {
		if err := t.unstage(ctx); err != nil {
			return fmt.Errorf("finishing the image: %w", err)
		}
		t.stage.Abort()
		t.stage = nil
	}
	return nil
}

// Abort throws the disk away. It may be called more than once, and after Finish does nothing.
func (t *Target) Abort() {
	if t.stage != nil {
		t.stage.Abort()
	}
	if t.file != nil {
		t.file.Abort()
	}
}
