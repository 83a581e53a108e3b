package selinux

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

var (
	// ErrConflict says that file_contexts.subs has a line that speaks against the one to be added.
	ErrConflict = errors.New("file_contexts.subs already says otherwise")
	// ErrPath says that a path cannot stand in file_contexts.subs.
	ErrPath = errors.New("path cannot stand in file_contexts.subs")
)

// EquivalentSubs returns the content of file_contexts.subs that makes store and everything below it labelled as
// if it were at like, such as /var/images as /var/lib/containers/storage. That is the line that
// "semanage fcontext -a -e like store" writes. old is the file's content, nil for a missing file; all of it is
// kept, and where it has the line already the result equals it. Both paths are absolute and free of blanks, else the error
// matches ErrPath. A line that aliases store to something else, or a path inside it, matches ErrConflict.
func EquivalentSubs(old []byte, store, like string) ([]byte, error) {
	for _, p := range []string{store, like} {
		if p == "/" || !strings.HasPrefix(p, "/") || path.Clean(p) != p || strings.ContainsAny(p, spaces+"\x00") {
			return nil, fmt.Errorf("%w: %q", ErrPath, clip(p))
		}
	}
	line := store + " " + like + "\n"
	if len(line) > maxSub {
		return nil, fmt.Errorf("%w: line of %d bytes, at most %d are read", ErrPath, len(line), maxSub)
	}
	list, err := parseSubs(old)
	if err != nil {
		return nil, fmt.Errorf("file_contexts.subs: %w", err)
	}
	// list has the last line first. Some versions of libselinux take the first line that fits, some the last.
	first, last, wider := false, false, false
	for _, s := range list {
		rest, above := strings.CutPrefix(store, s.from)
		_, inside := strings.CutPrefix(s.from, store+"/")
		switch {
		case s.from == store && s.to == like:
			first = true
			last = last || !wider
		case s.from == store || inside:
			return nil, fmt.Errorf("%w: %s is an alias of %s", ErrConflict, clip(s.from), clip(s.to))
		case above && strings.HasPrefix(rest, "/"):
			wider = true
			first = false
		}
	}
	text := string(old)
	if wider && !first {
		text = line + text
	}
	if !last {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += line
	}
	return []byte(text), nil
}
