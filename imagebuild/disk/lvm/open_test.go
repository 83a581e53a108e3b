package lvm

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestPaths(t *testing.T) {
	v := Volume{Name: "ro-ot", Group: "v--g", UUID: hyphens(pvid), groupUUID: hyphens(strings.Repeat("v", 32))}
	want := []string{"/dev/v--g/ro-ot", "/dev/mapper/v----g-ro--ot", "/dev/disk/by-id/dm-name-v----g-ro--ot",
		"/dev/disk/by-id/dm-uuid-LVM-" + strings.Repeat("v", 32) + pvid}
	if got := v.Paths(); !slices.Equal(got, want) {
		t.Error(got)
	}
}

// TestKinds reads a group that the real tools made, with all kinds that lvm 2.03.16 makes on a kernel without VDO.
func TestKinds(t *testing.T) {
	g, err := fixtureGroup(readFixture("kinds.vg"))
	if err != nil {
		t.Fatal(err)
	}
	checkRefusals(t, g, "zeroes")
}

// TestKindsByHand has the kinds that could not be made.
func TestKindsByHand(t *testing.T) {
	segment := func(name, status, body string) string {
		return fmt.Sprintf("%s {\nid = \"%s\"\nstatus = [%s]\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 3\n%s\n}\n}\n",
			name, hyphens(strings.Repeat("m", 32)), status, body)
	}
	const visible = `"READ", "WRITE", "VISIBLE"`
	linear := "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 5]"
	for _, c := range []struct{ name, volume, extra, want string }{
		{"VDO", "new", segment("new", visible, "type = \"vdo\"\nvdo_pool = \"vpool\"\nvdo_offset = 0") +
			segment("vpool", visible, "type = \"vdo-pool\"\ndata = \"vpool_vdata\"\nvdo_pool {\nuse_compression = 1\n}") +
			segment("vpool_vdata", `"READ", "WRITE"`, linear), "vg/new is a VDO volume (pool vg/vpool)"},
		{"VDO pool", "vpool", segment("vpool", visible, "type = \"vdo-pool\"\ndata = \"vpool_vdata\"") +
			segment("vpool_vdata", `"READ", "WRITE"`, linear), "vg/vpool is a VDO pool"},
		{"part of a VDO pool", "vpool_vdata", segment("vpool", visible, "type = \"vdo-pool\"\ndata = \"vpool_vdata\"") +
			segment("vpool_vdata", `"READ", "WRITE"`, linear), "vg/vpool_vdata is a hidden part of vg/vpool, a VDO pool"},
		{"zero", "z", segment("z", visible, `type = "zero"`), "vg/z is a volume with an area of zeros"},
		{"unknown", "n", segment("n", visible, `type = "holographic"`), `vg/n is a volume of the type "holographic", which is unknown`},
		{"unknown flag", "n", segment("n", visible, "type = \"striped+BEYOND\"\nstripe_count = 1\nstripes = [\"pv0\", 5]"), `vg/n is a volume of the type "striped+BEYOND", which is unknown`},
		{"pvmove", "n", segment("n", `"READ", "WRITE", "VISIBLE", "LOCKED"`, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pvmove0\", 0]") +
			segment("pvmove0", `"READ", "WRITE", "PVMOVE", "LOCKED"`, "type = \"mirror\"\nmirror_count = 2\nextents_moved = 0\nmirrors = [\"pv0\", 3, \"pv0\", 6]"),
			"vg/n is a volume on another volume (vg/pvmove0)"},
		{"locked", "n", segment("n", `"READ", "WRITE", "VISIBLE", "LOCKED"`, linear), `vg/n has the status "LOCKED" (an operation on it was not finished?)`},
		{"below", "root", segment("top", visible, "type = \"striped\"\nstripe_count = 1\nstripes = [\"root\", 0]"), "vg/root is a part of vg/top, a volume on another volume"},
		{"hidden", "n", segment("n", `"READ", "WRITE"`, linear), "vg/n is hidden: it is LVM's own"},
		{"none", "nothing", "", `logical volume "nothing": not found in the volume group vg`},
	} {
		t.Run(c.name, func(t *testing.T) {
			src := change(t, plainText(), "logical_volumes {\n", "logical_volumes {\n"+c.extra)
			src = change(t, change(t, src, "dev_size = 18432", "dev_size = 32768"), "pe_count = 8", "pe_count = 12")
			g, err := fixtureGroup(src)
			if err != nil {
				t.Fatal(err)
			}
			_, err = g.Segments(c.volume)
			if err == nil || !strings.HasSuffix(err.Error(), c.want) || !errors.Is(err, ErrUnsupported) && !errors.Is(err, ErrNotFound) {
				t.Errorf("%v", err)
			}
			if c.name != "below" {
				if _, err := g.Segments("root"); err != nil {
					t.Error(err)
				}
			}
			if c.name == "unknown flag" {
				if err := g.GrowVolume("root", 4<<20); !errors.Is(err, ErrUnsupported) || g.Free() != 0 {
					t.Errorf("grows beside what takes an unknown number of extents: %v", err)
				}
			}
		})
	}
}

// change is a replacement in a text that must be there.
func change(t testing.TB, s, from, to string) string {
	t.Helper()
	if strings.Count(s, from) == 0 {
		t.Fatalf("%q is not in the text", from)
	}
	return strings.Replace(s, from, to, 1)
}

func TestRefusedGroups(t *testing.T) {
	for _, c := range []struct{ from, to, read, grow string }{
		{`"RESIZEABLE", "READ", "WRITE"`, `"RESIZEABLE", "READ", "WRITE", "EXPORTED"`, "is exported", ""},
		{`"RESIZEABLE", "READ", "WRITE"`, `"RESIZEABLE", "READ", "WRITE", "CLUSTERED"`, "is clustered", ""},
		{`"RESIZEABLE", "READ", "WRITE"`, `"RESIZEABLE", "READ", "WRITE", "NEW"`, `has the status "NEW", which is unknown`, ""},
		{`"RESIZEABLE", "READ", "WRITE"`, `"RESIZEABLE", "READ", "WRITE_LOCKED"` + "]\nlock_type = \"sanlock\"\nlock_args = [", "is shared (lock type sanlock)", ""},
		{`"RESIZEABLE", "READ", "WRITE"`, `"READ", "WRITE"`, "", "is not resizeable"},
		{`"RESIZEABLE", "READ", "WRITE"`, `"RESIZEABLE", "READ"`, "", "is read-only"},
		{`"READ", "WRITE", "VISIBLE"`, `"READ", "VISIBLE"`, "", "is read-only"},
		{"flags = []\ndev_size", "flags = [\"MISSING\"]\ndev_size", "marked as missing", ""},
		{"physical_volumes {\n", "physical_volumes {\npv1 {\nid = \"" + hyphens(strings.Repeat("z", 32)) + "\"\ndevice = \"/dev/vdb\"\nstatus = [\"ALLOCATABLE\"]\npe_start = 2048\npe_count = 4\n}\n",
			"lacks the physical volume zzzzzz-zzzz-zzzz-zzzz-zzzz-zzzz-zzzzzz (/dev/vdb)", ""},
		{`format = "lvm2"`, "format = \"lvm2\"\nlock_type = \"none\"", "", ""},
		{`format = "lvm2"`, "format = \"lvm2\"\nsystem_id = \"elsewhere\"", "", ""},
	} {
		m := newImage(pvid, change(t, plainText(), c.from, c.to), 9<<20, firstArea)
		groups, err := Open([]PV{m.pv("disk")})
		if err != nil || len(groups) != 1 {
			t.Errorf("%s: %v", c.to, err)
			continue
		}
		g := groups[0]
		_, err = g.Segments("root")
		if c.read == "" && err != nil || c.read != "" && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.read)) {
			t.Errorf("%s: reads with %v", c.to, err)
		}
		if (g.Err == nil) != (c.read == "") {
			t.Errorf("%s: Err is %v", c.to, g.Err)
		}
		want := c.read + c.grow
		err = g.GrowVolume("root", 4<<20)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: grows with %v", c.to, err)
		}
		if want == "" != g.Changed() {
			t.Errorf("%s: changed %v", c.to, g.Changed())
		}
	}
}

func TestHostileText(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"extent_count = 3", "extent_count = 9", "extents 0 to 9 of pv0, which has 8"},
		{"extent_count = 3", "extent_count = 0", "not be empty"},
		{"extent_count = 3", "extent_count = 4294967295", "which has 8"},
		{"extent_count = 3", "extent_count = -3", "no integer"},
		{"start_extent = 0", "start_extent = 1", "should start at 0"},
		{"\"pv0\", 0", "\"pv0\", 6", "extents 6 to 9"},
		{"\"pv0\", 0", "\"pv0\", 18446744073709551615", "which has 8"},
		{"\"pv0\", 0", "\"pv0\", 0, \"pv0\", 4", "not a list of 1 areas"},
		{"stripe_count = 1", "stripe_count = 0", "over 0 stripes"},
		{"stripe_count = 1", "stripe_count = 2", "over 2 stripes"},
		{"segment_count = 1", "segment_count = 2", "1 segments, not 2"},
		{"pe_count = 8", "pe_count = 9", "end past disk"},
		{"pe_count = 8", "pe_count = 4294967295", "end past disk"},
		{"pe_start = 2048", "pe_start = 0", "over the label"},
		{"pe_start = 2048", "pe_start = 1024", "over the metadata area"},
		{"pe_start = 2048", "pe_start = 9007199254740993", "over 9007199254740992"},
		{"extent_size = 2048", "extent_size = 0", "no size"},
		{"extent_size = 2048", "extent_size = 4294967295", "end past"},
		{"seqno = 4", "seqno = \"4\"", "seqno"},
		{"seqno = 4", "seqno = 4\nseqno = 5", `"seqno" is there twice`},
		{"root {", "../root {", "logical volume \"../root\""},
		{"vg {", "-vg {", "volume group \"-vg\""},
		{"\n}\n# Generated", "\n# Generated", "is not closed"},
		{"# Generated", "vg2 {\n}\n# Generated", `the sections "vg" and "vg2"`},
		{"flags = []", "flags = [", "neither"},
		{"flags = []", "flags", "neither { nor ="},
		{"flags = []", "flags = \"", "neither"},
		{"flags = []", strings.Repeat("a {\n", 20) + strings.Repeat("}\n", 20), "more than 16 sections inside"},
		{"flags = []", "a = [" + strings.Repeat("1,", maxNodes) + "]", "more than 524288 entries"},
		{"logical_volumes {\n", "logical_volumes {\nx = 3\n", `holds "x", which is no section`},
		{"}\n}\n\nlogical", "}\npv1 {\nid = \"" + hyphens(pvid) + "\"\npe_start = 2048\npe_count = 1\n}\n}\n\nlogical", "is there twice"},
		{"\n}\n}\n}\n\n}\n#", "\n}\n}\ntwo {\nid = \"" + hyphens(pvid) + "\"\nsegment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = 1\ntype = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 2]\n}\n}\n}\n\n}\n#",
			"share extent 2 of pv0"},
		{"format = \"lvm2\"", "format = \"lvm1\"", "unsupported LVM layout: format \"lvm1\""},
	} {
		g := change(t, plainText(), c.from, c.to)
		size := int64(9 << 20)
		a := firstArea
		if len(g) > 1<<18 {
			size, a = 20<<20, area{10 << 20, 9 << 20}
		}
		m := newImage(pvid, g, size, a)
		_, err := Open([]PV{{"disk", m, size}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%.40q: %v, not %q", c.to, err, c.want)
		}
	}
}

func TestHostileDevice(t *testing.T) {
	label := func(at int, v uint64) func(m *image) {
		return func(m *image) { le.PutUint64(m.b[sectorSize+labelSize+at:], v); m.seal() }
	}
	header := func(at int, v uint64) func(m *image) {
		return func(m *image) { le.PutUint64(m.b[firstArea.offset+int64(at):], v); m.sealArea(firstArea) }
	}
	for _, c := range []struct {
		name string
		do   func(m *image)
		want string
	}{
		{"label checksum", func(m *image) { m.b[sectorSize+100]++ }, "wrong number or checksum"},
		{"label type", func(m *image) { copy(m.b[sectorSize+labelTypeAt:], "LVM1 001"); m.seal() }, "LVM1 001"},
		{"header offset", func(m *image) { le.PutUint32(m.b[sectorSize+labelOffset:], 500); m.seal() }, "pv_header at byte 500"},
		{"header offset overflow", func(m *image) { le.PutUint32(m.b[sectorSize+labelOffset:], 1<<31); m.seal() }, "pv_header at byte"},
		{"uuid", label(pvUUID, 0), "UUID"},
		{"endless list", func(m *image) {
			for at := labelSize + pvAreas; at < sectorSize; at++ {
				m.b[sectorSize+at] = 1
			}
			m.seal()
		}, "no end"},
		{"area past the device", label(pvAreas+2*locnSize+8, 1<<40), "metadata area of"},
		{"area overflow", label(pvAreas+2*locnSize+8, 1<<62), "metadata area of"},
		{"area over the label", label(pvAreas+2*locnSize, 512), "metadata area of"},
		{"area twice", func(m *image) {
			copy(m.b[sectorSize+labelSize+pvAreas+3*locnSize:], m.b[sectorSize+labelSize+pvAreas+2*locnSize:][:locnSize])
			clear(m.b[sectorSize+labelSize+pvAreas+4*locnSize:][:2*locnSize])
			m.seal()
		}, "overlap"},
		{"header checksum", func(m *image) { m.b[firstArea.offset+200]++ }, "wrong checksum or magic"},
		{"header version", header(mdaVersionAt, 2), "version 2"},
		{"header start", header(mdaStartAt, 8192), "it says"},
		{"header size", header(mdaSizeAt, 1<<62), "it says"},
		{"text offset", header(mdaLocns+rawOffset, 0), "text of"},
		{"text offset past the end", header(mdaLocns+rawOffset, 1<<20), "text of"},
		{"text size", header(mdaLocns+rawSize, 1<<63), "text of"},
		{"text size over the ring", header(mdaLocns+rawSize, 1<<20), "text of"},
		{"text checksum", func(m *image) { m.b[firstArea.offset+mdaHeader+30]++ }, "the text's checksum"},
		{"no text", func(m *image) { m.setText(firstArea, "") }, ""},
		{"not a physical volume", func(m *image) { clear(m.b) }, ""},
		{"cut short", func(m *image) { m.b = m.b[:5<<20] }, "cut short"},
		{"cut very short", func(m *image) { m.b = m.b[:1000] }, ""},
	} {
		m := plainImage()
		c.do(m)
		groups, err := Open([]PV{m.pv("disk")})
		if c.want == "" {
			if err != nil || len(groups) != 0 {
				t.Errorf("%s: %v, %v", c.name, groups, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	m := plainImage()
	if _, err := Open([]PV{m.pv("a"), m.clone().pv("b")}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("copies: %v", err)
	}
	if _, err := Open([]PV{{"a", m, 18 << 20}}); err != nil {
		t.Errorf("a device larger than its bytes that are needed: %v", err)
	}
	if _, err := Open([]PV{{"a", m, 1 << 61}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("huge: %v", err)
	}
}

// TestCopies has two metadata areas that disagree.
func TestCopies(t *testing.T) {
	second := area{10 << 20, 1 << 20}
	whole := newImage(pvid, plainText(), 11<<20, firstArea, second)
	newer := change(t, change(t, plainText(), "seqno = 4", "seqno = 5"), "extent_count = 3", "extent_count = 5")
	size := func(m *image) (*Group, int64, error) {
		groups, err := Open([]PV{m.pv("disk")})
		if err != nil {
			return nil, 0, err
		}
		return groups[0], groups[0].Volumes[0].Size >> 20, nil
	}
	for _, newerAt := range []area{firstArea, second} {
		m := whole.clone()
		m.setText(newerAt, newer)
		g, n, err := size(m)
		if err != nil || n != 5 || g.Seqno != 5 {
			t.Fatalf("%d, %v", n, err)
		}
		// Both become the newest.
		if err := g.GrowVolume("root", 6<<20); err != nil {
			t.Fatal(err)
		}
		if err := g.Write([]io.WriterAt{m}); err != nil {
			t.Fatal(err)
		}
		d, err := readDevice(m.pv("disk"), 0)
		if err != nil || string(d.mdas[0].copy) != string(d.mdas[1].copy) || !strings.Contains(string(d.mdas[0].copy), "seqno = 6\n") {
			t.Errorf("%v", err)
		}
	}
	m := whole.clone()
	m.setText(second, change(t, plainText(), "extent_count = 3", "extent_count = 5"))
	if _, _, err := size(m); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "two different texts of sequence number 4") {
		t.Error(err)
	}
	// One copy is damaged: the other is read, nothing is written.
	m = whole.clone()
	m.b[second.offset+mdaHeader+30]++
	g, n, err := size(m)
	if err != nil || n != 3 {
		t.Fatal(err)
	}
	if err := g.GrowVolume("root", 4<<20); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "metadata area at 10485760") {
		t.Error(err)
	}
	// A precommitted text does not count, and goes.
	m = plainImage()
	le.PutUint64(m.b[firstArea.offset+mdaLocns+rawSizeOnDisk+rawOffset:], 4096)
	le.PutUint64(m.b[firstArea.offset+mdaLocns+rawSizeOnDisk+rawSize:], 1000)
	m.sealArea(firstArea)
	if g, n, err = size(m); err != nil || n != 3 {
		t.Fatal(err)
	}
	if err := errors.Join(g.GrowVolume("root", 4<<20), g.Write([]io.WriterAt{m})); err != nil {
		t.Fatal(err)
	}
	if le.Uint64(m.b[firstArea.offset+mdaLocns+rawSizeOnDisk+rawSize:]) != 0 {
		t.Error("the precommitted text is still there")
	}
	// The label may be in any of the first four sectors.
	for n := range labelScan {
		m := plainImage()
		s := append([]byte(nil), m.b[sectorSize:2*sectorSize]...)
		clear(m.b[:4096])
		le.PutUint64(s[labelSector:], uint64(n))
		copy(m.b[n*sectorSize:], s)
		if g, _, err = size(m); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(g.GrowPV(0, 20<<20), g.GrowVolume("root", 15<<20), g.Write([]io.WriterAt{m})); err != nil {
			t.Fatal(err)
		}
		m.b = append(m.b, make([]byte, 20<<20-len(m.b))...)
		if _, n, err := size(m); err != nil || n != 15 {
			t.Error(n, err)
		}
	}
}
