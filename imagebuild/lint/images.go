package lint

import (
	"archive/tar"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"go.podman.io/image/v5/docker/reference"

	"github.com/nodebake/nodebake/imagebuild"
)

// index is what images the stores hold, by name.
type index struct {
	// names are whole names with a tag or a digest; the value says whether a read-only store has one.
	names map[string]bool
	// digests are repositories with each manifest's digest.
	digests map[string]bool
	// search are the registries in which an engine looks for a name without one.
	search []string
}

func (v *view) indexImages() index {
	x := index{names: map[string]bool{}, digests: map[string]bool{}}
	for _, s := range v.stores() {
		for _, i := range s.images {
			for _, n := range i.Names {
				x.names[n] = x.names[n] || !s.Primary
				named, err := reference.ParseNormalizedNamed(n)
				if err != nil {
					continue
				}
				for _, d := range append([]string{string(i.Digest)}, strs(i.Digests)...) {
					k := named.Name() + "@" + d
					x.digests[k] = x.digests[k] || !s.Primary
				}
			}
		}
	}
	x.search = v.searchRegistries()
	return x
}

func strs[T ~string](in []T) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = string(s)
	}
	return out
}

// searchRegistries reads unqualified-search-registries (containers-registries.conf(5)); of its drop-ins the last that
// has the key counts.
func (v *view) searchRegistries() []string {
	var list []string
	for _, name := range append([]string{"/etc/containers/registries.conf"}, v.inDirs([]string{"/etc/containers/registries.conf.d"}, ".conf")...) {
		text, ok := v.text(name)
		if !ok || len(text) > maxTOML {
			continue
		}
		var doc struct {
			Search []string `toml:"unqualified-search-registries"`
		}
		if err := toml.Unmarshal(text, &doc); err != nil {
			v.unseen(name, err)
		} else if doc.Search != nil {
			list = doc.Search
		}
	}
	return list
}

// place says where an image is.
type place int

const (
	nowhere place = iota
	// inGraphRoot is the engine's own read-write store alone.
	inGraphRoot
	inStore
)

func (p place) found() bool { return p != nowhere }

// has looks for an image as an engine would by that name.
func (x index) has(ref string) place {
	best := nowhere
	for _, n := range x.candidates(ref) {
		best = max(best, x.exactly(n))
	}
	return best
}

// candidates are the whole names that a reference may stand for.
func (x index) candidates(ref string) []string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil
	}
	names := []string{reference.TagNameOnly(named).String()}
	if !short(ref) {
		return names
	}
	for _, host := range append([]string{"localhost"}, x.search...) {
		if n, err := reference.ParseNormalizedNamed(host + "/" + ref); err == nil {
			names = append(names, reference.TagNameOnly(n).String())
		}
	}
	return names
}

// short says that a reference has no registry in it.
func short(ref string) bool {
	first, _, ok := strings.Cut(ref, "/")
	return !ok || !strings.ContainsAny(first, ".:") && first != "localhost"
}

// exactly looks for a whole name.
func (x index) exactly(name string) place {
	if ro, ok := x.names[name]; ok {
		if ro {
			return inStore
		}
		return inGraphRoot
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nowhere
	}
	if d, ok := named.(reference.Digested); ok {
		if ro, ok := x.digests[named.Name()+"@"+d.Digest().String()]; ok {
			if ro {
				return inStore
			}
			return inGraphRoot
		}
	}
	return nowhere
}

// like says what stores have in the place of an image that is not there: other tags of its repository, or the same
// name and tag of another registry; empty if nothing.
func (x index) like(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ""
	}
	var same, other []string
	last := path.Base(reference.Path(named))
	if t, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
		last += ":" + t.Tag()
	}
	for n := range x.names {
		switch {
		case strings.HasPrefix(n, named.Name()+":"):
			same = append(same, n)
		case strings.HasSuffix(n, "/"+last):
			other = append(other, n)
		}
	}
	slices.Sort(same)
	slices.Sort(other)
	if all := append(same, other...); len(all) > 0 {
		return "; a store has " + strings.Join(all[:min(3, len(all))], ", ")
	}
	return ""
}

// need reports an image that is not there, or that the engine may wipe. False says that it is in no store.
func (v *view) need(id, what, ref string, at word, severity Severity, why string) bool {
	x := v.index()
	switch x.has(ref) {
	case inStore:
		return true
	case inGraphRoot:
		severity := Warning
		if !v.crio().present {
			severity = Info
		}
		v.add(Finding{ID: "NB078", Severity: severity, What: fmt.Sprintf("%s %s is in the engine's own store alone", what, ref), File: at.file, Line: at.line,
			Why:  "CRI-O removes its images when its version changes, and the whole of its store after an unclean stop (crio.conf(5): version_file_persist, clean_shutdown_file; cri-o/cri-o#9242)",
			Mend: "nodebake build --image " + ref})
		return true
	}
	v.add(Finding{ID: id, Severity: severity, What: fmt.Sprintf("%s %s is in no store%s", what, ref, x.like(ref)), File: at.file, Line: at.line,
		Why: why, Mend: "nodebake build --image " + ref})
	return false
}

const noPod = "without it no Pod of the node starts"

// checkPause asks whether the images are there that hold a Pod's namespaces.
func (v *view) checkPause() error {
	c := v.crio()
	switch {
	case !c.present:
	case c.pause.text == "":
		v.add(Finding{ID: "NB073", Severity: Info, What: "CRI-O's pause image is not known", Why: "nothing sets pause_image, and the program does not say its default",
			Mend: "set pause_image in [crio.image] of a file in /etc/crio/crio.conf.d, and bake that image"})
	default:
		what := "CRI-O's pause image"
		if within(c.pause.file, "/usr/bin") || within(c.pause.file, "/usr/local/bin") {
			what = "CRI-O's built-in pause image"
		}
		v.need("NB070", what, c.pause.text, c.pause, Error, noPod)
	}
	k := v.kubelet()
	if w, ok := k.setting("pod-infra-container-image", "podInfraContainerImage"); ok && w.text != "" {
		// The runtime has its own; kubelet only keeps this one from its garbage collection.
		v.need("NB071", "kubelet's pause image", w.text, w, Warning, "kubelet keeps this image from its garbage collection and not the runtime's; kubeadm sets it to the one that it expects")
	}
	const containerd = "/etc/containerd/config.toml"
	if text, ok := v.text(containerd); ok {
		for _, key := range [][]string{{"plugins", "io.containerd.grpc.v1.cri", "sandbox_image"}, {"plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"}, {"plugins", "cri", "sandbox_image"}} {
			if s, ok := tomlString(text, key...); ok && s != "" {
				severity := Warning
				if !c.present {
					severity = Error
				}
				v.need("NB072", "containerd's pause image", s, word{s, containerd, keyLine(text, key[len(key)-1])}, severity, "containerd would ask a registry for it")
			}
		}
	}
	return nil
}

// checkCredentials asks whether kubelet wants proof from a registry for images that are there already.
func (v *view) checkCredentials() error {
	w, ok := v.kubelet().set["imagePullCredentialsVerificationPolicy"]
	if ok && w.text == "AlwaysVerify" {
		v.add(Finding{ID: "NB084", Severity: Error, What: "kubelet's imagePullCredentialsVerificationPolicy is AlwaysVerify", File: w.file, Line: w.line,
			Why: "kubelet then asks the registry, with the Pod's credentials, before it starts an image that it did not pull itself", Mend: "imagePullCredentialsVerificationPolicy: NeverVerifyPreloadedImages, the default"})
	}
	return nil
}

// checkCollection asks whether kubelet would try to collect the images of the stores.
func (v *view) checkCollection() error {
	k, c := v.kubelet(), v.crio()
	if !k.present || !c.present {
		return nil
	}
	if _, err := v.config(); err != nil {
		return err
	}
	high, at := k.number("image-gc-high-threshold", "imageGCHighThresholdPercent", 85)
	age, byAge := k.set["imageMaximumGCAge"]
	byAge = byAge && age.text != "0" && age.text != "0s" && age.text != ""
	if high >= 100 && !byAge {
		return nil
	}
	var open []string
	for _, s := range v.readOnly() {
		for _, i := range s.images {
			pinned := slices.ContainsFunc(i.Names, func(n string) bool {
				// CRI-O pins its pause image by itself (cri-o/cri-o#6903).
				return imagebuild.Pinned(c.pins, n) || n == c.pause.text
			})
			if !pinned {
				open = append(open, cmp.Or(strings.Join(i.Names[:min(1, len(i.Names))], ""), i.ID))
			}
		}
	}
	slices.Sort(open)
	if open = slices.Compact(open); len(open) == 0 {
		return nil
	}
	what := fmt.Sprintf("%d images of the store are not in pinned_images, the first is %s", len(open), open[0])
	if len(open) == 1 {
		what = fmt.Sprintf("an image of the store is not in pinned_images: %s", open[0])
	}
	f := Finding{ID: "NB090", Severity: Warning, What: what, File: c.pinsFile,
		Why:  fmt.Sprintf("when the disk is %d %% full kubelet tries to remove images that no container uses; those of a read-only store it cannot remove, so it frees nothing and evicts Pods", high),
		Mend: "nodebake build --pin writes the list for CRI-O (cri-o/cri-o#6862)"}
	if at.file != "" {
		f.Why += fmt.Sprintf(" (%s:%d)", at.file, at.line)
	}
	if f.File == "" && v.is("/etc/crio/crio.conf", tar.TypeReg) {
		f.File = "/etc/crio/crio.conf"
	}
	if byAge {
		f.Why = fmt.Sprintf("imageMaximumGCAge is %s: kubelet tries to remove images that were not used for that long; those of a read-only store it cannot remove", age.text)
	}
	v.add(f)
	return nil
}
