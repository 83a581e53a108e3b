package qcow

import (
	"math"
	"math/bits"
	"sync"
)

// fseCoder is a table of a finite state entropy coder (RFC 8878, section 4.1).
type fseCoder struct {
	log   uint8
	norm  [64]int16 // -1: less than one
	state [512]uint16
	sym   [64]fseSymbol
}

type fseSymbol struct {
	deltaBits  uint32
	deltaState int32
}

// build makes the table from norm and log.
func (c *fseCoder) build() {
	size := uint32(1) << c.log
	var spread [512]uint8
	var start [65]uint16
	high := size - 1
	for s, n := range c.norm {
		if n < 0 {
			spread[high] = uint8(s)
			high--
			n = 1
		}
		start[s+1] = start[s] + uint16(n)
	}
	at, step := uint32(0), size>>1+size>>3+3
	for s, n := range c.norm {
		for ; n > 0; n-- {
			spread[at] = uint8(s)
			at = (at + step) & (size - 1)
			for at > high {
				at = (at + step) & (size - 1)
			}
		}
	}
	next := start
	for u := range size {
		s := spread[u]
		c.state[next[s]] = uint16(size + u)
		next[s]++
	}
	for s, n := range c.norm {
		switch n {
		case 0:
			c.sym[s] = fseSymbol{}
		case -1, 1:
			c.sym[s] = fseSymbol{uint32(c.log)<<16 - size, int32(start[s]) - 1}
		default:
			most := uint32(c.log) - uint32(bits.Len16(uint16(n-1))-1)
			c.sym[s] = fseSymbol{most<<16 - uint32(n)<<most, int32(start[s]) - int32(n)}
		}
	}
}

// single makes the table of the one symbol s, which takes no bits.
func (c *fseCoder) single(s uint8) {
	c.log = 0
	c.state[0] = 0
	c.sym[s] = fseSymbol{}
}

// first is the state after the symbol that is encoded first, which costs nothing.
func (c *fseCoder) first(s uint8) uint32 {
	if c.log == 0 {
		return 0
	}
	t := c.sym[s]
	n := (t.deltaBits + 1<<15) >> 16
	v := n<<16 - t.deltaBits
	return uint32(c.state[int32(v>>n)+t.deltaState])
}

// bits estimates what symbols with these counts take; it is infinite if one of them is not in the table.
func (c *fseCoder) bits(counts []uint32) float64 {
	b := 0.0
	for s, n := range counts {
		if n == 0 {
			continue
		}
		if c.norm[s] == 0 {
			return math.Inf(1)
		}
		b += float64(n) * (float64(c.log) - log2u(uint32(max(c.norm[s], 1))))
	}
	return b
}

// normalize sets norm to the counts scaled to 1<<log in all.
func (c *fseCoder) normalize(counts []uint32, total int, log uint8) {
	c.log = log
	c.norm = [64]int16{}
	size := 1 << log
	left := size
	for s, n := range counts {
		if n == 0 {
			continue
		}
		v := max(int(uint64(n)*uint64(size)/uint64(total)), 1)
		c.norm[s] = int16(v)
		left -= v
	}
	// What rounding left goes to, or comes from, where it changes the cost for the better, or the least for the worse.
	for left != 0 {
		best, at := math.Inf(-1), 0
		for s, n := range counts {
			v := c.norm[s]
			if left > 0 && n > 0 {
				if g := float64(n) * (log2u(uint32(v)+1) - log2u(uint32(v))); g > best {
					best, at = g, s
				}
			} else if left < 0 && v > 1 {
				if g := -float64(n) * (log2u(uint32(v)) - log2u(uint32(v)-1)); g > best {
					best, at = g, s
				}
			}
		}
		if left > 0 {
			c.norm[at]++
			left--
		} else {
			c.norm[at]--
			left++
		}
	}
}

// appendNorm appends the description of the table.
func (c *fseCoder) appendNorm(dst []byte, symbols int) []byte {
	var acc uint64
	var cnt uint
	put := func(v uint32, n uint) {
		acc |= uint64(v) << cnt
		for cnt += n; cnt >= 8; cnt -= 8 {
			dst = append(dst, byte(acc))
			acc >>= 8
		}
	}
	put(uint32(c.log)-5, 4)
	left := 1<<c.log + 1 // values still possible, plus one
	for s := 0; s < symbols && left > 1; {
		n := int(c.norm[s])
		s++
		width := uint(bits.Len(uint(left)))
		small := 1<<width - 1 - left // so many of the lowest values take one bit less
		v := n + 1
		left -= max(n, -n)
		switch {
		case v < small:
			put(uint32(v), width-1)
		case v < 1<<(width-1):
			put(uint32(v), width)
		default:
			put(uint32(v+small), width)
		}
		if n != 0 {
			continue
		}
		run := 0
		for s < symbols && c.norm[s] == 0 {
			s++
			run++
		}
		for ; run >= 3; run -= 3 {
			put(3, 2)
		}
		put(uint32(run), 2)
	}
	if cnt > 0 {
		dst = append(dst, byte(acc))
	}
	return dst
}

// fseTable is what a block uses for one kind of symbol.
type fseTable struct {
	own fseCoder
	use *fseCoder
}

// Compression modes of a symbol table.
const (
	fsePredefined = 0
	fseRLE        = 1
	fseCompressed = 2
)

// choose takes the cheapest table for the counts of n symbols, and appends its description.
func (t *fseTable) choose(dst []byte, counts []uint32, n int, maxLog uint8, predefined *fseCoder) ([]byte, uint8) {
	last, used := 0, 0
	for s, c := range counts {
		if c > 0 {
			last = s
			used++
		}
	}
	preBits := predefined.bits(counts)
	if used == 1 {
		if preBits <= 8 {
			t.use = predefined
			return dst, fsePredefined
		}
		t.own.single(uint8(last))
		t.use = &t.own
		return append(dst, byte(last)), fseRLE
	}
	log := fseLog(maxLog, n, used)
	t.own.normalize(counts, n, log)
	ownBits := t.own.bits(counts)
	at := len(dst)
	dst = t.own.appendNorm(dst, last+1)
	ownBits += float64(8 * (len(dst) - at))
	if preBits <= ownBits {
		t.use = predefined
		return dst[:at], fsePredefined
	}
	t.own.build()
	t.use = &t.own
	return dst, fseCompressed
}

// fseLog is the accuracy that suits n symbols of which used are different.
func fseLog(most uint8, n, used int) uint8 {
	log := bits.Len(uint(n)) - 2
	log = max(log, 5, bits.Len(uint(used)))
	return uint8(min(log, int(most)))
}

func predefinedCoder(log uint8, norm ...int16) func() *fseCoder {
	return sync.OnceValue(func() *fseCoder {
		c := &fseCoder{log: log}
		copy(c.norm[:], norm)
		c.build()
		return c
	})
}

// The predefined tables, RFC 8878, section 3.1.1.3.2.2.
var (
	llPredefined = predefinedCoder(6, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1)
	mlPredefined = predefinedCoder(6, 1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
		-1, -1, -1, -1, -1, -1, -1)
	ofPredefined = predefinedCoder(5, 1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1)
)
