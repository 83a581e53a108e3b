package bare_test

import (
	"bytes"
	"context"
	"fmt"
	"os"

	"github.com/nodebake/nodebake/imagebuild/output/bare"
	"github.com/nodebake/nodebake/qcow"
)

// A disk of 1 GiB with three bytes in it becomes a compressed file, its block map and its sum.
func Example() {
	disk, err := os.CreateTemp("", "disk")
	if err != nil {
		panic(err)
	}
	defer os.Remove(disk.Name())
	disk.WriteAt([]byte("abc"), 512<<20)
	disk.Truncate(1 << 30)
	src, err := qcow.NewFileSource(disk) // which knows the holes
	if err != nil {
		panic(err)
	}
	kind, err := bare.ParseKind("node.raw.zst")
	if err != nil {
		panic(err)
	}
	var out bytes.Buffer
	r, err := bare.Compress(context.Background(), &out, src, bare.Options{Kind: kind, Bmap: true})
	if err != nil {
		panic(err)
	}
	fmt.Println(int64(out.Len()) == r.Size)
	fmt.Println("mapped blocks:", r.Bmap.Mapped(), "of", r.Bmap.ImageSize/bare.MapBlock)
	fmt.Println(bare.BmapName("node.raw.zst"), bare.SumName("node.raw.zst"))
	// Output:
	// true
	// mapped blocks: 16 of 262144
	// node.raw.zst.bmap node.raw.zst.sha256
}

func ExampleParseKind() {
	_, err := bare.ParseKind("node.vmdk")
	fmt.Println(err)
	// Output:
	// format not written: node.vmdk: write node.qcow2 and then: qemu-img convert -O vmdk -o subformat=streamOptimized node.qcow2 node.vmdk
}

func ExampleCheckDevice() {
	_, err := bare.CheckDevice("/dev/null", 1<<30, nil, true)
	fmt.Println(err)
	// Output:
	// /dev/null: not a block device but a character device
}
