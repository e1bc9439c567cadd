package session

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/ledger"
)

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
