package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCustomize changes an OCK-like disk's OS in the same run as it gets its store: files, kernel arguments and the
// machine's identity, with the policy's labels, and nothing of ostree's.
func TestCustomize(t *testing.T) {
	requires(t, "root", "ostree", "setfiles", "xfs_repair")
	needsPolicy(t)
	images := testImages(t)
	dir := tempDir(t)
	base, out := dir+"/base.raw", dir+"/out.raw"
	run(t, "qemu-img", "convert", "-O", "raw", smallOCK(t), base)
	check(t, os.MkdirAll(dir+"/files/deep", 0o755))
	check(t, os.WriteFile(dir+"/files/deep/config", []byte("x=1\n"), 0o640))
	args := []string{"build", "--base", base, "--image", "oci-archive:" + images["hello"].ociArchive, "--output", out, "--report", dir + "/report.json", "--quiet",
		"--write", "/etc/motd=golden\n", "--copy", dir + "/files:/var/lib/app", "--copy", dir + "/files/deep/config:/etc/app.conf:0600:7:8",
		"--karg-append", "systemd.unified_cgroup_hierarchy=1", "--hostname", "node-1", "--reset-identity"}
	if o := nodebake(t, args...); o.code != exitDone {
		t.Fatalf("%s", o)
	}
	for _, p := range partitions(t, out)[1:] {
		fsck(t, out, p.number)
	}
	before, m := mountOCK(t, base, "ro"), mountOCK(t, out, "ro")
	m.ostreeSound(t, before.status(t))
	for name, want := range map[string]string{"etc/motd": "golden\n", "etc/hostname": "node-1\n", "etc/app.conf": "x=1\n", "var/lib/app/deep/config": "x=1\n"} {
		if got := read(t, m.system, name); got != want {
			t.Errorf("%s holds %q, must hold %q", name, got, want)
		}
	}
	if got := run(t, "stat", "-c", "%a %u %g", m.system+"/etc/app.conf", m.system+"/var/lib/app/deep/config"); got != "600 7 8\n640 0 0\n" {
		t.Errorf("modes and owners: %s", got)
	}
	if !strings.Contains(m.kernel.options, "systemd.unified_cgroup_hierarchy=1") || !strings.HasPrefix(m.kernel.options, before.kernel.options) {
		t.Errorf("the kernel's arguments were %q and are %q", before.kernel.options, m.kernel.options)
	}
	if said := m.relabel(t, true); said != "" {
		t.Errorf("setfiles would change\n%s", clip(said))
	}
	if o := nodebake(t, "verify", out); o.code != exitDone {
		t.Errorf("%s", o)
	}
	for _, c := range []struct {
		more  []string
		words []string
		code  int
	}{
		{[]string{"--write", "/usr/lib/x=y"}, []string{"/usr/lib/x", "ostree"}, exitFailed},
		{[]string{"--write", confPath + "=x"}, []string{"absolute|full|/"}, exitUsage},
		{[]string{"--write", "/" + confPath + "=x"}, []string{"bake itself"}, exitUsage},
		{[]string{"--delete", "/var"}, []string{"delete the store"}, exitUsage},
		{[]string{"--copy", "nowhere:/etc/x"}, []string{"nowhere"}, exitFailed | exitUsage<<8},
		{[]string{"--copy", "x"}, []string{"SRC:DST"}, exitUsage},
		{[]string{"--hostname", "-x"}, []string{"-x"}, exitUsage},
		{[]string{"--karg-delete", "nothere"}, []string{"nothere"}, exitUsage},
	} {
		bad := filepath.Join(dir, "bad.raw")
		o := nodebake(t, append([]string{"build", "--base", base, "--image", images["hello"].oci(), "--output", bad}, c.more...)...)
		code := c.code & 0xff
		if c.code>>8 != 0 && o.code == c.code>>8 {
			code = o.code
		}
		refused(t, o, code, bad, c.words...)
	}
}
