package xfs

import (
	"cmp"
	"context"
	"errors"
	"math/bits"
	"slices"
)

// Free places left in each leaf of the trees that commit builds.
const treeSlack = 2

// Commit lays out the folders that changed, builds the trees of every group that was touched anew, and writes counters
// and checksums. It can be called once; after it the Writer is done. With too little space, and always when
// Options.CountOnly is set, nothing is made reachable: the error is nil if all would have fitted, else a *NoSpaceError.
// After any other error the device holds a broken filesystem.
func (w *Writer) Commit(ctx context.Context) error {
	if w.state != nil {
		return w.state
	}
	if err := w.commitFolders(ctx); err != nil {
		w.broken(err)
		return err
	}
	w.state = errors.New("the Writer is committed already")
	if w.overflow {
		return &NoSpaceError{w.Space()}
	}
	return w.writeAll(ctx)
}

// writeAll writes inodes, groups and superblocks.
func (w *Writer) writeAll(ctx context.Context) error {
	if err := w.flushInodes(); err != nil {
		return err
	}
	changed := w.grown
	for _, g := range w.groups {
		if g == nil || !g.touched {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		changed = true
		if err := w.buildGroup(g); err != nil {
			return err
		}
		// Of a finished group only the headers are needed.
		*g = group{no: g.no, agf: g.agf, agi: g.agi}
	}
	if !changed || w.counting {
		return nil
	}
	w.sumUp()
	if w.grown {
		if err := w.writeCopies(ctx); err != nil {
			return err
		}
	}
	if err := w.dev.write(w.sb.raw, 0); err != nil {
		return wrap(err, "writing the superblock")
	}
	return w.dev.flush()
}

func (w *Writer) commitFolders(ctx context.Context) error {
	var dirty []*folder
	for _, d := range w.folders {
		if d.dirty {
			dirty = append(dirty, d)
		}
	}
	slices.SortFunc(dirty, func(a, b *folder) int { return cmp.Compare(a.ino, b.ino) })
	// All space of the old forms becomes free before the first new one takes some.
	for _, d := range dirty {
		in, err := w.inode(d.ino)
		if err != nil {
			return err
		}
		if !d.attrsSet {
			if d.attrs, err = w.readAttrs(in); err != nil {
				return err
			}
			d.attrsSet = true
		}
		if err := w.freeFork(fork{in: in}); err != nil {
			return err
		}
		if in.forkoff != 0 {
			if err := w.freeFork(fork{in, true}); err != nil {
				return err
			}
		}
	}
	for _, d := range dirty {
		if err := ctx.Err(); err != nil {
			return err
		}
		in, err := w.inode(d.ino)
		if err != nil {
			return err
		}
		w.modern(in)
		if !d.explicit {
			in.mtime = in.stamp(w.o.Now)
			in.ctime = in.mtime
			in.changeCount++
		}
		if err := w.writeFolder(d, in, d.attrs); err != nil {
			return wrap(err, "writing folder inode %d", d.ino)
		}
		if ag, _ := w.sb.inoAG(d.ino); int(ag) < len(w.groups) && d.ino < phantomInoBase {
			w.group(ag).touched = true
		}
		d.dirty = false
		delete(w.folders, d.ino)
	}
	return nil
}

// groupPlan places the trees of one group.
type groupPlan struct {
	free                            []span // what stays free, by block
	rmaps                           []rmapRec
	bno, cnt, ino, fino, rmap, refc shape
	agfl                            int
	pieces                          []span
}

func (p *groupPlan) total() int {
	return p.bno.total() + p.cnt.total() + p.ino.total() + p.fino.total() + p.rmap.total() + p.refc.total() + p.agfl
}

// owners of the blocks, in the order in which they are cut off the pieces.
func (p *groupPlan) owners() []span {
	return []span{
		{0, uint32(p.bno.total() + p.cnt.total() + p.rmap.total() + p.agfl)},
		{1, uint32(p.ino.total() + p.fino.total())},
		{2, uint32(p.refc.total())},
	}
}

var planOwners = []uint64{ownAG, ownInobt, ownRefc}

// treeRmaps are the reverse map records of the trees' own blocks.
func (p *groupPlan) treeRmaps() []rmapRec {
	var out []rmapRec
	pieces := slices.Clone(p.pieces)
	for _, o := range p.owners() {
		for left := o.n; left > 0; {
			s := &pieces[0]
			n := min(left, s.n)
			out = append(out, rmapRec{start: s.start, n: n, owner: planOwners[o.start]})
			s.start += n
			s.n -= n
			left -= n
			if s.n == 0 {
				pieces = pieces[1:]
			}
		}
	}
	return out
}

// pick chooses n blocks: the shortest span that holds them all, or else the longest spans there are.
func pick(free []span, n uint32) (pieces, rest []span, ok bool) {
	best := -1
	for i, s := range free {
		if s.n >= n && (best < 0 || s.n < free[best].n) {
			best = i
		}
	}
	take := map[int]uint32{}
	if best >= 0 {
		take[best] = n
	} else {
		order := make([]int, len(free))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(free[b].n, free[a].n) })
		for _, i := range order {
			if n == 0 {
				break
			}
			take[i] = min(n, free[i].n)
			n -= take[i]
		}
		if n > 0 {
			return nil, nil, false
		}
	}
	for i, s := range free {
		t := take[i]
		if t > 0 {
			pieces = append(pieces, span{s.start, t})
		}
		if t < s.n {
			rest = append(rest, span{s.start + t, s.n - t})
		}
	}
	return pieces, rest, true
}

func (w *Writer) planGroup(g *group) (*groupPlan, error) {
	if err := w.load(g); err != nil {
		return nil, err
	}
	if err := w.loadRefc(g); err != nil {
		return nil, err
	}
	sb := w.sb
	var rmaps []rmapRec
	if sb.ro&roRmapbt != 0 {
		recs, err := w.loadRmaps(g, func(b uint32) { g.oldTrees = append(g.oldTrees, span{b, 1}) })
		if err != nil {
			return nil, err
		}
		if rmaps, err = g.applyRmaps(recs); err != nil {
			return nil, err
		}
	}
	for _, s := range g.oldTrees {
		g.giveBack(s)
	}
	g.oldTrees = nil
	g.reclaim()
	if g.overlap {
		return nil, corrupt("group %d: blocks are free and in use at once", g.no)
	}
	p := &groupPlan{}
	bs := sb.blockSize
	p.ino = inoKind.shapeOf(len(g.chunks), bs, treeSlack, 0)
	if sb.ro&roFinobt != 0 {
		p.fino = finoKind.shapeOf(len(g.chunksWithFree()), bs, treeSlack, 0)
	}
	if sb.ro&roReflink != 0 {
		g.refc = mergedRefc(g.refc)
		p.refc = refcKind.shapeOf(len(g.refc), bs, treeSlack, 0)
	}
	size := func(nfree, nrmap int) {
		p.bno = bnoKind.shapeOf(nfree, bs, treeSlack, 0)
		p.cnt = cntKind.shapeOf(nfree, bs, treeSlack, 0)
		if sb.ro&roRmapbt != 0 {
			p.rmap = rmapKind.shapeOf(nrmap, bs, treeSlack, 0)
		}
		p.agfl = min(w.minFreeList(len(p.bno), len(p.cnt), len(p.rmap)), w.agflSize())
	}
	size(len(g.free), len(rmaps)+3)
	// Taking blocks changes how many records the trees need, and so how many blocks. What is taken only grows, and
	// the few blocks too many go to the free list.
	for taken := p.total(); ; {
		var ok bool
		if p.pieces, p.free, ok = pick(g.free, uint32(taken)); !ok {
			return nil, w.treesMissing(g, taken)
		}
		size(len(p.free), len(rmaps)+len(p.pieces)+2)
		need := p.total()
		if spare := taken - need; spare >= 0 && p.agfl+spare <= w.agflSize() {
			p.agfl += spare
			break
		}
		taken = max(taken+1, need)
	}
	if sb.ro&roRmapbt != 0 {
		p.rmaps = append(rmaps, p.treeRmaps()...)
		slices.SortFunc(p.rmaps, cmpRmap)
	}
	return p, nil
}

// treesMissing reports a group that has no room for its own trees, which the budget is there to prevent.
func (w *Writer) treesMissing(g *group, need int) error {
	s := w.Space()
	for _, f := range g.free {
		need -= int(f.n)
	}
	s.NeedBlocks = max(s.NeedBlocks, s.FreeBlocks+int64(need))
	return &NoSpaceError{s}
}

// chunksWithFree are the inode chunks that the free inode tree lists.
func (g *group) chunksWithFree() []chunkRec {
	var out []chunkRec
	for _, c := range g.chunks {
		if c.free&^c.holeBits() != 0 {
			out = append(out, c)
		}
	}
	return out
}

// buildGroup plans the trees of a group and, unless blocks are only counted, writes them and the group's headers.
func (w *Writer) buildGroup(g *group) error {
	p, err := w.planGroup(g)
	if err != nil || w.counting {
		return err
	}
	sb := w.sb
	var blocks []uint64
	for _, s := range p.pieces {
		for i := uint32(0); i < s.n; i++ {
			blocks = append(blocks, sb.fsb(g.no, s.start+i))
		}
	}
	build := func(k *btKind, s shape, n int, record func(i int, b []byte)) (root uint32, err error) {
		t := &bulk{fs: w.FS, kind: k, owner: uint64(g.no), blocks: blocks[:s.total()], write: w.writeMeta}
		blocks = blocks[s.total():]
		_, ptrs, err := t.build(s, n, record)
		if err != nil {
			return 0, wrap(err, "writing %s of group %d", k.name, g.no)
		}
		_, root = sb.split(ptrs[0])
		return root, nil
	}
	putSpan := func(s span, b []byte) {
		be.PutUint32(b, s.start)
		be.PutUint32(b[4:], s.n)
	}
	var freeBlks, longest uint32
	for _, s := range p.free {
		freeBlks += s.n
		longest = max(longest, s.n)
	}
	agf, agi := g.agf, g.agi
	root, err := build(bnoKind, p.bno, len(p.free), func(i int, b []byte) { putSpan(p.free[i], b) })
	if err != nil {
		return err
	}
	be.PutUint32(agf[agfBnoRoot:], root)
	be.PutUint32(agf[agfBnoLevel:], uint32(len(p.bno)))
	bySize := slices.Clone(p.free)
	slices.SortStableFunc(bySize, func(a, b span) int { return cmp.Compare(a.n, b.n) })
	if root, err = build(cntKind, p.cnt, len(bySize), func(i int, b []byte) { putSpan(bySize[i], b) }); err != nil {
		return err
	}
	be.PutUint32(agf[agfCntRoot:], root)
	be.PutUint32(agf[agfCntLevel:], uint32(len(p.cnt)))
	btree := p.bno.total() - 1 + p.cnt.total() - 1
	if sb.ro&roRmapbt != 0 {
		root, err = build(rmapKind, p.rmap, len(p.rmaps), func(i int, b []byte) { putRmap(p.rmaps[i], b) })
		if err != nil {
			return err
		}
		be.PutUint32(agf[agfRmapRoot:], root)
		be.PutUint32(agf[agfRmapLevel:], uint32(len(p.rmap)))
		be.PutUint32(agf[agfRmapBlks:], uint32(p.rmap.total()))
		btree += p.rmap.total() - 1
	}
	if err := w.writeFreeList(g, blocks[:p.agfl]); err != nil {
		return err
	}
	blocks = blocks[p.agfl:]
	be.PutUint32(agf[agfFlFirst:], 0)
	be.PutUint32(agf[agfFlLast:], uint32(p.agfl-1))
	be.PutUint32(agf[agfFlCount:], uint32(p.agfl))
	be.PutUint32(agf[agfFreeBlks:], freeBlks)
	be.PutUint32(agf[agfLongest:], longest)
	be.PutUint32(agf[agfBtreeBlks:], uint32(btree))

	putChunk := func(c chunkRec, b []byte) {
		hole := c.holeBits()
		nfree := bits.OnesCount64(c.free &^ hole)
		be.PutUint32(b, c.start)
		if sb.inc&incSpinodes != 0 {
			be.PutUint16(b[4:], c.holes)
			b[6], b[7] = byte(inodesPerRec-bits.OnesCount64(hole)), byte(nfree)
		} else {
			be.PutUint32(b[4:], uint32(nfree))
		}
		be.PutUint64(b[8:], c.free)
	}
	var count, nfree int
	for _, c := range g.chunks {
		hole := c.holeBits()
		count += inodesPerRec - bits.OnesCount64(hole)
		nfree += bits.OnesCount64(c.free &^ hole)
	}
	if root, err = build(inoKind, p.ino, len(g.chunks), func(i int, b []byte) { putChunk(g.chunks[i], b) }); err != nil {
		return err
	}
	be.PutUint32(agi[agiRoot:], root)
	be.PutUint32(agi[agiLevel:], uint32(len(p.ino)))
	be.PutUint32(agi[agiCount:], uint32(count))
	be.PutUint32(agi[agiFreeCount:], uint32(nfree))
	if g.lastNew != nullAgino {
		be.PutUint32(agi[agiNewIno:], g.lastNew)
	}
	if sb.ro&roFinobt != 0 {
		part := g.chunksWithFree()
		if root, err = build(finoKind, p.fino, len(part), func(i int, b []byte) { putChunk(part[i], b) }); err != nil {
			return err
		}
		be.PutUint32(agi[agiFreeRoot:], root)
		be.PutUint32(agi[agiFreeLevel:], uint32(len(p.fino)))
	}
	if sb.ro&roInobtCnt != 0 {
		be.PutUint32(agi[agiIBlocks:], uint32(p.ino.total()))
		be.PutUint32(agi[agiFBlocks:], uint32(p.fino.total()))
	}
	if sb.ro&roReflink != 0 {
		root, err = build(refcKind, p.refc, len(g.refc), func(i int, b []byte) {
			be.PutUint32(b, g.refc[i].start)
			be.PutUint32(b[4:], g.refc[i].n)
			be.PutUint32(b[8:], g.refc[i].count)
		})
		if err != nil {
			return err
		}
		be.PutUint32(agf[agfRefcRoot:], root)
		be.PutUint32(agf[agfRefcLevel:], uint32(len(p.refc)))
		be.PutUint32(agf[agfRefcBlks:], uint32(p.refc.total()))
	}
	b := make([]byte, 2*sb.sectSize)
	putHeaders(b[:sb.sectSize], b[sb.sectSize:], agf, agi)
	return wrapHeader(w.dev.write(b, sb.agOff(g.no, 0)+int64(sb.sectSize)), g.no)
}

func putRmap(r rmapRec, b []byte) {
	be.PutUint32(b, r.start)
	be.PutUint32(b[4:], r.n)
	be.PutUint64(b[8:], r.owner)
	be.PutUint64(b[16:], r.offset)
}

// putHeaders fills the two sectors of a group's headers.
func putHeaders(agfSector, agiSector, agf, agi []byte) {
	copy(agfSector, agf)
	copy(agiSector, agi)
	setCRC(agfSector, agfCRC)
	setCRC(agiSector, agiCRC)
}

func wrapHeader(err error, ag uint32) error {
	if err != nil {
		return wrap(err, "writing the headers of group %d", ag)
	}
	return nil
}

func (w *Writer) writeFreeList(g *group, blocks []uint64) error {
	b := make([]byte, w.sb.sectSize)
	w.putFreeList(b, g.no, blocks)
	return wrapHeader(w.dev.write(b, w.sb.agOff(g.no, 0)+3*int64(w.sb.sectSize)), g.no)
}

func (w *Writer) putFreeList(b []byte, ag uint32, blocks []uint64) {
	be.PutUint32(b, agflMagic)
	be.PutUint32(b[agflSeqno:], ag)
	copy(b[agflUUID:], w.sb.metaUUID[:])
	for i := 0; i < w.agflSize(); i++ {
		n := uint32(nullAgBlock)
		if i < len(blocks) {
			_, n = w.sb.split(blocks[i])
		}
		be.PutUint32(b[agflBno+4*i:], n)
	}
	setCRC(b, agflCRC)
}

// sumUp brings the superblock up to date, and asks for a new quota count at the next mount.
func (w *Writer) sumUp() {
	raw := w.sb.raw
	var icount, ifree, fdblocks uint64
	for i, g := range w.groups {
		if g == nil {
			fdblocks += uint64(w.freshFree(uint32(i)))
			continue
		}
		icount += uint64(be.Uint32(g.agi[agiCount:]))
		ifree += uint64(be.Uint32(g.agi[agiFreeCount:]))
		fdblocks += uint64(be.Uint32(g.agf[agfFreeBlks:])) + uint64(be.Uint32(g.agf[agfFlCount:])) + uint64(be.Uint32(g.agf[agfBtreeBlks:]))
	}
	be.PutUint64(raw[sbDblocks:], w.sb.dblocks)
	be.PutUint32(raw[sbAgCount:], w.sb.agCount)
	be.PutUint64(raw[sbIcount:], icount)
	be.PutUint64(raw[sbIfree:], ifree)
	be.PutUint64(raw[sbFdblocks:], fdblocks)
	if w.edited {
		be.PutUint16(raw[sbQflags:], be.Uint16(raw[sbQflags:])&^quotaChecked)
	}
	if w.newAttr {
		be.PutUint16(raw[sbVersion:], be.Uint16(raw[sbVersion:])|vbitAttr)
		be.PutUint32(raw[sbFeatures2:], be.Uint32(raw[sbFeatures2:])|feat2Attr2)
		be.PutUint32(raw[sbBadFeat2:], be.Uint32(raw[sbFeatures2:]))
	}
	setCRC(raw, sbCRC)
}
