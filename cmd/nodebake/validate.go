package main

import (
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild/bakefile"
)

func validateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check bake files",
		Long: `Check bake files, with the lists of images that they name; no disk is opened, and no registry is asked. What is
wrong is printed with file, line and column, one finding a line, and the exit code is 2. The name - is standard input.`,
		Example: `  nodebake validate bake.yaml
  nodebake validate --json bake.yaml`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("FILE is missing; see nodebake validate --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			found, more := []bakefile.Finding{}, 0
			out := cmd.OutOrStdout()
			for _, name := range args {
				disks, err := validate(cmd, name)
				var wrong *bakefile.Error
				switch {
				case errors.As(err, &wrong):
					found, more = append(found, wrong.Findings...), more+wrong.More
				case err != nil:
					return err
				case !asJSON && logrus.IsLevelEnabled(logrus.InfoLevel):
					fmt.Fprintf(out, "%s: %s, no fault\n", printable(bakefile.Shown(name)), plural(disks, "disk"))
				}
			}
			if asJSON {
				if err := printJSON(out, found); err != nil {
					return err
				}
			} else {
				for _, f := range found {
					fmt.Fprintln(out, printable(f.String()))
				}
			}
			if n := len(found) + more; n > 0 {
				return usage("%s", plural(n, "fault"))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// validate checks one file and counts its disks.
func validate(cmd *cobra.Command, name string) (int, error) {
	f, err := readBakeFile(cmd, name)
	if err != nil {
		return 0, err
	}
	p := &planner{cmd: cmd, file: f}
	_, _, err = p.plan(f.Disks, "")
	return len(f.Disks), err
}
