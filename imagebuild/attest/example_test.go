package attest_test

import (
	"fmt"
	"log"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/imagebuild/attest"
)

func ExampleProvenance() {
	statement, err := attest.Provenance(attest.Build{
		Subjects:   []attest.Resource{{Name: "node.qcow2", Digest: digest.FromString("the disk")}},
		Parameters: map[string]any{"images": []string{"registry.k8s.io/pause:3.10"}},
		Materials:  []attest.Resource{{URI: "file:base.qcow2", Digest: digest.FromString("the base")}},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%.60s\n", statement)
	// Output: {"_type":"https://in-toto.io/Statement/v1","subject":[{"name
}
