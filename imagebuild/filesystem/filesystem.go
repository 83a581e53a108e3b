// Package filesystem is where the pipeline meets the filesystems on a disk: the two small interfaces that
// every reader and writer satisfies, and the probe that tells what a partition holds.
//
// A file's record is archive/tar's Header, so that the filesystem packages, the store writer and the tar
// streams between them share no type of ours. Names are slash-separated and relative to the filesystem's
// root; a leading slash is ignored; components are never resolved through symbolic links.
package filesystem

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/nodebake/nodebake/imagebuild/filesystem/ext4"
	"github.com/nodebake/nodebake/imagebuild/filesystem/xfs"
)

// Reader reads a filesystem. Missing names match fs.ErrNotExist.
type Reader interface {
	// Stat describes a name and never follows a final symbolic link. Extended attributes are in
	// PAXRecords under "SCHILY.xattr."+name.
	Stat(name string) (*tar.Header, error)
	// ReadDir lists a folder's names in byte order, without "." and "..".
	ReadDir(name string) ([]string, error)
	// Open gives a regular file's content; holes read as zeros.
	Open(name string) (*io.SectionReader, error)
	// SameFile says whether two names are hard links to one file.
	SameFile(a, b string) (bool, error)
}

// Writer changes a filesystem. Nothing is final before Commit. One goroutine at a time.
type Writer interface {
	Reader
	// Add creates h.Name. The parent must exist. An existing name is fs.ErrExist, except a folder over a
	// folder, which takes h's attributes and keeps its entries.
	Add(h *tar.Header, r io.Reader) error
	// Replace is Add of a regular file that takes the place of one that exists, as rename(2) would.
	Replace(h *tar.Header, r io.Reader) error
	// Remove unlinks a file or an empty folder.
	Remove(name string) error
	// Commit writes what is still in memory. It returns an error that matches ErrNoSpace, and carries the
	// need, where the filesystem was too small for what was added.
	Commit(ctx context.Context) error
}

// ErrNoWriter says that a filesystem is known but cannot be read or written by this version.
var ErrNoWriter = errors.New("filesystem cannot be written yet")

// Device is where a writer's blocks go: a partition of the disk being made.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Info says what an opened filesystem is.
type Info struct {
	Kind       Kind     `json:"kind"`
	Label      string   `json:"label,omitempty"`
	UUID       string   `json:"uuid,omitempty"`
	BlockSize  int64    `json:"blockSize"`
	Blocks     int64    `json:"blocks"`
	FreeBlocks int64    `json:"freeBlocks"` // without what is reserved for root
	Inodes     int64    `json:"inodes"`
	FreeInodes int64    `json:"freeInodes"`
	Features   []string `json:"features,omitempty"`
	// TimeResolution is the precision of the times that files can have, Earliest and Latest their range.
	TimeResolution   time.Duration `json:"-"`
	Earliest, Latest time.Time     `json:"-"`
}

// Space is what a writer found free and what has been taken of it, in blocks of BlockSize bytes and in inodes.
type Space struct {
	BlockSize  int64 `json:"blockSize"`
	FreeBlocks int64 `json:"freeBlocks"`
	NeedBlocks int64 `json:"needBlocks"`
	FreeInodes int64 `json:"freeInodes"`
	NeedInodes int64 `json:"needInodes"`
}

// FreeBytes is the free space in bytes.
func (s Space) FreeBytes() int64 { return s.FreeBlocks * s.BlockSize }

// NeedBytes is the need in bytes.
func (s Space) NeedBytes() int64 { return s.NeedBlocks * s.BlockSize }

// NoSpaceError says what did not fit. It matches ErrNoSpace.
type NoSpaceError struct{ Space }

// ErrNoSpace is matched by every error for a filesystem that is too small for what it should hold.
var ErrNoSpace = errors.New("not enough space in the filesystem")

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("%v: needed are %s and %d inodes, free are %s and %d inodes (%d of %d blocks of %d bytes)", ErrNoSpace,
		size(e.NeedBytes()), e.NeedInodes, size(e.FreeBytes()), e.FreeInodes, e.NeedBlocks, e.FreeBlocks, e.BlockSize)
}

// size is a number of bytes in MiB, rounded up: a need is never shown smaller than it is.
func size(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// Is reports that the error matches ErrNoSpace.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

// Options steer a writer.
type Options struct {
	// Now is the time of everything that names no time of its own.
	Now time.Time
	// CountOnly counts what would be written and writes nothing.
	CountOnly bool
	// Grow is asked for more where the filesystem is full: need is the least size in bytes with which it can go on.
	// It returns the device's new size; one below need means that there is no more.
	Grow func(need int64) (int64, error)
}

// Open opens the filesystem of the given kind that fills r from 0 to size, for reading.
func Open(r io.ReaderAt, size int64, kind Kind) (Reader, Info, error) {
	switch kind {
	case Ext4:
		f, err := ext4.Open(r, size)
		if err != nil {
			return nil, Info{Kind: kind}, err
		}
		i := f.Info()
		// Two more bits of the seconds, and the nanoseconds, lie beyond the first 128 bytes.
		resolution, latest := time.Nanosecond, int64(math.MaxInt32+3<<32)
		if i.InodeSize == 128 {
			resolution, latest = time.Second, math.MaxInt32
		}
		return f, Info{Kind: kind, Label: i.Label, UUID: uuid(i.UUID[:]), BlockSize: int64(i.BlockSize), Blocks: i.Blocks,
			FreeBlocks: max(i.FreeBlocks-i.ReservedBlocks, 0), Inodes: i.Inodes, FreeInodes: i.FreeInodes, Features: i.Features,
			TimeResolution: resolution, Earliest: time.Unix(math.MinInt32, 0), Latest: time.Unix(latest, 0)}, nil
	case XFS:
		f, err := xfs.Open(r, size)
		if err != nil {
			return nil, Info{Kind: kind}, err
		}
		i := f.Info()
		latest := int64(math.MaxInt32)
		if slices.Contains(i.Features, "bigtime") {
			latest = math.MaxUint64/1_000_000_000 + math.MinInt32
		}
		return f, Info{Kind: kind, Label: i.Label, UUID: uuid(i.UUID[:]), BlockSize: int64(i.BlockSize), Blocks: i.Blocks,
			FreeBlocks: i.FreeBlocks, Inodes: i.Inodes, FreeInodes: i.FreeInodes, Features: i.Features,
			TimeResolution: time.Nanosecond, Earliest: time.Unix(math.MinInt32, 0), Latest: time.Unix(latest, 0)}, nil
	}
	return nil, Info{Kind: kind}, fmt.Errorf("%s: %w", kind, ErrNoWriter)
}

// Check checks all structures of an opened filesystem and calls fault for everything that is wrong. Contents are not
// read. The error is not about the filesystem's state: it is ctx's, or matches ErrNoWriter or the filesystem's own
// ErrUnsupported where its structures cannot be checked.
func Check(ctx context.Context, r Reader, fault func(error)) error {
	c, ok := r.(interface {
		Check(ctx context.Context, fault func(error)) error
	})
	if !ok {
		return ErrNoWriter
	}
	return c.Check(ctx, fault)
}

// Links says how many names a file has; an error where its filesystem does not tell.
func (t *Tree) Links(name string) (uint64, error) {
	r, rest := t.reader(name)
	l, ok := r.(interface {
		Links(name string) (uint64, error)
	})
	if !ok {
		return 0, ErrNoWriter
	}
	return l.Links(rest)
}

// IsCorrupt says that an error is about a filesystem whose bytes contradict its format, or that was not shut down.
func IsCorrupt(err error) bool {
	for _, is := range []error{ext4.ErrCorrupt, ext4.ErrNeedsRecovery, xfs.ErrCorrupt, xfs.ErrDirtyLog} {
		if errors.Is(err, is) {
			return true
		}
	}
	return false
}

// Resizable is a Writer of one filesystem, which can become larger.
type Resizable interface {
	Writer
	// Space tells at any time how much there was, with what growth added, and how much has been taken.
	Space() Space
	// Size is what the filesystem covers, in bytes. Grow makes it larger, any time before Commit.
	Size() int64
	Grow(size int64) error
}

// OpenWriter opens the filesystem of the given kind that fills d from 0 to size, for writing.
func OpenWriter(d Device, size int64, kind Kind, o Options) (Resizable, error) {
	switch kind {
	case Ext4:
		w, err := ext4.OpenWriter(d, size, ext4.Options{Now: o.Now, CountOnly: o.CountOnly, Grow: o.Grow})
		if err != nil {
			return nil, err
		}
		return ext4Writer{w}, nil
	case XFS:
		w, err := xfs.OpenWriter(d, size, xfs.Options{Now: o.Now, CountOnly: o.CountOnly, Grow: o.Grow})
		if err != nil {
			return nil, err
		}
		return xfsWriter{w}, nil
	}
	return nil, fmt.Errorf("%s: %w", kind, ErrNoWriter)
}

// FormatOptions are what a new filesystem is told.
type FormatOptions struct {
	UUID  [16]byte
	Label string
	Now   time.Time
}

// Format makes an empty filesystem that fills d from 0 to size.
func Format(d Device, size int64, kind Kind, o FormatOptions) error {
	switch kind {
	case Ext4:
		return ext4.Format(d, size, ext4.FormatOptions{UUID: o.UUID, Label: o.Label, Now: o.Now})
	case XFS:
		return xfs.Format(d, size, xfs.FormatOptions{UUID: o.UUID, Label: o.Label, Now: o.Now})
	}
	return fmt.Errorf("%s: %w", kind, ErrNoWriter)
}

type ext4Writer struct{ *ext4.Writer }

// Space implements Resizable.
func (w ext4Writer) Space() Space { return Space(w.Writer.Space()) }

// Commit implements Writer.
func (w ext4Writer) Commit(ctx context.Context) error {
	err := w.Writer.Commit(ctx)
	var full *ext4.NoSpaceError
	if errors.As(err, &full) {
		return &NoSpaceError{Space(full.Space)}
	}
	return err
}

type xfsWriter struct{ *xfs.Writer }

// Space implements Resizable.
func (w xfsWriter) Space() Space { return Space(w.Writer.Space()) }

// Commit implements Writer.
func (w xfsWriter) Commit(ctx context.Context) error {
	err := w.Writer.Commit(ctx)
	var full *xfs.NoSpaceError
	if errors.As(err, &full) {
		return &NoSpaceError{Space(full.Space)}
	}
	return err
}
