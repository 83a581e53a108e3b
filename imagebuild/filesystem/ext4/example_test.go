package ext4_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
	"time"

	"github.com/nodebake/nodebake/imagebuild/filesystem/ext4"
)

// device is a disk in memory; an *os.File serves as well.
type device []byte

func (d device) ReadAt(p []byte, off int64) (int, error)  { return bytes.NewReader(d).ReadAt(p, off) }
func (d device) WriteAt(p []byte, off int64) (int, error) { return copy(d[off:], p), nil }

// Add a file to a filesystem, and read it back.
func Example() {
	packed, err := os.Open("testdata/csum.img.gz")
	if err != nil {
		log.Fatal(err)
	}
	defer packed.Close()
	z, err := gzip.NewReader(packed)
	if err != nil {
		log.Fatal(err)
	}
	image, err := io.ReadAll(z)
	if err != nil {
		log.Fatal(err)
	}
	disk := device(image)

	w, err := ext4.OpenWriter(disk, int64(len(disk)), ext4.Options{Now: time.Unix(1700000000, 0)})
	if err != nil {
		log.Fatal(err)
	}
	if err := w.Add(&tar.Header{Name: "etc", Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
		log.Fatal(err)
	}
	text := "hello\n"
	h := &tar.Header{Name: "etc/motd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text))}
	if err := w.Add(h, strings.NewReader(text)); err != nil {
		log.Fatal(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		log.Fatal(err)
	}

	f, err := ext4.Open(disk, int64(len(disk)))
	if err != nil {
		log.Fatal(err)
	}
	names, err := f.ReadDir("/")
	if err != nil {
		log.Fatal(err)
	}
	r, err := f.Open("etc/motd")
	if err != nil {
		log.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%q %q\n", names, b)
	// Output: ["etc" "lost+found"] "hello\n"
}

// Make a filesystem, and let it grow when what is added does not fit.
func ExampleFormat() {
	disk := make(device, 4<<20, 16<<20)
	id := [16]byte{0x6e, 0x6f, 0x64, 0x65, 0x62, 0x61, 0x4b, 0x65, 0x80, 15: 1}
	if err := ext4.Format(&disk, int64(len(disk)), ext4.FormatOptions{UUID: id, Label: "store"}); err != nil {
		log.Fatal(err)
	}
	w, err := ext4.OpenWriter(&disk, int64(len(disk)), ext4.Options{Grow: func(need int64) (int64, error) {
		const step = 4 << 20
		disk = disk[:min((int(need)+step-1)/step*step, cap(disk))]
		return int64(len(disk)), nil
	}})
	if err != nil {
		log.Fatal(err)
	}
	data := bytes.Repeat([]byte("data"), 2<<20)
	h := &tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}
	if err := w.Add(h, bytes.NewReader(data)); err != nil {
		log.Fatal(err)
	}
	if err := w.Commit(context.Background()); err != nil {
		log.Fatal(err)
	}
	f, err := ext4.Open(&disk, int64(len(disk)))
	if err != nil {
		log.Fatal(err)
	}
	names, err := f.ReadDir("/")
	if err != nil {
		log.Fatal(err)
	}
	i := f.Info()
	fmt.Printf("%q %q, %d MiB\n", i.Label, names, i.Blocks*i.BlockSize>>20)
	// Output: "store" ["large" "lost+found"], 12 MiB
}
