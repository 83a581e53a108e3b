package rpmdb

import (
	"bytes"
	"encoding/binary"
	"io"
)

// What is read of sqlite's file format, version 3: one full scan of one table. All numbers are big-endian.
// The first page begins with:
//
//	0   "SQLite format 3\0"
//	16  uint16  page size in bytes; 1: 65536
//	20  uint8   bytes at each page's end that are not used
//	56  uint32  text encoding; 1: UTF-8
//
// A page of a table's tree, which begins at 100 on the first page:
//
//	0   uint8   13: leaf, 5: interior
//	3   uint16  number of cells
//	8   uint32  interior: the last child's page
//	8 or 12     uint16[cells], where each cell is on the page
//
// A cell of a leaf: varint size of the record, varint row, the record's beginning, uint32 first overflow page where it
// does not fit. A cell of an interior page: uint32 child page, varint row. An overflow page: uint32 next page, data.
// A record: varint size of what follows up to the values, varint type of each value, the values.
const (
	sqliteMagic    = "SQLite format 3\x00"
	sqliteHead     = 100
	sqliteLeaf     = 13
	sqliteInterior = 5
	sqliteUTF8     = 1
	// sqliteDepth is more levels than a tree of 2^32 pages can have.
	sqliteDepth = 40
	// sqliteSchema bounds a record of the schema: the names and the SQL of a table.
	sqliteSchema = 1 << 20
)

type sqlite struct {
	file, wal *io.SectionReader
	// frames is where in the log the newest committed version of a page is.
	frames map[uint32]int64
	// size is that of a page, usable what of it holds data, pages their number.
	size, usable int64
	pages        uint32
	// seen are the pages of trees that were read, overflow how many others may still be: each belongs to one cell.
	seen     map[uint32]bool
	overflow uint32
	levels   [][]byte // a page of each level of the tree
	chain    []byte   // an overflow page
	blob     []byte
}

func isSqlite(head []byte) bool {
	return len(head) >= sqliteHead && string(head[:len(sqliteMagic)]) == sqliteMagic
}

func openSqlite(file, wal *io.SectionReader, head []byte) (*DB, error) {
	s := &sqlite{file: file, wal: wal, size: int64(binary.BigEndian.Uint16(head[16:]))}
	if s.size == 1 {
		s.size = 64 << 10
	}
	if s.size < 512 || s.size&(s.size-1) != 0 {
		return nil, corrupt("its pages have %d bytes", s.size)
	}
	s.pages = uint32(min(file.Size()/s.size, 1<<32-2))
	if err := s.readWAL(); err != nil {
		return nil, err
	}
	first := make([]byte, s.size)
	if err := s.page(1, first); err != nil {
		return nil, err
	}
	s.usable = s.size - int64(first[20])
	if s.usable < 480 {
		return nil, corrupt("%d of a page's %d bytes are usable", s.usable, s.size)
	}
	if e := binary.BigEndian.Uint32(first[56:]); e != sqliteUTF8 {
		return nil, corrupt("its text encoding is %d and not UTF-8", e)
	}
	root, err := s.find("Packages")
	if err != nil {
		return nil, err
	}
	return &DB{Format: "sqlite", blobs: func(yield func([]byte, error) bool) {
		s.scan(root, MaxHeader, func(record []byte, err error) bool {
			var blob []byte
			if err == nil {
				blob, err = packageBlob(record)
			}
			return yield(blob, err) && err == nil
		})
	}}, nil
}

// packageBlob is the second column of a row of Packages (hnum INTEGER PRIMARY KEY, blob BLOB).
func packageBlob(record []byte) ([]byte, error) {
	cols, err := columns(record, 2)
	if err != nil {
		return nil, err
	}
	if len(cols) != 2 || !cols[1].blob {
		return nil, corrupt("a row of Packages has no blob as its second and last column")
	}
	return cols[1].data, nil
}

// find is the root page of a table.
func (s *sqlite) find(name string) (uint32, error) {
	var root uint32
	var failed error
	s.scan(1, sqliteSchema, func(record []byte, err error) bool {
		var cols []column
		if err == nil {
			// type, name, tbl_name, rootpage, sql
			cols, err = columns(record, 5)
		}
		if err == nil && len(cols) < 4 {
			err = corrupt("a row of its schema has %d columns", len(cols))
		}
		if err != nil {
			failed = err
			return false
		}
		if string(cols[0].data) != "table" || string(cols[1].data) != name {
			return true
		}
		for _, b := range cols[3].data {
			root = root<<8 | uint32(b)
		}
		return false
	})
	if failed == nil && root == 0 {
		failed = corrupt("it has no table %s", name)
	}
	return root, failed
}

// scan gives each record of the table at root, of at most maxRecord bytes. The record is overwritten by the next.
func (s *sqlite) scan(root uint32, maxRecord int64, yield func([]byte, error) bool) {
	s.seen, s.overflow = map[uint32]bool{}, s.pages
	s.chain = grow(s.chain, int(s.size))
	s.tree(root, maxRecord, 0, yield)
}

func (s *sqlite) tree(n uint32, maxRecord int64, depth int, yield func([]byte, error) bool) bool {
	fail := func(err error) bool {
		yield(nil, err)
		return false
	}
	if s.seen[n] || depth > sqliteDepth {
		return fail(corrupt("page %d is there twice in a tree", n))
	}
	s.seen[n] = true
	if depth == len(s.levels) {
		s.levels = append(s.levels, make([]byte, s.size))
	}
	page := s.levels[depth]
	if err := s.page(n, page); err != nil {
		return fail(err)
	}
	page = page[:s.usable]
	head := 0
	if n == 1 {
		head = sqliteHead
	}
	kind, cells, pointers := page[head], int(binary.BigEndian.Uint16(page[head+3:])), head+8
	if kind == sqliteInterior {
		pointers += 4
	} else if kind != sqliteLeaf {
		return fail(corrupt("page %d of a table is of kind %d", n, kind))
	}
	if pointers+2*cells > len(page) {
		return fail(corrupt("page %d has %d cells", n, cells))
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(page[pointers+2*i:]))
		if at < pointers+2*cells || at+4 > len(page) {
			return fail(corrupt("cell %d of page %d is at %d", i, n, at))
		}
		cell := page[at:]
		if kind == sqliteInterior {
			if !s.tree(binary.BigEndian.Uint32(cell), maxRecord, depth+1, yield) {
				return false
			}
			continue
		}
		record, err := s.record(cell, maxRecord)
		if err != nil {
			return fail(err)
		}
		if !yield(record, nil) {
			return false
		}
	}
	if kind == sqliteInterior {
		return s.tree(binary.BigEndian.Uint32(page[head+8:]), maxRecord, depth+1, yield)
	}
	return true
}

// record is the record of a leaf's cell, put together where it overflows.
func (s *sqlite) record(cell []byte, maxRecord int64) ([]byte, error) {
	size, n := varint(cell)
	_, m := varint(cell[n:])
	if n == 0 || m == 0 || size > uint64(maxRecord) {
		return nil, corrupt("a record of %d bytes", size)
	}
	cell = cell[n+m:]
	// How much of a record stays in its cell: "B-tree Cell Format" of the specification.
	local, total := int64(size), int64(size)
	if total > s.usable-35 {
		least := (s.usable-12)*32/255 - 23
		if local = least + (total-least)%(s.usable-4); local > s.usable-35 {
			local = least
		}
	}
	if int64(len(cell)) < local || total > local && int64(len(cell)) < local+4 {
		return nil, corrupt("a record of %d bytes ends past its page", total)
	}
	if total == local {
		return cell[:local], nil
	}
	next := binary.BigEndian.Uint32(cell[local:])
	// Not allocated by what a cell claims, but as its pages come.
	s.blob = append(s.blob[:0], cell[:local]...)
	for int64(len(s.blob)) < total {
		if s.overflow == 0 {
			return nil, corrupt("page %d does not belong to one record alone", next)
		}
		s.overflow--
		if err := s.page(next, s.chain); err != nil {
			return nil, err
		}
		s.blob = append(s.blob, s.chain[4:4+min(s.usable-4, total-int64(len(s.blob)))]...)
		next = binary.BigEndian.Uint32(s.chain)
	}
	return s.blob, nil
}

// column is one value of a record, its bytes as they are.
type column struct {
	data []byte
	blob bool
}

// columns takes a record apart, up to the first most of its columns.
func columns(record []byte, most int) ([]column, error) {
	size, n := varint(record)
	if n == 0 || size > uint64(len(record)) || size < uint64(n) {
		return nil, corrupt("a record of %d bytes with a header of %d", len(record), size)
	}
	types, data := record[n:size], record[size:]
	var cols []column
	for len(types) > 0 && len(cols) < most {
		t, n := varint(types)
		if n == 0 {
			return nil, corrupt("the header of a record ends in a number")
		}
		types = types[n:]
		var width uint64
		switch {
		case t >= 12:
			width = (t - 12) / 2
		case t == 10 || t == 11:
			return nil, corrupt("a value of the reserved type %d", t)
		default:
			width = [...]uint64{0, 1, 2, 3, 4, 6, 8, 8, 0, 0}[t]
		}
		if width > uint64(len(data)) {
			return nil, corrupt("a value of %d bytes in a record with %d left", width, len(data))
		}
		cols = append(cols, column{data[:width], t >= 12 && t%2 == 0})
		data = data[width:]
	}
	return cols, nil
}

// varint reads sqlite's variable-length number and says how many bytes it has; 0 where it does not end.
func varint(b []byte) (uint64, int) {
	var v uint64
	for i := range min(len(b), 9) {
		if i == 8 {
			return v<<8 | uint64(b[i]), 9
		}
		v = v<<7 | uint64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}

// page reads a page: its newest version in the log, or else that in the file.
func (s *sqlite) page(n uint32, buf []byte) error {
	if n == 0 || n > s.pages {
		return corrupt("page %d of %d", n, s.pages)
	}
	if at, ok := s.frames[n]; ok {
		return readAt(s.wal, buf, at)
	}
	return readAt(s.file, buf, int64(n-1)*s.size)
}

// The write-ahead log, numbers big-endian:
//
//	0   uint32  magic; its lowest bit says that the checksums take numbers as big-endian, else little-endian
//	4   uint32  version, 3007000
//	8   uint32  page size
//	16  uint32[2]  salt
//	24  uint32[2]  checksum of the first 24 bytes
//	32  frames: uint32 page number, uint32 number of pages after a commit or 0, uint32[2] salt,
//	    uint32[2] checksum of all frames up to here without salts and checksums, the page
const (
	walMagic   = 0x377f0682
	walVersion = 3007000
	walHead    = 32
	walFrame   = 24
)

// readWAL finds the frames that count: all up to the last commit before the first that is not of this log. A log that
// does not begin as one was never used, or was reset, and counts for nothing, as it does for sqlite.
func (s *sqlite) readWAL() error {
	if s.wal == nil || s.wal.Size() < walHead {
		return nil
	}
	head := make([]byte, walHead)
	if err := readAt(s.wal, head, 0); err != nil {
		return err
	}
	magic := binary.BigEndian.Uint32(head)
	if magic&^1 != walMagic {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if magic&1 != 0 {
		order = binary.BigEndian
	}
	sum := walSum(order, [2]uint32{}, head[:24])
	if sum != [2]uint32{binary.BigEndian.Uint32(head[24:]), binary.BigEndian.Uint32(head[28:])} || binary.BigEndian.Uint32(head[4:]) != walVersion {
		return nil
	}
	if size := int64(binary.BigEndian.Uint32(head[8:])); size != s.size {
		return corrupt("its pages have %d bytes, and %d in its log", s.size, size)
	}
	frame := make([]byte, walFrame+s.size)
	inFile := int64(s.pages)
	pending, committed := map[uint32]int64{}, map[uint32]int64{}
	for at := int64(walHead); at <= s.wal.Size()-int64(len(frame)); at += int64(len(frame)) {
		if err := readAt(s.wal, frame, at); err != nil {
			return err
		}
		n, pages := binary.BigEndian.Uint32(frame), binary.BigEndian.Uint32(frame[4:])
		if n == 0 || !bytes.Equal(frame[8:16], head[16:24]) {
			break
		}
		sum = walSum(order, walSum(order, sum, frame[:8]), frame[walFrame:])
		if sum != [2]uint32{binary.BigEndian.Uint32(frame[16:]), binary.BigEndian.Uint32(frame[20:])} {
			break
		}
		pending[n] = at + walFrame
		if pages != 0 {
			for n, at := range pending {
				committed[n] = at
			}
			clear(pending)
			// A page that is neither in the file nor in the log cannot be read anyway.
			s.pages = uint32(min(int64(pages), inFile+int64(len(committed)), 1<<32-2))
		}
	}
	s.frames = committed
	return nil
}

// walSum goes on with a checksum over b, whose length is a multiple of 8.
func walSum(order binary.ByteOrder, sum [2]uint32, b []byte) [2]uint32 {
	for ; len(b) >= 8; b = b[8:] {
		sum[0] += order.Uint32(b) + sum[1]
		sum[1] += order.Uint32(b[4:]) + sum[0]
	}
	return sum
}
