package storageconf

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"go.podman.io/storage/types"
)

var update = flag.Bool("update", false, "write the golden files anew")

const store = "/var/images"

// load asks the storage library itself what a file says.
func load(t testing.TB, conf []byte) types.StoreOptions {
	t.Helper()
	f := filepath.Join(t.TempDir(), "storage.conf")
	if err := os.WriteFile(f, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", f)
	opts, err := types.LoadStoreOptions(types.LoadOptions{})
	if err != nil {
		t.Fatalf("the storage library refuses the file: %v\n%s", err, conf)
	}
	return opts
}

func imageStores(o types.StoreOptions) (stores, rest []string) {
	for _, opt := range o.GraphDriverOptions {
		if s, ok := strings.CutPrefix(opt, "imagestore="); ok {
			stores = append(stores, s)
		} else {
			rest = append(rest, opt)
		}
	}
	return stores, rest
}

// proveEdit holds one edit against every promise of AddStore.
func proveEdit(t testing.TB, in, out []byte) {
	t.Helper()
	start := 0
	for start < len(in) && in[start] == out[start] {
		start++
	}
	grown := len(out) - len(in)
	if grown <= 0 || !bytes.Equal(out[start+grown:], in[start:]) {
		t.Errorf("without the inserted bytes the file is not the old one:\n%s", cmp.Diff(string(in), string(out)))
	}
	before, after := load(t, in), load(t, out)
	old, oldRest := imageStores(before)
	got, rest := imageStores(after)
	if want := append([]string{store}, old...); !slices.Equal(got, want) {
		t.Errorf("the storage library sees the stores %q, want %q", got, want)
	}
	if !slices.Equal(rest, oldRest) {
		t.Errorf("driver options changed from %q to %q", oldRest, rest)
	}
	before.GraphDriverOptions, after.GraphDriverOptions = nil, nil
	if len(bytes.TrimSpace(in)) == 0 {
		before.GraphDriverName = "overlay" // Default sets it
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("other settings changed:\n%s", d)
	}
	again, changed, err := AddStore(out, store)
	if err != nil || changed || !bytes.Equal(again, out) {
		t.Errorf("a second AddStore: changed %v, error %v", changed, err)
	}
}

func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			in, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			out, changed, err := AddStore(in, store)
			if err != nil || !changed {
				t.Fatalf("changed %v, error %v", changed, err)
			}
			proveEdit(t, in, out)
			if *update {
				if err := os.WriteFile(f+".golden", out, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(f + ".golden")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(out)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAddStore(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", string(Default(store))},
		{"blank", "\n \n", "\n \n" + string(Default(store))},
		{"only comments", "# nothing\n", "# nothing\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\n"},
		{"only a comment, no newline", "# nothing", "# nothing\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]"},
		{"empty array", "[storage.options]\nadditionalimagestores = []\n", "[storage.options]\nadditionalimagestores = [\"/var/images\"]\n"},
		{"empty array, spaces", "[storage.options]\nadditionalimagestores=[ ] # x\n", "[storage.options]\nadditionalimagestores=[\"/var/images\" ] # x\n"},
		{"one line", "[storage.options]\nadditionalimagestores = ['/a', \"/b\",]", "[storage.options]\nadditionalimagestores = [\"/var/images\", '/a', \"/b\",]"},
		{"lines", "[storage.options]\nadditionalimagestores = [\n  '/a',\n  \"/b\"\n]\n", "[storage.options]\nadditionalimagestores = [\n  \"/var/images\",\n  '/a',\n  \"/b\"\n]\n"},
		{"comma first", "[storage.options]\nadditionalimagestores = [\n  '/a'\n, '/b'\n]\n", "[storage.options]\nadditionalimagestores = [\n  \"/var/images\",\n  '/a'\n, '/b'\n]\n"},
		{"empty lines", "[storage.options]\nadditionalimagestores = [\n]\n", "[storage.options]\nadditionalimagestores = [\n  \"/var/images\",\n]\n"},
		{"comments in the array", "[storage.options]\n additionalimagestores = [ # none ]\n\t# \"/x\",\n ]\n", "[storage.options]\n additionalimagestores = [ # none ]\n\t\"/var/images\",\n\t# \"/x\",\n ]\n"},
		{"comment before the first", "[storage.options]\nadditionalimagestores = [ # a, b\n\t# \"/x\",\n\t'/a'\n]\n", "[storage.options]\nadditionalimagestores = [ # a, b\n\t# \"/x\",\n\t\"/var/images\",\n\t'/a'\n]\n"},
		{"multi-line strings", "[storage.options]\nadditionalimagestores = [\"\"\"/a\"\"\", '''/b''']\n", "[storage.options]\nadditionalimagestores = [\"/var/images\", \"\"\"/a\"\"\", '''/b''']\n"},
		{"append mark", "[storage.options]\nadditionalimagestores = [{append = true}, \"/a\"]\n", "[storage.options]\nadditionalimagestores = [\"/var/images\", {append = true}, \"/a\"]\n"},
		{"quoted key", "[storage.\"options\"]\n\"additionalimagestores\" = []\n", "[storage.\"options\"]\n\"additionalimagestores\" = [\"/var/images\"]\n"},
		{"key with equals before it", "[storage.options.\"a=b\"]\nx = 1\n[storage.options]\n'additionalimagestores' =\t['/a']\n", "[storage.options.\"a=b\"]\nx = 1\n[storage.options]\n'additionalimagestores' =\t[\"/var/images\", '/a']\n"},
		{"other case", "[Storage.Options]\nAdditionalImageStores = []\n", "[Storage.Options]\nAdditionalImageStores = [\"/var/images\"]\n"},
		{"dotted at the root", "storage.options.additionalimagestores = ['/a']\n", "storage.options.additionalimagestores = [\"/var/images\", '/a']\n"},
		{"dotted in storage", "[storage]\noptions . additionalimagestores = []\n", "[storage]\noptions . additionalimagestores = [\"/var/images\"]\n"},
		{"dotted sibling", "[storage]\n  options.mountopt = \"nodev\" # x\ndriver = \"overlay\"\n", "[storage]\n  options.mountopt = \"nodev\" # x\n  options.additionalimagestores = [\"/var/images\"]\ndriver = \"overlay\"\n"},
		{"dotted deep sibling, no newline", "storage.options.overlay.mountopt = \"nodev\"", "storage.options.overlay.mountopt = \"nodev\"\nstorage.options.additionalimagestores = [\"/var/images\"]"},
		{"dotted storage", "storage.driver = \"overlay\"\n[other]\n", "storage.driver = \"overlay\"\nstorage.options.additionalimagestores = [\"/var/images\"]\n[other]\n"},
		{"inline options", "[storage]\noptions = {mountopt = \"nodev\"}\n", "[storage]\noptions = {additionalimagestores = [\"/var/images\"], mountopt = \"nodev\"}\n"},
		{"inline options, empty", "[storage]\noptions = {}\n", "[storage]\noptions = {additionalimagestores = [\"/var/images\"]}\n"},
		{"inline with the array", "storage = {driver = \"overlay\", options = {additionalimagestores = ['/a']}}\n", "storage = {driver = \"overlay\", options = {additionalimagestores = [\"/var/images\", '/a']}}\n"},
		{"inline storage", "storage = { driver = \"overlay\" }\n", "storage = {options.additionalimagestores = [\"/var/images\"],  driver = \"overlay\" }\n"},
		{"inline storage, dotted", "storage = { options.mountopt = \"nodev\" }\n", "storage = {options.additionalimagestores = [\"/var/images\"],  options.mountopt = \"nodev\" }\n"},
		{"commented out", "[storage.options]\nsize = \"\"\n# additionalimagestores = []\n\n# more\n", "[storage.options]\nsize = \"\"\n# additionalimagestores = []\nadditionalimagestores = [\"/var/images\"]\n\n# more\n"},
		{"commented out over lines", "[storage.options]\n  #additionalimagestores = [\n  #  \"/a\",\n  #]\n  # next\n", "[storage.options]\n  #additionalimagestores = [\n  #  \"/a\",\n  #]\n  additionalimagestores = [\"/var/images\"]\n  # next\n"},
		{"commented out, no newline", "[storage.options]\n# additionalimagestores = []", "[storage.options]\n# additionalimagestores = []\nadditionalimagestores = [\"/var/images\"]"},
		{"commented out, never closed", "[storage.options]\n# additionalimagestores = [\n\n# ]\n", "[storage.options]\n# additionalimagestores = [\nadditionalimagestores = [\"/var/images\"]\n\n# ]\n"},
		{"commented out in another table", "[storage.options]\n[storage.options.overlay]\n# additionalimagestores = []\n", "[storage.options]\nadditionalimagestores = [\"/var/images\"]\n[storage.options.overlay]\n# additionalimagestores = []\n"},
		{"commented out in an array", "[storage.options]\nx = [\n# additionalimagestores = []\n]\n", "[storage.options]\nadditionalimagestores = [\"/var/images\"]\nx = [\n# additionalimagestores = []\n]\n"},
		{"in a string only", "[storage.options]\nx = \"\"\"\n# additionalimagestores = []\n[storage.options]\n\"\"\"\n", "[storage.options]\nadditionalimagestores = [\"/var/images\"]\nx = \"\"\"\n# additionalimagestores = []\n[storage.options]\n\"\"\"\n"},
		{"header at the end", "[storage.options]", "[storage.options]\nadditionalimagestores = [\"/var/images\"]"},
		{"no options", "[storage]\ndriver = \"overlay\"\n", "[storage]\ndriver = \"overlay\"\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\n"},
		{"no options, other tables after", "[storage]\ndriver = \"overlay\"\n# x = 1\n\n# of other\n[other]\n", "[storage]\ndriver = \"overlay\"\n# x = 1\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\n\n# of other\n[other]\n"},
		{"subtables only", "# top\n\n# of overlay\n[storage.options.overlay]\nmountopt = \"nodev\"\n", "# top\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\n\n# of overlay\n[storage.options.overlay]\nmountopt = \"nodev\"\n"},
		{"subtables first", "[storage.options.overlay]\nmountopt = \"nodev\"\n[storage]\ndriver = \"overlay\"\n", "[storage.options.overlay]\nmountopt = \"nodev\"\n[storage]\ndriver = \"overlay\"\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\n"},
		{"subtables before options", "[storage.options.overlay]\nmountopt = \"nodev\"\n[storage.options]\nsize = \"\"\n", "[storage.options.overlay]\nmountopt = \"nodev\"\n[storage.options]\nadditionalimagestores = [\"/var/images\"]\nsize = \"\"\n"},
		{"no storage", "[other]\nx = 1", "[other]\nx = 1\n\n[storage.options]\nadditionalimagestores = [\"/var/images\"]"},
		{"CRLF", "[storage]\r\ndriver = \"overlay\"\r\n\r\n[storage.options]\r\n", "[storage]\r\ndriver = \"overlay\"\r\n\r\n[storage.options]\r\nadditionalimagestores = [\"/var/images\"]\r\n"},
		{"CRLF array", "[storage.options]\r\nadditionalimagestores = [\r\n]\r\n", "[storage.options]\r\nadditionalimagestores = [\r\n  \"/var/images\",\r\n]\r\n"},
		{"byte order mark", bom + "[storage.options]\nadditionalimagestores = []\n", bom + "[storage.options]\nadditionalimagestores = [\"/var/images\"]\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := []byte(c.in)
			out, changed, err := AddStore(in, store+"/")
			if err != nil || !changed {
				t.Fatalf("changed %v, error %v", changed, err)
			}
			if string(in) != c.in {
				t.Error("the input was modified")
			}
			if d := cmp.Diff(c.want, string(out)); d != "" {
				t.Error(d)
			}
			proveEdit(t, in, out)
		})
	}
}

func TestAddStoreListedAlready(t *testing.T) {
	for _, conf := range []string{
		`storage.options.additionalimagestores = ["/var/images"]`,
		`storage.options.additionalimagestores = ["/a", '/var//images/./']`,
		`storage.options.additionalimagestores = ["/a,/var/images"]`,
		"[storage.options]\nadditionalimagestores = [\n\"\\u002fvar/images\", # here\n]",
	} {
		out, changed, err := AddStore([]byte(conf), store)
		if err != nil || changed || string(out) != conf {
			t.Errorf("%s: changed %v, error %v, %q", conf, changed, err, out)
		}
		// The engine's library agrees that it is there.
		got, _ := imageStores(load(t, []byte(conf)))
		if !lists(strings.Join(got, ","), store) {
			t.Errorf("%s: the library sees %q", conf, got)
		}
	}
}

func TestAddStoreErrors(t *testing.T) {
	for _, c := range []struct {
		name, conf, store string
		line, column      int
		is                error
		says              string
	}{
		{name: "syntax", conf: "[storage]\ndriver = overlay\n", line: 2, column: 10},
		{name: "open array", conf: "[storage.options]\nadditionalimagestores = [\n", line: 2, column: 26},
		{name: "key twice", conf: "[storage]\ndriver = \"a\"\ndriver = \"b\"\n", line: 3, column: 1},
		{name: "table twice", conf: "[storage]\n[storage]\n", line: 2, column: 2},
		{name: "binary", conf: "\x00\x01\x02", line: 1, column: 1},
		{name: "not a list", conf: "storage.options.additionalimagestores = \"/a\"\n", says: "storage.options.additionalimagestores must be an array of strings"},
		{name: "list of numbers", conf: "storage.options.additionalimagestores = [1]\n", says: "must be an array of strings"},
		{name: "list of lists", conf: "storage.options.additionalimagestores = [[\"/a\"]]\n", says: "must be an array of strings"},
		{name: "unknown mark", conf: "storage.options.additionalimagestores = [{prepend = true}]\n", says: "must be an array of strings"},
		{name: "driver is a number", conf: "storage.driver = 1\n", says: "storage.driver must be a string"},
		{name: "storage is a number", conf: "storage = 1\n", says: "storage must be a table"},
		{name: "options is a list", conf: "storage.options = []\n", says: "storage.options must be a table"},
		{name: "array of tables", conf: "[[storage]]\ndriver = \"overlay\"\n", says: "storage must be a table"},
		{name: "array of option tables", conf: "[[storage.options]]\n", says: "storage.options must be a table"},
		{name: "two spellings", conf: "[storage]\n[Storage.options]\n", is: ErrUnsupported, says: `["Storage" "storage"]`},
		{name: "huge", conf: "#" + strings.Repeat(" ", maxSize), is: ErrUnsupported},
		{name: "relative", store: "var/images", is: ErrStore},
		{name: "empty", is: ErrStore, store: ""},
		{name: "root", is: ErrStore, store: "/x/.."},
		{name: "comma", is: ErrStore, store: "/a,b"},
		{name: "colon", is: ErrStore, store: "/a:b"},
		{name: "backslash", is: ErrStore, store: `/a\b`},
		{name: "newline", is: ErrStore, store: "/a\nb"},
		{name: "space", is: ErrStore, store: "/a "},
		{name: "not UTF-8", is: ErrStore, store: "/a\xff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.store == "" && c.is != ErrStore {
				c.store = store
			}
			out, changed, err := AddStore([]byte(c.conf), c.store)
			if err == nil || changed || out != nil {
				t.Fatalf("error %v, changed %v, %q", err, changed, out)
			}
			t.Log(err)
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%v does not match %v", err, c.is)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
			var se *SyntaxError
			if errors.As(err, &se) != (c.line > 0) {
				t.Errorf("%T: %v", err, err)
			} else if se != nil && (se.Line != c.line || se.Column != c.column) {
				t.Errorf("line %d, column %d, want %d, %d", se.Line, se.Column, c.line, c.column)
			}
		})
	}
}

// A store with a quote or other odd characters comes out of the library as it went in.
func TestQuoting(t *testing.T) {
	for _, s := range []string{`/a"b`, "/a b", "/ä/日本", "/a=b", "/a'b", "/a#b"} {
		for _, conf := range []string{"", "[storage.options]\nadditionalimagestores = ['/x']\n"} {
			out, _, err := AddStore([]byte(conf), s)
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := imageStores(load(t, out)); got[0] != s {
				t.Errorf("%q became %q", s, got)
			}
		}
	}
}

func TestStores(t *testing.T) {
	in, err := os.ReadFile("testdata/ock.conf")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Stores(in)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Driver: "overlay", GraphRoot: "/var/lib/containers/storage", RunRoot: "/run/containers/storage",
		AdditionalImageStores: []string{"/usr/ock/containers"}, MountOpt: "nodev,metacopy=on",
		PullOptions: map[string]string{"enable_partial_images": "false", "use_hard_links": "false", "ostree_repos": ""},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(Config{})); d != "" {
		t.Error(d)
	}
	if !got.Lists("/usr/ock/containers/") || got.Lists("/usr/ock") {
		t.Error("Lists")
	}
}

// Inputs that make a careless program slow or overflow its stack.
func TestHostile(t *testing.T) {
	for name, unit := range map[string]string{
		"dots": "a.", "arrays": "[", "tables": "{a=", "comments": "# additionalimagestores = [\n",
		"headers": "[[storage.options.x]]\n", "quotes": "\"", "blank lines": "\n", "commas": "1,",
	} {
		conf := strings.Repeat(unit, (maxSize-100)/len(unit))
		for _, c := range []string{conf, "x = " + conf, conf + "a=1", "[storage.options]\n" + conf, "x = [" + conf + "]"} {
			out, _, err := AddStore([]byte(c), store)
			if (err == nil) != (out != nil) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// FuzzAddStore: no panic; and where the storage library reads the input, it reads
// the output as the input with the store put first, or AddStore refused.
func FuzzAddStore(f *testing.F) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range files {
		conf, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		if len(conf) < 2000 { // long ones make for slow mutations
			f.Add(conf)
		}
	}
	for _, s := range []string{
		"storage = {options = {additionalimagestores = [{append = true}, '/a']}}",
		"[storage]\noptions.overlay.mountopt = ''\n#additionalimagestores=[\n#]",
		"storage.driver = 'overlay'\n[storage.options.overlay]\nsize='1'\n",
		"[storage.options]\r\nadditionalimagestores = [ # x\r\n'/a']",
		"[STORAGE.options]\n'additionalImageStores'=[]",
		"[crio]\nroot='/x'\nstorage_option = [\n\t'overlay.mountopt=nodev',\n]\n[crio.image]\n",
		"[storage.options]\nx=nan\ny=1979-05-27T07:32:00Z\nz=[[{a.b=1}],]\n\"a\\\"b\"=1",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, conf []byte) {
		fuzzCRIO(t, conf)
		out, changed, err := AddStore(conf, store)
		var before, after types.TomlConfig
		if _, e := toml.Decode(string(conf), &before); e != nil || err != nil {
			return
		}
		old := before.Storage.Options.AdditionalImageStores.Values
		if _, e := toml.Decode(string(out), &after); e != nil {
			t.Fatalf("the library reads the input but not the output: %v\n%q\n%q", e, conf, out)
		}
		if !changed {
			if !bytes.Equal(out, conf) || !lists(strings.Join(old, ","), store) {
				t.Fatalf("unchanged, with %q\n%q", old, conf)
			}
			return
		}
		got := after.Storage.Options.AdditionalImageStores.Values
		if len(got) != len(old)+1 || got[0] != store || !slices.Equal(got[1:], old) {
			t.Fatalf("stores were %q and are %q\n%q\n%q", old, got, conf, out)
		}
		after.Storage.Options.AdditionalImageStores.Values = old
		if len(bytes.TrimSpace(conf)) == 0 {
			return // Default
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Fatalf("%s\n%q\n%q", d, conf, out)
		}
	})
}

// fuzzCRIO holds the edit of crio.conf to the same, with CRI-O's own decoder.
func fuzzCRIO(t *testing.T, conf []byte) {
	type crio struct {
		Crio struct {
			Root    string   `toml:"root"`
			Options []string `toml:"storage_option"`
		} `toml:"crio"`
	}
	var before, after crio
	const opt = "overlay.imagestore=" + store
	out, changed, err := insertFirst(conf, optionsKey, opt, func(s string) bool { return s == opt })
	if _, e := toml.Decode(string(conf), &before); e != nil || err != nil {
		return
	}
	if _, e := toml.Decode(string(out), &after); e != nil {
		t.Fatalf("CRI-O reads the input but not the output: %v\n%q\n%q", e, conf, out)
	}
	if changed {
		before.Crio.Options = append([]string{opt}, before.Crio.Options...)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Fatalf("%s\n%q\n%q", d, conf, out)
	}
}
