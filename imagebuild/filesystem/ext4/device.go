package ext4

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"slices"
)

// Device is what a [Writer] works on. Neither method is called concurrently.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

const runSize = 1 << 20 // bytes gathered into one write

// device gathers consecutive writes into long ones, and keeps in memory what a writer that only counts, or that
// ran out of space, must be able to read back but may not or cannot write.
type device struct {
	f     *FS
	d     Device
	count bool

	run    []byte
	runOff int64

	blocks map[int64][]byte    // shadow of metadata blocks, compressed
	pieces map[pieceKey][]byte // shadow of inode table pieces, compressed
	zip    *flate.Writer
}

// write puts p at off. Content written while counting is dropped; meta is kept. Everything at or above the
// filesystem's end was counted, not placed.
func (w *device) write(off int64, p []byte, meta bool) error {
	if w.count || off >= w.f.blocks*w.f.bs {
		if meta {
			if w.blocks == nil {
				w.blocks = map[int64][]byte{}
			}
			w.blocks[off/w.f.bs] = w.deflate(p)
		}
		return nil
	}
	if len(w.run) > 0 && off != w.runOff+int64(len(w.run)) {
		if err := w.flush(); err != nil {
			return err
		}
	}
	if len(p) >= runSize/4 {
		if err := w.flush(); err != nil {
			return err
		}
		return w.out(p, off)
	}
	if len(w.run)+len(p) > cap(w.run) {
		if err := w.flush(); err != nil {
			return err
		}
		if w.run == nil {
			w.run = make([]byte, 0, runSize)
		}
	}
	if len(w.run) == 0 {
		w.runOff = off
	}
	w.run = append(w.run, p...)
	return nil
}

func (w *device) out(p []byte, off int64) error {
	if _, err := w.d.WriteAt(p, off); err != nil {
		return fmt.Errorf("writing %d bytes at byte %d: %w", len(p), off, err)
	}
	return nil
}

func (w *device) flush() error {
	if len(w.run) == 0 {
		return nil
	}
	err := w.out(w.run, w.runOff)
	w.run = w.run[:0]
	return err
}

// ReadAt reads the device as it will be once flushed.
func (w *device) ReadAt(p []byte, off int64) (int, error) {
	if len(w.run) > 0 && off < w.runOff+int64(len(w.run)) && w.runOff < off+int64(len(p)) {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	return w.d.ReadAt(p, off)
}

// writePiece puts a piece of an inode table at off, which is -1 for inodes that are only counted.
func (w *device) writePiece(k pieceKey, off int64, p []byte) error {
	if w.count || off < 0 {
		if w.pieces == nil {
			w.pieces = map[pieceKey][]byte{}
		}
		w.pieces[k] = w.deflate(p)
		return nil
	}
	return w.out(p, off)
}

func (w *device) shadowBlock(n int64, b []byte) (bool, error) {
	z, ok := w.blocks[n]
	if !ok {
		return false, nil
	}
	return true, inflate(z, b)
}

func (w *device) shadowPiece(k pieceKey, b []byte) (bool, error) {
	z, ok := w.pieces[k]
	if !ok {
		return false, nil
	}
	return true, inflate(z, b)
}

func (w *device) deflate(p []byte) []byte {
	var out bytes.Buffer
	if w.zip == nil {
		w.zip, _ = flate.NewWriter(&out, flate.BestSpeed)
	} else {
		w.zip.Reset(&out)
	}
	w.zip.Write(p)
	w.zip.Close()
	return slices.Clip(bytes.Clone(out.Bytes()))
}

func inflate(z, b []byte) error {
	_, err := io.ReadFull(flate.NewReader(bytes.NewReader(z)), b)
	return err
}

func sortPieces(keys []pieceKey) {
	slices.SortFunc(keys, func(a, b pieceKey) int {
		if a.group != b.group {
			return int(int64(a.group) - int64(b.group))
		}
		return int(int64(a.n) - int64(b.n))
	})
}
