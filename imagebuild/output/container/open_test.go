package container

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/imagebuild/output/newfile"
)

// TestFind finds disks in images of several layers, the lowest first.
func TestFind(t *testing.T) {
	boot := "disk/boot.qcow2"
	for name, c := range map[string]struct {
		layers [][]item
		path   string
		want   string // content
		at     string // Info.Path
		err    error
		says   string
	}{
		"one":                {layers: [][]item{{file(boot, "A")}}, want: "A", at: boot},
		"with ./":            {layers: [][]item{{dirAt("./disk"), file("./disk/boot.qcow2", "A")}}, want: "A", at: boot},
		"with /":             {layers: [][]item{{dirAt("/disk"), file("/disk/boot.qcow2", "A")}}, want: "A", at: boot},
		"empty":              {layers: [][]item{{file(boot, "")}}, want: "", at: boot},
		"other name":         {layers: [][]item{{dirAt("disk"), file("disk/fedora.img", "A")}}, want: "A", at: "disk/fedora.img"},
		"default of two":     {layers: [][]item{{file("disk/a", "A"), file(boot, "B"), file("disk/c", "C")}}, want: "B", at: boot},
		"path":               {layers: [][]item{{file("disk/a", "A"), file(boot, "B")}}, path: "/disk/a", want: "A", at: "disk/a"},
		"top":                {layers: [][]item{{file("image", "A")}}, path: "image", want: "A", at: "image"},
		"upper wins":         {layers: [][]item{{file(boot, "A")}, {file(boot, "B")}}, want: "B", at: boot},
		"lower":              {layers: [][]item{{file(boot, "A")}, {file("etc/x", "B")}}, want: "A", at: boot},
		"default below":      {layers: [][]item{{file(boot, "A")}, {file("disk/x", "B")}}, want: "A", at: boot},
		"last in a layer":    {layers: [][]item{{file(boot, "A"), file(boot, "B")}}, want: "B", at: boot},
		"whiteout":           {layers: [][]item{{file(boot, "A"), file("disk/x", "X")}, {file("disk/.wh.boot.qcow2", "")}}, want: "X", at: "disk/x"},
		"whiteout of folder": {layers: [][]item{{file(boot, "A")}, {file(".wh.disk", "")}, {file("disk/x", "X")}}, want: "X", at: "disk/x"},
		"whiteout and anew":  {layers: [][]item{{file(boot, "A")}, {file("disk/.wh.boot.qcow2", "")}, {file(boot, "C")}}, want: "C", at: boot},
		"in one layer":       {layers: [][]item{{file(boot, "A")}, {file("disk/.wh.boot.qcow2", ""), file(boot, "B")}}, want: "B", at: boot},
		"opaque":             {layers: [][]item{{file(boot, "A")}, {file("disk/x", "X"), file("disk/.wh..wh..opq", "")}}, want: "X", at: "disk/x"},
		"opaque root":        {layers: [][]item{{file(boot, "A")}, {file(".wh..wh..opq", ""), file("disk/x", "X")}}, want: "X", at: "disk/x"},
		"aufs":               {layers: [][]item{{file(boot, "A")}, {file(".wh..wh.plnk", "")}}, want: "A", at: boot},
		"folder replaced":    {layers: [][]item{{file(boot, "A")}, {file("disk", "X")}}, err: ErrNoDisk},
		"and made again":     {layers: [][]item{{file(boot, "A")}, {file("disk", "X")}, {dirAt("disk"), file("disk/y", "Y")}}, want: "Y", at: "disk/y"},
		"symlink":            {layers: [][]item{{file("images/a.qcow2", "A"), linkAt(boot, "../images/a.qcow2")}}, want: "A", at: boot},
		"absolute symlink":   {layers: [][]item{{linkAt(boot, "/images/a.qcow2"), file("images/a.qcow2", "A")}}, want: "A", at: boot},
		"symlink out":        {layers: [][]item{{linkAt(boot, "../../../images/a.qcow2"), file("images/a.qcow2", "A")}}, want: "A", at: boot},
		"folder symlink":     {layers: [][]item{{linkAt("disk", "images"), file("images/boot.qcow2", "A")}}, want: "A", at: boot},
		"symlink downwards":  {layers: [][]item{{file("images/boot.qcow2", "A")}, {linkAt("disk", "images")}}, want: "A", at: boot},
		"only a symlink":     {layers: [][]item{{file("images/a", "A"), linkAt("disk/b", "../images/a")}}, want: "A", at: "disk/b"},
		"dead symlink":       {layers: [][]item{{linkAt(boot, "nothing")}}, err: ErrNoDisk},
		"dead and alive":     {layers: [][]item{{linkAt(boot, "nothing"), file("disk/x", "X")}}, want: "X", at: "disk/x"},
		"through a file":     {layers: [][]item{{file("a", "A"), file("x", "X"), linkAt(boot, "/x/../a")}}, err: ErrNoDisk},
		"symlink loop":       {layers: [][]item{{linkAt(boot, "boot.qcow2")}}, err: ErrNoDisk, says: "more than 40 symbolic links"},
		"hard link":          {layers: [][]item{{file("a", "A"), hardlink(boot, "a")}}, want: "A", at: boot},
		"/hard link":         {layers: [][]item{{file("./a", "A"), hardlink("./"+boot, "/a")}}, want: "A", at: boot},
		"hard hard link":     {layers: [][]item{{file("a", "A"), hardlink("b", "a"), hardlink(boot, "b")}}, want: "A", at: boot},
		"hard link replaced": {layers: [][]item{{file("a", "A"), hardlink(boot, "a"), file("a", "B")}}, want: "A", at: boot},
		"link to symlink":    {layers: [][]item{{file("x", "A"), linkAt("l", "/x"), hardlink(boot, "l")}}, want: "A", at: boot},
		"hard link, lower":   {layers: [][]item{{file("a", "A")}, {hardlink(boot, "a")}}, err: ErrNoDisk, says: "hard link to a, which its layer does not hold"},
		"hard link forward":  {layers: [][]item{{hardlink(boot, "a"), file("a", "A")}}, err: ErrNoDisk, says: "which its layer does not hold"},
		"folder":             {layers: [][]item{{dirAt(boot)}}, err: ErrNoDisk, says: "is a folder"},
		"fifo":               {layers: [][]item{{{name: boot, kind: tar.TypeFifo}}}, err: ErrNoDisk, says: "is not a regular file"},
		"two":                {layers: [][]item{{file("disk/b", "B"), file("disk/a", "A")}}, err: ErrNoDisk, says: `in disk/ there is ["disk/a" "disk/b"]`},
		"two in two layers":  {layers: [][]item{{file("disk/b", "B")}, {file("disk/a", "A")}}, err: ErrNoDisk},
		"below a folder":     {layers: [][]item{{file("disk/x/a", "A")}}, err: ErrNoDisk},
		"none":               {layers: [][]item{{file("etc/x", "A")}}, err: ErrNoDisk, says: "no file disk/boot.qcow2, nor another in disk/"},
		"path and another":   {layers: [][]item{{file(boot, "A")}}, path: "disk/x", err: ErrNoDisk, says: `in disk/ there is ["disk/boot.qcow2"]`},
		"path at the top":    {layers: [][]item{{file(boot, "A")}}, path: "x", err: ErrNoDisk, says: "nor another in its root"},
		"no layer":           {layers: nil, err: ErrNoDisk},
		"empty layer":        {layers: [][]item{nil}, err: ErrNoDisk},
		"path through file":  {layers: [][]item{{file("disk", "A")}}, path: "disk/x", err: ErrNoDisk},
	} {
		for how, pack := range []func([]byte) []byte{func(b []byte) []byte { return b }, func(b []byte) []byte { return gz(t, b) }, func(b []byte) []byte { return zst(t, b) }} {
			var layers [][]byte
			for _, items := range c.layers {
				layers = append(layers, pack(tarOf(t, items...)))
			}
			got, info, err := open(t, layoutRef(t, layoutOf(t, layers)), nil, c.path)
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s, %d: %v", name, how, err)
				}
				continue
			}
			if err != nil || string(got) != c.want || info.Path != c.at {
				t.Errorf("%s, %d: %q at %s: %v", name, how, got, info.Path, err)
			}
		}
	}
}

// TestBadLayers opens images that are damaged or mean harm.
func TestBadLayers(t *testing.T) {
	disk := testDisk(200_000)
	good := tarOf(t, file("disk/boot.qcow2", string(disk)))
	mid := len(good) / 2
	var many, names, deep []item
	for i := range maxEntries + 1 {
		many = append(many, item{name: fmt.Sprint(i), kind: tar.TypeFifo})
	}
	for i := range 5000 {
		names = append(names, linkAt(fmt.Sprint(i), strings.Repeat("x", 4000)))
	}
	for i := range 40 {
		deep = append(deep, file(fmt.Sprint(i)+strings.Repeat("/a", 2000), ""))
	}
	var maze []item
	for i := range 3000 {
		maze = append(maze, linkAt(fmt.Sprintf("disk/%d", i), strings.Repeat("../disk/", 400)+fmt.Sprint(i+1)))
	}
	for name, c := range map[string]struct {
		layer []byte
		edit  func(*imgspecv1.Manifest)
		spoil func(blob []byte)
		max   int64
		is    error
		says  string
	}{
		"another digest": {layer: good, spoil: func(b []byte) { b[mid] ^= 1 }, is: ErrDigestMismatch},
		"after the tar":  {layer: append(bytes.Clone(good), make([]byte, 5000)...), spoil: func(b []byte) { b[len(b)-1] = 1 }, is: ErrDigestMismatch},
		"cut off":        {layer: good[:mid], is: ErrLayer},
		"cut gzip":       {layer: gz(t, good)[:1000], is: ErrLayer},
		"gzip sum":       {layer: func() []byte { b := gz(t, good); b[len(b)-5] ^= 1; return b }(), is: ErrLayer},
		"gzip and more":  {layer: append(gz(t, good), "garbage garbage garbage"...), is: ErrLayer},
		"cut zstd":       {layer: zst(t, good)[:1000], is: ErrLayer},
		"no tar":         {layer: []byte(strings.Repeat("x", 2000)), is: ErrLayer},
		"xz":             {layer: []byte("\xfd7zXZ\x00"), is: ErrLayer, says: "bzip2 or xz"},
		"larger than it says": {layer: good, edit: func(m *imgspecv1.Manifest) { m.Layers[0].Size-- }, is: ErrLayer,
			says: "more than the"},
		"smaller than it says": {layer: good, edit: func(m *imgspecv1.Manifest) { m.Layers[0].Size++ }, is: ErrLayer, says: "of the"},
		"bad digest":           {layer: good, edit: func(m *imgspecv1.Manifest) { m.Layers[0].Digest = "sha256:../../../etc/passwd" }},
		"large disk":           {layer: good, max: 199_999, is: ErrLayer, says: "more than the 199999 that are taken"},
		"large layer":          {layer: gz(t, tarOf(t, file("x", string(make([]byte, 1<<20))))), max: 1 << 20, is: ErrLayer, says: "unpacks to more"},
		"many files":           {layer: gz(t, tarOf(t, many...)), is: ErrLayer, says: "more files"},
		"long names":           {layer: gz(t, tarOf(t, names...)), is: ErrLayer, says: "more files"},
		"deep names":           {layer: gz(t, tarOf(t, deep...)), is: ErrLayer, says: "more files"},
		"longest name":         {layer: tarOf(t, file(strings.Repeat("x", maxName+1), "")), is: ErrLayer, says: "a name of more than 4096"},
		"maze":                 {layer: gz(t, tarOf(t, maze...)), is: ErrNoDisk},
	} {
		var edits []func(*imgspecv1.Manifest)
		if c.edit != nil {
			edits = append(edits, c.edit)
		}
		dir := layoutOf(t, [][]byte{c.layer}, edits...)
		if c.spoil != nil {
			file := filepath.Join(dir, blobName(digest.FromBytes(c.layer)))
			data := bytes.Clone(c.layer)
			c.spoil(data)
			put(t, file, data)
		}
		_, _, err := openWith(t, layoutRef(t, dir), nil, "", OpenOptions{MaxSize: c.max})
		if err == nil || (c.is != nil && !errors.Is(err, c.is)) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlatform chooses from a list.
func TestPlatform(t *testing.T) {
	dir := t.TempDir()
	index := newIndex()
	for _, arch := range []string{"amd64", "arm64"} {
		o := options()
		o.Platform = imgspecv1.Platform{Architecture: arch}
		res := write(t, "oci:"+dir+":"+arch, []byte(arch), o)
		index.Manifests = append(index.Manifests, imgspecv1.Descriptor{MediaType: imgspecv1.MediaTypeImageManifest, Digest: res.ManifestDigest,
			Size: int64(len(mustRead(t, filepath.Join(dir, blobName(res.ManifestDigest))))), Platform: &imgspecv1.Platform{OS: "linux", Architecture: arch}})
	}
	list := jsonAt(t, dir, index, index.MediaType)
	put(t, dir+"/index.json", mustJSON(t, newIndex(list)))
	ref := layoutRef(t, dir)
	archive := t.TempDir() + "/x.tar"
	run(t, "tar", "-C", dir, "-cf", archive, ".")
	packed := t.TempDir() + "/x.tar.gz"
	run(t, "tar", "-C", dir, "-czf", packed, ".")
	for _, ref := range []types.ImageReference{ref, refOf(t, "oci-archive:"+archive), refOf(t, "oci-archive:"+packed)} {
		for i, arch := range []string{"amd64", "arm64"} {
			got, info, err := openWith(t, ref, nil, "", OpenOptions{Platform: imgspecv1.Platform{Architecture: arch}})
			if err != nil || string(got) != arch || info.Platform.Architecture != arch || info.ListDigest != list.Digest || info.ManifestDigest != index.Manifests[i].Digest {
				t.Errorf("%s: %q %+v %v", arch, got, info, err)
			}
		}
		if _, _, err := openWith(t, ref, nil, "", OpenOptions{Platform: imgspecv1.Platform{Architecture: "s390x"}}); err == nil || !strings.Contains(err.Error(), "s390x") {
			t.Errorf("%v", err)
		}
	}
}

func mustRead(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPolicy(t *testing.T) {
	dir := t.TempDir()
	write(t, "oci:"+dir+"/x", []byte("disk"), options())
	write(t, "oci-archive:"+dir+"/x.tar:n", []byte("disk"), options())
	reject, err := signature.NewPolicyContext(&signature.Policy{
		Default: signature.PolicyRequirements{signature.NewPRReject()},
		// What is let in is told by the reference.
		Transports: map[string]signature.PolicyTransportScopes{"oci-archive": {"": signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer reject.Destroy()
	if _, _, err := openWith(t, refOf(t, "oci:"+dir+"/x"), nil, "", OpenOptions{Policy: reject}); !errors.Is(err, ErrPolicy) {
		t.Errorf("%v", err)
	}
	if _, _, err := openWith(t, refOf(t, "oci-archive:"+dir+"/x.tar"), nil, "", OpenOptions{Policy: reject}); err != nil {
		t.Errorf("%v", err)
	}
	// Without a policy, the system's.
	file := dir + "/policy.json"
	put(t, file, []byte(`{"default":[{"type":"reject"}]}`))
	if f, _, err := Open(context.Background(), refOf(t, "oci:"+dir+"/x"), &types.SystemContext{SignaturePolicyPath: file}, "", dir, OpenOptions{}); !errors.Is(err, ErrPolicy) {
		t.Errorf("%v %v", f, err)
	}
	put(t, file, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`))
	f, _, err := Open(context.Background(), refOf(t, "oci:"+dir+"/x"), &types.SystemContext{SignaturePolicyPath: file}, "", dir, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// TestArchives reads OCI archives that others might make.
func TestArchives(t *testing.T) {
	dir := layoutOf(t, [][]byte{tarOf(t, file("disk/boot.qcow2", "disk"))})
	tarball := func(args ...string) string {
		out := t.TempDir() + "/x"
		run(t, "tar", append([]string{"-C", dir, "-cf", out}, args...)...)
		return out
	}
	for name, c := range map[string]struct{ ref, says string }{
		"plain":    {tarball("."), ""},
		"pax":      {tarball("--format=pax", "."), ""},
		"v7":       {tarball("--format=v7", "."), ""}, // the library reads it
		"gzip":     {tarball("-z", "."), ""},
		"name":     {tarball(".") + ":x", ""},
		"place":    {tarball(".") + ":@0", ""},
		"no place": {tarball(".") + ":@1", `does not hold "@1"`},
		"no name":  {tarball(".") + ":y", `does not hold "y"`},
		"no index": {tarball("blobs"), "no index.json"},
		"no blobs": {tarball("index.json", "oci-layout"), "the archive has no blobs/sha256/"},
		"missing":  {dir + "/missing", "no such file"},
	} {
		if strings.Contains(name, "place") {
			// The library's references have no places, but storeseed's strings do.
			ref, err := choose(newIndex(imgspecv1.Descriptor{Size: 1}), c.ref[strings.IndexByte(c.ref, ':')+1:])
			if (err == nil) != (c.says == "") || (err == nil && ref.Size != 1) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		ref, err := ociarchive.ParseReference(c.ref)
		if err == nil {
			var got []byte
			if got, _, err = open(t, ref, nil, ""); err == nil && string(got) != "disk" {
				t.Errorf("%s: %q", name, got)
			}
		}
		if (err == nil) != (c.says == "") || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A manifest that is not what its digest says.
	dir = layoutOf(t, [][]byte{tarOf(t, file("disk/boot.qcow2", "disk"))}, func(m *imgspecv1.Manifest) { m.Annotations = map[string]string{"a": "b"} })
	for name := range tree(t, dir) {
		if data := mustRead(t, dir+name); bytes.Contains(data, []byte(`"a":"b"`)) {
			put(t, dir+name, bytes.Replace(data, []byte(`"a":"b"`), []byte(`"a":"c"`), 1))
		}
	}
	if _, _, err := open(t, refOf(t, "oci-archive:"+tarball(".")), nil, ""); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("%v", err)
	}
}

// TestSparse opens a disk of zeros with little in them, and a cancelled one.
func TestSparse(t *testing.T) {
	disk := make([]byte, 20<<20+5)
	copy(disk[1<<20-3:], "across a chunk")
	copy(disk[len(disk)-5:], "end")
	dir := t.TempDir()
	o := options()
	o.Level = 1
	write(t, "oci-archive:"+dir+"/x", disk, o)
	ref := refOf(t, "oci-archive:"+dir+"/x")
	var done, total int64
	f, info, err := Open(context.Background(), ref, nil, "", dir, OpenOptions{Policy: anyone(t), Progress: func(d, n int64) { done, total = d, n }})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, disk) || info.Size != int64(len(disk)) {
		t.Fatalf("%d bytes: %v", len(got), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Blocks*512 > 64<<10 || st.Nlink != 0 {
		t.Errorf("%d bytes are allocated, %d links: %v", st.Blocks*512, st.Nlink, err)
	}
	if done == 0 || done != total {
		t.Errorf("progress %d of %d", done, total)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, _, err = Open(ctx, ref, nil, "", dir, OpenOptions{Policy: anyone(t), Progress: func(int64, int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, _, err := Open(context.Background(), ref, nil, "", dir+"/no", OpenOptions{Policy: anyone(t)}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

var seed = flag.Int64("seed", 0, "seed of random tests; 0 is a new one")

// TestRandomLayers compares what Open finds with what umoci unpacks and the kernel resolves there.
func TestRandomLayers(t *testing.T) {
	needs(t, "umoci")
	s, rounds := *seed, 25
	if s == 0 {
		s = time.Now().UnixNano()
	}
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds = 1000
	}
	t.Logf("-seed %d", s)
	r := rand.New(rand.NewSource(s))
	found := 0
	for range rounds {
		layers := randomLayers(t, r)
		dir := layoutOf(t, layers)
		bundle := t.TempDir() + "/b"
		run(t, "umoci", "unpack", "--image", dir+":x", bundle)
		root, err := os.Open(bundle + "/rootfs")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"d/a", "d/b", "a", "b", "d/d/a"} {
			want, werr := "", error(nil)
			fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT})
			if werr = err; err == nil {
				f := os.NewFile(uintptr(fd), name)
				if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
					werr = errors.New("not regular")
				} else {
					data, _ := io.ReadAll(f)
					want = string(data)
				}
				f.Close()
			}
			got, _, err := open(t, layoutRef(t, dir), nil, name)
			if (err == nil) != (werr == nil) || string(got) != want {
				t.Fatalf("-seed %d: %s: %q (%v), want %q (%v); layout %s", s, name, got, err, want, werr, keep(t, dir))
			}
			if err == nil {
				found++
			}
		}
		root.Close()
	}
	if found < rounds/10 { // about half of the images hold one
		t.Errorf("only %d files in %d images", found, rounds)
	}
}

// keep moves a folder out of the test's reach.
func keep(t testing.TB, dir string) string {
	to, err := os.MkdirTemp("", "kept-")
	if err == nil {
		err = os.Rename(dir, to+"/layout")
	}
	if err != nil {
		t.Error(err)
	}
	return to
}

// randomLayers are such as an engine makes: folders are entries before what is in them, whiteouts name what is below.
func randomLayers(t testing.TB, r *rand.Rand) [][]byte {
	state := map[string]byte{} // what is there in the layers so far
	content := 0
	var layers [][]byte
	for range 1 + r.Intn(4) {
		here := map[string]byte{}
		below := map[string]byte{}
		for n, k := range state {
			below[n] = k
		}
		var items []item
		drop := func(name string) {
			for n := range state {
				if n == name || strings.HasPrefix(n, name+"/") {
					delete(state, n)
				}
			}
		}
		for range 1 + r.Intn(8) {
			names := []string{"a", "b", "d", "d/a", "d/b", "d/d", "d/d/a"}
			name := names[r.Intn(len(names))]
			parent := filepath.Dir(name)
			if here[name] != 0 || (parent != "." && state[parent] != 'd') {
				continue
			}
			if parent != "." && here[parent] == 0 {
				// So engines do.
				items = append(items, dirAt(parent))
				here[parent] = 'd'
			}
			whiteoutOK := below[name] != 0 && state[name] != 0
			switch r.Intn(7) {
			case 0, 1:
				content++
				items = append(items, file(name, fmt.Sprint("content ", content)))
				drop(name)
				state[name], here[name] = 'f', 'f'
			case 2, 3:
				if state[name] != 'd' {
					drop(name)
				}
				items = append(items, dirAt(name))
				state[name], here[name] = 'd', 'd'
			case 4:
				targets := []string{"a", "b", "/a", "/d/a", "../b", "d", "../d/b", "../../a", "/d/../a"}
				items = append(items, linkAt(name, targets[r.Intn(len(targets))]))
				drop(name)
				state[name], here[name] = 'l', 'l'
			case 5:
				var to string
				for _, n := range names {
					if here[n] == 'f' && n != name && !strings.HasPrefix(n, name+"/") {
						to = n
					}
				}
				if to == "" {
					continue
				}
				items = append(items, hardlink(name, to))
				drop(name)
				state[name], here[name] = 'h', 'h'
			case 6:
				if !whiteoutOK {
					continue
				}
				inside := false
				for n := range here {
					inside = inside || strings.HasPrefix(n, name+"/")
				}
				if inside {
					continue
				}
				items = append(items, file(filepath.Join(parent, ".wh."+filepath.Base(name)), ""))
				drop(name)
				here[name] = 'w'
			}
		}
		layer := tarOf(t, items...)
		if r.Intn(2) == 0 {
			layer = gz(t, layer)
		}
		layers = append(layers, layer)
	}
	return layers
}

// FuzzLayers searches any two blobs for a disk.
func FuzzLayers(f *testing.F) {
	boot := "disk/boot.qcow2"
	for _, items := range [][]item{
		{file(boot, "A")},
		{dirAt("disk"), linkAt(boot, "../x"), file("x", "B"), hardlink("disk/y", "x")},
		{file(".wh.disk", ""), file("disk/.wh..wh..opq", ""), file("disk/z", "C")},
	} {
		b := tarOf(f, items...)
		f.Add(b, b, boot)
		f.Add(gz(f, b), zst(f, b), "")
	}
	f.Fuzz(func(t *testing.T, top, low []byte, name string) {
		dir := t.TempDir()
		r := &reader{ctx: context.Background(), o: OpenOptions{MaxSize: 1 << 20}, want: cleanName(name), dir: dir, view: newView(), gotLayer: -1,
			src: memory{digest.FromBytes(top): top, digest.FromBytes(low): low}, buf: make([]byte, chunk)}
		if name == "" {
			r.want, r.fallback = DefaultPath, true
		}
		for _, b := range [][]byte{top, low} {
			r.layers = append(r.layers, types.BlobInfo{Digest: digest.FromBytes(b), Size: int64(len(b))})
		}
		var err error
		if r.file, err = newfile.Anonymous(dir); err != nil {
			t.Fatal(err)
		}
		defer r.file.Close()
		_, e, err := r.find()
		if err != nil {
			return
		}
		if e.kind != regular || e.layer < 0 || e.layer > 1 || e.size < 0 || e.size > 1<<20 && r.gotLayer == e.layer && r.gotOrdinal == e.ordinal {
			t.Fatalf("found %+v", e)
		}
		if st, err := r.file.Stat(); err != nil || r.gotLayer == e.layer && r.gotOrdinal == e.ordinal && st.Size() != e.size {
			t.Fatalf("%d bytes for %+v: %v", st.Size(), e, err)
		}
	})
}

// memory is a source of blobs.
type memory map[digest.Digest][]byte

func (m memory) GetBlob(_ context.Context, b types.BlobInfo, _ types.BlobInfoCache) (io.ReadCloser, int64, error) {
	return io.NopCloser(bytes.NewReader(m[b.Digest])), int64(len(m[b.Digest])), nil
}
func (memory) Reference() types.ImageReference { return nil }
func (memory) Close() error                    { return nil }
func (memory) HasThreadSafeGetBlob() bool      { return true }
func (memory) GetManifest(context.Context, *digest.Digest) ([]byte, string, error) {
	return nil, "", errors.ErrUnsupported
}
func (memory) GetSignatures(context.Context, *digest.Digest) ([][]byte, error) { return nil, nil }
func (memory) LayerInfosForCopy(context.Context, *digest.Digest) ([]types.BlobInfo, error) {
	return nil, nil
}
