package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// swapper is how the temporary volume gets the volume's name. libvirt itself cannot rename.
type swapper struct {
	copies bool // by a copy that libvirt makes
	rename func(ctx context.Context, force bool) error
}

// chooseSwap finds out whether this process, or the user's shell on the host, can rename in the pool's folder.
func (u *upload) chooseSwap() swapper {
	from, to := u.temp.Path, path.Join(path.Dir(u.temp.Path), u.d.volume)
	if !u.kind.files || !path.IsAbs(from) || path.Base(from) != u.temp.Name {
		return swapper{copies: true}
	}
	switch {
	case u.d.transport == "unix":
		// The name holds 64 random bits: if it is there, with the size, it is libvirt's file and not one of another host
		// or mount namespace.
		st, err := os.Lstat(from)
		if err == nil && st.Mode().IsRegular() && st.Size() == u.size && unix.Access(filepath.Dir(from), unix.W_OK) == nil {
			return swapper{rename: func(_ context.Context, force bool) error { return renameHere(from, to, force) }}
		}
	case u.conn.shell != nil:
		// What is asked here does not answer where the user has no shell, or not the rights.
		if u.conn.run(u.ctx, "test -f "+quote(from)+" && test -w "+quote(path.Dir(from))+" && command -v mv ln rm") == nil {
			return swapper{rename: func(ctx context.Context, force bool) error { return u.renameThere(ctx, from, to, force) }}
		}
	}
	return swapper{copies: true}
}

func renameHere(from, to string, force bool) error {
	if f, err := os.Open(from); err == nil {
		err = errors.Join(f.Sync(), f.Close())
		if err != nil {
			return fmt.Errorf("flushing the volume to its device: %w", err)
		}
	}
	var err error
	if force {
		err = os.Rename(from, to)
	} else {
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			// The filesystem (NFS) lacks this one.
			if err = os.Link(from, to); err == nil {
				err = os.Remove(from)
			}
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w, though libvirt does not show it; --force replaces it", to, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("giving the volume its name: %w", err)
	}
	if dir, err := os.Open(filepath.Dir(to)); err == nil {
		dir.Sync()
		dir.Close()
	}
	return nil
}

// renameThere does the same in the user's shell on the host. A hard link replaces nothing.
func (u *upload) renameThere(ctx context.Context, from, to string, force bool) error {
	command := "ln -T -- " + quote(from) + " " + quote(to) + " && rm -f -- " + quote(from)
	if force {
		command = "mv -f -T -- " + quote(from) + " " + quote(to)
	}
	err := u.conn.run(ctx, command)
	switch {
	case err == nil:
		return nil
	case !force && u.conn.run(ctx, "test -e "+quote(to)) == nil:
		return fmt.Errorf("%s: %w, though libvirt does not show it; --force replaces it", to, ErrExists)
	}
	return u.failed(err, "giving the volume its name on %s", u.d.host)
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
