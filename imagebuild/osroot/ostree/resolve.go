package ostree

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// Location is where a path of the running system lies on the disk.
type Location struct {
	// System is the path in the running system with every symbolic link followed; it starts with "/". What is
	// mounted over it at run time, as /etc/fstab says, decides whether Path counts.
	System string
	// Path is the path in the root filesystem, or with OnBoot in the boot filesystem that Open was given. It
	// has no leading slash; "." is the filesystem's root.
	Path   string
	OnBoot bool
	// Immutable says that ostree owns it: a file of the deployment outside /etc, an object, a boot link. Adding
	// or changing something there breaks "ostree fsck" or is lost with the next deployment.
	Immutable bool
	// Volatile says that the running system makes it anew at each boot: /run, /dev, /proc and /sys.
	Volatile bool
}

// volatile are the mount points of filesystems that are kept in memory.
var volatile = []string{"/run", "/dev", "/proc", "/sys"}

// Map finds where name, a path of the running system, lies on the disk when deployment d is started. Symbolic
// links are followed as a process of the running system would follow them, so that /home/core becomes
// /var/home/core and a link of /etc that leads to /var leads to the OS's shared folder. The last and any other
// component may be missing: the result can be created. It fails with ErrLoop, with ErrTooLarge, or with the
// reader's error.
func (l *Layout) Map(d Deployment, name string) (Location, error) {
	if len(name) > maxPath {
		return Location{}, fmt.Errorf("%s: %w", clip(name), ErrTooLarge)
	}
	w := walk{origin: name, todo: strings.Split(name, "/")}
	for {
		c, ok, err := w.next()
		if err != nil {
			return Location{}, err
		}
		if !ok {
			return l.place(d, "/"+w.path()), nil
		}
		sys := path.Join("/", w.path(), c)
		var h *tar.Header
		if at := l.place(d, sys); !at.Volatile && !l.mountPoint(sys) {
			r := l.root
			if at.OnBoot {
				r = l.boot
			}
			if h, err = r.Stat(at.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return Location{}, fmt.Errorf("%s: %w", clip(name), err)
			}
		}
		if err := w.take(c, h); err != nil {
			return Location{}, err
		}
	}
}

// mountPoint says whether something of the disk is mounted at sys, whatever lies beneath.
func (l *Layout) mountPoint(sys string) bool {
	switch sys {
	case "/etc", "/var", "/sysroot", "/boot":
		return true
	}
	return false
}

// place finds where a path without symbolic links lies.
func (l *Layout) place(d Deployment, sys string) Location {
	at := Location{System: sys}
	for _, v := range volatile {
		if _, ok := below(sys, v); ok {
			at.Volatile = true
		}
	}
	etc := d.Etc
	if d.TransientEtc {
		etc = d.Path + "/usr/etc"
	}
	if rest, ok := below(sys, "/boot"); ok {
		at.Path = path.Join(l.bootBase, rest)
		at.OnBoot = l.bootBase == "."
		return at
	}
	if rest, ok := below(sys, "/etc"); ok {
		at.Path = path.Join(etc, rest)
	} else if rest, ok := below(sys, "/var"); ok {
		at.Path = path.Join(d.Var, rest)
	} else if rest, ok := below(sys, "/sysroot"); ok {
		at.Path = path.Join(".", rest)
	} else {
		at.Path = path.Join(d.Path, sys)
	}
	at.Immutable = owned(at.Path)
	return at
}

// below says whether p is dir or lies below it, and what follows.
func below(p, dir string) (string, bool) {
	rest, ok := strings.CutPrefix(p, dir)
	return rest, ok && (rest == "" || rest[0] == '/')
}

// owned says whether a path of the root filesystem belongs to ostree: all of /ostree but the shared var folders
// and the etc folders of deployments.
func owned(p string) bool {
	f := strings.Split(p, "/")
	switch {
	case f[0] != "ostree":
		return false
	case len(f) >= 4 && f[1] == "deploy" && f[3] == "var":
		return false
	case len(f) >= 6 && f[1] == "deploy" && f[3] == "deploy" && f[5] == "etc":
		return false
	}
	return true
}
