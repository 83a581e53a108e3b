package xfs

import (
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
)

// spot is a structure on the device: its checksum is at crc, which is 0 where one structure does not decide it.
type spot struct {
	off  int64
	size int
	crc  int
}

// spots finds the structures of a filesystem by their magic numbers; some may be left over from what was removed.
func spots(t testing.TB, fs *FS, img *os.File) map[string][]spot {
	t.Helper()
	all := map[string][]spot{}
	add := func(kind string, off int64, size, crc int) { all[kind] = append(all[kind], spot{off, size, crc}) }
	sb := fs.sb
	bs := int64(sb.blockSize)
	for g := range int64(sb.agCount) {
		at, sect := g*int64(sb.agBlocks)*bs, int64(sb.sectSize)
		if g == 0 {
			add("superblock", at, int(sect), sbCRC)
		}
		add("AGF", at+sect, int(sect), agfCRC)
		add("AGI", at+2*sect, int(sect), agiCRC)
		add("AGFL", at+3*sect, int(sect), agflCRC)
	}
	b := make([]byte, max(bs, int64(sb.dirBlock)))
	zero := make([]byte, bs)
	st, err := img.Stat()
	if err != nil {
		t.Fatal(err)
	}
	for at := int64(0); at < st.Size(); at += bs {
		n, err := img.ReadAt(b, at)
		if int64(n) < bs {
			t.Fatal(err)
		}
		if string(b[:bs]) == string(zero) {
			continue
		}
		switch m := be.Uint32(b); m {
		case bnobtMagic, cntbtMagic, inobtMagic, finobtMagic, rmapbtMagic, refcMagic:
			add(fmt.Sprintf("tree %q", b[:4]), at, int(bs), btShCRC)
		case bmbtMagic:
			add("extent tree", at, int(bs), btLgCRC)
		case dirBlkMagic, dirDataMagic, dirFreeMagic:
			if n >= int(sb.dirBlock) {
				add(fmt.Sprintf("folder %q", b[:4]), at, int(sb.dirBlock), d3CRC)
			}
		case symlinkMagic, attrRmtMagic:
			add(fmt.Sprintf("remote %q", b[:4]), at, int(bs), 0)
		}
		switch m := be.Uint16(b[daMagic:]); {
		case m == dirLeaf1 || m == dirLeafN:
			add("folder leaf", at, int(sb.dirBlock), daCRC)
		case m == daNodeMagic && be.Uint64(b[daOwner:]) != 0 && int(bs) == sb.dirBlock:
			add("node", at, int(bs), daCRC)
		case m == attrLeaf:
			add("attributes", at, int(bs), daCRC)
		}
		for i := int64(0); i+int64(sb.inodeSize) <= bs; i += int64(sb.inodeSize) {
			if be.Uint16(b[i:]) != inodeMagic {
				break
			}
			kind := "inode"
			if be.Uint16(b[i+diMode:]) == 0 {
				kind = "free inode"
			}
			add(kind, at+i, sb.inodeSize, diCRC)
		}
	}
	return all
}

var repairQuiet = []string{"Phase ", "        - ", "No modify flag set", "Cannot get host filesystem geometry.", "Repair may fail if there is a sector size", "the image and the host filesystem."}

// repairSays is what xfs_repair -n complains of.
func repairSays(t testing.TB, img string) []string {
	t.Helper()
	out, err := exec.Command("timeout", "60", "xfs_repair", "-n", "-f", "-P", "-o", "force_geometry", img).CombinedOutput()
	var odd []string
	for _, l := range strings.Split(string(out), "\n") {
		if l != "" && !slices.ContainsFunc(repairQuiet, func(q string) bool { return strings.HasPrefix(l, q) }) {
			odd = append(odd, l)
		}
	}
	if err != nil && len(odd) == 0 {
		odd = append(odd, err.Error())
	}
	return odd
}

// ourFaults is what Open or Check complain of.
func ourFaults(t testing.TB, img *os.File, size int64) (said []string) {
	t.Helper()
	f, err := Open(img, size)
	if err != nil {
		return []string{err.Error()}
	}
	if err := f.Check(t.Context(), func(err error) {
		if len(said) < 100 {
			said = append(said, err.Error())
		}
	}); err != nil {
		t.Fatal(err)
	}
	return said
}

// stricter are faults that Check finds and xfs_repair does not.
var stricter = regexp.MustCompile(strings.Join([]string{
	`outside the filesystem`, // xfs_repair cuts off a block number's highest bits
	`owner`,                  // of which it does not compare all
	`linked to its neighbours|neighbour`,
	`blocks in use and`, // what follows from the others
}, "|"))

// laxer are complaints of xfs_repair that Check does not have.
var laxer = regexp.MustCompile(strings.Join([]string{
	`zero unused portion of primary superblock`, // bytes without a meaning
	`ahead of log`,         // LSNs: only who mends the checksum can make one so
	`rmap|reverse-mapping`, // which owner a block has: counts alone are compared
	`bad flags field in superblock`,
	`reset usedbytes`,               // a count that only who adds an attribute goes by
	`realtime filesystem component`, // of which there is none
	`resetting shared_vn|quota information`,
	`bad v3_pad|bad nrext64_pad`, // bytes without a meaning
	`bt block count`,             // by which only who grows a tree goes
	`free inode \d+ contains errors`,
	`write modified primary superblock`, // bits that a mount sets again
	`^bad \(negative\) size`,            // of an inode that is free
	`extent size hint`,                  // sizes that are no multiple of what they should be
}, "|"))

// TestCheckOracle changes a byte of metadata at a time, and wants Check and xfs_repair to agree on whether something is
// wrong. NODEBAKE_SEED sets the seed, NODEBAKE_SOAK asks for more.
func TestCheckOracle(t *testing.T) {
	needKernel(t)
	s := seed(t, "oracle")
	n := 50
	if os.Getenv("NODEBAKE_SOAK") != "" {
		n = 700
	}
	// A few fields are still seen differently, which only who mends a checksum can change: one change in a hundred.
	apart, most := 0, 4*n/100
	for i, name := range []string{"default", "everything", "block 1k everything full", "first v5"} {
		k := slices.IndexFunc(forms(), func(f form) bool { return f.name == name })
		f := forms()[k]
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			rng := rand.New(rand.NewSource(s + int64(i)))
			path := mkfs(t, 320<<20, strings.Fields(f.args)...)
			reflink := strings.Contains(strings.Join(openReader(t, path).Info().Features, " "), "reflink")
			mounted(t, path, "rw", func(dir string) { age(t, dir, rng, 500, reflink, false) })
			w := openWriter(t, path)
			bake(t, w, tree{}, rng, 300)
			commit(t, w)
			repairClean(t, path)
			img, size := openImage(t, path)
			rw, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer rw.Close()
			all := spots(t, openReader(t, path), rw)
			var kinds []string
			for k := range all {
				kinds = append(kinds, k)
			}
			sort.Strings(kinds)
			both, neither := 0, 0
			disagree := func(format string, args ...any) {
				t.Logf(format, args...)
				if apart++; apart > most {
					t.Errorf("they disagree on %d changes, more than %d", apart, most)
				}
			}
			for range n {
				kind := kinds[rng.Intn(len(kinds))]
				sp := all[kind][rng.Intn(len(all[kind]))]
				b := make([]byte, sp.size)
				if _, err := rw.ReadAt(b, sp.off); err != nil {
					t.Fatal(err)
				}
				before := slices.Clone(b)
				at := rng.Intn(sp.size)
				if rng.Intn(2) == 0 {
					at = rng.Intn(min(sp.size, 200))
				}
				switch rng.Intn(4) {
				case 0:
					b[at] ^= 1 << rng.Intn(8)
				case 1:
					b[at] = byte(rng.Uint32())
				case 2:
					b[at]++
				case 3:
					b[at] = 0
				}
				mended := ""
				if sp.crc > 0 && rng.Intn(5) > 0 {
					setCRC(b, sp.crc)
					mended = ", checksum mended"
				}
				if _, err := rw.WriteAt(b, sp.off); err != nil {
					t.Fatal(err)
				}
				what := fmt.Sprintf("%s at byte %d of the device: byte %d (%#x) from %#x to %#x%s", kind, sp.off, at, at, before[at], b[at], mended)
				said, ours := repairSays(t, path), ourFaults(t, img, size)
				switch {
				case len(said) > 0 && len(ours) > 0:
					both++
				case len(said) == 0 && len(ours) == 0:
					neither++
				case len(said) > 0 && slices.ContainsFunc(said, laxer.MatchString):
				case len(said) > 0:
					disagree("%s\nonly xfs_repair complains:\n  %s", what, strings.Join(said[:min(len(said), 6)], "\n  "))
				case slices.ContainsFunc(ours, func(s string) bool { return !stricter.MatchString(s) }):
					disagree("%s\nonly Check complains:\n  %s", what, strings.Join(ours[:min(len(ours), 6)], "\n  "))
				}
				if _, err := rw.WriteAt(before, sp.off); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("both complain of %d, neither of %d", both, neither)
			repairClean(t, path)
		})
	}
}
