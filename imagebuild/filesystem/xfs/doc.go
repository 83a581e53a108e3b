// Package xfs reads and writes XFS filesystems offline: without the kernel, without root, without a mount.
//
// Open reads any version 5 filesystem (crc=1): folders and attributes in every form, extents as list and as tree,
// inline and remote symlinks. OpenWriter adds to, replaces in, and removes from one that was cleanly unmounted.
// The filesystem is any io.ReaderAt (and io.WriterAt) that starts with the superblock: a partition of an image, a
// block device, a qcow2 reader. Format makes a new one.
//
// # Writing
//
// A Writer does no surgery on B+trees. When a group is first touched, its free space and inode chunks are read into
// sorted sets. Contents go to the longest free extents, one after another, as they are added; inodes fill chunks of
// 64. Commit lays out every folder that changed, once and whole, and then builds all trees of the touched groups
// anew from the sets, as xfs_repair does: free space by block and by length, inodes, free inodes, owners of blocks,
// shared blocks. Groups that were not touched are not written. Headers, free lists, counters and checksums follow, and
// the superblock last.
//
// Until Commit has returned nil the device holds neither the old filesystem nor the new one, so write to a
// copy-on-write view. The log is not written: the new metadata carries log sequence number 0, which the kernel accepts
// as older than any log.
//
// Check reads a whole filesystem and reports every fault in it; the tests hold it against xfs_repair.
//
// # Rules of Add, Replace and Remove
//
// Names are relative to the root of the filesystem, cut at slashes, and of any bytes; "", "." and "/" are the root;
// inner "." and ".." are errors. No symlink is ever followed. The parent must exist. Add fails with fs.ErrExist if
// the name exists, except that a folder over a folder takes the header's attributes and keeps its entries.
// Header.Mode holds permission bits, 04000, 02000 and 01000; a zero ModTime means Options.Now, a zero AccessTime the
// ModTime; change and creation times are Options.Now. Times beyond what the filesystem can hold are clamped, as the
// kernel does. Extended attributes come from PAXRecords with the prefix "SCHILY.xattr."; the namespaces are user,
// trusted, security, and POSIX ACLs. TypeLink makes a hard link to the file called Linkname. An existing folder that
// gains or loses entries gets Options.Now as its modification time, unless its times were set by Add. Aligned
// stretches of 64 KiB of zeros become holes. New files inherit project, extent size hints and flags from their folder
// as they would from the kernel's.
//
// # Space
//
// What the kernel keeps for itself (per-group reservations, free lists, the reserve pool) is never taken, so that a
// mount and xfs_growfs work afterwards. When space runs out and Options.Grow has no more, the Writer goes on counting, and
// Commit returns a NoSpaceError with the whole need; Options.CountOnly counts from the start.
//
// # Growth
//
// Writer.Grow, and Options.Grow when space runs out, make the filesystem fill a larger device, as xfs_growfs would: the
// last allocation group is extended, new ones follow, the superblock's copies in all groups get the new geometry, and
// a tail shorter than 64 blocks stays unused. The log, UUIDs, label and features stay. All of it is written by
// Commit. A new group costs nothing in memory but a pointer until something is put into it; on the disk it has headers
// and one root for each tree, 24 KiB with blocks of 4 KiB, and what the kernel writes there is the same to the byte.
// The size of a group was fixed by mkfs.xfs, so a small filesystem that grows far comes to many groups: 320 MiB to 2
// TiB are 26,000. The kernel does not mind, but xfs_repair is slow then.
//
// Format makes a new, empty filesystem, of at least MinFormat bytes.
//
// # What is refused
//
// With ErrUnsupported: version 4, realtime devices, external logs (for writing), needsrepair, metadir, zoned, and
// every feature bit that is unknown. With ErrDirtyLog: logs that hold changes, and
// filesystems with unlinked files that were open at a crash. With ErrCorrupt: whatever contradicts itself; input is
// taken to be hostile.
//
// Sources: "XFS Algorithms & Data Structures" (3rd edition), and the headers fs/xfs/libxfs/xfs_format.h and
// xfs_da_format.h of Linux for layouts; the behaviour of Linux 6.18 and xfsprogs 6.1 for the rest.
package xfs
