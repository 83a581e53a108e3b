package rpmdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/adler32"
	"io"
	"math/rand"
	"os"
	"testing"
)

// makeHeader makes a package's header of some tags.
func makeHeader(strs map[uint32]string, epoch uint32) []byte {
	var index, data []byte
	entry := func(tag, kind, count uint32) {
		for _, v := range []uint32{tag, kind, uint32(len(data)), count} {
			index = binary.BigEndian.AppendUint32(index, v)
		}
	}
	for tag := uint32(tagName); tag <= tagModularityLabel; tag++ {
		if s, ok := strs[tag]; ok {
			entry(tag, typeString, 1)
			data = append(append(data, s...), 0)
		}
	}
	for len(data)%4 != 0 {
		data = append(data, 0)
	}
	entry(tagEpoch, typeInt32, 1)
	data = binary.BigEndian.AppendUint32(data, epoch)
	out := binary.BigEndian.AppendUint32(nil, uint32(len(index)/headerEntry))
	return append(append(binary.BigEndian.AppendUint32(out, uint32(len(data))), index...), data...)
}

// makeNDB makes a database of ndb's from headers, as rpmpkg.c lays it out. Debian's rpm has no ndb; a real one is read
// in TestRealDatabases.
func makeNDB(headers [][]byte) []byte {
	const pages = 2
	db := make([]byte, pages*ndbPage)
	copy(db, ndbMagic)
	binary.LittleEndian.PutUint32(db[12:], pages)
	for at := ndbHead; at < len(db); at += ndbBlock {
		copy(db[at:], ndbSlot)
	}
	for i, h := range headers {
		blob := append([]byte(ndbBlobStart), make([]byte, 12)...)
		binary.LittleEndian.PutUint32(blob[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(blob[12:], uint32(len(h)))
		blob = append(blob, h...)
		for (len(blob)+ndbBlobTail)%ndbBlock != 0 {
			blob = append(blob, 0)
		}
		blob = binary.LittleEndian.AppendUint32(blob, adler32.Checksum(blob))
		blob = append(binary.LittleEndian.AppendUint32(blob, uint32(len(h))), ndbBlobEnd...)
		slot := db[ndbHead+i*ndbBlock:]
		binary.LittleEndian.PutUint32(slot[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(slot[8:], uint32(len(db)/ndbBlock))
		binary.LittleEndian.PutUint32(slot[12:], uint32(len(blob)/ndbBlock))
		db = append(db, blob...)
	}
	return db
}

var small = makeHeader(map[uint32]string{tagName: "bash", tagVersion: "5", tagRelease: "1", tagArch: "noarch"}, 3)

// readAll reads all of a database and fails where an error is not one that the documentation names.
func readAll(t testing.TB, file, wal []byte) int {
	var log *io.SectionReader
	if len(wal) > 0 {
		log = memory(wal)
	}
	db, err := Open(memory(file), log)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrFormat) {
			t.Fatal(err)
		}
		return 0
	}
	n := 0
	for p, err := range db.Packages() {
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			break
		}
		if p.Name == "" {
			t.Fatal("a package without a name")
		}
		n++
	}
	return n
}

func seeds(t testing.TB) map[string][2][]byte {
	all := map[string][2][]byte{"ndb": {makeNDB([][]byte{small, small}), nil}}
	for _, n := range []string{"tiny.sqlite", "tiny.bdb"} {
		b, err := os.ReadFile("testdata/" + n)
		check(t, err)
		wal, err := os.ReadFile("testdata/" + n + "-wal")
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		all[n] = [2][]byte{b, wal}
	}
	return all
}

func FuzzDatabase(f *testing.F) {
	for _, s := range seeds(f) {
		if readAll(f, s[0], s[1]) == 0 {
			f.Fatal("a seed has no packages")
		}
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, file, wal []byte) { readAll(t, file, wal) })
}

func FuzzHeader(f *testing.F) {
	f.Add(small)
	f.Fuzz(func(t *testing.T, blob []byte) {
		if p, err := parseHeader(blob); err == nil && (p.Name == "" || p.Version == "") {
			t.Fatal("a package without a name or a version")
		}
	})
}

// TestDamage changes bytes of whole databases: each is read to an end, or refused.
func TestDamage(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewSource(seed))
	for name, s := range seeds(t) {
		for i := range 4000 {
			file, wal := bytes.Clone(s[0]), bytes.Clone(s[1])
			for range 1 + r.Intn(4) {
				b := file
				if len(wal) > 0 && r.Intn(2) == 0 {
					b = wal
				}
				at := r.Intn(len(b))
				if r.Intn(3) > 0 {
					// The first bytes of pages steer most.
					at = at/512*512 + r.Intn(40)
				}
				if at >= len(b) {
					continue
				}
				b[at] = byte([]int{0, 1, 0x7f, 0x80, 0xff, r.Intn(256)}[r.Intn(6)])
			}
			if r.Intn(10) == 0 {
				file = file[:r.Intn(len(file))]
			}
			if n := readAll(t, file, wal); n > 100 {
				t.Errorf("seed %d: %s, change %d: %d packages of 3", seed, name, i, n)
			}
		}
	}
}

// TestHostile are databases that would make a trusting reader run forever or take all memory.
func TestHostile(t *testing.T) {
	long := bytes.Repeat([]byte{0xff}, 64)
	overlap := makeNDB([][]byte{small})
	for at := ndbHead; at < 2*ndbPage; at += ndbBlock {
		copy(overlap[at:], overlap[ndbHead:ndbHead+ndbBlock])
	}
	// A slot that claims all of the file, many times over.
	for at := ndbHead; at < 2*ndbPage; at += ndbBlock {
		binary.LittleEndian.PutUint32(overlap[at+12:], uint32(len(overlap)/ndbBlock)-512)
	}
	for name, file := range map[string][]byte{
		"empty": nil, "short": []byte("SQLite format 3\x00"), "no format": long,
		"sqlite of ones": append([]byte(sqliteMagic), bytes.Repeat([]byte{0xff}, 8192)...),
		"ndb of ones":    append([]byte(ndbMagic+"\x00\x00\x00\x00"), bytes.Repeat([]byte{0xff}, 8192)...),
		"ndb overlap":    overlap,
	} {
		// No byte is read twice as a package.
		if n := readAll(t, file, nil); n*len(small) > len(file) {
			t.Errorf("%s: %d packages in %d bytes", name, n, len(file))
		}
	}
	if _, err := Open(memory(long), nil); !errors.Is(err, ErrFormat) {
		t.Errorf("what is no database: %v", err)
	}
}
