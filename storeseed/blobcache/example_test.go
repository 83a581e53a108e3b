package blobcache_test

import (
	"context"
	"fmt"
	"log"
	"os"

	digest "github.com/opencontainers/go-digest"

	"github.com/nodebake/nodebake/storeseed/blobcache"
)

func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cache, err := blobcache.Open(blobcache.Options{Dir: dir, MaxSize: 1 << 30})
	if err != nil {
		log.Fatal(err)
	}
	defer cache.Close()

	// A large blob, as it arrives.
	d := digest.FromString("a layer")
	w, err := cache.Create(context.Background(), d, 7)
	if err != nil {
		log.Fatal(err)
	}
	defer w.Close()
	fmt.Fprint(w, "a layer")
	if err := w.Commit(); err != nil {
		log.Fatal(err)
	}

	data, err := cache.Bytes(context.Background(), d, 1<<20)
	fmt.Println(string(data), err)
	// Output: a layer <nil>
}
