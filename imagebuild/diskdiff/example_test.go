package diskdiff_test

import (
	"context"
	"fmt"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/diskdiff"
)

// The demo's disk is compared with itself.
func Example() {
	var disks [2]*imagebuild.Opened
	for i := range disks {
		d, err := imagebuild.OpenDisk("../../examples/demo/ostree.qcow2", imagebuild.DiskOptions{})
		if err != nil {
			fmt.Println(err)
			return
		}
		defer d.Close()
		disks[i] = d
	}
	c, err := diskdiff.New(disks[0], disks[1])
	if err != nil {
		fmt.Println(err)
		return
	}
	report, err := c.Report(context.Background())
	if err != nil {
		fmt.Println(err)
		return
	}
	totals, err := c.Files(context.Background(), diskdiff.Options{}, func(ch diskdiff.Change) error {
		fmt.Println(ch.Kind, ch.Path)
		return nil
	})
	fmt.Println(report.B.OS, report.Any(), totals.Any(), totals.Compared > 100, err)
	// Output: nodebake demo OS 1 (ostree) false false true <nil>
}

func ExampleLines() {
	fmt.Print(diskdiff.Lines([]byte("driver = \"overlay\"\nstores = [\n]\n"), []byte("driver = \"overlay\"\nstores = [\n\"/var/images\",\n]\n")))
	// Output:
	// @@ -1,3 +1,4 @@
	//  driver = "overlay"
	//  stores = [
	// +"/var/images",
	//  ]
}
