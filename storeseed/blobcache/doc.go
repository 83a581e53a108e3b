// Package blobcache keeps blobs of container images in a folder, by digest, for several processes at once.
//
// The folder is an OCI image layout, so that other tools can read it:
//
//	oci-layout, index.json        the layout; index.json says what each reference stood for
//	blobs/sha256/HEX              blobs: manifests, configs, layers
//	nodebake/lock                 held shared to pin, exclusively to prune or to change index.json
//	nodebake/users/NAME           one for each open Cache, held exclusively; what it has pinned
//	nodebake/partial/HEX          blobs on their way; held exclusively by the one who fetches
//	nodebake/notes/HEX            small things that are known about blobs, such as signatures
//
// All locks are flock(2), which the kernel lets go when a process dies, however it dies. Files appear by
// rename, so that no reader sees half of one. Nothing is synced: a blob is believed only once its content has
// been hashed by this process, and one that does not hash to its name is taken away as if it had never been
// there. Half a blob that a killed process left is gone on with.
//
// Whoever may write into the folder decides what a tag in index.json stands for; blobs, in contrast, vouch for
// themselves. A folder that Open makes is its user's alone.
package blobcache
