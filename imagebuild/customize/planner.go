package customize

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// NewPlan checks spec against the disk and plans the changes. Nothing is written. Errors match ErrUsage or
// ErrUnsupported, or osroot.ErrHidden or osroot.ErrImmutable where a place takes no change, where they are of that kind.
func NewPlan(root *osroot.Root, spec Spec) (*Plan, error) {
	p := &planner{Spec: spec, root: root, claims: map[string]string{}, made: map[string]bool{}, gone: map[string]bool{}, unlinked: map[link]string{}}
	for _, do := range []func() error{p.planDeletes, p.planBoot, p.planIgnition, p.finishBoot, p.planHostname, p.planIdentity, p.planWrites, p.planCopies} {
		if err := do(); err != nil {
			return nil, err
		}
	}
	for _, ph := range p.phases {
		p.steps = append(p.steps, ph.steps...)
		p.changes = append(p.changes, ph.changes...)
	}
	slices.Sort(p.paths)
	p.paths = slices.Compact(p.paths)
	return &p.Plan, nil
}

// The phases of a Plan, in the order in which they are done. They are planned in another.
const (
	deleting = iota
	copying
	writing
	editing
	phases
)

type phase struct {
	steps   []step
	changes []Change
}

type planner struct {
	Plan
	Spec
	root   *osroot.Root
	phases [phases]phase
	boot   *boot // nil until it is needed
	// claims are files of the tree that are changed, and by what.
	claims map[string]string
	// made are folders of the tree that will be there, gone what will not.
	made, gone map[string]bool
	// unlinked are symbolic links that are deleted, and where they were in the tree.
	unlinked map[link]string
}

type link struct {
	system *osroot.System
	name   string
}

// called is a path as a report has it.
func called(s *osroot.System, name string) string {
	if s.Name == "" {
		return name
	}
	return s.Name + ": " + name
}

// add plans a step, and says so in the report where why is not empty.
func (p *planner) add(ph int, s *osroot.System, at, name, why string, do func(context.Context, Writer) error) {
	p.phases[ph].steps = append(p.phases[ph].steps, step{s, called(s, name), do})
	if why != "" {
		p.phases[ph].changes = append(p.phases[ph].changes, Change{called(s, name), why})
	}
	p.paths = append(p.paths, at)
}

func (p *planner) warn(format string, a ...any) {
	if w := fmt.Sprintf(format, a...); !slices.Contains(p.warnings, w) {
		p.warnings = append(p.warnings, w)
	}
}

// claim notes that an option changes a file; two of them may not.
func (p *planner) claim(at, name, by string) error {
	if have, ok := p.claims[at]; ok {
		return fmt.Errorf("%w: %s is changed by %s and by %s; leave one of them out", ErrUsage, name, have, by)
	}
	p.claims[at] = by
	return nil
}

// stat looks at a path of the tree as it will be once files are deleted and folders are made.
func (p *planner) stat(at string) (*tar.Header, error) {
	if p.made[at] {
		return &tar.Header{Name: at, Typeflag: tar.TypeDir}, nil
	}
	if len(p.gone) > 0 {
		for dir := at; dir != "."; dir = path.Dir(dir) {
			if p.gone[dir] {
				return nil, fmt.Errorf("/%s: %w", at, fs.ErrNotExist)
			}
		}
	}
	return p.root.Tree.Stat(at)
}

// resolve finds where a path of the running system will be written.
func (p *planner) resolve(s *osroot.System, name string) (string, error) {
	name = path.Clean(name)
	if at, ok := p.unlinked[link{s, name}]; ok {
		return at, nil
	}
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, ok := p.unlinked[link{s, dir}]; ok {
			return "", fmt.Errorf("%w: %s leads through the link %s, which is deleted; name the place itself", ErrUsage, name, dir)
		}
	}
	at, err := p.root.Writable(s, name)
	if errors.Is(err, syscall.ENOTDIR) {
		return "", fmt.Errorf("%w: something above %s is not a folder", ErrUsage, name)
	}
	if err != nil {
		return "", err
	}
	return at, p.checkOwned(s, at)
}

// checkOwned refuses what ostree keeps on the boot partition.
func (p *planner) checkOwned(s *osroot.System, at string) error {
	if !p.root.Ostree {
		return nil
	}
	rest, ok := strings.CutPrefix(s.Running(at), "/boot/")
	first, _, _ := strings.Cut(rest, "/")
	if ok && (first == "ostree" || first == "loader" || strings.HasPrefix(first, "loader.")) {
		return fmt.Errorf("%w: %s is written anew with each deployment", osroot.ErrImmutable, s.Running(at))
	}
	return nil
}

// parents checks the folder that something will be written to, and plans it and those above it where they are not there.
func (p *planner) parents(ph int, s *osroot.System, dir string, mode int64) error {
	var above []string
	for at := dir; ; at = path.Dir(at) {
		h, err := p.stat(at)
		if err == nil && h.Typeflag == tar.TypeDir {
			break
		}
		if err == nil || errors.Is(err, syscall.ENOTDIR) {
			return fmt.Errorf("%w: %s is not a folder", ErrUsage, s.Running(at))
		}
		if !missing(err) {
			return err
		}
		above = append(above, at)
	}
	for i, at := range slices.Backward(above) {
		m := int64(0o755)
		if i == 0 {
			m = mode
		}
		p.made[at] = true
		p.add(ph, s, at, s.Running(at), "a folder for what follows", func(_ context.Context, w Writer) error {
			return mkdirAll(w, at, m, p.Now)
		})
	}
	return nil
}

// systems calls do for every system, once for each place of the tree to which name leads.
func (p *planner) systems(name string, do func(s *osroot.System, at string) error) error {
	var seen []string
	for _, s := range p.root.Systems {
		at, err := p.resolve(s, name)
		if err != nil {
			return err
		}
		if slices.Contains(seen, at) {
			continue
		}
		seen = append(seen, at)
		if err := do(s, at); err != nil {
			return err
		}
	}
	return nil
}

// put plans a file with the given content. One that is there keeps its owner, mode and extended attributes; another gets
// the mode.
func (p *planner) put(ph int, s *osroot.System, at, name, by, why string, data []byte, mode, dirMode int64) error {
	if err := p.claim(at, name, by); err != nil {
		return err
	}
	h, err := p.stat(at)
	switch {
	case err == nil && h.Typeflag != tar.TypeReg:
		return fmt.Errorf("%w: %s is not a regular file; delete it first", ErrUsage, name)
	case err != nil && !missing(err) && !errors.Is(err, syscall.ENOTDIR):
		return err
	}
	if err := p.parents(ph, s, path.Dir(at), dirMode); err != nil {
		return err
	}
	p.add(ph, s, at, name, why, func(_ context.Context, w Writer) error {
		h := &tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data)), ModTime: p.Now}
		old, err := w.Stat(at)
		switch {
		case err == nil && old.Typeflag == tar.TypeReg:
			h.Mode, h.Uid, h.Gid, h.PAXRecords = old.Mode, old.Uid, old.Gid, maps.Clone(old.PAXRecords)
		case err != nil && !missing(err):
			return err
		}
		return w.Replace(h, bytes.NewReader(data))
	})
	return nil
}

func (p *planner) planWrites() error {
	for _, wr := range p.Writes {
		if err := checkPath(wr.Dst); err != nil {
			return err
		}
		if strings.HasSuffix(wr.Dst, "/") {
			return fmt.Errorf("%w: write to %q: that is a folder; name a file", ErrUsage, wr.Dst)
		}
		err := p.systems(wr.Dst, func(s *osroot.System, at string) error {
			return p.put(writing, s, at, path.Clean(wr.Dst), "a text that is written", "written", []byte(wr.Text), 0o644, 0o755)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *planner) planHostname() error {
	if p.Hostname == "" {
		return nil
	}
	if err := checkHostname(p.Hostname); err != nil {
		return err
	}
	return p.systems("/etc/hostname", func(s *osroot.System, at string) error {
		return p.put(editing, s, at, "/etc/hostname", "the host's name", "the host's name", []byte(p.Hostname+"\n"), 0o644, 0o755)
	})
}

// checkHostname holds a name against RFC 1123, section 2.1, and Linux's limit of 64 bytes.
func checkHostname(name string) error {
	bad := func(why string) error { return fmt.Errorf("%w: the host's name %q %s", ErrUsage, name, why) }
	if len(name) > 64 {
		return bad("is longer than the 64 bytes that Linux takes")
	}
	for label := range strings.SplitSeq(name, ".") {
		switch {
		case label == "":
			return bad("has an empty part")
		case len(label) > 63:
			return bad("has a part longer than 63 bytes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return bad("has a part that begins or ends with a hyphen")
		}
		for _, c := range []byte(label) {
			if !alnum(c) && c != '-' {
				return bad("may have letters, digits, hyphens and dots only")
			}
		}
	}
	return nil
}

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// topFolders are the system's own folders, which are emptied but not deleted.
var topFolders = []string{"/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run",
	"/sbin", "/srv", "/sys", "/sysroot", "/tmp", "/usr", "/var"}

func (p *planner) planDeletes() error {
	for _, name := range p.Deletes {
		if err := checkPath(name); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		name = path.Clean(name)
		var seen []string
		for i, s := range p.root.Systems {
			at, err := p.unfollowed(s, name)
			if err != nil {
				return fmt.Errorf("delete: %w", err)
			}
			if slices.Contains(seen, at) {
				continue
			}
			seen = append(seen, at)
			found, err := p.remove(deleting, s, at, name, "deleted")
			if err != nil {
				return fmt.Errorf("delete: %w", err)
			}
			if !found && i == 0 {
				return fmt.Errorf("%w: delete: %s is not on the disk", ErrUsage, name)
			}
		}
	}
	return nil
}

// unfollowed finds where a path lies whose last component is not followed if it is a link.
func (p *planner) unfollowed(s *osroot.System, name string) (string, error) {
	if slices.Contains(topFolders, name) {
		return "", fmt.Errorf("%w: %s is one of the system's own folders; delete what is in it", ErrUsage, name)
	}
	dir, err := p.root.Writable(s, path.Dir(name))
	if err != nil {
		return "", err
	}
	at := path.Join(dir, path.Base(name))
	if run := s.Running(at); slices.Contains(topFolders, run) {
		return "", fmt.Errorf("%w: %s is %s, one of the system's own folders; delete what is in it", ErrUsage, name, run)
	}
	for _, v := range p.root.Volumes {
		if v.At == at || strings.HasPrefix(v.At, at+"/") {
			return "", fmt.Errorf("%w: %s is mounted at %s; delete what is in it", ErrUsage, v.Partition, s.Running(v.At))
		}
	}
	// A link may be deleted wherever it leads; a folder over which something is mounted may not.
	if h, err := p.stat(at); err != nil || h.Typeflag != tar.TypeSymlink {
		if _, err := p.root.Writable(s, name); err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return "", err
		}
	}
	return at, p.checkOwned(s, at)
}

// remove plans to delete what is at a path of the tree, and says whether anything is.
func (p *planner) remove(ph int, s *osroot.System, at, name, why string) (bool, error) {
	h, err := p.stat(at)
	if missing(err) || errors.Is(err, syscall.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.gone[at] = true
	if h.Typeflag == tar.TypeSymlink {
		p.unlinked[link{s, name}] = at
	}
	p.add(ph, s, at, name, why, func(ctx context.Context, w Writer) error {
		return removeAll(ctx, w, at, 0)
	})
	return true, nil
}

// maxDepth bounds how deep folders are followed: no path of the kernel's 4096 bytes goes deeper.
const maxDepth = 2048

func removeAll(ctx context.Context, w Writer, at string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("%w: folders lie more than %d deep", ErrUnsupported, maxDepth)
	}
	h, err := w.Stat(at)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		names, err := w.ReadDir(at)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := removeAll(ctx, w, path.Join(at, name), depth+1); err != nil {
				return err
			}
		}
	}
	return w.Remove(at)
}

// identity are the files that ResetIdentity removes; the last component may be a pattern of path.Match.
var identity = []struct{ pattern, why string }{
	{"/etc/ssh/ssh_host_*", "an SSH host key"},
	{"/etc/udev/rules.d/70-persistent-net.rules", "names for this machine's network cards"},
	{"/var/lib/systemd/random-seed", "the random seed"},
	{"/var/lib/systemd/credential.secret", "the key of this machine's credentials"},
	{"/var/lib/urandom/random-seed", "the random seed"},
	{"/var/lib/random-seed", "the random seed"},
	{"/var/lib/cloud/*", "what cloud-init knows of this instance"},
	{"/var/lib/dhcp/*.leases", "DHCP leases"},
	{"/var/lib/dhclient/*.leases", "DHCP leases"},
	{"/var/lib/dhclient/*.lease", "a DHCP lease"},
	{"/var/lib/dhcpcd/*.lease", "a DHCP lease"},
	{"/var/lib/dhcpcd/duid", "the DHCP identifier"},
	{"/var/lib/dhcpcd/secret", "the secret of stable addresses"},
	{"/var/lib/NetworkManager/*.lease", "a DHCP lease"},
	{"/var/lib/NetworkManager/secret_key", "the secret of stable addresses"},
	{"/var/lib/NetworkManager/timestamps", "when connections were up"},
	{"/var/lib/NetworkManager/seen-bssids", "which networks were seen"},
}

// keepers make new SSH host keys: a unit of the distribution, or cloud-init.
var keepers = []string{"/usr/bin/cloud-init", "/usr/lib/systemd/system/sshd-keygen@.service", "/usr/lib/systemd/system/sshd-keygen.service",
	"/usr/lib/systemd/system/sshd-keygen.target", "/usr/lib/systemd/system/ssh-keygen.service", "/usr/lib/systemd/system/sshdgenkeys.service", "/usr/lib/systemd/system/regenerate_ssh_host_keys.service"}

func (p *planner) planIdentity() error {
	if !p.ResetIdentity {
		return nil
	}
	for _, s := range p.root.Systems {
		if err := p.machineID(s); err != nil {
			return err
		}
		keys := false
		for _, f := range identity {
			names, err := p.glob(s, f.pattern)
			if err != nil {
				return err
			}
			for _, name := range names {
				if name == "/var/lib/cloud/seed" {
					continue
				}
				found, err := p.forget(s, name, f.why)
				if err != nil {
					return err
				}
				keys = keys || found && strings.HasPrefix(name, "/etc/ssh/")
			}
		}
		if keys && !slices.ContainsFunc(keepers, func(name string) bool { return p.has(s, name) }) {
			p.warn("%s is removed, but nothing is seen on the disk that would make new SSH host keys at boot: without a unit that says ssh-keygen -A, sshd will not start", called(s, "/etc/ssh/ssh_host_*"))
		}
	}
	return nil
}

// has says whether the running system has a file of that name, of any kind.
func (p *planner) has(s *osroot.System, name string) bool {
	at, err := s.Locate(name)
	if err != nil {
		return false
	}
	_, err = p.stat(at.Path)
	return err == nil
}

// glob lists the names of the running system that match a pattern; only its last component may be one.
func (p *planner) glob(s *osroot.System, pattern string) ([]string, error) {
	dir, err := s.Locate(path.Dir(pattern))
	if err != nil {
		return nil, err
	}
	if h, err := p.stat(dir.Path); err != nil || h.Typeflag != tar.TypeDir {
		if err == nil || missing(err) || errors.Is(err, syscall.ENOTDIR) {
			return nil, nil
		}
		return nil, err
	}
	if p.made[dir.Path] {
		return nil, nil
	}
	names, err := p.root.Tree.ReadDir(dir.Path)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path.Dir(pattern), err)
	}
	var found []string
	for _, n := range names {
		if ok, err := path.Match(path.Base(pattern), n); err != nil {
			return nil, err
		} else if ok {
			found = append(found, path.Join(path.Dir(pattern), n))
		}
	}
	return found, nil
}

// forget removes one of the machine's traces. Where nothing is kept there is nothing to remove.
func (p *planner) forget(s *osroot.System, name, why string) (bool, error) {
	at, err := p.unfollowed(s, name)
	if errors.Is(err, osroot.ErrHidden) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if _, ok := p.claims[at]; ok {
		return false, nil // what takes its place is not this machine's
	}
	return p.remove(deleting, s, at, name, cmp.Or(why, "removed"))
}

func (p *planner) machineID(s *osroot.System) error {
	const name = "/etc/machine-id"
	at, err := p.resolve(s, name)
	if err != nil {
		return err
	}
	h, err := p.stat(at)
	switch {
	case err == nil && h.Typeflag == tar.TypeReg && h.Size > 0:
		id, err := s.ReadFile(name)
		if err != nil {
			return err
		}
		if string(bytes.TrimSpace(id)) != "uninitialized" {
			if err := p.put(editing, s, at, name, "the reset of its identity", "emptied: the next boot makes a new machine ID", nil, 0o444, 0o755); err != nil {
				return err
			}
		}
	case err != nil && !missing(err):
		return err
	}
	const dbus = "/var/lib/dbus/machine-id"
	place, err := p.unfollowed(s, dbus)
	if errors.Is(err, osroot.ErrHidden) {
		return nil
	}
	if err != nil {
		return err
	}
	if h, err := p.stat(place); err != nil || h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err = p.remove(deleting, s, place, dbus, "the machine ID that D-Bus has; the system makes its own anew")
	return err
}
