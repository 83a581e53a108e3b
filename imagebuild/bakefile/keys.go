package bakefile

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Version and Kind are what a file must have as apiVersion and kind.
const (
	Version = "nodebake/v1"
	Kind    = "Bake"
)

// kind is what the value of a key looks like.
type kind int

const (
	text    kind = iota // a string
	amount              // a string or a whole number
	number              // a whole number
	boolean             // true or false
	texts               // a list of strings
	names               // a mapping of strings to strings
	items               // a list of mappings of keys
	group               // a mapping of keys that are settings themselves
)

// place says what a relative path in a value counts from.
type place int

const (
	nowhere place = iota // no path of this machine
	file                 // a path
	dest                 // a path, or a reference that may have one
)

// key is a key of the file.
type key struct {
	name string
	flag string // none for a group and for the fields of items
	kind kind
	at   place
	// help is for keys without a flag, and for those whose flag has another form; else it is the flag's.
	help string
	keys []key // of a group or of items
	// need are the fields that items must have.
	need []string
	// with are the fields that a field needs beside it.
	with []string
	// form is what a string looks like; for names, what their keys look like. why says it.
	form *regexp.Regexp
	why  string
	// most bounds a number, which is then 0 or more.
	most int64
	// dashless refuses "-": that is a stream of the command.
	dashless bool
	// join makes the flag's value of an item's fields; say is what keeps it from that.
	join func(f map[string]string) (value, say string)
}

// maxID is the largest number of a user or group; the next one is none to chown(2).
const maxID = 1<<32 - 2

var (
	octal    = regexp.MustCompile(`^[0-7]{1,4}$`)
	noEquals = regexp.MustCompile(`^[^=]*$`)
	noColon  = regexp.MustCompile(`^[^:]*$`)
	someName = regexp.MustCompile(`^[^=]+$`)
	diskName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
)

// settings are the keys that a file has at its top and in each of its disks.
var settings = []key{
	{name: "base", flag: "base", at: dest},
	{name: "basePath", flag: "base-path"},
	{name: "images", flag: "image", kind: texts},
	{name: "imagesFrom", flag: "images-from", kind: texts, at: file, dashless: true},
	{name: "charts", kind: group, help: "how Helm charts in imagesFrom are rendered", keys: []key{
		{name: "values", flag: "values", kind: texts, at: file, dashless: true},
		{name: "set", flag: "set", kind: texts},
		{name: "kubeVersion", flag: "kube-version"},
	}},
	{name: "tags", flag: "tag", kind: names, form: someName, why: "a name has no =", help: "NEW: REF, another name for the image that is named REF"},
	{name: "output", flag: "output", at: dest},
	{name: "diskPath", flag: "disk-path"},
	{name: "outputFormat", flag: "output-format"},
	{name: "compress", flag: "compress"},
	{name: "clusterSize", flag: "cluster-size", kind: amount},
	{name: "overlay", flag: "overlay", kind: boolean},
	{name: "force", flag: "force", kind: boolean},
	{name: "checksum", flag: "checksum", kind: boolean},
	{name: "bmap", flag: "bmap", kind: boolean},
	{name: "evidence", kind: group, help: "what is told of the disk beside it", keys: []key{
		{name: "sbom", flag: "sbom", kind: texts},
		{name: "provenance", flag: "provenance", kind: boolean},
		{name: "signKey", flag: "sign-key", at: file, dashless: true},
		{name: "signKeyPassword", flag: "sign-key-password", at: file, dashless: true},
	}},
	{name: "platform", flag: "platform"},
	{name: "size", flag: "size", kind: amount},
	{name: "store", flag: "store"},
	{name: "pin", flag: "pin", kind: boolean},
	{name: "storePartition", flag: "store-partition"},
	{name: "root", flag: "root", kind: amount},
	{name: "allowBacking", flag: "allow-backing", kind: boolean},
	{name: "lock", flag: "lock", at: file},
	{name: "locked", flag: "locked", kind: boolean},
	{name: "report", flag: "report", at: file, dashless: true},
	{name: "sources", kind: group, help: "how images are reached, and whom to believe", keys: []key{
		{name: "authfile", flag: "authfile", at: file},
		{name: "policy", flag: "policy", at: file},
		{name: "certDirs", flag: "cert-dir", kind: items, need: []string{"dir"}, join: joinCertDir, help: "folders with certificates and keys", keys: []key{
			{name: "registry", form: someName, why: "a registry has no =", help: "HOST[:PORT] of the registry; without it the folder is for all"},
			{name: "dir", at: file, help: "the folder"},
		}},
		{name: "insecureRegistries", flag: "insecure-registry", kind: texts},
		{name: "tlsVerify", flag: "tls-verify", kind: boolean},
		{name: "cache", flag: "cache", at: file},
		{name: "cacheSize", flag: "cache-size", kind: amount},
		{name: "offline", flag: "offline", kind: boolean},
		{name: "refresh", flag: "refresh", kind: boolean},
		{name: "parallel", flag: "parallel", kind: number},
	}},
	{name: "customize", kind: group, help: "what is changed on the disk beside the store", keys: []key{
		{name: "copy", flag: "copy", kind: items, need: []string{"src", "dst"}, join: joinCopy, help: "files and folders of this machine to copy onto the disk", keys: []key{
			{name: "src", at: file, form: noColon, why: "a path with a colon cannot be copied", help: "the file or folder of this machine"},
			{name: "dst", form: noColon, why: "a path with a colon cannot be copied to", help: "where it goes on the disk"},
			{name: "mode", form: octal, why: `give octal digits, such as "0644"`, help: "its mode, octal digits in quotes"},
			{name: "uid", kind: number, most: maxID, with: []string{"gid", "mode"}, help: "the number of its user"},
			{name: "gid", kind: number, most: maxID, with: []string{"mode", "uid"}, help: "the number of its group"},
		}},
		{name: "write", flag: "write", kind: items, need: []string{"path", "text"}, join: joinWrite, help: "files to write on the disk", keys: []key{
			{name: "path", form: noEquals, why: "a path with = cannot be written to", help: "the file on the disk"},
			{name: "text", help: "what it holds"},
		}},
		{name: "delete", flag: "delete", kind: texts},
		{name: "kargs", kind: group, help: "kernel arguments", keys: []key{
			{name: "append", flag: "karg-append", kind: texts},
			{name: "delete", flag: "karg-delete", kind: texts},
			{name: "replace", flag: "karg-replace", kind: texts},
		}},
		{name: "ignition", flag: "ignition", at: file},
		{name: "ignitionPlatform", flag: "ignition-platform"},
		{name: "hostname", flag: "hostname"},
		{name: "resetIdentity", flag: "reset-identity", kind: boolean},
	}},
}

// The keys that are not settings.
var (
	version = key{name: "apiVersion", form: regexp.MustCompile("^" + regexp.QuoteMeta(Version) + "$"), why: "must be " + Version, help: "the version of this format"}
	kindOf  = key{name: "kind", form: regexp.MustCompile("^" + Kind + "$"), why: "must be " + Kind, help: "what the file is"}
	name    = key{name: "name", form: diskName, why: "give 1 to 63 letters, digits, points, hyphens and underscores, a letter or digit first", help: "the disk's name, by which --disk chooses it"}
	disks   = key{name: "disks", kind: items, need: []string{"name"}, help: "the disks to make, one after the other; without it the file is one disk"}

	topKeys  = slices.Concat([]key{version, kindOf}, settings, []key{disks})
	diskKeys = slices.Concat([]key{name}, settings)
)

func joinCertDir(f map[string]string) (string, string) {
	if host, ok := f["registry"]; ok {
		return host + "=" + f["dir"], ""
	}
	if strings.Contains(f["dir"], "=") {
		return "", "the path of a folder for all registries may have no =, but " + f["dir"] + " has one"
	}
	return f["dir"], ""
}

func joinCopy(f map[string]string) (string, string) {
	if strings.Contains(f["src"], ":") {
		return "", "a path with a colon cannot be copied, and " + f["src"] + " has one"
	}
	value := f["src"] + ":" + f["dst"]
	for _, field := range []string{"mode", "uid", "gid"} {
		if v, ok := f[field]; ok {
			value += ":" + v
		}
	}
	return value, ""
}

func joinWrite(f map[string]string) (string, string) { return f["path"] + "=" + f["text"], "" }

// walk calls visit for every key below keys, with the names that lead to it.
func walk(keys []key, above string, visit func(path string, k *key)) {
	for i := range keys {
		k := &keys[i]
		visit(above+k.name, k)
		if k.kind == group {
			walk(k.keys, above+k.name+".", visit)
		}
	}
}

// Keys gives each flag that has a key, and where that is, as in "customize.kargs.append".
func Keys() map[string]string { return maps.Clone(keyOf()) }

var keyOf = sync.OnceValue(func() map[string]string {
	m := map[string]string{}
	walk(settings, "", func(path string, k *key) {
		if k.flag != "" {
			m[k.flag] = path
		}
	})
	return m
})

var flagIn = regexp.MustCompile(`--[a-z][a-z-]*[a-z]`)

// Translate puts keys in the place of flags in a sentence, but for those that were given as flags, and gives the flags
// that it replaced.
func Translate(sentence string, given func(flag string) bool) (translated string, flags []string) {
	keys := keyOf()
	return flagIn.ReplaceAllStringFunc(sentence, func(f string) string {
		k, ok := keys[f[2:]]
		if !ok || given != nil && given(f[2:]) {
			return f
		}
		flags = append(flags, f[2:])
		return k
	}), flags
}
