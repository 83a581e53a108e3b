package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild/imagelist"
)

// listFlags are the flags of every command that reads image lists.
type listFlags struct {
	o imagelist.Options
}

func (l *listFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&l.o.Values, "values", nil, "`FILE` of values for Helm charts; may be given more than once")
	f.StringArrayVar(&l.o.Set, "set", nil, "`KEY=VALUE` for Helm charts, stronger than --values")
	f.StringVar(&l.o.KubeVersion, "kube-version", "", "the cluster's `VERSION`, for Helm charts")
}

// read gives the references that the named lists, manifests and charts hold.
func (l *listFlags) read(cmd *cobra.Command, names []string) ([]imagelist.Entry, error) {
	entries, err := imagelist.Read(cmd.Context(), names, cmd.InOrStdin(), l.o)
	if errors.Is(err, imagelist.ErrNoImages) || errors.Is(err, imagelist.ErrTemplate) {
		return nil, usage("%v", err)
	}
	return entries, err
}

// listed is an imagelist.Entry as JSON has it.
type listed struct {
	Ref  string `json:"reference"`
	From string `json:"from"`
}

func imagesInCommand() *cobra.Command {
	var lists listFlags
	var asJSON, from bool
	cmd := &cobra.Command{
		Use:   "images-in FILE...",
		Short: "List the images that manifests, charts and lists name",
		Long: `List the images that files name, each once: plain lists (one reference a line, as kubeadm config images list prints
them), Kubernetes manifests, Helm charts (a folder or a .tgz, rendered offline), and the configuration of kubelet, CRI-O
and containerd. A folder stands for the manifests in it; - is standard input. It is what build --images-from bakes.`,
		Example: `  nodebake images-in manifests/ coredns-1.39.2.tgz
  kubeadm config images list | nodebake images-in -
  kustomize build overlays/prod | nodebake images-in - --from`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage("FILE is missing; see nodebake images-in --help")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			entries, err := lists.read(cmd, args)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				rows := make([]listed, len(entries))
				for i, e := range entries {
					rows[i] = listed(e)
				}
				return printJSON(out, rows)
			}
			if !from {
				for _, e := range entries {
					fmt.Fprintln(out, printable(e.Ref))
				}
				return nil
			}
			var rows [][]string
			for _, e := range entries {
				rows = append(rows, []string{printable(e.Ref), printable(e.From)})
			}
			return printTable(out, []string{"IMAGE", "FIRST SEEN"}, rows)
		},
	}
	lists.add(cmd)
	cmd.Flags().BoolVar(&from, "from", false, "say where each was first seen")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
