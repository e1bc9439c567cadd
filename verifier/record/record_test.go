package record

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"portcullis/verifier/approval"
)

func TestApprovedImageIsPermittedAndRecorded(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.wants("before it is approved", load(a), approval.ReasonUnapproved)
	added := r.approve(a)
	again := r.approve(a)
	if !added.New || again.New || again.Index != added.Index {
		t.Errorf("added %+v, again %+v", added, again)
	}
	r.wants("load", load(a), "")
	if e := r.last(); e.Permission == nil || e.Permission.Action != approval.Load || e.Permission.Approval != added.Digest || !e.Permission.Image.Equal(a.Image) {
		t.Errorf("the log's last entry is %+v", e)
	}
	q := start(a)
	q.Profile.Capabilities = nil
	p, err := r.Decide(q)
	if err != nil {
		t.Fatal(err)
	}
	if e := r.last(); e.Permission == nil || e.Permission.Profile == nil || len(e.Permission.Profile.Capabilities) != 0 || e.Permission.Purpose != "service/pxed" {
		t.Errorf("the log's last entry is %+v", e)
	}
	if p.Name != "pxed" || p.Version != 1 || p.Index != int64(len(r.entries())-1) || len(p.Profile.Capabilities) != 0 {
		t.Errorf("permission %+v", p)
	}
	for _, id := range []string{a.Image.Manifest, a.Image.Config} {
		if i, err := r.Resolve(id, a.Image.Layers); err != nil || !i.Equal(a.Image) {
			t.Errorf("%s: %+v %v", id, i, err)
		}
		if _, err := r.Resolve(id, a.Image.Layers[:1]); approval.Reason(err) != approval.ReasonDiffers {
			t.Errorf("%s with other layers: %v", id, err)
		}
	}
	report, err := r.audit(AuditOptions{Approvers: []approval.Approvers{r.approvers}})
	if err != nil || report.Kinds[KindPermission] != 2 || report.Kinds[KindRefusal] != 1 || !report.Pinned {
		t.Errorf("audit: %+v %v", report, err)
	}
}

// What does not run, and the reason that is in the log for it.
func TestInvariant07_OnlyWhatTheLogApproves(t *testing.T) {
	r := newRig(t)
	a := pxed(3, "1")
	r.approve(a)
	early := pxed(1, "2")
	early.Name, early.NotBefore = "early", now.Add(time.Hour)
	r.approve(early)
	short := pxed(1, "3")
	short.Name, short.NotAfter = "short", now.Add(time.Minute)
	r.approve(short)
	older := pxed(2, "4")
	r.approve(older)
	gone := pxed(1, "5")
	gone.Name = "gone"
	taken := r.approve(gone)
	bad := pxed(1, "6")
	bad.Name = "bad"
	r.approve(bad)
	for _, v := range []approval.Revocation{{Approval: taken.Digest}, {Image: bad.Image.Manifest}, {Image: digest("9")}} {
		if _, err := r.Add(r.revocation(v)); err != nil {
			t.Fatal(err)
		}
	}
	later := bad
	later.Version = 2
	r.approve(later) // of an image that was revoked
	r.clock.add(2 * time.Minute)
	with := func(q approval.Request, change func(*approval.Request)) approval.Request {
		change(&q)
		return q
	}
	for _, c := range []struct {
		name, reason string
		q            approval.Request
	}{
		{"an image that nobody approved", approval.ReasonUnapproved, approval.Request{Action: approval.Load, Image: approval.Image{Manifest: digest("8"), Config: digest("8"), Layers: []string{digest("c")}}}},
		{"an approved manifest with other layers", approval.ReasonDiffers, with(load(a), func(q *approval.Request) { q.Image.Layers = []string{digest("c")} })},
		{"layers in another order", approval.ReasonDiffers, with(load(a), func(q *approval.Request) { q.Image.Layers = []string{digest("d"), digest("c")} })},
		{"an approved configuration under another manifest", approval.ReasonDiffers, load(pxed(1, "7"))},
		{"before its time", approval.ReasonNotYet, load(early)},
		{"after its time", approval.ReasonExpired, load(short)},
		{"an older version", approval.ReasonOlder, load(older)},
		{"a revoked approval", approval.ReasonRevoked, load(gone)},
		{"a revoked image", approval.ReasonRevoked, load(bad)},
		{"a revoked image that was never approved", approval.ReasonRevoked, load(pxed(1, "9"))},
		{"another purpose", approval.ReasonPurpose, with(start(a), func(q *approval.Request) { q.Purpose = "task" })},
		{"a profile that is none", approval.ReasonMalformed, with(start(a), func(q *approval.Request) { q.Profile.User = "root" })},
		{"no profile", approval.ReasonProfile, with(start(a), func(q *approval.Request) { q.Profile = nil })},
		{"a wider profile", approval.ReasonProfile, with(start(a), func(q *approval.Request) { q.Profile.Capabilities = []string{"CAP_SYS_ADMIN"} })},
	} {
		r.wants(c.name, c.q, c.reason)
		if e := r.last(); e.Refusal == nil || e.Refusal.Reason != c.reason {
			t.Errorf("%s: the log's last entry is %+v", c.name, e)
		}
	}
	r.wants("the approved one", start(a), "")
	if _, err := r.audit(AuditOptions{}); err != nil {
		t.Error(err)
	}
}

func TestRevocationIsToldAtOnce(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	added := r.approve(a)
	r.wants("before", start(a), "")
	if err := r.Holds(added.Digest); err != nil {
		t.Error(err)
	}
	changed := r.Changed()
	if _, err := r.Add(r.revocation(approval.Revocation{Approval: added.Digest})); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if err := r.Holds(added.Digest); approval.Reason(err) != approval.ReasonRevoked {
		t.Error(err)
	}
	r.wants("after", start(a), approval.ReasonRevoked)
	r.reopen()
	r.wants("after a restart", start(a), approval.ReasonRevoked)
	if again, err := r.Add(r.revocation(approval.Revocation{Approval: added.Digest})); err != nil || again.New {
		t.Errorf("again: %+v %v", again, err)
	}
	b := pxed(1, "2")
	b.Name = "other"
	expiring := r.approve(b)
	r.clock.add(48 * time.Hour)
	if err := r.Holds(expiring.Digest); approval.Reason(err) != approval.ReasonExpired {
		t.Error(err)
	}
	if err := r.Holds(digest("e")); approval.Reason(err) != approval.ReasonUnapproved {
		t.Error(err)
	}
}

// A newer version is approved: what runs may go on, nothing of the older one starts;
// and a revocation of the newer brings the older not back.
func TestAttack_DowngradeByRevocation(t *testing.T) {
	r := newRig(t)
	one, two := pxed(1, "1"), pxed(2, "2")
	first := r.approve(one)
	second := r.approve(two)
	if err := r.Holds(first.Digest); err != nil {
		t.Error(err)
	}
	r.wants("older", start(one), approval.ReasonOlder)
	if _, err := r.Add(r.revocation(approval.Revocation{Approval: second.Digest})); err != nil {
		t.Fatal(err)
	}
	r.wants("older, the newer revoked", start(one), approval.ReasonOlder)
	r.wants("newer", start(two), approval.ReasonRevoked)
	three := one
	three.Version = 3
	r.approve(three)
	r.wants("the older one approved again", start(three), "")
}

func TestInvariant07_RestartWithOtherApprovers(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.approve(a)
	r.reopen()
	if n := len(r.entries()); n != 2 {
		t.Errorf("%d entries after a restart with nothing new", n)
	}
	r.wants("the same approvers", start(a), "")
	old := r.options.Approvers
	r.options.Approvers = approval.Approvers{}
	r.reopen()
	r.wants("no approvers", start(a), approval.ReasonApprovers)
	if _, err := r.Add(r.sign(pxed(2, "2"))); approval.Reason(err) != approval.ReasonApprovers {
		t.Errorf("an approval without approvers: %v", err)
	}
	r.options.Approvers = approval.Approvers{Threshold: 3, RevokeThreshold: 1, Keys: old.Keys}
	r.reopen()
	r.wants("one signature more is needed", start(a), approval.ReasonThreshold)
	more, err := approval.Cosign(r.sign(a), r.signers[2])
	if err != nil {
		t.Fatal(err)
	}
	if added, err := r.Add(more); err != nil || !added.New {
		t.Errorf("with the third signature: %+v %v", added, err)
	}
	r.wants("signed by three", start(a), "")
	if _, err := r.audit(AuditOptions{Approvers: []approval.Approvers{old}}); Reason(err) != ReasonForeign {
		t.Errorf("an auditor who knows the first approvers only: %v", err)
	}
	if _, err := r.audit(AuditOptions{Approvers: []approval.Approvers{old, r.options.Approvers}}); err != nil {
		t.Error(err)
	}
}

func TestAttack_ClockSetBackValidatesNothing(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.approve(a)
	r.clock.add(48 * time.Hour)
	r.wants("expired", start(a), approval.ReasonExpired)
	r.clock.add(-48 * time.Hour)
	r.wants("the clock set back", start(a), approval.ReasonExpired)
	r.reopen()
	r.wants("the clock set back, and a restart", start(a), approval.ReasonExpired)
}

func TestWhatIsNotSignedIsNotAdded(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	one, _ := a.Sign(r.signers[0])
	strangers, _ := keys(t, 2)
	foreign, _ := a.Sign(strangers...)
	v := approval.Revocation{Schema: approval.RevocationSchema, Image: a.Image.Config, Why: "mischief", Issued: now}
	stopped, _ := v.Sign(strangers[0])
	for name, c := range map[string]struct {
		data   []byte
		reason string
	}{
		"one of two": {one, approval.ReasonThreshold}, "strangers": {foreign, approval.ReasonSignature},
		"a revocation of strangers": {stopped, approval.ReasonSignature}, "nothing": {nil, approval.ReasonMalformed},
	} {
		if _, err := r.Add(c.data); approval.Reason(err) != c.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.wants("after all this", load(a), approval.ReasonUnapproved)
	if n := r.state.counts[KindApproval] + r.state.counts[KindRevocation]; n != 0 {
		t.Errorf("%d entries of what is not signed", n)
	}
}

func TestRefusalsAreFolded(t *testing.T) {
	r := newRig(t)
	for range 1000 {
		if err := r.Refuse(Refusal{Action: "exec", Reason: "guard-path", Detail: "POST /containers/x/exec", Caller: "uid 971"}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.entries()); n != 2 {
		t.Errorf("%d entries at once", n)
	}
	r.clock.add(foldFor)
	if err := r.flush(false); err != nil {
		t.Fatal(err)
	}
	if e := r.last(); e.Refusal == nil || e.Refusal.Count != 999 {
		t.Errorf("%+v", e.Refusal)
	}
	// Ever different ones cost no more than the budget, and no kind is lost.
	before := len(r.entries())
	for i := range 2000 {
		if err := r.Refuse(Refusal{Action: "load", Reason: "guard-path", Image: string(rune('a'+i%26)) + time.Duration(i).String()}); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	total := int64(0)
	all := r.entries()
	for _, e := range all[before:] {
		total += e.Refusal.Count
	}
	if n := len(all) - before; n > refuseBurst+2 || total != 2000 {
		t.Errorf("%d entries for %d refusals", n, total)
	}
	for _, bad := range []Refusal{{Action: "", Reason: "a"}, {Action: "a", Reason: "B"}} {
		if err := r.Refuse(bad); Reason(err) != ReasonEntry {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := r.Refuse(Refusal{Action: "pull", Reason: "guard-path", Detail: "\x1b[2J\u202e", Image: string(bytes.Repeat([]byte("é"), 900))}); err != nil {
		t.Error(err)
	}
}

func TestEntryTooLargeIsARefusalNotAnEnd(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	a.Profile.AnyCommand = true
	r.approve(a)
	q := start(a)
	q.Profile.AnyCommand, q.Profile.Command = false, slices.Repeat([]string{string(bytes.Repeat([]byte("x"), 1024))}, 64)
	if _, err := r.Decide(q); err == nil {
		t.Error("permitted without an entry")
	}
	r.wants("the next one", start(a), "")
}

func TestLogThatCannotBeWrittenPermitsNothing(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.approve(a)
	if err := r.log.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if p, err := r.Decide(start(a)); err == nil {
			t.Errorf("permitted %+v", p)
		}
	}
	if r.Status().Failed == "" {
		t.Error("the status does not tell")
	}
}

func TestDamagedLogIsNotOpened(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	r.approve(a)
	for range 300 {
		r.wants("start", start(a), "")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(r.options.Dir, "tile", "entries", "000")
	good, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += len(good) / 25 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if err := os.WriteFile(bundle, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if rec, err := Open(r.options); err == nil {
			rec.Close()
			t.Fatalf("opened with byte %d changed", i)
		}
	}
	if err := os.WriteFile(bundle, good, 0o600); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.wants("with the file back", start(a), "")
}
