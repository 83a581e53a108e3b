package libvirt

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ErrUsage is matched by errors in what the caller asked for, as against in what the host has.
var ErrUsage = errors.New("libvirt output")

func usagef(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUsage}, a...)...)
}

const prefix = "libvirt+"

// Dest is a volume of a libvirt host; ParseDest makes one.
type Dest struct {
	transport string // unix, ssh, tls or tcp
	user      string
	host      string
	port      string // empty: the transport's own
	session   bool   // qemu:///session
	pool      string
	volume    string

	socket     string
	keyFile    string
	knownHosts string
	pkiPath    string
	noVerify   bool
}

// parameters are those of a URI, with the transports that have them; none means all.
var parameters = []struct {
	name       string
	transports []string
}{
	{"pool", nil}, {"volume", nil},
	{"socket", []string{"unix", "ssh"}},
	{"keyfile", []string{"ssh"}}, {"known_hosts", []string{"ssh"}},
	{"no_verify", []string{"ssh", "tls"}},
	{"pkipath", []string{"tls"}},
}

// ParseDest tells whether an output is a volume in a libvirt storage pool, and which. Those are
//
//	libvirt+URI?pool=POOL&volume=NAME[&PARAMETER=VALUE ...]
//
// and what does not begin with "libvirt+" is not (false, without an error). URI is one of
//
//	qemu:///system, qemu:///session             this host, over the daemon's socket (also qemu+unix)
//	qemu+ssh://[USER@]HOST[:PORT]/system        over ssh
//	qemu+tls://HOST[:PORT]/system               over TLS with certificates (also qemu://HOST/system)
//	qemu+tcp://HOST[:PORT]/system               without encryption and without a login
//
// and PARAMETER is one of libvirt's: socket (unix, ssh), keyfile, known_hosts (ssh), no_verify=1 (ssh, tls), pkipath
// (tls). Values are percent-encoded where they hold one of the characters & ; % #; a plus sign is a plus sign. Errors
// match ErrUsage.
func ParseDest(s string) (Dest, bool, error) {
	rest, is := strings.CutPrefix(s, prefix)
	if !is {
		return Dest{}, false, nil
	}
	d, err := parseURI(rest)
	if err != nil {
		return Dest{}, true, err
	}
	return d, true, nil
}

func parseURI(s string) (Dest, error) {
	u, err := url.Parse(s)
	if err != nil {
		// The library's sentence would repeat the whole URI, in which there may be a password.
		return Dest{}, usagef("this is no URI: %w; libvirt+qemu:///system?pool=images&volume=boot.qcow2 would be one", errors.Unwrap(err))
	}
	driver, transport, named := strings.Cut(u.Scheme, "+")
	d := Dest{transport: transport, user: u.User.Username(), host: u.Hostname(), port: u.Port()}
	switch _, secret := u.User.Password(); {
	case driver != "qemu":
		return d, usagef("%q is not among the drivers; only qemu is", driver)
	case secret:
		return d, usagef("a password in a URI can be seen by everybody on the host; use an ssh key or certificates")
	case u.Fragment != "" || strings.HasSuffix(s, "#"):
		return d, usagef("a URI has no part behind a #; write it as %%23 in a name")
	case u.Opaque != "":
		return d, usagef("%q lacks the slashes; qemu:///system is the shortest", u.Opaque)
	}
	if !named {
		d.transport = "unix"
		if d.host != "" {
			d.transport = "tls"
		}
	}
	switch d.transport {
	case "unix":
		if u.Host != "" || u.User != nil {
			return d, usagef("qemu+unix is on this host and takes no host or user; qemu+ssh://%s/system goes to another", u.Host)
		}
	case "ssh", "tls", "tcp":
		if d.host == "" {
			return d, usagef("qemu+%s needs a host: qemu+%[1]s://HOST/system", d.transport)
		}
		if u.User != nil && (d.transport != "ssh" || d.user == "") {
			return d, usagef("only qemu+ssh takes a user, as USER@HOST")
		}
	case "libssh", "libssh2":
		return d, usagef("of the ssh transports there is one, qemu+ssh; it needs no ssh program")
	default:
		return d, usagef("%q is not among the transports unix, ssh, tls and tcp", d.transport)
	}
	if strings.HasSuffix(u.Host, ":") {
		return d, usagef("no port follows the colon")
	}
	if p, err := strconv.ParseUint(d.port, 10, 16); d.port != "" && (err != nil || p == 0) {
		return d, usagef("%q cannot be a port", d.port)
	}
	if !possibleHost(d.host) {
		return d, usagef("%q cannot be a host", d.host)
	}
	// virsh -c, which messages name, gives it to an ssh program.
	if strings.HasPrefix(d.user, "-") || !isText(d.user) {
		return d, usagef("%q cannot be a user", d.user)
	}
	switch u.Path {
	case "/system":
	case "/session":
		d.session = true
	default:
		return d, usagef("the URI's path is %q; /system and /session are possible", u.Path)
	}
	if err := d.setParameters(u.RawQuery); err != nil {
		return d, err
	}
	switch {
	case d.session && d.transport != "unix" && d.transport != "ssh":
		return d, usagef("a session's daemon is reached over unix or ssh only")
	case d.session && d.transport == "ssh" && d.socket == "":
		return d, usagef("a session over ssh needs socket=PATH, for where the daemon listens is not known from here")
	}
	return d, nil
}

// possibleHost says whether s is an address, or has the characters that names have. Empty is this host.
func possibleHost(s string) bool {
	if ip, zone, _ := strings.Cut(s, "%"); strings.Contains(ip, ":") {
		s = zone // url.Parse has parsed the address
	}
	return !strings.HasPrefix(s, "-") && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

func isText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffe || r == 0xffff })
}

// setParameters reads the query as libvirt does: & or ; between parameters, % before two digits, and a plus sign
// stands for itself.
func (d *Dest) setParameters(query string) error {
	seen := map[string]string{}
	for part := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, raw, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(raw)
		if err != nil {
			return usagef("parameter %s: %w", name, err)
		}
		var possible []string
		known := false
		for _, p := range parameters {
			fits := p.transports == nil || slices.Contains(p.transports, d.transport)
			known = known || fits && p.name == name
			if fits {
				possible = append(possible, p.name)
			}
		}
		if !known {
			return usagef("qemu+%s has no parameter %q here; possible are %s", d.transport, name, strings.Join(possible, ", "))
		}
		if _, twice := seen[name]; twice {
			return usagef("the parameter %s is given twice", name)
		}
		if value == "" {
			return usagef("the parameter %s is empty", name)
		}
		// Names go to the daemon in XML, which has no others.
		if !isText(value) {
			return usagef("the parameter %s is not text in UTF-8, or holds a control character", name)
		}
		seen[name] = value
	}
	for _, name := range []string{"socket", "keyfile", "known_hosts", "pkipath"} {
		if v := seen[name]; v != "" && !path.IsAbs(v) {
			return usagef("%s=%s is not an absolute path", name, v)
		}
	}
	switch seen["no_verify"] {
	case "", "0":
	case "1":
		d.noVerify = true
	default:
		return usagef("no_verify=%s: 0 and 1 are possible", seen["no_verify"])
	}
	d.socket, d.keyFile, d.knownHosts, d.pkiPath = seen["socket"], seen["keyfile"], seen["known_hosts"], seen["pkipath"]
	if d.noVerify && d.knownHosts != "" {
		return usagef("known_hosts and no_verify=1 contradict each other")
	}
	d.pool, d.volume = seen["pool"], seen["volume"]
	switch v := d.volume; {
	case d.pool == "":
		return usagef("the pool is not given: ?pool=NAME, as virsh pool-list prints it")
	case strings.Contains(d.pool, "/"):
		return usagef("no pool is called %q; give its name, as virsh pool-list prints it", d.pool)
	case v == "":
		return usagef("the volume is not given: &volume=NAME, as in volume=boot.qcow2")
	case strings.Contains(v, "/") || v == "." || v == ".." || len(v) > 255:
		return usagef("%q cannot be a volume's name: it has at most 255 bytes and no slash", v)
	}
	return nil
}

// Pool is the storage pool's name.
func (d Dest) Pool() string { return d.pool }

// Volume is the volume's name in the pool.
func (d Dest) Volume() string { return d.volume }

// URI is what virsh -c takes to come to the same host.
func (d Dest) URI() string {
	scheme, query := "qemu", []string{}
	if d.transport != "unix" {
		scheme += "+" + d.transport
	}
	add := func(name, value string) {
		if value != "" {
			query = append(query, name+"="+escape(value))
		}
	}
	add("socket", d.socket)
	add("keyfile", d.keyFile)
	add("pkipath", d.pkiPath)
	if d.noVerify {
		add("no_verify", "1")
	}
	host := d.host
	if strings.Contains(host, ":") {
		host = "[" + strings.ReplaceAll(host, "%", "%25") + "]"
	}
	if d.port != "" {
		host += ":" + d.port
	}
	if d.user != "" {
		host = url.User(d.user).String() + "@" + host
	}
	uri := scheme + "://" + host + d.path()
	if len(query) > 0 {
		uri += "?" + strings.Join(query, "&")
	}
	return uri
}

func (d Dest) path() string {
	if d.session {
		return "/session"
	}
	return "/system"
}

// escape is what PathUnescape undoes, for values in a query.
func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`&;%#"'<>\^{|}`+"`", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// String is the output as ParseDest takes it.
func (d Dest) String() string {
	s := d.URI()
	if strings.Contains(s, "?") {
		s += "&"
	} else {
		s += "?"
	}
	s = prefix + s + "pool=" + escape(d.pool) + "&volume=" + escape(d.volume)
	if d.knownHosts != "" {
		s += "&known_hosts=" + escape(d.knownHosts)
	}
	return s
}

// Warning is a sentence on what the way to the host does not protect from; empty if there is none.
func (d Dest) Warning() string {
	switch {
	case d.transport == "tcp":
		return "qemu+tcp encrypts nothing, and neither side proves who it is: the disk can be read and changed on its way"
	case d.noVerify:
		return "no_verify=1: whether this is the right host is not checked, so the disk can be read and changed on its way"
	}
	return ""
}
