// Package ext4 reads and writes ext2, ext3 and ext4 filesystems without mounting them.
//
// [Open] gives a read-only [FS] over any [io.ReaderAt]; [OpenWriter] gives a [Writer] that adds, replaces and
// removes files of an existing filesystem. Nothing is ever made anew that exists: the superblock, the group
// descriptors and old inodes are patched in place, and every byte that has no reason to change stays.
//
// The Writer bulk-loads. File data goes out in long sequential runs while it is read, inodes are put into the
// inode tables as they are made, and folders, bitmaps, group descriptors and the superblock are written by
// [Writer.Commit], each once. Until Commit returns nil the filesystem on the device is not consistent: a caller
// works on a copy (or a copy-on-write view) and throws it away when anything fails.
//
// A filesystem can grow while it is written, by [Writer.Grow] or, when space runs out, through Options.Grow: the last
// group is extended and new ones are added, laid out as the kernel does it when it grows a mounted filesystem.
// Descriptors go where resize_inode keeps room for them, and after that into the new groups (meta_bg). Commit then
// also writes all copies of the superblock and the descriptors. New inode tables are left to the kernel, which clears
// them after the first writable mount, unless the filesystem lacks the descriptor checksums that this needs.
// [Format] makes a new filesystem.
//
// The on-disk format is the one described by the kernel's Documentation/filesystems/ext4 and fs/ext4/ext4.h;
// all integers are little-endian. Every length, offset and count read from the device is checked before it is
// used, and checksums (metadata_csum, uninit_bg) are verified wherever they are met.
//
// Written: extents and (where the filesystem has no extents) indirect maps, linear and hashed folders,
// attributes in the inode and in one attribute block, all file types, 1 to 64 KiB blocks.
//
// Read, but not written: bigalloc, filesystems with quota (their accounting would go stale), shared_blocks, the
// value inodes of ea_inode. Inline data is read; an inline folder that changes becomes an ordinary one. Refused
// altogether: a journal that must be replayed, journal devices, compression. Encrypted and case-folding folders
// are refused where they would be changed; the rest of such a filesystem is writable.
//
// Blocks that the superblock reserves for root stay free, as they would for anybody but root.
package ext4
