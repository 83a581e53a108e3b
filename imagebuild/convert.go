package imagebuild

import (
	"context"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
)

// Convert writes the contents of the disk image at in, which is opened by from, to out, whose kind o says; an empty
// Format is told from out's ending. What is on the disk does not matter. in is only read, and out appears when it is
// whole.
func Convert(ctx context.Context, in, out string, from disk.Options, o output.Options) error {
	d, err := disk.OpenImage(in, from)
	if err != nil {
		return err
	}
	defer d.Close()
	if o.Format == "" {
		o.Format = FormatOf(out)
	}
	t, err := output.Create(ctx, d, out, o)
	if err != nil {
		return err
	}
	defer t.Abort()
	return t.Finish(ctx)
}
