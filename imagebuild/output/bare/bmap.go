package bare

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"

	"github.com/nodebake/nodebake/qcow"
)

const (
	// MapBlock is the unit of block maps, in bytes.
	MapBlock = 4096
	// rangeStep is a length that no range of a block map crosses a multiple of, so that ranges are summed in parallel.
	rangeStep = 4 << 20
)

// Bmap is a block map, version 2.0 of bmap-tools' format: the blocks of a raw disk that hold more than zeros. A tool
// that copies only those must copy them onto zeros.
type Bmap struct {
	ImageSize int64   // bytes of the raw disk
	Ranges    []Range // ordered, and none touching a byte of another
}

// Range is a run of blocks of MapBlock bytes, from First to Last, of which the last may end early at the disk's end, with
// the sum of their bytes.
type Range struct {
	First, Last int64
	SHA256      [sha256.Size]byte
}

// mapUnit is how many bytes are looked at as one: where they are all zeros they are left out of the map. It bounds what a
// map takes, as at most half of the units can begin a range.
func mapUnit(size int64) int64 {
	unit := int64(64 << 10)
	for unit < rangeStep && size/unit > 1<<20 {
		unit *= 2
	}
	return unit
}

// mapRanges appends the ranges of data, which is at byte off of the disk, a multiple of rangeStep.
func mapRanges(to []Range, data []byte, off, unit int64) []Range {
	for at := int64(0); at < int64(len(data)); {
		n := min(unit, int64(len(data))-at)
		if qcow.IsZero(data[at : at+n]) {
			at += n
			continue
		}
		end := at + n
		for end < int64(len(data)) && end%rangeStep != 0 {
			n := min(unit, int64(len(data))-end)
			if qcow.IsZero(data[end : end+n]) {
				break
			}
			end += n
		}
		to = append(to, Range{(off + at) / MapBlock, (off + end - 1) / MapBlock, sha256.Sum256(data[at:end])})
		at = end
	}
	return to
}

// Mapped is how many blocks the map lists.
func (b *Bmap) Mapped() int64 {
	var n int64
	for _, r := range b.Ranges {
		n += r.Last - r.First + 1
	}
	return n
}

// WriteTo writes the map as XML.
func (b *Bmap) WriteTo(w io.Writer) (int64, error) {
	// The file's own sum is that of the file with zeros in its place.
	h := sha256.New()
	if err := b.write(h, strings.Repeat("0", 2*sha256.Size)); err != nil {
		return 0, err
	}
	c := &counter{w: w}
	err := b.write(c, fmt.Sprintf("%x", h.Sum(nil)))
	return c.n, err
}

func (b *Bmap) write(w io.Writer, sum string) error {
	o := bufio.NewWriterSize(w, 64<<10)
	fmt.Fprintf(o, `<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> %d </ImageSize>
    <BlockSize> %d </BlockSize>
    <BlocksCount> %d </BlocksCount>
    <MappedBlocksCount> %d </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> %s </BmapFileChecksum>
    <BlockMap>
`, b.ImageSize, MapBlock, (b.ImageSize+MapBlock-1)/MapBlock, b.Mapped(), sum)
	for i := range b.Ranges {
		r := &b.Ranges[i]
		if r.First == r.Last {
			fmt.Fprintf(o, "        <Range chksum=\"%x\"> %d </Range>\n", r.SHA256, r.First)
		} else {
			fmt.Fprintf(o, "        <Range chksum=\"%x\"> %d-%d </Range>\n", r.SHA256, r.First, r.Last)
		}
	}
	o.WriteString("    </BlockMap>\n</bmap>\n")
	return o.Flush()
}

// Bytes is the map as XML.
func (b *Bmap) Bytes() []byte {
	var o bytes.Buffer
	b.WriteTo(&o) // a buffer takes all
	return o.Bytes()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// BmapName is where the map of an output is looked for first: beside it, under its whole name with .bmap behind. With no
// such file bmaptool tries shorter names (node.raw.bmap and node.bmap for node.raw.zst), which another output's map may
// have.
func BmapName(output string) string { return output + ".bmap" }
