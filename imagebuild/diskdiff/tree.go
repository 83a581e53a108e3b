package diskdiff

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// Tree is a filesystem that is read; filesystem.Tree is one. It must be safe for concurrent use.
type Tree interface {
	Stat(name string) (*tar.Header, error)
	ReadDir(name string) ([]string, error)
	Open(name string) (*io.SectionReader, error)
	// SameFile says whether two names are hard links to one file.
	SameFile(a, b string) (bool, error)
}

// Pair is a folder of tree A and the folder of tree B that it is compared with.
type Pair struct {
	A, B string
	// Shown is what results call both: an absolute path.
	Shown string
}

// Trees says what is compared with what.
type Trees struct {
	A, B Tree
	// Pairs are compared in their order. What one shows under the name of another is left to the other.
	Pairs []Pair
	// SkipA and SkipB say which names of a tree are dealt with elsewhere. A name that both sides skip, or that is on
	// one side alone and skipped there, is passed over; nil skips nothing.
	SkipA, SkipB func(name string) bool
}

// TreeOptions steer Compare.
type TreeOptions struct {
	// Times makes modification times count, to TimeResolution.
	Times          bool
	TimeResolution time.Duration
	// Every gives each name of an added or removed folder a change of its own, and not one of the folder with a count.
	Every bool
	// Hashes gives contents that differ, and those that are added or removed, their SHA-256.
	Hashes bool
	// Lines says for which shown paths the lines of small texts are compared; there each name has a change of its own.
	Lines func(shown string) bool
	// MaxFolders bounds the folders that are visited in each tree and MaxBytes the bytes that are read of each: a
	// hostile filesystem can have more of either than any disk holds. 0 is no bound.
	MaxFolders, MaxBytes int64
}

// Kind is what became of a name on the way from A to B.
type Kind string

// The kinds. Unreadable says that a name could not be compared.
const (
	Added      Kind = "added"
	Removed    Kind = "removed"
	Changed    Kind = "changed"
	Unreadable Kind = "unreadable"
)

// Change is one name that is not the same on both sides.
type Change struct {
	Path Text `json:"path"`
	Kind Kind `json:"kind"`
	// Differs are what a changed name differs in: type, mode, owner, size, content, target, device, mtime, and
	// xattr:NAME for each extended attribute.
	Differs []string `json:"differs,omitempty"`
	A       *File    `json:"a,omitempty"`
	B       *File    `json:"b,omitempty"`
	// Below counts what is in a folder that was added or removed, where it has no changes of its own.
	Below *Below `json:"below,omitempty"`
	// Lines are the differing lines of a small text, as a unified diff without file names.
	Lines Text `json:"lines,omitempty"`
	// Error is why the name could not be compared.
	Error string `json:"error,omitempty"`
}

// File is one side of a change.
type File struct {
	// Type is file, folder, symlink, char, block, fifo or socket.
	Type string `json:"type"`
	// Mode is the permission bits with setuid, setgid and sticky, in octal.
	Mode string `json:"mode"`
	UID  int    `json:"uid"`
	GID  int    `json:"gid"`
	// Size is a file's in bytes.
	Size int64 `json:"size,omitempty"`
	// Target is a symlink's, Device a device's MAJOR:MINOR.
	Target Text   `json:"target,omitempty"`
	Device string `json:"device,omitempty"`
	// Mtime is set where times count, SHA256 where hashes were asked for.
	Mtime  *time.Time `json:"mtime,omitempty"`
	SHA256 string     `json:"sha256,omitempty"`
	// Xattrs are the extended attributes that differ; all of a name that was added or removed.
	Xattrs map[string]Text `json:"xattrs,omitempty"`
}

// Below counts names below a folder, and the bytes of the files among them.
type Below struct {
	Names int64 `json:"names"`
	Bytes int64 `json:"bytes"`
}

// Totals counts what was compared and what was found.
type Totals struct {
	// Compared counts the names that are on both sides, Bytes what was read of each side to compare contents.
	Compared int64 `json:"compared"`
	Bytes    int64 `json:"bytes"`
	// Added, Removed, Changed and Unreadable count names; a folder that was added counts with all that is in it.
	Added      int64 `json:"added"`
	Removed    int64 `json:"removed"`
	Changed    int64 `json:"changed"`
	Unreadable int64 `json:"unreadable"`
}

// Any says whether a difference was found.
func (t Totals) Any() bool { return t.Added+t.Removed+t.Changed+t.Unreadable > 0 }

// ErrHostile says that a tree has more folders than its filesystem can hold: some lead back to themselves.
var ErrHostile = errors.New("the filesystem is corrupt")

// maxDepth bounds how deep folders are followed.
const maxDepth = 4096

// Compare compares the pairs of t and gives emit each difference: within a pair in the order of a walk by name, a
// folder before what is in it. emit is called by one goroutine at a time; its error ends the comparison.
//
// What cannot be read is no error but a difference of the kind Unreadable. Errors are those of ctx and emit, and
// ErrHostile.
func Compare(ctx context.Context, t Trees, o TreeOptions, emit func(Change) error) (Totals, error) {
	ctx, cancel := context.WithCancel(ctx)
	n := runtime.GOMAXPROCS(0)
	w := &walker{t: t, o: o, ctx: ctx, left: o.MaxBytes, found: make(chan *finding, 64*n), jobs: make(chan *finding, 16*n)}
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for range n {
		all.Go(w.work)
	}
	all.Go(func() {
		defer close(w.found)
		defer close(w.jobs)
		for _, p := range t.Pairs {
			p.A, p.B = clean(p.A), clean(p.B)
			if w.end = w.pair(p); w.end != nil {
				return
			}
		}
	})
	var total Totals
	for f := range w.found {
		if f.done != nil {
			select {
			case <-f.done:
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				return total, ctx.Err()
			}
		}
		if err := w.settle(f, &total, emit); err != nil {
			return total, err
		}
	}
	if err := ctx.Err(); err != nil {
		return total, err
	}
	return total, w.end
}

// settle counts what was found, now that contents were read, and hands it on.
func (w *walker) settle(f *finding, total *Totals, emit func(Change) error) error {
	total.Bytes += f.read
	if f.a != nil && f.b != nil {
		total.Compared++
	}
	if f.Kind == Changed && len(f.Differs) == 0 {
		return nil
	}
	below := int64(0)
	if f.Below != nil {
		below = f.Below.Names
	}
	switch f.Kind {
	case Added:
		total.Added += 1 + below
	case Removed:
		total.Removed += 1 + below
	case Changed:
		total.Changed++
	case Unreadable:
		total.Unreadable++
	}
	f.A, f.B = w.file(f.a, f.b, f.sum[0]), w.file(f.b, f.a, f.sum[1])
	return emit(f.Change)
}

// finding is a change, or what may turn out to be one once contents were read.
type finding struct {
	Change
	a, b *tar.Header // nil where the name is not there
	job
}

type walker struct {
	t     Trees
	o     TreeOptions
	ctx   context.Context
	found chan *finding
	jobs  chan *finding
	// folders were visited on each side, and left is how many bytes may still be read.
	folders [2]int64
	left    int64
	linked  linked
	// end is why the walk ended; it is read after found is closed.
	end error
}

func clean(name string) string {
	if name = strings.Trim(name, "/"); name == "." {
		return ""
	}
	return name
}

// join is path.Join for names that are clean already, and that may be any bytes.
func join(dir, name string) string {
	if dir == "" || dir == "/" {
		return dir + name
	}
	return dir + "/" + name
}

func (w *walker) send(f *finding) error {
	if f.done != nil {
		select {
		case w.jobs <- f:
		case <-w.ctx.Done():
			return w.ctx.Err()
		}
	}
	select {
	case w.found <- f:
		return nil
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
}

func (w *walker) unreadable(shown string, side int, err error) error {
	return w.send(&finding{Change: Change{Path: Text(shown), Kind: Unreadable, Error: sides[side] + ": " + err.Error()}})
}

func (w *walker) tree(side int) Tree {
	if side == 0 {
		return w.t.A
	}
	return w.t.B
}

var sides = []string{"A", "B"}

func (w *walker) skip(side int, name string) bool {
	f := w.t.SkipA
	if side == 1 {
		f = w.t.SkipB
	}
	return f != nil && f(name)
}

// elsewhere says whether another pair shows what is here.
func (w *walker) elsewhere(shown string) bool {
	return slices.ContainsFunc(w.t.Pairs, func(p Pair) bool { return p.Shown == shown })
}

// visit counts a folder against the bound.
func (w *walker) visit(side, depth int, shown string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if w.folders[side]++; w.o.MaxFolders > 0 && w.folders[side] > w.o.MaxFolders || depth > maxDepth {
		return fmt.Errorf("%w: %s: more folders at %.200s, %d deep, than the disk can hold", ErrHostile, sides[side], shown, depth)
	}
	return nil
}

// pair compares a pair's own folder, which may be missing on one side.
func (w *walker) pair(p Pair) error {
	_, a := w.t.A.Stat(p.A)
	_, b := w.t.B.Stat(p.B)
	noA, noB := errors.Is(a, fs.ErrNotExist), errors.Is(b, fs.ErrNotExist)
	switch {
	case noA && noB:
		return nil
	case noA:
		return w.alone(1, Added, p.B, p.Shown, 0)
	case noB:
		return w.alone(0, Removed, p.A, p.Shown, 0)
	}
	return w.both(p, 0)
}

// both compares a name that is on both sides.
func (w *walker) both(p Pair, depth int) error {
	f := &finding{Change: Change{Path: Text(p.Shown), Kind: Changed}}
	var err error
	if f.a, err = w.t.A.Stat(p.A); err != nil {
		return w.unreadable(p.Shown, 0, err)
	}
	if f.b, err = w.t.B.Stat(p.B); err != nil {
		return w.unreadable(p.Shown, 1, err)
	}
	a, b := f.a.Typeflag, f.b.Typeflag
	f.Differs = w.compare(f.a, f.b)
	if a == tar.TypeReg && b == tar.TypeReg {
		if f.a.Size == f.b.Size {
			f.compare = f.a.Size > 0
		} else {
			f.Differs = append(f.Differs, "content")
		}
	}
	w.ask(f, p.A, p.B)
	if err := w.send(f); err != nil {
		return err
	}
	switch {
	case a == tar.TypeDir && b == tar.TypeDir:
		return w.merge(p, depth)
	case a == tar.TypeDir:
		return w.inside(0, Removed, p.A, p.Shown, depth)
	case b == tar.TypeDir:
		return w.inside(1, Added, p.B, p.Shown, depth)
	}
	return nil
}

// ask makes a job of what must be read to judge or to show a finding.
func (w *walker) ask(f *finding, nameA, nameB string) {
	if f.compare || len(f.Differs) > 0 || f.Kind != Changed {
		f.hash, f.lines = w.o.Hashes, w.o.Lines != nil && w.o.Lines(string(f.Path))
	}
	f.name = [2]string{nameA, nameB}
	most := int64(0)
	for _, h := range []*tar.Header{f.a, f.b} {
		if h == nil {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			// One text alone has no lines in which it differs.
			f.lines = f.lines && f.Kind != Changed
			continue
		}
		most = max(most, h.Size)
		// What not everyone on the node may read is not for a terminal either.
		f.lines = f.lines && h.Mode&0o004 != 0 && h.Size <= maxText
	}
	if !(f.compare || f.hash || f.lines) || !isFile(f.a) && !isFile(f.b) {
		f.compare, f.hash, f.lines = false, false, false
		return
	}
	if w.o.MaxBytes > 0 {
		if most > w.left {
			if f.compare {
				f.Kind, f.Error = Unreadable, fmt.Sprintf("its %d bytes, most of which must be holes, were not read", most)
			}
			f.compare, f.hash, f.lines = false, false, false
			return
		}
		w.left -= most
	}
	f.done = make(chan struct{})
}

func isFile(h *tar.Header) bool { return h != nil && h.Typeflag == tar.TypeReg }

// merge walks two folders side by side.
func (w *walker) merge(p Pair, depth int) error {
	var names [2][]string
	for side, dir := range []string{p.A, p.B} {
		if err := w.visit(side, depth, p.Shown); err != nil {
			return err
		}
		var err error
		if names[side], err = w.tree(side).ReadDir(dir); err != nil {
			return w.unreadable(p.Shown, side, err)
		}
	}
	a, b := names[0], names[1]
	for len(a) > 0 || len(b) > 0 {
		var err error
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			err = w.one(0, Removed, join(p.A, a[0]), join(p.Shown, a[0]), depth+1)
			a = a[1:]
		case len(a) == 0 || b[0] < a[0]:
			err = w.one(1, Added, join(p.B, b[0]), join(p.Shown, b[0]), depth+1)
			b = b[1:]
		default:
			q := Pair{join(p.A, a[0]), join(p.B, b[0]), join(p.Shown, a[0])}
			if !w.elsewhere(q.Shown) && !(w.skip(0, q.A) && w.skip(1, q.B)) {
				err = w.both(q, depth+1)
			}
			a, b = a[1:], b[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one reports a name that is on one side alone, unless it is dealt with elsewhere.
func (w *walker) one(side int, kind Kind, name, shown string, depth int) error {
	if w.elsewhere(shown) || w.skip(side, name) {
		return nil
	}
	return w.alone(side, kind, name, shown, depth)
}

func (w *walker) alone(side int, kind Kind, name, shown string, depth int) error {
	h, err := w.tree(side).Stat(name)
	if err != nil {
		return w.unreadable(shown, side, err)
	}
	f := &finding{Change: Change{Path: Text(shown), Kind: kind}}
	if side == 0 {
		f.a = h
		w.ask(f, name, "")
	} else {
		f.b = h
		w.ask(f, "", name)
	}
	if h.Typeflag != tar.TypeDir {
		return w.send(f)
	}
	each := w.o.Every || w.o.Lines != nil && w.o.Lines(shown)
	if !each {
		f.Below = &Below{}
		if err := w.count(side, name, shown, f.Below, depth); err != nil {
			return err
		}
	}
	if err := w.send(f); err != nil || !each {
		return err
	}
	return w.inside(side, kind, name, shown, depth)
}

// inside reports each name in a folder that is on one side alone.
func (w *walker) inside(side int, kind Kind, name, shown string, depth int) error {
	if err := w.visit(side, depth, shown); err != nil {
		return err
	}
	names, err := w.tree(side).ReadDir(name)
	if err != nil {
		return w.unreadable(shown, side, err)
	}
	for _, n := range names {
		if err := w.one(side, kind, join(name, n), join(shown, n), depth+1); err != nil {
			return err
		}
	}
	return nil
}

// count adds up what is below a folder.
func (w *walker) count(side int, name, shown string, sum *Below, depth int) error {
	if err := w.visit(side, depth, shown); err != nil {
		return err
	}
	names, err := w.tree(side).ReadDir(name)
	if err != nil {
		return w.unreadable(shown, side, err)
	}
	for _, n := range names {
		at, as := join(name, n), join(shown, n)
		if w.skip(side, at) || w.elsewhere(as) {
			continue
		}
		sum.Names++
		h, err := w.tree(side).Stat(at)
		if err != nil {
			if err := w.unreadable(as, side, err); err != nil {
				return err
			}
			continue
		}
		switch h.Typeflag {
		case tar.TypeReg:
			if h.Size > math.MaxInt64-sum.Bytes {
				h.Size = math.MaxInt64 - sum.Bytes
			}
			sum.Bytes += h.Size
		case tar.TypeDir:
			if err := w.count(side, at, as, sum, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// compare says in what two records differ, contents aside.
func (w *walker) compare(a, b *tar.Header) []string {
	var differs []string
	note := func(what string, same bool) {
		if !same {
			differs = append(differs, what)
		}
	}
	note("type", a.Typeflag == b.Typeflag)
	// Nothing looks at a symbolic link's mode.
	note("mode", a.Mode == b.Mode || a.Typeflag == tar.TypeSymlink && b.Typeflag == tar.TypeSymlink)
	note("owner", a.Uid == b.Uid && a.Gid == b.Gid)
	if a.Typeflag == b.Typeflag {
		switch a.Typeflag {
		case tar.TypeReg:
			note("size", a.Size == b.Size)
		case tar.TypeSymlink:
			note("target", a.Linkname == b.Linkname)
		case tar.TypeChar, tar.TypeBlock:
			note("device", a.Devmajor == b.Devmajor && a.Devminor == b.Devminor)
		}
	}
	note("mtime", !w.o.Times || sameTime(a.ModTime, b.ModTime, w.o.TimeResolution))
	if !maps.Equal(a.PAXRecords, b.PAXRecords) {
		var names []string
		for _, side := range [][2]*tar.Header{{a, b}, {b, a}} {
			for name := range xattrs(side[0], side[1]) {
				names = append(names, "xattr:"+name)
			}
		}
		slices.Sort(names)
		differs = append(differs, slices.Compact(names)...)
	}
	return differs
}

func sameTime(a, b time.Time, resolution time.Duration) bool {
	if resolution >= time.Second {
		return a.Unix() == b.Unix()
	}
	return a.Equal(b)
}

var types = map[byte]string{tar.TypeReg: "file", tar.TypeDir: "folder", tar.TypeSymlink: "symlink", tar.TypeChar: "char",
	tar.TypeBlock: "block", tar.TypeFifo: "fifo", 's': "socket"}

// file describes a side of a change, nil where the name is not there.
func (w *walker) file(h, other *tar.Header, sum string) *File {
	if h == nil {
		return nil
	}
	f := &File{Type: types[h.Typeflag], Mode: fmt.Sprintf("%04o", h.Mode), UID: h.Uid, GID: h.Gid, SHA256: sum, Xattrs: xattrs(h, other)}
	switch h.Typeflag {
	case tar.TypeReg:
		f.Size = h.Size
	case tar.TypeSymlink:
		f.Target = Text(h.Linkname)
	case tar.TypeChar, tar.TypeBlock:
		f.Device = fmt.Sprintf("%d:%d", h.Devmajor, h.Devminor)
	}
	if w.o.Times {
		t := h.ModTime.UTC()
		f.Mtime = &t
	}
	return f
}

// xattrs are the extended attributes of h that other has not, or not with the same value.
func xattrs(h, other *tar.Header) map[string]Text {
	var all map[string]Text
	for k, v := range h.PAXRecords {
		name, ok := strings.CutPrefix(k, "SCHILY.xattr.")
		if !ok {
			continue
		}
		if other != nil {
			if w, have := other.PAXRecords[k]; have && w == v {
				continue
			}
		}
		if all == nil {
			all = map[string]Text{}
		}
		all[Text(name).encoded()] = Text(v)
	}
	return all
}
