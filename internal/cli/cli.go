// Package cli is the small command tree of the portcullis program: names, help
// with an example, exit codes. It may be called by cmd/portcullis only.
//
// Exit codes: 0 done; 1 the command ran and the answer is no, or it failed; 2 wrong usage.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"sort"
	"strings"
)

// IO holds the streams of one run. Colour is true only where Out is a terminal.
type IO struct {
	In     io.Reader
	Out    io.Writer
	Err    io.Writer
	Colour bool
}

// Command is a node of the tree: either it runs or it has subcommands.
type Command struct {
	Name    string
	Args    string // shown after the name in the usage line, for instance "DIR"
	Summary string
	Example string
	// Run gets the words after the command's name. It parses its own flags with NewFlags.
	Run func(ctx context.Context, io *IO, args []string) error
	Sub []*Command
}

// UsageError is a call that cannot be understood; the program ends with 2.
type UsageError struct{ Msg string }

func (e *UsageError) Error() string { return e.Msg }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Sprintf(format, args...)} }

// ExitError ends the program with Code and prints nothing more.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit code %d", e.Code) }

// NewFlags returns a flag set that reports errors instead of ending the program.
func NewFlags(c *Command, stdio *IO) *flag.FlagSet {
	fs := flag.NewFlagSet(c.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	return fs
}

// Parse parses flags that may stand before and after the positional words and
// returns the latter. Words after "--" are left as they are. On --help it
// prints the help of c and returns flag.ErrHelp.
func Parse(c *Command, stdio *IO, fs *flag.FlagSet, args []string) ([]string, error) {
	var words []string
	for {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				Help(c, stdio.Out, fs)
				return nil, err
			}
			return nil, &UsageError{c.Name + ": " + err.Error()}
		}
		rest := fs.Args()
		consumed := args[:len(args)-len(rest)]
		if len(consumed) > 0 && consumed[len(consumed)-1] == "--" {
			return append(words, rest...), nil
		}
		if len(rest) == 0 {
			return words, nil
		}
		words = append(words, rest[0])
		args = rest[1:]
	}
}

// Help prints the help of c; fs may be nil.
func Help(c *Command, w io.Writer, fs *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nUsage: portcullis %s", c.Summary, c.Name)
	if c.Args != "" {
		fmt.Fprintf(w, " %s", c.Args)
	}
	if len(c.Sub) > 0 {
		fmt.Fprint(w, " COMMAND")
	}
	fmt.Fprintln(w)
	if len(c.Sub) > 0 {
		fmt.Fprintln(w, "\nCommands:")
		subs := append([]*Command(nil), c.Sub...)
		sort.Slice(subs, func(i, j int) bool { return subs[i].Name < subs[j].Name })
		for _, s := range subs {
			words := strings.Fields(s.Name)
			fmt.Fprintf(w, "  %-13s %s\n", words[len(words)-1], firstSentence(s.Summary))
		}
	}
	if fs != nil {
		has := false
		fs.VisitAll(func(*flag.Flag) { has = true })
		if has {
			fmt.Fprintln(w, "\nFlags:")
			fs.SetOutput(w)
			fs.PrintDefaults()
			fs.SetOutput(io.Discard)
		}
	}
	if c.Example != "" {
		fmt.Fprintf(w, "\nExample:\n  %s\n", strings.ReplaceAll(strings.TrimSpace(c.Example), "\n", "\n  "))
	}
}

// firstSentence is what a list of commands has room for.
func firstSentence(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if i := strings.Index(s, ". "); i >= 0 {
		return s[:i+1]
	}
	return s
}

// Run walks the tree and returns the exit code.
func Run(ctx context.Context, root *Command, stdio *IO, args []string) int {
	c := root
	for len(c.Sub) > 0 {
		if len(args) == 0 || args[0] == "--help" || args[0] == "-h" || args[0] == "help" {
			Help(c, stdio.Out, nil)
			if len(args) == 0 {
				return 2
			}
			return 0
		}
		next := find(c, args[0])
		if next == nil {
			fmt.Fprintf(stdio.Err, "portcullis: no command %q; see 'portcullis %s'\n", args[0], strings.TrimSpace(c.Name+" --help"))
			return 2
		}
		c, args = next, args[1:]
	}
	err := c.Run(ctx, stdio, args)
	var usage *UsageError
	var exit *ExitError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &usage):
		fmt.Fprintf(stdio.Err, "portcullis: %s\nsee 'portcullis %s --help'\n", usage.Msg, c.Name)
		return 2
	case errors.As(err, &exit):
		return exit.Code
	default:
		fmt.Fprintf(stdio.Err, "portcullis: %v\n", err)
		return 1
	}
}

func find(c *Command, word string) *Command {
	for _, s := range c.Sub {
		words := strings.Fields(s.Name)
		if words[len(words)-1] == word {
			return s
		}
	}
	return nil
}
