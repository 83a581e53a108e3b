package ext4

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// spot is a place in a filesystem where some structure is.
type spot struct {
	kind string
	off  int64
	n    int            // bytes of it
	seal func(b []byte) // sets the checksum; nil where there is none, or none that one structure decides
}

// spots finds the structures of a filesystem, by kind.
func spots(t testing.TB, f *FS) map[string][]spot {
	t.Helper()
	all := map[string][]spot{}
	add := func(kind string, off int64, n int, seal func([]byte)) {
		if !f.metaCsum && kind != "descriptor" {
			seal = nil
		}
		all[kind] = append(all[kind], spot{kind, off, n, seal})
	}
	add("superblock", superOffset, superSize, func(b []byte) { le.PutUint32(b[sbChecksum:], crc32c(^uint32(0), b[:sbChecksum])) })
	for g := range f.groups {
		at := f.descBlock(g/f.descPerBlock())*f.bs + int64(g%f.descPerBlock())*int64(f.dsize)
		add("descriptor", at, f.dsize, func(b []byte) {
			if f.groupCsum {
				le.PutUint16(b[gdChecksum:], f.descSum(g, b))
			}
		})
		if !f.descFlag(g, bgBlockUninit) {
			add("block bitmap", f.descBlockNo(g, gdBlockBitmapLo, gdBlockBitmapHi)*f.bs, int(f.bs), nil)
		}
		if !f.descFlag(g, bgInodeUninit) {
			add("inode bitmap", f.descBlockNo(g, gdInodeBitmapLo, gdInodeBitmapHi)*f.bs, int(f.ipg/8), nil)
		}
		for i := range f.itableUsed(g) {
			ino := g*f.ipg + i + 1
			raw := make([]byte, f.isize)
			if err := f.itab.read(ino, raw); err != nil {
				t.Fatal(err)
			}
			at := f.descBlockNo(g, gdInodeTableLo, gdInodeTableHi)*f.bs + int64(i)*int64(f.isize)
			seal := func(b []byte) { f.setInodeSum(ino, b) }
			if le.Uint16(raw[inLinks:]) == 0 {
				if i%16 == 0 {
					add("unused inode", at, f.isize, seal)
				}
				continue
			}
			kind := inodeType(raw)
			switch {
			case ino < f.firstInode() && ino != rootInode:
				add("reserved inode", at, f.isize, seal)
			case kind == modeDir:
				add("folder inode", at, f.isize, seal)
			case kind == modeReg:
				add("file inode", at, f.isize, seal)
			default:
				add("other inode", at, f.isize, seal)
			}
			if block := f.aclBlock(raw); block != 0 {
				add("attributes", block*f.bs, int(f.bs), func(b []byte) { le.PutUint32(b[xhChecksum:], f.xattrBlockSum(block, b)) })
			}
			flags := inodeFlags(raw)
			if ino == resizeInode {
				add("resize", int64(le.Uint32(raw[inBlock+4*(directBlocks+1):]))*f.bs, int(f.bs), nil)
				continue
			}
			if flags&flagInlineData != 0 || kind != modeReg && kind != modeDir && (kind != modeLink || fastLink(raw, inodeSize(raw))) {
				continue
			}
			seed := f.inodeSeed(ino, le.Uint32(raw[inGeneration:]))
			err := f.walkMap(ino, raw, func(e extent) error {
				switch {
				case ino == journalInode && e.log == 0:
					add("journal", e.phys*f.bs, 256, nil)
				case kind == modeLink:
					add("long link", e.phys*f.bs, int(inodeSize(raw)), nil)
				case kind == modeDir:
					for i := range int64(e.n) {
						indexed := flags&flagIndex != 0
						if indexed && int64(e.log)+i == 0 {
							add("hash tree", (e.phys+i)*f.bs, int(f.bs), func(b []byte) {
								if n := int(le.Uint16(b[dxRootEntries:])); dxRootEntries+n*dxEntry+dxTail <= len(b) && int(le.Uint16(b[dxRootEntries+2:])) <= n {
									tail := dxRootEntries + n*dxEntry
									le.PutUint32(b[tail+4:], dxSum(seed, b, dxRootEntries, int(le.Uint16(b[dxRootEntries+2:])), tail))
								}
							})
							continue
						}
						add("folder", (e.phys+i)*f.bs, int(f.bs), func(b []byte) {
							le.PutUint32(b[len(b)-4:], crc32c(seed, b[:len(b)-dirTailLen]))
						})
					}
				}
				return nil
			}, func(block int64) error {
				add("map", block*f.bs, int(f.bs), func(b []byte) {
					if flags&flagExtents == 0 {
						return
					}
					if tail := extHeader + extEntry*int(le.Uint16(b[ehMax:])); tail+4 <= len(b) {
						le.PutUint32(b[tail:], crc32c(seed, b[:tail]))
					}
				})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// hurt changes one number of one structure in a few bytes and says how; before is what to put back.
func hurt(t testing.TB, r *rand.Rand, f *FS, img *os.File, all map[string][]spot) (what string, before []byte, off int64) {
	t.Helper()
	kinds := make([]string, 0, len(all))
	for k := range all {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	s := all[kinds[r.IntN(len(kinds))]][0]
	s = all[s.kind][r.IntN(len(all[s.kind]))]
	b := make([]byte, s.n)
	if _, err := img.ReadAt(b, s.off); err != nil {
		t.Fatal(err)
	}
	before = slices.Clone(b)
	at := r.IntN(s.n)
	switch s.kind {
	case "map", "hash tree", "resize", "attributes":
		if r.IntN(3) > 0 {
			at = r.IntN(min(s.n, 96))
		}
	case "folder":
		// Most of a block may be behind its last name.
		for try := 0; try < 20 && b[at] == 0; try++ {
			at = r.IntN(s.n)
		}
	}
	mended := ""
	switch r.IntN(4) {
	case 0:
		b[at] ^= 1 << r.IntN(8)
	case 1:
		b[at] = byte(r.Uint32())
	case 2:
		b[at]++
	case 3:
		b[at] = 0
	}
	if s.seal != nil && r.IntN(3) > 0 {
		s.seal(b)
		mended = ", checksum mended"
	}
	if _, err := img.WriteAt(b, s.off); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s at byte %d of the device: byte %d (%#x) from %#x to %#x%s", s.kind, s.off, at, at, before[at], b[at], mended), before, s.off
}

// oracleSays are the lines of e2fsck that are complaints.
func oracleSays(t testing.TB, img string) []string {
	t.Helper()
	out, err := exec.Command("timeout", "60", "e2fsck", "-fn", img).CombinedOutput()
	var said []string
	for _, l := range strings.Split(string(out), "\n") {
		if l != "" && !fsckLine.MatchString(l) {
			said = append(said, l)
		}
	}
	if err != nil && len(said) == 0 {
		said = append(said, err.Error())
	}
	return said
}

// stricter are faults that Check finds and e2fsck does not.
var stricter = regexp.MustCompile(strings.Join([]string{
	`the resize inode's map`,              // e2fsck looks at a part of it
	`the attributes have the hash`,        // over a block: only the kernel's cache goes by it
	`attribute ".*" is out of order`,      // the kernel does not find the attribute, e2fsck does
	`inode [78](:| has| holds)`,           // the kernel does not mount with such a journal, or does not grow
	`copy of the (superblock|descriptor)`, // e2fsck looks at copies when the first are broken
	`superblock: (errors were|not unm)`,   // for which e2fsck looks at all, and says no more
	`the quota of .* has none`,            // which it looks for only at some numbers
	`as bad blocks`,                       // which it takes as they are
	`the journal is inode 8, and`,         // the kernel does not mount what names a device for it, too
	`a folder of \d{8,} bytes|negative size`,
	`a name of no kind`,              // the kernel does not show such an attribute
	`the list of orphans`,            // which e2fsck passes over when it may not write
	`free, and has a wrong checksum`, // e2fsck does not look at all of them
}, "|"))

// excused says that all that Check found is what only it looks for. e2fsck takes inode tables of groups that were
// never used for taken, whatever the bitmap of the group says that they lie in.
func excused(what string, ours []string) bool {
	bitmap := strings.HasPrefix(what, "block bitmap")
	return !slices.ContainsFunc(ours, func(s string) bool {
		return !stricter.MatchString(s) && !(bitmap && strings.Contains(s, "bitmap"))
	})
}

// laxer are complaints of e2fsck about what no reader of the filesystem sees, and Check does not look at.
var laxer = regexp.MustCompile(strings.Join([]string{
	`directory entry in directory inode \d+ is not NULL terminated`, // what follows a name that has its length
	`immutable$|immutable or append-only|imagic flag`,               // a flag that keeps others from changing it
	`last (write|mount) time`,                                       // which the clock makes wrong
	`^Inode 7, i_size`,                                              // of the inode that keeps room for descriptors
	`extra isize in superblock`,                                     // of inodes to come
	`part of (a corrupted|the) orphan`,                              // deleted inodes whose time of deletion is small
}, "|"))

// TestCheckOracle changes a byte of metadata at a time, and wants Check and e2fsck to agree on whether something is
// wrong. NODEBAKE_SEED sets the seed, NODEBAKE_SOAK asks for more.
func TestCheckOracle(t *testing.T) {
	needTools(t, "mke2fs", "e2fsck", "mount", "umount")
	seed, n := uint64(1), 40
	if os.Getenv("NODEBAKE_SOAK") != "" {
		seed, n = uint64(time.Now().UnixNano()), 1500
	}
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	// A few fields are still seen differently, all of which no reader sees: one change in a hundred.
	apart, most := 0, 11*n/100
	for _, name := range []string{"default", "1k", "no-metadata_csum", "ext3", "inode128", "inline_data", "ea_inode", "meta_bg", "uninit_bg", "orphan_file", "ext2"} {
		i := slices.IndexFunc(forms, func(f form) bool { return f.name == name })
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			t.Logf("NODEBAKE_SEED=%d", seed)
			f := forms[i]
			f.many = min(f.many, 3000)
			path := aged(t, f, true)
			img, size := file(t, path)
			fs, err := Open(img, size)
			if err != nil {
				t.Fatal(err)
			}
			all := spots(t, fs)
			both, neither := 0, 0
			disagree := func(format string, args ...any) {
				t.Logf(format, args...)
				if apart++; apart > most {
					t.Errorf("they disagree on %d changes, more than %d", apart, most)
				}
			}
			for range n {
				what, before, off := hurt(t, r, fs, img, all)
				said, ours := oracleSays(t, path), checkAll(t, path)
				switch {
				case len(said) > 0 && len(ours) > 0:
					both++
				case len(said) == 0 && len(ours) == 0:
					neither++
				case len(said) > 0 && laxer.MatchString(said[0]):
				case len(said) > 0:
					disagree("%s\nonly e2fsck complains:\n  %s", what, strings.Join(said[:min(len(said), 6)], "\n  "))
				case !excused(what, ours):
					disagree("%s\nonly Check complains:\n  %s", what, strings.Join(ours[:min(len(ours), 6)], "\n  "))
				}
				if _, err := img.WriteAt(before, off); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("both complain of %d, neither of %d", both, neither)
			fsck(t, path)
			checkClean(t, path)
		})
	}
}
