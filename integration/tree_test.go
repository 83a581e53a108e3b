package integration

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// node is what there is to say of one name in a layer.
type node struct {
	kind         uint32 // S_IFMT bits
	mode         uint32 // permission bits with setuid, setgid, sticky
	uid, gid     uint32
	mtime        time.Time
	size         int64
	hash         [sha256.Size]byte
	target       string
	major, minor uint32
	xattrs       map[string]string
	links        string // every name of the same inode, when there are several

	onlyKind bool // a whiteout: an engine gives it any owner, mode and time
	anyTime  bool // a folder without an entry of its own
}

// tarNodes gives the tree that a layer's tar must become on an overlay store, keyed by path ("" is the root).
func tarNodes(r io.Reader) (map[string]*node, error) {
	nodes := map[string]*node{}
	inodes := map[*node][]string{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		parent, base := path.Split(name)
		parent = strings.TrimSuffix(parent, "/")
		for p := parent; p != "" && nodes[p] == nil; p = strings.TrimPrefix(path.Dir("/"+p), "/") {
			nodes[p] = &node{kind: unix.S_IFDIR, mode: 0o755, anyTime: true, xattrs: map[string]string{}}
		}
		if base == ".wh..wh..opq" {
			nodes[parent].xattrs["trusted.overlay.opaque"] = "y"
			continue
		}
		if gone, ok := strings.CutPrefix(base, ".wh."); ok {
			nodes[path.Join(parent, gone)] = &node{kind: unix.S_IFCHR, onlyKind: true}
			continue
		}
		n := &node{
			mode: uint32(h.Mode) & 0o7777, uid: uint32(h.Uid), gid: uint32(h.Gid), mtime: h.ModTime,
			target: h.Linkname, major: uint32(h.Devmajor), minor: uint32(h.Devminor), xattrs: map[string]string{},
		}
		for k, v := range h.PAXRecords {
			if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				n.xattrs[k] = v
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			n.kind = unix.S_IFDIR
			if was := nodes[name]; was != nil {
				maps.Copy(n.xattrs, was.xattrs)
			}
		case tar.TypeReg:
			n.kind, n.size = unix.S_IFREG, h.Size
			sum := sha256.New()
			if _, err := io.Copy(sum, tr); err != nil {
				return nil, err
			}
			n.hash = [sha256.Size]byte(sum.Sum(nil))
		case tar.TypeSymlink:
			n.kind, n.mode, n.size = unix.S_IFLNK, 0o777, int64(len(h.Linkname))
		case tar.TypeChar:
			n.kind = unix.S_IFCHR
		case tar.TypeBlock:
			n.kind = unix.S_IFBLK
		case tar.TypeFifo:
			n.kind = unix.S_IFIFO
		case tar.TypeLink:
			n = nodes[strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")]
			if n == nil {
				return nil, fmt.Errorf("%q is a hard link to %q, which is not there", h.Name, h.Linkname)
			}
		default:
			return nil, fmt.Errorf("%q: type %q", h.Name, h.Typeflag)
		}
		if n.kind != unix.S_IFCHR && n.kind != unix.S_IFBLK {
			n.major, n.minor = 0, 0
		}
		if n.kind != unix.S_IFLNK {
			n.target = ""
		}
		nodes[name] = n
		inodes[n] = append(inodes[n], name)
	}
	for n, names := range inodes {
		if len(names) > 1 {
			n.links = linkNames(names)
		}
	}
	return nodes, nil
}

func linkNames(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " ")
}

// diskNodes reads a folder through the kernel, but not what is under the folder skip.
func diskNodes(dir, skip string) (map[string]*node, error) {
	nodes := map[string]*node{}
	inodes := map[uint64][]string{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("lstat %q: %w", p, err)
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")
		n := &node{kind: st.Mode & unix.S_IFMT, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: time.Unix(st.Mtim.Unix())}
		switch n.kind {
		case unix.S_IFREG:
			n.size = st.Size
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			sum := sha256.New()
			_, err = io.Copy(sum, f)
			f.Close()
			if err != nil {
				return fmt.Errorf("reading %q: %w", p, err)
			}
			n.hash = [sha256.Size]byte(sum.Sum(nil))
		case unix.S_IFLNK:
			if n.target, err = os.Readlink(p); err != nil {
				return err
			}
			n.size = st.Size
		case unix.S_IFCHR, unix.S_IFBLK:
			n.major, n.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if n.xattrs, err = xattrs(p); err != nil {
			return err
		}
		if n.kind != unix.S_IFDIR && st.Nlink > 1 {
			inodes[st.Ino] = append(inodes[st.Ino], name)
		}
		nodes[name] = n
		if name == skip && name != "" {
			return fs.SkipDir
		}
		return nil
	})
	for _, names := range inodes {
		links := linkNames(names)
		for _, n := range names {
			nodes[n].links = links
		}
	}
	return nodes, err
}

func xattrs(p string) (map[string]string, error) {
	all := map[string]string{}
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		return nil, fmt.Errorf("listing the attributes of %q: %w", p, err)
	}
	for _, k := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if k == "" {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, k, val)
		if err != nil {
			return nil, fmt.Errorf("attribute %s of %q: %w", k, p, err)
		}
		all[k] = string(val[:n])
	}
	return all, nil
}

// compareNodes says how a layer on a disk differs from its tar; nothing when it does not.
// Two things are the engine's own choice: podman 4.3 passes over a tar's entry for the root (0555 root:root, any time),
// and turns a time before 1970 into the epoch.
func compareNodes(want, got map[string]*node) (faults []string) {
	fault := func(name, format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%q: ", name)+fmt.Sprintf(format, args...))
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		if g == nil {
			fault(name, "is missing")
			continue
		}
		if w.kind != g.kind || w.major != g.major || w.minor != g.minor {
			fault(name, "type %#o %d:%d, must be %#o %d:%d", g.kind, g.major, g.minor, w.kind, w.major, w.minor)
			continue
		}
		if w.onlyKind {
			continue
		}
		if name == "" && g.mode == 0o555 && g.uid == 0 && g.gid == 0 {
			continue
		}
		if w.mode != g.mode {
			fault(name, "mode %#o, must be %#o", g.mode, w.mode)
		}
		if w.uid != g.uid || w.gid != g.gid {
			fault(name, "owner %d:%d, must be %d:%d", g.uid, g.gid, w.uid, w.gid)
		}
		if !w.anyTime && !w.mtime.Equal(g.mtime) && !(w.mtime.Unix() < 0 && g.mtime.Equal(time.Unix(0, 0))) {
			fault(name, "mtime %s, must be %s", g.mtime.UTC().Format(time.RFC3339Nano), w.mtime.UTC().Format(time.RFC3339Nano))
		}
		if w.size != g.size {
			fault(name, "size %d, must be %d", g.size, w.size)
		} else if w.hash != g.hash {
			fault(name, "content %x, must be %x", g.hash[:8], w.hash[:8])
		}
		if w.target != g.target {
			fault(name, "points to %q, must point to %q", g.target, w.target)
		}
		if !maps.Equal(w.xattrs, g.xattrs) {
			fault(name, "attributes %q, must be %q", g.xattrs, w.xattrs)
		}
		if w.links != g.links {
			fault(name, "is one inode with [%s], must be with [%s]", g.links, w.links)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == nil && name != "" {
			fault(name, "is not in the layer")
		}
	}
	return faults
}
