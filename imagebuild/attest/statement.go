package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Types of predicates that statements carry.
const (
	ProvenanceType = "https://slsa.dev/provenance/v1"
	SPDXType       = "https://spdx.dev/Document"
	CycloneDXType  = "https://cyclonedx.org/bom"
)

const (
	// BuildType names the meaning of a provenance's parameters: docs/provenance.md.
	BuildType = "https://github.com/nodebake/nodebake/blob/main/docs/provenance.md#v1"
	// BuilderID is who made the disk: this program, wherever it runs. Whoever runs it where others cannot reach it may
	// say so with an ID of their own (Build.BuilderID).
	BuilderID = "https://github.com/nodebake/nodebake"
)

// Resource is a thing that a statement speaks of: its name, where it comes from, and what it is. One of the first two
// may be empty.
type Resource struct {
	Name, URI string
	Digest    digest.Digest
	MediaType string
	// Annotations say more; values are those of JSON.
	Annotations map[string]any
}

// Build is what a bake was told, what it took, and what it made.
type Build struct {
	// Subjects are what was made, each with its digest.
	Subjects []Resource
	// Parameters are what the user asked for, as JSON would hold it: strings, numbers, booleans, and slices and maps of
	// them. They hold no secrets, and no paths but those that the user gave.
	Parameters map[string]any
	// Materials are what went into it, each with its digest.
	Materials []Resource
	// BuilderID is a URI; empty is BuilderID.
	BuilderID string
	// Version is nodebake's.
	Version string
	// Finished is when the disk was made, as SOURCE_DATE_EPOCH has it; nil says nothing.
	Finished *time.Time
}

// ErrIncomplete says that a statement would lack what makes it one.
var ErrIncomplete = errors.New("incomplete statement")

// Provenance is the in-toto statement, with the SLSA v1 predicate, of a build: JSON in one line.
func Provenance(b Build) ([]byte, error) {
	params, err := structpb.NewStruct(plain(b.Parameters).(map[string]any))
	if err != nil {
		return nil, fmt.Errorf("provenance: parameters: %w", err)
	}
	p := &v1.Provenance{
		BuildDefinition: &v1.BuildDefinition{BuildType: BuildType, ExternalParameters: params},
		RunDetails:      &v1.RunDetails{Builder: &v1.Builder{Id: b.BuilderID}},
	}
	if b.BuilderID == "" {
		p.RunDetails.Builder.Id = BuilderID
	}
	if b.Version != "" {
		p.RunDetails.Builder.Version = map[string]string{"nodebake": b.Version}
	}
	if b.Finished != nil {
		p.RunDetails.Metadata = &v1.BuildMetadata{FinishedOn: timestamppb.New(*b.Finished)}
	}
	for _, m := range b.Materials {
		d, err := descriptor(m)
		if err != nil {
			return nil, err
		}
		p.BuildDefinition.ResolvedDependencies = append(p.BuildDefinition.ResolvedDependencies, d)
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%w: provenance: %w", ErrIncomplete, err)
	}
	raw, err := marshal(p)
	if err != nil {
		return nil, err
	}
	return statement(b.Subjects, ProvenanceType, raw)
}

// Document is the in-toto statement that binds a document to what it is about, such as a bill of materials to its
// disk: JSON in one line. The document is JSON and stands in the statement as the predicate.
func Document(subjects []Resource, predicateType string, document []byte) ([]byte, error) {
	return statement(subjects, predicateType, document)
}

// statement is in-toto's outermost object. The library's own type would take a predicate apart into a tree of values
// and put it together again, which costs many times a large document's size and changes its numbers.
func statement(subjects []Resource, predicateType string, predicate []byte) ([]byte, error) {
	s := struct {
		Type          string            `json:"_type"`
		Subject       []json.RawMessage `json:"subject"`
		PredicateType string            `json:"predicateType"`
		Predicate     json.RawMessage   `json:"predicate"`
	}{Type: intoto.StatementTypeUri, PredicateType: predicateType, Predicate: predicate}
	for _, r := range subjects {
		if r.Digest == "" {
			return nil, fmt.Errorf("%w: the subject %s has no digest", ErrIncomplete, r.Name)
		}
		d, err := descriptor(r)
		if err != nil {
			return nil, err
		}
		raw, err := marshal(d)
		if err != nil {
			return nil, err
		}
		s.Subject = append(s.Subject, raw)
	}
	if len(s.Subject) == 0 {
		return nil, fmt.Errorf("%w: it has no subject", ErrIncomplete)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, fmt.Errorf("statement: %w", err)
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

func descriptor(r Resource) (*intoto.ResourceDescriptor, error) {
	d := &intoto.ResourceDescriptor{Name: valid(r.Name), Uri: valid(r.URI), MediaType: r.MediaType}
	if r.Digest != "" {
		if err := r.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("%w: %s%s: %w", ErrIncomplete, r.Name, r.URI, err)
		}
		d.Digest = map[string]string{r.Digest.Algorithm().String(): r.Digest.Encoded()}
	}
	if len(r.Annotations) > 0 {
		var err error
		if d.Annotations, err = structpb.NewStruct(plain(r.Annotations).(map[string]any)); err != nil {
			return nil, fmt.Errorf("%s%s: %w", r.Name, r.URI, err)
		}
	}
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %s%s: %w", ErrIncomplete, r.Name, r.URI, err)
	}
	return d, nil
}

// marshal is protojson without the blanks that it strews in, so that no one relies on its bytes: each build of the
// program has its own.
func marshal(m proto.Message) ([]byte, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = json.Compact(&out, raw)
	return out.Bytes(), err
}

// plain turns slices and maps of any type of string into those that structpb takes, and bytes that are no UTF-8 into
// what JSON can hold.
func plain(v any) any {
	switch v := v.(type) {
	case string:
		return valid(v)
	case []string:
		list := make([]any, len(v))
		for i, s := range v {
			list[i] = valid(s)
		}
		return list
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = plain(e)
		}
		return list
	case map[string]string:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[valid(k)] = valid(e)
		}
		return m
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[valid(k)] = plain(e)
		}
		return m
	}
	return v
}

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
