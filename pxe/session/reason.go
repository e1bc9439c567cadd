package session

// Reasons, under these names in events, answers and documents.
const (
	// Why a boot request is not answered.
	ReasonRate    = "session-rate"        // too many boots in a row
	ReasonGateway = "gateway-unreachable" // trust could not be ended, so nothing is offered
	ReasonJournal = "journal-failed"      // the session could not be recorded

	// Why an artefact is not served.
	ReasonUnknown    = "session-unknown"
	ReasonSuperseded = "session-superseded" // a newer session took its place
	ReasonVoid       = "session-void"
	ReasonClosed     = "session-closed"       // claimed: the boot is done
	ReasonNotOffered = "artefact-not-offered" // this way of booting does not need it

	// Why a claim is refused, beside those above.
	ReasonKeyInvalid = "key-invalid"
	ReasonKeyUsed    = "key-used"             // in another session
	ReasonIncomplete = "artefacts-incomplete" // a mandatory artefact was not served whole
	ReasonLate       = "claim-late"           // after the window that the last byte opened
	ReasonUptime     = "uptime-impossible"    // the kernel claims to be older than what it was loaded from
	ReasonManifest   = "manifest-mismatch"
	ReasonDouble     = "claim-double" // another key claimed before; the session is void now
	ReasonLedger     = "ledger-failed"

	// Why a session ended or is void.
	EndBootRequest = "boot-request"  // the PC asked for a boot again
	EndImageGone   = "image-changed" // restarted with another image
	EndReleased    = "released"
	EndDeclined    = "address-declined"
	VoidArtefact   = "artefact-differs" // a byte was not what the manifest says
	VoidQuota      = "served-too-often" // it was sent many times over
)

// Refusal is a typed reason as an error; Err may be nil.
type Refusal struct {
	Reason string
	Err    error
}

func (r *Refusal) Error() string {
	if r.Err == nil {
		return r.Reason
	}
	return r.Reason + ": " + r.Err.Error()
}

func (r *Refusal) Unwrap() error { return r.Err }
