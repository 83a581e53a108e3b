package libvirt

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"golang.org/x/sys/unix"
)

const (
	connectTime = 30 * time.Second // until a daemon has answered
	cleanTime   = 15 * time.Second // to take back what a failed upload has made
	busyTime    = time.Minute      // to wait for a pool that another client keeps busy
)

// oldest is the libvirt that has sparse streams, as ConnectGetLibVersion writes 3.4.0.
const oldest = 3004000

// session is a connection to a daemon. It ends with its context. One goroutine at a time.
type session struct {
	d    Dest
	ctx  context.Context
	conn *conn
	*golibvirt.Libvirt
	stop func() bool

	pool golibvirt.StoragePool
	kind poolKind
}

// open connects and logs in.
func open(ctx context.Context, d Dest) (*session, error) {
	fail := func(err error) (*session, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("libvirt at %s: %w", d.URI(), err)
	}
	late := fmt.Errorf("no answer within %v", connectTime)
	soon, cancel := context.WithTimeoutCause(ctx, connectTime, late)
	defer cancel()
	l, err := dial(soon, d)
	if err != nil {
		if soon.Err() != nil {
			err = late
		}
		return fail(err)
	}
	s := &session{d: d, ctx: ctx, conn: newConn(l)}
	stopSoon := context.AfterFunc(soon, func() { l.Close() })
	s.Libvirt = golibvirt.NewWithDialer(dialers.NewAlreadyConnected(s.conn))
	name := "qemu://" + d.path()
	if err := s.ConnectToURI(golibvirt.ConnectURI(name)); err != nil {
		l.Close()
		if soon.Err() != nil {
			return fail(late)
		}
		return fail(s.loginError(err))
	}
	s.stop = context.AfterFunc(ctx, func() { l.Close() })
	if !stopSoon() {
		s.stop()
		return fail(late)
	}
	return s, nil
}

// loginError says what this client lacks where a daemon wants more than it has.
func (s *session) loginError(err error) error {
	switch {
	case isCode(err, golibvirt.ErrAuthFailed, golibvirt.ErrAuthUnavailable, golibvirt.ErrAuthCancelled), strings.Contains(err.Error(), "authentication required"):
		if s.d.transport == "unix" {
			return fmt.Errorf("%w: this user may not manage the host; polkit lets members of the group libvirt and root", err)
		}
		return fmt.Errorf("%w: the daemon wants a login by SASL, which is not supported; qemu+ssh and qemu+tls with certificates are", err)
	}
	return s.lost(err)
}

// lost says why a call had no answer, where that was so.
func (s *session) lost(err error) error {
	if !errors.Is(err, golibvirt.ErrInterrupted) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	switch {
	case s.conn.failed == nil:
		return errors.New("the daemon ended the connection")
	case errors.Is(s.conn.failed, io.EOF):
		return fmt.Errorf("the daemon ended the connection (%w)", s.conn.failed)
	}
	return fmt.Errorf("the connection was lost: %w", s.conn.failed)
}

// failed gives an error of a call its context: the end of s's, or what was being done.
func (s *session) failed(err error, format string, a ...any) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if strings.Contains(strings.ToLower(err.Error()), unix.ENOSPC.Error()) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return fmt.Errorf(format+": %w", append(a, s.lost(err))...)
}

func (s *session) close() {
	s.stop()
	// A daemon that is told so does not log a lost connection.
	late := time.AfterFunc(2*time.Second, func() { s.conn.Close() })
	defer late.Stop()
	s.ConnectClose()
	s.conn.Close()
}

func isCode(err error, codes ...golibvirt.ErrorNumber) bool {
	var e golibvirt.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == uint32(c) {
			return true
		}
	}
	return false
}

// busy says whether libvirt refuses a call only because another one is under way.
func busy(err error) bool {
	if !isCode(err, golibvirt.ErrInternalError, golibvirt.ErrOperationInvalid, golibvirt.ErrOperationFailed) {
		return false
	}
	for _, sign := range []string{"asynchronous jobs running", "still in use", "still being allocated", "being started"} {
		if strings.Contains(err.Error(), sign) {
			return true
		}
	}
	return false
}

// patiently calls f until it finds libvirt not busy.
func (s *session) patiently(limit time.Duration, f func() error) error {
	end := time.Now().Add(limit)
	for {
		err := f()
		if err == nil || !busy(err) || time.Now().After(end) {
			return err
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// poolKind is what pools of a type can do.
type poolKind struct {
	files bool // volumes are files in a folder, of any format; else block devices, raw
}

var poolKinds = map[string]poolKind{"dir": {true}, "fs": {true}, "netfs": {true}, "logical": {false}}

// findPool looks the pool up and refuses one that cannot take the disk.
func (s *session) findPool(format string) error {
	version, err := s.ConnectGetLibVersion()
	if err != nil {
		return s.failed(err, "asking for libvirt's version")
	}
	if version < oldest {
		return fmt.Errorf("%w: libvirt %d.%d.%d there is older than 3.4.0, which is the first with sparse uploads", ErrUnsupported, version/1000000, version/1000%1000, version%1000)
	}
	s.pool, err = s.StoragePoolLookupByName(s.d.pool)
	if isCode(err, golibvirt.ErrNoStoragePool) {
		return fmt.Errorf("there is no storage pool %q at %s; %s", s.d.pool, s.d.URI(), s.poolNames())
	}
	if err != nil {
		return s.failed(err, "looking for pool %s", s.d.pool)
	}
	text, err := s.StoragePoolGetXMLDesc(s.pool, 0)
	if err != nil {
		return s.failed(err, "looking at pool %s", s.d.pool)
	}
	var p struct {
		Type string `xml:"type,attr"`
	}
	if err := xml.Unmarshal([]byte(text), &p); err != nil {
		return fmt.Errorf("the description of pool %s: %w", s.d.pool, err)
	}
	var known bool
	switch s.kind, known = poolKinds[p.Type]; {
	case !known:
		return fmt.Errorf("%w: pool %s is of type %s, into which libvirt cannot upload a new volume of a given name; pools of type dir, fs, netfs and, for raw disks, logical are possible", ErrUnsupported, s.d.pool, p.Type)
	case !s.kind.files && format != "raw":
		return fmt.Errorf("%w: pool %s is of type %s, whose volumes are block devices that hold raw disks; a %s needs a pool of type dir", ErrUnsupported, s.d.pool, p.Type, format)
	}
	state, _, _, _, err := s.StoragePoolGetInfo(s.pool)
	if err != nil {
		return s.failed(err, "looking at pool %s", s.d.pool)
	}
	if golibvirt.StoragePoolState(state) != golibvirt.StoragePoolRunning {
		return fmt.Errorf("the storage pool %s is not active; `virsh -c '%s' pool-start %[1]s` starts it", s.d.pool, s.d.URI())
	}
	return nil
}

// refresh has libvirt look at the pool's folder anew.
func (s *session) refresh(limit time.Duration) error {
	err := s.patiently(limit, func() error { return s.StoragePoolRefresh(s.pool, 0) })
	if err != nil {
		return s.failed(err, "refreshing pool %s", s.d.pool)
	}
	return nil
}

func (s *session) poolNames() string {
	pools, _, err := s.ConnectListAllStoragePools(1, 0)
	if err != nil || len(pools) == 0 {
		return "there is none at all"
	}
	names := make([]string, 0, 10)
	for _, p := range pools[:min(len(pools), cap(names))] {
		names = append(names, p.Name)
	}
	return "there are " + strings.Join(names, ", ")
}

// volume is what a volume's description says.
type volume struct {
	golibvirt.StorageVol `xml:"-"`
	Type                 string      `xml:"type,attr"`
	Allocation           int64       `xml:"allocation"`
	Capacity             int64       `xml:"capacity"`
	Path                 string      `xml:"target>path"`
	Format               format      `xml:"target>format"`
	Permissions          permissions `xml:"target>permissions"`
	Backing              string      `xml:"backingStore>path"`
}

type format struct {
	Type string `xml:"type,attr"`
}

type permissions struct {
	Mode  string `xml:"mode,omitempty"`
	Owner string `xml:"owner,omitempty"`
	Group string `xml:"group,omitempty"`
	Label string `xml:"label,omitempty"`
}

func (s *session) describe(v golibvirt.StorageVol) (*volume, error) {
	text, err := s.StorageVolGetXMLDesc(v, 0)
	if err != nil {
		return nil, err
	}
	d := &volume{StorageVol: v}
	if err := xml.Unmarshal([]byte(text), d); err != nil {
		return nil, fmt.Errorf("the description of volume %s: %w", v.Name, err)
	}
	return d, nil
}

// find gives the volume of a name, nil if there is none.
func (s *session) find(name string) (*volume, error) {
	v, err := s.StorageVolLookupByName(s.pool, name)
	if isCode(err, golibvirt.ErrNoStorageVol) {
		return nil, nil
	}
	var d *volume
	if err == nil {
		d, err = s.describe(v)
	}
	if isCode(err, golibvirt.ErrNoStorageVol) {
		return nil, nil
	}
	if err != nil {
		return nil, s.failed(err, "looking for volume %s in pool %s", name, s.d.pool)
	}
	return d, nil
}

// same says whether two paths of the host are one file, as far as can be told from here.
func (s *session) same(a, b string) bool {
	if a == b {
		return true
	}
	if s.d.transport != "unix" {
		return false
	}
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// checkUnused refuses a volume that something would miss: a machine that runs, or sleeps in a file, or another volume
// that holds only what differs from it.
func (s *session) checkUnused(v *volume) error {
	for _, kind := range []struct {
		state string
		which golibvirt.ConnectListAllDomainsFlags
	}{{"running", golibvirt.ConnectListDomainsActive}, {"suspended to a file", golibvirt.ConnectListDomainsManagedsave}} {
		domains, _, err := s.ConnectListAllDomains(1, kind.which)
		if err != nil {
			return s.failed(err, "listing the machines")
		}
		for _, dom := range domains {
			text, err := s.DomainGetXMLDesc(dom, 0)
			if isCode(err, golibvirt.ErrNoDomain) {
				continue
			}
			if err != nil {
				return s.failed(err, "looking at machine %s", dom.Name)
			}
			used, err := s.uses(text, v)
			if err != nil {
				return fmt.Errorf("the description of machine %s: %w", dom.Name, err)
			}
			if used {
				return fmt.Errorf("volume %s in pool %s: %w: the machine %s has it as a disk and is %s; shut it down, or choose another name, for --force does not replace such a volume", v.Name, s.d.pool, ErrInUse, dom.Name, kind.state)
			}
		}
	}
	pools, _, err := s.ConnectListAllStoragePools(1, golibvirt.ConnectListStoragePoolsActive)
	if err != nil {
		return s.failed(err, "listing the pools")
	}
	for _, p := range pools {
		vols, _, err := s.StoragePoolListAllVolumes(p, 1, 0)
		if err != nil {
			// Pools that went away meanwhile, or that cannot be listed, hold no overlays of a file.
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			continue
		}
		for _, other := range vols {
			d, err := s.describe(other)
			if s.ctx.Err() != nil {
				return context.Cause(s.ctx)
			}
			if err == nil && d.Backing != "" && s.same(d.Backing, v.Path) {
				return fmt.Errorf("volume %s in pool %s: %w: the volume %s of pool %s is an overlay of it and would become unreadable; choose another name, for --force does not replace such a volume", v.Name, s.d.pool, ErrInUse, other.Name, p.Name)
			}
		}
	}
	return nil
}

// uses says whether a machine's description names the volume as a source, at any depth.
func (s *session) uses(domain string, v *volume) (bool, error) {
	dec := xml.NewDecoder(strings.NewReader(domain))
	for {
		t, err := dec.Token()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		e, ok := t.(xml.StartElement)
		if !ok || e.Name.Local != "source" {
			continue
		}
		a := map[string]string{}
		for _, attr := range e.Attr {
			a[attr.Name.Local] = attr.Value
		}
		if a["pool"] == s.pool.Name && a["volume"] == v.Name {
			return true, nil
		}
		for _, name := range []string{"file", "dev"} {
			if a[name] != "" && s.same(a[name], v.Path) {
				return true, nil
			}
		}
	}
}

// room refuses a disk that the pool has no space for.
func (s *session) room(need int64, why string) error {
	if need <= 0 {
		return nil
	}
	_, _, _, available, err := s.StoragePoolGetInfo(s.pool)
	if err != nil {
		return s.failed(err, "looking at pool %s", s.d.pool)
	}
	if uint64(need) > available {
		return fmt.Errorf("%w: pool %s has %d bytes free, and %d are needed for %s", ErrNoSpace, s.d.pool, available, need, why)
	}
	return nil
}
