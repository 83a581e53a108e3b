package sbom_test

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/nodebake/nodebake/imagebuild/sbom"
	"github.com/nodebake/nodebake/imagebuild/sbom/schematest"
)

// TestSchemas holds documents against the formats' schemas, and has their own libraries read them: nothing is in them
// that these would not write again.
func TestSchemas(t *testing.T) {
	r, in := sbom.ExampleDisk(t)
	d, err := sbom.Collect(context.Background(), r, in)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := sbom.Collect(context.Background(), r, sbom.Input{Name: "empty"})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []sbom.Format{sbom.SPDX, sbom.CycloneDX} {
		t.Run(string(f), func(t *testing.T) {
			var first, again, small bytes.Buffer
			for _, w := range []struct {
				d   *sbom.Document
				out *bytes.Buffer
			}{{d, &first}, {d, &again}, {bare, &small}} {
				if err := w.d.Write(w.out, f); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(first.Bytes(), again.Bytes()) {
				t.Error("written again it is another")
			}
			schematest.Check(t, f, first.Bytes())
			schematest.Check(t, f, small.Bytes())
			var lib any = &spdx.Document{}
			if f == sbom.CycloneDX {
				lib = &cdx.BOM{}
			}
			if err := json.Unmarshal(first.Bytes(), lib); err != nil {
				t.Fatal(err)
			}
			back, err := json.Marshal(lib)
			if err != nil {
				t.Fatal(err)
			}
			var a, b any
			if json.Unmarshal(first.Bytes(), &a) != nil || json.Unmarshal(back, &b) != nil {
				t.Fatal("no JSON")
			}
			if !reflect.DeepEqual(a, b) {
				t.Errorf("its own library writes it as\n%.3000s\nand it was\n%.3000s", back, first.Bytes())
			}
			changed := *d
			changed.Name = "another"
			var other bytes.Buffer
			if err := changed.Write(&other, f); err != nil {
				t.Fatal(err)
			}
			if uuidOf(t, first.Bytes()) == uuidOf(t, other.Bytes()) {
				t.Error("another document has the same identity")
			}
		})
	}
}

// uuidOf is the last 36 characters of a document's identity.
func uuidOf(t *testing.T, doc []byte) string {
	t.Helper()
	var v struct{ DocumentNamespace, SerialNumber string }
	if err := json.Unmarshal(doc, &v); err != nil {
		t.Fatal(err)
	}
	id := v.DocumentNamespace + v.SerialNumber
	id = id[max(len(id)-36, 0):]
	if len(id) != 36 || id[14] != '5' || strings.Trim(id, "0-") == "" {
		t.Fatalf("%q is no UUID of version 5", id)
	}
	return id
}
