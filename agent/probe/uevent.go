package probe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"portcullis/attestserver/protocol"
)

// Uevent keeps what the kernel has said about devices since the agent started,
// which is before systemd: each event extends a hash chain, so that what was
// told once cannot be taken back.
//
// It finds a device that was plugged in or pulled out between two challenges,
// even when everything looks as before by the second one.
//
// It cannot see what happened before the agent listened, events inside of other
// network namespaces, nor hardware that the kernel has no driver and no bus for.
type Uevent struct {
	Host
	mu     sync.Mutex
	ring   []protocol.Uevent // the last ones
	first  uint64            // events before ring
	head   [32]byte          // before ring
	lost   uint64
	broken error // why nothing is heard
	alarm  func()
}

// keptUevents bounds the ring. The boot of a PC causes about two thousand
// events, the start of a container a few dozen.
const keptUevents = 8192

// NewUevent listens from now on.
func NewUevent(h Host) *Uevent {
	p := &Uevent{Host: h, head: protocol.UeventStart, alarm: func() {}}
	next, err := h.Uevents()
	if err != nil {
		p.broken = err
		return p
	}
	go p.listen(next)
	return p
}

// Alarm has f called, in a goroutine of the probe's, when hardware comes or goes.
func (p *Uevent) Alarm(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alarm = f
}

// ErrLost is what Host.Uevents returns where the kernel dropped events.
var ErrLost = errors.New("uevents were dropped")

func (p *Uevent) listen(next func() ([]byte, error)) {
	for {
		m, err := next()
		switch {
		case errors.Is(err, ErrLost):
			p.mu.Lock()
			p.lost++
			p.mu.Unlock()
			continue
		case err != nil:
			p.mu.Lock()
			p.broken = err
			p.mu.Unlock()
			return
		}
		if e, ok := parseUevent(m); ok {
			e.At = p.Uptime().Milliseconds()
			p.take(e)
		}
	}
}

func (p *Uevent) take(e protocol.Uevent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ring) == keptUevents {
		p.head = protocol.UeventNext(p.head, p.ring[0])
		p.ring = p.ring[1:]
		p.first++
	}
	p.ring = append(p.ring, e)
	if e.Hardware() {
		go p.alarm()
	}
}

// parseUevent reads "action@path" and the NUL-separated KEY=VALUE behind it
// (lib/kobject_uevent.c).
func parseUevent(b []byte) (e protocol.Uevent, ok bool) {
	head, rest, _ := strings.Cut(string(b), "\x00")
	action, path, ok := strings.Cut(head, "@")
	if !ok {
		return e, false
	}
	e.Action, e.Path = short64(action), clip(path)
	for kv := range strings.SplitSeq(rest, "\x00") {
		k, v, _ := strings.Cut(kv, "=")
		switch k {
		case "SUBSYSTEM":
			e.Subsystem = short64(v)
		case "SYNTH_UUID":
			e.Synthetic = true
		}
	}
	return e, true
}

func short64(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return s[:min(len(s), 64)]
}

// clip leaves room for action and subsystem below MaxUeventText.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return s[:min(len(s), protocol.MaxUeventText-3*64)]
}

// Name implements protocol.Probe.
func (*Uevent) Name() string { return protocol.OpUevent }

// settleUevents is how long events that are on their way are waited for.
const settleUevents = 2 * time.Millisecond

// Run implements protocol.Probe.
func (p *Uevent) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.UeventParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	time.Sleep(settleUevents)
	d, err := p.since(want.From)
	if err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, d)
}

func (p *Uevent) since(from uint64) (d protocol.UeventData, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broken != nil {
		return d, fmt.Errorf("uevents are not heard: %w", p.broken)
	}
	total := p.first + uint64(len(p.ring))
	if from > total {
		return d, fmt.Errorf("asked for the events after %d, there were %d", from, total)
	}
	head, first, rest := p.head, p.first, p.ring
	for ; first < from; first++ {
		head = protocol.UeventNext(head, rest[0])
		rest = rest[1:]
	}
	d = protocol.UeventData{First: first, HeadFrom: hex.EncodeToString(head[:]), Total: total, Lost: p.lost,
		Events: append([]protocol.Uevent(nil), rest[:min(len(rest), protocol.MaxUevents)]...)}
	for _, e := range d.Events {
		head = protocol.UeventNext(head, e)
	}
	d.Head = hex.EncodeToString(head[:])
	return d, nil
}
