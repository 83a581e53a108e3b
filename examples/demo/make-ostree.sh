#!/bin/sh
# Makes ostree.qcow2 anew: a disk laid out as Oracle's OCK is (GPT; ESP, XFS boot, XFS root; an ostree deployment
# with its boot loader entry), small, without a real kernel. Needs root, loop devices, and ostree, xfsprogs, gdisk,
# dosfstools, qemu-utils.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
boot= root=
cleanup() {
	cd /
	for m in "$work/mnt/boot" "$work/mnt"; do mountpoint -q "$m" && umount "$m"; done
	for l in $boot $root; do losetup -d "$l"; done
	rm -rf "$work"
}
trap cleanup EXIT
export SOURCE_DATE_EPOCH=1735689600 TZ=UTC

truncate -s 700M "$work/disk.raw"
sgdisk -a 2048 -U 6e6f6465-6261-4b65-8010-000000000001 \
	-n 1:2048:+16M -t 1:ef00 -c 1:EFI-SYSTEM -u 1:6e6f6465-6261-4b65-8011-000000000001 \
	-n 2:0:+320M -t 2:8300 -c 2:boot -u 2:6e6f6465-6261-4b65-8012-000000000001 \
	-n 3:0:0 -t 3:8304 -c 3:root -u 3:6e6f6465-6261-4b65-8013-000000000001 "$work/disk.raw" >/dev/null
start() { sgdisk -i "$1" "$work/disk.raw" | sed -n 's/^First sector: \([0-9]*\).*/\1/p'; }
end() { sgdisk -i "$1" "$work/disk.raw" | sed -n 's/^Last sector: \([0-9]*\).*/\1/p'; }
loop() { losetup -f --show -o $(($(start "$1") * 512)) --sizelimit $((($(end "$1") - $(start "$1") + 1) * 512)) "$work/disk.raw"; }
boot=$(loop 2) root=$(loop 3)
mkfs.xfs -q -L boot -m uuid=6e6f6465-6261-4b65-8022-000000000001 "$boot"
mkfs.xfs -q -L root -m uuid=6e6f6465-6261-4b65-8023-000000000001 "$root"
mkdir "$work/mnt"
mount "$root" "$work/mnt"
mkdir "$work/mnt/boot"
mount "$boot" "$work/mnt/boot"

tree=$work/tree
mkdir -p "$tree/usr/etc/containers" "$tree/usr/lib/modules/6.12.0-demo" "$tree/usr/bin" "$tree/usr/share" "$tree/boot" "$tree/sysroot" "$tree/var" "$tree/run" \
	"$tree/proc" "$tree/sys" "$tree/dev" "$tree/tmp"
for l in bin lib; do ln -s "usr/$l" "$tree/$l"; done
for l in home srv opt mnt root; do ln -s "var/$l" "$tree/$l"; done
ln -s sysroot/ostree "$tree/ostree"
echo "not a kernel" >"$tree/usr/lib/modules/6.12.0-demo/vmlinuz"
echo "not an initramfs" >"$tree/usr/lib/modules/6.12.0-demo/initramfs.img"
cat >"$tree/usr/lib/os-release" <<'F'
PRETTY_NAME="nodebake demo OS 1 (ostree)"
NAME="nodebake demo OS"
ID=demo
VERSION_ID=1
F
ln -s ../usr/lib/os-release "$tree/usr/etc/os-release"
printf 'LABEL=boot /boot xfs defaults 0 0\n' >"$tree/usr/etc/fstab"
cat >"$tree/usr/etc/containers/storage.conf" <<'F'
# The node image's own configuration of containers/storage. See containers-storage.conf(5).

[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"

[storage.options]
# The images that the OS itself carries.
additionalimagestores = [
"/usr/ock/containers",
]

pull_options = {enable_partial_images = "false", use_hard_links = "false", ostree_repos=""}

[storage.options.overlay]
mountopt = "nodev,metacopy=on"
F
find "$tree" -exec touch -h -d @$SOURCE_DATE_EPOCH {} +
ostree admin init-fs --modern "$work/mnt" 2>/dev/null || ostree admin init-fs "$work/mnt"
ostree admin os-init demo --sysroot="$work/mnt"
ostree --repo="$work/mnt/ostree/repo" commit -b demo/1 --owner-uid=0 --owner-gid=0 --timestamp=@$SOURCE_DATE_EPOCH --no-xattrs "$tree" >/dev/null
ostree admin deploy --sysroot="$work/mnt" --os=demo --karg=root=LABEL=root --karg=rw demo/1 >/dev/null
umount "$work/mnt/boot" "$work/mnt"
qemu-img convert -f raw -O qcow2 -c "$work/disk.raw" ostree.qcow2
ls -l ostree.qcow2
