package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/diskdiff"
)

const (
	// shownFiles is how many file names are printed where not all of them were asked for, shownLines how many lines
	// of configuration, and shownText how many of one file.
	shownFiles = 40
	shownLines = 400
	shownText  = 60
	// countedFolders bounds the folders by which the rest is counted.
	countedFolders = 12
)

// errDiffer is what --exit-code ends with. It shares its exit code with verification, and nothing else.
var errDiffer = differError{}

type differError struct{}

func (differError) Error() string        { return "the disks differ" }
func (differError) Is(target error) bool { return target == imagebuild.ErrVerify }

func diffCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var o diskdiff.Options
	var asJSON, exitCode bool
	cmd := &cobra.Command{
		Use:   "diff A B",
		Short: "Say in what two disks differ: images, files, configuration, boot, partitions",
		Long: `Say what is different on disk B: partitions and filesystems, the OS, boot entries and kernel arguments, the
images of each store, and the files outside the stores. Of configuration (/etc, the boot loader's, that of
containers) the lines are shown, unless only its owner may read it.

Files are compared as the running systems see them, so that the default deployments of two ostree disks are
compared with each other. Contents are read and compared, never judged by size and time; times themselves
count with --times only. Images are compared by name and digest; nodebake verify says whether they are what
their digests promise. Partitions without a filesystem that nodebake reads (EFI) are compared as bytes.

The exit code is 0 whether or not the disks differ; with --exit-code it is 3 if they do.`,
		Example: `  nodebake diff base.qcow2 node.qcow2
  nodebake diff last-month.qcow2 node.qcow2 --files
  nodebake diff a.raw b.qcow2 --json --exit-code`,
		Args: exactly("A", "B"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var disks [2]*imagebuild.Opened
			for i, name := range args {
				d, err := imagebuild.OpenDisk(name, how)
				if err != nil {
					return err
				}
				defer d.Close()
				disks[i] = d
			}
			c, err := diskdiff.New(disks[0], disks[1])
			if err != nil {
				return err
			}
			rep, err := c.Report(cmd.Context())
			if err != nil {
				return err
			}
			out := bufio.NewWriterSize(cmd.OutOrStdout(), 64<<10)
			printer := differencePrinter(&diffText{w: out, all: o.Every})
			if asJSON {
				printer, o.Hashes = &diffJSON{w: out}, true
			}
			printer.report(rep)
			totals, err := c.Files(cmd.Context(), o, func(ch diskdiff.Change) error { return printer.file(ch) })
			if err != nil {
				return errors.Join(err, out.Flush())
			}
			for _, d := range disks {
				if err := d.Disk.Unchanged(); err != nil {
					return errors.Join(err, out.Flush())
				}
			}
			printer.end(rep, totals)
			if err := out.Flush(); err != nil {
				return err
			}
			if exitCode && (rep.Any() || totals.Any()) {
				return errDiffer
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON: all of it, with the SHA-256 of contents that differ")
	f.BoolVar(&o.Every, "files", false, "print every file, also those of new and of removed folders")
	f.BoolVar(&o.Times, "times", false, "compare modification times too")
	f.BoolVar(&o.Stores, "store-files", false, "compare the files of the image stores too")
	f.BoolVar(&exitCode, "exit-code", false, "exit with 3 if the disks differ")
	addDiskFlags(cmd, &how)
	return cmd
}

// differencePrinter shows differences as they are found. What cannot be written is told by the writer's Flush.
type differencePrinter interface {
	report(r *diskdiff.Report)
	file(c diskdiff.Change) error
	end(r *diskdiff.Report, t diskdiff.Totals)
}

// diffJSON prints one document without ever holding all of it.
type diffJSON struct {
	w     *bufio.Writer
	files int
}

func (p *diffJSON) report(r *diskdiff.Report) {
	var b bytes.Buffer
	printJSON(&b, r)
	p.w.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n}\n")))
	p.w.WriteString(",\n  \"files\": [")
}

func (p *diffJSON) file(c diskdiff.Change) error {
	if p.files++; p.files > 1 {
		p.w.WriteByte(',')
	}
	return p.line("\n    ", c)
}

func (p *diffJSON) line(before string, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	p.w.WriteString(before)
	_, err := p.w.Write(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	return err
}

func (p *diffJSON) end(r *diskdiff.Report, t diskdiff.Totals) {
	if p.files > 0 {
		p.w.WriteString("\n  ")
	}
	p.w.WriteByte(']')
	p.line(",\n  \"totals\": ", t)
	p.line(",\n  \"differ\": ", r.Any() || t.Any())
	p.w.WriteString("\n}\n")
}

// diffText prints for people.
type diffText struct {
	w            *bufio.Writer
	all          bool
	files, lines int
	rest         map[string]int
	more         int
}

func (p *diffText) printf(format string, args ...any) { fmt.Fprintf(p.w, format, args...) }

func (p *diffText) report(r *diskdiff.Report) {
	for i, s := range []diskdiff.Side{r.A, r.B} {
		p.printf("%c: %s: %s, %s, %s", 'A'+i, printable(s.Path), dash(string(s.OS)), s.Format, disk.Bytes(s.Size))
		if s.Deployment != "" {
			p.printf(", %s", printable(string(s.Deployment)))
		}
		p.printf("\n")
	}
	for _, w := range r.Warnings {
		p.printf("Warning: %s\n", printable(w))
	}
	if len(r.Disk)+len(r.Partitions) > 0 {
		p.printf("\nDisk:\n")
		p.fields("  ", r.Disk)
	}
	for _, c := range r.Partitions {
		name := "partition " + string(c.Partition)
		switch {
		case c.Partition == "boot code":
			name = "the boot code in front of the first partition"
		case c.Name != "":
			name = string(c.Name)
		}
		p.printf("  %s %s\n", mark(c.Kind), printable(name))
		p.fields("      ", c.Differs)
		if c.Content != nil {
			p.printf("      content differs from byte %d on\n", *c.Content)
		}
	}
	if len(r.System) > 0 {
		p.printf("\nSystem:\n")
		p.fields("  ", r.System)
	}
	if len(r.Boot) > 0 {
		p.printf("\nBoot entries:\n")
	}
	for _, c := range r.Boot {
		p.printf("  %s %s\n", mark(c.Kind), printable(string(c.Entry)))
		p.fields("      ", c.Differs)
		for _, list := range []struct {
			sign string
			args []diskdiff.Text
		}{{"-", c.ArgsRemoved}, {"+", c.ArgsAdded}} {
			if len(list.args) > 0 {
				p.printf("      kernel arguments %s %s\n", list.sign, printable(joined(list.args, " ")))
			}
		}
	}
	if len(r.Stores) > 0 {
		p.printf("\nStores:\n")
	}
	for _, c := range r.Stores {
		p.printf("  %s %s", mark(c.Kind), printable(string(c.Path)))
		if c.Kind != diskdiff.Changed {
			p.printf(": %s", plural(c.Images, "image"))
		}
		p.printf("\n")
		p.fields("      ", c.Differs)
	}
	if len(r.Images) > 0 {
		p.printf("\nImages:\n")
	}
	for _, c := range r.Images {
		p.image(c)
	}
}

func (p *diffText) image(c diskdiff.ImageChange) {
	one := func(i *diskdiff.Image) string {
		name := joined(i.Names, " ")
		if name == "" {
			name = "<none>"
		}
		return fmt.Sprintf("%s  %s  %s", printable(name), i.Digest, humanSize(i.Size))
	}
	switch c.Kind {
	case diskdiff.Added:
		p.printf("  + %s  in %s\n", one(c.B), printable(string(c.Store)))
	case diskdiff.Removed:
		p.printf("  - %s  in %s\n", one(c.A), printable(string(c.Store)))
	default:
		p.printf("  M in %s\n      - %s\n      + %s\n", printable(string(c.Store)), one(c.A), one(c.B))
	}
}

func joined(list []diskdiff.Text, sep string) string {
	var s []string
	for _, t := range list {
		s = append(s, string(t))
	}
	return strings.Join(s, sep)
}

func (p *diffText) fields(indent string, list []diskdiff.Field) {
	for _, f := range list {
		a, b := string(f.A), string(f.B)
		if f.What == "size" || f.What == "start" || strings.HasSuffix(f.What, "'s size") {
			a, b = bytesText(a), bytesText(b)
		}
		if f.What == "kernels" || strings.HasSuffix(f.What, "features") {
			a, b = onlyIn(a, b), onlyIn(b, a)
		}
		p.printf("%s%s: %s -> %s\n", indent, f.What, dash(a), dash(b))
	}
}

// onlyIn gives the words of a that b has not.
func onlyIn(a, b string) string {
	have := strings.Fields(b)
	return strings.Join(slices.DeleteFunc(strings.Fields(a), func(w string) bool { return slices.Contains(have, w) }), " ")
}

// bytesText is a number of bytes for people; two that differ look different.
func bytesText(s string) string {
	var n int64
	if _, err := fmt.Sscan(s, &n); err != nil {
		return s
	}
	return fmt.Sprintf("%s (%d)", disk.Bytes(n), n)
}

func mark(k diskdiff.Kind) string {
	return map[diskdiff.Kind]string{diskdiff.Added: "+", diskdiff.Removed: "-", diskdiff.Changed: "M", diskdiff.Unreadable: "!"}[k]
}

func (p *diffText) file(c diskdiff.Change) error {
	p.files++
	if p.files == 1 {
		p.printf("\nFiles:\n")
	}
	text := c.Lines != "" && p.lines < shownLines
	if !p.all && p.files > shownFiles && !text && c.Kind != diskdiff.Unreadable {
		p.count(string(c.Path))
		return nil
	}
	path := printable(string(c.Path))
	switch c.Kind {
	case diskdiff.Unreadable:
		p.printf("  ! %s: could not be compared: %s\n", path, printable(c.Error))
	case diskdiff.Changed:
		p.printf("  M %s: %s\n", path, strings.Join(changes(c), "; "))
	default:
		f := c.A
		if c.Kind == diskdiff.Added {
			f = c.B
		}
		p.printf("  %s %s%s\n", mark(c.Kind), path, what(c, f))
	}
	if c.Error != "" && c.Kind != diskdiff.Unreadable {
		p.printf("      %s\n", printable(c.Error))
	}
	n := 0
	for line := range strings.Lines(string(c.Lines)) {
		if !p.all && (p.lines >= shownLines || n >= shownText) {
			if n > 0 {
				p.printf("      ...\n")
			}
			break
		}
		n++
		p.lines++
		p.printf("      %s\n", printable(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "    ")))
	}
	return nil
}

// count notes a name that is not printed, by the two folders above it.
func (p *diffText) count(name string) {
	parts := strings.SplitN(name, "/", 4)
	folder := strings.Join(parts[:max(min(3, len(parts)-1), 2)], "/")
	if p.rest == nil {
		p.rest = map[string]int{}
	}
	if _, known := p.rest[folder]; !known && len(p.rest) >= countedFolders {
		folder = "elsewhere"
	}
	p.rest[folder]++
	p.more++
}

// what describes a file that is on one side alone.
func what(c diskdiff.Change, f *diskdiff.File) string {
	switch f.Type {
	case "folder":
		if c.Below == nil || c.Below.Names == 0 {
			return "/"
		}
		return fmt.Sprintf("/ (%s, %s)", plural(int(c.Below.Names), "name"), disk.Bytes(c.Below.Bytes))
	case "symlink":
		return " -> " + printable(string(f.Target))
	case "file":
		return fmt.Sprintf(" (%s)", disk.Bytes(f.Size))
	}
	return " (" + f.Type + ")"
}

// changes says in words what a file differs in.
func changes(c diskdiff.Change) []string {
	var out []string
	arrow := func(what, a, b string) { out = append(out, fmt.Sprintf("%s %s -> %s", what, a, b)) }
	for _, d := range c.Differs {
		switch d {
		case "type":
			arrow(d, c.A.Type, c.B.Type)
		case "mode":
			arrow(d, c.A.Mode, c.B.Mode)
		case "owner":
			arrow(d, fmt.Sprintf("%d:%d", c.A.UID, c.A.GID), fmt.Sprintf("%d:%d", c.B.UID, c.B.GID))
		case "size":
			arrow(d, fmt.Sprint(c.A.Size), fmt.Sprint(c.B.Size))
		case "target":
			arrow(d, dash(string(c.A.Target)), dash(string(c.B.Target)))
		case "device":
			arrow(d, c.A.Device, c.B.Device)
		case "mtime":
			arrow(d, c.A.Mtime.Format("2006-01-02T15:04:05.999999999Z"), c.B.Mtime.Format("2006-01-02T15:04:05.999999999Z"))
		case "content":
			// A size that differs says so already.
			if !slices.Contains(c.Differs, "size") {
				out = append(out, d)
			}
		default:
			name := strings.TrimPrefix(d, "xattr:")
			a, hasA := c.A.Xattrs[name]
			b, hasB := c.B.Xattrs[name]
			arrow(printable(name), xattrText(a, hasA), xattrText(b, hasB))
		}
	}
	return out
}

func xattrText(v diskdiff.Text, has bool) string {
	if !has {
		return "none"
	}
	s := printable(strings.TrimSuffix(string(v), "\x00"))
	if len(s) > 80 {
		s = s[:80] + "..."
	}
	return dash(s)
}

func (p *diffText) end(r *diskdiff.Report, t diskdiff.Totals) {
	if p.more > 0 {
		p.printf("  and %d more (--files prints them):", p.more)
		names := slices.Sorted(maps.Keys(p.rest))
		slices.SortStableFunc(names, func(a, b string) int { return p.rest[b] - p.rest[a] })
		for i, n := range names {
			if i > 0 {
				p.printf(",")
			}
			p.printf(" %s %d", printable(n), p.rest[n])
		}
		p.printf("\n")
	}
	p.printf("\n")
	if !r.Any() && !t.Any() {
		p.printf("No differences: ")
	} else if !t.Any() {
		p.printf("No differences in files: ")
	} else {
		for _, n := range []struct {
			n    int64
			what string
		}{{t.Changed, "changed"}, {t.Added, "added"}, {t.Removed, "removed"}, {t.Unreadable, "not readable"}} {
			if n.n > 0 {
				p.printf("%d %s, ", n.n, n.what)
			}
		}
	}
	p.printf("%d names and %s compared.\n", t.Compared, disk.Bytes(t.Bytes))
}
