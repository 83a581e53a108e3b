package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOracle holds the proofs against a store that podman itself wrote, and then against damage:
// a proof that calls podman wrong, or that misses what was done to the store, proves nothing of ours.
func TestOracle(t *testing.T) {
	requires(t, "root", "podman", "buildah")
	images := testImages(t)
	e := newEngine(t)
	for _, n := range []string{"hello", "odd", "exact"} {
		e.do(t, "podman", "load", "-q", "-i", images[n].ociArchive)
	}
	root := e.dir + "/root"
	checkStore(t, root, false)
	e.do(t, "podman", "load", "-q", "-i", images["quirks"].ociArchive)
	for _, n := range []string{"hello", "odd", "exact", "quirks"} {
		compareStore(t, root, images[n])
	}
	if t.Failed() {
		return
	}

	odd := images["odd"].facts(t)
	l := odd.layers[len(odd.layers)-2]
	diff := filepath.Join(root, "overlay", l.id, "diff", "odd")
	compare := func() string {
		r, err := l.open()
		check(t, err)
		defer r.Close()
		want, err := tarNodes(r)
		check(t, err)
		got, err := diskNodes(filepath.Dir(diff), "")
		check(t, err)
		return strings.Join(compareNodes(want, got), "\n")
	}
	if faults := compare(); faults != "" {
		t.Fatalf("before any damage: %s", faults)
	}
	for _, damage := range []struct {
		name string
		do   func() error
		says string
	}{
		{"mode", func() error { return os.Chmod(diff+"/block", 0o644) }, "mode"},
		{"owner", func() error { return os.Lchown(diff+"/to-file", 1, 1) }, "owner"},
		{"attribute", func() error {
			_, err := tool("setfattr", "-x", "security.capability", diff+"/capable")
			return err
		}, "attributes"},
		{"content", func() error {
			info, err := os.Stat(diff + "/block")
			if err == nil {
				err = os.WriteFile(diff+"/block", []byte(strings.Repeat("0123456789abcdeF", 256)), 0)
			}
			if err == nil {
				err = os.Chtimes(diff+"/block", info.ModTime(), info.ModTime())
			}
			return err
		}, "content"},
		{"link", func() error {
			if err := os.Remove(diff + "/fourth"); err != nil {
				return err
			}
			return copyFile(diff+"/links/first", diff+"/fourth", 0o640)
		}, "one inode"},
		{"removed", func() error { return os.Remove(diff + "/fifo") }, "is missing"},
		{"added", func() error { return os.WriteFile(diff+"/more", nil, 0o644) }, "is not in the layer"},
	} {
		check(t, damage.do())
		if faults := compare(); !strings.Contains(faults, damage.says) {
			t.Errorf("damage of kind %q was not seen; the comparison says: %s", damage.name, faults)
		}
	}
}
