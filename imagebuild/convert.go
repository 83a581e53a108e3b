package imagebuild

import (
	"context"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/storeseed"
)

// ConvertSpec says what to convert, and to what.
type ConvertSpec struct {
	// Input is the path of a disk image. It is only read.
	Input   string
	Options disk.Options
	Delivery
	// Platform is os/arch[/variant], for an Output that is a container image; empty is that of the system on the disk.
	Platform string
	Log      logrus.FieldLogger
}

// Convert writes the contents of a disk image anew. What is on the disk does not matter, but for a container image to
// be labelled. The output appears when it is whole.
func Convert(ctx context.Context, spec ConvertSpec) (OutputReport, error) {
	none := OutputReport{}
	v, err := spec.Delivery.plan(spec.Log)
	if err != nil {
		return none, err
	}
	d, err := disk.OpenImage(spec.Input, spec.Options)
	if err != nil {
		return none, err
	}
	defer d.Close()
	if _, labelled := v.sink.(imageSink); labelled {
		settleHome(v.log.Warnf)
		if err := v.choosePlatform(spec); err != nil {
			return none, err
		}
	}
	v.created = time.Unix(0, 0)
	v.systemFor = func(types.ImageReference) *types.SystemContext { return &types.SystemContext{} }
	if err := v.check(ctx, v, d); err != nil {
		return none, err
	}
	t, err := v.create(ctx, d)
	if err != nil {
		return none, err
	}
	defer t.Abort()
	return v.deliver(ctx, v, t)
}

func (v *delivery) choosePlatform(spec ConvertSpec) error {
	p := spec.Platform
	if p == "" {
		o, err := OpenDisk(spec.Input, DiskOptions{Options: spec.Options})
		if err != nil {
			return fmt.Errorf("which machine the disk is for: %w; --platform says it", err)
		}
		defer o.Close()
		p = o.Root.Platform
	}
	var err error
	if v.platform, err = storeseed.ParsePlatform(p); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}
