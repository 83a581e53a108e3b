// Package libvirt puts a disk into a storage pool of a libvirt host, as a volume: the bytes of a qcow2 or raw file, over
// the daemon's socket on this host, ssh, TLS or TCP. It needs no virsh, no ssh program and no library of libvirt.
//
// # How a volume comes to be
//
// libvirt has no call that renames a volume, so this is what happens, and what a reader of the pool sees:
//
//  1. A raw volume nodebake-*.part is created (* are 16 random hexadecimal digits), with the owner, mode and label of the volume
//     that is to be replaced. The name that was asked for is untouched, with its old contents if it has any.
//  2. The file is sent to it, but for its first 64 KiB. Holes and zeros are sent as holes. Without its beginning the file is no
//     disk of any format, so nobody takes it for one, libvirt included. Samples are read back and compared.
//  3. As at the beginning: where the volume of the name is in use by a running machine, by one that is suspended to a
//     file, or by an overlay, this is the end (ErrInUse), with --force, too. A machine that is shut off is no hindrance.
//  4. The volume gets its name in one of two ways:
//     by a rename (Result.Swap is "rename"): the 64 KiB are sent, and the file is renamed over the old one, or, without force, to a name that must be
//     free, by rename(2) in one step: a reader sees the old disk or the new one. It is done by this process where it
//     reaches the pool's folder and may write there, or, over ssh, by mv or ln in the user's shell on the host;
//     by a copy ("copy") where neither is possible, as over TLS, and in pools that are not folders: the old volume
//     is deleted, the host makes a raw copy under its name (sharing blocks where the filesystem can), the 64 KiB are sent to it, and the
//     temporary volume is deleted. Until the 64 KiB are there, a reader sees a volume of that name that is no disk. The
//     pool needs room for both.
//  5. The pool is refreshed, and libvirt's word on the volume (size, format, capacity) is compared.
//
// The bytes of the volume are those of the file, so compressed clusters stay compressed.
//
// An error, or the end of the context, deletes what was made, over a new connection that has 15 seconds for it. Where that is
// not possible, or the new disk is in its place already, the error is a LeftError that says so. If it comes after the old
// volume of a copy was deleted, the temporary volume is kept and made whole, and the error names it: the disk is never lost.
// A daemon goes on with a call that was begun, though nobody waits for it.
//
// After a crash of this process or a lost host, nodebake-*.part may be left; `virsh vol-delete` removes it. A crash
// between the rename and the refresh leaves the new disk in place, and libvirt sees it at its next refresh. One in a copy
// may leave a volume of the right name without its first 64 KiB, which --force replaces; the old one is gone then.
//
// # Pools
//
// dir, fs and netfs hold files of both formats. logical holds raw disks: the bytes are sent with their zeros, as a new
// logical volume is not empty; it has whole extents and so may be larger than the disk, and what lies behind the disk's end is not touched. Into pools of the other types (disk, iscsi, scsi, mpath, rbd, gluster, zfs, vstorage) libvirt cannot upload
// a new volume of a given name, or nobody has tested it; they are refused with ErrUnsupported.
//
// # Logging in
//
// Nothing ever asks. Over ssh: the key in keyfile, the agent's keys (SSH_AUTH_SOCK), or ~/.ssh/id_ed25519, id_ecdsa and id_rsa; a key with a
// passphrase only through the agent; the host's key must be in known_hosts; ~/.ssh/config is not read. Over TLS: certificates where libvirt's own clients have
// them, or in pkipath. SASL is not supported, so qemu+tcp reaches only daemons that let everybody in.
package libvirt
