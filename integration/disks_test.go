package integration

import (
	"encoding/base64"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// plainConf is the storage.conf of a disk made here, unless a test says otherwise.
const plainConf = `# kept comment
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = [
]
pull_options = {enable_partial_images = "false"}
`

const confPath = "etc/containers/storage.conf"

const osRelease = "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"

// Types of GPT partitions.
const (
	typeESP       = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeBoot      = "BC13C2FF-59E6-4262-A352-B275FD6F7172"
	typeRootAMD64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
	typeLinux     = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeLVM       = "E6D6D379-F507-44C2-A23C-238F2A3DF928"
)

// fsMaker writes a filesystem of the given size with the given files into a new file.
type fsMaker func(t testing.TB, file string, size int64, tree string)

func ext4(options ...string) fsMaker {
	return func(t testing.TB, file string, size int64, tree string) {
		t.Helper()
		check(t, os.WriteFile(file, nil, 0o644))
		check(t, os.Truncate(file, size))
		args := append([]string{"-q", "-F", "-t", "ext4", "-U", "6e6f6465-6261-6b65-0000-0000000000aa"}, options...)
		if tree != "" {
			args = append(args, "-d", tree)
		}
		run(t, "mke2fs", append(args, file)...)
	}
}

// noise fills a partition that no bake may touch with bytes that would show it.
func noise(t testing.TB, file string, size int64, _ string) {
	t.Helper()
	f, err := os.Create(file)
	check(t, err)
	_, err = io.CopyN(f, rand.New(rand.NewSource(size)), size)
	check(t, err)
	check(t, f.Close())
}

// part is one partition of a disk to be made.
type part struct {
	size    int64
	kind    string // GPT type, or the MBR type in hex
	name    string // GPT name
	make    fsMaker
	files   map[string]string // nil: no files
	isRoot  bool
	rawFile string // set: the partition's content as it is
}

const (
	mib      = int64(1 << 20)
	rootSize = 160 * mib
)

// rootFiles is a root tree of just what nodebake looks at; more adds to it or, with "", takes away.
func rootFiles(t testing.TB, more map[string]string) map[string]string {
	t.Helper()
	files := map[string]string{
		"etc/os-release":                 osRelease,
		"usr/lib/os-release":             osRelease,
		"etc/fstab":                      "LABEL=root / ext4 defaults 0 1\n",
		"etc/hostname":                   "node\n",
		confPath:                         plainConf,
		"var/lib/dpkg/status":            strings.Repeat("Package: x\n", 3000),
		"var/log/journal/.keep":          "",
		"root/.keep":                     "",
		"proc/.keep":                     "",
		"dev/.keep":                      "",
		"run/.keep":                      "",
		"usr/share/doc/a-name/copyright": "x",
	}
	// A real program tells the disk's architecture.
	sh, err := os.ReadFile(programFile(t))
	check(t, err)
	files["usr/bin/sh"], files["usr/lib/systemd/systemd"] = string(sh), string(sh)
	for k, v := range more {
		if v == "" {
			delete(files, k)
		} else {
			files[k] = v
		}
	}
	return files
}

func programFile(t testing.TB) string {
	t.Helper()
	bin := filepath.Join(scratch, "entry")
	if _, err := os.Stat(bin); err != nil {
		check(t, goBuild("./testdata/entry", bin))
	}
	return bin
}

// makeDisk writes a raw disk. The table is "gpt", "mbr", or "bare" for a filesystem with no table.
func makeDisk(t testing.TB, disk, table string, parts ...part) {
	t.Helper()
	requires(t, "root", "mke2fs", "sfdisk", "qemu-img")
	work := tempDir(t)
	script := map[string]string{"gpt": "label: gpt\nlabel-id: 6E6F6465-6261-6B65-0000-000000000002\n", "mbr": "label: dos\nlabel-id: 0x6e6f6465\n"}[table]
	at := mib
	if table == "bare" {
		at = 0
	}
	type piece struct {
		file string
		at   int64
	}
	var pieces []piece
	for i, p := range parts {
		file := p.rawFile
		if file == "" {
			file = filepath.Join(work, fmt.Sprint(i))
			tree := ""
			if p.files != nil {
				tree = file + ".tree"
				for name, content := range p.files {
					name = filepath.Join(tree, name)
					check(t, os.MkdirAll(filepath.Dir(name), 0o755))
					check(t, os.WriteFile(name, []byte(content), 0o755))
				}
			}
			p.make(t, file, p.size, tree)
		}
		pieces = append(pieces, piece{file, at})
		script += fmt.Sprintf("start=%d, size=%d, type=%s", at/512, p.size/512, p.kind)
		if p.name != "" {
			script += fmt.Sprintf(", name=\"%s\"", p.name)
		}
		script += "\n"
		at += p.size
	}
	if table != "bare" {
		at += mib
	}
	check(t, os.WriteFile(disk, nil, 0o644))
	check(t, os.Truncate(disk, at))
	if table != "bare" {
		check(t, os.WriteFile(work+"/table", []byte(script), 0o644))
		run(t, "sh", "-c", `sfdisk --quiet "$1" <"$2"`, "sh", disk, work+"/table")
	}
	for _, p := range pieces {
		run(t, "dd", "if="+p.file, "of="+disk, "bs=1M", "conv=notrunc,sparse", "status=none", fmt.Sprintf("seek=%d", p.at/mib))
	}
}

// rootPart is a root partition as most tests need it. Blocks are of 4 KiB, as on real disks; mke2fs alone would
// give a small one blocks of 1 KiB.
func rootPart(t testing.TB, more map[string]string, options ...string) part {
	return part{size: rootSize, kind: typeRootAMD64, name: "root", make: ext4(append([]string{"-L", "root", "-b", "4096"}, options...)...), files: rootFiles(t, more), isRoot: true}
}

// smallDisk writes a GPT disk (1 ESP, 2 boot, 3 root) that takes a moment to make.
func smallDisk(t testing.TB, disk string, more map[string]string) {
	t.Helper()
	makeDisk(t, disk, "gpt",
		part{size: 2 * mib, kind: typeESP, name: "EFI-SYSTEM", make: noise},
		part{size: 16 * mib, kind: typeBoot, name: "boot", make: ext4("-L", "boot"), files: map[string]string{"vmlinuz": "not a kernel"}},
		rootPart(t, more))
}

const smallRoot = 3

// smallBase is one small disk that the tests share; it is never written, and its permissions say so.
func smallBase(t testing.TB) string {
	t.Helper()
	disk := filepath.Join(scratch, "base.raw")
	if _, err := os.Stat(disk); err != nil {
		smallDisk(t, disk, nil)
		check(t, os.Chmod(disk, 0o444))
	}
	return disk
}

// readDisk gives a file of a disk through the kernel.
func readDisk(t testing.TB, disk string, number int, name string) string {
	t.Helper()
	dir := mount(t, rawOf(t, tempDir(t), disk), number, "ro")
	defer unmount(t, dir)
	content, err := os.ReadFile(filepath.Join(dir, name))
	check(t, err)
	return string(content)
}

// base64Name is how containers/storage names a big-data file whose key has other than plain characters.
func base64Name(key string) string {
	return "=" + base64.StdEncoding.EncodeToString([]byte(key))
}
