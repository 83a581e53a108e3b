package storeseed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
)

// VerifyOptions bound a verification. The zero value checks everything.
type VerifyOptions struct {
	// MaxFaults is how many faults are kept; further ones are counted only. 0 is 1000.
	MaxFaults int
	// TimeResolution is the precision of the filesystem's timestamps; 0 is a nanosecond.
	TimeResolution time.Duration
	// Earliest and Latest bound the times that the filesystem can hold: an entry beyond them is there with the bound.
	// Zero is no bound.
	Earliest, Latest time.Time
	// RecordsOnly checks the records, links and data items and leaves out the layers' contents.
	RecordsOnly bool
	// Deep also looks at what no layer and no record describes: the owner and mode of the store's own files, files
	// beside them, hard links between files that are not one in the layer, and labels. All but the labels are known
	// of layers alone that this package wrote.
	Deep bool
	// Label, if set, gives with Deep the SELinux label that each file should have, false where that is not known: path
	// is absolute in the filesystem, typeflag as in archive/tar. A store in which no file has a label is not compared.
	Label func(path string, typeflag byte) (string, bool)
	// Progress, if set, is called when a layer is begun. Layers are checked at the same time, and end in any order.
	Progress func(layer, layers int, id string)
	Log      logrus.FieldLogger
}

// held is what becomes of a time in the filesystem.
func (o VerifyOptions) held(t time.Time) time.Time {
	switch {
	case !o.Earliest.IsZero() && t.Before(o.Earliest):
		return o.Earliest
	case !o.Latest.IsZero() && t.After(o.Latest):
		return o.Latest
	}
	return t.Truncate(o.TimeResolution)
}

// Fault is one thing that is wrong with a store.
type Fault struct {
	Image   string `json:"image,omitempty"` // image ID
	Layer   string `json:"layer,omitempty"` // layer ID
	Path    string `json:"path,omitempty"`  // inside the layer's folder, else in the store
	Problem string `json:"problem"`
}

func (f Fault) String() string {
	var b strings.Builder
	for _, p := range []struct{ kind, v string }{{"image ", f.Image}, {"layer ", f.Layer}} {
		if p.v != "" {
			fmt.Fprintf(&b, "%s%.12s: ", p.kind, p.v)
		}
	}
	if f.Path != "" {
		fmt.Fprintf(&b, "%q: ", f.Path)
	}
	return b.String() + f.Problem
}

// Report is the outcome of a verification.
type Report struct {
	Images  int   `json:"images"`
	Layers  int   `json:"layers"`
	Entries int64 `json:"entries"` // tar entries that were compared
	Bytes   int64 `json:"bytes"`   // tar bytes that were rebuilt and hashed
	// Labels is how many files have another SELinux label than they should; they are among the faults.
	Labels int     `json:"labels,omitempty"`
	Faults []Fault `json:"faults"`
	Total  int     `json:"total"` // faults found, of which Faults keeps the first
}

// Verify checks the store at root against its own promises: every layer's tar is rebuilt from the
// files on disk and hashed against its diffID, every entry of that tar compared with its file, every
// file accounted for by an entry, and all records, links and data items checked against each other.
// It reports all faults, in an order that depends on the store alone. The error is for what kept it from
// looking: no store there, or ctx. r is used concurrently; memory grows with the entries of the largest layers.
func Verify(ctx context.Context, r Reader, root string, o VerifyOptions) (*Report, error) {
	root, err := cleanName(root)
	if err != nil {
		return nil, fmt.Errorf("store path: %w", err)
	}
	if err := isStore(r, root); err != nil {
		return nil, err
	}
	if o.MaxFaults == 0 {
		o.MaxFaults = 1000
	}
	if o.TimeResolution <= 0 {
		o.TimeResolution = time.Nanosecond
	}
	v := &verifier{ctx: ctx, r: r, root: root, o: o, rep: &Report{Faults: []Fault{}}, blobs: map[string]layerUse{}}
	rec, err := readRecords(r, root, func(f Fault) error {
		v.fault(f)
		return nil
	})
	if err != nil {
		return nil, err
	}
	v.rec = rec
	v.rep.Images, v.rep.Layers = len(rec.images), len(rec.layers)
	v.whose()
	v.locks()
	v.strays()
	v.layers()
	for _, im := range rec.images {
		v.image(im)
	}
	v.owners()
	if o.Deep {
		v.ownFiles()
	}
	if v.labelled {
		for _, f := range v.labels.kept {
			v.fault(f)
		}
		v.rep.Total += v.labels.total - len(v.labels.kept)
		v.rep.Labels = v.labels.total
	}
	return v.rep, ctx.Err()
}

type verifier struct {
	ctx  context.Context
	r    Reader
	root string
	o    VerifyOptions
	rec  *records
	rep  *Report

	ours     map[string]bool // layers that this package wrote
	allOurs  bool            // so that the whole store is
	blobs    map[string]layerUse
	labels   faultList // of labels, which count if any file has one
	labelled bool
}

// faultList keeps the first faults and counts all.
type faultList struct {
	kept  []Fault
	total int
}

func (l *faultList) add(f Fault, most int) {
	l.total++
	if len(l.kept) < most {
		l.kept = append(l.kept, f)
	}
}

func (v *verifier) fault(f Fault) {
	v.rep.Total++
	if len(v.rep.Faults) < v.o.MaxFaults {
		v.rep.Faults = append(v.rep.Faults, f)
	}
	if v.o.Log != nil {
		v.o.Log.Debug(f)
	}
}

// whose finds out which layers this package wrote: it alone derives short names from IDs.
func (v *verifier) whose() {
	v.ours, v.allOurs = map[string]bool{}, true
	for _, l := range v.rec.layers {
		link, err := readLink(v.r, v.root, l.ID)
		for try := 0; err == nil && try < 8 && !v.ours[l.ID]; try++ {
			v.ours[l.ID] = link == linkName(l.ID, try)
		}
		v.allOurs = v.allOurs && v.ours[l.ID]
	}
}

// layers checks the layers, some at a time. Their faults are taken up in the order of the records.
func (v *verifier) layers() {
	type result struct {
		c    *layerCheck
		done chan struct{}
	}
	n := len(v.rec.layers)
	workers := max(1, min(runtime.GOMAXPROCS(0), maxVerifiers, n))
	if v.o.RecordsOnly {
		workers = 1
	}
	// What is done waits for its turn, so no one gets far ahead.
	pending := make(chan result, 2*workers)
	turns := make(chan struct{}, workers)
	go func() {
		defer close(pending)
		for i, l := range v.rec.layers {
			if v.ctx.Err() != nil {
				return
			}
			turns <- struct{}{}
			if v.o.Progress != nil {
				v.o.Progress(i, n, l.ID)
			}
			res := result{newLayerCheck(v, l), make(chan struct{})}
			go func() {
				defer close(res.done)
				defer func() { <-turns }()
				res.c.shortNames()
				if !v.o.RecordsOnly {
					res.c.check()
				}
			}()
			pending <- res
		}
	}()
	for res := range pending {
		<-res.done
		v.rep.Entries += res.c.entries
		v.rep.Bytes += res.c.bytes
		for _, f := range res.c.faults.kept {
			v.fault(f)
		}
		v.rep.Total += res.c.faults.total - len(res.c.faults.kept)
		for _, f := range res.c.labels.kept {
			v.labels.add(f, v.o.MaxFaults)
		}
		v.labels.total += res.c.labels.total - len(res.c.labels.kept)
		v.labelled = v.labelled || res.c.labelled
	}
}

// maxVerifiers bounds how many layers are checked at a time, and so the memory for it.
const maxVerifiers = 8

// why shortens an error to what a reader of the report needs.
func why(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "it is missing"
	}
	return err.Error()
}

// locks: an engine fails on a read-only filesystem without them.
func (v *verifier) locks() {
	for _, name := range []string{layersLock, imagesLock} {
		if _, err := v.r.Open(v.root + "/" + name); err != nil {
			v.fault(Fault{Path: name, Problem: why(err)})
		}
	}
}

// strays are folders and links that no record accounts for.
func (v *verifier) strays() {
	links := map[string]string{}
	for _, l := range v.rec.layers {
		if link, err := readLink(v.r, v.root, l.ID); err == nil {
			links[link] = l.ID
		}
	}
	names, err := v.r.ReadDir(v.root + "/overlay")
	if err != nil && (len(v.rec.layers) > 0 || !errors.Is(err, fs.ErrNotExist)) {
		v.fault(Fault{Path: "overlay", Problem: why(err)})
	}
	for _, n := range names {
		if isID(n) && v.rec.byLayer[n] == nil {
			v.fault(Fault{Layer: n, Path: "overlay/" + n, Problem: "no record names this layer"})
		}
	}
	names, err = v.r.ReadDir(v.root + "/overlay/l")
	if err != nil && len(v.rec.layers) > 0 {
		v.fault(Fault{Path: "overlay/l", Problem: why(err)})
	}
	for _, n := range names {
		if links[n] == "" {
			v.fault(Fault{Path: "overlay/l/" + n, Problem: "no layer has this short name"})
		}
	}
	names, err = v.r.ReadDir(v.root + "/" + imagesDir)
	if err != nil && len(v.rec.images) > 0 {
		v.fault(Fault{Path: imagesDir, Problem: why(err)})
	}
	for _, n := range names {
		if isID(n) && v.rec.byImage[n] == nil {
			v.fault(Fault{Image: n, Path: imagesDir + "/" + n, Problem: "no record names this image"})
		}
	}
}
