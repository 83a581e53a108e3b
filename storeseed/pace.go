package storeseed

import "time"

// pace lets the blob that is being written have the line to itself while the writer waits for it, if that does
// not make the whole slower. Fetches that share a line evenly would all be done at the same late time, with the
// writer idle until then. Where each connection has a limit of its own, though, waiting for one of them would
// waste the others, so that both ways are measured now and then. Prefetch.mu guards it.
type pace struct {
	starved bool  // a reader waited for bytes since the last tick
	head    *blob // the one that it waited for
	alone   bool  // the others wait
	ticks   int   // since the last change
	all     int64 // bytes of all blobs, and
	heads   int64 // bytes of head, both since the last change or the start of the measurement
	open    int64 // bytes a tick when all went on; 0 if not measured
	rest    int   // ticks for which alone is not tried
}

const (
	paceTick = 100 * time.Millisecond
	// paceMeasure is for how many ticks each way is measured.
	paceMeasure = 3
	// paceAgain is after how many ticks it is measured again.
	paceAgain = 50
)

// arrived counts bytes.
func (c *pace) arrived(b *blob, n int) {
	c.all += int64(n)
	if b == c.head {
		c.heads += int64(n)
	}
}

// starve notes that a reader waits for b.
func (c *pace) starve(b *blob) {
	c.starved = true
	if c.head != b {
		c.head, c.heads = b, 0
		if c.alone {
			c.ticks, c.all = 0, 0
		}
	}
}

// waits tells whether b is not to be read from the network now.
func (c *pace) waits(b *blob) bool { return c.alone && b != c.head }

// tick decides. It reports whether anyone who waits may go on.
func (c *pace) tick() bool {
	starved := c.starved && !c.head.done
	c.starved = false
	c.ticks++
	c.rest = max(c.rest-1, 0)
	switch {
	case c.alone && !starved:
		return c.change(false)
	case c.alone && c.ticks == 1:
		// What was on its way before still comes.
		c.heads = 0
	case c.alone && c.ticks == 1+paceMeasure && c.heads*10 < c.open*paceMeasure*7:
		c.rest = paceAgain
		return c.change(false)
	case c.alone && c.ticks > paceAgain:
		return c.change(false)
	case !c.alone && c.ticks >= paceMeasure:
		c.open = c.all / int64(c.ticks)
		if starved && c.rest == 0 {
			return c.change(true)
		}
		c.ticks, c.all = 0, 0
	}
	return false
}

func (c *pace) change(alone bool) bool {
	c.alone, c.ticks, c.all, c.heads = alone, 0, 0, 0
	return !alone
}
