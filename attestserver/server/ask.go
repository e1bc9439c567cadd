package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"portcullis/attestserver/challenge"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/result"
)

// Reasons why a question that somebody brings is not asked.
const (
	ReasonAskNonce   = "ask-nonce"   // not 16 to 64 bytes, or all of them the same
	ReasonAskContext = "ask-context" // too long, or not printable
	ReasonAskProbe   = "ask-probe"   // a probe that callers may not ask for
	ReasonAskBusy    = "ask-busy"    // too many questions
	ReasonAskGone    = "ask-no-pc"   // no PC has claimed its boot, or its connection ended before it answered
	ReasonAskTime    = "ask-timeout" // the caller's time was over first
)

// AskError is a question that was not asked or not answered.
type AskError struct{ Reason, Detail string }

func (e *AskError) Error() string { return e.Reason + ": " + e.Detail }

// Bounds of what callers can cause. A question of theirs never replaces one of
// ours: it comes in addition, and at most every askGap.
const (
	maxContext = 256
	maxAsks    = protocol.MaxNonces
	askGap     = time.Second
)

// allowed are the ops that a caller may name. What they answer stays here: a
// caller gets the verdict, and no data of the PC.
var allowed = []string{protocol.OpBoot, protocol.OpBlock, protocol.OpProcs, protocol.OpPmem, protocol.OpModules, protocol.OpNet,
	protocol.OpHw, protocol.OpKtext}

// asking is one question that somebody waits for.
type asking struct {
	nonce   []byte
	context string
	probes  []string
	reply   chan reply // has room for one
}

type reply struct {
	claims *result.Claims
	err    error
}

// Ask has the PC challenged with nonce in the question and waits for the
// judgement. The claims are not signed yet. An error is an *AskError.
func (s *Server) Ask(ctx context.Context, nonce []byte, what string, probes []string) (*result.Claims, error) {
	if err := checkAsk(nonce, what, probes); err != nil {
		return nil, err
	}
	if !s.askPace.AllowN(s.o.Clock.Now(), 1) {
		return nil, &AskError{ReasonAskBusy, "more than 2 questions a second"}
	}
	a := &asking{nonce: nonce, context: what, probes: probes, reply: make(chan reply, 1)}
	if !s.post(func(c *core) { c.question(a) }) {
		return nil, &AskError{ReasonAskGone, "attestd is ending"}
	}
	select {
	case r := <-a.reply:
		return r.claims, r.err
	case <-ctx.Done():
		s.post(func(c *core) { c.asks = slices.DeleteFunc(c.asks, func(x *asking) bool { return x == a }) })
		return nil, &AskError{ReasonAskTime, "no answer in the caller's time"}
	case <-s.done:
		return nil, &AskError{ReasonAskGone, "attestd is ending"}
	}
}

func checkAsk(nonce []byte, what string, probes []string) error {
	if len(nonce) < protocol.MinNonce || len(nonce) > protocol.MaxNonce {
		return &AskError{ReasonAskNonce, "want 16 to 64 random bytes"}
	}
	if !slices.ContainsFunc(nonce, func(b byte) bool { return b != nonce[0] }) {
		return &AskError{ReasonAskNonce, "all bytes are the same: this is not random"}
	}
	if len(what) > maxContext || !utf8.ValidString(what) || strings.ContainsFunc(what, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return &AskError{ReasonAskContext, "want at most 256 bytes of printable text"}
	}
	for _, p := range probes {
		if !slices.Contains(allowed, p) {
			return &AskError{ReasonAskProbe, "callers may ask for " + strings.Join(allowed, ", ")}
		}
	}
	return nil
}

// question takes a question.
func (c *core) question(a *asking) {
	switch {
	case c.link == nil:
		a.reply <- reply{err: &AskError{ReasonAskGone, "no PC has claimed its boot"}}
	case len(c.asks) >= maxAsks:
		a.reply <- reply{err: &AskError{ReasonAskBusy, "too many questions are waiting"}}
	default:
		c.asks = append(c.asks, a)
	}
}

// next is when the PC is asked next: at our own moment, or before it because
// somebody waits, but not while it may still be at an answer that is late.
func (c *core) next() time.Time {
	at := c.due
	if len(c.asks) > 0 && len(c.enrol) == 0 && c.askAgain.Before(at) {
		at = c.askAgain
	}
	if c.link != nil && c.link.busy.After(at) {
		at = c.link.busy
	}
	return at
}

// takeAsks brings the questions that wait into the next challenge.
func (c *core) takeAsks(now time.Time, want *challenge.Want) {
	if len(c.asks) == 0 {
		return
	}
	c.asking, c.asks, c.askAgain = c.asks, nil, now.Add(askGap)
	must := slices.Clone(want.Must)
	for _, a := range c.asking {
		want.Nonces = append(want.Nonces, a.nonce)
		must = append(must, a.probes...)
	}
	want.Must = must
}

// answerAsks tells those whose nonces were in sent what is believed after it.
func (c *core) answerAsks(now time.Time, sent *challenge.Sent) {
	if len(c.asking) == 0 {
		return
	}
	// Into the log first, so that the result can name an entry that has it.
	c.write(now, sent.Message.Sequence, nil)
	asked := &result.Asked{Own: sent.Own[:]}
	for _, a := range c.asking {
		asked.Nonces = append(asked.Nonces, a.nonce)
	}
	for _, a := range c.asking {
		f := c.facts(c.view(), now)
		f.Nonce, f.Context, f.Asked = a.nonce, a.context, asked
		a.reply <- reply{claims: result.Build(f)}
	}
	c.asking = nil
}

// dropAsks tells everybody who waits that there will be no answer.
func (c *core) dropAsks(reason, detail string) {
	for _, a := range append(c.asking, c.asks...) {
		a.reply <- reply{err: &AskError{reason, detail}}
	}
	c.asking, c.asks = nil, nil
}

// resultLife is how long a result says anything that is not trust.
const resultLife = time.Minute

// facts are those of a result about what v shows.
func (s *Server) facts(v *view, now time.Time) result.Facts {
	f := result.Facts{Now: now, PC: s.o.Name, Life: resultLife, Verdict: v.verdict, Posture: s.o.Posture, Policy: "portcullis:verdict-machine",
		LogOrigin: s.o.Record.origin(), LogEntries: v.entries}
	f.Verdict.Warnings = s.o.warnings(f.Verdict.Warnings)
	if v.image != nil {
		m := v.image.Manifest
		f.Image, f.ImageVersion, f.LabImage = m.Image, m.Version, m.LabChannel
	}
	return f
}

func askReason(err error) string {
	var e *AskError
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}
