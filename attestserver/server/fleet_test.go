package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/attestserver/result"
	"portcullis/attestserver/server"
	"portcullis/internal/rpc"
)

// rack makes PCs that boot one image, each with its own port, pxed and gatewayd, and
// session.
func rack(t testing.TB, names ...string) (all []*lab, sessions []string) {
	t.Helper()
	for i, name := range names {
		l := newLab(t)
		l.name = name
		l.deadline = time.Minute // a slow machine is not late
		if i > 0 {
			l.image, l.digest = all[0].image, all[0].digest
		}
		id := strings.Repeat(string(rune('c'+i)), 26)
		l.pxed.open(id)
		all, sessions = append(all, l), append(sessions, id)
	}
	return all, sessions
}

// One PC of three is tampered with: it alone is quarantined, asked more often, and
// remembered as such over a restart, however the others do meanwhile.
func TestRackQuarantinesOnePC(t *testing.T) {
	pcs, sessions := rack(t, "rack-1", "rack-2", "rack-3")
	startFleet(pcs...)
	var keys []*claim.Key
	var stops []func()
	for i, l := range pcs {
		key := newKey(t)
		keys, stops = append(keys, key), append(stops, l.agent(sessions[i], key))
	}
	for _, l := range pcs {
		l.awaitState(0, "trusted")
	}
	if n := pcs[0].built.Load(); n != 1 {
		t.Errorf("expectations of the one image were made %d times", n)
	}
	bad := pcs[1]
	bad.machine.set("procs", "tampered")
	bad.awaitState(0, "quarantined")
	check := func(when string) {
		t.Helper()
		for _, l := range pcs {
			want := portcullisv1.TrustState_TRUST_STATE_TRUSTED
			if l == bad {
				want = portcullisv1.TrustState_TRUST_STATE_QUARANTINED
			}
			if v := l.verdict(); v.State != want || v.Pc != l.name {
				t.Errorf("%s: %s is %v", when, l.name, v.State)
			}
		}
	}
	for _, l := range pcs {
		at := l.events.count()
		for range 5 {
			at, _ = l.await(at+1, "evidence", nil)
		}
		if l != bad {
			for _, class := range []string{"soft", "fatal"} {
				if _, e, _ := l.events.find(0, "finding", map[string]any{"class": class}); e != nil {
					t.Errorf("%s: %v", l.name, e)
				}
			}
			if p := l.gatewayd.last(); p.Phase != portcullisv1.Phase_PHASE_RUN {
				t.Errorf("%s: gatewayd was told %v", l.name, p)
			}
		}
	}
	check("running")
	if p := bad.gatewayd.last(); p.Phase != portcullisv1.Phase_PHASE_QUARANTINE || p.Session != sessions[1] {
		t.Errorf("the gatewayd of the quarantined one was told %v", p)
	}

	for _, stop := range stops {
		stop()
	}
	pcs[0].stop()
	bad.machine.set("procs", "good")
	startFleet(pcs...)
	for i, l := range pcs {
		l.agent(sessions[i], keys[i])
	}
	for _, l := range pcs {
		if l == bad {
			l.awaitState(0, "quarantined")
		} else {
			l.awaitState(0, "trusted")
		}
	}
	check("after a restart")

	r, err := pcs[0].attest.ListPCs(context.Background(), connect.NewRequest(&portcullisv1.ListPCsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for i, p := range r.Msg.Pcs {
		names = append(names, p.Name)
		if quarantined := p.State == portcullisv1.TrustState_TRUST_STATE_QUARANTINED; p.Session != sessions[i] || !p.Agent || quarantined != (i == 1) {
			t.Errorf("listed as %v", p)
		}
	}
	if !slices.Equal(names, []string{"rack-1", "rack-2", "rack-3"}) {
		t.Errorf("listed are %v", names)
	}
	bad.pxed.open(sid)
	at, _ := bad.await(0, "verdict", map[string]any{"state": "unknown", "session": sid})
	bad.agent(sid, newKey(t))
	bad.awaitState(at, "trusted") // who boots again begins anew
}

// All PCs of a rack boot a new image: few are asked for references at a time, and in the
// end all are trusted, also where one that has its turn hangs up.
func TestRackEnrolsFewAtATime(t *testing.T) {
	var names []string
	for i := range server.Enrolling + 3 {
		names = append(names, fmt.Sprintf("rack-%d", i))
	}
	pcs, sessions := rack(t, names...)
	var mu sync.Mutex
	var here, most int
	var gone *lab // whose turn is over while its probe runs
	full, open := make(chan struct{}), make(chan struct{})
	answer, there := sync.OnceFunc(func() { close(open) }), sync.OnceFunc(func() { close(full) })
	for _, l := range pcs {
		l.enrol = true
		l.machine.enrol = func() {
			mu.Lock()
			if here++; here == server.Enrolling {
				there()
			}
			most = max(most, here)
			mu.Unlock()
			<-open
			mu.Lock()
			if l != gone {
				here--
			}
			mu.Unlock()
		}
	}
	startFleet(pcs...)
	var stops []func()
	for i, l := range pcs {
		stops = append(stops, l.agent(sessions[i], newKey(t)))
	}
	t.Cleanup(answer) // before the agents are ended, who wait for it
	for _, l := range pcs {
		l.await(0, "agent.claimed", nil)
	}
	<-full
	var asked []int
	for i, l := range pcs {
		if _, e, _ := l.events.find(0, "challenge", nil); e != nil {
			asked = append(asked, i)
		}
	}
	if len(asked) != server.Enrolling {
		t.Fatalf("asked are %v", asked)
	}
	mu.Lock()
	gone = pcs[asked[0]]
	here--
	mu.Unlock()
	gone.pxed.open(sid) // it boots again
	answer()
	stops[asked[0]]()
	for i, l := range pcs {
		if i != asked[0] {
			l.awaitState(0, "trusted")
		}
	}
	if most != server.Enrolling {
		t.Errorf("%d were asked at a time", most)
	}
}

// The claim of one PC is nothing at the port of another, and does the session there
// no harm; neither does the key of a PC that is trusted help one that never booted.
func TestAttack_ClaimOfOnePCAtThePortOfAnother(t *testing.T) {
	pcs, sessions := rack(t, "a", "b")
	startFleet(pcs...)
	a, b := pcs[0], pcs[1]
	key := newKey(t)
	a.agent(sessions[0], key)
	b.agent(sessions[1], newKey(t))
	a.awaitState(0, "trusted")
	b.awaitState(0, "trusted")
	at := b.events.count()
	for what, session := range map[string]string{"with its own session": sessions[0], "with the other's session": sessions[1]} {
		_, err := channel.Dial(context.Background(), b.address, a.facts(session), key)
		var refused *channel.RefusedError
		if !errors.As(err, &refused) {
			t.Errorf("%s: %v", what, err)
			continue
		}
		b.await(at, "agent.refused", map[string]any{"reason": refused.Reason})
		t.Logf("%s: %s", what, refused.Reason)
	}
	if v := a.verdict(); v.State != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
		t.Errorf("a is %v", v.State)
	}
	// Two machines that claim one boot are a double claim at b's port, as ever: b's
	// session is void, and a's is not.
	b.awaitState(at, "quarantined")
	if v := a.verdict(); v.State != portcullisv1.TrustState_TRUST_STATE_TRUSTED {
		t.Errorf("a is %v", v.State)
	}
}

// Results name the PC and its own entry of the log that all share.
func TestRackResultsNameThePC(t *testing.T) {
	pcs, sessions := rack(t, "a", "b")
	startFleet(pcs...)
	for i, l := range pcs {
		l.agent(sessions[i], newKey(t))
	}
	for _, l := range pcs {
		l.awaitState(0, "trusted")
	}
	public := pcs[0].image.GatewayKey.Public().(ed25519.PublicKey)
	for i, l := range pcs {
		nonce := bytes.Repeat([]byte{7, byte(i)}, 16)
		r, err := l.attest.Ask(context.Background(), connect.NewRequest(&portcullisv1.AskRequest{Nonce: nonce, Pc: l.name}))
		if err != nil {
			t.Fatal(err)
		}
		claims, err := result.Verify([]byte(r.Msg.Jwt), public, time.Now(), nonce)
		if err != nil {
			t.Fatal(err)
		}
		pc := claims.Submods[result.SubmodPC].PC
		var e struct{ PC, Session string }
		if err := json.Unmarshal(r.Msg.Entry, &e); err != nil {
			t.Fatal(err)
		}
		if pc.Name != l.name || pc.Session != sessions[i] || e.PC != l.name || e.Session != sessions[i] {
			t.Errorf("%s: result of %q in %s, entry of %q in %s", l.name, pc.Name, pc.Session, e.PC, e.Session)
		}
		s, err := l.attest.GetResult(context.Background(), connect.NewRequest(&portcullisv1.GetResultRequest{Pc: l.name}))
		if err != nil {
			t.Fatal(err)
		}
		if claims, err = result.Verify([]byte(s.Msg.Jwt), public, time.Now(), nil); err != nil || claims.Submods[result.SubmodPC].PC.Name != l.name {
			t.Errorf("%s: %v %v", l.name, claims, err)
		}
	}
	ctx := context.Background()
	for name, want := range map[string]connect.Code{"": connect.CodeInvalidArgument, "c": connect.CodeNotFound, "../a": connect.CodeNotFound} {
		_, one := pcs[0].attest.GetVerdict(ctx, connect.NewRequest(&portcullisv1.GetVerdictRequest{Pc: name}))
		_, two := pcs[0].attest.GetResult(ctx, connect.NewRequest(&portcullisv1.GetResultRequest{Pc: name}))
		_, three := pcs[0].attest.Ask(ctx, connect.NewRequest(&portcullisv1.AskRequest{Pc: name, Nonce: []byte("0123456789abcdef")}))
		for _, err := range []error{one, two, three} {
			if connect.CodeOf(err) != want {
				t.Errorf("%q: %v", name, err)
			}
		}
	}
	for body, want := range map[string]int{`{"nonce":"MDEyMzQ1Njc4OWFiY2RlZg"}`: http.StatusBadRequest,
		`{"nonce":"MDEyMzQ1Njc4OWFiY2RlZg","pc":"c"}`: http.StatusNotFound, `{"nonce":"MDEyMzQ1Njc4OWFiY2RlZg","pc":"a"}`: http.StatusOK} {
		r, err := pcs[0].client(rpc.AttestSocket).Post(rpc.BaseURL+"/attest", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("%s: %d", body, r.StatusCode)
		}
	}
}

// A port that never comes up holds up nobody else.
func TestRackWithAPortThatIsNotThere(t *testing.T) {
	pcs, sessions := rack(t, "a", "b")
	record, err := server.OpenRecord(filepath.Join(pcs[0].dir, "verdicts"), pcs[0].image.GatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	images := pcs[0].images()
	fleet, err := server.NewFleet([]*server.Server{pcs[0].open(record, images), pcs[1].open(record, images)})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pcs[0].address = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- fleet.Run(ctx, func(ctx context.Context, pc string) (net.Listener, error) {
			if pc == "a" {
				return ln, nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		})
	}()
	pcs[0].agent(sessions[0], newKey(t))
	pcs[0].awaitState(0, "trusted")
	fleet.SetPolicy(pcs[0].policy)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("ended with %v", err)
	}
}

func TestImpossibleFleetsAreRefused(t *testing.T) {
	pcs, _ := rack(t, "a", "a", "", "Bad", "b/../c")
	record, err := server.OpenRecord(filepath.Join(pcs[0].dir, "verdicts"), pcs[0].image.GatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	defer record.Close()
	other, err := server.OpenRecord(filepath.Join(pcs[0].dir, "other"), pcs[0].image.GatewayKey)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	images := pcs[0].images()
	var all []*server.Server
	for _, l := range pcs {
		all = append(all, l.open(record, images))
	}
	pcs[1].name = "z"
	if err := os.RemoveAll(filepath.Join(pcs[1].dir, "actions.journal")); err != nil {
		t.Fatal(err)
	}
	all = append(all, pcs[1].open(other, images))
	for what, of := range map[string][]*server.Server{"none": nil, "two of one name": {all[0], all[1]}, "one of two without a name": {all[0], all[2]},
		"capital": {all[3]}, "path": {all[4]}, "two logs": {all[0], all[5]}} {
		if _, err := server.NewFleet(of); err == nil {
			t.Errorf("%s: taken", what)
		}
	}
	for _, of := range [][]*server.Server{{all[0]}, {all[2]}} {
		if _, err := server.NewFleet(of); err != nil {
			t.Error(err)
		}
	}
}
