package disk

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
	tib = int64(1) << 40

	linuxType = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	newGUID   = "01234567-89ab-4cde-8f01-23456789abcd"
)

// output is tool for those who look at what it says.
func output(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		tool(t, "", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// recorder is the disk being made: it passes writes on, and notes which bytes they changed. A write outside of
// limit is an error that no one asked for.
type recorder struct {
	f       *os.File
	limit   int64
	changed map[int64]bool
}

func (r *recorder) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > r.limit {
		return 0, fmt.Errorf("write of %d bytes at %d of %d", len(b), off, r.limit)
	}
	have := make([]byte, len(b))
	if _, err := r.f.ReadAt(have, off); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	for i := range b {
		if b[i] != have[i] {
			r.changed[off+int64(i)] = true
		}
	}
	return r.f.WriteAt(b, off)
}

// span is a run of bytes that an edit may change, or must leave alone.
type span struct{ off, n int64 }

func (s span) has(off int64) bool { return off >= s.off && off < s.off+s.n }

func (r *recorder) within(t *testing.T, allowed []span) {
	t.Helper()
	var bad []int64
	for off := range r.changed {
		if !slices.ContainsFunc(allowed, func(s span) bool { return s.has(off) }) {
			bad = append(bad, off)
		}
	}
	if slices.Sort(bad); len(bad) > 0 {
		t.Errorf("%d bytes changed that should not have, from %d on", len(bad), bad[0])
	}
}

// edit opens the disk of that name, enlarges the file, lets f change the table, and writes it.
func edit(t *testing.T, name string, size int64, f func(*Disk, *TableEdit)) *recorder {
	t.Helper()
	d, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := d.EditTable(size)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r := &recorder{file, size, map[int64]bool{}}
	if err := e.Clear(r); err != nil {
		t.Fatal(err)
	}
	if f != nil {
		f(d, e)
	}
	st, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r.limit = st.Size()
	if err := e.Write(r); err != nil {
		t.Fatal(err)
	}
	return r
}

// gptSpans is what may change in a GPT of n bytes of entries at array when the disk grows from one size to another:
// the header's fields, the protective entry's, and the two backups.
func gptSpans(sector, array, n, from, to int64) []span {
	h := sector
	tail := (n+sector-1)/sector*sector + sector
	return []span{{446 + 5, 3}, {446 + 12, 4}, {h + 16, 4}, {h + 32, 8}, {h + 48, 8}, {h + 88, 4},
		{from/sector*sector - tail, tail}, {to/sector*sector - tail, tail}}
}

// dump is the table as sfdisk reads it: what each partition has besides its size, and the sizes in sectors.
func dump(t *testing.T, name string) (map[int]string, map[int]int64) {
	t.Helper()
	rest, sizes := map[int]string{}, map[int]int64{}
	for line := range strings.Lines(output(t, "", "sfdisk", "-d", name)) {
		dev, of, ok := strings.Cut(line, " : ")
		if !ok {
			if key, _, _ := strings.Cut(line, ":"); slices.Contains([]string{"label", "label-id", "unit", "first-lba", "sector-size"}, key) {
				rest[0] += line
			}
			continue
		}
		number, err := strconv.Atoi(regexp.MustCompile(`\d+$`).FindString(dev))
		if err != nil {
			t.Fatal(line)
		}
		size := regexp.MustCompile(`size= *(\d+)`).FindStringSubmatch(of)
		sizes[number], _ = strconv.ParseInt(size[1], 10, 64)
		rest[number] = strings.Replace(of, size[0], "", 1)
	}
	return rest, sizes
}

// verify asks the tools whether the table is sound.
func verify(t *testing.T, name, table string) {
	t.Helper()
	if table == "gpt" {
		out := output(t, "", "sgdisk", "-v", name)
		for _, bad := range []string{"Problem", "Identified", "overlap", "damaged", "mismatch", "not on the end", "invalid"} {
			if strings.Contains(out, bad) || !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk -v:\n%s", out)
				break
			}
		}
	}
	out := output(t, "", "sfdisk", "--verify", name)
	for _, bad := range []string{"mismatch", "corrupt", "not on the end", "overlap", "Remaining -", "nvalid"} {
		if strings.Contains(out, bad) || !strings.Contains(out, "No errors detected") {
			t.Errorf("sfdisk --verify:\n%s", out)
			break
		}
	}
}

// script makes a disk with commands of a shell, in which $D is its name.
func script(size int64, commands string) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		for _, name := range []string{"sgdisk", "sfdisk", "growpart"} {
			if _, err := exec.LookPath(name); err != nil {
				tool(t, "", name)
			}
		}
		name := sparse(t, size)
		output(t, "", "sh", "-ec", "D="+name+"\n"+commands)
		return name
	}
}

// with changes the disk that make made by a function on its file.
func with(make func(*testing.T) string, change func(*testing.T, *os.File)) func(*testing.T) string {
	return func(t *testing.T) string {
		t.Helper()
		name := make(t)
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		change(t, f)
		return name
	}
}

// group runs subtests all at once, more of them than there are processors: sgdisk sleeps a second whenever it writes.
type group struct{ sync.WaitGroup }

func (g *group) run(t *testing.T, name string, f func(*testing.T)) {
	g.Go(func() { t.Run(name, f) })
}

func readAt(t *testing.T, f io.ReaderAt, off, n int64) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t *testing.T, f *os.File, off int64, b []byte) {
	t.Helper()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// resum makes the checksums of the header at lba right, of 512-byte sectors.
func resum(t *testing.T, f *os.File, lba int64) {
	t.Helper()
	h := readAt(t, f, lba*512, 92)
	array := readAt(t, f, int64(le.Uint64(h[72:]))*512, int64(le.Uint32(h[80:]))*128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(array))
	le.PutUint32(h[16:], 0)
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
	put(t, f, lba*512, h)
}

const usual = `sgdisk -n 14:2048:+1M -t 14:ef02 -n 15:4096:+10M -t 15:ef00 -c 15:EFI -n 1:32768:+200M -t 1:8304 -c 1:cloudimg-rootfs -A 1:set:59 $D
printf 'boot code' | dd of=$D conv=notrunc status=none`

// gptCases are disks with a GPT, the partition to grow, and the size of the disk to be.
type gptCase struct {
	name         string
	make         func(*testing.T) string
	number       int
	to           int64
	array, count int64  // the primary array: its LBA and entries; 2 and 128 if 0
	model        string // the tool that moves the backup to the same bytes
}

var gptCases = []gptCase{
	{name: "Debian's: root is number 1 and last", make: script(300*mib, usual), number: 1, to: 4 * gib, model: "sgdisk"},
	{name: "3 to 20 GiB", make: script(3*gib, usual), number: 1, to: 20 * gib, model: "sgdisk"},
	{name: "1 to 3 TiB", make: script(tib, usual), number: 1, to: 3 * tib, model: "sgdisk"},
	{name: "by one sector", make: script(300*mib, usual), number: 1, to: 300*mib + 512, model: "sgdisk"},
	{name: "by half of the backup", make: script(300*mib, usual), number: 1, to: 300*mib + 16*512, model: "sgdisk"},
	{name: "by less than a sector", make: script(300*mib, usual), number: 1, to: 300*mib + 100},
	{name: "a tail that is no sector", make: script(300*mib+100, usual), number: 1, to: 400*mib + 300, model: "sgdisk"},
	{name: "not at all", make: script(300*mib, usual), number: 1, to: 300 * mib},
	{name: "sfdisk's: first usable sector 2048", to: 2 * gib, number: 3, model: "sfdisk", make: script(300*mib,
		`printf 'label:gpt\nsize=10M,type=U\nsize=100M,attrs="GUID:60 RequiredPartition"\nname="root"\n' | sfdisk -q $D`)},
	{name: "copied to a larger disk", make: script(300*mib, usual+"\ntruncate -s 1G $D"), number: 1, to: gib, model: "sgdisk"},
	{name: "copied to a larger disk and then larger", make: script(300*mib, usual+"\ntruncate -s 1G $D"), number: 1, to: 2 * gib, model: "sgdisk"},
	{name: "8 entries", make: script(300*mib, `sgdisk -S 8 -n 8:2048:+100M $D`), number: 8, to: gib, count: 8, model: "sgdisk"},
	{name: "256 entries", make: script(300*mib, `sgdisk -S 256 -n 200:2048:+100M $D`), number: 200, to: gib, count: 256, model: "sgdisk"},
	{name: "1024 entries", make: script(300*mib, `sgdisk -S 1024 -n 1024:2048:+100M $D`), number: 1024, to: gib, count: 1024, model: "sgdisk"},
	{name: "array at sector 1024", make: script(300*mib, `sgdisk -n 1:4096:+100M -j 1024 $D`), number: 1, to: gib, array: 1024, model: "sfdisk"},
	{name: "hybrid MBR", make: script(300*mib, usual+"\nsgdisk -h 15 $D"), number: 1, to: gib, model: "sgdisk"},
	{name: "an unused entry full of old bytes", make: with(script(300*mib, usual), func(t *testing.T, f *os.File) {
		// Its sectors stay 0: sfdisk takes an entry with sectors for a partition, whatever its type.
		for _, array := range []int64{1024, 300*mib - 33*512} {
			put(t, f, array+5*128+16, bytes.Repeat([]byte{0xa5}, 16))
			put(t, f, array+5*128+48, bytes.Repeat([]byte{0xa5}, 80))
		}
		resum(t, f, 1)
		resum(t, f, 300*2048-1)
	}), number: 1, to: gib},
	{name: "no backup", make: with(script(300*mib, usual), func(t *testing.T, f *os.File) {
		put(t, f, 300*mib-33*512, make([]byte, 33*512))
	}), number: 1, to: gib},
	{name: "sectors reserved at the end", make: with(script(300*mib, usual), func(t *testing.T, f *os.File) {
		for _, lba := range []int64{1, 300*2048 - 1} {
			put(t, f, lba*512+48, le.AppendUint64(nil, 290*2048))
			resum(t, f, lba)
		}
	}), number: 1, to: 300 * mib},
}

// Growing changes the entry's last sector and what follows from the disk's size; the tools find no fault, and
// growpart goes on from there.
func TestGrowGPT(t *testing.T) {
	var g group
	defer g.Wait()
	for _, c := range gptCases {
		g.run(t, c.name, func(t *testing.T) {
			name := c.make(t)
			if c.array == 0 {
				c.array = 2
			}
			if c.count == 0 {
				c.count = 128
			}
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			rest, sizes := dump(t, name)
			var room int64
			r := edit(t, name, c.to, func(d *Disk, e *TableEdit) {
				if room, err = e.Room(c.number); err != nil {
					t.Fatal(err)
				}
				if err := e.Grow(c.number, room+1); !errors.Is(err, ErrNoRoom) {
					t.Errorf("growing past the end: %v", err)
				}
				if err := e.Grow(c.number, room); err != nil {
					t.Fatal(err)
				}
				if err := e.Grow(c.number, room-512); err == nil {
					t.Error("a partition is made smaller")
				}
				if err := e.SetDiskSize(st.Size() - 1); err == nil {
					t.Error("a disk is made smaller")
				}
			})
			spans := append(gptSpans(512, c.array, c.count*128, st.Size(), c.to),
				span{c.array*512 + int64(c.number-1)*128 + 40, 8})
			if strings.Contains(c.name, "larger disk") {
				spans = append(spans, gptSpans(512, c.array, c.count*128, 300*mib, c.to)...)
			}
			r.within(t, spans)
			verify(t, name, "gpt")
			restNow, sizesNow := dump(t, name)
			if !maps.Equal(rest, restNow) {
				t.Errorf("was %v\nis  %v", rest, restNow)
			}
			sizes[c.number] = room / 512
			if !maps.Equal(sizes, sizesNow) {
				t.Errorf("sizes %v, want %v", sizesNow, sizes)
			}
			if out := output(t, "", "partx", "--show", "-g", "-o", "SECTORS", "-n", strconv.Itoa(c.number), name); strings.TrimSpace(out) != strconv.FormatInt(room/512, 10) {
				t.Errorf("partx: %s", out)
			}
			if c.to < 300*mib+mib || c.count > 128 {
				return // growpart knows of 33 sectors at the end only
			}
			if err := os.Truncate(name, c.to+gib); err != nil {
				t.Fatal(err)
			}
			if out := output(t, "", "growpart", name, strconv.Itoa(c.number)); !strings.Contains(out, "CHANGED") {
				t.Errorf("growpart: %s", out)
			}
			verify(t, name, "gpt")
			if restNow, _ = dump(t, name); !maps.Equal(rest, restNow) {
				t.Errorf("after growpart: was %v\nis  %v", rest, restNow)
			}
		})
	}
}

// Where only the disk's size changes, the tools are the model: both copies are the same to the byte, and the
// protective MBR too but for the CHS mark that many tools write. sgdisk 1.0.9 takes the first usable sector's number
// off the end as well, which is too much where that is not 34; sfdisk does not.
func TestMoveIsThatOfTools(t *testing.T) {
	var g group
	defer g.Wait()
	for _, c := range gptCases {
		if c.model == "" {
			continue
		}
		g.run(t, c.name, func(t *testing.T) {
			name := c.make(t)
			theirs := filepath.Join(t.TempDir(), "theirs")
			tool(t, "", "cp", "--sparse=always", name, theirs)
			if err := os.Truncate(theirs, c.to); err != nil {
				t.Fatal(err)
			}
			if c.model == "sgdisk" {
				tool(t, "", "sgdisk", "-e", theirs)
			} else {
				tool(t, "", "sfdisk", "-q", "--relocate", "gpt-bak-std", theirs)
			}
			edit(t, name, c.to, nil)
			a, err := os.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			b, err := os.Open(theirs)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			count := max(c.count, 128)
			if c.count == 8 {
				count = 8
			}
			tail := count*128 + 512
			for _, s := range []span{{512, max(c.array, 2)*512 + count*128 - 512}, {c.to/512*512 - tail, tail}, {0, 446}, {462, 50}} {
				if x, y := readAt(t, a, s.off, s.n), readAt(t, b, s.off, s.n); !bytes.Equal(x, y) {
					t.Errorf("bytes %d to %d differ from the tool's", s.off, s.off+s.n)
				}
			}
			x, y := readAt(t, a, 446, 16), readAt(t, b, 446, 16)
			if c.model == "sfdisk" || x[5] == 0xff && x[6] == 0xff {
				copy(y[5:8], x[5:8])
			}
			if !bytes.Equal(x, y) {
				t.Errorf("protective entry %x, the tool's %x", x, y)
			}
		})
	}
}

// The same with sectors of 4096 bytes, through a loop device, since the tools take a file's to be 512.
func TestGrowGPT4096(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CI") != "true" {
		t.Skip("loop devices need root")
	}
	name := sparse(t, 300*mib)
	// A device that was freed may be another process's at once: it must not be freed twice.
	attached := ""
	free := func() {
		if attached != "" {
			exec.Command("losetup", "-d", attached).Run()
		}
		attached = ""
	}
	t.Cleanup(free)
	loop := func() string {
		attached = strings.TrimSpace(output(t, "", "losetup", "-f", "--show", "-b", "4096", name))
		return attached
	}
	dev := loop()
	tool(t, "label: gpt\nsize=10M,type=U\nsize=100M,name=root\n", "sfdisk", "-q", dev)
	rest, sizes := dump(t, dev)
	free()
	var room int64
	var p Partition
	r := edit(t, name, 2*gib, func(d *Disk, e *TableEdit) {
		room, _ = e.Room(2)
		room = room/2/4096*4096 + 4096
		if err := e.Grow(2, room-4095); err != nil {
			t.Fatal(err)
		}
		var err error
		if p, err = e.Add(Partition{Type: linuxType, GUID: newGUID, Name: "store", Size: 100*mib + 1}); err != nil {
			t.Fatal(err)
		}
	})
	if p.Number != 3 || p.Start%mib != 0 || p.Size != 100*mib+4096 {
		t.Errorf("added %+v", p)
	}
	r.within(t, append(gptSpans(4096, 2, 128*128, 300*mib, 2*gib), span{2*4096 + 128 + 40, 8}, span{2*4096 + 256, 128}))
	dev = loop()
	verify(t, dev, "gpt")
	restNow, sizesNow := dump(t, dev)
	sizes[2], sizes[3] = room/4096, p.Size/4096
	if !maps.Equal(sizes, sizesNow) {
		t.Errorf("sizes %v, want %v", sizesNow, sizes)
	}
	if !strings.Contains(restNow[3], "store") {
		t.Errorf("the new one is %s", restNow[3])
	}
	delete(restNow, 3)
	for n := range rest {
		// Both name the device.
		rest[n], restNow[n] = strings.ReplaceAll(rest[n], dev, ""), strings.ReplaceAll(restNow[n], dev, "")
	}
	if !maps.Equal(rest, restNow) {
		t.Errorf("was %v\nis  %v", rest, restNow)
	}
}

// A damaged primary GPT is made anew from the backup, or the edit is refused.
func TestDamagedPrimary(t *testing.T) {
	moved := script(300*mib, `sgdisk -n 1:4096:+100M -j 1024 $D`)
	wipe := func(make_ func(*testing.T) string, spans ...span) func(*testing.T) string {
		return with(make_, func(t *testing.T, f *os.File) {
			for _, s := range spans {
				put(t, f, s.off, make([]byte, s.n))
			}
		})
	}
	var g group
	defer g.Wait()
	for _, c := range []struct {
		name  string
		make  func(*testing.T) string
		array int64
		err   string
	}{
		{name: "header", make: wipe(script(300*mib, usual), span{512, 512}), array: 2},
		{name: "header's checksum", make: wipe(script(300*mib, usual), span{512 + 16, 4}), array: 2},
		{name: "array", make: wipe(script(300*mib, usual), span{1024, 512}), array: 2},
		{name: "header and array", make: wipe(script(300*mib, usual), span{512, 33 * 512}), array: 2},
		{name: "header, the array elsewhere", make: wipe(moved, span{512 + 16, 4}), array: 1024},
		{name: "header and array elsewhere, a boot loader where arrays are", make: with(
			wipe(moved, span{512, 512}, span{1024 * 512, 512}),
			func(t *testing.T, f *os.File) { put(t, f, 1024, []byte("boot loader")) }), err: "sgdisk --repair"},
	} {
		g.run(t, c.name, func(t *testing.T) {
			name := c.make(t)
			d, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if len(d.Warnings) == 0 {
				t.Error("no warning")
			}
			if _, err := d.EditTable(gib); c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, ErrUnsupported) {
					t.Fatalf("error %v, want %q", err, c.err)
				}
				return
			}
			want := describe(d)
			r := edit(t, name, gib, nil)
			r.within(t, append(gptSpans(512, c.array, 128*128, 300*mib, gib), span{512, 512}, span{c.array * 512, 128 * 128}))
			verify(t, name, "gpt")
			now, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer now.Close()
			if got := describe(now); got != want || len(now.Warnings) > 0 || now.ID != d.ID {
				t.Errorf("got  %s %v\nwant %s", got, now.Warnings, want)
			}
		})
	}
}

func TestAddGPT(t *testing.T) {
	t.Parallel()
	name := script(300*mib, usual)(t)
	rest, sizes := dump(t, name)
	p := Partition{Type: strings.ToUpper(linuxType), GUID: newGUID, Name: "größe 𝄞", Size: 64 * mib}
	r := edit(t, name, gib, func(d *Disk, e *TableEdit) {
		for want, bad := range map[string]Partition{
			"needs a size":     {Type: linuxType, GUID: newGUID},
			"needs a disk of ": {Type: linuxType, GUID: newGUID, Size: gib},
			`"83" is no GUID`:  {Type: "83", GUID: newGUID, Size: mib},
			`"" is no GUID`:    {Type: linuxType, Size: mib},
			"is no GPT name":   {Type: linuxType, GUID: newGUID, Name: strings.Repeat("𝄞", 19), Size: mib},
			"has the GUID":     {Type: linuxType, GUID: d.Partitions[0].GUID, Size: mib},
		} {
			if _, err := e.Add(bad); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want %q", err, want)
			}
		}
		var err error
		if p, err = e.Add(p); err != nil {
			t.Fatal(err)
		}
		if p.Number != 2 || p.Start != 216*mib || p.Size != 64*mib || p.Type != linuxType {
			t.Errorf("added %+v", p)
		}
		// Growth in flight: the disk, then the partition, again and again.
		for step := int64(2); step <= 8; step++ {
			want := step*gib - 300*mib
			if got := e.DiskSizeFor(2, want); got != p.Start+want+33*512 {
				t.Errorf("a disk for %d bytes: %d", want, got)
			}
			if err := e.Grow(2, want); !errors.Is(err, ErrNoRoom) {
				t.Errorf("grown before the disk: %v", err)
			}
			if err := e.SetDiskSize(step * gib); err != nil {
				t.Fatal(err)
			}
			if err := e.Grow(2, want); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.SetDiskSize(gib); !errors.Is(err, ErrNoRoom) {
			t.Errorf("the disk is smaller than its partition: %v", err)
		}
		if err := os.Truncate(name, 8*gib); err != nil {
			t.Fatal(err)
		}
	})
	r.within(t, append(gptSpans(512, 2, 128*128, 300*mib, 8*gib), span{1024 + 128, 128}))
	verify(t, name, "gpt")
	restNow, sizesNow := dump(t, name)
	sizes[2] = (8*gib - 300*mib) / 512
	if want := fmt.Sprintf("start=      442368, , type=%s, uuid=%s, name=\"gr\\xc3\\xb6\\xc3\\x9fe \\xf0\\x9d\\x84\\x9e\"\n", strings.ToUpper(linuxType), strings.ToUpper(newGUID)); restNow[2] != want {
		t.Errorf("new: %q, want %q", restNow[2], want)
	}
	delete(restNow, 2)
	if !maps.Equal(rest, restNow) || !maps.Equal(sizes, sizesNow) {
		t.Errorf("was %v %v\nis  %v %v", rest, sizes, restNow, sizesNow)
	}
}

func TestTableFull(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		make func(*testing.T) string
		p    Partition
		want string
	}{
		{script(300*mib, `sgdisk -S 4 -n 1:2048:+1M -n 2:0:+1M -n 3:0:+1M -n 4:0:+1M $D`),
			Partition{Type: linuxType, GUID: newGUID, Size: mib}, "all 4 entries of the GPT"},
		{script(300*mib, `printf 'label:dos\n,1M\n,1M\n,1M\n,1M\n' | sfdisk -q $D`),
			Partition{Type: "0x83", Size: mib}, "all 4 primary entries of the MBR"},
	} {
		edit(t, c.make(t), gib, func(_ *Disk, e *TableEdit) {
			if _, err := e.Add(c.p); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

const logicals = `printf 'label:dos\nlabel-id:0x12345678\n1M,100M,83,*\n101M,150M,5\n102M,30M,83\n133M,30M,82\n164M,30M,83\n' | sfdisk -q $D
printf 'boot code' | dd of=$D conv=notrunc status=none`

func numbers(ps []Partition) string {
	var s []string
	for _, p := range ps {
		s = append(s, strconv.Itoa(p.Number))
	}
	return strings.Join(s, " ")
}

// sfdisk, told the new sizes, writes the same bytes.
func TestGrowMBR(t *testing.T) {
	var g group
	defer g.Wait()
	for _, c := range []struct {
		name    string
		make    func(*testing.T) string
		number  int
		to      int64
		size    int64 // 0: all there is
		room    int64
		outer   int // the extended partition that grows along
		changed []span
	}{
		{name: "the only one", make: script(300*mib, `printf 'label:dos\n1M,200M,83,*\n' | sfdisk -q $D`), number: 1,
			to: 4 * gib, room: 4*gib - mib, changed: []span{{446 + 5, 3}, {446 + 12, 4}}},
		{name: "past 1024 cylinders", make: script(300*mib, `printf 'label:dos\n1M,100M,83,*\n,100M,8e\n' | sfdisk -q $D`), number: 2,
			to: 20 * gib, room: 20*gib - 101*mib, changed: []span{{462 + 5, 3}, {462 + 12, 4}}},
		{name: "up to the next", make: script(300*mib, `printf 'label:dos\n1M,50M\n200M,10M\n' | sfdisk -q $D`), number: 1,
			to: 4 * gib, room: 199 * mib, changed: []span{{446 + 5, 3}, {446 + 12, 4}}},
		{name: "almost 2 TiB", make: script(300*mib, `printf 'label:dos\n1M,50M\n' | sfdisk -q $D`), number: 1,
			to: 2*tib - 512, room: 2*tib - 512 - mib, changed: []span{{446 + 5, 3}, {446 + 12, 4}}},
		{name: "last logical", make: script(300*mib, logicals), number: 7, to: 20 * gib, room: 20*gib - 164*mib, outer: 2,
			changed: []span{{462 + 5, 3}, {462 + 12, 4}, {132*mib + 462 + 5, 3}, {132*mib + 462 + 12, 4}, {163*mib + 446 + 5, 3}, {163*mib + 446 + 12, 4}}},
		{name: "last logical, within", make: script(300*mib, logicals), number: 7, to: 300 * mib, size: 80 * mib, room: 136 * mib,
			changed: []span{{132*mib + 462 + 5, 3}, {132*mib + 462 + 12, 4}, {163*mib + 446 + 5, 3}, {163*mib + 446 + 12, 4}}},
		{name: "first logical", make: script(300*mib, `printf 'label:dos\n1M,100M\n110M,150M,f\n111M,20M\n200M,20M\n' | sfdisk -q $D`), number: 5,
			to: gib, room: 88 * mib, changed: []span{{110*mib + 446 + 5, 3}, {110*mib + 446 + 12, 4}}},
		{name: "logical before a primary", make: script(300*mib, `printf 'label:dos\n1M,100M\n110M,50M,f\n200M,20M\n111M,20M\n' | sfdisk -q $D`),
			number: 5, to: gib, room: 89 * mib, outer: 2, changed: []span{{462 + 5, 3}, {462 + 12, 4}, {110*mib + 446 + 5, 3}, {110*mib + 446 + 12, 4}}},
	} {
		g.run(t, c.name, func(t *testing.T) {
			name := c.make(t)
			rest, sizes := dump(t, name)
			theirs := filepath.Join(t.TempDir(), "disk")
			tool(t, "", "cp", "--sparse=always", name, theirs)
			if err := os.Truncate(theirs, c.to); err != nil {
				t.Fatal(err)
			}
			size := c.size
			r := edit(t, name, c.to, func(d *Disk, e *TableEdit) {
				room, err := e.Room(c.number)
				if err != nil || room != c.room {
					t.Errorf("room for %d bytes (%v), want %d", room, err, c.room)
				}
				if size == 0 {
					size = room
				}
				if err := e.Grow(c.number, room+1); !errors.Is(err, ErrNoRoom) {
					t.Errorf("growing past the end: %v", err)
				}
				if err := e.Grow(c.number, size); err != nil {
					t.Fatal(err)
				}
			})
			r.within(t, c.changed)
			verify(t, name, "mbr")
			sizes[c.number] = size / 512
			restNow, sizesNow := dump(t, name)
			if c.outer > 0 {
				sizes[c.outer] = sizesNow[c.outer]
			}
			if !maps.Equal(rest, restNow) || !maps.Equal(sizes, sizesNow) {
				t.Errorf("was %v %v\nis  %v %v", rest, sizes, restNow, sizesNow)
			}
			ours := output(t, "", "sfdisk", "-d", name)
			tool(t, ours, "sfdisk", "-q", "--force", theirs)
			sameMBR(t, name, theirs)
			if c.to >= 2*tib-512 || c.outer > 0 && c.number == 5 || strings.HasPrefix(c.name, "up to") || strings.HasPrefix(c.name, "first") {
				return
			}
			if err := os.Truncate(name, c.to+gib); err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{c.outer, c.number} {
				if n == 0 || c.size > 0 {
					continue
				}
				if out := output(t, "", "growpart", name, strconv.Itoa(n)); !strings.Contains(out, "CHANGED") {
					t.Errorf("growpart: %s", out)
				}
			}
			verify(t, name, "mbr")
			if restNow, _ = dump(t, name); !maps.Equal(rest, restNow) {
				t.Errorf("after growpart: was %v\nis  %v", rest, restNow)
			}
		})
	}
}

// sameMBR holds the entries of two disks' boot records, extended ones too, against each other.
func sameMBR(t *testing.T, ours, theirs string) {
	t.Helper()
	d, err := Open(ours, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.Open(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := d.readMBREdit()
	if err != nil {
		t.Fatal(err)
	}
	at := []int64{0}
	for _, s := range m.slots {
		if s.logical {
			at = append(at, s.ebr*512)
		}
	}
	for _, off := range at {
		a, b := readAt(t, d, off+446, 66), readAt(t, f, off+446, 66)
		if !bytes.Equal(a, b) {
			t.Errorf("boot record at byte %d:\n%x, sfdisk's\n%x", off, a, b)
		}
	}
}

func TestBehind(t *testing.T) {
	for _, c := range []struct {
		name, script string
		want         map[int]string
	}{
		{"gpt", `printf 'label:gpt\n1: start=200M,size=10M\n2: start=10M,size=10M\n7: start=100M,size=10M\n' | sfdisk -q $D`,
			map[int]string{1: "", 2: "7 1", 7: "1"}},
		{"logical", logicals, map[int]string{1: "5 6 7", 5: "6 7", 6: "7", 7: ""}},
		{"behind the extended one", `printf 'label:dos\n1M,100M\n110M,50M,f\n200M,20M\n111M,20M\n' | sfdisk -q $D`,
			map[int]string{1: "5 3", 5: "3", 3: ""}},
		{"an extended one that is empty", `printf 'label:dos\n1M,100M\n110M,50M,f\n' | sfdisk -q $D`, map[int]string{1: "2"}},
	} {
		d, err := Open(script(300*mib, c.script)(t), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for _, p := range d.Partitions {
			if got := numbers(d.Behind(p)); got != c.want[p.Number] {
				t.Errorf("%s: behind %d are %q, want %q", c.name, p.Number, got, c.want[p.Number])
			}
		}
	}
}

func TestDiskSizeFor(t *testing.T) {
	var g group
	defer g.Wait()
	for _, c := range []struct {
		name, script string
		number       int
		size, want   int64
	}{
		{"gpt, there is room", `sgdisk -n 1:2048:+100M $D`, 1, 200 * mib, 300 * mib},
		{"gpt, one sector too many", `sgdisk -n 1:2048:+100M $D`, 1, 299*mib - 33*512 + 1, 300*mib + 512},
		{"gpt, 256 entries", `sgdisk -S 256 -n 1:2048:+100M $D`, 1, gib, gib + mib + 65*512},
		{"gpt, another is in the way", `sgdisk -n 1:2048:+100M -n 2:0:+10M $D`, 1, gib, 300 * mib},
		{"gpt, no disk is so large", `sgdisk -n 1:2048:+100M $D`, 1, 1<<63 - 1, 1 << 62},
		{"no such partition", `sgdisk -n 1:2048:+100M $D`, 2, gib, 300 * mib},
		{"mbr", `printf 'label:dos\n1M,100M\n' | sfdisk -q $D`, 1, gib + 1, gib + mib + 512},
		{"mbr, past 2 TiB", `printf 'label:dos\n1M,100M\n' | sfdisk -q $D`, 1, 3 * tib, 2*tib - 512},
	} {
		g.run(t, c.name, func(t *testing.T) {
			d, err := Open(script(300*mib, c.script)(t), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			e, err := d.EditTable(d.Size())
			if err != nil {
				t.Fatal(err)
			}
			if got := e.DiskSizeFor(c.number, c.size); got != c.want {
				t.Errorf("%d bytes, want %d", got, c.want)
			}
		})
	}
}

func TestEditRefused(t *testing.T) {
	var g group
	defer g.Wait()
	for _, c := range []struct {
		name string
		make func(*testing.T) string
		want string
	}{
		{"no table", func(t *testing.T) string {
			name := sparse(t, 16*mib)
			tool(t, "", "mkfs.ext4", "-q", "-F", name)
			return name
		}, "no partition table"},
		{"overlap", with(script(300*mib, `sgdisk -n 1:2048:+100M -n 2:0:+10M $D`), func(t *testing.T, f *os.File) {
			put(t, f, 1024+40, le.AppendUint64(nil, 2048+100*2048))
			resum(t, f, 1)
		}), "partition 1 (sectors 2048 to 206848) and partition 2 (sectors 206848 to 227327) overlap"},
		{"a partition over the table", with(script(300*mib, `sgdisk -n 1:2048:+100M $D`), func(t *testing.T, f *os.File) {
			put(t, f, 1024+32, le.AppendUint64(nil, 33))
			resum(t, f, 1)
		}), "the table itself (sectors 2 to 33) and partition 1"},
		{"an array behind the first usable sector", with(script(300*mib, `sgdisk -n 1:4096:+100M -j 1024 $D`), func(t *testing.T, f *os.File) {
			put(t, f, 512+40, le.AppendUint64(nil, 34))
			resum(t, f, 1)
		}), "is not before its first usable sector"},
		{"a header that belongs elsewhere", with(script(300*mib, `sgdisk -n 1:2048:+100M $D`), func(t *testing.T, f *os.File) {
			put(t, f, 512+24, []byte{7})
			resum(t, f, 1)
		}), "the header is meant for sector 7"},
		{"a GPT that cannot be read", with(script(300*mib, `sgdisk -n 1:2048:+100M $D`), func(t *testing.T, f *os.File) {
			put(t, f, 512, make([]byte, 512))
			put(t, f, 300*mib-512, make([]byte, 512))
		}), "protects a GPT"},
		{"two extended ones", with(script(300*mib, logicals), func(t *testing.T, f *os.File) {
			put(t, f, 446+4, []byte{0x0f})
		}), "both extended"},
	} {
		g.run(t, c.name, func(t *testing.T) {
			d, err := Open(c.make(t), Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if _, err := d.EditTable(gib); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrUnsupported) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// Clear works once, and never on what is the new table's.
func TestClear(t *testing.T) {
	name := script(300*mib, usual)(t)
	d, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tail := func() bool { return isZero(readAt(t, f, 300*mib-33*512, 33*512)) }
	e, err := d.EditTable(300 * mib)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Clear(f); err != nil || tail() {
		t.Errorf("cleared though nothing moved (%v)", err)
	}
	if err := e.SetDiskSize(gib); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, gib); err != nil {
		t.Fatal(err)
	}
	if err := e.Clear(f); err != nil || !tail() {
		t.Errorf("not cleared (%v)", err)
	}
	put(t, f, 300*mib-512, []byte("a filesystem"))
	if err := e.SetDiskSize(2 * gib); err != nil {
		t.Fatal(err)
	}
	if err := e.Clear(f); err != nil || tail() {
		t.Errorf("cleared a second time (%v)", err)
	}
	if err := os.Truncate(name, 2*gib); err != nil {
		t.Fatal(err)
	}
	if err := e.Write(f); err != nil {
		t.Fatal(err)
	}
	if err := e.Clear(f); err == nil {
		t.Error("cleared after Write")
	}
	verify(t, name, "gpt")
}

// A partition that has taken the place of the old backup keeps its bytes.
func TestClearTaken(t *testing.T) {
	name := script(300*mib, usual+"\ntruncate -s 1G $D")(t)
	d, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e, err := d.EditTable(gib)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Grow(1, 900*mib); err != nil {
		t.Fatal(err)
	}
	if err := e.SetDiskSize(2 * gib); err != nil {
		t.Fatal(err)
	}
	if err := e.Clear(&boundedDisk{}); err != nil {
		t.Errorf("cleared: %v", err)
	}
}
