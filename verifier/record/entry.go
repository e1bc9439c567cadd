package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"time"
	"unicode/utf8"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
)

// Kinds of an entry.
const (
	KindApprovers  = "approvers"
	KindApproval   = "approval"
	KindRevocation = "revocation"
	KindPermission = "permission"
	KindRefusal    = "refusal"
)

// Entry is one entry of the log: a time, and what its kind says.
type Entry struct {
	Time       time.Time       `json:"-"` // whole milliseconds, UTC; never before that of the entry above it
	Kind       string          `json:"-"`
	Approvers  json.RawMessage `json:"-"` // of approvers: approval.Approvers.Encode
	Envelope   json.RawMessage `json:"-"` // of approval and revocation: as it was signed
	Permission *Permission     `json:"-"`
	Refusal    *Refusal        `json:"-"`
}

// wire is the JSON of an Entry: one line, fields in this order.
type wire struct {
	Time       string          `json:"time"` // RFC 3339, milliseconds
	Kind       string          `json:"kind"`
	Approvers  json.RawMessage `json:"approvers,omitempty"`
	Envelope   json.RawMessage `json:"envelope,omitempty"`
	Permission *Permission     `json:"permission,omitempty"`
	Refusal    *Refusal        `json:"refusal,omitempty"`
}

// Permission is a yes that was given.
type Permission struct {
	Action   approval.Action   `json:"action"`
	Approval string            `json:"approval"` // digest of the one that it rests on
	Image    approval.Image    `json:"image"`
	Purpose  string            `json:"purpose,omitempty"` // of a start
	Profile  *approval.Profile `json:"profile,omitempty"` // of a start: as it runs
	Caller   string            `json:"caller"`
}

// Refusal is a no that was given. It needs no reason to be right: refusing is
// always allowed.
type Refusal struct {
	Action string `json:"action"` // what was asked for: load, start, or what the guard calls it
	Reason string `json:"reason"` // typed
	Detail string `json:"detail"` // for people, at most MaxDetail bytes
	Image  string `json:"image"`  // digest, or what the caller calls it; may be ""
	Caller string `json:"caller"` //
	Count  int64  `json:"count"`  // how often, since the entry before of the same kind; at least 1
}

// Largest texts in an entry, in bytes.
const (
	MaxDetail = 512
	MaxCaller = 200
)

const timeForm = "2006-01-02T15:04:05.000Z"

var tokenForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,63}$`)

// Encode returns the one encoding of e.
func (e Entry) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if p := e.Permission; p != nil && p.Profile != nil {
		copied, profile := *p, p.Profile.Listed()
		copied.Profile = &profile
		e.Permission = &copied
	}
	if err := enc.Encode(wire{e.Time.UTC().Format(timeForm), e.Kind, e.Approvers, e.Envelope, e.Permission, e.Refusal}); err != nil {
		return nil, refuse(ReasonEntry, "%v", err)
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(out) > translog.MaxEntry {
		return nil, refuse(ReasonEntry, "%d bytes, at most %d are possible", len(out), translog.MaxEntry)
	}
	return out, nil
}

// ParseEntry reads the encoding of Encode and nothing else. What is signed in an
// entry is not verified here: State.Apply does that.
func ParseEntry(data []byte) (*Entry, error) {
	var w wire
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&w); err != nil {
		return nil, refuse(ReasonEntry, "not readable: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse(ReasonEntry, "data behind the end")
	}
	at, err := time.Parse(timeForm, w.Time)
	if err != nil {
		return nil, refuse(ReasonEntry, "time %.40q", w.Time)
	}
	e := &Entry{at, w.Kind, w.Approvers, w.Envelope, w.Permission, w.Refusal}
	again, err := e.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, refuse(ReasonEntry, "not in its canonical encoding")
	}
	return e, e.check()
}

func (e *Entry) check() error {
	parts := map[string]bool{
		KindApprovers: e.Approvers != nil, KindApproval: e.Envelope != nil, KindRevocation: e.Envelope != nil,
		KindPermission: e.Permission != nil, KindRefusal: e.Refusal != nil,
	}
	count := 0
	for _, there := range []bool{e.Approvers != nil, e.Envelope != nil, e.Permission != nil, e.Refusal != nil} {
		if there {
			count++
		}
	}
	if !parts[e.Kind] || count != 1 {
		return refuse(ReasonEntry, "an entry of the kind %.40q with %d parts", e.Kind, count)
	}
	if p := e.Permission; p != nil {
		return p.check()
	}
	if r := e.Refusal; r != nil {
		return r.check()
	}
	return nil
}

func (p *Permission) check() error {
	switch {
	case p.Action != approval.Load && p.Action != approval.Start:
		return refuse(ReasonEntry, "permission: action %.40q", p.Action)
	case !approval.IsDigest(p.Approval):
		return refuse(ReasonEntry, "permission: approval %.80q is no digest", p.Approval)
	case (p.Action == approval.Start) != (p.Profile != nil && p.Purpose != ""):
		return refuse(ReasonEntry, "permission: a start has a purpose and a profile, a load has none")
	}
	return plain("permission: caller", p.Caller, MaxCaller)
}

func (r *Refusal) check() error {
	switch {
	case !tokenForm.MatchString(r.Action):
		return refuse(ReasonEntry, "refusal: action %.80q", r.Action)
	case !tokenForm.MatchString(r.Reason):
		return refuse(ReasonEntry, "refusal: reason %.80q", r.Reason)
	case r.Count < 1:
		return refuse(ReasonEntry, "refusal: count %d", r.Count)
	}
	for _, err := range []error{plain("refusal: detail", r.Detail, MaxDetail), plain("refusal: image", r.Image, MaxDetail), plain("refusal: caller", r.Caller, MaxCaller)} {
		if err != nil {
			return err
		}
	}
	return nil
}

// plain says what is wrong with a text: too long, or not to be shown on a terminal.
func plain(what, s string, limit int) error {
	if len(s) > limit || Plain(s, limit) != s {
		return refuse(ReasonEntry, "%s: %d bytes of text, at most %d printable ones are possible", what, len(s), limit)
	}
	return nil
}

// Plain makes any text fit for an entry: printable, valid UTF-8, at most limit bytes.
func Plain(s string, limit int) string {
	var b []byte
	for _, r := range s {
		if r == utf8.RuneError || r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			r = '?'
		}
		if len(b)+utf8.RuneLen(r) > limit {
			break
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}
