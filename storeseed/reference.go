package storeseed

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/pkg/compression"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// ParseReference reads an image reference as people write it, and says by which names the image will
// be known:
//
//	docker://NAME, NAME      the name, made whole; a tag and a digest both
//	oci:DIR[:REF]            the annotations of the image in index.json: io.containerd.image.name,
//	oci-archive:FILE[:REF]   else org.opencontainers.image.ref.name
//	docker-archive:FILE[:NAME]  its tags
//	containers-storage:NAME  the name
//	dir:DIR                  none
//
// A bare short name such as "alpine:3" goes through registries.conf's aliases and search list, and to
// docker.io where those say nothing. Other transports are ErrUnsupportedTransport. A name without a
// registry in an archive becomes localhost/NAME, as with podman.
func ParseReference(sys *types.SystemContext, s string) (types.ImageReference, []string, error) {
	ref, names, err := parseReference(sys, s)
	if err != nil {
		return nil, nil, fmt.Errorf("image %q: %w", s, err)
	}
	return ref, names, nil
}

func parseReference(sys *types.SystemContext, s string) (types.ImageReference, []string, error) {
	kind, rest, ok := strings.Cut(s, ":")
	if !ok {
		return parseDocker(sys, s, false)
	}
	switch kind {
	case "docker":
		if name, ok := strings.CutPrefix(rest, "//"); ok {
			return parseDocker(sys, name, true)
		}
		// The image named docker, with a tag.
		return parseDocker(sys, s, false)
	case "dir":
		ref, err := directory.NewReference(rest)
		return ref, nil, err
	case "oci":
		ref, err := layout.ParseReference(rest)
		if err != nil {
			return nil, nil, err
		}
		desc, err := layout.LoadManifestDescriptor(ref)
		if err != nil {
			return nil, nil, err
		}
		names, err := annotatedNames(desc.Annotations)
		return ref, names, err
	case "oci-archive":
		return parseOCIArchive(rest)
	case "docker-archive":
		return parseDockerArchive(sys, rest)
	case "containers-storage":
		ref, err := istorage.Transport.ParseReference(rest)
		if err != nil {
			return nil, nil, err
		}
		var names []string
		if n := ref.DockerReference(); n != nil {
			names = []string{n.String()}
		}
		return ref, names, nil
	case "docker-daemon", "atomic", "ostree", "sif", "tarball", "openshift":
		return nil, nil, fmt.Errorf("%w %q: save the image to a file first, and give that as oci-archive:FILE", ErrUnsupportedTransport, kind)
	}
	if strings.HasPrefix(rest, "//") {
		return nil, nil, fmt.Errorf("%w %q", ErrUnsupportedTransport, kind)
	}
	return parseDocker(sys, s, false)
}

// parseDocker reads a registry name. With both a tag and a digest it is pulled by the digest and keeps
// both names.
func parseDocker(sys *types.SystemContext, s string, whole bool) (types.ImageReference, []string, error) {
	var named reference.Named
	var err error
	if !whole && isShort(s) {
		if named, err = resolveShort(sys, s); err != nil {
			return nil, nil, err
		}
	} else if named, err = reference.ParseNormalizedNamed(s); err != nil {
		return nil, nil, err
	}
	named = reference.TagNameOnly(named)
	names := []string{named.String()}
	if tagged, ok := named.(reference.Tagged); ok {
		if dig, ok := named.(reference.Digested); ok {
			bare := reference.TrimNamed(named)
			withTag, err := reference.WithTag(bare, tagged.Tag())
			if err != nil {
				return nil, nil, err
			}
			withDigest, err := reference.WithDigest(bare, dig.Digest())
			if err != nil {
				return nil, nil, err
			}
			named, names = withDigest, []string{withTag.String(), withDigest.String()}
		}
	}
	ref, err := docker.NewReference(named)
	return ref, names, err
}

// isShort tells whether a name lacks a registry.
func isShort(s string) bool {
	first, _, ok := strings.Cut(s, "/")
	return !ok || (!strings.ContainsAny(first, ".:") && first != "localhost")
}

// resolveShort makes a short name whole. It never asks: with several search registries the first one
// counts.
func resolveShort(sys *types.SystemContext, s string) (reference.Named, error) {
	given, err := reference.Parse(s)
	if err != nil {
		return nil, err
	}
	named, ok := given.(reference.Named)
	if !ok {
		return nil, errors.New("it has no name")
	}
	suffix := strings.TrimPrefix(s, named.Name())
	if full, _, err := sysregistriesv2.ResolveShortNameAlias(sys, strings.TrimSuffix(s, suffix)); err != nil {
		return nil, err
	} else if full != nil {
		return reference.ParseNormalizedNamed(full.Name() + suffix)
	}
	search, err := sysregistriesv2.UnqualifiedSearchRegistries(sys)
	if err != nil {
		return nil, err
	}
	if len(search) > 0 {
		return reference.ParseNormalizedNamed(search[0] + "/" + s)
	}
	return reference.ParseNormalizedNamed(s)
}

// annotatedNames are the names that an image in an OCI layout says it has.
func annotatedNames(a map[string]string) ([]string, error) {
	name := a["io.containerd.image.name"]
	if name == "" {
		name = a[imgspecv1.AnnotationRefName]
	}
	if name == "" {
		return nil, nil
	}
	n, err := localName(name)
	if err != nil {
		return nil, fmt.Errorf("the layout's name for it: %w", err)
	}
	return []string{n}, nil
}

// localName makes a name whole; one without a registry is localhost's.
func localName(s string) (string, error) {
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return "", fmt.Errorf("name %q: %w", s, err)
	}
	if isShort(s) {
		if named, err = reference.ParseNormalizedNamed("localhost/" + s); err != nil {
			return "", fmt.Errorf("name %q: %w", s, err)
		}
	}
	return reference.TagNameOnly(named).String(), nil
}

func parseOCIArchive(rest string) (types.ImageReference, []string, error) {
	ref, err := ociarchive.ParseReference(rest)
	if err != nil {
		return nil, nil, err
	}
	file, want := rest, ""
	if i := strings.IndexByte(rest, ':'); i >= 0 {
		file, want = rest[:i], rest[i+1:]
	}
	index, err := archiveIndex(file)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the archive's index.json: %w", err)
	}
	for i, m := range index.Manifests {
		if (want == "" && len(index.Manifests) == 1) || (want != "" && (want == m.Annotations[imgspecv1.AnnotationRefName] || want == fmt.Sprintf("@%d", i))) {
			names, err := annotatedNames(m.Annotations)
			return ref, names, err
		}
	}
	var have []string
	for i, m := range index.Manifests {
		if n := m.Annotations[imgspecv1.AnnotationRefName]; n != "" {
			have = append(have, n)
		} else {
			have = append(have, fmt.Sprintf("@%d", i))
		}
	}
	if want == "" {
		return nil, nil, fmt.Errorf("the archive holds %d images, so one must be named: oci-archive:%s:NAME, where NAME is one of %s", len(have), file, strings.Join(have, ", "))
	}
	return nil, nil, fmt.Errorf("the archive does not hold %q, only %s", want, strings.Join(have, ", "))
}

// archiveIndex reads index.json out of an OCI archive without unpacking it.
func archiveIndex(file string) (*imgspecv1.Index, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	dec, peeked, err := compression.DetectCompression(f)
	if err != nil {
		return nil, err
	}
	if dec != nil {
		z, err := dec(peeked)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	} else if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil, errors.New("the archive has none")
		}
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) != imgspecv1.ImageIndexFile {
			continue
		}
		data, err := io.ReadAll(io.LimitReader(tr, 4<<20))
		if err != nil {
			return nil, err
		}
		index := &imgspecv1.Index{}
		return index, json.Unmarshal(data, index)
	}
}

// parseDockerArchive finds an image in a docker-archive, whose names are all of its tags.
func parseDockerArchive(sys *types.SystemContext, rest string) (types.ImageReference, []string, error) {
	ref, err := dockerarchive.ParseReference(rest)
	if err != nil {
		return nil, nil, err
	}
	file := rest
	if i := strings.IndexByte(rest, ':'); i >= 0 {
		file = rest[:i]
	}
	r, err := dockerarchive.NewReader(sys, file)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	list, err := r.List()
	if err != nil {
		return nil, nil, err
	}
	if rest == file && len(list) > 1 {
		var have []string
		for i, refs := range list {
			n := fmt.Sprintf("@%d", i)
			if d := refs[0].DockerReference(); d != nil {
				n = d.String()
			}
			have = append(have, n)
		}
		return nil, nil, fmt.Errorf("the archive holds %d images, so one must be named: docker-archive:%s:NAME, where NAME is one of %s", len(list), file, strings.Join(have, ", "))
	}
	tags, err := r.ManifestTagsForReference(ref)
	if err != nil {
		return nil, nil, err
	}
	var names []string
	for _, t := range tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return nil, nil, fmt.Errorf("tag %q in the archive: %w", t, err)
		}
		names = append(names, reference.TagNameOnly(named).String())
	}
	return ref, names, nil
}

// repoOf splits a name into what `podman images` shows: repository, tag and digest.
func repoOf(name string) (repo, tag string, dig digest.Digest) {
	named, err := reference.ParseNamed(name)
	if err != nil {
		return name, "", ""
	}
	repo = named.Name()
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		dig = d.Digest()
	}
	return repo, tag, dig
}
