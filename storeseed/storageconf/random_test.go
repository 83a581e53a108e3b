package storageconf

import (
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"go.podman.io/storage/types"
)

// TestRandom edits random but valid files, with the library's decoder as the
// oracle. NODEBAKE_SEED repeats a run.
func TestRandom(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("NODEBAKE_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	rounds := 3000
	if os.Getenv("NODEBAKE_SOAK") == "1" {
		rounds = 300000
	}
	t.Logf("NODEBAKE_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	valid, listed := 0, 0
	for range rounds {
		conf := randomConf(rng)
		var before, after types.TomlConfig
		if _, err := toml.Decode(conf, &before); err != nil {
			continue // the pieces did not go together
		}
		valid++
		out, changed, err := AddStore([]byte(conf), store)
		if err != nil {
			t.Fatalf("the library reads this, AddStore says %v\n%s", err, conf)
		}
		if !changed {
			listed++
			if !lists(strings.Join(before.Storage.Options.AdditionalImageStores.Values, ","), store) {
				t.Fatalf("not changed\n%s", conf)
			}
			continue
		}
		if _, err := toml.Decode(string(out), &after); err != nil {
			t.Fatalf("the library does not read the output: %v\n%s\n----\n%s", err, conf, out)
		}
		got := after.Storage.Options.AdditionalImageStores.Values
		if len(got) == 0 || got[0] != store {
			t.Fatalf("stores are %q\n%s\n----\n%s", got, conf, out)
		}
		after.Storage.Options.AdditionalImageStores.Values = got[1:]
		if len(got) == 1 {
			after.Storage.Options.AdditionalImageStores.Values = before.Storage.Options.AdditionalImageStores.Values
		}
		if d := cmp.Diff(before, after); d != "" && strings.TrimSpace(conf) != "" {
			t.Fatalf("%s\n%s\n----\n%s", d, conf, out)
		}
		start := 0
		for start < len(conf) && conf[start] == out[start] {
			start++
		}
		if !strings.HasSuffix(string(out), conf[start:]) {
			t.Fatalf("not one insertion\n%s\n----\n%s", conf, out)
		}
		if again, changed, err := AddStore(out, store); changed || err != nil || !slices.Equal(again, out) {
			t.Fatalf("second time: %v, %v\n%s", changed, err, out)
		}
	}
	t.Logf("%d valid, %d listed", valid, listed)
	if valid < rounds/4 || listed == 0 {
		t.Errorf("of %d files %d were valid, %d listed the store: a poor test", rounds, valid, listed)
	}
}

func randomConf(rng *rand.Rand) string {
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	str := func() string {
		return pick(`"/a"`, `'/b'`, `"/ä#["`, `"/x\"]"`, `'''/c'''`, `"""/d"""`, `"/var/images/"`, `"/a,/b"`)
	}
	comment := func() string {
		return pick("", "", " # c", " # [storage]", "#]", " # additionalimagestores = []")
	}
	list := func() string {
		n := rng.IntN(4)
		multi := rng.IntN(2) == 0
		var b strings.Builder
		b.WriteString("[" + pick("", " "))
		if multi {
			b.WriteString(comment() + "\n")
		}
		for i := range n {
			if multi && rng.IntN(4) == 0 {
				b.WriteString("\t# \"/old\",\n")
			}
			b.WriteString(pick("", " ", "\t") + str())
			if i < n-1 || rng.IntN(2) == 0 {
				b.WriteString(pick(",", " ,"))
			}
			if multi {
				b.WriteString(comment() + "\n")
			}
		}
		return b.String() + "]"
	}
	scalars := []string{`driver = "overlay"`, `graphroot = '/g'`, `runroot="/r"`, `driver_priority = ["overlay"]`, `transient_store = false`, `unknown = 1979-05-27`}
	options := []string{`mountopt = "nodev"`, `pull_options = {use_hard_links = "false"}`, `"auto-userns-min-size" = 1024`, `overlay.mountopt = "x"`, `size = """` + "\n[storage.options]\n" + `"""`}
	lines := func(from []string, prefix string) (s []string) {
		for _, i := range rng.Perm(len(from))[:rng.IntN(3)] {
			s = append(s, pick("", "  ", "\t")+prefix+from[i]+comment())
		}
		return s
	}
	noise := func() []string {
		return slices.Repeat([]string{pick("", "# text", "# additionalimagestores = []", "#additionalimagestores = [\n#  '/x',\n#]", "  # additionalimagestores = [")}, rng.IntN(2))
	}
	var out []string
	add := func(s ...[]string) {
		for _, x := range s {
			out = append(out, x...)
		}
	}
	var key []string // the live key, if any
	if rng.IntN(2) == 0 {
		key = []string{pick("", " ") + pick("additionalimagestores", `"additionalimagestores"`, "AdditionalImageStores") + pick("=", " = ", "\t=") + list() + comment()}
	}
	options0 := func(prefix string) []string {
		s := lines(options, prefix)
		for _, k := range key {
			s = append(s, prefix+strings.TrimLeft(k, " "))
		}
		rng.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		return s
	}
	switch rng.IntN(5) {
	case 0: // dotted at the root
		add(noise(), lines(scalars, "storage."), options0("storage.options."), noise())
	case 1: // dotted in [storage]
		add(noise(), []string{"[storage]" + comment()}, noise(), lines(scalars, ""), options0("options . "), noise())
	case 2: // inline options
		inner := strings.Join(append(key, pick("", `mountopt="nodev"`)), ", ")
		add([]string{"[ storage ]"}, lines(scalars, ""), []string{"options = {" + strings.TrimSuffix(inner, ", ") + "}" + comment()})
	default: // sections in any order
		sections := [][]string{
			slices.Concat([]string{"[storage]" + comment()}, noise(), lines(scalars, ""), noise()),
			slices.Concat(noise(), []string{pick("[storage.options]", "[storage . 'options']") + comment()}, noise(), options0(""), noise()),
			slices.Concat(noise(), []string{"[storage.options." + pick("vfs", "zfs", "btrfs") + "]"}, noise()),
			slices.Concat([]string{"[[other]]"}, noise(), []string{"additionalimagestores = []"}),
		}
		rng.Shuffle(len(sections), func(i, j int) { sections[i], sections[j] = sections[j], sections[i] })
		for _, s := range sections {
			if rng.IntN(4) > 0 {
				add(s)
			}
		}
	}
	conf := strings.Join(out, "\n")
	if rng.IntN(2) == 0 {
		conf += "\n"
	}
	if rng.IntN(3) == 0 {
		conf = strings.ReplaceAll(conf, "\n", "\r\n")
	}
	if rng.IntN(10) == 0 {
		conf = bom + conf
	}
	return conf
}
