package storeseed

import (
	"encoding/json"
	"fmt"
)

// PlatformOf reads out of an image's config in the store at root what it runs on. id is the image's ID.
func PlatformOf(r Reader, root, id string) (Platform, error) {
	if !isID(id) {
		return Platform{}, fmt.Errorf("%w: %q is not an image ID", ErrCorruptStore, id)
	}
	data, err := readAll(r, root+"/"+imagesDir+"/"+id+"/"+bigDataFile("sha256:"+id))
	if err != nil {
		return Platform{}, err
	}
	var c struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return Platform{}, fmt.Errorf("%w: the config of image %s: %w", ErrCorruptStore, id, err)
	}
	return Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant}, nil
}
