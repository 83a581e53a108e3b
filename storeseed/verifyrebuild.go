package storeseed

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/pgzip"
	tarsplit "github.com/vbatts/tar-split/tar/storage"
)

// rebuilt is a layer's tar, put together from its tar-split data and its files as it is read. All of it goes into a
// hash, in order, be it read or skipped: a tar reader skips the contents, so they are copied nowhere.
type rebuilt struct {
	c    *layerCheck
	sum  *hasher
	zip  *pgzip.Reader
	in   *bufio.Reader
	line []byte
	seg  []byte // what is left of a record, and
	mem  []byte // the memory for it

	file interface { // the content that is being skipped; nil: zeros
		ReadAt(p []byte, off int64) (int, error)
	}
	size, left int64
	last       byte

	pos int64
	err error // io.EOF at the end
}

// Read implements io.Reader.
func (r *rebuilt) Read(p []byte) (int, error) {
	if err := r.more(); err != nil {
		return 0, err
	}
	n := 0
	switch {
	case len(r.seg) > 0:
		n = copy(p, r.seg)
		r.seg = r.seg[n:]
	case r.left == 1 && len(p) > 0:
		// Whoever skips a content reads its last byte, to see that it is there.
		p[0], n = r.last, 1
		r.left = 0
	default:
		p = p[:min(int64(len(p)), r.left)]
		if r.file == nil {
			clear(p)
		} else if _, err := r.file.ReadAt(p, r.size-r.left); err != nil && err != io.EOF {
			r.err = err
			return 0, err
		}
		n = len(p)
		r.left -= int64(n)
	}
	r.pos += int64(n)
	return n, nil
}

// Seek skips forward, and no other way; it stops at the end.
func (r *rebuilt) Seek(off int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || off < 0 {
		return 0, errors.ErrUnsupported
	}
	for off > 0 {
		if err := r.more(); err != nil {
			break
		}
		n := min(off, int64(len(r.seg)))
		r.seg = r.seg[n:]
		if n == 0 {
			n = min(off, r.left)
			r.left -= n
		}
		off -= n
		r.pos += n
	}
	return r.pos, nil
}

// drain takes in what is left.
func (r *rebuilt) drain() {
	for r.more() == nil {
		r.seg, r.left = nil, 0
	}
}

// more sees to it that there is something to read.
func (r *rebuilt) more() error {
	for len(r.seg) == 0 && r.left == 0 && r.err == nil {
		if r.err = r.c.v.ctx.Err(); r.err == nil {
			r.err = r.next()
		}
	}
	return r.err
}

// maxRecord bounds one line of tar-split data: a raw header with all its extensions, or a megabyte of
// padding, in base64.
const maxRecord = 16 << 20

func (r *rebuilt) open() error {
	f, err := r.c.v.r.Open(r.c.v.root + "/" + layersDir + "/" + r.c.l.ID + ".tar-split.gz")
	if err != nil {
		return fmt.Errorf("its tar-split data: %s", why(err))
	}
	if r.zip, err = pgzip.NewReaderN(f, 256<<10, 4); err != nil {
		return fmt.Errorf("its tar-split data: %w", err)
	}
	r.in = bufio.NewReaderSize(r.zip, 64<<10)
	return nil
}

func (r *rebuilt) close() {
	if r.zip != nil {
		r.zip.Close()
	}
}

// next takes up the next record.
func (r *rebuilt) next() error {
	if r.in == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	var err error
	r.line, err = readLine(r.in, r.line[:0])
	if err == io.EOF {
		return err
	}
	if err != nil {
		return fmt.Errorf("its tar-split data: %w", err)
	}
	// Nearly all records are written as the packer writes them; the others take longer.
	if raw, ok := segmentOf(r.line, &r.mem); ok {
		r.sum.write(raw)
		r.seg = raw
		return nil
	}
	var e tarsplit.Entry
	if err := json.Unmarshal(r.line, &e); err != nil {
		return fmt.Errorf("its tar-split data: %w", err)
	}
	switch e.Type {
	case tarsplit.SegmentType:
		r.sum.write(e.Payload)
		r.seg = e.Payload
	case tarsplit.FileType:
		if e.Size < 0 {
			return fmt.Errorf("its tar-split data: entry %q has the size %d", e.GetName(), e.Size)
		}
		if e.Size > 0 {
			return r.content(&e)
		}
	default:
		return fmt.Errorf("its tar-split data: a record of the unknown type %d", e.Type)
	}
	return nil
}

var (
	segmentHead = fmt.Appendf(nil, `{"type":%d,"payload":"`, tarsplit.SegmentType)
	segmentTail = []byte(`","position":`)
)

// segmentOf decodes a record of raw bytes, into mem, if it is written as the packer of tar-split writes it.
func segmentOf(line []byte, mem *[]byte) ([]byte, bool) {
	text, ok := bytes.CutPrefix(line, segmentHead)
	if !ok {
		return nil, false
	}
	end := bytes.IndexByte(text, '"')
	if end < 0 {
		return nil, false
	}
	tail, ok := bytes.CutPrefix(text[end:], segmentTail)
	tail = bytes.TrimRight(tail, "\r\n")
	if !ok || len(tail) < 2 || tail[len(tail)-1] != '}' || len(tail) > 12 {
		return nil, false
	}
	for i, d := range tail[:len(tail)-1] {
		if d < '0' || d > '9' || d == '0' && i == 0 && len(tail) > 2 {
			return nil, false
		}
	}
	// encoding/json would pass over line breaks, too, but none can be in a line.
	n := base64.StdEncoding.DecodedLen(end)
	if cap(*mem) < n {
		*mem = make([]byte, n+n/2)
	}
	n, err := base64.StdEncoding.Decode((*mem)[:n], text[:end])
	return (*mem)[:n], err == nil
}

func readLine(br *bufio.Reader, line []byte) ([]byte, error) {
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxRecord {
			return nil, fmt.Errorf("a record of more than %d bytes", maxRecord)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && len(bytes.TrimSpace(line)) > 0 {
			err = nil
		}
		return line, err
	}
}

// content hashes a file's content. One that is missing or has another size is a fault, and stands as zeros, so that
// the rest can be looked at.
func (r *rebuilt) content(e *tarsplit.Entry) error {
	c := r.c
	name, err := cleanName(e.GetName())
	if err != nil {
		return fmt.Errorf("its tar-split data: entry %q: %w", e.GetName(), err)
	}
	r.file, r.size, r.left = nil, e.Size, e.Size
	sr, err := c.v.r.Open(c.path(name))
	bad := ""
	switch {
	case err != nil:
		bad = why(err)
	case sr.Size() != e.Size:
		bad = fmt.Sprintf("it has %d bytes instead of %d", sr.Size(), e.Size)
	}
	sum, off := uint64(0), int64(0)
	for off < e.Size && bad == "" {
		if off > 0 {
			if err := c.v.ctx.Err(); err != nil {
				return err
			}
		}
		p := r.sum.room(e.Size - off)
		if _, err := sr.ReadAt(p, off); err != nil && err != io.EOF {
			bad = fmt.Sprintf("reading it: %v", err)
			break
		}
		sum = crcISO(sum, p)
		r.last = p[len(p)-1]
		off += int64(len(p))
		r.sum.filled(len(p))
	}
	if bad == "" {
		r.file = sr
		var want [8]byte
		binary.BigEndian.PutUint64(want[:], sum)
		if !bytes.Equal(want[:], e.Payload) {
			bad = "its content has changed"
		}
	}
	if bad != "" {
		c.fault(name, "%s", bad)
	}
	for off < e.Size {
		if err := c.v.ctx.Err(); err != nil {
			return err
		}
		p := r.sum.room(e.Size - off)
		clear(p)
		r.last = 0
		off += int64(len(p))
		r.sum.filled(len(p))
	}
	return nil
}

// hasher hashes in a goroutine of its own what one other gives it, in pieces of its own memory.
type hasher struct {
	n    int64
	buf  *hashBuffer // that is being filled
	used int
	full chan hashPiece
	free chan *hashBuffer
	done chan hash.Hash
}

type (
	hashBuffer [256 << 10]byte
	hashPiece  struct {
		b *hashBuffer
		n int
	}
)

var hashBuffers = sync.Pool{New: func() any { return new(hashBuffer) }}

const hashAhead = 3 // buffers of a hasher

func newHasher(h hash.Hash) *hasher {
	s := &hasher{full: make(chan hashPiece, hashAhead), free: make(chan *hashBuffer, hashAhead), done: make(chan hash.Hash, 1)}
	for range hashAhead {
		s.free <- hashBuffers.Get().(*hashBuffer)
	}
	go func() {
		for p := range s.full {
			h.Write(p.b[:p.n])
			s.free <- p.b
		}
		s.done <- h
	}()
	s.buf = <-s.free
	return s
}

// room is memory for up to want bytes, not less than a small read is worth where want is more.
func (s *hasher) room(want int64) []byte {
	if left := len(s.buf) - s.used; left == 0 || int64(left) < want && left < len(s.buf)/8 {
		s.flush()
	}
	return s.buf[s.used:][:min(want, int64(len(s.buf)-s.used))]
}

// filled says that n bytes are in what room gave.
func (s *hasher) filled(n int) {
	s.used += n
	s.n += int64(n)
}

func (s *hasher) write(p []byte) {
	for len(p) > 0 {
		n := copy(s.room(int64(len(p))), p)
		s.filled(n)
		p = p[n:]
	}
}

func (s *hasher) flush() {
	if s.used > 0 {
		s.full <- hashPiece{s.buf, s.used}
		s.buf, s.used = <-s.free, 0
	}
}

// end gives the hash of all that was written. The hasher is of no use afterwards.
func (s *hasher) end() hash.Hash {
	s.flush()
	close(s.full)
	h := <-s.done
	hashBuffers.Put(s.buf)
	for range hashAhead - 1 {
		hashBuffers.Put(<-s.free)
	}
	return h
}
