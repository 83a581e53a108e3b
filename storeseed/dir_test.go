package storeseed

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDirContract(t *testing.T) {
	needs(t)
	dir := scratch(t)
	outside := filepath.Join(dir, "outside")
	os.Mkdir(outside, 0o755)
	inside := filepath.Join(dir, "in")
	os.Mkdir(inside, 0o755)
	os.Symlink(outside, filepath.Join(inside, "out"))
	d, err := Dir(inside)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	reg := func(name string) *tar.Header {
		return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 7, Gid: 8, Size: 3, ModTime: testTime}
	}
	add := func(h *tar.Header, data string) error { return d.Add(h, strings.NewReader(data)) }

	if err := add(&tar.Header{Name: "/a", Typeflag: tar.TypeDir, Mode: 0o1777, ModTime: testTime}, ""); err != nil {
		t.Fatal(err)
	}
	if err := add(reg("a/f"), "123456"); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		err  error
		is   error
	}{
		{"parent missing", add(reg("x/y"), "123"), fs.ErrNotExist},
		{"through a symlink", add(reg("out/y"), "123"), unix.ENOTDIR},
		{"through a file", add(reg("a/f/y"), "123"), unix.ENOTDIR},
		{"dots", add(reg("a/../y"), "123"), fs.ErrInvalid},
		{"dot", add(reg("a/./y"), "123"), fs.ErrInvalid},
		{"exists", add(reg("a/f"), "123"), fs.ErrExist},
		{"over a symlink", add(reg("out"), "123"), fs.ErrExist},
		{"folder over a symlink", add(&tar.Header{Name: "out", Typeflag: tar.TypeDir}, ""), fs.ErrExist},
		{"folder over a file", add(&tar.Header{Name: "a/f", Typeflag: tar.TypeDir}, ""), fs.ErrExist},
		{"short", add(reg("a/short"), "12"), io.ErrUnexpectedEOF},
		{"link to nothing", add(&tar.Header{Name: "a/l", Typeflag: tar.TypeLink, Linkname: "a/nothing"}, ""), fs.ErrNotExist},
		{"link to a folder", add(&tar.Header{Name: "a/l", Typeflag: tar.TypeLink, Linkname: "a"}, ""), fs.ErrPermission},
		{"link through a symlink", add(&tar.Header{Name: "a/l", Typeflag: tar.TypeLink, Linkname: "out/x"}, ""), unix.ENOTDIR},
		{"replace a symlink", d.Replace(reg("out"), strings.NewReader("123")), fs.ErrExist},
		{"remove a full folder", d.Remove("a"), unix.ENOTEMPTY},
		{"remove nothing", d.Remove("b"), fs.ErrNotExist},
	} {
		if !errors.Is(tc.err, tc.is) {
			t.Errorf("%s: %v, want %v", tc.name, tc.err, tc.is)
		}
	}
	if ents, _ := os.ReadDir(outside); len(ents) > 0 {
		t.Error("something was written outside")
	}
	if _, err := d.Open("out"); err == nil {
		t.Error("a symlink is read as a file")
	}
	if _, err := d.ReadDir("out"); err == nil {
		t.Error("a symlink is read as a folder")
	}

	// A folder keeps its time whatever happens in it; replacing keeps other links.
	if err := add(&tar.Header{Name: "a/l", Typeflag: tar.TypeLink, Linkname: "a/f"}, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Replace(reg("a/f"), strings.NewReader("new")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"a/l": "123", "a/f": "new"} {
		if got, err := readAll(d, name); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if same, err := d.SameFile("a/l", "a/f"); err != nil || same {
		t.Errorf("SameFile: %v %v", same, err)
	}
	if err := d.Remove("a/l"); err != nil {
		t.Fatal(err)
	}
	h, err := d.Stat("a")
	if err != nil || !h.ModTime.Equal(testTime) || h.Mode != 0o1777 {
		t.Errorf("%+v %v", h, err)
	}
	// Attributes of a folder are replaced as a whole.
	again := &tar.Header{Name: "a", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 3, ModTime: testTime.Add(time.Hour), PAXRecords: map[string]string{xattrPrefix + "user.x": "1"}}
	if err := d.Add(again, nil); err != nil {
		t.Fatal(err)
	}
	again.PAXRecords = map[string]string{xattrPrefix + "user.y": "2"}
	if err := d.Add(again, nil); err != nil {
		t.Fatal(err)
	}
	if h, err = d.Stat("a"); err != nil || h.Mode != 0o700 || h.Uid != 3 || len(h.PAXRecords) != 1 || h.PAXRecords[xattrPrefix+"user.y"] != "2" || !h.ModTime.Equal(again.ModTime) {
		t.Errorf("%+v %v", h, err)
	}
	if h, err = d.Stat("a/f"); err != nil || h.Mode != 0o4755 || h.Uid != 7 || h.Gid != 8 || h.Size != 3 || !h.ModTime.Equal(testTime) {
		t.Errorf("%+v %v", h, err)
	}
	if names, err := d.ReadDir(""); err != nil || !slices.Equal(names, []string{"a", "out"}) {
		t.Errorf("%q %v", names, err)
	}
	if h, err = d.Stat("out"); err != nil || h.Typeflag != tar.TypeSymlink || h.Linkname != outside {
		t.Errorf("%+v %v", h, err)
	}
}
