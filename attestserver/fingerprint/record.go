package fingerprint

import (
	"encoding/hex"
	"fmt"
	"slices"

	"portcullis/attestserver/protocol"
	"portcullis/internal/strictjson"
)

// EnrolBoots is how many boots make an enrolment.
const EnrolBoots = 3

// maxImages is how many images a record remembers; the oldest is forgotten.
const maxImages = 64

// MaxRecord bounds a stored record, in bytes.
const MaxRecord = 8 << 20

// Record is the fingerprint of one machine. It changes by learning during the
// enrolling boots and by an approval after them, and by nothing else.
type Record struct {
	Schema     int      `json:"schema"`  // 1
	Machine    string   `json:"machine"` // MAC
	Generation uint64   `json:"generation"`
	Salt       []byte   `json:"salt"`  // 32 bytes
	Boots      []string `json:"boots"` // sessions that enrolled it, at most 3
	Images     []string `json:"images"`
	Parts      []Part   `json:"parts"` // sorted by class and slot
	Root       string   `json:"root"`  // hex
	ApprovedBy string   `json:"approved_by,omitempty"`
}

// Complete tells whether the enrolling boots are over.
func (r *Record) Complete() bool { return len(r.Boots) >= EnrolBoots }

// seal computes the root.
func (r *Record) seal() error {
	order(r.Parts)
	_, root, err := build(r.Salt, r.Parts)
	if err != nil {
		return err
	}
	r.Root = hex.EncodeToString(root[:])
	return nil
}

// Check holds the root against the parts: a record that somebody edited does not
// pass.
func (r *Record) Check() error {
	_, root, err := build(r.Salt, r.Parts)
	if err != nil {
		return err
	}
	if r.Root != hex.EncodeToString(root[:]) {
		return refuse(ReasonRecord, "the root is not that of the parts")
	}
	return nil
}

func (r *Record) clone() *Record {
	c := *r
	c.Boots, c.Images, c.Parts = slices.Clone(r.Boots), slices.Clone(r.Images), slices.Clone(r.Parts)
	return &c
}

// sawImage remembers an image; false when it was known.
func (r *Record) sawImage(image string) bool {
	if slices.Contains(r.Images, image) {
		return false
	}
	r.Images = append(r.Images[max(0, len(r.Images)-maxImages+1):], image)
	return true
}

// Pending is a drift that waits for an operator: the record as it would be.
type Pending struct {
	Schema  int      `json:"schema"` // 1
	Record  *Record  `json:"record"` // nil: nothing waits
	Changes []Change `json:"changes"`
}

// decodeRecord reads a stored record.
func decodeRecord(b []byte) (*Record, error) {
	var r Record
	if err := strictUpTo(b, MaxRecord, &r); err != nil {
		return nil, refuse(ReasonRecord, "%v", err)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return &r, nil
}

func (r *Record) check() error {
	root, err := hex.DecodeString(r.Root)
	switch {
	case r.Schema != 1:
		return refuse(ReasonRecord, "schema %d, only 1 is known", r.Schema)
	case len(r.Salt) != SaltSize || err != nil || len(root) != 32 || r.Generation == 0 || r.Machine == "":
		return refuse(ReasonRecord, "salt, root, generation or machine is missing")
	case len(r.Parts) > protocol.MaxComponents+1 || len(r.Images) > maxImages || len(r.Boots) > EnrolBoots:
		return refuse(ReasonRecord, "%d parts, %d images, %d boots", len(r.Parts), len(r.Images), len(r.Boots))
	}
	for i, p := range r.Parts {
		if len(p.Class) > protocol.MaxString || len(p.Slot) > 2*protocol.MaxString || len(p.Value) > protocol.MaxString {
			return refuse(ReasonRecord, "a part is too long")
		}
		if i > 0 && r.Parts[i-1].key() >= p.key() {
			return refuse(ReasonRecord, "the parts are not sorted, or one is there twice")
		}
	}
	return nil
}

func decodePending(b []byte) (*Pending, error) {
	var p Pending
	if err := strictUpTo(b, 3*MaxRecord, &p); err != nil {
		return nil, refuse(ReasonRecord, "what waits: %v", err)
	}
	if p.Schema != 1 {
		return nil, refuse(ReasonRecord, "what waits: schema %d, only 1 is known", p.Schema)
	}
	if p.Record != nil {
		if err := p.Record.check(); err != nil {
			return nil, err
		}
	}
	return &p, nil
}

func strictUpTo(b []byte, most int, v any) error {
	if len(b) > most {
		return fmt.Errorf("%d bytes, at most %d are read", len(b), most)
	}
	return strictjson.Decode(b, v)
}
