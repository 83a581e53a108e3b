// Package qcow reads and writes qcow2 disk images (versions 2 and 3) without QEMU.
//
// Open gives a reader of the guest's bytes and an extent map; Create and OpenPatch give a writer; Copy moves a disk from one to the other on
// all cores; Check finds what is wrong with an image. Nothing here opens a path that an image names: backing and data files come through
// Options.Resolve; NewDirResolver makes a resolver that stays inside one folder, and ResolveLocal opens any local file.
//
// An image is hostile input. Every offset, length and count is checked before it is used, tables are capped as QEMU caps them, a compressed
// cluster gives one cluster at most, and memory is bounded whatever the image says.
//
// The format is described in QEMU's docs/interop/qcow2.txt.
package qcow
