package rpmdb

import (
	"errors"
	"fmt"
	"io"
	"iter"
)

var (
	// ErrCorrupt says that a database contradicts itself or its format.
	ErrCorrupt = errors.New("corrupt RPM database")
	// ErrFormat says that a file is no RPM database of a kind that is read here.
	ErrFormat = errors.New("not an RPM database")
)

// MaxHeader bounds one package's header in bytes. The largest known are of some megabytes: packages with a hundred
// thousand files.
const MaxHeader = 32 << 20

// Package is what the database says of an installed package. What it does not say is empty; what it says as "(none)"
// too.
type Package struct {
	Name, Version, Release string
	// Epoch is a decimal number, or empty.
	Epoch string
	// Arch is empty for a public key, which RPM keeps as the package "gpg-pubkey".
	Arch string
	// SourceRPM is the file name of the source package.
	SourceRPM            string
	License, Vendor, URL string
	ModularityLabel      string
}

// DB is an open database. It is not safe for concurrent use.
type DB struct {
	// Format is "sqlite", "ndb" or "bdb".
	Format string
	blobs  func(yield func([]byte, error) bool)
}

// Open reads the beginning of a database's main file: rpmdb.sqlite, Packages.db (ndb) or Packages (bdb). The format is
// told by the content. wal is the file beside it with "-wal" at the end of its name, nil where there is none; it
// counts for sqlite alone. A file of another kind is ErrFormat.
func Open(file, wal *io.SectionReader) (*DB, error) {
	head := make([]byte, 512)
	n, err := file.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	head = head[:n]
	switch {
	case isSqlite(head):
		return openSqlite(file, wal, head)
	case isNDB(head):
		return openNDB(file, head)
	case isBDB(head):
		return openBDB(file, head)
	}
	return nil, ErrFormat
}

// Packages gives the packages in the order in which they lie in the file. An error ends it.
func (db *DB) Packages() iter.Seq2[Package, error] {
	return func(yield func(Package, error) bool) {
		n := 0
		db.blobs(func(blob []byte, err error) bool {
			n++
			var p Package
			if err == nil {
				if p, err = parseHeader(blob); err != nil {
					err = fmt.Errorf("package %d: %w", n, err)
				}
			}
			if err != nil {
				yield(Package{}, err)
				return false
			}
			return yield(p, nil)
		})
	}
}

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// readAt fills buf from off, which must lie in the file.
func readAt(r *io.SectionReader, buf []byte, off int64) error {
	if off < 0 || off > r.Size()-int64(len(buf)) {
		return corrupt("%d bytes at offset %d are past the end of the file (%d bytes)", len(buf), off, r.Size())
	}
	if _, err := io.ReadFull(io.NewSectionReader(r, off, int64(len(buf))), buf); err != nil {
		return fmt.Errorf("reading the RPM database: %w", err)
	}
	return nil
}

// grow gives a buffer of n bytes, buf where that is large enough.
func grow(buf []byte, n int) []byte {
	if cap(buf) < n {
		return make([]byte, n)
	}
	return buf[:n]
}
