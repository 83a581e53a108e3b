package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
)

func inspectCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect DISK",
		Short: "Say what a disk is: format, partitions, filesystems, OS, stores",
		Example: `  nodebake inspect debian.qcow2
  nodebake inspect node.raw --json`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := imagebuild.Inspect(args[0], how)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), in)
			}
			return printInspection(cmd.OutOrStdout(), in)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addDiskFlags(cmd, &how)
	return cmd
}

func printInspection(w io.Writer, in *imagebuild.Inspection) error {
	format := string(in.Format)
	if q := in.Qcow2; q != nil {
		format += fmt.Sprintf(" v%d, clusters of %s, %s", q.Version, disk.Bytes(q.ClusterSize), q.Compression)
		if q.BackingFile != "" {
			format += ", backed by " + printable(q.BackingFile)
		}
		if q.Snapshots > 0 {
			format += fmt.Sprintf(", %d internal snapshots", q.Snapshots)
		}
	}
	table := in.Table
	if in.TableID != "" {
		table += " " + in.TableID
	}
	fmt.Fprintf(w, "Format:    %s\nSize:      %s (the file has %s)\nTable:     %s, sectors of %d bytes\n\n",
		format, disk.Bytes(in.Size), disk.Bytes(in.FileSize), table, in.Sector)
	var rows [][]string
	for _, p := range in.Partitions {
		rows = append(rows, []string{fmt.Sprint(p.Number), disk.Bytes(p.Start), disk.Bytes(p.Size), dash(string(p.Kind)), dash(p.Label), dash(p.Name), p.Type})
	}
	for _, p := range in.LogicalVolumes {
		rows = append(rows, []string{printable(p.LV), "-", disk.Bytes(p.Size), dash(string(p.Kind)), dash(p.Label), "-", "logical volume"})
	}
	if err := printTable(w, []string{"PARTITION", "START", "SIZE", "FILESYSTEM", "LABEL", "NAME", "TYPE"}, rows); err != nil {
		return err
	}
	fmt.Fprintln(w)
	for _, warning := range in.Warnings {
		fmt.Fprintf(w, "Warning:   %s\n", printable(warning))
	}
	r := in.Root
	if r == nil {
		fmt.Fprintf(w, "Root:      none: %s\n", printable(in.RootError))
		return nil
	}
	fs := r.Filesystem
	fmt.Fprintf(w, "Root:      %s: %s\nOS:        %s, %s layout, %s\nFree:      %s of %s, %d of %d inodes, blocks of %d bytes\nFeatures:  %s\n",
		place(r.Partition, r.LogicalVolume), r.Why, printable(r.OS.PrettyName), r.Layout, dash(r.Platform), disk.Bytes(fs.FreeBlocks*fs.BlockSize),
		disk.Bytes(fs.Blocks*fs.BlockSize), fs.FreeInodes, fs.Inodes, fs.BlockSize, strings.Join(fs.Features, " "))
	for _, d := range r.Deployments {
		fmt.Fprintf(w, "Deployed:  %s\n", printable(d))
	}
	for _, v := range r.Volumes {
		fmt.Fprintf(w, "Mounted:   %s at %s\n", place(v.Partition, v.LogicalVolume), printable(v.Mount))
	}
	switch {
	case r.ConfError != "":
		fmt.Fprintf(w, "Config:    %s\n", printable(r.ConfError))
	case r.StorageConf == nil:
		fmt.Fprintln(w, "Config:    no storage.conf")
	default:
		c := r.StorageConf
		fmt.Fprintf(w, "Config:    %s: driver %s, graphroot %s, additional stores %s\n", c.Path, dash(c.Driver), dash(c.GraphRoot),
			dash(printable(strings.Join(c.AdditionalImageStores, " "))))
	}
	for _, s := range r.Stores {
		state := "not in storage.conf"
		if s.Primary {
			state = "the engine's own, read-write"
		} else if s.Configured {
			state = "read-only to the engine"
		}
		if s.Error != "" {
			state = printable(s.Error)
		}
		fmt.Fprintf(w, "Store:     %s: %s, %s, %s\n", printable(s.Path), plural(s.Images, "image"), plural(s.Layers, "layer"), state)
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

func place(partition int, lv string) string {
	if lv != "" {
		return "logical volume " + printable(lv)
	}
	return fmt.Sprintf("partition %d", partition)
}
