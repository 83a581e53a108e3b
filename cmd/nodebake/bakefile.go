package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/bakefile"
)

// diskReport is a disk in the report of several.
type diskReport struct {
	Disk string `json:"disk"`
	*imagebuild.Report
}

// buildFile bakes the disks of a bake file, those that are chosen or all.
func buildFile(cmd *cobra.Command, flags *buildFlags, file string, chosen []string) error {
	f, err := readBakeFile(cmd, file)
	if err != nil {
		return err
	}
	disks, err := f.Find(chosen)
	if err != nil {
		return usage("--disk: %v", err)
	}
	p := &planner{cmd: cmd, file: f}
	// One report of several disks is a list; no disk has it to itself.
	all := ""
	if f.Listed {
		all = flags.report
	}
	jobs, reports, err := p.plan(disks, all)
	if err != nil {
		return err
	}
	if all == "" {
		return bakeAll(cmd, jobs, reports)
	}
	list := []diskReport{}
	err = bakeEach(cmd, jobs, func(n int, rep *imagebuild.Report) error {
		list = append(list, diskReport{jobs[n].Name, rep})
		if all != "-" {
			summarize(cmd.OutOrStdout(), rep)
		}
		return nil
	})
	if failed := writeReport(cmd.OutOrStdout(), all, list); failed != nil && err == nil {
		err = fmt.Errorf("%w: %w", errReport, failed)
	}
	return err
}

// readBakeFile reads a bake file; what its settings have that flags do not take is said with what its form has.
func readBakeFile(cmd *cobra.Command, name string) (*bakefile.File, error) {
	f, err := bakefile.Read(name, cmd.InOrStdin())
	var wrong *bakefile.Error
	if !errors.As(err, &wrong) {
		return f, err
	}
	p := &planner{cmd: cmd, file: f, found: wrong.Findings}
	for _, d := range f.Disks {
		p.each(d)
	}
	e := bakefile.NewError(p.found)
	e.More += wrong.More
	return nil, faulty(name, e)
}

// faulty is the error of a bake file that is not right.
func faulty(name string, e *bakefile.Error) error {
	return fmt.Errorf("%w: %s has %s\n%w", imagebuild.ErrUsage, bakefile.Shown(name), plural(len(e.Findings)+e.More, "fault"), e)
}

// planner makes jobs of a file's disks and of the flags beside it.
type planner struct {
	cmd   *cobra.Command
	file  *bakefile.File
	found []bakefile.Finding
	// good says of the settings that were looked at by themselves what came of it: several disks have the same from the top.
	good map[bakefile.Setting]bool
	// stdin is what was read of standard input for lists of images, which several disks may want.
	stdin []byte
}

// plan gives a job for each disk, and the file of its report. An error is about all that is wrong.
func (p *planner) plan(disks []bakefile.Disk, report string) ([]imagebuild.Job, []string, error) {
	var jobs []imagebuild.Job
	var of []bakefile.Disk
	var reports []string
	for _, d := range disks {
		d.Settings = slices.DeleteFunc(slices.Clone(d.Settings), func(s bakefile.Setting) bool { return p.given(s.Flag) })
		before := len(p.found)
		b := p.flags(d)
		if len(p.found) > before {
			continue
		}
		spec, err := b.spec()
		if err != nil {
			p.blame(d, err)
			continue
		}
		spec.Folder = p.file.Folder
		if err := p.images(b, &spec); err != nil {
			p.found = append(p.found, p.file.Locate(d, plainly(err), p.given))
			continue
		}
		if report != "" {
			spec.Report = ""
		}
		jobs, of, reports = append(jobs, imagebuild.Job{Name: d.Name, Spec: spec}), append(of, d), append(reports, b.report)
	}
	if report == "-" {
		report = ""
	}
	for _, f := range imagebuild.Check(jobs, report) {
		p.found = append(p.found, p.file.Locate(of[f.Job], plainly(f.Err), p.given))
	}
	if e := bakefile.NewError(p.found); e != nil {
		return nil, nil, faulty(p.file.Name, e)
	}
	for n := range jobs {
		if report != "" {
			jobs[n].Spec.Report = report
		}
	}
	return jobs, reports, nil
}

// flags are what a disk's settings say, and the command line in their place.
func (p *planner) flags(d bakefile.Disk) *buildFlags {
	b, set := newBuildFlags()
	for _, s := range d.Settings {
		if err := set.Set(s.Flag, s.Value); err != nil {
			p.found = append(p.found, p.file.At(s, plainly(err), p.given))
		}
	}
	set.VisitAll(func(f *pflag.Flag) {
		if !p.given(f.Name) {
			return
		}
		values := []string{p.cmd.Flags().Lookup(f.Name).Value.String()}
		if list, ok := p.cmd.Flags().Lookup(f.Name).Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			// The command line took it.
			_ = set.Set(f.Name, v)
		}
	})
	return b
}

// newBuildFlags are flags as if none was given.
func newBuildFlags() (*buildFlags, *pflag.FlagSet) {
	b, cmd := &buildFlags{}, &cobra.Command{}
	b.add(cmd)
	return b, cmd.Flags()
}

// given says whether the command line has a flag.
func (p *planner) given(flag string) bool { return p.cmd.Flags().Changed(flag) }

// blame finds the settings that an error is of; where there is none it is the disk's.
func (p *planner) blame(d bakefile.Disk, err error) {
	p.each(d)
	bad := func(s bakefile.Setting) bool { good, known := p.good[s]; return known && !good }
	if slices.ContainsFunc(d.Settings, bad) || len(p.found) >= maxFound {
		return
	}
	p.found = append(p.found, p.file.Locate(d, plainly(err), p.given))
}

// each finds the settings that the flags' own code does not take, each by itself.
func (p *planner) each(d bakefile.Disk) {
	if p.good == nil {
		p.good = map[bakefile.Setting]bool{}
	}
	for _, s := range d.Settings {
		if _, known := p.good[s]; known {
			continue
		}
		if len(p.found) >= maxFound {
			return
		}
		b, set := newBuildFlags()
		err := set.Set(s.Flag, s.Value)
		if err == nil {
			_, err = b.spec()
		}
		if p.good[s] = err == nil; err != nil {
			p.found = append(p.found, p.file.At(s, plainly(err), p.given))
		}
	}
}

// images puts the images of lists into a spec. Paths of the command line count from the working folder.
func (p *planner) images(b *buildFlags, spec *imagebuild.Spec) error {
	here := ""
	if spec.Folder != "" && (p.given("image") || p.given("images-from")) {
		var err error
		if here, err = os.Getwd(); err != nil {
			return err
		}
	}
	if p.given("image") {
		for i, ref := range spec.Images {
			spec.Images[i] = bakefile.Under(here, ref)
		}
		for i := range spec.Tags {
			if p.given("tag") {
				spec.Tags[i].Reference = bakefile.Under(here, spec.Tags[i].Reference)
			}
		}
	}
	if len(b.lists) == 0 {
		return nil
	}
	if slices.Contains(b.lists, "-") {
		if p.file.Name == "-" {
			return errors.New("--images-from: standard input is the bake file already")
		}
		if p.stdin == nil {
			var err error
			if p.stdin, err = io.ReadAll(io.LimitReader(p.cmd.InOrStdin(), maxStdin)); err != nil {
				return err
			}
		}
		p.cmd.SetIn(bytes.NewReader(p.stdin))
	}
	entries, err := b.charts.read(p.cmd, b.lists)
	if err != nil {
		return fmt.Errorf("--images-from: %w", err)
	}
	for _, e := range entries {
		if p.given("images-from") {
			e.Ref = bakefile.Under(here, e.Ref)
		}
		spec.Images = append(spec.Images, e.Ref)
	}
	return nil
}

// maxFound bounds the findings of one file, of which a person reads the first.
const maxFound = 1000

// maxStdin is more than a list of images may be.
const maxStdin = 64<<20 + 1

// plainly is an error without the words that say of what kind it is: in a bake file all are.
func plainly(err error) error {
	return errors.New(strings.ReplaceAll(err.Error(), imagebuild.ErrUsage.Error()+": ", ""))
}
