// Package selinux gives the label that a disk's SELinux policy gives each path, as libselinux's selabel_lookup
// and so setfiles and restorecon would. A file that is written with that label is left alone by a relabel.
//
// Load reads /etc/selinux/config and from /etc/selinux/TYPE/contexts/files the text files file_contexts,
// file_contexts.homedirs, file_contexts.local, file_contexts.subs_dist and file_contexts.subs. The rules are
// those of libselinux's file backend (selabel_file(5), libselinux/src/label_file.c):
//
//   - The specifications of the three files form one list, in that order. Those without a regular expression's
//     metacharacters then move behind all others, each part keeping its order. The last one that matches the
//     path and the file's type wins; "<<none>>" means no label.
//   - A specification is a PCRE pattern between ^ and $, with "." matching every byte. Nothing puts a group around
//     it, so that a "|" outside a group divides the anchors as well.
//   - A pattern whose first component is literal matches no path of a single component. (libselinux 2.9 and older
//     match it without that component; that differs only where a "|" stands outside a group.)
//   - A path is substituted at most once by file_contexts.subs and the result at most once by
//     file_contexts.subs_dist. Of several lines that fit, libselinux up to 3.7 takes the last one of the file,
//     and so does this package; from 3.8 on it takes the first. EquivalentSubs writes what reads the same both ways.
//
// libselinux prefers a compiled file_contexts.bin to the text if it is not older and was made by the same version
// of PCRE. semodule makes both from one source, so they say the same; this package reads the text alone. There
// is no compiled form of the two subs files.
//
// From 3.8 on, libselinux prefers among equal literal specifications the one for the file's type to the one
// for all types, whichever comes last. No policy that we know has such a pair.
//
// PCRE patterns are translated to Go's regexp, which takes linear time whatever the disk says. What has no
// translation (look-around, possessive and atomic groups, back references) is named in Warnings, and a path
// that such a specification could decide gets no label rather than a wrong one.
package selinux
