package main

import (
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
)

func convertCommand() *cobra.Command {
	var flags outputFlags
	var spec imagebuild.ConvertSpec
	cmd := &cobra.Command{
		Use:   "convert IN OUT",
		Short: "Convert a disk image: raw, qcow2, compressed or not",
		Long: `Write the contents of a disk image to a new one, of another format or compressed, or to any other place that build
knows as an output. What is on the disk does not matter. IN is only read; OUT appears when it is whole.`,
		Example: `  nodebake convert debian.raw debian.qcow2 --compress zstd
  nodebake convert node.qcow2 node.raw
  nodebake convert node.qcow2 node.raw.zst
  nodebake convert node.qcow2 oci-archive:node.tar
  nodebake convert node.qcow2 'libvirt+qemu:///system?pool=images&volume=node.qcow2'`,
		Args: exactly("IN", "OUT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := flags.apply(&spec.Delivery); err != nil {
				return err
			}
			spec.Input, spec.Output, spec.Log = args[0], args[1], logrus.StandardLogger()
			logrus.Infof("converting %s to %s", spec.Input, spec.Output)
			_, err := imagebuild.Convert(cmd.Context(), spec)
			return err
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVar(&spec.Platform, "platform", "", "`OS/ARCH[/VARIANT]` that a container image is for (default: the disk's own)")
	addBackingFlag(cmd, &spec.Options)
	return cmd
}

// outputFlags are the flags of every command that makes a disk.
type outputFlags struct {
	format, compress, cluster, diskPath string
	force, overlay, checksum, bmap      bool
}

func (o *outputFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.diskPath, "disk-path", "", "the disk's `PATH` in an output that is a container image (default disk/boot.qcow2)")
	f.StringVar(&o.format, "output-format", "", "qcow2 or raw (default: raw where OUT ends in .raw or .img, else qcow2)")
	f.StringVar(&o.compress, "compress", "", "compress all data of a qcow2: `KIND[:LEVEL]`, zstd or zlib; or the level for a raw disk in a .zst or .gz: zstd, gzip")
	f.StringVar(&o.cluster, "cluster-size", "", "`SIZE` of a qcow2's clusters, such as 64K (default: the base's, or 64K)")
	f.BoolVar(&o.overlay, "overlay", false, "a qcow2 with the changes alone, backed by the base, in the base's folder")
	f.BoolVar(&o.force, "force", false, "replace OUT where it exists, or write over a block device")
	f.BoolVar(&o.checksum, "checksum", true, "write OUT.sha256 beside a file")
	f.BoolVar(&o.bmap, "bmap", true, "write OUT.bmap beside a raw disk, compressed or not, for bmaptool")
}

// compressions are the highest levels of what compresses.
var compressions = map[string]int{"": 0, "zlib": 9, "zstd": 22, "gzip": 9, "xz": 0}

func (o *outputFlags) apply(d *imagebuild.Delivery) error {
	d.DiskPath, d.Checksum, d.Bmap = o.diskPath, o.checksum, o.bmap
	out := &d.OutputOptions
	*out = output.Options{Format: disk.Format(o.format), Force: o.force, Overlay: o.overlay}
	switch out.Format {
	case "", disk.Raw, disk.Qcow2:
	default:
		return usage("--output-format %s: give qcow2 or raw", o.format)
	}
	kind, level, leveled := strings.Cut(o.compress, ":")
	highest, known := compressions[kind]
	n, err := 0, error(nil)
	if leveled {
		n, err = strconv.Atoi(level)
	}
	if !known || err != nil || leveled && (n < 1 || n > highest) {
		return usage("--compress %s: give zstd, zlib, gzip or xz; but for xz with a level from 1 to 9 (of zstd to 22) behind a colon, such as zstd:9", o.compress)
	}
	out.Compression, out.Level = kind, n
	if o.cluster != "" {
		size, err := disk.ParseBytes(o.cluster)
		if err != nil || size > 2<<20 {
			return usage("--cluster-size %s: give a power of two from 512 to 2M", o.cluster)
		}
		out.ClusterSize = int(size)
	}
	return nil
}
