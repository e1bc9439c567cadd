package piinit

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
)

// chipState is what a chip keeps without power.
type chipState struct {
	seed    [32]byte
	counter uint64
	sealed  uint64 // blobs
	ak      bool   // the attestation key is kept in it
}

// chip is a TPM as far as pi-init sees it.
type chip struct {
	state   chipState
	pcrs    map[int][32]byte
	config  tpm2.Config
	unseals int
	broken  error // every call answers with it
	deaf    error // Identify answers with it
}

func newChip() *chip {
	c := &chip{pcrs: map[int][32]byte{}}
	rand.Read(c.state.seed[:])
	return c
}

// reboot is a power cycle with the memory that is given.
func (c *chip) reboot(s chipState) *chip { return &chip{state: s, pcrs: map[int][32]byte{}} }

func chipError(r hardware.Reason, format string, args ...any) error {
	return &hardware.Error{Reason: r, Err: fmt.Errorf(format, args...)}
}

func (c *chip) Identify(context.Context) (hardware.Identity, error) {
	return hardware.Identity{Backend: hardware.BackendTPM2, Manufacturer: "SIM", Model: "chip"}, errors.Join(c.deaf, c.broken)
}

func (c *chip) Random(_ context.Context, n int) ([]byte, error) {
	b := make([]byte, n)
	rand.Read(b)
	return b, c.broken
}

func (c *chip) aead() cipher.AEAD {
	k, err := aes.NewCipher(c.state.seed[:])
	if err != nil {
		panic(err)
	}
	a, err := cipher.NewGCM(k)
	if err != nil {
		panic(err)
	}
	return a
}

// allowed is what the chip's policy says now.
func (c *chip) allowed() error {
	if c.config.Policy == nil {
		return chipError(tpm2.ReasonPolicyFile, "no policy")
	}
	s := c.config.Policy.Branch(c.config.Platform)
	if s == nil {
		return chipError(tpm2.ReasonPolicyFile, "no branch for %s", c.config.Platform)
	}
	if err := s.Verify(c.config.PolicyKey); err != nil {
		return chipError(tpm2.ReasonPolicyFile, "%v", err)
	}
	if c.state.counter > s.Sequence {
		return chipError(hardware.ReasonPolicy, "counter %d, release %d", c.state.counter, s.Sequence)
	}
	for i, want := range s.PCRs {
		if c.pcrs[i] != want {
			return chipError(hardware.ReasonPolicy, "register %d", i)
		}
	}
	return nil
}

func (c *chip) Seal(_ context.Context, label string, secret []byte) (json.RawMessage, error) {
	if err := c.allowed(); err != nil {
		return nil, err
	}
	c.state.sealed++
	nonce := make([]byte, 12)
	rand.Read(nonce)
	return json.Marshal(append(nonce, c.aead().Seal(nil, nonce, secret, []byte(label+string(c.config.Platform)))...))
}

func (c *chip) Unseal(_ context.Context, label string, blob json.RawMessage) ([]byte, error) {
	c.unseals++
	if c.broken != nil {
		return nil, c.broken
	}
	var b []byte
	if err := json.Unmarshal(blob, &b); err != nil || len(b) < 12 {
		return nil, chipError(hardware.ReasonBadBlob, "%v", err)
	}
	if err := c.allowed(); err != nil {
		return nil, err
	}
	secret, err := c.aead().Open(nil, b[:12], b[12:], []byte(label+string(c.config.Platform)))
	if err != nil {
		return nil, chipError(hardware.ReasonForeignBlob, "%v", err)
	}
	return secret, nil
}

func (c *chip) Sign(context.Context, [32]byte) ([]byte, error)          { return nil, c.broken }
func (c *chip) Forget(context.Context, json.RawMessage) error           { return c.broken }
func (c *chip) Tampers(context.Context) (<-chan hardware.Tamper, error) { return nil, c.broken }
func (c *chip) Indicate(context.Context, hardware.Indication) error     { return c.broken }
func (c *chip) Close() error                                            { return nil }
func (c *chip) SetupLockout(context.Context, tpm2.Lockout) error        { return c.broken }
func (c *chip) ReadPCR(_ context.Context, pcr int) ([32]byte, error)    { return c.pcrs[pcr], nil }
func (c *chip) Extend(_ context.Context, pcr int, data []byte) error {
	if c.broken != nil {
		return c.broken
	}
	c.pcrs[pcr] = tpmpolicy.Extend(c.pcrs[pcr], data)
	return nil
}
func (c *chip) Cap(ctx context.Context) error {
	return c.Extend(ctx, card.PCRPhase, []byte(card.PhaseLeave))
}

func (c *chip) MeasureVolumeKey(ctx context.Context, name, uuid string, mac func(crypto.Hash, []byte) ([]byte, error)) error {
	d, err := mac(crypto.SHA256, []byte("cryptsetup:"+name+":"+uuid))
	if err != nil {
		return err
	}
	return c.Extend(ctx, card.PCRVolumeKey, d)
}

func (c *chip) Past(context.Context) (tpm2.Past, error) {
	return tpm2.Past{Attested: c.state.ak, Sealed: c.state.sealed, Released: c.state.counter}, c.broken
}

func (c *chip) KeepAttestationKey(context.Context) error {
	c.state.ak = c.broken == nil
	return c.broken
}

func (c *chip) Counter(context.Context) (uint64, error) { return c.state.counter, c.broken }

func (c *chip) RaiseCounter(_ context.Context, to uint64) error {
	if c.state.counter > to {
		return chipError(tpm2.ReasonCounterAhead, "%d over %d", c.state.counter, to)
	}
	c.state.counter = to
	return nil
}
