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

const (
	copyChunk      = 1 << 20 // bytes read at a time
	maxCopyWorkers = 16      // each has a chunk or two in memory
)

type extentSource interface {
	Extents(off, length int64) iter.Seq2[Extent, error]
}

type copyJob struct {
	off, n int64
	err    error
	done   chan struct{}
	*copyBuffer
}

type copyBuffer struct {
	buf   []byte
	blobs []blob
	space []byte
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
		workers = min(runtime.GOMAXPROCS(0), maxCopyWorkers)
	}
	chunk, align := int64(copyChunk), int64(1)
	var enc *encoder
	if ordered {
		chunk, align, enc = max(chunk, w.cs), w.cs, w.enc
	}
	// At most workers+4 chunks are under way.
	queue := make(chan *copyJob, workers+2)
	order := make(chan *copyJob, workers+2)
	free := make(chan *copyBuffer, workers+4)
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
					if j.err == nil && enc != nil {
						j.blobs, j.space, j.err = enc.compressAll(j.buf[:j.n], j.off, j.blobs[:0], j.space)
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
		listErr = listChunks(src, chunk, align, func(off, n int64) bool {
			if ctx.Err() != nil {
				return false
			}
			j := &copyJob{off: off, n: n, done: make(chan struct{})}
			select {
			case j.copyBuffer = <-free:
			default:
				j.copyBuffer = &copyBuffer{buf: make([]byte, chunk)}
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
			switch {
			case err != nil:
			case enc != nil:
				err = w.writeBlobs(j.off, j.buf[:j.n], j.blobs)
			case ordered:
				_, err = w.WriteAt(j.buf[:j.n], j.off)
			}
			if err != nil {
				cancel(err)
			} else if o.Progress != nil {
				o.Progress(j.off + j.n)
			}
		}
		select {
		case free <- j.copyBuffer:
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

// listChunks calls f with the ranges of src that may hold data, in order, none crossing a multiple of chunk, until f says no. They start and end
// at multiples of align, but for the end of src.
func listChunks(src Source, chunk, align int64, f func(off, n int64) bool) error {
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
		if start := e.Start &^ (align - 1); start > to {
			if !each(from, to) {
				return nil
			}
			from = start
		}
		to = min((e.Start+e.Length+align-1)&^(align-1), src.Size())
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
		if IsZero(p[:n]) {
			p, off = p[n:], off+int64(n)
			continue
		}
		for n < len(p) {
			m := min(len(p)-n, block)
			if IsZero(p[n : n+m]) {
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
