package record

import (
	"time"

	"portcullis/verifier/approval"
)

// Listed is an approval of the log, and whether it would be believed.
type Listed struct {
	Index    int64
	Digest   string
	Approval *approval.Approval
	Envelope []byte
	Refused  error // why it would be refused; nil where it would not
}

// List shows every approval as it would be answered at a time. cosigned is how many
// entries the witnesses have signed; -1 where that does not matter.
func (s *State) List(now time.Time, cosigned int64) (out []Listed) {
	if cosigned < 0 {
		cosigned = everything
	}
	for _, st := range s.standing {
		a := st.Approval
		r := approval.Request{Action: approval.Load, Image: a.Image}
		_, no := s.fits(st, r, now, cosigned)
		out = append(out, Listed{st.Index, st.Digest, a, st.Envelope, no})
	}
	return out
}

// Approvers are those whose signatures count at the end of the log.
func (s *State) Approvers() approval.Approvers { return s.approvers }

// Counts tells how many entries of each kind there are.
func (s *State) Counts() map[string]int64 { return s.counts }

// Last is the time of the newest entry.
func (s *State) Last() time.Time { return s.last }
