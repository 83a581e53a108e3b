package diskdiff_test

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	. "github.com/nodebake/nodebake/imagebuild/diskdiff"
)

func TestLines(t *testing.T) {
	for _, c := range []struct{ name, a, b, want string }{
		{"same", "a\n", "a\n", ""},
		{"one line", "a\nb\nc\n", "a\nB\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"},
		{"from nothing", "", "a\n", "@@ -0,0 +1 @@\n+a\n"},
		{"to nothing", "a\nb\n", "", "@@ -1,2 +0,0 @@\n-a\n-b\n"},
		{"no line feed", "a\nb", "a\nb\n", "@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+b\n"},
		{"two hunks", "1\n2\n3\n4\n5\n6\n7\n8\n9\n", "0\n1\n2\n3\n4\n5\n6\n7\n8\n", "@@ -1,3 +1,4 @@\n+0\n 1\n 2\n 3\n@@ -6,4 +7,3 @@\n 6\n 7\n 8\n-9\n"},
		{"one hunk", "1\n2\n3\n4\n5\n6\n7\n", "0\n1\n2\n3\n4\n5\n6\n", "@@ -1,7 +1,7 @@\n+0\n 1\n 2\n 3\n 4\n 5\n 6\n-7\n"},
		{"no text", "a\x00", "b", ""},
		{"no UTF-8", "a", "\xff", ""},
	} {
		if got := Lines([]byte(c.a), []byte(c.b)); got != c.want {
			t.Errorf("%s: got\n%s\nmust be\n%s", c.name, got, c.want)
		}
	}
}

// TestLinesShort says that no more lines are named than must be: GNU diff finds no shorter way.
func TestLinesShort(t *testing.T) {
	needs(t, "diff")
	r := seed(t)
	dir := t.TempDir()
	for range 60 {
		a, b := randomTexts(r)
		write(t, dir, a, b)
		out, _ := exec.Command("diff", "-d", "-U3", dir+"/a", dir+"/b").Output()
		count := func(s string) (n int) {
			for l := range strings.Lines(s) {
				if (l[0] == '-' || l[0] == '+') && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "+++") {
					n++
				}
			}
			return n
		}
		if got, want := count(Lines([]byte(a), []byte(b))), count(string(out)); got > want {
			t.Fatalf("%d lines, diff -d has %d:\n%s\n%s", got, want, Lines([]byte(a), []byte(b)), out)
		}
	}
}

// TestLinesPatch holds that patch makes the second text of the first.
func TestLinesPatch(t *testing.T) {
	needs(t, "patch")
	r := seed(t)
	dir := t.TempDir()
	for range 60 {
		a, b := randomTexts(r)
		write(t, dir, a, b)
		text := "--- a\n+++ a\n" + Lines([]byte(a), []byte(b))
		if a == b {
			continue
		}
		cmd := exec.Command("patch", "-s", "-F0", "-d", dir, "-o", "out", "a")
		cmd.Stdin = strings.NewReader(text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, text)
		}
		got, err := os.ReadFile(dir + "/out")
		if err != nil || string(got) != b {
			t.Fatalf("%v: patch makes %q, must make %q\n%s", err, got, b, text)
		}
	}
}

func needs(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func write(t *testing.T, dir, a, b string) {
	t.Helper()
	for name, text := range map[string]string{"a": a, "b": b} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func randomTexts(r *rand.Rand) (string, string) {
	var x, y []string
	for range r.Intn(60) {
		x = append(x, fmt.Sprintf("line %d\n", r.Intn(8)))
	}
	for _, l := range x {
		switch r.Intn(8) {
		case 0:
		case 1:
			y = append(y, fmt.Sprintf("other %d\n", r.Intn(3)), l)
		default:
			y = append(y, l)
		}
	}
	a, b := strings.Join(x, ""), strings.Join(y, "")
	if r.Intn(3) == 0 {
		b = strings.TrimSuffix(b, "\n")
	}
	return a, b
}

// apply makes the second text of the first, as patch would, or fails.
func apply(a, diff string) (string, error) {
	var lines []string
	for l := range strings.Lines(a) {
		lines = append(lines, l)
	}
	var out strings.Builder
	at := 0
	var last string
	var held string // a line of the second text that may lose its line feed
	flush := func() { out.WriteString(held); held = "" }
	for l := range strings.Lines(diff) {
		switch l[0] {
		case '@':
			flush()
			old, _, _ := strings.Cut(strings.Fields(l)[1][1:], ",")
			n, err := strconv.Atoi(old)
			if err != nil {
				return "", err
			}
			if !strings.Contains(l, ",0 +") {
				n--
			}
			for ; at < n; at++ {
				out.WriteString(lines[at])
			}
		case ' ', '-':
			if at >= len(lines) || strings.TrimSuffix(lines[at], "\n") != strings.TrimSuffix(l[1:], "\n") {
				return "", fmt.Errorf("line %d is not %q", at, l)
			}
			at++
			if l[0] == ' ' {
				flush()
				held = l[1:]
			}
		case '+':
			flush()
			held = l[1:]
		case '\\':
			if last != "-" {
				held = strings.TrimSuffix(held, "\n")
			}
		}
		last = l[:1]
	}
	flush()
	for ; at < len(lines); at++ {
		out.WriteString(lines[at])
	}
	return out.String(), nil
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb\nc\n"), []byte("a\nc\nd"))
	f.Add([]byte(""), []byte("\n\n"))
	f.Add([]byte(strings.Repeat("\n", 3000)), []byte(strings.Repeat("x\n", 3000)))
	f.Add([]byte("a\r\nb"), []byte("a\nb"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a)+len(b) > 128<<10 {
			return
		}
		d := Lines(a, b)
		if d == "" {
			return
		}
		got, err := apply(string(a), d)
		if err != nil || got != string(b) {
			t.Fatalf("%v: %q and %q give\n%s\nwhich makes %q", err, a, b, d, got)
		}
	})
}
