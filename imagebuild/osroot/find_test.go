package osroot

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodebake/nodebake/imagebuild/disk"
)

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// A partition that looks more like the root than the one that can be read is never passed over in silence.
func TestFindPassesNoRootOver(t *testing.T) {
	dir := t.TempDir()
	system := filepath.Join(dir, "system", "etc")
	if err := errors.Join(os.MkdirAll(system, 0o755), os.WriteFile(filepath.Join(system, "os-release"), []byte("ID=rescue\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	// Partition 1 is of the root type, partition 2 holds the only system that can be read.
	for _, c := range []struct {
		name, first string // what partition 1 holds
		at          int64
		typ         string
		choice      string
		number      int // of the root; 0 is an error
		warning     string
	}{
		{"nothing else", "", 0, "8304", "", 2, ""},
		{"a root that cannot be written", "_BHRfS_M", 65536 + 64, "8304", "", 0, ""},
		{"a root that is broken", "XFSB", 0, "8304", "", 0, ""},
		{"a broken root, and the other is chosen", "XFSB", 0, "8304", "2", 2, ""},
		{"broken data", "XFSB", 0, "8300", "", 2, "partition 1 (xfs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "disk.raw")
			if err := os.WriteFile(name, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(name, 32<<20); err != nil {
				t.Fatal(err)
			}
			tool(t, "sgdisk", "-n", "1:2048:+4M", "-t", "1:"+c.typ, "-n", "2:16384:+16M", name)
			tool(t, "mkfs.ext4", "-q", "-F", "-E", "offset=8388608", "-d", filepath.Dir(system), name, "16M")
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt([]byte(c.first), 1<<20+c.at); err != nil {
				t.Fatal(err)
			}
			d, err := disk.Open(name, disk.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			r, err := Find(d, c.choice)
			if c.number == 0 {
				if err == nil || !strings.Contains(err.Error(), "--root 2") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || r.Partition.Number != c.number {
				t.Fatalf("%+v, %v", r, err)
			}
			if got := strings.Join(r.Warnings, "\n"); !strings.HasPrefix(got, c.warning) || c.warning == "" && got != "" {
				t.Errorf("warnings %q, want %q", got, c.warning)
			}
		})
	}
}
