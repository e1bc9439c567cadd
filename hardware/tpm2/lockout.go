package tpm2

import (
	"context"
	"errors"
	"fmt"
	"time"

	"portcullis/hardware"

	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
)

// Lockout are the dictionary-attack parameters. They guard objects with a PIN
// (systemd-tpm2 with tpm2-pin); what we seal has no password to guess.
type Lockout struct {
	MaxTries uint32        // wrong attempts until the chip refuses
	Recovery time.Duration // until one attempt is given back, whole seconds
	Reset    time.Duration // until the lockout authorisation may be tried again
}

// DefaultLockout gives 31 attempts, and one more every ten minutes: about 52,000 guesses a year.
var DefaultLockout = Lockout{MaxTries: 31, Recovery: 10 * time.Minute, Reset: 24 * time.Hour}

// SetupLockout sets the parameters with the empty lockout password. Where the
// owner has set one the chip refuses, with root-failed.
func (t *TPM) SetupLockout(ctx context.Context, l Lockout) error {
	if l.MaxTries < 1 || l.Recovery < time.Second || l.Reset < time.Second {
		return fmt.Errorf("lockout: %+v would lock nobody out", l)
	}
	return t.do(ctx, "lockout parameters", func() error {
		// The command is not in go-tpm's direct API.
		err := legacy.DictionaryAttackParameters(&pipe{link: t.link},
			legacy.AuthCommand{Session: legacy.HandlePasswordSession, Attributes: legacy.AttrContinueSession},
			l.MaxTries, uint32(l.Recovery/time.Second), uint32(l.Reset/time.Second))
		return legacyError(err)
	})
}

// LockoutState returns the parameters in force and how many attempts are counted.
func (t *TPM) LockoutState(ctx context.Context) (l Lockout, failed uint32, err error) {
	err = t.do(ctx, "lockout state", func() error {
		p, err := t.properties(tpm2.TPMPTLockoutCounter, 4)
		if err != nil {
			return err
		}
		failed = p[tpm2.TPMPTLockoutCounter]
		l = Lockout{p[tpm2.TPMPTMaxAuthFail], time.Duration(p[tpm2.TPMPTLockoutInterval]) * time.Second, time.Duration(p[tpm2.TPMPTLockoutRecovery]) * time.Second}
		return nil
	})
	return l, failed, err
}

// legacyError gives the one error of go-tpm's older half that has a reason its reason.
func legacyError(err error) error {
	var w legacy.Warning
	if errors.As(err, &w) && w.Code == legacy.RCLockout {
		return &hardware.Error{Reason: hardware.ReasonLockout, Err: err}
	}
	return err
}

// pipe is the link as go-tpm's older half wants it. Its own adapter ends every
// answer with io.EOF, which that half takes for an error.
type pipe struct {
	link   *link
	answer []byte
}

func (p *pipe) Write(command []byte) (n int, err error) {
	p.answer, err = p.link.Send(command)
	if err != nil {
		return 0, err
	}
	return len(command), nil
}

func (p *pipe) Read(b []byte) (int, error) {
	n := copy(b, p.answer)
	p.answer = p.answer[n:]
	return n, nil
}
