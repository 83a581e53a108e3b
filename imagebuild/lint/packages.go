package lint

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/sbom/rpmdb"
)

const (
	dpkgStatus = "/var/lib/dpkg/status"
	// maxStatus bounds dpkg's database; Debian's with all of its packages would have 80 MB.
	maxStatus = 256 << 20
)

// wanted are the packages whose version matters.
var wanted = []string{"cri-o", "podman", "kubelet", "kubeadm"}

// RPM's databases: the folders that distributions have it in, and the names of its files.
var (
	rpmDirs  = []string{"/usr/lib/sysimage/rpm", "/usr/share/rpm", "/var/lib/rpm"}
	rpmFiles = []string{"rpmdb.sqlite", "Packages.db", "Packages"}
)

// maxPackages bounds how many packages of an RPM database are looked at.
const maxPackages = 1 << 18

// rpmVersions reads the versions of wanted packages.
func rpmVersions(file, wal *io.SectionReader, into map[string]string) error {
	db, err := rpmdb.Open(file, wal)
	if err != nil {
		return err
	}
	n := 0
	for p, err := range db.Packages() {
		if err != nil {
			return err
		}
		if n++; n > maxPackages {
			return fmt.Errorf("it has more than %d packages", maxPackages)
		}
		if slices.Contains(wanted, p.Name) && into[p.Name] == "" && p.Version != "" {
			into[p.Name] = upstream(p.Version)
		}
	}
	return nil
}

// readPackages reads the versions of the wanted packages from dpkg's and RPM's databases.
func (v *view) readPackages() map[string]string {
	found := map[string]string{}
	r, err := v.open(dpkgStatus)
	switch {
	case err == nil:
		if err := dpkgVersions(io.LimitReader(r, maxStatus), found); err != nil {
			v.unseen(dpkgStatus, err)
		}
	case !isMissing(err):
		v.unseen(dpkgStatus, err)
	}
	for _, dir := range rpmDirs {
		for _, name := range rpmFiles {
			at := path.Join(dir, name)
			file, err := v.open(at)
			if isMissing(err) {
				continue
			}
			if err == nil {
				wal, _ := v.open(at + "-wal")
				err = rpmVersions(file, wal, found)
			}
			if err != nil {
				v.unseen(at, err)
			}
			break // of one folder the first database counts, as for RPM
		}
	}
	return found
}

// dpkgVersions reads the versions of wanted packages that are installed (deb-control(5), dpkg-query(1)).
func dpkgVersions(r io.Reader, into map[string]string) error {
	b := bufio.NewReaderSize(r, 64<<10)
	var name, version string
	installed := false
	flush := func() {
		if installed && slices.Contains(wanted, name) && version != "" {
			into[name] = upstream(version)
		}
		name, version, installed = "", "", false
	}
	for {
		line, err := b.ReadSlice('\n')
		whole := line
		for errors.Is(err, bufio.ErrBufferFull) {
			// The rest of a line that long is no name and no version.
			_, err = b.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		s := strings.TrimRight(string(whole), "\r\n")
		key, value, _ := strings.Cut(s, ":")
		value = strings.TrimSpace(value)
		switch {
		case strings.TrimSpace(s) == "":
			flush()
		case strings.EqualFold(key, "Package"):
			name = value
		case strings.EqualFold(key, "Version"):
			version = value
		case strings.EqualFold(key, "Status"):
			f := strings.Fields(value)
			installed = len(f) > 0 && f[len(f)-1] == "installed"
		}
		if err != nil {
			flush()
			return nil
		}
	}
}

// upstream is a package's version without the epoch and what the distribution adds.
func upstream(v string) string {
	if i := strings.IndexByte(v, ':'); i >= 0 {
		v = v[i+1:]
	}
	if i := strings.IndexAny(v, "-~"); i >= 0 {
		v = v[:i]
	}
	// Debian marks a source that was repacked so.
	if i := strings.Index(v, "+ds"); i >= 0 {
		v = v[:i]
	}
	if i := strings.Index(v, "+dfsg"); i >= 0 {
		v = v[:i]
	}
	return strings.TrimPrefix(v, "v")
}
