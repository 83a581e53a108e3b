package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// verifyStore is a store in memory with one image of two layers.
func verifyStore(t testing.TB) (m *memFS, im *testImage, base, top string) {
	t.Helper()
	x := fileE("x", "attributes")
	x.PAXRecords = map[string]string{xattrPrefix + "security.capability": "caps", xattrPrefix + "user.a": "1"}
	dev := entry{Header: tar.Header{Name: "dev", Typeflag: tar.TypeChar, Mode: 0o600, Devmajor: 1, Devminor: 3}}
	im = buildImage(t, imageSpec{},
		layerTar(t, dirE("./", 0o755), dirE("d/", 0o750), fileE("d/f", strings.Repeat("content ", 500)), linkE("l", "d/f"), symE("s", "d/f"), x, dev, fileE("hidden/file", "h"), fileE("other", "o")),
		layerTar(t, fileE(".wh.other", ""), dirE("d/", 0o750), fileE("d/.wh..wh..opq", ""), fileE("d/g", "g")))
	reg := newRegistry(t)
	reg.push("1", im)
	p := newPuller(t)
	p.pull("docker://" + reg.host() + "/x:1")
	p.commit()
	base = layerID("", im.diffIDs[0])
	return p.fs, im, base, layerID(base, im.diffIDs[1])
}

func TestVerifyFindsFaults(t *testing.T) {
	_, im, base, top := verifyStore(t)
	img := im.config.Encoded()
	const root = "var/images/"
	in := func(layer, path string) string { return root + "overlay/" + layer + "/diff/" + path }
	hdr := func(path string, edit func(*tar.Header)) func(*memFS) {
		return func(m *memFS) { edit(&m.nodes[path].h) }
	}
	add := func(name string, typ byte) func(*memFS) {
		return func(m *memFS) {
			if err := m.Add(&tar.Header{Name: name, Typeflag: typ}, nil); err != nil {
				panic(err)
			}
		}
	}
	del := func(name string) func(*memFS) {
		return func(m *memFS) {
			if m.nodes[name] == nil {
				panic(name)
			}
			delete(m.nodes, name)
		}
	}
	data := func(name string, edit func([]byte) []byte) func(*memFS) {
		return func(m *memFS) {
			n := *m.nodes[name]
			n.data = edit(bytes.Clone(n.data))
			*m.nodes[name] = n
		}
	}
	swap := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte {
			if !bytes.Contains(b, []byte(old)) {
				panic(old)
			}
			return bytes.Replace(b, []byte(old), []byte(new), 1)
		}
	}
	set := func(s string) func([]byte) []byte { return func([]byte) []byte { return []byte(s) } }
	bigData := func(key string) string { return root + imagesDir + "/" + img + "/" + bigDataFile(key) }
	manifestKey := "manifest-" + im.manifest.String()

	tests := []struct {
		name  string
		hurt  func(*memFS)
		layer string
		image string
		path  string
		want  string
	}{
		{"content", data(in(base, "d/f"), swap("content", "Content")), base, "", "d/f", "its content has changed"},
		{"content hashes", data(in(base, "d/f"), swap("content", "Content")), base, "", "", "its files hash to sha256:"},
		{"shorter", data(in(base, "d/f"), func(b []byte) []byte { return b[:10] }), base, "", "d/f", "it has 10 bytes instead of 4000"},
		{"file gone", del(in(base, "x")), base, "", "x", "it is missing"},
		{"empty file gone", del(in(top, "d/g")), top, "", "d/g", "it is missing"},
		{"mode", hdr(in(base, "d/f"), func(h *tar.Header) { h.Mode = 0o4644 }), base, "", "d/f", "mode is 4644 instead of 0644"},
		{"owner", hdr(in(base, "x"), func(h *tar.Header) { h.Uid = 5 }), base, "", "x", "owner is 5:0 instead of 0:0"},
		{"group of a folder", hdr(in(base, "d"), func(h *tar.Header) { h.Gid = 5 }), base, "", "d", "owner is 0:5 instead of 0:0"},
		{"time", hdr(in(base, "x"), func(h *tar.Header) { h.ModTime = h.ModTime.Add(1) }), base, "", "x", "modification time is 2024-03-01T12:30:15.12345679Z instead of 2024-03-01T12:30:15.123456789Z"},
		{"time of a symlink", hdr(in(base, "s"), func(h *tar.Header) { h.ModTime = time.Unix(0, 0) }), base, "", "s", "modification time"},
		{"target", hdr(in(base, "s"), func(h *tar.Header) { h.Linkname = "/etc" }), base, "", "s", `target is "/etc" instead of "d/f"`},
		{"device", hdr(in(base, "dev"), func(h *tar.Header) { h.Devminor = 5 }), base, "", "dev", "device is 1:5 instead of 1:3"},
		{"type", hdr(in(base, "dev"), func(h *tar.Header) { h.Typeflag = tar.TypeBlock }), base, "", "dev", "it is a block device instead of a character device"},
		{"attribute gone", hdr(in(base, "x"), func(h *tar.Header) { delete(h.PAXRecords, xattrPrefix+"security.capability") }), base, "", "x", "the attribute security.capability is missing"},
		{"attribute changed", hdr(in(base, "x"), func(h *tar.Header) { h.PAXRecords[xattrPrefix+"user.a"] = "2" }), base, "", "x", `the attribute user.a is "2" instead of "1"`},
		{"attribute too many", hdr(in(base, "x"), func(h *tar.Header) { h.PAXRecords[xattrPrefix+"user.b"] = "2" }), base, "", "x", "it has the attribute user.b, which the layer does not give it"},
		{"link broken", func(m *memFS) {
			n := *m.nodes[in(base, "l")]
			n.data = bytes.ToUpper(n.data)
			m.nodes[in(base, "l")] = &n
		}, base, "", "l", `it is not a hard link to "d/f"`},
		{"link with other owner", func(m *memFS) { n := *m.nodes[in(base, "l")]; n.h.Uid = 3; m.nodes[in(base, "l")] = &n }, base, "", "l", `it is not a hard link to "d/f"`},
		{"extra file", add(in(base, "d/evil"), tar.TypeReg), base, "", "d/evil", "no entry of the layer made it"},
		{"extra folder", add(in(top, "evil"), tar.TypeDir), top, "", "evil", "no entry of the layer made it"},
		{"hidden folder's mode", hdr(in(base, "hidden"), func(h *tar.Header) { h.Mode = 0o777 }), base, "", "hidden", "mode is 0777 instead of 0755"},
		{"hidden folder gone", func(m *memFS) { del(in(base, "hidden/file"))(m); del(in(base, "hidden"))(m) }, base, "", "hidden", "it is missing"},
		{"root's mode", hdr(root+"overlay/"+base+"/diff", func(h *tar.Header) { h.Mode = 0o700 }), base, "", "", "mode is 0700 instead of 0755"},
		{"root's inherited mode", hdr(root+"overlay/"+top+"/diff", func(h *tar.Header) { h.Mode = 0o700 }), top, "", "", "mode is 0700 instead of 0755"},
		{"whiteout gone", del(in(top, "other")), top, "", "other", "its whiteout: it is missing"},
		{"whiteout as file", hdr(in(top, "other"), func(h *tar.Header) { h.Typeflag = tar.TypeReg }), top, "", "other", "it is a regular file instead of a whiteout"},
		{"whiteout as other device", hdr(in(top, "other"), func(h *tar.Header) { h.Devminor = 1 }), top, "", "other", "instead of a whiteout"},
		{"opaque mark gone", hdr(in(top, "d"), func(h *tar.Header) { h.PAXRecords = nil }), top, "", "d", "it should be opaque, and hides nothing"},
		{"opaque mark too many", hdr(in(base, "d"), func(h *tar.Header) { h.PAXRecords = map[string]string{xattrPrefix + opaqueXattr: "y"} }), base, "", "d", "it is opaque, and should hide nothing"},
		{"tar-split gone", del(root + layersDir + "/" + top + ".tar-split.gz"), top, "", "", "its tar-split data: it is missing"},
		{"tar-split cut", data(root+layersDir+"/"+top+".tar-split.gz", func(b []byte) []byte { return b[:len(b)/2] }), top, "", "", "its tar-split data"},
		{"tar-split of another layer", func(m *memFS) {
			m.nodes[root+layersDir+"/"+top+".tar-split.gz"] = m.nodes[root+layersDir+"/"+base+".tar-split.gz"]
		}, top, "", "", "its files hash to"},
		{"link file", data(root+"overlay/"+top+"/link", set("ABC")), top, "", "overlay/l/ABC", "it is missing"},
		{"link file gone", del(root + "overlay/" + base + "/link"), base, "", "overlay/" + base + "/link", "it is missing"},
		{"short name", hdr(root+"overlay/l/"+linkName(top, 0), func(h *tar.Header) { h.Linkname = "../x/diff" }), top, "", "overlay/l/" + linkName(top, 0), "it is not a symlink to ../" + top + "/diff"},
		{"short name gone", del(root + "overlay/l/" + linkName(top, 0)), top, "", "overlay/l/" + linkName(top, 0), "it is missing"},
		{"short name too many", func(m *memFS) {
			m.Add(&tar.Header{Name: root + "overlay/l/STRAY", Typeflag: tar.TypeSymlink, Linkname: "x"}, nil)
		}, "", "", "overlay/l/STRAY", "no layer has this short name"},
		{"lower", data(root+"overlay/"+top+"/lower", func(b []byte) []byte { return append(b, '\n') }), top, "", "overlay/" + top + "/lower", "it holds"},
		{"lower gone", del(root + "overlay/" + top + "/lower"), top, "", "overlay/" + top + "/lower", "it is missing"},
		{"layer gone", func(m *memFS) {
			for k := range maps.Clone(m.nodes) {
				if strings.HasPrefix(k, root+"overlay/"+base) {
					delete(m.nodes, k)
				}
			}
		}, base, "", "d/f", "it is missing"},
		{"stray layer", add(root+"overlay/"+strings.Repeat("a", 64), tar.TypeDir), strings.Repeat("a", 64), "", "overlay/" + strings.Repeat("a", 64), "no record names this layer"},
		{"stray image", add(root+imagesDir+"/"+strings.Repeat("a", 64), tar.TypeDir), "", strings.Repeat("a", 64), imagesDir + "/" + strings.Repeat("a", 64), "no record names this image"},
		{"layers.lock gone", del(root + layersLock), "", "", layersLock, "it is missing"},
		{"images.lock gone", del(root + imagesLock), "", "", imagesLock, "it is missing"},
		{"diff size", data(root+layersJSON, swap(`"diff-size":`, `"diff-size":1`)), base, "", "", "its record says 1"},
		{"diff digest", data(root+layersJSON, swap(`"diff-digest":"sha256:`+im.diffIDs[1].Encoded(), `"diff-digest":"sha256:`+im.diffIDs[0].Encoded())), top, "", "", "instead of " + im.diffIDs[0].String()},
		{"config's chain", data(root+layersJSON, swap(`"diff-digest":"sha256:`+im.diffIDs[1].Encoded(), `"diff-digest":"sha256:`+im.diffIDs[0].Encoded())), "", img, "", "its config lists"},
		{"parent unknown", data(root+layersJSON, swap(`"parent":"`+base, `"parent":"`+top[:60]+"0000")), top, "", "", "has no usable record"},
		{"image's layer unknown", data(root+imagesJSON, swap(`"layer":"`+top, `"layer":"`+top[:60]+"0000")), "", img, "", "has no usable record"},
		{"image's layer not the top", data(root+imagesJSON, swap(`"layer":"`+top, `"layer":"`+base)), "", img, "", "its config lists"},
		{"config", data(bigData(im.config.String()), swap("amd64", "arm64")), "", img, imagesDir + "/" + img + "/" + bigDataFile(im.config.String()), "hashes to"},
		{"config's digest", data(bigData(im.config.String()), swap("amd64", "arm64")), "", img, "", "its config hashes to"},
		{"config gone", del(bigData(im.config.String())), "", img, "", "it has no config"},
		{"manifest", data(bigData("manifest"), swap(`"schemaVersion":2`, `"schemaVersion":3`)), "", img, imagesDir + "/" + img + "/manifest", "hashes to"},
		{"manifest's size", data(bigData(manifestKey), func(b []byte) []byte { return append(b, ' ') }), "", img, imagesDir + "/" + img + "/" + bigDataFile(manifestKey), "bytes instead of"},
		{"manifest gone", del(bigData("manifest")), "", img, "", "it has no manifest"},
		{"image digest", data(root+imagesJSON, swap(`"digest":"`+im.manifest.String(), `"digest":"`+digest.FromString("x").String())), "", img, "", "is that of none of its manifests"},
		{"layers.json", data(root+layersJSON, set("{")), "", "", layersJSON, "unexpected end of JSON"},
		{"images.json", data(root+imagesJSON, set(`[{"id":"x"}]`)), "", "", imagesJSON, `record 0: "x" is not an image ID`},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			m, _, _, _ := verifyStore(t)
			tc.hurt(m)
			rep, err := Verify(context.Background(), m, "/var/images", VerifyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range rep.Faults {
				if f.Layer == tc.layer && f.Image == tc.image && f.Path == tc.path && strings.Contains(f.Problem, tc.want) {
					return
				}
			}
			for _, f := range rep.Faults {
				t.Logf("%+v", f)
			}
			t.Errorf("%d faults, none is %.12s %.12s %q %q", rep.Total, tc.layer, tc.image, tc.path, tc.want)
		})
	}
}

func TestVerifyCollects(t *testing.T) {
	m, _, base, top := verifyStore(t)
	for _, p := range []string{base + "/diff/x", base + "/diff/d", top + "/diff/d/g", base + "/diff/other"} {
		m.nodes["var/images/overlay/"+p].h.Uid = 7
	}
	rep, err := Verify(context.Background(), m, "var/images", VerifyOptions{})
	if err != nil || rep.Total != 4 || len(rep.Faults) != 4 {
		t.Errorf("%+v %v", rep, err)
	}
	rep, err = Verify(context.Background(), m, "var/images", VerifyOptions{MaxFaults: 2})
	if err != nil || rep.Total != 4 || len(rep.Faults) != 2 {
		t.Errorf("%+v %v", rep, err)
	}
	if s := rep.Faults[0].String(); s != "layer "+base[:12]+`: "d": owner is 7:0 instead of 0:0` {
		t.Errorf("%s", s)
	}
	// Whole seconds are all that some filesystems have.
	for _, n := range m.nodes {
		n.h.ModTime, n.h.Uid = n.h.ModTime.Truncate(time.Second), 0
	}
	if rep, err = Verify(context.Background(), m, "var/images", VerifyOptions{TimeResolution: time.Second}); err != nil || rep.Total != 0 {
		t.Errorf("%+v %v", rep, err)
	}
	if rep, err = Verify(context.Background(), m, "var/images", VerifyOptions{}); err != nil || rep.Total == 0 {
		t.Errorf("%+v %v", rep, err)
	}
}

func TestVerifyNoStore(t *testing.T) {
	for _, root := range []string{"var", "gone/store"} {
		m := newMemFS()
		m.Add(&tar.Header{Name: "var", Typeflag: tar.TypeDir}, nil)
		if _, err := Verify(context.Background(), m, root, VerifyOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		if _, err := List(m, root); !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	}
	m := newMemFS()
	s, err := OpenStore(m, Options{Root: "var/images"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if rep, err := Verify(context.Background(), m, "var/images", VerifyOptions{}); err != nil || rep.Total != 0 {
		t.Errorf("an empty store: %+v %v", rep, err)
	}
}
