package qcow

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holeSource is a Source that knows where its file has holes.
type holeSource interface {
	// nextRange tells whether off lies in a hole and where that hole or data ends; an end at or before off means unknown.
	nextRange(off int64) (hole bool, end int64, err error)
}

type fileSource struct {
	*os.File
	size    int64
	regular bool
}

// NewFileSource makes a Source of an open file or block device. Close closes f.
func NewFileSource(f *os.File) (Source, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		return &fileSource{f, st.Size(), true}, nil
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	return &fileSource{f, size, false}, nil
}

// BorrowFile is NewFileSource for a resolver whose file somebody else closes: Close does nothing.
func BorrowFile(f *os.File) (Source, error) {
	src, err := NewFileSource(f)
	if err != nil {
		return nil, err
	}
	return borrowed{src.(*fileSource)}, nil
}

type borrowed struct{ *fileSource }

func (borrowed) Close() error { return nil }

func (s *fileSource) Size() int64 { return s.size }

func (s *fileSource) nextRange(off int64) (bool, int64, error) {
	if !s.regular {
		return false, s.size, nil
	}
	data, err := unix.Seek(int(s.Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return true, s.size, nil
	}
	if err != nil {
		return false, s.size, nil // the filesystem does not tell
	}
	if data > off {
		return true, data, nil
	}
	hole, err := unix.Seek(int(s.Fd()), off, unix.SEEK_HOLE)
	if err != nil {
		return false, s.size, nil
	}
	return false, hole, nil
}

// NewDirResolver returns a resolver for Options that opens regular files directly below dir by their plain names. It refuses, with
// ErrBacking, names with a separator or a colon (protocols, json:), "." and "..", and symbolic links that leave dir.
func NewDirResolver(dir string) func(name, format string) (Source, error) {
	return func(name, _ string) (Source, error) {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\:\x00") {
			return nil, fmt.Errorf("%w: not a plain file name in the image's folder", ErrBacking)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return openRegular(root.OpenFile, name)
	}
}

// ResolveLocal is a resolver for Options with Path set: it opens regular files by absolute paths anywhere on this machine, through symbolic
// links too. It is for images whose backing files are trusted: an image may name any file that the caller can read. Everything else is refused with
// ErrBacking: names with a protocol (json:, nbd:, http:, file: and the others of QEMU), devices, pipes, and relative names, which Open has made
// absolute unless Path is empty.
func ResolveLocal(name, _ string) (Source, error) {
	switch {
	case strings.HasPrefix(name, "/") && !strings.Contains(name, "\x00"):
		return openRegular(os.OpenFile, name)
	case strings.Contains(name, ":"):
		return nil, fmt.Errorf("%w: a protocol and not a local file; only plain paths are opened", ErrBacking)
	}
	return nil, fmt.Errorf("%w: not an absolute path", ErrBacking)
}

func openRegular(open func(name string, flag int, perm os.FileMode) (*os.File, error), name string) (Source, error) {
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	f, err := open(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: not a regular file", ErrBacking)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &fileSource{f, st.Size(), true}, nil
}
