package storageconf

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
)

// The storage library's own defaults for root on Linux.
const (
	DefaultGraphRoot = "/var/lib/containers/storage"
	DefaultRunRoot   = "/run/containers/storage"
)

// maxSize bounds the configuration files that are parsed, in bytes. The longest
// ones that distributions ship have 10 KiB (storage.conf) and 40 KiB (crio.conf).
// It also bounds how deep tables nest, and so the stack.
const maxSize = 256 << 10

var (
	// ErrStore says that a path cannot serve as an additional image store.
	ErrStore = errors.New("unusable store path")
	// ErrConflict says that the store and a folder that the engine writes to overlap.
	ErrConflict = errors.New("the store overlaps a folder of the engine")
	// ErrDriver says that the configured storage driver cannot use additional stores.
	ErrDriver = errors.New("the storage driver takes no additional image stores")
	// ErrUnsupported says that a file is written in a way that this package does not edit.
	ErrUnsupported = errors.New("cannot edit this file")
)

// A SyntaxError says where a file is not valid TOML. No engine starts with such a file.
type SyntaxError struct {
	Line, Column int // both from 1; 0 if not known
	Msg          string
}

func (e *SyntaxError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("invalid TOML: %s; correct the file or remove it", e.Msg)
	}
	return fmt.Sprintf("line %d, column %d: invalid TOML: %s; correct the file or remove it", e.Line, e.Column, e.Msg)
}

// A Config is what storage.conf files say. Fields that no file sets are zero; see
// [DefaultGraphRoot] and [DefaultRunRoot] for what an engine uses then.
type Config struct {
	Driver                string
	DriverPriority        []string
	GraphRoot             string
	RunRoot               string
	ImageStore            string // read-write store for new images, apart from GraphRoot
	TransientStore        bool
	AdditionalImageStores []string // in the order of search
	AdditionalLayerStores []string
	MountOpt              string // of [storage.options.overlay], else of [storage.options]
	MountProgram          string // likewise
	PullOptions           map[string]string

	// sticky: once a file said {append = true}, the lists of later files append too
	appendImages, appendLayers, appendPriority bool
}

// Stores parses one storage.conf. It returns a *[SyntaxError] if conf is not
// TOML, and an error that names the key if a value has the wrong type.
func Stores(conf []byte) (Config, error) {
	var c Config
	return c, c.overlay(conf)
}

// overlay applies one more file, as an engine with drop-ins does.
func (c *Config) overlay(conf []byte) error {
	doc, err := decode(conf)
	if err != nil {
		return err
	}
	r := reader{doc: doc}
	r.str(&c.Driver, "storage", "driver")
	r.str(&c.GraphRoot, "storage", "graphroot")
	r.str(&c.RunRoot, "storage", "runroot")
	r.str(&c.ImageStore, "storage", "imagestore")
	r.boolean(&c.TransientStore, "storage", "transient_store")
	r.list(&c.DriverPriority, &c.appendPriority, "storage", "driver_priority")
	r.list(&c.AdditionalImageStores, &c.appendImages, "storage", "options", "additionalimagestores")
	r.list(&c.AdditionalLayerStores, &c.appendLayers, "storage", "options", "additionallayerstores")
	r.str(&c.MountOpt, "storage", "options", "mountopt")
	r.str(&c.MountOpt, "storage", "options", "overlay", "mountopt")
	r.str(&c.MountProgram, "storage", "options", "mount_program")
	r.str(&c.MountProgram, "storage", "options", "overlay", "mount_program")
	if v, ok := r.get("storage", "options", "pull_options"); ok {
		m, isTable := v.(map[string]any)
		if !isTable {
			r.fail("a table", "storage", "options", "pull_options")
		}
		merged := maps.Clone(c.PullOptions)
		for _, k := range slices.Sorted(maps.Keys(m)) {
			var s string
			r.str(&s, "storage", "options", "pull_options", k)
			if merged == nil {
				merged = make(map[string]string)
			}
			merged[k] = s
		}
		c.PullOptions = merged
	}
	return r.err
}

// Lists reports whether the store is among AdditionalImageStores, as the engine
// splits and cleans them.
func (c Config) Lists(store string) bool {
	return slices.ContainsFunc(c.AdditionalImageStores, func(e string) bool { return lists(e, store) })
}

// lists reports whether one element, which may name several stores, names this one.
func lists(elem, store string) bool {
	return slices.ContainsFunc(strings.Split(elem, ","), func(s string) bool {
		return path.Clean(strings.TrimSpace(s)) == path.Clean(store)
	})
}

// Default returns a whole storage.conf for a disk that has none: the overlay
// driver, the usual folders, and store as the only additional image store.
func Default(store string) []byte {
	return []byte(`# Made by nodebake, because the disk had no storage.conf.
# See containers-storage.conf(5).

[storage]
driver = "overlay"
runroot = "` + DefaultRunRoot + `"
graphroot = "` + DefaultGraphRoot + `"

[storage.options]
# Read-only image stores, in the order of search.
additionalimagestores = [
  ` + Quote(store) + `,
]
`)
}

// cleanStore returns store as the engine will name it. A store is refused if it
// would not survive the way through the engine: option lists are split at commas,
// overlay mount options at commas and colons with a backslash as the escape, and
// values are trimmed.
func cleanStore(store string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%w %q: %s", ErrStore, store, why)
	}
	switch {
	case !path.IsAbs(store):
		return bad("it must be absolute")
	case path.Clean(store) == "/":
		return bad("it must not be the root folder")
	case !utf8.ValidString(store):
		return bad("it is not UTF-8")
	case strings.ContainsAny(store, `,:\`):
		return bad(`the engine cannot take a comma, colon or backslash in it`)
	case strings.TrimSpace(store) != store:
		return bad("it starts or ends with white space")
	case strings.ContainsFunc(store, unicode.IsControl):
		return bad("it has control characters")
	}
	return path.Clean(store), nil
}

// Quote returns s as a TOML basic string, in the form that all versions of TOML share.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsControl(r):
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

const bom = "\xef\xbb\xbf"

// decode parses a whole file strictly.
func decode(conf []byte) (map[string]any, error) {
	if len(conf) > maxSize {
		return nil, fmt.Errorf("%w: it has %d bytes, more than %d", ErrUnsupported, len(conf), maxSize)
	}
	doc := make(map[string]any)
	err := toml.Unmarshal([]byte(strings.TrimPrefix(string(conf), bom)), &doc)
	if de := (*toml.DecodeError)(nil); errors.As(err, &de) {
		line, col := de.Position()
		return nil, &SyntaxError{Line: line, Column: col, Msg: strings.TrimPrefix(de.Error(), "toml: ")}
	}
	if err != nil {
		return nil, &SyntaxError{Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	return doc, nil
}

// A reader takes typed values out of a decoded file. As in the engines' TOML
// library, keys match whatever their case; the first fault is kept.
type reader struct {
	doc map[string]any
	err error
}

func (r *reader) fail(want string, key ...string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s must be %s, or the engine does not start", strings.Join(key, "."), want)
	}
}

func (r *reader) get(key ...string) (any, bool) {
	var v any = r.doc
	for i, k := range key {
		m, ok := v.(map[string]any)
		if !ok {
			r.fail("a table", key[:i]...)
			return nil, false
		}
		name, found, err := fold(m, k)
		if err != nil && r.err == nil {
			r.err = err
		}
		if !found {
			return nil, false
		}
		v = m[name]
	}
	return v, true
}

// fold finds the key of m that equals k but for case. Two of them are an error,
// because the engines' library takes either, at random.
func fold(m map[string]any, k string) (name string, found bool, err error) {
	var names []string
	for n := range m {
		if strings.EqualFold(n, k) {
			names = append(names, n)
		}
	}
	switch slices.Sort(names); len(names) {
	case 0:
		return "", false, nil
	case 1:
		return names[0], true, nil
	}
	return "", false, fmt.Errorf("%w: it has the keys %q, which engines do not tell apart", ErrUnsupported, names)
}

func (r *reader) str(dst *string, key ...string) {
	if v, ok := r.get(key...); ok {
		s, isString := v.(string)
		if !isString {
			r.fail("a string", key...)
			return
		}
		*dst = s
	}
}

func (r *reader) boolean(dst *bool, key ...string) {
	if v, ok := r.get(key...); ok {
		b, isBool := v.(bool)
		if !isBool {
			r.fail("true or false", key...)
			return
		}
		*dst = b
	}
}

// list reads an array of strings, which may hold {append = true} or {append = false}.
func (r *reader) list(dst *[]string, app *bool, key ...string) {
	v, ok := r.get(key...)
	if !ok {
		return
	}
	items, isArray := v.([]any)
	if !isArray {
		r.fail("an array of strings", key...)
		return
	}
	var got []string
	for _, it := range items {
		switch it := it.(type) {
		case string:
			got = append(got, it)
		case map[string]any:
			b, isBool := it["append"].(bool)
			if len(it) > 1 || len(it) == 1 && !isBool {
				r.fail("an array of strings", key...)
				return
			}
			if len(it) == 1 {
				*app = b
			}
		default:
			r.fail("an array of strings", key...)
			return
		}
	}
	if *app {
		*dst = append(slices.Clip(*dst), got...)
		return
	}
	*dst = got
}
