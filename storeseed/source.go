package storeseed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

// maxManifest and maxConfig are the library's own bounds.
const (
	maxManifest = 4 << 20
	maxConfig   = 4 << 20
)

// registrySource is an image in a registry, seen through the cache if there is one: what is there is not asked
// for again, and what is not is kept. The registry is not talked to before something is missing. Safe for
// concurrent use once the manifest was read.
type registrySource struct {
	o     *PullOptions
	sys   *types.SystemContext
	name  reference.Named
	fresh bool // do not believe what the cache says of a tag, nor its signatures
	hit   bool // something of the image came from the cache

	mu     sync.Mutex
	top    digest.Digest // of the manifest or list that the reference stands for; "" until known
	at     time.Time     // when the cache learnt that; zero if it was this source
	remote types.ImageSource
}

func newRegistrySource(o *PullOptions, sys *types.SystemContext, fresh bool) (*registrySource, error) {
	r := &registrySource{o: o, sys: sys, name: o.Ref.DockerReference(), fresh: fresh}
	if r.name == nil {
		return nil, errors.New("the reference has no name")
	}
	// The library looks at this when it talks to a registry; what is blocked is not let in from the cache either.
	if reg, err := sysregistriesv2.FindRegistry(sys, r.name.Name()); err != nil {
		return nil, final{fmt.Errorf("reading registries.conf: %w", err)}
	} else if reg != nil && reg.Blocked {
		return nil, fmt.Errorf("registry %s is blocked by registries.conf: %w", reg.Prefix, errBlocked)
	}
	if d, ok := r.name.(reference.Digested); ok {
		r.top = d.Digest()
	} else if o.Digest != "" {
		r.top = o.Digest
	} else if o.Cache != nil && !fresh {
		if desc, at, err := o.Cache.Reference(r.name.String()); err == nil {
			r.top, r.at = desc.Digest, at
		}
	}
	return r, nil
}

// open connects to the registry, if it was not yet, at the digest that the reference is known to stand for.
func (r *registrySource) open(ctx context.Context) (types.ImageSource, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.remote != nil {
		return r.remote, nil
	}
	ref := r.o.Ref
	if r.top != "" {
		named, err := reference.WithDigest(reference.TrimNamed(r.name), r.top)
		if err != nil {
			return nil, err
		}
		if ref, err = docker.NewReference(named); err != nil {
			return nil, err
		}
	}
	src, err := ref.NewImageSource(ctx, r.sys)
	if err != nil {
		return nil, err
	}
	r.remote = src
	return src, nil
}

// caches tells whether there is a cache for d.
func (r *registrySource) caches(d digest.Digest) bool {
	return r.o.Cache != nil && d != "" && d.Algorithm() == digest.SHA256
}

func (r *registrySource) missing(what string) error {
	return fmt.Errorf("%s of %s is %w", what, r.name, ErrNotCached)
}

func (r *registrySource) Reference() types.ImageReference { return r.o.Ref }

func (r *registrySource) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.remote == nil {
		return nil
	}
	src := r.remote
	r.remote = nil
	return src.Close()
}

func (r *registrySource) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	d := r.top
	if instance != nil {
		d = *instance
	}
	if r.caches(d) {
		data, err := r.o.Cache.Bytes(ctx, d, maxManifest)
		if err == nil {
			r.hit = true
			return data, r.mime(d, data), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, "", err
		}
	}
	if r.o.Offline {
		if d == "" {
			return nil, "", r.missing("the manifest")
		}
		return nil, "", r.missing("the manifest " + d.String())
	}
	src, err := r.open(ctx)
	if err != nil {
		return nil, "", err
	}
	data, mime, err := src.GetManifest(ctx, instance)
	if err != nil {
		return nil, "", err
	}
	got := digest.FromBytes(data)
	if d == "" {
		d, r.top = got, got
	}
	// One that is not what its digest says is the caller's to refuse.
	if r.caches(d) && got == d {
		if err := r.o.Cache.Put(d, data); err != nil {
			return nil, "", err
		}
		if manifest.GuessMIMEType(data) != mime {
			if err := r.o.Cache.SetNote("media type of "+d.String(), []byte(mime)); err != nil {
				return nil, "", err
			}
		}
	}
	return data, mime, nil
}

func (r *registrySource) mime(d digest.Digest, data []byte) string {
	if m, err := r.o.Cache.Note("media type of " + d.String()); err == nil {
		return string(m)
	}
	return manifest.GuessMIMEType(data)
}

// GetBlob reads a config; layers go through a Prefetch.
func (r *registrySource) GetBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if r.caches(info.Digest) {
		data, err := r.o.Cache.Bytes(ctx, info.Digest, maxConfig)
		if err == nil {
			return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, err
		}
	}
	if r.o.Offline {
		return nil, 0, r.missing("the config " + info.Digest.String())
	}
	src, err := r.open(ctx)
	if err != nil {
		return nil, 0, err
	}
	body, size, err := src.GetBlob(ctx, info, none.NoCache)
	if err != nil || !r.caches(info.Digest) {
		return body, size, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxConfig+1))
	if err != nil {
		return nil, 0, err
	}
	if digest.FromBytes(data) == info.Digest {
		if err := r.o.Cache.Put(info.Digest, data); err != nil {
			return nil, 0, err
		}
	}
	return io.NopCloser(bytes.NewReader(data)), int64(len(data)), nil
}

func (r *registrySource) HasThreadSafeGetBlob() bool { return false }
func (r *registrySource) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}

// GetSignatures is not for use: see signed, which has those of all kinds.
func (r *registrySource) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) {
	return nil, errors.ErrUnsupported
}

// resolved keeps in the cache what the reference stands for, once the image was let in.
func (r *registrySource) resolved(list bool, p *plan) error {
	if r.o.Cache == nil || r.o.Offline {
		return nil
	}
	data, mime := p.manifest, p.mime
	if list {
		data, mime = p.list, p.listMime
	}
	if _, ok := r.name.(reference.Digested); ok || r.o.Digest != "" || !r.at.IsZero() {
		return nil
	}
	desc := imgspecv1.Descriptor{MediaType: mime, Digest: r.top, Size: int64(len(data))}
	return r.o.Cache.SetReference(r.name.String(), desc, time.Now())
}

// signed is an image's manifest with its signatures, for a policy to look at, and the signatures as the library
// stores them. done lets go of what it needed.
func (r *registrySource) signed(ctx context.Context, p *plan) (img types.UnparsedImage, sigs [][]byte, done func(), err error) {
	done = func() {}
	key := fmt.Sprintf("signatures of %s@%s", r.name.Name(), p.manifestDigest)
	if r.o.Cache != nil && !r.fresh {
		if data, err := r.o.Cache.Note(key); err == nil && json.Unmarshal(data, &sigs) == nil {
			return r.withSignatures(ctx, p, sigs)
		}
	}
	if r.o.Offline {
		r.o.Log.Debugf("%s: the cache knows of no signatures", r.name)
		return r.withSignatures(ctx, p, nil)
	}
	src, err := r.open(ctx)
	if err != nil {
		return nil, nil, done, err
	}
	instance := image.UnparsedInstance(src, p.instance)
	// The library's source stands for a digest where the tag was resolved earlier; a policy wants the name given.
	img = image.UnparsedInstanceWithReference(instance, r.o.Ref)
	if sigs, err = signaturesOf(ctx, instance); err != nil {
		// A policy that asks for them fails on its own.
		r.o.Log.Warnf("%s: signatures are not kept: %v", refName(r.o.Ref), err)
		return img, nil, done, nil
	}
	if r.o.Cache != nil {
		data, err := json.Marshal(sigs)
		if err != nil {
			return nil, nil, done, err
		}
		if err := r.o.Cache.SetNote(key, data); err != nil {
			return nil, nil, done, err
		}
	}
	return img, sigs, done, nil
}

// withSignatures gives stored signatures back to the library, which reads them from a folder only.
func (r *registrySource) withSignatures(ctx context.Context, p *plan, sigs [][]byte) (types.UnparsedImage, [][]byte, func(), error) {
	dir, err := os.MkdirTemp(r.sys.BigFilesTemporaryDir, "storeseed-")
	if err != nil {
		return nil, nil, func() {}, err
	}
	done := func() { os.RemoveAll(dir) }
	err = os.WriteFile(filepath.Join(dir, "manifest.json"), p.manifest, 0o600)
	for i, s := range sigs {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "signature-"+strconv.Itoa(i+1)), s, 0o600)
		}
	}
	if err != nil {
		done()
		return nil, nil, func() {}, err
	}
	ref, err := directory.NewReference(dir)
	if err != nil {
		done()
		return nil, nil, func() {}, err
	}
	src, err := ref.NewImageSource(ctx, r.sys)
	if err != nil {
		done()
		return nil, nil, func() {}, err
	}
	return image.UnparsedInstanceWithReference(image.UnparsedInstance(src, nil), r.o.Ref), sigs, func() { src.Close(); done() }, nil
}

// signaturesOf returns an image's signatures of all kinds in the form in which the library's own stores keep
// them. The library does not export that form: a simple signature is itself, another one is a zero byte, its
// kind, a newline and JSON.
func signaturesOf(ctx context.Context, img *image.UnparsedImage) ([][]byte, error) {
	list, err := img.UntrustedSignatures(ctx)
	if err != nil {
		return nil, err
	}
	out := [][]byte{}
	for _, s := range list {
		switch s := any(s).(type) {
		case interface{ UntrustedSignature() []byte }:
			out = append(out, s.UntrustedSignature())
		case interface {
			UntrustedMIMEType() string
			UntrustedPayload() []byte
			UntrustedAnnotations() map[string]string
		}:
			data, err := json.Marshal(struct {
				MIMEType    string            `json:"mimeType"`
				Payload     []byte            `json:"payload"`
				Annotations map[string]string `json:"annotations"`
			}{s.UntrustedMIMEType(), s.UntrustedPayload(), s.UntrustedAnnotations()})
			if err != nil {
				return nil, err
			}
			out = append(out, append([]byte("\x00sigstore-json\n"), data...))
		default:
			return nil, fmt.Errorf("a signature of kind %T is not known", s)
		}
	}
	return out, nil
}
