package storeseed

import (
	"testing"
	"time"
)

func TestHeld(t *testing.T) {
	o := VerifyOptions{TimeResolution: time.Second, Earliest: time.Unix(-10, 0), Latest: time.Unix(10, 0)}
	for _, c := range []struct{ in, want time.Time }{
		{time.Unix(5, 7), time.Unix(5, 0)}, {time.Unix(-5, 7), time.Unix(-5, 0)}, {time.Unix(11, 5), time.Unix(10, 0)}, {time.Unix(-11, 5), time.Unix(-10, 0)},
	} {
		if got := o.held(c.in); !got.Equal(c.want) {
			t.Errorf("%v: got %v, want %v", c.in, got, c.want)
		}
	}
	late := time.Unix(1<<40, 3)
	if got := (VerifyOptions{TimeResolution: time.Nanosecond}).held(late); !got.Equal(late) {
		t.Errorf("without bounds %v became %v", late, got)
	}
}
