// Package schematest holds bills of materials against the JSON Schemas of their formats' makers, for tests. The schemas
// come from Go modules that carry them, which the Go tool keeps or fetches: CycloneDX's from its own library, SPDX's
// from Syft.
package schematest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/nodebake/nodebake/imagebuild/sbom"
)

// sources are each format's schema and those that it refers to, by their identifiers.
var sources = map[sbom.Format]struct {
	module, schema string
	files          map[string]string
}{
	sbom.CycloneDX: {"github.com/CycloneDX/cyclonedx-go@v0.12.0", "http://cyclonedx.org/schema/bom-1.6.schema.json", map[string]string{
		"http://cyclonedx.org/schema/bom-1.6.schema.json":  "schema/bom-1.6.schema.json",
		"http://cyclonedx.org/schema/spdx.schema.json":     "schema/spdx.schema.json",
		"http://cyclonedx.org/schema/jsf-0.82.schema.json": "schema/jsf-0.82.schemax.json",
	}},
	sbom.SPDX: {"github.com/anchore/syft@v1.57.0", "http://spdx.org/rdf/terms/2.3", map[string]string{
		"http://spdx.org/rdf/terms/2.3": "schema/spdx-json/spdx-schema-2.3.json",
	}},
}

// Schema compiles a format's schema. A test is skipped where the module cannot be had, and fails in CI.
func Schema(t testing.TB, format sbom.Format) *jsonschema.Schema {
	t.Helper()
	from := sources[format]
	cmd := exec.Command("go", "mod", "download", "-json", from.module)
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	var module struct{ Dir, Error string }
	if json.Unmarshal(out, &module) != nil || err != nil || module.Dir == "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s: %v %s", from.module, err, module.Error)
		}
		t.Skipf("%s: %v %s", from.module, err, module.Error)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	for id, file := range from.files {
		f, err := os.Open(filepath.Join(module.Dir, file))
		if err != nil {
			t.Fatal(err)
		}
		text, err := jsonschema.UnmarshalJSON(f)
		f.Close()
		if err == nil {
			err = c.AddResource(id, text)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	s, err := c.Compile(from.schema)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Check fails the test where a document is none of its format, or refers to an element that it does not have.
func Check(t testing.TB, format sbom.Format, document []byte) {
	t.Helper()
	schema := Schema(t, format)
	text, err := jsonschema.UnmarshalJSON(bytes.NewReader(document))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(text); err != nil {
		said := fmt.Sprintf("%#v", err)
		t.Errorf("the document is no %s: %.4000s", format, said)
	}
	defined, used := references(t, document)
	for id, n := range defined {
		if n > 1 {
			t.Errorf("the document has %d elements called %s", n, id)
		}
	}
	for id := range used {
		if defined[id] == 0 {
			t.Errorf("the document speaks of %s and does not have it", id)
		}
	}
}

// references are the identifiers that a document of either format gives, and those that it uses.
func references(t testing.TB, document []byte) (defined map[string]int, used map[string]bool) {
	t.Helper()
	type ref struct {
		Ref     string `json:"bom-ref"`
		SPDXID  string
		License string `json:"licenseDeclared"`
	}
	var d struct {
		SPDXID     string
		Packages   []ref
		Components []ref
		Metadata   struct{ Component ref }
		Licenses   []struct {
			ID string `json:"licenseId"`
		} `json:"hasExtractedLicensingInfos"`
		Relationships []struct{ SpdxElementID, RelatedSpdxElement string }
		Dependencies  []struct {
			Ref       string
			DependsOn []string
		}
		Compositions []struct{ Dependencies []string }
	}
	if err := json.Unmarshal(document, &d); err != nil {
		t.Fatal(err)
	}
	defined, used = map[string]int{}, map[string]bool{}
	for _, r := range append(append(d.Packages, d.Components...), d.Metadata.Component, ref{SPDXID: d.SPDXID}) {
		if id := r.Ref + r.SPDXID; id != "" {
			defined[id]++
		}
		if strings.HasPrefix(r.License, "LicenseRef-") {
			used[r.License] = true
		}
	}
	for _, l := range d.Licenses {
		defined[l.ID]++
	}
	for _, r := range d.Relationships {
		used[r.SpdxElementID], used[r.RelatedSpdxElement] = true, true
	}
	for _, dep := range d.Dependencies {
		used[dep.Ref] = true
		for _, on := range dep.DependsOn {
			used[on] = true
		}
	}
	for _, c := range d.Compositions {
		for _, on := range c.Dependencies {
			used[on] = true
		}
	}
	return defined, used
}
