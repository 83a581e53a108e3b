package storeseed

import (
	"hash/crc64"
	"math/rand/v2"
	"testing"

	tarsplit "github.com/vbatts/tar-split/tar/storage"
)

func TestCRC(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 5000)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	for n := 0; n <= 700; n++ {
		for _, sum := range []uint64{0, ^uint64(0), r.Uint64()} {
			if got, want := crcISO(sum, p[n%7:n%7+n]), crc64.Update(sum, tarsplit.CRCTable, p[n%7:n%7+n]); got != want {
				t.Fatalf("%d bytes from %#x: %#x, want %#x", n, sum, got, want)
			}
		}
	}
	// In pieces.
	sum := uint64(0)
	for rest := p; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(400))
		sum = crcISO(sum, rest[:n])
		rest = rest[n:]
	}
	if want := crc64.Checksum(p, tarsplit.CRCTable); sum != want {
		t.Errorf("%#x, want %#x", sum, want)
	}
}

func BenchmarkCRC(b *testing.B) {
	p := make([]byte, 256<<10)
	for name, f := range map[string]func(uint64, []byte) uint64{
		"ours":       crcISO,
		"hash-crc64": func(s uint64, p []byte) uint64 { return crc64.Update(s, tarsplit.CRCTable, p) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				f(0, p)
			}
		})
	}
}
