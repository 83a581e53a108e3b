package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestGrowInMemory(t *testing.T) {
	m := plainImage()
	was := bytes.Clone(m.b)
	groups, err := Open([]PV{{Name: "other", R: bytes.NewReader(make([]byte, 8192)), Size: 8192}, m.pv("disk")})
	if err != nil {
		t.Fatal(err)
	}
	g := groups[0]
	const mib = 1 << 20
	if g.Free() != 5*mib || g.PVs[0] != 1 {
		t.Fatal(g.Free(), g.PVs)
	}
	if err := g.GrowVolume("root", 9*mib); !errors.Is(err, ErrNoSpace) || g.Changed() || g.Free() != 5*mib {
		t.Fatal(err)
	}
	if err := g.GrowVolume("root", 2*mib); err == nil || g.Changed() {
		t.Fatal(err)
	}
	if err := g.GrowPV(1, 8*mib); err == nil || g.Changed() {
		t.Fatal(err)
	}
	if err := g.GrowPV(0, 80*mib); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := g.GrowPV(-1, 80*mib); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if err := g.GrowPV(1, 1<<61); !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
	if err := g.GrowVolume("root", 1<<62); !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrNoSpace) {
		t.Fatal(err)
	}
	if err := g.GrowPV(1, 9*mib+mib/2); err != nil || g.Changed() {
		t.Fatal("less than an extent changes something", err)
	}
	if err := g.GrowVolume("root", 3*mib); err != nil || g.Changed() {
		t.Fatal(err)
	}
	for i := int64(1); i <= 20; i++ {
		want := 8*mib + i*3*mib - 77
		size, err := g.DeviceSize(1, want-g.Volumes[0].Size)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.GrowPV(1, size-1); err != nil {
			t.Fatal(err)
		}
		if err := g.GrowVolume("root", want); size > g.parts[0].dev.Size && !errors.Is(err, ErrNoSpace) {
			t.Fatalf("%d bytes were not the least: %v", size, err)
		}
		if err := errors.Join(g.GrowPV(1, size), g.GrowVolume("root", want)); err != nil {
			t.Fatal(err)
		}
		s, err := g.Segments("root")
		if err != nil || len(s) != 1 || s[0].PV != 1 || s[0].Start != mib || s[0].At != 0 || s[0].Length != want+77 || g.Volumes[0].Size != want+77 {
			t.Fatal(s, err)
		}
	}
	if !bytes.Equal(m.b, was) {
		t.Fatal("written before Write")
	}
	if err := g.Write([]io.WriterAt{nil, nil}); err == nil || !bytes.Equal(m.b, was) {
		t.Fatal("writes without a writer", err)
	}
	second := m.clone()
	if err := g.Write([]io.WriterAt{nil, m}); err != nil || g.Changed() || g.Seqno != 5 {
		t.Fatal(err)
	}
	// Twice the same.
	groups, err = Open([]PV{second.pv("disk")})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(groups[0].GrowPV(0, 69*mib), groups[0].GrowVolume("root", 68*mib), groups[0].Write([]io.WriterAt{second})); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(m.b, second.b) {
		t.Error("one step and twenty give different bytes")
	}
	// And on from there, without opening again.
	if err := errors.Join(g.GrowPV(1, 100*mib), g.GrowVolume("root", 90*mib), g.Write([]io.WriterAt{nil, m})); err != nil {
		t.Fatal(err)
	}
	m.b = append(m.b, make([]byte, 100*mib-len(m.b))...)
	groups, err = Open([]PV{m.pv("disk")})
	if err != nil || groups[0].Seqno != 6 || groups[0].Volumes[0].Size != 90*mib || groups[0].Free() != 9*mib {
		t.Fatal(groups[0], err)
	}
	checkText(t, plainText(), groups[0].src)
}

// TestPolicies allocates in a fragmented group of two physical volumes: pv0 has the volume at 0 to 2, another at 3,
// free 4 to 5, another at 6, free 7; pv1 is free, 0 to 5.
func TestPolicies(t *testing.T) {
	second := strings.Repeat("q", 32)
	volume := func(name string, pe int) string {
		return fmt.Sprintf("%s {\nid = \"%s\"\nstatus = [\"READ\", \"WRITE\", \"VISIBLE\"]\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 1\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", %d]\n}\n}\n",
			name, hyphens(strings.Repeat(name, 32)), pe)
	}
	src := change(t, plainText(), "logical_volumes {\n", "logical_volumes {\n"+volume("a", 3)+volume("b", 6))
	src = change(t, src, "}\n}\n\nlogical", "}\npv1 {\nid = \""+hyphens(second)+"\"\nstatus = [\"ALLOCATABLE\"]\ndev_size = 16384\npe_start = 2048\npe_count = 6\n}\n}\n\nlogical")
	for _, c := range []struct {
		name, from, to string
		extents        int64
		want           string
	}{
		{"normal", "", "", 6, "0:0+3 0:4+2 0:7+1"},
		{"normal, near first", "", "", 9, "0:0+3 0:4+2 0:7+1 1:0+3"},
		{"all", "", "", 12, "0:0+3 0:4+2 0:7+1 1:0+6"},
		{"too much", "", "", 13, "not enough"},
		{"cling", "seqno = 4", "seqno = 4\nallocation_policy = \"cling\"", 6, "0:0+3 0:4+2 0:7+1"},
		{"cling, too much", "seqno = 4", "seqno = 4\nallocation_policy = \"cling\"", 7, "not enough"},
		{"contiguous", "root {", "root {\nallocation_policy = \"contiguous\"", 4, "not enough"},
		{"not allocatable", `status = ["ALLOCATABLE"]`, "status = []", 6, "0:0+3 1:0+3"},
		{"not allocatable, too much", `status = ["ALLOCATABLE"]`, "status = []", 10, "not enough"},
		{"stripes of another", "stripes = [\"pv0\", 6]", "stripes = [\"pv1\", 0]", 9, "0:0+3 0:4+4 1:1+2"},
	} {
		text := src
		if c.from != "" {
			text = change(t, text, c.from, c.to)
		}
		a := newImage(pvid, text, 9<<20, firstArea)
		b := newImage(second, "", 8<<20)
		groups, err := Open([]PV{a.pv("a"), b.pv("b")})
		if err != nil {
			t.Fatal(err)
		}
		g := groups[0]
		free := int64(3 + 6)
		if strings.HasPrefix(c.name, "not allocatable") {
			free = 6
		}
		if g.Free() != free<<20 {
			t.Errorf("%s: %d bytes free", c.name, g.Free())
		}
		got := ""
		if err := g.GrowVolume("root", c.extents<<20); err != nil {
			if !errors.Is(err, ErrNoSpace) || g.Changed() {
				t.Errorf("%s: %v", c.name, err)
			}
			got = "not enough"
		} else {
			segments, _ := g.Segments("root")
			var list []string
			for _, s := range segments {
				list = append(list, fmt.Sprintf("%d:%d+%d", s.PV, s.Start>>20-1, s.Length>>20))
			}
			got = strings.Join(list, " ")
			if err := g.Write([]io.WriterAt{a, b}); err != nil {
				t.Error(err)
			}
		}
		if got != c.want {
			t.Errorf("%s: %s, not %s", c.name, got, c.want)
		}
	}
}

// TestPlace has the ends of the ring, as LVM's _next_rlocn_offset has them.
func TestPlace(t *testing.T) {
	for _, c := range []struct{ size, at, text, next, want int64 }{
		{16384, 0, 0, 1000, 512},          // an empty area
		{16384, 512, 1000, 1000, 1536},    // the next sector
		{16384, 512, 1024, 1000, 1536},    // the text ends with its sector
		{16384, 512, 1025, 1000, 2048},    //
		{16384, 14336, 1500, 1000, 15872}, // the last sector, from where it wraps
		{16384, 14336, 1600, 1000, 512},   // the last sector is taken
		{16384, 14336, 2048, 1000, 512},   // to the last byte
		{16384, 14336, 2049, 1000, 1024},  // the text before wraps by a byte
		{16384, 14336, 2560, 1000, 1024},
		{16600, 15360, 1000, 1000, 512}, // no whole sector before the end
		{16384, 4096, 8000, 5000, 12288},
		{16384, 4096, 1000, 7424, 5120}, // as large as may be
		{16384, 4096, 1000, 7425, -1},
		{16384, 4096, 12000, 7000, -1}, // over the old one
	} {
		m := &mda{area: area{4096, c.size}, text: area{c.at, c.text}}
		got, err := m.place(c.next)
		if c.want < 0 && errors.Is(err, ErrNoSpace) || err == nil && got == (area{c.want, c.next}) {
			continue
		}
		t.Errorf("%v: %v, %v", c, got, err)
	}
}

// TestTextTooLarge has a ring that is too small for another segment: GrowVolume says so, not Write.
func TestTextTooLarge(t *testing.T) {
	tags := func(n int) string {
		return change(t, plainText(), "flags = []\nextent_size", "flags = []\ntags = [\""+strings.Repeat("x", n)+"\"]\nextent_size")
	}
	small := area{4096, 8192}
	most := int(small.size-mdaHeader)/2 - sectorSize
	n := most - len(tags(0)) - 1
	for _, c := range []struct {
		less int
		ok   bool
	}{{0, false}, {300, true}} {
		m := newImage(pvid, tags(n-c.less), 9<<20, small)
		was := bytes.Clone(m.b)
		groups, err := Open([]PV{m.pv("disk")})
		if err != nil {
			t.Fatal(err)
		}
		g := groups[0]
		err = g.GrowVolume("root", 5<<20)
		if c.ok {
			err = errors.Join(err, g.GrowPV(0, 12<<20), g.Write([]io.WriterAt{m}))
		}
		if c.ok != (err == nil) || !c.ok && !errors.Is(err, ErrNoSpace) {
			t.Errorf("%d bytes less: %v", c.less, err)
		}
		if !c.ok && (g.Changed() || !bytes.Equal(m.b, was)) {
			t.Error("changed")
		}
	}
}
