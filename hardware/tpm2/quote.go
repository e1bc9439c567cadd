package tpm2

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"

	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
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
		return fmt.Errorf("register %q is not %d bytes in hex", b, len(r))
	}
	*r = Register(d)
	return nil
}

// Limits of a quote's nonce, in bytes.
const (
	MinNonce = 16
	MaxNonce = 64
)

const maxQuote = 1024 // bytes of a TPMS_ATTEST

// Quote signs a nonce (MinNonce to MaxNonce bytes) and registers of the SHA-256
// bank with the attestation key, which Enrol made.
func (t *TPM) Quote(ctx context.Context, nonce []byte, pcrs []int) (*Quote, error) {
	if len(nonce) < MinNonce || len(nonce) > MaxNonce || len(pcrs) == 0 {
		return nil, fmt.Errorf("quote: a nonce of %d bytes over %d registers", len(nonce), len(pcrs))
	}
	var q *Quote
	err := t.do(ctx, "quote", func() error {
		ak, err := t.readAK()
		if err != nil {
			return err
		}
		if ak == nil {
			return errors.New("this chip has no attestation key yet: it is not enrolled")
		}
		// Registers may change between quote and reading: once more, then.
		for try := 0; try < 3; try++ {
			if q, err = t.quote(ak, nonce, pcrs); err != nil {
				return err
			}
			if _, err = VerifyQuote(tpm2.Marshal(ak.public), q, nonce, pcrs); err == nil {
				return nil
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return q, nil
}

func (t *TPM) quote(ak *key, nonce []byte, pcrs []int) (*Quote, error) {
	r, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: ak.handle, Name: ak.name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce},
		PCRSelect:      selection(pcrs...),
	}.Execute(t.link)
	if err != nil {
		return nil, err
	}
	signature, err := asn1Signature(&r.Signature)
	if err != nil {
		return nil, err
	}
	values, err := t.readPCRs(pcrs)
	if err != nil {
		return nil, err
	}
	q := &Quote{Message: r.Quoted.Bytes(), Signature: signature, PCRs: make(map[int]Register, len(values))}
	for i, v := range values {
		q.PCRs[i] = v
	}
	return q, nil
}

// Quoted is what a verified quote says.
type Quoted struct {
	PCRs       map[int]Register
	ResetCount uint32 // power cycles of the chip
	Restarts   uint32 // resumes since
	Firmware   uint64
	Safe       bool // Clock never went back
	Clock      uint64
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
	if len(nonce) < MinNonce || len(nonce) > MaxNonce || len(q.Message) > maxQuote {
		return wrong("a nonce of %d bytes, a message of %d", len(nonce), len(q.Message))
	}
	public, err := parseAK(ak)
	if err != nil {
		return wrong("%w", err)
	}
	pub, err := publicECDSA(public)
	if err != nil {
		return wrong("%w", err)
	}
	digest := sha256.Sum256(q.Message)
	if !ecdsa.VerifyASN1(pub, digest[:], q.Signature) {
		return wrong("not signed by this attestation key")
	}
	a, err := unmarshalAttest(q.Message)
	if err != nil {
		return wrong("%w", err)
	}
	if a.Magic != tpm2.TPMGeneratedValue {
		return wrong("not made by a TPM: magic %#x", uint32(a.Magic))
	}
	if a.Type != tpm2.TPMSTAttestQuote {
		return wrong("a statement of another kind: %#x", uint16(a.Type))
	}
	if !bytes.Equal(a.ExtraData.Buffer, nonce) {
		return wrong("another nonce: an answer to another question")
	}
	signer, err := qualifiedName(public)
	if err != nil {
		return wrong("%w", err)
	}
	if !bytes.Equal(a.QualifiedSigner.Buffer, signer) {
		return wrong("signed as %x, the attestation key is %x", a.QualifiedSigner.Buffer, signer)
	}
	info, err := a.Attested.Quote()
	if err != nil {
		return wrong("%w", err)
	}
	values := make(map[int][32]byte, len(pcrs))
	for _, i := range pcrs {
		v, ok := q.PCRs[i]
		if !ok || i < 0 || i > 23 {
			return wrong("register %d is missing", i)
		}
		values[i] = v
	}
	if len(q.PCRs) != len(values) {
		return wrong("%d registers, %d were asked for", len(q.PCRs), len(values))
	}
	if !bytes.Equal(tpm2.Marshal(info.PCRSelect), tpmpolicy.Selection(values)) {
		return wrong("over other registers")
	}
	composite := sha256.New()
	for _, i := range tpmpolicy.Numbers(values) {
		v := values[i]
		composite.Write(v[:])
	}
	if !bytes.Equal(info.PCRDigest.Buffer, composite.Sum(nil)) {
		return wrong("the registers beside it are not those that were signed")
	}
	return &Quoted{PCRs: q.PCRs, ResetCount: a.ClockInfo.ResetCount, Restarts: a.ClockInfo.RestartCount, Firmware: a.FirmwareVersion,
		Safe: bool(a.ClockInfo.Safe), Clock: a.ClockInfo.Clock}, nil
}

func unmarshalAttest(b []byte) (a *tpm2.TPMSAttest, err error) {
	defer func() {
		if r := recover(); r != nil {
			a, err = nil, fmt.Errorf("message: %v", r)
		}
	}()
	a, err = tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(tpm2.Marshal(a), b) {
		return nil, errors.New("message: something follows or is not canonical")
	}
	return a, nil
}

// qualifiedName of a primary key under the endorsement hierarchy (Part 1, 26.5).
func qualifiedName(p *tpm2.TPMTPublic) ([]byte, error) {
	name, err := tpm2.ObjectName(p)
	if err != nil {
		return nil, err
	}
	h := sha256.Sum256(append(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHEndorsement)), name.Buffer...))
	return append(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgSHA256)), h[:]...), nil
}
