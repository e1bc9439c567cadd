// Package systemdtoken reads and makes the LUKS2 tokens of systemd-cryptenroll
// (type systemd-tpm2, systemd 250 to 257): a volume that systemd enrolled opens
// here, one that we enrolled opens there. Plain registers, signed policies and
// PINs are supported; pcrlock policies, sharded secrets and objects that were
// sealed away from the chip are refused by name.
package systemdtoken

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"portcullis/hardware"

	"github.com/google/go-tpm/tpm2"
)

// Type is the token's type.
const Type = "systemd-tpm2"

// MaxToken caps a token, in bytes; a LUKS2 header has 12 KiB for all JSON.
const MaxToken = 12 << 10

// maxPart caps each binary part, in bytes.
const maxPart = 1024

// Token is a systemd-tpm2 token.
type Token struct {
	Keyslots      []string // decimal numbers
	PCRs          []int    // bound to their values at enrolment; may be none
	Bank          tpm2.TPMIAlgHash
	PrimaryRSA    bool   // storage key's kind where SRK is empty
	PolicyHash    []byte // of the whole policy
	PublicKey     []byte // PEM; of a signed policy
	PublicKeyPCRs []int  // bound to what PublicKey signs for
	PIN           bool
	Salt          []byte // of the PIN; systemd before 253 has none
	SRK           []byte // handle, name and public area as tpm2-tss writes them; before 255 there is none

	Public  []byte // TPMT_PUBLIC
	Private []byte // TPM2B_PRIVATE's buffer
}

type tokenJSON struct {
	Type          string      `json:"type"`
	Keyslots      []string    `json:"keyslots"`
	Blob          oneOf       `json:"tpm2-blob"`
	PCRs          []int       `json:"tpm2-pcrs"`
	Bank          string      `json:"tpm2-pcr-bank,omitempty"`
	PrimaryAlg    string      `json:"tpm2-primary-alg,omitempty"`
	PolicyHash    oneOf       `json:"tpm2-policy-hash"`
	PIN           bool        `json:"tpm2-pin,omitempty"`
	PCRLock       bool        `json:"tpm2_pcrlock,omitempty"`
	PublicKeyPCRs []int       `json:"tpm2_pubkey_pcrs,omitempty"`
	PublicKey     []byte      `json:"tpm2_pubkey,omitempty"`
	Salt          []byte      `json:"tpm2_salt,omitempty"`
	SRK           []byte      `json:"tpm2_srk,omitempty"`
	PCRLockNV     interface{} `json:"tpm2_pcrlock_nv,omitempty"`
}

// oneOf is a string, which systemd 257 writes as a list where a secret is sharded.
type oneOf string

func (o *oneOf) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '[' {
		var l []string
		if err := json.Unmarshal(b, &l); err != nil {
			return err
		}
		if len(l) != 1 {
			return unsupported("a secret in %d shards", len(l))
		}
		*o = oneOf(l[0])
		return nil
	}
	return json.Unmarshal(b, (*string)(o))
}

var banks = map[string]tpm2.TPMIAlgHash{"sha1": tpm2.TPMAlgSHA1, "sha256": tpm2.TPMAlgSHA256, "sha384": tpm2.TPMAlgSHA384, "sha512": tpm2.TPMAlgSHA512}

func bankName(a tpm2.TPMIAlgHash) string {
	for n, b := range banks {
		if a == b {
			return n
		}
	}
	return ""
}

func bad(format string, a ...any) error {
	return &hardware.Error{Reason: hardware.ReasonBadBlob, Err: fmt.Errorf("%s token: %w", Type, fmt.Errorf(format, a...))}
}

func unsupported(format string, a ...any) error {
	return &hardware.Error{Reason: hardware.ReasonUnsupported, Err: fmt.Errorf("%s token: %w", Type, fmt.Errorf(format, a...))}
}

// Parse reads a token. Fields that this package does not know are left out of
// account: where they change the policy the chip refuses. Reasons: root-bad-blob,
// root-unsupported.
func Parse(b []byte) (*Token, error) {
	if len(b) > MaxToken {
		return nil, bad("%d bytes are more than %d", len(b), MaxToken)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	var j tokenJSON
	if err := d.Decode(&j); err != nil {
		if hardware.ReasonOf(err) == hardware.ReasonUnsupported {
			return nil, err
		}
		return nil, bad("%w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, bad("something follows the object")
	}
	if j.Type != Type {
		return nil, bad("type %q", j.Type)
	}
	if j.PCRLock || j.PCRLockNV != nil {
		return nil, unsupported("a pcrlock policy")
	}
	t := &Token{Keyslots: j.Keyslots, PCRs: j.PCRs, PublicKey: j.PublicKey, PublicKeyPCRs: j.PublicKeyPCRs, PIN: j.PIN, Salt: j.Salt, SRK: j.SRK}
	if err := t.decode(&j); err != nil {
		return nil, err
	}
	return t, t.check()
}

func (t *Token) decode(j *tokenJSON) (err error) {
	// Before systemd 250 neither field was there: SHA-256 and ECC were meant.
	if t.Bank = tpm2.TPMAlgSHA256; j.Bank != "" {
		var ok bool
		if t.Bank, ok = banks[j.Bank]; !ok {
			return unsupported("register bank %q", j.Bank)
		}
	}
	switch j.PrimaryAlg {
	case "", "ecc":
	case "rsa":
		t.PrimaryRSA = true
	default:
		return unsupported("primary key %q", j.PrimaryAlg)
	}
	if t.PolicyHash, err = hex.DecodeString(string(j.PolicyHash)); err != nil {
		return bad("policy hash: %w", err)
	}
	blob, err := base64.StdEncoding.DecodeString(string(j.Blob))
	if err != nil {
		return bad("blob: %w", err)
	}
	var rest []byte
	if t.Private, rest, err = sized(blob); err != nil {
		return bad("private part: %w", err)
	}
	if t.Public, rest, err = sized(rest); err != nil {
		return bad("public part: %w", err)
	}
	if len(rest) > 0 {
		return unsupported("an object that was sealed away from the chip")
	}
	return nil
}

// sized splits off a TPM2B.
func sized(b []byte) (part, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, io.ErrUnexpectedEOF
	}
	n := int(binary.BigEndian.Uint16(b))
	if n == 0 || n > maxPart || n > len(b)-2 {
		return nil, nil, fmt.Errorf("%d bytes, %d are there", n, len(b)-2)
	}
	return b[2 : 2+n], b[2+n:], nil
}

func (t *Token) check() error {
	if len(t.Keyslots) == 0 || len(t.Keyslots) > 32 {
		return bad("%d keyslots", len(t.Keyslots))
	}
	if len(t.PolicyHash) != 32 {
		return bad("policy hash of %d bytes", len(t.PolicyHash))
	}
	for _, l := range [][]int{t.PCRs, t.PublicKeyPCRs} {
		for i, p := range l {
			if p < 0 || p > 23 || slices.Contains(l[:i], p) {
				return bad("registers %v", l)
			}
		}
	}
	if (len(t.PublicKey) > 0) != (len(t.PublicKeyPCRs) > 0) {
		return bad("a policy key without registers or registers without a key")
	}
	if bankName(t.Bank) == "" || len(t.Private) == 0 || len(t.Public) == 0 || len(t.Private) > maxPart || len(t.Public) > maxPart {
		return bad("incomplete")
	}
	if len(t.Salt) > maxPart || len(t.SRK) > maxPart || len(t.PublicKey) > 4*maxPart {
		return bad("a part is too long")
	}
	if len(t.SRK) > 0 {
		if _, _, err := t.srk(); err != nil {
			return err
		}
	}
	if len(t.PublicKey) > 0 {
		if _, err := parseSigner(t.PublicKey); err != nil {
			return err
		}
	}
	return nil
}

// Encode returns the JSON that systemd reads.
func (t *Token) Encode() ([]byte, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	var blob []byte
	for _, p := range [][]byte{t.Private, t.Public} {
		blob = append(binary.BigEndian.AppendUint16(blob, uint16(len(p))), p...)
	}
	j := tokenJSON{Type: Type, Keyslots: t.Keyslots, Blob: oneOf(base64.StdEncoding.EncodeToString(blob)), PCRs: t.PCRs, Bank: bankName(t.Bank),
		PrimaryAlg: "ecc", PolicyHash: oneOf(hex.EncodeToString(t.PolicyHash)), PIN: t.PIN, PublicKeyPCRs: t.PublicKeyPCRs,
		PublicKey: t.PublicKey, Salt: t.Salt, SRK: t.SRK}
	if t.PrimaryRSA {
		j.PrimaryAlg = "rsa"
	}
	if j.PCRs == nil {
		j.PCRs = []int{}
	}
	b, err := json.Marshal(j)
	if err == nil && len(b) > MaxToken {
		return nil, bad("%d bytes are more than %d", len(b), MaxToken)
	}
	return b, err
}
