package xfs

import (
	"syscall"
	"unsafe"
)

// The standard library follows symlinks in its xattr calls; these do not.

func xattrCall(trap uintptr, path, name string, b []byte, flags uintptr) (int, error) {
	p, err := syscall.BytePtrFromString(path)
	if err != nil {
		return 0, err
	}
	var q, d unsafe.Pointer
	if len(b) > 0 {
		d = unsafe.Pointer(&b[0])
	}
	var n uintptr
	var errno syscall.Errno
	if trap == syscall.SYS_LLISTXATTR {
		n, _, errno = syscall.Syscall(trap, uintptr(unsafe.Pointer(p)), uintptr(d), uintptr(len(b)))
	} else {
		np, err := syscall.BytePtrFromString(name)
		if err != nil {
			return 0, err
		}
		q = unsafe.Pointer(np)
		n, _, errno = syscall.Syscall6(trap, uintptr(unsafe.Pointer(p)), uintptr(q), uintptr(d), uintptr(len(b)), flags, 0)
	}
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func llistxattr(path string, b []byte) (int, error) {
	return xattrCall(syscall.SYS_LLISTXATTR, path, "", b, 0)
}

func lgetxattr(path, name string, b []byte) (int, error) {
	return xattrCall(syscall.SYS_LGETXATTR, path, name, b, 0)
}

func lsetxattr(path, name string, b []byte) error {
	_, err := xattrCall(syscall.SYS_LSETXATTR, path, name, b, 0)
	return err
}
