package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
)

// errReport says that only the report is missing.
var errReport = errors.New("the bake succeeded, but its report could not be written")

func buildCommand() *cobra.Command {
	var spec imagebuild.Spec
	var lists []string
	var report, size string
	var flags outputFlags
	var sources sourceFlags
	var listed listFlags
	var custom customFlags
	cmd := &cobra.Command{
		Use:   "build --base BASE --image REF --output OUT",
		Short: "Bake images into a new disk",
		Long: `Bake container images into a copy of a boot disk.

REF is a name as podman and CRI-O take it (registry.k8s.io/pause:3.10, docker.io/library/debian@sha256:…), or
one of docker://NAME, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], dir:DIR,
containers-storage:NAME. An image is known on the node by the names that it comes with.

Where the images do not fit, the disk grows, and with it the partition and the filesystem that the store is on:
to the next whole GiB that leaves a tenth free, or as --size says. Where another partition is behind that one,
--store-partition makes one for the store alone at the end of the disk.

The base is never written. OUT appears when it is whole; if the bake fails or is stopped, there is no OUT.
Times that no image gives are SOURCE_DATE_EPOCH, or the newest image's creation time: the same inputs give the
same bytes.`,
		Example: `  nodebake build --base debian.qcow2 --image registry.k8s.io/pause:3.10 --output node.qcow2
  nodebake build --base ock.qcow2 --images-from images.txt --output node.raw
  nodebake build --base debian.qcow2 --image oci-archive:app.tar --output node.qcow2 --dry-run
  nodebake build --base fcos.qcow2 --images-from images.txt --output node.qcow2 --size 40G`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if spec.Base == "" {
				return usage("--base is missing: the boot disk to start from")
			}
			if spec.Output == "" && !spec.DryRun {
				return usage("--output is missing: the disk to make")
			}
			var err error
			if spec.OutputOptions, err = flags.options(); err != nil {
				return err
			}
			if spec.SourceOptions, err = sources.options(); err != nil {
				return err
			}
			if spec.Customize, err = custom.spec(); err != nil {
				return err
			}
			if spec.Size, err = imagebuild.ParseSize(size); err != nil {
				return err
			}
			if len(lists) > 0 {
				entries, err := listed.read(cmd, lists)
				if err != nil {
					return err
				}
				for _, e := range entries {
					spec.Images = append(spec.Images, e.Ref)
				}
			}
			if report != "-" {
				spec.Report = report
			}
			if spec.Epoch, err = epoch(os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
				return err
			}
			spec.Log = logrus.StandardLogger()
			if logrus.IsLevelEnabled(logrus.InfoLevel) {
				spec.Progress = cmd.ErrOrStderr()
			}
			rep, err := imagebuild.Bake(cmd.Context(), spec)
			if err != nil {
				return err
			}
			if report != "" {
				if err := writeReport(cmd.OutOrStdout(), report, rep); err != nil {
					return fmt.Errorf("%w: %w", errReport, err)
				}
			}
			if report != "-" && logrus.IsLevelEnabled(logrus.InfoLevel) {
				summarize(cmd.OutOrStdout(), rep)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&spec.Base, "base", "", "the boot `DISK` to start from, qcow2 or raw, or a container image that holds it; only read")
	f.StringArrayVar(&spec.Images, "image", nil, "the `REF` of an image to bake; may be given more than once")
	f.StringArrayVar(&lists, "images-from", nil, "a `FILE` of references, one a line, or a manifest, a folder of manifests, a Helm chart; - is standard input")
	f.StringVar(&spec.Output, "output", "", "the disk to make: a `FILE`, or a container image that will hold it (oci:DIR, oci-archive:FILE, docker-archive:FILE, docker://NAME)")
	f.StringVar(&spec.DiskPath, "disk-path", "", "the disk's `PATH` in an --output that is a container image (default disk/boot.qcow2)")
	f.StringVar(&spec.BasePath, "base-path", "", "the disk's `PATH` in a --base that is a container image (default disk/boot.qcow2, or the only file in disk/)")
	f.StringVar(&spec.Store, "store", imagebuild.DefaultStore, "the store's `PATH` on the node")
	f.StringVar(&spec.Platform, "platform", "", "`OS/ARCH[/VARIANT]` of the images (default: the base disk's own)")
	f.StringVar(&size, "size", "auto", "how large the disk is to be: `SIZE` (20G, 512M), +SIZE to add to the base's, or auto: no larger than needed")
	f.StringVar(&spec.StorePartition, "store-partition", "", "put the store on a new partition at the end of the disk, with ext4 or xfs; alone: the root's `FILESYSTEM`")
	f.Lookup("store-partition").NoOptDefVal = "auto"
	addDiskFlags(cmd, &spec.DiskOptions)
	flags.add(cmd)
	sources.add(cmd)
	listed.add(cmd)
	custom.add(cmd)
	f.BoolVar(&spec.DryRun, "dry-run", false, "print the plan and the space that it needs; write nothing")
	f.StringVar(&report, "report", "", "write a JSON report to `FILE`; - is standard output")
	return cmd
}

// epoch reads SOURCE_DATE_EPOCH, seconds since 1970 (https://reproducible-builds.org/specs/source-date-epoch/).
func epoch(value string) (*time.Time, error) {
	if value == "" {
		return nil, nil
	}
	s, err := strconv.ParseInt(value, 10, 64)
	if err != nil || s < 0 {
		return nil, usage("SOURCE_DATE_EPOCH=%s: give whole seconds since 1970", value)
	}
	t := time.Unix(s, 0).UTC()
	return &t, nil
}

func writeReport(stdout io.Writer, name string, rep *imagebuild.Report) error {
	if name == "-" {
		return printJSON(stdout, rep)
	}
	b, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o666)
}

// summarize says what there is now, and on a dry run what there would be.
func summarize(w io.Writer, rep *imagebuild.Report) {
	for _, i := range rep.Images {
		state := "baked"
		switch {
		case i.Unchanged:
			state = "there already, nothing to change"
		case i.Present:
			state = "there already, names added"
		case rep.DryRun:
			state = "to be baked"
		}
		fmt.Fprintf(w, "%s  %s: %s\n", short(i.ID), i.Reference, state)
	}
	need, free := rep.Space.NeedBytes(), rep.Space.FreeBytes()
	if rep.DryRun {
		fmt.Fprintf(w, "Would write %s and %d inodes to %s; free are %s and %d inodes.\n", disk.Bytes(need), rep.Space.NeedInodes,
			rep.StoreVolume, disk.Bytes(free), rep.Space.FreeInodes)
		if rep.Size != rep.Base.Size {
			fmt.Fprintf(w, "The disk would grow from %s to %s.\n", disk.Bytes(rep.Base.Size), disk.Bytes(rep.Size))
		}
		for _, f := range rep.Changed {
			fmt.Fprintf(w, "Would write %s: %s.\n", f.Path, f.Why)
		}
		return
	}
	ids := map[string]bool{}
	for _, i := range rep.Images {
		ids[i.ID] = true
	}
	fmt.Fprintf(w, "Baked %s: %s, %s, %s added, %s left free.\n", rep.Output.Path, plural(len(ids), "image"), plural(rep.NewLayers, "new layer"),
		disk.Bytes(need), disk.Bytes(free-need))
}
