// Package lint asks of a disk whether the node that starts from it will come up with no registry at hand.
//
// Run reads the disk and changes nothing. Each finding has an ID that stays the same from version to version, a
// severity, and says what was found and where, why that matters, and how to mend it:
//
//   - error: a Pod of the node, or an engine, will not start as things are.
//   - warning: it will start, but not for ever, or not in every case.
//   - info: worth knowing; also whatever could not be looked at.
//
// Checks are functions in a table over one read-only view of the disk. One that fails is a finding (NB001) and keeps
// no other from running. What is on the disk is hostile: files are read up to a bound, programs are never run, and of
// several deployments the one that the boot loader starts by default is looked at.
//
// # What is believed
//
// An image is there if a store holds it by the name that will be asked for. Names are compared in full: what has no
// registry is looked for as the engine would, in the disk's unqualified-search-registries, localhost and docker.io.
//
// The Kubernetes version is Options.Kubernetes, or the one that the linker put into kubeadm or kubelet, or that of
// their package. Which CoreDNS, etcd and pause image belongs to a release is in a table made from kubeadm's
// constants; a release that the table does not have, or of which it cannot say, is named and not guessed at.
//
// CRI-O's and podman's faults are those that their issues tell of, by the version of the program or of the storage
// library that it was built with.
package lint
