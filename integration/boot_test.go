package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// machine is a QEMU guest that runs one script and powers off.
type machine struct {
	cmd    *exec.Cmd
	serial string
	stderr bytes.Buffer
	done   chan error
	start  time.Time
}

// startMachine boots a disk with a Debian kernel. The script comes on a second disk; systemd runs it
// by the kernel's command line, so that the first disk holds nothing made for tests.
func startMachine(t testing.TB, n nodeDisk, disk, script string) *machine {
	t.Helper()
	requires(t, "qemu-system-x86_64")
	dir := tempDir(t)
	// crun asks systemd for a cgroup over D-Bus, which this target alone does not start.
	script = "exec >/dev/ttyS0 2>&1\nstty -F /dev/ttyS0 -opost\nsystemctl start dbus.socket dbus.service\n" + script + "\necho SCRIPT-END\nexit 0\n"
	// The shell reads on to the end of a sector, but no further than exit.
	check(t, os.WriteFile(dir+"/script", append([]byte(script), make([]byte, 4096-len(script)%4096)...), 0o644))
	m := &machine{serial: dir + "/serial", done: make(chan error, 1), start: time.Now()}
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "2", "-m", "2048",
		"-display", "none", "-nodefaults", "-no-reboot", "-serial", "file:"+m.serial,
		"-kernel", n.kernel, "-initrd", n.initrd,
		"-append", n.options+` console=ttyS0 quiet mitigations=off systemd.firstboot=off systemd.default_device_timeout_sec=600 `+
			`systemd.run="/bin/sh /dev/vdb" systemd.run_success_action=poweroff systemd.run_failure_action=poweroff`,
		"-drive", "file="+disk+",if=none,id=root,format=qcow2", "-device", "virtio-blk-pci,drive=root",
		"-drive", "file="+dir+"/script,if=none,id=script,format=raw,readonly=on", "-device", "virtio-blk-pci,drive=script")
	m.cmd.Stderr = &m.stderr
	check(t, m.cmd.Start())
	go func() { m.done <- m.cmd.Wait() }()
	t.Cleanup(func() { m.cmd.Process.Kill() })
	return m
}

func (m *machine) console() string {
	b, _ := os.ReadFile(m.serial)
	return strings.ReplaceAll(string(b), "\r\n", "\n")
}

// bootLimit is for a machine that shares its cores; on two idle ones a start takes half a minute.
const bootLimit = 8 * time.Minute

// wait waits for the machine to power itself off and gives what the script printed.
func (m *machine) wait(t testing.TB) string {
	t.Helper()
	select {
	case err := <-m.done:
		out := m.console()
		if err != nil || !strings.Contains(out, "SCRIPT-END\n") || !strings.Contains(out, "Power down") {
			t.Fatalf("the machine did not end as it should: %v\n%s\nconsole:\n%s", err, &m.stderr, clip(out))
		}
		t.Logf("booted, ran and powered off in %.1fs", time.Since(m.start).Seconds())
		return out
	case <-time.After(bootLimit):
		m.cmd.Process.Kill()
		t.Fatalf("the machine did not power off\n%s\nconsole:\n%s", &m.stderr, clip(m.console()))
	}
	return ""
}

// killAt kills the machine when its console says what; a power cut, as far as the guest can tell.
func (m *machine) killAt(t testing.TB, what string) {
	t.Helper()
	for end := time.Now().Add(bootLimit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-m.done:
			t.Fatalf("the machine ended by itself: %v\n%s\nconsole:\n%s", err, &m.stderr, clip(m.console()))
		default:
		}
		if strings.Contains(m.console(), what) {
			// Some way into the write that was announced.
			time.Sleep(1500 * time.Millisecond)
			check(t, m.cmd.Process.Kill())
			<-m.done
			t.Logf("killed at %q, %.1fs after the start", what, time.Since(m.start).Seconds())
			return
		}
	}
	m.cmd.Process.Kill()
	t.Fatalf("the console never said %q\n%s", what, clip(m.console()))
}

// useStore is what a node does with its images: podman lists them and runs them with no network.
func useStore(images map[string]image) string {
	return fmt.Sprintf(`
podman images --format 'LISTED {{.Repository}}:{{.Tag}} {{.ReadOnly}}'
podman run --rm --network none %s && echo HELLO-OK
podman run --rm --network none --entrypoint /bin/cat %s /etc/debian_version && echo DEBIAN-OK
`, images["hello"].name, images["debian"].name)
}

func storeUsed(t testing.TB, console string, images map[string]image) {
	t.Helper()
	for _, i := range checked {
		if !strings.Contains(console, "LISTED "+images[i].name+" true\n") {
			t.Errorf("podman on the machine does not list %s as read-only", images[i].name)
		}
	}
	if !strings.Contains(console, helloPrints+"HELLO-OK\n") {
		t.Error("hello did not run")
	}
	if !regexp.MustCompile(`(?m)^12\.\d+\nDEBIAN-OK$`).MatchString(console) {
		t.Error("debian did not run")
	}
	if t.Failed() {
		t.Fatalf("console:\n%s", clip(console))
	}
}

// TestBoot starts the baked Debian disk, cuts its power while the engine writes to its own store, and starts it again.
func TestBoot(t *testing.T) {
	requires(t, "root", "qemu-system-x86_64", "qemu-img", "e2fsck")
	n, images := theNode(t), testImages(t)
	// The machine writes to an overlay; nodebake reads it with its backing file, from the same folder.
	disk := filepath.Join(filepath.Dir(n.out), "running.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Base(n.out), "-F", "qcow2", disk)
	t.Cleanup(func() { os.Remove(disk) })

	t.Log("first start: podman on the machine uses the store")
	storeUsed(t, startMachine(t, n.nodeDisk, disk, useStore(images)).wait(t), images)

	t.Log("second start: the power goes while podman writes to its own store")
	startMachine(t, n.nodeDisk, disk, fmt.Sprintf(`
i=0
while :; do
  c=$(podman create --network none %s)
  head -c 30000000 /dev/urandom >/tmp/content
  echo "WRITING $i"
  podman cp /tmp/content $c:/content-$i
  podman commit -q $c localhost/written:$i
  i=$((i+1))
done`, images["hello"].name)).killAt(t, "WRITING 2")
	out := tempDir(t) + "/out.qcow2"
	o := nodebake(t, "build", "--base", disk, "--image", images["exact"].oci(), "--output", out)
	refused(t, o, exitUnsupported, out, "journal")

	t.Log("third start: the store is whole")
	storeUsed(t, startMachine(t, n.nodeDisk, disk, useStore(images)).wait(t), images)

	if o := nodebake(t, "verify", disk); o.code != exitDone {
		t.Errorf("%s", o)
	}
	dir := tempDir(t)
	raw := rawOf(t, dir, disk)
	fsck(t, raw, nodeRoot)
	mnt := mount(t, raw, nodeRoot, "ro")
	for _, i := range []string{"hello", "odd", "debian", "exact"} {
		compareStore(t, mnt+defaultStore, images[i])
	}
}

// TestBootGrown starts a disk whose root a bake has made larger, whose partition then grew once more, and which has a
// second store on a partition of its own: the machine's kernel grows the root while it is mounted, systemd mounts the
// partition, and podman uses both stores.
func TestBootGrown(t *testing.T) {
	requires(t, "root", "qemu-system-x86_64", "qemu-img", "growpart", "xfs_repair", "e2fsck")
	n, images := theNode(t), testImages(t)
	dir := tempDir(t)
	baked(t, "--base", n.out, "--image", images["exact"].oci(), "--output", dir+"/grown.raw", "--size", "+1G", "--quiet")
	info, err := os.Stat(dir + "/grown.raw")
	check(t, err)
	check(t, os.Truncate(dir+"/grown.raw", info.Size()+600*mib))
	run(t, "growpart", dir+"/grown.raw", fmt.Sprint(nodeRoot))
	disk := dir + "/disk.qcow2"
	baked(t, "--base", dir+"/grown.raw", "--image", images["quirks"].oci(), "--output", disk, "--store", "/var/more", "--store-partition=xfs", "--quiet")
	console := startMachine(t, n.nodeDisk, disk, useStore(images)+fmt.Sprintf(`
podman images --format 'MORE {{.Repository}}:{{.Tag}} {{.ReadOnly}}' %s
echo "MOUNT $(findmnt -no FSTYPE,OPTIONS /var/more)"
echo "UNIT $(systemctl is-active var-more.mount) $(systemctl show -p Before --value var-more.mount)"
/lib/systemd/systemd-growfs / && echo "ROOT $(findmnt -bno SIZE /)"
umount /var/more
`, images["quirks"].name)).wait(t)
	storeUsed(t, console, images)
	for _, want := range []string{`MORE localhost/nodebake/quirks:1 true\n`, `MOUNT xfs +ro,`, `UNIT active .*crio\.service`, `ROOT [0-9]{10}`} {
		if !regexp.MustCompile(want).MatchString(console) {
			t.Errorf("the console does not say %q", want)
		}
	}
	if t.Failed() {
		t.Fatalf("console:\n%s", clip(console))
	}
	raw := rawOf(t, dir, disk)
	fsck(t, raw, nodeRoot)
	var blocks int64
	for _, line := range strings.Split(run(t, "dumpe2fs", "-h", fmt.Sprintf("%s?offset=%d", raw, area(t, raw, nodeRoot).start)), "\n") {
		fmt.Sscanf(line, "Block count: %d", &blocks)
	}
	if size := area(t, raw, nodeRoot).size; size-blocks*4096 > 128*mib {
		t.Errorf("systemd-growfs left %d blocks in a partition of %d bytes", blocks, size)
	}
	if o := nodebake(t, "verify", raw); o.code != exitDone {
		t.Errorf("%s", o)
	}
}
