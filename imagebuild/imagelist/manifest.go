package imagelist

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	maxDepth = 256
	// maxMarks bounds the bytes of a document that can begin a node (a node takes some 200 bytes of memory).
	maxMarks = 2 << 20
	// maxVisits bounds the nodes that are looked at in a document; aliases count each time they are followed.
	maxVisits = 8 << 20
	// maxMerges bounds what one mapping merges.
	maxMerges = 10000
)

var (
	lineNumber = regexp.MustCompile(`line (\d+)`)
	// action is a template's {{ where YAML expects a value; inside of a string it may be anything.
	action = regexp.MustCompile(`(?m)^[ \t]*(?:- +)?(?:[^\s:"'#]+:[ \t]+)?(\{\{)`)
	// extraImage is the comment by which "ocne catalog mirror" finds the images that no Pod template names
	// (ocne-catalog(1)).
	extraImage = regexp.MustCompile(`(?m)(?:^|[ \t])#[ \t]*extra-image:[ \t]*(\S+)`)
)

// manifests reads YAML or JSON documents.
func (r *reader) manifests(ctx context.Context, name string, data []byte) error {
	var jsonErr error
	if t := bytes.TrimSpace(data); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		if marks(data) > maxMarks {
			return fmt.Errorf("%s: %w: more than %d fields", name, ErrTooLarge, maxMarks)
		}
		var docs []*yaml.Node
		if docs, jsonErr = jsonDocs(data); jsonErr == nil {
			for i, d := range docs {
				if err := ctx.Err(); err != nil {
					return err
				}
				w := walker{name: name, doc: i + 1}
				if err := w.document(d); err != nil {
					return err
				}
				w.flush(r)
			}
			return nil
		}
		// What is no JSON may still be YAML in flow style.
		if t = bytes.TrimSpace(t[1:]); len(t) == 0 || t[0] != '"' {
			jsonErr = nil
		}
	}
	doc := 0
	for c := range chunks(data) {
		if marks(c.text) > maxMarks {
			return fmt.Errorf("%s:%d: %w: more than %d fields in one document", name, c.line+1, ErrTooLarge, maxMarks)
		}
		dec := yaml.NewDecoder(bytes.NewReader(c.text))
		w := walker{name: name, doc: doc, line: c.line}
		for {
			if err := ctx.Err(); err != nil {
				return err
			}
			var n yaml.Node
			err := dec.Decode(&n)
			if errors.Is(err, io.EOF) {
				break
			}
			doc++
			w.doc = doc
			if err != nil {
				if jsonErr != nil {
					return fmt.Errorf("%s: %w", name, jsonErr)
				}
				return w.syntax(err, c.text)
			}
			if len(n.Content) == 0 {
				continue
			}
			if err := w.document(n.Content[0]); err != nil {
				return err
			}
		}
		for _, m := range extraImage.FindAllSubmatchIndex(c.text, -1) {
			line := c.line + 1 + bytes.Count(c.text[:m[2]], []byte{'\n'})
			ref := string(c.text[m[2]:m[3]])
			if err := check(ref); err != nil {
				return fmt.Errorf("%s:%d: extra-image: %w", name, line, err)
			}
			w.found = append(w.found, found{unambiguous(ref), line, "extra-image"})
		}
		w.flush(r)
	}
	return nil
}

func marks(text []byte) int {
	n := 0
	for _, b := range text {
		switch b {
		case ':', ',', '-', '[', '{', '?', '*':
			n++
		}
	}
	return n
}

type chunk struct {
	text []byte
	line int // lines before it
}

// chunks cuts a YAML stream before each line that begins a document, so that one is in memory at a time.
// Three dashes at a line's beginning are never content (YAML 1.2, section 9.1.2).
func chunks(data []byte) func(yield func(chunk) bool) {
	return func(yield func(chunk) bool) {
		start, startLine, line := 0, 0, 0
		content := false // whether there is more than comments and directives since start
		for pos := 0; pos < len(data); line++ {
			end := len(data)
			if i := bytes.IndexByte(data[pos:], '\n'); i >= 0 {
				end = pos + i + 1
			}
			l := data[pos:end]
			marker := bytes.HasPrefix(l, []byte("---")) && (len(l) == 3 || strings.IndexByte(" \t\r\n", l[3]) >= 0)
			if marker && content {
				if !yield(chunk{data[start:pos], startLine}) {
					return
				}
				start, startLine, content = pos, line, false
			}
			t := bytes.TrimSpace(l)
			if marker {
				t = bytes.TrimSpace(t[3:])
			}
			if bytes.Equal(t, []byte("...")) {
				// Directives may follow, which belong to the next document.
				content = false
			} else if marker || len(t) > 0 && t[0] != '#' && t[0] != '%' {
				content = true
			}
			pos = end
		}
		if start < len(data) {
			yield(chunk{data[start:], startLine})
		}
	}
}

type found struct {
	ref   string // in the form of a plain list
	line  int
	where string
}

// walker looks for images in the documents of one text.
type walker struct {
	name   string
	doc    int // the document's number, from 1
	line   int // lines before the text that nodes count their lines in
	kind   string
	object string
	visits int
	found  []found
}

// flush hands over what was found, in the text's order.
func (w *walker) flush(r *reader) {
	slices.SortStableFunc(w.found, func(a, b found) int { return a.line - b.line })
	for _, f := range w.found {
		r.add(f.ref, fmt.Sprintf("%s:%d: %s", w.name, f.line, f.where))
	}
	w.found = nil
}

func (w *walker) fail(n *yaml.Node, format string, a ...any) error {
	what := fmt.Sprintf("document %d", w.doc)
	if w.object != "" {
		what += ", " + w.object
	}
	return fmt.Errorf("%s:%d: %s: %w", w.name, w.line+n.Line, what, fmt.Errorf(format, a...))
}

// syntax tells the line of a YAML error in the whole text.
func (w *walker) syntax(err error, text []byte) error {
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	at := ""
	if m := lineNumber.FindStringSubmatchIndex(msg); m != nil {
		if n, e := strconv.Atoi(msg[m[2]:m[3]]); e == nil {
			at = fmt.Sprintf(":%d", w.line+n)
			msg = strings.TrimPrefix(msg[:m[0]]+msg[m[1]:], ": ")
		}
	}
	if m := action.FindSubmatchIndex(text); m != nil {
		at = fmt.Sprintf(":%d", w.line+1+bytes.Count(text[:m[2]], []byte{'\n'}))
		return fmt.Errorf("%s%s: document %d: %w (%s)", w.name, at, w.doc, ErrTemplate, msg)
	}
	return fmt.Errorf("%s%s: document %d: %s", w.name, at, w.doc, msg)
}

func (w *walker) document(n *yaml.Node) error {
	w.visits, w.object, w.kind = 0, "", ""
	if n = resolve(n); n == nil {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		return w.manifest(n)
	case yaml.SequenceNode:
		for i, e := range n.Content {
			if e = resolve(e); e != nil && e.Kind == yaml.MappingNode {
				if err := w.manifest(e); err != nil {
					return err
				}
			} else if err := w.listed(e, fmt.Sprintf("[%d]", i)); err != nil {
				return err
			}
		}
		return nil
	}
	if n.Tag == "!!null" {
		return nil
	}
	return w.fail(n, "this is neither a Kubernetes object nor a list of images")
}

// listed takes an element of a list of references.
func (w *walker) listed(n *yaml.Node, where string) error {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		if n == nil {
			n = &yaml.Node{Line: 1}
		}
		return w.fail(n, "%s is not a reference", where)
	}
	if err := checkListed(n.Value); err != nil {
		return w.fail(n, "%w", err)
	}
	w.found = append(w.found, found{n.Value, w.line + n.Line, where})
	return nil
}

// manifest reads an object that stands by itself.
func (w *walker) manifest(n *yaml.Node) error {
	w.object = ""
	kind := str(w.get(n, "kind"))
	if kind == "" {
		if images := w.get(n, "images"); images != nil && images.Kind == yaml.SequenceNode {
			return w.images(images)
		}
		return w.fail(n, "this is neither a Kubernetes object (it has no kind) nor a list of images; a chart is given by its folder")
	}
	return w.typed(n, kind, "", 0)
}

func (w *walker) images(n *yaml.Node) error {
	for i, e := range n.Content {
		if err := w.listed(resolve(e), fmt.Sprintf("images[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) typed(n *yaml.Node, kind, path string, depth int) error {
	if err := w.visit(n, depth); err != nil {
		return err
	}
	group, _, _ := strings.Cut(str(w.get(n, "apiVersion")), "/")
	if items := w.get(n, "items"); strings.HasSuffix(kind, "List") && items != nil && items.Kind == yaml.SequenceNode {
		for i, e := range items.Content {
			if e = resolve(e); e == nil || e.Kind != yaml.MappingNode {
				continue
			}
			k := str(w.get(e, "kind"))
			if k == "" {
				// The items of a typed list (PodList) leave it out.
				k = strings.TrimSuffix(kind, "List")
			}
			if err := w.typed(e, k, fmt.Sprintf("%sitems[%d].", path, i), depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	meta := w.get(n, "metadata")
	id := str(w.get(meta, "name"))
	if id == "" {
		id = str(w.get(meta, "generateName"))
	}
	if ns := str(w.get(meta, "namespace")); ns != "" {
		id = ns + "/" + id
	}
	w.kind = kind
	w.object = strings.TrimSuffix(printable(kind)+" "+printable(id), " ")

	switch {
	case kind == "CustomResourceDefinition":
		return nil
	case kind == "Kustomization" && group == "kustomize.config.k8s.io":
		return w.fail(n, "%w", kustomization("this", "DIR"))
	case kind == "Images" && group == "output.kubeadm.k8s.io":
		if images := w.get(n, "images"); images != nil && images.Kind == yaml.SequenceNode {
			return w.images(images)
		}
		return nil
	case kind == "ClusterConfiguration" && group == "kubeadm.k8s.io":
		return w.fail(n, "no image has its whole name here: give what kubeadm makes of it (kubeadm config images list --config FILE | nodebake images-in -)")
	case kind == "KubeletConfiguration" && group == "kubelet.config.k8s.io":
		return w.image(w.get(n, "podInfraContainerImage"), path+"podInfraContainerImage")
	case (kind == "InitConfiguration" || kind == "JoinConfiguration") && group == "kubeadm.k8s.io":
		return w.kubeletArgs(w.get(w.get(n, "nodeRegistration"), "kubeletExtraArgs"), path+"nodeRegistration.kubeletExtraArgs")
	}
	pairs, err := w.pairs(n, depth)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if k := p.key.Value; k == "metadata" || k == "status" {
			continue
		}
		if err := w.field(p, path, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// kubeletArgs looks for the pause image among kubelet's flags: a mapping up to kubeadm's v1beta3, a list
// of name and value since v1beta4.
func (w *walker) kubeletArgs(n *yaml.Node, path string) error {
	const flag = "pod-infra-container-image"
	if n == nil {
		return nil
	}
	if n.Kind == yaml.MappingNode {
		return w.image(w.get(n, flag), path+"."+flag)
	}
	for i, e := range n.Content {
		if e = resolve(e); str(w.get(e, "name")) == flag {
			if err := w.image(w.get(e, "value"), fmt.Sprintf("%s[%d].value", path, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) visit(n *yaml.Node, depth int) error {
	if depth > maxDepth {
		return w.fail(n, "%w: nested more than %d deep", ErrTooLarge, maxDepth)
	}
	if w.visits++; w.visits > maxVisits {
		return w.fail(n, "%w: more than %d values", ErrTooLarge, maxVisits)
	}
	return nil
}

// walk looks below n. path is the field that n is, without a dot at its end.
func (w *walker) walk(n *yaml.Node, path string, depth int) error {
	if n = resolve(n); n == nil {
		return nil
	}
	if err := w.visit(n, depth); err != nil {
		return err
	}
	switch n.Kind {
	case yaml.SequenceNode:
		for i, e := range n.Content {
			// Most values are plain text; making their paths would cost the most of all.
			if e = resolve(e); e == nil || e.Kind == yaml.ScalarNode {
				w.visits++
				continue
			}
			if err := w.walk(e, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		pairs, err := w.pairs(n, depth)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if err := w.field(p, path+".", depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// field takes the images that a field of a name known for them holds, and looks below it.
func (w *walker) field(p pair, prefix string, depth int) error {
	v := resolve(p.value)
	if v == nil || v.Kind == yaml.ScalarNode {
		w.visits++
		return nil
	}
	path := prefix + p.key.Value
	if v.Kind == yaml.SequenceNode {
		var take func(*yaml.Node, string) error
		switch k := p.key.Value; {
		case k == "containers", k == "initContainers", k == "ephemeralContainers":
			take = w.container
		case k == "volumes":
			take = func(e *yaml.Node, at string) error {
				return w.image(w.get(w.get(e, "image"), "reference"), at+".image.reference")
			}
		case k == "relatedImages" && w.kind == "ClusterServiceVersion":
			take = func(e *yaml.Node, at string) error { return w.image(w.get(e, "image"), at+".image") }
		}
		if take != nil {
			for i, e := range v.Content {
				if err := w.visit(e, depth); err != nil {
					return err
				}
				if err := take(resolve(e), fmt.Sprintf("%s[%d]", path, i)); err != nil {
					return err
				}
			}
		}
	}
	return w.walk(v, path, depth)
}

func (w *walker) container(n *yaml.Node, path string) error {
	if err := w.image(w.get(n, "image"), path+".image"); err != nil {
		return err
	}
	env := w.get(n, "env")
	if env == nil || env.Kind != yaml.SequenceNode {
		return nil
	}
	for _, e := range env.Content {
		if err := w.visit(e, 0); err != nil {
			return err
		}
		e = resolve(e)
		if name := str(w.get(e, "name")); strings.HasPrefix(name, "RELATED_IMAGE_") {
			if err := w.image(w.get(e, "value"), path+".env "+printable(name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// image takes the reference n, if it is one: an operator's resource may have a mapping in its place, and
// what is empty is the default of someone else.
func (w *walker) image(n *yaml.Node, path string) error {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Value == "" {
		return nil
	}
	if n.Tag != "!!str" {
		return w.fail(n, "%s: %q is not a string", printable(path), clip(n.Value))
	}
	if err := check(n.Value); err != nil {
		return w.fail(n, "%s: %w", printable(path), err)
	}
	w.found = append(w.found, found{unambiguous(n.Value), w.line + n.Line, w.object + ": " + printable(path)})
	return nil
}

type pair struct{ key, value *yaml.Node }

// pairs gives a mapping's fields, those of its merge keys (<<) last and only where it has none of that name.
func (w *walker) pairs(n *yaml.Node, depth int) ([]pair, error) {
	out := make([]pair, 0, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := resolve(n.Content[i])
		if k == nil || k.Kind != yaml.ScalarNode {
			return nil, w.fail(n.Content[i], "a field's name is not a string: %w", ErrTemplate)
		}
		if k.Tag == "!!merge" {
			merged = append(merged, n.Content[i+1])
			continue
		}
		out = append(out, pair{k, n.Content[i+1]})
	}
	if merged == nil {
		return out, nil
	}
	have := map[string]bool{}
	for _, p := range out {
		have[p.key.Value] = true
	}
	for i := 0; i < len(merged); i++ {
		m := resolve(merged[i])
		if m == nil {
			continue
		}
		if err := w.visit(m, depth); err != nil {
			return nil, err
		}
		switch m.Kind {
		case yaml.SequenceNode:
			if merged = append(merged, m.Content...); len(merged) > maxMerges {
				return nil, w.fail(m, "%w: more than %d merged mappings", ErrTooLarge, maxMerges)
			}
		case yaml.MappingNode:
			below, err := w.pairs(m, depth+1)
			if err != nil {
				return nil, err
			}
			w.visits += len(below)
			for _, p := range below {
				if !have[p.key.Value] {
					have[p.key.Value] = true
					out = append(out, p)
				}
			}
		}
	}
	return out, nil
}

// get gives the value of a field, or nil. Of two of the same name the last counts, as for kubectl.
func (w *walker) get(n *yaml.Node, name string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	merge := false
	w.visits += len(n.Content) / 2
	for i := len(n.Content) - 2; i >= 0; i -= 2 {
		k := n.Content[i]
		if k.Kind == yaml.ScalarNode && k.Value == name {
			return resolve(n.Content[i+1])
		}
		merge = merge || k.Tag == "!!merge"
	}
	if merge {
		// A merge that goes too far is reported by the walk over the same mapping.
		pairs, _ := w.pairs(n, 0)
		for _, p := range pairs {
			if p.key.Value == name {
				return resolve(p.value)
			}
		}
	}
	return nil
}

// resolve follows an alias; nil where it leads nowhere.
func resolve(n *yaml.Node) *yaml.Node {
	for i := 0; n != nil && n.Kind == yaml.AliasNode; i++ {
		if i == maxDepth {
			return nil
		}
		n = n.Alias
	}
	return n
}

func str(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		return ""
	}
	return n.Value
}

// printable keeps control characters of a file out of messages.
func printable(s string) string {
	s = clip(s)
	for _, c := range s {
		if !strconv.IsPrint(c) {
			return strconv.Quote(s)
		}
	}
	return s
}
