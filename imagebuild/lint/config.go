package lint

import (
	"archive/tar"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"go.yaml.in/yaml/v3"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

// crioConf is what CRI-O on the disk is told.
type crioConf struct {
	// present says that there is a program or a configuration of CRI-O.
	present bool
	unit    unit
	// root is where CRI-O keeps its images, if not where storage.conf says.
	root string
	// pause is the pause image, where it is set or else built in; empty where that cannot be said.
	pause word
	// pins are the patterns of pinned_images in force, pinsFile the file that sets them.
	pins     []string
	pinsFile string
}

// crioPrograms are where CRI-O's program may be.
var crioPrograms = []string{"/usr/bin/crio", "/usr/local/bin/crio", "/usr/sbin/crio"}

func (v *view) readCRIO() crioConf {
	var c crioConf
	p, hasProgram := v.program(crioPrograms...)
	u, hasUnit := v.unit("crio.service")
	c.unit = u
	c.present = hasProgram || hasUnit || v.is("/etc/crio", tar.TypeDir)
	if p.pause != "" {
		c.pause = word{text: p.pause, file: p.path}
	}
	if t, err := v.config(); err == nil {
		c.root = t.CRIOConfig.Root
		for _, f := range t.CRIO {
			c.take(f)
		}
		var err error
		if c.pins, c.pinsFile, err = imagebuild.PinnedImages(t.CRIO); err != nil {
			v.unseen("pinned_images", err)
		}
	}
	// The command line is stronger than the environment, and that than the files.
	if w, ok := u.variable("CONTAINER_PAUSE_IMAGE"); ok {
		c.pause = w
	}
	if w, ok := flag(u.exec, "pause-image"); ok {
		c.pause = w
	}
	if w, ok := u.variable("CONTAINER_ROOT"); ok {
		c.root = w.text
	}
	if w, ok := flag(u.exec, "root"); ok {
		c.root = w.text
	}
	return c
}

// take notes what a file of CRI-O's says of the pause image.
func (c *crioConf) take(f storageconf.File) {
	if s, ok := tomlString(f.Data, "crio", "image", "pause_image"); ok && s != "" {
		c.pause = word{s, f.Name, keyLine(f.Data, "pause_image")}
	}
}

// maxTOML bounds a TOML file, and so how deep its tables nest.
const maxTOML = 256 << 10

// tomlString gives a string of a TOML file. As in the engines' library, keys match whatever their case.
func tomlString(text []byte, key ...string) (string, bool) {
	if len(text) > maxTOML {
		return "", false
	}
	var doc map[string]any
	if toml.Unmarshal(text, &doc) != nil {
		return "", false
	}
	var at any = doc
	for _, k := range key {
		m, _ := at.(map[string]any)
		at = nil
		for name, value := range m {
			if name == k || at == nil && strings.EqualFold(name, k) {
				at = value
			}
		}
	}
	s, ok := at.(string)
	return s, ok
}

// kubeletConf is what kubelet on the disk is told.
type kubeletConf struct {
	// present says that there is a kubelet.
	present bool
	program program
	unit    unit
	// file is its configuration file; empty where there is none.
	file string
	// set are the scalar fields of the configuration, of the drop-ins last, each with its place.
	set map[string]word
}

var (
	kubeletPrograms = []string{"/usr/bin/kubelet", "/usr/local/bin/kubelet", "/opt/bin/kubelet"}
	kubeadmPrograms = []string{"/usr/bin/kubeadm", "/usr/local/bin/kubeadm", "/opt/bin/kubeadm"}
)

// kubeletFields are the fields of a KubeletConfiguration that are read.
var kubeletFields = []string{"staticPodPath", "containerRuntimeEndpoint", "imageGCHighThresholdPercent", "imageMaximumGCAge",
	"imagePullCredentialsVerificationPolicy", "podInfraContainerImage"}

func (v *view) readKubelet() kubeletConf {
	k := kubeletConf{set: map[string]word{}}
	p, hasProgram := v.program(kubeletPrograms...)
	u, hasUnit := v.unit("kubelet.service")
	k.program, k.unit, k.present = p, u, hasProgram || hasUnit
	// kubeadm writes the flags at "init" and "join"; a disk that was a node has them.
	for _, name := range []string{"/var/lib/kubelet/kubeadm-flags.env", "/etc/sysconfig/kubelet", "/etc/default/kubelet"} {
		for _, w := range v.envFile(name) {
			if name, value, ok := strings.Cut(w.text, "="); ok && (name == "KUBELET_KUBEADM_ARGS" || name == "KUBELET_EXTRA_ARGS") {
				for _, f := range splitWords(value) {
					k.unit.exec = append(k.unit.exec, word{f, w.file, w.line})
				}
			}
		}
	}
	k.file = "/var/lib/kubelet/config.yaml"
	if w, ok := flag(k.unit.exec, "config"); ok && strings.HasPrefix(w.text, "/") {
		k.file = w.text
	}
	files := []string{k.file}
	if w, ok := flag(k.unit.exec, "config-dir"); ok && strings.HasPrefix(w.text, "/") {
		for _, n := range v.list(w.text) {
			if strings.HasSuffix(n, ".conf") {
				files = append(files, path.Join(w.text, n))
			}
		}
	}
	for _, f := range files {
		text, ok := v.text(f)
		if !ok {
			if f == k.file {
				k.file = ""
			}
			continue
		}
		k.present = true
		if err := kubeletFile(f, text, k.set); err != nil {
			v.unseen(f, err)
		}
	}
	return k
}

// kubeletFile notes the fields of a KubeletConfiguration.
func kubeletFile(name string, text []byte, set map[string]word) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return fmt.Errorf("it is not YAML: %w", err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil
	}
	m := doc.Content[0]
	for i := 0; i+1 < len(m.Content); i += 2 {
		for _, f := range kubeletFields {
			if m.Content[i].Value == f && m.Content[i+1].Kind == yaml.ScalarNode {
				set[f] = word{m.Content[i+1].Value, name, m.Content[i].Line}
			}
		}
	}
	return nil
}

// setting gives a flag of kubelet, or else the field of its configuration.
func (k kubeletConf) setting(flagName, field string) (word, bool) {
	if w, ok := flag(k.unit.exec, flagName); ok {
		return w, true
	}
	w, ok := k.set[field]
	return w, ok
}

// number is a setting that is a whole number.
func (k kubeletConf) number(flagName, field string, otherwise int) (int, word) {
	w, ok := k.setting(flagName, field)
	if !ok {
		return otherwise, word{}
	}
	n, err := strconv.Atoi(strings.TrimSpace(w.text))
	if err != nil {
		return otherwise, w
	}
	return n, w
}

// kubernetes is the version that a node runs, and where it is from.
type kubernetes struct {
	version, from string
}

func (v *view) findKubernetes() kubernetes {
	if v.opts.Kubernetes != "" {
		return kubernetes{v.opts.Kubernetes, "--kubernetes"}
	}
	for _, names := range [][]string{kubeadmPrograms, kubeletPrograms} {
		if p, ok := v.program(names...); ok && p.gitVersion != "" {
			return kubernetes{p.gitVersion, p.path}
		}
	}
	packages := v.packages()
	for _, name := range []string{"kubeadm", "kubelet"} {
		if s := packages[name]; s != "" {
			return kubernetes{"v" + s, "the package " + name}
		}
	}
	return kubernetes{}
}

// storageModules are the names that the storage library has had.
var storageModules = []string{"go.podman.io/storage", "github.com/containers/storage"}

func (v *view) findEngines() []Engine {
	var all []Engine
	for _, e := range []struct {
		name, pkg string
		programs  []string
	}{
		{"CRI-O", "cri-o", crioPrograms},
		{"podman", "podman", []string{"/usr/bin/podman", "/usr/local/bin/podman"}},
	} {
		p, ok := v.program(e.programs...)
		if !ok {
			continue
		}
		one := Engine{Name: e.name, Path: p.path, Version: v.packages()[e.pkg], Storage: strings.TrimPrefix(p.dep(storageModules...), "v")}
		if k, ok := parseVersion(p.main); ok && one.Version == "" && k.major > 0 {
			one.Version = k.text
		}
		all = append(all, one)
	}
	return all
}
