package container

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/configfile"

	"github.com/nodebake/nodebake/imagebuild/output/newfile"
)

// Errors of Open.
var (
	// ErrNoDisk is matched where an image holds no disk at the path.
	ErrNoDisk = errors.New("no disk in the image")
	// ErrLayer is matched where a layer cannot be read, or goes beyond a bound.
	ErrLayer = errors.New("unusable layer")
	// ErrDigestMismatch is matched where bytes are not what their digest says.
	ErrDigestMismatch = errors.New("digest mismatch")
	// ErrPolicy is matched where the signature policy refuses the image.
	ErrPolicy = errors.New("the image is not let in by the signature policy")
)

const (
	defaultMaxSize = 1 << 40
	maxWindow      = 128 << 20 // of zstd: what `zstd --ultra` makes
	sparseBlock    = 4096
)

// OpenOptions say which image is taken, and whether it is.
type OpenOptions struct {
	// Platform chooses from a manifest list; an empty OS is linux, an empty Architecture this machine's. An image
	// that is no list is taken whatever it says: see Info.Platform.
	Platform imgspecv1.Platform
	// Policy decides whether the image is let in. Nil is the host's policy.json (sys), and where there is none every
	// image, with a warning.
	Policy *signature.PolicyContext
	// MaxSize bounds the disk, and what a layer unpacks to, in bytes; 0 is 1 TiB.
	MaxSize int64
	// Warn and Progress may be nil. Progress gets the bytes read of a layer's blob, and all that it has (-1 where
	// that is not known); a layer may be read twice.
	Warn     func(message string)
	Progress func(done, total int64)
}

// Info is which disk was taken.
type Info struct {
	// Path is the disk's in the image; where that was a link, the link's.
	Path string
	Size int64
	// ManifestDigest is the image's own, ListDigest that of the list it was chosen from.
	ManifestDigest, ListDigest digest.Digest
	// LayerDigest is that of the blob which held the disk.
	LayerDigest digest.Digest
	Platform    imgspecv1.Platform
	// Labels are those of the image's config.
	Labels map[string]string
}

// Open takes the disk at path out of a container image, into a file without a name in the folder dir: the one copy
// on this host, except that the library unpacks compressed archives and layers of containers-storage into sys's
// BigFilesTemporaryDir first. The file is at its start and can be read and written; zeros are holes.
//
// An empty path is DefaultPath, and where the image has nothing there, the one regular file in disk/, as KubeVirt
// has it. Layers are read from the top until the disk is found, so whiteouts and symbolic links mean what they mean
// in a container; hard links within a layer are followed. The file counts only after the digest of its whole layer
// was verified. Errors match ErrNoDisk, ErrLayer, ErrDigestMismatch, ErrPolicy, or are the library's.
func Open(ctx context.Context, ref types.ImageReference, sys *types.SystemContext, name, dir string, o OpenOptions) (*os.File, Info, error) {
	r := &reader{ctx: ctx, o: o, want: cleanName(name), dir: dir, view: newView(), gotLayer: -1}
	if name == "" {
		r.want, r.fallback = DefaultPath, true
	}
	if r.o.MaxSize <= 0 {
		r.o.MaxSize = defaultMaxSize
	}
	if r.o.Platform.OS == "" {
		r.o.Platform.OS = "linux"
	}
	if sys != nil {
		r.sys = *sys
	}
	r.sys.OSChoice, r.sys.ArchitectureChoice, r.sys.VariantChoice = r.o.Platform.OS, r.o.Platform.Architecture, r.o.Platform.Variant
	f, info, err := r.open(ref)
	if err != nil {
		if r.file != nil {
			r.file.Close()
		}
		return nil, Info{}, fmt.Errorf("image %s:%s: %w", ref.Transport().Name(), strings.TrimSuffix(ref.StringWithinTransport(), ":"), err)
	}
	return f, info, nil
}

// reader is one run of Open.
type reader struct {
	ctx      context.Context
	sys      types.SystemContext
	o        OpenOptions
	want     string
	fallback bool
	dir      string
	src      types.ImageSource
	layers   []types.BlobInfo // from the top
	view     *view
	// file holds the content of entry gotOrdinal of layer gotLayer, -1 for nothing.
	file                 *os.File
	gotLayer, gotOrdinal int
	buf                  []byte
}

func (r *reader) open(ref types.ImageReference) (*os.File, Info, error) {
	src, err := newSource(r.ctx, ref, &r.sys)
	if err != nil {
		return nil, Info{}, err
	}
	defer src.Close()
	r.src = src
	info, err := r.admit()
	if err != nil {
		return nil, Info{}, err
	}
	if r.file, err = newfile.Anonymous(r.dir); err != nil {
		return nil, Info{}, err
	}
	r.buf = make([]byte, chunk)
	name, e, err := r.find()
	if err != nil {
		return nil, Info{}, err
	}
	if r.gotLayer != e.layer || r.gotOrdinal != e.ordinal {
		if err := r.layer(e.layer, func(h *tar.Header, ordinal int, content io.Reader) error {
			if ordinal == e.ordinal {
				return r.extract(name, e, content)
			}
			return nil
		}); err != nil {
			return nil, Info{}, err
		}
	}
	if r.gotLayer != e.layer || r.gotOrdinal != e.ordinal {
		return nil, Info{}, fmt.Errorf("%w: it changed while it was read", ErrLayer)
	}
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return nil, Info{}, err
	}
	info.Path, info.Size, info.LayerDigest = name, e.size, r.layers[e.layer].Digest
	return r.file, info, nil
}

// admit chooses the image, asks the policy, and finds its layers.
func (r *reader) admit() (Info, error) {
	var info Info
	data, mime, err := r.src.GetManifest(r.ctx, nil)
	if err != nil {
		return info, err
	}
	var instance *digest.Digest
	if manifest.MIMETypeIsMultiImage(mime) {
		list, err := manifest.ListFromBlob(data, mime)
		if err != nil {
			return info, fmt.Errorf("reading the manifest list: %w", err)
		}
		chosen, err := list.ChooseInstance(&r.sys)
		if err != nil {
			return info, err
		}
		instance, info.ListDigest = &chosen, digest.FromBytes(data)
	}
	unparsed := image.UnparsedInstance(r.src, instance)
	if err := r.allow(unparsed); err != nil {
		return info, err
	}
	// This verifies the manifest's digest where there is one to verify.
	if data, mime, err = unparsed.Manifest(r.ctx); err != nil {
		return info, err
	}
	if mime == manifest.DockerV2Schema1MediaType || mime == manifest.DockerV2Schema1SignedMediaType {
		return info, errors.New("manifests of Docker's schema 1 are not read; push the image again with a current tool")
	}
	if info.ManifestDigest, err = manifest.Digest(data); err != nil {
		return info, err
	}
	img, err := image.FromUnparsedImage(r.ctx, &r.sys, unparsed)
	if err != nil {
		return info, err
	}
	config, err := img.OCIConfig(r.ctx)
	if err != nil {
		return info, fmt.Errorf("reading the config: %w", err)
	}
	info.Platform, info.Labels = config.Platform, config.Config.Labels
	layers, err := r.src.LayerInfosForCopy(r.ctx, instance)
	if err != nil {
		return info, err
	}
	if layers == nil {
		layers = img.LayerInfos()
	}
	for i := len(layers) - 1; i >= 0; i-- {
		if err := layers[i].Digest.Validate(); err != nil {
			return info, fmt.Errorf("%w: digest %q: %w", ErrLayer, layers[i].Digest, err)
		}
		r.layers = append(r.layers, layers[i])
	}
	return info, nil
}

func (r *reader) allow(img types.UnparsedImage) error {
	pc := r.o.Policy
	if pc == nil {
		p, err := signature.DefaultPolicy(&r.sys)
		if errors.Is(err, configfile.ErrConfigFileNotFound) {
			if r.o.Warn != nil {
				r.o.Warn("no policy.json on this host: the image is let in without any check of who made it")
			}
			p, err = &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
		}
		if err != nil {
			return fmt.Errorf("reading the signature policy: %w", err)
		}
		if pc, err = signature.NewPolicyContext(p); err != nil {
			return fmt.Errorf("signature policy: %w", err)
		}
		defer pc.Destroy()
	}
	if ok, err := pc.IsRunningImageAllowed(r.ctx, img); err != nil || !ok {
		return fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	return nil
}

// find reads layers from the top until it is known which file is the disk. What looks like it is extracted by the
// way, as a layer is dear to read twice.
func (r *reader) find() (string, entry, error) {
	for n := range r.layers {
		l := &layerView{v: r.view, layer: n, files: map[string]entry{}}
		err := r.layer(n, func(h *tar.Header, ordinal int, content io.Reader) error {
			name, e, err := l.add(h, ordinal)
			if err != nil || e.kind != regular || e.ordinal != ordinal || name == "." || name == "" {
				return err
			}
			// Of the same name the last counts.
			first := r.gotLayer < 0 && r.fallback && path.Dir(name) == path.Dir(r.want)
			if (name == r.want || first) && !r.view.hidden(name) {
				return r.extract(name, e, content)
			}
			return nil
		})
		if err != nil {
			return "", entry{}, err
		}
		l.merge()
		if e, err := r.view.disk(r.want); err == nil || !errors.Is(err, errAbsent) {
			return r.want, e, err
		}
	}
	dir := path.Dir(r.want)
	found := r.view.disks(dir)
	if r.fallback && len(found) == 1 {
		e, err := r.view.disk(found[0])
		return found[0], e, err
	}
	where := dir + "/"
	if dir == "." {
		where = "its root"
	}
	switch {
	case len(found) == 0:
		return "", entry{}, fmt.Errorf("%w: it has no file %s, nor another in %s", ErrNoDisk, r.want, where)
	case len(found) > maxListed:
		return "", entry{}, fmt.Errorf("%w: it has no file %s, and %d others in %s", ErrNoDisk, r.want, len(found), where)
	}
	return "", entry{}, fmt.Errorf("%w: it has no file %s; in %s there is %q: say which is the disk", ErrNoDisk, r.want, where, found)
}

// maxListed bounds the names in an error.
const maxListed = 8

// extract makes the file the content of e.
func (r *reader) extract(name string, e entry, content io.Reader) error {
	r.gotLayer = -1
	if e.size > r.o.MaxSize {
		return fmt.Errorf("%w: %s has %d bytes, more than the %d that are taken", ErrLayer, name, e.size, r.o.MaxSize)
	}
	if err := r.file.Truncate(0); err != nil {
		return err
	}
	if err := r.file.Truncate(e.size); err != nil {
		return err
	}
	for off := int64(0); off < e.size; {
		n, err := io.ReadFull(content, r.buf[:min(int64(len(r.buf)), e.size-off)])
		if err != nil {
			return fmt.Errorf("%w: reading %s at %d: %w", ErrLayer, name, off, err)
		}
		if err := writeSparse(r.file, r.buf[:n], off); err != nil {
			return fmt.Errorf("writing the disk: %w", err)
		}
		off += int64(n)
	}
	r.gotLayer, r.gotOrdinal = e.layer, e.ordinal
	return nil
}

var zeros [sparseBlock]byte

// writeSparse writes the blocks of p that are not zeros to a file that has a hole there.
func writeSparse(f io.WriterAt, p []byte, off int64) error {
	for start := 0; start < len(p); {
		end := min(start+sparseBlock, len(p))
		if bytes.Equal(p[start:end], zeros[:end-start]) {
			start = end
			continue
		}
		for end < len(p) {
			next := min(end+sparseBlock, len(p))
			if bytes.Equal(p[end:next], zeros[:next-end]) {
				break
			}
			end = next
		}
		if _, err := f.WriteAt(p[start:end], off+int64(start)); err != nil {
			return err
		}
		start = end
	}
	return nil
}

// layer walks through a layer's tar and verifies the blob.
func (r *reader) layer(n int, f func(h *tar.Header, ordinal int, content io.Reader) error) error {
	want := r.layers[n]
	body, size, err := r.src.GetBlob(r.ctx, want, none.NoCache)
	if err != nil {
		return fmt.Errorf("layer %s: %w", want.Digest, err)
	}
	defer body.Close()
	if want.Size >= 0 {
		size = want.Size
	}
	b := &blob{ctx: r.ctx, r: body, size: size, h: want.Digest.Algorithm().Hash(), progress: r.o.Progress}
	if err := b.walk(r.o.MaxSize, f); err != nil {
		return fmt.Errorf("layer %s: %w", want.Digest, err)
	}
	if got := digest.NewDigest(want.Digest.Algorithm(), b.h); got != want.Digest {
		return fmt.Errorf("layer %s: %w: its bytes are %s", want.Digest, ErrDigestMismatch, got)
	}
	return nil
}

// blob reads one, hashing it, to its end and no further than its size.
type blob struct {
	ctx      context.Context
	r        io.Reader
	h        hash.Hash
	size     int64 // -1: not known
	n        int64
	progress func(done, total int64)
}

func (b *blob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	b.h.Write(p[:n])
	b.n += int64(n)
	if b.size >= 0 && b.n > b.size {
		return 0, fmt.Errorf("%w: it has more than the %d bytes that the manifest says", ErrLayer, b.size)
	}
	if b.progress != nil && n > 0 {
		b.progress(b.n, b.size)
	}
	return n, err
}

// walk calls f with each entry of the tar in the blob.
func (b *blob) walk(limit int64, f func(*tar.Header, int, io.Reader) error) error {
	raw := bufio.NewReaderSize(b, chunk)
	plain, done, err := decompress(raw)
	if err != nil {
		return err
	}
	defer done()
	bounded := &bounded{r: plain, left: limit}
	if err := walkTar(bounded, f); err != nil {
		return err
	}
	// What follows the tar is part of the blob, and of its digest.
	if _, err := io.Copy(io.Discard, bounded); err != nil {
		return fmt.Errorf("%w: after the tar: %w", ErrLayer, err)
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return fmt.Errorf("%w: %w", ErrLayer, err)
	}
	if b.size >= 0 && b.n != b.size {
		return fmt.Errorf("%w: it has %d of the %d bytes that the manifest says", ErrLayer, b.n, b.size)
	}
	return nil
}

// bounded is an error, not an end, at its bound.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("%w: it unpacks to more than is taken", ErrLayer)
	}
	return n, err
}

// decompress tells by the first bytes what a layer is compressed with, as engines do: the media type may be wrong.
func decompress(r *bufio.Reader) (io.Reader, func(), error) {
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: gzip: %w", ErrLayer, err)
		}
		return z, func() { z.Close() }, nil
	case len(head) == 4 && (bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}) || (head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}))):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("%w: zstd: %w", ErrLayer, err)
		}
		return z, z.Close, nil
	case bytes.HasPrefix(head, []byte("BZh")) || bytes.HasPrefix(head, []byte("\xfd7zX")):
		return nil, nil, fmt.Errorf("%w: it is compressed with bzip2 or xz, which images may not be; gzip and zstd are read", ErrLayer)
	}
	return r, func() {}, nil
}
