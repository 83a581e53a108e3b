package libvirt

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nodebake/nodebake/qcow"
)

// testDisk makes a qcow2 with holes in its file; its guest size is 64 MiB.
func testDisk(t testing.TB, seed uint64) (name string, src qcow.Source) {
	t.Helper()
	dir := t.TempDir()
	raw := filepath.Join(dir, "raw")
	name = filepath.Join(dir, "disk.qcow2")
	f, err := os.Create(raw)
	check(t, err)
	check(t, f.Truncate(64<<20))
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, 700_000)
	for _, off := range []int64{0, 5 << 20, 20<<20 + 4096, 63 << 20} {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		_, err := f.WriteAt(p, off)
		check(t, err)
	}
	check(t, f.Close())
	run(t, "qemu-img", "convert", "-c", "-O", "qcow2", raw, name)
	return name, open2(t, name)
}

func open2(t testing.TB, name string) qcow.Source {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	src, err := qcow.NewFileSource(f)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return src
}

func TestTry(t *testing.T) {
	fmt.Println(time.Now())
	d := startDaemon(t)
	fmt.Println(time.Now())
	d.newPool("images")
	d.hiddenPool("far")
	name, src := testDisk(t, 1)
	for _, pool := range []string{"images", "far"} {
		for _, force := range []bool{false, true} {
			st := time.Now()
			r, err := Upload(context.Background(), d.dest(pool, "boot.qcow2"), src, Options{Format: "qcow2", Capacity: 64 << 20, Force: force})
			fmt.Println(r, err, time.Since(st))
			fmt.Print(d.virsh("vol-info", "boot.qcow2", "--pool", pool))
			fmt.Println(d.volumes(pool))
			out := t.TempDir() + "/got"
			d.virsh("vol-download", "boot.qcow2", out, "--pool", pool)
			run(t, "cmp", out, name)
		}
	}
}
