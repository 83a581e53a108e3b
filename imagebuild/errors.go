package imagebuild

import (
	"errors"

	"github.com/nodebake/nodebake/imagebuild/customize"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/disk/lvm"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/filesystem/ext4"
	"github.com/nodebake/nodebake/imagebuild/filesystem/xfs"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/imagebuild/output/libvirt"
	"github.com/nodebake/nodebake/qcow"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

var (
	// ErrUsage is matched by errors in what the caller asked for, as against in what was found.
	ErrUsage = errors.New("wrong use")
	// ErrVerify is matched when a disk is not what it claims to be.
	ErrVerify = errors.New("verification failed")
)

// IsNoSpace says whether a bake failed because there is too little space, in a filesystem, on the disk, in a pool or on a device.
func IsNoSpace(err error) bool {
	return errors.Is(err, filesystem.ErrNoSpace) || errors.Is(err, disk.ErrNoRoom) || errors.Is(err, libvirt.ErrNoSpace) || errors.Is(err, bare.ErrTooSmall)
}

// IsUnsupported says whether an error is about a disk of a kind, or in a state, that is not handled, as
// against one that is broken.
func IsUnsupported(err error) bool {
	for _, target := range []error{disk.ErrUnsupported, lvm.ErrUnsupported, customize.ErrUnsupported, osroot.ErrNoRoot, filesystem.ErrNoWriter, ext4.ErrUnsupported, ext4.ErrNeedsRecovery, xfs.ErrUnsupported, xfs.ErrDirtyLog, qcow.ErrUnsupported, qcow.ErrBacking, libvirt.ErrUnsupported,
		storageconf.ErrDriver, storageconf.ErrUnsupported} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}
