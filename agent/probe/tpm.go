package probe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
)

// Tpm has the PC's TPM 2.0 sign its registers for this question, and tells the two
// lists that lead to them: the firmware's event log and IMA's.
//
// It finds another machine, a firmware, an image or a command line that is not the
// expected one, also where everything above the firmware lies about them.
//
// It cannot see what changed after it was measured, a firmware that measures
// something else than it runs, and a chip whose wires are in somebody's hands. A PC
// without the chip says so, and nobody can tell that from a PC that hides it, until
// the chip has been enrolled.
type Tpm struct {
	Host

	mu   sync.Mutex
	chip transport.TPMCloser // open after the first question
	ak   *tpmattest.Key      // loaded in it
}

// Name implements protocol.Probe.
func (*Tpm) Name() string { return protocol.OpTpm }

// Run implements protocol.Probe.
func (p *Tpm) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var q protocol.TpmParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &q); err != nil {
		return protocol.Output{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	d, err := p.ask(ctx, key, params, &q)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
		// A chip that was asked for too much at once, or was put to sleep, is asked
		// anew: what it had loaded is given up, so that nothing stays behind in it.
		p.close()
		d, err = p.ask(ctx, key, params, &q)
	}
	if err := alive(ctx); err != nil {
		return protocol.Output{}, err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		d = &protocol.TpmData{}
	case err != nil:
		p.close()
		s := err.Error()
		d = &protocol.TpmData{Present: true, Fault: s[:min(len(s), protocol.MaxReasonBytes)]}
	}
	return answer(key, p.Name(), params, d)
}

// ask is one question. Its lists are read after the quote: they hold all that the
// quote covers, and maybe more.
func (p *Tpm) ask(ctx context.Context, key protocol.OpKey, params []byte, q *protocol.TpmParams) (*protocol.TpmData, error) {
	if err := p.open(); err != nil {
		return nil, err
	}
	d := &protocol.TpmData{Present: true}
	if q.Identify || len(q.Credential) > 0 {
		if err := p.identify(d, key, params, q); err != nil {
			return nil, err
		}
	}
	if err := alive(ctx); err != nil {
		return nil, err
	}
	nonce := key.Qualifying(params)
	quote, err := tpmattest.Make(p.chip, p.ak, nonce[:], protocol.TpmRegisters)
	if err != nil {
		return nil, err
	}
	d.Quote = &protocol.TpmQuote{Message: quote.Message, Signature: quote.Signature}
	for _, i := range protocol.TpmRegisters {
		v := quote.PCRs[i]
		d.Quote.PCRs = append(d.Quote.PCRs, protocol.TpmPCR{Index: i, Value: hex.EncodeToString(v[:])})
	}
	return d, p.lists(d, q)
}

// open opens the chip and makes the attestation key in it, once.
func (p *Tpm) open() (err error) {
	if p.chip != nil {
		return nil
	}
	if p.chip, err = p.TPM(); err != nil {
		p.chip = nil
		return err
	}
	if p.ak, err = tpmattest.MakePrimary(p.chip, tpm2.TPMRHEndorsement, tpmattest.AKTemplate()); err != nil {
		p.close()
	}
	return err
}

func (p *Tpm) close() {
	if p.chip == nil {
		return
	}
	if p.ak != nil {
		tpmattest.Flush(p.chip, p.ak.Handle)
	}
	p.chip.Close()
	p.chip, p.ak = nil, nil
}

// Close gives the chip back.
func (p *Tpm) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.close()
	return nil
}

// identify makes the endorsement key, which is not kept: a chip holds few. It is the
// one on P-256, also where only the RSA key has a certificate: chips take up to tens
// of seconds to make that one, and the answer would be late.
func (p *Tpm) identify(d *protocol.TpmData, key protocol.OpKey, params []byte, q *protocol.TpmParams) error {
	kind, cert, err := tpmattest.ChooseEK(p.chip, tpmattest.EKECC)
	if err != nil {
		return err
	}
	template, _, err := tpmattest.EKTemplate(kind)
	if err != nil {
		return err
	}
	ek, err := tpmattest.MakePrimary(p.chip, tpm2.TPMRHEndorsement, template)
	if err != nil {
		return err
	}
	defer tpmattest.Flush(p.chip, ek.Handle)
	if q.Identify {
		d.EKKind, d.EK, d.EKCert, d.AK = string(kind), tpm2.Marshal(ek.Public), cert, tpm2.Marshal(p.ak.Public)
	}
	if len(q.Credential) == 0 {
		return nil
	}
	secret, err := tpmattest.Activate(p.chip, *ek, *p.ak, &tpmattest.Challenge{Credential: q.Credential, Secret: q.Secret})
	if err != nil {
		return fmt.Errorf("activate credential: %w", err)
	}
	proof := key.Activated(params, secret)
	clear(secret)
	d.Activated = proof[:]
	return nil
}

// lists reads the event log and IMA's list; a kernel without them has no such files.
func (p *Tpm) lists(d *protocol.TpmData, q *protocol.TpmParams) error {
	if q.Log {
		log, err := p.Special("securityfs", "tpm0/binary_bios_measurements")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if len(log) > protocol.MaxTpmLog {
			return fmt.Errorf("an event log of %d bytes", len(log))
		}
		d.Log = log
	}
	list, err := p.measurements()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	list = list[min(q.ListFrom, int64(len(list))):]
	d.More = len(list) > protocol.MaxTpmIMA
	d.List = slices.Clone(list[:min(len(list), protocol.MaxTpmIMA)])
	return nil
}

// measurements reads IMA's list. Since Linux 6.10 there is one for each hash, of which
// that with SHA-1 in its entries has the old form.
func (p *Tpm) measurements() ([]byte, error) {
	list, err := p.Special("securityfs", "integrity/ima/binary_runtime_measurements_sha1")
	if errors.Is(err, fs.ErrNotExist) {
		return p.Special("securityfs", "integrity/ima/binary_runtime_measurements")
	}
	return list, err
}

// openTPM opens the kernel's TPM 2.0 with a resource manager: what one program
// loads there is gone when it ends. fs.ErrNotExist where there is none.
func (h Host) openTPM() (transport.TPMCloser, error) {
	return linuxtpm.Open(filepath.Join(h.Dev, "tpmrm0"))
}
