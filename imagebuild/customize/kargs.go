package customize

import (
	"fmt"
	"slices"
	"strings"
)

// splitArgs splits a kernel command line at blanks outside double quotes, as the kernel's next_arg does, and keeps
// each argument as it is written.
func splitArgs(s string) []string {
	var args []string
	start, quoted := -1, false
	for i := range len(s) {
		switch c := s[i]; {
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if start >= 0 {
				args = append(args, s[start:i])
			}
			start = -1
			continue
		case c == '"':
			quoted = !quoted
		}
		if start < 0 {
			start = i
		}
	}
	if start >= 0 {
		args = append(args, s[start:])
	}
	return args
}

// cutArg is an argument's key and value, without quotes. has says that there is a "=".
func cutArg(arg string) (key, value string, has bool) {
	return strings.Cut(strings.ReplaceAll(arg, `"`, ""), "=")
}

type verb int

const (
	del verb = iota
	replace
	appendArg
	// set replaces every value of a key.
	set
)

// op is one change of a command line.
type op struct {
	verb verb
	arg  string // as it was given
	// flag is how the argument was given, for errors.
	flag string
}

// found says what an op met in a command line.
type found int

const (
	nothing found = iota
	done
	ambiguous
)

// on applies the op to a command line, which is not changed itself.
func (o op) on(args []string) ([]string, found) {
	key, value, has := cutArg(o.arg)
	var at []int // those of the key
	for i, a := range args {
		if k, _, _ := cutArg(a); k == key {
			at = append(at, i)
		}
	}
	switch o.verb {
	case appendArg:
		return append(slices.Clone(args), quote(o.arg)), done
	case set:
		out := slices.Clone(args)
		for _, i := range at {
			out[i] = quote(o.arg)
		}
		if len(at) == 0 {
			return args, nothing
		}
		return out, done
	case del:
		match := slices.Clone(at)
		if has || len(at) > 1 {
			match = slices.DeleteFunc(match, func(i int) bool {
				_, v, h := cutArg(args[i])
				return v != value || h != has
			})
		}
		switch {
		case len(match) > 0:
			return slices.Delete(slices.Clone(args), match[0], match[0]+1), done
		case !has && len(at) > 1:
			return args, ambiguous
		}
		return args, nothing
	}
	// The value may be OLD=NEW, split wherever OLD is there.
	type change struct {
		i     int
		value string
	}
	var changes []change
	for cut := range len(value) {
		if value[cut] != '=' {
			continue
		}
		for _, i := range at {
			if _, v, h := cutArg(args[i]); h && v == value[:cut] {
				changes = append(changes, change{i, value[cut+1:]})
				break
			}
		}
	}
	switch {
	case len(changes) == 1:
	case len(changes) > 1:
		return args, ambiguous
	case strings.Contains(value, "=") || len(at) == 0:
		return args, nothing
	case len(at) > 1:
		return args, ambiguous
	default:
		changes = []change{{at[0], value}}
	}
	out := slices.Clone(args)
	out[changes[0].i] = key
	if has {
		out[changes[0].i] = quote(key + "=" + changes[0].value)
	}
	return out, done
}

// quote puts an argument into quotes where a boot loader or the kernel would take it apart.
func quote(arg string) string {
	if strings.Contains(arg, `"`) || !strings.ContainsAny(arg, " \t;&|<>#") {
		return arg
	}
	key, value, has := strings.Cut(arg, "=")
	if !has {
		return `"` + arg + `"`
	}
	return key + `="` + value + `"`
}

// refused explains why an op could not be done.
func (o op) refused(f found, where string) error {
	key, value, _ := cutArg(o.arg)
	switch {
	case f == ambiguous && o.verb == del:
		return fmt.Errorf("%w: %s %s: %s has several values of %s; say %s=VALUE", ErrUsage, o.flag, o.arg, where, key, key)
	case f == ambiguous:
		return fmt.Errorf("%w: %s %s: %s has several values of %s; say %s=OLD=NEW", ErrUsage, o.flag, o.arg, where, key, key)
	case o.verb == replace && strings.Contains(value, "="):
		old, _, _ := strings.Cut(value, "=")
		return fmt.Errorf("%w: %s %s: %s has no %s=%s (a NEW with \"=\" in it needs the OLD before it: KEY=OLD=NEW)", ErrUsage, o.flag, o.arg, where, key, old)
	}
	arg := o.arg
	if o.verb == replace {
		arg = key
	}
	return fmt.Errorf("%w: %s %s: %s has no %s", ErrUsage, o.flag, o.arg, where, arg)
}

// checkArg checks an argument that is to be written.
func (o op) check() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s %q: %s", ErrUsage, o.flag, o.arg, fmt.Sprintf(format, a...))
	}
	key, _, has := cutArg(o.arg)
	switch {
	case key == "":
		return bad("give KEY or KEY=VALUE")
	case o.verb == replace && !has:
		return bad("give KEY=NEW or KEY=OLD=NEW")
	case strings.ContainsAny(key, " \t"):
		return bad("a key has no blanks; give one argument at a time")
	case strings.Count(o.arg, `"`)%2 != 0:
		return bad("a quote is not closed")
	case len(o.arg) > 2048:
		return bad("the kernel takes 2048 bytes of arguments at most")
	}
	for _, c := range []byte(o.arg) {
		switch {
		case c < ' ' || c > '~':
			return bad("letters must be ASCII, without line breaks")
		case strings.IndexByte("$`\\'", c) >= 0:
			return bad("%q has a meaning of its own for the boot loader, GRUB, and cannot be written", c)
		}
	}
	return nil
}
