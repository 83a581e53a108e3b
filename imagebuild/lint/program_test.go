package lint

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func sectionOf(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}

// What Go's linker writes is found, in programs without symbols.
func TestReadProgram(t *testing.T) {
	all := programs(t)
	for name, want := range map[string]program{
		"kubelet":       {gitVersion: kubeVersion},
		"crio-1.50.2":   {pause: "registry.k8s.io/pause:3.10", deps: map[string]string{"github.com/containers/storage": "v1.50.2"}},
		"podman-1.58.0": {deps: map[string]string{"github.com/containers/storage": "v1.58.0"}},
	} {
		p, err := readProgram(sectionOf([]byte(all[name])))
		if err != nil || p.gitVersion != want.gitVersion || p.pause != want.pause || p.dep(storageModules...) != want.deps["github.com/containers/storage"] {
			t.Errorf("%s: %+v, %v; want %+v", name, p, err, want)
		}
	}
}

// The modules of a program that Go made just now are those that Go's own reader says.
func TestReadProgramAsGoDoes(t *testing.T) {
	n := 0
	for name, text := range programs(t) {
		at := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(at, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("go", "version", "-m", at).Output()
		if err != nil {
			t.Fatal(err)
		}
		p, err := readProgram(sectionOf([]byte(text)))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			switch w := strings.Fields(line); {
			case len(w) > 2 && w[0] == "mod" && p.main != w[2]:
				t.Errorf("%s is of version %q, go says %s", name, p.main, w[2])
			case len(w) > 2 && w[0] == "dep":
				if n++; p.deps[w[1]] != w[2] {
					t.Errorf("%s: %s is %q, go says %s", name, w[1], p.deps[w[1]], w[2])
				}
			}
		}
	}
	if n != 3 {
		t.Errorf("%d modules", n)
	}
}

func TestReadProgramHostile(t *testing.T) {
	elf := "\x7fELF" + strings.Repeat("\x00", 28)
	head := infoMagic + "\x08\x02" + strings.Repeat("\x00", 16)
	for name, c := range map[string]struct{ in, git string }{
		"empty":                  {"", ""},
		"a script":               {"#!/bin/sh\n", ""},
		"nothing in it":          {elf, ""},
		"cut off in the head":    {elf + infoMagic, ""},
		"cut off in the length":  {elf + head, ""},
		"a length beyond all":    {elf + head + "\xff\xff\xff\xff\xff\xff\xff\xff\x7f", ""},
		"a length beyond a byte": {elf + head + "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", ""},
		"no Go version":          {elf + head + "\x03abc", ""},
		"short information":      {elf + head + "\x04go1." + "\x01x", ""},
		"one version":            {elf + "\x00v1.2.3\x00", "v1.2.3"},
		"two versions":           {elf + "\x00v1.2.3\x00v1.2.4\x00", ""},
		"more of one":            {elf + "\x00v1.2.3\x00v1.2.4\x00v1.2.3\x00", "v1.2.3"},
		"no end":                 {elf + "\x00v1.2.3", ""},
		"a vendor's":             {elf + "\x00v1.31.5+1.el8\x00", "v1.31.5+1.el8"},
	} {
		p, err := readProgram(sectionOf([]byte(c.in)))
		if p.gitVersion != c.git || len(p.deps) != 0 {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	// What lies across the border of two reads is found once.
	for _, at := range []int{1<<20 - 4, 1 << 20, 1<<20 + 1020, 2 << 20} {
		b := append([]byte(elf), make([]byte, at)...)
		b = append(b, "\x00v1.2.3\x00 registry.k8s.io/pause:3.9zz"...)
		b = append(b, make([]byte, 3000)...)
		if p, err := readProgram(sectionOf(b)); err != nil || p.gitVersion != "v1.2.3" || p.pause != "registry.k8s.io/pause:3.9" {
			t.Errorf("at %d: %+v, %v", at, p, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, s := range []string{"", "v", "1", "v1.x", "1.2.3 4", "-1.2", "v1.2.3;x"} {
		if v, ok := parseVersion(s); ok {
			t.Errorf("%q is %v", s, v)
		}
	}
	order := []string{"1.2", "v1.2.1", "1.2.10-rc.1", "1.10.0", "2.0"}
	for i, a := range order {
		for j, b := range order {
			x, ok := parseVersion(a)
			y, ok2 := parseVersion(b)
			if !ok || !ok2 || x.before(y) != (i < j) {
				t.Errorf("%s before %s: %v", a, b, x.before(y))
			}
		}
	}
}

func TestReleases(t *testing.T) {
	last := version{}
	for _, r := range releases {
		v, ok := parseVersion(r.version)
		if !ok || !last.before(v) {
			t.Errorf("%s does not follow %s", r.version, last.text)
		}
		last = v
	}
	for _, c := range []struct{ version, coredns, etcd, pause string }{
		{"1.31.2", "v1.11.3", "3.5.15-0", "3.10"},
		{"v1.30.9", "v1.11.3", "3.5.15-0", "3.9"},
		{"1.31.5+1.el8", "v1.11.3", "3.5.15-0|3.5.24-0", "3.10"},
		{"1.32.0", "v1.11.3", "3.5.16-0", "3.10"},
		{"1.34.3", "v1.12.1", "3.6.5-0", "3.10.1"},
		{"1.35.4", "v1.13.1", "3.6.6-0", "3.10.1"},
		{"1.35.5", "", "", ""}, {"1.26.0", "", "", ""}, {"1.99.0", "", "", ""}, {"2.31.2", "", "", ""},
	} {
		v, _ := parseVersion(c.version)
		a, b, p := releaseTags(v)
		if strings.Join(a, "|") != c.coredns || strings.Join(b, "|") != c.etcd || strings.Join(p, "|") != c.pause {
			t.Errorf("%s: %v %v %v", c.version, a, b, p)
		}
	}
}

func TestDpkg(t *testing.T) {
	const status = `Package: podman
Status: install ok installed
Version: 4.3.1+ds1-8+deb12u1
Description: x
 Version: 9

Package: kubelet
Status: deinstall ok config-files
Version: 1.30.0-1.1

Package: cri-o
Status: install ok installed
Version: 1.31.0-1.1
Conffiles:
 /etc/crio/crio.conf 0

Package: kubeadm
Version: 1:1.31.2-1.1
Status: hold ok installed`
	found := map[string]string{}
	long := "Long: " + strings.Repeat("x", 200<<10) + "\n"
	if err := dpkgVersions(strings.NewReader(long+status), found); err != nil {
		t.Fatal(err)
	}
	if len(found) != 3 || found["podman"] != "4.3.1" || found["cri-o"] != "1.31.0" || found["kubeadm"] != "1.31.2" {
		t.Errorf("%v", found)
	}
}

func FuzzProgram(f *testing.F) {
	elf := "\x7fELF" + strings.Repeat("\x00", 28)
	f.Add([]byte(elf + infoMagic + "\x08\x02" + strings.Repeat("\x00", 16) + "\x04go1.\x30" + strings.Repeat("m", 16) + "dep\ta\tv1\nbuild\t" + strings.Repeat("m", 16)))
	f.Add([]byte(elf + "\x00v1.2.3\x00registry.k8s.io/pause:3.10"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, _ := readProgram(sectionOf(b))
		if len(p.gitVersion) > maxVersion {
			t.Errorf("%q", p.gitVersion)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add([]byte("[Service]\nEnvironment=\"A=b c\" D='e'\nExecStart=/x $A ${D} --root=/y \\\n --z\n"), "Service")
	f.Add([]byte("q /var/tmp 1777 root root 30d\nx /var/tmp/images\nD /tmp\n"), "")
	f.Add([]byte("Package: podman\nVersion: 1\nStatus: i o installed\n"), "x")
	f.Fuzz(func(t *testing.T, b []byte, section string) {
		u := unit{}
		for _, s := range settings(b, section) {
			for _, w := range splitWords(s.value) {
				u.env = append(u.env, word{text: w})
			}
		}
		for _, w := range u.env {
			u.expand(w)
		}
		flag(u.env, "root")
		for _, l := range tmpfileLines("x", b) {
			coversPath(l.path, "/var/images")
		}
		cmdlinesOf("x", b, "options")
		keyLine(b, "a")
		mountFaults(string(b))
		if err := dpkgVersions(bytes.NewReader(b), map[string]string{}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nspec: &a\n  containers:\n  - image: x\n    imagePullPolicy: Always\n    args: [--enable-admission-plugins, AlwaysPullImages]\n  volumes:\n  - image: {reference: y}\n  again: *a\n---\nkind: ClusterConfiguration\napiVersion: kubeadm.k8s.io/v1beta3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, found := takeClusters("x", b)
		if bytes.Count(rest, []byte{'\n'}) != bytes.Count(b, []byte{'\n'}) {
			t.Errorf("lines are lost: %q", rest)
		}
		for _, c := range found {
			kubeImages(c, "r", "v1.31.2", version{major: 1, minor: 31, patch: 2})
		}
		readPods(rest)
		kubeletFile("x", b, map[string]word{})
	})
}

func FuzzCpio(f *testing.F) {
	f.Add([]byte(cpioOf("usr/lib/ignition/user.ign", `{"ignition":{"version":"3.4.0"}}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _ := cpioIgnition(b)
		for _, i := range all {
			if len(i.text) > len(b) {
				t.Error("larger than the archive")
			}
		}
	})
}
