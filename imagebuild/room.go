package imagebuild

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nodebake/nodebake/imagebuild/disk"
	"github.com/nodebake/nodebake/imagebuild/filesystem"
	"github.com/nodebake/nodebake/imagebuild/osroot"
)

// Size is how large a disk is to be. The zero value lets it grow as far as the images need.
type Size struct {
	// Bytes is the size, or with Plus what is added to the base's.
	Bytes int64
	Plus  bool
}

// String is the size as ParseSize takes it.
func (s Size) String() string {
	switch {
	case s.auto():
		return "auto"
	case s.Plus:
		return fmt.Sprintf("+%d", s.Bytes)
	}
	return fmt.Sprint(s.Bytes)
}

// ParseSize reads a size as --size takes it: "auto", a size (see disk.ParseBytes), or a size behind a plus sign.
// Errors match ErrUsage.
func ParseSize(s string) (Size, error) {
	if s == "" || s == "auto" {
		return Size{}, nil
	}
	more, plus := strings.CutPrefix(s, "+")
	n, err := disk.ParseBytes(more)
	if err == nil && n == 0 && !plus {
		err = errors.New("a disk of 0 bytes holds nothing")
	}
	if err != nil {
		return Size{}, fmt.Errorf("%w: %w; or auto, or +SIZE to add to the base's", ErrUsage, err)
	}
	return Size{n, plus}, nil
}

// auto says that the disk grows only if needed.
func (s Size) auto() bool { return s == Size{} }

// of is the new disk's size for a base of that size, in whole sectors.
func (s Size) of(base, sector int64) (int64, error) {
	n := s.Bytes
	if s.Plus {
		n += base
	}
	if s.auto() {
		return base, nil
	}
	if n > maxDisk || n < 0 {
		return 0, fmt.Errorf("%w: --size makes a disk of more than %s", ErrUsage, disk.Bytes(maxDisk))
	}
	if n < base {
		return 0, fmt.Errorf("%w: --size %s is less than the base's %s; a disk is never made smaller", ErrUsage, disk.Bytes(n), disk.Bytes(base))
	}
	if rest := (n - base) % sector; rest != 0 {
		n += sector - rest
	}
	return n, nil
}

// maxDisk bounds what --size can ask for.
const maxDisk = 1 << 50

// room is the disk being made as one bake sees it: it opens filesystems that grow where that is needed.
type room struct {
	layout *disk.Layout
	auto   bool
	o      filesystem.Options
	opened map[string]*openedVolume
	// full says why there was no more room when a filesystem asked for it.
	full error
}

type openedVolume struct {
	*disk.Volume
	filesystem.Resizable
	at     string
	before int64
}

// reopen opens what was written, for reading.
func (v *openedVolume) reopen() (filesystem.Reader, error) {
	r, _, err := filesystem.Open(v.Volume, v.Volume.Size(), v.Partition().Kind)
	if err != nil {
		return nil, fmt.Errorf("opening what was written: %w", err)
	}
	return r, nil
}

// newRoom prepares dev, a copy of the base: a disk whose size was given gets it at once, and the store's volume what
// that adds.
func (b *bake) newRoom(dev disk.Device, o filesystem.Options) (*room, error) {
	size, err := b.Size.of(b.base.Disk.Size(), int64(b.base.Disk.SectorSize))
	if err != nil {
		return nil, err
	}
	layout := disk.NewLayout(b.base.Disk, dev, !b.Size.auto())
	if err := layout.SetSize(size); err != nil {
		return nil, err
	}
	return &room{layout: layout, auto: b.Size.auto(), o: o, opened: map[string]*openedVolume{}}, nil
}

// open opens a volume for changes. With fill it takes the room that the disk has.
func (r *room) open(v osroot.Volume, fill bool) (filesystem.Writer, error) {
	return r.openVolume(v.At, r.layout.Volume(v.Partition), fill)
}

func (r *room) openVolume(at string, vol *disk.Volume, fill bool) (filesystem.Writer, error) {
	o := r.o
	o.Grow = func(need int64) (int64, error) {
		size, err := vol.Grow(need)
		if errors.Is(err, disk.ErrNoRoom) {
			r.full = err
			return 0, nil
		}
		return size, err
	}
	before := vol.Size()
	w, err := filesystem.OpenWriter(vol, before, vol.Partition().Kind, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", vol.Partition(), err)
	}
	if fill {
		if err := vol.Fill(); err != nil {
			return nil, err
		}
		if err := w.Grow(vol.Size()); err != nil {
			return nil, fmt.Errorf("growing %s: %w", vol.Partition(), err)
		}
	}
	r.opened[at] = &openedVolume{vol, w, at, before}
	return w, nil
}

// spare is the part of a filesystem that had to grow that is left free, as a divisor: a tenth.
const spare = 10

// leaveSpare gives a filesystem that had to grow some more, where what was written since left too little.
func (r *room) leaveSpare() error {
	for _, v := range r.opened {
		if !r.auto || v.Volume.Size() == v.before {
			continue
		}
		s, size := v.Space(), v.Resizable.Size()
		free := s.FreeBytes() - s.NeedBytes()
		if free >= size/spare {
			continue
		}
		size, err := v.Volume.Grow(size - free + (size-free)/(spare-1))
		if errors.Is(err, disk.ErrNoRoom) {
			continue
		}
		if err == nil {
			err = v.Resizable.Grow(size)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// scratch is a disk for a dry run: it reads as the base does, may become larger, and keeps what is written to it in
// memory.
type scratch struct {
	base  *disk.Disk
	size  int64
	pages map[int64]*[scratchPage]byte
}

const scratchPage = 4096

func newScratch(base *disk.Disk) *scratch {
	return &scratch{base, base.Size(), map[int64]*[scratchPage]byte{}}
}

// Size implements disk.Device.
func (s *scratch) Size() int64 { return s.size }

// Grow implements disk.Device.
func (s *scratch) Grow(size int64) error {
	s.size = max(s.size, size)
	return nil
}

// ReadAt implements io.ReaderAt.
func (s *scratch) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(s.size-off, 0)))
	b := p[:n]
	if have := max(min(int64(n), s.base.Size()-off), 0); have > 0 {
		if _, err := io.ReadFull(io.NewSectionReader(s.base, off, have), b[:have]); err != nil {
			return 0, err
		}
		clear(b[have:])
	} else {
		clear(b)
	}
	for at := off / scratchPage * scratchPage; len(s.pages) > 0 && at < off+int64(n); at += scratchPage {
		if page := s.pages[at]; page != nil {
			copy(b[max(at-off, 0):], page[max(off-at, 0):])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt.
func (s *scratch) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("writing %d bytes at %d: past the end of the disk (%d bytes)", len(p), off, s.size)
	}
	n := len(p)
	for len(p) > 0 {
		at := off / scratchPage * scratchPage
		page := s.pages[at]
		if page == nil {
			page = new([scratchPage]byte)
			if _, err := s.ReadAt(page[:], at); err != nil && !errors.Is(err, io.EOF) {
				return 0, err
			}
			s.pages[at] = page
		}
		m := copy(page[off-at:], p)
		p, off = p[m:], off+int64(m)
	}
	return n, nil
}
