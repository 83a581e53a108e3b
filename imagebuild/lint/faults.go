package lint

// fault is something that engines are known to get wrong with read-only stores. It is told by the version of the
// storage library in the program, or by that of the program.
type fault struct {
	// library and podman are the versions that have it: from, and the first without it. An empty from is none.
	library, podman [2]string
	what, issue     string
	severity        Severity
	// engines that do what shows the fault; empty is all.
	engine string
}

// faults are from the issues named, and from the library's sources at the versions around the change.
var faults = []fault{
	{library: [2]string{"1.0.0", "1.39.0"}, podman: [2]string{"1.0.0", "4.1.0"}, severity: Warning, engine: "podman", issue: "containers/podman#12926, mended by containers/storage#1123",
		what: "podman diff, and committing a container of an image of the store, fail: it tries to write into the store"},
	{library: [2]string{"1.49.0", "1.51.0"}, podman: [2]string{"4.7.0", "4.8.0"}, severity: Warning, engine: "podman", issue: "containers/storage#1733, mended by #1734",
		what: "podman build from an image of the store fails: mkdir composefs-layers: read-only file system"},
	{library: [2]string{"1.0.0", "9999.0.0"}, podman: [2]string{"1.0.0", "9999.0.0"}, severity: Info, engine: "podman", issue: "containers/storage#1864, containers/podman#29001",
		what: "podman image mount, and run --mount type=image, fail for images of the store: layer not known"},
	{library: [2]string{"1.0.0", "9999.0.0"}, severity: Info, engine: "CRI-O", issue: "containers/storage#1864, containers/podman#29001",
		what: "image volumes of Pods fail for images of the store: layer not known"},
}

// checkFaults tells of what the engines on the disk are known to get wrong.
func (v *view) checkFaults() error {
	if len(v.readOnly()) == 0 {
		return nil
	}
	for _, e := range v.engines() {
		if e.Version == "" && e.Storage == "" {
			v.add(Finding{ID: "NB038", Severity: Info, What: "the version of " + e.Name + " is not known", File: e.Path,
				Why: "nothing on the disk that can be read says it, so it was not held against the faults that are known", Mend: "see its release notes"})
			continue
		}
		for _, f := range faults {
			if f.engine != "" && f.engine != e.Name || !f.has(e) {
				continue
			}
			said := e.Name
			if e.Version != "" {
				said += " " + e.Version
			}
			if e.Storage != "" {
				said += " (containers/storage " + e.Storage + ")"
			}
			v.add(Finding{ID: "NB037", Severity: f.severity, What: said + ": " + f.what, File: e.Path, Why: "a known fault: " + f.issue,
				Mend: "use another version, or do without it on this node"})
		}
	}
	return nil
}

// has says whether an engine is of a version with the fault.
func (f fault) has(e Engine) bool {
	if e.Storage != "" {
		return between(e.Storage, f.library)
	}
	return e.Name == "podman" && between(e.Version, f.podman)
}

// between says whether a version is at least the first of two and before the second.
func between(s string, r [2]string) bool {
	v, ok := parseVersion(s)
	from, ok1 := parseVersion(r[0])
	to, ok2 := parseVersion(r[1])
	return ok && ok1 && ok2 && !v.before(from) && v.before(to)
}
