package libvirt

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// requires skips the test when the machine lacks a tool, and fails it where CI says that nothing may lack.
func requires(t testing.TB, tools ...string) {
	t.Helper()
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	var missing []string
	for _, tool := range tools {
		if tool == "root" {
			if os.Getuid() != 0 {
				missing = append(missing, "root")
			}
		} else if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if len(missing) == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s", strings.Join(missing, ", "))
	}
	t.Skipf("missing: %s", strings.Join(missing, ", "))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	c := exec.Command(name, args...)
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out)
}

// daemon is a libvirtd of the test's own, in a mount namespace where its folders are empty ones in memory: it does
// not meet the machine's own, nor that of another test.
type daemon struct {
	testing.TB
	dir    string // seen by both sides
	socket string
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the process is no more
}

// startDaemon runs a libvirtd with these lines in its configuration.
func startDaemon(t testing.TB, conf ...string) *daemon {
	t.Helper()
	requires(t, "root", "libvirtd", "virsh", "unshare", "nsenter", "qemu-img")
	// Not t.TempDir: a socket's path is short, and disks are too large for a /tmp in memory.
	dir, err := os.MkdirTemp("/var/tmp", "nblv.")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	d := &daemon{TB: t, dir: dir, socket: dir + "/libvirt-sock"}
	lines := append([]string{fmt.Sprintf("unix_sock_dir = %q", dir), `auth_unix_rw = "none"`, `unix_sock_rw_perms = "0777"`}, conf...)
	check(t, os.WriteFile(dir+"/libvirtd.conf", []byte(strings.Join(lines, "\n")+"\n"), 0o644))
	log, err := os.Create(dir + "/log")
	check(t, err)
	defer log.Close()
	listen := ""
	if strings.Contains(strings.Join(conf, "\n"), "_port") {
		listen = "--listen"
	}
	d.cmd = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", `
for d in /run /var/lib/libvirt /var/cache/libvirt /etc/libvirt; do mkdir -p $d; mount -t tmpfs none $d; done
mkdir -p /var/lib/libvirt/images /run/libvirt
printf '%s\n' 'stdio_handler = "file"' 'user = "root"' 'group = "root"' 'security_driver = "none"' 'cgroup_controllers = [ ]' 'namespaces = [ ]' 'remember_owner = 0' >/etc/libvirt/qemu.conf
if [ -e /dev/kvm ]; then mount --bind /dev/null /dev/kvm; fi
exec libvirtd -f "$1/libvirtd.conf" -p "$1/pid" $2`, "sh", dir, listen)
	d.cmd.Stderr, d.cmd.Stdout = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, d.cmd.Start())
	ended := make(chan struct{})
	d.ended = ended
	go func() {
		d.cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		// Not before the machines are ended by cleanups of later date.
		d.cmd.Process.Kill()
		<-ended
		if t.Failed() {
			said, _ := os.ReadFile(dir + "/log")
			t.Logf("libvirtd says\n%s", said)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if exec.Command("virsh", "-q", "-c", d.uri(), "pool-list").Run() == nil {
			return d
		}
		select {
		case <-ended:
			t.Fatal("libvirtd ended")
		default:
		}
		if time.Now().After(end) {
			t.Fatal("libvirtd does not answer")
		}
	}
}

// in is the same daemon for a subtest.
func (d *daemon) in(t testing.TB) *daemon {
	c := *d
	c.TB = t
	return &c
}

// inside runs a shell's commands where the daemon is.
func (d *daemon) inside(commands string) {
	d.Helper()
	run(d, "nsenter", "--mount", "-t", fmt.Sprint(d.cmd.Process.Pid), "sh", "-ec", commands)
}

func (d *daemon) uri() string { return "qemu+unix:///system?socket=" + d.socket }

func (d *daemon) virsh(args ...string) string {
	d.Helper()
	return run(d, "virsh", append([]string{"-q", "-c", d.uri()}, args...)...)
}

// newPool makes a pool of type dir in a folder that the test sees as well.
func (d *daemon) newPool(name string) string {
	d.Helper()
	dir := filepath.Join(d.dir, name)
	check(d, os.Mkdir(dir, 0o755))
	d.virsh("pool-create-as", name, "dir", "--target", dir)
	return dir
}

// hiddenPool makes one in a folder that only the daemon sees, as on another host.
func (d *daemon) hiddenPool(name string) {
	d.Helper()
	d.virsh("pool-define-as", name, "dir", "--target", "/var/lib/libvirt/images/"+name)
	d.virsh("pool-build", name)
	d.virsh("pool-start", name)
}

// dest is a volume there.
func (d *daemon) dest(pool, volume string) Dest {
	d.Helper()
	dest, is, err := ParseDest("libvirt+" + d.uri() + "&pool=" + pool + "&volume=" + volume)
	if err != nil || !is {
		d.Fatal(is, err)
	}
	return dest
}

// volumes are the names in a pool, as libvirt has them after it looked anew.
func (d *daemon) volumes(pool string) []string {
	d.Helper()
	d.virsh("pool-refresh", pool)
	var names []string
	for line := range strings.Lines(d.virsh("vol-list", pool)) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return names
}
