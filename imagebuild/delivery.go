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

	"github.com/nodebake/nodebake/imagebuild/attest"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/imagebuild/output/container"
	"github.com/nodebake/nodebake/imagebuild/output/libvirt"
	"github.com/nodebake/nodebake/storeseed"
)

// Delivery says where a new disk goes.
type Delivery struct {
	// Output is the path of the new disk, whose ending says what it will be (bare.ParseKind, FormatOf), or of a block
	// device; or a container image that will hold it at DiskPath (container.ParseDest), or a volume of libvirt's
	// (libvirt.ParseDest).
	Output, DiskPath string
	// OutputOptions say what kind of disk is made. An empty Format is told from Output. A raw disk in a compressed file
	// takes Compression "zstd", "gzip" or "xz", as its name says, for the sake of a Level.
	OutputOptions output.Options
	// Checksum puts the SHA-256 sum of a file beside it, Bmap the block map of a raw disk.
	Checksum, Bmap bool
}

// OutputReport is the new disk in a report.
type OutputReport struct {
	DiskReport
	// Beside are files that belong to the output.
	Beside    []string           `json:"beside,omitempty"`
	Container *ContainerReport   `json:"container,omitempty"`
	Volume    *VolumeReport      `json:"volume,omitempty"`
	Device    *BlockDeviceReport `json:"device,omitempty"`
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
	// endings are those of further files beside the output, tell makes them.
	endings []string
	tell    func(subjects []attest.Resource, write func(ending string, text []byte) error) error
}

// sink is a kind of place where disks go.
type sink interface {
	// kind is what such a place is called, with its article.
	kind() string
	// file is the path of the file or folder that will be written to; empty where there is none.
	file() string
	// check refuses a place that cannot be used, before any work is done.
	check(ctx context.Context, v *delivery, base *disk.Disk) error
	// deliver puts the disk in its place, as the last act. It ends the target in any case.
	deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error)
}

// plan finds the sink and the format of an output, from what it is called.
func (d Delivery) plan(log logrus.FieldLogger) (*delivery, error) {
	v := &delivery{Delivery: d, log: log}
	image, isImage, err := container.ParseDest(d.Output)
	if err != nil {
		return nil, fmt.Errorf("%w: --output: %w", ErrUsage, err)
	}
	volume, isVolume, err := libvirt.ParseDest(d.Output)
	if err != nil {
		return nil, fmt.Errorf("%w: --output: %w", ErrUsage, err)
	}
	switch {
	case isImage:
		v.sink, v.DiskPath = imageSink{image}, container.DefaultPath
		if d.DiskPath != "" {
			v.DiskPath = path.Clean(strings.TrimLeft(d.DiskPath, "/"))
		}
		v.setFormat(FormatOf(v.DiskPath))
	case isVolume:
		v.sink = volumeSink{volume}
		v.setFormat(FormatOf(volume.Volume()))
	case bare.IsDevice(d.Output):
		v.sink = &deviceSink{path: d.Output}
		v.setFormat(disk.Raw)
	default:
		if err := v.planFile(); err != nil {
			return nil, fmt.Errorf("%w: --output: %w", ErrUsage, err)
		}
	}
	if _, named := v.sink.(fileSink); d.OutputOptions.Overlay && !named {
		return nil, fmt.Errorf("%w: an overlay needs its base beside it, which %s does not have", ErrUsage, v.sink.kind())
	}
	if d.DiskPath != "" && !isImage {
		return nil, fmt.Errorf("%w: --disk-path is for an --output that is a container image", ErrUsage)
	}
	return v, v.OutputOptions.Check()
}

// planFile is plan for what is a path.
func (v *delivery) planFile() error {
	o := &v.OutputOptions
	kind, err := bare.ParseKind(v.Output)
	if err != nil {
		return err
	}
	if kind == bare.Plain {
		v.sink = fileSink(v.Output)
		v.setFormat(FormatOf(v.Output))
		if o.Compression == "gzip" || o.Compression == "xz" {
			return fmt.Errorf("a qcow2 is compressed with zstd or zlib; %s is for a raw disk that ends in .raw.%s", o.Compression, compressed[o.Compression])
		}
		return nil
	}
	s := packedSink{v.Output, bare.Options{Kind: kind, Level: o.Level, Bmap: v.Bmap}}
	switch {
	case o.Format == disk.Qcow2:
		return fmt.Errorf("%s holds a raw disk; a qcow2 has a compression of its own, which --compress asks for", v.Output)
	case o.Compression != "" && compressed[o.Compression] != kind:
		return fmt.Errorf("--compress %s does not go with a file that ends in .%s", o.Compression, kind)
	}
	o.Format, o.Compression, o.Level = disk.Raw, "", 0
	v.sink = s
	return s.o.Check()
}

// compressed are the kinds of files by the names of what compresses them.
var compressed = map[string]bare.Kind{"zstd": bare.Zstd, "gzip": bare.Gzip, "xz": bare.XZ}

// planEvidence has files beside the output that say more of it.
func (v *delivery) planEvidence(endings []string, tell func([]attest.Resource, func(string, []byte) error) error) error {
	if v.Output != "" && v.file() == "" {
		return fmt.Errorf("%w: --sbom, --provenance and --sign-key write files beside OUT, and %s has no place for them: bake a file, and bring it to %s by nodebake convert",
			ErrUsage, v.sink.kind(), v.Output)
	}
	v.endings, v.tell = endings, tell
	return nil
}

// create makes the private copy of the base: a file that will get its name, or one that is handed on.
func (v *delivery) create(ctx context.Context, base *disk.Disk) (*output.Target, error) {
	if s, named := v.sink.(fileSink); named {
		return output.Create(ctx, base, string(s), v.OutputOptions)
	}
	return output.CreateUnnamed(ctx, base, v.workDir(), v.OutputOptions)
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

// describe begins a report.
func (v *delivery) describe(t *output.Target) OutputReport {
	return OutputReport{DiskReport: DiskReport{Path: v.Output, Format: v.OutputOptions.Format, Size: t.Size()}}
}

// progress says now and then how far a long copy is, of a number of bytes.
func (v *delivery) progress(what string) func(done, total int64) {
	const every = 10 * time.Second
	next := time.Now().Add(every)
	return func(done, total int64) {
		if now := time.Now(); now.After(next) {
			next = now.Add(every)
			v.log.Infof("%s: %d %% of %s", what, done*100/max(total, 1), disk.Bytes(total))
		}
	}
}

// progressOf is progress where the total is known.
func (v *delivery) progressOf(what string, total int64) func(done int64) {
	report := v.progress(what)
	return func(done int64) { report(done, total) }
}
