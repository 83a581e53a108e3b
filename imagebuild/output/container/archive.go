package container

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodebake/nodebake/imagebuild/output/newfile"
)

const tarBlock = 512

// layoutFile is what an OCI layout has to say of itself.
var layoutFile = []byte(`{"imageLayoutVersion":"` + imgspecv1.ImageLayoutVersion + `"}`)

// archive writes a tar whose members may get name and size once their content was written. The library's archives
// need the whole layout in a temporary folder first.
type archive struct {
	f   io.WriterAt
	off int64
	now time.Time
}

func (a *archive) Write(p []byte) (int, error) {
	n, err := a.f.WriteAt(p, a.off)
	a.off += int64(n)
	return n, err
}

// member writes one by content, which says afterwards what its name is.
func (a *archive) member(content func(io.Writer) (string, error)) error {
	head := a.off
	a.off += tarBlock
	name, err := content(a)
	if err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: a.off - head - tarBlock, ModTime: a.now, Format: tar.FormatUSTAR}
	if h.Size >= 1<<33 {
		h.Format = tar.FormatGNU // a large size in the one block, where PAX would take more
	}
	var block bytes.Buffer
	if err := tar.NewWriter(&block).WriteHeader(h); err != nil {
		return err
	}
	if block.Len() != tarBlock {
		return fmt.Errorf("the header of %s takes %d bytes", name, block.Len())
	}
	if _, err := a.f.WriteAt(block.Bytes(), head); err != nil {
		return err
	}
	if pad := -a.off & (tarBlock - 1); pad > 0 {
		_, err = a.Write(make([]byte, pad))
	}
	return err
}

func (a *archive) data(name string, data []byte) error {
	return a.member(func(w io.Writer) (string, error) {
		_, err := w.Write(data)
		return name, err
	})
}

func (a *archive) end() error {
	_, err := a.Write(make([]byte, 2*tarBlock))
	return err
}

func blobName(d digest.Digest) string {
	return imgspecv1.ImageBlobsDir + "/" + d.Algorithm().String() + "/" + d.Encoded()
}

func writeArchive(ctx context.Context, d Dest, disk io.Reader, size int64, o *Options) (Result, error) {
	f, err := newfile.Create(filepath.Dir(d.path))
	if err != nil {
		return Result{}, err
	}
	defer f.Abort()
	a := &archive{f: f, now: o.Created}
	write := ociArchive
	if d.transport == "docker-archive" {
		write = dockerArchive
	}
	res, err := write(ctx, a, d, disk, size, o)
	if err != nil {
		return Result{}, err
	}
	if err := a.end(); err != nil {
		return Result{}, err
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	if err := f.Place(d.path, o.Force); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return Result{}, fmt.Errorf("%w: it came there while the image was written", ErrExists)
		}
		return Result{}, err
	}
	if err := newfile.SyncDir(filepath.Dir(d.path)); err != nil {
		return Result{}, fmt.Errorf("it is whole and has its name, but that may not survive a loss of power: %w", err)
	}
	return res, nil
}

func ociArchive(ctx context.Context, a *archive, d Dest, disk io.Reader, size int64, o *Options) (Result, error) {
	if err := a.data(imgspecv1.ImageLayoutFile, layoutFile); err != nil {
		return Result{}, err
	}
	var l layer
	err := a.member(func(w io.Writer) (_ string, err error) {
		if l, err = writeLayer(ctx, w, disk, size, o); err != nil {
			return "", err
		}
		return blobName(l.blob), nil
	})
	if err != nil {
		return Result{}, err
	}
	config, manifest, err := describe(&l, o)
	if err != nil {
		return Result{}, err
	}
	for _, doc := range []document{config, manifest} {
		if err := a.data(blobName(doc.desc.Digest), doc.data); err != nil {
			return Result{}, err
		}
	}
	index, err := json.Marshal(newIndex(entryOf(manifest, d.name, o.Platform)))
	if err != nil {
		return Result{}, err
	}
	return resultOf(&l, config, manifest), a.data(imgspecv1.ImageIndexFile, index)
}

func newIndex(entries ...imgspecv1.Descriptor) imgspecv1.Index {
	return imgspecv1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: imgspecv1.MediaTypeImageIndex, Manifests: entries}
}

// dockerArchive writes what `docker save` does, without the parts for Docker before 1.10.
func dockerArchive(ctx context.Context, a *archive, d Dest, disk io.Reader, size int64, o *Options) (Result, error) {
	o.Plain, o.Level = true, 0
	var l layer
	err := a.member(func(w io.Writer) (_ string, err error) {
		if l, err = writeLayer(ctx, w, disk, size, o); err != nil {
			return "", err
		}
		return l.blob.Encoded() + ".tar", nil
	})
	if err != nil {
		return Result{}, err
	}
	config, _, err := describe(&l, o)
	if err != nil {
		return Result{}, err
	}
	type item struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	it := item{Config: config.desc.Digest.Encoded() + ".json", RepoTags: []string{}, Layers: []string{l.blob.Encoded() + ".tar"}}
	if d.tag != nil {
		it.RepoTags = append(it.RepoTags, d.tag.String())
	}
	if err := a.data(it.Config, config.data); err != nil {
		return Result{}, err
	}
	list, err := json.Marshal([]item{it})
	if err != nil {
		return Result{}, err
	}
	return resultOf(&l, config, document{}), a.data("manifest.json", list)
}
