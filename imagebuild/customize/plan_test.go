package customize

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

func TestParseCopy(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a:/b", ""}, {"a:/b:0644", ""}, {"a:/b:4755:0:107", ""}, {"./x y:/b/", ""},
		{"a", "give SRC:DST"}, {"a:", "give SRC:DST"}, {":/b", "give SRC:DST"}, {"a:/b:0644:0", "give SRC:DST"}, {"a:/b:0:0:0:0", "give SRC:DST"},
		{"a:b", "must begin with a slash"}, {"a:/b/../c", "no . or .. in it"}, {"a:/b/./c", "no . or .. in it"}, {"a:/b\nc", "is no path"},
		{"a:/" + strings.Repeat("x", 256), "longer than 255 bytes"},
		{"a:/b:rw", "octal"}, {"a:/b:10000", "octal"}, {"a:/b:0644:root:0", "not a number of a user"}, {"a:/b:0644:0:-1", "not a number of a user"},
		{"a:/b:0644:0:4294967295", "not a number of a user"},
	} {
		_, err := ParseCopy(c.in)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.in, err, c.want)
		}
	}
	got, err := ParseCopy("a:/b:7755:1:2")
	if err != nil || tarMode(*got.Mode) != 0o7755 || *got.UID != 1 || *got.GID != 2 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestParseWrite(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"/a=b", ""}, {"/a=", ""}, {"/a=b=c\nd", ""}, {"/a", "give DST=TEXT"}, {"=b", "give DST=TEXT"}, {"a=b", "must begin with a slash"},
	} {
		_, err := ParseWrite(c.in)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.in, err, c.want)
		}
	}
	if got, _ := ParseWrite("/a=b=c"); got != (Write{"/a", "b=c"}) {
		t.Errorf("%+v", got)
	}
}

func TestHostname(t *testing.T) {
	for name, want := range map[string]string{
		"node-1": "", "Node1.example.org": "", "1": "", strings.Repeat("a", 63): "",
		"a..b": "empty part", ".a": "empty part", "-a": "begins or ends with a hyphen", "a-.b": "begins or ends with a hyphen", "a_b": "letters, digits",
		"a b": "letters, digits", "ä": "letters, digits", strings.Repeat("a", 65): "64 bytes", strings.Repeat("a", 64): "63 bytes", "a\n": "letters, digits",
	} {
		err := checkHostname(name)
		if want == "" && err != nil || want != "" && (!errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
}

var base = files{
	"etc/os-release": "ID=test\nVERSION_ID=1\n", "etc/motd": "old\n", "etc/folder/x": "1", "etc/link": "->motd", "etc/out": "->/run/out", "etc/dir": "->folder",
	"etc/fstab": "nfs:/x /srv/nfs nfs defaults\n", "var/lib/x": "", "lib": "->usr/lib", "usr/lib/y": "", "srv/nfs/": "",
}

var bls = files{"boot/loader/entries/a-1.conf": "title A\nversion 1\nlinux /vmlinuz-1\ninitrd /initrd-1\noptions root=UUID=a ro console=tty0 console=ttyS0\n"}

// Every sentence of wrong use, on a disk of ext4 with or without boot loader entries.
func TestRefused(t *testing.T) {
	src := t.TempDir()
	files{"file": "x", "folder/a": "1", "folder/sub/b": "2", "dirlink": "->folder", "v2.ign": `{"ignition":{"version":"2.3.0"}}`, "none.ign": `{}`, "bad.ign": "variant: fcos\n",
		"v3.ign": `{"ignition":{"version":"3.4.0"}}`}.write(t, src)
	if err := errors.Join(syscall.Mkfifo(filepath.Join(src, "pipe"), 0o600), os.Mkdir(filepath.Join(src, "with"), 0o755),
		syscall.Mknod(filepath.Join(src, "with", "sock"), syscall.S_IFSOCK|0o600, 0)); err != nil {
		t.Fatal(err)
	}
	in := func(n string) string { return filepath.Join(src, n) }
	copies := func(s, d string) Spec { return Spec{Copies: []Copy{{Src: in(s), Dst: d}}} }
	writes := func(d ...string) Spec {
		var s Spec
		for _, d := range d {
			s.Writes = append(s.Writes, Write{d, "x"})
		}
		return s
	}
	booted := open(t, ext4Disk(t, base.with(bls).with(files{"usr/lib/dracut/modules.d/30ignition/ignition": "x"})))
	plain := open(t, ext4Disk(t, base))
	firstboot := open(t, ext4Disk(t, base.with(files{"boot/loader/entries/a.conf": "linux /v\noptions ignition.firstboot=1 ignition.platform.id=qemu\n"})))
	for name, c := range map[string]struct {
		root *osroot.Root
		spec Spec
		is   error
		want string
	}{
		"source missing":         {plain, copies("nothing", "/etc/x"), ErrUsage, "no such file"},
		"source missing, too":    {plain, copies("nothing", "/etc/x"), fs.ErrNotExist, ""},
		"pipe":                   {plain, copies("pipe", "/etc/x"), ErrUsage, "pipe is no file, folder or link (a pipe)"},
		"socket in a folder":     {plain, copies("with", "/etc/x"), ErrUsage, "sock is no file, folder or link (a socket)"},
		"file over folder":       {plain, copies("file", "/etc/folder"), ErrUsage, "end the path with a slash"},
		"folder over file":       {plain, copies("folder", "/etc/motd"), ErrUsage, "/etc/motd is not a folder on the disk, but in the source"},
		"below a file":           {plain, copies("file", "/etc/motd/x"), ErrUsage, "something above /etc/motd/x is not a folder"},
		"volatile":               {plain, copies("file", "/run/x"), osroot.ErrHidden, "made anew at each boot"},
		"volatile by a link":     {plain, copies("file", "/etc/out"), osroot.ErrHidden, "made anew at each boot"},
		"hidden by a mount":      {plain, copies("file", "/srv/nfs/x"), osroot.ErrHidden, "mounts nfs:/x on /srv/nfs"},
		"relative":               {plain, copies("file", "etc/x"), ErrUsage, "must begin with a slash"},
		"write to a folder":      {plain, writes("/etc/folder"), ErrUsage, "/etc/folder is not a regular file"},
		"write to a slash":       {plain, writes("/etc/folder/"), ErrUsage, "that is a folder; name a file"},
		"write twice":            {plain, writes("/etc/x", "/etc/x"), ErrUsage, "/etc/x is changed by a text that is written and by a text that is written"},
		"write twice, a link":    {plain, writes("/etc/motd", "/etc/link"), ErrUsage, "leave one of them out"},
		"write and hostname":     {plain, Spec{Hostname: "a", Writes: []Write{{"/etc/hostname", "b"}}}, ErrUsage, "/etc/hostname is changed by the host's name and by a text"},
		"copy and hostname":      {plain, Spec{Hostname: "a", Copies: []Copy{{Src: in("file"), Dst: "/etc/hostname"}}}, ErrUsage, "/etc/hostname is changed by the host's name as well"},
		"hostname":               {plain, Spec{Hostname: "a_b"}, ErrUsage, "letters, digits"},
		"delete missing":         {plain, Spec{Deletes: []string{"/etc/nothing"}}, ErrUsage, "/etc/nothing is not on the disk"},
		"delete twice":           {plain, Spec{Deletes: []string{"/etc/folder", "/etc/folder/x"}}, ErrUsage, "/etc/folder/x is not on the disk"},
		"delete all":             {plain, Spec{Deletes: []string{"/"}}, ErrUsage, "one of the system's own folders"},
		"delete a top folder":    {plain, Spec{Deletes: []string{"/usr/"}}, ErrUsage, "/usr is one of the system's own folders"},
		"delete what is hidden":  {plain, Spec{Deletes: []string{"/srv/nfs"}}, osroot.ErrHidden, "mounts nfs:/x"},
		"delete relative":        {plain, Spec{Deletes: []string{"etc/motd"}}, ErrUsage, "must begin with a slash"},
		"through a deleted link": {plain, Spec{Deletes: []string{"/etc/dir"}, Writes: []Write{{"/etc/dir/x", ""}}}, ErrUsage, "leads through the link /etc/dir, which is deleted"},
		"no boot loader":         {plain, Spec{KargAppend: []string{"a"}}, ErrUnsupported, "there is no /boot/loader/entries/*.conf, and no linux line with root= in /boot/grub2/grub.cfg or /boot/grub/grub.cfg"},
		"karg form":              {booted, Spec{KargReplace: []string{"a"}}, ErrUsage, `--karg-replace "a": give KEY=NEW or KEY=OLD=NEW`},
		"karg missing":           {booted, Spec{KargDelete: []string{"quiet"}}, ErrUsage, "--karg-delete quiet: the boot loader entry /boot/loader/entries/a-1.conf has no quiet"},
		"karg value missing":     {booted, Spec{KargDelete: []string{"root=x"}}, ErrUsage, "has no root=x"},
		"karg ambiguous":         {booted, Spec{KargDelete: []string{"console"}}, ErrUsage, "has several values of console; say console=VALUE"},
		"karg replace missing":   {booted, Spec{KargReplace: []string{"quiet=1"}}, ErrUsage, "--karg-replace quiet=1: the boot loader entry /boot/loader/entries/a-1.conf has no quiet"},
		"karg replace ambiguous": {booted, Spec{KargReplace: []string{"console=x"}}, ErrUsage, "say console=OLD=NEW"},
		"karg replace old":       {booted, Spec{KargReplace: []string{"root=UUID=b"}}, ErrUsage, "has no root=UUID (a NEW with"},
		"karg and write":         {booted, Spec{KargAppend: []string{"a"}, Writes: []Write{{"/boot/loader/entries/a-1.conf", ""}}}, ErrUsage, "is changed by what the boot loader reads and by a text"},
		"no platform":            {booted, Spec{IgnitionPlatform: "metal"}, ErrUnsupported, "has no ignition.platform.id; only Fedora and RHEL CoreOS"},
		"platform form":          {booted, Spec{IgnitionPlatform: "a b"}, ErrUsage, "letters, digits and hyphens only"},
		"ignition missing":       {booted, Spec{Ignition: in("nothing")}, ErrUsage, "no such file"},
		"ignition no JSON":       {booted, Spec{Ignition: in("bad.ign")}, ErrUsage, "is not JSON"},
		"ignition no version":    {booted, Spec{Ignition: in("none.ign")}, ErrUsage, "has no ignition.version"},
		"ignition version 2":     {booted, Spec{Ignition: in("v2.ign")}, ErrUsage, `has ignition.version "2.3.0"; CoreOS and OCK read version 3`},
		"ignition, booted":       {booted, Spec{Ignition: in("v3.ign")}, ErrUnsupported, "this disk has booted"},
		"no ignition":            {plain, Spec{Ignition: in("v3.ign")}, ErrUnsupported, "there is no Ignition on the disk (test 1 is no CoreOS or OCK)"},
		"ignition, neither":      {firstboot, Spec{Ignition: in("v3.ign")}, ErrUnsupported, "neither a CoreOS with /boot/ignition.firstboot nor laid out by ostree"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewPlan(c.root, c.spec)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %q, matching %v", err, c.want, c.is)
			}
		})
	}
}

// What an ostree disk refuses.
func TestRefusedOstree(t *testing.T) {
	root := open(t, demo+"ostree.qcow2")
	for name, c := range map[string]struct {
		spec Spec
		is   error
		want string
	}{
		"usr":            {Spec{Writes: []Write{{"/usr/lib/x", ""}}}, osroot.ErrImmutable, "nothing can be kept at /usr/lib/x; choose a path in /etc or /var"},
		"usr by a link":  {Spec{Writes: []Write{{"/lib/x", ""}}}, osroot.ErrImmutable, "/lib/x"},
		"top":            {Spec{Writes: []Write{{"/x", ""}}}, osroot.ErrImmutable, "/x"},
		"sysroot":        {Spec{Deletes: []string{"/sysroot/ostree/repo"}}, osroot.ErrImmutable, "/sysroot/ostree"},
		"os-release":     {Spec{Writes: []Write{{"/etc/os-release", ""}}}, osroot.ErrImmutable, "/etc/os-release"},
		"entries":        {Spec{Writes: []Write{{"/boot/loader/entries/x.conf", ""}}}, osroot.ErrImmutable, "written anew with each deployment"},
		"kernel":         {Spec{Deletes: []string{"/boot/ostree"}}, osroot.ErrImmutable, "written anew with each deployment"},
		"etc":            {Spec{Deletes: []string{"/etc"}}, ErrUsage, "system's own folders"},
		"var otherwise":  {Spec{Deletes: []string{"/sysroot/ostree/deploy/demo/var"}}, osroot.ErrImmutable, "/sysroot/ostree/deploy/demo"},
		"the deployment": {Spec{KargDelete: []string{"ostree"}}, ErrUsage, "ostree= names the deployment that is started"},
		"no firstboot":   {Spec{Ignition: ign(t)}, ErrUnsupported, "there is no Ignition on the disk (nodebake demo OS"},
		"no platform id": {Spec{IgnitionPlatform: "metal"}, ErrUnsupported, "has no ignition.platform.id"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewPlan(root, c.spec)
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %q, matching %v", err, c.want, c.is)
			}
		})
	}
}

func ign(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "config.ign")
	if err := os.WriteFile(name, []byte(`{"ignition":{"version":"3.4.0"},"storage":{"files":[{"path":"/etc/x"}]}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A source that changes between the plan and the copy is noticed.
func TestReplacedSource(t *testing.T) {
	src := t.TempDir()
	files{"dir/a": "1", "dir/b": "2"}.write(t, src)
	p, err := NewPlan(open(t, ext4Disk(t, base)), Spec{Copies: []Copy{{Src: filepath.Join(src, "dir", "a"), Dst: "/etc/x"}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(src, "dir", "b"), filepath.Join(src, "dir", "a")); err != nil {
		t.Fatal(err)
	}
	err = p.Apply(context.Background(), func(*osroot.System) Writer { return nil })
	if !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), "/etc/x: wrong use: ") || !strings.Contains(err.Error(), "dir/a was replaced while it was read") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.Apply(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
