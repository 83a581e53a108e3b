package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xfsMinimum is the size of the least filesystem that mkfs.xfs makes.
const xfsMinimum = 300 * mib

// xfs is ext4 for the other filesystem; the kernel copies the tree into it.
func xfs(options ...string) fsMaker {
	return func(t testing.TB, file string, size int64, tree string) {
		t.Helper()
		check(t, os.WriteFile(file, nil, 0o644))
		check(t, os.Truncate(file, size))
		run(t, "mkfs.xfs", append(append([]string{"-q", "-f", "-L", "root", "-m", "uuid=6e6f6465-6261-6b65-0000-0000000000ab"}, options...), file)...)
		if tree == "" {
			return
		}
		mnt := mount(t, file, 0, "rw")
		run(t, "cp", "-a", tree+"/.", mnt)
		unmount(t, mnt)
	}
}

func xfsPart(t testing.TB, more map[string]string, options ...string) part {
	p := rootPart(t, more)
	p.size, p.make = xfsMinimum, xfs(options...)
	return p
}

// attach gives a loop device of a partition, for tools that take no offset.
func attach(t testing.TB, raw string, number int, options ...string) string {
	t.Helper()
	p := area(t, raw, number)
	args := append([]string{"-f", "--show", "-o", fmt.Sprint(p.start), "--sizelimit", fmt.Sprint(p.size)}, options...)
	dev := strings.TrimSpace(run(t, "losetup", append(args, raw)...))
	// One that was freed may be another test's, or another process's, at once.
	mine := new(int)
	attached.Store(dev, mine)
	t.Cleanup(func() {
		if attached.CompareAndDelete(dev, mine) {
			command(t, nil, "losetup", "-d", dev)
		}
	})
	return dev
}

// attached are the loop devices that this process has, each with what tells one use of its name from the next.
var attached sync.Map

// detach frees a loop device of the caller's before its test ends.
func detach(t testing.TB, dev string) {
	t.Helper()
	if _, ours := attached.LoadAndDelete(dev); ours {
		command(t, nil, "losetup", "-d", dev)
	}
}

func isXFS(t testing.TB, raw string, number int) bool {
	t.Helper()
	f, err := os.Open(raw)
	check(t, err)
	defer f.Close()
	magic := make([]byte, 4)
	_, err = f.ReadAt(magic, area(t, raw, number).start)
	check(t, err)
	return string(magic) == "XFSB"
}

// xfsFaults is what xfs_repair finds in a partition.
func xfsFaults(t testing.TB, raw string, number int) (faults []string) {
	t.Helper()
	dev := attach(t, raw, number, "-r")
	o := command(t, nil, "xfs_repair", "-n", dev)
	detach(t, dev)
	if o.code != 0 {
		faults = append(faults, o.String())
	}
	// It ends with 0 after some faults, but says of each what it would do or has found.
	for _, line := range strings.Split(o.stdout+o.stderr, "\n") {
		if line != "" && !strings.HasPrefix(line, "Phase ") && !strings.HasPrefix(line, "        - ") && !strings.HasPrefix(line, "No modify flag set, ") {
			faults = append(faults, line)
		}
	}
	return faults
}

// xfsRepair holds a partition against xfs_repair, which may find nothing, and against the kernel, which may read all
// of it without a word in its log.
func xfsRepair(t testing.TB, raw string, number int) {
	t.Helper()
	for _, fault := range xfsFaults(t, raw, number) {
		t.Errorf("xfs_repair says: %s", fault)
	}
	quietMount(t, raw, number, "ro", func(mnt string) {
		_, err := diskNodes(mnt, "")
		check(t, err)
	})
}

// attributeExtents counts the extents that a file's attributes have outside its inode; 4 and more are 4.
func attributeExtents(t testing.TB, name string) int {
	t.Helper()
	f, err := os.Open(name)
	check(t, err)
	defer f.Close()
	// XFS_IOC_GETBMAPX takes an array of struct getbmapx of xfs_fs.h, of 48 bytes: the first asks, and the kernel says
	// in it how many of the others it filled.
	const (
		getBmapX = 0xc0205838
		attrFork = 1 // BMV_IF_ATTRFORK
	)
	var q [5 * 48]byte
	binary.NativeEndian.PutUint64(q[16:], math.MaxUint64) // bmv_length: to the end
	binary.NativeEndian.PutUint32(q[24:], 5)              // bmv_count
	binary.NativeEndian.PutUint32(q[32:], attrFork)       // bmv_iflags
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getBmapX, uintptr(unsafe.Pointer(&q))); errno != 0 {
		t.Fatalf("%s: %v", name, errno)
	}
	return int(binary.NativeEndian.Uint32(q[28:])) // bmv_entries
}

// calm is what the kernel says of a filesystem with nothing wrong.
var calm = regexp.MustCompile(`: (Mounting V5 Filesystem|Ending clean mount|Unmounting Filesystem|Quotacheck needed: Please wait\.|Quotacheck: Done\.)|resetting quota flags|EXPERIMENTAL`)

// quietMount mounts an XFS partition for a function and fails when the kernel's log has any complaint about it.
func quietMount(t testing.TB, raw string, number int, options string, use func(mnt string)) {
	t.Helper()
	// A loop device's number is soon another filesystem's, so only what comes after the mark counts.
	mark := fmt.Sprintf("nodebake-integration-%d-%d", os.Getpid(), time.Now().UnixNano())
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	check(t, err)
	_, err = io.WriteString(kmsg, mark+"\n")
	kmsg.Close()
	check(t, err)
	mnt := mount(t, raw, number, options)
	dev := filepath.Base(strings.TrimSpace(run(t, "findmnt", "-n", "-o", "SOURCE", mnt)))
	use(mnt)
	unmount(t, mnt)
	_, log, found := strings.Cut(run(t, "dmesg"), mark)
	if !found {
		t.Fatal("the kernel's log lost the mark")
	}
	said := 0
	for _, line := range strings.Split(log, "\n") {
		if _, what, ok := strings.Cut(line, "XFS ("+dev+")"); ok {
			said++
			if !calm.MatchString(what) {
				t.Errorf("the kernel says: XFS (%s)%s", dev, what)
			}
			// The device may be another's from here on.
			if strings.Contains(what, "Unmounting Filesystem") {
				break
			}
		}
	}
	if said == 0 {
		t.Error("the kernel said nothing, not even of the mount")
	}
}

// TestXFS bakes the image of every kind of file into differently made XFS.
func TestXFS(t *testing.T) {
	requires(t, "root", "mkfs.xfs", "xfs_repair", "sfdisk", "qemu-img")
	images := testImages(t)
	for _, c := range []struct {
		name    string
		size    int64
		options []string
		images  []string
	}{
		{"defaults", xfsMinimum, nil, []string{"odd", "exact", "quirks"}},
		// It cannot hold the times after 2038 of the other images.
		{"Enterprise Linux 8", xfsMinimum, []string{"-m", "bigtime=0,inobtcount=0,reflink=1"}, []string{"hello", "debian", "quirks"}},
		{"reverse map, 1K blocks", xfsMinimum, []string{"-b", "size=1024", "-m", "rmapbt=1,reflink=1"}, []string{"odd", "exact", "quirks"}},
		{"large inodes, many groups", 1400 * mib, []string{"-i", "size=1024", "-s", "size=4096", "-d", "agcount=17"}, []string{"odd", "debian", "exact"}},
		{"no sparse inodes, no reflink", xfsMinimum, []string{"-i", "sparse=0", "-m", "reflink=0,finobt=0,inobtcount=0", "-n", "size=16k"}, []string{"odd", "exact", "quirks"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			p := xfsPart(t, nil, c.options...)
			p.size = c.size
			makeDisk(t, dir+"/base.raw", "gpt", p)
			args := []string{"--base", dir + "/base.raw", "--output", dir + "/out.raw", "--quiet"}
			var baking []image
			for _, i := range c.images {
				args, baking = append(args, "--image", images[i].oci()), append(baking, images[i])
			}
			baked(t, args...)
			bakedRight(t, dir+"/base.raw", dir+"/out.raw", 1, baking...)
			// The kernel goes on with the filesystem where the bake left off.
			quietMount(t, dir+"/out.raw", 1, "rw", func(mnt string) {
				run(t, "cp", "-a", mnt+defaultStore+"/overlay", mnt+"/copy")
				run(t, "rm", "-r", mnt+defaultStore)
				check(t, os.WriteFile(mnt+"/file", make([]byte, 10*mib), 0o644))
			})
			xfsRepair(t, dir+"/out.raw", 1)
			// The proof can fail: one free block too many.
			dev := attach(t, dir+"/out.raw", 1)
			free := strings.TrimSpace(strings.TrimPrefix(run(t, "xfs_db", "-c", "agf 0", "-c", "p freeblks", dev), "freeblks ="))
			n, err := strconv.Atoi(free)
			check(t, err)
			run(t, "xfs_db", "-x", "-c", "agf 0", "-c", fmt.Sprintf("write -d freeblks %d", n+1), dev)
			detach(t, dev)
			if len(xfsFaults(t, dir+"/out.raw", 1)) == 0 {
				t.Error("xfs_repair passes over a wrong count of free blocks")
			}
		})
	}
}

// quotaMachine starts a small Linux on a raw disk whose kernel can account for projects; see testdata/quota.
func quotaMachine(t testing.TB, kernel nodeDisk, raw, what string) string {
	t.Helper()
	dir := tempDir(t)
	check(t, goBuild("./testdata/quota", dir+"/quota"))
	program, err := os.ReadFile(dir + "/quota")
	check(t, err)
	initrd, err := os.ReadFile(kernel.initrd)
	check(t, err)
	// The kernel unpacks one archive after the other; they start at multiples of 4.
	initrd = append(initrd, make([]byte, -len(initrd)&3)...)
	check(t, os.WriteFile(dir+"/initrd", append(initrd, cpio("quota", program)...), 0o644))
	m := &machine{serial: dir + "/serial", done: make(chan error, 1), start: time.Now()}
	m.cmd = exec.Command("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "512",
		"-display", "none", "-nodefaults", "-no-reboot", "-serial", "file:"+m.serial, "-kernel", kernel.kernel, "-initrd", dir+"/initrd",
		"-append", "console=ttyS0 quiet mitigations=off rdinit=/quota quota="+what,
		"-drive", "file="+raw+",if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk")
	m.cmd.Stderr = &m.stderr
	check(t, m.cmd.Start())
	go func() { m.done <- m.cmd.Wait() }()
	t.Cleanup(func() { m.cmd.Process.Kill() })
	return m.wait(t)
}

// cpio is an archive of one program, in the "newc" form that the kernel takes (its
// Documentation/driver-api/early-userspace/buffer-format.rst).
func cpio(name string, program []byte) []byte {
	var b bytes.Buffer
	for _, e := range []struct {
		name    string
		mode    int
		content []byte
	}{{name, 0o100755, program}, {"TRAILER!!!", 0, nil}} {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, e.mode, 0, 0, 1, 0, len(e.content), 0, 0, 0, 0, len(e.name)+1, 0)
		b.WriteString(e.name + "\x00")
		b.Write(make([]byte, -b.Len()&3))
		b.Write(e.content)
		b.Write(make([]byte, -b.Len()&3))
	}
	return b.Bytes()
}

// TestXFSQuota has a root that accounts for projects, as Fedora CoreOS's does: the mount after a bake counts right.
// The kernel of a build machine may know no quota, so the one of the OCK-like disk counts.
func TestXFSQuota(t *testing.T) {
	requires(t, "root", "mkfs.xfs", "qemu-system-x86_64")
	images := testImages(t)
	dir := tempDir(t)
	ock := mountOCK(t, rawOf(t, dir, ockDisk(t)), "ro")
	// Debian 12's kernel takes no large extent counters.
	makeDisk(t, dir+"/base.raw", "gpt", xfsPart(t, nil, withoutNrext64(t)...))
	counted := regexp.MustCompile(`(?m)^(MADE|FIRST|AGAIN) project (\d+): (\d+) blocks, (\d+) inodes`)
	count := func(console string) map[string]int {
		found := map[string]int{}
		for _, m := range counted.FindAllStringSubmatch(console, -1) {
			blocks, _ := strconv.Atoi(m[3])
			inodes, _ := strconv.Atoi(m[4])
			found[m[1]+" blocks of "+m[2]], found[m[1]+" inodes of "+m[2]] = blocks, inodes
		}
		return found
	}
	before := count(quotaMachine(t, ock.kernel, dir+"/base.raw", "make"))
	baked(t, "--base", dir+"/base.raw", "--image", "oci-archive:"+images["odd"].ociArchive, "--output", dir+"/out.raw", "--quiet")
	bakedRight(t, dir+"/base.raw", dir+"/out.raw", 1, images["odd"])
	after := count(quotaMachine(t, ock.kernel, dir+"/out.raw", "count"))
	t.Logf("before: %v, after: %v", before, after)
	for _, what := range []string{"blocks of 0", "inodes of 0", "blocks of 42", "inodes of 42"} {
		if after["FIRST "+what] == 0 || after["FIRST "+what] != after["AGAIN "+what] {
			t.Errorf("%s: the first mount after the bake counts %d, a count from nothing %d", what, after["FIRST "+what], after["AGAIN "+what])
		}
	}
	// What is made below a project's folder is the project's.
	if gained := after["FIRST inodes of 42"] - before["MADE inodes of 42"]; gained < 3000 {
		t.Errorf("the project of /var gained %d inodes by a store of more than 3000", gained)
	}
	xfsRepair(t, dir+"/out.raw", 1)
}

// withoutNrext64 turns a feature off that kernels before 5.19 refuse, and that only newer programs know.
func withoutNrext64(t testing.TB) []string {
	t.Helper()
	if strings.Contains(command(t, nil, "mkfs.xfs").stderr, "nrext64") { // in what it says of its use
		return []string{"-i", "nrext64=0"}
	}
	return nil
}

// TestXFSDirty has a disk that was copied while mounted, or whose power went: what its log holds is not on it yet.
func TestXFSDirty(t *testing.T) {
	requires(t, "root", "mkfs.xfs", "xfs_io")
	images := testImages(t)
	dir := tempDir(t)
	makeDisk(t, dir+"/base.raw", "gpt", xfsPart(t, nil))
	mnt := mount(t, dir+"/base.raw", 1, "rw")
	for i := range 50 {
		check(t, os.WriteFile(fmt.Sprintf("%s/var/file-%d", mnt, i), []byte("x"), 0o644))
	}
	run(t, "xfs_io", "-x", "-c", "shutdown -f", mnt)
	unmount(t, mnt)
	was := hashFile(t, dir+"/base.raw")
	o := nodebake(t, "build", "--base", dir+"/base.raw", "--image", images["exact"].oci(), "--output", dir+"/out.raw")
	refused(t, o, exitUnsupported, dir+"/out.raw", "log", "mount|boot|xfs_repair")
	if hashFile(t, dir+"/base.raw") != was {
		t.Error("the base changed")
	}
	// What the sentence asks for is enough.
	unmount(t, mount(t, dir+"/base.raw", 1, "rw"))
	baked(t, "--base", dir+"/base.raw", "--image", images["exact"].oci(), "--output", dir+"/out.raw", "--quiet")
	bakedRight(t, dir+"/base.raw", dir+"/out.raw", 1, images["exact"])
}

// TestGrow makes a baked disk larger, as cloud-init or Ignition does at the first boot, and fills what was gained.
func TestGrow(t *testing.T) {
	requires(t, "root", "sgdisk", "sfdisk", "mkfs.xfs", "xfs_growfs", "resize2fs", "e2fsck")
	images := testImages(t)
	for name, p := range map[string]part{
		"xfs":                xfsPart(t, nil),
		"xfs, reverse map":   xfsPart(t, nil, "-m", "rmapbt=1"),
		"ext4":               rootPart(t, nil),
		"ext4, no extra GDT": rootPart(t, nil, "-O", "^resize_inode,meta_bg"),
	} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			raw := dir + "/out.raw"
			makeDisk(t, dir+"/base.raw", "gpt", part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise}, p)
			baked(t, "--base", dir+"/base.raw", "--image", "oci-archive:"+images["odd"].ociArchive, "--image", images["exact"].oci(), "--output", raw, "--quiet")
			info, err := os.Stat(raw)
			check(t, err)
			check(t, os.Truncate(raw, info.Size()+400*mib))
			run(t, "sgdisk", "-e", raw)
			run(t, "sh", "-c", `echo ', +' | sfdisk --quiet --no-reread -N 2 "$1"`, "sh", raw)
			if got := area(t, raw, 2).size; got < p.size+390*mib {
				t.Fatalf("the partition has %d bytes", got)
			}
			if isXFS(t, raw, 2) {
				quietMount(t, raw, 2, "rw", func(mnt string) {
					run(t, "xfs_growfs", mnt)
					fill(t, mnt, p.size)
				})
			} else {
				dev := attach(t, raw, 2)
				run(t, "e2fsck", "-f", "-p", dev) // resize2fs asks for it
				run(t, "resize2fs", dev)
				detach(t, dev)
				mnt := mount(t, raw, 2, "rw")
				fill(t, mnt, p.size)
				unmount(t, mnt)
			}
			fsck(t, raw, 2)
			mnt := mount(t, raw, 2, "ro")
			for _, i := range []string{"odd", "exact"} {
				compareStore(t, mnt+defaultStore, images[i])
			}
			unmount(t, mnt)
			if o := nodebake(t, "verify", raw); o.code != exitDone {
				t.Errorf("%s", o)
			}
		})
	}
}

// fill writes into a filesystem until it is full, and fails unless it has grown past its old size.
func fill(t testing.TB, mnt string, old int64) {
	t.Helper()
	var st unix.Statfs_t
	check(t, unix.Statfs(mnt, &st))
	if total := int64(st.Blocks) * st.Bsize; total < old+300*mib {
		t.Errorf("the filesystem has %d bytes, and had a partition of %d", total, old)
	}
	buf := make([]byte, mib)
	for i := 0; ; i++ {
		f, err := os.Create(fmt.Sprintf("%s/fill-%d", mnt, i))
		if err != nil {
			break
		}
		written := 0
		for ; written < 64 && err == nil; written++ {
			_, err = f.Write(buf)
		}
		f.Close()
		if err != nil {
			break
		}
	}
	check(t, unix.Statfs(mnt, &st))
	if free := int64(st.Bavail) * st.Bsize; free > 2*mib {
		t.Errorf("%d bytes are left free", free)
	}
}
