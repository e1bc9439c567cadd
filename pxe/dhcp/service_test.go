package dhcp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"portcullis/internal/event"
	"portcullis/pxe/artefact"
	"portcullis/pxe/ledger"
	"portcullis/pxe/session"
)

// fakeSessions is one session that can be opened and ended.
type fakeSessions struct {
	current session.Session
	refuse  error
	opened  int
	ended   []string
	panics  bool
}

func (f *fakeSessions) Boot(_ context.Context, r session.BootRequest) (session.Session, error) {
	if f.panics {
		panic("a bug")
	}
	if f.refuse != nil {
		return session.Session{}, f.refuse
	}
	f.opened++
	f.current = session.Session{ID: sid, Firmware: r.Firmware, State: session.Offered}
	return f.current, nil
}

func (f *fakeSessions) Newest() (session.Session, bool) { return f.current, f.current.ID != "" }

func (f *fakeSessions) End(_ context.Context, reason string) {
	f.ended = append(f.ended, reason)
	f.current.State = session.Ended
}

type serviceBench struct {
	*Service
	sessions *fakeSessions
	events   *bytes.Buffer
	now      time.Time
	image    error
}

func newService(t testing.TB) *serviceBench {
	t.Helper()
	b := &serviceBench{sessions: &fakeSessions{}, events: &bytes.Buffer{}, now: time.Unix(1e9, 0)}
	now := func() time.Time { return b.now }
	l, _, err := ledger.Open(filepath.Join(t.TempDir(), "ledger"), now, func(ledger.Entry) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	b.Service = NewService(Config{
		Interface: "none", Policy: policy, Sessions: b.sessions, Ledger: l, Now: now,
		Image:  func() (*artefact.Image, error) { return nil, b.image },
		Events: event.NewJSON(b.events, "pxed", now),
	})
	return b
}

func (b *serviceBench) ask(raw []byte) []byte {
	reply, _ := b.Handle(context.Background(), raw, anybody, PortServer)
	return reply
}

// last returns the fields of the newest event.
func (b *serviceBench) last(t *testing.T) map[string]any {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(b.events.String()), "\n")
	var m map[string]any
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNoImageMeansNoAnswer(t *testing.T) {
	b := newService(t)
	b.image = errors.New("refused")
	if b.ask(recorded(t, "ovmf-http-discover")) != nil || b.sessions.opened != 0 {
		t.Error("a boot request was answered")
	}
	if got := b.last(t); got["reason"] != string(ReasonNoImage) {
		t.Errorf("%v", got)
	}
	if len(b.sessions.ended) != 1 {
		t.Error("the boot request did not end the trust that was there")
	}
}

func TestRefusedSessionMeansNoAnswer(t *testing.T) {
	b := newService(t)
	b.sessions.refuse = &session.Refusal{Reason: session.ReasonGateway}
	if b.ask(recorded(t, "ovmf-http-discover")) != nil {
		t.Error("answered without gatewayd")
	}
	if got := b.last(t); got["reason"] != session.ReasonGateway {
		t.Errorf("%v", got)
	}
}

func TestReleaseBeforeTheImageStartsDoesNotEndTheBoot(t *testing.T) {
	b := newService(t)
	b.ask(recorded(t, "ovmf-http-discover"))
	release := with(t, "ovmf-http-discover", typed(7))
	if b.ask(release) != nil || len(b.sessions.ended) != 0 {
		t.Errorf("ended: %q", b.sessions.ended)
	}
	b.sessions.current.State = session.Claimed
	if b.ask(release); len(b.sessions.ended) != 1 || b.sessions.ended[0] != session.EndReleased {
		t.Errorf("ended: %q", b.sessions.ended)
	}
}

func TestInvariant04_UnfitFirmwareEndsTrustToo(t *testing.T) {
	for _, arch := range [][]byte{{0, 11}, {0x77, 0x77}, {}} {
		b := newService(t)
		b.ask(recorded(t, "ovmf-http-discover"))
		unfit := with(t, "ovmf-pxe-discover", set(dhcpv4.OptionClientSystemArchitectureType, arch...))
		if b.ask(unfit); len(b.sessions.ended) != 0 {
			t.Error("a boot under way was ended")
		}
		b.sessions.current.State = session.Claimed
		if b.ask(unfit) != nil || len(b.sessions.ended) != 1 || b.sessions.ended[0] != session.EndBootRequest {
			t.Errorf("arch %v: ended %q", arch, b.sessions.ended)
		}
	}
}

func TestDeclineEndsTheSessionAndAlarms(t *testing.T) {
	b := newService(t)
	b.ask(recorded(t, "ovmf-http-discover"))
	b.ask(with(t, "ovmf-http-discover", typed(4)))
	if got := b.last(t); len(b.sessions.ended) != 1 || got["alarm"] != true || got["reason"] != string(ReasonDeclined) {
		t.Errorf("%q, %v", b.sessions.ended, got)
	}
}

func TestInvariant11_PanicCostsOnePacket(t *testing.T) {
	b := newService(t)
	b.sessions.panics = true
	if b.ask(recorded(t, "ovmf-http-discover")) != nil {
		t.Error("a reply out of a panic")
	}
	if got := b.last(t); got["reason"] != string(ReasonPanic) || got["alarm"] != true {
		t.Errorf("%v", got)
	}
	b.sessions.panics = false
	if b.ask(recorded(t, "ovmf-http-discover")) == nil {
		t.Error("no reply to the next packet")
	}
}

func TestInvariant03_EveryReplyIsInTheLedgerBeforeItIsSent(t *testing.T) {
	b := newService(t)
	reply := b.ask(recorded(t, "ovmf-http-discover"))
	if reply == nil {
		t.Fatal("no reply")
	}
	if n, _ := b.cfg.Ledger.Head(); n != 1 {
		t.Errorf("%d records", n)
	}
	if err := b.cfg.Ledger.Close(); err != nil {
		t.Fatal(err)
	}
	if b.ask(recorded(t, "ovmf-http-request")) != nil {
		t.Error("a reply that could not be recorded was sent")
	}
	if got := b.last(t); got["reason"] != string(ReasonLedger) {
		t.Errorf("%v", got)
	}
}

// TestAttack_DiscoverFlood: the flood is answered at a bounded rate, and the
// log is bounded too.
func TestAttack_DiscoverFlood(t *testing.T) {
	b := newService(t)
	answered := 0
	raw := recorded(t, "ovmf-http-discover")
	for i := range 10_000 {
		b.now = b.now.Add(time.Millisecond) // 10 s of it
		raw[4] = byte(i)
		if b.ask(raw) != nil {
			answered++
		}
	}
	if limit := replyBurst + 10*replyRate; answered > limit {
		t.Errorf("%d answered in 10 s, at most %d are meant", answered, limit)
	}
	if n := b.Counts()[string(ReasonRate)]; n != uint64(10_000-answered) {
		t.Errorf("%d of %d refusals counted", n, 10_000-answered)
	}
	if lines := strings.Count(b.events.String(), `"dhcp.drop"`); lines > 40 {
		t.Errorf("%d lines of refusals", lines)
	}
}

// TestInvariant11_HostileDHCP throws 10^5 damaged packets at the service.
func TestInvariant11_HostileDHCP(t *testing.T) {
	b := newService(t)
	rng := rand.New(rand.NewPCG(1, 2))
	var seeds [][]byte
	for _, name := range recordings {
		seeds = append(seeds, recorded(t, name))
	}
	for range 100_000 {
		b.now = b.now.Add(10 * time.Millisecond)
		raw := mutate(rng, seeds[rng.IntN(len(seeds))])
		port, from := PortServer, anybody
		if rng.IntN(4) == 0 {
			port, from = PortBINL, netip.AddrPortFrom(lessee, uint16(rng.IntN(65536)))
		}
		if reply, _ := b.Handle(context.Background(), raw, from, port); len(reply) > MaxPacket-28 {
			t.Fatalf("a reply of %d bytes", len(reply))
		}
	}
	if n := b.Counts()[string(ReasonPanic)]; n != 0 {
		t.Errorf("%d panics", n)
	}
	if b.now = b.now.Add(time.Minute); b.ask(recorded(t, "ovmf-http-discover")) == nil {
		t.Error("an honest request is not answered afterwards")
	}
}

func mutate(rng *rand.Rand, seed []byte) []byte {
	b := append([]byte(nil), seed...)
	switch rng.IntN(5) {
	case 0:
		b = b[:rng.IntN(len(b)+1)]
	case 1:
		b = append(b, make([]byte, rng.IntN(1600))...)
	case 2: // an option grows over the next ones
		b[240+rng.IntN(len(b)-240)] = byte(rng.IntN(256))
	}
	for range rng.IntN(6) {
		if len(b) > 0 {
			b[rng.IntN(len(b))] = byte(rng.IntN(256))
		}
	}
	return b
}
