package xfs

import (
	"cmp"
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
	"sort"
)

// span is a run of blocks in one allocation group.
type span struct{ start, n uint32 }

func (s span) end() uint32 { return s.start + s.n }

// chunkRec is an inode chunk of 64 inodes: which are free, and which do not exist (sparse chunks; one bit of
// holes stands for four inodes).
type chunkRec struct {
	start uint32 // first inode, relative to the group
	holes uint16
	free  uint64 // bits of holes are set
}

func (c *chunkRec) holeBits() uint64 {
	var m uint64
	for i := 0; i < 16; i++ {
		if c.holes>>i&1 != 0 {
			m |= 0xf << (4 * i)
		}
	}
	return m
}

type rmapRec struct {
	start, n uint32
	owner    uint64
	offset   uint64 // with rmapAttr, rmapBmbt and rmapUnwritten
}

type refcRec struct {
	start uint32 // with refcCow
	n     uint32
	count uint32
}

// group is an allocation group that is being written. Headers are read when the filesystem is opened, the
// trees when the group is first used.
type group struct {
	no, length uint32
	agf, agi   []byte // without the rest of their sectors, which is zero

	// As on disk at open:
	openLen                      uint32
	freeBlks, flCount, btreeBlks uint32
	icount, ifree                uint32

	avail int64 // blocks that may still be taken: what the kernel needs back is not in it

	fresh           bool // made by growth: nothing of it is on the disk yet
	loaded, touched bool
	overlap         bool // something was given back that was free already: the disk contradicts itself

	// Free space: spans sorted by start; order walks them longest first. Spans taken have n 0. What is given
	// back waits in freed until the spans run out.
	free   []span
	order  []int32
	next   int
	freed  []span
	active span // data goes here
	izone  span // inode chunks go here

	// No room was found for a whole or sparse inode chunk, and nothing was freed since.
	noChunk, noSparse bool

	chunks    []chunkRec // sorted
	withFree  []uint32   // starts of chunks that may have free inodes
	inobtOld  int        // blocks of the inode tree on disk
	inobtPaid int        // blocks by which the tree grew, as charged so far

	refc       []refcRec
	refcLoaded bool

	rmapAdd, rmapDel []rmapRec

	oldTrees []span // blocks of trees and AGFL to be built anew
	lastNew  uint32 // newest chunk, for agi_newino
}

// readGroup reads a group's headers. buf is of two sectors, for reuse.
func (fs *FS) readGroup(no uint32, buf []byte) (*group, error) {
	sb := fs.sb
	g := &group{no: no, length: sb.agLen(no), lastNew: nullAgino}
	g.openLen = g.length
	base := sb.agOff(no, 0)
	ss := int64(sb.sectSize)
	if int64(g.length)<<sb.blockLog < 4*ss {
		return nil, corrupt("group %d has %d blocks", no, g.length)
	}
	if err := fs.readAt(buf, base+ss); err != nil {
		return nil, wrap(err, "reading the headers of group %d", no)
	}
	agf, agi := buf[:ss], buf[ss:]
	le := binary.LittleEndian
	type head struct {
		name                              string
		b                                 []byte
		magic                             uint32
		version, seqno, length, uuid, crc int
	}
	for _, h := range []head{
		{"AGF", agf, agfMagic, agfVersion, agfSeqno, agfLength, agfUUID, agfCRC},
		{"AGI", agi, agiMagic, agiVersion, agiSeqno, agiLength, agiUUID, agiCRC},
	} {
		switch {
		case be.Uint32(h.b) != h.magic || be.Uint32(h.b[h.version:]) != 1:
			return nil, corrupt("group %d: %s magic %#x version %d", no, h.name, be.Uint32(h.b), be.Uint32(h.b[h.version:]))
		case be.Uint32(h.b[h.seqno:]) != no || be.Uint32(h.b[h.length:]) != g.length:
			return nil, corrupt("group %d: %s of group %d with %d blocks (expected %d)", no, h.name, be.Uint32(h.b[h.seqno:]), be.Uint32(h.b[h.length:]), g.length)
		case string(h.b[h.uuid:h.uuid+16]) != string(sb.metaUUID[:]):
			return nil, corrupt("group %d: %s of another filesystem (uuid)", no, h.name)
		}
		if !fs.noCRC && le.Uint32(h.b[h.crc:]) != crcOf(h.b, h.crc) {
			return nil, corrupt("group %d: %s checksum %#08x, computed %#08x", no, h.name, le.Uint32(h.b[h.crc:]), crcOf(h.b, h.crc))
		}
	}
	// There can be many thousands of groups, so only what the headers use of their sectors is kept.
	keep := make([]byte, agfStructSize+agiStructSize)
	copy(keep, agf[:agfStructSize])
	copy(keep[agfStructSize:], agi)
	g.agf, g.agi = keep[:agfStructSize:agfStructSize], keep[agfStructSize:]
	for i := 0; i < 64; i++ {
		if be.Uint32(g.agi[agiUnlinked+4*i:]) != nullAgino {
			return nil, dirtyLog("files that were open at a crash wait to be freed")
		}
	}
	g.freeBlks, g.flCount, g.btreeBlks = be.Uint32(g.agf[agfFreeBlks:]), be.Uint32(g.agf[agfFlCount:]), be.Uint32(g.agf[agfBtreeBlks:])
	g.icount, g.ifree = be.Uint32(g.agi[agiCount:]), be.Uint32(g.agi[agiFreeCount:])
	if uint64(g.freeBlks)+uint64(g.flCount) > uint64(g.length) || g.btreeBlks > g.length || g.ifree > g.icount || uint64(g.icount) > uint64(g.length)<<sb.inopLog {
		return nil, corrupt("group %d: counts in its headers exceed its size", no)
	}
	return g, nil
}

// firstBlock is the first block of a group behind the four header sectors.
func (s *superblock) firstBlock() uint32 {
	return uint32((4*s.sectSize + s.blockSize - 1) / s.blockSize)
}

// load reads the free space, the inode chunks, and the blocks of the trees that commit builds anew.
func (w *Writer) load(g *group) error {
	if g.loaded {
		return nil
	}
	fs := w.FS
	first := fs.sb.firstBlock()
	var sum uint64
	var prevEnd uint32 = first
	old := func(b uint32) { g.oldTrees = append(g.oldTrees, span{b, 1}) }
	err := fs.scanTree(bnoKind, g.no, be.Uint32(g.agf[agfBnoRoot:]), int(be.Uint32(g.agf[agfBnoLevel:])), old, func(r []byte) error {
		s := span{be.Uint32(r), be.Uint32(r[4:])}
		if s.n == 0 || s.start < prevEnd || uint64(s.start)+uint64(s.n) > uint64(g.length) {
			return corrupt("group %d: free space of %d blocks at %d", g.no, s.n, s.start)
		}
		prevEnd = s.end()
		sum += uint64(s.n)
		g.free = append(g.free, s)
		return nil
	})
	if err != nil {
		return err
	}
	if sum != uint64(g.freeBlks) {
		return corrupt("group %d: %d blocks in the free space tree, %d in the header", g.no, sum, g.freeBlks)
	}
	n := 0
	err = fs.scanTree(cntKind, g.no, be.Uint32(g.agf[agfCntRoot:]), int(be.Uint32(g.agf[agfCntLevel:])), old, func([]byte) error { n++; return nil })
	if err != nil {
		return err
	}
	if n != len(g.free) {
		return corrupt("group %d: %d free extents by length, %d by block", g.no, n, len(g.free))
	}
	if err := w.loadFreeList(g); err != nil {
		return err
	}
	if err := w.loadChunks(g, old); err != nil {
		return err
	}
	g.sortFree()
	g.loaded = true
	return nil
}

func (w *Writer) loadFreeList(g *group) error {
	sb := w.sb
	buf := make([]byte, sb.sectSize)
	if err := w.readAt(buf, sb.agOff(g.no, 0)+3*int64(sb.sectSize)); err != nil {
		return wrap(err, "reading the free list of group %d", g.no)
	}
	if be.Uint32(buf) != agflMagic || be.Uint32(buf[agflSeqno:]) != g.no {
		return corrupt("group %d: AGFL magic %#x", g.no, be.Uint32(buf))
	}
	if err := w.checkMeta(buf, agflCRC, agflUUID, sb.fsb(g.no, 0)); err != nil {
		return err
	}
	size := w.agflSize()
	first, last := int(be.Uint32(g.agf[agfFlFirst:])), int(be.Uint32(g.agf[agfFlLast:]))
	if first < 0 || first >= size || last < 0 || last >= size || int(g.flCount) > size || g.flCount > 0 && (last-first+size)%size+1 != int(g.flCount) {
		return corrupt("group %d: free list from %d to %d with %d blocks", g.no, first, last, g.flCount)
	}
	for i := 0; i < int(g.flCount); i++ {
		b := be.Uint32(buf[agflBno+4*((first+i)%size):])
		if b < sb.firstBlock() || b >= g.length {
			return corrupt("group %d: block %d in the free list", g.no, b)
		}
		g.oldTrees = append(g.oldTrees, span{b, 1})
	}
	return nil
}

func (w *Writer) agflSize() int { return (w.sb.sectSize - agflBno) / 4 }

func (w *Writer) loadChunks(g *group, old func(uint32)) error {
	sb := w.sb
	sparse := sb.inc&incSpinodes != 0
	var count, free uint64
	next := uint64(0)
	maxIno := uint64(g.length) << sb.inopLog
	oldIno := func(b uint32) { old(b); g.inobtOld++ }
	err := w.scanTree(inoKind, g.no, be.Uint32(g.agi[agiRoot:]), int(be.Uint32(g.agi[agiLevel:])), oldIno, func(r []byte) error {
		c := chunkRec{start: be.Uint32(r), free: be.Uint64(r[8:])}
		have, nfree := uint64(inodesPerRec), uint64(be.Uint32(r[4:]))
		if sparse {
			c.holes = be.Uint16(r[4:])
			have, nfree = uint64(r[6]), uint64(r[7])
		}
		hole := c.holeBits()
		if uint64(c.start) < next || c.start>>sb.inopLog < sb.firstBlock() || c.start%min(inodesPerRec, uint32(1)<<sb.inopLog) != 0 || uint64(c.start)+uint64(bits.Len64(^hole)) > maxIno {
			return corrupt("group %d: inode chunk at %d", g.no, c.start)
		}
		if have != uint64(inodesPerRec-bits.OnesCount64(hole)) || nfree != uint64(bits.OnesCount64(c.free&^hole)) || c.free&hole != hole {
			return corrupt("group %d: inode chunk at %d: its counts contradict its bits", g.no, c.start)
		}
		next = uint64(c.start) + inodesPerRec
		count += have
		free += nfree
		if nfree > 0 {
			g.withFree = append(g.withFree, c.start)
		}
		g.chunks = append(g.chunks, c)
		return nil
	})
	if err != nil {
		return err
	}
	if count != uint64(g.icount) || free != uint64(g.ifree) {
		return corrupt("group %d: %d inodes, %d free in the inode tree; %d, %d in the header", g.no, count, free, g.icount, g.ifree)
	}
	if sb.ro&roFinobt != 0 {
		n := 0
		err := w.scanTree(finoKind, g.no, be.Uint32(g.agi[agiFreeRoot:]), int(be.Uint32(g.agi[agiFreeLevel:])), old, func([]byte) error { n++; return nil })
		if err != nil {
			return err
		}
		if n != len(g.withFree) {
			return corrupt("group %d: %d chunks in the free inode tree, %d expected", g.no, n, len(g.withFree))
		}
	}
	return nil
}

// loadRefc reads the shared blocks of a group; needed when file blocks are given back, and at commit.
func (w *Writer) loadRefc(g *group) error {
	if g.refcLoaded || w.sb.ro&roReflink == 0 {
		return nil
	}
	old := func(b uint32) { g.oldTrees = append(g.oldTrees, span{b, 1}) }
	var prev uint64
	err := w.scanTree(refcKind, g.no, be.Uint32(g.agf[agfRefcRoot:]), int(be.Uint32(g.agf[agfRefcLevel:])), old, func(r []byte) error {
		c := refcRec{be.Uint32(r), be.Uint32(r[4:]), be.Uint32(r[8:])}
		b := uint64(c.start &^ refcCow)
		if c.n == 0 || c.count == 0 || uint64(c.start) < prev || b < uint64(w.sb.firstBlock()) || b+uint64(c.n) > uint64(g.length) {
			return corrupt("group %d: %d shared blocks at %d", g.no, c.n, c.start)
		}
		prev = uint64(c.start) + uint64(c.n)
		g.refc = append(g.refc, c)
		return nil
	})
	g.refcLoaded = err == nil
	return err
}

func (w *Writer) loadRmaps(g *group, old func(uint32)) ([]rmapRec, error) {
	if g.fresh {
		old(be.Uint32(g.agf[agfRmapRoot:]))
		return []rmapRec{{start: 0, n: w.sb.firstBlock(), owner: ownFS}}, nil
	}
	var out []rmapRec
	var prev rmapRec
	err := w.scanTree(rmapKind, g.no, be.Uint32(g.agf[agfRmapRoot:]), int(be.Uint32(g.agf[agfRmapLevel:])), old, func(b []byte) error {
		r := rmapRec{be.Uint32(b), be.Uint32(b[4:]), be.Uint64(b[8:]), be.Uint64(b[16:])}
		if r.n == 0 || uint64(r.start)+uint64(r.n) > uint64(g.length) || len(out) > 0 && cmpRmap(prev, r) > 0 {
			return corrupt("group %d: owner of %d blocks at %d", g.no, r.n, r.start)
		}
		prev = r
		switch r.owner {
		case ownAG, ownInobt, ownRefc:
			return nil // of the trees that are built anew
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

func cmpRmap(a, b rmapRec) int {
	if c := cmp.Compare(a.start, b.start); c != 0 {
		return c
	}
	if c := cmp.Compare(a.owner, b.owner); c != 0 {
		return c
	}
	return cmp.Compare(a.offset&rmapKeyMask, b.offset&rmapKeyMask)
}

// joinable says whether b continues a, so that one record covers both.
func joinable(a, b rmapRec) bool {
	if a.start+a.n != b.start || a.owner != b.owner || uint64(a.n)+uint64(b.n) > math.MaxUint32 {
		return false
	}
	if a.owner >= ownMin || a.offset&rmapBmbt != 0 {
		return a.offset == b.offset
	}
	return a.offset+uint64(a.n) == b.offset
}

// applyRmaps takes rmapDel from, and adds rmapAdd to, the owners read from the disk.
func (g *group) applyRmaps(recs []rmapRec) ([]rmapRec, error) {
	recs = append(recs, g.rmapAdd...)
	if len(g.rmapDel) > 0 {
		// Within one owner, fork and displacement each block is there once or not at all, so a sum of what
		// came and went, in any order, says which ranges remain.
		type key struct {
			owner, flags, delta uint64
		}
		keyOf := func(r rmapRec) key {
			k := key{owner: r.owner, flags: r.offset &^ rmapOffMask}
			if r.owner < ownMin && r.offset&rmapBmbt == 0 {
				k.delta = r.offset&rmapOffMask - uint64(r.start)
			}
			return k
		}
		type edge struct {
			at    uint32
			delta int
		}
		edges := map[key][]edge{}
		var order []key
		for _, r := range g.rmapDel {
			k := keyOf(r)
			if _, ok := edges[k]; !ok {
				order = append(order, k)
			}
			edges[k] = append(edges[k], edge{r.start, -1}, edge{r.start + r.n, 1})
		}
		kept := recs[:0]
		for _, r := range recs {
			k := keyOf(r)
			if e, ok := edges[k]; ok {
				edges[k] = append(e, edge{r.start, 1}, edge{r.start + r.n, -1})
			} else {
				kept = append(kept, r)
			}
		}
		recs = kept
		for _, k := range order {
			es := edges[k]
			slices.SortFunc(es, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
			depth := 0
			var from uint32
			for i := 0; i < len(es); {
				at, was := es[i].at, depth
				for ; i < len(es) && es[i].at == at; i++ {
					depth += es[i].delta
				}
				switch {
				case depth < 0 || depth > 1:
					return nil, corrupt("group %d: block %d: its owner %#x is not in the reverse map as it should", g.no, at, k.owner)
				case depth == 1 && was == 0:
					from = at
				case depth == 0 && was == 1:
					r := rmapRec{start: from, n: at - from, owner: k.owner, offset: k.flags}
					if k.owner < ownMin && k.flags&rmapBmbt == 0 {
						r.offset |= k.delta + uint64(from)
					}
					recs = append(recs, r)
				}
			}
		}
	}
	slices.SortFunc(recs, cmpRmap)
	out := recs[:0]
	for _, r := range recs {
		if n := len(out); n > 0 && joinable(out[n-1], r) {
			out[n-1].n += r.n
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

// sortFree coalesces everything free into free, and orders it by length.
func (g *group) sortFree() {
	all := g.free[:0]
	for _, s := range g.free {
		if s.n > 0 {
			all = append(all, s)
		}
	}
	all = append(all, g.freed...)
	g.freed = g.freed[:0]
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	out := all[:0]
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].end() >= s.start {
			g.overlap = g.overlap || out[n-1].end() > s.start
			out[n-1].n = max(out[n-1].end(), s.end()) - out[n-1].start
			continue
		}
		out = append(out, s)
	}
	g.free = out
	g.order = make([]int32, len(out))
	for i := range g.order {
		g.order[i] = int32(i)
	}
	slices.SortFunc(g.order, func(a, b int32) int {
		if c := cmp.Compare(out[b].n, out[a].n); c != 0 {
			return c
		}
		return cmp.Compare(a, b)
	})
	g.next = 0
}

// giveBack makes blocks free again.
func (g *group) giveBack(s span) {
	if s.n > 0 {
		g.freed = append(g.freed, s)
	}
}

// reclaim gathers all free space anew, the active region and the inode zone included.
func (g *group) reclaim() {
	g.giveBack(g.active)
	g.giveBack(g.izone)
	g.active, g.izone = span{}, span{}
	g.sortFree()
}

func (g *group) findChunk(start uint32) *chunkRec {
	i := sort.Search(len(g.chunks), func(i int) bool { return g.chunks[i].start >= start })
	if i < len(g.chunks) && g.chunks[i].start == start {
		return &g.chunks[i]
	}
	return nil
}

// chunkOf finds the chunk that agino is in. Chunks are 64 inodes long and need not be aligned to 64.
func (g *group) chunkOf(agino uint32) *chunkRec {
	i := sort.Search(len(g.chunks), func(i int) bool { return g.chunks[i].start > agino }) - 1
	if i < 0 || agino-g.chunks[i].start >= inodesPerRec {
		return nil
	}
	return &g.chunks[i]
}

func (g *group) insertChunk(c chunkRec) {
	i := sort.Search(len(g.chunks), func(i int) bool { return g.chunks[i].start >= c.start })
	g.chunks = slices.Insert(g.chunks, i, c)
}
