package libvirt

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nodebake/nodebake/qcow"
)

// guestSize is that of the disks that newDisk makes.
const guestSize = 64 << 20

// newDisk makes a disk of a kind ("raw", "qcow2", "zlib") with data here and there, and opens it.
func newDisk(t testing.TB, kind string, seed uint64) (name string, src qcow.Source) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	check(t, err)
	check(t, f.Truncate(guestSize))
	// Text-like, so that it can be compressed, and never zero for long.
	r := rand.New(rand.NewPCG(seed, 0))
	p := make([]byte, 700_000)
	for _, off := range []int64{0, 5 << 20, 20<<20 + 4096, guestSize - 800_000} {
		for i := range p {
			p[i] = byte('a' + r.IntN(16))
		}
		_, err := f.WriteAt(p, off)
		check(t, err)
	}
	check(t, f.Close())
	switch kind {
	case "qcow2":
		run(t, "qemu-img", "convert", "-O", "qcow2", name, name+".q")
		name += ".q"
	case "zlib":
		run(t, "qemu-img", "convert", "-c", "-O", "qcow2", name, name+".q")
		name += ".q"
	}
	return name, openDisk(t, name)
}

func openDisk(t testing.TB, name string) qcow.Source {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	src, err := qcow.NewFileSource(f)
	check(t, err)
	return src
}

// hooked calls at before each read.
type hooked struct {
	qcow.Source
	at func(off int64) error
}

func (h hooked) ReadAt(p []byte, off int64) (int, error) {
	if err := h.at(off); err != nil {
		return 0, err
	}
	return h.Source.ReadAt(p, off)
}

func allocated(t testing.TB, name string) int64 {
	t.Helper()
	blocks, err := strconv.ParseInt(strings.TrimSpace(run(t, "stat", "-c", "%b", name)), 10, 64)
	check(t, err)
	return blocks * 512
}

// sameVolume has libvirt give the volume's bytes back and compares them with the file's.
func (d *daemon) sameVolume(pool, volume, name string) {
	d.Helper()
	got := filepath.Join(d.TempDir(), "got")
	d.virsh("vol-download", volume, got, "--pool", pool)
	run(d, "cmp", got, name)
}

func refusedBy(t testing.TB, err, target error, words ...string) {
	t.Helper()
	if err == nil || target != nil && !errors.Is(err, target) {
		t.Errorf("%v; want %v %q", err, target, words)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v; want %q", err, w)
		}
	}
	if strings.Count(err.Error(), "\n") > 0 {
		t.Errorf("more than one line: %v", err)
	}
	t.Log(err)
}

func want[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v; want %v", what, got, want)
	}
}

// TestUpload puts disks of all kinds into pools of which this process reaches one and the daemon alone the other, anew and over an old volume.
func TestUpload(t *testing.T) {
	d := startDaemon(t)
	near := d.newPool("near")
	d.hiddenPool("far")
	ctx := context.Background()
	for i, kind := range []string{"zlib", "qcow2", "raw"} {
		name, src := newDisk(t, kind, uint64(i))
		o := Options{Format: "qcow2", Capacity: guestSize}
		if kind == "raw" {
			o.Format = "raw"
		}
		for pool, swap := range map[string]string{"near": "rename", "far": "copy"} {
			t.Run(kind+"-"+pool, func(t *testing.T) {
				d := d.in(t)
				volume := "disk & '" + kind + "'." + o.Format
				dest, is, err := ParseDest("libvirt+" + d.uri() + "&pool=" + pool + "&volume=" + escape(volume))
				if err != nil || !is {
					t.Fatal(is, err)
				}
				check(t, Check(ctx, dest, o))
				var last int64
				o.Progress = func(done int64) {
					if done < last || done > src.Size() {
						t.Errorf("progress from %d to %d of %d", last, done, src.Size())
					}
					last = done
				}
				r, err := Upload(ctx, dest, src, o)
				check(t, err)
				want(t, "progress", last, src.Size())
				want(t, "swap", r.Swap, swap)
				want(t, "size", r.Size, src.Size())
				want(t, "capacity", r.Capacity, guestSize)
				if slack := int64(256 << 10); r.Allocation > allocated(t, name)+slack {
					t.Errorf("%d bytes of the pool, and the source takes %d", r.Allocation, allocated(t, name))
				}
				if pool == "near" {
					run(t, "cmp", name, filepath.Join(near, volume))
					want(t, "path", r.Path, filepath.Join(near, volume))
					if o.Format == "qcow2" {
						run(t, "qemu-img", "check", r.Path)
					}
				}
				d.sameVolume(pool, volume, name)
				text := d.virsh("vol-dumpxml", volume, "--pool", pool)
				for _, w := range []string{"<capacity unit='bytes'>67108864</capacity>", "<format type='" + o.Format + "'/>", fmt.Sprintf("<allocation unit='bytes'>%d</allocation>", r.Allocation)} {
					if !strings.Contains(text, w) {
						t.Errorf("no %s in\n%s", w, text)
					}
				}
				if info := d.virsh("vol-info", volume, "--pool", pool, "--bytes"); !strings.Contains(info, "67108864 bytes") {
					t.Error(info)
				}
				// A second time.
				o.Progress = nil
				refusedBy(t, Check(ctx, dest, o), ErrExists, "--force")
				_, err = Upload(ctx, dest, src, o)
				refusedBy(t, err, ErrExists, "--force")
				d.sameVolume(pool, volume, name)
				o.Force = true
				other, otherSrc := newDisk(t, kind, uint64(i)+100)
				check(t, Check(ctx, dest, o))
				r, err = Upload(ctx, dest, otherSrc, o)
				check(t, err)
				want(t, "swap", r.Swap, swap)
				d.sameVolume(pool, volume, other)
				o.Force = false
			})
		}
	}
	for _, pool := range []string{"near", "far"} {
		if got := d.volumes(pool); len(got) != 3 {
			t.Errorf("%s holds %q", pool, got)
		}
	}
}

// TestUploadSizes are disks smaller than what is sent last, and of sizes that are no multiple of anything.
func TestUploadSizes(t *testing.T) {
	d := startDaemon(t)
	d.newPool("near")
	d.hiddenPool("far")
	seed := uint64(1)
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		check(t, err)
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	sizes := []int64{1, 512, headSize - 1, headSize, headSize + 1, headSize + 513, maxPayload, headSize + maxPayload, 1<<20 + 7, 3 << 20}
	n := 6
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 200
	}
	for range n {
		sizes = append(sizes, 1+r.Int64N(4<<20))
	}
	for i, size := range sizes {
		// Zeros and noise by turns, in pieces of any length, down to a disk that is all zeros.
		p := make([]byte, size)
		for at := 0; at < len(p) && i%5 != 4; {
			n := min(1+r.IntN(1+r.IntN(200_000)), len(p)-at)
			if r.IntN(2) == 0 {
				for j := range n {
					p[at+j] = byte(r.Uint32())
				}
			}
			at += n
		}
		name := filepath.Join(t.TempDir(), "disk")
		check(t, os.WriteFile(name, p, 0o644))
		for _, pool := range []string{"near", "far"} {
			volume := fmt.Sprintf("%d.raw", i)
			if _, err := Upload(context.Background(), d.dest(pool, volume), openDisk(t, name), Options{Format: "raw", Capacity: size}); err != nil {
				t.Errorf("%d bytes to %s: %v", size, pool, err)
				continue
			}
			d.sameVolume(pool, volume, name)
		}
	}
	_, err := Upload(context.Background(), d.dest("near", "none"), qcow.Source(bytes.NewReader(nil)), Options{Format: "raw"})
	refusedBy(t, err, ErrUsage, "empty")
	_, err = Upload(context.Background(), d.dest("near", "none"), qcow.Source(bytes.NewReader(make([]byte, 9))), Options{Format: "vmdk"})
	refusedBy(t, err, ErrUsage, `not "vmdk"`)
}

// TestOwner replaces a volume that belongs to somebody: so does the new one.
func TestOwner(t *testing.T) {
	d := startDaemon(t)
	near := d.newPool("near")
	d.hiddenPool("far")
	_, src := newDisk(t, "qcow2", 1)
	volume := `<volume><name>v</name><capacity>4096</capacity><target><format type='raw'/><permissions><mode>0640</mode><owner>1234</owner><group>2345</group></permissions></target></volume>`
	check(t, os.WriteFile(d.dir+"/v.xml", []byte(volume), 0o644))
	for _, pool := range []string{"near", "far"} {
		d.virsh("vol-create", pool, d.dir+"/v.xml")
		_, err := Upload(context.Background(), d.dest(pool, "v"), src, Options{Format: "qcow2", Force: true})
		check(t, err)
		var v struct {
			P permissions `xml:"target>permissions"`
		}
		check(t, xml.Unmarshal([]byte(d.virsh("vol-dumpxml", "v", "--pool", pool)), &v))
		want(t, pool, v.P, permissions{"0640", "1234", "2345", ""})
	}
	want(t, "file", run(t, "stat", "-c", "%a %u %g", near+"/v"), "640 1234 2345\n")
}

// TestUnseen has a file in the way that libvirt has not seen.
func TestUnseen(t *testing.T) {
	d := startDaemon(t)
	near := d.newPool("near")
	d.hiddenPool("far")
	name, src := newDisk(t, "qcow2", 1)
	check(t, os.WriteFile(near+"/v", []byte("unseen"), 0o600))
	d.inside("echo unseen >/var/lib/libvirt/images/far/v")
	for _, pool := range []string{"near", "far"} {
		_, err := Upload(context.Background(), d.dest(pool, "v"), src, Options{Format: "qcow2"})
		refusedBy(t, err, ErrExists, "volume v in pool "+pool)
		if got := d.volumes(pool); !slices.Equal(got, []string{"v"}) {
			t.Errorf("%s holds %q", pool, got)
		}
	}
	text, err := os.ReadFile(near + "/v")
	check(t, err)
	want(t, "what was there", string(text), "unseen")
	for _, pool := range []string{"near", "far"} {
		_, err := Upload(context.Background(), d.dest(pool, "v"), src, Options{Format: "qcow2", Force: true})
		check(t, err)
		d.sameVolume(pool, "v", name)
	}
	// One that comes after libvirt has looked for the last time.
	late := hooked{src, func(off int64) error {
		if off == 0 {
			return os.WriteFile(near+"/late", []byte("unseen"), 0o600)
		}
		return nil
	}}
	_, err = Upload(context.Background(), d.dest("near", "late"), late, Options{Format: "qcow2"})
	refusedBy(t, err, ErrExists, "though libvirt does not show it")
	if got := d.volumes("near"); !slices.Equal(got, []string{"late", "v"}) {
		t.Errorf("near holds %q", got)
	}
	text, err = os.ReadFile(near + "/late")
	check(t, err)
	want(t, "what was there", string(text), "unseen")
}

func TestPools(t *testing.T) {
	d := startDaemon(t)
	d.newPool("images")
	d.virsh("pool-define-as", "asleep", "dir", "--target", d.dir)
	d.virsh("pool-define-as", "blocks", "logical", "--source-name", "vg")
	d.virsh("pool-define-as", "target", "iscsi", "--source-host", "h", "--source-dev", "iqn.2026-01.example:x", "--target", "/dev/disk/by-path")
	d.virsh("pool-define-as", "parts", "disk", "--source-dev", "/dev/none", "--target", "/dev")
	_, src := newDisk(t, "qcow2", 1)
	for _, c := range []struct {
		pool, format string
		target       error
		words        []string
	}{
		{"none", "qcow2", nil, []string{`no storage pool "none"`, "there are", "images", "asleep"}},
		{"asleep", "qcow2", nil, []string{"pool asleep is not active", "virsh -c 'qemu:///system?socket=" + d.socket + "' pool-start asleep"}},
		{"blocks", "qcow2", ErrUnsupported, []string{"pool blocks is of type logical", "raw"}},
		{"blocks", "raw", nil, []string{"pool blocks is not active"}},
		{"target", "raw", ErrUnsupported, []string{"pool target is of type iscsi"}},
		{"parts", "raw", ErrUnsupported, []string{"pool parts is of type disk"}},
	} {
		dest, o := d.dest(c.pool, "v"), Options{Format: c.format}
		refusedBy(t, Check(context.Background(), dest, o), c.target, c.words...)
		_, err := Upload(context.Background(), dest, src, o)
		refusedBy(t, err, c.target, c.words...)
	}
	d.virsh("pool-destroy", "images")
	for _, pool := range []string{"asleep", "blocks", "target", "parts"} {
		d.virsh("pool-undefine", pool)
	}
	refusedBy(t, Check(context.Background(), d.dest("none", "v"), Options{Format: "raw"}), nil, "there is none at all")
}

// TestSpace has a pool that is too small, and one that another fills meanwhile.
func TestSpace(t *testing.T) {
	d := startDaemon(t)
	d.inside("mkdir /var/lib/libvirt/images/small && mount -t tmpfs -o size=4m none /var/lib/libvirt/images/small")
	d.hiddenPool("small")
	ctx := context.Background()
	dest := d.dest("small", "v")
	refusedBy(t, Check(ctx, dest, Options{Format: "raw", Size: 5 << 20}), ErrNoSpace, "pool small", "5242880 are needed for the disk")
	check(t, Check(ctx, dest, Options{Format: "raw", Size: 4 << 20}))
	// 2.8 MB fit once and not twice.
	_, src := newDisk(t, "raw", 1)
	_, err := Upload(ctx, dest, src, Options{Format: "raw"})
	refusedBy(t, err, ErrNoSpace, "the copy that becomes the volume")
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i%255 + 1)
	}
	var once atomic.Bool
	full := hooked{bytes.NewReader(p), func(off int64) error {
		if off > 0 && once.CompareAndSwap(false, true) {
			d.inside("head -c 4m /dev/zero >/var/lib/libvirt/images/small/other || true")
		}
		return nil
	}}
	_, err = Upload(ctx, dest, full, Options{Format: "raw"})
	refusedBy(t, err, ErrNoSpace, "sending the disk to volume nodebake-", "No space left")
	if got := d.volumes("small"); !slices.Equal(got, []string{"other"}) {
		t.Errorf("left: %q", got)
	}
}

// TestCancel ends uploads at each stage. Nothing is left, and what was there is there.
func TestCancel(t *testing.T) {
	d := startDaemon(t)
	d.newPool("near")
	d.hiddenPool("far")
	name, src := newDisk(t, "raw", 1)
	broken := errors.New("the disk cannot be read")
	for _, pool := range []string{"near", "far"} {
		check(t, ignore(Upload(context.Background(), d.dest(pool, "old"), src, Options{Format: "raw"})))
		for _, volume := range []string{"old", "new"} {
			for at, off := range map[string]int64{"begin": headSize, "middle": guestSize / 2, "head": 0} {
				for _, cause := range []error{context.Canceled, broken} {
					t.Run(fmt.Sprintf("%s-%s-%s-%v", pool, volume, at, cause), func(t *testing.T) {
						d := d.in(t)
						ctx, cancel := context.WithCancel(context.Background())
						defer cancel()
						var once atomic.Bool
						slow := hooked{src, func(o int64) error {
							if (o >= off && off > 0 || o == off) && once.CompareAndSwap(false, true) {
								if cause == broken {
									return broken
								}
								cancel()
							}
							return nil
						}}
						_, err := Upload(ctx, d.dest(pool, volume), slow, Options{Format: "raw", Force: true})
						if pool == "far" && volume == "old" && at == "head" {
							// The old volume was deleted just before. The disk is not lost: the temporary volume has all of it.
							refusedBy(t, err, cause, "the old volume is gone", "whole")
							left := d.volumes(pool)
							if len(left) != 1 {
								t.Fatalf("left: %q", left)
							}
							d.sameVolume(pool, left[0], name)
							d.virsh("vol-delete", left[0], "--pool", pool)
							check(t, ignore(Upload(context.Background(), d.dest(pool, "old"), src, Options{Format: "raw"})))
							return
						}
						refusedBy(t, err, cause)
						if got := d.volumes(pool); !slices.Equal(got, []string{"old"}) {
							t.Errorf("left: %q", got)
						}
						d.sameVolume(pool, "old", name)
					})
				}
			}
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	refusedBy(t, Check(ctx, d.dest("near", "new"), Options{Format: "raw"}), context.Canceled)
	_, err := Upload(ctx, d.dest("near", "new"), src, Options{Format: "raw"})
	refusedBy(t, err, context.Canceled)
}

func ignore(_ Result, err error) error { return err }

// TestRace has two uploads to one name. One of them wins, and the other says so.
func TestRace(t *testing.T) {
	d := startDaemon(t)
	d.newPool("near")
	d.hiddenPool("far")
	for _, pool := range []string{"near", "far"} {
		name, src := newDisk(t, "raw", 1)
		_, other := newDisk(t, "raw", 2)
		var once atomic.Bool
		first := hooked{src, func(off int64) error {
			if off > guestSize/2 && once.CompareAndSwap(false, true) {
				return ignore(Upload(context.Background(), d.dest(pool, "v"), src, Options{Format: "raw"}))
			}
			return nil
		}}
		_, err := Upload(context.Background(), d.dest(pool, "v"), hooked{other, first.at}, Options{Format: "raw"})
		refusedBy(t, err, ErrExists, "since the upload began")
		if got := d.volumes(pool); !slices.Equal(got, []string{"v"}) {
			t.Errorf("left: %q", got)
		}
		d.sameVolume(pool, "v", name)
	}
}

// TestDaemonDies in the middle of an upload. What is left is named, and is no disk.
func TestDaemonDies(t *testing.T) {
	d := startDaemon(t)
	near := d.newPool("near")
	_, src := newDisk(t, "raw", 1)
	dying := hooked{src, func(off int64) error {
		if off > guestSize/2 {
			d.cmd.Process.Kill()
		}
		return nil
	}}
	_, err := Upload(context.Background(), d.dest("near", "v"), dying, Options{Format: "raw"})
	refusedBy(t, err, nil, "left in pool near: nodebake-", "could not be deleted")
	left, err := filepath.Glob(near + "/*")
	check(t, err)
	if len(left) != 1 {
		t.Fatalf("left: %q", left)
	}
	p, err := os.ReadFile(left[0])
	check(t, err)
	if !qcow.IsZero(p[:headSize]) {
		t.Error("it has a beginning")
	}
}

// TestInUse refuses to replace what something depends on.
func TestInUse(t *testing.T) {
	d := startDaemon(t)
	near := d.newPool("near")
	d.hiddenPool("far")
	_, src := newDisk(t, "qcow2", 1)
	o := Options{Format: "qcow2", Capacity: guestSize, Force: true}
	refused := func(pool string, words ...string) {
		t.Helper()
		refusedBy(t, Check(context.Background(), d.dest(pool, "v"), o), ErrInUse, words...)
		_, err := Upload(context.Background(), d.dest(pool, "v"), src, o)
		refusedBy(t, err, ErrInUse, words...)
	}
	for _, pool := range []string{"near", "far"} {
		check(t, ignore(Upload(context.Background(), d.dest(pool, "v"), src, o)))
		// In another pool, too.
		d.virsh("vol-create-as", "far", "overlay", "1G", "--format", "qcow2", "--backing-vol", strings.TrimSpace(d.virsh("vol-path", "v", "--pool", pool)), "--backing-vol-format", "qcow2")
		refused(pool, "the volume overlay of pool far is an overlay of it")
		d.virsh("vol-delete", "overlay", "--pool", "far")
	}
	define := func(name, source string) {
		t.Helper()
		domain := `<domain type='qemu'><name>` + name + `</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='pc'>hvm</type></os><devices>` +
			`<emulator>/usr/bin/qemu-system-x86_64</emulator>` + source + `</devices></domain>`
		check(t, os.WriteFile(d.dir+"/domain.xml", []byte(domain), 0o644))
		d.virsh("define", d.dir+"/domain.xml")
	}
	requires(t, "qemu-system-x86_64")
	const driver = `<driver name='qemu' type='qcow2'/>`
	define("a", `<disk type='file' device='disk'>`+driver+`<source file='`+near+`/v'/><target dev='vda'/></disk>`)
	define("b", `<disk type='volume' device='disk'>`+driver+`<source pool='far' volume='v'/><target dev='vda'/></disk>`)
	if list := d.virsh("domblklist", "a"); !strings.Contains(list, near+"/v") {
		t.Error(list)
	}
	// Machines that are off are no hindrance: they find the new disk when they start.
	check(t, ignore(Upload(context.Background(), d.dest("near", "v"), src, o)))
	d.virsh("start", "a", "--paused")
	t.Cleanup(func() { exec.Command("virsh", "-q", "-c", d.uri(), "destroy", "a").Run() })
	refused("near", "the machine a has it as a disk and is running")
	d.virsh("managedsave", "a")
	refused("near", "the machine a has it as a disk and is suspended to a file")
	d.virsh("managedsave-remove", "a")
	check(t, ignore(Upload(context.Background(), d.dest("near", "v"), src, o)))
	d.virsh("start", "b", "--paused")
	t.Cleanup(func() { exec.Command("virsh", "-q", "-c", d.uri(), "destroy", "b").Run() })
	refused("far", "the machine b has it as a disk and is running")
}
