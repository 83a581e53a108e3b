package libvirt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// insideVar is set for the test binary where TestLogical runs it: in a kernel of its own, beside a libvirtd. It names the
// disk that is sent.
const insideVar = "NODEBAKE_LIBVIRT_LOGICAL"

// logicalSize is no multiple of a group's extents, which are 4 MiB: the volume is larger.
const logicalSize = 10<<20 + 512

// TestLogical uploads into a volume group. This machine's kernel may lack the device mapper, so all of it runs in User Mode
// Linux, on this machine's root folder.
func TestLogical(t *testing.T) {
	if name := os.Getenv(insideVar); name != "" {
		insideLogical(t, name)
		return
	}
	requires(t, "root", "linux.uml", "modprobe", "lvm", "libvirtd", "virsh")
	dir, err := os.MkdirTemp("/var/tmp", "nblv.")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	name, _ := newDisk(t, "raw", 1)
	check(t, os.Rename(name, dir+"/disk"))
	check(t, os.Truncate(dir+"/disk", logicalSize))
	self, err := os.Executable()
	check(t, err)
	check(t, os.WriteFile(dir+"/pv", nil, 0o600))
	check(t, os.Truncate(dir+"/pv", 300<<20))
	check(t, os.MkdirAll(dir+"/root/lib", 0o700))
	check(t, os.Symlink("/usr/lib/uml/modules", dir+"/root/lib/modules"))
	// What was on the device before must not come through the holes of a disk.
	check(t, exec.Command("sh", "-c", "yes 'from another life' | head -c 300M >"+dir+"/pv").Run())
	script := `export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C HOME=/root ` + insideVar + `=` + dir + `/disk
mount -t proc proc /proc; mount -t sysfs sys /sys; mountpoint -q /dev || mount -t devtmpfs dev /dev
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt /etc/lvm; do mount -t tmpfs none $d; done
mkdir -p /run/lock/lvm /run/libvirt /var/lib/libvirt/images
for m in dm-mod dm-snapshot; do modprobe -q -d ` + dir + `/root $m; done
cat >/etc/lvm/lvm.conf <<END
global { use_lvmpolld = 0 }
activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 1 monitoring = 0 }
devices { use_devicesfile = 0 obtain_device_list_from_udev = 0 external_device_info_source = "none" types = [ "ubd", 16 ] filter = [ "a|/dev/ubda|", "r|.*|" ] }
END
ip link set lo up 2>/dev/null
set -ex
pvcreate -y /dev/ubda
vgcreate vg /dev/ubda
printf 'auth_unix_rw = "none"\nunix_sock_dir = "/run/libvirt"\n' >/run/libvirtd.conf
libvirtd -f /run/libvirtd.conf -p /run/libvirtd.pid >` + dir + `/log 2>&1 &
for i in $(seq 300); do virsh -q pool-list >/dev/null 2>&1 && break; sleep 0.2; done
virsh -q pool-define-as blocks logical --source-name vg --target /dev/vg
virsh -q pool-start blocks
` + self + ` -test.run '^TestLogical$' -test.v -test.timeout 4m
virsh -q vol-list blocks
lvs -o name,size,segtype --noheadings vg
`
	check(t, os.WriteFile(dir+"/script", []byte(script), 0o700))
	check(t, os.WriteFile(dir+"/init", []byte("#!/bin/bash\nbash "+dir+"/script >"+dir+"/out 2>&1\necho $? >"+dir+"/rc\nsync\nhalt -f\n"), 0o700))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "linux.uml", "mem=768M", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null", "con0=null,fd:1", "init="+dir+"/init", "ubd0="+dir+"/pv")
	// Its processes are a group of their own, so that none outlives a hang.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 10 * time.Second
	console, err := c.CombinedOutput()
	out, _ := os.ReadFile(dir + "/out")
	rc, _ := os.ReadFile(dir + "/rc")
	if string(rc) != "0\n" {
		log, _ := os.ReadFile(dir + "/log")
		t.Fatalf("User Mode Linux: %v, the script says %q\n%s\n%s\n%s", err, rc, out, console, log)
	}
	t.Log(string(out))
	for _, w := range []string{"--- PASS: TestLogical"} {
		if !strings.Contains(string(out), w) {
			t.Errorf("no %s", w)
		}
	}
}

func insideLogical(t *testing.T, name string) {
	src := openDisk(t, name)
	dest := parse(t, "libvirt+qemu:///system?pool=blocks&volume=v")
	ctx := context.Background()
	o := Options{Format: "raw", Capacity: logicalSize}
	refusedBy(t, Check(ctx, dest, Options{Format: "qcow2"}), ErrUnsupported, "pool blocks is of type logical")
	refusedBy(t, Check(ctx, dest, Options{Format: "raw", Size: 1 << 30}), ErrNoSpace)
	for range 2 {
		check(t, Check(ctx, dest, o))
		r, err := Upload(ctx, dest, src, o)
		check(t, err)
		want(t, "swap", r.Swap, "copy")
		want(t, "path", r.Path, "/dev/vg/v")
		run(t, "cmp", "-n", fmt.Sprint(logicalSize), name, "/dev/vg/v")
		if text := run(t, "virsh", "-q", "vol-dumpxml", "v", "--pool", "blocks"); !strings.Contains(text, "<capacity unit='bytes'>12582912</capacity>") {
			t.Error(text)
		}
		o.Force = false
		refusedBy(t, Check(ctx, dest, o), ErrExists)
		o.Force = true
	}
	other := parse(t, "libvirt+qemu:///system?pool=blocks&volume=other")
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err := Upload(stopped, other, hooked{src, func(off int64) error {
		if off > logicalSize/2 {
			cancel()
		}
		return nil
	}}, o)
	refusedBy(t, err, context.Canceled)
	broken := errors.New("the disk cannot be read")
	var once atomic.Bool
	_, err = Upload(ctx, dest, hooked{src, func(off int64) error {
		if off == 0 && once.CompareAndSwap(false, true) {
			return broken
		}
		return nil
	}}, o)
	refusedBy(t, err, broken, "the old volume is gone, and the new disk is the volume nodebake-", "whole")
	left, err := filepath.Glob("/dev/vg/*")
	check(t, err)
	if len(left) != 1 || !strings.HasPrefix(left[0], "/dev/vg/nodebake-") {
		t.Fatalf("left: %q", left)
	}
	run(t, "cmp", "-n", fmt.Sprint(logicalSize), name, left[0])
}
