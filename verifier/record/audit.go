package record

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/mod/sumdb/note"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
	"portcullis/verifier/witness"
)

// AuditOptions are what the auditor knows from elsewhere.
type AuditOptions struct {
	Approvers []approval.Approvers // all that the Pi may have had; nil: what the log says is taken as it is
	Witnesses []*witness.Key       // whose cosignatures count
	Quorum    int                  // of them that must have signed
	Files     fs.FS                // of the log, for its cosigned checkpoint
	Each      func(index int64, e *Entry) error
}

// Report is what an audit has seen; everything in it has been checked.
type Report struct {
	Origin    string           `json:"origin"`
	Entries   int64            `json:"entries"`
	Kinds     map[string]int64 `json:"kinds"`
	Pinned    bool             `json:"pinned"`   // the approvers are those that the auditor knows
	Cosigned  int64            `json:"cosigned"` // entries that the quorum has signed
	Cosigners []string         `json:"cosigners"`
	State     State            `json:"-"`
}

// Audit reads a log as somebody who does not believe its owner: every entry is held
// against the checkpoint, every approval and revocation against its signatures, and
// every permission against the entries before it. The error names the entry.
func Audit(r *translog.Reader, key note.Verifier, o AuditOptions) (*Report, error) {
	if err := others(key, o.Witnesses); err != nil {
		return nil, err
	}
	report := &Report{Origin: r.Checkpoint.Origin, Pinned: len(o.Approvers) > 0, Cosigners: []string{}}
	var known [][]byte
	for _, a := range o.Approvers {
		text, err := a.Encode()
		if err != nil {
			return nil, err
		}
		known = append(known, text)
	}
	if err := r.Audit(func(index int64, data []byte) error { return at(index, report.apply(index, data, known, o.Each)) }); err != nil {
		return report, err
	}
	report.Entries, report.Kinds = report.State.size, report.State.counts
	return report, report.cosigners(r, key, o)
}

func (p *Report) apply(index int64, data []byte, known [][]byte, each func(int64, *Entry) error) error {
	e, err := ParseEntry(data)
	if err != nil {
		return err
	}
	if e.Kind == KindApprovers && known != nil && !bytes.Equal(e.Approvers, noApprovers) && !contains(known, e.Approvers) {
		return refuse(ReasonForeign, "approvers that you did not name: %s", Plain(string(e.Approvers), MaxDetail))
	}
	if err := p.State.Apply(data); err != nil {
		return err
	}
	p.Entries = p.State.size
	if each != nil {
		return each(index, e)
	}
	return nil
}

// others checks that each witness counts once, and that none of them is the log itself: who hands out a
// witness's key may have two names for it.
func others(log note.Verifier, witnesses []*witness.Key) error {
	seen := map[string]bool{}
	for _, k := range witnesses {
		if seen[k.Material()] || Origin(ed25519.PublicKey(k.Material())) == log.Name() {
			return refuse(ReasonWitnesses, "%s has the key of another witness, or of the log, and would count for it", k.Name())
		}
		seen[k.Material()] = true
	}
	return nil
}

func contains(list [][]byte, b []byte) bool {
	for _, l := range list {
		if bytes.Equal(l, b) {
			return true
		}
	}
	return false
}

// cosigners checks the checkpoint that witnesses have signed.
func (p *Report) cosigners(r *translog.Reader, key note.Verifier, o AuditOptions) error {
	if o.Files == nil {
		return nil
	}
	b, err := readFile(o.Files, CosignedFile)
	if errors.Is(err, fs.ErrNotExist) && o.Quorum == 0 {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonWitnesses, "no witness has signed this log, %d are asked for", o.Quorum)
	}
	if err != nil {
		return err
	}
	c, err := translog.ParseCheckpoint(b, key)
	if err != nil {
		return err
	}
	if err := r.Continues(c); err != nil {
		return err
	}
	if p.Cosigners, err = witness.Cosigners(b, key, o.Witnesses); err != nil {
		return err
	}
	if len(p.Cosigners) < o.Quorum {
		return refuse(ReasonWitnesses, "%d of the witnesses that you named have signed it, %d are asked for", len(p.Cosigners), o.Quorum)
	}
	if len(p.Cosigners) > 0 {
		p.Cosigned = c.Size
	}
	return nil
}

// List shows the approvals of the log as they are at a time.
func (p *Report) List(now time.Time) []Listed { return p.State.List(now, -1) }
