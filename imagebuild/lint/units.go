package lint

import (
	"path"
	"strings"
)

// serviceDirs are where systemd looks for units on a disk, what counts first in front (systemd.unit(5)).
var serviceDirs = []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"}

// word is a word of a command line or of an environment, and where it is written.
type word struct {
	text, file string
	line       int
}

// unit is a service as systemd would start it.
type unit struct {
	env  []word // NAME=VALUE, later ones count
	exec []word // of ExecStart, variables expanded
}

// unit reads a service and its drop-ins; false says that there is none.
func (v *view) unit(name string) (unit, bool) {
	var files []string
	for _, dir := range serviceDirs {
		if _, err := v.stat(path.Join(dir, name)); err == nil {
			files = append(files, path.Join(dir, name))
			break
		}
	}
	if files == nil {
		return unit{}, false
	}
	var dirs []string
	for _, dir := range serviceDirs {
		dirs = append(dirs, path.Join(dir, name+".d"))
	}
	files = append(files, v.inDirs(dirs, ".conf")...)
	var u unit
	var commands [][]word
	for _, f := range files {
		text, ok := v.text(f)
		if !ok {
			continue
		}
		for _, s := range settings(text, "Service") {
			switch s.key {
			case "Environment":
				if s.value == "" {
					u.env = nil
				}
				for _, w := range splitWords(s.value) {
					u.env = append(u.env, word{w, f, s.line})
				}
			case "EnvironmentFile":
				if s.value == "" {
					continue
				}
				u.env = append(u.env, v.envFile(strings.TrimPrefix(s.value, "-"))...)
			case "ExecStart":
				if s.value == "" {
					commands = nil
					continue
				}
				var c []word
				for _, w := range splitWords(s.value) {
					c = append(c, word{w, f, s.line})
				}
				commands = append(commands, c)
			}
		}
	}
	for _, c := range commands {
		for _, w := range c {
			u.exec = append(u.exec, u.expand(w)...)
		}
	}
	return u, true
}

// envFile reads a file of NAME=VALUE lines (systemd.exec(5), EnvironmentFile=).
func (v *view) envFile(name string) []word {
	if strings.ContainsAny(name, "%*?[") || !strings.HasPrefix(name, "/") {
		return nil
	}
	text, ok := v.text(name)
	if !ok {
		return nil
	}
	var env []word
	for _, s := range settings(append([]byte("[]\n"), text...), "") {
		value := strings.Join(splitWords(s.value), " ")
		env = append(env, word{s.key + "=" + value, name, s.line - 1})
	}
	return env
}

// variable gives the last value of a variable.
func (u unit) variable(name string) (word, bool) {
	for i := len(u.env) - 1; i >= 0; i-- {
		if value, ok := strings.CutPrefix(u.env[i].text, name+"="); ok {
			return word{value, u.env[i].file, u.env[i].line}, true
		}
	}
	return word{}, false
}

// expand replaces a word that is $NAME by the variable's words, and ${NAME} in a word by its value
// (systemd.service(5), "Command lines"). What is expanded is said to be where the variable is set.
func (u unit) expand(w word) []word {
	if name, ok := strings.CutPrefix(w.text, "$"); ok && name != "" && name[0] != '{' && name[0] != '$' {
		value, ok := u.variable(name)
		if !ok {
			return nil
		}
		var out []word
		for _, f := range splitWords(value.text) {
			out = append(out, word{f, value.file, value.line})
		}
		return out
	}
	var b strings.Builder
	rest := w.text
	for {
		before, after, ok := strings.Cut(rest, "${")
		b.WriteString(before)
		if !ok {
			break
		}
		name, tail, ok := strings.Cut(after, "}")
		if !ok {
			break
		}
		if value, ok := u.variable(name); ok {
			b.WriteString(value.text)
			w.file, w.line = value.file, value.line
		}
		rest = tail
	}
	w.text = b.String()
	return []word{w}
}

// flag gives the last value of a flag, as --name=value or --name value.
func flag(words []word, name string) (word, bool) {
	var last word
	found := false
	for i, w := range words {
		if value, ok := strings.CutPrefix(w.text, "--"+name+"="); ok {
			last, found = word{value, w.file, w.line}, true
		} else if w.text == "--"+name && i+1 < len(words) {
			last, found = words[i+1], true
		}
	}
	return last, found
}

// setting is a line KEY=VALUE.
type setting struct {
	key, value string
	line       int
}

// settings are the lines of a section of an INI file (systemd.syntax(7)): comments out, continued lines joined.
func settings(text []byte, section string) []setting {
	var all []setting
	in, n := "", 0
	pending, at := "", 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		t := strings.TrimSpace(line)
		if strings.HasPrefix(t, "#") || strings.HasPrefix(t, ";") {
			continue
		}
		if at == 0 {
			at = n
		}
		if before, ok := strings.CutSuffix(line, `\`); ok {
			pending += before + " "
			continue
		}
		whole := strings.TrimSpace(pending + line)
		start := at
		pending, at = "", 0
		if strings.HasPrefix(whole, "[") && strings.HasSuffix(whole, "]") {
			in = whole[1 : len(whole)-1]
			continue
		}
		key, value, ok := strings.Cut(whole, "=")
		if ok && in == section {
			all = append(all, setting{strings.TrimSpace(key), strings.TrimSpace(value), start})
		}
	}
	return all
}

// splitWords splits a line at blanks outside of quotes and takes the quotes away.
func splitWords(s string) []string {
	var words []string
	var b strings.Builder
	quote := byte(0)
	inWord := false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, inWord = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if inWord {
				words = append(words, b.String())
				b.Reset()
				inWord = false
			}
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
			inWord = true
		default:
			b.WriteByte(c)
			inWord = true
		}
	}
	if inWord {
		words = append(words, b.String())
	}
	return words
}
