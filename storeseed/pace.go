package storeseed

import "time"

// pace finds out how many blobs to fetch at a time. Fetches that share a line evenly are all done at the same late
// time, with the writer, who wants them in order, idle until then: so there is one at first. Where each connection
// has a limit of its own more of them bring more: so while the writer waits, more are tried now and then, and kept
// if they do. Prefetch.mu guards it.
type pace struct {
	width, most int
	starved     bool  // a reader waited since the last window
	bytes       int64 // since the last window
	full        bool  // width blobs were being fetched all the time

	ticks int
	trial int   // windows since width grew; 0 if it is not on trial
	old   int   // width before the trial
	base  int64 // bytes in a window before the trial
	got   int64 // bytes in the windows of the trial that count
	rest  int   // windows without a trial; doubles with each that failed
	pause int
}

const (
	paceTick   = 100 * time.Millisecond
	paceWindow = 3 // ticks
	// paceSmall is how many bytes may be on their way whatever the width: below it the line's delay counts, not
	// its speed.
	paceSmall = 2 << 20
)

func newPace(most int) pace {
	return pace{width: 1, most: most, pause: 10, full: true}
}

// tick is called every paceTick with the number of blobs on their way. It reports whether width grew.
func (c *pace) tick(running int) bool {
	c.full = c.full && running >= c.width
	if c.ticks++; c.ticks < paceWindow {
		return false
	}
	bytes, full, starved := c.bytes, c.full, c.starved
	c.bytes, c.full, c.starved, c.ticks = 0, true, false, 0
	c.rest = max(c.rest-1, 0)
	switch {
	case c.trial > 0:
		// The first window is for connections to get going. A trial that runs out of blobs says nothing.
		if c.trial++; c.trial > 2 {
			c.got += bytes
		}
		if c.trial < 4 && full {
			return false
		}
		c.trial = 0
		// Worth it if it brings half of what is to be had.
		if full && c.got*int64(2*c.old) >= 2*c.base*int64(c.old+c.width) {
			c.pause = 10
			return false
		}
		c.width = c.old
		c.rest, c.pause = c.pause, min(2*c.pause, 200)
	case full && starved && c.rest == 0 && c.width < c.most && bytes > 0:
		c.old, c.base, c.got, c.trial = c.width, bytes, 0, 1
		c.width++
		return true
	}
	return false
}
