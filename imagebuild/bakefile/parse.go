package bakefile

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// reader parses one file.
type reader struct {
	file  *File
	found []Finding
	// more counts the findings that were not kept.
	more int
}

func (r *reader) fail(line, column int, path, format string, args ...any) {
	if len(r.found) == maxKept {
		r.more++
		return
	}
	r.found = append(r.found, Finding{r.file.Name, line, column, path, fmt.Sprintf(format, args...)})
}

func (r *reader) failAt(n *yaml.Node, path, format string, args ...any) {
	r.fail(n.Line, n.Column, path, format, args...)
}

func (r *reader) read(data []byte) {
	if len(data) > maxFile {
		r.fail(1, 1, "", "the file is larger than %d bytes", maxFile)
		return
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	err := d.Decode(&doc)
	if err == io.EOF || err == nil && (len(doc.Content) != 1 || doc.Content[0].ShortTag() == "!!null" && doc.Content[0].Value == "") {
		r.fail(1, 1, "", "there is nothing in it; see nodebake schema")
		return
	}
	if err != nil {
		r.syntax(data, err)
		return
	}
	r.top(doc.Content[0])
	switch err := d.Decode(&next); {
	case err == io.EOF:
	case err != nil:
		r.syntax(data, err)
	default:
		r.failAt(&next, "", "a second document begins here; give it a file of its own, or list its disks under disks")
	}
}

var (
	lineIn = regexp.MustCompile(`^yaml: (?:line ([0-9]+): )?`)
	// byParser are the messages whose lines the library counts from 0; those of its scanner count from 1.
	byParser = regexp.MustCompile(`^did not find expected (key|node content|'-' indicator|',' or|<document)`)
)

// syntax says what the YAML library found. It knows the line alone; a tab it calls many names.
func (r *reader) syntax(data []byte, err error) {
	message, line := err.Error(), 1
	if m := lineIn.FindStringSubmatch(message); m != nil {
		message = message[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		if m[1] != "" && byParser.MatchString(message) {
			line++
		}
	}
	column := 1
	for n, l := range bytes.Split(data, []byte("\n")) {
		indent := l[:len(l)-len(bytes.TrimLeft(l, " \t"))]
		if i := bytes.IndexByte(indent, '\t'); i >= 0 && len(indent) < len(bytes.TrimRight(l, "\r")) {
			line, column, message = n+1, i+1, "a tab stands where YAML takes spaces alone"
			break
		}
	}
	r.fail(line, column, "", "%s", message)
}

// setting is a Setting on its way: where it is from decides what becomes of the top's.
type setting struct {
	Setting
	// replaces is what the top must not have: the flag of a single value, or the flag and the name in a mapping.
	replaces string
}

// top reads the file's only mapping.
func (r *reader) top(n *yaml.Node) {
	var defaults []setting
	var list *yaml.Node
	seen := r.mapping(n, "", topKeys, func(k *key, v *yaml.Node) {
		switch k.name {
		case disks.name:
			list = v
		case version.name, kindOf.name:
			r.scalar(k, v, k.name)
		default:
			r.value(k, v, k.name, &defaults)
		}
	})
	if seen == nil {
		return
	}
	for _, k := range []key{version, kindOf} {
		if !slices.Contains(seen, k.name) {
			r.failAt(n, k.name, "is missing; it %s", k.why)
		}
	}
	if list == nil {
		r.file.Disks = []Disk{{Line: n.Line, Column: n.Column, Settings: merge(defaults, nil)}}
		return
	}
	r.file.Listed = true
	r.disks(list, defaults)
}

// disks reads the list of disks.
func (r *reader) disks(n *yaml.Node, defaults []setting) {
	if !r.is(n, disks.name, yaml.SequenceNode, "a list") {
		return
	}
	if len(n.Content) == 0 {
		r.failAt(n, disks.name, "names no disk; leave it out for a file that is one disk")
	}
	if len(n.Content) > maxDisks {
		r.failAt(n, disks.name, "there are %d, and %d is the most", len(n.Content), maxDisks)
		return
	}
	first, all := map[string]int{}, 0
	for i, one := range n.Content {
		path := fmt.Sprintf("%s[%d]", disks.name, i)
		d := Disk{Key: path, Line: one.Line, Column: one.Column}
		var own []setting
		seen := r.mapping(one, path, diskKeys, func(k *key, v *yaml.Node) {
			at := path + "." + k.name
			if k.name != name.name {
				r.value(k, v, at, &own)
				return
			}
			value, ok := r.scalar(k, v, at)
			if !ok {
				return
			}
			if line, twice := first[value]; twice {
				r.failAt(v, at, "%s is the name of another disk, in line %d", value, line)
			}
			first[value], d.Name = v.Line, value
		})
		if seen != nil && !slices.Contains(seen, name.name) {
			r.failAt(one, path, "has no %s", name.name)
		}
		if all += len(defaults) + len(own); all > maxSettings {
			r.failAt(one, path, "all disks together have more than %d settings", maxSettings)
			return
		}
		d.Settings = merge(defaults, own)
		r.file.Disks = append(r.file.Disks, d)
	}
}

// merge is a disk's settings: the top's that they leave, then its own.
func merge(top, own []setting) []Setting {
	replaced := map[string]bool{}
	for _, s := range own {
		if s.replaces != "" {
			replaced[s.replaces] = true
		}
	}
	var all []Setting
	for _, s := range top {
		if !replaced[s.replaces] {
			all = append(all, s.Setting)
		}
	}
	for _, s := range own {
		all = append(all, s.Setting)
	}
	return all
}

// mapping reads a mapping and gives its values to use. It returns the names that it has, nil where it is no mapping.
func (r *reader) mapping(n *yaml.Node, path string, keys []key, use func(k *key, v *yaml.Node)) []string {
	if !r.is(n, path, yaml.MappingNode, "a mapping") {
		return nil
	}
	seen := []string{}
	lines := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, v := n.Content[i], n.Content[i+1]
		if !r.name(name, path, lines) {
			continue
		}
		j := slices.IndexFunc(keys, func(k key) bool { return k.name == name.Value })
		if j < 0 {
			r.failAt(name, path, "unknown key %s%s", quoted(name.Value), suggest(name.Value, path, keys))
			continue
		}
		seen = append(seen, name.Value)
		use(&keys[j], v)
	}
	return seen
}

// name checks the name of an entry of a mapping, which lines holds the others of.
func (r *reader) name(n *yaml.Node, path string, lines map[string]int) bool {
	if n.Kind != yaml.ScalarNode && n.Kind != yaml.AliasNode {
		r.failAt(n, path, "a key must be a string, and this is %s", r.kind(n))
		return false
	}
	if r.refused(n, path) {
		return false
	}
	if line, twice := lines[n.Value]; twice {
		r.failAt(n, path, "%s is given twice, first in line %d", quoted(n.Value), line)
		return false
	}
	lines[n.Value] = n.Line
	return true
}

// is checks what a node is, and that it is itself.
func (r *reader) is(n *yaml.Node, path string, want yaml.Kind, called string) bool {
	if r.refused(n, path) {
		return false
	}
	if n.Kind == want {
		return true
	}
	if r.null(n) {
		r.failAt(n, path, "has no value; give %s, or leave the key out", called)
	} else {
		r.failAt(n, path, "must be %s, and this is %s", called, r.kind(n))
	}
	return false
}

// refused says whether a node is of a kind that the format does not take. A file that means what it says needs none.
func (r *reader) refused(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		r.failAt(n, path, "an alias (*%s) is not taken; write the value out, or put it at the top, for all disks", clip(n.Value, 50))
	case n.Anchor != "":
		r.failAt(n, path, "an anchor (&%s) is not taken, for there are no aliases", clip(n.Anchor, 50))
	case n.Style&yaml.TaggedStyle != 0:
		r.failAt(n, path, "a tag (%s) is not taken", clip(n.Tag, 50))
	default:
		return false
	}
	return true
}

// value reads the value of a key into settings.
func (r *reader) value(k *key, n *yaml.Node, path string, into *[]setting) {
	add := func(n *yaml.Node, path, replaces, value string) {
		*into = append(*into, setting{Setting{k.flag, value, path, n.Line, n.Column}, replaces})
	}
	switch k.kind {
	case group:
		r.mapping(n, path, k.keys, func(k *key, v *yaml.Node) { r.value(k, v, path+"."+k.name, into) })
	case texts, items:
		if !r.is(n, path, yaml.SequenceNode, "a list") {
			return
		}
		read := r.scalar
		if k.kind == items {
			read = r.item
		}
		for i, one := range n.Content {
			at := fmt.Sprintf("%s[%d]", path, i)
			if v, ok := read(k, one, at); ok {
				add(one, at, "", v)
			}
		}
	case names:
		if !r.is(n, path, yaml.MappingNode, "a mapping") {
			return
		}
		lines := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			name, v := n.Content[i], n.Content[i+1]
			if !r.name(name, path, lines) {
				continue
			}
			at := path + "." + name.Value
			if !k.form.MatchString(name.Value) {
				r.failAt(name, path, "%s: %s", quoted(name.Value), k.why)
			} else if v, ok := r.scalar(&key{}, v, at); ok {
				add(n.Content[i+1], at, k.flag+"="+name.Value, name.Value+"="+v)
			}
		}
	default:
		if v, ok := r.scalar(k, n, path); ok {
			add(n, path, k.flag, v)
		}
	}
}

// item reads an entry of a list of mappings.
func (r *reader) item(k *key, n *yaml.Node, path string) (string, bool) {
	fields, ok := map[string]string{}, true
	seen := r.mapping(n, path, k.keys, func(f *key, v *yaml.Node) {
		value, good := r.scalar(f, v, path+"."+f.name)
		fields[f.name], ok = value, ok && good
	})
	if seen == nil {
		return "", false
	}
	for _, f := range k.need {
		if !slices.Contains(seen, f) {
			r.failAt(n, path, "has no %s", f)
			ok = false
		}
	}
	for _, f := range k.keys {
		for _, other := range f.with {
			if slices.Contains(seen, f.name) && !slices.Contains(seen, other) {
				r.failAt(n, path, "has a %s and no %s", f.name, other)
				ok = false
			}
		}
	}
	// What is unknown or there twice was said.
	if len(seen) != len(n.Content)/2 || !ok {
		return "", false
	}
	value, say := k.join(fields)
	if say != "" {
		r.failAt(n, path, "%s", say)
	}
	return value, say == ""
}

// scalar reads a single value, as the flag takes it.
func (r *reader) scalar(k *key, n *yaml.Node, path string) (string, bool) {
	called := map[kind]string{text: "a string", texts: "a string", names: "a string", amount: "a string or a whole number", number: "a whole number", boolean: "true or false"}[k.kind]
	if !r.is(n, path, yaml.ScalarNode, called) {
		return "", false
	}
	is := resolve(n)
	switch {
	case is == null:
		r.failAt(n, path, "has no value; give %s, or leave the key out", called)
		return "", false
	case k.kind == boolean && is == truth:
		return strings.ToLower(n.Value), true
	case k.kind == boolean && is == words && slices.Contains([]string{"yes", "no", "on", "off", "y", "n"}, strings.ToLower(n.Value)):
		r.failAt(n, path, "%s is a string in YAML 1.2; write true or false", n.Value)
		return "", false
	case (k.kind == number || k.kind == amount) && is == whole:
		v, err := strconv.ParseInt(decimal(n.Value), 0, 64)
		if err != nil || k.most > 0 && (v < 0 || v > k.most) {
			r.failAt(n, path, "%s is out of range", quoted(n.Value))
			return "", false
		}
		return strconv.FormatInt(v, 10), true
	case k.kind == boolean, k.kind == number:
		r.failAt(n, path, "must be %s, and this is %s", called, is)
		return "", false
	case is != words:
		r.failAt(n, path, "must be a string, and %s is %s to YAML; put it in quotes", quoted(n.Value), is)
		return "", false
	}
	v := n.Value
	switch {
	case k.kind != names && k.form != nil && !k.form.MatchString(v):
		r.failAt(n, path, "%s: %s", quoted(v), k.why)
		return "", false
	case k.dashless && v == "-":
		r.failAt(n, path, "a file cannot name a stream of the command; give the flag --%s", k.flag)
		return "", false
	case strings.Contains(v, "\x00"):
		r.failAt(n, path, "has a NUL in it")
		return "", false
	case k.at == file:
		v = underPath(r.file.Folder, v)
	case k.at == dest:
		v = underDest(r.file.Folder, v)
	}
	return v, true
}

// sort is what a plain value is by the core schema of YAML 1.2 (section 10.3.2); the library goes by another version.
type sort string

const (
	null     sort = "nothing"
	truth    sort = "true or false"
	whole    sort = "a whole number"
	fraction sort = "a number"
	words    sort = "a string"
)

var (
	wholeForm    = regexp.MustCompile(`^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$`)
	fractionForm = regexp.MustCompile(`^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN)$`)
)

func resolve(n *yaml.Node) sort {
	if n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return words
	}
	switch n.Value {
	case "", "~", "null", "Null", "NULL":
		return null
	case "true", "True", "TRUE", "false", "False", "FALSE":
		return truth
	}
	switch {
	case wholeForm.MatchString(n.Value):
		return whole
	case fractionForm.MatchString(n.Value):
		return fraction
	}
	return words
}

// decimal takes the zeros off that make a number octal in Go and not in YAML.
func decimal(s string) string {
	if strings.HasPrefix(s, "0o") || strings.HasPrefix(s, "0x") {
		return s
	}
	sign := ""
	if s[0] == '-' || s[0] == '+' {
		sign, s = s[:1], s[1:]
	}
	if s = strings.TrimLeft(s, "0"); s == "" {
		s = "0"
	}
	return sign + s
}

func (r *reader) null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && resolve(n) == null }

func (r *reader) kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return string(resolve(n))
}

// quoted is a value in a message.
func quoted(s string) string { return strconv.Quote(clip(s, 60)) }
