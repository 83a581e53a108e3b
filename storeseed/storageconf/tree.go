package storageconf

import (
	"archive/tar"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A Reader shows the tree of an operating system. Names are relative to its root;
// a missing one matches fs.ErrNotExist, and Stat does not follow a final symlink.
type Reader interface {
	Stat(name string) (*tar.Header, error)
	ReadDir(name string) ([]string, error)
	Open(name string) (*io.SectionReader, error)
}

// A Resolve follows the symlinks in an operating system's path, the last one too,
// and returns a name that the [Reader] takes (on an ostree disk it may map
// /etc and /var as well). It returns an error matching fs.ErrNotExist if there is
// nothing. A nil Resolve takes paths as they are.
type Resolve func(path string) (string, error)

// A File is a configuration file of the tree.
type File struct {
	Name   string      // as the engine calls it: /etc/containers/storage.conf
	Path   string      // the same for the Reader, symlinks followed
	Header *tar.Header // of Path
	Data   []byte
}

// A Tree is what an operating system's tree tells its container engines, as root.
type Tree struct {
	Main    *File  // the main storage.conf; nil if there is none
	DropIns []File // of storage.conf, in the order of reading

	// Config is what engines up to containers/storage 1.62 (podman 5) go by: Main
	// alone. Merged is for 1.63 and later (podman 6): Main, then DropIns.
	Config, Merged Config

	CRIO       []File // crio.conf, then its drop-ins, in the order of reading
	CRIOConfig CRIOConfig
	// CRIOLibrary is the version of containers/storage in the crio binary, like
	// "v1.58.0"; empty if there is no such binary, or it does not say.
	CRIOLibrary string
}

// A CRIOConfig is what the [crio] tables of crio.conf and its drop-ins say. An
// empty field means the value from storage.conf.
type CRIOConfig struct {
	Root, RunRoot, ImageStore, StorageDriver string
	// StorageOptions are those of the last file that has the key, and OptionsFile is
	// the index of that file in [Tree].CRIO; -1 if none has it.
	StorageOptions []string
	OptionsFile    int
}

const (
	etcMain = "/etc/containers/storage.conf"
	usrMain = "/usr/share/containers/storage.conf"
)

// dropInDirs are the drop-in folders for root; where two have a file of one name,
// the earlier folder's is read.
var dropInDirs = []string{
	"/etc/containers/storage.rootful.conf.d",
	"/etc/containers/storage.conf.d",
	"/usr/share/containers/storage.rootful.conf.d",
	"/usr/share/containers/storage.conf.d",
}

// Load reads the configuration of the engines out of an operating system's tree.
// An error names the file that is at fault.
func Load(fsys Reader, resolve Resolve) (*Tree, error) {
	r := treeReader{fsys, resolve}
	t := &Tree{}
	for _, name := range []string{etcMain, usrMain} {
		f, err := r.file(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		t.Main = f
		if t.Config, err = Stores(f.Data); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		break
	}
	if err := r.dropIns(t); err != nil {
		return nil, err
	}
	if err := t.merge(nil); err != nil {
		return nil, err
	}
	if err := r.crio(t); err != nil {
		return nil, err
	}
	return t, nil
}

// merge computes Merged with the main file's contents replaced by main, if not nil.
func (t *Tree) merge(main []byte) error {
	t.Merged = Config{}
	name := etcMain
	if t.Main != nil {
		name = t.Main.Name
		if main == nil {
			main = t.Main.Data
		}
	}
	if err := t.Merged.overlay(main); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, f := range t.DropIns {
		if err := t.Merged.overlay(f.Data); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

type treeReader struct {
	fs      Reader
	resolve Resolve
}

// real returns the Reader's name for a path of the operating system. What does not
// exist (yet) keeps its last parts: only the part that exists is resolved.
func (r treeReader) real(name string) (string, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if r.resolve == nil || name == "" {
		return name, nil
	}
	p, err := r.resolve("/" + name)
	if errors.Is(err, fs.ErrNotExist) {
		dir, err := r.real(path.Dir(name))
		return path.Join(dir, path.Base(name)), err
	}
	return strings.TrimPrefix(p, "/"), err
}

// file reads a configuration file; a device stands for an empty one, because
// symlinks to /dev/null switch files off.
func (r treeReader) file(name string) (*File, error) {
	p := strings.TrimPrefix(name, "/")
	if r.resolve != nil {
		var err error
		if p, err = r.resolve(name); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		p = strings.TrimPrefix(p, "/")
	}
	h, err := r.fs.Stat(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f := &File{Name: name, Path: p, Header: h}
	switch {
	case h.Typeflag == tar.TypeChar:
		return f, nil
	case h.Typeflag != tar.TypeReg:
		return nil, fmt.Errorf("%s is not a regular file, so engines cannot read it; remove it", name)
	case h.Size > maxSize:
		return nil, fmt.Errorf("%s: %w: it has %d bytes, more than %d", name, ErrUnsupported, h.Size, maxSize)
	}
	sr, err := r.fs.Open(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if f.Data, err = io.ReadAll(io.LimitReader(sr, maxSize)); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return f, nil
}

// dir lists a folder; none if it does not exist.
func (r treeReader) dir(name string) ([]string, error) {
	p, err := r.real(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	names, err := r.fs.ReadDir(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing %s: %w", name, err)
	}
	return names, nil
}

func (r treeReader) dropIns(t *Tree) error {
	where := make(map[string]string)
	var order []string
	for _, dir := range dropInDirs {
		names, err := r.dir(dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			if strings.HasSuffix(n, ".conf") && where[n] == "" {
				isDir, err := r.isDir(dir + "/" + n)
				if err != nil {
					return err
				}
				if !isDir {
					where[n] = dir
					order = append(order, n)
				}
			}
		}
	}
	slices.Sort(order)
	for _, n := range order {
		f, err := r.file(where[n] + "/" + n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a dangling symlink: engines pass over it
		}
		if err != nil {
			return err
		}
		t.DropIns = append(t.DropIns, *f)
	}
	return nil
}

// isDir says whether name itself, not what it may link to, is a folder.
func (r treeReader) isDir(name string) (bool, error) {
	h, err := r.lstat(name)
	if err != nil {
		return false, fmt.Errorf("%s: %w", name, err)
	}
	return h.Typeflag == tar.TypeDir, nil
}

// lstat follows the symlinks of the folders only.
func (r treeReader) lstat(name string) (*tar.Header, error) {
	dir, err := r.real(path.Dir(name))
	if err != nil {
		return nil, err
	}
	return r.fs.Stat(path.Join(dir, path.Base(name)))
}

func (r treeReader) crio(t *Tree) error {
	names := []string{"/etc/crio/crio.conf"}
	if err := r.walk("/etc/crio/crio.conf.d", &names, 0); err != nil {
		return err
	}
	t.CRIOConfig.OptionsFile = -1
	for _, n := range names {
		f, err := r.file(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		doc, err := decode(f.Data)
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		c, rd := &t.CRIOConfig, reader{doc: doc}
		for key, dst := range map[string]*string{"root": &c.Root, "runroot": &c.RunRoot, "imagestore": &c.ImageStore, "storage_driver": &c.StorageDriver} {
			var s string
			if rd.str(&s, "crio", key); s != "" {
				*dst = s
			}
		}
		if _, ok := rd.get(optionsKey...); ok {
			var app bool
			c.StorageOptions = nil
			c.OptionsFile = len(t.CRIO)
			rd.list(&c.StorageOptions, &app, optionsKey...)
		}
		if rd.err != nil {
			return fmt.Errorf("%s: %w", n, rd.err)
		}
		t.CRIO = append(t.CRIO, *f)
	}
	t.CRIOLibrary = r.library("/usr/bin/crio", "/usr/local/bin/crio")
	return nil
}

// walk appends the files below dir in lexical order. It does not follow symlinks to
// folders, so it ends; the depth is bounded because the disk is hostile.
func (r treeReader) walk(dir string, names *[]string, depth int) error {
	if depth > 16 {
		return fmt.Errorf("%s: %w: folders are nested too deep", dir, ErrUnsupported)
	}
	entries, err := r.dir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := dir + "/" + e
		isDir, err := r.isDir(name)
		if err != nil {
			return err
		}
		if !isDir {
			*names = append(*names, name)
		} else if err := r.walk(name, names, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// library returns the version of containers/storage that a Go binary was built with.
func (r treeReader) library(binaries ...string) string {
	for _, name := range binaries {
		p, err := r.real(name)
		if err != nil {
			continue
		}
		f, err := r.fs.Open(p)
		if err != nil {
			continue
		}
		info, err := buildinfo.Read(f)
		if err != nil {
			continue
		}
		for _, m := range info.Deps {
			if m.Path == "go.podman.io/storage" || m.Path == "github.com/containers/storage" {
				if m.Replace != nil && m.Replace.Version != "" {
					m = m.Replace
				}
				return m.Version
			}
		}
	}
	return ""
}

// addsOptions reports whether a CRI-O with this library is known to add its
// storage_option to the options from storage.conf.
func addsOptions(library string) bool {
	major, rest, _ := strings.Cut(strings.TrimPrefix(library, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return errA == nil && errB == nil && (a > 1 || a == 1 && b >= 37)
}
