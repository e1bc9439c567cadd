package server

import (
	"fmt"
	"io"
	"slices"
	"testing"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/protocol"
)

func many(probe string, class protocol.Class, n int) (out []protocol.Finding) {
	for i := range n {
		out = append(out, finding(probe, fmt.Sprint("reason-", i), class, ""))
	}
	return out
}

// However much one op notes, a finding of another is not lost.
func TestAttack_NotesDoNotHideAFinding(t *testing.T) {
	for _, class := range []protocol.Class{protocol.Info, protocol.Fatal} {
		crowd := slices.Concat(many("procs", class, 32), many("ima", class, 32), many("net", class, 32))
		for _, all := range [][]protocol.Finding{
			append(slices.Clone(crowd), finding("time", "told-once", protocol.Soft, "")),
			append([]protocol.Finding{finding("time", "told-once", protocol.Soft, "")}, crowd...),
		} {
			got := fold(all)
			if len(got) != maxFindings || !slices.ContainsFunc(got, func(f protocol.Finding) bool { return f.Reason == "told-once" && f.Class == protocol.Soft }) {
				t.Errorf("%d findings: %v", len(got), got)
			}
			last := got[maxFindings-1]
			if last.Reason != protocol.FindingsMore || last.Class != class || last.Detail != "34 more findings than are listed" {
				t.Errorf("the rest: %+v", last)
			}
		}
	}
}

// crowd is an op that has this to say.
type crowd []protocol.Finding

func (c crowd) Name() string                                         { return c[0].Probe }
func (crowd) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }
func (c crowd) Judge(protocol.JudgeInput) []protocol.Finding         { return c }

// The whole of an answer with a crowd of notes fails by the one finding behind them.
func TestAttack_AnswerFullOfNotesFails(t *testing.T) {
	a := new(challenge.Accepted)
	for _, c := range []crowd{many("procs", protocol.Info, 32), many("ima", protocol.Info, 32), many("net", protocol.Info, 32), many("files", protocol.Fatal, 1)} {
		a.Answers = append(a.Answers, challenge.Answer{Asked: challenge.Asked{Expectation: c}})
	}
	if o := weigh(nil, new(protocol.ImageState), new(challenge.Sent), a); !failing(o.findings) || len(o.findings) != maxFindings {
		t.Errorf("%d findings: %v", len(o.findings), o.findings)
	}
}

// What an answer leaves out is not always the same.
func TestFoldedFindingsShowInALaterAnswer(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		for _, f := range fold(many("procs", protocol.Fatal, maxFindings+10)) {
			seen[f.Reason] = true
		}
	}
	if want := maxFindings + 10 + 1; len(seen) != want {
		t.Errorf("%d of %d are shown in 200 answers", len(seen), want)
	}
}

func TestFewFindingsStayAsTheyAre(t *testing.T) {
	all := append(many("procs", protocol.Info, maxFindings-1), finding("net", "x", protocol.Fatal, ""))
	if got := fold(slices.Clone(all)); !slices.Equal(got, all) {
		t.Errorf("%v", got)
	}
}
