package imagebuild

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/customize"
	"github.com/nodebake/nodebake/imagebuild/osroot"
)

// planCustom plans the changes of the OS that go beside the store, and refuses those that would undo the bake's own.
func (b *bake) planCustom() error {
	for _, d := range b.Customize.Deletes {
		if d = path.Clean("/" + d); b.Store == d || strings.HasPrefix(b.Store, d+"/") {
			return fmt.Errorf("%w: --delete %s would delete the store %s", ErrUsage, d, b.Store)
		}
	}
	plan, err := customize.NewPlan(b.base.Root, b.Customize)
	if errors.Is(err, customize.ErrUsage) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err != nil {
		return err
	}
	for _, w := range plan.Warnings() {
		b.warn("%s", w)
	}
	for _, p := range plan.Paths() {
		if i := slices.IndexFunc(b.edits, func(e edit) bool { return e.Path == p }); i >= 0 {
			return fmt.Errorf("%w: %s is written by the bake itself (%s)", ErrUsage, b.edits[i].Name, b.edits[i].Why)
		}
		if p == b.storeRoot || strings.HasPrefix(p, b.storeRoot+"/") {
			return fmt.Errorf("%w: /%s lies in the store, which nothing else may change", ErrUsage, p)
		}
	}
	for _, s := range b.base.Root.Systems {
		if _, known := b.policies[s]; known {
			continue
		}
		// A system without the store has its labels all the same.
		if b.policies[s], err = loadPolicy(b.base.Root, s); err != nil {
			return err
		}
	}
	b.custom = plan
	return nil
}

// writer gives new files the labels of a system.
func (b *bake) writer(tree labelled, s *osroot.System) labelled {
	return labelled{tree.Tree, s, b.policies[s]}
}

// Butane is a snippet for those whose Ignition configuration writes storage.conf: with it that file stays as it is on
// this disk.
func Butane(o *Opened) (string, error) {
	tree, err := o.Config()
	if err != nil {
		return "", err
	}
	if tree.Main == nil {
		return "", fmt.Errorf("%w: the disk has no storage.conf", ErrUsage)
	}
	if len(tree.Config.AdditionalImageStores) == 0 {
		return "", fmt.Errorf("%w: %s names no additional store; bake the disk first", ErrUsage, tree.Main.Name)
	}
	return customize.Butane(o.Root, tree.Config.AdditionalImageStores[0], tree.Main.Data), nil
}
