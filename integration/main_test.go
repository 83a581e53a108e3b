package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.podman.io/storage/pkg/reexec"
	"golang.org/x/sys/unix"
)

// buildTags are those that the product is built with everywhere.
const buildTags = "containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_zfs containers_image_docker_daemon_stub"

// scratch is this run's own folder; it is removed at the end unless NODEBAKE_TEST_KEEP is set.
var scratch string

func TestMain(m *testing.M) {
	// containers/storage starts the test binary again under other names to unpack layers.
	if reexec.Init() {
		return
	}
	if into := os.Getenv(measureInto); into != "" {
		os.Exit(measure(into))
	}
	// Mounts belong to a mount namespace of this run: however the run ends, the kernel takes them
	// and their loop devices away with it.
	const inside = "NODEBAKE_TEST_MOUNT_NS"
	if os.Getuid() == 0 && os.Getenv(inside) == "" {
		if unshare, err := exec.LookPath("unshare"); err == nil {
			argv := append([]string{"unshare", "--mount", "--propagation", "private", "--"}, os.Args...)
			err = syscall.Exec(unshare, argv, append(os.Environ(), inside+"=1"))
			fmt.Fprintln(os.Stderr, "unshare:", err)
			os.Exit(1)
		}
	}
	os.Exit(func() int {
		var err error
		if scratch, err = os.MkdirTemp("/var/tmp", "nodebake."); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		// A PATH without sbin is usual for a login that is not root's.
		os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
		code := m.Run()
		for i := len(atEnd) - 1; i >= 0; i-- {
			atEnd[i]()
		}
		if os.Getenv("NODEBAKE_TEST_KEEP") == "" {
			removeAll(scratch)
		} else {
			fmt.Fprintln(os.Stderr, "kept:", scratch)
		}
		return code
	}())
}

// atEnd is what to undo after the last test, last thing first.
var atEnd []func()

// removeAll removes a folder that a storage driver may have left mounts in.
func removeAll(dir string) {
	table, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(string(table), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
	os.RemoveAll(dir)
}

// tempDir is t.TempDir in the scratch folder, for disks are too big for a /tmp in memory.
// Its name is short: podman takes no runroot of more than 50 characters.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "t.")
	check(t, err)
	if os.Getenv("NODEBAKE_TEST_KEEP") == "" {
		t.Cleanup(func() { removeAll(dir) })
	}
	return dir
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// requires skips the test when the machine lacks a tool, and fails it where CI says that nothing may lack.
// The name "root" stands for the rights that loop mounts need.
func requires(t testing.TB, tools ...string) {
	t.Helper()
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

// outcome is what a command did.
type outcome struct {
	args           []string
	stdout, stderr string
	code           int // -1: killed by a signal
	usage          *syscall.Rusage
	took           time.Duration
}

func (o outcome) String() string {
	return fmt.Sprintf("%s\nexit %d after %.2fs\nstdout: %s\nstderr: %s", strings.Join(o.args, " "), o.code, o.took.Seconds(), clip(o.stdout), clip(o.stderr))
}

func clip(s string) string {
	if len(s) > 8000 {
		s = s[:4000] + "\n[...]\n" + s[len(s)-4000:]
	}
	return s
}

// command runs a program to its end with env added to the environment; it never fails the test.
func command(t testing.TB, env []string, name string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	o := outcome{args: append([]string{name}, args...), stdout: stdout.String(), stderr: stderr.String(), took: time.Since(start)}
	if cmd.ProcessState == nil {
		t.Fatalf("%s: %v", name, err)
	}
	o.code = cmd.ProcessState.ExitCode()
	o.usage, _ = cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if ctx.Err() != nil {
		t.Fatalf("did not end in time:\n%s", o)
	}
	return o
}

// run is command for a program that must succeed; it gives back what was printed.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	o := command(t, nil, name, args...)
	if o.code != 0 {
		t.Fatalf("%s", o)
	}
	return o.stdout
}

// measureInto names a file. With it set, the test binary runs its arguments and writes there what they used.
//
// What wait4 says of a child's peak memory counts the parent's at the time of the fork, too, so the parent of
// a program that is measured must be small, and a test that has read images is not.
const measureInto = "NODEBAKE_TEST_MEASURE_INTO"

func measure(into string) int {
	cmd := exec.Command(os.Args[1], os.Args[2:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Run()
	if cmd.ProcessState == nil {
		return 127
	}
	raw, err := json.Marshal(cmd.ProcessState.SysUsage())
	if err == nil {
		err = os.WriteFile(into, raw, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	return cmd.ProcessState.ExitCode()
}

// measured is command for a program whose memory and CPU time matter.
func measured(t testing.TB, name string, args ...string) outcome {
	t.Helper()
	self, err := os.Executable()
	check(t, err)
	into := tempDir(t) + "/usage"
	o := command(t, []string{measureInto + "=" + into}, self, append([]string{name}, args...)...)
	o.usage = new(syscall.Rusage)
	readJSON(t, into, o.usage)
	return o
}

var product = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("NODEBAKE_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	bin := filepath.Join(scratch, "nodebake")
	return bin, goBuild("../cmd/nodebake", bin)
})

func goBuild(pkg, out string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-tags", buildTags, "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", pkg, err, msg)
	}
	return nil
}

func productPath(t testing.TB) string {
	t.Helper()
	bin, err := product()
	check(t, err)
	return bin
}

// nodebake runs the product.
func nodebake(t testing.TB, args ...string) outcome {
	t.Helper()
	o := command(t, nil, productPath(t), args...)
	t.Logf("nodebake %s: exit %d, %.2fs", strings.Join(args, " "), o.code, o.took.Seconds())
	if strings.Contains(o.stderr, "goroutine ") {
		t.Fatalf("a panic:\n%s", o)
	}
	return o
}

// baked runs a build that must succeed.
func baked(t testing.TB, args ...string) outcome {
	t.Helper()
	o := nodebake(t, append([]string{"build"}, args...)...)
	if o.code != 0 {
		t.Fatalf("%s", o)
	}
	return o
}

// The exit codes of the product.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitLie
	exitNoSpace
	exitUnsupported
)

// refused fails the test unless a build ended with the code, left no OUT, and said every one of the words
// (any case) in its last sentence; what it said of its progress does not count. A word may hold alternatives, split by "|".
func refused(t testing.TB, o outcome, code int, out string, words ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code: want %d\n%s", code, o)
	}
	at := strings.LastIndex("\n"+o.stderr, "\nnodebake: ")
	if at < 0 {
		t.Errorf("no sentence of why\n%s", o)
		return
	}
	sentence := strings.TrimSpace(o.stderr[at:])
	said := strings.ToLower(sentence)
next:
	for _, word := range words {
		for _, alternative := range strings.Split(word, "|") {
			if strings.Contains(said, strings.ToLower(alternative)) {
				continue next
			}
		}
		t.Errorf("the message does not say %q\n%s", word, o)
	}
	if out != "" {
		if _, err := os.Lstat(out); err == nil {
			t.Errorf("%s was left\n%s", out, o)
		}
		onlyKnownFiles(t, filepath.Dir(out), filepath.Base(out))
	}
	if !t.Failed() {
		t.Logf("refused: %s", clip(sentence))
	}
}

// onlyKnownFiles fails when a folder holds what looks like a temporary file of a bake to OUT.
func onlyKnownFiles(t testing.TB, dir, out string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		n := e.Name()
		if n != out && (strings.Contains(n, out) || strings.Contains(n, "nodebake") || strings.HasSuffix(n, ".tmp") || strings.HasSuffix(n, ".part")) && !e.IsDir() {
			t.Errorf("left beside the output: %s", n)
		}
	}
}

// The recipes of cached things: what they are made by decides whether they are made again.
var (
	//go:embed testdata/rootfs.sh
	rootfsRecipe []byte
	//go:embed testdata/nodedisk.sh
	nodediskRecipe []byte
	//go:embed testdata/entry/main.go
	entryRecipe []byte
	//go:embed images_test.go
	imagesRecipe []byte
)

// cached gives the folder of a thing that is costly to make: from the cache, or made now.
// The folder's name ends in a hash of the recipe; older ones of the same name are removed.
func cached(name string, recipe [][]byte, make func(dir string) error) (string, error) {
	cache := os.Getenv("NODEBAKE_TEST_CACHE")
	if cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		cache = filepath.Join(user, "nodebake-test")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	// One maker at a time, also across test processes.
	lock, err := os.OpenFile(filepath.Join(cache, "."+name+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, part := range recipe {
		fmt.Fprintf(sum, "%d:", len(part))
		sum.Write(part)
	}
	dir := filepath.Join(cache, name+"-"+hex.EncodeToString(sum.Sum(nil))[:12])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	old, _ := filepath.Glob(filepath.Join(cache, name+"-*"))
	for _, o := range old {
		removeAll(o)
	}
	part := dir + ".part"
	if err := os.Mkdir(part, 0o755); err != nil {
		return "", err
	}
	if err := make(part); err != nil {
		removeAll(part)
		return "", err
	}
	return dir, os.Rename(part, dir)
}

// tool runs a program for a maker that has no test at hand.
func tool(name string, args ...string) (string, error) { return toolEnv(nil, name, args...) }

func toolEnv(env []string, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, clip(string(out)), clip(stderr.String()))
	}
	return string(out), nil
}

func rootfsTar(kind string) (string, error) {
	dir, err := cached("rootfs-"+kind, [][]byte{rootfsRecipe, []byte(kind)}, func(dir string) error {
		_, err := tool("testdata/rootfs.sh", kind, filepath.Join(dir, "rootfs.tar"))
		return err
	})
	return filepath.Join(dir, "rootfs.tar"), err
}

// nodeDisk is the bootable Debian disk, with what a boot loader would take from it.
type nodeDisk struct{ disk, kernel, initrd, options string }

// nodeRoot is the root partition's number on it.
const nodeRoot = 4

var madeNodeDisk = sync.OnceValues(func() (nodeDisk, error) {
	rootfs, err := rootfsTar("node")
	if err != nil {
		return nodeDisk{}, err
	}
	dir, err := cached("nodedisk", [][]byte{rootfsRecipe, nodediskRecipe}, func(dir string) error {
		_, err := tool("testdata/nodedisk.sh", rootfs, dir)
		return err
	})
	return nodeDisk{dir + "/disk.qcow2", dir + "/vmlinuz", dir + "/initrd", "root=LABEL=root rw"}, err
})

func debian(t testing.TB) nodeDisk {
	t.Helper()
	requires(t, "root", "mmdebstrap", "sfdisk", "mkfs.ext4", "mkfs.vfat", "losetup", "qemu-img")
	start := time.Now()
	d, err := madeNodeDisk()
	check(t, err)
	if took := time.Since(start); took > time.Second {
		t.Logf("Debian disk made in %.1fs", took.Seconds())
	}
	return d
}

func hashFile(t testing.TB, name string) string {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	check(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

// mustNotExist fails the test when a file is there.
func mustNotExist(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is there (%v)", name, err)
	}
}
