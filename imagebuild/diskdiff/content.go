package diskdiff

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"sync"
)

const (
	// maxText is the size in bytes up to which the lines of a text are compared.
	maxText = 64 << 10
	// block is how much is read of each side at a time. It is a multiple of qcow2's usual cluster, so that most
	// clusters are inflated once.
	block = 512 << 10
)

// job is what a worker does for a finding.
type job struct {
	name    [2]string
	compare bool
	hash    bool
	lines   bool
	// done is closed when the rest is filled in; nil where there is no job.
	done chan struct{}
	read int64
	sum  [2]string
}

func (w *walker) work() {
	buf := [2][]byte{make([]byte, block), make([]byte, block)}
	for {
		select {
		case f, ok := <-w.jobs:
			if !ok {
				return
			}
			if err := w.do(f, buf); err != nil {
				f.Error = err.Error()
				if f.Kind == Changed && len(f.Differs) == 0 {
					f.Kind = Unreadable
				}
			}
			close(f.done)
		case <-w.ctx.Done():
			return
		}
	}
}

func (w *walker) do(f *finding, buf [2][]byte) error {
	if f.compare && w.known(f) {
		f.read = f.a.Size
		return nil
	}
	var r [2]*io.SectionReader
	for side, h := range []*tar.Header{f.a, f.b} {
		if !isFile(h) {
			continue
		}
		var err error
		if r[side], err = w.tree(side).Open(f.name[side]); err != nil {
			return sideError(side, err)
		}
	}
	if f.compare {
		at, side, err := firstDifference(w.ctx, r[0], r[1], f.a.Size, buf)
		if err != nil {
			return sideError(side, err)
		}
		if at < 0 {
			f.read = f.a.Size
			w.linked.add(f)
			return nil
		}
		f.read = min(at-at%block+block, f.a.Size)
		f.Differs = append(f.Differs, "content")
	}
	for side := range r {
		if r[side] == nil || !f.hash {
			continue
		}
		h := sha256.New()
		if _, err := io.CopyBuffer(h, cancelled{w.ctx, r[side]}, buf[side]); err != nil {
			return sideError(side, err)
		}
		f.sum[side] = hex.EncodeToString(h.Sum(nil))
	}
	if f.lines {
		var text [2][]byte
		for side := range r {
			if r[side] == nil {
				continue
			}
			text[side] = make([]byte, r[side].Size())
			if _, err := io.ReadFull(io.NewSectionReader(r[side], 0, r[side].Size()), text[side]); err != nil {
				return sideError(side, err)
			}
		}
		f.Lines = Text(Lines(text[0], text[1]))
	}
	return nil
}

// linked remembers pairs of files that are the same, so that their other hard links need not be read: each file of an
// ostree deployment is in the repository too.
type linked struct {
	mu     sync.Mutex
	bySize map[int64][][2]string
	n      int
}

const (
	// minLinked is the size in bytes from which reading a file costs more than asking whether it was read.
	minLinked = 16 << 10
	// maxLinked bounds the pairs that are remembered, and maxSame those of one size.
	maxLinked = 64 << 10
	maxSame   = 16
)

func (l *linked) add(f *finding) {
	if f.a.Size < minLinked {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n >= maxLinked || len(l.bySize[f.a.Size]) >= maxSame {
		return
	}
	if l.bySize == nil {
		l.bySize = map[int64][][2]string{}
	}
	l.bySize[f.a.Size] = append(l.bySize[f.a.Size], f.name)
	l.n++
}

// known says whether both files were found to be the same under other names.
func (w *walker) known(f *finding) bool {
	if f.a.Size < minLinked {
		return false
	}
	w.linked.mu.Lock()
	pairs := w.linked.bySize[f.a.Size]
	w.linked.mu.Unlock()
	for _, p := range pairs {
		a, errA := w.t.A.SameFile(p[0], f.name[0])
		b, errB := w.t.B.SameFile(p[1], f.name[1])
		if a && b && errA == nil && errB == nil {
			return true
		}
	}
	return false
}

type cancelled struct {
	ctx context.Context
	r   io.Reader
}

func (o cancelled) Read(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.r.Read(p)
}

type sided struct {
	side int
	err  error
}

func sideError(side int, err error) error { return sided{side, err} }

func (s sided) Error() string { return sides[s.side] + ": " + s.err.Error() }
func (s sided) Unwrap() error { return s.err }

// firstDifference reads size bytes of both and says at which one they begin to differ, -1 if they do not. An error comes
// with the side that it is of.
func firstDifference(ctx context.Context, a, b io.ReaderAt, size int64, buf [2][]byte) (at int64, side int, err error) {
	for off := int64(0); off < size; off += block {
		if err := ctx.Err(); err != nil {
			return 0, 0, err
		}
		n := min(block, size-off)
		for side, r := range []io.ReaderAt{a, b} {
			if err := readFull(r, buf[side][:n], off); err != nil {
				return 0, side, err
			}
		}
		x, y := buf[0][:n], buf[1][:n]
		if bytes.Equal(x, y) {
			continue
		}
		for i := range x {
			if x[i] != y[i] {
				return off + int64(i), 0, nil
			}
		}
	}
	return -1, 0, nil
}

// readFull fills p from off on.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
