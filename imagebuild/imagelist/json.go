package imagelist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"go.yaml.in/yaml/v3"
)

// jsonDocs parses JSON values, one after the other. YAML would take most JSON, but not tabs.
func jsonDocs(data []byte) ([]*yaml.Node, error) {
	p := jsonParser{data: data, line: 1, dec: json.NewDecoder(bytes.NewReader(data))}
	p.dec.UseNumber()
	var docs []*yaml.Node
	for {
		t, err := p.dec.Token()
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, p.wrap(err)
		}
		n, err := p.node(t, 0)
		if err != nil {
			return nil, err
		}
		docs = append(docs, n)
	}
}

type jsonParser struct {
	data []byte
	dec  *json.Decoder
	pos  int
	line int
}

func (p *jsonParser) at() int {
	if pos := min(int(p.dec.InputOffset()), len(p.data)); pos > p.pos {
		p.line += bytes.Count(p.data[p.pos:pos], []byte{'\n'})
		p.pos = pos
	}
	return p.line
}

func (p *jsonParser) wrap(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("line %d: %w", p.at(), err)
}

// node builds the node that begins with the token t.
func (p *jsonParser) node(t json.Token, depth int) (*yaml.Node, error) {
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: p.at()}
	switch t := t.(type) {
	case json.Delim:
		if depth > maxDepth {
			return nil, fmt.Errorf("line %d: %w: nested more than %d deep", n.Line, ErrTooLarge, maxDepth)
		}
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for {
			t, err := p.dec.Token()
			if err != nil {
				return nil, p.wrap(err)
			}
			if d, ok := t.(json.Delim); ok && (d == ']' || d == '}') {
				return n, nil
			}
			c, err := p.node(t, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
	case string:
		n.Tag, n.Value = "!!str", t
	case json.Number:
		n.Tag, n.Value = "!!float", t.String()
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(t)
	default:
		n.Tag = "!!null"
	}
	return n, nil
}
