package sbom

import (
	"archive/tar"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/storeseed"
)

// TestOverlay makes random layers and compares what the view shows with what the kernel does when they are mounted.
func TestOverlay(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("mounting needs root")
		}
		t.Skip("mounting needs root")
	}
	seed := int64(1)
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	rounds := 30
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds = 2000
	}
	r := rand.New(rand.NewSource(seed))
	for round := range rounds {
		if !t.Run(fmt.Sprint(round), func(t *testing.T) { overlayRound(t, r) }) {
			return
		}
	}
}

func overlayRound(t *testing.T, r *rand.Rand) {
	dir, err := os.MkdirTemp("/var/tmp", "nodebake.view.")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	v := &view{}
	var lower []string
	names := []string{"a", "b", "c"}
	for n := range 2 + r.Intn(4) {
		l := fmt.Sprintf("%d", n)
		check(t, os.Mkdir(filepath.Join(dir, l), 0o755))
		v.layers, lower = append(v.layers, l), append(lower, filepath.Join(dir, l))
		fill(t, r, filepath.Join(dir, l), names, 0)
	}
	disk, err := storeseed.Dir(dir)
	check(t, err)
	defer disk.Close()
	v.r = disk
	merged := filepath.Join(dir, "merged")
	check(t, os.Mkdir(merged, 0o755))
	check(t, unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")))
	t.Cleanup(func() { check(t, unix.Unmount(merged, 0)) })

	// Every path that could be, whether it is or not.
	var paths []string
	var add func(prefix string, depth int)
	add = func(prefix string, depth int) {
		for _, n := range names {
			paths = append(paths, prefix+n)
			if depth < 3 {
				add(prefix+n+"/", depth+1)
			}
		}
	}
	add("", 0)
	for _, p := range paths {
		st, err := os.Lstat(filepath.Join(merged, p))
		at, h, verr := v.lookup(p)
		check(t, verr)
		if (err == nil) != (len(at) > 0) {
			t.Fatalf("%s: the kernel says %v, and the view has it in %q\n%s", p, err, at, listing(dir))
		}
		if err != nil {
			continue
		}
		if st.IsDir() != (h.Typeflag == tar.TypeDir) || st.Mode().IsRegular() != (h.Typeflag == tar.TypeReg) {
			t.Fatalf("%s: the kernel has %s, and the view %q\n%s", p, st.Mode(), h.Typeflag, listing(dir))
		}
		switch {
		case st.Mode().IsRegular():
			want, err := os.ReadFile(filepath.Join(merged, p))
			check(t, err)
			name, err := v.file(p)
			check(t, err)
			got, err := os.ReadFile(filepath.Join(dir, name))
			check(t, err)
			if string(got) != string(want) {
				t.Fatalf("%s: the kernel has %q, and the view %q\n%s", p, want, got, listing(dir))
			}
			for _, l := range v.layers {
				shown, err := v.shows(l, p)
				check(t, err)
				if shown != (l == at[0]) {
					t.Fatalf("%s of layer %s is shown: %v\n%s", p, l, shown, listing(dir))
				}
			}
		case st.IsDir():
			entries, err := os.ReadDir(filepath.Join(merged, p))
			check(t, err)
			var want, got []string
			for _, e := range entries {
				if e.Type().IsRegular() {
					want = append(want, e.Name())
				}
			}
			files, err := v.files(p)
			check(t, err)
			for _, f := range files {
				got = append(got, filepath.Base(f))
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s: the kernel lists %q, and the view %q\n%s", p, want, got, listing(dir))
			}
		}
	}
}

// fill makes a layer's folder: files that say where they are, folders, opaque ones, links, and whiteouts.
func fill(t *testing.T, r *rand.Rand, dir string, names []string, depth int) {
	t.Helper()
	for _, n := range names {
		p := filepath.Join(dir, n)
		switch kind := r.Intn(10); {
		case kind < 2:
			check(t, os.WriteFile(p, []byte(p), 0o644))
		case kind < 3:
			check(t, unix.Mknod(p, unix.S_IFCHR, 0))
		case kind < 4:
			check(t, os.Symlink("nowhere", p))
		case kind < 8 && depth < 3:
			check(t, os.Mkdir(p, 0o755))
			if r.Intn(4) == 0 {
				check(t, unix.Setxattr(p, "trusted.overlay.opaque", []byte("y"), 0))
			}
			fill(t, r, p, names, depth+1)
		}
	}
}

// listing lists all layers, for a failure.
func listing(dir string) string {
	var b strings.Builder
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && p != dir && !strings.HasPrefix(p, dir+"/merged") {
			mark := make([]byte, 4)
			n, _ := unix.Getxattr(p, "trusted.overlay.opaque", mark)
			fmt.Fprintf(&b, "%s %s %s\n", strings.TrimPrefix(p, dir+"/"), e.Type(), mark[:max(n, 0)])
		}
		return nil
	})
	return b.String()
}
