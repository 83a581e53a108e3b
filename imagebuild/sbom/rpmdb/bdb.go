package rpmdb

import (
	"encoding/binary"
	"io"
)

// The file Packages, a Berkeley DB hash in the byte order of the machine that wrote it (dbinc/db_page.h).
// The first page:
//
//	8   uint32  number of this page, 0
//	12  uint32  magic
//	16  uint32  version
//	20  uint32  page size in bytes
//	24  uint8   encryption algorithm, 0: none
//	25  uint8   page type, 8
//	26  uint8   flags; 1: pages have checksums
//	32  uint32  number of the last page
//
// Every other page:
//
//	8   uint32  number of this page
//	16  uint32  number of the next page of the same chain, 0 at its end
//	20  uint16  number of entries
//	22  uint16  overflow page: bytes of data on it; hash page: where its items begin
//	25  uint8   page type
//	26  hash page: uint16[entries], where each item is, keys and values in turn. Items fill the page from its end.
//	    overflow page: data
//
// An item: uint8 kind; 1: the rest is the data itself; 3: uint8[3] unused, uint32 first overflow page, uint32 length.
const (
	bdbMagic       = 0x061561
	bdbPageHead    = 26
	bdbMetaPage    = 8
	bdbHashOld     = 2
	bdbHash        = 13
	bdbOverflow    = 7
	bdbItemData    = 1
	bdbItemOffpage = 3
	bdbChecksummed = 1
	bdbMetaSize    = 36
	bdbKeySize     = 4
)

type bdb struct {
	file  *io.SectionReader
	order binary.ByteOrder
	// size is that of a page, last the number of the last one.
	size int64
	last uint32
	// left is how many overflow pages may still be read: each belongs to one item.
	left uint32
	page []byte // an overflow page
	blob []byte
}

func bdbOrder(head []byte) binary.ByteOrder {
	for _, o := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if len(head) >= bdbMetaSize && o.Uint32(head[12:]) == bdbMagic {
			return o
		}
	}
	return nil
}

func isBDB(head []byte) bool { return bdbOrder(head) != nil }

func openBDB(file *io.SectionReader, head []byte) (*DB, error) {
	b := &bdb{file: file, order: bdbOrder(head)}
	b.size, b.last = int64(b.order.Uint32(head[20:])), b.order.Uint32(head[32:])
	switch {
	case head[25] != bdbMetaPage:
		return nil, corrupt("its first page is of type %d", head[25])
	case head[24] != 0:
		return nil, corrupt("it is encrypted")
	case head[26]&bdbChecksummed != 0:
		return nil, corrupt("its pages have checksums, which RPM never asks for")
	case b.size < 512 || b.size > 64<<10 || b.size&(b.size-1) != 0:
		return nil, corrupt("its pages have %d bytes", b.size)
	case (int64(b.last)+1)*b.size > file.Size():
		return nil, corrupt("its last page is %d of %d bytes, past the end of the file (%d bytes)", b.last, b.size, file.Size())
	}
	return &DB{Format: "bdb", blobs: b.read}, nil
}

func (b *bdb) read(yield func([]byte, error) bool) {
	page := make([]byte, b.size)
	b.page = make([]byte, b.size)
	b.left = b.last
	for n := uint32(1); n <= b.last && n != 0; n++ {
		if err := readAt(b.file, page, int64(n)*b.size); err != nil {
			yield(nil, err)
			return
		}
		if page[25] != bdbHash && page[25] != bdbHashOld {
			continue
		}
		entries := int(b.order.Uint16(page[20:]))
		if entries%2 != 0 || bdbPageHead+2*entries > len(page) {
			yield(nil, corrupt("page %d has %d entries", n, entries))
			return
		}
		end := len(page)
		items := make([][]byte, 0, 64)
		for i := range entries {
			at := int(b.order.Uint16(page[bdbPageHead+2*i:]))
			if at < bdbPageHead+2*entries || at >= end {
				yield(nil, corrupt("item %d of page %d is at %d, and must lie between %d and %d", i, n, at, bdbPageHead+2*entries, end))
				return
			}
			items = append(items, page[at:end])
			end = at
		}
		for i := 0; i < len(items); i += 2 {
			key := items[i]
			// Record 0 is the counter of the next package's number.
			if key[0] != bdbItemData || len(key) != 1+bdbKeySize || b.order.Uint32(key[1:]) == 0 {
				continue
			}
			blob, err := b.value(items[i+1])
			if !yield(blob, err) || err != nil {
				return
			}
		}
	}
}

// value is an item's data.
func (b *bdb) value(item []byte) ([]byte, error) {
	switch {
	case item[0] == bdbItemData:
		return item[1:], nil
	case item[0] != bdbItemOffpage || len(item) < 12:
		return nil, corrupt("a value of kind %d in %d bytes", item[0], len(item))
	}
	size := b.order.Uint32(item[8:])
	if size > MaxHeader {
		return nil, corrupt("a value of %d bytes", size)
	}
	b.blob = b.blob[:0]
	for n := b.order.Uint32(item[4:]); n != 0; n = b.order.Uint32(b.page[16:]) {
		if n > b.last || b.left == 0 {
			return nil, corrupt("page %d of %d does not belong to one value alone", n, b.last)
		}
		b.left--
		if err := readAt(b.file, b.page, int64(n)*b.size); err != nil {
			return nil, err
		}
		used := int(b.order.Uint16(b.page[22:]))
		if b.page[25] != bdbOverflow || used > len(b.page)-bdbPageHead || len(b.blob)+used > int(size) {
			return nil, corrupt("page %d of type %d has %d bytes of a value of %d", n, b.page[25], used, size)
		}
		b.blob = append(b.blob, b.page[bdbPageHead:bdbPageHead+used]...)
	}
	if len(b.blob) != int(size) {
		return nil, corrupt("a value has %d bytes instead of %d", len(b.blob), size)
	}
	return b.blob, nil
}
