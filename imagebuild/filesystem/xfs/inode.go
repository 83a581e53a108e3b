package xfs

import (
	"encoding/binary"
	"time"
)

// inode is a decoded version 3 inode. Times stay in their on-disk form until asked for.
type inode struct {
	ino             uint64
	mode            uint16
	format, aformat byte
	forkoff         byte // 8-byte units; 0: no attribute fork
	uid, gid        uint32
	nlink, projid   uint32
	size            uint64
	nblocks         uint64
	extsize         uint32
	cowExtsize      uint32
	nextents        uint64
	anextents       uint32
	flags           uint16
	flags2          uint64
	gen             uint32
	changeCount     uint64
	lsn             uint64
	atime, mtime    uint64
	ctime, crtime   uint64
	lit             []byte // data fork, then attribute fork
}

func (in *inode) kind() uint16 { return in.mode & modeMask }

func (in *inode) dataFork() []byte {
	if in.forkoff == 0 {
		return in.lit
	}
	return in.lit[:int(in.forkoff)*8]
}

func (in *inode) attrFork() []byte {
	if in.forkoff == 0 {
		return nil
	}
	return in.lit[int(in.forkoff)*8:]
}

const bigtimeEpoch = 1 << 31 // seconds between the start of bigtime and 1970

func (in *inode) time(v uint64) time.Time {
	if in.flags2&flag2Bigtime != 0 {
		return time.Unix(int64(v/1e9)-bigtimeEpoch, int64(v%1e9))
	}
	return time.Unix(int64(int32(v>>32)), int64(uint32(v)))
}

// stamp converts t, clamped to what the inode's form can hold, as the kernel does.
func (in *inode) stamp(t time.Time) uint64 {
	sec, ns := t.Unix(), uint64(t.Nanosecond())
	if in.flags2&flag2Bigtime != 0 {
		const maxSec = int64(^uint64(0)/1e9) - bigtimeEpoch
		switch {
		case sec < -bigtimeEpoch:
			sec, ns = -bigtimeEpoch, 0
		case sec >= maxSec:
			sec, ns = maxSec, 0
		}
		return uint64(sec+bigtimeEpoch)*1e9 + ns
	}
	switch {
	case sec < -1<<31:
		sec, ns = -1<<31, 0
	case sec > 1<<31-1:
		sec, ns = 1<<31-1, 0
	}
	return uint64(uint32(int32(sec)))<<32 | ns
}

// decodeInode reads inode ino from its slot on disk. The literal area is copied.
func (fs *FS) decodeInode(raw []byte, ino uint64) (*inode, error) {
	if be.Uint16(raw) != inodeMagic {
		return nil, corrupt("inode %d: magic %#x", ino, be.Uint16(raw))
	}
	if raw[diVersion] != 3 {
		return nil, corrupt("inode %d: version %d", ino, raw[diVersion])
	}
	if !fs.noCRC {
		if got, want := binary.LittleEndian.Uint32(raw[diCRC:]), crcOf(raw, diCRC); got != want {
			return nil, corrupt("inode %d: checksum %#08x, computed %#08x", ino, got, want)
		}
	}
	if n := be.Uint64(raw[diIno:]); n != ino {
		return nil, corrupt("inode %d: the inode says it is %d", ino, n)
	}
	if string(raw[diUUID:diUUID+16]) != string(fs.sb.metaUUID[:]) {
		return nil, corrupt("inode %d: of another filesystem (uuid)", ino)
	}
	in := &inode{
		ino: ino, mode: be.Uint16(raw[diMode:]), format: raw[diFormat], aformat: raw[diAformat], forkoff: raw[diForkoff],
		uid: be.Uint32(raw[diUID:]), gid: be.Uint32(raw[diGID:]), nlink: be.Uint32(raw[diNlink:]),
		projid: uint32(be.Uint16(raw[diProjHi:]))<<16 | uint32(be.Uint16(raw[diProjLo:])),
		size:   be.Uint64(raw[diSize:]), nblocks: be.Uint64(raw[diNblocks:]),
		extsize: be.Uint32(raw[diExtsize:]), cowExtsize: be.Uint32(raw[diCowExtsize:]),
		flags: be.Uint16(raw[diFlags:]), flags2: be.Uint64(raw[diFlags2:]), gen: be.Uint32(raw[diGen:]),
		changeCount: be.Uint64(raw[diChangeCount:]), lsn: be.Uint64(raw[diLSN:]),
		atime: be.Uint64(raw[diAtime:]), mtime: be.Uint64(raw[diMtime:]), ctime: be.Uint64(raw[diCtime:]), crtime: be.Uint64(raw[diCrtime:]),
	}
	if in.flags2&flag2Nrext64 != 0 {
		in.nextents, in.anextents = be.Uint64(raw[diBigNextents:]), be.Uint32(raw[diNextents:])
	} else {
		in.nextents, in.anextents = uint64(be.Uint32(raw[diNextents:])), uint32(be.Uint16(raw[diAnextents:]))
	}
	if in.mode == 0 {
		return in, nil // a free inode: nothing else in it counts
	}
	in.lit = append([]byte(nil), raw[diCoreSize:]...)
	if int(in.forkoff)*8 > len(in.lit) {
		return nil, corrupt("inode %d: attribute fork offset %d", ino, in.forkoff)
	}
	if in.size > 1<<63-1 {
		return nil, corrupt("inode %d: size %d", ino, in.size)
	}
	if in.nblocks > fs.sb.dblocks {
		return nil, corrupt("inode %d: %d blocks", ino, in.nblocks)
	}
	ok := false
	switch in.kind() {
	case modeReg:
		ok = in.format == fmtExtents || in.format == fmtBtree
	case modeDir, modeLnk:
		ok = in.format == fmtLocal || in.format == fmtExtents || in.format == fmtBtree
		if in.format == fmtLocal && in.size > uint64(len(in.dataFork())) {
			return nil, corrupt("inode %d: %d inline bytes", ino, in.size)
		}
	case modeChar, modeBlk, modeFifo, modeSock:
		ok = in.format == fmtDev
	}
	if !ok {
		return nil, corrupt("inode %d: mode %#o with fork format %d", ino, in.mode, in.format)
	}
	if in.forkoff != 0 && in.aformat != fmtLocal && in.aformat != fmtExtents && in.aformat != fmtBtree {
		return nil, corrupt("inode %d: attribute fork format %d", ino, in.aformat)
	}
	return in, nil
}

// encode writes the inode into its slot, checksum included.
func (in *inode) encode(raw []byte, uuid [16]byte) {
	clear(raw)
	be.PutUint16(raw, inodeMagic)
	be.PutUint16(raw[diMode:], in.mode)
	raw[diVersion], raw[diFormat], raw[diForkoff], raw[diAformat] = 3, in.format, in.forkoff, in.aformat
	be.PutUint32(raw[diUID:], in.uid)
	be.PutUint32(raw[diGID:], in.gid)
	be.PutUint32(raw[diNlink:], in.nlink)
	be.PutUint16(raw[diProjLo:], uint16(in.projid))
	be.PutUint16(raw[diProjHi:], uint16(in.projid>>16))
	be.PutUint64(raw[diAtime:], in.atime)
	be.PutUint64(raw[diMtime:], in.mtime)
	be.PutUint64(raw[diCtime:], in.ctime)
	be.PutUint64(raw[diSize:], in.size)
	be.PutUint64(raw[diNblocks:], in.nblocks)
	be.PutUint32(raw[diExtsize:], in.extsize)
	if in.flags2&flag2Nrext64 != 0 {
		be.PutUint64(raw[diBigNextents:], in.nextents)
		be.PutUint32(raw[diNextents:], in.anextents)
	} else {
		be.PutUint32(raw[diNextents:], uint32(in.nextents))
		be.PutUint16(raw[diAnextents:], uint16(in.anextents))
	}
	be.PutUint16(raw[diFlags:], in.flags)
	be.PutUint32(raw[diGen:], in.gen)
	be.PutUint32(raw[diUnlinked:], nullAgino)
	be.PutUint64(raw[diChangeCount:], in.changeCount)
	be.PutUint64(raw[diLSN:], in.lsn)
	be.PutUint64(raw[diFlags2:], in.flags2)
	be.PutUint32(raw[diCowExtsize:], in.cowExtsize)
	be.PutUint64(raw[diCrtime:], in.crtime)
	be.PutUint64(raw[diIno:], in.ino)
	copy(raw[diUUID:], uuid[:])
	copy(raw[diCoreSize:], in.lit)
	setCRC(raw, diCRC)
}

// inode reads one inode in use; a free one is an error.
func (fs *FS) inode(ino uint64) (*inode, error) {
	if fs.w != nil {
		if in, err, ok := fs.w.cachedInode(ino); ok {
			return in, err
		}
	}
	fsb, off, err := fs.sb.inoPlace(ino)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, fs.sb.inodeSize)
	if err := fs.readAt(buf, fs.sb.off(fsb)+int64(off)); err != nil {
		return nil, wrap(err, "reading inode %d", ino)
	}
	in, err := fs.decodeInode(buf, ino)
	if err == nil && in.mode == 0 {
		err = corrupt("inode %d is in use by a folder but free", ino)
	}
	if err != nil {
		return nil, err
	}
	return in, nil
}
