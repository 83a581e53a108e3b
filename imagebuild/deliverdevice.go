package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/qcow"
)

// BlockDeviceReport is a device that holds the new disk. Sizes are in bytes.
type BlockDeviceReport struct {
	Path       string `json:"path"`
	DeviceSize int64  `json:"deviceSize"`
	Written    int64  `json:"written"`
	Cleared    int64  `json:"cleared"`
}

// deviceSink is a block device.
type deviceSink struct {
	path string
	said []string // notes that the user has read
}

func (*deviceSink) kind() string { return "a block device" }
func (*deviceSink) file() string { return "" }

// note says what is unusual of the device, each thing once.
func (s *deviceSink) note(v *delivery, notes []string) {
	for _, n := range notes {
		if !slices.Contains(s.said, n) {
			v.log.Warn(n)
			s.said = append(s.said, n)
		}
	}
}

func (s *deviceSink) check(_ context.Context, v *delivery, base *disk.Disk) error {
	if v.OutputOptions.Format != disk.Raw {
		return fmt.Errorf("%w: a block device holds a raw disk; leave --output-format, --compress and --cluster-size out", ErrUsage)
	}
	d, err := bare.CheckDevice(s.path, base.Size(), base, v.OutputOptions.Force)
	for _, name := range d.Over {
		if st, err := os.Stat(name); err == nil && base.Uses(st) {
			return fmt.Errorf("%s: %w, which is never written; choose another --output", s.path, output.ErrIsBase)
		}
	}
	s.note(v, d.Notes)
	if errors.Is(err, bare.ErrNotDevice) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return err
}

func (s *deviceSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	rep := v.describe(t)
	v.log.Infof("writing the disk to %s, and reading it back", s.path)
	err := t.Deliver(ctx, func(d *qcow.Image) error {
		res, err := bare.WriteDevice(ctx, s.path, d, bare.DeviceOptions{Force: v.OutputOptions.Force, Progress: v.progress("written and read back")})
		if err != nil {
			return err
		}
		s.note(v, res.Notes)
		rep.Device = &BlockDeviceReport{res.Path, res.Size, res.Written, res.Cleared}
		if err := t.Unchanged(); err != nil {
			return fmt.Errorf("%s holds a disk that cannot be trusted: %w", s.path, err)
		}
		return nil
	})
	return rep, err
}
