// Package xfs reads and writes XFS version 5 filesystems offline: no kernel, no root, no mount.
package xfs
