package main

import (
	"archive/tar"
	"io"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
)

func catCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	cmd := &cobra.Command{
		Use:     "cat DISK:/path",
		Short:   "Print a file of the disk's root filesystem",
		Example: "  nodebake cat node.qcow2:/etc/containers/storage.conf",
		Args:    exactly("DISK:/path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, real, h, err := openDiskPath(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			if h.Typeflag != tar.TypeReg {
				return usage("%s is not a regular file; nodebake ls shows what it is", args[0])
			}
			f, err := o.Root.Tree.Open(real)
			if err != nil {
				return err
			}
			_, err = io.Copy(cmd.OutOrStdout(), f)
			return err
		},
	}
	addDiskFlags(cmd, &how)
	return cmd
}
