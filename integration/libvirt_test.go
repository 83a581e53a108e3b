package integration

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// libvirt gives virsh on the machine's own libvirtd, or on one that the test starts.
func libvirt(t testing.TB) func(args ...string) string {
	t.Helper()
	requires(t, "root", "virsh", "libvirtd")
	const uri = "qemu:///system"
	if command(t, nil, "virsh", "-c", uri, "version").code != 0 {
		log, err := os.Create(tempDir(t) + "/libvirtd.log")
		check(t, err)
		defer log.Close()
		d := exec.Command("libvirtd")
		d.Stderr = log
		check(t, d.Start())
		t.Cleanup(func() {
			d.Process.Kill()
			d.Wait()
			said, err := os.ReadFile(log.Name())
			check(t, err)
			if strings.Contains(string(said), "qcow2") || strings.Contains(string(said), "torage") {
				t.Errorf("libvirtd says\n%s", said)
			}
		})
		for end := time.Now().Add(time.Minute); command(t, nil, "virsh", "-c", uri, "version").code != 0; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("libvirtd does not answer")
			}
		}
	}
	return func(args ...string) string {
		t.Helper()
		return run(t, "virsh", append([]string{"-q", "-c", uri}, args...)...)
	}
}

// TestLibvirt has libvirt look at outputs of each kind in a pool. No machine is started: where /dev/kvm is there and
// does not work, libvirt's look at QEMU's capabilities takes minutes.
func TestLibvirt(t *testing.T) {
	virsh := libvirt(t)
	images := testImages(t)
	dir := tempDir(t)
	check(t, copyFile(smallBase(t), dir+"/base.raw", 0o644))
	name := "nodebake-" + fmt.Sprint(os.Getpid())
	outs := map[string][]string{
		"plain.qcow2": nil, "zstd.qcow2": {"--compress", "zstd"}, "zlib.qcow2": {"--compress", "zlib"}, "small.qcow2": {"--cluster-size", "4K"},
		"overlay.qcow2": {"--overlay"}, "grown.qcow2": {"--size", "3G"}, "grownoverlay.qcow2": {"--overlay", "--size", "3G"}, "plain.raw": nil,
	}
	for out, more := range outs {
		baked(t, append([]string{"--base", dir + "/base.raw", "--image", images["hello"].oci(), "--output", filepath.Join(dir, out), "--quiet"}, more...)...)
	}
	virsh("pool-create-as", name, "dir", "--target", dir)
	t.Cleanup(func() { command(t, nil, "virsh", "-q", "-c", "qemu:///system", "pool-destroy", name) })
	for _, out := range slices.Sorted(maps.Keys(outs)) {
		format := strings.TrimPrefix(filepath.Ext(out), ".")
		size := area(t, dir+"/base.raw", 0).size
		if strings.Contains(strings.Join(outs[out], " "), "--size") {
			size = 3 << 30
		}
		volume := virsh("vol-dumpxml", out, "--pool", name)
		for _, want := range []string{fmt.Sprintf("<capacity unit='bytes'>%d</capacity>", size), "<format type='" + format + "'/>"} {
			if !strings.Contains(volume, want) {
				t.Errorf("%s: no %s in\n%s", out, want, volume)
			}
		}
		if strings.Contains(out, "overlay") && !strings.Contains(volume, dir+"/base.raw") {
			t.Errorf("%s: no backing file in\n%s", out, volume)
		}
		// libvirt reads the volume's own bytes.
		copied := tempDir(t) + "/copy"
		virsh("vol-download", out, copied, "--pool", name)
		run(t, "cmp", copied, filepath.Join(dir, out))
	}
	for out := range outs {
		qemuCheck(t, filepath.Join(dir, out))
	}
}
