package bare

import (
	"context"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync"

	"github.com/nodebake/nodebake/qcow"
)

// maxWorkers bounds memory on large machines; each has a few parts in memory.
const maxWorkers = 16

// part is a range of the contents on its way through a pass.
type part struct {
	off, n int64 // bytes; off is a multiple of the pass's step
	// zero says that the range is all zeros; data is then undefined.
	zero bool
	data []byte // n bytes

	out    []byte
	ranges []Range
	sum    uint64

	err  error
	done chan struct{}
	buf  *buffers
}

// buffers are what a part needs while it is under way.
type buffers struct{ data, out []byte }

// pass reads a source once, in parts of step bytes.
type pass struct {
	src     qcow.Source
	step    int64
	workers int
	// worker gives the function that a goroutine calls with each part that it has read and that is not all zeros.
	worker func() (func(*part) error, error)
	// commit is called with all parts in order, from one goroutine.
	commit   func(*part) error
	progress func(done int64)
	// alloc makes a buffer for a part; nil: any memory will do.
	alloc func(n int) []byte
}

func workers(n int) int {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return min(n, maxWorkers)
}

func (p *pass) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := workers(p.workers)
	works := make([]func(*part) error, n)
	for i := range works {
		var err error
		if works[i], err = p.worker(); err != nil {
			return err
		}
	}
	if p.alloc == nil {
		p.alloc = func(n int) []byte { return make([]byte, n) }
	}
	// At most n+2 parts that hold memory are under way: the channel of free buffers is full of permits at first.
	free := make(chan *buffers, n+2)
	for range n + 2 {
		free <- nil
	}
	queue := make(chan *part, n+2)
	order := make(chan *part, n+2)
	var wg sync.WaitGroup
	for _, work := range works {
		wg.Go(func() {
			for q := range queue {
				if ctx.Err() == nil {
					q.err = p.read(q)
					if q.err == nil && !q.zero {
						q.err = work(q)
					}
				}
				close(q.done)
			}
		})
	}
	var listErr error
	wg.Go(func() {
		defer close(order)
		defer close(queue)
		for q, err := range list(p.src, p.step) {
			if err != nil {
				listErr = err
				return
			}
			if q.zero {
				select {
				case order <- q:
					continue
				case <-ctx.Done():
					return
				}
			}
			select {
			case q.buf = <-free:
			case <-ctx.Done():
				return
			}
			if q.buf == nil {
				q.buf = &buffers{data: p.alloc(int(p.step))}
			}
			q.data, q.out = q.buf.data[:q.n], q.buf.out[:0]
			q.done = make(chan struct{})
			order <- q
			queue <- q
		}
	})
	for q := range order {
		if q.done != nil {
			<-q.done
		}
		if ctx.Err() == nil {
			err := q.err
			if err == nil {
				err = p.commit(q)
			}
			if err != nil {
				cancel(err)
			} else if p.progress != nil {
				p.progress(q.off + q.n)
			}
		}
		if q.buf != nil {
			if q.out != nil {
				q.buf.out = q.out
			}
			free <- q.buf
		}
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return listErr
}

func (p *pass) read(q *part) error {
	if err := readFull(p.src, q.data, q.off); err != nil {
		return fmt.Errorf("reading the disk at byte %d: %w", q.off, err)
	}
	q.zero = qcow.IsZero(q.data)
	return nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil, err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return err
}

// extentSource is a source that knows its holes.
type extentSource interface {
	Extents(off, length int64) iter.Seq2[qcow.Extent, error]
}

// list gives the parts of a source in order, each starting at a multiple of step. Those in which nothing is allocated
// are zero.
func list(src qcow.Source, step int64) iter.Seq2[*part, error] {
	return func(yield func(*part, error) bool) {
		size := src.Size()
		var off int64
		until := func(end int64, zero bool) bool {
			for off < end {
				n := min(step, size-off)
				if !yield(&part{off: off, n: n, zero: zero}, nil) {
					return false
				}
				off += n
			}
			return true
		}
		x, ok := src.(extentSource)
		if !ok {
			// A file that knows its holes says so to qcow alone.
			x = qcow.OpenRaw(src)
		}
		for e, err := range x.Extents(0, size) {
			if err != nil {
				yield(nil, fmt.Errorf("finding the holes of the disk: %w", err))
				return
			}
			if e.Kind == qcow.Hole || e.Kind == qcow.Zero || e.Length <= 0 {
				continue
			}
			if !until(min(e.Start-e.Start%step, size), true) || !until(min(e.Start+e.Length, size), false) {
				return
			}
		}
		until(size, true)
	}
}
