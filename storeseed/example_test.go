package storeseed_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/nodebake/nodebake/storeseed"
	"github.com/nodebake/nodebake/storeseed/blobcache"
)

// Seed a folder with an image and look at what is there. As root, since a store has owners.
func Example() {
	ctx := context.Background()
	dir, err := storeseed.Dir("/mnt/root")
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	store, err := storeseed.OpenStore(dir, storeseed.Options{Root: "var/images"})
	if err != nil {
		log.Fatal(err)
	}
	ref, names, err := storeseed.ParseReference(nil, "docker://registry.k8s.io/pause:3.10")
	if err != nil {
		log.Fatal(err)
	}
	res, err := store.Pull(ctx, storeseed.PullOptions{
		Source:       storeseed.Source{Ref: ref, Names: names},
		Platform:     storeseed.Platform{OS: "linux", Architecture: "arm64"},
		ReportWriter: os.Stderr,
		Retries:      3,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(res.ID, res.Names)
	if err := store.Commit(ctx); err != nil {
		log.Fatal(err)
	}

	report, err := storeseed.Verify(ctx, dir, "var/images", storeseed.VerifyOptions{})
	if err != nil {
		log.Fatal(err)
	}
	for _, fault := range report.Faults {
		fmt.Println(fault)
	}
}

// Many images, their layers fetched ahead, with a cache that the next run uses.
func ExampleStore_Prefetch() {
	ctx := context.Background()
	cache, err := blobcache.Open(blobcache.Options{Dir: "/var/cache/nodebake", MaxSize: 50 << 30})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()
	var list []storeseed.PullOptions
	for _, name := range []string{"registry.k8s.io/pause:3.10", "quay.io/prometheus/node-exporter:v1.8.2"} {
		ref, names, err := storeseed.ParseReference(nil, name)
		if err != nil {
			log.Fatal(err)
		}
		list = append(list, storeseed.PullOptions{Source: storeseed.Source{Ref: ref, Names: names}, Cache: cache, Retries: 3})
	}
	images, err := storeseed.OpenAll(ctx, list, 0)
	if err != nil {
		log.Fatal(err)
	}

	dir, err := storeseed.Dir("/mnt/root")
	if err != nil {
		log.Fatal(err)
	}
	defer dir.Close()
	store, err := storeseed.OpenStore(dir, storeseed.Options{Root: "var/images"})
	if err != nil {
		log.Fatal(err)
	}
	ahead, err := store.Prefetch(ctx, images, storeseed.PrefetchOptions{Parallel: 6})
	if err != nil {
		log.Fatal(err)
	}
	defer ahead.Close()
	for _, image := range images {
		if _, err := store.PullOpened(ctx, image); err != nil {
			log.Fatal(err)
		}
		image.Close()
	}
	if err := store.Commit(ctx); err != nil {
		log.Fatal(err)
	}
}

// Names as people write them, and the names by which a node will find the image.
func ExampleParseReference() {
	ref, names, err := storeseed.ParseReference(nil, "quay.io/prometheus/node-exporter:v1.8.2")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(ref.Transport().Name(), ref.StringWithinTransport())
	fmt.Println(names)

	_, _, err = storeseed.ParseReference(nil, "docker-daemon:alpine:3")
	fmt.Println(err)
	// Output:
	// docker //quay.io/prometheus/node-exporter:v1.8.2
	// [quay.io/prometheus/node-exporter:v1.8.2]
	// image "docker-daemon:alpine:3": unsupported transport "docker-daemon": save the image to a file first, and give that as oci-archive:FILE
}
