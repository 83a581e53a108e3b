package customize

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

// maxIgnition bounds an Ignition configuration, which is kept in memory here and in the machine's initial file system.
const maxIgnition = 16 << 20

var ignitionVersion = regexp.MustCompile(`^3\.[0-9]+\.[0-9]+(-experimental)?$`)

// readIgnition reads a configuration and checks what can be checked without Ignition's schema.
func readIgnition(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%w: the Ignition configuration: %w", ErrUsage, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxIgnition+1))
	if err != nil {
		return nil, fmt.Errorf("%w: the Ignition configuration: %w", ErrUsage, err)
	}
	if len(b) > maxIgnition {
		return nil, fmt.Errorf("%w: the Ignition configuration %s is larger than %d MiB", ErrUsage, name, maxIgnition>>20)
	}
	var c struct {
		Ignition struct{ Version any }
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: the Ignition configuration %s is not JSON: %w (Butane's YAML becomes JSON by the program butane)", ErrUsage, name, err)
	}
	v, _ := c.Ignition.Version.(string)
	switch {
	case v == "":
		return nil, fmt.Errorf("%w: the Ignition configuration %s has no ignition.version, such as \"3.4.0\"", ErrUsage, name)
	case !ignitionVersion.MatchString(v):
		return nil, fmt.Errorf("%w: the Ignition configuration %s has ignition.version %q; CoreOS and OCK read version 3", ErrUsage, name, v)
	}
	return b, nil
}

// ignitionModule is where Ignition's program lies from which an initial file system with Ignition is made.
const ignitionModule = "/usr/lib/dracut/modules.d/30ignition"

func (p *planner) planIgnition() error {
	if p.Ignition == "" {
		return nil
	}
	config, err := readIgnition(p.Ignition)
	if err != nil {
		return err
	}
	s := p.root.Systems[0]
	if p.has(s, "/boot/ignition.firstboot") {
		return p.bootIgnition(s, config)
	}
	b, err := p.loadBoot()
	if err != nil {
		return err
	}
	var first []*cmdline // the entries whose boot is a first one
	for _, c := range b.entries {
		if slices.ContainsFunc(c.args, func(a string) bool { key, value, _ := cutArg(a); return key == "ignition.firstboot" && value != "0" }) {
			first = append(first, c)
		}
	}
	switch {
	case len(first) > 0 && p.root.Ostree:
		return p.overlayIgnition(s, first, config)
	case len(first) > 0:
		return fmt.Errorf("%w: the disk has Ignition, but is neither a CoreOS with /boot/ignition.firstboot nor laid out by ostree as OCK is", ErrUnsupported)
	case p.has(s, ignitionModule) || p.has(s, "/boot/ignition"):
		return fmt.Errorf("%w: Ignition reads its configuration at the first boot alone, and there is neither /boot/ignition.firstboot nor ignition.firstboot among the kernel arguments: this disk has booted", ErrUnsupported)
	}
	return fmt.Errorf("%w: there is no Ignition on the disk (%s is no CoreOS or OCK); --write and --copy change files", ErrUnsupported, osName(p.root.Release))
}

func osName(r osroot.Release) string {
	for _, n := range []string{r.PrettyName, strings.TrimSpace(r.ID + " " + r.VersionID)} {
		if n != "" {
			return n
		}
	}
	return "it"
}

// bootIgnition puts the configuration where CoreOS's initial file system looks for it, readable by root alone: it may hold
// secrets.
func (p *planner) bootIgnition(s *osroot.System, config []byte) error {
	const name = "/boot/ignition/config.ign"
	at, err := p.resolve(s, name)
	if err != nil {
		return err
	}
	return p.put(editing, s, at, name, "the Ignition configuration", "the Ignition configuration of the first boot", config, 0o600, 0o700)
}

// overlayIgnition puts the configuration into an initial file system of its own and lists that in the entries.
func (p *planner) overlayIgnition(s *osroot.System, entries []*cmdline, config []byte) error {
	archive := ignitionArchive(config, p.Now)
	file := fmt.Sprintf("ostree/initramfs-overlays/%x.img", sha256.Sum256(archive))
	name := "/boot/" + file
	at, err := p.root.Writable(s, name)
	if err != nil {
		return err
	}
	if err := p.put(editing, s, at, name, "the Ignition configuration", "an initial file system with the Ignition configuration of the first boot", archive, 0o600, 0o755); err != nil {
		return err
	}
	for _, c := range entries {
		last := -1
		for i, l := range c.file.lines {
			if f := strings.Fields(l); len(f) > 1 && f[0] == "initrd" {
				last = i
			}
		}
		if last < 0 {
			return fmt.Errorf("%w: %s has no initrd to put the Ignition configuration beside", ErrUnsupported, c.where)
		}
		// The path is that of the entry's own: from the boot filesystem's root, which may be a folder of the root's.
		f := strings.Fields(c.file.lines[last])
		prefix, _, ok := strings.Cut(f[len(f)-1], "ostree/")
		if !ok {
			return fmt.Errorf("%w: %s has an initrd that is not ostree's: %s", ErrUnsupported, c.where, f[len(f)-1])
		}
		if !strings.HasSuffix(c.file.lines[last], "\n") {
			c.file.lines[last] += "\n"
		}
		c.file.lines = slices.Insert(c.file.lines, last+1, "initrd "+prefix+file+"\n")
		c.file.changed = true
		c.file.why = strings.TrimPrefix(c.file.why+", the Ignition configuration's initial file system", ", ")
	}
	return nil
}

// ignitionArchive is an initial file system (cpio "newc", Documentation/driver-api/early-userspace/buffer-format.rst of the
// kernel) that holds the configuration where Ignition looks for one before it asks the platform.
func ignitionArchive(config []byte, now time.Time) []byte {
	var mtime uint32
	if u := now.Unix(); u > 0 && u < 1<<32 {
		mtime = uint32(u)
	}
	var b bytes.Buffer
	inode := 0
	add := func(name string, mode uint32, data []byte) {
		inode++
		nlink := 1
		if mode&0o40000 != 0 {
			nlink = 2
		}
		if mode == 0 {
			inode, nlink = 0, 1
		}
		fmt.Fprintf(&b, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", inode, mode, 0, 0, nlink, mtime, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		pad(&b, 4)
		b.Write(data)
		pad(&b, 4)
	}
	for _, dir := range []string{"usr", "usr/lib", "usr/lib/ignition"} {
		add(dir, 0o40755, nil)
	}
	add("usr/lib/ignition/user.ign", 0o100600, config)
	mtime = 0
	add("TRAILER!!!", 0, nil)
	pad(&b, 512)
	return b.Bytes()
}

func pad(b *bytes.Buffer, to int) {
	if n := b.Len() % to; n > 0 {
		b.Write(make([]byte, to-n))
	}
}
