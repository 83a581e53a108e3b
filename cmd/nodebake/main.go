// Command nodebake bakes container images into OS boot disks. See the README.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"go.podman.io/storage/pkg/reexec"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/imagebuild/output/libvirt"
)

// The exit codes; the README lists them.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitVerify      = 3
	exitNoSpace     = 4
	exitUnsupported = 5
)

// memoryLimit is where the collector starts to work harder: the promise is 256 MiB for the whole process.
const memoryLimit = 160 << 20

func main() {
	// containers-storage: sources run parts of themselves in a child of this same program.
	if reexec.Init() {
		return
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program but for the process: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := rootCommand()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && !errors.Is(err, errReport) {
		said := "interrupted"
		if left := states(err); left != "" {
			said += left
		} else if cmd.Name() == "build" {
			said += "; nothing was put in place"
		}
		fmt.Fprintln(stderr, "nodebake: "+said)
		return exitFailed
	}
	for i, line := range strings.Split(err.Error(), "\n") {
		if i == 0 {
			line = "nodebake: " + line
		}
		fmt.Fprintln(stderr, printable(line))
	}
	switch {
	case errors.Is(err, imagebuild.ErrUsage), errors.Is(err, output.ErrOptions):
		return exitUsage
	case errors.Is(err, imagebuild.ErrVerify), errors.Is(err, libvirt.ErrVerify), errors.Is(err, bare.ErrMismatch):
		return exitVerify
	case imagebuild.IsNoSpace(err):
		return exitNoSpace
	case imagebuild.IsUnsupported(err):
		return exitUnsupported
	}
	return exitFailed
}

// states is what the errors of a run that was stopped say of what there is now.
func states(err error) string {
	var left interface {
		error
		State() string
	}
	said := ""
	for errors.As(err, &left) {
		said += "; " + left.State()
		err = errors.Unwrap(left)
	}
	return said
}

func rootCommand() *cobra.Command {
	var level string
	var quiet bool
	root := &cobra.Command{
		Use:   "nodebake",
		Short: "Bake container images into OS boot disks, offline",
		Long: `nodebake opens an OS boot disk (qcow2 or raw), writes a read-only container image store into its
root filesystem, points the disk's storage.conf at it, and writes a new disk. It needs no root, no VM,
no loop device and no other program.`,
		Example: `  nodebake build --base debian.qcow2 --image registry.k8s.io/pause:3.10 --output node.qcow2
  nodebake images node.qcow2
  nodebake verify node.qcow2`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("unknown command %q; see nodebake --help", args[0])
			}
			return nil
		},
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			l, err := logrus.ParseLevel(level)
			if err != nil {
				return usage("--log-level %s: give one of error, warning, info, debug", level)
			}
			if quiet {
				l = min(l, logrus.WarnLevel)
			}
			logrus.SetLevel(l)
			logrus.SetOutput(cmd.ErrOrStderr())
			logrus.SetFormatter(plain{})
			return nil
		},
	}
	root.PersistentFlags().StringVar(&level, "log-level", "info", "how much to say: error, warning, info, debug")
	root.PersistentFlags().BoolVarP(&quiet, "quiet", "q", false, "say only what is wrong")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage("%v; see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(buildCommand(), convertCommand(), inspectCommand(), imagesCommand(), imagesInCommand(), verifyCommand(), lintCommand(), diffCommand(), sbomCommand(), lsCommand(), catCommand(), butaneCommand(), validateCommand(), schemaCommand(), versionCommand())
	return root
}

// plain is a log line as a person reads it; what is not mere progress says so.
type plain struct{}

// Format implements logrus.Formatter.
func (plain) Format(e *logrus.Entry) ([]byte, error) {
	line := printable(e.Message) + "\n"
	if e.Level != logrus.InfoLevel {
		line = e.Level.String() + ": " + line
	}
	return []byte(line), nil
}

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", imagebuild.ErrUsage, fmt.Sprintf(format, args...))
}

// exactly is cobra.ExactArgs with a sentence that says what is missing.
func exactly(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return usage("%s is missing; see %s --help", names[len(args)], cmd.CommandPath())
		case len(args) > len(names):
			return usage("%q is one argument too many; see %s --help", args[len(names)], cmd.CommandPath())
		}
		return nil
	}
}
