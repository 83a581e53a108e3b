package qcow

import (
	"bytes"
	"os"
	"testing"
)

func TestTmp(t *testing.T) {
	want, _ := os.ReadFile("/tmp/qc/a.raw")
	for _, n := range []string{"z", "zs", "p"} {
		f, _ := os.Open("/tmp/qc/" + n + ".qcow2")
		s, _ := NewFileSource(f)
		im, err := Open(s, Options{})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, im.Size())
		_, err = im.ReadAt(got, 0)
		t.Log(n, err, bytes.Equal(got, want))
		for e, err := range im.Extents(0, 1<<62) {
			t.Log(e, err)
		}
	}
}
