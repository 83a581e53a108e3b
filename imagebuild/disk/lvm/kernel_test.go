package lvm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// TestKernelAgrees fills the devices with blocks that say where they lie, grows volumes, and has the kernel read them and
// write to them through device-mapper.
func TestKernelAgrees(t *testing.T) {
	const mib = 1 << 20
	l := newLab(t, 60*mib, 60*mib, 40*mib, 40*mib, 40*mib)
	l.lvm(`pvcreate PV0 PV4
pvcreate --metadatacopies 2 PV1
pvcreate --metadatacopies 0 PV2
pvcreate --dataalignment 192k --bootloaderareasize 1m PV3
vgcreate -s 1m v-g PV0 PV1 PV2
vgcreate -s 256k other PV3
lvcreate -an -Zn -Wn -n ro-ot -l 20 v-g
lvcreate -an -Zn -Wn -n swap -l 20 v-g
lvextend -l +90 v-g/ro-ot
lvcreate -an -Zn -Wn -n a -l 20 other
lvcreate -an -Zn -Wn -n b -l 20 other
lvextend -l +20 other/a`)
	pvs := l.pvs()
	groups, err := Open(pvs)
	if err != nil {
		t.Fatal(err)
	}
	if len(groups) != 2 || groups[0].Name != "v-g" || groups[1].Name != "other" {
		t.Fatal(groups)
	}
	grow := func(g *Group, pv int, device int64, volume string, size int64) {
		t.Helper()
		if err := g.GrowPV(pv, device); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(l.files[pv], device); err != nil {
			t.Fatal(err)
		}
		if err := g.GrowVolume(volume, size); err != nil {
			t.Fatal(err)
		}
	}
	grow(groups[0], 1, 90*mib, "ro-ot", 120*mib)
	grow(groups[0], 2, 70*mib, "ro-ot", 170*mib)
	grow(groups[1], 3, 50*mib, "a", 12*mib)
	grow(groups[1], 3, 60*mib, "b", 30*mib)
	grow(groups[1], 3, 70*mib, "a", 22*mib)
	var w []io.WriterAt
	for _, p := range pvs {
		w = append(w, p.R.(*os.File))
	}
	// Each sector of each volume says which it is.
	const sector = 512
	fill := func(b []byte, v Volume, at int64, round int) {
		for o := int64(0); o < int64(len(b)); o += sector {
			copy(b[o:o+sector], fmt.Sprintf("%s/%s %d, round %d", v.Group, v.Name, at+o, round))
		}
	}
	sums := ""
	for _, g := range groups {
		if err := g.Write(w); err != nil {
			t.Fatal(err)
		}
		for _, v := range g.Volumes {
			segments, err := g.Segments(v.Name)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			for _, s := range segments {
				b := make([]byte, s.Length)
				fill(b, v, s.At, 1)
				if _, err := w[s.PV].WriteAt(b, s.Start); err != nil {
					t.Fatal(err)
				}
				h.Write(b)
			}
			sums += fmt.Sprintf("%x  /dev/%s/%s\n", h.Sum(nil), v.Group, v.Name)
			next := make([]byte, v.Size)
			fill(next, v, 0, 2)
			if err := os.WriteFile(l.dir+"/"+v.Group+"."+v.Name, next, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(l.dir+"/sums", []byte(sums), 0o600); err != nil {
		t.Fatal(err)
	}
	out := l.kernel(`
lvm vgchange -ay
sha256sum -c sums
ls -l /dev/mapper/v--g-ro--ot
for v in v-g/ro-ot v-g/swap other/a other/b; do
  blockdev --getsize64 /dev/$v
  dd if=${v/\//.} of=/dev/$v bs=1M conv=fsync status=none
done
# The real tool goes on, with the volumes active.
lvm lvextend -l +2 v-g/ro-ot
lvm lvextend -l +2 other/a
lvm vgck
dmsetup table
lvm vgchange -an
`)
	t.Log(out)
	for _, g := range groups {
		for _, v := range g.Volumes {
			segments, err := g.Segments(v.Name)
			if err != nil {
				t.Fatal(err)
			}
			var total int64
			for _, s := range segments {
				got, want := make([]byte, s.Length), make([]byte, s.Length)
				fill(want, v, s.At, 2)
				if _, err := pvs[s.PV].R.ReadAt(got, s.Start); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%s/%s at %d: the kernel wrote it elsewhere", v.Group, v.Name, s.At)
				}
				total += s.Length
			}
			if total != v.Size || !strings.Contains(out, fmt.Sprintf("%d\n", v.Size)) {
				t.Errorf("%s/%s: %d bytes, %d mapped; the kernel says\n%s", v.Group, v.Name, v.Size, total, out)
			}
		}
	}
	again, err := Open(l.pvs())
	if err != nil {
		t.Fatal(err)
	}
	for i, volume := range []string{"ro-ot", "a"} {
		before, _ := groups[i].Volume(volume)
		after, _ := again[i].Volume(volume)
		if after.Size != before.Size+2*again[i].ExtentSize {
			t.Errorf("%s: lvextend made %d of %d", volume, after.Size, before.Size)
		}
	}
}

// TestRefusedByName has the real tools make what is not handled; not what has to be synchronised, since that ends in a
// panic of User Mode Linux. testdata/kinds.vg, made in the same way, has that too.
func TestRefusedByName(t *testing.T) {
	const mib = 1 << 20
	l := newLab(t, 200*mib, 200*mib, 200*mib, 200*mib, 40*mib)
	out := l.kernel(`
lvm pvcreate -q $PV0 $PV1 $PV2 $PV3
lvm vgcreate -q -s 1m rl $PV0 $PV1 $PV2 $PV3
new() { lvm lvcreate -q -y "$@" || echo "FAILED: $*"; }
to() { lvm lvconvert -q -y "$@" || echo "FAILED: $*"; }
new -n plain -l 5 rl
new -n striped -i 2 -l 4 rl
new --type thin-pool -l 20 --poolmetadatasize 2m -n pool00 rl
new -T -V 50m -n root rl/pool00
new --type raid1 -m 1 --nosync -l 4 -n r1 rl
new --type mirror -m 1 --mirrorlog core --nosync -l 4 -n mirr rl
new -n snapped -l 4 rl
new -s -n snap -l 3 rl/snapped
new -n fast -l 8 rl $PV1
new -n cached -l 10 rl $PV0
to --type cache --cachevol fast --chunksize 64k rl/cached
new --type cache-pool -l 8 -n cpool rl $PV1
new -n cached2 -l 10 rl $PV0
to --type cache --cachepool cpool rl/cached2
new -n wfast -l 8 rl $PV1
new -n wcached -l 10 rl $PV0
lvm lvchange -q -an rl/wcached rl/wfast
to --type writecache --cachevol wfast rl/wcached
new --type zero -l 3 -n zeroes rl
new --type error -l 3 -n errors rl
new -n ext -l 3 rl
lvm lvchange -q -an rl/ext
lvm lvchange -q -pr rl/ext
new -s -n extthin --thinpool pool00 rl/ext
lvm lvs -a -o lv_name,segtype,origin,pool_lv,lv_attr rl
lvm vgchange -q -an
lvm vgs --noheadings -o vg_free_count rl >free
`)
	t.Log(out)
	g := l.group()
	free, err := os.ReadFile(l.dir + "/free")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.TrimSpace(string(free)); fmt.Sprint(g.freeExtents()) != want {
		t.Errorf("%d free extents, LVM says %s", g.freeExtents(), want)
	}
	checkRefusals(t, g, "r5", "integ")
	if err := g.GrowVolume("plain", 100*mib); err != nil {
		t.Fatal(err)
	}
	l.write(g)
	l.lvm("vgck\nlvs")
	checkRefusals(t, l.group(), "r5", "integ")
}

// checkRefusals expects all kinds but those that are absent.
func checkRefusals(t *testing.T, g *Group, absent ...string) {
	t.Helper()
	want := map[string]string{
		"plain":   "",
		"striped": "rl/striped is a striped volume (2 stripes)",
		"pool00":  "rl/pool00 is a thin pool",
		"root":    "rl/root is a thin volume (pool rl/pool00)",
		"r1":      "rl/r1 is a RAID volume (raid1)",
		"mirr":    "rl/mirr is a mirror",
		"snapped": "rl/snapped is the origin of a snapshot (rl/snap)",
		"snap":    "rl/snap is a snapshot of rl/snapped",
		"cached":  "rl/cached is a cached volume (pool rl/fast_cvol)",
		"cached2": "rl/cached2 is a cached volume (pool rl/cpool_cpool)",
		"wcached": "rl/wcached is a volume with a write cache (rl/wfast_cvol)",
		"zeroes":  "rl/zeroes is a volume with an area of zeros",
		"errors":  "rl/errors is a volume with an area that only gives errors",
		"ext":     "rl/ext is the external origin of the thin volume rl/extthin",
		"extthin": "rl/extthin is a thin volume (pool rl/pool00)",
		"r5":      "rl/r5 is a RAID volume (raid5)",
		"integ":   "rl/integ is a RAID volume (raid1)",
	}
	for _, v := range g.Volumes {
		w, ok := want[v.Name]
		if !ok {
			w = "hidden"
		}
		delete(want, v.Name)
		_, err := g.Segments(v.Name)
		switch {
		case w == "":
			if err != nil || v.Kind != "linear" {
				t.Errorf("%s: %v (%s)", v.Name, err, v.Kind)
			}
		case err == nil || !errors.Is(err, ErrUnsupported) || v.Kind == "linear" || v.Kind == "":
			t.Errorf("%s (%s): %v", v.Name, v.Kind, err)
		case w == "hidden":
			t.Log(v.Kind, err)
		case !strings.HasSuffix(err.Error(), w):
			t.Errorf("%s: %v, not %q", v.Name, err, w)
		}
		if w != "" {
			if err := g.GrowVolume(v.Name, v.Size+1); !errors.Is(err, ErrUnsupported) {
				t.Errorf("%s grows: %v", v.Name, err)
			}
		}
	}
	for name := range want {
		if !slices.Contains(absent, name) {
			t.Errorf("%s was not made", name)
		}
	}
}
