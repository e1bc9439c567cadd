package expect

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"portcullis/attestserver/imalog"
	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
)

// Tpm is the twin of probe.Tpm and what tier T1 rests on. The first question of a
// session asks who the chip is; a chip that nobody knows gets a credential with the
// next one, and is enrolled when it has opened it (a machine has one chip, whatever
// image it boots: the reference is of the MAC). From then on this PC must come with
// this chip, and its registers must be what the image predicts: coming without it is
// fatal until the operator removes the reference. A PC without a chip is not
// complained about and stays at T0.
type Tpm struct{ user }

// Name implements protocol.Expectation.
func (*Tpm) Name() string { return protocol.OpTpm }

// Params implements protocol.Expectation.
func (e *Tpm) Params(r io.Reader, st *protocol.ImageState) ([]byte, error) {
	nonce, err := draw(r, 32)
	if err != nil {
		return nil, err
	}
	s := readTpmNote(st)
	q := protocol.TpmParams{Session: st.Session, Nonce: nonce, Identify: s.Identity == nil, Log: s.Registers == nil, ListFrom: s.ListSize}
	if s.wantsCredential() {
		if s.Secret, err = draw(r, 32); err != nil {
			return nil, err
		}
		c, err := tpmattest.MakeCredential(s.Identity, s.Secret)
		if err != nil {
			return nil, err
		}
		q.Credential, q.Secret = c.Credential, c.Secret
		s.write(st)
	}
	return protocol.EncodeOp(q)
}

// Judge implements protocol.Expectation.
func (e *Tpm) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.TpmData
	var q protocol.TpmParams
	if !j.read(in, &d) {
		return j.list
	}
	if err := protocol.DecodeOp(in.Params, protocol.MaxParams, &q); err != nil {
		j.unjudged(err)
		return j.list
	}
	s := readTpmNote(in.State)
	ref, err := readTpm(in.Refs, in.State)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.unjudged(err)
		return j.list
	}
	s.Good = false
	if ref != nil {
		s.say(tpmKnown)
	}
	if d.Quote == nil {
		s.without(j, &d, ref)
	} else {
		e.quoted(j, in, s, ref, &q, &d)
	}
	s.write(in.State)
	return j.list
}

// without judges an answer in which no chip has signed.
func (s *tpmNote) without(j *judge, d *protocol.TpmData, ref *tpmReference) {
	switch {
	case ref != nil && !d.Present:
		j.fatal(ReasonTpmMissing, "the chip with endorsement key %.16s does not answer any more", ref.EKDigest)
	case ref != nil:
		j.add(protocol.Soft, ReasonTpmFault, "the enrolled chip gave no quote: %.200q", d.Fault)
	case s.Identity != nil:
		j.fatal(ReasonTpmMissing, "the chip that answered before in this session does not any more: %.200q", d.Fault)
	case d.Present:
		s.once(j, ReasonTpmUnusable, "there is a chip, and it gives no quote: %.200q", d.Fault)
	}
}

// quoted judges an answer with a quote. The note keeps what was right.
func (e *Tpm) quoted(j *judge, in protocol.JudgeInput, s *tpmNote, ref *tpmReference, q *protocol.TpmParams, d *protocol.TpmData) {
	if !s.identify(j, ref, q, d) {
		return
	}
	quoted, ok := verifyQuote(j, in, s.Identity, d.Quote)
	if !ok {
		return
	}
	if len(q.Credential) > 0 {
		want := in.Key.Activated(in.Params, s.Secret)
		if len(s.Secret) != 32 || len(d.Activated) != 32 || !protocol.SameDigest([32]byte(d.Activated), want) {
			j.fatal(ReasonTpmCredential, "the chip did not open the credential: its two keys are not in one chip")
			return
		}
		s.Activated = true
	}
	if quoted.PCRs[11] == (tpmattest.Register{}) && ref == nil {
		s.once(j, ReasonTpmUnmeasured, "register 11 is empty: the image was not booted by UEFI firmware alone")
		return
	}
	before := len(j.list)
	s.clock(j, in.State, ref, quoted)
	e.registers(j, s, ref, q, d, quoted)
	s.measured(j, in.State, d, quoted.PCRs[10])
	if len(j.list) == before {
		s.Good = true
	}
}

// identify holds the keys that were shown against those of the session and of the
// reference.
func (s *tpmNote) identify(j *judge, ref *tpmReference, q *protocol.TpmParams, d *protocol.TpmData) bool {
	if !q.Identify {
		if s.Identity == nil {
			j.fatal(ReasonTpmIdentity, "no keys were shown")
			return false
		}
		return true
	}
	shown := &tpmattest.Enrolment{Version: tpmattest.EnrolmentVersion, EKKind: tpmattest.EKKind(d.EKKind), EK: d.EK, EKCert: d.EKCert, AK: d.AK}
	if ref != nil && !ref.same(shown) {
		j.fatal(ReasonTpmIdentity, "endorsement key %.16s, enrolled is %.16s", ekDigest(shown), ref.EKDigest)
		return false
	}
	// Its shape is checked by what encrypts to it; a certificate must at least be of this key.
	if _, err := tpmattest.MakeCredential(shown, []byte{0}); err != nil {
		j.fatal(ReasonTpmIdentity, "%v", err)
		return false
	}
	if _, err := shown.Certificate(); err != nil {
		j.fatal(ReasonTpmIdentity, "%v", err)
		return false
	}
	s.Identity = shown
	return true
}

// verifyQuote holds the quote against the key, this question and the registers beside it.
func verifyQuote(j *judge, in protocol.JudgeInput, id *tpmattest.Enrolment, q *protocol.TpmQuote) (*tpmattest.Quoted, bool) {
	quote := &tpmattest.Quote{Message: q.Message, Signature: q.Signature, PCRs: make(map[int]tpmattest.Register, len(q.PCRs))}
	for _, r := range q.PCRs {
		var v tpmattest.Register
		if _, err := hex.Decode(v[:], []byte(r.Value)); err != nil {
			j.fatal(ReasonMalformed, "register %d: %v", r.Index, err)
			return nil, false
		}
		quote.PCRs[r.Index] = v
	}
	nonce := in.Key.Qualifying(in.Params)
	quoted, err := tpmattest.VerifyQuote(id.AK, quote, nonce[:], protocol.TpmRegisters)
	if err != nil {
		j.fatal(ReasonTpmQuote, "%v", err)
		return nil, false
	}
	return quoted, true
}

// clock holds the chip's counters of starts and its clock against the answer
// before, and against the boot session before: each boot starts the chip anew.
func (s *tpmNote) clock(j *judge, st *protocol.ImageState, ref *tpmReference, now *tpmattest.Quoted) {
	at := tpmClock{now.ResetCount, now.Restarts, now.Clock}
	switch {
	case s.Clock != nil && (s.Clock.Resets != at.Resets || s.Clock.Restarts != at.Restarts):
		j.fatal(ReasonTpmClock, "the chip was started anew within the session: %d.%d starts, were %d.%d", at.Resets, at.Restarts, s.Clock.Resets, s.Clock.Restarts)
	case s.Clock != nil && at.Milliseconds < s.Clock.Milliseconds:
		j.fatal(ReasonTpmClock, "the chip's clock says %d ms, said %d ms", at.Milliseconds, s.Clock.Milliseconds)
	case s.Clock == nil && ref != nil && ref.Session != st.Session && !at.startedAfter(ref.Clock):
		j.fatal(ReasonTpmNotReset, "the chip was not started anew for this boot: %d.%d starts, %d.%d in the session before", at.Resets, at.Restarts, ref.Clock.Resets, ref.Clock.Restarts)
	case s.Clock == nil && ref != nil && ref.Session == st.Session && (at.Resets != ref.Clock.Resets || at.Restarts != ref.Clock.Restarts):
		j.fatal(ReasonTpmClock, "the chip was started anew within the session: %d.%d starts, were %d.%d", at.Resets, at.Restarts, ref.Clock.Resets, ref.Clock.Restarts)
	default:
		s.Clock = &at
	}
}

// measured follows IMA's list to register 10, and holds it against what op ima was told.
func (s *tpmNote) measured(j *judge, st *protocol.ImageState, d *protocol.TpmData, ten tpmattest.Register) {
	if ten == (tpmattest.Register{}) && s.ListSize == 0 {
		s.Listed = true // this kernel's IMA does not use the chip
		return
	}
	told, chain, same := readImaNote(st), s.Chain, true
	size, value, reached, err := imalog.Replay(s.ListValue, d.List, ten, func(e imalog.Entry) error {
		m, err := protocol.ParseMeasurement(e.Template, e.Data)
		if err != nil {
			return err
		}
		chain = chain.next(m)
		same = same && (chain.Count != told.Count || chain == told)
		return nil
	})
	switch {
	case err != nil:
		j.fatal(ReasonTpmIMA, "%v", err)
		return
	case !reached && (!d.More || len(d.List) < protocol.MaxTpmIMA || s.ListSize+int64(size) > protocol.MaxTpmList):
		j.fatal(ReasonTpmIMA, "IMA's list does not lead to register 10, %x", ten[:8])
		return
	case !same:
		j.fatal(ReasonImaProof, "the first %d measurements that op ima told are not those of register 10", told.Count)
		return
	case reached && chain.Count < s.Owed:
		j.fatal(ReasonImaProof, "op ima has told of %d measurements, register 10 holds %d", s.Owed, chain.Count)
		return
	}
	s.ListSize, s.ListValue, s.Listed, s.Chain = s.ListSize+int64(size), value, reached, chain
	if reached {
		// The kernel shows an entry a moment before the register has it: what op ima has
		// told until now must be proven by the next answer, not by this one.
		s.Proven, s.Owed = chain.Count, told.Count
	}
}

// Settle implements protocol.Rooted.
func (e *Tpm) Settle(st *protocol.ImageState, refs protocol.References) (protocol.Tier, bool, error) {
	s := readTpmNote(st)
	if !s.Good || !s.Listed {
		return protocol.TierSoftware, false, nil
	}
	ref, err := readTpm(refs, st)
	if errors.Is(err, fs.ErrNotExist) {
		if !s.Activated {
			return protocol.TierSoftware, false, nil
		}
		err := newTpmReference(s).write(refs, st)
		return protocol.TierTPM, err == nil, err
	}
	if err != nil {
		return protocol.TierSoftware, false, err
	}
	if ref.Session != st.Session { // once a session: it is a write to the disk
		ref.Session, ref.Clock = st.Session, *s.Clock
		if err := ref.write(refs, st); err != nil {
			return protocol.TierSoftware, false, fmt.Errorf("TPM reference: %w", err)
		}
	}
	return protocol.TierTPM, false, nil
}
