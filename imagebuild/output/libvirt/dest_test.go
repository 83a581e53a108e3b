package libvirt

import (
	"errors"
	"strings"
	"testing"
)

func TestParseDest(t *testing.T) {
	const rest = "pool=images&volume=boot.qcow2"
	for _, c := range []struct{ in, uri, out string }{
		{"qemu:///system?" + rest, "qemu:///system", ""},
		{"qemu+unix:///system?" + rest, "qemu:///system", "qemu:///system?" + rest},
		{"qemu:///session?" + rest, "qemu:///session", ""},
		{"qemu:///system?socket=/tmp/a%20b/s&" + rest, "qemu:///system?socket=/tmp/a%20b/s", ""},
		{"qemu:///system?volume=a+b%26c%2525.qcow2;pool=p%20q", "qemu:///system", "qemu:///system?pool=p%20q&volume=a+b%26c%2525.qcow2"},
		{"qemu+ssh://h/system?" + rest, "qemu+ssh://h/system", ""},
		{"qemu+ssh://root@h:2222/system?keyfile=/k&known_hosts=/kh&" + rest, "qemu+ssh://root@h:2222/system?keyfile=/k", "qemu+ssh://root@h:2222/system?keyfile=/k&" + rest + "&known_hosts=/kh"},
		{"qemu+ssh://u%40x@[::1]/system?no_verify=1&" + rest, "qemu+ssh://u%40x@[::1]/system?no_verify=1", ""},
		{"qemu+ssh://h/session?socket=/run/user/1000/libvirt/libvirt-sock&" + rest, "qemu+ssh://h/session?socket=/run/user/1000/libvirt/libvirt-sock", ""},
		{"qemu+tls://h.example:16515/system?pkipath=/pki&" + rest, "qemu+tls://h.example:16515/system?pkipath=/pki", ""},
		{"qemu://h/system?" + rest, "qemu+tls://h/system", "qemu+tls://h/system?" + rest},
		{"qemu+tcp://h/system?" + rest, "qemu+tcp://h/system", ""},
		{"qemu+tls://h/system?no_verify=0&" + rest, "qemu+tls://h/system", "qemu+tls://h/system?" + rest},
	} {
		d, is, err := ParseDest(prefix + c.in)
		if err != nil || !is {
			t.Errorf("%s: %t, %v", c.in, is, err)
			continue
		}
		if c.out == "" {
			c.out = c.in
		}
		if d.URI() != c.uri || d.String() != prefix+c.out {
			t.Errorf("%s: URI %s, String %s", c.in, d.URI(), d)
		}
		if again, _, err := ParseDest(d.String()); err != nil || again != d {
			t.Errorf("%s, parsed again: %v, %v", d, again, err)
		}
	}
	for _, in := range []string{"", "boot.qcow2", "libvirt", "/libvirt+qemu:///system", "docker://x/libvirt+qemu", "Libvirt+qemu:///system"} {
		if _, is, err := ParseDest(in); is || err != nil {
			t.Errorf("%q: %t, %v", in, is, err)
		}
	}
}

func TestParseDestRefuses(t *testing.T) {
	const rest = "pool=images&volume=boot.qcow2"
	for _, c := range []struct{ in, words string }{
		{"", `"" is not among the drivers`},
		{"xen:///system?" + rest, `"xen" is not among the drivers`},
		{"test:///default?" + rest, `"test" is not among the drivers`},
		{"qemu+ssh://u:secret@h/system?" + rest, "a password in a URI"},
		{"qemu:///system?" + rest + "#x", "no part behind a #"},
		{"qemu:///system?" + rest + "#", "no part behind a #"},
		{"qemu:system?" + rest, "lacks the slashes"},
		{"qemu+unix://h/system?" + rest, "takes no host"},
		{"qemu+unix://u@/system?" + rest, "takes no host"},
		{"qemu+ssh:///system?" + rest, "qemu+ssh needs a host"},
		{"qemu+tls:///system?" + rest, "qemu+tls needs a host"},
		{"qemu+tcp://:99/system?" + rest, "qemu+tcp needs a host"},
		{"qemu+tls://u@h/system?" + rest, "only qemu+ssh takes a user"},
		{"qemu+ssh://@h/system?" + rest, "as USER@HOST"},
		{"qemu+libssh2://h/system?" + rest, "of the ssh transports there is one"},
		{"qemu+ext://h/system?" + rest, `"ext" is not among the transports`},
		{"qemu+://h/system?" + rest, `"" is not among the transports`},
		{"qemu+ssh://h:/system?" + rest, "no port follows"},
		{"qemu+ssh://h:0/system?" + rest, `"0" cannot be a port`},
		{"qemu+ssh://h:99999/system?" + rest, `"99999" cannot be a port`},
		{"qemu+ssh://h:x/system?" + rest, "this is no URI: invalid port"},
		{"qemu+ssh://-oProxyCommand=x/system?" + rest, `"-oProxyCommand=x" cannot be a host`},
		{"qemu+ssh://-l@h/system?" + rest, `"-l" cannot be a user`},
		{"qemu+ssh://a%20b/system?" + rest, "this is no URI"},
		{"qemu+ssh://a%25b/system?" + rest, `"a%b" cannot be a host`},
		{"qemu+ssh://a,b/system?" + rest, `"a,b" cannot be a host`},
		{"qemu+ssh://[1:2]/system?" + rest, "this is no URI"},
		{"qemu+ssh://[::1%25a,b]/system?" + rest, "cannot be a host"},
		{"qemu+ssh://u%00@h/system?" + rest, "cannot be a user"},
		{"qemu:///?" + rest, `path is "/"`},
		{"qemu:///embed?" + rest, `path is "/embed"`},
		{"qemu+tls://h/session?" + rest, "over unix or ssh only"},
		{"qemu+ssh://h/session?" + rest, "needs socket=PATH"},
		{"qemu:///system?" + rest + "&keyfile=/k", `qemu+unix has no parameter "keyfile" here; possible are pool, volume, socket`},
		{"qemu+ssh://h/system?" + rest + "&command=/bin/sh", `has no parameter "command"`},
		{"qemu+tcp://h/system?" + rest + "&no_verify=1", `qemu+tcp has no parameter "no_verify"`},
		{"qemu:///system?Pool=x&" + rest, `no parameter "Pool"`},
		{"qemu:///system?pool=x&" + rest, "the parameter pool is given twice"},
		{"qemu:///system?socket=&" + rest, "the parameter socket is empty"},
		{"qemu:///system?pool&volume=x", "the parameter pool is empty"},
		{"qemu:///system?socket=s&" + rest, "not an absolute path"},
		{"qemu:///system?pool=a%zz&volume=x", "invalid URL escape"},
		{"qemu:///system?pool=a%0ab&volume=x", "control character"},
		{"qemu:///system?pool=a%ffb&volume=x", "not text in UTF-8"},
		{"qemu+ssh://h/system?no_verify=yes&" + rest, "no_verify=yes: 0 and 1"},
		{"qemu+ssh://h/system?no_verify=1&known_hosts=/k&" + rest, "contradict each other"},
		{"qemu:///system", "the pool is not given"},
		{"qemu:///system?volume=x", "the pool is not given"},
		{"qemu:///system?pool=/var/lib&volume=x", "no pool is called"},
		{"qemu:///system?pool=x", "the volume is not given"},
		{"qemu:///system?pool=x&volume=a/b", "cannot be a volume's name"},
		{"qemu:///system?pool=x&volume=..", "cannot be a volume's name"},
		{"qemu:///system?pool=x&volume=" + strings.Repeat("a", 256), "cannot be a volume's name"},
	} {
		_, is, err := ParseDest(prefix + c.in)
		switch {
		case err == nil || !is:
			t.Errorf("%s: %t, %v", c.in, is, err)
		case !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.words):
			t.Errorf("%s: %v; want %q", c.in, err, c.words)
		case strings.Contains(err.Error(), "secret"):
			t.Errorf("%s: the password is printed: %v", c.in, err)
		}
	}
}

func TestWarning(t *testing.T) {
	for in, words := range map[string]string{
		"qemu:///system?":                   "",
		"qemu+ssh://h/system?":              "",
		"qemu+ssh://h/system?no_verify=1&":  "not checked",
		"qemu+tls://h/system?no_verify=1&":  "not checked",
		"qemu+tcp://h/system?":              "encrypts nothing",
		"qemu+tls://h/system?pkipath=/pki&": "",
	} {
		d, _, err := ParseDest(prefix + in + "pool=p&volume=v")
		check(t, err)
		if w := d.Warning(); (w == "") != (words == "") || !strings.Contains(w, words) {
			t.Errorf("%s: %q", in, w)
		}
	}
}

func FuzzParseDest(f *testing.F) {
	for _, s := range []string{
		"libvirt+qemu:///system?pool=images&volume=boot.qcow2",
		"libvirt+qemu+ssh://u@[fe80::1%25eth0]:22/session?socket=/s&pool=a%20b&volume=c%26d&known_hosts=/k",
		"libvirt+qemu://h/system?no_verify=1;pool=p;volume=v", "x", "libvirt+",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, is, err := ParseDest(s)
		if is != strings.HasPrefix(s, prefix) {
			t.Fatalf("%q: %t", s, is)
		}
		if err != nil && !errors.Is(err, ErrUsage) {
			t.Fatalf("%q: %v is no ErrUsage", s, err)
		}
		if !is || err != nil {
			return
		}
		if d.Pool() == "" || d.Volume() == "" || strings.Contains(d.Volume(), "/") {
			t.Fatalf("%q: pool %q, volume %q", s, d.Pool(), d.Volume())
		}
		if again, _, err := ParseDest(d.String()); err != nil || again != d {
			t.Fatalf("%q is written as %q, which is %+v, %v; want %+v", s, d, again, err, d)
		}
	})
}
