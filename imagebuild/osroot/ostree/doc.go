// Package ostree understands a disk that ostree laid out: which deployment the boot loader starts, and where a
// path that the running system would name lies in the root filesystem.
//
// Such a disk has no /etc, /usr or /var of its own at the top of its root filesystem. A boot loader entry (Boot
// Loader Specification, type 1) carries the kernel argument ostree=/ostree/boot.N/OS/BOOTCSUM/I. Below
// /ostree/boot.N, which is a symbolic link to /ostree/boot.N.S, that path is a symbolic link to the deployment
// /ostree/deploy/OS/deploy/CHECKSUM.SERIAL. In the running system the deployment is "/", its etc is /etc, the
// folder /ostree/deploy/OS/var that all deployments of one OS share is /var, and the whole root filesystem is
// /sysroot.
//
// Every file of a deployment outside its etc is a hard link into the object store /ostree/repo: who changes one
// in place changes the object, and "ostree fsck" fails. Locations there are reported as Immutable.
//
// The package reads through the small Reader interface and never writes. A disk is hostile input: sizes, counts
// and symbolic links are bounded, and nothing outside the two filesystems can be named.
//
// Sources: the ostree manual ("Anatomy of an OSTree repository", "Atomic upgrades", "Deployments"),
// ostree-prepare-root(1), the UAPI group's Boot Loader Specification and Version Format Specification; held
// against disks that the ostree tool made.
package ostree
