package sbom

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/sbom/rpmdb"
)

// errContent says that a database is not what it should be, which is a fault of the image and not of the disk.
var errContent = errors.New("it cannot be read as a package database")

const (
	// maxText bounds a database in text form; the largest known are of some 10 MiB.
	maxText = 256 << 20
	// maxLine bounds a line of one.
	maxLine = 1 << 20
	// maxField bounds what is kept of a field.
	maxField = 16 << 10
)

// stanzas calls yield with the wanted fields of each paragraph of a text of "Key: value" lines, which blank lines part.
// Lines that begin with a blank go on with the field before, and are left out.
func stanzas(r io.Reader, sep string, wanted map[string]bool, yield func(map[string]string) error) error {
	sc := bufio.NewScanner(&limited{r: r, left: maxText})
	sc.Buffer(make([]byte, 0, 64<<10), maxLine)
	fields := map[string]string{}
	end := func() error {
		if len(fields) == 0 {
			return nil
		}
		err := yield(fields)
		clear(fields)
		return err
	}
	for sc.Scan() {
		line := sc.Text()
		if strings.TrimSpace(line) == "" {
			if err := end(); err != nil {
				return err
			}
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			continue
		}
		key, value, ok := strings.Cut(line, sep)
		if !ok {
			return fmt.Errorf("%w: a line without %q: %.40q", errContent, sep, line)
		}
		if !wanted[key] {
			continue
		}
		value = strings.TrimSpace(value)
		if len(value) > maxField {
			return fmt.Errorf("%w: the field %s has %d bytes", errContent, key, len(value))
		}
		if _, twice := fields[key]; twice {
			return fmt.Errorf("%w: a paragraph has the field %s twice", errContent, key)
		}
		fields[key] = value
	}
	if err := sc.Err(); errors.Is(err, bufio.ErrTooLong) || errors.Is(err, errContent) {
		return fmt.Errorf("%w: a line of more than %d bytes, or a file of more than %d", errContent, maxLine, maxText)
	} else if err != nil {
		return err
	}
	return end()
}

// limited is a reader that fails where more comes than it should.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errContent
	}
	return n, err
}

var dpkgFields = map[string]bool{"Package": true, "Status": true, "Version": true, "Architecture": true, "Source": true, "Maintainer": true, "Homepage": true}

// readDpkg reads dpkg's status file (deb822(5), dpkg-query(1)). Packages of which only configuration files are left
// are left out.
func readDpkg(r io.Reader, yield func(Package) error) error {
	return stanzas(r, ":", dpkgFields, func(f map[string]string) error {
		// "want flag status"; files of distroless images have none.
		if s, ok := f["Status"]; ok {
			words := strings.Fields(s)
			if len(words) != 3 {
				return fmt.Errorf("%w: %s has the status %q", errContent, f["Package"], s)
			}
			if words[2] == "not-installed" || words[2] == "config-files" {
				return nil
			}
		}
		if f["Package"] == "" || f["Version"] == "" {
			return fmt.Errorf("%w: a package with the name %q and the version %q", errContent, f["Package"], f["Version"])
		}
		p := Package{Type: "deb", Name: f["Package"], Version: f["Version"], Arch: f["Architecture"], Maintainer: f["Maintainer"], Homepage: f["Homepage"]}
		// "name (version)" where either differs from the package's own.
		p.Source, p.SourceVersion, _ = strings.Cut(f["Source"], " ")
		p.SourceVersion = strings.Trim(p.SourceVersion, "()")
		return yield(p)
	})
}

var apkFields = map[string]bool{"P": true, "V": true, "A": true, "L": true, "o": true, "m": true, "U": true}

// readApk reads apk's list of installed packages (apk-package(5)).
func readApk(r io.Reader, yield func(Package) error) error {
	return stanzas(r, ":", apkFields, func(f map[string]string) error {
		if f["P"] == "" || f["V"] == "" {
			return fmt.Errorf("%w: a package with the name %q and the version %q", errContent, f["P"], f["V"])
		}
		p := Package{Type: "apk", Name: f["P"], Version: f["V"], Arch: f["A"], License: f["L"], Maintainer: f["m"], Homepage: f["U"]}
		if f["o"] != p.Name {
			p.Source = f["o"]
		}
		return yield(p)
	})
}

// readRPM reads an RPM database. Public keys, which RPM keeps as packages, are left out.
func readRPM(file, wal *io.SectionReader, yield func(Package) error) error {
	db, err := rpmdb.Open(file, wal)
	if err != nil {
		return rpmError(err)
	}
	for p, err := range db.Packages() {
		if err != nil {
			return rpmError(err)
		}
		if p.Arch == "" && p.Name == "gpg-pubkey" {
			continue
		}
		version := p.Version
		if p.Release != "" {
			version += "-" + p.Release
		}
		if err := yield(Package{Type: "rpm", Name: p.Name, Version: version, Epoch: p.Epoch, Arch: p.Arch, Source: p.SourceRPM, License: p.License,
			Vendor: p.Vendor, Homepage: p.URL}); err != nil {
			return err
		}
	}
	return nil
}

func rpmError(err error) error {
	if errors.Is(err, rpmdb.ErrCorrupt) || errors.Is(err, rpmdb.ErrFormat) {
		return fmt.Errorf("%w: %w", errContent, err)
	}
	return err
}
