package tpmattest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Quote is the chip's signed statement about its registers.
type Quote struct {
	Message   []byte           `json:"message"`   // TPMS_ATTEST
	Signature []byte           `json:"signature"` // ECDSA, ASN.1
	PCRs      map[int]Register `json:"pcrs"`      // SHA-256 bank; Message proves them
}

// Register is the value of a register; hex in JSON.
type Register [32]byte

// MarshalText writes hex.
func (r Register) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(r[:])), nil }

// UnmarshalText reads hex.
func (r *Register) UnmarshalText(b []byte) error {
	d, err := hex.DecodeString(string(b))
	if err != nil || len(d) != len(r) {
		return fmt.Errorf("register %.80q is not %d bytes in hex", b, len(r))
	}
	*r = Register(d)
	return nil
}

// Limits of a quote's nonce, in bytes.
const (
	MinNonce = 16
	MaxNonce = 64
)

// MaxQuote is the size of a TPMS_ATTEST, in bytes.
const MaxQuote = 1024

// tries of a quote: while a machine boots, its IMA extends register 10 with every
// program that starts.
const tries = 16

// ErrNoBank is a chip whose SHA-256 bank is not active.
var ErrNoBank = errors.New("the chip has no SHA-256 bank")

// Make has the chip sign a nonce (MinNonce to MaxNonce bytes) and registers of the
// SHA-256 bank with the loaded attestation key ak. Registers are read in the order of
// pcrs behind the quote; when one has changed in between, all is done again, at most
// tries times. So what changes most comes first.
func Make(chip transport.TPM, ak *Key, nonce []byte, pcrs []int) (q *Quote, err error) {
	if len(nonce) < MinNonce || len(nonce) > MaxNonce || len(pcrs) == 0 {
		return nil, fmt.Errorf("quote: a nonce of %d bytes over %d registers", len(nonce), len(pcrs))
	}
	for range tries {
		if q, err = quote(chip, ak, nonce, pcrs); err != nil {
			return nil, err
		}
		if _, err = VerifyQuote(tpm2.Marshal(ak.Public), q, nonce, pcrs); err == nil {
			return q, nil
		}
	}
	return nil, err
}

func quote(chip transport.TPM, ak *Key, nonce []byte, pcrs []int) (*Quote, error) {
	r, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: ak.Handle, Name: ak.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		PCRSelect:      Selection(pcrs...),
	}.Execute(chip)
	if err != nil {
		return nil, err
	}
	signature, err := ASN1Signature(&r.Signature)
	if err != nil {
		return nil, err
	}
	values, err := ReadPCRs(chip, pcrs)
	if err != nil {
		return nil, err
	}
	q := &Quote{Message: r.Quoted.Bytes(), Signature: signature, PCRs: make(map[int]Register, len(values))}
	for i, v := range values {
		q.PCRs[i] = v
	}
	return q, nil
}

// ReadPCRs returns registers of the SHA-256 bank, each 0 to 23.
func ReadPCRs(chip transport.TPM, pcrs []int) (map[int][32]byte, error) {
	m := make(map[int][32]byte, len(pcrs))
	for _, i := range pcrs {
		if i < 0 || i > 23 {
			return nil, fmt.Errorf("register %d is not between 0 and 23", i)
		}
		// One by one: an answer with several may be cut short, and says so only
		// in a selection that would have to be taken apart again.
		r, err := tpm2.PCRRead{PCRSelectionIn: Selection(i)}.Execute(chip)
		if err != nil {
			return nil, fmt.Errorf("register %d: %w", i, err)
		}
		if len(r.PCRValues.Digests) != 1 || len(r.PCRValues.Digests[0].Buffer) != 32 {
			return nil, fmt.Errorf("register %d: %w", i, ErrNoBank)
		}
		m[i] = [32]byte(r.PCRValues.Digests[0].Buffer)
	}
	return m, nil
}

// Quoted is what a verified quote says.
type Quoted struct {
	PCRs       map[int]Register
	ResetCount uint32 // power cycles of the chip
	Restarts   uint32 // resumes since
	Firmware   uint64
	Safe       bool   // Clock never went back
	Clock      uint64 // milliseconds that the chip has run
}

// ErrQuote: a quote does not prove what it claims.
var ErrQuote = errors.New("quote is not valid")

// VerifyQuote checks a quote against the enrolled attestation key, the nonce of
// this session and the registers that were asked for, and returns what it says. It
// needs no TPM: it is the verifier's side.
func VerifyQuote(ak []byte, q *Quote, nonce []byte, pcrs []int) (*Quoted, error) {
	wrong := func(format string, a ...any) (*Quoted, error) {
		return nil, fmt.Errorf("%w: %w", ErrQuote, fmt.Errorf(format, a...))
	}
	if len(nonce) < MinNonce || len(nonce) > MaxNonce || len(q.Message) > MaxQuote {
		return wrong("a nonce of %d bytes, a message of %d", len(nonce), len(q.Message))
	}
	key, err := signerOf(ak)
	if err != nil {
		return wrong("%w", err)
	}
	digest := sha256.Sum256(q.Message)
	if !ecdsa.VerifyASN1(key.public, digest[:], q.Signature) {
		return wrong("not signed by this attestation key")
	}
	a, err := parseStatement(q.Message)
	if err != nil {
		return wrong("%w", err)
	}
	if !bytes.Equal(a.nonce, nonce) {
		return wrong("another nonce: an answer to another question")
	}
	if !bytes.Equal(a.signer, key.name) {
		return wrong("signed as %x, the attestation key is %x", a.signer, key.name)
	}
	numbers := slices.Clone(pcrs)
	slices.Sort(numbers)
	numbers = slices.Compact(numbers)
	composite := sha256.New()
	for _, i := range numbers {
		v, ok := q.PCRs[i]
		if !ok || i < 0 || i > 23 {
			return wrong("register %d is missing", i)
		}
		composite.Write(v[:])
	}
	if len(q.PCRs) != len(numbers) {
		return wrong("%d registers, %d were asked for", len(q.PCRs), len(numbers))
	}
	if !bytes.Equal(a.selection, selectionOf(numbers)) {
		return wrong("over other registers")
	}
	if !bytes.Equal(a.digest, composite.Sum(nil)) {
		return wrong("the registers beside it are not those that were signed")
	}
	return &Quoted{PCRs: q.PCRs, ResetCount: a.resets, Restarts: a.restarts, Firmware: a.firmware, Safe: a.safe, Clock: a.clock}, nil
}

// QualifiedName of a primary key under the endorsement hierarchy (Part 1, 26.5).
func QualifiedName(p *tpm2.TPMTPublic) ([]byte, error) {
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), name.Buffer...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), h[:]...), nil
}
