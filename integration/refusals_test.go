package integration

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// TestDisksRefused has disks that a bake must not touch: each is named for what it is.
func TestDisksRefused(t *testing.T) {
	requires(t, "root", "mkfs.xfs", "mkfs.btrfs", "pvcreate", "cryptsetup", "debugfs", "tune2fs", "losetup")
	images := testImages(t)
	esp := part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise}
	gpt := func(t *testing.T, disk string, parts ...part) {
		makeDisk(t, disk, "gpt", append([]part{esp}, parts...)...)
	}
	special := func(size int64, kind string, make fsMaker) part {
		return part{size: size, kind: kind, name: "root", make: make}
	}
	blank := func(t testing.TB, file string, size int64) {
		check(t, os.WriteFile(file, nil, 0o644))
		check(t, os.Truncate(file, size))
	}
	debugfs := func(t testing.TB, file, request string) {
		o := command(t, nil, "debugfs", "-w", "-R", request, file)
		if o.code != 0 {
			t.Fatalf("%s", o)
		}
		t.Logf("debugfs %s: %s%s", request, o.stdout, o.stderr)
	}
	for _, c := range []struct {
		name  string
		code  int
		make  func(t *testing.T, disk string)
		words []string
		more  []string // arguments
	}{
		{"xfs v4 root", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, special(320*mib, typeRootAMD64, func(t testing.TB, file string, size int64, _ string) {
				blank(t, file, size)
				run(t, "mkfs.xfs", "-q", "-m", "crc=0", "-L", "root", file)
			}))
		}, []string{"xfs", "v4|version 4"}, nil},
		{"btrfs root", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, special(320*mib, typeRootAMD64, func(t testing.TB, file string, size int64, _ string) {
				blank(t, file, size)
				run(t, "mkfs.btrfs", "-q", "-L", "root", file)
			}))
		}, []string{"btrfs"}, nil},
		{"lvm", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, special(64*mib, typeLVM, func(t testing.TB, file string, size int64, _ string) {
				blank(t, file, size)
				loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", file))
				defer run(t, "losetup", "-d", loop)
				run(t, "pvcreate", "-q", "-f", "--config", "devices{use_devicesfile=0}", loop)
			}))
		}, []string{"lvm"}, nil},
		{"lvm, striped", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, special(200*mib, typeLVM, func(t testing.TB, file string, size int64, _ string) {
				blank(t, file, size)
				dev := attach(t, file, 0)
				l := newLVM(t, dev)
				l.run("vgcreate", "-q", "-y", "-s", "4m", "rl", dev)
				l.run("lvcreate", "-q", "-an", "-y", "-Wn", "-Zn", "-L", "64m", "-i", "2", "--alloc", "anywhere", "-n", "root", "rl")
				detach(t, dev)
			}))
		}, []string{"rl/root", "striped"}, nil},
		{"luks", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, special(64*mib, typeRootAMD64, func(t testing.TB, file string, size int64, _ string) {
				blank(t, file, size)
				check(t, os.WriteFile(file+".key", []byte("key"), 0o600))
				run(t, "cryptsetup", "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", file, file+".key")
			}))
		}, []string{"luks"}, nil},
		{"bigalloc", exitUnsupported, func(t *testing.T, disk string) { gpt(t, disk, rootPart(t, nil, "-O", "bigalloc")) }, []string{"bigalloc"}, nil},
		{"unknown incompat feature", exitUnsupported, func(t *testing.T, disk string) {
			p := rootPart(t, nil)
			p.make = func(t testing.TB, file string, size int64, tree string) {
				ext4("-L", "root")(t, file, size, tree)
				debugfs(t, file, "feature FEATURE_I26")
			}
			gpt(t, disk, p)
		}, []string{"feature|incompat", "0x4000000|67108864|FEATURE_I26|bit 26"}, nil},
		{"unknown ro-compat feature", exitUnsupported, func(t *testing.T, disk string) {
			p := rootPart(t, nil)
			p.make = func(t testing.TB, file string, size int64, tree string) {
				ext4("-L", "root")(t, file, size, tree)
				debugfs(t, file, "feature FEATURE_R28")
			}
			gpt(t, disk, p)
		}, []string{"feature|compat", "0x10000000|268435456|FEATURE_R28|bit 28"}, nil},
		{"journal that needs recovery", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk+".clean", rootPart(t, nil))
			mnt := mount(t, disk+".clean", 2, "rw")
			check(t, os.WriteFile(mnt+"/in-the-journal", []byte("x"), 0o644))
			run(t, "sync", "-f", mnt)
			// As after a power cut: the file is copied while it is mounted.
			check(t, copyFile(disk+".clean", disk, 0o644))
			unmount(t, mnt)
		}, []string{"journal", "fsck|mount|recover"}, nil},
		{"two roots", exitFailed | exitUnsupported<<8, func(t *testing.T, disk string) {
			first, second := rootPart(t, nil, "-L", "first"), rootPart(t, nil, "-L", "other")
			first.name, second.name = "system-a", "system-b"
			gpt(t, disk, first, second)
		}, []string{"first", "other", "--root", "2", "3"}, nil},
		{"no root", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk, part{size: 16 * mib, kind: typeLinux, name: "data", make: ext4("-L", "data"), files: map[string]string{"x": "y"}})
		}, []string{"root", "data"}, nil},
		{"no such root", exitUsage | exitFailed<<8, func(t *testing.T, disk string) { gpt(t, disk, rootPart(t, nil)) }, []string{"7"}, []string{"--root", "7"}},
		{"no disk at all", exitUnsupported, func(t *testing.T, disk string) { noise(t, disk, 8*mib, "") }, []string{"partition table|filesystem|no root|not a disk"}, nil},
		{"empty file", exitUnsupported, func(t *testing.T, disk string) { blank(t, disk, 0) }, []string{"empty|too small|0 bytes|no root"}, nil},
		{"truncated", exitFailed | exitUnsupported<<8, func(t *testing.T, disk string) {
			gpt(t, disk, rootPart(t, nil))
			check(t, os.Truncate(disk, 80*mib))
		}, []string{"truncated|past the end|ends past|beyond|shorter|outside"}, nil},
		{"truncated qcow2", exitFailed | exitUnsupported<<8, func(t *testing.T, disk string) {
			gpt(t, disk+".raw", rootPart(t, nil))
			run(t, "qemu-img", "convert", "-O", "qcow2", disk+".raw", disk)
			info, err := os.Stat(disk)
			check(t, err)
			check(t, os.Truncate(disk, info.Size()/3))
		}, []string{"truncated|past the end|ends past|beyond|shorter|outside|past"}, nil},
		{"vmdk", exitUnsupported, func(t *testing.T, disk string) {
			gpt(t, disk+".raw", rootPart(t, nil))
			run(t, "qemu-img", "convert", "-O", "vmdk", disk+".raw", disk)
		}, []string{"vmdk"}, nil},
		{"encrypted qcow2", exitUnsupported, func(t *testing.T, disk string) {
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=k,data=key", "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", disk, "64M")
		}, []string{"encrypt"}, nil},
		{"backing file elsewhere", exitFailed | exitUnsupported<<8, func(t *testing.T, disk string) {
			gpt(t, disk+".raw", rootPart(t, nil))
			sub := filepath.Join(filepath.Dir(disk), "sub")
			check(t, os.MkdirAll(sub, 0o755))
			run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "../"+filepath.Base(disk)+".raw", "-F", "raw", sub+"/overlay")
			check(t, os.Rename(sub+"/overlay", disk))
		}, []string{"backing", "--allow-backing"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			disk, out := dir+"/disk", tempDir(t)+"/out.qcow2"
			c.make(t, disk)
			before := hashFile(t, disk)
			o := nodebake(t, append([]string{"build", "--base", disk, "--image", "oci-archive:" + images["hello"].ociArchive, "--output", out}, c.more...)...)
			// Two codes where the brief leaves the kind open.
			code := c.code & 0xff
			if o.code == c.code>>8 && c.code>>8 != 0 {
				code = o.code
			}
			refused(t, o, code, out, c.words...)
			if hashFile(t, disk) != before {
				t.Error("the base was written")
			}
			if c.name == "backing file elsewhere" {
				check(t, copyFile(disk+".raw", filepath.Dir(dir)+"/disk.raw", 0o444))
				out := tempDir(t) + "/out.raw"
				baked(t, "--base", disk, "--image", "oci-archive:"+images["hello"].ociArchive, "--output", out, "--allow-backing")
				bakedRight(t, disk+".raw", out, 2, images["hello"])
			}
			if c.name == "two roots" {
				for _, root := range []string{"2", "3"} {
					out := tempDir(t) + "/out.raw"
					baked(t, "--base", disk, "--image", "oci-archive:"+images["hello"].ociArchive, "--output", out, "--root", root)
					n := int(root[0] - '0')
					sameOutside(t, disk, out, n)
					fsck(t, out, n)
				}
			}
		})
	}
}

// TestNoSpace fills what is free, in blocks and then in inodes.
func TestNoSpace(t *testing.T) {
	images := testImages(t)
	for _, c := range []struct {
		name    string
		size    int64
		options []string
		images  []string
		word    string
	}{
		{"blocks", 96 * mib, nil, []string{"debian"}, "MiB|MB|blocks|bytes"},
		{"inodes", 160 * mib, []string{"-N", "600"}, []string{"odd"}, "inodes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			p := rootPart(t, nil, c.options...)
			p.size = c.size
			makeDisk(t, dir+"/base.raw", "gpt", p)
			before := hashFile(t, dir+"/base.raw")
			args := []string{"build", "--base", dir + "/base.raw", "--output", dir + "/out.raw", "--size", "+0"}
			for _, i := range c.images {
				args = append(args, "--image", "oci-archive:"+images[i].ociArchive)
			}
			refused(t, nodebake(t, args...), exitNoSpace, dir+"/out.raw", "need|want", "free|there", c.word)
			refused(t, nodebake(t, append(args, "--dry-run")...), exitNoSpace, dir+"/out.raw", "need|want", "free|there", c.word)
			if hashFile(t, dir+"/base.raw") != before {
				t.Error("the base was written")
			}
		})
	}
}

// TestOutputRefused has outputs that would destroy something.
func TestOutputRefused(t *testing.T) {
	images := testImages(t)
	dir := tempDir(t)
	base := dir + "/base.raw"
	check(t, copyFile(smallBase(t), base, 0o644))
	check(t, os.Symlink("base.raw", dir+"/symlink.raw"))
	check(t, os.Link(base, dir+"/hardlink.raw"))
	check(t, os.WriteFile(dir+"/there.raw", []byte("precious"), 0o644))
	check(t, os.Mkdir(dir+"/folder", 0o755))
	before := hashFile(t, base)
	build := func(out string, more ...string) outcome {
		return nodebake(t, append([]string{"build", "--base", base, "--image", "oci-archive:" + images["hello"].ociArchive, "--output", out}, more...)...)
	}
	for _, c := range []struct {
		out   string
		words []string
		more  []string
	}{
		{base, []string{"base"}, nil},
		{base, []string{"base"}, []string{"--force"}},
		{dir + "/symlink.raw", []string{"symlink.raw"}, nil},
		{dir + "/symlink.raw", []string{"base"}, []string{"--force"}},
		{dir + "/hardlink.raw", []string{"base"}, []string{"--force"}},
		{dir + "/./folder/../base.raw", []string{"base"}, []string{"--force"}},
		{dir + "/there.raw", []string{"there.raw", "exist", "--force"}, nil},
		{dir + "/folder", []string{"folder"}, []string{"--force"}},
		{dir + "/no/such/folder/out.raw", []string{"no/such/folder"}, nil},
	} {
		o := build(c.out, c.more...)
		if o.code != exitFailed && o.code != exitUsage {
			t.Errorf("must be refused\n%s", o)
		}
		refused(t, o, o.code, "", c.words...)
		if hashFile(t, base) != before {
			t.Fatalf("the base was written by\n%s", o)
		}
	}
	if b, err := os.ReadFile(dir + "/there.raw"); err != nil || string(b) != "precious" {
		t.Error("an output that was there is gone")
	}
	if _, err := os.Readlink(dir + "/symlink.raw"); err != nil {
		t.Error(err)
	}
	if o := build(dir+"/there.raw", "--force"); o.code != 0 {
		t.Errorf("%s", o)
	}
	bakedRight(t, base, dir+"/there.raw", smallRoot, images["hello"])

	// A failed bake leaves even a forced output as it was.
	check(t, os.WriteFile(dir+"/still.raw", []byte("precious"), 0o644))
	o := nodebake(t, "build", "--base", base, "--image", "oci:"+dir+"/none", "--output", dir+"/still.raw", "--force")
	refused(t, o, exitFailed, "", "none")
	if b, err := os.ReadFile(dir + "/still.raw"); err != nil || string(b) != "precious" {
		t.Error("an output that was there is gone")
	}
}

// TestHostileImages has layers that lie or reach out of their layer: each is refused by a sentence.
func TestHostileImages(t *testing.T) {
	images := testImages(t)
	at := time.Unix(1e9, 0)
	file := func(name string) entry {
		return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: at}, content: "x"}
	}
	link := func(kind byte, name, target string) entry {
		return entry{Header: tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777, ModTime: at}}
	}
	folder := func(name string) entry {
		return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: at}}
	}
	honest := makeTar(tar.FormatPAX, file("ok"))
	tarOf := func(entries ...entry) layer { return layer{tar: makeTar(tar.FormatPAX, entries...)} }
	big := makeTar(tar.FormatPAX, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, ModTime: at}, content: strings.Repeat("0123456789abcdef", 1<<16)})
	for _, c := range []struct {
		name  string
		layer layer
		words []string
	}{
		{"dot dot", tarOf(file("../escape")), []string{"../escape"}},
		{"dot dot inside", tarOf(folder("a"), file("a/../../escape")), []string{"escape"}},
		{"symlinked parent", tarOf(link(tar.TypeSymlink, "etc", "/etc"), file("etc/passwd")), []string{"etc/passwd|\"etc\""}},
		{"symlinked parent, relative", tarOf(link(tar.TypeSymlink, "up", "../../.."), file("up/escape")), []string{"up"}},
		{"file as parent", tarOf(file("f"), file("f/under")), []string{"f/under|\"f\""}},
		{"duplicate file", tarOf(file("twice"), file("twice")), []string{"twice"}},
		{"duplicate by other spelling", tarOf(file("twice"), file("./twice")), []string{"twice"}},
		{"hard link to nothing", tarOf(link(tar.TypeLink, "l", "nothing")), []string{"nothing"}},
		{"hard link out", tarOf(link(tar.TypeLink, "l", "../../../etc/passwd")), []string{"etc/passwd"}},
		{"hard link to a folder", tarOf(folder("d"), link(tar.TypeLink, "l", "d")), []string{"\"l\"|\"d\"|l:|d:| d | l "}},
		{"hard link through a symlink", tarOf(link(tar.TypeSymlink, "s", "/etc"), link(tar.TypeLink, "l", "s/passwd")), []string{"s/passwd"}},
		{"whiteout of dot dot", tarOf(folder("a"), file("a/.wh..")), []string{".wh.."}},
		{"name too long", tarOf(file(strings.Repeat("x", 256))), []string{"xxx", "long|255"}},
		{"tar cut short", layer{tar: big[:len(big)/2]}, []string{"unexpected EOF|truncated|cut short|ends"}},
		{"blob cut short", layer{tar: big, damage: func(b []byte) []byte { return b[:len(b)/2] }}, []string{"EOF|truncated|cut short|digest|size"}},
		{"blob changed", layer{tar: big, damage: func(b []byte) []byte { b[len(b)/2] ^= 1; return b }}, []string{"digest|checksum|corrupt|invalid|match"}},
		{"wrong diffID", layer{tar: honest, diffID: digest.FromString("another layer")}, []string{"diffID|digest", digest.FromString("another layer").Encoded()[:12]}},
		{"not a tar", layer{tar: bytes.Repeat([]byte("no tar "), 1000)}, []string{"tar|header"}},
		{"gzip bomb by declared size", layer{tar: makeHuge(t)}, []string{"big|large|EOF|size|space"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tempDir(t)
			check(t, writeLayout(dir+"/image", "localhost/hostile:1", "amd64", layer{tar: honest}, c.layer))
			out := dir + "/out.raw"
			o := measured(t, productPath(t), "build", "--base", smallBase(t), "--image", "oci-archive:"+images["hello"].ociArchive, "--image", "oci:"+dir+"/image", "--output", out)
			if o.code != exitFailed && !(o.code == exitNoSpace && strings.Contains(c.name, "bomb")) {
				t.Errorf("must be refused\n%s", o)
			}
			refused(t, o, o.code, out, c.words...)
			if mib := o.usage.Maxrss >> 10; mib >= 256 {
				t.Errorf("%d MiB resident", mib)
			}
		})
	}
	t.Run("archive that is none", func(t *testing.T) {
		dir := tempDir(t)
		noise(t, dir+"/archive.tar", mib, "")
		for _, transport := range []string{"oci-archive:", "docker-archive:"} {
			refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", transport+dir+"/archive.tar", "--output", dir+"/out.raw"), exitFailed, dir+"/out.raw", "archive.tar")
		}
	})
	t.Run("archive cut short", func(t *testing.T) {
		dir := tempDir(t)
		for transport, from := range map[string]string{"oci-archive:": images["odd"].ociArchive, "docker-archive:": images["odd"].dockerArchive} {
			cut := dir + "/cut.tar"
			os.Remove(cut)
			check(t, copyFile(from, cut, 0o644))
			info, err := os.Stat(cut)
			check(t, err)
			check(t, os.Truncate(cut, info.Size()/2))
			refused(t, nodebake(t, "build", "--base", smallBase(t), "--image", transport+cut, "--output", dir+"/out.raw"), exitFailed, dir+"/out.raw", "cut.tar")
		}
	})
	t.Run("another digest than asked for", func(t *testing.T) {
		dir := tempDir(t)
		addr := registry(t)
		run(t, "skopeo", "copy", "-q", "--dest-tls-verify=false", images["hello"].oci(), "docker://"+addr+"/hello:1")
		other := digest.FromString("another manifest")
		o := command(t, []string{insecure(t, addr)}, productPath(t), "build", "--base", smallBase(t), "--image", addr+"/hello@"+other.String(), "--output", dir+"/out.raw")
		refused(t, o, exitFailed, dir+"/out.raw", other.Encoded()[:12])
	})
}

// makeHuge is a tar whose one file says 1 TiB and has a few bytes.
func makeHuge(t testing.TB) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	check(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0o644, Size: 1 << 40, Format: tar.FormatPAX}))
	_, err := io.WriteString(w, "few bytes")
	check(t, err)
	// Not closed: the tar ends in the middle of its file.
	return buf.Bytes()
}

// TestInterrupted stops bakes at many moments: no output, the base as it was, and after Ctrl-C no temporary file.
func TestInterrupted(t *testing.T) {
	images := testImages(t)
	dir := tempDir(t)
	p := rootPart(t, nil)
	p.size = 320 * mib
	makeDisk(t, dir+"/base.raw", "gpt", p)
	before := hashFile(t, dir+"/base.raw")
	args := []string{"build", "--base", dir + "/base.raw", "--image", "oci-archive:" + images["odd"].ociArchive, "--image", "oci-archive:" + images["debian"].ociArchive}
	// A whole bake says how long there is to interrupt.
	whole := baked(t, append(args[1:], "--output", dir+"/whole.raw")...)
	sum := hashFile(t, dir+"/whole.raw")
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM} {
		for _, share := range []float64{0.02, 0.2, 0.5, 0.8, 0.97} {
			t.Run(fmt.Sprintf("%s at %.0f%%", sig, share*100), func(t *testing.T) {
				folder := tempDir(t)
				out := folder + "/out.raw"
				temp := tempDir(t)
				cmd := exec.Command(productPath(t), append(args, "--output", out)...)
				cmd.Env = append(os.Environ(), "TMPDIR="+temp)
				var said bytes.Buffer
				cmd.Stderr = &said
				check(t, cmd.Start())
				time.Sleep(time.Duration(share * float64(whole.took)))
				check(t, cmd.Process.Signal(sig))
				start := time.Now()
				err := cmd.Wait()
				left, readErr := os.ReadDir(folder)
				check(t, readErr)
				if err == nil {
					// It was done before the signal came: then the output is whole.
					if h := hashFile(t, out); h != sum {
						t.Errorf("an output that is not whole")
					}
					return
				}
				t.Logf("ended %.2fs after the signal, %v, %d files left", time.Since(start).Seconds(), err, len(left))
				mustNotExist(t, out)
				if sig != syscall.SIGKILL {
					elsewhere, err := os.ReadDir(temp)
					check(t, err)
					if len(left) != 0 || len(elsewhere) != 0 {
						t.Errorf("left %v beside the output and %v in TMPDIR", left, elsewhere)
					}
					if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() && said.Len() == 0 {
						return // it came before the program's first line
					}
					if cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(said.String(), "interrupt") {
						t.Errorf("exit %d, must be %d with a word of why:\n%s", cmd.ProcessState.ExitCode(), exitFailed, clip(said.String()))
					}
				} else if share == 0.5 {
					// What a killed bake may leave is in no later one's way.
					baked(t, append(args[1:], "--output", out)...)
					if hashFile(t, out) != sum {
						t.Error("the bake after a killed one gave other bytes")
					}
				}
			})
		}
	}
	if hashFile(t, dir+"/base.raw") != before {
		t.Error("the base was written")
	}
}

// TestVerifyFindsLies damages a baked disk in one place at a time, as the kernel writes it.
func TestVerifyFindsLies(t *testing.T) {
	requires(t, "root")
	images := testImages(t)
	dir := tempDir(t)
	whole := dir + "/whole.raw"
	baked(t, "--base", smallBase(t), "--image", "oci-archive:"+images["hello"].ociArchive, "--image", "oci-archive:"+images["odd"].ociArchive, "--output", whole)
	facts := images["odd"].facts(t)
	l := facts.layers[2]
	keepTimes := func(name string, do func() error) error {
		info, err := os.Lstat(name)
		if err == nil {
			err = do()
		}
		if err == nil {
			err = os.Chtimes(name, info.ModTime(), info.ModTime())
		}
		return err
	}
	// Flips a bit in the middle of a file.
	flip := func(name string) error {
		return keepTimes(name, func() error {
			f, err := os.OpenFile(name, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			b := []byte{0}
			if _, err := f.ReadAt(b, info.Size()/2); err != nil {
				return err
			}
			b[0] ^= 0x20
			_, err = f.WriteAt(b, info.Size()/2)
			return err
		})
	}
	short := l.id[:12]
	for _, c := range []struct {
		name  string
		do    func(store, diff string) error
		words []string
	}{
		{"a byte of a file", func(_, diff string) error { return flip(diff + "/odd/block") }, []string{short, "odd/block"}},
		{"a file cut", func(_, diff string) error { return os.Truncate(diff+"/odd/block", 5) }, []string{short, "odd/block"}},
		{"a file gone", func(_, diff string) error { return os.Remove(diff + "/odd/setuid") }, []string{short, "odd/setuid"}},
		{"a file more", func(_, diff string) error { return os.WriteFile(diff+"/odd/intruder", []byte("x"), 0o755) }, []string{short, "odd/intruder"}},
		{"a mode", func(_, diff string) error { return os.Chmod(diff+"/odd/block", 0o4755) }, []string{short, "odd/block"}},
		{"an owner", func(_, diff string) error { return os.Lchown(diff+"/odd/owned", 0, 0) }, []string{short, "odd/owned"}},
		{"a capability", func(_, diff string) error {
			_, err := tool("setfattr", "-x", "security.capability", diff+"/odd/capable")
			return err
		}, []string{short, "odd/capable"}},
		{"a symlink", func(_, diff string) error {
			os.Remove(diff + "/odd/to-file")
			return os.Symlink("elsewhere", diff+"/odd/to-file")
		}, []string{short, "odd/to-file"}},
		{"a hard link that became a copy", func(_, diff string) error {
			_, err := tool("sh", "-c", `cp -a "$1" "$1.new" && mv "$1.new" "$1"`, "sh", diff+"/odd/links/second")
			return err
		}, []string{short, "odd/links"}},
		{"a whiteout", func(store, _ string) error {
			return os.Remove(filepath.Join(store, "overlay", facts.layers[3].id, "diff/odd/gone/file"))
		}, []string{facts.layers[3].id[:12], "odd/gone/file"}},
		{"an opaque folder", func(store, _ string) error {
			_, err := tool("setfattr", "-x", "trusted.overlay.opaque", filepath.Join(store, "overlay", facts.layers[3].id, "diff/odd/hidden"))
			return err
		}, []string{facts.layers[3].id[:12], "odd/hidden"}},
		{"the lower chain", func(store, _ string) error { return os.Remove(filepath.Join(store, "overlay", l.id, "lower")) }, []string{short, "lower"}},
		{"the short link", func(store, _ string) error {
			b, err := os.ReadFile(filepath.Join(store, "overlay", l.id, "link"))
			if err != nil {
				return err
			}
			return os.Remove(filepath.Join(store, "overlay/l", string(b)))
		}, []string{short, "link|overlay/l"}},
		{"the tar-split", func(store, _ string) error { return flip(filepath.Join(store, "overlay-layers", l.id+".tar-split.gz")) }, []string{short}},
		{"the config", func(store, _ string) error {
			return flip(filepath.Join(store, "overlay-images", facts.config.Encoded(), base64Name(facts.config.String())))
		}, []string{facts.config.Encoded()[:12]}},
		{"the manifest", func(store, _ string) error {
			return flip(filepath.Join(store, "overlay-images", facts.config.Encoded(), "manifest"))
		}, []string{facts.config.Encoded()[:12], "manifest"}},
		{"a layer gone", func(store, _ string) error { return os.RemoveAll(filepath.Join(store, "overlay", l.id)) }, []string{short}},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := tempDir(t) + "/disk.raw"
			run(t, "cp", "--sparse=always", "--reflink=auto", whole, disk)
			mnt := mount(t, disk, smallRoot, "rw")
			check(t, c.do(mnt+defaultStore, filepath.Join(mnt+defaultStore, "overlay", l.id, "diff")))
			unmount(t, mnt)
			for _, more := range [][]string{nil, {"--json"}} {
				o := nodebake(t, append([]string{"verify", disk}, more...)...)
				if o.code != exitLie {
					t.Errorf("exit code: want %d\n%s", exitLie, o)
				}
			words:
				for _, w := range c.words {
					for _, a := range strings.Split(w, "|") {
						if strings.Contains(o.stdout+o.stderr, a) {
							continue words
						}
					}
					t.Errorf("does not say %q\n%s", w, o)
				}
			}
		})
	}
	t.Run("undamaged", func(t *testing.T) {
		disk := tempDir(t) + "/disk.raw"
		run(t, "cp", "--sparse=always", "--reflink=auto", whole, disk)
		// Mounted and used by a kernel since, but not changed.
		unmount(t, mount(t, disk, smallRoot, "rw"))
		if o := nodebake(t, "verify", disk); o.code != exitDone {
			t.Errorf("%s", o)
		}
	})
	t.Run("no store", func(t *testing.T) {
		refused(t, nodebake(t, "verify", smallBase(t)), exitLie, "", "no image store")
	})
}
