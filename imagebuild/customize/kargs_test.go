package customize

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// The table is what "rpm-ostree kargs" does, by ostree_kernel_args_delete, _new_replace and _append, but for the last lines.
func TestOps(t *testing.T) {
	const line = `root=UUID=a ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p" "foo=a b"`
	for _, c := range []struct {
		verb verb
		arg  string
		want string // "" is nothing, "?" ambiguous; else what is left of line without the common words
	}{
		{del, "quiet", `root=UUID=a ro console=tty0 console=ttyS0 flag flag= dyndbg="file x +p" "foo=a b"`},
		{del, "root", `ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{del, "root=UUID=a", `ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{del, "root=UUID=b", ""},
		{del, "console", "?"},
		{del, "console=ttyS0", `root=UUID=a ro console=tty0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{del, "console=ttyS1", ""},
		{del, "flag", `root=UUID=a ro console=tty0 console=ttyS0 quiet flag= dyndbg="file x +p" "foo=a b"`},
		{del, "flag=", `root=UUID=a ro console=tty0 console=ttyS0 quiet flag dyndbg="file x +p" "foo=a b"`},
		{del, "nothing", ""},
		{del, "foo=a b", `root=UUID=a ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p"`},
		{replace, "ro=x", `root=UUID=a ro=x console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{replace, "console=ttyS0=ttyAMA0", `root=UUID=a ro console=tty0 console=ttyAMA0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{replace, "console=ttyS0", "?"},
		{replace, "console=ttyS9=x", ""},
		{replace, "nothing=x", ""},
		{replace, "dyndbg=file y +p", `root=UUID=a ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file y +p" "foo=a b"`},
		{replace, "root=UUID=a=UUID=b", `root=UUID=b ro console=tty0 console=ttyS0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{replace, "root=UUID=b", ""}, // rpm-ostree looks for the old value UUID
		{appendArg, "console=ttyS0", line + " console=ttyS0"},
		{appendArg, "x=a b", line + ` x="a b"`},
		{appendArg, `x="a b"`, line + ` x="a b"`},
		{appendArg, "x=a;b", line + ` x="a;b"`},
		{set, "console=hvc0", `root=UUID=a ro console=hvc0 console=hvc0 quiet flag flag= dyndbg="file x +p" "foo=a b"`},
		{set, "nothing=x", ""},
	} {
		in := splitArgs(line)
		out, f := op{c.verb, c.arg, "--x"}.on(in)
		if strings.Join(in, " ") != line {
			t.Fatalf("%v %s changed its input: %q", c.verb, c.arg, in)
		}
		got := strings.Join(out, " ")
		switch {
		case f == nothing:
			got = ""
		case f == ambiguous:
			got = "?"
		}
		if got != c.want {
			t.Errorf("%v %s:\n got %s\nwant %s", c.verb, c.arg, got, c.want)
		}
	}
}

func TestArgCheck(t *testing.T) {
	for _, c := range []struct {
		verb      verb
		arg, want string
	}{
		{appendArg, "", "give KEY or KEY=VALUE"},
		{appendArg, "=x", "give KEY or KEY=VALUE"},
		{appendArg, "a b=c", "one argument at a time"},
		{appendArg, `a="b`, "a quote is not closed"},
		{appendArg, "a=$b", `'$' has a meaning of its own for the boot loader`},
		{appendArg, "a=b\nc", "without line breaks"},
		{appendArg, "a=ü", "letters must be ASCII"},
		{appendArg, "a=" + strings.Repeat("x", 2048), "2048 bytes"},
		{replace, "quiet", "give KEY=NEW or KEY=OLD=NEW"},
		{appendArg, "a=b,c:d/e", ""},
		{del, "quiet", ""},
	} {
		err := op{c.verb, c.arg, "--karg"}.check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !errors.Is(err, ErrUsage) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q: %v, want %q", c.arg, err, c.want)
		}
	}
}

func TestUnquoteShell(t *testing.T) {
	for _, c := range []struct {
		in, want string
		fails    bool
	}{
		{`""`, "", false}, {``, "", false}, {`quiet`, "quiet", false}, {`"a b"`, "a b", false}, {`'a "b c"'`, `a "b c"`, false},
		{`"x=\"a b\""`, `x="a b"`, false}, {`"$GRUB_CMDLINE_LINUX a"`, "$GRUB_CMDLINE_LINUX a", false},
		{`"a"b`, "", true}, {`"a" "b"`, "", true}, {"\"`id`\"", "", true}, {`"$(id)"`, "", true}, {`"a\\b"`, "", true}, {`'a'$b`, "", true}, {`'$a'`, "", true}, {`a b`, "", true},
	} {
		got, err := unquoteShell(c.in)
		if (err != nil) != c.fails || got != c.want {
			t.Errorf("%s: %q, %v", c.in, got, err)
		}
	}
}

// Whatever a disk holds, splitting loses nothing but blanks, and an op of what is there is undone by its opposite.
func FuzzArgs(f *testing.F) {
	for _, s := range []string{"", "a", `a="b c" d`, `"a b`, "a  b\tc\nd", `ro quiet "x=y z" =`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		args := splitArgs(s)
		again := splitArgs(strings.Join(args, " "))
		// An open quote takes what follows it.
		if strings.Count(s, `"`)%2 == 0 && !slices.Equal(args, again) {
			t.Errorf("%q: %q, then %q", s, args, again)
		}
		more, _ := op{appendArg, "nodebake.x=1", ""}.on(args)
		less, f := op{del, "nodebake.x=1", ""}.on(more)
		if !strings.Contains(s, "nodebake.x") && (f != done || !slices.Equal(less, args)) {
			t.Errorf("%q: %q", args, less)
		}
		_, _ = op{replace, s, ""}.on(args)
		_ = op{replace, s, ""}.check()
	})
}

func FuzzEnv(f *testing.F) {
	f.Add(envSignature+"kernelopts=root=x ro \n####", "quiet")
	f.Add(envSignature+"saved_entry=a\nkernelopts=a\\\\b\nx=1\n###########", "q")
	f.Fuzz(func(t *testing.T, block, arg string) {
		file := &textFile{name: "grubenv", lines: slices.Collect(strings.Lines(block))}
		env, err := parseEnv(file)
		if err != nil || env == nil {
			return
		}
		same, err := file.finish(nil)
		if err != nil || len(same) != len(block) {
			// Escapes that need not be are written without.
			t.Fatalf("%q: %d bytes became %d: %v", block, len(block), len(same), err)
		}
		if err := env.set([]string{arg}); err != nil {
			t.Fatal(err)
		}
		out, err := file.finish(nil)
		if err != nil {
			return
		}
		if len(out) != len(block) {
			t.Fatalf("%q: %d bytes became %d", block, len(block), len(out))
		}
		again, err := parseEnv(&textFile{name: "grubenv", lines: slices.Collect(strings.Lines(string(out)))})
		if err != nil || again == nil || !slices.Equal(again.args, splitArgs(arg)) {
			t.Fatalf("%q with %q: %v, %v", block, arg, again, err)
		}
	})
}
