package xfs

import (
	"context"
	"errors"
	"strings"
	"testing"
)

// TestCheckFinds breaks one thing at a time, checksums set right, and wants it named.
func TestCheckFinds(t *testing.T) {
	disk := seedDisk(t)
	clean, err := Open(disk, disk.size)
	if err != nil {
		t.Fatal(err)
	}
	inodeOf := func(name string) uint64 {
		in, err := clean.resolve(name)
		if err != nil {
			t.Fatal(err)
		}
		return in.ino
	}
	// edit changes one block and sets its checksum.
	edit := func(m *sparseMem, off int64, size, crc int, f func(b []byte)) {
		b := make([]byte, size)
		m.ReadAt(b, off)
		f(b)
		setCRC(b, crc)
		m.WriteAt(b, off)
	}
	inode := func(name string, f func(b []byte)) func(*sparseMem) {
		return func(m *sparseMem) {
			fsb, off, err := clean.sb.inoPlace(inodeOf(name))
			if err != nil {
				t.Fatal(err)
			}
			edit(m, clean.sb.off(fsb)+int64(off), clean.sb.inodeSize, diCRC, f)
		}
	}
	block := func(magic string, at int, crc int, f func(b []byte)) func(*sparseMem) {
		size := 1024
		switch {
		case magic == "XSLM":
			size *= 2 // one header for both blocks of the extent
		case crc == d3CRC || magic == "\x3d\xff":
			size *= 4 // a folder block
		}
		return func(m *sparseMem) {
			blocks := blocksWith(m, at, magic)
			if len(blocks) == 0 {
				t.Fatalf("no block of %q", magic)
			}
			edit(m, blocks[0], size, crc, f)
		}
	}
	header := func(sector, crc int, f func(b []byte)) func(*sparseMem) {
		return func(m *sparseMem) { edit(m, int64(sector)*512, 512, crc, f) }
	}
	add32 := func(b []byte, d int32) { be.PutUint32(b, be.Uint32(b)+uint32(d)) }
	for _, c := range []struct {
		name  string
		hurt  func(*sparseMem)
		finds string
	}{
		{"nothing", func(*sparseMem) {}, ""},
		{"free inodes in the superblock", header(0, sbCRC, func(b []byte) { b[sbIfree+7]++ }), "superblock"},
		{"free blocks in the AGF", header(1, agfCRC, func(b []byte) { add32(b[agfFreeBlks:], -1) }), "free space tree"},
		{"longest in the AGF", header(1, agfCRC, func(b []byte) { add32(b[agfLongest:], -1) }), "longest"},
		{"inodes in the AGI", header(2, agiCRC, func(b []byte) { add32(b[agiCount:], 64) }), "inode tree"},
		{"free list block", header(3, agflCRC, func(b []byte) { add32(b[agflBno:], 5000) }), "in use"},
		{"free space record", block("AB3B", 0, btShCRC, func(b []byte) { add32(b[btShHdr:], -1) }), "free"},
		{"free space by length", block("AB3C", 0, btShCRC, func(b []byte) { add32(b[btShHdr:], 1) }), "by length"},
		{"owner", block("RMB3", 0, btShCRC, func(b []byte) { add32(b[btShHdr+4+24:], 3) }), "owner"},
		{"free inode bit", block("IAB3", 0, btShCRC, func(b []byte) { b[btShHdr+8] ^= 0x80; b[btShHdr+7]-- }), ""},
		{"block count", inode("d/sparse", func(b []byte) { b[diNblocks+7]-- }), "blocks"},
		{"links", inode("first", func(b []byte) { add32(b[diNlink:], 1) }), "links"},
		{"folder links", inode("d", func(b []byte) { add32(b[diNlink:], 1) }), "links"},
		{"magic of an inode", inode("d/dev", func(b []byte) { b[0] = 0 }), "magic"},
		{"folder's parent", inode("d", func(b []byte) { b[diCoreSize+5] ^= 1 }), ""},
		{"symlink", block("XSLM", 0, rmCRC, func(b []byte) { add32(b[rmBytes:], -1) }), "symlink"},
		{"attribute value", block("XARM", 0, rmCRC, func(b []byte) { add32(b[rmOffset:], 1) }), "attribute"},
		{"extent tree", block("BMA3", 0, btLgCRC, func(b []byte) { b[btLgHdr+7] ^= 4 }), "extent"},
		{"folder block", block("XDD3", 0, d3CRC, func(b []byte) { b[d3Hdr+16+7]++ }), ""},
		{"folder leaf", block("\x3d\xff", daMagic, daCRC, func(b []byte) { b[daHdr+8*5+3] ^= 1 }), "index"},
		{"folder free index", block("XDF3", 0, d3CRC, func(b []byte) { b[dfHdr+3] += 8 }), "bytes are free"},
		{"checksum", func(m *sparseMem) { m.WriteAt([]byte{0xff}, blocksWith(m, 0, "XDD3")[0]+500) }, "checksum"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := disk.clone()
			c.hurt(m)
			f, err := Open(m, m.size)
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			err = f.Check(context.Background(), func(err error) {
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("%v is no ErrCorrupt", err)
				}
				said = append(said, err.Error())
			})
			if err != nil {
				t.Fatal(err)
			}
			all := strings.Join(said, "\n")
			if (c.name == "nothing") != (len(said) == 0) || !strings.Contains(all, c.finds) {
				t.Errorf("found: %s\nwanted: %q", all, c.finds)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := clean.Check(ctx, func(error) {}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
