package osroot

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// tree is a filesystem in memory: a value that starts with "->" is a symbolic link, a name that ends in "/"
// a folder.
type tree map[string]string

func (t tree) Stat(name string) (*tar.Header, error) {
	name = strings.Trim(path.Clean("/"+name), "/")
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		if strings.HasPrefix(t[dir], "->") {
			return nil, fmt.Errorf("%s: %s is a symbolic link", name, dir)
		}
	}
	if v, ok := t[name]; ok {
		if target, ok := strings.CutPrefix(v, "->"); ok {
			return &tar.Header{Typeflag: tar.TypeSymlink, Linkname: target}, nil
		}
		return &tar.Header{Typeflag: tar.TypeReg, Size: int64(len(v))}, nil
	}
	for k := range t {
		if name == "" || strings.HasPrefix(k, name+"/") {
			return &tar.Header{Typeflag: tar.TypeDir}, nil
		}
	}
	return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

func (t tree) ReadDir(name string) ([]string, error) {
	var names []string
	prefix := strings.TrimLeft(path.Clean("/"+name)+"/", "/")
	for k := range t {
		if rest, ok := strings.CutPrefix(k, prefix); ok {
			first, _, _ := strings.Cut(rest, "/")
			names = append(names, first)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (t tree) Open(name string) (*io.SectionReader, error) {
	v, ok := t[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NewSectionReader(bytes.NewReader([]byte(v)), 0, int64(len(v))), nil
}

func (t tree) SameFile(a, b string) (bool, error) { return a == b, nil }

func bare(r tree) *System { return plainSystem(filesystem.NewTree(filesystem.Graft{Reader: r})) }

func TestResolve(t *testing.T) {
	r := tree{
		"etc/os-release": "->../usr/lib/os-release", "usr/lib/os-release": "ID=x\n", "var": "->/srv/state",
		"srv/state/images/x": "", "loop": "->loop2", "loop2": "->loop", "up": "->../../../usr/lib", "bin": "->usr/bin", "usr/bin/sh": "",
	}
	for _, c := range []struct{ name, want string }{
		{"/", "."}, {"", "."}, {"etc/os-release", "usr/lib/os-release"}, {"/var/images", "srv/state/images"},
		{"/var/new/deep", "srv/state/new/deep"}, {"up/os-release", "usr/lib/os-release"}, {"../../bin/sh", "usr/bin/sh"},
		{"/nowhere/at/all", "nowhere/at/all"},
	} {
		if got, err := Resolve(r, c.name); err != nil || got != c.want {
			t.Errorf("Resolve(%q) = %q, %v; want %q", c.name, got, err, c.want)
		}
	}
	if _, err := Resolve(r, "loop/x"); !errors.Is(err, ErrLoop) {
		t.Errorf("a loop gives %v", err)
	}
}

func TestRelease(t *testing.T) {
	r := tree{"usr/lib/os-release": "# c\nID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME='Debian GNU/Linux 12'\nBROKEN\n"}
	got, err := bare(r).release()
	if want := (Release{"debian", "12", "Debian GNU/Linux 12"}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := bare(tree{"etc/x": ""}).release(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file gives %v", err)
	}
	if _, err := bare(tree{"etc/os-release": strings.Repeat("x", maxConfig+1)}).release(); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a huge file gives %v", err)
	}
}

func TestMounts(t *testing.T) {
	r := tree{"etc/fstab": "# comment\nUUID=\"ab\" / ext4 defaults 0 1\n\nLABEL=var /var xfs nodev\n/dev/vdb /srv/my\\040disk ext4 defaults\nx none swap sw\nshort\n"}
	m, err := bare(r).fstab()
	if err != nil {
		t.Fatal(err)
	}
	if len(m) != 4 || m[0].Source != "UUID=ab" || m[2].Target != "/srv/my disk" {
		t.Errorf("got %+v", m)
	}
	for name, want := range map[string]string{"/var/images": "/var", "/var": "/var", "/variable": "", "/srv/my disk/x": "/srv/my disk", "/usr": ""} {
		over, ok := mountOver(m, name)
		if over.Target != want || ok != (want != "") {
			t.Errorf("mountOver(%s) = %q, want %q", name, over.Target, want)
		}
	}
	if m, err := bare(tree{}).fstab(); m != nil || err != nil {
		t.Errorf("no fstab gives %v, %v", m, err)
	}
}

func TestElfPlatform(t *testing.T) {
	for head, want := range map[string]string{
		"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x3e\x00": "linux/amd64",
		"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\xb7\x00": "linux/arm64",
		"\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00\x16": "linux/s390x",
		"#!/bin/sh\n1234567890": "",
	} {
		if got := elfPlatform([]byte(head)); got != want {
			t.Errorf("%q: got %q, want %q", head, got, want)
		}
	}
}

func TestMountUnit(t *testing.T) {
	for _, c := range []struct {
		r    tree
		want string
	}{
		{tree{"etc/os-release": ""}, ""},
		{tree{"etc/systemd/system/var.mount": "[Mount]"}, "/etc/systemd/system/var.mount"},
		{tree{"usr/lib/systemd/system/var-images.mount": "[Mount]"}, "/usr/lib/systemd/system/var-images.mount"},
		{tree{"etc/systemd/system/var.mount": "->/dev/null", "usr/lib/systemd/system/var.mount": "[Mount]"}, ""},
		{tree{"usr/lib/systemd/system/variable.mount": "[Mount]"}, ""},
	} {
		s := bare(c.r)
		r := &Root{Tree: s.tree, Systems: []*System{s}}
		if got, err := r.MountUnit(s, "/var/images"); got != c.want || err != nil {
			t.Errorf("%v: got %q, %v, want %q", c.r, got, err, c.want)
		}
	}
	if got := UnitName("/var/my-images/.x"); got != `var-my\x2dimages-.x.mount` {
		t.Errorf("got %s", got)
	}
}

func TestUnitMounts(t *testing.T) {
	const unit = "# [Mount]\nWhat=no\n[Unit]\nWhat=no\n[Mount]\nWhat = /dev/disk/by-uuid/ab\nWhere=/var/images\nType=ext4\nOptions=ro\n[Install]\nWhere=/no\n"
	store := Mount{"/dev/disk/by-uuid/ab", "/var/images", "ext4", "ro", "/etc/systemd/system/var-images.mount"}
	for name, c := range map[string]struct {
		r    tree
		want []Mount
	}{
		"nothing":     {tree{"etc/os-release": ""}, nil},
		"not started": {tree{"etc/systemd/system/var-images.mount": unit}, nil},
		"wanted":      {tree{"etc/systemd/system/var-images.mount": unit, "etc/systemd/system/local-fs.target.wants/var-images.mount": "->../var-images.mount"}, []Mount{store}},
		"required":    {tree{"etc/systemd/system/var-images.mount": unit, "usr/lib/systemd/system/x.service.requires/var-images.mount": ""}, []Mount{store}},
		"masked":      {tree{"etc/systemd/system/x.mount": "->/dev/null", "usr/lib/systemd/system/x.mount": unit, "usr/lib/systemd/system/a.wants/x.mount": ""}, nil},
		"gone":        {tree{"usr/lib/systemd/system/a.wants/x.mount": "->../x.mount"}, nil},
		"no place":    {tree{"usr/lib/systemd/system/x.mount": "[Mount]\nWhat=a\n", "usr/lib/systemd/system/a.wants/x.mount": ""}, nil},
	} {
		got, err := bare(c.r).unitMounts()
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}
