package qcow

import (
	"encoding/binary"
	"math/bits"
	"sync"

	"github.com/klauspost/compress/huff0"
)

// A zstd encoder (RFC 8878) for whole clusters: the window is the cluster, nothing is kept between two of them, and the frame says how long it
// is and has no checksum. The library at hand has four levels, of which the one that matches libzstd's default packs less and takes longer.

const (
	zstdLongBits  = 16
	zstdShortBits = 15
	zstdChain     = 1 << 18 // positions that hash chains reach back
	zstdMaxBlock  = 128 << 10
	zstdSegment   = 16 << 10 // bytes of the cluster whose statistics are judged as one when blocks are split
	zstdMinMatch  = 4
	zstdMaxSize   = 1 << maxClusterBits
	zstdEnd       = 8 // no match starts so close to the end, so that words can be read

	llSymbols = 36
	ofSymbols = 32
	mlSymbols = 53
)

// zstdLevel says how hard to look for matches. Without a chain two hash tables are used, and the step between positions grows by one with
// each 1<<skip bytes that do not match; with one, chain is the most candidates for a position, nice a length that is good enough to stop at, and
// lazy how many positions further on are tried before a match is taken.
type zstdLevel struct{ skip, chain, nice, lazy int }

var zstdLevels = [23]zstdLevel{
	1:  {skip: 6},
	2:  {skip: 7},
	3:  {skip: 8},
	4:  {skip: 10},
	5:  {0, 3, 32, 1},
	6:  {0, 6, 48, 1},
	7:  {0, 8, 64, 2},
	8:  {0, 12, 96, 2},
	9:  {0, 16, 128, 2},
	10: {0, 24, 192, 2},
	11: {0, 32, 256, 2},
	12: {0, 48, 256, 2},
	13: {0, 64, 256, 2},
	14: {0, 96, 256, 2},
	15: {0, 128, 512, 2},
	16: {0, 192, 512, 2},
	17: {0, 256, 512, 2},
	18: {0, 384, 1024, 2},
	19: {0, 512, 1024, 2},
	20: {0, 1024, 2048, 2},
	21: {0, 2048, 4096, 2},
	22: {0, 4096, 1 << 20, 2},
}

// zstdSeq is a sequence: literals, then a match.
type zstdSeq struct {
	lits, match, off       uint32 // match: its length less 3; off: the distance
	offValue               uint32 // off plus 3, or 1 to 3 for one of the last distances
	llCode, mlCode, ofCode uint8
}

// zstdStats are the frequencies of what a block consists of.
type zstdStats struct {
	lit        [256]uint32
	ll, of, ml [64]uint32
	lits, seqs int
}

type zstdEnc struct {
	long  [1 << zstdLongBits]uint32 // position plus base
	short [1 << zstdShortBits]uint32
	base  uint32
	chain []uint32 // by position: the one before it with the same hash, plus base
	level zstdLevel

	win          zstdWindow
	seqs         [zstdMaxBlock / zstdMinMatch]zstdSeq
	lits         [zstdMaxBlock + 16]byte
	nseqs, nlits int

	rep        [3]uint32 // the last distances, as the decoder knows them
	huff       huff0.Scratch
	ll, of, ml fseTable

	cur, seg, both zstdStats
}

var zstdEncs = sync.Pool{New: func() any { return &zstdEnc{base: 1} }}

// zstdCompress appends src, a whole cluster, as a zstd frame to dst. level is 1 to 22.
func zstdCompress(dst, src []byte, level int) []byte {
	e := zstdEncs.Get().(*zstdEnc)
	defer zstdEncs.Put(e)
	e.level = zstdLevels[level]
	return e.frame(dst, src)
}

func (e *zstdEnc) frame(dst, src []byte) []byte {
	dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd)
	switch n := len(src); {
	case n < 256:
		dst = append(dst, 0x20, byte(n))
	case n < 65536+256:
		dst = append(dst, 0x60)
		dst = binary.LittleEndian.AppendUint16(dst, uint16(n-256))
	default:
		dst = append(dst, 0xa0)
		dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
	}
	if uint64(e.base)+uint64(len(src)) > 1<<31 {
		clear(e.long[:])
		clear(e.short[:])
		e.base = 1
	}
	e.rep = [3]uint32{1, 4, 8}
	e.huff.Reuse = huff0.ReusePolicyNone
	copy(e.win[:], src)
	rep, rep1 := 1, 4
	for at := 0; at < len(src) || at == 0; {
		n := min(len(src)-at, zstdMaxBlock)
		e.nseqs, e.nlits = 0, 0
		if e.level.chain == 0 {
			rep, rep1 = e.parse(at, at+n, rep, rep1)
		} else {
			rep, rep1 = e.parseChains(at, at+n, rep, rep1)
		}
		dst = e.blocks(dst, src[at:at+n], at+n == len(src))
		at += n
		if n == 0 {
			break
		}
	}
	e.base += uint32(len(src))
	return dst
}

// blocks splits the sequences of src into blocks and writes them.
func (e *zstdEnc) blocks(dst, src []byte, last bool) []byte {
	type mark struct{ seq, lit, pos int }
	var start, at mark // of the current block, and behind what is judged
	curCost := 0.0
	curRep := e.rep
	for {
		next := at
		for next.seq < e.nseqs && next.pos-at.pos < zstdSegment {
			s := &e.seqs[next.seq]
			next.seq++
			next.lit += int(s.lits)
			next.pos += int(s.lits + s.match + 3)
		}
		if next.seq == e.nseqs || len(src)-next.pos < zstdSegment/2 {
			next = mark{e.nseqs, e.nlits, len(src)}
		}
		segRep := e.rep
		e.count(&e.seg, e.seqs[at.seq:next.seq], e.lits[at.lit:next.lit])
		if at == start {
			e.cur = e.seg
			if next.pos < len(src) {
				curCost = e.cur.cost()
			}
		} else {
			e.both.sum(&e.cur, &e.seg)
			segCost, bothCost := e.seg.cost(), e.both.cost()
			if bothCost <= curCost+segCost {
				e.cur, curCost = e.both, bothCost
			} else {
				var plain bool
				dst, plain = e.block(dst, e.seqs[start.seq:at.seq], e.lits[start.lit:at.lit], src[start.pos:at.pos], false)
				if plain {
					// The decoder does not learn distances from it.
					segRep, e.rep = curRep, curRep
					e.count(&e.seg, e.seqs[at.seq:next.seq], e.lits[at.lit:next.lit])
				}
				start, curRep = at, segRep
				e.cur, curCost = e.seg, segCost
			}
		}
		at = next
		if at.pos == len(src) {
			break
		}
	}
	dst, plain := e.block(dst, e.seqs[start.seq:e.nseqs], e.lits[start.lit:e.nlits], src[start.pos:], last)
	if plain {
		e.rep = curRep
	}
	return dst
}

// count makes the statistics of sequences and literals, and sets the codes of the sequences.
func (e *zstdEnc) count(st *zstdStats, seqs []zstdSeq, lits []byte) {
	*st = zstdStats{lits: len(lits), seqs: len(seqs)}
	for _, c := range lits {
		st.lit[c]++
	}
	r0, r1, r2 := e.rep[0], e.rep[1], e.rep[2]
	for i := range seqs {
		s := &seqs[i]
		o, v := s.off, s.off+3
		if s.lits > 0 {
			switch o {
			case r0:
				v = 1
			case r1:
				v = 2
				r0, r1 = o, r0
			case r2:
				v = 3
				r0, r1, r2 = o, r0, r1
			default:
				r0, r1, r2 = o, r0, r1
			}
		} else {
			switch o {
			case r1:
				v = 1
				r0, r1 = o, r0
			case r2:
				v = 2
				r0, r1, r2 = o, r0, r1
			case r0 - 1:
				v = 3
				r0, r1, r2 = o, r0, r1
			default:
				r0, r1, r2 = o, r0, r1
			}
		}
		s.offValue = v
		s.llCode, s.mlCode, s.ofCode = llCodeOf(s.lits), mlCodeOf(s.match), uint8(bits.Len32(v)-1)
		st.ll[s.llCode&63]++
		st.of[s.ofCode&63]++
		st.ml[s.mlCode&63]++
	}
	e.rep = [3]uint32{r0, r1, r2}
}

func (s *zstdStats) sum(a, b *zstdStats) {
	for i := range s.lit {
		s.lit[i] = a.lit[i] + b.lit[i]
	}
	for i := range s.ll {
		s.ll[i] = a.ll[i] + b.ll[i]
		s.of[i] = a.of[i] + b.of[i]
		s.ml[i] = a.ml[i] + b.ml[i]
	}
	s.lits, s.seqs = a.lits+b.lits, a.seqs+b.seqs
}

// cost estimates the bits of a block with these statistics, but for extra bits: the entropy, and tables.
func (s *zstdStats) cost() float64 {
	c := 80 + min(entropy(s.lit[:], s.lits), 8*float64(s.lits))
	return c + entropy(s.ll[:llSymbols], s.seqs) + entropy(s.of[:ofSymbols], s.seqs) + entropy(s.ml[:mlSymbols], s.seqs)
}

// entropy estimates the bits of n symbols with these frequencies and of the table that describes them.
func entropy(freq []uint32, n int) float64 {
	if n == 0 {
		return 0
	}
	sum, used := 0.0, 0
	for _, f := range freq {
		if f != 0 {
			sum += float64(f) * log2u(f)
			used++
		}
	}
	return float64(n)*log2u(uint32(n)) - sum + 4*float64(used)
}

// block writes a block; plain tells whether it holds src as it is.
func (e *zstdEnc) block(dst []byte, seqs []zstdSeq, lits, src []byte, last bool) (out []byte, plain bool) {
	start := len(dst)
	h := uint32(0)
	if last {
		h = 1
	}
	dst = append(dst, 0, 0, 0)
	dst = e.literals(dst, lits)
	dst = e.sequences(dst, seqs)
	n := len(dst) - start - 3
	if plain = n >= len(src); plain {
		dst = append(dst[:start+3], src...)
		n = len(src)
		e.huff.Reuse = huff0.ReusePolicyNone
	} else {
		h |= 2 << 1
	}
	h |= uint32(n) << 3
	dst[start], dst[start+1], dst[start+2] = byte(h), byte(h>>8), byte(h>>16)
	return dst, plain
}

// zstdWindow is the cluster that is being compressed, in memory of a fixed size: with a mask on the index, words are read without a check.
type zstdWindow [zstdMaxSize + 16]byte

func (w *zstdWindow) load32(i int) uint32 { return binary.LittleEndian.Uint32(w[i&(zstdMaxSize-1):]) }
func (w *zstdWindow) load64(i int) uint64 { return binary.LittleEndian.Uint64(w[i&(zstdMaxSize-1):]) }

const (
	prime5 = 889523592379
	prime8 = 0xcf1bbcdcb7a56463
)

// extend is how many bytes are the same from i and from j < i on, up to end.
func (w *zstdWindow) extend(i, j, end int) int {
	if x := w.load64(i) ^ w.load64(j); x != 0 {
		return min(bits.TrailingZeros64(x)>>3, end-i)
	}
	for n := 8; i+n < end; n += 8 {
		if x := w.load64(i+n) ^ w.load64(j+n); x != 0 {
			return min(n+bits.TrailingZeros64(x)>>3, end-i)
		}
	}
	return end - i
}

// parse makes the sequences of the bytes [from, to) of the window. rep and rep1 are the last distances; those at the end are returned.
func (e *zstdEnc) parse(from, to, rep, rep1 int) (int, int) {
	w := &e.win
	base, skip := int(e.base), e.level.skip&31
	long, short := &e.long, &e.short
	anchor, i := from, max(from, 1)
	end := to - zstdEnd
	for i < end {
		cv := w.load64(i)
		hl, hs := cv*prime8>>(64-zstdLongBits), cv<<24*prime5>>(64-zstdShortBits)
		cl, cs := int(long[hl])-base, int(short[hs])-base
		cl, cs = cl&^(cl>>63), cs&^(cs>>63)
		long[hl], short[hs] = uint32(i+base), uint32(i+base)
		var length, match int
		if w.load32(i+1-rep) == uint32(cv>>8) {
			i++
			match = i - rep
			length = 4 + w.extend(i+4, match+4, to)
			e.emit(anchor, i, length, rep)
			goto matched
		}
		if w.load64(cl) == cv {
			length = 8 + w.extend(i+8, cl+8, to)
			match = cl
		} else if w.load32(cs) == uint32(cv) {
			cv1 := w.load64(i + 1)
			hl1 := cv1 * prime8 >> (64 - zstdLongBits)
			cl1 := int(long[hl1]) - base
			cl1 &^= cl1 >> 63
			long[hl1] = uint32(i + 1 + base)
			if w.load64(cl1) == cv1 {
				length = 8 + w.extend(i+9, cl1+8, to)
				match = cl1
				i++
			} else {
				length = 4 + w.extend(i+4, cs+4, to)
				match = cs
			}
		} else {
			i += (i-anchor)>>skip + 1
			continue
		}
		if match >= 8 {
			back := min(bits.LeadingZeros64(w.load64(i-8)^w.load64(match-8))>>3, i-anchor)
			i -= back
			match -= back
			length += back
		}
		rep, rep1 = i-match, rep
		e.emit(anchor, i, length, rep)
	matched:
		start := i
		i += length
		anchor = i
		if i >= end {
			break
		}
		// Entries inside the match, and right before its end.
		cv = w.load64(start + 2)
		long[cv*prime8>>(64-zstdLongBits)] = uint32(start + 2 + base)
		short[cv<<24*prime5>>(64-zstdShortBits)] = uint32(start + 2 + base)
		cv = w.load64(i - 2)
		long[cv*prime8>>(64-zstdLongBits)] = uint32(i - 2 + base)
		cv = w.load64(i - 1)
		short[cv<<24*prime5>>(64-zstdShortBits)] = uint32(i - 1 + base)
		for i < end {
			cv := w.load64(i)
			if rep1 > i || w.load32(i-rep1) != uint32(cv) {
				break
			}
			length := 4 + w.extend(i+4, i+4-rep1, to)
			long[cv*prime8>>(64-zstdLongBits)] = uint32(i + base)
			short[cv<<24*prime5>>(64-zstdShortBits)] = uint32(i + base)
			rep, rep1 = rep1, rep
			e.emit(anchor, i, length, rep)
			i += length
			anchor = i
		}
	}
	e.nlits += copy(e.lits[e.nlits:], w[anchor:to])
	return rep, rep1
}

// parseChains is parse with hash chains.
func (e *zstdEnc) parseChains(from, to, rep, rep1 int) (int, int) {
	w := &e.win
	if e.chain == nil {
		e.chain = make([]uint32, zstdChain)
	}
	anchor, i, next := from, max(from, 1), max(from, 1) // next: the first position that is not in the chains
	end := to - zstdEnd
	for i < end {
		length, off := e.best(i, &next, to, rep, rep1)
		if length == 0 {
			i += (i-anchor)>>8 + 1
			continue
		}
		gain := matchGain(length, off, rep, rep1)
	later:
		for d := 1; d <= e.level.lazy && i+d < end && length < e.level.nice; d++ {
			if l, o := e.best(i+d, &next, to, rep, rep1); l > 0 {
				if g := matchGain(l, o, rep, rep1); g > gain+1+3*d {
					i, length, off, gain = i+d, l, o, g
					goto later
				}
			}
		}
		for i > anchor && i-off > 0 && w[i-1] == w[i-off-1] {
			i--
			length++
		}
		if off != rep {
			rep, rep1 = off, rep
		}
		e.emit(anchor, i, length, off)
		i += length
		anchor = i
	}
	e.insert(&next, min(i, end))
	e.nlits += copy(e.lits[e.nlits:], w[anchor:to])
	return rep, rep1
}

// matchGain is what a match is worth, in quarters of a byte.
func matchGain(length, off, rep, rep1 int) int {
	if off == rep || off == rep1 {
		return 4*length - 1
	}
	return 4*length - bits.Len(uint(off))
}

// insert puts the positions from *next to i, without i itself, into the chains.
func (e *zstdEnc) insert(next *int, i int) {
	for p := *next; p < i; p++ {
		h := e.win.load32(p) * 0x9e3779b1 >> (32 - zstdLongBits)
		e.chain[p&(zstdChain-1)] = e.long[h]
		e.long[h] = uint32(p) + e.base
	}
	*next = max(*next, i)
}

// best looks for the most profitable match at i; its length is 0 if there is none.
func (e *zstdEnc) best(i int, next *int, to, rep, rep1 int) (length, off int) {
	e.insert(next, i)
	w := &e.win
	word := w.load32(i)
	gain := 0
	for _, r := range [2]int{rep, rep1} {
		if r <= i && w.load32(i-r) == word {
			if n := 4 + w.extend(i+4, i+4-r, to); 4*n-1 > gain {
				length, off, gain = n, r, 4*n-1
			}
		}
	}
	c := int(e.long[word*0x9e3779b1>>(32-zstdLongBits)]) - int(e.base)
	for depth := e.level.chain; c >= 0 && i-c < zstdChain && depth > 0 && length < e.level.nice; depth-- {
		// A match that is no longer gains nothing: distances grow.
		if w.load32(c) == word && (length < 4 || w.load32(c+length-3) == w.load32(i+length-3)) {
			n := 4 + w.extend(i+4, c+4, to)
			if g := 4*n - bits.Len(uint(i-c)); n > length && g > gain {
				length, off, gain = n, i-c, g
			}
		}
		c = int(e.chain[c&(zstdChain-1)]) - int(e.base)
	}
	return length, off
}

// emit adds a sequence of the literals [anchor, i) of the window and a match.
func (e *zstdEnc) emit(anchor, i, length, off int) {
	n := i - anchor
	e.seqs[e.nseqs&(len(e.seqs)-1)] = zstdSeq{lits: uint32(n), match: uint32(length - 3), off: uint32(off)}
	e.nseqs++
	from, to := e.win[anchor&(zstdMaxSize-1):], e.lits[e.nlits&(zstdMaxBlock-1):]
	copy(to[:16], from[:16])
	if n > 16 {
		copy(to[16:], from[16:n])
	}
	e.nlits += n
}

// literals appends the literals section, whose statistics are in e.cur.
func (e *zstdEnc) literals(dst, lits []byte) []byte {
	n := len(lits)
	if n >= 32 {
		compress, format := huff0.Compress4X, uint64(1)
		if n < 256 {
			compress, format = huff0.Compress1X, 0
		}
		out, reused, err := compress(lits, &e.huff)
		if c := len(out); err == nil && c+3 < n {
			h := uint64(2)
			if reused {
				h = 3
			}
			e.huff.Reuse = huff0.ReusePolicyAllow
			switch {
			case n < 1<<10:
				h |= format<<2 | uint64(n)<<4 | uint64(c)<<14
				dst = append(dst, byte(h), byte(h>>8), byte(h>>16))
			case n < 1<<14:
				h |= 2<<2 | uint64(n)<<4 | uint64(c)<<18
				dst = append(dst, byte(h), byte(h>>8), byte(h>>16), byte(h>>24))
			default:
				h |= 3<<2 | uint64(n)<<4 | uint64(c)<<22
				dst = append(dst, byte(h), byte(h>>8), byte(h>>16), byte(h>>24), byte(h>>32))
			}
			return append(dst, out...)
		}
		if err == huff0.ErrUseRLE {
			dst = literalsHeader(dst, 1, n)
			return append(dst, lits[0])
		}
		// Whatever table it made, the decoder does not get it.
		e.huff.Reuse = huff0.ReusePolicyNone
	}
	dst = literalsHeader(dst, 0, n)
	return append(dst, lits...)
}

// literalsHeader is the one of raw and RLE literals.
func literalsHeader(dst []byte, typ, n int) []byte {
	switch {
	case n < 1<<5:
		return append(dst, byte(typ|n<<3))
	case n < 1<<12:
		return append(dst, byte(typ|1<<2|n<<4), byte(n>>4))
	}
	return append(dst, byte(typ|3<<2|n<<4), byte(n>>4), byte(n>>12))
}

// sequences appends the sequences section, whose statistics are in e.cur.
func (e *zstdEnc) sequences(dst []byte, seqs []zstdSeq) []byte {
	n := len(seqs)
	switch {
	case n < 128:
		dst = append(dst, byte(n))
	case n < 0x7f00:
		dst = append(dst, byte(n>>8+128), byte(n))
	default:
		dst = append(dst, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	if n == 0 {
		return dst
	}
	modes := len(dst)
	dst = append(dst, 0)
	var ll, of, ml uint8
	dst, ll = e.ll.choose(dst, e.cur.ll[:llSymbols], n, 9, llPredefined())
	dst, of = e.of.choose(dst, e.cur.of[:ofSymbols], n, 8, ofPredefined())
	dst, ml = e.ml.choose(dst, e.cur.ml[:mlSymbols], n, 9, mlPredefined())
	dst[modes] = ll<<6 | of<<4 | ml<<2
	return e.bitstream(dst, seqs)
}

// bitstream appends the sequences' codes and extra bits, from the last to the first.
func (e *zstdEnc) bitstream(dst []byte, seqs []zstdSeq) []byte {
	const most = 11 // bytes of a sequence
	pos := len(dst)
	if need := pos + len(seqs)*most + 16; cap(dst) < need {
		grown := make([]byte, pos, need+need/8)
		copy(grown, dst)
		dst = grown
	}
	out := dst[:cap(dst)]
	ll, of, ml := e.ll.use, e.of.use, e.ml.use
	var acc uint64
	var cnt uint
	s := &seqs[len(seqs)-1]
	lls, ofs, mls := ll.first(s.llCode), of.first(s.ofCode), ml.first(s.mlCode)
	for i := len(seqs) - 1; ; {
		n := uint(llExtra[s.llCode&63])
		acc |= uint64(s.lits) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		n = uint(mlExtra[s.mlCode&63])
		acc |= uint64(s.match) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		if cnt > 40 {
			binary.LittleEndian.PutUint64(out[pos:], acc)
			pos += int(cnt >> 3)
			acc >>= cnt & 56
			cnt &= 7
		}
		n = uint(s.ofCode)
		acc |= uint64(s.offValue) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		binary.LittleEndian.PutUint64(out[pos:], acc)
		pos += int(cnt >> 3)
		acc >>= cnt & 56
		cnt &= 7
		if i--; i < 0 {
			break
		}
		s = &seqs[i]
		t := of.sym[s.ofCode&63]
		n = uint(ofs+t.deltaBits) >> 16
		acc |= uint64(ofs) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		ofs = uint32(of.state[(int32(ofs>>(n&31))+t.deltaState)&511])
		t = ml.sym[s.mlCode&63]
		n = uint(mls+t.deltaBits) >> 16
		acc |= uint64(mls) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		mls = uint32(ml.state[(int32(mls>>(n&31))+t.deltaState)&511])
		t = ll.sym[s.llCode&63]
		n = uint(lls+t.deltaBits) >> 16
		acc |= uint64(lls) & (1<<(n&63) - 1) << (cnt & 63)
		cnt += n
		lls = uint32(ll.state[(int32(lls>>(n&31))+t.deltaState)&511])
	}
	put := func(v uint32, n uint8) {
		acc |= uint64(v&(1<<n-1)) << cnt
		cnt += uint(n)
	}
	put(mls, ml.log)
	put(ofs, of.log)
	put(lls, ll.log)
	put(1, 1)
	binary.LittleEndian.PutUint64(out[pos:], acc)
	return out[:pos+int(cnt+7)/8]
}

var llExtra = [64]uint8{16: 1, 17: 1, 18: 1, 19: 1, 20: 2, 21: 2, 22: 3, 23: 3, 24: 4, 25: 6, 26: 7, 27: 8, 28: 9, 29: 10, 30: 11, 31: 12, 32: 13, 33: 14, 34: 15, 35: 16}

var mlExtra = [64]uint8{32: 1, 33: 1, 34: 1, 35: 1, 36: 2, 37: 2, 38: 3, 39: 3, 40: 4, 41: 4, 42: 5, 43: 7, 44: 8, 45: 9, 46: 10, 47: 11, 48: 12, 49: 13, 50: 14, 51: 15, 52: 16}

var llCodes, mlCodes = func() (l [64]uint8, m [128]uint8) {
	fill := func(t []uint8, extra []uint8) {
		at := 0
		for c, x := range extra {
			for n := 0; n < 1<<x && at < len(t); n++ {
				t[at] = uint8(c)
				at++
			}
		}
	}
	fill(l[:], llExtra[:llSymbols])
	fill(m[:], mlExtra[:mlSymbols])
	return
}()

func llCodeOf(n uint32) uint8 {
	if n < 64 {
		return llCodes[n]
	}
	return uint8(bits.Len32(n) + 18)
}

func mlCodeOf(n uint32) uint8 {
	if n < 128 {
		return mlCodes[n]
	}
	return uint8(bits.Len32(n) + 35)
}
