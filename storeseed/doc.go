// Package storeseed writes container images as a read-only image store in the layout of
// containers/storage's overlay driver, which Podman, Buildah, Skopeo and CRI-O read when the store's
// path is one of storage.conf's additionalimagestores.
//
// A store goes into anything that meets FS: a folder of the host (Dir), or a filesystem inside a disk
// image. Images come through go.podman.io/image's own copy, so that registries.conf, policy.json, auth
// files and manifest lists work as they do elsewhere.
package storeseed
