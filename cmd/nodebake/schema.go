package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodebake/nodebake/imagebuild/bakefile"
)

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of bake files",
		Long: `Print a JSON Schema (draft 2020-12) of bake files: what keys there are, and what they are for. Editors that know it
complete keys and mark what is wrong.`,
		Example: "  nodebake schema > bake.schema.json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, flags := newBuildFlags()
			return printJSON(cmd.OutOrStdout(), bakefile.Schema(func(flag string) string {
				_, help := pflag.UnquoteUsage(flags.Lookup(flag))
				return help
			}))
		},
	}
}
