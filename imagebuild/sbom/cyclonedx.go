package sbom

import (
	"io"
	"iter"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/google/uuid"
	digest "github.com/opencontainers/go-digest"
)

// writeCycloneDX writes CycloneDX 1.6. The disk depends on the system and the images, these on packages, and a Go
// program on its modules: nested components could not share them.
func (d *Document) writeCycloneDX(w io.Writer, id uuid.UUID) error {
	known := licenses{}
	o := newObject(w)
	o.field("$schema", "http://cyclonedx.org/schema/bom-1.6.schema.json")
	o.field("bomFormat", cdx.BOMFormat)
	o.field("specVersion", cdx.SpecVersion1_6)
	o.field("serialNumber", id.URN())
	o.field("version", 1)
	o.field("metadata", cdx.Metadata{
		Timestamp: d.Created.Format(timeFormat),
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "nodebake", Version: d.Version}}},
		Component: &cdx.Component{BOMRef: diskID, Type: cdx.ComponentTypeFile, Name: d.Name, Hashes: hashes(d.Digest)},
	})
	o.list("components", d.cdxComponents(known))
	o.list("dependencies", d.cdxDependencies())
	o.list("compositions", d.cdxCompositions())
	return o.end()
}

func hashes(d digest.Digest) *[]cdx.Hash {
	if d == "" || d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return nil
	}
	return &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: d.Encoded()}}
}

func (d *Document) cdxComponents(known licenses) iter.Seq[any] {
	return func(yield func(any) bool) {
		if d.OS != nil {
			c := cdx.Component{BOMRef: systemID, Type: cdx.ComponentTypeOS, Name: d.OS.systemName(), Version: d.OS.VersionID, Description: d.OS.PrettyName}
			properties(&c, "nodebake:incomplete", d.OS.Problems...)
			if !yield(c) {
				return
			}
		}
		for i := range d.Images {
			if !yield(d.Images[i].cyclonedx()) {
				return
			}
		}
		for i := range d.Packages {
			if !yield(d.Packages[i].cyclonedx(known)) {
				return
			}
		}
	}
}

// properties adds what CycloneDX has no field for.
func properties(c *cdx.Component, name string, values ...string) {
	for _, v := range values {
		if v == "" {
			continue
		}
		if c.Properties == nil {
			c.Properties = &[]cdx.Property{}
		}
		*c.Properties = append(*c.Properties, cdx.Property{Name: name, Value: v})
	}
}

func (im *Image) cyclonedx() cdx.Component {
	c := cdx.Component{BOMRef: im.id(), Type: cdx.ComponentTypeContainer, Name: im.name(), Version: im.version(), Hashes: hashes(im.Manifest)}
	if len(im.Names) > 0 {
		c.PackageURL = ImagePURL(im.Names[0], im.Manifest)
	}
	properties(&c, "nodebake:image", "sha256:"+im.ImageID)
	properties(&c, "nodebake:name", im.Names...)
	properties(&c, "nodebake:store", im.Store)
	properties(&c, "nodebake:incomplete", im.Problems...)
	return c
}

func (p *Package) cyclonedx(known licenses) cdx.Component {
	c := cdx.Component{BOMRef: p.id(), Type: cdx.ComponentTypeLibrary, Name: p.displayName(), Version: p.version(), PackageURL: p.PURL(), Publisher: p.Maintainer}
	if p.File != "" {
		c.Type = cdx.ComponentTypeApplication
		c.Evidence = &cdx.Evidence{Occurrences: &[]cdx.EvidenceOccurrence{{Location: p.File}}}
	}
	switch {
	case p.License == "":
	case known.known(p.License):
		c.Licenses = &cdx.Licenses{{Expression: p.License}}
	default:
		c.Licenses = &cdx.Licenses{{License: &cdx.License{Name: p.License}}}
	}
	if p.Vendor != "" {
		c.Supplier = &cdx.OrganizationalEntity{Name: p.Vendor}
	}
	if u := homepage(p.Homepage); u != "" {
		c.ExternalReferences = &[]cdx.ExternalReference{{Type: cdx.ERTypeWebsite, URL: u}}
	}
	return c
}

// cdxDependencies gives every element with its dependencies, for the format says of one that is not there that its
// dependencies are unknown.
func (d *Document) cdxDependencies() iter.Seq[any] {
	return func(yield func(any) bool) {
		var top []string
		if d.OS != nil {
			top = append(top, systemID)
		}
		for i := range d.Images {
			top = append(top, d.Images[i].id())
		}
		if !yield(dependency(diskID, top)) || d.OS != nil && !yield(dependency(systemID, d.names(d.OS.Packages))) {
			return
		}
		for i := range d.Images {
			if !yield(dependency(d.Images[i].id(), d.names(d.Images[i].Packages))) {
				return
			}
		}
		for i := range d.Packages {
			if p := &d.Packages[i]; p.File != "" && !yield(dependency(p.id(), d.names(p.Modules))) {
				return
			}
		}
	}
}

func dependency(id string, on []string) cdx.Dependency {
	if len(on) == 0 {
		return cdx.Dependency{Ref: id}
	}
	return cdx.Dependency{Ref: id, Dependencies: &on}
}

func (d *Document) names(packages []int) []string {
	ids := make([]string, len(packages))
	for i, p := range packages {
		ids[i] = d.Packages[p].id()
	}
	return ids
}

// cdxCompositions name what lacks something.
func (d *Document) cdxCompositions() iter.Seq[any] {
	return func(yield func(any) bool) {
		lacks := func(h *Holder, id string) bool {
			return len(h.Problems) == 0 || yield(cdx.Composition{Aggregate: cdx.CompositionAggregateIncomplete, Dependencies: &[]cdx.BOMReference{cdx.BOMReference(id)}})
		}
		if d.OS != nil && !lacks(d.OS, systemID) {
			return
		}
		for i := range d.Images {
			if !lacks(&d.Images[i].Holder, d.Images[i].id()) {
				return
			}
		}
	}
}
