package bare

import (
	"encoding/binary"
	"math/bits"
)

// An LZMA2 encoder for whole blocks. The one Go library that writes .xz takes four times as long as `xz -1` and
// packs less than it; this one finds matches with hash chains and takes them greedily but for a look at the next
// position, as xz itself does at its levels 1 to 3.

// Numbers of LZMA and LZMA2 as the .xz format's description and the LZMA specification of the LZMA SDK have them.
const (
	lzLC, lzPB   = 3, 2 // literal context bits and position bits; no literal position bits
	lzProps      = (lzPB*5+0)*9 + lzLC
	lzPosMask    = 1<<lzPB - 1
	lzStates     = 12
	lzMinMatch   = 2
	lzMaxMatch   = 273
	lzLenLow     = 8 // lengths in each of the two small trees
	lzDistStates = 4 // contexts of distance slots, by the match's length
	lzEndModel   = 14
	lzFullDist   = 1 << (lzEndModel / 2)
	lzAlignBits  = 4

	lz2MaxPlain  = 1 << 16 // bytes in a chunk that is not compressed
	lz2MaxPacked = 1 << 16 // compressed bytes in a chunk
	lz2MaxChunk  = 1 << 21 // bytes of contents in a chunk
	// lz2Slack is more than what one symbol and the end of the range coder take.
	lz2Slack = 64

	lzHash2Bits = 10
	lzHash3Bits = 16
	lzHash4Bits = 20
)

// lzEffort says how long to look for a match: at most depth candidates, and no longer once one is nice bytes long.
type lzEffort struct{ depth, nice int }

var lzEfforts = [10]lzEffort{
	1: {4, 64},
	2: {8, 128},
	3: {16, 128},
	4: {24, 273},
	5: {36, 273},
	6: {48, 273},
	7: {96, 273},
	8: {256, 273},
	9: {512, 273},
}

type prob = uint16

const (
	probBits = 11
	probInit = 1 << (probBits - 1)
	probMove = 5
)

// lenCoder has the probabilities of match lengths.
type lenCoder struct {
	choice [2]prob
	low    [1 << lzPB][lzLenLow]prob
	mid    [1 << lzPB][lzLenLow]prob
	high   [256]prob
}

// lzModel is all that a state reset makes anew.
type lzModel struct {
	literal  [1 << lzLC][0x300]prob
	match    [lzStates][1 << lzPB]prob
	rep      [lzStates]prob
	rep0     [lzStates]prob
	rep1     [lzStates]prob
	rep2     [lzStates]prob
	rep0Long [lzStates][1 << lzPB]prob
	slot     [lzDistStates][64]prob
	special  [lzFullDist]prob
	align    [1 << lzAlignBits]prob
	length   lenCoder
	repLen   lenCoder
}

func (m *lzModel) reset() {
	*m = lzModelStart
}

var lzModelStart = newLZModel()

func newLZModel() lzModel {
	var m lzModel
	fill := func(p []prob) {
		for i := range p {
			p[i] = probInit
		}
	}
	for i := range m.literal {
		fill(m.literal[i][:])
	}
	for i := range m.match {
		fill(m.match[i][:])
		fill(m.rep0Long[i][:])
	}
	fill(m.rep[:])
	fill(m.rep0[:])
	fill(m.rep1[:])
	fill(m.rep2[:])
	for i := range m.slot {
		fill(m.slot[i][:])
	}
	fill(m.special[:])
	fill(m.align[:])
	for _, l := range []*lenCoder{&m.length, &m.repLen} {
		fill(l.choice[:])
		for i := range l.low {
			fill(l.low[i][:])
			fill(l.mid[i][:])
		}
		fill(l.high[:])
	}
	return m
}

// rangeCoder is LZMA's arithmetic coder.
type rangeCoder struct {
	low     uint64
	width   uint32
	cache   byte
	pending int // bytes that a carry may still change, the cache among them
	out     []byte
}

func (r *rangeCoder) reset() {
	r.low, r.width, r.cache, r.pending, r.out = 0, 1<<32-1, 0, 1, r.out[:0]
}

func (r *rangeCoder) size() int { return len(r.out) + r.pending + 4 }

func (r *rangeCoder) shift() {
	if r.low < 0xff000000 || r.low >= 1<<32 {
		carry := byte(r.low >> 32)
		b := r.cache
		for ; r.pending > 0; r.pending-- {
			r.out = append(r.out, b+carry)
			b = 0xff
		}
		r.cache = byte(r.low >> 24)
	}
	r.pending++
	r.low = r.low & 0x00ffffff << 8
}

func (r *rangeCoder) bit(p *prob, bit uint32) {
	v := uint32(*p)
	bound := r.width >> probBits * v
	if bit == 0 {
		r.width = bound
		*p = prob(v + (1<<probBits-v)>>probMove)
	} else {
		r.low += uint64(bound)
		r.width -= bound
		*p = prob(v - v>>probMove)
	}
	for r.width < 1<<24 {
		r.width <<= 8
		r.shift()
	}
}

func (r *rangeCoder) direct(v uint32, n int) {
	for n--; n >= 0; n-- {
		r.width >>= 1
		if v>>n&1 != 0 {
			r.low += uint64(r.width)
		}
		if r.width < 1<<24 {
			r.width <<= 8
			r.shift()
		}
	}
}

func (r *rangeCoder) tree(p []prob, n int, v uint32) {
	m := uint32(1)
	for n--; n >= 0; n-- {
		b := v >> n & 1
		r.bit(&p[m], b)
		m = m<<1 | b
	}
}

func (r *rangeCoder) reverse(p []prob, n int, v uint32) {
	m := uint32(1)
	for ; n > 0; n-- {
		b := v & 1
		v >>= 1
		r.bit(&p[m], b)
		m = m<<1 | b
	}
}

// finish writes out all that is pending.
func (r *rangeCoder) finish() []byte {
	for range 5 {
		r.shift()
	}
	return r.out
}

// lzma compresses blocks of up to xzBlock bytes, each on its own. It is used by one goroutine at a time.
type lzma struct {
	effort lzEffort
	model  lzModel
	rc     rangeCoder
	state  int
	reps   [4]uint32 // distances less one

	src   []byte
	hash2 [1 << lzHash2Bits]int32 // positions plus one; 0 is none
	hash3 [1 << lzHash3Bits]int32
	hash4 [1 << lzHash4Bits]int32
	chain []int32
	next  int // the first position that the tables do not have

	found []lzMatch // of the position looked at, from the shortest, each longer than the one before
	ahead []lzMatch
	known int // the position that ahead is of, or -1
}

// lzMatch is a match: its length and its distance less one.
type lzMatch struct {
	length int
	dist   uint32
}

func newLZMA(level int) *lzma {
	e := &lzma{effort: lzEfforts[level]}
	e.rc.out = make([]byte, 0, lz2MaxPacked+2*lz2Slack)
	return e
}

// encode appends the LZMA2 chunks of src and their end mark.
func (e *lzma) encode(dst, src []byte) []byte {
	e.src, e.next, e.known = src, 0, -1
	clear(e.hash2[:])
	clear(e.hash3[:])
	clear(e.hash4[:])
	if len(e.chain) < len(src) {
		e.chain = make([]int32, len(src))
	}
	const (
		noReset    = 0x80
		resetState = 0xa0
		resetProps = 0xc0
		resetAll   = 0xe0
	)
	control := byte(resetAll)
	for pos := 0; pos < len(src); {
		before := control
		if control != noReset {
			e.model.reset()
			e.state, e.reps = 0, [4]uint32{}
		}
		e.rc.reset()
		end := e.chunk(pos, min(len(src), pos+lz2MaxChunk))
		packed := e.rc.finish()
		n := end - pos
		if len(packed) < n && len(packed) <= lz2MaxPacked {
			dst = append(dst, control|byte((n-1)>>16))
			dst = binary.BigEndian.AppendUint16(dst, uint16(n-1))
			dst = binary.BigEndian.AppendUint16(dst, uint16(len(packed)-1))
			if control >= resetProps {
				dst = append(dst, lzProps)
			}
			dst = append(dst, packed...)
			control = noReset
			pos = end
			continue
		}
		for pos < end {
			n := min(end-pos, lz2MaxPlain)
			mark := byte(2)
			if before == resetAll {
				mark, before = 1, resetProps
			}
			dst = append(dst, mark)
			dst = binary.BigEndian.AppendUint16(dst, uint16(n-1))
			dst = append(dst, src[pos:pos+n]...)
			pos += n
		}
		if control = before; control == noReset {
			control = resetState
		}
	}
	return append(dst, 0)
}

// chunk encodes symbols from pos on and says where it stopped: at end, or when the chunk is full.
func (e *lzma) chunk(pos, end int) int {
	for pos < end && e.rc.size() < lz2MaxPacked-lz2Slack {
		m, rep := e.choose(pos, end)
		ps := pos & lzPosMask
		switch {
		case m.length == 0:
			e.rc.bit(&e.model.match[e.state][ps], 0)
			e.literal(pos)
			pos++
			continue
		case rep >= 0:
			e.rc.bit(&e.model.match[e.state][ps], 1)
			e.rc.bit(&e.model.rep[e.state], 1)
			e.repeat(rep, m.length, ps)
		default:
			e.rc.bit(&e.model.match[e.state][ps], 1)
			e.rc.bit(&e.model.rep[e.state], 0)
			e.match(m, ps)
		}
		pos += m.length
	}
	return pos
}

func (e *lzma) literal(pos int) {
	var prev byte
	if pos > 0 {
		prev = e.src[pos-1]
	}
	p := &e.model.literal[prev>>(8-lzLC)]
	c := uint32(e.src[pos])
	if e.state < 7 {
		e.rc.tree(p[:], 8, c)
	} else {
		// After a match the byte that would have gone on with it is a hint: until a bit differs from it, its bits choose
		// among the probabilities.
		hint := uint32(e.src[pos-int(e.reps[0])-1])
		offset, m := uint32(0x100), uint32(1)
		for i := 7; i >= 0; i-- {
			h := hint >> i & 1 << 8
			b := c >> i & 1
			e.rc.bit(&p[offset+(h&offset)+m], b)
			m = m<<1 | b
			if h != b<<8 {
				offset = 0
			}
		}
	}
	switch {
	case e.state < 4:
		e.state = 0
	case e.state < 10:
		e.state -= 3
	default:
		e.state -= 6
	}
}

func (e *lzma) after(literal, other int) {
	if e.state < 7 {
		e.state = literal
	} else {
		e.state = other
	}
}

func (e *lzma) match(m lzMatch, ps int) {
	e.after(7, 10)
	e.len(&e.model.length, m.length, ps)
	slot := lzSlot(m.dist)
	e.rc.tree(e.model.slot[min(m.length-lzMinMatch, lzDistStates-1)][:], 6, slot)
	if slot >= 4 {
		n := int(slot>>1) - 1
		base := (2 | slot&1) << n
		rest := m.dist - base
		if slot < lzEndModel {
			e.rc.reverse(e.model.special[base-slot:], n, rest)
		} else {
			e.rc.direct(rest>>lzAlignBits, n-lzAlignBits)
			e.rc.reverse(e.model.align[:], lzAlignBits, rest&(1<<lzAlignBits-1))
		}
	}
	e.reps = [4]uint32{m.dist, e.reps[0], e.reps[1], e.reps[2]}
}

func lzSlot(dist uint32) uint32 {
	if dist < 4 {
		return dist
	}
	n := uint32(bits.Len32(dist)) - 1
	return n<<1 | dist>>(n-1)&1
}

func (e *lzma) repeat(rep, length, ps int) {
	m, r := &e.model, &e.rc
	if rep == 0 {
		r.bit(&m.rep0[e.state], 0)
		if length == 1 {
			r.bit(&m.rep0Long[e.state][ps], 0)
			e.after(9, 11)
			return
		}
		r.bit(&m.rep0Long[e.state][ps], 1)
	} else {
		r.bit(&m.rep0[e.state], 1)
		if rep == 1 {
			r.bit(&m.rep1[e.state], 0)
		} else {
			r.bit(&m.rep1[e.state], 1)
			r.bit(&m.rep2[e.state], uint32(rep-2))
		}
		d := e.reps[rep]
		copy(e.reps[1:rep+1], e.reps[:rep])
		e.reps[0] = d
	}
	e.after(8, 11)
	e.len(&m.repLen, length, ps)
}

func (e *lzma) len(c *lenCoder, length, ps int) {
	l := uint32(length - lzMinMatch)
	switch {
	case l < lzLenLow:
		e.rc.bit(&c.choice[0], 0)
		e.rc.tree(c.low[ps][:], 3, l)
	case l < 2*lzLenLow:
		e.rc.bit(&c.choice[0], 1)
		e.rc.bit(&c.choice[1], 0)
		e.rc.tree(c.mid[ps][:], 3, l-lzLenLow)
	default:
		e.rc.bit(&c.choice[0], 1)
		e.rc.bit(&c.choice[1], 1)
		e.rc.tree(c.high[:], 8, l-2*lzLenLow)
	}
}

// choose gives what stands at pos: a match with one of the last four distances (rep 0 to 3), another match (rep -1), or a
// literal (length 0). A match ends at end at the latest.
func (e *lzma) choose(pos, end int) (m lzMatch, rep int) {
	limit := min(end-pos, lzMaxMatch)
	if limit < lzMinMatch {
		return lzMatch{}, -1
	}
	var r lzMatch
	bestRep := -1
	for i, d := range e.reps {
		if int(d) >= pos {
			continue
		}
		if n := e.extend(pos, pos-int(d)-1, 0, limit); n > r.length && n >= lzMinMatch {
			r, bestRep = lzMatch{n, d}, i
		}
	}
	if r.length >= e.effort.nice {
		return r, bestRep
	}
	main, shorter := e.longest(pos, limit)
	if main.length >= e.effort.nice {
		return main, -1
	}
	// A distance that costs much less makes up for a byte.
	for i := len(shorter) - 1; i >= 0 && main.length == shorter[i].length+1 && lzMuchNearer(shorter[i].dist, main.dist); i-- {
		main = shorter[i]
	}
	if main.length == 2 && main.dist >= 0x80 {
		main.length = 1
	}
	if r.length >= lzMinMatch && (r.length+1 >= main.length || r.length+2 >= main.length && main.dist >= 1<<9 || r.length+3 >= main.length && main.dist >= 1<<15) {
		return r, bestRep
	}
	if main.length < lzMinMatch || limit <= 2 {
		return e.short(pos)
	}
	// A literal, if the match that follows it is clearly better.
	next, _ := e.peek(pos+1, min(end-pos-1, lzMaxMatch))
	if next.length >= lzMinMatch && (next.length >= main.length && next.dist < main.dist ||
		next.length == main.length+1 && !lzMuchNearer(main.dist, next.dist) ||
		next.length > main.length+1 ||
		next.length+1 >= main.length && main.length >= 3 && lzMuchNearer(next.dist, main.dist)) {
		return e.short(pos)
	}
	limit = max(2, main.length-1)
	for _, d := range e.reps {
		if int(d) < pos+1 && e.extend(pos+1, pos-int(d), 0, limit) == limit {
			return e.short(pos)
		}
	}
	return main, -1
}

// short is what takes one byte: a match with the last distance where the byte is the same, which costs less, or a literal.
func (e *lzma) short(pos int) (lzMatch, int) {
	d := int(e.reps[0])
	if d < pos && e.src[pos] == e.src[pos-d-1] && e.state >= 7 {
		return lzMatch{1, e.reps[0]}, 0
	}
	return lzMatch{}, -1
}

// lzMuchNearer says whether a distance is so much smaller than another that it is worth a byte.
func lzMuchNearer(small, big uint32) bool { return small < big>>7 }

// extend is how many bytes from i on are the same as from j on, from n that are known to be, up to limit.
func (e *lzma) extend(i, j, n, limit int) int {
	a, b := e.src[i:i+limit], e.src[j:j+limit]
	for n+8 <= limit {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)>>3
		}
		n += 8
	}
	for n < limit && a[n] == b[n] {
		n++
	}
	return n
}

// longest is the longest match at pos and all shorter ones.
func (e *lzma) longest(pos, limit int) (lzMatch, []lzMatch) {
	if e.known == pos {
		e.found, e.ahead = e.ahead, e.found
	} else {
		e.found = e.search(e.found[:0], pos)
	}
	e.known = -1
	return cut(e.found, limit)
}

// peek is longest for a position that may not be taken.
func (e *lzma) peek(pos, limit int) (lzMatch, []lzMatch) {
	e.ahead, e.known = e.search(e.ahead[:0], pos), pos
	return cut(e.ahead, limit)
}

// cut makes matches end at a chunk's end: they are looked for up to the end of the block.
func cut(found []lzMatch, limit int) (lzMatch, []lzMatch) {
	for len(found) > 1 && found[len(found)-2].length >= limit {
		found = found[:len(found)-1]
	}
	if len(found) == 0 {
		return lzMatch{}, nil
	}
	last := found[len(found)-1]
	last.length = min(last.length, limit)
	return last, found[:len(found)-1]
}

// search appends the matches at pos, ever longer ones at ever greater distances, and puts all positions up to pos into
// the tables.
func (e *lzma) search(found []lzMatch, pos int) []lzMatch {
	for e.next < pos {
		e.insert(e.next)
	}
	limit := min(len(e.src)-pos, lzMaxMatch)
	if limit < 4 {
		return found
	}
	w := binary.LittleEndian.Uint32(e.src[pos:])
	h2, h3, h4 := lzHashes(w)
	two, three, cand := int(e.hash2[h2])-1, int(e.hash3[h3])-1, int(e.hash4[h4])-1
	e.insert(pos)
	best := 1
	if two >= 0 && e.src[two] == e.src[pos] && e.src[two+1] == e.src[pos+1] {
		best = e.extend(pos, two, 2, limit)
		found = append(found, lzMatch{best, uint32(pos - two - 1)})
	}
	if three >= 0 && three != two && best < limit && e.src[three] == e.src[pos] && e.src[three+1] == e.src[pos+1] && e.src[three+2] == e.src[pos+2] {
		if n := e.extend(pos, three, 3, limit); n > best {
			best = n
			found = append(found, lzMatch{n, uint32(pos - three - 1)})
		}
	}
	nice := min(e.effort.nice, limit)
	for depth := e.effort.depth; depth > 0 && cand >= 0 && best < nice; depth-- {
		if e.src[cand+best] == e.src[pos+best] && binary.LittleEndian.Uint32(e.src[cand:]) == w {
			if n := e.extend(pos, cand, 4, limit); n > best {
				best = n
				found = append(found, lzMatch{n, uint32(pos - cand - 1)})
			}
		}
		cand = int(e.chain[cand]) - 1
	}
	return found
}

func (e *lzma) insert(pos int) {
	e.next = pos + 1
	if len(e.src)-pos < 4 {
		return
	}
	h2, h3, h4 := lzHashes(binary.LittleEndian.Uint32(e.src[pos:]))
	p := int32(pos + 1)
	e.hash2[h2], e.hash3[h3] = p, p
	e.chain[pos] = e.hash4[h4]
	e.hash4[h4] = p
}

func lzHashes(w uint32) (h2, h3, h4 uint32) {
	const odd = 2654435761
	return w & 0xffff * odd >> (32 - lzHash2Bits), w & 0xffffff * odd >> (32 - lzHash3Bits), w * odd >> (32 - lzHash4Bits)
}
