// Package storeseed writes container images as a read-only image store in the layout of
// containers/storage's overlay driver, which Podman, Buildah, Skopeo and CRI-O read when the store's
// path is one of storage.conf's additionalimagestores.
//
// A store goes into anything that meets FS: a folder of the host (Dir), or a filesystem inside a disk
// image. Images come through go.podman.io/image's own copy, so that registries.conf, policy.json, auth
// files and manifest lists work as they do elsewhere. List and Verify read any such store, also one
// that an engine wrote.
//
// # One pass
//
// A layer's bytes are read once: decompressed, hashed against digest and diffID, taken apart for
// tar-split, and written as files, in two goroutines with a few buffers between them. Memory does not
// grow with the bytes of a layer, and by less than 100 bytes with each of its entries. Layers that are
// there already, at the same place in their chain, are not read at all.
//
// # What a layer may hold
//
// What the engine's unpacker takes, with these differences, all of them refusals or repairs:
//
//   - A path that leaves the layer, or passes through a symlink of the same layer, is refused; an
//     absolute name is taken from the layer's root, as the engine does.
//   - A path that comes twice, sparse entries, non-files with content, and trusted.overlay attributes
//     are refused: no engine could rebuild such a layer, or it would change what others see.
//   - A hard link has the attributes of its target, whatever its own entry says.
//   - A folder that is made anew in the layer that hides it is opaque. The engine's unpacker forgets
//     that, and its own check then finds the layer modified.
//   - The root's own entry ("./") counts, as in current engines; Podman 4.3 leaves it out.
//
// # Determinism
//
// The same images in the same order give the same bytes: times are the images' own or Options.Now,
// short names of layers follow from their IDs.
package storeseed
