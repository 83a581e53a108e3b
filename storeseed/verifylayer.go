package storeseed

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// layerCheck checks one layer.
type layerCheck struct {
	v    *verifier
	l    *layerRec
	base string
	seed maphash.Seed
	ours bool

	known     map[uint64]struct{} // paths that may be there
	dirs      map[uint64]struct{} // folders that an entry made
	hidden    []string            // folders that an entry needs, to be looked at last
	whiteouts []string
	opaque    []string
	marked    map[string]bool // folders that carry the opaque mark
	rootSeen  bool
	links     linkCount
	uids      map[uint32]struct{} // by the entries that are files
	gids      map[uint32]struct{}
	allUIDs   map[uint32]struct{} // by the other ones
	allGIDs   map[uint32]struct{}

	faults   faultList
	labels   faultList
	labelled bool
	entries  int64
	bytes    int64
}

func newLayerCheck(v *verifier, l *layerRec) *layerCheck {
	return &layerCheck{v: v, l: l, base: v.root + "/overlay/" + l.ID + "/diff", seed: maphash.MakeSeed(), ours: v.ours[l.ID],
		known: map[uint64]struct{}{}, dirs: map[uint64]struct{}{}, marked: map[string]bool{},
		uids: map[uint32]struct{}{}, gids: map[uint32]struct{}{}, allUIDs: map[uint32]struct{}{}, allGIDs: map[uint32]struct{}{}}
}

func (c *layerCheck) fault(path, format string, a ...any) {
	f := Fault{Layer: c.l.ID, Path: path, Problem: fmt.Sprintf(format, a...)}
	c.faults.add(f, c.v.o.MaxFaults)
}

func (c *layerCheck) path(name string) string {
	if name == "" {
		return c.base
	}
	return c.base + "/" + name
}

func (c *layerCheck) hash(name string) uint64 { return maphash.String(c.seed, name) }

// shortNames checks a layer's short name and those of its ancestors.
func (c *layerCheck) shortNames() {
	v, l := c.v, c.l
	dir := "overlay/" + l.ID
	link, err := readLink(v.r, v.root, l.ID)
	if err != nil {
		c.fault(dir+"/link", "%s", why(err))
	} else {
		h, err := v.r.Stat(v.root + "/overlay/l/" + link)
		if err == nil && (h.Typeflag != tar.TypeSymlink || h.Linkname != "../"+l.ID+"/diff") {
			err = fmt.Errorf("it is not a symlink to ../%s/diff", l.ID)
		}
		if err != nil {
			c.fault("overlay/l/"+link, "%s", why(err))
		}
	}
	var want, ids []string
	for p := v.rec.byLayer[l.Parent]; p != nil; p = v.rec.byLayer[p.Parent] {
		link, err := readLink(v.r, v.root, p.ID)
		if err != nil {
			return // reported with that layer
		}
		want, ids = append(want, "l/"+link), append(ids, p.ID)
	}
	// Later engines write the second file beside the first, and prefer it.
	for _, f := range []struct {
		name     string
		want     []string
		optional bool
	}{{"lower", want, len(want) == 0}, {"lower-layers", ids, true}} {
		got, err := readAll(v.r, v.root+"/"+dir+"/"+f.name)
		switch {
		case errors.Is(err, fs.ErrNotExist) && f.optional:
		case err != nil:
			c.fault(dir+"/"+f.name, "%s", why(err))
		case string(got) != strings.Join(f.want, ":"):
			c.fault(dir+"/"+f.name, "it holds %q instead of %q", got, strings.Join(f.want, ":"))
		}
	}
}

// check rebuilds the layer's tar from its tar-split data and its files, and compares its entries with the files.
func (c *layerCheck) check() {
	c.record()
	l := c.l
	if l.UncompressedDigest == "" {
		c.fault("", "its record has no diffID")
		return
	}
	if err := l.UncompressedDigest.Validate(); err != nil || !l.UncompressedDigest.Algorithm().Available() {
		c.fault("", "its diffID is %q", l.UncompressedDigest)
		return
	}
	sum := newHasher(l.UncompressedDigest.Algorithm().Hash())
	r := &rebuilt{c: c, sum: sum}
	perr := c.compare(r)
	r.drain()
	h := sum.end()
	r.close()
	c.bytes = sum.n
	switch {
	case c.v.ctx.Err() != nil:
		return
	case r.err != nil && r.err != io.EOF:
		c.fault("", "its tar cannot be rebuilt: %s", why(r.err))
		return
	case perr != nil:
		// The tar cannot be read on, but its digest still counts.
		c.fault("", "its tar cannot be read: %v", perr)
	}
	if got := digest.NewDigest(l.UncompressedDigest.Algorithm(), h); got != l.UncompressedDigest {
		c.fault("", "its files hash to %s instead of %s", got, l.UncompressedDigest)
	}
	if l.UncompressedSize >= 0 && sum.n != l.UncompressedSize {
		c.fault("", "its tar has %d bytes, its record says %d", sum.n, l.UncompressedSize)
	}
	if perr == nil {
		c.finish()
	}
}

// compare reads the rebuilt tar and looks at the file of each entry.
func (c *layerCheck) compare(r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.entries++
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := checkEntry(h)
		if err != nil {
			c.fault(h.Name, "%v", err)
			continue
		}
		hides, opaque, isWhiteout, err := whiteoutOf(h, name)
		c.owner(h, isWhiteout)
		switch {
		case err != nil:
			c.fault(h.Name, "%v", err)
		case isWhiteout && opaque:
			c.opaque = append(c.opaque, hides)
		case isWhiteout:
			c.whiteouts = append(c.whiteouts, hides)
		default:
			c.entry(h, name)
		}
	}
}

func (c *layerCheck) entry(h *tar.Header, name string) {
	c.needParents(name)
	c.known[c.hash(name)] = struct{}{}
	if name == "" {
		c.rootSeen = true
	}
	got, err := c.v.r.Stat(c.path(name))
	if err != nil {
		c.fault(name, "%s", why(err))
		return
	}
	if h.Typeflag == tar.TypeLink {
		target, err := cleanName(h.Linkname)
		if err == nil {
			c.links.add(c.hash(name), c.hash(target))
			err = c.sameFile(name, target, got)
		}
		if err != nil {
			c.fault(name, "%v", err)
		}
		return
	}
	c.label(name, got)
	c.countLinks(name, got)
	if h.Typeflag == tar.TypeDir && got.Typeflag == tar.TypeDir {
		c.dirs[c.hash(name)] = struct{}{}
	}
	c.attributes(name, onDisk(h), got, true)
}

// needParents notes the folders above name that no entry has made so far.
func (c *layerCheck) needParents(name string) {
	for p := parentOf(name); p != ""; p = parentOf(p) {
		k := c.hash(p)
		if _, ok := c.known[k]; ok {
			return
		}
		c.known[k] = struct{}{}
		c.hidden = append(c.hidden, p)
	}
}

// attributes compares what a file should be with what it is.
func (c *layerCheck) attributes(name string, want, got *tar.Header, times bool) {
	if want.Typeflag != got.Typeflag {
		c.fault(name, "it is a %s instead of a %s", typeName(got.Typeflag), typeName(want.Typeflag))
		return
	}
	var diff []string
	add := func(what string, want, got any) {
		diff = append(diff, fmt.Sprintf("%s is %v instead of %v", what, got, want))
	}
	if want.Mode != got.Mode {
		add("mode", fmt.Sprintf("%04o", want.Mode), fmt.Sprintf("%04o", got.Mode))
	}
	if want.Uid != got.Uid || want.Gid != got.Gid {
		add("owner", fmt.Sprintf("%d:%d", want.Uid, want.Gid), fmt.Sprintf("%d:%d", got.Uid, got.Gid))
	}
	if want.Typeflag == tar.TypeReg && want.Size != got.Size {
		add("size", want.Size, got.Size)
	}
	if wanted := c.v.o.held(want.ModTime); times && !wanted.Equal(c.v.o.held(got.ModTime)) {
		add("modification time", wanted.UTC().Format(time.RFC3339Nano), got.ModTime.UTC().Format(time.RFC3339Nano))
	}
	if want.Typeflag == tar.TypeSymlink && want.Linkname != got.Linkname {
		add("target", fmt.Sprintf("%q", want.Linkname), fmt.Sprintf("%q", got.Linkname))
	}
	if (want.Typeflag == tar.TypeChar || want.Typeflag == tar.TypeBlock) && (want.Devmajor != got.Devmajor || want.Devminor != got.Devminor) {
		add("device", fmt.Sprintf("%d:%d", want.Devmajor, want.Devminor), fmt.Sprintf("%d:%d", got.Devmajor, got.Devminor))
	}
	diff = append(diff, c.xattrs(name, want, got)...)
	if len(diff) > 0 {
		c.fault(name, "%s", strings.Join(diff, "; "))
	}
}

func (c *layerCheck) xattrs(name string, want, got *tar.Header) []string {
	var diff []string
	for _, k := range slices.Sorted(maps.Keys(want.PAXRecords)) {
		v, ok := got.PAXRecords[k]
		if !ok {
			diff = append(diff, fmt.Sprintf("the attribute %s is missing", k[len(xattrPrefix):]))
		} else if v != want.PAXRecords[k] {
			diff = append(diff, fmt.Sprintf("the attribute %s is %q instead of %q", k[len(xattrPrefix):], v, want.PAXRecords[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got.PAXRecords)) {
		attr, ok := strings.CutPrefix(k, xattrPrefix)
		if _, wanted := want.PAXRecords[k]; !ok || wanted || attr == "security.selinux" {
			continue
		}
		if attr == opaqueXattr && got.Typeflag == tar.TypeDir && got.PAXRecords[k] == "y" {
			c.marked[name] = true
			continue
		}
		diff = append(diff, fmt.Sprintf("it has the attribute %s, which the layer does not give it", attr))
	}
	return diff
}

func typeName(t byte) string {
	switch t {
	case tar.TypeReg:
		return "regular file"
	case tar.TypeDir:
		return "folder"
	case tar.TypeSymlink:
		return "symlink"
	case tar.TypeChar:
		return "character device"
	case tar.TypeBlock:
		return "block device"
	case tar.TypeFifo:
		return "FIFO"
	case 's':
		return "socket"
	}
	return fmt.Sprintf("file of type %q", t)
}

// sameFile checks that a hard link is one.
func (c *layerCheck) sameFile(name, target string, got *tar.Header) error {
	a, b := c.path(name), c.path(target)
	if s, ok := c.v.r.(sameFiler); ok {
		same, err := s.SameFile(a, b)
		if err != nil {
			return fmt.Errorf("its hard link target %q: %s", target, why(err))
		}
		if !same {
			return fmt.Errorf("it is not a hard link to %q", target)
		}
		return nil
	}
	other, err := c.v.r.Stat(b)
	if err != nil {
		return fmt.Errorf("its hard link target %q: %s", target, why(err))
	}
	if got.Typeflag != other.Typeflag || got.Mode != other.Mode || got.Uid != other.Uid || got.Gid != other.Gid || got.Size != other.Size ||
		!got.ModTime.Equal(other.ModTime) || got.Linkname != other.Linkname || got.Devmajor != other.Devmajor || got.Devminor != other.Devminor ||
		!maps.Equal(got.PAXRecords, other.PAXRecords) {
		return fmt.Errorf("it is not a hard link to %q: their attributes differ", target)
	}
	if got.Typeflag != tar.TypeReg {
		return nil
	}
	fa, err := c.v.r.Open(a)
	if err != nil {
		return err
	}
	fb, err := c.v.r.Open(b)
	if err != nil {
		return err
	}
	same, err := equalContent(fa, fb)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("it is not a hard link to %q: their contents differ", target)
	}
	return nil
}

func equalContent(a, b io.Reader) (bool, error) {
	var x, y [64 << 10]byte
	for {
		n, err := io.ReadFull(a, x[:])
		m, err2 := io.ReadFull(b, y[:])
		if n != m || !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return true, nil
		}
		if err != nil || err2 != nil {
			return false, errors.Join(err, err2)
		}
	}
}

// finish looks at what no entry stands for: the root, folders in between, whiteouts, opaque marks, and
// files that should not be there.
func (c *layerCheck) finish() {
	wantOpaque := map[string]bool{}
	for _, n := range c.opaque {
		wantOpaque[n] = true
	}
	for _, n := range c.whiteouts {
		if _, made := c.known[c.hash(n)]; made {
			got, err := c.v.r.Stat(c.path(n))
			if err == nil && got.Typeflag == tar.TypeDir {
				wantOpaque[n] = true
			}
			continue
		}
		got, err := c.v.r.Stat(c.path(n))
		if err != nil {
			// Nothing can be hidden below a file or another whiteout.
			if !c.belowFile(parentOf(n)) {
				c.fault(n, "its whiteout: %s", why(err))
			}
			continue
		}
		c.needParents(n)
		c.known[c.hash(n)] = struct{}{}
		switch {
		case got.Typeflag != tar.TypeChar || got.Devmajor != 0 || got.Devminor != 0:
			c.fault(n, "it is a %s instead of a whiteout", typeName(got.Typeflag))
		case c.ours:
			c.attributes(n, &tar.Header{Typeflag: tar.TypeChar, ModTime: c.l.Created}, got, true)
			c.countLinks(n, got)
		}
		c.label(n, got)
	}
	for _, n := range slices.Sorted(maps.Keys(wantOpaque)) {
		if n != "" {
			c.needParents(n + "/x")
		}
	}
	c.root()
	for _, n := range c.hidden {
		if _, made := c.dirs[c.hash(n)]; made {
			continue
		}
		got, err := c.v.r.Stat(c.path(n))
		if err != nil {
			c.fault(n, "%s", why(err))
			continue
		}
		c.attributes(n, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: c.l.Created}, got, c.ours)
		c.label(n, got)
		c.dirs[c.hash(n)] = struct{}{}
	}
	for _, n := range slices.Sorted(maps.Keys(wantOpaque)) {
		if !c.marked[n] {
			c.fault(n, "it should be opaque, and hides nothing")
		}
	}
	for _, n := range slices.Sorted(maps.Keys(c.marked)) {
		if !wantOpaque[n] {
			c.fault(n, "it is opaque, and should hide nothing")
		}
	}
	c.walk("", 0)
	c.finishLinks()
	c.checkOwners()
}

func (c *layerCheck) belowFile(name string) bool {
	for ; name != ""; name = parentOf(name) {
		if h, err := c.v.r.Stat(c.path(name)); err == nil {
			return h.Typeflag != tar.TypeDir
		}
	}
	return false
}

// root: without an entry of its own it is as the parent's, or 0555 root:root.
func (c *layerCheck) root() {
	if c.rootSeen {
		return
	}
	got, err := c.v.r.Stat(c.base)
	if err != nil {
		c.fault("", "its diff folder: %s", why(err))
		return
	}
	c.label("", got)
	want := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o555, ModTime: c.l.Created}
	if c.l.Parent != "" {
		p, err := c.v.r.Stat(c.v.root + "/overlay/" + c.l.Parent + "/diff")
		if err != nil {
			return // reported with that layer
		}
		want.Mode, want.Uid, want.Gid = p.Mode&0o777, p.Uid, p.Gid
	}
	c.attributes("", want, got, c.ours)
}

// walk looks for files that no entry made.
func (c *layerCheck) walk(name string, depth int) {
	if depth > 4096 || c.v.ctx.Err() != nil {
		return
	}
	names, err := c.v.r.ReadDir(c.path(name))
	if err != nil {
		c.fault(name, "%s", why(err))
		return
	}
	for _, n := range names {
		full := strings.TrimPrefix(name+"/"+n, "/")
		if _, ok := c.known[c.hash(full)]; !ok {
			c.fault(full, "no entry of the layer made it")
			continue
		}
		if _, ok := c.dirs[c.hash(full)]; ok {
			c.walk(full, depth+1)
		}
	}
}
