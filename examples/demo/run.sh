#!/bin/sh
# The main job on the embedded disks and image. `make demo` builds bin/nodebake first.
set -eu
cd "$(dirname "$0")"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
say() { printf '\n$ %s\n' "$*"; "$@"; }
PATH=$PWD/../../bin:$PATH
say nodebake build --base base.qcow2 --image oci-archive:hello.oci.tar --output "$out/node.qcow2"
say nodebake images "$out/node.qcow2"
say nodebake verify "$out/node.qcow2"
say nodebake cat "$out/node.qcow2:/etc/containers/storage.conf"

printf '\nThe same on a disk with an XFS root and an ostree layout, as OCK has:\n'
say nodebake build --base ostree.qcow2 --image oci-archive:hello.oci.tar --output "$out/ostree.qcow2"
say nodebake images "$out/ostree.qcow2"
say nodebake verify "$out/ostree.qcow2"
say nodebake inspect "$out/ostree.qcow2"
say nodebake cat "$out/ostree.qcow2:/etc/containers/storage.conf"
