package record

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func image(c string) approval.Image {
	return approval.Image{Manifest: digest(c), Config: digest("b"), Layers: []string{digest("c"), digest("d")}}
}

// now is when the tests take place.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

type rig struct {
	*Record
	t         testing.TB
	options   Options
	clock     *clock
	signers   []crypto.Signer
	approvers approval.Approvers
}

func keys(t testing.TB, n int) (signers []crypto.Signer, public []ed25519.PublicKey) {
	t.Helper()
	for range n {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signers, public = append(signers, key), append(public, pub)
	}
	return signers, public
}

// newRig opens a log with two of three approvers needed, one for a revocation.
func newRig(t testing.TB) *rig {
	t.Helper()
	signers, public := keys(t, 3)
	logKey, _ := keys(t, 1)
	r := &rig{t: t, clock: &clock{at: now}, signers: signers, approvers: approval.Approvers{Threshold: 2, RevokeThreshold: 1, Keys: public}}
	r.options = Options{Dir: t.TempDir(), Key: logKey[0].(ed25519.PrivateKey), Approvers: r.approvers, Now: r.clock.now}
	r.open()
	return r
}

func (r *rig) open() {
	r.t.Helper()
	rec, err := Open(r.options)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Record = rec
	r.t.Cleanup(func() { rec.Close() })
}

func (r *rig) reopen() {
	r.t.Helper()
	if err := r.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

func pxed(version uint64, c string) approval.Approval {
	return approval.Approval{
		Schema: approval.Schema, Name: "pxed", Version: version, Purpose: "service/pxed", Image: image(c),
		Profile:   approval.Profile{User: "972:972", Capabilities: []string{"CAP_NET_RAW"}, Network: approval.NetworkHost, Limits: approval.Limits{MemoryBytes: 64 << 20, Pids: 64, MilliCPU: 500}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
}

func (r *rig) sign(a approval.Approval) []byte {
	r.t.Helper()
	b, err := a.Sign(r.signers[0], r.signers[1])
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func (r *rig) approve(a approval.Approval) Added {
	r.t.Helper()
	added, err := r.Add(r.sign(a))
	if err != nil {
		r.t.Fatal(err)
	}
	return added
}

func (r *rig) revocation(v approval.Revocation) []byte {
	r.t.Helper()
	v.Schema, v.Why, v.Issued = approval.RevocationSchema, "for the test", now
	b, err := v.Sign(r.signers[2])
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

func start(a approval.Approval) approval.Request {
	profile := a.Profile
	return approval.Request{Action: approval.Start, Image: a.Image, Purpose: a.Purpose, Profile: &profile, Caller: "uid 0"}
}

func load(a approval.Approval) approval.Request {
	return approval.Request{Action: approval.Load, Image: a.Image, Caller: "uid 0"}
}

// entries reads the log as it is on the disk.
func (r *rig) entries() (out []*Entry) {
	r.t.Helper()
	if err := r.log.Publish(); err != nil {
		r.t.Fatal(err)
	}
	reader, err := r.Reader()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := reader.Audit(func(_ int64, b []byte) error {
		e, err := ParseEntry(b)
		out = append(out, e)
		return err
	}); err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) last() *Entry {
	all := r.entries()
	return all[len(all)-1]
}

func (r *rig) wants(what string, q approval.Request, reason string) {
	r.t.Helper()
	p, err := r.Decide(q)
	if approval.Reason(err) != reason || reason == "" && err != nil || reason != "" && p.Approval != "" {
		r.t.Errorf("%s: %+v %v, want %q", what, p, err, reason)
	}
}

// audit is what another node does with a copy.
func (r *rig) audit(o AuditOptions) (*Report, error) {
	r.t.Helper()
	if err := r.log.Publish(); err != nil {
		r.t.Fatal(err)
	}
	reader, err := translog.NewReader(os.DirFS(r.options.Dir), r.key)
	if err != nil {
		r.t.Fatal(err)
	}
	o.Files = os.DirFS(r.options.Dir)
	return Audit(reader, r.key, o)
}
