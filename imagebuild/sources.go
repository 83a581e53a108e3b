package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage/pkg/unshare"
	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/imagebuild/bakefile"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// SourceOptions say how images are reached, and whom to believe.
type SourceOptions struct {
	// System is handed to go.podman.io/image: credentials, certificates, registries.conf, policy.json. Nil is its
	// defaults.
	System *types.SystemContext
	// Folder is what relative paths in references of images count from; empty is the working folder.
	Folder string
	// Insecure are registries, as HOST or HOST:PORT, whose certificate is not checked, or that have none.
	Insecure []string
	// CertDirs are folders with a registry's certificates and keys, by HOST or HOST:PORT.
	CertDirs map[string]string
	// Cache is a folder that keeps what comes from registries; empty is none. CacheSize bounds it in bytes; 0 is no
	// bound.
	Cache     string
	CacheSize int64
	// Offline takes registries' images from Cache alone. Refresh asks again what tags stand for.
	Offline, Refresh bool
	// Parallel is how many layers are fetched at a time; 0 is storeseed's default.
	Parallel int
	// Tags are further names for images of the bake.
	Tags []Tag
	// Lock is a file of what each reference stood for. With Locked the bake takes that and nothing else, and without
	// Images all of the file; else the file is written when the bake is done.
	Lock   string
	Locked bool
}

// Tag is another name for an image that is named by its reference.
type Tag struct{ Name, Reference string }

var errNoImage = fmt.Errorf("%w: no image is named; give --image or --images-from", ErrUsage)

// pullRetries is how often a request to a registry that was cut on the way is tried again.
const pullRetries = 3

// check finds options that contradict each other.
func (o SourceOptions) check() error {
	switch {
	case o.Offline && o.Cache == "":
		return fmt.Errorf("%w: --offline takes images from a --cache, and none is given", ErrUsage)
	case o.Offline && o.Refresh:
		return fmt.Errorf("%w: --refresh asks registries, and --offline forbids it", ErrUsage)
	case o.Parallel < 0 || o.Parallel > maxParallel:
		return fmt.Errorf("%w: --parallel %d: give 1 to %d", ErrUsage, o.Parallel, maxParallel)
	}
	return nil
}

// checkCredentials refuses a file of credentials that is not there: to the library it is one without any.
func (b *bake) checkCredentials() error {
	if name := b.System.AuthFilePath; name != "" {
		if _, err := os.Stat(name); err != nil {
			return fmt.Errorf("the registries' credentials: %w", err)
		}
	}
	return nil
}

// prepareSources checks everything about the images that needs no registry.
func (b *bake) prepareSources() error {
	if err := b.readLock(); err != nil {
		return err
	}
	if len(b.Images) == 0 {
		return errNoImage
	}
	if err := b.SourceOptions.check(); err != nil {
		return err
	}
	settleHome(b.warn)
	b.settle()
	for _, i := range b.Images {
		ref, names, err := storeseed.ParseReference(b.System, bakefile.Under(b.Folder, i))
		if err != nil {
			return err
		}
		b.sources = append(b.sources, storeseed.Source{Ref: ref, Names: names, System: b.systemFor(ref)})
	}
	b.warnUnused()
	return b.addTags()
}

// settle makes the library's settings fit a machine that lacks what it takes for granted.
func (b *bake) settle() {
	closedHome()
	if b.System.BigFilesTemporaryDir == "" {
		sys := *b.System
		sys.BigFilesTemporaryDir = b.bigTempDir()
		b.System = &sys
	}
}

// closedHome gives a process that has no home folder one that does not exist. go.podman.io/image reads configuration
// there, and fails where it cannot tell the folder or may not enter it: in a container whose user is in no passwd file,
// and in a user namespace whose root is not the machine's. What is for the whole machine, policy.json above all, counts
// as ever, and a HOME that is set is never doubted. It returns the folder that may not be entered.
var closedHome = sync.OnceValue(func() string {
	if os.Getenv("HOME") != "" {
		return ""
	}
	home, err := unshare.HomeDir()
	if err == nil {
		if _, err := os.Stat(filepath.Join(home, ".config", "containers")); !errors.Is(err, fs.ErrPermission) {
			return ""
		}
	}
	os.Setenv("HOME", "/nonexistent")
	return home
})

// settleHome is closedHome, and says what came of it.
func settleHome(warn func(format string, args ...any)) {
	if home := closedHome(); home != "" {
		warn("HOME is not set, and %s is closed to this user: no configuration is read there", home)
	}
}

// settleRuntimeDir is settleHome for the folder that a login makes, in which the library looks for credentials. What it
// takes in its stead where there was no login is closed to all others once root has run podman; so it is told to look
// where nothing is, and goes on to the home folder.
func settleRuntimeDir() {
	if os.Getenv("XDG_RUNTIME_DIR") != "" {
		return
	}
	if _, err := os.Stat(fmt.Sprintf("/run/containers/%d/auth.json", os.Getuid())); errors.Is(err, fs.ErrPermission) {
		os.Setenv("XDG_RUNTIME_DIR", "/") // one that does not exist would be warned of
	}
}

// bigTempDir is where the library unpacks archives and keeps what it fetches: TMPDIR or /var/tmp, unless the latter
// is not there, as in a container of one binary, read-only, or in memory, as podman's --read-only makes it.
func (b *bake) bigTempDir() string {
	if dir := os.Getenv("TMPDIR"); dir != "" {
		return dir
	}
	const dir = "/var/tmp"
	var st unix.Statfs_t
	if unix.Access(dir, unix.W_OK|unix.X_OK) == nil && unix.Statfs(dir, &st) == nil && st.Type != unix.TMPFS_MAGIC {
		return dir
	}
	return b.out.workDir()
}

// warnUnused says which registries were named for their certificates, but have no image of this bake: a mirror is set
// up in registries.conf and certs.d.
func (b *bake) warnUnused() {
	hosts := map[string]bool{}
	for _, s := range b.sources {
		if name := s.Ref.DockerReference(); name != nil {
			hosts[reference.Domain(name)] = true
		}
	}
	for _, h := range slices.Concat(b.Insecure, slices.Sorted(maps.Keys(b.CertDirs))) {
		if !hosts[h] {
			b.warn("no image is of registry %s; for a mirror see registries.conf and certs.d", h)
		}
	}
}

// maxParallel bounds the connections to registries.
const maxParallel = 64

// systemFor is the settings for the registry that a reference is of.
func (b *bake) systemFor(ref types.ImageReference) *types.SystemContext {
	b.settle()
	name := ref.DockerReference()
	if name == nil || ref.Transport().Name() != docker.Transport.Name() {
		return b.System
	}
	settleRuntimeDir()
	host := reference.Domain(name)
	sys := *b.System
	if slices.Contains(b.Insecure, host) {
		sys.DockerInsecureSkipTLSVerify = types.OptionalBoolTrue
	}
	if dir := b.CertDirs[host]; dir != "" {
		sys.DockerCertPath = dir
	}
	return &sys
}

// addTags gives images of the bake their further names.
func (b *bake) addTags() error {
	for _, t := range b.Tags {
		name, err := t.name()
		if err != nil {
			return err
		}
		i, err := t.index(b.Images)
		if err != nil {
			return err
		}
		b.sources[i].Names = append(slices.Clone(b.sources[i].Names), name)
	}
	return nil
}

// openImages opens every image before anything is written: a name that is wrong, an image for another machine, one
// that the policy refuses or a registry that does not answer ends the bake at once, and the newest creation time is
// known.
func (b *bake) openImages(ctx context.Context) error {
	if b.Cache != "" {
		cache, err := blobcache.Open(blobcache.Options{Dir: b.Cache, MaxSize: b.CacheSize, Warn: b.Log.Warnf})
		if err != nil {
			return err
		}
		b.cache = cache
	}
	var list []storeseed.PullOptions
	for n, src := range b.sources {
		list = append(list, storeseed.PullOptions{Source: b.lockedSource(n, src), Platform: b.platform, ReportWriter: b.Progress, Retries: pullRetries, Log: b.Log,
			Cache: b.cache, Offline: b.Offline, Refresh: b.Refresh})
	}
	var err error
	if b.images, err = storeseed.OpenAll(ctx, list, b.Parallel); err != nil {
		return err
	}
	var newest time.Time
	for n, i := range b.images {
		if err := b.checkLock(n, i.Info()); err != nil {
			return err
		}
		if c := i.Created(); c.After(newest) {
			newest = c
		}
	}
	switch {
	case b.Epoch != nil:
		b.report.Epoch = *b.Epoch
	case newest.Before(time.Unix(0, 0)):
		b.report.Epoch = time.Unix(0, 0).UTC()
	default:
		b.report.Epoch = newest
	}
	return nil
}

// closeImages lets go of the images, and of the cache after them.
func (b *bake) closeImages() {
	for _, i := range b.images {
		i.Close()
	}
	if b.cache != nil {
		if err := b.cache.Close(); err != nil {
			b.Log.Warn(err)
		}
	}
}

// pull copies all images into the store, fetching ahead from registries.
func (b *bake) pull(ctx context.Context, store *storeseed.Store) error {
	ahead, err := store.Prefetch(ctx, b.images, storeseed.PrefetchOptions{Parallel: b.Parallel, TempDir: b.spoolDir()})
	if err != nil {
		return err
	}
	defer ahead.Close()
	for i, image := range b.images {
		b.Log.Infof("image %d of %d: %s", i+1, len(b.images), b.Images[i])
		res, err := store.PullOpened(ctx, image)
		if err != nil {
			return err
		}
		b.report.Images = append(b.report.Images, ImageReport{b.Images[i], res})
		for _, l := range res.Layers {
			if l.New {
				b.report.NewLayers++
			}
		}
	}
	return nil
}

// spoolDir is where layers wait that were fetched ahead without a cache: where there is room for them once they are
// unpacked.
func (b *bake) spoolDir() string {
	if b.Output != "" && os.Getenv("TMPDIR") == "" {
		return b.out.workDir()
	}
	return ""
}

// ParseCacheSize reads a cache's bound; empty is none. Errors match ErrUsage.
func ParseCacheSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := disk.ParseBytes(s)
	if err == nil && n == 0 {
		err = errors.New("a cache of 0 bytes holds nothing")
	}
	if err != nil {
		return 0, fmt.Errorf("%w: --cache-size: %w", ErrUsage, err)
	}
	return n, nil
}

// ParseTag reads NEW=REF. Errors match ErrUsage.
func ParseTag(s string) (Tag, error) {
	name, ref, ok := strings.Cut(s, "=")
	if !ok || name == "" || ref == "" {
		return Tag{}, fmt.Errorf("%w: --tag %s: give NEW=REF", ErrUsage, s)
	}
	return Tag{name, ref}, nil
}

// name is the tag's new name as an engine has it. Short names become what podman would call the image; no registry is
// asked.
func (t Tag) name() (string, error) {
	named, err := reference.ParseNormalizedNamed(t.Name)
	if _, digested := named.(reference.Digested); digested {
		err = errors.New("a digest is not given, it follows from the image")
	}
	if err != nil {
		return "", fmt.Errorf("%w: --tag %s=%s: %w", ErrUsage, t.Name, t.Reference, err)
	}
	return reference.TagNameOnly(named).String(), nil
}

// index is that of the tag's image.
func (t Tag) index(images []string) (int, error) {
	i := slices.Index(images, t.Reference)
	if i < 0 {
		return 0, fmt.Errorf("%w: --tag %s=%s: no image is called %s", ErrUsage, t.Name, t.Reference, t.Reference)
	}
	return i, nil
}
