package protocol

// Reasons why a claim is refused by attestd. pxed's own (claim-late,
// claim-double, …) pass through under their names.
const (
	ClaimMalformed   = "claim-malformed"   // does not decode, wrong sizes
	ClaimTimeout     = "claim-timeout"     // no claim in time
	ClaimKey         = "claim-key"         // claims for another key than the connection's
	ClaimBinding     = "claim-binding"     // the connection has no exporter
	ClaimSignature   = "claim-signature"   // not signed for this connection by that key
	ClaimImage       = "claim-image"       // not the image that is served
	ClaimSession     = "claim-session"     // unknown, not the newest, void or ended
	ClaimEpoch       = "claim-epoch"       // does not continue this session's epochs: another holder of the key, or an old state
	ClaimUnavailable = "claim-unavailable" // pxed does not answer; try again
)

// Reasons why evidence fails.
const (
	EvidenceLate       = "evidence-late"       // not there at the deadline
	EvidenceSlow       = "evidence-slow"       // within the deadline, but slower than was learned
	EvidenceMissing    = "evidence-missing"    // the connection ended with a challenge open
	EvidenceReplayed   = "evidence-replayed"   // its challenge has been answered before
	EvidenceUnknown    = "evidence-unknown"    // answers no challenge of this connection
	EvidenceOrder      = "evidence-order"      // right challenge, wrong sequence number
	EvidenceMalformed  = "evidence-malformed"  // does not decode, wrong sizes, bad chunks
	EvidenceIncomplete = "evidence-incomplete" // other ops than asked, or in another order
	EvidenceChain      = "evidence-chain"      // does not continue the chain
	EvidenceSignature  = "evidence-signature"  // not signed by the claim's key for this challenge
	EvidenceRekey      = "evidence-rekey"      // asked for a new connection, the agent made none
	EvidenceTime       = "evidence-time"       // its clock ran backwards or says more than passed here
)

// Reasons of findings that no single Expectation makes.
const (
	ProbeError      = "probe-error"       // the agent could not run the op
	ProbeUnjudged   = "probe-unjudged"    // the gateway could not judge: its own fault, named in the detail
	FindingsMore    = "op-more"           // the rest of more findings than are listed, in the class of the worst of them
	CPUClassInvalid = "cpu-class-invalid" // the answer names no class
	CPUClassChanged = "cpu-class-changed" // another CPU, microcode or feature set than before
)
