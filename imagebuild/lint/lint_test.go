package lint

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

const (
	goodPod = `apiVersion: v1
kind: Pod
metadata:
  name: app
spec:
  containers:
  - name: app
    image: example.org/app:1
`
	kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: /etc/kubernetes/manifests
`
	crioDropIn = "/etc/crio/crio.conf.d/10-crio.conf"
	crioConfig = `[crio.image]
pause_image = "registry.k8s.io/pause:3.10"
pinned_images = ["registry.k8s.io/*", "example.org/*"]
`
	goodStorage = `[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"

[storage.options]
additionalimagestores = [
  "/var/images",
]

[storage.options.overlay]
mountopt = "nodev,metacopy=on"
`
)

// node is a node that wants nothing.
func node(t testing.TB) files {
	all := programs(t)
	return files{
		"/usr/bin/kubelet": all["kubelet"], "/usr/bin/kubeadm": all["kubelet"],
		mainConf: goodStorage, crioDropIn: crioConfig, "/etc/kubernetes/manifests/app.yaml": goodPod, "/var/lib/kubelet/config.yaml": kubeletConfig,
		"/usr/lib/systemd/system/kubelet.service": "[Service]\nExecStart=/usr/bin/kubelet\n",
		"/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": `[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/sysconfig/kubelet
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
`,
	}
}

// An untouched disk with images has nothing that is wrong, and nothing that could not be looked at.
func TestUntouched(t *testing.T) {
	name, err := bakedDisk()
	r := run(t, copyOf(t, name, err), Options{})
	if len(r.Findings) > 0 || r.Images != 2 || r.Kubernetes != "" || len(r.Engines) > 0 {
		t.Errorf("%+v", r)
	}
}

// Each case changes a node that wants nothing, and is told of exactly what it changed.
func TestFindings(t *testing.T) {
	base := node(t)
	all := programs(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		at := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
		return at
	}
	conf := func(old, new string) files {
		text := strings.Replace(goodStorage, old, new, 1)
		if text == goodStorage {
			t.Fatalf("%q is not in it", old)
		}
		return files{mainConf: text}
	}
	const kubeadmConf = "/etc/kubernetes/kubeadm.yaml"
	const manifest = "/etc/kubernetes/manifests/app.yaml"
	good := write("good.yaml", goodPod)
	cluster := "apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\nkubernetesVersion: v1.31.2\n"
	for _, c := range []struct {
		name  string
		files files
		opts  Options
		want  string // errors and warnings, one a line
		info  string // notes that must be there
		says  string // what one of the findings must say
	}{
		{name: "a node that wants nothing"},
		{name: "and manifests whose images are there", opts: Options{Manifests: []string{good, write("dir/a.yaml", goodPod)}}},

		// The store.
		{name: "no store", files: files{"/var/images/overlay-images/images.json": "-", "/var/images/overlay-images/images.lock": "-", mainConf: strings.Replace(goodStorage, `"/var/images",`, "", 1)},
			want: "NB010 error\nNB070 error " + crioDropIn + ":2\nNB074 error /usr/bin/kubeadm\nNB075 warning /usr/bin/kubeadm\nNB077 error " + manifest + ":8"},
		{name: "a broken store", files: files{"/var/images/overlay-images/images.json": "{"},
			want: "NB011 error /var/images\nNB070 error " + crioDropIn + ":2\nNB074 error /usr/bin/kubeadm\nNB075 warning /usr/bin/kubeadm\nNB077 error " + manifest + ":8"},
		{name: "a store that is not named", files: conf(`"/var/images",`, ""), want: "NB012 error " + mainConf + ":7"},
		{name: "a store that is named by a link", files: conf(`"/var/images"`, `"/srv/store"`).with(files{"/srv/store": "->/var/images"})},
		{name: "a drop-in that replaces the list", files: files{"/etc/containers/storage.conf.d/50.conf": "[storage.options]\nadditionalimagestores = []\n"}, want: "NB012 error " + mainConf + ":7", says: "podman 6"},
		{name: "a drop-in that adds to the list", files: files{"/etc/containers/storage.conf.d/50.conf": "[storage.options]\nadditionalimagestores = [{append = true}]\n"}},
		{name: "a store that is not there", files: conf(`"/var/images"`, `"/srv/gone", "/var/images"`), want: "NB013 error " + mainConf + ":8", says: "can't stat imageStore dir"},
		{name: "a folder that is no store", files: conf(`"/var/images"`, `"/srv/empty", "/var/images"`).with(files{"/srv/empty": "/"}), want: "NB014 warning " + mainConf + ":8"},
		{name: "an empty store with its locks", files: conf(`"/var/images"`, `"/srv/empty", "/var/images"`).with(files{"/srv/empty/overlay-images/images.lock": "", "/srv/empty/overlay-layers/layers.lock": ""})},
		{name: "no locks", files: files{"/var/images/overlay-layers/layers.lock": "-"}, want: "NB015 warning /var/images"},
		{name: "in the graphroot", files: conf("graphroot = \"/var/lib/containers/storage\"", "graphroot = \"/var\""), want: "NB016 error " + mainConf + ":4"},
		{name: "in CRI-O's root", files: files{crioDropIn: crioConfig + "[crio]\nroot = \"/var\"\n"}, want: "NB016 error " + crioDropIn + ":5"},
		{name: "in the runroot", files: conf("runroot = \"/run/containers/storage\"", "runroot = \"/var/images/run\""), want: "NB016 error " + mainConf + ":3", says: "every boot"},
		{name: "not TOML", files: conf("[storage]", "[storage"), want: "NB018 error " + mainConf + ":1", info: "NB073"},

		// The engine.
		{name: "vfs", files: conf(`driver = "overlay"`, `driver = "vfs"`), want: "NB030 error " + mainConf + ":2"},
		{name: "CRI-O's vfs", files: files{crioDropIn: crioConfig + "[crio]\nstorage_driver = \"vfs\"\n"}, want: "NB030 error " + crioDropIn + ":5"},
		{name: "btrfs is preferred", files: conf(`driver = "overlay"`, `driver_priority = ["btrfs", "overlay"]`), want: "NB030 warning " + mainConf + ":2"},
		{name: "mount options that clash", files: conf("metacopy=on", "metacopy=on,redirect_dir=off"), want: "NB031 error " + mainConf + ":12"},
		{name: "mount options of rootless", files: conf("metacopy=on", "userxattr"), want: "NB031 error " + mainConf + ":12", says: "trusted.overlay"},
		{name: "an unknown mount option", files: conf("metacopy=on", "metacpy=on"), want: "NB031 warning " + mainConf + ":12"},
		{name: "a mount program that is not there", files: conf("mountopt =", "mount_program = \"/usr/bin/fuse-overlayfs\"\nmountopt ="), want: "NB033 error " + mainConf + ":12"},
		{name: "a mount program that is there", files: conf("mountopt =", "mount_program = \"/usr/bin/fuse-overlayfs\"\nmountopt =").with(files{"/usr/bin/fuse-overlayfs": "x"})},
		{name: "another storage.conf", files: files{"/etc/systemd/system/crio.service.d/x.conf": "[Service]\n# c\nEnvironment=A=b CONTAINERS_STORAGE_CONF=/etc/other.conf\n"}, want: "NB034 error /etc/systemd/system/crio.service.d/x.conf:3"},
		{name: "another storage.conf that names the store", files: files{"/etc/systemd/system/podman.service": "[Service]\nEnvironment=CONTAINERS_STORAGE_CONF=/etc/other.conf\n", "/etc/other.conf": goodStorage}},
		{name: "a driver in the manager's environment", files: files{"/etc/systemd/system.conf": "[Manager]\nDefaultEnvironment=\"STORAGE_DRIVER=vfs\"\n"}, want: "NB034 error /etc/systemd/system.conf:2"},
		{name: "options in CRI-O's file", files: files{"/usr/lib/systemd/system/crio.service": "[Service]\nEnvironmentFile=-/etc/sysconfig/crio\nExecStart=/usr/bin/crio $CRIO_CONFIG_OPTIONS\n",
			"/etc/sysconfig/crio": "CRIO_CONFIG_OPTIONS=--config-dir=/etc/other\nSTORAGE_OPTS=overlay.mountopt=nodev\n"}, want: "NB034 warning /etc/sysconfig/crio:1\nNB034 warning /etc/sysconfig/crio:2"},
		{name: "root's own", files: files{"/root/.config/containers/storage.conf": "[storage]\ndriver=\"overlay\"\n"}, want: "NB034 warning /root/.config/containers/storage.conf"},
		{name: "an old CRI-O's storage_option", files: files{crioDropIn: crioConfig + "[crio]\nstorage_option = [\"overlay.mountopt=nodev\"]\n"}, want: "NB035 warning " + crioDropIn + ":5"},
		{name: "an old CRI-O's storage_option with the store", files: files{crioDropIn: crioConfig + "[crio]\nstorage_option = [\"overlay.imagestore=/var/images\"]\n"}},
		{name: "a new CRI-O's storage_option", files: files{crioDropIn: crioConfig + "[crio]\nstorage_option = [\"overlay.mountopt=nodev\"]\n", "/usr/bin/crio": all["crio-1.50.2"]}, info: "NB037 info /usr/bin/crio"},
		{name: "containerd", files: files{"/var/lib/kubelet/config.yaml": kubeletConfig + "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n"}, want: "NB036 error /var/lib/kubelet/config.yaml:4"},
		{name: "CRI-O's socket", files: files{"/etc/sysconfig/kubelet": "KUBELET_EXTRA_ARGS=--container-runtime-endpoint=unix:///run/crio/crio.sock\n"}},
		{name: "a podman with a fault", files: files{"/usr/bin/podman": all["podman-1.50.2"]}, want: "NB037 warning /usr/bin/podman", says: "#1733"},
		{name: "a podman without", files: files{"/usr/bin/podman": all["podman-1.58.0"]}, info: "NB037 info /usr/bin/podman"},
		{name: "a podman that dpkg tells of", files: files{"/usr/bin/podman": all["kubelet"], dpkgStatus: "Package: podman\nStatus: install ok installed\nVersion: 4.0.3+ds1-1\n"}, want: "NB037 warning /usr/bin/podman", says: "#12926"},
		{name: "a podman that RPM tells of", files: files{"/usr/bin/podman": all["kubelet"], "/usr/share/rpm/rpmdb.sqlite": rpmDatabase(t, "podman", "4.7.1")}, want: "NB037 warning /usr/bin/podman", says: "#1733"},
		{name: "a podman and a broken database", files: files{"/usr/bin/podman": all["kubelet"], "/usr/share/rpm/rpmdb.sqlite": "x"}, info: "NB001 info"},
		{name: "a podman that nothing tells of", files: files{"/usr/bin/podman": all["kubelet"]}, info: "NB038 info /usr/bin/podman"},

		// The first boot.
		{name: "a mount over it", files: files{"/etc/fstab": "tmpfs /var tmpfs defaults\n"}, want: "NB050 error /var/images"},
		{name: "a mount beside it", files: files{"/etc/fstab": "tmpfs /var/tmp tmpfs defaults\n"}},
		{name: "a mount unit", files: files{"/usr/lib/systemd/system/var.mount": "[Mount]\nWhat=tmpfs\nWhere=/var\nType=tmpfs\n"}, want: "NB051 warning /usr/lib/systemd/system/var.mount"},
		{name: "a mount unit that is started", files: files{"/usr/lib/systemd/system/var-images.mount": "[Mount]\nWhat=nfs:/x\nWhere=/var/images\nType=nfs\n",
			"/etc/systemd/system/local-fs.target.wants/var-images.mount": "->/usr/lib/systemd/system/var-images.mount"}, want: "NB050 error /var/images"},
		{name: "tmpfiles removes it", files: files{"/etc/tmpfiles.d/x.conf": "# c\nR! /var/ima*\n"}, want: "NB052 error /etc/tmpfiles.d/x.conf:2"},
		{name: "tmpfiles empties it", files: files{"/usr/lib/tmpfiles.d/x.conf": "D /var/images 0755 root root -\n"}, want: "NB052 error /usr/lib/tmpfiles.d/x.conf:1"},
		{name: "tmpfiles ages it", files: files{"/usr/lib/tmpfiles.d/x.conf": "d /var 0755 root root 10d\n"}, want: "NB052 error /usr/lib/tmpfiles.d/x.conf:1"},
		{name: "tmpfiles spares it", files: files{"/usr/lib/tmpfiles.d/x.conf": "d /var 0755 root root 10d\nx /var/images\n"}},
		{name: "tmpfiles' file is taken over", files: files{"/usr/lib/tmpfiles.d/x.conf": "R /var/images\n", "/etc/tmpfiles.d/x.conf": "->/dev/null"}},
		{name: "tmpfiles beside it", files: files{"/usr/lib/tmpfiles.d/x.conf": "R /var/images/tmp\nq /var/tmp 1777 root root 30d\nd /var 0755 - - -\n"}},
		{name: "a volatile system", files: files{"/boot/loader/entries/x.conf": "title x\noptions root=/dev/sda1 systemd.volatile=state quiet\n"}, want: "NB053 error /boot/loader/entries/x.conf:2"},
		{name: "a volatile overlay", files: files{"/boot/loader/entries/x.conf": "title x\noptions systemd.volatile=overlay\n"}},
		{name: "GRUB's volatile system", files: files{"/etc/default/grub": "A=b\nGRUB_CMDLINE_LINUX=\"quiet systemd.volatile=yes\"\n"}, want: "NB053 error /etc/default/grub:2"},

		// Images.
		{name: "another pause image", files: files{crioDropIn: strings.Replace(crioConfig, "pause:3.10", "pause:3.9", 1)}, want: "NB070 error " + crioDropIn + ":2", says: "registry.k8s.io/pause:3.10"},
		{name: "a pause image of the command line", files: files{"/etc/systemd/system/crio.service": "[Service]\nExecStart=/usr/bin/crio --pause-image registry.k8s.io/pause:3.1\n"}, want: "NB070 error /etc/systemd/system/crio.service:2"},
		{name: "CRI-O's own", files: files{crioDropIn: strings.Replace(crioConfig, "pause_image", "#", 1), "/usr/bin/crio": all["crio-1.50.2"]}, info: "NB037 info /usr/bin/crio"},
		{name: "no one says which pause image", files: files{crioDropIn: strings.Replace(crioConfig, "pause_image", "#", 1)}, info: "NB073 info"},
		{name: "kubelet's pause image", files: files{"/var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--x=y --pod-infra-container-image=registry.k8s.io/pause:3.8\"\n"}, want: "NB071 warning /var/lib/kubelet/kubeadm-flags.env:1"},
		{name: "kubelet's pause image that is there", files: files{"/var/lib/kubelet/kubeadm-flags.env": "KUBELET_KUBEADM_ARGS=\"--x=y --pod-infra-container-image=registry.k8s.io/pause:3.10\"\n"}},
		{name: "containerd's pause image", files: files{"/etc/containerd/config.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"registry.k8s.io/pause:3.8\"\n"}, want: "NB072 warning /etc/containerd/config.toml:3"},
		{name: "another version", opts: Options{Kubernetes: "1.31.1"}, want: "NB074 error\nNB074 error\nNB074 error\nNB074 error", says: "a store has registry.k8s.io/kube-proxy:v1.31.2"},
		{name: "half a control plane", opts: Options{Kubernetes: "v1.31.2"}, files: files{kubeadmConf: cluster + "etcd:\n  local:\n    imageTag: 3.5.1-0\n"}, want: "NB074 error", says: "etcd:3.5.1-0"},
		{name: "a version that the table lacks", opts: Options{Kubernetes: "v1.31.9"}, want: "NB074 error\nNB074 error\nNB074 error\nNB074 error", says: "registry.k8s.io/etcd:3.5.15-0, registry.k8s.io/etcd:3.5.24-0, or one between"},
		{name: "a version that nothing says", files: files{"/usr/bin/kubeadm": all["podman-1.58.0"], "/usr/bin/kubelet": "-"}, info: "NB076 info /usr/bin/kubeadm"},
		{name: "a version that the package says", files: files{"/usr/bin/kubeadm": all["podman-1.58.0"], "/usr/bin/kubelet": all["podman-1.58.0"], dpkgStatus: "Package: kubelet\nStatus: install ok installed\nVersion: 1.31.2-1.1\n"}},
		{name: "no kubeadm", files: files{"/usr/bin/kubeadm": "-"}, opts: Options{}},
		{name: "another repository", files: files{kubeadmConf: cluster + "imageRepository: reg.local/k8s\n"}, want: "NB074 error " + kubeadmConf + ":2\nNB075 warning " + kubeadmConf + ":2"},
		{name: "a configuration that was given", opts: Options{Manifests: []string{write("kubeadm.yaml", goodPod+"---\n"+cluster+"imageRepository: reg.local/k8s\n")}},
			want: "NB074 error " + dir + "/kubeadm.yaml:11\nNB075 warning " + dir + "/kubeadm.yaml:11"},
		{name: "what is not to be", files: files{kubeadmConf: cluster + "etcd:\n  external: {endpoints: [x]}\ndns:\n  disabled: true\nproxy:\n  disabled: true\n"}},
		{name: "a static Pod's image", files: files{manifest: strings.Replace(goodPod, "app:1", "app:2", 1)}, want: "NB077 error " + manifest + ":8", says: "a store has example.org/app:1"},
		{name: "a static Pod elsewhere", files: files{"/var/lib/kubelet/config.yaml": strings.Replace(kubeletConfig, "/etc/kubernetes/manifests", "/opt/pods", 1), "/opt/pods/x.yaml": strings.Replace(goodPod, "app:1", "app:2", 1)}, want: "NB077 error /opt/pods/x.yaml:8"},
		{name: "a static Pod that is passed over", files: files{"/etc/kubernetes/manifests/.old.yaml": strings.Replace(goodPod, "app:1", "app:2", 1)}},
		{name: "a static Pod that cannot be read", files: files{manifest: "kind: [\n"}, info: "NB001 info"},
		{name: "a given manifest's image", opts: Options{Manifests: []string{write("bad.yaml", "# x\n"+strings.Replace(goodPod, "app:1", "app:2", 1))}}, want: "NB077 error " + dir + "/bad.yaml:9"},
		{name: "a given list", opts: Options{Manifests: []string{"-"}, Stdin: strings.NewReader("registry.k8s.io/pause:3.10\nregistry.k8s.io/pause:3.11\n")}, want: "NB077 error stdin:2"},
		{name: "a given manifest that cannot be read", opts: Options{Manifests: []string{write("broken.yaml", "kind: Pod\nspec: [\n")}}, want: "NB002 error " + dir + "/broken.yaml"},
		{name: "a short name", files: files{manifest: strings.Replace(goodPod, "example.org/app:1", "app:1", 1)}, want: "NB077 error " + manifest + ":8"},
		{name: "a short name that is found", files: files{manifest: strings.Replace(goodPod, "example.org/app:1", "app:1", 1), "/etc/containers/registries.conf": "unqualified-search-registries = [\"docker.io\", \"example.org\"]\n"}},

		// How they are pulled.
		{name: "always", files: files{manifest: goodPod + "    imagePullPolicy: Always\n"}, want: "NB080 error " + manifest + ":9"},
		{name: "if not present", files: files{manifest: goodPod + "    imagePullPolicy: IfNotPresent\n"}},
		{name: "latest", files: files{manifest: strings.Replace(goodPod, ":1", ":latest", 1)}, want: "NB077 error " + manifest + ":8\nNB081 error " + manifest + ":8"},
		{name: "no tag", files: files{manifest: strings.Replace(goodPod, ":1", "", 1)}, want: "NB077 error " + manifest + ":8\nNB081 error " + manifest + ":8"},
		{name: "latest, but never", files: files{manifest: strings.Replace(goodPod, ":1", ":latest", 1) + "    imagePullPolicy: Never\n"}, want: "NB077 error " + manifest + ":8"},
		{name: "the admission plugin", files: files{manifest: goodPod + "    command:\n    - kube-apiserver\n    - --enable-admission-plugins=NodeRestriction,AlwaysPullImages\n"}, want: "NB082 error " + manifest + ":11"},
		{name: "another admission plugin", files: files{manifest: goodPod + "    command: [kube-apiserver, --enable-admission-plugins=NodeRestriction]\n"}},
		{name: "the admission plugin in kubeadm's configuration", opts: Options{Manifests: []string{write("plugin.yaml", cluster+"apiServer:\n  extraArgs:\n    enable-admission-plugins: AlwaysPullImages\n")}}, want: "NB082 error " + dir + "/plugin.yaml:6"},
		{name: "an image volume", files: files{manifest: goodPod + "  volumes:\n  - name: v\n    image:\n      reference: example.org/app:1\n"}, want: "NB083 error " + manifest + ":12", says: "#1864"},
		{name: "proof of credentials", files: files{"/var/lib/kubelet/config.yaml": kubeletConfig + "imagePullCredentialsVerificationPolicy: AlwaysVerify\n"}, want: "NB084 error /var/lib/kubelet/config.yaml:4"},

		// Garbage collection.
		{name: "nothing is pinned", files: files{crioDropIn: strings.Replace(crioConfig, "pinned_images", "#", 1)}, want: "NB090 warning"},
		{name: "another image is pinned", files: files{crioDropIn: strings.Replace(crioConfig, `"registry.k8s.io/*", "example.org/*"`, `"example.com/*"`, 1)}, want: "NB090 warning " + crioDropIn},
		{name: "a later file pins another image", files: files{"/etc/crio/crio.conf.d/20.conf": "[crio.image]\npinned_images = []\n"}, want: "NB090 warning /etc/crio/crio.conf.d/20.conf"},
		{name: "nothing is pinned, and nothing is collected", files: files{crioDropIn: strings.Replace(crioConfig, "pinned_images", "#", 1), "/var/lib/kubelet/config.yaml": kubeletConfig + "imageGCHighThresholdPercent: 100\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, err := bakedDisk()
			disk := copyOf(t, name, err)
			all := base.with(c.files)
			for n, what := range c.files {
				if what == "-" && base[n] != "" {
					delete(all, n)
				}
			}
			change(t, disk, all, nil)
			r := run(t, disk, c.opts)
			if got := strings.Join(said(r.Findings, false), "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s\n%+v", got, c.want, r.Findings)
			}
			if c.info != "" && !slices.ContainsFunc(said(r.Findings, true), func(s string) bool { return strings.HasPrefix(s, c.info) }) {
				t.Errorf("no %s: %+v", c.info, r.Findings)
			}
			if c.says != "" && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.Contains(f.What+f.Why, c.says) }) {
				t.Errorf("no finding says %q: %+v", c.says, r.Findings)
			}
			if c.info == "" && c.name != "a broken store" && c.opts.Kubernetes == "" && len(said(r.Findings, true)) != len(said(r.Findings, false)) && !strings.Contains(c.name, "podman") {
				t.Errorf("notes: %+v", r.Findings)
			}
		})
	}
}

// cpioOf is an initial file system with one file.
func cpioOf(name, text string) string {
	one := func(name string, mode int, text string) string {
		pad := func(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
		return pad(fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 0, len(text), 0, 0, 0, 0, len(name)+1, 0)+name+"\x00") + pad(text)
	}
	return one("usr", 0o40755, "") + one(name, 0o100600, text) + one("TRAILER!!!", 0, "") + strings.Repeat("\x00", 64)
}

// Ignition's configuration is read where CoreOS and OCK have it, and means something before the first boot alone.
func TestIgnition(t *testing.T) {
	file := func(name, text string) string {
		b, err := json.Marshal(map[string]any{"ignition": map[string]any{"version": "3.4.0"}, "storage": map[string]any{"files": []any{
			map[string]any{"path": name, "contents": map[string]any{"source": "data:;base64," + base64.StdEncoding.EncodeToString([]byte(text))}}}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	const first, config, overlay = "/boot/ignition.firstboot", "/boot/ignition/config.ign", "/boot/ostree/initramfs-overlays/1.img"
	other := strings.Replace(goodStorage, "/var/images", "/srv/images", 1)
	wrap := func(s string) string { return "{\n\"ignition\": {\"version\": \"3.4.0\"},\n" + s + "\n}" }
	for _, c := range []struct {
		name  string
		files files
		want  string
	}{
		{"another storage.conf", files{first: "", config: file(mainConf, other)}, "NB055 error " + config + ":1"},
		{"the same storage.conf", files{first: "", config: file(mainConf, goodStorage)}, ""},
		{"another file", files{first: "", config: file("/etc/hostname", "x")}, ""},
		{"after the first boot", files{config: file(mainConf, other)}, "NB055 info " + config + ":1"},
		{"in an initial file system", files{"/boot/loader/entries/x.conf": "options ignition.firstboot\n", overlay: cpioOf("usr/lib/ignition/user.ign", file(mainConf, other))}, "NB055 error " + overlay + ":/usr/lib/ignition/user.ign:1"},
		{"percent-encoded", files{first: "", config: wrap(`"storage": {"files": [{"path": "/etc/containers/storage.conf", "contents": {"source": "data:,%5Bstorage%5D%0A"}}]}`)}, "NB055 error " + config + ":3"},
		{"fetched", files{first: "", config: wrap(`"storage": {"files": [{"path": "/etc/containers/storage.conf", "contents": {"source": "http://x/y"}}]}`)}, "NB055 warning " + config + ":3"},
		{"a link", files{first: "", config: wrap(`"storage": {"links": [{"path": "/etc/containers/storage.conf", "target": "x"}]}`)}, "NB055 error " + config + ":3"},
		{"a drop-in", files{first: "", config: file("/etc/containers/storage.conf.d/1.conf", "[storage.options]\nadditionalimagestores = []\n")}, "NB055 error " + config + ":1"},
		{"a drop-in of something else", files{first: "", config: file("/etc/containers/storage.conf.d/1.conf", "[storage]\nrunroot = \"/run/x\"\n")}, ""},
		{"a pause image", files{first: "", config: file(crioDropIn, "[crio.image]\npause_image = \"example.org/pause:9\"\n")}, "NB070 error " + config + ":1"},
		{"a folder is emptied", files{first: "", config: wrap(`"storage": {"directories": [{"path": "/var", "overwrite": true}]}`)}, "NB057 error " + config + ":3"},
		{"a filesystem over it", files{first: "", config: wrap(`"storage": {"filesystems": [{"path": "/var", "device": "/dev/vdb", "format": "xfs"}]}`)}, "NB057 error " + config + ":3"},
		{"a filesystem beside it", files{first: "", config: wrap(`"storage": {"filesystems": [{"path": "/srv", "device": "/dev/vdb", "format": "xfs"}]}`)}, ""},
		{"a mount unit over it", files{first: "", config: wrap(`"systemd": {"units": [{"name": "var-images.mount", "contents": "[Mount]"}]}`)}, "NB057 error " + config + ":3"},
		{"more from a server", files{first: "", config: wrap(`"ignition": {"config": {"merge": [{"source": "http://x/y"}]}}`)}, "NB056 info " + config + ":3"},
		{"from the platform", files{first: ""}, "NB056 info " + first},
		{"not JSON", files{first: "", config: "{"}, "NB001 info"},
		{"no cpio", files{first: "", overlay: "\x1f\x8bxx"}, "NB001 info\nNB056 info " + first},
	} {
		t.Run(c.name, func(t *testing.T) {
			name, err := bakedDisk()
			disk := copyOf(t, name, err)
			change(t, disk, files{mainConf: goodStorage}.with(c.files), nil)
			if got := strings.Join(said(run(t, disk, Options{}).Findings, true), "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

// The labels of a store are held against the policy of its own disk.
func TestLabels(t *testing.T) {
	const contexts = "/etc/selinux/targeted/contexts/files/"
	policy := files{"/etc/selinux/config": "SELINUX=enforcing\nSELINUXTYPE=targeted\n", contexts + "file_contexts": `/.*	system_u:object_r:default_t:s0
/var(/.*)?	system_u:object_r:var_t:s0
/var/lib/containers/storage(/.*)?	system_u:object_r:container_ro_file_t:s0
`}
	base := filepath.Join(t.TempDir(), "base.raw")
	name, err := bakedDisk()
	// A base with a policy: the demo's, not yet baked.
	if err := bakeNamed(demo+"base.qcow2", base, nil); err != nil {
		t.Fatal(err)
	}
	change(t, base, policy, nil)
	labelled := filepath.Join(t.TempDir(), "labelled.raw")
	spec := imagebuild.Spec{Base: base, Images: []string{hello}, Store: "/srv/store"}
	spec.Output = labelled
	if _, err := imagebuild.Bake(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	change(t, labelled, files{"/var/images/overlay-images/images.json": "-", "/var/images/overlay-layers/layers.json": "-", "/var/images/overlay-images/images.lock": "-", "/var/images/overlay-layers/layers.lock": "-",
		mainConf: strings.Replace(goodStorage, "/var/images", "/srv/store", 1)}, nil)
	const lock = "/srv/store/overlay-images/images.lock"
	record := func(label string) map[string]string { return map[string]string{labelRecord: label + "\x00"} }
	for _, c := range []struct {
		name    string
		disk    string
		files   files
		records map[string]string
		want    string
	}{
		{"as the bake labelled it", labelled, nil, nil, ""},
		{"another type", labelled, files{lock: ""}, record("system_u:object_r:var_t:s0"), "NB060 error /srv/store"},
		{"another user", labelled, files{lock: ""}, record("root:object_r:container_ro_file_t:s0"), "NB060 warning /srv/store"},
		{"none", labelled, files{lock: ""}, nil, "NB060 error /srv/store"},
		{"permissive", labelled, files{lock: "", "/etc/selinux/config": "SELINUX=permissive\nSELINUXTYPE=targeted\n"}, nil, "NB060 warning /srv/store"},
		{"disabled", labelled, files{lock: "", "/etc/selinux/config": "SELINUX=disabled\nSELINUXTYPE=targeted\n"}, nil, ""},
		{"no line in the policy", name, policy.with(files{mainConf: goodStorage}), nil, "NB060 error /var/images\nNB061 error " + contexts + "file_contexts.subs"},
		{"a policy that cannot be read", labelled, files{contexts + "file_contexts": "x\n"}, nil, "NB001 info"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := copyOf(t, c.disk, err)
			change(t, disk, c.files, c.records)
			if got := strings.Join(said(run(t, disk, Options{}).Findings, true), "\n"); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestMountFaults(t *testing.T) {
	for opts, want := range map[string]int{
		"": 0, "nodev": 0, "nodev,metacopy=on": 0, "metacopy=on,redirect_dir=on,index=off,xino=auto,volatile": 0, "metacopy=yes": 1, "metacopy": 1,
		"redirect_dir=off,metacopy=on": 1, "userxattr,metacopy=on": 2, "userxattr,redirect_dir=nofollow": 1, "upperdir=/x": 1, "nfs_export=on,index=off": 1, "nonsense": 1,
	} {
		if got := mountFaults(opts); len(got) != want {
			t.Errorf("%q: %+v", opts, got)
		}
	}
}

func TestOverlayable(t *testing.T) {
	for _, c := range []struct {
		info filesystem.Info
		bad  bool
	}{
		{filesystem.Info{Kind: filesystem.XFS, Features: []string{"crc", "ftype"}}, false},
		{filesystem.Info{Kind: filesystem.XFS, Features: []string{"crc"}}, true},
		{filesystem.Info{Kind: filesystem.Ext4, Features: []string{"extent"}}, false},
		{filesystem.Info{Kind: filesystem.Ext4, Features: []string{"casefold"}}, true},
	} {
		if _, bad := overlayable(c.info); bad != c.bad {
			t.Errorf("%+v: %v", c.info, bad)
		}
	}
}

func TestReaches(t *testing.T) {
	r := &Report{Findings: []Finding{{Severity: Warning}, {Severity: Info}}}
	for s, want := range map[Severity]bool{Error: false, Warning: true, Info: true, "never": false} {
		if r.Reaches(s) != want {
			t.Errorf("%s: %v", s, !want)
		}
	}
}

// What is asked for in a wrong way is no finding.
func TestUsage(t *testing.T) {
	name, err := bakedDisk()
	if err != nil {
		t.Fatal(err)
	}
	o, err := imagebuild.OpenDisk(name, imagebuild.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	for _, opts := range []Options{{Kubernetes: "new"}, {Manifests: []string{"/nowhere.yaml"}}, {Manifests: []string{"-"}}} {
		if _, err := Run(t.Context(), o, opts); !errors.Is(err, imagebuild.ErrUsage) {
			t.Errorf("%+v: %v", opts, err)
		}
	}
}
