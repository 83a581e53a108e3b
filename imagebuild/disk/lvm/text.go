package lvm

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	maxDepth = 16
	maxNodes = 1 << 19 // sections, settings and values; keeps the tree of a hostile text below about 100 MB
)

type kind uint8

const (
	section kind = iota
	integer
	text // a quoted or bare string, or a number that is no integer
	array
)

// node is a section, or a setting, or (without a key) a value in an array. Places are offsets into the text.
type node struct {
	key        string
	kind       kind
	num        uint64
	str        string
	kids       []*node // of a section: its entries; of an array: its values
	start, end int     // of a section: from its key to behind "}"; of a value: the value alone
}

// parser reads LVM's configuration syntax, as libdm's dm_config_parse does.
type parser struct {
	src   string
	at    int
	nodes int
}

// parseText reads a metadata text without its final NUL.
func parseText(src string) (*node, error) {
	p := &parser{src: src}
	root := &node{end: len(src)}
	if err := p.entries(root, 0); err != nil {
		return nil, err
	}
	return root, nil
}

func (p *parser) errorf(format string, args ...any) error {
	line := 1 + strings.Count(p.src[:min(p.at, len(p.src))], "\n")
	return fmt.Errorf("%w: metadata text, line %d: %s", ErrCorrupt, line, fmt.Sprintf(format, args...))
}

// space skips white space and comments.
func (p *parser) space() {
	for p.at < len(p.src) {
		switch c := p.src[p.at]; {
		case c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f':
			p.at++
		case c == '#':
			if n := strings.IndexByte(p.src[p.at:], '\n'); n >= 0 {
				p.at += n
			} else {
				p.at = len(p.src)
			}
		default:
			return
		}
	}
}

func (p *parser) peek() byte {
	if p.at < len(p.src) {
		return p.src[p.at]
	}
	return 0
}

func (p *parser) count() error {
	if p.nodes++; p.nodes > maxNodes {
		return p.errorf("more than %d entries", maxNodes)
	}
	return nil
}

// entries reads up to the section's closing brace, or to the end of the text at depth 0.
func (p *parser) entries(s *node, depth int) error {
	seen := map[string]bool{}
	for {
		p.space()
		if p.at == len(p.src) {
			if depth > 0 {
				return p.errorf("section %q is not closed", s.key)
			}
			return nil
		}
		if p.peek() == '}' && depth > 0 {
			p.at++
			s.end = p.at
			return nil
		}
		n := &node{start: p.at}
		var err error
		if n.key, err = p.word(); err != nil {
			return err
		}
		if seen[n.key] {
			return p.errorf("%q is there twice", n.key)
		}
		seen[n.key] = true
		if err := p.count(); err != nil {
			return err
		}
		p.space()
		switch p.peek() {
		case '{':
			p.at++
			if depth == maxDepth {
				return p.errorf("more than %d sections inside each other", maxDepth)
			}
			if err := p.entries(n, depth+1); err != nil {
				return err
			}
		case '=':
			p.at++
			p.space()
			if err := p.value(n); err != nil {
				return err
			}
		default:
			return p.errorf("neither { nor = behind %q", n.key)
		}
		s.kids = append(s.kids, n)
	}
}

// value reads into n, whose key stays.
func (p *parser) value(n *node) error {
	if p.peek() != '[' {
		return p.scalar(n)
	}
	n.kind, n.start = array, p.at
	p.at++
	for {
		p.space()
		if p.peek() == ']' {
			p.at++
			n.end = p.at
			return nil
		}
		if err := p.count(); err != nil {
			return err
		}
		v := &node{}
		if err := p.scalar(v); err != nil {
			return err
		}
		n.kids = append(n.kids, v)
		p.space()
		switch p.peek() {
		case ',':
			p.at++
		case ']':
		default:
			return p.errorf("neither , nor ] in an array")
		}
	}
}

func (p *parser) scalar(n *node) error {
	n.start, n.kind = p.at, text
	quoted := p.peek() == '"' || p.peek() == '\''
	var err error
	if n.str, err = p.word(); err != nil {
		return err
	}
	n.end = p.at
	if !quoted {
		if v, err := strconv.ParseUint(n.str, 10, 64); err == nil {
			n.kind, n.num = integer, v
		}
	}
	return nil
}

// word reads a quoted string or a run of bare characters.
func (p *parser) word() (string, error) {
	switch q := p.peek(); q {
	case '"', '\'':
		p.at++
		begin := p.at
		var unescaped []byte
		for p.at < len(p.src) {
			c := p.src[p.at]
			if c == q {
				s := p.src[begin:p.at]
				p.at++
				if unescaped != nil {
					return string(unescaped), nil
				}
				return s, nil
			}
			if c == '\\' && q == '"' && p.at+1 < len(p.src) {
				if unescaped == nil {
					unescaped = append(make([]byte, 0, 64), p.src[begin:p.at]...)
				}
				p.at++
				c = p.src[p.at]
			}
			if unescaped != nil {
				unescaped = append(unescaped, c)
			}
			p.at++
		}
		return "", p.errorf("a string is not closed")
	}
	begin := p.at
	for p.at < len(p.src) && !strings.ContainsRune(" \t\n\r\v\f#={}[],\"'", rune(p.src[p.at])) && p.src[p.at] > ' ' {
		p.at++
	}
	if begin == p.at {
		return "", p.errorf("unexpected %q", p.src[p.at:min(p.at+1, len(p.src))])
	}
	return p.src[begin:p.at], nil
}

// get is the entry of that key, nil where there is none.
func (n *node) get(key string) *node {
	for _, k := range n.kids {
		if k.key == key {
			return k
		}
	}
	return nil
}

// sections are the subsections of the section key, none where it is not there.
func (n *node) sections(key string) ([]*node, error) {
	s := n.get(key)
	if s == nil {
		return nil, nil
	}
	if s.kind != section {
		return nil, fmt.Errorf("%w: %s is no section", ErrCorrupt, key)
	}
	for _, k := range s.kids {
		if k.kind != section {
			return nil, fmt.Errorf("%w: %s holds %q, which is no section", ErrCorrupt, key, k.key)
		}
	}
	return s.kids, nil
}

// number is an integer setting of at most limit.
func (n *node) number(key string, limit uint64) (uint64, error) {
	k := n.get(key)
	if k == nil || k.kind != integer || k.num > limit {
		return 0, fmt.Errorf("%w: %s of %q is missing, no integer, or over %d", ErrCorrupt, key, n.key, limit)
	}
	return k.num, nil
}

// word is a string setting, "" where it is not there.
func (n *node) word(key string) string {
	if k := n.get(key); k != nil && k.kind == text {
		return k.str
	}
	return ""
}

// words are a setting that is an array of strings, or one string.
func (n *node) words(key string) ([]string, error) {
	k := n.get(key)
	if k == nil {
		return nil, nil
	}
	if k.kind == text {
		return []string{k.str}, nil
	}
	if k.kind != array {
		return nil, fmt.Errorf("%w: %s of %q is no list", ErrCorrupt, key, n.key)
	}
	var list []string
	for _, v := range k.kids {
		if v.kind != text {
			return nil, fmt.Errorf("%w: %s of %q holds what is no string", ErrCorrupt, key, n.key)
		}
		list = append(list, v.str)
	}
	return list, nil
}
