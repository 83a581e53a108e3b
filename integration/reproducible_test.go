package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// recipe is a build whose output must be the same bytes wherever it is made. FILES in args stands for a folder of files to
// copy; the output, named out, is in the working folder.
type recipe struct {
	name, base, out string
	args            []string
}

// place is somewhere to build: it runs scripts that are told there are the recipes' commands, in a folder of its own.
type place struct {
	name string
	// every and rest say which recipes are enough, but in a long run: those of this remainder.
	every, rest int
	run         func(t *testing.T, dir, script string) outcome
	// base is how the base is put there; nil uses the one that all use.
	base func(t *testing.T, from, to string)
}

// TestReproducible builds the same in different places: other cores, time zone, language, home, folders, umask and user,
// a copy of the base with other holes and times, and machines with another kernel and filesystem, in 1970 and in 2100.
func TestReproducible(t *testing.T) {
	requires(t, "root", "setpriv", "cmp", "linux.uml")
	images := testImages(t)
	bin := productPath(t)
	check(t, os.Chmod(scratch, 0o711))
	dir := tempDir(t)
	check(t, os.Chmod(dir, 0o755))
	for _, name := range []string{bin, images["hello"].ociArchive, images["odd"].dockerArchive} {
		check(t, copyFile(name, dir+"/"+filepath.Base(name), 0o755))
	}
	bin = dir + "/" + filepath.Base(bin)
	run(t, "cp", "-r", images["quirks"].layout, dir+"/quirks")
	run(t, "cp", "-r", images["exact"].layout, dir+"/exact")
	run(t, "chmod", "-R", "a+rX", dir)
	bases := map[string]string{"ext4": dir + "/ext4.raw", "ostree": dir + "/ostree.qcow2", "zstd": dir + "/zstd.qcow2"}
	check(t, copyFile(smallBase(t), bases["ext4"], 0o644))
	check(t, copyFile(smallOCK(t), bases["ostree"], 0o644))
	run(t, "qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", bases["ext4"], bases["zstd"])
	check(t, os.Chmod(bases["zstd"], 0o644))

	few := []string{"--image", "oci-archive:" + dir + "/hello.oci.tar", "--image", "docker-archive:" + dir + "/odd.docker.tar"}
	all := append(slices.Clone(few), "--image", "oci:"+dir+"/quirks:"+images["quirks"].name, "--image", "oci:"+dir+"/exact:"+images["exact"].name)
	custom := append(slices.Clone(few), "--write", "/etc/motd=golden\n", "--copy", "FILES:/var/lib/app", "--hostname", "node-1", "--reset-identity")
	recipes := []recipe{
		{"ext4 to qcow2", "ext4", "a.qcow2", all},
		{"ext4 to raw", "ext4", "b.raw", all},
		{"ext4 to zstd", "ext4", "c.qcow2", append(slices.Clone(few), "--compress", "zstd")},
		{"ext4 to raw.zst", "ext4", "d.raw.zst", few},
		{"ext4 to raw.gz", "ext4", "e.raw.gz", few},
		{"ext4 to raw.xz", "ext4", "f.raw.xz", few},
		{"zstd to qcow2", "zstd", "g.qcow2", few},
		{"zstd to container", "zstd", "h.oci.tar", append(slices.Clone(few), "--output", "oci-archive:h.oci.tar")},
		{"larger", "ext4", "i.raw", append(slices.Clone(few), "--size", "+64M")},
		{"store partition", "ext4", "j.raw", append(slices.Clone(few), "--store-partition=ext4")},
		{"customized", "ext4", "k.qcow2", custom},
		{"ostree to qcow2", "ostree", "l.qcow2", all},
		{"ostree to raw", "ostree", "m.raw", all},
		{"ostree to zlib", "ostree", "n.qcow2", append(slices.Clone(few), "--compress", "zlib")},
		{"ostree, customized", "ostree", "o.qcow2", append(slices.Clone(custom), "--karg-append", "quiet")},
		{"ostree, XFS store partition", "ostree", "p.raw", append(slices.Clone(few), "--store-partition=xfs")},
		{"ostree to docker-archive", "ostree", "q.docker.tar", append(slices.Clone(few), "--output", "docker-archive:q.docker.tar")},
	}
	const unprivileged = 65534
	copied := func(sparse string) func(*testing.T, string, string) {
		return func(t *testing.T, from, to string) { run(t, "cp", "--sparse="+sparse, "--reflink=never", from, to) }
	}
	shell := func(env []string, before ...string) func(*testing.T, string, string) outcome {
		return func(t *testing.T, dir, script string) outcome {
			return command(t, env, "env", append(before, "sh", "-c", "cd '"+dir+"' && "+script)...)
		}
	}
	places := []place{
		{"here", 1, 0, shell(nil), nil},
		{"one core, elsewhere, in Turkish", 2, 0, shell([]string{"GOMAXPROCS=1", "TZ=Asia/Tokyo", "LANG=tr_TR.UTF-8", "LC_ALL=tr_TR.UTF-8", "HOME=/nonexistent", "XDG_CACHE_HOME=/nonexistent", "TMPDIR=" + tempDir(t)},
			"-u", "XDG_RUNTIME_DIR"), copied("always")},
		{"nobody, two cores, umask 077, no holes", 2, 1, shell([]string{"GOMAXPROCS=2", "TZ=America/New_York", "LC_ALL=C"}, "-i", "GOMAXPROCS=2",
			"setpriv", fmt.Sprintf("--reuid=%d", unprivileged), fmt.Sprintf("--regid=%d", unprivileged), "--clear-groups", "--no-new-privs"), func(t *testing.T, from, to string) {
			copied("never")(t, from, to)
			// What qcow2 has for zeros is the base's own; a raw disk with zeros written out is the same disk.
			check(t, os.Chtimes(to, time.Unix(1, 0), time.Unix(1, 0)))
		}},
		{"a machine in 1970", 4, 0, otherMachine("1970-01-02 03:04:05", "mem=768M"), nil},
		{"a machine in 2100", 4, 1, otherMachine("2100-01-01 00:00:00", "mem=1G"), nil},
	}
	folders := map[string]string{}
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			own := filepath.Join(dir, strings.Map(func(r rune) rune {
				if r == ' ' || r == ',' {
					return '-'
				}
				return r
			}, p.name))
			check(t, os.Mkdir(own, 0o755))
			folders[p.name] = own
			script := "umask 022"
			if strings.Contains(p.name, "umask 077") {
				script = "umask 077"
				check(t, os.Chown(own, unprivileged, unprivileged))
			}
			// Copied files of other owners and times.
			files := own + "/files"
			check(t, os.MkdirAll(files+"/deep", 0o755))
			check(t, os.WriteFile(files+"/deep/a", []byte("a\n"), 0o644))
			check(t, os.Lchown(files+"/deep/a", len(folders), len(folders)))
			at := map[string]string{}
			for name, from := range bases {
				if at[name] = from; p.base != nil {
					at[name] = own + "/base-" + filepath.Base(from)
					p.base(t, from, at[name])
					check(t, os.Chmod(at[name], 0o644))
				}
			}
			for n, r := range recipes {
				if !p.builds(n) {
					continue
				}
				args := append([]string{bin, "build", "--quiet", "--base", at[r.base], "--lock", r.out + ".lock"}, r.args...)
				if !slices.Contains(r.args, "--output") {
					args = append(args, "--output", r.out)
				}
				script += "\necho '" + r.name + "'\n"
				for _, a := range args {
					script += "'" + strings.ReplaceAll(a, "FILES", files) + "' "
				}
				script += "|| exit 1"
			}
			if o := p.run(t, own, script); o.code != 0 {
				t.Fatalf("%s", o)
			}
		})
	}
	if t.Failed() {
		return
	}
	for _, p := range places[1:] {
		for n, r := range recipes {
			if !p.builds(n) {
				continue
			}
			names, err := filepath.Glob(folders["here"] + "/" + r.out + "*")
			check(t, err)
			if len(names) == 0 {
				t.Fatalf("%s: no output", r.name)
			}
			for _, name := range names {
				if o := command(t, nil, "cmp", name, folders[p.name]+"/"+filepath.Base(name)); o.code != 0 {
					t.Errorf("%s, %s: %s\n%s", r.name, p.name, filepath.Base(name), strings.TrimSpace(o.stdout+o.stderr))
				}
			}
		}
	}
	// The proof can fail: another time of what has none, or one more byte in a file that is copied, is another disk.
	for n, env := range [][]string{{"SOURCE_DATE_EPOCH=1"}, {}} {
		if n == 1 {
			check(t, os.WriteFile(folders["here"]+"/files/deep/a", []byte("a\n\n"), 0o644))
		}
		out := fmt.Sprintf("%s/other%d.qcow2", dir, n)
		args := []string{"build", "--quiet", "--base", bases["ext4"], "--output", out}
		for _, a := range custom {
			args = append(args, strings.ReplaceAll(a, "FILES", folders["here"]+"/files"))
		}
		if o := command(t, env, bin, args...); o.code != 0 {
			t.Fatalf("%s", o)
		}
		sameFiles(t, out, folders["here"]+"/k.qcow2", false)
	}
}

// builds says whether the n-th recipe is built here.
func (p place) builds(n int) bool {
	return n%p.every == p.rest || os.Getenv("NODEBAKE_SOAK") != ""
}

// otherMachine runs a script on a User Mode Linux whose clock says so, on this machine's files. Its filesystem has neither
// holes nor reflinks nor files without a name.
func otherMachine(clock string, options ...string) func(*testing.T, string, string) outcome {
	return func(t *testing.T, dir, script string) outcome {
		t.Helper()
		init := `#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TZ=UTC
mount -t proc proc /proc; mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /tmp
mountpoint -q /dev || mount -t devtmpfs dev /dev
cd ` + dir + `
date -s '` + clock + `' >uml.out
{ date -u +%Y; uname -r; } >uml.when
sh uml.script >>uml.out 2>&1
echo $? >uml.rc
sync
halt -f
`
		check(t, os.WriteFile(dir+"/uml.init", []byte(init), 0o755))
		check(t, os.WriteFile(dir+"/uml.script", []byte(script), 0o755))
		start := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
		defer cancel()
		args := append([]string{"rootfstype=hostfs", "rootflags=/", "rw", "quiet", "con=null", "con0=null,fd:1", "init=" + dir + "/uml.init"}, options...)
		cmd := exec.CommandContext(ctx, "linux.uml", args...)
		// Its memory is a file, which should not be on a small /dev/shm or /tmp.
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
		cmd.WaitDelay = 10 * time.Second
		console, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		o := outcome{args: cmd.Args, stdout: string(console), code: -1, took: time.Since(start)}
		out, _ := os.ReadFile(dir + "/uml.out")
		o.stderr = string(out)
		if rc, err := os.ReadFile(dir + "/uml.rc"); err == nil {
			fmt.Sscan(string(rc), &o.code)
		}
		// The proof is none if the clock was not what it should be.
		if when, _ := os.ReadFile(dir + "/uml.when"); !strings.HasPrefix(string(when), clock[:4]+"\n") {
			t.Errorf("the machine's year and kernel: %q, must be %s\n%s", when, clock[:4], o)
		} else {
			t.Logf("built in %s, on Linux %s, in %.0fs", strings.Fields(string(when))[0], strings.Fields(string(when))[1], o.took.Seconds())
		}
		return o
	}
}

// TestReproducibleLock bakes by a lock after its tag has moved, with another user, one core, an empty cache and a slow one.
func TestReproducibleLock(t *testing.T) {
	requires(t, "root", "skopeo", "setpriv")
	testImages(t)
	older, newer := someImage(t, "localhost/app:1", 16, 100000, 2000, 3000, 4000), someImage(t, "localhost/app:1", 17, 30000)
	addr := registry(t)
	push(t, older.oci(), addr+"/app:v1")
	check(t, os.Chmod(scratch, 0o711))
	dir := tempDir(t)
	check(t, os.Chmod(dir, 0o777))
	bin, base := dir+"/nodebake", dir+"/base.raw"
	check(t, copyFile(productPath(t), bin, 0o755))
	check(t, copyFile(smallBase(t), base, 0o444))
	conf := fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	check(t, os.WriteFile(dir+"/registries.conf", []byte(conf), 0o644))
	check(t, os.WriteFile(dir+"/policy.json", []byte(`{"default": [{"type": "insecureAcceptAnything"}]}`), 0o644))
	bake := func(out string, env, before []string, more ...string) {
		t.Helper()
		args := slices.Concat([]string{"CONTAINERS_REGISTRIES_CONF=" + dir + "/registries.conf"}, env, before, []string{bin, "build", "--quiet", "--base", base,
			"--policy", dir + "/policy.json", "--lock", dir + "/lock.json", "--output", dir + "/" + out}, more)
		if o := command(t, nil, "env", args...); o.code != 0 {
			t.Fatalf("%s", o)
		}
	}
	nobody := []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}
	bake("1.raw", nil, nil, "--image", addr+"/app:v1")
	lock := hashFile(t, dir+"/lock.json")
	push(t, newer.oci(), addr+"/app:v1")
	bake("2.raw", []string{"GOMAXPROCS=1", "TZ=Asia/Tokyo", "HOME=" + dir}, nobody, "--locked", "--image", addr+"/app:v1", "--parallel", "1")
	bake("3.raw", nil, nil, "--locked", "--cache", dir+"/cache")
	bake("4.raw", nil, nil, "--locked", "--cache", dir+"/cache", "--offline")
	for _, n := range []string{"2", "3", "4"} {
		sameFiles(t, dir+"/1.raw", dir+"/"+n+".raw", true)
	}
	if hashFile(t, dir+"/lock.json") != lock {
		t.Error("the lock changed")
	}
	// The proof can fail: what the tag stands for now gives another disk.
	check(t, os.Remove(dir+"/lock.json"))
	bake("5.raw", nil, nil, "--image", addr+"/app:v1")
	sameFiles(t, dir+"/1.raw", dir+"/5.raw", false)
}
