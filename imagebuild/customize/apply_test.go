package customize

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodebake/nodebake/imagebuild/osroot"
)

func mode(m os.FileMode) *os.FileMode { return &m }
func id(n int) *int                   { return &n }

// Copies, writes and deletes of a disk with a boot partition, as the kernel sees them.
func TestApply(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			name := partitioned(t, kind, files{"loader/entries/a.conf": "linux /v\noptions ro\n", "old": "x"}, base.with(files{
				"etc/fstab": "LABEL=boot /boot ext4 defaults\n", "etc/gone/a/b": "1", "etc/gone/l": "->/etc/motd", "etc/keep": "old", "etc/resolv.conf": "->/run/resolv.conf", "etc/ln": "->motd", "opt/app/": ""}))
			src := t.TempDir()
			files{"file": "content\n", "tree/lib/z": "z", "tree/etc/folder/x": "2", "tree/etc/ln": "->elsewhere", "tree/boot/extra": "b", "tree/empty/": "", "tree/run.sh": "#!/bin/sh\n",
				"tree/out": "->/etc/passwd", "named": "->file"}.write(t, src)
			sparse, err := os.Create(filepath.Join(src, "tree", "sparse"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = sparse.WriteAt([]byte("end"), 100<<20)
			if err := errors.Join(err, sparse.Close(), os.Chmod(filepath.Join(src, "tree", "run.sh"), 0o755|os.ModeSetuid), os.Chmod(filepath.Join(src, "tree", "empty"), 0o750|os.ModeSticky),
				os.Chown(filepath.Join(src, "file"), 12, 34), os.Chmod(filepath.Join(src, "file"), 0o640)); err != nil {
				t.Fatal(err)
			}
			withLoop(t, name, 69632*512, 320<<20, func(dev string) {
				mnt := mount(t, dev, "rw")
				keep := filepath.Join(mnt, "etc", "keep")
				if err := errors.Join(os.Chown(keep, 5, 6), os.Chmod(keep, 0o604), unix.Setxattr(keep, "user.x", []byte("y"), 0), unix.Setxattr(keep, "security.selinux", []byte("kept\x00"), 0)); err != nil {
					t.Fatal(err)
				}
				run(t, "umount", mnt)
			})
			in := func(n string) string { return filepath.Join(src, n) }
			root := open(t, name)
			p, err := NewPlan(root, Spec{
				Copies: []Copy{{Src: in("file"), Dst: "/etc/a/b/c"}, {Src: in("file"), Dst: "/etc/folder/", Mode: mode(0o755 | os.ModeSetuid), UID: id(7), GID: id(8)}, {Src: in("named"), Dst: "/etc/named"}, {Src: in("tree"), Dst: "/"},
					{Src: in("tree"), Dst: "/opt/app/", Mode: mode(0o640), UID: id(7), GID: id(8)}, {Src: in("file"), Dst: "/etc/ln2"}},
				Writes:  []Write{{"/etc/keep", "new"}, {"/etc/resolv.conf", "nameserver 1.1.1.1\n"}, {"/etc/gone/new", "n"}, {"/boot/sub/x", "boot"}, {"/opt/app/run.sh", "mine"}},
				Deletes: []string{"/etc/gone", "/etc/resolv.conf", "/boot/old", "/etc/dir"}, Hostname: "node-1",
			})
			if err != nil {
				t.Fatal(err)
			}
			apply(t, name, root, p)
			t.Logf("\n%s", changes(p))
			if !slices.Contains(p.Paths(), "boot/sub/x") || !slices.Contains(p.Paths(), "boot") {
				t.Errorf("paths %q", p.Paths())
			}
			withLoop(t, name, 69632*512, 320<<20, func(dev string) {
				mnt := mount(t, dev, "ro")
				withLoop(t, name, 2048*512, 32<<20, func(bootDev string) {
					run(t, "mount", "-o", "ro", bootDev, filepath.Join(mnt, "boot"))
					defer run(t, "umount", filepath.Join(mnt, "boot"))
					for path, want := range map[string]string{
						"etc/a": "d755 0:0 sel=new:/etc/a", "etc/a/b": "d755 0:0 sel=new:/etc/a/b", "etc/a/b/c": "-640 0:0 sel=new:/etc/a/b/c content\n",
						"etc/folder/file": "-4755 7:8 sel=new:/etc/folder/file content\n", "etc/named": "-640 0:0 sel=new:/etc/named content\n", "usr/lib/z": "-644 0:0 sel=new:/usr/lib/z z",
						"lib": "l777 0:0 ->usr/lib", "etc/folder": "d755 0:0", "etc/folder/x": "-644 0:0 sel=new:/etc/folder/x 2", "etc/ln": "l777 0:0 sel=new:/etc/ln ->elsewhere", "boot/extra": "-644 0:0 sel=new:/boot/extra b",
						"empty": "d1750 0:0 sel=new:/empty", "run.sh": "-755 0:0 sel=new:/run.sh #!/bin/sh\n", "out": "l777 0:0 sel=new:/out ->/etc/passwd",
						"opt/app": "d755 0:0", "opt/app/lib": "d750 7:8 sel=new:/opt/app/lib", "opt/app/lib/z": "-640 7:8 sel=new:/opt/app/lib/z z", "opt/app/out": "l777 7:8 sel=new:/opt/app/out ->/etc/passwd",
						"opt/app/run.sh": "-640 7:8 sel=new:/opt/app/run.sh mine", "etc/keep": "-604 5:6 sel=kept user=y new", "etc/resolv.conf": "-644 0:0 sel=new:/etc/resolv.conf nameserver 1.1.1.1\n",
						"etc/gone": "d755 0:0 sel=new:/etc/gone", "etc/gone/new": "-644 0:0 sel=new:/etc/gone/new n", "boot/sub": "d755 0:0 sel=new:/boot/sub", "boot/sub/x": "-644 0:0 sel=new:/boot/sub/x boot",
						"etc/hostname": "-644 0:0 sel=new:/etc/hostname node-1\n", "etc/gone/a": "", "etc/gone/l": "", "boot/old": "", "etc/dir": "", "etc/motd": "-644 0:0 old\n",
					} {
						if got := describe(t, filepath.Join(mnt, path)); got != want {
							t.Errorf("%s:\n got %q\nwant %q", path, got, want)
						}
					}
					a, b := in("tree/sparse"), filepath.Join(mnt, "sparse")
					run(t, "cmp", a, b)
					if st, err := os.Stat(b); err != nil || st.Sys().(*syscall.Stat_t).Blocks > 1<<10 || !st.ModTime().Equal(now) {
						t.Errorf("a sparse file: %+v, %v", st, err)
					}
				})
			})
		})
	}
}

// describe is a file's type, mode, owner, label and content as the kernel has them; empty for none.
func describe(t *testing.T, name string) string {
	t.Helper()
	st, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	s := fmt.Sprintf("%s%o %d:%d", st.Mode().String()[:1], sys.Mode&0o7777, sys.Uid, sys.Gid)
	s = strings.NewReplacer("L", "l", "u", "-", "t", "d").Replace(s[:1]) + s[1:]
	if st.Mode()&os.ModeSticky != 0 && st.IsDir() {
		s = "d" + s[1:]
	}
	value := make([]byte, 256)
	for _, x := range []struct{ key, name string }{{"security.selinux", "sel"}, {"user.x", "user"}} {
		if n, err := unix.Lgetxattr(name, x.key, value); err == nil {
			s += " " + x.name + "=" + strings.TrimRight(string(value[:n]), "\x00")
		}
	}
	switch {
	case st.Mode()&os.ModeSymlink != 0:
		target, err := os.Readlink(name)
		if err != nil {
			t.Fatal(err)
		}
		s += " ->" + target
	case st.Mode().IsRegular():
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s += " " + string(b)
	}
	return s
}

// Kernel arguments wherever distributions keep them.
func TestKargs(t *testing.T) {
	block := func(vars string) string {
		b := envSignature + vars
		return b + strings.Repeat("#", 1024-len(b))
	}
	entry := func(version, options string) string {
		return "title T (" + version + ")\nversion " + version + "\nlinux /vmlinuz-" + version + "\ninitrd /initrd\n" + options + "grub_users $grub_users\n"
	}
	spec := Spec{KargAppend: []string{"nodebake=1", "x=a b"}, KargDelete: []string{"quiet"}, KargReplace: []string{"console=tty0=tty1"}}
	for _, c := range []struct {
		name string
		has  files
		spec Spec
		want files
		warn string
	}{
		{"RHEL 9: entries, /etc/kernel/cmdline, /etc/default/grub", files{
			"boot/loader/entries/a-5.conf": entry("5", "options root=UUID=a ro console=tty0 quiet $tuned_params\n"), "boot/loader/entries/a-0-rescue.conf": entry("0-rescue", "options root=UUID=a ro\n"),
			"etc/kernel/cmdline": "root=UUID=a ro console=tty0 quiet\n", "etc/default/grub": "A=1\nGRUB_CMDLINE_LINUX=\"console=tty0 quiet\"\nB=2\n", "boot/grub2/grub.cfg": "blscfg\n",
		}, spec, files{
			"boot/loader/entries/a-5.conf":        entry("5", "options root=UUID=a ro console=tty1 $tuned_params nodebake=1 x=\"a b\"\n"),
			"boot/loader/entries/a-0-rescue.conf": entry("0-rescue", "options root=UUID=a ro nodebake=1 x=\"a b\"\n"),
			"etc/kernel/cmdline":                  "root=UUID=a ro console=tty1 nodebake=1 x=\"a b\"\n", "etc/default/grub": "A=1\nGRUB_CMDLINE_LINUX=\"console=tty1 nodebake=1 x=\\\"a b\\\"\"\nB=2\n",
			"boot/grub2/grub.cfg": "blscfg\n",
		}, ""},
		{"RHEL 8: kernelopts in grubenv", files{
			"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts $tuned_params\n"), "boot/loader/entries/b.conf": entry("0", "options root=UUID=b\n"),
			"boot/grub2/grubenv": block("saved_entry=a-4\nkernelopts=root=UUID=a ro console=tty0 quiet \nboot_success=0\n"), "boot/grub2/grub.cfg": "if x; then\n  set kernelopts=\"root=UUID=a console=tty0 quiet\"\nfi\n",
		}, Spec{KargAppend: []string{"nodebake=1"}, KargDelete: []string{"quiet"}, KargReplace: []string{"console=tty1"}}, files{
			"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts $tuned_params\n"), "boot/loader/entries/b.conf": entry("0", "options root=UUID=b nodebake=1\n"),
			"boot/grub2/grubenv":  block("saved_entry=a-4\nkernelopts=root=UUID=a ro console=tty1 nodebake=1\nboot_success=0\n"),
			"boot/grub2/grub.cfg": "if x; then\n  set kernelopts=\"root=UUID=a console=tty1 nodebake=1\"\nfi\n",
		}, ""},
		{"RHEL 8 with EFI: grubenv is out of reach", files{
			"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts\n"), "boot/grub2/grubenv": "->../efi/EFI/redhat/grubenv", "etc/fstab": "UUID=1 /boot/efi vfat defaults\n",
			"boot/grub2/grub.cfg": "set kernelopts=\"ro\"\n",
		}, Spec{KargAppend: []string{"nodebake=1"}}, files{"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts nodebake=1\n"), "boot/grub2/grub.cfg": "set kernelopts=\"ro\"\n"}, ""},
		{"RHEL 8: the fallback of grub.cfg is all there is", files{
			"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts\n"), "boot/grub2/grubenv": block("saved_entry=a-4\n"), "boot/grub2/grub.cfg": "set kernelopts=\"ro quiet\"\n",
		}, Spec{KargAppend: []string{"nodebake=1"}, KargDelete: []string{"quiet"}}, files{"boot/loader/entries/a-4.conf": entry("4", "options $kernelopts\n"), "boot/grub2/grub.cfg": "set kernelopts=\"ro nodebake=1\"\n"}, ""},
		{"Debian: grub.cfg and /etc/default/grub", files{
			"boot/grub/grub.cfg": "menuentry 'D' {\n\tlinux\t/boot/vmlinuz-6 root=UUID=a ro console=tty0 quiet $vt\n\tinitrd /i\n}\nmenuentry 'R' {\n\t\tlinux /boot/vmlinuz-6 root=UUID=a ro single\n}\n  linux16 /boot/memtest\n",
			"etc/default/grub":   "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=''\n# GRUB_CMDLINE_LINUX=no\n", "etc/default/grub.d/10_cloud.cfg": "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX console=tty0\" # cloud\n",
		}, spec, files{
			"boot/grub/grub.cfg": "menuentry 'D' {\n\tlinux\t/boot/vmlinuz-6 root=UUID=a ro console=tty1 $vt nodebake=1 x=\"a b\"\n\tinitrd /i\n}\nmenuentry 'R' {\n\t\tlinux /boot/vmlinuz-6 root=UUID=a ro single nodebake=1 x=\"a b\"\n}\n  linux16 /boot/memtest\n",
			"etc/default/grub":   "GRUB_CMDLINE_LINUX_DEFAULT=\"\"\nGRUB_CMDLINE_LINUX=''\n# GRUB_CMDLINE_LINUX=no\n", "etc/default/grub.d/10_cloud.cfg": "GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX console=tty1 nodebake=1 x=\\\"a b\\\"\" # cloud\n",
		}, ""},
		{"Debian: what grub-mkconfig itself adds", files{
			"boot/grub/grub.cfg": "linux /v root=UUID=a ro\n", "etc/default/grub": "A=1",
		}, Spec{KargDelete: []string{"ro"}, KargAppend: []string{"a", "b"}}, files{
			"boot/grub/grub.cfg": "linux /v root=UUID=a a b\n", "etc/default/grub": "A=1\nGRUB_CMDLINE_LINUX=\"a b\"\n",
		}, "the next update-grub on the machine brings it back"},
		{"two options lines, and none", files{
			"boot/loader/entries/b.conf": "linux /v\noptions root=a\ninitrd /i\noptions quiet", "boot/loader/entries/a.conf": "linux /v",
		}, Spec{KargAppend: []string{"x"}}, files{"boot/loader/entries/b.conf": "linux /v\noptions root=a quiet x\ninitrd /i\n", "boot/loader/entries/a.conf": "linux /v\noptions x\n"}, ""},
		{"the platform", files{
			"boot/loader/entries/b.conf": "linux /v\noptions ro ignition.platform.id=qemu\n",
		}, Spec{IgnitionPlatform: "metal"}, files{"boot/loader/entries/b.conf": "linux /v\noptions ro ignition.platform.id=metal\n"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := ext4Disk(t, base.with(c.has))
			root := open(t, name)
			p, err := NewPlan(root, c.spec)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.Warnings(), "\n"); (c.warn == "") != (got == "") || !strings.Contains(got, c.warn) {
				t.Errorf("warnings %q, want %q", got, c.warn)
			}
			apply(t, name, root, p)
			for f, want := range c.want {
				if got := read(t, name, "/"+f); got != want {
					t.Errorf("%s:\n%s\nwant\n%s", f, got, want)
				}
			}
			checkEnv(t, name, c.want)
			checkDebian(t, name, c.want)
		})
	}
}

// checkEnv has GRUB's own tool read the environment block.
func checkEnv(t *testing.T, name string, want files) {
	t.Helper()
	const env = "boot/grub2/grubenv"
	if !strings.HasPrefix(want[env], envSignature) {
		return
	}
	if _, err := exec.LookPath("grub-editenv"); err != nil {
		lacking(t, "grub-editenv (Debian: grub-common) is missing")
	}
	f := filepath.Join(t.TempDir(), "grubenv")
	if err := os.WriteFile(f, []byte(read(t, name, "/"+env)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := run(t, "grub-editenv", f, "list"); !strings.Contains(out, "\nkernelopts=root=UUID=a ro console=tty1 nodebake=1\n") || !strings.Contains(out, "saved_entry=a-4\n") {
		t.Errorf("grub-editenv lists\n%s", out)
	}
	run(t, "grub-editenv", f, "set", "more=1")
}

// checkDebian has the shell and GRUB read what Debian's disk holds now.
func checkDebian(t *testing.T, name string, want files) {
	t.Helper()
	const cloud = "etc/default/grub.d/10_cloud.cfg"
	if want[cloud] == "" {
		return
	}
	if _, err := exec.LookPath("grub-script-check"); err != nil {
		lacking(t, "grub-script-check (Debian: grub-common) is missing")
	}
	dir := t.TempDir()
	for _, f := range []string{"etc/default/grub", cloud, "boot/grub/grub.cfg"} {
		files{f: read(t, name, "/"+f)}.write(t, dir)
	}
	run(t, "grub-script-check", filepath.Join(dir, "boot/grub/grub.cfg"))
	if got := run(t, "sh", "-euc", "cd \"$0\"; . ./etc/default/grub; . ./"+cloud+"; printf '%s|%s' \"$GRUB_CMDLINE_LINUX\" \"$GRUB_CMDLINE_LINUX_DEFAULT\"", dir); got != ` console=tty1 nodebake=1 x="a b"|` {
		t.Errorf("the shell reads %q", got)
	}
}

// What cannot be done with the arguments of such disks.
func TestKargsRefused(t *testing.T) {
	full := envSignature + "kernelopts=root=UUID=a\n"
	full += strings.Repeat("#", 1024-len(full))
	rhel8 := files{"boot/loader/entries/a.conf": "linux /v\noptions $kernelopts\n"}
	for _, c := range []struct {
		name string
		has  files
		spec Spec
		is   error
		want string
	}{
		{"full grubenv", rhel8.with(files{"boot/grub2/grubenv": full}), Spec{KargAppend: []string{"x=" + strings.Repeat("y", 1000)}}, ErrUnsupported, "has 1024 bytes, and 27 more would be needed"},
		{"no environment block", rhel8.with(files{"boot/grub2/grubenv": "x"}), Spec{KargAppend: []string{"x"}}, ErrUnsupported, "is no environment block of GRUB"},
		{"cut short", rhel8.with(files{"boot/grub2/grubenv": envSignature + "kernelopts=a"}), Spec{KargAppend: []string{"x"}}, ErrUnsupported, "is cut short"},
		{"grubenv out of reach", rhel8.with(files{"boot/grub2/grubenv": "->../efi/EFI/redhat/grubenv", "etc/fstab": "UUID=1 /boot/efi vfat defaults\n", "boot/grub2/grub.cfg": "set kernelopts=\"quiet\"\n"}),
			Spec{KargDelete: []string{"quiet"}}, osroot.ErrHidden, "which cannot be changed"},
		{"no variable", rhel8, Spec{KargDelete: []string{"x"}}, ErrUnsupported, "no grubenv in /boot/grub2 or /boot/grub has it"},
		{"variable and own", files{"boot/loader/entries/a.conf": "linux /v\noptions $kernelopts quiet\n", "boot/grub2/grubenv": strings.Replace(full, "=a\n#######", "=a quiet\n#", 1)},
			Spec{KargDelete: []string{"quiet"}}, ErrUsage, "has several values of quiet"},
		{"a program in /etc/default/grub", files{"boot/grub/grub.cfg": "linux /v root=a\n", "etc/default/grub": "GRUB_CMDLINE_LINUX=\"`id`\"\n"}, Spec{KargAppend: []string{"x"}}, ErrUnsupported, "line 1 of /etc/default/grub: the value is not one plain word"},
		{"a NUL in an entry", files{"boot/loader/entries/a.conf": "linux /v\x00\n"}, Spec{KargAppend: []string{"x"}}, nil, "NUL"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewPlan(open(t, ext4Disk(t, base.with(c.has))), c.spec)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %q", err, c.want)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	traces := files{"etc/machine-id": "0123456789abcdef0123456789abcdef\n", "var/lib/dbus/machine-id": "0123456789abcdef0123456789abcdef\n", "etc/ssh/ssh_host_rsa_key": "k", "etc/ssh/ssh_host_rsa_key.pub": "k",
		"var/lib/systemd/random-seed": "r", "var/lib/systemd/credential.secret": "c", "var/lib/cloud/instance": "->instances/i", "var/lib/cloud/instances/i/x": "1", "var/lib/dhcp/dhclient.eth0.leases": "l",
		"var/lib/NetworkManager/internal-a.lease": "l", "var/lib/NetworkManager/secret_key": "s", "var/lib/dhclient/a.lease": "l", "var/lib/dhcpcd/duid": "d", "etc/udev/rules.d/70-persistent-net.rules": "u"}
	stays := files{"etc/ssh/sshd_config": "c", "var/lib/cloud/seed/nocloud/user-data": "u", "var/lib/NetworkManager/NetworkManager.state": "n", "var/lib/systemd/timers/x": "t"}
	name := ext4Disk(t, base.with(traces).with(stays))
	root := open(t, name)
	p, err := NewPlan(root, Spec{ResetIdentity: true})
	if err != nil {
		t.Fatal(err)
	}
	if w := p.Warnings(); len(w) != 1 || !strings.Contains(w[0], "ssh-keygen -A") {
		t.Errorf("warnings %q", w)
	}
	apply(t, name, root, p)
	after := open(t, name)
	for f := range traces {
		h, err := after.Tree.Stat(f)
		switch {
		case f == "etc/machine-id":
			if err != nil || h.Size != 0 || h.Mode != 0o644 {
				t.Errorf("%s: %+v, %v", f, h, err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			t.Errorf("%s is still there: %v", f, err)
		case f != "var/lib/cloud/instances/i/x" && !strings.Contains(changes(p), "/"+f+": "):
			t.Errorf("%s is not in the report", f)
		}
	}
	for f, want := range stays {
		if got := read(t, name, "/"+f); got != want {
			t.Errorf("%s: %q", f, got)
		}
	}
	again, err := NewPlan(after, Spec{ResetIdentity: true})
	if err != nil || len(again.Changes()) != 0 {
		t.Errorf("once more: %v, %v", again.Changes(), err)
	}
	for what, f := range map[string]files{"missing": {}, "uninitialized": {"etc/machine-id": "uninitialized\n"}, "link": {"var/lib/dbus/machine-id": "->/etc/machine-id"}} {
		p, err := NewPlan(open(t, ext4Disk(t, base.with(f).with(files{"usr/bin/cloud-init": "x"}))), Spec{ResetIdentity: true})
		if err != nil || len(p.Changes())+len(p.Warnings()) != 0 {
			t.Errorf("%s: %v, %v", what, p.Changes(), err)
		}
	}
}

// Ignition at the first boot of CoreOS, with its boot partition.
func TestIgnitionCoreOS(t *testing.T) {
	name := partitioned(t, "ext4", files{"ignition.firstboot": "", "loader/entries/a.conf": "linux /v\noptions $ignition_firstboot ignition.platform.id=metal\n"}, base.with(files{"etc/fstab": "LABEL=boot /boot ext4 ro\n"}))
	root := open(t, name)
	config := ign(t)
	p, err := NewPlan(root, Spec{Ignition: config, IgnitionPlatform: "qemu"})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, name, root, p)
	withLoop(t, name, 2048*512, 32<<20, func(dev string) {
		mnt := mount(t, dev, "ro")
		run(t, "cmp", config, filepath.Join(mnt, "ignition", "config.ign"))
		for f, want := range map[string]string{"ignition": "d700 0:0 ", "ignition/config.ign": "-600 0:0 "} {
			if got := describe(t, filepath.Join(mnt, f)); !strings.HasPrefix(got, want) {
				t.Errorf("%s: %s", f, got)
			}
		}
		b, err := os.ReadFile(filepath.Join(mnt, "loader", "entries", "a.conf"))
		if err != nil || !bytes.Contains(b, []byte("options $ignition_firstboot ignition.platform.id=qemu\n")) {
			t.Errorf("%s, %v", b, err)
		}
	})
}

// The demo's disk is laid out by ostree, with two deployments here and the arguments of OCK's.
func TestOstree(t *testing.T) {
	need(t, "ostree", "qemu-img", "cpio", "xfs_repair", "losetup")
	name := filepath.Join(t.TempDir(), "disk.raw")
	run(t, "qemu-img", "convert", "-O", "raw", demo+"ostree.qcow2", name)
	mounted(t, name, func(mnt string) {
		run(t, "ostree", "admin", "deploy", "--sysroot="+mnt, "--os=demo", "--retain", "--karg=ignition.firstboot=1", "--karg=ignition.platform.id=qemu", "demo/1")
	})
	root := open(t, name)
	if len(root.Systems) != 2 {
		t.Fatalf("%d systems", len(root.Systems))
	}
	src := t.TempDir()
	files{"roots/etc/new/x": "1", "roots/var/lib/app/y": "2", "roots/home/user/z": "3"}.write(t, src)
	config := ign(t)
	p, err := NewPlan(root, Spec{
		Copies: []Copy{{Src: filepath.Join(src, "roots", "etc"), Dst: "/etc"}, {Src: filepath.Join(src, "roots", "var"), Dst: "/var"}, {Src: filepath.Join(src, "roots", "home", "user", "z"), Dst: "/home/user/z"}},
		Writes: []Write{{"/etc/motd", "hello\n"}, {"/boot/note", "n"}}, Hostname: "node-1", Deletes: []string{"/etc/fstab"},
		KargAppend: []string{"nodebake=1"}, KargReplace: []string{"root=LABEL=root=UUID=b"}, IgnitionPlatform: "metal", Ignition: config, ResetIdentity: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", changes(p))
	if n := strings.Count(changes(p), ": /etc/motd: written"); n != 2 {
		t.Errorf("/etc/motd is written %d times", n)
	}
	apply(t, name, root, p)
	mounted(t, name, func(mnt string) {
		deployments, err := filepath.Glob(mnt + "/ostree/deploy/demo/deploy/*.[0-9]")
		if err != nil || len(deployments) != 2 {
			t.Fatal(deployments, err)
		}
		want := map[string]string{"boot/note": "-644 0:0 sel=new:/boot/note n", "ostree/deploy/demo/var/lib/app/y": "-644 0:0 sel=new:/var/lib/app/y 2", "ostree/deploy/demo/var/home/user/z": "-644 0:0 sel=new:/var/home/user/z 3"}
		for _, d := range deployments {
			d, _ = filepath.Rel(mnt, d)
			want[d+"/etc/motd"], want[d+"/etc/hostname"] = "-644 0:0 sel=new:/etc/motd hello\n", "-644 0:0 sel=new:/etc/hostname node-1\n"
			want[d+"/etc/new/x"], want[d+"/etc/fstab"], want[d+"/etc/machine-id"] = "-644 0:0 sel=new:/etc/new/x 1", "", ""
		}
		for f, w := range want {
			if got := describe(t, filepath.Join(mnt, f)); got != w {
				t.Errorf("%s:\n got %q\nwant %q", f, got, w)
			}
		}
		run(t, "ostree", "fsck", "--repo="+mnt+"/ostree/repo")
		if out := run(t, "ostree", "admin", "status", "--sysroot="+mnt); strings.Count(out, "demo ") != 2 {
			t.Errorf("ostree lists\n%s", out)
		}
		overlays, err := filepath.Glob(mnt + "/boot/ostree/initramfs-overlays/*.img")
		if err != nil || len(overlays) != 1 {
			t.Fatal(overlays, err)
		}
		if sum := run(t, "sha256sum", overlays[0]); sum[:64]+".img" != filepath.Base(overlays[0]) {
			t.Errorf("%s has the sum %s", overlays[0], sum)
		}
		unpacked := t.TempDir()
		run(t, "sh", "-c", "cd "+unpacked+" && cpio -id --no-absolute-filenames <"+overlays[0])
		run(t, "cmp", config, filepath.Join(unpacked, "usr/lib/ignition/user.ign"))
		entries := run(t, "sh", "-c", "cat "+mnt+"/boot/loader/entries/*.conf")
		if strings.Count(entries, "initrd /ostree/initramfs-overlays/") != 1 || strings.Count(entries, " nodebake=1\n") != 2 || strings.Count(entries, "root=UUID=b ") != 2 || strings.Count(entries, "ignition.platform.id=metal") != 1 {
			t.Errorf("entries\n%s", entries)
		}
		// ostree reads the entries as it would before a new deployment, and carries the arguments and the overlay on.
		run(t, "ostree", "admin", "instutil", "set-kargs", "--sysroot="+mnt, "--merge", "--append=by.ostree=1")
		entries = run(t, "sh", "-c", "cat "+mnt+"/boot/loader/entries/*.conf")
		if !strings.Contains(entries, "nodebake=1 by.ostree=1") || !strings.Contains(entries, "initramfs-overlays/"+filepath.Base(overlays[0])) {
			t.Errorf("ostree made of them\n%s", entries)
		}
	})
}

// mounted mounts the demo's ostree disk.
func mounted(t *testing.T, name string, do func(mnt string)) {
	t.Helper()
	root := open(t, name)
	mnt := ""
	var boot, sys struct{ start, size int64 }
	for _, v := range root.Volumes {
		if v.At == "" {
			sys.start, sys.size = v.Partition.Start, v.Partition.Size
		} else {
			boot.start, boot.size = v.Partition.Start, v.Partition.Size
		}
	}
	withLoop(t, name, sys.start, sys.size, func(dev string) {
		mnt = mount(t, dev, "rw,nouuid")
		withLoop(t, name, boot.start, boot.size, func(dev string) {
			run(t, "mount", "-o", "rw,nouuid", dev, mnt+"/boot")
			defer run(t, "umount", mnt)
			defer run(t, "umount", mnt+"/boot")
			do(mnt)
		})
	})
}

// The same spec on the same disk makes the same bytes.
func TestDeterministic(t *testing.T) {
	name := ext4Disk(t, base.with(bls))
	src := t.TempDir()
	files{"d/z": "1", "d/a": "2", "d/m/n": "3"}.write(t, src)
	var sums []string
	for range 2 {
		one := filepath.Join(t.TempDir(), "disk.raw")
		run(t, "cp", name, one)
		root := open(t, one)
		p, err := NewPlan(root, Spec{Copies: []Copy{{Src: filepath.Join(src, "d"), Dst: "/opt/d"}}, Writes: []Write{{"/etc/motd", "x"}}, KargAppend: []string{"a"}, Hostname: "h", ResetIdentity: true, Deletes: []string{"/etc/folder"}})
		if err != nil {
			t.Fatal(err)
		}
		apply(t, one, root, p)
		if err := os.Chtimes(filepath.Join(src, "d", "a"), now, now); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, run(t, "sha256sum", one)[:64])
	}
	if sums[0] != sums[1] {
		t.Error(sums)
	}
}
