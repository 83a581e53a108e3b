package imagelist_test

import (
	"context"
	"fmt"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/imagelist"
)

func ExampleRead() {
	manifest := `
apiVersion: batch/v1
kind: CronJob
metadata: {name: backup, namespace: db}
spec:
  jobTemplate:
    spec:
      template:
        spec:
          containers:
          - name: dump
            image: registry.example.com/dump:1.4
          volumes:
          - name: tools
            image: {reference: "registry.example.com/tools:7"}
`
	images, err := imagelist.Read(context.Background(), []string{"-"}, strings.NewReader(manifest), imagelist.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, i := range images {
		fmt.Println(i.Ref)
		fmt.Println("  " + i.From)
	}
	// Output:
	// registry.example.com/dump:1.4
	//   stdin:12: CronJob db/backup: spec.jobTemplate.spec.template.spec.containers[0].image
	// registry.example.com/tools:7
	//   stdin:15: CronJob db/backup: spec.jobTemplate.spec.template.spec.volumes[0].image.reference
}
