package record

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"portcullis/verifier/approval"
	"portcullis/verifier/witness"
)

// witnesses starts n of them for the log of r.
func (r *rig) witnesses(n int) (clients []*witness.Client, servers []*httptest.Server) {
	r.t.Helper()
	signers, _ := keys(r.t, n)
	for i, s := range signers {
		w, err := witness.NewServer(r.t.TempDir(), "w"+string(rune('0'+i)), s.(ed25519.PrivateKey), []note.Verifier{r.key}, r.clock.now)
		if err != nil {
			r.t.Fatal(err)
		}
		h := httptest.NewServer(w)
		r.t.Cleanup(h.Close)
		clients, servers = append(clients, &witness.Client{URL: h.URL, Key: w.Key(), HTTP: h.Client()}), append(servers, h)
	}
	return clients, servers
}

func (r *rig) askNow() error {
	r.t.Helper()
	if err := r.log.Publish(); err != nil {
		r.t.Fatal(err)
	}
	return r.ask(r.t.Context())
}

func again(clients []*witness.Client) (fresh []*witness.Client) {
	for _, c := range clients {
		fresh = append(fresh, &witness.Client{URL: c.URL, Key: c.Key, HTTP: c.HTTP})
	}
	return fresh
}

func TestApprovalWaitsForTheQuorum(t *testing.T) {
	r := newRig(t)
	clients, servers := r.witnesses(3)
	var err error
	if r.options.Witnesses, err = NewWitnesses(2, clients); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	a := pxed(1, "1")
	r.approve(a)
	r.wants("nobody has seen it", load(a), approval.ReasonUncosigned)
	servers[0].Close()
	servers[1].Config.Handler = http.NotFoundHandler()
	if err := r.askNow(); err != nil {
		t.Fatal(err)
	}
	if s := r.Status(); s.Quorum != 2 || s.Witnesses != 3 || s.Cosigned != 0 || len(s.Faults) != 2 {
		t.Errorf("status %+v", s)
	}
	r.wants("one of two", load(a), approval.ReasonUncosigned)
	clients = again(clients)
	more, _ := r.witnesses(1)
	clients[0] = more[0]
	if r.options.Witnesses, err = NewWitnesses(2, clients); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if err := r.askNow(); err != nil {
		t.Fatal(err)
	}
	r.wants("two of two", load(a), "")
	for _, s := range servers {
		s.Close()
	}
	r.reopen()
	r.wants("a restart without any witness in reach", load(a), "")
	var known []*witness.Key
	for _, c := range clients {
		known = append(known, c.Key)
	}
	report, err := r.audit(AuditOptions{Witnesses: known, Quorum: 2})
	if err != nil || report.Cosigned == 0 || len(report.Cosigners) != 2 {
		t.Errorf("audit: %+v %v", report, err)
	}
	if _, err := r.audit(AuditOptions{Witnesses: known, Quorum: 3}); Reason(err) != ReasonWitnesses {
		t.Errorf("audit with a quorum of 3: %v", err)
	}
	b := pxed(2, "2")
	added := r.approve(b)
	if _, err := r.Add(r.revocation(approval.Revocation{Approval: added.Digest})); err != nil {
		t.Fatal(err)
	}
	r.wants("a revocation waits for nobody", load(b), approval.ReasonRevoked)
}

// The whole directory is an old copy: in itself it is in order. A witness shows
// what the log had signed, and nothing is permitted any more.
func TestAttack_OldCopyOfTheLog(t *testing.T) {
	r := newRig(t)
	clients, _ := r.witnesses(1)
	a := pxed(1, "1")
	added := r.approve(a)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(r.options.Dir)); err != nil {
		t.Fatal(err)
	}
	r.options.Witnesses, _ = NewWitnesses(0, clients)
	r.open()
	if _, err := r.Add(r.revocation(approval.Revocation{Approval: added.Digest})); err != nil {
		t.Fatal(err)
	}
	if err := r.askNow(); err != nil {
		t.Fatal(err)
	}
	r.wants("after the revocation", start(a), approval.ReasonRevoked)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	whole := r.options.Dir
	r.options.Dir = old
	r.options.Witnesses, _ = NewWitnesses(0, again(clients))
	r.open()
	r.wants("the old copy, before a witness was asked", start(a), "")
	r.wants("the old copy goes on", start(a), "")
	if err := r.askNow(); Reason(err) != ReasonRolledBack {
		t.Errorf("asked: %v", err)
	}
	if _, err := r.Decide(start(a)); Reason(err) != ReasonRolledBack {
		t.Errorf("still permitted: %v", err)
	}
	if r.Status().Failed == "" {
		t.Error("the status does not tell")
	}
	r.Close()
	for _, w := range []Witnesses{{}, r.options.Witnesses} {
		o := r.options
		o.Witnesses = w
		if rec, err := Open(o); Reason(err) != ReasonRolledBack {
			t.Errorf("opened again: %v %v", rec, err)
		}
	}
	// The cosigned checkpoint of the newer log beside the old files says it without a witness.
	b, err := os.ReadFile(filepath.Join(whole, CosignedFile))
	if err != nil {
		t.Fatal(err)
	}
	third := r.options
	third.Dir = t.TempDir()
	if err := os.CopyFS(third.Dir, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(third.Dir, CosignedFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if rec, err := Open(third); Reason(err) != ReasonRolledBack {
		t.Errorf("opened: %v %v", rec, err)
	}
}

func TestWitnessesThatWouldCountTwice(t *testing.T) {
	r := newRig(t)
	clients, _ := r.witnesses(2)
	_, public := keys(t, 1)
	one, _ := witness.NewKey("a", public[0])
	two, _ := witness.NewKey("b", public[0])
	for name, c := range map[string]struct {
		quorum  int
		clients []*witness.Client
	}{
		"one twice": {1, []*witness.Client{clients[0], clients[0]}}, "one key under two names": {1, []*witness.Client{{Key: one}, {Key: two}}},
		"more than there are": {3, clients}, "less than none": {-1, clients},
	} {
		if _, err := NewWitnesses(c.quorum, c.clients); Reason(err) != ReasonWitnesses {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// late is a witness that takes its time: until it answers, the log has grown, and what it shows is the
// newest checkpoint, which everybody can read. Behind the log's signature it writes what it likes.
func (r *rig) late(behind string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Method != http.MethodGet {
			w.WriteHeader(http.StatusConflict)
			return
		}
		r.Refuse(Refusal{Action: "load", Reason: "image-unapproved", Detail: "meanwhile"})
		if err := r.log.Publish(); err != nil {
			r.t.Error(err)
		}
		b, err := os.ReadFile(filepath.Join(r.options.Dir, "checkpoint"))
		if err != nil {
			r.t.Error(err)
		}
		w.Write(append(b, behind...))
	})
}

// TestAttack_WitnessThatIsLate: one of the witnesses waits until the log has grown, and shows that. It has
// seen more than it was asked about, and no more than there is: the log was not rolled back.
func TestAttack_WitnessThatIsLate(t *testing.T) {
	r := newRig(t)
	clients, servers := r.witnesses(2)
	forged := "— " + clients[1].Key.Name() + " " + base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, clients[1].Key.KeyHash()), make([]byte, 72)...)) + "\n"
	servers[0].Config.Handler = r.late(forged)
	r.options.Witnesses, _ = NewWitnesses(1, clients)
	r.reopen()
	a := pxed(1, "1")
	r.approve(a)
	if err := r.askNow(); err != nil {
		t.Fatalf("the log is taken for an old copy: %v", err)
	}
	r.wants("the other one has signed it", load(a), "")
	if s := r.Status(); s.Failed != "" || len(s.Faults) != 1 {
		t.Errorf("status %+v", s)
	}
	r.reopen()
	r.wants("after a restart", load(a), "")
}

// What a witness writes beside the log's signature is not kept: it could be a wrong signature of another one.
func TestAttack_WitnessWritesIntoTheLog(t *testing.T) {
	r := newRig(t)
	clients, servers := r.witnesses(1)
	r.options.Witnesses, _ = NewWitnesses(0, clients)
	r.approve(pxed(1, "1"))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(r.options.Dir)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.approve(pxed(2, "2"))
	newer := *r
	servers[0].Config.Handler = newer.late("— a-stranger AAAAAAAA\n")
	r.options.Dir = old
	r.options.Witnesses, _ = NewWitnesses(0, again(clients))
	r.open()
	if err := r.askNow(); Reason(err) != ReasonRolledBack {
		t.Fatalf("asked: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(old, CosignedFile))
	if err != nil || strings.Contains(string(b), "a-stranger") || strings.Count(string(b), "— ") != 1 {
		t.Errorf("kept is %q, %v", b, err)
	}
}
