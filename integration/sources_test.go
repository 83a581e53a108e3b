package integration

import (
	"archive/tar"
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry starts Debian's docker-registry on loopback, without TLS, and gives its host:port.
func registry(t testing.TB) string {
	t.Helper()
	requires(t, "docker-registry")
	dir := tempDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	addr := l.Addr().String()
	l.Close()
	conf := fmt.Sprintf("version: 0.1\nlog: {level: warn}\nstorage: {filesystem: {rootdirectory: %s/data}}\nhttp: {addr: %s}\n", dir, addr)
	check(t, os.WriteFile(dir+"/config.yml", []byte(conf), 0o644))
	cmd := exec.Command("docker-registry", "serve", dir+"/config.yml")
	stderr, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	var said strings.Builder
	done := make(chan struct{})
	go func() {
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			fmt.Fprintln(&said, sc.Text())
		}
		close(done)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-done
		cmd.Wait()
		if t.Failed() {
			t.Logf("the registry said:\n%s", clip(said.String()))
		}
	})
	for range 100 {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			return addr
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the registry does not answer at %s", addr)
	return ""
}

// insecure gives a registries.conf that speaks plain HTTP to one registry and has a short name for one of its images.
func insecure(t testing.TB, addr string) string {
	t.Helper()
	name := filepath.Join(tempDir(t), "registries.conf")
	check(t, os.WriteFile(name, []byte(fmt.Sprintf("unqualified-search-registries = [%q]\n[[registry]]\nlocation = %q\ninsecure = true\n", addr, addr)), 0o644))
	return "CONTAINERS_REGISTRIES_CONF=" + name
}

// TestSources bakes one image from every place that it can come from: each time the same image, with that source's names.
func TestSources(t *testing.T) {
	requires(t, "root", "skopeo", "podman")
	images := testImages(t)
	odd := images["odd"]
	addr := registry(t)
	env := []string{insecure(t, addr)}
	// The manifests of a registry and of podman's store are their own; the config and the layers are the image's.
	pushed := addr + "/team/odd:v1"
	run(t, "skopeo", "copy", "-q", "--dest-tls-verify=false", odd.oci(), "docker://"+pushed)
	manifest := digest.FromString(run(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+pushed))
	byDigest := addr + "/team/odd@" + manifest.String()
	e := newEngine(t)
	e.do(t, "podman", "load", "-q", "-i", odd.ociArchive)
	stored := fmt.Sprintf("containers-storage:[overlay@%s/root+%s/run]%s", e.dir, e.dir, odd.name)

	for _, c := range []struct {
		name, ref string
		want      []string // names that podman must know it by
	}{
		{"oci", odd.oci(), []string{odd.name}},
		{"oci without a name", "oci:" + odd.layout, []string{odd.name}},
		{"oci-archive", "oci-archive:" + odd.ociArchive, []string{odd.name}},
		{"docker-archive", "docker-archive:" + odd.dockerArchive, []string{odd.name}},
		{"dir", "dir:" + odd.dir, nil},
		{"containers-storage", stored, []string{odd.name}},
		{"docker tag", "docker://" + pushed, []string{pushed}},
		{"bare name", pushed, []string{pushed}},
		{"docker digest", "docker://" + byDigest, []string{byDigest}},
		{"docker tag and digest", addr + "/team/odd:v1@" + manifest.String(), []string{pushed, byDigest}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			o := command(t, env, productPath(t), "build", "--base", smallBase(t), "--image", c.ref, "--output", dir+"/out.raw")
			if o.code != 0 {
				t.Fatalf("%s", o)
			}
			bakedRight(t, smallBase(t), dir+"/out.raw", smallRoot, odd)
			mnt := mount(t, dir+"/out.raw", smallRoot, "ro")
			e := newEngine(t, mnt+defaultStore)
			id := odd.facts(t).config.Encoded()
			if got := e.do(t, "podman", "images", "-a", "--no-trunc", "-q"); got != "sha256:"+id {
				t.Errorf("podman lists the IDs %q, must list %s alone", got, id)
			}
			for _, name := range c.want {
				if got := e.do(t, "podman", "image", "inspect", "--format", "{{.Id}}", name); got != id {
					t.Errorf("%s is %s, must be %s", name, got, id)
				}
			}
		})
	}
}

// TestPlatform takes the right image out of a manifest list, and refuses an image for another machine.
func TestPlatform(t *testing.T) {
	requires(t, "root", "skopeo")
	dir := tempDir(t)
	layerFor := func(arch string) layer {
		return layer{tar: makeTar(tar.FormatPAX, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "arch", Mode: 0o644, ModTime: time.Unix(1e9, 0)}, content: arch})}
	}
	// Two images in one layout, behind a list.
	both := dir + "/both"
	var list imgv1.Index
	list.Versioned, list.MediaType = imgspec.Versioned{SchemaVersion: 2}, imgv1.MediaTypeImageIndex
	for _, arch := range []string{"amd64", "arm64"} {
		check(t, writeLayout(dir+"/"+arch, "localhost/"+arch+":1", arch, layerFor(arch)))
		check(t, writeLayout(both, "x", arch, layerFor(arch)))
		var index imgv1.Index
		readJSON(t, both+"/index.json", &index)
		d := index.Manifests[0]
		d.Annotations, d.Platform = nil, &imgv1.Platform{OS: "linux", Architecture: arch}
		list.Manifests = append(list.Manifests, d)
	}
	raw, err := json.Marshal(list)
	check(t, err)
	d := digest.FromBytes(raw)
	check(t, os.WriteFile(both+"/blobs/sha256/"+d.Encoded(), raw, 0o644))
	index, err := json.Marshal(imgv1.Index{Versioned: imgspec.Versioned{SchemaVersion: 2}, Manifests: []imgv1.Descriptor{{
		MediaType: imgv1.MediaTypeImageIndex, Digest: d, Size: int64(len(raw)), Annotations: map[string]string{imgv1.AnnotationRefName: "localhost/both:1"}}}})
	check(t, err)
	check(t, os.WriteFile(both+"/index.json", index, 0o644))

	addr := registry(t)
	env := []string{insecure(t, addr)}
	run(t, "skopeo", "copy", "-q", "--all", "--dest-tls-verify=false", "oci:"+both+":localhost/both:1", "docker://"+addr+"/both:1")
	for _, ref := range []string{"oci:" + both + ":localhost/both:1", "docker://" + addr + "/both:1", addr + "/both@" + d.String()} {
		for arch, args := range map[string][]string{"amd64": nil, "arm64": {"--platform", "linux/arm64"}} {
			out := tempDir(t) + "/out.raw"
			o := command(t, env, productPath(t), append([]string{"build", "--base", smallBase(t), "--image", ref, "--output", out}, args...)...)
			if o.code != 0 {
				t.Errorf("%s", o)
				continue
			}
			mnt := mount(t, out, smallRoot, "ro")
			compareStore(t, mnt+defaultStore, image{name: arch, layout: dir + "/" + arch})
			unmount(t, mnt)
		}
	}
	out := tempDir(t) + "/out.raw"
	refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", "oci:"+dir+"/arm64", "--output", out), exitFailed, out, "arm64", "amd64")
	refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", "oci:"+both, "--platform", "linux/s390x", "--output", out), exitFailed, out, "s390x")
	refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", "oci:"+both, "--platform", "linux", "--output", out), exitUsage, out, "platform")
	refused(t, command(t, env, productPath(t), "build", "--base", smallBase(t), "--image", addr+"/none:1", "--output", out), exitFailed, out, addr+"/none")
}
