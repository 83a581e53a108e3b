package imagebuild

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/bakefile"
	"github.com/nodebake/nodebake/storeseed"
)

// Job is one of the disks that a run makes.
type Job struct {
	// Name is for messages; empty where the run makes but one disk.
	Name string
	Spec Spec
}

// Fault is something that Check found, and in which job.
type Fault struct {
	Job int
	Err error
}

// Check finds what is wrong with jobs by themselves and with each other, as far as that can be told without opening a
// disk or an image or asking a registry. A report is the file of one report for all; empty is none. Errors match
// ErrUsage.
func Check(jobs []Job, report string) []Fault {
	var found []Fault
	fault := func(n int, format string, args ...any) {
		found = append(found, Fault{n, fmt.Errorf("%w: %s", ErrUsage, fmt.Sprintf(format, args...))})
	}
	// The files that are written, and by what.
	type writer struct {
		job  int
		flag string
	}
	written := map[string]writer{}
	if report != "" {
		written[canonical(report)] = writer{-1, "report"}
	}
	bases := make([]string, len(jobs))
	for n, j := range jobs {
		b, errs := check(j.Spec)
		for _, err := range errs {
			if len(found) < maxFaults {
				found = append(found, Fault{n, err})
			}
		}
		bases[n] = canonical(fileOf(j.Spec.Base))
		type place struct{ flag, name, is string }
		files := []place{{"output", j.Spec.Output, b.outputKey()}, {"report", j.Spec.Report, canonical(j.Spec.Report)}}
		if !j.Spec.Locked {
			files = append(files, place{"lock", j.Spec.Lock, canonical(j.Spec.Lock)})
		}
		if _, taken := written[files[0].is]; !taken && b.out != nil {
			for _, name := range b.out.besides() {
				files = append(files, place{"output", j.Spec.Output + ": " + name + " beside it", canonical(name)})
			}
		}
		for _, f := range files {
			other, taken := written[f.is]
			switch {
			case f.is == "":
			case !taken:
				written[f.is] = writer{n, f.flag}
			case other.job < 0:
				fault(n, "--%s %s is the report of all disks as well", f.flag, f.name)
			case other.job == n:
				fault(n, "--%s %s is the --%s as well", f.flag, f.name, other.flag)
			default:
				fault(n, "--%s %s is the %s of disk %s as well; give each disk its own", f.flag, f.name, other.flag, jobs[other.job].Name)
			}
		}
	}
	for n := range jobs {
		// A disk that was made before is a base like any other.
		if w, ok := written[bases[n]]; ok && bases[n] != "" && w.job != n && (w.job > n || w.flag != "output") {
			by := "the report of all disks"
			if w.job >= 0 {
				by = fmt.Sprintf("the %s of disk %s", w.flag, jobs[w.job].Name)
			}
			fault(n, "--base %s would be overwritten by %s", jobs[n].Spec.Base, by)
		}
	}
	return found
}

// maxFaults bounds what Check finds in the jobs by themselves: the first are what a person reads.
const maxFaults = 1000

// check is Check for one spec.
func check(spec Spec) (*bake, []error) {
	var errs []error
	add := func(err error) {
		if err != nil && len(errs) < maxFaults {
			errs = append(errs, err)
		}
	}
	wrong := func(format string, args ...any) { add(fmt.Errorf("%w: %s", ErrUsage, fmt.Sprintf(format, args...))) }
	if spec.Base == "" {
		wrong("--base is missing: the boot disk to start from")
	}
	if spec.Output == "" && !spec.DryRun {
		wrong("--output is missing: the disk to make")
	}
	b, err := newBake(spec)
	if _, bad := cleanStore(spec.Store); bad != nil {
		wrong("--store: %s", strings.TrimPrefix(bad.Error(), ErrUsage.Error()+": "))
	} else {
		add(err)
	}
	if spec.Platform != "" {
		if _, err := storeseed.ParsePlatform(spec.Platform); err != nil {
			wrong("--platform: %v", err)
		}
	}
	add(checkPartitionKind(spec.StorePartition))
	add(spec.SourceOptions.check())
	if spec.Locked && spec.Lock == "" {
		wrong("--locked needs --lock FILE")
	}
	if len(spec.Images) == 0 && !spec.Locked {
		add(errNoImage)
	}
	settleHome(b.warn)
	for _, i := range spec.Images {
		if bakefile.IsLocal(i) || strings.HasPrefix(i, "containers-storage:") {
			continue
		}
		if _, _, err := storeseed.ParseReference(b.System, i); err != nil {
			wrong("--image: %v", err)
		}
	}
	for _, t := range spec.Tags {
		_, err := t.name()
		add(err)
		if len(spec.Images) > 0 || !spec.Locked {
			_, err := t.index(spec.Images)
			add(err)
		}
	}
	return b, errs
}

// outputKey is equal for outputs that are the same place.
func (b *bake) outputKey() string {
	if b.Output == "" || b.out == nil {
		return canonical(b.Output)
	}
	name := b.out.file()
	if c, ok := b.out.sink.(imageSink); name == "" || ok && strings.HasPrefix(b.Output, "oci:") {
		if !ok {
			return b.Output
		}
		// A layout holds images of several names.
		return strings.Replace(c.String(), name, canonical(name), 1)
	}
	return canonical(name)
}

// canonical is a file's path by which it is compared, though it may not be there; empty for empty.
func canonical(name string) string {
	if name == "" {
		return ""
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return name
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		return real
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		return filepath.Join(dir, filepath.Base(abs))
	}
	return abs
}

// fileOf is the file that a base is or is in; empty for one of a registry.
func fileOf(base string) string {
	switch {
	case !isImage(base):
		return base
	case !bakefile.IsLocal(base):
		return ""
	}
	_, rest, _ := strings.Cut(base, ":")
	path, _, _ := strings.Cut(rest, ":")
	return path
}

// StoppedError says where a run that makes several disks ended.
type StoppedError struct {
	// Name is the disk that failed. Done were made before; Left were not, and it is the first of them.
	Name       string
	Done, Left []string
	Err        error
}

// Error says what happened, and in a second line what there is now.
func (e *StoppedError) Error() string {
	return fmt.Sprintf("disk %s: %v\n%s", e.Name, e.Err, e.State())
}

// State says which disks there are.
func (e *StoppedError) State() string {
	done := "none"
	if len(e.Done) > 0 {
		done = strings.Join(e.Done, ", ")
	}
	return fmt.Sprintf("done: %s; not done: %s", done, strings.Join(e.Left, ", "))
}

// Unwrap gives the failed disk's own error.
func (e *StoppedError) Unwrap() error { return e.Err }

// BakeAll bakes one disk after the other, those of several jobs with one cache for what registries give: a job's own
// Cache, or else one that is made for the run and removed at its end. Before the first is begun, each is prepared as
// far as Bake is before it asks for an image, unless its base is a container image or made by an earlier job.
//
// done is called with each report when its disk is in place; its error ends the run. A disk that was made stays, whatever
// becomes of the next. The error of a run of several disks is a *StoppedError once the first was begun. Jobs are such as
// Check finds no fault with.
func BakeAll(ctx context.Context, jobs []Job, done func(n int, r *Report) error) error {
	if len(jobs) == 1 {
		r, err := Bake(ctx, jobs[0].Spec)
		if err != nil {
			return err
		}
		return done(0, r)
	}
	if err := rehearse(ctx, jobs); err != nil {
		return err
	}
	cache, err := sharedCache(jobs)
	if err != nil {
		return err
	}
	if cache != "" {
		defer os.RemoveAll(cache)
	}
	for n, j := range jobs {
		if j.Spec.Cache == "" && !j.Spec.Offline {
			j.Spec.Cache = cache
		}
		if j.Spec.Log != nil {
			j.Spec.Log.Infof("disk %d of %d: %s", n+1, len(jobs), j.Name)
		}
		r, err := Bake(ctx, j.Spec)
		made := n
		if err == nil {
			made, err = n+1, done(n, r)
		}
		if err != nil {
			var all []string
			for _, j := range jobs {
				all = append(all, j.Name)
			}
			return &StoppedError{Name: j.Name, Done: all[:made], Left: all[made:], Err: err}
		}
	}
	return nil
}

// rehearse prepares each job and gives all that is wrong.
func rehearse(ctx context.Context, jobs []Job) error {
	var errs []error
	// The files that the run makes, and of which disk each is.
	outputs := map[string]string{}
	for _, j := range jobs {
		base := canonical(fileOf(j.Spec.Base))
		from, made := outputs[base]
		j.Spec.Log, j.Spec.Progress = nil, nil // which is silent
		b, err := newBake(j.Spec)
		if err == nil && !isImage(j.Spec.Base) && (!made || j.Spec.DryRun) {
			err = b.rehearse(ctx)
		}
		if made && errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("%w; it is of disk %s, which a dry run does not make", err, from)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("disk %s: %w", j.Name, err))
		}
		if b.out != nil && b.out.file() != "" {
			outputs[canonical(b.out.file())] = j.Name
		}
	}
	return errors.Join(errs...)
}

func (b *bake) rehearse(ctx context.Context) error {
	if err := b.checkCredentials(); err != nil {
		return err
	}
	if err := b.openBase(ctx); err != nil {
		return err
	}
	defer b.base.Close()
	return b.prepare(ctx)
}

// sharedCache makes a cache for those jobs that have none, where there are two that could use it. It lies beside the
// first one's output, or in TMPDIR.
func sharedCache(jobs []Job) (string, error) {
	remote := func(s Spec) bool {
		return len(s.Images) == 0 || slices.ContainsFunc(s.Images, func(i string) bool { return !bakefile.IsLocal(i) && !strings.HasPrefix(i, "containers-storage:") })
	}
	var without []Spec
	for _, j := range jobs {
		if j.Spec.Cache == "" && !j.Spec.Offline && remote(j.Spec) {
			without = append(without, j.Spec)
		}
	}
	if len(without) < 2 {
		return "", nil
	}
	dir := os.Getenv("TMPDIR")
	if dir == "" {
		b, err := newBake(without[0])
		if err != nil {
			return "", err
		}
		dir = b.out.workDir()
	}
	cache, err := os.MkdirTemp(dir, ".nodebake-cache-")
	if err != nil {
		return "", fmt.Errorf("a cache for this run: %w", err)
	}
	return cache, nil
}
