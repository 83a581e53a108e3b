// Package bare takes a disk's contents to machines that boot from a disk of their own: as a plain or compressed raw
// file with its block map and sum, or onto a block device.
//
// # Files
//
// Compress writes the contents as one .zst, .gz or .xz file. Each is made of parts that several goroutines compress,
// put together in order, so that its bytes depend on the contents, the kind and the level alone:
//
//   - .zst: frames of 4 MiB that say how long they are, with checksums (RFC 8878).
//   - .gz: one member whose deflate blocks start anew every 4 MiB, so that readers that know of one member only read
//     it as well (RFC 1952).
//   - .xz: one stream with a block of 8 MiB each, whose sizes its header says, so that xz -T0 unpacks in parallel.
//
// What is a hole in the source is never read, and a part of zeros is compressed once and then repeated, so that the
// time goes with what a disk holds and not with its size. Memory is bounded by Options.Workers.
//
// In the same pass it makes the sum of the file that is written and the block map for bmaptool. Sum does so for a plain
// raw file. Both depend on the contents alone, and not on which zeros the source knows to be holes.
//
// # Devices
//
// CheckDevice says whether a block device can be overwritten, and by what it is used if not; WriteDevice overwrites
// it, and reads it back. Until all else is there and has been read back, the first and the last MiB of the disk, where
// the partition tables are, are kept zero: what was interrupted does not boot as if it were whole.
package bare
