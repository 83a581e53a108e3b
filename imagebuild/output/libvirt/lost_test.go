package libvirt

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// cutter is a way to a daemon's socket that ends a connection at one of the calls that change something: before the
// daemon hears it, or before the client hears the answer.
type cutter struct {
	testing.TB
	socket, daemon string

	mu    sync.Mutex
	at    int  // which call; the first is 1
	heard bool // by the daemon
	calls int
	cut   bool
	proc  uint32 // of the call where it was cut
}

func newCutter(t testing.TB, d *daemon) *cutter {
	t.Helper()
	c := &cutter{TB: t, socket: filepath.Join(d.dir, "cut"), daemon: d.socket}
	l, err := net.Listen("unix", c.socket)
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(client)
		}
	}()
	return c
}

func (c *cutter) set(at int, heard bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at, c.heard, c.calls, c.cut = at, heard, 0, false
}

func (c *cutter) wasCut() (bool, uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut, c.proc
}

func (c *cutter) serve(client net.Conn) {
	defer client.Close()
	daemon, err := net.Dial("unix", c.daemon)
	if err != nil {
		return
	}
	defer daemon.Close()
	go func() {
		io.Copy(client, daemon)
		client.Close()
	}()
	head := make([]byte, headerSize)
	for {
		if _, err := io.ReadFull(client, head); err != nil {
			return
		}
		p := make([]byte, binary.BigEndian.Uint32(head)-headerSize)
		if _, err := io.ReadFull(client, p); err != nil {
			return
		}
		proc, kind, status := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:]), binary.BigEndian.Uint32(head[24:])
		// Creating, deleting, copying, refreshing, and the beginning and the end of an upload.
		counts := slices.Contains([]uint32{procCreate, procDelete, procCopy, procRefresh, procUpload}, proc) && (kind == 0 || kind == 3 && status == 0)
		c.mu.Lock()
		if counts {
			c.calls++
		}
		now := counts && c.calls == c.at && !c.cut
		if now {
			c.cut, c.proc = true, proc
		}
		heard := c.heard
		c.mu.Unlock()
		if !now || heard {
			if _, err := daemon.Write(append(head[:headerSize:headerSize], p...)); err != nil {
				return
			}
		}
		if now {
			return
		}
	}
}

const (
	procCreate  = 93
	procDelete  = 94
	procCopy    = 125
	procRefresh = 83
)

// TestLostAnswers cuts the connection at each call that changes something. Whatever becomes of the call: the pool has the
// old disk or the new one under the name, or the new one under the name that the error says, and nothing else; and the
// error tells which.
//
// libvirtd 9.0 itself dies of cut connections now and then, of its own heap. Then all is done once more.
func TestLostAnswers(t *testing.T) {
	for try := 1; diesOf(t, lostAnswers); try++ {
		if try == 3 {
			t.Fatal("libvirtd died each time")
		}
		t.Log("libvirtd itself died: once more")
	}
}

var errDied = errors.New("the daemon died")

// diesOf says whether a test found the daemon dead.
func diesOf(t *testing.T, test func(t testing.TB, d *daemon)) (died bool) {
	defer func() {
		switch r := recover(); r {
		case nil:
		case errDied:
			died = true
		default:
			panic(r)
		}
	}()
	d := startDaemon(t)
	m := mortal{t, d.ended}
	test(m, d.in(m))
	return false
}

// mortal is a test whose failures may be those of a daemon that died.
type mortal struct {
	testing.TB
	ended <-chan struct{}
}

func (m mortal) look() {
	select {
	case <-m.ended:
		panic(errDied)
	case <-time.After(300 * time.Millisecond):
	}
}

func (m mortal) Errorf(format string, args ...any) {
	m.Helper()
	m.look()
	m.TB.Errorf(format, args...)
}

func (m mortal) Fatal(args ...any) {
	m.Helper()
	m.look()
	m.TB.Fatal(args...)
}

func (m mortal) Fatalf(format string, args ...any) {
	m.Helper()
	m.look()
	m.TB.Fatalf(format, args...)
}

func lostAnswers(t testing.TB, d *daemon) {
	d.newPool("near")
	d.hiddenPool("far")
	c := newCutter(t, d)
	disk := func(b byte) string {
		p := bytes.Repeat([]byte{b}, 300_000)
		clear(p[100_000:200_000])
		name := filepath.Join(t.TempDir(), "disk")
		check(t, os.WriteFile(name, p, 0o644))
		return name
	}
	oldName, newName := disk('o'), disk('n')
	isSame := func(pool, volume, name string) bool {
		got := filepath.Join(t.TempDir(), "got")
		d.virsh("vol-download", volume, got, "--pool", pool)
		a, err := os.ReadFile(got)
		check(t, err)
		b, err := os.ReadFile(name)
		check(t, err)
		return bytes.Equal(a, b)
	}
	upload := func(socket, pool, name string) error {
		dest := parse(t, "libvirt+qemu:///system?socket="+socket+"&pool="+pool+"&volume=v")
		return ignore(Upload(context.Background(), dest, openDisk(t, name), Options{Format: "raw", Capacity: 300_000, Force: true}))
	}
	ways := map[string]int{}
	for _, pool := range []string{"near", "far"} {
		for _, replace := range []bool{false, true} {
			for _, heard := range []bool{false, true} {
				for at := 1; ; at++ {
					for _, v := range d.volumes(pool) {
						d.virsh("vol-delete", v, "--pool", pool)
					}
					if replace {
						check(t, upload(d.socket, pool, oldName))
					}
					c.set(at, heard)
					err := upload(c.socket, pool, newName)
					cut, proc := c.wasCut()
					where := fmt.Sprintf("%s, replacing %t, cut at call %d (procedure %d), heard %t", pool, replace, at, proc, heard)
					if !cut {
						if err != nil {
							t.Fatalf("%s: %v", where, err)
						}
						break
					}
					left := d.volumes(pool)
					var said *LeftError
					state := ""
					if errors.As(err, &said) {
						state = said.State()
					}
					switch {
					case err == nil:
						t.Errorf("%s: no error", where)
					case len(left) == 0 && !replace && state == "":
						ways["as before: nothing"]++
					case len(left) == 1 && left[0] == "v" && replace && state == "" && isSame(pool, "v", oldName):
						ways["as before: the old one"]++
					case len(left) == 1 && left[0] == "v" && strings.Contains(state, "the new disk is in its place") && isSame(pool, "v", newName):
						ways["the new one"]++
					case len(left) == 1 && left[0] != "v" && replace && strings.Contains(state, "the new disk is the volume "+left[0]) && isSame(pool, left[0], newName):
						ways["the new one by another name"]++
					default:
						t.Errorf("%s: the pool holds %q, and the error is %v", where, left, err)
					}
				}
			}
		}
	}
	t.Log(ways)
	for _, way := range []string{"as before: nothing", "as before: the old one", "the new one", "the new one by another name"} {
		if ways[way] == 0 {
			t.Errorf("it never ended with %s", way)
		}
	}
}
