package record

import (
	"crypto/ed25519"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"portcullis/internal/translog"
	"portcullis/verifier/approval"
)

// forge makes a log of any entries, as somebody does who has the Pi's key.
func forge(t *testing.T, key ed25519.PrivateKey, entries [][]byte) string {
	t.Helper()
	dir := t.TempDir()
	v, err := Verifier(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	l, err := translog.Open(dir, &signer{v, key}, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if _, err := l.Append(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func auditDir(t *testing.T, key ed25519.PrivateKey, dir string, o AuditOptions) (*Report, *translog.Reader, error) {
	t.Helper()
	v, err := Verifier(key.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	reader, err := translog.NewReader(os.DirFS(dir), v)
	if err != nil {
		t.Fatal(err)
	}
	o.Files = os.DirFS(dir)
	report, err := Audit(reader, v, o)
	return report, reader, err
}

func raw(t *testing.T, r *rig) (out [][]byte) {
	t.Helper()
	for _, e := range r.entries() {
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// The Pi's owner has its key, and writes what it likes. Another node finds each.
func TestAttack_AuditFindsWhatTheOwnerForged(t *testing.T) {
	r := newRig(t)
	a := pxed(1, "1")
	added := r.approve(a)
	r.wants("start", start(a), "")
	if _, err := r.Add(r.revocation(approval.Revocation{Approval: added.Digest})); err != nil {
		t.Fatal(err)
	}
	r.wants("start", start(a), approval.ReasonRevoked)
	good := raw(t, r) // approvers, approval, permission, revocation, refusal
	permission := r.entries()[2]
	encode := func(e Entry) []byte {
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	wider := *permission.Permission
	profile := *wider.Profile
	profile.Capabilities = []string{"CAP_SYS_ADMIN"}
	wider.Profile = &profile
	other := *permission.Permission
	other.Image = image("7")
	late := Entry{Time: now.Add(48 * time.Hour), Kind: KindPermission, Permission: permission.Permission}
	back := Entry{Time: now.Add(-time.Second), Kind: KindRefusal, Refusal: &Refusal{Action: "load", Reason: "x", Count: 1}}
	// Own approvers, and all that follows from them.
	mine, public := keys(t, 1)
	own, _ := approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: public}.Encode()
	evil := pxed(9, "9")
	envelope, _ := evil.Sign(mine[0])
	allowed := Permission{Action: approval.Load, Approval: digest("0"), Image: evil.Image}
	if p, err := approval.Peek(envelope); err == nil {
		allowed.Approval = p.Digest
	}
	pinned := AuditOptions{Approvers: []approval.Approvers{r.approvers}}
	for _, c := range []struct {
		name, reason string
		entries      [][]byte
		o            AuditOptions
	}{
		{"nothing", "", good, pinned},
		{"a permission before its approval", ReasonUnfounded, [][]byte{good[0], good[2], good[1]}, pinned},
		{"a permission without an approval", ReasonUnfounded, [][]byte{good[0], good[2]}, pinned},
		{"a permission after the revocation", ReasonUnfounded, append(good[:4:4], good[2]), pinned},
		{"a permission for another image", ReasonUnfounded, append(good[:2:2], encode(Entry{Time: now, Kind: KindPermission, Permission: &other})), pinned},
		{"a permission for more than was approved", ReasonUnfounded, append(good[:2:2], encode(Entry{Time: now, Kind: KindPermission, Permission: &wider})), pinned},
		{"a permission after the end", ReasonUnfounded, append(good[:2:2], encode(late)), pinned},
		{"an entry that goes back in time", ReasonTime, append(good[:5:5], encode(back)), pinned},
		{"an entry of another kind", ReasonEntry, append(good[:5:5], []byte(`{"time":"2026-06-01T12:00:00.000Z","kind":"x"}`)), pinned},
		{"own approvers", ReasonForeign, append(good[:5:5], encode(Entry{Time: now, Kind: KindApprovers, Approvers: own}),
			encode(Entry{Time: now, Kind: KindApproval, Envelope: envelope}), encode(Entry{Time: now, Kind: KindPermission, Permission: &allowed})), pinned},
		{"own approvers, and an auditor who knows none", "", append(good[:5:5], encode(Entry{Time: now, Kind: KindApprovers, Approvers: own}),
			encode(Entry{Time: now, Kind: KindApproval, Envelope: envelope}), encode(Entry{Time: now, Kind: KindPermission, Permission: &allowed})), AuditOptions{}},
	} {
		if _, _, err := auditDir(t, r.options.Key, forge(t, r.options.Key, c.entries), c.o); Reason(err) != c.reason || c.reason == "" && err != nil {
			t.Errorf("%s: %v, want %q", c.name, err, c.reason)
		}
	}
	if _, _, err := auditDir(t, r.options.Key, forge(t, r.options.Key, [][]byte{good[0], encode(Entry{Time: now, Kind: KindApproval, Envelope: envelope})}), pinned); approval.Reason(err) != approval.ReasonSignature {
		t.Errorf("an approval by a stranger: %v", err)
	}
	// The Pi itself does not start on a log that holds what does not follow.
	o := r.options
	o.Dir = forge(t, r.options.Key, [][]byte{good[0], good[2]})
	if rec, err := Open(o); Reason(err) != ReasonUnfounded {
		t.Errorf("opened: %v %v", rec, err)
	}
	// An entry is taken out, one changed, and the log signed again: it is another log.
	_, whole, err := auditDir(t, r.options.Key, forge(t, r.options.Key, good), pinned)
	if err != nil {
		t.Fatal(err)
	}
	without := append(good[:3:3], good[4], good[4], good[4])
	changed := append(good[:3:3], encode(Entry{Time: now, Kind: KindRefusal, Refusal: &Refusal{Action: "load", Reason: "x", Count: 1}}), good[4])
	for name, entries := range map[string][][]byte{"removed": without, "changed": changed, "cut": good[:3]} {
		_, reader, err := auditDir(t, r.options.Key, forge(t, r.options.Key, entries), pinned)
		if err != nil {
			t.Fatalf("%s: in itself the log is in order: %v", name, err)
		}
		if err := reader.Continues(whole.Checkpoint); translog.Reason(err) != translog.ReasonFork {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestChangedFilesOfACopyAreFound(t *testing.T) {
	r := newRig(t)
	r.approve(pxed(1, "1"))
	r.entries()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(r.options.Dir)); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(dir, "tile", "entries", "000.p", "2")
	b, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(bundle, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := auditDir(t, r.options.Key, dir, AuditOptions{}); err == nil {
		t.Error("accepted")
	}
}

func FuzzParseEntry(f *testing.F) {
	p := pxed(1, "1").Profile
	for _, e := range []Entry{
		{Time: now, Kind: KindApprovers, Approvers: noApprovers},
		{Time: now, Kind: KindApproval, Envelope: json.RawMessage(`{"a":[1,"x"]}`)},
		{Time: now, Kind: KindPermission, Permission: &Permission{Action: approval.Start, Approval: digest("1"), Image: image("1"), Purpose: "task", Profile: &p, Caller: "uid 0"}},
		{Time: now, Kind: KindRefusal, Refusal: &Refusal{Action: "load", Reason: "x", Detail: "é", Count: 3}},
	} {
		b, err := e.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"time":"2026-06-01T12:00:00.000Z","kind":"refusal","refusal":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEntry(data)
		if err != nil {
			if Reason(err) == "" {
				t.Fatalf("no reason: %v", err)
			}
			return
		}
		again, err := e.Encode()
		if err != nil || string(again) != string(data) {
			t.Fatalf("%q is written as %q: %v", data, again, err)
		}
		var s State
		s.Apply(data) // no panic
	})
}
