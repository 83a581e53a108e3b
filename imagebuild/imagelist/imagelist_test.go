package imagelist

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// read reads text as standard input and gives "REF < FROM".
func read(t *testing.T, text string) ([]string, error) {
	t.Helper()
	return readNames(t, []string{"-"}, text, Options{})
}

func readNames(t *testing.T, names []string, text string, o Options) ([]string, error) {
	t.Helper()
	entries, err := Read(t.Context(), names, strings.NewReader(text), o)
	var out []string
	for _, e := range entries {
		out = append(out, e.Ref+" < "+e.From)
	}
	return out, err
}

func TestFiles(t *testing.T) {
	for _, c := range []struct {
		file string
		want []string
	}{
		{"kubeadm.txt", []string{
			"registry.k8s.io/kube-apiserver:v1.34.1 < testdata/kubeadm.txt:1",
			"registry.k8s.io/kube-controller-manager:v1.34.1 < testdata/kubeadm.txt:2",
			"registry.k8s.io/kube-scheduler:v1.34.1 < testdata/kubeadm.txt:3",
			"registry.k8s.io/kube-proxy:v1.34.1 < testdata/kubeadm.txt:4",
			"registry.k8s.io/coredns/coredns:v1.12.1 < testdata/kubeadm.txt:5",
			"registry.k8s.io/pause:3.10.1 < testdata/kubeadm.txt:6",
			"registry.k8s.io/etcd:3.6.4-0 < testdata/kubeadm.txt:7",
		}},
		{"kubeadm.json", []string{
			"registry.k8s.io/kube-apiserver:v1.34.1 < testdata/kubeadm.json:5: images[0]",
			"registry.k8s.io/pause:3.10.1 < testdata/kubeadm.json:6: images[1]",
		}},
		{"kubeadm.yaml", []string{
			"registry.k8s.io/kube-apiserver:v1.34.1 < testdata/kubeadm.yaml:3: images[0]",
			"registry.k8s.io/pause:3.10.1 < testdata/kubeadm.yaml:4: images[1]",
		}},
		{"ocne.txt", []string{
			"container-registry.oracle.com/olcne/ui:v2.0.0 < testdata/ocne.txt:1",
			"container-registry.oracle.com/olcne/flannel:v0.22.3-1 < testdata/ocne.txt:2",
			"container-registry.oracle.com/olcne/prometheus:v2.31.1 < testdata/ocne.txt:3",
		}},
		{"flannel.yaml", []string{
			"ghcr.io/flannel-io/flannel-cni-plugin:v1.7.1-flannel1 < testdata/flannel.yaml:40: DaemonSet kube-flannel/kube-flannel-ds: spec.template.spec.initContainers[0].image",
			"ghcr.io/flannel-io/flannel:v0.27.0 < testdata/flannel.yaml:43: DaemonSet kube-flannel/kube-flannel-ds: spec.template.spec.initContainers[1].image",
		}},
		{"workloads.yaml", []string{
			"docker.io/library/nginx:1.29@sha256:" + strings.Repeat("a", 64) + " < testdata/workloads.yaml:10: Pod apps/vol: spec.containers[0].image",
			"busybox:1.37 < testdata/workloads.yaml:12: Pod apps/vol: spec.ephemeralContainers[0].image",
			"quay.io/models/llm:7b < testdata/workloads.yaml:15: Pod apps/vol: spec.volumes[0].image.reference",
			"example.com:5000/backup:2 < testdata/workloads.yaml:34: CronJob backup: spec.jobTemplate.spec.template.spec.containers[0].image",
			"deploy:1 < testdata/workloads.yaml:44: Deployment d: items[0].spec.template.spec.containers[0].image",
			"stateful:1 < testdata/workloads.yaml:48: StatefulSet s: items[1].spec.template.spec.containers[0].image",
			"replica:1 < testdata/workloads.yaml:57: ReplicaSet r: items[0].spec.template.spec.containers[0].image",
			"podtemplate:1 < testdata/workloads.yaml:62: PodTemplate t-: template.spec.containers[0].image",
			"rc:1 < testdata/workloads.yaml:67: ReplicationController rc: spec.template.spec.containers[0].image",
			"job:1 < testdata/workloads.yaml:72: Job j: spec.template.spec.containers[0].image",
			"operand:1 < testdata/workloads.yaml:84: Database db: spec.podTemplate.spec.containers[0].image",
			"olcne/helper:v1.0 < testdata/workloads.yaml:103: extra-image",
			"merged:1 < testdata/workloads.yaml:110: Pod m: spec.containers[0].image",
			"own:1 < testdata/workloads.yaml:116: Pod m: spec.containers[1].image",
		}},
		{"csv.yaml", []string{
			"quay.io/db/proxy@sha256:" + strings.Repeat("b", 64) + " < testdata/csv.yaml:11: ClusterServiceVersion operators/db-operator.v1.2.3: spec.relatedImages[0].image",
			"quay.io/db/operator:v1.2.3 < testdata/csv.yaml:22: ClusterServiceVersion operators/db-operator.v1.2.3: spec.install.spec.deployments[0].spec.template.spec.containers[0].image",
			"quay.io/db/db:17 < testdata/csv.yaml:26: ClusterServiceVersion operators/db-operator.v1.2.3: spec.install.spec.deployments[0].spec.template.spec.containers[0].env RELATED_IMAGE_DB",
		}},
		{"kubelet.yaml", []string{
			"registry.k8s.io/pause:3.8 < testdata/kubelet.yaml:3: KubeletConfiguration: podInfraContainerImage",
			"registry.k8s.io/pause:3.9 < testdata/kubelet.yaml:9: InitConfiguration: nodeRegistration.kubeletExtraArgs.pod-infra-container-image",
			"registry.k8s.io/pause:3.10 < testdata/kubelet.yaml:16: JoinConfiguration: nodeRegistration.kubeletExtraArgs[0].value",
		}},
		{"crio.conf", []string{"container-registry.oracle.com/olcne/pause:3.10 < testdata/crio.conf: crio.image.pause_image"}},
		{"containerd2.toml", []string{"registry.k8s.io/pause:3.9 < testdata/containerd2.toml: plugins.io.containerd.grpc.v1.cri.sandbox_image"}},
		{"containerd3.toml", []string{"registry.k8s.io/pause:3.10 < testdata/containerd3.toml: plugins.io.containerd.cri.v1.images.pinned_images.sandbox"}},
	} {
		t.Run(c.file, func(t *testing.T) {
			got, err := readNames(t, []string{filepath.Join("testdata", c.file)}, "", Options{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n"

func TestText(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
		err      string // what the error says
		is       error
	}{
		{name: "list", in: "a:1\nb:2\n", want: []string{"a:1 < stdin:1", "b:2 < stdin:2"}},
		{name: "BOM, CRLF, comments", in: "\ufeffa\r\n# comment\r\n\r\n  b # why\r\n\tdir:/x#y # z\r\n", want: []string{"a < stdin:1", "b < stdin:4", "dir:/x#y < stdin:5"}},
		{name: "no end of line", in: "a", want: []string{"a < stdin:1"}},
		{name: "each once", in: "a\nb\na\n", want: []string{"a < stdin:1", "b < stdin:2"}},
		{name: "transports", in: "oci:d:n\noci-archive:f\ndocker-archive:f\ndir:d\ncontainers-storage:n\ndocker://n:1\n",
			want: []string{"oci:d:n < stdin:1", "oci-archive:f < stdin:2", "docker-archive:f < stdin:3", "dir:d < stdin:4", "containers-storage:n < stdin:5", "docker://n:1 < stdin:6"}},
		{name: "transport of nothing", in: "a\noci:\n", err: `stdin:2: "oci:" names nothing`},
		{name: "two on a line", in: "a\nb c\n", err: `stdin:2: "b c" is not one reference`},
		{name: "no reference", in: "Upper/Case:1\n", err: `stdin:1: "Upper/Case:1": invalid reference format`},
		{name: "bad after docker://", in: "docker://a:b:c\n", err: "stdin:1"},
		{name: "template in a list", in: "a\n{{.b}}\n", err: "stdin:2", is: ErrTemplate},
		{name: "empty", in: "", err: "stdin holds no reference", is: ErrNoImages},
		{name: "only comments", in: "# nothing\n", err: "stdin holds no reference", is: ErrNoImages},
		{name: "binary", in: "a\x00b", err: "stdin is not UTF-8 text"},
		{name: "UTF-16", in: "\xff\xfea\x00", err: "stdin is not UTF-8 text"},

		{name: "JSON list", in: `["a:1", "b:2"]`, want: []string{"a:1 < stdin:1: [0]", "b:2 < stdin:1: [1]"}},
		{name: "JSON list of one", in: `["a"]`, want: []string{"a < stdin:1: [0]"}},
		{name: "YAML list", in: "- a:1\n- dir:/b\n", want: []string{"a:1 < stdin:1: [0]", "dir:/b < stdin:2: [1]"}},
		{name: "images alone", in: "images: [a, b]", want: []string{"a < stdin:1: images[0]", "b < stdin:1: images[1]"}},
		{name: "list of no strings", in: "- 1\n", err: "stdin:1: document 1: [0] is not a reference"},
		{name: "JSON with tabs", in: "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"spec\": {\"containers\": [\n\t\t{\"image\": \"a\"}]}}\n{\"kind\":\"Pod\",\"spec\":{\"containers\":[{\"image\":\"b\"}]}}",
			want: []string{"a < stdin:5: Pod: spec.containers[0].image", "b < stdin:6: Pod: spec.containers[0].image"}},
		{name: "JSON array of objects", in: `[{"kind":"Pod","spec":{"containers":[{"image":"b"}]}}]`, want: []string{"b < stdin:1: Pod: spec.containers[0].image"}},
		{name: "broken JSON", in: "{\"kind\":\n\"Pod\",,}", err: "stdin: line 2: "},
		{name: "cut JSON", in: "{\"kind\":\n\"Pod\",", err: "line 2: unexpected EOF"},
		{name: "YAML in flow style", in: "{kind: Pod, spec: {containers: [{image: a}]}}", want: []string{"a < stdin:1: Pod: spec.containers[0].image"}},
		{name: "CRLF manifest", in: strings.ReplaceAll(pod+"  - image: a\n---\nkind: Pod\nspec: {containers: [{image: b}]}\n", "\n", "\r\n"),
			want: []string{"a < stdin:6: Pod p: spec.containers[0].image", "b < stdin:9: Pod: spec.containers[0].image"}},
		{name: "dashes inside of a string", in: "apiVersion: v1\nkind: ConfigMap\ndata:\n  a: |\n    ---\n    b\n---\n" + pod + "  - image: a\n", want: []string{"a < stdin:13: Pod p: spec.containers[0].image"}},
		{name: "images named like transports", in: pod + "  - image: oci:1\n  - image: dir:2\n  - image: ostree:3\n  - image: docker:4\n", want: []string{
			"docker://oci:1 < stdin:6: Pod p: spec.containers[0].image", "docker://dir:2 < stdin:7: Pod p: spec.containers[1].image",
			"docker://ostree:3 < stdin:8: Pod p: spec.containers[2].image", "docker:4 < stdin:9: Pod p: spec.containers[3].image"}},
		{name: "a transport in a manifest", in: pod + "  - image: dir:/etc\n", err: `stdin:6: document 1, Pod p: spec.containers[0].image: "dir:/etc": invalid reference format`},
		{name: "control characters", in: "kind: \"P\\e[31m\"\nspec: {containers: [{image: a}]}\n", want: []string{`a < stdin:2: "P\x1b[31m": spec.containers[0].image`}},
		{name: "the last of two fields", in: "kind: A\nkind: Pod\nspec: {containers: [{image: a, image: b}]}\n", want: []string{"b < stdin:3: Pod: spec.containers[0].image"}},

		{name: "no image", in: "kind: Service\nmetadata: {name: s}\n", is: ErrNoImages},
		{name: "number as an image", in: pod + "  - image: 1.25\n", err: `stdin:6: document 1, Pod p: spec.containers[0].image: "1.25" is not a string`},
		{name: "values of a chart", in: "image:\n  repository: a\n", err: "stdin:1: document 1: this is neither a Kubernetes object"},
		{name: "text", in: "---\nfoo\n", err: "stdin:2: document 1: this is neither"},
		{name: "second document", in: "kind: A\n---\nkind: B\nx: [\n", err: "stdin:4: document 2: "},
		{name: "template as a value", in: pod + "  - image: {{ .Values.image }}\n", err: "stdin:6: document 1, Pod p: ", is: ErrTemplate},
		{name: "template in a string", in: pod + "  - image: \"{{ .Values.image }}:1\"\n", err: "stdin:6: document 1, Pod p: ", is: ErrTemplate},
		{name: "template inside of a value", in: pod + "  - image: {{ .Values.image }}:{{ .Values.tag }}\n", err: "stdin:6: document 1: ", is: ErrTemplate},
		{name: "template around", in: "# chart\n{{- if .Values.on }}\nkind: Pod\n{{- end }}\n", err: "stdin:2: ", is: ErrTemplate},
		{name: "template within", in: pod + "    {{- toYaml .Values.containers | nindent 4 }}\n", err: "stdin:6: ", is: ErrTemplate},
		{name: "template in an unrelated string", in: "kind: Rule\nspec: {summary: '{{ $labels.x }}'}\n---\n" + pod + "  - image: a\n", want: []string{"a < stdin:9: Pod p: spec.containers[0].image"}},
		{name: "syntax beside such a string", in: "kind: Rule\nspec:\n  summary: '{{ $labels.x }}'\n  b: c: d\n", err: "stdin:4: document 1: mapping values are not allowed"},
		{name: "ClusterConfiguration", in: "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\n", err: "kubeadm config images list"},
		{name: "Kustomization", in: "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n", err: "kustomize build"},
		{name: "bad extra-image", in: "kind: A\n# extra-image: B\n", err: "stdin:2: extra-image: "},

		{name: "TOML without", in: "[crio.image]\npinned_images = []\n", is: ErrNoImages},
		{name: "broken TOML", in: "[crio.image]\npause_image = \n", err: "stdin:2: "},
		{name: "TOML of another type", in: "[crio.image]\npause_image = 3\n", err: "stdin: crio.image.pause_image is not a string"},
		{name: "TOML without a reference", in: "[crio.image]\npause_image = 'A B'\n", err: "stdin: crio.image.pause_image: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(t, c.in)
			if c.err != "" || c.is != nil {
				if err == nil || !strings.Contains(err.Error(), c.err) || c.is != nil && !errors.Is(err, c.is) {
					t.Fatalf("got %q, error %v; want %q (%v)", got, err, c.err, c.is)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Inputs that are small and ask for much.
func TestBounds(t *testing.T) {
	bomb := "kind: A\na: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [*" + strings.Join(strings.Split(strings.Repeat(p, 10), ""), ",*") + "]\n"
	}
	mergeBomb := "kind: A\na: &a {x: 1}\n"
	for c := 'b'; c < 'z'; c++ {
		p := string(c - 1)
		mergeBomb += string(c) + ": &" + string(c) + " {<<: [*" + p + ",*" + p + ",*" + p + "]}\n"
	}
	wide := "kind: A\nbig: &big {" + strings.Repeat("k: v, ", 40000) + "z: z}\ncontainers: [" + strings.Repeat("*big,", 40000) + "]\n"
	for _, c := range []struct{ name, in string }{
		{"aliases", bomb},
		{"merge keys", mergeBomb},
		{"merge of itself", "kind: A\na: &a {<<: [*a, *a]}\n"},
		{"list of itself in a merge", "kind: A\na: {<<: &s [" + strings.Repeat("*s,", 10000) + "]}\n"},
		{"itself", "kind: A\na: &a [*a]\n"},
		{"itself as a container", "kind: A\ncontainers: &c [{image: a, env: *c, x: *c}]\n"},
		{"many aliases of a wide object", wide},
		{"deep YAML", "kind: A\na: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000)},
		{"deep JSON", `{"kind":"A","a":` + strings.Repeat("[", 300000) + strings.Repeat("]", 300000) + "}"},
		{"many fields", "kind: A\na: [" + strings.Repeat("x,", maxMarks) + "]\n"},
		{"large", strings.Repeat("a\n", maxFile/2+1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := read(t, c.in); !errors.Is(err, ErrTooLarge) && (err == nil || !strings.Contains(err.Error(), "depth")) {
				t.Errorf("error %v, want %v", err, ErrTooLarge)
			}
		})
	}
}

// The bound on fields is a document's, not a file's.
func TestManyDocuments(t *testing.T) {
	const n = maxMarks/5000 + 1
	list := pod + "  - {name: a, image: a:1, args: [" + strings.Repeat("x,", 5000) + "]}\n---\n"
	got, err := read(t, strings.Repeat(list, n))
	if d := cmp.Diff([]string{"a:1 < stdin:6: Pod p: spec.containers[0].image"}, got); d != "" || err != nil {
		t.Fatal(d, err)
	}
}

func TestFolder(t *testing.T) {
	write := func(dir, name, text string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	write("m", "b.yml", pod+"  - image: b\n")
	write("m", "a.yaml", "kind: Service\n")
	write("m", "c/d.json", `{"kind":"Pod","spec":{"containers":[{"image":"d"}]}}`)
	write("m", "c/notes.txt", "not yaml: [")
	if err := os.Symlink("../list", "m/z.yaml"); err != nil {
		t.Fatal(err)
	}
	write(".", "list", "- z\n- b\n")
	want := []string{"b < m/b.yml:6: Pod p: spec.containers[0].image", "d < m/c/d.json:1: Pod: spec.containers[0].image", "z < m/z.yaml:1: [0]"}
	got, err := readNames(t, []string{"m"}, "", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	got, err = readNames(t, []string{"list", "-", "m"}, "y\nd\n", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"z < list:1: [0]", "b < list:2: [1]", "y < stdin:1", "d < stdin:2"}, got); d != "" {
		t.Error(d)
	}

	write("k", "kustomization.yaml", "resources: []\n")
	write("n", "sub/Chart.yaml", "name: x\n")
	write("v", "values.yaml", "image: x\n")
	if err := os.Mkdir("e", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names []string
		o     Options
		want  string
	}{
		{[]string{"k"}, Options{}, "k is a kustomization: give what is built from it (kustomize build k | nodebake images-in -)"},
		{[]string{"n"}, Options{}, "n/sub is a chart inside of a folder of manifests"},
		{[]string{"v"}, Options{}, "v/values.yaml:1: document 1: this is neither"},
		{[]string{"e"}, Options{}, "e holds no reference"},
		{[]string{"nowhere"}, Options{}, "no such file"},
		{[]string{"-", "-"}, Options{}, "standard input is given twice"},
		{[]string{"list"}, Options{KubeVersion: "1.30"}, "none of the inputs is"},
	} {
		if got, err := readNames(t, c.names, "a\n", c.o); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %q, error %v; want %q", c.names, got, err, c.want)
		}
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, []string{"-"}, strings.NewReader("a"), Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/*.*")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, s := range []string{"", "a\n", "kind: A\na: &a {<<: [*a, *a]}\n", pod + "  - image: {{ .x }}\n", "[a]\nb = 1\n", "? {a: b}\n: c", "- &a [*a]\n- *a", "%YAML 1.2\n---\n...\n---\n", `{"kind":"PodList","items":[{"spec":{}}]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		entries, err := Read(t.Context(), []string{"-"}, strings.NewReader(string(data)), Options{})
		if (err == nil) != (len(entries) > 0) {
			t.Fatalf("%d entries, error %v", len(entries), err)
		}
		for _, e := range entries {
			if e.Ref == "" || e.From == "" || checkListed(e.Ref) != nil {
				t.Fatalf("%+v", e)
			}
		}
	})
}
