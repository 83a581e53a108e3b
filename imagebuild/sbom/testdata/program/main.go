// Command program is a Go program with modules, for tests.
package main

import (
	"fmt"

	"github.com/google/uuid"
	digest "github.com/opencontainers/go-digest"
)

func main() { fmt.Println(uuid.Nil, digest.FromString("")) }
