package libvirt

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func parse(t testing.TB, s string) Dest {
	t.Helper()
	d, is, err := ParseDest(s)
	if err != nil || !is {
		t.Fatal(is, err)
	}
	return d
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// authority signs certificates for TLS.
type authority struct {
	testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{TB: t}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	a.key = key
	a.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	check(t, err)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// sign writes a certificate for a name, and its key.
func (a *authority) sign(name, certFile, keyFile string) {
	a.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(a, err)
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, IPAddresses: []net.IP{net.ParseIP(name)}}
	if c.IPAddresses[0] == nil {
		c.IPAddresses, c.DNSNames = nil, []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), a.key)
	check(a, err)
	check(a, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	der, err = x509.MarshalPKCS8PrivateKey(key)
	check(a, err)
	check(a, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// client is a folder for pkipath, with a certificate by signer unless it is nil.
func (a *authority) client(signer *authority) string {
	a.Helper()
	dir := a.TempDir()
	check(a, os.WriteFile(dir+"/cacert.pem", a.pem, 0o644))
	if signer != nil {
		signer.sign("client", dir+"/clientcert.pem", dir+"/clientkey.pem")
	}
	return dir
}

func TestTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	pki, port := ca.client(nil), freePort(t)
	ca.sign("127.0.0.1", pki+"/servercert.pem", pki+"/serverkey.pem")
	d := startDaemon(t, "listen_tls = 1", "listen_tcp = 0", `listen_addr = "127.0.0.1"`, fmt.Sprintf(`tls_port = "%d"`, port), `auth_tls = "none"`,
		fmt.Sprintf("ca_file = %q", pki+"/cacert.pem"), fmt.Sprintf("cert_file = %q", pki+"/servercert.pem"), fmt.Sprintf("key_file = %q", pki+"/serverkey.pem"))
	d.newPool("near")
	name, src := newDisk(t, "zlib", 1)
	o := Options{Format: "qcow2", Capacity: guestSize, Force: true}
	for _, scheme := range []string{"qemu+tls", "qemu"} {
		dest := parse(t, fmt.Sprintf("libvirt+%s://127.0.0.1:%d/system?pool=near&volume=v&pkipath=%s", scheme, port, ca.client(ca)))
		check(t, Check(context.Background(), dest, o))
		r, err := Upload(context.Background(), dest, src, o)
		check(t, err)
		// The pool's folder is here, too, but who connects over a network does not know that.
		want(t, "swap", r.Swap, "copy")
		d.sameVolume("near", "v", name)
		run(t, "virsh", "-q", "-c", dest.URI(), "vol-info", "v", "--pool", "near")
	}
	uri := func(host, pki, more string) Dest {
		return parse(t, fmt.Sprintf("libvirt+qemu+tls://%s:%d/system?pool=near&volume=v&pkipath=%s%s", host, port, pki, more))
	}
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", ca.client(stranger), ""), o), nil, "qemu+tls://127.0.0.1", "certificate")
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", ca.client(nil), ""), o), nil, "certificate")
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", stranger.client(ca), ""), o), nil, "unknown authority")
	refusedBy(t, Check(context.Background(), uri("localhost", ca.client(ca), ""), o), nil, "localhost")
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", t.TempDir(), ""), o), nil, "cacert.pem", "pkipath=FOLDER")
	check(t, Check(context.Background(), uri("localhost", stranger.client(ca), "&no_verify=1"), o))
	broken := ca.client(ca)
	check(t, os.WriteFile(broken+"/cacert.pem", []byte("no PEM"), 0o644))
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", broken, ""), o), nil, "no certificate in PEM")
	check(t, os.WriteFile(broken+"/clientkey.pem", []byte("no PEM"), 0o644))
	refusedBy(t, Check(context.Background(), uri("127.0.0.1", broken, "&no_verify=1"), o), nil, "the client's certificate")

	// In the middle.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stopping := hooked{src, func(off int64) error {
		if off > headSize {
			cancel()
		}
		return nil
	}}
	_, err := Upload(ctx, uri("127.0.0.1", ca.client(ca), ""), stopping, o)
	refusedBy(t, err, context.Canceled)
	want(t, "left", strings.Join(d.volumes("near"), " "), "v")
}

func TestTCP(t *testing.T) {
	port := freePort(t)
	d := startDaemon(t, "listen_tls = 0", "listen_tcp = 1", `listen_addr = "127.0.0.1"`, fmt.Sprintf(`tcp_port = "%d"`, port), `auth_tcp = "none"`)
	d.newPool("near")
	name, src := newDisk(t, "qcow2", 1)
	dest := parse(t, fmt.Sprintf("libvirt+qemu+tcp://127.0.0.1:%d/system?pool=near&volume=v", port))
	_, err := Upload(context.Background(), dest, src, Options{Format: "qcow2"})
	check(t, err)
	d.sameVolume("near", "v", name)
}

func TestSASL(t *testing.T) {
	port := freePort(t)
	startDaemon(t, "listen_tls = 0", "listen_tcp = 1", `listen_addr = "127.0.0.1"`, fmt.Sprintf(`tcp_port = "%d"`, port), `auth_tcp = "sasl"`)
	dest := parse(t, fmt.Sprintf("libvirt+qemu+tcp://127.0.0.1:%d/system?pool=near&volume=v", port))
	refusedBy(t, Check(context.Background(), dest, Options{Format: "raw"}), nil, "SASL", "qemu+ssh")
}

// sshd is one of the test's own.
type sshd struct {
	testing.TB
	port       int
	dir        string
	authorized string // lines for keys that may come in
}

func newKey(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	check(t, err)
	s, err := ssh.NewSignerFromKey(key)
	check(t, err)
	return s, key
}

func startSSHD(t testing.TB) *sshd {
	t.Helper()
	requires(t, "root", "sshd", "ssh-keygen", "unshare")
	s := &sshd{TB: t, port: freePort(t), dir: t.TempDir()}
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		run(t, "ssh-keygen", "-q", "-t", kind, "-N", "", "-f", s.dir+"/host_"+kind)
	}
	conf := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %[2]s/host_rsa\nHostKey %[2]s/host_ecdsa\nHostKey %[2]s/host_ed25519\nAuthorizedKeysFile %[2]s/authorized\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication no\n", s.port, s.dir)
	check(t, os.WriteFile(s.dir+"/conf", []byte(conf), 0o644))
	sshdPath, err := exec.LookPath("sshd")
	check(t, err)
	// A root without a password is locked without PAM; so that the machine's own /etc/shadow does not matter, sshd sees another.
	c := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-ec", `
mount -t tmpfs none /run; mkdir /run/sshd
printf 'root:*:19000::::::\nsshd:*:19000::::::\n' >"$2/shadow"; mount --bind "$2/shadow" /etc/shadow
exec "$1" -D -e -f "$2/conf"`, "sh", sshdPath, s.dir)
	log, err := os.Create(s.dir + "/log")
	check(t, err)
	defer log.Close()
	c.Stderr = log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	check(t, c.Start())
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			said, _ := os.ReadFile(s.dir + "/log")
			t.Logf("sshd says\n%s", said)
		}
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port)); err == nil {
			conn.Close()
			return s
		}
		if time.Now().After(end) {
			t.Fatal("sshd does not answer")
		}
	}
}

// let lets a key in, with options of authorized_keys(5).
func (s *sshd) let(key ssh.Signer, options string) {
	s.Helper()
	s.authorized += options + string(ssh.MarshalAuthorizedKey(key.PublicKey()))
	check(s, os.WriteFile(s.dir+"/authorized", []byte(s.authorized), 0o600))
}

// knownHosts is a file with the host's keys of these kinds.
func (s *sshd) knownHosts(kinds ...string) string {
	s.Helper()
	var text strings.Builder
	for _, k := range kinds {
		p, err := os.ReadFile(s.dir + "/host_" + k + ".pub")
		check(s, err)
		fmt.Fprintf(&text, "[127.0.0.1]:%d %s", s.port, p)
	}
	name := filepath.Join(s.TempDir(), "known_hosts")
	check(s, os.WriteFile(name, []byte(text.String()), 0o600))
	return name
}

func writeKey(t testing.TB, key ed25519.PrivateKey, passphrase string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "", []byte(passphrase))
	}
	check(t, err)
	name := filepath.Join(t.TempDir(), "id_ed25519")
	check(t, os.WriteFile(name, pem.EncodeToMemory(block), 0o600))
	return name
}

func TestSSH(t *testing.T) {
	d := startDaemon(t)
	s := startSSHD(t)
	near := d.newPool("near")
	d.hiddenPool("far")
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SSH_AUTH_SOCK", "")
	signer, key := newKey(t)
	s.let(signer, "")
	known := s.knownHosts("ed25519", "rsa")
	ctx := context.Background()
	name, src := newDisk(t, "zlib", 1)
	o := Options{Format: "qcow2", Capacity: guestSize, Force: true}
	dest := func(pool, more string) Dest {
		t.Helper()
		return parse(t, fmt.Sprintf("libvirt+qemu+ssh://root@127.0.0.1:%d/system?socket=%s&pool=%s&volume=v'%%20$(x)%s", s.port, d.socket, pool, more))
	}
	const volume = "v' $(x)"
	trusted := "&known_hosts=" + known

	// Keys from files.
	file := "&keyfile=" + writeKey(t, key, "")
	for pool, swap := range map[string]string{"near": "rename", "far": "copy"} {
		for _, force := range []bool{false, true} {
			o.Force = force
			r, err := Upload(ctx, dest(pool, trusted+file), src, o)
			check(t, err)
			want(t, "swap", r.Swap, swap)
			d.sameVolume(pool, volume, name)
		}
		o.Force = false
		_, err := Upload(ctx, dest(pool, trusted+file), src, o)
		refusedBy(t, err, ErrExists)
	}
	late := hooked{src, func(off int64) error {
		if off == 0 {
			return os.WriteFile(near+"/"+volume, []byte("unseen"), 0o600)
		}
		return nil
	}}
	d.virsh("vol-delete", volume, "--pool", "near")
	_, err := Upload(ctx, dest("near", trusted+file), late, o)
	refusedBy(t, err, ErrExists, "though libvirt does not show it")
	o.Force = true

	// One who may not run commands.
	mute, muteKey := newKey(t)
	s.let(mute, `command="echo not for you; false" `)
	r, err := Upload(ctx, dest("near", trusted+"&keyfile="+writeKey(t, muteKey, "")), src, o)
	check(t, err)
	want(t, "swap without a shell", r.Swap, "copy")
	d.sameVolume("near", volume, name)

	// The middle of an upload.
	stopped, cancel := context.WithCancel(ctx)
	defer cancel()
	stopping := hooked{src, func(off int64) error {
		if off > headSize {
			cancel()
		}
		return nil
	}}
	_, err = Upload(stopped, dest("near", trusted+file), stopping, o)
	refusedBy(t, err, context.Canceled)
	want(t, "left", len(d.volumes("near")), 1)

	try := func(more string, words ...string) {
		t.Helper()
		err := Check(ctx, dest("near", more), o)
		if len(words) == 0 {
			if err != nil {
				t.Errorf("%s: %v", more, err)
			}
			return
		}
		refusedBy(t, err, nil, words...)
	}
	// Each kind of host key, whichever is known.
	for _, kind := range []string{"ed25519", "ecdsa", "rsa"} {
		try("&known_hosts=" + s.knownHosts(kind) + file)
	}
	// Other hosts.
	other := newOther(t, s)
	try("&known_hosts="+s.knownHosts()+file, "is not known", "ssh-keyscan")
	try("&known_hosts="+other+file, "shows another key than "+other+", line 1")
	try("&known_hosts=/none"+file, "/none")
	try(file, "no ~/.ssh/known_hosts")
	try("&no_verify=1" + file)

	// What is in the home folder.
	try(trusted, "no key to log in", "SSH_AUTH_SOCK")
	check(t, os.Mkdir(home+"/.ssh", 0o700))
	check(t, copyTo(known, home+"/.ssh/known_hosts"))
	locked := writeKey(t, key, "secret")
	check(t, copyTo(locked, home+"/.ssh/id_ed25519"))
	try("", "id_ed25519 has a passphrase, which is never asked for", "ssh-add")
	try("&keyfile="+locked, "has a passphrase")
	check(t, copyTo(writeKey(t, key, ""), home+"/.ssh/id_ed25519"))
	try("")
	_, unknown := newKey(t)
	try("&keyfile="+writeKey(t, unknown, ""), "logging in to 127.0.0.1", "as root", "unable to authenticate")
	try("&keyfile=/none", "key file", "/none")
	check(t, os.WriteFile(home+"/bad", []byte("no key"), 0o600))
	try("&keyfile="+home+"/bad", "no key found")

	// The agent, for a key with a passphrase.
	check(t, copyTo(locked, home+"/.ssh/id_ed25519"))
	keys := agent.NewKeyring()
	check(t, keys.Add(agent.AddedKey{PrivateKey: key}))
	at := filepath.Join(d.dir, "agent")
	l, err := net.Listen("unix", at)
	check(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go agent.ServeAgent(keys, c)
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", at)
	try("")
	try("&keyfile=" + locked)
	t.Setenv("SSH_AUTH_SOCK", "/none")
	try("", "the ssh agent at /none")

	// No daemon behind it.
	nowhere := parse(t, fmt.Sprintf("libvirt+qemu+ssh://root@127.0.0.1:%d/system?socket=/none&pool=p&volume=v%s", s.port, trusted+file))
	refusedBy(t, Check(ctx, nowhere, o), nil, "/none on 127.0.0.1", "AllowStreamLocalForwarding")
}

// newOther is a file that knows the host by a key that it does not have.
func newOther(t testing.TB, s *sshd) string {
	t.Helper()
	k, _ := newKey(t)
	name := filepath.Join(t.TempDir(), "known_hosts")
	check(t, os.WriteFile(name, []byte(fmt.Sprintf("[127.0.0.1]:%d %s", s.port, ssh.MarshalAuthorizedKey(k.PublicKey()))), 0o600))
	return name
}

func copyTo(from, to string) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, p, 0o600)
}

// TestSession has a user's own daemon.
func TestSession(t *testing.T) {
	requires(t, "root", "libvirtd", "virsh")
	dir, err := os.MkdirTemp("/var/tmp", "nblv.")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	const nobody = 65534
	check(t, os.Chown(dir, nobody, nobody))
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("HOME", dir)
	dest := parse(t, "libvirt+qemu:///session?pool=near&volume=v")
	o := Options{Format: "qcow2", Capacity: guestSize}
	refusedBy(t, Check(context.Background(), dest, o), nil, "the session's daemon does not run")
	as := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+dir+"/config", "XDG_CACHE_HOME="+dir+"/cache")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
		return c
	}
	c := as("libvirtd")
	check(t, c.Start())
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	virsh := func(args ...string) (string, error) {
		out, err := as("virsh", append([]string{"-q", "-c", "qemu:///session"}, args...)...).CombinedOutput()
		return string(out), err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := virsh("pool-list"); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("libvirtd does not answer")
		}
	}
	check(t, os.Mkdir(dir+"/near", 0o755))
	check(t, os.Chown(dir+"/near", nobody, nobody))
	if out, err := virsh("pool-create-as", "near", "dir", "--target", dir+"/near"); err != nil {
		t.Fatal(out, err)
	}
	name, src := newDisk(t, "zlib", 1)
	r, err := Upload(context.Background(), dest, src, o)
	check(t, err)
	want(t, "swap", r.Swap, "rename")
	run(t, "cmp", name, dir+"/near/v")
	if out, err := virsh("vol-info", "v", "--pool", "near"); err != nil || !strings.Contains(out, "64.00 MiB") {
		t.Error(out, err)
	}
	want(t, "owner", run(t, "stat", "-c", "%u", dir+"/near/v"), "65534\n")
}

// serve has f answer whoever connects.
func serve(t testing.TB, f func(c net.Conn)) Dest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return parse(t, fmt.Sprintf("libvirt+qemu+tcp://%s/system?pool=p&volume=v", l.Addr()))
}

// TestNoDaemon connects to what is not libvirt's.
func TestNoDaemon(t *testing.T) {
	o := Options{Format: "raw"}
	refusedBy(t, Check(context.Background(), parse(t, "libvirt+qemu:///system?socket=/none/sock&pool=p&volume=v"), o), nil, "/none/sock", "does not run on this host")
	refusedBy(t, Check(context.Background(), parse(t, fmt.Sprintf("libvirt+qemu+tcp://127.0.0.1:%d/system?pool=p&volume=v", freePort(t))), o), nil, "refused")
	refusedBy(t, Check(context.Background(), serve(t, func(c net.Conn) { io.WriteString(c, "SSH-2.0-x\r\nHTTP/1.1 400 Bad Request\r\n") }), o), nil, "not libvirt's protocol", "a message of 1397966893 bytes")
	refusedBy(t, Check(context.Background(), serve(t, func(c net.Conn) { c.Write(make([]byte, 100)) }), o), nil, "a message of 0 bytes")
	refusedBy(t, Check(context.Background(), serve(t, func(c net.Conn) { c.Read(make([]byte, 10)) }), o), nil, "connection")
	// One that says nothing, until the caller has enough of it.
	for _, scheme := range []string{"tcp", "tls", "ssh"} {
		ctx, cancel := context.WithCancel(context.Background())
		d := serve(t, func(c net.Conn) {
			if scheme != "ssh" {
				c.Read(make([]byte, 1))
			}
			cancel()
			io.Copy(io.Discard, c)
		})
		d.transport, d.noVerify, d.user = scheme, true, "u"
		_, key := newKey(t)
		d.keyFile = writeKey(t, key, "")
		d.pkiPath = "/none"
		refusedBy(t, Check(ctx, d, o), context.Canceled)
		cancel()
	}
}
