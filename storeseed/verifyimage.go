package storeseed

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
)

// PlatformOf reads out of an image's config in the store at root what it runs on. id is the image's ID.
func PlatformOf(r Reader, root, id string) (Platform, error) {
	if !isID(id) {
		return Platform{}, fmt.Errorf("%w: %q is not an image ID", ErrCorruptStore, id)
	}
	data, err := readAll(r, root+"/"+imagesDir+"/"+id+"/"+bigDataFile("sha256:"+id))
	if err != nil {
		return Platform{}, err
	}
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Platform{}, fmt.Errorf("%w: the config of image %s: %w", ErrCorruptStore, id, err)
	}
	return Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}, nil
}

// image checks an image's record, data items, and layers.
func (v *verifier) image(im *imageRec) {
	fault := func(path, format string, a ...any) {
		v.fault(Fault{Image: im.ID, Path: path, Problem: fmt.Sprintf(format, a...)})
	}
	ours := v.allOurs
	items := map[string][]byte{}
	for _, key := range im.BigDataNames {
		p := imagesDir + "/" + im.ID + "/" + bigDataFile(key)
		data, err := readAll(v.r, v.root+"/"+p)
		if err != nil {
			fault(p, "the data item %q: %s", key, why(err))
			continue
		}
		items[key] = data
		n, ok := im.BigDataSizes[key]
		if !ok && ours {
			fault(p, "the data item %q has no size in its record", key)
		}
		if ok && n != int64(len(data)) {
			fault(p, "the data item %q has %d bytes instead of %d", key, len(data), n)
		}
		got := digest.FromBytes(data)
		if isManifestKey(key) {
			if got, err = manifest.Digest(data); err != nil {
				fault(p, "the data item %q is no manifest: %v", key, err)
				continue
			}
			if name, ok := strings.CutPrefix(key, storage.ImageDigestManifestBigDataNamePrefix+"-"); ok && name != got.String() {
				fault(p, "the data item %q hashes to %s", key, got)
			}
		}
		d, ok := im.BigDataDigests[key]
		if !ok && ours {
			fault(p, "the data item %q has no digest in its record", key)
		}
		if ok && d != got {
			fault(p, "the data item %q hashes to %s, its record says %s", key, got, d)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(im.BigDataSizes)) {
		if !slices.Contains(im.BigDataNames, key) {
			fault("", "the data item %q has a size but is not listed", key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(im.BigDataDigests)) {
		if !slices.Contains(im.BigDataNames, key) {
			fault("", "the data item %q has a digest but is not listed", key)
		}
	}

	if ours {
		v.imageRecord(im, items, fault)
	}
	for _, l := range v.rec.chain(im.TopLayer) {
		known := v.blobs[l.ID]
		known.images++
		known.created = append(known.created, im.Created)
		v.blobs[l.ID] = known
	}

	id := digest.NewDigestFromEncoded(digest.SHA256, im.ID)
	config, ok := items[id.String()]
	if !ok {
		fault("", "it has no config, or not under its own digest")
	} else if got := digest.FromBytes(config); got != id {
		fault("", "its config hashes to %s", got)
	} else {
		var c struct {
			Created *time.Time `json:"created"`
			RootFS  struct {
				DiffIDs []digest.Digest `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := json.Unmarshal(config, &c); err != nil {
			fault("", "its config: %v", err)
		} else if ours && c.Created != nil && !c.Created.IsZero() && !c.Created.Equal(im.Created) {
			fault("", "its record says that it was created at %s, its config says %s", im.Created.UTC().Format(time.RFC3339Nano), c.Created.UTC().Format(time.RFC3339Nano))
		}
		var chain []digest.Digest
		for _, l := range v.rec.chain(im.TopLayer) {
			chain = append(chain, l.UncompressedDigest)
		}
		if !slices.Equal(chain, c.RootFS.DiffIDs) {
			fault("", "its layers are %s, its config lists %s", chain, c.RootFS.DiffIDs)
		}
	}
	m, ok := items[storage.ImageDigestBigDataKey]
	if !ok {
		fault("", "it has no manifest")
	} else {
		var c struct {
			Config struct {
				Digest digest.Digest `json:"digest"`
			} `json:"config"`
			Layers []struct {
				Digest digest.Digest `json:"digest"`
				Size   int64         `json:"size"`
			} `json:"layers"`
		}
		if err := json.Unmarshal(m, &c); err != nil {
			fault("", "its manifest: %v", err)
		} else if c.Config.Digest != id {
			fault("", "its manifest names the config %q", c.Config.Digest)
		} else if chain := v.rec.chain(im.TopLayer); len(chain) == len(c.Layers) {
			for i, l := range chain {
				known := v.blobs[l.ID]
				known.blobs = append(known.blobs, blobOf{c.Layers[i].Digest, c.Layers[i].Size})
				v.blobs[l.ID] = known
			}
		}
	}
	if im.Digest != "" {
		found := false
		for key, d := range im.BigDataDigests {
			found = found || (isManifestKey(key) && d == im.Digest)
		}
		if !found {
			fault("", "its digest %s is that of none of its manifests", im.Digest)
		}
	}
}

func isManifestKey(key string) bool {
	return strings.HasPrefix(key, storage.ImageDigestManifestBigDataNamePrefix)
}

// imageRecord checks what is in each record that this package writes.
func (v *verifier) imageRecord(im *imageRec, items map[string][]byte, fault func(path, format string, a ...any)) {
	if err := unknownFields(im.raw, new(storage.Image)); err != nil && v.o.Deep {
		fault("", "its record: %v", err)
	}
	if len(im.MappedTopLayers) > 0 || len(im.Flags) > 0 {
		fault("", "its record has other top layers %q or flags %v", im.MappedTopLayers, im.Flags)
	}
	if im.Digest == "" {
		fault("", "its record has no digest")
	}
	for _, n := range im.Names {
		if !slices.Contains(im.NamesHistory, n) {
			fault("", "its name %q is not one that it was given", n)
		}
	}
	var meta struct {
		Sizes map[digest.Digest][]int `json:"signatures-sizes"`
		First []int                   `json:"signature-sizes"`
	}
	if im.Metadata != "" {
		if err := json.Unmarshal([]byte(im.Metadata), &meta); err != nil {
			fault("", "its metadata: %v", err)
			return
		}
	}
	total := func(sizes []int) (n int) {
		for _, s := range sizes {
			n += s
		}
		return n
	}
	signed := map[string]int{}
	if meta.First != nil {
		signed["signatures"] = total(meta.First)
	}
	for _, d := range slices.Sorted(maps.Keys(meta.Sizes)) {
		if d.Validate() != nil {
			fault("", "its metadata has signatures of %q", d)
			continue
		}
		signed["signature-"+d.Encoded()] = total(meta.Sizes[d])
	}
	for _, key := range slices.Sorted(maps.Keys(signed)) {
		if data, ok := items[key]; !ok || len(data) != signed[key] {
			fault("", "its metadata says that the data item %q has %d bytes", key, signed[key])
		}
	}
	for _, key := range im.BigDataNames {
		if _, ok := signed[key]; !ok && strings.HasPrefix(key, "signature") {
			fault("", "its metadata does not have the data item %q", key)
		}
	}
}

// unknownFields finds what this version does not know in a record: a later one may have written it.
func unknownFields(raw []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// blobOf is a layer's blob as a manifest has it.
type blobOf struct {
	digest digest.Digest
	size   int64
}

// layerUse is what the images say of a layer.
type layerUse struct {
	images  int
	blobs   []blobOf
	created []time.Time
}

// owners compares the layers' records with what the images say of them, and wants each layer to have an image.
func (v *verifier) owners() {
	for _, l := range v.rec.layers {
		use := v.blobs[l.ID]
		fault := func(format string, a ...any) { v.fault(Fault{Layer: l.ID, Problem: fmt.Sprintf(format, a...)}) }
		if !v.ours[l.ID] {
			continue
		}
		if use.images == 0 {
			// Without any image there is nothing to hold layers against.
			if len(v.rec.images) > 0 {
				fault("no image has it")
			}
			continue
		}
		if !slices.ContainsFunc(use.created, l.Created.Equal) {
			fault("its record says that it was created at %s, which no image of it was", l.Created.UTC().Format(time.RFC3339Nano))
		}
		if plain := l.CompressedDigest == l.UncompressedDigest; plain != (l.CompressionType == archive.Uncompressed) || plain && l.CompressedSize != l.UncompressedSize {
			fault("its record says that the blob %s of %d bytes has the compression %d", l.CompressedDigest, l.CompressedSize, l.CompressionType)
			continue
		}
		// A layer that several images share has the blob of the one that brought it; one out of another store has none.
		if l.CompressionType != archive.Uncompressed && len(use.blobs) > 0 && !slices.ContainsFunc(use.blobs, func(b blobOf) bool {
			return b.digest == l.CompressedDigest && (b.size == l.CompressedSize || b.size < 0)
		}) {
			fault("its record names the blob %s of %d bytes, its image's manifest %s of %d", l.CompressedDigest, l.CompressedSize, use.blobs[0].digest, use.blobs[0].size)
		}
	}
}

// record checks what is in each record that this package writes, and what no engine may find in one.
func (c *layerCheck) record() {
	l := c.l
	if done, _ := l.Flags["incomplete"].(bool); done {
		c.fault("", "its record says that it is incomplete: an engine removes it")
	}
	if !c.ours {
		return
	}
	if err := unknownFields(l.raw, new(storage.Layer)); err != nil && c.v.o.Deep {
		c.fault("", "its record: %v", err)
	}
	if len(l.Flags) > 0 || len(l.Names) > 0 || len(l.BigDataNames) > 0 || len(l.UIDMap) > 0 || len(l.GIDMap) > 0 || l.MountLabel != "" || l.TOCDigest != "" || l.volatile {
		c.fault("", "its record says more than an image's layer has")
	}
	if want := layerID(l.Parent, l.UncompressedDigest); l.UncompressedDigest.Validate() == nil && l.ID != want {
		c.fault("", "its ID should be %s, by its parent and its diffID", want)
	}
}

// owner notes who owns an entry.
func (c *layerCheck) owner(h *tar.Header, whiteout bool) {
	uids, gids := c.uids, c.gids
	if whiteout {
		uids, gids = c.allUIDs, c.allGIDs
	}
	uids[uint32(h.Uid)] = struct{}{}
	gids[uint32(h.Gid)] = struct{}{}
}

// checkOwners compares the owners that the record lists with those of the entries. Engines count those of whiteouts.
func (c *layerCheck) checkOwners() {
	for _, s := range []struct {
		what      string
		says      []uint32
		files, of map[uint32]struct{}
	}{{"users", c.l.UIDs, c.uids, c.allUIDs}, {"groups", c.l.GIDs, c.gids, c.allGIDs}} {
		if s.says == nil && !c.ours {
			continue
		}
		says := slices.Sorted(slices.Values(s.says))
		files := slices.Sorted(maps.Keys(s.files))
		if slices.Equal(says, files) {
			continue
		}
		all := maps.Clone(s.files)
		maps.Copy(all, s.of)
		if c.ours || !slices.Equal(says, slices.Sorted(maps.Keys(all))) {
			c.fault("", "its record lists the %s %v, its files have %v", s.what, says, files)
		}
	}
}
