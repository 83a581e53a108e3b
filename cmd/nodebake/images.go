package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
)

func imagesCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "images DISK",
		Short: "List the images in the disk's stores",
		Example: `  nodebake images node.qcow2
  nodebake images node.qcow2 --json`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := imagebuild.OpenDisk(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			images, broken := imagebuild.Images(o)
			if asJSON {
				return errors.Join(printJSON(cmd.OutOrStdout(), images), broken)
			}
			var rows [][]string
			for _, i := range images {
				rows = append(rows, []string{printable(i.Repository), printable(i.Tag), i.Digest.String(), short(i.ID), humanSize(i.Size), printable(i.Store)})
			}
			return errors.Join(broken, printTable(cmd.OutOrStdout(), []string{"REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "SIZE", "STORE"}, rows))
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addDiskFlags(cmd, &how)
	return cmd
}

// short is an ID as podman prints it.
func short(id string) string { return id[:min(12, len(id))] }
