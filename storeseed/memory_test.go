package storeseed

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// countFS takes everything, keeps nothing but the store's own few files, and looks at the heap.
type countFS struct {
	*memFS
	n    int
	at   int
	base uint64
	heap uint64
}

func (c *countFS) Add(h *tar.Header, r io.Reader) error {
	if c.n++; c.n == c.at {
		c.heap = liveHeap()
	}
	return nil
}

func (c *countFS) Stat(name string) (*tar.Header, error) {
	return c.memFS.Stat("missing")
}

func (c *countFS) Replace(h *tar.Header, r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func liveHeap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemory: a layer of very many files costs less than 100 bytes of memory for each.
func TestMemory(t *testing.T) {
	files := 150_000
	if os.Getenv("NODEBAKE_SOAK") != "" {
		files = 2_000_000
	}
	gen := func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for i := range files {
			h := tar.Header{Name: fmt.Sprintf("usr/share/a-rather-long-folder-name-%05d/and-a-file-with-a-long-name-%08d", i/100, i), Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatUSTAR}
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
		}
		return tw.Close()
	}
	h := digest.SHA256.Digester()
	if err := gen(h.Hash()); err != nil {
		t.Fatal(err)
	}
	d := h.Digest()
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(gen(pw)) }()
	c := &countFS{memFS: newMemFS(), at: files}
	s, err := OpenStore(c, Options{Root: "s", TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c.base = liveHeap()
	if _, err := s.writeLayer(context.Background(), &layerSpec{id: layerID("", d), diffID: d, blob: d, blobSize: -1, of: 1}, pr); err != nil {
		t.Fatal(err)
	}
	if c.heap == 0 {
		t.Fatalf("only %d files came", c.n)
	}
	// Buffers do not grow with the layer.
	const fixed = 24 << 20
	used := int64(c.heap) - int64(c.base) - fixed
	t.Logf("%d files: %d bytes of live heap, %.1f a file beyond the buffers", files, int64(c.heap)-int64(c.base), float64(used)/float64(files))
	if used > int64(files)*100 {
		t.Errorf("%d bytes for each file", used/int64(files))
	}
}

// pullInFlight pulls an image in a process of its own, six layers at a time, and prints the process's high water
// mark.
func pullInFlight(ref string) int {
	err := func() error {
		ctx := context.Background()
		dir, err := os.MkdirTemp("", "storeseed-test-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		sys := systemIn(dir)
		r, _, err := ParseReference(sys, ref)
		if err != nil {
			return err
		}
		o := PullOptions{Source: Source{Ref: r, System: sys}, Platform: Platform{"linux", "amd64", ""}, Retries: 3}
		if cache := os.Getenv("STORESEED_TEST_CACHE"); cache != "" {
			if o.Cache, err = blobcache.Open(blobcache.Options{Dir: cache}); err != nil {
				return err
			}
			defer o.Cache.Close()
		}
		i, err := Open(ctx, o)
		if err != nil {
			return err
		}
		defer i.Close()
		s, err := OpenStore(&slowFS{memFS: newMemFS(), rate: 1 << 40}, Options{Root: "s"})
		if err != nil {
			return err
		}
		f, err := s.Prefetch(ctx, []*Opened{i}, PrefetchOptions{})
		if err != nil {
			return err
		}
		defer f.Close()
		f.mu.Lock()
		f.pace.width = DefaultParallel
		f.cond.Broadcast()
		f.mu.Unlock()
		if _, err := s.PullOpened(ctx, i); err != nil {
			return err
		}
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "VmHWM:")
		fmt.Println(strings.Fields(rest)[0])
		return nil
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestMemoryInFlight: six layers on their way do not take a process past 256 MiB, however large they are.
func TestMemoryInFlight(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 0))
	reg := newBadRegistry(t)
	var layers [][]byte
	block := noise(r, 1<<20)
	for i := range 8 {
		layers = append(layers, layerTar(t, fileE(fmt.Sprint("f", i), strings.Repeat(block, 48))))
	}
	ref := reg.push("x:1", buildImage(t, imageSpec{compress: "gzip"}, layers...))
	// So slow that all six are begun before the first is done.
	reg.rate = 200 << 20
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORESEED_TEST_PULL="+ref)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	kib, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d MiB, %d layers at a time", kib>>10, reg.most)
	if kib > 256<<10 || reg.most != DefaultParallel {
		t.Errorf("%d MiB, %d layers at a time", kib>>10, reg.most)
	}
}
