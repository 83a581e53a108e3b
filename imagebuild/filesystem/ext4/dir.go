package ext4

import (
	"bytes"
	"fmt"
	"hash/maphash"
)

// folder is a directory's entries in the order in which they were read or added. An entry in the arena is a u32
// inode (0: removed), a u8 file type, a u8 name length and the name: no pointers, so that a million files cost
// little more than their names.
type folder struct {
	ino, parent uint32
	links       uint32 // wanted in the inode; 1 for ever once there were too many
	live        uint32
	project     uint32 // that new entries inherit
	arena       []byte
	index       []uint32 // open addressing by the name's hash, arena offset + 1; nil while small
	slots       uint32   // of index in use

	pinned  bool // it is being changed: there is no other copy of it
	entries bool // the entries must be written
	attrs   bool // the inode's attributes were given by the caller, so the entries do not change its times
	inline  bool // the entries are in the inode
}

const (
	entInode   = 0
	entType    = 4
	entNameLen = 5
	entName    = 6

	unindexed = 8 // entries below which a scan is as fast as a hash
)

// nameSeed only orders probes in memory; nothing that is written depends on it.
var nameSeed = maphash.MakeSeed()

func (d *folder) next(at int) int             { return at + entName + int(d.arena[at+entNameLen]) }
func (d *folder) entryInode(at int) uint32    { return le.Uint32(d.arena[at:]) }
func (d *folder) entryType(at int) uint8      { return d.arena[at+entType] }
func (d *folder) entryName(at int) []byte     { return d.arena[at+entName : d.next(at)] }
func (d *folder) setInode(at int, ino uint32) { le.PutUint32(d.arena[at:], ino) }
func (d *folder) memory() int                 { return cap(d.arena) + 4*cap(d.index) + 160 }
func (d *folder) is(at int, name string) bool {
	return string(d.entryName(at)) == name && d.entryInode(at) != 0
}

// find returns the arena offset of the entry called name, or -1.
func (d *folder) find(name string) int {
	if d.index == nil {
		for at := 0; at < len(d.arena); at = d.next(at) {
			if d.is(at, name) {
				return at
			}
		}
		return -1
	}
	mask := uint32(len(d.index) - 1)
	for i := uint32(maphash.String(nameSeed, name)) & mask; d.index[i] != 0; i = (i + 1) & mask {
		if at := int(d.index[i] - 1); d.is(at, name) {
			return at
		}
	}
	return -1
}

// add appends an entry; the caller knows that the name is new.
func (d *folder) add(ino uint32, ft uint8, name string) error {
	at := len(d.arena)
	if int64(at)+entName+maxName >= 1<<32-1 {
		return unsupported("a folder whose names take more than 4 GiB")
	}
	if need := at + entName + len(name); need > cap(d.arena) {
		// Grown by a quarter: doubling would waste on average what the names themselves take.
		grown := make([]byte, at, max(need+need/4, 64))
		copy(grown, d.arena)
		d.arena = grown
	}
	d.arena = append(d.arena, byte(ino), byte(ino>>8), byte(ino>>16), byte(ino>>24), ft, byte(len(name)))
	d.arena = append(d.arena, name...)
	d.live++
	if d.index != nil && (d.slots+1)*4 <= uint32(len(d.index))*3 {
		d.insert(at)
	} else if d.index != nil || d.live > unindexed {
		d.reindex()
	}
	return nil
}

func (d *folder) insert(at int) {
	mask := uint32(len(d.index) - 1)
	i := uint32(maphash.Bytes(nameSeed, d.entryName(at))) & mask
	for d.index[i] != 0 {
		i = (i + 1) & mask
	}
	d.index[i] = uint32(at) + 1
	d.slots++
}

func (d *folder) reindex() {
	size := uint32(16)
	for size*3 < (d.live+1)*4 || size < d.live+d.live/2 {
		size *= 2
	}
	d.index = make([]uint32, size)
	d.slots = 0
	for at := 0; at < len(d.arena); at = d.next(at) {
		if d.entryInode(at) != 0 {
			d.insert(at)
		}
	}
}

func (d *folder) remove(at int) {
	d.setInode(at, 0)
	d.live--
}

func recLen(nameLen int) int { return (deName + nameLen + 3) &^ 3 }

// readFolder parses the directory ino, whose inode is raw.
func (f *FS) readFolder(ino uint32, raw []byte) (*folder, error) {
	d := &folder{ino: ino, links: uint32(le.Uint16(raw[inLinks:]))}
	flags := inodeFlags(raw)
	if flags&flagEncrypt != 0 {
		return nil, unsupported("inode %d is an encrypted folder", ino)
	}
	if flags&flagInlineData != 0 {
		d.inline = true
		data, err := f.inlineData(ino, raw)
		if err != nil {
			return nil, err
		}
		if len(data) < 4 {
			return nil, corrupt("inode %d: an inline folder of %d bytes", ino, len(data))
		}
		d.parent = le.Uint32(data)
		where := fmt.Sprintf("inode %d: inline folder", ino)
		for _, part := range [][]byte{data[4:min(len(data), inBlockLen)], data[min(len(data), inBlockLen):]} {
			if err := f.parseEntries(d, part, where); err != nil {
				return nil, err
			}
		}
		return d, nil
	}
	seed := f.inodeSeed(ino, le.Uint32(raw[inGeneration:]))
	indexed := flags&flagIndex != 0 && f.compat&compatDirIndex != 0
	budget := f.blocks
	// Blocks come in through one buffer of up to 64 KiB: a folder in one run costs few reads.
	per := max(1, 65536/f.bs)
	var buf []byte
	err := f.walkMap(ino, raw, func(e extent) error {
		if e.unwritten {
			return corrupt("inode %d: folder block %d is unwritten", ino, e.log)
		}
		if budget -= int64(e.n); budget < 0 {
			return corrupt("inode %d: folder names more blocks than there are", ino)
		}
		if (int64(e.log)+int64(e.n))*f.bs > inodeSize(raw) {
			if int64(e.log)*f.bs >= inodeSize(raw) {
				return nil
			}
			e.n = uint32((inodeSize(raw)+f.bs-1)/f.bs - int64(e.log))
		}
		for i := int64(0); i < int64(e.n); {
			n := min(per, int64(e.n)-i)
			if buf == nil {
				buf = make([]byte, min(per, max(n, (inodeSize(raw)+f.bs-1)/f.bs))*f.bs)
			}
			part := buf[:n*f.bs]
			if err := f.readRange((e.phys+i)*f.bs, part); err != nil {
				return fmt.Errorf("reading folder inode %d: %w", ino, err)
			}
			for j := range n {
				if err := f.parseDirBlock(d, part[j*f.bs:(j+1)*f.bs], seed, int64(e.log)+i+j, indexed); err != nil {
					return err
				}
			}
			i += n
		}
		return nil
	}, func(int64) error { return nil })
	if err != nil {
		return nil, err
	}
	if d.parent == 0 {
		return nil, corrupt("inode %d: a folder without \"..\"", ino)
	}
	return d, nil
}

func (f *FS) parseDirBlock(d *folder, b []byte, seed uint32, log int64, indexed bool) error {
	where := fmt.Sprintf("inode %d: folder block %d", d.ino, log)
	if f.metaCsum {
		first := 0
		if indexed && log == 0 {
			first = dxRootEntries
		} else if indexed && le.Uint32(b) == 0 && f.recLen(b[deRecLen:]) == len(b) {
			first = dxNodeEntries
		}
		if first > 0 {
			limit, count := int(le.Uint16(b[first:])), int(le.Uint16(b[first+2:]))
			tail := first + limit*dxEntry
			if count > limit || tail+dxTail > len(b) {
				return corrupt("%s: hash tree node with %d entries of %d", where, count, limit)
			}
			if dxSum(seed, b, first, count, tail) != le.Uint32(b[tail+4:]) {
				return corrupt("%s has a wrong hash tree checksum", where)
			}
		} else if t := b[len(b)-dirTailLen:]; le.Uint32(t) != 0 || f.recLen(t[deRecLen:]) != dirTailLen || t[deNameLen] != 0 || t[deType] != dirTailType {
			return corrupt("%s has no checksum", where)
		} else if crc32c(seed, b[:len(b)-dirTailLen]) != le.Uint32(t[8:]) {
			return corrupt("%s has a wrong checksum", where)
		}
	}
	return f.parseEntries(d, b, where)
}

// recLen decodes an entry's length, which in a 64 KiB block may not fit 16 bits.
func (f *FS) recLen(b []byte) int {
	n := int(le.Uint16(b))
	if f.bs == 65536 && (n == 0 || n == 65535) {
		return 65536
	}
	return n
}

// parseEntries adds the live entries of b to d.
func (f *FS) parseEntries(d *folder, b []byte, where string) error {
	for at := 0; at < len(b); {
		e := b[at:]
		if len(e) < deName {
			return corrupt("%s: entry at byte %d is cut off", where, at)
		}
		n, nameLen := f.recLen(e[deRecLen:]), int(e[deNameLen])
		if n < deName || n%4 != 0 || n > len(e) || nameLen > n-deName {
			return corrupt("%s: entry at byte %d has length %d and a name of %d", where, at, n, nameLen)
		}
		at += n
		ino := le.Uint32(e)
		if ino == 0 {
			continue
		}
		name := e[deName : deName+nameLen]
		if nameLen == 0 || bytes.IndexByte(name, 0) >= 0 || bytes.IndexByte(name, '/') >= 0 {
			return corrupt("%s: entry at byte %d has the name %q", where, at-n, name)
		}
		switch string(name) {
		case ".":
			continue
		case "..":
			d.parent = ino
			continue
		}
		if ino > f.inodes || ino < f.firstInode() {
			return corrupt("%s: %q is inode %d", where, name, ino)
		}
		ft := uint8(0)
		if f.incompat&incompatFiletype != 0 {
			ft = e[deType]
		}
		s := string(name)
		if d.find(s) >= 0 {
			return corrupt("%s: %q is there twice", where, name)
		}
		if err := d.add(ino, ft, s); err != nil {
			return err
		}
	}
	return nil
}

// firstInode is the first inode number that a folder entry may name.
func (f *FS) firstInode() uint32 {
	if le.Uint32(f.sb[sbRevLevel:]) == 0 {
		return 11
	}
	return max(le.Uint32(f.sb[sbFirstInode:]), rootInode+1)
}

// putEntry writes a directory entry that reaches to the byte end of b.
func (f *FS) putEntry(b []byte, ino uint32, ft uint8, name []byte, length int) {
	le.PutUint32(b, ino)
	if length == 65536 {
		length = 65535
	}
	le.PutUint16(b[deRecLen:], uint16(length))
	b[deNameLen] = byte(len(name))
	b[deType] = 0
	if f.incompat&incompatFiletype != 0 {
		b[deType] = ft
	}
	copy(b[deName:], name)
}

func (f *FS) dirTail() int {
	if f.metaCsum {
		return dirTailLen
	}
	return 0
}

// sealDirBlock puts the checksum at the end of a block of entries.
func (f *FS) sealDirBlock(b []byte, seed uint32) {
	if !f.metaCsum {
		return
	}
	t := b[len(b)-dirTailLen:]
	clear(t)
	le.PutUint16(t[deRecLen:], dirTailLen)
	t[deType] = dirTailType
	le.PutUint32(t[8:], crc32c(seed, b[:len(b)-dirTailLen]))
}
