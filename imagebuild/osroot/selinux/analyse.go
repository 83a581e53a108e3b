package selinux

import "regexp/syntax"

// maxStarts bounds into how many literal texts the start of a pattern is unfolded, as /usr/s?bin is into two.
const maxStarts = 8

// starts returns literal texts of which one starts each text that re matches from its beginning. whole says that
// each of them is all that re matches there, so that what follows re follows it.
func starts(re *syntax.Regexp) (texts []string, whole bool) {
	unknown := []string{""}
	switch re.Op {
	case syntax.OpEmptyMatch, syntax.OpBeginText, syntax.OpEndText:
		return unknown, true
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			return unknown, false
		}
		return []string{string(re.Rune)}, true
	case syntax.OpCharClass:
		for i := 0; i < len(re.Rune); i += 2 {
			for r := re.Rune[i]; r <= re.Rune[i+1]; r++ {
				if len(texts) == maxStarts || r >= 0x80 {
					return unknown, false
				}
				texts = append(texts, string(r))
			}
		}
		return texts, len(texts) > 0
	case syntax.OpQuest:
		if texts, whole = starts(re.Sub[0]); whole {
			return append(texts, ""), true
		}
		return unknown, false
	case syntax.OpPlus:
		texts, _ = starts(re.Sub[0])
		return texts, false
	case syntax.OpRepeat:
		if re.Min > 0 {
			texts, _ = starts(re.Sub[0])
			return texts, false
		}
		return unknown, false
	case syntax.OpAlternate:
		whole = true
		for _, sub := range re.Sub {
			t, w := starts(sub)
			texts = append(texts, t...)
			whole = whole && w
		}
		if len(texts) > maxStarts {
			return unknown, false
		}
		return texts, whole
	case syntax.OpConcat:
		texts = unknown
		for _, sub := range re.Sub {
			t, w := starts(sub)
			if len(t)*len(texts) > maxStarts {
				return texts, false
			}
			var product []string
			for _, a := range texts {
				for _, b := range t {
					product = append(product, a+b)
				}
			}
			if texts = product; !w {
				return texts, false
			}
		}
		return texts, true
	}
	return unknown, false
}

// required is the longest literal text found that each match of re holds.
func required(re *syntax.Regexp) string {
	switch re.Op {
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase == 0 {
			return string(re.Rune)
		}
	case syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpConcat:
		best := ""
		for _, sub := range re.Sub {
			if s := required(sub); len(s) > len(best) {
				best = s
			}
		}
		return best
	}
	return ""
}
