package lint

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

func isOverlay(driver string) bool { return driver == "overlay" || driver == "overlay2" }

// checkDriver asks whether the storage driver can read the store.
func (v *view) checkDriver() error {
	t, err := v.config()
	if err != nil {
		return err
	}
	name, text := confName(t)
	bad := func(driver, file string, line int) {
		if driver == "" || isOverlay(driver) {
			return
		}
		why := "an engine with it does not look into the store, which is made for overlay"
		if driver == "btrfs" || driver == "zfs" {
			why = "with it an engine does not start once additionalimagestores names a store"
		}
		v.add(Finding{ID: "NB030", Severity: Error, What: fmt.Sprintf("the storage driver is %q", driver), File: file, Line: line, Why: why, Mend: `set driver = "overlay"`})
	}
	bad(t.Config.Driver, name, keyLine(text, "driver"))
	if t.Merged.Driver != t.Config.Driver {
		f := lastWith(t.DropIns, "driver")
		bad(t.Merged.Driver, f.file, f.line)
	}
	if c := t.CRIOConfig.StorageDriver; c != "" {
		f := lastWith(t.CRIO, "storage_driver")
		bad(c, f.file, f.line)
	}
	if d := t.Config.DriverPriority; t.Config.Driver == "" && len(d) > 0 && !isOverlay(d[0]) {
		v.add(Finding{ID: "NB030", Severity: Warning, What: fmt.Sprintf("no storage driver is set, and %q is preferred", d[0]), File: name, Line: keyLine(text, "driver_priority"),
			Why: "an engine that picks it does not look into the store", Mend: `set driver = "overlay" in [storage]`})
	}
	for _, c := range []storageconf.Config{t.Config, t.Merged} {
		if p := c.MountProgram; p != "" && strings.HasPrefix(p, "/") && !v.is(p, tar.TypeReg) {
			f := lastWith(append(mainFile(t), t.DropIns...), "mount_program")
			v.add(Finding{ID: "NB033", Severity: Error, What: fmt.Sprintf("mount_program names %s, and that is not on the disk", p), File: f.file, Line: f.line,
				Why: "no container's filesystem can be mounted", Mend: "install the program, or take mount_program out"})
		}
		if c.MountProgram == "" {
			for _, fault := range mountFaults(c.MountOpt) {
				f := lastWith(append(mainFile(t), t.DropIns...), "mountopt")
				fault.File, fault.Line = f.file, f.line
				v.add(fault)
			}
		}
	}
	return nil
}

func mainFile(t *storageconf.Tree) []storageconf.File {
	if t.Main == nil {
		return nil
	}
	return []storageconf.File{*t.Main}
}

// lastWith finds the last file that sets a key, and where.
func lastWith(files []storageconf.File, key string) word {
	w := word{file: mainConf}
	for _, f := range files {
		if at := keyLine(f.Data, key); at > 0 {
			w = word{file: f.Name, line: at}
		}
	}
	return w
}

// overlayOptions are overlayfs's mount options and their values (Documentation/filesystems/overlayfs.rst,
// fs/overlayfs/params.c of Linux); nil for those that take none, or any.
var overlayOptions = map[string][]string{
	"redirect_dir": {"on", "follow", "nofollow", "off"}, "index": {"on", "off"}, "uuid": {"off", "null", "auto", "on"},
	"nfs_export": {"on", "off"}, "xino": {"on", "off", "auto"}, "metacopy": {"on", "off"}, "verity": {"off", "on", "require"},
	"fsync": {"volatile", "auto", "strict"}, "userxattr": nil, "volatile": nil, "default_permissions": nil,
	"override_creds": nil, "nooverride_creds": nil,
}

// commonOptions are mount options of every filesystem (mount(8)).
var commonOptions = []string{"ro", "rw", "dev", "nodev", "exec", "noexec", "suid", "nosuid", "sync", "async", "dirsync", "mand", "nomand",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "defaults", "silent", "loud"}

// mountFaults finds what the kernel would refuse in overlay's mount options, or would take and then see another tree.
func mountFaults(opts string) []Finding {
	var all []Finding
	fault := func(s Severity, what, why, mend string) {
		all = append(all, Finding{ID: "NB031", Severity: s, What: what, Why: why, Mend: mend})
	}
	set := map[string]string{}
	for _, o := range strings.Split(opts, ",") {
		o = strings.TrimSpace(o)
		key, value, has := strings.Cut(o, "=")
		values, known := overlayOptions[key]
		switch {
		case o == "" || slices.Contains(commonOptions, o) || strings.HasSuffix(key, "context"):
		case key == "lowerdir" || key == "upperdir" || key == "workdir" || key == "lowerdir+" || key == "datadir+":
			fault(Error, fmt.Sprintf("mountopt sets %s", key), "the engine sets it for each container", "take it out of mountopt")
		case !known:
			fault(Warning, fmt.Sprintf("mountopt has %q, which is no option of overlay that is known here", o), "the kernel refuses to mount any container's filesystem if it does not know it either", "take it out of mountopt if containers do not start")
		case values != nil && (!has || !slices.Contains(values, value)):
			fault(Error, fmt.Sprintf("mountopt has %q, whose value must be one of %s", o, strings.Join(values, ", ")), "the kernel refuses to mount any container's filesystem", "correct it")
		default:
			set[key] = value
			if !has {
				set[key] = "on"
			}
		}
	}
	const refused = "the kernel refuses to mount any container's filesystem"
	clash := func(a, b string) {
		fault(Error, fmt.Sprintf("mountopt has %s together with %s", a, b), refused, "take one of them out of mountopt")
	}
	if r, ok := set["redirect_dir"]; ok && set["metacopy"] == "on" && r != "on" {
		clash("metacopy=on", "redirect_dir="+r)
	}
	if set["nfs_export"] == "on" {
		if set["metacopy"] == "on" {
			clash("nfs_export=on", "metacopy=on")
		}
		if set["index"] == "off" {
			clash("nfs_export=on", "index=off")
		}
	}
	if v := set["verity"]; (v == "on" || v == "require") && set["metacopy"] == "off" {
		clash("verity="+v, "metacopy=off")
	}
	if _, ok := set["userxattr"]; ok {
		if set["metacopy"] == "on" {
			clash("userxattr", "metacopy=on")
		}
		if r, ok := set["redirect_dir"]; ok && r != "nofollow" {
			clash("userxattr", "redirect_dir="+r)
		}
		fault(Error, "mountopt has userxattr", "the kernel then reads user.overlay.* and not the trusted.overlay.* with which the store says that a folder hides those below it: files that an image deleted come back", "take it out; it is for rootless engines alone")
	}
	return all
}

// checkFilesystem asks whether the kernel's overlay can be put on the filesystems of the stores and of the engine.
func (v *view) checkFilesystem() error {
	t, err := v.config()
	if err != nil {
		return err
	}
	places := []string{storageconf.DefaultGraphRoot}
	if t.Config.GraphRoot != "" {
		places = []string{t.Config.GraphRoot}
	}
	for _, s := range v.readOnly() {
		places = append(places, s.Path)
	}
	for _, p := range places {
		if f, bad := overlayable(v.o.Root.VolumeOf(v.root(p)).Info); bad {
			f.File = p
			v.add(f)
		}
	}
	return nil
}

// overlayable says what keeps overlayfs from a filesystem.
func overlayable(i filesystem.Info) (Finding, bool) {
	if i.Kind == filesystem.XFS && !slices.Contains(i.Features, "ftype") {
		return Finding{ID: "NB032", Severity: Error, What: "the filesystem is XFS with ftype=0",
			Why: "overlay needs the file types in its folders; engines refuse it", Mend: "make the filesystem anew with mkfs.xfs -n ftype=1"}, true
	}
	if slices.Contains(i.Features, "casefold") {
		return Finding{ID: "NB032", Severity: Error, What: "the filesystem can fold case (casefold)",
			Why: "overlay refuses such a filesystem on most kernels", Mend: "make the filesystem anew without casefold"}, true
	}
	return Finding{}, false
}

// storageVariables are those by which the storage library is told something else than storage.conf says.
var storageVariables = []struct{ name, why string }{
	{"CONTAINERS_STORAGE_CONF", "this file is read in the place of /etc/containers/storage.conf and of all drop-ins"},
	{"STORAGE_DRIVER", "it is stronger than the driver in storage.conf"},
	{"STORAGE_OPTS", "it takes the place of the options in storage.conf, additionalimagestores among them"},
	{"CONTAINER_STORAGE_DRIVER", "CRI-O takes it for its storage driver"},
	{"CONTAINER_STORAGE_OPT", "CRI-O takes it for its storage options"},
}

// maxUnits bounds how many units are looked through for variables.
const maxUnits = 4096

// checkOtherFiles asks whether an engine goes by something else than the files that were looked at.
func (v *view) checkOtherFiles() error {
	report := func(w word, name, why string) {
		f := Finding{ID: "NB034", Severity: Warning, What: fmt.Sprintf("%s is set to %q", name, w.text), File: w.file, Line: w.line, Why: why, Mend: "take it out, or see to it that the store is named there too"}
		switch {
		case name == "CONTAINERS_STORAGE_CONF":
			if within(w.text, mainConf) && len(w.text) == len(mainConf) {
				return
			}
			if data, ok := v.text(w.text); ok {
				if c, err := storageconf.Stores(data); err == nil && v.namesAll(c) {
					return
				}
			}
			f.Severity = Error
		case strings.HasSuffix(name, "STORAGE_DRIVER"):
			if isOverlay(w.text) {
				return
			}
			f.Severity = Error
		case v.optionNamesAll(w.text):
			return
		}
		v.add(f)
	}
	for _, w := range v.environments() {
		for _, s := range storageVariables {
			if value, ok := strings.CutPrefix(w.text, s.name+"="); ok {
				report(word{value, w.file, w.line}, s.name, s.why)
			}
		}
	}
	exec := v.crio().unit.exec
	if w, ok := flag(exec, "storage-driver"); ok && !isOverlay(w.text) {
		report(w, "STORAGE_DRIVER", "CRI-O's command line is stronger than storage.conf")
	}
	for _, name := range []string{"config", "config-dir"} {
		usual := map[string]string{"config": "/etc/crio/crio.conf", "config-dir": "/etc/crio/crio.conf.d"}[name]
		if w, ok := flag(exec, name); ok && path.Clean(w.text) != usual {
			v.add(Finding{ID: "NB034", Severity: Warning, What: fmt.Sprintf("CRI-O is started with --%s %s", name, w.text), File: w.file, Line: w.line,
				Why: "what is there was not looked at", Mend: "use " + usual})
		}
	}
	for _, n := range []string{"/root/.config/containers/storage.conf", "/root/.config/containers/storage.conf.d"} {
		if _, err := v.stat(n); err == nil {
			data, _ := v.text(n)
			if c, err := storageconf.Stores(data); data != nil && err == nil && v.namesAll(c) {
				continue
			}
			v.add(Finding{ID: "NB034", Severity: Warning, What: "root has a storage configuration of its own", File: n,
				Why: "podman 6 and later, started by root, goes by it before /etc/containers", Mend: "remove it, or name the store in it"})
		}
	}
	return nil
}

// namesAll says whether a configuration names every read-only store.
func (v *view) namesAll(c storageconf.Config) bool {
	for _, s := range v.readOnly() {
		if !v.names(c, s) {
			return false
		}
	}
	return true
}

// optionNamesAll says the same of storage options on a command line.
func (v *view) optionNamesAll(opts string) bool {
	for _, s := range v.readOnly() {
		if !strings.Contains(opts, "imagestore="+s.Path) {
			return false
		}
	}
	return true
}

// environments are the variables of all services, of systemd's manager, and of CRI-O's files.
func (v *view) environments() []word {
	env := slices.Clone(v.crio().unit.env)
	files := 0
	var units []string
	for _, dir := range serviceDirs {
		for _, n := range v.list(dir) {
			switch {
			case strings.HasSuffix(n, ".service"):
				units = append(units, path.Join(dir, n))
			case strings.HasSuffix(n, ".service.d"):
				for _, d := range v.list(path.Join(dir, n)) {
					if strings.HasSuffix(d, ".conf") {
						units = append(units, path.Join(dir, n, d))
					}
				}
			}
		}
	}
	for _, u := range units {
		if files++; files > maxUnits {
			v.unseen("the environments of units", fmt.Errorf("there are %d units, of which the first %d were looked at", len(units), maxUnits))
			break
		}
		if !v.is(u, tar.TypeReg) {
			continue
		}
		text, ok := v.text(u)
		if !ok || !strings.Contains(string(text), "STORAGE_") {
			continue
		}
		for _, s := range settings(text, "Service") {
			if s.key == "Environment" {
				for _, w := range splitWords(s.value) {
					env = append(env, word{w, u, s.line})
				}
			}
		}
	}
	for _, f := range append([]string{"/etc/systemd/system.conf"}, v.inDirs([]string{"/etc/systemd/system.conf.d", "/usr/lib/systemd/system.conf.d"}, ".conf")...) {
		if text, ok := v.text(f); ok {
			for _, s := range settings(text, "Manager") {
				if s.key == "DefaultEnvironment" || s.key == "ManagerEnvironment" {
					for _, w := range splitWords(s.value) {
						env = append(env, word{w, f, s.line})
					}
				}
			}
		}
	}
	return env
}

// checkStorageOption asks whether an old CRI-O loses the store to its storage_option.
func (v *view) checkStorageOption() error {
	t, err := v.config()
	if err != nil {
		return err
	}
	p, _ := v.program(crioPrograms...)
	library := p.dep(storageModules...)
	if t.CRIOConfig.OptionsFile < 0 || between(library, [2]string{"1.37.0", "9999.0.0"}) {
		return nil
	}
	for _, s := range v.readOnly() {
		edits, err := storageconf.Plan(v.o.Root.Tree, func(name string) (string, error) {
			at, err := v.sys.Locate(name)
			if err != nil {
				return "", err
			}
			_, err = v.o.Root.Tree.Stat(at.Path)
			return at.Path, err
		}, s.Path)
		if errors.Is(err, storageconf.ErrConflict) || errors.Is(err, storageconf.ErrDriver) {
			continue // other checks say so
		}
		if err != nil {
			return err
		}
		for _, e := range edits.Files {
			if within(e.Name, "/etc/crio") {
				f := Finding{ID: "NB035", Severity: Error, What: fmt.Sprintf("storage_option does not name the store %s", s.Path), File: e.Name, Line: keyLine(e.Old, "storage_option"),
					Why:  "in CRI-O before 1.23 it takes the place of the stores in storage.conf (cri-o/cri-o#5435)",
					Mend: fmt.Sprintf("add \"overlay.imagestore=%s\" to storage_option; nodebake build does", s.Path)}
				if library == "" {
					f.Severity = Warning
					f.Why += "; which version is on the disk is not known"
				}
				v.add(f)
			}
		}
	}
	return nil
}

// checkRuntime asks whether kubelet's runtime is one that reads the store.
func (v *view) checkRuntime() error {
	k := v.kubelet()
	if !k.present {
		return nil
	}
	w, ok := k.setting("container-runtime-endpoint", "containerRuntimeEndpoint")
	switch {
	case ok && (strings.Contains(w.text, "containerd") || strings.Contains(w.text, "docker")):
	case !ok && !v.crio().present && (v.is("/usr/bin/containerd", tar.TypeReg) || v.is("/usr/local/bin/containerd", tar.TypeReg)):
		w = word{text: "containerd, the only runtime on the disk", file: "/usr/bin/containerd"}
	default:
		return nil
	}
	v.add(Finding{ID: "NB036", Severity: Error, What: "kubelet's container runtime is " + strings.TrimPrefix(w.text, "unix://"), File: w.file, Line: w.line,
		Why: "it keeps images of its own and does not read this store, which CRI-O and podman read", Mend: "use CRI-O on this node"})
	return nil
}
