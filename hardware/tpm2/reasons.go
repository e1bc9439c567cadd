package tpm2

import (
	"context"
	"errors"
	"fmt"

	"portcullis/hardware"
	"portcullis/hardware/tpmpolicy"

	"github.com/google/go-tpm/tpm2"
)

// Reasons of this backend, beside those of package hardware.
const (
	ReasonPCREmpty      hardware.Reason = "pcr-empty"        // a register of the policy holds nothing: nobody measured
	ReasonCounterAhead  hardware.Reason = "counter-ahead"    // the chip has accepted a newer release
	ReasonCounterFar    hardware.Reason = "counter-far"      // more than MaxIncrements to go
	ReasonHandleForeign hardware.Reason = "handle-foreign"   // something else is stored at a handle that we need
	ReasonForgotten     hardware.Reason = "blob-forgotten"   // Forget was called after the blob was sealed
	ReasonPolicyFile    hardware.Reason = "policy-signature" // policy.json is not of the release's policy key, or not for this platform
)

func refuse(r hardware.Reason, format string, a ...any) error {
	return &hardware.Error{Reason: r, Err: fmt.Errorf(format, a...)}
}

// reasoned gives an error its reason, and says what was tried.
func reasoned(what string, err error) error {
	if err == nil {
		return nil
	}
	var e *hardware.Error
	if errors.As(err, &e) {
		return &hardware.Error{Reason: e.Reason, Err: fmt.Errorf("%s: %w", what, e.Err)}
	}
	return &hardware.Error{Reason: reasonOf(err), Err: fmt.Errorf("%s: %w", what, err)}
}

// reasonOf maps what a chip answers (Part 2, 6.6) where it means the same in every
// command. Commands with a meaning of their own map first.
func reasonOf(err error) hardware.Reason {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return hardware.ReasonBusy
	}
	if errors.Is(err, tpmpolicy.ErrSignature) {
		return ReasonPolicyFile
	}
	for _, m := range []struct {
		code   tpm2.TPMRC
		reason hardware.Reason
	}{
		{tpm2.TPMRCPolicyFail, hardware.ReasonPolicy},
		{tpm2.TPMRCPolicy, hardware.ReasonPolicy},
		{tpm2.TPMRCPCRChanged, hardware.ReasonPolicy}, // a register changed between check and use
		{tpm2.TPMRCLockout, hardware.ReasonLockout},
		{tpm2.TPMRCIntegrity, hardware.ReasonForeignBlob},
		{tpm2.TPMRCRetry, hardware.ReasonBusy},
		{tpm2.TPMRCYielded, hardware.ReasonBusy},
		{tpm2.TPMRCTesting, hardware.ReasonBusy},
		{tpm2.TPMRCNVRate, hardware.ReasonBusy},
		{tpm2.TPMRCSessionMemory, hardware.ReasonBusy},
		{tpm2.TPMRCSessionHandles, hardware.ReasonBusy},
		{tpm2.TPMRCObjectMemory, hardware.ReasonBusy},
		{tpm2.TPMRCObjectHandles, hardware.ReasonBusy},
	} {
		if errors.Is(err, m.code) {
			return m.reason
		}
	}
	return hardware.ReasonFailed
}

// as gives err the reason r where the chip answered with one of codes.
func as(err error, r hardware.Reason, codes ...tpm2.TPMRC) error {
	for _, c := range codes {
		if errors.Is(err, c) {
			return &hardware.Error{Reason: r, Err: err}
		}
	}
	return err
}
