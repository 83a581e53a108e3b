package qcow

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"sync"
)

// A deflate encoder (RFC 1951) for whole clusters with the window of 4 KiB that QEMU inflates with: hash chains, lazy matching, and blocks split
// where the statistics change. The library at hand offers this window at one level only, which packs less than zlib does.

const (
	zlibWindow = 4096
	minMatch   = 3
	maxMatch   = 258
	hash3Bits  = 13
	hash4Bits  = 14
	segTokens  = 2048 // tokens whose statistics are judged as one when blocks are split
	litSymbols = 286
	disSymbols = 30
)

// deflateLevel says how hard to look: chain is the most candidates per position, nice a length that is good enough to stop at, lazy the length
// up to which the next position is tried too.
type deflateLevel struct{ chain, nice, lazy int }

var deflateLevels = [10]deflateLevel{
	1: {4, 16, 0},
	2: {8, 32, 0},
	3: {16, 48, 4},
	4: {16, 64, 16},
	5: {32, 96, 32},
	6: {64, 128, 64},
	7: {128, 192, 128},
	8: {512, 258, 258},
	9: {4096, 258, 258},
}

var deflateLen, deflateDist = func() (l [maxMatch + 1]uint16, d [512]uint8) {
	for c := 257; c < 286; c++ {
		base, extra := litBase[c]>>16, litBase[c]&0xff
		for n := base; n < base+1<<extra && n <= maxMatch; n++ {
			l[n] = uint16(c)
		}
	}
	for c := range 30 {
		base, extra := int(distBase[c]>>16), distBase[c]&0xff
		for n := base - 1; n < base-1+1<<extra && n < zlibWindow; n++ {
			if n < 256 {
				d[n] = uint8(c)
			} else {
				d[256+n>>7] = uint8(c)
			}
		}
	}
	return
}()

func distCode(d uint32) uint8 { // d is the distance less one
	if d < 256 {
		return deflateDist[d]
	}
	return deflateDist[256+d>>7]
}

// A token is a literal byte, or tokMatch | (length-3)<<16 | distance-1.
const tokMatch = 1 << 31

type deflateStats struct {
	lit  [litSymbols]uint32
	dist [disSymbols]uint32
}

type deflater struct {
	level  deflateLevel
	head3  [1 << hash3Bits]int32 // position plus one
	head4  [1 << hash4Bits]int32
	prev   [zlibWindow]int32
	tokens []uint32

	out []byte
	buf uint64
	cnt uint

	huff     huffBuilder
	litLen   [litSymbols + 2]uint8
	litCode  [litSymbols + 2]uint16
	distLen  [disSymbols + 2]uint8
	distCode [disSymbols + 2]uint16
}

var deflaters = sync.Pool{New: func() any { return new(deflater) }}

// deflate appends src as a raw deflate stream to dst.
func deflate(dst, src []byte, level int) []byte {
	d := deflaters.Get().(*deflater)
	defer deflaters.Put(d)
	d.level = deflateLevels[level]
	d.out, d.buf, d.cnt = dst, 0, 0
	d.parse(src)
	d.blocks(src)
	for d.cnt > 0 {
		d.out = append(d.out, byte(d.buf))
		d.buf >>= 8
		d.cnt -= min(d.cnt, 8)
	}
	out := d.out
	d.out = nil
	return out
}

// parse makes the tokens of src.
func (d *deflater) parse(src []byte) {
	clear(d.head3[:])
	clear(d.head4[:])
	d.tokens = d.tokens[:0]
	i := 0
	// Matches start where four bytes can be read, with a word to spare.
	end := len(src) - 8
	var length, dist int
	for i < end {
		if length == 0 {
			length, dist = d.find(src, i, minMatch-1)
		}
		if length < minMatch {
			d.tokens = append(d.tokens, uint32(src[i]))
			length = 0
			i++
			continue
		}
		next, nextDist := 0, 0
		inserted := 1
		if length < d.level.lazy && i+1 < end {
			next, nextDist = d.find(src, i+1, length-1)
			inserted = 2
			// A longer match is worth a literal, unless its distance eats the gain.
			if next >= length && 4*(next-length)+bits.Len(uint(dist))-bits.Len(uint(nextDist)) > 2 {
				d.tokens = append(d.tokens, uint32(src[i]))
				i++
				length, dist = next, nextDist
				continue
			}
		}
		d.tokens = append(d.tokens, tokMatch|uint32(length-minMatch)<<16|uint32(dist-1))
		for j := i + inserted; j < i+length && j < end; j++ {
			d.insert(src, j)
		}
		i += length
		length = 0
	}
	for ; i < len(src); i++ {
		d.tokens = append(d.tokens, uint32(src[i]))
	}
}

func (d *deflater) insert(src []byte, i int) {
	w := binary.LittleEndian.Uint32(src[i:])
	h4 := w * 0x9e3779b1 >> (32 - hash4Bits)
	d.head3[w<<8*0x9e3779b1>>(32-hash3Bits)] = int32(i + 1)
	d.prev[i&(zlibWindow-1)] = d.head4[h4]
	d.head4[h4] = int32(i + 1)
}

// find enters position i and looks for the longest match there that is longer than best; a length of 0 means none.
func (d *deflater) find(src []byte, i, best int) (length, dist int) {
	w := binary.LittleEndian.Uint32(src[i:])
	h3, h4 := w<<8*0x9e3779b1>>(32-hash3Bits), w*0x9e3779b1>>(32-hash4Bits)
	c3, cand := int(d.head3[h3])-1, int(d.head4[h4])-1
	d.head3[h3] = int32(i + 1)
	d.prev[i&(zlibWindow-1)] = int32(cand + 1)
	d.head4[h4] = int32(i + 1)
	low := max(i-zlibWindow, 0)
	limit := min(len(src)-i, maxMatch)
	if best < minMatch && c3 >= low && (binary.LittleEndian.Uint32(src[c3:])^w)<<8 == 0 {
		best, length, dist = minMatch, minMatch, i-c3
	}
	if limit < 8 || best >= limit {
		return length, dist
	}
	nice := min(d.level.nice, limit)
	at := max(best-3, 0)
	tail := binary.LittleEndian.Uint32(src[i+at:])
	for depth := d.level.chain; cand >= low && depth > 0; depth-- {
		if binary.LittleEndian.Uint32(src[cand+at:]) == tail && binary.LittleEndian.Uint32(src[cand:]) == w {
			n := 4
			for n+8 <= limit {
				if x := binary.LittleEndian.Uint64(src[i+n:]) ^ binary.LittleEndian.Uint64(src[cand+n:]); x != 0 {
					n += bits.TrailingZeros64(x) >> 3
					goto done
				}
				n += 8
			}
			for n < limit && src[i+n] == src[cand+n] {
				n++
			}
		done:
			if n > best {
				best, length, dist = n, n, i-cand
				if n >= nice {
					break
				}
				at = best - 3
				tail = binary.LittleEndian.Uint32(src[i+at:])
			}
		}
		cand = int(d.prev[cand&(zlibWindow-1)]) - 1
	}
	return length, dist
}

// blocks splits the tokens into blocks and writes them.
func (d *deflater) blocks(src []byte) {
	var cur, seg, both deflateStats
	start, pos := 0, 0 // of the current block: token, byte
	curCost := 0.0
	at, bytesAt := 0, 0
	for at < len(d.tokens) || at == 0 {
		n := min(segTokens, len(d.tokens)-at)
		if rest := len(d.tokens) - at - n; rest < segTokens/4 {
			n += rest
		}
		seg = deflateStats{}
		segBytes := 0
		for _, t := range d.tokens[at : at+n] {
			if t&tokMatch == 0 {
				seg.lit[t]++
				segBytes++
			} else {
				length := t>>16&0xff + minMatch
				seg.lit[deflateLen[length]]++
				seg.dist[distCode(t&0xffff)]++
				segBytes += int(length)
			}
		}
		if at == start {
			cur, curCost = seg, seg.cost()
		} else {
			for i := range both.lit {
				both.lit[i] = cur.lit[i] + seg.lit[i]
			}
			for i := range both.dist {
				both.dist[i] = cur.dist[i] + seg.dist[i]
			}
			segCost, bothCost := seg.cost(), both.cost()
			if bothCost <= curCost+segCost {
				cur, curCost = both, bothCost
			} else {
				d.block(&cur, d.tokens[start:at], src[pos:bytesAt], false)
				start, pos = at, bytesAt
				cur, curCost = seg, segCost
			}
		}
		at, bytesAt = at+n, bytesAt+segBytes
		if n == 0 {
			break
		}
	}
	d.block(&cur, d.tokens[start:], src[pos:], true)
}

// cost estimates the bits of a block with these statistics: their entropy, and a header.
func (s *deflateStats) cost() float64 {
	c := 60.0
	for _, t := range [][]uint32{s.lit[:], s.dist[:]} {
		sum, used := 0.0, 0
		for _, n := range t {
			if n != 0 {
				c -= float64(n) * log2u(n)
				sum += float64(n)
				used++
			}
		}
		if sum > 0 {
			c += sum*log2u(uint32(sum)) + 5*float64(used)
		}
	}
	return c
}

var log2Table = func() (t [4096]float32) {
	for i := 1; i < len(t); i++ {
		t[i] = float32(math.Log2(float64(i)))
	}
	return
}()

func log2u(n uint32) float64 {
	shift := 0.0
	for n >= uint32(len(log2Table)) {
		n >>= 1
		shift++
	}
	return float64(log2Table[n]) + shift
}

func (d *deflater) put(v uint64, n uint) {
	d.buf |= v << d.cnt
	d.cnt += n
	if d.cnt >= 32 {
		d.out = binary.LittleEndian.AppendUint32(d.out, uint32(d.buf))
		d.buf >>= 32
		d.cnt -= 32
	}
}

// block writes a block in the shortest of its three forms.
func (d *deflater) block(s *deflateStats, tokens []uint32, src []byte, final bool) {
	s.lit[256] = 1
	d.huff.build(s.lit[:], 15, d.litLen[:])
	d.huff.build(s.dist[:], 15, d.distLen[:])
	nlit, ndist := litSymbols, disSymbols
	for nlit > 257 && d.litLen[nlit-1] == 0 {
		nlit--
	}
	for ndist > 1 && d.distLen[ndist-1] == 0 {
		ndist--
	}
	// Run-length coding of the code lengths.
	var lens [litSymbols + disSymbols]uint8
	copy(lens[:], d.litLen[:nlit])
	copy(lens[nlit:], d.distLen[:ndist])
	var items [litSymbols + disSymbols]uint16 // symbol | extra<<8
	var preFreq [19]uint32
	n := 0
	for i := 0; i < nlit+ndist; {
		l := lens[i]
		run := 1
		for i+run < nlit+ndist && lens[i+run] == l {
			run++
		}
		i += run
		item := func(sym, extra int) {
			items[n] = uint16(sym | extra<<8)
			preFreq[sym]++
			n++
		}
		if l == 0 {
			for run >= 11 {
				r := min(run, 138)
				item(18, r-11)
				run -= r
			}
			if run >= 3 {
				item(17, run-3)
				run = 0
			}
		} else {
			item(int(l), 0)
			run--
			for run >= 3 {
				r := min(run, 6)
				if run-r > 0 && run-r < 3 && run >= 6 {
					r = run - 3
				}
				item(16, r-3)
				run -= r
			}
		}
		for ; run > 0; run-- {
			item(int(l), 0)
		}
	}
	var preLen [19]uint8
	var preCode [19]uint16
	d.huff.build(preFreq[:], 7, preLen[:])
	npre := 19
	for npre > 4 && preLen[preOrder[npre-1]] == 0 {
		npre--
	}
	dynamic := 5 + 5 + 4 + 3*npre
	for s, f := range preFreq {
		dynamic += int(f) * (int(preLen[s]) + [19]int{16: 2, 17: 3, 18: 7}[s])
	}
	fixed := 0
	for c, f := range s.lit {
		dynamic += int(f) * int(d.litLen[c])
		fixed += int(f) * int(fixedLitLen(c))
	}
	for _, f := range s.dist {
		fixed += int(f) * 5
	}
	extra := 0
	for c := 257; c < litSymbols; c++ {
		extra += int(s.lit[c]) * int(litBase[c]&0xff)
	}
	for c, f := range s.dist {
		dynamic += int(f) * int(d.distLen[c])
		extra += int(f) * int(distBase[c]&0xff)
	}
	dynamic, fixed = dynamic+extra, fixed+extra
	stored := len(src)*8 + (len(src)/65535+1)*40

	last := uint64(0)
	if final {
		last = 1
	}
	switch {
	case stored < min(dynamic, fixed):
		d.stored(src, last)
		return
	case fixed <= dynamic:
		d.put(last|1<<1, 3)
		for c := range d.litLen {
			d.litLen[c] = fixedLitLen(c)
		}
		for c := range d.distLen {
			d.distLen[c] = 5
		}
	default:
		d.put(last|2<<1, 3)
		d.put(uint64(nlit-257)|uint64(ndist-1)<<5|uint64(npre-4)<<10, 14)
		for _, c := range preOrder[:npre] {
			d.put(uint64(preLen[c]), 3)
		}
		canonical(preLen[:], preCode[:])
		for _, it := range items[:n] {
			c := it & 0xff
			d.put(uint64(preCode[c]), uint(preLen[c]))
			if c >= 16 {
				d.put(uint64(it>>8), [3]uint{2, 3, 7}[c-16])
			}
		}
	}
	canonical(d.litLen[:], d.litCode[:])
	canonical(d.distLen[:], d.distCode[:])
	for _, t := range tokens {
		if t&tokMatch == 0 {
			d.put(uint64(d.litCode[t]), uint(d.litLen[t]))
			continue
		}
		length, dist := t>>16&0xff+minMatch, t&0xffff
		c := deflateLen[length]
		b := litBase[c]
		n := uint(d.litLen[c])
		v := uint64(d.litCode[c]) | uint64(length-b>>16)<<n
		n += uint(b & 0xff)
		d.put(v, n)
		dc := distCode(dist)
		b = distBase[dc]
		n = uint(d.distLen[dc])
		v = uint64(d.distCode[dc]) | uint64(dist+1-b>>16)<<n
		n += uint(b & 0xff)
		d.put(v, n)
	}
	d.put(uint64(d.litCode[256]), uint(d.litLen[256]))
}

func (d *deflater) stored(src []byte, last uint64) {
	for {
		n := min(len(src), 65535)
		l := last
		if n < len(src) {
			l = 0
		}
		d.put(l, 3)
		d.put(0, -d.cnt&7)
		for d.cnt > 0 {
			d.out = append(d.out, byte(d.buf))
			d.buf >>= 8
			d.cnt -= 8
		}
		d.out = binary.LittleEndian.AppendUint16(d.out, uint16(n))
		d.out = binary.LittleEndian.AppendUint16(d.out, ^uint16(n))
		d.out = append(d.out, src[:n]...)
		if src = src[n:]; len(src) == 0 {
			return
		}
	}
}

func fixedLitLen(c int) uint8 {
	switch {
	case c < 144:
		return 8
	case c < 256:
		return 9
	case c < 280:
		return 7
	}
	return 8
}

// canonical gives the codes for the lengths, as deflate sends them: most significant bit first.
func canonical(lens []uint8, codes []uint16) {
	var count, next [16]uint16
	for _, l := range lens {
		count[l]++
	}
	count[0] = 0
	for l := 1; l < 16; l++ {
		next[l] = (next[l-1] + count[l-1]) << 1
	}
	for s, l := range lens {
		if l != 0 {
			codes[s] = bits.Reverse16(next[l]) >> (16 - l)
			next[l]++
		}
	}
}

// huffBuilder makes length-limited prefix codes.
type huffBuilder struct {
	syms  []uint64 // frequency<<16 | symbol, ascending
	nodes []uint32
}

// build sets lens to the lengths of a code for freq, none above limit. There are always at least two codes, which every decoder accepts.
func (h *huffBuilder) build(freq []uint32, limit int, lens []uint8) {
	clear(lens)
	h.syms = h.syms[:0]
	for s, f := range freq {
		if f != 0 {
			h.syms = append(h.syms, uint64(f)<<16|uint64(s))
		}
	}
	for s := 0; len(h.syms) < 2; s++ {
		if freq[s] == 0 {
			h.syms = append(h.syms, 1<<16|uint64(s))
		}
	}
	slices.Sort(h.syms)
	n := len(h.syms)

	// Huffman's algorithm with two queues: the sorted leaves, and the inner nodes in the order they are made. An inner node's cell holds its
	// weight until it is used, then its parent.
	if cap(h.nodes) < 2*n {
		h.nodes = make([]uint32, 2*n)
	}
	parent := h.nodes[:n]       // of leaf i
	inner := h.nodes[n : 2*n-1] // weight, later parent
	leaf, node := 0, 0
	for k := range inner {
		var sum uint32
		for range 2 {
			if node == k || leaf < n && uint32(h.syms[leaf]>>16) <= inner[node] {
				sum += uint32(h.syms[leaf] >> 16)
				parent[leaf] = uint32(k)
				leaf++
			} else {
				sum += inner[node]
				inner[node] = uint32(k)
				node++
			}
		}
		inner[k] = sum
	}
	// Depths, from the root down.
	inner[n-2] = 0
	for k := n - 3; k >= 0; k-- {
		inner[k] = inner[inner[k]] + 1
	}
	var count [64]int
	for i := range parent {
		count[min(int(inner[parent[i]])+1, 63)]++
	}
	// Codes that are too long are cut; each cut is paid for by lengthening a shorter code.
	over := 0
	for l := limit + 1; l < len(count); l++ {
		over += count[l]
		count[limit] += count[l]
		count[l] = 0
	}
	if over > 0 {
		kraft := 0
		for l := 1; l <= limit; l++ {
			kraft += count[l] << (limit - l)
		}
		for kraft > 1<<limit {
			l := limit - 1
			for count[l] == 0 {
				l--
			}
			count[l]--
			count[l+1]++
			kraft -= 1 << (limit - l - 1)
		}
		// The last step may have gained more than needed: shorten what fits.
		for l := limit; l > 1; l-- {
			for count[l] > 0 && kraft+1<<(limit-l) <= 1<<limit {
				count[l]--
				count[l-1]++
				kraft += 1 << (limit - l)
			}
		}
	}
	i := 0
	for l := limit; l > 0; l-- {
		for range count[l] {
			lens[h.syms[i]&0xffff] = uint8(l)
			i++
		}
	}
}
