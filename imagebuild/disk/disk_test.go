package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// tool runs a real program that the test is about; without it the test fails in CI and is skipped elsewhere.
func tool(t *testing.T, stdin, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func sparse(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return name
}

func patch(t *testing.T, name string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

func describe(d *Disk) string {
	var s []string
	for _, p := range d.Partitions {
		s = append(s, fmt.Sprintf("%d:%d+%d:%s:%s:%s", p.Number, p.Start>>20, p.Size>>20, p.Type, p.Name, p.Kind))
	}
	return d.Table + " " + strings.Join(s, " ")
}

func TestTables(t *testing.T) {
	const mib = 1 << 20
	gptDisk := func(t *testing.T) string {
		name := sparse(t, 64*mib)
		tool(t, "", "sgdisk", "-a", "2048", "-n", "14:2048:+1M", "-t", "14:ef02", "-n", "1:10M:+20M", "-t", "1:8304", "-c", "1:root", name)
		return name
	}
	for _, c := range []struct {
		name  string
		make  func(*testing.T) string
		want  string
		warns string
		err   string
	}{
		{name: "gpt, root is number 1 but last on the disk", make: gptDisk,
			want: "gpt 1:10+20:4f68bce3-e8cd-4db1-96e7-fbcaf984b709:root: 14:1+1:21686148-6449-6e6f-744e-656564454649::"},
		{name: "gpt whose primary header is damaged", make: func(t *testing.T) string {
			name := gptDisk(t)
			patch(t, name, 512+60, []byte("damage"))
			return name
		}, want: "gpt 1:10+20:4f68bce3-e8cd-4db1-96e7-fbcaf984b709:root: 14:1+1:21686148-6449-6e6f-744e-656564454649::", warns: "backup"},
		{name: "gpt whose primary header is gone", make: func(t *testing.T) string {
			name := gptDisk(t)
			patch(t, name, 512, make([]byte, 512))
			return name
		}, want: "gpt 1:10+20:4f68bce3-e8cd-4db1-96e7-fbcaf984b709:root: 14:1+1:21686148-6449-6e6f-744e-656564454649::", warns: "backup"},
		{name: "gpt cut short", make: func(t *testing.T) string {
			name := gptDisk(t)
			if err := os.Truncate(name, 16*mib); err != nil {
				t.Fatal(err)
			}
			return name
		}, err: "partition 1 ends past the disk"},
		{name: "gpt that claims four billion entries", make: func(t *testing.T) string {
			name := gptDisk(t)
			patch(t, name, 512+80, []byte{0xff, 0xff, 0xff, 0xff})
			fixHeaderSum(t, name)
			return name
		}, err: "4294967295 entries"},
		{name: "gpt whose entries have no size", make: func(t *testing.T) string {
			name := gptDisk(t)
			patch(t, name, 512+84, []byte{0, 0, 0, 0})
			fixHeaderSum(t, name)
			return name
		}, err: "entries of 0 bytes"},
		{name: "mbr with logical partitions", make: func(t *testing.T) string {
			name := sparse(t, 64*mib)
			tool(t, "label: dos\nlabel-id: 0x12345678\n1M,8M,83,*\n10M,50M,5\n11M,8M,83\n20M,8M,82\n", "sfdisk", "-q", name)
			return name
		}, want: "mbr 1:1+8:0x83:: 5:11+8:0x83:: 6:20+8:0x82::"},
		{name: "bare ext4", make: func(t *testing.T) string {
			name := sparse(t, 16*mib)
			tool(t, "", "mkfs.ext4", "-q", "-F", name)
			return name
		}, want: "none 0:0+16:::ext4"},
		{name: "nothing", make: func(t *testing.T) string { return sparse(t, 16*mib) }, err: "neither a GPT, nor an MBR"},
		{name: "too small", make: func(t *testing.T) string { return sparse(t, 100) }, err: "too few"},
		{name: "vmdk", make: func(t *testing.T) string {
			name := sparse(t, mib)
			patch(t, name, 0, []byte("KDMV"))
			return name
		}, err: "qemu-img convert"},
		{name: "gzip", make: func(t *testing.T) string {
			name := sparse(t, mib)
			patch(t, name, 0, []byte{0x1f, 0x8b})
			return name
		}, err: "decompress it first"},
		{name: "extended partition in a loop", make: func(t *testing.T) string {
			name := sparse(t, 64*mib)
			tool(t, "label: dos\n10M,50M,5\n11M,8M,83\n", "sfdisk", "-q", name)
			// The second entry of the first record leads back to itself.
			e := make([]byte, 16)
			e[4] = 5
			binary.LittleEndian.PutUint32(e[8:], 1)
			patch(t, name, 10*mib+462, e)
			first := make([]byte, 512)
			copy(first[446:], e)
			copy(first[462:], e)
			first[510], first[511] = 0x55, 0xaa
			patch(t, name, 10*mib+512, first)
			return name
		}, err: "never ends"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := Open(c.make(t), Options{})
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("error %v; want one with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := describe(d); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if got := strings.Join(d.Warnings, "\n"); (c.warns == "") != (got == "") || !strings.Contains(got, c.warns) {
				t.Errorf("warnings %q; want %q", got, c.warns)
			}
		})
	}
}

// fixHeaderSum makes the checksum of a tampered GPT header right again.
func fixHeaderSum(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	h := b[512 : 512+92]
	copy(h[16:20], make([]byte, 4))
	patch(t, name, 512+16, binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(h)))
}

func TestSector4096(t *testing.T) {
	name := sparse(t, 64<<20)
	if os.Getuid() != 0 && os.Getenv("CI") != "true" {
		t.Skip("loop devices need root")
	}
	loop, err := exec.Command("losetup", "-f", "--show", "-b", "4096", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	dev := strings.TrimSpace(string(loop))
	t.Cleanup(func() { exec.Command("losetup", "-d", dev).Run() })
	tool(t, "label: gpt\nstart=256, size=2048, type=linux, name=root\n", "sfdisk", "-q", dev)
	d, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if want := "gpt 1:1+8:0fc63daf-8483-4772-8e79-3d69d8477de4:root:"; describe(d) != want || d.SectorSize != 4096 {
		t.Errorf("got %s with sectors of %d bytes; want %s with 4096", describe(d), d.SectorSize, want)
	}
}

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		kind  filesystem.Kind
		size  int64
		label string
		make  []string
	}{
		{filesystem.Ext4, 16 << 20, "some-root", []string{"mkfs.ext4", "-q", "-F", "-L", "some-root"}},
		{filesystem.Ext4, 16 << 20, "old", []string{"mkfs.ext2", "-q", "-F", "-L", "old"}},
		{filesystem.XFS, 512 << 20, "xroot", []string{"mkfs.xfs", "-q", "-L", "xroot"}},
		{filesystem.Btrfs, 256 << 20, "b", []string{"mkfs.btrfs", "-q", "-L", "b"}},
		{filesystem.VFAT, 64 << 20, "ESP", []string{"mkfs.vfat", "-F", "32", "-n", "ESP"}},
		{filesystem.VFAT, 16 << 20, "EFI", []string{"mkfs.vfat", "-F", "16", "-n", "EFI"}},
		{filesystem.Swap, 16 << 20, "sw", []string{"mkswap", "-q", "-L", "sw"}},
		{filesystem.LUKS, 64 << 20, "", []string{"cryptsetup", "luksFormat", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "-q", "--key-file", "/etc/os-release"}},
	} {
		t.Run(fmt.Sprint(c.make[0], c.kind, c.size), func(t *testing.T) {
			name := sparse(t, c.size)
			tool(t, "", c.make[0], append(c.make[1:], name)...)
			d, err := Open(name, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			p := d.Partitions[0]
			if len(d.Partitions) != 1 || p.Kind != c.kind || p.Label != c.label || p.UUID == "" {
				t.Errorf("got %+v; want one of kind %s, label %q, with a UUID", d.Partitions, c.kind, c.label)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	p := Partition{Number: 3, Name: "root", GUID: "ab-cd", Label: "Rocky", UUID: "1234-5678"}
	for word, want := range map[string]bool{
		"3": true, "root": true, "ROCKY": true, "LABEL=rocky": true, "PARTLABEL=root": true, "PARTUUID=AB-CD": true,
		"UUID=1234-5678": true, "1234-5678": true, "LABEL=root": false, "4": false, "": false, "UUID=": false, "PARTUUID=3": false,
	} {
		if got := p.Matches(word); got != want {
			t.Errorf("Matches(%q) = %v", word, got)
		}
	}
}

func TestForeignIsUnsupported(t *testing.T) {
	name := sparse(t, 1<<20)
	patch(t, name, 0, []byte("vhdxfile"))
	if _, err := Open(name, Options{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v does not match ErrUnsupported", err)
	}
}

// A FIFO that nothing writes to would never open.
func TestNotADisk(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fifo, "/dev/null", t.TempDir()} {
		if d, err := Open(name, Options{}); err == nil {
			d.Close()
			t.Errorf("%s opens as a disk", name)
		}
	}
}

func TestUnchanged(t *testing.T) {
	name := sparse(t, 1<<20)
	patch(t, name, 1024+0x38, []byte("\x53\xef"))
	d, err := Open(name, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Unchanged(); err != nil {
		t.Error(err)
	}
	if err := os.Chtimes(name, time.Time{}, time.Unix(1, 1)); err != nil {
		t.Fatal(err)
	}
	if err := d.Unchanged(); !errors.Is(err, ErrChanged) {
		t.Errorf("a changed base gives %v", err)
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 15 << 30: "15.0 GiB", 1<<20 - 1: "1.0 MiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "512": 512, "20G": 20 << 30, "20GiB": 20 << 30, "3t": 3 << 40, "7k": 7 << 10, "8388607T": 8388607 << 40,
		"": -1, "G": -1, "-1": -1, "+1": -1, "1.5G": -1, "20GB": -1, "8388608T": -1, "9223372036854775808": -1, "1 G": -1, "GG": -1, "1KM": -1} {
		got, err := ParseBytes(s)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add(make([]byte, 4096))
	head := make([]byte, 2048)
	copy(head[512:], "EFI PART\x00\x00\x01\x00\x5c\x00\x00\x00")
	head[510], head[511] = 0x55, 0xaa
	f.Add(head)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<20 {
			return
		}
		name := filepath.Join(t.TempDir(), "d")
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if d, err := Open(name, Options{}); err == nil {
			for _, p := range d.Partitions {
				if p.Start < 0 || p.Size <= 0 || p.Start+p.Size > d.Size() {
					t.Errorf("partition %d at %d of %d bytes is outside %d", p.Number, p.Start, p.Size, d.Size())
				}
			}
			d.Close()
		}
	})
}
