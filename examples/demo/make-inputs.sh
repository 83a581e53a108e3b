#!/bin/sh
# Makes the demo's inputs anew: base.qcow2 (a small ext4 disk with an OS's configuration, but no kernel) and
# hello.oci.tar (an image of two layers whose program prints one line). Needs e2fsprogs, gdisk, qemu-utils, go.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export SOURCE_DATE_EPOCH=1735689600 TZ=UTC

mkdir -p "$work/root/etc/containers" "$work/root/usr/lib" "$work/root/var/lib" "$work/root/boot"
cat >"$work/root/usr/lib/os-release" <<'F'
PRETTY_NAME="nodebake demo OS 1"
NAME="nodebake demo OS"
ID=demo
VERSION_ID=1
F
ln -s ../usr/lib/os-release "$work/root/etc/os-release"
printf 'PARTLABEL=root / ext4 defaults 0 1\n' >"$work/root/etc/fstab"
cat >"$work/root/etc/containers/storage.conf" <<'F'
# This file is the configuration of every tool that uses containers/storage:
# CRI-O, podman, buildah, skopeo. See containers-storage.conf(5).

[storage]
driver = "overlay"

# Where containers run from; lost at reboot.
runroot = "/run/containers/storage"

# The read-write store. CRI-O may wipe it after an unclean stop.
graphroot = "/var/lib/containers/storage"

[storage.options]
# Read-only stores, searched in this order.
additionalimagestores = [
]

pull_options = {enable_partial_images = "true", use_hard_links = "false", ostree_repos = ""}

[storage.options.overlay]
mountopt = "nodev,metacopy=on"
F
find "$work/root" -exec touch -h -d @$SOURCE_DATE_EPOCH {} +

start=2048 sectors=$((96 * 2048))
truncate -s $((100 * 1024 * 1024)) "$work/disk.raw"
sgdisk -a 2048 -n 1:$start:$((start + sectors - 1)) -t 1:8304 -c 1:root \
	-u 1:6e6f6465-6261-4b65-8001-000000000001 -U 6e6f6465-6261-4b65-8000-000000000001 "$work/disk.raw" >/dev/null
truncate -s $((sectors * 512)) "$work/root.ext4"
mkfs.ext4 -q -F -L root -U 6e6f6465-6261-4b65-8002-000000000001 -E hash_seed=6e6f6465-6261-4b65-8003-000000000001,root_owner=0:0 \
	-d "$work/root" "$work/root.ext4"
dd if="$work/root.ext4" of="$work/disk.raw" bs=1M seek=1 conv=notrunc,sparse status=none
qemu-img convert -f raw -O qcow2 -c "$work/disk.raw" base.qcow2
go run ./image hello.oci.tar
ls -l base.qcow2 hello.oci.tar
