// Growvm is the first program of a small Linux, whose kernel may grow mounted filesystems where that of the machine
// that tests may not. It mounts each ext4 disk, grows it to the disk's end, as resize2fs and systemd-growfs do, writes
// a file, prints how many blocks there were and are, and powers the machine off.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resizeFS is EXT4_IOC_RESIZE_FS of the kernel's include/uapi/linux/ext4.h.
const resizeFS = 0x40086610

func main() {
	if err := run(); err != nil {
		fmt.Println("FAILED:", err)
	} else {
		fmt.Println("ALL GROWN")
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	os.Mkdir("/mnt", 0o755)
	unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	cmd := exec.Command("/usr/sbin/modprobe", "-a", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe: %w\n%s", err, out)
	}
	want := 0
	fmt.Sscan(os.Getenv("disks"), &want)
	var disks []string
	for range 600 {
		if disks, _ = filepath.Glob("/dev/vd*"); len(disks) == want {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(disks) != want {
		return fmt.Errorf("%d disks of %d", len(disks), want)
	}
	for _, d := range disks {
		if err := grow(d); err != nil {
			return fmt.Errorf("%s: %w", d, err)
		}
	}
	return nil
}

func grow(disk string) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, 2)
	f.Close()
	if err != nil {
		return err
	}
	if err := unix.Mount(disk, "/mnt", "ext4", 0, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer unix.Unmount("/mnt", 0)
	var before, after unix.Statfs_t
	if err := unix.Statfs("/mnt", &before); err != nil {
		return err
	}
	dir, err := os.Open("/mnt")
	if err != nil {
		return err
	}
	defer dir.Close()
	blocks := uint64(size / before.Bsize)
	if _, _, no := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks))); no != 0 {
		return fmt.Errorf("growing from %d to %d blocks of %d: %w", before.Blocks, blocks, before.Bsize, no)
	}
	if err := unix.Statfs("/mnt", &after); err != nil {
		return err
	}
	fmt.Printf("%s: %d blocks of %d, then %d\n", disk, before.Blocks, before.Bsize, after.Blocks)
	if after.Blocks <= before.Blocks {
		return fmt.Errorf("it did not grow")
	}
	return os.WriteFile("/mnt/later", make([]byte, 20<<20), 0o600)
}
