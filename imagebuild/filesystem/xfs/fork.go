package xfs

import (
	"cmp"
	"slices"
)

// defaultForkOff is where the kernel starts an attribute fork, in 8-byte units: behind room for an extent tree root
// of twelve records.
const (
	defaultForkOff = (4 + 12*16) / 8
	minForkOff     = (4 + 3*16 + 7) / 8 // room for an extent tree root of three records
)

func shortAttrsSize(attrs []attr) (size int, ok bool) {
	size = 4
	for _, a := range attrs {
		if len(a.value) > 255 {
			return 0, false
		}
		size += 3 + len(a.name) + len(a.value)
	}
	return size, len(attrs) <= 255
}

// layout divides an inode's literal area between need bytes of data fork and the attributes, as the kernel would:
// attributes stay inline where they fit beside the least data fork, and a data fork gives way to them.
func (w *Writer) layout(in *inode, need int, attrs []attr) {
	in.forkoff, in.aformat, in.anextents = 0, fmtExtents, 0
	if len(attrs) == 0 {
		return
	}
	lit := w.sb.inodeSize - diCoreSize
	size, short := shortAttrsSize(attrs)
	switch {
	case in.format == fmtDev:
		in.forkoff = 1
		short = short && size <= lit-8
	case short && size <= lit-defaultForkOff*8 && need <= defaultForkOff*8:
		in.forkoff = defaultForkOff
	case short && size <= lit-minForkOff*8:
		in.forkoff = byte((lit - size) / 8)
	default:
		short = false
		in.forkoff = defaultForkOff
		if need > defaultForkOff*8 && need <= lit-48 {
			in.forkoff = byte((need + 7) / 8)
		}
	}
	if short {
		in.aformat = fmtLocal
	}
}

// setExtents stores a fork's extents: in the inode where they fit, else as a B+tree under a root there. The extents'
// blocks are noted as the inode's.
func (w *Writer) setExtents(k fork, exts []extent) error {
	for _, e := range exts {
		k.in.nblocks += uint64(e.n)
	}
	w.ownFork(k, exts)
	return w.placeExtents(k, exts)
}

// placeExtents writes down extents whose blocks are the inode's already.
func (w *Writer) placeExtents(k fork, exts []extent) error {
	lit := k.bytes()
	format := byte(fmtExtents)
	if len(exts) <= len(lit)/16 {
		for i, e := range exts {
			e.encode(lit[16*i:])
		}
	} else {
		format = fmtBtree
		if err := w.writeBmbt(k, exts, lit); err != nil {
			return err
		}
	}
	if k.attr {
		k.in.aformat, k.in.anextents = format, uint32(len(exts))
		if k.in.flags2&flag2Nrext64 == 0 && len(exts) > 1<<15-1 {
			return unsupported("inode %d: %d attribute extents", k.in.ino, len(exts))
		}
		return nil
	}
	k.in.format, k.in.nextents = format, uint64(len(exts))
	if k.in.flags2&flag2Nrext64 == 0 && len(exts) > 1<<31-1 {
		return unsupported("inode %d: %d extents", k.in.ino, len(exts))
	}
	return nil
}

func (w *Writer) bmbtShape(n, room int) shape {
	return bmbtLayout.shapeOf(n, w.sb.blockSize, 0, (room-4)/16)
}

func (w *Writer) writeBmbt(k fork, exts []extent, lit []byte) error {
	s := w.bmbtShape(len(exts), len(lit))
	runs, err := w.alloc(nil, 0, uint64(s.total()))
	if err != nil {
		return err
	}
	flags := uint64(rmapBmbt)
	if k.attr {
		flags |= rmapAttr
	}
	var blocks []uint64
	for _, r := range runs {
		w.own(r.start, r.n, k.in.ino, flags)
		for i := uint64(0); i < uint64(r.n); i++ {
			blocks = append(blocks, r.start+i)
		}
	}
	k.in.nblocks += uint64(len(blocks))
	t := &bulk{fs: w.FS, kind: bmbtLayout, owner: k.in.ino, blocks: blocks, write: w.writeMeta}
	keys, ptrs, err := t.build(s, len(exts), func(i int, b []byte) { exts[i].encode(b) })
	if err != nil {
		return err
	}
	max := (len(lit) - 4) / 16
	be.PutUint16(lit, uint16(len(s)))
	be.PutUint16(lit[2:], uint16(len(ptrs)))
	copy(lit[4:], keys)
	for i, p := range ptrs {
		be.PutUint64(lit[4+8*max+8*i:], p)
	}
	return nil
}

func (w *Writer) writeSymlink(in *inode, target string) error {
	per := w.sb.blockSize - rmHdr
	n := uint64((len(target) + per - 1) / per)
	if err := w.prefer(n); err != nil {
		return err
	}
	exts, err := w.alloc(nil, 0, n)
	if err != nil {
		return err
	}
	done := 0
	for _, e := range exts { // one header for each extent, not for each block
		buf := make([]byte, int(e.n)<<w.sb.blockLog)
		m := min(len(target)-done, len(buf)-rmHdr)
		copy(buf[rmHdr:], target[done:done+m])
		w.remoteHeader(buf, symlinkMagic, done, m, in.ino, e.start, 0)
		done += m
		if err := w.writeMeta(e.start, buf); err != nil {
			return err
		}
	}
	return w.setExtents(fork{in: in}, exts)
}

func (w *Writer) remoteHeader(b []byte, magic uint32, off, n int, owner, fsb, lsn uint64) {
	be.PutUint32(b, magic)
	be.PutUint32(b[rmOffset:], uint32(off))
	be.PutUint32(b[rmBytes:], uint32(n))
	copy(b[rmUUID:], w.sb.metaUUID[:])
	be.PutUint64(b[rmOwner:], owner)
	be.PutUint64(b[rmBlkno:], w.sb.daddr(fsb))
	be.PutUint64(b[rmLSN:], lsn)
	setCRC(b, rmCRC)
}

func (w *Writer) daHeader(b []byte, magic uint16, forw, back uint32, owner, fsb uint64, count, level int) {
	be.PutUint32(b[daForw:], forw)
	be.PutUint32(b[daBack:], back)
	be.PutUint16(b[daMagic:], magic)
	be.PutUint64(b[daBlkno:], w.sb.daddr(fsb))
	copy(b[daUUID:], w.sb.metaUUID[:])
	be.PutUint64(b[daOwner:], owner)
	be.PutUint16(b[daCount:], uint16(count))
	be.PutUint16(b[daLevel:], uint16(level))
}

// daNodes plans the node levels above n leaves: how many nodes each level has, lowest first; none for one leaf.
func daNodes(n, blockSize int) []int {
	var out []int
	for c := (blockSize - daHdr) / 8; n > 1; {
		n = (n + c - 1) / c
		out = append(out, n)
	}
	return out
}

// writeDaNodes writes the levels above leaves. In a count of blocks, the root is block 0, leaves are blocks 1 to
// len(hashes), further nodes follow; num turns that count into the number that pointers carry. hashes are the greatest
// hash of each leaf; put writes a block after filling in its header.
func (w *Writer) writeDaNodes(hashes []uint32, size int, owner uint64, num func(blk uint32) uint32, put func(blk uint64, b []byte, fill func(fsb uint64)) error) error {
	levels := daNodes(len(hashes), size)
	below, belowBlk := hashes, uint32(1)
	next := uint32(1 + len(hashes))
	for l, nodes := range levels {
		first := next
		if l == len(levels)-1 {
			first = 0
		}
		next += uint32(nodes)
		var up []uint32
		i := 0
		for j := 0; j < nodes; j++ {
			m := len(below)/nodes + btoi(j < len(below)%nodes)
			b := make([]byte, size)
			for x := 0; x < m; x++ {
				be.PutUint32(b[daHdr+8*x:], below[i+x])
				be.PutUint32(b[daHdr+8*x+4:], num(belowBlk+uint32(i+x)))
			}
			i += m
			up = append(up, below[i-1])
			forw, back := siblings(j, nodes, first, num)
			err := put(uint64(first)+uint64(j), b, func(fsb uint64) {
				w.daHeader(b, daNodeMagic, forw, back, owner, fsb, m, l+1)
				setCRC(b, daCRC)
			})
			if err != nil {
				return err
			}
		}
		below, belowBlk = up, first
	}
	return nil
}

// siblings are the numbers of the blocks behind and before block j of n that start at first; 0 where there is none.
func siblings(j, n int, first uint32, num func(uint32) uint32) (forw, back uint32) {
	if j < n-1 {
		forw = num(first + uint32(j) + 1)
	}
	if j > 0 {
		back = num(first + uint32(j) - 1)
	}
	return forw, back
}

func same(n uint32) uint32 { return n }

// attrPlan says how attributes are laid out in blocks: those in hash order, cut into leaves; values too long for a
// leaf in blocks of their own behind leaves and nodes.
type attrPlan struct {
	attrs  []attr
	hashes []uint32
	leaves []int // end of each leaf in attrs
	nodes  []int
	remote []uint32 // first block of attrs[i]'s value; 0: in the leaf
	blocks uint64
}

func (w *Writer) attrLocalSize(a attr) int { return (3 + len(a.name) + len(a.value) + 3) &^ 3 }

// The two bytes more come from padding in the first definition of the structure, and stayed.
func (w *Writer) attrRemoteSize(a attr) int { return (9 + 2 + len(a.name) + 3) &^ 3 }

// attrHash orders attributes in leaves. Parent pointers of one name are told apart by the folder.
func (fs *FS) attrHash(a attr) uint32 {
	if a.flags&attrParent == 0 || len(a.value) < 8 {
		return hashName(a.name)
	}
	p := be.Uint64([]byte(a.value))
	return dirHash(a.name, fs.sb.versionnum&vbitBorg != 0) ^ uint32(p>>32) ^ uint32(p)
}

// rewrite gives an existing file, which is no folder, another set of attributes. Its data fork may have to make room.
func (w *Writer) rewrite(in *inode, attrs []attr) error {
	data := fork{in: in}
	var tree []uint64
	exts, err := w.extents(data, &tree)
	if err != nil {
		return err
	}
	if in.forkoff != 0 {
		if err := w.freeFork(fork{in, true}); err != nil {
			return err
		}
	}
	for _, b := range tree {
		if err := w.release(b, 1, in.ino, rmapBmbt); err != nil {
			return err
		}
	}
	old := in.dataFork()
	in.lit = make([]byte, w.sb.inodeSize-diCoreSize)
	in.nblocks = 0
	for _, e := range exts {
		in.nblocks += uint64(e.n)
	}
	switch in.format {
	case fmtLocal:
		target := string(old[:in.size])
		w.layout(in, len(target), attrs)
		if len(target) > len(in.dataFork()) {
			err = w.writeSymlink(in, target)
		} else {
			copy(in.dataFork(), target)
		}
	case fmtDev:
		w.layout(in, 8, attrs)
		copy(in.dataFork(), old[:4])
	default:
		w.layout(in, 16*len(exts), attrs)
		err = w.placeExtents(data, exts)
	}
	if err != nil {
		return err
	}
	return w.writeAttrs(in, attrs)
}

func (w *Writer) planAttrs(attrs []attr) *attrPlan {
	p := &attrPlan{attrs: slices.Clone(attrs)}
	slices.SortStableFunc(p.attrs, func(a, b attr) int { return cmp.Compare(w.attrHash(a), w.attrHash(b)) })
	bs := w.sb.blockSize
	room := bs - alHdr
	for i, a := range p.attrs {
		p.hashes = append(p.hashes, w.attrHash(a))
		size := w.attrLocalSize(a)
		remote := uint32(0)
		if size >= bs/2+bs/4 {
			size, remote = w.attrRemoteSize(a), 1
		}
		p.remote = append(p.remote, remote)
		if size += 8; size > room {
			p.leaves = append(p.leaves, i)
			room = bs - alHdr
		}
		room -= size
	}
	p.leaves = append(p.leaves, len(p.attrs))
	p.nodes = daNodes(len(p.leaves), bs)
	p.blocks = uint64(len(p.leaves))
	for _, n := range p.nodes {
		p.blocks += uint64(n)
	}
	per := bs - rmHdr
	for i, a := range p.attrs {
		if p.remote[i] != 0 {
			p.remote[i] = uint32(p.blocks)
			p.blocks += uint64((len(a.value) + per - 1) / per)
		}
	}
	return p
}

// writeAttrs fills an inode's attribute fork, whose place and form layout has chosen.
func (w *Writer) writeAttrs(in *inode, attrs []attr) error {
	if len(attrs) == 0 {
		return nil
	}
	w.newAttr = true
	if in.aformat == fmtLocal {
		b := in.attrFork()
		at := 4
		for _, a := range attrs {
			b[at], b[at+1], b[at+2] = byte(len(a.name)), byte(len(a.value)), a.flags
			at += 3
			at += copy(b[at:], a.name)
			at += copy(b[at:], a.value)
		}
		be.PutUint16(b, uint16(at))
		b[2] = byte(len(attrs))
		return nil
	}
	p := w.planAttrs(attrs)
	if err := w.prefer(p.blocks); err != nil {
		return err
	}
	exts, err := w.alloc(nil, 0, p.blocks)
	if err != nil {
		return err
	}
	put := func(blk uint64, b []byte, fill func(fsb uint64)) error {
		fsb, _ := lookupBlock(exts, blk)
		fill(fsb)
		return w.writeMeta(fsb, b)
	}
	bs := w.sb.blockSize
	first := uint32(btoi(len(p.leaves) > 1))
	var tops []uint32
	from := 0
	for l, to := range p.leaves {
		b := make([]byte, bs)
		used := bs
		for i := from; i < to; i++ {
			a := p.attrs[i]
			e := b[alHdr+8*(i-from):]
			flags := a.flags
			if p.remote[i] == 0 {
				flags |= attrLocal
				used -= w.attrLocalSize(a)
				be.PutUint16(b[used:], uint16(len(a.value)))
				b[used+2] = byte(len(a.name))
				copy(b[used+3:], a.name)
				copy(b[used+3+len(a.name):], a.value)
			} else {
				used -= w.attrRemoteSize(a)
				be.PutUint32(b[used:], p.remote[i])
				be.PutUint32(b[used+4:], uint32(len(a.value)))
				b[used+8] = byte(len(a.name))
				copy(b[used+9:], a.name)
			}
			be.PutUint32(e, p.hashes[i])
			be.PutUint16(e[4:], uint16(used))
			e[6] = flags
		}
		base := alHdr + 8*(to-from)
		be.PutUint16(b[alFirstUsed:], uint16(used))
		be.PutUint16(b[alFreeMap:], uint16(base))
		be.PutUint16(b[alFreeMap+2:], uint16(used-base))
		forw, back := siblings(l, len(p.leaves), first, same)
		n := to - from
		err := put(uint64(first)+uint64(l), b, func(fsb uint64) {
			w.daHeader(b, attrLeaf, forw, back, in.ino, fsb, n, bs-used)
			setCRC(b, daCRC)
		})
		if err != nil {
			return err
		}
		tops = append(tops, p.hashes[to-1])
		from = to
	}
	if err := w.writeDaNodes(tops, bs, in.ino, same, put); err != nil {
		return err
	}
	for i, a := range p.attrs {
		if p.remote[i] == 0 {
			continue
		}
		blk := uint64(p.remote[i])
		for off := 0; off < len(a.value); {
			b := make([]byte, bs)
			n := copy(b[rmHdr:], a.value[off:])
			// The kernel does not log these blocks, and marks them with an LSN that says so.
			err := put(blk, b, func(fsb uint64) { w.remoteHeader(b, attrRmtMagic, off, n, in.ino, fsb, nullLSN) })
			if err != nil {
				return err
			}
			off += n
			blk++
		}
	}
	return w.setExtents(fork{in, true}, exts)
}
