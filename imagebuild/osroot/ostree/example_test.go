package ostree

import "fmt"

func Example() {
	// A tree in memory; on a disk the ext4 and XFS packages are such readers.
	var root Reader = fixture()
	l, err := Open(root, nil)
	if err != nil {
		panic(err)
	}
	for _, d := range l.Deployments {
		at, err := l.Map(d, "/etc/containers/storage.conf")
		if err != nil {
			panic(err)
		}
		fmt.Println(d.OS, d.Checksum[:4], d.Entry.Title, at.Path[len(d.Path):])
	}
	at, err := l.Map(l.Deployments[0], "/var/images")
	if err != nil {
		panic(err)
	}
	fmt.Println(at.Path, at.Immutable)
	// Output:
	// ock bbbb B /etc/containers/storage.conf
	// ock aaaa A /etc/containers/storage.conf
	// ostree/deploy/ock/var/images false
}

func ExampleParseEntry() {
	e, err := ParseEntry("ostree-1-ock.conf", []byte("title Oracle Linux (ostree:0)\noptions root=LABEL=root rw ostree=/ostree/boot.1/ock/8f6b/0\n"))
	if err != nil {
		panic(err)
	}
	t, err := ParseTarget(e.Args("ostree")[0])
	if err != nil {
		panic(err)
	}
	fmt.Println(t.OS, t.Boot, t.Path(), e.Args("root"))
	// Output: ock 1 ostree/boot.1/ock/8f6b/0 [LABEL=root]
}
