package imagelist

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
	"helm.sh/helm/v4/pkg/engine"
	"helm.sh/helm/v4/pkg/strvals"
)

// ErrDependencies says that a chart lacks charts that it depends on.
var ErrDependencies = errors.New("dependencies are missing")

// maxUnpacked bounds what a chart's archives hold together. Helm bounds each one, but neither how many
// there are in each other nor their empty entries.
const maxUnpacked = 256 << 20

func (r *reader) chartFolder(ctx context.Context, dir string) error {
	left := int64(maxUnpacked)
	subcharts, err := filepath.Glob(filepath.Join(globQuote(dir), "charts", "*.tgz"))
	if err != nil {
		return err
	}
	for _, name := range subcharts {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = measure(f, &left, 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	c, err := loader.LoadDir(dir)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return r.chart(ctx, dir, c)
}

func globQuote(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func (r *reader) archive(ctx context.Context, name string, data []byte) error {
	left := int64(maxUnpacked)
	if err := measure(bytes.NewReader(data), &left, 0); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	c, err := loader.LoadArchive(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return r.chart(ctx, name, c)
}

// measure unpacks an archive, and the archives in it, to nowhere.
func measure(in io.Reader, left *int64, depth int) error {
	if depth > 16 {
		return fmt.Errorf("%w: charts in charts more than 16 deep", ErrTooLarge)
	}
	gz, err := gzip.NewReader(in)
	if err != nil {
		// A file of this name that is none is for Helm to judge.
		return nil
	}
	counted := &countdown{gz, left}
	tr := tar.NewReader(counted)
	for {
		h, err := tr.Next()
		if errors.Is(err, ErrTooLarge) {
			return err
		}
		if err != nil {
			return nil
		}
		if !strings.HasSuffix(h.Name, ".tgz") {
			continue
		}
		if err := measure(tr, left, depth+1); err != nil {
			return err
		}
	}
}

type countdown struct {
	in   io.Reader
	left *int64
}

func (c *countdown) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	if *c.left -= int64(n); *c.left < 0 {
		return 0, fmt.Errorf("%w: it unpacks to more than %d MiB", ErrTooLarge, maxUnpacked>>20)
	}
	return n, err
}

// chart renders a chart as "helm template --include-crds" does without a cluster, and reads the result.
func (r *reader) chart(ctx context.Context, name string, c *chart.Chart) error {
	r.charts = true
	files, err := r.render(ctx, name, c)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	crds := c.CRDObjects()
	slices.SortFunc(crds, func(a, b chart.CRD) int { return strings.Compare(a.Filename, b.Filename) })
	for _, crd := range crds {
		if err := r.manifests(ctx, name+": "+crd.Filename, crd.File.Data); err != nil {
			return err
		}
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if strings.HasSuffix(file, "NOTES.txt") {
			continue
		}
		if err := r.manifests(ctx, name+": "+file, []byte(files[file])); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) render(ctx context.Context, name string, c *chart.Chart) (map[string]string, error) {
	if c.Metadata.Type == "library" {
		return nil, errors.New("a library chart makes no objects: name a chart that uses it")
	}
	if missing := missing(c); missing != nil {
		return nil, fmt.Errorf("%w: %s (helm dependency build %s)", ErrDependencies, strings.Join(missing, ", "), name)
	}
	values, err := r.values()
	if err != nil {
		return nil, err
	}
	caps := common.DefaultCapabilities.Copy()
	caps.APIVersions = append(slices.Clone(caps.APIVersions), r.o.APIVersions...)
	if v := r.o.KubeVersion; v != "" {
		kube, err := common.ParseKubeVersion(v)
		if err != nil {
			return nil, fmt.Errorf("cluster version %q: %w", v, err)
		}
		caps.KubeVersion = *kube
	}
	if want := c.Metadata.KubeVersion; want != "" && !chartutil.IsCompatibleRange(want, caps.KubeVersion.String()) {
		return nil, fmt.Errorf("the chart asks for Kubernetes %s, and the version here is %s: give the cluster's", want, caps.KubeVersion.Version)
	}
	release := common.ReleaseOptions{Name: r.o.ReleaseName, Namespace: r.o.Namespace, Revision: 1, IsInstall: true}
	if release.Name == "" {
		release.Name = "release-name"
	}
	if err := chartutil.ValidateReleaseName(release.Name); err != nil {
		return nil, err
	}
	if release.Namespace == "" {
		release.Namespace = "default"
	}
	if err := chartutil.ProcessDependencies(c, values); err != nil {
		return nil, err
	}
	top, err := commonutil.ToRenderValuesWithSchemaValidation(c, values, release, caps, !selfContained(c))
	if err != nil {
		return nil, err
	}
	type result struct {
		files map[string]string
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var e engine.Engine
		files, err := e.RenderWithContext(ctx, c, top)
		done <- result{files, err}
	}()
	select {
	case res := <-done:
		return res.files, res.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// missing names the dependencies that are not in charts/.
func missing(c *chart.Chart) []string {
	have := map[string]bool{}
	for _, d := range c.Dependencies() {
		have[d.Name()] = true
	}
	var names []string
	for _, d := range c.Metadata.Dependencies {
		if !have[d.Name] {
			names = append(names, d.Name)
		}
	}
	return names
}

func (r *reader) values() (map[string]any, error) {
	values := map[string]any{}
	for _, name := range r.o.Values {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if len(data) > maxFile {
			return nil, fmt.Errorf("%s: %w: more than %d MiB", name, ErrTooLarge, maxFile>>20)
		}
		v, err := loader.LoadValues(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("values of %s: %w", name, err)
		}
		values = loader.MergeMaps(values, v)
	}
	for _, s := range r.o.Set {
		if err := strvals.ParseInto(s, values); err != nil {
			return nil, fmt.Errorf("value %q: %w", s, err)
		}
	}
	return values, nil
}

// selfContained says whether the schemas of a chart's values refer to no other document. Helm would fetch
// those; the values of such a chart go unchecked instead.
func selfContained(c *chart.Chart) bool {
	if len(c.Schema) > 0 {
		var schema any
		if err := json.Unmarshal(c.Schema, &schema); err == nil && refersElsewhere(schema) {
			return false
		}
	}
	for _, d := range c.Dependencies() {
		if !selfContained(d) {
			return false
		}
	}
	return true
}

// drafts are the meta-schemas that are built into Helm's validator.
var drafts = []string{"draft-04/schema", "draft-06/schema", "draft-07/schema", "draft/2019-09/schema", "draft/2020-12/schema"}

func refersElsewhere(schema any) bool {
	switch s := schema.(type) {
	case []any:
		return slices.ContainsFunc(s, refersElsewhere)
	case map[string]any:
		for k, v := range s {
			ref, isString := v.(string)
			switch {
			case !isString:
				if refersElsewhere(v) {
					return true
				}
			case k == "$ref", k == "$dynamicRef", k == "$recursiveRef":
				if !strings.HasPrefix(ref, "#") {
					return true
				}
			case k == "$schema":
				_, rest, _ := strings.Cut(strings.TrimRight(ref, "#"), "://json-schema.org/")
				if !slices.Contains(drafts, rest) {
					return true
				}
			}
		}
	}
	return false
}
