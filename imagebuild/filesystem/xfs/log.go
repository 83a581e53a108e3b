package xfs

import "fmt"

// The log is a ring of 512-byte blocks. Every block carries its pass over the ring ("cycle") in its first word,
// or in its second when it starts a record. The head is where the cycle drops; a log is clean when the last
// record before the head is an unmount record.

const (
	logBlock       = 512
	logHCycle      = 4        // u32
	logHVersion    = 8        // u32
	logHLen        = 12       // u32 bytes behind the header
	logHLSN        = 16       // u64 cycle u32, block u32
	logHTailLSN    = 24       // u64
	logHPrevBlock  = 36       // u32
	logHNumOps     = 40       // u32
	logHCycleData  = 44       // u32 each: the words of the body's blocks that give way to the cycle
	logHFormat     = 300      // u32: byte order of the items
	logHUUID       = 304      // 16 bytes
	logHSize       = 320      // u32 bytes of a record in memory
	logCycleSize   = 32 << 10 // bytes of a record whose first words fit in one header block
	logOpFlags     = 9
	logUnmount     = 0x20
	logOpLen       = 4 // u32
	logOpClient    = 8
	logClientLog   = 0xaa
	logLinuxLE     = 1
	logUnmountType = 0x6e55 // "nU"
	logMaxRecBlock = (256<<10)/logBlock + 8
)

func dirtyLog(why string) error {
	return fmt.Errorf("%w: %s; mount the filesystem once and unmount it, or run xfs_repair (with -L only if it cannot be mounted)", ErrDirtyLog, why)
}

type logDev struct {
	fs    *FS
	start int64 // byte offset
	n     int64 // blocks
}

func (l *logDev) block(i int64, buf []byte) error {
	return wrapLog(l.fs.readAt(buf, l.start+i*logBlock))
}

func wrapLog(err error) error {
	if err != nil {
		return wrap(err, "reading the log")
	}
	return nil
}

func (l *logDev) cycle(i int64) (uint32, error) {
	var b [logBlock]byte
	if err := l.block(i, b[:]); err != nil {
		return 0, err
	}
	if be.Uint32(b[:]) == logRecMagic {
		return be.Uint32(b[logHCycle:]), nil
	}
	return be.Uint32(b[:]), nil
}

// checkLog says nil when there is nothing to recover.
func (fs *FS) checkLog() error {
	sb := fs.sb
	if sb.logBlocks == 0 || !sb.validRun(sb.logStart, uint64(sb.logBlocks)) {
		return corrupt("superblock: a log of %d blocks at %#x", sb.logBlocks, sb.logStart)
	}
	if sb.logInc != 0 {
		return dirtyLog(fmt.Sprintf("it holds items of log features %#x", sb.logInc))
	}
	l := &logDev{fs, sb.off(sb.logStart), int64(sb.logBlocks) << sb.blockLog / logBlock}
	head, zeroed, err := l.head()
	if err != nil || zeroed {
		return err
	}
	var b [logBlock]byte
	for back := int64(1); back <= logMaxRecBlock && back < l.n; back++ {
		at := (head - back + l.n) % l.n
		if err := l.block(at, b[:]); err != nil {
			return err
		}
		if be.Uint32(b[:]) != logRecMagic {
			continue
		}
		hdrs := int64(1)
		if size := be.Uint32(b[logHSize:]); be.Uint32(b[logHVersion:])&2 != 0 && size > logCycleSize && size <= 256<<10 {
			hdrs = int64(size+logCycleSize-1) / logCycleSize
		}
		body := (int64(be.Uint32(b[logHLen:])) + logBlock - 1) / logBlock
		if hdrs+body != back || be.Uint32(b[logHNumOps:]) != 1 {
			return dirtyLog("it was not unmounted cleanly")
		}
		if err := l.block((at+hdrs)%l.n, b[:]); err != nil {
			return err
		}
		if b[logOpFlags]&logUnmount == 0 {
			return dirtyLog("it was not unmounted cleanly")
		}
		return nil
	}
	return dirtyLog("its last record was not found")
}

// head finds the block behind the newest record. A log that was only ever zeroed has none and is clean.
func (l *logDev) head() (head int64, zeroed bool, err error) {
	first, err := l.cycle(0)
	if err != nil {
		return 0, false, err
	}
	if first == 0 {
		return 0, true, nil
	}
	last, err := l.cycle(l.n - 1)
	if err != nil {
		return 0, false, err
	}
	if first == last {
		return 0, false, nil
	}
	// Invariant: the block at lo has the first cycle, the block at hi has not.
	lo, hi := int64(0), l.n-1
	for hi-lo > 1 {
		mid := lo + (hi-lo)/2
		c, err := l.cycle(mid)
		if err != nil {
			return 0, false, err
		}
		if c == first {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi, false, nil
}

// emptyLog is the start of a log that was never used, as mkfs.xfs writes it: a record that says that the filesystem was
// unmounted. All behind it must be zero.
func emptyLog(uuid [16]byte) []byte {
	b := make([]byte, 2*logBlock)
	be.PutUint32(b, logRecMagic)
	be.PutUint32(b[logHCycle:], 1)
	be.PutUint32(b[logHVersion:], 2)
	be.PutUint32(b[logHLen:], logBlock)
	be.PutUint64(b[logHLSN:], 1<<32)
	be.PutUint64(b[logHTailLSN:], 1<<32)
	be.PutUint32(b[logHPrevBlock:], 0xffffffff)
	be.PutUint32(b[logHNumOps:], 1)
	be.PutUint32(b[logHCycleData:], 0xb0c0d0d0) // transaction
	be.PutUint32(b[logHFormat:], logLinuxLE)
	copy(b[logHUUID:], uuid[:])
	be.PutUint32(b[logHSize:], logCycleSize)
	op := b[logBlock:]
	be.PutUint32(op, 1)
	be.PutUint32(op[logOpLen:], 8)
	op[logOpClient], op[logOpFlags] = logClientLog, logUnmount
	be.PutUint16(op[12:], logUnmountType)
	return b
}
