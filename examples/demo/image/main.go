// Command image writes the demo's container image as an OCI archive: two layers, the second of which deletes
// a file of the first, and a program that prints one line. The same bytes every time.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"time"
)

var created = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

type file struct {
	name    string
	mode    int64
	content []byte
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: image FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func write(out string) error {
	layers := [][]byte{
		archive([]file{{"bin/", 0o755, nil}, {"bin/hello", 0o755, program("hello from a baked disk\n")}, {"etc/", 0o755, nil}, {"etc/draft", 0o644, []byte("to be deleted\n")}}),
		archive([]file{{"etc/", 0o755, nil}, {"etc/.wh.draft", 0o644, nil}, {"etc/motd", 0o644, []byte("baked, not pulled\n")}}),
	}
	blobs := map[string][]byte{}
	var order []string
	put := func(mediaType string, b []byte) descriptor {
		sum := fmt.Sprintf("%x", sha256.Sum256(b))
		if blobs[sum] == nil {
			order = append(order, sum)
		}
		blobs[sum] = b
		return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(b)}
	}
	var diffIDs []string
	var descs []descriptor
	for _, l := range layers {
		diffIDs = append(diffIDs, fmt.Sprintf("sha256:%x", sha256.Sum256(l)))
		descs = append(descs, put("application/vnd.oci.image.layer.v1.tar+gzip", compress(l)))
	}
	config := put("application/vnd.oci.image.config.v1+json", encode(map[string]any{
		"created": created, "architecture": "amd64", "os": "linux",
		"config": map[string]any{"Cmd": []string{"/bin/hello"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}))
	manifest := put("application/vnd.oci.image.manifest.v1+json", encode(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": descs,
	}))
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "example.org/hello:1"}
	files := []file{
		{"oci-layout", 0o644, []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{"index.json", 0o644, encode(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}})},
		{"blobs/", 0o755, nil}, {"blobs/sha256/", 0o755, nil},
	}
	for _, sum := range order {
		files = append(files, file{"blobs/sha256/" + sum, 0o644, blobs[sum]})
	}
	return os.WriteFile(out, archive(files), 0o644)
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // maps and strings only
	}
	return b
}

func archive(files []file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: created, Typeflag: tar.TypeReg}
		if f.name[len(f.name)-1] == '/' {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		w.Write(f.content)
	}
	w.Close()
	return b.Bytes()
}

func compress(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// program is a static x86-64 ELF executable that writes text to standard output and exits.
func program(text string) []byte {
	const base, headers = 0x400000, 64 + 56
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, write
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0xbe, 0, 0, 0, 0, // mov esi, text
		0xba, 0, 0, 0, 0, // mov edx, length
		0x0f, 0x05, // syscall
		0xb8, 60, 0, 0, 0, // mov eax, exit
		0x31, 0xff, // xor edi, edi
		0x0f, 0x05, // syscall
	}
	binary.LittleEndian.PutUint32(code[11:], uint32(base+headers+len(code)))
	binary.LittleEndian.PutUint32(code[16:], uint32(len(text)))
	size := uint64(headers + len(code) + len(text))
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000),
	} {
		binary.Write(&b, binary.LittleEndian, v)
	}
	b.Write(code)
	b.WriteString(text)
	return b.Bytes()
}
