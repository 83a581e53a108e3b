package sbom_test

import (
	"bytes"
	"fmt"
	"log"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"

	"github.com/nodebake/nodebake/imagebuild/sbom"
)

// A document is usually collected from a disk; this one says what it is made of by hand.
func ExampleDocument_Write() {
	doc := sbom.Document{
		Name:    "node.qcow2",
		Created: time.Unix(1700000000, 0).UTC(),
		Images: []sbom.Image{{
			Holder:   sbom.Holder{ID: "debian", VersionID: "12", Packages: []int{0}},
			ImageID:  "b1a7d9ddb2b2",
			Manifest: "sha256:8c0f7a0a1e9ac7d6ba8a8d5a2e7ee5bbd7d8a3f4cf9f2a0c3c3f6c2a6f1b2c3d",
			Names:    []string{"docker.io/library/debian:12"},
			Store:    "/var/images",
		}},
		Packages: []sbom.Package{{Type: "deb", Namespace: "debian", Distro: "debian-12", Name: "bash", Version: "5.2.15-2+b7", Arch: "amd64"}},
	}
	var out bytes.Buffer
	if err := doc.Write(&out, sbom.CycloneDX); err != nil {
		log.Fatal(err)
	}
	var bom cdx.BOM
	if err := cdx.NewBOMDecoder(&out, cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
		log.Fatal(err)
	}
	fmt.Println(bom.Metadata.Component.Name, bom.Metadata.Timestamp)
	for _, c := range *bom.Components {
		fmt.Println(c.Type, c.Name, c.PackageURL)
	}
	// Output:
	// node.qcow2 2023-11-14T22:13:20Z
	// container docker.io/library/debian pkg:oci/debian@sha256:8c0f7a0a1e9ac7d6ba8a8d5a2e7ee5bbd7d8a3f4cf9f2a0c3c3f6c2a6f1b2c3d?repository_url=docker.io%2Flibrary%2Fdebian&tag=12
	// library bash pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12
}
