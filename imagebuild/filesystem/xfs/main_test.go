package xfs

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestMain runs the tests in a mount namespace of their own. Otherwise a process that happens to copy ours while a
// filesystem is mounted keeps it mounted behind our back, and what we then read from the image is half a truth.
func TestMain(m *testing.M) {
	const done = "NODEBAKE_XFS_NAMESPACE"
	unshare, err := exec.LookPath("unshare")
	if err == nil && os.Getuid() == 0 && os.Getenv(done) == "" {
		self, err := os.Executable()
		if err == nil && exec.Command(unshare, "--mount", "--propagation", "private", "true").Run() == nil {
			os.Setenv(done, "1")
			args := append([]string{unshare, "--mount", "--propagation", "private", "--", self}, os.Args[1:]...)
			syscall.Exec(unshare, args, os.Environ())
		}
	}
	os.Exit(m.Run())
}
