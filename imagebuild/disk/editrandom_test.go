package disk

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Random tables that sfdisk made, random growth and additions, in one edit or several: the tools find no fault, and
// nothing differs but the sizes. NODEBAKE_SEED repeats a run.
func TestRandomEdits(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed: NODEBAKE_SEED=%d", seed)
	rounds := 32
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds = 1500
	}
	const at = 4 // once: the tools wait for the host's disk
	for round := 0; round < rounds && !t.Failed(); round += at {
		var g group
		for n := round; n < round+at; n++ {
			g.run(t, strconv.Itoa(n), func(t *testing.T) { randomEdit(t, rand.New(rand.NewPCG(seed, uint64(n)))) })
		}
		g.Wait()
	}
}

func randomEdit(t *testing.T, r *rand.Rand) {
	const first = 300 * mib
	kind, table := "gpt", "label: gpt\n"
	if r.IntN(2) == 0 {
		kind, table = "mbr", "label: dos\n"
	} else if n := []int{0, 4, 12, 200}[r.IntN(4)]; n > 0 {
		table += fmt.Sprintf("table-length: %d\n", n)
	}
	// Places in MiB, in order, then given to numbers at random.
	n := 1 + r.IntN(4)
	var bounds []int
	for range 2 * n {
		bounds = append(bounds, 2+r.IntN(294))
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	n = len(bounds) / 2
	order := r.Perm(4)
	extended := -1
	if kind == "mbr" && n > 0 && r.IntN(2) == 0 {
		extended = r.IntN(n)
	}
	var inner string
	for i := range n {
		a, b := bounds[2*i], bounds[2*i+1]
		line := fmt.Sprintf("%d: start=%d, size=%d", order[i]+1, a*2048, (b-a)*2048+r.IntN(2048)-1024)
		if i == extended {
			line = fmt.Sprintf("%d: start=%d, size=%d, type=f", order[i]+1, a*2048, (b-a)*2048)
			number := 5
			for at := a; at+2 <= b; number++ {
				size := 1 + r.IntN(b-at-1)
				inner += fmt.Sprintf("%d: start=%d, size=%d\n", number, (at+1)*2048-r.IntN(2)*512, size*2048-512)
				at += 1 + size + r.IntN(20)
			}
		} else if kind == "gpt" {
			line += fmt.Sprintf(", name=\"p%d\", attrs=\"GUID:%d\"", i, 48+r.IntN(16))
		}
		table += line + "\n"
	}
	name := sparse(t, first)
	tool(t, table+inner, "sfdisk", "-q", name)
	rest, sizes := dump(t, name)
	size := first + r.Int64N(3)*512
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	fmt.Fprintf(&log, "%s%s", table, inner)
	defer func() {
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	for range 1 + r.IntN(3) {
		to := size + []int64{0, 512, r.Int64N(40) * 512, r.Int64N(2 * gib), r.Int64N(3 * tib)}[r.IntN(5)]
		edit(t, name, size, func(d *Disk, e *TableEdit) {
			for range 1 + r.IntN(5) {
				size += r.Int64N(to - size + 1)
				fmt.Fprintf(&log, "disk %d\n", size)
				if err := e.SetDiskSize(size); err != nil {
					t.Fatal(err)
				}
				if r.IntN(4) == 0 {
					p, err := e.Add(Partition{Type: map[string]string{"gpt": linuxType, "mbr": "0x83"}[kind],
						GUID: fmt.Sprintf("%08x%s", r.Uint32()|1, newGUID[8:]), Name: "new", Size: 1 + r.Int64N(20*mib)})
					if err == nil {
						fmt.Fprintf(&log, "add %+v\n", p)
						sizes[p.Number] = p.Size / 512
					} else if !errors.Is(err, ErrNoRoom) {
						t.Fatal(err)
					}
				}
				for _, number := range slices.Sorted(maps.Keys(sizes)) {
					if r.IntN(2) == 0 {
						continue
					}
					room, err := e.Room(number)
					if err != nil {
						if kind == "mbr" && strings.Contains(rest[number], "type=f") {
							continue
						}
						t.Fatal(err)
					}
					have := sizes[number] * 512
					want := have + r.Int64N(room-have+1)
					if r.IntN(3) == 0 {
						want = room
					}
					diskSizeHolds(t, d, e, number, want)
					fmt.Fprintf(&log, "grow %d to %d of %d\n", number, want, room)
					if err := e.Grow(number, want); err != nil {
						t.Fatal(err)
					}
					sizes[number] = max((want+511)/512, 1)
				}
			}
			if err := os.Truncate(name, size); err != nil {
				t.Fatal(err)
			}
		})
		verify(t, name, kind)
		restNow, sizesNow := dump(t, name)
		for n, of := range restNow {
			if strings.Contains(of, "type=f") {
				sizes[n] = sizesNow[n] // as far as its logical partitions need, which sfdisk holds it to
			}
			if _, was := rest[n]; !was && n > 0 {
				rest[n] = of
			}
		}
		if !maps.Equal(rest, restNow) || !maps.Equal(sizes, sizesNow) {
			t.Errorf("want %v %v\nis  %v %v", rest, sizes, restNow, sizesNow)
		}
		if kind == "mbr" && size < 2*tib-512 {
			theirs := sparse(t, size)
			tool(t, output(t, "", "sfdisk", "-d", name), "sfdisk", "-q", "--force", theirs)
			sameMBR(t, name, theirs)
		}
	}
}

// diskSizeHolds asks how large a disk must be, and tries it, and one sector less.
func diskSizeHolds(t *testing.T, d *Disk, now *TableEdit, number int, size int64) {
	t.Helper()
	e, err := d.EditTable(d.Size())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.slot(number); err != nil {
		return // one that was added
	}
	// Those behind may have been added, or grow; the question is asked of the table as it is on the disk.
	least := e.DiskSizeFor(number, size)
	if err := e.SetDiskSize(least); err != nil {
		t.Fatal(err)
	}
	if room, err := e.Room(number); err != nil || room < size {
		t.Errorf("a disk of %d bytes has room for %d (%v), not %d", least, room, err, size)
	}
	if least > d.Size() {
		if err := e.SetDiskSize(max(d.Size(), least-512)); err != nil {
			t.Fatal(err)
		}
		if room, _ := e.Room(number); room >= size {
			t.Errorf("a disk of %d bytes is enough for %d, not only one of %d", least-512, size, least)
		}
	}
	if got := now.DiskSizeFor(number, size); got < least {
		t.Errorf("after growth the same needs a smaller disk: %d, not %d", got, least)
	}
}

// boundedDisk is a disk of bytes that must not be written outside of.
type boundedDisk struct{ b []byte }

func (m *boundedDisk) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(m.b)) || int64(len(b)) > int64(len(m.b))-off {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(b), off, len(m.b))
	}
	return copy(m.b[off:], b), nil
}

func openBytes(b []byte) (*Disk, error) {
	d := &Disk{Path: "fuzz", guest: bytes.NewReader(b), size: int64(len(b))}
	return d, d.readTable()
}

// tiny is a GPT of 4 entries on a disk of 64 sectors of 512 bytes, and an MBR with logical partitions on as many.
func tiny() [][]byte {
	g := make([]byte, 64*512)
	g[446+4], g[446+8], g[446+12], g[510], g[511] = 0xee, 1, 63, 0x55, 0xaa
	for i, p := range [][2]byte{{10, 19}, {30, 49}} {
		e := g[1024+256*i:]
		copy(e, "type of some sortGUID of some sort")
		e[16+15] = byte(i)
		copy(e[32:], make([]byte, 16))
		e[32], e[40] = p[0], p[1]
	}
	copy(g[62*512:], g[1024:1536])
	for _, c := range [][3]byte{{1, 63, 2}, {63, 1, 62}} {
		h := g[int(c[0])*512:]
		copy(h, "EFI PART\x00\x00\x01\x00\x5c")
		h[24], h[32], h[40], h[48], h[72], h[80], h[84] = c[0], c[1], 4, 60, c[2], 4, 128
	}
	m := make([]byte, 64*512)
	for _, e := range [][6]byte{{0, 0, 0x83, 1, 9, 0}, {0, 1, 5, 10, 40, 0}, {10, 0, 0x83, 1, 9, 0}, {10, 1, 5, 10, 20, 0}, {20, 0, 0x83, 2, 10, 0}} {
		b := m[int(e[0])*512:]
		b[446+16*int(e[1])+4], b[446+16*int(e[1])+8], b[446+16*int(e[1])+12] = e[2], e[3], e[4]
		b[510], b[511] = 0x55, 0xaa
	}
	return [][]byte{g, m}
}

// withSums is a copy of the disk whose GPTs have right checksums.
func withSums(b []byte) []byte {
	b = bytes.Clone(b)
	n := len(b) / 512
	for _, lba := range []int{1, n - 1} {
		h := b[lba*512:][:512]
		array, count := le.Uint64(h[72:]), le.Uint32(h[80:])
		if string(h[:8]) != "EFI PART" || count > maxGPTEntries || array >= uint64(n) || int(array)*512+int(count)*128 > len(b) {
			continue
		}
		le.PutUint32(h[88:], crc32.ChecksumIEEE(b[array*512:][:count*128]))
		le.PutUint32(h[16:], 0)
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	}
	return b
}

// The disks that the fuzzing starts from are sound.
func TestTiny(t *testing.T) {
	for i, want := range []string{"gpt 1:0+0:", "mbr 1:0+0:"} {
		d, err := openBytes(withSums(tiny()[i]))
		if err != nil {
			t.Fatal(err)
		}
		if e, err := d.EditTable(d.Size() + 512); err != nil || !strings.HasPrefix(describe(d), want) || len(e.slots) < 2 || len(d.Warnings) > 0 {
			t.Errorf("%s %v: %v", describe(d), d.Warnings, err)
		}
	}
}

// FuzzEdit makes tables up, gives GPTs right checksums, and grows and adds what it can: nothing panics, writes are
// inside the disk and outside of what partitions hold, and the new table reads as it was meant.
func FuzzEdit(f *testing.F) {
	for _, b := range tiny() {
		f.Add(b, uint32(0), uint32(10))
		f.Add(b, uint32(100*512), uint32(5000))
		f.Add(b, uint32(7), uint32(512))
	}
	f.Fuzz(func(t *testing.T, b []byte, more, size uint32) {
		if len(b) <= 1<<18 && len(b) >= 1024 && more <= 1<<20 {
			editBytes(t, b, more, size)
		}
	})
}

// TestHostileTables is FuzzEdit where it hurts: in the tables' fields alone.
func TestHostileTables(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, seed))
	var edited int
	rounds := 10000
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds = 1000000
	}
	for range rounds {
		i := r.IntN(2)
		b := tiny()[i]
		fields := [][]span{
			{{446, 66}, {512 + 12, 80}, {512 + 24, 68}, {1024 + 32, 16}, {1024 + 256, 56}, {63*512 + 24, 68}, {62*512 + 32, 16}},
			{{446, 66}, {446, 66}, {10*512 + 446, 66}, {20*512 + 446, 66}},
		}[i]
		for range 1 + r.IntN(4) {
			s := fields[r.IntN(len(fields))]
			b[s.off+r.Int64N(s.n)] = []byte{0, 1, 2, 3, 5, 0x0f, 0x83, 0xee, 0x7f, 0x80, 0xff, byte(r.IntN(64)), byte(r.IntN(256))}[r.IntN(13)]
		}
		more := uint32([]int{0, 1, 512, 512 * r.IntN(80), r.IntN(1 << 16)}[r.IntN(5)])
		if editBytes(t, b, more, uint32(r.IntN(1<<16))) {
			edited++
		}
		if t.Failed() {
			t.Fatalf("disk %d, %d bytes longer: %x", i, more, withSums(b))
		}
	}
	if edited < 1000 {
		t.Errorf("only %d tables could be changed at all", edited)
	}
}

// editBytes says whether the table could be changed.
func editBytes(t *testing.T, b []byte, more, size uint32) bool {
	t.Helper()
	b = withSums(b)
	d, err := openBytes(b)
	if err != nil {
		return false
	}
	now := &boundedDisk{append(bytes.Clone(b), make([]byte, more)...)}
	e, err := d.EditTable(int64(len(now.b)))
	if err != nil {
		return false
	}
	if size%2 == 0 {
		if err := e.Clear(now); err != nil {
			t.Fatal(err)
		}
	}
	want := map[int]Partition{}
	for _, p := range d.Partitions {
		d.Behind(p)
		room, err := e.Room(p.Number)
		if err != nil || room < p.Size {
			t.Fatalf("%s has room for %d: %v", p, room, err)
		}
		if to := int64(size); to > p.Size {
			if got := e.DiskSizeFor(p.Number, to); got < d.size {
				t.Fatalf("a disk of %d bytes for %d bytes", got, to)
			}
			to = min(to, room)
			if err := e.Grow(p.Number, to); err != nil {
				t.Fatal(err)
			}
			p.Size = (to + int64(d.SectorSize) - 1) / int64(d.SectorSize) * int64(d.SectorSize)
		}
		want[p.Number] = p
	}
	kind := "83"
	if d.Table == "gpt" {
		kind = linuxType
	}
	if p, err := e.Add(Partition{Type: kind, GUID: newGUID, Size: 512}); err == nil {
		want[p.Number] = p
	}
	if err := e.Clear(now); err != nil {
		t.Fatal(err)
	}
	if err := e.Write(now); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Partitions {
		if !bytes.Equal(b[p.Start:p.Start+p.Size], now.b[p.Start:p.Start+p.Size]) {
			t.Errorf("%s was written to", p)
		}
	}
	d2, err := openBytes(now.b)
	if err != nil {
		t.Fatalf("the new table: %v", err)
	}
	if d2.Table != d.Table || d2.ID != d.ID || len(d2.Partitions) != len(want) {
		t.Errorf("table %s %s with %d partitions, want %s %s with %d", d2.Table, d2.ID, len(d2.Partitions), d.Table, d.ID, len(want))
	}
	for _, p := range d2.Partitions {
		w := want[p.Number]
		if p.Start != w.Start || p.Size != w.Size || p.Type != w.Type || p.GUID != w.GUID || p.Name != w.Name {
			t.Errorf("got %d at %d of %d, type %s, GUID %s, name %q; want %d at %d of %d, type %s, GUID %s, name %q", p.Number, p.Start, p.Size, p.Type, p.GUID, p.Name, w.Number, w.Start, w.Size, w.Type, w.GUID, w.Name)
		}
	}
	if _, err := d2.EditTable(d2.size); err != nil {
		t.Errorf("the new table cannot be changed again: %v", err)
	}
	return true
}
