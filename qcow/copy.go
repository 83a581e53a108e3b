package qcow

import (
	"context"
	"io"
	"iter"
	"runtime"
	"sync"
)

// CopyOptions say how Copy works.
type CopyOptions struct {
	// Progress, if not nil, is called with the guest bytes done so far, from one goroutine at a time.
	Progress func(done int64)
	Workers  int // goroutines that read and decompress; 0: as many as there are cores
}

const copyChunk = 1 << 20 // bytes read at a time

type extentSource interface {
	Extents(off, length int64) iter.Seq2[Extent, error]
}

type copyJob struct {
	off, n int64
	buf    []byte
	err    error
	done   chan struct{}
}

// Copy copies all bytes of src into dst, which must read as zeros before: a Writer just created, or an empty file (whose length is the caller's
// affair). Holes and zeros of src are skipped, and so are zero clusters (for a Writer) or zero blocks of 4 KiB (for anything else). Clusters
// are read and decompressed by several goroutines; a Writer gets them in order, so its file does not depend on their number.
//
// Copy does not flush dst. It ends early with ctx's error.
func Copy(ctx context.Context, dst io.WriterAt, src Source, o CopyOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w, ordered := dst.(*Writer)
	workers := o.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	chunk := int64(copyChunk)
	if ordered {
		chunk = max(chunk, w.cs)
	}
	queue := make(chan *copyJob, 2*workers)
	order := make(chan *copyJob, 2*workers)
	free := make(chan []byte, 4*workers+2)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for j := range queue {
				if ctx.Err() == nil {
					_, j.err = src.ReadAt(j.buf[:j.n], j.off)
					if j.err == io.EOF {
						j.err = nil
					}
					if j.err == nil && !ordered {
						j.err = writeSparse(dst, j.buf[:j.n], j.off)
					}
				}
				close(j.done)
			}
		})
	}
	var listErr error
	wg.Go(func() {
		defer close(order)
		defer close(queue)
		listErr = listChunks(src, chunk, func(off, n int64) bool {
			if ctx.Err() != nil {
				return false
			}
			j := &copyJob{off: off, n: n, done: make(chan struct{})}
			select {
			case j.buf = <-free:
			default:
				j.buf = make([]byte, chunk)
			}
			order <- j
			queue <- j
			return true
		})
	})
	for j := range order {
		<-j.done
		if ctx.Err() == nil {
			err := j.err
			if err == nil && ordered {
				_, err = w.WriteAt(j.buf[:j.n], j.off)
			}
			if err != nil {
				cancel(err)
			} else if o.Progress != nil {
				o.Progress(j.off + j.n)
			}
		}
		select {
		case free <- j.buf:
		default:
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if listErr == nil && o.Progress != nil {
		o.Progress(src.Size())
	}
	return listErr
}

// listChunks calls f with the ranges of src that may hold data, in order, none crossing a multiple of chunk, until f says no.
func listChunks(src Source, chunk int64, f func(off, n int64) bool) error {
	each := func(off, end int64) bool {
		for off < end {
			n := min(end, off&^(chunk-1)+chunk) - off
			if !f(off, n) {
				return false
			}
			off += n
		}
		return true
	}
	if _, ok := src.(holeSource); ok {
		src = OpenRaw(src)
	}
	x, ok := src.(extentSource)
	if !ok {
		each(0, src.Size())
		return nil
	}
	// Data in small pieces (subclusters, small clusters, kinds that alternate) is read in one piece.
	var from, to int64
	for e, err := range x.Extents(0, src.Size()) {
		if err != nil {
			return err
		}
		if e.Kind == Hole || e.Kind == Zero {
			continue
		}
		if e.Start > to {
			if !each(from, to) {
				return nil
			}
			from = e.Start
		}
		to = e.Start + e.Length
		if whole := to &^ (chunk - 1); whole > from {
			if !each(from, whole) {
				return nil
			}
			from = whole
		}
	}
	each(from, to)
	return nil
}

// writeSparse writes p but for its zero blocks.
func writeSparse(dst io.WriterAt, p []byte, off int64) error {
	const block = 4096
	for len(p) > 0 {
		n := min(len(p), block-int(off%block))
		if isZero(p[:n]) {
			p, off = p[n:], off+int64(n)
			continue
		}
		for n < len(p) {
			m := min(len(p)-n, block)
			if isZero(p[n : n+m]) {
				break
			}
			n += m
		}
		if _, err := dst.WriteAt(p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
