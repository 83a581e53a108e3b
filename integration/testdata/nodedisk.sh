#!/bin/bash
# nodedisk.sh ROOTFS.tar OUT-DIR: a bootable disk of the kind that a container host has.
#   GPT: 1 BIOS boot, 2 ESP (FAT32), 3 boot (ext4), 4 root (ext4), root last.
# Writes OUT-DIR/disk.qcow2 and, for a direct boot, OUT-DIR/vmlinuz and OUT-DIR/initrd.
# The disk holds nothing made for tests: systemd starts whatever the kernel's systemd.run= names.
set -euo pipefail
rootfs=$1 out=$2
size=${SIZE:-5G}
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
raw=$work/disk.raw tree=$work/tree
loops=()
tidy() {
  set +e
  mountpoint -q "$tree/boot" && umount "$tree/boot"
  mountpoint -q "$tree" && umount "$tree"
  for l in "${loops[@]}"; do losetup -d "$l"; done
  rm -rf --one-file-system "$work"
}
trap tidy EXIT

truncate -s "$size" "$raw"
sfdisk --quiet "$raw" <<T
label: gpt
label-id: 6E6F6465-6261-6B65-0000-000000000001
start=2048, size=1M, name=bios, type=21686148-6449-6E6F-744E-656564454649
size=64M, name=EFI-SYSTEM, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
size=192M, name=boot, type=BC13C2FF-59E6-4262-A352-B275FD6F7172
name=root, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
T
# A loop device of its own for each partition: nothing here scans partition tables.
attach() {
  local start size
  read -r start size < <(sfdisk --json "$raw" | tr -d '\n ' | grep -o '"start":[0-9]*,"size":[0-9]*' | sed -n "$1p" | sed 's/[^0-9,]//g;s/,/ /')
  losetup -f --show -o $((start * 512)) --sizelimit $((size * 512)) "$raw"
}
bios=$(attach 1); loops+=("$bios")
esp=$(attach 2); loops+=("$esp")
boot=$(attach 3); loops+=("$boot")
root=$(attach 4); loops+=("$root")
# Partitions that a bake must not touch hold bytes that a mistake would change.
seq 1000000 | head -c 1M | dd of="$bios" status=none || true
mkfs.vfat -F 32 -n EFI-SYSTEM "$esp" >/dev/null
mkfs.ext4 -q -L boot -U 6e6f6465-6261-6b65-0000-0000000000b0 "$boot"
mkfs.ext4 -q -L root -U 6e6f6465-6261-6b65-0000-0000000000a0 "$root"
mkdir "$tree"
mount "$root" "$tree"
mkdir "$tree/boot"
mount "$boot" "$tree/boot"
tar -C "$tree" -xpf "$rootfs" --numeric-owner --xattrs --xattrs-include='*'
mkdir -p "$tree/boot/efi" "$tree/etc/containers"
echo node >"$tree/etc/hostname"
echo uninitialized >"$tree/etc/machine-id"
cat >"$tree/etc/fstab" <<T
LABEL=root       /         ext4 defaults 0 1
LABEL=boot       /boot     ext4 defaults,nofail 0 2
LABEL=EFI-SYSTEM /boot/efi vfat defaults,nofail 0 2
T
cat >"$tree/etc/containers/storage.conf" <<T
# The store of this node.
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "/var/lib/containers/storage"

[storage.options]
# Read-only stores, first one first.
additionalimagestores = [
]
T
# Under emulation a device takes its time; nothing here may wait for one that a test does not need.
ln -sf /dev/null "$tree/etc/systemd/system/systemd-udev-settle.service"
for u in apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service e2scrub_all.timer fstrim.timer podman-auto-update.timer; do
  ln -sf /dev/null "$tree/etc/systemd/system/$u"
done
kernel=$(ls "$tree"/boot/vmlinuz-* | sort -V | tail -n 1)
cp "$kernel" "$out/vmlinuz"
cp "$tree/boot/initrd.img-${kernel##*/vmlinuz-}" "$out/initrd"
umount "$tree/boot" "$tree"
for l in "${loops[@]}"; do losetup -d "$l"; done
loops=()
qemu-img convert -f raw -O qcow2 "$raw" "$out/disk.qcow2"
