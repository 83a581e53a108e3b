package sbom

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/google/uuid"
)

// Format is a kind of document.
type Format string

// The formats that Write knows.
const (
	SPDX      Format = "spdx-json"
	CycloneDX Format = "cyclonedx-json"
)

// ErrFormat says that a format is not known.
var ErrFormat = errors.New("unknown format of a bill of materials")

// ParseFormat reads a format's name. Errors match ErrFormat.
func ParseFormat(s string) (Format, error) {
	switch f := Format(s); f {
	case SPDX, CycloneDX:
		return f, nil
	}
	return "", fmt.Errorf("%w: %q; give %s or %s", ErrFormat, s, SPDX, CycloneDX)
}

// Ending is what names of files of the format end in by custom, the dot included.
func (f Format) Ending() string {
	if f == CycloneDX {
		return ".cdx.json"
	}
	return ".spdx.json"
}

// Write writes the document. It is made twice: its identity is a UUID of its content. Memory does not grow with the
// document.
func (d *Document) Write(w io.Writer, f Format) error {
	write := d.writeSPDX
	switch f {
	case SPDX:
	case CycloneDX:
		write = d.writeCycloneDX
	default:
		return fmt.Errorf("%w: %q", ErrFormat, f)
	}
	sum := sha256.New()
	if err := write(sum, uuid.Nil); err != nil {
		return err
	}
	return write(w, uuid.NewSHA1(uuid.NameSpaceOID, sum.Sum(nil)))
}

// object writes a JSON object of which some lists are long, an element a line.
type object struct {
	w    *bufio.Writer
	some bool
	line bytes.Buffer
	err  error
}

func newObject(w io.Writer) *object { return &object{w: bufio.NewWriterSize(w, 64<<10)} }

// value writes any value in one line.
func (o *object) value(v any) {
	if o.err != nil {
		return
	}
	o.line.Reset()
	e := json.NewEncoder(&o.line)
	e.SetEscapeHTML(false)
	if o.err = e.Encode(v); o.err == nil {
		_, o.err = o.w.Write(bytes.TrimSuffix(o.line.Bytes(), []byte("\n")))
	}
}

func (o *object) text(s string) {
	if o.err == nil {
		_, o.err = o.w.WriteString(s)
	}
}

func (o *object) name(n string) {
	if o.some {
		o.text(",\n")
	} else {
		o.text("{\n")
	}
	o.some = true
	o.text(`  "` + n + `": `)
}

func (o *object) field(name string, v any) {
	o.name(name)
	o.value(v)
}

// list writes a list, or nothing where it has no elements.
func (o *object) list(name string, elements iter.Seq[any]) {
	n := 0
	for e := range elements {
		if n++; n == 1 {
			o.name(name)
			o.text("[\n    ")
		} else {
			o.text(",\n    ")
		}
		o.value(e)
		if o.err != nil {
			return
		}
	}
	if n > 0 {
		o.text("\n  ]")
	}
}

func (o *object) end() error {
	o.text("\n}\n")
	if o.err == nil {
		o.err = o.w.Flush()
	}
	return o.err
}

// The identifiers of a document's elements, of letters, digits, dots and hyphens, as SPDX asks for.
const (
	diskID   = "Disk"
	systemID = "OperatingSystem"
)

func (im *Image) id() string {
	store := sha256.Sum256([]byte(im.Store))
	return fmt.Sprintf("Image-%.32s-%.4x", im.ImageID, store[:4])
}

func (p *Package) id() string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, p.Name)
	return "Package-" + p.Type + "-" + name[:min(len(name), 60)] + "-" + p.hash
}

// version is how people write a package's.
func (p *Package) version() string {
	if p.Epoch != "" && p.Epoch != "0" {
		return p.Epoch + ":" + p.Version
	}
	return p.Version
}

// systemName and systemVersion are what a system is called where it may not say so.
func (h *Holder) systemName() string {
	if h.ID == "" {
		return "linux"
	}
	return h.ID
}

const timeFormat = "2006-01-02T15:04:05Z"
