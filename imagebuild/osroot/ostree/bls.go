package ostree

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Entry is one boot loader entry of the Boot Loader Specification, type 1.
type Entry struct {
	// File is the name of the file, such as "ostree-1-ock.conf".
	File string
	// Title is for the menu; Version, SortKey and MachineID order it.
	Title, Version, SortKey, MachineID string
	// Linux is the kernel's path and Initrd the initial file systems', on the filesystem that holds the entry.
	Linux  string
	Initrd []string
	// Options is the kernel command line, all "options" lines joined by one blank.
	Options string
}

// ErrEntry says that a boot loader entry is not text of the form that the specification gives.
var ErrEntry = errors.New("malformed boot loader entry")

// maxEntry bounds the bytes of an entry: a kernel takes at most 4096 bytes of arguments.
const maxEntry = 64 << 10

// ParseEntry reads the text of a boot loader entry. Unknown keys and lines without a value are skipped, as boot
// loaders do. It fails with ErrEntry for text longer than 64 KiB or with a NUL byte.
func ParseEntry(file string, text []byte) (Entry, error) {
	e := Entry{File: file}
	if len(text) > maxEntry {
		return e, fmt.Errorf("%w: %s has %d bytes, at most %d are read", ErrEntry, file, len(text), maxEntry)
	}
	if bytes.IndexByte(text, 0) >= 0 {
		return e, fmt.Errorf("%w: %s holds a NUL byte", ErrEntry, file)
	}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		i := strings.IndexAny(line, " \t")
		if i < 0 {
			continue
		}
		value := strings.TrimSpace(line[i:])
		switch line[:i] {
		case "title":
			e.Title = value
		case "version":
			e.Version = value
		case "sort-key":
			e.SortKey = value
		case "machine-id":
			e.MachineID = value
		case "linux":
			e.Linux = value
		case "initrd":
			e.Initrd = append(e.Initrd, strings.Fields(value)...)
		case "options":
			if e.Options != "" {
				e.Options += " "
			}
			e.Options += value
		}
	}
	return e, nil
}

// Args returns the values of the kernel argument key, in order: for "root" what follows each "root=". An
// argument may be quoted as the kernel permits: key="a b" or "key=a b".
func (e Entry) Args(key string) []string {
	var values []string
	for _, arg := range splitArgs(e.Options) {
		if v, ok := strings.CutPrefix(arg, key+"="); ok {
			values = append(values, v)
		}
	}
	return values
}

// splitArgs splits a command line as the kernel's next_arg does: at blanks outside double quotes.
func splitArgs(s string) []string {
	var args []string
	var arg strings.Builder
	quoted, any := false, false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"':
			quoted, any = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if any {
				args = append(args, arg.String())
			}
			arg.Reset()
			any = false
		default:
			arg.WriteByte(c)
			any = true
		}
	}
	if any {
		args = append(args, arg.String())
	}
	return args
}

// Target is what the kernel argument ostree= names: a slot of one boot version, not yet a deployment.
type Target struct {
	// Boot is N and Sub is S of boot.N.S; Sub is -1 where the argument leaves it to the link boot.N.
	Boot, Sub int
	// OS is the name of the OS, Checksum that of its kernel and initial file system, Index the slot's number.
	OS, Checksum string
	Index        int
}

// ErrTarget says that an ostree= argument does not name a slot or that the slot leads to no deployment.
var ErrTarget = errors.New("ostree= names no deployment")

// ParseTarget reads the value of an ostree= kernel argument, such as /ostree/boot.1/ock/0123abcd/0.
func ParseTarget(value string) (Target, error) {
	bad := fmt.Errorf("%w: %q", ErrTarget, clip(value))
	rest, ok := strings.CutPrefix(value, "/ostree/boot.")
	if !ok {
		return Target{}, bad
	}
	f := strings.Split(rest, "/")
	if len(f) != 4 || !plain(f[1]) || !plain(f[2]) {
		return Target{}, bad
	}
	t := Target{Sub: -1, OS: f[1], Checksum: f[2]}
	n, s, hasSub := strings.Cut(f[0], ".")
	if t.Boot, ok = number(n, 1); !ok {
		return Target{}, bad
	}
	if hasSub {
		if t.Sub, ok = number(s, 1); !ok {
			return Target{}, bad
		}
	}
	if t.Index, ok = number(f[3], 1<<30); !ok {
		return Target{}, bad
	}
	return t, nil
}

// Path is the slot's path on the root filesystem, without a leading slash.
func (t Target) Path() string {
	boot := "ostree/boot." + strconv.Itoa(t.Boot)
	if t.Sub >= 0 {
		boot += "." + strconv.Itoa(t.Sub)
	}
	return boot + "/" + t.OS + "/" + t.Checksum + "/" + strconv.Itoa(t.Index)
}

// number reads a decimal number of digits alone, from 0 to limit.
func number(s string, limit int) (int, bool) {
	if s == "" || len(s) > 10 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, n <= limit
}

// plain says whether s can be one component of a path.
func plain(s string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 255 && strings.IndexByte(s, '/') < 0 && strings.IndexByte(s, 0) < 0
}

// clip shortens what a hostile disk would have an error repeat.
func clip(s string) string {
	if len(s) > 256 {
		return s[:256] + "..."
	}
	return s
}

// SortEntries puts the entries in the order of a boot loader's menu, the one it starts by default first. That
// is the order of the Boot Loader Specification: entries with a sort-key first, by sort-key, machine-id, then
// newest version; the others by file name, highest first, so that ostree-2-OS.conf comes before
// ostree-1-OS.conf; and last those whose boot counter (NAME+0-3.conf) says that no try is left.
func SortEntries(entries []Entry) {
	slices.SortStableFunc(entries, func(a, b Entry) int {
		idA, badA := entryID(a.File)
		idB, badB := entryID(b.File)
		switch {
		case badA != badB:
			if badA {
				return 1
			}
			return -1
		case (a.SortKey != "") != (b.SortKey != ""):
			if a.SortKey != "" {
				return -1
			}
			return 1
		case a.SortKey != "":
			if c := cmp.Or(strings.Compare(a.SortKey, b.SortKey), strings.Compare(a.MachineID, b.MachineID),
				CompareVersions(b.Version, a.Version)); c != 0 {
				return c
			}
		}
		return cmp.Or(CompareVersions(idB, idA), strings.Compare(b.File, a.File))
	})
}

// entryID is the file's name without suffix and boot counter; spent says that the counter reached zero.
func entryID(file string) (id string, spent bool) {
	id = strings.TrimSuffix(file, ".conf")
	i := strings.LastIndexByte(id, '+')
	if i < 0 {
		return id, false
	}
	left, done, hasDone := strings.Cut(id[i+1:], "-")
	n, ok := number(left, 1<<30)
	if !ok {
		return id, false
	}
	if hasDone {
		if _, ok := number(done, 1<<30); !ok {
			return id, false
		}
	}
	return id[:i], n == 0
}

// CompareVersions compares two versions by the UAPI group's Version Format Specification and returns -1, 0 or 1.
func CompareVersions(a, b string) int {
	valid := func(c byte) bool { return digit(c) || letter(c) || c == '~' || c == '-' || c == '^' || c == '.' }
	skip := func(s string) string {
		for s != "" && !valid(s[0]) {
			s = s[1:]
		}
		return s
	}
	for {
		a, b = skip(a), skip(b)
		done := false
		for _, sep := range []byte{'~', 0, '-', '^', '.'} {
			if sep == 0 {
				if a == "" || b == "" {
					return cmp.Compare(len(a), len(b))
				}
				continue
			}
			hasA, hasB := strings.HasPrefix(a, string(sep)), strings.HasPrefix(b, string(sep))
			if hasA != hasB {
				if hasA {
					return -1
				}
				return 1
			}
			if hasA {
				a, b = a[1:], b[1:]
				done = true
				break
			}
		}
		if done {
			continue
		}
		in := letter
		if digit(a[0]) || digit(b[0]) {
			in = digit
		}
		segA, segB := span(a, in), span(b, in)
		a, b = a[len(segA):], b[len(segB):]
		if segA == "" || segB == "" {
			return cmp.Compare(len(segA), len(segB))
		}
		if digit(segA[0]) {
			segA, segB = strings.TrimLeft(segA, "0"), strings.TrimLeft(segB, "0")
			if c := cmp.Compare(len(segA), len(segB)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(segA, segB); c != 0 {
			return c
		}
	}
}

func digit(c byte) bool  { return c >= '0' && c <= '9' }
func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func span(s string, in func(byte) bool) string {
	i := 0
	for i < len(s) && in(s[i]) {
		i++
	}
	return s[:i]
}
