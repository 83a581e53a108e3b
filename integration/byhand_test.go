package integration

import (
	"os"
	"strings"
	"testing"
)

// bakeByHand makes the disk that a bake makes, the way that needs root: the disk becomes raw, is mounted,
// podman loads the archives into a store on it, storage.conf is edited, and the disk becomes qcow2 again.
// The benchmark measures nodebake against it, and with NODEBAKE_TEST_BY_HAND set the tests of the
// Debian disk run on its output: what they then say is said of podman's own work.
func bakeByHand(t testing.TB, base string, root int, out string, archives ...string) {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "h.")
	check(t, err)
	defer removeAll(dir)
	raw, mnt := dir+"/disk.raw", dir+"/mnt"
	run(t, "qemu-img", "convert", "-O", "raw", base, raw)
	check(t, os.Mkdir(mnt, 0o755))
	mountAt(t, raw, root, "rw", mnt)
	e := newEngineAt(t, dir)
	for _, a := range archives {
		e.do(t, "podman", "--root", mnt+defaultStore, "--runroot", dir+"/run", "--storage-driver", "overlay", "load", "-q", "-i", a)
	}
	// A store may hold a mount of itself, and what libpod keeps there is no part of an image store.
	command(t, nil, "umount", mnt+defaultStore+"/overlay")
	check(t, os.RemoveAll(mnt+defaultStore+"/libpod"))
	conf, err := os.ReadFile(mnt + "/" + confPath)
	check(t, err)
	edited := strings.Replace(string(conf), "additionalimagestores = [\n", "additionalimagestores = [\n  \""+defaultStore+"\",\n", 1)
	check(t, os.WriteFile(mnt+"/"+confPath, []byte(edited), 0o644))
	unmount(t, mnt)
	run(t, "qemu-img", "convert", "-O", "qcow2", raw, out)
}
