package bare

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// plainFormat writes the contents as they are.
type plainFormat struct{}

func (plainFormat) step() int64   { return partSize }
func (plainFormat) start() []byte { return nil }
func (plainFormat) worker() (func(dst, data []byte) ([]byte, uint64, error), error) {
	return func(dst, data []byte) ([]byte, uint64, error) { return append(dst, data...), 0, nil }, nil
}
func (plainFormat) add(int64, int64, uint64) {}
func (plainFormat) end() []byte              { return nil }

// partSize is how much is compressed on its own: enough for others to unpack in parallel, and so much that starting anew
// costs less than one part in a hundred.
const partSize = 4 << 20

// zstdFormat makes a frame of each part.
type zstdFormat struct {
	level int
	any   bool
}

func (*zstdFormat) step() int64   { return partSize }
func (*zstdFormat) start() []byte { return nil }

func (f *zstdFormat) worker() (func(dst, data []byte) ([]byte, uint64, error), error) {
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(f.level)),
		zstd.WithWindowSize(partSize), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, err
	}
	return func(dst, data []byte) ([]byte, uint64, error) { return w.EncodeAll(data, dst), 0, nil }, nil
}

func (f *zstdFormat) add(int64, int64, uint64) { f.any = true }

// An empty file is no zstd file: contents without a byte are a frame without one.
func (f *zstdFormat) end() []byte {
	if f.any {
		return nil
	}
	w, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithZeroFrames(true))
	if err != nil {
		panic(err) // constant options
	}
	return w.EncodeAll(nil, nil)
}

// gzipFormat makes one member (RFC 1952). A part is a run of deflate blocks that refers to nothing before it and ends on
// a byte.
type gzipFormat struct {
	level int
	crc   uint32
	size  uint32 // modulo 2^32, as the format has it
	// shift and of: the operator for the length that was asked for last.
	shift uint32
	of    int64
}

func (*gzipFormat) step() int64 { return partSize }

// The header has no name, no time and no host.
func (f *gzipFormat) start() []byte {
	const unknownOS = 255
	extra := byte(0)
	switch f.level {
	case 1:
		extra = 4 // fastest
	case 9:
		extra = 2 // slowest
	}
	return []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, extra, unknownOS}
}

func (f *gzipFormat) worker() (func(dst, data []byte) ([]byte, uint64, error), error) {
	w, err := flate.NewWriter(nil, f.level)
	if err != nil {
		return nil, err
	}
	return func(dst, data []byte) ([]byte, uint64, error) {
		b := bytes.NewBuffer(dst)
		w.Reset(b)
		if _, err := w.Write(data); err != nil {
			return dst, 0, err
		}
		err := w.Flush()
		return b.Bytes(), uint64(crc32.ChecksumIEEE(data)), err
	}, nil
}

func (f *gzipFormat) add(n, _ int64, sum uint64) {
	if n != f.of {
		f.shift, f.of = crcShift(n), n
	}
	f.crc = crcMul(f.shift, f.crc) ^ uint32(sum)
	f.size += uint32(n)
}

func (f *gzipFormat) end() []byte {
	b := []byte{3, 0} // a last block without contents
	b = binary.LittleEndian.AppendUint32(b, f.crc)
	return binary.LittleEndian.AppendUint32(b, f.size)
}

// crcMul multiplies two polynomials over GF(2) modulo that of CRC-32, both with the highest power in the lowest bit.
func crcMul(a, b uint32) uint32 {
	var p uint32
	for a != 0 {
		if a&(1<<31) != 0 {
			p ^= b
		}
		a <<= 1
		if b&1 != 0 {
			b = b>>1 ^ crc32.IEEE
		} else {
			b >>= 1
		}
	}
	return p
}

// crcShift is what a CRC is multiplied with when n bytes follow: x to the power of 8n.
func crcShift(n int64) uint32 {
	p, square := uint32(1<<31), uint32(1<<23) // 1 and x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			p = crcMul(square, p)
		}
		square = crcMul(square, square)
	}
	return p
}
