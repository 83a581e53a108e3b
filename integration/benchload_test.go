package integration

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"fmt"
	"math/rand"
	"path/filepath"
	"testing"
	"time"
)

//go:embed benchload_test.go
var benchRecipe []byte

// load is a set of images to measure with.
type load struct {
	name     string
	files    int // small ones
	bytes    int64
	archives []string
}

// small files have this many bytes on average; the rest of a load's bytes is in large ones.
const smallFile = 8 << 10

// makeLoad writes three images that share a layer: one of many small files, one of a few large files, one of both.
// The bytes are the same each time, and about half of them compress, as programs do.
func makeLoad(t testing.TB, name string, files int, total int64) load {
	t.Helper()
	requires(t, "skopeo")
	names := []string{"small", "large", "mixed"}
	dir, err := cached("bench-"+name, [][]byte{benchRecipe, imagesRecipe, fmt.Append(nil, files, total)}, func(dir string) error {
		large := total - int64(files)*smallFile
		shared := benchLayer("usr", 1, files/4, large/8)
		for i, l := range []layer{
			benchLayer("small", 2, files/2, 0),
			benchLayer("large", 3, 0, large/2),
			benchLayer("mixed", 4, files/4, large*3/8),
		} {
			layout := filepath.Join(dir, "layout")
			ref := "localhost/bench/" + names[i] + ":1"
			if err := writeLayout(layout, ref, "amd64", shared, l); err != nil {
				return err
			}
			if _, err := tool("skopeo", "copy", "-q", "oci:"+layout+":"+ref, "oci-archive:"+filepath.Join(dir, names[i]+".tar")+":"+ref); err != nil {
				return err
			}
			removeAll(layout)
		}
		return nil
	})
	check(t, err)
	l := load{name: name, files: files, bytes: total}
	for _, n := range names {
		l.archives = append(l.archives, filepath.Join(dir, n+".tar"))
	}
	return l
}

func benchLayer(top string, seed int64, small int, large int64) layer {
	r := rand.New(rand.NewSource(seed))
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	put := func(h tar.Header, size int64) {
		h.ModTime, h.Size, h.Format = time.Unix(1700000000, 0), size, tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		noise, text := make([]byte, 512), make([]byte, 512)
		for left := size; left > 0; {
			r.Read(noise)
			copy(text, fmt.Sprintf("%s %d\n", top, left%97))
			for _, b := range [][]byte{noise, text} {
				n := min(left, int64(len(b)))
				w.Write(b[:n])
				left -= n
			}
		}
	}
	put(tar.Header{Typeflag: tar.TypeDir, Name: top + "/", Mode: 0o755}, 0)
	for i := range small {
		if i%100 == 0 {
			put(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%s/%04d/", top, i/100), Mode: 0o755}, 0)
		}
		put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/%04d/file-%02d", top, i/100, i%100), Mode: 0o644}, r.Int63n(2*smallFile))
	}
	for i := 0; large > 0; i++ {
		n := min(large, 40<<20)
		put(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%s/large-%d", top, i), Mode: 0o755}, n)
		large -= n
	}
	w.Close()
	return layer{tar: buf.Bytes()}
}
