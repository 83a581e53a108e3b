package diskdiff

import (
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/osroot/ostree"
)

// BootChange is an entry of the boot loader's menu that is not the same on both disks.
type BootChange struct {
	// Entry is the file's name; on an ostree disk, whose files are renamed by every deployment, the place in the menu,
	// from 0 on.
	Entry Text `json:"entry"`
	Kind  Kind `json:"kind"`
	// Differs are the entry's other keys, in an added or removed one its arguments as well.
	Differs []Field `json:"differs,omitempty"`
	// ArgsRemoved and ArgsAdded are the kernel's arguments on one side alone; one that has moved is in both.
	ArgsRemoved []Text `json:"argsRemoved,omitempty"`
	ArgsAdded   []Text `json:"argsAdded,omitempty"`
}

// entries compares the entries of the Boot Loader Specification. What GRUB alone has is a file as others are.
func (c *Comparison) entries() []BootChange {
	a, b := c.menu(&c.a, "A"), c.menu(&c.b, "B")
	byPlace := c.a.Root.Ostree || c.b.Root.Ostree
	type pair struct{ a, b *ostree.Entry }
	pairs := map[string]pair{}
	var names []string
	for side, menu := range [][]ostree.Entry{a, b} {
		for i := range menu {
			name := menu[i].File
			if byPlace {
				name = fmt.Sprintf("ostree:%d", i)
			}
			p, known := pairs[name]
			if !known {
				names = append(names, name)
			}
			if side == 0 {
				p.a = &menu[i]
			} else {
				p.b = &menu[i]
			}
			pairs[name] = p
		}
	}
	out := []BootChange{}
	for _, n := range names {
		if ch := compareEntries(n, pairs[n].a, pairs[n].b); ch.Kind != Changed || len(ch.Differs)+len(ch.ArgsAdded)+len(ch.ArgsRemoved) > 0 {
			out = append(out, ch)
		}
	}
	return out
}

func compareEntries(name string, a, b *ostree.Entry) BootChange {
	ch := BootChange{Entry: Text(name), Kind: Changed}
	none := &ostree.Entry{}
	if a == nil {
		ch.Kind, a = Added, none
	}
	if b == nil {
		ch.Kind, b = Removed, none
	}
	f := fields{}
	f.add("title", a.Title, b.Title)
	f.add("version", a.Version, b.Version)
	f.add("linux", a.Linux, b.Linux)
	f.add("initrd", strings.Join(a.Initrd, " "), strings.Join(b.Initrd, " "))
	ch.Differs = f
	x, y := strings.Fields(a.Options), strings.Fields(b.Options)
	for _, e := range edits(x, y) {
		for _, arg := range x[e.from:e.to] {
			ch.ArgsRemoved = append(ch.ArgsRemoved, Text(arg))
		}
		for _, arg := range y[e.at:e.end] {
			ch.ArgsAdded = append(ch.ArgsAdded, Text(arg))
		}
	}
	return ch
}

// menu reads the boot loader's entries in the order of its menu.
func (c *Comparison) menu(s *side, called string) []ostree.Entry {
	at, names := c.list(s, called, "/boot/loader/entries")
	var all []ostree.Entry
	for _, n := range names {
		if !strings.HasSuffix(n, ".conf") || strings.HasPrefix(n, ".") {
			continue
		}
		name := path.Join(at, n)
		f, err := s.Root.Tree.Open(name)
		var e ostree.Entry
		if err == nil {
			var text []byte
			if text, err = io.ReadAll(io.NewSectionReader(f, 0, min(f.Size(), maxText+1))); err == nil {
				e, err = ostree.ParseEntry(n, text)
			}
		}
		if err != nil {
			c.warn("%s: the boot loader's entry %s could not be read: %v", called, n, err)
			continue
		}
		all = append(all, e)
	}
	ostree.SortEntries(all)
	return all
}
