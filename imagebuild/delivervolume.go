package imagebuild

import (
	"context"
	"errors"
	"fmt"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/libvirt"
	"github.com/nodebake/nodebake/qcow"
)

// VolumeReport is a libvirt volume that holds the new disk. Sizes are in bytes, as libvirt tells them.
type VolumeReport struct {
	URI        string `json:"uri"`
	Pool       string `json:"pool"`
	Volume     string `json:"volume"`
	Path       string `json:"path"`
	Size       int64  `json:"size"`
	Allocation int64  `json:"allocation"`
	Capacity   int64  `json:"capacity"`
}

// volumeSink is a volume in a storage pool of libvirt's.
type volumeSink struct{ libvirt.Dest }

func (volumeSink) kind() string { return "a volume of libvirt's" }
func (volumeSink) file() string { return "" }

func (s volumeSink) options(v *delivery) libvirt.Options {
	return libvirt.Options{Format: string(v.OutputOptions.Format), Force: v.OutputOptions.Force}
}

func (s volumeSink) check(ctx context.Context, v *delivery, base *disk.Disk) error {
	if w := s.Warning(); w != "" {
		v.log.Warn(w)
	}
	err := libvirt.Check(ctx, s.Dest, s.options(v))
	if errors.Is(err, libvirt.ErrUsage) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return err
}

func (s volumeSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	rep, o := v.describe(t), s.options(v)
	o.Capacity = t.Size()
	v.log.Infof("uploading the disk to volume %s in pool %s of %s", s.Volume(), s.Pool(), s.URI())
	err := t.Deliver(ctx, func(d *qcow.Image) error {
		o.Progress = v.progressOf("uploaded", d.Size())
		res, err := libvirt.Upload(ctx, s.Dest, d, o)
		if err == nil {
			rep.Volume = &VolumeReport{s.URI(), s.Pool(), s.Volume(), res.Path, res.Size, res.Allocation, res.Capacity}
		}
		return err
	})
	return rep, err
}
