package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/lint"
)

// never is what --fail-on takes beside the severities.
const never = "never"

func lintCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	var opts lint.Options
	var failOn string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lint DISK",
		Short: "Say what keeps a node from coming up with no registry",
		Long: `Look for what would keep a node that starts from the disk from coming up, or from staying up, with no registry:
images that are not there, pull policies that ask for one all the same, engines that do not find the store, a first
boot that takes it away, labels, faults of engines, and kubelet's garbage collection.

--manifests takes what images-in takes, and kubeadm's ClusterConfiguration. Each finding has an ID that does not
change. Exits with 3 if there is a finding as bad as --fail-on says, or worse.`,
		Example: `  nodebake lint node.qcow2
  nodebake lint node.qcow2 --kubernetes v1.34.1 --manifests manifests/ --fail-on warning
  kubeadm config images list | nodebake lint node.qcow2 --manifests -`,
		Args: exactly("DISK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains([]string{string(lint.Error), string(lint.Warning), string(lint.Info), never}, failOn) {
				return usage("--fail-on %s: give one of error, warning, info, never", failOn)
			}
			o, err := imagebuild.OpenDisk(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			opts.Stdin = cmd.InOrStdin()
			rep, err := lint.Run(cmd.Context(), o, opts)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), rep)
			} else {
				err = printLint(cmd.OutOrStdout(), rep)
			}
			if rep.Reaches(lint.Severity(failOn)) {
				err = errors.Join(err, fmt.Errorf("%w: %s", imagebuild.ErrVerify, lintCounts(rep)))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&opts.Kubernetes, "kubernetes", "", "the Kubernetes `VERSION` that the node is to run (default: that of kubeadm or kubelet on the disk)")
	f.StringArrayVar(&opts.Manifests, "manifests", nil, "a `FILE` or folder of manifests whose images must be there; may be given more than once; - is standard input")
	f.StringVar(&failOn, "fail-on", string(lint.Error), "the least `SEVERITY` at which to exit with 3: error, warning, info, or never")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	addDiskFlags(cmd, &how)
	return cmd
}

// printLint writes findings by group: errors and warnings with their reason and what to do, the rest as a line each.
func printLint(w io.Writer, rep *lint.Report) error {
	var b strings.Builder
	group := ""
	for _, f := range rep.Findings {
		if g := f.Group(); g != group {
			if group != "" {
				b.WriteByte('\n')
			}
			group = g
			fmt.Fprintf(&b, "%s\n", g)
		}
		fmt.Fprintf(&b, "  %s %s: %s", f.ID, f.Severity, printable(f.What))
		if place := f.Place(); place != "" {
			fmt.Fprintf(&b, " [%s]", printable(place))
		}
		b.WriteByte('\n')
		if f.Severity != lint.Info {
			fmt.Fprintf(&b, "      why:  %s\n      mend: %s\n", printable(f.Why), printable(f.Mend))
		}
	}
	if len(rep.Findings) > 0 {
		b.WriteByte('\n')
	}
	fmt.Fprintln(&b, lintAdvice(rep))
	_, err := io.WriteString(w, b.String())
	return err
}

func lintCounts(rep *lint.Report) string {
	return fmt.Sprintf("%s, %s, %s", plural(rep.Count(lint.Error), "error"), plural(rep.Count(lint.Warning), "warning"), plural(rep.Count(lint.Info), "note"))
}

// lintAdvice says what to do.
func lintAdvice(rep *lint.Report) string {
	about := fmt.Sprintf("%s in read-only stores", plural(rep.Images, "image"))
	if rep.Kubernetes != "" {
		about += fmt.Sprintf(", Kubernetes %s (from %s)", printable(rep.Kubernetes), printable(rep.KubernetesFrom))
	}
	switch {
	case rep.Count(lint.Error) > 0:
		return about + ": " + lintCounts(rep) + ". Mend the errors before you ship this disk: a node without a registry will not come up whole."
	case rep.Count(lint.Warning) > 0:
		return about + ": " + lintCounts(rep) + ". The node comes up; read the warnings before you ship this disk."
	}
	return about + ": " + lintCounts(rep) + ". Nothing is in the way of a node without a registry."
}
