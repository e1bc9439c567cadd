package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/gateway/nft"
	"portcullis/gateway/policy"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
)

const (
	mac = "52:54:00:12:34:56"
	one = "aaaaaaaaaaaaaaaaaaaaaaaaaa"
	two = "bbbbbbbbbbbbbbbbbbbbbbbbbb"
)

type fixture struct {
	t      *testing.T
	dir    string
	pi     string // its boot id
	kernel *fakeKernel
	clock  *fakeClock
	wire   *fakeWire
	log    *eventtest.Buffer
	g      *Gateway
	s      *Service
	stop   func()
}

func newFixture(t *testing.T) *fixture {
	c := &fakeClock{now: time.Unix(1_800_000_000, 0)}
	f := &fixture{t: t, dir: t.TempDir(), pi: "first", kernel: &fakeKernel{clock: c}, clock: c, wire: &fakeWire{}, log: &eventtest.Buffer{}}
	f.start()
	t.Cleanup(func() { f.stop() })
	return f
}

func testPort() policy.Port {
	hw, _ := net.ParseMAC(mac)
	return policy.Port{Interface: "eth1", Uplink: "eth0", Address: netip.MustParsePrefix("10.77.0.1/24"), PC: netip.MustParseAddr("10.77.0.2"), MAC: hw,
		HTTPPort: 80, Agent: 7443, BanAfter: 5, BanWindow: time.Minute, BanFor: time.Minute}
}

func (f *fixture) options() Options {
	return Options{Port: testPort(), StateDir: f.dir, Boot: f.pi, Kernel: f.kernel, Wire: f.wire, Clock: f.clock, Events: event.NewJSON(f.log, "gatewayd", f.clock.Now)}
}

func (f *fixture) start() {
	f.t.Helper()
	var err error
	f.g, err = New(f.options())
	if err != nil {
		f.t.Fatal(err)
	}
	f.s = NewService(f.g)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.g.Run(ctx) }()
	f.stop = func() { cancel(); <-done }
}

// crash is a kill -9: the owner's last words are not written.
func (f *fixture) crash() {
	f.g.ask(context.Background(), func() { // so that the way out does nothing
		f.g.policy.Phase, f.g.unsettled, f.g.path = policy.Idle, time.Time{}, filepath.Join(f.dir, "nowhere", "state.json")
	})
	f.stop()
}

func (f *fixture) boot(session string) error {
	_, err := f.s.OpenBoot(context.Background(), connect.NewRequest(&v1.OpenBootRequest{Session: session, Mac: mac, Address: "10.77.0.2"}))
	return err
}
func (f *fixture) phase(session string, p v1.Phase, ttl int64) error {
	_, err := f.s.SetPhase(context.Background(), connect.NewRequest(&v1.SetPhaseRequest{Session: session, Phase: p, TtlMs: ttl, Reason: "r"}))
	return err
}
func (f *fixture) grant(d time.Duration) (*v1.Grant, error) {
	r, err := f.s.AddGrant(context.Background(), connect.NewRequest(&v1.AddGrantRequest{Task: "t", Protocol: "tcp", Address: "203.0.113.10", Port: 443, DurationMs: d.Milliseconds()}))
	if err != nil {
		return nil, err
	}
	return r.Msg.Grant, nil
}
func (f *fixture) status() *v1.GetGatewayStatusResponse {
	f.t.Helper()
	r, err := f.s.GetGatewayStatus(context.Background(), connect.NewRequest(&v1.GetGatewayStatusRequest{}))
	if err != nil {
		f.t.Fatal(err)
	}
	return r.Msg
}

// cameBackAs holds which phase the session one is in after a start.
func (f *fixture) cameBackAs(want v1.Phase) {
	f.t.Helper()
	if s := f.status(); s.Phase != want || s.Session != one {
		f.t.Errorf("came back as %s of %s, not as %s", s.Phase, s.Session, want)
	}
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) eventually(what string, ok func() bool) {
	f.t.Helper()
	for limit := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			f.t.Fatalf("not within 5 s: %s; events:\n%s", what, f.log)
		}
	}
}

func TestCodesOfRefusals(t *testing.T) {
	f := newFixture(t)
	if c := connect.CodeOf(f.phase(one, v1.Phase_PHASE_RUN, 1000)); c != connect.CodeFailedPrecondition {
		t.Errorf("phase before any boot: %s", c)
	}
	if c := connect.CodeOf(f.boot("x")); c != connect.CodeInvalidArgument {
		t.Errorf("bad session: %s", c)
	}
	f.must(f.boot(one))
	for name, c := range map[string]struct {
		err  error
		want connect.Code
	}{
		"another session":   {f.phase(two, v1.Phase_PHASE_RUN, 1000), connect.CodeFailedPrecondition},
		"unspecified phase": {f.phase(one, v1.Phase_PHASE_UNSPECIFIED, 0), connect.CodeInvalidArgument},
		"unknown phase":     {f.phase(one, 99, 0), connect.CodeInvalidArgument},
		"run without ttl":   {f.phase(one, v1.Phase_PHASE_RUN, 0), connect.CodeInvalidArgument},
		"negative ttl":      {f.phase(one, v1.Phase_PHASE_RUN, -5), connect.CodeInvalidArgument},
		"huge ttl":          {f.phase(one, v1.Phase_PHASE_RUN, 1<<62), connect.CodeInvalidArgument},
	} {
		if got := connect.CodeOf(c.err); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if _, err := f.grant(0); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("grant without end: %v", err)
	}
	_, err := f.s.RevokeGrant(context.Background(), connect.NewRequest(&v1.RevokeGrantRequest{Id: "g-none"}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("unknown grant: %v", err)
	}
}

// TestInvariant04_KernelFirst: where the kernel refuses, the answer is an error and
// nothing has moved; pxed then sends no offer.
func TestInvariant04_NoAnswerWithoutTheKernel(t *testing.T) {
	f := newFixture(t)
	f.kernel.mu.Lock()
	f.kernel.broken = errors.New("no")
	f.kernel.mu.Unlock()
	if err := f.boot(one); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("OpenBoot answered %v without the kernel", err)
	}
	if s := f.status(); s.Session != "" || s.Phase != v1.Phase_PHASE_IDLE {
		t.Errorf("moved to %s %s", s.Session, s.Phase)
	}
	if _, err := f.grant(time.Minute); err == nil || len(f.status().Grants) != 0 {
		t.Errorf("a grant was given without the kernel: %v", err)
	}
}

func TestRoutingIsOpenInARunOnly(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	for _, p := range []v1.Phase{v1.Phase_PHASE_ATTEST, v1.Phase_PHASE_RUN, v1.Phase_PHASE_IDLE, v1.Phase_PHASE_RUN, v1.Phase_PHASE_QUARANTINE} {
		f.must(f.phase(one, p, 1000*bit(p == v1.Phase_PHASE_RUN)))
		f.status() // what follows the answer has been done when the next call is
		f.wire.mu.Lock()
		if f.wire.routing != (p == v1.Phase_PHASE_RUN) {
			t.Errorf("%s: routing %v", p, f.wire.routing)
		}
		f.wire.mu.Unlock()
	}
	if f.wire.cuts != 1 {
		t.Errorf("flows were cut %d times, want once, by the boot", f.wire.cuts)
	}
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func TestRunFallsBackAndRenewalsAreQuiet(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	for range 3 {
		f.must(f.phase(one, v1.Phase_PHASE_RUN, 10_000))
		f.clock.advance(9 * time.Second)
	}
	if s := f.status(); s.Phase != v1.Phase_PHASE_RUN {
		t.Fatalf("phase %s in a renewed run", s.Phase)
	}
	f.clock.advance(2 * time.Second)
	f.eventually("fallback", func() bool { return f.status().Phase == v1.Phase_PHASE_ATTEST })
	if n := strings.Count(f.log.String(), `"phase":"run"`); n != 1 {
		t.Errorf("%d phase events for one run", n)
	}
	if !strings.Contains(f.log.String(), "run-not-renewed") {
		t.Error("the reason is not told")
	}
}

// TestInvariant04_BootEndsTheGrants: before OpenBoot answers, the grants of the
// session before have ended and are told so.
func TestInvariant04_BootEndsTheGrants(t *testing.T) {
	f := newFixture(t)
	if _, err := f.grant(time.Minute); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a grant before any boot: %v", err)
	}
	f.must(f.boot(one))
	g, err := f.grant(time.Minute)
	f.must(err)
	f.must(f.boot(two))
	if l := f.status().Grants; len(l) != 0 {
		t.Errorf("grants of the old session: %v", l)
	}
	if left, _, _ := f.kernel.Grants(); len(left) != 0 {
		t.Errorf("the kernel still has %v", left)
	}
	for _, want := range []string{`"event":"grant.ended"`, g.Id, `"reason":"boot-request"`} {
		if !strings.Contains(f.log.String(), want) {
			t.Errorf("no %s in %s", want, f.log)
		}
	}
}

func TestRestart(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	f.must(f.phase(one, v1.Phase_PHASE_RUN, 60_000))
	g, err := f.grant(time.Minute)
	f.must(err)
	f.crash()
	f.clock.advance(10 * time.Second)
	f.start()
	s := f.status()
	if s.Session != one || s.Phase != v1.Phase_PHASE_ATTEST || len(s.Grants) != 1 || s.Grants[0].NotAfterMs != g.NotAfterMs {
		t.Errorf("after the restart: %v", s)
	}
	f.must(f.phase(one, v1.Phase_PHASE_QUARANTINE, 0))
	f.crash()
	f.start()
	if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
		t.Errorf("a restart ended the quarantine: %s", s.Phase)
	}
}

// The wall clock is set back while gatewayd is dead (a Pi has no battery): the
// kernel's own count decides, and the grant gains nothing.
func TestClockSetBackLengthensNoGrant(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	_, err := f.grant(time.Minute)
	f.must(err)
	f.crash()
	f.clock.advance(50 * time.Second) // the kernel counts on
	f.kernel.at = f.kernel.at.Add(-time.Hour)
	f.clock.advance(-time.Hour) // the wall is set back
	f.start()
	s := f.status()
	if len(s.Grants) != 1 {
		t.Fatalf("grants %v", s.Grants)
	}
	if left := time.UnixMilli(s.Grants[0].NotAfterMs).Sub(f.clock.Now()); left > 10*time.Second {
		t.Errorf("the grant has %s left, want 10s", left)
	}
}

// A reboot clears the kernel; the file alone says what is granted, at most its time.
func TestRebootKeepsGrantsByTheirEnd(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	_, err := f.grant(time.Minute)
	f.must(err)
	f.crash()
	f.kernel.rs = nil
	f.clock.advance(61 * time.Second)
	f.start()
	if s := f.status(); len(s.Grants) != 0 {
		t.Errorf("a grant outlived its end over a reboot: %v", s.Grants)
	}
}

func TestBadStateFileBeginsAtIdle(t *testing.T) {
	good, err := encodeState(policy.Initial(testPort()), life{})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "not JSON": "hello", "unknown key": `{"version":1,"phase":"idle","extra":1}`, "another version": `{"version":2}`,
		"phase without session": `{"version":1,"phase":"boot","generation":1}`,
		"generation zero":       strings.Replace(string(good), `"generation":1`, `"generation":0`, 1),
		"generation too big":    strings.Replace(string(good), `"generation":1`, `"generation":16777216`, 1),
		"run":                   `{"version":1,"phase":"run","session":"` + one + `","generation":1,"address":"10.77.0.2","grants":[]}`,
		"foreign address":       `{"version":1,"phase":"attest","session":"` + one + `","generation":1,"address":"192.0.2.1","grants":[]}`,
		"bad grant":             `{"version":1,"phase":"idle","generation":1,"grants":[{"id":"g","target":"x"}]}`,
	} {
		f := &fixture{t: t, dir: t.TempDir(), clock: &fakeClock{now: time.Unix(1_800_000_000, 0)}, wire: &fakeWire{}, log: &eventtest.Buffer{}}
		f.kernel = &fakeKernel{clock: f.clock}
		f.must(os.WriteFile(filepath.Join(f.dir, "state.json"), []byte(text), 0o600))
		f.start()
		if s := f.status(); s.Phase != v1.Phase_PHASE_IDLE || s.Session != "" || len(s.Grants) != 0 {
			t.Errorf("%s: came up as %v", name, s)
		}
		if !strings.Contains(f.log.String(), "state.refused") {
			t.Errorf("%s: nothing was said", name)
		}
		f.stop()
	}
}

// A full disk: the kernel enforces, the caller is told, and the next call tries to write again.
func TestStateThatCannotBeWrittenIsWrittenLater(t *testing.T) {
	f := newFixture(t)
	f.must(f.boot(one))
	f.must(os.RemoveAll(f.dir))
	if err := f.phase(one, v1.Phase_PHASE_QUARANTINE, 0); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("answered %v", err)
	}
	if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
		t.Errorf("the disk held the quarantine up: %s", s.Phase)
	}
	if _, err := f.grant(time.Minute); err == nil || len(f.status().Grants) != 0 {
		t.Errorf("a grant that is not on disk: %v", err)
	}
	f.must(os.MkdirAll(f.dir, 0o700))
	f.must(f.phase(one, v1.Phase_PHASE_QUARANTINE, 0))
	f.crash()
	f.start()
	if s := f.status(); s.Phase != v1.Phase_PHASE_QUARANTINE {
		t.Errorf("after the restart: %s", s.Phase)
	}
}

func TestDriftIsToldWithItsEditor(t *testing.T) {
	f := newFixture(t)
	many := make([]string, portsTold+1)
	for i := range many {
		many[i] = fmt.Sprint("x", i)
	}
	f.kernel.drift = []nft.Drift{{Reason: nft.TablesChanged}, {Reason: nft.OpenForeign, Ports: many}}
	applies := f.kernel.applies
	f.must(f.g.Changed(context.Background(), nft.Editor{PID: 42, Comm: "nft"}))
	lines := strings.Split(strings.TrimSpace(f.log.String()), "\n")
	for i, want := range []map[string]any{{"reason": "tables-changed"}, {"reason": "open-foreign", "count": float64(portsTold + 1)}} {
		var e map[string]any
		f.must(json.Unmarshal([]byte(lines[len(lines)-2+i]), &e))
		want["event"], want["pid"], want["comm"], want["restored"] = "drift", 42.0, "nft", true
		for key, v := range want {
			if e[key] != v {
				t.Errorf("event %v, want %s %v", e, key, v)
			}
		}
		if ports, _ := e["ports"].([]any); i == 1 && (len(ports) != portsTold || ports[0] != "x0") {
			t.Errorf("event %v", e)
		}
	}
	if f.kernel.applies != applies+1 {
		t.Errorf("the tables are applied %d times", f.kernel.applies-applies)
	}
	f.kernel.drift = f.kernel.drift[1:]
	f.must(f.g.Changed(context.Background(), nft.Editor{PID: 42, Comm: "nft"}))
	if f.kernel.applies != applies+1 {
		t.Error("what was done to the static deny has the own tables applied")
	}
}

// What could not be put back is tried again by itself, after twice the time each time, until it is.
func TestWhatIsNotPutBackIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	asked := func() int {
		f.status() // whatever was due before has been done
		f.kernel.mu.Lock()
		defer f.kernel.mu.Unlock()
		return f.kernel.asked
	}
	f.kernel.refuses, f.kernel.drift = 8, []nft.Drift{{Reason: nft.DenyChanged}}
	if err := f.g.Changed(context.Background(), nft.Editor{PID: 42, Comm: "nft"}); err == nil {
		t.Error("that it failed is not told")
	}
	for n, wait := range []time.Duration{100, 200, 400, 800, 1600, 3200, 5000, 5000} {
		f.clock.advance(wait*time.Millisecond - 1)
		if got := asked(); got != n+1 {
			t.Fatalf("try %d came too early: %d", n+2, got)
		}
		f.clock.advance(1)
		f.eventually("it is tried again", func() bool { return asked() == n+2 })
		f.status() // the try is over: what it was to be told is, and when the next one is due
	}
	last := f.log.String()
	last = last[strings.LastIndex(strings.TrimSpace(last), "\n")+1:]
	if !strings.Contains(last, `"restored":true`) || !strings.Contains(last, `"pid":42`) {
		t.Errorf("the last event is %s", last)
	}
	f.clock.advance(time.Hour)
	if got := asked(); got != 9 {
		t.Errorf("it is tried again though it is back: %d", got)
	}
}

func TestStatusCountsAPacketOnce(t *testing.T) {
	f := newFixture(t)
	s := f.status()
	if s.ViolationsTotal != 2 || len(s.Bans) != 1 || s.Bans[0].Mac != mac || s.Bans[0].NotAfterMs != f.clock.Now().Add(time.Minute).UnixMilli() {
		t.Errorf("status %v", s)
	}
}

func TestCallsAfterTheEndAreRefused(t *testing.T) {
	f := newFixture(t)
	f.stop()
	if c := connect.CodeOf(f.boot(one)); c != connect.CodeUnavailable {
		t.Errorf("answered with %s", c)
	}
}

func FuzzDecodeState(f *testing.F) {
	p := policy.Initial(testPort())
	p, err := p.OpenBoot(one, mac, "10.77.0.2")
	if err != nil {
		f.Fatal(err)
	}
	b, err := encodeState(p, life{"boot", true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":1,"phase":"idle","generation":1,"grants":[{"id":"g","task":"t","target":"203.0.113.10:1/tcp","not_after_ms":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, _, err := decodeState(testPort(), b)
		if err == nil && (p.Phase == policy.Run || p.Generation == 0 || p.Generation >= 1<<24) {
			t.Fatalf("%q gave %+v", b, p)
		}
	})
}
