package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lvmTools runs LVM's tools on one device, without the kernel's device-mapper, which a container may lack.
type lvmTools struct {
	testing.TB
	dev, dir string
}

func newLVM(t testing.TB, dev string) lvmTools {
	t.Helper()
	requires(t, "lvm")
	l := lvmTools{t, dev, tempDir(t)}
	check(t, os.WriteFile(l.dir+"/lvm.conf", []byte(fmt.Sprintf(`
global { activation = 0
 locking_dir = "%[1]s/lock" }
devices { use_devicesfile = 0
 filter = [ "a|^%[2]s$|", "r|.*|" ]
 obtain_device_list_from_udev = 0
 external_device_info_source = "none"
 hints = "none" }
backup { backup = 0
 archive = 0 }
`, l.dir, dev)), 0o644))
	return l
}

// run gives what a command prints but for what follows from there being no device-mapper.
func (l lvmTools) run(args ...string) string {
	l.Helper()
	o := command(l, []string{"LVM_SYSTEM_DIR=" + l.dir, "LVM_SUPPRESS_FD_WARNINGS=1", "LC_ALL=C"}, "lvm", args...)
	said := regexp.MustCompile(`(?m)^  WARNING: (Activation disabled|This metadata update is NOT|Logical volume .* not zeroed).*\n`).ReplaceAllString(o.stderr, "")
	if o.code != 0 || strings.Contains(o.stdout+said, "WARNING") {
		l.Fatalf("%s", o)
	}
	return o.stdout
}

// places gives, by LVM's own account, where the runs of volume root lie on its device, in bytes.
func (l lvmTools) places() (runs [][2]int64) {
	l.Helper()
	var start, extent int64
	_, err := fmt.Sscan(l.run("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start,vg_extent_size"), &start, &extent)
	check(l, err)
	for _, m := range regexp.MustCompile(`:(\d+)-(\d+)`).FindAllStringSubmatch(l.run("lvs", "--noheadings", "--segments", "-o", "seg_pe_ranges", "rl/root"), -1) {
		var first, last int64
		_, err := fmt.Sscan(m[1]+" "+m[2], &first, &last)
		check(l, err)
		runs = append(runs, [2]int64{start + first*extent, (last - first + 1) * extent})
	}
	return runs
}

// lvm makes a physical volume with a group rl of a swap volume and a root, which fs fills. free is what the group keeps
// free.
func lvm(fs fsMaker, free int64, options ...string) fsMaker {
	return func(t testing.TB, file string, size int64, tree string) {
		t.Helper()
		check(t, os.WriteFile(file, nil, 0o644))
		check(t, os.Truncate(file, size))
		dev := attach(t, file, 0)
		l := newLVM(t, dev)
		l.run(append([]string{"vgcreate", "-q", "-y", "-s", "4m", "rl", dev}, options...)...)
		l.run("lvcreate", "-q", "-an", "-y", "-Wn", "-Zn", "-L", "8m", "-n", "swap", "rl")
		root := size - 16*mib - free
		l.run("lvcreate", "-q", "-an", "-y", "-Wn", "-Zn", "-L", fmt.Sprint(root, "b"), "-n", "root", "rl")
		fs(t, file+".fs", root, tree)
		at := l.places()[0]
		detach(t, dev)
		run(t, "dd", "if="+file+".fs", "of="+file, "bs=1M", "conv=sparse,notrunc", "status=none", "oflag=seek_bytes", fmt.Sprint("seek=", at[0]))
	}
}

// rootVolume copies volume root of a partition into a file of its own, as LVM's tools have its place.
func rootVolume(t testing.TB, raw string, number int) string {
	t.Helper()
	dev := attach(t, raw, number)
	defer detach(t, dev)
	l := newLVM(t, dev)
	l.run("vgck", "rl")
	l.run("pvck", dev)
	out := tempDir(t) + "/root"
	var end int64
	for _, at := range l.places() {
		run(t, "dd", "if="+dev, "of="+out, "bs=1M", "conv=sparse,notrunc", "status=none", "iflag=skip_bytes,count_bytes", "oflag=seek_bytes",
			fmt.Sprint("skip=", at[0]), fmt.Sprint("count=", at[1]), fmt.Sprint("seek=", end))
		end += at[1]
	}
	check(t, os.Truncate(out, end))
	return out
}

// report is what a test reads of a bake's report.
type report struct {
	Size        int64
	StoreVolume struct {
		Number int
		Start  int64
		Size   int64
		UUID   string
	}
	NewPartition bool
	Space        struct{ BlockSize, FreeBlocks, NeedBlocks int64 }
}

// bareDisk leaves out what lies beside a disk: a sum reads all of it, holes too.
var bareDisk = []string{"--checksum=false", "--bmap=false"}

func bakedReport(t testing.TB, dir string, args ...string) report {
	t.Helper()
	baked(t, append(append(args, bareDisk...), "--report", dir+"/report.json", "--quiet")...)
	return readReport(t, dir+"/report.json")
}

func readReport(t testing.TB, name string) (r report) {
	t.Helper()
	b, err := os.ReadFile(name)
	check(t, err)
	check(t, json.Unmarshal(b, &r))
	return r
}

// tableSound holds a disk's table against the tools.
func tableSound(t testing.TB, raw string) {
	t.Helper()
	if o := command(t, nil, "sfdisk", "--verify", raw); o.code != 0 || !strings.Contains(o.stdout, "No errors detected") {
		t.Errorf("%s", o)
	}
	if strings.Contains(run(t, "sfdisk", "--dump", raw), "label: gpt") {
		if o := command(t, nil, "sgdisk", "-v", raw); o.code != 0 || !strings.Contains(o.stdout, "No problems found") {
			t.Errorf("%s", o)
		}
	}
}

// entries is the table's dump with everything but the length of one partition and where the table ends.
func entries(t testing.TB, raw string, number int) string {
	t.Helper()
	var kept []string
	for _, line := range strings.Split(strings.ReplaceAll(run(t, "sfdisk", "--dump", raw), raw, "disk"), "\n") {
		if strings.HasPrefix(line, "last-lba:") {
			continue
		}
		if strings.HasPrefix(line, fmt.Sprintf("disk%d ", number)) {
			line = regexp.MustCompile(`size= *\d+`).ReplaceAllString(line, "size=")
		}
		kept = append(kept, line)
	}
	return strings.Join(kept, "\n")
}

// sameBefore fails unless two disks agree in every byte from the first MiB to a place.
func sameBefore(t testing.TB, a, b string, end int64) {
	t.Helper()
	run(t, "cmp", "-n", fmt.Sprint(end-mib), "-i", fmt.Sprint(mib), a, b)
}

// firstBoot makes a disk larger and does what cloud-init's growpart and systemd-growfs do at the first boot. The
// filesystem then is in the file and partition that it returns.
func firstBoot(t testing.TB, raw string, number int, onLVM bool) (string, int) {
	t.Helper()
	info, err := os.Stat(raw)
	check(t, err)
	check(t, os.Truncate(raw, info.Size()+700*mib))
	if number != 0 {
		requires(t, "growpart")
		run(t, "growpart", raw, fmt.Sprint(number))
		tableSound(t, raw)
	}
	if onLVM {
		dev := attach(t, raw, number)
		l := newLVM(t, dev)
		l.run("pvresize", "-q", dev)
		l.run("lvextend", "-q", "-l", "+100%FREE", "rl/root")
		detach(t, dev)
		raw, number = rootVolume(t, raw, number), 0
	}
	if isXFS(t, raw, number) {
		quietMount(t, raw, number, "rw", func(mnt string) { run(t, "xfs_growfs", mnt) })
		return raw, number
	}
	// Online, as a machine does it, wants a right that containers lack; QEMU's tests have it.
	dev := attach(t, raw, number)
	defer detach(t, dev)
	run(t, "e2fsck", "-f", "-p", dev)
	run(t, "resize2fs", dev)
	return raw, number
}

// TestRoom bakes what does not fit into disks of every kind, which must grow, and then lets them grow once more as at a
// first boot.
func TestRoom(t *testing.T) {
	requires(t, "root", "sgdisk", "sfdisk", "mkfs.xfs", "xfs_growfs", "resize2fs", "e2fsck")
	images := testImages(t)
	sized := func(p part, size int64) part {
		p.size = size
		return p
	}
	typed := func(p part, kind, name string) part {
		p.kind, p.name = kind, name
		return p
	}
	esp := part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise}
	// An XFS of the least size has more room than the images take.
	full := map[string]string{"srv/full": strings.Repeat("full", 45<<20)}
	onLVM := func(fs fsMaker, free int64, options ...string) part {
		more := map[string]string{"etc/fstab": "/dev/mapper/rl-root / auto defaults 0 0\n/dev/rl/swap none swap sw 0 0\n"}
		if free < 100*mib {
			more["srv/full"] = strings.Repeat("full", 60<<20)
		}
		p := typed(rootPart(t, more), typeLVM, "")
		p.size, p.make = 400*mib, lvm(fs, free, options...)
		return p
	}
	small := func(p part) part { return sized(p, 96*mib) }
	const gib = 1 << 30
	for _, c := range []struct {
		name, table string
		root        int
		parts       []part
		args        []string
		least, most int64 // of the new disk
		format      string
	}{
		{"ext4", "gpt", 2, []part{esp, small(rootPart(t, nil))}, nil, gib, gib, "raw"},
		{"ext4, blocks of 1K", "gpt", 2, []part{esp, small(rootPart(t, nil, "-b", "1024"))}, nil, gib, gib, "raw"},
		{"ext4, nearly as mkfs of 2006", "gpt", 2, []part{esp, small(rootPart(t, nil, "-O", "^64bit,^metadata_csum,^flex_bg,^uninit_bg,^resize_inode"))}, nil, gib, gib, "qcow2"},
		{"ext4, few inodes", "gpt", 2, []part{esp, sized(rootPart(t, nil, "-N", "600"), 300*mib)}, nil, 5 * gib, 5 * gib, "raw"},
		{"ext4 and a size", "gpt", 2, []part{esp, small(rootPart(t, nil))}, []string{"--size", "20G"}, 20 * gib, 20 * gib, "qcow2"},
		{"ext4 and a size more", "gpt", 2, []part{esp, small(rootPart(t, nil))}, []string{"--size", "+700M"}, 800 * mib, 800 * mib, "raw"},
		{"ext4, mbr", "mbr", 2, []part{{size: 4 * mib, kind: "c", make: noise}, small(typed(rootPart(t, nil), "83", ""))}, nil, gib, gib, "raw"},
		{"ext4, bare", "bare", 0, []part{small(rootPart(t, nil))}, nil, gib, gib, "raw"},
		{"xfs", "gpt", 2, []part{esp, xfsPart(t, full)}, nil, gib, gib, "raw"},
		{"xfs, everything", "gpt", 2, []part{esp, xfsPart(t, full, "-m", "rmapbt=1,reflink=1,bigtime=1,inobtcount=1,finobt=1", "-i", "sparse=1")}, nil, gib, gib, "qcow2"},
		{"xfs and a size", "gpt", 2, []part{esp, xfsPart(t, nil)}, []string{"--size", "20G"}, 20 * gib, 20 * gib, "qcow2"},
		{"lvm, room in the group", "gpt", 2, []part{esp, onLVM(ext4("-L", "root"), 280*mib)}, nil, 0, 0, "raw"},
		{"lvm, no room in the group", "gpt", 2, []part{esp, onLVM(ext4("-L", "root", "-m", "0"), 0)}, []string{"--size", "3G"}, 3 * gib, 3 * gib, "raw"},
		{"lvm, no room, auto, xfs", "gpt", 2, []part{esp, onLVM(xfs(), 0)}, nil, gib, gib, "raw"},
		{"lvm, two metadata areas", "mbr", 1, []part{typed(onLVM(xfs(), 4*mib, "--metadatacopies", "all", "--pvmetadatacopies", "2"), "8e", "")}, nil, gib, gib, "qcow2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := tempDir(t)
			base, out := dir+"/base.raw", dir+"/out."+c.format
			makeDisk(t, base, c.table, c.parts...)
			baseSize := area(t, base, 0).size
			lv := strings.HasPrefix(c.name, "lvm")
			args := append([]string{"--base", base, "--image", "oci-archive:" + images["odd"].ociArchive, "--image", "oci-archive:" + images["debian"].ociArchive}, c.args...)
			dry := nodebake(t, append([]string{"build", "--dry-run", "--report", dir + "/dry.json", "--quiet"}, args...)...)
			if dry.code != exitDone {
				t.Fatalf("%s", dry)
			}
			r := bakedReport(t, dir, append(args, "--output", out)...)
			if d := readReport(t, dir+"/dry.json"); d.Size != r.Size || d.Space != r.Space {
				t.Errorf("the dry run said %+v, the bake %+v", d, r)
			}
			qemuCheck(t, out)
			raw := rawOf(t, dir, out)
			size := area(t, raw, 0).size
			if size != r.Size || c.least != 0 && (size < c.least || size > c.most) || c.least == 0 && size != baseSize {
				t.Errorf("the disk has %d bytes, and by the report %d; it was to have %d to %d", size, r.Size, c.least, c.most)
			}
			if size > baseSize && len(c.args) == 0 {
				if free := r.Space.FreeBlocks - r.Space.NeedBlocks; free*10 < r.Space.FreeBlocks/2 {
					t.Errorf("a disk that grew has %d blocks free of %d", free, r.Space.FreeBlocks)
				}
			}
			if c.root != 0 {
				tableSound(t, raw)
				if a, b := entries(t, base, c.root), entries(t, raw, c.root); a != b {
					t.Errorf("the table was\n%s\nand is\n%s", a, b)
				}
				run(t, "cmp", "-n", "440", base, raw)
				sameBefore(t, base, raw, area(t, base, c.root).start)
			}
			sound := func(raw string, number int) {
				t.Helper()
				fsck(t, raw, number)
				mnt := mount(t, raw, number, "ro")
				defer unmount(t, mnt)
				compareStore(t, mnt+defaultStore, images["odd"])
				compareStore(t, mnt+defaultStore, images["debian"])
			}
			if lv {
				sound(rootVolume(t, raw, c.root), 0)
			} else {
				sound(raw, c.root)
			}
			if o := nodebake(t, "verify", raw); o.code != exitDone {
				t.Errorf("%s", o)
			}
			sound(firstBoot(t, raw, c.root, lv))
			if o := nodebake(t, "verify", raw); o.code != exitDone {
				t.Errorf("%s", o)
			}
		})
	}
}

// TestRoomRefused has disks that cannot grow, and sizes that cannot be.
func TestRoomRefused(t *testing.T) {
	images := testImages(t)
	small := rootPart(t, nil)
	small.size = 96 * mib
	data := part{size: 8 * mib, kind: typeLinux, name: "data", make: ext4("-L", "data")}
	for _, c := range []struct {
		name  string
		parts []part
		args  []string
		code  int
		words []string
	}{
		{"another partition behind", []part{small, data}, nil, exitNoSpace, []string{"needed", "free", `partition 2 (name "data"`, "in the way of partition 1", "--store-partition"}},
		{"and a size", []part{small, data}, []string{"--size", "2G"}, exitNoSpace, []string{`partition 2 (name "data"`, "in the way", "--store-partition"}},
		{"a size too small", []part{small}, []string{"--size", "110M"}, exitNoSpace, []string{"needed", "free", "110.0 MiB", "larger --size"}},
		{"no growth", []part{small}, []string{"--size", "+0"}, exitNoSpace, []string{"needed", "free", "larger --size"}},
		{"less than the base", []part{small}, []string{"--size", "50M"}, exitUsage, []string{"less than the base"}},
		{"no size", []part{small}, []string{"--size", "big"}, exitUsage, []string{"big", "20G"}},
		{"no such filesystem", []part{small}, []string{"--store-partition=zfs"}, exitUsage, []string{"zfs", "ext4 or xfs"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := tempDir(t)
			makeDisk(t, dir+"/base.raw", "gpt", c.parts...)
			before := hashFile(t, dir+"/base.raw")
			args := append([]string{"build", "--base", dir + "/base.raw", "--output", dir + "/out.raw", "--image", "oci-archive:" + images["debian"].ociArchive}, c.args...)
			refused(t, nodebake(t, args...), c.code, dir+"/out.raw", c.words...)
			refused(t, nodebake(t, append(args, "--dry-run")...), c.code, dir+"/out.raw", c.words...)
			if hashFile(t, dir+"/base.raw") != before {
				t.Error("the base was written")
			}
		})
	}
	t.Run("a store on a partition of no table", func(t *testing.T) {
		dir := tempDir(t)
		makeDisk(t, dir+"/base.raw", "bare", small)
		refused(t, nodebake(t, "build", "--base", dir+"/base.raw", "--output", dir+"/out.raw", "--image", images["hello"].oci(), "--store-partition"), exitNoSpace, dir+"/out.raw", "no partition table")
	})
	t.Run("four primary partitions", func(t *testing.T) {
		dir := tempDir(t)
		m := func(p part) part { p.kind, p.name = "83", ""; return p }
		makeDisk(t, dir+"/base.raw", "mbr", m(small), m(data), m(data), m(data))
		refused(t, nodebake(t, "build", "--base", dir+"/base.raw", "--output", dir+"/out.raw", "--image", images["hello"].oci(), "--store-partition"), exitNoSpace, dir+"/out.raw", "no room", "all 4", "leave --store-partition out")
	})
}

// TestStorePartition puts the store on a partition of its own.
func TestStorePartition(t *testing.T) {
	requires(t, "root", "sgdisk", "sfdisk", "e2fsck", "xfs_repair", "blkid", "systemd-escape", "systemd-analyze")
	images := testImages(t)
	small := func(more map[string]string) part {
		p := rootPart(t, more)
		p.size = 96 * mib
		return p
	}
	data := part{size: 8 * mib, kind: typeLinux, name: "data", make: ext4("-L", "data")}
	mbr := func(p part) part { p.kind, p.name = "83", ""; return p }
	for _, c := range []struct {
		name, table string
		parts       []part
		args        []string
		number      int
		kind        string
		store       string
		format      string
	}{
		{"root's kind", "gpt", []part{small(nil), data}, []string{"--store-partition"}, 3, "ext4", defaultStore, "raw"},
		{"xfs", "gpt", []part{small(nil), data}, []string{"--store-partition=xfs"}, 3, "xfs", defaultStore, "qcow2"},
		{"xfs root", "gpt", []part{xfsPart(t, nil), data}, []string{"--store-partition"}, 3, "xfs", defaultStore, "raw"},
		{"mbr", "mbr", []part{mbr(small(nil)), mbr(data)}, []string{"--store-partition"}, 3, "ext4", defaultStore, "raw"},
		{"a size, a path with a hyphen", "gpt", []part{small(nil), data}, []string{"--store-partition=xfs", "--size", "10G", "--store", "/opt/node-images/baked"}, 3, "xfs", "/opt/node-images/baked", "qcow2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := tempDir(t)
			base, out := dir+"/base.raw", dir+"/out."+c.format
			makeDisk(t, base, c.table, c.parts...)
			r := bakedReport(t, dir, append([]string{"--base", base, "--output", out, "--image", "oci-archive:" + images["odd"].ociArchive, "--image", "oci-archive:" + images["debian"].ociArchive}, c.args...)...)
			if !r.NewPartition || r.StoreVolume.Number != c.number {
				t.Errorf("the report says %+v", r)
			}
			qemuCheck(t, out)
			raw := rawOf(t, dir, out)
			tableSound(t, raw)
			if a, b := entries(t, base, 0), entries(t, raw, 0); !strings.HasPrefix(b, strings.TrimRight(a, "\n")) {
				t.Errorf("the table was\n%s\nand is\n%s", a, b)
			}
			storeOn := func(number int) {
				t.Helper()
				fsck(t, raw, number)
				mnt := mount(t, raw, number, "ro")
				defer unmount(t, mnt)
				compareStore(t, mnt, images["debian"])
				if c.kind != "xfs" { // which ends in 2038, so that old kernels mount it; verify knows
					compareStore(t, mnt, images["odd"])
				}
			}
			storeOn(c.number)
			fsck(t, raw, 1)
			root := mount(t, raw, 1, "ro")
			names, err := os.ReadDir(root + c.store)
			if err != nil || len(names) != 0 {
				t.Errorf("the mount point holds %v, %v", names, err)
			}
			unit := strings.TrimSpace(run(t, "systemd-escape", "--path", "--suffix=mount", c.store))
			text := read(t, root, "etc/systemd/system/"+unit)
			kind, uuid := run(t, "blkid", "-p", "-o", "value", "-s", "TYPE", "-O", fmt.Sprint(r.StoreVolume.Start), raw), strings.TrimSpace(run(t, "blkid", "-p", "-o", "value", "-s", "UUID", "-O", fmt.Sprint(r.StoreVolume.Start), raw))
			for _, want := range []string{"What=/dev/disk/by-uuid/" + uuid + "\n", "Where=" + c.store + "\n", "Type=" + c.kind + "\n", "Options=ro\n", "Before=local-fs.target crio.service\n"} {
				if !strings.Contains(text, want) {
					t.Errorf("no %q in the unit:\n%s", want, text)
				}
			}
			if strings.TrimSpace(kind) != c.kind || uuid != r.StoreVolume.UUID {
				t.Errorf("blkid says %s %s, the report %+v", kind, uuid, r)
			}
			for _, in := range []string{"local-fs.target.wants", "crio.service.requires"} {
				if to, err := os.Readlink(filepath.Join(root, "etc/systemd/system", in, unit)); err != nil || to != "/etc/systemd/system/"+unit {
					t.Errorf("%s: %q, %v", in, to, err)
				}
			}
			if o := command(t, nil, "systemd-analyze", "--root="+root, "verify", unit); strings.Contains(o.stdout+o.stderr, unit+":") {
				t.Errorf("%s", o)
			}
			unmount(t, root)
			list := nodebake(t, "images", raw)
			if list.code != exitDone || !strings.Contains(list.stdout, "localhost/nodebake/odd") {
				t.Errorf("%s", list)
			}
			if o := nodebake(t, "verify", raw); o.code != exitDone || !strings.Contains(o.stdout, "2 images") {
				t.Errorf("%s", o)
			}

			// A second bake adds to the same partition, with the flag or without it.
			again := dir + "/again.raw"
			r2 := bakedReport(t, dir, append([]string{"--base", out, "--output", again, "--image", "oci-archive:" + images["hello"].ociArchive, "--image", images["exact"].oci()}, c.args...)...)
			if r2.NewPartition || r2.StoreVolume.Number != c.number || len(partitions(t, again)) != 3 {
				t.Errorf("the second report says %+v", r2)
			}
			raw = again
			storeOn(c.number)
			tableSound(t, raw)
			if o := nodebake(t, "verify", raw); o.code != exitDone || !strings.Contains(o.stdout, "4 images") {
				t.Errorf("%s", o)
			}
		})
	}
}

// growDisks are disks of 3 GiB with one root each, by what the root is made of.
func growDisks(t testing.TB, dir string) map[string]string {
	t.Helper()
	const size = 3 << 10 * mib
	disks := map[string]string{}
	for name, p := range map[string]part{"ext4": rootPart(t, nil), "xfs": xfsPart(t, nil), "lvm": {kind: typeLVM, make: lvm(xfs(), 0), files: rootFiles(t, nil)}} {
		p.size = size
		disks[name] = filepath.Join(dir, name+".raw")
		makeDisk(t, disks[name], "gpt", p)
	}
	return disks
}

// TestRoomCost holds what growth writes of its own against what the same bake writes without it.
func TestRoomCost(t *testing.T) {
	requires(t, "root", "sfdisk", "mkfs.xfs", "qemu-img")
	images := testImages(t)
	dir := tempDir(t)
	for name, base := range growDisks(t, dir) {
		for _, format := range []string{"raw", "qcow2"} {
			var used [2]int64
			for i, size := range []string{"+0", "20G"} {
				out := dir + "/out." + format
				baked(t, append(bareDisk, "--base", base, "--image", images["hello"].oci(), "--output", out, "--force", "--quiet", "--size", size)...)
				_, err := fmt.Sscan(run(t, "du", "--block-size=1", out), &used[i])
				check(t, err)
			}
			t.Logf("%s, %s: a disk that grew from 3 to 20 GiB takes %.1f MB more", name, format, float64(used[1]-used[0])/1e6)
			if used[1]-used[0] > 20e6 {
				t.Errorf("%s, %s: %d bytes more than the disk that did not grow", name, format, used[1]-used[0])
			}
		}
	}
}

// BenchmarkRoom bakes one small image into disks of 3 GiB, which stay so or grow to 20 GiB.
func BenchmarkRoom(b *testing.B) {
	requires(b, "root", "sfdisk", "mkfs.xfs")
	images := testImages(b)
	dir := tempDir(b)
	for name, base := range growDisks(b, dir) {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				var took, used [2][]float64
				for range 5 {
					for i, size := range []string{"+0", "20G"} {
						o := measured(b, productPath(b), "build", "--base", base, "--image", images["hello"].oci(), "--output", dir+"/out.qcow2", "--force", "--quiet", "--size", size, "--checksum=false")
						if o.code != exitDone {
							b.Fatalf("%s", o)
						}
						took[i], used[i] = append(took[i], o.took.Seconds()), append(used[i], cpu(o))
					}
				}
				b.Logf("%s: 3 GiB %.2fs (CPU %.2fs), to 20 GiB %.2fs (CPU %.2fs)", name, median(took[0]), median(used[0]), median(took[1]), median(used[1]))
				b.ReportMetric(median(took[1])-median(took[0]), "s-more")
			}
		})
	}
}
