package bare

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/nodebake/nodebake/qcow"
)

// seeds gives the seed of a random test: NODEBAKE_TEST_SEED, or one by the clock, which is printed.
func seed(t testing.TB) uint64 {
	t.Helper()
	s := uint64(time.Now().UnixNano())
	if v := os.Getenv("NODEBAKE_TEST_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		check(t, err)
		s = n
	}
	t.Logf("NODEBAKE_TEST_SEED=%d", s)
	return s
}

func random(s uint64) *rand.Rand { return rand.New(rand.NewPCG(s, 1)) }

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tool skips a test without a program, or fails it where CI says that nothing may lack.
func tool(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		} else if os.Getenv("CI") == "true" {
			t.Fatal(err)
		} else {
			t.Skip(err)
		}
	}
}

// pipe gives a program its input and returns its output.
func pipe(t testing.TB, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return out.Bytes()
}

// memory is a disk in memory whose extents are known, and read once.
type memory struct {
	data    []byte
	extents []qcow.Extent // where nothing is said there are holes
	read    func(off, n int64) error
}

func (m *memory) Size() int64 { return int64(len(m.data)) }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if m.read != nil {
		if err := m.read(off, int64(len(p))); err != nil {
			return 0, err
		}
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) Extents(off, length int64) iter.Seq2[qcow.Extent, error] {
	return func(yield func(qcow.Extent, error) bool) {
		for _, e := range m.extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// blind is a disk whose holes are not known.
type blind struct{ m *memory }

func (b blind) Size() int64                             { return b.m.Size() }
func (b blind) ReadAt(p []byte, off int64) (int, error) { return b.m.ReadAt(p, off) }

// fillKind fills a range with what disks hold: text, machine code of a kind, noise, or zeros.
func fillKind(r *rand.Rand, p []byte) {
	switch r.IntN(5) {
	case 0:
		for i := range p {
			p[i] = byte(r.Uint32())
		}
	case 1:
		words := make([]string, 50+r.IntN(500))
		for i := range words {
			words[i] = fmt.Sprintf("%x ", r.Uint32()>>r.IntN(28))
		}
		for n := 0; n < len(p); {
			n += copy(p[n:], words[r.IntN(len(words))])
		}
	case 2:
		// Old bytes with changes here and there.
		period := 1 + r.IntN(70000)
		for i := range p {
			if i < period {
				p[i] = byte(r.Uint32() & 0x3f)
			} else if p[i] = p[i-period]; r.IntN(40) == 0 {
				p[i] = byte(r.Uint32())
			}
		}
	case 3:
		b := byte(r.Uint32())
		for i := range p {
			p[i] = b
		}
	}
}

// randomDisk is a sparse disk of up to max bytes, with extents that say of some zeros that they are data.
func randomDisk(r *rand.Rand, max int) *memory {
	size := r.IntN(max)
	switch r.IntN(4) {
	case 0:
		size &^= 1<<20 - 1
	case 1:
		size &^= 511
	}
	m := &memory{data: make([]byte, size)}
	for off := 0; off < size; {
		off += r.IntN(3) * r.IntN(3<<20)
		n := 1 + r.IntN(1<<r.IntN(23))
		if off >= size {
			break
		}
		n = min(n, size-off)
		kind := qcow.Data
		if r.IntN(3) == 0 {
			kind = qcow.Compressed
		}
		fillKind(r, m.data[off:off+n])
		m.extents = append(m.extents, qcow.Extent{Start: int64(off), Length: int64(n), Kind: kind})
		off += n
		if n := min(r.IntN(3)*r.IntN(1<<20), size-off); n > 0 {
			m.extents = append(m.extents, qcow.Extent{Start: int64(off), Length: int64(n), Kind: qcow.Zero})
			off += n
		}
	}
	return m
}

func compress(t testing.TB, src qcow.Source, o Options) ([]byte, Result) {
	t.Helper()
	var b bytes.Buffer
	r, err := Compress(context.Background(), &b, src, o)
	check(t, err)
	return b.Bytes(), r
}
