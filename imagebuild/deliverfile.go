package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/imagebuild/attest"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/output"
	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/imagebuild/output/newfile"
	"github.com/nodebake/nodebake/qcow"
)

// fileSink is a qcow2 or raw file.
type fileSink string

func (fileSink) kind() string   { return "a file" }
func (s fileSink) file() string { return string(s) }

func (s fileSink) check(_ context.Context, v *delivery, base *disk.Disk) error {
	if err := output.Check(base, string(s), v.OutputOptions); err != nil {
		return err
	}
	return v.checkBeside(base)
}

func (s fileSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	rep := v.describe(t)
	var b beside
	defer b.abort()
	err := t.Finish(ctx, func(f *qcow.Image) error {
		bmap := v.Bmap && v.OutputOptions.Format == disk.Raw
		if !v.Checksum && !bmap && v.tell == nil {
			return nil
		}
		v.log.Infof("summing up %s", v.Output)
		res, err := bare.Sum(ctx, f, bare.Options{Bmap: bmap, Progress: v.progressOf("summed up", f.Size())})
		if err != nil {
			return err
		}
		return v.addBeside(&b, &rep, res)
	})
	if err != nil {
		return rep, err
	}
	return rep, b.place()
}

// packedSink is a raw disk in a compressed file.
type packedSink struct {
	path string
	o    bare.Options
}

func (packedSink) kind() string   { return "a compressed file" }
func (s packedSink) file() string { return s.path }

func (s packedSink) check(_ context.Context, v *delivery, base *disk.Disk) error {
	if err := output.Check(base, s.path, v.OutputOptions); err != nil {
		return err
	}
	return v.checkBeside(base)
}

func (s packedSink) deliver(ctx context.Context, v *delivery, t *output.Target) (OutputReport, error) {
	rep := v.describe(t)
	var b beside
	defer b.abort()
	err := t.Deliver(ctx, func(d *qcow.Image) error {
		f, err := newfile.Create(v.workDir())
		if err != nil {
			return err
		}
		defer f.Abort()
		v.log.Infof("compressing the disk to %s", s.path)
		o := s.o
		o.Progress = v.progressOf("compressed", d.Size())
		res, err := bare.Compress(ctx, f, d, o)
		if err != nil {
			return err
		}
		if err := v.addBeside(&b, &rep, res); err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), t.Unchanged()); err != nil {
			return err
		}
		return output.Place(f, s.path, v.OutputOptions.Force)
	})
	if err != nil {
		return rep, err
	}
	return rep, b.place()
}

// besides are the files that will lie beside a file, whatever it holds.
func (v *delivery) besides() []string {
	var names []string
	if v.file() == "" {
		return nil
	}
	name := filepath.Clean(v.file())
	if _, isImage := v.sink.(imageSink); !isImage {
		if v.Checksum {
			names = append(names, bare.SumName(name))
		}
		if v.Bmap && v.OutputOptions.Format == disk.Raw {
			names = append(names, bare.BmapName(name))
		}
	}
	for _, e := range v.endings {
		names = append(names, name+e)
	}
	return names
}

// checkBeside refuses places beside the output that cannot be used. Files there belong to the output of that name, and
// go with it.
func (v *delivery) checkBeside(base *disk.Disk) error {
	for _, name := range v.besides() {
		st, err := os.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case base.Uses(st):
			return fmt.Errorf("%s: %w, and would be replaced; choose another --output", name, output.ErrIsBase)
		case !st.Mode().IsRegular():
			return fmt.Errorf("%s is in the way of a file that belongs to the output, and is no file; choose another --output", name)
		}
	}
	return nil
}

// addBeside makes the files that lie beside an output, and notes them in its report.
func (v *delivery) addBeside(b *beside, rep *OutputReport, res bare.Result) error {
	name := v.file()
	rep.FileSize, rep.Digest = res.Size, digest.NewDigestFromBytes(digest.SHA256, res.SHA256[:])
	if v.Checksum {
		if err := b.add(bare.SumName(name), []byte(bare.SumLine(name, res.SHA256))); err != nil {
			return err
		}
	}
	if res.Bmap != nil {
		if err := b.add(bare.BmapName(name), res.Bmap.Bytes()); err != nil {
			return err
		}
	}
	err := v.addTold(b, subject(name, rep.Digest))
	rep.Beside = b.names
	return err
}

// addTold makes the files that say more of an output.
func (v *delivery) addTold(b *beside, subjects ...attest.Resource) error {
	if v.tell == nil {
		return nil
	}
	return v.tell(subjects, func(ending string, text []byte) error { return b.add(filepath.Clean(v.file())+ending, text) })
}

// beside are files that get their names when their output has its.
type beside struct {
	names []string
	files []*newfile.File
}

func (b *beside) add(name string, text []byte) error {
	f, err := newfile.Create(filepath.Dir(name))
	if err != nil {
		return err
	}
	b.names, b.files = append(b.names, name), append(b.files, f)
	if _, err := f.Write(text); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

func (b *beside) place() error {
	for i, f := range b.files {
		if err := f.Place(b.names[i], true); err != nil {
			return fmt.Errorf("the disk is whole and has its name, but what belongs beside it has not: %w", err)
		}
	}
	if len(b.files) > 0 {
		return newfile.SyncDir(filepath.Dir(b.names[0]))
	}
	return nil
}

func (b *beside) abort() {
	for _, f := range b.files {
		f.Abort()
	}
}
