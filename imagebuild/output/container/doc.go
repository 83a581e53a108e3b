// Package container puts a disk into a container image, and takes one out of it: what OCNE calls a boot volume
// container image and KubeVirt a containerDisk.
//
// Such an image has one layer with one file, by default disk/boot.qcow2, owned by 107:107 (qemu in the images that
// read it), mode 0644. What its readers ask for decides how it is written:
//
//   - ocne takes the first layer, always through gzip, and looks for an entry whose name is exactly
//     disk/boot.qcow2 (pkg/image of github.com/oracle-cne/ocne). A layer that is a plain tar fails there. So a layer
//     is a gzip stream, by default one of stored blocks: a qcow2 may be compressed by its own clusters already, and
//     then another compressor costs time and gains nothing. Options.Level compresses, for raw disks and plain qcow2.
//   - KubeVirt's containerDisk is run as a container and wants exactly one entry in /disk, unless its path is given.
//     Container engines and CDI's importer take gzip and plain layers alike.
//   - A docker-archive has plain layers, whoever reads it, so ocne can use one only through another program.
//
// Manifest and config are OCI's; podman, skopeo and umoci are tested with them. A docker-archive has Docker's
// manifest.json. One input makes the same bytes whenever and wherever: no clock, no map order, and compression in
// blocks of a fixed size.
package container
