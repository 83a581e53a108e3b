// Package sbom writes the bill of materials of a disk: its operating system, the container images in its stores, and
// the packages in each, as SPDX 2.3 or CycloneDX 1.6 in JSON.
//
// Packages are what the package databases say: dpkg's (also the status.d of distroless images), apk's, RPM's, and the
// modules that Go programs name in themselves. They are read from the disk's files as they lie in the stores, each
// image as it will be seen when its layers are mounted over one another; nothing is unpacked. A layer that several
// images share is read once, and a package that several images hold is one element of the document, with a relation
// to each.
//
// A database that cannot be read makes no error, since the rest is still worth knowing: the document says of that image
// that it is incomplete, and why.
//
// The document depends on the disk alone: its time is given, its namespace or serial number is a UUID (version 5) of its
// content, and all lists are sorted.
package sbom
