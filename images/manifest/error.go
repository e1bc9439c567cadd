package manifest

import "fmt"

// Reasons why a manifest, an envelope, a trust file or an artefact is refused.
// They appear under these names in logs, in events and in the documentation.
const (
	ReasonSize      = "manifest-size"      // a size is over its cap
	ReasonMalformed = "manifest-malformed" // not the one strict encoding, or a value out of its range
	ReasonSignature = "manifest-signature" // no valid signature, or one that does not verify
	ReasonThreshold = "manifest-threshold" // fewer valid signatures than the trust file asks for
	ReasonVersion   = "manifest-version"   // older than the highest version accepted before
	ReasonNotYet    = "manifest-not-yet"   // before not_before
	ReasonExpired   = "manifest-expired"   // at or after not_after
	ReasonTrust     = "trust-malformed"    // the trust file cannot be used
	ReasonKey       = "key-unusable"       // a key file cannot be used
	ReasonFloor     = "floor-unusable"     // the store of the highest version cannot be used
	ReasonArtefact  = "artefact-differs"   // an artefact is not what the manifest describes
)

// Error is a refusal with its typed reason. Detail is for people; it names the
// field, the key or the chunk and never holds secret bytes.
type Error struct {
	Reason string
	Detail string
}

func (e *Error) Error() string { return e.Reason + ": " + e.Detail }

func refuse(reason, format string, args ...any) error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
