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
// # Fetching
//
// Open, or OpenAll, reads manifests, configs and signatures, and refuses what is no image, is for another
// platform, or is not let in by the policy: before anything is written. Store.Prefetch then fetches the layers of
// all opened images ahead of the writing, a bounded number at a time, and Store.PullOpened reads them while they
// arrive; it does so for its own image where no one else has. Only images of registries are fetched ahead: other
// sources are here already and are read in place. What is on its way lies in the cache, or in files without a name,
// never in memory, and is bounded: see PrefetchOptions. One goroutine writes, in order, so that the bytes written
// do not depend on the number of fetches.
//
// A connection that breaks, or that brings nothing for a minute, is made again after a pause and gone on with where
// it was, by a Range request or, where the registry knows none, by skipping what is there. PullOptions.Retries
// counts failures in a row; answers that would be the same again are final at once. A foreign layer comes from its
// URLs, as with podman, and from the registry where none of them is one that can be asked.
//
// # The cache
//
// PullOptions.Cache keeps manifests, configs, layers and signatures of registries' images (see package blobcache)
// and answers for them, so that a second bake of a list makes no request at all. That includes tags: what a tag
// stood for when an image was last let in is believed, however long ago, and said in the log; Refresh asks the
// registry. If what the cache says leads to a refusal, the registry is asked once before it stands. Policies are
// kept to with the cached signatures, and what registries.conf blocks does not come from the cache either. With
// Offline no request is ever made, and what is missing is ErrNotCached, by name.
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
