// Command crio stands for CRI-O in a test: a Go binary whose build information
// names the storage library.
package main

import "go.podman.io/storage/pkg/stringid"

func main() { println(stringid.TruncateID("0123456789abcdef")) }
