package xfs

// btKind describes one of the B+trees of an allocation group, or the extent tree of a fork.
type btKind struct {
	name  string
	magic uint32
	rec   int // bytes of a leaf record
	key   int // bytes of a key in a node
	ptr   int
	long  bool   // 8-byte pointers, in a fork
	owner uint64 // of the tree's blocks in the reverse map
	rmap  bool   // a node keeps a low and a high key for each pointer, since ranges may overlap
}

var (
	bnoKind    = &btKind{name: "bnobt", magic: bnobtMagic, rec: 8, key: 8, ptr: 4, owner: ownAG}
	cntKind    = &btKind{name: "cntbt", magic: cntbtMagic, rec: 8, key: 8, ptr: 4, owner: ownAG}
	inoKind    = &btKind{name: "inobt", magic: inobtMagic, rec: 16, key: 4, ptr: 4, owner: ownInobt}
	finoKind   = &btKind{name: "finobt", magic: finobtMagic, rec: 16, key: 4, ptr: 4, owner: ownInobt}
	refcKind   = &btKind{name: "refcountbt", magic: refcMagic, rec: 12, key: 4, ptr: 4, owner: ownRefc}
	rmapKind   = &btKind{name: "rmapbt", magic: rmapbtMagic, rec: 24, key: 40, ptr: 4, owner: ownAG, rmap: true}
	bmbtLayout = &btKind{name: "bmbt", magic: bmbtMagic, rec: 16, key: 8, ptr: 8, long: true}
)

func (k *btKind) hdr() int {
	if k.long {
		return btLgHdr
	}
	return btShHdr
}

// caps are the most records in a leaf and the most pointers in a node.
func (k *btKind) caps(blockSize int) (leaf, node int) {
	n := blockSize - k.hdr()
	return n / k.rec, n / (k.key + k.ptr)
}

// leafKey turns a leaf record into the key that a node holds for it.
func (k *btKind) leafKey(rec, key []byte) {
	switch {
	case k.rmap:
		copy(key[:20], rec[:4])
		copy(key[4:20], rec[8:24])
		key[12] &^= rmapUnwritten >> 56
		copy(key[20:], key[:20])
		n := be.Uint32(rec[4:]) - 1
		be.PutUint32(key[20:], be.Uint32(rec)+n)
		if o := be.Uint64(rec[16:]); be.Uint64(rec[8:]) < ownMin && o&rmapBmbt == 0 {
			be.PutUint64(key[32:], be.Uint64(key[32:])+uint64(n))
		}
	case k.long:
		be.PutUint64(key, be.Uint64(rec)>>9&(1<<54-1))
	default:
		copy(key, rec[:k.key])
	}
}

// widen makes key, that of a node's first child, cover the next child too.
func (k *btKind) widen(key, next []byte) {
	if !k.rmap {
		return
	}
	a, b := key[20:40], next[20:40]
	as, bs := be.Uint32(a), be.Uint32(b)
	ao, bo := be.Uint64(a[4:]), be.Uint64(b[4:])
	if bs > as || bs == as && (bo > ao || bo == ao && be.Uint64(b[12:])&rmapKeyMask > be.Uint64(a[12:])&rmapKeyMask) {
		copy(a, b)
	}
}

const rmapKeyMask = ^uint64(rmapUnwritten)

// shape is the number of blocks in each level of a tree, leaves first.
type shape []int

func (s shape) total() int {
	n := 0
	for _, l := range s {
		n += l
	}
	return n
}

// shapeOf plans a tree of n records. slack leaves that many places free in each leaf, so that the first
// insertions after the next mount do not split blocks all at once. root is the number of pointers that the
// root can hold outside of a block (extent trees); 0 when the root is a block.
func (k *btKind) shapeOf(n, blockSize, slack, root int) shape {
	leaf, node := k.caps(blockSize)
	leaf = max(leaf-slack, leaf/2+1)
	if n <= k.rootLeaf(blockSize, root) {
		if root > 0 {
			return nil
		}
		return shape{1}
	}
	s := shape{(n + leaf - 1) / leaf}
	top := 1
	if root > 0 {
		top = root
	}
	for s[len(s)-1] > top {
		s = append(s, (s[len(s)-1]+node-1)/node)
	}
	return s
}

// rootLeaf is the number of records that need no level above their own.
func (k *btKind) rootLeaf(blockSize, root int) int {
	if root > 0 {
		return 0
	}
	leaf, _ := k.caps(blockSize)
	return leaf
}

// bulk writes a tree bottom up: records fill leaves evenly, then keys fill nodes.
type bulk struct {
	fs     *FS
	kind   *btKind
	owner  uint64 // in the block headers: group number or inode
	blocks []uint64
	write  func(fsb uint64, b []byte) error
}

// build lays n records into blocks shaped by s (taken from blocks in order: leaves first) and returns the top
// level's keys and block numbers.
func (t *bulk) build(s shape, n int, record func(i int, b []byte)) (keys []byte, ptrs []uint64, err error) {
	k, bs := t.kind, t.fs.sb.blockSize
	_, nodeCap := k.caps(bs)
	buf := make([]byte, bs)
	hdr := k.hdr()
	next := t.blocks
	i := 0
	for level, nb := range s {
		var upKeys []byte
		var upPtrs []uint64
		count := n
		if level > 0 {
			count = len(ptrs)
		}
		i = 0
		for b := 0; b < nb; b++ {
			m := count/nb + btoi(b < count%nb)
			clear(buf)
			key := make([]byte, k.key)
			if level == 0 {
				for j := 0; j < m; j++ {
					rec := buf[hdr+j*k.rec:][:k.rec]
					record(i+j, rec)
					if j == 0 {
						k.leafKey(rec, key)
					} else if k.rmap {
						var more [40]byte
						k.leafKey(rec, more[:])
						k.widen(key, more[:])
					}
				}
			} else {
				copy(buf[hdr:], keys[i*k.key:(i+m)*k.key])
				copy(key, keys[i*k.key:])
				for j := 0; j < m; j++ {
					if j > 0 {
						k.widen(key, keys[(i+j)*k.key:])
					}
					p := buf[hdr+nodeCap*k.key+j*k.ptr:]
					if k.long {
						be.PutUint64(p, ptrs[i+j])
					} else {
						be.PutUint32(p, uint32(ptrs[i+j]&(1<<t.fs.sb.agBlockLog-1)))
					}
				}
			}
			i += m
			left, right := nullFsBlock, nullFsBlock
			if b > 0 {
				left = next[b-1]
			}
			if b < nb-1 {
				right = next[b+1]
			}
			t.header(buf, level, m, next[b], left, right)
			if err := t.write(next[b], buf); err != nil {
				return nil, nil, err
			}
			upKeys, upPtrs = append(upKeys, key...), append(upPtrs, next[b])
		}
		next = next[nb:]
		keys, ptrs = upKeys, upPtrs
	}
	return keys, ptrs, nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (t *bulk) header(b []byte, level, n int, fsb, left, right uint64) {
	sb := t.fs.sb
	be.PutUint32(b, t.kind.magic)
	be.PutUint16(b[btLevel:], uint16(level))
	be.PutUint16(b[btNumRecs:], uint16(n))
	if t.kind.long {
		be.PutUint64(b[btLgLeft:], left)
		be.PutUint64(b[btLgRight:], right)
		be.PutUint64(b[btLgBlkno:], sb.daddr(fsb))
		copy(b[btLgUUID:], sb.metaUUID[:])
		be.PutUint64(b[btLgOwner:], t.owner)
		setCRC(b, btLgCRC)
		return
	}
	agb := func(f uint64) uint32 {
		if f == nullFsBlock {
			return nullAgBlock
		}
		_, b := sb.split(f)
		return b
	}
	be.PutUint32(b[btShLeft:], agb(left))
	be.PutUint32(b[btShRight:], agb(right))
	be.PutUint64(b[btShBlkno:], sb.daddr(fsb))
	copy(b[btShUUID:], sb.metaUUID[:])
	be.PutUint32(b[btShOwner:], uint32(t.owner))
	setCRC(b, btShCRC)
}

// scanTree visits the leaf records of a group's tree in order, and every block of it. The tree's depth is given by
// its level count, no block is visited twice, and so no broken tree can hold it up.
func (fs *FS) scanTree(k *btKind, ag, root uint32, levels int, block func(b uint32), record func(rec []byte) error) error {
	if levels < 1 || levels > maxBtLevel {
		return corrupt("group %d: %s of %d levels", ag, k.name, levels)
	}
	leafCap, nodeCap := k.caps(fs.sb.blockSize)
	hdr := k.hdr()
	length := fs.sb.agLen(ag)
	seen := map[uint32]bool{}
	bufs := make([][]byte, levels)
	var walk func(b uint32, level int) error
	walk = func(b uint32, level int) error {
		if b == 0 || b >= length || seen[b] {
			return corrupt("group %d: %s block %d is outside the group or met twice", ag, k.name, b)
		}
		seen[b] = true
		if block != nil {
			block(b)
		}
		fsb := fs.sb.fsb(ag, b)
		if bufs[level] == nil {
			bufs[level] = make([]byte, fs.sb.blockSize)
		}
		buf := bufs[level]
		if err := fs.readAt(buf, fs.sb.off(fsb)); err != nil {
			return wrap(err, "reading %s of group %d", k.name, ag)
		}
		n := int(be.Uint16(buf[btNumRecs:]))
		switch {
		case be.Uint32(buf) != k.magic:
			return corrupt("group %d: %s block %d: magic %#x", ag, k.name, b, be.Uint32(buf))
		case int(be.Uint16(buf[btLevel:])) != level:
			return corrupt("group %d: %s block %d: level %d, expected %d", ag, k.name, b, be.Uint16(buf[btLevel:]), level)
		case be.Uint64(buf[btShBlkno:]) != fs.sb.daddr(fsb) || be.Uint32(buf[btShOwner:]) != ag:
			return corrupt("group %d: %s block %d: belongs elsewhere", ag, k.name, b)
		}
		if err := fs.checkMeta(buf, btShCRC, btShUUID, fsb); err != nil {
			return err
		}
		if level == 0 {
			if n > leafCap {
				return corrupt("group %d: %s block %d: %d records", ag, k.name, b, n)
			}
			for i := 0; i < n; i++ {
				if err := record(buf[hdr+i*k.rec:][:k.rec]); err != nil {
					return err
				}
			}
			return nil
		}
		if n == 0 || n > nodeCap {
			return corrupt("group %d: %s block %d: %d pointers", ag, k.name, b, n)
		}
		for i := 0; i < n; i++ {
			if err := walk(be.Uint32(buf[hdr+nodeCap*k.key+i*4:]), level-1); err != nil {
				return err
			}
		}
		return nil
	}
	return walk(root, levels-1)
}
