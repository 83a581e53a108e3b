package qcow_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/nodebake/nodebake/qcow"
)

// A compressed image is made, opened again and copied into a plain one.
func Example() {
	dir, err := os.MkdirTemp("", "qcow")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	f, err := os.Create(filepath.Join(dir, "disk.qcow2"))
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	w, err := qcow.Create(f, 1<<30, qcow.CreateOptions{Compression: "zstd"})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := io.WriteString(io.NewOffsetWriter(w, 512<<20), "hello, guest"); err != nil {
		log.Fatal(err)
	}
	if err := w.Close(); err != nil {
		log.Fatal(err)
	}

	src, err := qcow.NewFileSource(f)
	if err != nil {
		log.Fatal(err)
	}
	im, err := qcow.Open(src, qcow.Options{Resolve: qcow.NewDirResolver(dir)})
	if err != nil {
		log.Fatal(err)
	}
	defer im.Close()
	for e, err := range im.Extents(0, im.Size()) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Start, e.Length, e.Kind)
	}

	plain, err := os.Create(filepath.Join(dir, "plain.qcow2"))
	if err != nil {
		log.Fatal(err)
	}
	defer plain.Close()
	out, err := qcow.Create(plain, im.Size(), qcow.CreateOptions{ClusterSize: 4096})
	if err != nil {
		log.Fatal(err)
	}
	if err := qcow.Copy(context.Background(), out, im, qcow.CopyOptions{}); err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 12)
	if _, err := out.ReadAt(p, 512<<20); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", p)
	if err := out.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 0 536870912 hole
	// 536870912 65536 compressed
	// 536936448 536805376 hole
	// hello, guest
}
