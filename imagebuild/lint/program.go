package lint

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

const (
	// maxProgram bounds how much of a program is read; kubelet has 60 to 120 MB.
	maxProgram = 1 << 30
	// maxModInfo bounds the build information of a Go program; kubelet's has 20 KB.
	maxModInfo = 4 << 20
	// maxVersion is the longest version string that is taken for one.
	maxVersion = 64
	// maxStrings bounds how many different version strings of a program are counted.
	maxStrings = 4096
)

// program is what a Go program says of itself without being run.
type program struct {
	path string
	// main is the version of its module, empty or (devel) where it was not built by version; deps are its modules'.
	main string
	deps map[string]string
	// gitVersion is the version that Kubernetes' linker flags set; empty where none or more than one is there.
	gitVersion string
	// pause is the name of the pause image in it, as CRI-O has one; empty where none or more than one is there.
	pause string
}

// dep gives the version of the first of the modules that is linked in.
func (p program) dep(modules ...string) string {
	for _, m := range modules {
		if v := p.deps[m]; v != "" {
			return v
		}
	}
	return ""
}

// program reads the first of the named programs that is there.
func (v *view) program(names ...string) (program, bool) {
	for _, n := range names {
		if p, ok := v.programs[n]; ok {
			if p.path != "" {
				return p, true
			}
			continue
		}
		if !v.is(n, tar.TypeReg) {
			v.programs[n] = program{}
			continue
		}
		p := program{path: n}
		r, err := v.open(n)
		if err == nil {
			p, err = readProgram(r)
			p.path = n
		}
		if err != nil {
			v.unseen("the version of "+n, err)
		}
		v.programs[n] = p
		return p, true
	}
	return program{}, false
}

// The marks of a Go program's build information (Go's debug/buildinfo and cmd/link, "buildinfo").
const (
	infoMagic = "\xff Go buildinf:"
	infoAlign = 16
	infoHead  = 32
	// infoInline is the flag that two strings follow, each after its length as a varint; Go has set it since 1.18.
	infoInline = 2
	// infoFrame is how many bytes stand before and after the module information.
	infoFrame = 16
)

var (
	// linkedVersion is a Kubernetes version as the linker lays it down: a string of its own between two NUL bytes.
	linkedVersion = regexp.MustCompile(`^v1\.[0-9]{1,3}\.[0-9]{1,3}([-+][0-9A-Za-z.+_-]+)?$`)
	// flagVersion is the same among the linker's flags, where the build information has them.
	flagVersion = regexp.MustCompile(`component-base/version\.gitVersion=(v1\.[0-9]{1,3}\.[0-9]{1,3}(?:[-+][0-9A-Za-z.+_-]+)?)`)
	pauseName   = regexp.MustCompile(`(?:registry\.k8s\.io|k8s\.gcr\.io)/pause:3\.[0-9]{1,2}(?:\.[0-9])?`)
)

// readProgram reads through a Go program once. An error says that it is none, or cannot be read.
func readProgram(r *io.SectionReader) (program, error) {
	p := program{deps: map[string]string{}}
	head := make([]byte, 4)
	if _, err := r.ReadAt(head, 0); err != nil || string(head) != "\x7fELF" {
		return p, errors.New("it is not an ELF program")
	}
	size := r.Size()
	if size > maxProgram {
		return p, fmt.Errorf("it has %d bytes, more than %d", size, maxProgram)
	}
	const step, overlap = 1 << 20, 1024
	buf := make([]byte, overlap+step)
	versions, pauses := map[string]int{}, map[string]int{}
	found := false
	flags := ""
	kept := 0 // bytes at buf's start that were there before
	for off := int64(0); off < size; {
		n, err := r.ReadAt(buf[kept:kept+int(min(step, size-off))], off)
		if n == 0 {
			return p, fmt.Errorf("reading at byte %d: %w", off, err)
		}
		b, base := buf[:kept+n], off-int64(kept)
		// What begins in the last part is left for the next turn, which sees it whole.
		end := len(b) - overlap
		if off+int64(n) >= size {
			end = len(b)
		}
		if !found {
			for at := 0; ; at++ {
				i := bytes.Index(b[at:], []byte(infoMagic))
				if i < 0 || at+i >= end {
					break
				}
				at += i
				if pos := base + int64(at); pos%infoAlign == 0 {
					if info, ok := readBuildInfo(r, pos); ok {
						found = true
						flags = p.take(info)
						break
					}
				}
			}
		}
		countVersions(b, end, versions)
		countPauses(b, end, pauses)
		off += int64(n)
		kept = min(overlap, len(b))
		copy(buf, b[len(b)-kept:])
	}
	if m := flagVersion.FindStringSubmatch(flags); m != nil {
		p.gitVersion = m[1]
	} else {
		p.gitVersion = most(versions)
	}
	if len(pauses) == 1 {
		p.pause = most(pauses)
	}
	return p, nil
}

// countVersions counts the strings of Kubernetes' form that begin before end.
func countVersions(b []byte, end int, counts map[string]int) {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("\x00v1."))
		if i < 0 || at+i >= end {
			return
		}
		at += i + 1
		s := b[at:min(at+maxVersion+1, len(b))]
		n := bytes.IndexByte(s, 0)
		if n > 0 && linkedVersion.Match(s[:n]) && (len(counts) < maxStrings || counts[string(s[:n])] > 0) {
			counts[string(s[:n])]++
		}
	}
}

// countPauses notes the pause images' names that begin before end.
func countPauses(b []byte, end int, counts map[string]int) {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("/pause:3."))
		if i < 0 || at+i >= end {
			return
		}
		from := max(0, at+i-32)
		if m := pauseName.Find(b[from:min(at+i+32, len(b))]); m != nil && len(counts) < maxStrings {
			counts[knownPause(string(m))]++
		}
		at += i + 1
	}
}

// pauseTags are the tags that engines have had for their default.
var pauseTags = []string{"3.10.2", "3.10.1", "3.10", "3.9", "3.8", "3.7", "3.6", "3.5", "3.4.1", "3.2", "3.1"}

// knownPause cuts off what follows the name: Go's strings lie side by side, with nothing between them.
func knownPause(name string) string {
	repo, tag, _ := strings.Cut(name, ":")
	for _, t := range pauseTags {
		if strings.HasPrefix(tag, t) {
			return repo + ":" + t
		}
	}
	return name
}

// most gives the key that was counted more often than every other; empty if there is none.
func most(counts map[string]int) string {
	best, n, tie := "", 0, false
	for s, c := range counts {
		switch {
		case c > n:
			best, n, tie = s, c, false
		case c == n:
			tie = true
		}
	}
	if tie {
		return ""
	}
	return best
}

// readBuildInfo reads the module information at a mark that may be one; false says that it is none.
func readBuildInfo(r io.ReaderAt, pos int64) (string, bool) {
	head := make([]byte, infoHead)
	if _, err := r.ReadAt(head, pos); err != nil || head[15]&infoInline == 0 {
		return "", false
	}
	goVersion, pos, ok := readString(r, pos+infoHead, maxVersion*4)
	if !ok || !strings.HasPrefix(goVersion, "go") && !strings.HasPrefix(goVersion, "devel") {
		return "", false
	}
	info, _, ok := readString(r, pos, maxModInfo)
	if !ok || len(info) < 2*infoFrame {
		return "", ok
	}
	return info[infoFrame : len(info)-infoFrame], true
}

// readString reads a string after its length.
func readString(r io.ReaderAt, pos int64, most uint64) (string, int64, bool) {
	head := make([]byte, binary.MaxVarintLen64)
	n, _ := r.ReadAt(head, pos)
	size, used := binary.Uvarint(head[:n])
	if used <= 0 || size > most {
		return "", 0, false
	}
	b := make([]byte, size)
	if n, _ := r.ReadAt(b, pos+int64(used)); n != len(b) {
		return "", 0, false
	}
	return string(b), pos + int64(used) + int64(size), true
}

// take keeps what of the module information matters (Go's runtime/debug.BuildInfo.String is its form) and returns
// the linker's flags.
func (p *program) take(info string) (flags string) {
	last := ""
	for line := range strings.Lines(info) {
		f := strings.Split(strings.TrimRight(line, "\n"), "\t")
		if len(f) < 2 {
			continue
		}
		switch {
		case f[0] == "mod" && len(f) > 2:
			p.main = f[2]
		case f[0] == "dep" && len(f) > 2:
			last = f[1]
			p.deps[last] = f[2]
		case f[0] == "=>" && len(f) > 2 && last != "":
			// A folder in the module's place has no version.
			if _, ok := parseVersion(f[2]); ok {
				p.deps[last] = f[2]
			}
		case f[0] == "build":
			if v, ok := strings.CutPrefix(f[1], "-ldflags="); ok {
				flags = v
			}
		}
	}
	return flags
}

// version is a version of three numbers; what follows them is kept in text alone.
type version struct {
	major, minor, patch int
	text                string
}

var versionForm = regexp.MustCompile(`^v?(([0-9]{1,6})\.([0-9]{1,6})(?:\.([0-9]{1,6}))?[0-9A-Za-z.+~_-]*)$`)

// parseVersion reads v1.2.3, with or without the v and with anything of a version's letters behind; 1.2 is 1.2.0.
func parseVersion(s string) (version, bool) {
	m := versionForm.FindStringSubmatch(s)
	if m == nil {
		return version{}, false
	}
	v := version{text: m[1]}
	for i, to := range []*int{&v.major, &v.minor, &v.patch} {
		for _, c := range m[2+i] {
			*to = *to*10 + int(c-'0')
		}
	}
	return v, true
}

// before says whether v is an earlier version than w, by the three numbers.
func (v version) before(w version) bool {
	if v.major != w.major {
		return v.major < w.major
	}
	if v.minor != w.minor {
		return v.minor < w.minor
	}
	return v.patch < w.patch
}
