package bare

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nodebake/nodebake/qcow"
)

// TestClear makes zeros in each way that a device may leave to us. The kernel itself writes them where a device has no
// command for it; a file stands for a device that knows no zeroing at all.
func TestClear(t *testing.T) {
	for _, c := range []struct {
		name            string
		loop            bool
		noPunch, noZero bool
	}{
		{"punch", true, false, false},
		{"zeroout", true, true, false},
		{"written", true, true, true},
		{"a file", false, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := t.TempDir() + "/disk"
			old := bytes.Repeat([]byte{0xa5}, 8<<20)
			check(t, os.WriteFile(path, old, 0o600))
			d := &deviceFile{sector: 512, noPunch: c.noPunch, noZero: c.noZero}
			if c.loop {
				tool(t, "losetup")
				if os.Getuid() != 0 {
					t.Skip("loop devices are for root")
				}
				dev := strings.TrimSpace(string(pipe(t, nil, "losetup", "-f", "--show", path)))
				defer exec.Command("losetup", "-d", dev).Run()
				f, err := openToWrite(dev)
				check(t, err)
				f.noPunch, f.noZero = c.noPunch, c.noZero
				d = f
				if !d.direct {
					t.Error("no direct writes on a loop device")
				}
			} else {
				f, err := os.OpenFile(path, os.O_RDWR, 0)
				check(t, err)
				d.File = f
			}
			const from, n = 1<<20 + 512, 5 << 20
			check(t, d.Clear(from, n))
			check(t, d.Sync())
			got := aligned(8 << 20)
			check(t, readFull(d, got, 0))
			check(t, d.Close())
			if !bytes.Equal(got[:from], old[:from]) || !qcow.IsZero(got[from:from+n]) || !bytes.Equal(got[from+n:], old[from+n:]) {
				t.Error("other bytes than were to be cleared")
			}
			if d.noPunch != c.noPunch || d.noZero != (c.noZero || !c.loop) {
				t.Errorf("another way was taken: %v, %v", d.noPunch, d.noZero)
			}
		})
	}
}
