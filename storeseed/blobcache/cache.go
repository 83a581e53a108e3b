package blobcache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspec "github.com/opencontainers/image-spec/specs-go"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

const (
	blobsDir   = "blobs/sha256"
	ownDir     = "nodebake"
	lockFile   = "nodebake/lock"
	usersDir   = "nodebake/users"
	partialDir = "nodebake/partial"
	notesDir   = "nodebake/notes"

	// resolvedAnnotation says when a reference was last found to stand for its digest, in RFC 3339.
	resolvedAnnotation = "io.github.nodebake.resolved"

	maxIndex = 64 << 20
	maxNote  = 16 << 20
)

// Options say where a cache is and how much it may hold.
type Options struct {
	// Dir is the folder; it is made, 0700, if it is not there.
	Dir string
	// MaxSize is how many bytes the files in Dir may have in all; 0 is no bound. What is pinned stays even if it is
	// more.
	MaxSize int64
	// Warn, if set, is told of damage that was repaired.
	Warn func(format string, args ...any)
}

// Cache is an open cache folder. All methods are safe for concurrent use.
type Cache struct {
	o    Options
	user *os.File

	mu       sync.Mutex
	pins     map[string]int
	verified map[digest.Digest]identity
	closed   bool
}

// identity tells a file that was hashed already from another one of the same name.
type identity struct {
	ino  uint64
	size int64
}

// Open opens the cache in o.Dir, or makes an empty one. The caller closes it.
func Open(o Options) (*Cache, error) {
	if o.Dir == "" {
		return nil, errors.New("the cache has no folder")
	}
	if o.MaxSize < 0 {
		return nil, fmt.Errorf("the cache's size is %d bytes", o.MaxSize)
	}
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	c := &Cache{o: o, pins: map[string]int{}, verified: map[digest.Digest]identity{}}
	if err := c.init(); err != nil {
		return nil, fmt.Errorf("cache %s: %w", o.Dir, err)
	}
	return c, nil
}

func (c *Cache) init() error {
	if err := os.MkdirAll(c.o.Dir, 0o700); err != nil {
		return err
	}
	for _, d := range []string{blobsDir, usersDir, partialDir, notesDir} {
		if err := os.MkdirAll(c.path(d), 0o777); err != nil {
			return err
		}
	}
	err := c.locked(unix.LOCK_EX, func() error {
		if _, err := os.Stat(c.path(imgspecv1.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
			if err := c.write(imgspecv1.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+imgspecv1.ImageLayoutVersion+`"}`)); err != nil {
				return err
			}
		}
		if _, err := os.Stat(c.path(imgspecv1.ImageIndexFile)); errors.Is(err, fs.ErrNotExist) {
			return c.writeIndex(&imgspecv1.Index{})
		}
		return nil
	})
	if err != nil {
		return err
	}
	// Under the lock, so that no one takes a file whose owner has not locked it yet for a dead one's.
	return c.locked(unix.LOCK_SH, func() error {
		f, err := os.CreateTemp(c.path(usersDir), "")
		if err != nil {
			return err
		}
		if err = flock(f, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			err = f.Chmod(fileMode(c.o.Dir))
		}
		if err != nil {
			f.Close()
			return err
		}
		c.user = f
		return nil
	})
}

// MaxSize is the bound that the cache was opened with; 0 is none.
func (c *Cache) MaxSize() int64 { return c.o.MaxSize }

// Close lets go of all pins and brings the cache below its size. It may be called more than once.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	os.Remove(c.user.Name())
	c.user.Close()
	return c.Prune(c.o.MaxSize)
}

func (c *Cache) path(name string) string { return filepath.Join(c.o.Dir, name) }

func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", err
	}
	if d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("%s: only sha256 digests can be cached", d)
	}
	return blobsDir + "/" + d.Encoded(), nil
}

// Pin keeps blobs, those that are there and those to come, from being pruned until as many calls of Unpin, or
// until Close or the end of the process.
func (c *Cache) Pin(digests ...digest.Digest) error {
	var names []string
	for _, d := range digests {
		n, err := blobName(d)
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	return c.locked(unix.LOCK_SH, func() error { return c.count(names, 1) })
}

// Unpin takes back Pin.
func (c *Cache) Unpin(digests ...digest.Digest) error {
	var names []string
	for _, d := range digests {
		n, err := blobName(d)
		if err != nil {
			return err
		}
		names = append(names, n)
	}
	return c.count(names, -1)
}

// count writes into this user's file which names are pinned from now on and which no longer.
func (c *Cache) count(names []string, by int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return errors.New("the cache is closed")
	}
	var log strings.Builder
	for _, n := range names {
		before := c.pins[n]
		after := max(before+by, 0)
		switch {
		case before == 0 && after > 0:
			log.WriteString("+" + n + "\n")
		case before > 0 && after == 0:
			log.WriteString("-" + n + "\n")
		}
		c.pins[n] = after
		if after == 0 {
			delete(c.pins, n)
		}
	}
	if log.Len() == 0 {
		return nil
	}
	_, err := io.WriteString(c.user, log.String())
	return err
}

// Has tells whether a blob is there, whatever its content.
func (c *Cache) Has(d digest.Digest) bool {
	name, err := blobName(d)
	if err != nil {
		return false
	}
	_, err = os.Lstat(c.path(name))
	return err == nil
}

// Open opens a blob for reading, from its start. The first time that this process does so the whole of it is
// hashed; a damaged one is taken away. One that is not there, or was damaged, is fs.ErrNotExist.
func (c *Cache) Open(ctx context.Context, d digest.Digest) (*os.File, int64, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(c.path(name))
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	id := identify(fi)
	c.mu.Lock()
	ok := c.verified[d] == id
	c.mu.Unlock()
	if !ok {
		h := sha256.New()
		n, err := copyContext(ctx, h, f)
		if err != nil {
			f.Close()
			return nil, 0, fmt.Errorf("reading %s: %w", f.Name(), err)
		}
		if n != id.size || hex.EncodeToString(h.Sum(nil)) != d.Encoded() {
			c.o.Warn("the cache's copy of %s is damaged; it is taken away", d)
			// Another process may have replaced it already.
			if same, err := sameFile(f, c.path(name)); err == nil && same {
				os.Remove(c.path(name))
			}
			f.Close()
			return nil, 0, fmt.Errorf("%s was damaged: %w", d, fs.ErrNotExist)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			f.Close()
			return nil, 0, err
		}
		c.believe(d, id)
	}
	touch(f.Name())
	return f, id.size, nil
}

func (c *Cache) believe(d digest.Digest, id identity) {
	c.mu.Lock()
	c.verified[d] = id
	c.mu.Unlock()
}

// Bytes reads a small blob: see Open. One of more than limit bytes is an error.
func (c *Cache) Bytes(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	f, size, err := c.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", d, size, limit)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, fmt.Errorf("reading %s: %w", f.Name(), err)
	}
	if digest.FromBytes(data) != d {
		return nil, fmt.Errorf("%s changed while it was read: %w", d, fs.ErrNotExist)
	}
	return data, nil
}

// Put keeps a small blob; its digest must be right.
func (c *Cache) Put(d digest.Digest, data []byte) error {
	name, err := blobName(d)
	if err != nil {
		return err
	}
	if digest.FromBytes(data) != d {
		return fmt.Errorf("%d bytes that hash to %s are no %s", len(data), digest.FromBytes(data), d)
	}
	if err := c.locked(unix.LOCK_SH, func() error { return c.write(name, data) }); err != nil {
		return err
	}
	return c.bound()
}

// Note returns what SetNote kept under key; fs.ErrNotExist if nothing, or if it is damaged.
func (c *Cache) Note(key string) ([]byte, error) {
	name := noteName(key)
	fi, err := os.Stat(c.path(name))
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxNote {
		return nil, fmt.Errorf("a note of %d bytes: %w", fi.Size(), fs.ErrNotExist)
	}
	data, err := os.ReadFile(c.path(name))
	if err != nil {
		return nil, err
	}
	head, body, _ := strings.Cut(string(data), "\n")
	if want := noteHead(key, body); head != want {
		c.o.Warn("the cache's note of %s is damaged; it is taken away", key)
		os.Remove(c.path(name))
		return nil, fmt.Errorf("a note was damaged: %w", fs.ErrNotExist)
	}
	touch(c.path(name))
	return []byte(body), nil
}

// SetNote keeps data, at most 16 MiB, under key. Notes are pruned like blobs.
func (c *Cache) SetNote(key string, data []byte) error {
	if len(data) > maxNote-4096 || len(key) > 2048 {
		return fmt.Errorf("a note of %d bytes is too large", len(data))
	}
	note := []byte(noteHead(key, string(data)) + "\n" + string(data))
	if err := c.locked(unix.LOCK_SH, func() error { return c.write(noteName(key), note) }); err != nil {
		return err
	}
	return c.bound()
}

func noteName(key string) string { return notesDir + "/" + digest.FromString(key).Encoded() }

func noteHead(key, body string) string {
	return fmt.Sprintf("%s %q", digest.FromString(key+"\n"+body), key)
}

// Reference says what name stood for when SetReference was last called, and when that was. A name that is not
// there is fs.ErrNotExist.
func (c *Cache) Reference(name string) (imgspecv1.Descriptor, time.Time, error) {
	for _, m := range c.index().Manifests {
		if m.Annotations[imgspecv1.AnnotationRefName] != name {
			continue
		}
		if _, err := blobName(m.Digest); err != nil {
			break
		}
		at, _ := time.Parse(time.RFC3339, m.Annotations[resolvedAnnotation])
		return m, at, nil
	}
	return imgspecv1.Descriptor{}, time.Time{}, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
}

// SetReference keeps what name stands for: a manifest, or a manifest list.
func (c *Cache) SetReference(name string, d imgspecv1.Descriptor, at time.Time) error {
	if _, err := blobName(d.Digest); err != nil {
		return err
	}
	return c.locked(unix.LOCK_EX, func() error {
		index := c.index()
		var rest []imgspecv1.Descriptor
		for _, m := range index.Manifests {
			if m.Annotations[imgspecv1.AnnotationRefName] != name {
				rest = append(rest, m)
			}
		}
		d.Annotations = map[string]string{imgspecv1.AnnotationRefName: name, resolvedAnnotation: at.UTC().Format(time.RFC3339)}
		index.Manifests = append(rest, d)
		return c.writeIndex(index)
	})
}

// index reads index.json; one that cannot be read is as good as none.
func (c *Cache) index() *imgspecv1.Index {
	index := &imgspecv1.Index{}
	f, err := os.Open(c.path(imgspecv1.ImageIndexFile))
	if err != nil {
		return index
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err == nil {
		err = json.Unmarshal(data, index)
	}
	if err != nil {
		c.o.Warn("the cache's index.json is damaged and counts as empty: %v", err)
		return &imgspecv1.Index{}
	}
	return index
}

func (c *Cache) writeIndex(index *imgspecv1.Index) error {
	index.Versioned, index.MediaType = imgspec.Versioned{SchemaVersion: 2}, imgspecv1.MediaTypeImageIndex
	if index.Manifests == nil {
		index.Manifests = []imgspecv1.Descriptor{}
	}
	data, err := json.MarshalIndent(index, "", " ")
	if err != nil {
		return err
	}
	return c.write(imgspecv1.ImageIndexFile, append(data, '\n'))
}

// write makes a file appear whole. The lock must be held, so that no prune takes the file for one that was left
// behind.
func (c *Cache) write(name string, data []byte) error {
	f, err := os.CreateTemp(c.path(partialDir), "small.")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(fileMode(c.o.Dir))
	}
	if err == nil {
		err = os.Rename(f.Name(), c.path(name))
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// fileMode lets those who may enter the folder read its files.
func fileMode(dir string) fs.FileMode {
	fi, err := os.Stat(dir)
	if err != nil {
		return 0o600
	}
	return fi.Mode().Perm() & 0o666
}

func (c *Cache) locked(how int, f func() error) error {
	l, err := os.OpenFile(c.path(lockFile), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := flock(l, how); err != nil {
		return err
	}
	return f()
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return fmt.Errorf("locking %s: %w", f.Name(), err)
			}
			return nil
		}
	}
}

func identify(fi fs.FileInfo) identity {
	id := identity{size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.ino = st.Ino
	}
	return id
}

// touch notes a use. It is a help for Prune only, so it may fail.
func touch(name string) {
	now := time.Now()
	os.Chtimes(name, now, now)
}

func copyContext(ctx context.Context, w io.Writer, r io.Reader) (int64, error) {
	buf := make([]byte, 256<<10)
	var n int64
	for {
		if err := ctx.Err(); err != nil {
			return n, err
		}
		m, err := r.Read(buf)
		w.Write(buf[:m])
		n += int64(m)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}
