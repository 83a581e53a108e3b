package lint

import (
	"archive/tar"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const mainConf = "/etc/containers/storage.conf"

// confName is the main storage.conf's name, and its text.
func confName(t *storageconf.Tree) (string, []byte) {
	if t == nil || t.Main == nil {
		return mainConf, nil
	}
	return t.Main.Name, t.Main.Data
}

// checkStores asks whether there is a store at all, and whether it can be read.
func (v *view) checkStores() error {
	ro := v.readOnly()
	if len(ro) == 0 {
		v.add(Finding{ID: "NB010", Severity: Error, What: "there is no read-only image store on the disk",
			Why:  "every image would have to come from a registry",
			Mend: "nodebake build --base DISK --image REF ... --output NEW"})
	}
	for _, s := range v.stores() {
		if s.err != nil {
			severity := Error
			if s.Primary {
				severity = Warning
			}
			v.add(Finding{ID: "NB011", Severity: severity, What: fmt.Sprintf("the store %s cannot be read: %v", s.Path, s.err), File: s.Path,
				Why:  "an engine that meets a store it cannot read fails for all stores",
				Mend: "nodebake verify DISK says what is wrong; bake the disk again from its base"})
		}
		if s.Primary {
			continue
		}
		for _, lock := range []string{"overlay-images/images.lock", "overlay-layers/layers.lock"} {
			if !v.is(path.Join(s.Path, lock), tar.TypeReg) {
				v.add(Finding{ID: "NB015", Severity: Warning, What: "the store has no " + lock, File: s.Path,
					Why:  "on a filesystem that is mounted read-only an engine cannot make it: older ones fail, newer ones pass over the store (containers/storage#1029, #1763)",
					Mend: "make the file, empty, or bake the store again"})
			}
		}
	}
	return nil
}

// checkNamed asks whether storage.conf names the stores that are there, and none that are not.
func (v *view) checkNamed() error {
	t, err := v.loaded()
	if err != nil {
		f := Finding{ID: "NB018", Severity: Error, What: fmt.Sprintf("the engines' configuration cannot be read: %v", err), File: mainConf,
			Why: "no engine starts with it; what else the configuration may do was not looked at", Mend: "correct the file, or remove it and bake again"}
		// The error says which file it is, before everything else.
		if name, _, ok := strings.Cut(err.Error(), ":"); ok && strings.HasPrefix(name, "/") {
			f.File = name
		}
		var syntax *storageconf.SyntaxError
		if errors.As(err, &syntax) {
			f.Line = syntax.Line
		}
		v.add(f)
		return nil
	}
	name, text := confName(t)
	for _, s := range v.readOnly() {
		in, merged := v.names(t.Config, s), v.names(t.Merged, s)
		who := "podman up to version 5 and CRI-O read that file alone"
		switch {
		case in && merged:
			continue
		case in:
			who = "a drop-in replaces the list for podman 6 and later"
		case merged:
			who = "a drop-in names it, but " + who
		}
		v.add(Finding{ID: "NB012", Severity: Error, What: fmt.Sprintf("the store %s is not among additionalimagestores", s.Path), File: name,
			Line: keyLine(text, "additionalimagestores"), Why: who + ", so the images of the store are not found",
			Mend: fmt.Sprintf("add %q to additionalimagestores in [storage.options]; nodebake build does", s.Path)})
	}
	var seen []string
	for _, c := range []storageconf.Config{t.Config, t.Merged} {
		for _, elem := range c.AdditionalImageStores {
			for _, p := range strings.Split(elem, ",") {
				if p = strings.TrimSpace(p); p == "" || slices.Contains(seen, p) {
					continue
				}
				seen = append(seen, p)
				v.checkListed(t, p)
			}
		}
	}
	return nil
}

// names says whether a configuration names a store, by its name or by another that leads there.
func (v *view) names(c storageconf.Config, s store) bool {
	if c.Lists(s.Path) {
		return true
	}
	for _, elem := range c.AdditionalImageStores {
		for _, p := range strings.Split(elem, ",") {
			if p = strings.TrimSpace(p); strings.HasPrefix(p, "/") && v.root(p) == s.Root {
				return true
			}
		}
	}
	return false
}

// checkListed looks at one path that storage.conf names.
func (v *view) checkListed(t *storageconf.Tree, p string) {
	name, text := confName(t)
	f := Finding{File: name, Line: lineOf(text, p)}
	for _, d := range t.DropIns {
		if f.Line == 0 {
			if at := lineOf(d.Data, p); at > 0 {
				f.File, f.Line = d.Name, at
			}
		}
	}
	if !strings.HasPrefix(p, "/") {
		f.ID, f.Severity, f.What = "NB013", Error, fmt.Sprintf("additionalimagestores has %q, which is not absolute", p)
		f.Why, f.Mend = "engines that use the overlay driver do not start with it", "write the whole path, or take it out"
		v.add(f)
		return
	}
	h, err := v.stat(p)
	switch {
	case isMissing(err) && v.hidden(p):
		f.ID, f.Severity, f.What = "NB014", Info, fmt.Sprintf("the store %s lies on something that is mounted and not on this disk", p)
		f.Why, f.Mend = "if the mount lacks it, no engine starts: overlay: can't stat imageStore dir", "see to it that the mount is there before the engines start"
	case isMissing(err) || err == nil && h.Typeflag != tar.TypeDir:
		f.ID, f.Severity, f.What = "NB013", Error, fmt.Sprintf("additionalimagestores names %s, and there is no such folder", p)
		f.Why, f.Mend = "engines that use the overlay driver do not start: overlay: can't stat imageStore dir", "take it out of the list, or put the store there"
	case err != nil:
		v.unseen(p, err)
		return
	case !v.isStore(p):
		f.ID, f.Severity, f.What = "NB014", Warning, fmt.Sprintf("additionalimagestores names %s, and that folder is no image store", p)
		f.Why, f.Mend = "an engine has to make its lock files there, and on a read-only filesystem older ones fail (containers/storage#1029, #1763)", "take it out of the list, or make overlay-images/images.lock and overlay-layers/layers.lock in it"
	default:
		return
	}
	v.add(f)
}

// isStore says whether a folder has the locks or the records of an image store.
func (v *view) isStore(p string) bool {
	for _, n := range []string{"overlay-images/images.lock", "overlay-images/images.json"} {
		if v.is(path.Join(p, n), tar.TypeReg) {
			return true
		}
	}
	return false
}

// hidden says whether the running system mounts something over a path that this disk does not have.
func (v *view) hidden(p string) bool {
	_, err := v.o.Root.Writable(v.sys, p)
	return errors.Is(err, osroot.ErrHidden)
}

// folder is a folder that an engine writes to, and what becomes of what lies in it.
type folder struct {
	key, path, file, fate string
	line                  int
}

// engineFolders are the folders that engines write to.
func (v *view) engineFolders(t *storageconf.Tree) []folder {
	const (
		wiped   = "CRI-O removes it whole after an unclean stop, and podman system reset too"
		emptied = "it is emptied at every boot"
	)
	name, text := confName(t)
	var all []folder
	add := func(key, p, file string, data []byte, fate string) {
		if p == "" {
			return
		}
		p = strings.NewReplacer("$UID", "0", "${UID}", "0", "$HOME", "/root", "${HOME}", "/root").Replace(p)
		if !strings.HasPrefix(p, "/") || strings.Contains(p, "$") || slices.ContainsFunc(all, func(f folder) bool { return f.path == p }) {
			return
		}
		all = append(all, folder{key, p, file, fate, keyLine(data, key)})
	}
	for _, c := range []storageconf.Config{t.Config, t.Merged} {
		if c.GraphRoot == "" {
			c.GraphRoot = storageconf.DefaultGraphRoot
		}
		if c.RunRoot == "" {
			c.RunRoot = storageconf.DefaultRunRoot
		}
		add("graphroot", c.GraphRoot, name, text, wiped)
		add("imagestore", c.ImageStore, name, text, wiped)
		add("runroot", c.RunRoot, name, text, emptied)
	}
	for _, f := range t.CRIO {
		for _, k := range []struct{ key, fate string }{{"root", wiped}, {"imagestore", wiped}, {"runroot", emptied}} {
			if p, ok := tomlString(f.Data, "crio", k.key); ok {
				add(k.key, p, f.Name, f.Data, k.fate)
			}
		}
	}
	if w, ok := flag(v.crio().unit.exec, "root"); ok {
		all = append(all, folder{"--root", w.text, w.file, wiped, w.line})
	}
	if w, ok := flag(v.crio().unit.exec, "runroot"); ok {
		all = append(all, folder{"--runroot", w.text, w.file, emptied, w.line})
	}
	return all
}

// checkWiped asks whether a store lies where an engine writes, or holds such a place.
func (v *view) checkWiped() error {
	t, err := v.config()
	if err != nil {
		return err
	}
	for _, s := range v.readOnly() {
		for _, f := range v.engineFolders(t) {
			if v.overlap(s.Path, f.path) {
				v.add(Finding{ID: "NB016", Severity: Error, What: fmt.Sprintf("the store %s and the engine's %s %s lie in one another", s.Path, f.key, f.path),
					File: f.file, Line: f.line, Why: f.fate, Mend: "put the store somewhere else: nodebake build --store " + imagebuild.DefaultStore})
			}
		}
	}
	return nil
}
