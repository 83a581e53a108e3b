package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

// putLayer writes one uncompressed layer into a fresh store in memory.
func putLayer(t testing.TB, data []byte) (*memFS, *Store, error) {
	t.Helper()
	m := newMemFS()
	s, err := OpenStore(m, Options{Root: "var/images", Now: testTime, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	spec := &layerSpec{id: layerID("", d), diffID: d, blob: d, blobSize: int64(len(data)), created: testTime, of: 1}
	_, err = s.writeLayer(context.Background(), spec, bytes.NewReader(data))
	return m, s, err
}

// rawTar is a tar whose headers archive/tar would not write.
func rawTar(es ...[]byte) []byte {
	return append(bytes.Join(es, nil), make([]byte, 1024)...)
}

// rawHeader is one ustar header, its checksum made good.
func rawHeader(name string, typeflag byte, size string, edit func(b []byte)) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000644\x00")
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], size)
	copy(b[136:], "14570000000\x00")
	b[156] = typeflag
	copy(b[257:], "ustar\x0000")
	if edit != nil {
		edit(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	return b
}

// paxHeader is an extended header for the entry after it.
func paxHeader(records ...string) []byte {
	var b []byte
	for _, r := range records {
		n := len(r) + 3
		if n+1 > 9 {
			n++
		}
		b = append(b, fmt.Sprintf("%d %s\n", n, r)...)
	}
	h := rawHeader("PaxHeaders/x", 'x', fmt.Sprintf("%011o\x00", len(b)), nil)
	return append(h, append(b, make([]byte, 512-len(b))...)...)
}

func TestHostileLayers(t *testing.T) {
	long := strings.Repeat("n", 256)
	xattr := func(k string) entry {
		e := fileE("x", "1")
		e.PAXRecords = map[string]string{"SCHILY.xattr." + k: "y"}
		return e
	}
	device := func(name string) entry {
		return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}}
	}
	good := layerTar(t, dirE("d/", 0o755), fileE("d/f", strings.Repeat("content", 1000)))
	tests := []struct {
		name string
		data []byte
		want string // part of the error; "" means accepted
	}{
		{"parent", layerTar(t, fileE("../x", "1")), `entry "../x": layer refused: its name has a ".." component`},
		{"inner parent", layerTar(t, fileE("a/../../x", "1")), `".." component`},
		{"absolute name stays inside", layerTar(t, fileE("/etc/passwd", "1")), ""},
		{"link to parent", layerTar(t, linkE("l", "../../etc/passwd")), `entry "l": layer refused: its hard link target "../../etc/passwd" leaves the layer: it has a ".." component`},
		{"link to absolute", layerTar(t, linkE("l", "/etc/passwd")), `hard link to "/etc/passwd", which this layer does not hold`},
		{"link to nothing", layerTar(t, linkE("l", "gone")), `hard link to "gone", which this layer does not hold`},
		{"link to later", layerTar(t, linkE("l", "f"), fileE("f", "1")), `hard link to "f", which this layer does not hold`},
		{"link to folder", layerTar(t, dirE("d", 0o755), linkE("l", "d")), `hard link to "d", which this layer does not hold as a file`},
		{"link to itself", layerTar(t, linkE("l", "l")), `hard link to "l"`},
		{"link to root", layerTar(t, linkE("l", "./")), `hard link to the layer's root`},
		{"link through symlink", layerTar(t, symE("s", "/etc"), linkE("l", "s/passwd")), `hard link to "s/passwd"`},
		{"link to symlink", layerTar(t, symE("s", "/etc/passwd"), linkE("l", "s")), ""},
		{"below symlink", layerTar(t, symE("s", "/etc"), fileE("s/passwd", "1")), `entry "s/passwd": layer refused: it lies below "s", which is no folder`},
		{"deep below symlink", layerTar(t, dirE("a", 0o755), symE("a/s", "../../.."), fileE("a/s/b/c", "1")), `it lies below "a/s", which is no folder`},
		{"below file", layerTar(t, fileE("f", "1"), fileE("f/g", "1")), `it lies below "f"`},
		{"below device", layerTar(t, device("f"), fileE("f/g", "1")), `it lies below "f"`},
		{"same file twice", layerTar(t, fileE("f", "1"), fileE("f", "2")), `entry "f": layer refused: the path is there already`},
		{"same file, other spelling", layerTar(t, fileE("f", "1"), fileE("./f", "2")), `the path is there already`},
		{"same folder twice", layerTar(t, dirE("d/", 0o755), dirE("d", 0o700)), `the path is there already`},
		{"file then folder", layerTar(t, fileE("d", ""), dirE("d/", 0o700)), `the path is there already`},
		{"folder then symlink", layerTar(t, dirE("d/", 0o700), symE("d", "/")), `the path is there already`},
		{"symlink over hidden folder", layerTar(t, fileE("d/f", "1"), symE("d", "/")), `entry "d": layer refused: the path is there already`},
		{"root as file", rawTar(rawHeader(".", '0', "00000000000\x00", nil)), `it would replace the layer's root`},
		{"root as symlink", layerTar(t, symE("./", "/")), `it would replace the layer's root`},
		{"name too long", layerTar(t, fileE(long, "1")), `has 256 bytes, more than 255`},
		{"longest name", layerTar(t, fileE(long[:255], "1")), ""},
		{"whiteout of nothing", layerTar(t, fileE(".wh.gone", "")), ""},
		{"whiteout with content", layerTar(t, fileE(".wh.f", "1")), `entry ".wh.f": layer refused: a whiteout must be an empty file`},
		{"whiteout without name", layerTar(t, fileE("a/.wh.", "")), `no whiteout of a file`},
		{"whiteout of dot", layerTar(t, fileE(".wh..", "")), `no whiteout of a file`},
		{"whiteout of dots", layerTar(t, fileE(".wh...", "")), `no whiteout of a file`},
		{"whiteout as folder", layerTar(t, dirE(".wh.x/", 0o755)), `a whiteout must be an empty file`},
		{"aufs links", layerTar(t, fileE(".wh..wh.plnk", "")), `entry ".wh..wh.plnk": layer refused`},
		{"aufs folder", layerTar(t, dirE(".wh..wh.plnk/", 0o700)), `layer refused`},
		{"whiteout below symlink", layerTar(t, symE("s", "/etc"), fileE("s/.wh.passwd", "")), ""},
		{"opaque below symlink", layerTar(t, symE("s", "/etc"), fileE("s/.wh..wh..opq", "")), `opaque folder "s"`},
		{"overlay redirect", layerTar(t, xattr("trusted.overlay.redirect")), `it sets trusted.overlay.redirect, which belongs to the overlay`},
		{"overlay metacopy", layerTar(t, xattr("trusted.overlay.metacopy")), `it sets trusted.overlay.metacopy`},
		{"user attribute", layerTar(t, xattr("user.x")), ""},
		{"PAX sparse", rawTar(paxHeader("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=1024", "GNU.sparse.name=s"),
			rawHeader("s", '0', "00000001000\x00", nil), append([]byte("1\n0\n512\n"), make([]byte, 503)...)), `it is a sparse entry`},
		{"PAX name with a NUL", rawTar(paxHeader("path=a\x00b"), rawHeader("s", '0', "00000000000\x00", nil)), `layer refused`},
		{"GNU sparse", rawTar(rawHeader("s", 'S', "00000000000\x00", func(b []byte) { copy(b[257:], "ustar  \x00") })), `entry "s": layer refused: it is a sparse entry`},
		{"unknown type", rawTar(rawHeader("s", 'V', "00000000000\x00", nil)), `its type is 'V'`},
		{"contiguous file", rawTar(rawHeader("s", '7', "00000000000\x00", nil)), `its type is '7'`},
		{"folder with content", rawTar(rawHeader("s/", '5', "00000000004\x00", nil), make([]byte, 512)), `layer refused`},
		{"negative size", rawTar(rawHeader("s", '0', "-0000000001\x00", nil)), `layer refused`},
		{"base-256 negative size", rawTar(rawHeader("s", '0', "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", nil)), `layer refused`},
		{"huge size", rawTar(rawHeader("s", '0', "77777777777\x00", nil)), `entry "s"`},
		{"negative owner", rawTar(rawHeader("s", '0', "00000000000\x00", func(b []byte) { copy(b[108:], "\xff\xff\xff\xff\xff\xff\xff\xff") })), `its owner is -1:0`},
		{"truncated in content", good[:len(good)-3000], `entry "d/f"`},
		{"truncated in header", good[:1124], `layer refused`},
		{"no trailer", good[:len(good)-1024], ""},
		{"trailing bytes", append(bytes.Clone(good), []byte(strings.Repeat("trailing", 100000))...), ""},
		{"empty", nil, ""},
		{"not a tar", bytes.Repeat([]byte("hello world "), 1000), `layer refused`},
		{"empty tar", make([]byte, 10240), ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m, s, err := putLayer(t, tc.data)
			for name := range m.nodes {
				if name != "" && name != "var" && !strings.HasPrefix(name+"/", "var/images/") {
					t.Errorf("%q was written", name)
				}
			}
			if tc.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Commit(context.Background()); err != nil {
					t.Fatal(err)
				}
				rep, err := Verify(context.Background(), m, "var/images", VerifyOptions{})
				if err != nil || rep.Total != 0 {
					t.Fatalf("verify: %v %v", rep, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "layer 1 of 1 (sha256:") {
				t.Fatalf("got %v, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("not one sentence: %q", err)
			}
			// What was refused has left nothing, and the store is as good as before.
			if len(s.layers) != 0 {
				t.Error("the layer is recorded")
			}
			for name := range m.nodes {
				if strings.Contains(name, digest.FromBytes(tc.data).Encoded()) {
					t.Errorf("%q is left", name)
				}
			}
			if err := s.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// noRemove is a filesystem that cannot take anything away.
type noRemove struct{ FS }

func TestHalfWrittenLayer(t *testing.T) {
	data := layerTar(t, fileE("a", "1"), fileE("../b", "1"))
	s, err := OpenStore(noRemove{newMemFS()}, Options{Root: "s"})
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(data)
	if _, err = s.writeLayer(context.Background(), &layerSpec{id: layerID("", d), diffID: d, blob: d, blobSize: -1, of: 1}, bytes.NewReader(data)); !errors.Is(err, ErrHostileLayer) {
		t.Fatal(err)
	}
	if err := s.Commit(context.Background()); err == nil || !strings.Contains(err.Error(), "half written") {
		t.Fatalf("Commit: %v", err)
	}
}

func TestWrongDigests(t *testing.T) {
	data := layerTar(t, fileE("a", strings.Repeat("1", 5000)))
	packed := gz(t, data)
	other := digest.FromString("other")
	tests := []struct {
		name   string
		blob   []byte
		spec   layerSpec
		target error
		want   string
	}{
		{"diffID", packed, layerSpec{diffID: other, blobSize: int64(len(packed))}, ErrDigestMismatch, "its content hashes to " + digest.FromBytes(data).String()},
		{"more than promised", packed, layerSpec{diffID: digest.FromBytes(data), blobSize: int64(len(packed)) - 1}, ErrDigestMismatch, "goes on past the"},
		{"less than promised", packed, layerSpec{diffID: digest.FromBytes(data), blobSize: int64(len(packed)) + 1}, ErrDigestMismatch, "its manifest promises"},
		{"cut gzip", packed[:len(packed)-20], layerSpec{diffID: digest.FromBytes(data), blobSize: -1}, io.ErrUnexpectedEOF, "unexpected EOF"},
		{"broken gzip", append(bytes.Clone(packed[:len(packed)-8]), 1, 2, 3, 4, 5, 6, 7, 8), layerSpec{diffID: digest.FromBytes(data), blobSize: -1}, nil, "gzip"},
		{"cut zstd", zst(t, data)[:40], layerSpec{diffID: digest.FromBytes(data), blobSize: -1}, io.ErrUnexpectedEOF, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m := newMemFS()
			s, err := OpenStore(m, Options{Root: "s"})
			if err != nil {
				t.Fatal(err)
			}
			tc.spec.blob, tc.spec.of, tc.spec.id = digest.FromBytes(tc.blob), 1, layerID("", tc.spec.diffID)
			_, err = s.writeLayer(context.Background(), &tc.spec, bytes.NewReader(tc.blob))
			if err == nil || (tc.target != nil && !errors.Is(err, tc.target)) || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %v %q", err, tc.target, tc.want)
			}
		})
	}
}

// A path that is hidden and made anew in one layer is the new one; the engine's own check agrees.
func TestWhiteoutOrder(t *testing.T) {
	tests := []struct {
		name                      string
		es                        []entry
		opaque, whiteout, regular string
	}{
		{"whiteout then file", []entry{fileE(".wh.f", ""), fileE("f", "1")}, "", "", "f"},
		{"file then whiteout", []entry{fileE("f", "1"), fileE(".wh.f", "")}, "", "", "f"},
		{"whiteout then folder", []entry{fileE("d/.wh.e", ""), dirE("d/e/", 0o700)}, "d/e", "", ""},
		{"folder then whiteout", []entry{dirE("d/e/", 0o700), fileE("d/.wh.e", "")}, "d/e", "", ""},
		{"opaque then folder", []entry{fileE("d/.wh..wh..opq", ""), dirE("d/", 0o700), fileE("d/f", "1")}, "d", "", "d/f"},
		{"folder then opaque", []entry{dirE("d/", 0o700), fileE("d/.wh..wh..opq", ""), fileE("d/f", "1")}, "d", "", "d/f"},
		{"opaque folder that no entry makes", []entry{fileE("d/.wh..wh..opq", "")}, "d", "", ""},
		{"opaque root", []entry{fileE(".wh..wh..opq", "")}, ".", "", ""},
		{"whiteout below a whiteout", []entry{fileE(".wh.d", ""), fileE("d/.wh.e", "")}, "", "d", ""},
		{"whiteout", []entry{fileE("a/b/.wh.c", "")}, "", "a/b/c", ""},
		{"hard-linked whiteout", []entry{fileE(".wh.c", ""), linkE(".wh.d", ".wh.c")}, "", "d", ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			data := layerTar(t, tc.es...)
			m, s, err := putLayer(t, data)
			if err != nil {
				t.Fatal(err)
			}
			base := "var/images/overlay/" + digest.FromBytes(data).Encoded() + "/diff/"
			for name, n := range m.nodes {
				rel, ok := strings.CutPrefix(name+"/", base)
				if !ok {
					continue
				}
				if rel = strings.TrimSuffix(rel, "/"); rel == "" {
					rel = "."
				}
				mark := n.h.PAXRecords[xattrPrefix+opaqueXattr]
				if (mark == "y") != (rel == tc.opaque) {
					t.Errorf("%s: opaque mark %q", rel, mark)
				}
				if n.h.Typeflag == tar.TypeChar && rel != tc.whiteout && tc.name != "hard-linked whiteout" {
					t.Errorf("%s is a whiteout", rel)
				}
			}
			if tc.whiteout != "" && m.nodes[base+tc.whiteout].h.Typeflag != tar.TypeChar {
				t.Errorf("%s is no whiteout", tc.whiteout)
			}
			if tc.regular != "" && m.nodes[base+tc.regular].h.Typeflag != tar.TypeReg {
				t.Errorf("%s is no file", tc.regular)
			}
			if err := s.Commit(context.Background()); err != nil {
				t.Fatal(err)
			}
			rep, err := Verify(context.Background(), m, "var/images", VerifyOptions{})
			if err != nil || rep.Total != 0 {
				t.Fatalf("verify: %+v %v", rep, err)
			}
		})
	}
}

func TestLabels(t *testing.T) {
	m := newMemFS()
	var asked []string
	s, err := OpenStore(m, Options{Root: "var/images", Label: func(p string, typ byte) string {
		asked = append(asked, p)
		return "system_u:object_r:container_ro_file_t:s0"
	}})
	if err != nil {
		t.Fatal(err)
	}
	e := fileE("a/f", "1")
	e.PAXRecords = map[string]string{xattrPrefix + "security.selinux": "evil\x00"[:4]}
	data := layerTar(t, e, linkE("l", "a/f"), fileE(".wh.x", ""), fileE("a/.wh..wh..opq", ""))
	d := digest.FromBytes(data)
	if _, err := s.writeLayer(context.Background(), &layerSpec{id: layerID("", d), diffID: d, blob: d, blobSize: -1, of: 1}, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	for name, n := range m.nodes {
		if name != "" && n.h.PAXRecords[xattrPrefix+"security.selinux"] != "system_u:object_r:container_ro_file_t:s0\x00" {
			t.Errorf("%s: label %q", name, n.h.PAXRecords[xattrPrefix+"security.selinux"])
		}
	}
	for _, p := range asked {
		if !strings.HasPrefix(p, "/var") {
			t.Errorf("asked for %q", p)
		}
	}
}

func FuzzLayer(f *testing.F) {
	f.Add(layerTar(f, dirE("./", 0o755), fileE("a/b", "1"), linkE("l", "a/b"), symE("s", "a"), fileE(".wh.x", ""), fileE("a/.wh..wh..opq", "")))
	f.Add(layerTar(f, fileE(".wh.d", ""), fileE("d/.wh.e", ""), fileE("d/e", "1")))
	f.Add(gz(f, layerTar(f, fileE("a", "1"))))
	f.Add(zst(f, layerTar(f, fileE("a", "1"))))
	f.Add(rawTar(rawHeader("s", 'S', "00000000000\x00", nil)))
	f.Add(rawTar(rawHeader("s/", '5', "00000000004\x00", nil), make([]byte, 512)))
	f.Add(rawTar(rawHeader("pax_global_header", 'g', "00000000016\x00", nil), append([]byte("14 comment=abc\n"), make([]byte, 497)...), rawHeader("f", '0', "00000000000\x00", nil)))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<20 {
			return
		}
		// The diffID of a compressed layer is not the blob's; such input reaches the end only uncompressed.
		m, s, err := putLayer(t, data)
		for name := range m.nodes {
			if name != "" && name != "var" && !strings.HasPrefix(name+"/", "var/images/") {
				t.Errorf("%q was written", name)
			}
		}
		if err := s.Commit(context.Background()); err != nil {
			t.Fatal(err)
		}
		rep, verr := Verify(context.Background(), m, "var/images", VerifyOptions{})
		if verr != nil || rep.Total != 0 {
			t.Fatalf("layer: %v, verify: %+v %v", err, rep, verr)
		}
	})
}

func FuzzRecords(f *testing.F) {
	m, s, err := putLayer(f, layerTar(f, fileE("a", "1")))
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Commit(context.Background()); err != nil {
		f.Fatal(err)
	}
	layers := m.nodes["var/images/"+layersJSON].data
	id := s.layers[0].ID
	f.Add(layers, []byte(`[{"id":"`+id+`","layer":"`+id+`","names":["a/b:c"],"created":"2024-01-01T00:00:00Z"}]`))
	f.Add([]byte(`[{"id":"`+id+`","parent":"`+id+`"}]`), []byte(`[]`))
	f.Add([]byte(`[null,{},{"id":"../../x"}]`), []byte(`[{"id":"`+id+`","big-data-names":["../x",""],"big-data-sizes":{"x":-1}}]`))
	f.Fuzz(func(t *testing.T, layers, images []byte) {
		m := newMemFS()
		for _, d := range []string{"s", "s/overlay", "s/overlay/l", "s/overlay-layers", "s/overlay-images"} {
			m.Add(&tar.Header{Name: d, Typeflag: tar.TypeDir}, nil)
		}
		m.Add(&tar.Header{Name: "s/" + layersJSON, Typeflag: tar.TypeReg, Size: int64(len(layers))}, bytes.NewReader(layers))
		m.Add(&tar.Header{Name: "s/" + imagesJSON, Typeflag: tar.TypeReg, Size: int64(len(images))}, bytes.NewReader(images))
		_, lerr := List(m, "s")
		rep, err := Verify(context.Background(), m, "s", VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if lerr != nil && rep.Total == 0 {
			t.Errorf("List: %v, but Verify finds nothing", lerr)
		}
		if _, err := OpenStore(m, Options{Root: "s"}); err == nil && json.Valid(layers) && len(layers) > 2 && lerr != nil {
			t.Errorf("List: %v, but OpenStore takes it", lerr)
		}
	})
}
