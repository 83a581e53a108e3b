package imagebuild

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/imagebuild/attest"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
	"github.com/nodebake/nodebake/imagebuild/sbom"
)

// Evidence says what is told of a disk in files beside it.
type Evidence struct {
	// SBOM are the formats in which a bill of materials is written: OUT.spdx.json, OUT.cdx.json.
	SBOM []sbom.Format
	// Provenance is a statement of what the disk was made of, and how: OUT.provenance.json.
	Provenance bool
	// Key signs each of them (OUT.….dsse.json) and the disk (OUT.sig); nil signs nothing.
	Key *attest.Key
	// Program is nodebake's version.
	Program string
}

func (e Evidence) any() bool { return len(e.SBOM) > 0 || e.Provenance || e.Key != nil }

// document is one thing that is told: the ending of its file's name, its type in a statement, and what it says.
type document struct {
	ending, predicate string
	// statement says that text is a statement itself.
	statement bool
	make      func(subjects []attest.Resource) ([]byte, error)
}

// documents are what is told of this bake's disk.
func (b *bake) documents() []document {
	var docs []document
	for _, f := range b.SBOM {
		kind := attest.SPDXType
		if f == sbom.CycloneDX {
			kind = attest.CycloneDXType
		}
		docs = append(docs, document{ending: f.Ending(), predicate: kind, make: func(subjects []attest.Resource) ([]byte, error) {
			b.bill.Name, b.bill.Digest = subjects[0].Name, subjects[0].Digest
			var text bytes.Buffer
			err := b.bill.Write(&text, f)
			return text.Bytes(), err
		}})
	}
	if b.Provenance {
		docs = append(docs, document{ending: ".provenance.json", statement: true, make: b.provenance})
	}
	return docs
}

// signed is the ending of a document's signed form.
func (d document) signed() string { return strings.TrimSuffix(d.ending, ".json") + ".dsse.json" }

// evidenceNames are the endings of the files beside the disk.
func (b *bake) evidenceNames() []string {
	var names []string
	for _, d := range b.documents() {
		names = append(names, d.ending)
		if b.Key != nil {
			names = append(names, d.signed())
		}
	}
	if b.Key != nil && b.Key.SignsDisks() {
		names = append(names, ".sig")
	}
	return names
}

// tell writes what is told of the disk; the first subject is the file that has it.
func (b *bake) tell(subjects []attest.Resource, write func(ending string, text []byte) error) error {
	for _, d := range b.documents() {
		text, err := d.make(subjects)
		if err != nil {
			return err
		}
		if err := write(d.ending, append(bytes.TrimRight(text, "\n"), '\n')); err != nil {
			return err
		}
		if b.Key == nil {
			continue
		}
		if !d.statement {
			if text, err = attest.Document(subjects, d.predicate, text); err != nil {
				return err
			}
		}
		if text, err = b.Key.Envelope(attest.PayloadType, text); err != nil {
			return err
		}
		if err := write(d.signed(), append(text, '\n')); err != nil {
			return err
		}
	}
	if b.Key == nil || !b.Key.SignsDisks() {
		return nil
	}
	sig, err := b.Key.SignDigest(subjects[0].Digest)
	if err != nil {
		return err
	}
	return write(".sig", append(sig, '\n'))
}

// collectBill reads the bill of materials from what was written; the volumes that were not are read from the base.
func (b *bake) collectBill(ctx context.Context) error {
	if len(b.SBOM) == 0 {
		return nil
	}
	b.Log.Info("reading the package databases of the OS and of the images")
	root := b.base.Root
	tree, err := root.With(func(v osroot.Volume) (filesystem.Reader, error) {
		w := b.room.opened[v.At]
		if w == nil {
			return nil, nil
		}
		return w.reopen()
	})
	if err != nil {
		return err
	}
	if b.partition != nil {
		v := b.storeVolume()
		r, err := v.reopen()
		if err != nil {
			return err
		}
		tree.Graft(filesystem.Graft{At: v.at, Reader: r})
	}
	stores, err := b.base.Stores()
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(stores, func(s Store) bool { return s.Root == b.storeRoot }) {
		stores = append([]Store{{Path: b.Store, Root: b.storeRoot}}, stores...)
	}
	b.bill, err = bill(ctx, tree, b.base, stores, sbom.Input{Created: b.report.Epoch, Version: b.Program})
	return err
}

// Bill collects what is on a disk: its system, its images, and their packages. The sum of the disk's file is in it.
func Bill(ctx context.Context, o *Opened, in sbom.Input) (*sbom.Document, error) {
	stores, err := o.Stores()
	if err != nil {
		return nil, err
	}
	sum, err := sumFile(ctx, o.Disk.File())
	if err != nil {
		return nil, err
	}
	in.Digest = sum.Digest
	return bill(ctx, o.Root.Tree, o, stores, in)
}

func bill(ctx context.Context, tree *filesystem.Tree, o *Opened, stores []Store, in sbom.Input) (*sbom.Document, error) {
	for _, s := range stores {
		in.Stores = append(in.Stores, sbom.Store{Path: s.Path, Root: s.Root})
	}
	r := o.Root.Release
	in.OS = &sbom.System{ID: r.ID, VersionID: r.VersionID, PrettyName: r.PrettyName, Locate: o.Path}
	return sbom.Collect(ctx, tree, in)
}

// provenance is the statement of how the disk was made; docs/provenance.md says what its parameters mean.
func (b *bake) provenance(subjects []attest.Resource) ([]byte, error) {
	p := map[string]any{"base": b.Base, "images": b.Images, "store": b.Store, "platform": b.report.Platform, "format": string(b.out.OutputOptions.Format)}
	add := func(name string, value any, given bool) {
		if given {
			p[name] = value
		}
	}
	o, c := b.out.OutputOptions, b.Customize
	add("basePath", b.BasePath, b.BasePath != "")
	add("size", b.Size.String(), !b.Size.auto())
	add("storePartition", b.StorePartition, b.StorePartition != "")
	add("compression", o.Compression, o.Compression != "")
	add("level", o.Level, o.Level != 0)
	add("clusterSize", o.ClusterSize, o.ClusterSize != 0)
	add("overlay", true, o.Overlay)
	add("diskPath", b.out.DiskPath, b.out.DiskPath != "")
	add("pin", true, b.Pin)
	add("locked", true, b.Locked)
	var tags, copies, writes []string
	for _, t := range b.Tags {
		tags = append(tags, t.Name+"="+t.Reference)
	}
	for _, one := range c.Copies {
		copies = append(copies, one.Src+":"+one.Dst)
	}
	for _, one := range c.Writes {
		writes = append(writes, one.Dst) // what it holds may be a secret
	}
	for name, list := range map[string][]string{"tags": tags, "copy": copies, "write": writes, "delete": c.Deletes, "kargAppend": c.KargAppend,
		"kargDelete": c.KargDelete, "kargReplace": c.KargReplace} {
		add(name, list, len(list) > 0)
	}
	add("ignition", c.Ignition, c.Ignition != "")
	add("ignitionPlatform", c.IgnitionPlatform, c.IgnitionPlatform != "")
	add("hostname", c.Hostname, c.Hostname != "")
	add("resetIdentity", true, c.ResetIdentity)

	base := attest.Resource{Name: b.Base, Digest: b.report.Base.Digest}
	if d := b.report.BaseImage; d != "" {
		name := strings.TrimPrefix(b.Base, "docker://")
		base.URI, base.Annotations = sbom.ImagePURL(name, d), map[string]any{"manifest": d.String()}
	}
	materials := []attest.Resource{base}
	for _, f := range slices.Concat(b.report.Base.Backing, b.report.Inputs) {
		materials = append(materials, attest.Resource{Name: f.Path, Digest: f.Digest})
	}
	for _, i := range b.report.Images {
		name := i.Reference
		if len(i.Names) > 0 {
			name = i.Names[0]
		}
		materials = append(materials, attest.Resource{Name: i.Reference, URI: sbom.ImagePURL(name, i.ManifestDigest), Digest: i.ManifestDigest})
	}
	return attest.Provenance(attest.Build{Subjects: subjects, Parameters: p, Materials: materials, Version: b.Program, Finished: b.Epoch})
}

// sumInputs sums up the files of this machine, beside the base and the images, that the disk depends on.
func (b *bake) sumInputs(ctx context.Context) error {
	if !b.Digests {
		return nil
	}
	var names []string
	add := func(name string) {
		if name != "" {
			names = append(names, name)
		}
	}
	add(b.Customize.Ignition)
	if b.Locked {
		add(b.Lock)
	}
	for _, c := range b.Customize.Copies {
		err := filepath.WalkDir(c.Src, func(name string, e fs.DirEntry, err error) error {
			if err == nil && e.Type().IsRegular() {
				add(name)
			}
			return errors.Join(err, ctx.Err())
		})
		if err != nil {
			return fmt.Errorf("summing up the input: %w", err)
		}
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("summing up the input: %w", err)
		}
		sum, err := sumFile(ctx, f)
		f.Close()
		if err != nil {
			return fmt.Errorf("summing up the input %s: %w", name, err)
		}
		sum.Path = name
		b.report.Inputs = append(b.report.Inputs, sum)
	}
	return nil
}

// subject is a file that was made.
func subject(path string, d digest.Digest) attest.Resource {
	return attest.Resource{Name: filepath.Base(path), Digest: d}
}
