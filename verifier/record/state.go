package record

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"time"

	"portcullis/verifier/approval"
)

// State is what follows from the entries of a log, in their order. The zero value
// is that of an empty log. It is pure; one goroutine at a time may use it.
type State struct {
	approvers approval.Approvers
	standing  []*Standing
	revoked   map[string]revoked // by the digest of an approval or image
	last      time.Time
	size      int64
	counts    map[string]int64 // entries of each kind
}

// Standing is an approval in the log.
type Standing struct {
	Index    int64
	Digest   string
	Approval *approval.Approval
	Envelope []byte
	Signed   error // nil where enough of those who are approvers now have signed it
}

type revoked struct {
	index int64
	why   string
}

// everything says that all entries count as cosigned.
const everything = math.MaxInt64

// Apply takes the next entry. An entry that it refuses leaves it as it was; a log
// with such an entry is not to be believed.
func (s *State) Apply(data []byte) error {
	e, err := ParseEntry(data)
	if err != nil {
		return err
	}
	if e.Time.Before(s.last) {
		return refuse(ReasonTime, "%s, the entry before is of %s", e.Time.Format(timeForm), s.last.Format(timeForm))
	}
	if err := s.apply(e); err != nil {
		return err
	}
	if s.counts == nil {
		s.counts = map[string]int64{}
	}
	s.counts[e.Kind]++
	s.last = e.Time
	s.size++
	return nil
}

func (s *State) apply(e *Entry) error {
	switch e.Kind {
	case KindApprovers:
		return s.applyApprovers(e.Approvers)
	case KindApproval:
		a, digest, err := s.approvers.Open(e.Envelope)
		if err != nil {
			return err
		}
		s.standing = append(s.standing, &Standing{s.size, digest, a, e.Envelope, nil})
	case KindRevocation:
		r, err := s.approvers.OpenRevocation(e.Envelope)
		if err != nil {
			return err
		}
		if s.revoked == nil {
			s.revoked = map[string]revoked{}
		}
		s.revoked[r.Approval+r.Image] = revoked{s.size, r.Why}
	case KindPermission:
		return s.founded(e.Permission, e.Time)
	}
	return nil
}

// noApprovers stands in the log where a Pi has no file of approvers.
var noApprovers = json.RawMessage(`{}`)

func (s *State) applyApprovers(text json.RawMessage) error {
	var a approval.Approvers
	if !bytes.Equal(text, noApprovers) {
		var err error
		if a, err = approval.ParseApprovers(text); err != nil {
			return err
		}
		if again, err := a.Encode(); err != nil || !bytes.Equal(again, text) {
			return refuse(ReasonEntry, "approvers: not in the canonical encoding")
		}
	}
	s.approvers = a
	for _, st := range s.standing {
		_, _, st.Signed = a.Open(st.Envelope)
	}
	return nil
}

// founded checks that a permission follows from the entries before it.
func (s *State) founded(p *Permission, at time.Time) error {
	r := approval.Request{Action: p.Action, Image: p.Image, Purpose: p.Purpose, Profile: p.Profile}
	if p.Profile != nil {
		if err := p.Profile.Validate(); err != nil {
			return refuse(ReasonUnfounded, "%v", err)
		}
	}
	reason := error(&approval.Error{Reason: approval.ReasonUnapproved, Detail: "no such approval in the log before it"})
	for _, st := range s.standing {
		if st.Digest != p.Approval {
			continue
		}
		if _, reason = s.fits(st, r, at, everything); reason == nil {
			return nil
		}
	}
	return refuse(ReasonUnfounded, "a permission by %s: %v", p.Approval, reason)
}

// decide finds the approval that a request can rest on. Of those that fit it
// takes the newest version and of that the newest entry; where none fits, the
// reason of the one that came nearest.
func (s *State) decide(r approval.Request, now time.Time, cosigned int64) (*Standing, error) {
	if r.Action == approval.Start {
		if r.Profile == nil {
			return nil, &approval.Error{Reason: approval.ReasonProfile, Detail: "a start without a profile"}
		}
		if err := r.Profile.Validate(); err != nil {
			return nil, err
		}
	}
	var best *Standing
	nearest, far := s.unknown(r.Image), -1
	for _, st := range s.standing {
		step, err := s.fits(st, r, now, cosigned)
		switch {
		case err == nil:
			if best == nil || st.Approval.Version >= best.Approval.Version {
				best = st
			}
		case step > far:
			nearest, far = err, step
		}
	}
	if best != nil {
		return best, nil
	}
	return nil, nearest
}

// unknown is the answer about an image that no approval names as it is.
func (s *State) unknown(i approval.Image) error {
	for _, d := range []string{i.Manifest, i.Config} {
		if was, ok := s.revoked[d]; ok {
			return &approval.Error{Reason: approval.ReasonRevoked, Detail: d + ": " + was.why}
		}
	}
	for _, st := range s.standing {
		if st.Approval.Image.Manifest == i.Manifest || st.Approval.Image.Config == i.Config {
			return &approval.Error{Reason: approval.ReasonDiffers, Detail: "not all digests are those of " + st.Digest}
		}
	}
	if len(s.approvers.Keys) == 0 {
		return &approval.Error{Reason: approval.ReasonApprovers, Detail: "there are no approvers, so nothing is approved"}
	}
	return &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no approval names " + i.Manifest}
}

// fits holds a request against one approval. step is how far it got: the higher,
// the more was right.
func (s *State) fits(st *Standing, r approval.Request, now time.Time, cosigned int64) (step int, err error) {
	a := st.Approval
	no := func(step int, reason, detail string) (int, error) {
		return step, &approval.Error{Reason: reason, Detail: detail}
	}
	switch {
	case !a.Image.Equal(r.Image):
		return no(-1, approval.ReasonUnapproved, "another image")
	case r.Action == approval.Start && a.Purpose != r.Purpose:
		return no(0, approval.ReasonPurpose, "for "+strconv.Quote(r.Purpose)+", approved is "+a.Purpose)
	case st.Signed != nil:
		return 1, st.Signed
	case s.isRevoked(st) != "":
		return no(2, approval.ReasonRevoked, s.isRevoked(st))
	case now.Before(a.NotBefore):
		return no(3, approval.ReasonNotYet, "valid from "+a.NotBefore.Format(time.RFC3339)+", now is "+now.UTC().Format(time.RFC3339))
	case !now.Before(a.NotAfter):
		return no(4, approval.ReasonExpired, "valid until "+a.NotAfter.Format(time.RFC3339)+", now is "+now.UTC().Format(time.RFC3339))
	case s.newer(a, now) != "":
		return no(5, approval.ReasonOlder, s.newer(a, now))
	case st.Index >= cosigned:
		return no(6, approval.ReasonUncosigned, "the witnesses have not signed its entry yet")
	}
	if r.Action == approval.Start {
		return 7, a.Profile.Covers(r.Profile)
	}
	return 7, nil
}

func (s *State) isRevoked(st *Standing) string {
	for _, d := range []string{st.Digest, st.Approval.Image.Manifest, st.Approval.Image.Config} {
		if was, ok := s.revoked[d]; ok {
			return d + ": " + was.why
		}
	}
	return ""
}

// newer names a later version of the same name. One that was revoked counts too:
// whoever can revoke must not be able to bring an older one back by it.
func (s *State) newer(a *approval.Approval, now time.Time) string {
	for _, st := range s.standing {
		o := st.Approval
		if o.Name == a.Name && o.Version > a.Version && st.Signed == nil && !now.Before(o.NotBefore) {
			return approval.Version(a) + ", and " + approval.Version(o) + " was approved"
		}
	}
	return ""
}

// holds tells whether what was permitted by an approval may go on: it was not
// revoked, has not expired, and its approvers still are. A newer version does not
// stop what runs.
func (s *State) holds(digest string, now time.Time) error {
	i := slices.IndexFunc(s.standing, func(st *Standing) bool { return st.Digest == digest && st.Signed == nil })
	if i < 0 {
		return &approval.Error{Reason: approval.ReasonUnapproved, Detail: "no such approval, or its approvers are no more"}
	}
	st := s.standing[i]
	if why := s.isRevoked(st); why != "" {
		return &approval.Error{Reason: approval.ReasonRevoked, Detail: why}
	}
	if !now.Before(st.Approval.NotAfter) {
		return &approval.Error{Reason: approval.ReasonExpired, Detail: "valid until " + st.Approval.NotAfter.Format(time.RFC3339)}
	}
	return nil
}
