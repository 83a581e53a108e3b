// Package storageconf points the configuration of container engines at an
// additional (read-only) image store: it edits storage.conf and, where an old
// CRI-O needs it, crio.conf. An edit is one insertion; every other byte of the
// file (comments, order, spacing, CRLF, a missing final newline) stays.
//
// [AddStore] edits one file, [Stores] says what one file says, [Load] says what
// an operating system's tree says, and [Plan] turns that into the list of files
// to write. Nothing here writes to a filesystem except [Edits.Apply]. All
// functions may be called concurrently, if the given Reader can be.
//
// # Which engine reads what
//
// podman, buildah, skopeo and CRI-O all read storage.conf with the library
// containers/storage (go.podman.io/storage since 1.60). As root:
//
//   - Up to 1.62 (podman 4.3.1 has 1.43, podman 5.8 has 1.62, CRI-O 1.34 has
//     1.58): /etc/containers/storage.conf alone; if it does not exist,
//     /usr/share/containers/storage.conf alone. Nothing is merged and there are
//     no drop-ins. $CONTAINERS_STORAGE_CONF replaces both.
//   - From 1.63 (podman 6): the same choice of one main file, then the drop-ins
//     *.conf of storage.conf.d and storage.rootful.conf.d in /etc/containers and
//     /usr/share/containers, in the order of their names. One name is read once:
//     /etc before /usr/share, storage.rootful.conf.d before storage.conf.d. A key
//     replaces what earlier files said; a list that holds {append = true} is
//     appended, and so are the lists of the files after it.
//     $CONTAINERS_STORAGE_CONF turns the drop-ins off too.
//
// So the main file is always made right, and a drop-in that would replace the
// list is made right as well. The files of single users (~/.config/containers,
// storage.rootless.conf.d) are not looked at; if root has such files, which win
// from 1.63 on, [Plan] warns.
//
// The library turns each store into a graph driver option: "overlay.imagestore=S"
// (the driver's name as the file spells it) up to 1.62, "imagestore=S" from 1.63.
// The overlay driver accepts imagestore and additionalimagestore, each with the
// prefix "overlay." or "overlay2." or none, and splits the value at commas. The
// vfs driver accepts the option but looks for vfs-images, so it finds nothing in
// an overlay store. The btrfs and zfs drivers fail on it ("unknown option"): with
// them the whole engine stops, so [Plan] refuses.
//
// # CRI-O
//
// CRI-O reads storage.conf as above, then /etc/crio/crio.conf, then every file
// below /etc/crio/crio.conf.d (subfolders too, whatever the ending) in lexical
// order; it reads nothing of the sort below /usr. Its storage_option is added to
// the options from storage.conf, equal strings once, since CRI-O 1.23, which has
// containers/storage 1.37 (seen in the sources of 1.23.0, of 1.34.0 and of 2026;
// late 1.20 releases have it too). Older ones replace: the last file that sets
// storage_option wins, and the stores of storage.conf are lost, even by an empty
// list. [Load] reads the library's version from the build information of the
// crio binary. If it is 1.37 or later, crio.conf stays as it is; otherwise, or if
// the binary does not say, [Plan] puts "overlay.imagestore=S" into the winning
// list. (Should that CRI-O be one that adds, and with another spelling, an image
// is listed twice; it runs all the same.)
//
// Options on the command line of an engine, in its systemd unit or in
// /etc/sysconfig are not looked at.
package storageconf
