package xfs

import "fmt"

// The log is a ring of 512-byte blocks. Every block carries its pass over the ring ("cycle") in its first word,
// or in its second when it starts a record. The head is where the cycle drops; a log is clean when the last
// record before the head is an unmount record.

const (
	logBlock       = 512
	logHCycle      = 4  // u32
	logHVersion    = 8  // u32
	logHLen        = 12 // u32 bytes behind the header
	logHNumOps     = 40 // u32
	logHSize       = 320
	logCycleSize   = 32 << 10 // bytes of a record whose first words fit in one header block
	logOpFlags     = 9
	logUnmount     = 0x20
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
