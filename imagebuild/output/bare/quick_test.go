package bare

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/nodebake/nodebake/qcow"
)

func TestQuick(t *testing.T) {
	name := os.Getenv("IN")
	f, err := os.Open(name)
	if err != nil {
		t.Skip(err)
	}
	src, _ := qcow.NewFileSource(f)
	for _, o := range []Options{{Kind: Plain}, {Kind: Zstd}, {Kind: Zstd, Level: 6}, {Kind: Gzip}, {Kind: XZ, Level: 1}, {Kind: XZ}, {Kind: XZ, Level: 9}} {
		out, _ := os.Create("/var/tmp/bare/out." + string(o.Kind))
		o.Workers = 1
		o.Bmap = true
		s := time.Now()
		r, err := Compress(context.Background(), out, src, o)
		if err != nil {
			t.Fatal(err)
		}
		out.Close()
		d := time.Since(s)
		t.Logf("%s %d: %d -> %d, %.1f MB/s %d ranges %d bytes", o.Kind, o.Level, src.Size(), r.Size, float64(src.Size())/1e6/d.Seconds(), len(r.Bmap.Ranges), len(r.Bmap.Bytes()))
	}
}
