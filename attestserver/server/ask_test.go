package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/identity"
	"portcullis/attestserver/protocol"
	"portcullis/attestserver/result"
	"portcullis/attestserver/server"
	"portcullis/internal/rpc"
	"portcullis/internal/translog"
)

func nonce(t testing.TB) []byte {
	t.Helper()
	b := make([]byte, 32)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (l *lab) ask(r *portcullisv1.AskRequest) (*portcullisv1.AskResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := l.attest.Ask(ctx, connect.NewRequest(r))
	if err != nil {
		return nil, err
	}
	return a.Msg, nil
}

func (l *lab) public() ed25519.PublicKey { return l.image.GatewayKey.Public().(ed25519.PublicKey) }

// Whoever asks gets an answer to his own nonce, signed, with a proof that the
// judgement is in the log, and that the log continues what he has seen.
func TestAskedWithTheCallersNonce(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	key, err := identity.LogVerifier(l.public())
	if err != nil {
		t.Fatal(err)
	}
	seen := ""
	var evidence []byte
	for range 3 {
		n := nonce(t)
		a, err := l.ask(&portcullisv1.AskRequest{Nonce: n, Context: "before:task-7", Probes: []string{"boot"}, Checkpoint: seen})
		if err != nil {
			t.Fatal(err)
		}
		for _, token := range [][]byte{[]byte(a.Jwt), a.Cwt} {
			c, err := result.Verify(token, l.public(), time.Now(), n)
			if err != nil {
				t.Fatal(err)
			}
			pc := c.Submods[result.SubmodPC].PC
			if pc.State != "trusted" || pc.Context != "before:task-7" || pc.Session != sid || pc.Asked == nil {
				t.Fatalf("%+v", pc)
			}
			if bytes.Equal(pc.Evidence, evidence) {
				t.Error("no new evidence came of the question")
			}
		}
		c, _ := result.Verify([]byte(a.Jwt), l.public(), time.Now(), n)
		pc := c.Submods[result.SubmodPC].PC
		evidence = pc.Evidence
		proof, err := translog.ParseProof([]byte(a.Proof))
		if err != nil {
			t.Fatal(err)
		}
		now, err := proof.Verify(a.Entry, key)
		if err != nil || proof.Index != pc.LogIndex {
			t.Fatalf("entry %d, named %d: %v", proof.Index, pc.LogIndex, err)
		}
		if !strings.Contains(string(a.Entry), `"context":"before:task-7"`) {
			t.Errorf("the log does not tell who asked: %s", a.Entry)
		}
		if seen != "" {
			earlier, err := translog.ParseCheckpoint([]byte(seen), key)
			if err != nil {
				t.Fatal(err)
			}
			if err := translog.CheckConsistency(now, earlier, a.Consistency); err != nil {
				t.Error(err)
			}
		}
		seen = string(now.Note)
	}
}

// Several who ask at once are answered by one question, and each finds his
// nonce in it.
func TestManyNoncesInOneQuestion(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	var group sync.WaitGroup
	var mu sync.Mutex
	own := map[string]int{}
	for range 8 {
		group.Go(func() {
			n := nonce(t)
			a, err := l.ask(&portcullisv1.AskRequest{Nonce: n})
			if err != nil {
				t.Error(err)
				return
			}
			c, err := result.Verify([]byte(a.Jwt), l.public(), time.Now(), n)
			if err != nil {
				t.Error(err)
				return
			}
			asked := c.Submods[result.SubmodPC].PC.Asked
			found := false
			for _, x := range asked.Nonces {
				found = found || bytes.Equal(x, n)
			}
			if !found {
				t.Error("the nonce was not in the question")
			}
			mu.Lock()
			own[string(asked.Own)]++
			mu.Unlock()
		})
	}
	group.Wait()
	if len(own) > 3 {
		t.Errorf("%d questions for 8 callers", len(own))
	}
}

func TestAttack_QuestionsThatAreRefused(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	want := func(r *portcullisv1.AskRequest, reason string) {
		t.Helper()
		if _, err := l.ask(r); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%v, want %s", err, reason)
		}
	}
	want(&portcullisv1.AskRequest{Nonce: nonce(t)}, server.ReasonAskGone)
	stop := l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	want(&portcullisv1.AskRequest{Nonce: make([]byte, 15)}, server.ReasonAskNonce)
	want(&portcullisv1.AskRequest{Nonce: make([]byte, 65)}, server.ReasonAskNonce)
	want(&portcullisv1.AskRequest{Nonce: make([]byte, 32)}, server.ReasonAskNonce)
	want(&portcullisv1.AskRequest{Nonce: nonce(t), Context: strings.Repeat("x", 257)}, server.ReasonAskContext)
	want(&portcullisv1.AskRequest{Nonce: nonce(t), Context: "a\nb"}, server.ReasonAskContext)
	want(&portcullisv1.AskRequest{Nonce: nonce(t), Probes: []string{"noise"}}, server.ReasonAskProbe)
	want(&portcullisv1.AskRequest{Nonce: nonce(t), Checkpoint: "x"}, translog.ReasonCheckpoint)
	// Whoever floods is held up, and the PC is not.
	ctx, enough := context.WithCancel(context.Background())
	defer enough()
	var busy atomic.Bool
	var flood sync.WaitGroup
	for range 60 {
		flood.Go(func() {
			_, err := l.attest.Ask(ctx, connect.NewRequest(&portcullisv1.AskRequest{Nonce: nonce(t)}))
			if err != nil && strings.Contains(err.Error(), server.ReasonAskBusy+": more than 2 questions a second") {
				busy.Store(true)
				enough()
			}
		})
	}
	flood.Wait()
	if !busy.Load() {
		t.Error("a flood was let through")
	}
	stop()
}

// A PC that fails the question gets a result that says so.
func TestAskedOfATamperedPC(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	l.machine.set("boot", "tampered")
	n := nonce(t)
	a, err := l.ask(&portcullisv1.AskRequest{Nonce: n, Probes: []string{"boot"}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := result.Verify([]byte(a.Jwt), l.public(), time.Now(), n)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Submods[result.SubmodPC].Status; s != result.StatusContraindicated {
		t.Errorf("status %v of a tampered PC", s)
	}
}

// The same as plain HTTP and JSON, for tools that have nothing else.
func TestPostAttest(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	post := func(body string) (int, map[string]any) {
		t.Helper()
		r, err := l.client(rpc.AttestSocket).Post(rpc.BaseURL+"/attest", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		var m map[string]any
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, m
	}
	n := nonce(t)
	code, m := post(`{"nonce":"` + base64.RawURLEncoding.EncodeToString(n) + `","context":"during:task-7"}`)
	if code != http.StatusOK {
		t.Fatalf("%d %v", code, m)
	}
	if _, err := result.Verify([]byte(m["jwt"].(string)), l.public(), time.Now(), n); err != nil {
		t.Error(err)
	}
	for body, want := range map[string]int{"": 400, "{": 400, `{"nonce":"AAAA"}`: 400, `{"nonce":"!"}`: 400, strings.Repeat(" ", 200<<10): 400} {
		if code, m := post(body); code != want || m["reason"] == "" {
			t.Errorf("%.20q: %d %v", body, code, m)
		}
	}
}

// Freshness as a property: no two challenges have the same nonce, whoever asks
// with whatever nonce of his own.
func TestNoTwoChallengesShareANonce(t *testing.T) {
	own := map[[32]byte]bool{}
	same := [][]byte{bytes.Repeat([]byte{1, 2}, 16)}
	for range 1000 {
		var b [32]byte
		copy(b[:], nonce(t))
		f := protocol.FoldNonces(b, same)
		if own[f] || own[b] {
			t.Fatal("a nonce came twice")
		}
		own[f], own[b] = true, true
	}
}

func TestResultOfWhatIsBelievedNow(t *testing.T) {
	l := newLab(t)
	l.pxed.open(sid)
	l.start()
	get := func() *result.Claims {
		t.Helper()
		r, err := l.attest.GetResult(context.Background(), connect.NewRequest(&portcullisv1.GetResultRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		c, err := result.Verify(r.Msg.Cwt, l.public(), time.Now(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := get(); c.Submods[result.SubmodPC].Status != result.StatusNone {
		t.Errorf("before the first boot: %v", c.Submods[result.SubmodPC].Status)
	}
	l.agent(sid, newKey(t))
	l.awaitState(0, "trusted")
	c := get()
	if c.Submods[result.SubmodPC].Status != result.StatusWarning || c.Expires-c.IssuedAt > 60 {
		t.Errorf("of a trusted PC at T0: %+v", c)
	}
}
