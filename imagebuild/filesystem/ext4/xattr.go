package ext4

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
)

// xattrPrefix is how a tar header's PAX records name extended attributes.
const xattrPrefix = "SCHILY.xattr."

// xattr is an extended attribute as it is stored: a prefix's number and the rest of the name.
type xattr struct {
	index uint8
	name  string
	value []byte
	ino   uint32 // inode that holds the value, or 0
}

var xattrPrefixes = []struct {
	index  uint8
	prefix string
}{
	{xiUser, "user."}, {xiTrusted, "trusted."}, {xiSecurity, "security."},
}

const (
	aclAccessName  = "system.posix_acl_access"
	aclDefaultName = "system.posix_acl_default"
)

// external gives the name and value that the kernel shows; name is "" for what it does not show.
func (x xattr) external() (name, value string, err error) {
	switch x.index {
	case xiACLAccess, xiACLDefault:
		name = aclAccessName
		if x.index == xiACLDefault {
			name = aclDefaultName
		}
		v, err := aclFromDisk(x.value)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", name, err)
		}
		return name, string(v), nil
	}
	for _, p := range xattrPrefixes {
		if p.index == x.index {
			return p.prefix + x.name, string(x.value), nil
		}
	}
	return "", "", nil
}

// internal is the opposite of external.
func internalXattr(name, value string) (xattr, error) {
	switch name {
	case aclAccessName, aclDefaultName:
		x := xattr{index: xiACLAccess}
		if name == aclDefaultName {
			x.index = xiACLDefault
		}
		var err error
		if x.value, err = aclToDisk([]byte(value)); err != nil {
			return x, fmt.Errorf("%s: %w", name, err)
		}
		return x, nil
	}
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && rest != "" {
			if len(rest) > maxName || strings.IndexByte(rest, 0) >= 0 {
				return xattr{}, fmt.Errorf("%w: attribute name %q", fs.ErrInvalid, name)
			}
			return xattr{index: p.index, name: rest, value: []byte(value)}, nil
		}
	}
	return xattr{}, unsupported("extended attribute %q", name)
}

// Tags of access control list entries; those of named users and groups carry an id.
const (
	aclUser  = 2
	aclGroup = 8

	aclDiskVersion  = 1
	aclXattrVersion = 2
	aclNoID         = 0xFFFFFFFF
)

func aclHasID(tag uint16) bool { return tag == aclUser || tag == aclGroup }

// aclToDisk turns the form that getxattr gives (entries of 8 bytes) into the stored one, which drops unused ids.
func aclToDisk(v []byte) ([]byte, error) {
	if len(v) < 4 || (len(v)-4)%8 != 0 || le.Uint32(v) != aclXattrVersion {
		return nil, fmt.Errorf("%w: not an access control list of version %d", fs.ErrInvalid, aclXattrVersion)
	}
	out := le.AppendUint32(nil, aclDiskVersion)
	for e := v[4:]; len(e) > 0; e = e[8:] {
		tag := le.Uint16(e)
		switch tag {
		case 1, aclUser, 4, aclGroup, 0x10, 0x20:
		default:
			return nil, fmt.Errorf("%w: tag %#x in an access control list", fs.ErrInvalid, tag)
		}
		out = append(out, e[:4]...)
		if aclHasID(tag) {
			out = append(out, e[4:8]...)
		}
	}
	return out, nil
}

func aclFromDisk(v []byte) ([]byte, error) {
	if len(v) < 4 || le.Uint32(v) != aclDiskVersion {
		return nil, corrupt("not an access control list of version %d", aclDiskVersion)
	}
	out := le.AppendUint32(nil, aclXattrVersion)
	for e := v[4:]; len(e) > 0; {
		if len(e) < 4 || aclHasID(le.Uint16(e)) && len(e) < 8 {
			return nil, corrupt("access control list of %d bytes is cut off", len(v))
		}
		out = append(out, e[:4]...)
		if aclHasID(le.Uint16(e)) {
			out = append(out, e[4:8]...)
			e = e[8:]
		} else {
			out = le.AppendUint32(out, aclNoID)
			e = e[4:]
		}
	}
	return out, nil
}

// readXattrs returns all attributes of an inode, those in the inode first.
func (f *FS) readXattrs(ino uint32, raw []byte) ([]xattr, error) {
	var out []xattr
	if f.isize > oldInodeSize {
		at := oldInodeSize + int(le.Uint16(raw[inExtraIsize:]))
		if at > oldInodeSize && at+4 <= len(raw) && le.Uint32(raw[at:]) == xaMagic {
			var err error
			if out, err = f.parseXattrs(out, raw[at+4:], 0); err != nil {
				return nil, fmt.Errorf("inode %d: %w", ino, err)
			}
		}
	}
	if block := f.aclBlock(raw); block != 0 {
		b, err := f.xattrBlock(block)
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
		if out, err = f.parseXattrs(out, b, xaBlockHeader); err != nil {
			return nil, fmt.Errorf("inode %d: attribute block %d: %w", ino, block, err)
		}
	}
	return out, nil
}

// xattrBlock reads and checks the attribute block at block.
func (f *FS) xattrBlock(block int64) ([]byte, error) {
	b := make([]byte, f.bs)
	if err := f.readBlock(block, b); err != nil {
		return nil, fmt.Errorf("attribute block: %w", err)
	}
	if le.Uint32(b[xhMagic:]) != xaMagic || le.Uint32(b[xhBlocks:]) != 1 || le.Uint32(b[xhRefcount:]) == 0 {
		return nil, corrupt("attribute block %d has magic %#x, %d blocks, %d users", block,
			le.Uint32(b[xhMagic:]), le.Uint32(b[xhBlocks:]), le.Uint32(b[xhRefcount:]))
	}
	if f.metaCsum && f.xattrBlockSum(block, b) != le.Uint32(b[xhChecksum:]) {
		return nil, corrupt("attribute block %d has a wrong checksum", block)
	}
	return b, nil
}

// parseXattrs appends the attributes of b, whose entries begin at first and whose value offsets count from b's start.
func (f *FS) parseXattrs(out []xattr, b []byte, first int) ([]xattr, error) {
	total := 0
	for at := first; ; {
		if at+4 > len(b) {
			return nil, corrupt("attributes reach past their end")
		}
		if le.Uint32(b[at:]) == 0 {
			return out, nil
		}
		if at+xaEntry > len(b) {
			return nil, corrupt("attributes reach past their end")
		}
		e := b[at:]
		nameLen, size := int(e[xeNameLen]), int64(le.Uint32(e[xeValueSize:]))
		if xaEntry+nameLen > len(e) {
			return nil, corrupt("an attribute's name reaches past the end")
		}
		x := xattr{index: e[xeIndex], name: string(e[xaEntry : xaEntry+nameLen]), ino: le.Uint32(e[xeValueIno:])}
		switch offs := int64(le.Uint16(e[xeValueOffs:])); {
		case x.ino != 0:
			if total += int(min(size, maxXattrValue)); size > maxXattrValue || total > 64*maxXattrValue {
				return nil, corrupt("attribute %q has %d bytes", x.name, size)
			}
			v, err := f.eaInode(x.ino, size)
			if err != nil {
				return nil, fmt.Errorf("attribute %q: %w", x.name, err)
			}
			x.value = v
		case size > 0:
			if size > int64(len(b)) || offs > int64(len(b))-size || offs < int64(first) {
				return nil, corrupt("attribute %q has %d bytes at %d of %d", x.name, size, offs, len(b))
			}
			x.value = bytes.Clone(b[offs : offs+size])
		}
		out = append(out, x)
		at += xattrEntryLen(nameLen)
	}
}

func xattrEntryLen(nameLen int) int { return (xaEntry + nameLen + 3) &^ 3 }

// eaInode reads an attribute's value from an inode of its own.
func (f *FS) eaInode(ino uint32, size int64) ([]byte, error) {
	if f.incompat&incompatEAInode == 0 {
		return nil, corrupt("value in inode %d without the feature ea_inode", ino)
	}
	raw, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	if inodeFlags(raw)&flagEAInode == 0 || inodeType(raw) != modeReg || inodeSize(raw) != size {
		return nil, corrupt("inode %d does not hold a value of %d bytes", ino, size)
	}
	v := make([]byte, size)
	if _, err := newBlockMap(f, ino, raw).ReadAt(v, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return v, nil
}

// xattrsOf takes the attributes from a header's PAX records, in the order in which an attribute block keeps them.
func xattrsOf(records map[string]string) ([]xattr, error) {
	var xs []xattr
	for k, v := range records {
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			continue
		}
		x, err := internalXattr(name, v)
		if err != nil {
			return nil, err
		}
		xs = append(xs, x)
	}
	slices.SortFunc(xs, compareXattrs)
	return xs, nil
}

func compareXattrs(a, b xattr) int {
	if a.index != b.index {
		return int(a.index) - int(b.index)
	}
	if len(a.name) != len(b.name) {
		return len(a.name) - len(b.name)
	}
	return strings.Compare(a.name, b.name)
}

func (x xattr) room() int { return xattrEntryLen(len(x.name)) + (len(x.value)+3)&^3 }

// splitXattrs decides which attributes go into the inode (room bytes) and which into the attribute block.
func (f *FS) splitXattrs(xs []xattr, room int) (in, out []xattr, err error) {
	blockRoom := int(f.bs) - xaBlockHeader - 4
	fit := func(order []xattr) bool {
		in, out = nil, nil
		a, b := room-4, blockRoom
		for _, x := range order {
			switch n := x.room(); {
			case n <= a:
				in = append(in, x)
				a -= n
			case n <= b:
				out = append(out, x)
				b -= n
			default:
				return false
			}
		}
		return true
	}
	if !fit(xs) {
		bySize := slices.Clone(xs)
		slices.SortStableFunc(bySize, func(a, b xattr) int { return b.room() - a.room() })
		if !fit(bySize) {
			return nil, nil, fmt.Errorf("%w: extended attributes take more than an inode and a block of %d bytes", syscall.E2BIG, f.bs)
		}
	}
	slices.SortFunc(in, compareXattrs)
	slices.SortFunc(out, compareXattrs)
	return in, out, nil
}

// packXattrs writes attributes into b, entries from first upwards and values from the end downwards.
func packXattrs(b []byte, first int, xs []xattr, hashed bool) {
	at, end := first, len(b)
	for _, x := range xs {
		e := b[at:]
		e[xeNameLen], e[xeIndex] = byte(len(x.name)), x.index
		le.PutUint32(e[xeValueSize:], uint32(len(x.value)))
		copy(e[xaEntry:], x.name)
		if len(x.value) > 0 {
			end -= (len(x.value) + 3) &^ 3
			copy(b[end:], x.value)
			le.PutUint16(e[xeValueOffs:], uint16(end))
		}
		if hashed {
			le.PutUint32(e[xeHash:], x.hash())
		}
		at += xattrEntryLen(len(x.name))
	}
}

// hash is the kernel's hash of a name and a value padded to words (fs/ext4/xattr.c).
func (x xattr) hash() uint32 {
	h := uint32(0)
	for _, c := range []byte(x.name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	for v := x.value; len(v) > 0; v = v[min(4, len(v)):] {
		var w [4]byte
		copy(w[:], v)
		h = h<<16 ^ h>>16 ^ le.Uint32(w[:])
	}
	return h
}

// makeXattrBlock builds the attribute block that will live at block.
func (f *FS) makeXattrBlock(block int64, xs []xattr) []byte {
	b := make([]byte, f.bs)
	le.PutUint32(b[xhMagic:], xaMagic)
	le.PutUint32(b[xhRefcount:], 1)
	le.PutUint32(b[xhBlocks:], 1)
	packXattrs(b, xaBlockHeader, xs, true)
	h := uint32(0)
	for _, x := range xs {
		e := x.hash()
		if e == 0 {
			h = 0
			break
		}
		h = h<<16 ^ h>>16 ^ e
	}
	le.PutUint32(b[xhHash:], h)
	if f.metaCsum {
		le.PutUint32(b[xhChecksum:], f.xattrBlockSum(block, b))
	}
	return b
}
