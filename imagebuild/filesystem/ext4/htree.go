package ext4

import (
	"fmt"
	"math/bits"
	"slices"
)

// nameHash is the kernel's hash of a name for hashed folders (fs/ext4/hash.c): the major hash, with its low bit clear, and the minor one.
func (f *FS) nameHash(version uint8, name []byte) (major, minor uint32) {
	unsigned := f.hashChars != 0
	char := func(c byte) uint32 {
		if unsigned {
			return uint32(c)
		}
		return uint32(int32(int8(c)))
	}
	buf := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if f.hashSeed != [4]uint32{} {
		buf = f.hashSeed
	}
	var in [8]uint32
	switch version {
	case hashLegacy:
		h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
		for _, c := range name {
			h := h1 + (h0 ^ char(c)*7152373)
			if h&0x80000000 != 0 {
				h -= 0x7fffffff
			}
			h1, h0 = h0, h
		}
		major = h0 << 1
	case hashHalfMD4:
		for p := name; len(p) > 0; p = p[min(32, len(p)):] {
			packName(in[:8], p, char)
			halfMD4(&buf, &in)
		}
		major, minor = buf[1], buf[2]
	case hashTea:
		for p := name; len(p) > 0; p = p[min(16, len(p)):] {
			packName(in[:4], p, char)
			tea(&buf, &in)
		}
		major, minor = buf[0], buf[1]
	}
	major &^= 1
	if major == 0xFFFFFFFE { // the end of a directory, for readdir
		major = 0xFFFFFFFC
	}
	return major, minor
}

// packName packs a name into words, most significant character first, padded with its length.
func packName(out []uint32, name []byte, char func(byte) uint32) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	name = name[:min(len(name), 4*len(out))]
	for i := range out {
		v := pad
		part := name[min(len(name), 4*i):min(len(name), 4*i+4)]
		for _, c := range part {
			v = char(c) + v<<8
		}
		out[i] = v
	}
}

func halfMD4(buf *[4]uint32, in *[8]uint32) {
	const k2, k3 = 0x5A827999, 0x6ED9EBA1
	a, b, c, d := buf[0], buf[1], buf[2], buf[3]
	f := func(x, y, z uint32) uint32 { return z ^ (x & (y ^ z)) }
	g := func(x, y, z uint32) uint32 { return (x & y) + ((x ^ y) & z) }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	for _, i := range [2]int{0, 4} {
		a = bits.RotateLeft32(a+f(b, c, d)+in[i], 3)
		d = bits.RotateLeft32(d+f(a, b, c)+in[i+1], 7)
		c = bits.RotateLeft32(c+f(d, a, b)+in[i+2], 11)
		b = bits.RotateLeft32(b+f(c, d, a)+in[i+3], 19)
	}
	for _, i := range [2]int{1, 0} {
		a = bits.RotateLeft32(a+g(b, c, d)+in[i]+k2, 3)
		d = bits.RotateLeft32(d+g(a, b, c)+in[i+2]+k2, 5)
		c = bits.RotateLeft32(c+g(d, a, b)+in[i+4]+k2, 9)
		b = bits.RotateLeft32(b+g(c, d, a)+in[i+6]+k2, 13)
	}
	for _, i := range [2]int{3, 1} {
		j := i - 1
		a = bits.RotateLeft32(a+h(b, c, d)+in[i]+k3, 3)
		d = bits.RotateLeft32(d+h(a, b, c)+in[i+4]+k3, 9)
		c = bits.RotateLeft32(c+h(d, a, b)+in[j]+k3, 11)
		b = bits.RotateLeft32(b+h(c, d, a)+in[j+4]+k3, 15)
	}
	buf[0] += a
	buf[1] += b
	buf[2] += c
	buf[3] += d
}

func tea(buf *[4]uint32, in *[8]uint32) {
	b0, b1, sum := buf[0], buf[1], uint32(0)
	for range 16 {
		sum += 0x9E3779B9
		b0 += ((b1 << 4) + in[0]) ^ (b1 + sum) ^ ((b1 >> 5) + in[1])
		b1 += ((b0 << 4) + in[2]) ^ (b0 + sum) ^ ((b0 >> 5) + in[3])
	}
	buf[0] += b0
	buf[1] += b1
}

// dirPlan is how a folder's entries are laid out in blocks.
type dirPlan struct {
	indexed bool
	blocks  int64
	levels  int // of nodes between the root and the leaves
	nodes   []int
	entries []dirEntry
	leaves  []int // index of each leaf's first entry
}

type dirEntry struct {
	hash, minor uint32
	at          uint32 // in the arena
}

// planFolder decides on the layout: one block of entries, or a hash tree, or, without dir_index, a plain list.
func (f *FS) planFolder(d *folder) (*dirPlan, error) {
	p := &dirPlan{entries: make([]dirEntry, 0, d.live)}
	room := int(f.bs) - f.dirTail()
	size := recLen(1) + recLen(2)
	for at := 0; at < len(d.arena); at = d.next(at) {
		if d.entryInode(at) != 0 {
			p.entries = append(p.entries, dirEntry{at: uint32(at)})
			size += recLen(int(d.arena[at+entNameLen]))
		}
	}
	p.indexed = size > room && f.compat&compatDirIndex != 0
	used := recLen(1) + recLen(2)
	if p.indexed {
		for i := range p.entries {
			e := &p.entries[i]
			e.hash, e.minor = f.nameHash(f.hashVer, d.entryName(int(e.at)))
		}
		slices.SortStableFunc(p.entries, func(a, b dirEntry) int {
			if a.hash != b.hash {
				if a.hash < b.hash {
					return -1
				}
				return 1
			}
			if a.minor < b.minor {
				return -1
			} else if a.minor > b.minor {
				return 1
			}
			return 0
		})
		used = 0
	}
	p.leaves = append(p.leaves, 0)
	for i, e := range p.entries {
		n := recLen(int(d.arena[int(e.at)+entNameLen]))
		if used+n > room {
			p.leaves = append(p.leaves, i)
			used = 0
		}
		used += n
	}
	p.blocks = int64(len(p.leaves))
	if !p.indexed {
		return p, nil
	}
	root, node := f.dxLimit(dxRootEntries), f.dxLimit(dxNodeEntries)
	for n := len(p.leaves); n > root; {
		n = (n + node - 1) / node
		p.nodes = append([]int{n}, p.nodes...)
		p.levels++
		p.blocks += int64(n)
	}
	p.blocks++
	if p.levels > 2 || p.levels == 2 && f.incompat&incompatLargeDir == 0 {
		return nil, unsupported("a folder of %d entries, which needs a hash tree of %d levels", d.live, p.levels+1)
	}
	return p, nil
}

func (f *FS) dxLimit(first int) int {
	n := int(f.bs) - first
	if f.metaCsum {
		n -= dxTail
	}
	return n / dxEntry
}

// writeFolder calls out for each block of the plan, in order; the slice is reused.
func (f *FS) writeFolder(d *folder, p *dirPlan, generation uint32, out func(log int64, b []byte) error) error {
	seed := f.inodeSeed(d.ino, generation)
	b := make([]byte, f.bs)
	if p.indexed {
		if err := f.writeNodes(d, p, seed, b, out); err != nil {
			return err
		}
	}
	room := int(f.bs) - f.dirTail()
	first := p.blocks - int64(len(p.leaves))
	for l, i := range p.leaves {
		end := len(p.entries)
		if l+1 < len(p.leaves) {
			end = p.leaves[l+1]
		}
		clear(b)
		at, last := 0, 0
		put := func(ino uint32, ft uint8, name []byte) {
			last = at
			f.putEntry(b[at:], ino, ft, name, recLen(len(name)))
			at += recLen(len(name))
		}
		if first+int64(l) == 0 {
			put(d.ino, ftDir, []byte("."))
			put(d.parent, ftDir, []byte(".."))
		}
		for _, e := range p.entries[i:end] {
			put(d.entryInode(int(e.at)), d.entryType(int(e.at)), d.entryName(int(e.at)))
		}
		if at > room {
			return fmt.Errorf("folder inode %d: block %d overflows", d.ino, first+int64(l))
		}
		if length := room - last; length == 65536 {
			le.PutUint16(b[last+deRecLen:], 65535)
		} else {
			le.PutUint16(b[last+deRecLen:], uint16(length))
		}
		f.sealDirBlock(b, seed)
		if err := out(first+int64(l), b); err != nil {
			return err
		}
	}
	return nil
}

// writeNodes writes the root and the nodes of a hash tree. They come before the leaves, level by level, so a
// node's children are consecutive blocks.
func (f *FS) writeNodes(d *folder, p *dirPlan, seed uint32, b []byte, out func(int64, []byte) error) error {
	// hash is what the entry of leaf l says: a leaf that begins inside a run of equal hashes has the low bit set.
	hash := func(l int) uint32 {
		i := p.leaves[l]
		h := p.entries[i].hash
		if i > 0 && p.entries[i-1].hash == h {
			h |= 1
		}
		return h
	}
	counts := append(append([]int{1}, p.nodes...), len(p.leaves))
	node := f.dxLimit(dxNodeEntries)
	log := int64(0)
	for level := 0; level+1 < len(counts); level++ {
		// span is the number of leaves below one child.
		span := 1
		for range len(counts) - level - 2 {
			span *= node
		}
		childBlock := log + int64(counts[level])
		for k := range counts[level] {
			clear(b)
			first, limit := dxNodeEntries, node
			if level == 0 {
				first, limit = dxRootEntries, f.dxLimit(dxRootEntries)
				f.putEntry(b, d.ino, ftDir, []byte("."), recLen(1))
				f.putEntry(b[recLen(1):], d.parent, ftDir, []byte(".."), int(f.bs)-recLen(1))
				b[dxInfo+4] = f.hashVer
				b[dxInfo+5] = 8
				b[dxInfo+6] = byte(p.levels)
			} else {
				f.putEntry(b, 0, 0, nil, int(f.bs))
			}
			from := k * node
			n := min(limit, counts[level+1]-from)
			for j := range n {
				e := b[first+j*dxEntry:]
				if j > 0 {
					le.PutUint32(e, hash((from+j)*span))
				}
				le.PutUint32(e[4:], uint32(childBlock+int64(from+j)))
			}
			le.PutUint16(b[first:], uint16(limit))
			le.PutUint16(b[first+2:], uint16(n))
			if f.metaCsum {
				tail := first + limit*dxEntry
				le.PutUint32(b[tail+4:], dxSum(seed, b, first, n, tail))
			}
			if err := out(log, b); err != nil {
				return err
			}
			log++
		}
	}
	return nil
}
