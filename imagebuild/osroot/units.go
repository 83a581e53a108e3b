package osroot

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
)

// unitDirs are where an image keeps systemd's units, what the administrator's folder says first (systemd.unit(5)).
var unitDirs = []string{"/etc/systemd/system", "/usr/lib/systemd/system"}

// unitMounts reads the mount units (systemd.mount(5)) that a .wants or .requires folder starts, in order of their
// names. Drop-ins and specifiers are not read.
func (s *System) unitMounts() ([]Mount, error) {
	started := map[string]bool{}
	for _, dir := range unitDirs {
		names, err := s.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if ext := path.Ext(name); ext != ".wants" && ext != ".requires" {
				continue
			}
			units, err := s.list(path.Join(dir, name))
			if err != nil {
				return nil, err
			}
			for _, u := range units {
				if path.Ext(u) == ".mount" {
					started[u] = true
				}
			}
		}
	}
	var mounts []Mount
	for u := range started {
		m, err := s.unit(u)
		if err != nil {
			return nil, err
		}
		if m.Source != "" && m.Target != "" {
			mounts = append(mounts, m)
		}
	}
	slices.SortFunc(mounts, func(a, b Mount) int { return strings.Compare(a.By, b.By) })
	return mounts, nil
}

// unit reads a mount unit; the result is empty where there is none or it is masked.
func (s *System) unit(name string) (Mount, error) {
	for _, dir := range unitDirs {
		m := Mount{By: path.Join(dir, name)}
		at, err := s.Locate(m.By)
		if err != nil {
			return Mount{}, fmt.Errorf("%s: %w", m.By, err)
		}
		h, err := s.tree.Stat(at.Path)
		if errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(s.Running(at.Path), "/dev/") {
			continue
		}
		if err != nil || h.Typeflag != tar.TypeReg {
			return Mount{}, nil // masked: a link to /dev/null
		}
		b, err := s.ReadFile(m.By)
		if err != nil {
			return Mount{}, err
		}
		section := ""
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			key, value, ok := strings.Cut(line, "=")
			if !ok || section != "[Mount]" {
				continue
			}
			value = strings.TrimSpace(value)
			switch strings.TrimSpace(key) {
			case "What":
				m.Source = value
			case "Where":
				m.Target = value
			case "Type":
				m.Type = value
			case "Options":
				m.Options = value
			}
		}
		return m, nil
	}
	return Mount{}, nil
}

// list reads a folder of the running system; one that is not there is empty.
func (s *System) list(dir string) ([]string, error) {
	at, err := s.Locate(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	names, err := s.tree.ReadDir(at.Path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", dir, err)
	}
	return names, nil
}

// UnitName is the name of the mount unit for a path, escaped as systemd-escape --path does.
func UnitName(name string) string {
	var u strings.Builder
	for i, c := range []byte(strings.Trim(name, "/")) {
		switch {
		case c == '/':
			u.WriteByte('-')
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == ':', c == '.' && i > 0:
			u.WriteByte(c)
		default:
			fmt.Fprintf(&u, `\x%02x`, c)
		}
	}
	return u.String() + ".mount"
}
