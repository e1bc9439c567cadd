// Package hardware is the Pi's root of trust behind one small interface: a chip
// that knows who it is, gives random bytes, keeps a secret for this machine and
// signs. The backends are packages below it; pi-init and the root commands call them.
package hardware

import (
	"context"
	"encoding/json"
	"errors"
	"time"
)

// Backend names a kind of chip. It stands in tokens, events and documents by this name.
type Backend string

// Backends.
const (
	BackendTPM2     Backend = "tpm2"     // TPM 2.0 behind /dev/tpmrm0
	BackendZymbit   Backend = "zymbit"   // Zymkey, HSM4, HSM6, SCM
	BackendCombined Backend = "combined" // a TPM and a Zymbit module, both needed
	BackendFake     Backend = "fake"     // tests; a release image cannot use it
)

// Identity is what a chip says of itself. Nothing in it is proven by asking.
type Identity struct {
	Backend      Backend `json:"backend"`
	Manufacturer string  `json:"manufacturer,omitempty"`
	Model        string  `json:"model,omitempty"`
	Firmware     string  `json:"firmware,omitempty"`
	Serial       string  `json:"serial,omitempty"`
	// UnverifiedOnHardware is true for a backend that has only met its fake.
	UnverifiedOnHardware bool `json:"unverified_on_hardware,omitempty"`
}

// Root is one root of trust. Implementations are not safe for concurrent use.
type Root interface {
	// Identify asks the chip who it is.
	Identify(ctx context.Context) (Identity, error)
	// Random returns n bytes from the chip, 1 to 512. Callers mix them with the
	// kernel's own.
	Random(ctx context.Context, n int) ([]byte, error)
	// Seal binds secret (1 to 64 bytes) to this chip under label. The blob is
	// public: it is stored in a LUKS2 token.
	Seal(ctx context.Context, label string, secret []byte) (json.RawMessage, error)
	// Unseal gives the secret back where the chip's policy allows it now.
	Unseal(ctx context.Context, label string, blob json.RawMessage) ([]byte, error)
	// Sign signs a SHA-256 digest with the chip's device key (ECDSA P-256, ASN.1).
	Sign(ctx context.Context, digest [32]byte) ([]byte, error)
	// Forget makes the chip unable to unseal blob ever again, where it can.
	Forget(ctx context.Context, blob json.RawMessage) error
	// Tampers reports what the chip's own detectors see until ctx ends. A chip
	// without detectors returns a closed channel.
	Tampers(ctx context.Context) (<-chan Tamper, error)
	// Indicate shows a state on the chip's own LED, where it has one.
	Indicate(ctx context.Context, s Indication) error
	Close() error
}

// Capper is a Root whose policy can be closed until the next power cycle, so that a
// later root compromise cannot unseal again.
type Capper interface {
	Cap(ctx context.Context) error
}

// Renewer is a Root that can take back what it sealed before, once what takes its place
// is stored: copies of the card that were made before then open nothing any more.
type Renewer interface {
	// SealAfter is Seal for a blob that goes on working behind Revoke. before are the
	// blobs whose place it takes; what they open stays so until Revoke.
	SealAfter(ctx context.Context, label string, secret []byte, before []json.RawMessage) (json.RawMessage, error)
	// Revoke ends every blob that was sealed before this one. It can be interrupted
	// and repeated.
	Revoke(ctx context.Context, blob json.RawMessage) error
}

// Tamper is one event of a tamper detector.
type Tamper struct {
	Time   time.Time `json:"time"`
	Source string    `json:"source"` // perimeter-1, chassis, …
	Detail string    `json:"detail,omitempty"`
}

// Indication is what a status light shows.
type Indication string

// Indications.
const (
	IndicateOff      Indication = "off"
	IndicateStarting Indication = "starting"
	IndicateReady    Indication = "ready"
	IndicateWarning  Indication = "warning"
	IndicateAlarm    Indication = "alarm"
)

// Reason classifies a refusal of a chip; the same word in logs and documents.
type Reason string

// Reasons that every backend shares; backends add their own.
const (
	ReasonAbsent      Reason = "root-absent"       // no such chip here
	ReasonPolicy      Reason = "root-policy"       // the chip's policy does not hold: other software, other state, older version
	ReasonForeignBlob Reason = "root-foreign-blob" // sealed by another chip
	ReasonBadBlob     Reason = "root-bad-blob"     // cannot be read
	ReasonLockout     Reason = "root-lockout"      // the chip refuses for a while after wrong attempts
	ReasonBusy        Reason = "root-busy"         // somebody else has it, or it did not answer in time
	ReasonFailed      Reason = "root-failed"       // the chip answered with an error of its own
	ReasonUnsupported Reason = "root-unsupported"  // this backend cannot do that
)

// Error is a refusal with its reason.
type Error struct {
	Reason Reason
	Err    error
}

func (e *Error) Error() string { return string(e.Reason) + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf returns the reason in err's chain, ReasonFailed where there is none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonFailed
}
