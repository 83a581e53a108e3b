package lvm

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Sentinels that errors of this package match.
var (
	// ErrUnsupported is matched where a volume, group or device is whole, but of a kind that is not handled.
	ErrUnsupported = errors.New("unsupported LVM layout")
	// ErrCorrupt is matched where what is on a device contradicts itself.
	ErrCorrupt = errors.New("corrupt LVM metadata")
	// ErrNoSpace is matched where a group has too few free extents.
	ErrNoSpace = errors.New("not enough free extents")
	// ErrNotFound is matched where a group has no volume of a name, or no such physical volume.
	ErrNotFound = errors.New("not found in the volume group")
)

// PV is a physical volume's bytes: a partition or a whole disk.
type PV struct {
	Name string // for messages
	R    io.ReaderAt
	Size int64 // in bytes
}

// Group is a volume group. It is not safe for concurrent use while it grows.
type Group struct {
	Name       string
	UUID       string // with hyphens, as the tools print it
	ExtentSize int64  // in bytes
	Seqno      uint32
	// Volumes are all logical volumes in the metadata's order, hidden ones too.
	Volumes []Volume
	// PVs are places in the slice given to Open, in the metadata's order; -1 for one that was not there.
	PVs []int
	// Err is why no volume of this group can be mapped or grown, nil where they can; it matches ErrUnsupported.
	Err error

	src   string // the metadata text without its final NUL
	tree  *node  // the text's
	top   *node  // the group's section in tree
	parts []*physical
	lvs   []*logical
	// noGrowth is why nothing can grow although it can be read.
	noGrowth error
	policy   string
	changed  bool
}

// Volume is a logical volume.
type Volume struct {
	Name  string
	UUID  string // with hyphens
	Group string // the volume group's name
	Size  int64  // in bytes
	// Kind is "linear", or LVM's name of the segment type that stands in the way ("thin", "raid1"), or "origin",
	// "snapshot", "hidden", "stacked", "locked".
	Kind     string
	ReadOnly bool

	groupUUID string
}

// Paths are the device names by which an fstab or a kernel command line may call the volume.
func (v Volume) Paths() []string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	dm := double(v.Group) + "-" + double(v.Name)
	plain := func(s string) string { return strings.ReplaceAll(s, "-", "") }
	return []string{
		"/dev/" + v.Group + "/" + v.Name,
		"/dev/mapper/" + dm,
		"/dev/disk/by-id/dm-name-" + dm,
		"/dev/disk/by-id/dm-uuid-LVM-" + plain(v.groupUUID) + plain(v.UUID),
	}
}

// Segment is a run of a volume's bytes on one physical volume.
type Segment struct {
	PV     int   // place in the slice given to Open
	Start  int64 // byte on the physical volume
	Length int64 // bytes
	At     int64 // byte in the logical volume
}

// physical is a physical volume as the text has it.
type physical struct {
	node        *node
	dev         *device // nil where it is missing
	start       int64   // of the first extent, in bytes
	count       uint32  // extents
	devSize     uint64  // in sectors
	allocatable bool
	grown       bool
	used        []run // sorted
}

// run is a run of physical extents.
type run struct {
	pe, count uint32
	lv        *logical
}

// logical is a logical volume as the text has it.
type logical struct {
	node     *node
	name     string
	status   []string
	extents  uint32
	segments []extent
	why      error // why it is not mapped
	kind     string
	policy   string
	grown    bool
}

// extent is a segment of a volume; node is nil for a new one.
type extent struct {
	node  *node
	kind  string // without flags
	le    uint32 // first logical extent
	count uint32
	part  int // place in parts, for linear ones
	pe    uint32
}

// Open reads the volume groups on these physical volumes, in the order in which they are first met. A device without
// an LVM2 label, and a physical volume that belongs to no group, are passed over. A label or metadata that is damaged
// is an error matching ErrCorrupt, unless another copy of the metadata is whole: then the group can be read, not grown.
func Open(pvs []PV) ([]*Group, error) {
	if len(pvs) > maxPVs {
		return nil, fmt.Errorf("%w: %d devices", ErrUnsupported, len(pvs))
	}
	byUUID := map[string]*device{}
	var devices []*device
	for i, pv := range pvs {
		d, err := readDevice(pv, i)
		if err != nil {
			return nil, err
		}
		if d == nil {
			continue
		}
		if other := byUUID[d.uuid]; other != nil {
			return nil, fmt.Errorf("%w: %s and %s have the same UUID: one is a copy of the other", ErrUnsupported, other.Name, d.Name)
		}
		byUUID[d.uuid] = d
		devices = append(devices, d)
	}
	newest, err := newestTexts(devices)
	if err != nil {
		return nil, err
	}
	var groups []*Group
	claimed := map[*device]*Group{}
	for _, t := range newest {
		g, err := newGroup(t.src, byUUID)
		if err != nil {
			return nil, fmt.Errorf("metadata on %s: %w", t.from.Name, err)
		}
		for _, p := range g.parts {
			if p.dev == nil {
				continue
			}
			if other := claimed[p.dev]; other != nil {
				return nil, fmt.Errorf("%w: %s is in volume group %s and in %s", ErrCorrupt, p.dev.Name, other.Name, g.Name)
			}
			claimed[p.dev] = g
		}
		groups = append(groups, g)
	}
	for _, d := range devices {
		for _, m := range d.mdas {
			if m.damaged == nil {
				continue
			}
			g := claimed[d]
			if g == nil {
				return nil, m.damaged
			}
			g.noGrowth = m.damaged
		}
	}
	return groups, nil
}

// found is a group's newest text.
type found struct {
	id    string
	seqno uint64
	src   string
	from  *device
}

func newestTexts(devices []*device) ([]*found, error) {
	var list []*found
	byID := map[string]*found{}
	seen := map[string]bool{}
	for _, d := range devices {
		for _, m := range d.mdas {
			src := strings.TrimRight(string(m.copy), "\x00")
			if m.copy == nil || seen[src] {
				continue
			}
			seen[src] = true
			tree, err := parseText(src)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			top, err := groupSection(tree)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			seqno, err := top.number("seqno", math.MaxUint32)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.Name, err)
			}
			f := &found{top.word("id"), seqno, src, d}
			old := byID[f.id]
			switch {
			case old == nil:
				byID[f.id] = f
				list = append(list, f)
			case f.seqno > old.seqno:
				*old = *f
			case f.seqno == old.seqno:
				return nil, fmt.Errorf("%w: volume group %s: two different texts of sequence number %d, on %s and %s",
					ErrCorrupt, top.key, seqno, old.from.Name, d.Name)
			}
		}
	}
	return list, nil
}

func groupSection(tree *node) (*node, error) {
	var top *node
	for _, k := range tree.kids {
		if k.kind == section {
			if top != nil {
				return nil, fmt.Errorf("%w: the text has the sections %q and %q", ErrCorrupt, top.key, k.key)
			}
			top = k
		}
	}
	if top == nil {
		return nil, fmt.Errorf("%w: the text has no section", ErrCorrupt)
	}
	return top, nil
}

// newGroup reads a text against the devices there are.
func newGroup(src string, byUUID map[string]*device) (*Group, error) {
	tree, err := parseText(src)
	if err != nil {
		return nil, err
	}
	top, err := groupSection(tree)
	if err != nil {
		return nil, err
	}
	g := &Group{Name: top.key, UUID: top.word("id"), src: src, tree: tree, top: top}
	if !validName(g.Name) || !validUUID(strings.ReplaceAll(g.UUID, "-", "")) {
		return nil, fmt.Errorf("%w: volume group %q with UUID %q", ErrCorrupt, g.Name, g.UUID)
	}
	if err := g.read(byUUID); err != nil {
		return nil, fmt.Errorf("volume group %s: %w", g.Name, err)
	}
	return g, nil
}

func (g *Group) read(byUUID map[string]*device) error {
	seqno, err := g.top.number("seqno", math.MaxUint32)
	if err != nil {
		return err
	}
	g.Seqno = uint32(seqno)
	if f := g.top.word("format"); f != "" && f != "lvm2" {
		return fmt.Errorf("%w: format %q", ErrUnsupported, f)
	}
	size, err := g.top.number("extent_size", math.MaxUint32)
	if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("%w: extents of no size", ErrCorrupt)
	}
	g.ExtentSize = int64(size) * sectorSize
	g.policy = g.top.word("allocation_policy")
	status, err := g.top.words("status")
	if err != nil {
		return err
	}
	refuse := func(format string, args ...any) {
		if g.Err == nil {
			g.Err = fmt.Errorf("%w: volume group %s %s", ErrUnsupported, g.Name, fmt.Sprintf(format, args...))
		}
	}
	if t := g.top.word("lock_type"); t != "" && t != "none" {
		refuse("is shared (lock type %s)", t)
	}
	for _, s := range status {
		switch s {
		case "RESIZEABLE", "READ", "WRITE":
		case "EXPORTED":
			refuse("is exported (vgimport it first)")
		case "CLUSTERED":
			refuse("is clustered")
		default:
			refuse("has the status %q, which is unknown", s)
		}
	}
	if !slices.Contains(status, "WRITE") {
		g.noGrowth = fmt.Errorf("%w: volume group %s is read-only", ErrUnsupported, g.Name)
	} else if !slices.Contains(status, "RESIZEABLE") {
		g.noGrowth = fmt.Errorf("%w: volume group %s is not resizeable (vgchange --resizeable y makes it so)", ErrUnsupported, g.Name)
	}
	parts, err := g.top.sections("physical_volumes")
	if err != nil {
		return err
	}
	byKey := map[string]int{}
	for _, n := range parts {
		p, err := g.readPart(n, byUUID)
		if err != nil {
			return fmt.Errorf("physical volume %s: %w", n.key, err)
		}
		if p.dev == nil {
			refuse("lacks the physical volume %s (%s): it is on no disk given", n.word("id"), n.word("device"))
			g.PVs = append(g.PVs, -1)
		} else {
			if slices.Contains(g.PVs, p.dev.index) {
				return fmt.Errorf("%w: physical volume %s is there twice", ErrCorrupt, n.word("id"))
			}
			g.PVs = append(g.PVs, p.dev.index)
		}
		flags, err := n.words("flags")
		if err != nil {
			return err
		}
		if slices.Contains(flags, "MISSING") {
			refuse("has the physical volume %s marked as missing", n.word("id"))
		}
		byKey[n.key] = len(g.parts)
		g.parts = append(g.parts, p)
	}
	return g.readVolumes(byKey)
}

func (g *Group) readPart(n *node, byUUID map[string]*device) (*physical, error) {
	start, err := n.number("pe_start", 1<<53)
	if err != nil {
		return nil, err
	}
	count, err := n.number("pe_count", math.MaxUint32)
	if err != nil {
		return nil, err
	}
	p := &physical{node: n, start: int64(start) * sectorSize, count: uint32(count)}
	if n.get("dev_size") != nil {
		if p.devSize, err = n.number("dev_size", 1<<55); err != nil {
			return nil, err
		}
	}
	status, err := n.words("status")
	if err != nil {
		return nil, err
	}
	p.allocatable = slices.Contains(status, "ALLOCATABLE")
	p.dev = byUUID[strings.ReplaceAll(n.word("id"), "-", "")]
	if p.dev == nil {
		return p, nil
	}
	if p.start > p.dev.Size || int64(count) > (p.dev.Size-p.start)/g.ExtentSize {
		return nil, fmt.Errorf("%w: %d extents of %d bytes from byte %d on end past %s (%d bytes): it is cut short, or was resized by hand",
			ErrCorrupt, count, g.ExtentSize, p.start, p.dev.Name, p.dev.Size)
	}
	extents := p.extents(g.ExtentSize)
	if extents.size > 0 && p.start < labelScan*sectorSize {
		return nil, fmt.Errorf("%w: extents start at byte %d, over the label", ErrCorrupt, p.start)
	}
	for _, m := range p.dev.mdas {
		if m.overlaps(extents) {
			return nil, fmt.Errorf("%w: extents lie over the metadata area at byte %d of %s", ErrCorrupt, m.offset, p.dev.Name)
		}
	}
	return p, nil
}

// extents is the place of all extents on the device.
func (p *physical) extents(size int64) area { return area{p.start, int64(p.count) * size} }

func (g *Group) readVolumes(parts map[string]int) error {
	nodes, err := g.top.sections("logical_volumes")
	if err != nil {
		return err
	}
	byName := map[string]*logical{}
	for _, n := range nodes {
		if !validName(n.key) {
			return fmt.Errorf("%w: logical volume %q", ErrCorrupt, n.key)
		}
		lv := &logical{node: n, name: n.key, policy: n.word("allocation_policy")}
		byName[n.key] = lv
		g.lvs = append(g.lvs, lv)
		if err := g.readVolume(lv, parts); err != nil {
			return fmt.Errorf("logical volume %s: %w", lv.name, err)
		}
	}
	for _, p := range g.parts {
		slices.SortFunc(p.used, func(a, b run) int { return cmp.Compare(a.pe, b.pe) })
		for i, r := range p.used {
			if i > 0 && p.used[i-1].pe+p.used[i-1].count > r.pe {
				return fmt.Errorf("%w: logical volumes %s and %s share extent %d of %s", ErrCorrupt, p.used[i-1].lv.name, r.lv.name, r.pe, p.node.key)
			}
		}
	}
	g.classify(byName)
	for _, lv := range g.lvs {
		g.Volumes = append(g.Volumes, Volume{Name: lv.name, UUID: lv.node.word("id"), Group: g.Name, groupUUID: g.UUID,
			Size: int64(lv.extents) * g.ExtentSize, Kind: lv.kind, ReadOnly: !slices.Contains(lv.status, "WRITE")})
	}
	return nil
}

func (g *Group) readVolume(lv *logical, parts map[string]int) error {
	var err error
	if id := lv.node.word("id"); !validUUID(strings.ReplaceAll(id, "-", "")) {
		return fmt.Errorf("%w: UUID %q", ErrCorrupt, id)
	}
	if lv.status, err = lv.node.words("status"); err != nil {
		return err
	}
	want, err := lv.node.number("segment_count", maxNodes)
	if err != nil {
		return err
	}
	for _, k := range lv.node.kids {
		if k.kind != section {
			continue
		}
		s := extent{node: k, part: -1}
		le, err := k.number("start_extent", math.MaxUint32)
		if err != nil {
			return err
		}
		count, err := k.number("extent_count", math.MaxUint32)
		if err != nil {
			return err
		}
		s.le, s.count, s.kind = uint32(le), uint32(count), k.word("type")
		if s.kind == "linear" {
			s.kind = "striped"
		}
		if err := g.readAreas(lv, &s, parts); err != nil {
			return fmt.Errorf("%s: %w", k.key, err)
		}
		lv.segments = append(lv.segments, s)
	}
	if uint64(len(lv.segments)) != want {
		return fmt.Errorf("%w: %d segments, not %d", ErrCorrupt, len(lv.segments), want)
	}
	slices.SortStableFunc(lv.segments, func(a, b extent) int { return cmp.Compare(a.le, b.le) })
	var next uint64
	for _, s := range lv.segments {
		if s.count == 0 || uint64(s.le) != next {
			return fmt.Errorf("%w: the segment at extent %d should start at %d and not be empty", ErrCorrupt, s.le, next)
		}
		next += uint64(s.count)
	}
	if next > math.MaxUint32 || int64(next) > math.MaxInt64/2/g.ExtentSize {
		return fmt.Errorf("%w: %d extents", ErrCorrupt, next)
	}
	lv.extents = uint32(next)
	return nil
}

// readAreas notes which physical extents a segment takes, and for a linear one, where it lies.
func (g *Group) readAreas(lv *logical, s *extent, parts map[string]int) error {
	length := s.count
	stripes := uint64(1)
	if s.kind == "striped" {
		var err error
		if stripes, err = s.node.number("stripe_count", math.MaxUint32); err != nil {
			return err
		}
		if stripes == 0 || uint64(s.count)%stripes != 0 {
			return fmt.Errorf("%w: %d extents over %d stripes", ErrCorrupt, s.count, stripes)
		}
		length = uint32(uint64(s.count) / stripes)
		if a := s.node.get("stripes"); a == nil || a.kind != array || uint64(len(a.kids)) != 2*stripes {
			return fmt.Errorf("%w: stripes is not a list of %d areas", ErrCorrupt, stripes)
		}
	}
	for _, k := range s.node.kids {
		if k.kind != array || k.key == "tags" {
			continue
		}
		for i := 0; i+1 < len(k.kids); i++ {
			name, pe := k.kids[i], k.kids[i+1]
			if name.kind != text || pe.kind != integer {
				continue
			}
			at, ok := parts[name.str]
			if !ok {
				continue
			}
			p := g.parts[at]
			if s.kind != "striped" && s.kind != "mirror" {
				g.noGrowth = fmt.Errorf("%w: %s/%s is of type %q: how much space it takes is not known",
					ErrUnsupported, g.Name, lv.name, s.kind)
				continue
			}
			if pe.num > uint64(p.count) || uint64(length) > uint64(p.count)-pe.num {
				return fmt.Errorf("%w: extents %d to %d of %s, which has %d", ErrCorrupt, pe.num, pe.num+uint64(length), name.str, p.count)
			}
			p.used = append(p.used, run{uint32(pe.num), length, lv})
			if s.kind == "striped" && stripes == 1 && k.key == "stripes" {
				s.part, s.pe = at, uint32(pe.num)
			}
		}
	}
	return nil
}

// classify says of each volume whether it is mapped, and if not, why.
func (g *Group) classify(byName map[string]*logical) {
	// A volume that another refers to is a part of it, whatever it looks like by itself.
	for _, lv := range g.lvs {
		for _, s := range lv.segments {
			for _, k := range s.node.kids {
				switch k.key {
				case "type", "tags", "cache_mode", "policy", "discards":
					continue
				}
				values := k.kids
				if k.kind == section {
					continue
				} else if k.kind != array {
					values = []*node{k}
				}
				for _, v := range values {
					if v.kind != text || v.str == "" {
						continue
					}
					if used := byName[v.str]; used != nil && used != lv && !(s.kind == "striped" && s.part >= 0) {
						g.referred(used, lv, s, k.key)
					}
				}
			}
		}
	}
	for _, lv := range g.lvs {
		if lv.why == nil {
			g.judge(lv)
		}
		if lv.why == nil {
			lv.kind = "linear"
		}
	}
}

func (g *Group) refuse(lv *logical, kind, format string, args ...any) {
	if lv.why == nil {
		lv.kind = kind
		lv.why = fmt.Errorf("%w: %s/%s %s", ErrUnsupported, g.Name, lv.name, fmt.Sprintf(format, args...))
	}
}

// referred refuses used, which a segment of by names under key.
func (g *Group) referred(used, by *logical, s extent, key string) {
	switch {
	case s.kind == "snapshot" && key == "origin":
		g.refuse(used, "origin", "is the origin of a snapshot (%s/%s)", g.Name, cmp.Or(s.node.word("cow_store"), s.node.word("merging_store"), by.name))
	case s.kind == "snapshot":
		g.refuse(used, "snapshot", "is a snapshot of %s/%s", g.Name, s.node.word("origin"))
	case s.kind == "thin" && key == "external_origin":
		g.refuse(used, "origin", "is the external origin of the thin volume %s/%s", g.Name, by.name)
	case s.kind == "thin" || s.kind == "vdo" || s.kind == "cache":
		// What those refer to otherwise are pools and thin volumes, which say of themselves what they are, and
		// hidden volumes.
		if !slices.Contains(used.status, "VISIBLE") {
			g.refuse(used, cmp.Or(kindOf(used), "hidden"), "is a hidden part of %s/%s, %s", g.Name, by.name, typeName(s))
		}
	case !slices.Contains(used.status, "VISIBLE"):
		g.refuse(used, "hidden", "is a hidden part of %s/%s, %s", g.Name, by.name, typeName(s))
	default:
		g.refuse(used, "stacked", "is a part of %s/%s, %s", g.Name, by.name, typeName(s))
	}
}

// kindOf is a volume's first type that is not linear.
func kindOf(lv *logical) string {
	for _, s := range lv.segments {
		if s.kind != "striped" || s.part < 0 {
			base, _, _ := strings.Cut(s.kind, "+")
			return base
		}
	}
	return ""
}

// typeName calls a segment's type by a person's name.
func typeName(s extent) string {
	base, _, _ := strings.Cut(s.kind, "+")
	switch {
	case s.kind == "striped" && s.node.get("stripe_count").num > 1:
		return fmt.Sprintf("a striped volume (%d stripes)", s.node.get("stripe_count").num)
	case s.kind == "striped" && s.part < 0:
		return "a volume on another volume"
	case s.kind == "striped":
		return "a linear volume"
	case base == "mirror":
		return "a mirror"
	case strings.HasPrefix(base, "raid"):
		return "a RAID volume (" + base + ")"
	case base == "thin":
		return "a thin volume"
	case base == "thin-pool":
		return "a thin pool"
	case base == "snapshot":
		return "a snapshot"
	case base == "cache":
		return "a cached volume"
	case base == "cache-pool":
		return "a cache pool"
	case base == "writecache":
		return "a volume with a write cache"
	case base == "vdo":
		return "a VDO volume"
	case base == "vdo-pool":
		return "a VDO pool"
	case base == "integrity":
		return "a volume with integrity data"
	case base == "error":
		return "a volume with an area that only gives errors"
	case base == "zero":
		return "a volume with an area of zeros"
	}
	return fmt.Sprintf("a volume of the type %q, which is unknown", s.kind)
}

// judge refuses a volume that is not linear by itself.
func (g *Group) judge(lv *logical) {
	if len(lv.segments) == 0 {
		g.refuse(lv, "empty", "has no segments")
		return
	}
	for _, s := range lv.segments {
		if s.kind == "striped" && s.part >= 0 {
			continue
		}
		what := typeName(s)
		for _, pool := range []string{"thin_pool", "cache_pool", "vdo_pool", "writecache"} {
			if p := s.node.word(pool); p != "" && pool == "writecache" {
				what += fmt.Sprintf(" (%s/%s)", g.Name, p)
			} else if p != "" {
				what += fmt.Sprintf(" (pool %s/%s)", g.Name, p)
			}
		}
		if s.kind == "striped" && s.node.get("stripe_count").num == 1 {
			what = fmt.Sprintf("a volume on another volume (%s/%s)", g.Name, s.node.get("stripes").kids[0].str)
			g.refuse(lv, "stacked", "is %s", what)
			return
		}
		base, _, _ := strings.Cut(s.kind, "+")
		g.refuse(lv, base, "is %s", what)
		return
	}
	for _, s := range lv.status {
		switch s {
		case "READ", "WRITE", "VISIBLE", "FIXED_MINOR":
		default:
			g.refuse(lv, "locked", "has the status %q (an operation on it was not finished?)", s)
		}
	}
	if !slices.Contains(lv.status, "VISIBLE") {
		g.refuse(lv, "hidden", "is hidden: it is LVM's own")
	}
}

// validName takes what LVM takes as a name.
func validName(s string) bool {
	if s == "" || len(s) > 127 || s == "." || s == ".." || s[0] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("+_.-", c) >= 0) {
			return false
		}
	}
	return true
}

// Volume is the volume of that name.
func (g *Group) Volume(name string) (Volume, bool) {
	for _, v := range g.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return Volume{}, false
}

func (g *Group) find(name string) (int, error) {
	if g.Err != nil {
		return 0, g.Err
	}
	for i, lv := range g.lvs {
		if lv.name == name {
			return i, lv.why
		}
	}
	return 0, fmt.Errorf("logical volume %q: %w %s", name, ErrNotFound, g.Name)
}

// Segments is where a volume's bytes lie, ordered by At and without gaps, with all growth so far. The error matches ErrUnsupported
// and says what the volume is if it is not linear, or ErrNotFound.
func (g *Group) Segments(name string) ([]Segment, error) {
	i, err := g.find(name)
	if err != nil {
		return nil, err
	}
	var list []Segment
	for _, s := range g.lvs[i].segments {
		p := g.parts[s.part]
		list = append(list, Segment{PV: p.dev.index, Start: p.start + int64(s.pe)*g.ExtentSize,
			Length: int64(s.count) * g.ExtentSize, At: int64(s.le) * g.ExtentSize})
	}
	return list, nil
}
