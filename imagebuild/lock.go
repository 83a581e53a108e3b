package imagebuild

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	digest "github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"

	"github.com/nodebake/nodebake/storeseed"
)

// Lock says what the references of a bake stood for.
type Lock struct {
	APIVersion string        `json:"apiVersion"`
	Kind       string        `json:"kind"`
	Platform   string        `json:"platform"`
	Images     []LockedImage `json:"images"`
}

// LockedImage is one reference of a Lock.
type LockedImage struct {
	Reference string `json:"reference"`
	// Manifest is the digest of the image's own manifest, List that of the manifest list that it was found by, Config
	// that of its config, which is the image's ID.
	Manifest digest.Digest `json:"manifest"`
	List     digest.Digest `json:"list,omitempty"`
	Config   digest.Digest `json:"config"`
	// Size is that of all layers as they are transferred, in bytes; -1 where the source does not say.
	Size   int64         `json:"size"`
	Layers []LockedLayer `json:"layers"`
}

// LockedLayer is one layer of a LockedImage: its digest and size as it is transferred, and that of its tar.
type LockedLayer struct {
	Digest digest.Digest `json:"digest"`
	DiffID digest.Digest `json:"diffID"`
	Size   int64         `json:"size"`
}

func (l LockedLayer) String() string {
	return fmt.Sprintf("%s of %d bytes with the diffID %s", l.Digest, l.Size, l.DiffID)
}

const (
	lockVersion = "nodebake/v1"
	lockKind    = "Lock"
	maxLock     = 64 << 20
)

// ReadLock reads a lock file. Errors match ErrUsage where the file is none of ours.
func ReadLock(name string) (*Lock, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxLock+1))
	if err == nil && len(text) > maxLock {
		err = fmt.Errorf("%w: more than %d bytes", ErrUsage, maxLock)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	var l Lock
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&l); err != nil {
		return nil, fmt.Errorf("%w: lock %s: %w", ErrUsage, name, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: lock %s: something follows the lock", ErrUsage, name)
	}
	if l.APIVersion != lockVersion || l.Kind != lockKind {
		return nil, fmt.Errorf("%w: %s is a %q of %q, and no %s of %s", ErrUsage, name, l.Kind, l.APIVersion, lockKind, lockVersion)
	}
	for n, i := range l.Images {
		if slices.ContainsFunc(l.Images[:n], func(other LockedImage) bool { return other.Reference == i.Reference }) {
			return nil, fmt.Errorf("%w: lock %s: %s is there twice", ErrUsage, name, i.Reference)
		}
		err := errors.Join(i.Manifest.Validate(), i.Config.Validate())
		if i.List != "" {
			err = errors.Join(err, i.List.Validate())
		}
		if err != nil {
			return nil, fmt.Errorf("%w: lock %s: %s: %w", ErrUsage, name, i.Reference, err)
		}
	}
	return &l, nil
}

// of is what the lock says of a reference.
func (l *Lock) of(ref string) (LockedImage, bool) {
	i := slices.IndexFunc(l.Images, func(i LockedImage) bool { return i.Reference == ref })
	if i < 0 {
		return LockedImage{}, false
	}
	return l.Images[i], true
}

// lockImage is what an opened image is, for a lock.
func lockImage(ref string, r storeseed.Result) LockedImage {
	l := LockedImage{Reference: ref, Manifest: r.ManifestDigest, List: r.ListDigest, Config: digest.NewDigestFromEncoded(digest.SHA256, r.ID), Layers: []LockedLayer{}}
	for _, layer := range r.Layers {
		l.Layers = append(l.Layers, LockedLayer{layer.CompressedDigest, layer.DiffID, layer.CompressedSize})
		switch {
		case layer.CompressedSize < 0:
			l.Size = -1
		case l.Size >= 0:
			l.Size += layer.CompressedSize
		}
	}
	return l
}

// readLock reads the lock of a bake that is bound to one, and takes its images where none are named.
func (b *bake) readLock() error {
	if !b.Locked {
		return nil
	}
	if b.Lock == "" {
		return fmt.Errorf("%w: --locked needs --lock FILE", ErrUsage)
	}
	var err error
	if b.lock, err = ReadLock(b.Lock); err != nil {
		return err
	}
	if b.lock.Platform != b.report.Platform {
		return fmt.Errorf("%w: the lock %s is for %s, and this bake for %s", ErrVerify, b.Lock, b.lock.Platform, b.report.Platform)
	}
	if len(b.Images) == 0 {
		for _, i := range b.lock.Images {
			b.Images = append(b.Images, i.Reference)
		}
	}
	for _, ref := range b.Images {
		if _, ok := b.lock.of(ref); !ok {
			return fmt.Errorf("%w: %s is not in the lock %s; bake once without --locked to add it", ErrVerify, ref, b.Lock)
		}
	}
	return nil
}

// lockedSource is the n-th source bound to what the lock says: a registry is asked for the digest, not for the tag.
func (b *bake) lockedSource(n int, src storeseed.Source) storeseed.Source {
	if b.lock == nil || src.Ref.Transport().Name() != docker.Transport.Name() {
		return src
	}
	is, _ := b.lock.of(b.Images[n])
	if src.Digest = is.Manifest; is.List != "" {
		src.Digest = is.List
	}
	return src
}

// checkLock holds an opened image against the lock.
func (b *bake) checkLock(n int, r storeseed.Result) error {
	if b.lock == nil {
		return nil
	}
	want, _ := b.lock.of(b.Images[n])
	is := lockImage(b.Images[n], r)
	differs := func(what string, is, want any) error {
		return fmt.Errorf("%w: %s of %s is %v, and by the lock %s it must be %v", ErrVerify, what, b.Images[n], is, b.Lock, want)
	}
	for _, c := range []struct {
		what     string
		is, want digest.Digest
	}{{"the manifest list", is.List, want.List}, {"the manifest", is.Manifest, want.Manifest}, {"the config", is.Config, want.Config}} {
		if c.is != c.want {
			return differs(c.what, orNone(c.is), orNone(c.want))
		}
	}
	// These follow from the manifest, unless the file was edited: then what was reviewed is not what it stands for.
	if len(is.Layers) != len(want.Layers) {
		return differs("the number of layers", len(is.Layers), len(want.Layers))
	}
	for i, l := range is.Layers {
		if l != want.Layers[i] {
			return differs(fmt.Sprintf("layer %d", i+1), l, want.Layers[i])
		}
	}
	if is.Size != want.Size {
		return differs("the size", is.Size, want.Size)
	}
	return nil
}

func orNone(d digest.Digest) string {
	if d == "" {
		return "none"
	}
	return d.String()
}

// writeLock writes the lock of a bake that was not bound to one. The file is replaced whole.
func (b *bake) writeLock() error {
	if b.Lock == "" || b.Locked {
		return nil
	}
	l := Lock{APIVersion: lockVersion, Kind: lockKind, Platform: b.report.Platform, Images: []LockedImage{}}
	for n, i := range b.images {
		if _, there := l.of(b.Images[n]); !there {
			l.Images = append(l.Images, lockImage(b.Images[n], i.Info()))
		}
	}
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(b.Lock), "."+filepath.Base(b.Lock)+".")
	if err != nil {
		return fmt.Errorf("writing the lock: %w", err)
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(append(text, '\n'))
	if err == nil {
		// As other files of the user's; CreateTemp gives no one else a look.
		err = temp.Chmod(0o644)
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), b.Lock)
	}
	if err != nil {
		return fmt.Errorf("writing the lock: %w", err)
	}
	return nil
}
