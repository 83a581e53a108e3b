package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printTable writes rows under a heading, columns aligned with two spaces between them.
func printTable(w io.Writer, heading []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	if heading != nil {
		fmt.Fprintln(t, strings.Join(heading, "\t"))
	}
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// printable keeps names from a disk from steering the terminal that shows them.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// plural is a count and its noun.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// humanSize writes bytes as podman does, in powers of 1000.
func humanSize(n int64) string {
	v, unit := float64(n), 0
	for _, u := range []string{"B", "kB", "MB", "GB", "TB", "PB"} {
		if v < 1000 || u == "PB" {
			return fmt.Sprintf("%.3g %s", v, u)
		}
		v /= 1000
		unit++
	}
	return ""
}
