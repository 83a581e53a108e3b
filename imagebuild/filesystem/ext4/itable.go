package ext4

import (
	"fmt"
	"sync"
)

// inodeTable is a small write-back cache of long pieces of the inode tables. New inodes fill a table from its
// start, so pieces turn what would be one small write per inode into few long ones.
type inodeTable struct {
	f     *FS
	per   uint32 // inodes in a piece
	limit int    // pieces kept

	mu     sync.Mutex
	pieces map[pieceKey]*piece
	clock  uint64
}

type pieceKey struct{ group, n uint32 }

type piece struct {
	key   pieceKey
	data  []byte
	used  uint64
	dirty bool
}

func newInodeTable(f *FS, pieceSize, limit int) *inodeTable {
	return &inodeTable{f: f, per: uint32(max(pieceSize, int(f.bs)) / f.isize), limit: limit, pieces: map[pieceKey]*piece{}}
}

// where splits an inode number. Numbers above the filesystem's are those that a Writer hands out when it only
// counts; they make groups that exist nowhere but in its memory.
func (t *inodeTable) where(ino uint32) (k pieceKey, off int) {
	g, i := (ino-1)/t.f.ipg, (ino-1)%t.f.ipg
	return pieceKey{g, i / t.per}, int(i%t.per) * t.f.isize
}

// span is the device range of a piece.
func (t *inodeTable) span(k pieceKey) (off int64, n int) {
	inodes := min(t.per, t.f.ipg-k.n*t.per)
	n = int(inodes) * t.f.isize
	if k.group < t.f.groups {
		off = t.f.descBlockNo(k.group, gdInodeTableLo, gdInodeTableHi)*t.f.bs + int64(k.n)*int64(t.per)*int64(t.f.isize)
	}
	return off, n
}

func (t *inodeTable) get(k pieceKey) (*piece, error) {
	t.clock++
	if p := t.pieces[k]; p != nil {
		p.used = t.clock
		return p, nil
	}
	var p *piece
	off, n := t.span(k)
	if len(t.pieces) >= t.limit {
		for _, q := range t.pieces {
			if p == nil || q.used < p.used {
				p = q
			}
		}
		if err := t.write(p); err != nil {
			return nil, err
		}
		delete(t.pieces, p.key)
	} else {
		p = &piece{data: make([]byte, 0, int(t.per)*t.f.isize)}
	}
	p.key, p.used, p.dirty, p.data = k, t.clock, false, p.data[:n]
	if err := t.fill(p, off); err != nil {
		return nil, err
	}
	t.pieces[k] = p
	return p, nil
}

func (t *inodeTable) fill(p *piece, off int64) error {
	if t.f.w != nil {
		if ok, err := t.f.w.dev.shadowPiece(p.key, p.data); ok || err != nil {
			return err
		}
	}
	valid := 0
	if w := t.f.w; w != nil && p.key.group >= w.diskGroups {
		// Inodes are taken from the lowest on, so the pieces that were written are the first ones.
		if s := w.touched[p.key.group]; s != nil && p.key.n < s.pieces && p.key.group < t.f.groups {
			valid = len(p.data)
		}
	} else if used, start := t.f.itableUsed(p.key.group), p.key.n*t.per; used > start {
		valid = min(len(p.data), int(used-start)*t.f.isize)
	}
	clear(p.data[valid:])
	if valid == 0 {
		return nil
	}
	if _, err := t.f.dev.ReadAt(p.data[:valid], off); err != nil {
		return fmt.Errorf("reading the inode table of group %d: %w", p.key.group, noEOF(err))
	}
	return nil
}

func (t *inodeTable) write(p *piece) error {
	if !p.dirty {
		return nil
	}
	off, _ := t.span(p.key)
	if p.key.group >= t.f.groups {
		off = -1
	}
	if err := t.f.w.dev.writePiece(p.key, off, p.data); err != nil {
		return err
	}
	if off >= 0 && p.key.group >= t.f.w.diskGroups {
		s := t.f.w.state(p.key.group)
		s.pieces = max(s.pieces, p.key.n+1)
	}
	p.dirty = false
	return nil
}

// read copies an inode's bytes into b.
func (t *inodeTable) read(ino uint32, b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, off := t.where(ino)
	p, err := t.get(k)
	if err != nil {
		return err
	}
	copy(b, p.data[off:off+t.f.isize])
	return nil
}

func (t *inodeTable) put(ino uint32, b []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	k, off := t.where(ino)
	p, err := t.get(k)
	if err != nil {
		return err
	}
	copy(p.data[off:off+t.f.isize], b)
	p.dirty = true
	return nil
}

func (t *inodeTable) flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	keys := make([]pieceKey, 0, len(t.pieces))
	for k := range t.pieces {
		keys = append(keys, k)
	}
	sortPieces(keys)
	for _, k := range keys {
		if err := t.write(t.pieces[k]); err != nil {
			return err
		}
	}
	return nil
}
