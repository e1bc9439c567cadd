package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis/internal/event"
)

// ErrNotTrusted is a boot that did not end in trust.
var ErrNotTrusted = errors.New("the PC is not trusted")

// UntilTrusted waits for the verdict trusted on a boot session opened after mark.
// It fails early where nothing more can come of it: a quarantine of that session,
// a service given up, the PC's power gone, an image refused. The error names the
// last thing that happened and what failed.
func (l *Lab) UntilTrusted(ctx context.Context, mark int) (Event, error) {
	opened := map[string]bool{}
	e, err := l.Log.Wait(ctx, mark, func(e Event) bool {
		switch e.Name {
		case "session.opened":
			opened[e.Text("session")] = true
		case "verdict":
			// attestd also speaks of the session before; its file may be read first.
			return opened[e.Text("session")] && (e.Text("state") == "trusted" || e.Text("state") == "quarantined")
		case "daemon.given-up", "image.refused":
			return true
		case "pc.power":
			return e.Text("state") == "off"
		}
		return false
	})
	switch {
	case err != nil:
		return Event{}, fmt.Errorf("%w: %v; %s", ErrNotTrusted, err, l.Why(mark))
	case e.Name == "verdict" && e.Text("state") == "trusted":
		return e, nil
	default:
		return e, fmt.Errorf("%w: %s; %s", ErrNotTrusted, line(e), l.Why(mark))
	}
}

// Why summarises the events since mark for an error message: how far the boot
// came and what was refused on the way.
func (l *Lab) Why(mark int) string {
	var stage string
	var bad []string
	for _, e := range l.Log.Since(mark) {
		switch e.Name {
		case "pc.stage":
			stage = e.Text("stage")
		case "artefact.started", "artefact.served", "session.opened", "claim.accepted", "agent.connected":
			stage = e.Name
		case "pc.failed", "artefact.refused", "agent.refused", "claim.refused", "image.refused", "finding", "daemon.ended", "daemon.given-up", "session.ended", "dhcp.drop":
			if s := line(e); len(bad) == 0 || bad[len(bad)-1] != s {
				bad = append(bad, s)
			}
		}
	}
	if len(bad) > 6 {
		bad = bad[len(bad)-6:]
	}
	if stage == "" {
		stage = "nothing"
	}
	return "last stage: " + stage + "; " + strings.Join(bad, "; ")
}

// Boot powers the PC on and waits until it is trusted.
func (l *Lab) Boot(ctx context.Context, limit time.Duration) (Event, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	mark := l.Log.Mark()
	if err := l.PowerOn(ctx); err != nil {
		return Event{}, err
	}
	return l.UntilTrusted(ctx, mark)
}

func line(e Event) string {
	f := event.Fields{}
	for k, v := range e.Fields {
		f[k] = v
	}
	return event.Line(e.Name, f)
}
