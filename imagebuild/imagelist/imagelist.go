package imagelist

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.podman.io/image/v5/docker/reference"
)

var (
	// ErrNoImages says that an input is well formed and names no image.
	ErrNoImages = errors.New("holds no reference")
	// ErrTemplate says that a manifest is a template that nobody rendered.
	ErrTemplate = errors.New("this is a template: render it first, or name its chart's folder")
	// ErrTooLarge says that an input exceeds a bound of this package.
	ErrTooLarge = errors.New("too large")
)

// maxFile bounds a file, the whole of standard input, and a chart's archive before it is unpacked.
const maxFile = 64 << 20

// Entry is one image.
type Entry struct {
	// Ref is the reference as it was written. Where a manifest's image would be mistaken for a file
	// (an image named oci or dir), it has docker:// in front.
	Ref string
	// From is where it was first seen, for people: the file, the line, and in a manifest the object and
	// the field, as in "a.yaml:12: Deployment kube-system/coredns: spec.template.spec.containers[0].image".
	From string
}

// Options are for charts alone; the zero value renders as "helm template" does without flags.
type Options struct {
	Values      []string // files of values, later ones first (--values)
	Set         []string // key=value, stronger than Values (--set)
	KubeVersion string   // the cluster's version (--kube-version); default: that of the Helm library
	APIVersions []string // group/version or group/version/Kind that the cluster has besides Kubernetes' own (--api-versions)
	Namespace   string   // default: default
	ReleaseName string   // default: release-name
}

// Read gives the images that the named files and folders hold, in the order of their appearance, each
// once. The name - is stdin, which is read to its end. Every input must hold at least one image
// (ErrNoImages), and every reference must be one by the grammar of Docker references; in plain lists the
// forms oci:, oci-archive:, docker-archive:, dir:, containers-storage: and docker:// are taken too.
//
// A file has at most 64 MiB, a chart 256 MiB when all archives in it are unpacked, a document about two
// million fields and 256 levels (ErrTooLarge). A chart's templates are programs: only ctx ends one that
// does not end by itself.
func Read(ctx context.Context, names []string, stdin io.Reader, o Options) ([]Entry, error) {
	r := &reader{o: o, stdin: stdin, seen: map[string]bool{}}
	for _, name := range names {
		before := r.found
		if err := r.read(ctx, name); err != nil {
			return nil, err
		}
		if r.found == before {
			return nil, fmt.Errorf("%s %w", display(name), ErrNoImages)
		}
	}
	if o.forCharts() && !r.charts {
		return nil, errors.New("values and versions are for charts, and none of the inputs is one")
	}
	return r.entries, nil
}

func (o *Options) forCharts() bool {
	return len(o.Values)+len(o.Set)+len(o.APIVersions) > 0 || o.KubeVersion+o.Namespace+o.ReleaseName != ""
}

type reader struct {
	o       Options
	stdin   io.Reader
	entries []Entry
	seen    map[string]bool
	found   int // references met, repeated ones too
	charts  bool
}

func (r *reader) add(ref, from string) {
	r.found++
	if !r.seen[ref] {
		r.seen[ref] = true
		r.entries = append(r.entries, Entry{ref, from})
	}
}

func (r *reader) read(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if name != "-" {
		fi, err := os.Stat(name)
		if err != nil {
			return err
		}
		if fi.IsDir() {
			return r.folder(ctx, name)
		}
	}
	data, err := r.load(name)
	if err != nil {
		return err
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		return r.archive(ctx, display(name), data)
	}
	return r.text(ctx, display(name), data)
}

func (r *reader) load(name string) ([]byte, error) {
	in := r.stdin
	if name == "-" {
		if in == nil {
			return nil, errors.New("standard input is given twice, or there is none")
		}
		r.stdin = nil
	} else {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", display(name), err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: %w: more than %d MiB", display(name), ErrTooLarge, maxFile>>20)
	}
	return data, nil
}

func display(name string) string {
	if name == "-" {
		return "stdin"
	}
	return name
}

func (r *reader) folder(ctx context.Context, dir string) error {
	if is, err := holds(dir, "Chart.yaml"); err != nil {
		return err
	} else if is {
		return r.chartFolder(ctx, dir)
	}
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if is, err := holds(name, "Chart.yaml"); err != nil {
				return err
			} else if is {
				return fmt.Errorf("%s is a chart inside of a folder of manifests: name it by itself", name)
			}
			if is, err := holds(name, "kustomization.yaml", "kustomization.yml", "Kustomization"); err != nil {
				return err
			} else if is {
				return kustomization(name, name)
			}
			return nil
		}
		switch filepath.Ext(name) {
		case ".yaml", ".yml", ".json":
		default:
			return nil
		}
		// A mounted ConfigMap shows its files as symlinks.
		if fi, err := os.Stat(name); err != nil {
			return err
		} else if !fi.Mode().IsRegular() {
			return nil
		}
		data, err := r.load(name)
		if err != nil {
			return err
		}
		return r.text(ctx, name, data)
	})
}

func kustomization(name, dir string) error {
	return fmt.Errorf("%s is a kustomization: give what is built from it (kustomize build %s | nodebake images-in -)", name, dir)
}

func holds(dir string, names ...string) (bool, error) {
	for _, n := range names {
		_, err := os.Stat(filepath.Join(dir, n))
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

var (
	yamlKey    = regexp.MustCompile(`^("[^"]*"|'[^']*'|[^\s:"'#]+)\s*:(\s|$)`)
	tomlKey    = regexp.MustCompile(`^[A-Za-z0-9_."'-]+\s*=`)
	tomlHeader = regexp.MustCompile(`^\[{1,2}[^\[\],{}]+\]{1,2}\s*(#.*)?$`)
)

// text reads a list, manifests or a configuration: the first line that is neither empty nor a comment
// tells which.
func (r *reader) text(ctx context.Context, name string, data []byte) error {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return fmt.Errorf("%s is not UTF-8 text", name)
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
			continue
		case line[0] == '[' && !json.Valid(data) && tomlHeader.MatchString(line), tomlKey.MatchString(line):
			return r.toml(name, data)
		case line[0] == '{', line[0] == '[', line[0] == '%', line == "-", strings.HasPrefix(line, "- "),
			strings.HasPrefix(line, "---"), yamlKey.MatchString(line):
			return r.manifests(ctx, name, data)
		}
		break
	}
	return r.list(name, string(data))
}

// list reads references, one a line.
func (r *reader) list(name, text string) error {
	n := 0
	for line := range strings.Lines(text) {
		n++
		for i := 0; i < len(line); i++ {
			if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
				line = line[:i]
			}
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if strings.ContainsFunc(line, unicode.IsSpace) {
			return fmt.Errorf("%s:%d: %q is not one reference", name, n, clip(line))
		}
		if err := checkListed(line); err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		r.add(line, fmt.Sprintf("%s:%d", name, n))
	}
	return nil
}

// transports are the prefixes by which nodebake takes images that are not in a registry.
var transports = []string{"oci", "oci-archive", "docker-archive", "dir", "containers-storage"}

// schemes are all the names of transports that an image reference without docker:// may not begin with.
var schemes = append([]string{"docker-daemon", "atomic", "ostree", "sif", "tarball", "openshift"}, transports...)

// checkListed checks a reference of a plain list, where transports are told by their prefix.
func checkListed(ref string) error {
	if name, ok := strings.CutPrefix(ref, "docker://"); ok {
		return check(name)
	}
	for _, t := range transports {
		if rest, ok := strings.CutPrefix(ref, t+":"); ok {
			if rest == "" {
				return fmt.Errorf("%q names nothing", ref)
			}
			return nil
		}
	}
	return check(ref)
}

// check checks a reference by the grammar of Docker references, which kubelet and the engines share.
func check(ref string) error {
	if strings.Contains(ref, "{{") {
		return fmt.Errorf("%q: %w", clip(ref), ErrTemplate)
	}
	if _, err := reference.ParseNormalizedNamed(ref); err != nil {
		return fmt.Errorf("%q: %w", clip(ref), err)
	}
	return nil
}

// unambiguous gives a reference of a manifest, where there are no transports, in the form of a list's.
func unambiguous(ref string) string {
	for _, s := range schemes {
		if strings.HasPrefix(ref, s+":") {
			return "docker://" + ref
		}
	}
	return ref
}

// clip keeps messages short.
func clip(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
