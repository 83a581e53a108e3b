package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

// version is set by the Makefile.
var version string

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  nodebake version",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := programVersion()
			if v == "" {
				v = "(devel)"
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "nodebake %s %s %s/%s\n", v, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
