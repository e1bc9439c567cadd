package cli

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func tree(run func(context.Context, *IO, []string) error) *Command {
	return &Command{Summary: "root", Sub: []*Command{{Name: "image", Summary: "images", Sub: []*Command{
		{Name: "image verify", Summary: "verify an image", Example: "portcullis image verify DIR", Run: run}}}}}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		name string
		args []string
		err  error
		want int
	}{
		{"done", []string{"image", "verify"}, nil, 0},
		{"failed", []string{"image", "verify"}, errors.New("no"), 1},
		{"own code", []string{"image", "verify"}, &ExitError{Code: 3}, 3},
		{"usage", []string{"image", "verify"}, Usagef("bad"), 2},
		{"unknown command", []string{"imgae"}, nil, 2},
		{"unknown subcommand", []string{"image", "x"}, nil, 2},
		{"nothing", nil, nil, 2},
		{"help", []string{"--help"}, nil, 0},
		{"help of a group", []string{"image", "--help"}, nil, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			got := Run(context.Background(), tree(func(context.Context, *IO, []string) error { return tc.err }),
				&IO{Out: &out, Err: &errOut}, tc.args)
			if got != tc.want {
				t.Fatalf("exit %d, want %d (%s%s)", got, tc.want, &out, &errOut)
			}
			if tc.want == 2 && tc.args != nil && errOut.Len() == 0 {
				t.Fatal("wrong usage without a word")
			}
		})
	}
}

func TestFlagsStandAnywhereAndEndAtDashes(t *testing.T) {
	c := &Command{Name: "x"}
	for _, tc := range []struct {
		args, words []string
		json        bool
	}{
		{[]string{"--json", "a", "b"}, []string{"a", "b"}, true},
		{[]string{"a", "--json", "b"}, []string{"a", "b"}, true},
		{[]string{"a", "b", "--json"}, []string{"a", "b"}, true},
		{[]string{"a", "--", "--json", "b"}, []string{"a", "--json", "b"}, false},
		{[]string{"--", "sh", "-c", "ls --json"}, []string{"sh", "-c", "ls --json"}, false},
	} {
		fs := NewFlags(c, nil)
		j := fs.Bool("json", false, "")
		words, err := Parse(c, &IO{}, fs, tc.args)
		if err != nil || !slices.Equal(words, tc.words) || *j != tc.json {
			t.Errorf("%q: words %q json %v err %v", tc.args, words, *j, err)
		}
	}
	var usage *UsageError
	if _, err := Parse(c, &IO{}, NewFlags(c, nil), []string{"--nope"}); !errors.As(err, &usage) {
		t.Errorf("unknown flag: %v", err)
	}
}

func TestHelpShowsExampleAndFlags(t *testing.T) {
	var out bytes.Buffer
	var c *Command
	root := tree(func(_ context.Context, stdio *IO, args []string) error {
		fs := NewFlags(c, stdio)
		fs.Bool("json", false, "one JSON object")
		_, err := Parse(c, stdio, fs, args)
		return err
	})
	c = root.Sub[0].Sub[0]
	if code := Run(context.Background(), root, &IO{Out: &out}, []string{"image", "verify", "--help"}); code != 0 {
		t.Fatalf("exit %d", code)
	}
	for _, want := range []string{"Usage: portcullis image verify", "-json", "Example:"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, &out)
		}
	}
}
