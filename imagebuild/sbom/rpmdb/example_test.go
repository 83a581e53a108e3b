package rpmdb_test

import (
	"fmt"
	"io"
	"log"
	"os"

	"github.com/nodebake/nodebake/imagebuild/sbom/rpmdb"
)

func Example() {
	f, err := os.Open("testdata/tiny.bdb")
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		log.Fatal(err)
	}
	db, err := rpmdb.Open(io.NewSectionReader(f, 0, st.Size()), nil)
	if err != nil {
		log.Fatal(err)
	}
	for p, err := range db.Packages() {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(p.Name, p.Epoch, p.Version, p.Release, p.Arch)
	}
	// Unordered output:
	// pkg0 3 5 1 noarch
	// pkg1 3 5 1 noarch
	// pkg2 3 5 1 noarch
}
