package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	greeting    = "hello from a layer of its own\n"
	helloPrints = "entry runs\n" + greeting
)

// image is one image in every form that a source can have. Its layout is the reference that proofs read.
type image struct {
	name          string // localhost/nodebake/hello:1
	layout        string // an OCI layout that holds this image alone
	ociArchive    string
	dockerArchive string // "" for an image that Docker's format cannot hold as it is
	dir           string
}

func (i image) oci() string {
	return "oci:" + i.layout + ":" + i.name
}

// The images, by short name:
//
//	hello   two small layers from scratch: a static program, and the greeting that it prints
//	odd     hello, a layer of every kind of file, and a layer that takes away, replaces and hides
//	debian  Debian's essential packages, and a layer that changes them
//	big     hello, and a sparse file of more than 1 GiB
//	exact   made byte by byte in Go: nanosecond times, a root entry, names that are not UTF-8; gzip, zstd and plain layers
//	quirks  parents without an entry, times before 1970: right in a store, but containers/storage's check misjudges them
var imageNames = []string{"hello", "odd", "debian", "big", "exact", "quirks"}

var madeImages = sync.OnceValues(func() (map[string]image, error) {
	base, err := rootfsTar("base")
	if err != nil {
		return nil, err
	}
	dir, err := cached("images", [][]byte{rootfsRecipe, entryRecipe, imagesRecipe}, func(dir string) error { return makeImages(dir, base) })
	if err != nil {
		return nil, err
	}
	images := map[string]image{}
	for _, n := range imageNames {
		i := image{
			name: "localhost/nodebake/" + n + ":1", layout: filepath.Join(dir, n),
			ociArchive: filepath.Join(dir, n+".oci.tar"), dockerArchive: filepath.Join(dir, n+".docker.tar"), dir: filepath.Join(dir, n+".dir"),
		}
		if n == "exact" || n == "quirks" || n == "big" {
			i.dockerArchive, i.dir = "", ""
		}
		images[n] = i
	}
	return images, nil
})

func testImages(t testing.TB) map[string]image {
	t.Helper()
	requires(t, "root", "mmdebstrap", "buildah", "skopeo", "setcap")
	start := time.Now()
	images, err := madeImages()
	check(t, err)
	if took := time.Since(start); took > time.Second {
		t.Logf("images made in %.1fs", took.Seconds())
	}
	return images
}

// makeImages builds the images with buildah in a store of their own and copies each to every form.
func makeImages(dir, debianTar string) error {
	work := filepath.Join(dir, "work")
	defer removeAll(work)
	entry := filepath.Join(work, "entry")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	if err := goBuild("./testdata/entry", entry); err != nil {
		return err
	}
	b := builder{root: filepath.Join(work, "root"), runroot: filepath.Join(work, "run")}

	b.commit("scratch", "program", "", func(m string) {
		b.do(os.Mkdir(m+"/bin", 0o755), copyFile(entry, m+"/bin/entry", 0o755))
	})
	b.commit("localhost/nodebake/program:1", "hello", `["/bin/entry"]`, func(m string) {
		b.do(os.Mkdir(m+"/etc", 0o755), os.WriteFile(m+"/etc/greeting", []byte(greeting), 0o644))
	})
	b.commit("localhost/nodebake/hello:1", "odd-under", "", b.oddFiles)
	b.commit("localhost/nodebake/odd-under:1", "odd", "", func(m string) {
		o := m + "/odd"
		b.do(
			os.Remove(o+"/gone/file"),
			os.RemoveAll(o+"/hidden"), os.Mkdir(o+"/hidden", 0o700), os.WriteFile(o+"/hidden/new", []byte("new"), 0o600),
			os.Remove(o+"/links/second"),
			os.Chmod(o+"/changes-mode", 0o4711),
			os.RemoveAll(o+"/folder-to-file"), os.WriteFile(o+"/folder-to-file", nil, 0o640),
			os.Remove(o+"/file-to-link"), os.Symlink("elsewhere", o+"/file-to-link"),
			os.Remove(o+"/file-to-folder"), os.MkdirAll(o+"/file-to-folder/deep", 0o755),
		)
	})
	b.commit("scratch", "debian-under", "", func(m string) {
		b.tool("tar", "-C", m, "-xpf", debianTar, "--numeric-owner", "--xattrs", "--xattrs-include=*")
	})
	b.commit("localhost/nodebake/debian-under:1", "debian", `["/bin/sh"]`, func(m string) {
		b.do(
			os.RemoveAll(m+"/usr/share/bash-completion"), os.RemoveAll(m+"/etc/cron.daily"), os.Mkdir(m+"/etc/cron.daily", 0o755),
			os.Remove(m+"/etc/motd"),
			os.MkdirAll(m+"/opt/app", 0o755), copyFile(entry, m+"/opt/app/entry", 0o755),
			os.WriteFile(m+"/etc/greeting", []byte(greeting), 0o644),
		)
		// A folder made again after it was emptied is an opaque one.
		b.do(os.RemoveAll(m+"/var/lib/dpkg/info"), os.Mkdir(m+"/var/lib/dpkg/info", 0o755), os.WriteFile(m+"/var/lib/dpkg/info/only", []byte("x"), 0o644))
	})
	b.commit("localhost/nodebake/hello:1", "big", "", func(m string) {
		f, err := os.Create(m + "/sparse")
		b.do(err)
		if err != nil {
			return
		}
		for _, at := range []int64{0, 300<<20 + 17, 1 << 30} {
			_, err = f.WriteAt([]byte(fmt.Sprintf("an island at %d\n", at)), at)
			b.do(err)
		}
		b.do(f.Truncate(1<<30+12345), f.Close())
	})
	for _, n := range []string{"hello", "odd", "debian", "big"} {
		from := fmt.Sprintf("containers-storage:[overlay@%s+%s]localhost/nodebake/%s:1", b.root, b.runroot, n)
		name := "localhost/nodebake/" + n + ":1"
		b.tool("skopeo", "copy", "-q", from, "oci:"+filepath.Join(dir, n)+":"+name)
		if n != "big" {
			b.tool("skopeo", "copy", "-q", "oci:"+filepath.Join(dir, n)+":"+name, "docker-archive:"+filepath.Join(dir, n+".docker.tar")+":"+name)
			b.tool("skopeo", "copy", "-q", "oci:"+filepath.Join(dir, n)+":"+name, "dir:"+filepath.Join(dir, n+".dir"))
		}
	}
	b.do(exactImage(filepath.Join(dir, "exact"), "localhost/nodebake/exact:1"), quirksImage(filepath.Join(dir, "quirks"), "localhost/nodebake/quirks:1"))
	for _, n := range imageNames {
		// An oci-archive is the tar of a layout; skopeo would compress a plain layer on the way.
		b.tool("tar", "-C", filepath.Join(dir, n), "-cf", filepath.Join(dir, n+".oci.tar"), ".")
	}
	return b.err
}

// builder runs buildah; after the first error it does nothing more.
type builder struct {
	root, runroot string
	err           error
}

func (b *builder) do(errs ...error) {
	for _, err := range errs {
		if b.err == nil && err != nil {
			b.err = err
		}
	}
}

func (b *builder) tool(name string, args ...string) string {
	if b.err != nil {
		return ""
	}
	out, err := tool(name, args...)
	b.do(err)
	return strings.TrimSpace(out)
}

func (b *builder) buildah(args ...string) string {
	return b.tool("buildah", append([]string{"--root", b.root, "--runroot", b.runroot, "--storage-driver", "overlay"}, args...)...)
}

// commit makes an image localhost/nodebake/NAME:1 that is FROM with one more layer, as fill leaves it.
func (b *builder) commit(from, name, entrypoint string, fill func(mount string)) {
	c := b.buildah("from", from)
	m := b.buildah("mount", c)
	if b.err != nil {
		return
	}
	fill(m)
	if entrypoint != "" {
		b.buildah("config", "--entrypoint", entrypoint, c)
	}
	b.buildah("commit", "-q", "--rm", c, "localhost/nodebake/"+name+":1")
}

var (
	longestName = strings.Repeat("n", 255)
	// 3 bytes a letter; 255 bytes in all.
	longestForeignName = strings.Repeat("語", 85)
)

func (b *builder) oddFiles(m string) {
	o := m + "/odd"
	text := func(name, content string, mode os.FileMode) {
		b.do(os.WriteFile(o+"/"+name, []byte(content), 0o644), os.Chmod(o+"/"+name, mode))
	}
	b.do(os.Mkdir(o, 0o755))
	for _, d := range []string{"gone", "hidden", "links", "links/deep", "folder-to-file", "many", "sticky"} {
		b.do(os.Mkdir(o+"/"+d, 0o755))
	}
	text("gone/file", "to be removed", 0o644)
	text("hidden/one", "to be hidden", 0o644)
	text("hidden/two", "to be hidden", 0o644)
	text("changes-mode", "same content", 0o644)
	text("folder-to-file/inside", "x", 0o644)
	text("file-to-link", "x", 0o644)
	text("file-to-folder", "x", 0o644)
	text("links/first", "one inode, four names", 0o640)
	for _, l := range []string{"links/second", "links/deep/third", "fourth"} {
		b.do(os.Link(o+"/links/first", o+"/"+l))
	}
	text("owned", "x", 0o600)
	b.do(os.Chown(o+"/owned", 4242, 70000))
	text("owned-far", "x", 0o600)
	b.do(os.Chown(o+"/owned-far", 2000000000, 3000000000))
	text("setuid", "x", 0o755)
	b.do(os.Chown(o+"/setuid", 1234, 5678), unix.Chmod(o+"/setuid", 0o4755))
	text("setgid", "x", 0o755)
	b.do(os.Chown(o+"/setgid", 0, 42), unix.Chmod(o+"/setgid", 0o2755), unix.Chmod(o+"/sticky", 0o1777), unix.Chmod(o+"/links/deep", 0o2775))
	text("capable", "x", 0o755)
	b.tool("setcap", "cap_net_raw,cap_net_bind_service+ep", o+"/capable")
	text("attributes", "x", 0o644)
	b.do(unix.Setxattr(o+"/attributes", "user.short", []byte("v"), 0), unix.Setxattr(o+"/attributes", "user.binary", []byte("a\x00b\xff\n=c"), 0),
		unix.Setxattr(o+"/attributes", "user.long", bytes.Repeat([]byte("long"), 100), 0), unix.Setxattr(o+"/sticky", "user.folder", []byte("also"), 0))
	text(longestName, "255 bytes", 0o644)
	text(longestForeignName, "255 bytes of UTF-8", 0o644)
	text("größe, 100 % – “naïve”", "x", 0o644)
	text(" leading and trailing ", "x", 0o644)
	text("new\nline", "x", 0o644)
	text("empty", "", 0o000)
	text("block", strings.Repeat("0123456789abcdef", 256), 0o444)
	text("block-and-a-byte", strings.Repeat("0123456789abcdef", 256)+"!", 0o444)
	for name, target := range map[string]string{
		"to-file": "links/first", "to-nothing": "nowhere/at/all", "absolute": "/etc/greeting", "up": "../../../..",
		"to-59": strings.Repeat("a", 59), "to-60": strings.Repeat("b", 60), "to-1000": strings.Repeat("c/", 500),
	} {
		b.do(os.Symlink(target, o+"/"+name))
	}
	b.do(unix.Mkfifo(o+"/fifo", 0o622), unix.Chmod(o+"/fifo", 0o622),
		unix.Mknod(o+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))), unix.Chmod(o+"/null", 0o666),
		unix.Mknod(o+"/wide-device", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	// Enough names for an indexed folder of several levels at small blocks.
	for i := range 3000 {
		text(fmt.Sprintf("many/a-name-of-some-length-%05d", i), fmt.Sprint(i), 0o644)
	}
	b.do(os.MkdirAll(o+"/"+strings.Repeat("d/", 60), 0o755))
	b.do(os.Chtimes(o+"/block", time.Time{}, time.Date(2105, 1, 2, 3, 4, 5, 0, time.UTC)))
}

// exactImage has what buildah does not write.
func exactImage(dir, name string) error {
	at := func(sec, nsec int64) time.Time { return time.Unix(sec, nsec) }
	first := makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o750, Uid: 7, Gid: 8, ModTime: at(1e9, 1)}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "no/", Mode: 0o755, ModTime: at(1e9, 66)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/more", Mode: 0o644, ModTime: at(1e9, 999999999)}, content: "x"},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "folder/", Mode: 0o711, ModTime: at(1600000000, 123456789)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./folder/file", Mode: 0o604, ModTime: at(1600000001, 987654321)}, content: "content"},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "folder/link", Linkname: "file", Mode: 0o777, ModTime: at(1600000002, 5)}},
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "folder/hard", Linkname: "folder/file", Mode: 0o604, ModTime: at(1600000001, 987654321)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x", Mode: 0o755, ModTime: at(0, 0), PAXRecords: map[string]string{"SCHILY.xattr.user.k": "v"}}, content: "attributes"},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "after-2038", Mode: 0o644, ModTime: at(1<<32+7, 3)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "caf\xe9 in Latin-1", Mode: 0o644, ModTime: at(1e9, 0)}, content: "not UTF-8"},
	)
	second := makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "folder/", Mode: 0o711, ModTime: at(1600000000, 123456789)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "folder/.wh.file", Mode: 0o600, ModTime: at(1e9, 0)}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "no/", Mode: 0o755, ModTime: at(1e9, 77)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/.wh..wh..opq", Mode: 0o600, ModTime: at(1e9, 0)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/longer", Mode: 0o644, ModTime: at(1e9, 88)}, content: "x"},
	)
	third := makeTar(tar.FormatGNU,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long-", 50) + "gnu", Mode: 0o644, ModTime: at(1e9, 0)}, content: "x"},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "gnu-link", Linkname: strings.Repeat("l", 200), Mode: 0o777, ModTime: at(1e9, 0)}},
	)
	return writeLayout(dir, name, "amd64", layer{tar: first}, layer{tar: second, compression: "zstd"}, layer{tar: third, compression: "none"})
}

func quirksImage(dir, name string) error {
	return writeLayout(dir, name, "amd64", layer{tar: makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/entry/for/parents", Mode: 0o600, Uid: 9, ModTime: time.Unix(1e9, 1)}, content: "x"},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "before-1970", Mode: 0o644, ModTime: time.Unix(-5, 250000000)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("long/", 50) + "name", Mode: 0o644, ModTime: time.Unix(1e9, 0)}, content: "x"},
	)}, layer{tar: makeTar(tar.FormatPAX,
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "no/entry/.wh.for", Mode: 0o600, ModTime: time.Unix(1e9, 0)}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "long/.wh..wh..opq", Mode: 0o600, ModTime: time.Unix(1e9, 0)}},
	)})
}

// entry is one record of a tar made by hand.
type entry struct {
	tar.Header
	content string
}

func makeTar(format tar.Format, entries ...entry) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Format, h.Size = format, int64(len(e.content))
		if err := w.WriteHeader(&h); err != nil {
			panic(fmt.Sprintf("%s: %v", h.Name, err))
		}
		io.WriteString(w, e.content)
	}
	w.Close()
	return buf.Bytes()
}

// layer is one layer of a layout made by hand. The zero values make an honest gzip layer.
type layer struct {
	tar         []byte
	compression string              // "", gzip; "zstd"; "none"
	diffID      digest.Digest       // what the config claims, when not the truth
	damage      func([]byte) []byte // changes the blob after its digest was taken
}

// writeLayout writes an OCI layout that holds one image.
func writeLayout(dir, name, arch string, layers ...layer) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	put := func(mediaType string, content []byte, damage func([]byte) []byte) (imgv1.Descriptor, error) {
		d := imgv1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		if damage != nil {
			content = damage(bytes.Clone(content))
		}
		return d, os.WriteFile(filepath.Join(blobs, d.Digest.Encoded()), content, 0o644)
	}
	created := time.Unix(1700000000, 0).UTC()
	config := imgv1.Image{Created: &created, Platform: imgv1.Platform{Architecture: arch, OS: "linux"}, RootFS: imgv1.RootFS{Type: "layers"}}
	config.Config.Entrypoint = []string{"/bin/entry"}
	manifest := imgv1.Manifest{Versioned: imgspec.Versioned{SchemaVersion: 2}, MediaType: imgv1.MediaTypeImageManifest}
	for i, l := range layers {
		var blob bytes.Buffer
		mediaType := imgv1.MediaTypeImageLayer
		switch l.compression {
		case "":
			w := gzip.NewWriter(&blob)
			w.Write(l.tar)
			w.Close()
			mediaType += "+gzip"
		case "zstd":
			w, err := zstd.NewWriter(&blob)
			if err != nil {
				return err
			}
			w.Write(l.tar)
			w.Close()
			mediaType += "+zstd"
		case "none":
			blob.Write(l.tar)
		}
		d, err := put(mediaType, blob.Bytes(), l.damage)
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, d)
		diffID := l.diffID
		if diffID == "" {
			diffID = digest.FromBytes(l.tar)
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, imgv1.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	if manifest.Config, err = put(imgv1.MediaTypeImageConfig, raw, nil); err != nil {
		return err
	}
	if raw, err = json.Marshal(manifest); err != nil {
		return err
	}
	d, err := put(imgv1.MediaTypeImageManifest, raw, nil)
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{imgv1.AnnotationRefName: name}
	if raw, err = json.Marshal(imgv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, Manifests: []imgv1.Descriptor{d}}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), raw, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// facts is what is true of an image, read from its layout without the product.
type facts struct {
	manifest, config digest.Digest
	layers           []layerFacts
}

type layerFacts struct {
	id     string // as containers/storage names the layer
	diffID digest.Digest
	blob   imgv1.Descriptor
	path   string
}

// open gives the layer's tar.
func (l layerFacts) open() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	var r io.Reader = f
	switch {
	case strings.HasSuffix(l.blob.MediaType, "gzip"):
		r, err = gzip.NewReader(f)
	case strings.HasSuffix(l.blob.MediaType, "zstd"):
		r, err = zstd.NewReader(f)
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, err
}

func (i image) facts(t testing.TB) facts {
	t.Helper()
	blob := func(d digest.Digest) string { return filepath.Join(i.layout, "blobs", "sha256", d.Encoded()) }
	var index imgv1.Index
	var manifest imgv1.Manifest
	var config imgv1.Image
	readJSON(t, filepath.Join(i.layout, "index.json"), &index)
	f := facts{manifest: index.Manifests[0].Digest}
	readJSON(t, blob(f.manifest), &manifest)
	f.config = manifest.Config.Digest
	readJSON(t, blob(f.config), &config)
	parent := ""
	for n, d := range manifest.Layers {
		l := layerFacts{diffID: config.RootFS.DiffIDs[n], blob: d, path: blob(d.Digest)}
		l.id = l.diffID.Encoded()
		if parent != "" {
			l.id = fmt.Sprintf("%x", sha256.Sum256([]byte(parent+"+"+l.id)))
		}
		parent = l.id
		f.layers = append(f.layers, l)
	}
	return f
}

func readJSON(t testing.TB, name string, into any) {
	t.Helper()
	raw, err := os.ReadFile(name)
	check(t, err)
	if err := json.Unmarshal(raw, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
