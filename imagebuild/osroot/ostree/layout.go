package ostree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrNotOstree says that the root filesystem was not laid out by ostree.
	ErrNotOstree = errors.New("not an ostree disk")
	// ErrNoDeployment says that the disk was laid out by ostree but nothing on it can be started.
	ErrNoDeployment = errors.New("no ostree deployment")
)

// Layout is an ostree disk.
type Layout struct {
	// Deployments can be started, the one that the boot loader starts by default first. There is at least one.
	Deployments []Deployment
	// Unlinked are the paths of deployments that nothing starts: staged for the next shutdown, or left over.
	Unlinked []string
	// Repo is what the object store's configuration says.
	Repo Repo
	// Warnings are sentences about what was passed over.
	Warnings []string

	root, boot Reader
	// bootBase is where the boot filesystem's root lies in boot: "." or, where /boot is a folder of the root, "boot".
	bootBase string
}

// Deployment is one checked-out version of an OS.
type Deployment struct {
	// OS is the name under /ostree/deploy; Checksum the commit's, 64 hex digits; Serial tells deployments of one commit apart.
	OS, Checksum string
	Serial       int
	// Path is the deployment's folder on the root filesystem, "ostree/deploy/OS/deploy/CHECKSUM.SERIAL".
	Path string
	// Etc is the folder that is /etc at run time. NoEtc says that it does not exist yet: then Etc is the
	// pristine usr/etc, whose files must not change.
	Etc   string
	NoEtc bool
	// Var is the folder that is /var at run time, "ostree/deploy/OS/var".
	Var string
	// Refspec is the branch that the origin file follows, or its container image reference.
	Refspec string
	// Entry is the boot loader entry that starts it, nil where it was found without one.
	Entry *Entry
	// TransientEtc and TransientRoot say that prepare-root.conf makes /etc, or all but /var, forget changes at
	// each boot. Composefs is its [composefs] enabled value, such as "yes" or "signed".
	TransientEtc, TransientRoot bool
	Composefs                   string
}

// Root is the value of the last root= kernel argument of the entry, empty without one.
func (d Deployment) Root() string {
	if d.Entry == nil {
		return ""
	}
	if roots := d.Entry.Args("root"); len(roots) > 0 {
		return roots[len(roots)-1]
	}
	return ""
}

// Repo is what /ostree/repo/config says.
type Repo struct {
	// Mode is how objects are stored: "bare" on a disk that boots.
	Mode string
	// SysrootReadonly says that /sysroot is mounted read-only at run time (sysroot.readonly).
	SysrootReadonly bool
	// Bootloader is sysroot.bootloader: "none", "auto", "grub2" and so on.
	Bootloader string
}

// Detect says whether root is the root filesystem of an ostree disk: it has the folders /ostree/repo and
// /ostree/deploy.
func Detect(root Reader) bool {
	return is(root, "ostree/repo", tar.TypeDir) && is(root, "ostree/deploy", tar.TypeDir)
}

// Open reads the layout of an ostree disk. boot is the filesystem mounted at /boot; nil where /boot is a folder
// of the root filesystem. It fails with ErrNotOstree, with ErrNoDeployment, or with ErrTarget where the entry
// that the boot loader would start leads nowhere.
func Open(root, boot Reader) (*Layout, error) {
	if !Detect(root) {
		return nil, fmt.Errorf("%w: /ostree/repo and /ostree/deploy are not both there", ErrNotOstree)
	}
	l := &Layout{root: root, boot: boot, bootBase: "."}
	if boot == nil {
		l.boot, l.bootBase = root, "boot"
	}
	if err := l.readRepo(); err != nil {
		return nil, err
	}
	entries, err := l.entries()
	if err != nil {
		return nil, err
	}
	if err := l.fromEntries(entries); err != nil {
		return nil, err
	}
	if len(l.Deployments) == 0 {
		if err := l.fromLinks(); err != nil {
			return nil, err
		}
	}
	if len(l.Deployments) == 0 {
		return nil, fmt.Errorf("%w: no boot loader entry has ostree=, and /ostree/boot.0 and /ostree/boot.1 lead to none", ErrNoDeployment)
	}
	if err := l.findUnlinked(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Layout) readRepo() error {
	text, err := readText(l.root, ".", "ostree/repo/config", maxText)
	if errors.Is(err, fs.ErrNotExist) {
		l.Warnings = append(l.Warnings, "/ostree/repo has no config file")
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the repository's config: %w", err)
	}
	v := keyFile(text)
	l.Repo = Repo{Mode: v["core.mode"], SysrootReadonly: yes(v["sysroot.readonly"]), Bootloader: v["sysroot.bootloader"]}
	return nil
}

// yes reads a boolean as GLib key files and prepare-root.conf have it.
func yes(s string) bool { return s == "true" || s == "1" || s == "yes" }

// entries reads every boot loader entry, in menu order.
func (l *Layout) entries() ([]Entry, error) {
	dir, err := follow(l.boot, l.bootBase, "loader/entries")
	if err != nil {
		return nil, fmt.Errorf("finding the boot loader entries: %w", err)
	}
	names, err := readDir(l.boot, dir)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, name := range names {
		if !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") {
			continue
		}
		file := path.Join(dir, name)
		if !is(l.boot, file, tar.TypeReg) {
			continue
		}
		text, err := readText(l.boot, ".", file, maxEntry)
		if err != nil {
			return nil, fmt.Errorf("reading boot loader entry: %w", err)
		}
		e, err := ParseEntry(name, text)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	SortEntries(entries)
	return entries, nil
}

// fromEntries finds the deployment of each entry that has an ostree= argument.
func (l *Layout) fromEntries(entries []Entry) error {
	for i := range entries {
		e := &entries[i]
		targets := e.Args("ostree")
		if len(targets) == 0 {
			continue
		}
		// ostree-prepare-root takes the first.
		t, err := ParseTarget(targets[0])
		if err == nil {
			err = l.add(t.Path(), e)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("boot loader entry %s: %w", e.File, err)
		if len(l.Deployments) == 0 {
			return err
		}
		l.Warnings = append(l.Warnings, err.Error())
	}
	return nil
}

// fromLinks finds the deployments of a disk without boot loader entries: those that the active /ostree/boot.N
// links to, the last one that was deployed first.
func (l *Layout) fromLinks() error {
	active, err := l.activeBoot()
	if err != nil || active == "" {
		return err
	}
	oses, err := readDir(l.root, active)
	if err != nil {
		return err
	}
	for _, os := range oses {
		sums, err := readDir(l.root, path.Join(active, os))
		if err != nil {
			return err
		}
		for _, sum := range sums {
			slots, err := readDir(l.root, path.Join(active, os, sum))
			if err != nil {
				return err
			}
			for _, slot := range slots {
				if err := l.add(path.Join(active, os, sum, slot), nil); err != nil {
					l.Warnings = append(l.Warnings, err.Error())
				}
			}
		}
	}
	slices.SortStableFunc(l.Deployments, func(a, b Deployment) int {
		if c := l.deployed(b).Compare(l.deployed(a)); c != 0 {
			return c
		}
		return strings.Compare(a.Path, b.Path)
	})
	return nil
}

// activeBoot is the folder that the active one of /ostree/boot.0 and /ostree/boot.1 leads to, empty for none.
// Where both are there, the boot filesystem's loader.N link tells which was made active last.
func (l *Layout) activeBoot() (string, error) {
	var found []string
	for n := range 2 {
		name := "ostree/boot." + strconv.Itoa(n)
		real, err := follow(l.root, ".", name)
		if err != nil {
			return "", err
		}
		if is(l.root, real, tar.TypeDir) {
			found = append(found, name)
		}
	}
	if len(found) == 2 {
		h, err := l.boot.Stat(path.Join(l.bootBase, "loader"))
		if err != nil || h.Typeflag != tar.TypeSymlink {
			return "", fmt.Errorf("%w: /ostree/boot.0 and /ostree/boot.1 are both there, and /boot/loader does not tell which is active", ErrNoDeployment)
		}
		switch path.Base(h.Linkname) {
		case "loader.0":
			found = found[:1]
		case "loader.1":
			found = found[1:]
		default:
			return "", fmt.Errorf("%w: /ostree/boot.0 and /ostree/boot.1 are both there, and /boot/loader is a link to %q", ErrNoDeployment, clip(h.Linkname))
		}
	}
	if len(found) == 0 {
		return "", nil
	}
	return follow(l.root, ".", found[0])
}

// deployed is when a deployment was made: the time of its origin file, since ostree sets its other times to zero.
func (l *Layout) deployed(d Deployment) time.Time {
	h, err := l.root.Stat(d.Path + ".origin")
	if err != nil {
		return time.Time{}
	}
	return h.ModTime
}

// add appends the deployment that the slot leads to. A deployment that is there already is not added again: an
// earlier entry of the menu starts it.
func (l *Layout) add(slot string, e *Entry) error {
	real, err := follow(l.root, ".", slot)
	if err != nil {
		return fmt.Errorf("%w: /%s: %w", ErrTarget, slot, err)
	}
	os, name, ok := splitDeployment(real)
	if !ok {
		return fmt.Errorf("%w: /%s leads to /%s", ErrTarget, slot, clip(real))
	}
	if !is(l.root, real, tar.TypeDir) {
		return fmt.Errorf("%w: /%s leads to /%s, which is no folder", ErrTarget, slot, real)
	}
	if slices.ContainsFunc(l.Deployments, func(d Deployment) bool { return d.Path == real }) {
		return nil
	}
	sum, serial, ok := splitName(name)
	if !ok {
		return fmt.Errorf("%w: /%s leads to /%s, which is not CHECKSUM.SERIAL", ErrTarget, slot, real)
	}
	d := Deployment{OS: os, Checksum: sum, Serial: serial, Path: real, Etc: real + "/etc",
		Var: "ostree/deploy/" + os + "/var", Entry: e}
	if err := l.describe(&d); err != nil {
		return fmt.Errorf("deployment /%s: %w", real, err)
	}
	l.Deployments = append(l.Deployments, d)
	return nil
}

// splitDeployment reads "ostree/deploy/OS/deploy/NAME".
func splitDeployment(p string) (os, name string, ok bool) {
	f := strings.Split(p, "/")
	if len(f) != 5 || f[0] != "ostree" || f[1] != "deploy" || f[3] != "deploy" {
		return "", "", false
	}
	return f[2], f[4], true
}

// splitName reads CHECKSUM.SERIAL, the checksum being 64 hex digits.
func splitName(name string) (sum string, serial int, ok bool) {
	sum, s, _ := strings.Cut(name, ".")
	if serial, ok = number(s, 1<<30); !ok || len(sum) != 64 {
		return "", 0, false
	}
	for i := range len(sum) {
		if c := sum[i]; !digit(c) && (c < 'a' || c > 'f') {
			return "", 0, false
		}
	}
	return sum, serial, true
}

// describe reads what the deployment's own files say.
func (l *Layout) describe(d *Deployment) error {
	if !is(l.root, d.Etc, tar.TypeDir) {
		d.NoEtc = true
		d.Etc = d.Path + "/usr/etc"
	}
	text, err := readText(l.root, ".", d.Path+".origin", maxText)
	if err == nil {
		v := keyFile(text)
		d.Refspec = v["origin.refspec"]
		if d.Refspec == "" {
			d.Refspec = v["origin.container-image-reference"]
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The program reads its own copy in the initial file system, which is made from these.
	for _, name := range []string{"etc/ostree/prepare-root.conf", "usr/lib/ostree/prepare-root.conf"} {
		text, err := readText(l.root, d.Path, name, maxText)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		v := keyFile(text)
		d.TransientEtc = yes(v["etc.transient"])
		d.TransientRoot = yes(v["root.transient"])
		d.Composefs = v["composefs.enabled"]
		break
	}
	return nil
}

// findUnlinked lists the deployments that nothing starts.
func (l *Layout) findUnlinked() error {
	oses, err := readDir(l.root, "ostree/deploy")
	if err != nil {
		return err
	}
	for _, os := range oses {
		dir := path.Join("ostree/deploy", os, "deploy")
		if !is(l.root, dir, tar.TypeDir) {
			continue
		}
		names, err := readDir(l.root, dir)
		if err != nil {
			return err
		}
		for _, name := range names {
			p := path.Join(dir, name)
			if _, _, ok := splitName(name); !ok || !is(l.root, p, tar.TypeDir) {
				continue
			}
			if !slices.ContainsFunc(l.Deployments, func(d Deployment) bool { return d.Path == p }) {
				l.Unlinked = append(l.Unlinked, p)
			}
		}
	}
	return nil
}
