package main

import (
	"archive/tar"
	"io"

	"github.com/spf13/cobra"
)

func catCommand() *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:     "cat DISK:/path",
		Short:   "Print a file of the disk's root filesystem",
		Example: "  nodebake cat node.qcow2:/etc/containers/storage.conf",
		Args:    exactly("DISK:/path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, real, h, err := openDiskPath(args[0], root)
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
	addRootFlag(cmd, &root)
	return cmd
}
