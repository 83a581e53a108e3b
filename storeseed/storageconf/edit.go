package storageconf

import (
	"bytes"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

var (
	storesKey  = []string{"storage", "options", "additionalimagestores"}
	optionsKey = []string{"crio", "storage_option"}
)

// AddStore puts store first into additionalimagestores of [storage.options]. The
// result is conf with one run of bytes inserted. If conf lists the store already,
// first or not (paths are compared cleaned), AddStore returns conf itself and
// false: the order matters only between stores that hold the same image. A conf
// of nothing but white space gets [Default] appended.
//
// Errors: [ErrStore], a *[SyntaxError], [ErrUnsupported] for a file that cannot be
// edited safely (a key in two spellings, more than 256 KiB), and an error that
// names the key if a value has a type with which no engine starts. conf is never
// modified.
func AddStore(conf []byte, store string) (out []byte, changed bool, err error) {
	store, err = cleanStore(store)
	if err != nil {
		return nil, false, err
	}
	if len(bytes.TrimSpace(conf)) == 0 {
		return slices.Concat(conf, Default(store)), true, nil
	}
	if _, err := Stores(conf); err != nil {
		return nil, false, err
	}
	return insertFirst(conf, storesKey, store, func(elem string) bool { return lists(elem, store) })
}

// insertFirst puts value first into the array of strings at key, making the array
// and its table if need be, unless an element is already listed.
func insertFirst(conf []byte, key []string, value string, listed func(string) bool) ([]byte, bool, error) {
	before, err := decode(conf)
	if err != nil {
		return nil, false, err
	}
	var old []string
	var app bool
	r := reader{doc: before}
	r.list(&old, &app, key...)
	if r.err != nil {
		return nil, false, r.err
	}
	if slices.ContainsFunc(old, listed) {
		return conf, false, nil
	}

	skip := 0
	if bytes.HasPrefix(conf, []byte(bom)) {
		skip = len(bom)
	}
	l, err := scan(slices.Clip(conf[skip:]), key)
	if err != nil {
		return nil, false, err
	}
	pos, text := l.insertion(value)
	out := slices.Concat(conf[:skip+pos], []byte(text), conf[skip+pos:])

	after, err := decode(out)
	if err == nil && !onlyGained(before, after, key, value) {
		err = fmt.Errorf("%s would not come out as %s", strings.Join(key, "."), Quote(value))
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w: %v; add %s to %s by hand", ErrUnsupported, err, Quote(value), strings.Join(key, "."))
	}
	return out, true, nil
}

// onlyGained reports whether after is before with value put first into the array at key.
func onlyGained(before, after map[string]any, key []string, value string) bool {
	oldName, had, errOld := fold(before, key[0])
	newName, has, errNew := fold(after, key[0])
	if errOld != nil || errNew != nil || !has || had && oldName != newName {
		return false
	}
	if len(key) == 1 {
		var old []any
		if had {
			old, _ = before[oldName].([]any)
		}
		got, ok := after[newName].([]any)
		if !ok || len(got) != len(old)+1 || got[0] != value || len(old) > 0 && !reflect.DeepEqual(got[1:], old) {
			return false
		}
	} else {
		sub, _ := before[oldName].(map[string]any) // nil if not had
		got, ok := after[newName].(map[string]any)
		if !ok || !onlyGained(sub, got, key[1:], value) {
			return false
		}
	}
	for k, v := range before {
		if w, ok := after[k]; k != oldName && (!ok || !reflect.DeepEqual(v, w)) {
			return false
		}
	}
	return len(after) == len(before) || !had && len(after) == len(before)+1
}

// A layout is what insertion needs to know about a file. All offsets are into data.
type layout struct {
	data []byte
	key  []string // of the array
	eol  string

	array  *arrayAt  // the array itself
	inline *inlineAt // the innermost inline table on the way to the array
	table  *tableAt  // the explicit [header] of the array's table
	dotted *dottedAt // a dotted key that made the array's table, or a table on the way to it
	parent *tableAt  // the explicit [header] of the table above that
	sub    *tableAt  // the first [header] below the array's table

	tables   []tableAt
	comments []lineAt // those that have a line of their own
}

type lineAt struct{ start, end int } // whole lines, with their ends

type tableAt struct {
	lineAt
	path  []string
	array bool // [[path]]
	limit int  // start of the next header's line, or the end of the file
}

type arrayAt struct {
	open, close int // of the brackets
	first       int // of the first element; -1 if there is none
	line        int // start of the line of the key
}

type inlineAt struct {
	open  int
	empty bool
	rest  []string // the key from inside the table
}

type dottedAt struct {
	lineAt
	prefix string   // the key's text up to the part where rest goes on, with its dot
	rest   []string // what follows
}

// scan walks the file once. data must be valid TOML.
func scan(data []byte, key []string) (*layout, error) {
	l := &layout{data: data, key: key, eol: "\n"}
	if i := bytes.IndexByte(data, '\n'); i > 0 && data[i-1] == '\r' {
		l.eol = "\r\n"
	}
	var p unstable.Parser
	p.KeepComments = true
	p.Reset(data)
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Comment:
			l.comments = append(l.comments, l.line(int(e.Raw.Offset)))
		case unstable.Table, unstable.ArrayTable:
			parts, raw := keyParts(e)
			l.tables = append(l.tables, tableAt{lineAt: l.line(int(raw[0].Offset)), path: parts, array: e.Kind == unstable.ArrayTable})
		case unstable.KeyValue:
			var in []string
			if n := len(l.tables); n > 0 {
				in = l.tables[n-1].path
			}
			if err := l.keyValue(in, e); err != nil {
				return nil, err
			}
		}
	}
	if err := p.Error(); err != nil {
		return nil, &SyntaxError{Msg: err.Error()}
	}

	table := key[:len(key)-1]
	for i := range l.tables {
		t := &l.tables[i]
		t.limit = len(data)
		if i+1 < len(l.tables) {
			t.limit = l.tables[i+1].start
		}
		n := commonPrefix(t.path, table)
		switch {
		case t.array && n == len(t.path):
			return nil, fmt.Errorf("%w: [[%s]] is an array of tables, where engines want a table", ErrUnsupported, strings.Join(t.path, "."))
		case n == len(table) && n == len(t.path):
			l.table = t
		case n == len(table) && l.sub == nil:
			l.sub = t
		case n == len(t.path) && n == len(table)-1:
			l.parent = t
		}
	}
	return l, nil
}

// keyValue notes what one expression in the table in has to do with the key.
func (l *layout) keyValue(in []string, e *unstable.Node) error {
	if n := commonPrefix(in, l.key); n < len(in) {
		return nil // another table
	}
	parts, raw := keyParts(e)
	full := slices.Concat(in, parts)
	n := commonPrefix(full, l.key)
	line := l.lineStart(int(e.Raw.Offset))
	if n == len(full) {
		return l.value(e, raw[len(raw)-1], full, line)
	}
	// The key shares tables with ours; in is the header's share of them.
	if n > len(in) && l.dotted == nil {
		l.dotted = &dottedAt{
			lineAt: lineAt{line, l.lineEnd(int(e.Raw.Offset + e.Raw.Length))},
			prefix: string(l.data[e.Raw.Offset:raw[n-len(in)].Offset]),
			rest:   l.key[n:],
		}
	}
	return nil
}

// value handles a key that is our key, or a table on the way to it. lastKey is the
// last part of its name; the value starts after it and ends with e.
func (l *layout) value(e *unstable.Node, lastKey unstable.Range, full []string, line int) error {
	open := int(lastKey.Offset + lastKey.Length)
	open += bytes.IndexByte(l.data[open:], '=') + 1
	for l.data[open] == ' ' || l.data[open] == '\t' {
		open++
	}
	v := e.Value()
	if len(full) == len(l.key) {
		a := &arrayAt{open: open, close: int(e.Raw.Offset+e.Raw.Length) - 1, first: -1, line: line}
		for it := v.Children(); it.Next(); {
			if c := it.Node(); c.Kind == unstable.String || c.Kind == unstable.InlineTable {
				a.first = int(c.Raw.Offset)
				break
			}
		}
		l.array = a
		return nil
	}
	if v.Kind != unstable.InlineTable {
		return fmt.Errorf("%w: %s is not a table", ErrUnsupported, strings.Join(full, "."))
	}
	l.inline = &inlineAt{open: open, empty: true, rest: l.key[len(full):]}
	for it := v.Children(); it.Next(); {
		c := it.Node()
		if c.Kind != unstable.KeyValue {
			continue
		}
		l.inline.empty = false
		parts, raw := keyParts(c)
		sub := slices.Concat(full, parts)
		if commonPrefix(sub, l.key) == len(sub) {
			return l.value(c, raw[len(raw)-1], sub, line)
		}
	}
	return nil
}

// insertion says where to put which text.
func (l *layout) insertion(value string) (pos int, text string) {
	list := "[" + Quote(value) + "]"
	name := l.key[len(l.key)-1]
	switch {
	case l.array != nil:
		return l.element(Quote(value))

	case l.inline != nil:
		kv := strings.Join(l.inline.rest, ".") + " = " + list
		if !l.inline.empty {
			kv += ", "
		}
		return l.inline.open + 1, kv

	case l.table != nil:
		after, indent := l.table.lineAt, l.indent(l.table.start)
		if c, ok := l.commentedOut(*l.table, name); ok {
			after, indent = c, l.indent(c.start)
		}
		return l.lineAfter(after, indent+name+" = "+list)

	case l.dotted != nil && l.sub == nil:
		return l.lineAfter(l.dotted.lineAt, l.indent(l.dotted.start)+l.dotted.prefix+strings.Join(l.dotted.rest, ".")+" = "+list)
	}

	// The table is not there: it goes below its parent, else above its first
	// subtable, else to the end.
	section := "[" + strings.Join(l.key[:len(l.key)-1], ".") + "]" + l.eol + name + " = " + list
	pos = len(l.data)
	switch {
	case l.parent != nil:
		pos = l.parent.limit
	case l.sub != nil:
		pos = l.sub.start
	}
	if pos == len(l.data) {
		if bytes.HasSuffix(l.data, []byte("\n")) {
			return pos, l.eol + section + l.eol
		}
		return pos, l.eol + l.eol + section
	}
	// The comment right above a header belongs to it.
	for _, c := range slices.Backward(l.comments) {
		if c.end == pos {
			pos = c.start
		}
	}
	return pos, section + l.eol + l.eol
}

// element says where to put a first element into the array that is there.
func (l *layout) element(elem string) (pos int, text string) {
	a := l.array
	inside := l.data[a.open+1 : a.close]
	if a.first >= 0 {
		start := l.lineStart(a.first)
		if start <= a.open {
			return a.first, elem + ", "
		}
		return a.first, elem + "," + l.eol + string(l.data[start:a.first])
	}
	nl := bytes.IndexByte(inside, '\n')
	if nl < 0 {
		return a.open + 1, elem
	}
	pos = a.open + 1 + nl + 1
	indent := l.indent(pos)
	if pos+len(indent) == a.close {
		indent = l.indent(a.line) + "  "
	}
	return pos, indent + elem + "," + l.eol
}

// commentedOut finds the lines of a comment in the table's part of the file that
// holds the key as an example, over several lines if its array does.
func (l *layout) commentedOut(t tableAt, name string) (lineAt, bool) {
	re := regexp.MustCompile(`(?i)^[ \t]*#[# \t]*` + regexp.QuoteMeta(name) + `[ \t]*=(.*)`)
	for i, c := range l.comments {
		if c.start < t.end || c.start >= t.limit {
			continue
		}
		m := re.FindSubmatch(l.data[c.start:c.end])
		if m == nil {
			continue
		}
		block := c
		if bytes.Contains(m[1], []byte("[")) && !bytes.Contains(m[1], []byte("]")) {
			for end, n := c.end, i+1; n < len(l.comments) && l.comments[n].start == end; n++ {
				end = l.comments[n].end
				if bytes.Contains(l.data[l.comments[n].start:end], []byte("]")) {
					block.end = end
					break
				}
			}
		}
		return block, true
	}
	return lineAt{}, false
}

// lineAfter puts a line of its own after another one, which may lack its end.
func (l *layout) lineAfter(after lineAt, line string) (pos int, text string) {
	if l.data[after.end-1] == '\n' {
		return after.end, line + l.eol
	}
	return after.end, l.eol + line
}

func (l *layout) indent(lineStart int) string {
	i := lineStart
	for i < len(l.data) && (l.data[i] == ' ' || l.data[i] == '\t') {
		i++
	}
	return string(l.data[lineStart:i])
}

func (l *layout) line(at int) lineAt { return lineAt{l.lineStart(at), l.lineEnd(at)} }

func (l *layout) lineStart(at int) int { return bytes.LastIndexByte(l.data[:at], '\n') + 1 }

func (l *layout) lineEnd(at int) int {
	if i := bytes.IndexByte(l.data[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(l.data)
}

// keyParts returns the parts of a key, and where each stands.
func keyParts(e *unstable.Node) (parts []string, raw []unstable.Range) {
	for it := e.Key(); it.Next(); {
		parts = append(parts, string(it.Node().Data))
		raw = append(raw, it.Node().Raw)
	}
	return parts, raw
}

// commonPrefix counts the leading parts that a and b share, whatever their case.
func commonPrefix(a, b []string) int {
	n := 0
	for n < len(a) && n < len(b) && strings.EqualFold(a[n], b[n]) {
		n++
	}
	return n
}
