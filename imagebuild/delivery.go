package imagebuild

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/sirupsen/logrus"
	"go.podman.io/image/v5/types"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/container"
	"github.com/nodebake/nodebake/storeseed"
)

// Delivery says where a new disk goes.
type Delivery struct {
	// Output is the path of the new disk, or a container image that will hold it at DiskPath; see container.ParseDest.
	Output, DiskPath string
	// OutputOptions say what kind of disk is made. An empty Format is told from Output's ending.
	OutputOptions output.Options
}

// OutputReport is the new disk in a report.
type OutputReport struct {
	DiskReport
	Container *ContainerReport `json:"container,omitempty"`
}

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

// delivery is a disk on its way.
type delivery struct {
	Delivery
	sink
	log logrus.FieldLogger
	// systemFor is the settings for a registry.
	systemFor func(types.ImageReference) *types.SystemContext
	// platform and created are for what describes the disk.
	platform storeseed.Platform
	created  time.Time
}

// sink is a kind of place where disks go.
type sink interface {
	// file is the path of the file or folder that will be written to; empty where there is none.
	file() string
	// check refuses a place that cannot be used, before any work is done.
	check(ctx context.Context, v *delivery, base *disk.Disk) error
	// create makes the private copy of the base.
	create(ctx context.Context, v *delivery, base *disk.Disk) (*output.Target, error)
	// deliver puts the disk in its place, as the last act. It ends the target in any case.
	deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error)
}

// plan finds the sink and the format of an output, from what it is called.
func (d Delivery) plan(log logrus.FieldLogger) (*delivery, error) {
	v := &delivery{Delivery: d, log: log}
	dest, isContainer, err := container.ParseDest(d.Output)
	if err != nil {
		return nil, fmt.Errorf("%w: --output: %w", ErrUsage, err)
	}
	if isContainer {
		v.sink = containerSink{dest}
		if d.OutputOptions.Overlay {
			return nil, fmt.Errorf("%w: an overlay needs its base beside it, which a container image does not have", ErrUsage)
		}
		v.DiskPath = container.DefaultPath
		if d.DiskPath != "" {
			v.DiskPath = path.Clean(strings.TrimLeft(d.DiskPath, "/"))
		}
		v.setFormat(FormatOf(v.DiskPath))
		return v, nil
	}
	if d.DiskPath != "" {
		return nil, fmt.Errorf("%w: --disk-path is for an --output that is a container image", ErrUsage)
	}
	v.sink = fileSink(d.Output)
	v.setFormat(FormatOf(d.Output))
	return v, nil
}

// setFormat is for an output whose format was not asked for.
func (v *delivery) setFormat(f disk.Format) {
	if v.OutputOptions.Format == "" {
		v.OutputOptions.Format = f
	}
}

// workDir is where files without a name are made: beside the output, where there must be room for the disk, or in the
// folder for temporary files where the output is no file.
func (v *delivery) workDir() string {
	if name := v.file(); name != "" {
		return filepath.Dir(name)
	}
	return os.TempDir()
}

// fileSink is a plain file.
type fileSink string

func (s fileSink) file() string { return string(s) }

func (s fileSink) check(_ context.Context, v *delivery, base *disk.Disk) error {
	return output.Check(base, string(s), v.OutputOptions)
}

func (s fileSink) create(ctx context.Context, v *delivery, base *disk.Disk) (*output.Target, error) {
	return output.Create(ctx, base, string(s), v.OutputOptions)
}

func (s fileSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	return v.describe(t), t.Finish(ctx, nil)
}

// describe begins a report.
func (v *delivery) describe(t *output.Target) OutputReport {
	return OutputReport{DiskReport: DiskReport{Path: v.Output, Format: v.OutputOptions.Format, Size: t.Size()}}
}
