package storeseed

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc64"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/pgzip"
	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/storage"
)

// VerifyOptions bound a verification. The zero value checks everything.
type VerifyOptions struct {
	// MaxFaults is how many faults are kept; further ones are counted only. 0 is 1000.
	MaxFaults int
	// TimeResolution is the precision of the filesystem's timestamps; 0 is a nanosecond.
	TimeResolution time.Duration
	// Earliest and Latest bound the times that the filesystem can hold: an entry beyond them is there with the bound.
	// Zero is no bound.
	Earliest, Latest time.Time
	// RecordsOnly checks the records, links and data items and leaves out the layers' contents.
	RecordsOnly bool
	// Progress, if set, is called before each layer.
	Progress func(layer, layers int, id string)
	Log      logrus.FieldLogger
}

// held is what becomes of a time in the filesystem.
func (o VerifyOptions) held(t time.Time) time.Time {
	switch {
	case !o.Earliest.IsZero() && t.Before(o.Earliest):
		return o.Earliest
	case !o.Latest.IsZero() && t.After(o.Latest):
		return o.Latest
	}
	return t.Truncate(o.TimeResolution)
}

// Fault is one thing that is wrong with a store.
type Fault struct {
	Image   string `json:"image,omitempty"` // image ID
	Layer   string `json:"layer,omitempty"` // layer ID
	Path    string `json:"path,omitempty"`  // inside the layer's folder, else in the store
	Problem string `json:"problem"`
}

func (f Fault) String() string {
	var b strings.Builder
	for _, p := range []struct{ kind, v string }{{"image ", f.Image}, {"layer ", f.Layer}} {
		if p.v != "" {
			fmt.Fprintf(&b, "%s%.12s: ", p.kind, p.v)
		}
	}
	if f.Path != "" {
		fmt.Fprintf(&b, "%q: ", f.Path)
	}
	return b.String() + f.Problem
}

// Report is the outcome of a verification.
type Report struct {
	Images  int     `json:"images"`
	Layers  int     `json:"layers"`
	Entries int64   `json:"entries"` // tar entries that were compared
	Bytes   int64   `json:"bytes"`   // tar bytes that were rebuilt and hashed
	Faults  []Fault `json:"faults"`
	Total   int     `json:"total"` // faults found, of which Faults keeps the first
}

// Verify checks the store at root against its own promises: every layer's tar is rebuilt from the
// files on disk and hashed against its diffID, every entry of that tar compared with its file, every
// file accounted for by an entry, and all records, links and data items checked against each other.
// It reports all faults. The error is for what kept it from looking: no store there, or ctx.
func Verify(ctx context.Context, r Reader, root string, o VerifyOptions) (*Report, error) {
	root, err := cleanName(root)
	if err != nil {
		return nil, fmt.Errorf("store path: %w", err)
	}
	if err := isStore(r, root); err != nil {
		return nil, err
	}
	if o.MaxFaults == 0 {
		o.MaxFaults = 1000
	}
	if o.TimeResolution <= 0 {
		o.TimeResolution = time.Nanosecond
	}
	v := &verifier{ctx: ctx, r: r, root: root, o: o, rep: &Report{Faults: []Fault{}}}
	rec, err := readRecords(r, root, func(f Fault) error {
		v.fault(f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.rec = rec
	v.rep.Images, v.rep.Layers = len(rec.images), len(rec.layers)
	v.locks()
	v.strays()
	for i, l := range rec.layers {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if o.Progress != nil {
			o.Progress(i, len(rec.layers), l.ID)
		}
		v.links(l)
		if !o.RecordsOnly {
			v.layer(l)
		}
	}
	for _, im := range rec.images {
		v.image(im)
	}
	return v.rep, ctx.Err()
}

type verifier struct {
	ctx  context.Context
	r    Reader
	root string
	o    VerifyOptions
	rec  *records
	rep  *Report
}

func (v *verifier) fault(f Fault) {
	v.rep.Total++
	if len(v.rep.Faults) < v.o.MaxFaults {
		v.rep.Faults = append(v.rep.Faults, f)
	}
	if v.o.Log != nil {
		v.o.Log.Debug(f)
	}
}

// why shortens an error to what a reader of the report needs.
func why(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing"
	}
	return err.Error()
}

// locks: an engine fails on a read-only filesystem without them.
func (v *verifier) locks() {
	for _, name := range []string{layersLock, imagesLock} {
		if _, err := v.r.Open(v.root + "/" + name); err != nil {
			v.fault(Fault{Path: name, Problem: why(err)})
		}
	}
}

// strays are folders and links that no record accounts for.
func (v *verifier) strays() {
	links := map[string]string{}
	for _, l := range v.rec.layers {
		if link, err := readLink(v.r, v.root, l.ID); err == nil {
			links[link] = l.ID
		}
	}
	names, err := v.r.ReadDir(v.root + "/overlay")
	if err != nil && (len(v.rec.layers) > 0 || !errors.Is(err, fs.ErrNotExist)) {
		v.fault(Fault{Path: "overlay", Problem: why(err)})
	}
	for _, n := range names {
		if isID(n) && v.rec.byLayer[n] == nil {
			v.fault(Fault{Layer: n, Path: "overlay/" + n, Problem: "no record names this layer"})
		}
	}
	names, err = v.r.ReadDir(v.root + "/overlay/l")
	if err != nil && len(v.rec.layers) > 0 {
		v.fault(Fault{Path: "overlay/l", Problem: why(err)})
	}
	for _, n := range names {
		if links[n] == "" {
			v.fault(Fault{Path: "overlay/l/" + n, Problem: "no layer has this short name"})
		}
	}
	names, err = v.r.ReadDir(v.root + "/" + imagesDir)
	if err != nil && len(v.rec.images) > 0 {
		v.fault(Fault{Path: imagesDir, Problem: why(err)})
	}
	for _, n := range names {
		if isID(n) && v.rec.byImage[n] == nil {
			v.fault(Fault{Image: n, Path: imagesDir + "/" + n, Problem: "no record names this image"})
		}
	}
}

func (v *verifier) links(l *layerRec) {
	dir := "overlay/" + l.ID
	link, err := readLink(v.r, v.root, l.ID)
	if err != nil {
		v.fault(Fault{Layer: l.ID, Path: dir + "/link", Problem: why(err)})
	} else {
		h, err := v.r.Stat(v.root + "/overlay/l/" + link)
		if err == nil && (h.Typeflag != tar.TypeSymlink || h.Linkname != "../"+l.ID+"/diff") {
			err = fmt.Errorf("it is not a symlink to ../%s/diff", l.ID)
		}
		if err != nil {
			v.fault(Fault{Layer: l.ID, Path: "overlay/l/" + link, Problem: why(err)})
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
			v.fault(Fault{Layer: l.ID, Path: dir + "/" + f.name, Problem: why(err)})
		case string(got) != strings.Join(f.want, ":"):
			v.fault(Fault{Layer: l.ID, Path: dir + "/" + f.name, Problem: fmt.Sprintf("it holds %q instead of %q", got, strings.Join(f.want, ":"))})
		}
	}
}

func (v *verifier) image(im *imageRec) {
	fault := func(path, format string, a ...any) {
		v.fault(Fault{Image: im.ID, Path: path, Problem: fmt.Sprintf(format, a...)})
	}
	items := map[string][]byte{}
	for _, key := range im.BigDataNames {
		p := imagesDir + "/" + im.ID + "/" + bigDataFile(key)
		data, err := readAll(v.r, v.root+"/"+p)
		if err != nil {
			fault(p, "the data item %q: %s", key, why(err))
			continue
		}
		items[key] = data
		if n, ok := im.BigDataSizes[key]; ok && n != int64(len(data)) {
			fault(p, "the data item %q has %d bytes instead of %d", key, len(data), n)
		}
		got := digest.FromBytes(data)
		if isManifestKey(key) {
			if got, err = manifest.Digest(data); err != nil {
				fault(p, "the data item %q is no manifest: %v", key, err)
				continue
			}
			if name, ok := strings.CutPrefix(key, storage.ImageDigestManifestBigDataNamePrefix+"-"); ok && name != got.String() {
				fault(p, "the data item %q hashes to %s", key, got)
			}
		}
		if d, ok := im.BigDataDigests[key]; ok && d != got {
			fault(p, "the data item %q hashes to %s, its record says %s", key, got, d)
		}
	}
	for key := range maps.Keys(im.BigDataSizes) {
		if !slices.Contains(im.BigDataNames, key) {
			fault("", "the data item %q has a size but is not listed", key)
		}
	}

	id := digest.NewDigestFromEncoded(digest.SHA256, im.ID)
	config, ok := items[id.String()]
	if !ok {
		fault("", "it has no config, or not under its own digest")
	} else if got := digest.FromBytes(config); got != id {
		fault("", "its config hashes to %s", got)
	} else {
		var c struct {
			RootFS struct {
				DiffIDs []digest.Digest `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := json.Unmarshal(config, &c); err != nil {
			fault("", "its config: %v", err)
		}
		var chain []digest.Digest
		for _, l := range v.rec.chain(im.TopLayer) {
			chain = append(chain, l.UncompressedDigest)
		}
		if !slices.Equal(chain, c.RootFS.DiffIDs) {
			fault("", "its layers are %s, its config lists %s", chain, c.RootFS.DiffIDs)
		}
	}
	m, ok := items[storage.ImageDigestBigDataKey]
	if !ok {
		fault("", "it has no manifest")
	} else {
		var c struct {
			Config struct {
				Digest digest.Digest `json:"digest"`
			} `json:"config"`
		}
		if err := json.Unmarshal(m, &c); err != nil {
			fault("", "its manifest: %v", err)
		} else if c.Config.Digest != id {
			fault("", "its manifest names the config %q", c.Config.Digest)
		}
	}
	if im.Digest != "" {
		found := false
		for key, d := range im.BigDataDigests {
			found = found || (isManifestKey(key) && d == im.Digest)
		}
		if !found {
			fault("", "its digest %s is that of none of its manifests", im.Digest)
		}
	}
}

func isManifestKey(key string) bool {
	return strings.HasPrefix(key, storage.ImageDigestManifestBigDataNamePrefix)
}

// layer rebuilds a layer's tar and compares it with the layer's files.
func (v *verifier) layer(l *layerRec) {
	c := &layerCheck{v: v, l: l, base: v.root + "/overlay/" + l.ID + "/diff", seed: maphash.MakeSeed(),
		known: map[uint64]struct{}{}, dirs: map[uint64]struct{}{}, marked: map[string]bool{}}
	if l.UncompressedDigest == "" {
		c.fault("", "its record has no diffID")
		return
	}
	if err := l.UncompressedDigest.Validate(); err != nil || !l.UncompressedDigest.Algorithm().Available() {
		c.fault("", "its diffID is %q", l.UncompressedDigest)
		return
	}
	pr, pw := io.Pipe()
	h := l.UncompressedDigest.Algorithm().Hash()
	var n int64
	done := make(chan error, 1)
	go func() {
		bw := bufio.NewWriterSize(io.MultiWriter(h, pw), 256<<10)
		err := c.rebuild(countWriter{bw, &n})
		if err == nil {
			err = bw.Flush()
		}
		pw.CloseWithError(err)
		done <- err
	}()
	perr := c.compare(pr)
	if perr == nil {
		_, perr = io.Copy(io.Discard, pr)
	} else {
		// The tar cannot be read on, but its digest still counts.
		io.Copy(io.Discard, pr)
	}
	pr.Close()
	err := <-done
	v.rep.Bytes += n
	switch {
	case v.ctx.Err() != nil:
		return
	case err != nil:
		c.fault("", "its tar cannot be rebuilt: %s", why(err))
		return
	case perr != nil:
		c.fault("", "its tar cannot be read: %v", perr)
	}
	for _, f := range c.found {
		c.fault(f.Path, "%s", f.Problem)
	}
	if got := digest.NewDigest(l.UncompressedDigest.Algorithm(), h); got != l.UncompressedDigest {
		c.fault("", "its files hash to %s instead of %s", got, l.UncompressedDigest)
	}
	if l.UncompressedSize >= 0 && n != l.UncompressedSize {
		c.fault("", "its tar has %d bytes, its record says %d", n, l.UncompressedSize)
	}
	if perr == nil {
		c.finish()
	}
}

type countWriter struct {
	w io.Writer
	n *int64
}

func (c countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	*c.n += int64(n)
	return n, err
}

type layerCheck struct {
	v    *verifier
	l    *layerRec
	base string
	seed maphash.Seed

	known     map[uint64]struct{} // paths that may be there
	dirs      map[uint64]struct{} // folders that an entry made
	hidden    []string            // folders that an entry needs, to be looked at last
	whiteouts []string
	opaque    []string
	marked    map[string]bool // folders that carry the opaque mark
	rootSeen  bool
	found     []Fault // by rebuild, which runs beside compare
}

func (c *layerCheck) fault(path, format string, a ...any) {
	c.v.fault(Fault{Layer: c.l.ID, Path: path, Problem: fmt.Sprintf(format, a...)})
}

func (c *layerCheck) path(name string) string {
	if name == "" {
		return c.base
	}
	return c.base + "/" + name
}

func (c *layerCheck) hash(name string) uint64 { return maphash.String(c.seed, name) }

// maxRecord bounds one line of tar-split data: a raw header with all its extensions, or a megabyte of
// padding, in base64.
const maxRecord = 16 << 20

// rebuild writes the layer's tar from its tar-split data and its files. A file that is missing or has
// another size is found, and stands as zeros, so that the rest can be looked at.
func (c *layerCheck) rebuild(w io.Writer) error {
	name := c.v.root + "/" + layersDir + "/" + c.l.ID + ".tar-split.gz"
	f, err := c.v.r.Open(name)
	if err != nil {
		return fmt.Errorf("its tar-split data: %s", why(err))
	}
	z, err := pgzip.NewReaderN(f, 256<<10, 4)
	if err != nil {
		return fmt.Errorf("its tar-split data: %w", err)
	}
	defer z.Close()
	br := bufio.NewReaderSize(z, 64<<10)
	crc := crc64.New(tarsplit.CRCTable)
	buf := make([]byte, 256<<10)
	var line []byte
	for {
		if err := c.v.ctx.Err(); err != nil {
			return err
		}
		line, err = readLine(br, line[:0])
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("its tar-split data: %w", err)
		}
		var e tarsplit.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("its tar-split data: %w", err)
		}
		switch e.Type {
		case tarsplit.SegmentType:
			if _, err := w.Write(e.Payload); err != nil {
				return err
			}
		case tarsplit.FileType:
			if e.Size == 0 {
				continue
			}
			if e.Size < 0 {
				return fmt.Errorf("its tar-split data: entry %q has the size %d", e.GetName(), e.Size)
			}
			if err := c.content(w, &e, crc, buf); err != nil {
				return err
			}
		default:
			return fmt.Errorf("its tar-split data: a record of the unknown type %d", e.Type)
		}
	}
}

func readLine(br *bufio.Reader, line []byte) ([]byte, error) {
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxRecord {
			return nil, fmt.Errorf("a record of more than %d bytes", maxRecord)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && len(bytes.TrimSpace(line)) > 0 {
			err = nil
		}
		return line, err
	}
}

func (c *layerCheck) content(w io.Writer, e *tarsplit.Entry, crc hashWriter, buf []byte) error {
	name, err := cleanName(e.GetName())
	if err != nil {
		return fmt.Errorf("its tar-split data: entry %q: %w", e.GetName(), err)
	}
	crc.Reset()
	left := e.Size
	sr, err := c.v.r.Open(c.path(name))
	bad := ""
	switch {
	case err != nil:
		bad = why(err)
	case sr.Size() != e.Size:
		bad = fmt.Sprintf("it has %d bytes instead of %d", sr.Size(), e.Size)
	}
	for left > 0 && bad == "" {
		p := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(sr, p); err != nil {
			bad = fmt.Sprintf("reading it: %v", err)
			break
		}
		crc.Write(p)
		if _, err := w.Write(p); err != nil {
			return err
		}
		left -= int64(len(p))
	}
	if bad == "" && !bytes.Equal(crc.Sum(nil), e.Payload) {
		bad = "its content has changed"
	}
	if bad != "" {
		if len(c.found) < c.v.o.MaxFaults {
			c.found = append(c.found, Fault{Path: name, Problem: bad})
		}
		clear(buf)
		for left > 0 {
			if err := c.v.ctx.Err(); err != nil {
				return err
			}
			n, err := w.Write(buf[:min(left, int64(len(buf)))])
			if err != nil {
				return err
			}
			left -= int64(n)
		}
	}
	return nil
}

type hashWriter interface {
	io.Writer
	Sum([]byte) []byte
	Reset()
}

// compare reads the rebuilt tar and looks at the file of each entry.
func (c *layerCheck) compare(r io.Reader) error {
	tr := tar.NewReader(bufio.NewReaderSize(r, 64<<10))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.v.rep.Entries++
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name, err := checkEntry(h)
		if err != nil {
			c.fault(h.Name, "%v", err)
			continue
		}
		hides, opaque, isWhiteout, err := whiteoutOf(h, name)
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
			err = c.sameFile(name, target, got)
		}
		if err != nil {
			c.fault(name, "%v", err)
		}
		return
	}
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
		if got.Typeflag != tar.TypeChar || got.Devmajor != 0 || got.Devminor != 0 {
			c.fault(n, "it is a %s instead of a whiteout", typeName(got.Typeflag))
		}
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
		c.attributes(n, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}, got, false)
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
	want := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o555}
	if c.l.Parent != "" {
		p, err := c.v.r.Stat(c.v.root + "/overlay/" + c.l.Parent + "/diff")
		if err != nil {
			return // reported with that layer
		}
		want.Mode, want.Uid, want.Gid = p.Mode&0o777, p.Uid, p.Gid
	}
	c.attributes("", want, got, false)
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
