package bakefile

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"
)

// File is a bake file.
type File struct {
	// Name is as it was given; "-" is standard input.
	Name string
	// Folder is what relative paths count from; empty is the working folder. They are resolved in every setting but
	// those of images: there a reference stays as it is written, for that is what it is called in a lock and a report.
	Folder string
	// Listed says that the file has a list of disks, which then have names.
	Listed bool
	Disks  []Disk
}

// Disk is what one disk is made with: its own settings, and those from the top that they leave.
type Disk struct {
	Name string
	// Key is its place in words, as in "disks[1]"; empty for a file that is one disk.
	Key string
	// Line and Column are where it begins, counted from 1.
	Line, Column int
	Settings     []Setting
}

// Setting is a value of a flag.
type Setting struct {
	Flag, Value string
	// Key is its place in words, as in "disks[1].customize.copy[0]".
	Key          string
	Line, Column int
}

// Finding is something that is wrong with a file.
type Finding struct {
	File string `json:"file"`
	// Line and Column count from 1.
	Line   int `json:"line"`
	Column int `json:"column"`
	// Key is the place in words; empty where there is none.
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
}

// String is the form that editors know: FILE:LINE:COLUMN: and what is wrong.
func (f Finding) String() string {
	s := fmt.Sprintf("%s:%d:%d: ", Shown(f.File), f.Line, f.Column)
	if f.Key != "" {
		s += f.Key + ": "
	}
	return s + f.Message
}

// Error is what is wrong with a file, in the order of the lines.
type Error struct {
	Findings []Finding
	// More counts those that are not listed.
	More int
}

// Error is a line a finding.
func (e *Error) Error() string {
	var lines []string
	for _, f := range e.Findings {
		lines = append(lines, f.String())
	}
	if e.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", e.More))
	}
	return strings.Join(lines, "\n")
}

// The bounds of a file. Each disk has a copy of what stands at the top, hence that of all settings.
const (
	maxFile     = 1 << 20
	maxDisks    = 256
	maxSettings = 100_000
	maxFindings = 100
	maxKept     = 1000 // findings of which maxFindings are the first
	maxMessage  = 500  // bytes
)

// NewError sorts findings, and keeps as many as a person reads. It is nil where there are none.
func NewError(found []Finding) *Error {
	if len(found) == 0 {
		return nil
	}
	slices.SortFunc(found, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Message, b.Message))
	})
	found = slices.Compact(found)
	e := &Error{Findings: found}
	if len(found) > maxFindings {
		e.Findings, e.More = found[:maxFindings], len(found)-maxFindings
	}
	for i, f := range e.Findings {
		e.Findings[i].Message = clip(f.Message, maxMessage)
	}
	return e
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	for most > 0 && !utf8.RuneStart(s[most]) {
		most--
	}
	return s[:most] + "…"
}

// Shown is a file's name for people.
func Shown(name string) string {
	if name == "-" {
		return "standard input"
	}
	return name
}

// Read reads and parses a file, or stdin where the name is "-". An error is an *Error where the file was read; then there
// is what could be made of it, too.
func Read(name string, stdin io.Reader) (*File, error) {
	in := stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", Shown(name), err)
	}
	return Parse(name, data)
}

// Parse parses a file; the name says where it is, for relative paths and for messages. An error is an *Error; there is
// what could be made of the file in any case.
func Parse(name string, data []byte) (*File, error) {
	r := &reader{file: &File{Name: name}}
	if dir := filepath.Dir(name); name != "-" && dir != "." {
		r.file.Folder = dir
	}
	r.read(data)
	if e := NewError(r.found); e != nil {
		e.More += r.more
		return r.file, e
	}
	return r.file, nil
}

// Find gives the disks of these names in the order of the file, all of them for no names.
func (f *File) Find(names []string) ([]Disk, error) {
	if len(names) == 0 {
		return f.Disks, nil
	}
	if !f.Listed {
		return nil, fmt.Errorf("%s is one disk and has no names to choose from", Shown(f.Name))
	}
	var all []string
	for _, d := range f.Disks {
		all = append(all, d.Name)
	}
	for _, n := range names {
		if !slices.Contains(all, n) {
			return nil, fmt.Errorf("%s has no disk %q; it has %s", Shown(f.Name), n, clip(strings.Join(all, ", "), maxMessage))
		}
	}
	var found []Disk
	for _, d := range f.Disks {
		if slices.Contains(names, d.Name) {
			found = append(found, d)
		}
	}
	return found, nil
}

// Locate makes a finding of an error about a disk: at the setting that it speaks of where there is one, else where the
// disk begins. Flags that it names become keys, but for those that were given on the command line.
func (f *File) Locate(d Disk, err error, given func(flag string) bool) Finding {
	message, flags := Translate(err.Error(), given)
	best, at := [2]int{}, -1
	for n, s := range d.Settings {
		i := slices.Index(flags, s.Flag)
		if i < 0 {
			continue
		}
		// The flag that is named first, and of a list the value that is named.
		score := [2]int{len(flags) - i}
		if strings.Contains(message, s.Value) {
			score[1] = 1 + len(s.Value)
		}
		if slices.Compare(score[:], best[:]) > 0 {
			best, at = score, n
		}
	}
	if at >= 0 {
		return f.At(d.Settings[at], err, given)
	}
	return Finding{f.Name, d.Line, d.Column, d.Key, message}
}

// At is Locate for an error about one setting.
func (f *File) At(s Setting, err error, given func(flag string) bool) Finding {
	message, _ := Translate(err.Error(), given)
	// The finding has the key already.
	if rest, ok := strings.CutPrefix(message, keyOf()[s.Flag]); ok {
		if cut, ok := strings.CutPrefix(rest, ": "); ok {
			message = cut
		} else if strings.HasPrefix(rest, " "+s.Value+": ") {
			message = rest[1:]
		}
	}
	return Finding{f.Name, s.Line, s.Column, s.Key, message}
}

// local are the transports whose references begin with a path.
var local = []string{"oci", "oci-archive", "docker-archive", "dir"}

// Under gives a reference of an image with its path, if it has one, counted from a folder; empty is the working folder.
func Under(folder, ref string) string {
	kind, rest, ok := strings.Cut(ref, ":")
	if folder == "" || !ok || !slices.Contains(local, kind) {
		return ref
	}
	// In dir: a colon is the path's own.
	path, more := rest, ""
	if i := strings.IndexByte(rest, ':'); i >= 0 && kind != "dir" {
		path, more = rest[:i], rest[i:]
	}
	return kind + ":" + underPath(folder, path) + more
}

// IsLocal says whether a reference of an image begins with a path of this machine.
func IsLocal(ref string) bool {
	kind, _, ok := strings.Cut(ref, ":")
	return ok && slices.Contains(local, kind)
}

func underPath(folder, path string) string {
	if folder == "" || path == "" || filepath.IsAbs(path) {
		return path
	}
	joined := filepath.Join(folder, path)
	if strings.HasSuffix(path, "/") {
		joined += "/"
	}
	return joined
}

// underDest is for what may be a file, an image or a URI.
func underDest(folder, s string) string {
	switch {
	case IsLocal(s):
		return Under(folder, s)
	case strings.Contains(s, "://"), strings.HasPrefix(s, "containers-storage:"):
		return s
	}
	return underPath(folder, s)
}
