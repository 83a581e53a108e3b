package sbom

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed"
)

// Input is a disk of which Collect makes a document.
type Input struct {
	// Name is the disk's file name, Digest the SHA-256 of the file; an empty one is left out.
	Name   string
	Digest digest.Digest
	// Created is the document's time; zero is the newest image's creation, or 1970 where there is none.
	Created time.Time
	// Version is nodebake's.
	Version string
	// OS is what the disk starts; nil leaves it out.
	OS *System
	// Stores are the image stores on the disk.
	Stores []Store
}

// System is an operating system on the disk.
type System struct {
	// ID, VersionID and PrettyName are those of os-release(5).
	ID, VersionID, PrettyName string
	// Locate finds where a path of the running system lies in the tree, with every symbolic link followed.
	Locate func(name string) (string, error)
}

// Store is an image store: its path on the running system, and where that lies in the tree.
type Store struct{ Path, Root string }

// Document is what is on a disk.
type Document struct {
	Name    string
	Digest  digest.Digest
	Created time.Time
	Version string
	OS      *Holder
	// Images are sorted by store and ID.
	Images []Image
	// Packages are all packages, each once, sorted.
	Packages []Package
}

// Holder is something that has packages.
type Holder struct {
	// ID, VersionID and PrettyName are those of its os-release file, empty where it has none.
	ID, VersionID, PrettyName string
	// Packages are indices of Document.Packages, ascending.
	Packages []int
	// Problems say what could not be read, so that packages may be missing.
	Problems []string
}

// Image is a container image in one of the disk's stores.
type Image struct {
	Holder
	// ImageID is its config's digest in hexadecimal, Manifest that of the manifest that it is known by.
	ImageID  string
	Manifest digest.Digest
	Names    []string
	Created  time.Time
	// Store is the store's path on the running system.
	Store string
}

// Package is an installed package, or a Go program or a module in one.
type Package struct {
	// Type is that of package URLs: deb, rpm, apk or golang.
	Type string
	// Namespace and Distro are the ID of the system that the package is of, and that with its version: "debian",
	// "debian-12". Both are empty for Go's.
	Namespace, Distro string
	// Version is what the database has; Epoch is RPM's, and a part of other versions.
	Name, Version, Epoch, Arch string
	// Source is the source package where it has another name, SourceVersion its version where it has another.
	Source, SourceVersion string
	// License is as the database has it, and no SPDX expression unless that is one.
	License                      string
	Vendor, Maintainer, Homepage string
	// File is where a Go program lies; empty for all else.
	File string
	// Modules are the indices of a Go program's modules, ascending.
	Modules []int `json:"-"`

	// hash tells packages apart, also those of different disks.
	hash string
}

// ErrTooLarge says that a disk has more packages than a document may hold here.
var ErrTooLarge = errors.New("too many packages for one bill of materials")

// What is kept in memory: a disk with more than this is not one of packages but of someone who wants to fill it.
const (
	maxPackages = 200_000
	maxBytes    = 96 << 20
	// maxRelations bounds the lists of packages of all databases and images.
	maxRelations = 4 << 20
	maxProblems  = 100
)

// Collect reads what is on a disk. It reads each layer once, and of that the folders, the package databases, and the
// beginning of programs. Errors are those of the disk, ErrTooLarge, a store that contradicts itself
// (storeseed.ErrCorruptStore), and that of ctx.
func Collect(ctx context.Context, tree storeseed.Reader, in Input) (*Document, error) {
	c := &collector{ctx: ctx, r: tree, ids: map[[sha256.Size]byte]int{}, databases: map[string]contents{}, layers: map[string][]program{}}
	doc := &Document{Name: valid(in.Name), Digest: in.Digest, Created: time.Unix(0, 0).UTC(), Version: in.Version}
	for _, s := range in.Stores {
		c.stores = append(c.stores, path.Clean(strings.Trim(s.Root, "/")))
	}
	var err error
	if in.OS != nil {
		if doc.OS, err = c.system(in.OS); err != nil {
			return nil, fmt.Errorf("the system's packages: %w", err)
		}
	}
	for i, s := range in.Stores {
		images, err := storeseed.List(tree, c.stores[i])
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		for _, im := range images {
			// One of several names has a row for each.
			if seen[im.ID] {
				continue
			}
			seen[im.ID] = true
			one, err := c.image(c.stores[i], im)
			if err != nil {
				return nil, fmt.Errorf("image %.12s: %w", im.ID, err)
			}
			one.Store = valid(path.Clean(s.Path))
			if one.Created.After(doc.Created) {
				doc.Created = one.Created
			}
			doc.Images = append(doc.Images, one)
		}
	}
	slices.SortStableFunc(doc.Images, func(a, b Image) int {
		return cmp.Or(cmp.Compare(a.Store, b.Store), cmp.Compare(a.ImageID, b.ImageID))
	})
	if !in.Created.IsZero() {
		doc.Created = in.Created.UTC()
	}
	c.finish(doc)
	return doc, nil
}

type collector struct {
	ctx    context.Context
	r      storeseed.Reader
	stores []string // roots in r

	packages  []Package
	ids       map[[sha256.Size]byte]int
	bytes     int
	relations int

	// databases are those that were read, by the places of their files and the system's ID, which packages carry.
	databases map[string]contents
	// layers are the Go programs of layers that were read.
	layers map[string][]program
}

// contents is what a database holds, and why that is not all.
type contents struct {
	packages []int
	problem  string
}

type program struct {
	name     string // in its layer
	packages contents
}

// add gives a package its index: that of the same package, if it was there before.
func (c *collector) add(p Package) (int, error) {
	for _, s := range []*string{&p.Namespace, &p.Distro, &p.Name, &p.Version, &p.Epoch, &p.Arch, &p.Source, &p.SourceVersion, &p.License, &p.Vendor,
		&p.Maintainer, &p.Homepage, &p.File} {
		*s = valid(*s)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	h := sha256.New()
	h.Write(text)
	for _, m := range p.Modules {
		io.WriteString(h, c.packages[m].hash)
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	if i, ok := c.ids[sum]; ok {
		return i, nil
	}
	if c.bytes += len(text); len(c.packages) == maxPackages || c.bytes > maxBytes {
		return 0, fmt.Errorf("%w: more than %d, or than %d bytes of text", ErrTooLarge, maxPackages, maxBytes)
	}
	p.hash = hex.EncodeToString(sum[:16])
	c.ids[sum] = len(c.packages)
	c.packages = append(c.packages, p)
	return len(c.packages) - 1, nil
}

// relate counts relations that are kept.
func (c *collector) relate(n int) error {
	if c.relations += n; c.relations > maxRelations {
		return fmt.Errorf("%w: more than %d relations", ErrTooLarge, maxRelations)
	}
	return nil
}

// hold gives a holder what was found.
func (c *collector) hold(h *Holder, where string, found contents) error {
	if err := c.relate(len(found.packages)); err != nil {
		return err
	}
	h.Packages = append(h.Packages, found.packages...)
	if found.problem != "" && len(h.Problems) < maxProblems {
		h.Problems = append(h.Problems, valid("/"+where+": "+found.problem))
	}
	return nil
}

// The package databases, by the names of their files.
var (
	dpkgFile = "var/lib/dpkg/status"
	dpkgDir  = "var/lib/dpkg/status.d"
	apkFiles = []string{"lib/apk/db/installed", "usr/lib/apk/db/installed"}
	rpmDirs  = []string{"var/lib/rpm", "usr/lib/sysimage/rpm", "usr/share/rpm"}
	// One folder has one database; where an older one was left beside it, the first counts, as for RPM.
	rpmFiles = []string{"rpmdb.sqlite", "Packages.db", "Packages"}
	releases = []string{"etc/os-release", "usr/lib/os-release"}
)

// finder finds a file of a system or an image in the tree; empty is a file that is not there.
type finder func(name string) (string, error)

// search adds to h what the databases say that find and list find. Each is read once, however many names lead to it.
func (c *collector) search(h *Holder, find finder, list func(dir string) ([]string, error)) error {
	if err := c.release(h, find); err != nil {
		return err
	}
	done := map[string]bool{}
	read := func(at, log, name string, parse parser) error {
		if at == "" || done[at] {
			return nil
		}
		done[at] = true
		found, err := c.database(at, log, h, parse)
		if err != nil {
			return err
		}
		return c.hold(h, name, found)
	}
	dpkg := func(file, _ *io.SectionReader, yield func(Package) error) error { return readDpkg(file, yield) }
	apk := func(file, _ *io.SectionReader, yield func(Package) error) error { return readApk(file, yield) }
	at, err := find(dpkgFile)
	if err == nil {
		err = read(at, "", dpkgFile, dpkg)
	}
	if err != nil {
		return err
	}
	parts, err := list(dpkgDir)
	if err != nil {
		return err
	}
	for _, p := range parts {
		if strings.HasSuffix(p, ".md5sums") {
			continue
		}
		if err := read(p, "", dpkgDir+"/"+path.Base(p), dpkg); err != nil {
			return err
		}
	}
	for _, name := range apkFiles {
		at, err := find(name)
		if err == nil {
			err = read(at, "", name, apk)
		}
		if err != nil {
			return err
		}
	}
	for _, dir := range rpmDirs {
		for _, f := range rpmFiles {
			name := dir + "/" + f
			at, err := find(name)
			if err != nil {
				return err
			}
			if at == "" {
				continue
			}
			wal, err := find(name + "-wal")
			if err != nil {
				return err
			}
			if err := read(at, wal, name, readRPM); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// parser reads a package database, with the log that lies beside it or nil.
type parser func(file, log *io.SectionReader, yield func(Package) error) error

// database reads one database, unless that was done for another image of the same system.
func (c *collector) database(at, log string, h *Holder, parse parser) (contents, error) {
	key := strings.Join([]string{at, log, h.ID, h.VersionID}, "\x00")
	if known, ok := c.databases[key]; ok {
		return known, nil
	}
	if err := c.ctx.Err(); err != nil {
		return contents{}, err
	}
	file, err := c.r.Open(at)
	if err != nil {
		return contents{}, err
	}
	var logged *io.SectionReader
	if log != "" {
		if logged, err = c.r.Open(log); err != nil {
			return contents{}, err
		}
	}
	var found contents
	err = parse(file, logged, func(p Package) error {
		if p.Namespace = h.ID; h.ID == "" {
			p.Namespace = defaultNamespace[p.Type]
		} else if p.Distro = h.ID; h.VersionID != "" {
			p.Distro += "-" + h.VersionID
		}
		i, err := c.add(p)
		found.packages = append(found.packages, i)
		return cmp.Or(err, c.relate(1))
	})
	if errors.Is(err, errContent) {
		found.problem, err = err.Error(), nil
	}
	if err != nil {
		return contents{}, err
	}
	c.databases[key] = found
	return found, nil
}

// defaultNamespace is whose packages are of a type where no os-release says so.
var defaultNamespace = map[string]string{"deb": "debian", "apk": "alpine"}

const maxRelease = 64 << 10

// release reads which system h is.
func (c *collector) release(h *Holder, find finder) error {
	for _, name := range releases {
		at, err := find(name)
		if err != nil {
			return err
		}
		if at == "" {
			continue
		}
		file, err := c.r.Open(at)
		if err != nil {
			return err
		}
		if file.Size() > maxRelease {
			h.Problems = append(h.Problems, fmt.Sprintf("/%s: it has %d bytes", name, file.Size()))
			return nil
		}
		text, err := io.ReadAll(file)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			value = valid(field(strings.Trim(value, `"'`)))
			switch key {
			case "ID":
				h.ID = value
			case "VERSION_ID":
				h.VersionID = value
			case "PRETTY_NAME":
				h.PrettyName = value
			}
		}
		return nil
	}
	return nil
}

func (c *collector) image(store string, im storeseed.Image) (Image, error) {
	one := Image{ImageID: im.ID, Manifest: im.Digest, Created: im.Created.UTC()}
	for _, n := range im.Names {
		one.Names = append(one.Names, valid(n))
	}
	slices.Sort(one.Names)
	v := &view{r: c.r}
	for _, l := range slices.Backward(im.Layers) {
		v.layers = append(v.layers, store+"/overlay/"+l.ID+"/diff")
	}
	if err := c.search(&one.Holder, v.file, v.files); err != nil {
		return one, err
	}
	for _, l := range v.layers {
		if _, known := c.layers[l]; !known {
			found, err := c.programs(l)
			if err != nil {
				return one, err
			}
			c.layers[l] = found
		}
		for _, p := range c.layers[l] {
			ok, err := v.shows(l, p.name)
			if err == nil && ok {
				err = c.hold(&one.Holder, p.name, p.packages)
			}
			if err != nil {
				return one, err
			}
		}
	}
	return one, nil
}

// programFolders are where a system has programs. Its other folders hold no such, or are someone else's: stores,
// images, homes.
var programFolders = []string{"usr", "opt", "bin", "sbin", "usr/local"}

func (c *collector) system(s *System) (*Holder, error) {
	h := &Holder{}
	locate := func(name string, typeflag byte) (string, error) {
		at, err := s.Locate("/" + name)
		if missing(err) || errors.Is(err, osroot.ErrLoop) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		st, err := c.r.Stat(at)
		if missing(err) || err == nil && st.Typeflag != typeflag {
			return "", nil
		}
		return at, err
	}
	find := func(name string) (string, error) { return locate(name, tar.TypeReg) }
	list := func(dir string) ([]string, error) {
		at, err := locate(dir, tar.TypeDir)
		if err != nil || at == "" {
			return nil, err
		}
		names, err := c.r.ReadDir(at)
		if err != nil {
			return nil, err
		}
		var found []string
		for _, n := range names {
			f, err := find(dir + "/" + n)
			if err != nil {
				return nil, err
			}
			if f != "" {
				found = append(found, f)
			}
		}
		return found, nil
	}
	if err := c.search(h, find, list); err != nil {
		return nil, err
	}
	if h.ID == "" {
		h.ID, h.VersionID = valid(s.ID), valid(s.VersionID)
	}
	if s.PrettyName != "" {
		h.PrettyName = valid(s.PrettyName)
	}
	var walked []string
	for _, dir := range programFolders {
		at, err := locate(dir, tar.TypeDir)
		if err != nil {
			return nil, err
		}
		if at == "" || slices.ContainsFunc(walked, func(w string) bool { return at == w || strings.HasPrefix(at, w+"/") }) {
			continue
		}
		walked = append(walked, at)
		found, err := c.programsBelow(at, dir)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			if err := c.hold(h, p.name, p.packages); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}

// programs are the Go programs of a layer.
func (c *collector) programs(layer string) ([]program, error) { return c.programsBelow(layer, "") }

// programsBelow are the Go programs in a folder and below; name is what the folder is called there.
func (c *collector) programsBelow(at, name string) ([]program, error) {
	var found []program
	return found, c.walk(at, name, 0, &found)
}

// maxDepth is more levels of folders than a path can have.
const maxDepth = 2100

func (c *collector) walk(at, name string, depth int, found *[]program) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names, err := c.r.ReadDir(at)
	if err != nil {
		return err
	}
	for _, n := range names {
		below, called := at+"/"+n, strings.TrimPrefix(name+"/"+n, "/")
		h, err := c.r.Stat(below)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case h.Typeflag == tar.TypeDir && depth < maxDepth && !slices.Contains(c.stores, below):
			err = c.walk(below, called, depth+1, found)
		case h.Typeflag == tar.TypeReg && h.Mode&0o111 != 0 && h.Size > 0:
			err = c.program(below, called, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *collector) program(at, name string, found *[]program) error {
	file, err := c.r.Open(at)
	if err != nil {
		return err
	}
	main, modules, ok, err := readProgram(file)
	if errors.Is(err, errContent) {
		*found = append(*found, program{name, contents{problem: err.Error()}})
		return nil
	}
	if err != nil || !ok {
		return err
	}
	for _, m := range modules {
		i, err := c.add(m)
		if err != nil {
			return err
		}
		main.Modules = append(main.Modules, i)
	}
	if err := c.relate(len(main.Modules)); err != nil {
		return err
	}
	main.File = "/" + name
	i, err := c.add(main)
	if err != nil {
		return err
	}
	*found = append(*found, program{name, contents{packages: []int{i}}})
	return nil
}

// finish sorts the packages and has all lists of them follow.
func (c *collector) finish(doc *Document) {
	order := make([]int, len(c.packages))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := &c.packages[i], &c.packages[j]
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Arch, b.Arch),
			cmp.Compare(a.File, b.File), cmp.Compare(a.Distro, b.Distro), cmp.Compare(a.hash, b.hash))
	})
	now := make([]int, len(order))
	for to, from := range order {
		now[from] = to
		doc.Packages = append(doc.Packages, c.packages[from])
	}
	follow := func(list []int) []int {
		for i := range list {
			list[i] = now[list[i]]
		}
		slices.Sort(list)
		return slices.Compact(list)
	}
	for i := range doc.Packages {
		doc.Packages[i].Modules = follow(doc.Packages[i].Modules)
	}
	if doc.OS != nil {
		doc.OS.Packages = follow(doc.OS.Packages)
	}
	for i := range doc.Images {
		doc.Images[i].Packages = follow(doc.Images[i].Packages)
	}
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
