package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// volumesIn are the names in a pool, as libvirt has them after it looked anew.
func volumesIn(virsh func(...string) string, pool string) string {
	virsh("pool-refresh", pool)
	var names []string
	for line := range strings.Lines(virsh("vol-list", pool)) {
		if f := strings.Fields(line); len(f) > 0 {
			names = append(names, f[0])
		}
	}
	return strings.Join(names, " ")
}

// TestLibvirtUpload bakes into a pool of this host: the volume is, byte for byte, the file that the same bake gives.
func TestLibvirtUpload(t *testing.T) {
	virsh := libvirt(t)
	images := testImages(t)
	dir := tempDir(t)
	check(t, os.Mkdir(dir+"/pool", 0o755))
	pool := fmt.Sprintf("nodebake-up-%d", os.Getpid())
	virsh("pool-create-as", pool, "dir", "--target", dir+"/pool")
	t.Cleanup(func() { command(t, nil, "virsh", "-q", "-c", "qemu:///system", "pool-destroy", pool) })
	volume := func(name string) string { return "libvirt+qemu:///system?pool=" + pool + "&volume=" + name }
	base := []string{"--base", smallBase(t), "--image", images["hello"].oci(), "--quiet"}
	size := area(t, smallBase(t), 0).size
	for out, more := range map[string][]string{"plain.qcow2": nil, "zstd.qcow2": {"--compress", "zstd"}, "plain.raw": nil} {
		args := append(base, more...)
		baked(t, append(args, "--output", dir+"/"+out)...)
		o := nodebake(t, append([]string{"build", "--report", "-", "--output", volume(out)}, args...)...)
		if o.code != 0 {
			t.Fatal(o)
		}
		for _, w := range []string{`"pool": "` + pool + `"`, `"volume": "` + out + `"`, filepath.Join(dir, "pool", out), fmt.Sprintf(`"capacity": %d`, size)} {
			if !strings.Contains(o.stdout, w) {
				t.Errorf("the report has no %s:\n%s", w, o.stdout)
			}
		}
		format := strings.TrimPrefix(filepath.Ext(out), ".")
		text := virsh("vol-dumpxml", out, "--pool", pool)
		for _, w := range []string{fmt.Sprintf("<capacity unit='bytes'>%d</capacity>", size), "<format type='" + format + "'/>"} {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %s in\n%s", out, w, text)
			}
		}
		got := tempDir(t) + "/" + out
		virsh("vol-download", out, got, "--pool", pool)
		run(t, "cmp", got, dir+"/"+out)
		if a, b := usedBytes(t, dir+"/pool/"+out), usedBytes(t, dir+"/"+out); a > b+1<<20 {
			t.Errorf("%s takes %d bytes in the pool, and %d as a file", out, a, b)
		}
		if format == "qcow2" {
			qemuCheck(t, got)
		}
		if o := nodebake(t, "verify", got); o.code != 0 {
			t.Error(o)
		}
	}
	refused(t, nodebake(t, append([]string{"build", "--output", volume("plain.qcow2")}, base...)...), exitFailed, "", "plain.qcow2", pool, "exists", "--force")
	virsh("vol-create-as", pool, "old.qcow2", "1M")
	baked(t, append(base, "--output", volume("old.qcow2"), "--force")...)
	run(t, "cmp", dir+"/pool/old.qcow2", dir+"/plain.qcow2")
	if o := nodebake(t, "convert", dir+"/plain.qcow2", volume("converted.raw")); o.code != 0 {
		t.Error(o)
	}
	run(t, "cmp", dir+"/pool/converted.raw", dir+"/plain.raw")

	refused(t, nodebake(t, append([]string{"build", "--output", "libvirt+qemu:///system?pool=none-" + pool + "&volume=v.qcow2"}, base...)...), exitFailed, "", "no storage pool", pool)
	refused(t, nodebake(t, append([]string{"build", "--output", "libvirt+qemu:///system?pool=" + pool}, base...)...), exitUsage, "", "the volume is not given")
	refused(t, nodebake(t, append([]string{"build", "--output", "libvirt+qemu:///system?socket=/none&pool=p&volume=v.qcow2"}, base...)...), exitFailed, "", "/none", "does not run")
	refused(t, nodebake(t, append([]string{"build", "--output", volume("v.qcow2"), "--overlay"}, base...)...), exitUsage, "", "overlay")
	if got, want := volumesIn(virsh, pool), "converted.raw old.qcow2 plain.qcow2 plain.raw zstd.qcow2"; got != want {
		t.Errorf("the pool holds %s", got)
	}
}

func usedBytes(t testing.TB, name string) int64 {
	t.Helper()
	st, err := os.Stat(name)
	check(t, err)
	return st.Sys().(*syscall.Stat_t).Blocks * 512
}

// slowSocket is a way to libvirt's socket that lets n bytes of a connection through, calls then, and goes on slowly.
func slowSocket(t testing.TB, n int64, then func()) string {
	t.Helper()
	dir := tempDir(t)
	l, err := net.Listen("unix", dir+"/s")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				d, err := net.Dial("unix", "/run/libvirt/libvirt-sock")
				if err != nil {
					return
				}
				defer d.Close()
				go func() {
					io.Copy(c, d)
					c.Close()
				}()
				if _, err := io.CopyN(d, c, n); err != nil {
					return
				}
				then()
				for err == nil {
					time.Sleep(50 * time.Millisecond)
					_, err = io.CopyN(d, c, 4096)
				}
			}()
		}
	}()
	return dir + "/s"
}

// TestLibvirtInterrupted stops uploads in the middle. After Ctrl-C nothing is in the pool, after a kill -9 a volume of
// another name that is no disk, and what had the name is there.
func TestLibvirtInterrupted(t *testing.T) {
	virsh := libvirt(t)
	dir := tempDir(t)
	check(t, os.Mkdir(dir+"/pool", 0o755))
	pool := fmt.Sprintf("nodebake-int-%d", os.Getpid())
	virsh("pool-create-as", pool, "dir", "--target", dir+"/pool")
	t.Cleanup(func() { command(t, nil, "virsh", "-q", "-c", "qemu:///system", "pool-destroy", pool) })
	run(t, "qemu-img", "convert", "-O", "qcow2", smallBase(t), dir+"/disk.qcow2")
	check(t, copyFile(dir+"/disk.qcow2", dir+"/pool/old.qcow2", 0o600))
	for _, name := range []string{"old.qcow2", "new.qcow2"} {
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprintf("%s %s", name, sig), func(t *testing.T) {
				half := make(chan struct{})
				socket := slowSocket(t, 500_000, sync.OnceFunc(func() { close(half) }))
				c := exec.Command(productPath(t), "convert", dir+"/disk.qcow2", "libvirt+qemu:///system?socket="+socket+"&pool="+pool+"&volume="+name, "--force")
				var said bytes.Buffer
				c.Stderr = &said
				check(t, c.Start())
				ended := make(chan error, 1)
				go func() { ended <- c.Wait() }()
				select {
				case <-half:
					check(t, c.Process.Signal(sig))
					<-ended
				case err := <-ended:
					t.Fatalf("it ended before its half: %v\n%s", err, said.String())
				}
				left := strings.Fields(volumesIn(virsh, pool))
				if sig == syscall.SIGKILL {
					if len(left) != 2 || !strings.HasPrefix(left[0], "nodebake-") || !strings.HasSuffix(left[0], ".part") {
						t.Fatalf("left: %q", left)
					}
					if text := virsh("vol-dumpxml", left[0], "--pool", pool); !strings.Contains(text, "<format type='raw'/>") {
						t.Errorf("what is left is taken for a disk:\n%s", text)
					}
					virsh("vol-delete", left[0], "--pool", pool)
				} else {
					if len(left) != 1 {
						t.Errorf("left: %q", left)
					}
					if c.ProcessState.ExitCode() != exitFailed || !strings.Contains(said.String(), "interrupt") {
						t.Errorf("exit %d\n%s", c.ProcessState.ExitCode(), said.String())
					}
				}
				run(t, "cmp", dir+"/disk.qcow2", dir+"/pool/old.qcow2")
			})
		}
	}
}
