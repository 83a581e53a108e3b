package libvirt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// link is an open way to a daemon.
type link struct {
	net.Conn
	under net.Conn    // what carries Conn, if that is another
	shell *ssh.Client // nil where the host is not reached over ssh
}

// Close does not wait for a peer that reads nothing, as closing TLS and a channel of ssh in order would.
func (l link) Close() error {
	if l.under != nil {
		l.under.Close()
	}
	return l.Conn.Close()
}

func dial(ctx context.Context, d Dest) (l link, err error) {
	switch d.transport {
	case "unix":
		l.Conn, err = dialUnix(ctx, d)
	case "ssh":
		l, err = dialSSH(ctx, d)
	case "tls":
		l, err = dialTLS(ctx, d)
	default:
		l.Conn, err = dialTCP(ctx, d, "16509")
	}
	return l, err
}

func dialTCP(ctx context.Context, d Dest, port string) (net.Conn, error) {
	if d.port != "" {
		port = d.port
	}
	return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(d.host, port))
}

// sockets are where a daemon listens: libvirtd (or virtproxyd in its place), and else the one that modern hosts have
// for QEMU alone, which passes questions on storage on.
func sockets(d Dest) []string {
	if d.socket != "" {
		return []string{d.socket}
	}
	dir := "/var/run/libvirt"
	if d.session {
		if dir = os.Getenv("XDG_RUNTIME_DIR"); dir == "" {
			dir = os.Getenv("XDG_CACHE_HOME")
		}
		if dir == "" {
			home, _ := os.UserHomeDir()
			dir = filepath.Join(home, ".cache")
		}
		dir += "/libvirt"
	}
	return []string{dir + "/libvirt-sock", dir + "/virtqemud-sock"}
}

func dialUnix(ctx context.Context, d Dest) (net.Conn, error) {
	var first error
	for _, s := range sockets(d) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", s)
		if err == nil {
			return c, nil
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) && !errors.Is(err, fs.ErrNotExist) {
			first = err
		}
	}
	switch {
	case errors.Is(first, fs.ErrPermission):
		return nil, fmt.Errorf("%w: this user may not open libvirt's socket; members of the group libvirt and root may", first)
	case d.session && (errors.Is(first, fs.ErrNotExist) || errors.Is(first, unix.ECONNREFUSED)):
		return nil, fmt.Errorf("%w: the session's daemon does not run; `virsh -c qemu:///session list` starts it for two minutes", first)
	case errors.Is(first, fs.ErrNotExist) || errors.Is(first, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%w: libvirtd or virtqemud does not run on this host", first)
	}
	return nil, first
}

func dialTLS(ctx context.Context, d Dest) (link, error) {
	conf, err := tlsConfig(d)
	if err != nil {
		return link{}, err
	}
	raw, err := dialTCP(ctx, d, "16514")
	if err != nil {
		return link{}, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		return link{}, fmt.Errorf("TLS with %s: %w", raw.RemoteAddr(), err)
	}
	// The daemon's word on the client's certificate, before all messages.
	var verdict [1]byte
	if _, err := io.ReadFull(c, verdict[:]); err != nil || verdict[0] != 1 {
		raw.Close()
		if err == nil {
			err = fmt.Errorf("it says %d", verdict[0])
		}
		return link{}, fmt.Errorf("the daemon at %s does not accept the client's certificate: %w", raw.RemoteAddr(), err)
	}
	return link{Conn: c, under: raw}, nil
}

// tlsConfig reads the certificates that libvirt's own clients take.
func tlsConfig(d Dest) (*tls.Config, error) {
	type place struct{ ca, cert, key string }
	in := func(dir string) place {
		return place{dir + "/cacert.pem", dir + "/clientcert.pem", dir + "/clientkey.pem"}
	}
	at := place{"/etc/pki/CA/cacert.pem", "/etc/pki/libvirt/clientcert.pem", "/etc/pki/libvirt/private/clientkey.pem"}
	if d.pkiPath != "" {
		at = in(strings.TrimSuffix(d.pkiPath, "/"))
	} else if home, err := os.UserHomeDir(); err == nil && os.Getuid() != 0 {
		mine := in(home + "/.pki/libvirt")
		if _, err := os.Stat(mine.ca); err == nil {
			at.ca = mine.ca
		}
		if _, err := os.Stat(mine.cert); err == nil {
			at.cert, at.key = mine.cert, mine.key
		}
	}
	conf := &tls.Config{ServerName: d.host, InsecureSkipVerify: d.noVerify, MinVersion: tls.VersionTLS12}
	if !d.noVerify {
		ca, err := os.ReadFile(at.ca)
		if err != nil {
			return nil, fmt.Errorf("the certificate authority of the libvirt host: %w; pkipath=FOLDER names where cacert.pem, clientcert.pem and clientkey.pem are", err)
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", at.ca)
		}
	}
	// A daemon may ask for none.
	if _, err := os.Stat(at.cert); errors.Is(err, fs.ErrNotExist) {
		return conf, nil
	}
	cert, err := tls.LoadX509KeyPair(at.cert, at.key)
	if err != nil {
		return nil, fmt.Errorf("the client's certificate %s and key %s: %w", at.cert, at.key, err)
	}
	conf.Certificates = []tls.Certificate{cert}
	return conf, nil
}

func dialSSH(ctx context.Context, d Dest) (link, error) {
	conf := &ssh.ClientConfig{User: d.user}
	if conf.User == "" {
		me, err := user.Current()
		if err != nil {
			return link{}, fmt.Errorf("the name to log in with: %w; qemu+ssh://USER@%s gives one", err, d.host)
		}
		conf.User = me.Username
	}
	port := d.port
	if port == "" {
		port = "22"
	}
	addr := net.JoinHostPort(d.host, port)
	if err := setHostKeys(conf, d, addr); err != nil {
		return link{}, err
	}
	signers, closeAgent, unusable := sshKeys(ctx, d)
	defer closeAgent()
	if len(signers) == 0 {
		return link{}, fmt.Errorf("no key to log in to %s with: %w", d.host, joined(append(unusable, errors.New("keyfile=PATH names a key, and an agent is found by SSH_AUTH_SOCK"))))
	}
	conf.Auth = []ssh.AuthMethod{ssh.PublicKeys(signers...)}

	raw, err := dialTCP(ctx, d, "22")
	if err != nil {
		return link{}, err
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	defer stop()
	c, channels, requests, err := ssh.NewClientConn(raw, addr, conf)
	if err != nil {
		raw.Close()
		return link{}, fmt.Errorf("logging in to %s as %s: %w", addr, conf.User, joined(append([]error{hostKeyError(d, err)}, unusable...)))
	}
	client := ssh.NewClient(c, channels, requests)
	var first error
	for _, s := range sockets(d) {
		conn, err := client.Dial("unix", s)
		if err == nil {
			return link{conn, raw, client}, nil
		}
		if first == nil {
			first = fmt.Errorf("%s on %s: %w; does libvirtd run there, may %s open its socket, and does sshd have AllowStreamLocalForwarding?", s, d.host, err, conf.User)
		}
	}
	client.Close()
	return link{}, first
}

// joined is errs in one line.
func joined(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// setHostKeys lets only hosts in that are known. It asks for the kinds of keys that are known, for a host that has
// several shows only one.
func setHostKeys(conf *ssh.ClientConfig, d Dest, addr string) error {
	if d.noVerify {
		conf.HostKeyCallback = ssh.InsecureIgnoreHostKey()
		return nil
	}
	files := []string{d.knownHosts}
	if d.knownHosts == "" {
		home, _ := os.UserHomeDir()
		files = slices.DeleteFunc([]string{home + "/.ssh/known_hosts", "/etc/ssh/ssh_known_hosts"}, func(name string) bool {
			_, err := os.Stat(name)
			return err != nil
		})
		if len(files) == 0 {
			return fmt.Errorf("the key of %s cannot be checked, for there is no ~/.ssh/known_hosts; `ssh %[1]s` once, or known_hosts=PATH", d.host)
		}
	}
	known, err := knownhosts.New(files...)
	if err != nil {
		return err
	}
	conf.HostKeyCallback = known
	var unlike *knownhosts.KeyError
	if errors.As(known(addr, &net.TCPAddr{IP: net.IPv4zero}, noKey{}), &unlike) {
		for _, k := range unlike.Want {
			kinds := []string{k.Key.Type()}
			if kinds[0] == ssh.KeyAlgoRSA {
				kinds = []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
			}
			for _, kind := range kinds {
				if !slices.Contains(conf.HostKeyAlgorithms, kind) {
					conf.HostKeyAlgorithms = append(conf.HostKeyAlgorithms, kind)
				}
			}
		}
	}
	return nil
}

// noKey is a public key that no host has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

func hostKeyError(d Dest, err error) error {
	var unlike *knownhosts.KeyError
	if !errors.As(err, &unlike) {
		return err
	}
	if len(unlike.Want) == 0 {
		return fmt.Errorf("the key of %s is not known: %w; `ssh %[1]s` once, or add it by ssh-keyscan", d.host, err)
	}
	return fmt.Errorf("%s shows another key than %s, line %d, has for it: %w", d.host, unlike.Want[0].Filename, unlike.Want[0].Line, err)
}

// sshKeys are what this user can log in with: the key file that is named, what the agent holds, and the usual files.
// Nothing asks for a passphrase. unusable says why keys were passed over.
func sshKeys(ctx context.Context, d Dest) (signers []ssh.Signer, closeAgent func(), unusable []error) {
	closeAgent = func() {}
	files := []string{d.keyFile}
	if d.keyFile == "" {
		home, _ := os.UserHomeDir()
		files = []string{home + "/.ssh/id_ed25519", home + "/.ssh/id_ecdsa", home + "/.ssh/id_rsa"}
	}
	var fromFiles []ssh.Signer
	for _, name := range files {
		text, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && d.keyFile == "" {
			continue
		}
		var key ssh.Signer
		if err == nil {
			key, err = ssh.ParsePrivateKey(text)
		}
		var locked *ssh.PassphraseMissingError
		switch {
		case err == nil:
			fromFiles = append(fromFiles, key)
		case errors.As(err, &locked):
			unusable = append(unusable, fmt.Errorf("%s has a passphrase, which is never asked for here; `ssh-add` gives the key to the agent", name))
		default:
			unusable = append(unusable, fmt.Errorf("key file %s: %w", name, err))
		}
	}
	if d.keyFile != "" {
		signers = fromFiles
	}
	if at := os.Getenv("SSH_AUTH_SOCK"); at != "" {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", at)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			closeAgent = func() {
				stop()
				conn.Close()
			}
			var held []ssh.Signer
			held, err = agent.NewClient(conn).Signers()
			signers = append(signers, held...)
		}
		if err != nil {
			unusable = append(unusable, fmt.Errorf("the ssh agent at %s: %w", at, err))
		}
	}
	if d.keyFile == "" {
		signers = append(signers, fromFiles...)
	}
	return signers, closeAgent, unusable
}

// run has a command run on the host, by the shell of the user there.
func (l link) run(ctx context.Context, command string) error {
	s, err := l.shell.NewSession()
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	out, err := s.CombinedOutput(command)
	if err != nil {
		if said := strings.TrimSpace(string(out)); said != "" {
			return fmt.Errorf("%s: %w", said, err)
		}
	}
	return err
}
