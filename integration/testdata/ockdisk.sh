#!/bin/bash
# ockdisk.sh ROOTFS.tar OUT-DIR: a disk laid out as Oracle's OCK is.
#   GPT: 1 EFI-SYSTEM (FAT), 2 boot, [3 var,] root last; boot, var and root are XFS.
#   An ostree deployment of the file tree, its loader entry on boot, an enforcing SELinux policy, and on every file
#   the label that setfiles gives it by that policy.
# BOOTFS=ext4 makes boot ext4, VAR=SIZE puts /var on a partition of its own, SIZE is the disk's, POLICY=no leaves the policy out.
# A tree with a kernel gets an initial file system that mounts XFS and starts the deployment; one without gets
# stand-ins. Writes OUT-DIR/disk.qcow2.
set -euo pipefail
rootfs=$1 out=$2
size=${SIZE:-3G} bootfs=${BOOTFS:-xfs} var=${VAR:-} policy=${POLICY:-yes}
os=ock
mkdir -p "$out"
work=$(mktemp -d "$out/work.XXXXXX")
raw=$work/disk.raw mnt=$work/mnt view=$work/view tree=$work/mnt/tree
loops=()
tidy() {
  set +e
  for m in "$view/boot" "$view/var" "$view" "$mnt/ostree/deploy/$os/var" "$tree/proc" "$mnt/boot" "$mnt"; do mountpoint -q "$m" && umount "$m"; done
  for l in "${loops[@]}"; do losetup -d "$l"; done
  rm -rf --one-file-system "$work"
}
trap tidy EXIT
# Times of whatever has none of its own.
export SOURCE_DATE_EPOCH=1735689600 TZ=UTC

truncate -s "$size" "$raw"
{
  echo "label: gpt"
  echo "label-id: 6E6F6465-6261-6B65-0000-000000000003"
  echo "start=2048, size=16M, name=EFI-SYSTEM, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
  echo "size=320M, name=boot, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"
  [ -z "$var" ] || echo "size=$var, name=var, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"
  echo "name=root, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4"
} | sfdisk --quiet "$raw"
# A loop device of its own for each partition: nothing here scans partition tables.
attach() {
  local start size
  read -r start size < <(sfdisk --json "$raw" | tr -d '\n ' | grep -o '"start":[0-9]*,"size":[0-9]*' | sed -n "$1p" | sed 's/[^0-9,]//g;s/,/ /')
  losetup -f --show -o $((start * 512)) --sizelimit $((size * 512)) "$raw"
}
mkxfs() {
  # Debian 12's kernel takes no large extent counters, which newer programs make.
  mkfs.xfs -q -f -i nrext64=0 -L "$1" -m uuid="$2" "$3" 2>/dev/null || mkfs.xfs -q -f -L "$1" -m uuid="$2" "$3"
}
esp=$(attach 1); loops+=("$esp")
boot=$(attach 2); loops+=("$boot")
root=$(attach $((${var:+1} + 3))); loops+=("$root")
mkfs.vfat -n EFI-SYSTEM "$esp" >/dev/null
if [ "$bootfs" = ext4 ]; then
  mkfs.ext4 -q -L boot -U 6e6f6465-6261-6b65-0000-0000000000b3 "$boot"
else
  mkxfs boot 6e6f6465-6261-6b65-0000-0000000000b3 "$boot"
fi
mkxfs root 6e6f6465-6261-6b65-0000-0000000000a3 "$root"
mkdir "$mnt" "$view"
# nouuid: another disk of this maker may be mounted at the same time.
mount -o nouuid "$root" "$mnt"
mkdir "$mnt/boot"
if [ "$bootfs" = ext4 ]; then mount "$boot" "$mnt/boot"; else mount -o nouuid "$boot" "$mnt/boot"; fi

mkdir "$tree"
tar -C "$tree" -xpf "$rootfs" --numeric-owner --xattrs --xattrs-include='*'
mkdir -p "$tree"/{boot,dev,etc/containers,proc,run,sys,sysroot,tmp,usr/lib/modules,usr/etc}
rmdir "$tree/usr/etc"
kernel=$(find "$tree/boot" -name 'vmlinuz-*' | sort -V | tail -n 1)
if [ -n "$kernel" ]; then
  version=${kernel##*/vmlinuz-}
  (cd "$work" && apt-get download -q ostree-boot >/dev/null && dpkg-deb -x ostree-boot_*.deb ostree-boot)
  mkdir -p "$tree/usr/lib/ostree"
  cp "$(find "$work/ostree-boot" -name ostree-prepare-root -type f -perm -1)" "$tree/usr/lib/ostree/"
  echo xfs >>"$tree/etc/initramfs-tools/modules"
  sed -i 's/FSTYPE=.*/FSTYPE=xfs/' "$tree/etc/initramfs-tools/conf.d/node"
  cat >"$tree/etc/initramfs-tools/hooks/ostree" <<'T'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
copy_exec /usr/lib/ostree/ostree-prepare-root
T
  cat >"$tree/etc/initramfs-tools/scripts/local-bottom/ostree" <<'T'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
/usr/lib/ostree/ostree-prepare-root "$rootmnt"
# What ostree's systemd generator does in a system that has it. There is no sed here, nor other programs.
for arg in $(cat /proc/cmdline); do
  case $arg in
  ostree=*)
    os=${arg#ostree=/ostree/boot.*/}
    mount -o bind "$rootmnt/sysroot/ostree/deploy/${os%%/*}/var" "$rootmnt/var"
    ;;
  esac
done
T
  chmod +x "$tree/etc/initramfs-tools/hooks/ostree" "$tree/etc/initramfs-tools/scripts/local-bottom/ostree"
  mount -t proc proc "$tree/proc"
  chroot "$tree" mkinitramfs -o "/usr/lib/modules/$version/initramfs.img" "$version"
  umount "$tree/proc"
  mv "$kernel" "$tree/usr/lib/modules/$version/vmlinuz"
else
  mkdir -p "$tree/usr/lib/modules/6.12.0-ock"
  echo "not a kernel" >"$tree/usr/lib/modules/6.12.0-ock/vmlinuz"
  echo "not an initial file system" >"$tree/usr/lib/modules/6.12.0-ock/initramfs.img"
fi
rm -rf "$tree"/{boot,dev,proc,run,sys}/*
# /var and what leads to it is the machine's own, not the OS's.
mkdir -p "$tree/var"
mv "$tree/var" "$work/var"
mkdir -p "$tree/var" "$work"/var/{home,roothome,opt,srv,mnt,lib,log,tmp}
chmod 0700 "$work/var/roothome"
chmod 1777 "$work/var/tmp" "$tree/tmp"
for l in home srv opt mnt; do rm -rf "${tree:?}/$l"; ln -s "var/$l" "$tree/$l"; done
rm -rf "$tree/root" "$tree/ostree"
ln -s var/roothome "$tree/root"
ln -s sysroot/ostree "$tree/ostree"
# The OS's own read-only store, empty.
mkdir -p "$tree"/usr/ock/containers/{overlay,overlay-images,overlay-layers}
touch "$tree/usr/ock/containers/overlay-images/images.lock" "$tree/usr/ock/containers/overlay-layers/layers.lock"

echo ock >"$tree/etc/hostname"
echo uninitialized >"$tree/etc/machine-id"
cat >"$tree/etc/fstab" <<T
LABEL=root       /         xfs  defaults 0 0
LABEL=boot       /boot     $bootfs defaults,nofail 0 0
LABEL=EFI-SYSTEM /boot/efi vfat defaults,nofail,umask=0077 0 0
T
[ -z "$var" ] || echo "LABEL=var /var xfs defaults 0 0" >>"$tree/etc/fstab"
cat >"$tree/etc/containers/storage.conf" <<'T'
# This file is the configuration file for all tools
# that use the containers/storage library. The storage.conf file
# overrides all other storage.conf files.
# See man 5 containers-storage.conf for more information

# The "storage" table contains all of the server options.
[storage]

# Default storage driver, must be set for proper operation.
driver = "overlay"

# Temporary storage location
runroot = "/run/containers/storage"

# Primary read/write location of container storage
# When changing the graphroot location on an SELINUX system, you must
# ensure the labeling matches the default location's labels.
graphroot = "/var/lib/containers/storage"

# Storage path for rootless users
#
# rootless_storage_path = "$HOME/.local/share/containers/storage"

[storage.options]
# Storage options to be passed to underlying storage drivers

# AdditionalImageStores is used to pass paths to additional Read/Only image stores
# Must be comma separated list.
additionalimagestores = [
"/usr/ock/containers",
]

# Options controlling how storage is populated when pulling images.
pull_options = {enable_partial_images = "false", use_hard_links = "false", ostree_repos=""}

# Remap-UIDs/GIDs is the mapping from UIDs/GIDs as they should appear inside of
# a container, to the UIDs/GIDs as they should appear outside of the container.
#
# remap-uids = 0:1668442479:65536
# remap-gids = 0:1668442479:65536

[storage.options.overlay]
# mountopt specifies comma separated list of extra mount options
mountopt = "nodev,metacopy=on"

# Size is used to set a maximum size of the container image.
# size = ""
T
# Under emulation a device takes its time; nothing here may wait for one that a test does not need.
if [ -n "$kernel" ]; then
  for u in systemd-udev-settle.service apt-daily.timer apt-daily-upgrade.timer e2scrub_reap.service e2scrub_all.timer fstrim.timer podman-auto-update.timer; do
    ln -sf /dev/null "$tree/etc/systemd/system/$u"
  done
fi
# setfiles ROOT NAME...: -m, or it passes over every mount of a kernel without SELinux.
relabel() {
  local at=$1
  shift
  [ "$policy" = no ] || setfiles -F -m -r "$at" "$at/etc/selinux/default/contexts/files/file_contexts" "${@/#/$at}"
}
if [ "$policy" != no ]; then
  cp -a /etc/selinux "$tree/etc/"
  rm -f "$tree"/etc/selinux/default/contexts/files/file_contexts*.subs "$tree"/etc/selinux/default/contexts/files/file_contexts.local*
  # What container-selinux says of the engine's store, which Debian's policy leaves out.
  cat >"$tree/etc/selinux/default/contexts/files/file_contexts.local" <<'T'
/var/lib/containers(/.*)?	system_u:object_r:container_var_lib_t:s0
/var/lib/containers/storage/overlay(/.*)?	system_u:object_r:container_ro_file_t:s0
/var/lib/containers/storage/overlay-images(/.*)?	system_u:object_r:container_ro_file_t:s0
/var/lib/containers/storage/overlay-layers(/.*)?	system_u:object_r:container_ro_file_t:s0
T
  printf 'SELINUX=enforcing\nSELINUXTYPE=default\nSETLOCALDEFS=0\n' >"$tree/etc/selinux/config"
fi
# A commit holds its files' labels, so they are set before it.
relabel "$tree" ""
mv "$tree/etc" "$tree/usr/etc"

ostree admin init-fs --modern "$mnt" 2>/dev/null || ostree admin init-fs "$mnt"
ostree admin os-init "$os" --sysroot="$mnt"
ostree --repo="$mnt/ostree/repo" commit -b "$os/1" --consume --timestamp="@$SOURCE_DATE_EPOCH" "$tree" >/dev/null
rm -rf "$tree"
stateroot=$mnt/ostree/deploy/$os
if [ -n "$var" ]; then
  varloop=$(attach 3); loops+=("$varloop")
  mkxfs var 6e6f6465-6261-6b65-0000-0000000000c3 "$varloop"
  mount -o nouuid "$varloop" "$stateroot/var"
fi
cp -a "$work/var/." "$stateroot/var/"
ostree admin deploy --sysroot="$mnt" --os="$os" --karg=root=LABEL=root --karg=rw "$os/1" >/dev/null
deployment=$(echo "$stateroot"/deploy/*.0)
mount --bind "$deployment" "$view"
mount --bind "$stateroot/var" "$view/var"
mount --bind "$mnt/boot" "$view/boot"
relabel "$view" /etc /var /boot
umount "$view/boot" "$view/var" "$view"
[ -z "$var" ] || umount "$stateroot/var"
umount "$mnt/boot" "$mnt"
for l in "${loops[@]}"; do losetup -d "$l"; done
loops=()
qemu-img convert -f raw -O qcow2 -c -m 4 -W "$raw" "$out/disk.qcow2"
