package ext4

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"sort"
	"strings"
	"syscall"
	"time"
)

const maxName = 255

// cleanName checks a path and brings it to the form a/b/c; "" is the root.
func cleanName(name string) (string, error) {
	s := strings.Trim(name, "/")
	if s == "." {
		return "", nil
	}
	if strings.IndexByte(s, 0) >= 0 {
		return "", syscall.EINVAL
	}
	if strings.Contains(s, "//") {
		parts := strings.FieldsFunc(s, func(r rune) bool { return r == '/' })
		s = strings.Join(parts, "/")
	}
	for rest := s; rest != ""; {
		part, next, _ := strings.Cut(rest, "/")
		if part == "." || part == ".." {
			return "", fmt.Errorf("%w: %q inside a path", fs.ErrInvalid, part)
		}
		if len(part) > maxName {
			return "", syscall.ENAMETOOLONG
		}
		rest = next
	}
	return s, nil
}

func pathErr(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// inode reads and checks inode ino.
func (f *FS) inode(ino uint32) ([]byte, error) {
	raw := make([]byte, f.isize)
	return raw, f.inodeInto(ino, raw)
}

func (f *FS) inodeInto(ino uint32, raw []byte) error {
	limit := f.inodes
	if f.w != nil {
		limit += f.w.ghost
	}
	if ino == 0 || ino > limit {
		return corrupt("inode %d of %d", ino, f.inodes)
	}
	if err := f.itab.read(ino, raw); err != nil {
		return fmt.Errorf("reading inode %d: %w", ino, err)
	}
	if !f.inodeSumOK(ino, raw) {
		return corrupt("inode %d has a wrong checksum", ino)
	}
	if le.Uint16(raw[inMode:]) == 0 || le.Uint16(raw[inLinks:]) == 0 {
		return corrupt("inode %d is in use by a folder but not allocated", ino)
	}
	if f.isize > oldInodeSize {
		if x := int(le.Uint16(raw[inExtraIsize:])); oldInodeSize+x > f.isize || x%4 != 0 {
			return corrupt("inode %d has an extra size of %d", ino, x)
		}
	}
	if s := inodeSize(raw); s < 0 {
		return corrupt("inode %d has a negative size", ino)
	}
	return nil
}

func inodeSize(raw []byte) int64 {
	return int64(uint64(le.Uint32(raw[inSizeLo:])) | uint64(le.Uint32(raw[inSizeHi:]))<<32)
}

func inodeType(raw []byte) uint16  { return le.Uint16(raw[inMode:]) & modeType }
func inodeFlags(raw []byte) uint32 { return le.Uint32(raw[inFlags:]) }

// aclBlock is the number of the inode's attribute block, or 0.
func (f *FS) aclBlock(raw []byte) int64 {
	n := int64(le.Uint32(raw[inACLLo:]))
	if f.incompat&incompat64Bit != 0 {
		n |= int64(le.Uint16(raw[inACLHi:])) << 32
	}
	return n
}

// inodeUnits is the inode's use of the device in units of 512 bytes.
func (f *FS) inodeUnits(raw []byte) int64 {
	n := int64(le.Uint32(raw[inBlocksLo:]))
	if f.ro&roHugeFile != 0 {
		n |= int64(le.Uint16(raw[inBlocksHi:])) << 32
		if inodeFlags(raw)&flagHugeFile != 0 {
			n *= f.bs / 512
		}
	}
	return n
}

// inodeTime decodes the time whose seconds are at off and whose extra bits, if the inode has them, are at x.
func inodeTime(raw []byte, off, x int) time.Time {
	sec := int64(int32(le.Uint32(raw[off:])))
	var nsec int64
	if len(raw) > oldInodeSize && oldInodeSize+int(le.Uint16(raw[inExtraIsize:])) >= x+4 {
		extra := le.Uint32(raw[x:])
		sec += int64(extra&3) << 32
		nsec = int64(extra >> 2)
		if nsec > 999999999 {
			nsec = 0
		}
	}
	return time.Unix(sec, nsec).UTC()
}

// folderAt finds the directory with a cleaned path. Every directory on the way must name the one before it as its
// parent, so that a path through a cycle of directories, which would have no end, is an error.
func (f *FS) folderAt(clean string) (*folder, error) {
	d, err := f.folder(rootInode)
	for rest := clean; rest != "" && err == nil; {
		part, next, _ := strings.Cut(rest, "/")
		at := d.find(part)
		if at < 0 {
			return nil, fs.ErrNotExist
		}
		above := d.ino
		if d, err = f.folder(d.entryInode(at)); err == nil && d.parent != above {
			return nil, corrupt("directory inode %d is in %d, but its parent is %d", d.ino, above, d.parent)
		}
		rest = next
	}
	return d, err
}

// splitName cuts a cleaned path before its last component.
func splitName(clean string) (dir, base string) {
	if i := strings.LastIndexByte(clean, '/'); i >= 0 {
		return clean[:i], clean[i+1:]
	}
	return "", clean
}

// lookup finds the inode of a cleaned path.
func (f *FS) lookup(clean string) (uint32, error) {
	if clean == "" {
		return rootInode, nil
	}
	dir, base := splitName(clean)
	d, err := f.folderAt(dir)
	if err != nil {
		return 0, err
	}
	at := d.find(base)
	if at < 0 {
		return 0, fs.ErrNotExist
	}
	return d.entryInode(at), nil
}

// folder returns the parsed entries of the directory ino, and syscall.ENOTDIR if it is no directory.
func (f *FS) folder(ino uint32) (*folder, error) {
	if f.w != nil {
		if d := f.w.changed[ino]; d != nil {
			return d, nil
		}
	}
	f.dirMu.Lock()
	d := f.dirs[ino]
	f.dirMu.Unlock()
	if d != nil {
		return d, nil
	}
	raw, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	if inodeType(raw) != modeDir {
		return nil, syscall.ENOTDIR
	}
	d, err = f.readFolder(ino, raw)
	if err != nil {
		return nil, err
	}
	f.dirMu.Lock()
	defer f.dirMu.Unlock()
	if f.dirBytes += d.memory(); f.dirBytes > 8<<20 {
		clear(f.dirs)
		f.dirBytes = d.memory()
	}
	f.dirs[ino] = d
	return d, nil
}

// Stat describes the file called name, without following a final symbolic link. The header's times have the
// resolution that the inode has (ns in inodes over 128 bytes), Uname and Gname are empty.
func (f *FS) Stat(name string) (*tar.Header, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	ino, err := f.lookup(clean)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	h, err := f.header(ino)
	if err != nil {
		return nil, pathErr("stat", name, err)
	}
	if h.Name = clean; clean == "" {
		h.Name = "."
	}
	return h, nil
}

// SameFile says whether two names are hard links to one file.
func (f *FS) SameFile(a, b string) (bool, error) {
	var inos [2]uint32
	for i, name := range []string{a, b} {
		clean, err := cleanName(name)
		if err == nil {
			inos[i], err = f.lookup(clean)
		}
		if err != nil {
			return false, pathErr("stat", name, err)
		}
	}
	return inos[0] == inos[1], nil
}

func (f *FS) header(ino uint32) (*tar.Header, error) {
	raw, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	h := &tar.Header{
		Mode:       int64(le.Uint16(raw[inMode:]) & 07777),
		Uid:        int(le.Uint16(raw[inUIDLo:])) | int(le.Uint16(raw[inUIDHi:]))<<16,
		Gid:        int(le.Uint16(raw[inGIDLo:])) | int(le.Uint16(raw[inGIDHi:]))<<16,
		ModTime:    inodeTime(raw, inMtime, inMtimeExtra),
		AccessTime: inodeTime(raw, inAtime, inAtimeExtra),
		ChangeTime: inodeTime(raw, inCtime, inCtimeExtra),
	}
	switch t := inodeType(raw); t {
	case modeReg:
		h.Typeflag, h.Size = tar.TypeReg, inodeSize(raw)
	case modeDir:
		h.Typeflag = tar.TypeDir
	case modeLink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = f.readLink(ino, raw); err != nil {
			return nil, err
		}
	case modeFifo:
		h.Typeflag = tar.TypeFifo
	case modeSock:
		h.Typeflag = TypeSocket
	case modeChar, modeBlk:
		h.Typeflag = tar.TypeChar
		if t == modeBlk {
			h.Typeflag = tar.TypeBlock
		}
		if old := le.Uint32(raw[inBlock:]); old != 0 {
			h.Devmajor, h.Devminor = int64(old>>8&0xff), int64(old&0xff)
		} else {
			dev := le.Uint32(raw[inBlock+4:])
			h.Devmajor, h.Devminor = int64(dev>>8&0xfff), int64(dev&0xff|dev>>12&0xfff00)
		}
	default:
		return nil, corrupt("inode %d has mode %#o", ino, le.Uint16(raw[inMode:]))
	}
	xs, err := f.readXattrs(ino, raw)
	if err != nil {
		return nil, err
	}
	for _, x := range xs {
		name, value, err := x.external()
		if err != nil {
			return nil, fmt.Errorf("inode %d: %w", ino, err)
		}
		if name == "" {
			continue
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = value
	}
	return h, nil
}

func (f *FS) readLink(ino uint32, raw []byte) (string, error) {
	size := inodeSize(raw)
	flags := inodeFlags(raw)
	if flags&flagEncrypt != 0 {
		return "", unsupported("inode %d is an encrypted symbolic link", ino)
	}
	var b []byte
	switch {
	case flags&flagInlineData != 0:
		data, err := f.inlineData(ino, raw)
		if err != nil {
			return "", err
		}
		b = data
	case size < inBlockLen && flags&flagExtents == 0 && f.inodeUnits(raw) == f.aclUnits(raw):
		b = raw[inBlock : inBlock+size]
	default:
		if size > f.bs {
			return "", corrupt("inode %d is a symbolic link of %d bytes", ino, size)
		}
		b = make([]byte, size)
		m := newBlockMap(f, ino, raw)
		if _, err := m.ReadAt(b, 0); err != nil && err != io.EOF {
			return "", err
		}
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return "", corrupt("inode %d is a symbolic link with a NUL in its target", ino)
	}
	return string(b), nil
}

func (f *FS) aclUnits(raw []byte) int64 {
	if f.aclBlock(raw) != 0 {
		return f.bs / 512
	}
	return 0
}

// ReadDir lists the names in the directory called name, without . and .., sorted bytewise.
func (f *FS) ReadDir(name string) ([]string, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	d, err := f.folderAt(clean)
	if err != nil {
		return nil, pathErr("readdir", name, err)
	}
	names := make([]string, 0, d.live)
	for at := 0; at < len(d.arena); at = d.next(at) {
		if d.entryInode(at) != 0 {
			names = append(names, string(d.entryName(at)))
		}
	}
	sort.Strings(names)
	return names, nil
}

// Open gives the content of the regular file called name. Holes and unwritten blocks read as zeros. On a
// read-only FS the reader may be used concurrently; on a Writer it must not be used after a later Replace or Remove.
func (f *FS) Open(name string) (*io.SectionReader, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, pathErr("open", name, err)
	}
	r, err := f.openClean(clean)
	return r, pathErr("open", name, err)
}

func (f *FS) openClean(clean string) (*io.SectionReader, error) {
	ino, err := f.lookup(clean)
	if err != nil {
		return nil, err
	}
	raw, err := f.inode(ino)
	if err != nil {
		return nil, err
	}
	switch inodeType(raw) {
	case modeReg:
	case modeDir:
		return nil, syscall.EISDIR
	default:
		return nil, fmt.Errorf("%w: not a regular file", fs.ErrInvalid)
	}
	flags := inodeFlags(raw)
	if flags&flagEncrypt != 0 {
		return nil, unsupported("inode %d is encrypted", ino)
	}
	if f.w != nil && !f.w.kept(ino) {
		return nil, fmt.Errorf("%w: a writer that only counts keeps no content", ErrUnsupported)
	}
	size := inodeSize(raw)
	if flags&flagInlineData != 0 {
		data, err := f.inlineData(ino, raw)
		if err != nil {
			return nil, err
		}
		return io.NewSectionReader(bytes.NewReader(data), 0, size), nil
	}
	return io.NewSectionReader(newBlockMap(f, ino, raw), 0, size), nil
}

// inlineData returns the content of an inode that holds it itself: the first 60 bytes where the block map would
// be, the rest in the attribute system.data.
func (f *FS) inlineData(ino uint32, raw []byte) ([]byte, error) {
	size := inodeSize(raw)
	if size > int64(f.bs) {
		return nil, corrupt("inode %d holds %d bytes inline", ino, size)
	}
	data := append([]byte(nil), raw[inBlock:inBlock+inBlockLen]...)
	if size > inBlockLen {
		xs, err := f.readXattrs(ino, raw)
		if err != nil {
			return nil, err
		}
		for _, x := range xs {
			if x.index == xiSystem && x.name == "data" {
				data = append(data, x.value...)
			}
		}
	}
	if size > int64(len(data)) {
		return nil, corrupt("inode %d holds %d bytes inline but its size is %d", ino, len(data), size)
	}
	return data[:size], nil
}
