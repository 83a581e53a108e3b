package lvm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lab holds physical volumes in files and runs the real tools on them.
type lab struct {
	testing.TB
	dir   string
	files []string
	loops []string
}

// missing skips the test for want of a tool, or fails it under CI.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("CI: %s", what)
	}
	t.Skip(what)
}

// newLab makes sparse files of these sizes in bytes.
func newLab(t testing.TB, sizes ...int64) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, "loop devices need root")
	}
	for _, tool := range []string{"lvm", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			missing(t, tool+" is not installed")
		}
	}
	l := &lab{TB: t, dir: t.TempDir()}
	for i, size := range sizes {
		f := filepath.Join(l.dir, fmt.Sprintf("pv%d", i))
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, size); err != nil {
			t.Fatal(err)
		}
		l.files = append(l.files, f)
	}
	return l
}

// copy is another lab with the same bytes.
func (l *lab) copy() *lab {
	l.Helper()
	c := &lab{TB: l.TB, dir: l.TempDir()}
	for _, f := range l.files {
		to := filepath.Join(c.dir, filepath.Base(f))
		if out, err := exec.Command("cp", "--sparse=always", f, to).CombinedOutput(); err != nil {
			l.Fatalf("%v: %s", err, out)
		}
		c.files = append(c.files, to)
	}
	return c
}

// pvs opens the files for Open.
func (l *lab) pvs() []PV {
	l.Helper()
	var list []PV
	for _, name := range l.files {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { f.Close() })
		st, err := f.Stat()
		if err != nil {
			l.Fatal(err)
		}
		list = append(list, PV{filepath.Base(name), f, st.Size()})
	}
	return list
}

// group opens the only group there is.
func (l *lab) group() *Group {
	l.Helper()
	groups, err := Open(l.pvs())
	if err != nil {
		l.Fatal(err)
	}
	if len(groups) != 1 {
		l.Fatalf("%d groups", len(groups))
	}
	return groups[0]
}

const config = `global { activation = %d
 locking_dir = "%[2]s/lock"
 use_lvmpolld = 0
}
devices { use_devicesfile = 0
 dir = "/dev"
 filter = [ %[3]s "r|.*|" ]
 global_filter = [ %[3]s "r|.*|" ]
 cache_dir = "%[2]s"
 scan_lvs = 0
 md_component_detection = 0
 obtain_device_list_from_udev = 0
 external_device_info_source = "none"
 hints = "none"
 types = [ "ubd", 16 ]
}
activation { udev_sync = 0
 udev_rules = 0
 verify_udev_operations = 1
 monitoring = 0
}
backup { backup = 0
 archive = 0
}
`

func (l *lab) configure(activation int, devices []string) {
	l.Helper()
	var filter strings.Builder
	for _, d := range devices {
		fmt.Fprintf(&filter, "\"a|^%s$|\", ", d)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "lvm.conf"), fmt.Appendf(nil, config, activation, l.dir, filter.String()), 0o600); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) env() []string {
	return append(os.Environ(), "LVM_SYSTEM_DIR="+l.dir, "LVM_SUPPRESS_FD_WARNINGS=1", "LC_ALL=C", "TZ=UTC")
}

// attach puts loop devices over the files.
func (l *lab) attach() {
	l.Helper()
	for _, f := range l.files {
		out, err := exec.Command("losetup", "-f", "--show", f).CombinedOutput()
		if err != nil {
			l.Fatalf("losetup: %v: %s", err, out)
		}
		l.loops = append(l.loops, strings.TrimSpace(string(out)))
	}
	l.Cleanup(l.detach)
	l.configure(0, l.loops)
}

func (l *lab) detach() {
	for _, d := range l.loops {
		if out, err := exec.Command("losetup", "-d", d).CombinedOutput(); err != nil {
			l.Errorf("losetup -d %s: %v: %s", d, err, out)
		}
	}
	l.loops = nil
}

// lvm runs LVM's tools on the files, without the kernel's device-mapper: one command a line, "PV0" and so on standing for the
// devices. What they print comes back, the warnings that follow from the lack of activation left out.
func (l *lab) lvm(commands string) string {
	l.Helper()
	out, err := l.try(commands)
	if err != nil {
		l.Fatalf("%v\n%s", err, out)
	}
	return out
}

var noise = regexp.MustCompile(`(?m)^  WARNING: (Activation disabled|This metadata update is NOT|Logical volume .* not zeroed).*\n`)

func (l *lab) try(commands string) (string, error) {
	l.Helper()
	l.attach()
	defer l.detach()
	var all bytes.Buffer
	for line := range strings.Lines(commands) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		for i := len(l.loops) - 1; i >= 0; i-- {
			line = strings.ReplaceAll(line, fmt.Sprintf("PV%d", i), l.loops[i])
		}
		c := exec.Command("sh", "-c", "lvm "+line)
		c.Env = l.env()
		out, err := c.CombinedOutput()
		all.Write(noise.ReplaceAll(out, nil))
		if err != nil {
			return all.String(), fmt.Errorf("lvm %s: %w", line, err)
		}
	}
	return all.String(), nil
}

// kernel runs a bash script with the kernel's device-mapper, $PV0 and so on being the devices: on this machine
// where it has one, else in a User Mode Linux. The script's output comes back.
func (l *lab) kernel(script string) string {
	l.Helper()
	head := "set -eu\nexport LVM_SYSTEM_DIR=" + l.dir + " LVM_SUPPRESS_FD_WARNINGS=1 LC_ALL=C TZ=UTC PATH=/usr/sbin:/usr/bin:/sbin:/bin\ncd " + l.dir + "\n"
	misc, _ := os.ReadFile("/proc/misc")
	if bytes.Contains(misc, []byte("device-mapper")) {
		l.attach()
		defer l.detach()
		l.configure(1, l.loops)
		for i, d := range l.loops {
			head += fmt.Sprintf("PV%d=%s\n", i, d)
		}
		file := filepath.Join(l.dir, "script")
		if err := os.WriteFile(file, []byte(head+"trap 'lvm vgchange -an >/dev/null 2>&1' EXIT\n"+script), 0o700); err != nil {
			l.Fatal(err)
		}
		out, err := exec.Command("bash", file).CombinedOutput()
		if err != nil {
			l.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	uml, err := exec.LookPath("linux.uml")
	if err != nil {
		missing(l, "no device-mapper in this kernel, and no User Mode Linux (package user-mode-linux)")
	}
	if _, err := exec.LookPath("modprobe"); err != nil {
		missing(l, "modprobe (package kmod) is not installed")
	}
	var devices []string
	args := []string{"mem=256M", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null", "con0=null,fd:1", "init=" + l.dir + "/init"}
	for i, f := range l.files {
		d := "/dev/ubd" + string(rune('a'+i))
		devices = append(devices, d)
		head += fmt.Sprintf("PV%d=%s\n", i, d)
		args = append(args, fmt.Sprintf("ubd%d=%s", i, f))
	}
	l.configure(1, devices)
	_ = os.MkdirAll(l.dir+"/root/lib", 0o700)
	_ = os.Symlink("/usr/lib/uml/modules", l.dir+"/root/lib/modules")
	init := `#!/bin/bash
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmpfs /run
mountpoint -q /dev || mount -t devtmpfs dev /dev
for m in dm-mod dm-zero dm-thin-pool dm-snapshot dm-mirror dm-raid dm-cache dm-cache-smq dm-writecache dm-integrity raid1; do modprobe -q -d ` + l.dir + `/root $m; done
bash ` + l.dir + `/script >` + l.dir + `/out 2>&1
echo $? >` + l.dir + `/rc
sync
halt -f
`
	_ = os.Remove(l.dir + "/rc")
	if err := os.WriteFile(l.dir+"/init", []byte(init), 0o700); err != nil {
		l.Fatal(err)
	}
	if err := os.WriteFile(l.dir+"/script", []byte(head+script), 0o700); err != nil {
		l.Fatal(err)
	}
	// Its processes are a group of their own, so that none outlives a hang.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, uml, args...)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = 10 * time.Second
	console, err := c.CombinedOutput()
	out, _ := os.ReadFile(l.dir + "/out")
	rc, _ := os.ReadFile(l.dir + "/rc")
	if string(rc) != "0\n" {
		l.Fatalf("User Mode Linux: %v, the script says %q\n%s\n%s", err, rc, out, console)
	}
	return string(out)
}
