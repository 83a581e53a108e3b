#!/bin/bash
# rootfs.sh KIND OUT.tar: a Debian root file tree as a tar.
#   node   kernel, systemd, podman and crun: what a container host needs to start
#   base   Debian's essential packages alone: the bottom layer of a container image
set -euo pipefail
kind=$1 out=$2
suite=bookworm
# The mirror of this very machine; tests name no host of their own.
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(CREATED_BY)' | awk '$3=="Packages" && $2 ~ /^(bookworm|stable)$/ {print $1; exit}')
[ -n "$mirror" ] || { echo "apt on this machine knows no mirror with $suite" >&2; exit 1; }

lean=(--mode=root --architectures=amd64 --format=tar --variant=essential
  --aptopt='APT::Install-Recommends "false"'
  --aptopt='Acquire::Languages "none"'
  --dpkgopt='path-exclude=/usr/share/man/*'
  --dpkgopt='path-exclude=/usr/share/doc/*'
  --dpkgopt='path-exclude=/usr/share/info/*'
  --dpkgopt='path-exclude=/usr/share/locale/*')
case $kind in
node)
  # A list of modules keeps the initrd small, which is what costs time under software emulation.
  lean+=(--include=linux-image-cloud-amd64,initramfs-tools,zstd,systemd-sysv,udev,dbus,kmod,podman,crun,netavark,e2fsprogs,procps
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; printf "MODULES=list\nCOMPRESS=zstd\nRESUME=none\nFSTYPE=ext4\n" >"$1/etc/initramfs-tools/conf.d/node"; printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >"$1/etc/initramfs-tools/modules"')
  ;;
base) ;;
*) echo "rootfs.sh: $kind?" >&2; exit 2 ;;
esac
mmdebstrap "${lean[@]}" "$suite" "$out.part" "deb $mirror $suite main"
mv "$out.part" "$out"
