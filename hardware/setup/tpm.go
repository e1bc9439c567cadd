package setup

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
)

// ReasonHandle: a handle that we would use holds something else.
const ReasonHandle hardware.Reason = "setup-handle"

// PrepareTPM checks that every handle is free or ours, sets the dictionary-attack
// parameters, and makes the storage, endorsement and attestation keys where they are
// missing. It proves at the end that the attestation key quotes.
func PrepareTPM(ctx context.Context, device string, c tpm2.Config, now time.Time, say func(string)) (*TPM, error) {
	t, err := tpm2.Open(device, c)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	r := &TPM{Done: now.UTC(), Device: device, Handles: map[string]string{}}
	if r.Identity, err = t.Identify(ctx); err != nil {
		return nil, err
	}
	say(fmt.Sprintf("chip: %s %s, firmware %s", r.Identity.Manufacturer, r.Identity.Model, r.Identity.Firmware))
	handles, err := t.Handles(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range handles {
		r.Handles[h.Name] = fmt.Sprintf("%#x", h.Handle)
		say(fmt.Sprintf("handle %#x (%s): %s", h.Handle, h.Name, h.State))
		if h.State == tpm2.HandleForeign {
			return nil, &hardware.Error{Reason: ReasonHandle, Err: fmt.Errorf("%#x holds something that is not our %s; choose another with --%s", h.Handle, h.Name, h.Name)}
		}
	}
	say("dictionary-attack parameters")
	if now, _, err := t.LockoutState(ctx); err != nil {
		return nil, err
	} else if now != tpm2.DefaultLockout {
		if err := t.SetupLockout(ctx, tpm2.DefaultLockout); err != nil {
			return nil, err
		}
	}
	say("endorsement and attestation keys")
	e, err := t.Enrol(ctx, "")
	if err != nil {
		return nil, err
	}
	ek, ak := sha256.Sum256(e.EK), sha256.Sum256(e.AK)
	r.EK, r.AK = hex.EncodeToString(ek[:]), hex.EncodeToString(ak[:])
	if err := quote(ctx, t, e); err != nil {
		return nil, err
	}
	return r, nil
}

func quote(ctx context.Context, t *tpm2.TPM, e *tpm2.Enrolment) error {
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		return err
	}
	pcrs := []int{8, 9, 11}
	q, err := t.Quote(ctx, nonce, pcrs)
	if err != nil {
		return err
	}
	if _, err := tpm2.VerifyQuote(e.AK, q, nonce, pcrs); err != nil {
		return &hardware.Error{Reason: hardware.ReasonFailed, Err: fmt.Errorf("the chip's own quote: %w", err)}
	}
	return nil
}

// Config is base with the handles that were set up.
func (t *TPM) Config(base tpm2.Config) tpm2.Config {
	for name, h := range map[string]*uint32{"srk": &base.SRK, "ak": &base.AK, "counter": &base.NVIndex, "revocation": &base.Revocation} {
		if n, err := strconv.ParseUint(t.Handles[name], 0, 32); err == nil {
			*h = uint32(n)
		}
	}
	return base
}

// Check is one line of a test.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// TestTPM exercises a TPM without changing what it keeps.
func TestTPM(ctx context.Context, device string, c tpm2.Config) []Check {
	t, err := tpm2.Open(device, c)
	if err != nil {
		return []Check{{"open " + device, false, err.Error()}}
	}
	defer t.Close()
	var checks []Check
	add := func(name string, f func() (string, error)) {
		detail, err := f()
		if err != nil {
			detail = err.Error()
		}
		checks = append(checks, Check{name, err == nil, detail})
	}
	add("identity", func() (string, error) {
		id, err := t.Identify(ctx)
		return id.Manufacturer + " " + id.Model + " " + id.Firmware, err
	})
	add("random", func() (string, error) { return "32 bytes, twice, different", testRandom(ctx, t) })
	add("handles", func() (string, error) {
		hs, err := t.Handles(ctx)
		detail := ""
		for _, h := range hs {
			detail += fmt.Sprintf("%s %#x %s; ", h.Name, h.Handle, h.State)
			if h.State == tpm2.HandleForeign {
				err = errors.Join(err, fmt.Errorf("%#x is not our %s", h.Handle, h.Name))
			}
		}
		return detail, err
	})
	add("signature", func() (string, error) {
		key, err := t.DeviceKey(ctx)
		if err != nil {
			return "", err
		}
		digest := sha256.Sum256([]byte("portcullis root test"))
		sig, err := t.Sign(ctx, digest)
		if err == nil && !ecdsa.VerifyASN1(key, digest[:], sig) {
			err = errors.New("it does not verify")
		}
		return "ECDSA P-256", err
	})
	add("lockout", func() (string, error) {
		l, failed, err := t.LockoutState(ctx)
		return fmt.Sprintf("%d of %d wrong tries, one given back every %s", failed, l.MaxTries, l.Recovery), err
	})
	add("release counter", func() (string, error) {
		n, err := t.Counter(ctx)
		return fmt.Sprintf("%d", n), err
	})
	return checks
}

func testRandom(ctx context.Context, r hardware.Root) error {
	a, err := r.Random(ctx, 32)
	if err != nil {
		return err
	}
	b, err := r.Random(ctx, 32)
	if err != nil {
		return err
	}
	if len(a) != 32 || bytes.Equal(a, b) || bytes.Equal(a, make([]byte, 32)) {
		return errors.New("the bytes repeat")
	}
	return nil
}
