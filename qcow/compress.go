package qcow

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// flushCompressed compresses the buffered clusters on all cores and writes them in guest order.
func (w *Writer) flushCompressed(order []int64) error {
	type result struct {
		done  chan struct{}
		space *[]byte // what blob is in
		blob  []byte
		zero  bool
		err   error
	}
	for _, c := range order {
		if b := w.buf[c]; b.lo > 0 || b.hi < w.cs {
			if err := w.fill(c, b); err != nil {
				return err
			}
		}
	}
	results := make([]result, len(order))
	bufs := make([][]byte, len(order))
	for i, c := range order {
		results[i].done = make(chan struct{})
		bufs[i] = w.buf[c].data
	}
	var next atomic.Int64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(order)) {
		wg.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i >= len(order) {
					return
				}
				r := &results[i]
				if !stop.Load() {
					if r.zero = IsZero(bufs[i]); !r.zero {
						r.space = clusterPool.Get().(*[]byte)
						r.blob, r.err = w.enc.compress((*r.space)[:0], bufs[i])
						if cap(r.blob) > cap(*r.space) {
							*r.space = r.blob
						}
					}
				}
				close(r.done)
			}
		})
	}
	var err error
	for i, c := range order {
		r := &results[i]
		<-r.done
		if err = r.err; err == nil {
			err = w.putBlob(c, bufs[i], r.blob, r.zero)
		}
		if err != nil {
			stop.Store(true)
			break
		}
		if r.space != nil {
			clusterPool.Put(r.space)
			r.space, r.blob = nil, nil
		}
	}
	wg.Wait()
	return err
}

var clusterPool = sync.Pool{New: func() any { return new([]byte) }}

// writeBlobs writes the chunk p of guest data at off, whose whole clusters are compressed in blobs; Copy's workers have done that.
func (w *Writer) writeBlobs(off int64, p []byte, blobs []blob) error {
	if w.err != nil {
		return w.err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), w.cs-off&(w.cs-1))
		c := off >> w.cb
		if n < w.cs {
			if _, err := w.WriteAt(p[:n], off); err != nil {
				return err
			}
		} else {
			if b := w.buf[c]; b != nil {
				w.free = append(w.free, b.data)
				delete(w.buf, c)
			}
			if err := w.putBlob(c, p[:n], blobs[0].data, blobs[0].zero); err != nil {
				return w.fail(err)
			}
			blobs = blobs[1:]
		}
		p, off = p[n:], off+n
	}
	return nil
}

// blob is a cluster in its compressed form; no data means that it does not compress.
type blob struct {
	data []byte
	zero bool
}

// compressAll compresses the whole clusters of the chunk p at off. space holds the blobs and is grown as needed.
func (e *encoder) compressAll(p []byte, off int64, blobs []blob, space []byte) ([]blob, []byte, error) {
	cs := int64(e.limit)
	if cap(space) < len(p)+4096 {
		space = make([]byte, 0, len(p)+4096)
	}
	free := space[:0:cap(space)]
	for in := -off & (cs - 1); in+cs <= int64(len(p)); in += cs {
		data := p[in : in+cs]
		if IsZero(data) {
			blobs = append(blobs, blob{zero: true})
			continue
		}
		b, err := e.compress(free, data)
		if err != nil {
			return nil, space, err
		}
		blobs = append(blobs, blob{data: b})
		if len(b) <= cap(free) {
			free = free[len(b):len(b):cap(free)]
		}
	}
	return blobs, space, nil
}

// putBlob writes a whole cluster in its compressed form blob; nil means that it does not compress.
func (w *Writer) putBlob(c int64, data, blob []byte, zero bool) error {
	e, bm, err := w.entry(c)
	if err != nil {
		return err
	}
	if zero {
		return w.putZero(c, e, bm)
	}
	if blob == nil || w.inPlace(e) {
		return w.putCluster(c, e, bm, data)
	}
	off, err := w.allocBytes(int64(len(blob)))
	if err != nil {
		return err
	}
	if err := w.writeStaged(off, blob); err != nil {
		return err
	}
	if err := w.setEntry(c, compressedEntry(off, len(blob), w.cb), 0); err != nil {
		return err
	}
	return w.drop(e)
}

// allocBytes finds room for n bytes, less than a cluster, behind the last compressed cluster, and adds a reference to each host cluster that
// they touch.
func (w *Writer) allocBytes(n int64) (int64, error) {
	off := w.compOff
	first, last := off>>w.cb, (off+n-1)>>w.cb
	open := off&(w.cs-1) != 0
	if open {
		rc, err := w.refcount(first)
		if err != nil {
			return 0, err
		}
		open = rc < maxRefcount(w.hdr.refcountOrder) && (last == first || w.end == last<<w.cb)
	}
	if open {
		if err := w.updateRefcounts(first, 1, 1); err != nil {
			return 0, err
		}
	}
	if !open || last > first {
		next, err := w.alloc(1)
		if err != nil {
			return 0, err
		}
		if !open {
			off = next
		}
	}
	if off+n > 1<<(62-(w.cb-8)) {
		return 0, unsupportedf("compressed clusters would lie past %d bytes of the file", int64(1)<<(62-(w.cb-8)))
	}
	w.compOff = off + n
	return off, nil
}
