package libvirt

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket"
)

// The remote protocol (libvirt's virnetprotocol.x and remote_protocol.x). All integers are big-endian.
const (
	headerSize = 28       // length, program, version, procedure, type, serial, status: 4 bytes each
	maxMessage = 32 << 20 // VIR_NET_MESSAGE_MAX, length field left out
	maxPayload = 262120   // what every daemon takes as a stream's data in one message (VIR_NET_MESSAGE_LEGACY_PAYLOAD_MAX)

	remoteProgram   = 0x20008086
	protocolVersion = 1
	streamHole      = 6 // VIR_NET_STREAM_HOLE, beside the types that package socket has

	procUpload   = 208
	procDownload = 209

	flagSparse = 1 // VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM

	// Streams count their calls from here. go-libvirt counts from 1.
	firstStream = 1 << 30
)

var errProtocol = errors.New("not libvirt's protocol")

// conn is a connection that go-libvirt and at most one stream share. go-libvirt's own streams know no holes, cannot be
// ended early, and take a message's length as the daemon says it; all else is left to it.
//
// Read is go-libvirt's. What it reads are whole messages of a length that can be, without those of the stream.
// Streams are for the one goroutine that also calls go-libvirt, so that writes do not mix.
type conn struct {
	link
	r       *bufio.Reader
	pending []byte // of a header that Read still owes
	rest    int    // bytes of a message that follow it

	serial int32 // of the last stream
	mu     sync.Mutex
	stream *stream // the open one
	failed error   // why Read ended
	dead   chan struct{}
}

func newConn(l link) *conn {
	return &conn{link: l, r: bufio.NewReaderSize(l.Conn, 64<<10), serial: firstStream, dead: make(chan struct{})}
}

type message struct {
	kind, status uint32
	payload      []byte
}

func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	failed := c.failed
	c.mu.Unlock()
	if failed != nil {
		return 0, io.EOF
	}
	n, err := c.read(p)
	if err != nil {
		c.mu.Lock()
		c.failed = err
		close(c.dead)
		c.mu.Unlock()
		// go-libvirt tries errors again that call themselves temporary, though nothing follows them.
		err = io.EOF
	}
	return n, err
}

func (c *conn) read(p []byte) (int, error) {
	for len(c.pending) == 0 && c.rest == 0 {
		head := make([]byte, headerSize)
		if _, err := io.ReadFull(c.r, head); err != nil {
			return 0, err
		}
		size := binary.BigEndian.Uint32(head)
		if size < headerSize || size > maxMessage+4 {
			return 0, fmt.Errorf("%w: a message of %d bytes", errProtocol, size)
		}
		rest := int(size - headerSize)
		if serial := int32(binary.BigEndian.Uint32(head[20:])); binary.BigEndian.Uint32(head[4:]) == remoteProgram && serial > firstStream {
			m := message{binary.BigEndian.Uint32(head[16:]), binary.BigEndian.Uint32(head[24:]), make([]byte, rest)}
			if _, err := io.ReadFull(c.r, m.payload); err != nil {
				return 0, err
			}
			c.mu.Lock()
			s := c.stream
			c.mu.Unlock()
			if s != nil && s.serial == serial {
				select {
				case s.in <- m:
				case <-s.closed:
				}
			}
			continue
		}
		c.pending, c.rest = head, rest
	}
	if len(c.pending) > 0 {
		n := copy(p, c.pending)
		c.pending = c.pending[n:]
		return n, nil
	}
	n, err := c.r.Read(p[:min(len(p), c.rest)])
	c.rest -= n
	return n, err
}

// stream is a transfer of a volume's bytes.
type stream struct {
	c      *conn
	proc   uint32
	serial int32
	in     chan message
	closed chan struct{}
}

// openStream calls a procedure that moves the bytes of a volume from off on.
func (c *conn) openStream(proc uint32, v golibvirt.StorageVol, off, length int64, flags uint32) (*stream, error) {
	c.serial++
	s := &stream{c: c, proc: proc, serial: c.serial, in: make(chan message, 4), closed: make(chan struct{})}
	c.mu.Lock()
	c.stream = s
	c.mu.Unlock()
	call := make([]byte, headerSize, 256)
	for _, t := range []string{v.Pool, v.Name, v.Key} {
		call = binary.BigEndian.AppendUint32(call, uint32(len(t)))
		call = append(call, t...)
		call = append(call, make([]byte, -len(t)&3)...)
	}
	call = binary.BigEndian.AppendUint64(call, uint64(off))
	call = binary.BigEndian.AppendUint64(call, uint64(length))
	call = binary.BigEndian.AppendUint32(call, flags)
	err := s.send(socket.Call, socket.StatusOK, call)
	if err == nil {
		_, err = s.receive()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// send sends a message whose payload begins at headerSize in p.
func (s *stream) send(kind, status uint32, p []byte) error {
	for i, v := range []uint32{uint32(len(p)), remoteProgram, protocolVersion, s.proc, kind, uint32(s.serial), status} {
		binary.BigEndian.PutUint32(p[4*i:], v)
	}
	_, err := s.c.Write(p)
	return err
}

// skip sends that n bytes are a hole.
func (s *stream) skip(n int64) error {
	p := make([]byte, headerSize, headerSize+12)
	p = binary.BigEndian.AppendUint64(p, uint64(n))
	return s.send(streamHole, socket.StatusContinue, binary.BigEndian.AppendUint32(p, 0))
}

// refused is what the daemon has against the stream, as far as it said so.
func (s *stream) refused() error {
	select {
	case m := <-s.in:
		_, err := s.check(m)
		if err == nil {
			err = fmt.Errorf("%w: an answer to no question", errProtocol)
		}
		return err
	default:
		return nil
	}
}

func (s *stream) receive() (message, error) {
	select {
	case m := <-s.in:
		return s.check(m)
	case <-s.c.dead:
	}
	// What came before the end counts.
	select {
	case m := <-s.in:
		return s.check(m)
	default:
		return message{}, s.c.failed
	}
}

func (s *stream) check(m message) (message, error) {
	if m.status == socket.StatusError {
		return m, decodeError(m.payload)
	}
	return m, nil
}

// finish ends the stream and waits until the daemon has dealt with all of it.
func (s *stream) finish() error {
	if err := s.send(socket.Stream, socket.StatusOK, make([]byte, headerSize)); err != nil {
		return err
	}
	for {
		m, err := s.receive()
		if err != nil || m.status == socket.StatusOK {
			return err
		}
	}
}

func (s *stream) close() {
	close(s.closed)
	s.c.mu.Lock()
	s.c.stream = nil
	s.c.mu.Unlock()
}

// download reads n bytes of a volume. About one time in a thousand libvirt 9.0 ends a short stream before its first
// byte, so it is asked again.
func (c *conn) download(v golibvirt.StorageVol, off int64, n int) (p []byte, err error) {
	for range 5 {
		if p, err = c.downloadOnce(v, off, n); !errors.Is(err, errShort) {
			break
		}
	}
	return p, err
}

var errShort = fmt.Errorf("the stream ended early: %w", io.ErrUnexpectedEOF)

func (c *conn) downloadOnce(v golibvirt.StorageVol, off int64, n int) ([]byte, error) {
	s, err := c.openStream(procDownload, v, off, int64(n), 0)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var got bytes.Buffer
	for {
		m, err := s.receive()
		if err != nil {
			return nil, err
		}
		if m.status != socket.StatusContinue || len(m.payload) == 0 {
			break
		}
		if got.Len()+len(m.payload) > n {
			return nil, fmt.Errorf("%w: more than the %d bytes that were asked for", errProtocol, n)
		}
		got.Write(m.payload)
	}
	if err := s.finish(); err != nil {
		return nil, err
	}
	if got.Len() < n {
		return nil, fmt.Errorf("%d of %d bytes at %d: %w", got.Len(), n, off, errShort)
	}
	return got.Bytes(), nil
}

// decodeError reads a remote_error: code and domain (4 bytes each), then a string that may be absent (4 bytes that are
// 0 or 1), whose length is in 4 bytes, and what is of no use here.
func decodeError(p []byte) error {
	if len(p) < 12 {
		return fmt.Errorf("%w: an error of %d bytes", errProtocol, len(p))
	}
	e := golibvirt.Error{Code: binary.BigEndian.Uint32(p), Message: "an error without a text"}
	if binary.BigEndian.Uint32(p[8:]) == 1 {
		if len(p) < 16 || uint64(binary.BigEndian.Uint32(p[12:])) > uint64(len(p)-16) {
			return fmt.Errorf("%w: an error whose text ends past the message (%d bytes)", errProtocol, len(p))
		}
		e.Message = string(p[16:][:binary.BigEndian.Uint32(p[12:])])
	}
	return e
}

var _ net.Conn = (*conn)(nil)
