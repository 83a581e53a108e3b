package bare

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/nodebake/nodebake/qcow"
)

// Options say how a disk's contents are written into a file.
type Options struct {
	Kind Kind
	// Level is how hard to compress, in the numbers of the kind's own tool: 1 to 22 for Zstd (usually 3; there are four
	// steps, which begin at 1, 3, 6 and 10), 1 to 9 for Gzip (usually 6); 0 is the usual one. XZ has none.
	Level int
	// Workers is how many goroutines read and compress; 0: as many as there are cores, and 16 at most. Each takes about
	// 30 MiB of memory, and 150 for XZ. The bytes written do not depend on it.
	Workers int
	// Bmap makes a block map as well.
	Bmap bool
	// Progress, if not nil, is called with the bytes of the disk that are done, from one goroutine at a time.
	Progress func(done int64)
}

// Result tells of a file that was written.
type Result struct {
	Size   int64             // bytes of the file
	SHA256 [sha256.Size]byte // sum of the file's bytes
	Bmap   *Bmap             // nil unless asked for
}

// format is a way to write contents. Its parts are made by several goroutines.
type format interface {
	// step is how many bytes of contents a part has: a power of two, and a multiple of rangeStep.
	step() int64
	// start is what the file begins with.
	start() []byte
	// worker makes a function that appends to dst what stands for data, of up to step bytes, and gives a checksum if
	// the format has one. Its result depends on data alone. It is called by one goroutine at a time.
	worker() (func(dst, data []byte) (out []byte, sum uint64, err error), error)
	// add is told of each part, in order: how many bytes of contents, how many in the file, and the checksum.
	add(n, out int64, sum uint64)
	// end is what the file ends with.
	end() []byte
}

func (o Options) format() (format, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	level := o.Level
	if level == 0 {
		level = levels[o.Kind].usual
	}
	switch o.Kind {
	case Zstd:
		return &zstdFormat{level: level}, nil
	case Gzip:
		return &gzipFormat{level: level}, nil
	case XZ:
		return &xzFormat{}, nil
	}
	return plainFormat{}, nil
}

// Compress writes the contents of src to w. What src knows to be a hole is not read (see qcow.Image.Extents and
// qcow.NewFileSource). It ends early with ctx's error, with what w or src return, and with ErrLevel or ErrFormat before
// anything is written. Then w has a file that is not whole, as its readers will say, unless Kind is Plain.
func Compress(ctx context.Context, w io.Writer, src qcow.Source, o Options) (Result, error) {
	f, err := o.format()
	if err != nil {
		return Result{}, err
	}
	var r Result
	if o.Bmap {
		r.Bmap = &Bmap{ImageSize: src.Size()}
	}
	sum := sha256.New()
	write := func(p []byte) error {
		sum.Write(p)
		r.Size += int64(len(p))
		_, err := w.Write(p)
		return err
	}
	if err := write(f.start()); err != nil {
		return Result{}, err
	}
	zeros := zeros{o: o}
	_, plain := f.(plainFormat)
	unit := mapUnit(src.Size())
	p := pass{
		src: src, step: f.step(), workers: o.Workers, progress: o.Progress,
		worker: func() (func(*part) error, error) {
			pack, err := f.worker()
			if err != nil {
				return nil, err
			}
			return func(q *part) (err error) {
				if o.Bmap {
					q.ranges = mapRanges(q.ranges[:0], q.data, q.off, unit)
				}
				if !plain {
					q.out, q.sum, err = pack(q.out, q.data)
				}
				return err
			}, nil
		},
		commit: func(q *part) error {
			out, sum := q.out, q.sum
			switch {
			case q.zero:
				z, err := zeros.of(q.n)
				if err != nil {
					return fmt.Errorf("compressing zeros: %w", err)
				}
				out, sum = z.out, z.sum
			case plain:
				out = q.data
			}
			f.add(q.n, int64(len(out)), sum)
			if o.Bmap {
				r.Bmap.Ranges = append(r.Bmap.Ranges, q.ranges...)
			}
			return write(out)
		},
	}
	if err := p.run(ctx); err != nil {
		return Result{}, err
	}
	if err := write(f.end()); err != nil {
		return Result{}, err
	}
	sum.Sum(r.SHA256[:0])
	return r, nil
}

// Sum is Compress for a plain raw file that is there already: its size and sum, and with o.Bmap its block map, from
// one pass. Kind and Level are not used. Holes are summed without being read.
func Sum(ctx context.Context, src qcow.Source, o Options) (Result, error) {
	o.Kind, o.Level = Plain, 0
	return Compress(ctx, io.Discard, src, o)
}

// zeros are the parts of zeros that contents have, made once, as well as the kind can: as long as a step, and perhaps
// another at the end.
type zeros struct {
	o    Options
	made packed
}

type packed struct {
	n   int64
	out []byte
	sum uint64
}

func (z *zeros) of(n int64) (packed, error) {
	if z.made.n == n {
		return z.made, nil
	}
	z.o.Level = levels[z.o.Kind].max
	f, err := z.o.format()
	if err != nil {
		return packed{}, err
	}
	pack, err := f.worker()
	if err != nil {
		return packed{}, err
	}
	z.made.n = n
	z.made.out, z.made.sum, err = pack(nil, make([]byte, n))
	return z.made, err
}
