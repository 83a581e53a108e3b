package storageconf

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPodman lets the real podman of this machine (4.3.1 on Debian 12: the rules up
// to containers/storage 1.62) read edited files and list the images of the stores.
func TestPodman(t *testing.T) {
	missing := t.Skipf
	if os.Getenv("CI") == "true" {
		missing = t.Fatalf
	}
	if _, err := exec.LookPath("podman"); err != nil {
		missing("no podman: %v", err)
	}
	if os.Getuid() != 0 {
		missing("podman would run rootless; this test is about root's files")
	}
	dir := t.TempDir()
	for _, s := range []string{"new", "old"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: s, Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		layer := filepath.Join(dir, s+".tar")
		if err := os.WriteFile(layer, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("podman", "--root", filepath.Join(dir, s), "--runroot", filepath.Join(dir, "run"), "--storage-driver", "overlay", "import", "-q", layer, "localhost/"+s+":1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		unmount(t, filepath.Join(dir, s, "overlay"))
	}
	newStore, oldStore := filepath.Join(dir, "new"), filepath.Join(dir, "old")

	for i, c := range []struct {
		name, conf string // G and R stand for graphroot and runroot, OLD for the old store
		want       string
	}{
		{"lines", "[storage]\ndriver = \"overlay\"\ngraphroot = \"G\"\nrunroot = \"R\"\n[storage.options]\nadditionalimagestores = [\n  'OLD', # old\n]\n", "new old"},
		{"one line", "[storage]\ndriver = \"overlay\"\ngraphroot = \"G\"\nrunroot = \"R\"\n[storage.options]\nadditionalimagestores = [\"OLD\"]", "new old"},
		{"commented out", "[storage]\ndriver = \"overlay\"\ngraphroot = \"G\"\nrunroot = \"R\"\n[storage.options]\n# additionalimagestores = [\n# ]\n[storage.options.overlay]\nmountopt = \"nodev\"\n", "new"},
		{"no section", "[storage]\ndriver = \"overlay\"\ngraphroot = \"G\"\nrunroot = \"R\"\n[storage.options.overlay]\nmountopt = \"nodev\"\n", "new"},
		{"subtable first", "[storage.options.overlay]\nmountopt = \"nodev\"\n[storage]\ndriver = \"overlay\"\ngraphroot = \"G\"\nrunroot = \"R\"", "new"},
		{"dotted", "storage.driver = \"overlay\"\nstorage.graphroot = \"G\"\nstorage.runroot = \"R\"\n", "new"},
		{"dotted options", "[storage]\ndriver = \"overlay\"\noptions.overlay.mountopt = \"nodev\"\ngraphroot = \"G\"\nrunroot = \"R\"\n", "new"},
		{"inline", "[storage]\ndriver = \"overlay\"\noptions = {additionalimagestores = ['OLD']}\ngraphroot = \"G\"\nrunroot = \"R\"\n", "new old"},
		{"inline, no list", "storage = {driver = \"overlay\", graphroot = \"G\", runroot = \"R\"}\n", "new"},
		{"CRLF", "[storage]\r\ndriver = \"overlay\"\r\ngraphroot = \"G\"\r\nrunroot = \"R\"\r\n\r\n[storage.options]\r\nadditionalimagestores = [\r\n]\r\n", "new"},
		{"no driver", "[storage]\ngraphroot = \"G\"\nrunroot = \"R\"\n", "new"},
		{"default", string(Default("/x")), "new"},
		{"vfs does not read it", "[storage]\ndriver = \"vfs\"\ngraphroot = \"G\"\nrunroot = \"R\"\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			graph, run := filepath.Join(dir, fmt.Sprint("g", i)), filepath.Join(dir, fmt.Sprint("r", i))
			conf := strings.NewReplacer("\"G\"", Quote(graph), "\"R\"", Quote(run), "OLD", oldStore, Quote("/x"), Quote(oldStore),
				Quote(DefaultGraphRoot), Quote(graph), Quote(DefaultRunRoot), Quote(run)).Replace(c.conf)
			if c.name == "default" {
				c.want = "new old"
			}
			out, changed, err := AddStore([]byte(conf), newStore)
			if err != nil || !changed {
				t.Fatal(changed, err)
			}
			f := filepath.Join(dir, "storage.conf")
			if err := os.WriteFile(f, out, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("podman", "images", "--format", "{{.Repository}} {{.ReadOnly}}")
			cmd.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+f)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			got, err := cmd.Output()
			unmount(t, filepath.Join(graph, "overlay"))
			if err != nil {
				t.Fatalf("%v\n%s\n%s", err, stderr.Bytes(), out)
			}
			for _, name := range []string{"new", "old"} {
				listed := strings.Contains(string(got), "localhost/"+name+" true\n")
				if listed != strings.Contains(c.want, name) {
					t.Errorf("podman lists %q, want the images %q read-only\n%s\n%s", got, c.want, stderr.Bytes(), out)
				}
			}
		})
	}
}

// unmount undoes podman's private bind mount of the driver's folder, which would
// keep the test's folder from being removed.
func unmount(t *testing.T, dir string) {
	t.Helper()
	t.Cleanup(func() { _ = exec.Command("umount", "-q", dir).Run() })
}
