package bakefile_test

import (
	"fmt"

	"github.com/nodebake/nodebake/imagebuild/bakefile"
)

func Example() {
	file, err := bakefile.Parse("disks/bake.yaml", []byte(`
apiVersion: nodebake/v1
kind: Bake
base: debian.qcow2
images: [registry.k8s.io/pause:3.10]
disks:
- name: control
  output: control.qcow2
  imagesFrom: [control.txt]
- name: worker
  output: worker.qcow2
  size: 40G
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range file.Disks {
		fmt.Println(d.Name)
		for _, s := range d.Settings {
			fmt.Printf("  --%s %s (line %d)\n", s.Flag, s.Value, s.Line)
		}
	}
	_, err = bakefile.Parse("bake.yaml", []byte("apiVersion: nodebake/v1\nkind: Bake\nimage: [a]\n"))
	fmt.Println(err)
	// Output:
	// control
	//   --base disks/debian.qcow2 (line 4)
	//   --image registry.k8s.io/pause:3.10 (line 5)
	//   --output disks/control.qcow2 (line 8)
	//   --images-from disks/control.txt (line 9)
	// worker
	//   --base disks/debian.qcow2 (line 4)
	//   --image registry.k8s.io/pause:3.10 (line 5)
	//   --output disks/worker.qcow2 (line 11)
	//   --size 40G (line 12)
	// bake.yaml:3:1: unknown key "image"; did you mean images?
}
