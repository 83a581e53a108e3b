package selinux

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"
	"sync/atomic"
)

// spec is one specification of file_contexts.
type spec struct {
	context string
	// rest is the translated pattern for what follows the literal prefix; start is that prefix's length.
	rest  string
	start int
	// stem is the length of a literal first component with the slash before it, 0 without one. A pattern with a
	// stem matches only paths that go on with a slash there.
	stem int
	// need is a text that what follows the literal prefix must hold.
	need  string
	kind  byte // the file type's letter, 0 for all
	shape shape
	re    atomic.Pointer[regexp.Regexp]
}

// shape is how what follows the literal prefix is matched. The common forms need no regular expression.
type shape uint8

const (
	general  shape = iota
	refused        // the pattern has no translation
	never          // nothing can match
	subtree        // (/.*)?
	inside         // /.*
	anything       // .*
	within         // /.+
	some           // .+
	name           // [^/]*
	nameSome       // [^/]+
)

var shapes = map[string]shape{"(/.*)?": subtree, "/.*": inside, ".*": anything, "/.+": within, ".+": some, "[^/]*": name, "[^/]+": nameSome}

// exactly is the pattern of what matches its literal text alone.
const exactly = "(?s)^$"

// specs are the specifications, findable by the literal text that a path must start with.
type specs struct {
	all []spec
	// exact are those without metacharacters, by the one path that they match, in ascending order.
	exact map[string][]int32
	// prefix are the others by their literal prefix; lengths are the lengths of all keys, ascending.
	prefix  map[string][]int32
	lengths []int
}

// builder collects the specifications of several files.
type builder struct {
	lines    []*spec
	keys     [][]string
	meta     []bool
	contexts map[string]string
	warnings []string
	cost     int
}

const (
	maxWarnings = 100     // that a hostile policy can have us say
	maxCost     = 20_000  // instructions of one regular expression
	maxCosts    = 500_000 // instructions of all; Debian's policy has under 100,000
)

func (b *builder) parse(file string, text []byte) error {
	if len(text) > maxFile {
		return fmt.Errorf("%w: %s has %d bytes", ErrTooLarge, file, len(text))
	}
	if b.contexts == nil {
		b.contexts = map[string]string{}
	}
	n := 0
	for line := range bytes.Lines(text) {
		n++
		// libselinux handles lines as C strings.
		if i := bytes.IndexByte(line, 0); i >= 0 {
			line = line[:i]
		}
		f := fields(line, 3)
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		bad := func(what string) error { return fmt.Errorf("%w: %s line %d %s", ErrSyntax, file, n, what) }
		for _, field := range f {
			if len(field) >= maxEntry {
				return bad("has a field that is too long")
			}
			if slices.ContainsFunc(field, func(c byte) bool { return c >= 0x80 }) {
				return bad("has a byte that is not ASCII")
			}
		}
		if len(f) < 2 {
			return bad("is missing fields")
		}
		var kind byte
		if len(f) == 3 {
			if len(f[1]) != 2 || f[1][0] != '-' || !bytes.ContainsRune([]byte("bcdpls-"), rune(f[1][1])) {
				return bad("has the unknown file type " + clip(string(f[1])))
			}
			kind = f[1][1]
		}
		if len(b.lines) == maxSpecs {
			return fmt.Errorf("%w: more than %d specifications", ErrTooLarge, maxSpecs)
		}
		context := string(f[len(f)-1])
		if same, ok := b.contexts[context]; ok {
			context = same
		} else {
			b.contexts[context] = context
		}
		s := &spec{context: context, kind: kind}
		pattern := string(f[0])
		keys, cost, err := s.compile(pattern)
		if err == nil && b.cost+cost > maxCosts {
			err = errors.New("the patterns are too complex in sum")
		}
		b.cost += cost
		if err != nil {
			s.shape = refused
			if len(b.warnings) < maxWarnings {
				b.warnings = append(b.warnings, fmt.Sprintf("%s line %d: %s: %v; paths that it could decide get no label", file, n, clip(pattern), err))
			}
		}
		b.lines = append(b.lines, s)
		b.keys = append(b.keys, keys)
		b.meta = append(b.meta, hasMeta(pattern))
	}
	return nil
}

// hasMeta is the test by which libselinux tells patterns from exact paths.
func hasMeta(pattern string) bool {
	for i := 0; i < len(pattern); i++ {
		switch pattern[i] {
		case '.', '^', '$', '?', '*', '+', '|', '[', '(', '{':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// stemOf is the length of the literal first component of a pattern, 0 without one, as libselinux finds it.
func stemOf(pattern string) int {
	if pattern == "" {
		return 0
	}
	i := strings.IndexByte(pattern[1:], '/') + 1
	if i == 0 || strings.ContainsAny(pattern[:i], ".^$?*+|[({") {
		return 0
	}
	return i
}

// compile fills in how s matches. It returns the texts of which each matching path starts with one, which holds
// upon an error too, and how many instructions the pattern takes.
func (s *spec) compile(pattern string) (keys []string, cost int, err error) {
	s.stem = stemOf(pattern)
	key, tail := pattern[:s.stem], pattern[s.stem:]
	if strings.IndexByte(key, '\\') >= 0 {
		// The path must have the stem as it stands, and match the pattern, in which the backslash is an escape.
		s.shape = never
		return []string{key}, 0, nil
	}
	t, err := translate(pattern)
	// Upon an error nothing says where a "|" stands.
	if !t.topLevel && (err == nil || !strings.Contains(tail, "|")) {
		var literal string
		literal, tail = split(tail)
		key += literal
		s.start = len(key)
	}
	keys = []string{key}
	if err != nil {
		return keys, 0, err
	}
	if !t.topLevel {
		if s.shape = shapes[tail]; s.shape != general {
			return keys, 0, nil
		}
		if t, err = translate(tail); err != nil {
			return keys, 0, err
		}
	}
	s.rest = "(?s)^" + t.pattern + "$"
	re, err := syntax.Parse(s.rest, syntax.Perl)
	if err != nil {
		return keys, 0, err
	}
	if cost = instructions(re); cost > maxCost {
		return keys, 0, errors.New("the pattern is too complex")
	}
	s.need = required(re)
	if !t.topLevel {
		more, _ := starts(re)
		keys = keys[:0]
		for _, m := range more {
			keys = append(keys, key+m)
		}
	}
	return keys, cost, nil
}

// instructions is about how long the program of a regular expression gets.
func instructions(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)
	for _, sub := range re.Sub {
		n += instructions(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min, re.Max, 1)
	}
	return min(n, 1<<30)
}

// split cuts off the literal start of a pattern: its characters, and what follows them.
func split(pattern string) (literal, tail string) {
	var lit []byte
	for i := 0; i < len(pattern); {
		next := i + 1
		c := pattern[i]
		switch c {
		case '.', '^', '$', '|', '[', '(', ')', '?', '*', '+', '{':
			return string(lit), pattern[i:]
		case '\\':
			if next == len(pattern) || alnum(pattern[next]) {
				return string(lit), pattern[i:]
			}
			c = pattern[next]
			next++
		}
		if next < len(pattern) && strings.IndexByte("?*+{", pattern[next]) >= 0 {
			return string(lit), pattern[i:]
		}
		lit = append(lit, c)
		i = next
	}
	return string(lit), ""
}

func alnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// build sorts the specifications as libselinux does and indexes them.
func (b *builder) build() *specs {
	s := &specs{all: make([]spec, len(b.lines)), exact: map[string][]int32{}, prefix: map[string][]int32{}}
	n := 0
	for _, meta := range []bool{true, false} {
		for i, line := range b.lines {
			if b.meta[i] != meta {
				continue
			}
			at := &s.all[n]
			at.context, at.rest, at.start, at.stem, at.need, at.kind, at.shape = line.context, line.rest, line.start, line.stem, line.need, line.kind, line.shape
			index := s.prefix
			if !meta && at.shape == general && at.rest == exactly {
				index = s.exact
			}
			for _, key := range b.keys[i] {
				index[key] = append(index[key], int32(n))
			}
			n++
		}
	}
	seen := map[int]bool{}
	for key := range s.prefix {
		if !seen[len(key)] {
			seen[len(key)] = true
			s.lengths = append(s.lengths, len(key))
		}
	}
	slices.Sort(s.lengths)
	return s
}

// lookup returns the context of the last specification that matches.
func (s *specs) lookup(path string, kind byte) (string, bool) {
	var buf [128]int32
	found := buf[:0]
	add := func(list []int32) {
		for _, i := range list {
			if k := s.all[i].kind; k == 0 || kind == 0 || k == kind {
				found = append(found, i)
			}
		}
	}
	add(s.exact[path])
	// PCRE's $ also matches before a newline that ends the text.
	line, newline := strings.CutSuffix(path, "\n")
	if newline {
		add(s.exact[line])
	}
	for _, n := range s.lengths {
		if n > len(path) {
			break
		}
		add(s.prefix[path[:n]])
	}
	// The same one may be there twice, by two of its texts.
	slices.Sort(found)
	for i := len(found) - 1; i >= 0; i-- {
		at := &s.all[found[i]]
		if at.stem > 0 && (len(path) <= at.stem || path[at.stem] != '/') {
			continue
		}
		if at.shape == refused {
			return "", false
		}
		if at.match(path[at.start:]) || newline && at.start <= len(line) && at.match(line[at.start:]) {
			return at.context, at.context != none
		}
	}
	return "", false
}

// match says whether s matches a path of which rest follows the literal prefix.
func (s *spec) match(rest string) bool {
	switch s.shape {
	case never:
		return false
	case subtree:
		return rest == "" || rest[0] == '/'
	case inside:
		return rest != "" && rest[0] == '/'
	case anything:
		return true
	case within:
		return len(rest) > 1 && rest[0] == '/'
	case some:
		return rest != ""
	case name:
		return strings.IndexByte(rest, '/') < 0
	case nameSome:
		return rest != "" && strings.IndexByte(rest, '/') < 0
	}
	if s.rest == exactly {
		return rest == ""
	}
	if !strings.Contains(rest, s.need) {
		return false
	}
	re := s.re.Load()
	if re == nil {
		// compile has parsed it, so it is good; two lookups may do this at once, to the same effect.
		re = regexp.MustCompile(s.rest)
		s.re.Store(re)
	}
	return re.MatchString(latin1(rest))
}

// latin1 makes each byte a character of its own, as PCRE sees them.
func latin1(s string) string {
	ascii := true
	for i := range len(s) {
		if s[i] >= 0x80 {
			ascii = false
			break
		}
	}
	if ascii {
		return s
	}
	r := make([]rune, len(s))
	for i := range len(s) {
		r[i] = rune(s[i])
	}
	return string(r)
}
