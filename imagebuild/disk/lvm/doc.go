// Package lvm reads LVM2 physical volumes offline and grows logical volumes on them: without the kernel's
// device-mapper, without root, without LVM's own tools. It knows nothing of partitions or filesystems: a physical
// volume is any io.ReaderAt.
//
// Open finds the volume groups on a set of physical volumes. Segments says where a logical volume's bytes lie.
// GrowPV, GrowVolume and Free work in memory, any number of times and in any order, and what they do shows in Segments
// at once; Write puts all of it on the devices as one new version of the group's metadata.
//
// # Reading
//
// The label is looked for in sectors 0 to 3. Metadata areas may be one, two or none on each physical volume; ignored ones
// are left alone; among all copies on all devices that of the highest sequence number counts, and two different texts of
// one number are an error. The committed text is read; a precommitted one is not. Checksums are checked throughout.
// Bytes from a device are hostile: lengths, places and counts are checked, extents may neither overlap nor lie
// outside of their device, the text is at most 16 MiB.
//
// # What is mapped
//
// Volumes that are linear, in any number of segments, on any of the group's physical volumes. Anything else is refused by
// name with ErrUnsupported: striped, mirror, RAID, thin volumes and pools, snapshots and their origins, cache, writecache,
// VDO, integrity, hidden volumes, volumes on other volumes. So is a whole group (Group.Err) that is exported, clustered or
// shared, or that lacks a physical volume.
//
// # Growing and writing
//
// GrowPV is pvresize: a metadata area at the end of the device moves with the end, and the size that is recorded is, as
// pvresize has it, that of the data area. GrowVolume is lvextend: first what follows the volume's last extent, then the longest free
// runs, those on physical volumes that the volume already uses before others; the allocation policies contiguous
// and cling are kept. It takes no extents on physical volumes that are not allocatable.
//
// Write changes in the text only what the growth changes, the sequence number and the description; order, comments, tags,
// identities and times stay, so that the same input gives the same bytes. The text goes to the next place in the ring of
// every metadata area that is not ignored, and the former one stays readable behind it.
//
// Sources: LVM2's lib/format_text (layout.h, format-text.c), lib/label/label.h, libdm's configuration syntax, and the
// behaviour of lvm 2.03.16.
package lvm
