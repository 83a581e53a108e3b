package qcow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is what the zstd tool accepts by default; whole frames are decoded into the cluster itself, so a window costs no memory.
const maxZstdWindow = 128 << 20

// decompress fills dst from the start of src; what trails in src belongs to others. A stream that ends before dst is full is an error. A little
// of dst's capacity behind its length may serve as scratch space.
func decompress(typ uint8, dst, src []byte) error {
	if typ == compressionZstd {
		return unzstd(dst, src)
	}
	return inflate(dst, src)
}

var zstdDecoders = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderLowmem(true))
	if err != nil {
		panic(err) // constant options
	}
	return d
}}

// zstdSlack is how much room behind the output lets the decoder copy in whole words.
const zstdSlack = 32

// unzstd may use up to zstdSlack bytes of dst's capacity behind its length as scratch space.
func unzstd(dst, src []byte) error {
	d := zstdDecoders.Get().(*zstd.Decoder)
	defer zstdDecoders.Put(d)
	limit := min(cap(dst), len(dst)+zstdSlack)
	n := 0
	for n < len(dst) {
		frame, err := zstdFrame(src)
		if err != nil {
			return fmt.Errorf("zstd stream gives %d of %d bytes: %w", n, len(dst), err)
		}
		out, err := d.DecodeAll(src[:frame], dst[n:n:limit])
		if err != nil {
			return err
		}
		if n += len(out); n > len(dst) {
			return fmt.Errorf("zstd stream gives more than %d bytes", len(dst))
		}
		src = src[frame:]
	}
	return nil
}

var errZstdFrame = errors.New("no whole zstd frame")

// zstdFrame is the length of the frame that b starts with (RFC 8878, section 3.1), found by its block headers.
func zstdFrame(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, errZstdFrame
	}
	m := binary.LittleEndian.Uint32(b)
	if m>>4 == 0x184d2a5 {
		n := uint64(binary.LittleEndian.Uint32(b[4:])) + 8
		if n > uint64(len(b)) {
			return 0, errZstdFrame
		}
		return int(n), nil
	}
	if m != 0xfd2fb528 {
		return 0, errZstdFrame
	}
	d := b[4]
	single := d&0x20 != 0
	p := 5 + []int{0, 1, 2, 4}[d&3] + []int{0, 2, 4, 8}[d>>6]
	if single {
		if d>>6 == 0 {
			p++
		}
	} else {
		p++
	}
	for {
		if p+3 > len(b) {
			return 0, errZstdFrame
		}
		bh := uint32(b[p]) | uint32(b[p+1])<<8 | uint32(b[p+2])<<16
		p += 3
		switch bh >> 1 & 3 {
		case 1:
			p++
		case 3:
			return 0, errZstdFrame
		default:
			p += int(bh >> 3)
		}
		if p > len(b) {
			return 0, errZstdFrame
		}
		if bh&1 != 0 {
			break
		}
	}
	if d&4 != 0 {
		p += 4
	}
	if p > len(b) {
		return 0, errZstdFrame
	}
	return p, nil
}

// encoder compresses clusters. Its compress is safe for concurrent use, and its output depends on the cluster and the level alone.
type encoder struct {
	typ   uint8
	limit int // a blob of this many bytes or more gains nothing
	level int
}

func newEncoder(name string, level int, clusterSize int64) (*encoder, error) {
	e := &encoder{limit: int(clusterSize)}
	switch name {
	case "":
		return nil, nil
	case "zlib":
		e.typ = compressionZlib
		if level < 0 || level > 9 {
			return nil, fmt.Errorf("qcow: zlib level %d (1 to 9)", level)
		}
		if e.level = level; level == 0 {
			e.level = 6
		}
	case "zstd":
		e.typ = compressionZstd
		if level < 0 || level > 22 {
			return nil, fmt.Errorf("qcow: zstd level %d (1 to 22)", level)
		}
		if e.level = level; level == 0 {
			e.level = 3
		}
	default:
		return nil, fmt.Errorf("qcow: compression %q (zlib and zstd are known)", name)
	}
	return e, nil
}

// compress returns the compressed cluster, in dst's memory if that suffices (dst has no length); nil if compressing gains nothing.
func (e *encoder) compress(dst, cluster []byte) ([]byte, error) {
	if e.typ == compressionZstd {
		dst = zstdCompress(dst, cluster, e.level)
	} else {
		dst = deflate(dst, cluster, e.level)
	}
	if len(dst) >= e.limit {
		return nil, nil
	}
	return dst, nil
}
