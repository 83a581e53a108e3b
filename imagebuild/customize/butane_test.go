package customize

import (
	"encoding/base64"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The snippet is held against Butane's specification (fcos 1.5.0) by its structure: every key, its type, and the bytes.
func TestButane(t *testing.T) {
	root := open(t, demo+"ostree.qcow2")
	disk, err := root.Systems[0].ReadFile("/etc/containers/storage.conf")
	if err != nil {
		t.Fatal(err)
	}
	for name, conf := range map[string]string{
		"the disk's": string(disk), "empty": "", "no last line end": "[storage]", "more line ends": "[storage]\n\n\n", "blanks first": "  a\nb\n", "an empty line first": "\n a\n", "tabs": "\ta = 1\n",
		"blanks last": "a  \nb\t\n", "carriage returns": "a\r\nb\r\n", "not text": "a\x00\xff", "a document's end": "---\na: b\n...\n", "a comment": "# a: b\n", "wide": "ä 漢 \u2028 x\n", "long": strings.Repeat("word ", 1000) + "\n",
	} {
		text := Butane(root, "/var/images", []byte(conf))
		type contents struct {
			Inline, Source *string
		}
		var c struct {
			Variant, Version string
			Storage          struct {
				Files []struct {
					Path      string
					Mode      int
					Overwrite bool
					Contents  contents
				}
			}
		}
		d := yaml.NewDecoder(strings.NewReader(text))
		d.KnownFields(true)
		if err := d.Decode(&c); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		if c.Variant != "fcos" || c.Version != "1.5.0" || len(c.Storage.Files) != 1 {
			t.Errorf("%s: %+v", name, c)
			continue
		}
		f := c.Storage.Files[0]
		got := ""
		switch {
		case f.Contents.Inline != nil:
			got = *f.Contents.Inline
		case f.Contents.Source != nil:
			b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(*f.Contents.Source, "data:;base64,"))
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = string(b)
		}
		if f.Path != "/etc/containers/storage.conf" || f.Mode != 0o644 || !f.Overwrite || got != conf {
			t.Errorf("%s: %+v: %q, want %q\n%s", name, f, got, conf, text)
		}
		if !strings.HasPrefix(text, "# Keeps ") || !strings.Contains(text, "/var/images") {
			t.Errorf("%s: no comment:\n%s", name, text)
		}
		// What people will read is text.
		if name == "the disk's" && !strings.Contains(text, "          graphroot = \"/var/lib/containers/storage\"\n") {
			t.Errorf("not readable:\n%s", text)
		}
	}
	if text := Butane(nil, "/a\nvariant: x", []byte("a\n")); strings.Contains(text, "\nvariant: x") {
		t.Errorf("a store's name breaks out of the comment:\n%s", text)
	}
}
