package protocol

import (
	"context"
	"io"
	"time"

	"portcullis/images/manifest"
)

// Sizes of what one probe may answer, in bytes. The agent refuses to send more
// and the gateway refuses to read more.
const (
	MaxParams      = 64 << 10 // parameters of one op
	MaxData        = 4 << 20  // Output.Data in a challenge
	MaxEnrolData   = 8 << 20  // Output.Data while a reference is taken; 1.6 MiB is what Debian's kernel text takes
	MaxAnswerData  = 16 << 20 // of all ops of a challenge together: attestd holds it in memory
	MaxOps         = 32       // ops in one challenge
	MaxReasonBytes = 512      // an op's error text, a finding's detail
)

// Probe is the agent's half of an op: it reads the machine and answers. Run is
// called by one goroutine; ctx ends with the challenge's deadline. An error is
// reported to the gateway as the op's failure (reason probe-error).
type Probe interface {
	// Name is the op's name on the wire: lower-case letters, equal to its Expectation's.
	Name() string
	Run(ctx context.Context, key OpKey, params []byte) (Output, error)
}

// Output is what a probe found.
type Output struct {
	// Digest is keyed: OpKey.Digest or OpKey.NewDigest over the bytes that were
	// read. All zero where the op has none.
	Digest [32]byte
	// Data are canonical facts, JSON; at most MaxData (MaxEnrolData while enrolling).
	Data []byte
}

// Expectation is the gateway's half of an op: it chooses what is asked and
// judges what came back. Its methods are called by one goroutine at a time. An
// Expectation that holds files open also implements io.Closer.
type Expectation interface {
	Name() string
	// Params draws the op's random parameters from r (crypto/rand outside of
	// tests). st.CPUClass is empty before the first evidence of a session.
	Params(r io.Reader, st *ImageState) ([]byte, error)
	// Judge compares. No finding means: as expected. It must stand any bytes:
	// the answer comes from a machine that may be hostile.
	Judge(in JudgeInput) []Finding
}

// Enroller is implemented by an Expectation that compares with a reference
// taken on the first boot of an image on a CPU class. Where Enrolled says no,
// the op's normal answer is not judged; the gateway sends one more challenge
// with EnrolParams and hands the answer to Enrol, which stores the reference.
// After that a full challenge is judged before the PC is trusted, and the
// verdict warns that the reference was taken on this boot.
type Enroller interface {
	Expectation
	// Enrolled tells whether the reference for st.Image and st.CPUClass is there.
	Enrolled(st *ImageState, refs References) (bool, error)
	EnrolParams(r io.Reader, st *ImageState) ([]byte, error)
	// Enrol checks the answer as far as the image allows it and stores the
	// reference. Any finding of class Soft or Fatal means it stored nothing.
	Enrol(in JudgeInput) []Finding
}

// Warner is implemented by an Expectation that has something to say beside the
// verdict for as long as it holds. It is asked after each judgement of its op.
type Warner interface {
	Expectation
	Warnings(st *ImageState, refs References) []string
}

// Classifier is implemented by the one Expectation (hw) whose answer names the
// CPU class: what decides how the kernel patches itself at boot (vendor,
// family, model, stepping, microcode, feature words). The class is at most 128
// characters of [a-z0-9.-]. A class that changes within a session, or that
// differs from the one enrolled for this image, is a finding of the gateway.
type Classifier interface {
	Expectation
	CPUClass(out Output) (string, error)
}

// Tier says what the root of a verdict is. They compare as strings.
type Tier string

// Tiers.
const (
	TierSoftware Tier = "T0" // no root of trust in the PC
	TierTPM      Tier = "T1" // a TPM 2.0 that was enrolled
	TierTEE      Tier = "T2" // a confidential virtual machine (TDX, SEV-SNP)
)

// Rooted is implemented by an Expectation that asks a root of trust in the PC.
// Settle is called after the whole answer of a challenge was judged and nothing
// in it failed: the Expectation keeps what Judge has found worth keeping (taken
// tells whether it enrolled the PC just now) and says which tier the session's
// answers have shown.
type Rooted interface {
	Expectation
	Settle(st *ImageState, refs References) (tier Tier, taken bool, err error)
}

// Image is an image that was opened and verified.
type Image struct {
	Dir      string // holds root.img, vmlinuz, initrd
	Manifest *manifest.Manifest
	Digest   [32]byte // SHA-256 of the manifest payload
}

// ImageState is what the gateway knows of the machine that is being judged.
type ImageState struct {
	Image    *Image
	Session  string // boot session id
	MAC      string // of the PC, aa:bb:cc:dd:ee:ff
	Address  string // IPv4 leased to the PC
	CPUClass string // empty until the first evidence
	// Notes belongs to the Expectations: what one of them must remember within
	// a boot session (a boot id, a chain head), keyed by its name. It is empty
	// after a new session or a restart of attestd.
	Notes map[string][]byte
	// Kept is the same for what is a value and not bytes. Nobody changes a value that
	// is in it: another one takes its place.
	Kept map[string]any
}

// Keep puts v into Kept.
func (st *ImageState) Keep(name string, v any) {
	if st.Kept == nil {
		st.Kept = make(map[string]any)
	}
	st.Kept[name] = v
}

// JudgeInput is one answer with all that is needed to judge it.
type JudgeInput struct {
	Key     OpKey
	Params  []byte // as sent
	Output  Output
	Elapsed time.Duration // as the agent's monotonic clock has it
	State   *ImageState
	Refs    References
}

// Class says what a finding does.
type Class int

// Classes of findings.
const (
	Info  Class = iota + 1 // recorded only
	Soft                   // the challenge has failed; might be chance (timing)
	Fatal                  // the challenge has failed; something is not as the image says
)

func (c Class) String() string {
	switch c {
	case Info:
		return "info"
	case Soft:
		return "soft"
	case Fatal:
		return "fatal"
	}
	return "invalid"
}

// Finding is one thing that is not as expected.
type Finding struct {
	Probe  string // the op's name
	Reason string // typed, for instance procs-unknown-executable
	Detail string // names what was found, at most MaxReasonBytes
	Class  Class
}

// References keeps what was enrolled, durable: Put returns after the bytes are
// on the disk, in the place of those that were there. kind names the sort ("ktext"), key what it is of; both are
// [A-Za-z0-9._-], 1 to 128 characters. ReferenceKey names image × CPU class.
type References interface {
	// Get returns the bytes, or an error that is fs.ErrNotExist.
	Get(kind, key string) ([]byte, error)
	// Open is Get for what is too large to hold: read at any offset, then close.
	Open(kind, key string) (Reference, error)
	Put(kind, key string, data []byte) error
	// Write is Put for what is too large to hold: the reference is what fill writes. Where
	// fill fails there is none, or the one before, and Write returns its error.
	Write(kind, key string, fill func(Draft) error) error
}

// Draft is a reference that is being written.
type Draft interface {
	io.ReaderAt
	io.WriterAt
}

// Reference is one open reference.
type Reference interface {
	io.ReaderAt
	io.Closer
	Size() int64
}
