package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/imagebuild/output/container"
	"github.com/nodebake/nodebake/qcow"
	"github.com/nodebake/nodebake/storeseed"
)

// isImage says whether a base is a container image and no file: the transports of those never start a path that is
// there.
func isImage(base string) bool {
	kind, _, ok := strings.Cut(base, ":")
	if !ok {
		return false
	}
	switch kind {
	case "docker", "oci", "oci-archive", "docker-archive", "dir", "containers-storage":
		_, err := os.Lstat(base)
		return errors.Is(err, os.ErrNotExist)
	}
	return false
}

// openBase opens the disk to start from: a file, or one in a container image, which is taken out into a file without
// a name beside the output.
func (b *bake) openBase(ctx context.Context) error {
	var err error
	if !isImage(b.Base) {
		b.base, err = OpenDisk(b.Base, b.DiskOptions)
		return err
	}
	ref, _, err := storeseed.ParseReference(b.System, b.Base)
	if err != nil {
		return err
	}
	o := container.OpenOptions{Warn: func(m string) { b.Log.Warn(m) }}
	if b.Platform != "" {
		p, err := storeseed.ParsePlatform(b.Platform)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUsage, err)
		}
		o.Platform = imgspecv1.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}
	}
	b.Log.Infof("taking the base disk out of %s", b.Base)
	f, info, err := container.Open(ctx, ref, b.systemFor(ref), b.BasePath, b.out.workDir(), o)
	if err != nil {
		return fmt.Errorf("base %s: %w", b.Base, err)
	}
	b.report.BaseImage = info.ManifestDigest
	d, err := disk.OpenFile(f, b.Base, b.DiskOptions.Options)
	if err != nil {
		return err
	}
	b.base, err = findRoot(d, b.Root)
	return err
}

// sumBase sums up the base's files while the bake goes on, if that was asked for. wait waits for the end, stop ends
// it; each may be called more than once.
func (b *bake) sumBase(ctx context.Context) (wait func() error, stop func()) {
	if !b.Digests {
		return func() error { return nil }, func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	rep, d := &b.report.Base, b.base.Disk
	go func() {
		sum, err := sumFile(ctx, d.File())
		rep.Digest, rep.FileSize = sum.Digest, sum.Size
		for _, path := range d.Backing() {
			if err != nil {
				break
			}
			var f *os.File
			if f, err = os.Open(path); err == nil {
				sum, err = sumFile(ctx, f)
				f.Close()
				rep.Backing = append(rep.Backing, FileDigest{path, sum.Digest, sum.Size})
			}
		}
		done <- err
	}()
	wait = sync.OnceValue(func() error {
		if err := <-done; err != nil {
			return fmt.Errorf("summing up the base: %w", err)
		}
		return nil
	})
	return wait, func() {
		cancel()
		wait()
	}
}

func sumFile(ctx context.Context, f *os.File) (FileDigest, error) {
	src, err := qcow.BorrowFile(f)
	if err != nil {
		return FileDigest{}, err
	}
	res, err := bare.Sum(ctx, qcow.OpenRaw(src), bare.Options{Workers: 1})
	return FileDigest{Digest: digest.NewDigestFromBytes(digest.SHA256, res.SHA256[:]), Size: res.Size}, err
}
