package lint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nodebake/nodebake/imagebuild"
)

// Severity says how bad a finding is.
type Severity string

// The severities, the worst first.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Info    Severity = "info"
)

// rank orders severities: the worse, the higher. What is no severity is above all, so that nothing reaches it.
func (s Severity) rank() int {
	switch s {
	case Info:
		return 0
	case Warning:
		return 1
	case Error:
		return 2
	}
	return 3
}

// Finding is one thing that a check found.
type Finding struct {
	// ID is stable: NB and three digits.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// What was found, in one sentence without the place.
	What string `json:"what"`
	// File is where: a path of the running system, or a file of this machine that was given. Empty where it has no
	// place. Line counts from 1; 0 is the whole file.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Why  string `json:"why"`
	Mend string `json:"mend"`
}

// Group says what a finding is about.
func (f Finding) Group() string {
	for _, g := range groups {
		if f.ID < g.before {
			return g.name
		}
	}
	return ""
}

// groups are the kinds of findings, told apart by the ranges of their IDs.
var groups = []struct{ before, name string }{
	{"NB010", "Not looked at"},
	{"NB030", "Store"},
	{"NB050", "Engine"},
	{"NB060", "First boot"},
	{"NB070", "SELinux labels"},
	{"NB080", "Images"},
	{"NB090", "Pull policy"},
	{"NB100", "Garbage collection"},
}

// Place is where a finding is, as file:line; empty where it has no place.
func (f Finding) Place() string {
	if f.Line > 0 {
		return fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	return f.File
}

// Options steer a run. The zero value looks at the disk alone.
type Options struct {
	// Kubernetes is the version that the node is to run, such as v1.34.1; empty is what is on the disk.
	Kubernetes string
	// Manifests are files and folders of this machine, as imagelist.Read takes them, and kubeadm's ClusterConfiguration.
	// The name - is Stdin.
	Manifests []string
	Stdin     io.Reader
	// LabelTime bounds how long the labels of the stores' files are compared; 0 is two minutes.
	LabelTime time.Duration
}

// Engine is a program on the disk that reads image stores.
type Engine struct {
	Name string `json:"name"`
	Path string `json:"path"`
	// Version is the program's, Storage that of the containers/storage library in it; empty where nothing says.
	Version string `json:"version,omitempty"`
	Storage string `json:"storageLibrary,omitempty"`
}

// Report is what a run found.
type Report struct {
	// Findings are sorted by ID, then by place.
	Findings []Finding `json:"findings"`
	// Kubernetes is the version that was taken, KubernetesFrom where it was read; empty where there is none.
	Kubernetes     string   `json:"kubernetes,omitempty"`
	KubernetesFrom string   `json:"kubernetesFrom,omitempty"`
	Engines        []Engine `json:"engines"`
	// Images is the number of images in the read-only stores.
	Images int `json:"images"`
}

// Count is the number of findings of a severity.
func (r *Report) Count(s Severity) int {
	n := 0
	for _, f := range r.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// Reaches says whether there is a finding that is at least as bad as s. No finding reaches "never".
func (r *Report) Reaches(s Severity) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity.rank() >= s.rank() })
}

// check is one row of the table. Its error is what kept it from looking.
type check struct {
	// about says what is looked at, for the finding that it could not be.
	about string
	run   func(*view) error
}

var checks = []check{
	{"the image stores", (*view).checkStores},
	{"storage.conf", (*view).checkNamed},
	{"the engines' folders", (*view).checkWiped},
	{"the storage driver", (*view).checkDriver},
	{"the filesystem below the store", (*view).checkFilesystem},
	{"what else the engines read", (*view).checkOtherFiles},
	{"CRI-O's storage_option", (*view).checkStorageOption},
	{"kubelet's container runtime", (*view).checkRuntime},
	{"the engines' versions", (*view).checkFaults},
	{"what is mounted over the store", (*view).checkMounts},
	{"systemd-tmpfiles", (*view).checkTmpfiles},
	{"the kernel's arguments", (*view).checkKernel},
	{"ostree's prepare-root.conf", (*view).checkTransient},
	{"Ignition", (*view).checkIgnition},
	{"SELinux labels", (*view).checkLabels},
	{"the pause image", (*view).checkPause},
	{"static Pods", (*view).checkStaticPods},
	{"the given manifests", (*view).checkManifests},
	// The manifests may hold the configuration of kubeadm.
	{"kubeadm's images", (*view).checkKubeadm},
	{"kubelet's proof of credentials", (*view).checkCredentials},
	{"kubelet's garbage collection", (*view).checkCollection},
}

// Run looks at the disk. The error is for what was asked for in a wrong way (it matches imagebuild.ErrUsage) and for
// ctx; what is wrong with the disk is in the report.
func Run(ctx context.Context, o *imagebuild.Opened, opts Options) (*Report, error) {
	if opts.LabelTime == 0 {
		opts.LabelTime = 2 * time.Minute
	}
	if opts.Kubernetes != "" {
		k, ok := parseVersion(opts.Kubernetes)
		if !ok {
			return nil, fmt.Errorf("%w: the Kubernetes version %q is not of the form v1.34.1", imagebuild.ErrUsage, opts.Kubernetes)
		}
		opts.Kubernetes = "v" + k.text
	}
	v := newView(ctx, o, opts)
	for _, c := range checks {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := c.run(v)
		if errors.Is(err, imagebuild.ErrUsage) {
			return nil, err
		}
		if err != nil && !errors.Is(err, errConfig) {
			v.unseen(c.about, err)
		}
	}
	return v.report(), ctx.Err()
}

// add notes a finding.
func (v *view) add(f Finding) {
	if !slices.Contains(v.findings, f) {
		v.findings = append(v.findings, f)
	}
}

// unseen notes what could not be looked at.
func (v *view) unseen(about string, err error) {
	v.add(Finding{ID: "NB001", Severity: Info, What: fmt.Sprintf("%s could not be looked at: %v", about, err),
		Why: "what is wrong there stays unsaid", Mend: "look at it by hand"})
}

func (v *view) report() *Report {
	r := &Report{Findings: v.findings, Engines: []Engine{}}
	if r.Findings == nil {
		r.Findings = []Finding{}
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		if c := strings.Compare(a.ID, b.ID); c != 0 {
			return c
		}
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	k := v.kubernetes()
	r.Kubernetes, r.KubernetesFrom = k.version, k.from
	r.Engines = append(r.Engines, v.engines()...)
	for _, s := range v.readOnly() {
		r.Images += s.count()
	}
	return r
}
