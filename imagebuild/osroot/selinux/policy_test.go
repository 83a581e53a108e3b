package selinux

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"
)

// files is a filesystem in memory.
type files map[string]string

func (f files) Open(name string) (*io.SectionReader, error) {
	text, ok := f[strings.TrimPrefix(name, "/")]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return io.NewSectionReader(strings.NewReader(text), 0, int64(len(text))), nil
}

const dir = "etc/selinux/targeted/contexts/files/file_contexts"

// with is a disk with a policy of these specifications.
func with(specs string, more ...string) files {
	f := files{"etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n", dir: specs}
	for i := 0; i < len(more); i += 2 {
		f[dir+more[i]] = more[i+1]
	}
	return f
}

func load(t testing.TB, f files) *Policy {
	t.Helper()
	p, err := Load(f, nil)
	if err != nil || p == nil {
		t.Fatalf("Load: %v, %v", p, err)
	}
	return p
}

func TestLoad(t *testing.T) {
	const some = "/.* system_u:object_r:default_t:s0\n"
	edit := func(change func(files)) files {
		f := with(some)
		change(f)
		return f
	}
	tests := []struct {
		name       string
		f          files
		policy     bool
		kind, mode string
		err        error
	}{
		{name: "enforcing", f: with(some), policy: true, kind: "targeted", mode: "enforcing"},
		{name: "no config", f: edit(func(f files) { delete(f, "etc/selinux/config") })},
		{name: "no policy", f: edit(func(f files) { delete(f, dir) })},
		{name: "disabled", f: edit(func(f files) { f["etc/selinux/config"] = "SELINUX=disabled\nSELINUXTYPE=targeted\n" })},
		{name: "first known mode counts", f: edit(func(f files) {
			f["etc/selinux/config"] = " SELINUX=disabled\nSELINUX=what\nSELINUX= Permissive \nSELINUX=disabled\n"
		}),
			policy: true, kind: "targeted", mode: "permissive"},
		{name: "last type counts, any case, indented", f: edit(func(f files) {
			f["etc/selinux/config"] = "#SELINUXTYPE=x\nSELINUXTYPE=mls\n  selinuxtype= targeted \t\r\n"
		}), policy: true, kind: "targeted"},
		{name: "empty config means targeted", f: edit(func(f files) { f["etc/selinux/config"] = "" }), policy: true, kind: "targeted"},
		{name: "type is a path", f: edit(func(f files) { f["etc/selinux/config"] = "SELINUXTYPE=../../x\n" }), err: ErrSyntax},
		{name: "type is the parent", f: edit(func(f files) { f["etc/selinux/config"] = "SELINUXTYPE=..\n" }), err: ErrSyntax},
		{name: "type is empty", f: edit(func(f files) { f["etc/selinux/config"] = "SELINUXTYPE= \n" }), err: ErrSyntax},
		{name: "compiled only", f: edit(func(f files) { delete(f, dir); f[dir+".bin"] = "\x8a\xff\x7c\xf9" }), err: ErrCompiledOnly},
		{name: "too large", f: edit(func(f files) { f[dir] = strings.Repeat("\n", maxFile+1) }), err: ErrTooLarge},
		{name: "too many", f: edit(func(f files) { f[dir] = strings.Repeat("/x a_t\n", maxSpecs+1) }), err: ErrTooLarge},
		{name: "one field", f: with("/x\n"), err: ErrSyntax},
		{name: "unknown file type", f: with("/x -x a_t\n"), err: ErrSyntax},
		{name: "not ASCII", f: with("/\u00e9 a_t\n"), err: ErrSyntax},
		{name: "long field", f: with("/" + strings.Repeat("x", maxEntry) + " a_t\n"), err: ErrSyntax},
		{name: "bad homedirs", f: with(some, ".homedirs", "/x\n"), err: ErrSyntax},
		{name: "bad local", f: with(some, ".local", "/x -- \n/y\n"), err: ErrSyntax},
		{name: "long line in subs", f: with(some, ".subs", "/"+strings.Repeat("x", maxSub)+" /y\n"), err: ErrSyntax},
		{name: "comments and blanks", f: with("# c\n\n \t# c\n\x00 x\n/.* a_t\x00 junk\n"), policy: true, kind: "targeted", mode: "enforcing"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := Load(tt.f, nil)
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) || (p != nil) != tt.policy {
				t.Fatalf("policy %v, error %v; want error %v", p != nil, err, tt.err)
			}
			if p != nil && (p.Type != tt.kind || p.Mode != tt.mode) {
				t.Errorf("type %q, mode %q; want %q, %q", p.Type, p.Mode, tt.kind, tt.mode)
			}
		})
	}
	// The disk decides where the files lie.
	moved := files{}
	for name, text := range with(some) {
		moved["ostree/deploy/"+name] = text
	}
	p, err := Load(moved, func(name string) (string, error) { return "ostree/deploy" + name, nil })
	if err != nil || p.SubsPath() != "/"+dir+".subs" {
		t.Fatalf("%v, %v", p, err)
	}
	if _, err := Load(moved, func(string) (string, error) { return "", fs.ErrInvalid }); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("resolve's error: %v", err)
	}
	var no *Policy
	if got, ok := no.Label("/x", tar.TypeReg); ok || got != "" {
		t.Errorf("a nil policy labels: %q", got)
	}
}

// rules are in the form of Fedora's container policy.
const rules = `
# from the least to the most specific, as a policy compiler sorts them
/.*					system_u:object_r:default_t:s0
/			-d	system_u:object_r:root_t:s0
/[^/]+			--	system_u:object_r:etc_runtime_t:s0
/etc/.*				system_u:object_r:etc_t:s0
/usr/.*				system_u:object_r:usr_t:s0
/var/.*				system_u:object_r:var_t:s0
/var			-d	system_u:object_r:var_t:s0
/var/lib(/.*)?			system_u:object_r:var_lib_t:s0
/usr/s?bin/crio.*	--	system_u:object_r:container_runtime_exec_t:s0
/usr/(.*/)?lib(64)?(/.*)?\.so(\.[^/]*)*	--	system_u:object_r:lib_t:s0
/etc/containers(/.*)?		system_u:object_r:container_config_t:s0
/etc/cni/[^/]+\.conf(list)?	--	system_u:object_r:cni_config_t:s0
/var/lib/containers(/.*)?	system_u:object_r:container_var_lib_t:s0
/var/lib/containers/storage/volumes/[^/]*/.*	system_u:object_r:container_file_t:s0
/var/lib/containers/storage/overlay(/.*)?	system_u:object_r:container_ro_file_t:s0
/var/lib/containers/storage/overlay-(layers|images)(/.*)?	system_u:object_r:container_ro_file_t:s0
/var/lib/containers/atomic(/.*)?	<<none>>
/var/lib/kubelet(/.*)?		system_u:object_r:kubelet_var_lib_t:s0
/var/run/crio/crio\.sock	-s	system_u:object_r:container_var_run_t:s0-s15:c0.c1023
/etc/containers/storage\.conf	--	system_u:object_r:storage_conf_t:s0
`

func TestLabel(t *testing.T) {
	const store = "/var/images"
	subs, err := EquivalentSubs(nil, store, "/var/lib/containers/storage")
	if err != nil {
		t.Fatal(err)
	}
	p := load(t, with(rules,
		".subs", string(subs),
		".subs_dist", "# comment\n/run /var/run\n/sbin /usr/sbin\n/usr/lib64 /usr/lib\n\n/alias\t/\n/half\n",
		".homedirs", "/home/[^/]+/.+ u:object_r:user_home_t:s0\n/home/root u:object_r:home_root_t:s0\n",
		".local", "/opt/x(/.*)? l:object_r:local_t:s0\n/home/core/.* l:object_r:late_t:s0\n/home/root -d l:object_r:late_dir_t:s0\n"))
	const s0 = ":s0"
	tests := []struct {
		name, kind, want string
	}{
		{"/", "d", "system_u:object_r:root_t" + s0},
		{"/", "f", "system_u:object_r:default_t" + s0},
		{"/swapfile", "f", "system_u:object_r:etc_runtime_t" + s0},
		{"/swapfile", "d", "system_u:object_r:default_t" + s0},
		{"/etc", "d", "system_u:object_r:default_t" + s0},
		{"/etc/containers", "d", "system_u:object_r:container_config_t" + s0},
		{"/etc/containers/storage.conf", "f", "system_u:object_r:storage_conf_t" + s0},
		{"/etc/containers/storage.conf", "l", "system_u:object_r:container_config_t" + s0},
		{"/etc/containers/storageXconf", "f", "system_u:object_r:container_config_t" + s0},
		{"//etc//containers///storage.conf/", "f", "system_u:object_r:storage_conf_t" + s0},
		{"etc/cni/a.conflist", "f", "system_u:object_r:cni_config_t" + s0},
		{"/etc/cni/a/b.conf", "f", "system_u:object_r:etc_t" + s0},
		{"/usr/bin/crio-status", "f", "system_u:object_r:container_runtime_exec_t" + s0},
		{"/sbin/crio", "f", "system_u:object_r:container_runtime_exec_t" + s0},
		{"/sbinx/crio", "f", "system_u:object_r:default_t" + s0},
		{"/usr/lib64/a/libx.so.1.2", "f", "system_u:object_r:lib_t" + s0},
		{"/usr/lib64/a/libx.so.1.2", "d", "system_u:object_r:usr_t" + s0},
		{store, "d", "system_u:object_r:container_var_lib_t" + s0},
		{store + "/overlay", "d", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/overlay/ab/diff/etc/x", "f", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/overlay/l/AB", "l", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/overlay/ab/diff/.wh", "c", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/overlay-images/images.json", "f", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/overlay-layers", "d", "system_u:object_r:container_ro_file_t" + s0},
		{store + "/storage.lock", "f", "system_u:object_r:container_var_lib_t" + s0},
		{store + "/volumes/v/x", "f", "system_u:object_r:container_file_t" + s0},
		{store + "2/overlay", "d", "system_u:object_r:var_t" + s0},
		{"/var/lib/containers/storage/overlay", "d", "system_u:object_r:container_ro_file_t" + s0},
		{"/var/lib/containers/atomic/x", "f", ""},
		{"/run/crio/crio.sock", "s", "system_u:object_r:container_var_run_t:s0-s15:c0.c1023"},
		{"/run/crio/crio.sock", "f", "system_u:object_r:var_t" + s0},
		{"/run/crio/crio.sock", "?", "system_u:object_r:container_var_run_t:s0-s15:c0.c1023"},
		{"/alias/var/lib/x", "f", "system_u:object_r:var_lib_t" + s0},
		{"/alias", "d", "system_u:object_r:root_t" + s0},
		{"/home/core/x", "f", "l:object_r:late_t" + s0},
		{"/home/other/x", "f", "u:object_r:user_home_t" + s0},
		{"/home/root", "d", "l:object_r:late_dir_t" + s0},
		{"/home/root", "f", "u:object_r:home_root_t" + s0},
		{"/opt/x/y", "f", "l:object_r:local_t" + s0},
		{"/var/li\xc3\xa9", "f", "system_u:object_r:var_t" + s0},
	}
	flags := map[string]byte{"d": tar.TypeDir, "f": tar.TypeReg, "l": tar.TypeSymlink, "s": 's', "c": tar.TypeChar, "?": '?'}
	for _, tt := range tests {
		got, ok := p.Label(tt.name, flags[tt.kind])
		if got != tt.want && !(got == none && !ok) || ok != (tt.want != "") {
			t.Errorf("Label(%q, %s) = %q, %v; want %q", tt.name, tt.kind, got, ok, tt.want)
		}
	}
	if len(p.Warnings()) > 0 {
		t.Errorf("warnings %q", p.Warnings())
	}
	wantSubs := [][2]string{{store, "/var/lib/containers/storage"}, {"/alias", "/"}, {"/usr/lib64", "/usr/lib"}, {"/sbin", "/usr/sbin"}, {"/run", "/var/run"}}
	if got := p.Subs(); fmt.Sprint(got) != fmt.Sprint(wantSubs) {
		t.Errorf("Subs() = %v, want %v", got, wantSubs)
	}
	without, err := p.WithSubs(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := without.Label(store+"/overlay", tar.TypeDir); got != "system_u:object_r:var_t:s0" {
		t.Errorf("without the line: %s", got)
	}
	if _, err := p.WithSubs([]byte("/a\x00 /b\n")); !errors.Is(err, ErrSyntax) {
		t.Errorf("WithSubs of a NUL byte: %v", err)
	}
}

func TestPatterns(t *testing.T) {
	tests := []struct {
		pattern  string
		match    []string
		mismatch []string
	}{
		{`/a/b\.c`, []string{"/a/b.c", "/a/b.c\n"}, []string{"/a/bxc", "/a/b.c/d", "/a/b.c\n\n"}},
		{`/a/bc?`, []string{"/a/b", "/a/bc"}, []string{"/a/bcc"}},
		{`/a/bc+`, []string{"/a/bc", "/a/bcc"}, []string{"/a/b"}},
		{`/a/bc*d`, []string{"/a/bd", "/a/bccd"}, []string{"/a/b"}},
		{`/a/x{2,3}`, []string{"/a/xx", "/a/xxx"}, []string{"/a/x", "/a/xxxx"}},
		{`/a/x{y}`, []string{"/a/x{y}"}, []string{"/a/x"}},
		{`/a/b\-c\+\_`, []string{"/a/b-c+_"}, []string{"/a/b-c"}},
		{`/a/[^/]+`, []string{"/a/b", "/a/\xff\xfe"}, []string{"/a/b/c", "/a/"}},
		{`/a/.`, []string{"/a/\xc3", "/a/\n"}, []string{"/a/\xc3\xa9", "/a/"}},
		{`/a/[[:digit:]]\d`, []string{"/a/12"}, []string{"/a/1", "/a/1x"}},
		{`/a/[]x-]y`, []string{"/a/]y", "/a/-y"}, []string{"/a/zy"}},
		{`/a/[a[]`, []string{"/a/["}, []string{"/a/b"}},
		{`/a/b\s`, []string{"/a/b\v", "/a/b "}, []string{"/a/b", "/a/bs"}},
		// A "|" outside all groups divides the anchors too.
		{`/a/b|/a/c`, []string{"/a/b", "/a/bzz", "/a/c", "/a/x/a/c"}, []string{"/b", "/x/a/c", "/a/x", "/a/cz"}},
		// A backslash in the first component is compared as such, and yet an escape.
		{`/a\-b/c`, nil, []string{"/a-b/c", `/a\-b/c`}},
		// A literal first component wants a path that goes on.
		{`/foo/?`, []string{"/foo/"}, []string{"/foo", "/foox"}},
		{`/foo(/.*)?`, []string{"/foo", "/foo/x/y"}, []string{"/foox"}},
		{`/foo/(a|b)/c`, []string{"/foo/a/c"}, []string{"/foo/c"}},
		{`/foo/a.*?b`, []string{"/foo/ab", "/foo/axb"}, []string{"/foo/a"}},
		{`/lost\+found/.*`, []string{"/lost+found/x"}, []string{"/lost+found"}},
		{`(/x)?/y`, []string{"/y", "/x/y"}, []string{"/x"}},
		{`.*/secret`, []string{"/a/secret", "/secret"}, []string{"/secrets"}},
		{`/a/b.+`, []string{"/a/bc", "/a/b/c"}, []string{"/a/b"}},
		{`/a/b/.+`, []string{"/a/b/c"}, []string{"/a/b", "/a/b/"}},
	}
	for _, tt := range tests {
		p := load(t, with(tt.pattern+" found_t\n"))
		if w := p.Warnings(); len(w) > 0 {
			t.Errorf("%s: %s", tt.pattern, w)
		}
		for want, paths := range map[bool][]string{true: tt.match, false: tt.mismatch} {
			for _, path := range paths {
				// Not through Label, which removes slashes.
				if _, got := p.specs.lookup(path, '-'); got != want {
					t.Errorf("%s on %q: %v", tt.pattern, path, got)
				}
			}
		}
	}
}

func TestRefusedPatterns(t *testing.T) {
	for _, pattern := range []string{`/a/b(?=c).*`, `/a/b(?!c).*`, `/a/b(?<=c)`, `/a/b(?>c)`, `/a/b(?i)c`, `/a/b.*+`, `/a/b.++`, `/a/bx{2}+`, `/a/b(c)\1`,
		`/a/b\hc`, `/a/b\Qc\E`, `/a/b(*FAIL)`, `/a/b[\b]`, `/a/b[[.x.]]`, `/a/b[c`, `/a/b(c`, `/a/bc)`, `/a/b{,3}`, `/a/bx{2000}`, `/a/b\`, `/a/b(?#x)`, `/a/b(|*c)`, `/a/b^+`, `/a/b\b?`, `/a/b**`, `/a/b((x{999}){999}){9}`} {
		p := load(t, with("/.* any_t\n/a/.* below_t\n"+pattern+" found_t\n/a/bb/.* above_t\n/a/b/exact exact_t\n"))
		w := p.Warnings()
		if len(w) != 1 || !strings.Contains(w[0], "file_contexts line 3") {
			t.Errorf("%s: warnings %q", pattern, w)
		}
		// What the pattern could decide has no label. Which other paths have none depends on how much of it is literal.
		for path, want := range map[string]string{"/a/bc": "", "/a/c": "below_t", "/c": "any_t", "/a/bb/c": "above_t", "/a/b/exact": "exact_t"} {
			got, _ := p.Label(path, tar.TypeReg)
			if sure := path == "/c" || path == "/a/b/exact"; got != want && (sure || got != "") {
				t.Errorf("%s: %s is %q, want %q", pattern, path, got, want)
			}
		}
	}
	// The sum of all is bounded as well.
	many := strings.Repeat("/a/(b|c){900}\n", maxCosts/900)
	p := load(t, with(strings.ReplaceAll(many, "\n", " x_t\n")))
	if n := len(p.Warnings()); n != maxWarnings {
		t.Errorf("%d warnings", n)
	}
}

func TestEquivalentSubs(t *testing.T) {
	const line = "/var/images /var/lib/containers/storage\n"
	tests := []struct{ name, old, want string }{
		{"new file", "", line},
		{"other lines", "# mine\n/export/home /home\n", "# mine\n/export/home /home\n" + line},
		{"no newline at the end", "/a /b", "/a /b\n" + line},
		{"there already", "/a /b\n" + line + "/c /d\n", "/a /b\n" + line + "/c /d\n"},
		{"there already in another form", "\t/var/images\t /var/lib/containers/storage  # no comment\n", "\t/var/images\t /var/lib/containers/storage  # no comment\n"},
		{"commented out", "#" + line, "#" + line + line},
		{"a wider line", "/a /b\n/var /sysvar\n", line + "/a /b\n/var /sysvar\n" + line},
		{"a wider line after ours", line + "/var /sysvar\n", line + "/var /sysvar\n" + line},
		{"a wider line before ours", "/var /sysvar\n" + line, line + "/var /sysvar\n" + line},
		{"a wider line between", line + "/var /sysvar\n" + line, line + "/var /sysvar\n" + line},
		{"not wider", "/ /x\n/va /x\n/var/im /x\n", "/ /x\n/va /x\n/var/im /x\n" + line},
	}
	for _, tt := range tests {
		got, err := EquivalentSubs([]byte(tt.old), "/var/images", "/var/lib/containers/storage")
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
			continue
		}
		again, err := EquivalentSubs(got, "/var/images", "/var/lib/containers/storage")
		if err != nil || !bytes.Equal(again, got) {
			t.Errorf("%s again: %q, %v", tt.name, again, err)
		}
		// Both the last line that fits and the first must be ours.
		list, err := parseSubs(got)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if to := (&Policy{subs: list}).substitute("/var/images/x"); to != "/var/lib/containers/storage/x" {
				t.Errorf("%s: /var/images/x becomes %s", tt.name, to)
			}
			for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
				list[i], list[j] = list[j], list[i]
			}
		}
	}
	for _, old := range []string{"/var/images /other\n", "/var/images/overlay /x\n"} {
		if _, err := EquivalentSubs([]byte(old), "/var/images", "/var/lib/containers/storage"); !errors.Is(err, ErrConflict) {
			t.Errorf("%q: %v", old, err)
		}
	}
	for _, bad := range []string{"", "/", "var/images", "/var/images/", "/var/../images", "/my images", "/a\x00", "/" + strings.Repeat("x", maxSub)} {
		if _, err := EquivalentSubs(nil, bad, "/var/lib/containers/storage"); !errors.Is(err, ErrPath) {
			t.Errorf("store %q: %v", clip(bad), err)
		}
		if _, err := EquivalentSubs(nil, "/var/images", bad); !errors.Is(err, ErrPath) {
			t.Errorf("like %q: %v", clip(bad), err)
		}
	}
}

func Example() {
	disk := with("/.* system_u:object_r:default_t:s0\n" +
		"/var/lib/containers(/.*)? system_u:object_r:container_var_lib_t:s0\n" +
		"/var/lib/containers/storage/overlay(/.*)? system_u:object_r:container_ro_file_t:s0\n")
	p, err := Load(disk, nil)
	if err != nil {
		panic(err)
	}
	subs, err := EquivalentSubs(nil, "/var/images", "/var/lib/containers/storage")
	if err != nil {
		panic(err)
	}
	if p, err = p.WithSubs(subs); err != nil {
		panic(err)
	}
	label, _ := p.Label("/var/images/overlay/ab/diff/bin/sh", tar.TypeReg)
	fmt.Printf("%s: %s%s\n", p.SubsPath(), subs, label)
	// Output:
	// /etc/selinux/targeted/contexts/files/file_contexts.subs: /var/images /var/lib/containers/storage
	// system_u:object_r:container_ro_file_t:s0
}

func FuzzFileContexts(f *testing.F) {
	f.Add([]byte(rules), []byte("/run /var/run\n"), "/var/lib/containers/storage/overlay/x")
	f.Add([]byte("/a/b|/c -d x\n/[[:alpha:]]{1,3}[^]]\\.? y\n"), []byte("/a /\n/a/b /c"), "/a/b\n")
	f.Add([]byte("^(((a?)*)+)$ x\n/x\\ y\n"), []byte("x"), "\xff//")
	f.Fuzz(func(t *testing.T, text, subs []byte, name string) {
		if len(text) > 1<<14 || len(name) > 1<<10 {
			return
		}
		var b builder
		if err := b.parse("file_contexts", text); err != nil {
			if !errors.Is(err, ErrSyntax) && !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		p := &Policy{specs: b.build()}
		q, err := p.WithSubs(subs)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatal(err)
			}
			return
		}
		for _, flag := range []byte{tar.TypeReg, tar.TypeDir, 0xff} {
			label, ok := q.Label(name, flag)
			if again, ok2 := q.Label(name, flag); again != label || ok2 != ok || ok && (label == "" || label == none) {
				t.Fatalf("%q, %v and %q, %v", label, ok, again, ok2)
			}
		}
		// The index must find what trying every specification finds.
		if n := len(p.specs.all); n < 100 {
			want, wantOK := slow(p.specs, clean(name), '-')
			if got, ok := p.specs.lookup(clean(name), '-'); got != want && ok || ok != wantOK {
				t.Fatalf("%q: %q, %v; slowly %q, %v", name, got, ok, want, wantOK)
			}
		}
		if edited, err := EquivalentSubs(subs, "/var/images", "/x"); err == nil {
			if again, err := EquivalentSubs(edited, "/var/images", "/x"); err != nil || !bytes.Equal(again, edited) {
				t.Fatalf("%q, then %q, %v", edited, again, err)
			}
		}
	})
}

// keysOf is the common literal start of each specification's paths.
func keysOf(s *specs) []string {
	keys := make([]string, len(s.all))
	for _, index := range []map[string][]int32{s.prefix, s.exact} {
		for key, list := range index {
			for _, i := range list {
				keys[i] = key[:s.all[i].keyLen()]
			}
		}
	}
	return keys
}

// keyLen is the length of the literal text before rest.
func (s *spec) keyLen() int {
	if s.start == 0 {
		return s.stem
	}
	return s.start
}

// slow is lookup without index: each specification in turn.
func slow(s *specs, path string, kind byte) (string, bool) {
	keys := keysOf(s)
	for i := len(s.all) - 1; i >= 0; i-- {
		at := &s.all[i]
		if !strings.HasPrefix(path, keys[i]) || at.kind != 0 && at.kind != kind || at.stem > 0 && (len(path) <= at.stem || path[at.stem] != '/') {
			continue
		}
		if at.shape == refused {
			return "", false
		}
		line := strings.TrimSuffix(path, "\n")
		if at.match(path[at.start:]) || at.start <= len(line) && at.match(line[at.start:]) {
			return at.context, at.context != none
		}
	}
	return "", false
}
