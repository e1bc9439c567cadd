package server

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/internal/clock"
	"portcullis/internal/strictjson"
)

// Bounds of what callers from outside of the Pi can cause, beside those of Ask. All
// together get half of the questions that a PC is asked for others: who asks on the socket
// still finds room.
const (
	outsideEvery  = time.Second // of all callers
	outsideBurst  = 4
	callerEvery   = 5 * time.Second // of one address (IPv6: of one /64)
	callerBurst   = 3
	maxCallers    = 1024             // that are told apart
	outsideAtOnce = 16               // questions that wait
	outsideTime   = 30 * time.Second // for one
)

// Outside serves POST /attest, and nothing else, to callers who are not named: peers and tools
// on the home side. What they get is signed with their nonce in it, so that plain HTTP is
// enough; who sits between can withhold an answer and cannot make one.
func (f *Fleet) Outside(c clock.Clock) http.Handler {
	o := &outside{door: door{f}, clock: c, all: rate.NewLimiter(rate.Every(outsideEvery), outsideBurst),
		callers: map[netip.Prefix]*caller{}, waiting: make(chan struct{}, outsideAtOnce)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /attest", o.postAttest)
	return mux
}

type outside struct {
	door
	clock   clock.Clock
	waiting chan struct{}

	mu      sync.Mutex // guards what follows
	all     *rate.Limiter
	callers map[netip.Prefix]*caller
}

type caller struct {
	pace *rate.Limiter
	last time.Time
}

func (o *outside) postAttest(w http.ResponseWriter, r *http.Request) {
	if !o.allow(r.RemoteAddr) {
		w.Header().Set("Retry-After", "5")
		replyError(w, http.StatusTooManyRequests, ReasonAskBusy, errors.New("at most one question in 5 s of one caller, and one a second of all"))
		return
	}
	select {
	case o.waiting <- struct{}{}:
		defer func() { <-o.waiting }()
	default:
		replyError(w, http.StatusTooManyRequests, ReasonAskBusy, errors.New("too many questions are waiting"))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), outsideTime)
	defer cancel()
	o.door.postAttest(w, r.WithContext(ctx))
}

// allow counts one question of the caller.
func (o *outside) allow(remote string) bool {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	key := network(from.Addr())
	now := o.clock.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	c := o.callers[key]
	if c == nil {
		if len(o.callers) >= maxCallers && !o.forget(now) {
			return false
		}
		c = &caller{pace: rate.NewLimiter(rate.Every(callerEvery), callerBurst)}
		o.callers[key] = c
	}
	c.last = now
	return c.pace.AllowN(now, 1) && o.all.AllowN(now, 1)
}

// forget lets go of callers whose limit is as good as new.
func (o *outside) forget(now time.Time) bool {
	for key, c := range o.callers {
		if now.Sub(c.last) >= callerBurst*callerEvery {
			delete(o.callers, key)
		}
	}
	return len(o.callers) < maxCallers
}

// network is what one caller has to itself: an IPv4 address, an IPv6 /64.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // the length fits the family
	return p
}

// maxAskProbes bounds a list of names.
const maxAskProbes = 32

// parseAsk reads the body of POST /attest. Of its values only the form is checked here.
func parseAsk(body []byte) (*portcullisv1.AskRequest, string, error) {
	var b askBody
	if err := strictjson.Decode(body, &b); err != nil {
		return nil, "", err
	}
	nonce, err := base64.RawURLEncoding.Strict().DecodeString(b.Nonce)
	if err != nil {
		return nil, "", fmt.Errorf("nonce: %w", err)
	}
	if len(b.Probes) > maxAskProbes {
		return nil, "", fmt.Errorf("%d probes, at most %d", len(b.Probes), maxAskProbes)
	}
	return &portcullisv1.AskRequest{Nonce: nonce, Context: b.Context, Probes: b.Probes, Checkpoint: b.Checkpoint}, b.PC, nil
}
