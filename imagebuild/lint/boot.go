package lint

import (
	"archive/tar"
	"fmt"
	"path"
	"slices"
	"strings"
)

// checkMounts asks whether the running system mounts something over a store.
func (v *view) checkMounts() error {
	for _, s := range v.readOnly() {
		if v.hidden(s.Path) {
			_, err := v.o.Root.Writable(v.sys, s.Path)
			v.add(Finding{ID: "NB050", Severity: Error, What: fmt.Sprintf("the store %s is hidden: %v", s.Path, err), File: s.Path,
				Why: "engines do not see what lies below a mount", Mend: "take the mount away, or put the store somewhere else (nodebake build --store)"})
			continue
		}
		unit, err := v.o.Root.MountUnit(v.sys, s.Path)
		if err != nil {
			return err
		}
		if unit != "" {
			v.add(Finding{ID: "NB051", Severity: Warning, What: "a mount unit may mount something over the store " + s.Path, File: unit,
				Why: "nothing on the disk is seen to start it, but a program may", Mend: "remove the unit, or put the store somewhere else"})
		}
	}
	return nil
}

// tmpfilesDirs are where systemd-tmpfiles reads its lines, what counts first in front (tmpfiles.d(5)).
var tmpfilesDirs = []string{"/etc/tmpfiles.d", "/usr/local/lib/tmpfiles.d", "/usr/lib/tmpfiles.d"}

// tmpfile is a line of tmpfiles.d(5).
type tmpfile struct {
	kind      byte
	path, age string
	file      string
	line      int
}

// tmpfileLines reads the lines of a file.
func tmpfileLines(name string, text []byte) []tmpfile {
	var all []tmpfile
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		f := splitWords(strings.TrimSpace(line))
		if len(f) < 2 || f[0] == "" || strings.HasPrefix(f[0], "#") || !strings.HasPrefix(f[1], "/") {
			continue
		}
		t := tmpfile{kind: f[0][0], path: f[1], file: name, line: n}
		if len(f) > 5 && f[5] != "-" {
			t.age = f[5]
		}
		all = append(all, t)
	}
	return all
}

// checkTmpfiles asks whether systemd-tmpfiles removes or empties a store.
func (v *view) checkTmpfiles() error {
	var lines []tmpfile
	for _, name := range v.inDirs(tmpfilesDirs, ".conf") {
		if text, ok := v.text(name); ok {
			lines = append(lines, tmpfileLines(name, text)...)
		}
	}
	for _, s := range v.readOnly() {
		// Exclusions hold for the path and what is below it.
		spared := func(dir string) bool {
			return slices.ContainsFunc(lines, func(t tmpfile) bool {
				return (t.kind == 'x' || t.kind == 'X') && len(t.path) >= len(dir) && coversPath(t.path, s.Path)
			})
		}
		for _, t := range lines {
			f := Finding{ID: "NB052", Severity: Error, File: t.file, Line: t.line, Mend: "take the line out, override the file in /etc/tmpfiles.d, or put the store somewhere else"}
			switch {
			case !coversPath(t.path, s.Path):
				continue
			case t.kind == 'R':
				f.What, f.Why = fmt.Sprintf("systemd-tmpfiles removes %s, and with it the store %s", t.path, s.Path), "it is done at every boot"
			case t.kind == 'D':
				f.What, f.Why = fmt.Sprintf("systemd-tmpfiles empties %s, and with it the store %s", t.path, s.Path), "it is done at every boot"
			case t.age != "" && strings.IndexByte("dDevqQC", t.kind) >= 0 && !spared(t.path):
				f.What, f.Why = fmt.Sprintf("systemd-tmpfiles removes what is older than %s from %s, where the store %s is", t.age, t.path, s.Path), "the files of an image keep the times that they had when it was built"
				f.Mend = fmt.Sprintf("add the line \"x %s\" to a file in /etc/tmpfiles.d, or put the store somewhere else", s.Path)
			default:
				continue
			}
			v.add(f)
		}
	}
	return nil
}

// coversPath says whether a path with shell wildcards is name, or a folder above it.
func coversPath(pattern, name string) bool {
	p, n := strings.Split(strings.Trim(path.Clean(pattern), "/"), "/"), strings.Split(strings.Trim(path.Clean(name), "/"), "/")
	if len(p) > len(n) {
		return false
	}
	for i := range p {
		if ok, err := path.Match(p[i], n[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// cmdline is a line of kernel arguments.
type cmdline struct {
	args []string
	file string
	line int
}

// maxEntries bounds how many boot entries are read.
const maxEntries = 256

// readCmdlines reads the kernel's arguments where boot loaders have them: the boot loader specification's entries,
// GRUB's configuration and environment block, and what new entries are made from.
func (v *view) readCmdlines() []cmdline {
	var all []cmdline
	const entries = "/boot/loader/entries"
	for i, n := range v.list(entries) {
		if i == maxEntries {
			break
		}
		if name := path.Join(entries, n); strings.HasSuffix(n, ".conf") {
			if text, ok := v.text(name); ok {
				all = append(all, cmdlinesOf(name, text, "options")...)
			}
		}
	}
	for _, name := range []string{"/boot/grub2/grub.cfg", "/boot/grub/grub.cfg"} {
		if text, ok := v.text(name); ok {
			all = append(all, cmdlinesOf(name, text, "linux", "linux16", "linuxefi")...)
		}
	}
	for _, name := range []string{"/boot/grub2/grubenv", "/boot/grub/grubenv", "/etc/default/grub"} {
		if text, ok := v.text(name); ok {
			for _, w := range settings(append([]byte("[]\n"), text...), "") {
				if w.key == "kernelopts" || strings.HasPrefix(w.key, "GRUB_CMDLINE_LINUX") {
					value := w.value
					if w.key != "kernelopts" {
						value = strings.Trim(value, `"'`)
					}
					all = append(all, cmdline{strings.Fields(value), name, w.line - 1})
				}
			}
		}
	}
	if text, ok := v.text("/etc/kernel/cmdline"); ok {
		all = append(all, cmdline{strings.Fields(string(text)), "/etc/kernel/cmdline", 1})
	}
	return all
}

// cmdlinesOf are the lines that begin with one of the words.
func cmdlinesOf(name string, text []byte, words ...string) []cmdline {
	var all []cmdline
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if f := strings.Fields(line); len(f) > 1 && slices.Contains(words, f[0]) {
			all = append(all, cmdline{f[1:], name, n})
		}
	}
	return all
}

// checkKernel asks whether the kernel's arguments put something in the place of the store's folder.
func (v *view) checkKernel() error {
	for _, c := range v.cmdlines() {
		for _, a := range c.args {
			value, ok := strings.CutPrefix(a, "systemd.volatile=")
			if !ok {
				continue
			}
			// systemd-volatile-root.service(8): yes keeps /usr alone, state mounts a tmpfs on /var, overlay keeps all readable.
			for _, s := range v.readOnly() {
				gone := false
				switch strings.ToLower(value) {
				case "state":
					gone = within(s.Path, "/var")
				case "yes", "true", "1", "on", "y", "t":
					gone = !within(s.Path, "/usr")
				}
				if gone {
					v.add(Finding{ID: "NB053", Severity: Error, What: fmt.Sprintf("the kernel argument %s hides the store %s", a, s.Path), File: c.file, Line: c.line,
						Why: "systemd mounts a tmpfs there at every boot", Mend: "nodebake build --karg-delete " + a + ", or put the store below /usr"})
				}
			}
		}
	}
	return nil
}

// checkTransient asks whether ostree gives the system an /etc that forgets what was baked into it.
func (v *view) checkTransient() error {
	if !v.o.Root.Ostree {
		return nil
	}
	for _, name := range []string{"/etc/ostree/prepare-root.conf", "/usr/lib/ostree/prepare-root.conf"} {
		text, ok := v.text(name)
		if !ok {
			continue
		}
		for _, s := range settings(text, "etc") {
			if on := strings.ToLower(s.value); s.key == "transient" && (on == "true" || on == "yes" || on == "1") {
				v.add(Finding{ID: "NB054", Severity: Error, What: "ostree makes /etc anew from /usr/etc at each boot", File: name, Line: s.line,
					Why: "what a bake wrote to /etc/containers/storage.conf is not seen", Mend: "take transient out of [etc], or name the store in /usr/share/containers/storage.conf when the OS is built"})
			}
		}
		break // the first file is the only one that is read
	}
	return nil
}

// firstBoot says whether Ignition would run at the next boot, and what says so.
func (v *view) firstBoot() (string, bool) {
	const mark = "/boot/ignition.firstboot"
	if v.is(mark, tar.TypeReg) {
		return mark, true
	}
	for _, c := range v.cmdlines() {
		for _, a := range c.args {
			if key, value, _ := strings.Cut(a, "="); key == "ignition.firstboot" && value != "0" {
				return c.file, true
			}
		}
	}
	return "", false
}
