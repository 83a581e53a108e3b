package container

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/manifest"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/types"
)

// newSource opens an image. The library unpacks all of an OCI archive into a temporary folder; one that is not
// compressed is read where it is.
func newSource(ctx context.Context, ref types.ImageReference, sys *types.SystemContext) (types.ImageSource, error) {
	if ref.Transport().Name() == ociarchive.Transport.Name() {
		s, err := openArchive(ref)
		if err != nil || s != nil {
			return s, err
		}
	}
	return ref.NewImageSource(ctx, sys)
}

// archiveSource is an image in an OCI archive.
type archiveSource struct {
	ref   types.ImageReference
	f     *os.File
	blobs map[string]member
	top   imgspecv1.Descriptor
}

// member is where a file lies in the archive.
type member struct{ off, size int64 }

// openArchive returns no source, and no error, for an archive that only the library can read.
func openArchive(ref types.ImageReference) (_ types.ImageSource, err error) {
	file, name, _ := strings.Cut(ref.StringWithinTransport(), ":")
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	s := &archiveSource{ref: ref, f: f, blobs: map[string]member{}}
	keep := false
	defer func() {
		if !keep {
			f.Close()
		}
	}()
	head, err := bufio.NewReaderSize(f, 512).Peek(262)
	if err != nil || string(head[257:]) != "ustar" {
		return nil, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	// The tar reader takes whole headers and nothing more, and skips content by seeking.
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the archive: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		off, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if len(s.blobs) >= maxEntries || len(h.Name) > maxName {
			return nil, errors.New("reading the archive: more files than an archive of images has")
		}
		s.blobs[cleanName(h.Name)] = member{off, h.Size}
	}
	data, err := s.read(imgspecv1.ImageIndexFile)
	if err != nil {
		return nil, err
	}
	var index imgspecv1.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fmt.Errorf("reading the archive's index.json: %w", err)
	}
	if s.top, err = choose(index, name); err != nil {
		return nil, err
	}
	keep = true
	return s, nil
}

// choose finds an image in an index by its name, or its place: @0 is the first.
func choose(index imgspecv1.Index, name string) (imgspecv1.Descriptor, error) {
	if name == "" {
		if n := len(index.Manifests); n != 1 {
			return imgspecv1.Descriptor{}, fmt.Errorf("the archive holds %d images, so one must be named", n)
		}
		return index.Manifests[0], nil
	}
	if n, err := strconv.Atoi(strings.TrimPrefix(name, "@")); strings.HasPrefix(name, "@") && err == nil && n >= 0 && n < len(index.Manifests) {
		return index.Manifests[n], nil
	}
	for _, m := range index.Manifests {
		if m.Annotations[imgspecv1.AnnotationRefName] == name {
			return m, nil
		}
	}
	return imgspecv1.Descriptor{}, fmt.Errorf("the archive does not hold %q", name)
}

func (s *archiveSource) open(name string) (*io.SectionReader, error) {
	m, ok := s.blobs[name]
	if !ok {
		return nil, fmt.Errorf("the archive has no %s", name)
	}
	return io.NewSectionReader(s.f, m.off, m.size), nil
}

func (s *archiveSource) read(name string) ([]byte, error) {
	r, err := s.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxDocument {
		return nil, fmt.Errorf("%s in the archive has more than %d bytes", name, maxDocument)
	}
	return io.ReadAll(r)
}

func (s *archiveSource) Reference() types.ImageReference { return s.ref }
func (s *archiveSource) Close() error                    { return s.f.Close() }
func (s *archiveSource) HasThreadSafeGetBlob() bool      { return true }

func (s *archiveSource) GetManifest(_ context.Context, instance *digest.Digest) ([]byte, string, error) {
	d, mime := s.top.Digest, s.top.MediaType
	if instance != nil {
		d, mime = *instance, ""
	}
	if err := d.Validate(); err != nil {
		return nil, "", err
	}
	data, err := s.read(blobName(d))
	if err != nil {
		return nil, "", err
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, "", fmt.Errorf("%w: manifest %s is %s", ErrDigestMismatch, d, got)
	}
	if mime == "" {
		mime = manifest.GuessMIMEType(data)
	}
	return data, mime, nil
}

func (s *archiveSource) GetBlob(_ context.Context, b types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if err := b.Digest.Validate(); err != nil {
		return nil, 0, err
	}
	r, err := s.open(blobName(b.Digest))
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(r), r.Size(), nil
}

func (s *archiveSource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, nil
}

func (s *archiveSource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}
