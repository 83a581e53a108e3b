package sbom

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	// maxProgram bounds how much of a program is read to find what it was built from: its headers, and a section of
	// some kilobytes. What needs more is no Go program, or one whose sections were taken away.
	maxProgram = 8 << 20
	// maxModules bounds the modules of a program; Kubernetes' have some 200.
	maxModules = 20000
)

// errReading says that the disk, and not the program on it, kept it from being read.
type errReading struct{ error }

// bounded reads a program for debug/buildinfo, which takes lengths from it.
type bounded struct {
	r    io.ReaderAt
	left int64
	err  error
}

func (b *bounded) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errContent
	}
	n, err := b.r.ReadAt(p, off)
	if err != nil && err != io.EOF && b.err == nil {
		b.err = errReading{err}
	}
	return n, err
}

// readProgram gives the main module of a Go program and the modules in it, the standard library among them. ok is false
// for anything else.
func readProgram(r io.ReaderAt) (main Package, modules []Package, ok bool, err error) {
	head := make([]byte, len(elf.ELFMAG))
	if _, err := r.ReadAt(head, 0); err == io.EOF {
		return Package{}, nil, false, nil
	} else if err != nil {
		return Package{}, nil, false, errReading{err}
	}
	if !bytes.Equal(head, []byte(elf.ELFMAG)) {
		return Package{}, nil, false, nil
	}
	in := &bounded{r: r, left: maxProgram}
	info, err := readBuildInfo(in)
	if in.err != nil {
		return Package{}, nil, false, in.err
	}
	if err != nil {
		return Package{}, nil, false, nil
	}
	if len(info.Deps) > maxModules {
		return Package{}, nil, false, fmt.Errorf("%w: a program with %d modules", errContent, len(info.Deps))
	}
	main = module(info.Main.Path, info.Main.Version)
	if main.Name == "" {
		main.Name = field(info.Path)
	}
	// "go1.26.0", with experiments after a blank.
	version, _, _ := strings.Cut(info.GoVersion, " ")
	modules = append(modules, module("stdlib", strings.TrimPrefix(version, "go")))
	for _, d := range info.Deps {
		m := module(d.Path, d.Version)
		if r := d.Replace; r != nil {
			// One that is replaced by a folder keeps its name, and no version is right for it.
			if m.Version = ""; r.Version != "" && r.Version != devel {
				m = module(r.Path, r.Version)
			}
		}
		modules = append(modules, m)
	}
	return main, modules, true, nil
}

// readBuildInfo is buildinfo.Read where a program that is not what it seems cannot end this one.
func readBuildInfo(r io.ReaderAt) (info *buildinfo.BuildInfo, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New("no Go program")
		}
	}()
	return buildinfo.Read(r)
}

// devel is the version of what was built from a folder.
const devel = "(devel)"

func module(path, version string) Package {
	if version == devel {
		version = ""
	}
	return Package{Type: "golang", Name: field(path), Version: field(version)}
}

func field(s string) string { return s[:min(len(s), maxField)] }
