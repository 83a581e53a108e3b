package storeseed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.podman.io/storage"
)

// Options say how a store is written.
type Options struct {
	// Root is the store's path in the filesystem, such as "var/images". Parents that are missing
	// are made, 0755 root:root.
	Root string
	// Now is the time of everything that no image gives a time to: the store's own files, and
	// images without a created time. The zero value is the Unix epoch, never the clock.
	Now time.Time
	// Label, if set, gives the SELinux label of each file that is written: path is absolute in the
	// filesystem, typeflag as in archive/tar. "" sets none. Labels inside an image are never kept.
	Label func(path string, typeflag byte) string
	// Log gets warnings and debug lines; nil is silent.
	Log logrus.FieldLogger
	// TempDir holds what must be spooled; "" is the system's.
	TempDir string
}

// Store is an image store that is being written. It is not safe for concurrent use.
type Store struct {
	fs   FS
	root string
	o    Options
	log  logrus.FieldLogger

	layers  []*layerRec
	images  []*imageRec
	byLayer map[string]*layerRec
	byImage map[string]*imageRec

	layersDirty, imagesDirty bool
	made                     bool  // the store's folders are there
	broken                   error // a layer was left half written
	committed                bool
}

// layerRec and imageRec keep the bytes of a record that was there already, so that fields that this
// library does not know survive.
type layerRec struct {
	storage.Layer
	raw      json.RawMessage
	volatile bool
	link     string
}

type imageRec struct {
	storage.Image
	raw   json.RawMessage
	dirty bool
}

// The files of a store, relative to its root.
const (
	layersDir    = "overlay-layers"
	layersJSON   = "overlay-layers/layers.json"
	volatileJSON = "overlay-layers/volatile-layers.json"
	layersLock   = "overlay-layers/layers.lock"
	imagesDir    = "overlay-images"
	imagesJSON   = "overlay-images/images.json"
	imagesLock   = "overlay-images/images.lock"
	storageLock  = "storage.lock"
)

// OpenStore reads the store at o.Root, or starts an empty one. It writes nothing. A store whose
// records contradict each other is ErrCorruptStore.
func OpenStore(f FS, o Options) (*Store, error) {
	if o.Now.IsZero() {
		o.Now = time.Unix(0, 0)
	}
	o.Now = o.Now.UTC()
	s := &Store{fs: f, o: o, log: o.Log}
	if s.log == nil {
		s.log = silent()
	}
	root, err := cleanName(o.Root)
	if err != nil {
		return nil, fmt.Errorf("store path %q: %w", o.Root, err)
	}
	if root == "" {
		return nil, errors.New("a store needs a folder of its own, not the filesystem's root")
	}
	s.root = root
	rec, err := readRecords(f, root, strictly(root))
	if err != nil {
		return nil, err
	}
	s.layers, s.images, s.byLayer, s.byImage = rec.layers, rec.images, rec.byLayer, rec.byImage
	for _, l := range s.layers {
		if l.link, err = readLink(f, root, l.ID); err != nil {
			return nil, fmt.Errorf("%w: layer %s: %v; bake into another store path, or take this store away", ErrCorruptStore, l.ID, err)
		}
	}
	return s, nil
}

// strictly makes every fault an error.
func strictly(root string) func(Fault) error {
	return func(f Fault) error {
		return fmt.Errorf("%w at /%s: %s; bake into another store path, or take this store away", ErrCorruptStore, root, f)
	}
}

func silent() logrus.FieldLogger {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

type records struct {
	layers  []*layerRec
	images  []*imageRec
	byLayer map[string]*layerRec
	byImage map[string]*imageRec
}

// readRecords loads layers.json and images.json and checks that each reference in them leads
// somewhere. It stops at the first fault for which bad returns an error, and leaves the faulty record
// out where bad returns nil.
func readRecords(r Reader, root string, bad func(Fault) error) (*records, error) {
	rec := &records{byLayer: map[string]*layerRec{}, byImage: map[string]*imageRec{}}
	for _, file := range []string{layersJSON, volatileJSON} {
		raws, err := readJSONList(r, root+"/"+file)
		if err != nil {
			if err := bad(Fault{Path: file, Problem: err.Error()}); err != nil {
				return nil, err
			}
		}
		for i, raw := range raws {
			l := &layerRec{raw: raw, volatile: file == volatileJSON}
			problem := ""
			if err := json.Unmarshal(raw, &l.Layer); err != nil {
				problem = fmt.Sprintf("record %d: %v", i, err)
			} else if !isID(l.ID) {
				problem = fmt.Sprintf("record %d: %q is not a layer ID", i, l.ID)
			} else if rec.byLayer[l.ID] != nil {
				problem = fmt.Sprintf("layer %s is there twice", l.ID)
			}
			if problem != "" {
				if err := bad(Fault{Path: file, Problem: problem}); err != nil {
					return nil, err
				}
				continue
			}
			rec.layers = append(rec.layers, l)
			rec.byLayer[l.ID] = l
		}
	}
	if err := rec.checkChains(bad); err != nil {
		return nil, err
	}
	raws, err := readJSONList(r, root+"/"+imagesJSON)
	if err != nil {
		if err := bad(Fault{Path: imagesJSON, Problem: err.Error()}); err != nil {
			return nil, err
		}
	}
	names := map[string]string{}
	for i, raw := range raws {
		im := &imageRec{raw: raw}
		problem := ""
		if err := json.Unmarshal(raw, &im.Image); err != nil {
			problem = fmt.Sprintf("record %d: %v", i, err)
		} else if !isID(im.ID) {
			problem = fmt.Sprintf("record %d: %q is not an image ID", i, im.ID)
		} else if rec.byImage[im.ID] != nil {
			problem = fmt.Sprintf("image %s is there twice", im.ID)
		}
		if problem != "" {
			if err := bad(Fault{Path: imagesJSON, Problem: problem}); err != nil {
				return nil, err
			}
			continue
		}
		if im.TopLayer != "" && rec.byLayer[im.TopLayer] == nil {
			if err := bad(Fault{Image: im.ID, Problem: fmt.Sprintf("its top layer %q has no usable record", im.TopLayer)}); err != nil {
				return nil, err
			}
		}
		for _, n := range im.Names {
			if other, ok := names[n]; ok {
				if err := bad(Fault{Image: im.ID, Problem: fmt.Sprintf("its name %q belongs to image %s as well", n, other)}); err != nil {
					return nil, err
				}
			}
			names[n] = im.ID
		}
		rec.images = append(rec.images, im)
		rec.byImage[im.ID] = im
	}
	return rec, nil
}

// checkChains drops layers with a parent that has no record, and layers that are their own ancestors.
func (rec *records) checkChains(bad func(Fault) error) error {
	good := make(map[string]bool, len(rec.layers))
	for _, l := range rec.layers {
		path := map[string]bool{}
		problem := ""
		for at := l.ID; at != "" && !good[at]; at = rec.byLayer[at].Parent {
			if path[at] {
				problem = "it is its own ancestor"
				break
			}
			path[at] = true
			if p := rec.byLayer[at].Parent; p != "" && rec.byLayer[p] == nil {
				problem = fmt.Sprintf("its ancestor %q has no usable record", p)
				break
			}
		}
		if problem == "" {
			maps.Copy(good, path)
			continue
		}
		if err := bad(Fault{Layer: l.ID, Problem: problem}); err != nil {
			return err
		}
	}
	rec.layers = slices.DeleteFunc(rec.layers, func(l *layerRec) bool { return !good[l.ID] })
	maps.DeleteFunc(rec.byLayer, func(id string, _ *layerRec) bool { return !good[id] })
	return nil
}

// chain lists an image's layers, the base first.
func (rec *records) chain(top string) []*layerRec {
	var out []*layerRec
	for l := rec.byLayer[top]; l != nil; l = rec.byLayer[l.Parent] {
		out = append(out, l)
	}
	slices.Reverse(out)
	return out
}

func readJSONList(r Reader, name string) ([]json.RawMessage, error) {
	data, err := readAll(r, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, nil
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}

func isID(s string) bool {
	if len(s) != 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// layerID is the engine's name for the layer diffID on top of parent. It is not the OCI ChainID.
func layerID(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.Encoded()
	}
	return digest.FromString(parent + "+" + diffID.Encoded()).Encoded()
}

// linkName is a layer's short name: 26 base32 characters that depend on nothing but its ID and the
// number of names tried before.
func linkName(id string, try int) string {
	seed := id
	if try > 0 {
		seed = fmt.Sprintf("%s#%d", id, try)
	}
	sum := sha256.Sum256([]byte(seed))
	return base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16])
}

func readLink(r Reader, root, id string) (string, error) {
	sr, err := r.Open(root + "/overlay/" + id + "/link")
	if err != nil {
		return "", err
	}
	if sr.Size() > 255 {
		return "", fmt.Errorf("its link file has %d bytes", sr.Size())
	}
	data := make([]byte, sr.Size())
	if _, err := io.ReadFull(sr, data); err != nil {
		return "", err
	}
	link := string(data)
	if link == "" || strings.ContainsAny(link, "/\n\x00:") || link == "." || link == ".." {
		return "", fmt.Errorf("its link file holds %q", link)
	}
	return link, nil
}

// bigDataFile is the file name of a data item: the engine encodes all names that have other
// characters than dots, digits and small letters.
func bigDataFile(key string) string {
	for _, c := range []byte(key) {
		if c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return "=" + base64.StdEncoding.EncodeToString([]byte(key))
		}
	}
	return key
}

// add writes one file, labelled if there is a labeller.
func (s *Store) add(h *tar.Header, r io.Reader) error {
	s.label(h)
	return s.fs.Add(h, r)
}

func (s *Store) label(h *tar.Header) {
	if s.o.Label == nil || h.Typeflag == tar.TypeLink {
		return
	}
	if l := s.o.Label("/"+h.Name, h.Typeflag); l != "" {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+"security.selinux"] = l + "\x00"
	}
}

// mkdir makes a folder of the store's own.
func (s *Store) mkdir(name string) error {
	return s.add(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: s.o.Now}, nil)
}

// replace writes a file of the store's own.
func (s *Store) replace(name string, data []byte) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: s.o.Now}
	s.label(h)
	return s.fs.Replace(h, bytes.NewReader(data))
}

// mkdirAll makes the folders of name that are missing and leaves the others as they are.
func (s *Store) mkdirAll(name string) error {
	at := ""
	for _, c := range strings.Split(name, "/") {
		at = strings.TrimPrefix(at+"/"+c, "/")
		h, err := s.fs.Stat(at)
		switch {
		case err == nil && h.Typeflag != tar.TypeDir:
			return fmt.Errorf("/%s is there but is not a folder; choose another store path", at)
		case errors.Is(err, fs.ErrNotExist):
			err = s.mkdir(at)
		}
		if err != nil {
			return fmt.Errorf("making /%s: %w", at, err)
		}
	}
	return nil
}

// begin makes the store's own folders before the first file goes into them.
func (s *Store) begin() error {
	if s.made {
		return nil
	}
	for _, d := range []string{"overlay/l", layersDir, imagesDir} {
		if err := s.mkdirAll(s.root + "/" + d); err != nil {
			return err
		}
	}
	s.made = true
	return nil
}

// Commit writes the store's records and locks; nothing may be pulled afterwards. Until it returns,
// an engine does not see what was pulled. With nothing pulled it still makes an empty store that an
// engine can open. It fails if a layer was left half written.
func (s *Store) Commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.committed {
		return errors.New("the store was committed already")
	}
	if s.broken != nil {
		return fmt.Errorf("the store cannot be committed: %w", s.broken)
	}
	if err := s.begin(); err != nil {
		return err
	}
	if s.layersDirty {
		list := []any{}
		for _, l := range s.layers {
			switch {
			case l.volatile:
			case l.raw != nil:
				list = append(list, l.raw)
			default:
				list = append(list, &l.Layer)
			}
		}
		if err := s.writeJSON(layersJSON, list); err != nil {
			return err
		}
	}
	if s.imagesDirty {
		list := []any{}
		for _, im := range s.images {
			switch {
			case im.raw == nil:
				list = append(list, &im.Image)
			case !im.dirty:
				list = append(list, im.raw)
			default:
				merged, err := mergeRecord(im.raw, &im.Image)
				if err != nil {
					return fmt.Errorf("image %s: %w", im.ID, err)
				}
				list = append(list, merged)
			}
		}
		if err := s.writeJSON(imagesJSON, list); err != nil {
			return err
		}
	}
	for _, name := range []string{layersLock, imagesLock, storageLock} {
		name = s.root + "/" + name
		if ok, err := exists(s.fs, name); err != nil {
			return err
		} else if !ok {
			if err := s.replace(name, nil); err != nil {
				return err
			}
		}
	}
	s.committed = true
	return nil
}

func (s *Store) writeJSON(name string, list []any) error {
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	if err := s.replace(s.root+"/"+name, data); err != nil {
		return fmt.Errorf("writing /%s/%s: %w", s.root, name, err)
	}
	return nil
}

// mergeRecord is im with those fields of raw that storage.Image does not know.
func mergeRecord(raw json.RawMessage, im *storage.Image) (json.RawMessage, error) {
	var old, now map[string]json.RawMessage
	if err := json.Unmarshal(raw, &old); err != nil {
		return nil, err
	}
	data, err := json.Marshal(im)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &now); err != nil {
		return nil, err
	}
	for _, k := range []string{"names", "names-history", "metadata", "digest"} {
		delete(old, k)
	}
	maps.Copy(old, now)
	return json.Marshal(old)
}

// setNames gives im the names as well as those it has, and takes them from every other image, as
// the engine's AddNames does. It reports whether anything changed.
func (s *Store) setNames(im *imageRec, names []string) bool {
	var fresh []string
	for _, n := range names {
		if !slices.Contains(im.Names, n) && !slices.Contains(fresh, n) {
			fresh = append(fresh, n)
		}
	}
	if len(fresh) == 0 {
		return false
	}
	for _, n := range fresh {
		for _, other := range s.images {
			if other != im && slices.Contains(other.Names, n) {
				other.Names = slices.DeleteFunc(slices.Clone(other.Names), func(v string) bool { return v == n })
				other.dirty = true
				s.log.Infof("the name %s moves from image %.12s to %.12s", n, other.ID, im.ID)
			}
		}
		im.NamesHistory = append([]string{n}, slices.DeleteFunc(slices.Clone(im.NamesHistory), func(v string) bool { return v == n })...)
	}
	im.Names = append(fresh, im.Names...)
	im.dirty = true
	return true
}

// putBigData writes a data item of an image and records it.
func (s *Store) putBigData(im *imageRec, key string, data []byte) error {
	if d, ok := im.BigDataDigests[key]; ok && d == digest.FromBytes(data) {
		return nil
	}
	if err := s.replace(s.root+"/"+imagesDir+"/"+im.ID+"/"+bigDataFile(key), data); err != nil {
		return fmt.Errorf("writing the data item %q of image %s: %w", key, im.ID, err)
	}
	if !slices.Contains(im.BigDataNames, key) {
		im.BigDataNames = append(im.BigDataNames, key)
	}
	if im.BigDataSizes == nil {
		im.BigDataSizes = map[string]int64{}
	}
	if im.BigDataDigests == nil {
		im.BigDataDigests = map[string]digest.Digest{}
	}
	im.BigDataSizes[key] = int64(len(data))
	im.BigDataDigests[key] = digest.FromBytes(data)
	if im.Digest == "" && strings.HasPrefix(key, storage.ImageDigestManifestBigDataNamePrefix) {
		im.Digest = im.BigDataDigests[key]
	}
	im.dirty = true
	return nil
}
