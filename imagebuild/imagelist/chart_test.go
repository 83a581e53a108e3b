package imagelist

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	chartutil "helm.sh/helm/v4/pkg/chart/v2/util"
)

type files map[string]string

func (f files) write(t *testing.T, dir string) string {
	t.Helper()
	for name, text := range f {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (f files) tgz(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := fastest(t, &b)
	tw := tar.NewWriter(gz)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(f[name]))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, f[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func fastest(t *testing.T, w io.Writer) *gzip.Writer {
	t.Helper()
	gz, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	return gz
}

func deployment(name, image string) string {
	return "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: " + name + "\n  namespace: {{ .Release.Namespace }}\n" +
		"spec:\n  template:\n    spec:\n      containers:\n      - name: c\n        image: " + image + "\n"
}

// umbrella is a chart with what charts have: charts of its own under a condition and under another name,
// hooks, CRDs, partials, notes, and objects that depend on the cluster.
var umbrella = files{
	"Chart.yaml": `apiVersion: v2
name: umbrella
version: 1.0.0
kubeVersion: ">=1.25.0-0"
dependencies:
- {name: db, version: 1.x, repository: "https://charts.invalid", condition: db.enabled}
- {name: db, version: 1.x, repository: "https://charts.invalid", alias: cache}
`,
	"values.yaml": `image: {repository: registry.example.com/app, tag: "1"}
global: {registry: registry.example.com}
db: {enabled: false}
cache: {tag: cache}
`,
	"templates/_helpers.tpl":       `{{- define "image" }}{{ .Values.image.repository }}:{{ .Values.image.tag }}{{ end }}`,
	"templates/NOTES.txt":          "image: not/taken:notes\n",
	"templates/app.yaml":           deployment("{{ .Release.Name }}", `{{ include "image" . | quote }}`),
	"templates/empty.yaml":         "{{- if .Values.nothing }}\nkind: Pod\n{{- end }}\n",
	"templates/hook.yaml":          "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: migrate\n  annotations: {helm.sh/hook: pre-install}\nspec: {template: {spec: {containers: [{name: m, image: migrate:1}]}}}\n",
	"templates/tests/test.yaml":    "apiVersion: v1\nkind: Pod\nmetadata:\n  name: t\n  annotations: {helm.sh/hook: test}\nspec: {containers: [{name: m, image: test:1}]}\n",
	"templates/kube.yaml":          deployment("kube", "kube:{{ .Capabilities.KubeVersion.Minor }}"),
	"templates/api.yaml":           `{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" }}` + "\n# extra-image: {{ .Values.global.registry }}/monitor:1\nkind: ServiceMonitor\n{{- end }}\n",
	"templates/offline.yaml":       deployment("offline", `offline:{{ len (lookup "v1" "Node" "" "") }}{{ getHostByName "example.com" }}`),
	"crds/crd.yaml":                "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a.b}\n# extra-image: crd:1\nspec: {}\n",
	"charts/db/Chart.yaml":         "apiVersion: v2\nname: db\nversion: 1.2.3\n",
	"charts/db/values.yaml":        "tag: db\n",
	"charts/db/templates/set.yaml": deployment("db", "{{ .Values.global.registry }}/db:{{ .Values.tag }}"),
}

func TestChart(t *testing.T) {
	t.Chdir(t.TempDir())
	umbrella.write(t, "u")
	files{"a.yaml": "image: {tag: '2'}\nglobal: {registry: r.example.com}\n", "b.yaml": "image: {tag: '3'}\n"}.write(t, ".")
	c, err := loader.LoadDir("u")
	if err != nil {
		t.Fatal(err)
	}
	tgz, err := chartutil.Save(c, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    Options
		want []string
	}{
		{"defaults", Options{KubeVersion: "1.33.4-gke.1"}, []string{
			"crd:1 < umbrella/crds/crd.yaml:4: extra-image",
			"registry.example.com/db:cache < umbrella/charts/cache/templates/set.yaml:11: Deployment default/db: spec.template.spec.containers[0].image",
			"registry.example.com/app:1 < umbrella/templates/app.yaml:11: Deployment default/release-name: spec.template.spec.containers[0].image",
			"migrate:1 < umbrella/templates/hook.yaml:6: Job migrate: spec.template.spec.containers[0].image",
			"kube:33 < umbrella/templates/kube.yaml:11: Deployment default/kube: spec.template.spec.containers[0].image",
			"offline:0 < umbrella/templates/offline.yaml:11: Deployment default/offline: spec.template.spec.containers[0].image",
			"test:1 < umbrella/templates/tests/test.yaml:6: Pod t: spec.containers[0].image",
		}},
		{"all options", Options{
			Values: []string{"a.yaml", "b.yaml"}, Set: []string{"db.enabled=true,db.tag=set"}, KubeVersion: "v1.34",
			APIVersions: []string{"monitoring.coreos.com/v1"}, Namespace: "ns", ReleaseName: "rel",
		}, []string{
			"crd:1 < umbrella/crds/crd.yaml:4: extra-image",
			"r.example.com/db:cache < umbrella/charts/cache/templates/set.yaml:11: Deployment ns/db: spec.template.spec.containers[0].image",
			"r.example.com/db:set < umbrella/charts/db/templates/set.yaml:11: Deployment ns/db: spec.template.spec.containers[0].image",
			"r.example.com/monitor:1 < umbrella/templates/api.yaml:2: extra-image",
			"registry.example.com/app:3 < umbrella/templates/app.yaml:11: Deployment ns/rel: spec.template.spec.containers[0].image",
			"migrate:1 < umbrella/templates/hook.yaml:6: Job migrate: spec.template.spec.containers[0].image",
			"kube:34 < umbrella/templates/kube.yaml:11: Deployment ns/kube: spec.template.spec.containers[0].image",
			"offline:0 < umbrella/templates/offline.yaml:11: Deployment ns/offline: spec.template.spec.containers[0].image",
			"test:1 < umbrella/templates/tests/test.yaml:6: Pod t: spec.containers[0].image",
		}},
	} {
		for _, source := range []string{"u", tgz} {
			t.Run(c.name+" "+source, func(t *testing.T) {
				got, err := readNames(t, []string{source}, "", c.o)
				if err != nil {
					t.Fatal(err)
				}
				for i := range got {
					got[i] = strings.Replace(got[i], "< "+source+": ", "< ", 1)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Error(d)
				}
			})
		}
	}
	t.Run("standard input", func(t *testing.T) {
		data, err := os.ReadFile(tgz)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readNames(t, []string{"-"}, string(data), Options{KubeVersion: "1.34"})
		if err != nil || len(got) != 7 || got[0] != "crd:1 < stdin: umbrella/crds/crd.yaml:4: extra-image" {
			t.Error(got, err)
		}
	})
}

// What "helm create" makes is what most charts began as.
func TestCreatedChart(t *testing.T) {
	dir := t.TempDir()
	created, err := chartutil.Create("shop", dir)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := Read(t.Context(), []string{created}, nil, Options{Set: []string{"image.tag=2.0,autoscaling.enabled=true,ingress.enabled=true"}})
	if err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, e := range entries {
		refs = append(refs, e.Ref)
	}
	if d := cmp.Diff([]string{"nginx:2.0", "busybox"}, refs); d != "" {
		t.Error(d)
	}
}

func TestChartErrors(t *testing.T) {
	chartOf := func(more files) files {
		f := files{"Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\n", "templates/p.yaml": deployment("p", "a:{{ .Values.tag }}"), "values.yaml": "tag: '1'\n"}
		maps.Copy(f, more)
		return f
	}
	for _, c := range []struct {
		name  string
		files files
		o     Options
		want  string
		is    error
	}{
		{"dependencies", chartOf(files{"Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\ndependencies: [{name: x, version: 1, repository: 'https://x'}, {name: z, version: 1}]\n"}), Options{},
			"c: dependencies are missing: x, z (helm dependency build c)", ErrDependencies},
		{"cluster's version", chartOf(files{"Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\nkubeVersion: '>=1.40'\n"}), Options{KubeVersion: "1.30"}, "the chart asks for Kubernetes >=1.40, and the version here is v1.30", nil},
		{"no version", chartOf(nil), Options{KubeVersion: "new"}, `cluster version "new"`, nil},
		{"release name", chartOf(nil), Options{ReleaseName: "A B"}, "release name", nil},
		{"library", chartOf(files{"Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\ntype: library\n"}), Options{}, "a library chart makes no objects", nil},
		{"broken Chart.yaml", chartOf(files{"Chart.yaml": "a: [\n"}), Options{}, "c: cannot load Chart.yaml", nil},
		{"no values file", chartOf(nil), Options{Values: []string{"none.yaml"}}, "none.yaml: no such file", nil},
		{"values that are none", chartOf(files{"bad.yaml": "- a\n"}), Options{Values: []string{"c/bad.yaml"}}, "values of c/bad.yaml", nil},
		{"set", chartOf(nil), Options{Set: []string{"a"}}, `value "a"`, nil},
		{"template", chartOf(files{"templates/x.yaml": "{{ .Values.tag"}), Options{}, "c/templates/x.yaml:1", nil},
		{"required", chartOf(files{"templates/x.yaml": "\n{{ required \"tag is needed\" .Values.none }}"}), Options{}, "tag is needed", nil},
		{"environment", chartOf(files{"templates/x.yaml": "{{ env \"HOME\" }}"}), Options{}, `"env" not defined`, nil},
		{"endless recursion", chartOf(files{"templates/x.yaml": `{{ define "x" }}{{ include "x" . }}{{ end }}{{ include "x" . }}`}), Options{}, "nested reference name: x", nil},
		{"no YAML", chartOf(files{"templates/x.yaml": "kind: A\nb: c: d\n"}), Options{}, "c: c/templates/x.yaml:2: document 1: mapping values", nil},
		{"empty tag", chartOf(nil), Options{Set: []string{"tag="}}, "c: c/templates/p.yaml:11: document 1: mapping values", nil},
		{"schema", chartOf(files{"values.schema.json": `{"$schema":"http://json-schema.org/draft-07/schema#","properties":{"tag":{"$ref":"#/definitions/t"}},"definitions":{"t":{"type":"integer"}}}`}), Options{}, "values don't meet the specifications", nil},
		{"no image", chartOf(files{"templates/p.yaml": "kind: Service\n"}), Options{}, "c holds no reference", ErrNoImages},
		{"kustomization inside", chartOf(files{"templates/k.yaml": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"}), Options{}, "kustomize build", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			c.files.write(t, "c")
			got, err := readNames(t, []string{"c"}, "", c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("got %q, error %v; want %q", got, err, c.want)
			}
		})
	}
}

// A schema may refer to a document elsewhere; nothing may be fetched.
func TestChartFetchesNothing(t *testing.T) {
	asked := make(chan string, 10)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		asked <- req.URL.Path
		io.WriteString(w, "{}")
	}))
	defer server.Close()
	for name, schema := range map[string]string{
		"ref":            `{"properties":{"tag":{"$ref":"` + server.URL + `/a.json"}}}`,
		"meta-schema":    `{"$schema":"` + server.URL + `/b.json"}`,
		"relative to id": `{"$id":"` + server.URL + `/","properties":{"tag":{"$ref":"c.json"}}}`,
		"in a list":      `{"allOf":[{"$dynamicRef":"` + server.URL + `/d.json"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := files{
				"Chart.yaml":                     "apiVersion: v2\nname: c\nversion: 1.0.0\n",
				"charts/s/Chart.yaml":            "apiVersion: v2\nname: s\nversion: 1.0.0\n",
				"charts/s/values.schema.json":    schema,
				"charts/s/values.yaml":           "tag: '1'\n",
				"charts/s/templates/deploy.yaml": deployment("p", "a:b{{ .Values.tag }}"),
			}.write(t, t.TempDir())
			got, err := Read(t.Context(), []string{dir}, nil, Options{})
			if err != nil || len(got) != 1 || got[0].Ref != "a:b1" {
				t.Error(got, err)
			}
			select {
			case p := <-asked:
				t.Errorf("%s was fetched", p)
			default:
			}
		})
	}
}

func TestChartBombs(t *testing.T) {
	base := files{"c/Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\n", "c/templates/p.yaml": deployment("p", "a:b")}
	with := func(more files) []byte {
		f := maps.Clone(base)
		maps.Copy(f, more)
		return f.tgz(t)
	}
	var empty bytes.Buffer
	gz := fastest(t, &empty)
	header := make([]byte, 1<<20)
	// One header's bytes many times over: entries of no size.
	var one bytes.Buffer
	if err := tar.NewWriter(&one).WriteHeader(&tar.Header{Name: "c/x"}); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 512 {
		copy(header[i:], one.Bytes()[:512])
	}
	for range maxUnpacked>>20 + 1 {
		if _, err := gz.Write(header); err != nil {
			t.Fatal(err)
		}
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	zeros := strings.Repeat("\x00", 90<<20)
	sub := string(files{"s/Chart.yaml": "apiVersion: v2\nname: s\nversion: 1.0.0\n", "s/zeros": zeros}.tgz(t))
	nest := base.tgz(t)
	for range 20 {
		nest = with(files{"c/charts/c.tgz": string(nest)})
	}
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"one file", with(files{"c/zeros": zeros + zeros}), "larger than the maximum size"},
		{"empty entries", empty.Bytes(), "unpacks to more than 256 MiB"},
		{"charts in a chart", with(files{"c/charts/a.tgz": sub, "c/charts/b.tgz": sub, "c/charts/c.tgz": sub}), "unpacks to more than 256 MiB"},
		{"charts in charts", nest, "more than 16 deep"},
		{"parent", with(files{"c/../../x": ""}), "references parent directory"},
		{"cut", base.tgz(t)[:100], "unexpected EOF"},
		{"no chart", files{"a/b": ""}.tgz(t), "Chart.yaml file is missing"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readNames(t, []string{"-"}, string(c.data), Options{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q, error %v; want %q", got, err, c.want)
			}
		})
	}
	t.Run("folder", func(t *testing.T) {
		dir := files{"Chart.yaml": base["c/Chart.yaml"], "charts/a.tgz": sub, "charts/b.tgz": sub, "charts/c.tgz": sub}.write(t, t.TempDir())
		if _, err := Read(t.Context(), []string{dir}, nil, Options{}); !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}

func TestChartCancelled(t *testing.T) {
	dir := files{
		"Chart.yaml": "apiVersion: v2\nname: c\nversion: 1.0.0\n",
		// Long, and not for ever: nothing can stop it but its end.
		"templates/p.yaml": "{{ range 20000000 }}{{ end }}",
	}.write(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	r := &reader{seen: map[string]bool{}}
	c, err := loader.LoadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := r.chart(ctx, "c", c); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
