// Package imagelist reads which container images a cluster's files name: plain lists, Kubernetes
// manifests, Helm charts, and the configuration of kubelet, CRI-O and containerd. It touches no network
// and no cluster.
//
// What a file is is told from its content, never from its name.
//
// A plain list has one reference a line; # starts a comment at a line's beginning or after a blank. It is
// what "kubeadm config images list" and "ocne catalog mirror" print. JSON and YAML lists of strings are
// taken as well, and what "kubeadm config images list -o json" prints.
//
// A manifest is YAML or JSON of any number of documents, List objects included. Taken are
//
//   - image of every element of a containers, initContainers or ephemeralContainers list, at any depth of
//     any object but below metadata and status: Pod, everything with a Pod template, and the resources of
//     operators that embed one
//   - volumes[].image.reference
//   - the value of a container's environment variable whose name begins with RELATED_IMAGE_, and
//     relatedImages of a ClusterServiceVersion (the Operator Lifecycle Manager's conventions)
//   - comments of the form "# extra-image: REF", by which charts of the Oracle catalog name what no Pod does
//   - podInfraContainerImage of a KubeletConfiguration, and pod-infra-container-image in the
//     kubeletExtraArgs of kubeadm's InitConfiguration and JoinConfiguration
//
// A CustomResourceDefinition is a schema and names none. Strings that hold manifests (in a ConfigMap, in
// an annotation) are not guessed at.
//
// A chart (a folder with Chart.yaml, or a .tgz) is rendered as "helm template --include-crds" does, with
// hooks and tests, and the result is read as manifests. Lines in it count in the rendered text.
//
// A folder without Chart.yaml stands for all *.yaml, *.yml and *.json files in it and below it, in the
// order of their paths.
//
// CRI-O's and containerd's TOML give their pause image.
//
// What cannot be understood is an error, not a shorter list: an object without a kind, a template that
// nobody rendered, a kustomization, a chart whose dependencies are missing, and kubeadm's
// ClusterConfiguration, of which only kubeadm itself makes whole names.
package imagelist
