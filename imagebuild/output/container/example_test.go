package container_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"

	imgspecv1 "github.com/opencontainers/image-spec/specs-go/v1"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/signature"

	"github.com/nodebake/nodebake/imagebuild/output/container"
)

// A disk goes into an image, and is taken out of it again.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()

	dest, isImage, err := container.ParseDest("oci-archive:" + filepath.Join(dir, "ock.tar") + ":ock:1.31")
	if err != nil || !isImage {
		log.Fatal(isImage, err)
	}
	disk := "the bytes of boot.qcow2"
	res, err := container.Write(ctx, dest, strings.NewReader(disk), int64(len(disk)), container.Options{
		Platform: imgspecv1.Platform{OS: "linux", Architecture: "amd64"},
		Format:   "qcow2",
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.DiskDigest)

	ref, err := ociarchive.NewReference(dest.Path(), "ock:1.31")
	if err != nil {
		log.Fatal(err)
	}
	// Only for the example: usually nil, for the host's policy.
	policy, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		log.Fatal(err)
	}
	defer policy.Destroy()
	f, info, err := container.Open(ctx, ref, nil, "", dir, container.OpenOptions{Policy: policy})
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Path, info.Platform.Architecture, string(data))
	// Output:
	// sha256:4a4a65f0f391bf1d6316120e203088692e1acfde4852067e54983cb43412a2cc
	// disk/boot.qcow2 amd64 the bytes of boot.qcow2
}
