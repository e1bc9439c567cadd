package session

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/images/manifest"
	"portcullis/pxe/ledger"
)

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
