package lvm_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"log"
	"os"
	"slices"

	"github.com/nodebake/nodebake/imagebuild/disk/lvm"
)

// Example finds the volume that an fstab calls /dev/mapper/rl-root on a physical volume and makes it 8 MiB larger.
func Example() {
	disk := unpack("testdata/rl.img.gz")
	defer os.Remove(disk.Name())
	defer disk.Close()
	st, err := disk.Stat()
	if err != nil {
		log.Fatal(err)
	}
	groups, err := lvm.Open([]lvm.PV{{Name: "disk", R: disk, Size: st.Size()}})
	if err != nil {
		log.Fatal(err)
	}
	for _, g := range groups {
		for _, v := range g.Volumes {
			fmt.Printf("%s/%s: %s, %d bytes\n", v.Group, v.Name, v.Kind, v.Size)
			if !slices.Contains(v.Paths(), "/dev/mapper/rl-root") {
				continue
			}
			const more = 8 << 20
			size, err := g.DeviceSize(0, more)
			if err != nil {
				log.Fatal(err)
			}
			if err := disk.Truncate(size); err != nil {
				log.Fatal(err)
			}
			if err := g.GrowPV(0, size); err != nil {
				log.Fatal(err)
			}
			if err := g.GrowVolume(v.Name, v.Size+more); err != nil {
				log.Fatal(err)
			}
			segments, err := g.Segments(v.Name)
			if err != nil {
				log.Fatal(err)
			}
			for _, s := range segments {
				fmt.Printf("  from %d on: %d bytes at %d\n", s.At, s.Length, s.Start)
			}
			if err := g.Write([]io.WriterAt{disk}); err != nil {
				log.Fatal(err)
			}
		}
	}
	// Output:
	// rl/root: linear, 1638400 bytes
	//   from 0 on: 1310720 bytes at 65536
	//   from 1310720 on: 8716288 bytes at 2031616
	// rl/swap: linear, 655360 bytes
}

// unpack makes a file of a physical volume that LVM made.
func unpack(name string) *os.File {
	f, err := os.Open(name)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		log.Fatal(err)
	}
	to, err := os.CreateTemp("", "lvm")
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.Copy(to, z); err != nil {
		log.Fatal(err)
	}
	return to
}
