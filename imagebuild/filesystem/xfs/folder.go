package xfs

import "math/bits"

// dirent is one entry of a folder; ino 0 marks one that was removed.
type dirent struct {
	ino   uint64
	off   uint32 // of the name in folder.names
	nlen  uint8
	ftype uint8
}

// folder holds a folder's entries compactly: names in one arena, an open-addressed table of hashes over them.
type folder struct {
	ino, parent uint64
	ci          bool // names match without ASCII case
	names       []byte
	ents        []dirent
	table       []uint32 // index+1 into ents
	live        int
	subdirs     int

	// While writing:
	dirty    bool
	explicit bool   // its times were asked for, so new entries do not touch them
	attrsSet bool   // attrs replace what the inode has
	attrs    []attr // sorted as they were given
	inherit  inherited
	gen      uint32 // generation of its inode
	planned  bool   // growth is what Commit will add to its blocks
	growth   int64
}

// pointer is the attribute that leads from a file back to its name in d.
func (d *folder) pointer(name string) attr {
	v := be.AppendUint64(nil, d.ino)
	return attr{flags: attrParent, name: name, value: string(be.AppendUint32(v, d.gen))}
}

func (d *folder) name(e *dirent) []byte { return d.names[e.off : int(e.off)+int(e.nlen)] }

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// hashName is the hash that orders folder leaves and attribute leaves.
func hashName[T string | []byte](name T) uint32 {
	var h uint32
	i, n := 0, len(name)
	for ; n >= 4; n -= 4 {
		h = uint32(name[i])<<21 ^ uint32(name[i+1])<<14 ^ uint32(name[i+2])<<7 ^ uint32(name[i+3]) ^ bits.RotateLeft32(h, 28)
		i += 4
	}
	switch n {
	case 3:
		return uint32(name[i])<<14 ^ uint32(name[i+1])<<7 ^ uint32(name[i+2]) ^ bits.RotateLeft32(h, 21)
	case 2:
		return uint32(name[i])<<7 ^ uint32(name[i+1]) ^ bits.RotateLeft32(h, 14)
	case 1:
		return uint32(name[i]) ^ bits.RotateLeft32(h, 7)
	}
	return h
}

// dirHash is hashName, or on a filesystem without ASCII case a byte-wise hash of the lowered name.
func dirHash[T string | []byte](name T, ci bool) uint32 {
	if !ci {
		return hashName(name)
	}
	var h uint32
	for i := 0; i < len(name); i++ {
		h = uint32(lower(name[i])) ^ bits.RotateLeft32(h, 7)
	}
	return h
}

func (d *folder) same(e *dirent, name string) bool {
	n := d.name(e)
	if !d.ci {
		return string(n) == name
	}
	if len(n) != len(name) {
		return false
	}
	for i := range n {
		if lower(n[i]) != lower(name[i]) {
			return false
		}
	}
	return true
}

// slotHash spreads the on-disk hash, whose low bits cluster on names that differ in their last bytes only.
func slotHash(h uint32) uint32 { return h * 0x9e3779b1 >> 3 }

func (d *folder) find(name string) *dirent {
	if len(d.table) == 0 {
		for i := range d.ents {
			if e := &d.ents[i]; e.ino != 0 && d.same(e, name) {
				return e
			}
		}
		return nil
	}
	mask := uint32(len(d.table) - 1)
	for s := slotHash(dirHash(name, d.ci)) & mask; ; s = (s + 1) & mask {
		i := d.table[s]
		if i == 0 {
			return nil
		}
		if e := &d.ents[i-1]; e.ino != 0 && d.same(e, name) {
			return e
		}
	}
}

func (d *folder) index(i int) {
	mask := uint32(len(d.table) - 1)
	s := slotHash(dirHash(d.name(&d.ents[i]), d.ci)) & mask
	for d.table[s] != 0 {
		s = (s + 1) & mask
	}
	d.table[s] = uint32(i + 1)
}

// add appends an entry whose name is not there yet.
func (d *folder) add(name []byte, ino uint64, ftype byte) error {
	if len(d.ents) >= 1<<30 || uint64(len(d.names))+uint64(len(name)) > 1<<32-1 {
		return corrupt("inode %d: a folder of %d entries is more than can be handled", d.ino, len(d.ents))
	}
	d.ents = append(d.ents, dirent{ino: ino, off: uint32(len(d.names)), nlen: uint8(len(name)), ftype: ftype})
	d.names = append(d.names, name...)
	d.live++
	if ftype == ftypeOfMode[modeDir] {
		d.subdirs++
	}
	switch n := len(d.ents); {
	case n > 12 && n*2 > len(d.table):
		d.table = make([]uint32, 1<<bits.Len(uint(n)*2+1))
		for i := range d.ents {
			d.index(i)
		}
	case len(d.table) > 0:
		d.index(n - 1)
	}
	return nil
}

func (d *folder) remove(e *dirent) {
	if e.ftype == ftypeOfMode[modeDir] {
		d.subdirs--
	}
	e.ino = 0
	d.live--
}
