package rpmdb

import (
	"encoding/binary"
	"hash/adler32"
	"io"
)

// The file Packages.db, all numbers little-endian (lib/backend/ndb/rpmpkg.c):
//
//	0   "RpmP"
//	4   uint32  version, 0
//	8   uint32  generation
//	12  uint32  number of slot pages of 4096 bytes, the one with this header included
//	16  uint32  next package index
//	32  slots of 16 bytes up to the end of the slot pages:
//	      "Slot", uint32 package index (0: free), uint32 offset and uint32 length of its blob in blocks of 16 bytes
//
// A blob:
//
//	0     "BlbS"
//	4     uint32  package index
//	8     uint32  generation
//	12    uint32  length of the data
//	16    the data
//	      zeros up to 12 bytes before the end of its blocks
//	-12   uint32  Adler-32 of all up to here
//	-8    uint32  length of the data
//	-4    "BlbE"
const (
	ndbMagic     = "RpmP"
	ndbSlot      = "Slot"
	ndbBlobStart = "BlbS"
	ndbBlobEnd   = "BlbE"
	ndbBlock     = 16
	ndbPage      = 4096
	ndbHead      = 32
	ndbBlobHead  = 16
	ndbBlobTail  = 12
)

func isNDB(head []byte) bool { return len(head) >= ndbHead && string(head[:4]) == ndbMagic }

func openNDB(file *io.SectionReader, head []byte) (*DB, error) {
	if v := binary.LittleEndian.Uint32(head[4:]); v != 0 {
		return nil, corrupt("ndb version %d is not known", v)
	}
	pages := int64(binary.LittleEndian.Uint32(head[12:]))
	if pages == 0 || pages*ndbPage > file.Size() {
		return nil, corrupt("%d pages of slots in a file of %d bytes", pages, file.Size())
	}
	return &DB{Format: "ndb", blobs: func(yield func([]byte, error) bool) { readNDB(file, pages, yield) }}, nil
}

func readNDB(file *io.SectionReader, pages int64, yield func([]byte, error) bool) {
	page := make([]byte, ndbPage)
	var blob []byte
	// Blobs do not overlap, so that all of them have no more bytes than the file.
	left := file.Size()
	for n := range pages {
		if err := readAt(file, page, n*ndbPage); err != nil {
			yield(nil, err)
			return
		}
		slots := page
		if n == 0 {
			slots = page[ndbHead:]
		}
		for ; len(slots) > 0; slots = slots[ndbBlock:] {
			index, at, blocks := binary.LittleEndian.Uint32(slots[4:]), binary.LittleEndian.Uint32(slots[8:]), binary.LittleEndian.Uint32(slots[12:])
			if string(slots[:4]) != ndbSlot {
				yield(nil, corrupt("a slot in page %d has the magic %q", n, slots[:4]))
				return
			}
			if index == 0 {
				continue
			}
			size := int64(blocks) * ndbBlock
			if size < ndbBlobHead+ndbBlobTail || size > MaxHeader || size > left {
				yield(nil, corrupt("package %d has %d bytes, and %d are left in the file", index, size, left))
				return
			}
			left -= size
			blob = grow(blob, int(size))
			err := readAt(file, blob, int64(at)*ndbBlock)
			var data []byte
			if err == nil {
				data, err = ndbBlob(blob, index)
			}
			if !yield(data, err) || err != nil {
				return
			}
		}
	}
}

// ndbBlob checks a blob and gives its data.
func ndbBlob(blob []byte, index uint32) ([]byte, error) {
	tail := blob[len(blob)-ndbBlobTail:]
	size := binary.LittleEndian.Uint32(blob[12:])
	switch {
	case string(blob[:4]) != ndbBlobStart, string(tail[8:]) != ndbBlobEnd:
		return nil, corrupt("package %d does not begin and end as one", index)
	case binary.LittleEndian.Uint32(blob[4:]) != index:
		return nil, corrupt("package %d is where package %d should be", binary.LittleEndian.Uint32(blob[4:]), index)
	case size != binary.LittleEndian.Uint32(tail[4:]), int64(size) > int64(len(blob)-ndbBlobHead-ndbBlobTail):
		return nil, corrupt("package %d has %d bytes of data in %d bytes", index, size, len(blob))
	case adler32.Checksum(blob[:len(blob)-ndbBlobTail]) != binary.LittleEndian.Uint32(tail):
		return nil, corrupt("package %d has another checksum than it should", index)
	}
	return blob[ndbBlobHead : ndbBlobHead+size], nil
}
