package storageconf

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// An Edit is one file to write, or one folder or symlink to make (New is nil and
// Header.Typeflag says which).
type Edit struct {
	Name   string     // as the engine calls it: /etc/containers/storage.conf
	Path   string     // where to write it, symlinks followed; also Header.Name
	Unlink bool       // Path is a symlink, or no regular file, and must go first
	Old    []byte     // the contents before; nil for a new file
	New    []byte     // the contents after
	Header tar.Header // Size is len(New); mode, owner and xattrs are those of the old file, times are zero
	Why    string     // one sentence
}

// Edits is what to do, in order, and what to tell the user.
type Edits struct {
	Files    []Edit
	Warnings []string // plain sentences
}

// A Writer makes edits; the filesystem writers have these methods.
type Writer interface {
	Add(h *tar.Header, r io.Reader) error
	Replace(h *tar.Header, r io.Reader) error
	Remove(name string) error
}

// Apply writes the files. Headers with zero times get the writer's own time.
func (e Edits) Apply(w Writer) error {
	for _, f := range e.Files {
		h := f.Header
		var err error
		switch {
		case h.Typeflag == tar.TypeDir, h.Typeflag == tar.TypeSymlink:
			err = w.Add(&h, nil)
		case f.Unlink:
			if err = w.Remove(f.Path); err == nil {
				err = w.Replace(&h, bytes.NewReader(f.New))
			}
		default:
			err = w.Replace(&h, bytes.NewReader(f.New))
		}
		if err != nil {
			return fmt.Errorf("writing %s: %w", f.Name, err)
		}
	}
	return nil
}

// Plan says which files to write so that the engines of an operating system, run
// by root, read the image store first of all additional ones. It writes nothing,
// and never plans a write below /usr: a file from there is copied to /etc, where it
// takes its place. If all is well already, Files is empty.
//
// Errors match [ErrStore], [ErrConflict], [ErrDriver], [ErrUnsupported] or
// *[SyntaxError], or come from fsys; each names the file. See the package
// documentation for what engines read.
func Plan(fsys Reader, resolve Resolve, store string) (Edits, error) {
	store, err := cleanStore(store)
	if err != nil {
		return Edits{}, err
	}
	t, err := Load(fsys, resolve)
	if err != nil {
		return Edits{}, err
	}
	p := planner{treeReader: treeReader{fsys, resolve}, t: t, store: store}
	if p.usr, err = p.real("usr"); err != nil {
		return Edits{}, fmt.Errorf("/usr: %w", err)
	}
	for _, step := range []func() error{p.check, p.rootsOwn, p.mainFile, p.dropIn, p.crioFile} {
		if err := step(); err != nil {
			return Edits{}, err
		}
	}
	return p.Edits, nil
}

type planner struct {
	treeReader
	Edits
	t     *Tree
	store string
	usr   string // the Reader's name for /usr
	main  []byte // the main file after its edit
}

func (p *planner) warn(format string, a ...any) {
	w := fmt.Sprintf(format, a...)
	if !slices.Contains(p.Warnings, w) {
		p.Warnings = append(p.Warnings, w)
	}
}

// check refuses a store that an engine would wipe, hide or choke on.
func (p *planner) check() error {
	views := []struct {
		who string
		Config
	}{{"storage.conf", p.t.Config}}
	if len(p.t.DropIns) > 0 {
		views = append(views, views[0])
		views[1].who, views[1].Config = "storage.conf with its drop-ins", p.t.Merged
	}
	for _, v := range views {
		if v.GraphRoot == "" {
			v.GraphRoot = DefaultGraphRoot
		}
		if v.RunRoot == "" {
			v.RunRoot = DefaultRunRoot
		}
		if err := p.checkConfig(v.who, v.Config); err != nil {
			return err
		}
		if v.Driver == "" && len(v.DriverPriority) > 0 && !isOverlay(v.DriverPriority[0]) {
			p.warn("%s sets no driver and prefers %s; an engine that picks it cannot read the store: set driver = \"overlay\" in [storage].", v.who, v.DriverPriority[0])
		}
	}
	c := p.t.CRIOConfig
	// CRI-O's root is what storage.conf calls graphroot.
	return p.checkConfig("crio.conf", Config{Driver: c.StorageDriver, GraphRoot: c.Root, RunRoot: c.RunRoot, ImageStore: c.ImageStore})
}

// rootsOwn warns of the files in root's home.
func (p *planner) rootsOwn() error {
	for _, name := range []string{"/root/.config/containers/storage.conf", "/root/.config/containers/storage.conf.d"} {
		_, err := p.lstat(name)
		if err == nil {
			p.warn("%s is there: podman 6 and later, started by root, goes by it before /etc/containers; see to it that it lists the store %s, or remove it.", name, p.store)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func isOverlay(driver string) bool { return driver == "overlay" || driver == "overlay2" }

// checkConfig holds the set fields of one configuration against the store.
func (p *planner) checkConfig(who string, c Config) error {
	switch {
	case c.Driver == "btrfs" || c.Driver == "zfs":
		return fmt.Errorf("%w: %s has driver %q, with which an engine does not start once a store is listed; set driver = \"overlay\"", ErrDriver, who, c.Driver)
	case c.Driver != "" && !isOverlay(c.Driver):
		p.warn("%s has driver %q, with which an engine does not read the store, which is made for overlay: set driver = \"overlay\".", who, c.Driver)
	}
	for _, f := range []struct{ key, dir, fate string }{
		{"graphroot", c.GraphRoot, "an engine may wipe it"},
		{"imagestore", c.ImageStore, "an engine may wipe it"},
		{"runroot", c.RunRoot, "it is emptied at every boot"},
	} {
		if f.dir == "" {
			continue
		}
		dir := strings.NewReplacer("$UID", "0", "${UID}", "0", "$HOME", "/root", "${HOME}", "/root").Replace(f.dir)
		if strings.Contains(dir, "$") {
			p.warn("The %s of %s is %q; what that stands for is not known here, so see to it that the store %s is not inside.", f.key, who, f.dir, p.store)
			continue
		}
		over, err := p.overlap(dir)
		if err != nil {
			return err
		}
		if over {
			return fmt.Errorf("%w: the store %s lies in, or holds, the %s %q of %s, and %s; choose another path for the store", ErrConflict, p.store, f.key, f.dir, who, f.fate)
		}
	}
	return nil
}

// overlap reports whether the store and dir are the same or one inside the other,
// by their names or with symlinks followed.
func (p *planner) overlap(dir string) (bool, error) {
	store, err := p.real(p.store)
	if err != nil {
		return false, fmt.Errorf("%s: %w", p.store, err)
	}
	real, err := p.real(dir)
	if err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	return within(p.store, dir) || within(dir, p.store) || within(store, real) || within(real, store), nil
}

// within reports whether name is dir or below it.
func within(name, dir string) bool {
	name, dir = path.Clean("/"+name), path.Clean("/"+dir)
	return name == dir || dir == "/" || strings.HasPrefix(name, dir+"/")
}

func (p *planner) mainFile() error {
	m := p.t.Main
	if m == nil {
		p.main = Default(p.store)
		return p.write(etcMain, nil, p.main, "there was no storage.conf")
	}
	out, changed, err := AddStore(m.Data, p.store)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	p.main = out
	switch {
	case !changed:
		return nil
	case m.Name == etcMain:
		return p.write(etcMain, m, out, "the main configuration; engines read the store first of all additional ones")
	}
	return p.write(etcMain, nil, out, "a copy of "+m.Name+" with the store added; engines read one of the two files, so later changes of that one have no effect")
}

// dropIn edits the last drop-in that replaces the list, if the store is lost by it.
func (p *planner) dropIn() error {
	if err := p.t.merge(p.main); err != nil {
		return err
	}
	if p.t.Merged.Lists(p.store) {
		return nil
	}
	const mark = "\x00"
	var c Config
	var last *File
	for i := range p.t.DropIns {
		f := &p.t.DropIns[i]
		c.AdditionalImageStores = []string{mark}
		if err := c.overlay(f.Data); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if s := c.AdditionalImageStores; len(s) == 0 || s[0] != mark {
			last = f
		}
	}
	if last == nil {
		return fmt.Errorf("%w: %s was added to %s but does not come out of it", ErrUnsupported, p.store, etcMain)
	}
	out, _, err := AddStore(last.Data, p.store)
	if err != nil {
		return fmt.Errorf("%s: %w", last.Name, err)
	}
	const why = "a drop-in that replaces the list of stores for podman 6 and later"
	if rest, ok := strings.CutPrefix(last.Name, "/usr/share/"); ok {
		return p.write("/etc/"+rest, nil, out, why+"; the file takes the place of "+last.Name)
	}
	return p.write(last.Name, last, out, why)
}

func (p *planner) crioFile() error {
	c := p.t.CRIOConfig
	if c.OptionsFile < 0 || addsOptions(p.t.CRIOLibrary) {
		return nil
	}
	driver := c.StorageDriver
	if driver == "" {
		driver = p.t.Merged.Driver
	}
	if driver != "" && !isOverlay(driver) {
		return nil // warned about; the option would stop this CRI-O
	}
	f := &p.t.CRIO[c.OptionsFile]
	out, changed, err := insertFirst(f.Data, optionsKey, "overlay.imagestore="+p.store, p.optionLists)
	if err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if !changed {
		return nil
	}
	if p.t.CRIOLibrary == "" {
		p.warn("%s sets storage_option, which CRI-O before 1.23 takes instead of the stores in storage.conf, so the store was added there too. (The version of CRI-O on this disk is not known; one that takes both may list an image twice, which does no harm.)", f.Name)
	}
	return p.write(f.Name, f, out, "its storage_option takes the place of the stores in storage.conf for CRI-O before 1.23")
}

// optionLists reports whether a graph driver option names the store.
func (p *planner) optionLists(option string) bool {
	key, val, _ := strings.Cut(option, "=")
	key = strings.ToLower(strings.TrimSpace(key))
	if driver, name, ok := strings.Cut(key, "."); ok && (driver == "" || isOverlay(driver)) {
		key = name
	}
	return (key == "imagestore" || key == "additionalimagestore") && lists(val, p.store)
}

// write plans one file. old is the file that engines read under this name so far;
// nil if there is none.
func (p *planner) write(name string, old *File, data []byte, why string) error {
	if err := p.mkdir(path.Dir(name)); err != nil {
		return err
	}
	dir, err := p.real(path.Dir(name))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e := Edit{Name: name, Path: path.Join(dir, path.Base(name)), New: data, Why: why}
	h, err := p.fs.Stat(e.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		old = nil
	case err != nil:
		return fmt.Errorf("%s: %w", name, err)
	case h.Typeflag == tar.TypeDir:
		return fmt.Errorf("%w: %s is a folder", ErrUnsupported, name)
	case h.Typeflag == tar.TypeSymlink && old != nil && old.Header.Typeflag == tar.TypeReg && !within(old.Path, p.usr):
		e.Path = old.Path
	case h.Typeflag != tar.TypeReg:
		e.Unlink, old = true, nil
		e.Why += "; it takes the place of a symlink or device"
	}
	if within(e.Path, p.usr) {
		return fmt.Errorf("%w: %s lies below /usr, which is not ours to change", ErrUnsupported, name)
	}
	e.Header = tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}
	if old != nil {
		e.Old = old.Data
		e.Header.Mode, e.Header.Uid, e.Header.Gid = old.Header.Mode, old.Header.Uid, old.Header.Gid
		e.Header.PAXRecords = maps.Clone(old.Header.PAXRecords)
	}
	e.Header.Name, e.Header.Size = e.Path, int64(len(data))
	p.Files = append(p.Files, e)
	return nil
}

// mkdir plans the folders that are missing on the way to name.
func (p *planner) mkdir(name string) error {
	dir, err := p.real(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h, err := p.fs.Stat(dir)
	switch {
	case err == nil && h.Typeflag == tar.TypeDir:
		return nil
	case err == nil:
		return fmt.Errorf("%w: %s is not a folder", ErrUnsupported, name)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", name, err)
	case name == "/":
		return fmt.Errorf("the root folder: %w", err)
	case slices.ContainsFunc(p.Files, func(e Edit) bool { return e.Path == dir }):
		return nil
	}
	if err := p.mkdir(path.Dir(name)); err != nil {
		return err
	}
	p.Files = append(p.Files, Edit{Name: name, Path: dir, Why: "the folder was missing",
		Header: tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}})
	return nil
}
