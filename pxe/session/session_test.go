package session

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
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

func TestInvariant05_ClaimIsRefusedForItsReason(t *testing.T) {
	tests := map[string]struct {
		before func(*bench, Session)
		edit   func(*Claim)
		want   string
	}{
		"nothing served":       {before: func(*bench, Session) {}, want: ReasonIncomplete},
		"one byte is missing":  {before: func(b *bench, s Session) { b.serve(s.ID, manifest.UKI); b.allBut(s.ID, manifest.Root, 70_000) }, want: ReasonIncomplete},
		"last byte is missing": {before: func(b *bench, s Session) { b.serve(s.ID, manifest.Root); b.allBut(s.ID, manifest.UKI, 3<<20+122) }, want: ReasonIncomplete},
		"root only":            {before: func(b *bench, s Session) { b.serve(s.ID, manifest.Root) }, want: ReasonIncomplete},
		"another session":      {edit: func(c *Claim) { c.Session = strings.Repeat("a", 26) }, want: ReasonUnknown},
		"no session":           {edit: func(c *Claim) { c.Session = "" }, want: ReasonUnknown},
		"older session":        {before: func(b *bench, s Session) { b.serve(s.ID, manifest.UKI, manifest.Root); b.open(2, UEFIHTTP) }, want: ReasonSuperseded},
		"void session":         {before: func(b *bench, s Session) { b.Void(s.ID, VoidArtefact) }, want: ReasonVoid},
		"late":                 {before: func(b *bench, s Session) { b.serve(s.ID, manifest.UKI, manifest.Root); b.clock.add(2*time.Minute + 1) }, want: ReasonLate},
		"in the last moment":   {before: func(b *bench, s Session) { b.serve(s.ID, manifest.UKI, manifest.Root); b.clock.add(2 * time.Minute) }, want: ""},
		"kernel too old":       {edit: func(c *Claim) { c.Uptime = UptimeSlack + 1 }, want: ReasonUptime},
		"uptime below zero":    {edit: func(c *Claim) { c.Uptime = -1 }, want: ReasonUptime},
		"uptime of years":      {edit: func(c *Claim) { c.Uptime = 1<<63 - 1 }, want: ReasonUptime},
		"another manifest":     {edit: func(c *Claim) { c.Manifest = make([]byte, 32) }, want: ReasonManifest},
		"no manifest":          {edit: func(c *Claim) { c.Manifest = nil }, want: ReasonManifest},
		"no key":               {edit: func(c *Claim) { c.Key = nil }, want: ReasonKeyInvalid},
		"zero key":             {edit: func(c *Claim) { c.Key = key(0) }, want: ReasonKeyInvalid},
		"short key":            {edit: func(c *Claim) { c.Key = key(1)[:31] }, want: ReasonKeyInvalid},
		"key of another boot":  {edit: func(c *Claim) { c.Key = key(9) }, want: ReasonKeyUsed},
		"ledger not durable": {before: func(b *bench, s Session) {
			b.serve(s.ID, manifest.UKI, manifest.Root)
			b.ledger = errors.New("disk full")
		}, want: ReasonLedger},
		"gatewayd not there": {before: func(b *bench, s Session) {
			b.serve(s.ID, manifest.UKI, manifest.Root)
			b.gateway.err = errors.New("gone")
		}, want: ReasonGateway},
		"all as it should be": {want: ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			before := b.served(100)
			if got := b.claim(b.claimOf(before, key(9))); got != "" {
				t.Fatal(got)
			}
			s := b.open(1, UEFIHTTP)
			if tt.before == nil {
				b.serve(s.ID, manifest.UKI, manifest.Root)
			} else {
				tt.before(b, s)
			}
			c := b.claimOf(s, key(1))
			if tt.edit != nil {
				tt.edit(&c)
			}
			reason, got := b.Claim(context.Background(), c)
			if reason != tt.want {
				t.Errorf("reason %q, want %q", reason, tt.want)
			}
			if (got.State == Claimed) != (tt.want == "") {
				t.Errorf("state %s", got.State)
			}
			if tt.want == ReasonLedger || tt.want == ReasonGateway { // the agent tries again
				b.ledger, b.gateway.err = nil, nil
				if got := b.claim(c); got != "" {
					t.Errorf("second try: %s", got)
				}
			}
		})
	}
}

// allBut sends an artefact without one byte.
func (b *bench) allBut(id, name string, missing int64) {
	a, _ := b.image.Artefact(name)
	b.Sent(id, name, ledger.HTTP, 0, missing)
	b.Sent(id, name, ledger.HTTP, missing+1, a.Size-missing-1)
}

func TestInvariant05_SecondClaimVoidsBoth(t *testing.T) {
	b := newBench(t)
	s := b.served(1)
	if got := b.claim(b.claimOf(s, key(1))); got != "" {
		t.Fatal(got)
	}
	if got := b.claim(b.claimOf(s, key(1))); got != "" {
		t.Fatalf("the same key again: %s", got)
	}
	if got := b.claim(b.claimOf(s, key(2))); got != ReasonDouble {
		t.Fatalf("second claim: %q", got)
	}
	if got, _ := b.Newest(); got.State != Void || got.Reason != ReasonDouble {
		t.Errorf("%s, %s", got.State, got.Reason)
	}
	for n := byte(1); n < 4; n++ {
		if got := b.claim(b.claimOf(s, key(n))); got != ReasonVoid {
			t.Errorf("key %d afterwards: %q", n, got)
		}
	}
	if !strings.Contains(b.events.String(), `"claim.double"`) {
		t.Error("no alarm")
	}
	b.restart(nil)
	if got := b.claim(b.claimOf(s, key(1))); got != ReasonVoid {
		t.Errorf("after a restart: %q", got)
	}
}

func TestInvariant05_ManyClaimsAtOnceHaveNoWinnerBesideOne(t *testing.T) {
	b := newBench(t)
	s := b.served(1)
	var wg sync.WaitGroup
	results := make([]string, 32)
	for i := range results {
		wg.Go(func() { results[i] = b.claim(b.claimOf(s, key(byte(i+1)))) })
	}
	wg.Wait()
	slices.Sort(results)
	if results[0] != "" || slices.Contains(results[1:], "") {
		t.Errorf("results %q: one and only one may be told yes", results)
	}
	if got, _ := b.Newest(); got.State != Void {
		t.Errorf("state %s", got.State)
	}
}

func TestNothingIsServedWhileAClaimIsSettled(t *testing.T) {
	b := newBench(t)
	s := b.served(1)
	asked := false
	b.gateway.during = func(call string) {
		if call == "close" {
			asked = true
			if _, _, err := b.Allow(s.ID, manifest.UKI); reasonOf(err) != ReasonClosed {
				t.Errorf("served while the boot services are being closed: %v", err)
			}
		}
	}
	if got := b.claim(b.claimOf(s, key(1))); got != "" || !asked {
		t.Errorf("claim: %q", got)
	}
}

func TestBootRequestDuringAClaimWins(t *testing.T) {
	b := newBench(t)
	s := b.served(1)
	b.gateway.during = func(call string) {
		if call == "close" {
			b.gateway.during = nil
			b.open(2, UEFIHTTP)
		}
	}
	if got := b.claim(b.claimOf(s, key(1))); got != ReasonSuperseded {
		t.Errorf("claim: %q", got)
	}
	if got, _ := b.Newest(); got.ID == s.ID || got.State != Offered {
		t.Errorf("%+v", got)
	}
}

func TestRestartGoesOn(t *testing.T) {
	b := newBench(t)
	s := b.open(1, UEFIHTTP)
	uki, _ := b.image.Artefact(manifest.UKI)
	root, _ := b.image.Artefact(manifest.Root)
	at := b.clock.Now().UnixMilli()
	entry := func(kind string, id uint64, name, result string, offset, length int64) ledger.Entry {
		return ledger.Entry{Kind: kind, ID: id, Session: s.ID, Artefact: name, Transport: ledger.HTTP, Offset: offset, Length: length, Result: result, BeginMS: at, EndMS: at}
	}
	sent := []ledger.Entry{
		{Kind: ledger.KindResponse, ID: 1, Session: s.ID, Transport: ledger.DHCP, Artefact: "offer", Length: 300},
		entry(ledger.KindPiece, 2, manifest.UKI, "", 0, uki.Size),
		entry(ledger.KindResponse, 2, manifest.UKI, ledger.Complete, 0, uki.Size),
		// Cut in its second piece: only what the kernel took counts.
		entry(ledger.KindPiece, 3, manifest.Root, "", 0, 1<<20),
		entry(ledger.KindPiece, 3, manifest.Root, "", 1<<20, 1<<20),
		entry(ledger.KindResponse, 3, manifest.Root, ledger.Cut+":connection-lost", 0, 1<<20+5),
		// In flight when the server died.
		entry(ledger.KindPiece, 4, manifest.Root, "", 1<<20+5, 2<<20),
	}
	b.restart(sent)
	got, _ := b.Newest()
	if got.ID != s.ID || got.State != Fetching {
		t.Fatalf("%+v", got)
	}
	if p := got.Artefacts[1]; p.Name != manifest.Root || p.Covered != 3<<20+5 {
		t.Errorf("%+v", p)
	}
	if again := b.open(1, UEFIHTTP); again.ID != s.ID {
		t.Error("a retransmission opened a new session")
	}
	if err := b.Sent(s.ID, manifest.Root, ledger.HTTP, 3<<20+5, root.Size-3<<20-5); err != nil {
		t.Fatal(err)
	}
	c := b.claimOf(s, key(1))
	if got := b.claim(c); got != "" {
		t.Fatal(got)
	}
	b.restart(sent)
	if got, _ := b.Newest(); got.State != Claimed || !got.ClaimKey.Equal(key(1)) {
		t.Fatalf("%+v", got)
	}
	if got := b.claim(c); got != "" {
		t.Errorf("the same key after a restart: %s", got)
	}
	next := b.served(2)
	if got := b.claim(b.claimOf(next, key(1))); got != ReasonKeyUsed {
		t.Errorf("a key of before the restart: %q", got)
	}
	b.image = testImage(t)
	b.restart(nil)
	if got, _ := b.Newest(); got.State != Ended || got.Reason != EndImageGone {
		t.Errorf("another image: %s, %s", got.State, got.Reason)
	}
}

func TestWatchersSeeEveryState(t *testing.T) {
	b := newBench(t)
	changes, stop := b.Watch()
	defer stop()
	s := b.served(1)
	b.claim(b.claimOf(s, key(1)))
	b.claim(b.claimOf(s, key(2)))
	b.open(2, UEFIHTTP)
	var got []State
	for len(changes) > 0 {
		got = append(got, (<-changes).State)
	}
	if want := []State{Offered, Fetching, Served, Claimed, Void, Ended, Offered}; !slices.Equal(got, want) {
		t.Errorf("states %v", got)
	}
	slow, _ := b.Watch()
	for i := range 100 {
		b.clock.add(time.Minute)
		b.open(uint32(i+10), UEFIHTTP)
	}
	n := 0
	for range slow { // ends, because it was closed
		n++
	}
	if n != watchQueue {
		t.Errorf("%d changes before the end", n)
	}
}

func TestGatewayThatForgotIsToldAgain(t *testing.T) {
	b := newBench(t)
	s := b.served(1)
	b.Reassert(context.Background())
	if n := len(b.gateway.calls); n != 1 {
		t.Fatalf("told again though it knows: %q", b.gateway.calls)
	}
	b.gateway.session = ""
	b.Reassert(context.Background())
	b.claim(b.claimOf(s, key(1)))
	b.gateway.session = ""
	b.Reassert(context.Background())
	want := []string{"open " + s.ID, "open " + s.ID, "close " + s.ID, "open " + s.ID, "close " + s.ID}
	if !slices.Equal(b.gateway.calls, want) {
		t.Errorf("gatewayd was told %q", b.gateway.calls)
	}
	b.End(context.Background(), EndReleased)
	b.gateway.session = ""
	b.Reassert(context.Background())
	if got := b.gateway.calls[len(b.gateway.calls)-1]; got != "close "+s.ID || len(b.gateway.calls) != 6 {
		t.Errorf("an ended session was opened again: %q", b.gateway.calls)
	}
}

func TestCoverCountsEachByteOnce(t *testing.T) {
	tests := []struct {
		add  [][2]int64
		want cover
	}{
		{nil, nil},
		{[][2]int64{{5, 5}, {7, 3}}, nil},
		{[][2]int64{{0, 5}, {5, 9}}, cover{{0, 9}}},
		{[][2]int64{{5, 9}, {0, 5}}, cover{{0, 9}}},
		{[][2]int64{{0, 2}, {4, 6}, {8, 9}, {1, 8}}, cover{{0, 9}}},
		{[][2]int64{{0, 2}, {4, 6}, {4, 6}}, cover{{0, 2}, {4, 6}}},
		{[][2]int64{{4, 6}, {0, 1}, {9, 12}, {5, 10}}, cover{{0, 1}, {4, 12}}},
		{[][2]int64{{2, 3}, {0, 10}}, cover{{0, 10}}},
	}
	for _, tt := range tests {
		var c cover
		for _, x := range tt.add {
			c.add(x[0], x[1])
		}
		if !reflect.DeepEqual(c, tt.want) {
			t.Errorf("%v: %v, want %v", tt.add, c, tt.want)
		}
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

// FuzzHistory: a session record is decoded into what can be gone on with, or refused.
func FuzzHistory(f *testing.F) {
	f.Add([]byte(`{"session":"abcdefghijklmnopqrstuvwxyz","mac":"52:54:00:aa:00:02","address":"10.77.0.2","firmware":"uefi-http","state":"served","xid":1,"opened":1,"manifest":"` + strings.Repeat("00", 32) + `"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h History
		if h.Session(b) != nil {
			return
		}
		e, err := h.newest.entry()
		if err == nil && !ValidID(e.ID) {
			t.Fatalf("%+v", e)
		}
	})
}

// FuzzCover compares the spans with a plain set of bytes.
func FuzzCover(f *testing.F) {
	f.Add([]byte{0, 5, 5, 9, 3, 4})
	f.Fuzz(func(t *testing.T, ranges []byte) {
		var c cover
		plain := map[int64]bool{}
		for i := 0; i+1 < len(ranges); i += 2 {
			from, to := int64(ranges[i]), int64(ranges[i+1])
			c.add(from, to)
			for ; from < to; from++ {
				plain[from] = true
			}
		}
		if c.total() != int64(len(plain)) {
			t.Fatalf("%v has %d, want %d", c, c.total(), len(plain))
		}
		for i := 1; i < len(c); i++ {
			if c[i-1].to >= c[i].from {
				t.Fatalf("%v is not sorted and apart", c)
			}
		}
	})
}
