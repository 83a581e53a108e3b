package sbom

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree is a filesystem in memory that counts what is read of it.
type tree struct {
	headers map[string]*tar.Header
	content map[string][]byte
	opened  map[string]int
	listed  map[string]int
}

func newTree() *tree {
	return &tree{map[string]*tar.Header{"": {Typeflag: tar.TypeDir}}, map[string][]byte{}, map[string]int{}, map[string]int{}}
}

func clean(name string) string { return strings.Trim(path.Clean("/"+name), "/") }

func (t *tree) put(name string, h tar.Header, content string) {
	name = clean(name)
	for p := path.Dir(name); p != "."; p = path.Dir(p) {
		if t.headers[p] == nil {
			t.headers[p] = &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755}
		}
	}
	h.Size = int64(len(content))
	t.headers[name], t.content[name] = &h, []byte(content)
}

func (t *tree) file(name, content string) {
	t.put(name, tar.Header{Typeflag: tar.TypeReg, Mode: 0o644}, content)
}

func (t *tree) program(name, content string) {
	t.put(name, tar.Header{Typeflag: tar.TypeReg, Mode: 0o755}, content)
}

func (t *tree) whiteout(name string) { t.put(name, tar.Header{Typeflag: tar.TypeChar}, "") }

func (t *tree) opaque(name string) {
	t.put(name, tar.Header{Typeflag: tar.TypeDir, PAXRecords: map[string]string{opaque: "y"}}, "")
}

func (t *tree) Stat(name string) (*tar.Header, error) {
	if h := t.headers[clean(name)]; h != nil {
		return h, nil
	}
	return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
}

func (t *tree) ReadDir(name string) ([]string, error) {
	name = clean(name)
	if h := t.headers[name]; h == nil || h.Typeflag != tar.TypeDir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: fs.ErrNotExist}
	}
	t.listed[name]++
	var names []string
	for n := range t.headers {
		if n != "" && strings.TrimPrefix(path.Dir("/"+n), "/") == name {
			names = append(names, path.Base(n))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (t *tree) Open(name string) (*io.SectionReader, error) {
	name = clean(name)
	h := t.headers[name]
	if h == nil || h.Typeflag != tar.TypeReg {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	t.opened[name]++
	return io.NewSectionReader(bytes.NewReader(t.content[name]), 0, h.Size), nil
}

// imageOf is an image of a store in a tree: its layers' names, the base first.
type imageOf struct {
	names  []string
	layers []string
}

func layerID(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }

// layer is the folder of a layer's files.
func layer(store, name string) string { return store + "/overlay/" + layerID(name) + "/diff" }

// store writes the records of a store. The layers' files are put in beside.
func (t *tree) store(root string, images ...imageOf) {
	type record map[string]any
	layers, list := map[string]record{}, []record{}
	for i, im := range images {
		parent := ""
		for _, l := range im.layers {
			layers[l] = record{"id": layerID(l), "parent": parent, "created": "2026-01-02T03:04:05Z"}
			parent = layerID(l)
			if t.headers[layer(root, l)] == nil {
				t.put(layer(root, l), tar.Header{Typeflag: tar.TypeDir}, "")
			}
		}
		list = append(list, record{"id": layerID(fmt.Sprint("image", i)), "digest": digest.FromString(fmt.Sprint("manifest", i)), "names": im.names, "layer": parent,
			"created": time.Unix(1.7e9+int64(i), 0).UTC()})
	}
	var all []record
	for _, l := range slices.Sorted(maps.Keys(layers)) {
		all = append(all, layers[l])
	}
	for name, v := range map[string]any{"overlay-layers/layers.json": all, "overlay-images/images.json": list} {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		t.file(root+"/"+name, string(text))
	}
}
