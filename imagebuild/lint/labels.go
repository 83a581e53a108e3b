package lint

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/osroot/selinux"
	"github.com/nodebake/nodebake/storeseed/storageconf"
)

const labelRecord = "SCHILY.xattr.security.selinux"

// checkLabels asks whether the files of the stores have the labels that the disk's policy gives them, and whether it
// gives them those of the engine's own store.
func (v *view) checkLabels() error {
	policy, err := selinux.Load(v.o.Root.Tree, func(name string) (string, error) {
		at, err := v.sys.Locate(name)
		return at.Path, err
	})
	if err != nil {
		return err
	}
	if policy == nil {
		return nil
	}
	severity := Warning
	if policy.Mode == "enforcing" {
		severity = Error
	}
	ctx, cancel := context.WithTimeout(v.ctx, v.opts.LabelTime)
	defer cancel()
	for _, s := range v.readOnly() {
		const inside = "overlay/0/diff/x"
		got, _ := policy.Label(path.Join(s.Path, inside), tar.TypeReg)
		want, ok := policy.Label(path.Join(storageconf.DefaultGraphRoot, inside), tar.TypeReg)
		if ok && typeOf(got) != typeOf(want) {
			v.add(Finding{ID: "NB061", Severity: severity, What: fmt.Sprintf("the policy labels the store %s as %s, and the engine's own as %s", s.Path, dash(typeOf(got)), typeOf(want)),
				File: policy.SubsPath(), Why: "containers may not read files of that type", Mend: fmt.Sprintf("add the line \"%s %s\" to the file and relabel; nodebake build does", s.Path, storageconf.DefaultGraphRoot)})
		}
		c := labelCount{policy: policy}
		err := v.walk(ctx, s.Root, func(name string, h *tar.Header) { c.look(v.sys.Running(name), h) })
		if errors.Is(err, context.DeadlineExceeded) && v.ctx.Err() == nil {
			v.unseen(fmt.Sprintf("the labels of the store %s, after %d files in %s,", s.Path, c.files, v.opts.LabelTime), err)
		} else if err != nil {
			return err
		}
		relabel := "relabel the disk at its first boot (touch /.autorelabel), or bake it again"
		if c.bare > 0 {
			v.add(Finding{ID: "NB060", Severity: severity, What: fmt.Sprintf("%d of %d files of the store %s have no label, the first is %s", c.bare, c.files, s.Path, c.firstBare), File: s.Path,
				Why: "without one a file is unlabeled_t, which containers may not read", Mend: relabel})
		}
		if c.wrong > 0 {
			v.add(Finding{ID: "NB060", Severity: severity, What: fmt.Sprintf("%d of %d files of the store %s have the label of another type than the policy's, the first is %s", c.wrong, c.files, s.Path, c.firstWrong), File: s.Path,
				Why: "containers may not read them, and a relabel changes the store", Mend: relabel})
		}
		if c.other > 0 {
			v.add(Finding{ID: "NB060", Severity: Warning, What: fmt.Sprintf("%d of %d files of the store %s have a label whose user, role or level is not the policy's, the first is %s", c.other, c.files, s.Path, c.firstOther), File: s.Path,
				Why: "a relabel changes the store", Mend: relabel})
		}
	}
	return nil
}

// labelCount counts files whose label is not the policy's.
type labelCount struct {
	policy                            *selinux.Policy
	files, bare, wrong, other         int
	firstBare, firstWrong, firstOther string
}

func (c *labelCount) look(name string, h *tar.Header) {
	c.files++
	want, ok := c.policy.Label(name, h.Typeflag)
	if !ok {
		return
	}
	got := strings.TrimRight(h.PAXRecords[labelRecord], "\x00")
	first := func(at *string) {
		if *at == "" {
			*at = fmt.Sprintf("%s (%s, not %s)", name, dash(got), want)
		}
	}
	switch {
	case got == want:
	case got == "":
		c.bare++
		first(&c.firstBare)
	case typeOf(got) != typeOf(want):
		c.wrong++
		first(&c.firstWrong)
	default:
		c.other++
		first(&c.firstOther)
	}
}

// typeOf is the type of a context user:role:type:level.
func typeOf(label string) string {
	f := strings.SplitN(label, ":", 4)
	if len(f) < 3 {
		return label
	}
	return f[2]
}

func dash(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// maxDepth bounds how deep folders are nested that are looked at.
const maxDepth = 512

// walk calls look for a path of the tree and everything below it, folders first.
func (v *view) walk(ctx context.Context, root string, look func(string, *tar.Header)) error {
	type entry struct {
		name  string
		depth int
	}
	todo := []entry{{root, 0}}
	for len(todo) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		h, err := v.o.Root.Tree.Stat(e.name)
		if err != nil {
			return err
		}
		look(e.name, h)
		if h.Typeflag != tar.TypeDir {
			continue
		}
		if e.depth == maxDepth {
			return fmt.Errorf("/%s: folders are nested more than %d deep", e.name, maxDepth)
		}
		names, err := v.o.Root.Tree.ReadDir(e.name)
		if err != nil {
			return err
		}
		for i := len(names) - 1; i >= 0; i-- {
			todo = append(todo, entry{path.Join(e.name, names[i]), e.depth + 1})
		}
	}
	return nil
}
