package lint

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.yaml.in/yaml/v3"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/imagelist"
)

const (
	// maxManifest bounds a manifest on the disk, and one that was given where it is read for more than its images.
	maxManifest = 1 << 20
	// maxVisits bounds the nodes of a document that are looked at; aliases count each time they are followed.
	maxVisits = 1 << 20
	maxNested = 256
	// maxStatic bounds the static Pods' files.
	maxStatic = 256
)

// checkStaticPods looks at the Pods that kubelet starts by itself.
func (v *view) checkStaticPods() error {
	dirs := []string{"/etc/kubernetes/manifests"}
	if w, ok := v.kubelet().setting("pod-manifest-path", "staticPodPath"); ok && strings.HasPrefix(w.text, "/") && path.Clean(w.text) != dirs[0] {
		dirs = append(dirs, path.Clean(w.text))
	}
	n := 0
	for _, dir := range dirs {
		names := []string{dir}
		if h, err := v.stat(dir); err == nil && h.Typeflag == tar.TypeDir {
			names = nil
			for _, name := range v.list(dir) {
				// kubelet passes over names with a dot in front.
				if !strings.HasPrefix(name, ".") {
					names = append(names, path.Join(dir, name))
				}
			}
		}
		for _, name := range names {
			if !v.is(name, tar.TypeReg) {
				continue
			}
			if n++; n > maxStatic {
				return fmt.Errorf("there are more than %d", maxStatic)
			}
			text, ok := v.text(name)
			if !ok {
				continue
			}
			if err := v.manifest(name, text, "the static Pod's image"); err != nil {
				v.unseen(name, err)
			}
		}
	}
	return nil
}

// checkManifests looks at what was given.
func (v *view) checkManifests() error {
	for _, name := range v.opts.Manifests {
		if err := v.given(name); err != nil {
			return err
		}
	}
	return nil
}

// given looks at one name that was given. The error matches imagebuild.ErrUsage where nothing can be read.
func (v *view) given(name string) error {
	if name == "-" {
		if v.opts.Stdin == nil {
			return fmt.Errorf("%w: there is no standard input", imagebuild.ErrUsage)
		}
		text, err := io.ReadAll(io.LimitReader(v.opts.Stdin, maxGiven+1))
		if err != nil {
			return fmt.Errorf("%w: reading standard input: %w", imagebuild.ErrUsage, err)
		}
		return v.givenText("stdin", text)
	}
	fi, err := os.Stat(name)
	if err != nil {
		return fmt.Errorf("%w: %w", imagebuild.ErrUsage, err)
	}
	if !fi.IsDir() {
		return v.givenFile(name)
	}
	if _, err := os.Stat(filepath.Join(name, "Chart.yaml")); err == nil {
		return v.chart(name)
	}
	return filepath.WalkDir(name, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%w: %w", imagebuild.ErrUsage, err)
		}
		if d.IsDir() {
			return nil
		}
		switch filepath.Ext(name) {
		case ".yaml", ".yml", ".json":
		default:
			return nil
		}
		if fi, err := os.Stat(name); err != nil || !fi.Mode().IsRegular() {
			return nil
		}
		return v.givenFile(name)
	})
}

// maxGiven bounds a file that was given, as imagelist does.
const maxGiven = 64 << 20

func (v *view) givenFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("%w: %w", imagebuild.ErrUsage, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxGiven+1))
	if err != nil {
		return fmt.Errorf("%w: reading %s: %w", imagebuild.ErrUsage, name, err)
	}
	if bytes.HasPrefix(text, []byte{0x1f, 0x8b}) {
		return v.chart(name)
	}
	return v.givenText(name, text)
}

func (v *view) givenText(name string, text []byte) error {
	if len(text) > maxGiven {
		return fmt.Errorf("%w: %s has more than %d bytes", imagebuild.ErrUsage, name, maxGiven)
	}
	if err := v.manifest(name, text, "the image"); err != nil {
		v.add(Finding{ID: "NB002", Severity: Error, What: fmt.Sprintf("the manifest cannot be read: %v", err), File: name,
			Why: "its images were not looked for", Mend: "correct it, or leave it out"})
	}
	return nil
}

// chart looks for a chart's images. How they are pulled is not seen: the rendered text stays in imagelist.
func (v *view) chart(name string) error {
	entries, err := imagelist.Read(v.ctx, []string{name}, nil, imagelist.Options{})
	if err != nil {
		v.add(Finding{ID: "NB002", Severity: Error, What: fmt.Sprintf("the chart cannot be read: %v", err), File: name, Why: "its images were not looked for", Mend: "correct it, or give what helm template makes of it"})
		return nil
	}
	for _, e := range entries {
		v.need("NB077", "the chart's image", plainRef(e.Ref), word{file: name}, Error, "its Pods would pull it")
	}
	v.add(Finding{ID: "NB001", Severity: Info, What: "how the chart's images are pulled was not looked at", File: name, Why: "imagePullPolicy: Always asks a registry even for images that are there",
		Mend: "give what helm template makes of it"})
	return nil
}

// plainRef is a reference of imagelist's as a manifest has it.
func plainRef(ref string) string { return strings.TrimPrefix(ref, "docker://") }

// manifest looks at a text: which images it names, and how they are pulled.
func (v *view) manifest(name string, text []byte, what string) error {
	rest, clusters := takeClusters(name, text)
	v.clusters = append(v.clusters, clusters...)
	for _, c := range clusters {
		v.pullsAlways(c)
	}
	pods, podErr := readPods(rest)
	for _, p := range pods {
		v.pull(name, p)
	}
	entries, err := imagelist.Read(v.ctx, []string{"-"}, bytes.NewReader(rest), imagelist.Options{})
	switch {
	case errors.Is(err, imagelist.ErrNoImages):
	case errors.Is(err, context.Canceled):
		return nil
	case err != nil:
		return fmt.Errorf("%s", strings.ReplaceAll(err.Error(), "stdin:", "line "))
	}
	for _, e := range entries {
		at := word{file: name}
		if from, ok := strings.CutPrefix(e.From, "stdin:"); ok {
			n, _, _ := strings.Cut(from, ":")
			at.line, _ = strconv.Atoi(n)
		}
		ref := plainRef(e.Ref)
		if !strings.Contains(e.Ref, "://") && transport(e.Ref) {
			continue // a list for a bake may name files of this machine
		}
		v.need("NB077", what, ref, at, Error, "the Pod that names it would pull it")
	}
	if podErr != nil {
		return podErr
	}
	return nil
}

// transport says that a reference of a plain list is no registry's.
func transport(ref string) bool {
	for _, t := range []string{"oci:", "oci-archive:", "docker-archive:", "dir:", "containers-storage:"} {
		if strings.HasPrefix(ref, t) {
			return true
		}
	}
	return false
}

// pull reports what of a container asks a registry even if the image is there.
func (v *view) pull(name string, p pod) {
	if p.volume {
		v.add(Finding{ID: "NB083", Severity: Error, What: fmt.Sprintf("%s mounts the image %s as a volume", p.object, p.image), File: name, Line: p.line,
			Why:  "CRI-O cannot mount an image of a read-only store: layer not known (containers/storage#1864, containers/podman#29001)",
			Mend: "copy its files with an init container, or have the node pull that one image"})
	}
	if p.admission {
		v.admission(p.object, name, p.line)
	}
	if p.image == "" {
		return
	}
	latest := false
	if named, err := reference.ParseNormalizedNamed(p.image); err == nil {
		if _, digested := named.(reference.Digested); !digested {
			t, tagged := named.(reference.Tagged)
			latest = !tagged || t.Tag() == "latest"
		}
	}
	const why = "kubelet then asks the registry each time the container starts, and the Pod fails without an answer, even if the image is there"
	switch {
	case p.policy == "Always":
		v.add(Finding{ID: "NB080", Severity: Error, What: fmt.Sprintf("%s pulls %s always", p.object, p.image), File: name, Line: p.policyLine, Why: why, Mend: "imagePullPolicy: IfNotPresent"})
	case p.policy == "" && latest:
		v.add(Finding{ID: "NB081", Severity: Error, What: fmt.Sprintf("%s has the image %s with no tag, or latest, and no imagePullPolicy", p.object, p.image), File: name, Line: p.line,
			Why: "that stands for imagePullPolicy: Always; " + why, Mend: "give a tag other than latest, or imagePullPolicy: IfNotPresent"})
	}
}

// alwaysPull is the admission plugin that makes every Pod pull its images.
const alwaysPull = "AlwaysPullImages"

func (v *view) admission(what, file string, line int) {
	v.add(Finding{ID: "NB082", Severity: Error, What: what + " turns on the admission plugin " + alwaysPull, File: file, Line: line,
		Why: "every Pod of the cluster then has imagePullPolicy: Always", Mend: "take the plugin out"})
}

func (v *view) pullsAlways(c clusterConf) {
	if c.alwaysPull > 0 {
		v.admission("ClusterConfiguration", c.file, c.alwaysPull)
	}
}

// pod is a container or an image volume, and how its image is pulled.
type pod struct {
	object     string
	image      string
	line       int
	policy     string
	policyLine int
	volume     bool
	admission  bool
}

// documents cuts a YAML stream into its documents, each with the lines before it.
func documents(text []byte) func(yield func(doc []byte, line int) bool) {
	return func(yield func([]byte, int) bool) {
		start, startLine, line := 0, 0, 0
		for pos := 0; pos < len(text); line++ {
			end := len(text)
			if i := bytes.IndexByte(text[pos:], '\n'); i >= 0 {
				end = pos + i + 1
			}
			if l := text[pos:end]; pos > start && bytes.HasPrefix(l, []byte("---")) && (len(l) == 3 || strings.IndexByte(" \t\r\n", l[3]) >= 0) {
				if !yield(text[start:pos], startLine) {
					return
				}
				start, startLine = pos, line
			}
			pos = end
		}
		if start < len(text) {
			yield(text[start:], startLine)
		}
	}
}

// takeClusters takes kubeadm's ClusterConfigurations out of a text, which keeps its lines.
func takeClusters(name string, text []byte) (rest []byte, found []clusterConf) {
	if !bytes.Contains(text, []byte("ClusterConfiguration")) || len(text) > maxManifest {
		return text, nil
	}
	for doc, line := range documents(text) {
		var head struct {
			Kind       string `yaml:"kind"`
			APIVersion string `yaml:"apiVersion"`
		}
		if yaml.Unmarshal(doc, &head) != nil || head.Kind != "ClusterConfiguration" || !strings.HasPrefix(head.APIVersion, "kubeadm.k8s.io/") {
			rest = append(rest, doc...)
			continue
		}
		c := clusterConf{file: name, line: line + max(1, keyLine(doc, "kind"))}
		if err := yaml.Unmarshal(doc, &c); err == nil {
			if at := lineOf(doc, alwaysPull); at > 0 {
				c.alwaysPull = line + at
			}
			found = append(found, c)
		}
		rest = append(rest, bytes.Repeat([]byte{'\n'}, bytes.Count(doc, []byte{'\n'}))...)
	}
	return rest, found
}

// readPods finds the containers and image volumes in the documents of a text. What is not YAML or JSON, or too large,
// has none; the error says so where it was meant to be.
func readPods(text []byte) ([]pod, error) {
	if !bytes.Contains(text, []byte("kind")) {
		return nil, nil // a plain list, or a configuration
	}
	var all []pod
	for doc, line := range documents(text) {
		if len(doc) > maxManifest {
			return all, fmt.Errorf("line %d: a document has more than %d bytes, so how its images are pulled was not looked at", line+1, maxManifest)
		}
		var n yaml.Node
		if err := yaml.Unmarshal(doc, &n); err != nil {
			// JSON may hold tabs, which YAML does not take.
			if err := yaml.Unmarshal(bytes.ReplaceAll(doc, []byte("\t"), []byte(" ")), &n); err != nil {
				return all, nil // imagelist says what is wrong
			}
		}
		w := podWalker{line: line}
		for _, c := range n.Content {
			if err := w.walk(c, 0); err != nil {
				return all, fmt.Errorf("line %d: %w", line+1, err)
			}
		}
		all = append(all, w.found...)
	}
	return all, nil
}

// podWalker looks for containers below a node.
type podWalker struct {
	line   int // lines before the document
	object string
	visits int
	found  []pod
}

var errManifest = errors.New("the document is too large or nested too deep")

func (w *podWalker) walk(n *yaml.Node, depth int) error {
	if w.visits++; w.visits > maxVisits || depth > maxNested {
		return errManifest
	}
	switch n.Kind {
	case yaml.AliasNode:
		if n.Alias != nil {
			return w.walk(n.Alias, depth+1)
		}
	case yaml.SequenceNode, yaml.DocumentNode:
		for _, c := range n.Content {
			if err := w.walk(c, depth+1); err != nil {
				return err
			}
		}
	case yaml.MappingNode:
		if kind := scalar(field(n, "kind")); kind != "" && field(n, "apiVersion") != nil {
			if kind == "CustomResourceDefinition" {
				return nil
			}
			before := w.object
			defer func() { w.object = before }()
			w.object = strings.TrimSpace(printable(kind) + " " + printable(scalar(field(field(n, "metadata"), "name"))))
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, value := n.Content[i].Value, n.Content[i+1]
			if key == "metadata" || key == "status" {
				continue
			}
			if value.Kind == yaml.AliasNode && value.Alias != nil {
				value = value.Alias
			}
			if value.Kind == yaml.SequenceNode {
				for _, c := range value.Content {
					w.element(key, c)
				}
			}
			if err := w.walk(value, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// element looks at an element of a list that may be of containers or volumes.
func (w *podWalker) element(key string, c *yaml.Node) {
	switch key {
	case "containers", "initContainers", "ephemeralContainers":
		image := field(c, "image")
		if scalar(image) == "" {
			return
		}
		p := pod{object: w.object, image: image.Value, line: w.line + image.Line}
		if policy := field(c, "imagePullPolicy"); scalar(policy) != "" {
			p.policy, p.policyLine = policy.Value, w.line+policy.Line
		}
		w.found = append(w.found, p)
		for _, name := range []string{"command", "args"} {
			list := field(c, name)
			if list == nil || list.Kind != yaml.SequenceNode {
				continue
			}
			before := ""
			for _, a := range list.Content {
				s := scalar(a)
				if strings.Contains(s, alwaysPull) && strings.HasPrefix(before+s, "--enable-admission-plugins") {
					w.found = append(w.found, pod{object: w.object, line: w.line + a.Line, admission: true})
				}
				before = ""
				if s == "--enable-admission-plugins" {
					before = s
				}
			}
		}
	case "volumes":
		image := field(c, "image")
		ref := field(image, "reference")
		if scalar(ref) == "" {
			return
		}
		p := pod{object: w.object, image: ref.Value, line: w.line + ref.Line, volume: true}
		if policy := field(image, "pullPolicy"); scalar(policy) != "" {
			p.policy, p.policyLine = policy.Value, w.line+policy.Line
		}
		w.found = append(w.found, p)
	}
}

// field gives a field of a mapping, of two of one name the last; nil if it has none.
func field(n *yaml.Node, name string) *yaml.Node {
	if n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := len(n.Content) - 2; i >= 0; i -= 2 {
		if n.Content[i].Value == name {
			v := n.Content[i+1]
			if v.Kind == yaml.AliasNode {
				v = v.Alias
			}
			return v
		}
	}
	return nil
}

func scalar(n *yaml.Node) string {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return ""
	}
	return n.Value
}

// printable keeps what a file says out of the way of a terminal.
func printable(s string) string {
	const most = 200
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	for _, c := range s {
		if !strconv.IsPrint(c) {
			return strconv.Quote(s)
		}
	}
	return s
}
