package main

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/sbom"
)

func sbomCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var format, output string
	cmd := &cobra.Command{
		Use:   "sbom DISK",
		Short: "Write the bill of materials of a disk",
		Long: `Write what is on a disk, as SPDX 2.3 or CycloneDX 1.6: its operating system, the container images in its stores with
their digests, and the packages in each, as the package databases of dpkg, apk and RPM and the Go programs say.
They are read from the disk as it is; nothing is unpacked.

The document depends on the disk alone: its time is SOURCE_DATE_EPOCH, or the newest image's.`,
		Example: `  nodebake sbom node.qcow2 --format spdx-json --output node.spdx.json
  nodebake sbom node.raw --format cyclonedx-json`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := sbom.ParseFormat(format)
			if err != nil {
				return usage("--format: %v", err)
			}
			in := sbom.Input{Name: filepath.Base(args[0]), Version: programVersion()}
			when, err := epoch(os.Getenv("SOURCE_DATE_EPOCH"))
			if err != nil {
				return err
			}
			if when != nil {
				in.Created = *when
			}
			o, err := imagebuild.OpenDisk(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			doc, err := imagebuild.Bill(cmd.Context(), o, in)
			if err != nil {
				return err
			}
			if output == "" || output == "-" {
				return doc.Write(cmd.OutOrStdout(), f)
			}
			file, err := os.Create(output)
			if err != nil {
				return err
			}
			return errors.Join(doc.Write(file, f), file.Close())
		},
	}
	cmd.Flags().StringVar(&format, "format", string(sbom.SPDX), "`FORMAT` of the document: spdx-json or cyclonedx-json")
	cmd.Flags().StringVar(&output, "output", "", "the `FILE` to write (default: standard output)")
	addDiskFlags(cmd, &how)
	return cmd
}

// programVersion is what this program is called in what it writes.
func programVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}
