package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
)

func verifyCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var what imagebuild.VerifyOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify DISK",
		Short: "Check every image in the disk's stores, byte for byte",
		Long: `Rebuild every layer of every additional store from the disk's own files, hash it against its diffID, compare
each file's attributes with the layer's, and check the store's records against each other. Check that the
engines' configuration names the stores, and the structures of the filesystems that both lie on. Exits with 3
if anything is not what it should be, and names it.

With --lock the stores must hold exactly the images of a lock file. With --deep the store's own files, the
SELinux labels of all files, and hard links that should not be, are looked at as well.`,
		Example: `  nodebake verify node.qcow2
  nodebake verify node.qcow2 --lock images.lock.json --deep
  nodebake verify node.raw --json`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			what.Log = logrus.StandardLogger()
			v, err := imagebuild.VerifyDisk(cmd.Context(), args[0], how, what)
			if err != nil && !errors.Is(err, imagebuild.ErrVerify) {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return errors.Join(printJSON(out, v), err)
			}
			printVerification(out, v)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&what.Lock, "lock", "", "a lock `FILE`: the stores must hold exactly its images")
	f.StringVar(&what.Store, "store", "", "look at the store at this `PATH` alone")
	f.BoolVar(&what.Deep, "deep", false, "look at labels, and at all that no layer describes, too")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	addDiskFlags(cmd, &how)
	return cmd
}

func printVerification(out io.Writer, v *imagebuild.Verification) {
	line := func(where, what string) { fmt.Fprintf(out, "%s: %s\n", printable(where), printable(what)) }
	state := func(faults int, fine string) string {
		if faults > 0 {
			return plural(faults, "fault")
		}
		return fine
	}
	for _, f := range v.Image {
		line(v.Disk, f)
	}
	for _, fs := range v.Filesystems {
		for _, f := range fs.Faults {
			line(fs.Mount, f)
		}
		if more := fs.Total - len(fs.Faults); more > 0 {
			line(fs.Mount, fmt.Sprintf("and %d more", more))
		}
		line(fs.Mount, fmt.Sprintf("filesystem of %s: %s", fs.Partition, state(fs.Total, "sound")))
	}
	for _, f := range v.Configuration {
		line("configuration", f.String())
	}
	for _, s := range v.Stores {
		for _, f := range s.Faults {
			line(s.Store, f.String())
		}
		if more := s.Total - len(s.Faults); more > 0 {
			line(s.Store, fmt.Sprintf("and %d more", more))
		}
		line(s.Store, fmt.Sprintf("%s, %s, %d entries, %s hashed: %s", plural(s.Images, "image"), plural(s.Layers, "layer"), s.Entries, disk.Bytes(s.Bytes), state(s.Total, "as baked")))
	}
	if l := v.Lock; l != nil {
		for _, f := range l.Faults {
			line(l.File, f.String())
		}
		line(l.File, fmt.Sprintf("%s: %s", plural(l.Images, "image"), state(len(l.Faults), "exactly these are on the disk")))
	}
}
