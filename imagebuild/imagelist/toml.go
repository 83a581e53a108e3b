package imagelist

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// pauseKeys are where engines' configurations name the pause image: CRI-O, containerd's second and third
// version of config.toml (https://github.com/containerd/containerd/blob/main/docs/cri/config.md).
var pauseKeys = [][]string{
	{"crio", "image", "pause_image"},
	{"plugins", "io.containerd.grpc.v1.cri", "sandbox_image"},
	{"plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"},
	{"plugins", "cri", "sandbox_image"},
}

func (r *reader) toml(name string, data []byte) error {
	var root map[string]any
	if err := toml.Unmarshal(data, &root); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return fmt.Errorf("%s:%d: %w", name, line, err)
		}
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, key := range pauseKeys {
		var v any = root
		for _, k := range key {
			m, _ := v.(map[string]any)
			v = m[k]
		}
		switch v := v.(type) {
		case nil:
		case string:
			if v == "" {
				continue
			}
			if err := check(v); err != nil {
				return fmt.Errorf("%s: %s: %w", name, strings.Join(key, "."), err)
			}
			r.add(unambiguous(v), name+": "+strings.Join(key, "."))
		default:
			return fmt.Errorf("%s: %s is not a string", name, strings.Join(key, "."))
		}
	}
	return nil
}
