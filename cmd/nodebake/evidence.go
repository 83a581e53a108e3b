package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodebake/nodebake/imagebuild"
	"github.com/nodebake/nodebake/imagebuild/attest"
	"github.com/nodebake/nodebake/imagebuild/sbom"
)

// evidenceFlags are the flags for what is told of a disk beside it.
type evidenceFlags struct {
	formats       []string
	provenance    bool
	key, password string
}

func (e *evidenceFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&e.formats, "sbom", nil, "write a bill of materials beside OUT: `FORMAT` is spdx-json (OUT.spdx.json) or cyclonedx-json (OUT.cdx.json); may be given more than once")
	f.BoolVar(&e.provenance, "provenance", false, "write OUT.provenance.json: what the disk was made of, an in-toto statement (SLSA v1)")
	f.StringVar(&e.key, "sign-key", "", "sign the disk (OUT.sig) and what is said of it (OUT.….dsse.json) with the private key in `FILE`: PEM, or as cosign makes it")
	f.StringVar(&e.password, "sign-key-password", "", "`FILE` with the key's password (default: $COSIGN_PASSWORD)")
}

func (e *evidenceFlags) apply(to *imagebuild.Evidence) error {
	*to = imagebuild.Evidence{Provenance: e.provenance, Program: programVersion()}
	for _, name := range e.formats {
		f, err := sbom.ParseFormat(name)
		if err != nil {
			return usage("--sbom: %v", err)
		}
		to.SBOM = append(to.SBOM, f)
	}
	if e.key == "" {
		if e.password != "" {
			return usage("--sign-key-password is of no use without --sign-key")
		}
		return nil
	}
	text, err := os.ReadFile(e.key)
	if err != nil {
		return fmt.Errorf("--sign-key: %w", err)
	}
	var password []byte
	if p, ok := os.LookupEnv("COSIGN_PASSWORD"); ok {
		password = []byte(p)
	}
	if e.password != "" {
		if password, err = os.ReadFile(e.password); err != nil {
			return fmt.Errorf("--sign-key-password: %w", err)
		}
		password = []byte(strings.TrimRight(string(password), "\r\n"))
	}
	to.Key, err = attest.ParseKey(text, password)
	switch {
	case errors.Is(err, attest.ErrPassword):
		return usage("--sign-key %s: %v; $COSIGN_PASSWORD or --sign-key-password gives it", e.key, err)
	case err != nil:
		return usage("--sign-key %s: %v", e.key, err)
	}
	return nil
}
