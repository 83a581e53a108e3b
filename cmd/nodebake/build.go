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

// buildFlags are the flags that say what is baked and how. A bake file's keys stand for them.
type buildFlags struct {
	base         imagebuild.Spec
	lists        []string
	report, size string
	output       outputFlags
	sources      sourceFlags
	charts       listFlags
	custom       customFlags
	evidence     evidenceFlags
}

func (b *buildFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&b.base.Base, "base", "", "the boot `DISK` to start from, qcow2 or raw, or a container image that holds it; only read")
	f.StringArrayVar(&b.base.Images, "image", nil, "the `REF` of an image to bake; may be given more than once")
	f.StringArrayVar(&b.lists, "images-from", nil, "a `FILE` of references, one a line, or a manifest, a folder of manifests, a Helm chart; - is standard input")
	f.StringVar(&b.base.Output, "output", "", "where the disk goes: `OUT` is a file, a block device, a container image that will hold it (oci:DIR, oci-archive:FILE, docker-archive:FILE, docker://NAME) or a volume of libvirt's (libvirt+URI?pool=POOL&volume=NAME)")
	f.StringVar(&b.base.BasePath, "base-path", "", "the disk's `PATH` in a --base that is a container image (default disk/boot.qcow2, or the only file in disk/)")
	f.StringVar(&b.base.Store, "store", imagebuild.DefaultStore, "the store's `PATH` on the node")
	f.BoolVar(&b.base.Pin, "pin", false, "keep kubelet from collecting the images: pinned_images in a drop-in of CRI-O's")
	f.StringVar(&b.base.Platform, "platform", "", "`OS/ARCH[/VARIANT]` of the images (default: the base disk's own)")
	f.StringVar(&b.size, "size", "auto", "how large the disk is to be: `SIZE` (20G, 512M), +SIZE to add to the base's, or auto: no larger than needed")
	f.StringVar(&b.base.StorePartition, "store-partition", "", "put the store on a new partition at the end of the disk, with ext4 or xfs; alone: the root's `FILESYSTEM`")
	f.Lookup("store-partition").NoOptDefVal = "auto"
	addDiskFlags(cmd, &b.base.DiskOptions)
	b.output.add(cmd)
	b.sources.add(cmd)
	b.charts.add(cmd)
	b.custom.add(cmd)
	b.evidence.add(cmd)
	f.BoolVar(&b.base.DryRun, "dry-run", false, "print the plan and the space that it needs; write nothing")
	f.StringVar(&b.report, "report", "", "write a JSON report to `FILE`; - is standard output")
}

// spec is what the flags say, but for the images of lists.
func (b *buildFlags) spec() (imagebuild.Spec, error) {
	spec := b.base
	var err error
	if err = b.output.apply(&spec.Delivery); err != nil {
		return spec, err
	}
	if spec.SourceOptions, err = b.sources.options(); err != nil {
		return spec, err
	}
	if spec.Customize, err = b.custom.spec(); err != nil {
		return spec, err
	}
	if err = b.evidence.apply(&spec.Evidence); err != nil {
		return spec, err
	}
	if spec.Size, err = imagebuild.ParseSize(b.size); err != nil {
		return spec, err
	}
	spec.Digests = b.report != ""
	if b.report != "-" {
		spec.Report = b.report
	}
	return spec, nil
}

func buildCommand() *cobra.Command {
	var flags buildFlags
	var file string
	var disks []string
	cmd := &cobra.Command{
		Use:   "build --base BASE --image REF --output OUT",
		Short: "Bake images into a new disk, or into several",
		Long: `Bake container images into a copy of a boot disk.

REF is a name as podman and CRI-O take it (registry.k8s.io/pause:3.10, docker.io/library/debian@sha256:…), or
one of docker://NAME, oci:DIR[:NAME], oci-archive:FILE[:NAME], docker-archive:FILE[:NAME], dir:DIR,
containers-storage:NAME. An image is known on the node by the names that it comes with.

Where the images do not fit, the disk grows, and with it the partition and the filesystem that the store is on:
to the next whole GiB that leaves a tenth free, or as --size says. Where another partition is behind that one,
--store-partition makes one for the store alone at the end of the disk.

The base is never written. OUT appears when it is whole; if the bake fails or is stopped, there is no OUT.
Times that no image gives are SOURCE_DATE_EPOCH, or the newest image's creation time: the same inputs give the
same bytes.

With --file a bake file says all of this for one disk or for several, which are made one after the other and fetch
what they share once. What a key of it means is what its flag means (nodebake schema lists them). A flag that is given
as well holds for every disk, in place of what the file says.`,
		Example: `  nodebake build --base debian.qcow2 --image registry.k8s.io/pause:3.10 --output node.qcow2
  nodebake build --base ock.qcow2 --images-from images.txt --output node.raw
  nodebake build --base debian.qcow2 --image oci-archive:app.tar --output node.qcow2 --dry-run
  nodebake build --base fcos.qcow2 --images-from images.txt --output node.qcow2 --size 40G
  nodebake build -f bake.yaml --disk worker`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file != "" {
				return buildFile(cmd, &flags, file, disks)
			}
			if len(disks) > 0 {
				return usage("--disk chooses from a bake file, and there is no --file")
			}
			spec, err := flags.spec()
			if err != nil {
				return err
			}
			if len(flags.lists) > 0 {
				entries, err := flags.charts.read(cmd, flags.lists)
				if err != nil {
					return err
				}
				for _, e := range entries {
					spec.Images = append(spec.Images, e.Ref)
				}
			}
			jobs := []imagebuild.Job{{Spec: spec}}
			for _, f := range imagebuild.Check(jobs, "") {
				return f.Err
			}
			return bakeAll(cmd, jobs, []string{flags.report})
		},
	}
	flags.add(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "bake what a bake `FILE` says; - is standard input")
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "bake only the disk of this `NAME` in the bake file; may be given more than once")
	return cmd
}

// bakeAll bakes jobs, and writes a report for each that has a file for it.
func bakeAll(cmd *cobra.Command, jobs []imagebuild.Job, reports []string) error {
	return bakeEach(cmd, jobs, func(n int, rep *imagebuild.Report) error {
		if reports[n] != "" {
			if err := writeReport(cmd.OutOrStdout(), reports[n], rep); err != nil {
				return fmt.Errorf("%w: %w", errReport, err)
			}
		}
		if reports[n] != "-" {
			summarize(cmd.OutOrStdout(), rep)
		}
		return nil
	})
}

// bakeEach bakes jobs and calls done for each that is in place.
func bakeEach(cmd *cobra.Command, jobs []imagebuild.Job, done func(n int, rep *imagebuild.Report) error) error {
	when, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
	if err != nil {
		return err
	}
	for n := range jobs {
		spec := &jobs[n].Spec
		spec.Epoch, spec.Log = when, logrus.StandardLogger()
		if logrus.IsLevelEnabled(logrus.InfoLevel) {
			spec.Progress = cmd.ErrOrStderr()
		}
	}
	return imagebuild.BakeAll(cmd.Context(), jobs, done)
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

func writeReport(stdout io.Writer, name string, rep any) error {
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
	if !logrus.IsLevelEnabled(logrus.InfoLevel) {
		return
	}
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
