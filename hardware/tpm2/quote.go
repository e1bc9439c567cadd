package tpm2

import (
	"context"
	"errors"

	"portcullis/hardware/tpmattest"
)

// What a quote is, and how it is verified without a chip, is package tpmattest's.
type (
	Quote    = tpmattest.Quote
	Register = tpmattest.Register
	Quoted   = tpmattest.Quoted
)

// ErrQuote: a quote does not prove what it claims.
var ErrQuote = tpmattest.ErrQuote

// VerifyQuote is tpmattest.VerifyQuote.
func VerifyQuote(ak []byte, q *Quote, nonce []byte, pcrs []int) (*Quoted, error) {
	return tpmattest.VerifyQuote(ak, q, nonce, pcrs)
}

// Quote signs a nonce (tpmattest.MinNonce to MaxNonce bytes) and registers of the
// SHA-256 bank with the attestation key, which Enrol made.
func (t *TPM) Quote(ctx context.Context, nonce []byte, pcrs []int) (*Quote, error) {
	var q *Quote
	err := t.do(ctx, "quote", func() error {
		ak, err := t.readAK()
		if err != nil {
			return err
		}
		if ak == nil {
			return errors.New("this chip has no attestation key yet: it is not enrolled")
		}
		q, err = tpmattest.Make(t.link, ak, nonce, pcrs)
		if errors.Is(err, tpmattest.ErrNoBank) {
			return refuse(ReasonPCREmpty, "%w", err)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return q, nil
}
