package diskdiff

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	// contextLines are shown around a difference.
	contextLines = 3
	// maxEdits and maxSteps bound the work on two texts that have little in common, or the same line all over; the memory
	// is the square of the first.
	maxEdits = 1000
	maxSteps = 4 << 20
)

// Lines is the unified diff from a to b, without the lines that name the files; empty if they are the same or if one
// of them is no text: not UTF-8, or with control characters other than tabs, line feeds, carriage returns and escapes.
// Its size is at most that of both texts and a small part more for each line.
func Lines(a, b []byte) string {
	if bytes.Equal(a, b) || !isText(a) || !isText(b) {
		return ""
	}
	x, y := splitLines(a), splitLines(b)
	var out strings.Builder
	for _, h := range hunks(edits(x, y), len(x)) {
		h.print(&out, x, y)
	}
	return out.String()
}

func isText(b []byte) bool {
	if !utf8.Valid(b) {
		return false
	}
	return !bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' && r != '\r' && r != 0x1b })
}

func splitLines(b []byte) []string {
	var lines []string
	for l := range strings.Lines(string(b)) {
		lines = append(lines, l)
	}
	return lines
}

// edit replaces the lines from..to of one text by the lines at..end of the other.
type edit struct{ from, to, at, end int }

// edits finds how x becomes y, by the greedy algorithm of E. Myers, "An O(ND) Difference Algorithm and Its Variations"
// (1986). Where that takes more than maxEdits or maxSteps, the middle in which the texts differ is one edit.
func edits(x, y []string) []edit {
	head := 0
	for head < len(x) && head < len(y) && x[head] == y[head] {
		head++
	}
	tail := 0
	for tail < len(x)-head && tail < len(y)-head && x[len(x)-1-tail] == y[len(y)-1-tail] {
		tail++
	}
	x, y = x[head:len(x)-tail], y[head:len(y)-tail]
	whole := []edit{{head, head + len(x), head, head + len(y)}}
	if len(x) == 0 || len(y) == 0 {
		return whole
	}
	// reach[d][k+d] is how far in x a path of d edits comes on the diagonal k.
	var reach [][]int32
	// before is the diagonal from which a path's last edit leads to k: from above by an insertion, from the left by a
	// deletion. start is where on k that edit ends.
	before := func(d, k int) int {
		was := reach[d-1]
		if k == -d || k != d && was[k-1+d-1] < was[k+1+d-1] {
			return k + 1
		}
		return k - 1
	}
	start := func(d, k int) int {
		if d == 0 {
			return 0
		}
		from := before(d, k)
		i := int(reach[d-1][from+d-1])
		if from < k {
			i++
		}
		return i
	}
	found, steps := -1, 0
	for d := 0; d <= min(len(x)+len(y), maxEdits) && found < 0 && steps < maxSteps; d++ {
		now := make([]int32, 2*d+1)
		for k := -d; k <= d; k += 2 {
			i := start(d, k)
			for i < len(x) && i-k < len(y) && x[i] == y[i-k] {
				i++
				steps++
			}
			now[k+d] = int32(i)
			if i >= len(x) && i-k >= len(y) {
				found = d
				break
			}
		}
		reach = append(reach, now)
	}
	if found < 0 {
		return whole
	}
	var back []edit
	k := len(x) - len(y)
	for d := found; d > 0; d-- {
		from, end := before(d, k), start(d, k)
		i := int(reach[d-1][from+d-1])
		e := edit{head + i, head + end, head + i - from, head + end - k}
		if n := len(back); n > 0 && back[n-1].from == e.to && back[n-1].at == e.end {
			back[n-1].from, back[n-1].at = e.from, e.at
		} else {
			back = append(back, e)
		}
		k = from
	}
	slices.Reverse(back)
	return back
}

// hunk is edits whose context meets.
type hunk struct {
	edits                []edit
	from, to, first, end int // lines of x and y, with the context
}

func hunks(all []edit, lines int) []hunk {
	var out []hunk
	for _, e := range all {
		if n := len(out); n > 0 && e.from-out[n-1].edits[len(out[n-1].edits)-1].to <= 2*contextLines {
			out[n-1].edits = append(out[n-1].edits, e)
			continue
		}
		out = append(out, hunk{edits: []edit{e}})
	}
	for i := range out {
		h := &out[i]
		first, last := h.edits[0], h.edits[len(h.edits)-1]
		before, after := min(contextLines, first.from), min(contextLines, lines-last.to)
		h.from, h.to, h.first, h.end = first.from-before, last.to+after, first.at-before, last.end+after
	}
	return out
}

func (h hunk) print(out *strings.Builder, x, y []string) {
	fmt.Fprintf(out, "@@ -%s +%s @@\n", span(h.from, h.to), span(h.first, h.end))
	line := func(sign byte, l string) {
		out.WriteByte(sign)
		out.WriteString(l)
		if !strings.HasSuffix(l, "\n") {
			out.WriteString("\n\\ No newline at end of file\n")
		}
	}
	at := h.from
	for _, e := range h.edits {
		for ; at < e.from; at++ {
			line(' ', x[at])
		}
		for ; at < e.to; at++ {
			line('-', x[at])
		}
		for i := e.at; i < e.end; i++ {
			line('+', y[i])
		}
	}
	for ; at < h.to; at++ {
		line(' ', x[at])
	}
}

// span is a hunk's lines as diff -u counts them: from 1, and the line before where there are none.
func span(from, to int) string {
	switch to - from {
	case 0:
		return fmt.Sprintf("%d,0", from)
	case 1:
		return fmt.Sprint(from + 1)
	}
	return fmt.Sprintf("%d,%d", from+1, to-from)
}
