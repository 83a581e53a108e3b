package lvm

import (
	"io"
	"strings"
	"testing"
)

// FuzzText reads texts, grows what they have, and reads what comes of it.
func FuzzText(f *testing.F) {
	f.Add(plainText(), int64(5<<20))
	f.Add(readFixture("kinds.vg"), int64(100<<20))
	f.Add(strings.ReplaceAll(plainText(), "\n", "\r\n\t"), int64(1<<40))
	f.Add("a{b=[1,'x',\"y\\\"\"]c=d#\n}", int64(0))
	f.Fuzz(func(t *testing.T, src string, size int64) {
		m := newImage(pvid, "", 9<<20, firstArea)
		if len(src) > 400<<10 {
			return
		}
		m.setText(firstArea, src)
		groups, err := Open([]PV{m.pv("disk")})
		if err != nil {
			return
		}
		for _, g := range groups {
			exercise(t, g, m, size)
		}
		if g, err := fixtureGroup(src); err == nil {
			exercise(t, g, nil, size)
		}
	})
}

func exercise(t *testing.T, g *Group, m *image, size int64) {
	grown := map[string]int64{}
	for _, v := range g.Volumes {
		segments, err := g.Segments(v.Name)
		if err != nil {
			continue
		}
		var at int64
		for _, s := range segments {
			if s.At != at || s.Length <= 0 || s.Start < labelScan*sectorSize {
				t.Fatal(segments)
			}
			at += s.Length
		}
		if at != v.Size {
			t.Fatal(at, v.Size)
		}
		_ = v.Paths()
		if g.GrowVolume(v.Name, size) == nil && size > v.Size {
			grown[v.Name] = size
		}
	}
	if len(g.PVs) > 0 {
		if size, err := g.DeviceSize(0, size); err == nil && m != nil && size < 64<<20 {
			if err := g.GrowPV(0, size); err == nil && m != nil && int64(len(m.b)) < size {
				m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
			}
		}
	}
	if m == nil || !g.Changed() {
		return
	}
	if err := g.Write([]io.WriterAt{m}); err != nil {
		if strings.Contains(err.Error(), "it reads as") || strings.Contains(err.Error(), "text is wrong") {
			t.Fatal(err)
		}
		return
	}
	groups, err := Open([]PV{m.pv("disk")})
	if err != nil || len(groups) != 1 {
		t.Fatal("what was written does not read", err)
	}
	for name, size := range grown {
		if v, _ := groups[0].Volume(name); v.Size < size {
			t.Fatal(name, v.Size, size)
		}
	}
}

// FuzzDevice reads labels and headers whose checksums are right.
func FuzzDevice(f *testing.F) {
	m := newImage(pvid, plainText(), 11<<20, firstArea, area{10 << 20, 1 << 20})
	f.Add(m.b[sectorSize:2*sectorSize], m.b[4096:4096+mdaHeader], int64(9<<20))
	f.Add(m.b[sectorSize:2*sectorSize], m.b[10<<20:10<<20+mdaHeader], int64(30<<20))
	f.Fuzz(func(t *testing.T, label, header []byte, size int64) {
		m := newImage(pvid, plainText(), 11<<20, firstArea, area{10 << 20, 1 << 20})
		copy(m.b[sectorSize:2*sectorSize], label)
		copy(m.b[4096:4096+mdaHeader], header)
		m.seal()
		m.sealArea(firstArea)
		groups, err := Open([]PV{m.pv("disk")})
		if err != nil {
			return
		}
		for _, g := range groups {
			exercise(t, g, m, size)
		}
	})
}
