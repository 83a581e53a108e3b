package selinux

import (
	"fmt"
	"strings"
)

// translated is a PCRE pattern in the syntax of Go's regexp.
type translated struct {
	pattern string
	// topLevel says that a "|" stands outside every group.
	topLevel bool
}

// translate turns a PCRE pattern (pcre2pattern(3), with DOTALL and without UTF) into one of Go's regexp that
// matches the same texts. It refuses what Go has no like of, and what would change its meaning.
func translate(p string) (translated, error) {
	var out strings.Builder
	t := translated{}
	depth := 0
	// quantifier says that the last item was one, which "+" would make possessive.
	quantifier := false
	// repeatable says that the last item may have a quantifier: PCRE has none for an assertion or for nothing.
	repeatable := false
	for i := 0; i < len(p); i++ {
		wasQuantifier, wasRepeatable := quantifier, repeatable
		quantifier, repeatable = false, true
		switch c := p[i]; c {
		case '\\':
			s, n, err := escape(p[i:], false)
			if err != nil {
				return t, err
			}
			out.WriteString(s)
			repeatable = n != 2 || strings.IndexByte("AzbB", p[i+1]) < 0
			i += n - 1
		case '[':
			s, n, err := class(p[i:])
			if err != nil {
				return t, err
			}
			out.WriteString(s)
			i += n - 1
		case '(':
			if strings.HasPrefix(p[i:], "(?") && !strings.HasPrefix(p[i:], "(?:") || strings.HasPrefix(p[i:], "(*") {
				return t, fmt.Errorf("the construct %q of PCRE is not supported", clip(p[i:min(len(p), i+4)]))
			}
			depth++
			repeatable = false
			// Nothing asks what a group matched.
			out.WriteString("(?:")
			if strings.HasPrefix(p[i:], "(?:") {
				i += 2
			}
		case ')':
			if depth--; depth < 0 {
				return t, fmt.Errorf("a group ends that did not start")
			}
			out.WriteByte(c)
		case '|':
			if depth == 0 {
				t.topLevel = true
			}
			repeatable = false
			out.WriteByte(c)
		case '^', '$':
			repeatable = false
			out.WriteByte(c)
		case '*', '+', '?':
			if !wasRepeatable {
				return t, fmt.Errorf("there is nothing that %q could repeat", c)
			}
			if wasQuantifier && c == '+' {
				return t, fmt.Errorf("possessive quantifiers of PCRE are not supported")
			}
			// A lazy quantifier ends here: what follows a second one is an error of both syntaxes.
			quantifier = !wasQuantifier
			out.WriteByte(c)
		case '{':
			n := repeat(p[i:])
			if n == 0 {
				if strings.HasPrefix(p[i:], "{,") {
					return t, fmt.Errorf("{,n} means different things to different versions of PCRE")
				}
				out.WriteString(`\{`)
				break
			}
			if !wasRepeatable {
				return t, fmt.Errorf("there is nothing that %q could repeat", p[i:i+n])
			}
			out.WriteString(p[i : i+n])
			i += n - 1
			quantifier = true
		case '}', ']':
			out.WriteByte('\\')
			out.WriteByte(c)
		default:
			out.WriteByte(c)
		}
	}
	if depth > 0 {
		return t, fmt.Errorf("a group does not end")
	}
	t.pattern = out.String()
	return t, nil
}

// repeat is the length of a quantifier {n}, {n,} or {n,m} at the start of p, 0 where the brace is literal.
func repeat(p string) int {
	end := strings.IndexByte(p, '}')
	if end < 2 || end > 12 {
		return 0
	}
	low, high, _ := strings.Cut(p[1:end], ",")
	if low == "" || strings.Trim(low+high, "0123456789") != "" {
		return 0
	}
	return end + 1
}

// escape translates the escape at the start of p and returns its length in p.
func escape(p string, inClass bool) (string, int, error) {
	if len(p) < 2 {
		return "", 0, fmt.Errorf("a backslash ends the pattern")
	}
	c := p[1]
	if !alnum(c) {
		if c < ' ' || c >= 0x7f {
			return "", 0, fmt.Errorf("a control character is escaped")
		}
		return p[:2], 2, nil
	}
	switch c {
	case 'd', 'D', 'w', 'W', 't', 'n', 'r', 'f', 'a':
		return p[:2], 2, nil
	case 'A', 'z', 'b', 'B':
		if !inClass {
			return p[:2], 2, nil
		}
	case 's':
		// PCRE counts the vertical tab, Go does not.
		if inClass {
			return `\t-\r `, 2, nil
		}
		return `[\t-\r ]`, 2, nil
	case 'S':
		if !inClass {
			return `[^\t-\r ]`, 2, nil
		}
	}
	return "", 0, fmt.Errorf(`the escape \%c of PCRE is not supported`, c)
}

// class translates the character class at the start of p and returns its length in p.
func class(p string) (string, int, error) {
	var out strings.Builder
	out.WriteByte('[')
	i := 1
	if i < len(p) && p[i] == '^' {
		out.WriteByte('^')
		i++
	}
	for first := true; i < len(p); first = false {
		c := p[i]
		switch {
		case c == ']' && !first:
			out.WriteByte(c)
			return out.String(), i + 1, nil
		case c == '[' && i+1 < len(p) && (p[i+1] == ':' || p[i+1] == '.' || p[i+1] == '='):
			end := strings.Index(p[i:], ":]")
			if p[i+1] != ':' || end < 0 {
				return "", 0, fmt.Errorf("collating elements are not supported")
			}
			out.WriteString(p[i : i+end+2])
			i += end + 2
		case c == '\\':
			s, n, err := escape(p[i:], true)
			if err != nil {
				return "", 0, err
			}
			out.WriteString(s)
			i += n
		case c == '[' || c == ']':
			out.WriteByte('\\')
			out.WriteByte(c)
			i++
		default:
			out.WriteByte(c)
			i++
		}
	}
	return "", 0, fmt.Errorf("a character class does not end")
}
