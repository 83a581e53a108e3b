package imagebuild

import (
	"context"
	"fmt"
	"path"

	"github.com/sirupsen/logrus"

	"github.com/nodebake/nodebake/storeseed"
)

// StoreVerification is what the verification of one store found.
type StoreVerification struct {
	Store string `json:"store"`
	*storeseed.Report
}

// Verify rebuilds every layer of every read-only store on the disk from the disk's own files and checks it
// against its digest. A store that is not what it claims, and a disk without any, is an error that matches
// ErrVerify; the result then says what was found.
func Verify(ctx context.Context, o *Opened, log logrus.FieldLogger) ([]StoreVerification, error) {
	stores, err := o.Stores()
	if err != nil {
		return nil, err
	}
	all := []StoreVerification{}
	var faults int
	for _, s := range stores {
		if s.Primary {
			continue
		}
		info := o.Root.VolumeOf(s.Root).Info
		r, err := storeseed.Verify(ctx, o.Root.Tree, s.Root, storeseed.VerifyOptions{
			TimeResolution: info.TimeResolution, Earliest: info.Earliest, Latest: info.Latest,
			Progress: func(layer, layers int, id string) {
				log.Infof("%s: layer %d of %d: %.12s", s.Path, layer+1, layers, id)
			},
		})
		if err != nil {
			return all, err
		}
		all = append(all, StoreVerification{path.Clean(s.Path), r})
		faults += r.Total
	}
	switch {
	case len(all) == 0:
		return all, fmt.Errorf("%w: no image store is on the disk (looked where storage.conf points, and at %s)", ErrVerify, DefaultStore)
	case faults > 0:
		return all, fmt.Errorf("%w: %d faults; do not ship this disk: bake it again from its base", ErrVerify, faults)
	}
	return all, nil
}
