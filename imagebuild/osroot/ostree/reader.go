package ostree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
)

// Reader is the part of a filesystem that the package reads. Names are slash-separated and relative to the
// filesystem's root; "." is the root; no component is resolved through a symbolic link. A missing name matches
// fs.ErrNotExist.
type Reader interface {
	// Stat never follows a final symbolic link. Of the header the package uses Typeflag, Linkname and ModTime.
	Stat(name string) (*tar.Header, error)
	// ReadDir returns names without "." and "..".
	ReadDir(name string) ([]string, error)
	// Open gives a regular file's content.
	Open(name string) (*io.SectionReader, error)
}

const (
	maxLinks = 40      // as the kernel's MAXSYMLINKS
	maxPath  = 4096    // as PATH_MAX
	maxText  = 1 << 20 // bytes of a key file
	maxNames = 4096    // names of one folder that are looked at
)

var (
	// ErrLoop says that symbolic links lead back to themselves.
	ErrLoop = errors.New("too many levels of symbolic links")
	// ErrTooLarge says that a file, a path or a folder is larger than any that ostree makes.
	ErrTooLarge = errors.New("larger than ostree makes it")
)

// follow resolves every symbolic link of name below base, as a process would whose root is base. What does not
// exist stays as it was named.
func follow(r Reader, base, name string) (string, error) {
	w := walk{origin: name, todo: strings.Split(name, "/")}
	for {
		c, ok, err := w.next()
		if err != nil || !ok {
			return path.Join(base, w.path()), err
		}
		h, err := r.Stat(path.Join(base, w.path(), c))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s: %w", clip(name), err)
		}
		if err := w.take(c, h); err != nil {
			return "", err
		}
	}
}

// walk is a path that is being resolved: done is free of symbolic links, todo is not yet looked at.
type walk struct {
	origin string
	done   []string
	todo   []string
	links  int
	bytes  int
}

func (w *walk) path() string { return strings.Join(w.done, "/") }

// next returns the next component that names something, and false at the end.
func (w *walk) next() (string, bool, error) {
	for len(w.todo) > 0 {
		c := w.todo[0]
		w.todo = w.todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(w.done) > 0 {
				w.done = w.done[:len(w.done)-1]
			}
			continue
		}
		if w.bytes += len(c) + 1; w.bytes > maxPath*maxLinks || len(c) > 255 || strings.IndexByte(c, 0) >= 0 {
			return "", false, fmt.Errorf("%s: %w", clip(w.origin), ErrTooLarge)
		}
		return c, true, nil
	}
	return "", false, nil
}

// take enters component c, whose header is h, nil for what does not exist.
func (w *walk) take(c string, h *tar.Header) error {
	if h == nil || h.Typeflag != tar.TypeSymlink {
		w.done = append(w.done, c)
		return nil
	}
	if w.links++; w.links > maxLinks {
		return fmt.Errorf("%s: %w", clip(w.origin), ErrLoop)
	}
	if len(h.Linkname) > maxPath {
		return fmt.Errorf("%s: symbolic link %s: %w", clip(w.origin), c, ErrTooLarge)
	}
	if strings.HasPrefix(h.Linkname, "/") {
		w.done = nil
	}
	w.todo = append(strings.Split(h.Linkname, "/"), w.todo...)
	return nil
}

// readText reads a small regular file, following symbolic links below base.
func readText(r Reader, base, name string, limit int64) ([]byte, error) {
	real, err := follow(r, base, name)
	if err != nil {
		return nil, err
	}
	f, err := r.Open(real)
	if err != nil {
		return nil, err
	}
	if f.Size() > limit {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, ErrTooLarge, f.Size())
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// readDir lists a folder of bounded size. A missing folder is an empty one.
func readDir(r Reader, name string) ([]string, error) {
	names, err := r.ReadDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading folder %s: %w", name, err)
	}
	if len(names) > maxNames {
		return nil, fmt.Errorf("folder %s: %w: %d names", name, ErrTooLarge, len(names))
	}
	return names, nil
}

// is says whether name exists and has the type.
func is(r Reader, name string, typeflag byte) bool {
	h, err := r.Stat(name)
	return err == nil && h.Typeflag == typeflag
}

// keyFile reads the values of a GLib key file as "group.key". A later value replaces an earlier one.
func keyFile(text []byte) map[string]string {
	values := map[string]string{}
	group := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && line[len(line)-1] == ']':
			group = line[1 : len(line)-1]
		default:
			if key, value, ok := strings.Cut(line, "="); ok {
				values[group+"."+strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
		}
	}
	return values
}
