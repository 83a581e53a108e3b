package storeseed

import (
	"archive/tar"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// linkCounter tells how many names a file has.
type linkCounter interface {
	Links(name string) (uint64, error)
}

// linkCount holds what a layer says of its hard links against how many names its files have.
type linkCount struct {
	first map[uint64]uint64 // of a name that is a hard link, by hash: the one that came first
	more  map[uint64]uint64 // how many links there are to that
	many  []manyNames       // files that have more than one name
}

type manyNames struct {
	path string
	n    uint64
}

// add notes an entry that is a hard link to another.
func (l *linkCount) add(name, target uint64) {
	if l.first == nil {
		l.first, l.more = map[uint64]uint64{}, map[uint64]uint64{}
	}
	if first, ok := l.first[target]; ok {
		target = first
	}
	l.first[name] = target
	l.more[target]++
}

// countLinks notes a file that has more names than one.
func (c *layerCheck) countLinks(name string, got *tar.Header) {
	lc, ok := c.v.r.(linkCounter)
	if !c.v.o.Deep || !c.ours || !ok || got.Typeflag == tar.TypeDir {
		return
	}
	n, err := lc.Links(c.path(name))
	if err != nil {
		c.fault(name, "%s", why(err))
	} else if n > 1 {
		c.links.many = append(c.links.many, manyNames{name, n})
	}
}

// finishLinks finds files that are one file, but not by the layer.
func (c *layerCheck) finishLinks() {
	for _, m := range c.links.many {
		if want := 1 + c.links.more[c.hash(m.path)]; m.n != want {
			c.fault(m.path, "it has %d names, the layer gives it %d: something else is a hard link to it", m.n, want)
		}
	}
}

// label compares a file's SELinux label with the one that it should have.
func (c *layerCheck) label(name string, got *tar.Header) {
	if f, ok := c.v.wrongLabel(c.path(name), got, &c.labelled); ok {
		f.Layer, f.Path = c.l.ID, name
		c.labels.add(f, c.v.o.MaxFaults)
	}
}

const labelXattr = xattrPrefix + "security.selinux"

// wrongLabel says whether a file has another label than it should have, and notes whether it has any.
func (v *verifier) wrongLabel(name string, got *tar.Header, any *bool) (Fault, bool) {
	if !v.o.Deep || v.o.Label == nil {
		return Fault{}, false
	}
	is, has := got.PAXRecords[labelXattr]
	*any = *any || has
	want, known := v.o.Label("/"+name, got.Typeflag)
	if !known || strings.TrimRight(is, "\x00") == want {
		return Fault{}, false
	}
	if !has {
		return Fault{Problem: fmt.Sprintf("it has no label instead of %s", want)}, true
	}
	return Fault{Problem: fmt.Sprintf("its label is %q instead of %s", strings.TrimRight(is, "\x00"), want)}, true
}

// ownFiles looks at the store's own files and folders: those that this package writes have a known owner and mode,
// and nothing may be beside them.
func (v *verifier) ownFiles() {
	if v.allOurs {
		v.own(Fault{}, "", tar.TypeDir, nil)
		for _, name := range []string{"overlay", "overlay/l", layersDir, imagesDir} {
			v.own(Fault{Path: name}, name, tar.TypeDir, nil)
		}
		for _, name := range []string{layersJSON, imagesJSON, layersLock, imagesLock, storageLock} {
			if ok, _ := exists(v.r, v.root+"/"+name); ok { // that it must be there is said elsewhere
				v.own(Fault{Path: name}, name, tar.TypeReg, nil)
			}
		}
		v.only("", "overlay", layersDir, imagesDir, storageLock, "lost+found")
		layers := []string{"layers.json", "layers.lock"}
		folders := []string{"l"}
		for _, l := range v.rec.layers {
			layers = append(layers, l.ID+".tar-split.gz")
			folders = append(folders, l.ID)
		}
		v.only(layersDir, layers...)
		v.only("overlay", folders...)
		images := []string{"images.json", "images.lock"}
		for _, im := range v.rec.images {
			images = append(images, im.ID)
			v.ownImage(im)
		}
		v.only(imagesDir, images...)
	}
	for _, l := range v.rec.layers {
		if v.ctx.Err() != nil {
			return
		}
		if v.ours[l.ID] {
			v.ownLayer(l)
		}
	}
}

func (v *verifier) ownImage(im *imageRec) {
	dir := imagesDir + "/" + im.ID
	v.own(Fault{Image: im.ID, Path: dir}, dir, tar.TypeDir, nil)
	names := []string{}
	for _, key := range im.BigDataNames {
		names = append(names, bigDataFile(key))
		v.own(Fault{Image: im.ID, Path: dir + "/" + bigDataFile(key)}, dir+"/"+bigDataFile(key), tar.TypeReg, nil)
	}
	v.only(dir, names...)
}

func (v *verifier) ownLayer(l *layerRec) {
	dir := "overlay/" + l.ID
	h, err := v.r.Stat(v.root + "/" + dir)
	if err != nil {
		return // reported with the layer
	}
	// One bake writes them all.
	when := &h.ModTime
	own := func(name string, typ byte) { v.own(Fault{Layer: l.ID, Path: name}, name, typ, when) }
	own(dir, tar.TypeDir)
	own(dir+"/link", tar.TypeReg)
	second := "lower"
	if l.Parent == "" {
		second = "empty"
		own(dir+"/empty", tar.TypeDir)
		v.only(dir + "/empty")
	} else {
		own(dir+"/lower", tar.TypeReg)
	}
	if link, err := readLink(v.r, v.root, l.ID); err == nil {
		own("overlay/l/"+link, tar.TypeSymlink)
	}
	own(layersDir+"/"+l.ID+".tar-split.gz", tar.TypeReg)
	v.only(dir, "diff", "link", second)
}

// own checks one of the store's own files. It is f's.
func (v *verifier) own(f Fault, name string, typ byte, when *time.Time) {
	full := path.Join(v.root, name)
	fault := func(format string, a ...any) {
		f.Problem = fmt.Sprintf(format, a...)
		v.fault(f)
	}
	got, err := v.r.Stat(full)
	if err != nil {
		fault("%s", why(err))
		return
	}
	if wrong, ok := v.wrongLabel(full, got, &v.labelled); ok {
		f := f
		f.Problem = wrong.Problem
		v.labels.add(f, v.o.MaxFaults)
	}
	if got.Typeflag != typ {
		fault("it is a %s instead of a %s", typeName(got.Typeflag), typeName(typ))
		return
	}
	mode := int64(0o644)
	switch {
	case typ == tar.TypeDir:
		mode = 0o755
	case typ == tar.TypeSymlink:
		mode = 0o777
	}
	// The store's own folder may have been there before.
	if name != "" && (got.Mode != mode || got.Uid != 0 || got.Gid != 0) {
		fault("it is %04o %d:%d instead of %04o 0:0", got.Mode, got.Uid, got.Gid, mode)
	}
	for _, k := range slices.Sorted(maps.Keys(got.PAXRecords)) {
		if attr, ok := strings.CutPrefix(k, xattrPrefix); ok && k != labelXattr && name != "" {
			fault("it has the attribute %s", attr)
		}
	}
	if when != nil && !v.o.held(*when).Equal(v.o.held(got.ModTime)) {
		fault("modification time is %s instead of the %s of its layer's folder", got.ModTime.UTC().Format(time.RFC3339Nano), when.UTC().Format(time.RFC3339Nano))
	}
	if lc, ok := v.r.(linkCounter); ok && typ != tar.TypeDir {
		if n, err := lc.Links(full); err == nil && n != 1 {
			fault("it has %d names: something else is a hard link to it", n)
		}
	}
}

// only wants a folder of the store to hold nothing but names.
func (v *verifier) only(dir string, names ...string) {
	have, err := v.r.ReadDir(path.Join(v.root, dir))
	if err != nil {
		return // reported elsewhere
	}
	want := map[string]bool{}
	for _, n := range names {
		want[n] = true
	}
	for _, n := range have {
		stray := dir == "overlay" || dir == imagesDir // where folders are looked for in any case
		if !want[n] && !(stray && isID(n)) {
			v.fault(Fault{Path: path.Join(dir, n), Problem: "no record accounts for it"})
		}
	}
}
