package osroot

import (
	"errors"
	"testing"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
)

// What a mount hides stays hidden under any name that symbolic links give it.
func TestHidden(t *testing.T) {
	for _, c := range []struct {
		name, fstab, store string
		hidden             bool
	}{
		{"by its own name", "nfs:/x /var nfs defaults\n", "/var/images", true},
		{"a link leads below the mount", "nfs:/x /srv nfs defaults\n", "/state/images", true},
		{"the mount's target is a link", "nfs:/x /data/images nfs defaults\n", "/var/images", true},
		{"elsewhere", "nfs:/x /srv/other nfs defaults\n", "/state/images", false},
		{"a target that nothing can be mounted at", "nfs:/x /loop/x nfs defaults\n", "/var/images", false},
	} {
		r := tree{"etc/fstab": c.fstab, "srv/state/x": "", "state": "->/srv/state", "var/x": "", "data": "->var", "loop": "->loop"}
		s := bare(r)
		root := &Root{Systems: []*System{s}, Tree: filesystem.NewTree(filesystem.Graft{Reader: r}), Volumes: []Volume{{}}}
		if err := root.mount(&disk.Disk{}); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if _, err := root.Writable(s, c.store); errors.Is(err, ErrHidden) != c.hidden || (err != nil) != c.hidden {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
