package customize

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

var (
	// ErrUsage is matched by errors in what was asked for: a wrong form, a missing source, a path that is not there.
	ErrUsage = errors.New("wrong use")
	// ErrUnsupported is matched where the disk is of a kind on which the change cannot be made.
	ErrUnsupported = errors.New("not possible on this disk")
)

// Spec says what to change. Errors of places that refuse a change also match osroot.ErrHidden or osroot.ErrImmutable.
type Spec struct {
	Copies  []Copy
	Writes  []Write
	Deletes []string
	// KargAppend are KEY or KEY=VALUE; KargDelete the same; KargReplace are KEY=NEW or KEY=OLD=NEW.
	KargAppend, KargDelete, KargReplace []string
	// IgnitionPlatform is the new value of the kernel argument ignition.platform.id; empty leaves it.
	IgnitionPlatform string
	// Ignition is a file on this machine, JSON of Ignition's specification 3; empty for none.
	Ignition string
	// Hostname is written to /etc/hostname; empty leaves it.
	Hostname string
	// ResetIdentity removes what tells this machine from others; see the package's documentation.
	ResetIdentity bool
	// Now is the time of what is written; zero is the writer's own.
	Now time.Time
}

// Copy is a file or folder of this machine, and where it goes.
type Copy struct {
	Src, Dst string
	// Mode (of which os.ModeSetuid, ModeSetgid and ModeSticky count), UID and GID replace the source's mode and 0:0 where
	// they are set.
	Mode     *os.FileMode
	UID, GID *int
}

// Write is a text, written as it is, and where it goes.
type Write struct{ Dst, Text string }

const copyForm = "give SRC:DST, SRC:DST:MODE or SRC:DST:MODE:UID:GID, such as motd:/etc/motd:0644:0:0"

// ParseCopy reads SRC:DST[:MODE[:UID:GID]]; MODE is octal, UID and GID are numbers. Errors match ErrUsage.
func ParseCopy(s string) (Copy, error) {
	f := strings.Split(s, ":")
	if (len(f) != 2 && len(f) != 3 && len(f) != 5) || f[0] == "" || f[1] == "" {
		return Copy{}, fmt.Errorf("%w: copy %q: %s", ErrUsage, s, copyForm)
	}
	c := Copy{Src: f[0], Dst: f[1]}
	if err := checkPath(c.Dst); err != nil {
		return Copy{}, fmt.Errorf("copy %q: %w", s, err)
	}
	if len(f) > 2 {
		bits, err := strconv.ParseUint(f[2], 8, 12)
		if err != nil {
			return Copy{}, fmt.Errorf("%w: copy %q: the mode %q must be octal, from 0 to 7777", ErrUsage, s, f[2])
		}
		mode := os.FileMode(bits & 0o777)
		for bit, m := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
			if bits&bit != 0 {
				mode |= m
			}
		}
		c.Mode = &mode
	}
	if len(f) > 3 {
		for i, to := range []**int{&c.UID, &c.GID} {
			// The largest 32-bit number is no ID: chown(2) takes it for "leave it".
			n, err := strconv.ParseUint(f[3+i], 10, 32)
			if err != nil || n == 1<<32-1 {
				return Copy{}, fmt.Errorf("%w: copy %q: %q is not a number of a user or group; names are not known here", ErrUsage, s, f[3+i])
			}
			id := int(n)
			*to = &id
		}
	}
	return c, nil
}

// ParseWrite reads DST=TEXT. Errors match ErrUsage.
func ParseWrite(s string) (Write, error) {
	dst, text, ok := strings.Cut(s, "=")
	if !ok || dst == "" {
		return Write{}, fmt.Errorf("%w: write %q: give DST=TEXT, such as /etc/motd=hello", ErrUsage, s)
	}
	if err := checkPath(dst); err != nil {
		return Write{}, fmt.Errorf("write to %q: %w", dst, err)
	}
	return Write{dst, text}, nil
}

// checkPath checks a path of the running system.
func checkPath(name string) error {
	if !strings.HasPrefix(name, "/") {
		return fmt.Errorf("%w: the path %q on the disk must begin with a slash", ErrUsage, name)
	}
	if strings.ContainsAny(name, "\x00\n") || len(name) > 4096 {
		return fmt.Errorf("%w: %q is no path", ErrUsage, name)
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." || c == "." {
			return fmt.Errorf("%w: the path %q may have no . or .. in it", ErrUsage, name)
		}
		if len(c) > 255 {
			return fmt.Errorf("%w: the path %q has a name longer than 255 bytes", ErrUsage, name)
		}
	}
	return nil
}

// Writer is what a Plan is applied to: filesystem.Tree has these methods, with their contract.
type Writer interface {
	Stat(name string) (*tar.Header, error)
	ReadDir(name string) ([]string, error)
	Add(h *tar.Header, r io.Reader) error
	Replace(h *tar.Header, r io.Reader) error
	Remove(name string) error
}

// Change is something that a Plan changes, for a report.
type Change struct {
	// Path is the running system's, with the system's name before it where there are several.
	Path string
	// Why is a few words.
	Why string
}

// Plan is what will be changed. It is made by NewPlan and may be applied any number of times, each to a disk in the
// state that it was made for; one goroutine at a time.
type Plan struct {
	steps    []step
	changes  []Change
	warnings []string
	paths    []string
}

type step struct {
	system *osroot.System
	// name is for errors.
	name string
	do   func(ctx context.Context, w Writer) error
}

// Changes lists what is changed, in the order in which it is done. A copied folder is one change, and so is a deleted one.
func (p *Plan) Changes() []Change { return p.changes }

// Warnings are sentences about what the changes do not reach.
func (p *Plan) Warnings() []string { return p.warnings }

// Paths are the paths of Root.Tree that are changed, without what lies in copied and deleted folders, but with at least
// one on every volume that is written to.
func (p *Plan) Paths() []string { return p.paths }

// Apply makes the changes through the writers that of gives for each system. Nothing is undone where it fails.
func (p *Plan) Apply(ctx context.Context, of func(*osroot.System) Writer) error {
	for _, s := range p.steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.do(ctx, of(s.system)); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// mkdirAll makes a folder and those above it that are not there.
func mkdirAll(w Writer, name string, mode int64, now time.Time) error {
	if h, err := w.Stat(name); err == nil && h.Typeflag == tar.TypeDir {
		return nil
	} else if err == nil {
		return fmt.Errorf("/%s is in the way: it is not a folder", name)
	} else if !missing(err) {
		return err
	}
	if err := mkdirAll(w, path.Dir(name), 0o755, now); err != nil {
		return err
	}
	return w.Add(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode, ModTime: now}, nil)
}
