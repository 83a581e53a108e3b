package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodebake/nodebake/imagebuild/attest"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/container"
	"github.com/nodebake/nodebake/qcow"
)

// imageSink is a container image.
type imageSink struct{ container.Dest }

func (imageSink) kind() string   { return "a container image" }
func (s imageSink) file() string { return s.Path() }

func (s imageSink) options(v *delivery) container.Options {
	o := container.Options{Path: v.DiskPath, Platform: imgspecv1.Platform{OS: v.platform.OS, Architecture: v.platform.Architecture, Variant: v.platform.Variant},
		Created: v.created, Format: string(v.OutputOptions.Format), Force: v.OutputOptions.Force}
	if ref := s.Reference(); ref != nil {
		o.System = v.systemFor(ref)
	}
	if v.OutputOptions.Format == disk.Raw {
		o.Level = 1 // a raw disk is mostly zeros
	}
	return o
}

func (s imageSink) check(ctx context.Context, v *delivery, base *disk.Disk) error {
	err := container.Check(ctx, s.Dest, s.options(v))
	if errors.Is(err, container.ErrOptions) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return errors.Join(err, v.checkBeside(base))
}

func (s imageSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	rep, o := v.describe(t), s.options(v)
	var b beside
	defer b.abort()
	o.VirtualSize = t.Size()
	v.log.Infof("writing %s", s)
	err := t.Deliver(ctx, func(d *qcow.Image) error {
		res, err := container.Write(ctx, s.Dest, io.NewSectionReader(d, 0, d.Size()), d.Size(), o)
		if err == nil {
			subjects := []attest.Resource{subject(v.DiskPath, res.DiskDigest)}
			if res.ManifestDigest != "" {
				subjects = append(subjects, subject(s.file(), res.ManifestDigest))
			}
			err = v.addTold(&b, subjects...)
			rep.Beside = b.names
			rep.Container = &ContainerReport{res.Reference, v.DiskPath, res.ManifestDigest, res.LayerDigest, res.DiskDigest, res.Size}
		}
		return err
	})
	if err != nil {
		return rep, err
	}
	return rep, b.place()
}
