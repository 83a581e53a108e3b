package filesystem

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"syscall"
)

// Graft is a filesystem that stands at a folder of another one, as a mount does.
type Graft struct {
	// At is the folder, without a leading slash; "" is the root itself.
	At     string
	Reader Reader
	// OpenWriter opens the same filesystem for changes; nil where that cannot be. It is called at most once.
	OpenWriter func() (Writer, error)
}

// Tree is several filesystems seen as one: a root and what is grafted into it. It is a Reader, and a Writer
// that opens each filesystem for changes when the first change reaches it. Hard links do not cross from one
// into another. Reading a Tree that was never changed is safe for concurrent use.
type Tree struct {
	// grafts are sorted so that the deepest comes first.
	grafts  []Graft
	writers map[string]Writer
}

// NewTree makes a tree of grafts, one of which is at "".
func NewTree(grafts ...Graft) *Tree {
	t := &Tree{grafts: slices.Clone(grafts), writers: map[string]Writer{}}
	slices.SortStableFunc(t.grafts, func(a, b Graft) int { return len(b.At) - len(a.At) })
	return t
}

// Graft adds a filesystem. Its folder must exist by then, in what it will hide.
func (t *Tree) Graft(g Graft) {
	i := slices.IndexFunc(t.grafts, func(have Graft) bool { return len(have.At) <= len(g.At) })
	t.grafts = slices.Insert(t.grafts, max(i, 0), g)
}

// find says which filesystem a name lies in, and what it is called there.
func (t *Tree) find(name string) (Graft, string) {
	name = strings.TrimLeft(name, "/")
	for _, g := range t.grafts {
		if g.At == "" || name == g.At {
			return g, strings.TrimPrefix(name, g.At)
		}
		if rest, ok := strings.CutPrefix(name, g.At+"/"); ok {
			return g, rest
		}
	}
	return Graft{Reader: none{}}, name
}

// none stands where there is no root.
type none struct{}

func (none) Stat(string) (*tar.Header, error)       { return nil, syscall.ENOENT }
func (none) ReadDir(string) ([]string, error)       { return nil, syscall.ENOENT }
func (none) Open(string) (*io.SectionReader, error) { return nil, syscall.ENOENT }
func (none) SameFile(string, string) (bool, error)  { return false, syscall.ENOENT }

func (t *Tree) reader(name string) (Reader, string) {
	g, rest := t.find(name)
	if w := t.writers[g.At]; w != nil {
		return w, rest
	}
	return g.Reader, rest
}

func (t *Tree) writer(name string) (Writer, string, error) {
	g, rest := t.find(name)
	if w := t.writers[g.At]; w != nil {
		return w, rest, nil
	}
	if g.OpenWriter == nil {
		return nil, "", fmt.Errorf("/%s: %w", name, syscall.EROFS)
	}
	w, err := g.OpenWriter()
	if err != nil {
		return nil, "", err
	}
	t.writers[g.At] = w
	return w, rest, nil
}

// OpenWriter opens the filesystem at a folder for changes now, and not when the first change reaches it.
func (t *Tree) OpenWriter(at string) error {
	_, _, err := t.writer(at)
	return err
}

// Stat implements Reader.
func (t *Tree) Stat(name string) (*tar.Header, error) {
	r, rest := t.reader(name)
	h, err := r.Stat(rest)
	if h != nil {
		h.Name = strings.TrimLeft(name, "/")
	}
	return h, err
}

// ReadDir implements Reader.
func (t *Tree) ReadDir(name string) ([]string, error) {
	r, rest := t.reader(name)
	return r.ReadDir(rest)
}

// Open implements Reader.
func (t *Tree) Open(name string) (*io.SectionReader, error) {
	r, rest := t.reader(name)
	return r.Open(rest)
}

// SameFile says whether two names are hard links to one file.
func (t *Tree) SameFile(a, b string) (bool, error) {
	if t.Volume(a) != t.Volume(b) {
		return false, nil
	}
	r, x := t.reader(a)
	_, y := t.reader(b)
	return r.SameFile(x, y)
}

// within is h as the filesystem knows it that h.Name lies in.
func (t *Tree) within(h *tar.Header) (Writer, *tar.Header, error) {
	w, rest, err := t.writer(h.Name)
	if err != nil {
		return nil, nil, err
	}
	in := *h
	in.Name = rest
	if h.Typeflag == tar.TypeLink {
		a, _ := t.find(h.Name)
		b, target := t.find(h.Linkname)
		if a.At != b.At {
			return nil, nil, fmt.Errorf("linking /%s to /%s: %w", h.Name, h.Linkname, syscall.EXDEV)
		}
		in.Linkname = target
	}
	return w, &in, nil
}

// Add implements Writer.
func (t *Tree) Add(h *tar.Header, r io.Reader) error {
	w, in, err := t.within(h)
	if err != nil {
		return err
	}
	return w.Add(in, r)
}

// Replace implements Writer.
func (t *Tree) Replace(h *tar.Header, r io.Reader) error {
	w, in, err := t.within(h)
	if err != nil {
		return err
	}
	return w.Replace(in, r)
}

// Remove implements Writer.
func (t *Tree) Remove(name string) error {
	w, rest, err := t.writer(name)
	if err != nil {
		return err
	}
	return w.Remove(rest)
}

// Commit commits every filesystem that was changed, the deepest first.
func (t *Tree) Commit(ctx context.Context) error {
	for _, g := range t.grafts {
		if w := t.writers[g.At]; w != nil {
			if err := w.Commit(ctx); err != nil {
				return fmt.Errorf("filesystem at %s: %w", path.Join("/", g.At), err)
			}
		}
	}
	return nil
}

// Volume is the folder at which the filesystem stands that name lies in; "" is the root.
func (t *Tree) Volume(name string) string {
	g, _ := t.find(name)
	return g.At
}
