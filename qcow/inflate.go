package qcow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"sync"
)

// A deflate decoder (RFC 1951) for one job: a whole cluster from one buffer into another. It has neither a window nor a stream to keep, so it
// is about twice as fast as a streaming one, and it delivers every byte that the input determines, even where the input then breaks off.

const (
	litBits  = 11 // index bits of the literal/length table
	distBits = 8
	preBits  = 7

	// The most entries that tables with these index bits need, subtables included, for 288, 32 and 19 symbols of at most 15, 15 and 7 bits.
	litEnough  = 2342
	distEnough = 402
	preEnough  = 1 << preBits
)

// A table entry: bits 0-7: bits to consume, extra bits among them; 8-11: the code's own bits among those; 16-30: literal or base value. For a
// pointer to a subtable, 8-11 are the subtable's index bits and 16-30 its start. A special entry that is neither pointer nor end is an invalid code.
const (
	entLiteral = 1 << 31
	entSpecial = 1 << 15
	entSub     = 1 << 14
	entEnd     = 1 << 13
)

var (
	errDeflate      = errors.New("invalid deflate stream")
	errDeflateShort = errors.New("deflate stream ends early")
)

type inflater struct {
	lit    [litEnough]uint32
	dist   [distEnough]uint32
	pre    [preEnough]uint32
	lens   [286 + 30 + 138]uint8
	sorted [288]uint16
	subLen [1 << litBits]uint8
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

var litBase, distBase, preBase = func() (l [288]uint32, d [32]uint32, p [19]uint32) {
	for i := range 256 {
		l[i] = entLiteral | uint32(i)<<16
	}
	l[256] = entSpecial | entEnd
	for i, base := 0, uint32(3); i < 29; i++ {
		extra := uint32(0)
		if i >= 8 && i < 28 {
			extra = uint32(i/4 - 1)
		}
		if i == 28 {
			base = 258
		}
		l[257+i] = base<<16 | extra
		base += 1 << extra
	}
	for i, base := 0, uint32(1); i < 30; i++ {
		extra := uint32(0)
		if i >= 2 {
			extra = uint32(i/2 - 1)
		}
		d[i] = base<<16 | extra
		base += 1 << extra
	}
	for i := range p {
		p[i] = uint32(i) << 16
	}
	// 286, 287 and the distances 30, 31 have codes in the fixed tables, but no meaning.
	l[286], l[287], d[30], d[31] = entSpecial, entSpecial, entSpecial, entSpecial
	return
}()

var fixedTables = sync.OnceValue(func() *inflater {
	f := new(inflater)
	var l [288]uint8
	for i := range l {
		switch {
		case i < 144:
			l[i] = 8
		case i < 256:
			l[i] = 9
		case i < 280:
			l[i] = 7
		default:
			l[i] = 8
		}
	}
	f.build(f.lit[:], litBits, l[:], litBase[:])
	for i := range 32 {
		l[i] = 5
	}
	f.build(f.dist[:], distBits, l[:32], distBase[:])
	return f
})

// build makes the decoding table of the canonical code with these lengths; base has the entries of the symbols. It tells whether the code is
// complete, or one of the two that RFC 1951 permits besides: no symbol, or one symbol of one bit.
func (f *inflater) build(tbl []uint32, tblBits uint, lens []uint8, base []uint32) bool {
	var count, offs [16]int
	for _, l := range lens {
		count[l]++
	}
	used := len(lens) - count[0]
	count[0] = 0
	left := 1
	for l := 1; l < 16; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		if l < 15 {
			offs[l+1] = offs[l] + count[l]
		}
	}
	if left > 0 && used != 0 && (used != 1 || count[1] != 1) {
		return false
	}
	if left > 0 {
		for i := range tbl[:1<<tblBits] {
			tbl[i] = entSpecial
		}
	}
	for s, l := range lens {
		if l != 0 {
			f.sorted[offs[l]] = uint16(s)
			offs[l]++
		}
	}
	mask := uint32(1)<<tblBits - 1
	code, i := uint32(0), 0
	for l := uint(1); l <= tblBits; l++ {
		for range count[l] {
			s := f.sorted[i]
			i++
			e := base[s] + uint32(l)<<8 + uint32(l)
			for r := uint32(bits.Reverse16(uint16(code)) >> (16 - l)); r <= mask; r += 1 << l {
				tbl[r] = e
			}
			code++
		}
		code <<= 1
	}
	if i == used {
		return true
	}
	// Longer codes: the longest behind each index sizes its subtable.
	first, firstCode := i, code
	for l := tblBits + 1; l < 16; l++ {
		for range count[l] {
			f.subLen[uint32(bits.Reverse16(uint16(code))>>(16-l))&mask] = uint8(l)
			i++
			code++
		}
		code <<= 1
	}
	i, code = first, firstCode
	end := uint32(1) << tblBits
	start, last := uint32(0), ^uint32(0)
	for l := tblBits + 1; l < 16; l++ {
		for range count[l] {
			s := f.sorted[i]
			i++
			r := uint32(bits.Reverse16(uint16(code)) >> (16 - l))
			n := uint(f.subLen[r&mask]) - tblBits
			if r&mask != last {
				last = r & mask
				start = end
				end += 1 << n
				if int(end) > len(tbl) {
					return false
				}
				tbl[last] = entSpecial | entSub | start<<16 | uint32(n)<<8 | uint32(tblBits)
			}
			rest := l - tblBits
			e := base[s] + uint32(rest)<<8 + uint32(rest)
			for k := r >> tblBits; k < 1<<n; k += 1 << rest {
				tbl[start+k] = e
			}
			code++
		}
		code <<= 1
	}
	return true
}

// inflate fills dst from the raw deflate stream that src begins with.
func inflate(dst, src []byte) error {
	f := inflaters.Get().(*inflater)
	n, err := f.decode(dst, src)
	inflaters.Put(f)
	if n == len(dst) {
		return nil
	}
	if err == nil {
		err = errDeflateShort
	}
	return fmt.Errorf("%w (%d of %d bytes)", err, n, len(dst))
}

var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// decode returns how many bytes of dst it filled; fewer than all with a nil error mean that the stream is over.
func (f *inflater) decode(dst, src []byte) (op int, err error) {
	var buf uint64 // the next bits, least significant first
	var cnt uint   // how many of them are accounted for
	p := 0         // the next byte of src
	need := func(n uint) bool {
		for cnt < n {
			if p == len(src) {
				return false
			}
			buf |= uint64(src[p]) << cnt
			p++
			cnt += 8
		}
		return true
	}
	take := func(n uint) uint {
		v := uint(buf) & (1<<n - 1)
		buf >>= n
		cnt -= n
		return v
	}
	for final := false; !final; {
		if !need(3) {
			return op, errDeflateShort
		}
		final = take(1) == 1
		lit, dist := &f.lit, &f.dist
		switch take(2) {
		case 0:
			take(cnt & 7)
			p -= int(cnt / 8)
			buf, cnt = 0, 0
			if len(src)-p < 4 {
				return op, errDeflateShort
			}
			n := int(binary.LittleEndian.Uint16(src[p:]))
			if n != int(^binary.LittleEndian.Uint16(src[p+2:])) {
				return op, errDeflate
			}
			p += 4
			m := copy(dst[op:], src[p:min(p+n, len(src))])
			op += m
			p += m
			if op == len(dst) {
				return op, nil
			}
			if m < n {
				return op, errDeflateShort
			}
			continue
		case 1:
			fixed := fixedTables()
			lit, dist = &fixed.lit, &fixed.dist
		case 2:
			if !need(14) {
				return op, errDeflateShort
			}
			nlit, ndist, npre := int(take(5))+257, int(take(5))+1, int(take(4))+4
			if nlit > 286 || ndist > 30 {
				return op, errDeflate
			}
			var pre [19]uint8
			for i := range npre {
				if !need(3) {
					return op, errDeflateShort
				}
				pre[preOrder[i]] = uint8(take(3))
			}
			if !f.build(f.pre[:], preBits, pre[:], preBase[:]) {
				return op, errDeflate
			}
			for i := 0; i < nlit+ndist; {
				need(preBits) // as far as there are bits
				e := f.pre[buf&(1<<preBits-1)]
				if e&entSpecial != 0 {
					if cnt < preBits {
						return op, errDeflateShort
					}
					return op, errDeflate
				}
				if uint(e&0xff) > cnt {
					return op, errDeflateShort
				}
				take(uint(e & 0xff))
				s := e >> 16
				if s < 16 {
					f.lens[i] = uint8(s)
					i++
					continue
				}
				extra := [3]uint{2, 3, 7}[s-16]
				if !need(extra) {
					return op, errDeflateShort
				}
				n := int(take(extra)) + [3]int{3, 3, 11}[s-16]
				var l uint8
				if s == 16 {
					if i == 0 {
						return op, errDeflate
					}
					l = f.lens[i-1]
				}
				if n > nlit+ndist-i {
					return op, errDeflate
				}
				for range n {
					f.lens[i] = l
					i++
				}
			}
			if !f.build(f.lit[:], litBits, f.lens[:nlit], litBase[:]) || !f.build(f.dist[:], distBits, f.lens[nlit:nlit+ndist], distBase[:]) {
				return op, errDeflate
			}
		default:
			return op, errDeflate
		}

		// As long as both buffers have room for the longest step, nothing needs a check of its own.
		endOfBlock := false
		fastOut, fastIn := len(dst)-258-16, len(src)-16
	fast:
		for op <= fastOut && p <= fastIn {
			buf |= binary.LittleEndian.Uint64(src[p:]) << (cnt & 63)
			p += int((63 - cnt) >> 3)
			cnt |= 56
			e := lit[buf&(1<<litBits-1)]
			if e&entLiteral != 0 {
				buf >>= e & 63
				cnt -= uint(e & 0xff)
				dst[op] = byte(e >> 16)
				op++
				e = lit[buf&(1<<litBits-1)]
				if e&entLiteral != 0 {
					buf >>= e & 63
					cnt -= uint(e & 0xff)
					dst[op] = byte(e >> 16)
					op++
					e = lit[buf&(1<<litBits-1)]
					if e&entLiteral != 0 {
						buf >>= e & 63
						cnt -= uint(e & 0xff)
						dst[op] = byte(e >> 16)
						op++
						continue
					}
				}
			}
			// At most 22 bits are gone; 34 are there.
			if e&entSpecial != 0 {
				if e&entSub != 0 {
					buf >>= litBits
					cnt -= litBits
					e = lit[e>>16&0x7fff+uint32(buf)&(1<<(e>>8&15)-1)]
					if e&entLiteral != 0 {
						buf >>= e & 63
						cnt -= uint(e & 0xff)
						dst[op] = byte(e >> 16)
						op++
						continue
					}
				}
				if e&entSpecial != 0 {
					if e&entEnd != 0 {
						buf >>= e & 63
						cnt -= uint(e & 0xff)
						endOfBlock = true
						break fast
					}
					return op, errDeflate
				}
			}
			length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
			buf >>= e & 63
			cnt -= uint(e & 0xff)

			buf |= binary.LittleEndian.Uint64(src[p:]) << (cnt & 63)
			p += int((63 - cnt) >> 3)
			cnt |= 56
			e = dist[buf&(1<<distBits-1)]
			if e&entSpecial != 0 {
				if e&entSub == 0 {
					return op, errDeflate
				}
				buf >>= distBits
				cnt -= distBits
				e = dist[e>>16+uint32(buf)&(1<<(e>>8&15)-1)&0xffff]
				if e&entSpecial != 0 {
					return op, errDeflate
				}
			}
			d := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
			buf >>= e & 63
			cnt -= uint(e & 0xff)
			if d > op {
				return op, errDeflate
			}
			if d >= 8 {
				// Words may overshoot by 7 bytes, which later bytes overwrite.
				from := dst[op-d : op+length+8]
				to := dst[op : op+length+8]
				for len(to) > 8 {
					binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
					to, from = to[8:], from[8:]
				}
			} else if d == 1 {
				w := uint64(dst[op-1]) * 0x0101010101010101
				to := dst[op : op+length+8]
				for len(to) > 8 {
					binary.LittleEndian.PutUint64(to, w)
					to = to[8:]
				}
			} else {
				for i := op; i < op+length; i++ {
					dst[i] = dst[i-d]
				}
			}
			op += length
		}

		for !endOfBlock {
			if op == len(dst) {
				return op, nil
			}
			for cnt <= 56 && p < len(src) {
				buf |= uint64(src[p]) << cnt
				p++
				cnt += 8
			}
			e, gone := lit[buf&(1<<litBits-1)], uint(0)
			if e&entSub != 0 && e&entSpecial != 0 {
				gone = litBits
				e = lit[e>>16&0x7fff+uint32(buf>>litBits)&(1<<(e>>8&15)-1)]
			}
			if e&entLiteral == 0 && e&entSpecial != 0 && e&entEnd == 0 {
				return op, errDeflate
			}
			if gone+uint(e&0xff) > cnt {
				return op, errDeflateShort
			}
			buf >>= gone
			cnt -= gone
			if e&entLiteral != 0 {
				take(uint(e & 0xff))
				dst[op] = byte(e >> 16)
				op++
				continue
			}
			if e&entSpecial != 0 {
				take(uint(e & 0xff))
				endOfBlock = true
				continue
			}
			length := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
			take(uint(e & 0xff))
			for cnt <= 56 && p < len(src) {
				buf |= uint64(src[p]) << cnt
				p++
				cnt += 8
			}
			e, gone = dist[buf&(1<<distBits-1)], 0
			if e&entSub != 0 && e&entSpecial != 0 {
				gone = distBits
				e = dist[e>>16+uint32(buf>>distBits)&(1<<(e>>8&15)-1)]
			}
			if e&entSpecial != 0 {
				return op, errDeflate
			}
			if gone+uint(e&0xff) > cnt {
				return op, errDeflateShort
			}
			buf >>= gone
			cnt -= gone
			d := int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
			take(uint(e & 0xff))
			if d > op {
				return op, errDeflate
			}
			for length = min(length, len(dst)-op); length > 0; length-- {
				dst[op] = dst[op-d]
				op++
			}
		}
	}
	return op, nil
}
