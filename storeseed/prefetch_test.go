package storeseed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// fault is what becomes of one request for a blob: cut after so many bytes, or another answer.
type fault struct {
	cut    int64 // bytes before the connection breaks; -1 for none
	status int   // instead of an answer; 0 for none
	after  string
	wrong  bool // a byte of it is changed
	hang   time.Duration
}

// badRegistry is a registry for any repository, whose answers for blobs can be made to go wrong.
type badRegistry struct {
	*httptest.Server
	mu       sync.Mutex
	blobs    map[digest.Digest][]byte
	mimes    map[digest.Digest]string
	tags     map[string]digest.Digest
	faults   map[digest.Digest][]fault // used up one after the other
	noRange  bool
	rate     int64         // bytes a second for all blobs together; 0 is no bound
	connRate int64         // the same for each connection
	delay    time.Duration // before each blob
	requests []string
	sent     map[digest.Digest]int64
	active   int
	most     int // blobs at the same time
	next     time.Time
}

func newBadRegistry(t testing.TB) *badRegistry {
	r := &badRegistry{blobs: map[digest.Digest][]byte{}, mimes: map[digest.Digest]string{}, tags: map[string]digest.Digest{},
		faults: map[digest.Digest][]fault{}, sent: map[digest.Digest]int64{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *badRegistry) host() string { return strings.TrimPrefix(r.URL, "http://") }

// push gives the first image, or list, a tag "repository:tag".
func (r *badRegistry) push(tag string, ims ...*testImage) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, im := range ims {
		maps.Copy(r.blobs, im.blobs)
		r.mimes[im.manifest] = im.mime
	}
	r.tags[tag] = ims[0].manifest
	return "docker://" + r.host() + "/" + tag
}

func (r *badRegistry) fail(d digest.Digest, f ...fault) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.faults[d] = f
}

// count is how often paths with a part were asked for since the last reset.
func (r *badRegistry) count(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, q := range r.requests {
		if strings.Contains(q, part) {
			n++
		}
	}
	return n
}

func (r *badRegistry) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests, r.sent, r.most = nil, map[digest.Digest]int64{}, 0
}

func (r *badRegistry) serve(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, q.Method+" "+q.URL.Path)
	p := strings.Split(strings.TrimPrefix(q.URL.Path, "/v2/"), "/")
	if len(p) < 3 {
		r.mu.Unlock()
		return
	}
	id, kind := p[len(p)-1], p[len(p)-2]
	d := digest.Digest(id)
	if t, ok := r.tags[strings.Join(p[:len(p)-2], "/")+":"+id]; ok && kind == "manifests" {
		d = t
	}
	data, ok := r.blobs[d]
	f := fault{cut: -1}
	if kind == "blobs" && len(r.faults[d]) > 0 {
		f, r.faults[d] = r.faults[d][0], r.faults[d][1:]
	}
	mime, noRange, delay := r.mimes[d], r.noRange, r.delay
	r.mu.Unlock()
	switch {
	case !ok:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"errors":[{"code":"`+map[string]string{"blobs": "BLOB", "manifests": "MANIFEST"}[kind]+`_UNKNOWN"}]}`)
		return
	case f.status != 0:
		if f.after != "" {
			w.Header().Set("Retry-After", f.after)
		}
		w.WriteHeader(f.status)
		return
	}
	if mime != "" {
		w.Header().Set("Content-Type", mime)
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	if kind != "blobs" {
		w.Write(data)
		return
	}
	if data[0] != '{' {
		r.mu.Lock()
		r.active++
		r.most = max(r.most, r.active)
		r.mu.Unlock()
	}
	time.Sleep(delay)
	if f.wrong {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	if from, ok := strings.CutPrefix(q.Header.Get("Range"), "bytes="); ok && !noRange {
		off, err := strconv.ParseInt(strings.TrimSuffix(from, "-"), 10, 64)
		if err != nil || off >= int64(len(data)) {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(data)-1, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(int64(len(data))-off))
		w.WriteHeader(http.StatusPartialContent)
		data = data[off:]
	} else {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	}
	if f.cut >= 0 {
		data = data[:min(int64(len(data)), f.cut)]
	}
	r.send(w, q, d, data, data[0] != '{')
	if f.hang > 0 {
		w.(http.Flusher).Flush()
		select {
		case <-time.After(f.hang):
		case <-q.Context().Done():
		}
	}
	if f.cut >= 0 {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func (r *badRegistry) send(w io.Writer, q *http.Request, d digest.Digest, data []byte, counts bool) {
	defer func() {
		if counts {
			r.mu.Lock()
			r.active--
			r.mu.Unlock()
		}
	}()
	start, size := time.Now(), len(data)
	for len(data) > 0 {
		n := min(len(data), 64<<10)
		r.mu.Lock()
		wait := time.Duration(0)
		if r.connRate > 0 {
			wait = time.Until(start.Add(time.Duration(size-len(data)) * time.Second / time.Duration(r.connRate)))
		}
		if r.rate > 0 {
			now := time.Now()
			// As much as buffers on the way would hold.
			if early := now.Add(-250 * time.Millisecond); r.next.Before(early) {
				r.next = early
			}
			wait = r.next.Sub(now)
			r.next = r.next.Add(time.Duration(n) * time.Second / time.Duration(r.rate))
		}
		r.sent[d] += int64(n)
		if n == len(data) && counts {
			// The client may have all, and ask for the next one, before this function returns.
			r.active--
			counts = false
		}
		r.mu.Unlock()
		if wait > 0 {
			time.Sleep(wait)
		}
		if _, err := w.Write(data[:n]); err != nil || q.Context().Err() != nil {
			return
		}
		data = data[n:]
	}
}

// noise is data that does not compress.
func noise(r *rand.Rand, n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// ahead pulls refs into a new store, layers fetched ahead.
type ahead struct {
	PrefetchOptions
	edit  func(*PullOptions)
	cache *blobcache.Cache
}

func (a ahead) pull(t testing.TB, refs ...string) (*puller, []Result, error) {
	t.Helper()
	p := newPuller(t)
	res, err := a.into(p, refs...)
	return p, res, err
}

func (a ahead) into(p *puller, refs ...string) ([]Result, error) {
	ctx := context.Background()
	l := logrus.New()
	l.SetOutput(&p.log)
	l.SetLevel(logrus.DebugLevel)
	var opts []PullOptions
	for _, ref := range refs {
		r, names, err := ParseReference(p.sys, ref)
		if err != nil {
			return nil, err
		}
		o := PullOptions{Source: Source{Ref: r, Names: names, System: p.sys}, Platform: Platform{"linux", "amd64", ""}, RetryDelay: time.Millisecond, Retries: 2, Cache: a.cache, Log: l}
		if a.edit != nil {
			a.edit(&o)
		}
		opts = append(opts, o)
	}
	images, err := OpenAll(ctx, opts, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, i := range images {
			i.Close()
		}
	}()
	f, err := p.s.Prefetch(ctx, images, a.PrefetchOptions)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Result
	for _, i := range images {
		res, err := p.s.PullOpened(ctx, i)
		if err != nil {
			return out, err
		}
		out = append(out, res)
	}
	return out, nil
}

func openCache(t testing.TB, dir string, size int64) *blobcache.Cache {
	t.Helper()
	c, err := blobcache.Open(blobcache.Options{Dir: dir, MaxSize: size, Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// randomImages are images that share layers, in the same and in other places.
func randomImages(t testing.TB, r *rand.Rand) []*testImage {
	var pool [][]byte
	for i := range 12 {
		pool = append(pool, layerTar(t, fileE(fmt.Sprintf("f%d", i), noise(r, 1+r.IntN(300_000)))))
	}
	var out []*testImage
	for range 8 {
		n := 1 + r.IntN(5)
		var layers [][]byte
		for _, at := range r.Perm(len(pool))[:n] {
			layers = append(layers, pool[at])
		}
		if k := r.IntN(3); k == 0 && len(out) > 0 {
			layers = append(slices.Clone(out[len(out)-1].tars), layers...)
		}
		out = append(out, buildImage(t, imageSpec{compress: []string{"gzip", "zstd", "none"}[r.IntN(3)], cmd: []string{noise(r, 2)}}, layers...))
	}
	return out
}

// TestPrefetchRandom: what is written is the same however layers are fetched, and each blob is fetched once.
func TestPrefetchRandom(t *testing.T) {
	seed := randomSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	reg := newBadRegistry(t)
	var refs []string
	all := map[digest.Digest]int64{}
	var total, largest int64
	for i, im := range randomImages(t, r) {
		refs = append(refs, reg.push(fmt.Sprintf("x%d:1", i), im))
		for _, d := range im.layers {
			all[d] = int64(len(im.blobs[d]))
			largest = max(largest, all[d])
		}
	}
	for _, n := range all {
		total += n
	}
	one := newPuller(t)
	for _, ref := range refs {
		one.pull(ref)
	}
	one.commit()
	want := one.fs.dump()
	for _, tc := range []struct {
		name     string
		parallel int
		limit    int64
		cache    int64 // -1 for none
	}{
		{"one at a time", 1, 0, -1}, {"default", 0, 0, -1}, {"many", 20, 0, -1}, {"small spool", 3, largest + 1, -1}, {"no spool", 6, 1, -1},
		{"cache", 4, 0, 0}, {"small cache", 4, 0, total / 2}, {"tiny cache", 4, 0, 1000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			reg.reset()
			tmp := t.TempDir()
			a := ahead{PrefetchOptions: PrefetchOptions{Parallel: tc.parallel, SpoolLimit: tc.limit, TempDir: tmp}}
			if tc.cache >= 0 {
				a.cache = openCache(t, t.TempDir(), tc.cache)
			}
			p, res, err := a.pull(t, refs...)
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			if len(res) != len(refs) {
				t.Fatalf("%d results", len(res))
			}
			p.commit()
			if p.fs.dump() != want {
				t.Errorf("seed %d: other bytes were written", seed)
			}
			if list, _ := os.ReadDir(tmp); len(list) > 0 {
				t.Errorf("seed %d: %v is left", seed, list)
			}
			if m := max(tc.parallel, 1); tc.parallel > 0 && reg.most > m {
				t.Errorf("seed %d: %d blobs at a time", seed, reg.most)
			}
			if tc.limit != 1 && tc.cache != 1000 {
				for d, n := range all {
					if got := reg.count("GET /v2/") - reg.count("/manifests/"); reg.sent[d] > n && tc.limit == 0 && tc.cache <= 0 {
						t.Errorf("seed %d: %d of %d bytes of %s were sent, %d requests", seed, reg.sent[d], n, d, got)
					}
				}
			}
			if tc.cache > 0 {
				a.cache.Close()
				if n, err := a.cache.Size(); err != nil || n > tc.cache {
					t.Errorf("seed %d: the cache has %d bytes, not at most %d, %v", seed, n, tc.cache, err)
				}
			}
			// Layers that are there are not asked for.
			reg.reset()
			p.reopen()
			a.cache = nil
			if _, err := a.into(p, refs...); err != nil {
				t.Fatal(err)
			}
			if n := len(reg.sent) - len(refs); n > 0 {
				t.Errorf("seed %d: %d blobs more than the configs were fetched again", seed, n)
			}
		})
	}
}

func TestPrefetchParallel(t *testing.T) {
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	reg := newBadRegistry(t)
	reg.delay = 100 * time.Millisecond
	var refs []string
	for i := range 4 {
		refs = append(refs, reg.push(fmt.Sprintf("x%d:1", i), buildImage(t, imageSpec{}, layerTar(t, fileE("a", noise(r, 5000))), layerTar(t, fileE("b", noise(r, 5000))))))
	}
	_, _, err := ahead{PrefetchOptions: PrefetchOptions{Parallel: 3}, edit: func(o *PullOptions) { o.Retries = 0 }}.pull(t, refs...)
	if err != nil || reg.most < 2 || reg.most > 3 {
		t.Errorf("%d blobs at a time, %v", reg.most, err)
	}
}

func TestFaults(t *testing.T) {
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	im := buildImage(t, imageSpec{compress: "none"}, layerTar(t, fileE("base", noise(r, 3<<20))), layerTar(t, fileE("top", noise(r, 100_000))))
	base := im.layers[0]
	size := int64(len(im.blobs[base]))
	const no = -1
	cut := func(n int64) fault { return fault{cut: n} }
	for _, tc := range []struct {
		name    string
		faults  []fault
		noRange bool
		ok      bool
		is      error
		most    int64 // bytes of the blob that may be sent; 0 for no bound
		asked   int   // times; 0 for any number
	}{
		{name: "cut, gone on with", faults: []fault{cut(2 << 20)}, ok: true, most: size + 1<<20},
		// The library gives up when the second connection breaks at once, or the registry does not answer.
		{name: "cut twice", faults: []fault{cut(2 << 20), cut(100_000)}, ok: true, most: size + 1<<20},
		{name: "cut, then no answer", faults: []fault{cut(2 << 20), {status: 503}, {status: 500}}, ok: true, most: size + 1<<20},
		{name: "cut, no ranges", faults: []fault{cut(2 << 20), cut(no), cut(no)}, noRange: true, ok: true},
		{name: "cut for good", faults: slices.Repeat([]fault{cut(10_000)}, 20)},
		{name: "500", faults: []fault{{status: 500}, {status: 502}}, ok: true, asked: 3},
		{name: "500 for good", faults: slices.Repeat([]fault{{status: 500}}, 9), asked: 3},
		{name: "too many requests", faults: []fault{{status: 429, after: "1"}}, ok: true, asked: 2},
		{name: "not found", faults: []fault{{status: 404}}, asked: 1},
		{name: "forbidden", faults: []fault{{status: 403}}, asked: 1},
		{name: "unauthorized", faults: []fault{{status: 401}}, asked: 1},
		{name: "wrong", faults: []fault{{cut: no, wrong: true}}, is: ErrDigestMismatch, asked: 1},
	} {
		for _, cached := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/cache=%v", tc.name, cached), func(t *testing.T) {
				t.Parallel()
				reg := newBadRegistry(t)
				ref := reg.push("x:1", im)
				reg.noRange = tc.noRange
				reg.fail(base, tc.faults...)
				a := ahead{PrefetchOptions: PrefetchOptions{TempDir: t.TempDir()}}
				if cached {
					a.cache = openCache(t, t.TempDir(), 0)
				}
				p, _, err := a.pull(t, ref)
				if (err == nil) != tc.ok || (tc.is != nil && !errors.Is(err, tc.is)) {
					t.Fatalf("got %v", err)
				}
				if err != nil && !strings.Contains(err.Error(), base.String()) {
					t.Errorf("the blob is not named: %v", err)
				}
				if tc.most > 0 && reg.sent[base] > tc.most {
					t.Errorf("%d bytes were sent, more than %d", reg.sent[base], tc.most)
				}
				if n := reg.count("/blobs/" + base.String()); tc.asked > 0 && n != tc.asked {
					t.Errorf("%d requests instead of %d", n, tc.asked)
				}
				if n := reg.count("/blobs/" + im.layers[1].String()); tc.ok && n != 1 {
					t.Errorf("the other layer was asked for %d times", n)
				}
				if list, _ := os.ReadDir(a.TempDir); len(list) > 0 {
					t.Errorf("%v is left", list)
				}
				if tc.ok {
					p.commit()
					return
				}
				if cached && a.cache.Has(base) {
					t.Error("a blob that was not fetched is in the cache")
				}
				// Once the registry has come to its senses all is well, in the same cache too.
				reg.fail(base)
				if p, _, err = a.pull(t, ref); err != nil {
					t.Fatal(err)
				}
				p.commit()
			})
		}
	}
}

// TestFaultsRandom: whatever goes wrong on the way, and stops to, nothing else is written.
func TestFaultsRandom(t *testing.T) {
	seed := randomSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	reg := newBadRegistry(t)
	var refs []string
	ims := randomImages(t, r)
	for i, im := range ims {
		refs = append(refs, reg.push(fmt.Sprintf("x%d:1", i), im))
	}
	clean, _, err := ahead{}.pull(t, refs...)
	if err != nil {
		t.Fatal(err)
	}
	clean.commit()
	want := clean.fs.dump()
	for n := range 3 {
		reg.noRange = n == 1
		for _, im := range ims {
			for _, d := range im.layers {
				var f []fault
				for range r.IntN(3) {
					if r.IntN(4) == 0 {
						f = append(f, fault{cut: r.Int64N(int64(len(im.blobs[d])) + 1)})
					} else {
						f = append(f, fault{status: 500 + r.IntN(5)})
					}
				}
				reg.fail(d, f...)
			}
		}
		a := ahead{PrefetchOptions: PrefetchOptions{Parallel: 1 + r.IntN(8), TempDir: t.TempDir()}, edit: func(o *PullOptions) { o.Retries = 3 }}
		if n > 0 {
			a.cache = openCache(t, t.TempDir(), int64(r.IntN(2_000_000)))
		}
		p, _, err := a.pull(t, refs...)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		p.commit()
		if p.fs.dump() != want {
			t.Errorf("seed %d: other bytes were written", seed)
		}
	}
}

// TestKilled kills pulls that share a cache at any moment. What they had fetched is used by the next.
func TestKilled(t *testing.T) {
	seed := randomSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	reg := newBadRegistry(t)
	var layers [][]byte
	for i := range 6 {
		layers = append(layers, layerTar(t, fileE(fmt.Sprint("f", i), noise(r, 4<<20))))
	}
	im := buildImage(t, imageSpec{compress: "none"}, layers...)
	ref := reg.push("x:1", im)
	reg.rate = 16 << 20
	dir := t.TempDir()
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "STORESEED_TEST_PULL="+ref, "STORESEED_TEST_CACHE="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	whole := start()
	for range 6 {
		cmd := start()
		time.Sleep(time.Duration(100+r.IntN(300)) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	if err := whole.Wait(); err != nil {
		t.Errorf("seed %d: the one that was not killed: %v", seed, err)
	}
	var sent, size int64
	for _, d := range im.layers {
		sent += reg.sent[d]
		size += int64(len(im.blobs[d]))
	}
	// What a killed one had asked for may be on its way still, in buffers.
	t.Logf("%d bytes were sent for %d", sent, size)
	reg.reset()
	p, _, err := ahead{cache: openCache(t, dir, 0), edit: func(o *PullOptions) { o.Offline = true }}.pull(t, ref)
	if err != nil || len(reg.requests) > 0 {
		t.Fatalf("seed %d: %v, requests %v", seed, err, reg.requests)
	}
	p.commit()
	if list, _ := os.ReadDir(dir + "/nodebake/partial"); len(list) > 0 {
		t.Errorf("seed %d: %v is left", seed, list)
	}
}

func TestStall(t *testing.T) {
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	im := buildImage(t, imageSpec{compress: "none"}, layerTar(t, fileE("f", noise(r, 2<<20))))
	reg := newBadRegistry(t)
	ref := reg.push("x:1", im)
	reg.fail(im.layers[0], fault{cut: 1 << 20, hang: time.Minute})
	p := newPuller(t)
	pr, names, err := ParseReference(p.sys, ref)
	if err != nil {
		t.Fatal(err)
	}
	i, err := Open(context.Background(), PullOptions{Source: Source{Ref: pr, Names: names, System: p.sys}, Platform: Platform{"linux", "amd64", ""}, Retries: 1, RetryDelay: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	s := newBlobStream(context.Background(), i.registry(), i.p.layers[0], 0)
	s.stall = 200 * time.Millisecond
	defer s.Close()
	got, err := io.ReadAll(s)
	if err != nil || digest.FromBytes(got) != im.layers[0] {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if n := reg.sent[im.layers[0]]; n > 2<<20+300_000 {
		t.Errorf("%d bytes were sent", n)
	}
}

// TestCancel ends a pull in the middle; no goroutine, file or connection is left.
func TestCancel(t *testing.T) {
	seed := randomSeed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	reg := newBadRegistry(t)
	var refs []string
	for i := range 4 {
		refs = append(refs, reg.push(fmt.Sprintf("x%d:1", i), buildImage(t, imageSpec{compress: "none"}, layerTar(t, fileE("a", noise(r, 1<<20))), layerTar(t, fileE("b", noise(r, 1<<20))))))
	}
	reg.rate = 4 << 20
	before := runtime.NumGoroutine()
	for n := range 12 {
		p := newPuller(t)
		a := ahead{PrefetchOptions: PrefetchOptions{TempDir: t.TempDir()}}
		if n%2 == 0 {
			a.cache = openCache(t, t.TempDir(), 0)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var opts []PullOptions
		for _, ref := range refs {
			pr, names, _ := ParseReference(p.sys, ref)
			opts = append(opts, PullOptions{Source: Source{Ref: pr, Names: names, System: p.sys}, Platform: Platform{"linux", "amd64", ""}, Cache: a.cache, Retries: 3})
		}
		time.AfterFunc(time.Duration(20+r.IntN(300))*time.Millisecond, cancel)
		images, err := OpenAll(ctx, opts, 2)
		if err == nil {
			var f *Prefetch
			if f, err = p.s.Prefetch(ctx, images, a.PrefetchOptions); err == nil {
				for _, i := range images {
					if _, err = p.s.PullOpened(ctx, i); err != nil {
						break
					}
				}
				f.Close()
			}
			for _, i := range images {
				i.Close()
			}
		}
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("seed %d: %v", seed, err)
		}
		if list, _ := os.ReadDir(a.TempDir); len(list) > 0 {
			t.Errorf("seed %d: %v is left", seed, list)
		}
		if err := p.s.Commit(context.Background()); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	reg.CloseClientConnections()
	after := 0
	for range 100 {
		if after = runtime.NumGoroutine(); after <= before+2 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Errorf("seed %d: %d goroutines became %d\n%s", seed, before, after, buf[:runtime.Stack(buf, true)])
}

func TestCache(t *testing.T) {
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	amd := buildImage(t, imageSpec{}, layerTar(t, fileE("a", noise(r, 50_000))), layerTar(t, fileE("b", noise(r, 50_000))))
	arm := buildImage(t, imageSpec{arch: "arm64"}, layerTar(t, fileE("a", "arm")))
	list := indexOf(t, amd, arm)
	plain := buildImage(t, imageSpec{docker: true}, layerTar(t, fileE("c", noise(r, 50_000))))
	reg := newBadRegistry(t)
	dir := t.TempDir()
	refs := []string{reg.push("list:1", list, amd, arm), reg.push("plain:1", plain), "docker://" + reg.host() + "/list@" + list.manifest.String()}
	reg.push("list:x", amd)
	a := ahead{cache: openCache(t, dir, 0)}
	pull := func(refs ...string) (string, []Result, error) {
		t.Helper()
		reg.reset()
		// As another process would.
		a.cache = openCache(t, dir, 0)
		p, res, err := a.pull(t, refs...)
		if err == nil {
			p.commit()
		}
		return p.fs.dump(), res, err
	}
	want, first, err := pull(refs...)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range slices.Concat(amd.layers, plain.layers, []digest.Digest{plain.config}) {
		if n := reg.count("/blobs/" + d.String()); n != 1 {
			t.Errorf("%s was asked for %d times", d, n)
		}
	}
	offline := func(o *PullOptions) { o.Offline = true }
	for _, edit := range []func(*PullOptions){nil, offline} {
		a.edit = edit
		got, res, err := pull(refs...)
		if err != nil || len(reg.requests) > 0 {
			t.Fatalf("the second time: %v, requests %v", err, reg.requests)
		}
		if got != want || res[0].ListDigest != first[0].ListDigest || res[0].ManifestDigest != amd.manifest {
			t.Error("from the cache comes another image")
		}
	}
	t.Run("offline", func(t *testing.T) {
		a.edit = offline
		for _, tc := range []struct{ ref, what string }{
			{"docker://" + reg.host() + "/other:1", "the manifest of " + reg.host() + "/other:1 is not in the cache"},
			{"docker://" + reg.host() + "/list@" + digest.FromString("x").String(), "the manifest " + digest.FromString("x").String()},
			{"docker://" + reg.host() + "/list:1", "the config " + amd.config.String()},
			{"docker://" + reg.host() + "/plain:1", "layer " + plain.layers[0].String() + " of " + reg.host() + "/plain:1 is not in the cache"},
		} {
			gone := map[string]digest.Digest{"the config": amd.config, "layer ": plain.layers[0]}
			for k, d := range gone {
				if strings.HasPrefix(tc.what, k) {
					file := filepath.Join(dir, "blobs/sha256", d.Encoded())
					data, _ := os.ReadFile(file)
					os.Remove(file)
					defer os.WriteFile(file, data, 0o644)
				}
			}
			if _, _, err := pull(tc.ref); !errors.Is(err, ErrNotCached) || !strings.Contains(err.Error(), tc.what) || len(reg.requests) > 0 {
				t.Errorf("%s: %v, requests %v", tc.ref, err, reg.requests)
			}
		}
		a.cache = nil
		if _, _, err := (ahead{edit: offline}).pull(t, refs[1]); !errors.Is(err, ErrNotCached) {
			t.Error(err)
		}
		if _, _, err := (ahead{edit: func(o *PullOptions) { o.Offline, o.Refresh = true, true }}).pull(t, refs[1]); err == nil {
			t.Error("offline and refresh go together")
		}
	})
	a.edit = nil
	t.Run("damaged", func(t *testing.T) {
		for _, d := range []digest.Digest{amd.layers[1], amd.config, amd.manifest, list.manifest} {
			file := filepath.Join(dir, "blobs/sha256", d.Encoded())
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data[len(data)/2] ^= 4
			os.WriteFile(file, data, 0o644)
			got, _, err := pull(refs...)
			if err != nil || got != want {
				t.Errorf("%s: %v", d, err)
			}
			if n := reg.count("/blobs/"+d.String()) + reg.count("/manifests/"+d.String()); n == 0 {
				t.Errorf("%s was not fetched again", d)
			}
			if now, _ := os.ReadFile(file); digest.FromBytes(now) != d {
				t.Errorf("%s was not replaced", d)
			}
		}
	})
	t.Run("left by the dead", func(t *testing.T) {
		d := amd.layers[0]
		data := amd.blobs[d]
		for _, tc := range []struct {
			part []byte
			most int64
		}{{data[:30_000], int64(len(data)) - 30_000}, {make([]byte, 30_000), 2 * int64(len(data))}, {make([]byte, 300_000), int64(len(data))}} {
			os.Remove(filepath.Join(dir, "blobs/sha256", d.Encoded()))
			writeFile(t, filepath.Join(dir, "nodebake/partial", d.Encoded()), tc.part)
			if got, _, err := pull(refs...); err != nil || got != want || reg.sent[d] > tc.most {
				t.Errorf("%v, %d bytes were sent", err, reg.sent[d])
			}
		}
	})
	t.Run("refresh", func(t *testing.T) {
		next := buildImage(t, imageSpec{}, layerTar(t, fileE("c", "next")))
		reg.push("plain:1", next)
		if _, res, err := pull(refs[1]); err != nil || res[0].ManifestDigest != plain.manifest {
			t.Errorf("%v %v", res, err)
		}
		a.edit = func(o *PullOptions) { o.Refresh = true }
		if _, res, err := pull(refs[1]); err != nil || res[0].ManifestDigest != next.manifest {
			t.Errorf("%v %v", res, err)
		}
		a.edit = offline
		if _, res, err := pull(refs[1]); err != nil || res[0].ManifestDigest != next.manifest {
			t.Errorf("%v %v", res, err)
		}
		a.edit = nil
	})
	t.Run("what is refused is asked for again", func(t *testing.T) {
		reg.push("list:1", amd)
		a.edit = func(o *PullOptions) { o.Platform = Platform{"linux", "s390x", ""} }
		if _, _, err := pull(refs[0]); !errors.Is(err, ErrPlatform) || !strings.Contains(err.Error(), "the image is for linux/amd64") {
			t.Error(err)
		}
		s390 := buildImage(t, imageSpec{arch: "s390x"}, layerTar(t, fileE("a", "s390x")))
		reg.push("list:1", s390)
		if _, res, err := pull(refs[0]); err != nil || res[0].ManifestDigest != s390.manifest {
			t.Error(err)
		}
		a.edit = nil
	})
	t.Run("blocked", func(t *testing.T) {
		p := newPuller(t)
		writeFile(t, p.sys.SystemRegistriesConfPath, []byte("[[registry]]\nprefix = \""+reg.host()+"\"\nblocked = true\n"))
		if _, err := a.into(p, refs[2]); err == nil || !strings.Contains(err.Error(), "blocked") {
			t.Error(err)
		}
	})
}
