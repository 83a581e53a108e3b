package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/storage/pkg/archive"
)

// randomSeed is NODEBAKE_SEED, or a new one that is printed.
func randomSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	return seed
}

// randomLayer makes a layer that any engine takes.
func randomLayer(t testing.TB, r *rand.Rand) ([]byte, map[string]bool) {
	var es []entry
	taken := map[string]bool{}  // paths with an entry
	isDir := map[string]bool{}  // folders, with an entry or in between
	var dirs, linkable []string // paths
	name := func() string {
		switch r.IntN(12) {
		case 0:
			return strings.Repeat(string(rune('a'+r.IntN(26))), 1+r.IntN(255))
		case 1:
			return fmt.Sprintf("ünï %d\n\xff", r.IntN(1000))
		}
		return fmt.Sprintf("f%d", r.IntN(100000))
	}
	fresh := func() (string, bool) {
		p := name()
		if len(dirs) > 0 && r.IntN(4) > 0 {
			p = dirs[r.IntN(len(dirs))] + "/" + p
		} else if r.IntN(10) == 0 {
			p = name() + "/" + name() + "/" + p
		}
		if taken[p] || isDir[p] || len(p) > 3000 {
			return "", false
		}
		for q := parentOf(p); q != ""; q = parentOf(q) {
			if taken[q] && !isDir[q] {
				return "", false
			}
		}
		for q := parentOf(p); q != ""; q = parentOf(q) {
			isDir[q] = true
		}
		taken[p] = true
		return p, true
	}
	attrs := func(e entry) entry {
		e.Mode = int64(r.IntN(0o10000))
		if e.Typeflag == tar.TypeDir {
			// The kernel hands setgid down to folders that no entry makes; the layer does not say so.
			e.Mode &^= 0o2000
		}
		if r.IntN(3) == 0 {
			e.Uid, e.Gid = r.IntN(1<<31), r.IntN(1<<31)
		}
		e.ModTime = time.Unix(r.Int64N(1<<33), r.Int64N(1e9))
		if r.IntN(8) == 0 {
			e.ModTime = time.Unix(-r.Int64N(1<<30), r.Int64N(1e9))
		}
		if r.IntN(5) == 0 && (e.Typeflag == tar.TypeReg || e.Typeflag == tar.TypeDir) {
			e.PAXRecords = map[string]string{xattrPrefix + "user.a": strings.Repeat("v\x01", r.IntN(100)+1), xattrPrefix + "trusted.b": "t"}
		}
		if r.IntN(4) == 0 {
			e.AccessTime = e.ModTime.Add(time.Hour)
		}
		return e
	}
	if r.IntN(2) == 0 {
		es = append(es, attrs(dirE("./", 0o755)))
		taken["."] = true
	}
	byPath := map[string]entry{}
	for range 5 + r.IntN(200) {
		p, ok := fresh()
		if !ok {
			continue
		}
		var e entry
		switch r.IntN(12) {
		case 0, 1, 2:
			e = attrs(dirE(p+"/", 0))
			isDir[p] = true
			dirs = append(dirs, p)
		case 3:
			e = attrs(symE(p, strings.Repeat("../", r.IntN(10))+"target"))
		case 4:
			if len(linkable) == 0 {
				delete(taken, p)
				continue
			}
			// The engine gives the inode the attributes of the last link: here they are all the same.
			target := linkable[r.IntN(len(linkable))]
			e = byPath[target]
			e.Name, e.Linkname, e.Typeflag, e.data = p, target, tar.TypeLink, ""
			e.PAXRecords = nil
		case 5:
			e = attrs(entry{Header: tar.Header{Name: p, Typeflag: []byte{tar.TypeChar, tar.TypeBlock, tar.TypeFifo}[r.IntN(3)]}})
			if e.Typeflag != tar.TypeFifo {
				e.Devmajor, e.Devminor = 1+r.Int64N(4000), r.Int64N(1<<20)
			}
		case 6:
			// A whiteout's name is taken as well: the engine does not let it clash.
			dir, base := parentOf(p), p[len(parentOf(p)):]
			wh := strings.TrimPrefix(dir+"/"+whiteoutPrefix+strings.TrimPrefix(base, "/"), "/")
			if len(strings.TrimPrefix(base, "/")) > 250 {
				delete(taken, p)
				continue
			}
			e = attrs(fileE(wh, ""))
		case 7:
			if len(dirs) == 0 {
				delete(taken, p)
				continue
			}
			delete(taken, p)
			p = dirs[r.IntN(len(dirs))] + "/" + whiteoutOpaque
			if taken[p] {
				continue
			}
			taken[p] = true
			e = attrs(fileE(p, ""))
		default:
			e = attrs(fileE(p, strings.Repeat("x", r.IntN(5)*r.IntN(5000))))
			linkable = append(linkable, p)
		}
		if strings.HasPrefix(p, "/") {
			t.Fatal(p)
		}
		byPath[p] = e
		es = append(es, e)
	}
	made := map[string]bool{}
	for _, e := range es {
		made[filepath.Clean(e.Name)] = true
	}
	return layerTar(t, es...), made
}

// TestRandomLayers writes random layers and has the engine's own unpacker write them too.
func TestRandomLayers(t *testing.T) {
	needs(t)
	r := rand.New(rand.NewPCG(randomSeed(t), 0))
	n := 60
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 3000
	}
	for i := range n {
		data, made := randomLayer(t, r)
		dir := scratch(t)
		d, err := Dir(dir)
		if err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(d, Options{Root: "store"})
		if err != nil {
			t.Fatal(err)
		}
		blob := data
		if i%2 == 0 {
			blob = gz(t, data)
		}
		id := digest.FromBytes(data)
		spec := &layerSpec{id: layerID("", id), diffID: id, blob: digest.FromBytes(blob), blobSize: int64(len(blob)), created: testTime, of: 1}
		if _, err := s.writeLayer(context.Background(), spec, bytes.NewReader(blob)); err != nil {
			t.Fatalf("layer %d: %v", i, err)
		}
		if err := s.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		rep, err := Verify(context.Background(), d, "store", VerifyOptions{})
		if err != nil || rep.Total > 0 {
			t.Errorf("layer %d: verify: %v %v", i, rep, err)
		}
		d.Close()

		theirs := filepath.Join(dir, "theirs")
		if err := os.Mkdir(theirs, 0o555); err != nil {
			t.Fatal(err)
		}
		err = archive.UntarUncompressed(bytes.NewReader(data), theirs, &archive.TarOptions{WhiteoutFormat: archive.OverlayWhiteoutFormat})
		if err != nil {
			t.Fatalf("layer %d: the engine's unpacker: %v", i, err)
		}
		sameTree(t, fmt.Sprintf("layer %d", i), hostTree(t, filepath.Join(dir, "store/overlay", spec.id, "diff")), hostTree(t, theirs),
			func(name string, f hostFile) bool { return !made[name] })
		if t.Failed() {
			keep := filepath.Join(os.TempDir(), "storeseed-failed-layer.tar")
			os.WriteFile(keep, data, 0o644)
			t.Fatalf("layer %d is kept as %s", i, keep)
		}
		os.RemoveAll(dir)
	}
}
