package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"

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
			o, name, err := openDiskPath(args[0], root)
			if err != nil {
				return err
			}
			defer o.Close()
			real, err := o.Path(name)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			h, err := o.Root.Tree.Stat(real)
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%s: %w", args[0], fs.ErrNotExist)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if h.Typeflag != tar.TypeReg {
				return usage("%s is not a regular file; nodebake ls shows what it is", name)
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
