package blobcache

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

type item struct {
	name string // relative to the folder
	size int64
	used int64 // Unix nanoseconds
}

// bound prunes if the cache has grown past its size.
func (c *Cache) bound() error {
	if c.o.MaxSize == 0 {
		return nil
	}
	_, total, err := c.items()
	if err != nil || total <= c.o.MaxSize {
		return err
	}
	return c.Prune(c.o.MaxSize)
}

// Size is how many bytes the cache's files have.
func (c *Cache) Size() (int64, error) {
	_, total, err := c.items()
	return total, err
}

// Prune takes away what was not used for the longest time until at most size bytes are left (0 is no bound), but
// nothing that any process has pinned or is fetching. It also forgets processes that have died.
func (c *Cache) Prune(size int64) error {
	err := c.locked(unix.LOCK_EX, func() error {
		pinned, err := c.pinned()
		if err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
		items, total, err := c.items()
		if err != nil {
			return err
		}
		slices.SortFunc(items, func(a, b item) int {
			if a.used != b.used {
				if a.used < b.used {
					return -1
				}
				return 1
			}
			return strings.Compare(a.name, b.name)
		})
		gone := false
		for _, i := range items {
			if total <= size {
				break
			}
			if pinned[i.name] {
				continue
			}
			ok, err := c.drop(i.name)
			if err != nil {
				return err
			}
			if ok {
				total -= i.size
				gone = true
			}
		}
		if !gone {
			return nil
		}
		index := c.index()
		n := len(index.Manifests)
		index.Manifests = slices.DeleteFunc(index.Manifests, func(d imgspecv1.Descriptor) bool { return !c.Has(d.Digest) })
		if len(index.Manifests) == n {
			return nil
		}
		return c.writeIndex(index)
	})
	if err != nil {
		return fmt.Errorf("pruning the cache %s: %w", c.o.Dir, err)
	}
	return nil
}

// drop takes a file away unless it is one that someone is fetching.
func (c *Cache) drop(name string) (bool, error) {
	if filepath.Dir(name) == partialDir {
		f, err := os.Open(c.path(name))
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer f.Close()
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		} else if err != nil {
			return false, err
		}
		// It may have become a blob in the meantime.
		if same, err := sameFile(f, c.path(name)); err != nil || !same {
			return false, err
		}
	}
	err := os.Remove(c.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err == nil, err
}

// items lists what Prune may take away.
func (c *Cache) items() ([]item, int64, error) {
	var out []item
	var total int64
	for _, d := range []string{blobsDir, partialDir, notesDir} {
		list, err := os.ReadDir(c.path(d))
		if err != nil {
			return nil, 0, err
		}
		for _, e := range list {
			fi, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, 0, err
			}
			if !fi.Mode().IsRegular() {
				continue
			}
			out = append(out, item{d + "/" + e.Name(), fi.Size(), fi.ModTime().UnixNano()})
			total += fi.Size()
		}
	}
	return out, total, nil
}

// pinned reads what the living have pinned and takes the files of the dead away. The lock must be held
// exclusively.
func (c *Cache) pinned() (map[string]bool, error) {
	list, err := os.ReadDir(c.path(usersDir))
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, e := range list {
		if err := c.readUser(c.path(usersDir+"/"+e.Name()), out); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return out, nil
}

func (c *Cache) readUser(name string, pinned map[string]bool) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	err = flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return os.Remove(name)
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	one := map[string]bool{}
	in := bufio.NewScanner(f)
	for in.Scan() {
		switch l := in.Text(); {
		case strings.HasPrefix(l, "+"):
			one[l[1:]] = true
		case strings.HasPrefix(l, "-"):
			delete(one, l[1:])
		}
	}
	if err := in.Err(); err != nil {
		return err
	}
	for n := range one {
		pinned[n] = true
	}
	return nil
}

// Blobs lists the digests of all blobs that are there.
func (c *Cache) Blobs() ([]digest.Digest, error) {
	list, err := os.ReadDir(c.path(blobsDir))
	if err != nil {
		return nil, err
	}
	var out []digest.Digest
	for _, e := range list {
		if d := digest.NewDigestFromEncoded(digest.SHA256, e.Name()); d.Validate() == nil {
			out = append(out, d)
		}
	}
	return out, nil
}
