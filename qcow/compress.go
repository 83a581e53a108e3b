package qcow

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// flushCompressed compresses the buffered clusters on all cores and writes them in guest order.
func (w *Writer) flushCompressed(order []int64) error {
	type result struct {
		done chan struct{}
		blob []byte
		zero bool
		err  error
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
					if r.zero = isZero(bufs[i]); !r.zero {
						r.blob, r.err = w.enc.compress(nil, bufs[i])
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
		r.blob = nil
	}
	wg.Wait()
	return err
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
