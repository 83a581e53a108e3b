package selinux

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp/syntax"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk reads a folder of the machine.
type disk string

func (d disk) Open(name string) (*io.SectionReader, error) {
	b, err := os.ReadFile(filepath.Join(string(d), name))
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), nil
}

func need(t testing.TB, wants ...string) {
	t.Helper()
	missing := ""
	for _, w := range wants {
		if _, err := exec.LookPath(w); err != nil {
			if _, err := os.Stat(w); err != nil {
				missing = w + " is not installed"
			}
		}
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(missing)
	}
	t.Skip(missing)
}

// debian is the policy of Debian's selinux-policy-default.
const debian = "/etc/selinux/default/contexts/files/file_contexts"

// copyPolicy makes a disk with the text files of Debian's policy and more, and returns its root and the path of its
// file_contexts.
func copyPolicy(t testing.TB, more map[string]string) (root, contexts string) {
	t.Helper()
	root = t.TempDir()
	contexts = filepath.Join(root, "etc/selinux/default/contexts/files/file_contexts")
	if err := os.MkdirAll(filepath.Dir(contexts), 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(root, "etc/selinux/config"), "SELINUX=permissive\nSELINUXTYPE=default\n")
	for _, suffix := range []string{"", ".homedirs", ".subs_dist"} {
		b, err := os.ReadFile(debian + suffix)
		if err != nil {
			t.Fatal(err)
		}
		write(contexts+suffix, string(b)+more[suffix])
	}
	for _, suffix := range []string{".local", ".subs"} {
		if more[suffix] != "" {
			write(contexts+suffix, more[suffix])
		}
	}
	return root, contexts
}

// kinds are the file types: their letters, how matchpathcon calls them, and tar's flags.
var kinds = []struct {
	letter byte
	name   string
	flag   byte
}{{'-', "file", tar.TypeReg}, {'d', "dir", tar.TypeDir}, {'l', "lnk_file", tar.TypeSymlink}, {'c', "chr_file", tar.TypeChar},
	{'b', "blk_file", tar.TypeBlock}, {'p', "pipe", tar.TypeFifo}, {'s', "sock_file", 's'}}

// oracle asks libselinux for the contexts of paths of one type; "<<none>>" where it has none.
func oracle(t testing.TB, contexts, kind string, paths []string) []string {
	t.Helper()
	var all []string
	for len(paths) > 0 {
		n := min(len(paths), 1000)
		args := append([]string{"-n", "-N", "-m", kind, "-f", contexts}, paths[:n]...)
		out, err := exec.Command("matchpathcon", args...).Output()
		lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		if err != nil || len(lines) != n {
			t.Fatalf("matchpathcon: %v: %d lines for %d paths", err, len(lines), n)
		}
		all = append(all, lines...)
		paths = paths[n:]
	}
	return all
}

// moved says whether matchpathcon, which follows the links of the machine it runs on, would ask for another path.
func moved(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	if err == nil && real != path {
		return true
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(path))
	return err == nil && parent != filepath.Dir(path)
}

func seed(t testing.TB) *rand.Rand {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NODEBAKE_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// generate makes a text that a pattern matches.
func generate(rnd *rand.Rand, re *syntax.Regexp, out *strings.Builder, depth int) {
	const any = "abcxyz019.-_/ +"
	times := 1
	switch re.Op {
	case syntax.OpLiteral:
		out.WriteString(string(re.Rune))
		return
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		out.WriteByte(any[rnd.IntN(len(any))])
		return
	case syntax.OpCharClass:
		for range 20 {
			c := rune(any[rnd.IntN(len(any))])
			for i := 0; i < len(re.Rune); i += 2 {
				if c >= re.Rune[i] && c <= re.Rune[i+1] {
					out.WriteRune(c)
					return
				}
			}
		}
		out.WriteByte(byte(re.Rune[0]))
		return
	case syntax.OpAlternate:
		generate(rnd, re.Sub[rnd.IntN(len(re.Sub))], out, depth+1)
		return
	case syntax.OpStar:
		times = rnd.IntN(5)
	case syntax.OpPlus:
		times = 1 + rnd.IntN(4)
	case syntax.OpQuest:
		times = rnd.IntN(2)
	case syntax.OpRepeat:
		times = re.Min + rnd.IntN(2)
		if re.Max >= 0 {
			times = min(times, re.Max)
		}
	}
	for range times {
		for _, sub := range re.Sub {
			if depth < 20 {
				generate(rnd, sub, out, depth+1)
			}
		}
	}
}

// paths makes n paths that the specifications of the policy are near to, and real ones of the machine.
func paths(t testing.TB, rnd *rand.Rand, p *Policy, n int) []string {
	keys := keysOf(p.specs)
	patterns := map[shape]string{subtree: "(/.*)?", inside: "/.*", anything: ".*", within: "/.+", some: ".+", name: "[^/]*", nameSome: "[^/]+"}
	var real []string
	for _, dir := range []string{"/etc", "/usr/lib", "/usr/share", "/usr/bin", "/var", "/lib/systemd", "/run"} {
		filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && rnd.IntN(20) == 0 {
				real = append(real, path)
			}
			if len(real) > n {
				return fs.SkipAll
			}
			return nil
		})
	}
	aliases := p.Subs()
	var all []string
	for len(all) < n {
		var path string
		if rnd.IntN(4) == 0 {
			path = real[rnd.IntN(len(real))]
		} else {
			i := rnd.IntN(len(keys))
			at := &p.specs.all[i]
			pattern := at.rest
			if at.shape != general {
				pattern = patterns[at.shape]
			}
			re, err := syntax.Parse(pattern, syntax.Perl|syntax.DotNL)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			b.WriteString(keys[i][:at.start])
			generate(rnd, re, &b, 0)
			if path = b.String(); path == "" {
				continue
			}
		}
		switch rnd.IntN(8) {
		case 0:
			path += "/" + strconv.Itoa(rnd.IntN(100))
		case 1:
			path = path[:rnd.IntN(len(path))]
		case 2:
			j := rnd.IntN(len(path))
			path = path[:j] + string("x/.\xc3\xe9\n"[rnd.IntN(6)]) + path[j:]
		case 3:
			path = filepath.Dir(path)
		case 4:
			// The other way round: an aliased path whose target the specification is for.
			if s := aliases[rnd.IntN(len(aliases))]; strings.HasPrefix(path, s[1]) {
				path = s[0] + strings.TrimPrefix(path, s[1])
			} else {
				path = s[0] + path
			}
		}
		if path = clean(path); strings.Contains(path, "/./") || strings.Contains(path, "/../") || len(path) > 3000 || moved(path) {
			continue
		}
		all = append(all, path)
	}
	return all
}

// TestAgainstLibselinux compares every label with the one that matchpathcon prints.
func TestAgainstLibselinux(t *testing.T) {
	need(t, "matchpathcon", debian)
	rnd := seed(t)
	n := 5_000
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		n = 200_000
	}
	store, err := EquivalentSubs([]byte("/data /srv\n/data/sub /opt\n"), "/var/images", "/var/lib/containers/storage")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		more map[string]string
	}{
		{name: "as installed"},
		{name: "container rules, homedirs, local, subs", more: map[string]string{
			"": strings.ReplaceAll(rules, "/var/run/crio", "/run/crio"),
			".local": "/opt/thing(/.*)?\tsystem_u:object_r:usr_t:s0\n/srv/x/[^/]+\\.d(/.*)?\t--\tsystem_u:object_r:etc_t:s0\n" +
				"/srv/y|/srv/z\tsystem_u:object_r:var_t:s0\n/etc/fstab\t-l\tsystem_u:object_r:var_t:s0\n/var/quux/?\tsystem_u:object_r:usr_t:s0\n" +
				"/opt/w[[:alpha:]]{1,3}\\d*\\.(so|a)\tsystem_u:object_r:lib_t:s0\n/srv/none(/.*)?\t<<none>>\n/foo\\-bar/x\tsystem_u:object_r:lib_t:s0\n",
			".homedirs":  "/home/[^/]+/extra\\+(.*)?\tunconfined_u:object_r:user_home_t:s0\n",
			".subs":      string(store),
			".subs_dist": "/everything /\n/var/data /data\n",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root, contexts := copyPolicy(t, tt.more)
			p, err := Load(disk(root), nil)
			if err != nil || p == nil {
				t.Fatal(p, err)
			}
			if w := p.Warnings(); len(w) > 0 {
				t.Fatalf("%d warnings, the first %s", len(w), w[0])
			}
			asked := contexts
			if tt.more == nil {
				// The installed policy has compiled files too, which the tool prefers.
				asked = debian
			}
			byKind := map[int][]string{}
			for _, path := range paths(t, rnd, p, n) {
				k := rnd.IntN(len(kinds))
				if rnd.IntN(2) == 0 {
					k = rnd.IntN(3)
				}
				byKind[k] = append(byKind[k], path)
			}
			checked, labelled, wrong := 0, 0, 0
			for k, list := range byKind {
				for i, want := range oracle(t, asked, kinds[k].name, list) {
					got, ok := p.Label(list[i], kinds[k].flag)
					if !ok {
						got = none
					} else {
						labelled++
					}
					if checked++; got != want {
						if wrong++; wrong < 20 {
							t.Errorf("%q as %s: %s, libselinux says %s", list[i], kinds[k].name, got, want)
						}
					}
				}
			}
			t.Logf("%d labels compared, %d of them not <<none>>, %d specifications, %d wrong", checked, labelled, len(p.specs.all), wrong)
		})
	}
}

// TestRelabelChangesNothing labels a tree by the policy and then lets setfiles relabel it, as the node's first boot does.
func TestRelabelChangesNothing(t *testing.T) {
	need(t, "setfiles", debian)
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("security.selinux needs root")
		}
		t.Skip("security.selinux needs root")
	}
	rnd := seed(t)
	subs, err := EquivalentSubs(nil, "/var/images", "/var/lib/containers/storage")
	if err != nil {
		t.Fatal(err)
	}
	root, contexts := copyPolicy(t, map[string]string{
		"":      strings.ReplaceAll(rules[strings.Index(rules, "/etc/containers(/.*)?"):], "/var/run/crio", "/run/crio"),
		".subs": string(subs),
	})
	p, err := Load(disk(root), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"etc/containers/storage.conf", "etc/fstab", "var/images/overlay/ab/diff/usr/bin/x", "var/images/overlay/ab/link", "var/images/storage.lock",
		"var/images/overlay-images/images.json", "var/images/overlay-layers/layers.json", "var/lib/containers/storage/overlay/x", "var/log/messages", "var/tmp/x", "home/core/.ssh/id"} {
		make1(t, filepath.Join(root, path), '-')
	}
	for _, path := range paths(t, rnd, p, 1500) {
		if strings.HasPrefix(path, "/etc/selinux") || strings.IndexByte(path, '\n') >= 0 || strings.Contains(path, "//") {
			continue
		}
		make1(t, filepath.Join(root, path), kinds[rnd.IntN(len(kinds))].letter)
	}
	count, set := 0, 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		flag := byte(tar.TypeReg)
		switch typ := d.Type(); {
		case typ.IsDir():
			flag = tar.TypeDir
		case typ&fs.ModeSymlink != 0:
			flag = tar.TypeSymlink
		case typ&fs.ModeCharDevice != 0:
			flag = tar.TypeChar
		case typ&fs.ModeDevice != 0:
			flag = tar.TypeBlock
		case typ&fs.ModeNamedPipe != 0:
			flag = tar.TypeFifo
		case typ&fs.ModeSocket != 0:
			flag = 's'
		}
		count++
		label, ok := p.Label(strings.TrimPrefix(path, root), flag)
		if !ok {
			return nil
		}
		set++
		// The kernel's policy and libselinux write the terminating NUL byte too.
		return unix.Lsetxattr(path, "security.selinux", append([]byte(label), 0), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files, %d labelled", count, set)
	for _, args := range [][]string{{"-n", "-v", "-F"}, {"-v", "-F", "-i", "-0"}, {"-v"}} {
		for _, top := range []string{root, root + "/var", root + "/etc"} {
			if _, err := os.Stat(top); err != nil {
				continue
			}
			full := append(append([]string{}, args...), "-r", root, contexts, top)
			out, err := exec.Command("setfiles", full...).CombinedOutput()
			if err != nil || len(out) > 0 {
				if len(out) > 2000 {
					out = out[:2000]
				}
				t.Fatalf("setfiles %s: %v\n%s", strings.Join(full, " "), err, out)
			}
		}
	}
	// The proof can fail: without the line the store's labels do change.
	if err := os.Remove(contexts + ".subs"); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("setfiles", "-n", "-v", "-F", "-r", root, contexts, root+"/var").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("/var/images/overlay ")) {
		t.Fatalf("without the line: %v\n%.2000s", err, out)
	}
}

// make1 makes a file of a type and its folders; what cannot be made there is left out.
func make1(t *testing.T, path string, kind byte) {
	t.Helper()
	if os.MkdirAll(filepath.Dir(path), 0o755) != nil {
		return
	}
	switch kind {
	case '-':
		if f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o644); err == nil {
			f.Close()
		}
	case 'd':
		os.Mkdir(path, 0o755)
	case 'l':
		os.Symlink("target", path)
	default:
		mode := map[byte]uint32{'c': unix.S_IFCHR, 'b': unix.S_IFBLK, 'p': unix.S_IFIFO, 's': unix.S_IFSOCK}[kind]
		unix.Mknod(path, mode|0o600, 0)
	}
}

// fedoraSize is a policy of about 6,000 specifications, where Debian's is not installed.
func fedoraSize() string {
	var b strings.Builder
	b.WriteString(rules)
	for i := range 1200 {
		fmt.Fprintf(&b, "/usr/(local/)?s?bin/tool%d-.*\\.(sh|py)\t--\tsystem_u:object_r:tool%d_exec_t:s0\n", i, i)
		fmt.Fprintf(&b, "/var/lib/tool%d(/.*)?\tsystem_u:object_r:tool%d_var_lib_t:s0\n", i, i)
		fmt.Fprintf(&b, "/etc/tool%d/[^/]*\\.conf\t--\tsystem_u:object_r:tool%d_etc_t:s0\n", i, i)
		fmt.Fprintf(&b, "/run/tool%d\\.pid\t--\tsystem_u:object_r:tool%d_run_t:s0\n", i, i)
		fmt.Fprintf(&b, "/usr/lib/tool%d(/.*)?/lib.+\\.so(\\.[^/]*)*\t--\tsystem_u:object_r:lib_t:s0\n", i)
	}
	return b.String()
}

func BenchmarkLoad(b *testing.B) {
	f := with(fedoraSize())
	b.ReportAllocs()
	for b.Loop() {
		if p := load(b, f); len(p.specs.all) < 6000 {
			b.Fatal(len(p.specs.all))
		}
	}
}

// BenchmarkLabel takes 100,000 lookups of a store's paths, and as many of a system's.
func BenchmarkLabel(b *testing.B) {
	sources := map[string]*Policy{"made": load(b, with(fedoraSize(), ".subs", "/var/images /var/lib/containers/storage\n"))}
	if p, err := Load(disk("/"), nil); err == nil && p != nil {
		sources["debian"] = p
	}
	for source, p := range sources {
		for kind, format := range map[string]string{"store": "/var/images/overlay/0123456789abcdef/diff/usr/lib/python3/dist-packages/module%d/file%d.py",
			"system": "/usr/lib/x86_64-linux-gnu/module%d/libfile%d.so.1"} {
			b.Run(source+"/"+kind, func(b *testing.B) {
				names := make([]string, 100_000)
				for i := range names {
					names[i] = fmt.Sprintf(format, i/50, i)
				}
				b.ReportAllocs()
				for b.Loop() {
					for _, n := range names {
						p.Label(n, tar.TypeReg)
					}
				}
			})
		}
	}
}
