package bare

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/crc64"

	"github.com/ulikunitz/xz/lzma"
)

// Numbers of the .xz file format, version 1.2.
const (
	xzCheckCRC64  = 4
	xzFilterLZMA2 = 0x21
	// xzBlockSizes says that a block header has the block's compressed and uncompressed size, and one filter.
	xzBlockSizes = 0xc0

	xzBlock = 8 << 20 // bytes of contents in a block
	// xzWindow is the dictionary's size. The library's hash table finds no more in a larger one, and takes more memory.
	xzWindow = 1 << 20
	// xzDictionary is that size as LZMA2 has it: 2 or 3, by the lowest bit, times 2 to the power of 11 + half of it.
	xzDictionary = 16
)

var (
	xzFlags = []byte{0, xzCheckCRC64}
	crcECMA = crc64.MakeTable(crc64.ECMA)
)

// xzFormat makes one stream, and a block of each part, so that parts are compressed side by side.
type xzFormat struct {
	blocks uint64
	index  []byte // records
}

func (*xzFormat) step() int64 { return xzBlock }

func (*xzFormat) start() []byte {
	b := append([]byte{0xfd, '7', 'z', 'X', 'Z', 0}, xzFlags...)
	return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(xzFlags))
}

// worker's functions give the block's size without its padding in place of a checksum.
func (f *xzFormat) worker() (func(dst, data []byte) ([]byte, uint64, error), error) {
	var buf bytes.Buffer
	return func(dst, data []byte) ([]byte, uint64, error) {
		buf.Reset()
		w, err := lzma.Writer2Config{DictCap: xzWindow, BufSize: 64 << 10}.NewWriter2(&buf)
		if err == nil {
			_, err = w.Write(data)
		}
		if err == nil {
			err = w.Flush() // whose error Close does not give
		}
		if err == nil {
			err = w.Close()
		}
		if err != nil {
			return dst, 0, fmt.Errorf("compressing: %w", err)
		}
		packed := buf.Bytes()
		from := len(dst)
		dst = append(dst, 0, xzBlockSizes)
		dst = binary.AppendUvarint(dst, uint64(len(packed)))
		dst = binary.AppendUvarint(dst, uint64(len(data)))
		dst = append(dst, xzFilterLZMA2, 1, xzDictionary)
		dst = pad4(dst, from)
		dst[from] = byte((len(dst) - from) / 4) // in words, with the checksum but less one
		dst = binary.LittleEndian.AppendUint32(dst, crc32.ChecksumIEEE(dst[from:]))
		dst = append(dst, packed...)
		size := len(dst) - from + crc64.Size
		dst = pad4(dst, from)
		return binary.LittleEndian.AppendUint64(dst, crc64.Checksum(data, crcECMA)), uint64(size), nil
	}, nil
}

func (f *xzFormat) add(n, _ int64, size uint64) {
	f.blocks++
	f.index = binary.AppendUvarint(f.index, size)
	f.index = binary.AppendUvarint(f.index, uint64(n))
}

func (f *xzFormat) end() []byte {
	b := binary.AppendUvarint([]byte{0}, f.blocks)
	b = append(b, f.index...)
	b = pad4(b, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	tail := binary.LittleEndian.AppendUint32(nil, uint32(len(b)/4-1))
	tail = append(tail, xzFlags...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(tail))
	return append(append(b, tail...), 'Y', 'Z')
}

// pad4 appends zeros until what stands behind from is a multiple of four bytes.
func pad4(b []byte, from int) []byte {
	for (len(b)-from)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
