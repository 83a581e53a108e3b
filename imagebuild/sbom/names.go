package sbom

import (
	"net/url"
	"path"
	"strings"

	"github.com/github/go-spdx/v2/spdxexp"
	"github.com/opencontainers/go-digest"
	"github.com/package-url/packageurl-go"
)

// PURL is the package URL (purl-spec) of a package; empty where it has none.
func (p *Package) PURL() string {
	namespace, name := p.Namespace, p.Name
	q := map[string]string{}
	if p.Type == "golang" {
		namespace, name = path.Split(name)
		namespace = strings.TrimSuffix(namespace, "/")
	} else {
		q["arch"], q["distro"] = p.Arch, p.Distro
		if q["upstream"] = p.Source; p.SourceVersion != "" {
			q["upstream"] += "@" + p.SourceVersion
		}
		if p.Type == "rpm" {
			q["epoch"] = p.Epoch
		}
	}
	return purl(p.Type, namespace, name, p.Version, q)
}

func purl(kind, namespace, name, version string, qualifiers map[string]string) string {
	for k, v := range qualifiers {
		if v == "" {
			delete(qualifiers, k)
		}
	}
	if name == "" {
		return ""
	}
	p := packageurl.NewPackageURL(kind, namespace, name, version, packageurl.QualifiersFromMap(qualifiers), "")
	if err := p.Normalize(); err != nil {
		return ""
	}
	return p.ToString()
}

// ImagePURL is the package URL of an image: the last part of its repository, its digest, and where it is from. name is
// a reference, with or without a tag. One of an empty name or digest is empty.
func ImagePURL(name string, d digest.Digest) string {
	repository, tag := splitName(name)
	if repository == "" || d == "" {
		return ""
	}
	return purl("oci", "", strings.ToLower(path.Base(repository)), d.String(), map[string]string{"repository_url": repository, "tag": tag})
}

// splitName takes a reference apart into its repository and its tag.
func splitName(name string) (repository, tag string) {
	name, _, _ = strings.Cut(name, "@")
	if at := strings.LastIndexByte(name, ':'); at > strings.LastIndexByte(name, '/') {
		return name[:at], name[at+1:]
	}
	return name, ""
}

// maxExpression bounds a license that is taken for an SPDX expression; its parser recurses.
const maxExpression = 1 << 10

// isExpression says whether a license is one that SPDX knows, or an expression of such. References to licenses that
// some other document defines are none.
func isExpression(license string) (ok bool) {
	if len(license) > maxExpression || strings.Contains(license, "Ref-") || strings.TrimSpace(license) == "" {
		return false
	}
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	ok, _ = spdxexp.ValidateLicenses([]string{license})
	return ok
}

// homepage is an address that both formats take; empty if it is none.
func homepage(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "ftp" {
		return ""
	}
	return u.String()
}

// licenses tells SPDX expressions from other texts, each once.
type licenses map[string]bool

func (l licenses) known(license string) bool {
	ok, there := l[license]
	if !there {
		ok = isExpression(license)
		l[license] = ok
	}
	return ok
}
