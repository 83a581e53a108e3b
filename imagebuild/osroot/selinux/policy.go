package selinux

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// Reader is the part of a filesystem that the package reads: a regular file's content by its path, without
// following symbolic links. A missing file matches fs.ErrNotExist.
type Reader interface {
	Open(name string) (*io.SectionReader, error)
}

var (
	// ErrSyntax says that a file of the policy is not of the form that libselinux reads.
	ErrSyntax = errors.New("malformed SELinux policy file")
	// ErrCompiledOnly says that the policy has file contexts in compiled form alone.
	ErrCompiledOnly = errors.New("SELinux file contexts are there only in compiled form")
	// ErrTooLarge says that a policy is larger than any that we know.
	ErrTooLarge = errors.New("SELinux policy is too large")
)

const (
	maxFile  = 16 << 20 // Fedora's file_contexts has 0.6 MB
	maxSpecs = 50_000   // Fedora's has 6,000
	maxEntry = 65535    // bytes of a field, as libselinux
	maxSub   = 1022     // bytes of a line of a subs file: libselinux reads no longer ones whole
	maxSubs  = 1 << 16  // lines of a subs file
)

// none is the context that means no label.
const none = "<<none>>"

// Policy is the file contexts of one policy. It is safe for concurrent use.
type Policy struct {
	// Type is the policy's name, such as "targeted"; Mode is "enforcing", "permissive" or empty where the
	// configuration does not say.
	Type, Mode string

	specs    *specs
	subs     []sub // file_contexts.subs, the line that is tried first at the front
	dist     []sub // file_contexts.subs_dist, likewise
	warnings []string
}

// sub is a substitution: paths at or below from are looked up as below to.
type sub struct{ from, to string }

// Load reads the policy of a disk. resolve finds where a path of the running system, such as
// /etc/selinux/config, lies in r, with symbolic links followed; nil means that r has it at the same path. A
// disk without SELinux, or with it disabled, has no policy: Load returns nil and no error. Malformed files
// match ErrSyntax.
func Load(r Reader, resolve func(string) (string, error)) (*Policy, error) {
	l := loader{r, resolve}
	config, err := l.read("/etc/selinux/config")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := &Policy{}
	p.Type, p.Mode = parseConfig(config)
	if p.Mode == "disabled" {
		return nil, nil
	}
	if p.Type == "" || p.Type == "." || p.Type == ".." || len(p.Type) > 255 || strings.ContainsAny(p.Type, "/\x00") {
		return nil, fmt.Errorf("%w: /etc/selinux/config: SELINUXTYPE=%q", ErrSyntax, clip(p.Type))
	}
	base := p.dir() + "file_contexts"
	b := builder{}
	for _, suffix := range []string{"", ".homedirs", ".local"} {
		text, err := l.read(base + suffix)
		if errors.Is(err, fs.ErrNotExist) {
			if suffix != "" {
				continue
			}
			if _, err := l.read(base + ".bin"); err == nil {
				return nil, fmt.Errorf("%w: %s.bin", ErrCompiledOnly, base)
			}
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if err := b.parse("file_contexts"+suffix, text); err != nil {
			return nil, err
		}
	}
	p.specs = b.build()
	p.warnings = b.warnings
	if p.subs, err = l.subs(base + ".subs"); err != nil {
		return nil, err
	}
	if p.dist, err = l.subs(base + ".subs_dist"); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *Policy) dir() string { return "/etc/selinux/" + p.Type + "/contexts/files/" }

// SubsPath is the path, in the running system, of the file that EquivalentSubs edits.
func (p *Policy) SubsPath() string { return p.dir() + "file_contexts.subs" }

// Warnings are sentences about specifications that were set aside.
func (p *Policy) Warnings() []string { return slices.Clone(p.warnings) }

// Subs returns the substitutions of file_contexts.subs and then of file_contexts.subs_dist, as pairs of the
// aliased path and the one that it is looked up as. In each file the one that is tried first comes first.
func (p *Policy) Subs() [][2]string {
	var all [][2]string
	for _, list := range [][]sub{p.subs, p.dist} {
		for _, s := range list {
			all = append(all, [2]string{s.from, s.to})
		}
	}
	return all
}

// WithSubs returns a policy that has text as its file_contexts.subs. It shares everything else with p. The
// error matches ErrSyntax.
func (p *Policy) WithSubs(text []byte) (*Policy, error) {
	subs, err := parseSubs(text)
	if err != nil {
		return nil, fmt.Errorf("file_contexts.subs: %w", err)
	}
	q := *p
	q.subs = subs
	return &q, nil
}

// Label returns the context of the file of the given type (a tar type flag; 's' is a socket, and any other byte
// means that the type is not known) at the absolute path name of the running system. It returns false where the
// policy gives no label, as a nil policy does for all.
func (p *Policy) Label(name string, typeflag byte) (string, bool) {
	if p == nil {
		return "", false
	}
	name = p.substitute(clean(name))
	return p.specs.lookup(name, kindOf(typeflag))
}

// kindOf is the letter of file_contexts for a tar type flag, 0 for any type.
func kindOf(typeflag byte) byte {
	switch typeflag {
	case tar.TypeReg, 0, tar.TypeLink, tar.TypeGNUSparse, tar.TypeCont:
		return '-'
	case tar.TypeDir:
		return 'd'
	case tar.TypeSymlink:
		return 'l'
	case tar.TypeChar:
		return 'c'
	case tar.TypeBlock:
		return 'b'
	case tar.TypeFifo:
		return 'p'
	case 's':
		return 's'
	}
	return 0
}

// clean removes repeated and trailing slashes and sees to the leading one.
func clean(name string) string {
	if !strings.HasPrefix(name, "/") {
		name = "/" + name
	}
	if strings.Contains(name, "//") {
		b := make([]byte, 0, len(name))
		for i := range len(name) {
			if name[i] != '/' || i == 0 || name[i-1] != '/' {
				b = append(b, name[i])
			}
		}
		name = string(b)
	}
	if len(name) > 1 {
		name = strings.TrimSuffix(name, "/")
	}
	return name
}

func (p *Policy) substitute(name string) string {
	for _, list := range [][]sub{p.subs, p.dist} {
		for _, s := range list {
			rest, ok := strings.CutPrefix(name, s.from)
			if !ok || rest != "" && rest[0] != '/' {
				continue
			}
			if s.to == "/" && rest != "" {
				rest = rest[1:]
			}
			name = s.to + rest
			break
		}
	}
	return name
}

type loader struct {
	r       Reader
	resolve func(string) (string, error)
}

func (l loader) read(name string) ([]byte, error) {
	at := strings.TrimPrefix(name, "/")
	if l.resolve != nil {
		var err error
		if at, err = l.resolve(name); err != nil {
			return nil, fmt.Errorf("finding %s: %w", name, err)
		}
	}
	f, err := l.r.Open(at)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", name, err)
	}
	if f.Size() > maxFile {
		return nil, fmt.Errorf("%w: %s has %d bytes", ErrTooLarge, name, f.Size())
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return text, nil
}

// subs reads a subs file; a missing one is empty.
func (l loader) subs(name string) ([]sub, error) {
	text, err := l.read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseSubs(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

// parseConfig reads /etc/selinux/config as libselinux does: the first SELINUX= line with a known value, which
// starts at its line's start; the last SELINUXTYPE= line, which may be indented; "targeted" without one.
func parseConfig(text []byte) (policyType, mode string) {
	policyType = "targeted"
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if v, ok := strings.CutPrefix(line, "SELINUX="); ok && mode == "" {
			v = strings.ToLower(strings.TrimLeft(v, spaces))
			for _, known := range []string{"enforcing", "permissive", "disabled"} {
				if strings.HasPrefix(v, known) {
					mode = known
				}
			}
		}
		const tag = "SELINUXTYPE="
		if v := strings.TrimLeft(line, spaces); len(v) >= len(tag) && strings.EqualFold(v[:len(tag)], tag) {
			policyType = strings.TrimFunc(v[len(tag):], func(r rune) bool { return r <= ' ' || r == 0x7f })
		}
	}
	return policyType, mode
}

// spaces are the bytes of C's isspace in the POSIX locale.
const spaces = " \t\n\v\f\r"

// fields splits off the first n fields; what follows them is ignored, as libselinux does.
func fields(line []byte, n int) [][]byte {
	var all [][]byte
	for len(all) < n {
		line = bytes.TrimLeft(line, spaces)
		if len(line) == 0 {
			break
		}
		i := bytes.IndexAny(line, spaces)
		if i < 0 {
			i = len(line)
		}
		all = append(all, line[:i])
		line = line[i:]
	}
	return all
}

// parseSubs reads a subs file into the order in which its lines are tried.
func parseSubs(text []byte) ([]sub, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(text))
	}
	var list []sub
	n := 0
	for line := range bytes.Lines(text) {
		n++
		if len(line) > maxSub {
			return nil, fmt.Errorf("%w: line %d has %d bytes, at most %d are read", ErrSyntax, n, len(line), maxSub)
		}
		if bytes.IndexByte(line, 0) >= 0 {
			return nil, fmt.Errorf("%w: line %d holds a NUL byte", ErrSyntax, n)
		}
		f := fields(line, 2)
		if len(f) < 2 || f[0][0] == '#' {
			continue
		}
		if len(list) == maxSubs {
			return nil, fmt.Errorf("%w: more than %d substitutions", ErrTooLarge, maxSubs)
		}
		list = append(list, sub{string(f[0]), string(f[1])})
	}
	slices.Reverse(list)
	return list, nil
}

// clip shortens what a hostile disk would have an error repeat.
func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "..."
	}
	return s
}
