package storeseed

import (
	"encoding/binary"
	"hash/crc64"

	tarsplit "github.com/vbatts/tar-split/tar/storage"
)

// crcISO continues the CRC-64 that tar-split keeps of each file, as crc64.Update(sum, crc64.ISO, p) does, some times
// faster. The polynomial is x^64 + x^4 + x^3 + x + 1, bit 63 of a word being x^0. In it x^512 is
// x^32 + x^24 + x^8 + 1, so eight words are carried past the next eight by a few shifts, none waiting for another.
func crcISO(sum uint64, p []byte) uint64 {
	const stride = 64
	if len(p) < 2*stride {
		return crc64.Update(sum, tarsplit.CRCTable, p)
	}
	word := binary.LittleEndian.Uint64
	a, b, c, d := word(p)^^sum, word(p[8:]), word(p[16:]), word(p[24:])
	e, f, g, h := word(p[32:]), word(p[40:]), word(p[48:]), word(p[56:])
	for p = p[stride:]; len(p) >= stride; p = p[stride:] {
		q := (*[stride]byte)(p)
		a, b = pastEight(a)^word(q[0:]), pastEight(b)^word(q[8:])
		c, d = pastEight(c)^word(q[16:]), pastEight(d)^word(q[24:])
		e, f = pastEight(e)^word(q[32:]), pastEight(f)^word(q[40:])
		g, h = pastEight(g)^word(q[48:]), pastEight(h)^word(q[56:])
	}
	sum = 0
	for _, w := range [8]uint64{a, b, c, d, e, f, g, h} {
		sum ^= w
		sum = reduced(sum) ^ reduced(sum<<63^sum<<61^sum<<60)
	}
	return crc64.Update(^sum, tarsplit.CRCTable, p)
}

// reduced is w times x^4 + x^3 + x + 1, without what that shifts out.
func reduced(w uint64) uint64 { return w ^ w>>1 ^ w>>3 ^ w>>4 }

// pastEight is w times x^512.
func pastEight(w uint64) uint64 {
	over := w<<56 ^ w<<40 ^ w<<32
	return w ^ w>>8 ^ w>>24 ^ w>>32 ^ reduced(over)
}
