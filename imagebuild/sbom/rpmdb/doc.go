// Package rpmdb reads the installed packages of an RPM database: sqlite with its write-ahead log (RPM 4.16 and later,
// the default), ndb (SUSE), and Berkeley DB hash files (up to RPM 4.15, RHEL 8).
//
// The database is read in place through an io.ReaderAt, so that it may lie inside a disk image, and it is not trusted:
// every offset, length and count is checked before it is used, no page is read twice as the same thing, and a
// database that cannot be right is an error that matches ErrCorrupt. Memory is a few pages and one package's header,
// of at most MaxHeader bytes. A rollback journal of sqlite is not looked at: RPM uses a write-ahead log.
//
// Sources of the formats: "Database File Format" and "WAL-mode File Format" of sqlite.org; RPM's
// lib/backend/ndb/rpmpkg.c, lib/backend/bdb_ro.cc and lib/header.cc; Berkeley DB's db_page.h.
package rpmdb
