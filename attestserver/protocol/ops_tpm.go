package protocol

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// OpTpm asks the PC's TPM 2.0 (tier T1).
const OpTpm = "tpm"

// TpmRegisters are those that are quoted, of the SHA-256 bank: IMA (10; first, since
// it changes while it is read), firmware (0, 2, 7), what firmware loaded (4), boot
// loaders (8: none), command line and initrd (9), the image's sections (11), additions
// to the command line (12).
var TpmRegisters = []int{10, 0, 2, 4, 7, 8, 9, 11, 12}

// Limits of op tpm, in bytes.
const (
	MaxTpmKey  = 1 << 10 // a public area, a quote, a signature, a part of a credential
	MaxTpmCert = 4 << 10
	MaxTpmLog  = 1 << 20   // the firmware's event log
	MaxTpmIMA  = 3 << 19   // one piece of IMA's list
	MaxTpmList = 256 << 20 // all of IMA's list
)

// TpmParams says what is wanted beside a quote. The quote's qualifying data cover
// all of it, see OpKey.Qualifying.
type TpmParams struct {
	Session  string `json:"session"`
	Nonce    []byte `json:"nonce"`    // 32 bytes
	Identify bool   `json:"identify"` // both keys and the certificate
	Log      bool   `json:"log"`      // the firmware's event log
	ListFrom int64  `json:"list_from"`
	// A credential to activate (TPM 2.0 Part 1, 24); empty: none.
	Credential []byte `json:"credential,omitempty"`
	Secret     []byte `json:"secret,omitempty"`
}

// Check bounds the numbers.
func (p *TpmParams) Check() error {
	if !ValidSession(p.Session) || len(p.Nonce) != 32 {
		return errors.New("no session, or a nonce that is not 32 bytes")
	}
	if p.ListFrom < 0 || p.ListFrom > MaxTpmList {
		return fmt.Errorf("list_from is %d", p.ListFrom)
	}
	if (len(p.Credential) == 0) != (len(p.Secret) == 0) {
		return errors.New("half a credential")
	}
	return longest(MaxTpmKey, p.Credential, p.Secret)
}

// TpmPCR is one register.
type TpmPCR struct {
	Index int    `json:"index"`
	Value string `json:"value"` // 32 bytes, hex
}

// TpmQuote is what the chip signed.
type TpmQuote struct {
	Message   []byte   `json:"message"`   // TPMS_ATTEST
	Signature []byte   `json:"signature"` // ECDSA P-256, ASN.1
	PCRs      []TpmPCR `json:"pcrs"`
}

// TpmData is the answer of op tpm.
type TpmData struct {
	Present bool   `json:"present"`
	Fault   string `json:"fault,omitempty"` // why the chip gave no quote

	EKKind string `json:"ek_kind,omitempty"`
	EK     []byte `json:"ek,omitempty"`      // TPMT_PUBLIC
	EKCert []byte `json:"ek_cert,omitempty"` // DER; empty: the chip has none
	AK     []byte `json:"ak,omitempty"`      // TPMT_PUBLIC

	Activated []byte    `json:"activated,omitempty"` // OpKey.Activated of the credential's secret
	Quote     *TpmQuote `json:"quote,omitempty"`
	Log       []byte    `json:"log,omitempty"`
	List      []byte    `json:"list,omitempty"` // IMA's, from list_from on, read after the quote
	More      bool      `json:"more,omitempty"` // the list goes on
}

// Check bounds the lists and strings.
func (d *TpmData) Check() error {
	if err := short("tpm", d.Fault, d.EKKind); err != nil {
		return err
	}
	if len(d.Log) > MaxTpmLog || len(d.List) > MaxTpmIMA || len(d.EKCert) > MaxTpmCert {
		return fmt.Errorf("a log of %d bytes, a list of %d, a certificate of %d", len(d.Log), len(d.List), len(d.EKCert))
	}
	if d.Quote != nil {
		if err := atMost("registers", len(d.Quote.PCRs), 24); err != nil {
			return err
		}
		if err := longest(MaxTpmKey, d.Quote.Message, d.Quote.Signature); err != nil {
			return err
		}
		for _, r := range d.Quote.PCRs {
			if b, err := hex.DecodeString(r.Value); err != nil || len(b) != 32 || r.Index < 0 || r.Index > 23 {
				return fmt.Errorf("register %d is not 32 bytes in hex", r.Index)
			}
		}
	}
	return longest(MaxTpmKey, d.EK, d.AK, d.Activated)
}

func longest(max int, all ...[]byte) error {
	for _, b := range all {
		if len(b) > max {
			return fmt.Errorf("%d bytes, at most %d", len(b), max)
		}
	}
	return nil
}

// Qualifying is the 32 bytes that a TPM signs with its quote. The key covers the
// challenge's nonce and id, the op's place in it and the channel binding; params
// hold the boot session and a nonce of their own.
func (k OpKey) Qualifying(params []byte) [32]byte { return k.Digest("tpm-quote", params, nil) }

// Activated shows that a credential's secret is known, on this channel and for
// this question only.
func (k OpKey) Activated(params, secret []byte) [32]byte {
	return k.Digest("tpm-activated", params, secret)
}
