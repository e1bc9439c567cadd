package tpm2

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"

	"portcullis/hardware"
	"portcullis/hardware/tpmattest"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// BlobVersion is the only version of a blob so far.
const BlobVersion = 1

// MaxBlob caps an encoded blob, in bytes.
const MaxBlob = 3 << 10

// maxPart caps each binary part, in bytes; ours have about 200.
const maxPart = 512

// sealed is the blob: a sealed object as the chip gave it out, and what is needed
// to ask for it. It is public. Whoever edits it gets a refusal of the chip or of
// the volume, never the secret.
type sealed struct {
	Version    int                `json:"version"`
	Platform   tpmpolicy.Platform `json:"platform"`
	SRK        []byte             `json:"srk"`        // name of the storage key
	Revocation uint32             `json:"revocation"` // index of the counter that Forget raises
	Most       uint64             `json:"most"`       // its highest value for this blob
	Public     []byte             `json:"public"`     // TPMT_PUBLIC
	Private    []byte             `json:"private"`    // TPM2B_PRIVATE's buffer
}

func (b *sealed) encode() (json.RawMessage, error) {
	j, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	_, err = parseBlob(j)
	return j, err
}

func parseBlob(j json.RawMessage) (*sealed, error) {
	bad := func(format string, a ...any) (*sealed, error) {
		return nil, refuse(hardware.ReasonBadBlob, format, a...)
	}
	if len(j) > MaxBlob {
		return bad("%d bytes are more than %d", len(j), MaxBlob)
	}
	d := json.NewDecoder(bytes.NewReader(j))
	d.DisallowUnknownFields()
	var b sealed
	if err := d.Decode(&b); err != nil {
		return bad("%w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return bad("something follows the object")
	}
	if b.Version != BlobVersion {
		return bad("version %d is not %d: made by a newer release?", b.Version, BlobVersion)
	}
	if _, err := tpmpolicy.ParsePlatform(string(b.Platform)); err != nil {
		return bad("%w", err)
	}
	if len(b.SRK) != 34 || b.Revocation>>24 != 0x01 || b.Most == 0 {
		return bad("storage key, counter or its value makes no sense")
	}
	if n := len(b.Private); n == 0 || n > maxPart {
		return bad("private part of %d bytes", n)
	}
	if n := len(b.Public); n == 0 || n > maxPart {
		return bad("public part of %d bytes", n)
	}
	return &b, nil
}

// object takes the public part apart; it must be a sealed object of ours.
func (b *sealed) object() (*tpm2.TPMTPublic, error) {
	p, err := unmarshalPublic(b.Public)
	if err != nil {
		return nil, &hardware.Error{Reason: hardware.ReasonBadBlob, Err: err}
	}
	want := sealTemplate([32]byte{})
	want.AuthPolicy = p.AuthPolicy
	if p.Type != want.Type || p.ObjectAttributes != want.ObjectAttributes || p.NameAlg != want.NameAlg || len(p.AuthPolicy.Buffer) != 32 {
		return nil, refuse(hardware.ReasonBadBlob, "not a sealed object of ours")
	}
	return p, nil
}

// unmarshalPublic reads a TPMT_PUBLIC, of which nothing may be left over.
func unmarshalPublic(b []byte) (*tpm2.TPMTPublic, error) {
	p, err := tpmattest.UnmarshalPublic(b)
	if err != nil {
		return nil, refuse(hardware.ReasonBadBlob, "%w", err)
	}
	return p, nil
}

// sealTemplate of a sealed object: only its policy opens it, it never leaves this
// chip, and wrong attempts do not count, because no password guards it.
func sealTemplate(policy [32]byte) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, NoDA: true, AdminWithPolicy: true},
		AuthPolicy:       tpm2.TPM2BDigest{Buffer: policy[:]},
	}
}

// labelSize is the digest of the label before the secret, in bytes.
const labelSize = 16

func labelDigest(label string) []byte {
	h := sha256.Sum256([]byte("portcullis/seal/" + label))
	return h[:labelSize]
}
