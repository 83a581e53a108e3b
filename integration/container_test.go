package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBootVolumeImage bakes into container images and out of them: the layer is what ocne and KubeVirt look for, and the
// disk in it is byte for byte the one that a file would hold.
func TestBootVolumeImage(t *testing.T) {
	requires(t, "root", "skopeo", "podman", "tar")
	images := testImages(t)
	dir := tempDir(t)
	build := func(base, out string, more ...string) {
		t.Helper()
		baked(t, append([]string{"--base", base, "--image", images["hello"].oci(), "--output", out, "--quiet"}, more...)...)
	}
	build(smallBase(t), dir+"/plain.qcow2")
	for _, c := range []struct{ out, from, path string }{
		{"oci:" + dir + "/layout:ock", "oci:" + dir + "/layout:ock", "disk/boot.qcow2"},
		{"oci-archive:" + dir + "/oci.tar", "oci-archive:" + dir + "/oci.tar", "disk/node.qcow2"},
		{"docker-archive:" + dir + "/docker.tar:example.org/ock:1", "docker-archive:" + dir + "/docker.tar", "disk/boot.qcow2"},
	} {
		t.Run(c.out[:strings.Index(c.out, ":")], func(t *testing.T) {
			var more []string
			if c.path != "disk/boot.qcow2" {
				more = []string{"--disk-path", c.path}
			}
			build(smallBase(t), c.out, append(more, "--report", dir+"/report.json")...)
			var report struct {
				Output struct {
					Container struct{ DiskPath, DiskDigest string }
				}
			}
			readJSON(t, dir+"/report.json", &report)
			if image := report.Output.Container; image.DiskPath != c.path || image.DiskDigest != "sha256:"+hashFile(t, dir+"/plain.qcow2") {
				t.Errorf("the report says %+v", report)
			}
			copied := tempDir(t)
			run(t, "skopeo", "copy", "-q", c.from, "dir:"+copied)
			var manifest struct{ Layers []struct{ Digest string } }
			raw, err := os.ReadFile(copied + "/manifest.json")
			check(t, err)
			check(t, json.Unmarshal(raw, &manifest))
			if len(manifest.Layers) != 1 {
				t.Fatalf("layers: %+v", manifest)
			}
			layer := filepath.Join(copied, strings.TrimPrefix(manifest.Layers[0].Digest, "sha256:"))
			list := run(t, "tar", "--numeric-owner", "-tvf", layer)
			if !strings.Contains(list, "-rw-r--r-- 107/107") || !strings.Contains(list, " "+c.path+"\n") || strings.Count(list, "\n") > 2 {
				t.Errorf("the layer lists\n%s", list)
			}
			run(t, "sh", "-c", `tar -xOf "$1" "$2" | cmp - "$3"`, "sh", layer, c.path, dir+"/plain.qcow2")
			// A second bake starts from the image: all is there already, and the disk is the same.
			build(c.from, dir+"/again.qcow2", "--force")
			run(t, "cmp", dir+"/again.qcow2", dir+"/plain.qcow2")
			refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", images["hello"].oci(), "--output", c.out), exitFailed, dir+"/none", "exists|there", "--force")
		})
	}
	for _, c := range [][]string{{"--disk-path", "../x"}, {"--overlay"}} {
		refused(t, nodebake(t, append([]string{"build", "--base", smallBase(t), "--image", images["hello"].oci(), "--output", "oci:" + dir + "/bad"}, c...)...), exitUsage, dir+"/bad", strings.TrimPrefix(c[0], "--")+"|path")
	}
	refused(t, nodebake(t, "build", "--base", "oci:"+images["hello"].layout+":"+images["hello"].name, "--image", images["hello"].oci(), "--output", dir+"/x.qcow2"), exitFailed, dir+"/x.qcow2", "no disk", "disk/boot.qcow2")
}
