package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/customize"
)

// customFlags are the flags that change the OS beside the store.
type customFlags struct {
	copies, writes []string
	o              customize.Spec
}

func (c *customFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&c.copies, "copy", nil, "`SRC:DST[:MODE[:UID:GID]]`: copy a file or a folder of this machine onto the disk")
	f.StringArrayVar(&c.writes, "write", nil, "`DST=TEXT`: write a file on the disk")
	f.StringArrayVar(&c.o.Deletes, "delete", nil, "delete `PATH`, a file or a folder, on the disk")
	f.StringArrayVar(&c.o.KargAppend, "karg-append", nil, "append the kernel argument `KEY[=VALUE]`")
	f.StringArrayVar(&c.o.KargDelete, "karg-delete", nil, "delete the kernel argument `KEY[=VALUE]`")
	f.StringArrayVar(&c.o.KargReplace, "karg-replace", nil, "replace a kernel argument: `KEY=NEW`, or KEY=OLD=NEW")
	f.StringVar(&c.o.IgnitionPlatform, "ignition-platform", "", "the `PLATFORM` that Ignition asks for its configuration, such as qemu or metal")
	f.StringVar(&c.o.Ignition, "ignition", "", "a `FILE` with the Ignition configuration for the first boot")
	f.StringVar(&c.o.Hostname, "hostname", "", "the machine's `NAME`")
	f.BoolVar(&c.o.ResetIdentity, "reset-identity", false, "take away what tells a machine from others: machine-id, ssh host keys, random seed")
}

func (c *customFlags) spec() (customize.Spec, error) {
	s := c.o
	for _, arg := range c.copies {
		one, err := customize.ParseCopy(arg)
		if err != nil {
			return s, fmt.Errorf("%w: --copy: %w", imagebuild.ErrUsage, err)
		}
		s.Copies = append(s.Copies, one)
	}
	for _, arg := range c.writes {
		one, err := customize.ParseWrite(arg)
		if err != nil {
			return s, fmt.Errorf("%w: --write: %w", imagebuild.ErrUsage, err)
		}
		s.Writes = append(s.Writes, one)
	}
	return s, nil
}

func butaneCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	cmd := &cobra.Command{
		Use:   "butane DISK",
		Short: "Print the Butane snippet that keeps a baked disk's storage.conf",
		Long: `Print a Butane snippet (variant fcos) that writes /etc/containers/storage.conf as it is on the baked disk. It is for
those whose Ignition configuration writes that file, and so would take the store out of it at the first boot.`,
		Example: "  nodebake butane node.qcow2 > storage.bu",
		Args:    exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := imagebuild.OpenDisk(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			text, err := imagebuild.Butane(o)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), text)
			return nil
		},
	}
	addDiskFlags(cmd, &how)
	return cmd
}
