package storeseed

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"

	digest "github.com/opencontainers/go-digest"
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
