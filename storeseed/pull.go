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
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/configfile"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// Source is an image to pull.
type Source struct {
	// Ref is where the image comes from; ParseReference makes one.
	Ref types.ImageReference
	// Digest, if set, is that of the manifest or manifest list that Ref must stand for; a registry is asked for it, not
	// for what a tag stands for now. The policy still sees Ref.
	Digest digest.Digest
	// Names are the names to record, whole ones such as "docker.io/library/alpine:3" or
	// "quay.io/x/y@sha256:…". An image without names can be used by its ID or digest alone.
	Names []string
	// System says where registries.conf, policy.json, auth and certificates are; nil is the host's.
	System *types.SystemContext
	// Policy decides which images are let in; nil is System's policy.json, and where there is none,
	// every image, with a warning.
	Policy *signature.PolicyContext
}

// Platform is what an image must be made for.
type Platform struct {
	OS, Architecture, Variant string
}

// ParsePlatform reads os/arch[/variant].
func ParsePlatform(s string) (Platform, error) {
	p := strings.Split(s, "/")
	if len(p) < 2 || len(p) > 3 || slices.Contains(p, "") {
		return Platform{}, fmt.Errorf("platform %q: want os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7", s)
	}
	out := Platform{OS: p[0], Architecture: p[1]}
	if len(p) == 3 {
		out.Variant = p[2]
	}
	return out, nil
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// PullOptions say what to pull and how.
type PullOptions struct {
	Source
	// Platform is the one wanted; a missing OS is linux, a missing architecture this program's.
	Platform Platform
	// ReportWriter gets the library's own progress, bars if it is a terminal; nil discards it.
	ReportWriter io.Writer
	// Retries is how often in a row a request to a registry that failed on the way is tried again; a blob goes on
	// where it was. A refused image, a wrong digest, an answer such as "not found" or "unauthorized" are final at
	// once. On top of it the library itself waits for a registry that says "too many requests".
	Retries int
	// RetryDelay is the pause before the first retry; it doubles each time, up to a minute. 0 is one second.
	RetryDelay time.Duration
	// Cache, if set, keeps what comes from registries, and is asked before they are. What it says of a tag is
	// believed, however old it is: see Refresh. It stays open until after the pull.
	Cache *blobcache.Cache
	// Offline takes images of registries from Cache alone; what it lacks is ErrNotCached.
	Offline bool
	// Refresh asks the registry again what a tag stands for, and for signatures; blobs still come from Cache. Not
	// together with Offline.
	Refresh bool
	// Log gets warnings; nil is silent, or for Store.Pull the store's.
	Log logrus.FieldLogger
}

// Layer says what became of one layer of an image.
type Layer struct {
	ID               string        `json:"id"`
	DiffID           digest.Digest `json:"diffID"`
	CompressedDigest digest.Digest `json:"compressedDigest"`
	CompressedSize   int64         `json:"compressedSize"` // -1 if the manifest does not say
	Size             int64         `json:"size"`           // of the uncompressed tar
	New              bool          `json:"new"`            // written by this pull
}

// Result says what a pull did.
type Result struct {
	ID             string        `json:"id"`             // image ID, the config's digest without its algorithm
	ManifestDigest digest.Digest `json:"manifestDigest"` // of the image's own manifest
	ListDigest     digest.Digest `json:"listDigest,omitempty"`
	Names          []string      `json:"names"` // all names that the image has now
	Layers         []Layer       `json:"layers"`
	Created        time.Time     `json:"created"`
	Platform       Platform      `json:"platform"`
	BytesRead      int64         `json:"bytesRead"`    // compressed bytes of layers that were read
	BytesWritten   int64         `json:"bytesWritten"` // uncompressed bytes of layers that were written
	// Present says that the image was in the store already; New layers are then none.
	Present bool `json:"present"`
	// Unchanged says that nothing at all had to be written, not even a name.
	Unchanged bool `json:"unchanged"`
}

// Opened is an image whose manifest and config were read, so that all is known of it but its layers' contents.
// It is for one goroutine at a time.
type Opened struct {
	o        PullOptions
	sys      types.SystemContext
	src      types.ImageSource // nil once it was closed
	p        *plan
	prefetch *Prefetch // nil if layers are not fetched ahead
	// policyLock is held while a policy that was given, and that others may use, is asked.
	policyLock *sync.Mutex
	pins       []digest.Digest // layers that the cache is to keep until Close
}

// registry is the image's source if it is a registry, else nil.
func (i *Opened) registry() *registrySource {
	r, _ := i.src.(*registrySource)
	return r
}

// Open opens an image for a pull and refuses it if it is none that a store can hold, is for another platform, or
// is not let in by the policy. The caller closes it.
func Open(ctx context.Context, o PullOptions) (*Opened, error) {
	return open(ctx, o, &sync.Mutex{})
}

// OpenAll opens images as Open does, at most parallel of them at a time (0 is DefaultParallel), and returns them
// in the order given. The error is that of the first image in that order that fails; then none stays open.
func OpenAll(ctx context.Context, list []PullOptions, parallel int) ([]*Opened, error) {
	if parallel <= 0 {
		parallel = DefaultParallel
	}
	out, errs := make([]*Opened, len(list)), make([]error, len(list))
	var policy sync.Mutex
	var work sync.WaitGroup
	var failed atomic.Int64 // the first image that failed
	failed.Store(int64(len(list)))
	places := make(chan struct{}, parallel)
	for n := range list {
		places <- struct{}{}
		if int64(n) > failed.Load() {
			break
		}
		work.Go(func() {
			defer func() { <-places }()
			if out[n], errs[n] = open(ctx, list[n], &policy); errs[n] != nil {
				for at := failed.Load(); int64(n) < at && !failed.CompareAndSwap(at, int64(n)); at = failed.Load() {
				}
			}
		})
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			for _, i := range out {
				if i != nil {
					i.Close()
				}
			}
			return nil, err
		}
	}
	return out, nil
}

func open(ctx context.Context, o PullOptions, policy *sync.Mutex) (*Opened, error) {
	if o.Ref == nil {
		return nil, errors.New("no image reference")
	}
	if o.Platform.OS == "" {
		o.Platform.OS = "linux"
	}
	if o.Platform.Architecture == "" {
		o.Platform.Architecture = runtime.GOARCH
	}
	for _, n := range o.Names {
		if _, err := reference.ParseNamed(n); err != nil {
			return nil, fmt.Errorf("name %q: %w", n, err)
		}
	}
	if o.Log == nil {
		o.Log = silent()
	}
	if o.Offline && o.Refresh {
		return nil, errors.New("an image cannot be asked for again while no registry may be asked")
	}
	i := &Opened{o: o, policyLock: policy}
	if o.System != nil {
		i.sys = *o.System
	}
	i.sys.OSChoice, i.sys.ArchitectureChoice, i.sys.VariantChoice = o.Platform.OS, o.Platform.Architecture, o.Platform.Variant
	if err := i.retry(ctx, func() error { return i.open(ctx) }); err != nil {
		return nil, err
	}
	return i, nil
}

// Created is the time that the image's config gives; zero if it gives none.
func (i *Opened) Created() time.Time {
	if i.p.oci.Created == nil {
		return time.Time{}
	}
	return i.p.oci.Created.UTC()
}

// Info is what a pull will say of the image, as far as it is known before: which manifest, list and config, and
// which layers, whose Size is -1.
func (i *Opened) Info() Result {
	p := i.p
	res := Result{ID: p.configDigest.Encoded(), ManifestDigest: p.manifestDigest, Names: slices.Clone(i.o.Names), Created: i.Created(),
		Platform: Platform{p.oci.OS, p.oci.Architecture, p.oci.Variant}}
	if p.list != nil {
		res.ListDigest = digest.FromBytes(p.list)
	}
	for _, s := range p.specs {
		res.Layers = append(res.Layers, Layer{ID: s.id, DiffID: s.diffID, CompressedDigest: s.blob, CompressedSize: s.blobSize, Size: -1})
	}
	return res
}

// Close lets go of the source. It may be called more than once.
func (i *Opened) Close() error {
	if i.src == nil {
		return nil
	}
	src := i.src
	i.src = nil
	err := src.Close()
	if i.pins != nil {
		err = errors.Join(err, i.o.Cache.Unpin(i.pins...))
		i.pins = nil
	}
	return err
}

// open opens the source and plans. What the cache says that leads to a refusal is asked for again.
func (i *Opened) open(ctx context.Context) error {
	if i.o.Ref.Transport().Name() != "docker" {
		src, err := i.o.Ref.NewImageSource(ctx, &i.sys)
		if err != nil {
			return err
		}
		return i.admit(ctx, src)
	}
	src, err := newRegistrySource(&i.o, &i.sys, i.o.Refresh)
	if err != nil {
		return err
	}
	err = i.admit(ctx, src)
	if err == nil || !src.hit || i.o.Offline || i.o.Refresh || mayRetry(ctx, err) || ctx.Err() != nil {
		return err
	}
	i.o.Log.Debugf("%s: %v; asking the registry again", refName(i.o.Ref), err)
	again, nerr := newRegistrySource(&i.o, &i.sys, true)
	if nerr != nil {
		return err
	}
	return i.admit(ctx, again)
}

// admit plans the pull and asks the policy. It closes src if either refuses.
func (i *Opened) admit(ctx context.Context, src types.ImageSource) (err error) {
	defer func() {
		if err != nil {
			src.Close()
		}
	}()
	p, err := i.plan(ctx, src)
	if err != nil {
		return err
	}
	if err := i.allow(ctx, src, p); err != nil {
		return err
	}
	if r, ok := src.(*registrySource); ok {
		if err := r.resolved(p.list != nil, p); err != nil {
			return err
		}
		if !r.at.IsZero() {
			i.o.Log.Infof("%s is %s, as the cache learnt at %s", refName(i.o.Ref), r.top, r.at.UTC().Format(time.RFC3339))
		}
	}
	if i.o.Cache != nil && i.pins == nil {
		for _, spec := range p.specs {
			if spec.blob.Algorithm() == digest.SHA256 {
				i.pins = append(i.pins, spec.blob)
			}
		}
		if err := i.o.Cache.Pin(i.pins...); err != nil {
			i.pins = nil
			return err
		}
	}
	i.p, i.src = p, src
	return nil
}

// retry tries until it succeeds, fails for good, or has been tried often enough.
func (i *Opened) retry(ctx context.Context, try func() error) error {
	b := backoffOf(&i.o)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if err := b.wait(ctx, fmt.Errorf("pulling %s: %w", refName(i.o.Ref), err)); err != nil {
			return err
		}
	}
}

// Pull opens an image and copies it into the store: see PullOpened.
func (s *Store) Pull(ctx context.Context, o PullOptions) (Result, error) {
	if o.Log == nil {
		o.Log = s.log
	}
	sys := types.SystemContext{}
	if o.System != nil {
		sys = *o.System
	}
	if sys.BigFilesTemporaryDir == "" {
		sys.BigFilesTemporaryDir = s.o.TempDir
	}
	o.System = &sys
	i, err := Open(ctx, o)
	if err != nil {
		return Result{}, err
	}
	defer i.Close()
	return s.PullOpened(ctx, i)
}

// PullOpened copies one image into the store, layer by layer, each verified against its digest and its
// diffID before it counts as there. Layers that the store holds at the same place in the chain are
// not read. After an error the store can be committed without the image, unless Commit says otherwise.
func (s *Store) PullOpened(ctx context.Context, i *Opened) (Result, error) {
	if s.committed {
		return Result{}, errors.New("the store was committed already")
	}
	if s.broken != nil {
		return Result{}, s.broken
	}
	if i.src == nil {
		if err := i.retry(ctx, func() error { return i.open(ctx) }); err != nil {
			return Result{}, err
		}
	}
	defer i.Close()
	if i.registry() != nil && i.prefetch == nil {
		p, err := s.Prefetch(ctx, []*Opened{i}, PrefetchOptions{})
		if err != nil {
			return Result{}, fmt.Errorf("pulling %s: %w", refName(i.o.Ref), err)
		}
		defer p.Close()
	}
	res, err := s.pullOnce(ctx, i)
	if err != nil {
		return res, fmt.Errorf("pulling %s: %w", refName(i.o.Ref), err)
	}
	return res, nil
}

func refName(r types.ImageReference) string {
	return r.Transport().Name() + ":" + strings.TrimSuffix(r.StringWithinTransport(), ":")
}

func mayRetry(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	for _, final := range []error{errHalfWritten, ErrDigestMismatch, ErrHostileLayer, ErrUnsupportedImage, ErrCorruptStore, ErrPlatform,
		ErrNotCached, errBlocked, fs.ErrNotExist, fs.ErrPermission, fs.ErrExist, syscall.EROFS, syscall.ENOSPC, syscall.EDQUOT} {
		if errors.Is(err, final) {
			return false
		}
	}
	var rejected signature.PolicyRequirementError
	var invalid signature.InvalidSignatureError
	var here final
	return !errors.As(err, &rejected) && !errors.As(err, &invalid) && !errors.As(err, &here) && !refusedByRegistry(err)
}

// final is an error in something of this host, which no registry will change.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// allow asks the policy whether the image is let in, and keeps its signatures.
func (i *Opened) allow(ctx context.Context, src types.ImageSource, p *plan) error {
	img, done := types.UnparsedImage(p.unparsed), func() {}
	var err error
	if r, ok := src.(*registrySource); ok {
		img, p.signatures, done, err = r.signed(ctx, p)
	} else if p.signatures, err = signaturesOf(ctx, p.unparsed); err != nil {
		// A policy that asks for them fails on its own.
		i.o.Log.Warnf("%s: signatures are not kept: %v", refName(i.o.Ref), err)
		err = nil
	}
	if err != nil {
		return fmt.Errorf("reading signatures: %w", err)
	}
	defer done()
	policy, end, err := i.policy()
	if err != nil {
		return err
	}
	defer end()
	i.policyLock.Lock()
	defer i.policyLock.Unlock()
	if ok, err := policy.IsRunningImageAllowed(ctx, img); err != nil || !ok {
		return fmt.Errorf("the image is not let in by the signature policy: %w", err)
	}
	return nil
}

func (i *Opened) policy() (*signature.PolicyContext, func(), error) {
	if i.o.Policy != nil {
		return i.o.Policy, func() {}, nil
	}
	p, err := signature.DefaultPolicy(&i.sys)
	if errors.Is(err, configfile.ErrConfigFileNotFound) {
		i.o.Log.Warnf("no policy.json on this host: %s is let in without any check of who made it", refName(i.o.Ref))
		p, err = anyone(), nil
	}
	if err != nil {
		return nil, nil, final{fmt.Errorf("reading the signature policy: %w", err)}
	}
	pc, err := signature.NewPolicyContext(p)
	if err != nil {
		return nil, nil, final{fmt.Errorf("signature policy: %w", err)}
	}
	return pc, func() { pc.Destroy() }, nil
}

// anyone is the policy that lets every image in.
func anyone() *signature.Policy {
	return &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}
}

// plan is everything about an image that is known before its first layer is read.
type plan struct {
	manifest       []byte
	manifestDigest digest.Digest
	list           []byte // the manifest list, if the source is one
	config         []byte
	configDigest   digest.Digest
	oci            *imgspecv1.Image
	created        time.Time // of the image, or the store's own time; set when a pull begins
	layers         []types.BlobInfo
	specs          []layerSpec
	signatures     [][]byte
	instance       *digest.Digest
	unparsed       *image.UnparsedImage
	mime, listMime string
}

// pullOnce copies the opened image.
func (s *Store) pullOnce(ctx context.Context, i *Opened) (Result, error) {
	o, p := &i.o, i.p
	if p.created = i.Created(); p.created.IsZero() {
		p.created = s.o.Now
	}
	for n := range p.specs {
		p.specs[n].created = p.created
	}
	// The image's own policy was asked when it was opened.
	policy, err := signature.NewPolicyContext(anyone())
	if err != nil {
		return Result{}, err
	}
	defer policy.Destroy()
	d := &destination{s: s, o: o, p: p, at: -1}
	if o.Ref.Transport().Name() == "containers-storage" {
		// Such a source has no compressed layers, so the library would change the manifest to name
		// the uncompressed ones. Digests must not change: the layers are taken from it directly.
		d.direct = i.src
	}
	d.ref = &destRef{d: d}
	_, err = copy.Image(ctx, policy, d.ref, &openedRef{o.Ref, &openedSource{i.src, i, d}}, &copy.Options{
		// Signatures are the policy's to check, whatever is kept of them: see allow.
		RemoveSignatures: true,
		PreserveDigests:  true,
		// As plan chooses: zstd before gzip.
		PreferGzipInstances: types.OptionalBoolFalse,
		ReportWriter:        o.ReportWriter,
		SourceCtx:           &i.sys,
		DestinationCtx:      &types.SystemContext{BlobInfoCacheDir: noCacheDir},
	})
	if err == nil && !d.done {
		err = errors.New("the library did not finish the image")
	}
	if first := d.failed(); first != nil {
		err = first
	}
	return d.res, err
}

// noCacheDir keeps the library's cache of blob locations, which is of no use here, off this host: no
// folder can be made there, so the cache stays in memory.
const noCacheDir = os.DevNull + "/none"

// openedRef gives the source that was opened for planning to the copy as well, so that both see the
// same image and nothing is fetched twice.
type openedRef struct {
	types.ImageReference
	src *openedSource
}

func (r *openedRef) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return r.src, nil
}

// openedSource stays open after a copy, knows the config, and takes layers from where they are fetched to.
type openedSource struct {
	types.ImageSource
	i *Opened
	d *destination
}

func (s *openedSource) Close() error { return nil }

func (s *openedSource) GetManifest(ctx context.Context, instance *digest.Digest) ([]byte, string, error) {
	switch p := s.i.p; {
	case instance == nil && p.list != nil:
		return p.list, p.listMime, nil
	case instance == nil || (p.instance != nil && *instance == *p.instance):
		return p.manifest, p.mime, nil
	}
	return s.ImageSource.GetManifest(ctx, instance)
}

func (s *openedSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	if info.Digest == s.i.p.configDigest {
		return io.NopCloser(bytes.NewReader(s.i.p.config)), int64(len(s.i.p.config)), nil
	}
	var r io.ReadCloser
	var size int64
	var err error
	if reg := s.i.registry(); reg != nil {
		r, size, err = s.i.prefetch.open(ctx, reg, info)
	} else {
		r, size, err = s.ImageSource.GetBlob(ctx, info, cache)
	}
	if err != nil {
		return nil, 0, s.d.missed(err)
	}
	return &layerReader{r, s.d}, size, nil
}

// layerReader tells the destination of a layer that breaks off before the library gives it to it.
type layerReader struct {
	io.ReadCloser
	d *destination
}

func (r *layerReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		r.d.missed(err)
	}
	return n, err
}

// missed notes that a layer cannot be had: the library would go on with the next one.
func (d *destination) missed(err error) error {
	if d.at >= 0 && d.at < len(d.p.specs) {
		err = fmt.Errorf("%s: %w", &d.p.specs[d.at], err)
	}
	return d.fail(err)
}

func (s *openedSource) LayerInfosForCopy(ctx context.Context, instance *digest.Digest) ([]types.BlobInfo, error) {
	if s.i.o.Ref.Transport().Name() == "containers-storage" {
		return nil, nil
	}
	return s.ImageSource.LayerInfosForCopy(ctx, instance)
}

// plan reads manifest and config, and refuses what a store cannot hold.
func (i *Opened) plan(ctx context.Context, src types.ImageSource) (*plan, error) {
	o, sys := &i.o, &i.sys
	p := &plan{}
	p.unparsed = image.UnparsedInstance(src, nil)
	blob, mime, err := p.unparsed.Manifest(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	if got := digest.FromBytes(blob); o.Digest != "" && got != o.Digest {
		return nil, fmt.Errorf("the manifest hashes to %s, and must be %s: %w", got, o.Digest, ErrDigestMismatch)
	}
	if manifest.MIMETypeIsMultiImage(mime) {
		p.list, p.listMime = blob, mime
		list, err := manifest.ListFromBlob(blob, mime)
		if err != nil {
			return nil, fmt.Errorf("reading the manifest list: %w", err)
		}
		inst, err := list.ChooseInstance(sys)
		if err != nil {
			return nil, fmt.Errorf("%w %s: the list has %s", ErrPlatform, o.Platform, platformsOf(list))
		}
		p.instance = &inst
		p.unparsed = image.UnparsedInstance(src, p.instance)
		if blob, mime, err = p.unparsed.Manifest(ctx); err != nil {
			return nil, fmt.Errorf("reading the manifest %s: %w", inst, err)
		}
	}
	p.manifest, p.mime = blob, mime
	if p.manifestDigest, err = manifest.Digest(blob); err != nil {
		return nil, err
	}
	if err := checkManifest(blob, mime); err != nil {
		return nil, err
	}
	img, err := image.FromUnparsedImage(ctx, sys, p.unparsed)
	if err != nil {
		return nil, fmt.Errorf("reading the manifest: %w", err)
	}
	p.configDigest = img.ConfigInfo().Digest
	if err := p.configDigest.Validate(); err != nil || p.configDigest.Algorithm() != digest.SHA256 {
		return nil, fmt.Errorf("%w: its config is named by %q, not by a sha256 digest", ErrUnsupportedImage, p.configDigest)
	}
	if p.config, err = img.ConfigBlob(ctx); err != nil {
		// The library's error for that has no type.
		if strings.Contains(err.Error(), "does not match expected") {
			err = fmt.Errorf("%w: %w", ErrDigestMismatch, err)
		}
		return nil, fmt.Errorf("reading the config: %w", err)
	}
	if got := digest.FromBytes(p.config); got != p.configDigest {
		return nil, fmt.Errorf("the config hashes to %s, the manifest names %s: %w", got, p.configDigest, ErrDigestMismatch)
	}
	if p.oci, err = img.OCIConfig(ctx); err != nil {
		return nil, fmt.Errorf("%w: reading its config: %w", ErrUnsupportedImage, err)
	}
	if err := checkPlatform(o.Platform, p.oci.Platform); err != nil {
		return nil, err
	}
	p.layers = img.LayerInfos()
	ids := p.oci.RootFS.DiffIDs
	if len(ids) != len(p.layers) {
		return nil, fmt.Errorf("%w: its config lists %d layers, its manifest %d", ErrUnsupportedImage, len(ids), len(p.layers))
	}
	parent := ""
	for i, d := range ids {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, fmt.Errorf("%w: the diffID of layer %d is %q, not a sha256 digest", ErrUnsupportedImage, i+1, d)
		}
		if err := p.layers[i].Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%w: layer %d: %w", ErrUnsupportedImage, i+1, err)
		}
		spec := layerSpec{id: layerID(parent, d), parent: parent, diffID: d, blob: p.layers[i].Digest,
			blobSize: p.layers[i].Size, index: i, of: len(ids)}
		p.specs = append(p.specs, spec)
		parent = spec.id
	}
	return p, nil
}

func platformsOf(l manifest.List) string {
	var have []string
	for _, d := range l.Instances() {
		u, err := l.Instance(d)
		if err != nil || u.ReadOnly.Platform == nil {
			continue
		}
		p := u.ReadOnly.Platform
		have = append(have, Platform{p.OS, p.Architecture, p.Variant}.String())
	}
	if len(have) == 0 {
		return "no platforms at all"
	}
	return strings.Join(have, ", ")
}

// checkManifest lets only container images through: OCI and Docker schema 2, layers that are tars.
func checkManifest(blob []byte, mime string) error {
	switch mime {
	case imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType:
	case manifest.DockerV2Schema1MediaType, manifest.DockerV2Schema1SignedMediaType:
		return fmt.Errorf("%w: a Docker schema 1 manifest, which has no config; push the image anew with a current tool", ErrUnsupportedImage)
	case imgspecv1.MediaTypeImageIndex, manifest.DockerV2ListMediaType:
		return fmt.Errorf("%w: a manifest list inside a manifest list", ErrUnsupportedImage)
	default:
		return fmt.Errorf("%w: its manifest is of type %q", ErrUnsupportedImage, mime)
	}
	var m struct {
		ArtifactType string `json:"artifactType"`
		Config       struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
		Layers []struct {
			MediaType string `json:"mediaType"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(blob, &m); err != nil {
		return fmt.Errorf("reading the manifest: %w", err)
	}
	if t := m.Config.MediaType; t != imgspecv1.MediaTypeImageConfig && t != manifest.DockerV2Schema2ConfigMediaType {
		kind := m.ArtifactType
		if kind == "" {
			kind = t
		}
		return fmt.Errorf("%w: it is an artifact of type %q, not a container image", ErrUnsupportedImage, kind)
	}
	for i, l := range m.Layers {
		switch base, _, _ := strings.Cut(l.MediaType, "+"); {
		case strings.HasSuffix(l.MediaType, "+encrypted"):
			return fmt.Errorf("%w: layer %d is encrypted", ErrUnsupportedImage, i+1)
		case base == imgspecv1.MediaTypeImageLayer,
			base == "application/vnd.oci.image.layer.nondistributable.v1.tar",
			base == "application/vnd.docker.image.rootfs.diff.tar",
			l.MediaType == manifest.DockerV2Schema2LayerMediaType,
			l.MediaType == manifest.DockerV2SchemaLayerMediaTypeUncompressed,
			l.MediaType == manifest.DockerV2SchemaLayerMediaTypeZstd,
			l.MediaType == manifest.DockerV2Schema2ForeignLayerMediaType,
			l.MediaType == manifest.DockerV2Schema2ForeignLayerMediaTypeGzip:
		default:
			return fmt.Errorf("%w: layer %d is of type %q, not a tar", ErrUnsupportedImage, i+1, l.MediaType)
		}
	}
	return nil
}

// checkPlatform refuses an image whose config says that it is for another machine. A config that
// says nothing passes.
func checkPlatform(want Platform, have imgspecv1.Platform) error {
	got := Platform{have.OS, have.Architecture, have.Variant}
	if (got.OS != "" && got.OS != want.OS) || (got.Architecture != "" && got.Architecture != want.Architecture) {
		return fmt.Errorf("%w %s: the image is for %s", ErrPlatform, want, got)
	}
	w, okW := variantLevel(want.Variant)
	g, okG := variantLevel(got.Variant)
	if okW && okG && g > w {
		return fmt.Errorf("%w %s: the image is for %s", ErrPlatform, want, got)
	}
	return nil
}

func variantLevel(v string) (int, bool) {
	n, err := strconv.Atoi(strings.TrimPrefix(v, "v"))
	return n, err == nil
}

// destRef and destination are what the library copies to.
type destRef struct{ d *destination }

func (r *destRef) Transport() types.ImageTransport { return transport{} }
func (r *destRef) StringWithinTransport() string   { return "/" + r.d.s.root }

// DockerReference is nil, so that the library never edits a manifest to fit a name.
func (r *destRef) DockerReference() reference.Named { return nil }

func (r *destRef) PolicyConfigurationIdentity() string     { return "" }
func (r *destRef) PolicyConfigurationNamespaces() []string { return nil }
func (r *destRef) NewImage(context.Context, *types.SystemContext) (types.ImageCloser, error) {
	return nil, errors.ErrUnsupported
}
func (r *destRef) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return nil, errors.ErrUnsupported
}
func (r *destRef) NewImageDestination(context.Context, *types.SystemContext) (types.ImageDestination, error) {
	return r.d, nil
}
func (r *destRef) DeleteImage(context.Context, *types.SystemContext) error {
	return errors.ErrUnsupported
}

type transport struct{}

func (transport) Name() string { return "storeseed" }
func (transport) ParseReference(string) (types.ImageReference, error) {
	return nil, errors.ErrUnsupported
}
func (transport) ValidatePolicyConfigurationScope(string) error { return nil }

type destination struct {
	s      *Store
	o      *PullOptions
	p      *plan
	ref    *destRef
	direct types.ImageSource // takes layers past the library
	at     int               // layer that the library is at
	res    Result
	mu     sync.Mutex
	err    error // first error, which the library may wrap beyond recognition; guarded by mu
	put    []byte
	done   bool
}

func (d *destination) Reference() types.ImageReference { return d.ref }
func (d *destination) Close() error                    { return nil }
func (d *destination) SupportedManifestMIMETypes() []string {
	return []string{imgspecv1.MediaTypeImageManifest, manifest.DockerV2Schema2MediaType}
}
func (d *destination) SupportsSignatures(context.Context) error { return nil }
func (d *destination) DesiredLayerCompression() types.LayerCompression {
	return types.PreserveOriginal
}
func (d *destination) AcceptsForeignLayerURLs() bool { return false }

// MustMatchRuntimeOS is false: the platform is the disk's, and plan has checked it.
func (d *destination) MustMatchRuntimeOS() bool             { return false }
func (d *destination) IgnoresEmbeddedDockerReference() bool { return true }

// HasThreadSafePutBlob is false, so that layers come one by one and in order.
func (d *destination) HasThreadSafePutBlob() bool { return false }

func (d *destination) fail(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
	return err
}

func (d *destination) failed() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// TryReusingBlob is called once for each layer, in order, before PutBlob.
func (d *destination) TryReusingBlob(ctx context.Context, info types.BlobInfo, _ types.BlobInfoCache, _ bool) (bool, types.BlobInfo, error) {
	if err := d.failed(); err != nil {
		return false, types.BlobInfo{}, err
	}
	d.at++
	if d.at >= len(d.p.specs) || info.Digest != d.p.layers[d.at].Digest {
		return false, types.BlobInfo{}, d.fail(fmt.Errorf("layer %d is now %s: %w", d.at+1, info.Digest, ErrSourceChanged))
	}
	spec := &d.p.specs[d.at]
	if rec := d.s.byLayer[spec.id]; rec != nil {
		d.note(rec, spec, false)
		if info.Size < 0 {
			info.Size = rec.CompressedSize
		}
		return true, types.BlobInfo{Digest: info.Digest, Size: info.Size}, nil
	}
	if d.direct == nil {
		return false, types.BlobInfo{}, nil
	}
	if err := d.putDirect(ctx, spec); err != nil {
		return false, types.BlobInfo{}, d.fail(err)
	}
	return true, types.BlobInfo{Digest: info.Digest, Size: info.Size}, nil
}

// putDirect takes a layer from a store that has it uncompressed only. Its diffID vouches for it.
func (d *destination) putDirect(ctx context.Context, spec *layerSpec) error {
	infos, err := d.direct.LayerInfosForCopy(ctx, d.p.instance)
	if err != nil {
		return err
	}
	if len(infos) != len(d.p.specs) {
		return fmt.Errorf("the source store has %d layers, the image %d: %w", len(infos), len(d.p.specs), ErrSourceChanged)
	}
	r, _, err := d.direct.GetBlob(ctx, infos[spec.index], none.NoCache)
	if err != nil {
		return fmt.Errorf("%s: %w", spec, err)
	}
	defer r.Close()
	plain := *spec
	plain.blob, plain.blobSize = spec.diffID, -1
	rec, err := d.s.writeLayer(ctx, &plain, r)
	if err != nil {
		return err
	}
	d.note(rec, spec, true)
	return nil
}

// note records in the result what became of a layer.
func (d *destination) note(rec *layerRec, spec *layerSpec, fresh bool) {
	d.res.Layers = append(d.res.Layers, Layer{ID: rec.ID, DiffID: spec.diffID, CompressedDigest: spec.blob,
		CompressedSize: spec.blobSize, Size: rec.UncompressedSize, New: fresh})
	if fresh {
		d.res.BytesRead += rec.CompressedSize
		d.res.BytesWritten += rec.UncompressedSize
	}
}

func (d *destination) PutBlob(ctx context.Context, r io.Reader, info types.BlobInfo, _ types.BlobInfoCache, isConfig bool) (types.BlobInfo, error) {
	if err := d.failed(); err != nil {
		return types.BlobInfo{}, err
	}
	if isConfig {
		data, err := io.ReadAll(io.LimitReader(r, int64(len(d.p.config))+1))
		if err != nil {
			return types.BlobInfo{}, d.fail(fmt.Errorf("reading the config: %w", err))
		}
		if !bytes.Equal(data, d.p.config) {
			return types.BlobInfo{}, d.fail(fmt.Errorf("the config is another one: %w", ErrSourceChanged))
		}
		return types.BlobInfo{Digest: d.p.configDigest, Size: int64(len(data))}, nil
	}
	spec := &d.p.specs[d.at]
	rec, err := d.s.writeLayer(ctx, spec, r)
	if err != nil {
		return types.BlobInfo{}, d.fail(err)
	}
	d.note(rec, spec, true)
	return types.BlobInfo{Digest: spec.blob, Size: rec.CompressedSize}, nil
}

func (d *destination) PutManifest(_ context.Context, m []byte, _ *digest.Digest) error {
	if !bytes.Equal(m, d.p.manifest) {
		return d.fail(fmt.Errorf("the manifest is another one: %w", ErrSourceChanged))
	}
	d.put = m
	return nil
}

func (d *destination) PutSignatures(context.Context, [][]byte, *digest.Digest) error { return nil }

// Commit records the image.
func (d *destination) Commit(ctx context.Context, _ types.UnparsedImage) error {
	if err := d.failed(); err != nil {
		return err
	}
	if d.put == nil || d.at != len(d.p.specs)-1 {
		return d.fail(errors.New("the library committed an image that is not whole"))
	}
	if err := d.s.putImage(d.p, d.o.Names, &d.res); err != nil {
		return d.fail(err)
	}
	d.res.Platform = Platform{d.p.oci.OS, d.p.oci.Architecture, d.p.oci.Variant}
	d.done = true
	return nil
}

// putImage records an image whose layers are all there, or adds names and manifest to one that is
// there already.
func (s *Store) putImage(p *plan, names []string, res *Result) error {
	if err := s.begin(); err != nil {
		return err
	}
	id := p.configDigest.Encoded()
	top := ""
	if len(p.specs) > 0 {
		top = p.specs[len(p.specs)-1].id
	}
	im := s.byImage[id]
	res.Present = im != nil
	if im == nil {
		im = &imageRec{Image: storage.Image{ID: id, TopLayer: top, Created: p.created}}
		if err := s.mkdirAll(s.root + "/" + imagesDir + "/" + id); err != nil {
			return err
		}
	} else if im.TopLayer != top {
		return fmt.Errorf("%w: image %s is there with the top layer %q instead of %q", ErrCorruptStore, id, im.TopLayer, top)
	}
	wasDirty := im.dirty
	im.dirty = false

	items := []struct {
		key  string
		data []byte
	}{{p.configDigest.String(), p.config}}
	if p.list != nil {
		d, err := manifest.Digest(p.list)
		if err != nil {
			return err
		}
		res.ListDigest = d
		items = append(items, struct {
			key  string
			data []byte
		}{storage.ImageDigestManifestBigDataNamePrefix + "-" + d.String(), p.list})
	}
	items = append(items, struct {
		key  string
		data []byte
	}{storage.ImageDigestManifestBigDataNamePrefix + "-" + p.manifestDigest.String(), p.manifest})
	// The image keeps the manifest that it came with first; later ones are found by their digest.
	if _, ok := im.BigDataDigests[storage.ImageDigestBigDataKey]; !ok {
		items = append(items, struct {
			key  string
			data []byte
		}{storage.ImageDigestBigDataKey, p.manifest})
	}
	for _, it := range items {
		if err := s.putBigData(im, it.key, it.data); err != nil {
			return err
		}
	}
	if err := s.putSignatures(im, p); err != nil {
		return err
	}
	s.setNames(im, names)
	if !res.Present {
		s.images = append(s.images, im)
		s.byImage[id] = im
		im.dirty = true
	}
	res.Unchanged = res.Present && !im.dirty
	if im.dirty {
		s.imagesDirty = true
	}
	im.dirty = im.dirty || wasDirty
	res.ID, res.ManifestDigest, res.Created, res.Names = id, p.manifestDigest, im.Created, slices.Clone(im.Names)
	return nil
}

// putSignatures keeps signatures as the engine does: one item for each manifest, all of its
// signatures joined, their sizes in the image's metadata.
func (s *Store) putSignatures(im *imageRec, p *plan) error {
	if len(p.signatures) == 0 {
		return nil
	}
	meta := map[string]json.RawMessage{}
	if im.Metadata != "" {
		if err := json.Unmarshal([]byte(im.Metadata), &meta); err != nil {
			return fmt.Errorf("%w: the metadata of image %s: %w", ErrCorruptStore, im.ID, err)
		}
	}
	all := map[digest.Digest][]int{}
	if raw, ok := meta["signatures-sizes"]; ok {
		if err := json.Unmarshal(raw, &all); err != nil {
			return fmt.Errorf("%w: the metadata of image %s: %w", ErrCorruptStore, im.ID, err)
		}
	}
	sizes := []int{}
	for _, sig := range p.signatures {
		sizes = append(sizes, len(sig))
	}
	joined := bytes.Join(p.signatures, nil)
	all[p.manifestDigest] = sizes
	first := meta["signature-sizes"] == nil
	for k, v := range map[string]any{"signatures-sizes": all, "signature-sizes": sizes} {
		if k == "signature-sizes" && !first {
			continue
		}
		data, err := json.Marshal(v)
		if err != nil {
			return err
		}
		meta[k] = data
	}
	data, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	if im.Metadata != string(data) {
		im.Metadata = string(data)
		im.dirty = true
	}
	if first {
		if err := s.putBigData(im, "signatures", joined); err != nil {
			return err
		}
	}
	return s.putBigData(im, "signature-"+p.manifestDigest.Encoded(), joined)
}
