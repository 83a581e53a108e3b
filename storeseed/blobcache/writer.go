package blobcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// ErrDigest is content that does not hash to the digest it was fetched for.
var ErrDigest = errors.New("digest does not match")

const (
	// pollDelay is how often a blob that another process fetches is looked at.
	pollDelay = 100 * time.Millisecond
	// patience is how long the other one may make no progress.
	patience = 30 * time.Second
)

// Writer is a blob on its way into the cache. It is for one goroutine, except that ReadAt may be called by
// others up to Offset.
type Writer struct {
	c *Cache
	d digest.Digest
	f *os.File
	h hash.Hash
	n int64
	// moved says that the file has its name no more.
	moved bool
}

// Create begins a blob of size bytes (-1 if that is unknown). While another process fetches it, Create waits for
// that one; a blob that has then arrived is fs.ErrExist. The writer of a blob of which a killed process left a
// part has an Offset that is not 0; that part is not checked before Commit.
func (c *Cache) Create(ctx context.Context, d digest.Digest, size int64) (*Writer, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	part := c.path(partialDir + "/" + d.Encoded())
	var seen int64 = -1
	var since time.Time
	for {
		f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, fileMode(c.o.Dir))
		if err != nil {
			return nil, err
		}
		err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			switch same, err := sameFile(f, part); {
			case err != nil:
				f.Close()
				return nil, err
			case !same:
				f.Close()
				continue
			}
			if _, err := os.Lstat(c.path(name)); err == nil {
				os.Remove(part)
				f.Close()
				return nil, fmt.Errorf("%s: %w", d, fs.ErrExist)
			}
			return c.begin(ctx, d, f, size)
		}
		fi, serr := f.Stat()
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		if serr != nil {
			return nil, serr
		}
		if now := time.Now(); fi.Size() != seen {
			seen, since = fi.Size(), now
		} else if now.Sub(since) > patience {
			// It hangs: fetch the blob without it.
			var w *Writer
			err := c.locked(unix.LOCK_SH, func() error {
				w, err = c.createOwn(d)
				return err
			})
			return w, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pollDelay):
		}
		if c.Has(d) {
			return nil, fmt.Errorf("%s: %w", d, fs.ErrExist)
		}
	}
}

// createOwn begins a blob in a file of its own. The lock must be held: see write.
func (c *Cache) createOwn(d digest.Digest) (*Writer, error) {
	f, err := os.CreateTemp(c.path(partialDir), d.Encoded()+".")
	if err != nil {
		return nil, err
	}
	w := &Writer{c: c, d: d, f: f, h: sha256.New()}
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		w.Discard()
		return nil, err
	}
	if err := f.Chmod(fileMode(c.o.Dir)); err != nil {
		w.Discard()
		return nil, err
	}
	return w, nil
}

func (c *Cache) begin(ctx context.Context, d digest.Digest, f *os.File, size int64) (*Writer, error) {
	w := &Writer{c: c, d: d, f: f, h: sha256.New()}
	fi, err := f.Stat()
	if err != nil {
		w.Close()
		return nil, err
	}
	if size >= 0 && fi.Size() > size {
		// It is none that could be gone on with.
		if err := f.Truncate(0); err != nil {
			w.Close()
			return nil, err
		}
		return w, nil
	}
	if w.n, err = copyContext(ctx, w.h, f); err != nil {
		w.Close()
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	return w, nil
}

func sameFile(f *os.File, name string) (bool, error) {
	a, err := f.Stat()
	if err != nil {
		return false, err
	}
	b, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(a, b), err
}

// Offset is how many bytes there are.
func (w *Writer) Offset() int64 { return w.n }

// Write appends.
func (w *Writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.h.Write(p[:n])
	w.n += int64(n)
	return n, err
}

// ReadAt reads what was written; it works after Commit too, until Close.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Commit puts the blob into the cache. Content with another digest is ErrDigest, and no one finds it again.
func (w *Writer) Commit() error {
	if got := hex.EncodeToString(w.h.Sum(nil)); got != w.d.Encoded() {
		err := fmt.Errorf("%d bytes that were fetched as %s hash to sha256:%s: %w", w.n, w.d, got, ErrDigest)
		return errors.Join(err, w.forget())
	}
	name, err := blobName(w.d)
	if err != nil {
		return err
	}
	fi, err := w.f.Stat()
	if err != nil {
		return err
	}
	if err := os.Rename(w.f.Name(), w.c.path(name)); err != nil {
		return err
	}
	w.moved = true
	w.c.believe(w.d, identify(fi))
	if err := flock(w.f, unix.LOCK_UN); err != nil {
		return err
	}
	return w.c.bound()
}

// Close lets go of the blob. One that was not committed is kept for the next who wants it.
func (w *Writer) Close() error { return w.f.Close() }

// Discard is Close that leaves nothing of a blob that was not committed.
func (w *Writer) Discard() error { return errors.Join(w.forget(), w.f.Close()) }

func (w *Writer) forget() error {
	if w.moved {
		return nil
	}
	w.moved = true
	return os.Remove(w.f.Name())
}
