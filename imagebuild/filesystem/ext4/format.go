package ext4

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"
)

// FormatOptions are what [Format] does not decide by itself.
type FormatOptions struct {
	UUID  [16]byte // must not be zero
	Label string   // up to 16 bytes
	// Now is the time of the making, and of the root and lost+found. Zero means 1970.
	Now time.Time
	// BytesPerInode tells how many files there will be room for; 0 means 16384, as for mke2fs.
	BytesPerInode int64
}

const (
	formatBlock     = 4096
	formatInode     = 256
	formatFlex      = 4  // 1<<4 groups
	formatUsed      = 10 // reserved inodes
	formatLostBlock = 4  // blocks of lost+found
	formatWipe      = 1 << 20
)

// Format makes an empty ext4 filesystem that fills size bytes on d, whose content may be anything. It depends on its
// arguments alone. The features are those of mke2fs's ext4, without the newest, so that kernels from 4.18 on mount
// it: has_journal ext_attr resize_inode dir_index filetype extent 64bit flex_bg sparse_super large_file huge_file
// dir_nlink extra_isize metadata_csum. Blocks have 4096 bytes, descriptors have room to grow by a factor of 1024, and
// no blocks are reserved for root: who fills a store that is only read later can use all of it. The journal has at
// most 64 MiB, and there is none below 8 MiB. The hash seed follows from the UUID.
//
// A zero UUID or a label that is too long is [fs.ErrInvalid], a size too small for the filesystem's own structures
// matches [ErrNoSpace], more than 16 TiB match [ErrUnsupported]. After an error d holds no filesystem.
func Format(d Device, size int64, o FormatOptions) error {
	if o.UUID == ([16]byte{}) {
		return fmt.Errorf("formatting ext4: %w: no UUID", fs.ErrInvalid)
	}
	if len(o.Label) > 16 {
		return fmt.Errorf("formatting ext4: %w: label %q has more than 16 bytes", fs.ErrInvalid, o.Label)
	}
	if o.BytesPerInode < 0 {
		return fmt.Errorf("formatting ext4: %w: %d bytes per inode", fs.ErrInvalid, o.BytesPerInode)
	}
	if size/formatBlock >= 1<<32 {
		return fmt.Errorf("formatting ext4: %w", unsupported("making a filesystem of %d bytes (at most 16 TiB)", size))
	}
	if o.Now.IsZero() {
		o.Now = time.Unix(0, 0)
	}
	if o.BytesPerInode == 0 {
		o.BytesPerInode = 16384
	}
	if err := newFormat(d, size, o).format(size); err != nil {
		return fmt.Errorf("formatting %d bytes as ext4: %w", size, err)
	}
	return nil
}

// newFormat is the writer of a filesystem that has everything but groups.
func newFormat(d Device, size int64, o FormatOptions) *Writer {
	f := &FS{
		bs: formatBlock, bpg: 8 * formatBlock, isize: formatInode, dsize: 64,
		compat:   compatExtAttr | compatResizeInode | compatDirIndex,
		incompat: incompatFiletype | incompatExtents | incompat64Bit | incompatFlexBG,
		ro:       roSparseSuper | roLargeFile | roHugeFile | roDirNlink | roExtraIsize | roMetadataCsum,
		metaCsum: true, groupCsum: true, hashVer: hashHalfMD4,
		dirs: map[uint32]*folder{},
	}
	blocks := max(1, size/f.bs)
	groups := (blocks-1)/f.bpg + 1
	perBlock := f.bs / int64(f.isize)
	ipg := (blocks*f.bs/o.BytesPerInode-1)/groups + 1
	f.ipg = uint32(min(max((ipg+perBlock-1)/perBlock, 1)*perBlock, 8*f.bs))
	// The blocks for descriptors to come, and those of the groups that will be made in a moment.
	perBlock = int64(f.descPerBlock())
	most := (min(blocks*1024, 1<<32-1)-1)/f.bpg + 1
	table := (groups-1)/perBlock + 1
	reserved := min((most-1)/perBlock+1-table, f.bs/4)
	journal := journalBlocks(blocks)
	if journal > 0 {
		f.compat |= compatHasJournal
	}

	sb := f.sb[:]
	le.PutUint32(sb[sbLogBlockSize:], 2)
	le.PutUint32(sb[sbLogClusterSize:], 2)
	le.PutUint32(sb[sbBlocksPerGroup:], uint32(f.bpg))
	le.PutUint32(sb[sbClusterPerGroup:], uint32(f.bpg))
	le.PutUint32(sb[sbInodesPerGroup:], f.ipg)
	le.PutUint16(sb[sbMagic:], superMagic)
	le.PutUint16(sb[sbState:], stateValid)
	le.PutUint16(sb[sbMaxMounts:], 0xFFFF)
	le.PutUint16(sb[sbErrors:], 1)
	le.PutUint32(sb[sbRevLevel:], 1)
	le.PutUint32(sb[sbFirstInode:], formatUsed+1)
	le.PutUint16(sb[sbInodeSize:], formatInode)
	le.PutUint32(sb[sbCompat:], f.compat)
	le.PutUint32(sb[sbIncompat:], f.incompat)
	le.PutUint32(sb[sbROCompat:], f.ro)
	copy(sb[sbUUID:], o.UUID[:])
	copy(sb[sbLabel:], o.Label)
	le.PutUint16(sb[sbReservedGDT:], uint16(table+reserved))
	seed := sha256.Sum256(append([]byte("ext4 hash seed of "), o.UUID[:]...))
	copy(sb[sbHashSeed:], seed[:16])
	sb[sbHashVersion] = f.hashVer
	le.PutUint16(sb[sbDescSize:], uint16(f.dsize))
	le.PutUint32(sb[sbMountOpts:], mountOptXattr|mountOptACL)
	le.PutUint16(sb[sbMinExtraIsize:], extraIsize)
	le.PutUint16(sb[sbWantExtraIsize:], extraIsize)
	le.PutUint32(sb[sbFlags:], sbFlagSignedHash)
	sb[sbLogFlex] = formatFlex
	sb[sbChecksumType] = checksumCRC32C
	now := uint64(max(0, o.Now.Unix()))
	for _, at := range [][2]int{{sbWriteTime, sbWriteTimeHi}, {sbMakeTime, sbMakeTimeHi}, {sbCheckTime, sbCheckTimeHi}} {
		le.PutUint32(sb[at[0]:], uint32(now))
		sb[at[1]] = byte(now >> 32)
	}
	f.seed = crc32c(^uint32(0), o.UUID[:])
	for i := range f.hashSeed {
		f.hashSeed[i] = le.Uint32(sb[sbHashSeed+4*i:])
	}
	return newWriter(f, d, Options{Now: o.Now})
}

// journalBlocks is the size of the journal, as mke2fs chooses it, but at most 64 MiB.
func journalBlocks(blocks int64) int64 {
	switch {
	case blocks < 2048:
		return 0
	case blocks < 32768:
		return 1024
	case blocks < 256<<10:
		return 4096
	case blocks < 512<<10:
		return 8192
	}
	return 16384
}

func (w *Writer) format(size int64) error {
	p, err := w.planGrowth(size / w.bs)
	if err != nil {
		return err
	}
	if p.groups == 0 {
		return fmt.Errorf("%w: too small for a filesystem", ErrNoSpace)
	}
	// What other filesystems, RAID and LVM are known by is at the start and the end.
	buf := make([]byte, chunkSize)
	if err := w.zeroRange(0, min(formatWipe, size), buf); err != nil {
		return err
	}
	if err := w.zeroRange(max(0, size-formatWipe), size, buf); err != nil {
		return err
	}
	if err := w.growGroups(p); err != nil {
		return err
	}
	if err := w.reserveInodes(); err != nil {
		return err
	}
	// The root comes last: it is written by commit.
	root := &folder{ino: rootInode, parent: rootInode, links: 2, pinned: true, entries: true, attrs: true}
	w.changed[rootInode] = root
	if err := w.makeResizeInode(); err != nil {
		return err
	}
	if err := w.makeJournal(journalBlocks(size/w.bs), buf); err != nil {
		return err
	}
	if err := w.makeLostFound(root); err != nil {
		return err
	}
	le.PutUint32(w.sb[sbOverhead:], uint32(w.metaOf(0)+journalBlocks(size/w.bs)))
	return w.commit(context.Background())
}

// fixedInode begins the inode with the given number.
func (w *Writer) fixedInode(ino uint32, mode uint16, perm int64) ([]byte, error) {
	raw := make([]byte, w.isize)
	w.blankInode(raw)
	w.stampInode(ino, raw)
	return raw, w.putAttrs(raw, mode, &tar.Header{Mode: perm})
}

// reserveInodes takes the inodes up to the first that files may have, and makes the root's.
func (w *Writer) reserveInodes() error {
	s, err := w.inodeBitmap(0)
	if err != nil {
		return err
	}
	if _, err := w.blockBitmap(0); err != nil {
		return err
	}
	setBits(s.inodes, 0, formatUsed)
	s.hint = formatUsed
	d := w.desc(0)
	le.PutUint16(d[gdFlags:], le.Uint16(d[gdFlags:])&^bgInodeUninit)
	w.setDescCount(0, gdFreeInodesLo, gdFreeInodesHi, w.ipg-formatUsed)
	w.setDescCount(0, gdItableUnusedLo, gdItableUnusedHi, w.ipg-formatUsed)
	w.setDescCount(0, gdUsedDirsLo, gdUsedDirsHi, 1)
	w.leftIno -= formatUsed
	for ino := uint32(1); ino <= formatUsed; ino++ {
		if err := w.itab.put(ino, make([]byte, w.isize)); err != nil {
			return err
		}
	}
	raw, err := w.fixedInode(rootInode, modeDir, 0o755)
	if err != nil {
		return err
	}
	le.PutUint16(raw[inLinks:], 2)
	if _, err := w.writeMap(rootInode, raw, nil); err != nil {
		return err
	}
	return w.putInode(rootInode, raw)
}

func (w *Writer) makeResizeInode() error {
	raw, err := w.fixedInode(resizeInode, modeReg, 0o600)
	if err != nil {
		return err
	}
	if w.pointers, _, err = w.alloc(0, 1, 1); err != nil {
		return err
	}
	// The size is that of everything the map could hold.
	per := w.bs / 4
	size := (directBlocks + per + per*per) * w.bs
	le.PutUint32(raw[inSizeLo:], uint32(size))
	le.PutUint32(raw[inSizeHi:], uint32(size>>32))
	le.PutUint32(raw[inBlock+4*(directBlocks+1):], uint32(w.pointers))
	return w.putInode(resizeInode, raw)
}

// makeJournal makes an empty journal of n blocks. All of it is zero, so that no old journal's blocks are taken for
// this one's after a crash.
func (w *Writer) makeJournal(n int64, buf []byte) error {
	if n == 0 {
		return nil
	}
	raw, err := w.fixedInode(journalInode, modeReg, 0o600)
	if err != nil {
		return err
	}
	var ext []extent
	for log := int64(0); log < n; {
		phys, got, err := w.alloc(0, n-log, n-log)
		if err != nil {
			return err
		}
		if w.short {
			return fmt.Errorf("%w: no room for a journal", ErrNoSpace)
		}
		ext = append(ext, extent{phys: phys, log: uint32(log), n: uint32(got)})
		if log == 0 {
			b := make([]byte, w.bs)
			be := binary.BigEndian
			be.PutUint32(b[jsMagic:], journalMagic)
			be.PutUint32(b[jsType:], journalSB2)
			be.PutUint32(b[jsBlockSize:], uint32(w.bs))
			be.PutUint32(b[jsBlocks:], uint32(n))
			be.PutUint32(b[jsFirst:], 1)
			be.PutUint32(b[jsSequence:], 1)
			copy(b[jsUUID:], w.sb[sbUUID:sbUUID+16])
			be.PutUint32(b[jsUsers:], 1)
			if err := w.dev.write(phys*w.bs, b, true); err != nil {
				return err
			}
			phys, got, log = phys+1, got-1, 1
		}
		if err := w.zeroRange(phys*w.bs, (phys+got)*w.bs, buf); err != nil {
			return err
		}
		log += got
	}
	le.PutUint32(raw[inSizeLo:], uint32(n*w.bs))
	blocks, err := w.writeMap(journalInode, raw, ext)
	if err != nil {
		return err
	}
	if err := w.setUnits(journalInode, raw, blocks); err != nil {
		return err
	}
	le.PutUint32(w.sb[sbJournalInode:], journalInode)
	w.sb[sbJournalBackup] = 1
	copy(w.sb[sbJournalMap:], raw[inBlock:inBlock+inBlockLen])
	le.PutUint32(w.sb[sbJournalMap+inBlockLen+4:], uint32(n*w.bs))
	return w.putInode(journalInode, raw)
}

// makeLostFound makes lost+found with empty blocks, so that e2fsck need not look for any.
func (w *Writer) makeLostFound(root *folder) error {
	ino, err := w.create(root, modeDir, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o700}, nil)
	if err != nil {
		return err
	}
	if err := root.add(ino, ftDir, "lost+found"); err != nil {
		return err
	}
	w.moreLinks(root)
	if w.short {
		return nil
	}
	raw, err := w.inode(ino)
	if err != nil {
		return err
	}
	seed := w.inodeSeed(ino, le.Uint32(raw[inGeneration:]))
	room := int(w.bs) - w.dirTail()
	b := make([]byte, w.bs)
	var ext []extent
	for log := range uint32(formatLostBlock) {
		block, _, err := w.alloc(0, 1, 1)
		if err != nil {
			return err
		}
		clear(b)
		at := 0
		if log == 0 {
			w.putEntry(b, ino, ftDir, []byte("."), recLen(1))
			at = recLen(1)
			w.putEntry(b[at:], rootInode, ftDir, []byte(".."), room-at)
		} else {
			w.putEntry(b, 0, 0, nil, room)
		}
		w.sealDirBlock(b, seed)
		if err := w.dev.write(block*w.bs, b, true); err != nil {
			return err
		}
		if k := len(ext) - 1; k >= 0 && ext[k].phys+int64(ext[k].n) == block {
			ext[k].n++
		} else {
			ext = append(ext, extent{phys: block, log: log, n: 1})
		}
	}
	le.PutUint32(raw[inSizeLo:], uint32(formatLostBlock*w.bs))
	blocks, err := w.writeMap(ino, raw, ext)
	if err != nil {
		return err
	}
	if err := w.setUnits(ino, raw, blocks); err != nil {
		return err
	}
	return w.putInode(ino, raw)
}
