package libvirt

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket"
)

// recorded is a daemon that, once it is asked something, says what it says, whatever it hears.
type recorded struct {
	net.Conn
	said  io.Reader
	asked chan struct{}
	once  sync.Once
}

func (r *recorded) Read(p []byte) (int, error) {
	<-r.asked
	return r.said.Read(p)
}

func (r *recorded) Write(p []byte) (int, error) {
	r.once.Do(func() { close(r.asked) })
	return len(p), nil
}

func frame(serial int32, kind, status uint32, payload string) string {
	p := make([]byte, 0, headerSize+len(payload))
	for _, v := range []uint32{uint32(headerSize + len(payload)), remoteProgram, protocolVersion, procDownload, kind, uint32(serial), status} {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return string(p) + payload
}

// remoteError is one as a daemon sends it.
func remoteError(code uint32, text string) string {
	p := binary.BigEndian.AppendUint32(nil, code)
	p = binary.BigEndian.AppendUint32(p, 18)
	p = binary.BigEndian.AppendUint32(p, 1)
	p = binary.BigEndian.AppendUint32(p, uint32(len(text)))
	return string(p) + text + strings.Repeat("\x00", -len(text)&3) + "\x00\x00\x00\x02"
}

// talk downloads 8 bytes from a daemon that says this. rest is what go-libvirt hears.
func talk(said string) (got, rest []byte, err error) {
	c := newConn(link{Conn: &recorded{said: strings.NewReader(said), asked: make(chan struct{})}})
	heard := make(chan []byte)
	go func() {
		p, _ := io.ReadAll(c)
		heard <- p
	}()
	got, err = c.downloadOnce(golibvirt.StorageVol{Pool: "p", Name: "n", Key: "k"}, 0, 8)
	return got, <-heard, err
}

func TestStream(t *testing.T) {
	const first = firstStream + 1
	reply, end := frame(first, socket.Reply, socket.StatusOK, ""), frame(first, socket.Stream, socket.StatusOK, "")
	data := func(p string) string { return frame(first, socket.Stream, socket.StatusContinue, p) }
	own := frame(7, socket.Reply, socket.StatusOK, "go-libvirt's")
	for _, c := range []struct{ name, said, got, rest, err string }{
		{"one message", reply + data("12345678") + data("") + end, "12345678", "", ""},
		{"two, with another's between", reply + data("1234") + own + data("5678") + own + data("") + end, "12345678", own + own, ""},
		{"none", reply + data("") + end, "", "", "0 of 8 bytes"},
		{"too few", reply + data("123") + data("") + end, "", "", "3 of 8 bytes"},
		{"too many", reply + data("1234") + data("56789") + data("") + end, "", "", "more than the 8 bytes"},
		{"refused", frame(first, socket.Reply, socket.StatusError, remoteError(50, "no such volume")), "", "", "no such volume"},
		{"failed on the way", reply + data("1234") + frame(first, socket.Stream, socket.StatusError, remoteError(38, "disk on fire")), "", "", "disk on fire"},
		{"failed at the end", reply + data("12345678") + data("") + frame(first, socket.Stream, socket.StatusError, remoteError(38, "disk on fire")), "", "", "disk on fire"},
		{"broken off", reply + data("1234"), "", "", "EOF"},
		{"broken off in a message", reply + data("1234")[:30], "", "", "unexpected EOF"},
		{"an error that is none", frame(first, socket.Reply, socket.StatusError, "xx"), "", "", "an error of 2 bytes"},
		{"an error that is too long", frame(first, socket.Reply, socket.StatusError, remoteError(1, "abc")[:18]), "", "", "ends past the message"},
		{"an error without a text", frame(first, socket.Reply, socket.StatusError, strings.Repeat("\x00", 12)), "", "", "without a text"},
		{"a long message", reply + "\x02\x00\x00\x05" + data("1")[4:], "", "", "a message of 33554437 bytes"},
		{"another stream's", frame(first+1, socket.Reply, socket.StatusOK, "") + reply + data("12345678") + data("") + end, "12345678", "", ""},
	} {
		got, rest, err := talk(c.said)
		if string(got) != c.got || string(rest) != c.rest {
			t.Errorf("%s: %q, and for go-libvirt %q", c.name, got, rest)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v; want %q", c.name, err, c.err)
		}
		if c.name == "refused" && !isCode(err, golibvirt.ErrNoStorageVol) {
			t.Errorf("%s: the code is lost: %#v", c.name, err)
		}
		if c.name == "a long message" && !errors.Is(err, errProtocol) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// FuzzStream has a daemon say anything: the call ends, and go-libvirt gets whole messages but for the last.
func FuzzStream(f *testing.F) {
	const first = firstStream + 1
	reply := frame(first, socket.Reply, socket.StatusOK, "")
	f.Add(reply + frame(first, socket.Stream, socket.StatusContinue, "12345678") + frame(first, socket.Stream, socket.StatusContinue, "") + frame(first, socket.Stream, socket.StatusOK, ""))
	f.Add(frame(3, socket.Reply, socket.StatusOK, "x") + reply + frame(first, socket.Stream, socket.StatusError, remoteError(38, "disk on fire")))
	f.Add("\x00\x00\x00\x1b" + reply)
	f.Add("\x7f\xff\xff\xff" + reply)
	f.Fuzz(func(t *testing.T, said string) {
		got, rest, err := talk(said)
		if err == nil && len(got) != 8 {
			t.Fatalf("%d bytes", len(got))
		}
		for len(rest) >= headerSize {
			n := binary.BigEndian.Uint32(rest)
			if n < headerSize || n > maxMessage+4 {
				t.Fatalf("a message of %d bytes", n)
			}
			rest = rest[min(int(n), len(rest)):]
		}
	})
}
