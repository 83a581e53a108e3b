package newfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFile(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(dir string) (*File, error)
	}{
		{"without a name", Create},
		{"on filesystems that know no files without a name", createNamed},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			// A run that was killed may have had the same process id.
			left := tempName(dir, 0)
			if err := os.WriteFile(left, []byte("left"), 0o600); err != nil {
				t.Fatal(err)
			}
			made := func(text string) *File {
				t.Helper()
				f, err := c.make(dir)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := f.WriteString(text); err != nil {
					t.Fatal(err)
				}
				return f
			}
			holds := func(name, text string) {
				t.Helper()
				if b, err := os.ReadFile(name); err != nil || string(b) != text {
					t.Errorf("%s holds %q, %v; want %q", filepath.Base(name), b, err, text)
				}
			}
			a := dir + "/a"
			f := made("one")
			if _, err := os.Stat(a); !errors.Is(err, fs.ErrNotExist) {
				t.Error("it has its name before it is placed")
			}
			if err := f.Place(a, false); err != nil {
				t.Fatal(err)
			}
			f.Abort()
			holds(a, "one")
			f = made("two")
			if err := f.Place(a, false); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a file that is there: %v", err)
			}
			holds(a, "one")
			if err := f.Place(a, true); err != nil {
				t.Error(err)
			}
			f.Abort()
			holds(a, "two")
			made("three").Abort()
			if err := SyncDir(dir); err != nil {
				t.Error(err)
			}
			holds(left, "left")
			if names, _ := os.ReadDir(dir); len(names) != 2 {
				t.Errorf("left: %v", names)
			}
		})
	}
	if _, err := Create(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a folder that is not there: %v", err)
	}
}

func TestAnonymous(t *testing.T) {
	dir := t.TempDir()
	f, err := Anonymous(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if names, _ := os.ReadDir(dir); len(names) != 0 {
		t.Errorf("it has a name: %v", names)
	}
}
