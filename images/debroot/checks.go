package debroot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"portcullis/images/deb"
)

// Check is one thing about an image that was recomputed.
type Check struct {
	Name    string  `json:"check"`
	OK      bool    `json:"ok"`
	Detail  string  `json:"detail,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Step recomputes one thing; its word is the check's detail.
type Step struct {
	Name string
	Run  func(context.Context) (string, error)
}

// RunChecks runs the steps in order up to the first that fails, whose error it
// returns. after is called after each.
func RunChecks(ctx context.Context, steps []Step, after func()) ([]Check, error) {
	var checks []Check
	for _, s := range steps {
		begin := time.Now()
		detail, err := s.Run(ctx)
		after()
		if err != nil {
			detail = err.Error()
		}
		checks = append(checks, Check{Name: s.Name, OK: err == nil, Detail: detail, Seconds: time.Since(begin).Seconds()})
		if err != nil {
			return checks, err
		}
	}
	return checks, nil
}

// Outcome is what the reports about all kinds of images say to people.
type Outcome struct {
	OK     bool
	Checks []Check
	Reason string // of the first difference, "" = none
	Own    string // whole, but by what came with the image: how to ask who made it; "" = signed by a trusted key
	Lab    bool   // it has a root command channel
}

// Print writes it for people.
func (o Outcome) Print(w io.Writer, colour bool) {
	for _, c := range o.Checks {
		mark := Paint(colour, Green, "ok  ")
		if !c.OK {
			mark = Paint(colour, Red, "FAIL")
		}
		fmt.Fprintf(w, "%s  %-26s %s\n", mark, c.Name, c.Detail)
	}
	switch {
	case !o.OK:
		fmt.Fprintf(w, "%s: %s\n", Paint(colour, Red, "not the signed image"), o.Reason)
	case o.Own != "":
		fmt.Fprintln(w, o.Own)
	default:
		fmt.Fprintln(w, Paint(colour, Green, "whole and signed"))
	}
	if o.Lab {
		fmt.Fprintln(w, Paint(colour, Red, "LAB IMAGE: it has a root command channel"))
	}
}

// Colours of Paint, as a terminal wants them.
const (
	Red   = "\x1b[31;1m"
	Green = "\x1b[32m"
	plain = "\x1b[0m"
)

// Paint colours a text where colour is wanted.
func Paint(colour bool, code, s string) string {
	if !colour {
		return s
	}
	return code + s + plain
}

// Retry builds once, and once more with the archive asked anew where a package is
// not there any more: it has moved on since it was asked. refresh says that it is
// asked anew already.
func Retry[R any](refresh bool, build func(refresh bool) (R, error)) (R, error) {
	r, err := build(refresh)
	if errors.Is(err, deb.ErrFetch) && !refresh {
		return build(true)
	}
	return r, err
}
