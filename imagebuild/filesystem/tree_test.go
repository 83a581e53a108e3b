package filesystem

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// names is a filesystem that knows names alone.
type names struct {
	label string
	have  map[string]bool
	log   *[]string
}

func (n names) Stat(name string) (*tar.Header, error) {
	if name != "" && !n.have[name] {
		return nil, fs.ErrNotExist
	}
	return &tar.Header{Name: name, Uname: n.label}, nil
}
func (n names) ReadDir(name string) ([]string, error) { return []string{n.label, name}, nil }
func (n names) Open(name string) (*io.SectionReader, error) {
	return nil, errors.New(n.label + ":" + name)
}
func (n names) SameFile(a, b string) (bool, error) { return a == b, nil }
func (n names) Add(h *tar.Header, _ io.Reader) error {
	*n.log = append(*n.log, "add "+n.label+":"+h.Name+" "+h.Linkname)
	n.have[h.Name] = true
	return nil
}
func (n names) Replace(h *tar.Header, _ io.Reader) error {
	*n.log = append(*n.log, "replace "+n.label+":"+h.Name)
	return nil
}
func (n names) Remove(name string) error {
	*n.log = append(*n.log, "remove "+n.label+":"+name)
	return nil
}
func (n names) Commit(context.Context) error {
	*n.log = append(*n.log, "commit "+n.label)
	return nil
}

func TestTree(t *testing.T) {
	var log []string
	graft := func(at, label string) Graft {
		return Graft{At: at, Reader: names{label, map[string]bool{"x": true}, &log}, OpenWriter: func() (Writer, error) {
			log = append(log, "open "+label)
			return names{label, map[string]bool{"x": true}, &log}, nil
		}}
	}
	readOnly := graft("boot", "boot")
	readOnly.OpenWriter = nil
	tree := NewTree(graft("", "root"), graft("var", "var"), graft("var/lib/x", "deep"), readOnly)
	for name, want := range map[string]string{
		"": "", "/": "", "x": "", "variable": "", "var": "var", "/var": "var", "var/x": "var", "var/lib": "var", "var/lib/x": "var/lib/x",
		"/var/lib/x/y": "var/lib/x", "var/lib/xy": "var", "boot/x": "boot",
	} {
		if got := tree.Volume(name); got != want {
			t.Errorf("%q lies in %q, want %q", name, got, want)
		}
	}
	if h, err := tree.Stat("/var/lib/x/x"); err != nil || h.Name != "var/lib/x/x" || h.Uname != "deep" {
		t.Errorf("Stat: %+v, %v", h, err)
	}
	if _, err := tree.Stat("var/lib/x/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat of a missing name: %v", err)
	}
	if got, err := tree.ReadDir("var"); err != nil || !slices.Equal(got, []string{"var", ""}) {
		t.Errorf("ReadDir of a mount point: %q, %v", got, err)
	}
	for _, c := range []struct {
		a, b string
		want bool
	}{{"var/x", "/var/x", true}, {"x", "var/x", false}, {"var/x", "var/y", false}} {
		if got, err := tree.SameFile(c.a, c.b); err != nil || got != c.want {
			t.Errorf("SameFile(%s, %s) = %v, %v", c.a, c.b, got, err)
		}
	}

	h := &tar.Header{Name: "var/new", Typeflag: tar.TypeReg}
	link := func(name, to string) error {
		return tree.Add(&tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeLink}, nil)
	}
	if err := errors.Join(tree.Add(h, nil), link("var/hard", "/var/new"), tree.Remove("var/lib/x/x"), tree.Replace(&tar.Header{Name: "var/new"}, nil)); err != nil {
		t.Fatal(err)
	}
	if h.Name != "var/new" {
		t.Errorf("the caller's header became %q", h.Name)
	}
	if _, err := tree.Stat("var/new"); err != nil {
		t.Errorf("what was added is not seen: %v", err)
	}
	if err := link("var/hard2", "x"); !errors.Is(err, syscall.EXDEV) {
		t.Errorf("a hard link across filesystems: %v", err)
	}
	if err := tree.Add(&tar.Header{Name: "boot/y"}, nil); !errors.Is(err, syscall.EROFS) {
		t.Errorf("a change where none can be: %v", err)
	}
	if err := tree.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := "open var|add var:new |add var:hard new|open deep|remove deep:x|replace var:new|commit deep|commit var"
	if got := strings.Join(log, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
