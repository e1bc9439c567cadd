package protocol

import (
	"crypto/hmac"
	"crypto/sha512"
	"errors"
	"fmt"
)

// OpTsm asks the report of a confidential virtual machine (tier T2).
const OpTsm = "tsm"

// MaxTsmBlob is the size of a report, and of the certificates beside it, in bytes.
const MaxTsmBlob = 32 << 10

// TsmParams: the report's data cover all of it, see OpKey.ReportData.
type TsmParams struct {
	Session string `json:"session"`
	Nonce   []byte `json:"nonce"` // 32 bytes
}

// Check bounds the sizes.
func (p *TsmParams) Check() error {
	if !ValidSession(p.Session) || len(p.Nonce) != 32 {
		return errors.New("no session, or a nonce that is not 32 bytes")
	}
	return nil
}

// TsmData is the answer of op tsm.
type TsmData struct {
	Present  bool   `json:"present"`
	Fault    string `json:"fault,omitempty"`    // why there is no report
	Provider string `json:"provider,omitempty"` // as the kernel names it
	Report   []byte `json:"report,omitempty"`
	Certs    []byte `json:"certs,omitempty"`
}

// Check bounds the strings.
func (d *TsmData) Check() error {
	if len(d.Report) > MaxTsmBlob || len(d.Certs) > MaxTsmBlob {
		return fmt.Errorf("a report of %d bytes, certificates of %d", len(d.Report), len(d.Certs))
	}
	return short("tsm", d.Fault, d.Provider)
}

// ReportData is the 64 bytes that a confidential machine has its processor sign:
// HMAC-SHA-512 with the op's key, which covers challenge and channel binding, over
// the params, which hold the boot session and a nonce of their own.
func (k OpKey) ReportData(params []byte) (d [64]byte) {
	h := hmac.New(sha512.New, k[:])
	writeField(h, []byte("tsm-report"))
	writeField(h, params)
	h.Sum(d[:0])
	return d
}
