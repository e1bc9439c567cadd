// Package run is the agent's life: connect, claim, answer, and when the
// connection ends begin again, for as long as the machine runs. cmd/hpc-agent
// is the only one that may call it.
package run

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

// Waits between attempts. A gateway that was started anew must find its PC
// within a second; a claim that was refused for good is repeated slowly.
const (
	firstWait   = 50 * time.Millisecond
	longestWait = time.Second
	refusedWait = 10 * time.Second
)

// Agent is what runs; all fields are needed.
type Agent struct {
	Address string // of the gateway, host:port
	Facts   claim.Facts
	Key     *claim.Key
	Probes  []protocol.Probe
	// Down takes the machine down, for good where off is true.
	Down func(off bool) error
	// Log gets one line for each change of state.
	Log func(line string)
}

// Run returns when ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	probes := make(map[string]protocol.Probe)
	for _, p := range a.Probes {
		probes[p.Name()] = p
	}
	wait, last := firstWait, ""
	say := func(line string) {
		if line != last {
			a.Log(line)
			last = line
		}
	}
	s := &server{Agent: a, probes: probes}
	s.notices()
	for ctx.Err() == nil {
		conn, err := s.dial(ctx)
		if err == nil {
			say(fmt.Sprintf("state=claimed session=%s resumed=%t", a.Facts.Session, conn.Resumed))
			wait = firstWait
			err = s.serve(ctx, conn)
		}
		if ctx.Err() != nil {
			break
		}
		say("state=disconnected reason=" + reason(err) + fmt.Sprintf(" detail=%q", err))
		pause(ctx, wait/2+rand.N(wait/2+1))
		wait = next(wait, err)
	}
	return ctx.Err()
}

// down does what the gateway asks, if it is the gateway that asks, and on this connection.
func (a *Agent) down(conn *channel.Conn, d *protocol.Down) error {
	if err := d.Verify(a.Facts.Gateway, conn.Binding, a.Facts.Session); err != nil {
		return err
	}
	a.Log(fmt.Sprintf("state=going-down off=%t action=%x", d.Off, d.Id))
	conn.Close() // the gateway sees that it is heard: a kernel that goes down says nothing
	return a.Down(d.Off)
}

func next(wait time.Duration, err error) time.Duration {
	var refused *channel.RefusedError
	if errors.As(err, &refused) && refused.Reason != protocol.ClaimUnavailable {
		return min(max(2*wait, longestWait), refusedWait)
	}
	return min(2*wait, longestWait)
}

// reason is the typed word for the log.
func reason(err error) string {
	var refused *channel.RefusedError
	switch {
	case errors.As(err, &refused):
		return refused.Reason
	case errors.Is(err, protocol.ErrPin):
		return "gateway-key"
	case errors.Is(err, protocol.ErrBinding):
		return protocol.ClaimBinding
	case errors.Is(err, protocol.ErrDown):
		return "gateway-down"
	case errors.Is(err, protocol.ErrMalformed), errors.Is(err, protocol.ErrFrame):
		return "gateway-malformed"
	}
	return "connection"
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
