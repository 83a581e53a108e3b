// Package integration holds nodebake against the tools that own the formats: the kernel's mount,
// e2fsck, qemu-img, podman, buildah, containers/storage's own check, a registry, and a machine that
// starts in QEMU. It has tests only; README.md says which test proves what.
package integration
