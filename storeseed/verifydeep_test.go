package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
)

// TestVerifyRecords changes what only records say, and what only --deep looks at.
func TestVerifyRecords(t *testing.T) {
	m, im, base, top := verifyStore(t)
	img := im.config.Encoded()
	const root = "var/images/"
	swap := func(name, old, new string) func(*memFS) {
		return func(m *memFS) {
			n := *m.nodes[root+name]
			if !bytes.Contains(n.data, []byte(old)) {
				panic(old)
			}
			n.data = bytes.Replace(bytes.Clone(n.data), []byte(old), []byte(new), 1)
			m.nodes[root+name] = &n
		}
	}
	hdr := func(name string, edit func(*tar.Header)) func(*memFS) {
		return func(m *memFS) { edit(&m.nodes[root+name].h) }
	}
	add := func(name string) func(*memFS) {
		return func(m *memFS) {
			if err := m.Add(&tar.Header{Name: root + name, Typeflag: tar.TypeReg}, nil); err != nil {
				panic(err)
			}
		}
	}
	blob := string(m.nodes[root+layersJSON].data)
	blob = blob[strings.Index(blob, `"compressed-diff-digest":"sha256:`)+33:][:8]
	for _, tc := range []struct {
		name string
		hurt func(*memFS)
		deep bool // only --deep finds it
		want string
	}{
		{"blob", swap(layersJSON, blob, "00000000"), false, "its record names the blob sha256:00000000"},
		{"blob's size", swap(layersJSON, `"compressed-size":`, `"compressed-size":9`), false, "its record names the blob"},
		{"compression", swap(layersJSON, `"compression":2`, `"compression":0`), false, "has the compression 0"},
		{"users", swap(layersJSON, `"uidset":[0]`, `"uidset":[0,7]`), false, "its record lists the users [0 7], its files have [0]"},
		{"groups", swap(layersJSON, `"gidset"`, `"gidsex"`), false, "its record lists the groups [], its files have [0]"},
		{"incomplete", swap(layersJSON, `"created"`, `"flags":{"incomplete":true},"created"`), false, "it is incomplete"},
		{"label of a mount", swap(layersJSON, `"created"`, `"mountlabel":"x","created"`), false, "says more than an image's layer has"},
		{"created", swap(layersJSON, `"created":"2`, `"created":"1`), false, "which no image of it was"},
		{"ID", swap(layersJSON, `"parent":"`+base+`",`, ""), false, "its ID should be"},
		{"image's created", swap(imagesJSON, `"created":"2`, `"created":"1`), false, "its config says"},
		{"name", swap(imagesJSON, `"names":["127`, `"names":["128`), false, "is not one that it was given"},
		{"data item's size", swap(imagesJSON, `"big-data-sizes"`, `"big-data-sizex"`), false, "has no size in its record"},
		{"data item's digest", swap(imagesJSON, `"big-data-digests"`, `"big-data-digestx"`), false, "has no digest in its record"},
		{"no digest", swap(imagesJSON, `"digest":`, `"digesx":`), false, "its record has no digest"},
		{"other top layer", swap(imagesJSON, `"created"`, `"mapped-layers":["x"],"created"`), false, "other top layers"},
		{"signatures", swap(imagesJSON, `"created"`, `"metadata":"{\"signatures-sizes\":{\"`+im.manifest.String()+`\":[5]}}","created"`), false, "has 5 bytes"},
		{"unknown field", swap(imagesJSON, `"created"`, `"new":1,"created"`), true, `unknown field "new"`},
		{"whiteout's owner", hdr("overlay/"+top+"/diff/other", func(h *tar.Header) { h.Uid = 3 }), false, "owner is 3:0"},
		{"hidden folder's time", hdr("overlay/"+base+"/diff/hidden", func(h *tar.Header) { h.ModTime = h.ModTime.Add(1) }), false, "modification time"},
		{"mode of a record", hdr(layersJSON, func(h *tar.Header) { h.Mode = 0o600 }), true, "it is 0600 0:0 instead of 0644 0:0"},
		{"owner of a link file", hdr("overlay/"+top+"/link", func(h *tar.Header) { h.Uid = 9 }), true, "it is 0644 9:0 instead of 0644 0:0"},
		{"attribute of a folder", hdr("overlay/l", func(h *tar.Header) { h.PAXRecords = map[string]string{xattrPrefix + "user.x": "1"} }), true, "it has the attribute user.x"},
		{"time of tar-split data", hdr(layersDir+"/"+top+".tar-split.gz", func(h *tar.Header) { h.ModTime = h.ModTime.Add(1) }), true, "of its layer's folder"},
		{"file beside a layer", add("overlay/" + top + "/more"), true, "no record accounts for it"},
		{"file beside data items", add(imagesDir + "/" + img + "/more"), true, "no record accounts for it"},
		{"file beside all", add("more"), true, "no record accounts for it"},
		{"file in the empty folder", add("overlay/" + base + "/empty/more"), true, "no record accounts for it"},
		{"empty folder gone", func(m *memFS) { delete(m.nodes, root+"overlay/"+base+"/empty") }, true, "it is missing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, _, _, _ := verifyStore(t)
			tc.hurt(m)
			for _, deep := range []bool{false, true} {
				rep, err := Verify(context.Background(), m, "/var/images", VerifyOptions{Deep: deep})
				if err != nil {
					t.Fatal(err)
				}
				found := slices.ContainsFunc(rep.Faults, func(f Fault) bool { return strings.Contains(f.String(), tc.want) })
				if wanted := deep || !tc.deep; found != wanted || (rep.Total > 0) != wanted {
					t.Errorf("deep %v: found %v of %q", deep, rep.Faults, tc.want)
				}
			}
		})
	}
}

func TestVerifyLabels(t *testing.T) {
	m, _, base, _ := verifyStore(t)
	policy := func(name string, typeflag byte) (string, bool) {
		if typeflag == tar.TypeSymlink {
			return "", false
		}
		return "label_of" + name[strings.LastIndexByte(name, '/'):], true
	}
	o := VerifyOptions{Deep: true, Label: policy}
	faults := func() *Report {
		t.Helper()
		rep, err := Verify(context.Background(), m, "var/images", o)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	if rep := faults(); rep.Total != 0 {
		t.Errorf("a store without labels: %v", rep.Faults)
	}
	for name, n := range m.nodes {
		if want, ok := policy("/"+name, n.h.Typeflag); ok {
			if n.h.PAXRecords == nil {
				n.h.PAXRecords = map[string]string{}
			}
			n.h.PAXRecords[labelXattr] = want + "\x00"
		}
	}
	if rep := faults(); rep.Total != 0 {
		t.Errorf("a store with the right labels: %v", rep.Faults)
	}
	m.nodes["var/images/overlay/"+base+"/diff/d/f"].h.PAXRecords[labelXattr] = "other\x00"
	delete(m.nodes["var/images/"+layersJSON].h.PAXRecords, labelXattr)
	rep := faults()
	if rep.Total != 2 || rep.Labels != 2 || !strings.Contains(rep.Faults[0].String(), `"d/f": its label is "other" instead of label_of/f`) ||
		!strings.Contains(rep.Faults[1].String(), "it has no label instead of label_of/layers.json") {
		t.Errorf("%+v", rep)
	}
	o.Deep = false
	if rep := faults(); rep.Total != 0 {
		t.Errorf("labels without deep: %v", rep.Faults)
	}
}

// counted says that some files have more names than they have.
type counted struct {
	*memFS
	more string
}

func (c counted) Links(name string) (uint64, error) {
	n, same := c.nodes[name], uint64(0)
	for _, other := range c.nodes {
		if other == n {
			same++
		}
	}
	if name == c.more {
		same++
	}
	return same, nil
}

func TestVerifyLinks(t *testing.T) {
	m, _, base, top := verifyStore(t)
	for _, tc := range []struct{ more, want string }{
		{"", ""},
		{"var/images/overlay/" + base + "/diff/d/f", "it has 3 names, the layer gives it 2"},
		{"var/images/overlay/" + base + "/diff/x", "it has 2 names, the layer gives it 1"},
		{"var/images/overlay/" + top + "/diff/other", "it has 2 names, the layer gives it 1"},
		{"var/images/" + imagesJSON, "it has 2 names"},
	} {
		rep, err := Verify(context.Background(), counted{m, tc.more}, "var/images", VerifyOptions{Deep: true})
		if err != nil {
			t.Fatal(err)
		}
		if tc.want == "" && rep.Total != 0 || tc.want != "" && (rep.Total != 1 || !strings.Contains(rep.Faults[0].String(), tc.want)) {
			t.Errorf("%s: %v", tc.more, rep.Faults)
		}
	}
}

// TestRebuilt wants the same tar however it is read, and all of it hashed.
func TestRebuilt(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	big := strings.Repeat("some content ", 100000)
	raw := layerTar(t, dirE("d/", 0o755), fileE("d/empty", ""), fileE("d/one", "1"), fileE("big", big), linkE("l", "big"),
		fileE("d/"+strings.Repeat("n", 200), big[:777]), fileE("last", "x"))
	im := buildImage(t, imageSpec{}, raw)
	reg := newRegistry(t)
	reg.push("1", im)
	p := newPuller(t)
	p.pull("docker://" + reg.host() + "/x:1")
	p.commit()
	rec, err := readRecords(p.fs, "var/images", strictly(""))
	if err != nil {
		t.Fatal(err)
	}
	v := &verifier{ctx: context.Background(), r: p.fs, root: "var/images", rec: rec}
	want := digest.FromBytes(raw)
	for i := range 50 {
		sum := newHasher(digest.SHA256.Hash())
		in := &rebuilt{c: newLayerCheck(v, rec.layers[0]), sum: sum}
		at := int64(0)
		for i > 0 || at == 0 {
			if i > 0 && r.IntN(3) == 0 {
				next, err := in.Seek(r.Int64N(1<<r.IntN(21)), io.SeekCurrent)
				if err != nil || next < at {
					t.Fatalf("from %d to %d: %v", at, next, err)
				}
				at = next
			}
			b := make([]byte, 1+r.IntN(1<<r.IntN(16)))
			if i == 0 {
				b = make([]byte, len(raw)+1)
			}
			n, err := io.ReadFull(in, b)
			if !bytes.Equal(b[:n], raw[at:at+int64(n)]) {
				t.Fatalf("%d bytes from %d on are others", n, at)
			}
			if at += int64(n); err != nil {
				break
			}
		}
		in.drain()
		in.close()
		if h := digest.NewDigest(digest.SHA256, sum.end()); h != want || sum.n != int64(len(raw)) || in.err != io.EOF {
			t.Fatalf("read in way %d: %s of %d bytes, %v", i, h, sum.n, in.err)
		}
	}
	if _, err := new(rebuilt).Seek(0, io.SeekStart); err == nil {
		t.Error("went back")
	}
}

func TestSegmentOf(t *testing.T) {
	for _, tc := range []struct {
		line, want string
		ok         bool
	}{
		{`{"type":2,"payload":"YWJj","position":0}` + "\n", "abc", true},
		{`{"type":2,"payload":"YWJj","position":1234567}`, "abc", true},
		{`{"type":2,"payload":"","position":7}`, "", true},
		{`{"type":2,"payload":"YWJj","position":07}`, "", false},
		{`{"type":2,"payload":"YWJj","position":-1}`, "", false},
		{`{"type":2,"payload":"YWJj","position":1,"x":2}`, "", false},
		{`{"type":2,"payload":"YWJ","position":1}`, "", false},
		{`{"type":2,"payload":"YW\u004aj","position":1}`, "", false},
		{`{"type":2,"payload":"YWJj","position":}`, "", false},
		{`{"type":2,"payload":"YWJj"`, "", false},
		{`{"type":1,"name":"x","payload":"YWJj","position":1}`, "", false},
		{``, "", false},
	} {
		var mem []byte
		if got, ok := segmentOf([]byte(tc.line), &mem); ok != tc.ok || ok && string(got) != tc.want {
			t.Errorf("%s: %q %v", tc.line, got, ok)
		}
	}
}

// TestVerifyOrder wants the same report whatever runs beside what.
func TestVerifyOrder(t *testing.T) {
	m, _, _, _ := verifyStore(t)
	for _, n := range m.nodes {
		if strings.HasPrefix(n.h.Name, "var/images/overlay/") {
			n.h.Uid += 5
		}
	}
	var first []Fault
	for i := range 20 {
		old := runtime.GOMAXPROCS(1 + i%4)
		rep, err := Verify(context.Background(), m, "var/images", VerifyOptions{Deep: true})
		runtime.GOMAXPROCS(old)
		if err != nil || rep.Total < 10 {
			t.Fatalf("%+v %v", rep, err)
		}
		if first == nil {
			first = rep.Faults
		}
		if !slices.Equal(first, rep.Faults) {
			t.Fatalf("%v\nafter\n%v", rep.Faults, first)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Verify(ctx, m, "var/images", VerifyOptions{}); err != context.Canceled {
		t.Error(err)
	}
}
