// Package bypass tries to get round the guard of the Verification module: a table
// of named ways, each run against a real engine behind a real guard with a real
// log. A way counts as closed when it is refused, the engine is as it was before,
// and the refusal stands in the log with the reason that it must have.
//
// `portcullis lab bypass` and the test of this package run it. It needs root.
package bypass

import (
	"context"
	"fmt"
)

// Attack is one way round the guard.
type Attack struct {
	Name   string // kebab-case
	Reason string // typed, as the log must have it
	// Try goes the way. It returns an error where it was not refused.
	Try func(context.Context, *Rig) error
}

// Result tells what became of an attack.
type Result struct {
	Attack  string  `json:"attack"`
	Reason  string  `json:"reason"` // that the log must have
	Refused bool    `json:"refused"`
	Logged  bool    `json:"logged"`
	Note    string  `json:"note,omitempty"` // how often, of a race
	Detail  string  `json:"detail,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Closed tells whether the way is closed.
func (r Result) Closed() bool { return r.Refused && r.Logged }

func (r Result) String() string {
	if r.Closed() {
		text := fmt.Sprintf("%-34s refused: %s", r.Attack, r.Reason)
		if r.Note != "" {
			text += " (" + r.Note + ")"
		}
		return text
	}
	return fmt.Sprintf("%-34s OPEN: refused %t, in the log as %s %t: %s", r.Attack, r.Refused, r.Reason, r.Logged, r.Detail)
}

// Attacks is the whole table.
func Attacks() []Attack {
	var out []Attack
	for _, part := range [][]Attack{endpoints, spellings, bodies, wishes, images, layouts, decisions, doors, behind} {
		out = append(out, part...)
	}
	return out
}
