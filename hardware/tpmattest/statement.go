package tpmattest

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A quote is read by hand: TPM 2.0 Part 2, 10.12. go-tpm reads the same by reflection,
// which takes longer than verifying the signature does; the tests hold the two
// against each other.

// Values of TPM_GENERATED, TPM_ST and TPM_ALG_ID (Part 2, 6.2, 6.9, 6.3).
const (
	generatedByTPM = 0xff544347
	kindQuote      = 0x8018
	algSHA256      = 0x000b
)

// maxSelections bounds the banks of one quote: a TPM has a handful of algorithms.
const maxSelections = 16

// statement is a TPMS_ATTEST of the kind quote.
type statement struct {
	signer    []byte // qualified name
	nonce     []byte
	clock     uint64 // milliseconds
	resets    uint32
	restarts  uint32
	safe      bool
	firmware  uint64
	selection []byte // TPML_PCR_SELECTION as it stands there
	digest    []byte // of the registers
}

// errShort is a message that ends within a field.
var errShort = errors.New("message: it ends too early")

// parseStatement reads a message of which nothing may be left over. What it
// returns points into b.
func parseStatement(b []byte) (*statement, error) {
	r := reader{left: b}
	magic, kind := r.number(4), r.number(2)
	switch {
	case r.short:
		return nil, errShort
	case magic != generatedByTPM:
		return nil, fmt.Errorf("not made by a TPM: magic %#x", magic)
	case kind != kindQuote:
		return nil, fmt.Errorf("a statement of another kind: %#x", kind)
	}
	s := &statement{signer: r.sized(), nonce: r.sized(), clock: r.number(8), resets: uint32(r.number(4)), restarts: uint32(r.number(4))}
	safe := r.number(1)
	s.safe, s.firmware = safe == 1, r.number(8)
	before := r.left
	selections := r.number(4)
	if selections > maxSelections {
		return nil, fmt.Errorf("message: %d banks", selections)
	}
	for range selections {
		r.number(2)
		r.take(int(r.number(1)))
	}
	s.selection = before[:len(before)-len(r.left)]
	s.digest = r.sized()
	switch {
	case r.short:
		return nil, errShort
	case safe > 1:
		return nil, fmt.Errorf("message: yes or no is %d", safe)
	case len(r.left) > 0:
		return nil, fmt.Errorf("message: %d bytes follow", len(r.left))
	}
	return s, nil
}

// selectionOf is the TPML_PCR_SELECTION of registers 0 to 23 of the SHA-256 bank.
func selectionOf(pcrs []int) []byte {
	b := []byte{0, 0, 0, 1, algSHA256 >> 8, algSHA256, 3, 0, 0, 0}
	for _, i := range pcrs {
		b[7+i/8] |= 1 << (i % 8)
	}
	return b
}

// reader takes fields off the front. After a field that is not there all are zero.
type reader struct {
	left  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.left) {
		r.left, r.short = nil, true
		return nil
	}
	b := r.left[:n:n]
	r.left = r.left[n:]
	return b
}

// number takes n bytes, at most 8, big-endian.
func (r *reader) number(n int) uint64 {
	var b [8]byte
	copy(b[8-n:], r.take(n))
	return binary.BigEndian.Uint64(b[:])
}

// sized takes a TPM2B.
func (r *reader) sized() []byte { return r.take(int(r.number(2))) }
