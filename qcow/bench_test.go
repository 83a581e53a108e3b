package qcow

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/flate"
)

func BenchmarkInflate(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, kind := range []string{"text", "mixed"} {
		var data []byte
		if kind == "text" {
			words := bytes.Fields([]byte("the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were we when your can said there use an each which she do how their if will up other about out many then them these so some her would make like him into time has look two more write go see number no way could people my than first water been call who oil its now find long down day did get come made may part"))
			for len(data) < 65536 {
				data = append(append(data, words[rng.IntN(len(words))]...), ' ')
			}
			data = data[:65536]
		} else {
			data = contents(rng, 65536)
		}
		var z bytes.Buffer
		w, _ := flate.NewWriter(&z, 6)
		w.Write(data)
		w.Close()
		dst := make([]byte, len(data))
		b.Run(kind+"/ours", func(b *testing.B) {
			b.SetBytes(65536)
			for b.Loop() {
				if err := inflate(dst, z.Bytes()); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(kind+"/klauspost", func(b *testing.B) {
			b.SetBytes(65536)
			r := flate.NewReader(nil)
			for b.Loop() {
				r.(flate.Resetter).Reset(bytes.NewReader(z.Bytes()), nil)
				if _, err := io.ReadFull(r, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
