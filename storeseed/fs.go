package storeseed

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Reader is a filesystem that a store is read from.
//
// Names are slash-separated and relative to the filesystem's root; a leading "/" is ignored; "",
// "." and "/" are the root. No component is ever resolved through a symlink. A missing name is an
// error that matches fs.ErrNotExist.
type Reader interface {
	// Stat describes name without following a final symlink: Typeflag, Mode (permission bits with
	// setuid 04000, setgid 02000, sticky 01000), Uid, Gid, Size, ModTime, Linkname, Devmajor,
	// Devminor, and extended attributes as PAXRecords["SCHILY.xattr."+name].
	Stat(name string) (*tar.Header, error)
	// ReadDir returns a directory's names without "." and "..", sorted bytewise.
	ReadDir(name string) ([]string, error)
	// Open returns a regular file's content.
	Open(name string) (*io.SectionReader, error)
}

// FS is a filesystem that a store is written into.
//
// If it also has a method Remove(name string) error, which unlinks a non-directory or an empty
// directory, a layer that fails half way is taken away again and the store may still be committed.
type FS interface {
	Reader
	// Add creates h.Name with h's attributes; its parent must be a real directory. A TypeReg reads
	// exactly h.Size bytes from r; a TypeLink makes a hard link to h.Linkname, a name in the same
	// filesystem. A name that exists is fs.ErrExist, except a TypeDir over a directory, which
	// replaces its attributes and keeps its entries. Adding to a directory does not change its
	// modification time.
	Add(h *tar.Header, r io.Reader) error
	// Replace is Add of a TypeReg that replaces a regular file as rename(2) would.
	Replace(h *tar.Header, r io.Reader) error
}

type remover interface{ Remove(name string) error }

// sameFiler tells hard links apart from copies. A Reader without it has its hard links compared by
// attributes and content.
type sameFiler interface {
	SameFile(a, b string) (bool, error)
}

const xattrPrefix = "SCHILY.xattr."

// maxMetadata bounds what is read into memory from one metadata file of a store.
const maxMetadata = 256 << 20

func readAll(r Reader, name string) ([]byte, error) {
	sr, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	if sr.Size() > maxMetadata {
		return nil, fmt.Errorf("%s: %d bytes, more than the %d that a store's metadata may have", name, sr.Size(), maxMetadata)
	}
	data := make([]byte, sr.Size())
	if _, err := io.ReadFull(sr, data); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return data, nil
}

func exists(r Reader, name string) (bool, error) {
	_, err := r.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// removeAll takes name and everything below it away.
func removeAll(f FS, name string) error {
	rm, ok := f.(remover)
	if !ok {
		return errors.ErrUnsupported
	}
	h, err := f.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		names, err := f.ReadDir(name)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := removeAll(f, name+"/"+n); err != nil {
				return err
			}
		}
	}
	return rm.Remove(name)
}

// cleanName turns an entry's name into the path that it has below its layer's root ("" is the root
// itself). A leading "/" and "." components are dropped, as the engine does.
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", errors.New("its name has a NUL byte")
	}
	simple := true
	for i, start := 0, 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		switch c := name[start:i]; {
		case c == "..":
			return "", errors.New(`its name has a ".." component`)
		case c == "" || c == ".":
			simple = false
		case len(c) > 255:
			return "", fmt.Errorf("a component of its name has %d bytes, more than 255", len(c))
		}
		start = i + 1
	}
	if simple {
		return name, nil
	}
	name = strings.TrimLeft(path.Clean("/"+name), "/")
	return name, nil
}

func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}
