package qcow

import (
	"container/list"
	"fmt"
	"sync"
)

const (
	maxSlice         = 64 << 10 // tables are read and cached in pieces of at most this many bytes
	tableCacheBytes  = 8 << 20
	decodeCacheBytes = 8 << 20
)

// caches belong to a chain of images as a whole, so that its memory does not grow with its length.
type caches struct {
	tables  lru[tableKey, []byte]
	decoded lru[decodeKey, *decodedCluster]
}

type tableKey struct {
	im  *Image
	off int64
}

type decodeKey struct {
	im   *Image
	desc uint64
}

type decodedCluster struct {
	once sync.Once
	data []byte
	err  error
}

func newCaches() *caches {
	return &caches{
		tables:  lru[tableKey, []byte]{budget: tableCacheBytes},
		decoded: lru[decodeKey, *decodedCluster]{budget: decodeCacheBytes},
	}
}

// lru is a cache bounded by the sum of its items' sizes, safe for concurrent use. Its zero value with a budget is ready.
type lru[K comparable, V any] struct {
	mu     sync.Mutex
	budget int64
	used   int64
	items  map[K]*list.Element
	order  list.List // front: used last
}

type lruItem[K comparable, V any] struct {
	key  K
	val  V
	size int64
}

func (c *lru[K, V]) get(k K) (v V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.items[k]
	if !ok {
		return v, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*lruItem[K, V]).val, true
}

// add returns the item that is in the cache afterwards: v, or what another goroutine added first.
func (c *lru[K, V]) add(k K, v V, size int64) V {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		return e.Value.(*lruItem[K, V]).val
	}
	if c.items == nil {
		c.items = map[K]*list.Element{}
	}
	c.items[k] = c.order.PushFront(&lruItem[K, V]{k, v, size})
	c.used += size
	for c.used > c.budget && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
	return v
}

func (c *lru[K, V]) drop(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.items[k]; ok {
		c.remove(e)
	}
}

func (c *lru[K, V]) remove(e *list.Element) {
	it := c.order.Remove(e).(*lruItem[K, V])
	delete(c.items, it.key)
	c.used -= it.size
}

// readerTables loads slices of L2 tables for a read-only image.
type readerTables struct{ im *Image }

func (t readerTables) load(off, n int64) ([]byte, error) {
	key := tableKey{t.im, off}
	if b, ok := t.im.caches.tables.get(key); ok {
		return b, nil
	}
	b := make([]byte, n)
	m, err := readFull(t.im.src, b, off)
	if err != nil {
		return nil, err
	}
	if int64(m) < n {
		return nil, corruptf("table at offset %#x ends past the file (%d bytes)", off, t.im.fileSize)
	}
	return t.im.caches.tables.add(key, b, n), nil
}

// decoded returns the content of a compressed cluster, from the cache if it is there; concurrent callers decode it once.
func (im *Image) decoded(desc uint64) ([]byte, error) {
	key := decodeKey{im, desc}
	d, ok := im.caches.decoded.get(key)
	if !ok {
		d = im.caches.decoded.add(key, &decodedCluster{}, 1<<im.clusterBits)
	}
	d.once.Do(func() {
		b := make([]byte, 1<<im.clusterBits, 1<<im.clusterBits+zstdSlack)
		if d.err = im.decode(b, desc); d.err == nil {
			d.data = b
		}
	})
	return d.data, d.err
}

// decode decompresses the cluster that desc names into dst, which is one cluster long.
func (im *Image) decode(dst []byte, desc uint64) error {
	off, n := compressedExtent(desc, im.clusterBits)
	if off >= im.fileSize {
		return corruptf("compressed cluster at offset %#x lies past the file (%d bytes)", off, im.fileSize)
	}
	if n > im.fileSize-off {
		n = im.fileSize - off
	}
	bp := blobPool.Get().(*[]byte)
	defer blobPool.Put(bp)
	if int64(cap(*bp)) < n {
		*bp = make([]byte, n)
	}
	blob := (*bp)[:n]
	m, err := readFull(im.src, blob, off)
	if err != nil {
		return fmt.Errorf("reading %d bytes at offset %#x of the image file: %w", n, off, err)
	}
	if err := decompress(im.hdr.compression, dst, blob[:m]); err != nil {
		return corruptf("compressed cluster at offset %#x: %v", off, err)
	}
	return nil
}

var blobPool = sync.Pool{New: func() any { return new([]byte) }}
