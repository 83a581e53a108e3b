package main

import (
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
)

func verifyCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DISK",
		Short: "Check every image in the disk's stores, byte for byte",
		Long: `Rebuild every layer of every read-only store from the disk's own files, hash it against its diffID, compare
each file's attributes with the layer's, and check the store's records against each other. Exits with 3 if
anything is not what it should be, and names it.`,
		Example: `  nodebake verify node.qcow2
  nodebake verify node.raw --json`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := imagebuild.OpenDisk(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			stores, err := imagebuild.Verify(cmd.Context(), o, logrus.StandardLogger())
			if err != nil && !errors.Is(err, imagebuild.ErrVerify) {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return errors.Join(printJSON(out, stores), err)
			}
			for _, s := range stores {
				for _, f := range s.Faults {
					fmt.Fprintf(out, "%s: %s\n", printable(s.Store), printable(f.String()))
				}
				if more := s.Total - len(s.Faults); more > 0 {
					fmt.Fprintf(out, "%s: and %d more\n", printable(s.Store), more)
				}
				state := "as baked"
				if s.Total > 0 {
					state = fmt.Sprintf("%d faults", s.Total)
				}
				fmt.Fprintf(out, "%s: %s, %s, %d entries, %s hashed: %s\n", printable(s.Store), plural(s.Images, "image"), plural(s.Layers, "layer"), s.Entries, disk.Bytes(s.Bytes), state)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addDiskFlags(cmd, &how)
	return cmd
}
