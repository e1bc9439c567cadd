package luks2

import (
	"errors"
	"fmt"
)

// Reason classifies a refusal; the same word in logs and documents.
type Reason string

// Reasons.
const (
	ReasonNoHeader    Reason = "luks2-no-header"    // no copy of a LUKS2 header is there
	ReasonBadHeader   Reason = "luks2-bad-header"   // a header is there, but no copy has a right checksum
	ReasonMetadata    Reason = "luks2-metadata"     // the checksum is right, but the metadata break a rule of the format
	ReasonUnfinished  Reason = "luks2-unfinished"   // encryption, decryption or re-encryption was begun and not finished
	ReasonRequirement Reason = "luks2-requirement"  // a mandatory requirement is not known
	ReasonUnsupported Reason = "luks2-unsupported"  // valid, but outside what this package understands
	ReasonCost        Reason = "luks2-kdf-cost"     // a keyslot asks for more memory or time than allowed here
	ReasonPassphrase  Reason = "luks2-passphrase"   // no keyslot opens with it
	ReasonNoSlot      Reason = "luks2-no-slot"      // no such keyslot or token
	ReasonFull        Reason = "luks2-full"         // no number, area or JSON space left
	ReasonStale       Reason = "luks2-stale"        // the header on the device is newer than the one in memory
	ReasonSize        Reason = "luks2-size"         // the device does not fit the volume
	ReasonRecoveryKey Reason = "luks2-recovery-key" // what was typed is not a recovery key
	ReasonDevice      Reason = "luks2-device"       // reading or writing the device failed
	ReasonUsage       Reason = "luks2-usage"        // the caller asked for something impossible
)

// Error is a refusal with its reason.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason in err's chain, "" where there is none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func refuse(r Reason, format string, args ...any) error {
	return &Error{r, fmt.Errorf(format, args...)}
}
