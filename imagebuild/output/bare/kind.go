package bare

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Errors of ParseKind and Options.Check.
var (
	// ErrFormat is matched where a name asks for a format that is not written.
	ErrFormat = errors.New("format not written")
	// ErrLevel is matched where a level is not one of its kind's.
	ErrLevel = errors.New("no such compression level")
)

// Kind says how a file holds a disk's contents. It is the last part of the file's name.
type Kind string

// The kinds. Plain is the contents as they are.
const (
	Plain Kind = ""
	Zstd  Kind = "zst"
	Gzip  Kind = "gz"
	XZ    Kind = "xz"
)

// converters are the formats that qemu-img makes of a disk, with the options that their readers want.
var converters = map[string]string{
	"vmdk": "vmdk -o subformat=streamOptimized",
	"ova":  "vmdk -o subformat=streamOptimized",
	"vhd":  "vpc -o subformat=fixed,force_size=on",
	"vpc":  "vpc -o subformat=fixed,force_size=on",
	"vhdx": "vhdx -o subformat=dynamic",
	"vdi":  "vdi",
	"qed":  "qed",
	"qcow": "qcow",
}

// ParseKind tells by a file's name how it will hold the disk: .zst, .gz and .xz are compressed kinds, whatever stands
// before them (.raw.zst, .img.gz, node-1.31.xz), and any other name is Plain, be it a raw disk's or not.
//
// Names that would lie are errors that match ErrFormat and say what to do instead: virtual machines' formats (.vmdk,
// .vhd, .vhdx, .vdi, .ova and so on, with the qemu-img line that makes them), other compressed kinds (.bz2, .lz4),
// and compressed kinds of something that is no raw disk (.qcow2.gz, .tar.xz).
func ParseKind(name string) (Kind, error) {
	base := path.Base(name)
	last := extension(base)
	switch kind := Kind(last); kind {
	case Zstd, Gzip, XZ:
		inner := extension(strings.TrimSuffix(base, path.Ext(base)))
		switch inner {
		case "qcow2":
			return "", fmt.Errorf("%w: %s would be a qcow2 inside .%s, but what is compressed is a raw disk; name it .raw.%s, or write a qcow2 that is compressed itself", ErrFormat, name, kind, kind)
		case "tar", "cpio", "iso", "zip":
			return "", fmt.Errorf("%w: %s would be a .%s inside .%s, but what is compressed is a raw disk; name it .raw.%s", ErrFormat, name, inner, kind, kind)
		}
		if err := foreign(name, inner); err != nil {
			return "", err
		}
		return kind, nil
	case "gzip", "zstd", "bz2", "lz4", "lzo", "lzma", "zip", "br", "tgz", "txz", "tzst", "tar", "7z":
		return "", fmt.Errorf("%w: %s: raw disks are compressed as .zst, .gz and .xz", ErrFormat, name)
	}
	return Plain, foreign(name, last)
}

func foreign(name, ext string) error {
	to, ok := converters[ext]
	if !ok {
		return nil
	}
	stem := strings.TrimSuffix(name, path.Ext(name))
	if k := extension(name); k != ext {
		stem = strings.TrimSuffix(stem, path.Ext(stem))
	}
	target := ext
	more := ""
	if ext == "ova" {
		target = "vmdk"
		more = ", and then an OVF tool of the hypervisor's, for a machine's description belongs to it"
	}
	return fmt.Errorf("%w: %s: write %s and then: qemu-img convert -O %s %s %s%s",
		ErrFormat, name, quote(stem+".qcow2"), to, quote(stem+".qcow2"), quote(stem+"."+target), more)
}

// extension is what stands behind the last dot, in small letters.
func extension(name string) string {
	return strings.ToLower(strings.TrimPrefix(path.Ext(name), "."))
}

// quote makes one word of a shell's of a name.
func quote(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%,=", r))
	}) < 0 && s[0] != '-' {
		return s
	}
	if strings.HasPrefix(s, "-") {
		s = "./" + s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// levels are the least, the usual and the highest level of each kind.
var levels = map[Kind]struct{ min, usual, max int }{
	Zstd: {1, 3, 22},
	Gzip: {1, 6, 9},
	XZ:   {},
}

// Check refuses a kind that does not exist and, with ErrLevel, a level that its kind does not have.
func (o Options) Check() error {
	if o.Kind == Plain {
		if o.Level != 0 {
			return fmt.Errorf("%w: %d; a plain raw disk is not compressed", ErrLevel, o.Level)
		}
		return nil
	}
	l, ok := levels[o.Kind]
	if !ok {
		return fmt.Errorf("%w: %q; .zst, .gz and .xz are", ErrFormat, string(o.Kind))
	}
	if o.Level != 0 && l.max == 0 {
		return fmt.Errorf("%w: %d; .%s has one way to compress", ErrLevel, o.Level, o.Kind)
	}
	if o.Level != 0 && (o.Level < l.min || o.Level > l.max) {
		return fmt.Errorf("%w: %d; .%s has %d to %d, usually %d", ErrLevel, o.Level, o.Kind, l.min, l.max, l.usual)
	}
	return nil
}
