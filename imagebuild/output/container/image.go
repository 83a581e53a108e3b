package container

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"runtime"
	"strings"
	"time"

	"crypto/sha256"

	"github.com/klauspost/pgzip"
	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// chunk is how much is read, hashed, compressed and written at a time, and so part of what the layer's bytes are.
	chunk = 1 << 20
	// maxBlocks bounds the chunks that are compressed at the same time.
	maxBlocks = 8
	// diskOwner is qemu's user and group in the images that KubeVirt runs, and what ocne's own images have.
	diskOwner = 107
)

// layer says what was written as one.
type layer struct {
	blob, diffID, disk digest.Digest
	size, diskSize     int64
	mediaType          string
}

// tap counts and hashes what goes through it to w, the hash beside the write.
type tap struct {
	w io.Writer
	h hash.Hash
	n int64
}

func (t *tap) Write(p []byte) (int, error) {
	done := make(chan struct{})
	go func() {
		t.h.Write(p)
		close(done)
	}()
	n, err := t.w.Write(p)
	<-done
	t.n += int64(n)
	return n, err
}

func (t *tap) digest() digest.Digest { return digest.NewDigest(digest.SHA256, t.h) }

// writeLayer writes the layer that holds the disk to w, in one pass.
func writeLayer(ctx context.Context, w io.Writer, disk io.Reader, size int64, o *Options) (l layer, err error) {
	blob := &tap{w: w, h: sha256.New()}
	l.mediaType = imgspecv1.MediaTypeImageLayer
	finish := func() error { return nil }
	var out io.Writer = blob
	if !o.Plain {
		l.mediaType = imgspecv1.MediaTypeImageLayerGzip
		buf := bufio.NewWriterSize(blob, chunk)
		gz, err := pgzip.NewWriterLevel(buf, o.Level)
		if err != nil {
			return l, err
		}
		if err := gz.SetConcurrency(chunk, min(runtime.GOMAXPROCS(0), maxBlocks)); err != nil {
			return l, err
		}
		// It would write the year 1.
		gz.ModTime = time.Unix(0, 0)
		finished := false
		finish = func() error {
			finished = true
			return errors.Join(gz.Close(), buf.Flush())
		}
		defer func() {
			if !finished {
				gz.Reset(io.Discard) // ends its goroutines, which Close would not after an error
			}
		}()
		out = gz
	}
	diff := &tap{w: out, h: sha256.New()}
	tw := tar.NewWriter(diff)
	var dirs []string
	for d := path.Dir(o.Path); d != "."; d = path.Dir(d) {
		dirs = append(dirs, d)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dirs[i] + "/", Mode: 0o755, ModTime: o.Created}); err != nil {
			return l, err
		}
	}
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: o.Path, Mode: 0o644, Uid: diskOwner, Gid: diskOwner, Size: size, ModTime: o.Created}); err != nil {
		return l, err
	}
	content := &tap{w: tw, h: sha256.New()}
	if err := copyDisk(ctx, content, disk, size); err != nil {
		return l, err
	}
	if err := tw.Close(); err != nil {
		return l, err
	}
	if err := finish(); err != nil {
		return l, err
	}
	l.blob, l.diffID, l.disk = blob.digest(), diff.digest(), content.digest()
	l.size, l.diskSize = blob.n, size
	return l, nil
}

// copyDisk copies exactly size bytes.
func copyDisk(ctx context.Context, w io.Writer, disk io.Reader, size int64) error {
	buf := make([]byte, chunk)
	for done := int64(0); done < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(disk, buf[:min(chunk, size-done)])
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fmt.Errorf("the disk ends after %d of %d bytes: %w", done+int64(n), size, io.ErrUnexpectedEOF)
		}
		if err != nil {
			return fmt.Errorf("reading the disk at %d: %w", done, err)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		done += int64(n)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	switch n, err := io.ReadFull(disk, buf[:1]); {
	case n > 0:
		return fmt.Errorf("the disk goes on after its %d bytes", size)
	case err != io.EOF:
		return fmt.Errorf("reading the disk at %d: %w", size, err)
	}
	return nil
}

// document is a config or a manifest.
type document struct {
	data []byte
	desc imgspecv1.Descriptor
}

func newDocument(v any, mediaType string) (document, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return document{}, err
	}
	return document{data, imgspecv1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}}, nil
}

// describe makes config and manifest of the image whose layer is l.
func describe(l *layer, o *Options) (config, manifest document, err error) {
	a := o.annotations(l)
	config, err = newDocument(imgspecv1.Image{
		Created:  &o.Created,
		Platform: o.Platform,
		Config:   imgspecv1.ImageConfig{Labels: a},
		RootFS:   imgspecv1.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.diffID}},
		History:  []imgspecv1.History{{Created: &o.Created, CreatedBy: "nodebake", Comment: strings.TrimSpace(o.Format + " disk")}},
	}, imgspecv1.MediaTypeImageConfig)
	if err != nil {
		return config, manifest, err
	}
	manifest, err = newDocument(imgspecv1.Manifest{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   imgspecv1.MediaTypeImageManifest,
		Config:      config.desc,
		Layers:      []imgspecv1.Descriptor{{MediaType: l.mediaType, Digest: l.blob, Size: l.size}},
		Annotations: a,
	}, imgspecv1.MediaTypeImageManifest)
	return config, manifest, err
}

func resultOf(l *layer, config, manifest document) Result {
	return Result{ManifestDigest: manifest.desc.Digest, ConfigDigest: config.desc.Digest, LayerDigest: l.blob, DiffID: l.diffID, DiskDigest: l.disk, Size: l.size}
}

// entryOf is the image's in an index.
func entryOf(manifest document, name string, p imgspecv1.Platform) imgspecv1.Descriptor {
	e := manifest.desc
	e.Platform = &p
	if name != "" {
		e.Annotations = map[string]string{imgspecv1.AnnotationRefName: name}
	}
	return e
}
