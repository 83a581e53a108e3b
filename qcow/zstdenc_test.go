package qcow

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestZstdForeign has the zstd tool and the library decode what every level makes of clusters of every size.
func TestZstdForeign(t *testing.T) {
	needTool(t, "zstd")
	rng := seeded(t, 1)
	var frames, want bytes.Buffer
	add := func(p []byte, level int) []byte {
		z := zstdCompress(nil, p, level)
		got := make([]byte, len(p))
		if err := unzstd(got, z); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("level %d, %d bytes: %v", level, len(p), err)
		}
		frames.Write(z)
		want.Write(p)
		return z
	}
	for level := 1; level <= 22; level++ {
		for size := 512; size <= 1<<18; size <<= 1 {
			add(contents(rng, size), level)
		}
	}
	for _, level := range []int{1, 3, 9} {
		add(contents(rng, 2<<20), level)
		for size := range 40 {
			add(contents(rng, size), level)
			add(bytes.Repeat([]byte{7}, size), level)
		}
		fixed := rand.New(rand.NewPCG(1, 1))
		noise := func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(fixed.Uint32())
			}
			return b
		}
		few := func() []byte {
			b := noise(3 * zstdSegment)
			for i := range b {
				b[i] %= 6
			}
			return b
		}
		// One symbol; literals alone; a plain block, which has matches, between others: the decoder does not learn their distances.
		add(make([]byte, 65536), level)
		add(noise(65536), level)
		odd := noise(40000)
		for i := 300; i < 500; i += 100 {
			copy(odd[i:i+5], odd[i-200:])
		}
		z := add(append(append(few(), odd...), few()...), level)
		if level == 9 && blockTypes(z)[0] == 0 {
			t.Errorf("level %d: no plain block in %v", level, blockTypes(z))
		}
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "frames.zst"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, frames.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "zstd", "-q", "-d", "-o", out, in)
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if at := firstDiff(got, want.Bytes()); at >= 0 {
		t.Fatalf("the zstd tool's output differs at %#x of %#x", at, want.Len())
	}
}

// blockTypes counts the blocks of a frame of ours by their type.
func blockTypes(z []byte) (n [4]int) {
	p := 5 + map[byte]int{0x20: 1, 0x60: 2, 0xa0: 4}[z[4]]
	for last := false; !last; {
		h := int(z[p]) | int(z[p+1])<<8 | int(z[p+2])<<16
		last = h&1 != 0
		n[h>>1&3]++
		p += 3 + h>>3
	}
	return n
}

// TestZstdLevels demands that a higher level packs better.
func TestZstdLevels(t *testing.T) {
	data, err := os.ReadFile("zstdenc.go")
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, level := range []int{1, 3, 5, 9, 22} {
		sizes = append(sizes, len(zstdCompress(nil, data, level)))
	}
	for i := range sizes[1:] {
		if sizes[i+1] > sizes[i] {
			t.Errorf("sizes %v", sizes)
		}
	}
	if sizes[0] > len(data)/2 {
		t.Errorf("%d bytes of %d", sizes[0], len(data))
	}
	// What an encoder did before has no influence.
	e := &zstdEnc{base: 1<<31 - 100000}
	for i, p := range [][]byte{data, make([]byte, 70000), data, data} {
		e.level = zstdLevels[i%2*9+3]
		if !bytes.Equal(e.frame(nil, p), zstdCompress(nil, p, i%2*9+3)) {
			t.Error(fmt.Sprint("use ", i, " of an encoder differs"))
		}
	}
}
