package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/container"
	"github.com/nodebake/nodebake/storeseed"
)

// ContainerReport is a container image that holds the new disk.
type ContainerReport struct {
	Reference string `json:"reference"`
	// DiskPath is the disk's in the image.
	DiskPath       string        `json:"diskPath"`
	ManifestDigest digest.Digest `json:"manifestDigest,omitempty"`
	LayerDigest    digest.Digest `json:"layerDigest"`
	DiskDigest     digest.Digest `json:"diskDigest"`
	Size           int64         `json:"size"`
}

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
	if b.System == nil {
		b.System = &types.SystemContext{}
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
	f, info, err := container.Open(ctx, ref, b.systemFor(ref), b.BasePath, b.workDir(), o)
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

// planOutput tells what the output is: a file, or a container image that will hold the disk.
func (b *bake) planOutput() error {
	dest, is, err := container.ParseDest(b.Output)
	if err != nil {
		return fmt.Errorf("%w: --output: %w", ErrUsage, err)
	}
	if !is {
		if b.DiskPath != "" {
			return fmt.Errorf("%w: --disk-path is for an --output that is a container image", ErrUsage)
		}
		if b.OutputOptions.Format == "" {
			b.OutputOptions.Format = FormatOf(b.Output)
		}
		return nil
	}
	if b.Base == b.Output || isImage(b.Base) && dest.Path() != "" && strings.HasPrefix(b.Base, b.Output) {
		return fmt.Errorf("%w: --output %s is the base itself, which is never written", ErrUsage, b.Output)
	}
	if b.OutputOptions.Overlay {
		return fmt.Errorf("%w: an overlay needs its base beside it, which a container image does not have", ErrUsage)
	}
	b.container = &dest
	if b.OutputOptions.Format == "" {
		b.OutputOptions.Format = FormatOf(b.diskPath())
	}
	return nil
}

func (b *bake) diskPath() string {
	if b.DiskPath == "" {
		return container.DefaultPath
	}
	return path.Clean(strings.TrimLeft(b.DiskPath, "/"))
}

// workDir is where files without a name are made: beside the output, where there must be room for the disk, or in the
// folder for temporary files where the output is in a registry.
func (b *bake) workDir() string {
	name := b.Output
	if b.container != nil {
		name = b.container.Path()
	}
	if name == "" {
		return os.TempDir()
	}
	return filepath.Dir(name)
}

// checkOutput refuses an output that cannot be used, before any work is done.
func (b *bake) checkOutput(ctx context.Context) error {
	switch {
	case b.Output == "":
		return nil
	case b.container == nil:
		return output.Check(b.base.Disk, b.Output, b.OutputOptions)
	}
	err := container.Check(ctx, *b.container, b.containerOptions())
	if errors.Is(err, container.ErrOptions) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return err
}

func (b *bake) containerOptions() container.Options {
	o := container.Options{Path: b.diskPath(), Platform: imgspecv1.Platform{OS: b.platform.OS, Architecture: b.platform.Architecture, Variant: b.platform.Variant},
		Created: b.report.Epoch, Format: string(b.OutputOptions.Format), VirtualSize: b.report.Size, Force: b.OutputOptions.Force, System: b.System}
	if ref := b.container.Reference(); ref != nil {
		o.System = b.systemFor(ref)
	}
	if b.OutputOptions.Format == disk.Raw {
		o.Level = 1 // a raw disk is mostly zeros
	}
	return o
}

// targetPath is where the disk is made.
func (b *bake) targetPath() string {
	if b.container == nil {
		return b.Output
	}
	return filepath.Join(b.workDir(), fmt.Sprintf("nodebake-%d.disk", os.Getpid()))
}

// deliver gives the finished disk its name, or puts it into its container image.
func (b *bake) deliver(ctx context.Context, target *output.Target) error {
	b.report.Output = &DiskReport{Path: b.Output, Format: b.OutputOptions.Format, Size: target.Size()}
	if b.container == nil {
		return target.Finish(ctx)
	}
	return target.Deliver(ctx, func(d io.Reader, size int64) error {
		b.Log.Infof("writing %s", b.container)
		res, err := container.Write(ctx, *b.container, d, size, b.containerOptions())
		if err != nil {
			return err
		}
		b.report.Container = &ContainerReport{res.Reference, b.diskPath(), res.ManifestDigest, res.LayerDigest, res.DiskDigest, res.Size}
		return nil
	})
}
