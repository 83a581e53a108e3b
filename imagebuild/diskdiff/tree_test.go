package diskdiff_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand"
	"os"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	. "github.com/nodebake/nodebake/imagebuild/diskdiff"
)

// file is a name of a memTree.
type file struct {
	tar.Header
	content string
	same    *file // set: a hard link
	broken  error
}

// memTree is a Tree in memory; the root is "".
type memTree map[string]*file

func (t memTree) at(name string) (*file, error) {
	f := t[strings.Trim(name, "/")]
	if f == nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
	}
	if f.same != nil {
		f = f.same
	}
	return f, f.broken
}

func (t memTree) Stat(name string) (*tar.Header, error) {
	f, err := t.at(name)
	if err != nil {
		return nil, err
	}
	h := f.Header
	return &h, nil
}

func (t memTree) ReadDir(name string) ([]string, error) {
	if _, err := t.at(name); err != nil {
		return nil, err
	}
	name = strings.Trim(name, "/")
	var names []string
	for n := range t {
		if dir := strings.TrimSuffix(path.Dir("/"+n), "/"); n != "" && strings.TrimPrefix(dir, "/") == name {
			names = append(names, path.Base(n))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (t memTree) Open(name string) (*io.SectionReader, error) {
	f, err := t.at(name)
	if err != nil {
		return nil, err
	}
	return io.NewSectionReader(strings.NewReader(f.content), 0, f.Size), nil
}

func (t memTree) SameFile(a, b string) (bool, error) {
	x, err := t.at(a)
	if err != nil {
		return false, err
	}
	y, err := t.at(b)
	return x == y, err
}

func dir(mode int64) *file { return &file{Header: tar.Header{Typeflag: tar.TypeDir, Mode: mode}} }

func reg(content string) *file {
	return &file{Header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content: content}
}

func (f file) with(change func(*file)) *file {
	change(&f)
	return &f
}

func xattr(k, v string) func(*file) {
	return func(f *file) {
		f.PAXRecords = maps.Clone(f.PAXRecords)
		if f.PAXRecords == nil {
			f.PAXRecords = map[string]string{}
		}
		f.PAXRecords["SCHILY.xattr."+k] = v
	}
}

func base() memTree {
	return memTree{"": dir(0o755), "etc": dir(0o755), "etc/conf": reg("a\nb\n"), "etc/shadow": reg("secret\n").with(func(f *file) { f.Mode = 0o600 }),
		"usr": dir(0o755), "usr/bin": dir(0o755), "usr/bin/tool": reg(strings.Repeat("x", 100000)), "usr/bin/link": {Header: tar.Header{Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "tool"}},
		"usr/bin/dev": {Header: tar.Header{Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}, "usr/empty": reg("")}
}

// compare gives the changes, one a line: mark, path, what differs.
func compare(t *testing.T, a, b memTree, o TreeOptions, trees func(*Trees)) ([]string, []Change, Totals) {
	t.Helper()
	tr := Trees{A: a, B: b, Pairs: []Pair{{"", "", "/"}}}
	if trees != nil {
		trees(&tr)
	}
	var lines []string
	var all []Change
	totals, err := Compare(t.Context(), tr, o, func(c Change) error {
		line := string(c.Kind) + " " + string(c.Path)
		if len(c.Differs) > 0 {
			line += " " + strings.Join(c.Differs, ",")
		}
		if c.Below != nil {
			line += fmt.Sprintf(" %d/%d", c.Below.Names, c.Below.Bytes)
		}
		lines = append(lines, line)
		all = append(all, c)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines, all, totals
}

func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(memTree)
		o      TreeOptions
		trees  func(*Trees)
		want   []string
	}{
		{name: "nothing", change: func(memTree) {}},
		{name: "content of one size", change: func(b memTree) { b["etc/conf"] = reg("a\nc\n") }, want: []string{"changed /etc/conf content"}},
		{name: "the last byte", change: func(b memTree) { b["usr/bin/tool"] = reg(strings.Repeat("x", 99999) + "y") }, want: []string{"changed /usr/bin/tool content"}},
		{name: "size", change: func(b memTree) { b["etc/conf"] = reg("a\n") }, want: []string{"changed /etc/conf size,content"}},
		{name: "mode and owner", change: func(b memTree) {
			b["etc/conf"] = b["etc/conf"].with(func(f *file) { f.Mode, f.Uid = 0o4755, 7 })
			b["usr"] = b["usr"].with(func(f *file) { f.Gid = 9 })
		}, want: []string{"changed /etc/conf mode,owner", "changed /usr owner"}},
		{name: "a symlink's mode is nothing", change: func(b memTree) { b["usr/bin/link"] = b["usr/bin/link"].with(func(f *file) { f.Mode = 0 }) }},
		{name: "target and device", change: func(b memTree) {
			b["usr/bin/link"] = b["usr/bin/link"].with(func(f *file) { f.Linkname = "dev" })
			b["usr/bin/dev"] = b["usr/bin/dev"].with(func(f *file) { f.Devminor = 5 })
		}, want: []string{"changed /usr/bin/dev device", "changed /usr/bin/link target"}},
		{name: "type", change: func(b memTree) {
			b["usr/bin/link"], b["usr/empty"], b["usr/empty/x"] = reg("tool"), dir(0o755), reg("1")
		}, want: []string{"changed /usr/bin/link type,mode", "changed /usr/empty type,mode", "added /usr/empty/x"}},
		{name: "attributes", change: func(b memTree) {
			b["etc/conf"] = b["etc/conf"].with(xattr("security.selinux", "x\x00")).with(xattr("user.b", "1"))
			b["etc"] = b["etc"].with(xattr("user.a", "\xff"))
		}, want: []string{"changed /etc xattr:user.a", "changed /etc/conf xattr:security.selinux,xattr:user.b"}},
		{name: "times do not count", change: func(b memTree) { b["etc/conf"] = b["etc/conf"].with(func(f *file) { f.ModTime = time.Unix(1, 1) }) }},
		{name: "times count", o: TreeOptions{Times: true}, change: func(b memTree) {
			b["etc/conf"] = b["etc/conf"].with(func(f *file) { f.ModTime = f.ModTime.Add(1) })
		}, want: []string{"changed /etc/conf mtime"}},
		{name: "times to the second", o: TreeOptions{Times: true, TimeResolution: time.Second}, change: func(b memTree) {
			b["etc/conf"] = b["etc/conf"].with(func(f *file) { f.ModTime = f.ModTime.Add(1) })
			b["usr"] = b["usr"].with(func(f *file) { f.ModTime = f.ModTime.Add(time.Second) })
		}, want: []string{"changed /usr mtime"}},
		{name: "a folder more, one less", change: func(b memTree) {
			b["opt"], b["opt/a"], b["opt/a/b"] = dir(0o755), dir(0o755), reg("123")
			for _, n := range []string{"usr/bin", "usr/bin/tool", "usr/bin/link", "usr/bin/dev"} {
				delete(b, n)
			}
		}, want: []string{"added /opt 2/3", "removed /usr/bin 3/100000"}},
		{name: "each name of it", o: TreeOptions{Every: true}, change: func(b memTree) { b["opt"], b["opt/a"], b["opt/a/b"] = dir(0o755), dir(0o755), reg("123") },
			want: []string{"added /opt", "added /opt/a", "added /opt/a/b"}},
		{name: "each name where lines are wanted", o: TreeOptions{Lines: func(p string) bool { return strings.HasPrefix(p, "/etc") }},
			change: func(b memTree) {
				b["etc/d"], b["etc/d/x"], b["opt"], b["opt/y"] = dir(0o755), reg("1\n"), dir(0o700), reg("1\n")
			},
			want: []string{"added /etc/d", "added /etc/d/x", "added /opt 1/2"}},
		{name: "both skip", change: func(b memTree) { b["usr/bin/tool"] = reg("") },
			trees: func(t *Trees) {
				t.SkipA = func(n string) bool { return n == "usr/bin" }
				t.SkipB = t.SkipA
			}},
		{name: "one skips what the other has", change: func(b memTree) { b["usr/bin/tool"] = reg("") },
			trees: func(t *Trees) { t.SkipA = func(n string) bool { return n == "usr/bin" } }, want: []string{"changed /usr/bin/tool size,content"}},
		{name: "one skips what the other has not", change: func(b memTree) { b["opt"], b["opt/a"] = dir(0o755), reg("1") },
			trees: func(t *Trees) { t.SkipB = func(n string) bool { return n == "opt" } }},
		{name: "pairs", change: func(b memTree) {
			b["new"], b["new/tool"] = dir(0o755), reg("y")
			b["etc/conf"] = reg("")
		}, trees: func(t *Trees) { t.Pairs = []Pair{{"/", ".", "/"}, {"usr/bin", "new", "/usr/bin"}} },
			want: []string{"changed /etc/conf size,content", "added /new 1/1", "removed /usr/bin/dev", "removed /usr/bin/link", "changed /usr/bin/tool size,content"}},
		{name: "a pair that one side lacks", change: func(memTree) {}, trees: func(t *Trees) { t.Pairs = []Pair{{"etc", "var", "/etc"}, {"no", "where", "/no"}} },
			want: []string{"removed /etc 2/11"}},
		{name: "unreadable", change: func(b memTree) {
			b["etc/conf"] = reg("").with(func(f *file) { f.broken = errors.New("bad inode") })
			b["opt"] = dir(0).with(func(f *file) { f.broken = errors.New("bad folder") })
		}, want: []string{"unreadable /etc/conf", "unreadable /opt"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := base()
			c.change(b)
			got, all, totals := compare(t, base(), b, c.o, c.trees)
			if !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nmust be\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if totals.Any() != (len(c.want) > 0) {
				t.Errorf("totals %+v", totals)
			}
			if _, err := json.Marshal(all); err != nil {
				t.Error(err)
			}
			// Seen from the other side, what was added is removed.
			back, _, _ := compare(t, b, base(), c.o, func(tr *Trees) {
				if c.trees != nil {
					c.trees(tr)
				}
				tr.SkipA, tr.SkipB = tr.SkipB, tr.SkipA
				for i, p := range tr.Pairs {
					tr.Pairs[i].A, tr.Pairs[i].B = p.B, p.A
				}
			})
			if len(back) != len(got) {
				t.Errorf("from the other side\n%s", strings.Join(back, "\n"))
			}
		})
	}
}

// TestChange holds what a change says of both sides.
func TestChange(t *testing.T) {
	b := base()
	b["etc/conf"] = reg("a\nc\n").with(xattr("user.x", "\xff\x00")).with(func(f *file) { f.Mode = 0o600 })
	b["etc/new"] = reg("1\n")
	b["etc/shadow"] = reg("other\n").with(func(f *file) { f.Mode = 0o600 })
	b["etc/\xff"] = reg("")
	_, all, _ := compare(t, base(), b, TreeOptions{Hashes: true, Lines: func(string) bool { return true }}, nil)
	got, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	for _, want := range []string{
		`"path": "0sL2V0Yy//"`, `"user.x": "0s/wA="`, `"lines": "@@ -0,0 +1 @@\n+1\n"`, `"mode": "0600"`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
	// conf and shadow are not for everybody's eyes on one side at least.
	if strings.Contains(text, "secret") || strings.Contains(text, "+c") {
		t.Errorf("lines of a file that only its owner may read\n%s", text)
	}
	for _, c := range all {
		if strings.Contains(string(c.Path), "shadow") && (len(c.A.SHA256) != 64 || len(c.B.SHA256) != 64 || c.A.SHA256 == c.B.SHA256) {
			t.Errorf("%+v %+v", c.A, c.B)
		}
	}
}

// TestLinks says that the other links of files that were read are not read, and only those.
func TestLinks(t *testing.T) {
	big := strings.Repeat("z", 50000)
	a, b := base(), base()
	for _, tr := range []memTree{a, b} {
		tr["a"] = reg(big)
		tr["repo"], tr["repo/o"], tr["repo/p"] = dir(0o755), &file{same: tr["a"]}, reg(big)
	}
	// One of the links in b leads to another file of the same size.
	b["repo/p"] = reg(big[1:] + "y")
	runtime.GOMAXPROCS(1) // so that a is read before repo/o
	defer runtime.GOMAXPROCS(runtime.NumCPU())
	got, _, totals := compare(t, a, b, TreeOptions{}, nil)
	if !slices.Equal(got, []string{"changed /repo/p content"}) || totals.Bytes != 3*50000+100000+7+4 {
		t.Errorf("%q, %+v", got, totals)
	}
	reads := &counting{memTree: a}
	if _, err := Compare(t.Context(), Trees{A: reads, B: b, Pairs: []Pair{{"", "", "/"}}}, TreeOptions{}, func(Change) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(reads.opened, "repo/o") || !slices.Contains(reads.opened, "repo/p") {
		t.Errorf("opened %q", reads.opened)
	}
}

type counting struct {
	memTree
	opened []string
}

func (c *counting) Open(name string) (*io.SectionReader, error) {
	c.opened = append(c.opened, name)
	return c.memTree.Open(name)
}

// looped is a folder that holds itself, and a symlink to itself.
type looped struct{}

func (looped) Stat(name string) (*tar.Header, error) {
	return &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}, nil
}
func (looped) ReadDir(string) ([]string, error)            { return []string{"a", "b"}, nil }
func (looped) Open(name string) (*io.SectionReader, error) { return nil, fs.ErrInvalid }
func (looped) SameFile(a, b string) (bool, error)          { return false, nil }

func TestHostile(t *testing.T) {
	for name, trees := range map[string]Trees{
		"both":  {A: looped{}, B: looped{}},
		"added": {A: memTree{"": dir(0o755)}, B: looped{}},
	} {
		for _, every := range []bool{false, true} {
			trees.Pairs = []Pair{{"", "", "/"}}
			_, err := Compare(t.Context(), trees, TreeOptions{MaxFolders: 10000, Every: every}, func(Change) error { return nil })
			if !errors.Is(err, ErrHostile) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	// A file that says it has 8 EiB is not read.
	a, b := base(), base()
	for _, tr := range []memTree{a, b} {
		tr["huge"] = reg("").with(func(f *file) { f.Size = 1<<63 - 1 })
	}
	got, _, _ := compare(t, a, b, TreeOptions{MaxBytes: 1 << 20}, nil)
	if !slices.Equal(got, []string{"unreadable /huge"}) {
		t.Errorf("%q", got)
	}
	delete(b, "huge")
	b["usr/one"], b["usr/two"] = a["huge"], a["huge"]
	if got, _, totals := compare(t, memTree{"": dir(0o755)}, b, TreeOptions{MaxBytes: 1 << 20, Hashes: true}, nil); len(got) != 2 || !totals.Any() {
		t.Errorf("%q %+v", got, totals)
	}
	// What ends early leaves nothing behind.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := runtime.NumGoroutine()
	stop := errors.New("enough")
	for n := range 3 {
		var want error = stop
		_, err := Compare(ctx, Trees{A: memTree{"": dir(0o755)}, B: looped{}, Pairs: []Pair{{"", "", "/"}}}, TreeOptions{Every: true}, func(Change) error {
			if n == 2 {
				cancel()
				want = context.Canceled
				return nil
			}
			return stop
		})
		if !errors.Is(err, want) {
			t.Errorf("%v", err)
		}
	}
	if after := runtime.NumGoroutine(); after > before {
		t.Errorf("%d goroutines, were %d", after, before)
	}
}

// seed is that of the random tests: NODEBAKE_SEED, or the time.
func seed(t *testing.T) *rand.Rand {
	s := time.Now().UnixNano()
	if v := os.Getenv("NODEBAKE_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseInt(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NODEBAKE_SEED=%d", s)
	return rand.New(rand.NewSource(s))
}

// TestRandom compares random trees by walking and by going through all names, with one core and with several.
func TestRandom(t *testing.T) {
	r := seed(t)
	for range 60 {
		a := randomTree(r)
		b := memTree{}
		for n, f := range a {
			b[n] = f.with(func(*file) {})
		}
		for range r.Intn(12) {
			mutate(r, b)
		}
		var want []string
		for n := range a {
			if b[n] == nil {
				want = append(want, "/"+n)
			}
		}
		for n, f := range b {
			if a[n] == nil || f.content != a[n].content || f.Mode != a[n].Mode || f.Typeflag != a[n].Typeflag || !maps.Equal(f.PAXRecords, a[n].PAXRecords) {
				want = append(want, "/"+n)
			}
		}
		slices.Sort(want)
		var runs [][]Change
		for _, cores := range []int{1, 4} {
			runtime.GOMAXPROCS(cores)
			_, all, _ := compare(t, a, b, TreeOptions{Every: true, Hashes: true}, nil)
			runs = append(runs, all)
		}
		runtime.GOMAXPROCS(runtime.NumCPU())
		if !reflect.DeepEqual(runs[0], runs[1]) {
			t.Fatal("the number of cores changes the result")
		}
		var got []string
		for _, c := range runs[0] {
			got = append(got, string(c.Path))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("found %q, must be %q", got, want)
		}
	}
}

func randomTree(r *rand.Rand) memTree {
	t := memTree{"": dir(0o755)}
	for range 200 {
		mutate(r, t)
	}
	return t
}

func mutate(r *rand.Rand, t memTree) {
	names := slices.Sorted(maps.Keys(t))
	n := names[r.Intn(len(names))]
	f := t[n]
	switch {
	case f.Typeflag == tar.TypeDir && r.Intn(3) > 0:
		child := strings.TrimPrefix(n+"/"+string(rune('a'+r.Intn(20)))+strings.Repeat("x", r.Intn(3)), "/")
		if t[child] != nil {
			return
		}
		if r.Intn(3) == 0 {
			t[child] = dir(0o755)
		} else {
			t[child] = reg(string(bytes.Repeat([]byte{byte(r.Intn(3))}, r.Intn(3)*700000)))
		}
	case n != "" && r.Intn(8) == 0:
		for o := range t {
			if o == n || strings.HasPrefix(o, n+"/") {
				delete(t, o)
			}
		}
	case f.Typeflag == tar.TypeReg && f.Size > 0 && r.Intn(2) == 0:
		c := []byte(f.content)
		c[r.Intn(len(c))] ^= 1
		t[n] = f.with(func(f *file) { f.content = string(c) })
	case r.Intn(2) == 0:
		t[n] = f.with(func(f *file) { f.Mode ^= 0o100 })
	default:
		t[n] = f.with(xattr("user.x", fmt.Sprint(r.Intn(3))))
	}
}
