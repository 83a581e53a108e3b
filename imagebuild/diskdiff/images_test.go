package diskdiff

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/imagebuild/osroot/ostree"
	"github.com/nodebake/nodebake/storeseed"
)

// rows are a store's list, written "ID name name, ID name".
func rows(list string) (all []storeseed.Image) {
	for _, one := range strings.Split(list, ",") {
		f := strings.Fields(one)
		if len(f) == 0 {
			continue
		}
		i := storeseed.Image{ID: f[0], Digest: digest.Digest(f[0]), Names: f[1:], Digests: []digest.Digest{digest.Digest(f[0])}}
		for range max(1, len(i.Names)) {
			all = append(all, i)
		}
	}
	return all
}

func TestCompareImages(t *testing.T) {
	for _, c := range []struct{ a, b, want string }{
		{"1 x:1", "1 x:1", ""},
		{"", "1 x:1 y:1", "added -/1"},
		{"1 x:1", "", "removed 1/-"},
		{"1 x:1", "2 x:1", "changed 1/2"},
		{"1 x:1", "1 x:1 x:2", "changed 1/1"},
		{"1 x:1", "1", "changed 1/1"},
		{"1", "2", "added -/2; removed 1/-"},
		{"1 x:1", "2 y:1", "removed 1/-; added -/2"},
		// A tag that moved to an image that was there.
		{"1 x:1, 2 x:2", "2 x:2 x:1", "removed 1/-; changed 2/2"},
		{"1 x:1, 2 x:2", "1 x:2, 2 x:1", "changed 2/2; changed 1/1"},
		// An image with two names was split in two.
		{"1 x:1 y:1", "2 x:1, 3 y:1", "changed 1/2; added -/3"},
		{"1 x:1, 2 y:1", "3 x:1 y:1", "changed 1/3; removed 2/-"},
	} {
		var got []string
		for _, ch := range compareImages(unique(rows(c.a)), unique(rows(c.b))) {
			id := func(i *Image) string {
				if i == nil {
					return "-"
				}
				return i.ID
			}
			got = append(got, fmt.Sprintf("%s %s/%s", ch.Kind, id(ch.A), id(ch.B)))
		}
		slices.Sort(got)
		want := strings.Split(c.want, "; ")
		if c.want == "" {
			want = nil
		}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q to %q: %q, must be %q", c.a, c.b, got, want)
		}
	}
}

func TestCompareEntries(t *testing.T) {
	a := &ostree.Entry{Title: "OS 1", Linux: "/v", Options: "root=a rw quiet console=tty0 console=ttyS0"}
	b := &ostree.Entry{Title: "OS 2", Linux: "/v", Options: "root=a rw console=ttyS0 console=tty0 debug"}
	ch := compareEntries("x", a, b)
	if ch.Kind != Changed || fmt.Sprint(ch.Differs) != "[{title OS 1 OS 2}]" {
		t.Errorf("%+v", ch)
	}
	// An argument that moved counts, since the last one of its name wins; which of the two is said to have moved is chance.
	if len(ch.ArgsRemoved) != 2 || ch.ArgsRemoved[0] != "quiet" || len(ch.ArgsAdded) != 2 || !slices.Contains(ch.ArgsAdded, "debug") {
		t.Errorf("%+v", ch)
	}
	if ch := compareEntries("x", a, a); len(ch.Differs)+len(ch.ArgsAdded)+len(ch.ArgsRemoved) != 0 {
		t.Errorf("%+v", ch)
	}
	if ch := compareEntries("x", nil, a); ch.Kind != Added || len(ch.ArgsAdded) != 5 {
		t.Errorf("%+v", ch)
	}
	if ch := compareEntries("x", a, nil); ch.Kind != Removed || len(ch.ArgsRemoved) != 5 {
		t.Errorf("%+v", ch)
	}
}
