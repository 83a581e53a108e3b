package customize_test

import (
	"fmt"
	"log"

	"github.com/nodebake/nodebake/imagebuild/customize"
	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/osroot"
)

// A plan says what it would change. Plan.Apply makes the changes through the writer of Root.Writer, or one around it.
func ExampleNewPlan() {
	d, err := disk.Open("../../examples/demo/ostree.qcow2", disk.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer d.Close()
	root, err := osroot.Find(d, "")
	if err != nil {
		log.Fatal(err)
	}
	write, err := customize.ParseWrite("/etc/motd=baked")
	if err != nil {
		log.Fatal(err)
	}
	plan, err := customize.NewPlan(root, customize.Spec{
		Writes:     []customize.Write{write},
		Hostname:   "node-1",
		KargAppend: []string{"console=ttyS0"},
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range plan.Changes() {
		fmt.Printf("%s: %s\n", c.Path, c.Why)
	}
	_, err = customize.NewPlan(root, customize.Spec{Deletes: []string{"/usr/bin/sh"}})
	fmt.Println(err)
	// Output:
	// demo 35916219685a.0: /etc/motd: written
	// demo 35916219685a.0: /boot/loader/entries/ostree-1-demo.conf: kernel argument console=ttyS0 added
	// demo 35916219685a.0: /etc/hostname: the host's name
	// delete: ostree's files must not change: nothing can be kept at /usr/bin; choose a path in /etc or /var
}
