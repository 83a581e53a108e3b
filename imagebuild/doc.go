// Package imagebuild bakes node disks: a base disk and container images go in, a disk whose root filesystem
// carries the images in a read-only store goes out.
//
// A bake works on a private copy of the base and gives it its name as the last act. The flow has one
// direction: references are pulled by storeseed, which hands file records to the filesystem writer, which
// hands blocks to the image being made.
package imagebuild
