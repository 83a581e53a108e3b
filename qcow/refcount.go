package qcow

import (
	"cmp"
	"container/list"
	"encoding/binary"
	"slices"
)

// getRefcount is entry i of a refcount block with entries of 1<<order bits. Entries below a byte fill it from the least significant bit.
func getRefcount(b []byte, order uint32, i int64) uint64 {
	switch order {
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	case 3:
		return uint64(b[i])
	}
	bits := uint(1) << order
	return uint64(b[uint(i)*bits/8]) >> (uint(i) * bits % 8) & (1<<bits - 1)
}

func setRefcount(b []byte, order uint32, i int64, v uint64) {
	switch order {
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], v)
	case 3:
		b[i] = byte(v)
	default:
		bits := uint(1) << order
		shift := uint(i) * bits % 8
		p := &b[uint(i)*bits/8]
		*p = *p&^byte((1<<bits-1)<<shift) | byte(v<<shift)
	}
}

func maxRefcount(order uint32) uint64 {
	if order == 6 {
		return ^uint64(0)
	}
	return 1<<(1<<order) - 1
}

// alloc takes n contiguous clusters at the end of the file and gives them refcount 1. They read as zeros.
func (w *Writer) alloc(n int64) (int64, error) {
	off := w.end
	if n > (offsetMask-off)>>w.cb {
		return 0, unsupportedf("the file would grow past %d bytes", int64(offsetMask))
	}
	w.setEnd(off + n<<w.cb)
	return off, w.updateRefcounts(off>>w.cb, n, 1)
}

// updateRefcounts adds delta to the refcounts of n host clusters.
func (w *Writer) updateRefcounts(first, n int64, delta int64) error {
	order := w.hdr.refcountOrder
	limit := maxRefcount(order)
	perSlice := w.im.sliceBytes * 8 >> order
	for n > 0 {
		t, err := w.refcountSlice(first)
		if err != nil {
			return err
		}
		i := first & (perSlice - 1)
		run := min(n, perSlice-i)
		for ; i < first&(perSlice-1)+run; i++ {
			v := getRefcount(t.data, order, i)
			if delta < 0 && v == 0 {
				return corruptf("refcount of the cluster at offset %#x would fall below zero", (first&^(perSlice-1)+i)<<w.cb)
			}
			if delta > 0 && v == limit {
				return corruptf("refcount of the cluster at offset %#x would exceed %d bits", (first&^(perSlice-1)+i)<<w.cb, 1<<order)
			}
			setRefcount(t.data, order, i, v+uint64(delta))
		}
		t.dirty = true
		first, n = first+run, n-run
	}
	return nil
}

func (w *Writer) refcount(cluster int64) (uint64, error) {
	t, err := w.refcountSlice(cluster)
	if err != nil {
		return 0, err
	}
	perSlice := w.im.sliceBytes * 8 >> w.hdr.refcountOrder
	return getRefcount(t.data, w.hdr.refcountOrder, cluster&(perSlice-1)), nil
}

func (w *Writer) clearRefcount(cluster int64) error {
	t, err := w.refcountSlice(cluster)
	if err != nil {
		return err
	}
	perSlice := w.im.sliceBytes * 8 >> w.hdr.refcountOrder
	setRefcount(t.data, w.hdr.refcountOrder, cluster&(perSlice-1), 0)
	t.dirty = true
	return nil
}

// refcountSlice is the slice of the refcount block that has a host cluster; the block is allocated if it is missing.
func (w *Writer) refcountSlice(cluster int64) (*writeTable, error) {
	blockBits := w.cb + 3 - uint(w.hdr.refcountOrder)
	bi := cluster >> blockBits
	if bi >= int64(len(w.rt)) {
		if err := w.growRefcountTable(bi + 1); err != nil {
			return nil, err
		}
	}
	if w.rt[bi] == 0 {
		off := w.end
		w.setEnd(off + w.cs)
		w.rt[bi] = uint64(off)
		w.rtDirty = true
		w.tables.addZero(off, tableRefcount)
		if err := w.updateRefcounts(off>>w.cb, 1, 1); err != nil {
			return nil, err
		}
	}
	in := (cluster & (1<<blockBits - 1)) << w.hdr.refcountOrder >> 3
	return w.tables.get(int64(w.rt[bi])+in&^(w.im.sliceBytes-1), tableRefcount)
}

// growRefcountTable moves the refcount table to the end of the file, with at least n entries.
func (w *Writer) growRefcountTable(n int64) error {
	clusters := ((n+n/2)*8 + w.cs - 1) >> w.cb
	perBlock := w.cs * 8 >> w.hdr.refcountOrder
	// The table must reach over itself and the blocks that this adds.
	for clusters<<w.cb/8*perBlock < w.end>>w.cb+clusters+8 {
		clusters++
	}
	if clusters<<w.cb > maxRefcountTableBytes {
		return unsupportedf("the refcount table would exceed %d bytes; use larger clusters", maxRefcountTableBytes)
	}
	oldOff, oldClusters := int64(w.hdr.rtOff), int64(w.hdr.rtClusters)
	off := w.end
	w.setEnd(off + clusters<<w.cb)
	w.rt = append(w.rt, make([]uint64, clusters<<w.cb/8-int64(len(w.rt)))...)
	w.hdr.rtOff, w.hdr.rtClusters = uint64(off), uint32(clusters)
	w.rtDirty = true
	if err := w.updateRefcounts(off>>w.cb, clusters, 1); err != nil {
		return err
	}
	return w.updateRefcounts(oldOff>>w.cb, oldClusters, -1)
}

// dropBitmaps frees all persistent bitmaps and takes them out of the header. check has judged their tables.
func (w *Writer) dropBitmaps() error {
	x, ok, err := w.hdr.bitmaps()
	if err != nil {
		return err
	}
	w.hdr.exts = slices.DeleteFunc(w.hdr.exts, func(e extension) bool { return e.typ == extBitmaps })
	consistent := w.hdr.autoclear&autoclearBitmaps != 0
	w.hdr.autoclear = 0
	if !ok || !consistent {
		return nil
	}
	tables, err := readBitmapDir(w.im.src, x)
	if err != nil {
		return err
	}
	free := func(off, n int64) error { return w.updateRefcounts(off>>w.cb, (n+w.cs-1)>>w.cb, -1) }
	for _, t := range tables {
		err := t.entries(w.im.src, func(_ int64, e uint64) error {
			if off := int64(e & offsetMask); off != 0 {
				return free(off, w.cs)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := free(t.off, t.n*8); err != nil {
			return err
		}
	}
	return free(int64(x.dirOff), int64(x.dirSize))
}

type tableClass uint8

const (
	tableRefcount tableClass = iota // written before the L2 tables that rely on it
	tableL2
)

type writeTable struct {
	off   int64
	data  []byte
	dirty bool
	class tableClass
}

// writeCache is the write-back cache of slices of L2 tables and refcount blocks, by file offset.
type writeCache struct {
	w     *Writer
	slice int64
	items map[int64]*list.Element
	order list.List
}

func (c *writeCache) load(off, _ int64) ([]byte, error) {
	t, err := c.get(off, tableL2)
	if err != nil {
		return nil, err
	}
	return t.data, nil
}

// get gives the slice at off. It stays valid until the next get or addZero of another slice, so a change must be made and marked before.
func (c *writeCache) get(off int64, class tableClass) (*writeTable, error) {
	if e, ok := c.items[off]; ok {
		if c.order.Front() != e {
			c.order.MoveToFront(e)
		}
		return e.Value.(*writeTable), nil
	}
	t := &writeTable{off: off, data: make([]byte, c.slice), class: class}
	// Beyond the end of the file a new table reads as zeros.
	if _, err := readFull(c.w.f, t.data, off); err != nil {
		return nil, err
	}
	return t, c.insert(t)
}

// addZero puts a table of zeros at off, a cluster just allocated at the end of the file.
func (c *writeCache) addZero(off int64, class tableClass) {
	// Of a table larger than a slice only the first is worth having; the others read as zeros from the file.
	c.insertOnly(&writeTable{off: off, data: make([]byte, c.slice), class: class, dirty: true})
}

func (c *writeCache) insertOnly(t *writeTable) {
	if c.items == nil {
		c.items = map[int64]*list.Element{}
	}
	c.items[t.off] = c.order.PushFront(t)
}

func (c *writeCache) insert(t *writeTable) error {
	limit := int(tableCacheWrite / c.slice)
	if c.order.Len() >= limit {
		if err := c.flush(); err != nil {
			return err
		}
		for c.order.Len() > limit*3/4 {
			delete(c.items, c.order.Remove(c.order.Back()).(*writeTable).off)
		}
	}
	c.insertOnly(t)
	return nil
}

// flush writes all dirty slices: refcount blocks, then L2 tables, each in the order of the file.
func (c *writeCache) flush() error {
	var dirty []*writeTable
	for e := c.order.Front(); e != nil; e = e.Next() {
		if t := e.Value.(*writeTable); t.dirty {
			dirty = append(dirty, t)
		}
	}
	slices.SortFunc(dirty, func(a, b *writeTable) int {
		return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.off, b.off))
	})
	for _, t := range dirty {
		if _, err := c.w.f.WriteAt(t.data, t.off); err != nil {
			return err
		}
		t.dirty = false
	}
	return nil
}
