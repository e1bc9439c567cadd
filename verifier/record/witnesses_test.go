package record

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	return r.whole(r.newAsking())
}

// whole asks each witness once and waits for all of them.
func (r *rig) whole(a *asking) error {
	err := a.look(r.t.Context())
	for err == nil && slices.Contains(a.waits, true) {
		err = a.take(<-a.answers)
	}
	return err
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

// mute has a witness take what it is asked and answer only when it is let.
func mute(s *httptest.Server) (let func(), left *atomic.Int32) {
	on, h := make(chan struct{}), s.Config.Handler
	left = &atomic.Int32{} // those who did not wait for it
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		select {
		case <-on:
			h.ServeHTTP(w, q)
		case <-q.Context().Done():
			left.Add(1)
		}
	})
	return sync.OnceFunc(func() { close(on) }), left
}

// asked shows the log to the witnesses that are not being asked yet, and takes n answers.
func (r *rig) asked(ctx context.Context, a *asking, n int) {
	r.t.Helper()
	if err := r.log.Publish(); err != nil {
		r.t.Fatal(err)
	}
	err := a.look(ctx)
	for ; err == nil && n > 0; n-- {
		err = a.take(<-a.answers)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// signed tells how many have signed the newest checkpoint that is final.
func (r *rig) signed() int {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.options.Dir, CosignedFile))
	if err != nil {
		r.t.Fatal(err)
	}
	names, err := witness.Cosigners(b, r.key, r.options.Witnesses.keys())
	if err != nil {
		r.t.Fatal(err)
	}
	return len(names)
}

// TestAttack_WitnessThatDoesNotAnswer: where the others make the quorum it costs nothing, neither at the checkpoint that
// it was asked about nor at those behind it. When it answers at last it is asked again, and its signature is kept, too.
func TestAttack_WitnessThatDoesNotAnswer(t *testing.T) {
	r := newRig(t)
	clients, servers := r.witnesses(3)
	let, _ := mute(servers[1])
	r.options.Witnesses, _ = NewWitnesses(2, clients)
	r.reopen()
	ctx, stop := context.WithCancel(t.Context())
	a := r.newAsking()
	defer a.all.Wait()
	defer stop()
	for v, c := range []string{"1", "2"} {
		next := pxed(uint64(1+v), c)
		r.approve(next)
		r.asked(ctx, a, 2)
		r.wants("two of three have signed it", load(next), "")
		if n := r.signed(); n != 2 {
			t.Errorf("%d have signed", n)
		}
	}
	let()
	r.asked(ctx, a, 1+2) // of the first checkpoint, which nobody wants any more; and of the permissions
	if n := r.signed(); n != 2 {
		t.Errorf("%d have signed", n)
	}
	r.approve(pxed(3, "3"))
	r.asked(ctx, a, 3)
	if n := r.signed(); n != 2 {
		t.Errorf("%d have signed, the last one before the next look: each would be a write of its own", n)
	}
	r.asked(ctx, a, 0)
	if n := r.signed(); n != 3 {
		t.Errorf("%d have signed, the last one after the quorum was there", n)
	}
	if s := r.Status(); s.Cosigned != s.Entries || len(s.Faults) != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestQuorumThatNeedsTheSlow: it is waited for, with the same checkpoint, while the log grows; and who has failed is
// asked again meanwhile.
func TestQuorumThatNeedsTheSlow(t *testing.T) {
	for _, better := range []bool{true, false} {
		r := newRig(t)
		clients, servers := r.witnesses(3)
		let, _ := mute(servers[1])
		var works atomic.Bool
		sound := servers[2].Config.Handler
		servers[2].Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			if works.Load() {
				sound.ServeHTTP(w, q)
				return
			}
			w.WriteHeader(http.StatusInternalServerError)
		})
		r.options.Witnesses, _ = NewWitnesses(2, clients)
		r.reopen()
		ctx, stop := context.WithCancel(t.Context())
		a := r.newAsking()
		defer a.all.Wait()
		defer stop()
		first := pxed(1, "1")
		r.approve(first)
		r.asked(ctx, a, 2)
		r.wants("one of three has signed it", load(first), approval.ReasonUncosigned)
		second := pxed(1, "2")
		second.Name = "another"
		r.approve(second)
		r.asked(ctx, a, 1) // of the one that fails
		if better {
			works.Store(true)
			r.asked(ctx, a, 1)
		} else {
			let()
			if err := a.take(<-a.answers); err != nil {
				t.Fatal(err)
			}
		}
		r.wants("two of three have signed it", load(first), "")
		r.wants("it came later", load(second), approval.ReasonUncosigned)
		for r.asked(ctx, a, 0); a.kept == 0; {
			if err := a.take(<-a.answers); err != nil {
				t.Fatal(err)
			}
		}
		r.wants("two have signed all of it", load(second), "")
	}
}

// Run waits for no witness that the quorum can do without.
func TestRunTakesTheQuorum(t *testing.T) {
	r := newRig(t)
	clients, servers := r.witnesses(2)
	let, left := mute(servers[0])
	defer let()
	r.options.Witnesses, _ = NewWitnesses(1, clients)
	r.reopen()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	a := pxed(1, "1")
	r.approve(a)
	for r.Status().Cosigned < 2 && left.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if left.Load() > 0 {
		t.Error("the witness that does not answer was waited for until the end")
	}
	r.wants("it has a quorum", load(a), "")
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
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
	// An auditor gets the keys from somebody, too.
	own, _ := witness.NewKey("c", r.options.Key.Public().(ed25519.PublicKey))
	for name, list := range map[string][]*witness.Key{"one twice": {one, one}, "one key under two names": {one, two}, "the log itself": {own}} {
		if _, err := r.audit(AuditOptions{Witnesses: list}); Reason(err) != ReasonWitnesses {
			t.Errorf("audit, %s: %v", name, err)
		}
	}
	if _, err := r.audit(AuditOptions{Witnesses: []*witness.Key{one, clients[0].Key}}); err != nil {
		t.Errorf("audit, two: %v", err)
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
