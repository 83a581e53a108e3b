package sbom

import (
	"crypto/sha256"
	"fmt"
	"io"
	"iter"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/google/uuid"
	digest "github.com/opencontainers/go-digest"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

const noAssertion = "NOASSERTION"

// writeSPDX writes SPDX 2.3. The disk contains the system and the images, these contain packages, and a Go program
// contains its modules.
func (d *Document) writeSPDX(w io.Writer, id uuid.UUID) error {
	known := licenses{}
	o := newObject(w)
	o.field("spdxVersion", spdx.Version)
	o.field("dataLicense", spdx.DataLicense)
	o.field("SPDXID", common.ElementID("DOCUMENT"))
	o.field("name", d.Name)
	o.field("documentNamespace", "https://github.com/nodebake/nodebake/spdx/"+url.PathEscape(d.Name)+"-"+id.String())
	o.field("creationInfo", spdx.CreationInfo{Created: d.Created.Format(timeFormat), Creators: []common.Creator{{CreatorType: "Tool", Creator: "nodebake-" + d.Version}}})
	o.list("packages", d.spdxPackages(known))
	o.list("hasExtractedLicensingInfos", func(yield func(any) bool) {
		for _, text := range slices.Sorted(maps.Keys(known)) {
			if !known[text] && !yield(spdx.OtherLicense{LicenseIdentifier: licenseRef(text), ExtractedText: text, LicenseName: noAssertion}) {
				return
			}
		}
	})
	o.list("relationships", d.spdxRelations())
	return o.end()
}

// licenseRef names a license that SPDX does not know.
func licenseRef(text string) string {
	sum := sha256.Sum256([]byte(text))
	return fmt.Sprintf("LicenseRef-%x", sum[:8])
}

func (d *Document) spdxPackages(known licenses) iter.Seq[any] {
	return func(yield func(any) bool) {
		disk := spdxPackage(diskID, d.Name, "", "FILE")
		disk.PackageFileName = d.Name
		disk.PackageChecksums = checksums(d.Digest)
		if !yield(disk) {
			return
		}
		if d.OS != nil {
			// The specification has a hyphen there, its JSON Schema an underscore.
			s := spdxPackage(systemID, d.OS.systemName(), d.OS.VersionID, "OPERATING_SYSTEM")
			s.PackageSummary = d.OS.PrettyName
			s.PackageComment = incomplete(d.OS)
			if !yield(s) {
				return
			}
		}
		for i := range d.Images {
			if !yield(d.Images[i].spdx()) {
				return
			}
		}
		for i := range d.Packages {
			if !yield(d.Packages[i].spdx(known)) {
				return
			}
		}
	}
}

func spdxPackage(id, name, version, purpose string) *spdx.Package {
	return &spdx.Package{PackageSPDXIdentifier: common.ElementID(id), PackageName: name, PackageVersion: version, PrimaryPackagePurpose: purpose,
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion}
}

func checksums(d digest.Digest) []common.Checksum {
	if d == "" || d.Validate() != nil || d.Algorithm() != digest.SHA256 {
		return nil
	}
	return []common.Checksum{{Algorithm: common.SHA256, Value: d.Encoded()}}
}

func incomplete(h *Holder) string {
	if len(h.Problems) == 0 {
		return ""
	}
	return "Incomplete: " + strings.Join(h.Problems, "; ")
}

func (im *Image) spdx() *spdx.Package {
	p := spdxPackage(im.id(), im.name(), im.version(), "CONTAINER")
	p.PackageChecksums = checksums(im.Manifest)
	p.PackageComment = strings.TrimSuffix("Image ID sha256:"+im.ImageID+", in the store "+im.Store+". "+incomplete(&im.Holder), " ")
	for _, n := range im.Names {
		if u := ImagePURL(n, im.Manifest); u != "" {
			p.PackageExternalReferences = append(p.PackageExternalReferences, purlReference(u))
		}
	}
	return p
}

func purlReference(u string) *spdx.PackageExternalReference {
	return &spdx.PackageExternalReference{Category: "PACKAGE-MANAGER", RefType: "purl", Locator: u}
}

// name is an image's first repository, version its digest.
func (im *Image) name() string {
	if len(im.Names) == 0 {
		return "sha256:" + im.ImageID
	}
	repository, _ := splitName(im.Names[0])
	return repository
}

func (im *Image) version() string {
	if im.Manifest == "" {
		return "sha256:" + im.ImageID
	}
	return im.Manifest.String()
}

func (p *Package) spdx(known licenses) *spdx.Package {
	purpose := "LIBRARY"
	if p.File != "" {
		purpose = "APPLICATION"
	}
	s := spdxPackage(p.id(), p.displayName(), p.version(), purpose)
	if p.License != "" {
		if s.PackageLicenseDeclared = p.License; !known.known(p.License) {
			s.PackageLicenseDeclared = licenseRef(p.License)
		}
	}
	if p.Vendor != "" {
		s.PackageSupplier = &common.Supplier{SupplierType: "Organization", Supplier: p.Vendor}
	}
	if name, mail := person(p.Maintainer); name != "" {
		if mail != "" {
			name += " (" + mail + ")"
		}
		s.PackageOriginator = &common.Originator{OriginatorType: "Person", Originator: name}
	}
	s.PackageHomePage = homepage(p.Homepage)
	if p.Source != "" {
		s.PackageSourceInfo = strings.TrimSuffix("built from the source package "+p.Source+" "+p.SourceVersion, " ")
	}
	if p.File != "" {
		s.PackageFileName = p.File
	}
	if u := p.PURL(); u != "" {
		s.PackageExternalReferences = []*spdx.PackageExternalReference{purlReference(u)}
	}
	return s
}

// displayName is never empty: a Go program may know nothing of itself but that it is one.
func (p *Package) displayName() string {
	if p.Name == "" {
		return p.File
	}
	return p.Name
}

// person takes "Name <address>" apart.
func person(s string) (name, mail string) {
	name, mail, _ = strings.Cut(s, "<")
	return strings.TrimSpace(name), strings.TrimSuffix(strings.TrimSpace(mail), ">")
}

func (d *Document) spdxRelations() iter.Seq[any] {
	return func(yield func(any) bool) {
		relate := func(a, kind, b string) bool {
			return yield(spdx.Relationship{RefA: common.MakeDocElementID("", a), Relationship: kind, RefB: common.MakeDocElementID("", b)})
		}
		ok := relate("DOCUMENT", common.TypeRelationshipDescribe, diskID)
		for from, to := range d.relations() {
			if ok = ok && relate(from, common.TypeRelationshipContains, to); !ok {
				return
			}
		}
	}
}

// relations are what holds what, by identifiers.
func (d *Document) relations() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		if d.OS != nil && (!yield(diskID, systemID) || !d.holds(systemID, d.OS.Packages, yield)) {
			return
		}
		for i := range d.Images {
			id := d.Images[i].id()
			if !yield(diskID, id) || !d.holds(id, d.Images[i].Packages, yield) {
				return
			}
		}
		for i := range d.Packages {
			if !d.holds(d.Packages[i].id(), d.Packages[i].Modules, yield) {
				return
			}
		}
	}
}

func (d *Document) holds(id string, packages []int, yield func(string, string) bool) bool {
	for _, p := range packages {
		if !yield(id, d.Packages[p].id()) {
			return false
		}
	}
	return true
}
