package lint

import (
	"archive/tar"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// release is what kubeadm of one version takes, but for the images that have Kubernetes' own version.
type release struct {
	version, coredns, etcd, pause string
}

// releases are points from kubeadm's constants (cmd/kubeadm/app/constants/constants.go: CoreDNSVersion,
// DefaultEtcdVersion, PauseVersion) or from what "kubeadm config images list" printed, in the order of versions. The
// constants of a minor release only ever move forward, so what is the same at two points is the same between them; where
// it is not, and behind the last point of a minor release, it is not known.
var releases = []release{
	{"1.27.0", "v1.10.1", "3.5.7-0", "3.9"}, {"1.27.6", "v1.10.1", "3.5.7-0", "3.9"},
	{"1.27.7", "v1.10.1", "3.5.9-0", "3.9"}, {"1.27.9", "v1.10.1", "3.5.9-0", "3.9"},
	{"1.27.10", "v1.10.1", "3.5.10-0", "3.9"}, {"1.27.11", "v1.10.1", "3.5.10-0", "3.9"},
	{"1.27.12", "v1.10.1", "3.5.12-0", "3.9"}, {"1.27.16", "v1.10.1", "3.5.12-0", "3.9"},
	{"1.28.0", "v1.10.1", "3.5.9-0", "3.9"}, {"1.28.5", "v1.10.1", "3.5.9-0", "3.9"},
	{"1.28.6", "v1.10.1", "3.5.10-0", "3.9"}, {"1.28.7", "v1.10.1", "3.5.10-0", "3.9"},
	{"1.28.8", "v1.10.1", "3.5.12-0", "3.9"}, {"1.28.13", "v1.10.1", "3.5.12-0", "3.9"},
	{"1.28.14", "v1.10.1", "3.5.15-0", "3.9"}, {"1.28.15", "v1.10.1", "3.5.15-0", "3.9"},
	{"1.29.0", "v1.11.1", "3.5.10-0", "3.9"}, {"1.29.2", "v1.11.1", "3.5.10-0", "3.9"},
	{"1.29.3", "v1.11.1", "3.5.12-0", "3.9"}, {"1.29.8", "v1.11.1", "3.5.12-0", "3.9"},
	{"1.29.9", "v1.11.1", "3.5.15-0", "3.9"}, {"1.29.10", "v1.11.1", "3.5.15-0", "3.9"},
	{"1.29.15", "v1.11.1", "3.5.16-0", "3.9"},
	{"1.30.0", "v1.11.1", "3.5.12-0", "3.9"}, {"1.30.4", "v1.11.1", "3.5.12-0", "3.9"},
	{"1.30.5", "v1.11.3", "3.5.15-0", "3.9"}, {"1.30.14", "v1.11.3", "3.5.15-0", "3.9"},
	{"1.31.0", "v1.11.1", "3.5.15-0", "3.10"},
	{"1.31.1", "v1.11.3", "3.5.15-0", "3.10"}, {"1.31.2", "v1.11.3", "3.5.15-0", "3.10"},
	{"1.31.14", "v1.11.3", "3.5.24-0", "3.10"},
	{"1.32.0", "v1.11.3", "3.5.16-0", "3.10"}, {"1.32.9", "v1.11.3", "3.5.16-0", "3.10"},
	{"1.32.13", "v1.11.3", "3.5.24-0", "3.10"},
	{"1.33.0", "v1.12.0", "3.5.21-0", "3.10"},
	{"1.33.6", "v1.12.0", "3.5.24-0", "3.10"}, {"1.33.13", "v1.12.0", "3.5.24-0", "3.10"},
	{"1.34.0", "v1.12.1", "3.6.4-0", "3.10.1"}, {"1.34.1", "v1.12.1", "3.6.4-0", "3.10.1"},
	{"1.34.2", "v1.12.1", "3.6.5-0", "3.10.1"}, {"1.34.4", "v1.12.1", "3.6.5-0", "3.10.1"},
	{"1.35.0", "v1.13.1", "3.6.6-0", "3.10.1"}, {"1.35.4", "v1.13.1", "3.6.6-0", "3.10.1"},
	{"1.36.3", "v1.14.2", "3.6.8-0", "3.10.2"},
}

// tags are the tags that one of a release's images may have: one where it is known, two where it is one of them or
// between them, none where nothing is known.
type tags []string

func (t tags) known() bool { return len(t) == 1 }

// releaseTags looks a version up.
func releaseTags(k version) (coredns, etcd, pause tags) {
	var below, above *release
	for i := range releases {
		r, _ := parseVersion(releases[i].version)
		switch {
		case r.major != k.major || r.minor != k.minor:
		case !k.before(r):
			below = &releases[i]
		case above == nil:
			above = &releases[i]
		}
	}
	if below == nil {
		return nil, nil, nil
	}
	at, _ := parseVersion(below.version)
	if !at.before(k) {
		above = below
	}
	if above == nil {
		return nil, nil, nil
	}
	pick := func(a, b string) tags {
		if a == b {
			return tags{a}
		}
		return tags{a, b}
	}
	return pick(below.coredns, above.coredns), pick(below.etcd, above.etcd), pick(below.pause, above.pause)
}

// clusterConf is what of kubeadm's ClusterConfiguration matters here.
type clusterConf struct {
	file string
	line int
	// alwaysPull is the line that turns on the admission plugin AlwaysPullImages; 0 if none does.
	alwaysPull int

	KubernetesVersion string `yaml:"kubernetesVersion"`
	ImageRepository   string `yaml:"imageRepository"`
	Etcd              struct {
		Local struct {
			ImageRepository string `yaml:"imageRepository"`
			ImageTag        string `yaml:"imageTag"`
		} `yaml:"local"`
		External *yaml.Node `yaml:"external"`
	} `yaml:"etcd"`
	DNS struct {
		ImageRepository string `yaml:"imageRepository"`
		ImageTag        string `yaml:"imageTag"`
		Disabled        bool   `yaml:"disabled"`
	} `yaml:"dns"`
	Proxy struct {
		Disabled bool `yaml:"disabled"`
	} `yaml:"proxy"`
}

const defaultRepository = "registry.k8s.io"

// kubeadmDirs are where kubeadm's configuration is usually kept.
var kubeadmDirs = []string{"/etc/kubernetes", "/etc/kubeadm", "/etc/ocne", "/root", "/usr/share/kubeadm"}

// findCluster gives the cluster's configuration: one that was given, or else the first on the disk.
func (v *view) findCluster() (clusterConf, bool) {
	if len(v.clusters) > 0 {
		return v.clusters[0], true
	}
	for _, dir := range kubeadmDirs {
		for _, n := range v.list(dir) {
			if ext := path.Ext(n); ext != ".yaml" && ext != ".yml" && ext != ".conf" {
				continue
			}
			name := path.Join(dir, n)
			if !v.is(name, tar.TypeReg) {
				continue
			}
			text, ok := v.text(name)
			if !ok || !strings.Contains(string(text), "ClusterConfiguration") {
				continue
			}
			if _, found := takeClusters(name, text); len(found) > 0 {
				return found[0], true
			}
		}
	}
	return clusterConf{}, false
}

// imageTag is a Kubernetes version as kubeadm makes a tag of it.
func imageTag(version string) string {
	return regexp.MustCompile(`[^-\w.]`).ReplaceAllString("v"+strings.TrimPrefix(version, "v"), "_")
}

// kubeImage is an image that kubeadm asks for.
type kubeImage struct {
	name string
	ref  func(tag string) string
	tags tags
	who  who
}

// who is which nodes need an image.
type who int

const (
	// everyNode runs it.
	everyNode who = iota
	// plane is for images that nodes of the control plane run.
	plane
	// starter is for the image that kubeadm init asks for, and that the runtime may have another of.
	starter
)

// checkKubeadm asks whether the images are there that kubeadm would pull.
func (v *view) checkKubeadm() error {
	program, has := v.program(kubeadmPrograms...)
	conf, configured := v.findCluster()
	if !has && v.opts.Kubernetes == "" {
		return nil
	}
	at := word{file: program.path}
	if v.opts.Kubernetes != "" {
		at = word{}
	}
	k := v.kubernetes()
	if conf.KubernetesVersion != "" && v.opts.Kubernetes == "" {
		if _, ok := parseVersion(conf.KubernetesVersion); ok {
			k = kubernetes{"v" + strings.TrimPrefix(conf.KubernetesVersion, "v"), conf.file}
			at = word{file: conf.file, line: conf.line}
		}
	}
	number, ok := parseVersion(k.version)
	if !ok {
		v.add(Finding{ID: "NB076", Severity: Info, What: "the Kubernetes version is not known", File: program.path,
			Why: "so kubeadm's images were not looked for", Mend: "say --kubernetes VERSION, or give what kubeadm config images list prints as --manifests"})
		return nil
	}
	repo := defaultRepository
	switch {
	case conf.ImageRepository != "":
		repo = conf.ImageRepository
	case !configured:
		if other := v.otherRepository(k.version); other != "" {
			repo = other
			v.add(Finding{ID: "NB079", Severity: Info, What: fmt.Sprintf("Kubernetes' images are in the store as %s/..., and no configuration of kubeadm names that repository", other),
				Why: "kubeadm asks for " + defaultRepository + " unless its configuration has imageRepository, or it was built to ask elsewhere", Mend: "set imageRepository: " + other})
		}
	}
	images := kubeImages(conf, repo, k.version, number)
	why := fmt.Sprintf("Kubernetes %s (from %s) needs it on ", k.version, k.from)
	var absent []string
	isPlane := false
	for _, i := range images {
		if i.who != plane {
			continue
		}
		if slices.ContainsFunc(i.tags, func(t string) bool { return v.index().has(i.ref(t)).found() }) {
			isPlane = true
		} else if i.tags.known() {
			absent = append(absent, i.ref(i.tags[0]))
		}
	}
	if !isPlane && len(absent) > 0 {
		v.add(Finding{ID: "NB075", Severity: Warning, What: fmt.Sprintf("none of the control plane's images is in a store (%s)", strings.Join(absent, ", ")), File: at.file, Line: at.line,
			Why: "this disk serves worker nodes alone: kubeadm init, and join --control-plane, would pull them", Mend: "bake them, if the node is to be one of the control plane"})
	}
	for _, i := range images {
		switch {
		case i.who != everyNode && !isPlane:
		case !i.tags.known():
			v.unsure(i, k, at)
		case i.who == everyNode:
			v.need("NB074", "kubeadm's image", i.ref(i.tags[0]), at, Error, why+"every node")
		case i.who == plane:
			v.need("NB074", "kubeadm's image", i.ref(i.tags[0]), at, Error, why+"nodes of the control plane, and other images of those are there")
		default:
			v.need("NB074", "kubeadm's image", i.ref(i.tags[0]), at, Error, "kubeadm init pulls it before it starts, whatever the runtime's own is")
		}
	}
	return nil
}

// unsure says that the table does not know an image's tag, and what the stores have.
func (v *view) unsure(i kubeImage, k kubernetes, at word) {
	f := Finding{ID: "NB076", Severity: Info, File: at.file, Line: at.line, Why: "nodebake's table of kubeadm's releases does not say it for this version",
		Mend: "give what kubeadm config images list prints as --manifests"}
	if len(i.tags) == 0 {
		f.What = fmt.Sprintf("which %s image belongs to Kubernetes %s is not known", i.name, k.version)
	} else {
		f.What = fmt.Sprintf("which %s image belongs to Kubernetes %s is not known: it is %s, %s, or one between", i.name, k.version, i.ref(i.tags[0]), i.ref(i.tags[1]))
	}
	v.add(f)
}

// kubeImages are the images of a cluster, as kubeadm names them (cmd/kubeadm/app/images/images.go).
func kubeImages(c clusterConf, repo, kube string, number version) []kubeImage {
	coredns, etcd, pause := releaseTags(number)
	if c.DNS.ImageTag != "" {
		coredns = tags{c.DNS.ImageTag}
	}
	if c.Etcd.Local.ImageTag != "" {
		etcd = tags{c.Etcd.Local.ImageTag}
	}
	in := func(repo, name string) func(string) string {
		return func(tag string) string { return repo + "/" + name + ":" + tag }
	}
	or := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	kubeTag := tags{imageTag(kube)}
	images := []kubeImage{
		{"kube-apiserver", in(repo, "kube-apiserver"), kubeTag, plane},
		{"kube-controller-manager", in(repo, "kube-controller-manager"), kubeTag, plane},
		{"kube-scheduler", in(repo, "kube-scheduler"), kubeTag, plane},
	}
	if !c.Proxy.Disabled {
		images = append(images, kubeImage{"kube-proxy", in(repo, "kube-proxy"), kubeTag, everyNode})
	}
	if !c.DNS.Disabled {
		dns := or(c.DNS.ImageRepository, repo)
		// The official image lies one folder deeper.
		if dns == defaultRepository {
			dns += "/coredns"
		}
		images = append(images, kubeImage{"coredns", in(dns, "coredns"), coredns, plane})
	}
	images = append(images, kubeImage{"pause", in(repo, "pause"), pause, starter})
	if c.Etcd.External == nil {
		images = append(images, kubeImage{"etcd", in(or(c.Etcd.Local.ImageRepository, repo), "etcd"), etcd, plane})
	}
	return images
}

// otherRepository is the one repository that holds kube-proxy or kube-apiserver of the version, if the default one does
// not; empty if none or several do.
func (v *view) otherRepository(kube string) string {
	tag := imageTag(kube)
	found := ""
	for n := range v.index().names {
		for _, image := range []string{"/kube-proxy:", "/kube-apiserver:"} {
			if repo, ok := strings.CutSuffix(n, image+tag); ok {
				if repo == defaultRepository || found != "" && found != repo {
					return ""
				}
				found = repo
			}
		}
	}
	return found
}
