package customize

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

func (p *planner) planCopies() error {
	for _, c := range p.Copies {
		if err := p.planCopy(c); err != nil {
			return fmt.Errorf("copy %s to %s: %w", c.Src, c.Dst, err)
		}
	}
	return nil
}

func (p *planner) planCopy(c Copy) error {
	if err := checkPath(c.Dst); err != nil {
		return err
	}
	// What the caller names is followed, as the links that Kubernetes mounts secrets by must be; what is in a folder is not.
	src, err := filepath.EvalSymlinks(c.Src)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	st, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	dst := path.Clean(c.Dst)
	if !st.IsDir() && strings.HasSuffix(c.Dst, "/") {
		dst = path.Join(dst, filepath.Base(c.Src))
	}
	return p.systems(dst, func(s *osroot.System, at string) error {
		files, volumes := 0, map[string]bool{}
		check := &copier{Copy: c, p: p, s: s, file: func(at string, _ *tar.Header, _ io.Reader) error {
			files++
			return p.freeFor(s, at)
		}, folder: func(dir string, _ *tar.Header, ours bool) error {
			if v := p.root.Tree.Volume(dir); !volumes[v] {
				volumes[v] = true
				p.paths = append(p.paths, dir)
			}
			if !ours {
				return nil
			}
			if dir == at {
				if err := p.parents(copying, s, path.Dir(dir), 0o755); err != nil {
					return err
				}
			}
			p.made[dir] = true
			return nil
		}}
		if !st.IsDir() {
			if h, err := p.stat(at); err == nil && h.Typeflag == tar.TypeDir {
				return fmt.Errorf("%w: %s is a folder; end the path with a slash to put the file into it", ErrUsage, dst)
			}
			if err := p.parents(copying, s, path.Dir(at), 0o755); err != nil {
				return err
			}
		}
		if err := check.run(context.Background(), src, st, dst, at); err != nil {
			return err
		}
		why := "copied"
		if st.IsDir() {
			why = fmt.Sprintf("copied, a folder with %d files", files)
		}
		p.add(copying, s, at, dst, why, func(ctx context.Context, w Writer) error {
			do := &copier{Copy: c, p: p, s: s, file: func(at string, h *tar.Header, r io.Reader) error {
				return copyFile(w, h, r)
			}, folder: func(at string, h *tar.Header, _ bool) error {
				if old, err := w.Stat(at); err == nil && old.Typeflag == tar.TypeDir {
					return nil
				}
				return w.Add(h, nil)
			}}
			return do.run(ctx, src, st, dst, at)
		})
		return nil
	})
}

// freeFor says whether a file may be copied to a path of the tree.
func (p *planner) freeFor(s *osroot.System, at string) error {
	if by, ok := p.claims[at]; ok && by != "a text that is written" {
		return fmt.Errorf("%w: %s is changed by %s as well; leave one of them out", ErrUsage, s.Running(at), by)
	}
	switch h, err := p.stat(at); {
	case missing(err):
		return nil
	case err != nil:
		return err
	case h.Typeflag == tar.TypeDir:
		return fmt.Errorf("%w: %s is a folder on the disk", ErrUsage, s.Running(at))
	}
	return nil
}

// copyFile writes one file or link over whatever file is there.
func copyFile(w Writer, h *tar.Header, r io.Reader) error {
	if old, err := w.Stat(h.Name); err == nil && old.Typeflag != tar.TypeDir {
		if h.Typeflag == tar.TypeReg && old.Typeflag == tar.TypeReg {
			return w.Replace(h, r)
		}
		if err := w.Remove(h.Name); err != nil {
			return err
		}
	} else if err != nil && !missing(err) {
		return err
	}
	return w.Add(h, r)
}

// copier walks a source. It is run once to plan and once to write.
type copier struct {
	Copy
	p *planner
	s *osroot.System
	// base is the folder on this machine that names are relative to.
	base string
	// file is called for each regular file, with its content, and each link; folder for each folder, which is ours if it
	// is not on the disk yet.
	file   func(at string, h *tar.Header, r io.Reader) error
	folder func(at string, h *tar.Header, ours bool) error
}

func (c *copier) run(ctx context.Context, src string, st fs.FileInfo, dst, at string) error {
	if !st.IsDir() {
		dir, err := os.OpenRoot(filepath.Dir(src))
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		defer dir.Close()
		c.base = filepath.Dir(src)
		return c.one(dir, filepath.Base(src), st, at)
	}
	c.base = src
	dir, err := os.OpenRoot(src)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	defer dir.Close()
	return c.walk(ctx, dir, ".", st, dst, at)
}

// walk copies a folder. Names of one folder are in memory at a time, and those of the folders above it.
func (c *copier) walk(ctx context.Context, dir *os.Root, rel string, st fs.FileInfo, dst, at string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := c.p.stat(at)
	switch {
	case err == nil && h.Typeflag != tar.TypeDir:
		return fmt.Errorf("%w: %s is not a folder on the disk, but in the source", ErrUsage, dst)
	case err != nil && !missing(err):
		return err
	}
	if err := c.folder(at, c.header(at, st), err != nil); err != nil {
		return err
	}
	f, err := dir.Open(rel)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	names, err := f.Readdirnames(-1)
	f.Close()
	if err != nil {
		return fmt.Errorf("%w: reading the folder %s: %w", ErrUsage, filepath.Join(c.base, rel), err)
	}
	slices.Sort(names)
	for _, n := range names {
		in, to := path.Join(rel, n), path.Join(dst, n)
		st, err := dir.Lstat(in)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		// A link is replaced by a link, but led through by a file or folder: /lib of the source goes where /lib leads to.
		child := path.Join(at, n)
		if old, err := c.p.stat(child); st.IsDir() || err == nil && old.Typeflag == tar.TypeSymlink && st.Mode().IsRegular() {
			if child, err = c.p.resolve(c.s, to); err != nil {
				return err
			}
		}
		if st.IsDir() {
			err = c.walk(ctx, dir, in, st, to, child)
		} else {
			err = c.one(dir, in, st, child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// one copies a regular file or a link.
func (c *copier) one(dir *os.Root, rel string, st fs.FileInfo, at string) error {
	name := filepath.Join(c.base, rel)
	switch st.Mode().Type() {
	case 0:
	case fs.ModeSymlink:
		target, err := dir.Readlink(rel)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		h := c.header(at, st)
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, target, 0o777
		return c.file(at, h, nil)
	default:
		return fmt.Errorf("%w: %s is no file, folder or link (%s); it cannot be copied", ErrUsage, name, kind(st.Mode()))
	}
	// What was a file may have become a pipe since, which must not make us wait, or a link.
	f, err := dir.OpenFile(rel, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	defer f.Close()
	now, err := f.Stat()
	if err != nil {
		return err
	}
	if !now.Mode().IsRegular() || !os.SameFile(st, now) {
		return fmt.Errorf("%w: %s was replaced while it was read", ErrUsage, name)
	}
	h := c.header(at, now)
	h.Size = now.Size()
	err = c.file(at, h, io.LimitReader(f, h.Size))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%s became shorter while it was read: %w", name, err)
	}
	return err
}

func kind(m fs.FileMode) string {
	switch {
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "of another kind"
}

// header has the attributes that a copy gets.
func (c *copier) header(at string, st fs.FileInfo) *tar.Header {
	h := &tar.Header{Name: at, Typeflag: tar.TypeReg, Mode: int64(st.Mode() & (fs.ModePerm)), ModTime: c.p.Now}
	if st.Mode()&fs.ModeSticky != 0 {
		h.Mode |= 0o1000
	}
	if c.Mode != nil {
		h.Mode = tarMode(*c.Mode)
	}
	if st.IsDir() {
		h.Typeflag = tar.TypeDir
		if c.Mode != nil {
			h.Mode = h.Mode&0o777 | h.Mode&0o444>>2
		}
	}
	if c.UID != nil {
		h.Uid = *c.UID
	}
	if c.GID != nil {
		h.Gid = *c.GID
	}
	return h
}

// tarMode is a mode as tar has it.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m & fs.ModePerm)
	for _, b := range []struct {
		m    fs.FileMode
		bits int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.m != 0 {
			mode |= b.bits
		}
	}
	return mode
}
