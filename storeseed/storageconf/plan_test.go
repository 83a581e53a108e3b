package storageconf

import (
	"archive/tar"
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"go.podman.io/storage/types"
)

// dirFS is a folder of the host as an operating system's tree. Owners and xattrs
// are remembered beside it, so that the tests need no root.
type dirFS struct {
	root  string
	attrs map[string]tar.Header
}

func (d dirFS) host(name string) string { return filepath.Join(d.root, name) }

func (d dirFS) Stat(name string) (*tar.Header, error) {
	// As the contract says: no symlink is followed inside the name.
	for i := range name {
		if name[i] == '/' {
			if fi, err := os.Lstat(d.host(name[:i])); err == nil && !fi.IsDir() {
				return nil, fmt.Errorf("%s: not a directory", name[:i])
			}
		}
	}
	fi, err := os.Lstat(d.host(name))
	if err != nil {
		return nil, err
	}
	link, _ := os.Readlink(d.host(name))
	h, err := tar.FileInfoHeader(fi, link)
	if err != nil {
		return nil, err
	}
	h.Uid, h.Gid = 0, 0
	if a, ok := d.attrs[name]; ok {
		h.Uid, h.Gid, h.Mode, h.PAXRecords = a.Uid, a.Gid, a.Mode, a.PAXRecords
		if a.Typeflag != 0 {
			h.Typeflag = a.Typeflag
		}
	}
	return h, nil
}

func (d dirFS) ReadDir(name string) ([]string, error) {
	es, err := os.ReadDir(d.host(name))
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names, err
}

func (d dirFS) Open(name string) (*io.SectionReader, error) {
	b, err := os.ReadFile(d.host(name))
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b))), err
}

func (d dirFS) Add(h *tar.Header, _ io.Reader) error {
	if h.Typeflag != tar.TypeDir {
		return errors.New("Add of a file")
	}
	return os.Mkdir(d.host(h.Name), fs.FileMode(h.Mode))
}

func (d dirFS) Replace(h *tar.Header, r io.Reader) error {
	if fi, err := os.Lstat(d.host(h.Name)); err == nil && !fi.Mode().IsRegular() {
		return fmt.Errorf("%s: %w", h.Name, fs.ErrExist)
	}
	b, err := io.ReadAll(r)
	if err == nil && int64(len(b)) != h.Size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	d.attrs[h.Name] = *h
	return os.WriteFile(d.host(h.Name), b, fs.FileMode(h.Mode))
}

func (d dirFS) Remove(name string) error { return os.Remove(d.host(name)) }

// resolve follows symlinks, absolute ones from the tree's root.
func (d dirFS) resolve(name string) (string, error) {
	done := ""
	todo := strings.Split(strings.Trim(name, "/"), "/")
	for hops := 0; len(todo) > 0; {
		c := todo[0]
		todo = todo[1:]
		switch c {
		case "", ".":
			continue
		case "..":
			done = strings.TrimPrefix(path.Dir("/"+done), "/")
			continue
		}
		next := path.Join(done, c)
		fi, err := os.Lstat(d.host(next))
		if err != nil {
			return "", err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			done = next
			continue
		}
		if hops++; hops > 40 {
			return "", errors.New("too many symlinks")
		}
		link, err := os.Readlink(d.host(next))
		if err != nil {
			return "", err
		}
		if path.IsAbs(link) {
			done = ""
		}
		todo = append(strings.Split(link, "/"), todo...)
	}
	return done, nil
}

// tree makes a dirFS. A value "-> x" is a symlink, a name that ends in / a folder.
func tree(t testing.TB, files map[string]string) dirFS {
	t.Helper()
	d := dirFS{t.TempDir(), map[string]tar.Header{}}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := d.host(name)
		if err := os.MkdirAll(filepath.Dir(h), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(files[name], "-> "); ok {
			err = os.Symlink(to, h)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(h, 0o755)
		} else {
			err = os.WriteFile(h, []byte(files[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// newEngine is what the storage library (1.63 and later) reads from the tree.
func newEngine(t *testing.T, d dirFS) types.StoreOptions {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(d.root, "nobody"))
	if v, ok := os.LookupEnv("CONTAINERS_STORAGE_CONF"); ok {
		os.Unsetenv("CONTAINERS_STORAGE_CONF")
		defer os.Setenv("CONTAINERS_STORAGE_CONF", v)
	}
	o, err := types.LoadStoreOptions(types.LoadOptions{RootForImplicitAbsolutePaths: d.root})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// oldEngine is what the library up to 1.62 reads: one main file and nothing else.
func oldEngine(t *testing.T, d dirFS) types.StoreOptions {
	t.Helper()
	for _, name := range []string{etcMain, usrMain} {
		if p, err := d.resolve(name); err == nil {
			b, err := os.ReadFile(d.host(p))
			if err != nil {
				t.Fatal(err)
			}
			return load(t, b)
		}
	}
	return types.StoreOptions{}
}

// crioStores is what CRI-O hands to the storage library, after its sources: since
// 1.23 options add up, equal ones once; before, the last file's take the place.
func crioStores(t *testing.T, d dirFS, opts types.StoreOptions, adds bool) (stores []string) {
	t.Helper()
	var c struct {
		Crio struct {
			StorageOption []string `toml:"storage_option"`
		} `toml:"crio"`
	}
	all := opts.GraphDriverOptions
	c.Crio.StorageOption = slices.Clone(all)
	files := []string{d.host("etc/crio/crio.conf")}
	_ = filepath.WalkDir(d.host("etc/crio/crio.conf.d"), func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			files = append(files, p)
		}
		return nil
	})
	for _, f := range files {
		if _, err := toml.DecodeFile(f, &c); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if adds {
			all = append(all, c.Crio.StorageOption...)
		} else {
			all = c.Crio.StorageOption
		}
	}
	seen := map[string]bool{}
	for _, o := range all {
		_, val, ok := strings.Cut(o, "imagestore=")
		for _, s := range strings.Split(val, ",") {
			if ok && !seen[s] {
				seen[s] = true
				stores = append(stores, s)
			}
		}
	}
	return stores
}

const (
	mainConf = "# mine\n[storage]\ndriver = \"overlay\"\n[storage.options]\nadditionalimagestores = [\"/a\"]\n"
	withOpts = "[crio]\nstorage_option = [\n\t\"overlay.mountopt=nodev\",\n]\n"
)

func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]string
		want  []string // names of the edits, in order; "!" before it: unlinks, "/" after it: makes a folder
		warns []string
		first []string // what engines see: old ones; the new ones too unless merged is set
		after []string // what new engines see
	}{
		{name: "file nowhere, empty tree", want: []string{"/etc/", "/etc/containers/", etcMain}, first: []string{store}},
		{name: "file nowhere", files: map[string]string{"etc/containers/": "", "usr/bin/": ""}, want: []string{etcMain}, first: []string{store}},
		{name: "in /etc", files: map[string]string{"etc/containers/storage.conf": mainConf, "usr/share/containers/storage.conf": "[storage]\n"}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "in /usr/share only", files: map[string]string{"usr/share/containers/storage.conf": mainConf}, want: []string{"/etc/", "/etc/containers/", etcMain}, first: []string{store, "/a"}},
		{name: "empty file in /etc hides /usr/share", files: map[string]string{"etc/containers/storage.conf": "", "usr/share/containers/storage.conf": mainConf}, want: []string{etcMain}, first: []string{store}},
		{name: "listed already", files: map[string]string{"etc/containers/storage.conf": "[storage.options]\nadditionalimagestores = ['/a', '/var/images/']\n"}, first: []string{"/a", "/var/images/"}},
		{name: "listed already in /usr/share", files: map[string]string{"usr/share/containers/storage.conf": "[storage.options]\nadditionalimagestores = ['/var/images']\n"}, first: []string{store}},
		{name: "files of users", files: map[string]string{"etc/containers/storage.conf": mainConf, "root/.config/containers/storage.conf": "broken [", "etc/containers/storage.rootless.conf.d/x.conf": "broken ["}, want: []string{etcMain}, first: []string{store, "/a"}, warns: []string{"/root/.config/containers/storage.conf is there"}},

		{name: "drop-in of something else", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/containers/storage.conf.d/x.conf": "[storage]\ntransient_store = false\n"}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "drop-in replaces", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/containers/storage.conf.d/x.conf": "[storage.options]\nadditionalimagestores = ['/b']\n"},
			want: []string{etcMain, "/etc/containers/storage.conf.d/x.conf"}, first: []string{store, "/a"}, after: []string{store, "/b"}},
		{name: "drop-in appends", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/containers/storage.conf.d/x.conf": "[storage.options]\nadditionalimagestores = ['/b', {append = true}]\n"},
			want: []string{etcMain}, first: []string{store, "/a"}, after: []string{store, "/a", "/b"}},
		{name: "one replaces, two append", files: map[string]string{"etc/containers/storage.conf": mainConf,
			"etc/containers/storage.conf.d/1.conf":         "[storage.options]\nadditionalimagestores = ['/b']\n",
			"etc/containers/storage.conf.d/2.conf":         "[storage.options]\nadditionalimagestores = ['/c', {append = true}]\n",
			"etc/containers/storage.rootful.conf.d/3.conf": "[storage.options]\nadditionalimagestores = ['/d']\n"},
			want: []string{etcMain, "/etc/containers/storage.conf.d/1.conf"}, first: []string{store, "/a"}, after: []string{store, "/b", "/c", "/d"}},
		{name: "append switched off again", files: map[string]string{"etc/containers/storage.conf": mainConf,
			"etc/containers/storage.conf.d/2.conf": "[storage.options]\nadditionalimagestores = ['/c', {append = true}]\n",
			"etc/containers/storage.conf.d/3.conf": "[storage.options]\nadditionalimagestores = ['/d', {append = false}]\n"},
			want: []string{etcMain, "/etc/containers/storage.conf.d/3.conf"}, first: []string{store, "/a"}, after: []string{store, "/d"}},
		{name: "drop-ins of one name", files: map[string]string{"etc/containers/storage.conf": mainConf,
			"usr/share/containers/storage.rootful.conf.d/x.conf": "broken [",
			"etc/containers/storage.conf.d/x.conf":               "broken [",
			"etc/containers/storage.rootful.conf.d/x.conf":       "[storage.options]\nadditionalimagestores = []\n"},
			want: []string{etcMain, "/etc/containers/storage.rootful.conf.d/x.conf"}, first: []string{store, "/a"}, after: []string{store}},
		{name: "drop-in in /usr/share", files: map[string]string{"etc/containers/storage.conf": mainConf, "usr/share/containers/storage.rootful.conf.d/x.conf": "[storage.options]\nadditionalimagestores = ['/b']\n"},
			want: []string{etcMain, "/etc/containers/storage.rootful.conf.d/", "/etc/containers/storage.rootful.conf.d/x.conf"}, first: []string{store, "/a"}, after: []string{store, "/b"}},
		{name: "drop-in switched off", files: map[string]string{"etc/containers/storage.conf": mainConf, "dev/null": "", "etc/containers/storage.conf.d/x.conf": "-> /dev/null", "etc/containers/storage.conf.d/y.conf": "-> /gone",
			"usr/share/containers/storage.conf.d/x.conf": "[storage.options]\nadditionalimagestores = ['/b']\n", "etc/containers/storage.conf.d/z.conf/": "", "etc/containers/storage.conf.d/README": "broken ["}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "drop-in and no main file", files: map[string]string{"etc/containers/storage.conf.d/x.conf": "[storage.options]\nadditionalimagestores = ['/b']\n"},
			want: []string{etcMain, "/etc/containers/storage.conf.d/x.conf"}, first: []string{store}, after: []string{store, "/b"}},

		{name: "symlink into /etc", files: map[string]string{"etc/containers/storage.conf": "-> ../site/storage.conf", "etc/site/storage.conf": mainConf}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "symlink into /usr", files: map[string]string{"etc/containers/storage.conf": "-> /usr/lib/site.conf", "usr/lib/site.conf": mainConf}, want: []string{"!" + etcMain}, first: []string{store, "/a"}},
		{name: "dangling symlink", files: map[string]string{"etc/containers/storage.conf": "-> /gone", "usr/share/containers/storage.conf": mainConf}, want: []string{"!" + etcMain}, first: []string{store, "/a"}},
		{name: "switched off", files: map[string]string{"etc/containers/storage.conf": "-> /dev/null", "dev/null": "", "usr/share/containers/storage.conf": mainConf}, want: []string{"!" + etcMain}, first: []string{store}},
		{name: "symlinked folders", files: map[string]string{"etc": "-> private/etc", "private/etc/containers/storage.conf": mainConf}, want: []string{etcMain}, first: []string{store, "/a"}},

		{name: "vfs", files: map[string]string{"etc/containers/storage.conf": "[storage]\ndriver = \"vfs\"\n"}, want: []string{etcMain}, first: []string{store}, warns: []string{`has driver "vfs"`}},
		{name: "priority", files: map[string]string{"etc/containers/storage.conf": "[storage]\ndriver_priority = [\"btrfs\", \"overlay\"]\n"}, want: []string{etcMain}, first: []string{store}, warns: []string{"prefers btrfs"}},
		{name: "variables", files: map[string]string{"etc/containers/storage.conf": "[storage]\ngraphroot = \"$DATA/containers\"\n"}, want: []string{etcMain}, first: []string{store}, warns: []string{"what that stands for"}},

		{name: "CRI-O without options", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": "[crio]\n# storage_option = [\n# ]\n", "etc/crio/crio.conf.d/10": "[crio.runtime]\n"}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "CRI-O with options", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": withOpts}, want: []string{etcMain, "/etc/crio/crio.conf"}, first: []string{store, "/a"}, warns: []string{"before 1.23"}},
		{name: "CRI-O, the last drop-in wins", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": withOpts,
			"etc/crio/crio.conf.d/10-a.conf": withOpts, "etc/crio/crio.conf.d/20/b": "[crio]\nstorage_option = []\n", "etc/crio/crio.conf.d/30.conf": "[crio]\nlog_dir = \"/x\"\n"},
			want: []string{etcMain, "/etc/crio/crio.conf.d/20/b"}, first: []string{store, "/a"}, warns: []string{"crio.conf.d/20/b sets"}},
		{name: "CRI-O lists it", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": "[crio]\nstorage_option = [\"overlay2.imagestore=/a,/var/images\"]\n"}, want: []string{etcMain}, first: []string{store, "/a"}},
		{name: "CRI-O with vfs", files: map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": "[crio]\nstorage_driver = \"vfs\"\nstorage_option = []\n"}, want: []string{etcMain}, first: []string{store, "/a"}, warns: []string{`crio.conf has driver "vfs"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := tree(t, c.files)
			// What /dev/null is.
			d.attrs["dev/null"] = tar.Header{Typeflag: tar.TypeChar}
			e, err := Plan(d, d.resolve, store)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range e.Files {
				n := f.Name
				if f.Unlink {
					n = "!" + n
				}
				if f.Header.Typeflag == tar.TypeDir {
					n += "/"
				}
				got = append(got, n)
				if f.Why == "" || f.Header.Name != f.Path || f.Header.Size != int64(len(f.New)) || !f.Header.ModTime.IsZero() {
					t.Errorf("%+v", f)
				}
				if old, err := os.ReadFile(d.host(f.Path)); err == nil && !f.Unlink && !bytes.Equal(old, f.Old) {
					t.Errorf("%s: Old is %q, the file has %q", f.Name, f.Old, old)
				}
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if len(e.Warnings) != len(c.warns) {
				t.Errorf("warnings: %q", e.Warnings)
			}
			for i, w := range e.Warnings {
				if i < len(c.warns) && !strings.Contains(w, c.warns[i]) || !strings.HasSuffix(w, ".") && !strings.HasSuffix(w, ".)") {
					t.Errorf("warning %q, want %q", w, c.warns)
				}
			}

			if err := e.Apply(d); err != nil {
				t.Fatal(err)
			}
			old, young := oldEngine(t, d), newEngine(t, d)
			if got, _ := imageStores(old); !slices.Equal(got, c.first) {
				t.Errorf("an old engine sees %q, want %q", got, c.first)
			}
			if c.after == nil {
				c.after = c.first
			}
			if got, _ := imageStores(young); !slices.Equal(got, c.after) {
				t.Errorf("a new engine sees %q, want %q", got, c.after)
			}
			// Our own reading agrees with the library's.
			tr, err := Load(d, d.resolve)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(tr.Config.AdditionalImageStores, c.first) || !slices.Equal(tr.Merged.AdditionalImageStores, c.after) {
				t.Errorf("Load says %q and %q", tr.Config.AdditionalImageStores, tr.Merged.AdditionalImageStores)
			}
			if len(tr.CRIO) > 0 && tr.CRIOConfig.StorageDriver != "vfs" {
				for _, adds := range []bool{false, true} {
					if s := crioStores(t, d, old, adds); !slices.Contains(s, store) {
						t.Errorf("CRI-O (adds: %v) sees %q", adds, s)
					}
				}
			}
			again, err := Plan(d, d.resolve, store)
			if err != nil || len(again.Files) > 0 {
				t.Errorf("a second Plan: %v, %+v", err, again.Files)
			}
		})
	}
}

func TestPlanErrors(t *testing.T) {
	graph := func(s string) map[string]string {
		return map[string]string{"etc/containers/storage.conf": "[storage]\ngraphroot = \"" + s + "\"\n"}
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		store string
		is    error
		says  string
	}{
		{name: "in the default graphroot", store: "/var/lib/containers/storage/x", is: ErrConflict, says: "graphroot"},
		{name: "is graphroot", files: graph("/var/images/"), is: ErrConflict, says: "an engine may wipe it"},
		{name: "in graphroot", files: graph("/var"), is: ErrConflict},
		{name: "around graphroot", files: graph("/var/images/graph"), is: ErrConflict},
		{name: "graphroot by a variable", files: graph("$HOME/x"), store: "/root/x/y", is: ErrConflict},
		{name: "graphroot through a symlink", files: map[string]string{"etc/containers/storage.conf": "[storage]\ngraphroot = \"/data/containers\"\n", "data": "-> /var", "var/": ""}, store: "/var/containers/x", is: ErrConflict},
		{name: "store through a symlink", files: map[string]string{"home": "-> /var/lib/containers", "var/lib/containers/": ""}, store: "/home/storage/x", is: ErrConflict},
		{name: "imagestore", files: map[string]string{"etc/containers/storage.conf": "[storage]\nimagestore = \"/var/images\"\n"}, is: ErrConflict, says: "imagestore"},
		{name: "runroot", store: "/run/containers/storage", is: ErrConflict, says: "emptied at every boot"},
		{name: "graphroot of a drop-in", files: map[string]string{"usr/share/containers/storage.conf.d/1.conf": "[storage]\ngraphroot = \"/var/images\"\n"}, is: ErrConflict, says: "drop-ins"},
		{name: "root of crio.conf", files: map[string]string{"etc/crio/crio.conf": "[crio]\nroot = \"/var/images\"\n"}, is: ErrConflict, says: "crio.conf"},
		{name: "imagestore of a CRI-O drop-in", files: map[string]string{"etc/crio/crio.conf.d/x": "[crio]\nimagestore = \"/var\"\n"}, is: ErrConflict, says: "crio.conf"},
		{name: "btrfs", files: map[string]string{"etc/containers/storage.conf": "[storage]\ndriver = \"btrfs\"\n"}, is: ErrDriver},
		{name: "zfs in CRI-O", files: map[string]string{"etc/crio/crio.conf": "[crio]\nstorage_driver = \"zfs\"\n"}, is: ErrDriver},
		{name: "syntax", files: map[string]string{"usr/share/containers/storage.conf": "[storage]\nx\n"}, says: "/usr/share/containers/storage.conf: line 2, column 2: invalid TOML"},
		{name: "syntax in a drop-in", files: map[string]string{"etc/containers/storage.conf.d/x.conf": "x"}, says: "/etc/containers/storage.conf.d/x.conf: line 1"},
		{name: "syntax in crio.conf", files: map[string]string{"etc/crio/crio.conf": "[crio"}, says: "/etc/crio/crio.conf: line 1"},
		{name: "option of crio.conf", files: map[string]string{"etc/crio/crio.conf": "[crio]\nstorage_option = \"x\"\n"}, says: "/etc/crio/crio.conf: crio.storage_option must be an array"},
		{name: "a folder", files: map[string]string{"etc/containers/storage.conf/": ""}, says: "not a regular file"},
		{name: "a file for a folder", files: map[string]string{"etc/containers": "x"}, says: "not a directory"},
		{name: "/etc below /usr", files: map[string]string{"etc": "-> usr/etc", "usr/etc/containers/": ""}, is: ErrUnsupported, says: "below /usr"},
		{name: "huge", files: map[string]string{"etc/containers/storage.conf": strings.Repeat("#\n", maxSize)}, is: ErrUnsupported, says: etcMain},
		{name: "store", store: "images", is: ErrStore},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := tree(t, c.files)
			s := c.store
			if s == "" {
				s = store
			}
			e, err := Plan(d, d.resolve, s)
			if err == nil {
				t.Fatalf("no error: %+v", e)
			}
			t.Log(err)
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || len(e.Files) > 0 {
				t.Errorf("%v; want %v, %q", err, c.is, c.says)
			}
		})
	}
}

// On an ostree disk the resolver maps an operating system's paths to the disk's.
func TestPlanOstree(t *testing.T) {
	const deployment = "ostree/deploy/os/deploy/0123.0/"
	d := tree(t, map[string]string{deployment + "etc/containers/": "", deployment + "usr/share/containers/storage.conf": mainConf,
		deployment + "etc/containers/storage.conf": "-> ../../usr/share/containers/storage.conf",
		deployment + "etc/crio/crio.conf":          withOpts, "ostree/deploy/os/var/": ""})
	resolve := func(name string) (string, error) {
		name = strings.TrimPrefix(name, "/")
		if rest, ok := strings.CutPrefix(name, "var/"); ok {
			return d.resolve("ostree/deploy/os/var/" + rest)
		}
		return d.resolve(deployment + name)
	}
	e, err := Plan(d, resolve, store)
	if err != nil || len(e.Files) != 2 {
		t.Fatal(err, e.Files)
	}
	if f := e.Files[0]; !f.Unlink || f.Path != deployment+"etc/containers/storage.conf" {
		t.Errorf("%+v", f)
	}
	if f := e.Files[1]; f.Path != deployment+"etc/crio/crio.conf" {
		t.Errorf("%+v", f)
	}
	if err := e.Apply(d); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(d.host(deployment + "usr/share/containers/storage.conf")); string(b) != mainConf {
		t.Errorf("the file below usr: %q, %v", b, err)
	}
}

// Mode, owner and xattrs stay on an edited file, and do not come from a copied one.
func TestPlanAttributes(t *testing.T) {
	label := map[string]string{"SCHILY.xattr.security.selinux": "system_u:object_r:etc_t:s0\x00"}
	for _, name := range []string{etcMain, usrMain} {
		d := tree(t, map[string]string{name: mainConf, "etc/containers/": ""})
		d.attrs[strings.TrimPrefix(name, "/")] = tar.Header{Mode: 0o600, Uid: 3, Gid: 4, PAXRecords: label}
		e, err := Plan(d, nil, store) // nil: names as they are
		if err != nil || len(e.Files) != 1 {
			t.Fatal(err, e.Files)
		}
		f := e.Files[0]
		want := tar.Header{Name: "etc/containers/storage.conf", Typeflag: tar.TypeReg, Size: int64(len(f.New)), Mode: 0o644}
		if name == etcMain {
			want.Mode, want.Uid, want.Gid, want.PAXRecords = 0o600, 3, 4, label
		}
		if d := cmp.Diff(want, f.Header); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if (f.Old == nil) != (name == usrMain) {
			t.Errorf("%s: Old is %q", name, f.Old)
		}
	}
}

// A crio binary tells which storage library it has.
func TestCRIOLibrary(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "crio")
	cmd := exec.Command("go", "build", "-o", bin, "./testdata/crio")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Skipf("cannot build a Go program: %v\n%s", err, out)
	}
	exe, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(info.Deps, func(m *debug.Module) bool { return m.Path == "go.podman.io/storage" })
	if i < 0 {
		t.Fatalf("no storage library in %v", info)
	}
	have := info.Deps[i].Version
	for version, edits := range map[string]int{have: 1, "v1.36.9": 2, "v1.37.0": 1, "v0.99.0": 2} {
		if len(version) != len(have) {
			t.Fatalf("%s and %s differ in length", version, have)
		}
		bin := bytes.ReplaceAll(exe, []byte("go.podman.io/storage\t"+have), []byte("go.podman.io/storage\t"+version))
		d := tree(t, map[string]string{"etc/containers/storage.conf": mainConf, "etc/crio/crio.conf": withOpts, "usr/bin/crio": string(bin)})
		tr, err := Load(d, d.resolve)
		if err != nil {
			t.Fatal(err)
		}
		if tr.CRIOLibrary != version {
			t.Errorf("found %q, want %q", tr.CRIOLibrary, version)
		}
		e, err := Plan(d, d.resolve, store)
		if err != nil || len(e.Files) != edits || len(e.Warnings) > 0 {
			t.Errorf("%s: %d edits, %q, %v; want %d", version, len(e.Files), e.Warnings, err, edits)
		}
		if edits == 2 && string(e.Files[1].New) != "[crio]\nstorage_option = [\n\t\"overlay.imagestore=/var/images\",\n\t\"overlay.mountopt=nodev\",\n]\n" {
			t.Errorf("%q", e.Files[1].New)
		}
	}
}
