package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/types"
)

// DefaultPath is where a disk lies in an image, and where ocne looks for it.
const DefaultPath = "disk/boot.qcow2"

// Errors of Write and Check.
var (
	// ErrExists is matched where something is in the place of the new image, and Options.Force is not set.
	ErrExists = errors.New("output exists")
	// ErrOptions is matched where Options cannot be.
	ErrOptions = errors.New("container image options")
)

// Annotations that say which disk an image holds. They are on the manifest and, as labels, in the config.
const (
	AnnotationPath        = "io.github.nodebake.disk.path"
	AnnotationFormat      = "io.github.nodebake.disk.format"
	AnnotationVirtualSize = "io.github.nodebake.disk.virtual-size"
	AnnotationSize        = "io.github.nodebake.disk.size"
	AnnotationDigest      = "io.github.nodebake.disk.digest"
)

// Options say what image is made.
type Options struct {
	// Path is the disk's in the image, slash-separated; empty is DefaultPath. A leading slash is ignored.
	Path string
	// Platform is what the disk is for. Architecture is Go's name (amd64, arm64) and must be given; an empty OS is
	// linux.
	Platform imgspecv1.Platform
	// Created is the image's and the disk file's time; zero is 1970.
	Created time.Time
	// Format ("qcow2", "raw") and VirtualSize (the guest's size, in bytes) are written down if they are not zero.
	Format      string
	VirtualSize int64
	// Annotations are further ones; they win over Write's own.
	Annotations map[string]string
	// Level compresses the layer with gzip, 1 (fast) to 9; 0 makes a gzip stream of stored blocks.
	Level int
	// Plain leaves gzip out: the layer is a tar. ocne cannot read it then. A docker-archive always is so.
	Plain bool
	// Force permits what is in the way to be replaced.
	Force bool
	// System is handed to go.podman.io/image for docker://: credentials, certificates, registries.conf. Nil is the
	// host's.
	System *types.SystemContext
}

// Result is what was written.
type Result struct {
	// Reference names the image for podman and skopeo.
	Reference string
	// ManifestDigest is empty for a docker-archive, which has no manifest that keeps its digest.
	ManifestDigest digest.Digest
	ConfigDigest   digest.Digest // the image's ID
	LayerDigest    digest.Digest // of the layer's blob
	DiffID         digest.Digest // of the layer's tar
	DiskDigest     digest.Digest // of the disk file's bytes
	Size           int64         // of the layer's blob, in bytes
}

// Dest is where a container image goes; ParseDest makes one.
type Dest struct {
	transport string // oci, oci-archive, docker-archive or docker
	path      string // of a folder or file
	name      string // in an OCI layout
	ref       types.ImageReference
	tag       reference.NamedTagged // of docker and docker-archive
}

// String is the reference by which podman and skopeo find the image.
func (d Dest) String() string {
	switch {
	case d.transport == "docker":
		return "docker://" + d.tag.String()
	case d.tag != nil:
		return d.transport + ":" + d.path + ":" + d.tag.String()
	case d.name != "":
		return d.transport + ":" + d.path + ":" + d.name
	}
	return d.transport + ":" + d.path
}

// Path is the file or folder that is written to; empty for a registry.
func (d Dest) Path() string { return d.path }

// Reference is the image in a registry, nil for the other kinds.
func (d Dest) Reference() types.ImageReference { return d.ref }

// ParseDest tells whether an output is a container image, and which. Those are
//
//	oci:DIR[:NAME]           an OCI layout, made if it is not there
//	oci-archive:FILE[:NAME]  one as a tar
//	docker-archive:FILE[:NAME[:TAG]]
//	docker://NAME[:TAG]      in a registry; a short name is docker.io's
//
// and everything else is not (false, without an error). A missing TAG is latest.
func ParseDest(s string) (Dest, bool, error) {
	kind, rest, _ := strings.Cut(s, ":")
	d := Dest{transport: kind}
	var err error
	switch {
	case kind == "oci" || kind == "oci-archive":
		d.path, d.name, _ = strings.Cut(rest, ":")
		// The library's own rule for names.
		if _, err = layout.NewReference("/", d.name); err != nil {
			err = fmt.Errorf("%q cannot be an image's name in an OCI layout", d.name)
		}
	case kind == "docker-archive":
		var name string
		if d.path, name, _ = strings.Cut(rest, ":"); name != "" {
			d.tag, err = tagged(name)
		} else if strings.HasSuffix(rest, ":") {
			err = errors.New("no name follows the last colon")
		}
	case kind == "docker" && strings.HasPrefix(rest, "//"):
		if d.tag, err = tagged(rest[2:]); err == nil {
			d.ref, err = docker.NewReference(d.tag)
		}
	default:
		return Dest{}, false, nil
	}
	if err == nil && kind != "docker" && d.path == "" {
		err = errors.New("no path is given")
	}
	if err != nil {
		return Dest{}, true, fmt.Errorf("output %q: %w", s, err)
	}
	return d, true, nil
}

func tagged(name string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, err
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, errors.New("a digest cannot be chosen, it follows from the image; give a tag")
	}
	tag, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if !ok {
		return nil, errors.New("it has no tag")
	}
	return tag, nil
}

// clean checks o and fills in what is left out.
func (o *Options) clean() error {
	if o.Path == "" {
		o.Path = DefaultPath
	}
	o.Path = strings.TrimPrefix(o.Path, "/")
	if err := checkPath(o.Path); err != nil {
		return err
	}
	if o.Platform.OS == "" {
		o.Platform.OS = "linux"
	}
	if o.Platform.Architecture == "" {
		return fmt.Errorf("%w: the disk's architecture is not known, and an image must say it", ErrOptions)
	}
	if o.Level < 0 || o.Level > 9 {
		return fmt.Errorf("%w: gzip level %d: 0 to 9 are possible", ErrOptions, o.Level)
	}
	if o.Plain && o.Level > 0 {
		return fmt.Errorf("%w: a plain layer has no gzip level", ErrOptions)
	}
	if o.Created.IsZero() {
		o.Created = time.Unix(0, 0)
	}
	o.Created = o.Created.UTC().Truncate(time.Second)
	if y := o.Created.Year(); y < 1970 || y > 9999 {
		return fmt.Errorf("%w: the time %s; years from 1970 to 9999 are possible", ErrOptions, o.Created.Format(time.RFC3339))
	}
	return nil
}

// checkPath refuses names that engines refuse, or take for something else.
func checkPath(p string) error {
	if p == "" || p != path.Clean(p) || strings.ContainsRune(p, 0) || len(p) > maxName {
		return fmt.Errorf("%w: %q cannot be a disk's path in an image; disk/boot.qcow2 could", ErrOptions, p)
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == "" || c == ".." || c == "." || strings.HasPrefix(c, whiteout) || len(c) > 255 {
			return fmt.Errorf("%w: %q cannot be a disk's path in an image: %q is no name for a file there", ErrOptions, p, c)
		}
	}
	return nil
}

// annotations are those of the image with disk l.
func (o *Options) annotations(l *layer) map[string]string {
	a := map[string]string{
		imgspecv1.AnnotationCreated: o.Created.Format(time.RFC3339),
		imgspecv1.AnnotationTitle:   path.Base(o.Path),
		AnnotationPath:              o.Path,
		AnnotationSize:              strconv.FormatInt(l.diskSize, 10),
		AnnotationDigest:            l.disk.String(),
	}
	if o.Format != "" {
		a[AnnotationFormat] = o.Format
	}
	if o.VirtualSize > 0 {
		a[AnnotationVirtualSize] = strconv.FormatInt(o.VirtualSize, 10)
	}
	maps.Copy(a, o.Annotations)
	return a
}

// Check refuses a destination or options that cannot be used, before any work is done: errors match ErrExists or
// ErrOptions. Whether a registry permits the push is found out by the push.
func Check(ctx context.Context, d Dest, o Options) error {
	if err := o.clean(); err != nil {
		return err
	}
	switch d.transport {
	case "oci":
		return checkLayout(d, o.Force)
	case "docker":
		return checkTag(ctx, d, &o)
	}
	dir, err := os.Stat(filepath.Dir(d.path))
	if err != nil {
		return fmt.Errorf("the output's folder: %w", err)
	}
	if !dir.IsDir() {
		return fmt.Errorf("the output's folder %s is not a folder", filepath.Dir(d.path))
	}
	st, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode().Type() == fs.ModeSymlink {
		if t, err := os.Stat(d.path); err == nil {
			st = t
		}
	}
	switch {
	case !st.Mode().IsRegular() && st.Mode().Type() != fs.ModeSymlink:
		return fmt.Errorf("%s is not a regular file; choose another output", d.path)
	case !o.Force:
		return fmt.Errorf("%s: %w; --force replaces it", d.path, ErrExists)
	}
	return nil
}

// Write makes a container image at d whose one layer holds the disk: size bytes from disk, which must then end.
//
// The layer streams: there is no other copy of it on this host. A file appears whole, as the last act; a layout gains
// the image under its name, beside those it has; a registry's tag moves once everything is there. What is in the way
// is refused with ErrExists unless o.Force is set; of a layout, Force replaces the image that has the name, and what
// only that one used. After an error, or once ctx ends, nothing is left, except that a registry may keep parts of an
// upload, without a name, until it cleans up. A Read of disk that blocks is not interrupted.
func Write(ctx context.Context, d Dest, disk io.Reader, size int64, o Options) (Result, error) {
	if size < 0 {
		return Result{}, fmt.Errorf("%w: a disk of %d bytes", ErrOptions, size)
	}
	if err := Check(ctx, d, o); err != nil {
		return Result{}, err
	}
	if err := o.clean(); err != nil {
		return Result{}, err
	}
	var res Result
	var err error
	switch d.transport {
	case "oci":
		res, err = writeLayout(ctx, d, disk, size, &o)
	case "oci-archive", "docker-archive":
		res, err = writeArchive(ctx, d, disk, size, &o)
	case "docker":
		res, err = push(ctx, d, disk, size, &o)
	default:
		err = fmt.Errorf("%w: no destination", ErrOptions)
	}
	if err != nil {
		return Result{}, fmt.Errorf("writing %s: %w", d, err)
	}
	res.Reference = d.String()
	return res, nil
}
