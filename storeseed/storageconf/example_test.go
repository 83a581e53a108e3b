package storageconf_test

import (
	"fmt"

	"github.com/nodebake/nodebake/storeseed/storageconf"
)

func ExampleAddStore() {
	conf := []byte(`[storage]
driver = "overlay"      # set at install

[storage.options]
additionalimagestores = [
  "/usr/ock/containers",
]
`)
	out, changed, err := storageconf.AddStore(conf, "/var/images")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(changed)
	fmt.Print(string(out))
	// Output:
	// true
	// [storage]
	// driver = "overlay"      # set at install
	//
	// [storage.options]
	// additionalimagestores = [
	//   "/var/images",
	//   "/usr/ock/containers",
	// ]
}
