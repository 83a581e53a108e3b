package bakefile

import (
	"fmt"
	"slices"
	"strings"
)

// suggest names the key that was meant by an unknown one: one that differs by a few letters, the one of a flag, or one
// that has its place elsewhere.
func suggest(unknown, path string, here []key) string {
	if len(unknown) > 40 {
		return ""
	}
	plain := squash(unknown)
	best, most := "", 3
	consider := func(k string, distance int) {
		if distance < most {
			best, most = k, distance
		}
	}
	for _, k := range here {
		if squash(k.flag) == plain {
			consider(k.name, 0)
		}
		consider(k.name, near(plain, squash(k.name)))
	}
	in := innermost(path)
	walk(settings, "", func(at string, k *key) {
		if at == in+k.name {
			return
		}
		if k.flag != "" && squash(k.flag) == plain {
			consider(at, 1)
		}
		if i := strings.LastIndexByte(at, '.'); i >= 0 && squash(at[i+1:]) == plain || i < 0 && in != "" && squash(at) == plain {
			consider(at, 1)
		}
	})
	if best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	if len(here) > 12 {
		return ""
	}
	var all []string
	for _, k := range here {
		all = append(all, k.name)
	}
	return "; there are " + strings.Join(all, ", ")
}

// innermost is a mapping's place below its disk, as walk names it: "customize." of "disks[1].customize".
func innermost(path string) string {
	if rest, ok := strings.CutPrefix(path, disks.name+"["); ok {
		_, path, _ = strings.Cut(rest, "].")
	}
	if path == "" || strings.HasSuffix(path, "]") {
		return ""
	}
	return path + "."
}

// squash takes away what spellings of one name differ by.
func squash(s string) string {
	return strings.ToLower(strings.NewReplacer("-", "", "_", "", " ", "").Replace(s))
}

// near is the number of letters that must be changed, put in or taken out (Levenshtein); 3 where it is more than a third.
func near(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last, row[j+1] = row[j+1], slices.Min([]int{cost, row[j] + 1, row[j+1] + 1})
		}
	}
	if d := row[len(b)]; 3*d <= len(a) {
		return d
	}
	return 3
}
