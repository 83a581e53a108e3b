package bakefile

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const head = "apiVersion: nodebake/v1\nkind: Bake\n"

// flags are a disk's settings as a command line.
func flags(d Disk) []string {
	var args []string
	for _, s := range d.Settings {
		args = append(args, "--"+s.Flag+"="+s.Value)
	}
	return args
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, at, text string
		want           map[string][]string // of each disk, by its name
	}{
		{"one disk", "bake.yaml", "base: b.qcow2\nimages: [x, y]\noutput: o.raw\n", map[string][]string{
			"": {"--base=b.qcow2", "--image=x", "--image=y", "--output=o.raw"}}},
		{"nothing but the kind", "bake.yaml", "", map[string][]string{"": nil}},
		{"a single value is replaced, lists and mappings grow", "bake.yaml", `
base: b
size: 20G
images: [x]
tags: {n: x, m: x}
sources: {insecureRegistries: [r], tlsVerify: false}
customize: {kargs: {append: [a, b]}, write: [{path: /x, text: top}]}
disks:
- name: one
  images: [y]
  size: 30G
  tags: {m: y, o: y}
  sources: {insecureRegistries: [s], tlsVerify: true}
  customize: {kargs: {append: [c]}, write: [{path: /x, text: own}]}
- name: two
`, map[string][]string{
			"one": {"--base=b", "--image=x", "--tag=n=x", "--insecure-registry=r", "--karg-append=a", "--karg-append=b", "--write=/x=top",
				"--image=y", "--size=30G", "--tag=m=y", "--tag=o=y", "--insecure-registry=s", "--tls-verify=true", "--karg-append=c", "--write=/x=own"},
			"two": {"--base=b", "--size=20G", "--image=x", "--tag=n=x", "--tag=m=x", "--insecure-registry=r", "--tls-verify=false", "--karg-append=a", "--karg-append=b", "--write=/x=top"},
		}},
		{"paths", "sub/dir/bake.yaml", `
base: oci-archive:base.tar:name
output: ../out/o.raw
images: [oci-archive:a.tar, docker.io/library/x, "dir:d"]
imagesFrom: [list.txt, /abs/list.txt]
charts: {values: [v.yaml], set: [a=b]}
lock: l
report: r
sources: {authfile: a, policy: p, cache: c, certDirs: [{dir: d}, {registry: "h:5000", dir: e/}]}
customize: {copy: [{src: s/, dst: /d/, mode: "0755", uid: 0, gid: 107}, {src: /s, dst: /d}], ignition: i.ign, delete: [/x]}
tags: {new: "oci-archive:a.tar"}
`, map[string][]string{"": {
			"--base=oci-archive:sub/dir/base.tar:name", "--output=sub/out/o.raw", "--image=oci-archive:a.tar", "--image=docker.io/library/x", "--image=dir:d",
			"--images-from=sub/dir/list.txt", "--images-from=/abs/list.txt", "--values=sub/dir/v.yaml", "--set=a=b", "--lock=sub/dir/l", "--report=sub/dir/r",
			"--authfile=sub/dir/a", "--policy=sub/dir/p", "--cache=sub/dir/c", "--cert-dir=sub/dir/d", "--cert-dir=h:5000=sub/dir/e/",
			"--copy=sub/dir/s/:/d/:0755:0:107", "--copy=/s:/d", "--ignition=sub/dir/i.ign", "--delete=/x", "--tag=new=oci-archive:a.tar"}}},
		{"standard input has no folder", "-", "base: b\noutput: oci:o\n", map[string][]string{"": {"--base=b", "--output=oci:o"}}},
		{"what is no path stays", "sub/bake.yaml", "base: docker://r/b:1\noutput: libvirt+qemu:///system?pool=p&volume=v\nstore: /var/images\nlock: ''\n", map[string][]string{
			"": {"--base=docker://r/b:1", "--output=libvirt+qemu:///system?pool=p&volume=v", "--store=/var/images", "--lock="}}},
		{"numbers and booleans", "bake.yaml", "size: 0o17\nroot: 010\nclusterSize: 0x10\noverlay: TRUE\nforce: False\nsources: {parallel: +3}\n", map[string][]string{
			"": {"--size=15", "--root=10", "--cluster-size=16", "--overlay=true", "--force=false", "--parallel=3"}}},
		{"strings that look like something else", "bake.yaml", "platform: yes\nstore: 2026-11-25\nimages: ['1.30', \"true\", on]\ncustomize:\n  hostname: 1_000\n  write:\n  - path: /x\n    text: |\n      two\n      lines\n", map[string][]string{
			"": {"--platform=yes", "--store=2026-11-25", "--image=1.30", "--image=true", "--image=on", "--hostname=1_000", "--write=/x=two\nlines\n"}}},
		{"empty lists and groups", "bake.yaml", "images: []\ntags: {}\nsources: {}\ncustomize: {kargs: {}}\n", map[string][]string{"": nil}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := Parse(c.at, []byte(head+c.text))
			if err != nil {
				t.Fatal(err)
			}
			if f.Listed != strings.Contains(c.text, "disks:") || len(f.Disks) != len(c.want) {
				t.Errorf("%d disks, listed: %v", len(f.Disks), f.Listed)
			}
			for _, d := range f.Disks {
				if diff := cmp.Diff(c.want[d.Name], flags(d)); diff != "" {
					t.Errorf("disk %q (-want +got):\n%s", d.Name, diff)
				}
				for _, s := range d.Settings {
					if s.Line < 3 || s.Column < 1 || s.Key == "" {
						t.Errorf("%+v has no place", s)
					}
				}
			}
		})
	}
}

func TestPlaces(t *testing.T) {
	f, err := Parse("bake.yaml", []byte(head+"images:\n- x\n-   y\ntags:\n  n: x\ndisks:\n- name: one\n  customize:\n    copy:\n    - {src: a, dst: /b}\n  size: 1G\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range f.Disks[0].Settings {
		got = append(got, fmt.Sprintf("%s %d:%d", s.Key, s.Line, s.Column))
	}
	want := []string{"images[0] 4:3", "images[1] 5:5", "tags.n 7:6", "disks[0].customize.copy[0] 12:7", "disks[0].size 13:9"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if d := f.Disks[0]; d.Key != "disks[0]" || d.Line != 9 || d.Column != 3 {
		t.Errorf("the disk is at %+v", d)
	}
}

func TestFindings(t *testing.T) {
	for _, c := range []struct {
		name, text string // without the head unless it begins with one
		want       []string
	}{
		{"empty", "\n# nothing\n", []string{"1:1: there is nothing in it; see nodebake schema"}},
		{"a list", "- a\n", []string{"1:1: must be a mapping, and this is a list"}},
		{"a word", "bake\n", []string{"1:1: must be a mapping, and this is a string"}},
		{"no version and no kind", "base: b\n", []string{"1:1: apiVersion: is missing; it must be nodebake/v1", "1:1: kind: is missing; it must be Bake"}},
		{"another version", "apiVersion: nodebake/v2\nkind: Baker\n", []string{`1:13: apiVersion: "nodebake/v2": must be nodebake/v1`, `2:7: kind: "Baker": must be Bake`}},
		{"a second document", head + "---\nbase: b\n", []string{"3:1: a second document begins here; give it a file of its own, or list its disks under disks"}},
		{"a tab", head + "sources:\n\toffline: true\n", []string{"4:1: a tab stands where YAML takes spaces alone"}},
		{"a tab behind spaces", head + "disks:\n- name: a\n  \tbase: b\n", []string{"5:3: a tab stands where YAML takes spaces alone"}},
		{"not YAML", head + "base: [b\nsize: 1\n", []string{"3:1: did not find expected ',' or ']'"}},
		{"not text", "\x01", []string{"1:1: control characters are not allowed"}},
		{"an alias", head + "base: &b x\noutput: *b\n", []string{"3:7: base: an anchor (&b) is not taken, for there are no aliases",
			"4:9: output: an alias (*b) is not taken; write the value out, or put it at the top, for all disks"}},
		{"a merge", head + "sources: &s {offline: true}\ndisks:\n- <<: *s\n  name: a\n", []string{"3:10: sources: an anchor (&s) is not taken, for there are no aliases",
			`5:3: disks[0]: unknown key "<<"`}},
		{"a billion laughs", head + "images: &a [x, x]\nimagesFrom: &b [*a, *a]\n", []string{"3:9: images: an anchor (&a) is not taken, for there are no aliases",
			"4:13: imagesFrom: an anchor (&b) is not taken, for there are no aliases"}},
		{"a tag", head + "base: !!str 5\nsize: !go/x 5\n", []string{"3:7: base: a tag (!!str) is not taken", "4:7: size: a tag (!go/x) is not taken"}},
		{"keys", head + "Base: x\nimage: [x]\nimages-from: [x]\noutput_format: raw\ncache: c\nkargs: {}\noffline: true\nhostname: h\nnonsense: 1\n", []string{
			`3:1: unknown key "Base"; did you mean base?`, `4:1: unknown key "image"; did you mean images?`, `5:1: unknown key "images-from"; did you mean imagesFrom?`,
			`6:1: unknown key "output_format"; did you mean outputFormat?`, `7:1: unknown key "cache"; did you mean sources.cache?`, `8:1: unknown key "kargs"; did you mean customize.kargs?`,
			`9:1: unknown key "offline"; did you mean sources.offline?`, `10:1: unknown key "hostname"; did you mean customize.hostname?`, `11:1: unknown key "nonsense"`}},
		{"keys in groups", head + "disks:\n- name: a\n  customize:\n    kargs: {apend: [x], nonsense: [y]}\n    copy: [{source: a, dst: /b}]\n    images: [x]\n  Name: b\n", []string{
			`6:13: disks[0].customize.kargs: unknown key "apend"; did you mean append?`, `6:25: disks[0].customize.kargs: unknown key "nonsense"; there are append, delete, replace`,
			`7:12: disks[0].customize.copy[0]: has no src`, `7:13: disks[0].customize.copy[0]: unknown key "source"; there are src, dst, mode, uid, gid`,
			`8:5: disks[0].customize: unknown key "images"; did you mean images?`, `9:3: disks[0]: unknown key "Name"; did you mean name?`}},
		{"keys twice", head + "base: a\nbase: b\nsources: {cache: a, cache: b}\ntags: {x: y, x: z}\n", []string{`4:1: "base" is given twice, first in line 3`,
			`5:21: sources: "cache" is given twice, first in line 5`, `6:14: tags: "x" is given twice, first in line 6`}},
		{"keys that are no strings", head + "[a]: b\n? {c: d}\n: e\n", []string{"3:1: a key must be a string, and this is a list", "4:3: a key must be a string, and this is a mapping"}},
		{"kinds", head + "base: [a]\nimages: x\nsize: {a: b}\noverlay: [true]\ntags: [a]\nsources: x\ncustomize: {copy: {src: a}, write: [x]}\n", []string{
			"3:7: base: must be a string, and this is a list", "4:9: images: must be a list, and this is a string", "5:7: size: must be a string or a whole number, and this is a mapping",
			"6:10: overlay: must be true or false, and this is a list", "7:7: tags: must be a mapping, and this is a list", "8:10: sources: must be a mapping, and this is a string",
			"9:19: customize.copy: must be a list, and this is a mapping", "9:37: customize.write[0]: must be a mapping, and this is a string"}},
		{"no values", head + "base:\nimages: ~\nsize: null\nsources:\noverlay: Null\ntags: {a: }\ndisks:\n", []string{
			"3:6: base: has no value; give a string, or leave the key out", "4:9: images: has no value; give a list, or leave the key out",
			"5:7: size: has no value; give a string or a whole number, or leave the key out", "6:9: sources: has no value; give a mapping, or leave the key out",
			"7:10: overlay: has no value; give true or false, or leave the key out", "8:11: tags.a: has no value; give a string, or leave the key out", "9:7: disks: has no value; give a list, or leave the key out"}},
		{"YAML 1.1", head + "overlay: yes\nforce: Off\nlocked: y\nplatform: 1.30\nstore: true\nimages: [1.5, 0x1, .inf]\n", []string{
			"3:10: overlay: yes is a string in YAML 1.2; write true or false", "4:8: force: Off is a string in YAML 1.2; write true or false", "5:9: locked: y is a string in YAML 1.2; write true or false",
			`6:11: platform: must be a string, and "1.30" is a number to YAML; put it in quotes`, `7:8: store: must be a string, and "true" is true or false to YAML; put it in quotes`,
			`8:10: images[0]: must be a string, and "1.5" is a number to YAML; put it in quotes`, `8:15: images[1]: must be a string, and "0x1" is a whole number to YAML; put it in quotes`,
			`8:20: images[2]: must be a string, and ".inf" is a number to YAML; put it in quotes`}},
		{"numbers", head + "size: 1.5\nsources: {parallel: many, cacheSize: 99999999999999999999}\nlocked: 1\ncustomize: {copy: [{src: a, dst: /b, mode: \"0644\", uid: -1, gid: 4294967295}]}\n", []string{
			`3:7: size: must be a string, and "1.5" is a number to YAML; put it in quotes`, `4:21: sources.parallel: must be a whole number, and this is a string`,
			`4:38: sources.cacheSize: "99999999999999999999" is out of range`, `5:9: locked: must be true or false, and this is a whole number`,
			`6:57: customize.copy[0].uid: "-1" is out of range`, `6:66: customize.copy[0].gid: "4294967295" is out of range`}},
		{"items", head + "customize:\n  copy:\n  - {src: a, dst: '/b:c', mode: '0888'}\n  - {src: 'a:b', dst: /c}\n  - {src: a, dst: /b, uid: 1}\n  write: [{path: /a=b, text: x}, {path: /a}]\nsources:\n  certDirs: [{dir: a=b}, {registry: a=b, dir: c}, {registry: h}]\ntags: {a=b: c}\n", []string{
			`5:19: customize.copy[0].dst: "/b:c": a path with a colon cannot be copied to`, `5:33: customize.copy[0].mode: "0888": give octal digits, such as "0644"`,
			`6:11: customize.copy[1].src: "a:b": a path with a colon cannot be copied`, "7:5: customize.copy[2]: has a uid and no gid", "7:5: customize.copy[2]: has a uid and no mode",
			`8:18: customize.write[0].path: "/a=b": a path with = cannot be written to`, "8:34: customize.write[1]: has no text",
			"10:14: sources.certDirs[0]: the path of a folder for all registries may have no =, but a=b has one", `10:37: sources.certDirs[1].registry: "a=b": a registry has no =`,
			"10:51: sources.certDirs[2]: has no dir", `11:8: tags: "a=b": a name has no =`}},
		{"streams", head + "imagesFrom: ['-']\nreport: '-'\n", []string{"3:14: imagesFrom[0]: a file cannot name a stream of the command; give the flag --images-from",
			"4:9: report: a file cannot name a stream of the command; give the flag --report"}},
		{"NUL", head + "base: \"a\\0b\"\n", []string{"3:7: base: has a NUL in it"}},
		{"disks", head + "disks:\n- name: a\n- base: b\n- name: a\n- name: -x\n- 5\n- name: [b]\n", []string{"5:3: disks[1]: has no name", "6:9: disks[2].name: a is the name of another disk, in line 4",
			`7:9: disks[3].name: "-x": give 1 to 63 letters, digits, points, hyphens and underscores, a letter or digit first`, "8:3: disks[4]: must be a mapping, and this is a whole number",
			"9:9: disks[5].name: must be a string, and this is a list"}},
		{"no disks", head + "disks: []\n", []string{"3:8: disks: names no disk; leave it out for a file that is one disk"}},
		{"disks in disks", head + "disks:\n- name: a\n  disks: []\n  kind: Bake\n", []string{`5:3: disks[0]: unknown key "disks"`, `6:3: disks[0]: unknown key "kind"`}},
		{"a name without disks", head + "name: a\n", []string{`3:1: unknown key "name"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.text))
			e, ok := err.(*Error)
			if !ok {
				t.Fatalf("the error is %v", err)
			}
			var got []string
			for _, f := range e.Findings {
				got = append(got, strings.TrimPrefix(f.String(), "f:"))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestBounds gives files that would cost more than a file may.
func TestBounds(t *testing.T) {
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	for _, c := range []struct{ name, text, want string }{
		{"a large file", head + many(maxFile, "#"), "larger than 1048576 bytes"},
		{"deep lists", head + "images: " + many(200_000, "["), "exceeded max depth"},
		{"deep mappings", head + "customize: " + many(100_000, "{a: "), "exceeded max depth"},
		{"many disks", head + "disks:\n" + many(maxDisks+1, "- name: a\n"), "there are 257, and 256 is the most"},
		{"many settings", head + "images: [" + many(2000, "x, ") + "]\ndisks:\n" + many(100, "- name: a\n"), "more than 100000 settings"},
		{"many findings", head + many(5000, "- a\n"), "did not find expected key"},
		{"many wrong values", head + "images: [" + many(5000, "1, ") + "]", "and 4900 more"},
		{"a long word", head + "size: [" + many(500_000, "x") + "]", "must be a string"},
		{"a long key", head + many(500, "x") + ": 5", "unknown key"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse("f", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("the error is %v, and must say %s", err, c.want)
			}
			if n := len(err.Error()); n > maxFindings*(maxMessage+100) {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
}

func TestRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bake.yaml")
	if _, err := Read(name, nil); err == nil || !os.IsNotExist(err) {
		t.Errorf("the error is %v", err)
	}
	if err := os.WriteFile(name, []byte(head+"lock: l\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Read(name, nil)
	if err != nil || f.Folder != filepath.Dir(name) || f.Disks[0].Settings[0].Value != filepath.Dir(name)+"/l" {
		t.Errorf("%+v, %v", f, err)
	}
	f, err = Read("-", strings.NewReader(head+"lock: l\n"))
	if err != nil || f.Folder != "" || f.Disks[0].Settings[0].Value != "l" {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err = Read("-", strings.NewReader("x: y")); err == nil || !strings.HasPrefix(err.Error(), "standard input:1:1: ") {
		t.Errorf("%v", err)
	}
}

func TestFind(t *testing.T) {
	f, err := Parse("f", []byte(head+"disks: [{name: a}, {name: b}, {name: c}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []string
		want  string
	}{{nil, "abc"}, {[]string{"c", "a", "c"}, "ac"}, {[]string{"d"}, `f has no disk "d"; it has a, b, c`}} {
		disks, err := f.Find(c.names)
		got := ""
		for _, d := range disks {
			got += d.Name
		}
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %s, want %s", c.names, got, c.want)
		}
	}
	if f, err = Parse("f", []byte(head)); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Find([]string{"a"}); err == nil || !strings.Contains(err.Error(), "no names") {
		t.Error(err)
	}
}

func TestLocate(t *testing.T) {
	f, err := Parse("f", []byte(head+"images: [a, bb]\ntags: {x: a, y: c}\nsources:\n  offline: true\ncompress: lz4\n"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ err, given, want string }{
		{"--tag y=c: no image is called c", "", "f:4:17: tags.y: y=c: no image is called c"},
		{"--image: bb is no image", "", "f:3:13: images[1]: bb is no image"},
		{"--offline takes images from a --cache, and none is given", "", "f:6:12: sources.offline: sources.offline takes images from a sources.cache, and none is given"},
		{"--compress lz4: give zstd", "", "f:7:11: compress: lz4: give zstd"},
		{"--output is missing", "", "f:1:1: output is missing"},
		{"--output x is taken", "output", "f:1:1: --output x is taken"},
		{"--dry-run and --nonsense", "", "f:1:1: --dry-run and --nonsense"},
	} {
		got := f.Locate(f.Disks[0], fmt.Errorf("%s", c.err), func(flag string) bool { return flag == c.given }).String()
		if got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.err, got, c.want)
		}
	}
}

func TestUnder(t *testing.T) {
	for _, c := range []struct{ folder, ref, want string }{
		{"", "oci:a", "oci:a"}, {"s", "oci:a", "oci:s/a"}, {"s", "oci:a:n", "oci:s/a:n"}, {"s", "oci:/a:n", "oci:/a:n"}, {"s", "oci-archive:../a", "oci-archive:a"},
		{"s", "docker-archive:a:n:t", "docker-archive:s/a:n:t"}, {"s", "dir:a:b", "dir:s/a:b"}, {"s", "docker://a", "docker://a"}, {"s", "oci", "oci"}, {"s", "oci:", "oci:"},
		{"s", "containers-storage:a", "containers-storage:a"}, {"/t/s", "oci:a/", "oci:/t/s/a/"}, {"s", "a:1", "a:1"},
	} {
		if got := Under(c.folder, c.ref); got != c.want {
			t.Errorf("Under(%q, %q) is %q, want %q", c.folder, c.ref, got, c.want)
		}
	}
}

// TestTable holds the table of keys against its own rules.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	walk(settings, "", func(path string, k *key) {
		switch {
		case (k.kind == group) != (k.flag == ""):
			t.Errorf("%s: a group has no flag, and all else has one", path)
		case k.flag == "" && k.help == "":
			t.Errorf("%s has no help", path)
		case k.flag != "" && seen[k.flag]:
			t.Errorf("--%s has two keys", k.flag)
		}
		seen[k.flag] = true
		if k.kind != items {
			return
		}
		for _, f := range k.keys {
			if f.help == "" || f.flag != "" {
				t.Errorf("%s.%s has no help, or a flag", path, f.name)
			}
		}
		for _, n := range k.need {
			if !slices.ContainsFunc(k.keys, func(f key) bool { return f.name == n }) {
				t.Errorf("%s needs %s, which is no field", path, n)
			}
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		head, head + "base: b\nimages: [a, 'b', \"c\"]\noutput: o\n", head + "disks:\n- name: a\n  size: 10G\n- name: b\n  tags: {x: y}\n",
		head + "sources: {certDirs: [{registry: h, dir: d}], parallel: 0x3, offline: true}\ncustomize: {copy: [{src: a, dst: /b, mode: '0644', uid: 1, gid: 2}], kargs: {append: [a]}}\n",
		"a: &a [*a]\n", "- - - ? : |\n  x\n", "%YAML 1.1\n---\n{}\n---\n", "\xff\xfea\x00", "x: !!binary aGk=\n<<: {a: b}\n", "\t- a", head + "size: 1\r\noutput: \u2028x\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse("sub/f", data)
		if err != nil {
			e, ok := err.(*Error)
			if !ok || len(e.Findings) == 0 {
				t.Fatalf("the error is %#v", err)
			}
			for _, f := range e.Findings {
				if f.Line < 1 || f.Column < 1 || f.Message == "" || len(f.Message) > maxMessage+3 {
					t.Errorf("%+v", f)
				}
			}
			return
		}
		keys := Keys()
		for _, d := range file.Disks {
			for _, s := range d.Settings {
				if keys[s.Flag] == "" || s.Line < 1 || s.Column < 1 || s.Key == "" {
					t.Errorf("%+v", s)
				}
			}
		}
		again, err := Parse("sub/f", data)
		if err != nil || !cmp.Equal(file, again) {
			t.Errorf("another result the second time: %v", err)
		}
	})
}
