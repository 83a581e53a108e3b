package container

import (
	"os"

	"golang.org/x/sys/unix"
)

// lockDir keeps other writers of a layout out until the file is closed, where its filesystem can.
func lockDir(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != unix.EINTR {
			return d, nil
		}
	}
}
