package lvm

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// write writes the group to the lab's files, whose sizes become those of the devices.
func (l *lab) write(g *Group) {
	l.Helper()
	var w []io.WriterAt
	for i, pv := range l.pvs() {
		for j, at := range g.PVs {
			if at == i && g.parts[j].dev.Size != pv.Size {
				if err := os.Truncate(l.files[i], g.parts[j].dev.Size); err != nil {
					l.Fatal(err)
				}
			}
		}
		w = append(w, pv.R.(*os.File))
	}
	if err := g.Write(w); err != nil {
		l.Fatal(err)
	}
}

// truncate sets the size of a physical volume's file.
func (l *lab) truncate(pv int, size int64) {
	l.Helper()
	if err := os.Truncate(l.files[pv], size); err != nil {
		l.Fatal(err)
	}
}

// areas tells of the metadata areas where they are and whether they have a text, and gives the headers of ignored ones.
func (l *lab) areas() (list string, ignored map[string]string) {
	l.Helper()
	ignored = map[string]string{}
	for i, pv := range l.pvs() {
		d, err := readDevice(pv, i)
		if err != nil {
			l.Fatal(err)
		}
		for _, m := range d.mdas {
			list += fmt.Sprintln(i, m.area, m.ignored, m.text.size > 0, m.damaged)
			if m.ignored {
				ignored[fmt.Sprint(i, m.offset)] = string(m.header)
			}
		}
	}
	return list, ignored
}

const (
	pvFields  = "pv_uuid,pv_fmt,dev_size,pe_start,pv_size,pv_free,pv_used,pv_attr,pv_pe_count,pv_pe_alloc_count,pv_tags,pv_mda_count,pv_mda_used_count,pv_mda_size,pv_ba_start,pv_ba_size,pv_in_use,pv_ext_vsn"
	vgFields  = "vg_uuid,vg_name,vg_attr,vg_size,vg_free,vg_extent_size,vg_extent_count,vg_free_count,pv_count,lv_count,vg_tags,vg_mda_count,vg_mda_used_count,vg_systemid,vg_lock_type,vg_allocation_policy"
	lvFields  = "lv_uuid,lv_name,lv_attr,lv_size,lv_tags,lv_time,lv_host,lv_layout,lv_role,lv_allocation_policy,lv_permissions,lv_read_ahead,lv_kernel_major"
	segFields = "lv_name,segtype,seg_count,seg_start_pe,seg_size_pe,seg_pe_ranges,stripes"
)

var loopName = regexp.MustCompile(`/dev/loop[0-9]+`)

// report is what pvs, vgs and lvs say, and what vgcfgbackup writes without the lines that tell when and by whom.
func (l *lab) report(segments bool) string {
	l.Helper()
	commands := "pvs --units b -o " + pvFields + "\nvgs --units b -o " + vgFields + "\nlvs -a --units b -o " + lvFields + "\n"
	if segments {
		commands += "lvs -a --segments --units b -o " + segFields + "\nvgcfgbackup -f " + l.dir + "/backup-%s"
	}
	out := l.lvm(commands)
	names := map[string]string{}
	rename := func(s string) string {
		return loopName.ReplaceAllStringFunc(s, func(d string) string {
			if names[d] == "" {
				names[d] = fmt.Sprintf("PV%d", len(names))
			}
			return names[d]
		})
	}
	out = regexp.MustCompile(`(?m)^.*successfully backed up.*\n`).ReplaceAllString(rename(out), "")
	backups, _ := filepath.Glob(l.dir + "/backup-*")
	for _, b := range backups {
		text, err := os.ReadFile(b)
		if err != nil {
			l.Fatal(err)
		}
		for line := range strings.Lines(rename(string(text))) {
			line = strings.TrimSpace(line)
			if !slices.ContainsFunc([]string{"#", "description", "creation_host", "creation_time", "seqno", "device ="},
				func(p string) bool { return strings.HasPrefix(line, p) }) {
				out += line + "\n"
			}
		}
	}
	return out
}

// check runs LVM's own checks.
func (l *lab) check() {
	l.Helper()
	commands := "vgck\n"
	for i := range l.files {
		commands += fmt.Sprintf("pvck PV%d\npvck --dump metadata PV%d\n", i, i)
	}
	out := l.lvm(commands)
	for line := range strings.Lines(out) {
		if strings.Contains(line, "WARNING") || strings.Contains(line, "CHECK") {
			l.Errorf("%s", line)
		}
	}
}

// kept matches lines of a text that growth may change.
var kept = regexp.MustCompile(`^(seqno|description|extent_count|segment_count|dev_size|pe_count) = `)

// checkText says whether anything changed in a text that should not.
func checkText(t testing.TB, before, after string) {
	t.Helper()
	a, b := strings.Split(before, "\n"), strings.Split(after, "\n")
	j := 0
	for _, line := range a {
		for j < len(b) && b[j] != line && !(kept.MatchString(line) && kept.MatchString(b[j])) {
			j++ // new segments
		}
		if j == len(b) {
			t.Fatalf("line %q is gone or moved:\n%s\nbecame\n%s", line, before, after)
		}
		j++
	}
	if extra := len(b) - len(a); extra%11 != 0 {
		t.Errorf("%d lines more, and a segment has 11", extra)
	}
}

func TestGrowAsLVMDoes(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		name  string
		sizes []int64
		setup string
		// ours and real do the same.
		ours   func(*Group) error
		resize map[int]int64
		real   string
		volume string
		apart  bool // the real tool may choose other extents
		once   bool // the real tool writes once, as we do
	}{
		{name: "one volume", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg",
			ours: func(g *Group) error { return g.GrowVolume("root", 60*mib) }, real: "lvextend -l 15 vg/root", volume: "root", once: true},
		{name: "rest of the group", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate -s 1m vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg",
			ours: func(g *Group) error { return g.GrowVolume("root", g.Volumes[0].Size+g.Free()) }, real: "lvextend -l +100%FREE vg/root", volume: "root", once: true},
		{name: "device grows", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate vg PV0\nlvcreate -an -Zn -Wn -n root -l 100%FREE vg", resize: map[int]int64{0: 1000*mib + 512*77},
			ours: func(g *Group) error { return g.GrowVolume("root", 900*mib) }, real: "lvextend -L 900m vg/root", volume: "root"},
		{name: "behind another volume", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate -s 1m --addtag t1 vg-a PV0\nlvcreate -an -Zn -Wn --addtag x -n ro-ot -l 10 vg-a\nlvcreate -an -Zn -Wn -n swap -l 10 vg-a",
			ours: func(g *Group) error { return g.GrowVolume("ro-ot", 30*mib) }, real: "lvextend -l 30 vg-a/ro-ot", volume: "ro-ot", once: true},
		{name: "two areas", sizes: []int64{100 * mib}, setup: "pvcreate --metadatacopies 2 PV0\nvgcreate -s 1m vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg", resize: map[int]int64{0: 130*mib + 512*3},
			ours: func(g *Group) error { return g.GrowVolume("root", 110*mib) }, real: "lvextend -l 110 vg/root", volume: "root"},
		{name: "two small areas, little growth", sizes: []int64{100*mib + 512*99}, setup: "pvcreate --metadatacopies 2 --metadatasize 300k --dataalignment 256k PV0\nvgcreate -s 128k vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg", resize: map[int]int64{0: 100*mib + 512*399},
			ours: func(g *Group) error { return g.GrowVolume("root", g.Volumes[0].Size+g.Free()) }, real: "lvextend -l +100%FREE vg/root", volume: "root"},
		{name: "no area on one device", sizes: []int64{100 * mib, 50 * mib}, setup: "pvcreate PV0\npvcreate --metadatacopies 0 PV1\nvgcreate -s 2m vg PV0 PV1\nlvcreate -an -Zn -Wn -n root -l 40 vg PV1 PV0", resize: map[int]int64{1: 80 * mib},
			ours: func(g *Group) error { return g.GrowVolume("root", g.Volumes[0].Size+g.Free()) }, real: "lvextend -l +100%FREE vg/root", volume: "root", apart: true},
		{name: "ignored area", sizes: []int64{100 * mib, 50 * mib}, setup: "pvcreate PV0\npvcreate --metadatacopies 2 PV1\nvgcreate -s 2m vg PV0 PV1\npvchange --metadataignore y PV1\nlvcreate -an -Zn -Wn -n root -l 10 vg", resize: map[int]int64{0: 120 * mib, 1: 90 * mib},
			ours: func(g *Group) error { return g.GrowVolume("root", 100*mib) }, real: "lvextend -l 50 vg/root", volume: "root"},
		{name: "bootloader area", sizes: []int64{100 * mib}, setup: "pvcreate --bootloaderareasize 3m PV0\nvgcreate -s 8m vg PV0\nlvcreate -an -Zn -Wn -n root -l 3 vg", resize: map[int]int64{0: 300 * mib},
			ours: func(g *Group) error { return g.GrowVolume("root", 200*mib) }, real: "lvextend -l 25 vg/root", volume: "root"},
		{name: "alignment", sizes: []int64{100 * mib}, setup: "pvcreate --dataalignment 3m --dataalignmentoffset 7s PV0\nvgcreate -s 16m vg PV0\nlvcreate -an -Zn -Wn -n root -l 3 vg", resize: map[int]int64{0: 299 * mib},
			ours: func(g *Group) error { return g.GrowVolume("root", 200*mib) }, real: "lvextend -l 13 vg/root", volume: "root"},
		{name: "not allocatable", sizes: []int64{40 * mib, 40 * mib, 40 * mib}, setup: "pvcreate PV0 PV1 PV2\nvgcreate -s 1m vg PV0 PV1 PV2\nlvcreate -an -Zn -Wn -n root -l 30 vg PV0\npvchange --allocatable n PV1",
			ours: func(g *Group) error { return g.GrowVolume("root", 78*mib) }, real: "lvextend -l 78 vg/root", volume: "root"},
		{name: "fragments", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate -s 1m vg PV0\n" +
			"lvcreate -an -Zn -Wn -n a -l 10 vg\nlvcreate -an -Zn -Wn -n root -l 10 vg\nlvcreate -an -Zn -Wn -n b -l 10 vg\nlvextend -l +5 vg/a\nlvextend -l +5 vg/root\nlvextend -l +5 vg/b\nlvremove -y vg/a\nlvextend -l +3 vg/root",
			ours: func(g *Group) error { return g.GrowVolume("root", 84*mib) }, real: "lvextend -l 84 vg/root", volume: "root", apart: true},
		{name: "contiguous", sizes: []int64{100 * mib}, setup: "pvcreate PV0\nvgcreate -s 1m --alloc contiguous vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg",
			ours: func(g *Group) error { return g.GrowVolume("root", 20*mib) }, real: "lvextend -l 20 vg/root", volume: "root"},
		{name: "huge", sizes: []int64{4 << 40}, setup: "pvcreate PV0\nvgcreate -s 32m vg PV0\nlvcreate -an -Zn -Wn -n root -l 10 vg", resize: map[int]int64{0: 9 << 40},
			ours: func(g *Group) error { return g.GrowVolume("root", 8<<40) }, real: "lvextend -L 8t vg/root", volume: "root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.sizes...)
			l.lvm(c.setup)
			r := l.copy()
			_, ignored := l.areas()
			g := l.group()
			before := g.src
			for pv, size := range c.resize {
				if err := g.GrowPV(pv, size); err != nil {
					t.Fatal(err)
				}
				r.truncate(pv, size)
				r.lvm(fmt.Sprintf("pvresize PV%d", pv))
			}
			if err := c.ours(g); err != nil {
				t.Fatal(err)
			}
			told, err := g.Segments(c.volume)
			if err != nil {
				t.Fatal(err)
			}
			l.write(g)
			checkText(t, before, g.src)
			r.lvm(c.real)
			l.check()
			want, got := r.report(!c.apart), l.report(!c.apart)
			if want != got {
				t.Errorf("LVM made\n%s\nand we\n%s", want, got)
			}
			again := l.group()
			read, err := again.Segments(c.volume)
			if err != nil || !slices.Equal(told, read) {
				t.Errorf("segments were %v and read as %v (%v)", told, read, err)
			}
			// The same areas at the same places, and nothing new in those that are ignored.
			ours, after := l.areas()
			theirs, _ := r.areas()
			for at, h := range after {
				if old, ok := ignored[at]; ok && h != old || !ok && le.Uint64([]byte(h)[mdaLocns+rawSize:]) != 0 {
					t.Errorf("ignored metadata area %s was written to", at)
				}
			}
			if ours != theirs {
				t.Errorf("metadata areas %s, LVM's are %s", ours, theirs)
			}
			if c.once {
				ours, theirs := l.group().parts[0].dev.mdas[0], r.group().parts[0].dev.mdas[0]
				if ours.text.offset != theirs.text.offset {
					t.Errorf("our text is at %d, LVM's at %d", ours.text.offset, theirs.text.offset)
				}
			}
			// The real tools go on from here.
			for pv := range c.sizes {
				l.truncate(pv, again.parts[slices.Index(again.PVs, pv)].dev.Size+64*mib)
			}
			vg, resize := again.Name, "pvresize"
			for pv := range c.sizes {
				resize += fmt.Sprintf(" PV%d", pv)
			}
			out := l.lvm(fmt.Sprintf("%s\nlvextend -l +3 %s/%s\nvgck", resize, vg, c.volume))
			if strings.Contains(out, "WARNING") {
				t.Errorf("afterwards LVM says\n%s", out)
			}
		})
	}
}

// TestRing writes so often, in turn with the real tool, that the ring wraps on each of its ends.
func TestRing(t *testing.T) {
	l := newLab(t, 40<<20)
	tags := ""
	for i := range 70 {
		tags += fmt.Sprintf(" --addtag %s%d", strings.Repeat("x", 110), i)
	}
	l.lvm("pvcreate --metadatasize 32k --dataalignment 4k PV0\nvgcreate -s 64k vg PV0\nlvcreate -an -Zn -Wn -n root -l 2 vg\nvgchange" + tags + " vg")
	wrapped, places := 0, map[int64]bool{}
	for i := range 40 {
		before := l.group()
		old := *before.parts[0].dev.mdas[0]
		g := l.group()
		if err := g.GrowVolume("root", g.Volumes[0].Size+1); err != nil {
			t.Fatal(err)
		}
		l.write(g)
		m := l.group().parts[0].dev.mdas[0]
		places[m.text.offset] = true
		if m.text.offset+m.text.size > m.size {
			wrapped++
		}
		// The old text stays where it was.
		b := make([]byte, old.text.size)
		first, rest := old.split(old.text)
		f := l.pvs()[0].R
		if _, err := f.ReadAt(b[:first.size], old.offset+first.offset); err != nil {
			t.Fatal(err)
		}
		if _, err := f.ReadAt(b[first.size:], old.offset+rest.offset); err != nil {
			t.Fatal(err)
		}
		if string(b[:len(b)-1]) != before.src {
			t.Fatalf("write %d overwrote the text before it", i)
		}
		if i%4 == 0 {
			l.lvm(fmt.Sprintf("vgchange --addtag t%d vg\nvgck vg\npvck PV0", i))
		}
		if i%10 == 9 {
			out := l.lvm("vgs --noheadings -o vg_seqno,vg_extent_count vg\nlvs --noheadings --units b --nosuffix -o lv_size vg")
			if want := fmt.Sprint(l.group().Volumes[0].Size); !strings.Contains(out, want) {
				t.Fatalf("LVM says %s, not %s", out, want)
			}
		}
	}
	if wrapped < 3 || len(places) < 5 {
		t.Errorf("wrapped %d times, %d places: too few to prove anything", wrapped, len(places))
	}
}

var seedFlag = flag.Uint64("lvm.seed", 0, "seed of the random test (0: from the clock)")

// TestRandom lets LVM and us work on a group in turn.
func TestRandom(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test -run TestRandom -lvm.seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	rounds, groups := 8, 2
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds, groups = 40, 20
	}
	for range groups {
		n := 1 + rnd.IntN(3)
		var sizes []int64
		for range n {
			sizes = append(sizes, int64(30+rnd.IntN(100))<<20+512*int64(rnd.IntN(3000)))
		}
		l := newLab(t, sizes...)
		setup, all := "", ""
		for i := range n {
			copies := rnd.IntN(3)
			if i == 0 {
				copies = 1 + rnd.IntN(2)
			}
			setup += fmt.Sprintf("pvcreate --metadatacopies %d --metadatasize %dk --dataalignment %dk PV%d\n", copies, 64+rnd.IntN(2000), 4<<rnd.IntN(9), i)
			all += fmt.Sprintf(" PV%d", i)
		}
		setup += fmt.Sprintf("vgcreate -s %dk vg %s\n", 64<<rnd.IntN(7), all)
		l.lvm(setup)
		for round := range rounds {
			g := l.group()
			var volumes []string
			for _, v := range g.Volumes {
				volumes = append(volumes, v.Name)
			}
			free := g.Free() / g.ExtentSize
			out := strings.Fields(l.lvm("vgs --noheadings -o vg_free_count vg"))
			if out[0] != fmt.Sprint(free) {
				t.Fatalf("LVM says %s free extents, we %d", out[0], free)
			}
			switch k := rnd.IntN(6); {
			case k == 0 || len(volumes) < 2:
				if free > 0 {
					l.lvm(fmt.Sprintf("lvcreate -an -Zn -Wn -n v%d -l %d vg", round, 1+rnd.Int64N(min(free, 20))))
				}
			case k == 1 && free > 0:
				l.lvm(fmt.Sprintf("lvextend -l +%d vg/%s", 1+rnd.Int64N(min(free, 20)), volumes[rnd.IntN(len(volumes))]))
			case k == 2:
				l.lvm(fmt.Sprintf("lvremove -y vg/%s", volumes[rnd.IntN(len(volumes))]))
			case k == 3:
				l.lvm(fmt.Sprintf("vgchange --addtag t%d vg", round))
			}
			// Ours.
			g = l.group()
			before, gw := g.src, false
			for range 1 + rnd.IntN(4) {
				if len(g.Volumes) == 0 {
					break
				}
				v := g.Volumes[rnd.IntN(len(g.Volumes))]
				want := v.Size + rnd.Int64N(16<<20)
				switch err := g.GrowVolume(v.Name, want); {
				case errors.Is(err, ErrNoSpace):
					pv := rnd.IntN(n)
					size, err := g.DeviceSize(pv, want-v.Size)
					if err == nil {
						err = g.GrowPV(pv, size)
					}
					if err == nil {
						err = g.GrowVolume(v.Name, want)
					}
					if err != nil {
						t.Fatal(err)
					}
				case err != nil:
					t.Fatal(err)
				}
				gw = gw || g.Changed()
				if v, _ := g.Volume(v.Name); v.Size < want || v.Size >= want+g.ExtentSize {
					t.Fatalf("%d bytes, wanted %d", v.Size, want)
				}
			}
			told := map[string][]Segment{}
			for _, v := range g.Volumes {
				told[v.Name], _ = g.Segments(v.Name)
			}
			if gw {
				l.write(g)
				checkText(t, before, g.src)
			}
			again := l.group()
			if again.src != g.src {
				t.Fatal("what was written reads otherwise")
			}
			for name, want := range told {
				if got, err := again.Segments(name); err != nil || !slices.Equal(got, want) {
					t.Fatalf("%s: %v, read back as %v (%v)", name, want, got, err)
				}
			}
			l.checkSegments(again)
			if round%4 == 3 {
				l.check()
			}
		}
	}
}

// checkSegments holds Segments against lvs.
func (l *lab) checkSegments(g *Group) {
	l.Helper()
	out := l.lvm("lvs --noheadings --segments -o lv_name,seg_start_pe,seg_size_pe,seg_pe_ranges --config 'report{list_item_separator=\",\"}' " + g.Name + "\npvs --noheadings -o pv_uuid,pv_name")
	pv := map[string]int{}
	var segs [][]string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) == 2 {
			for i, p := range g.parts {
				if p.node.word("id") == f[0] {
					pv[f[1]] = i
				}
			}
		} else if len(f) == 4 {
			segs = append(segs, f)
		}
	}
	var want []string
	for _, f := range segs {
		dev, r, _ := strings.Cut(f[3], ":")
		var first, last int64
		if _, err := fmt.Sscanf(r, "%d-%d", &first, &last); err != nil {
			l.Fatalf("%q: %v", f, err)
		}
		p := g.parts[pv[dev]]
		want = append(want, fmt.Sprint(f[0], " ", p.dev.index, " ", p.start+first*g.ExtentSize, " ", (last-first+1)*g.ExtentSize))
	}
	var got []string
	for _, v := range g.Volumes {
		list, err := g.Segments(v.Name)
		if err != nil {
			l.Fatal(err)
		}
		for _, s := range list {
			got = append(got, fmt.Sprint(v.Name, " ", s.PV, " ", s.Start, " ", s.Length))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		l.Fatalf("LVM maps\n%s\nwe\n%s", strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
}

// TestStates opens groups in the states that the real tools bring them into.
func TestStates(t *testing.T) {
	const mib = 1 << 20
	l := newLab(t, 40*mib, 40*mib, 40*mib, 40*mib)
	l.lvm(`pvcreate --labelsector 3 PV0
pvcreate PV1 PV2 PV3
vgcreate -s 1m one PV0 PV1
vgcreate -s 1m two PV2
lvcreate -an -Zn -Wn -n root -l 50 one
lvcreate -an -Zn -Wn -n swap -l 5 two`)
	open := func(pvs []PV) map[string]*Group {
		t.Helper()
		groups, err := Open(pvs)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]*Group{}
		for _, g := range groups {
			m[g.Name] = g
		}
		return m
	}
	m := open(l.pvs())
	if len(m) != 2 || !slices.Equal(m["one"].PVs, []int{0, 1}) || !slices.Equal(m["two"].PVs, []int{2}) {
		t.Fatal(m)
	}
	// Devices in another order, and one too few.
	pvs := l.pvs()
	m = open([]PV{pvs[1], pvs[2], pvs[0]})
	if s, err := m["one"].Segments("root"); err != nil || !slices.Equal(m["one"].PVs, []int{2, 0}) || s[0].PV != 2 || s[1].PV != 0 {
		t.Error(s, err)
	}
	m = open(pvs[1:])
	if _, err := m["one"].Segments("root"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "lacks the physical volume") {
		t.Error(err)
	}
	if _, err := m["two"].Segments("swap"); err != nil {
		t.Error(err)
	}
	// One of the copies is old: it is passed over when reading, and brought up to date when writing.
	old := l.copy()
	l.lvm("lvextend -l 60 one/root\nvgrename one other\nvgchange --addtag later other")
	if err := os.Rename(old.files[1], l.files[1]); err != nil {
		t.Fatal(err)
	}
	m = open(l.pvs())
	g := m["other"]
	if g == nil || len(m) != 2 || g.Volumes[0].Size != 60*mib {
		t.Fatal(m)
	}
	if err := g.GrowVolume("root", 70*mib); err != nil {
		t.Fatal(err)
	}
	l.write(g)
	out := l.lvm("vgck\nlvs --noheadings -o lv_size other")
	if strings.Contains(out, "WARNING") || !strings.Contains(out, "70.00m") {
		t.Error(out)
	}
	// Out of one group, into the other; exported.
	l.lvm("vgexport two")
	m = open(l.pvs())
	if _, err := m["two"].Segments("swap"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "is exported") || m["two"].Err == nil {
		t.Error(err)
	}
	l.lvm("vgimport two\nvgextend two PV3\nvgmerge other two")
	m = open(l.pvs())
	if len(m) != 1 || !slices.Equal(m["other"].PVs, []int{0, 1, 2, 3}) {
		t.Error(m)
	}
}
