package ext4

import (
	"fmt"
	"io"
	"sort"
	"sync/atomic"
)

// extent maps n blocks of a file from block log on to the device blocks from phys on.
type extent struct {
	phys      int64
	log       uint32
	n         uint32
	unwritten bool // reads as zeros
}

func (e extent) end() int64 { return int64(e.log) + int64(e.n) }

func (e extent) check(f *FS, ino uint32) error {
	if f.w != nil && e.phys >= f.blocks { // counted, not placed
		return nil
	}
	if e.phys <= f.first || e.phys > f.blocks-int64(e.n) {
		return corrupt("inode %d: extent of file block %d is at block %d of %d", ino, e.log, e.phys, f.blocks)
	}
	return nil
}

// extNode is a checked node of an extent tree.
type extNode struct {
	b     []byte
	n     int
	depth int
}

// parseExtNode checks the node b, whose entries must lie in the file blocks lo to hi. depth is what its header
// must say, or -1 for a root.
func (f *FS) parseExtNode(ino uint32, b []byte, depth int, lo, hi int64) (extNode, error) {
	n := extNode{b, int(le.Uint16(b[ehEntries:])), int(le.Uint16(b[ehDepth:]))}
	room := int(le.Uint16(b[ehMax:]))
	switch {
	case le.Uint16(b[ehMagic:]) != extMagic:
		return n, corrupt("inode %d: extent node has magic %#x", ino, le.Uint16(b[ehMagic:]))
	case room > (len(b)-extHeader)/extEntry || n.n > room:
		return n, corrupt("inode %d: extent node has %d entries of %d in %d bytes", ino, n.n, room, len(b))
	case depth < 0 && n.depth > extMaxDepth || depth >= 0 && n.depth != depth:
		return n, corrupt("inode %d: extent node has depth %d", ino, n.depth)
	case n.n == 0 && (depth >= 0 || n.depth > 0):
		// An empty node could be named by any number of parents: without it, the work is bounded by the device.
		return n, corrupt("inode %d: extent node is empty", ino)
	}
	at := lo
	for i := range n.n {
		e := n.entry(i)
		start := int64(le.Uint32(e))
		end := start + 1
		if n.depth == 0 {
			x := leafExtent(e)
			if x.n == 0 {
				return n, corrupt("inode %d: empty extent at file block %d", ino, start)
			}
			if err := x.check(f, ino); err != nil {
				return n, err
			}
			end = x.end()
		}
		if start < at || end > hi {
			return n, corrupt("inode %d: extent of file blocks %d to %d is out of order", ino, start, end-1)
		}
		at = end
	}
	return n, nil
}

func (n extNode) entry(i int) []byte { return n.b[extHeader+i*extEntry : extHeader+(i+1)*extEntry] }

func leafExtent(e []byte) extent {
	x := extent{
		log:  le.Uint32(e[eeBlock:]),
		n:    uint32(le.Uint16(e[eeLen:])),
		phys: int64(le.Uint32(e[eeStartLo:])) | int64(le.Uint16(e[eeStartHi:]))<<32,
	}
	if x.n > extMaxLen {
		x.n -= extMaxLen
		x.unwritten = true
	}
	return x
}

func (n extNode) child(i int) (log, block int64) {
	e := n.entry(i)
	return int64(le.Uint32(e[eiBlock:])), int64(le.Uint32(e[eiLeafLo:])) | int64(le.Uint16(e[eiLeafHi:]))<<32
}

// extBlock reads the extent node in a block of its own.
func (f *FS) extBlock(ino, gen uint32, block int64, buf []byte, depth int, lo, hi int64) (extNode, error) {
	if err := f.readBlock(block, buf); err != nil {
		return extNode{}, fmt.Errorf("inode %d: extent node: %w", ino, err)
	}
	n, err := f.parseExtNode(ino, buf, depth, lo, hi)
	if err != nil {
		return n, err
	}
	if tail := extHeader + extEntry*int(le.Uint16(buf[ehMax:])); f.metaCsum {
		if tail+4 > len(buf) || crc32c(f.inodeSeed(ino, gen), buf[:tail]) != le.Uint32(buf[tail:]) {
			return n, corrupt("inode %d: extent node in block %d has a wrong checksum", ino, block)
		}
	}
	return n, nil
}

// walkMap calls data for every extent of an inode that has a block map, in file order, and meta for every block
// that holds a part of the map.
func (f *FS) walkMap(ino uint32, raw []byte, data func(extent) error, meta func(block int64) error) error {
	if inodeFlags(raw)&flagExtents == 0 {
		return f.walkIndirect(ino, raw, data, meta)
	}
	root, err := f.parseExtNode(ino, raw[inBlock:inBlock+inBlockLen], -1, 0, 1<<32)
	if err != nil {
		return err
	}
	gen := le.Uint32(raw[inGeneration:])
	var walk func(n extNode, hi int64) error
	walk = func(n extNode, hi int64) error {
		if n.depth == 0 {
			for i := range n.n {
				if err := data(leafExtent(n.entry(i))); err != nil {
					return err
				}
			}
			return nil
		}
		buf := make([]byte, f.bs)
		for i := range n.n {
			lo, block := n.child(i)
			end := hi
			if i+1 < n.n {
				end, _ = n.child(i + 1)
			}
			c, err := f.extBlock(ino, gen, block, buf, n.depth-1, lo, end)
			if err != nil {
				return err
			}
			if err := meta(block); err != nil {
				return err
			}
			if err := walk(c, end); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(root, 1<<32)
}

// walkIndirect is walkMap for the block pointers of ext2 and ext3.
func (f *FS) walkIndirect(ino uint32, raw []byte, data func(extent) error, meta func(block int64) error) error {
	budget := f.blocks // a map that names more blocks than exist repeats itself
	var cur extent
	add := func(log int64, p uint32) error {
		if p == 0 {
			return nil
		}
		if log >= 1<<32-1 {
			return corrupt("inode %d: indirect map reaches past file block %d", ino, log)
		}
		if budget--; budget < 0 {
			return corrupt("inode %d: its map names more blocks than there are", ino)
		}
		x := extent{phys: int64(p), log: uint32(log), n: 1}
		if err := x.check(f, ino); err != nil {
			return err
		}
		if cur.n > 0 && cur.end() == log && cur.phys+int64(cur.n) == x.phys {
			cur.n++
			return nil
		}
		if cur.n > 0 {
			if err := data(cur); err != nil {
				return err
			}
		}
		cur = x
		return nil
	}
	var walk func(block uint32, level int, log int64) error
	walk = func(block uint32, level int, log int64) error {
		if budget--; budget < 0 {
			return corrupt("inode %d: its map names more blocks than there are", ino)
		}
		buf := make([]byte, f.bs)
		if err := f.readBlock(int64(block), buf); err != nil {
			return fmt.Errorf("inode %d: indirect map: %w", ino, err)
		}
		if err := meta(int64(block)); err != nil {
			return err
		}
		span := f.indirectSpan(level - 1)
		for i := range f.bs / 4 {
			p := le.Uint32(buf[4*i:])
			if p == 0 {
				continue
			}
			var err error
			if level == 1 {
				err = add(log+i, p)
			} else {
				err = walk(p, level-1, log+i*span)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	log := int64(0)
	for i := range int64(directBlocks + 3) {
		p := le.Uint32(raw[inBlock+4*i:])
		level := max(0, int(i)-directBlocks+1)
		var err error
		if level == 0 {
			err = add(log, p)
		} else if p != 0 {
			err = walk(p, level, log)
		}
		if err != nil {
			return err
		}
		log += f.indirectSpan(level)
	}
	if cur.n > 0 {
		return data(cur)
	}
	return nil
}

// indirectSpan is the number of file blocks below a pointer of the given level (0: a data block).
func (f *FS) indirectSpan(level int) int64 {
	n := int64(1)
	for range level {
		n *= f.bs / 4
	}
	return n
}

// blockMap reads a file's content. It keeps the last leaf of the map that was used, so that memory is bounded
// however fragmented the file is.
type blockMap struct {
	f    *FS
	ino  uint32
	gen  uint32
	root [inBlockLen]byte
	ext  bool
	size int64
	leaf atomic.Pointer[mapLeaf]
}

// mapLeaf says everything about the file blocks lo to hi: what no extent covers is a hole.
type mapLeaf struct {
	lo, hi int64
	ext    []extent
}

func newBlockMap(f *FS, ino uint32, raw []byte) *blockMap {
	m := &blockMap{f: f, ino: ino, gen: le.Uint32(raw[inGeneration:]), ext: inodeFlags(raw)&flagExtents != 0, size: inodeSize(raw)}
	copy(m.root[:], raw[inBlock:])
	return m
}

// find returns where file block log is and for how many blocks that holds; phys is 0 in a hole.
func (m *blockMap) find(log int64) (phys, n int64, err error) {
	l := m.leaf.Load()
	if l == nil || log < l.lo || log >= l.hi {
		if m.ext {
			l, err = m.loadExtents(log)
		} else {
			l, err = m.loadIndirect(log)
		}
		if err != nil {
			return 0, 0, err
		}
		m.leaf.Store(l)
	}
	i := sort.Search(len(l.ext), func(i int) bool { return l.ext[i].end() > log })
	if i == len(l.ext) {
		return 0, l.hi - log, nil
	}
	e := l.ext[i]
	if int64(e.log) > log {
		return 0, int64(e.log) - log, nil
	}
	if e.unwritten {
		return 0, e.end() - log, nil
	}
	return e.phys + log - int64(e.log), e.end() - log, nil
}

func (m *blockMap) loadExtents(log int64) (*mapLeaf, error) {
	lo, hi := int64(0), int64(1<<32)
	if log >= hi {
		return &mapLeaf{lo: hi, hi: 1 << 62}, nil
	}
	n, err := m.f.parseExtNode(m.ino, m.root[:], -1, lo, hi)
	if err != nil {
		return nil, err
	}
	for n.depth > 0 {
		i := sort.Search(n.n, func(i int) bool { l, _ := n.child(i); return l > log })
		if i < n.n {
			hi, _ = n.child(i)
		}
		if i == 0 {
			return &mapLeaf{lo: lo, hi: hi}, nil
		}
		var block int64
		lo, block = n.child(i - 1)
		if n, err = m.f.extBlock(m.ino, m.gen, block, make([]byte, m.f.bs), n.depth-1, lo, hi); err != nil {
			return nil, err
		}
	}
	l := &mapLeaf{lo: lo, hi: hi, ext: make([]extent, n.n)}
	for i := range l.ext {
		l.ext[i] = leafExtent(n.entry(i))
	}
	return l, nil
}

func (m *blockMap) loadIndirect(log int64) (*mapLeaf, error) {
	lo := int64(0)
	if log < directBlocks {
		return m.pointers(m.root[:4*directBlocks], 0)
	}
	lo = directBlocks
	level := 1
	for ; level <= 3; level++ {
		if span := m.f.indirectSpan(level); log < lo+span {
			break
		} else {
			lo += span
		}
	}
	if level > 3 {
		return &mapLeaf{lo: lo, hi: 1 << 62}, nil
	}
	p := le.Uint32(m.root[4*(directBlocks+level-1):])
	buf := make([]byte, m.f.bs)
	for {
		span := m.f.indirectSpan(level)
		if p == 0 {
			return &mapLeaf{lo: lo, hi: lo + span}, nil
		}
		if err := m.f.readBlock(int64(p), buf); err != nil {
			return nil, fmt.Errorf("inode %d: indirect map: %w", m.ino, err)
		}
		if level == 1 {
			return m.pointers(buf, lo)
		}
		level--
		below := m.f.indirectSpan(level)
		i := (log - lo) / below
		p = le.Uint32(buf[4*i:])
		lo += i * below
	}
}

// pointers turns an array of block pointers into a leaf that begins at file block lo.
func (m *blockMap) pointers(b []byte, lo int64) (*mapLeaf, error) {
	l := &mapLeaf{lo: lo, hi: lo + int64(len(b)/4)}
	for i := range len(b) / 4 {
		p := int64(le.Uint32(b[4*i:]))
		log := lo + int64(i)
		if p == 0 || log >= 1<<32-1 {
			continue
		}
		if k := len(l.ext) - 1; k >= 0 && l.ext[k].end() == log && l.ext[k].phys+int64(l.ext[k].n) == p {
			l.ext[k].n++
		} else {
			l.ext = append(l.ext, extent{phys: p, log: uint32(log), n: 1})
		}
		if err := l.ext[len(l.ext)-1].check(m.f, m.ino); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// ReadAt reads the file's content, zeros where it has holes.
func (m *blockMap) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading inode %d at byte %d", m.ino, off)
	}
	done := 0
	for done < len(p) && off < m.size {
		phys, n, err := m.find(off / m.f.bs)
		if err != nil {
			return done, err
		}
		in := off % m.f.bs
		want := min(int64(len(p)-done), m.size-off)
		if n < (in+want+m.f.bs-1)/m.f.bs {
			want = n*m.f.bs - in
		}
		b := p[done : done+int(want)]
		if phys == 0 {
			clear(b)
		} else if err := m.f.readRange(phys*m.f.bs+in, b); err != nil {
			return done, fmt.Errorf("reading inode %d at byte %d: %w", m.ino, off, err)
		}
		done += int(want)
		off += want
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

func (f *FS) readRange(off int64, b []byte) error {
	if f.w != nil && (f.w.count || off >= f.blocks*f.bs) {
		// Content of a link's block, which a counting writer keeps; a file's content does not get here.
		if ok, err := f.w.dev.shadowBlock(off/f.bs, b); ok || err != nil {
			return err
		}
	}
	if _, err := f.dev.ReadAt(b, off); err != nil {
		return noEOF(err)
	}
	return nil
}
