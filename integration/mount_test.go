package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// partition is a byte range of a disk.
type partition struct {
	number      int
	start, size int64
	kind        string
}

// partitions reads the table of a raw disk with sfdisk.
func partitions(t testing.TB, raw string) []partition {
	t.Helper()
	var doc struct {
		PartitionTable struct {
			Sectorsize int64
			Partitions []struct {
				Node, Type  string
				Start, Size int64
			}
		}
	}
	out := run(t, "sfdisk", "--json", raw)
	check(t, json.Unmarshal([]byte(out), &doc))
	var all []partition
	sector := max(doc.PartitionTable.Sectorsize, 512)
	for _, p := range doc.PartitionTable.Partitions {
		var n int
		if _, err := fmt.Sscanf(strings.TrimPrefix(p.Node, raw), "%d", &n); err != nil {
			// A name that ends in a digit has a "p" before the number.
			_, err = fmt.Sscanf(strings.TrimPrefix(p.Node, raw), "p%d", &n)
			check(t, err)
		}
		all = append(all, partition{n, p.Start * sector, p.Size * sector, p.Type})
	}
	return all
}

// area gives the byte range of a partition; number 0 is the whole disk.
func area(t testing.TB, raw string, number int) partition {
	t.Helper()
	if number == 0 {
		info, err := os.Stat(raw)
		check(t, err)
		return partition{size: info.Size()}
	}
	for _, p := range partitions(t, raw) {
		if p.number == number {
			return p
		}
	}
	t.Fatalf("%s has no partition %d", raw, number)
	return partition{}
}

// rawOf gives a raw file with a disk's contents: the disk itself, or a conversion by qemu-img.
func rawOf(t testing.TB, dir, disk string) string {
	t.Helper()
	if !isQcow(t, disk) {
		return disk
	}
	raw := filepath.Join(dir, filepath.Base(disk)+".raw")
	run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw)
	return raw
}

func isQcow(t testing.TB, disk string) bool {
	t.Helper()
	f, err := os.Open(disk)
	check(t, err)
	defer f.Close()
	magic := make([]byte, 4)
	_, err = io.ReadFull(f, magic)
	check(t, err)
	return string(magic) == "QFI\xfb"
}

// mount mounts a partition of a raw disk through a loop device and gives the folder.
// The kernel frees the loop device with the mount.
func mount(t testing.TB, raw string, number int, options string) string {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "mnt.")
	check(t, err)
	mountAt(t, raw, number, options, dir)
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH); os.Remove(dir) })
	return dir
}

func mountAt(t testing.TB, raw string, number int, options, dir string) {
	t.Helper()
	p := area(t, raw, number)
	if isXFS(t, raw, number) {
		options += ",nouuid" // a base may be mounted beside its output
	}
	run(t, "mount", "-o", fmt.Sprintf("%s,loop,offset=%d,sizelimit=%d", options, p.start, p.size), raw, dir)
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	check(t, unix.Unmount(dir, 0))
}

// fsck holds a partition against e2fsck, or xfs_repair and the kernel; nothing may be found.
func fsck(t testing.TB, raw string, number int) {
	t.Helper()
	if isXFS(t, raw, number) {
		xfsRepair(t, raw, number)
		return
	}
	p := area(t, raw, number)
	// e2fsck takes an offset only through its own name syntax.
	o := command(t, nil, "e2fsck", "-fn", fmt.Sprintf("%s?offset=%d", raw, p.start))
	if o.code != 0 {
		t.Errorf("%s", o)
	}
	for _, line := range strings.Split(o.stdout, "\n") {
		// It warns of a mount, even of a read-only one.
		if line == "Warning!  "+raw+" is mounted." {
			continue
		}
		if line != "" && !strings.HasPrefix(line, "Pass ") && !strings.Contains(line, "files (") {
			t.Errorf("e2fsck says: %s", line)
		}
	}
}

// qemuCheck holds a disk against qemu-img check; neither leaks nor errors may be found.
func qemuCheck(t testing.TB, disk string) {
	t.Helper()
	if isQcow(t, disk) {
		if o := command(t, nil, "qemu-img", "check", "-f", "qcow2", disk); o.code != 0 {
			t.Errorf("%s", o)
		}
	}
}

// sameOutside fails unless two raw disks agree in every byte outside the given partition.
// It gives back how many blocks of 1 MiB differ inside.
func sameOutside(t testing.TB, before, after string, number int) int {
	t.Helper()
	p := area(t, before, number)
	if q := area(t, after, number); q != p {
		t.Fatalf("partition %d was %+v and is %+v", number, p, q)
	}
	a, err := os.Open(before)
	check(t, err)
	defer a.Close()
	b, err := os.Open(after)
	check(t, err)
	defer b.Close()
	ia, err := a.Stat()
	check(t, err)
	ib, err := b.Stat()
	check(t, err)
	if ia.Size() != ib.Size() {
		t.Fatalf("%s has %d bytes, %s %d", before, ia.Size(), after, ib.Size())
	}
	inside := 0
	const step = 1 << 20
	x, y := make([]byte, step), make([]byte, step)
	for at := int64(0); at < ia.Size(); {
		// A step never crosses the partition's borders.
		n := min(step, ia.Size()-at)
		for _, border := range []int64{p.start, p.start + p.size} {
			if at < border {
				n = min(n, border-at)
			}
		}
		if hole(a, at, n) && hole(b, at, n) {
			at += n
			continue
		}
		_, err = a.ReadAt(x[:n], at)
		check(t, err)
		_, err = b.ReadAt(y[:n], at)
		check(t, err)
		if !bytes.Equal(x[:n], y[:n]) {
			if at < p.start || at >= p.start+p.size {
				t.Errorf("%s and %s differ outside partition %d, between bytes %d and %d", before, after, number, at, at+n)
				return inside
			}
			inside++
		}
		at += n
	}
	return inside
}

func hole(f *os.File, at, n int64) bool {
	data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	return err == unix.ENXIO || err == nil && data >= at+n
}

// sameContents fails unless two disks of any format hold the same bytes.
func sameContents(t testing.TB, a, b string) {
	t.Helper()
	if o := command(t, nil, "qemu-img", "compare", a, b); o.code != 0 {
		t.Errorf("%s", o)
	}
}
