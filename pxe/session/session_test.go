package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/internal/event"
	"portcullis/internal/journal"
	"portcullis/pxe/artefact"
	"portcullis/pxe/artefact/artefacttest"
	"portcullis/pxe/ledger"
)

type fakeClock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *fakeClock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func (c *fakeClock) After(d time.Duration) <-chan time.Time { panic("sessions do not wait") }

type fakeGateway struct {
	mu      sync.Mutex
	calls   []string
	session string
	err     error
	during  func(call string)
}

func (g *fakeGateway) call(name, session string) error {
	g.mu.Lock()
	g.calls = append(g.calls, name+" "+session)
	during, err := g.during, g.err
	g.mu.Unlock()
	if during != nil {
		during(name)
	}
	return err
}

func (g *fakeGateway) OpenBoot(_ context.Context, session, _ string, _ netip.Addr) error {
	err := g.call("open", session)
	if err == nil {
		g.session = session
	}
	return err
}
func (g *fakeGateway) CloseBoot(_ context.Context, session string) error {
	return g.call("close", session)
}
func (g *fakeGateway) Session(context.Context) (string, error) { return g.session, g.err }

type bench struct {
	*Manager
	t       *testing.T
	clock   *fakeClock
	gateway *fakeGateway
	events  *bytes.Buffer
	image   *artefact.Image
	path    string
	ledger  error
}

var (
	sharedOnce sync.Once
	shared     *artefact.Image
)

// sharedImage is loaded once: its sealed memory outlives the test that made it.
func sharedImage(t *testing.T) *artefact.Image {
	t.Helper()
	sharedOnce.Do(func() { shared = testImage(t) })
	return shared
}

func testImage(t *testing.T) *artefact.Image {
	t.Helper()
	i := artefacttest.New(t, nil)
	floor, err := manifest.OpenFloor(filepath.Join(t.TempDir(), "floor"))
	if err != nil {
		t.Fatal(err)
	}
	img, _, err := artefact.NewStore(i.Dir, artefact.Policy{Trust: i.Trust()}, floor, time.Now).Current()
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{
		t: t, clock: &fakeClock{t: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}, gateway: &fakeGateway{},
		events: &bytes.Buffer{}, image: sharedImage(t), path: filepath.Join(t.TempDir(), "sessions"),
	}
	b.start(nil)
	return b
}

// start makes the manager over the journal, as after a restart.
func (b *bench) start(sent []ledger.Entry) {
	b.t.Helper()
	var h History
	j, _, err := journal.Open(b.path, func(r journal.Record) error { return h.Session(r.Payload) })
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { j.Close() })
	for _, e := range sent {
		h.Served(e)
	}
	b.Manager = New(Config{
		MAC: "52:54:00:aa:00:02", Address: netip.MustParseAddr("10.77.0.2"), ClaimWindow: 2 * time.Minute,
		Clock: b.clock, Events: event.NewJSON(b.events, "pxed", b.clock.Now), Gateway: b.gateway, Journal: j,
		SyncLedger: func() error { return b.ledger },
	})
	if err := b.Restore(&h, b.image); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) restart(sent []ledger.Entry) {
	b.t.Helper()
	b.cfg.Journal.Close()
	b.start(sent)
}

func (b *bench) request(xid uint32, f Firmware) (Session, error) {
	return b.Boot(context.Background(), BootRequest{XID: xid, Firmware: f, Image: b.image})
}

func (b *bench) open(xid uint32, f Firmware) Session {
	b.t.Helper()
	s, err := b.request(xid, f)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// serve sends artefacts whole.
func (b *bench) serve(id string, names ...string) {
	b.t.Helper()
	for _, name := range names {
		a, _ := b.image.Artefact(name)
		if err := b.Sent(id, name, ledger.HTTP, 0, a.Size); err != nil {
			b.t.Fatal(err)
		}
	}
}

func (b *bench) served(xid uint32) Session {
	b.t.Helper()
	s := b.open(xid, UEFIHTTP)
	b.serve(s.ID, manifest.UKI, manifest.Root)
	return s
}

func (b *bench) claimOf(s Session, key ed25519.PublicKey) Claim {
	return Claim{Session: s.ID, Key: key, Manifest: s.Manifest[:], Uptime: time.Second}
}

func (b *bench) claim(c Claim) string {
	reason, _ := b.Claim(context.Background(), c)
	return reason
}

func key(n byte) ed25519.PublicKey { return bytes.Repeat([]byte{n}, ed25519.PublicKeySize) }

func reasonOf(err error) string {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

func TestFromOfferToClaim(t *testing.T) {
	for f, parts := range map[Firmware][]string{
		UEFIHTTP: {manifest.UKI, manifest.Root}, UEFIPXE: {manifest.UKI, manifest.Root}, IPXE: {manifest.UKI, manifest.Root},
		BIOS: {manifest.Kernel, manifest.Initrd, manifest.Root},
	} {
		t.Run(string(f), func(t *testing.T) {
			b := newBench(t)
			s := b.open(1, f)
			if s.State != Offered || !ValidID(s.ID) || s.Firmware != f {
				t.Fatalf("%+v", s)
			}
			for i, name := range parts {
				if got := b.claim(b.claimOf(s, key(1))); got != ReasonIncomplete {
					t.Errorf("claim after %d artefacts: %q", i, got)
				}
				b.clock.add(time.Second)
				b.serve(s.ID, name)
			}
			if got, _ := b.Newest(); got.State != Served {
				t.Fatalf("state %s", got.State)
			}
			if got := b.claim(b.claimOf(s, key(1))); got != "" {
				t.Fatal(got)
			}
			got, _ := b.Newest()
			if got.State != Claimed || !got.ClaimKey.Equal(key(1)) || got.ClaimedAt.IsZero() {
				t.Errorf("%+v", got)
			}
			if want := []string{"open " + s.ID, "close " + s.ID}; !slices.Equal(b.gateway.calls, want) {
				t.Errorf("gatewayd was told %q", b.gateway.calls)
			}
			if _, _, err := b.Allow(s.ID, manifest.Root); reasonOf(err) != ReasonClosed {
				t.Errorf("served after the claim: %v", err)
			}
		})
	}
}

func TestOnlyWhatTheWayNeedsIsServed(t *testing.T) {
	all := []string{manifest.UKI, manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope, Script, "", "../etc/shadow"}
	want := map[Firmware][]string{
		UEFIHTTP: {manifest.UKI, manifest.Root, manifest.Envelope}, UEFIPXE: {manifest.UKI, manifest.Root, manifest.Envelope},
		IPXE: {manifest.UKI, manifest.Root, manifest.Envelope, Script},
		BIOS: {manifest.Kernel, manifest.Initrd, manifest.Root, manifest.Envelope, Script},
	}
	for f, names := range want {
		b := newBench(t)
		s := b.open(1, f)
		for _, name := range all {
			_, _, err := b.Allow(s.ID, name)
			if slices.Contains(names, name) != (err == nil) || err != nil && reasonOf(err) != ReasonNotOffered {
				t.Errorf("%s %q: %v", f, name, err)
			}
		}
	}
}

func TestInvariant04_GatewayFirst(t *testing.T) {
	b := newBench(t)
	old := b.served(1)
	if got := b.claim(b.claimOf(old, key(1))); got != "" {
		t.Fatal(got)
	}
	b.gateway.during = func(call string) {
		if s, _ := b.Newest(); call == "open" && s.State != Ended {
			t.Errorf("the old session is %s while gatewayd is asked", s.State)
		}
	}
	next := b.open(2, UEFIHTTP)
	if next.ID == old.ID {
		t.Fatal("a claimed session went on")
	}
	b.gateway.err = errors.New("not there")
	b.clock.add(Young)
	if _, err := b.request(3, UEFIHTTP); reasonOf(err) != ReasonGateway {
		t.Errorf("error %v", err)
	}
	if s, _ := b.Newest(); s.ID != next.ID || s.State != Ended {
		t.Errorf("%s is %s: without gatewayd nothing may be open", s.ID, s.State)
	}
	for _, id := range []string{old.ID, next.ID} {
		if _, _, err := b.Allow(id, manifest.UKI); reasonOf(err) != ReasonSuperseded {
			t.Errorf("%s: %v", id, err)
		}
	}
	if s, ok := b.Find(old.ID); !ok || s.State != Ended {
		t.Errorf("the old session is forgotten: %+v", s)
	}
}

func TestWhichRequestContinues(t *testing.T) {
	tests := map[string]struct {
		first  Firmware
		before func(*bench, Session)
		xid    uint32
		next   Firmware
		same   bool
	}{
		"retransmission":                    {first: UEFIHTTP, xid: 1, next: UEFIHTTP, same: true},
		"next boot option, nothing fetched": {first: UEFIPXE, xid: 2, next: UEFIHTTP, same: true},
		"iPXE after the firmware":           {first: UEFIPXE, xid: 2, next: IPXE, same: true},
		"retransmission that came late":     {first: UEFIHTTP, before: func(b *bench, s Session) { b.Sent(s.ID, manifest.UKI, ledger.HTTP, 0, 1) }, xid: 1, next: UEFIHTTP, same: true},
		"power cycle in the middle":         {first: UEFIHTTP, before: func(b *bench, s Session) { b.Sent(s.ID, manifest.UKI, ledger.HTTP, 0, 1) }, xid: 2, next: UEFIHTTP},
		"power cycle after all":             {first: UEFIHTTP, before: func(b *bench, s Session) { b.serve(s.ID, manifest.UKI, manifest.Root) }, xid: 2, next: UEFIHTTP},
		"same xid after the claim": {first: UEFIHTTP, before: func(b *bench, s Session) {
			b.serve(s.ID, manifest.UKI, manifest.Root)
			b.claim(b.claimOf(s, key(1)))
		}, xid: 1, next: UEFIHTTP},
		"old and unused":          {first: UEFIHTTP, before: func(b *bench, s Session) { b.clock.add(Young) }, xid: 1, next: UEFIHTTP},
		"void":                    {first: UEFIHTTP, before: func(b *bench, s Session) { b.Void(s.ID, VoidArtefact) }, xid: 1, next: UEFIHTTP},
		"ended":                   {first: UEFIHTTP, before: func(b *bench, s Session) { b.End(context.Background(), EndReleased) }, xid: 1, next: UEFIHTTP},
		"another image meanwhile": {first: UEFIHTTP, before: func(b *bench, s Session) { b.image = testImage(b.t) }, xid: 1, next: UEFIHTTP},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			first := b.open(1, tt.first)
			if tt.before != nil {
				tt.before(b, first)
			}
			next := b.open(tt.xid, tt.next)
			if (next.ID == first.ID) != tt.same {
				t.Errorf("went on: %v", next.ID == first.ID)
			}
			if next.Firmware != tt.next {
				t.Errorf("firmware %s", next.Firmware)
			}
		})
	}
}

// TestAttack_DiscoverFlood: whoever floods costs himself his session and nobody anything else.
func TestAttack_DiscoverFlood(t *testing.T) {
	b := newBench(t)
	for i := range 10_000 { // each with a fetch in between, the costliest way
		b.clock.add(time.Millisecond)
		s, err := b.request(uint32(i), UEFIHTTP)
		if err != nil {
			if reasonOf(err) != ReasonRate {
				t.Fatal(err)
			}
			continue
		}
		b.Sent(s.ID, manifest.UKI, ledger.HTTP, 0, 1)
	}
	if n := len(b.gateway.calls); n > newBurst+3 {
		t.Errorf("gatewayd was called %d times", n)
	}
	b.clock.add(time.Minute)
	s := b.served(1 << 20)
	if got := b.claim(b.claimOf(s, key(1))); got != "" {
		t.Errorf("an honest boot afterwards: %s", got)
	}
	if _, err := b.request(8, UEFIHTTP); err != nil {
		t.Errorf("power cycle of a claimed machine: %v", err)
	}
}

// TestAttack_EndlessDownload: the ledger and the wire are not for keeping busy.
func TestAttack_EndlessDownload(t *testing.T) {
	b := newBench(t)
	s := b.open(1, UEFIHTTP)
	a, _ := b.image.Artefact(manifest.Root)
	n := 0
	for ; n < 100; n++ {
		if err := b.Sent(s.ID, manifest.Root, ledger.HTTP, 0, a.Size); err != nil {
			break
		}
	}
	if got, _ := b.Newest(); got.State != Void || got.Reason != VoidQuota || n < maxServed {
		t.Errorf("after %d downloads: %s, %s", n, got.State, got.Reason)
	}
}

func TestGatewayThatIsAwayCostsNoBoot(t *testing.T) {
	b := newBench(t)
	b.gateway.err = errors.New("away")
	for i := range 3 * newBurst {
		if _, err := b.request(uint32(i), UEFIHTTP); reasonOf(err) != ReasonGateway {
			t.Fatal(err)
		}
	}
	b.gateway.err = nil
	b.open(99, UEFIHTTP)
}
