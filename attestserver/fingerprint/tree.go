package fingerprint

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"portcullis/internal/strictjson"
)

// SaltSize is the length of salts, in bytes.
const SaltSize = 32

// MaxOpening bounds an opening, in bytes of JSON.
const MaxOpening = 64 << 10

// Opening shows one part of a fingerprint to somebody who knows its root, and
// nothing of the others. The tree is that of RFC 6962 (section 2.1) over the
// stable parts in order of class and slot; a leaf is
//
//	SHA-256(0x00 ‖ u16 len(class) ‖ class ‖ u16 len(slot) ‖ slot ‖ HMAC-SHA256(salt, value))
//
// Each leaf has a salt of its own, so an opening helps nobody to guess the
// values behind other leaves.
type Opening struct {
	Schema     int      `json:"schema"` // 1
	Machine    string   `json:"machine"`
	Generation uint64   `json:"generation"`
	Root       string   `json:"root"` // hex
	Size       int64    `json:"size"` // leaves
	Index      int64    `json:"index"`
	Class      string   `json:"class"`
	Slot       string   `json:"slot"`
	Value      string   `json:"value"`
	Salt       string   `json:"salt"`  // base64, 32 bytes
	Proof      []string `json:"proof"` // hex, from the leaf to the root
}

// leafSalt derives the salt of one leaf.
func leafSalt(master []byte, class, slot string) []byte {
	m := hmac.New(sha256.New, master)
	m.Write([]byte("portcullis fingerprint leaf salt 1\x00"))
	m.Write(framed(nil, class, slot))
	return m.Sum(nil)
}

func leaf(salt []byte, class, slot, value string) tlog.Hash {
	m := hmac.New(sha256.New, salt)
	m.Write([]byte(value))
	return tlog.RecordHash(m.Sum(framed(nil, class, slot))) // puts 0x00 in front
}

// framed appends strings of at most 65535 bytes, each behind its length.
func framed(b []byte, list ...string) []byte {
	for _, s := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
		b = append(b, s...)
	}
	return b
}

// tree holds the hashes of a tree where tlog looks for them.
type tree struct {
	hashes []tlog.Hash
	leaves int64
}

// ReadHashes implements tlog.HashReader.
func (t *tree) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x < 0 || x >= int64(len(t.hashes)) {
			return nil, fmt.Errorf("fingerprint: no hash %d in the tree", x)
		}
		out[i] = t.hashes[x]
	}
	return out, nil
}

func (t *tree) add(h tlog.Hash) error {
	stored, err := tlog.StoredHashesForRecordHash(t.leaves, h, t)
	if err != nil {
		return err
	}
	t.hashes = append(t.hashes, stored...)
	t.leaves++
	return nil
}

// stable are the parts that have leaves, in their order.
func stable(parts []Part) (out []Part) {
	for _, p := range parts {
		if !p.Unstable && level(p.Class, p.Slot) != Ignored {
			out = append(out, p)
		}
	}
	return out
}

func build(salt []byte, parts []Part) (*tree, tlog.Hash, error) {
	t := &tree{}
	for _, p := range stable(parts) {
		if err := t.add(leaf(leafSalt(salt, p.Class, p.Slot), p.Class, p.Slot, p.Value)); err != nil {
			return nil, tlog.Hash{}, fmt.Errorf("fingerprint: %w", err)
		}
	}
	root, err := tlog.TreeHash(t.leaves, t)
	if err != nil {
		return nil, tlog.Hash{}, fmt.Errorf("fingerprint: %w", err)
	}
	return t, root, nil
}

// Open makes the opening of one part.
func (r *Record) Open(class, slot string) (*Opening, error) {
	t, root, err := build(r.Salt, r.Parts)
	if err != nil {
		return nil, err
	}
	for i, p := range stable(r.Parts) {
		if p.Class != class || p.Slot != slot {
			continue
		}
		proof, err := tlog.ProveRecord(t.leaves, int64(i), t)
		if err != nil {
			return nil, fmt.Errorf("fingerprint: %w", err)
		}
		o := &Opening{Schema: 1, Machine: r.Machine, Generation: r.Generation, Root: hex.EncodeToString(root[:]), Size: t.leaves,
			Index: int64(i), Class: class, Slot: slot, Value: p.Value, Salt: base64.StdEncoding.EncodeToString(leafSalt(r.Salt, class, slot)),
			Proof: []string{}}
		for _, h := range proof {
			o.Proof = append(o.Proof, hex.EncodeToString(h[:]))
		}
		return o, nil
	}
	return nil, refuse(ReasonPart, "the fingerprint has no stable part %q at %q", class, slot)
}

// ParseOpening reads an opening. Every refusal is an *Error with ReasonOpening.
func ParseOpening(b []byte) (*Opening, error) {
	if len(b) > MaxOpening {
		return nil, refuse(ReasonOpening, "%d bytes, at most %d are read", len(b), MaxOpening)
	}
	var o Opening
	if err := strictjson.Decode(b, &o); err != nil {
		return nil, refuse(ReasonOpening, "not readable: %v", err)
	}
	return &o, nil
}

// Verify checks that the part which o shows is in the fingerprint with this
// root. It says nothing of who vouches for the root.
func (o *Opening) Verify(root [32]byte) error {
	const maxLeaves, maxDepth, maxText = 1 << 20, 64, 1<<16 - 1
	salt, err := base64.StdEncoding.Strict().DecodeString(o.Salt)
	switch {
	case o.Schema != 1:
		return refuse(ReasonOpening, "schema %d, only 1 is known", o.Schema)
	case err != nil || len(salt) != SaltSize:
		return refuse(ReasonOpening, "the salt is not %d bytes of base64", SaltSize)
	case o.Size < 1 || o.Size > maxLeaves || o.Index < 0 || o.Index >= o.Size:
		return refuse(ReasonOpening, "leaf %d of %d", o.Index, o.Size)
	case len(o.Proof) > maxDepth || len(o.Class) > maxText || len(o.Slot) > maxText:
		return refuse(ReasonOpening, "a proof of %d hashes, or a name too long", len(o.Proof))
	}
	proof := make(tlog.RecordProof, len(o.Proof))
	for i, s := range o.Proof {
		b, err := hex.DecodeString(s)
		if err != nil || len(b) != len(proof[i]) {
			return refuse(ReasonOpening, "hash %d of the proof is not 32 bytes of hex", i)
		}
		proof[i] = tlog.Hash(b)
	}
	if o.Root != hex.EncodeToString(root[:]) {
		return refuse(ReasonOpening, "it is of another fingerprint: root %.64s", o.Root)
	}
	if err := tlog.CheckRecord(proof, o.Size, root, o.Index, leaf(salt, o.Class, o.Slot, o.Value)); err != nil {
		return refuse(ReasonOpening, "the part is not in the fingerprint: %v", err)
	}
	return nil
}
