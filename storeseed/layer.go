package storeseed

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
	"github.com/klauspost/pgzip"
	digest "github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutOpaque = ".wh..wh..opq"
	opaqueXattr    = "trusted.overlay.opaque"

	// maxEntries bounds the bookkeeping of one layer: about 40 bytes an entry.
	maxEntries = 8 << 20
	// spoolAt is the size at which tar-split data moves from memory to a file.
	spoolAt = 4 << 20
)

// layerSpec is a layer to write: all of it is known, and promised, before its first byte.
type layerSpec struct {
	id, parent string
	diffID     digest.Digest
	blob       digest.Digest // as the manifest names it
	blobSize   int64         // -1 if unknown
	created    time.Time
	index      int // from 0
	of         int
}

func (l *layerSpec) String() string {
	return fmt.Sprintf("layer %d of %d (%s)", l.index+1, l.of, l.diffID)
}

// writeLayer writes the layer that blob holds and records it. blob is read to its end, so that a
// reader that checks a digest there has its say. Nothing is recorded unless the layer's content
// hashes to spec.diffID.
func (s *Store) writeLayer(ctx context.Context, spec *layerSpec, blob io.Reader) (rec *layerRec, err error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	dir := s.root + "/overlay/" + spec.id
	if ok, err := exists(s.fs, dir); err != nil {
		return nil, err
	} else if ok {
		return nil, fmt.Errorf("%w: /%s is there but no record names it, as an interrupted write leaves it; take it away or bake into another store path", ErrCorruptStore, dir)
	}
	if s.broken != nil {
		return nil, s.broken
	}
	defer func() {
		if err == nil {
			return
		}
		if rerr := s.dropLayer(spec.id); rerr != nil {
			s.broken = fmt.Errorf("%w: layer %s", errHalfWritten, spec.id)
		}
	}()

	if err := s.mkdir(dir); err != nil {
		return nil, err
	}
	root := &tar.Header{Typeflag: tar.TypeDir, Mode: 0o555, ModTime: spec.created}
	if spec.parent != "" {
		p, err := s.fs.Stat(s.root + "/overlay/" + spec.parent + "/diff")
		if err != nil {
			return nil, fmt.Errorf("%w: layer %s: %w", ErrCorruptStore, spec.parent, err)
		}
		root.Mode, root.Uid, root.Gid = p.Mode&0o777, p.Uid, p.Gid
	}
	w := &layerWriter{s: s, base: dir + "/diff", created: spec.created, seed: maphash.MakeSeed(),
		dirs: map[uint64]struct{}{}, uids: map[uint32]struct{}{}, gids: map[uint32]struct{}{}}
	root.Name = w.base
	if err := s.add(root, nil); err != nil {
		return nil, err
	}

	// An uncompressed layer's blob is its diff.
	in := &blobReader{ctx: ctx, r: blob, promised: spec.blobSize}
	if spec.blob == spec.diffID {
		in.promised = spec.blobSize
	}
	plain, kind, err := decompress(bufio.NewReaderSize(in, 256<<10))
	if err != nil {
		io.Copy(io.Discard, in)
		return nil, fmt.Errorf("%s: %w", spec, in.explain(err))
	}
	// pgzip's may be closed but once.
	stop := sync.OnceFunc(func() { plain.Close() })
	defer stop()

	diff := &hashReader{r: plain, h: digest.SHA256.Hash()}
	sp := &spool{dir: s.o.TempDir}
	defer sp.close()
	if err := w.extract(diff, sp); err != nil {
		if diff.err != nil || errors.Is(err, tar.ErrHeader) || errors.Is(err, ErrHostileLayer) {
			// A blob that is not the one asked for is rarely sound: its digest says which of the two it is. The
			// decompressor may be ahead of the error, so it is stopped first.
			stop()
			io.Copy(io.Discard, in)
		}
		return nil, fmt.Errorf("%s: %w", spec, in.explain(err))
	}
	// What trails the compressed stream is still the blob's.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return nil, fmt.Errorf("%s: %w", spec, in.explain(err))
	}
	if spec.blobSize >= 0 && in.n != spec.blobSize {
		return nil, fmt.Errorf("%s: the blob has %d bytes, its manifest promises %d: %w", spec, in.n, spec.blobSize, ErrDigestMismatch)
	}
	if got := digest.NewDigest(digest.SHA256, diff.h); got != spec.diffID {
		return nil, fmt.Errorf("%s: its content hashes to %s: %w", spec, got, ErrDigestMismatch)
	}

	size, r, err := sp.reader()
	if err != nil {
		return nil, err
	}
	h := &tar.Header{Name: s.root + "/" + layersDir + "/" + spec.id + ".tar-split.gz", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: s.o.Now}
	s.label(h)
	if err := s.fs.Replace(h, r); err != nil {
		return nil, fmt.Errorf("%s: writing its tar-split data: %w", spec, err)
	}
	rec = &layerRec{Layer: storage.Layer{
		ID: spec.id, Parent: spec.parent, Created: spec.created,
		CompressedDigest: spec.blob, CompressedSize: in.n,
		UncompressedDigest: spec.diffID, UncompressedSize: diff.n,
		CompressionType: kind,
		UIDs:            slices.Sorted(maps.Keys(w.uids)), GIDs: slices.Sorted(maps.Keys(w.gids)),
	}}
	if err := s.linkLayer(rec); err != nil {
		return nil, fmt.Errorf("%s: %w", spec, err)
	}
	s.layers = append(s.layers, rec)
	s.byLayer[rec.ID] = rec
	s.layersDirty = true
	return rec, nil
}

// dropLayer takes the files of a layer that has no record away.
func (s *Store) dropLayer(id string) error {
	if err := removeAll(s.fs, s.root+"/"+layersDir+"/"+id+".tar-split.gz"); err != nil {
		return err
	}
	for try := range 8 {
		name := s.root + "/overlay/l/" + linkName(id, try)
		h, err := s.fs.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if h.Linkname == "../"+id+"/diff" {
			if err := removeAll(s.fs, name); err != nil {
				return err
			}
		}
	}
	return removeAll(s.fs, s.root+"/overlay/"+id)
}

// linkLayer writes a layer's short name, and the short names of its ancestors, nearest first.
func (s *Store) linkLayer(rec *layerRec) error {
	dir := s.root + "/overlay/" + rec.ID
	for try := 0; ; try++ {
		rec.link = linkName(rec.ID, try)
		name := s.root + "/overlay/l/" + rec.link
		if ok, err := exists(s.fs, name); err != nil {
			return err
		} else if ok {
			continue
		}
		err := s.add(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: "../" + rec.ID + "/diff", ModTime: s.o.Now}, nil)
		if err != nil {
			return err
		}
		break
	}
	if err := s.replace(dir+"/link", []byte(rec.link)); err != nil {
		return err
	}
	var lower []string
	for id := rec.Parent; id != ""; id = s.byLayer[id].Parent {
		lower = append(lower, "l/"+s.byLayer[id].link)
	}
	if len(lower) == 0 {
		// An engine that mounts a base layer by itself puts this folder below it.
		return s.mkdir(dir + "/empty")
	}
	return s.replace(dir+"/lower", []byte(strings.Join(lower, ":")))
}

// blobReader bounds a blob by its promised size, and remembers where an error came from.
type blobReader struct {
	ctx      context.Context
	r        io.Reader
	n        int64
	promised int64
	err      error
}

func (b *blobReader) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if err := b.ctx.Err(); err != nil {
		b.err = err
		return 0, err
	}
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.promised >= 0 && b.n > b.promised {
		err = fmt.Errorf("the blob goes on past the %d bytes that its manifest promises: %w", b.promised, ErrDigestMismatch)
		n = 0
	} else if err != nil && err != io.EOF && strings.Contains(err.Error(), "Digest did not match") {
		err = fmt.Errorf("%w: %w", ErrDigestMismatch, err)
	}
	if err != nil {
		b.err = err
	}
	return n, err
}

// explain prefers the blob's own error over what a decompressor or a tar reader made of it.
func (b *blobReader) explain(err error) error {
	if b.err != nil && b.err != io.EOF {
		return b.err
	}
	return err
}

type hashReader struct {
	r   io.Reader
	h   hash.Hash
	n   int64
	err error // of r, if it is not its end
}

func (r *hashReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.h.Write(p[:n])
	r.n += int64(n)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// decompress finds out how a blob is compressed, from its bytes, and undoes it.
func decompress(r io.Reader) (io.ReadCloser, archive.Compression, error) {
	algo, dec, r, err := compression.DetectCompressionFormat(r)
	if err != nil {
		return nil, 0, err
	}
	if dec == nil {
		return io.NopCloser(r), archive.Uncompressed, nil
	}
	switch algo.Name() {
	case compression.Gzip.Name():
		z, err := pgzip.NewReaderN(r, 256<<10, 4)
		return z, archive.Gzip, err
	case compression.Zstd.Name(), compression.ZstdChunked.Name():
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, 0, err
		}
		return z.IOReadCloser(), archive.Zstd, nil
	case compression.Bzip2.Name():
		z, err := dec(r)
		return z, archive.Bzip2, err
	case compression.Xz.Name():
		z, err := dec(r)
		return z, archive.Xz, err
	}
	return nil, 0, fmt.Errorf("%w: the layer is compressed with %s", ErrUnsupportedImage, algo.Name())
}

// spool holds a stream whose length must be known before it is written on.
type spool struct {
	dir string
	buf bytes.Buffer
	f   *os.File
	n   int64
}

func (s *spool) Write(p []byte) (int, error) {
	s.n += int64(len(p))
	if s.f == nil && s.buf.Len()+len(p) > spoolAt {
		f, err := os.CreateTemp(s.dir, "storeseed-")
		if err != nil {
			return 0, err
		}
		os.Remove(f.Name())
		s.f = f
		if _, err := f.Write(s.buf.Bytes()); err != nil {
			return 0, err
		}
		s.buf = bytes.Buffer{}
	}
	if s.f != nil {
		return s.f.Write(p)
	}
	return s.buf.Write(p)
}

func (s *spool) reader() (int64, io.Reader, error) {
	if s.f == nil {
		return s.n, bytes.NewReader(s.buf.Bytes()), nil
	}
	_, err := s.f.Seek(0, io.SeekStart)
	return s.n, s.f, err
}

func (s *spool) close() {
	if s.f != nil {
		s.f.Close()
	}
}

// layerWriter turns a layer's tar into files.
type layerWriter struct {
	s       *Store
	base    string // the diff folder
	created time.Time
	seed    maphash.Seed

	dirs       map[uint64]struct{} // folders of this layer, by hash of their path
	uids, gids map[uint32]struct{}
	entries    int
	whiteouts  []string // paths to hide, and
	opaque     []string // folders to make opaque, both applied last
	lastParent string
}

func (w *layerWriter) hash(name string) uint64 { return maphash.String(w.seed, name) }

// extract writes all entries of diff and records, gzipped, in ts what tar-split needs to rebuild it.
// diff is read to its end.
func (w *layerWriter) extract(diff io.Reader, ts io.Writer) error {
	bw := bufio.NewWriterSize(ts, 64<<10)
	gz, err := pgzip.NewWriterLevel(bw, pgzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := gz.SetConcurrency(256<<10, 1); err != nil {
		return err
	}
	pk := &packer{enc: json.NewEncoder(gz), seed: w.seed, seen: map[uint64]struct{}{}}
	stream, done, err := asm.NewInputTarStreamWithDone(diff, pk, tarsplit.NewDiscardFilePutter())
	if err != nil {
		return err
	}
	err = w.readEntries(stream)
	if err == nil {
		_, err = io.Copy(io.Discard, stream)
	}
	stream.Close()
	if derr := <-done; err == nil {
		err = derr
	}
	// What the packer refused comes through the stream, wrapped as if the tar could not be read.
	if pk.err != nil && errors.Is(err, pk.err) {
		err = pk.err
	}
	if cerr := gz.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = bw.Flush()
	}
	return err
}

func (w *layerWriter) readEntries(r io.Reader) error {
	tr := tar.NewReader(bufio.NewReaderSize(r, 64<<10))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return w.finish()
		}
		if err != nil {
			return fmt.Errorf("%w: after entry %d: %w", ErrHostileLayer, w.entries, err)
		}
		w.entries++
		if w.entries > maxEntries {
			return fmt.Errorf("%w: it has more than %d entries", ErrHostileLayer, maxEntries)
		}
		if err := w.entry(h, tr); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
}

func hostile(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrHostileLayer}, a...)...)
}

// checkEntry returns the path of an entry and refuses what no engine could keep or rebuild.
func checkEntry(h *tar.Header) (string, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return "", hostile("%v", err)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		if h.Size < 0 {
			return "", hostile("its size is %d", h.Size)
		}
	case tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		if h.Size != 0 {
			return "", hostile("it is no regular file but has %d bytes", h.Size)
		}
	case tar.TypeGNUSparse:
		return "", hostile("it is a sparse entry, which an image may not have")
	default:
		return "", hostile("its type is %q, which an image may not have", h.Typeflag)
	}
	if name == "" && h.Typeflag != tar.TypeDir {
		return "", hostile("it would replace the layer's root")
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= 1<<32-1 || int64(h.Gid) >= 1<<32-1 {
		return "", hostile("its owner is %d:%d", h.Uid, h.Gid)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return "", hostile("it is a sparse entry, which an image may not have")
		}
		if strings.HasPrefix(k, xattrPrefix+"trusted.overlay.") {
			return "", hostile("it sets %s, which belongs to the overlay filesystem", k[len(xattrPrefix):])
		}
	}
	if h.Typeflag == tar.TypeSymlink && (h.Linkname == "" || strings.IndexByte(h.Linkname, 0) >= 0 || len(h.Linkname) > 4095) {
		return "", hostile("its target is empty, too long or has a NUL byte")
	}
	return name, nil
}

// whiteoutOf tells what kind of whiteout an entry is, and what path it hides.
func whiteoutOf(h *tar.Header, name string) (hides string, opaque, ok bool, err error) {
	base := name[strings.LastIndexByte(name, '/')+1:]
	if !strings.HasPrefix(base, whiteoutPrefix) {
		return "", false, false, nil
	}
	if (h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeLink) || h.Size != 0 {
		return "", false, true, hostile("a whiteout must be an empty file")
	}
	if base == whiteoutOpaque {
		return parentOf(name), true, true, nil
	}
	target := base[len(whiteoutPrefix):]
	if target == "" || target == "." || target == ".." || strings.HasPrefix(base, ".wh..wh.") {
		return "", false, true, hostile("it is no whiteout of a file")
	}
	return name[:len(name)-len(base)] + target, false, true, nil
}

// onDisk is the record of an entry as it is written: its own attributes without those that an
// engine leaves out.
func onDisk(h *tar.Header) *tar.Header {
	out := &tar.Header{
		Typeflag: h.Typeflag, Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		ModTime: clampTime(h.ModTime, h.Typeflag), Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	switch h.Typeflag {
	case tar.TypeReg:
		out.Size = h.Size
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
		out.Mode = 0o777
	}
	if !h.AccessTime.Before(out.ModTime) {
		out.AccessTime = clampTime(h.AccessTime, h.Typeflag)
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, xattrPrefix) && k != xattrPrefix+"security.selinux" {
			if out.PAXRecords == nil {
				out.PAXRecords = map[string]string{}
			}
			out.PAXRecords[k] = v
		}
	}
	return out
}

// clampTime is what the engine makes of a time before 1970: the epoch, except for symlinks.
func clampTime(t time.Time, typeflag byte) time.Time {
	if t.Unix() < 0 && typeflag != tar.TypeSymlink {
		return time.Unix(0, 0)
	}
	return t
}

func (w *layerWriter) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := checkEntry(h)
	if err != nil {
		return err
	}
	hides, opaque, isWhiteout, err := whiteoutOf(h, name)
	if err != nil {
		return err
	}
	if isWhiteout {
		if opaque {
			w.opaque = append(w.opaque, hides)
		} else {
			w.whiteouts = append(w.whiteouts, hides)
		}
		return nil
	}
	w.uids[uint32(h.Uid)] = struct{}{}
	w.gids[uint32(h.Gid)] = struct{}{}
	if name != "" {
		if err := w.needDir(parentOf(name)); err != nil {
			return err
		}
	}
	out := onDisk(h)
	out.Name = strings.TrimSuffix(w.base+"/"+name, "/")
	if h.Typeflag == tar.TypeLink {
		target, err := cleanName(h.Linkname)
		if err != nil {
			return hostile("its hard link target %q leaves the layer: %s", h.Linkname, strings.Replace(err.Error(), "its name", "it", 1))
		}
		if target == "" {
			return hostile("it is a hard link to the layer's root")
		}
		out.Linkname = w.base + "/" + target
		err = w.s.add(out, nil)
		switch {
		case errors.Is(err, fs.ErrExist):
			return hostile("the path is there already")
		case err != nil:
			return hostile("it is a hard link to %q, which this layer does not hold as a file: %w", h.Linkname, err)
		}
		return nil
	}
	if h.Typeflag == tar.TypeReg {
		err = w.s.add(out, r)
	} else {
		err = w.s.add(out, nil)
	}
	if errors.Is(err, fs.ErrExist) {
		return hostile("the path is there already")
	}
	if err == nil && h.Typeflag == tar.TypeDir && name != "" {
		w.dirs[w.hash(name)] = struct{}{}
	}
	return err
}

// needDir makes the folders of name that no entry has made yet, 0755 root:root as the engine does.
func (w *layerWriter) needDir(name string) error {
	if name == "" || name == w.lastParent {
		return nil
	}
	if _, ok := w.dirs[w.hash(name)]; !ok {
		if err := w.needDir(parentOf(name)); err != nil {
			return err
		}
		err := w.s.fs.Add(w.labelled(&tar.Header{Name: w.base + "/" + name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: w.created}), nil)
		if errors.Is(err, fs.ErrExist) {
			return hostile("it lies below %q, which is no folder in this layer", name)
		}
		if err != nil {
			return err
		}
		w.dirs[w.hash(name)] = struct{}{}
	}
	w.lastParent = name
	return nil
}

func (w *layerWriter) labelled(h *tar.Header) *tar.Header {
	w.s.label(h)
	return h
}

// finish writes whiteouts and opaque marks. They wait until the end because a whiteout hides what
// lies below this layer, whatever the order of the entries: a path that is hidden and made anew in
// the same layer is the new one, and if it is a folder, an opaque one.
func (w *layerWriter) finish() error {
	for _, name := range w.whiteouts {
		if w.belowFile(parentOf(name)) {
			continue
		}
		if err := w.needDir(parentOf(name)); err != nil {
			return fmt.Errorf("whiteout of %q: %w", name, err)
		}
		path := w.base + "/" + name
		h, err := w.s.fs.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = w.s.add(&tar.Header{Name: path, Typeflag: tar.TypeChar, ModTime: w.created}, nil)
		case err == nil && h.Typeflag == tar.TypeDir:
			err = w.makeOpaque(h, path)
		}
		if err != nil {
			return fmt.Errorf("whiteout of %q: %w", name, err)
		}
	}
	for _, name := range w.opaque {
		err := w.needDir(name)
		path := strings.TrimSuffix(w.base+"/"+name, "/")
		var h *tar.Header
		if err == nil {
			h, err = w.s.fs.Stat(path)
		}
		if err == nil {
			err = w.makeOpaque(h, path)
		}
		if err != nil {
			return fmt.Errorf("opaque folder %q: %w", name, err)
		}
	}
	return nil
}

// belowFile reports whether name or a parent of it is there but is no folder, so that nothing below
// it can be hidden.
func (w *layerWriter) belowFile(name string) bool {
	for ; name != ""; name = parentOf(name) {
		if h, err := w.s.fs.Stat(w.base + "/" + name); err == nil {
			return h.Typeflag != tar.TypeDir
		}
	}
	return false
}

func (w *layerWriter) makeOpaque(h *tar.Header, path string) error {
	if h.Typeflag != tar.TypeDir {
		return hostile("it is no folder in this layer")
	}
	c := *h
	c.Name = path
	c.PAXRecords = maps.Clone(h.PAXRecords)
	if c.PAXRecords == nil {
		c.PAXRecords = map[string]string{}
	}
	c.PAXRecords[xattrPrefix+opaqueXattr] = "y"
	return w.s.add(&c, nil)
}

// packer writes tar-split records as tarsplit.NewJSONPacker does, and refuses a path that comes twice
// as that one does, but remembers eight bytes a path instead of the path.
type packer struct {
	enc  *json.Encoder
	pos  int
	seed maphash.Seed
	seen map[uint64]struct{}
	err  error
}

func (p *packer) AddEntry(e tarsplit.Entry) (int, error) {
	if e.Name != "" && !utf8.ValidString(e.Name) {
		e.NameRaw, e.Name = []byte(e.Name), ""
	}
	if e.Type == tarsplit.FileType {
		name, err := cleanName(e.GetName())
		if err != nil {
			p.err = fmt.Errorf("entry %q: %w", e.GetName(), hostile("%v", err))
			return -1, p.err
		}
		k := maphash.String(p.seed, name)
		if _, ok := p.seen[k]; ok {
			p.err = fmt.Errorf("entry %q: %w", e.GetName(), hostile("the path is there already"))
			return -1, p.err
		}
		if len(p.seen) >= maxEntries {
			p.err = fmt.Errorf("%w: it has more than %d entries", ErrHostileLayer, maxEntries)
			return -1, p.err
		}
		p.seen[k] = struct{}{}
	}
	e.Position = p.pos
	if err := p.enc.Encode(e); err != nil {
		return -1, err
	}
	p.pos++
	return e.Position, nil
}
