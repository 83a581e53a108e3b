package integration

import (
	"archive/tar"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// authority is a certificate authority that no machine knows. Its folder is one as --cert-dir takes.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "nodebake test authority"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	raw, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	check(t, err)
	a := authority{key: key, dir: tempDir(t)}
	a.cert, err = x509.ParseCertificate(raw)
	check(t, err)
	check(t, os.WriteFile(a.dir+"/ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o644))
	return a
}

// issue gives the files of a certificate and its key, for 127.0.0.1 and the hosts.
func (a authority) issue(t testing.TB, hosts ...string) (cert, key string) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "registry"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), DNSNames: hosts, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature}
	raw, err := x509.CreateCertificate(rand.Reader, template, a.cert, &own.PublicKey, a.key)
	check(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(own)
	check(t, err)
	dir := tempDir(t)
	check(t, os.WriteFile(dir+"/cert", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: raw}), 0o644))
	check(t, os.WriteFile(dir+"/key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return dir + "/cert", dir + "/key"
}

// The one user whom a registry with a password lets in, and as htpasswd -B writes it.
const (
	user, password = "reader", "open sesame"
	htpasswd       = "reader:$2a$04$ymBrMFOQ4eOxOXmpQGqfz.JDhgyztYrAJGybyDbjOOGWqmYs/Si8m"
)

// registryWith is registry with settings of the registry's own, REGISTRY_... variables.
func registryWith(t testing.TB, settings map[string]string) string {
	t.Helper()
	for name, value := range settings {
		check(t, os.Setenv(name, value))
		defer os.Unsetenv(name)
	}
	return registry(t)
}

func withTLS(t testing.TB, a authority, hosts ...string) map[string]string {
	t.Helper()
	cert, key := a.issue(t, hosts...)
	return map[string]string{"REGISTRY_HTTP_TLS_CERTIFICATE": cert, "REGISTRY_HTTP_TLS_KEY": key}
}

func withPassword(t testing.TB, settings map[string]string) map[string]string {
	t.Helper()
	file := tempDir(t) + "/htpasswd"
	check(t, os.WriteFile(file, []byte(htpasswd+"\n"), 0o644))
	settings["REGISTRY_AUTH"], settings["REGISTRY_AUTH_HTPASSWD_REALM"], settings["REGISTRY_AUTH_HTPASSWD_PATH"] = "htpasswd", "test", file
	return settings
}

// push copies an image to a registry, whoever signs for that, and gives the digest of what is there then.
func push(t testing.TB, from, to string, options ...string) digest.Digest {
	t.Helper()
	file := tempDir(t) + "/digest"
	run(t, "skopeo", append(append([]string{"copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "--digestfile", file}, options...), from, "docker://"+to)...)
	d, err := os.ReadFile(file)
	check(t, err)
	return digest.Digest(strings.TrimSpace(string(d)))
}

// randomLayer is a layer that does not compress, with one file of the size; another seed gives another layer.
func randomLayer(seed int64, size int) layer {
	content := make([]byte, size)
	mathrand.New(mathrand.NewSource(seed)).Read(content)
	return layer{tar: makeTar(tar.FormatPAX, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("file-", seed), Mode: 0o644, ModTime: time.Unix(1e9, 0)},
		content: string(content)})}
}

// someImage writes a layout with one image of random layers. Another seed gives another image.
func someImage(t testing.TB, name string, seed int64, sizes ...int) image {
	t.Helper()
	i := image{name: name, layout: tempDir(t) + "/layout"}
	var layers []layer
	for n, size := range sizes {
		layers = append(layers, randomLayer(seed*100+int64(n), size))
	}
	check(t, writeLayout(i.layout, i.name, "amd64", layers...))
	return i
}

// emptyHome is an environment whose home folder holds nothing but the files, so that nothing of the tester's own counts.
func emptyHome(t testing.TB, files map[string]string) []string {
	t.Helper()
	dir := tempDir(t)
	check(t, os.Mkdir(dir+"/run", 0o700))
	for name, content := range files {
		check(t, os.MkdirAll(filepath.Dir(dir+"/"+name), 0o700))
		check(t, os.WriteFile(dir+"/"+name, []byte(content), 0o600))
	}
	return []string{"HOME=" + dir, "XDG_CONFIG_HOME=" + dir + "/.config", "XDG_RUNTIME_DIR=" + dir + "/run"}
}

func auths(host, user, password string) string {
	return fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// bakeReport is what the tests read of a report.
type bakeReport struct {
	Images []struct {
		Reference      string        `json:"reference"`
		ID             string        `json:"id"`
		Names          []string      `json:"names"`
		ManifestDigest digest.Digest `json:"manifestDigest"`
		ListDigest     digest.Digest `json:"listDigest"`
	} `json:"images"`
	Warnings []string `json:"warnings"`
}

// build runs nodebake build on the small base.
func build(t testing.TB, env []string, args ...string) outcome {
	t.Helper()
	o := command(t, env, productPath(t), append([]string{"build", "--base", smallBase(t)}, args...)...)
	t.Logf("nodebake build %s: exit %d, %.2fs", strings.Join(args, " "), o.code, o.took.Seconds())
	if strings.Contains(o.stderr, "goroutine ") {
		t.Fatalf("a panic:\n%s", o)
	}
	return o
}

// reads is a dry run, which reads every layer, and must find the images in this order.
func reads(t testing.TB, env, args []string, images ...image) outcome {
	t.Helper()
	o := build(t, env, append(slices.Clone(args), "--dry-run", "--report", "-")...)
	if o.code != exitDone {
		t.Errorf("%s", o)
		return o
	}
	var r bakeReport
	check(t, json.Unmarshal([]byte(o.stdout), &r))
	var got, want []string
	for _, i := range r.Images {
		got = append(got, i.ID)
	}
	for _, i := range images {
		want = append(want, i.facts(t).config.Encoded())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the images are %s, must be %s\n%s", got, want, o)
	}
	return o
}

// refusesBake is a bake that must fail with the words, and leave no OUT.
func refusesBake(t testing.TB, env []string, code int, args []string, words ...string) outcome {
	t.Helper()
	out := tempDir(t) + "/out.raw"
	o := build(t, env, append(slices.Clone(args), "--output", out)...)
	refused(t, o, code, out, words...)
	return o
}

// front stands before a registry, counts what is asked, and makes faults.
type front struct {
	addr   string
	srv    *httptest.Server
	layers []digest.Digest // of the images that it knows

	mu    sync.Mutex
	asked []string // "GET /v2/team/odd/manifests/v1"
	conns int
	// fault, if set, may answer a request in next's stead; nth counts requests of the same method and path from 1.
	fault func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler)
}

func newFront(t testing.TB, registry string, fault func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler)) *front {
	t.Helper()
	f := &front{fault: fault}
	next := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	next.ErrorLog = log.New(io.Discard, "", 0)
	f.srv = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		key := r.Method + " " + r.URL.Path
		f.asked = append(f.asked, key)
		nth := 0
		for _, a := range f.asked {
			if a == key {
				nth++
			}
		}
		fault := f.fault
		f.mu.Unlock()
		if fault != nil {
			fault(w, r, nth, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	f.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	f.srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			f.mu.Lock()
			f.conns++
			f.mu.Unlock()
		}
	}
	f.srv.Start()
	t.Cleanup(f.srv.Close)
	f.addr = f.srv.Listener.Addr().String()
	return f
}

// knows notes the layers of images that tests ask about.
func (f *front) knows(t testing.TB, images ...image) {
	t.Helper()
	for _, i := range images {
		for _, l := range i.facts(t).layers {
			f.layers = append(f.layers, l.blob.Digest)
		}
	}
}

// takes gives what was asked since the last call whose path contains the part, and forgets all of it.
func (f *front) takes(part string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var found []string
	for _, a := range f.asked {
		if strings.Contains(a, part) {
			found = append(found, a)
		}
	}
	f.asked, f.conns = nil, 0
	return found
}

// connections gives how many there were since the last call.
func (f *front) connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.conns
	f.asked, f.conns = nil, 0
	return n
}

// unused is an address where nothing listens.
func unused(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	return l.Addr().String()
}

// TestRegistryTLS reaches a registry whose certificate no one knows, in each way that there is.
func TestRegistryTLS(t *testing.T) {
	requires(t, "root", "skopeo")
	hello := testImages(t)["hello"]
	ca, other := newAuthority(t), newAuthority(t)
	addr := registryWith(t, withTLS(t, ca))
	push(t, hello.oci(), addr+"/team/hello:v1")
	ref := []string{"--image", addr + "/team/hello:v1"}
	conf := func(s string) string {
		name := tempDir(t) + "/registries.conf"
		check(t, os.WriteFile(name, []byte(s), 0o644))
		return "CONTAINERS_REGISTRIES_CONF=" + name
	}
	home := emptyHome(t, nil)
	ofUser := emptyHome(t, nil)
	certs := strings.TrimPrefix(ofUser[0], "HOME=") + "/.config/containers/certs.d"
	check(t, os.MkdirAll(certs, 0o700))
	check(t, os.Symlink(ca.dir, certs+"/"+addr))

	for _, c := range []struct {
		name string
		env  []string
		args []string
	}{
		{"cert-dir", home, []string{"--cert-dir", ca.dir}},
		{"cert-dir of the registry", home, []string{"--cert-dir", addr + "=" + ca.dir, "--cert-dir", "example.com=" + other.dir}},
		{"cert-dir of the registry before that of all", home, []string{"--cert-dir", addr + "=" + ca.dir, "--cert-dir", other.dir}},
		{"tls-verify=false", home, []string{"--tls-verify=false"}},
		{"insecure-registry", home, []string{"--insecure-registry", addr}},
		{"insecure in registries.conf", append(home, conf(fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr))), nil},
		{"certs.d in the home folder", ofUser, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			reads(t, c.env, append(c.args, ref...), hello)
		})
	}
	for _, c := range []struct {
		name string
		args []string
	}{
		{"no one vouches", nil},
		{"another authority", []string{"--cert-dir", other.dir}},
		{"cert-dir of another registry", []string{"--cert-dir", "127.0.0.1:1=" + ca.dir}},
		{"another registry is insecure", []string{"--insecure-registry", "127.0.0.1:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := refusesBake(t, home, exitFailed, append(c.args, ref...), addr+"/team/hello:v1", "certificate")
			if strings.Contains(o.stderr, "trying again") {
				t.Errorf("it was tried again\n%s", o)
			}
		})
	}
	t.Run("no such cert-dir", func(t *testing.T) {
		refusesBake(t, home, exitFailed, append([]string{"--cert-dir", ca.dir + "/none"}, ref...), ca.dir+"/none|certificate")
	})
	refusesBake(t, home, exitUsage, append([]string{"--cert-dir", "=" + ca.dir}, ref...), "cert-dir")
}

// TestRegistryAuth gives a registry's password in each way that there is, and wrong ones.
func TestRegistryAuth(t *testing.T) {
	requires(t, "root", "skopeo")
	hello := testImages(t)["hello"]
	addr := registryWith(t, withPassword(t, map[string]string{}))
	push(t, hello.oci(), addr+"/team/hello:v1", "--dest-creds", user+":"+password)
	f := newFront(t, addr, nil)
	file := func(content string) string {
		name := tempDir(t) + "/auth.json"
		check(t, os.WriteFile(name, []byte(content), 0o600))
		return name
	}
	// A helper as docker's and podman's are: the name on standard input, JSON on standard output.
	bin := tempDir(t)
	check(t, os.WriteFile(bin+"/docker-credential-nodebaketest", []byte(fmt.Sprintf(`#!/bin/sh
[ "$1" = get ] || exit 1
read host
echo "$host" >>%s/asked
echo '{"ServerURL": "'"$host"'", "Username": %q, "Secret": %q}'
`, bin, user, password)), 0o755))
	path := "PATH=" + bin + ":" + os.Getenv("PATH")
	right, wrong := auths(f.addr, user, password), auths(f.addr, user, "guess")
	args := []string{"--image", f.addr + "/team/hello:v1", "--insecure-registry", f.addr}
	home := emptyHome(t, nil)

	for _, c := range []struct {
		name string
		env  []string
		args []string
	}{
		{"authfile", home, []string{"--authfile", file(right)}},
		{"authfile before REGISTRY_AUTH_FILE", append(home, "REGISTRY_AUTH_FILE="+file(wrong)), []string{"--authfile", file(right)}},
		{"REGISTRY_AUTH_FILE", append(home, "REGISTRY_AUTH_FILE="+file(right)), nil},
		{"for one repository", append(home, "REGISTRY_AUTH_FILE="+file(auths(f.addr+"/team", user, password))), nil},
		{"docker's file", emptyHome(t, map[string]string{".docker/config.json": right}), nil},
		{"podman's file", emptyHome(t, map[string]string{".config/containers/auth.json": right}), nil},
		{"helper for the registry", append(emptyHome(t, map[string]string{".docker/config.json": fmt.Sprintf(`{"credHelpers": {%q: "nodebaketest"}}`, f.addr)}), path), nil},
		{"helper in an authfile", append(home, path), []string{"--authfile", file(fmt.Sprintf(`{"credHelpers": {%q: "nodebaketest"}}`, f.addr))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			reads(t, c.env, append(c.args, args...), hello)
		})
	}
	if asked, err := os.ReadFile(bin + "/asked"); err != nil || !strings.Contains(string(asked), f.addr+"\n") {
		t.Errorf("the helper was asked for %q (%v), must be %s", asked, err, f.addr)
	}
	for _, c := range []struct {
		name string
		env  []string
		args []string
		word string
	}{
		{"none", home, nil, "authentication required|unauthorized"},
		{"wrong", home, []string{"--authfile", file(wrong)}, "unauthorized|authentication required|username/password"},
		{"of another registry", home, []string{"--authfile", file(auths("example.com", user, password))}, "authentication required|unauthorized"},
		{"a helper that is not there", emptyHome(t, map[string]string{".docker/config.json": fmt.Sprintf(`{"credHelpers": {%q: "nodebakenone"}}`, f.addr)}), nil, "nodebakenone"},
		{"a file that is no JSON", home, []string{"--authfile", file("{")}, "auth.json"},
		{"no such file", home, []string{"--authfile", bin + "/none"}, bin + "/none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.takes("")
			o := refusesBake(t, c.env, exitFailed, append(c.args, args...), c.word)
			if asked := f.takes(""); len(asked) > 4 {
				t.Errorf("%d requests: %q", len(asked), asked)
			}
			if strings.Contains(o.stderr, "trying again") || strings.Contains(o.stdout+o.stderr, password) || strings.Contains(o.stdout+o.stderr, "guess") {
				t.Errorf("it was tried again, or the password was said\n%s", o)
			}
		})
	}
}

// TestRegistriesConf follows registries.conf: mirrors, what it blocks, renames, and short names.
func TestRegistriesConf(t *testing.T) {
	requires(t, "root", "skopeo")
	hello := testImages(t)["hello"]
	theirs := someImage(t, "localhost/theirs:1", 1, 1000)
	origin, other := registry(t), registry(t)
	push(t, hello.oci(), origin+"/team/hello:v1")
	helloDigest := push(t, hello.oci(), other+"/copy/hello:v1")
	push(t, theirs.oci(), origin+"/team/theirs:v1")
	o, m := newFront(t, origin, nil), newFront(t, other, nil)
	home := emptyHome(t, nil)

	for _, c := range []struct {
		name, conf, ref string
		want            image
		origin, mirror  bool   // whether each was asked for manifests
		known           string // the name that the image has then
		words           []string
	}{
		{name: "a mirror", conf: mirrors("example.com/team", o.addr+"/team", m.addr+"/copy"), ref: "example.com/team/hello:v1", want: hello, mirror: true, known: "example.com/team/hello:v1"},
		{name: "a mirror that is down", conf: mirrors("example.com/team", o.addr+"/team", unused(t)+"/copy"), ref: "example.com/team/hello:v1", want: hello, origin: true, known: "example.com/team/hello:v1"},
		{name: "the first of two mirrors is down", conf: mirrors("example.com/team", o.addr+"/team", unused(t)+"/copy", m.addr+"/copy"), ref: "example.com/team/hello:v1", want: hello, mirror: true, known: "example.com/team/hello:v1"},
		{name: "a mirror that lacks the image", conf: mirrors("example.com/team", o.addr+"/team", m.addr+"/copy"), ref: "example.com/team/theirs:v1", want: theirs, origin: true, mirror: true, known: "example.com/team/theirs:v1"},
		{name: "a mirror for digests, and a tag", conf: strings.Replace(mirrors("example.com/team", o.addr+"/team", m.addr+"/copy"), "insecure = true # mirror", "insecure = true\npull-from-mirror = \"digest-only\"", 1),
			ref: "example.com/team/hello:v1", want: hello, origin: true, known: "example.com/team/hello:v1"},
		{name: "a mirror for digests, and a digest", conf: strings.Replace(mirrors("example.com/team", o.addr+"/team", m.addr+"/copy"), "insecure = true # mirror", "insecure = true\npull-from-mirror = \"digest-only\"", 1),
			ref: "example.com/team/hello@" + helloDigest.String(), want: hello, mirror: true, known: "example.com/team/hello@" + helloDigest.String()},
		{name: "a mirror, all down", conf: mirrors("example.com/team", unused(t), unused(t)), ref: "example.com/team/hello:v1", words: []string{"example.com/team/hello:v1", "connection refused"}},
		{name: "a short name", conf: fmt.Sprintf("short-name-mode = \"enforcing\"\n[aliases]\n\"ours\" = \"%s/team/hello\"\n[[registry]]\nlocation = %q\ninsecure = true\n", o.addr, o.addr), ref: "ours:v1", want: hello, origin: true, known: o.addr + "/team/hello:v1"},
		{name: "the search list", conf: fmt.Sprintf("unqualified-search-registries = [%q]\n[[registry]]\nlocation = %q\ninsecure = true\n", o.addr, o.addr), ref: "team/hello:v1", want: hello, origin: true, known: o.addr + "/team/hello:v1"},
		{name: "blocked", conf: fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\nblocked = true\n", o.addr), ref: o.addr + "/team/hello:v1", words: []string{o.addr, "blocked"}},
		{name: "a namespace is blocked", conf: fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry]]\nlocation = \"%s/team\"\ninsecure = true\nblocked = true\n", o.addr, o.addr), ref: o.addr + "/team/hello:v1", words: []string{o.addr, "blocked"}},
		{name: "no TOML", conf: "[[registry", ref: o.addr + "/team/hello:v1", words: []string{"registries.conf"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := tempDir(t) + "/registries.conf"
			check(t, os.WriteFile(name, []byte(c.conf), 0o644))
			env := append(home, "CONTAINERS_REGISTRIES_CONF="+name)
			o.takes("")
			m.takes("")
			args := []string{"--image", c.ref}
			if c.words != nil {
				refusesBake(t, env, exitFailed, args, c.words...)
			} else {
				out := reads(t, env, args, c.want)
				if !strings.Contains(out.stdout, fmt.Sprintf("%q", c.known)) {
					t.Errorf("the image is not named %s\n%s", c.known, out)
				}
			}
			for _, r := range []struct {
				name string
				*front
				want bool
			}{{"the registry", o, c.origin}, {"the mirror", m, c.mirror}} {
				if asked := r.takes("/manifests/"); len(asked) > 0 != r.want {
					t.Errorf("%s was asked for %q; must it be asked: %v", r.name, asked, r.want)
				}
			}
		})
	}
}

func mirrors(prefix, location string, mirrors ...string) string {
	s := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", prefix, location)
	for _, m := range mirrors {
		s += fmt.Sprintf("[[registry.mirror]]\nlocation = %q\ninsecure = true # mirror\n", m)
	}
	return s
}

// forwarder is an HTTP proxy, for CONNECT and for plain requests, to one host whatever is asked for.
func forwarder(t testing.TB, to string) (addr string, asked func() []string) {
	t.Helper()
	var mu sync.Mutex
	var seen []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Method+" "+r.Host)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			r.URL.Host = to
			httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to}).ServeHTTP(w, r)
			return
		}
		server, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer server.Close()
		client, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer client.Close()
		io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
		go io.Copy(server, buf)
		io.Copy(client, server)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []string {
		mu.Lock()
		defer mu.Unlock()
		s := seen
		seen = nil
		return s
	}
}

// TestProxy pulls by the name of a host that only the proxy can find.
func TestProxy(t *testing.T) {
	requires(t, "root", "skopeo")
	hello := testImages(t)["hello"]
	ca := newAuthority(t)
	const host = "registry.nodebake.invalid"
	secure := registryWith(t, withTLS(t, ca, host))
	push(t, hello.oci(), secure+"/team/hello:v1")
	home := emptyHome(t, nil)
	proxy, asked := forwarder(t, secure)
	args := []string{"--image", host + "/team/hello:v1", "--cert-dir", ca.dir}
	reads(t, append(home, "HTTPS_PROXY="+proxy), args, hello)
	if got := asked(); len(got) == 0 || slices.ContainsFunc(got, func(s string) bool { return s != "CONNECT "+host+":443" }) {
		t.Errorf("the proxy was asked for %q", got)
	}
	refusesBake(t, append(home, "HTTPS_PROXY="+proxy, "NO_PROXY=.nodebake.invalid"), exitFailed, args, host, "no such host|lookup")
	if got := asked(); len(got) > 0 {
		t.Errorf("the proxy was asked for %q", got)
	}

	plain := registry(t)
	push(t, hello.oci(), plain+"/team/hello:v1")
	proxy, asked = forwarder(t, plain)
	reads(t, append(home, "HTTP_PROXY="+proxy), []string{"--image", host + ":5000/team/hello:v1", "--insecure-registry", host + ":5000"}, hello)
	if got := asked(); !slices.Contains(got, "GET "+host+":5000") {
		t.Errorf("the proxy was asked for %q", got)
	}
}

// cutter ends a connection after so many bytes of the body.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 {
		c.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// TestFaultyRegistry is what a registry does on a bad day: each fault either ends well, or by a sentence.
func TestFaultyRegistry(t *testing.T) {
	requires(t, "root", "skopeo")
	testImages(t)
	const mb = 1 << 20
	i := someImage(t, "localhost/random:1", 2, 3*mb, 2*mb)
	layers := i.facts(t).layers
	// As long as the first layer, and sound.
	var another layerFacts
	for seed := int64(3); another.blob.Size != layers[0].blob.Size; seed++ {
		another = someImage(t, "localhost/random:1", seed, 3*mb).facts(t).layers[0]
	}
	addr := registry(t)
	push(t, i.oci(), addr+"/random:1")
	home := emptyHome(t, nil)
	first := "/blobs/" + layers[0].blob.Digest.String()
	status := func(w http.ResponseWriter, code int) { http.Error(w, "a bad day", code) }

	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler)
		words []string         // of the refusal; nil where the bake must succeed
		asked func(n int) bool // how often the faulty thing may be asked for
		of    string           // which that is; "" is the first layer
	}{
		{name: "cut midway", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) {
				if nth == 1 {
					w = &cutter{w, 1500000}
				} else if !strings.HasPrefix(r.Header.Get("Range"), "bytes=1") {
					t.Errorf("it is not gone on with, but asked for with the range %q", r.Header.Get("Range"))
				}
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n == 2 }},
		{name: "cut many times, each time further on", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) && nth <= 2 {
				w = &cutter{w, 1300000}
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n >= 3 && n <= 6 }},
		{name: "cut midway, and no ranges", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			r.Header.Del("Range")
			if strings.HasSuffix(r.URL.Path, first) && nth == 1 {
				w = &cutter{w, 1500000}
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n >= 2 && n <= 4 }},
		{name: "manifest cut midway", of: "/manifests/1", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") && nth == 1 {
				w = &cutter{w, 100}
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n == 2 }},
		{name: "500 twice", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) && nth <= 2 {
				status(w, 500)
				return
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n == 3 }},
		{name: "429 with Retry-After", of: "/manifests/1", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") && nth == 1 {
				w.Header().Set("Retry-After", "1")
				status(w, 429)
				return
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n == 2 }},
		{name: "slow", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) {
				w = slow{w}
			}
			next.ServeHTTP(w, r)
		}, asked: func(n int) bool { return n == 1 }},
		{name: "another blob", fault: func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) {
				http.ServeFile(w, r, another.path)
				return
			}
			next.ServeHTTP(w, r)
		}, words: []string{"digest", "random:1"}, asked: func(n int) bool { return n >= 1 && n <= 2 }},
		{name: "a changed byte", fault: func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) {
				w = &changer{w, 1000000}
			}
			next.ServeHTTP(w, r)
		}, words: []string{"digest", "random:1"}, asked: func(n int) bool { return n >= 1 && n <= 2 }},
		{name: "a blob that is too short, once", fault: func(w http.ResponseWriter, r *http.Request, nth int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) && nth == 1 {
				w.Write([]byte("short"))
				return
			}
			next.ServeHTTP(w, r)
		}, words: []string{"digest", "random:1"}, asked: func(n int) bool { return n >= 2 && n <= 3 }},
		{name: "another config", of: "/blobs/" + i.facts(t).config.String(), fault: func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, i.facts(t).config.String()) {
				w = &changer{w, 10}
			}
			next.ServeHTTP(w, r)
		}, words: []string{"digest|hashes", "random:1"}, asked: func(n int) bool { return n <= 2 }},
		{name: "500 for ever", fault: func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
			if strings.HasSuffix(r.URL.Path, first) {
				status(w, 500)
				return
			}
			next.ServeHTTP(w, r)
		}, words: []string{"random:1", "500"}, asked: func(n int) bool { return n == 4 }},
		{name: "403", of: "/manifests/1", fault: func(w http.ResponseWriter, r *http.Request, _ int, next http.Handler) {
			if strings.Contains(r.URL.Path, "/manifests/") {
				status(w, 403)
				return
			}
			next.ServeHTTP(w, r)
		}, words: []string{"random:1", "403|denied|forbidden"}, asked: func(n int) bool { return n == 1 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFront(t, addr, c.fault)
			args := []string{"--image", f.addr + "/random:1", "--insecure-registry", f.addr}
			if c.of == "" {
				c.of = first
			}
			if c.words != nil {
				refusesBake(t, home, exitFailed, args, c.words...)
			} else {
				out := tempDir(t) + "/out.raw"
				if o := build(t, home, append(args, "--output", out)...); o.code != exitDone {
					t.Fatalf("%s", o)
				}
				mnt := mount(t, out, smallRoot, "ro")
				compareStore(t, mnt+defaultStore, i)
				unmount(t, mnt)
			}
			if asked := f.takes(c.of); !c.asked(len(asked)) {
				t.Errorf("asked %d times: %q", len(asked), asked)
			}
		})
	}
}

// slow lets little through at a time.
type slow struct{ http.ResponseWriter }

func (s slow) Write(p []byte) (int, error) {
	time.Sleep(20 * time.Millisecond)
	return s.ResponseWriter.Write(p)
}

// changer changes the byte after so many.
type changer struct {
	http.ResponseWriter
	left int
}

func (c *changer) Write(p []byte) (int, error) {
	if c.left >= 0 && c.left < len(p) {
		p = slices.Clone(p)
		p[c.left] ^= 1
		c.left = -1
	} else if c.left >= 0 {
		c.left -= len(p)
	}
	return c.ResponseWriter.Write(p)
}
