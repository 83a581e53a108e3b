package libvirt

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket"

	"github.com/nodebake/nodebake/qcow"
)

// Errors of Check and Upload, beside ErrUsage.
var (
	// ErrExists is matched where a volume has the name, and Options.Force is not set.
	ErrExists = errors.New("output exists")
	// ErrInUse is matched where a machine or another volume depends on the volume to be replaced.
	ErrInUse = errors.New("volume in use")
	// ErrNoSpace is matched where the pool has too little space.
	ErrNoSpace = errors.New("not enough space in the pool")
	// ErrUnsupported is matched where the pool is of a kind, or the daemon of an age, that cannot take the disk.
	ErrUnsupported = errors.New("unsupported by this libvirt host")
	// ErrVerify is matched where the volume is not what was sent.
	ErrVerify = errors.New("the volume is not what was sent")
)

// Options say what a volume holds. The zero value is of no use: Format must be given.
type Options struct {
	// Format is of the file that is sent: "qcow2" or "raw".
	Format string
	// Capacity is the guest's size in bytes; 0 if it is not known. The volume is held against it at the end.
	Capacity int64
	// Size is for Check: how many bytes of the pool the file will take, or 0 if that is not known yet.
	Size int64
	// Force permits a volume of the name to be replaced.
	Force bool
	// Progress, if not nil, is called with the bytes of the file that are done, from one goroutine at a time.
	Progress func(done int64)
}

// Result is what was made.
type Result struct {
	// Path is the volume's on its host.
	Path string
	// Size is the file's, Allocation what it takes of the pool, Capacity the guest's size, in bytes, the last two as
	// libvirt says.
	Size, Allocation, Capacity int64
	// Swap is how the volume got its name: "rename" or "copy".
	Swap string
}

// LeftError is a failure after which not all is as it was before, as with every error of Upload that is none.
type LeftError struct {
	Err   error
	state string
}

func (e *LeftError) Error() string { return e.Err.Error() + "; " + e.state }
func (e *LeftError) Unwrap() error { return e.Err }

// State says what is there now: of the volume that was to be made or replaced, and of what was made on the way.
func (e *LeftError) State() string { return e.state }

// headSize is how much of the disk's beginning is sent last. What is without it is no disk, of whatever format.
const headSize = 64 << 10

func (o Options) check() error {
	if o.Format != "qcow2" && o.Format != "raw" {
		return usagef("a volume's format is qcow2 or raw, and not %q", o.Format)
	}
	return nil
}

// Check refuses a destination that cannot be used, before any work is done: it connects, and looks at the pool, its free
// space and what has the volume's name. Nothing is changed but what libvirt knows: it looks at the pool anew. Errors match ErrUsage, ErrExists, ErrInUse, ErrNoSpace
// or ErrUnsupported, or are those of the connection.
func Check(ctx context.Context, d Dest, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	s, err := open(ctx, d)
	if err != nil {
		return err
	}
	defer s.close()
	if _, err := s.prepare(o); err != nil {
		return err
	}
	return s.room(o.Size, "the disk")
}

// prepare finds the pool, and the volume that is to be replaced, if there is one.
func (s *session) prepare(o Options) (old *volume, err error) {
	if err := s.findPool(o.Format); err != nil {
		return nil, err
	}
	// Files that came and went behind libvirt's back count. If the pool is busy, they are found at the end.
	if err := s.refresh(0); err != nil && !busy(err) {
		return nil, err
	}
	if old, err = s.find(s.d.volume); err != nil || old == nil {
		return nil, err
	}
	if !o.Force {
		return nil, fmt.Errorf("volume %s in pool %s: %w; --force replaces it", s.d.volume, s.d.pool, ErrExists)
	}
	if old.Type != "file" && old.Type != "block" && old.Type != "" {
		return nil, fmt.Errorf("%w: the volume %s is of type %s, which is never replaced", ErrUnsupported, s.d.volume, old.Type)
	}
	return old, s.checkUnused(old)
}

// upload is one in the making.
type upload struct {
	*session
	o    Options
	src  qcow.Source
	size int64
	temp *volume // nil until its creation was asked for
	old  *volume // what has the name
	swap swapper
	// What came of the swap, as far as it is known.
	renaming, removing, copying, copied, placed bool
}

// Upload makes the volume out of the bytes of src, which are those of a qcow2 or raw file. Until it is whole the volume
// has a name of its own, nodebake-*.part; the package's documentation says how it gets its name, and what is seen
// meanwhile. Holes of src (qcow.NewFileSource knows them) and blocks of zeros are not sent and take no space, but in a
// pool of block devices.
//
// It ends early with ctx's error. In any case but a crash, nothing is left behind, or the error is a *LeftError that says
// what. Errors match those of Check, and ErrVerify.
func Upload(ctx context.Context, d Dest, src qcow.Source, o Options) (Result, error) {
	if err := o.check(); err != nil {
		return Result{}, err
	}
	if src.Size() <= 0 {
		return Result{}, usagef("the disk is empty")
	}
	s, err := open(ctx, d)
	if err != nil {
		return Result{}, err
	}
	defer s.close()
	u := &upload{session: s, o: o, src: src, size: src.Size()}
	if u.old, err = s.prepare(o); err != nil {
		return Result{}, err
	}
	if err = u.send(); err == nil {
		err = u.place()
	}
	if err != nil {
		return Result{}, u.takeBack(ctx, err)
	}
	r, err := u.verify()
	if err != nil && !errors.Is(err, ErrVerify) {
		err = &LeftError{err, u.inPlace()}
	}
	return r, err
}

// create makes an empty raw volume. That libvirt takes it for raw keeps it from having opinions on its bytes.
func (u *upload) create(name string) (*volume, error) {
	text, err := u.newVolume(name, u.size)
	if err != nil {
		return nil, err
	}
	u.temp = &volume{StorageVol: golibvirt.StorageVol{Pool: u.pool.Name, Name: name}}
	v, err := u.StorageVolCreateXML(u.pool, text, 0)
	if err != nil {
		return nil, u.failed(err, "creating the volume %s in pool %s", name, u.d.pool)
	}
	u.temp.StorageVol = v
	d, err := u.describe(v)
	if err != nil {
		return nil, u.failed(err, "looking at the new volume %s", name)
	}
	return d, nil
}

// newVolume describes a raw volume, which belongs to whom the old one belongs.
func (u *upload) newVolume(name string, bytes int64) (string, error) {
	type size struct {
		Unit  string `xml:"unit,attr"`
		Bytes int64  `xml:",chardata"`
	}
	v := struct {
		XMLName     xml.Name     `xml:"volume"`
		Name        string       `xml:"name"`
		Allocation  size         `xml:"allocation"`
		Capacity    size         `xml:"capacity"`
		Format      format       `xml:"target>format"`
		Permissions *permissions `xml:"target>permissions"`
	}{Name: name, Allocation: size{"bytes", 0}, Capacity: size{"bytes", bytes}, Format: format{"raw"}}
	if !u.kind.files {
		v.Allocation.Bytes = bytes // or a logical volume would be a snapshot of nothing
	}
	if u.old != nil {
		v.Permissions = &u.old.Permissions
	}
	text, err := xml.Marshal(v)
	return string(text), err
}

// send brings all of the disk but its head to the host, and reads samples of it back.
func (u *upload) send() error {
	data := u.dataBytes()
	if err := u.room(data, "the disk"); err != nil {
		return err
	}
	var random [8]byte
	rand.Read(random[:])
	temp, err := u.create(fmt.Sprintf("nodebake-%x.part", random))
	if err != nil {
		return err
	}
	u.temp = temp
	u.swap = u.chooseSwap()
	if u.swap.copies {
		if u.old != nil {
			data -= u.old.Allocation
		}
		if err := u.room(2*data, "the disk and the copy that becomes the volume"); err != nil {
			return err
		}
	}
	samples, err := u.put(u.temp.StorageVol, headSize, u.size, u.kind.files)
	if err != nil {
		return u.failed(err, "sending the disk to volume %s in pool %s", u.temp.Name, u.d.pool)
	}
	if u.o.Progress != nil {
		u.o.Progress(u.size)
	}
	return u.readBack(u.temp.StorageVol, samples)
}

// putHead makes a disk of what has all but the head.
func (u *upload) putHead(v golibvirt.StorageVol) error {
	samples, err := u.put(v, 0, min(headSize, u.size), false)
	if err != nil {
		return u.failed(err, "sending the beginning of the disk to volume %s in pool %s", v.Name, u.d.pool)
	}
	return u.readBack(v, samples)
}

type extentSource interface {
	Extents(off, length int64) iter.Seq2[qcow.Extent, error]
}

// extents lists where src may hold data.
func (u *upload) extents(off, length int64) iter.Seq2[qcow.Extent, error] {
	if x, ok := u.src.(extentSource); ok {
		return x.Extents(off, length)
	}
	return qcow.OpenRaw(u.src).Extents(off, length)
}

// dataBytes is how many bytes of the pool the disk takes at most.
func (u *upload) dataBytes() int64 {
	if !u.kind.files {
		return u.size
	}
	var n int64
	for e, err := range u.extents(0, u.size) {
		if err != nil {
			return u.size
		}
		if e.Kind == qcow.Data || e.Kind == qcow.Compressed {
			n += e.Length
		}
	}
	return n
}

// sample is a piece of what was sent.
type sample struct {
	off  int64
	data []byte
}

const (
	maxSamples = 16
	sampleSize = 4096
)

// put sends the bytes of src from off to end to a volume, at the same place. If sparse, zeros are sent as holes: at
// each of them libvirt cuts the file off, so what follows end is lost.
func (u *upload) put(v golibvirt.StorageVol, off, end int64, sparse bool) (samples []sample, err error) {
	if off >= end {
		return nil, nil
	}
	flags := uint32(0)
	if sparse {
		flags = flagSparse
	}
	w := &writer{sparse: sparse, every: max((end-off)/maxSamples, 1), next: off, buf: make([]byte, headerSize+maxPayload), from: off}
	if w.s, err = u.conn.openStream(procUpload, v, off, end-off, flags); err != nil {
		return nil, err
	}
	defer w.s.close()
	for e, err := range u.extents(off, end-off) {
		if err != nil {
			return nil, fmt.Errorf("reading the disk: %w", err)
		}
		stop := min(e.Start+e.Length, end)
		if sparse && (e.Kind == qcow.Hole || e.Kind == qcow.Zero) {
			continue
		}
		for at := max(e.Start, off); at < stop; {
			if err := u.ctx.Err(); err != nil {
				return nil, err
			}
			n := min(stop-at, maxPayload&^(block-1))
			if err := w.copy(u.src, at, int(n)); err != nil {
				return nil, err
			}
			if at += n; u.o.Progress != nil && off > 0 {
				u.o.Progress(at)
			}
		}
	}
	if err := w.holeTo(end); err != nil {
		return nil, err
	}
	if err := w.s.finish(); err != nil {
		return nil, err
	}
	return w.samples, nil
}

const block = 4096

// writer sends a range of the disk in order.
type writer struct {
	s       *stream
	sparse  bool
	from    int64 // all before it is sent
	buf     []byte
	next    int64 // where the next sample is due
	every   int64
	samples []sample
}

// copy sends n bytes of src, which fit into the buffer.
func (w *writer) copy(src io.ReaderAt, off int64, n int) error {
	p := w.buf[headerSize:][:n]
	if m, err := src.ReadAt(p, off); m < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading the disk at byte %d: %w", off+int64(m), err)
	}
	if !w.sparse {
		return w.data(off, p)
	}
	for start := 0; start < n; {
		end := start
		zero := qcow.IsZero(p[start:min(start+block, n)])
		for end < n && qcow.IsZero(p[end:min(end+block, n)]) == zero {
			end = min(end+block, n)
		}
		if !zero {
			if err := w.data(off+int64(start), p[start:end]); err != nil {
				return err
			}
		}
		start = end
	}
	return nil
}

// data sends p, which lies in w.buf with room for a header before it.
func (w *writer) data(off int64, p []byte) error {
	if err := w.holeTo(off); err != nil {
		return err
	}
	if off >= w.next && len(w.samples) < maxSamples {
		w.samples = append(w.samples, sample{off, bytes.Clone(p[:min(len(p), sampleSize)])})
		w.next = off + w.every
	}
	at := cap(w.buf) - cap(p)
	// The header lies over bytes that were sent already.
	if err := w.sending(w.s.send(socket.Stream, socket.StatusContinue, w.buf[at-headerSize:at+len(p)])); err != nil {
		return err
	}
	w.from = off + int64(len(p))
	return nil
}

func (w *writer) holeTo(off int64) error {
	if off <= w.from {
		return nil
	}
	if err := w.sending(w.s.skip(off - w.from)); err != nil {
		return err
	}
	w.from = off
	return nil
}

// sending prefers what the daemon says to what came of not listening.
func (w *writer) sending(err error) error {
	if refused := w.s.refused(); refused != nil {
		return refused
	}
	return err
}

// readBack compares samples with what the volume holds.
func (u *upload) readBack(v golibvirt.StorageVol, samples []sample) error {
	for _, s := range samples {
		got, err := u.conn.download(v, s.off, len(s.data))
		if err != nil {
			return u.failed(err, "reading volume %s back", v.Name)
		}
		if !bytes.Equal(got, s.data) {
			return fmt.Errorf("%w: volume %s reads differently at byte %d", ErrVerify, v.Name, s.off)
		}
	}
	return nil
}

// place gives the volume its name.
func (u *upload) place() error {
	// What was not there, or not in use, may be so after the minutes that the upload took.
	old, err := u.find(u.d.volume)
	if err != nil {
		return err
	}
	switch {
	case old != nil && !u.o.Force:
		return fmt.Errorf("volume %s in pool %s: %w, since the upload began", u.d.volume, u.d.pool, ErrExists)
	case old != nil:
		if err := u.checkUnused(old); err != nil {
			return err
		}
	}
	u.old = old
	if u.swap.copies {
		err = u.copyOver()
	} else {
		err = u.putHead(u.temp.StorageVol)
		if err == nil {
			err = u.checkSize(u.temp.StorageVol)
		}
		if err == nil {
			u.renaming = true
			err = u.swap.rename(u.ctx, u.o.Force)
		}
	}
	return err
}

// copyOver has the host copy the headless disk to the volume's name, as raw bytes, and completes the copy.
func (u *upload) copyOver() error {
	// A logical volume is larger than the disk: it has whole extents.
	text, err := u.newVolume(u.d.volume, max(u.size, u.temp.Capacity))
	if err != nil {
		return err
	}
	if u.old != nil {
		u.removing = true
		if err := u.patiently(busyTime, func() error { return u.StorageVolDelete(u.old.StorageVol, 0) }); err != nil {
			u.removing = !answered(err)
			return u.failed(err, "deleting the old volume %s in pool %s", u.d.volume, u.d.pool)
		}
	}
	u.copying = true
	v, err := u.clone(text)
	if err != nil {
		// A daemon that says no has made nothing, or taken it back; what has the name is another's.
		u.copying = !answered(err)
		if there, _ := u.find(u.d.volume); there != nil && !u.copying {
			return fmt.Errorf("volume %s in pool %s: %w, since the upload began", u.d.volume, u.d.pool, ErrExists)
		}
		return u.failed(err, "copying volume %s to %s on the host", u.temp.Name, u.d.volume)
	}
	u.copied = true
	if err := u.putHead(v); err != nil {
		return err
	}
	if err := u.checkSize(v); err != nil {
		return err
	}
	u.placed = true
	if err := u.patiently(busyTime, func() error { return u.StorageVolDelete(u.temp.StorageVol, 0) }); err != nil {
		return u.failed(err, "deleting the temporary volume %s in pool %s", u.temp.Name, u.d.pool)
	}
	return nil
}

// answered says whether a call failed because the daemon says so, as against for want of an answer.
func answered(err error) bool {
	var e golibvirt.Error
	return errors.As(err, &e)
}

// clone shares the blocks of the temporary volume where the filesystem can.
func (u *upload) clone(text string) (v golibvirt.StorageVol, err error) {
	try := func(flags golibvirt.StorageVolCreateFlags) error {
		return u.patiently(busyTime, func() error {
			v, err = u.StorageVolCreateXMLFrom(u.pool, text, u.temp.StorageVol, flags)
			return err
		})
	}
	if u.kind.files && try(golibvirt.StorageVolCreateReflink) == nil {
		return v, nil
	}
	if u.ctx.Err() != nil {
		return v, err
	}
	return v, try(0)
}

// checkSize holds a volume's size against the disk's.
func (u *upload) checkSize(v golibvirt.StorageVol) error {
	_, _, physical, err := u.StorageVolGetInfoFlags(v, uint32(golibvirt.StorageVolGetPhysical))
	if err != nil {
		return u.failed(err, "looking at volume %s", v.Name)
	}
	if n := int64(physical); u.kind.files && n != u.size || n < u.size {
		return fmt.Errorf("%w: volume %s has %d bytes, and %d were sent", ErrVerify, v.Name, n, u.size)
	}
	return nil
}

// verify has libvirt look at the pool, and holds what it says of the volume against what was sent.
func (u *upload) verify() (Result, error) {
	if err := u.refresh(busyTime); err != nil {
		return Result{}, err
	}
	v, err := u.find(u.d.volume)
	if err != nil {
		return Result{}, err
	}
	if v == nil {
		return Result{}, fmt.Errorf("%w: pool %s shows no volume %s after the upload", ErrVerify, u.d.pool, u.d.volume)
	}
	if err := u.checkSize(v.StorageVol); err != nil {
		return Result{}, err
	}
	r := Result{Path: v.Path, Size: u.size, Allocation: v.Allocation, Capacity: v.Capacity, Swap: "rename"}
	if u.swap.copies {
		r.Swap = "copy"
	}
	switch {
	// What libvirt makes of the contents of a raw disk is its own affair.
	case u.o.Format == "qcow2" && v.Format.Type != "qcow2":
		return r, fmt.Errorf("%w: libvirt takes volume %s for %s and not qcow2", ErrVerify, u.d.volume, v.Format.Type)
	case u.kind.files && v.Format.Type == u.o.Format && u.o.Capacity > 0 && r.Capacity != u.o.Capacity:
		return r, fmt.Errorf("%w: libvirt takes volume %s for a disk of %d bytes and not %d", ErrVerify, u.d.volume, r.Capacity, u.o.Capacity)
	}
	return r, nil
}

// takeBack removes what a failed upload has made, over a new connection, for the old one may be what failed. It gives
// back the error with what is not as it was.
func (u *upload) takeBack(ctx context.Context, failure error) error {
	if u.temp == nil {
		return failure
	}
	u.close()
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), cleanTime, fmt.Errorf("no answer within %v", cleanTime))
	defer cancel()
	s, err := open(ctx, u.d)
	if err == nil {
		defer s.close()
		err = s.findPool(u.o.Format)
	}
	left := u.temp.Name
	if err == nil && (u.renaming || u.removing || u.copying) {
		var more string
		if more, err = u.settle(s); more != "" {
			left += " and " + more
		}
	}
	if u.removing && !u.placed {
		// The temporary volume is the only one that is left of the two.
		if err == nil {
			again := *u
			again.session = s
			err = again.putHead(u.temp.StorageVol)
		}
		if err != nil {
			return &LeftError{failure, fmt.Sprintf("the old volume may be gone, and of the new one %s is in pool %s, without its first %d bytes: %v", left, u.d.pool, headSize, err)}
		}
		return &LeftError{failure, fmt.Sprintf("the old volume is gone, and the new disk is the volume %s in pool %s, whole", left, u.d.pool)}
	}
	if err == nil {
		// Whether the daemon has begun with what it was last asked is not known if it did not answer.
		err = s.remove(u.temp.Name, u.temp.Path == "")
	}
	switch {
	case err != nil && u.placed:
		return &LeftError{failure, fmt.Sprintf("%s; %s is left there, too, and could not be deleted: %v", u.inPlace(), left, err)}
	case err != nil:
		return &LeftError{failure, fmt.Sprintf("left in pool %s: %s, which could not be deleted: %v", u.d.pool, left, err)}
	case u.placed:
		return &LeftError{failure, u.inPlace()}
	}
	return failure
}

func (u *upload) inPlace() string {
	return fmt.Sprintf("the new disk is in its place, volume %s in pool %s; `virsh -c '%s' pool-refresh %[2]s` has libvirt look at it", u.d.volume, u.d.pool, u.d.URI())
}

// settle finds out over a new connection what came of a swap that ended without an answer, and removes a copy that is
// not whole; left is its name if it is still there.
func (u *upload) settle(s *session) (left string, err error) {
	if err := s.refresh(cleanTime); err != nil && !busy(err) {
		return "", err
	}
	if u.placed {
		return "", nil
	}
	if u.renaming {
		v, err := s.find(u.temp.Name)
		u.placed = err == nil && v == nil
		return "", err
	}
	v, err := s.find(u.d.volume)
	if err != nil {
		return "", err
	}
	if v != nil && u.copying {
		if !u.copied {
			// It is the copy if it is headless. That can be told when the daemon is ready with it.
			var head []byte
			err := s.patiently(cleanTime, func() (err error) {
				head, err = s.conn.download(v.StorageVol, 0, int(min(headSize, u.size)))
				return err
			})
			if err != nil || !qcow.IsZero(head) {
				return u.d.volume, err
			}
		}
		if err := s.remove(u.d.volume, false); err != nil {
			return u.d.volume, err
		}
	} else if v != nil {
		u.removing = false // the old volume is there still
	}
	return "", nil
}

// remove deletes a volume if it is there. Where it may be about to be created, that is waited for a little.
func (s *session) remove(name string, wait bool) error {
	for range 10 {
		v, err := s.StorageVolLookupByName(s.pool, name)
		if err == nil {
			return s.patiently(cleanTime, func() error { return s.StorageVolDelete(v, 0) })
		}
		if !isCode(err, golibvirt.ErrNoStorageVol) {
			return err
		}
		if !wait {
			return nil
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}
