// Quota is the first program of a small Linux whose kernel accounts for XFS projects, as that of the machine that
// tests need not. By the kernel argument quota= it works on the partition /dev/vda1, prints what the kernel counts, and
// powers the machine off:
//
//	make   mounts with prjquota and gives /var and all in it to project 42, with what will be made there
//	count  mounts with prjquota; then once without, which makes the kernel count from nothing at the next mount with it
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	device = "/dev/vda1"
	at     = "/mnt"
)

func main() {
	err := run(os.Getenv("quota"))
	unix.Sync()
	if err != nil {
		fmt.Println("FAILED:", err)
	} else {
		fmt.Println("SCRIPT-END")
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(what string) error {
	os.Mkdir(at, 0o755)
	unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	cmd := exec.Command("/usr/sbin/modprobe", "-a", "virtio_pci", "virtio_blk", "crc32c_generic", "xfs")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe: %w\n%s", err, out)
	}
	for range 600 {
		if _, err := os.Stat(device); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	switch what {
	case "make":
		return mounted("prjquota", func() error {
			if err := filepath.WalkDir(at+"/var", give); err != nil {
				return err
			}
			return report("MADE")
		})
	case "count":
		if err := mounted("prjquota", func() error { return report("FIRST") }); err != nil {
			return err
		}
		if err := mounted("noquota", func() error { return nil }); err != nil {
			return err
		}
		return mounted("prjquota", func() error { return report("AGAIN") })
	}
	return fmt.Errorf("quota=%s?", what)
}

func mounted(options string, do func() error) error {
	if err := unix.Mount(device, at, "xfs", 0, options); err != nil {
		return fmt.Errorf("mounting with %s: %w", options, err)
	}
	err := do()
	return errors.Join(err, unix.Unmount(at, 0))
}

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct{ xflags, extsize, nextents, projid, cowextsize, pad1, pad2 uint32 }

const (
	fsGetXattr  = 0x801c581f // FS_IOC_FSGETXATTR
	fsSetXattr  = 0x401c5820 // FS_IOC_FSSETXATTR
	projInherit = 0x200      // FS_XFLAG_PROJINHERIT
	project     = 42
)

// give makes a name the project's; a folder so that new names in it are, too.
func give(name string, d fs.DirEntry, err error) error {
	if err != nil || !d.IsDir() && !d.Type().IsRegular() {
		return err
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	var x fsxattr
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsGetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	x.projid = project
	if d.IsDir() {
		x.xflags |= projInherit
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsSetXattr, uintptr(unsafe.Pointer(&x))); errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}

// quota is struct fs_disk_quota of linux/dqblk_xfs.h.
type quota struct {
	version, flags int8
	fieldmask      uint16
	id             uint32
	limits         [4]uint64
	blocks, inodes uint64 // blocks of 512 bytes
	rest           [56]byte
}

// report prints a line for each project.
func report(word string) error {
	unix.Sync()
	special, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	for id := uint32(0); ; id++ {
		var q quota
		// Q_XGETNEXTQUOTA for PRJQUOTA.
		const next = ('X'<<8+9)<<8 | 2
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL, next, uintptr(unsafe.Pointer(special)), uintptr(id), uintptr(unsafe.Pointer(&q)), 0, 0)
		if errors.Is(errno, unix.ENOENT) {
			return nil
		}
		if errno != 0 {
			return fmt.Errorf("quotactl: %w", errno)
		}
		id = q.id
		fmt.Printf("%s project %d: %d blocks, %d inodes\n", word, q.id, q.blocks, q.inodes)
	}
}
