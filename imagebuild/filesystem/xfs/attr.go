package xfs

import (
	"encoding/binary"
	"strings"
)

// attr is an extended attribute as the disk has it: a namespace flag and a name without prefix.
type attr struct {
	flags byte // attrRoot, attrSecure, attrParent
	name  string
	value string
}

const (
	aclAccess  = "SGI_ACL_FILE"
	aclDefault = "SGI_ACL_DEFAULT"

	aclAccessName  = "system.posix_acl_access"
	aclDefaultName = "system.posix_acl_default"

	aclUser  = 0x02
	aclGroup = 0x08
)

// external gives the name and value by which the kernel knows the attribute; ok is false for those that it
// keeps to itself (parent pointers).
func (a attr) external() (name, value string, ok bool) {
	switch {
	case a.flags&attrParent != 0:
		return "", "", false
	case a.flags&attrSecure != 0:
		return "security." + a.name, a.value, true
	case a.flags&attrRoot != 0:
		if a.name == aclAccess || a.name == aclDefault {
			if v, ok := aclToPosix(a.value); ok {
				if a.name == aclAccess {
					return aclAccessName, v, true
				}
				return aclDefaultName, v, true
			}
		}
		return "trusted." + a.name, a.value, true
	}
	return "user." + a.name, a.value, true
}

// internal is the opposite of external.
func internal(name, value string) (attr, error) {
	switch name {
	case aclAccessName, aclDefaultName:
		v, ok := aclFromPosix(value)
		if !ok {
			return attr{}, unsupported("xattr %s: not a POSIX ACL of version 2", name)
		}
		n := aclAccess
		if name == aclDefaultName {
			n = aclDefault
		}
		return attr{attrRoot, n, v}, nil
	}
	ns, rest, _ := strings.Cut(name, ".")
	a := attr{name: rest, value: value}
	switch ns {
	case "user":
	case "trusted":
		a.flags = attrRoot
	case "security":
		a.flags = attrSecure
	default:
		return attr{}, unsupported("xattr %q: XFS keeps user, trusted, security and POSIX ACLs only", name)
	}
	if rest == "" || len(rest) > maxNameLen {
		return attr{}, unsupported("xattr %q: a name of %d bytes", name, len(rest))
	}
	if len(value) > maxAttrVal {
		return attr{}, unsupported("xattr %q: a value of %d bytes (64 KiB is the most)", name, len(value))
	}
	return a, nil
}

// aclToPosix converts XFS's ACL (big-endian: count u32, then tag u32, id u32, perm u16, pad u16) to the
// kernel's xattr form (little-endian: version u32, then tag u16, perm u16, id u32).
func aclToPosix(v string) (string, bool) {
	b := []byte(v)
	if len(b) < 4 || uint64(len(b)) < 4+12*uint64(be.Uint32(b)) {
		return "", false
	}
	n := int(be.Uint32(b))
	out := binary.LittleEndian.AppendUint32(nil, 2)
	for i := 0; i < n; i++ {
		e := b[4+12*i:]
		tag, id := be.Uint32(e), be.Uint32(e[4:])
		if tag != aclUser && tag != aclGroup {
			id = 0xffffffff
		}
		out = binary.LittleEndian.AppendUint16(out, uint16(tag))
		out = binary.LittleEndian.AppendUint16(out, be.Uint16(e[8:]))
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	return string(out), true
}

func aclFromPosix(v string) (string, bool) {
	b := []byte(v)
	le := binary.LittleEndian
	if len(b) < 4 || (len(b)-4)%8 != 0 || le.Uint32(b) != 2 {
		return "", false
	}
	out := be.AppendUint32(nil, uint32((len(b)-4)/8))
	for e := b[4:]; len(e) > 0; e = e[8:] {
		tag, id := uint32(le.Uint16(e)), le.Uint32(e[4:])
		if tag != aclUser && tag != aclGroup {
			id = 0
		}
		out = be.AppendUint32(out, tag)
		out = be.AppendUint32(out, id)
		out = be.AppendUint16(out, le.Uint16(e[2:]))
		out = append(out, 0, 0)
	}
	return string(out), true
}

// readAttrs lists an inode's attributes in on-disk order.
func (fs *FS) readAttrs(in *inode) ([]attr, error) {
	lit := in.attrFork()
	if len(lit) == 0 {
		return nil, nil
	}
	if in.aformat == fmtLocal {
		return readShortAttrs(in, lit)
	}
	if in.anextents == 0 {
		return nil, nil
	}
	exts, err := fs.extents(fork{in, true}, nil)
	if err != nil {
		return nil, err
	}
	var out []attr
	buf := make([]byte, fs.sb.blockSize)
	seen := map[uint32]bool{}
	left := maxAttrTotal
	var walk func(blk uint32, level int) error
	walk = func(blk uint32, level int) error {
		if seen[blk] {
			return corrupt("inode %d: attribute block %d is met twice", in.ino, blk)
		}
		seen[blk] = true
		fsb, ok, err := fs.readBlocks(exts, uint64(blk), buf)
		if err != nil {
			return wrap(err, "reading attributes of inode %d", in.ino)
		}
		if !ok {
			return corrupt("inode %d: attribute block %d is not mapped", in.ino, blk)
		}
		if be.Uint64(buf[daOwner:]) != in.ino || be.Uint64(buf[daBlkno:]) != fs.sb.daddr(fsb) {
			return corrupt("inode %d: attribute block %#x belongs elsewhere", in.ino, fsb)
		}
		if err := fs.checkMeta(buf, daCRC, daUUID, fsb); err != nil {
			return err
		}
		n := int(be.Uint16(buf[daCount:]))
		switch magic := be.Uint16(buf[daMagic:]); {
		case magic == attrLeaf && level <= 0:
			return fs.readAttrLeaf(in, exts, append([]byte(nil), buf...), n, &out, &left)
		case magic == daNodeMagic && level != 0:
			l := int(be.Uint16(buf[daLevel:]))
			if l == 0 || l > 5 || level > 0 && l != level || n == 0 || n > (len(buf)-daHdr)/8 {
				return corrupt("inode %d: attribute node %#x of level %d with %d entries", in.ino, fsb, l, n)
			}
			kids := make([]uint32, n)
			for i := range kids {
				kids[i] = be.Uint32(buf[daHdr+8*i+4:])
			}
			for _, k := range kids {
				if err := walk(k, l-1); err != nil {
					return err
				}
			}
			return nil
		default:
			return corrupt("inode %d: attribute block %#x: magic %#x", in.ino, fsb, magic)
		}
	}
	return out, walk(0, -1)
}

// The kernel hands no more than 64 KiB of names to listxattr, so an inode can hold more than anyone can see;
// this bounds names and values read from one inode.
const maxAttrTotal = 64 << 20

func readShortAttrs(in *inode, lit []byte) ([]attr, error) {
	if len(lit) < 4 {
		return nil, corrupt("inode %d: attribute fork of %d bytes", in.ino, len(lit))
	}
	total, n := int(be.Uint16(lit)), int(lit[2])
	if total > len(lit) || total < 4 {
		return nil, corrupt("inode %d: %d bytes of inline attributes", in.ino, total)
	}
	b := lit[4:total]
	out := make([]attr, 0, n)
	for i := 0; i < n; i++ {
		if len(b) < 3 || len(b) < 3+int(b[0])+int(b[1]) {
			return nil, corrupt("inode %d: inline attributes end in entry %d of %d", in.ino, i, n)
		}
		nl, vl, flags := int(b[0]), int(b[1]), b[2]
		if flags&attrIncomplete == 0 {
			out = append(out, attr{flags & (attrRoot | attrSecure | attrParent), string(b[3 : 3+nl]), string(b[3+nl : 3+nl+vl])})
		}
		b = b[3+nl+vl:]
	}
	return out, nil
}

func (fs *FS) readAttrLeaf(in *inode, exts []extent, b []byte, n int, out *[]attr, left *int) error {
	if n > (len(b)-alHdr)/8 {
		return corrupt("inode %d: attribute leaf of %d entries", in.ino, n)
	}
	for i := 0; i < n; i++ {
		e := b[alHdr+8*i:]
		at, flags := int(be.Uint16(e[4:])), e[6]
		bad := func() error { return corrupt("inode %d: attribute %d of %d in a leaf runs over", in.ino, i, n) }
		if at < alHdr+8*n || at+3 > len(b) {
			return bad()
		}
		a := attr{flags: flags & (attrRoot | attrSecure | attrParent)}
		if flags&attrLocal != 0 {
			vl, nl := int(be.Uint16(b[at:])), int(b[at+2])
			if at+3+nl+vl > len(b) {
				return bad()
			}
			a.name, a.value = string(b[at+3:at+3+nl]), string(b[at+3+nl:at+3+nl+vl])
		} else {
			if at+9 > len(b) || at+9+int(b[at+8]) > len(b) {
				return bad()
			}
			blk, vl := be.Uint32(b[at:]), be.Uint32(b[at+4:])
			a.name = string(b[at+9 : at+9+int(b[at+8])])
			if flags&attrIncomplete == 0 {
				if vl > maxAttrVal {
					return corrupt("inode %d: attribute of %d bytes", in.ino, vl)
				}
				v, err := fs.readRemote(in, exts, blk, int(vl))
				if err != nil {
					return err
				}
				a.value = v
			}
		}
		if flags&attrIncomplete != 0 {
			continue
		}
		if *left -= len(a.name) + len(a.value) + 32; *left < 0 {
			return corrupt("inode %d: more than %d bytes of attributes", in.ino, maxAttrTotal)
		}
		*out = append(*out, a)
	}
	return nil
}

func (fs *FS) readRemote(in *inode, exts []extent, blk uint32, size int) (string, error) {
	out := make([]byte, 0, size)
	buf := make([]byte, fs.sb.blockSize)
	for b := uint64(blk); len(out) < size; b++ {
		fsb, ok, err := fs.readBlocks(exts, b, buf)
		if err != nil {
			return "", wrap(err, "reading an attribute of inode %d", in.ino)
		}
		if !ok {
			return "", corrupt("inode %d: attribute value block %d is not mapped", in.ino, b)
		}
		if be.Uint32(buf) != attrRmtMagic || be.Uint64(buf[rmOwner:]) != in.ino || int(be.Uint32(buf[rmOffset:])) != len(out) || be.Uint64(buf[rmBlkno:]) != fs.sb.daddr(fsb) {
			return "", corrupt("inode %d: attribute value block %#x is not its own", in.ino, fsb)
		}
		if err := fs.checkMeta(buf, rmCRC, rmUUID, fsb); err != nil {
			return "", err
		}
		n := int(be.Uint32(buf[rmBytes:]))
		if n <= 0 || n > len(buf)-rmHdr || n > size-len(out) {
			return "", corrupt("inode %d: attribute value block %#x of %d bytes", in.ino, fsb, n)
		}
		out = append(out, buf[rmHdr:rmHdr+n]...)
	}
	return string(out), nil
}
