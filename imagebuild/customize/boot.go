package customize

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/osroot/ostree"
)

const entriesDir = "/boot/loader/entries"

var grubDirs = []string{"/boot/grub2", "/boot/grub"}

// kernelopts are the forms of the variable in an entry's options.
var kernelopts = []string{"$kernelopts", "${kernelopts}"}

// cmdline is a kernel command line that a file holds.
type cmdline struct {
	file *textFile
	args []string
	// where is what errors call it.
	where string
	// refs says that it refers to the variable kernelopts.
	refs bool
	// appendTo says that, of what makes later kernels' entries, it is what gets a new argument.
	appendTo bool
	// set writes the arguments into the file's lines.
	set func(args []string) error
}

// textFile is a file that is edited.
type textFile struct {
	system   *osroot.System
	name, at string
	lines    []string
	changed  bool
	why      string
	// finish makes the bytes of the lines; nil joins them.
	finish func(lines []string) ([]byte, error)
}

// boot is what the disk's boot loader reads.
type boot struct {
	files []*textFile
	// entries are of the Boot Loader Specification, the default first; grub are linux lines of grub.cfg. env is the
	// variable kernelopts; keep are what makes later kernels' entries agree.
	entries, grub, env, keep []*cmdline
	// envErr says why the variable cannot be changed.
	envErr error
}

// main are the command lines of what is started, the default first.
func (b *boot) main() []*cmdline {
	if len(b.entries) > 0 {
		return append(slices.Clone(b.entries), b.grub...)
	}
	return b.grub
}

// readText reads a file to edit it; nil where there is none.
func (p *planner) readText(s *osroot.System, name string) (*textFile, error) {
	at, err := s.Locate(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	h, err := p.stat(at.Path)
	if missing(err) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag != tar.TypeReg {
		return nil, nil
	}
	b, err := s.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return &textFile{system: s, name: name, at: at.Path, lines: slices.Collect(strings.Lines(string(b)))}, nil
}

// loadBoot reads what the boot loader reads.
func (p *planner) loadBoot() (*boot, error) {
	if p.boot != nil {
		return p.boot, nil
	}
	b, s := &boot{}, p.root.Systems[0]
	for _, load := range []func(*boot, *osroot.System) error{p.loadEntries, p.loadGrub, p.loadEnv, p.loadKeep} {
		if err := load(b, s); err != nil {
			return nil, err
		}
	}
	p.boot = b
	return b, nil
}

func (p *planner) loadEntries(b *boot, s *osroot.System) error {
	names, err := p.glob(s, entriesDir+"/*.conf")
	if err != nil {
		return err
	}
	var entries []ostree.Entry
	files := map[string]*textFile{}
	for _, name := range names {
		f, err := p.readText(s, name)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		e, err := ostree.ParseEntry(path.Base(name), []byte(strings.Join(f.lines, "")))
		if err != nil {
			return err
		}
		if e.Linux == "" {
			continue
		}
		entries = append(entries, e)
		files[e.File] = f
	}
	ostree.SortEntries(entries)
	saved, err := p.savedEntry(s)
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries, func(a, b ostree.Entry) int {
		first := func(e ostree.Entry) int {
			if strings.TrimSuffix(e.File, ".conf") == saved {
				return 0
			}
			return 1
		}
		return first(a) - first(b)
	})
	for _, e := range entries {
		f := files[e.File]
		b.files = append(b.files, f)
		c := &cmdline{file: f, args: splitArgs(e.Options), where: "the boot loader entry " + f.name}
		c.refs = slices.ContainsFunc(c.args, func(a string) bool { return slices.Contains(kernelopts, a) })
		c.set = func(args []string) error { f.lines = setOptions(f.lines, args); return nil }
		b.entries = append(b.entries, c)
	}
	return nil
}

// savedEntry is what grubenv says of the entry that GRUB starts by default; empty where it says nothing.
func (p *planner) savedEntry(s *osroot.System) (string, error) {
	for _, dir := range grubDirs {
		f, err := p.readText(s, dir+"/grubenv")
		if err != nil {
			return "", err
		}
		if f == nil {
			continue
		}
		for _, l := range f.lines {
			if id, ok := strings.CutPrefix(l, "saved_entry="); ok {
				return strings.TrimSpace(id), nil
			}
		}
	}
	return "", nil
}

// setOptions makes one "options" line of an entry's, in the place of the first.
func setOptions(lines, args []string) []string {
	text := "options " + strings.Join(args, " ") + "\n"
	first := -1
	var out []string
	for _, l := range lines {
		if f := strings.Fields(l); len(f) > 0 && f[0] == "options" {
			if first < 0 {
				first = len(out)
				out = append(out, text)
			}
			continue
		}
		out = append(out, l)
	}
	if first < 0 {
		out = append(endLine(out), text)
	}
	return out
}

// endLine ends the last line.
func endLine(lines []string) []string {
	if n := len(lines); n > 0 && !strings.HasSuffix(lines[n-1], "\n") {
		lines[n-1] += "\n"
	}
	return lines
}

var fallback = regexp.MustCompile(`^(\s*set\s+(?:default_)?kernelopts=")([^"\\]*)("\s*)$`)

// loadGrub reads grub.cfg: linux lines, and the fallback for kernelopts.
func (p *planner) loadGrub(b *boot, s *osroot.System) error {
	for _, dir := range grubDirs {
		f, err := p.readText(s, dir+"/grub.cfg")
		if err != nil {
			return err
		}
		if f == nil || slices.ContainsFunc(b.files, func(have *textFile) bool { return have.at == f.at }) {
			continue
		}
		b.files = append(b.files, f)
		for i, l := range f.lines {
			if m := fallback.FindStringSubmatch(strings.TrimSuffix(l, "\n")); m != nil {
				b.env = append(b.env, &cmdline{file: f, args: splitArgs(m[2]), where: "kernelopts in " + f.name, set: func(args []string) error {
					text := strings.Join(args, " ")
					if strings.Contains(text, `"`) {
						return fmt.Errorf("%w: an argument with quotes cannot be written to kernelopts in %s", ErrUnsupported, f.name)
					}
					f.lines[i] = m[1] + text + m[3] + "\n"
					return nil
				}})
				continue
			}
			args := splitArgs(l)
			if len(args) < 3 || !slices.Contains([]string{"linux", "linux16", "linuxefi"}, args[0]) {
				continue
			}
			// What starts no system has no root=: memtest86+.
			if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "root=") }) {
				continue
			}
			at := strings.Index(l, args[1]) + len(args[1])
			head := l[:at]
			b.grub = append(b.grub, &cmdline{file: f, args: args[2:], where: f.name, set: func(args []string) error {
				f.lines[i] = head + " " + strings.Join(args, " ") + "\n"
				return nil
			}})
		}
	}
	return nil
}

const envSignature = "# GRUB Environment Block\n"

// loadEnv reads the variable kernelopts of grubenv, if an entry refers to it.
func (p *planner) loadEnv(b *boot, s *osroot.System) error {
	if !slices.ContainsFunc(b.entries, func(c *cmdline) bool { return c.refs }) {
		return nil
	}
	for _, dir := range grubDirs {
		name := dir + "/grubenv"
		if _, err := p.root.Writable(s, name); err != nil {
			b.envErr = err
			continue
		}
		f, err := p.readText(s, name)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		env, err := parseEnv(f)
		if err != nil {
			return err
		}
		if env != nil {
			b.files = append(b.files, f)
			b.env = append([]*cmdline{env}, b.env...)
			b.envErr = nil
			return nil
		}
	}
	if len(b.env) == 0 && b.envErr == nil {
		b.envErr = fmt.Errorf("%w: the boot loader entries say $kernelopts, and no grubenv in %s has it", ErrUnsupported, strings.Join(grubDirs, " or "))
	}
	if b.envErr != nil {
		b.env = nil // the fallback says nothing where the variable may be set
	}
	return nil
}

// parseEnv finds kernelopts in GRUB's environment block: a signature, NAME=VALUE lines in which a backslash escapes the next
// byte, and "#" up to the block's size.
func parseEnv(f *textFile) (*cmdline, error) {
	block := strings.Join(f.lines, "")
	if !strings.HasPrefix(block, envSignature) {
		return nil, fmt.Errorf("%w: %s is no environment block of GRUB", ErrUnsupported, f.name)
	}
	const key = "\nkernelopts="
	start := strings.Index(block, key)
	if start < 0 {
		return nil, nil
	}
	start += len(key)
	var value strings.Builder
	end := start
	for ; end < len(block) && block[end] != '\n'; end++ {
		if block[end] == '\\' && end+1 < len(block) {
			end++
		}
		value.WriteByte(block[end])
	}
	if end == len(block) {
		return nil, fmt.Errorf("%w: %s is cut short", ErrUnsupported, f.name)
	}
	size, text := len(block), value.String()
	f.finish = func([]string) ([]byte, error) {
		used := strings.TrimRight(block[end:], "#")
		escaped := strings.NewReplacer(`\`, `\\`, "\n", "\\\n").Replace(text)
		out := block[:start] + escaped + used
		if len(out) > size {
			return nil, fmt.Errorf("%w: %s has %d bytes, and %d more would be needed for the arguments", ErrUnsupported, f.name, size, len(out)-size)
		}
		return append([]byte(out), bytes.Repeat([]byte("#"), size-len(out))...), nil
	}
	return &cmdline{file: f, args: splitArgs(text), where: "kernelopts in " + f.name, set: func(args []string) error {
		text = strings.Join(args, " ")
		return nil
	}}, nil
}

var grubDefault = regexp.MustCompile(`^(\s*(?:export\s+)?(GRUB_CMDLINE_LINUX(?:_DEFAULT)?)=)(.*?)(\s*(?:#[^"']*)?)$`)

// loadKeep reads what the entries of later kernels are made of.
func (p *planner) loadKeep(b *boot, s *osroot.System) error {
	if p.root.Ostree {
		return nil
	}
	f, err := p.readText(s, "/etc/kernel/cmdline")
	if err != nil {
		return err
	}
	if f != nil {
		b.files = append(b.files, f)
		b.keep = append(b.keep, &cmdline{file: f, args: splitArgs(strings.Join(f.lines, "")), where: f.name, set: func(args []string) error {
			f.lines = []string{strings.Join(args, " ") + "\n"}
			return nil
		}})
	}
	names, err := p.glob(s, "/etc/default/grub.d/*.cfg")
	if err != nil {
		return err
	}
	var first, last *cmdline
	for _, name := range append([]string{"/etc/default/grub"}, names...) {
		f, err := p.readText(s, name)
		if err != nil {
			return err
		}
		if f == nil {
			continue
		}
		b.files = append(b.files, f)
		for i, l := range f.lines {
			m := grubDefault.FindStringSubmatch(strings.TrimSuffix(l, "\n"))
			if m == nil {
				continue
			}
			value, err := unquoteShell(m[3])
			c := &cmdline{file: f, args: splitArgs(value), where: m[2] + " in " + f.name}
			c.set = func(args []string) error {
				if err != nil {
					return fmt.Errorf("%w: line %d of %s: %s", ErrUnsupported, i+1, f.name, err)
				}
				f.lines[i] = m[1] + `"` + strings.ReplaceAll(strings.Join(args, " "), `"`, `\"`) + `"` + m[4] + "\n"
				return nil
			}
			b.keep = append(b.keep, c)
			if m[2] == "GRUB_CMDLINE_LINUX" {
				last = c
			}
		}
		if first == nil && name == "/etc/default/grub" {
			n := len(f.lines)
			first = &cmdline{file: f, where: f.name, appendTo: true, set: func(args []string) error {
				f.lines = append(endLine(f.lines[:n]), `GRUB_CMDLINE_LINUX="`+strings.ReplaceAll(strings.Join(args, " "), `"`, `\"`)+"\"\n")
				return nil
			}}
		}
	}
	// What is appended goes into the assignment that counts: the last.
	for _, c := range b.keep {
		c.appendTo = c == last || c.file.name == "/etc/kernel/cmdline"
	}
	if last == nil && first != nil {
		b.keep = append(b.keep, first)
	}
	return nil
}

// unquoteShell reads one word of a shell's assignment. In double quotes only a quote may be escaped; variables stay as they
// are written.
func unquoteShell(word string) (string, error) {
	complicated := errors.New("the value is not one plain word of the shell; change it by hand, with --copy or --write")
	n := len(word)
	switch {
	case n >= 2 && word[0] == '\'' && word[n-1] == '\'' && strings.Count(word, "'") == 2:
		if strings.ContainsAny(word, "$`\\") {
			return "", complicated
		}
		return word[1 : n-1], nil
	case n >= 2 && word[0] == '"' && word[n-1] == '"':
		in := strings.ReplaceAll(word[1:n-1], `\"`, "\x00")
		if strings.ContainsAny(in, "\"`\\") || strings.Contains(in, "$(") {
			return "", complicated
		}
		return strings.ReplaceAll(in, "\x00", `"`), nil
	case strings.ContainsAny(word, "\"'`\\$ \t;&|<>()"):
		return "", complicated
	}
	return word, nil
}

// planBoot plans the kernel arguments.
func (p *planner) planBoot() error {
	var ops []op
	for _, l := range []struct {
		verb verb
		flag string
		args []string
	}{{del, "--karg-delete", p.KargDelete}, {replace, "--karg-replace", p.KargReplace}, {appendArg, "--karg-append", p.KargAppend}} {
		for _, a := range l.args {
			ops = append(ops, op{l.verb, a, l.flag})
		}
	}
	if p.IgnitionPlatform != "" {
		for _, c := range []byte(p.IgnitionPlatform) {
			if !alnum(c) && c != '-' && c != '_' {
				return fmt.Errorf("%w: the Ignition platform %q may have letters, digits and hyphens only, such as qemu or metal", ErrUsage, p.IgnitionPlatform)
			}
		}
		ops = append(ops, op{set, "ignition.platform.id=" + p.IgnitionPlatform, "--ignition-platform"})
	}
	if len(ops) == 0 {
		return nil
	}
	for _, o := range ops {
		if err := o.check(); err != nil {
			return err
		}
		if key, _, _ := cutArg(o.arg); key == "ostree" && p.root.Ostree {
			return fmt.Errorf("%w: %s %s: ostree= names the deployment that is started; it is ostree's to change", ErrUsage, o.flag, o.arg)
		}
	}
	if p.root.Platform == "linux/s390x" {
		return fmt.Errorf("%w: on s390x kernel arguments are in a boot record that zipl writes, which would have to run", ErrUnsupported)
	}
	b, err := p.loadBoot()
	if err != nil {
		return err
	}
	if len(b.main()) == 0 {
		return fmt.Errorf("%w: no kernel arguments were found: there is no %s/*.conf, and no linux line with root= in %s", ErrUnsupported,
			entriesDir, strings.Join([]string{grubDirs[0] + "/grub.cfg", grubDirs[1] + "/grub.cfg"}, " or "))
	}
	for _, o := range ops {
		if err := p.apply(b, o); err != nil {
			return err
		}
	}
	return nil
}

// apply changes the command lines by one op.
func (p *planner) apply(b *boot, o op) error {
	main := b.main()
	why := o.why()
	try := func(c *cmdline) (found, error) {
		args, f := o.on(c.args)
		if f != done || slices.Equal(args, c.args) {
			return f, nil
		}
		c.args = args
		c.file.changed = true
		if !strings.Contains(c.file.why, why) {
			c.file.why = strings.TrimPrefix(c.file.why+", "+why, ", ")
		}
		return done, c.set(args)
	}
	if o.verb == appendArg {
		// Where the variable can be changed, the entries that refer to it get the argument by it.
		byEnv := len(b.env) > 0
		for _, c := range slices.Concat(main, b.env, b.keep) {
			if slices.Contains(main, c) && c.refs && byEnv || slices.Contains(b.keep, c) && !c.appendTo {
				continue
			}
			if _, err := try(c); err != nil {
				return err
			}
		}
		return nil
	}
	env := nothing
	for _, c := range b.env {
		f, err := try(c)
		if err != nil {
			return err
		}
		if f == ambiguous {
			return o.refused(f, c.where)
		}
		env = max(env, f)
	}
	for i, c := range main {
		f, err := try(c)
		if err != nil {
			return err
		}
		if f == done && c.refs && env == done && o.verb != set {
			f = ambiguous
		}
		if f == ambiguous {
			return o.refused(f, c.where)
		}
		if i > 0 || f == done || c.refs && env == done {
			continue
		}
		if c.refs && b.envErr != nil {
			return fmt.Errorf("%s %s: %s has no such argument but says $kernelopts, which cannot be changed: %w", o.flag, o.arg, c.where, b.envErr)
		}
		if o.verb == set {
			return fmt.Errorf("%w: %s: %s has no ignition.platform.id; only Fedora and RHEL CoreOS, Oracle's OCK and their like have Ignition", ErrUnsupported, o.flag, c.where)
		}
		return o.refused(f, c.where)
	}
	kept := len(b.keep) == 0
	for _, c := range b.keep {
		f, err := try(c)
		if err != nil {
			return err
		}
		kept = kept || f == done
	}
	if !kept && len(b.entries) == 0 {
		p.warn("%s %s: grub.cfg is changed, but the argument is not from /etc/default/grub: the next update-grub on the machine brings it back", o.flag, o.arg)
	}
	return nil
}

// why says what an op does, for the report.
func (o op) why() string {
	switch o.verb {
	case del:
		return "kernel argument " + o.arg + " deleted"
	case replace:
		return "kernel argument replaced by " + o.arg
	case set:
		return "kernel argument " + o.arg
	}
	return "kernel argument " + o.arg + " added"
}

// finishBoot plans the files that were changed.
func (p *planner) finishBoot() error {
	if p.boot == nil {
		return nil
	}
	for _, f := range p.boot.files {
		if !f.changed {
			continue
		}
		data := []byte(strings.Join(f.lines, ""))
		if f.finish != nil {
			var err error
			if data, err = f.finish(f.lines); err != nil {
				return err
			}
		}
		if _, err := p.root.Writable(f.system, f.name); err != nil {
			return err
		}
		if err := p.put(editing, f.system, f.at, f.name, "what the boot loader reads", f.why, data, 0o644, 0o755); err != nil {
			return err
		}
	}
	return nil
}
