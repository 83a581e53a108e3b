package ext4

import "hash/crc32"

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's form, with neither the initial nor the final inversion.
func crc32c(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }

func crc32c32(seed, v uint32) uint32 {
	return crc32c(seed, []byte{byte(v), byte(v >> 8), byte(v >> 16), byte(v >> 24)})
}

var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			if c&1 != 0 {
				c = c>>1 ^ 0xA001
			} else {
				c >>= 1
			}
		}
		t[i] = c
	}
	return t
}()

func crc16(c uint16, p []byte) uint16 {
	for _, b := range p {
		c = c>>8 ^ crc16Table[byte(c)^b]
	}
	return c
}

// inodeSeed starts every checksum that belongs to one inode: its own, its folder blocks', its extent blocks'.
func (f *FS) inodeSeed(ino, generation uint32) uint32 {
	return crc32c32(crc32c32(f.seed, ino), generation)
}

// inodeSum returns the checksum of raw and whether its high half is stored.
func (f *FS) inodeSum(ino uint32, raw []byte) (sum uint32, hi bool) {
	hi = len(raw) > oldInodeSize && le.Uint16(raw[inExtraIsize:]) >= inCsumHi+2-oldInodeSize
	zero := []byte{0, 0}
	sum = f.inodeSeed(ino, le.Uint32(raw[inGeneration:]))
	sum = crc32c(sum, raw[:inCsumLo])
	sum = crc32c(sum, zero)
	sum = crc32c(sum, raw[inCsumLo+2:min(len(raw), inCsumHi)])
	if len(raw) > oldInodeSize {
		if hi {
			sum = crc32c(sum, zero)
		} else {
			sum = crc32c(sum, raw[inCsumHi:inCsumHi+2])
		}
		sum = crc32c(sum, raw[inCsumHi+2:])
	}
	return sum, hi
}

func (f *FS) setInodeSum(ino uint32, raw []byte) {
	if !f.metaCsum {
		return
	}
	sum, hi := f.inodeSum(ino, raw)
	le.PutUint16(raw[inCsumLo:], uint16(sum))
	if hi {
		le.PutUint16(raw[inCsumHi:], uint16(sum>>16))
	}
}

func (f *FS) inodeSumOK(ino uint32, raw []byte) bool {
	if !f.metaCsum {
		return true
	}
	sum, hi := f.inodeSum(ino, raw)
	if !hi {
		return uint16(sum) == le.Uint16(raw[inCsumLo:])
	}
	return sum == uint32(le.Uint16(raw[inCsumLo:]))|uint32(le.Uint16(raw[inCsumHi:]))<<16
}

// descSum is the checksum of group g's descriptor d.
func (f *FS) descSum(g uint32, d []byte) uint16 {
	num := []byte{byte(g), byte(g >> 8), byte(g >> 16), byte(g >> 24)}
	if f.metaCsum {
		sum := crc32c(f.seed, num)
		sum = crc32c(sum, d[:gdChecksum])
		sum = crc32c(sum, []byte{0, 0})
		return uint16(crc32c(sum, d[gdChecksum+2:]))
	}
	sum := crc16(0xFFFF, f.sb[sbUUID:sbUUID+16])
	sum = crc16(sum, num)
	sum = crc16(sum, d[:gdChecksum])
	return crc16(sum, d[gdChecksum+2:])
}

// xattrBlockSum is the checksum of the attribute block b at the given block number.
func (f *FS) xattrBlockSum(block int64, b []byte) uint32 {
	var num [8]byte
	le.PutUint64(num[:], uint64(block))
	sum := crc32c(f.seed, num[:])
	sum = crc32c(sum, b[:xhChecksum])
	sum = crc32c(sum, []byte{0, 0, 0, 0})
	return crc32c(sum, b[xhChecksum+4:])
}

// dxSum is the checksum of a hash tree block whose entries begin at first and number count; the tail is at tail.
func dxSum(seed uint32, b []byte, first, count, tail int) uint32 {
	sum := crc32c(seed, b[:first+count*dxEntry])
	sum = crc32c(sum, b[tail:tail+4])
	return crc32c(sum, []byte{0, 0, 0, 0})
}
