package bakefile

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
)

// compiled is the schema as a validator that is not ours reads it.
func compiled(t testing.TB) *jsonschema.Schema {
	t.Helper()
	text, err := json.Marshal(Schema(func(flag string) string { return "help of --" + flag }))
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	// The draft's own schema comes with the validator, which holds ours against it.
	c := jsonschema.NewCompiler()
	if err := c.AddResource("bake.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("bake.json")
	if err != nil {
		t.Fatal(err)
	}
	if s.DraftVersion != 2020 {
		t.Errorf("the validator takes it for draft %d", s.DraftVersion)
	}
	return s
}

// value is a document as a schema sees it: JSON, by the core schema of YAML.
func value(t testing.TB, n *yaml.Node) any {
	t.Helper()
	switch n.Kind {
	case yaml.DocumentNode:
		return value(t, n.Content[0])
	case yaml.SequenceNode:
		list := []any{}
		for _, c := range n.Content {
			list = append(list, value(t, c))
		}
		return list
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			m[n.Content[i].Value] = value(t, n.Content[i+1])
		}
		return m
	}
	switch resolve(n) {
	case null:
		return nil
	case truth:
		return strings.EqualFold(n.Value, "true")
	case whole:
		i, err := strconv.ParseInt(decimal(n.Value), 0, 64)
		if err != nil {
			t.Fatal(err)
		}
		return json.Number(strconv.FormatInt(i, 10))
	case fraction:
		return json.Number("1.5")
	}
	return n.Value
}

// agree fails the test unless the parser and the schema say the same of a file.
func agree(t testing.TB, s *jsonschema.Schema, text string) bool {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	_, parsed := Parse("bake.yaml", []byte(text))
	valid := s.Validate(value(t, &doc))
	if (parsed == nil) != (valid == nil) {
		t.Errorf("parser: %v\nschema: %v\n%s", parsed, valid, text)
	}
	return parsed == nil
}

func TestSchemaAgrees(t *testing.T) {
	s := compiled(t)
	for _, c := range []struct {
		text string
		good bool
	}{
		{"base: b\nimages: [x]\noutput: o\n", true},
		{"disks: [{name: a, output: o}]\n", true},
		{"base: 5\n", false}, {"base: [x]\n", false}, {"base:\n", false}, {"bass: b\n", false}, {"images: x\n", false}, {"images: [5]\n", false}, {"images: [{}]\n", false}, {"images: []\n", true},
		{"size: 20G\n", true}, {"size: 21474836480\n", true}, {"size: 1.5\n", false}, {"size: true\n", false}, {"root: 3\n", true}, {"root: UUID\n", true},
		{"overlay: true\n", true}, {"overlay: yes\n", false}, {"overlay: 'true'\n", false}, {"overlay: 1\n", false},
		{"tags: {a: b}\n", true}, {"tags: {a=b: c}\n", false}, {"tags: {'': c}\n", false}, {"tags: {a: 5}\n", false}, {"tags: [a]\n", false},
		{"imagesFrom: ['-']\n", false}, {"imagesFrom: [a-]\n", true}, {"report: '-'\n", false}, {"charts: {values: ['-']}\n", false}, {"charts: {set: ['-']}\n", true},
		{"sources: {parallel: 3}\n", true}, {"sources: {parallel: '3'}\n", false}, {"sources: {paralel: 3}\n", false}, {"sources: {certDirs: [{dir: d}, {dir: d, registry: 'h:1'}]}\n", true},
		{"sources: {certDirs: [{registry: h}]}\n", false}, {"sources: {certDirs: [d]}\n", false}, {"sources: []\n", false}, {"sources: {}\n", true},
		{"customize: {copy: [{src: a, dst: /b}]}\n", true}, {"customize: {copy: [{src: a, dst: /b, mode: '0644'}]}\n", true}, {"customize: {copy: [{src: a, dst: /b, mode: 0644}]}\n", false},
		{"customize: {copy: [{src: a, dst: /b, mode: '0888'}]}\n", false}, {"customize: {copy: [{src: a, dst: /b, mode: ''}]}\n", false}, {"customize: {copy: [{src: a, dst: /b, uid: 1, gid: 1}]}\n", false},
		{"customize: {copy: [{src: a, dst: /b, mode: '7', uid: 1, gid: 4294967294}]}\n", true}, {"customize: {copy: [{src: a, dst: /b, mode: '7', uid: 1, gid: 4294967295}]}\n", false},
		{"customize: {copy: [{src: a, dst: /b, mode: '7', uid: -1, gid: 1}]}\n", false}, {"customize: {copy: [{src: 'a:b', dst: /b}]}\n", false}, {"customize: {copy: [{dst: /b}]}\n", false},
		{"customize: {write: [{path: /a, text: ''}]}\n", true}, {"customize: {write: [{path: /a=, text: ''}]}\n", false}, {"customize: {kargs: {append: [a]}}\n", true}, {"customize: {kargs: [a]}\n", false},
		{"disks: []\n", false}, {"disks: {}\n", false}, {"disks: [{}]\n", false}, {"disks: [{name: -}]\n", false}, {"disks: [{name: a, kind: Bake}]\n", false}, {"disks: [{name: a, disks: []}]\n", false},
		{"name: a\n", false}, {"disks: [{name: 5}]\n", false}, {"disks: [{name: '5', size: 1.0G}]\n", true}, {"disks:\n" + manyDisks(maxDisks), true}, {"disks:\n" + manyDisks(maxDisks+1), false},
	} {
		if good := agree(t, s, head+c.text); good != c.good {
			t.Errorf("taken: %v\n%s", good, c.text)
		}
	}
	for _, c := range []string{"apiVersion: nodebake/v1\n", "kind: Bake\n", "apiVersion: nodebake/v2\nkind: Bake\n", "apiVersion: nodebake/v1\nkind: bake\n", "apiVersion: 1\nkind: Bake\n", "[]\n", "5\n"} {
		if agree(t, s, c) {
			t.Errorf("taken:\n%s", c)
		}
	}
}

func TestSchemaTakesExamples(t *testing.T) {
	s := compiled(t)
	names, err := filepath.Glob("../../examples/bakefile/*.yaml")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !agree(t, s, string(text)) {
			t.Errorf("%s is refused", name)
		}
	}
}

func manyDisks(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "- name: d%d\n", i)
	}
	return b.String()
}

// TestSchemaAgreesRandom makes files of the table, most of them wrong in a place or two. NODEBAKE_SEED repeats a run.
func TestSchemaAgreesRandom(t *testing.T) {
	seed := rand.Int63()
	if v := os.Getenv("NODEBAKE_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseInt(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	g := &maker{rand.New(rand.NewSource(seed))}
	s := compiled(t)
	good := 0
	for n := 0; n < 3000 && !t.Failed(); n++ {
		if agree(t, s, head+g.mapping(topKeys[2:], "", 12)) {
			good++
		}
	}
	if good < 100 || good > 2900 {
		t.Errorf("%d of 3000 files were good", good)
	}
}

type maker struct{ *rand.Rand }

func (g *maker) one(of ...string) string { return of[g.Intn(len(of))] }

// mapping writes some of the keys, one in a line, below those of an indent.
func (g *maker) mapping(keys []key, indent string, odds int) string {
	var b strings.Builder
	for i := range keys {
		k := &keys[i]
		if g.Intn(odds) > 1 && k.name != name.name && k.name != "dir" && k.name != "src" && k.name != "dst" || g.Intn(50) == 0 {
			continue
		}
		called := k.name
		if g.Intn(150) == 0 {
			called += "x"
		}
		fmt.Fprintf(&b, "%s%s:%s", indent, called, g.value(k, indent))
	}
	if b.Len() == 0 && indent != "" {
		return indent + "{}\n"
	}
	return b.String()
}

func (g *maker) value(k *key, indent string) string {
	if g.Intn(60) == 0 {
		return " " + g.one("5", "1.5", "true", "[]", "{}", "~", "", "text", "'5'", "[a]", "{a: b}", "[5]") + "\n"
	}
	switch k.kind {
	case group:
		return "\n" + g.mapping(k.keys, indent+"  ", 6)
	case items:
		if k.name == disks.name {
			var b strings.Builder
			for i := range 1 + g.Intn(3) {
				rest := g.mapping(settings, indent+"  ", 20)
				fmt.Fprintf(&b, "%s- name: d%d\n%s", indent, i, strings.TrimPrefix(rest, indent+"  {}\n"))
			}
			return "\n" + b.String()
		}
		var list []string
		for range 1 + g.Intn(3) {
			var fields []string
			for i := range k.keys {
				f := &k.keys[i]
				if g.Intn(2) > 0 || f.name == "src" || f.name == "dst" || f.name == "dir" || f.name == "path" || f.name == "text" {
					fields = append(fields, f.name+":"+strings.TrimSuffix(g.value(f, ""), "\n"))
				}
			}
			list = append(list, "{"+strings.Join(fields, ", ")+"}")
		}
		return " [" + strings.Join(list, ", ") + "]\n"
	case texts:
		return " " + g.one("[]", "[a]", "[a, b]", "['1', x]") + "\n"
	case names:
		return " " + g.one("{}", "{a: b}", "{a: b, c: d}") + "\n"
	case amount:
		return " " + g.one("20G", "5", "'5'", "auto") + "\n"
	case number:
		return " " + g.one("0", "5", "007", "0x7") + "\n"
	case boolean:
		return " " + g.one("true", "False") + "\n"
	}
	if k.form == octal {
		return " " + g.one("'0644'", "'7'", "\"1777\"") + "\n"
	}
	return " " + g.one("a", "'5'", "yes", "2026-01-01", "\"a b\"", "''") + "\n"
}

// TestSchemaHelp finds words for every key.
func TestSchemaHelp(t *testing.T) {
	var look func(path string, s map[string]any)
	look = func(path string, s map[string]any) {
		if p, ok := s["properties"].(map[string]any); ok {
			for k, v := range p {
				v := v.(map[string]any)
				if v["description"] == nil && v["$ref"] == nil {
					t.Errorf("%s.%s has no description", path, k)
				}
				look(path+"."+k, v)
			}
		}
		if i, ok := s["items"].(map[string]any); ok {
			look(path+"[]", i)
		}
	}
	s := Schema(func(string) string { return "help" })
	look("", s)
	for k, v := range s["$defs"].(map[string]any) {
		look(k, map[string]any{"properties": map[string]any{k: v}})
	}
}
