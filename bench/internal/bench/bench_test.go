package bench

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"testing"
)

type took struct {
	Runs int `json:"runs"`
}

func (r took) Print(w io.Writer) { fmt.Fprintf(w, "%d runs\n", r.Runs) }

func TestCommandLine(t *testing.T) {
	var more int
	spec := Spec{Name: "b", Runs: 3, Usage: "runs", Flags: func(f *flag.FlagSet) { f.IntVar(&more, "more", 0, "runs beside") }, Run: func(_ context.Context, n int) (Report, error) {
		if n == 7 {
			return nil, errors.New("no luck")
		}
		return took{n + more}, nil
	}}
	for _, c := range []struct {
		args      string
		code      int
		out, errs string
	}{
		{"", 0, "3 runs\n", ""},
		{"-n 5", 0, "5 runs\n", ""},
		{"-n 5 -more 2", 0, "7 runs\n", ""},
		{"-n 5 --json", 0, `{"runs":5}` + "\n", ""},
		{"-n 7", 1, "", "b: no luck\n"},
		{"-n 0", 2, "", "at least 1"},
		{"more", 2, "", "nothing else"},
		{"--what", 2, "", "not defined"},
		{"--help", 0, "", "-json"},
	} {
		var out, errs bytes.Buffer
		more = 0
		code := spec.main(t.Context(), strings.Fields(c.args), &out, &errs)
		if code != c.code || out.String() != c.out || !strings.Contains(errs.String(), c.errs) {
			t.Errorf("%q: exit %d, wrote %q, %q", c.args, code, out.String(), errs.String())
		}
	}
}

func TestMedian(t *testing.T) {
	for want, all := range map[float64][]float64{0: nil, 2: {3, 1, 2}, 2.5: {4, 1, 3, 2}} {
		if got := Median(all); got != want {
			t.Errorf("of %v: %v, not %v", all, got, want)
		}
	}
}
