package storeseed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// PrefetchOptions say how far ahead of the writing layers are fetched.
type PrefetchOptions struct {
	// Parallel is how many blobs are fetched at a time at most; 0 is DefaultParallel. While the writer does not have
	// to wait, or one connection brings as much as several do, large ones are fetched one after the other.
	Parallel int
	// TempDir is a folder for what was fetched but not read yet, in files without a name; "" is the store's
	// Options.TempDir. A cache is used instead where there is one.
	TempDir string
	// SpoolLimit is how many bytes may be fetched ahead, by the sizes in the manifests; 0 is the size of the cache
	// or, without one, DefaultSpoolLimit. What goes into a cache without a bound does not count. A layer that does
	// not fit, because it is too large or the room is taken by others, is read from the registry directly when its
	// turn comes, and not cached.
	SpoolLimit int64
}

// Defaults of PrefetchOptions.
const (
	DefaultParallel   = 6
	DefaultSpoolLimit = 8 << 30
)

// Prefetch fetches, in the background, the layers of images that are pulled one after the other. See
// Store.Prefetch.
type Prefetch struct {
	o      PrefetchOptions
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu      sync.Mutex
	cond    sync.Cond // something below, or in one of the blobs, has changed
	blobs   map[digest.Digest]*blob
	queue   []*blob // not begun yet, in the order of their use
	running int
	held    int64 // bytes of the spool that are spoken for
	flight  int64 // bytes that running fetches have still to bring
	pace    pace
	images  []*Opened
}

// blob is a blob on its way. Prefetch.mu guards it.
type blob struct {
	info  types.BlobInfo
	from  *registrySource
	uses  int  // still to come
	want  bool // someone waits for it
	state blobState
	file  spoolFile
	n     int64 // bytes of file that may be read
	done  bool  // n is all
	err   error // why it does not go on
	held  int64
	left  int64 // bytes to come
	pins  int
}

type blobState int

const (
	waiting blobState = iota
	spooled           // through file
	direct            // each reader has a connection of its own
)

type spoolFile interface {
	io.ReaderAt
	io.Closer
}

// Prefetch begins to fetch all layers that pulls of images into this store, in this order, will read: those from
// registries that are neither in the store nor written by a pull before. PullOpened then reads them while they
// arrive. What is written does not depend on it. Images from files and other stores are left as they are. The
// caller calls Close when it is done with pulling, before it closes the images.
//
// With an offline cache a layer that is missing in it is ErrNotCached at once.
func (s *Store) Prefetch(ctx context.Context, images []*Opened, o PrefetchOptions) (*Prefetch, error) {
	if o.Parallel == 0 {
		o.Parallel = DefaultParallel
	}
	if o.Parallel < 0 || o.SpoolLimit < 0 {
		return nil, fmt.Errorf("%d blobs at a time, %d bytes ahead: neither may be negative", o.Parallel, o.SpoolLimit)
	}
	if o.TempDir == "" {
		o.TempDir = s.o.TempDir
	}
	p := &Prefetch{blobs: map[digest.Digest]*blob{}}
	p.cond.L = &p.mu
	p.ctx, p.cancel = context.WithCancel(ctx)
	have := map[string]bool{}
	for _, i := range images {
		reg := i.registry()
		if reg != nil && o.SpoolLimit == 0 && i.o.Cache != nil && i.o.Cache.MaxSize() > 0 {
			o.SpoolLimit = i.o.Cache.MaxSize()
		}
		for n := range i.p.specs {
			spec := &i.p.specs[n]
			if have[spec.id] || s.byLayer[spec.id] != nil {
				continue
			}
			have[spec.id] = true
			if reg == nil {
				continue
			}
			if b := p.blobs[spec.blob]; b != nil {
				b.uses++
				continue
			}
			b := &blob{info: i.p.layers[n], from: reg, uses: 1}
			p.blobs[spec.blob] = b
			p.queue = append(p.queue, b)
		}
	}
	if o.SpoolLimit == 0 {
		o.SpoolLimit = DefaultSpoolLimit
	}
	p.o, p.pace = o, newPace(o.Parallel)
	if err := p.pin(); err != nil {
		p.Close()
		return nil, err
	}
	p.images = slices.Clone(images)
	for _, i := range images {
		i.prefetch = p
	}
	stop := context.AfterFunc(p.ctx, p.changed)
	p.work.Go(func() {
		defer stop()
		p.dispatch()
	})
	p.work.Go(p.keepPace)
	return p, nil
}

// pin keeps what the cache has from being pruned before it is read, and says what an offline one lacks.
func (p *Prefetch) pin() error {
	for _, b := range p.queue {
		cache := b.cache()
		if cache == nil {
			if b.from.o.Offline {
				return b.from.missing("layer " + b.info.Digest.String())
			}
			continue
		}
		if err := cache.Pin(b.info.Digest); err != nil {
			return err
		}
		b.pins++
		if b.from.o.Offline && !cache.Has(b.info.Digest) {
			return b.from.missing("layer " + b.info.Digest.String())
		}
	}
	return nil
}

// cache is the cache that holds or is to hold a blob; nil if none is.
func (b *blob) cache() *blobcache.Cache {
	if b.info.Digest.Algorithm() != digest.SHA256 {
		return nil
	}
	return b.from.o.Cache
}

// Close ends what is still being fetched, waits for that, and takes the spool away. It may be called more than
// once.
func (p *Prefetch) Close() error {
	p.cancel()
	p.work.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.blobs {
		p.release(b)
	}
	for _, i := range p.images {
		if i.prefetch == p {
			i.prefetch = nil
		}
	}
	p.images = nil
	return nil
}

// changed wakes everyone who waits.
func (p *Prefetch) changed() {
	p.mu.Lock()
	p.cond.Broadcast()
	p.mu.Unlock()
}

// release lets go of a blob's file, room and pins. p.mu must be held, and no one may be fetching it.
func (p *Prefetch) release(b *blob) {
	if b.file != nil {
		b.file.Close()
		b.file = nil
	}
	p.held -= b.held
	b.held = 0
	for ; b.pins > 0; b.pins-- {
		if err := b.cache().Unpin(b.info.Digest); err != nil {
			b.from.o.Log.Debugf("unpinning %s: %v", b.info.Digest, err)
		}
	}
	p.cond.Broadcast()
}

// dispatch begins the blobs one after the other, as there is room for them.
func (p *Prefetch) dispatch() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.ctx.Err() == nil {
		if len(p.queue) == 0 {
			p.cond.Wait()
			continue
		}
		// One that is waited for comes first, else the order is that of their use.
		at := max(0, slices.IndexFunc(p.queue, func(b *blob) bool { return b.want }))
		b := p.queue[at]
		need := b.need()
		room := need >= 0 && p.held+need <= p.o.SpoolLimit
		switch {
		case room && p.running < p.o.Parallel && (p.running < p.pace.width || p.flight < paceSmall):
			b.state, b.held, b.left = spooled, need, max(b.info.Size, 0)
			if c := b.cache(); c != nil && c.Has(b.info.Digest) {
				b.left = 0
			}
			p.held += need
			p.flight += b.left
			p.running++
			p.work.Go(func() { p.fetch(b) })
		case !room && b.want:
			b.state = direct
		default:
			p.cond.Wait()
			continue
		}
		p.queue = slices.Delete(p.queue, at, at+1)
		p.cond.Broadcast()
	}
}

func (p *Prefetch) keepPace() {
	t := time.NewTicker(paceTick)
	defer t.Stop()
	for {
		select {
		case <-p.ctx.Done():
			return
		case <-t.C:
		}
		p.mu.Lock()
		if p.pace.tick(p.running) {
			p.cond.Broadcast()
		}
		p.mu.Unlock()
	}
}

// need is how much room in the spool a blob takes; -1 if that is unknown.
func (b *blob) need() int64 {
	if c := b.cache(); c != nil && (c.MaxSize() == 0 || c.Has(b.info.Digest)) {
		return 0
	}
	return b.info.Size
}

// fetch brings one blob into the cache or the spool.
func (p *Prefetch) fetch(b *blob) {
	var err error
	if b.cache() != nil {
		err = p.fetchCached(b)
	} else {
		err = p.fetchSpooled(b)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.running--
	p.flight -= b.left
	b.left = 0
	b.done, b.err = true, err
	if b.uses == 0 {
		p.release(b)
	}
	p.cond.Broadcast()
}

func (p *Prefetch) fetchSpooled(b *blob) error {
	f, err := os.CreateTemp(p.o.TempDir, "storeseed-")
	if err != nil {
		return err
	}
	os.Remove(f.Name())
	p.appear(b, f, 0)
	return p.copy(b, f, 0, true)
}

// fetchCached waits for the blob in the cache, or brings it there.
func (p *Prefetch) fetchCached(b *blob) error {
	cache := b.cache()
	for {
		f, size, err := cache.Open(p.ctx, b.info.Digest)
		if err == nil {
			p.appear(b, f, size)
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if b.from.o.Offline {
			return b.from.missing("layer " + b.info.Digest.String())
		}
		w, err := cache.Create(p.ctx, b.info.Digest, b.info.Size)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		// What a killed process left may not be what was fetched, so no one reads it before all is checked.
		old := w.Offset() > 0
		if !old {
			p.appear(b, w, 0)
		}
		err = p.copy(b, w, w.Offset(), !old)
		if err == nil {
			err = w.Commit()
		}
		if errors.Is(err, blobcache.ErrDigest) {
			err = fmt.Errorf("%w: %w", ErrDigestMismatch, err)
		}
		if !old {
			return err
		}
		if err == nil {
			p.appear(b, w, w.Offset())
			return nil
		}
		if !errors.Is(err, ErrDigestMismatch) {
			w.Close()
			return err
		}
		b.from.o.Log.Warnf("what the cache had of %s was damaged; it is fetched anew", b.info.Digest)
		if err := w.Discard(); err != nil {
			return err
		}
	}
}

// appear lets readers at a blob's file.
func (p *Prefetch) appear(b *blob, f spoolFile, n int64) {
	p.mu.Lock()
	b.file, b.n = f, n
	p.cond.Broadcast()
	p.mu.Unlock()
}

// copy fetches a blob from an offset to its end, and if show is set lets readers follow.
func (p *Prefetch) copy(b *blob, w io.Writer, off int64, show bool) error {
	in := newBlobStream(p.ctx, b.from, b.info, off)
	defer in.Close()
	buf := make([]byte, 256<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return fmt.Errorf("keeping blob %s: %w", b.info.Digest, err)
			}
			p.mu.Lock()
			p.pace.bytes += int64(n)
			b.left -= int64(n)
			p.flight -= int64(n)
			p.cond.Broadcast()
			if show {
				b.n += int64(n)
			}
			p.mu.Unlock()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// open gives a reader of a blob, once it has begun to come.
func (p *Prefetch) open(ctx context.Context, from *registrySource, info types.BlobInfo) (io.ReadCloser, int64, error) {
	stop := context.AfterFunc(ctx, p.changed)
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.blobs[info.Digest]
	if b == nil || b.uses == 0 {
		// A pull that was to write this layer has failed, or pulls come in another order.
		b = &blob{info: info, from: from, uses: 1}
		p.blobs[info.Digest] = b
		p.queue = append(p.queue, b)
	}
	b.want = true
	p.cond.Broadcast()
	for b.state == waiting && ctx.Err() == nil && p.ctx.Err() == nil {
		p.pace.starved = true
		p.cond.Wait()
	}
	b.want = false
	for _, c := range []context.Context{ctx, p.ctx} {
		if c.Err() != nil {
			stop()
			return nil, 0, context.Cause(c)
		}
	}
	r := &blobReading{p: p, b: b, ctx: ctx, stop: stop}
	if b.state == direct {
		r.direct = newBlobStream(ctx, b.from, b.info, 0)
	}
	return r, b.info.Size, nil
}

// blobReading is one reading of a blob from its start.
type blobReading struct {
	p      *Prefetch
	b      *blob
	ctx    context.Context
	stop   func() bool
	off    int64
	direct *blobStream
	closed bool
}

func (r *blobReading) Read(out []byte) (int, error) {
	if r.direct != nil {
		return r.direct.Read(out)
	}
	r.p.mu.Lock()
	for r.off >= r.b.n && !r.b.done && r.ctx.Err() == nil {
		r.p.pace.starved = true
		r.p.cond.Wait()
	}
	n, err, f := r.b.n-r.off, r.b.err, r.b.file
	r.p.mu.Unlock()
	switch {
	case r.ctx.Err() != nil:
		return 0, context.Cause(r.ctx)
	case n > 0:
		got, err := f.ReadAt(out[:min(int64(len(out)), n)], r.off)
		r.off += int64(got)
		if got > 0 {
			err = nil
		} else if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return got, err
	case err != nil:
		return 0, err
	}
	return 0, io.EOF
}

func (r *blobReading) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.stop()
	if r.direct != nil {
		r.direct.Close()
	}
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.b.uses--
	if r.b.uses == 0 && (r.b.done || r.b.state == direct) {
		r.p.release(r.b)
	}
	return nil
}
