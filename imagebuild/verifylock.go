package imagebuild

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/storeseed"
)

// LockVerification is what the comparison of the stores with a lock found.
type LockVerification struct {
	File   string      `json:"file"`
	Images int         `json:"images"` // of the lock
	Faults []LockFault `json:"faults"`
}

// LockFault is one difference between a lock and the stores.
type LockFault struct {
	// Reference is the lock's; empty for an image that the lock does not have.
	Reference string `json:"reference,omitempty"`
	Store     string `json:"store,omitempty"`
	// Image is the ID of an image in the store.
	Image   string `json:"image,omitempty"`
	Problem string `json:"problem"`
}

func (f LockFault) String() string {
	s := f.Problem
	if f.Image != "" {
		s = fmt.Sprintf("image %.12s: %s", f.Image, s)
	}
	for _, part := range []string{f.Store, f.Reference} {
		if part != "" {
			s = part + ": " + s
		}
	}
	return s
}

// storedIn is an image and where it is.
type storedIn struct {
	storeseed.Image
	store Store
}

// lock compares the images of the stores, all taken together, with those of a lock.
func (v *verification) lock(l *Lock, stores []Store) {
	out := &LockVerification{File: v.vo.Lock, Images: len(l.Images), Faults: []LockFault{}}
	v.out.Lock = out
	fault := func(f LockFault) {
		v.out.Faults++
		if len(out.Faults) < maxVerifyFaults {
			out.Faults = append(out.Faults, f)
		}
	}
	var have []storedIn
	for _, s := range stores {
		images, err := storeseed.List(v.o.Root.Tree, s.Root)
		if err != nil {
			fault(LockFault{Store: path.Clean(s.Path), Problem: err.Error()})
			continue
		}
		for _, i := range images {
			// An image has a row for each of its names.
			if !slices.ContainsFunc(have, func(o storedIn) bool { return o.ID == i.ID && o.store.Root == s.Root }) {
				have = append(have, storedIn{i, s})
			}
		}
	}
	// What the references of the lock allow an image to be called; nil where one of them does not say.
	names := map[string][]string{}
	open := map[string]bool{}
	for _, want := range l.Images {
		id := want.Config.Encoded()
		known, err := lockedNames(want.Reference)
		if err != nil {
			fault(LockFault{Reference: want.Reference, Problem: err.Error()})
		}
		names[id] = append(names[id], known...)
		if known == nil {
			open[id] = true
		}
		in := slices.IndexFunc(have, func(s storedIn) bool { return s.ID == id })
		if in < 0 {
			fault(LockFault{Reference: want.Reference, Problem: fmt.Sprintf("it is in no store (%s)", want.Config)})
			continue
		}
		for _, s := range have {
			if s.ID == id {
				for _, p := range v.locked(want, known, l.Platform, s) {
					fault(LockFault{want.Reference, path.Clean(s.store.Path), s.ID, p})
				}
			}
		}
	}
	for _, s := range have {
		allowed, is := names[s.ID]
		if !is {
			called := "it has no name"
			if len(s.Names) > 0 {
				called = "it is " + strings.Join(s.Names, ", ")
			}
			hint := ""
			if len(stores) > 1 {
				hint = "; --store holds the lock against one store alone"
			}
			fault(LockFault{Store: path.Clean(s.store.Path), Image: s.ID, Problem: fmt.Sprintf("the lock does not have it; %s%s", called, hint)})
			continue
		}
		for _, n := range s.Names {
			if !open[s.ID] && !slices.Contains(allowed, n) {
				fault(LockFault{Store: path.Clean(s.store.Path), Image: s.ID, Problem: fmt.Sprintf("the lock does not call it %q", n)})
			}
		}
	}
}

// locked says in what an image of a store is not what the lock has.
func (v *verification) locked(want LockedImage, names []string, platform string, s storedIn) (problems []string) {
	bad := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	for _, d := range []struct {
		what string
		is   digest.Digest
	}{{"manifest", want.Manifest}, {"manifest list", want.List}} {
		if d.is != "" && !slices.Contains(s.Digests, d.is) {
			bad("it has no %s %s", d.what, d.is)
		}
	}
	for _, n := range names {
		if !slices.Contains(s.Names, n) {
			bad("it does not have the name %q", n)
		}
	}
	if p, err := storeseed.PlatformOf(v.o.Root.Tree, s.store.Root, s.ID); err != nil {
		bad("its config: %v", err)
	} else if asked, err := storeseed.ParsePlatform(platform); err != nil {
		bad("the lock's platform %q: %v", platform, err)
	} else if p.OS != asked.OS || p.Architecture != asked.Architecture || asked.Variant != "" && p.Variant != "" && p.Variant != asked.Variant {
		bad("it is for %s/%s, the lock for %s", p.OS, p.Architecture, platform)
	}
	if len(s.Layers) != len(want.Layers) {
		bad("it has %d layers, the lock %d", len(s.Layers), len(want.Layers))
		return problems
	}
	for i, layer := range want.Layers {
		if s.Layers[i].DiffID != layer.DiffID {
			bad("layer %d is %s, the lock says %s", i+1, s.Layers[i].DiffID, layer.DiffID)
		}
	}
	return problems
}

// lockedNames are the names that an image must have that was baked by a reference; nil where the reference itself
// does not say, as with an archive.
func lockedNames(ref string) ([]string, error) {
	kind, _, ok := strings.Cut(ref, ":")
	switch {
	case ok && slices.Contains([]string{"dir", "oci", "oci-archive", "docker-archive", "containers-storage"}, kind):
		return nil, nil
	case !strings.HasPrefix(ref, "docker://"):
		// A short name is made whole by the configuration of the machine that bakes.
		if first, _, ok := strings.Cut(ref, "/"); !ok || !strings.ContainsAny(first, ".:") && first != "localhost" {
			return nil, nil
		}
	}
	_, names, err := storeseed.ParseReference(nil, ref)
	if errors.Is(err, storeseed.ErrUnsupportedTransport) {
		return nil, nil
	}
	return names, err
}
