package lint_test

import (
	"context"
	"fmt"
	"log"
	"strings"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/lint"
)

// A disk that nothing was baked into yet is held against a list of images.
func Example() {
	disk, err := imagebuild.OpenDisk("../../examples/demo/base.qcow2", imagebuild.DiskOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer disk.Close()
	report, err := lint.Run(context.Background(), disk, lint.Options{Manifests: []string{"-"}, Stdin: strings.NewReader("example.org/hello:1\n")})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range report.Findings {
		fmt.Printf("%s %s: %s\n", f.ID, f.Severity, f.What)
	}
	fmt.Println(report.Reaches(lint.Error))
	// Output:
	// NB010 error: there is no read-only image store on the disk
	// NB077 error: the image example.org/hello:1 is in no store
	// true
}
