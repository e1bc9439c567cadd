package translog

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Proof shows without the log that an entry is in it (C2SP tlog-proof).
type Proof struct {
	Index      int64
	Hashes     []tlog.Hash // from the leaf's sibling up
	Checkpoint []byte
}

const proofHead = "c2sp.org/tlog-proof@v1"

// Bounds of a proof that is read: a tree has at most 63 levels.
const (
	maxProof  = 72 << 10
	maxHashes = 63
)

// Prove makes the proof of an entry against the checkpoint.
func (r *Reader) Prove(index int64) (*Proof, error) {
	if index < 0 || index >= r.Checkpoint.Size {
		return nil, refuse(ReasonIndex, "entry %d of %d", index, r.Checkpoint.Size)
	}
	hashes, err := tlog.ProveRecord(r.Checkpoint.Size, index, r.hashes)
	if err != nil {
		return nil, refuse(ReasonBroken, "%v", err)
	}
	return &Proof{Index: index, Hashes: hashes, Checkpoint: r.Checkpoint.Note}, nil
}

// String is the proof's text.
func (p *Proof) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nindex %d\n", proofHead, p.Index)
	for _, h := range p.Hashes {
		b.WriteString(base64.StdEncoding.EncodeToString(h[:]) + "\n")
	}
	b.WriteString("\n")
	b.Write(p.Checkpoint)
	return b.String()
}

// ParseProof reads a proof. It says nothing about its truth: see Verify.
func ParseProof(text []byte) (*Proof, error) {
	if len(text) > maxProof {
		return nil, refuse(ReasonProof, "%d bytes, at most %d", len(text), maxProof)
	}
	head, checkpoint, ok := strings.Cut(string(text), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || lines[0] != proofHead {
		return nil, refuse(ReasonProof, "does not begin with %s", proofHead)
	}
	lines = lines[1:]
	if len(lines) > 0 && strings.HasPrefix(lines[0], "extra ") {
		lines = lines[1:] // opaque, and not covered by anything
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "index ") {
		return nil, refuse(ReasonProof, "has no index")
	}
	digits := strings.TrimPrefix(lines[0], "index ")
	index, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || index < 0 || strconv.FormatInt(index, 10) != digits {
		return nil, refuse(ReasonProof, "index %.24q", digits)
	}
	if len(lines)-1 > maxHashes {
		return nil, refuse(ReasonProof, "%d hashes, at most %d", len(lines)-1, maxHashes)
	}
	p := &Proof{Index: index, Checkpoint: []byte(checkpoint)}
	for _, line := range lines[1:] {
		h, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return nil, refuse(ReasonProof, "hash %.64q", line)
		}
		p.Hashes = append(p.Hashes, tlog.Hash(h))
	}
	return p, nil
}

// Verify checks that the proof shows entry in the log whose key is given, and
// returns the checkpoint that it was shown against.
func (p *Proof) Verify(entry []byte, key note.Verifier) (*Checkpoint, error) {
	c, err := ParseCheckpoint(p.Checkpoint, key)
	if err != nil {
		return nil, err
	}
	if p.Index >= c.Size {
		return nil, refuse(ReasonProof, "entry %d of %d", p.Index, c.Size)
	}
	if err := tlog.CheckRecord(p.Hashes, c.Size, c.Root, p.Index, tlog.RecordHash(entry)); err != nil {
		return nil, refuse(ReasonProof, "the entry is not number %d of the log", p.Index)
	}
	return c, nil
}
