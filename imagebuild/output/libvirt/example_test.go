package libvirt_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/nodebake/nodebake/imagebuild/output/libvirt"
	"github.com/nodebake/nodebake/qcow"
)

func ExampleParseDest() {
	d, isVolume, err := libvirt.ParseDest("libvirt+qemu+ssh://root@kvm1/system?pool=images&volume=boot.qcow2")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(isVolume, d.URI(), d.Pool(), d.Volume())
	_, isVolume, _ = libvirt.ParseDest("boot.qcow2")
	fmt.Println(isVolume)
	_, _, err = libvirt.ParseDest("libvirt+qemu:///system?pool=images")
	fmt.Println(err)
	// Output:
	// true qemu+ssh://root@kvm1/system images boot.qcow2
	// false
	// libvirt output: the volume is not given: &volume=NAME, as in volume=boot.qcow2
}

// A disk becomes a volume of this host. It needs a daemon, so it is not run here.
func Example() {
	ctx := context.Background()
	dest, _, err := libvirt.ParseDest("libvirt+qemu:///system?pool=default&volume=boot.qcow2")
	if err != nil {
		log.Fatal(err)
	}
	o := libvirt.Options{Format: "qcow2", Capacity: 15 << 30, Force: true}
	if err := libvirt.Check(ctx, dest, o); err != nil { // before the disk is made
		log.Fatal(err)
	}
	f, err := os.Open("boot.qcow2")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	src, err := qcow.NewFileSource(f)
	if err != nil {
		log.Fatal(err)
	}
	r, err := libvirt.Upload(ctx, dest, src, o)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(r.Path, r.Allocation)
}
