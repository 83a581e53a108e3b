// Package diskdiff says in what two disks differ: the images of their stores, the files outside the stores, the lines
// of their configuration, what they boot, and how they are partitioned.
//
// Files are compared as the running systems would see them: where an ostree disk's default deployment has moved on,
// /usr/bin/podman of the one is compared with /usr/bin/podman of the other, wherever the two lie. Contents are
// compared byte by byte and never judged by size and time. Images are compared by their digests: whether a store's
// files are what the digests promise is another question, which verification answers.
//
// Both trees are walked side by side, a folder at a time, so that memory does not grow with the number of files;
// differences are handed on as they are found, in one order whatever the number of cores.
package diskdiff
