package diskdiff

import (
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/storeseed"
)

// StoreChange is a store that one disk has, or that its configuration calls something else.
type StoreChange struct {
	Path Text `json:"path"`
	Kind Kind `json:"kind"`
	// Differs are what a changed store differs in.
	Differs []Field `json:"differs,omitempty"`
	// Images is how many a store has that was added or removed.
	Images int `json:"images,omitempty"`
}

// ImageChange is an image that is not the same in a store on both disks: added, removed, or changed. A changed one has
// the same name and another digest, or the same digest and other names.
type ImageChange struct {
	Store Text   `json:"store"`
	Kind  Kind   `json:"kind"`
	A     *Image `json:"a,omitempty"`
	B     *Image `json:"b,omitempty"`
}

// Image is an image in a store.
type Image struct {
	ID string `json:"id"`
	// Digest is its manifest's, Digests all manifests' that it can be found by.
	Digest  digest.Digest   `json:"digest"`
	Digests []digest.Digest `json:"digests"`
	Names   []Text          `json:"names"`
	Size    int64           `json:"size"`
	Layers  int             `json:"layers"`

	layers []string
}

func (i *Image) same(other *Image) bool {
	return i.ID == other.ID && i.Digest == other.Digest && i.Size == other.Size && slices.Equal(i.Digests, other.Digests) &&
		slices.Equal(i.Names, other.Names) && slices.Equal(i.layers, other.layers)
}

// unique gives each image once, sorted by ID: a list has a row for each name.
func unique(rows []storeseed.Image) []*Image {
	var all []*Image
	for _, r := range rows {
		i := &Image{ID: r.ID, Digest: r.Digest, Digests: slices.Sorted(slices.Values(r.Digests)), Size: r.Size, Layers: len(r.Layers), Names: []Text{}}
		for _, n := range r.Names {
			i.Names = append(i.Names, Text(n))
		}
		for _, l := range r.Layers {
			i.layers = append(i.layers, l.ID)
		}
		slices.Sort(i.Names)
		all = append(all, i)
	}
	slices.SortStableFunc(all, func(a, b *Image) int { return compareText(a.ID, b.ID) })
	return slices.CompactFunc(all, func(a, b *Image) bool { return a.ID == b.ID })
}

func compareText[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// images compares the stores and what is in them.
func (c *Comparison) images() ([]StoreChange, []ImageChange) {
	stores, changes := []StoreChange{}, []ImageChange{}
	find := func(s *side, path string) *store {
		i := slices.IndexFunc(s.stores, func(st store) bool { return st.Path == path })
		if i < 0 {
			return nil
		}
		return &s.stores[i]
	}
	var paths []string
	for _, s := range slices.Concat(c.a.stores, c.b.stores) {
		if !slices.Contains(paths, s.Path) {
			paths = append(paths, s.Path)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		a, b := find(&c.a, p), find(&c.b, p)
		var was, is []*Image
		change := StoreChange{Path: Text(p), Kind: Changed}
		if a != nil {
			was = unique(a.images)
		}
		if b != nil {
			is = unique(b.images)
		}
		switch {
		case a == nil:
			change.Kind, change.Images = Added, len(is)
		case b == nil:
			change.Kind, change.Images = Removed, len(was)
		default:
			f := fields{}
			f.add("in storage.conf", a.Configured, b.Configured)
			f.add("read-write", a.Primary, b.Primary)
			f.add("readable", !a.broken, !b.broken)
			change.Differs = f
		}
		if change.Kind != Changed || len(change.Differs) > 0 {
			stores = append(stores, change)
		}
		for _, ch := range compareImages(was, is) {
			ch.Store = Text(p)
			changes = append(changes, ch)
		}
	}
	return stores, changes
}

// compareImages compares the images of one store: by ID, and those that are on one side alone by a name that they share.
func compareImages(was, is []*Image) []ImageChange {
	var out []ImageChange
	var gone, fresh []*Image
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(is) == 0 || len(was) > 0 && was[0].ID < is[0].ID:
			gone, was = append(gone, was[0]), was[1:]
		case len(was) == 0 || is[0].ID < was[0].ID:
			fresh, is = append(fresh, is[0]), is[1:]
		default:
			if !was[0].same(is[0]) {
				out = append(out, ImageChange{Kind: Changed, A: was[0], B: is[0]})
			}
			was, is = was[1:], is[1:]
		}
	}
	named := map[Text]*Image{}
	for _, i := range fresh {
		for _, n := range i.Names {
			named[n] = i
		}
	}
	taken := map[*Image]bool{}
	for _, i := range gone {
		ch := ImageChange{Kind: Removed, A: i}
		for _, n := range i.Names {
			if to := named[n]; to != nil && !taken[to] {
				taken[to] = true
				ch.Kind, ch.B = Changed, to
				break
			}
		}
		out = append(out, ch)
	}
	for _, i := range fresh {
		if !taken[i] {
			out = append(out, ImageChange{Kind: Added, B: i})
		}
	}
	slices.SortStableFunc(out, func(x, y ImageChange) int { return compareText(x.name(), y.name()) })
	return out
}

// name is what the change is sorted by.
func (ch ImageChange) name() Text {
	for _, i := range []*Image{ch.B, ch.A} {
		if i != nil && len(i.Names) > 0 {
			return i.Names[0]
		}
	}
	return ""
}
