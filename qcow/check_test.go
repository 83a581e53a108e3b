package qcow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestCheckFaults injects faults and demands that Check names them, that qemu-img check finds fault too, and that OpenPatch refuses.
func TestCheckFaults(t *testing.T) {
	needTool(t, "qemu-img")
	be := binary.BigEndian
	const rb, l1 = 0x20000, 0x30000
	l2 := func(b []byte) []byte { return b[be.Uint64(b[l1:])&offsetMask:] }
	type change func(b []byte)
	or := func(i int, v uint64) change {
		return func(b []byte) { be.PutUint64(l2(b)[i*8:], be.Uint64(l2(b)[i*8:])|v) }
	}
	and := func(i int, v uint64) change {
		return func(b []byte) { be.PutUint64(l2(b)[i*8:], be.Uint64(l2(b)[i*8:])&v) }
	}
	set := func(i int, v uint64) change { return func(b []byte) { be.PutUint64(l2(b)[i*8:], v) } }
	for _, c := range []struct {
		name string
		o    CreateOptions
		edit change
		kind FaultKind
		qemu bool // qemu-img 7.2 sees it too

		repaired bool
	}{
		{"leak", CreateOptions{}, func(b []byte) { be.PutUint16(b[rb:], 2) }, FaultLeak, true, false},
		{"leak of a free cluster", CreateOptions{}, func(b []byte) { be.PutUint16(b[rb+2*1000:], 1) }, FaultLeak, false, true},
		{"leak in the file", CreateOptions{}, func(b []byte) { set(0, 0)(b) }, FaultLeak, true, true},
		{"too low", CreateOptions{}, func(b []byte) { be.PutUint16(b[rb+2*5:], 0) }, FaultRefcount, true, false},
		{"header refcount", CreateOptions{}, func(b []byte) { be.PutUint16(b[rb:], 0) }, FaultRefcount, true, false},
		{"COPIED missing", CreateOptions{}, and(0, ^uint64(flagCopied)), FaultCopied, true, false},
		{"COPIED on compressed", CreateOptions{Compression: "zlib"}, or(0, flagCopied), FaultCopied, true, false},
		{"COPIED missing on L2", CreateOptions{}, func(b []byte) { b[l1] &= 0x7f }, FaultCopied, true, false},
		{"data on the L1 table", CreateOptions{}, set(5, l1|flagCopied), FaultOverlap, true, false},
		{"data on an L2 table", CreateOptions{}, func(b []byte) { set(5, be.Uint64(b[l1:])&offsetMask|flagCopied)(b) }, FaultOverlap, true, false},
		{"data on the header", CreateOptions{}, set(5, flagCompressed), FaultOverlap, true, false},
		{"data unaligned", CreateOptions{}, or(0, 0x200), FaultAlign, true, false},
		{"data past the file", CreateOptions{}, set(5, 1<<40|flagCopied), FaultOutside, true, false},
		{"compressed past the file", CreateOptions{}, set(5, flagCompressed|1<<40), FaultOutside, true, false},
		{"L2 past the file", CreateOptions{}, func(b []byte) { be.PutUint64(b[l1:], 1<<40|flagCopied) }, FaultOutside, true, false},
		{"reserved bits", CreateOptions{}, or(0, 1<<57), FaultEntry, true, false},
		{"refcount block past the file", CreateOptions{}, func(b []byte) { be.PutUint64(b[0x10008:], 1<<40) }, FaultOutside, true, false},
		{"refcount block twice", CreateOptions{}, func(b []byte) { be.PutUint64(b[0x10008:], rb) }, FaultOverlap, true, false},
		{"zero and allocated", CreateOptions{ExtendedL2: true}, func(b []byte) { be.PutUint64(l2(b)[8:], ^uint64(0)) }, FaultEntry, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := smallImage(t, c.o)
			if r, err := Check(f, Options{}); err != nil || r.Total != 0 {
				t.Fatalf("before: %v, %+v", err, r)
			}
			c.edit(f.b)
			r, err := Check(f, Options{})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, x := range r.Faults {
				found = found || x.Kind == c.kind
			}
			if !found {
				t.Errorf("no fault of the kind %s: %v", c.kind, r.Faults)
			}
			if (r.Leaks == r.Total) != (c.kind == FaultLeak) {
				t.Errorf("%d leaks of %d faults", r.Leaks, r.Total)
			}
			// A patch repairs clusters that nothing uses, and refuses all else.
			w, err := OpenPatch(&memFile{b: bytes.Clone(f.b)}, f.Size(), Options{})
			if (err == nil) != c.repaired {
				t.Errorf("OpenPatch: %v", err)
			}
			if err == nil {
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if r, err := Check(w.f.(*memFile), Options{}); err != nil || r.Total != 0 {
					t.Errorf("after the patch: %v, %+v", err, r)
				}
			}
			file := filepath.Join(t.TempDir(), "f.qcow2")
			if err := os.WriteFile(file, f.b, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("qemu-img", "check", "-f", "qcow2", file).CombinedOutput()
			if (err != nil) != c.qemu {
				t.Errorf("qemu-img check: %v\n%s", err, out)
			}
		})
	}
}

// TestCheckBitmaps holds persistent bitmaps: counted by Check, gone after a patch, and QEMU content before and after.
func TestCheckBitmaps(t *testing.T) {
	needTool(t, "qemu-img", "qemu-io")
	rng := seeded(t, 1)
	file := filepath.Join(t.TempDir(), "b.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "5M")
	for i := range 3 {
		run(t, "qemu-img", "bitmap", "--add", "-g", "512", file, fmt.Sprint("b", i))
		qemuIO(t, file, fmt.Sprintf("write -P %d %d 700000", i+1, i*900000))
	}
	qemuCheck(t, file)
	model := qemuRaw(t, file)
	r, err := Check(fileSrc(t, file), Options{})
	if err != nil || r.Total != 0 {
		t.Fatalf("Check: %v, %+v", err, r)
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	w, err := OpenPatch(f, st.Size(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	randomWrites(t, rng, w, model)
	wantGood(t, rng, w, file, model)
	if n := openFile(t, file).Info().Bitmaps; n != 0 {
		t.Errorf("%d bitmaps are left", n)
	}
}
