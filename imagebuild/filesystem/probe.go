package filesystem

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"strings"
)

// Kind names what a partition holds, in the words that blkid uses.
type Kind string

// What Probe tells apart. Ext4 stands for the whole family: ext2 and ext3 are ext4 with fewer features.
const (
	Unknown  Kind = ""
	Ext4     Kind = "ext4"
	XFS      Kind = "xfs"
	Btrfs    Kind = "btrfs"
	LVM      Kind = "LVM2_member"
	LUKS     Kind = "crypto_LUKS"
	VFAT     Kind = "vfat"
	Swap     Kind = "swap"
	RAID     Kind = "linux_raid_member"
	Squashfs Kind = "squashfs"
	Erofs    Kind = "erofs"
	F2FS     Kind = "f2fs"
)

// Writable says whether OpenWriter knows the kind.
func (k Kind) Writable() bool { return k == Ext4 || k == XFS }

// Probed is what the first blocks of a partition say.
type Probed struct {
	Kind  Kind
	Label string
	UUID  string
}

// Probe tells by magic numbers what fills r from 0 to size bytes. It reads at most 128 KiB and no more than
// size. An unknown content is not an error: Kind is Unknown. Offsets are those of each format's superblock.
func Probe(r io.ReaderAt, size int64) (Probed, error) {
	b := make([]byte, min(size, 128<<10))
	n, err := r.ReadAt(b, 0)
	if err != nil && !(errors.Is(err, io.EOF) && n == len(b)) {
		return Probed{}, err
	}
	// Past the end everything reads as zeros: no magic below is zero.
	at := func(off, n int) []byte {
		if off+n > len(b) {
			return make([]byte, n)
		}
		return b[off : off+n]
	}
	is := func(off int, magic string) bool { return string(at(off, len(magic))) == magic }
	switch {
	case is(0, "LUKS\xba\xbe"):
		return Probed{LUKS, text(at(24, 48)), text(at(168, 40))}, nil
	case is(0, "XFSB"):
		return Probed{XFS, text(at(108, 12)), uuid(at(32, 16))}, nil
	case is(512, "LABELONE") && is(536, "LVM2 001"), is(0, "LABELONE") && is(24, "LVM2 001"):
		return Probed{Kind: LVM}, nil
	case is(65536+64, "_BHRfS_M"):
		return Probed{Btrfs, text(at(65536+299, 256)), uuid(at(65536+32, 16))}, nil
	case binary.LittleEndian.Uint32(at(4096, 4)) == 0xa92b4efc:
		return Probed{RAID, text(at(4096+32, 32)), uuid(at(4096+16, 16))}, nil
	case is(4096-10, "SWAPSPACE2"), is(65536-10, "SWAPSPACE2"):
		return Probed{Swap, text(at(1024+28, 16)), uuid(at(1024+12, 16))}, nil
	case is(1024+0x38, "\x53\xef"):
		return Probed{Ext4, text(at(1024+0x78, 16)), uuid(at(1024+0x68, 16))}, nil
	case is(0, "hsqs"):
		return Probed{Kind: Squashfs}, nil
	case binary.LittleEndian.Uint32(at(1024, 4)) == 0xe0f5e1e2:
		return Probed{Erofs, text(at(1024+64, 16)), uuid(at(1024+48, 16))}, nil
	case binary.LittleEndian.Uint32(at(1024, 4)) == 0xf2f52010:
		return Probed{Kind: F2FS, UUID: uuid(at(1024+108, 16))}, nil
	case is(510, "\x55\xaa") && is(82, "FAT32   "):
		return Probed{VFAT, fatLabel(at(71, 11)), fatSerial(at(67, 4))}, nil
	case is(510, "\x55\xaa") && (is(54, "FAT16   ") || is(54, "FAT12   ")):
		return Probed{VFAT, fatLabel(at(43, 11)), fatSerial(at(39, 4))}, nil
	}
	return Probed{}, nil
}

func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.ToValidUTF8(string(b), "?")
}

func uuid(b []byte) string {
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func fatLabel(b []byte) string {
	if s := strings.TrimRight(text(b), " "); s != "NO NAME" {
		return s
	}
	return ""
}

func fatSerial(b []byte) string {
	h := strings.ToUpper(hex.EncodeToString([]byte{b[3], b[2], b[1], b[0]}))
	return h[:4] + "-" + h[4:]
}
