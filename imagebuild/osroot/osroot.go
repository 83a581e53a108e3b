// Package osroot finds the operating system on a disk: which partition is its root, what it is, and where a
// path that a running node would name lies in that partition's filesystem.
package osroot

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// Release is what os-release says (os-release(5)).
type Release struct {
	ID         string `json:"id,omitempty"`
	VersionID  string `json:"versionId,omitempty"`
	PrettyName string `json:"prettyName,omitempty"`
}

// maxConfig bounds the small text files that are read whole.
const maxConfig = 4 << 20

// ErrTooLarge says that a file that should be a small text is not.
var ErrTooLarge = errors.New("file is too large")

// ReadFile reads a small file of the running system.
func (s *System) ReadFile(name string) ([]byte, error) {
	at, err := s.Locate(name)
	if err != nil {
		return nil, err
	}
	f, err := s.tree.Open(at.Path)
	if err != nil {
		return nil, err
	}
	if f.Size() > maxConfig {
		return nil, fmt.Errorf("%s: %w: %d bytes", name, ErrTooLarge, f.Size())
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// ErrLoop says that symbolic links lead back to themselves.
var ErrLoop = errors.New("too many levels of symbolic links")

// Resolve follows every symbolic link of name inside the filesystem, as the running system would after
// chroot: an absolute target starts again at the root, and ".." stops there. What does not exist yet stays as
// it was named, so that the result can be created. The result has no leading slash; "." is the root.
func Resolve(r filesystem.Reader, name string) (string, error) {
	todo := strings.Split(name, "/")
	var done []string
	links := 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			if len(done) > 0 {
				done = done[:len(done)-1]
			}
			continue
		}
		at := path.Join(path.Join(done...), c)
		h, err := r.Stat(at)
		if errors.Is(err, fs.ErrNotExist) {
			done = append(done, c)
			continue
		}
		if err != nil {
			return "", err
		}
		if h.Typeflag != tar.TypeSymlink {
			done = append(done, c)
			continue
		}
		if links++; links > 40 {
			return "", fmt.Errorf("%s: %w", name, ErrLoop)
		}
		if strings.HasPrefix(h.Linkname, "/") {
			done = nil
		}
		todo = append(strings.Split(h.Linkname, "/"), todo...)
	}
	if len(done) == 0 {
		return ".", nil
	}
	return strings.Join(done, "/"), nil
}

// release reads /etc/os-release, or /usr/lib/os-release where the first is missing. A system without either
// matches fs.ErrNotExist.
func (s *System) release() (Release, error) {
	b, err := s.ReadFile("/etc/os-release")
	if errors.Is(err, fs.ErrNotExist) {
		b, err = s.ReadFile("/usr/lib/os-release")
	}
	if err != nil {
		return Release{}, err
	}
	var rel Release
	for line := range bytes.Lines(b) {
		key, value, ok := strings.Cut(strings.TrimSpace(string(line)), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			rel.ID = value
		case "VERSION_ID":
			rel.VersionID = value
		case "PRETTY_NAME":
			rel.PrettyName = value
		}
	}
	return rel, nil
}

// Mount is one line of fstab(5), or a mount unit.
type Mount struct {
	Source, Target, Type, Options string
	// By is the file that says so.
	By string
}

// fstab reads /etc/fstab. A missing file is no error.
func (s *System) fstab() ([]Mount, error) {
	b, err := s.ReadFile("/etc/fstab")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var mounts []Mount
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxConfig)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 3 || strings.HasPrefix(f[0], "#") {
			continue
		}
		m := Mount{Source: unescape(strings.Trim(f[0], `"`)), Target: unescape(f[1]), Type: f[2], By: "/etc/fstab"}
		if tag, value, ok := strings.Cut(m.Source, "="); ok {
			m.Source = tag + "=" + strings.Trim(value, `"`)
		}
		if len(f) > 3 {
			m.Options = f[3]
		}
		mounts = append(mounts, m)
	}
	return mounts, sc.Err()
}

// unescape undoes the octal escapes that fstab uses for blanks.
func unescape(s string) string {
	for _, e := range []struct{ from, to string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		s = strings.ReplaceAll(s, e.from, e.to)
	}
	return s
}

// mountOver returns the mount, other than the root's own, that would cover a path at run time.
func mountOver(mounts []Mount, name string) (Mount, bool) {
	name = path.Clean("/" + name)
	var over Mount
	for _, m := range mounts {
		target := path.Clean(m.Target)
		if !strings.HasPrefix(m.Target, "/") || target == "/" || m.Type == "swap" {
			continue
		}
		if (name == target || strings.HasPrefix(name, target+"/")) && len(target) > len(over.Target) {
			over = m
			over.Target = target
		}
	}
	return over, over.Target != ""
}
