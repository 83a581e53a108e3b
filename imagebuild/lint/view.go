package lint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const (
	// maxText bounds a configuration file, in bytes.
	maxText = 1 << 20
	// maxNames bounds how many names of a folder are looked at.
	maxNames = 4096
)

// view is the disk as the checks see it. What several of them need is read once, when the first asks.
type view struct {
	ctx      context.Context
	o        *imagebuild.Opened
	sys      *osroot.System
	opts     Options
	findings []Finding

	loaded     func() (*storageconf.Tree, error)
	stores     func() []store
	crio       func() crioConf
	kubelet    func() kubeletConf
	kubernetes func() kubernetes
	engines    func() []Engine
	packages   func() map[string]string
	cmdlines   func() []cmdline
	programs   map[string]program
	index      func() index
	clusters   []clusterConf
}

func newView(ctx context.Context, o *imagebuild.Opened, opts Options) *view {
	v := &view{ctx: ctx, o: o, sys: o.Root.Systems[0], opts: opts, programs: map[string]program{}}
	v.loaded = sync.OnceValues(o.Config)
	v.stores = sync.OnceValue(v.findStores)
	v.crio = sync.OnceValue(v.readCRIO)
	v.kubelet = sync.OnceValue(v.readKubelet)
	v.kubernetes = sync.OnceValue(v.findKubernetes)
	v.engines = sync.OnceValue(v.findEngines)
	v.packages = sync.OnceValue(v.readPackages)
	v.cmdlines = sync.OnceValue(v.readCmdlines)
	v.index = sync.OnceValue(v.indexImages)
	return v
}

// errConfig is returned by checks that need the engines' configuration where it cannot be read. That is a finding of its
// own, and said once.
var errConfig = errors.New("the engines' configuration cannot be read")

// config is what the engines are told.
func (v *view) config() (*storageconf.Tree, error) {
	t, err := v.loaded()
	if err != nil {
		return nil, errConfig
	}
	return t, nil
}

// isMissing says that a name is not there, or that something above it is no folder.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// stat describes what a path of the running system leads to, with links followed.
func (v *view) stat(name string) (*tar.Header, error) {
	at, err := v.sys.Locate(name)
	if err != nil {
		return nil, err
	}
	return v.o.Root.Tree.Stat(at.Path)
}

// is says whether a path leads to something of the type; a folder that cannot be read holds nothing.
func (v *view) is(name string, typeflag byte) bool {
	h, err := v.stat(name)
	return err == nil && h.Typeflag == typeflag
}

// open opens a regular file.
func (v *view) open(name string) (*io.SectionReader, error) {
	at, err := v.sys.Locate(name)
	if err != nil {
		return nil, err
	}
	h, err := v.o.Root.Tree.Stat(at.Path)
	if err != nil {
		return nil, err
	}
	if h.Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return v.o.Root.Tree.Open(at.Path)
}

// read reads a small file whole.
func (v *view) read(name string, most int64) ([]byte, error) {
	r, err := v.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > most {
		return nil, fmt.Errorf("%s: %w: it has %d bytes, at most %d are read", name, osroot.ErrTooLarge, r.Size(), most)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return b, nil
}

// text is read for a configuration file that may be missing, or be switched off by a link to /dev/null. Any other
// reason why it cannot be read becomes a finding.
func (v *view) text(name string) ([]byte, bool) {
	b, err := v.read(name, maxText)
	if err == nil {
		return b, true
	}
	if !isMissing(err) {
		if h, e := v.stat(name); e != nil || h.Typeflag != tar.TypeChar {
			v.unseen(name, err)
		}
	}
	return nil, false
}

// list lists a folder; one that is not there is empty.
func (v *view) list(dir string) []string {
	at, err := v.sys.Locate(dir)
	if err != nil {
		return nil
	}
	names, err := v.o.Root.Tree.ReadDir(at.Path)
	if err != nil {
		if !isMissing(err) {
			v.unseen(dir, err)
		}
		return nil
	}
	if len(names) > maxNames {
		v.unseen(dir, fmt.Errorf("it has %d entries, of which the first %d were looked at", len(names), maxNames))
		names = names[:maxNames]
	}
	return names
}

// inDirs gives the files of the folders with the ending, each name once, in the order of names: the first folder that
// has a name decides, as for systemd's drop-ins.
func (v *view) inDirs(dirs []string, ending string) []string {
	where := map[string]string{}
	var names []string
	for _, dir := range dirs {
		for _, n := range v.list(dir) {
			if strings.HasSuffix(n, ending) && where[n] == "" {
				where[n] = dir
				names = append(names, n)
			}
		}
	}
	slices.Sort(names)
	for i, n := range names {
		names[i] = path.Join(where[n], n)
	}
	return names
}

// root is where a path lies in the tree, with links followed; the path itself where that cannot be said.
func (v *view) root(name string) string {
	at, err := v.sys.Locate(name)
	if err != nil {
		return strings.TrimPrefix(path.Clean("/"+name), "/")
	}
	return at.Path
}

// within says whether name is dir or below it; both are cleaned first.
func within(name, dir string) bool {
	name, dir = path.Clean("/"+name), path.Clean("/"+dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

// overlap says whether one of two paths of the running system holds the other, by name or with links followed.
func (v *view) overlap(a, b string) bool {
	x, y := v.root(a), v.root(b)
	return within(a, b) || within(b, a) || within(x, y) || within(y, x)
}

// store is an image store and what is in it.
type store struct {
	imagebuild.Store
	images []storeseed.Image
	// err is why it could not be read.
	err error
}

// count counts images, of which one may have several rows.
func (s store) count() int {
	ids := map[string]bool{}
	for _, i := range s.images {
		ids[i.ID] = true
	}
	return len(ids)
}

func (v *view) findStores() []store {
	found, err := v.o.Stores()
	if err != nil {
		// Without a configuration there is still the usual place.
		found = nil
		s := imagebuild.Store{Path: imagebuild.DefaultStore, Root: v.root(imagebuild.DefaultStore)}
		if v.is(path.Join(s.Path, "overlay-images", "images.json"), tar.TypeReg) {
			found = append(found, s)
		}
	}
	if root := v.crio().root; root != "" {
		at := v.root(root)
		i := slices.IndexFunc(found, func(s imagebuild.Store) bool { return s.Root == at })
		switch {
		case i >= 0:
			found[i].Primary = true
		case v.is(path.Join(root, "overlay-images", "images.json"), tar.TypeReg):
			found = append(found, imagebuild.Store{Path: root, Root: at, Configured: true, Primary: true})
		}
	}
	var stores []store
	for _, s := range found {
		one := store{Store: s}
		one.images, one.err = storeseed.List(v.o.Root.Tree, s.Root)
		stores = append(stores, one)
	}
	return stores
}

// readOnly are the stores that no engine writes to.
func (v *view) readOnly() []store {
	return slices.DeleteFunc(slices.Clone(v.stores()), func(s store) bool { return s.Primary })
}

// lineOf is the number of the first line that holds what, 0 if none does. Comments do not count.
func lineOf(text []byte, what string) int {
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if t := strings.TrimSpace(line); strings.HasPrefix(t, "#") {
			continue
		}
		if strings.Contains(line, what) {
			return n
		}
	}
	return 0
}

// keyLine is the number of the last line that sets a key of a TOML, YAML or INI file, 0 if none does.
func keyLine(text []byte, key string) int {
	n, at := 0, 0
	for line := range strings.Lines(string(text)) {
		n++
		t := strings.TrimLeft(strings.TrimSpace(line), `"'`)
		if len(t) < len(key) || !strings.EqualFold(t[:len(key)], key) {
			continue
		}
		if rest := strings.TrimLeft(t[len(key):], ` "'`); strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, ":") {
			at = n
		}
	}
	return at
}
