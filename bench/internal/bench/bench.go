// Package bench is what the benchmarks share: their command line, how they report,
// and the median.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// Report is what a benchmark has measured. --json prints its fields.
type Report interface {
	Print(w io.Writer) // for people
}

// Spec describes a benchmark.
type Spec struct {
	Name  string
	Runs  int    // where -n is not given, at least 1
	Usage string // of -n
	// Flags defines further flags; nil: there are none.
	Flags func(*flag.FlagSet)
	// Run measures n times; ctx ends with an interrupt.
	Run func(ctx context.Context, n int) (Report, error)
}

// Main runs a benchmark with the flags -n and --json and ends the program: with 1
// where it failed, with 2 where the command line is wrong.
func Main(s Spec) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := s.main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func (s Spec) main(ctx context.Context, args []string, out, errs io.Writer) int {
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.SetOutput(errs)
	n := flags.Int("n", s.Runs, s.Usage)
	asJSON := flags.Bool("json", false, "one JSON object")
	if s.Flags != nil {
		s.Flags(flags)
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case *n < 1 || flags.NArg() > 0:
		fmt.Fprintf(errs, "%s: -n is at least 1, and nothing else is expected\n", s.Name)
		return 2
	}
	r, err := s.Run(ctx, *n)
	if err == nil && *asJSON {
		err = json.NewEncoder(out).Encode(r)
	} else if err == nil {
		r.Print(out)
	}
	if err != nil {
		fmt.Fprintf(errs, "%s: %v\n", s.Name, err)
		return 1
	}
	return 0
}

// Median returns the middle value, of an even number the mean of the two, of none 0.
func Median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(all))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}
