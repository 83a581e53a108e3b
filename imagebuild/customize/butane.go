package customize

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

// Butane is a Butane configuration (variant fcos, version 1.5.0, which becomes Ignition's 3.4.0) that writes
// /etc/containers/storage.conf with the bytes of conf, the file as it is on the baked disk. It is for those whose Ignition
// configuration writes that file, and so would take the store out of it again. root, which may be nil, gives the file's
// mode; store is named in the comment.
func Butane(root *osroot.Root, store string, conf []byte) string {
	const name = "/etc/containers/storage.conf"
	mode := int64(0o644)
	on := ""
	if root != nil {
		on = ", " + osName(root.Release)
		if at, err := root.Systems[0].Locate(name); err == nil {
			if h, err := root.Tree.Stat(at.Path); err == nil {
				mode = h.Mode
			}
		}
	}
	head := fmt.Sprintf("Keeps %s as nodebake left it on the disk%s, with the image store %s.\nMerge it into the Butane configuration in the place of what writes that file now.", name, on, oneLine(store))
	text := render(head, name, mode, "inline", string(conf))
	// Not every text comes out of YAML as it went in.
	if got, err := inlined(text); err != nil || !bytes.Equal(got, conf) {
		text = render(head, name, mode, "source", "data:;base64,"+base64.StdEncoding.EncodeToString(conf))
	}
	return text
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func render(head, name string, mode int64, how, content string) string {
	word := func(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: s} }
	style := yaml.Style(0)
	if how == "inline" {
		style = yaml.LiteralStyle
	}
	pairs := func(n ...*yaml.Node) *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Content: n} }
	file := pairs(word("path"), word(name), word("mode"), word(fmt.Sprintf("0%03o", mode)), word("overwrite"), word("true"),
		word("contents"), pairs(word(how), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: content, Style: style}))
	doc := pairs(word("variant"), word("fcos"), word("version"), &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: "1.5.0"},
		word("storage"), pairs(word("files"), &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{file}}))
	doc.HeadComment = head
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(doc); err != nil {
		return "" // a tree of plain nodes and valid text is always encoded
	}
	return b.String()
}

// inlined reads back what the one file of a Butane configuration holds.
func inlined(text string) ([]byte, error) {
	var c struct {
		Storage struct {
			Files []struct {
				Contents struct{ Inline string }
			}
		}
	}
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		return nil, err
	}
	if len(c.Storage.Files) != 1 {
		return nil, fmt.Errorf("%d files", len(c.Storage.Files))
	}
	return []byte(c.Storage.Files[0].Contents.Inline), nil
}
