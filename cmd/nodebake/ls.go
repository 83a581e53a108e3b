package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/disk"
)

func lsCommand() *cobra.Command {
	var how imagebuild.DiskOptions
	cmd := &cobra.Command{
		Use:   "ls DISK:/path",
		Short: "List a folder of the disk's root filesystem",
		Example: `  nodebake ls node.qcow2:/var/images
  nodebake ls node.qcow2:/etc/containers`,
		Args: exactly("DISK:/path"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, real, h, err := openDiskPath(args[0], how)
			if err != nil {
				return err
			}
			defer o.Close()
			r := o.Root.Tree
			names, dir := []string{""}, real
			if h.Typeflag == tar.TypeDir {
				if names, err = r.ReadDir(real); err != nil {
					return err
				}
			} else {
				dir, names[0] = path.Split(real)
			}
			var rows [][]string
			for _, n := range names {
				h, err := r.Stat(path.Join(dir, n))
				if err != nil {
					return err
				}
				rows = append(rows, lsRow(n, h))
			}
			return printTable(cmd.OutOrStdout(), nil, rows)
		},
	}
	addDiskFlags(cmd, &how)
	return cmd
}

func lsRow(name string, h *tar.Header) []string {
	size := fmt.Sprint(h.Size)
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		size = fmt.Sprintf("%d,%d", h.Devmajor, h.Devminor)
	}
	shown := printable(name)
	if h.Typeflag == tar.TypeSymlink {
		shown += " -> " + printable(h.Linkname)
	}
	return []string{modeString(h), fmt.Sprint(h.Uid), fmt.Sprint(h.Gid), size, h.ModTime.UTC().Format(time.RFC3339), shown}
}

// modeString is what ls -l prints: the type and the permission bits.
func modeString(h *tar.Header) string {
	t := map[byte]string{tar.TypeReg: "-", tar.TypeDir: "d", tar.TypeSymlink: "l", tar.TypeChar: "c", tar.TypeBlock: "b", tar.TypeFifo: "p", 's': "s"}[h.Typeflag]
	if t == "" {
		t = "?"
	}
	b := []byte(fs.FileMode(h.Mode & 0o777).String()[1:])
	for _, s := range []struct {
		bit      int64
		at       int
		set, off byte
	}{{0o4000, 2, 's', 'S'}, {0o2000, 5, 's', 'S'}, {0o1000, 8, 't', 'T'}} {
		if h.Mode&s.bit == 0 {
			continue
		}
		if b[s.at] == 'x' {
			b[s.at] = s.set
		} else {
			b[s.at] = s.off
		}
	}
	return t + string(b)
}

// openDiskPath opens the disk of a DISK:/path argument and finds the path in its tree. The caller closes the disk.
func openDiskPath(arg string, how imagebuild.DiskOptions) (o *imagebuild.Opened, real string, h *tar.Header, err error) {
	i := strings.LastIndex(arg, ":/")
	if i <= 0 {
		return nil, "", nil, usage("%q is not of the form DISK:/path", arg)
	}
	if o, err = imagebuild.OpenDisk(arg[:i], how); err != nil {
		return nil, "", nil, err
	}
	if real, err = o.Path(arg[i+1:]); err == nil {
		h, err = o.Root.Tree.Stat(real)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fs.ErrNotExist
	}
	if err != nil {
		o.Close()
		return nil, "", nil, fmt.Errorf("%s: %w", arg, err)
	}
	return o, real, h, nil
}

// addDiskFlags adds the flags of every command that opens a disk and looks for its root.
func addDiskFlags(cmd *cobra.Command, o *imagebuild.DiskOptions) {
	cmd.Flags().StringVar(&o.Root, "root", "", "the root `PARTITION`, where the disk leaves a choice: its number, name, label or UUID, or a logical volume's GROUP/NAME")
	addBackingFlag(cmd, &o.Options)
}

func addBackingFlag(cmd *cobra.Command, o *disk.Options) {
	cmd.Flags().BoolVar(&o.AllowBacking, "allow-backing", false, "open backing and data files of a qcow2 wherever they are; only for disks that you trust")
}
