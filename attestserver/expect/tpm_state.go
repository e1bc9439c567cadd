package expect

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
)

// tpmNote is what is known of the chip in this boot session.
type tpmNote struct {
	Identity  *tpmattest.Enrolment       // as shown, and as enrolled where it is
	Secret    []byte                     // of the credential that was sent last
	Activated bool                       // a credential was opened
	Clock     *tpmClock                  // of the last good answer
	Registers map[int]tpmattest.Register // after the log was judged
	Firmware  map[int][]string           // events of the pinned registers
	ListSize  int64                      // bytes of IMA's list that are proven
	ListValue [32]byte
	Chain     imaChain        // of the same entries, as op ima has it
	Proven    uint64          // entries that register 10 stood for in a good answer
	Owed      uint64          // entries that op ima told before that answer
	Listed    bool            // they lead to register 10 of the last answer
	Good      bool            // the last answer was
	Said      map[string]bool // infos, each once
}

// tpmClock is how often the chip was started and how long it has run.
type tpmClock struct {
	Resets       uint32 `json:"resets"`
	Restarts     uint32 `json:"restarts"` // resumes since the last reset
	Milliseconds uint64 `json:"milliseconds"`
}

// startedAfter tells whether the chip was started since (TPM 2.0 Part 1, 36.7).
func (c tpmClock) startedAfter(old tpmClock) bool {
	return c.Resets > old.Resets || (c.Resets == old.Resets && c.Restarts > old.Restarts)
}

// readTpmNote returns a copy that may be changed.
func readTpmNote(st *protocol.ImageState) *tpmNote {
	s, _ := st.Kept[protocol.OpTpm].(*tpmNote)
	if s == nil {
		return new(tpmNote)
	}
	own := *s
	own.Said = maps.Clone(s.Said) // all else is replaced as a whole
	return &own
}

// write keeps s, which must not be changed any more.
func (s *tpmNote) write(st *protocol.ImageState) { st.Keep(protocol.OpTpm, s) }

// wantsCredential: the chip has shown itself, a good quote of it was seen, and it
// has not proven yet that both keys are in it. One that is enrolled has.
func (s *tpmNote) wantsCredential() bool {
	return s.Identity != nil && s.Registers != nil && !s.Activated && !s.Said[tpmKnown]
}

// tpmKnown notes that the chip of this session is the enrolled one.
const tpmKnown = "known"

func (s *tpmNote) once(j *judge, reason, format string, args ...any) {
	if !s.Said[reason] {
		j.add(protocol.Info, reason, format, args...)
		s.say(reason)
	}
}

func (s *tpmNote) say(what string) {
	if s.Said == nil {
		s.Said = map[string]bool{}
	}
	s.Said[what] = true
}

// kindTpm is the sort of reference.
const kindTpm = "tpm"

// tpmReference is the enrolment of one PC's chip: its identity, which never
// changes, the firmware that was seen, and the last session's clock.
type tpmReference struct {
	Version   int                        `json:"version"` // 1
	EKDigest  string                     `json:"ek_sha256"`
	EKIssuer  string                     `json:"ek_issuer,omitempty"` // of the certificate; nobody has checked that it is a maker's
	Identity  tpmattest.Enrolment        `json:"identity"`
	Registers map[int]tpmattest.Register `json:"registers"`
	Firmware  map[int][]string           `json:"firmware"`
	Session   string                     `json:"session"` // the last one that was good
	Clock     tpmClock                   `json:"clock"`   // in it
}

func newTpmReference(s *tpmNote) *tpmReference {
	r := &tpmReference{Version: 1, EKDigest: ekDigest(s.Identity), Identity: *s.Identity, Firmware: s.Firmware, Clock: *s.Clock,
		Registers: map[int]tpmattest.Register{}}
	if cert, err := s.Identity.Certificate(); err == nil && cert != nil {
		r.EKIssuer = plain(cert.Issuer.String())
	}
	for _, i := range pinnedRegisters {
		r.Registers[i] = s.Registers[i]
	}
	return r
}

// same tells whether the keys are the enrolled ones.
func (r *tpmReference) same(shown *tpmattest.Enrolment) bool {
	return r.Identity.EKKind == shown.EKKind && bytes.Equal(r.Identity.EK, shown.EK) && bytes.Equal(r.Identity.AK, shown.AK)
}

func ekDigest(e *tpmattest.Enrolment) string {
	sum := sha256.Sum256(e.EK)
	return hex.EncodeToString(sum[:])
}

// tpmKey names the reference of a PC.
func tpmKey(st *protocol.ImageState) string { return strings.ReplaceAll(st.MAC, ":", "-") }

// readTpm reads the reference of a PC, which may be changed. It is looked at with every
// answer, and decoded when its bytes are others than the session has seen.
func readTpm(refs protocol.References, st *protocol.ImageState) (*tpmReference, error) {
	b, err := refs.Get(kindTpm, tpmKey(st))
	if err != nil {
		return nil, err
	}
	seen, _ := st.Kept[kindTpmSeen].(*tpmSeen)
	if seen == nil || !bytes.Equal(seen.bytes, b) {
		r, err := decodeTpm(b)
		if err != nil {
			return nil, err
		}
		seen = &tpmSeen{b, r}
		st.Keep(kindTpmSeen, seen)
	}
	own := *seen.ref // its session and clock are changed
	return &own, nil
}

// tpmSeen is a reference and what it was decoded to.
type tpmSeen struct {
	bytes []byte
	ref   *tpmReference
}

// kindTpmSeen names it among what is kept of a session.
const kindTpmSeen = protocol.OpTpm + "-reference"

func decodeTpm(b []byte) (*tpmReference, error) {
	r := new(tpmReference)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("TPM reference: %w", err)
	}
	if r.Version != 1 || len(r.Identity.AK) == 0 {
		return nil, fmt.Errorf("TPM reference: version %d", r.Version)
	}
	return r, nil
}

func (r *tpmReference) write(refs protocol.References, st *protocol.ImageState) error {
	r.Session = st.Session
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("TPM reference: %w", err)
	}
	return refs.Put(kindTpm, tpmKey(st), b)
}
