package lint

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const (
	// maxIgnition bounds an Ignition configuration and an initial file system that holds one.
	maxIgnition = 32 << 20
	// maxCpio bounds the entries of an initial file system.
	maxCpio = 1 << 16
)

// resource is where Ignition gets something (its specification, "resource").
type resource struct {
	Source      *string `json:"source"`
	Compression string  `json:"compression"`
}

// ignition is what of a configuration matters here (Ignition's specification, versions 2 and 3).
type ignition struct {
	Ignition struct {
		Config struct {
			Merge   []resource `json:"merge"`
			Append  []resource `json:"append"` // version 2
			Replace *resource  `json:"replace"`
		} `json:"config"`
	} `json:"ignition"`
	Storage struct {
		Files []struct {
			Path     string     `json:"path"`
			Contents resource   `json:"contents"`
			Append   []resource `json:"-"`
		} `json:"files"`
		Links []struct {
			Path string `json:"path"`
		} `json:"links"`
		Directories []struct {
			Path      string `json:"path"`
			Overwrite *bool  `json:"overwrite"`
		} `json:"directories"`
		Filesystems []struct {
			Path           *string `json:"path"`
			Device         string  `json:"device"`
			Label          *string `json:"label"`
			WipeFilesystem *bool   `json:"wipeFilesystem"`
		} `json:"filesystems"`
		Disks []struct {
			Device    string `json:"device"`
			WipeTable *bool  `json:"wipeTable"`
		} `json:"disks"`
	} `json:"storage"`
	Systemd struct {
		Units []struct {
			Name     string  `json:"name"`
			Contents *string `json:"contents"`
		} `json:"units"`
	} `json:"systemd"`
}

// ignitionFile is a configuration and where it lies.
type ignitionFile struct {
	name string
	text []byte
}

// checkIgnition asks whether Ignition, at the first boot, undoes what the bake did.
func (v *view) checkIgnition() error {
	mark, first := v.firstBoot()
	var files []ignitionFile
	var broken []error
	take := func(name string) {
		text, err := v.read(name, maxIgnition)
		if err == nil {
			files = append(files, ignitionFile{name, text})
		} else if !isMissing(err) {
			broken = append(broken, err)
		}
	}
	take("/boot/ignition/config.ign")
	take("/usr/lib/ignition/user.ign")
	for _, dir := range []string{"/usr/lib/ignition/base.d", "/usr/lib/ignition/base.platform.d"} {
		for _, n := range v.list(dir) {
			if strings.HasSuffix(n, ".ign") {
				take(path.Join(dir, n))
			}
		}
	}
	const overlays = "/boot/ostree/initramfs-overlays"
	for _, n := range v.list(overlays) {
		name := path.Join(overlays, n)
		text, err := v.read(name, maxIgnition)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		inside, err := cpioIgnition(text)
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", name, err))
		}
		for _, f := range inside {
			files = append(files, ignitionFile{name + ":/" + f.name, f.text})
		}
	}
	for _, f := range files {
		findings, err := v.ignitionFindings(f)
		if err != nil {
			broken = append(broken, fmt.Errorf("%s: %w", f.name, err))
		}
		for _, one := range findings {
			if !first && one.Severity != Info {
				one.Severity = Info
				one.Why += "; but the disk has booted, or has no Ignition: nothing is seen to run it"
			}
			v.add(one)
		}
	}
	if first && len(files) == 0 {
		v.add(Finding{ID: "NB056", Severity: Info, What: "Ignition runs at the next boot with a configuration that is not on the disk", File: mark,
			Why: "one that writes /etc/containers/storage.conf takes the store out of it", Mend: "nodebake butane DISK prints what keeps the file as it is"})
	}
	return errors.Join(broken...)
}

// ignitionFindings looks at one configuration.
func (v *view) ignitionFindings(f ignitionFile) ([]Finding, error) {
	var c ignition
	if err := json.Unmarshal(f.text, &c); err != nil {
		return nil, fmt.Errorf("it is no Ignition configuration: %w", err)
	}
	var all []Finding
	add := func(id string, s Severity, about, what, why, mend string) {
		all = append(all, Finding{ID: id, Severity: s, What: what, File: f.name, Line: jsonLine(f.text, about), Why: why, Mend: mend})
	}
	const keep = "take the file out of the configuration, or put in its place what nodebake butane DISK prints"
	for _, r := range append(append([]resource{}, c.Ignition.Config.Merge...), c.Ignition.Config.Append...) {
		if r.Source != nil && !strings.HasPrefix(*r.Source, "data:") {
			add("NB056", Info, *r.Source, "the Ignition configuration takes more from "+*r.Source, "what is there was not looked at; no registry may mean no server either", "see to it that it writes none of the engines' files, and that it is there at the first boot")
		}
	}
	if r := c.Ignition.Config.Replace; r != nil && r.Source != nil && !strings.HasPrefix(*r.Source, "data:") {
		add("NB056", Info, *r.Source, "the Ignition configuration is replaced by that from "+*r.Source, "what is there was not looked at", "see to it that it writes none of the engines' files, and that it is there at the first boot")
	}
	for _, file := range c.Storage.Files {
		name := path.Clean("/" + file.Path)
		if !engineFile(name) {
			continue
		}
		data, err := file.Contents.data()
		switch {
		case errors.Is(err, errRemote):
			add("NB055", Warning, file.Path, "Ignition writes "+name+" with what it fetches", "what is there was not looked at; if it does not name the store, the images are not found", keep)
			continue
		case err != nil:
			return all, fmt.Errorf("%s: %w", name, err)
		}
		if within(name, "/etc/crio") {
			if s, ok := tomlString(data, "crio", "image", "pause_image"); ok && s != "" && !v.index().has(s).found() {
				add("NB070", Error, file.Path, fmt.Sprintf("Ignition sets CRI-O's pause image to %s in %s, and no store has it", s, name), "without it no Pod starts", "nodebake build --image "+s)
			}
			continue
		}
		conf, err := storageconf.Stores(data)
		if err != nil {
			add("NB055", Error, file.Path, fmt.Sprintf("Ignition writes %s, which no engine can read: %v", name, err), "no engine starts", keep)
			continue
		}
		// A drop-in that says nothing of stores takes none away.
		if name != mainConf && len(conf.AdditionalImageStores) == 0 && !bytes.Contains(bytes.ToLower(data), []byte("additionalimagestores")) {
			continue
		}
		for _, s := range v.readOnly() {
			if !v.names(conf, s) {
				add("NB055", Error, file.Path, fmt.Sprintf("Ignition writes %s without the store %s", name, s.Path), "after the first boot the images of the store are not found", keep)
			}
		}
	}
	for _, l := range c.Storage.Links {
		if name := path.Clean("/" + l.Path); engineFile(name) {
			add("NB055", Error, l.Path, "Ignition makes a link of "+name, "what it leads to was not looked at; if it does not name the store, the images are not found", keep)
		}
	}
	for _, d := range c.Storage.Directories {
		name := path.Clean("/" + d.Path)
		if d.Overwrite == nil || !*d.Overwrite {
			continue
		}
		if within(mainConf, name) {
			add("NB055", Error, d.Path, "Ignition removes what is in "+name, "storage.conf is lost, and with it the store", "take overwrite from the directory")
		}
		for _, s := range v.readOnly() {
			if within(s.Path, name) || within(name, s.Path) {
				add("NB057", Error, d.Path, fmt.Sprintf("Ignition removes what is in %s, where the store %s is", name, s.Path), "the images are lost at the first boot", "take overwrite from the directory")
			}
		}
	}
	for _, fs := range c.Storage.Filesystems {
		if fs.Path == nil || *fs.Path == "" {
			continue
		}
		for _, s := range v.readOnly() {
			if p := path.Clean("/" + *fs.Path); p != "/" && within(s.Path, p) {
				add("NB057", Error, *fs.Path, fmt.Sprintf("Ignition mounts a filesystem (%s) on %s, where the store %s is", fs.Device, p, s.Path), "if a unit mounts it in the running system too, the store is hidden", "put the store somewhere else (nodebake build --store), or do without the filesystem")
			} else if p == "/" && fs.WipeFilesystem != nil && *fs.WipeFilesystem {
				add("NB057", Error, *fs.Path, "Ignition makes the root filesystem anew", "files are carried over on a CoreOS by copying them; the store may not come through", "do without wipe_filesystem for the root")
			}
		}
	}
	for _, u := range c.Systemd.Units {
		if u.Contents == nil || !strings.HasSuffix(u.Name, ".mount") {
			continue
		}
		for _, s := range v.readOnly() {
			for at := s.Path; at != "/" && at != "."; at = path.Dir(at) {
				if osroot.UnitName(at) == u.Name {
					add("NB057", Error, u.Name, fmt.Sprintf("Ignition's unit %s mounts something on %s, where the store %s is", u.Name, at, s.Path), "the store is hidden", "put the store somewhere else (nodebake build --store), or do without the unit")
				}
			}
		}
	}
	return all, nil
}

// engineFile says whether an engine reads a file for its stores or its pause image.
func engineFile(name string) bool {
	for _, dir := range []string{"/etc/containers/storage.conf.d", "/etc/containers/storage.rootful.conf.d", "/etc/crio/crio.conf.d"} {
		if name != dir && within(name, dir) && (strings.HasSuffix(name, ".conf") || strings.HasPrefix(dir, "/etc/crio")) {
			return true
		}
	}
	return name == mainConf || name == "/etc/crio/crio.conf"
}

// errRemote says that contents are not in the configuration itself.
var errRemote = errors.New("the contents are fetched")

// data gives contents that are in the configuration itself, as a data URL (RFC 2397), up to a bound.
func (r resource) data() ([]byte, error) {
	if r.Source == nil || *r.Source == "" {
		return nil, nil
	}
	rest, ok := strings.CutPrefix(*r.Source, "data:")
	if !ok {
		return nil, errRemote
	}
	head, body, ok := strings.Cut(rest, ",")
	if !ok {
		return nil, errors.New("the data URL has no comma")
	}
	text, err := url.PathUnescape(body)
	if err != nil {
		return nil, fmt.Errorf("the data URL: %w", err)
	}
	data := []byte(text)
	if strings.HasSuffix(head, ";base64") {
		if data, err = base64.StdEncoding.DecodeString(text); err != nil {
			if data, err = base64.RawStdEncoding.DecodeString(text); err != nil {
				return nil, fmt.Errorf("the data URL: %w", err)
			}
		}
	}
	switch r.Compression {
	case "":
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("the data URL: %w", err)
		}
		if data, err = io.ReadAll(io.LimitReader(z, maxText+1)); err != nil {
			return nil, fmt.Errorf("the data URL: %w", err)
		}
	default:
		return nil, fmt.Errorf("the compression %q is not known", r.Compression)
	}
	if len(data) > maxText {
		return nil, fmt.Errorf("%w: more than %d bytes", osroot.ErrTooLarge, maxText)
	}
	return data, nil
}

// jsonLine is the line of a string of a JSON text, 0 if it is written in another way than encoding/json would.
func jsonLine(text []byte, s string) int {
	q, err := json.Marshal(s)
	if err != nil {
		return 0
	}
	i := bytes.Index(text, q)
	if i < 0 {
		// Most writers do not escape < > and &.
		if i = bytes.Index(text, []byte(strconv.Quote(s))); i < 0 {
			return 0
		}
	}
	return 1 + bytes.Count(text[:i], []byte{'\n'})
}

// cpioHead is the size of an entry's head in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst
// of Linux): a magic of six bytes and thirteen fields of eight hexadecimal digits.
const cpioHead = 6 + 13*8

// cpioIgnition gives the Ignition configurations of an initial file system that is not compressed.
func cpioIgnition(b []byte) ([]ignitionFile, error) {
	var all []ignitionFile
	at := 0
	for range maxCpio {
		for at < len(b) && b[at] == 0 {
			at++ // between archives
		}
		if at == len(b) {
			return all, nil
		}
		if len(b)-at < cpioHead || string(b[at:at+5]) != "07070" {
			return all, errors.New("it is no cpio archive that is not compressed")
		}
		field := func(n int) int {
			x, err := strconv.ParseUint(string(b[at+6+8*n:at+14+8*n]), 16, 32)
			if err != nil {
				return -1
			}
			return int(x)
		}
		size, names := field(6), field(11)
		head := at
		if size < 0 || names < 1 || names > len(b)-at-cpioHead {
			return all, fmt.Errorf("the entry at byte %d is broken", head)
		}
		name := strings.TrimRight(string(b[at+cpioHead:at+cpioHead+names]), "\x00")
		at = align4(at + cpioHead + names)
		if at > len(b) || size > len(b)-at {
			return all, fmt.Errorf("the entry at byte %d ends past the archive", head)
		}
		if name = strings.TrimPrefix(path.Clean("/"+name), "/"); within(name, "usr/lib/ignition") && strings.HasSuffix(name, ".ign") {
			all = append(all, ignitionFile{name, b[at : at+size]})
		}
		at = min(align4(at+size), len(b))
	}
	return all, fmt.Errorf("it has more than %d entries", maxCpio)
}

func align4(n int) int { return (n + 3) &^ 3 }
