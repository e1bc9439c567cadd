package fingerprint

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/images/manifest"
	"portcullis/internal/strictjson"
)

// PayloadType of an approval's DSSE envelope. It is signed with the payload.
const PayloadType = "application/vnd.portcullis.fingerprint-approval+json"

// MaxApproval bounds an envelope, in bytes.
const MaxApproval = 4 << 20

// What an approval approves.
const (
	OfEnrolment = "enrolment" // the fingerprint as the three boots have made it
	OfDrift     = "drift"     // the one that waits
)

// Approval is the signed word of an operator. It names fingerprints by their
// roots and parts by their places; their values stay on the Pi.
type Approval struct {
	Schema     int              `json:"schema"` // 1
	Of         string           `json:"of"`     // enrolment or drift
	Machine    string           `json:"machine"`
	Generation uint64           `json:"generation"` // that the approval makes or confirms
	Previous   string           `json:"previous"`   // root that is enrolled now, hex
	Root       string           `json:"root"`       // root that is approved, hex
	Changes    []ApprovedChange `json:"changes"`
	Time       time.Time        `json:"time"` // UTC, seconds
	Note       string           `json:"note"` // of the operator, at most 512 bytes
}

// ApprovedChange is a Change without its values.
type ApprovedChange struct {
	Kind  string `json:"kind"`
	Class string `json:"class"`
	Slot  string `json:"slot"`
	Level Level  `json:"level"`
}

// NewApproval words the approval of what waits, or, where nothing does, of the
// enrolment. It is not signed yet.
func NewApproval(r *Record, p *Pending, now time.Time, note string) *Approval {
	a := &Approval{Schema: 1, Of: OfEnrolment, Machine: r.Machine, Generation: r.Generation, Previous: r.Root, Root: r.Root,
		Changes: []ApprovedChange{}, Time: now.UTC().Truncate(time.Second), Note: note}
	if p != nil {
		a.Of, a.Generation, a.Root = OfDrift, p.Record.Generation, p.Record.Root
		for _, c := range p.Changes {
			a.Changes = append(a.Changes, ApprovedChange{c.Kind, c.Class, c.Slot, c.Level})
		}
	}
	return a
}

// Sign returns the envelope.
func (a *Approval) Sign(signer crypto.Signer) ([]byte, error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	payload, err := a.encode()
	if err != nil {
		return nil, err
	}
	return manifest.SignPayload(PayloadType, payload, signer)
}

// OpenApproval verifies an envelope: one of keys has signed it. Every refusal is
// an *Error.
func OpenApproval(envelope []byte, keys []ed25519.PublicKey) (*Approval, error) {
	if len(keys) == 0 {
		return nil, refuse(ReasonApprovalKeys, "attest.operator_keys names nobody who may approve")
	}
	if len(envelope) > MaxApproval {
		return nil, refuse(ReasonApprovalMalformed, "%d bytes, at most %d are read", len(envelope), MaxApproval)
	}
	payload, err := manifest.OpenPayload(PayloadType, envelope, manifest.Trust{Threshold: 1, ReleaseKeys: keys})
	var refused *manifest.Error
	switch {
	case errors.As(err, &refused) && refused.Reason == manifest.ReasonSignature:
		return nil, refuse(ReasonApprovalSignature, "%s", refused.Detail)
	case err != nil:
		return nil, refuse(ReasonApprovalMalformed, "%v", err)
	}
	return parseApproval(payload)
}

// parseApproval reads a payload: only the encoding that Sign makes.
func parseApproval(payload []byte) (*Approval, error) {
	var a Approval
	if err := strictjson.Decode(payload, &a); err != nil {
		return nil, refuse(ReasonApprovalMalformed, "%v", err)
	}
	if again, err := a.encode(); err != nil || !bytes.Equal(again, payload) {
		return nil, refuse(ReasonApprovalMalformed, "not in its canonical encoding")
	}
	if err := a.check(); err != nil {
		return nil, err
	}
	return &a, nil
}

func (a *Approval) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(a); err != nil {
		return nil, fmt.Errorf("approval: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (a *Approval) check() error {
	switch {
	case a.Schema != 1:
		return refuse(ReasonApprovalMalformed, "schema %d, only 1 is known", a.Schema)
	case a.Of != OfEnrolment && a.Of != OfDrift:
		return refuse(ReasonApprovalMalformed, "%.40q is nothing that can be approved", a.Of)
	case len(a.Previous) != 64 || len(a.Root) != 64 || a.Generation == 0 || a.Machine == "":
		return refuse(ReasonApprovalMalformed, "root, generation or machine is missing")
	case len(a.Note) > protocol.MaxReasonBytes || a.Time.IsZero():
		return refuse(ReasonApprovalMalformed, "a note of %d bytes, or no time", len(a.Note))
	case a.Changes == nil:
		return refuse(ReasonApprovalMalformed, "no list of changes")
	}
	return nil
}

// Approve carries out an approval: the record is replaced by the one that waited,
// or marked as approved. The envelope is kept for good. by names the key.
// Every refusal is an *Error; the time of the approval is for people and decides
// nothing, the roots and the generation do.
func Approve(refs protocol.References, mac string, envelope []byte, keys []ed25519.PublicKey) (*Record, *Approval, error) {
	a, err := OpenApproval(envelope, keys)
	if err != nil {
		return nil, nil, err
	}
	lock := writingOf(mac)
	lock.Lock()
	defer lock.Unlock()
	r, err := Load(refs, mac)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, refuse(ReasonNone, "nothing is enrolled of %s", mac)
	}
	if err != nil {
		return nil, nil, err
	}
	p, err := LoadPending(refs, mac)
	if err != nil {
		return nil, nil, err
	}
	next, err := a.apply(r, p)
	if err != nil {
		return nil, nil, err
	}
	if next.ApprovedBy, err = signerOf(envelope, keys); err != nil {
		return nil, nil, err
	}
	// The envelope first: a record that is approved without its envelope could not
	// be shown to anybody. After a crash in between the same approval comes again.
	key := fmt.Sprintf("%s.%d.%s", Key(mac), a.Generation, a.Of)
	if err := refs.Put(KindApproval, key, envelope); err != nil {
		return nil, nil, err
	}
	if err := save(refs, next); err != nil {
		return nil, nil, err
	}
	if a.Of == OfDrift {
		err = savePending(refs, mac, &Pending{})
	}
	return next, a, err
}

// apply holds an approval against what is there.
func (a *Approval) apply(r *Record, p *Pending) (*Record, error) {
	if a.Machine != r.Machine {
		return nil, refuse(ReasonApprovalMachine, "it is of %.40q, this PC is %s", a.Machine, r.Machine)
	}
	if a.Previous != r.Root || a.Of == OfEnrolment && a.Generation != r.Generation || a.Of == OfDrift && a.Generation != r.Generation+1 {
		return nil, refuse(ReasonApprovalStale, "it follows generation %d with root %.16s…, enrolled is generation %d with root %.16s…",
			a.Generation, a.Previous, r.Generation, r.Root)
	}
	if a.Of == OfEnrolment {
		switch {
		case !r.Complete():
			return nil, refuse(ReasonApprovalEnrolling, "%d of %d boots are over", len(r.Boots), EnrolBoots)
		case r.ApprovedBy != "":
			return nil, refuse(ReasonApprovalNothing, "generation %d is approved by %s", r.Generation, r.ApprovedBy)
		case a.Root != r.Root:
			return nil, refuse(ReasonApprovalRoot, "it approves root %.16s…, enrolled is %.16s…", a.Root, r.Root)
		}
		return r.clone(), nil
	}
	if p == nil {
		return nil, refuse(ReasonApprovalNothing, "no drift waits")
	}
	if a.Root != p.Record.Root || a.Generation != p.Record.Generation {
		return nil, refuse(ReasonApprovalRoot, "it approves root %.16s…, what waits now has %.16s…: look again", a.Root, p.Record.Root)
	}
	if err := p.Record.Check(); err != nil {
		return nil, err
	}
	return p.Record.clone(), nil
}

// signerOf names the operator's key that signed.
func signerOf(envelope []byte, keys []ed25519.PublicKey) (string, error) {
	_, ids, err := manifest.PeekPayload(PayloadType, envelope)
	if err != nil {
		return "", refuse(ReasonApprovalMalformed, "%v", err)
	}
	for _, id := range ids {
		for _, k := range keys {
			if manifest.KeyID(k) == id {
				return id, nil
			}
		}
	}
	return "", refuse(ReasonApprovalSignature, "none of the signatures is of an operator's key")
}
