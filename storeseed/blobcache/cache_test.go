package blobcache

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var seed = flag.Uint64("seed", 0, "of the random tests; 0 is another one each time")

var ctx = context.Background()

func open(t testing.TB, dir string, size int64) *Cache {
	t.Helper()
	c, err := Open(Options{Dir: dir, MaxSize: size, Warn: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func put(t testing.TB, c *Cache, data string) digest.Digest {
	t.Helper()
	d := digest.FromString(data)
	if err := c.Put(d, []byte(data)); err != nil {
		t.Fatal(err)
	}
	return d
}

// age makes a blob's last use n minutes ago.
func age(t testing.TB, c *Cache, d digest.Digest, n int) {
	t.Helper()
	at := time.Now().Add(-time.Duration(n) * time.Minute)
	if err := os.Chtimes(c.path(blobsDir+"/"+d.Encoded()), at, at); err != nil {
		t.Fatal(err)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	c, other := open(t, dir, 0), open(t, dir, 0)
	var ds []digest.Digest
	for i := range 6 {
		d := put(t, c, fmt.Sprintf("%1000d", i))
		age(t, c, d, 60-i)
		ds = append(ds, d)
	}
	// The oldest is in use by one, the next by another one, and the third was just read.
	if err := errors.Join(c.Pin(ds[0]), other.Pin(ds[1], ds[1]), other.Unpin(ds[1])); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Bytes(ctx, ds[2], 1<<20); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for i, d := range []digest.Digest{ds[0], ds[5]} {
		if err := c.SetReference(fmt.Sprint("r.example/x:", i), imgspecv1.Descriptor{Digest: d}, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Prune(3500); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false, false, false} {
		if c.Has(ds[i]) != want {
			t.Errorf("blob %d: there: %v", i, !want)
		}
	}
	if d, got, err := c.Reference("r.example/x:0"); err != nil || d.Digest != ds[0] || got.Unix() != at.Unix() {
		t.Errorf("%v %v %v", d, got, err)
	}
	if _, _, err := c.Reference("r.example/x:1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a reference to what was pruned: %v", err)
	}
	// All but the pinned ones go, and a closed cache pins nothing.
	if err := c.Prune(1); err != nil || !c.Has(ds[0]) || !c.Has(ds[1]) || c.Has(ds[2]) {
		t.Error(err)
	}
	other.Close()
	if err := c.Prune(1); err != nil || !c.Has(ds[0]) || c.Has(ds[1]) {
		t.Error(err)
	}
	if err := c.Unpin(ds[0]); err != nil {
		t.Fatal(err)
	}
	if err := c.Prune(1); err != nil || c.Has(ds[0]) {
		t.Error(err)
	}
}

func TestBound(t *testing.T) {
	c := open(t, t.TempDir(), 5000)
	for i := range 20 {
		put(t, c, fmt.Sprintf("%1000d", i))
		if err := c.SetNote(fmt.Sprint(i), make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Size(); err != nil || n > 5000 {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if n, _ := c.Size(); n < 3000 {
		t.Errorf("only %d bytes are kept", n)
	}
}

func TestDamage(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	hurt := map[string]func(name string) error{
		"changed": func(n string) error { return os.WriteFile(n, []byte("Something"), 0o644) },
		"cut":     func(n string) error { return os.Truncate(n, 3) },
		"empty":   func(n string) error { return os.Truncate(n, 0) },
	}
	for name, f := range hurt {
		d := put(t, c, "something")
		if _, err := c.Bytes(ctx, d, 100); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(c.SetNote("k", []byte("v")), f(c.path(blobsDir+"/"+d.Encoded())), f(c.path(noteName("k")))); err != nil {
			t.Fatal(err)
		}
		// As another process would see it.
		again := open(t, dir, 0)
		if _, err := again.Bytes(ctx, d, 100); !errors.Is(err, fs.ErrNotExist) || again.Has(d) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := again.Note("k"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: note: %v", name, err)
		}
	}
	d := put(t, c, "x")
	if err := c.SetReference("a", imgspecv1.Descriptor{Digest: d}, time.Now()); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(c.path("index.json"), []byte(`{"manifests":[{`), 0o644)
	if _, _, err := c.Reference("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := c.SetReference("b", imgspecv1.Descriptor{Digest: d}, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got, _, err := c.Reference("b"); err != nil || got.Digest != d {
		t.Error(err)
	}
	for _, d := range []digest.Digest{"", "sha256:../../x", "sha512:" + digest.Digest(strings.Repeat("0", 128))} {
		if _, _, err := c.Open(ctx, d); err == nil {
			t.Errorf("%q passes", d)
		}
		if err := c.Pin(d); err == nil {
			t.Errorf("%q is pinned", d)
		}
	}
	if err := c.Put(d, []byte("y")); err == nil {
		t.Error("a wrong digest is kept")
	}
}

func TestWriter(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, 0)
	data := strings.Repeat("0123456789", 100)
	d := digest.FromString(data)
	w, err := c.Create(ctx, d, 1000)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, data[:300])
	// Another one waits, and does not begin a blob of its own.
	short, cancel := context.WithTimeout(ctx, 3*pollDelay)
	if _, err := open(t, dir, 0).Create(short, d, 1000); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	cancel()
	// Nor does a prune take it.
	if err := c.Prune(1); err != nil {
		t.Error(err)
	}
	w.Close()
	if w, err = c.Create(ctx, d, 1000); err != nil || w.Offset() != 300 {
		t.Fatalf("%v: at %d", err, w.Offset())
	}
	done := make(chan error)
	go func() {
		_, err := open(t, dir, 0).Create(ctx, d, 1000)
		done <- err
	}()
	time.Sleep(pollDelay / 2)
	io.WriteString(w, data[300:])
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, fs.ErrExist) {
		t.Errorf("the one who waited got %v", err)
	}
	got := make([]byte, 1000)
	if _, err := w.ReadAt(got, 0); err != nil || string(got) != data {
		t.Error(err)
	}
	w.Close()
	if got, err := c.Bytes(ctx, d, 1000); err != nil || string(got) != data {
		t.Error(err)
	}
	if _, err := c.Create(ctx, d, 1000); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}

	// Wrong content is forgotten; what is longer than promised is not gone on with.
	d = digest.FromString("other")
	w, err = c.Create(ctx, d, 5)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "wrong, and long")
	if err := w.Commit(); !errors.Is(err, ErrDigest) || c.Has(d) {
		t.Error(err)
	}
	if n, err := w.ReadAt(got[:5], 0); err != nil || n != 5 {
		t.Errorf("a reader that follows lost its file: %v", err)
	}
	w.Close()
	os.WriteFile(c.path(partialDir+"/"+d.Encoded()), make([]byte, 9), 0o644)
	if w, err = c.Create(ctx, d, 5); err != nil || w.Offset() != 0 {
		t.Fatal(err)
	}
	if err := w.Discard(); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(c.path(partialDir)); len(list) > 0 {
		t.Errorf("%v is left", list)
	}
	// What the dead left is pruned.
	os.WriteFile(c.path(partialDir+"/left"), make([]byte, 9), 0o644)
	if err := c.Prune(1); err != nil {
		t.Error(err)
	}
	if n, _ := c.Size(); n > 0 {
		t.Errorf("%d bytes are left", n)
	}
}

// content is blob i of the tests with processes.
func content(i int) []byte {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	b := make([]byte, 1000+r.IntN(200_000))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

const processBlobs = 25

// TestMain lets the test be one of its own processes.
func TestMain(m *testing.M) {
	if dir := os.Getenv("BLOBCACHE_TEST_DIR"); dir != "" {
		n, _ := strconv.ParseUint(os.Getenv("BLOBCACHE_TEST_SEED"), 10, 64)
		if err := use(dir, os.Getenv("BLOBCACHE_TEST_ROLE"), n); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// use reads and writes blobs until it is killed or has done so often enough.
func use(dir, role string, n uint64) error {
	r := rand.New(rand.NewPCG(n, 2))
	c, err := Open(Options{Dir: dir, MaxSize: 1_000_000})
	if err != nil {
		return err
	}
	defer c.Close()
	for range 150 {
		if role == "prune" {
			if err := c.Prune(int64(r.IntN(1_000_000))); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
			continue
		}
		i := r.IntN(processBlobs)
		data := content(i)
		d := digest.FromBytes(data)
		if err := c.Pin(d); err != nil {
			return err
		}
		if err := get(c, d, data, r); err != nil {
			return fmt.Errorf("blob %d: %w", i, err)
		}
		// While it is pinned it stays.
		time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
		got, err := c.Bytes(ctx, d, 1<<20)
		if err != nil || !bytes.Equal(got, data) {
			return fmt.Errorf("pinned blob %d: %w", i, err)
		}
		if err := c.SetReference(fmt.Sprint("r.example/x:", i), imgspecv1.Descriptor{Digest: d}, time.Now()); err != nil {
			return err
		}
		if err := c.Unpin(d); err != nil {
			return err
		}
	}
	return nil
}

func get(c *Cache, d digest.Digest, data []byte, r *rand.Rand) error {
	for {
		got, err := c.Bytes(ctx, d, 1<<20)
		if err == nil {
			if !bytes.Equal(got, data) {
				return errors.New("wrong content")
			}
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		w, err := c.Create(ctx, d, int64(len(data)))
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		for rest := data[w.Offset():]; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(50_000))
			if _, err := w.Write(rest[:n]); err != nil {
				return err
			}
			rest = rest[n:]
			time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
		}
		if err := errors.Join(w.Commit(), w.Close()); err != nil {
			return err
		}
	}
}

// TestProcesses: some fetch, one prunes, and some are killed at any moment; no one ever sees a fault.
func TestProcesses(t *testing.T) {
	n := *seed
	if n == 0 {
		n = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", n)
	r := rand.New(rand.NewPCG(n, 0))
	dir := t.TempDir()
	start := func(role string) *exec.Cmd {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "BLOBCACHE_TEST_DIR="+dir, "BLOBCACHE_TEST_ROLE="+role, fmt.Sprint("BLOBCACHE_TEST_SEED=", r.Uint64()))
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	long := []*exec.Cmd{start("fetch"), start("fetch"), start("prune")}
	for range 12 {
		cmd := start("fetch")
		time.Sleep(time.Duration(5+r.IntN(120)) * time.Millisecond)
		cmd.Process.Signal(syscall.SIGKILL)
		cmd.Wait()
	}
	for _, cmd := range long {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
	}
	c := open(t, dir, 0)
	list, err := c.Blobs()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range list {
		if _, err := c.Bytes(ctx, d, 1<<20); err != nil {
			t.Error(err)
		}
	}
	// The dead hold nothing back.
	if err := c.Prune(1); err != nil {
		t.Fatal(err)
	}
	if n, _ := c.Size(); n > 0 {
		t.Errorf("%d bytes are left", n)
	}
	if users, _ := filepath.Glob(filepath.Join(dir, usersDir, "*")); len(users) != 1 {
		t.Errorf("users %v", users)
	}
}
