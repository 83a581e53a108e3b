package storeseed

import "testing"

// TestPace: a line that all share is left to one fetch, connections with a limit each are used all.
func TestPace(t *testing.T) {
	for _, tc := range []struct {
		name    string
		rate    func(width int) int64 // bytes a tick
		starved bool
		want    int
	}{
		{"one line", func(int) int64 { return 1000 }, true, 1},
		{"a limit for each", func(w int) int64 { return int64(w) * 1000 }, true, 6},
		{"a line that three fill", func(w int) int64 { return int64(min(w, 3)) * 1000 }, true, 3},
		{"a slow writer", func(w int) int64 { return int64(w) * 1000 }, false, 1},
		{"nothing comes", func(int) int64 { return 0 }, true, 1},
	} {
		c := newPace(6)
		at := map[int]int{}
		for n := range 2000 {
			c.bytes += tc.rate(c.width)
			c.starved = tc.starved
			c.tick(c.width)
			if c.width < 1 || c.width > 6 {
				t.Fatalf("%s: width %d", tc.name, c.width)
			}
			if n >= 1000 {
				at[c.width]++
			}
		}
		// Trials go on, but seldom.
		if at[tc.want] < 950 {
			t.Errorf("%s: widths %v", tc.name, at)
		}
	}
}
